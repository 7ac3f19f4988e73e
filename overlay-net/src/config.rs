//! What callers ask of the overlay: where this node is, what must be reachable, and which task is to be connected.
//!
//! All of it is plain data. `validate` and `sift` bound everything that comes from outside before any of it reaches the
//! kernel: a request about one thing is refused, a whole state goes into force without its bad parts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::{Ipv4Net, Ipv6Net};
use thiserror::Error;

/// Networks in one desired state.
pub const NETWORKS_MAX: usize = 4096;
/// Stations, services or endpoints in one network; a /12 has no more addresses than that.
pub const MEMBERS_MAX: usize = 1 << 20;
/// Published ports in one desired state; there are no more.
pub const PORTS_MAX: usize = 3 * 65536;
/// Public keys that a host has at the same time: those of two epochs.
pub const KEYS_MAX: usize = 2;
/// Bytes that VXLAN adds to a frame over IPv4.
pub const VXLAN_BYTES: u32 = 50;
/// Bytes that WireGuard adds to a packet over IPv4: its own 32, and the headers of UDP and IPv4.
pub const SEAL_BYTES: u32 = 60;
/// Bytes in a task's or network's id; both are written into an interface's 255-byte alias together.
pub const ID_MAX: usize = 64;

/// Where this node is.
#[derive(Debug, Clone)]
pub struct Config {
    /// The node's run directory; the overlay's namespace is pinned at `netns/overlay` below it.
    pub run_dir: PathBuf,
    /// A short name, 1 to 8 characters of `[0-9a-z]`, for interface names; unique per node on a machine.
    pub node: String,
    /// The address that VXLAN packets leave from; one of this host's own.
    pub data_path_addr: Ipv4Addr,
    /// The UDP port of VXLAN on all hosts.
    pub data_path_port: u16,
    /// Where names that are not the cluster's are asked for, from the host's namespace.
    pub resolvers: Resolvers,
}

/// Everything this host must know; the whole state, swapped at once.
///
/// Networks and services are shared with the state before: whoever builds the next one keeps those that have not changed,
/// and what is the same value in memory is not looked at again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// Grows with every change; reported back once it is in force.
    pub revision: u64,
    /// Networks that this host has tasks on, and the ingress network.
    pub networks: Vec<Arc<Network>>,
    /// Published ports of all services.
    pub ports: Vec<PublishedPort>,
    /// What encrypted networks are encrypted with; nothing where there are none.
    pub sealing: Option<Sealing>,
    /// Subnets that the way out is not to have, beside those of `networks`.
    pub taken: Vec<Ipv4Net>,
}

/// The keys that this host and others seal packets of encrypted networks with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sealing {
    /// The number of the keys that are to be in use; it grows by one with each rotation, and is not 0. The keys of the
    /// number before are used between hosts that have not both got these.
    pub epoch: u64,
    /// The public keys of the other hosts on encrypted networks, by their data path addresses; at most [`KEYS_MAX`] each.
    pub peers: BTreeMap<Ipv4Addr, Vec<SealingKey>>,
}

/// What others are to know of this host's part in encrypted networks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SealingReport {
    /// Why it cannot carry any, for people; nothing if it can, as far as was tried.
    pub obstacle: Option<String>,
    /// Its public keys: none before it carries one. The private ones are in the kernel alone.
    pub keys: Vec<SealingKey>,
}

/// A host's public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SealingKey {
    /// The rotation that it is of.
    pub epoch: u64,
    /// A point of Curve25519.
    pub key: [u8; 32],
}

/// One overlay network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// The network's id.
    pub id: String,
    /// Its name, for `service.network` in DNS.
    pub name: String,
    /// VXLAN network identifier, below 2^24 and not 0.
    pub vni: u32,
    /// Its addresses.
    pub subnet: Ipv4Net,
    /// Its IPv6 addresses, if it has any: who has the nth address of `subnet` has the nth of this one too.
    pub subnet6: Option<Ipv6Net>,
    /// The gateway address; reserved, nothing of ours answers there.
    pub gateway: Ipv4Addr,
    /// No way out: tasks that are only on internal networks get no egress and no foreign names.
    pub internal: bool,
    /// It carries the traffic of published ports.
    pub ingress: bool,
    /// It ends at each host: tasks reach those of the same host alone.
    pub local: bool,
    /// The MTU of the underlay that it is made for, in bytes, where that is not simply the underlay's own.
    pub mtu: Option<u32>,
    /// What leaves this host of it is encrypted. A host that cannot do that does not carry it.
    pub encrypted: bool,
    /// This host's own address on it; for the ingress network. Other hosts' own addresses are among the stations.
    pub host_address: Option<Ipv4Addr>,
    /// Who has which address. Those on this host may be among them.
    pub stations: Vec<Station>,
    /// The services on it.
    pub services: Vec<Arc<Service>>,
}

/// The IPv6 addresses beside the IPv4 addresses of a network: the nth of the one with the nth of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beside {
    four: Ipv4Net,
    six: Ipv6Net,
}

impl Beside {
    /// Nothing where there are too few IPv6 addresses.
    #[must_use]
    pub fn new(four: Ipv4Net, six: Ipv6Net) -> Option<Beside> {
        let has_room = six.max_prefix_len() - six.prefix_len() >= four.max_prefix_len() - four.prefix_len();
        has_room.then(|| Beside { four: four.trunc(), six: six.trunc() })
    }

    /// The IPv6 subnet.
    #[must_use]
    pub fn subnet(self) -> Ipv6Net {
        self.six
    }

    /// Whether these are the addresses that others are beside.
    #[must_use]
    pub fn is_of(self, four: Ipv4Net) -> bool {
        self.four == four.trunc()
    }

    /// The address beside this one; nothing for one of another network.
    #[must_use]
    pub fn address(self, four: Ipv4Addr) -> Option<Ipv6Addr> {
        let place = u32::from(four) - u32::from(self.four.contains(&four).then(|| self.four.network())?);
        Some(Ipv6Addr::from(u128::from(self.six.network()) | u128::from(place)))
    }

    /// The address that this one is beside; nothing for one of another network.
    #[must_use]
    pub fn opposite(self, six: Ipv6Addr) -> Option<Ipv4Addr> {
        let place = self.six.contains(&six).then(|| u128::from(six) - u128::from(self.six.network()))?;
        let four = u32::from(self.four.network()).checked_add(u32::try_from(place).ok()?)?;
        Some(Ipv4Addr::from(four)).filter(|four| self.four.contains(four))
    }

    /// The same with the network's prefix.
    #[must_use]
    pub fn interface(self, four: Ipv4Addr) -> Option<Ipv6Net> {
        Ipv6Net::new(self.address(four)?, self.six.prefix_len()).ok()
    }
}

/// How long packets may be on a link, depending on what carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// No more of the underlay's MTU is used than that.
    limit: Option<u32>,
    /// What tunnels add to each packet.
    overhead: u32,
}

impl Room {
    /// What goes out as it is.
    pub const WHOLE: Room = Room { limit: None, overhead: 0 };

    /// The MTU of the link in bytes, on an underlay of this one.
    #[must_use]
    pub fn mtu(self, underlay: u32) -> u32 {
        self.limit.map_or(underlay, |limit| limit.min(underlay)).saturating_sub(self.overhead)
    }

    /// The underlay's MTU that would be needed, if this one is less.
    #[must_use]
    pub fn lacks(self, underlay: u32) -> Option<u32> {
        self.limit.filter(|limit| *limit > underlay)
    }
}

/// One address on a network. Its hardware address follows from it ([`crate::kernel::mac_of`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Station {
    /// The address.
    pub address: Ipv4Addr,
    /// The data path address of the host that has it.
    pub host: Ipv4Addr,
}

/// A service on a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Other names for it on this network.
    pub aliases: Vec<String>,
    /// Its virtual address; without one, its name resolves to all of its endpoints.
    pub vip: Option<Ipv4Addr>,
    /// Its tasks.
    pub endpoints: Vec<Endpoint>,
    /// The ports that it publishes, for names like `_http._tcp.web`.
    pub ports: Vec<ServicePort>,
}

/// A port of a service, as its tasks have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, if somebody gave it one.
    pub name: String,
    /// The protocol.
    pub protocol: Protocol,
    /// The port in the tasks.
    pub target: u16,
}

/// Where names that are not the cluster's are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolvers {
    /// At these servers, in order.
    Fixed(Vec<IpAddr>),
    /// At those that a file in the form of `resolv.conf` names; its changes are followed.
    File(PathBuf),
}

/// One task of a service, on a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The task's id.
    pub task: String,
    /// The task's name, such as `web.1.<id>`.
    pub name: String,
    /// Its address on this network.
    pub address: Ipv4Addr,
    /// Other names for this one task.
    pub names: Vec<String>,
    /// It takes part in balancing and in the service's name; false while it starts or drains.
    pub serving: bool,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

    /// The number in the IP header.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    /// Lower-case name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

/// How a port is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PortMode {
    /// On every host, balanced over all tasks.
    Ingress,
    /// On the host of the task, to that task.
    Host,
}

/// A published port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedPort {
    /// The port on the host; not 0.
    pub published: u16,
    /// The port in the task; not 0.
    pub target: u16,
    /// The protocol.
    pub protocol: Protocol,
    /// Where it is open.
    pub mode: PortMode,
    /// Addresses on the ingress network of the tasks that serve it; for [`PortMode::Ingress`].
    pub backends: Vec<Ipv4Addr>,
    /// The local task; for [`PortMode::Host`].
    pub task: Option<String>,
}

/// A task to be connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointConfig {
    /// The task's id.
    pub task: String,
    /// Its own host name, which it can resolve.
    pub hostname: String,
    /// Its networks in order: `eth0`, `eth1`, …; none gives it only the way out.
    pub attachments: Vec<Attachment>,
    /// Search domains for its `resolv.conf`.
    pub dns_search: Vec<String>,
    /// Its own upstreams instead of the host's.
    pub dns_servers: Vec<IpAddr>,
}

/// One network of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The network's id.
    pub network: String,
    /// The task's address on it.
    pub address: Ipv4Addr,
    /// Names by which the task knows itself there.
    pub aliases: Vec<String>,
}

/// An object that cannot be put into force, and why. The same one will be refused again.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// The node's short name is not usable in interface names.
    #[error("node name {0:?} is not 1 to 8 characters of 0-9 and a-z")]
    Node(String),
    /// There are too many of something.
    #[error("{count} {what}, at most {max} are possible")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many were given.
        count: usize,
        /// How many are possible.
        max: usize,
    },
    /// An id is empty, too long, or has characters that cannot stand in an interface's alias.
    #[error("id {0:?} is not 1 to {ID_MAX} visible ASCII characters")]
    Id(String),
    /// Two networks have the same id or VNI.
    #[error("network {0:?} has an id or a VNI that another network has too")]
    Duplicate(String),
    /// A VNI is out of range.
    #[error("network {network:?}: VNI {vni} is not between 1 and 16777215")]
    Vni {
        /// The network.
        network: String,
        /// Its VNI.
        vni: u32,
    },
    /// An address is not in its network.
    #[error("network {network:?}: address {address} is not in {subnet}")]
    Outside {
        /// The network.
        network: String,
        /// The address.
        address: Ipv4Addr,
        /// The network's addresses.
        subnet: Ipv4Net,
    },
    /// A network has fewer IPv6 addresses than others; it goes without.
    #[error("network {network:?}: {six} has fewer addresses than {subnet}")]
    Room {
        /// The network.
        network: String,
        /// Its IPv6 addresses.
        six: Ipv6Net,
        /// Its other addresses.
        subnet: Ipv4Net,
    },
    /// A published port has no number on one of its sides, or is one of a task and names none.
    #[error("published port {published} to port {target}/{protocol} of {} is not complete", .task.as_deref().unwrap_or("a service"))]
    Port {
        /// The port on the host.
        published: u16,
        /// The port in the task.
        target: u16,
        /// The transport protocol's name.
        protocol: &'static str,
        /// The task that it is of, where it is open on one host.
        task: Option<String>,
    },
    /// Two hosts name the same public key, or one that is none; both go without.
    #[error("host {host}: its public key is that of another host as well, or none")]
    Key {
        /// Its data path address.
        host: Ipv4Addr,
    },
    /// One task is attached to one network twice.
    #[error("task {task:?} is attached to network {network:?} twice")]
    Twice {
        /// The task.
        task: String,
        /// The network.
        network: String,
    },
}

impl ConfigError {
    /// The network that is wrong as a whole, if one is.
    #[must_use]
    pub fn network(&self) -> Option<&str> {
        match self {
            ConfigError::Id(network) | ConfigError::Duplicate(network) | ConfigError::Vni { network, .. } => {
                Some(network)
            }
            _ => None,
        }
    }
}

fn bounded(what: &'static str, count: usize, max: usize) -> Result<(), ConfigError> {
    if count > max { Err(ConfigError::TooMany { what, count, max }) } else { Ok(()) }
}

fn check_id(id: &str) -> Result<(), ConfigError> {
    let fine = !id.is_empty() && id.len() <= ID_MAX && id.bytes().all(|b| b.is_ascii_graphic());
    if fine { Ok(()) } else { Err(ConfigError::Id(id.to_owned())) }
}

impl Config {
    /// Checks the node's name.
    ///
    /// # Errors
    /// [`ConfigError::Node`].
    pub fn validate(&self) -> Result<(), ConfigError> {
        let fine = (1..=8).contains(&self.node.len())
            && self.node.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase());
        if fine { Ok(()) } else { Err(ConfigError::Node(self.node.clone())) }
    }

    /// The file that the overlay's namespace is pinned at.
    #[must_use]
    pub fn namespace_path(&self) -> PathBuf {
        self.run_dir.join("netns").join("overlay")
    }
}

impl Desired {
    /// Leaves out what cannot be put in force, and says what that was. One bad object is no reason to leave a host
    /// without the others: what is left is sound, and no more of it is missing than the object that is named (a
    /// network with all that is on it, a service with its endpoints, an endpoint, a station, a port).
    #[must_use]
    pub fn sift(mut self) -> (Desired, Vec<ConfigError>) {
        let mut refused = Vec::new();
        let mut check = |checked: Result<(), ConfigError>| match checked {
            Ok(()) => true,
            Err(error) => {
                refused.push(error);
                false
            }
        };
        check(bounded("networks", self.networks.len(), NETWORKS_MAX));
        self.networks.truncate(NETWORKS_MAX);
        check(bounded("published ports", self.ports.len(), PORTS_MAX));
        self.ports.truncate(PORTS_MAX);
        check(bounded("taken subnets", self.taken.len(), NETWORKS_MAX));
        self.taken.truncate(NETWORKS_MAX);
        let (mut ids, mut vnis) = (BTreeSet::new(), BTreeSet::new());
        self.networks.retain(|network| {
            let duplicate = ids.contains(&network.id) || vnis.contains(&network.vni);
            let alone = if duplicate { Err(ConfigError::Duplicate(network.id.clone())) } else { Ok(()) };
            let kept = check(network.validate()) && check(alone);
            if kept {
                ids.insert(network.id.clone());
                vnis.insert(network.vni);
            }
            kept
        });
        for shared in self.networks.iter_mut().filter(|network| !network.is_sound()) {
            let network = Arc::make_mut(shared);
            let (id, subnet) = (network.id.clone(), network.subnet);
            network.subnet6 = network.subnet6.filter(|six| {
                let room = ConfigError::Room { network: id.clone(), six: *six, subnet };
                check(Beside::new(subnet, *six).map(drop).ok_or(room))
            });
            let inside = |address: Ipv4Addr| match subnet.contains(&address) {
                true => Ok(()),
                false => Err(ConfigError::Outside { network: id.clone(), address, subnet }),
            };
            network.host_address = network.host_address.filter(|address| check(inside(*address)));
            network.stations.retain(|station| check(inside(station.address)));
            network.services.retain_mut(|shared| {
                let service = Arc::make_mut(shared);
                let count = bounded("endpoints", service.endpoints.len(), MEMBERS_MAX);
                service.endpoints.truncate(MEMBERS_MAX);
                check(count);
                check(bounded("ports", service.ports.len(), PORTS_MAX));
                service.ports.truncate(PORTS_MAX);
                service.endpoints.retain(|endpoint| check(inside(endpoint.address)));
                service.vip.is_none_or(|vip| check(inside(vip)))
            });
        }
        self.ports.retain(|port| check(port.validate()));
        // Epochs are counted from 1.
        self.sealing = self.sealing.filter(|sealing| sealing.epoch != 0);
        if let Some(sealing) = &mut self.sealing {
            let mut times: BTreeMap<[u8; 32], usize> = BTreeMap::new();
            for key in sealing.peers.values().flatten() {
                *times.entry(key.key).or_default() += 1;
            }
            for (host, keys) in &mut sealing.peers {
                keys.truncate(KEYS_MAX);
                let sound = |key: &SealingKey| key.epoch != 0 && key.key != [0; 32] && times.get(&key.key) == Some(&1);
                keys.retain(|key| check(if sound(key) { Ok(()) } else { Err(ConfigError::Key { host: *host }) }));
            }
        }
        (self, refused)
    }

    /// Leaves of networks that end at each host what is on this one; nobody here reaches more. `own` is this host's data
    /// path address.
    #[must_use]
    pub fn localized(mut self, own: Ipv4Addr) -> Desired {
        for shared in self.networks.iter_mut().filter(|network| network.local) {
            let network = Arc::make_mut(shared);
            network.stations.retain(|station| station.host == own);
            let here: BTreeSet<Ipv4Addr> = network.stations.iter().map(|station| station.address).collect();
            for service in &mut network.services {
                if service.endpoints.iter().any(|endpoint| !here.contains(&endpoint.address)) {
                    Arc::make_mut(service).endpoints.retain(|endpoint| here.contains(&endpoint.address));
                }
            }
        }
        self
    }

    /// What the way out is not to have addresses of.
    #[must_use]
    pub fn subnets(&self) -> Vec<Ipv4Net> {
        self.networks.iter().map(|network| network.subnet).chain(self.taken.iter().copied()).collect()
    }

    /// A network by its id.
    #[must_use]
    pub fn network(&self, id: &str) -> Option<&Network> {
        self.networks.iter().find(|network| network.id == id).map(|network| &**network)
    }

    /// Of the hosts on an encrypted network, those that nothing can be sealed for, since no key of theirs is known that
    /// would be used; this host may be among them. Nobody on other networks.
    #[must_use]
    pub fn without_key(&self, network: &Network) -> BTreeSet<Ipv4Addr> {
        if !network.encrypted {
            return BTreeSet::new();
        }
        let is_used = |host: &Ipv4Addr| {
            let sealing = self.sealing.as_ref();
            sealing.and_then(|sealing| Some((sealing.epoch, sealing.peers.get(host)?))).is_some_and(|(epoch, keys)| {
                keys.iter().any(|key| key.epoch == epoch || key.epoch.saturating_add(1) == epoch)
            })
        };
        let hosts: BTreeSet<Ipv4Addr> = network.stations.iter().map(|station| station.host).collect();
        hosts.into_iter().filter(|host| !is_used(host)).collect()
    }
}

impl Network {
    /// The IPv6 addresses beside its others, if it has any.
    #[must_use]
    pub fn beside(&self) -> Option<Beside> {
        Beside::new(self.subnet, self.subnet6?)
    }

    /// How long packets may be on its links.
    #[must_use]
    pub fn room(&self) -> Room {
        let overhead = match (self.local, self.encrypted) {
            (true, _) => 0,
            (false, true) => VXLAN_BYTES + SEAL_BYTES,
            (false, false) => VXLAN_BYTES,
        };
        Room { limit: self.mtu, overhead }
    }

    /// A host whose data path address is among the network's own. This host could not have a place on such a network
    /// without losing that host.
    #[must_use]
    pub fn swallows(&self) -> Option<Ipv4Addr> {
        self.stations.iter().map(|station| station.host).find(|host| self.subnet.contains(host))
    }

    /// The data path address of the host that each address is behind.
    #[must_use]
    pub fn hosts(&self) -> BTreeMap<Ipv4Addr, Ipv4Addr> {
        self.stations.iter().map(|station| (station.address, station.host)).collect()
    }

    /// Whether everything on it can be put in force.
    fn is_sound(&self) -> bool {
        let inside = |address: &Ipv4Addr| self.subnet.contains(address);
        self.host_address.as_ref().is_none_or(inside)
            && self.subnet6.is_none_or(|six| Beside::new(self.subnet, six).is_some())
            && self.stations.iter().all(|station| inside(&station.address))
            && self.services.iter().all(|service| {
                service.endpoints.len() <= MEMBERS_MAX
                    && service.ports.len() <= PORTS_MAX
                    && service.vip.as_ref().is_none_or(inside)
                    && service.endpoints.iter().all(|endpoint| inside(&endpoint.address))
            })
    }

    /// Checks what the whole network stands or falls with.
    fn validate(&self) -> Result<(), ConfigError> {
        check_id(&self.id)?;
        if self.vni == 0 || self.vni >= 1 << 24 {
            return Err(ConfigError::Vni { network: self.id.clone(), vni: self.vni });
        }
        bounded("stations", self.stations.len(), MEMBERS_MAX)?;
        bounded("services", self.services.len(), MEMBERS_MAX)
    }
}

impl PublishedPort {
    fn validate(&self) -> Result<(), ConfigError> {
        bounded("backends", self.backends.len(), MEMBERS_MAX)?;
        if self.published == 0 || self.target == 0 || (self.mode == PortMode::Host && self.task.is_none()) {
            let (published, target) = (self.published, self.target);
            let task = self.task.as_ref().map(|task| format!("task {task}"));
            return Err(ConfigError::Port { published, target, protocol: self.protocol.name(), task });
        }
        Ok(())
    }
}

impl EndpointConfig {
    /// Checks ids and that no network is there twice.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn validate(&self) -> Result<(), ConfigError> {
        check_id(&self.task)?;
        bounded("attachments", self.attachments.len(), 64)?;
        bounded("DNS servers", self.dns_servers.len(), 16)?;
        let mut seen = BTreeSet::new();
        for attachment in &self.attachments {
            check_id(&attachment.network)?;
            if !seen.insert(&attachment.network) {
                return Err(ConfigError::Twice { task: self.task.clone(), network: attachment.network.clone() });
            }
        }
        Ok(())
    }
}

/// The `resolv.conf` of a task: our resolver, names tried as they are first.
#[must_use]
pub fn resolv_conf(search: &[String], options: &[String]) -> String {
    let mut text = format!("nameserver {}\n", crate::dns::ADDRESS);
    if !search.is_empty() {
        text.push_str(&format!("search {}\n", search.join(" ")));
    }
    let ndots = if options.iter().any(|option| option.starts_with("ndots:")) { None } else { Some("ndots:0") };
    let all: Vec<&str> = options.iter().map(String::as_str).chain(ndots).collect();
    if !all.is_empty() {
        text.push_str(&format!("options {}\n", all.join(" ")));
    }
    text
}
