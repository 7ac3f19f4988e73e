//! The cluster's gossip keys: one seals, all of them open.
//!
//! A rotation has no gap when it goes in three steps, each done on every host before the next one starts: the new
//! key is added beside the primary, then made the primary with the old one beside it, then the old one is dropped.

use std::fmt;

use zeroize::Zeroize;

/// The most keys that a [`Keyring`] holds.
pub const MAX_KEYS: usize = 3;

/// A symmetric key and the number that packets name it by. Its bytes are wiped when it goes and are never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    /// What packets sealed with this key carry in the clear. Never the same for two keys of a cluster.
    pub id: u32,
    /// The key itself, uniformly random.
    pub bytes: [u8; 32],
}

impl Key {
    /// A key from its parts.
    pub const fn new(id: u32, bytes: [u8; 32]) -> Self {
        Self { id, bytes }
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Why keys cannot stand together in a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyringError {
    /// More than [`MAX_KEYS`] keys.
    #[error("{0} keys in a ring that holds at most {MAX_KEYS}")]
    TooMany(usize),
    /// Two keys have this id.
    #[error("two keys have the id {0}")]
    DuplicateId(u32),
}

/// One to [`MAX_KEYS`] keys with different ids. Packets are sealed with the primary and opened with any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyring {
    /// Never empty; the primary is first.
    keys: Vec<Key>,
}

impl Keyring {
    /// A ring that seals with `primary` and opens also what was sealed with one of `others` (older keys, or the
    /// next one during a rotation).
    pub fn new(primary: Key, others: Vec<Key>) -> Result<Self, KeyringError> {
        let mut keys = Vec::with_capacity(1 + others.len());
        keys.push(primary);
        keys.extend(others);
        if keys.len() > MAX_KEYS {
            return Err(KeyringError::TooMany(keys.len()));
        }
        for (at, key) in keys.iter().enumerate() {
            if keys[..at].iter().any(|other| other.id == key.id) {
                return Err(KeyringError::DuplicateId(key.id));
            }
        }
        Ok(Self { keys })
    }

    /// A ring of one key.
    pub fn single(key: Key) -> Self {
        Self { keys: vec![key] }
    }

    /// The key that seals.
    pub fn primary(&self) -> &Key {
        &self.keys[0]
    }

    /// The key with this id, if the ring has it.
    pub fn get(&self, id: u32) -> Option<&Key> {
        self.keys.iter().find(|key| key.id == id)
    }

    /// The ids of all keys, the primary's first.
    pub fn ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.keys.iter().map(|key| key.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_has_few_keys_with_ids_of_their_own() {
        let key = |id: u32| Key::new(id, [id as u8; 32]);
        let ring = Keyring::new(key(3), vec![key(2), key(1)]).unwrap();
        assert_eq!(ring.primary().id, 3);
        assert_eq!(ring.ids().collect::<Vec<_>>(), [3, 2, 1]);
        assert_eq!(ring.get(2), Some(&key(2)));
        assert_eq!(ring.get(9), None);
        assert_eq!(Keyring::new(key(1), vec![key(2), key(1)]), Err(KeyringError::DuplicateId(1)));
        assert_eq!(Keyring::new(key(1), vec![key(2), key(3), key(4)]), Err(KeyringError::TooMany(4)));
    }

    #[test]
    fn debug_shows_no_key() {
        let text = format!("{:?}", Keyring::single(Key::new(7, [0xab; 32])));
        assert!(text.contains('7') && !text.contains("171") && !text.contains("ab"), "{text}");
    }
}
