//! The data directory: who this engine is, what it is a member of, and that only one daemon uses it.
//!
//! `format` says which release wrote it · `lock` is held while a daemon runs · `identity/` is this module's ·
//! `raft/`, `agent/`, `images/`, `containers/` belong to the rooms of those names.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use prost::Message;

use crate::stored::{self, Kind, StoredError};
use crate::vault::Vault;

/// Format of the directory as a whole; releases read this one and the one before.
const FORMAT: u32 = 1;

/// A log that a recovery has made, with its raft id behind it.
const ANEW: &str = "raft.anew-";
/// A log that could not be used, with its raft id behind it.
const DAMAGED: &str = "raft.damaged-";
/// The log that a recovery has replaced.
const ASIDE: &str = "raft.before-recovery";

/// Why a data directory cannot be used. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// The file system refused.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Another daemon runs on it.
    #[error("{} is in use by another shoal daemon (pid {pid})", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The other daemon.
        pid: String,
    },
    /// Written by a release that this one cannot read.
    #[error("{} has format {found:?}; this release reads format {FORMAT}", path.display())]
    Format {
        /// The format file.
        path: PathBuf,
        /// What it says.
        found: String,
    },
    /// A file in it is damaged.
    #[error(transparent)]
    Stored(#[from] StoredError),
    /// A file in it is not what it says.
    #[error("{} cannot be read", path.display())]
    Decode {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: prost::DecodeError,
    },
}

/// What an engine is before and beyond any cluster.
#[derive(Clone, PartialEq, Message)]
pub struct EngineIdentity {
    /// 25 characters; names the cgroups of this engine.
    #[prost(string, tag = "1")]
    pub engine_id: String,
    /// Grows by one at each start of the daemon; fences what an earlier one sent.
    #[prost(uint64, tag = "2")]
    pub generation: u64,
}

/// A membership, as it outlives the daemon. Holds the node's private key: the file's mode is 0600.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub struct MembershipRecord {
    /// This node.
    #[prost(string, tag = "1")]
    pub node_id: String,
    /// The cluster.
    #[prost(string, tag = "2")]
    pub cluster_id: String,
    /// Whether it is to take part in Raft.
    #[prost(bool, tag = "3")]
    pub manager: bool,
    /// Its raft id; 0 until it got one.
    #[prost(uint64, tag = "4")]
    pub raft_id: u64,
    /// `ip:port` listened at.
    #[prost(string, tag = "5")]
    pub listen_addr: String,
    /// `ip:port` that others use.
    #[prost(string, tag = "6")]
    pub advertise_addr: String,
    /// Address of VXLAN packets.
    #[prost(string, tag = "7")]
    pub data_path_addr: String,
    /// UDP port of VXLAN.
    #[prost(uint32, tag = "8")]
    pub data_path_port: u32,
    /// Root certificate, PEM.
    #[prost(string, tag = "9")]
    pub root_pem: String,
    /// Own certificate, PEM.
    #[prost(string, tag = "10")]
    pub cert_pem: String,
    /// Own key, PKCS#8 PEM.
    #[prost(string, tag = "11")]
    pub key_pem: String,
    /// Keys of the gossip, primary first.
    #[prost(message, repeated, tag = "12")]
    pub gossip_keys: Vec<deploy::model::GossipKey>,
    /// Managers last heard of.
    #[prost(message, repeated, tag = "13")]
    pub managers: Vec<ManagerRecord>,
    /// The raft id whose log was opened here once: when it is not there later, it is lost, not yet to be made.
    #[prost(uint64, tag = "40")]
    pub raft_opened: u64,
}

impl std::fmt::Debug for MembershipRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MembershipRecord({} in {}, manager: {})", self.node_id, self.cluster_id, self.manager)
    }
}

/// Where a manager is reached.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Message)]
pub struct ManagerRecord {
    /// Its node id.
    #[prost(string, tag = "1")]
    pub node_id: String,
    /// `ip:port`.
    #[prost(string, tag = "2")]
    pub addr: String,
}

/// An open data directory. The lock is held as long as this lives.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    vault: Vault,
    _lock: Flock<File>,
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
    let path = path.to_path_buf();
    move |source| DataDirError::Io { action, path, source }
}

impl DataDir {
    /// Opens the directory, making it if it is not there, and locks it.
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        for dir in [path.to_path_buf(), path.join("identity"), path.join("agent")] {
            make_dir(&dir)?;
        }
        let lock = lock(path)?;
        let format = path.join("format");
        match fs::read_to_string(&format) {
            Ok(text) if text.trim() == FORMAT.to_string() => {}
            Ok(found) => return Err(DataDirError::Format { path: format, found: found.trim().to_owned() }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                stored::write_atomically(&format, 0o644, &[format!("{FORMAT}\n").as_bytes()])?;
            }
            Err(e) => return Err(io_error("read", &format)(e)),
        }
        let vault = Vault::open(&path.join("identity/keys"))?;
        Ok(Self { path: path.to_path_buf(), vault, _lock: lock })
    }

    /// The keys of this node's files.
    pub fn vault(&self) -> &Vault {
        &self.vault
    }

    /// Whether there is a membership that needs the unlock key.
    pub fn is_locked(&self) -> bool {
        self.vault.is_locked() && self.membership_path().exists()
    }

    fn membership_path(&self) -> PathBuf {
        self.path.join("identity/membership")
    }

    /// The keys that files of this node name.
    pub fn keys_in_use(&self) -> Result<BTreeSet<u32>, DataDirError> {
        let mut keys = BTreeSet::new();
        // Logs that were set aside too: they may be all that is left of something.
        for entry in fs::read_dir(&self.path).map_err(io_error("read", &self.path))? {
            let path = entry.map_err(io_error("read", &self.path))?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("raft")) {
                match raft::keys_in_use(&path) {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    found => keys.extend(found.map_err(io_error("read", &path))?),
                }
            }
        }
        keys.extend(stored::key_of(&self.membership_path(), Kind::Membership)?);
        // A damaged cache is no reason to keep any key: it is thrown away.
        keys.extend(stored::key_of(&self.assignments(), Kind::Assignments).ok().flatten());
        Ok(keys)
    }

    /// Whether the membership is sealed with the newest key.
    pub fn membership_is_sealed(&self) -> Result<bool, DataDirError> {
        let key = stored::key_of(&self.membership_path(), Kind::Membership)?;
        Ok(key.is_none_or(|key| key == *self.vault.current().borrow()))
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The engine's identity for this start of the daemon: made at the first start, its generation grown at each.
    pub fn start_engine(&self, new_id: impl FnOnce() -> String) -> Result<EngineIdentity, DataDirError> {
        let path = self.path.join("identity/engine");
        let mut identity = match stored::read(&path, Kind::Engine)? {
            Some(bytes) => decode(&path, &bytes)?,
            None => EngineIdentity { engine_id: new_id(), generation: 0 },
        };
        identity.generation += 1;
        stored::write(&path, Kind::Engine, &identity.encode_to_vec())?;
        Ok(identity)
    }

    /// Has the next generation be above this one: who had this node's identity before may have come so far.
    pub fn raise_generation(&self, above: u64) -> Result<(), DataDirError> {
        let path = self.path.join("identity/engine");
        let Some(bytes) = stored::read(&path, Kind::Engine)? else { return Ok(()) };
        let mut identity: EngineIdentity = decode(&path, &bytes)?;
        if identity.generation < above {
            identity.generation = above;
            stored::write(&path, Kind::Engine, &identity.encode_to_vec())?;
        }
        Ok(())
    }

    /// The membership, if there is one.
    pub fn membership(&self) -> Result<Option<MembershipRecord>, DataDirError> {
        let path = self.path.join("identity/membership");
        stored::read_sealed(&path, Kind::Membership, &self.vault)?.map(|bytes| decode(&path, &bytes)).transpose()
    }

    /// Keeps the membership.
    pub fn save_membership(&self, record: &MembershipRecord) -> Result<(), DataDirError> {
        let path = self.path.join("identity/membership");
        Ok(stored::write_sealed(&path, Kind::Membership, &record.encode_to_vec(), &self.vault)?)
    }

    /// Where Raft keeps its log.
    pub fn raft(&self) -> PathBuf {
        self.path.join("raft")
    }

    /// Where a recovery makes the log that begins anew. It counts once the membership names this raft id.
    pub fn raft_of(&self, raft_id: u64) -> PathBuf {
        self.path.join(format!("{ANEW}{raft_id}"))
    }

    /// Puts the log that a recovery has made for this raft id in its place, if there is one; the log of before is kept
    /// beside it, since it may be all that is left of what the recovery has lost. What a recovery that was cut made for
    /// another raft id is removed.
    pub fn finish_recovery(&self, raft_id: u64) -> Result<(), DataDirError> {
        let anew = self.raft_of(raft_id);
        let names = fs::read_dir(&self.path).map_err(io_error("read", &self.path))?;
        for entry in names {
            let entry = entry.map_err(io_error("read", &self.path))?;
            if entry.file_name().to_string_lossy().starts_with(ANEW) && entry.path() != anew {
                remove(&entry.path())?;
            }
        }
        if !anew.exists() {
            return Ok(());
        }
        if self.raft().exists() {
            self.set_raft_aside()?;
        }
        fs::rename(&anew, self.raft()).map_err(io_error("rename", &anew))?;
        sync(&self.path)
    }

    /// Keeps Raft's log beside, in the place of one that was kept earlier. Without a log, what was kept stays: it may be
    /// this one, set aside by an earlier try.
    pub fn set_raft_aside(&self) -> Result<(), DataDirError> {
        let aside = self.path.join(ASIDE);
        if self.has_raft()? {
            // What comes after this log is another life of the cluster, with versions of its own.
            self.vault.forget_version()?;
            remove(&aside)?;
            fs::rename(self.raft(), &aside).map_err(io_error("rename", &aside))?;
        }
        sync(&self.path)
    }

    /// Whether there is anything of Raft's log.
    fn has_raft(&self) -> Result<bool, DataDirError> {
        let raft = self.raft();
        match fs::read_dir(&raft) {
            Ok(mut files) => Ok(files.next().is_some()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(io_error("read", &raft)(e)),
        }
    }

    /// Keeps Raft's damaged files beside, as `raft.damaged-<raft id>`, in the place of any that were kept earlier; those
    /// stay when there are none to take their place.
    pub fn set_damaged_raft_aside(&self, raft_id: u64) -> Result<PathBuf, DataDirError> {
        let kept = self.path.join(format!("{DAMAGED}{raft_id}"));
        if self.has_raft()? {
            self.remove_damaged()?;
            fs::rename(self.raft(), &kept).map_err(io_error("rename", &kept))?;
        }
        sync(&self.path)?;
        Ok(kept)
    }

    fn remove_damaged(&self) -> Result<(), DataDirError> {
        for entry in fs::read_dir(&self.path).map_err(io_error("read", &self.path))? {
            let entry = entry.map_err(io_error("read", &self.path))?;
            if entry.file_name().to_string_lossy().starts_with(DAMAGED) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// The agent's cache of its assignments.
    pub fn assignments(&self) -> PathBuf {
        self.path.join("agent/assignments")
    }

    /// What the agent remembers of plain containers, a file each.
    pub fn plain_containers(&self) -> PathBuf {
        self.path.join("agent/containers")
    }

    /// What the agent remembers of networks of this host alone, a file each.
    pub fn local_networks(&self) -> PathBuf {
        self.path.join("agent/networks")
    }

    /// Forgets Raft's log, for a node that is no longer a manager.
    pub fn remove_raft(&self) -> Result<(), DataDirError> {
        remove(&self.raft())
    }

    /// Forgets the membership, and what exists because of it: Raft's log and the agent's cache. The membership goes
    /// first, for good: whatever is cut after that finds no membership at the next start, and the rest is removed then;
    /// a membership whose log is gone would be taken up. Images stay.
    pub fn forget_membership(&self) -> Result<(), DataDirError> {
        remove(&self.path.join("identity/membership"))?;
        // A write of it that was cut holds the private key as well.
        remove(&self.path.join("identity/membership.tmp"))?;
        self.remove_raft()?;
        // Raft ids begin at 1: whatever was made anew is for none.
        self.finish_recovery(0)?;
        remove(&self.path.join(ASIDE))?;
        self.remove_damaged()?;
        remove(&self.assignments())?;
        remove(&self.plain_containers())?;
        remove(&self.local_networks())?;
        // Nothing is left that needs them; and the next cluster's files must not wait for this one's unlock key.
        Ok(self.vault.reset()?)
    }
}

fn decode<M: Message + Default>(path: &Path, bytes: &[u8]) -> Result<M, DataDirError> {
    M::decode(bytes).map_err(|source| DataDirError::Decode { path: path.to_path_buf(), source })
}

fn make_dir(path: &Path) -> Result<(), DataDirError> {
    fs::DirBuilder::new().recursive(true).mode(0o711).create(path).map_err(io_error("create", path))
}

/// Removes a file or a directory, if it is there; after this it stays removed, also over a loss of power.
fn remove(path: &Path) -> Result<(), DataDirError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io_error("remove", path)(e)),
        // One that is gone already may have been removed by who did not get as far as the fsync.
        _ => {}
    }
    sync(path.parent().unwrap_or(Path::new("/")))
}

/// Makes the names in a directory durable. One that is gone has none.
fn sync(parent: &Path) -> Result<(), DataDirError> {
    match File::open(parent).and_then(|dir| dir.sync_all()) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("fsync", parent)(e)),
        _ => Ok(()),
    }
}

fn lock(dir: &Path) -> Result<Flock<File>, DataDirError> {
    let path = dir.join("lock");
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(io_error("open", &path))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            // The pid is for people; the lock itself is what counts.
            lock.set_len(0).and_then(|()| write!(*lock, "{}", std::process::id())).map_err(io_error("write", &path))?;
            Ok(lock)
        }
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
            let pid = fs::read_to_string(&path).unwrap_or_default();
            Err(DataDirError::InUse { path: dir.to_path_buf(), pid })
        }
        Err((_, e)) => Err(io_error("lock", &path)(e.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_keeps_its_id_and_grows_its_generation() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temp.path()).unwrap();
        let first = dir.start_engine(|| "id".into()).unwrap();
        let second = dir.start_engine(|| "other".into()).unwrap();
        assert_eq!((first.generation, second.generation), (1, 2));
        assert_eq!(second.engine_id, "id");
        let Err(DataDirError::InUse { pid, .. }) = DataDir::open(temp.path()) else { panic!("locked twice") };
        assert_eq!(pid, std::process::id().to_string());
    }

    #[test]
    fn a_membership_is_forgotten_first_and_everything_of_it() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temp.path()).unwrap();
        dir.save_membership(&MembershipRecord { node_id: "n1".into(), ..MembershipRecord::default() }).unwrap();
        fs::create_dir_all(dir.raft().join("log")).unwrap();
        fs::write(dir.raft().join("log/1"), "entry").unwrap();
        fs::write(dir.assignments(), "cache").unwrap();
        dir.forget_membership().unwrap();
        assert!(dir.membership().unwrap().is_none() && !dir.raft().exists() && !dir.assignments().exists());
        // A second time, or after a cut in the middle, there is nothing to complain about.
        fs::create_dir(dir.raft()).unwrap();
        dir.forget_membership().unwrap();
        assert!(!dir.raft().exists());
    }

    #[test]
    fn a_recovery_counts_when_the_membership_says_so() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temp.path()).unwrap();
        let put = |path: PathBuf, text: &str| {
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("log"), text).unwrap();
        };
        let log = || fs::read_to_string(dir.raft().join("log")).unwrap();
        put(dir.raft(), "old");
        put(dir.raft_of(9), "new");
        // Cut before the membership named it.
        dir.finish_recovery(3).unwrap();
        assert!(log() == "old" && !dir.raft_of(9).exists());
        put(dir.raft_of(9), "new");
        dir.finish_recovery(9).unwrap();
        assert_eq!(log(), "new");
        assert_eq!(fs::read_to_string(temp.path().join(ASIDE).join("log")).unwrap(), "old");
        // Cut between the two renames.
        put(dir.raft_of(10), "newer");
        dir.set_raft_aside().unwrap();
        dir.finish_recovery(10).unwrap();
        assert_eq!(log(), "newer");
        dir.finish_recovery(10).unwrap();
        dir.forget_membership().unwrap();
        assert!(!dir.raft().exists() && !temp.path().join(ASIDE).exists());
    }

    #[test]
    fn another_try_does_not_lose_what_was_set_aside() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temp.path()).unwrap();
        let put = |text: &str| {
            fs::create_dir_all(dir.raft()).unwrap();
            fs::write(dir.raft().join("log"), text).unwrap();
        };
        let read = |name: &str| fs::read_to_string(temp.path().join(name).join("log")).unwrap();
        put("last copy");
        for _ in 0..2 {
            dir.set_raft_aside().unwrap();
            assert_eq!(read(ASIDE), "last copy");
        }
        // Nor when a start has made a directory that nothing is in yet.
        fs::create_dir(dir.raft()).unwrap();
        dir.set_raft_aside().unwrap();
        assert_eq!(read(ASIDE), "last copy");
        put("damaged");
        for _ in 0..2 {
            dir.set_damaged_raft_aside(3).unwrap();
            assert_eq!(read("raft.damaged-3"), "damaged");
        }
    }

    #[test]
    fn a_newer_format_is_refused_and_untouched() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("format"), "99\n").unwrap();
        assert!(matches!(DataDir::open(temp.path()), Err(DataDirError::Format { .. })));
        assert_eq!(fs::read_to_string(temp.path().join("format")).unwrap(), "99\n");
    }
}
