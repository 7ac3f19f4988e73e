//! Snapshot files: one state of the machine each, checksummed, replaced atomically.
//!
//! `snapshot-<index>` is a 32-byte head (magic `SHOALSNP`, format, key id, length of the header, CRC32 of
//! the header, CRC32 of the state, CRC32 of the 28 bytes before), a protobuf `SnapshotHeader` and the
//! state. With a key, header and state are sealed as [`keys`](crate::keys) says, the header bound to the first 20 bytes
//! of the head and the state to the clear header, which says whose it is and of what index. The checksums are over
//! what is on disk. The newest two are kept.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use crate::RaftId;
use crate::disk::Disk;
use crate::keys::{Keyring, OVERHEAD};
use crate::types::SnapshotMeta;
use crate::wire::{self, pb};

const MAGIC: &[u8; 8] = b"SHOALSNP";
const FORMAT: u32 = 1;
const HEAD: usize = 32;
/// The part of the head that a sealed header is bound to: magic, format, key, length of the header.
const BOUND: usize = 20;
/// How many snapshots stay. The one before the last is for a person who has to look into damage.
const KEEP: usize = 2;

/// Why a snapshot could not be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A file operation failed.
    #[error("snapshot: cannot {action} {file}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file in the raft directory.
        file: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file is not what was written.
    #[error("snapshot {file} is damaged at byte {offset}: {reason}")]
    Damaged {
        /// The file.
        file: String,
        /// Where in it.
        offset: u64,
        /// What is wrong there.
        reason: String,
    },
    /// A newer release wrote this.
    #[error("snapshot {file} has format {format}, which this release does not know")]
    Format {
        /// The file.
        file: String,
        /// The format number found.
        format: u32,
    },
    /// The file is encrypted with a key that is not at hand.
    #[error("snapshot {file} is encrypted with key {key}, which is not at hand")]
    Encrypted {
        /// The file.
        file: String,
        /// The key id found.
        key: u32,
    },
    /// The log begins behind entries that no snapshot has: the file is gone.
    #[error("the snapshot of entry {index} or a later one is missing")]
    Missing {
        /// The last entry that is not in the log any more.
        index: u64,
    },
    /// The file belongs to another member or another cluster.
    #[error("snapshot {file} belongs to raft id {id} of cluster {cluster:?}")]
    Foreign {
        /// The file.
        file: String,
        /// The id that wrote it.
        id: RaftId,
        /// The cluster that it is of.
        cluster: String,
    },
}

impl SnapshotError {
    /// Whether the disk was full, which passes.
    pub(crate) fn is_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if crate::disk::is_full(source))
    }
}

impl From<SnapshotError> for io::Error {
    fn from(error: SnapshotError) -> Self {
        io::Error::other(error)
    }
}

/// A snapshot in hand.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) state: Bytes,
    pub(crate) stored: Stored,
}

/// Where the bytes of a snapshot are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    /// In a file that does not count yet; [`SnapshotStore::adopt`] makes it count.
    Staged,
    /// In the newest file of the store.
    Current,
}

/// The snapshot files of a directory.
pub(crate) struct SnapshotStore {
    disk: Arc<dyn Disk>,
    id: RaftId,
    cluster_id: String,
    keys: Keyring,
}

impl SnapshotStore {
    pub(crate) fn new(disk: Arc<dyn Disk>, id: RaftId, cluster_id: String, keys: Keyring) -> Self {
        Self { disk, id, cluster_id, keys }
    }

    /// Stores a snapshot durably and removes old ones. Nothing changes on an error.
    pub(crate) fn save(&self, meta: &SnapshotMeta, state: &[u8]) -> Result<(), SnapshotError> {
        let temporary = format!("{}.new", name_of(meta));
        self.write(meta, state, &temporary)?;
        self.promote(meta, &temporary)
    }

    /// Stores a snapshot in a file that counts only once it is [adopted](Self::adopt).
    pub(crate) fn stage(&self, meta: &SnapshotMeta, state: &[u8]) -> Result<(), SnapshotError> {
        self.write(meta, state, &staged_name(meta))
    }

    /// Makes a staged snapshot the newest.
    pub(crate) fn adopt(&self, meta: &SnapshotMeta) -> Result<(), SnapshotError> {
        self.promote(meta, &staged_name(meta))
    }

    /// Removes what a crash has left half-made.
    pub(crate) fn tidy(&self) -> Result<(), SnapshotError> {
        let failed = |source| SnapshotError::Io { action: "tidy up", file: ".".into(), source };
        for name in self.disk.list().map_err(failed)? {
            if name.starts_with("snapshot-") && (name.ends_with(".new") || name.ends_with(".staged")) {
                self.disk.remove(&name).map_err(failed)?;
            }
        }
        Ok(())
    }

    fn promote(&self, meta: &SnapshotMeta, temporary: &str) -> Result<(), SnapshotError> {
        let name = name_of(meta);
        let renamed = self.disk.rename(temporary, &name).and_then(|()| self.disk.sync_dir());
        renamed.map_err(|source| SnapshotError::Io { action: "rename", file: name, source })?;
        self.remove_old();
        Ok(())
    }

    fn write(&self, meta: &SnapshotMeta, state: &[u8], file: &str) -> Result<(), SnapshotError> {
        let header = pb::SnapshotHeader {
            meta: Some(wire::snapshot_meta_out(meta)),
            size: state.len() as u64,
            raft_id: self.id,
            cluster_id: self.cluster_id.clone(),
        }
        .encode_to_vec();
        let failed = |source| SnapshotError::Io { action: "encrypt", file: file.to_owned(), source };
        let cipher = self.keys.current();
        let added = if cipher.is_some() { OVERHEAD } else { 0 };
        let mut head = [0; HEAD];
        head[..8].copy_from_slice(MAGIC);
        let fields = [FORMAT, self.keys.current_id(), (header.len() + added) as u32];
        put_fields(&mut head[8..BOUND], &fields);
        let (header, state) = match &cipher {
            None => (Cow::Owned(header), Cow::Borrowed(state)),
            Some(cipher) => {
                let mut sealed_header = Vec::with_capacity(header.len() + added);
                cipher.seal(&mut sealed_header, &head[..BOUND], &header).map_err(failed)?;
                let mut sealed_state = Vec::with_capacity(state.len() + added);
                cipher.seal(&mut sealed_state, &header, state).map_err(failed)?;
                (Cow::Owned(sealed_header), Cow::Owned(sealed_state))
            }
        };
        put_fields(&mut head[BOUND..28], &[crc32fast::hash(&header), crc32fast::hash(&state)]);
        let crc = crc32fast::hash(&head[..28]);
        head[28..].copy_from_slice(&crc.to_le_bytes());

        let len = (HEAD + header.len() + state.len()) as u64;
        self.disk.create(file, &[&head, &header, &state], len).map_err(|source| SnapshotError::Io {
            action: "write",
            file: file.to_owned(),
            source,
        })
    }

    /// The newest snapshot, verified.
    pub(crate) fn load(&self) -> Result<Option<(SnapshotMeta, Bytes)>, SnapshotError> {
        let names = self.names().map_err(|source| SnapshotError::Io { action: "list", file: ".".into(), source })?;
        let Some((_, name)) = names.last() else { return Ok(None) };
        let file =
            self.disk.read(name).map_err(|source| SnapshotError::Io { action: "read", file: name.clone(), source })?;
        self.decode(name, file.into()).map(Some)
    }

    /// The snapshots by index, oldest first.
    fn names(&self) -> io::Result<Vec<(u64, String)>> {
        let mut names: Vec<(u64, String)> = self
            .disk
            .list()?
            .into_iter()
            .filter_map(|name| {
                let digits = name.strip_prefix("snapshot-").filter(|digits| digits.len() == 20)?;
                Some((digits.parse().ok()?, name))
            })
            .collect();
        names.sort();
        Ok(names)
    }

    fn remove_old(&self) {
        let old = self.names().map(|mut names| {
            names.truncate(names.len().saturating_sub(KEEP));
            names
        });
        let removed = old.and_then(|old| old.iter().try_for_each(|(_, name)| self.disk.remove(name)));
        if let Err(error) = removed {
            tracing::warn!(%error, "cannot remove old snapshots; will try again at the next one");
        }
    }

    fn decode(&self, name: &str, file: Bytes) -> Result<(SnapshotMeta, Bytes), SnapshotError> {
        let damaged = |offset: usize, reason: &str| SnapshotError::Damaged {
            file: name.to_owned(),
            offset: offset as u64,
            reason: reason.to_owned(),
        };
        let Some(head) = file.get(..HEAD) else { return Err(damaged(0, "the file is shorter than its head")) };
        if &head[..8] != MAGIC {
            return Err(damaged(0, "the magic number is wrong"));
        }
        let mut fields = [0; 6];
        for (field, bytes) in fields.iter_mut().zip(head[8..].chunks_exact(4)) {
            *field = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        let [format, key, header_len, header_crc, state_crc, head_crc] = fields;
        if crc32fast::hash(&head[..28]) != head_crc {
            return Err(damaged(0, "the checksum of the head is wrong"));
        }
        if format != FORMAT {
            return Err(SnapshotError::Format { file: name.to_owned(), format });
        }
        let cipher = self.keys.get(key).map_err(|key| SnapshotError::Encrypted { file: name.to_owned(), key })?;
        let state_at = HEAD + header_len as usize;
        let Some(header) = file.get(HEAD..state_at).filter(|header| crc32fast::hash(header) == header_crc) else {
            return Err(damaged(HEAD, "the checksum of the header is wrong"));
        };
        let unsealed = |offset| damaged(offset, "it was not sealed for this place with this key");
        let clear = match &cipher {
            None => Cow::Borrowed(header),
            Some(cipher) => Cow::Owned(cipher.open(&head[..BOUND], header).ok_or_else(|| unsealed(HEAD))?),
        };
        let header = pb::SnapshotHeader::decode(&*clear).map_err(|error| damaged(HEAD, &error.to_string()))?;
        if header.raft_id != self.id || header.cluster_id != self.cluster_id {
            let (id, cluster) = (header.raft_id, header.cluster_id);
            return Err(SnapshotError::Foreign { file: name.to_owned(), id, cluster });
        }
        let meta = header.meta.ok_or_else(|| damaged(HEAD, "the header has no meta"))?;
        let meta = wire::snapshot_meta_in(meta).map_err(|error| damaged(HEAD, &error.to_string()))?;
        if name != name_of(&meta) {
            return Err(damaged(HEAD, "it is of another index than its name says"));
        }
        let state = file.slice(state_at..);
        if crc32fast::hash(&state) != state_crc {
            return Err(damaged(state_at, "the checksum of the state is wrong"));
        }
        let state = match &cipher {
            None => state,
            Some(cipher) => cipher.open(&clear, &state).ok_or_else(|| unsealed(state_at))?.into(),
        };
        if state.len() as u64 != header.size {
            return Err(damaged(state_at, "the length of the state is wrong"));
        }
        Ok((meta, state))
    }
}

fn put_fields(out: &mut [u8], fields: &[u32]) {
    for (place, field) in out.chunks_exact_mut(4).zip(fields) {
        place.copy_from_slice(&field.to_le_bytes());
    }
}

fn name_of(meta: &SnapshotMeta) -> String {
    format!("snapshot-{:020}", meta.last_log_id.map_or(0, |id| id.index))
}

fn staged_name(meta: &SnapshotMeta) -> String {
    format!("{}.staged", name_of(meta))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::HostDisk;
    use crate::types::{StoredMembership, log_id};

    fn store(dir: &std::path::Path) -> SnapshotStore {
        with_keys(dir, 7, Keyring::clear())
    }

    fn with_keys(dir: &std::path::Path, id: RaftId, keys: Keyring) -> SnapshotStore {
        SnapshotStore::new(Arc::new(HostDisk::open(dir).unwrap()), id, "c".into(), keys)
    }

    fn meta(index: u64) -> SnapshotMeta {
        SnapshotMeta { last_log_id: Some(log_id(3, index)), last_membership: StoredMembership::default() }
    }

    #[test]
    fn the_newest_comes_back_and_two_stay() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        assert!(store.load().unwrap().is_none());
        for index in [5, 9, 12] {
            store.save(&meta(index), format!("state {index}").as_bytes()).unwrap();
        }
        let (found, state) = store.load().unwrap().unwrap();
        assert_eq!((found, &state[..]), (meta(12), &b"state 12"[..]));
        assert_eq!(store.names().unwrap().len(), 2);
    }

    #[test]
    fn each_changed_byte_is_seen() {
        for keys in [Keyring::clear(), Keyring::new(&[(4, [4; 32])])] {
            let dir = tempfile::tempdir().unwrap();
            let store = with_keys(dir.path(), 7, keys.clone());
            store.save(&meta(5), b"the state").unwrap();
            let path = dir.path().join(name_of(&meta(5)));
            let good = std::fs::read(&path).unwrap();
            for at in 0..good.len() {
                let mut bad = good.clone();
                bad[at] ^= 0x40;
                std::fs::write(&path, &bad).unwrap();
                assert!(matches!(store.load(), Err(SnapshotError::Damaged { .. })), "byte {at}");
                std::fs::write(&path, &good[..at]).unwrap();
                assert!(matches!(store.load(), Err(SnapshotError::Damaged { .. })), "cut at {at}");
            }
            std::fs::write(&path, &good).unwrap();
            let other = with_keys(dir.path(), 8, keys);
            assert!(matches!(other.load(), Err(SnapshotError::Foreign { id: 7, .. })));
            assert_eq!(&store.load().unwrap().unwrap().1[..], b"the state");
            std::fs::rename(&path, dir.path().join(name_of(&meta(6)))).unwrap();
            assert!(matches!(store.load(), Err(SnapshotError::Damaged { .. })), "under another name");
        }
    }

    #[test]
    fn a_sealed_snapshot_shows_nothing_and_needs_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let ring = Keyring::new(&[(4, [4; 32])]);
        let store = with_keys(dir.path(), 7, ring.clone());
        store.save(&meta(5), b"the state").unwrap();
        let file = std::fs::read(dir.path().join(name_of(&meta(5)))).unwrap();
        assert!(!file.windows(9).any(|part| part == b"the state"));
        assert_eq!(crate::keys::keys_in_use(dir.path()).unwrap(), [4].into());
        ring.set(&[(5, [5; 32]), (4, [4; 32])]);
        assert_eq!(&store.load().unwrap().unwrap().1[..], b"the state", "the older key is still there");
        ring.set(&[(5, [5; 32])]);
        assert!(matches!(store.load(), Err(SnapshotError::Encrypted { key: 4, .. })));
        ring.set(&[(4, [6; 32])]);
        assert!(matches!(store.load(), Err(SnapshotError::Damaged { .. })), "another key of the same id");
    }
}
