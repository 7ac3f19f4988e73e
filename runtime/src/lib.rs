//! Runs one task: images on one side ([`image`]), containers on the other ([`Runtime`]).
//!
//! A container is made by its shim, a small process of its own that outlives the daemon: namespaces, an overlay root,
//! cgroups, limits, a log. The daemon keeps a view of it and asks. What is not here: networks (callers wire the
//! namespace that `create` returns before they call `start`), health checks, restarts. There is no seccomp filter, no
//! terminal, no reaper as process 1, no user namespace, and on cgroup v2 no device filter (CAP_MKNOD is withheld and
//! device nodes of images are dead there instead); what a configuration asks of these is refused by name.
//!
//! The crate's binary must call [`dispatch`] first thing in `main`.

mod cgroup;
mod config;
mod container;
mod error;
mod fake;
pub mod image;
mod init;
mod logs;
mod plan;
mod procfs;
mod protocol;
mod shim;
mod signal;
mod stored;
mod sys;

use std::env::ArgsOs;
use std::process::ExitCode;

pub use cgroup::{CgroupError, CgroupLayout};
pub use config::{
    Capabilities, ContainerConfig, EtcFiles, LogConfig, Mount, MountKind, Propagation, Resources, RuntimeConfig, Ulimit,
};
pub use container::{ContainerState, Created, ExitStatus, Runtime, Status};
pub use error::RuntimeError;
pub use fake::{ContainerRuntime, FakeOutcome, FakeRuntime, Pending};
pub use init::Step;
pub use logs::{LogOptions, LogRecord, LogStream};
pub use plan::PlanError;
pub use signal::{InvalidSignal, Signal};

/// Becomes a shim when the process was started as one (`<exe> __shim ...`), and returns its exit code at the end of
/// its life. `None`: it was not; `args` (fresh from [`std::env::args_os`]) is untouched. Must be called before any
/// thread exists.
pub fn dispatch(args: &mut ArgsOs) -> Option<ExitCode> {
    let is_shim = std::env::args_os().nth(1).is_some_and(|first| first == "__shim");
    is_shim.then(|| shim::main(args.skip(2)))
}
