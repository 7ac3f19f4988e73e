//! Volumes of this host, and the files that only containers' memory may hold.
//!
//! [`Volumes`] owns `<data>/volumes/<name>/`: `_data` (what containers see) and `volume` (options and labels). `plan`
//! decides what a name, the options and the prune filters mean; `device` mounts what options ask for; `fill` copies an
//! image's directory into an empty volume, in a process of its own; `private` keeps secrets in memory. The runtime
//! calls them when containers come, end and go; the API lists, makes and removes. Nothing here decides which container
//! gets which volume.

mod bind;
mod device;
mod error;
mod fill;
mod mounted;
mod plan;
mod private;
mod store;
mod tree;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::SystemTime;

pub(crate) use bind::check_source;
pub use error::VolumeError;
pub(crate) use fill::{NAME as FILL, main as fill_main};
pub use plan::ANONYMOUS_LABEL;
pub(crate) use plan::anonymous_name;
pub(crate) use private::PrivateFiles;
pub(crate) use store::Taker;
pub use store::{Pruned, Volumes};

/// A volume in a container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VolumeMount {
    /// Its name. Empty: one of its own, which is removed with the container.
    pub name: String,
    /// Driver of a volume that is not there yet; empty and `local` are the same, others are refused.
    pub driver: String,
    /// Options of a volume that is not there yet: `type`, `o` and `device`, as Docker's local driver takes them.
    pub options: BTreeMap<String, String>,
    /// Labels of a volume that is not there yet.
    pub labels: BTreeMap<String, String>,
    /// Fill it, while it is empty, with what the image has at the target.
    pub copy: bool,
    /// Only this directory or file of the volume, relative to its root; empty for all of it. Must exist.
    pub subpath: PathBuf,
    /// Where its data is on the host. The runtime fills it in; what callers put here is not used.
    pub source: PathBuf,
}

/// What a volume is to be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VolumeSpec {
    /// 2 to 200 of `[a-zA-Z0-9_.-]`, beginning with a letter or a digit.
    pub name: String,
    /// Empty or `local`.
    pub driver: String,
    /// See [`VolumeMount::options`].
    pub options: BTreeMap<String, String>,
    /// The user's own marks.
    pub labels: BTreeMap<String, String>,
}

/// A volume as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// What it was made with.
    pub options: BTreeMap<String, String>,
    /// What it was made with.
    pub labels: BTreeMap<String, String>,
    /// When it was made.
    pub created_at: SystemTime,
    /// Where its data is on the host.
    pub mountpoint: PathBuf,
    /// Containers that have it, whether they run or have ended.
    pub containers: Vec<String>,
}

impl Volume {
    /// Whether nobody gave it its name.
    #[must_use]
    pub fn is_anonymous(&self) -> bool {
        self.labels.contains_key(ANONYMOUS_LABEL)
    }
}

/// A file that lives in memory and is mounted read-only into one container: a secret, a config.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct PrivateFile {
    /// Where it appears; as [`crate::Mount::target`].
    pub target: PathBuf,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits, at most 0o7777.
    pub mode: u32,
    /// What is in it.
    pub data: Vec<u8>,
}

impl fmt::Debug for PrivateFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A secret must not reach a log through somebody's `{:?}`.
        f.debug_struct("PrivateFile")
            .field("target", &self.target)
            .field("len", &self.data.len())
            .finish_non_exhaustive()
    }
}
