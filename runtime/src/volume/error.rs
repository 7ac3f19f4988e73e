//! Why a volume cannot be made, used or removed.

use std::io;
use std::path::PathBuf;

/// A failed operation on a volume. The words are Docker's where it has some; nothing has changed unless a variant says
/// otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VolumeError {
    /// A name, an option or a path that cannot work. Retrying does not help.
    #[error("{0}")]
    Invalid(String),
    /// A driver that there is none of.
    #[error("error looking up volume plugin {0}: plugin \"{0}\" not found")]
    NoDriver(String),
    /// No volume of this name.
    #[error("get {0}: no such volume")]
    NotFound(String),
    /// Containers have it.
    #[error("remove {name}: volume is in use - [{}]", .containers.join(", "))]
    InUse {
        /// The volume.
        name: String,
        /// Their ids.
        containers: Vec<String>,
    },
    /// Something is mounted inside of it that is not Shoal's; removing it would remove what is in there.
    #[error("remove {name}: {mount} is mounted in it")]
    MountedInside {
        /// The volume.
        name: String,
        /// Where.
        mount: PathBuf,
    },
    /// What was written down about it cannot be read. Its data is as it was; removing the volume works.
    #[error("volume {name}: its record cannot be read: {reason}")]
    Damaged {
        /// The volume.
        name: String,
        /// Why.
        reason: String,
    },
    /// A server's name in the options has no address now. Retrying may help.
    #[error("error resolving passed in network volume address: {name}")]
    Resolve {
        /// The server.
        name: String,
        /// The resolver's answer.
        #[source]
        source: io::Error,
    },
    /// What the options ask for cannot be mounted. Retrying may help.
    #[error(
        "error while mounting volume '{path}': failed to mount local volume: mount {device}:{path}, flags: {flags:#x}{data}"
    )]
    Mount {
        /// Where to.
        path: PathBuf,
        /// What.
        device: String,
        /// Flags of mount(2).
        flags: u64,
        /// `, data: ...`, or nothing.
        data: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The image's files could not be copied into it.
    #[error("failed to copy the image's files into volume {name}: {reason}")]
    Fill {
        /// The volume.
        name: String,
        /// What went wrong.
        reason: String,
    },
    /// A path of the host that is to be mounted is not there.
    #[error("invalid mount config for type \"bind\": bind source path does not exist: {0}")]
    NoSource(PathBuf),
    /// The mount that a path of the host is on does not pass on what the propagation asks for.
    #[error("path {path} is mounted on {mount} but it is not a {wanted} mount")]
    Propagation {
        /// The path.
        path: PathBuf,
        /// The mount that it is on.
        mount: PathBuf,
        /// `shared`, or `shared or slave`.
        wanted: &'static str,
    },
}
