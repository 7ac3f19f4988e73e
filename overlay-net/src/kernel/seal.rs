//! The namespace in which packets of encrypted networks are sealed.
//!
//! It holds this host's WireGuard devices, whose own packets enter and leave through the host's namespace, and the UDP
//! sockets of the encrypted networks' VXLAN devices, which are bridged in the node's namespace. Nothing else is there, so
//! nothing else can reach those sockets: a VXLAN packet that comes to the host unsealed finds no device of such a network,
//! and one that leaves such a device finds no way but through WireGuard. No rule sees to that, and so none can be lost.

use std::io;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;

use super::links::{Link, Links};
use super::netns::NetNs;
use super::wireguard::{Wireguard, explain};
use crate::plan::names;
use crate::plan::seal::{Device, Seals, Slot, Step, Tuning};

/// Handles on that namespace.
#[derive(Debug)]
pub(super) struct Seal {
    /// Whose devices are ours.
    node: String,
    pub(super) namespace: NetNs,
    pub(super) links: Links,
    wireguard: Wireguard,
}

/// Where the namespace is pinned, beside that of the node's own.
pub(super) fn pin_beside(pin: &Path) -> PathBuf {
    pin.with_file_name("sealed")
}

impl Seal {
    /// Opens what is there; nothing if nothing is.
    pub(super) fn find(node: &str, pin: &Path) -> io::Result<Option<Seal>> {
        match NetNs::open(pin) {
            Ok(namespace) => Seal::open(node, namespace).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            // What a crash left half made.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => NetNs::delete(pin).map(|()| None),
            Err(error) => Err(error),
        }
    }

    /// Makes it.
    ///
    /// # Errors
    /// `Unsupported` when the kernel has no WireGuard; nothing is left behind then.
    pub(super) fn create(node: &str, pin: &Path) -> io::Result<Seal> {
        super::wireguard::possible()?;
        NetNs::delete(pin)?;
        Seal::open(node, NetNs::create(pin)?)
    }

    fn open(node: &str, namespace: NetNs) -> io::Result<Seal> {
        // While keys change, two hosts may each use another device; what comes through the one is not to be taken for
        // forged because answers go out through the other.
        for (scope, value, wanted) in
            [("all", "rp_filter", "0"), ("default", "rp_filter", "0"), ("all", "forwarding", "0")]
        {
            namespace.set_sysctl(&format!("ipv4/conf/{scope}/{value}"), wanted)?;
        }
        let mut links = Links::open(&namespace)?;
        links.set_up("lo")?;
        let wireguard = Wireguard::open(&namespace)?;
        Ok(Seal { node: node.to_owned(), namespace, links, wireguard })
    }

    fn find_device(&mut self, slot: Slot) -> io::Result<Option<Link>> {
        Ok(self.links.find(&names::seal(slot))?.filter(|link| link.kind == "wireguard"))
    }

    fn device(&mut self, slot: Slot) -> io::Result<Link> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("no device {}", names::seal(slot)));
        self.find_device(slot)?.ok_or_else(missing)
    }

    /// What is there.
    pub(super) fn observe(&mut self) -> io::Result<Seals> {
        let mut seals = Seals::default();
        let addresses = self.links.addresses()?;
        let routes = self.links.routes()?;
        for slot in [0, 1] {
            let Some(link) = self.find_device(slot)? else { continue };
            let found = self.wireguard.device(link.index)?;
            let mut own = addresses.iter().filter(|(index, _)| *index == link.index).map(|(_, net)| *net);
            let address = own.next().filter(|net| net.prefix_len() == 32).map(|net| net.addr());
            let tuning = Tuning {
                up: link.up,
                mtu: link.mtu,
                port: found.port,
                address: address.filter(|_| own.next().is_none()),
            };
            let epoch = names::epoch_of(&link.alias, &self.node).unwrap_or(0);
            let peers = found.peers.into_iter().collect();
            seals.devices.insert(slot, Device { epoch, key: found.key, tuning, peers });
            let through = routes.iter().filter(|(net, index)| *index == link.index && net.prefix_len() == 32);
            seals.routes.extend(through.map(|(net, _)| (net.addr(), slot)));
        }
        Ok(seals)
    }

    /// Does one step. `host` is where the devices' own packets enter and leave.
    pub(super) fn apply(&mut self, host: &mut Links, step: &Step) -> io::Result<()> {
        match step {
            Step::DeleteDevice { slot, .. } => self.links.delete(&names::seal(*slot)),
            Step::CreateDevice { slot, epoch, tuning } => {
                let name = names::seal(*slot);
                host.create_wireguard_into(&self.namespace, &name, tuning.mtu).map_err(explain)?;
                let link = self.links.index(&name)?;
                self.wireguard.set_new_key(link, tuning.port)?;
                self.tune(*slot, *tuning)?;
                // What lacks this was not finished.
                self.links.set_alias(&name, &names::seal_alias(&self.node, *epoch))
            }
            Step::Tune { slot, tuning } => self.tune(*slot, *tuning),
            Step::DeletePeer { slot, key } => {
                let link = self.device(*slot)?.index;
                self.wireguard.delete_peer(link, key)
            }
            Step::SetPeer { slot, key, peer } => {
                let link = self.device(*slot)?.index;
                self.wireguard.set_peer(link, key, peer)
            }
            Step::ChangePeer { slot, key, peer } => {
                let link = self.device(*slot)?.index;
                self.wireguard.change_peer(link, key, peer)
            }
            Step::DeleteRoute(address) => {
                for slot in [0, 1] {
                    let name = names::seal(slot);
                    match self.links.delete_route(Ipv4Net::from(*address), None, &name) {
                        // It may be through the other one, or have gone with its device.
                        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                        _ => {}
                    }
                }
                Ok(())
            }
            Step::SetRoute { address, slot, .. } => {
                self.links.add_route(Ipv4Net::from(*address), None, &names::seal(*slot))
            }
        }
    }

    fn tune(&mut self, slot: Slot, tuning: Tuning) -> io::Result<()> {
        let name = names::seal(slot);
        let link = self.device(slot)?;
        let wanted = tuning.address.map(Ipv4Net::from);
        for (index, net) in self.links.addresses()? {
            if index == link.index && Some(net) != wanted {
                self.links.delete_address(&name, net)?;
            }
        }
        if let Some(address) = wanted {
            self.links.add_address(&name, address)?;
        }
        if link.mtu != tuning.mtu {
            self.links.set_mtu(&name, tuning.mtu)?;
        }
        if self.wireguard.device(link.index)?.port != tuning.port {
            self.wireguard.set_port(link.index, tuning.port)?;
        }
        if tuning.up { self.links.set_up(&name) } else { self.links.set_down(&name) }
    }
}
