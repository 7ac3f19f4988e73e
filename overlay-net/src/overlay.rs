//! The handle that the node holds on its overlay.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Sender, channel};

use ipnet::Ipv4Net;
use tokio::sync::{oneshot, watch};

use crate::config::{Config, Desired, EndpointConfig, SealingReport};
use crate::dns::DnsSockets;
use crate::error::OverlayError;
use crate::kernel::{FirewallObstacle, Links, NetNs, Tables, wireguard_possible};
use crate::observation::{Observation, Place};
use crate::owner::{Owner, Request};
use crate::plan::names;
use crate::trial;

/// What a task got.
#[derive(Debug)]
pub struct Attached {
    /// The sockets that answer its queries; keep them (in the task's shim) and hand them back after a restart, and
    /// queries wait for the daemon instead of failing.
    pub sockets: DnsSockets,
    /// Its interfaces in order.
    pub interfaces: Vec<AttachedInterface>,
    /// Its address on the node's gateway bridge, the way out; nothing for a task on internal networks only.
    pub gateway_address: Option<Ipv4Addr>,
}

/// An interface of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachedInterface {
    /// Its name in the task's namespace.
    pub name: String,
    /// The network's id; `/egress` for the way out.
    pub network: String,
    /// Its address with the network's prefix.
    pub address: Ipv4Net,
}

/// A handle on this node's overlay. Cheap to clone.
///
/// Dropping the last handle ends the overlay's threads and leaves the kernel as it is: tasks keep their links and
/// virtual addresses, and a new [`Overlay::start`] adopts them. Only [`Overlay::destroy`] removes things.
#[derive(Debug, Clone)]
pub struct Overlay {
    /// Unbounded, but each caller waits for its answer before it can ask again.
    requests: Sender<Request>,
    applied: watch::Receiver<u64>,
    sealing: watch::Receiver<SealingReport>,
}

impl Overlay {
    /// Starts the overlay in the network namespace of the calling thread, which is "the host's", and adopts what an
    /// earlier daemon left: the node's namespace, networks and links of tasks. Nothing is changed before the first
    /// [`Overlay::set_desired`].
    ///
    /// # Errors
    /// [`OverlayError::Config`] for a bad node name, [`OverlayError::Start`] without the needed rights.
    pub async fn start(config: Config) -> Result<Overlay, OverlayError> {
        config.validate()?;
        let (requests, inbox) = channel();
        let (report, applied) = watch::channel(0);
        let (ready, started) = oneshot::channel();
        // A new thread starts in the namespace of the one that makes it.
        let (publish, sealing) = watch::channel(SealingReport::default());
        let body = move || match Owner::start(config, report, publish) {
            Ok(owner) => {
                ready.send(Ok(())).ok();
                owner.run(&inbox);
            }
            Err(error) => drop(ready.send(Err(error))),
        };
        let thread = std::thread::Builder::new().name("overlay".into()).spawn(body);
        thread.map_err(|source| OverlayError::Start { step: "start a thread", source })?;
        started.await.map_err(|_| OverlayError::Ended)??;
        Ok(Overlay { requests, applied, sealing })
    }

    /// Whether an overlay of this node that has ended left something in the namespace of the calling thread, or its own
    /// namespace. What cannot be looked at counts as nothing.
    #[must_use]
    pub fn is_left(config: &Config) -> bool {
        let link = |name: String| Links::current().and_then(|mut links| links.find(&name)).is_ok_and(|l| l.is_some());
        let tables = || NetNs::current().and_then(|here| Tables::open(&here)?.list()).unwrap_or_default();
        config.namespace_path().exists()
            || config.namespace_path().with_file_name("sealed").exists()
            || link(names::egress_link(&config.node))
            || link(names::ingress_link(&config.node))
            || tables().iter().any(|table| table == names::TABLE)
    }

    /// Whether this kernel can make what encrypted networks need. It is tried, in a namespace that is gone afterwards; takes
    /// some milliseconds.
    ///
    /// # Errors
    /// Why it cannot: `Unsupported` when it has no WireGuard.
    pub fn try_sealing() -> io::Result<()> {
        wireguard_possible()
    }

    /// Whether this kernel takes the rules that virtual addresses, published ports and the way out need; tried as above.
    /// Those of IPv6 networks with `six`.
    ///
    /// # Errors
    /// Why it does not: `NotFound` where a module of nf_tables is missing.
    pub fn try_rules(six: bool) -> io::Result<()> {
        trial::rules(&mut trial::kernel()?, six)
    }

    /// Whether it also takes those by which tasks see clients of published ports as themselves, and not as the host that
    /// they came by.
    ///
    /// # Errors
    /// Why it does not.
    pub fn try_returns() -> io::Result<()> {
        trial::returns(&mut trial::kernel()?)
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, OverlayError>>) -> Request,
    ) -> Result<T, OverlayError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).map_err(|_| OverlayError::Ended)?;
        answer.await.map_err(|_| OverlayError::Ended)?
    }

    /// Puts a whole desired state in force: links, forwarding, virtual addresses, published ports, names. What is
    /// there and not desired is removed; a network that tasks are still linked to stays until they are detached. From
    /// then on it is kept in force: what others change is repaired within seconds, and logged.
    ///
    /// # Errors
    /// [`OverlayError::Refused`] and all but these objects, which nobody can put in force, are as desired;
    /// [`OverlayError::Partial`] and all but these objects are as desired; [`OverlayError::NoUnderlay`] and rules and
    /// names are as desired, but links may not be.
    pub async fn set_desired(&self, desired: Desired) -> Result<(), OverlayError> {
        self.ask(|reply| Request::SetDesired(Box::new(desired), reply)).await
    }

    /// Connects a task, whose network namespace is given. Its networks must be in the desired state already (after a
    /// daemon's restart: in the remembered one). Idempotent, and so also the way to adopt a task that runs: links
    /// that are as they should be are not touched, and established connections go on.
    ///
    /// # Errors
    /// [`OverlayError::UnknownNetwork`], [`OverlayError::Outside`], [`OverlayError::Attach`]; a task that was not
    /// connected before has nothing of it then.
    pub async fn attach(
        &self,
        netns: OwnedFd,
        config: EndpointConfig,
        sockets: Option<DnsSockets>,
    ) -> Result<Attached, OverlayError> {
        let not_one = |task: &str, source: io::Error| OverlayError::Attach {
            task: task.to_owned(),
            step: "use its network namespace".into(),
            source,
        };
        let namespace = NetNs::from_fd(netns).map_err(|error| not_one(&config.task, error))?;
        self.ask(|reply| Request::Attach(namespace, Box::new(config), sockets, reply)).await
    }

    /// Disconnects a task; one that is not connected is fine.
    ///
    /// # Errors
    /// [`OverlayError::Partial`] with what could not be removed.
    pub async fn detach(&self, task: &str) -> Result<(), OverlayError> {
        self.ask(|reply| Request::Detach(task.to_owned(), reply)).await
    }

    /// Disconnects all tasks but these: after a restart, once the node knows which of its tasks still run.
    ///
    /// # Errors
    /// [`OverlayError::Partial`] with what could not be removed.
    pub async fn retain(&self, tasks: &[String]) -> Result<(), OverlayError> {
        self.ask(|reply| Request::Retain(tasks.iter().cloned().collect(), reply)).await
    }

    /// Leaves the tasks on these hosts (named by their data path addresses) out of balancing and out of services' names
    /// at once, and takes those on all other hosts in; the last endpoints of a virtual address, port or name stay.
    ///
    /// # Errors
    /// [`OverlayError::Partial`] with the tables that could not be replaced; the next desired state tries again.
    pub async fn leave_out(&self, hosts: BTreeSet<Ipv4Addr>) -> Result<(), OverlayError> {
        self.ask(|reply| Request::LeaveOut(hosts, reply)).await
    }

    /// What the overlay believes at this moment. Cheap: the kernel is not asked.
    ///
    /// # Errors
    /// [`OverlayError::Ended`], or [`OverlayError::Start`] when this process has no file descriptor left.
    pub async fn observe(&self) -> Result<Observation, OverlayError> {
        self.ask(Request::Observe).await
    }

    /// Reads back what the kernel has in one place, and says what is not as desired, without changing it; the audit does
    /// that. Empty when all is as desired, also for a task that is not connected.
    ///
    /// # Errors
    /// [`OverlayError::Partial`] when it cannot be read.
    pub async fn examine(&self, place: Place) -> Result<Vec<String>, OverlayError> {
        self.ask(|reply| Request::Examine(place, reply)).await
    }

    /// What firewalls of others in the host's namespace do to what our links forward, as far as their rules say it.
    ///
    /// # Errors
    /// [`OverlayError::Partial`] when they cannot be read.
    pub async fn examine_firewalls(&self) -> Result<Vec<FirewallObstacle>, OverlayError> {
        self.ask(Request::ExamineFirewalls).await
    }

    /// The newest revision of the desired state that is wholly in force on this host, but for what was refused in it;
    /// 0 before the first.
    #[must_use]
    pub fn applied_revision(&self) -> watch::Receiver<u64> {
        self.applied.clone()
    }

    /// What others are to know of this host's part in encrypted networks, as it changes.
    #[must_use]
    pub fn sealing(&self) -> watch::Receiver<SealingReport> {
        self.sealing.clone()
    }

    /// Removes everything that the overlay made, in the host's namespace, its own and the tasks'. `ip_forward` stays
    /// as it is, since others may rely on it by now. All handles are dead afterwards.
    ///
    /// # Errors
    /// [`OverlayError::Partial`] with what could not be removed.
    pub async fn destroy(self) -> Result<(), OverlayError> {
        self.ask(Request::Destroy).await
    }
}
