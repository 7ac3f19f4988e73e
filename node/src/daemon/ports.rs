//! The ports of the cluster, TCP and UDP: taken before the cluster hears of this node, so that a port that is taken
//! leaves nothing behind.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use nix::sys::socket::{self, Backlog};

use crate::engine::EngineError;

/// Connections that the kernel takes before this process does; the kernel has a bound of its own as well (4096, mostly).
/// Hosts that doubt this one knock here (`knock`), and each stays in the queue for as long as this process stands still:
/// once the queue is full, the host looks dead.
const QUEUE: i32 = 4096;

/// Both, bound to the same address and port.
pub(super) struct Ports {
    /// gRPC.
    pub(super) tcp: TcpListener,
    /// Gossip.
    pub(super) udp: UdpSocket,
}

impl Ports {
    /// Binds them.
    pub(super) fn bind(listen: &str) -> Result<Self, EngineError> {
        let taken = |protocol: &str, error: std::io::Error| {
            EngineError::Invalid(format!(
                "cannot listen at {listen} ({protocol}): {error}; if a Docker Swarm runs on this host, give another \
                 port with --listen-addr"
            ))
        };
        let addr: SocketAddr =
            listen.parse().map_err(|_| EngineError::Invalid(format!("{listen:?} is not an address to listen at")))?;
        let tcp = TcpListener::bind(addr).map_err(|e| taken("TCP", e))?;
        // Once more, with a longer queue than the library's 128.
        let queue = Backlog::new(QUEUE).and_then(|queue| socket::listen(&tcp, queue)).map_err(io::Error::from);
        queue.and_then(|()| tcp.set_nonblocking(true)).map_err(|e| taken("TCP", e))?;
        let udp = UdpSocket::bind(addr).map_err(|e| taken("UDP", e))?;
        udp.set_nonblocking(true).map_err(|e| taken("UDP", e))?;
        Ok(Self { tcp, udp })
    }
}
