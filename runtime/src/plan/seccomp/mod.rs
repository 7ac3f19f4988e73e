//! Seccomp: a policy of system calls in, a program for the kernel's filter machine out.
//!
//! [`compile`] takes a profile in OCI's form or Docker's, which is OCI's with conditions, and [`compile_default`] takes
//! Docker's default policy, which is data here ([`default`]). Both are pure. What a program answers:
//!
//! * a call of an architecture that the profile does not name kills the process;
//! * of the rules that match a call the strictest wins, whatever their order (the kernel does the same with stacked
//!   filters), and of equally strict ones the first that has conditions, else the first; a rule that says what the
//!   default says adds nothing, as with runc;
//! * a call with a higher number than any that the profile names is newer than the profile: it "is not implemented",
//!   so that C libraries fall back to what they know (as with runc), unless the default lets calls through anyway;
//! * everything else gets the default.
//!
//! Conditions on arguments compare 64 bits, and 32 on a 32-bit architecture. As with runc, several conditions on one
//! argument in one rule are alternatives. Names that no architecture here has are passed over: profiles are written
//! for all of the world's machines.

mod default;
mod emit;
mod profile;
mod table;

pub(crate) use profile::SeccompProfile;

use super::PlanError;

/// One instruction of the kernel's filter machine, `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct SockFilter {
    pub(crate) code: u16,
    pub(crate) jump_true: u8,
    pub(crate) jump_false: u8,
    pub(crate) k: u32,
}

/// A filter as `seccomp(2)` takes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct SeccompFilter {
    /// At most 4096 instructions.
    pub(crate) program: Vec<SockFilter>,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub(crate) flags: u32,
}

/// An architecture that a filter can tell apart. The number is its column in the table of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arch {
    X86_64 = 0,
    X86 = 1,
    X32 = 2,
    Aarch64 = 3,
}

impl Arch {
    /// What this program was built for; `None`: there is no table for it.
    pub(crate) const NATIVE: Option<Arch> = if cfg!(target_arch = "x86_64") {
        Some(Arch::X86_64)
    } else if cfg!(target_arch = "aarch64") {
        Some(Arch::Aarch64)
    } else {
        None
    };

    /// `AUDIT_ARCH_*`. x32 shows itself as x86_64, with a bit in the number.
    fn audit(self) -> u32 {
        match self {
            Arch::X86_64 | Arch::X32 => 0xc000_003e,
            Arch::X86 => 0x4000_0003,
            Arch::Aarch64 => 0xc000_00b7,
        }
    }

    /// Arguments have 32 bits; whatever stands above them is not looked at by the kernel.
    fn is_narrow(self) -> bool {
        self == Arch::X86
    }
}

/// What the conditions in a profile are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SeccompHost {
    /// The host's own architecture.
    pub(crate) arch: Option<Arch>,
    /// Version and revision of its kernel: (6, 18).
    pub(crate) kernel: (u32, u32),
}

impl Default for SeccompHost {
    /// The oldest kernel that Shoal runs on.
    fn default() -> Self {
        SeccompHost { arch: Arch::NATIVE, kernel: (6, 1) }
    }
}

impl SeccompHost {
    /// The same for this release of the kernel, as `uname` has it.
    pub(crate) fn of_release(release: &str) -> SeccompHost {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|digits| digits.parse().ok());
        match (numbers.next().flatten(), numbers.next().flatten()) {
            (Some(version), Some(revision)) => SeccompHost { arch: Arch::NATIVE, kernel: (version, revision) },
            _ => SeccompHost::default(),
        }
    }

    fn native(&self) -> Result<Arch, PlanError> {
        self.arch.ok_or(PlanError::Unsupported { field: "seccomp on this architecture" })
    }
}

/// What the kernel is to do with a call, `SECCOMP_RET_*` with its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Verdict(u32);

impl Verdict {
    const KILL_PROCESS: Verdict = Verdict(0x8000_0000);
    const KILL_THREAD: Verdict = Verdict(0);
    const ALLOW: Verdict = Verdict(0x7fff_0000);
    const LOG: Verdict = Verdict(0x7ffc_0000);
    const TRAP: Verdict = Verdict(0x0003_0000);

    const fn errno(number: u16) -> Verdict {
        Verdict(0x0005_0000 | number as u32)
    }

    const fn trace(data: u16) -> Verdict {
        Verdict(0x7ff0_0000 | data as u32)
    }

    /// Less is stricter: the kernel's own order, in which the action is a signed number.
    fn strictness(self) -> i32 {
        (self.0 & 0xffff_0000).cast_signed()
    }

    /// Calls with this verdict happen.
    fn is_permissive(self) -> bool {
        self.strictness() >= Verdict::trace(0).strictness()
    }
}

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// Equal under this mask.
    Masked(u64),
}

/// One condition on one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Condition {
    /// 0 to 5.
    argument: u8,
    comparison: Comparison,
    value: u64,
    /// Only the lower 32 bits count: for arguments that are an `int` to the kernel, which does not look at the rest.
    narrow: bool,
}

/// One rule: these calls, if all conditions hold, get this verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule<'a> {
    names: Vec<&'a str>,
    verdict: Verdict,
    conditions: Vec<Condition>,
}

/// A profile whose own conditions (capabilities, architectures, kernels) have been decided.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Policy<'a> {
    default: Verdict,
    /// The native one first.
    arches: Vec<Arch>,
    rules: Vec<Rule<'a>>,
    flags: u32,
}

/// Compiles a profile for a container with this bounding set.
///
/// # Errors
/// Names the part of the profile that is wrong or not supported.
pub(crate) fn compile(
    profile: &SeccompProfile,
    host: &SeccompHost,
    capabilities: u64,
) -> Result<SeccompFilter, PlanError> {
    emit::filter(&profile.decide(host, capabilities)?)
}

/// Compiles Docker's default policy for a container with this bounding set.
///
/// # Errors
/// On an architecture without a table of calls.
pub(crate) fn compile_default(host: &SeccompHost, capabilities: u64) -> Result<SeccompFilter, PlanError> {
    emit::filter(&default::policy(host, capabilities)?)
}

/// What profiles may use, by their names in OCI's `features`.
#[allow(dead_code, reason = "for `features` of the command line that runtimes share")]
pub(crate) mod supported {
    /// Actions.
    pub(crate) const ACTIONS: [&str; 8] = [
        "SCMP_ACT_ALLOW",
        "SCMP_ACT_ERRNO",
        "SCMP_ACT_KILL",
        "SCMP_ACT_KILL_PROCESS",
        "SCMP_ACT_KILL_THREAD",
        "SCMP_ACT_LOG",
        "SCMP_ACT_TRACE",
        "SCMP_ACT_TRAP",
    ];
    /// Operators.
    pub(crate) const OPERATORS: [&str; 7] = [
        "SCMP_CMP_EQ",
        "SCMP_CMP_GE",
        "SCMP_CMP_GT",
        "SCMP_CMP_LE",
        "SCMP_CMP_LT",
        "SCMP_CMP_MASKED_EQ",
        "SCMP_CMP_NE",
    ];
    /// Architectures.
    pub(crate) const ARCHITECTURES: &[&str] = if cfg!(target_arch = "aarch64") {
        &["SCMP_ARCH_AARCH64"]
    } else {
        &["SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"]
    };
    /// Flags.
    pub(crate) const FLAGS: [&str; 3] =
        ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"];
}

#[cfg(test)]
mod tests;
