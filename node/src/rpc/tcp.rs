//! What every TCP connection between nodes is set to, by the side that dials and by the side that accepts.
//!
//! Heartbeats, votes and sessions are small messages that must be there within a few hundred milliseconds. The
//! kernel's TCP is made for the internet: it waits at least 200 ms before it sends a lost segment again, twice as long
//! each further time, up to two minutes. On a network that loses one packet in ten, a connection falls silent for up to
//! 3 s like that. With the two limits below (Linux 6.15 and 6.16) no silence reaches 1 s.

use std::time::Duration;

use nix::sys::socket::sockopt::{KeepAlive, TcpKeepCount, TcpKeepIdle, TcpKeepInterval, TcpNoDelay, TcpUserTimeout};
use nix::sys::socket::{SetSockOpt, setsockopt};
use nix::{libc, setsockopt_impl, sockopt_impl};
use tokio::net::TcpStream;

/// Options of `linux/tcp.h` that the C library's headers do not have yet.
const TCP_RTO_MAX_MS: i32 = 44;
const TCP_RTO_MIN_US: i32 = 45;
const TCP_DELACK_MAX_US: i32 = 46;

sockopt_impl!(
    /// The longest wait before a lost segment is sent again, in milliseconds.
    RtoMax, SetOnly, libc::IPPROTO_TCP, TCP_RTO_MAX_MS, u32
);
sockopt_impl!(
    /// The shortest wait before a lost segment is sent again, in microseconds.
    RtoMin, SetOnly, libc::IPPROTO_TCP, TCP_RTO_MIN_US, u32
);
sockopt_impl!(
    /// The longest wait for data that an acknowledgement could go with, in microseconds.
    DelayedAck, SetOnly, libc::IPPROTO_TCP, TCP_DELACK_MAX_US, u32
);

/// Above [`DELAYED_ACK`] of the other side, and far above a round trip in one place; where round trips are longer, the
/// kernel adds what it measures.
const RTO_MIN: Duration = Duration::from_millis(20);
/// The least that the kernel takes.
const RTO_MAX: Duration = Duration::from_secs(1);
/// Below `RTO_MIN`, or acknowledgements that wait would look like losses.
const DELAYED_ACK: Duration = Duration::from_millis(10);
/// A connection breaks when what was sent is not acknowledged for so long. Long after everybody has turned elsewhere;
/// it frees what the kernel holds for the dead.
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);
/// A connection on which nothing is sent is tried after so many seconds, then each second.
const IDLE_SECONDS: u32 = 5;
const TRIES: u32 = 3;

/// Sets a connection between nodes. What a kernel does not have stays as it is: connections work without, and are
/// silent for longer when packets are lost.
pub(crate) fn tune(stream: &TcpStream) {
    set(stream, "TCP_NODELAY", TcpNoDelay, &true);
    set(stream, "TCP_RTO_MIN_US", RtoMin, &micros(RTO_MIN));
    set(stream, "TCP_RTO_MAX_MS", RtoMax, &millis(RTO_MAX));
    set(stream, "TCP_DELACK_MAX_US", DelayedAck, &micros(DELAYED_ACK));
    set(stream, "TCP_USER_TIMEOUT", TcpUserTimeout, &millis(UNACKNOWLEDGED));
    set(stream, "TCP_KEEPIDLE", TcpKeepIdle, &IDLE_SECONDS);
    set(stream, "TCP_KEEPINTVL", TcpKeepInterval, &1);
    set(stream, "TCP_KEEPCNT", TcpKeepCount, &TRIES);
    set(stream, "SO_KEEPALIVE", KeepAlive, &true);
}

fn set<O: SetSockOpt>(stream: &TcpStream, name: &str, option: O, value: &O::Val) {
    if let Err(error) = setsockopt(stream, option, value) {
        tracing::debug!(name, %error, "socket option");
    }
}

fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::getsockopt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn connections_are_set() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (ours, theirs) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), async { listener.accept().await });
        for stream in [&ours.unwrap(), &theirs.unwrap().0] {
            tune(stream);
            assert!(getsockopt(stream, TcpNoDelay).unwrap() && getsockopt(stream, KeepAlive).unwrap());
            assert_eq!(getsockopt(stream, TcpUserTimeout).unwrap(), 10_000);
            assert_eq!(getsockopt(stream, TcpKeepIdle).unwrap(), IDLE_SECONDS);
        }
    }

    #[tokio::test]
    async fn a_kernel_that_has_the_limits_takes_them() {
        let release = nix::sys::utsname::uname().unwrap().release().to_string_lossy().into_owned();
        let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
        if (numbers.next(), numbers.next()) < (Some(6), Some(18)) {
            return eprintln!("skipped: Linux {release} may not have these options");
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        setsockopt(&stream, RtoMin, &micros(RTO_MIN)).unwrap();
        setsockopt(&stream, RtoMax, &millis(RTO_MAX)).unwrap();
        setsockopt(&stream, DelayedAck, &micros(DELAYED_ACK)).unwrap();
    }
}
