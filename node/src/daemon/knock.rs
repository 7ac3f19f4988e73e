//! Asks a host whether it is there, by opening a connection to its control port and hanging up.
//!
//! Its kernel answers, so this costs the other side a packet or three, and neither a busy nor a stopped daemon is
//! taken for a dead host.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::reflex::Answer;

/// Connections that are tried, each a round trip after the one before: of a network that loses a tenth of all packets,
/// one try would say that nobody is there every fifth time. The kernel itself repeats nothing within a second.
const TRIES: u32 = 3;

/// Tries to reach a host's control port, for [`TRIES`] times `round_trip`.
pub(super) async fn knock(addr: SocketAddr, round_trip: Duration) -> Answer {
    let (began, limit) = (Instant::now(), round_trip * TRIES);
    let attempt = |number: u32| async move {
        sleep(round_trip * number).await;
        connect(addr).await
    };
    let mut attempts: FuturesUnordered<_> = (0..TRIES).map(attempt).collect();
    let asked = timeout(limit, async {
        let mut last = Answer::Nothing;
        while let Some(answer) = attempts.next().await {
            match answer {
                Answer::Nothing | Answer::Unasked => last = answer,
                Answer::Opened | Answer::Refused => return answer,
            }
        }
        last
    });
    match asked.await.unwrap_or(Answer::Nothing) {
        // This process, or the whole machine, stood still: the answer may have come meanwhile.
        Answer::Nothing if began.elapsed() > limit * 2 => Answer::Unasked,
        answer => answer,
    }
}

async fn connect(addr: SocketAddr) -> Answer {
    match TcpStream::connect(addr).await {
        Ok(stream) => {
            // Hung up without a goodbye, so that nothing of it stays here; should that fail, it stays for a minute.
            stream.set_zero_linger().ok();
            Answer::Opened
        }
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Answer::Refused,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable | io::ErrorKind::TimedOut => {
                Answer::Nothing
            }
            // No descriptor, no port, no memory: that is about this host.
            _ => Answer::Unasked,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, socket};

    use super::*;

    const ROUND_TRIP: Duration = Duration::from_millis(100);

    #[tokio::test]
    async fn who_listens_opens_however_little_it_does() {
        // Nothing ever accepts: a daemon that stands still.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        assert_eq!(knock(listener.local_addr().unwrap(), ROUND_TRIP).await, Answer::Opened);
    }

    #[tokio::test]
    async fn who_does_not_listen_refuses() {
        let addr = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        assert_eq!(knock(addr, ROUND_TRIP).await, Answer::Refused);
    }

    /// A queue that is full makes the kernel drop what comes, as if nobody were there.
    #[tokio::test]
    async fn who_is_not_there_says_nothing_in_time() {
        let queue = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(std::os::fd::AsRawFd::as_raw_fd(&queue), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
        listen(&queue, Backlog::new(0).unwrap()).unwrap();
        let addr = TcpListener::from(queue);
        let local = addr.local_addr().unwrap();
        let _first = std::net::TcpStream::connect(local).unwrap();
        let began = Instant::now();
        assert_eq!(knock(local, ROUND_TRIP).await, Answer::Nothing);
        assert!(began.elapsed() >= ROUND_TRIP * TRIES);
    }
}
