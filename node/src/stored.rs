//! The form of every small file that the node itself stores: identity, keys, membership, assignment cache.
//!
//! `SHOL` · format (u16) · kind (u16) · key id (u32, 0 = clear) · length (u64) · CRC-32 of all that and the payload
//! (u32) · payload (protobuf). Integers are big endian. A file is replaced as a whole: written beside, fsynced,
//! renamed, and its directory fsynced; so a reader sees the old one or the new one.
//!
//! What holds secrets is sealed with a key of the [`vault`](crate::vault): the payload is then nonce, ciphertext and tag,
//! bound to the first 12 bytes of the header, so that it opens as no other kind of file. What a release before that has
//! written in the clear is still read.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::vault::{NotOpened, Vault};

const MAGIC: [u8; 4] = *b"SHOL";
const FORMAT: u16 = 1;
/// The key id of clear text.
const CLEAR: u32 = 0;
const HEADER: usize = 4 + 2 + 2 + 4 + 8 + 4;
/// No file of this kind is larger; what claims to be is damaged.
const MAX_LEN: u64 = 256 << 20;

/// What a file holds; a number is never used again for something else (4 was used once).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// `identity/engine`
    Engine = 1,
    /// `identity/membership`
    Membership = 2,
    /// `agent/assignments`
    Assignments = 3,
    /// `identity/keys`
    Keys = 5,
    /// `agent/containers/*`
    PlainContainer = 6,
    /// `agent/networks/*`
    LocalNetwork = 7,
}

/// Why a stored file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoredError {
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
    /// The bytes are not what was written. Nothing was changed; the file must be restored or the node joined anew.
    #[error("{} is damaged at offset {offset}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What does not fit.
        reason: String,
    },
    /// Sealed with a key that is not at hand. Nothing was changed.
    #[error("{} is encrypted with key {key}, which is not at hand", path.display())]
    Encrypted {
        /// The file.
        path: PathBuf,
        /// The key that it names.
        key: u32,
    },
    /// Written by a release that this one cannot read.
    #[error("{} has format {found}; this release reads up to {FORMAT}", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u16,
    },
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoredError {
    let path = path.to_path_buf();
    move |source| StoredError::Io { action, path, source }
}

/// Replaces the file at `path` by `payload`, durably.
pub fn write(path: &Path, kind: Kind, payload: &[u8]) -> Result<(), StoredError> {
    write_with(path, begin(kind, CLEAR), payload)
}

/// Replaces the file at `path` by `payload`, sealed, durably.
pub fn write_sealed(path: &Path, kind: Kind, payload: &[u8], vault: &Vault) -> Result<(), StoredError> {
    let locked = || StoredError::Encrypted { path: path.to_path_buf(), key: CLEAR };
    let (key, sealed) = vault.seal(|key| begin(kind, key), payload).ok_or_else(locked)?;
    write_with(path, begin(kind, key), &sealed)
}

/// The beginning of a header: what a sealed payload is bound to.
fn begin(kind: Kind, key: u32) -> Vec<u8> {
    let mut head = Vec::with_capacity(HEADER);
    head.extend_from_slice(&MAGIC);
    head.extend_from_slice(&FORMAT.to_be_bytes());
    head.extend_from_slice(&(kind as u16).to_be_bytes());
    head.extend_from_slice(&key.to_be_bytes());
    head
}

fn write_with(path: &Path, mut head: Vec<u8>, payload: &[u8]) -> Result<(), StoredError> {
    head.extend_from_slice(&(payload.len() as u64).to_be_bytes());
    let crc = checksum(&head, payload);
    head.extend_from_slice(&crc.to_be_bytes());
    write_atomically(path, 0o600, &[&head, payload])
}

/// Replaces the file at `path` by these bytes, durably, with this mode.
pub fn write_atomically(path: &Path, mode: u32, parts: &[&[u8]]) -> Result<(), StoredError> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".tmp");
    let beside = dir.join(name);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&beside)
        .map_err(io_error("create", &beside))?;
    // One that a cut write left behind keeps the mode that it was made with.
    file.set_permissions(fs::Permissions::from_mode(mode)).map_err(io_error("chmod", &beside))?;
    for part in parts {
        file.write_all(part).map_err(io_error("write", &beside))?;
    }
    file.sync_all().map_err(io_error("fsync", &beside))?;
    fs::rename(&beside, path).map_err(io_error("rename to", path))?;
    File::open(dir).and_then(|d| d.sync_all()).map_err(io_error("fsync", dir))
}

/// Reads the clear file at `path`; `None` if there is none.
pub fn read(path: &Path, kind: Kind) -> Result<Option<Vec<u8>>, StoredError> {
    match read_bytes(path)?.map(|bytes| decode(path, kind, &bytes).map(|(key, payload)| (key, payload.to_vec()))) {
        None => Ok(None),
        Some(Ok((CLEAR, payload))) => Ok(Some(payload)),
        Some(Ok((key, _))) => Err(StoredError::Encrypted { path: path.to_path_buf(), key }),
        Some(Err(error)) => Err(error),
    }
}

/// Reads the file at `path`, sealed or clear; `None` if there is none.
pub fn read_sealed(path: &Path, kind: Kind, vault: &Vault) -> Result<Option<Vec<u8>>, StoredError> {
    let Some(bytes) = read_bytes(path)? else { return Ok(None) };
    let (key, payload) = decode(path, kind, &bytes)?;
    if key == CLEAR {
        return Ok(Some(payload.to_vec()));
    }
    vault.unseal(key, &begin(kind, key), payload).map(Some).map_err(|error| match error {
        NotOpened::NoKey => StoredError::Encrypted { path: path.to_path_buf(), key },
        NotOpened::Forged => damaged(path, HEADER as u64, format!("was not sealed here with key {key}")),
    })
}

/// The key that the file at `path` names, 0 if it is clear; `None` if there is none.
pub fn key_of(path: &Path, kind: Kind) -> Result<Option<u32>, StoredError> {
    let Some(bytes) = read_bytes(path)? else { return Ok(None) };
    decode(path, kind, &bytes).map(|(key, _)| Some(key))
}

fn read_bytes(path: &Path) -> Result<Option<Vec<u8>>, StoredError> {
    match fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io_error("stat", path)(e)),
        Ok(meta) if meta.len() > MAX_LEN => {
            Err(damaged(path, 0, format!("{} bytes is more than any such file has", meta.len())))
        }
        Ok(_) => fs::read(path).map_err(io_error("read", path)).map(Some),
    }
}

/// The key and the payload.
fn decode<'a>(path: &Path, kind: Kind, bytes: &'a [u8]) -> Result<(u32, &'a [u8]), StoredError> {
    let Some((head, payload)) = bytes.split_at_checked(HEADER) else {
        return Err(damaged(path, bytes.len() as u64, "ends inside of the header".into()));
    };
    if head[..4] != MAGIC {
        return Err(damaged(path, 0, "does not begin with SHOL".into()));
    }
    // First that the record is whole, then what it says: a flipped bit is damage, never another release.
    let len = u64::from_be_bytes([head[12], head[13], head[14], head[15], head[16], head[17], head[18], head[19]]);
    if len != payload.len() as u64 {
        return Err(damaged(path, 12, format!("has {} bytes of payload instead of {len}", payload.len())));
    }
    let crc = u32::from_be_bytes([head[20], head[21], head[22], head[23]]);
    if crc != checksum(&head[..20], payload) {
        return Err(damaged(path, HEADER as u64, "checksum does not match".into()));
    }
    let format = u16::from_be_bytes([head[4], head[5]]);
    if format > FORMAT {
        return Err(StoredError::Newer { path: path.to_path_buf(), found: format });
    }
    let found_kind = u16::from_be_bytes([head[6], head[7]]);
    if found_kind != kind as u16 {
        return Err(damaged(path, 6, format!("holds kind {found_kind}, not {}", kind as u16)));
    }
    Ok((u32::from_be_bytes([head[8], head[9], head[10], head[11]]), payload))
}

fn checksum(head: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(payload);
    hasher.finalize()
}

fn damaged(path: &Path, offset: u64, reason: String) -> StoredError {
    StoredError::Damaged { path: path.to_path_buf(), offset, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_any_flipped_bit_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        assert!(read(&path, Kind::Engine).unwrap().is_none());
        write(&path, Kind::Engine, b"payload").unwrap();
        assert_eq!(read(&path, Kind::Engine).unwrap().unwrap(), b"payload");
        assert!(matches!(read(&path, Kind::Membership), Err(StoredError::Damaged { offset: 6, .. })));
        let whole = fs::read(&path).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut bent = whole.clone();
            bent[bit / 8] ^= 1 << (bit % 8);
            let noticed = matches!(decode(&path, Kind::Engine, &bent), Err(StoredError::Damaged { .. }));
            assert!(noticed, "bit {bit} was not reported as damage");
        }
        for cut in 0..whole.len() {
            assert!(decode(&path, Kind::Engine, &whole[..cut]).is_err(), "a cut at {cut} went unnoticed");
        }
    }

    #[test]
    fn what_is_sealed_shows_nothing_and_opens_as_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let vault = Vault::open(&dir.path().join("keys")).unwrap();
        write(&path, Kind::Membership, b"clear, by an older release").unwrap();
        assert_eq!(read_sealed(&path, Kind::Membership, &vault).unwrap().unwrap(), b"clear, by an older release");
        write_sealed(&path, Kind::Membership, b"private key", &vault).unwrap();
        let key = *vault.current().borrow();
        assert_eq!(key_of(&path, Kind::Membership).unwrap(), Some(key));
        assert_eq!(read_sealed(&path, Kind::Membership, &vault).unwrap().unwrap(), b"private key");
        assert!(matches!(read(&path, Kind::Membership), Err(StoredError::Encrypted { .. })));
        let mut whole = fs::read(&path).unwrap();
        assert!(!whole.windows(7).any(|part| part == b"private"));
        // As another kind of file, checksum and all, it does not open.
        whole[6..8].copy_from_slice(&(Kind::Assignments as u16).to_be_bytes());
        let crc = checksum(&whole[..20], &whole[HEADER..]);
        whole[20..24].copy_from_slice(&crc.to_be_bytes());
        fs::write(&path, &whole).unwrap();
        assert!(matches!(read_sealed(&path, Kind::Assignments, &vault), Err(StoredError::Damaged { .. })));
        let other = Vault::open(&dir.path().join("other keys")).unwrap();
        assert!(matches!(read_sealed(&path, Kind::Assignments, &other), Err(StoredError::Encrypted { .. })));
    }
}
