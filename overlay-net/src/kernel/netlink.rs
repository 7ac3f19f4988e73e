//! The netlink wire: one message builder, one attribute reader, one blocking socket.
//!
//! Owns framing, sequence numbers, acknowledgements and dumps. `links`, `neighbours` and `nftables` say what the
//! messages mean. A socket belongs to the network namespace of the thread that opens it, whoever uses it later, so
//! namespaces are entered only for the moment of opening (`NetNs::visit`).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use zeroize::Zeroize;

/// Length of `struct nlmsghdr`.
pub(crate) const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// In a dump's answers: what is listed changed meanwhile, so that something may be missing or there twice.
const DUMP_INTERRUPTED: u16 = 0x10;
/// How often an interrupted dump is asked for again. On a host where links come and go, one in a dozen is interrupted.
const DUMP_TRIES: usize = 20;
/// First bit pair of an attribute's type: nested, and network byte order.
const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;

/// The request flag every message to the kernel has.
pub(crate) const REQUEST: u16 = 0x1;
/// Ask for an acknowledgement.
pub(crate) const ACK: u16 = 0x4;
/// List all objects.
pub(crate) const DUMP: u16 = 0x300;
/// Replace the object if it exists.
pub(crate) const REPLACE: u16 = 0x100;
/// Fail if the object exists.
pub(crate) const EXCL: u16 = 0x200;
/// Create the object if it does not exist.
pub(crate) const CREATE: u16 = 0x400;
/// Append to a list of objects.
pub(crate) const APPEND: u16 = 0x800;

/// One netlink message under construction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A message of a type, with the fixed header that its family wants before the attributes.
    pub(crate) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Message {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(fixed);
        let mut message = Message { bytes };
        message.pad();
        message
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Adds one attribute.
    pub(crate) fn put(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(value.len() + 4).expect("an attribute of ours is far below 64 KiB");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
        self
    }

    /// Adds a number in host byte order.
    pub(crate) fn put_u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_ne_bytes())
    }

    /// Adds a number in network byte order, as nf_tables wants all of its numbers.
    pub(crate) fn put_be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_be_bytes())
    }

    /// Adds a text with its closing zero.
    pub(crate) fn put_str(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes)
    }

    /// Adds attributes inside an attribute.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0, 0]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        fill(self);
        let length = u16::try_from(self.bytes.len() - start).expect("a nested attribute of ours is far below 64 KiB");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    /// Adds raw bytes: the fixed header that some nested messages begin with.
    pub(crate) fn raw(&mut self, value: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(value);
        self.pad();
        self
    }

    /// Its type.
    pub(crate) fn kind(&self) -> u16 {
        u16::from_ne_bytes([self.bytes[4], self.bytes[5]])
    }

    /// All that follows the header: the family's fixed part and the attributes.
    pub(crate) fn body(&self) -> &[u8] {
        &self.bytes[HEADER..]
    }

    fn seal(&mut self, sequence: u32) {
        let length = u32::try_from(self.bytes.len()).expect("a message of ours is far below 4 GiB");
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
    }
}

/// One message from the kernel.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    /// The message type.
    pub(crate) kind: u16,
    flags: u16,
    sequence: u32,
    /// All that follows the header.
    pub(crate) body: Vec<u8>,
}

#[cfg(test)]
impl Reply {
    /// One that the kernel might send.
    pub(crate) fn of(kind: u16, body: &[u8]) -> Reply {
        Reply { kind, flags: 0, sequence: 0, body: body.to_vec() }
    }
}

/// Walks the attributes in a byte slice; a malformed tail ends the walk.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    flagged(bytes).map(|(kind, value)| (kind & TYPE_MASK, value))
}

/// The same with the flags that are in their types.
fn flagged(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(rest.get(0..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?);
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// Whether attributes that the kernel listed say all that ours say, and nothing else of the same kinds. The kernel adds
/// kinds that we did not give (handles, defaults), and does not say which of its attributes are nested.
pub(crate) fn says(listed: &[u8], ours: &[u8]) -> bool {
    let mut counted = Vec::new();
    for (kind, value) in flagged(ours) {
        let place = counted.iter().filter(|seen| **seen == kind).count();
        counted.push(kind);
        let Some((_, found)) = attributes(listed).filter(|(other, _)| *other == kind & TYPE_MASK).nth(place) else {
            return false;
        };
        if found != value && (kind & NESTED == 0 || !says(found, value)) {
            return false;
        }
    }
    counted.iter().all(|kind| {
        let all = attributes(listed).filter(|(other, _)| *other == kind & TYPE_MASK).count();
        all == counted.iter().filter(|seen| *seen == kind).count()
    })
}

/// ENODEV has no kind of its own in the standard library; callers ask for `NotFound`.
pub(crate) fn gone_is_not_found(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::ENODEV | libc::ESRCH) => io::Error::new(io::ErrorKind::NotFound, error),
        _ => error,
    }
}

/// A number in host byte order; zero when the attribute is too short.
pub(crate) fn u32_of(value: &[u8]) -> u32 {
    value.get(0..4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// A number in network byte order; zero when the attribute is too short.
pub(crate) fn be32_of(value: &[u8]) -> u32 {
    u32::from_be(u32_of(value))
}

/// An address; nothing when the attribute is too short.
pub(crate) fn ipv4_of(value: &[u8]) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = value.get(0..4)?.try_into().ok()?;
    Some(octets.into())
}

/// The same of IPv6.
pub(crate) fn ipv6_of(value: &[u8]) -> Option<Ipv6Addr> {
    let octets: [u8; 16] = value.get(0..16)?.try_into().ok()?;
    Some(octets.into())
}

/// An address of the family that its length says.
pub(crate) fn ip_of(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        16 => ipv6_of(value).map(IpAddr::V6),
        _ => ipv4_of(value).map(IpAddr::V4),
    }
}

/// A text without its closing zero.
pub(crate) fn str_of(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

fn split(datagram: &[u8], replies: &mut Vec<Reply>) {
    let mut rest = datagram;
    while let Some(header) = rest.get(0..HEADER) {
        let length = u32_of(header) as usize;
        let Some(body) = rest.get(HEADER..length) else { return };
        replies.push(Reply {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            sequence: u32_of(&header[8..12]),
            body: body.to_vec(),
        });
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
}

/// A blocking netlink socket, bound to the namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    /// Bytes of lists that are still taken; nothing where it does not matter how many there are.
    allowance: Option<usize>,
    /// What goes through it is wiped from memory afterwards, but for what callers are given.
    secret: bool,
}

/// Lists were longer than allowed: somebody has filled a namespace.
pub(crate) fn is_too_much(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::FileTooLarge
}

/// That error.
pub(crate) fn too_much() -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, "its namespace is so full that it is not looked through")
}

impl Socket {
    /// Opens a socket in the namespace of the calling thread.
    pub(crate) fn open(protocol: SockProtocol) -> io::Result<Socket> {
        let fd = nix::sys::socket::socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        // The kernel answers while it handles the request, so a wait only ever ends a misunderstanding.
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(10))?;
        // One nf_tables transaction is one datagram, and each of its messages may be answered.
        setsockopt(&fd, sockopt::SndBufForce, &(16 << 20))?;
        setsockopt(&fd, sockopt::RcvBufForce, &(16 << 20))?;
        Ok(Socket { fd, sequence: 0, allowance: None, secret: false })
    }

    /// The same for messages with keys in them.
    pub(crate) fn secret(self) -> Socket {
        Socket { secret: true, ..self }
    }

    /// Takes no more than so many bytes of lists from now on, or any number. A list that is longer ends as
    /// [`is_too_much`] says; the kernel is then in the middle of it, and the socket is of no more use for lists.
    pub(crate) fn allow(&mut self, bytes: Option<usize>) {
        self.allowance = bytes;
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.sequence
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let sent = nix::sys::socket::send(self.fd.as_raw_fd(), bytes, MsgFlags::empty())?;
        assert_eq!(sent, bytes.len(), "netlink takes a datagram whole or not at all");
        Ok(())
    }

    /// Takes one datagram; gives its length.
    fn receive(&self, flags: MsgFlags, replies: &mut Vec<Reply>) -> io::Result<usize> {
        // The kernel fills at most 32 KiB of a dump into one datagram; sockets are many, so none keeps a buffer.
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match nix::sys::socket::recv(self.fd.as_raw_fd(), &mut buffer, flags) {
                Ok(length) => {
                    split(&buffer[..length], replies);
                    if self.secret {
                        buffer[..length].zeroize();
                    }
                    return Ok(length);
                }
                Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends one request and waits for its acknowledgement; the objects that came before it are returned. A list that
    /// changed while the kernel wrote it down is asked for again, since it may lack what was there all the time.
    pub(crate) fn request(&mut self, mut message: Message) -> io::Result<Vec<Reply>> {
        let outcome = self.ask(&mut message);
        if self.secret {
            message.bytes.zeroize();
        }
        outcome
    }

    fn ask(&mut self, message: &mut Message) -> io::Result<Vec<Reply>> {
        let flags = u16::from_ne_bytes([message.bytes[6], message.bytes[7]]);
        // The two bits of a dump mean replace and exclusive elsewhere; nobody asks for both of those.
        if flags & DUMP != DUMP {
            message.bytes[6..8].copy_from_slice(&(flags | ACK).to_ne_bytes());
        }
        for _ in 0..DUMP_TRIES {
            let sequence = self.next_sequence();
            message.seal(sequence);
            self.send(&message.bytes)?;
            if let Some(objects) = self.answer(sequence)? {
                return Ok(objects);
            }
        }
        Err(io::Error::new(io::ErrorKind::Interrupted, "what the kernel lists changes faster than it can be read"))
    }

    /// The objects that answer a request, up to their end; nothing when the list is not consistent.
    fn answer(&mut self, sequence: u32) -> io::Result<Option<Vec<Reply>>> {
        let mut objects = Vec::new();
        let outcome = self.gather(sequence, &mut objects);
        if self.secret && !matches!(outcome, Ok(true)) {
            objects.iter_mut().for_each(|object| object.body.zeroize());
        }
        Ok(outcome?.then_some(objects))
    }

    /// Takes the objects that answer a request, up to their end; whether the list is consistent.
    fn gather(&mut self, sequence: u32, objects: &mut Vec<Reply>) -> io::Result<bool> {
        let mut interrupted = false;
        loop {
            let mut replies = Vec::new();
            let length = self.receive(MsgFlags::empty(), &mut replies)?;
            if let Some(allowance) = &mut self.allowance {
                *allowance = allowance.checked_sub(length).ok_or_else(too_much)?;
            }
            for reply in replies.into_iter().filter(|reply| reply.sequence == sequence) {
                match reply.kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        interrupted |= reply.kind == NLMSG_DONE && reply.flags & DUMP_INTERRUPTED != 0;
                        return match errno(&reply.body) {
                            None => Ok(!interrupted),
                            Some(error) => Err(error),
                        };
                    }
                    _ => {
                        interrupted |= reply.flags & DUMP_INTERRUPTED != 0;
                        objects.push(reply);
                    }
                }
            }
        }
    }

    /// Asks for a list that may be too long to keep, and gives each of its objects away. What comes and goes meanwhile
    /// may be missing.
    pub(crate) fn walk(&mut self, mut message: Message, mut each: impl FnMut(Reply)) -> io::Result<()> {
        let sequence = self.next_sequence();
        message.seal(sequence);
        self.send(&message.bytes)?;
        loop {
            let mut replies = Vec::new();
            self.receive(MsgFlags::empty(), &mut replies)?;
            for reply in replies.into_iter().filter(|reply| reply.sequence == sequence) {
                if matches!(reply.kind, NLMSG_ERROR | NLMSG_DONE) {
                    return errno(&reply.body).map_or(Ok(()), Err);
                }
                each(reply);
            }
        }
    }

    /// Sends several messages as one datagram (an nf_tables batch) and gives the first error.
    ///
    /// The kernel handles the batch inside `send`, so every answer is there when it returns. On an error nothing of
    /// the batch took effect. `describe` names a message by its place for the error text.
    pub(crate) fn batch(&mut self, messages: Vec<Message>, describe: impl Fn(usize) -> String) -> io::Result<()> {
        let first = self.sequence.wrapping_add(1).max(1);
        let mut datagram = Vec::new();
        for mut message in messages {
            let sequence = self.next_sequence();
            message.seal(sequence);
            datagram.extend_from_slice(&message.bytes);
        }
        self.send(&datagram)?;
        let count = self.sequence.wrapping_sub(first);
        let mut replies = Vec::new();
        loop {
            match self.receive(MsgFlags::MSG_DONTWAIT, &mut replies) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        for reply in replies {
            // Not the late answer to something that was given up.
            let ours = reply.sequence.wrapping_sub(first) <= count;
            if ours
                && reply.kind == NLMSG_ERROR
                && let Some(error) = errno(&reply.body)
            {
                let place = describe(reply.sequence.wrapping_sub(first) as usize);
                return Err(io::Error::new(error.kind(), format!("{place}: {error}")));
            }
        }
        Ok(())
    }
}

/// Notices that something happened in the namespace of the thread that opened it; what, is then read from the kernel.
#[derive(Debug)]
pub(crate) struct Watch {
    fd: OwnedFd,
}

/// `RTNLGRP_LINK`, `RTNLGRP_IPV4_IFADDR`: links and their addresses.
pub(crate) const LINKS: u32 = 1 | 1 << 4 | 1 << 8;
/// `RTNLGRP_NEIGH`: neighbours and forwarding entries.
pub(crate) const NEIGHBOURS: u32 = 1 << 2;
/// `RTNLGRP_IPV4_ROUTE`, `RTNLGRP_IPV4_RULE`, `RTNLGRP_IPV4_NETCONF`, `RTNLGRP_IPV6_ROUTE`, `RTNLGRP_IPV6_RULE`: routes,
/// their rules and some values of sysctl.
pub(crate) const ROUTES: u32 = 1 << 6 | 1 << 7 | 1 << 23 | 1 << 10 | 1 << 18;

impl Watch {
    /// Listens to groups of notices from now on, and has room for a few: that there were too many says as much.
    pub(crate) fn open(groups: u32) -> io::Result<Watch> {
        Watch::with_room(groups, 4096)
    }

    /// The same with room for so many bytes of notices.
    pub(crate) fn with_room(groups: u32, room: usize) -> io::Result<Watch> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = nix::sys::socket::socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        setsockopt(&fd, sockopt::RcvBufForce, &room)?;
        nix::sys::socket::bind(fd.as_raw_fd(), &nix::sys::socket::NetlinkAddr::new(0, groups))?;
        Ok(Watch { fd })
    }

    /// Whether there was a notice since the last call, or the kernel had to drop some.
    pub(crate) fn stirred(&self) -> bool {
        self.told(|_| true)
    }

    /// Whether there was a notice since the last call that matters, or the kernel had to drop some.
    pub(crate) fn told(&self, matters: impl Fn(&Reply) -> bool) -> bool {
        let mut buffer = [0; 2048];
        let mut any = false;
        let mut notices = Vec::new();
        // Who is told faster than this can read has heard enough.
        for _ in 0..4096 {
            match nix::sys::socket::recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(nix::errno::Errno::EAGAIN) => return any,
                Err(nix::errno::Errno::EINTR) => {}
                // The end of what can be known, as far as this socket goes.
                Err(error) if error != nix::errno::Errno::ENOBUFS => return true,
                Err(_) => any = true,
                Ok(length) => {
                    notices.clear();
                    split(&buffer[..length], &mut notices);
                    // One that is too long to be read here matters.
                    any |= notices.is_empty() || notices.iter().any(&matters);
                }
            }
        }
        true
    }
}

fn errno(body: &[u8]) -> Option<io::Error> {
    let code = u32_of(body).cast_signed();
    (code != 0).then(|| io::Error::from_raw_os_error(-code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_round_trip_through_nesting() {
        let mut message = Message::new(16, 0, &[0; 16]);
        message.put_str(3, "eth0").nest(18, |m| {
            m.put_u32(1, 7).put(2, &[1, 2, 3]);
        });
        let found: Vec<_> = attributes(&message.bytes[HEADER + 16..]).collect();
        assert_eq!(found[0], (3, &b"eth0\0"[..]));
        assert_eq!(found[1].0, 18);
        let inner: Vec<_> = attributes(found[1].1).collect();
        assert_eq!(u32_of(inner[0].1), 7);
        assert_eq!(inner[1], (2, &[1, 2, 3][..]));
    }

    /// A kernel of our own: answers each dump with one object and its end, the first `interrupted` of them marked.
    fn dump_from(interrupted: u32, mark_the_end: bool) -> (io::Result<Vec<Reply>>, u32) {
        use nix::sys::socket::socketpair;
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let kernel = std::thread::spawn(move || {
            let mut asked = 0;
            let mut buffer = [0; 256];
            while let Ok(1..) = nix::sys::socket::recv(theirs.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                let sequence = u32_of(&buffer[8..12]);
                let mark = if asked < interrupted { DUMP_INTERRUPTED } else { 0 };
                asked += 1;
                let marks = if mark_the_end { [0, mark] } else { [mark, 0] };
                let mut datagram = Vec::new();
                for (kind, mark) in [(16, marks[0]), (NLMSG_DONE, marks[1])] {
                    let mut message = Message::new(kind, mark, &[0; 4]);
                    message.seal(sequence);
                    datagram.extend_from_slice(&message.bytes);
                }
                nix::sys::socket::send(theirs.as_raw_fd(), &datagram, MsgFlags::empty()).unwrap();
            }
            asked
        });
        let mut socket = Socket { fd: ours, sequence: 0, allowance: None, secret: false };
        let answer = socket.request(Message::new(18, DUMP, &[0; 16]));
        drop(socket);
        (answer, kernel.join().unwrap())
    }

    #[test]
    fn a_list_that_changed_meanwhile_is_read_again() {
        for mark_the_end in [false, true] {
            let (answer, asked) = dump_from(2, mark_the_end);
            assert_eq!((answer.unwrap().len(), asked), (1, 3));
        }
        let (answer, asked) = dump_from(u32::MAX, false);
        assert_eq!(answer.unwrap_err().kind(), io::ErrorKind::Interrupted);
        assert_eq!(asked as usize, DUMP_TRIES);
    }

    #[test]
    fn what_the_kernel_lists_is_compared_by_what_we_said() {
        let list = |numbers: &[u32], name: &str, more: bool| {
            let mut m = Message::new(0, 0, &[]);
            m.nest(4, |m| {
                for number in numbers {
                    m.nest(1, |m| {
                        m.put_u32(2, *number);
                        if more {
                            m.put_u32(9, 0);
                        }
                    });
                }
            });
            m.put_str(3, name);
            m.body().to_vec()
        };
        let ours = list(&[7, 8], "a", false);
        assert!(says(&ours, &ours));
        assert!(says(&list(&[7, 8], "a", true), &ours), "what the kernel adds is no difference");
        assert!(!says(&ours, &list(&[7, 8], "a", true)), "what it lacks is");
        for other in [list(&[8, 7], "a", false), list(&[7], "a", false), list(&[7, 8, 8], "a", false)] {
            assert!(!says(&other, &ours));
        }
        assert!(!says(&list(&[7, 8], "b", false), &ours));
    }

    #[test]
    fn malformed_input_ends_the_walk() {
        for bytes in [&[][..], &[1], &[0, 0, 0, 0], &[3, 0, 1, 0], &[200, 0, 1, 0, 5]] {
            assert!(attributes(bytes).count() <= 1, "{bytes:?}");
        }
        let mut replies = Vec::new();
        split(&[9; 40], &mut replies);
        split(&[0; 40], &mut replies);
        assert!(replies.is_empty());
    }
}
