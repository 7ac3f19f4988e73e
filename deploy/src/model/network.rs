//! Cluster-wide networks and who is attached to them.

use super::{IPV6_LEVEL, Labels, Meta, NetworkId, OPTIONS_LEVEL, is_ipv6};

/// A cluster-wide network.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Network {
    /// Its id.
    #[prost(message, required, tag = "1")]
    pub id: NetworkId,
    /// Version and times.
    #[prost(message, required, tag = "2")]
    pub meta: Meta,
    /// What the user asked for.
    #[prost(message, required, tag = "3")]
    pub spec: NetworkSpec,
    /// What the allocator gave; absent until then.
    #[prost(message, optional, tag = "4")]
    pub allocation: Option<NetworkAllocation>,
    /// Why nothing could be allocated, for people; empty otherwise.
    #[prost(string, tag = "5")]
    pub message: String,
}

/// What a user wants of a network.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NetworkSpec {
    /// Unique name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Labels.
    #[prost(btree_map = "string, string", tag = "2")]
    pub labels: Labels,
    /// Driver: "overlay", or [`LOCAL_DRIVER`].
    #[prost(string, tag = "3")]
    pub driver: String,
    /// Driver options as sent.
    #[prost(btree_map = "string, string", tag = "4")]
    pub driver_options: Labels,
    /// No way out of the network.
    #[prost(bool, tag = "5")]
    pub internal: bool,
    /// Plain containers may attach.
    #[prost(bool, tag = "6")]
    pub attachable: bool,
    /// The network that carries published ports; there is at most one.
    #[prost(bool, tag = "7")]
    pub ingress: bool,
    /// IPv6 as well.
    #[prost(bool, tag = "8")]
    pub ipv6: bool,
    /// Address configuration; empty means from the default pool.
    #[prost(message, repeated, tag = "9")]
    pub ipam: Vec<IpamConfig>,
}

/// The driver of networks that end at each host: tasks reach those of the same host alone.
pub const LOCAL_DRIVER: &str = "bridge";

/// The driver option for the MTU, as Docker calls it.
pub const MTU_OPTION: &str = "com.docker.network.driver.mtu";

/// One subnet of a network, as a user asks for it; strings are CIDR or addresses.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IpamConfig {
    /// The subnet ("10.0.3.0/24").
    #[prost(string, tag = "1")]
    pub subnet: String,
    /// Where task addresses may come from; empty means the whole subnet.
    #[prost(string, tag = "2")]
    pub ip_range: String,
    /// Gateway; empty means the first address.
    #[prost(string, tag = "3")]
    pub gateway: String,
    /// Addresses that are taken by others, by name.
    #[prost(btree_map = "string, string", tag = "4")]
    pub auxiliary: Labels,
}

/// What the allocator gave to a network.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NetworkAllocation {
    /// VXLAN id, from 0x100000.
    #[prost(uint32, tag = "1")]
    pub vni: u32,
    /// IPv4 subnet, CIDR.
    #[prost(string, tag = "2")]
    pub subnet: String,
    /// Gateway address.
    #[prost(string, tag = "3")]
    pub gateway: String,
    /// IPv6 subnet, CIDR; empty for a network without IPv6. At least as large as the other one.
    #[prost(string, tag = "4")]
    pub subnet6: String,
    /// IPv6 gateway address; empty for a network without IPv6.
    #[prost(string, tag = "5")]
    pub gateway6: String,
}

/// The driver option that has a network encrypted.
pub const ENCRYPTED_OPTION: &str = "encrypted";

impl NetworkSpec {
    /// Whether what hosts exchange of it is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.driver_options.contains_key(ENCRYPTED_OPTION)
    }

    /// What a user asks of the IPv4 subnet.
    pub fn ipam4(&self) -> Option<&IpamConfig> {
        self.ipam.iter().find(|ipam| !is_ipv6(&ipam.subnet))
    }

    /// Whether it ends at each host.
    pub fn is_local(&self) -> bool {
        self.driver == LOCAL_DRIVER
    }

    /// The MTU of the underlay that the network is made for, in bytes: the driver option of that name, if it has one. As
    /// with Docker it counts the tunnel's bytes in, so that packets of tasks are 50 bytes shorter.
    pub fn mtu(&self) -> Option<u32> {
        self.driver_options.get(MTU_OPTION)?.parse().ok()
    }

    /// The feature level that a host needs to carry it. (One that is encrypted needs more than that: see
    /// `Node::sealing_obstacle`.)
    pub fn level(&self) -> u32 {
        let levels = [
            (self.ipv6, IPV6_LEVEL),
            (self.driver_options.contains_key(MTU_OPTION), OPTIONS_LEVEL),
            (self.is_local(), OPTIONS_LEVEL),
        ];
        levels.into_iter().filter(|(wanted, _)| *wanted).map(|(_, level)| level).max().unwrap_or_default()
    }

    /// What a user asks of the IPv6 subnet.
    pub fn ipam6(&self) -> Option<&IpamConfig> {
        self.ipam.iter().find(|ipam| is_ipv6(&ipam.subnet))
    }
}

/// The network of the host itself, which every host has: its name, and what a wish for it has as target.
pub const HOST_NETWORK: &str = "host";
/// No network but a loopback of the task's own.
pub const NONE_NETWORK: &str = "none";
/// The network between plain containers of one host.
pub const BRIDGE_NETWORK: &str = "bridge";

/// What a task's namespace is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkMode {
    /// The cluster's networks that its spec names, which may be none, and the way out.
    Cluster,
    /// It has no namespace of its own but is in the host's.
    Host,
    /// Nothing.
    None,
}

/// A wish to be attached, in a service or task spec.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NetworkAttachmentConfig {
    /// Network id or name, as sent; resolved to an id when the service is created. [`HOST_NETWORK`] and
    /// [`NONE_NETWORK`] stay names: no network of the cluster can be called so.
    #[prost(string, tag = "1")]
    pub target: String,
    /// More names on this network.
    #[prost(string, repeated, tag = "2")]
    pub aliases: Vec<String>,
    /// Driver options as sent.
    #[prost(btree_map = "string, string", tag = "3")]
    pub driver_options: Labels,
}

/// An address that was given.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NetworkAttachment {
    /// The network.
    #[prost(message, required, tag = "1")]
    pub network: NetworkId,
    /// Address with prefix length ("10.0.3.3/24").
    #[prost(string, tag = "2")]
    pub address: String,
    /// More names on this network.
    #[prost(string, repeated, tag = "3")]
    pub aliases: Vec<String>,
    /// The IPv6 address that goes with it, with prefix length ("fd00:3::3/64"); empty on a network without IPv6.
    #[prost(string, tag = "4")]
    pub address6: String,
}
