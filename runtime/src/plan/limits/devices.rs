//! Rules on devices: which may be made, read and written.
//!
//! They are read in order, and each kind of access is decided by the last rule that speaks of it. cgroup v2 takes them
//! as a program that does just that ([`super::ebpf`]). cgroup v1 knows less, one word for everything and exceptions
//! from it, so a list is brought into that form, or refused where it does not fit.

use super::oci::DeviceRule;
use crate::plan::PlanError;

/// Kinds of access, as a sum.
pub(crate) mod access {
    pub(crate) const MAKE: u8 = 1;
    pub(crate) const READ: u8 = 2;
    pub(crate) const WRITE: u8 = 4;
    pub(crate) const ALL: u8 = MAKE | READ | WRITE;
}

/// Which devices a rule speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    All,
    Block,
    Char,
}

/// One rule, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) allow: bool,
    pub(crate) kind: Kind,
    /// `None`: all.
    pub(crate) major: Option<u32>,
    /// `None`: all.
    pub(crate) minor: Option<u32>,
    /// A sum of [`access`], never 0.
    pub(crate) access: u8,
}

impl Rule {
    const fn allow(kind: Kind, major: Option<u32>, minor: Option<u32>, access: u8) -> Rule {
        Rule { allow: true, kind, major, minor, access }
    }

    /// It decides everything, whatever stands before it.
    pub(crate) fn is_total(&self) -> bool {
        self.kind == Kind::All && self.major.is_none() && self.minor.is_none() && self.access == access::ALL
    }

    /// Whether all devices that `other` speaks of are among its own.
    fn covers(&self, other: &Rule) -> bool {
        (self.kind == Kind::All || self.kind == other.kind)
            && (self.major.is_none() || self.major == other.major)
            && (self.minor.is_none() || self.minor == other.minor)
    }

    /// Whether there are devices that both speak of.
    fn meets(&self, other: &Rule) -> bool {
        let both = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
        (self.kind == Kind::All || other.kind == Kind::All || self.kind == other.kind)
            && both(self.major, other.major)
            && both(self.minor, other.minor)
    }
}

/// What every container may do: make any node (using it is another matter), and use the devices that Docker's
/// containers find in `/dev`.
const ALWAYS: [Rule; 10] = [
    Rule::allow(Kind::Char, None, None, access::MAKE),
    Rule::allow(Kind::Block, None, None, access::MAKE),
    Rule::allow(Kind::Char, Some(1), Some(3), access::ALL),
    Rule::allow(Kind::Char, Some(1), Some(5), access::ALL),
    Rule::allow(Kind::Char, Some(1), Some(7), access::ALL),
    Rule::allow(Kind::Char, Some(1), Some(8), access::ALL),
    Rule::allow(Kind::Char, Some(1), Some(9), access::ALL),
    Rule::allow(Kind::Char, Some(5), Some(0), access::ALL),
    Rule::allow(Kind::Char, Some(5), Some(2), access::ALL),
    Rule::allow(Kind::Char, Some(136), None, access::ALL),
];

/// More than any list has; each costs every opening of a device a few steps.
const MAX_RULES: usize = 512;
/// Linux has 12 bits for the one and 20 for the other.
const MAX_NUMBER: i64 = (1 << 20) - 1;

/// The rules of a container: those asked for, then those that every container has. What none of them names is denied.
pub(crate) fn rules(asked: &[DeviceRule]) -> Result<Vec<Rule>, PlanError> {
    if asked.len() > MAX_RULES {
        return Err(PlanError::invalid("devices", format!("more than {MAX_RULES} rules")));
    }
    asked.iter().map(rule).chain(ALWAYS.into_iter().map(Ok)).collect()
}

fn rule(asked: &DeviceRule) -> Result<Rule, PlanError> {
    let invalid = |reason: String| PlanError::invalid("devices", reason);
    let kind = match asked.kind.as_deref() {
        None | Some("" | "a") => Kind::All,
        Some("b") => Kind::Block,
        Some("c" | "u") => Kind::Char,
        Some(other) => return Err(invalid(format!("unknown type {:?}", other.chars().take(16).collect::<String>()))),
    };
    let number = |number: Option<i64>| match number {
        None | Some(-1) => Ok(None),
        Some(number) if (0..=MAX_NUMBER).contains(&number) => Ok(u32::try_from(number).ok()),
        Some(number) => Err(invalid(format!("there is no device number {number}"))),
    };
    let mut sum = 0;
    for letter in asked.access.as_deref().filter(|access| !access.is_empty()).unwrap_or("rwm").chars() {
        sum |= match letter {
            'r' => access::READ,
            'w' => access::WRITE,
            'm' => access::MAKE,
            other => return Err(invalid(format!("unknown access {other:?}"))),
        };
    }
    Ok(Rule { allow: asked.allow, kind, major: number(asked.major)?, minor: number(asked.minor)?, access: sum })
}

/// What to write to a v1 cgroup: the file (`true`: `devices.allow`) and the line.
///
/// The kernel's form is one word for everything (`a`) and exceptions, each with its own device numbers. A rule that
/// would cut a piece out of an exception has no place in it.
pub(crate) fn v1_lines(rules: &[Rule]) -> Result<Vec<(bool, String)>, PlanError> {
    let (mut allowed, mut exceptions) = (false, Vec::<Rule>::new());
    for rule in rules {
        if rule.is_total() {
            (allowed, exceptions) = (rule.allow, Vec::new());
            continue;
        }
        let kinds: &[Kind] = if rule.kind == Kind::All { &[Kind::Block, Kind::Char] } else { &[rule.kind] };
        for kind in kinds {
            let rule = Rule { kind: *kind, ..*rule };
            if rule.allow == allowed {
                take_out(&mut exceptions, &rule)?;
            } else {
                put_in(&mut exceptions, &rule);
            }
        }
    }
    let mut lines = vec![(allowed, "a".to_owned())];
    lines.extend(exceptions.iter().map(|exception| (!allowed, line(exception))));
    Ok(lines)
}

fn put_in(exceptions: &mut Vec<Rule>, rule: &Rule) {
    match exceptions.iter_mut().find(|known| known.covers(rule) && rule.covers(known)) {
        Some(known) => known.access |= rule.access,
        None => exceptions.push(*rule),
    }
}

fn take_out(exceptions: &mut Vec<Rule>, rule: &Rule) -> Result<(), PlanError> {
    for known in exceptions.iter_mut().filter(|known| known.meets(rule) && known.access & rule.access != 0) {
        if !rule.covers(known) {
            let verb = if rule.allow { "allow" } else { "deny" };
            let reason = format!("cgroup v1 cannot {verb} {} after {}", line(rule), line(known));
            return Err(PlanError::invalid("devices", reason));
        }
        known.access &= !rule.access;
    }
    exceptions.retain(|known| known.access != 0);
    Ok(())
}

fn line(rule: &Rule) -> String {
    let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
    let mut line = match rule.kind {
        Kind::All => "a ",
        Kind::Block => "b ",
        Kind::Char => "c ",
    }
    .to_owned();
    line.push_str(&format!("{}:{} ", number(rule.major), number(rule.minor)));
    for (bit, letter) in [(access::READ, 'r'), (access::WRITE, 'w'), (access::MAKE, 'm')] {
        if rule.access & bit != 0 {
            line.push(letter);
        }
    }
    line
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The meaning of a list, as plainly as it can be said.
    pub(in crate::plan::limits) fn allows(rules: &[Rule], kind: Kind, major: u32, minor: u32, wanted: u8) -> bool {
        let device = Rule { allow: true, kind, major: Some(major), minor: Some(minor), access: wanted };
        [access::MAKE, access::READ, access::WRITE].into_iter().filter(|bit| wanted & bit != 0).all(|bit| {
            let last = rules.iter().rev().find(|rule| rule.covers(&device) && rule.access & bit != 0);
            last.is_some_and(|rule| rule.allow)
        })
    }

    fn parse(text: &str) -> Vec<DeviceRule> {
        let rule = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (major, minor) = words[2].split_once(':').unwrap();
            DeviceRule {
                allow: words[0] == "allow",
                kind: Some(words[1].to_owned()),
                major: major.parse().ok(),
                minor: minor.parse().ok(),
                access: Some(words[3].to_owned()),
            }
        };
        text.split(',').map(str::trim).filter(|line| !line.is_empty()).map(rule).collect()
    }

    #[track_caller]
    fn check_v1(text: &str, expected: Result<&str, &str>) {
        let rules: Vec<Rule> = parse(text).iter().map(|asked| rule(asked).unwrap()).collect();
        let story = v1_lines(&rules).map(|lines| {
            let line = |(allow, line): &(bool, String)| format!("{}{line}", if *allow { '+' } else { '-' });
            lines.iter().map(line).collect::<Vec<_>>().join(", ")
        });
        match (story, expected) {
            (Ok(story), Ok(expected)) => assert_eq!(story, expected),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (story, expected) => panic!("{story:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn version_1_has_one_word_and_exceptions() {
        check_v1("", Ok("-a"));
        check_v1("deny a *:* rwm, allow c 1:3 rw, allow c 1:3 m", Ok("-a, +c 1:3 rwm"));
        check_v1("allow a *:* rwm", Ok("+a"));
        check_v1("allow a *:* rwm, deny b 8:* rw, allow c 1:3 r", Ok("+a, -b 8:* rw"));
        check_v1("allow a *:* m", Ok("-a, +b *:* m, +c *:* m"));
        check_v1("allow c 1:3 rwm, allow b 8:0 r, deny c *:* w", Ok("-a, +c 1:3 rm, +b 8:0 r"));
        check_v1("allow c 1:3 r, deny a *:* rwm, allow c 1:5 r", Ok("-a, +c 1:5 r"));
        check_v1("allow c 1:3 r, deny c 1:3 rwm", Ok("-a"));
        check_v1("allow c 1:* rwm, deny c 1:3 w", Err("cannot deny c 1:3 w after c 1:* rwm"));
        check_v1("allow a *:* rwm, deny c 1:* w, allow c 1:3 w", Err("cannot allow c 1:3 w after c 1:* w"));
        check_v1("allow c 1:* r, deny c 1:3 w", Ok("-a, +c 1:* r"));
    }

    #[test]
    fn what_every_container_may_use() {
        let rules = rules(&parse("deny a *:* rwm, allow c 10:229 rw")).unwrap();
        assert!(allows(&rules, Kind::Char, 1, 3, access::ALL));
        assert!(allows(&rules, Kind::Char, 136, 7, access::READ | access::WRITE));
        assert!(allows(&rules, Kind::Char, 10, 229, access::ALL));
        assert!(allows(&rules, Kind::Block, 8, 0, access::MAKE));
        assert!(!allows(&rules, Kind::Block, 8, 0, access::READ));
        assert!(!allows(&rules, Kind::Char, 1, 1, access::READ));
    }

    #[test]
    fn refusals() {
        let refused = |change: fn(&mut DeviceRule), part: &str| {
            let mut asked = DeviceRule::default();
            change(&mut asked);
            let error = rules(&[asked]).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        refused(|rule| rule.kind = Some("p".into()), "unknown type \"p\"");
        refused(|rule| rule.major = Some(-2), "no device number -2");
        refused(|rule| rule.minor = Some(1 << 20), "no device number 1048576");
        refused(|rule| rule.access = Some("rx".into()), "unknown access 'x'");
        assert!(rules(&vec![DeviceRule::default(); 600]).is_err());
    }
}
