//! Runs one task: images on one side ([`image`]), containers on the other ([`Runtime`]), volumes ([`Volumes`]) between.
//!
//! A container is made by its shim, a small process of its own that outlives the daemon: namespaces, an overlay root,
//! cgroups, limits, a log. The daemon keeps a view of it and asks. What is not here: networks (callers wire the
//! namespace that `create` returns before they call `start`), health checks, restarts.
//!
//! The crate's binary must call [`dispatch`] first thing in `main`.

// What integration tests share is used by the fuzz targets too.
#[cfg(test)]
extern crate self as runtime;

mod cgroup;
mod config;
mod container;
mod disk;
mod error;
mod events;
mod fake;
#[cfg(test)]
mod fuzz;
pub mod image;
mod init;
mod logs;
mod machine;
mod oci;
mod plan;
mod procfs;
mod protocol;
mod remove;
mod shim;
mod signal;
mod stored;
mod subprocess;
mod sys;
mod volume;

use std::env::ArgsOs;
use std::process::ExitCode;

pub use cgroup::{BlockUsage, CgroupError, CgroupLayout, CpuUsage, MemoryUsage, PidsUsage, Usage};
pub use config::{
    AppArmor, Capabilities, ContainerConfig, EtcFiles, IdMappings, IdRange, LogConfig, LogForward, LogTarget, Mount,
    MountKind, Propagation, Resources, RuntimeConfig, Seccomp, SelinuxLabel, SyslogAddress, Ulimit,
};
pub use container::{
    ArchivePieces, Change, ChangeKind, ContainerDetail, ContainerState, CopyError, Created, Exec, ExecConfig, ExecExit,
    ExecHandle, ExecIo, ExecOutput, ExitStatus, MountPoint, NetworkUsage, OutputPiece, PathStat, Process, PutOptions,
    Runtime, Stats, Status, StdStream,
};
pub use error::RuntimeError;
pub use events::{Event, EventKind, Events, Listener, Overtaken};
pub use fake::{ContainerRuntime, FakeOutcome, FakeRuntime, Pending};
pub use init::Step;
pub use logs::{LogOptions, LogRecord, LogStream};
pub use plan::limits::oci::{
    DeviceRule, HugepageLimit, InterfacePriority, LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxNetwork, LinuxPids,
    LinuxRdma, LinuxResources, ThrottleDevice, WeightDevice,
};
pub use plan::{PlanError, check_seccomp_profile};
pub use signal::{InvalidSignal, Signal};
pub use volume::{ANONYMOUS_LABEL, PrivateFile, Pruned, Volume, VolumeError, VolumeMount, VolumeSpec, Volumes};

/// Becomes a shim when the process was started as one (`<exe> __shim ...`), or what fills a volume (`<exe> __fill ...`),
/// or what finds out whether ids can be mapped (`<exe> __maps ...`), or does what an OCI runtime does (`<exe> runtime ...`), and returns its exit code at the end of its life. `None`: it
/// was none of these; `args` (fresh from [`std::env::args_os`]) is untouched. Must be called before any thread exists.
pub fn dispatch(args: &mut ArgsOs) -> Option<ExitCode> {
    match std::env::args_os().nth(1)?.to_str()? {
        "__shim" => Some(shim::main(args.skip(2))),
        shim::PROBE => Some(shim::probe_main(args.skip(2))),
        volume::FILL => Some(volume::fill_main(args.skip(2))),
        "runtime" => Some(oci::main(args.skip(2))),
        _ => None,
    }
}
