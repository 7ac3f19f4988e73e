//! Profiles as they are written: OCI's `linux.seccomp`, and Docker's file, which adds conditions to it.

use serde::{Deserialize, Deserializer};

use super::{Arch, Comparison, Condition, PlanError, Policy, Rule, SeccompHost, Verdict};
use crate::plan::capabilities;

/// Nobody's profile is larger, in bytes of JSON.
pub(crate) const MAX_PROFILE: usize = 1 << 20;
/// The kernel's largest error number.
const MAX_ERRNO: u32 = 4095;
const MAX_RULES: usize = 4096;

const FLAG_LOG: u32 = 1 << 1;
const FLAG_SPEC_ALLOW: u32 = 1 << 2;
/// What a profile gets that says nothing of flags: filtered programs may speculate like others (as with runc).
pub(super) const DEFAULT_FLAGS: u32 = FLAG_SPEC_ALLOW;

/// A profile, not yet compiled. Fields that are not known are passed over, as OCI demands.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SeccompProfile {
    default_action: Action,
    #[serde(default)]
    default_errno_ret: Option<u32>,
    #[serde(default, deserialize_with = "nothing_is_empty")]
    architectures: Vec<String>,
    /// Docker's: what belongs to which native architecture.
    #[serde(default, deserialize_with = "nothing_is_empty")]
    arch_map: Vec<ArchMap>,
    #[serde(default)]
    flags: Option<Vec<String>>,
    #[serde(default)]
    listener_path: Option<String>,
    #[serde(default)]
    listener_metadata: Option<String>,
    #[serde(default, deserialize_with = "nothing_is_empty")]
    syscalls: Vec<Call>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    #[serde(default, deserialize_with = "nothing_is_empty")]
    sub_architectures: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Call {
    #[serde(default, deserialize_with = "nothing_is_empty")]
    names: Vec<String>,
    /// Docker's old form.
    #[serde(default)]
    name: Option<String>,
    action: Action,
    #[serde(default)]
    errno_ret: Option<u32>,
    #[serde(default, deserialize_with = "nothing_is_empty")]
    args: Vec<Argument>,
    #[serde(default)]
    includes: Option<When>,
    #[serde(default)]
    excludes: Option<When>,
}

/// Docker's conditions on a rule.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct When {
    #[serde(default, deserialize_with = "nothing_is_empty")]
    caps: Vec<String>,
    #[serde(default, deserialize_with = "nothing_is_empty")]
    arches: Vec<String>,
    #[serde(default)]
    min_kernel: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: Operator,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum Action {
    #[serde(rename = "SCMP_ACT_KILL")]
    Kill,
    #[serde(rename = "SCMP_ACT_KILL_THREAD")]
    KillThread,
    #[serde(rename = "SCMP_ACT_KILL_PROCESS")]
    KillProcess,
    #[serde(rename = "SCMP_ACT_TRAP")]
    Trap,
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Errno,
    #[serde(rename = "SCMP_ACT_TRACE")]
    Trace,
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
    #[serde(rename = "SCMP_ACT_LOG")]
    Log,
    #[serde(rename = "SCMP_ACT_NOTIFY")]
    Notify,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum Operator {
    #[serde(rename = "SCMP_CMP_NE")]
    NotEqual,
    #[serde(rename = "SCMP_CMP_LT")]
    Less,
    #[serde(rename = "SCMP_CMP_LE")]
    LessOrEqual,
    #[serde(rename = "SCMP_CMP_EQ")]
    Equal,
    #[serde(rename = "SCMP_CMP_GE")]
    GreaterOrEqual,
    #[serde(rename = "SCMP_CMP_GT")]
    Greater,
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEqual,
}

/// Docker writes `null` for lists without elements.
fn nothing_is_empty<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::<Vec<T>>::deserialize(from)?.unwrap_or_default())
}

fn invalid(reason: impl Into<String>) -> PlanError {
    PlanError::invalid("seccomp", reason)
}

impl SeccompProfile {
    /// Reads a profile of at most 1 MiB.
    ///
    /// # Errors
    /// Says where the JSON is none, or no profile.
    pub(crate) fn parse(json: &str) -> Result<SeccompProfile, PlanError> {
        if json.len() > MAX_PROFILE {
            return Err(invalid(format!("the profile is longer than {MAX_PROFILE} bytes")));
        }
        serde_json::from_str(json).map_err(|error| invalid(format!("the profile: {error}")))
    }

    /// Decides the conditions, for this host and this bounding set.
    pub(super) fn decide(&self, host: &SeccompHost, held: u64) -> Result<Policy<'_>, PlanError> {
        let native = host.native()?;
        if self.listener_path.is_some() || self.listener_metadata.is_some() {
            return Err(PlanError::Unsupported { field: "seccomp listenerPath" });
        }
        if self.syscalls.len() > MAX_RULES {
            return Err(invalid(format!("more than {MAX_RULES} rules")));
        }
        let mut rules = Vec::with_capacity(self.syscalls.len());
        for call in &self.syscalls {
            // What is wrong is refused wherever it stands, also in a rule that does not apply here.
            let rule = call.rule()?;
            let excluded = call.excludes.as_ref().map_or(Ok(false), |when| when.any(native, host, held))?;
            let included = call.includes.as_ref().map_or(Ok(true), |when| when.all(native, host, held))?;
            if included && !excluded {
                rules.push(rule);
            }
        }
        Ok(Policy {
            default: verdict(self.default_action, self.default_errno_ret)?,
            arches: self.arches(native)?,
            rules,
            flags: flags(self.flags.as_deref())?,
        })
    }

    fn arches(&self, native: Arch) -> Result<Vec<Arch>, PlanError> {
        if !self.architectures.is_empty() && !self.arch_map.is_empty() {
            return Err(invalid("both architectures and archMap"));
        }
        let mut names: Vec<&String> = self.architectures.iter().collect();
        for map in &self.arch_map {
            let matches = known_arch(&map.architecture)? == Some(native);
            for name in &map.sub_architectures {
                known_arch(name)?;
                if matches {
                    names.push(name);
                }
            }
        }
        let mut arches = vec![native];
        for name in names {
            // Those that never run on this machine need no code.
            if let Some(arch) = known_arch(name)?.filter(|arch| runs_on(*arch, native))
                && !arches.contains(&arch)
            {
                arches.push(arch);
            }
        }
        Ok(arches)
    }
}

fn runs_on(arch: Arch, native: Arch) -> bool {
    arch == native || (native == Arch::X86_64 && matches!(arch, Arch::X86 | Arch::X32))
}

/// `None`: OCI knows it and no table here does.
fn known_arch(name: &str) -> Result<Option<Arch>, PlanError> {
    const OTHERS: [&str; 19] = [
        "SCMP_ARCH_ARM",
        "SCMP_ARCH_LOONGARCH64",
        "SCMP_ARCH_M68K",
        "SCMP_ARCH_MIPS",
        "SCMP_ARCH_MIPS64",
        "SCMP_ARCH_MIPS64N32",
        "SCMP_ARCH_MIPSEL",
        "SCMP_ARCH_MIPSEL64",
        "SCMP_ARCH_MIPSEL64N32",
        "SCMP_ARCH_PARISC",
        "SCMP_ARCH_PARISC64",
        "SCMP_ARCH_PPC",
        "SCMP_ARCH_PPC64",
        "SCMP_ARCH_PPC64LE",
        "SCMP_ARCH_RISCV64",
        "SCMP_ARCH_S390",
        "SCMP_ARCH_S390X",
        "SCMP_ARCH_SH",
        "SCMP_ARCH_SHEB",
    ];
    match name {
        "SCMP_ARCH_X86_64" => Ok(Some(Arch::X86_64)),
        "SCMP_ARCH_X86" => Ok(Some(Arch::X86)),
        "SCMP_ARCH_X32" => Ok(Some(Arch::X32)),
        "SCMP_ARCH_AARCH64" => Ok(Some(Arch::Aarch64)),
        other if OTHERS.contains(&other) => Ok(None),
        other => Err(invalid(format!("unknown architecture {other:?}"))),
    }
}

fn flags(names: Option<&[String]>) -> Result<u32, PlanError> {
    let Some(names) = names else { return Ok(DEFAULT_FLAGS) };
    names.iter().try_fold(0, |flags, name| {
        Ok(flags
            | match name.as_str() {
                "SECCOMP_FILTER_FLAG_LOG" => FLAG_LOG,
                "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => FLAG_SPEC_ALLOW,
                // The process that takes the filter has one thread.
                "SECCOMP_FILTER_FLAG_TSYNC" => 0,
                "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => {
                    return Err(PlanError::Unsupported {
                        field: "seccomp flag SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
                    });
                }
                other => return Err(invalid(format!("unknown flag {other:?}"))),
            })
    })
}

fn verdict(action: Action, errno: Option<u32>) -> Result<Verdict, PlanError> {
    let number = match errno.unwrap_or(libc::EPERM.cast_unsigned()) {
        number if number <= MAX_ERRNO => u16::try_from(number).unwrap_or(u16::MAX),
        number => return Err(invalid(format!("errnoRet {number} is above {MAX_ERRNO}"))),
    };
    if errno.is_some() && !matches!(action, Action::Errno | Action::Trace) {
        return Err(invalid("errnoRet stands beside an action that has no error number"));
    }
    Ok(match action {
        Action::Kill | Action::KillThread => Verdict::KILL_THREAD,
        Action::KillProcess => Verdict::KILL_PROCESS,
        Action::Trap => Verdict::TRAP,
        Action::Errno => Verdict::errno(number),
        Action::Trace => Verdict::trace(number),
        Action::Allow => Verdict::ALLOW,
        Action::Log => Verdict::LOG,
        Action::Notify => return Err(PlanError::Unsupported { field: "seccomp action SCMP_ACT_NOTIFY" }),
    })
}

impl Call {
    fn rule(&self) -> Result<Rule<'_>, PlanError> {
        let names: Vec<&str> = match (&self.name, self.names.is_empty()) {
            (None, false) => self.names.iter().map(String::as_str).collect(),
            (Some(name), true) => vec![name.as_str()],
            (Some(_), false) => return Err(invalid("a rule has both name and names")),
            (None, true) => return Err(invalid("a rule names no system call")),
        };
        let conditions = self.args.iter().map(Argument::condition).collect::<Result<_, _>>()?;
        Ok(Rule { names, verdict: verdict(self.action, self.errno_ret)?, conditions })
    }
}

impl Argument {
    fn condition(&self) -> Result<Condition, PlanError> {
        let argument = match u8::try_from(self.index) {
            Ok(index) if index < 6 => index,
            _ => return Err(invalid(format!("a call has no argument {}", self.index))),
        };
        let (comparison, value) = match self.op {
            Operator::NotEqual => (Comparison::NotEqual, self.value),
            Operator::Less => (Comparison::Less, self.value),
            Operator::LessOrEqual => (Comparison::LessOrEqual, self.value),
            Operator::Equal => (Comparison::Equal, self.value),
            Operator::GreaterOrEqual => (Comparison::GreaterOrEqual, self.value),
            Operator::Greater => (Comparison::Greater, self.value),
            Operator::MaskedEqual => (Comparison::Masked(self.value), self.value_two),
        };
        Ok(Condition { argument, comparison, value, narrow: false })
    }
}

impl When {
    /// All that is asked for holds: for `includes`.
    fn all(&self, native: Arch, host: &SeccompHost, held: u64) -> Result<bool, PlanError> {
        Ok((self.arches.is_empty() || self.has_arch(native))
            && self.caps.iter().all(|name| capabilities::holds(held, name))
            && self.min_kernel()?.is_none_or(|least| host.kernel >= least))
    }

    /// Any of what is named holds: for `excludes`.
    fn any(&self, native: Arch, host: &SeccompHost, held: u64) -> Result<bool, PlanError> {
        Ok(self.has_arch(native)
            || self.caps.iter().any(|name| capabilities::holds(held, name))
            || self.min_kernel()?.is_some_and(|least| host.kernel >= least))
    }

    /// Docker compares with the native architecture alone, in Go's names.
    fn has_arch(&self, native: Arch) -> bool {
        let name = match native {
            Arch::X86_64 | Arch::X32 => "amd64",
            Arch::X86 => "x86",
            Arch::Aarch64 => "arm64",
        };
        self.arches.iter().any(|arch| arch == name)
    }

    fn min_kernel(&self) -> Result<Option<(u32, u32)>, PlanError> {
        let Some(text) = self.min_kernel.as_deref().filter(|text| !text.is_empty()) else { return Ok(None) };
        let parsed = text.split_once('.').and_then(|(version, revision)| {
            let number = |digits: &str| digits.parse::<u8>().ok().map(u32::from);
            Some((number(version)?, number(revision)?))
        });
        match parsed {
            Some(least) if least != (0, 0) => Ok(Some(least)),
            _ => Err(invalid(format!("minKernel {text:?} is not version.revision"))),
        }
    }
}
