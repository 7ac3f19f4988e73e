//! Firewalls of others in the host's namespace that drop what is forwarded unless one of their own rules takes it.
//!
//! What our own tables accept does not count there: a packet passes every chain of its way, and one drop is enough. So
//! each foreign chain at the forward hook whose policy is to drop gets rules of ours at its end, one for each of our
//! links and direction. What the chain's owner drops by a rule stays dropped. The rules carry a comment by which they
//! are known again; they consist of nothing that `iptables` could not list, since Docker does.

use std::collections::BTreeSet;
use std::{fmt, io};

use libc::{NFT_MSG_DELRULE, NFT_MSG_GETCHAIN, NFT_MSG_GETRULE, NFT_MSG_NEWRULE};

use super::expressions::{DATA_VALUE, DATA_VERDICT, EXPR_DATA, EXPR_NAME, LIST_ELEM, Terms, VERDICT_CODE, lower};
use super::netlink::{APPEND, CREATE, Message, attributes, be32_of, says, str_of};
use super::netns::NetNs;
use super::nftables::{
    Batch, CHAIN_HOOK, CHAIN_NAME, CHAIN_POLICY, CHAIN_TABLE, HOOK_NUM, NFPROTO_IPV4, NFPROTO_IPV6, RULE_CHAIN,
    RULE_EXPRESSIONS, RULE_HANDLE, RULE_TABLE, RULE_USERDATA, Tables, kind,
};
use super::readback::attribute;
use crate::plan::names;
use crate::plan::ruleset::{Action, Match, Rule};

/// `NFPROTO_INET`: chains that see IPv4 among others.
const NFPROTO_INET: u8 = 1;
/// `NF_INET_FORWARD`.
const FORWARD: u32 = 2;
/// Attributes of the expressions that are looked into: `NFTA_IMMEDIATE_DATA`, `NFTA_CMP_OP`, `NFTA_CMP_DATA`.
const IMMEDIATE_DATA: u16 = 2;
const CMP_OPERATOR: u16 = 2;
const CMP_DATA: u16 = 3;
/// `NF_DROP`, as a chain's policy or a rule's verdict.
const POLICY_DROP: u32 = 0;
/// What the comment of each rule of ours begins with.
const MARK: &str = "made by shoal: ";

/// A foreign chain: family, table, name.
type Chain = (u8, String, String);

/// A rule of ours in a foreign chain.
struct Placed {
    comment: String,
    handle: [u8; 8],
    attributes: Vec<u8>,
}

/// Our rules in the firewalls of others.
#[derive(Debug)]
pub(crate) struct Firewall {
    tables: Tables,
    /// Which rules of ours were put or seen where.
    opened: BTreeSet<(Chain, String)>,
    /// The state of the rules in which nothing was to do, and for which links.
    settled: Option<(u32, Vec<String>)>,
    /// The links carry IPv6 packets too.
    six: bool,
}

/// What was done about a chain.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Opened {
    /// Such as `filter FORWARD`.
    pub(crate) chain: String,
    /// Our rules had been there before, and somebody removed them.
    pub(crate) again: bool,
}

/// What drops packets that our links forward. Chains are named with their table, such as `filter FORWARD`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum FirewallObstacle {
    /// A rule of a chain drops packets of this link of ours.
    DropsOurs {
        /// The chain.
        chain: String,
        /// Our link.
        link: String,
    },
    /// A rule of a chain drops whatever reaches it. A rule before it may let our packets pass, which this one cannot tell.
    DropsRest {
        /// The chain.
        chain: String,
    },
    /// The policy of a chain drops, and our rules are not in it.
    PolicyDrops {
        /// The chain.
        chain: String,
    },
    /// The older packet filter is in use, whose rules cannot be read.
    Unreadable,
}

impl fmt::Display for FirewallObstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FirewallObstacle::DropsOurs { chain, link } => write!(f, "a rule in chain {chain} drops packets of {link}"),
            FirewallObstacle::DropsRest { chain } => write!(f, "chain {chain} drops by a rule whatever reaches it"),
            FirewallObstacle::PolicyDrops { chain } => {
                write!(f, "the policy of chain {chain} drops, and our rules are not in it")
            }
            FirewallObstacle::Unreadable => f.write_str(
                "this host has rules of the older iptables, which cannot be read: see to it that its chain FORWARD lets \
                 the overlay's links pass",
            ),
        }
    }
}

fn chain_name((_, table, chain): &Chain) -> String {
    format!("{table} {chain}")
}

/// The rules for one link of ours, with their comments.
fn wanted(links: &[String]) -> Vec<(String, Rule)> {
    let both = |link: &String| {
        [
            (format!("{MARK}from {link}"), Rule::new([Match::From(link.clone())], Action::Accept)),
            (format!("{MARK}to {link}"), Rule::new([Match::To(link.clone())], Action::Accept)),
        ]
    };
    links.iter().flat_map(both).collect()
}

/// The comment in a rule's own data, as `nft` and `iptables` write it: type 0, length, text with its closing zero.
fn comment(mut data: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = data {
        let value = rest.get(..usize::from(*length))?;
        if *kind == 0 {
            return Some(str_of(value));
        }
        data = &rest[value.len()..];
    }
    None
}

fn start(chain: &Chain, message: i32, flags: u16) -> Message {
    let mut m = Message::new(kind(message), flags, &[chain.0, 0, 0, 0]);
    m.put_str(RULE_TABLE, &chain.1).put_str(RULE_CHAIN, &chain.2);
    m
}

fn rule(chain: &Chain, text: &str, rule: &Rule) -> Message {
    let mut m = start(chain, NFT_MSG_NEWRULE, CREATE | APPEND);
    m.nest(RULE_EXPRESSIONS, |m| lower(m, Terms::FOUR, rule));
    let mut data = vec![0, u8::try_from(text.len() + 1).expect("a comment with a link's name is short")];
    data.extend(text.bytes().chain([0]));
    m.put(RULE_USERDATA, &data);
    m
}

impl Firewall {
    /// Opens a handle on a namespace.
    pub(crate) fn open(namespace: &NetNs) -> io::Result<Firewall> {
        Ok(Firewall { tables: Tables::open(namespace)?, opened: BTreeSet::new(), settled: None, six: false })
    }

    /// Whether the links carry IPv6 packets too. Chains that see nothing else are left alone otherwise.
    pub(crate) fn set_six(&mut self, six: bool) {
        if std::mem::replace(&mut self.six, six) != six {
            self.settled = None;
        }
    }

    /// Lets what comes from these links of ours and goes to them pass; rules for other links go.
    pub(crate) fn ensure(&mut self, links: &[String]) -> io::Result<Vec<Opened>> {
        let generation = self.tables.generation()?;
        if self.settled.as_ref().is_some_and(|(number, known)| *number == generation && known == links) {
            return Ok(Vec::new());
        }
        self.settled = None;
        let (mut done, mut open) = (Vec::new(), BTreeSet::new());
        let (mut changed, mut failed) = (false, None);
        let ours = wanted(links);
        for (chain, drops) in self.forward_chains()? {
            // Each by itself: that one takes no rules of ours, or is gone by now, is no reason to leave out the others.
            let mut batch = Batch::default();
            let mut placed = self.placed(&chain)?;
            let (mut added, mut again) = (false, false);
            for (text, wanted) in ours.iter().filter(|_| drops) {
                let message = rule(&chain, text, wanted);
                let found = placed.iter().position(|p| p.comment == *text && says(&p.attributes, &message.body()[4..]));
                match found {
                    Some(place) => drop(placed.swap_remove(place)),
                    None => {
                        added = true;
                        again |= self.opened.contains(&(chain.clone(), text.clone()));
                        batch.push(format!("rule {text:?} of chain {}", chain_name(&chain)), message);
                    }
                }
                open.insert((chain.clone(), text.clone()));
            }
            for old in placed {
                let mut m = start(&chain, NFT_MSG_DELRULE, 0);
                m.put(RULE_HANDLE, &old.handle);
                batch.push(format!("old rule {:?} of chain {}", old.comment, chain_name(&chain)), m);
            }
            if batch.messages().next().is_none() {
                continue;
            }
            changed = true;
            match batch.send(&mut self.tables.socket) {
                Ok(()) if added => done.push(Opened { chain: chain_name(&chain), again }),
                Ok(()) => {}
                Err(error) => failed = Some(error),
            }
        }
        if !changed {
            self.settled = Some((generation, links.to_vec()));
        }
        // A chain that is gone for now, as during a restart of its owner, is remembered: that it comes back without our
        // rules is no news of the same kind as a new one.
        self.opened.extend(open);
        failed.map_or(Ok(done), Err)
    }

    /// What of others' rules drops what these links forward, as far as that can be said of a rule by itself: a policy
    /// without our rules, a rule that drops whatever reaches it, a rule that drops and names a link of ours. Changes
    /// nothing.
    pub(crate) fn obstacles(&mut self, links: &[String]) -> io::Result<Vec<FirewallObstacle>> {
        let mut found = Vec::new();
        let ours = wanted(links);
        for (chain, drops) in self.forward_chains()?.into_iter().filter(|_| !links.is_empty()) {
            let placed = self.placed(&chain)?;
            let lacks = ours.iter().any(|(text, _)| !placed.iter().any(|p| p.comment == *text));
            if drops && lacks {
                found.push(FirewallObstacle::PolicyDrops { chain: chain_name(&chain) });
            }
            let replies = self.tables.dump(NFT_MSG_GETRULE, chain.0, |m| {
                m.put_str(RULE_TABLE, &chain.1);
            });
            for reply in replies.unwrap_or_default() {
                let Some(body) = reply.body.get(4..) else { continue };
                if attribute(body, RULE_TABLE).map(str_of).as_ref() != Some(&chain.1) {
                    continue;
                }
                let name = attribute(body, RULE_CHAIN).map(str_of).unwrap_or_default();
                let fate = attribute(body, RULE_EXPRESSIONS).map_or(Fate::Other, |list| fate(list, links));
                match fate {
                    Fate::Drops if name == chain.2 => {
                        found.push(FirewallObstacle::DropsRest { chain: chain_name(&chain) });
                    }
                    Fate::DropsOf(link) => {
                        found.push(FirewallObstacle::DropsOurs { chain: format!("{} {name}", chain.1), link });
                    }
                    Fate::Drops | Fate::Other => {}
                }
            }
        }
        found.sort();
        found.dedup();
        Ok(found)
    }

    /// Whether anybody else has rules for what is forwarded.
    pub(crate) fn others_forward(&mut self) -> io::Result<bool> {
        Ok(self.forward_chains()?.iter().any(|((family, ..), _)| *family != NFPROTO_IPV6))
    }

    /// The foreign chains at the forward hook, and whether their policy is to drop.
    fn forward_chains(&mut self) -> io::Result<Vec<(Chain, bool)>> {
        let mut found = Vec::new();
        for family in [NFPROTO_IPV4, NFPROTO_INET, NFPROTO_IPV6] {
            for reply in self.tables.dump(NFT_MSG_GETCHAIN, family, |_| {})? {
                let Some(body) = reply.body.get(4..) else { continue };
                let text = |kind| attribute(body, kind).map(str_of).unwrap_or_default();
                let hook = attribute(body, CHAIN_HOOK).and_then(|hook| attribute(hook, HOOK_NUM)).map(be32_of);
                let table = text(CHAIN_TABLE);
                if hook == Some(FORWARD) && table != names::TABLE {
                    let drops = attribute(body, CHAIN_POLICY).map(be32_of) == Some(POLICY_DROP);
                    let drops = drops && (family != NFPROTO_IPV6 || self.six);
                    found.push(((family, table, text(CHAIN_NAME)), drops));
                }
            }
        }
        Ok(found)
    }

    /// Our rules in a chain.
    fn placed(&mut self, chain: &Chain) -> io::Result<Vec<Placed>> {
        let replies = self.tables.dump(NFT_MSG_GETRULE, chain.0, |m| {
            m.put_str(RULE_TABLE, &chain.1).put_str(RULE_CHAIN, &chain.2);
        });
        let replies = match replies {
            // It went meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            replies => replies?,
        };
        let ours = replies.iter().filter_map(|reply| {
            let body = reply.body.get(4..)?;
            if attribute(body, RULE_CHAIN).map(str_of)? != chain.2
                || attribute(body, RULE_TABLE).map(str_of)? != chain.1
            {
                return None;
            }
            let comment = comment(attribute(body, RULE_USERDATA)?).filter(|text| text.starts_with(MARK))?;
            let handle = attribute(body, RULE_HANDLE)?.try_into().ok()?;
            Some(Placed { comment, handle, attributes: body.to_vec() })
        });
        Ok(ours.collect())
    }
}

/// What a foreign rule does to packets of ours.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// It drops whatever comes to it.
    Drops,
    /// It drops, on conditions that name this link of ours.
    DropsOf(String),
    /// Anything else.
    Other,
}

/// What a rule with these expressions does.
fn fate(list: &[u8], links: &[String]) -> Fate {
    let (mut drops, mut conditions, mut named) = (false, false, None);
    for (_, expression) in attributes(list).filter(|(kind, _)| *kind == LIST_ELEM) {
        let name = attribute(expression, EXPR_NAME).map(str_of).unwrap_or_default();
        let data = attribute(expression, EXPR_DATA).unwrap_or_default();
        match name.as_str() {
            "counter" | "log" => {}
            "reject" => drops = true,
            "immediate" => {
                let verdict = attribute(data, IMMEDIATE_DATA).and_then(|data| attribute(data, DATA_VERDICT));
                let code = verdict.and_then(|verdict| attribute(verdict, VERDICT_CODE)).map(be32_of);
                drops |= code == Some(POLICY_DROP);
                conditions |= code.is_none();
            }
            "cmp" => {
                conditions = true;
                let value = attribute(data, CMP_DATA).and_then(|data| attribute(data, DATA_VALUE));
                let equal = attribute(data, CMP_OPERATOR).map(be32_of) == Some(0);
                named = named.or(links.iter().find(|link| equal && value.map(str_of).as_ref() == Some(*link)));
            }
            _ => conditions = true,
        }
    }
    match (drops, conditions, named) {
        (true, false, _) => Fate::Drops,
        (true, true, Some(link)) => Fate::DropsOf(link.clone()),
        _ => Fate::Other,
    }
}

/// Whether the older kind of packet filter, which no table of nf_tables shows, is in use in the calling thread's
/// namespace. Its rules can be neither read nor changed here.
pub(crate) fn legacy_filter() -> bool {
    let names = std::fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default();
    names.lines().any(|name| name == "filter")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_drop_what_is_ours_are_known() {
        let links = ["she-n1".to_owned(), "shi-n1".to_owned()];
        let check = |matches: Vec<Match>, action: Action, expected: Fate| {
            let message = rule(&(2, "filter".into(), "FORWARD".into()), "x", &Rule::new(matches.clone(), action));
            let list = attribute(&message.body()[4..], RULE_EXPRESSIONS).unwrap();
            assert_eq!(fate(list, &links), expected, "{matches:?}");
        };
        check(Vec::new(), Action::Drop, Fate::Drops);
        check(Vec::new(), Action::RejectPort, Fate::Drops);
        check(Vec::new(), Action::Accept, Fate::Other);
        check(vec![Match::From("she-n1".into())], Action::Drop, Fate::DropsOf("she-n1".into()));
        check(vec![Match::NotTo("she-n1".into())], Action::Drop, Fate::Other);
        check(vec![Match::From("eth7".into())], Action::Drop, Fate::Other);
        check(vec![Match::To("shi-n1".into())], Action::Accept, Fate::Other);
        check(vec![Match::New], Action::Drop, Fate::Other);
    }

    #[test]
    fn comments_are_found_among_other_data() {
        assert_eq!(comment(&[0, 3, b'h', b'i', 0]).as_deref(), Some("hi"));
        assert_eq!(comment(&[2, 2, 9, 9, 0, 2, b'a', 0]).as_deref(), Some("a"));
        for bad in [&[][..], &[0], &[0, 5, b'a'], &[1, 0]] {
            assert_eq!(comment(bad), None, "{bad:?}");
        }
    }
}
