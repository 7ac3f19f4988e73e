//! Sealing: each datagram is encrypted and authenticated with a cluster key, and opened once.
//!
//! ```text
//! datagram = "SG", format u8 = 1, key id u32, nonce 24, ciphertext, tag 16        (47 bytes around the packet)
//! nonce    = 16 random bytes of this process, counter u64
//! ```
//! XChaCha20-Poly1305; the associated data are the seven bytes of the header and the cluster id, so that a packet
//! of another cluster or another format opens nowhere. The counter in the nonce is also what the replay filter
//! looks at, and makes a nonce unique without a random number a packet.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};

use crate::keyring::{Key, Keyring};
use crate::replay::ReplayFilter;
use crate::wire;

const MAGIC: [u8; 2] = *b"SG";
const FORMAT: u8 = 1;
const HEADER_LEN: usize = 7;
const NONCE_LEN: usize = 24;
const TAG_LEN: usize = 16;

/// The largest datagram that is sent or accepted: 1400 bytes less an IPv6 and a UDP header, so that it is not
/// fragmented on the paths that clouds and tunnels leave.
pub const MAX_DATAGRAM: usize = 1400 - 40 - 8;
/// What sealing adds to a packet.
pub const OVERHEAD: usize = HEADER_LEN + NONCE_LEN + TAG_LEN;
/// The largest packet that fits into a sealed datagram.
pub const MAX_PACKET: usize = MAX_DATAGRAM - OVERHEAD;

/// Why a datagram was not opened. Nothing has changed; the sender is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Larger than [`MAX_DATAGRAM`].
    #[error("the datagram is larger than {MAX_DATAGRAM} bytes")]
    TooLarge,
    /// Not a sealed packet of a format that is known here.
    #[error("the datagram is not sealed in a known format")]
    NotSealed,
    /// Sealed with a key that is not in the ring.
    #[error("the datagram is sealed with the unknown key {0}")]
    UnknownKey(u32),
    /// The key's id is known, but the packet was not sealed with it, is damaged, or is of another cluster.
    #[error("the datagram is forged, damaged or from another cluster")]
    Forged,
    /// Sealed properly, but it does not say who sent it.
    #[error("the packet names no valid sender")]
    Malformed,
    /// Seen before, older than what can be known, or from an earlier boot of its sender.
    #[error("the packet was seen before or is of an earlier boot")]
    Replayed,
}

/// A packet that could not be sealed: it is larger than [`MAX_PACKET`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a packet of {0} bytes is larger than {MAX_PACKET} bytes")]
pub struct SealError(pub usize);

/// Seals and opens one node's datagrams.
#[derive(Debug)]
pub struct Sealer {
    keys: Keyring,
    cluster_id: String,
    session: [u8; 16],
    counter: u64,
    replay: ReplayFilter,
}

impl Sealer {
    /// `session` must be random and never used again. `first_counter` is the wall clock in microseconds: it must be
    /// higher than any counter that this node used in this boot generation.
    pub fn new(keys: Keyring, cluster_id: String, session: [u8; 16], first_counter: u64) -> Self {
        Self { keys, cluster_id, session, counter: first_counter, replay: ReplayFilter::default() }
    }

    /// Seals with the new primary from now on, and opens with the keys of `keys` only.
    pub fn set_keys(&mut self, keys: Keyring) {
        self.keys = keys;
    }

    /// The datagram for `packet`.
    pub fn seal(&mut self, packet: &[u8]) -> Result<Vec<u8>, SealError> {
        if packet.len() > MAX_PACKET {
            return Err(SealError(packet.len()));
        }
        self.counter += 1;
        let key = self.keys.primary();
        let header = header(key.id);
        let mut nonce = [0; NONCE_LEN];
        nonce[..16].copy_from_slice(&self.session);
        nonce[16..].copy_from_slice(&self.counter.to_be_bytes());
        let aad = self.associated_data(&header);
        let sealed = cipher(key)
            .encrypt(&XNonce::from(nonce), Payload { msg: packet, aad: &aad })
            // The cipher refuses only lengths far above ours.
            .map_err(|_| SealError(packet.len()))?;
        let mut datagram = Vec::with_capacity(packet.len() + OVERHEAD);
        datagram.extend_from_slice(&header);
        datagram.extend_from_slice(&nonce);
        datagram.extend_from_slice(&sealed);
        Ok(datagram)
    }

    /// The packet in `datagram`. Each opens once.
    pub fn open(&mut self, datagram: &[u8]) -> Result<Vec<u8>, OpenError> {
        if datagram.len() > MAX_DATAGRAM {
            return Err(OpenError::TooLarge);
        }
        let (head, rest) = datagram.split_first_chunk::<HEADER_LEN>().ok_or(OpenError::NotSealed)?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>().ok_or(OpenError::NotSealed)?;
        let [m0, m1, format, k0, k1, k2, k3] = *head;
        if [m0, m1] != MAGIC || format != FORMAT || sealed.len() < TAG_LEN {
            return Err(OpenError::NotSealed);
        }
        let key_id = u32::from_be_bytes([k0, k1, k2, k3]);
        let key = self.keys.get(key_id).ok_or(OpenError::UnknownKey(key_id))?;
        let aad = self.associated_data(head);
        let packet = cipher(key)
            .decrypt(&XNonce::from(*nonce), Payload { msg: sealed, aad: &aad })
            .map_err(|_| OpenError::Forged)?;
        let sender = wire::read_sender(&packet).map_err(|_| OpenError::Malformed)?;
        let mut counter = [0; 8];
        counter.copy_from_slice(&nonce[16..]);
        let counter = u64::from_be_bytes(counter);
        if !self.replay.accept(sender.node_id(), sender.identity.generation, counter) {
            return Err(OpenError::Replayed);
        }
        Ok(packet)
    }

    fn associated_data(&self, header: &[u8; HEADER_LEN]) -> Vec<u8> {
        let mut aad = Vec::with_capacity(HEADER_LEN + self.cluster_id.len());
        aad.extend_from_slice(header);
        aad.extend_from_slice(self.cluster_id.as_bytes());
        aad
    }
}

fn header(key_id: u32) -> [u8; HEADER_LEN] {
    let [k0, k1, k2, k3] = key_id.to_be_bytes();
    [MAGIC[0], MAGIC[1], FORMAT, k0, k1, k2, k3]
}

fn cipher(key: &Key) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(&chacha20poly1305::Key::from(key.bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Identity, PeerId};
    use crate::wire::Packet;
    use foca::{Header, Message};
    use proptest::prelude::*;

    fn key(id: u32) -> Key {
        Key::new(id, [id as u8; 32])
    }

    fn sealer(primary: u32, others: &[u32], cluster: &str) -> Sealer {
        let others = others.iter().map(|id| key(*id)).collect();
        Sealer::new(Keyring::new(key(primary), others).unwrap(), cluster.to_owned(), [primary as u8; 16], 1_000)
    }

    fn packet(generation: u64) -> Vec<u8> {
        let addr = "10.0.0.1:2377".parse().unwrap();
        let src = PeerId::new(Identity { node_id: "n1".to_owned(), addr, generation });
        let header = Header { src, src_incarnation: 0, dst: PeerId::anyone_at(addr), message: Message::Announce };
        Packet { header, members: Vec::new(), exchange: None }.write().unwrap()
    }

    #[test]
    fn a_packet_opens_once_and_only_where_it_should() {
        let mut sender = sealer(1, &[], "c1");
        let datagram = sender.seal(&packet(1)).unwrap();
        assert_eq!(datagram.len(), packet(1).len() + OVERHEAD);

        let mut receiver = sealer(1, &[], "c1");
        assert_eq!(receiver.open(&datagram).as_deref(), Ok(&packet(1)[..]));
        assert_eq!(receiver.open(&datagram), Err(OpenError::Replayed));
        assert_eq!(sealer(1, &[], "c2").open(&datagram), Err(OpenError::Forged), "another cluster");
        assert_eq!(sealer(2, &[], "c1").open(&datagram), Err(OpenError::UnknownKey(1)));
        assert_eq!(receiver.open(&packet(1)), Err(OpenError::NotSealed));
        assert_eq!(receiver.open(&[]), Err(OpenError::NotSealed));
        assert_eq!(receiver.open(&[0; MAX_DATAGRAM + 1]), Err(OpenError::TooLarge));

        let newer = sender.seal(&packet(2)).unwrap();
        let older = sender.seal(&packet(1)).unwrap();
        assert!(receiver.open(&newer).is_ok());
        assert_eq!(receiver.open(&older), Err(OpenError::Replayed), "an earlier boot has nothing to say any more");
    }

    #[test]
    fn the_largest_packet_fills_the_datagram() {
        let mut sender = sealer(1, &[], "c1");
        assert_eq!(sender.seal(&[0; MAX_PACKET]).map(|d| d.len()), Ok(MAX_DATAGRAM));
        assert_eq!(sender.seal(&[0; MAX_PACKET + 1]), Err(SealError(MAX_PACKET + 1)));
    }

    #[test]
    fn every_step_of_a_rotation_understands_its_neighbours() {
        let steps: [(u32, &[u32]); 4] = [(1, &[]), (1, &[2]), (2, &[1]), (2, &[])];
        for pair in steps.windows(2) {
            for (from, to) in [(pair[0], pair[1]), (pair[1], pair[0])] {
                let datagram = sealer(from.0, from.1, "c").seal(&packet(1)).unwrap();
                assert!(sealer(to.0, to.1, "c").open(&datagram).is_ok(), "{from:?} to {to:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_damage_is_seen(at in 0_usize..1_000, flip in 1_u8..=255) {
            let mut datagram = sealer(1, &[], "c").seal(&packet(1)).unwrap();
            let at = at % datagram.len();
            datagram[at] ^= flip;
            prop_assert!(sealer(1, &[], "c").open(&datagram).is_err());
        }

        #[test]
        fn garbage_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(sealer(1, &[], "c").open(&bytes).is_err());
        }
    }
}
