//! ICMP echoes of any length that no router may cut into pieces.
//!
//! The IPv4 header is our own, so that "don't fragment" is set whatever the namespace's values say, and what the path is
//! thought to carry does not hide what it carries; IPv6 has no routers that cut, and its socket is told not to either.
//! Kernels answer echoes, not programs, so nobody's task is disturbed.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, recv, sendto, setsockopt,
    socket, sockopt,
};

use crate::kernel::NetNs;

/// Bytes of an IPv4 header without options, of an IPv6 header, and of an echo's.
const IP: usize = 20;
const IP6: usize = 40;
const ICMP: usize = 8;
/// Times that one that is not answered is sent: of a network that loses a tenth of all packets, one would be missed often.
const TRIES: u32 = 4;
/// Echoes of one call.
const MOST: usize = 1024;
/// Types of ICMP messages: an answer, a question, "did not get there"; of the last, the code for "too long".
const ANSWER: u8 = 0;
const QUESTION: u8 = 8;
const UNREACHABLE: u8 = 3;
const TOO_LONG: u8 = 4;
/// The same for ICMPv6, where "too long" is a type of its own; and what ICMPv6 is called in an IPv6 header.
const ANSWER_6: u8 = 129;
const QUESTION_6: u8 = 128;
const TOO_LONG_6: u8 = 2;
const ICMP_6: u8 = 58;

/// One echo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Echo {
    /// Who is asked.
    pub to: IpAddr,
    /// Length of the whole packet in bytes; at least 28, and 48 for IPv6.
    pub length: u16,
}

/// What became of an echo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// It came back.
    Yes,
    /// Nothing came back in time.
    Silence,
    /// It is too long for a link on the way; for which length, if somebody said so.
    TooLong(Option<u16>),
    /// It could not even be sent: no route, no such link.
    NotSent,
}

/// Sends echoes from a namespace, all at once and each a few times if need be, and waits for what comes of them. The
/// outcomes are in the order of the echoes; those beyond 1024 are not sent.
///
/// # Errors
/// When the namespace cannot be entered or has no raw sockets.
pub fn echo(namespace: &NetNs, echoes: &[Echo], patience: Duration) -> io::Result<Vec<Reached>> {
    let six = echoes.iter().any(|echo| echo.to.is_ipv6());
    let sockets = namespace.visit(|| Sockets::open(six))?;
    let mut round = Round { token: token(), outcomes: vec![None; echoes.len()] };
    let begun = Instant::now();
    for number in 0..TRIES {
        for (place, echo) in echoes.iter().enumerate().take(MOST) {
            if round.outcomes[place].is_none() {
                round.outcomes[place] = sockets.send(echo, place, round.token);
            }
        }
        let until = begun + patience * (number + 1) / TRIES;
        while round.outcomes.iter().take(MOST).any(Option::is_none) && round.listen(&sockets, until)? {}
    }
    Ok(round.outcomes.into_iter().map(|outcome| outcome.unwrap_or(Reached::Silence)).collect())
}

struct Sockets {
    /// Takes packets with their IPv4 header, and gets none.
    out: OwnedFd,
    /// Gets all ICMP messages of the namespace, with their header.
    back: OwnedFd,
    /// Takes and gets ICMPv6 messages, without a header; nothing where nobody asks, or the kernel has no IPv6.
    six: Option<OwnedFd>,
}

impl Sockets {
    /// In the namespace of the calling thread.
    fn open(six: bool) -> io::Result<Sockets> {
        let open = |family, kind| {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            socket(family, SockType::Raw, flags, Some(kind))
        };
        let six = match six.then(|| open(AddressFamily::Inet6, SockProtocol::IcmpV6)) {
            None | Some(Err(Errno::EAFNOSUPPORT)) => None,
            Some(socket) => Some(socket?),
        };
        six.iter().try_for_each(|socket| setsockopt(socket, sockopt::Ipv6DontFrag, &true))?;
        let (out, back) =
            (open(AddressFamily::Inet, SockProtocol::Raw)?, open(AddressFamily::Inet, SockProtocol::Icmp)?);
        Ok(Sockets { out, back, six })
    }

    /// An outcome, if there is one already.
    fn send(&self, echo: &Echo, place: usize, token: u64) -> Option<Reached> {
        let sent = match (echo.to, &self.six) {
            (IpAddr::V4(to), _) => {
                let address = SockaddrIn::from(SocketAddrV4::new(to, 0));
                sendto(self.out.as_raw_fd(), &packet(to, echo.length, place, token), &address, MsgFlags::empty())
            }
            (IpAddr::V6(to), Some(six)) => {
                let address = SockaddrIn6::from(SocketAddrV6::new(to, 0, 0, 0));
                sendto(six.as_raw_fd(), &message6(echo.length, place, token), &address, MsgFlags::empty())
            }
            (IpAddr::V6(_), None) => return Some(Reached::NotSent),
        };
        match sent {
            Ok(_) => None,
            Err(Errno::EMSGSIZE) => Some(Reached::TooLong(None)),
            // A queue that is full, or a rule of a firewall: as if it were lost.
            Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::EPERM | Errno::EINTR) => None,
            Err(_) => Some(Reached::NotSent),
        }
    }
}

struct Round {
    /// Tells our own echoes from those of others: every raw socket of a namespace gets every answer.
    token: u64,
    outcomes: Vec<Option<Reached>>,
}

impl Round {
    /// Takes what has come; false when it is time.
    fn listen(&mut self, sockets: &Sockets, until: Instant) -> io::Result<bool> {
        let left = until.saturating_duration_since(Instant::now());
        let millis = u16::try_from(left.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
        if millis == 0 {
            return Ok(false);
        }
        let both = std::iter::once(&sockets.back).chain(&sockets.six);
        let mut polled: Vec<PollFd> = both.map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)).collect();
        match poll(&mut polled, PollTimeout::from(millis)) {
            Ok(0) => return Ok(false),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut packet = [0; 512];
        // What is cut off is filling.
        while let Ok(length) = recv(sockets.back.as_raw_fd(), &mut packet, MsgFlags::empty()) {
            self.take(read(&packet[..length], self.token));
        }
        while let Some(six) = &sockets.six
            && let Ok(length) = recv(six.as_raw_fd(), &mut packet, MsgFlags::empty())
        {
            self.take(read6(&packet[..length], self.token));
        }
        Ok(true)
    }

    fn take(&mut self, read: Option<(usize, Reached)>) {
        if let Some((place, outcome)) = read
            && let Some(known @ None) = self.outcomes.get_mut(place)
        {
            *known = Some(outcome);
        }
    }
}

/// What kernels and other programs send has other tokens, but for a chance of one in 2^64.
fn token() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}

fn packet(to: Ipv4Addr, length: u16, place: usize, token: u64) -> Vec<u8> {
    let length = usize::from(length).max(IP + ICMP);
    let mut packet = vec![0; length];
    // Version and length of the header; don't fragment; how far; ICMP. The kernel fills in the rest.
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
    (packet[6], packet[8], packet[9]) = (0x40, 64, 1);
    packet[16..20].copy_from_slice(&to.octets());
    let message = &mut packet[IP..];
    message[0] = QUESTION;
    sign(message, place, token);
    let sum = checksum(message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// The kernel puts the header before it, and the checksum in.
fn message6(length: u16, place: usize, token: u64) -> Vec<u8> {
    let mut message = vec![0; usize::from(length).max(IP6 + ICMP) - IP6];
    message[0] = QUESTION_6;
    sign(&mut message, place, token);
    message
}

fn sign(message: &mut [u8], place: usize, token: u64) {
    // Identifier: a piece of the token; number: which echo. Both come back in errors as well.
    message[4..6].copy_from_slice(&token.to_be_bytes()[..2]);
    message[6..8].copy_from_slice(&u16::try_from(place).unwrap_or(u16::MAX).to_be_bytes());
    if let Some(filling) = message.get_mut(ICMP..ICMP + 8) {
        filling.copy_from_slice(&token.to_be_bytes());
    }
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

/// Which echo a packet is about, and what it says.
fn read(packet: &[u8], token: u64) -> Option<(usize, Reached)> {
    let message = behind_header(packet)?;
    let (kind, code) = (*message.first()?, *message.get(1)?);
    if kind == ANSWER {
        return answer(message, token);
    }
    if (kind, code) != (UNREACHABLE, TOO_LONG) {
        return None;
    }
    let carries = u16::from_be_bytes(message.get(6..8)?.try_into().ok()?);
    let question = behind_header(message.get(ICMP..)?)?;
    if *question.first()? != QUESTION {
        return None;
    }
    Some((place_of(question, token)?, Reached::TooLong(Some(carries).filter(|length| *length > 0))))
}

/// The same for an ICMPv6 message.
fn read6(message: &[u8], token: u64) -> Option<(usize, Reached)> {
    match *message.first()? {
        ANSWER_6 => answer(message, token),
        TOO_LONG_6 => {
            let carries = u32::from_be_bytes(message.get(4..8)?.try_into().ok()?);
            let packet = message.get(ICMP..)?;
            let question = packet.get(IP6..)?;
            if packet[6] != ICMP_6 || *question.first()? != QUESTION_6 {
                return None;
            }
            let carries = u16::try_from(carries).ok().filter(|length| *length > 0);
            Some((place_of(question, token)?, Reached::TooLong(carries)))
        }
        _ => None,
    }
}

fn answer(message: &[u8], token: u64) -> Option<(usize, Reached)> {
    let own = message.get(ICMP..ICMP + 8).is_none_or(|filling| filling == token.to_be_bytes());
    Some((place_of(message, token)?, Reached::Yes)).filter(|_| own)
}

fn behind_header(packet: &[u8]) -> Option<&[u8]> {
    packet.get(usize::from(packet.first()? & 0x0f) * 4..)
}

fn place_of(message: &[u8], token: u64) -> Option<usize> {
    let own = message.get(4..6)? == &token.to_be_bytes()[..2];
    own.then(|| Some(usize::from(u16::from_be_bytes(message.get(6..8)?.try_into().ok()?))))?
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;
    use crate::kernel::{Links, Peer};

    /// For what comes back, at once on a machine that is not busy.
    const PATIENCE: Duration = Duration::from_secs(10);
    /// For what never does.
    const SILENT: Duration = Duration::from_millis(200);

    fn two() -> Option<(NetNs, NetNs)> {
        let make = || -> io::Result<(NetNs, NetNs)> {
            let (near, far) = (NetNs::anonymous()?, NetNs::anonymous()?);
            let mut links = Links::open(&near)?;
            links.create_veth_into("a", None, 1500, &Peer { namespace: &far, name: "b", mac: None })?;
            for (namespace, name, last) in [(&near, "a", 1), (&far, "b", 2)] {
                let mut links = Links::open(namespace)?;
                links.add_address(name, format!("10.7.0.{last}/24").parse().unwrap())?;
                namespace.set_sysctl(&format!("ipv6/conf/{name}/accept_dad"), "0")?;
                links.add_address6(name, format!("fd00:7::{last}/64").parse().unwrap())?;
                links.set_up(name)?;
            }
            for (namespace, name) in [(&near, "a"), (&far, "b")] {
                Links::open(namespace)?.wait_running(name, PATIENCE)?;
            }
            Ok((near, far))
        };
        match make() {
            Ok(two) => Some(two),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                println!("skipped: cannot make a network namespace ({error}); root is needed");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn echoes_say_who_is_there_and_what_fits() {
        let Some((near, far)) = two() else { return };
        let to = |last: u8, length| Echo { to: Ipv4Addr::new(10, 7, 0, last).into(), length };
        let six = |last: u16, length| Echo { to: Ipv6Addr::new(0xfd00, 7, 0, 0, 0, 0, 0, last).into(), length };
        let elsewhere = |address: &str| Echo { to: address.parse().unwrap(), length: 84 };
        let expected = [Reached::Yes, Reached::Yes, Reached::TooLong(None), Reached::NotSent];
        let sent = [to(2, 28), to(2, 1500), to(2, 1501), elsewhere("10.8.0.1")];
        assert_eq!(echo(&near, &sent, PATIENCE).unwrap(), expected);
        let sent = [six(2, 48), six(2, 1500), six(2, 1501), elsewhere("fd00:8::1")];
        assert_eq!(echo(&near, &sent, PATIENCE).unwrap(), expected);
        assert_eq!(echo(&near, &[to(9, 84), six(9, 84)], SILENT).unwrap(), [Reached::Silence; 2]);
        // The far side takes less than the near side thinks: what is too long vanishes.
        Links::open(&far).unwrap().set_mtu("b", 1400).unwrap();
        assert_eq!(echo(&near, &[to(2, 84), six(2, 84)], PATIENCE).unwrap(), [Reached::Yes; 2]);
        assert_eq!(echo(&near, &[to(2, 1500), six(2, 1500)], SILENT).unwrap(), [Reached::Silence; 2]);
    }

    #[test]
    fn a_router_says_what_fits() {
        let token = 0x0102_0304_0506_0708;
        let question = packet(Ipv4Addr::LOCALHOST, 1500, 7, token);
        let mut error = vec![0; IP + ICMP];
        (error[0], error[IP], error[IP + 1]) = (0x45, UNREACHABLE, TOO_LONG);
        error[IP + 6..IP + 8].copy_from_slice(&1400u16.to_be_bytes());
        error.extend(&question[..IP + ICMP]);
        assert_eq!(read(&error, token), Some((7, Reached::TooLong(Some(1400)))));
        assert_eq!(read(&error, !token), None, "another program's");
        for length in 0..error.len() {
            read(&error[..length], token);
        }
        let mut answer = question;
        answer[IP] = ANSWER;
        assert_eq!(read(&answer, token), Some((7, Reached::Yes)));
        assert_eq!(checksum(&answer[IP..]), 0x0800, "what the type took away");
    }

    #[test]
    fn a_router_of_ipv6_says_what_fits() {
        let token = 0x0102_0304_0506_0708;
        let mut question = message6(1500, 7, token);
        assert_eq!(question.len(), 1460);
        let mut error = vec![0; ICMP + IP6];
        (error[0], error[ICMP + 6]) = (TOO_LONG_6, ICMP_6);
        error[4..8].copy_from_slice(&1400u32.to_be_bytes());
        error.extend(&question[..ICMP]);
        assert_eq!(read6(&error, token), Some((7, Reached::TooLong(Some(1400)))));
        assert_eq!(read6(&error, !token), None, "another program's");
        for length in 0..error.len() {
            read6(&error[..length], token);
        }
        error[ICMP + 6] = 17;
        assert_eq!(read6(&error, token), None, "another protocol's");
        assert_eq!(read6(&question, token), None, "a question is no answer");
        question[0] = ANSWER_6;
        assert_eq!(read6(&question, token), Some((7, Reached::Yes)));
    }
}
