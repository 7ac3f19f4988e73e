//! A backup: the whole of a cluster's state as one file, which is as secret as the cluster itself.
//!
//! `SHOALBAK` · format (u32) · length of the header (u32) · header (protobuf) · the store's snapshot · SHA-256 of
//! everything before. Integers are big endian. The snapshot holds the cluster's root key, join tokens, gossip keys and
//! the users' secrets, in clear.

use deploy::store::Store;
use prost::Message;
use sha2::{Digest, Sha256};

use crate::engine::AppliedStore;
use crate::release::Release;

const MAGIC: &[u8; 8] = b"SHOALBAK";
/// The format that this release writes; it reads no other.
const FORMAT: u32 = 1;
const FIXED: usize = 16;
const DIGEST: usize = 32;
/// Largest backup that is made or taken, in bytes. It is in memory as a whole, a few times over; Raft would send a
/// snapshot four times as large.
pub const MAX_BYTES: usize = 256 << 20;

/// What stands at the front.
#[derive(Clone, PartialEq, Message)]
pub struct Header {
    /// The cluster.
    #[prost(string, tag = "1")]
    pub cluster_id: String,
    /// The manager that wrote it.
    #[prost(string, tag = "2")]
    pub node_id: String,
    /// Feature level of the cluster: a release below it cannot read what is in it.
    #[prost(uint32, tag = "3")]
    pub feature_level: u32,
    /// Version of the release that wrote it; for people.
    #[prost(string, tag = "4")]
    pub version: String,
    /// Revision of the store.
    #[prost(uint64, tag = "5")]
    pub revision: u64,
    /// Index of the log entry that the store is the result of.
    #[prost(uint64, tag = "6")]
    pub index: u64,
    /// Its term.
    #[prost(uint64, tag = "7")]
    pub term: u64,
}

/// A backup that was read and checked.
#[derive(Debug)]
pub struct Backup {
    /// What it says of itself.
    pub header: Header,
    /// What it holds.
    pub store: Store,
}

/// Why bytes are no backup, or none that can be used. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The cluster is too large for one file, or the file is larger than any backup.
    #[error(
        "{0} bytes is more than a backup may have ({MAX_BYTES}); remove what nobody needs (large configs and secrets, \
         services with very many tasks) and take it again"
    )]
    TooLarge(usize),
    /// There is no cluster yet.
    #[error("there is no cluster to back up")]
    Empty,
    /// Something else.
    #[error("this is not a backup of a Shoal cluster")]
    Foreign,
    /// The end is missing.
    #[error("the backup is truncated: it ends after {0} bytes")]
    Truncated(usize),
    /// Bytes are not what was written.
    #[error("the backup is damaged: {0}")]
    Damaged(&'static str),
    /// Written by a newer release.
    #[error("the backup has format {found}; this release reads format {FORMAT}")]
    Format {
        /// The format found.
        found: u32,
    },
    /// The state in it needs a newer release.
    #[error("the backup needs feature level {needed}; this release has {has}")]
    FeatureLevel {
        /// What the cluster had.
        needed: u32,
        /// What this release knows.
        has: u32,
    },
}

/// The file for this state, as this manager sees it.
pub fn encode(node_id: &str, applied: &AppliedStore) -> Result<Vec<u8>, BackupError> {
    encode_within(node_id, applied, MAX_BYTES)
}

fn encode_within(node_id: &str, applied: &AppliedStore, max: usize) -> Result<Vec<u8>, BackupError> {
    let cluster = applied.store.cluster().ok_or(BackupError::Empty)?;
    let header = Header {
        cluster_id: cluster.id.to_string(),
        node_id: node_id.to_owned(),
        feature_level: cluster.status.feature_level,
        version: env!("CARGO_PKG_VERSION").into(),
        revision: applied.store.revision(),
        index: applied.index,
        term: applied.term,
    }
    .encode_to_vec();
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&FORMAT.to_be_bytes());
    out.extend_from_slice(&u32::try_from(header.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(&applied.store.encode_snapshot());
    if out.len() + DIGEST > max {
        return Err(BackupError::TooLarge(out.len() + DIGEST));
    }
    let digest = Sha256::digest(&out);
    out.extend_from_slice(&digest);
    Ok(out)
}

/// Reads and checks a file.
pub fn decode(bytes: &[u8]) -> Result<Backup, BackupError> {
    if bytes.len() > MAX_BYTES {
        return Err(BackupError::TooLarge(bytes.len()));
    }
    let known = bytes.len().min(MAGIC.len());
    if bytes[..known] != MAGIC[..known] {
        return Err(BackupError::Foreign);
    }
    let Some((fixed, rest)) = bytes.split_first_chunk::<FIXED>() else {
        return Err(BackupError::Truncated(bytes.len()));
    };
    let number = |at: usize| u32::from_be_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
    let (format, header_len) = (number(8), number(12) as usize);
    let Some(body_len) = rest.len().checked_sub(DIGEST).filter(|len| *len >= header_len) else {
        return Err(BackupError::Truncated(bytes.len()));
    };
    let (whole, digest) = bytes.split_at(FIXED + body_len);
    if Sha256::digest(whole)[..] != *digest {
        return Err(BackupError::Damaged("its checksum does not match; part of it may be missing"));
    }
    // First that it is whole, then what it says: a flipped bit is damage, never another release.
    if format != FORMAT {
        return Err(BackupError::Format { found: format });
    }
    let (header, state) = rest[..body_len].split_at(header_len);
    let header = Header::decode(header).map_err(|_| BackupError::Damaged("its header cannot be read"))?;
    let has = Release::current().feature_level;
    if header.feature_level > has {
        return Err(BackupError::FeatureLevel { needed: header.feature_level, has });
    }
    let store = Store::decode_snapshot(state).map_err(|_| BackupError::Damaged("its state cannot be read"))?;
    let cluster = store.cluster().ok_or(BackupError::Damaged("its state has no cluster"))?;
    if cluster.id.as_str() != header.cluster_id || store.revision() != header.revision {
        return Err(BackupError::Damaged("its header is of another state"));
    }
    Ok(Backup { header, store })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use deploy::control::{InitCluster, Op, Request, execute};
    use deploy::cx::{Cx, Limits};
    use deploy::model::{Cluster, ClusterId, GossipKey, ManagerStatus, Node, NodeId, NodeRole, Timestamp};
    use deploy::store::{Entry, Txn};

    /// A cluster of one manager, at this feature level.
    pub(crate) fn applied(feature_level: u32) -> AppliedStore {
        let mut store = Store::default();
        store.apply(1, &first_entry(feature_level)).unwrap();
        AppliedStore { store, index: 12, term: 3 }
    }

    /// The entry that makes it.
    pub(crate) fn first_entry(feature_level: u32) -> Entry {
        let store = Store::default();
        let mut cluster = Cluster { id: ClusterId::from(7u128), ..Cluster::default() };
        cluster.status.worker_token = "w".into();
        cluster.status.manager_token = "m".into();
        cluster.status.gossip_keys = vec![GossipKey { id: 1, bytes: vec![1; 32] }];
        cluster.status.next_raft_id = 2;
        cluster.status.feature_level = feature_level;
        let mut node = Node { id: NodeId::from(9u128), ..Node::default() };
        node.spec.role = NodeRole::Manager as i32;
        node.manager = Some(ManagerStatus { raft_id: 1, addr: "10.0.0.1:2377".into() });
        let now = Timestamp::from_millis(1);
        let mut txn = Txn::new(&store, now);
        let mut ids = 100u128;
        let mut next = || {
            ids += 1;
            ids
        };
        let mut cx = Cx { now, ids: &mut next, limits: Limits { tasks_per_pass: 16 } };
        let op = Op::InitCluster(Box::new(InitCluster { cluster, node }));
        execute(&mut cx, &mut txn, &Request::from(op)).unwrap();
        txn.finish(1).unwrap()
    }

    #[test]
    fn a_backup_comes_back() {
        let applied = applied(1);
        let backup = decode(&encode("n1", &applied).unwrap()).unwrap();
        assert_eq!(backup.store, applied.store);
        assert_eq!((backup.header.index, backup.header.term, &*backup.header.node_id), (12, 3, "n1"));
    }

    #[test]
    fn what_is_cut_bent_foreign_or_newer_is_refused() {
        let whole = encode("n1", &applied(1)).unwrap();
        for cut in 0..whole.len() {
            assert!(decode(&whole[..cut]).is_err(), "a cut at {cut} went unnoticed");
        }
        for at in 0..whole.len() {
            let mut bent = whole.clone();
            bent[at] ^= 0x10;
            let error = decode(&bent).unwrap_err();
            assert!(!matches!(error, BackupError::Format { .. } | BackupError::FeatureLevel { .. }), "{at}: {error}");
        }
        assert!(matches!(decode(b"SHOALBA"), Err(BackupError::Truncated(7))));
        assert!(matches!(decode(b"PK\x03\x04 something else"), Err(BackupError::Foreign)));

        let mut newer = whole[..whole.len() - DIGEST].to_vec();
        newer[11] = 9;
        newer.extend_from_slice(&Sha256::digest(newer.clone()));
        assert!(matches!(decode(&newer), Err(BackupError::Format { found: 9 })));
        let ahead = encode("n1", &applied(Release::current().feature_level + 1)).unwrap();
        assert!(matches!(decode(&ahead), Err(BackupError::FeatureLevel { .. })));
        assert!(matches!(encode("n1", &AppliedStore::default()), Err(BackupError::Empty)));
        assert_eq!(encode_within("n1", &applied(1), whole.len()).unwrap(), whole);
        let large = encode_within("n1", &applied(1), whole.len() - 1).unwrap_err();
        assert!(matches!(large, BackupError::TooLarge(bytes) if bytes == whole.len()));
        assert!(large.to_string().contains("remove what nobody needs"), "{large}");
    }
}
