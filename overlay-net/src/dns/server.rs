//! The resolver's sockets: one pair in each task's namespace, all served by one thread of the node.
//!
//! The thread has a runtime of its own, so that names resolve however busy the daemon is, and it stays in the
//! namespace that the overlay was started in, so that upstreams are asked from the host. It holds no policy:
//! `resolver` decides. Everything that a task can make us hold is bounded.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener as StdTcpListener, UdpSocket as StdUdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::resolver::{Decision, Transport, failure, resolve};
use super::wire::Query;
use super::zone::{View, Zone};
use crate::kernel::NetNs;

/// Queries of one task that wait for an upstream; more are dropped, and the client asks again.
const FORWARDS_PER_TASK: usize = 128;
/// Open streams of one task.
const STREAMS_PER_TASK: usize = 32;
/// How long one upstream has; clients give up after 5 s.
const UPSTREAM_PATIENCE: Duration = Duration::from_millis(1500);
/// How long a stream may be silent.
const STREAM_PATIENCE: Duration = Duration::from_secs(10);
/// The longest datagram an upstream may send.
const DATAGRAM_MAX: usize = 65535;

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
    pub(crate) fn start() -> io::Result<Server> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // Unbounded: the only sender is the overlay's owner, with one order per attached task.
        let (orders, inbox) = mpsc::unbounded_channel();
        let zone = Arc::new(ArcSwap::from_pointee(Zone::default()));
        let shared = Arc::clone(&zone);
        std::thread::Builder::new().name("overlay-dns".into()).spawn(move || runtime.block_on(run(inbox, shared)))?;
        Ok(Server { orders, zone })
    }

    /// Puts new names in force for all tasks at once.
    pub(crate) fn set_zone(&self, zone: Zone) {
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

async fn run(mut orders: mpsc::UnboundedReceiver<Order>, zone: Arc<ArcSwap<Zone>>) {
    let mut tasks: HashMap<String, JoinHandle<()>> = HashMap::new();
    while let Some(order) = orders.recv().await {
        match order {
            Order::Serve { task, sockets, view, done } => {
                let outcome = Station::new(task.clone(), sockets, view, Arc::clone(&zone)).map(|station| {
                    if let Some(old) = tasks.insert(task, tokio::spawn(station.run())) {
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
    udp: Arc<UdpSocket>,
    tcp: TcpListener,
    shared: Arc<Shared>,
}

struct Shared {
    view: Arc<View>,
    zone: Arc<ArcSwap<Zone>>,
    turn: AtomicUsize,
    forwards: Semaphore,
}

impl Station {
    fn new(task: String, sockets: DnsSockets, view: Arc<View>, zone: Arc<ArcSwap<Zone>>) -> io::Result<Station> {
        let (udp, tcp) = (StdUdpSocket::from(sockets.udp), StdTcpListener::from(sockets.tcp));
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        let forwards = Semaphore::new(FORWARDS_PER_TASK);
        let shared = Shared { view, zone, turn: AtomicUsize::new(0), forwards };
        let (udp, tcp) = (Arc::new(UdpSocket::from_std(udp)?), TcpListener::from_std(tcp)?);
        Ok(Station { task, udp, tcp, shared: Arc::new(shared) })
    }

    async fn run(self) {
        // The sets abort what they hold when this future is dropped.
        let (mut forwards, mut streams) = (JoinSet::new(), JoinSet::new());
        let mut buffer = vec![0; 4096];
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
                        streams.spawn(serve_stream(stream, Arc::clone(&self.shared)));
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
        match self.shared.decide(packet, Transport::Udp) {
            Decision::Ignore => {}
            Decision::Reply(reply) => {
                if let Err(error) = self.udp.send_to(&reply, client).await {
                    tracing::debug!(task.id = %self.task, %error, "cannot answer a query");
                }
            }
            Decision::Forward => {
                if forwards.len() >= FORWARDS_PER_TASK {
                    return;
                }
                let (packet, shared, udp) = (packet.to_vec(), Arc::clone(&self.shared), Arc::clone(&self.udp));
                forwards.spawn(async move {
                    if let Some(reply) = shared.forward(&packet, Transport::Udp).await {
                        udp.send_to(&reply, client).await.ok();
                    }
                });
            }
        }
    }
}

impl Shared {
    fn decide(&self, packet: &[u8], transport: Transport) -> Decision {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        resolve(&self.zone.load(), &self.view, packet, transport, turn)
    }

    /// Asks the upstreams in order; the client is told of a failure rather than left waiting.
    async fn forward(&self, packet: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let _permit = self.forwards.try_acquire().ok()?;
        let query = Query::parse(packet).ok()?;
        for upstream in &self.view.upstreams {
            let upstream = SocketAddr::new(*upstream, 53);
            let asked = async {
                match transport {
                    Transport::Udp => ask_udp(&query, packet, upstream).await,
                    Transport::Tcp => ask_tcp(&query, packet, upstream).await,
                }
            };
            match timeout(UPSTREAM_PATIENCE, asked).await {
                Ok(Ok(reply)) => return Some(reply),
                Ok(Err(error)) => tracing::debug!(%upstream, %error, "an upstream resolver cannot be asked"),
                Err(_) => tracing::debug!(%upstream, "an upstream resolver does not answer"),
            }
        }
        failure(packet)
    }
}

async fn ask_udp(query: &Query<'_>, packet: &[u8], upstream: SocketAddr) -> io::Result<Vec<u8>> {
    // A socket per query: its random port is what makes forging an answer hard.
    let any: IpAddr =
        if upstream.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(upstream).await?;
    socket.send(packet).await?;
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if query.is_answered_by(&buffer[..length]) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn ask_tcp(query: &Query<'_>, packet: &[u8], upstream: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
    write_framed(&mut stream, packet).await?;
    let reply = read_framed(&mut stream).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    if query.is_answered_by(&reply) { Ok(reply) } else { Err(io::ErrorKind::InvalidData.into()) }
}

async fn serve_stream(mut stream: TcpStream, shared: Arc<Shared>) {
    while let Ok(Ok(Some(packet))) = timeout(STREAM_PATIENCE, read_framed(&mut stream)).await {
        let reply = match shared.decide(&packet, Transport::Tcp) {
            Decision::Ignore => None,
            Decision::Reply(reply) => Some(reply),
            Decision::Forward => shared.forward(&packet, Transport::Tcp).await,
        };
        let Some(reply) = reply else { return };
        if !matches!(timeout(STREAM_PATIENCE, write_framed(&mut stream, &reply)).await, Ok(Ok(()))) {
            return;
        }
    }
}

async fn read_framed(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Ok(length) => length,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut packet = vec![0; usize::from(length)];
    stream.read_exact(&mut packet).await?;
    Ok(Some(packet))
}

async fn write_framed(stream: &mut TcpStream, packet: &[u8]) -> io::Result<()> {
    let length = u16::try_from(packet.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(packet);
    stream.write_all(&framed).await
}
