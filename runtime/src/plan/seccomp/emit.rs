//! The back half: a policy becomes a program.
//!
//! A program is written from its end to its beginning, so that the target of every jump is known when the jump is
//! written; a conditional jump reaches 255 instructions, and one that has to go further goes to an unconditional one
//! close by. For each architecture the calls are intervals of numbers with one answer each, found by a balanced
//! search: the filter runs at every call that the kernel's own cache (calls that are always allowed) does not know.

use super::{Arch, Comparison, Condition, PlanError, Policy, Rule, SeccompFilter, SockFilter, Verdict, table};

/// What the kernel takes, BPF_MAXINSNS.
const MAX_PROGRAM: usize = 4096;
/// x32 calls have this bit in their number.
const X32_BIT: u32 = 0x4000_0000;
/// A conditional jump must reach its target even when another trampoline is written in between.
const REACH: usize = 250;
const ENOSYS: u16 = libc::ENOSYS as u16;

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`; each argument has 8 bytes, the lower half first on all architectures here.
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGUMENTS: u32 = 16;

/// Compiles.
pub(super) fn filter(policy: &Policy<'_>) -> Result<SeccompFilter, PlanError> {
    let tables = tables(policy);
    let mut program = Program::default();
    let kill = program.answer(Verdict::KILL_PROCESS);
    // Foreign ones first, that is furthest from the beginning: the native one gets the short way.
    let mut entrances: Vec<(u32, Label)> = Vec::new();
    let mut x32 = None;
    for (arch, intervals) in tables.iter().rev() {
        match arch {
            Arch::X32 => {
                let search = program.search(intervals, *arch);
                x32 = Some(program.load_number(search));
            }
            Arch::X86_64 => {
                let search = program.search(intervals, *arch);
                // A tracer that wants a call skipped makes its number −1, which has all bits.
                let foreign = x32.unwrap_or(kill);
                let skipped = program.answer(Verdict::errno(ENOSYS));
                let foreign = program.branch(JUMP_EQUAL, u32::MAX, skipped, foreign);
                let native = program.branch(JUMP_GREATER_OR_EQUAL, X32_BIT, foreign, search);
                entrances.push((arch.audit(), program.load_number(native)));
            }
            Arch::X86 | Arch::Aarch64 => {
                let search = program.search(intervals, *arch);
                entrances.push((arch.audit(), program.load_number(search)));
            }
        }
    }
    let mut next = kill;
    for (audit, entrance) in entrances {
        next = program.branch(JUMP_EQUAL, audit, entrance, next);
    }
    program.push(LOAD, OFFSET_ARCH);
    let program = program.finish();
    if program.len() > MAX_PROGRAM {
        let reason = format!("{} instructions are more than the kernel takes ({MAX_PROGRAM})", program.len());
        return Err(PlanError::invalid("seccomp", reason));
    }
    Ok(SeccompFilter { program, flags: policy.flags })
}

/// One answer for all calls from `start` up to the next interval.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Interval<'a> {
    start: u32,
    answer: Answer<'a>,
}

/// What a call gets.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer<'a> {
    Always(Verdict),
    /// The first of these whose conditions hold, the strictest first; else the last.
    Depends(Vec<(Vec<&'a Condition>, Verdict)>, Verdict),
}

/// The intervals of each architecture, in the policy's order.
fn tables<'a>(policy: &'a Policy<'a>) -> Vec<(Arch, Vec<Interval<'a>>)> {
    let mut named: Vec<Vec<(u32, &Rule<'a>)>> = vec![Vec::new(); policy.arches.len()];
    for rule in &policy.rules {
        for row in rule.names.iter().filter_map(|name| table::row(name)) {
            for (arch, calls) in policy.arches.iter().zip(&mut named) {
                let number = row.get(*arch as usize).and_then(|number| u32::try_from(*number).ok());
                calls.extend(number.map(|number| (number, rule)));
            }
        }
    }
    let with_bit = |arch: Arch, number: u32| if arch == Arch::X32 { number | X32_BIT } else { number };
    policy
        .arches
        .iter()
        .zip(named)
        .map(|(arch, mut calls)| {
            for (number, _) in &mut calls {
                *number = with_bit(*arch, *number);
            }
            // Stable: rules of one call stay in the profile's order.
            calls.sort_by_key(|(number, _)| *number);
            (*arch, intervals(&calls, policy.default, with_bit(*arch, 0)))
        })
        .collect()
}

fn intervals<'a>(calls: &[(u32, &'a Rule<'a>)], default: Verdict, first: u32) -> Vec<Interval<'a>> {
    let mut list = vec![Interval { start: first, answer: Answer::Always(default) }];
    let mut put = |start: u32, answer: Answer<'a>| match list.last_mut() {
        Some(last) if last.answer == answer => {}
        Some(last) if last.start == start => last.answer = answer,
        _ => list.push(Interval { start, answer }),
    };
    for of_one in calls.chunk_by(|(a, _), (b, _)| a == b) {
        let Some((number, _)) = of_one.first() else { continue };
        put(*number, answer(of_one.iter().map(|(_, rule)| *rule), default));
        put(number + 1, Answer::Always(default));
    }
    if let Some((highest, _)) = calls.last()
        && !default.is_permissive()
    {
        put(highest + 1, Answer::Always(Verdict::errno(ENOSYS)));
    }
    merge(list)
}

/// Neighbours with one answer become one.
fn merge(list: Vec<Interval<'_>>) -> Vec<Interval<'_>> {
    let mut merged: Vec<Interval<'_>> = Vec::with_capacity(list.len());
    for interval in list {
        if merged.last().is_none_or(|last| last.answer != interval.answer) {
            merged.push(interval);
        }
    }
    merged
}

/// The answer that these rules, all for one call, make together.
fn answer<'a>(rules: impl Iterator<Item = &'a Rule<'a>>, default: Verdict) -> Answer<'a> {
    let mut always: Option<Verdict> = None;
    let mut depends: Vec<(Vec<&Condition>, Verdict)> = Vec::new();
    for rule in rules.filter(|rule| rule.verdict != default) {
        if rule.conditions.is_empty() {
            if always.is_none_or(|known| rule.verdict.strictness() < known.strictness()) {
                always = Some(rule.verdict);
            }
        } else if repeats_an_argument(&rule.conditions) {
            depends.extend(rule.conditions.iter().map(|condition| (vec![condition], rule.verdict)));
        } else {
            depends.push((rule.conditions.iter().collect(), rule.verdict));
        }
    }
    // What is less strict than the answer without conditions never changes it.
    depends.retain(|(_, verdict)| always.is_none_or(|always| verdict.strictness() <= always.strictness()));
    depends.sort_by_key(|(_, verdict)| verdict.strictness());
    let rest = always.unwrap_or(default);
    match depends.iter().all(|(_, verdict)| *verdict == rest) {
        true => Answer::Always(rest),
        false => Answer::Depends(depends, rest),
    }
}

pub(super) fn repeats_an_argument(conditions: &[Condition]) -> bool {
    let mut seen = 0u8;
    conditions.iter().any(|condition| {
        let bit = 1 << (condition.argument & 7);
        let again = seen & bit != 0;
        seen |= bit;
        again
    })
}

/// An instruction, counted from the program's end.
#[derive(Debug, Clone, Copy)]
struct Label(usize);

/// A program, the last instruction first.
#[derive(Default)]
struct Program {
    backwards: Vec<SockFilter>,
    /// Where each answer was written last.
    answers: Vec<(Verdict, Label)>,
}

impl Program {
    fn finish(mut self) -> Vec<SockFilter> {
        self.backwards.reverse();
        self.backwards
    }

    fn push(&mut self, code: u16, k: u32) -> Label {
        self.backwards.push(SockFilter { code, jump_true: 0, jump_false: 0, k });
        Label(self.backwards.len() - 1)
    }

    /// Instructions that a jump written now would skip.
    fn distance(&self, to: Label) -> usize {
        self.backwards.len() - 1 - to.0
    }

    /// Makes sure that what is written next goes on at the label.
    fn fall_to(&mut self, to: Label) -> Label {
        match self.distance(to) {
            0 => to,
            distance => self.push(JUMP, u32::try_from(distance).unwrap_or(u32::MAX)),
        }
    }

    fn answer(&mut self, verdict: Verdict) -> Label {
        let known = self.answers.iter().position(|(known, _)| *known == verdict);
        if let Some((_, label)) = known.and_then(|at| self.answers.get(at))
            && self.distance(*label) < REACH / 2
        {
            return *label;
        }
        let label = self.push(RETURN, verdict.0);
        match known.and_then(|at| self.answers.get_mut(at)) {
            Some(entry) => entry.1 = label,
            None => self.answers.push((verdict, label)),
        }
        label
    }

    fn branch(&mut self, code: u16, k: u32, yes: Label, no: Label) -> Label {
        let yes = self.near(yes);
        let no = self.near(no);
        // The second trampoline, if it was written, moved the first target by one at the most.
        let (jump_true, jump_false) = (self.distance_of_next(yes), self.distance_of_next(no));
        self.backwards.push(SockFilter { code, jump_true, jump_false, k });
        Label(self.backwards.len() - 1)
    }

    fn near(&mut self, label: Label) -> Label {
        if self.distance(label) < REACH {
            return label;
        }
        let skipped = u32::try_from(self.distance(label)).unwrap_or(u32::MAX);
        self.push(JUMP, skipped)
    }

    fn distance_of_next(&self, to: Label) -> u8 {
        let distance = self.distance(to);
        debug_assert!(distance <= 255, "a jump over {distance}");
        u8::try_from(distance).unwrap_or(u8::MAX)
    }

    fn load(&mut self, offset: u32, then: Label) -> Label {
        self.fall_to(then);
        self.push(LOAD, offset)
    }

    fn load_number(&mut self, then: Label) -> Label {
        self.load(OFFSET_NUMBER, then)
    }

    /// A balanced search for the interval of the number, which is loaded.
    fn search(&mut self, intervals: &[Interval<'_>], arch: Arch) -> Label {
        match intervals {
            [] => self.answer(Verdict::KILL_PROCESS),
            [one] => self.decide(&one.answer, arch),
            many => {
                let (below, from) = many.split_at(many.len() / 2);
                let pivot = from.first().map_or(0, |interval| interval.start);
                let right = self.search(from, arch);
                let left = self.search(below, arch);
                self.branch(JUMP_GREATER_OR_EQUAL, pivot, right, left)
            }
        }
    }

    fn decide(&mut self, answer: &Answer<'_>, arch: Arch) -> Label {
        match answer {
            Answer::Always(verdict) => self.answer(*verdict),
            Answer::Depends(rules, rest) => {
                let mut otherwise = self.answer(*rest);
                for (conditions, verdict) in rules.iter().rev() {
                    let mut then = self.answer(*verdict);
                    for condition in conditions.iter().rev() {
                        then = self.compare(condition, arch, then, otherwise);
                    }
                    otherwise = then;
                }
                otherwise
            }
        }
    }

    fn compare(&mut self, condition: &Condition, arch: Arch, yes: Label, no: Label) -> Label {
        let low = OFFSET_ARGUMENTS + 8 * u32::from(condition.argument);
        let halves = |value: u64| ((value >> 32) as u32, value as u32);
        let (value_high, value_low) = halves(condition.value);
        let narrow = condition.narrow || arch.is_narrow();
        // "Less" is "not greater or equal", and so on.
        let (code, yes, no) = match condition.comparison {
            Comparison::Equal | Comparison::Masked(_) => (JUMP_EQUAL, yes, no),
            Comparison::NotEqual => (JUMP_EQUAL, no, yes),
            Comparison::Greater => (JUMP_GREATER, yes, no),
            Comparison::LessOrEqual => (JUMP_GREATER, no, yes),
            Comparison::GreaterOrEqual => (JUMP_GREATER_OR_EQUAL, yes, no),
            Comparison::Less => (JUMP_GREATER_OR_EQUAL, no, yes),
        };
        let mask = match condition.comparison {
            Comparison::Masked(mask) => mask,
            _ => u64::MAX,
        };
        let (mask_high, mask_low) = halves(mask);
        let lower = self.branch(code, value_low, yes, no);
        let lower = self.masked(low, mask_low, lower);
        if narrow || (mask_high == 0 && value_high == 0) {
            return lower;
        }
        // The lower half decides where the upper halves are equal.
        let upper = self.branch(JUMP_EQUAL, value_high, lower, no);
        let upper = match code {
            JUMP_EQUAL => upper,
            _ => self.branch(JUMP_GREATER, value_high, yes, upper),
        };
        self.masked(low + 4, mask_high, upper)
    }

    fn masked(&mut self, offset: u32, mask: u32, then: Label) -> Label {
        if mask == u32::MAX {
            return self.load(offset, then);
        }
        self.fall_to(then);
        let and = self.push(AND, mask);
        self.load(offset, and)
    }
}
