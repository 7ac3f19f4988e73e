//! The keys under which the log and the snapshots lie on disk, and the sealing with them.
//!
//! The caller makes, keeps and rotates keys; this crate only uses what it is given. A file names its key in its
//! header; 0 is clear text. What is sealed is `nonce (24) · ciphertext · tag (16)`, XChaCha20-Poly1305. Each nonce is
//! drawn at random: 192 bits do not meet by chance, and nothing has to be remembered, so that neither a crash that
//! loses what was written, nor a restored backup, nor a cloned disk can make one come twice. The associated data name
//! the place (file, offset, record header): nothing can be moved to another place, another file or another member.

use std::fmt;
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::{collections::BTreeSet, fs::File};

use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{Key, Tag, XChaCha20Poly1305, XNonce};

/// What names clear text.
pub(crate) const CLEAR: u32 = 0;
const NONCE: usize = 24;
const TAG: usize = 16;
/// What sealing adds.
pub(crate) const OVERHEAD: usize = NONCE + TAG;

/// The keys of one member's files. Clones share them: what is [set](Self::set) on one counts for all.
#[derive(Clone, Default)]
pub struct Keyring {
    keys: Arc<RwLock<Vec<Arc<Cipher>>>>,
}

/// A key that can seal and open.
pub(crate) struct Cipher {
    pub(crate) id: u32,
    aead: XChaCha20Poly1305,
}

impl Keyring {
    /// No keys: what is written is clear text.
    pub fn clear() -> Self {
        Self::default()
    }

    /// New files are sealed with the first key, and what any of them has sealed can be read. Ids are not 0, and one
    /// never names two keys.
    pub fn new(keys: &[(u32, [u8; 32])]) -> Self {
        let ring = Self::clear();
        ring.set(keys);
        ring
    }

    /// Replaces the keys. Segments from the next one on are sealed with the new first key; see
    /// [`Raft::rekey`](crate::Raft::rekey) for having that at once. A key that files still name must stay: see
    /// [`keys_in_use`].
    pub fn set(&self, keys: &[(u32, [u8; 32])]) {
        assert!(keys.iter().all(|(id, _)| *id != CLEAR), "key id 0 means clear text");
        let cipher =
            |(id, key): &(u32, [u8; 32])| Arc::new(Cipher { id: *id, aead: XChaCha20Poly1305::new(&Key::from(*key)) });
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys.iter().map(cipher).collect();
    }

    /// The key for new files; `None` is clear text.
    pub(crate) fn current(&self) -> Option<Arc<Cipher>> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).first().cloned()
    }

    pub(crate) fn current_id(&self) -> u32 {
        self.current().map_or(CLEAR, |key| key.id)
    }

    /// The key of this id; `Ok(None)` is clear text, `Err` a key that is not at hand.
    pub(crate) fn get(&self, id: u32) -> Result<Option<Arc<Cipher>>, u32> {
        if id == CLEAR {
            return Ok(None);
        }
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.iter().find(|key| key.id == id).cloned().map(Some).ok_or(id)
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        f.debug_list().entries(keys.iter().map(|key| key.id)).finish()
    }
}

impl Cipher {
    /// Appends the sealed form of `plain` to `out`.
    pub(crate) fn seal(&self, out: &mut Vec<u8>, aad: &[u8], plain: &[u8]) -> io::Result<()> {
        let nonce: [u8; NONCE] = rand::random();
        out.extend_from_slice(&nonce);
        let start = out.len();
        out.extend_from_slice(plain);
        let tag = self
            .aead
            .encrypt_inout_detached(&XNonce::from(nonce), aad, out[start..].as_mut().into())
            .map_err(|_| io::Error::other("too much to encrypt in one piece"))?;
        out.extend_from_slice(&tag);
        Ok(())
    }

    /// What was sealed; `None` when it was not sealed with this key at this place.
    pub(crate) fn open(&self, aad: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, rest) = sealed.split_first_chunk::<NONCE>()?;
        let (body, tag) = rest.split_last_chunk::<TAG>()?;
        let mut plain = body.to_vec();
        let (nonce, tag) = (XNonce::from(*nonce), Tag::from(*tag));
        self.aead.decrypt_inout_detached(&nonce, aad, plain.as_mut_slice().into(), &tag).ok()?;
        Some(plain)
    }
}

/// The ids of the keys that segments and snapshots in a raft directory name, 0 for clear text among them. A file that is
/// no such file is passed over.
pub fn keys_in_use(dir: &Path) -> io::Result<BTreeSet<u32>> {
    let mut keys = BTreeSet::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("log-") && !name.starts_with("snapshot-") || name.ends_with(".new") {
            continue;
        }
        let mut head = [0; 16];
        let read = File::open(entry.path()).and_then(|mut file| file.read_exact(&mut head));
        match read {
            // In both kinds of files the key stands behind eight bytes of magic and four of format.
            Ok(()) => drop(keys.insert(u32::from_le_bytes([head[12], head[13], head[14], head[15]]))),
            // Purged while the directory was read, or too short to be one.
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_with_its_key_at_its_place_and_nowhere_else() {
        let ring = Keyring::new(&[(2, [2; 32]), (1, [1; 32])]);
        let current = ring.current().unwrap();
        assert_eq!((current.id, ring.current_id()), (2, 2));
        let mut sealed = Vec::new();
        current.seal(&mut sealed, b"here", b"a secret").unwrap();
        assert_eq!(sealed.len(), 8 + OVERHEAD);
        assert!(!sealed.windows(6).any(|part| part == b"secret"));
        assert_eq!(current.open(b"here", &sealed).unwrap(), b"a secret");
        assert!(current.open(b"there", &sealed).is_none());
        assert!(ring.get(1).unwrap().unwrap().open(b"here", &sealed).is_none());
        for at in 0..sealed.len() {
            let mut bent = sealed.clone();
            bent[at] ^= 1;
            assert!(current.open(b"here", &bent).is_none(), "byte {at}");
            assert!(current.open(b"here", &sealed[..at]).is_none(), "cut at {at}");
        }
        let mut again = Vec::new();
        current.seal(&mut again, b"here", b"a secret").unwrap();
        assert_ne!(sealed[..NONCE], again[..NONCE], "a nonce came twice");
        assert!(ring.get(CLEAR).unwrap().is_none());
        assert_eq!(ring.get(9).err(), Some(9));
        assert_eq!(format!("{ring:?}"), "[2, 1]");
    }
}
