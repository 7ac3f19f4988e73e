//! What the child tells the shim: that it waits for its start, or which step failed and why.

use std::fmt;

use crate::sys::Errno;

macro_rules! steps {
    ($($number:literal $name:ident $text:literal,)*) => {
        /// A step of the making of a container, inside of its first process.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Step {
            $(#[doc = $text] $name,)*
        }

        impl Step {
            fn number(self) -> u8 {
                match self { $(Step::$name => $number,)* }
            }

            /// The step with this number, as it crossed the pipe.
            pub(crate) fn from_number(number: u8) -> Option<Step> {
                match number { $($number => Some(Step::$name),)* _ => None }
            }

            fn text(self) -> &'static str {
                match self { $(Step::$name => $text,)* }
            }
        }
    };
}

steps! {
    1 Prepare "prepare",
    2 Clone "clone",
    3 Session "start a session",
    4 EnterCgroup "enter the cgroup",
    5 CgroupNamespace "make the cgroup namespace",
    6 OomScore "set the OOM score",
    7 Hostname "set the hostname",
    8 Loopback "bring up the loopback device",
    9 Propagation "make the mounts private",
    10 Root "mount the root",
    11 Mount "mount",
    12 BindSource "open the source of the mount at",
    13 Device "make the device",
    14 Link "make the link",
    15 Sysctl "set",
    16 Mask "mask",
    17 ReadOnlyPath "make read-only",
    19 ReadOnlyRoot "make the root read-only",
    20 SwitchRoot "switch the root",
    21 WorkingDirectory "enter the working directory",
    22 ResourceLimit "set resource limits",
    23 Stdio "set up the standard streams",
    24 ReadUsers "read the users and groups of",
    25 UnknownUser "find user",
    26 UnknownGroup "find group",
    27 Credentials "assume the user",
    28 Capabilities "limit capabilities",
    29 NoNewPrivileges "forbid new privileges",
    30 Exec "exec",
    60 ParentDeath "bind its life to the shim's",
    100 UserNamespace "set up the user namespace",
    101 JoinNamespace "join the namespace",
    102 Hook "run the hooks of the runtime",
    103 CreateContainerHook "run the createContainer hook",
    104 StartContainerHook "run the startContainer hook",
    106 Remount "remount",
    140 Terminal "make the terminal",
    120 Keyring "make the session keyring",
    121 Label "set the security label",
    122 Seccomp "load the seccomp filter",
    123 IdMappings "map the users and groups",
    124 MappedRoot "mount the root with mapped ids",
    125 MappedMount "map the ids of the files at",
    141 JoinNamespaces "join the namespaces of the container",
}

impl Step {
    /// As a number that fits the shim's protocol.
    pub(crate) fn code(self) -> u32 {
        u32::from(self.number())
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// One message of the child's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Report {
    /// The root is built and not yet entered; the child waits.
    Built,
    /// Everything is made; the child waits.
    Ready,
    /// The child has given up.
    Failed { step: Step, index: u16, errno: Errno },
    /// A helper has made the process with this number.
    Born { pid: u32 },
}

/// Bytes of a report.
pub(crate) const REPORT_SIZE: usize = 8;

impl Report {
    pub(super) fn encode(self) -> [u8; REPORT_SIZE] {
        let mut bytes = [0u8; REPORT_SIZE];
        match self {
            Report::Ready => {}
            Report::Failed { step, index, errno } => {
                bytes[0] = 1;
                bytes[1] = step.number();
                bytes[2..4].copy_from_slice(&index.to_le_bytes());
                bytes[4..8].copy_from_slice(&errno.to_le_bytes());
            }
            Report::Built => bytes[0] = 2,
            Report::Born { pid } => {
                bytes[0] = 3;
                bytes[4..8].copy_from_slice(&pid.to_le_bytes());
            }
        }
        bytes
    }

    /// Reads a report; `None` when it is none.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Report> {
        let bytes: [u8; REPORT_SIZE] = bytes.try_into().ok()?;
        match bytes[0] {
            0 => Some(Report::Ready),
            1 => Some(Report::Failed {
                step: Step::from_number(bytes[1])?,
                index: u16::from_le_bytes([bytes[2], bytes[3]]),
                errno: i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
            }),
            2 => Some(Report::Built),
            3 => Some(Report::Born { pid: u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) }),
            _ => None,
        }
    }
}

/// The exit code of a command that could not be executed, as shells and Docker have it.
pub(crate) fn exit_code_of(errno: Errno) -> i32 {
    match errno {
        libc::ENOENT | libc::ENOTDIR => 127,
        _ => 126,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_come_back() {
        let failed = Report::Failed { step: Step::Exec, index: 700, errno: libc::EACCES };
        for report in [Report::Ready, Report::Built, failed, Report::Born { pid: 70_000 }] {
            assert_eq!(Report::decode(&report.encode()), Some(report));
        }
        assert_eq!(Report::decode(&[1, 200, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(Report::decode(&[0; 3]), None);
    }
}
