//! Rules on devices as a program for the kernel: cgroup v2 has no files for them.
//!
//! The program is called with what a process wants of which device, and answers 1 (go on) or 0 (EPERM). It walks the
//! rules from the last to the first and strikes from what is wanted what a rule allows: when nothing is left it
//! answers 1. It answers 0 as soon as a rule denies what is left, or when the rules are at their end.

use super::devices::{Kind, Rule, access};

/// One instruction, as the kernel's `struct bpf_insn` has it on a little-endian machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Insn {
    code: u8,
    /// The target in the low four bits, the source in the high ones.
    registers: u8,
    offset: i16,
    value: i32,
}

#[cfg(not(target_endian = "little"))]
compile_error!("struct bpf_insn has its registers the other way round on this machine");

// Instruction classes, sizes and operations of the instruction set.
/// `target = *(u32 *)(source + offset)`
const LOAD_WORD: u8 = 0x61;
/// `target = value`
const SET: u8 = 0xb7;
/// `target = source`
const COPY: u8 = 0xbf;
/// `target &= value`
const AND: u8 = 0x57;
/// `target >>= value`
const SHIFT_RIGHT: u8 = 0x77;
/// Skips `offset` instructions when `target == value`.
const SKIP_IF_EQUAL: u8 = 0x15;
/// Skips `offset` instructions when `target != value`.
const SKIP_UNLESS_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

// What the registers hold.
const ANSWER: u8 = 0;
/// `struct bpf_cgroup_dev_ctx`: (access << 16 | type), major, minor; 32 bits each.
const CONTEXT: u8 = 1;
const TYPE: u8 = 2;
const WANTED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// `BPF_DEVCG_DEV_BLOCK`, `BPF_DEVCG_DEV_CHAR`; the kinds of access are numbered as in [`access`].
const BLOCK: i32 = 1;
const CHAR: i32 = 2;

const fn insn(code: u8, target: u8, source: u8, offset: i16, value: i32) -> Insn {
    Insn { code, registers: target | source << 4, offset, value }
}

/// The program for these rules, first to last.
pub(crate) fn program(rules: &[Rule]) -> Vec<Insn> {
    let mut code = vec![
        insn(LOAD_WORD, TYPE, CONTEXT, 0, 0),
        insn(COPY, WANTED, TYPE, 0, 0),
        insn(AND, TYPE, 0, 0, 0xffff),
        insn(SHIFT_RIGHT, WANTED, 0, 0, 16),
        insn(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        insn(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules.iter().rev() {
        push_rule(&mut code, rule);
        if rule.is_total() {
            // Nothing gets past it, and the kernel refuses a program with instructions that nothing reaches.
            return code;
        }
    }
    push_answer(&mut code, false);
    code
}

fn push_answer(code: &mut Vec<Insn>, allow: bool) {
    code.extend([insn(SET, ANSWER, 0, 0, i32::from(allow)), insn(EXIT, 0, 0, 0, 0)]);
}

fn push_rule(code: &mut Vec<Insn>, rule: &Rule) {
    let number = |number: Option<u32>| number.and_then(|number| i32::try_from(number).ok());
    let kind = match rule.kind {
        Kind::All => None,
        Kind::Block => Some(BLOCK),
        Kind::Char => Some(CHAR),
    };
    let mut body = Vec::new();
    match (rule.allow, rule.access) {
        (allow, access::ALL) => push_answer(&mut body, allow),
        (true, some) => {
            body.push(insn(AND, WANTED, 0, 0, i32::from(!some & access::ALL)));
            body.push(insn(SKIP_UNLESS_EQUAL, WANTED, 0, 2, 0));
            push_answer(&mut body, true);
        }
        (false, some) => {
            body.push(insn(COPY, ANSWER, WANTED, 0, 0));
            body.push(insn(AND, ANSWER, 0, 0, i32::from(some)));
            body.push(insn(SKIP_IF_EQUAL, ANSWER, 0, 2, 0));
            push_answer(&mut body, false);
        }
    }
    let checks: Vec<(u8, i32)> = [(TYPE, kind), (MAJOR, number(rule.major)), (MINOR, number(rule.minor))]
        .into_iter()
        .filter_map(|(register, value)| Some((register, value?)))
        .collect();
    for (place, (register, value)) in checks.iter().enumerate() {
        // Past the checks that are left and the body: at most eight instructions.
        let skip = i16::try_from(checks.len() - place - 1 + body.len()).unwrap_or(0);
        code.push(insn(SKIP_UNLESS_EQUAL, *register, 0, skip, *value));
    }
    code.extend(body);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::devices::{rules, tests::allows};
    use super::*;

    /// Does what the kernel would. Panics where its verifier would refuse.
    fn run(code: &[Insn], kind: Kind, major: u32, minor: u32, wanted: u8) -> bool {
        let kind = if kind == Kind::Block { 1 } else { 2 };
        let context = [u32::from(wanted) << 16 | kind, major, minor];
        let mut registers = [None::<u64>; 6];
        let mut at = 0usize;
        loop {
            let Insn { code: operation, registers: pair, offset, value } = code[at];
            let (target, source) = (usize::from(pair & 15), usize::from(pair >> 4));
            at += 1;
            match operation {
                LOAD_WORD => {
                    assert_eq!((source, offset % 4), (usize::from(CONTEXT), 0));
                    registers[target] = Some(u64::from(context[usize::try_from(offset).unwrap() / 4]));
                }
                SET => registers[target] = Some(u64::try_from(value).unwrap()),
                COPY => registers[target] = Some(registers[source].expect("is set")),
                AND => registers[target] = Some(registers[target].expect("is set") & u64::try_from(value).unwrap()),
                SHIFT_RIGHT => registers[target] = Some(registers[target].expect("is set") >> value),
                SKIP_IF_EQUAL | SKIP_UNLESS_EQUAL => {
                    let equal = registers[target].expect("is set") == u64::try_from(value).unwrap();
                    if equal == (operation == SKIP_IF_EQUAL) {
                        at += usize::try_from(offset).unwrap();
                    }
                }
                EXIT => return registers[0].expect("has an answer") == 1,
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    /// As the verifier does: every instruction can be reached, and none leads out of the program.
    fn verify(code: &[Insn]) {
        let (mut reached, mut next) = (vec![false; code.len()], vec![0usize]);
        while let Some(at) = next.pop() {
            if std::mem::replace(&mut reached[at], true) {
                continue;
            }
            let Insn { code: operation, offset, .. } = code[at];
            if operation != EXIT {
                next.push(at + 1);
            }
            if matches!(operation, SKIP_IF_EQUAL | SKIP_UNLESS_EQUAL) {
                next.push(at + 1 + usize::try_from(offset).unwrap());
            }
        }
        assert!(reached.iter().all(|reached| *reached), "{reached:?}");
    }

    #[test]
    fn the_usual_rules() {
        let code = program(&rules(&[]).unwrap());
        verify(&code);
        assert!(run(&code, Kind::Char, 1, 3, access::READ | access::WRITE));
        assert!(run(&code, Kind::Char, 200, 3, access::MAKE));
        assert!(!run(&code, Kind::Block, 8, 0, access::READ));
        assert!(!run(&code, Kind::Char, 1, 1, access::READ | access::MAKE));
        assert_eq!(size_of::<Insn>(), 8);
        // r2 = *(u32 *)(r1 + 0), as the kernel's tools print it: 61 12 00 00 00 00 00 00.
        assert_eq!((code[0].code, code[0].registers), (0x61, 0x12));
    }

    fn any_rule() -> impl Strategy<Value = Rule> {
        let kind = prop_oneof![Just(Kind::All), Just(Kind::Block), Just(Kind::Char)];
        let number = || prop::option::of(0u32..3);
        (any::<bool>(), kind, number(), number(), 1u8..=7).prop_map(|(allow, kind, major, minor, access)| Rule {
            allow,
            kind,
            major,
            minor,
            access,
        })
    }

    proptest! {
        #[test]
        fn the_program_means_what_the_rules_mean(
            list in prop::collection::vec(any_rule(), 0..12),
            block in any::<bool>(), major in 0u32..4, minor in 0u32..4, wanted in 1u8..=7,
        ) {
            let kind = if block { Kind::Block } else { Kind::Char };
            let code = program(&list);
            verify(&code);
            prop_assert_eq!(
                run(&code, kind, major, minor, wanted),
                allows(&list, kind, major, minor, wanted),
                "{:?}", list
            );
        }
    }
}
