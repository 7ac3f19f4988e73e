//! Records on their way to a log daemon: a bounded queue before one socket that never blocks.
//!
//! A target that is away is tried again and again, ever more slowly. What is queued by then goes to it when it is back;
//! what finds no room in the queue is dropped and counted. A message that a connection has taken in part is sent again,
//! whole, on the next one.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

use super::journal::Journal;
use super::split::Piece;
use super::syslog::Syslog;
use crate::config::{LogForward, LogTarget, SyslogAddress};

/// The first pause after a failure; each further one doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest one.
const LAST_PAUSE: Duration = Duration::from_secs(10);
/// How long what is queued at the end of the container may take to leave, if somebody takes it.
const FAREWELL: Duration = Duration::from_millis(500);

/// Sends one container's records.
pub(super) struct Forward {
    target: LogTarget,
    format: Format,
    queue: VecDeque<Vec<u8>>,
    /// Bytes in the queue, and how many there may be.
    queued: usize,
    room: usize,
    /// Bytes of the first message that the connection has taken.
    sent: usize,
    link: Link,
    pause: Duration,
    retry_at: Option<Instant>,
    dropped: u64,
}

enum Format {
    Journal(Journal),
    Syslog(Syslog),
}

enum Link {
    Closed,
    Connecting(OwnedFd),
    /// Each message is sent whole or not at all.
    Datagrams(OwnedFd),
    Stream(OwnedFd),
}

impl Forward {
    pub(super) fn new(config: LogForward, container_id: &str, pid: u32) -> Forward {
        let format = match &config.target {
            LogTarget::Journal(_) => Format::Journal(Journal::new(&config, container_id)),
            LogTarget::Syslog { facility, .. } => {
                let host = rustix::system::uname();
                let host = host.nodename().to_string_lossy();
                let lines = !matches!(config.target, LogTarget::Syslog { address: SyslogAddress::Udp(_), .. });
                Format::Syslog(Syslog::new(*facility, &host, &config.tag, pid, lines))
            }
        };
        let mut forward = Forward {
            target: config.target,
            format,
            queue: VecDeque::new(),
            queued: 0,
            room: usize::try_from(config.buffer).unwrap_or(usize::MAX),
            sent: 0,
            link: Link::Closed,
            pause: FIRST_PAUSE,
            retry_at: None,
            dropped: 0,
        };
        forward.connect();
        forward
    }

    /// Records that found no room, or were too long for the target.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Queues a record.
    pub(super) fn push(&mut self, piece: &Piece<'_>) {
        let message = match &mut self.format {
            Format::Journal(journal) => journal.message(piece),
            Format::Syslog(syslog) => syslog.message(piece),
        };
        if self.queued + message.len() > self.room {
            self.dropped += 1;
            return;
        }
        self.queued += message.len();
        self.queue.push_back(message);
    }

    /// What to wait for.
    pub(super) fn watched(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let output = if self.queue.is_empty() || self.retry_at.is_some() { PollFlags::empty() } else { PollFlags::OUT };
        match &self.link {
            Link::Closed => None,
            Link::Connecting(fd) => Some((fd.as_fd(), PollFlags::OUT)),
            // A socket of datagrams has nothing to say while there is nothing to send.
            Link::Datagrams(_) if output.is_empty() => None,
            Link::Datagrams(fd) => Some((fd.as_fd(), output)),
            // Its end shows as something to read.
            Link::Stream(fd) => Some((fd.as_fd(), output | PollFlags::IN)),
        }
    }

    /// After which time to try again.
    pub(super) fn patience(&self) -> Option<Duration> {
        self.retry_at.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Goes on: after a wait that has found the socket ready, or the time come, or when there is more to send.
    pub(super) fn go_on(&mut self) {
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        self.retry_at = None;
        if matches!(self.link, Link::Closed) {
            self.connect();
        }
        if let Link::Connecting(_) = self.link {
            self.hear_connected();
        }
        self.hear_hangup();
        self.send();
    }

    /// Gives what is queued a little time to leave, if somebody takes it. The rest is dropped.
    pub(super) fn close(&mut self) {
        let deadline = Instant::now() + FAREWELL;
        self.go_on();
        while !self.queue.is_empty() && !matches!(self.link, Link::Closed) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let timeout = crate::shim::timespec(self.patience().unwrap_or(left).min(left));
            let watched = self.watched().map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags));
            let _ = poll(watched.into_iter().collect::<Vec<_>>().as_mut_slice(), Some(&timeout));
            self.go_on();
        }
        self.dropped += self.queue.len() as u64;
        self.queue.clear();
        (self.queued, self.sent, self.link, self.retry_at) = (0, 0, Link::Closed, None);
    }

    fn connect(&mut self) {
        let link = match &self.target {
            LogTarget::Journal(socket) => connect_unix(socket, SocketType::DGRAM).map(Link::Datagrams),
            LogTarget::Syslog { address: SyslogAddress::Unix(socket), .. } => {
                match connect_unix(socket, SocketType::DGRAM) {
                    Err(Errno::PROTOTYPE) => connect_unix(socket, SocketType::STREAM).map(Link::Stream),
                    other => other.map(Link::Datagrams),
                }
            }
            LogTarget::Syslog { address: SyslogAddress::Udp(address), .. } => open(family(address), SocketType::DGRAM)
                .and_then(|fd| {
                    rustix::net::connect(&fd, address)?;
                    Ok(Link::Datagrams(fd))
                }),
            LogTarget::Syslog { address: SyslogAddress::Tcp(address), .. } => open(family(address), SocketType::STREAM)
                .and_then(|fd| match rustix::net::connect(&fd, address) {
                    Ok(()) => Ok(Link::Stream(fd)),
                    Err(Errno::INPROGRESS) => Ok(Link::Connecting(fd)),
                    Err(errno) => Err(errno),
                }),
        };
        match link {
            Ok(link) => (self.link, self.sent) = (link, 0),
            Err(_) => self.fail(),
        }
    }

    /// Closes, and waits before the next attempt.
    fn fail(&mut self) {
        (self.link, self.sent) = (Link::Closed, 0);
        self.retry_at = Some(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(LAST_PAUSE);
    }

    fn hear_connected(&mut self) {
        let Link::Connecting(fd) = &self.link else { return };
        // Not ready and without an error means that it is still on its way.
        let mut asked = [PollFd::new(fd, PollFlags::OUT)];
        if poll(&mut asked, Some(&crate::shim::timespec(Duration::ZERO))) == Ok(0) {
            return;
        }
        match (rustix::net::sockopt::socket_error(fd), std::mem::replace(&mut self.link, Link::Closed)) {
            (Ok(Ok(())), Link::Connecting(fd)) => (self.link, self.sent) = (Link::Stream(fd), 0),
            _ => self.fail(),
        }
    }

    /// A receiver that has gone is noticed before the next message would vanish in its connection.
    fn hear_hangup(&mut self) {
        let Link::Stream(fd) = &self.link else { return };
        let mut discarded = [0u8; 256];
        loop {
            match rustix::io::read(fd, &mut discarded) {
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => break,
            }
        }
        self.fail();
    }

    fn send(&mut self) {
        while let Some(message) = self.queue.front() {
            let (fd, whole) = match &self.link {
                Link::Closed | Link::Connecting(_) => return,
                Link::Datagrams(fd) => (fd, true),
                Link::Stream(fd) => (fd, false),
            };
            let rest = message.get(self.sent..).unwrap_or_default();
            match rustix::net::send(fd, rest, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(count) if whole || count >= rest.len() => {
                    self.pause = FIRST_PAUSE;
                    self.take_first();
                }
                Ok(count) => self.sent += count,
                Err(Errno::INTR) => {}
                // Full; the socket tells when it is not.
                Err(Errno::AGAIN) => return,
                // Full as well, and nobody tells.
                Err(Errno::NOBUFS | Errno::NOMEM) => {
                    self.retry_at = Some(Instant::now() + FIRST_PAUSE);
                    return;
                }
                Err(Errno::MSGSIZE) => {
                    self.dropped += 1;
                    self.take_first();
                }
                // Over UDP: that an earlier datagram found nobody. This one is not concerned, but it can wait for better
                // times as well.
                Err(_) => self.fail(),
            }
        }
    }

    fn take_first(&mut self) {
        if let Some(message) = self.queue.pop_front() {
            self.queued -= message.len();
        }
        self.sent = 0;
        if self.queue.is_empty() {
            self.queue = VecDeque::new();
        }
    }
}

fn family(address: &std::net::SocketAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 }
}

fn open(family: AddressFamily, kind: SocketType) -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
}

fn connect_unix(path: &Path, kind: SocketType) -> Result<OwnedFd, Errno> {
    let fd = open(AddressFamily::UNIX, kind)?;
    rustix::net::connect(&fd, &SocketAddrUnix::new(path)?)?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::net::{UnixDatagram, UnixListener};
    use std::time::SystemTime;

    use super::*;
    use crate::logs::LogStream;

    fn forward(target: LogTarget, buffer: u64) -> Forward {
        let config = LogForward {
            target,
            tag: "web".into(),
            container_name: "web.1".into(),
            image_name: "web:1".into(),
            fields: [].into(),
            buffer,
        };
        Forward::new(config, "0123456789abcdef", 7)
    }

    fn syslog(address: SyslogAddress) -> LogTarget {
        LogTarget::Syslog { address, facility: 3 }
    }

    fn push(forward: &mut Forward, text: &str) {
        let data = text.as_bytes();
        forward.push(&Piece { at: SystemTime::now(), stream: LogStream::Stdout, data, full: true, part: None });
        forward.go_on();
    }

    /// Lets it work until nothing is queued.
    #[track_caller]
    fn settle(forward: &mut Forward) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !forward.queue.is_empty() {
            assert!(Instant::now() < deadline, "{} messages stay", forward.queue.len());
            let timeout = crate::shim::timespec(forward.patience().unwrap_or(Duration::from_millis(50)));
            let watched = forward.watched().map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags));
            poll(watched.into_iter().collect::<Vec<_>>().as_mut_slice(), Some(&timeout)).unwrap();
            forward.go_on();
        }
    }

    #[test]
    fn datagrams_arrive() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = SyslogAddress::Udp(receiver.local_addr().unwrap());
        let mut sender = forward(syslog(address), 1 << 20);
        push(&mut sender, "hello");
        settle(&mut sender);
        let mut bytes = [0; 1000];
        let count = receiver.recv(&mut bytes).unwrap();
        let text = String::from_utf8_lossy(&bytes[..count]).into_owned();
        assert!(text.starts_with("<30>1 ") && text.ends_with(" web 7 - - hello"), "{text}");
    }

    #[test]
    fn a_socket_that_comes_back_gets_what_waited() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        // Not there yet.
        let mut sender = forward(syslog(SyslogAddress::Unix(path.clone())), 1 << 20);
        push(&mut sender, "one");
        assert_eq!(sender.queue.len(), 1);
        let first = UnixDatagram::bind(&path).unwrap();
        settle(&mut sender);
        let mut bytes = [0; 1000];
        let mut next = |socket: &UnixDatagram| {
            let count = socket.recv(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes[..count]).rsplit(' ').next().unwrap().to_owned()
        };
        assert_eq!(next(&first), "one\n");
        // Gone, and there again.
        drop(first);
        std::fs::remove_file(&path).unwrap();
        push(&mut sender, "two");
        push(&mut sender, "three");
        assert_eq!(sender.queue.len(), 2);
        let second = UnixDatagram::bind(&path).unwrap();
        settle(&mut sender);
        assert_eq!([next(&second), next(&second)], ["two\n", "three\n"]);
        assert_eq!(sender.dropped(), 0);
    }

    #[test]
    fn who_does_not_read_costs_records_and_never_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let receiver = UnixListener::bind(&path).unwrap();
        let mut sender = forward(syslog(SyslogAddress::Unix(path)), 8 << 10);
        let begin = Instant::now();
        for number in 0..5000 {
            push(&mut sender, &format!("{number:04} {}", "x".repeat(1000)));
        }
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
        assert!(sender.dropped() > 0 && sender.queued <= 8 << 10);
        // Whatever was not dropped comes whole and in order.
        let (connection, _) = receiver.accept().unwrap();
        let reader = std::thread::spawn(move || {
            let lines = BufReader::new(connection).lines().map(|line| line.unwrap());
            lines.map(|line| line.split(' ').nth(7).unwrap().parse::<u64>().unwrap()).collect::<Vec<_>>()
        });
        settle(&mut sender);
        let dropped = sender.dropped();
        drop(sender);
        let numbers = reader.join().unwrap();
        assert_eq!(numbers.len() as u64 + dropped, 5000);
        assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn connections_are_made_again() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = forward(syslog(SyslogAddress::Tcp(listener.local_addr().unwrap())), 1 << 20);
        push(&mut sender, "one");
        settle(&mut sender);
        let (first, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(&first).read_line(&mut line).unwrap();
        assert!(line.ends_with(" one\n"), "{line}");
        drop(first);
        // The end of the connection is heard before the next message is sent into it.
        let (fd, _) = sender.watched().unwrap();
        poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], None).unwrap();
        push(&mut sender, "two");
        settle(&mut sender);
        let (second, _) = listener.accept().unwrap();
        line.clear();
        BufReader::new(&second).read_line(&mut line).unwrap();
        assert!(line.ends_with(" two\n"), "{line}");
        sender.close();
        assert_eq!(sender.dropped(), 0);
    }

    #[test]
    fn what_nobody_takes_is_dropped_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut sender = forward(syslog(SyslogAddress::Unix(dir.path().join("nobody"))), 1 << 20);
        push(&mut sender, "one");
        let begin = Instant::now();
        sender.close();
        assert!(begin.elapsed() < Duration::from_secs(1), "nobody is there: nobody is waited for");
        assert_eq!(sender.dropped(), 1);
    }
}
