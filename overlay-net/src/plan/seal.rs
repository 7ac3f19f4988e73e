//! What packets of encrypted networks are sealed with, as a value; and the steps that lead from one such value to another.
//!
//! A host has up to two WireGuard devices, each with a key pair of its own: that of the epoch in use, and that of the
//! epoch before until nobody needs it any more. Both have the same inner address, and the devices of an epoch speak only
//! with each other. Which one leads to another host is a route; both of them take what comes. So a rotation loses nothing:
//! a route moves to the newer device once the two hosts have shaken hands there, which each side sees for itself.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::config::{Sealing, SealingKey};

/// One of a host's two devices: epochs take turns.
pub type Slot = u8;
/// A public key.
pub type Key = [u8; 32];

/// Seconds without a handshake after which nobody uses a device any more: a session that is used is made anew every two
/// minutes, and none is older than three.
const UNUSED_AFTER: u64 = 300;

/// The slot of an epoch.
#[must_use]
pub fn slot_of(epoch: u64) -> Slot {
    u8::from(epoch % 2 == 1)
}

/// The UDP ports of the two devices, by their slots: those that follow the port of VXLAN.
#[must_use]
pub fn ports(data_path_port: u16) -> [u16; 2] {
    [data_path_port.saturating_add(1), data_path_port.saturating_add(2)]
}

/// The devices, and which of them leads where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seals {
    /// The devices that are there.
    pub devices: BTreeMap<Slot, Device>,
    /// The device that leads to each host.
    pub routes: BTreeMap<Ipv4Addr, Slot>,
}

/// A WireGuard device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    /// The epoch that its key is of; 0 for one that is half made.
    pub epoch: u64,
    /// Its public key; zeros for none.
    pub key: Key,
    /// What it is set to.
    pub tuning: Tuning,
    /// The other hosts that it knows, by their public keys.
    pub peers: BTreeMap<Key, Peer>,
}

/// What a device is set to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tuning {
    /// It is set up.
    pub up: bool,
    /// MTU in bytes.
    pub mtu: u32,
    /// Its UDP port in the host's namespace.
    pub port: u16,
    /// Its inner address: the host's data path address, in a namespace where nothing else has one.
    pub address: Option<Ipv4Addr>,
}

/// Another host, as a device knows it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Peer {
    /// The only address that it may send from and be sent to.
    pub address: Option<Ipv4Addr>,
    /// Where its device is on the underlay. The kernel follows a host that answers from another of its addresses.
    pub endpoint: Option<SocketAddrV4>,
    /// It is spoken to although there is nothing to send, until there was a handshake.
    pub eager: bool,
    /// The second (of Unix time) of the last handshake; 0 before the first.
    pub met: u64,
}

/// What is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    /// Epoch, and the other hosts' keys.
    pub sealing: &'a Sealing,
    /// This host's data path address.
    pub address: Ipv4Addr,
    /// The UDP port of VXLAN on all hosts.
    pub data_path_port: u16,
    /// MTU of what carries the devices' packets, less what they add.
    pub mtu: u32,
}

/// One step. Those of one list are taken in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Removes a device.
    DeleteDevice {
        /// Its slot.
        slot: Slot,
        /// It has served, and nobody uses it any more. Otherwise it is none of those that are wanted.
        retired: bool,
    },
    /// Makes a device with a new key.
    CreateDevice {
        /// Its slot.
        slot: Slot,
        /// The epoch.
        epoch: u64,
        /// The rest.
        tuning: Tuning,
    },
    /// Sets a device to this.
    Tune {
        /// Its slot.
        slot: Slot,
        /// What.
        tuning: Tuning,
    },
    /// Removes a host from a device.
    DeletePeer {
        /// The device.
        slot: Slot,
        /// The host's key.
        key: Key,
    },
    /// Lets a device know a host.
    SetPeer {
        /// The device.
        slot: Slot,
        /// The host's key.
        key: Key,
        /// What is known of it.
        peer: Peer,
    },
    /// Tells a device something new of a host that it knows.
    ChangePeer {
        /// The device.
        slot: Slot,
        /// The host's key.
        key: Key,
        /// What is known of it.
        peer: Peer,
    },
    /// Removes the way to a host.
    DeleteRoute(Ipv4Addr),
    /// Has the way to a host lead through a device.
    SetRoute {
        /// The host.
        address: Ipv4Addr,
        /// The device.
        slot: Slot,
        /// It leads through the other one until then. Otherwise there is none.
        moved: bool,
    },
}

impl Step {
    /// It repairs what nobody of ours has changed, where the wish is the same as before. The other ones come by themselves.
    #[must_use]
    pub fn repairs(&self) -> bool {
        !matches!(
            self,
            Step::DeleteDevice { retired: true, .. } | Step::ChangePeer { .. } | Step::SetRoute { moved: true, .. }
        )
    }
}

/// The key of an epoch.
fn key_of(keys: &[SealingKey], epoch: u64) -> Option<Key> {
    keys.iter().find(|key| key.epoch == epoch && epoch != 0).map(|key| key.key)
}

impl Seals {
    /// The public keys of these devices, as other hosts are to know them.
    #[must_use]
    pub fn keys(&self) -> Vec<SealingKey> {
        let whole = self.devices.values().filter(|device| device.epoch != 0 && device.key != [0; 32]);
        let mut keys: Vec<SealingKey> =
            whole.map(|device| SealingKey { epoch: device.epoch, key: device.key }).collect();
        keys.sort_unstable();
        keys
    }

    /// Whether packets can be sealed with the key of this epoch.
    #[must_use]
    pub fn can_seal(&self, epoch: u64) -> bool {
        let device = self.devices.get(&slot_of(epoch));
        device.is_some_and(|device| epoch != 0 && device.epoch == epoch && device.key != [0; 32] && device.tuning.up)
    }

    /// The steps from what is there to what is wanted, at this second of Unix time.
    #[must_use]
    pub fn steps_to(&self, wish: &Wish<'_>, now: u64) -> Vec<Step> {
        let epoch = wish.sealing.epoch;
        let (current, spare) = (slot_of(epoch), 1 - slot_of(epoch));
        let tuning = |slot: Slot| Tuning {
            up: true,
            mtu: wish.mtu,
            port: ports(wish.data_path_port)[usize::from(slot)],
            address: Some(wish.address),
        };
        let whole = |device: &&Device, epoch: u64| device.epoch == epoch && epoch != 0 && device.key != [0; 32];
        let newer = self.devices.get(&current).filter(|device| whole(device, epoch));
        let mut older = self.devices.get(&spare).filter(|device| whole(device, epoch.saturating_sub(1)));
        let mut steps = Vec::new();
        if older.is_some_and(|device| newer.is_some() && self.is_unused(device, wish, now)) {
            older = None;
            steps.push(Step::DeleteDevice { slot: spare, retired: true });
        } else if older.is_none() && self.devices.contains_key(&spare) {
            steps.push(Step::DeleteDevice { slot: spare, retired: false });
        }
        match newer {
            Some(device) if device.tuning == tuning(current) => {}
            Some(_) => steps.push(Step::Tune { slot: current, tuning: tuning(current) }),
            None => {
                if self.devices.contains_key(&current) {
                    steps.push(Step::DeleteDevice { slot: current, retired: false });
                }
                steps.push(Step::CreateDevice { slot: current, epoch, tuning: tuning(current) });
            }
        }
        if older.is_some_and(|device| device.tuning != tuning(spare)) {
            steps.push(Step::Tune { slot: spare, tuning: tuning(spare) });
        }
        let nothing = Device::default();
        self.peers(newer.unwrap_or(&nothing), current, epoch, older.is_some(), wish, &mut steps);
        if let Some(device) = older {
            self.peers(device, spare, epoch.saturating_sub(1), false, wish, &mut steps);
        }
        self.ways(newer, older, wish, &mut steps);
        steps
    }

    /// Whether nothing is sent or can come through the older device: every host is reached through the newer one, and for
    /// minutes nobody has asked for a session there.
    fn is_unused(&self, older: &Device, wish: &Wish<'_>, now: u64) -> bool {
        let newer = slot_of(wish.sealing.epoch);
        let moved = |host: &Ipv4Addr| self.routes.get(host) == Some(&newer);
        let mut others = wish.sealing.peers.iter().filter(|(host, keys)| **host != wish.address && !keys.is_empty());
        others.all(|(host, _)| moved(host))
            && older.peers.values().all(|peer| peer.met.saturating_add(UNUSED_AFTER) <= now)
    }

    /// What one device is to know of the other hosts: nothing before the managers know its own key. Whoever is spoken to is
    /// shown that, and could say first that it is his.
    fn peers(
        &self,
        device: &Device,
        slot: Slot,
        epoch: u64,
        in_rotation: bool,
        wish: &Wish<'_>,
        steps: &mut Vec<Step>,
    ) {
        let port = ports(wish.data_path_port)[usize::from(slot)];
        let own = wish.sealing.peers.get(&wish.address).and_then(|keys| key_of(keys, epoch));
        let is_known = own == Some(device.key);
        let others = wish.sealing.peers.iter().filter(|(host, _)| is_known && **host != wish.address);
        let wanted: BTreeMap<Key, Peer> = others
            .filter_map(|(host, keys)| {
                let key = key_of(keys, epoch).filter(|key| *key != device.key)?;
                let met = device.peers.get(&key).map_or(0, |peer| peer.met);
                let eager = in_rotation && met == 0;
                Some((key, Peer { address: Some(*host), endpoint: Some(SocketAddrV4::new(*host, port)), eager, met }))
            })
            .collect();
        for key in device.peers.keys().filter(|key| !wanted.contains_key(*key)) {
            steps.push(Step::DeletePeer { slot, key: *key });
        }
        for (key, peer) in wanted {
            match device.peers.get(&key) {
                Some(known) if *known == peer => {}
                Some(known) if known.address == peer.address => steps.push(Step::ChangePeer { slot, key, peer }),
                _ => steps.push(Step::SetPeer { slot, key, peer }),
            }
        }
    }

    /// Which device leads to each host: the newer one after a handshake, or where there is no choice.
    fn ways(&self, newer: Option<&Device>, older: Option<&Device>, wish: &Wish<'_>, steps: &mut Vec<Step>) {
        let epoch = wish.sealing.epoch;
        let current = slot_of(epoch);
        let mut wanted = BTreeMap::new();
        for (host, keys) in wish.sealing.peers.iter().filter(|(host, _)| **host != wish.address) {
            let new = key_of(keys, epoch);
            let met = |key: Key| newer.and_then(|device| device.peers.get(&key)).is_some_and(|peer| peer.met != 0);
            let old = older.is_some() && key_of(keys, epoch.saturating_sub(1)).is_some();
            match new {
                Some(key) if !old || met(key) => drop(wanted.insert(*host, current)),
                _ if old => drop(wanted.insert(*host, 1 - current)),
                _ => {}
            }
        }
        for host in self.routes.keys().filter(|host| !wanted.contains_key(*host)) {
            steps.push(Step::DeleteRoute(*host));
        }
        for (address, slot) in wanted {
            match self.routes.get(&address) {
                // What goes with its device is made anew with the next one.
                Some(known) if *known == slot && (slot != current || newer.is_some()) => {}
                known => steps.push(Step::SetRoute { address, slot, moved: known.is_some_and(|known| *known != slot) }),
            }
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = |address: &Option<Ipv4Addr>| address.unwrap_or(Ipv4Addr::UNSPECIFIED);
        match self {
            Step::DeleteDevice { slot, .. } => write!(f, "remove seal {slot}"),
            Step::CreateDevice { slot, epoch, .. } => write!(f, "make seal {slot} of epoch {epoch}"),
            Step::Tune { slot, .. } => write!(f, "set seal {slot} right"),
            Step::DeletePeer { slot, .. } => write!(f, "seal {slot}: forget a host"),
            Step::SetPeer { slot, peer, .. } => write!(f, "seal {slot}: know {}", host(&peer.address)),
            Step::ChangePeer { slot, peer, .. } => write!(f, "seal {slot}: know more of {}", host(&peer.address)),
            Step::DeleteRoute(address) => write!(f, "seals: no way to {address}"),
            Step::SetRoute { address, slot, .. } => write!(f, "seal {slot} leads to {address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 1);
    const OTHER: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 2);

    /// The kernel of one host: does the steps, and makes keys of its own.
    #[derive(Default)]
    struct World {
        seals: Seals,
        made: u8,
    }

    impl World {
        fn take(&mut self, steps: &[Step]) {
            for step in steps {
                let seals = &mut self.seals;
                match step {
                    Step::DeleteDevice { slot, .. } => {
                        seals.devices.remove(slot).expect("it is there");
                        seals.routes.retain(|_, other| other != slot);
                    }
                    Step::CreateDevice { slot, epoch, tuning } => {
                        self.made += 1;
                        let device =
                            Device { epoch: *epoch, key: [self.made; 32], tuning: *tuning, peers: BTreeMap::new() };
                        assert!(seals.devices.insert(*slot, device).is_none());
                    }
                    Step::Tune { slot, tuning } => seals.devices.get_mut(slot).expect("it is there").tuning = *tuning,
                    Step::DeletePeer { slot, key } => {
                        seals.devices.get_mut(slot).expect("it is there").peers.remove(key).expect("known");
                    }
                    Step::SetPeer { slot, key, peer } | Step::ChangePeer { slot, key, peer } => {
                        seals.devices.get_mut(slot).expect("it is there").peers.insert(*key, *peer);
                    }
                    Step::DeleteRoute(host) => drop(seals.routes.remove(host).expect("it is there")),
                    Step::SetRoute { address, slot, .. } => {
                        assert!(seals.devices.contains_key(slot));
                        seals.routes.insert(*address, *slot);
                    }
                }
            }
        }

        /// Until nothing is left to do; what was done. Managers learn of new keys in between.
        fn settle(&mut self, sealing: &Sealing, now: u64) -> Vec<Step> {
            let mut sealing = sealing.clone();
            let mut all = Vec::new();
            for _ in 0..2 {
                sealing.peers.insert(ME, self.seals.keys());
                let steps = self.seals.steps_to(&wish(&sealing), now);
                self.take(&steps);
                all.extend(steps);
            }
            assert_eq!(self.seals.steps_to(&wish(&sealing), now), [], "after {all:?}");
            all
        }

        fn shake(&mut self, slot: Slot, key: Key, at: u64) {
            self.seals.devices.get_mut(&slot).unwrap().peers.get_mut(&key).unwrap().met = at;
        }
    }

    fn wish(sealing: &Sealing) -> Wish<'_> {
        Wish { sealing, address: ME, data_path_port: 4789, mtu: 1440 }
    }

    fn sealing(epoch: u64, keys: &[(u64, u8)]) -> Sealing {
        let keys = keys.iter().map(|(epoch, byte)| SealingKey { epoch: *epoch, key: [*byte; 32] }).collect();
        Sealing { epoch, peers: BTreeMap::from([(OTHER, keys)]) }
    }

    /// The first packet to another host shows it this one's key, which it could say is its own.
    #[test]
    fn nobody_is_spoken_to_before_the_managers_know_the_key() {
        let mut world = World::default();
        let mut told = sealing(7, &[(7, 50)]);
        let steps = world.seals.steps_to(&wish(&told), 100);
        assert!(!steps.iter().any(|step| matches!(step, Step::SetPeer { .. })), "{steps:?}");
        world.take(&steps);
        // Nor where they know another one.
        for own in [&[][..], &[SealingKey { epoch: 7, key: [99; 32] }], &[SealingKey { epoch: 6, key: [1; 32] }]] {
            told.peers.insert(ME, own.to_vec());
            assert_eq!(world.seals.steps_to(&wish(&told), 100), []);
        }
        told.peers.insert(ME, vec![SealingKey { epoch: 7, key: [1; 32] }]);
        let steps = world.seals.steps_to(&wish(&told), 100);
        assert!(matches!(steps[..], [Step::SetPeer { .. }]), "{steps:?}");
    }

    #[test]
    fn a_host_gets_a_device_and_others_become_known() {
        let mut world = World::default();
        world.settle(&Sealing { epoch: 7, peers: BTreeMap::new() }, 100);
        let own = world.seals.keys();
        assert_eq!(own, [SealingKey { epoch: 7, key: [1; 32] }]);
        assert!(world.seals.can_seal(7) && !world.seals.can_seal(8));
        let steps = world.settle(&sealing(7, &[(7, 50)]), 100);
        let device = &world.seals.devices[&1];
        assert_eq!(device.tuning, Tuning { up: true, mtu: 1440, port: 4791, address: Some(ME) });
        assert_eq!(device.peers[&[50; 32]].endpoint, Some(SocketAddrV4::new(OTHER, 4791)));
        assert!(!device.peers[&[50; 32]].eager, "{steps:?}");
        assert_eq!(world.seals.routes, BTreeMap::from([(OTHER, 1)]));
        // A host that came back after a new start of its machine has another key.
        let steps = world.settle(&sealing(7, &[(7, 51)]), 100);
        assert_eq!(steps.len(), 2, "{steps:?}");
        assert!(matches!(steps[..], [Step::DeletePeer { .. }, Step::SetPeer { .. }]));
        // One that is gone is not sent to.
        world.settle(&Sealing { epoch: 7, peers: BTreeMap::new() }, 100);
        assert!(world.seals.routes.is_empty() && world.seals.devices[&1].peers.is_empty());
    }

    #[test]
    fn a_rotation_moves_each_way_after_a_handshake_and_then_retires_the_old_key() {
        let mut world = World::default();
        world.settle(&sealing(7, &[(7, 50)]), 100);
        world.shake(1, [50; 32], 1000);
        // The other host has no new key yet: the old one serves.
        world.settle(&sealing(8, &[(7, 50)]), 1001);
        assert_eq!(world.seals.keys().len(), 2);
        assert_eq!(world.seals.routes[&OTHER], 1);
        // It has one, but whether it knows ours is not known.
        world.settle(&sealing(8, &[(7, 50), (8, 60)]), 1002);
        assert!(world.seals.devices[&0].peers[&[60; 32]].eager, "it is to be spoken to");
        assert_eq!(world.seals.routes[&OTHER], 1);
        world.shake(0, [60; 32], 1003);
        let steps = world.settle(&sealing(8, &[(7, 50), (8, 60)]), 1004);
        assert!(steps.contains(&Step::SetRoute { address: OTHER, slot: 0, moved: true }));
        assert!(steps.iter().all(|step| !step.repairs()), "{steps:?}");
        assert!(!world.seals.devices[&0].peers[&[60; 32]].eager);
        // It may still use the old one.
        assert_eq!(world.settle(&sealing(8, &[(7, 50), (8, 60)]), 1299), []);
        assert_eq!(
            world.settle(&sealing(8, &[(7, 50), (8, 60)]), 1300),
            [Step::DeleteDevice { slot: 1, retired: true }]
        );
        assert_eq!(world.seals.keys(), [SealingKey { epoch: 8, key: [2; 32] }]);
        assert_eq!(world.seals.routes[&OTHER], 0);
    }

    #[test]
    fn who_missed_rotations_starts_with_the_newest_key() {
        let mut world = World::default();
        world.settle(&sealing(7, &[(7, 50)]), 100);
        world.shake(1, [50; 32], 1000);
        world.settle(&sealing(9, &[(8, 60), (9, 70)]), 1001);
        assert_eq!(world.seals.keys(), [SealingKey { epoch: 9, key: [2; 32] }]);
        assert_eq!(world.seals.routes[&OTHER], 1);
        // A host that knows only another epoch is not spoken to, and nothing leaves unsealed either.
        world.settle(&sealing(9, &[(8, 60)]), 1002);
        assert!(world.seals.routes.is_empty() && world.seals.devices[&1].peers.is_empty());
    }

    #[test]
    fn what_others_bend_is_set_right() {
        let wish = sealing(7, &[(7, 50)]);
        let bends: [fn(&mut Seals); 7] = [
            |seals| seals.devices.get_mut(&1).unwrap().tuning.up = false,
            |seals| seals.devices.get_mut(&1).unwrap().tuning.port = 9,
            |seals| seals.devices.get_mut(&1).unwrap().peers.clear(),
            |seals| seals.devices.get_mut(&1).unwrap().peers.get_mut(&[50; 32]).unwrap().address = None,
            |seals| seals.devices.get_mut(&1).unwrap().peers.extend([([9; 32], Peer::default())]),
            |seals| seals.routes.clear(),
            |seals| seals.routes.extend([(Ipv4Addr::new(10, 0, 0, 9), 1)]),
        ];
        for bend in bends {
            let mut world = World::default();
            world.settle(&wish, 100);
            let sound = world.seals.clone();
            bend(&mut world.seals);
            let steps = world.settle(&wish, 100);
            assert!(!steps.is_empty() && steps.iter().all(Step::repairs), "{steps:?}");
            assert_eq!(world.seals, sound);
        }
        // Where a host answers from is followed, and set back without a word.
        let mut world = World::default();
        world.settle(&wish, 100);
        let peer = world.seals.devices.get_mut(&1).unwrap().peers.get_mut(&[50; 32]).unwrap();
        peer.endpoint = Some(SocketAddrV4::new(ME, 1));
        assert!(world.settle(&wish, 100).iter().all(|step| !step.repairs()));
    }

    #[test]
    fn half_a_device_is_made_anew_with_its_ways() {
        let wish = sealing(7, &[(7, 50)]);
        let mut world = World::default();
        world.settle(&wish, 100);
        world.seals.devices.get_mut(&1).unwrap().epoch = 0;
        world.settle(&wish, 100);
        assert_eq!((world.seals.keys().len(), world.seals.routes.len()), (1, 1));
        assert_ne!(world.seals.devices[&1].key, [1; 32]);
    }
}
