//! What was found out about the networks of one host, as plain values.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use overlay_net::probe::{Answer, Reached};
use overlay_net::{AuditRecord, FirewallObstacle, Network};

/// Everything that was found out.
#[derive(Clone, Debug)]
pub(super) struct Observed {
    /// How this host stands to its managers.
    pub(super) standing: Standing,
    /// What is not as desired in each place of the kernel, or why it could not be read.
    pub(super) kernel: BTreeMap<String, Result<Vec<String>, String>>,
    /// What the last round of looking after everything found.
    pub(super) audit: Option<AuditRecord>,
    /// What was left out of the desired state.
    pub(super) refused: Vec<String>,
    /// What firewalls of others do to forwarded packets.
    pub(super) firewalls: Result<Vec<FirewallObstacle>, String>,
    /// Whether a task gets out through this host; nothing if it was not tried.
    pub(super) way_out: Option<WayOut>,
    /// The other hosts.
    pub(super) peers: Vec<PeerSeen>,
    /// The MTU of what carries the tunnels.
    pub(super) underlay_mtu: u32,
    /// The UDP port of VXLAN.
    pub(super) data_path_port: u16,
    /// Why this host cannot carry encrypted networks.
    pub(super) sealing_obstacle: Option<String>,
    /// This host's own address there.
    pub(super) data_path_addr: Option<Ipv4Addr>,
    /// Addresses on links of this host's own tasks: network, address, task.
    pub(super) held: Vec<(String, Ipv4Addr, String)>,
    /// The networks that were asked for and are carried.
    pub(super) networks: Vec<NetworkSeen>,
    /// A network that was asked for, and is not carried; with what to say.
    pub(super) not_carried: Option<String>,
}

impl Observed {
    /// The other host with this data path address.
    pub(super) fn peer(&self, host: Ipv4Addr) -> Option<&PeerSeen> {
        self.peers.iter().find(|peer| peer.data_path == Some(host))
    }
}

/// How a host stands to its managers.
#[derive(Clone, Debug, Default)]
pub(super) struct Standing {
    /// A manager serves it.
    pub(super) connected: bool,
    /// The revision and term that it was told when the check began.
    pub(super) told: (u64, u64),
    /// What it had carried out 2 s later, or as soon as that was all.
    pub(super) applied: u64,
    /// Whether it was told, within 2 s, what the store of its own manager says; nothing on a worker.
    pub(super) as_the_store: Option<bool>,
}

/// A task's way to other networks.
#[derive(Clone, Debug)]
pub(super) struct WayOut {
    /// The task that was asked from.
    pub(super) task: String,
    /// Who was asked: the data path address of another host, which this one reaches itself.
    pub(super) to: Ipv4Addr,
    /// Whether it came back.
    pub(super) reached: Reached,
}

/// Another host.
#[derive(Clone, Debug, Default)]
pub(super) struct PeerSeen {
    /// What people call it.
    pub(super) hostname: String,
    /// Managers call it down.
    pub(super) down: bool,
    /// This host leaves it out of balancing and names.
    pub(super) left_out: bool,
    /// `ip:port` of its control port.
    pub(super) control: String,
    /// Whether that opens; nothing if it was not asked in time.
    pub(super) opens: Option<bool>,
    /// Where VXLAN packets to it are sent.
    pub(super) data_path: Option<Ipv4Addr>,
    /// What became of a small packet to it, and of one as long as the underlay's MTU.
    pub(super) underlay: Option<(Reached, Reached)>,
    /// The longest packet that got there, where the full one did not.
    pub(super) fits: Option<u16>,
}

/// By host: addresses of both families that were asked there, and what became of a small packet and of a full one.
pub(super) type Paths = BTreeMap<Ipv4Addr, Vec<(IpAddr, Reached, Reached)>>;

/// A network that this host carries.
#[derive(Clone, Debug)]
pub(super) struct NetworkSeen {
    /// As the overlay keeps it in force.
    pub(super) network: Arc<Network>,
    /// Hosts that are left out.
    pub(super) left_out: BTreeSet<Ipv4Addr>,
    /// Hosts on it that nothing can be encrypted for, if it is encrypted.
    pub(super) without_key: BTreeSet<Ipv4Addr>,
    /// A task of this host's that is on it, to ask from.
    pub(super) from: Option<String>,
    /// What was asked, and what the resolver said; nothing if it was not asked.
    pub(super) names: Option<Vec<(String, Answer)>>,
    /// Virtual addresses that were tried, with the service's name.
    pub(super) vips: Option<Vec<(String, IpAddr, Reached)>>,
    /// The ways to other hosts; nothing if they were not asked.
    pub(super) paths: Option<Paths>,
    /// The length of a full packet.
    pub(super) mtu: u16,
}

/// The names of a network's services and what they must stand for, as this host believes it: `NAME.NETWORK` and
/// `tasks.NAME.NETWORK`.
pub(super) fn expected_names(network: &Network, left_out: &BTreeSet<Ipv4Addr>) -> BTreeMap<String, BTreeSet<IpAddr>> {
    let mut names: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
    if network.ingress {
        return names;
    }
    let (hosts, beside) = (network.hosts(), network.beside());
    let both = |address: Ipv4Addr| {
        let six = beside.and_then(|beside| beside.address(address));
        std::iter::once(IpAddr::from(address)).chain(six.map(IpAddr::from))
    };
    for service in &network.services {
        let serving = || service.endpoints.iter().filter(|endpoint| endpoint.serving).map(|e| e.address);
        let doubtful = |address: &Ipv4Addr| hosts.get(address).is_some_and(|host| left_out.contains(host));
        // Never all of them.
        let all_doubtful = serving().all(|address| doubtful(&address));
        let tasks: BTreeSet<IpAddr> =
            serving().filter(|address| all_doubtful || !doubtful(address)).flat_map(both).collect();
        let whole = service.vip.map_or_else(|| tasks.clone(), |vip| both(vip).collect());
        for name in std::iter::once(&service.name).chain(&service.aliases) {
            let full = format!("{name}.{}", network.name).to_ascii_lowercase();
            names.entry(format!("tasks.{full}")).or_default().extend(&tasks);
            names.entry(full).or_default().extend(&whole);
        }
    }
    // A task that is called as a whole `NAME.NETWORK` is found first. (One that is called `NAME` is not.)
    let own: BTreeSet<String> = network
        .services
        .iter()
        .flat_map(|service| &service.endpoints)
        .flat_map(|endpoint| std::iter::once(&endpoint.name).chain(&endpoint.names))
        .map(|name| name.to_ascii_lowercase())
        .collect();
    names.retain(|name, _| !own.contains(name));
    names
}
