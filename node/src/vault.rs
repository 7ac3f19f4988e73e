//! The keys of this node's own files, and the lock on them.
//!
//! Each node has data keys, made at random, for Raft's log, the membership (with the private key of its certificate) and
//! the agent's cache. They lie in `identity/keys`, wrapped by a key-encryption key. Without autolock that key lies
//! beside them: what is wrapped can then be read by who has the whole directory, and a later autolock needs to seal
//! only this one file anew. With autolock the key-encryption key is the cluster's unlock key, which is on no disk in
//! the clear; a manager that starts is locked until somebody brings it.
//!
//! `identity/keys` is replaced as a whole, so that there is always either the old one or the new one, and each opens
//! with the key that it was made for. A new key-encryption key comes with a new data key: the one before was on the
//! disk under another key, perhaps in the clear. It stays to read what it has sealed, until nothing names it.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use prost::Message;
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::stored::{self, Kind, StoredError};

const NONCE: usize = 24;
const KEY: usize = 32;
const PREFIX: &str = "SWMKEY-1-";

/// `identity/keys`.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
struct KeyFile {
    /// The data keys, the one for new files first.
    #[prost(message, repeated, tag = "1")]
    keys: Vec<WrappedKey>,
    /// The key-encryption key; empty while that is the cluster's unlock key.
    #[prost(bytes = "vec", tag = "2")]
    kek: Vec<u8>,
    /// Version of the cluster's unlock key, or of its absence, that this follows; 0 before the node has heard of any.
    #[prost(uint64, tag = "3")]
    version: u64,
}

/// A data key.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
struct WrappedKey {
    /// What files name it by; random, not 0.
    #[prost(uint32, tag = "1")]
    id: u32,
    /// Nonce, ciphertext, tag.
    #[prost(bytes = "vec", tag = "2")]
    sealed: Vec<u8>,
}

/// The cluster's unlock key. Never printed but by [`UnlockKey::print`].
#[derive(Clone, PartialEq, Eq)]
pub struct UnlockKey(Zeroizing<[u8; KEY]>);

impl UnlockKey {
    /// From the bytes that the cluster keeps.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self(Zeroizing::new(bytes.try_into().ok()?)))
    }

    /// As people are given it: `SWMKEY-1-` and 43 characters of base64, as Docker prints it.
    pub fn print(&self) -> String {
        format!("{PREFIX}{}", STANDARD_NO_PAD.encode(*self.0))
    }

    /// Reads what [`print`](Self::print) has written.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = Zeroizing::new(STANDARD_NO_PAD.decode(text.trim().strip_prefix(PREFIX)?).ok()?);
        Self::from_bytes(&bytes)
    }
}

impl fmt::Debug for UnlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UnlockKey")
    }
}

/// The key does not fit.
#[derive(Debug, thiserror::Error)]
#[error("the key does not open this node's files")]
pub struct WrongKey;

/// What the cluster wants of a node's keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The unlock key to wrap with; `None`: none is needed.
    pub lock: Option<UnlockKey>,
    /// Version of that.
    pub version: u64,
}

/// This node's keys. A clone is a handle to the same ones.
#[derive(Clone)]
pub struct Vault {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    state: Mutex<State>,
    /// For the log.
    ring: raft::Keyring,
    /// Id of the key for new files, as it changes.
    current: watch::Sender<u32>,
}

enum State {
    Locked(KeyFile),
    Open(Opened),
}

#[derive(Clone)]
struct Opened {
    kek: Zeroizing<[u8; KEY]>,
    /// Whether the key-encryption key must not be on disk.
    locked: bool,
    version: u64,
    /// The one for new files first; never empty.
    keys: Vec<(u32, Zeroizing<[u8; KEY]>)>,
}

impl Opened {
    fn fresh() -> Self {
        Self { kek: Zeroizing::new(rand::random()), locked: false, version: 0, keys: vec![new_key()] }
    }

    fn to_file(&self) -> KeyFile {
        let keys = self.keys.iter().map(|(id, key)| WrappedKey { id: *id, sealed: wrap(&self.kek, *id, key) });
        let kek = if self.locked { Vec::new() } else { self.kek.to_vec() };
        KeyFile { keys: keys.collect(), kek, version: self.version }
    }

    fn from_file(file: &KeyFile, kek: &[u8; KEY], locked: bool) -> Option<Self> {
        let keys = file.keys.iter().map(|wrapped| Some((wrapped.id, unwrap(kek, wrapped)?)));
        let keys = keys.collect::<Option<Vec<_>>>().filter(|keys| !keys.is_empty())?;
        Some(Self { kek: Zeroizing::new(*kek), locked, version: file.version, keys })
    }
}

fn new_key() -> (u32, Zeroizing<[u8; KEY]>) {
    (rand::random_range(1..=u32::MAX), Zeroizing::new(rand::random()))
}

impl Vault {
    /// Reads the keys at `path`, or makes the first ones.
    pub fn open(path: &Path) -> Result<Self, StoredError> {
        let damaged =
            |reason: &str| StoredError::Damaged { path: path.to_path_buf(), offset: 24, reason: reason.to_owned() };
        let state = match stored::read(path, Kind::Keys)? {
            None => {
                let opened = Opened::fresh();
                save(path, &opened)?;
                State::Open(opened)
            }
            Some(bytes) => {
                let bytes = Zeroizing::new(bytes);
                let file = KeyFile::decode(bytes.as_slice()).map_err(|error| damaged(&error.to_string()))?;
                match <[u8; KEY]>::try_from(file.kek.as_slice()) {
                    Ok(kek) => State::Open(
                        Opened::from_file(&file, &kek, false).ok_or_else(|| damaged("the keys do not open"))?,
                    ),
                    Err(_) if file.kek.is_empty() => State::Locked(file),
                    Err(_) => return Err(damaged("the key of the keys has a wrong length")),
                }
            }
        };
        let (ring, current) = (raft::Keyring::clear(), watch::Sender::new(0));
        let vault =
            Self { inner: Arc::new(Inner { path: path.to_path_buf(), state: Mutex::new(state), ring, current }) };
        vault.publish(&vault.state());
        Ok(vault)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, state: &State) {
        let State::Open(opened) = state else { return };
        let keys: Zeroizing<Vec<(u32, [u8; KEY])>> =
            Zeroizing::new(opened.keys.iter().map(|(id, key)| (*id, **key)).collect());
        self.inner.ring.set(&keys);
        self.inner.current.send_replace(opened.keys[0].0);
    }

    /// Whether the unlock key is needed before anything can be read.
    pub fn is_locked(&self) -> bool {
        matches!(&*self.state(), State::Locked(_))
    }

    /// Opens the keys. One that is open already stays so.
    pub fn unlock(&self, key: &UnlockKey) -> Result<(), WrongKey> {
        let mut state = self.state();
        if let State::Locked(file) = &*state {
            *state = State::Open(Opened::from_file(file, &key.0, true).ok_or(WrongKey)?);
            self.publish(&state);
        }
        Ok(())
    }

    /// The keys for Raft's files; follows what changes here.
    pub fn ring(&self) -> raft::Keyring {
        self.inner.ring.clone()
    }

    /// Id of the key for new files, as it changes; 0 while locked.
    pub fn current(&self) -> watch::Receiver<u32> {
        self.inner.current.subscribe()
    }

    /// Wraps the keys as the cluster wants it, durably, and makes a new one for what is written from now on. Answers
    /// whether there was anything to do. On an error everything is as before.
    ///
    /// An older version than the one followed is not followed: a manager that has just started has not heard yet of all
    /// that it knew before, and must not take off a lock that it has put on.
    pub fn follow(&self, wanted: &Wanted) -> Result<bool, StoredError> {
        let mut state = self.state();
        let State::Open(opened) = &*state else { return Ok(false) };
        if wanted.version < opened.version {
            return Ok(false);
        }
        let same = match &wanted.lock {
            Some(key) => opened.locked && opened.kek == key.0,
            None => !opened.locked,
        };
        if same && opened.version == wanted.version {
            return Ok(false);
        }
        let mut next = opened.clone();
        next.version = wanted.version;
        if !same {
            next.locked = wanted.lock.is_some();
            next.kek = wanted.lock.as_ref().map_or_else(|| Zeroizing::new(rand::random()), |key| key.0.clone());
            // The keys so far were on disk under another key. A lock that goes takes none with it.
            if next.locked {
                next.keys.insert(0, new_key());
            }
        }
        save(&self.inner.path, &next)?;
        *state = State::Open(next);
        self.publish(&state);
        Ok(!same)
    }

    /// Lets any version be followed next: another life of the cluster, out of a survivor or a backup, may have a lower
    /// one, and a worker has none. Until then everything stays wrapped as it is.
    pub fn forget_version(&self) -> Result<(), StoredError> {
        let mut state = self.state();
        let State::Open(opened) = &*state else { return Ok(()) };
        if opened.version == 0 {
            return Ok(());
        }
        let next = Opened { version: 0, ..opened.clone() };
        save(&self.inner.path, &next)?;
        *state = State::Open(next);
        Ok(())
    }

    /// Drops the keys that no file names any more.
    pub fn retire(&self, in_use: &BTreeSet<u32>) -> Result<(), StoredError> {
        let mut state = self.state();
        let State::Open(opened) = &*state else { return Ok(()) };
        let mut next = opened.clone();
        let current = next.keys[0].0;
        next.keys.retain(|(id, _)| *id == current || in_use.contains(id));
        if next.keys.len() == opened.keys.len() {
            return Ok(());
        }
        save(&self.inner.path, &next)?;
        *state = State::Open(next);
        self.publish(&state);
        Ok(())
    }

    /// New keys, for a node whose files are gone.
    pub fn reset(&self) -> Result<(), StoredError> {
        let mut state = self.state();
        let fresh = Opened::fresh();
        save(&self.inner.path, &fresh)?;
        *state = State::Open(fresh);
        self.publish(&state);
        Ok(())
    }

    /// Seals with the key for new files; its id, and nonce, ciphertext and tag. `None` while locked.
    pub(crate) fn seal(&self, aad: impl FnOnce(u32) -> Vec<u8>, plain: &[u8]) -> Option<(u32, Vec<u8>)> {
        let State::Open(opened) = &*self.state() else { return None };
        let (id, key) = &opened.keys[0];
        Some((*id, seal(key, &aad(*id), plain)))
    }

    /// Opens what was sealed; `Err` with whether the key is at hand.
    pub(crate) fn unseal(&self, id: u32, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, NotOpened> {
        let State::Open(opened) = &*self.state() else { return Err(NotOpened::NoKey) };
        let (_, key) = opened.keys.iter().find(|(known, _)| *known == id).ok_or(NotOpened::NoKey)?;
        open(key, aad, sealed).ok_or(NotOpened::Forged)
    }
}

/// Why something was not unsealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotOpened {
    /// The key that it names is not at hand.
    NoKey,
    /// It was not sealed there with that key.
    Forged,
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault")
            .field("path", &self.inner.path)
            .field("locked", &self.is_locked())
            .finish_non_exhaustive()
    }
}

fn save(path: &Path, opened: &Opened) -> Result<(), StoredError> {
    stored::write(path, Kind::Keys, &Zeroizing::new(opened.to_file().encode_to_vec()))
}

fn seal(key: &[u8; KEY], aad: &[u8], plain: &[u8]) -> Vec<u8> {
    let nonce: [u8; NONCE] = rand::random();
    let sealed = XChaCha20Poly1305::new(&Key::from(*key))
        .encrypt(&XNonce::from(nonce), Payload { msg: plain, aad })
        .unwrap_or_else(|_| unreachable!("a file of at most 256 MiB is far below what the cipher takes"));
    [&nonce[..], &sealed].concat()
}

fn open(key: &[u8; KEY], aad: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
    let (nonce, body) = sealed.split_first_chunk::<NONCE>()?;
    XChaCha20Poly1305::new(&Key::from(*key)).decrypt(&XNonce::from(*nonce), Payload { msg: body, aad }).ok()
}

fn wrapping_aad(id: u32) -> Vec<u8> {
    [&b"shoal data key"[..], &id.to_be_bytes()].concat()
}

fn wrap(kek: &[u8; KEY], id: u32, key: &[u8; KEY]) -> Vec<u8> {
    seal(kek, &wrapping_aad(id), key)
}

fn unwrap(kek: &[u8; KEY], wrapped: &WrappedKey) -> Option<Zeroizing<[u8; KEY]>> {
    let plain = Zeroizing::new(open(kek, &wrapping_aad(wrapped.id), &wrapped.sealed)?);
    Some(Zeroizing::new(plain.as_slice().try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> UnlockKey {
        UnlockKey::from_bytes(&[byte; KEY]).unwrap()
    }

    fn sealed(vault: &Vault) -> (u32, Vec<u8>) {
        vault.seal(|_| b"here".to_vec(), b"secret").unwrap()
    }

    #[test]
    fn an_unlock_key_is_printed_as_dockers_and_read_back() {
        let text = key(7).print();
        assert!(text.starts_with("SWMKEY-1-") && text.len() == 9 + 43, "{text}");
        assert_eq!(UnlockKey::parse(&format!(" {text}\n")), Some(key(7)));
        for wrong in ["", "SWMKEY-1-", "SWMKEY-2-AAAA", &text[..51], &text.replace("SWM", "XXX")] {
            assert_eq!(UnlockKey::parse(wrong), None, "{wrong}");
        }
        assert_eq!(format!("{:?}", key(7)), "UnlockKey");
    }

    #[test]
    fn locked_keys_open_with_their_unlock_key_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let vault = Vault::open(&path).unwrap();
        let before = sealed(&vault);
        assert!(!Vault::open(&path).unwrap().is_locked(), "without autolock nobody is asked");
        assert!(vault.follow(&Wanted { lock: Some(key(1)), version: 1 }).unwrap());
        assert!(!vault.follow(&Wanted { lock: Some(key(1)), version: 1 }).unwrap(), "done already");
        let after = sealed(&vault);
        assert_ne!(before.0, after.0, "the old key was on the disk in the clear");

        let again = Vault::open(&path).unwrap();
        assert!(again.is_locked() && again.seal(|_| Vec::new(), b"x").is_none());
        assert_eq!(again.unseal(after.0, b"here", &after.1), Err(NotOpened::NoKey));
        again.unlock(&key(2)).unwrap_err();
        assert!(again.is_locked());
        again.unlock(&key(1)).unwrap();
        for (id, sealed) in [&before, &after] {
            assert_eq!(again.unseal(*id, b"here", sealed).unwrap(), b"secret");
            assert_eq!(again.unseal(*id, b"there", sealed), Err(NotOpened::Forged));
        }
        // Only what is in use stays.
        again.retire(&[after.0, 5].into()).unwrap();
        assert_eq!(again.unseal(before.0, b"here", &before.1), Err(NotOpened::NoKey));
        // And the lock may go again.
        assert!(again.follow(&Wanted { lock: None, version: 2 }).unwrap());
        let open = Vault::open(&path).unwrap();
        assert_eq!(open.unseal(after.0, b"here", &after.1).unwrap(), b"secret");
    }

    /// The file is replaced as a whole, so a kill leaves one of two, and each opens with its own unlock key.
    #[test]
    fn a_kill_in_a_rotation_leaves_one_that_opens() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let vault = Vault::open(&path).unwrap();
        vault.follow(&Wanted { lock: Some(key(1)), version: 1 }).unwrap();
        let old = std::fs::read(&path).unwrap();
        let data = sealed(&vault);
        vault.follow(&Wanted { lock: Some(key(2)), version: 2 }).unwrap();
        let new = std::fs::read(&path).unwrap();
        for (file, unlock) in [(&old, key(1)), (&new, key(2))] {
            // Whatever a killed write has left beside it is not looked at.
            std::fs::write(dir.path().join("keys.tmp"), &new[..new.len() / 2]).unwrap();
            std::fs::write(&path, file).unwrap();
            let vault = Vault::open(&path).unwrap();
            vault.unlock(&unlock).unwrap();
            assert_eq!(vault.unseal(data.0, b"here", &data.1).unwrap(), b"secret");
            // One that was down in the rotation picks it up.
            vault.follow(&Wanted { lock: Some(key(2)), version: 2 }).unwrap();
            let now = Vault::open(&path).unwrap();
            now.unlock(&key(1)).unwrap_err();
            now.unlock(&key(2)).unwrap();
        }
    }

    #[test]
    fn a_manager_that_has_not_caught_up_keeps_its_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let vault = Vault::open(&path).unwrap();
        vault.follow(&Wanted { lock: Some(key(2)), version: 3 }).unwrap();
        let locked_with = |unlock: UnlockKey| Vault::open(&path).unwrap().unlock(&unlock).is_ok();
        // What its log says so far: before the rotation, and before autolock was on.
        for (lock, version) in [(Some(key(1)), 2), (None, 1), (None, 0)] {
            assert!(!vault.follow(&Wanted { lock, version }).unwrap());
            assert!(Vault::open(&path).unwrap().is_locked() && locked_with(key(2)), "version {version}");
        }
        // Another life of the cluster counts anew.
        vault.forget_version().unwrap();
        assert!(Vault::open(&path).unwrap().is_locked() && locked_with(key(2)), "nothing else has changed");
        assert!(vault.follow(&Wanted { lock: Some(key(1)), version: 2 }).unwrap());
        assert!(locked_with(key(1)));
        // And a worker, which has no lock, has no version either.
        vault.forget_version().unwrap();
        assert!(vault.follow(&Wanted { lock: None, version: 0 }).unwrap());
        assert!(!Vault::open(&path).unwrap().is_locked());
    }

    #[test]
    fn every_flipped_byte_of_the_keys_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        Vault::open(&path).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bent = whole.clone();
            bent[at] ^= 1;
            std::fs::write(&path, bent).unwrap();
            assert!(matches!(Vault::open(&path), Err(StoredError::Damaged { .. })), "byte {at}");
        }
    }
}
