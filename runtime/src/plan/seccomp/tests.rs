//! Programs against the plain reading of their policies, in a model of the kernel's filter machine.

use proptest::prelude::*;

use super::*;

const HOST: SeccompHost = SeccompHost { arch: Some(Arch::X86_64), kernel: (6, 1) };
const X86_64: u32 = 0xc000_003e;
const X86: u32 = 0x4000_0003;
const X32_BIT: u32 = 0x4000_0000;
const ALLOW: u32 = 0x7fff_0000;
const KILL_PROCESS: u32 = 0x8000_0000;

const fn errno(number: i32) -> u32 {
    0x0005_0000 | number as u32
}

/// One call, as a filter sees it.
#[derive(Debug, Clone, Copy)]
struct Call {
    arch: u32,
    number: u32,
    args: [u64; 6],
}

/// Runs a program like the kernel does, and refuses what the kernel's check would refuse.
fn run(program: &[SockFilter], call: &Call) -> u32 {
    let mut data = [0u8; 64];
    data[0..4].copy_from_slice(&call.number.to_le_bytes());
    data[4..8].copy_from_slice(&call.arch.to_le_bytes());
    for (place, arg) in data[16..].chunks_exact_mut(8).zip(call.args) {
        place.copy_from_slice(&arg.to_le_bytes());
    }
    assert!(program.len() <= 4096);
    let (mut at, mut accumulator) = (0usize, 0u32);
    loop {
        let instruction = program.get(at).unwrap_or_else(|| panic!("ran off the end at {at}"));
        let SockFilter { code, jump_true, jump_false, k } = *instruction;
        let branch = |yes: bool| usize::from(if yes { jump_true } else { jump_false });
        at += 1;
        match code {
            0x20 => {
                let offset = k as usize;
                assert!(offset.is_multiple_of(4) && offset < data.len(), "load from {offset}");
                accumulator = u32::from_le_bytes(data[offset..offset + 4].try_into().unwrap());
            }
            0x54 => accumulator &= k,
            0x05 => at += k as usize,
            0x15 => at += branch(accumulator == k),
            0x25 => at += branch(accumulator > k),
            0x35 => at += branch(accumulator >= k),
            0x06 => return k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

/// The policy, read rule by rule.
fn naive(policy: &Policy<'_>, call: &Call) -> u32 {
    let arch = match call.arch {
        X86_64 if call.number & X32_BIT != 0 => Arch::X32,
        X86_64 => Arch::X86_64,
        X86 => Arch::X86,
        0xc000_00b7 => Arch::Aarch64,
        _ => return KILL_PROCESS,
    };
    // A tracer has taken the call back.
    if call.arch == X86_64 && call.number == u32::MAX && policy.arches.contains(&Arch::X86_64) {
        return errno(libc::ENOSYS);
    }
    if !policy.arches.contains(&arch) {
        return KILL_PROCESS;
    }
    let number = if arch == Arch::X32 { call.number & !X32_BIT } else { call.number };
    let holds = |condition: &Condition| {
        let narrow = condition.narrow || arch == Arch::X86;
        let cut = |value: u64| if narrow { value & 0xffff_ffff } else { value };
        let (arg, value) = (cut(call.args[usize::from(condition.argument)]), cut(condition.value));
        match condition.comparison {
            Comparison::Equal => arg == value,
            Comparison::NotEqual => arg != value,
            Comparison::Less => arg < value,
            Comparison::LessOrEqual => arg <= value,
            Comparison::Greater => arg > value,
            Comparison::GreaterOrEqual => arg >= value,
            Comparison::Masked(mask) => arg & cut(mask) == value,
        }
    };
    let mut answer: Option<(Verdict, bool)> = None;
    let mut highest = None;
    for rule in &policy.rules {
        for name in &rule.names {
            let known = table::number(name, arch);
            highest = highest.max(known);
            if known != Some(number) || rule.verdict == policy.default {
                continue;
            }
            let matches = match emit::repeats_an_argument(&rule.conditions) {
                true => rule.conditions.iter().any(holds),
                false => rule.conditions.iter().all(holds),
            };
            let rank = |(verdict, always): (Verdict, bool)| (verdict.strictness(), always);
            let found = (rule.verdict, rule.conditions.is_empty());
            if matches && answer.is_none_or(|known| rank(found) < rank(known)) {
                answer = Some(found);
            }
        }
    }
    match (answer, highest) {
        (Some((answer, _)), _) => answer.0,
        (None, Some(highest)) if number > highest && !policy.default.is_permissive() => errno(libc::ENOSYS),
        _ => policy.default.0,
    }
}

fn verdicts() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        Just(Verdict::ALLOW),
        Just(Verdict::LOG),
        Just(Verdict::TRAP),
        Just(Verdict::KILL_THREAD),
        Just(Verdict::KILL_PROCESS),
        (0u16..4).prop_map(Verdict::errno),
        (0u16..2).prop_map(Verdict::trace),
    ]
}

/// Values at which comparisons go wrong, if they do.
fn values() -> impl Strategy<Value = u64> {
    let halves = prop_oneof![Just(0u64), Just(1), Just(2), Just(38), Just(0x7fff_ffff), Just(0xffff_ffff)];
    (halves.clone(), halves).prop_map(|(high, low)| high << 32 | low)
}

fn conditions() -> impl Strategy<Value = Vec<Condition>> {
    let comparison = prop_oneof![
        Just(Comparison::Equal),
        Just(Comparison::NotEqual),
        Just(Comparison::Less),
        Just(Comparison::LessOrEqual),
        Just(Comparison::Greater),
        Just(Comparison::GreaterOrEqual),
        values().prop_map(Comparison::Masked),
    ];
    let one = (0u8..6, comparison, values(), any::<bool>())
        .prop_map(|(argument, comparison, value, narrow)| Condition { argument, comparison, value, narrow });
    proptest::collection::vec(one, 0..4)
}

fn policies() -> impl Strategy<Value = Policy<'static>> {
    let all: Vec<&'static str> = table::names().collect();
    let names = proptest::collection::vec(proptest::sample::select(all), 1..60);
    let rule =
        (names, verdicts(), conditions()).prop_map(|(names, verdict, conditions)| Rule { names, verdict, conditions });
    let arches = prop_oneof![
        Just(vec![Arch::X86_64]),
        Just(vec![Arch::X86_64, Arch::X86]),
        Just(vec![Arch::X86_64, Arch::X32]),
        Just(vec![Arch::X86_64, Arch::X86, Arch::X32]),
        Just(vec![Arch::Aarch64]),
    ];
    (verdicts(), arches, proptest::collection::vec(rule, 0..12)).prop_map(|(default, arches, rules)| Policy {
        default,
        arches,
        rules,
        flags: 0,
    })
}

/// All calls around those that a policy names: each number and its neighbours, on each architecture.
fn probes(policy: &Policy<'_>, args: [u64; 6]) -> Vec<Call> {
    let mut calls = Vec::new();
    for (arch, column) in [(X86_64, Arch::X86_64), (X86_64, Arch::X32), (X86, Arch::X86), (0xc000_00b7, Arch::Aarch64)]
    {
        let bit = if column == Arch::X32 { X32_BIT } else { 0 };
        let named = policy.rules.iter().flat_map(|rule| &rule.names).filter_map(|name| table::number(name, column));
        let numbers = named.flat_map(|number| [number.saturating_sub(1), number, number + 1]);
        calls.extend(numbers.map(|number| Call { arch, number: number | bit, args }));
        calls.extend([0, 511, 1000, u32::MAX].map(|number| Call { arch, number: number | bit, args }));
    }
    calls.push(Call { arch: 0x1234, number: 0, args });
    calls
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    /// The compiled program answers every call as the policy, read plainly, says.
    #[test]
    fn programs_do_what_policies_say(policy in policies(), args in proptest::array::uniform6(values())) {
        match emit::filter(&policy) {
            Ok(filter) => for call in probes(&policy, args) {
                prop_assert_eq!(run(&filter.program, &call), naive(&policy, &call), "{:x?}", call);
            },
            Err(error) => prop_assert!(error.to_string().contains("more than the kernel takes")),
        }
    }

    /// Whatever is in the file, the answer is a filter or a reason.
    #[test]
    fn any_text_is_answered(text in ".{0,200}", held in any::<u64>()) {
        let _ = SeccompProfile::parse(&text).map(|profile| compile(&profile, &HOST, held));
    }
}

const DOCKER: u64 = 0xa804_25fb;
const SYS_ADMIN: u64 = 1 << 21;

/// What the default policy answers to a call with this first argument.
#[track_caller]
fn by_default(held: u64, name: &str, first: u64, expected: u32) {
    let filter = compile_default(&HOST, held).unwrap();
    for (arch, column, bit) in [(X86_64, Arch::X86_64, 0), (X86, Arch::X86, 0), (X86_64, Arch::X32, X32_BIT)] {
        let Some(number) = table::number(name, column) else { continue };
        let call = Call { arch, number: number | bit, args: [first, 0, 0, 0, 0, 0] };
        assert_eq!(run(&filter.program, &call), expected, "{name}({first:#x}) on {column:?}");
    }
}

#[test]
fn the_default_policy() {
    let denied = errno(libc::EPERM);
    for name in ["read", "openat", "execve", "ptrace", "io_setup", "chroot", "mknod", "seccomp", "landlock_add_rule"] {
        by_default(DOCKER, name, 0, ALLOW);
    }
    for name in ["mount", "unshare", "setns", "reboot", "add_key", "keyctl", "bpf", "io_uring_setup", "userfaultfd"] {
        by_default(DOCKER, name, 0, denied);
    }
    for name in ["kexec_load", "init_module", "open_by_handle_at", "swapon", "pivot_root", "iopl", "settimeofday"] {
        by_default(DOCKER, name, 0, denied);
    }
    by_default(DOCKER | SYS_ADMIN, "mount", 0, ALLOW);
    by_default(DOCKER | SYS_ADMIN, "reboot", 0, denied);
    by_default(0, "chroot", 0, denied);
    by_default(u64::MAX, "reboot", 0, ALLOW);
    // A C library that hears EPERM would give up; with ENOSYS it goes on with clone.
    by_default(DOCKER, "clone3", 0, errno(libc::ENOSYS));
    by_default(DOCKER | SYS_ADMIN, "clone3", 0, ALLOW);
    by_default(DOCKER, "clone", 0x0120_0011, ALLOW);
    for namespace in [0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000] {
        by_default(DOCKER, "clone", namespace | 17, denied);
        by_default(DOCKER | SYS_ADMIN, "clone", namespace | 17, ALLOW);
    }
    for (personality, expected) in [(0, ALLOW), (8, ALLOW), (0x2_0008, ALLOW), (0xffff_ffff, ALLOW), (0x4_0000, denied)]
    {
        by_default(DOCKER, "personality", personality, expected);
    }
}

#[test]
fn families_of_sockets_are_compared_as_the_kernel_reads_them() {
    let denied = errno(libc::EPERM);
    for (family, expected) in
        [(2, ALLOW), (16, ALLOW), (37, ALLOW), (38, denied), (39, ALLOW), (40, denied), (44, ALLOW)]
    {
        by_default(DOCKER, "socket", family, expected);
        by_default(DOCKER, "socket", family | 1 << 32, expected);
        by_default(DOCKER, "socket", family | 0xffff_ffff << 32, expected);
    }
}

#[test]
fn newer_calls_are_not_implemented() {
    let filter = compile_default(&HOST, DOCKER).unwrap();
    let call = |arch, number| run(&filter.program, &Call { arch, number, args: [0; 6] });
    assert_eq!(call(X86_64, 467), errno(libc::ENOSYS));
    assert_eq!(call(X86, 4000), errno(libc::ENOSYS));
    assert_eq!(call(X86_64, X32_BIT | 5000), errno(libc::ENOSYS));
    assert_eq!(call(X86_64, 400), errno(libc::EPERM), "a hole in the numbers is not new");
    assert_eq!(call(0xc000_00b7, 0), KILL_PROCESS);
}

#[test]
fn the_default_program_is_short_to_run() {
    let filter = compile_default(&HOST, DOCKER).unwrap();
    // A search over some 100 intervals: 7 steps, and what stands before and after.
    let steps = |number: u32| {
        let call = Call { arch: X86_64, number, args: [0; 6] };
        let (mut at, mut count, mut accumulator) = (0usize, 0, 0);
        loop {
            let i = filter.program[at];
            (at, count) = (at + 1, count + 1);
            match i.code {
                0x20 => accumulator = [call.number, call.arch, 0, 0, 0, 0, 0, 0][(i.k as usize / 4).min(7)],
                0x54 => accumulator &= i.k,
                0x05 => at += i.k as usize,
                0x15 => at += usize::from(if accumulator == i.k { i.jump_true } else { i.jump_false }),
                0x25 => at += usize::from(if accumulator > i.k { i.jump_true } else { i.jump_false }),
                0x35 => at += usize::from(if accumulator >= i.k { i.jump_true } else { i.jump_false }),
                _ => return count,
            }
        }
    };
    let worst = (0..470).map(steps).max().unwrap();
    assert!(worst <= 20, "{worst} of {} instructions", filter.program.len());
}

#[test]
fn the_table_is_sorted_and_says_what_is_known() {
    let names: Vec<&str> = table::names().collect();
    assert!(names.windows(2).all(|pair| pair[0] < pair[1]));
    // Of the system's own headers, where it has them.
    for (name, number) in [
        ("read", libc::SYS_read),
        ("clone3", libc::SYS_clone3),
        ("mount_setattr", libc::SYS_mount_setattr),
        ("openat2", libc::SYS_openat2),
        ("set_mempolicy_home_node", libc::SYS_set_mempolicy_home_node),
        ("seccomp", libc::SYS_seccomp),
        ("accept", libc::SYS_accept),
        ("close_range", libc::SYS_close_range),
    ] {
        assert_eq!(Arch::NATIVE.and_then(|arch| table::number(name, arch)).map(i64::from), Some(number), "{name}");
    }
    // No number is given twice, on any architecture.
    for arch in [Arch::X86_64, Arch::X86, Arch::X32, Arch::Aarch64] {
        let mut numbers: Vec<u32> = names.iter().filter_map(|name| table::number(name, arch)).collect();
        let all = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), all, "{arch:?}");
    }
}

/// Compiles a profile and asks it about calls of x86_64.
#[track_caller]
fn check(json: &str, held: u64, expected: &[(&str, [u64; 2], u32)]) {
    let filter = compile(&SeccompProfile::parse(json).unwrap(), &HOST, held).unwrap();
    for (name, [first, second], answer) in expected {
        let number = table::number(name, Arch::X86_64).unwrap();
        let call = Call { arch: X86_64, number, args: [*first, *second, 0, 0, 0, 0] };
        assert_eq!(run(&filter.program, &call), *answer, "{name}({first:#x}, {second:#x})");
    }
}

#[test]
fn profiles_as_people_write_them() {
    let denied = errno(libc::EPERM);
    check(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_ARM"],"syscalls":[
            {"names":["mkdir","no_such_call"],"action":"SCMP_ACT_ERRNO"},
            {"names":["chmod"],"action":"SCMP_ACT_ERRNO","errnoRet":95},
            {"names":["kill"],"action":"SCMP_ACT_KILL_PROCESS","args":[
                {"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":1,"value":9,"op":"SCMP_CMP_EQ"}]},
            {"names":["dup2"],"action":"SCMP_ACT_TRAP","args":[
                {"index":0,"value":5,"op":"SCMP_CMP_EQ"},{"index":0,"value":7,"op":"SCMP_CMP_EQ"}]},
            {"names":["lseek"],"action":"SCMP_ACT_ERRNO","args":[
                {"index":1,"value":240,"valueTwo":16,"op":"SCMP_CMP_MASKED_EQ"}]}]}"#,
        0,
        &[
            ("read", [0, 0], ALLOW),
            ("mkdir", [0, 0], denied),
            ("chmod", [0, 0], errno(95)),
            ("kill", [1, 9], KILL_PROCESS),
            ("kill", [1, 15], ALLOW),
            ("kill", [1 << 32 | 1, 9], ALLOW),
            ("dup2", [5, 0], 0x0003_0000),
            ("dup2", [7, 0], 0x0003_0000),
            ("dup2", [6, 0], ALLOW),
            ("lseek", [0, 0xf1f], denied),
            ("lseek", [0, 0xf2f], ALLOW),
        ],
    );
    // Docker's additions: capabilities, architectures, kernels; `null` and its old `name`.
    let docker = r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,
        "archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]},
                   {"architecture":"SCMP_ARCH_RISCV64","subArchitectures":null}],
        "syscalls":[
            {"name":"read","action":"SCMP_ACT_ALLOW","args":null,"comment":"x","includes":{},"excludes":{}},
            {"names":["mount"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
            {"names":["umount2"],"action":"SCMP_ACT_ALLOW","excludes":{"caps":["CAP_SYS_ADMIN"]}},
            {"names":["ptrace"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"6.1"}},
            {"names":["bpf"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"6.2"}},
            {"names":["kcmp"],"action":"SCMP_ACT_ALLOW","includes":{"arches":["arm64","amd64"]}},
            {"names":["acct"],"action":"SCMP_ACT_ALLOW","includes":{"arches":["s390x"]}}]}"#;
    let none = errno(38);
    check(
        docker,
        DOCKER,
        &[
            ("read", [0, 0], ALLOW),
            ("mount", [0, 0], none),
            ("umount2", [0, 0], ALLOW),
            ("ptrace", [0, 0], ALLOW),
            ("bpf", [0, 0], none),
            ("kcmp", [0, 0], ALLOW),
            ("acct", [0, 0], none),
        ],
    );
    check(docker, DOCKER | SYS_ADMIN, &[("mount", [0, 0], ALLOW), ("umount2", [0, 0], none)]);
    // The strictest of the rules that match wins, wherever it stands; what repeats the default is no rule.
    check(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
            {"names":["kill"],"action":"SCMP_ACT_ALLOW"},
            {"names":["kill"],"action":"SCMP_ACT_ERRNO","errnoRet":3,"args":[{"index":0,"value":7,"op":"SCMP_CMP_GE"}]},
            {"names":["kill"],"action":"SCMP_ACT_ERRNO"}]}"#,
        0,
        &[("kill", [6, 0], ALLOW), ("kill", [7, 0], errno(3))],
    );
}

#[track_caller]
fn refused(json: &str, expected: &str) {
    let error = SeccompProfile::parse(json).and_then(|profile| compile(&profile, &HOST, 0)).unwrap_err();
    assert!(error.to_string().contains(expected), "{error} has no {expected:?}");
}

#[test]
fn refusals_name_what_is_wrong() {
    let rule = |rule: &str| format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{rule}]}}"#);
    refused("{}", "missing field `defaultAction`");
    refused("not json", "invalid seccomp: the profile");
    refused(&" ".repeat(2 << 20), "longer than");
    refused(r#"{"defaultAction":"SCMP_ACT_FLY"}"#, "SCMP_ACT_FLY");
    refused(r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#, "SCMP_ACT_NOTIFY is not supported");
    refused(r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/x"}"#, "listenerPath is not supported");
    refused(r#"{"defaultAction":"SCMP_ACT_ALLOW","defaultErrnoRet":1}"#, "errnoRet");
    refused(r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":5000}"#, "above 4095");
    refused(r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_VAX"]}"#, "SCMP_ARCH_VAX");
    refused(r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_X"]}"#, "SECCOMP_FILTER_FLAG_X");
    refused(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}"#,
        "WAIT_KILLABLE_RECV is not supported",
    );
    refused(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86"],"archMap":[{"architecture":"SCMP_ARCH_X86"}]}"#,
        "both architectures and archMap",
    );
    refused(&rule(r#"{"action":"SCMP_ACT_ALLOW"}"#), "names no system call");
    refused(&rule(r#"{"name":"a","names":["b"],"action":"SCMP_ACT_ALLOW"}"#), "both name and names");
    refused(&rule(r#"{"names":["read"],"action":"SCMP_ACT_NOTIFY"}"#), "SCMP_ACT_NOTIFY is not supported");
    refused(&rule(r#"{"names":["read"],"action":"SCMP_ACT_KILL","errnoRet":1}"#), "errnoRet");
    let argument = |text: &str| rule(&format!(r#"{{"names":["read"],"action":"SCMP_ACT_KILL","args":[{text}]}}"#));
    refused(&argument(r#"{"index":6,"value":0,"op":"SCMP_CMP_EQ"}"#), "no argument 6");
    refused(&argument(r#"{"index":0,"value":0,"op":"SCMP_CMP_NEARLY"}"#), "SCMP_CMP_NEARLY");
    refused(&argument(r#"{"index":0,"value":-1,"op":"SCMP_CMP_EQ"}"#), "invalid seccomp");
    let when = |text: &str| rule(&format!(r#"{{"names":["read"],"action":"SCMP_ACT_KILL","includes":{text}}}"#));
    refused(&when(r#"{"minKernel":"6"}"#), "minKernel \"6\"");
    refused(&when(r#"{"minKernel":"0.0"}"#), "minKernel \"0.0\"");
    let many = r#"{"names":["read","write"],"action":"SCMP_ACT_ERRNO","errnoRet":9,"args":[
        {"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":1,"value":1,"op":"SCMP_CMP_EQ"}]},"#;
    let many = format!("{}{}", many.repeat(1000), r#"{"names":["read"],"action":"SCMP_ACT_LOG"}"#);
    refused(&rule(&many), "more than the kernel takes");
}

#[test]
fn what_features_lists_is_what_compiles() {
    for action in supported::ACTIONS {
        let json = format!(r#"{{"defaultAction":"{action}"}}"#);
        assert!(compile(&SeccompProfile::parse(&json).unwrap(), &HOST, 0).is_ok(), "{action}");
    }
    for operator in supported::OPERATORS {
        let json = format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{"names":["read"],"action":"SCMP_ACT_KILL","args":[
                {{"index":0,"value":1,"op":"{operator}"}}]}}]}}"#
        );
        assert!(compile(&SeccompProfile::parse(&json).unwrap(), &HOST, 0).is_ok(), "{operator}");
    }
    for flag in supported::FLAGS {
        let json = format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","flags":["{flag}"]}}"#);
        assert!(compile(&SeccompProfile::parse(&json).unwrap(), &HOST, 0).is_ok(), "{flag}");
    }
}

#[test]
fn releases_of_kernels() {
    for (release, kernel) in
        [("6.18.44-fc-v657", (6, 18)), ("6.1.0-25-amd64", (6, 1)), ("7.0-rc3", (7, 0)), ("odd", (6, 1))]
    {
        assert_eq!(SeccompHost::of_release(release).kernel, kernel, "{release}");
    }
}
