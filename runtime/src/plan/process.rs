//! The process half of a plan: who it runs as, within which limits, and what is executed.

use std::ffi::CString;

use super::{CapabilitySets, Confinement, PlanError, Target, c_string};
use crate::config::ContainerConfig;

/// What the child becomes after the root is switched.
#[derive(Debug)]
pub(crate) struct Process {
    /// The names of the uts namespace; empty leaves what is there.
    pub(crate) hostname: CString,
    pub(crate) domainname: CString,
    /// The arguments, `argv[0]` as asked for; those of the reaper, when there is one.
    pub(crate) args: Vec<CString>,
    /// A process 1 of our own starts the command.
    pub(crate) reaper: bool,
    /// Complete but for `HOME`, when `home_from_passwd`.
    pub(crate) env: Vec<CString>,
    /// `HOME` was not given, so the user's entry in the container's passwd file says it.
    pub(crate) home_from_passwd: bool,
    /// Paths to try in turn; the first that exists is executed.
    pub(crate) candidates: Vec<CString>,
    pub(crate) cwd: Target,
    pub(crate) who: Who,
    pub(crate) umask: u32,
    pub(crate) rlimits: Vec<Rlimit>,
    pub(crate) capabilities: CapabilitySets,
    pub(crate) no_new_privileges: bool,
    pub(crate) confinement: Confinement,
    /// As written to `/proc/self/oom_score_adj`; empty leaves what is inherited.
    pub(crate) oom_score_adj: CString,
}

/// Whose process it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Who {
    /// Looked up in the container's own files, by Docker's rules; the groups are names or numbers.
    Named { user: UserSpec, groups: Vec<CString> },
    /// As they are.
    Numbers { uid: u32, gid: u32, groups: Vec<u32> },
}

/// `user[:group]`, each a name or a number; looked up inside of the root.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct UserSpec {
    pub(crate) user: Vec<u8>,
    pub(crate) group: Option<Vec<u8>>,
}

/// One resource limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rlimit {
    pub(crate) resource: u32,
    pub(crate) soft: u64,
    pub(crate) hard: u64,
    /// Lowered to what the runtime itself may have: defaults are wishes, a user's numbers are orders.
    pub(crate) clamp: bool,
}

pub(crate) const UNLIMITED: u64 = u64::MAX;
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What the kernel takes for one argument or variable (MAX_ARG_STRLEN).
const MAX_STRING: usize = 128 * 1024;
/// Arguments and environment together.
const MAX_TOTAL: usize = 1 << 20;
const MAX_COUNT: usize = 4096;
const MAX_GROUPS: usize = 32;

pub(super) fn process(
    config: &ContainerConfig,
    capabilities: CapabilitySets,
    confinement: Confinement,
) -> Result<Process, PlanError> {
    let hostname = match config.hostname.as_str() {
        "" => config.id.chars().take(12).collect::<String>(),
        name => name.to_owned(),
    };
    let mut args = strings("args", &config.args)?;
    if config.init {
        args.insert(0, c_string("args", "init")?);
    }
    let Some(command) = config.args.first().filter(|command| !command.is_empty()) else {
        return Err(PlanError::invalid("args", "no command specified"));
    };
    let env = environment(config, &hostname)?;
    let cwd = if config.cwd.is_empty() { "/" } else { config.cwd.as_str() };
    let cwd_target = Target::new("cwd", cwd)?;
    Ok(Process {
        candidates: candidates(command, &config.env)?,
        hostname: c_string("hostname", hostname)?,
        domainname: CString::default(),
        args,
        reaper: config.init,
        home_from_passwd: variable(&config.env, "HOME").is_none(),
        env,
        cwd: cwd_target,
        who: Who::Named { user: user_spec(&config.user)?, groups: groups(&config.groups)? },
        umask: 0o022,
        rlimits: rlimits(config)?,
        capabilities,
        no_new_privileges: config.no_new_privileges,
        confinement,
        oom_score_adj: c_string("oom_score_adj", config.oom_score_adj.to_string())?,
    })
}

pub(crate) fn strings(field: &'static str, list: &[String]) -> Result<Vec<CString>, PlanError> {
    if list.len() > MAX_COUNT {
        return Err(PlanError::invalid(field, format!("more than {MAX_COUNT}")));
    }
    if list.iter().any(|text| text.len() >= MAX_STRING) || list.iter().map(String::len).sum::<usize>() > MAX_TOTAL {
        return Err(PlanError::invalid(field, "too long"));
    }
    list.iter().map(|text| c_string(field, text.as_str())).collect()
}

pub(crate) fn variable<'a>(env: &'a [String], name: &str) -> Option<&'a str> {
    env.iter().rev().find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

fn environment(config: &ContainerConfig, hostname: &str) -> Result<Vec<CString>, PlanError> {
    if let Some(pair) = config.env.iter().find(|pair| pair.find('=').is_none_or(|at| at == 0)) {
        let start: String = pair.chars().take(32).collect();
        return Err(PlanError::invalid("env", format!("{start:?} is not NAME=value")));
    }
    let mut list = Vec::with_capacity(config.env.len() + 2);
    if variable(&config.env, "PATH").is_none() {
        list.push(format!("PATH={DEFAULT_PATH}"));
    }
    if variable(&config.env, "HOSTNAME").is_none() {
        list.push(format!("HOSTNAME={hostname}"));
    }
    if config.tty && variable(&config.env, "TERM").is_none() {
        list.push("TERM=xterm".to_owned());
    }
    list.extend(config.env.iter().cloned());
    strings("env", &list)
}

/// Where the command may be: itself when it has a slash, else each directory of the container's `PATH`.
pub(crate) fn candidates(command: &str, env: &[String]) -> Result<Vec<CString>, PlanError> {
    if command.contains('/') {
        return Ok(vec![c_string("args", command)?]);
    }
    let path = variable(env, "PATH").unwrap_or(DEFAULT_PATH);
    path.split(':')
        .take(256)
        // As with Docker, an empty or relative entry would mean the working directory: not searched.
        .filter(|directory| directory.starts_with('/'))
        .map(|directory| c_string("args", format!("{}/{command}", directory.trim_end_matches('/'))))
        .collect()
}

/// Takes `user[:group]` apart.
pub(crate) fn user_spec(text: &str) -> Result<UserSpec, PlanError> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let ok = |name: &str| name.len() <= 256 && name.bytes().all(|b| b > b' ' && b != b':' && b != 0x7f);
    if !ok(user) || !group.is_none_or(ok) {
        return Err(PlanError::invalid("user", "must be user[:group]"));
    }
    let group = group.filter(|group| !group.is_empty()).map(|group| group.as_bytes().to_vec());
    Ok(UserSpec { user: user.as_bytes().to_vec(), group })
}

fn groups(list: &[String]) -> Result<Vec<CString>, PlanError> {
    if list.len() > MAX_GROUPS {
        return Err(PlanError::invalid("groups", format!("more than {MAX_GROUPS}")));
    }
    list.iter()
        .map(|name| {
            if name.is_empty() || name.len() > 256 || name.contains([':', ' ', '\n']) {
                return Err(PlanError::invalid("groups", format!("{name:?} is not a group")));
            }
            c_string("groups", name.as_str())
        })
        .collect()
}

/// Docker's names for the kernel's resources.
pub(crate) fn resource(name: &str) -> Option<u32> {
    Some(match name {
        "core" => libc::RLIMIT_CORE,
        "cpu" => libc::RLIMIT_CPU,
        "data" => libc::RLIMIT_DATA,
        "fsize" => libc::RLIMIT_FSIZE,
        "locks" => libc::RLIMIT_LOCKS,
        "memlock" => libc::RLIMIT_MEMLOCK,
        "msgqueue" => libc::RLIMIT_MSGQUEUE,
        "nice" => libc::RLIMIT_NICE,
        "nofile" => libc::RLIMIT_NOFILE,
        "nproc" => libc::RLIMIT_NPROC,
        "rss" => libc::RLIMIT_RSS,
        "rtprio" => libc::RLIMIT_RTPRIO,
        "rttime" => libc::RLIMIT_RTTIME,
        "sigpending" => libc::RLIMIT_SIGPENDING,
        "stack" => libc::RLIMIT_STACK,
        _ => return None,
    })
}

fn rlimits(config: &ContainerConfig) -> Result<Vec<Rlimit>, PlanError> {
    // The daemon's own limits are not the container's business. Open files: enough for servers, small enough that
    // programs which close every possible descriptor do not take minutes. Processes: the pids cgroup counts them.
    let mut limits = vec![
        Rlimit { resource: libc::RLIMIT_NOFILE, soft: 65_536, hard: 1_048_576, clamp: true },
        Rlimit { resource: libc::RLIMIT_NPROC, soft: UNLIMITED, hard: UNLIMITED, clamp: true },
        Rlimit { resource: libc::RLIMIT_CORE, soft: 0, hard: UNLIMITED, clamp: true },
    ];
    for ulimit in &config.ulimits {
        let Some(resource) = resource(&ulimit.name) else {
            return Err(PlanError::invalid("ulimits", format!("unknown limit {:?}", ulimit.name)));
        };
        let value = |number: i64| match number {
            -1 => Ok(UNLIMITED),
            n => u64::try_from(n).map_err(|_| PlanError::invalid("ulimits", format!("{}: negative", ulimit.name))),
        };
        let limit = Rlimit { resource, soft: value(ulimit.soft)?, hard: value(ulimit.hard)?, clamp: false };
        if limit.soft > limit.hard {
            return Err(PlanError::invalid("ulimits", format!("{}: soft is above hard", ulimit.name)));
        }
        limits.retain(|known| known.resource != resource);
        limits.push(limit);
    }
    Ok(limits)
}
