//! The resolver's sockets: one pair in each task's namespace, all served by one thread of the node.
//!
//! The thread has a runtime of its own, so that names resolve however busy the daemon is, and it stays in the
//! namespace that the overlay was started in, so that upstreams are asked from the host. It holds no policy:
//! `resolver` decides, `forward` asks upstreams. Everything that a task can make us hold is bounded, and so is what all
//! of them can together.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener as StdTcpListener, UdpSocket as StdUdpSocket};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet, LocalSet, spawn_local};
use tokio::time::timeout;

use super::forward::{Forwarder, read_framed, write_framed};
use super::resolver::{Decision, Transport, failure, resolve};
use super::zone::{View, Zone};
use crate::config::{Desired, Resolvers};
use crate::kernel::NetNs;

/// Queries of one task that wait for an upstream, of the node's; a further one is answered with a failure.
const FORWARDS_PER_TASK: usize = 64;
/// Open streams of one task; further ones wait in the kernel.
const STREAMS_PER_TASK: usize = 8;
/// Open streams of all tasks. Each may hold one answer of up to 64 KiB.
const STREAMS_PER_NODE: usize = 128;
/// How long a stream may be silent.
const STREAM_PATIENCE: Duration = Duration::from_secs(10);
/// The longest query that is read; those of programs have some hundred bytes.
const QUERY_MAX: usize = 4096;

/// The two sockets that answer a task's queries. They can be kept while no daemon runs: queries wait in them.
#[derive(Debug)]
pub struct DnsSockets {
    /// A UDP socket bound in the task's namespace.
    pub udp: OwnedFd,
    /// A listening TCP socket bound in the task's namespace.
    pub tcp: OwnedFd,
}

impl DnsSockets {
    /// Opens a pair in a namespace, each on a port that the kernel chooses.
    ///
    /// # Errors
    /// When the namespace's `lo` is down, or it cannot be entered.
    pub fn open(namespace: &NetNs) -> io::Result<DnsSockets> {
        namespace.visit(|| {
            let udp = StdUdpSocket::bind((super::ADDRESS, 0))?;
            let tcp = StdTcpListener::bind((super::ADDRESS, 0))?;
            Ok(DnsSockets { udp: udp.into(), tcp: tcp.into() })
        })
    }

    /// A second pair of descriptors of the same sockets.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn try_clone(&self) -> io::Result<DnsSockets> {
        Ok(DnsSockets { udp: self.udp.try_clone()?, tcp: self.tcp.try_clone()? })
    }

    /// The ports that they are bound to: UDP, TCP.
    ///
    /// # Errors
    /// When a descriptor is not such a socket.
    pub fn ports(&self) -> io::Result<(u16, u16)> {
        let udp = StdUdpSocket::from(self.udp.try_clone()?).local_addr()?;
        let tcp = StdTcpListener::from(self.tcp.try_clone()?).local_addr()?;
        for address in [udp, tcp] {
            if address.ip() != IpAddr::V4(super::ADDRESS) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("not a resolver's socket: {address}")));
            }
        }
        Ok((udp.port(), tcp.port()))
    }
}

enum Order {
    Serve { task: String, sockets: DnsSockets, view: Arc<View>, done: oneshot::Sender<io::Result<()>> },
    Drop { task: String },
}

/// A handle on the resolver's thread. The thread ends when the last handle is gone.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    orders: mpsc::UnboundedSender<Order>,
    zone: Arc<ArcSwap<Zone>>,
}

impl Server {
    /// Starts the thread in the namespace of the calling thread.
    pub(crate) fn start(resolvers: Resolvers) -> io::Result<Server> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // Unbounded: the only sender is the overlay's owner, with one order per attached task.
        let (orders, inbox) = mpsc::unbounded_channel();
        let zone = Arc::new(ArcSwap::from_pointee(Zone::default()));
        let shared = Arc::clone(&zone);
        std::thread::Builder::new().name("overlay-dns".into()).spawn(move || {
            // Tasks stay on this thread, and share what is the node's without locks.
            LocalSet::new().block_on(&runtime, run(inbox, shared, resolvers));
        })?;
        Ok(Server { orders, zone })
    }

    /// Puts new names in force for all tasks at once.
    pub(crate) fn follow(&self, desired: &Desired, suspects: &BTreeSet<Ipv4Addr>) {
        let zone = self.zone.load().following(desired, suspects);
        self.zone.store(Arc::new(zone));
    }

    /// Serves a task's sockets from now on, instead of those that it had.
    pub(crate) fn serve(&self, task: &str, sockets: DnsSockets, view: View) -> io::Result<()> {
        let (done, outcome) = oneshot::channel();
        let order = Order::Serve { task: task.to_owned(), sockets, view: Arc::new(view), done };
        let dead = || io::Error::other("the resolver's thread has ended");
        self.orders.send(order).map_err(|_| dead())?;
        outcome.blocking_recv().map_err(|_| dead())?
    }

    /// Closes a task's sockets.
    pub(crate) fn drop_task(&self, task: &str) {
        self.orders.send(Order::Drop { task: task.to_owned() }).ok();
    }
}

async fn run(mut orders: mpsc::UnboundedReceiver<Order>, zone: Arc<ArcSwap<Zone>>, resolvers: Resolvers) {
    let forwarder = Rc::new(Forwarder::new(resolvers));
    let streams = Arc::new(Semaphore::new(STREAMS_PER_NODE));
    let mut tasks: HashMap<String, JoinHandle<()>> = HashMap::new();
    while let Some(order) = orders.recv().await {
        match order {
            Order::Serve { task, sockets, view, done } => {
                let shared = Shared {
                    view,
                    zone: Arc::clone(&zone),
                    turn: AtomicUsize::new(0),
                    forwarder: Rc::clone(&forwarder),
                    forwards: Arc::new(Semaphore::new(FORWARDS_PER_TASK)),
                    streams: Arc::clone(&streams),
                };
                let outcome = Station::new(task.clone(), sockets, shared).map(|station| {
                    if let Some(old) = tasks.insert(task, spawn_local(station.run())) {
                        old.abort();
                    }
                });
                done.send(outcome).ok();
            }
            Order::Drop { task } => {
                if let Some(old) = tasks.remove(&task) {
                    old.abort();
                }
            }
        }
    }
    for task in tasks.into_values() {
        task.abort();
    }
}

/// One task's resolver.
struct Station {
    task: String,
    udp: Rc<UdpSocket>,
    tcp: TcpListener,
    shared: Rc<Shared>,
}

struct Shared {
    view: Arc<View>,
    zone: Arc<ArcSwap<Zone>>,
    turn: AtomicUsize,
    forwarder: Rc<Forwarder>,
    /// This task's share of what the node forwards.
    forwards: Arc<Semaphore>,
    /// The node's streams.
    streams: Arc<Semaphore>,
}

impl Station {
    fn new(task: String, sockets: DnsSockets, shared: Shared) -> io::Result<Station> {
        let (udp, tcp) = (StdUdpSocket::from(sockets.udp), StdTcpListener::from(sockets.tcp));
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        let (udp, tcp) = (Rc::new(UdpSocket::from_std(udp)?), TcpListener::from_std(tcp)?);
        Ok(Station { task, udp, tcp, shared: Rc::new(shared) })
    }

    async fn run(self) {
        // The sets abort what they hold when this future is dropped.
        let (mut forwards, mut streams) = (JoinSet::new(), JoinSet::new());
        let mut buffer = vec![0; QUERY_MAX];
        loop {
            tokio::select! {
                biased;
                Some(_) = forwards.join_next() => {}
                Some(_) = streams.join_next() => {}
                received = self.udp.recv_from(&mut buffer) => match received {
                    Ok((length, client)) => self.datagram(&buffer[..length], client, &mut forwards).await,
                    Err(error) => self.pause("receive a query", &error).await,
                },
                accepted = self.tcp.accept(), if streams.len() < STREAMS_PER_TASK => match accepted {
                    Ok((stream, _)) => {
                        // Hung up on when the node has enough.
                        if let Ok(permit) = Arc::clone(&self.shared.streams).try_acquire_owned() {
                            let shared = Rc::clone(&self.shared);
                            streams.spawn_local(async move {
                                serve_stream(stream, &shared).await;
                                drop(permit);
                            });
                        }
                    }
                    Err(error) => self.pause("accept a stream", &error).await,
                },
            }
        }
    }

    /// An error on a socket of ours is one client's, or a shortage that passes; neither may spin.
    async fn pause(&self, what: &str, error: &io::Error) {
        tracing::debug!(task.id = %self.task, %error, "cannot {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    async fn datagram(&self, packet: &[u8], client: SocketAddr, forwards: &mut JoinSet<()>) {
        let reply = match self.shared.decide(packet, Transport::Udp) {
            Decision::Ignore => None,
            Decision::Reply(reply) => Some(reply),
            Decision::Forward => {
                let (shared, udp) = (Rc::clone(&self.shared), Rc::clone(&self.udp));
                match Arc::clone(&shared.forwards).try_acquire_owned() {
                    Ok(permit) => {
                        let packet = packet.to_vec();
                        forwards.spawn_local(async move {
                            if let Some(reply) = shared.forward(&packet, Transport::Udp).await {
                                udp.send_to(&reply, client).await.ok();
                            }
                            drop(permit);
                        });
                        None
                    }
                    Err(_) => failure(packet),
                }
            }
        };
        if let Some(reply) = reply
            && let Err(error) = self.udp.send_to(&reply, client).await
        {
            tracing::debug!(task.id = %self.task, %error, "cannot answer a query");
        }
    }
}

impl Shared {
    /// Decides, and takes what is kept of an upstream's answer for a reply.
    fn decide(&self, packet: &[u8], transport: Transport) -> Decision {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        match resolve(&self.zone.load(), &self.view, packet, transport, turn) {
            Decision::Forward => {
                let kept = self.forwarder.kept(packet, transport, &self.view.upstream);
                kept.map_or(Decision::Forward, Decision::Reply)
            }
            decision => decision,
        }
    }

    async fn forward(&self, packet: &[u8], transport: Transport) -> Option<Vec<u8>> {
        Rc::clone(&self.forwarder).forward(packet, transport, &self.view.upstream).await
    }
}

async fn serve_stream(mut stream: TcpStream, shared: &Shared) {
    loop {
        let read = timeout(STREAM_PATIENCE, read_framed(&mut stream, QUERY_MAX)).await;
        let Ok(Ok(Some(packet))) = read else { return };
        let reply = match shared.decide(&packet, Transport::Tcp) {
            Decision::Reply(reply) => Some(reply),
            Decision::Forward => match shared.forwards.try_acquire() {
                Ok(_permit) => shared.forward(&packet, Transport::Tcp).await,
                Err(_) => failure(&packet),
            },
            Decision::Ignore => None,
        };
        let Some(reply) = reply else { return };
        if !matches!(timeout(STREAM_PATIENCE, write_framed(&mut stream, &reply)).await, Ok(Ok(()))) {
            return;
        }
    }
}
