//! Networks of this host alone, which plain containers are on, pure: what there is, who is on it, and what the overlay is
//! to be told of it.
//!
//! Such a network is one that ends at this host (`overlay_net`'s `local`), with a number that managers never give. Only
//! those that a container is on are there in the kernel. Records are written and removed by `shared`, which owns all
//! of this; nothing here waits for a disk or for anybody.

mod addresses;
mod record;
mod subnets;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use deploy::control::ControlError;
use deploy::model::{NetworkAttachment, NetworkAttachmentConfig, NetworkId, NetworkSpec, Subnet, Timestamp};
use ipnet::Ipv4Net;
use overlay_net::{Endpoint, Network, Service, Station};

use self::addresses::{Addresses, Unfit};
use self::record::Frame;
use super::record::Record;

pub(super) use self::record::NUMBERS_END;
pub(crate) use self::record::NetworkRecord;
pub(super) use self::subnets::Around;
pub(crate) use self::subnets::SubnetError;

/// Networks of one host.
const MAX: usize = 1024;
/// As tools show ids.
const SHOWN: usize = 12;

/// Why something could not be done with a network of this host. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LocalError {
    /// It is not there, or not any more.
    #[error("network {0} not found")]
    NotFound(String),
    /// Docker's text.
    #[error("network with name {0} already exists")]
    NameTaken(String),
    /// What is asked for makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// A name that means something else, or nothing; Docker's text.
    #[error("operation is not permitted on predefined {0} network")]
    Predefined(String),
    /// As for networks of the cluster.
    #[error(transparent)]
    Refused(#[from] ControlError),
    /// It gets no subnet.
    #[error(transparent)]
    Subnet(#[from] SubnetError),
    /// There are as many as there may be.
    #[error("this host has {MAX} networks of its own: remove some first")]
    TooMany,
    /// Containers are on it; Docker's text.
    #[error("error while removing network: network {name} has active endpoints ({})", users.join(", "))]
    InUse {
        /// The network.
        name: String,
        /// Who they are.
        users: Vec<String>,
    },
    /// All of its addresses are somebody's; Docker's text.
    #[error("no available IPv4 addresses on this network's address pools: {name} ({id})")]
    Dry {
        /// The network.
        name: String,
        /// Its id.
        id: String,
    },
    /// Somebody has the address that is asked for; Docker's text.
    #[error("Address already in use: {address} on network {name}")]
    AddressTaken {
        /// The network.
        name: String,
        /// The address.
        address: Ipv4Addr,
    },
}

/// A network of this host, as it is shown.
#[derive(Clone, Debug)]
pub(crate) struct LocalView {
    /// What is remembered.
    pub(crate) record: NetworkRecord,
    /// The containers on it.
    pub(crate) users: Vec<LocalUser>,
}

/// A container on such a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LocalUser {
    /// Its id.
    pub(crate) container: String,
    /// Its name.
    pub(crate) name: String,
    /// Its address.
    pub(crate) address: Ipv4Addr,
}

/// The networks of this host alone.
#[derive(Debug)]
pub(super) struct LocalNetworks {
    /// The address of this host that the overlay knows it by.
    host: Ipv4Addr,
    /// By id.
    known: BTreeMap<String, Known>,
    /// Ids of those that are remembered and not among them: what is remembered is damaged, or clashes with another.
    lost: BTreeSet<String>,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Known {
    record: NetworkRecord,
    frame: Frame,
    addresses: Addresses,
    /// By container.
    users: BTreeMap<String, Arc<Service>>,
    /// As the overlay takes it; made anew when somebody comes or goes.
    network: Arc<Network>,
}

impl LocalNetworks {
    pub(super) fn new(host: Ipv4Addr) -> Self {
        Self { host, known: BTreeMap::new(), lost: BTreeSet::new() }
    }

    /// What is to be remembered of a new network, and what its user should know. `id` is random.
    pub(super) fn plan(
        &self,
        spec: NetworkSpec,
        around: &Around,
        id: String,
        created: Timestamp,
    ) -> Result<(NetworkRecord, Option<String>), LocalError> {
        check(&spec)?;
        if self.known.values().any(|known| known.record.spec.name == spec.name) {
            return Err(LocalError::NameTaken(spec.name));
        }
        if self.known.len() >= MAX {
            return Err(LocalError::TooMany);
        }
        let others: Vec<Subnet> = self.known.values().map(|known| known.frame.subnet).collect();
        let (subnet, gateway) = subnets::plan(&spec, &others, around)?;
        let has = |number: &u32| self.known.values().any(|known| known.record.number == *number);
        let number = (1..NUMBERS_END).find(|number| !has(number)).ok_or(LocalError::TooMany)?;
        let warning = subnets::warning(subnet, around);
        let (subnet, gateway) = (subnet.to_string(), Ipv4Addr::from(gateway).to_string());
        Ok((NetworkRecord { id, created, spec, number, subnet, gateway }, warning))
    }

    /// Adds one that was planned or remembered.
    ///
    /// # Errors
    /// Why it cannot be one beside the others.
    pub(super) fn add(&mut self, record: NetworkRecord) -> Result<(), &'static str> {
        let frame = record.frame().ok_or("it makes no sense")?;
        let clashes = |known: &Known| {
            known.record.number == record.number
                || known.record.spec.name == record.spec.name
                || known.frame.subnet.overlaps(frame.subnet)
        };
        if self.known.values().any(clashes) {
            return Err("another one has its name, its number or its addresses");
        }
        let (addresses, users) = (record.addresses(frame), BTreeMap::new());
        let network = Arc::new(overlays(&record, frame, self.host, &users).ok_or("it makes no sense")?);
        self.known.insert(record.id.clone(), Known { record, frame, addresses, users, network });
        Ok(())
    }

    /// One is remembered and cannot be among them.
    pub(super) fn lose(&mut self, id: String) {
        self.lost.insert(id);
    }

    /// Whether a container is on one that is lost.
    pub(super) fn has_lost_one_of(&self, container: &Record) -> bool {
        container.attachments.iter().any(|attachment| self.lost.contains(attachment.network.as_str()))
    }

    /// The subnets of all of them.
    pub(super) fn subnets(&self) -> Vec<Ipv4Net> {
        self.known.values().map(|known| known.network.subnet).collect()
    }

    /// Puts one back that was taken away.
    pub(super) fn put_back(&mut self, known: Known) {
        self.known.insert(known.record.id.clone(), known);
    }

    /// The one that is meant by an id, a name, or the beginning of an id as tools show it.
    pub(super) fn find(&self, wanted: &str) -> Option<&NetworkRecord> {
        self.meant(wanted).and_then(|id| self.known.get(&id)).map(|known| &known.record)
    }

    fn meant(&self, wanted: &str) -> Option<String> {
        let named = || self.known.values().find(|known| known.record.spec.name == wanted);
        let begins = || {
            let mut fits = self.known.values().filter(|known| known.record.id.starts_with(wanted));
            let first = fits.next().filter(|_| wanted.len() >= SHOWN)?;
            fits.next().is_none().then_some(first)
        };
        let found = self.known.get(wanted).or_else(named).or_else(begins)?;
        Some(found.record.id.clone())
    }

    /// All of them.
    pub(super) fn views(&self) -> Vec<LocalView> {
        let user = |(container, service): (&String, &Arc<Service>)| {
            let endpoint = service.endpoints.first()?;
            let name = endpoint.name.clone();
            Some(LocalUser { container: container.clone(), name, address: endpoint.address })
        };
        let view = |known: &Known| LocalView {
            record: known.record.clone(),
            users: known.users.iter().filter_map(user).collect(),
        };
        self.known.values().map(view).collect()
    }

    /// Takes one away that nobody is on, and none of `others` that goes on by itself is to be on. Who gets it puts it back
    /// or forgets it.
    pub(super) fn remove<'a>(
        &mut self,
        id: &str,
        others: impl Iterator<Item = &'a Record>,
    ) -> Result<Known, LocalError> {
        let known = self.known.get(id).ok_or_else(|| LocalError::NotFound(id.to_owned()))?;
        let mut users: BTreeMap<&str, &str> = BTreeMap::new();
        for (id, service) in &known.users {
            users.insert(id, service.endpoints.first().map(|endpoint| endpoint.name.as_str()).unwrap_or_default());
        }
        let waiting = others.filter(|record| record.goes_on() && self.is_meant_by(id, record));
        users.extend(waiting.map(|record| (record.id.as_str(), record.name.as_str())));
        if !users.is_empty() {
            let users = users.into_iter().map(|(id, name)| format!("name:{name:?} id:{:?}", short(id))).collect();
            return Err(LocalError::InUse { name: known.record.spec.name.clone(), users });
        }
        self.known.remove(id).ok_or_else(|| LocalError::NotFound(id.to_owned()))
    }

    /// Whether a container may be on a network, as far as that can be said before it is: nothing where the network is none
    /// of these.
    pub(super) fn check(&self, wish: &NetworkAttachmentConfig, container: &Record) -> Option<Result<(), LocalError>> {
        let known = self.known.get(&self.meant(&wish.target)?)?;
        Some(known.check(wish, container))
    }

    fn is_meant_by(&self, id: &str, container: &Record) -> bool {
        container.local_wish().and_then(|wish| self.meant(&wish.target)).is_some_and(|meant| meant == id)
    }

    /// Gives a container an address; nothing where the network is none of these. What `others` ask for is theirs, as far
    /// as there is something else.
    pub(super) fn join<'a>(
        &mut self,
        wish: &NetworkAttachmentConfig,
        container: &Record,
        others: impl Iterator<Item = &'a Record>,
    ) -> Option<Result<NetworkAttachment, LocalError>> {
        let id = self.meant(&wish.target)?;
        let asking = others
            .filter(|other| !other.addresses.is_empty() && other.id != container.id && self.is_meant_by(&id, other));
        let asked = asking.filter_map(|other| other.asked_address(&other.local_wish()?.target)).collect();
        let (host, known) = (self.host, self.known.get_mut(&id)?);
        Some(known.join(host, wish, container, &asked))
    }

    /// A container that runs has what its record says.
    pub(super) fn rejoin(&mut self, container: &Record) {
        for attachment in &container.attachments {
            let Some(known) = self.known.get_mut(attachment.network.as_str()) else { continue };
            let address = attachment.address.split('/').next().and_then(|address| address.parse().ok());
            let taken = address.is_some_and(|address| known.addresses.take(&container.id, address).is_ok());
            match address.filter(|_| taken) {
                Some(address) => known.put(self.host, container, &attachment.aliases, address),
                None => tracing::error!(
                    container.id = container.id,
                    network = known.record.spec.name,
                    address = attachment.address,
                    "a container has an address that is not its own: it is not found by its names"
                ),
            }
        }
    }

    /// A container does not have its address any more. What it was on.
    pub(super) fn leave(&mut self, container: &str) -> Vec<NetworkRecord> {
        let mut left = Vec::new();
        for known in self.known.values_mut() {
            known.addresses.give_back(container);
            if known.users.remove(container).is_some() {
                known.rebuild(self.host);
                left.push(known.record.clone());
            }
        }
        left
    }

    /// Those that somebody is on, as the overlay takes them.
    pub(super) fn networks(&self) -> Vec<Arc<Network>> {
        self.known.values().filter(|known| !known.users.is_empty()).map(|known| Arc::clone(&known.network)).collect()
    }
}

impl Known {
    /// What this was.
    pub(super) fn record(&self) -> &NetworkRecord {
        &self.record
    }

    fn check(&self, wish: &NetworkAttachmentConfig, container: &Record) -> Result<(), LocalError> {
        let name = &self.record.spec.name;
        if self.record.spec.internal && !container.ports.is_empty() {
            return Err(LocalError::Invalid(format!(
                "ports cannot be published on network {name}, which is internal: no host leads there"
            )));
        }
        let Some(address) = container.asked_address(&wish.target) else { return Ok(()) };
        if self.record.spec.ipam4().is_none_or(|ipam| ipam.subnet.is_empty()) {
            // Docker's words, and its reason: another day the subnet may be another one.
            return Err(LocalError::Invalid(
                "user specified IP address is supported only when connecting to networks with user configured subnets"
                    .to_owned(),
            ));
        }
        match self.addresses.clone().take(&container.id, address) {
            Ok(()) | Err(Unfit::Held) => Ok(()),
            Err(unfit) => Err(self.unfit(address, unfit)),
        }
    }

    fn join(
        &mut self,
        host: Ipv4Addr,
        wish: &NetworkAttachmentConfig,
        container: &Record,
        asked: &BTreeSet<Ipv4Addr>,
    ) -> Result<NetworkAttachment, LocalError> {
        self.check(wish, container)?;
        let address = match container.asked_address(&wish.target) {
            Some(address) => {
                let taken = self.addresses.take(&container.id, address);
                taken.map(|()| address).map_err(|unfit| self.unfit(address, unfit))?
            }
            None => {
                let (name, id) = (self.record.spec.name.clone(), self.record.id.clone());
                self.addresses.choose(&container.id, asked).ok_or(LocalError::Dry { name, id })?
            }
        };
        self.put(host, container, &wish.aliases, address);
        Ok(NetworkAttachment {
            network: NetworkId::new(&self.record.id),
            address: NetworkRecord::with_prefix(self.frame, address),
            aliases: wish.aliases.clone(),
            ..NetworkAttachment::default()
        })
    }

    fn unfit(&self, address: Ipv4Addr, unfit: Unfit) -> LocalError {
        let name = self.record.spec.name.clone();
        match unfit {
            Unfit::Held => LocalError::AddressTaken { name, address },
            Unfit::Outside => {
                let subnet = &self.record.subnet;
                LocalError::Invalid(format!("invalid address {address}: not in subnet {subnet} of network {name}"))
            }
            Unfit::Reserved => {
                LocalError::Invalid(format!("invalid address {address}: it is set aside on network {name}"))
            }
        }
    }

    /// A container has this address from now on.
    fn put(&mut self, host: Ipv4Addr, container: &Record, names: &[String], address: Ipv4Addr) {
        let hostname = container.spec.container.hostname.as_str();
        let mut aliases = vec![container.name.clone()];
        for name in names.iter().map(String::as_str).chain([hostname]).filter(|name| !name.is_empty()) {
            if !aliases.iter().any(|known| known == name) {
                aliases.push(name.to_owned());
            }
        }
        // Its id is its own, and the names that others may have as well lead to all of them.
        let endpoint = Endpoint {
            task: container.id.clone(),
            name: container.name.clone(),
            address,
            names: Vec::new(),
            serving: true,
        };
        let service = Service {
            name: short(&container.id).to_owned(),
            aliases,
            vip: None,
            endpoints: vec![endpoint],
            ports: Vec::new(),
        };
        self.users.insert(container.id.clone(), Arc::new(service));
        self.rebuild(host);
    }

    fn rebuild(&mut self, host: Ipv4Addr) {
        if let Some(network) = overlays(&self.record, self.frame, host, &self.users) {
            self.network = Arc::new(network);
        }
    }
}

fn short(id: &str) -> &str {
    &id[..SHOWN.min(id.len())]
}

/// A network as the overlay takes it.
fn overlays(
    record: &NetworkRecord,
    frame: Frame,
    host: Ipv4Addr,
    users: &BTreeMap<String, Arc<Service>>,
) -> Option<Network> {
    let endpoints = users.values().flat_map(|service| &service.endpoints);
    Some(Network {
        id: record.id.clone(),
        name: record.spec.name.clone(),
        vni: record.number,
        subnet: Ipv4Net::new(frame.subnet.first().into(), frame.subnet.prefix()).ok()?,
        subnet6: None,
        encrypted: false,
        gateway: frame.gateway.into(),
        internal: record.spec.internal,
        ingress: false,
        local: true,
        mtu: record.spec.mtu(),
        host_address: None,
        stations: endpoints.map(|endpoint| Station { address: endpoint.address, host }).collect(),
        services: users.values().cloned().collect(),
    })
}

/// Driver options that say what is so anyway, as clients of Docker like to do.
const USUAL: [(&str, &str); 3] = [
    ("com.docker.network.bridge.enable_icc", "true"),
    ("com.docker.network.bridge.enable_ip_masquerade", "true"),
    ("com.docker.network.bridge.host_binding_ipv4", "0.0.0.0"),
];

/// What the cluster's own networks are checked for, and what those of one host have not.
fn check(spec: &NetworkSpec) -> Result<(), LocalError> {
    if ["bridge", "host", "none", "default"].contains(&spec.name.as_str()) {
        return Err(LocalError::Predefined(spec.name.clone()));
    }
    let mut judged = spec.clone();
    judged.driver_options.retain(|option, value| !USUAL.contains(&(option.as_str(), value.as_str())));
    deploy::control::check_network(&judged)?;
    if record::is_id(&spec.name) {
        return Err(LocalError::Invalid(format!("network name {} looks like an id", spec.name)));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
