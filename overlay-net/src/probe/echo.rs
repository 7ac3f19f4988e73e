//! ICMP echoes of any length that no router may cut into pieces.
//!
//! The IP header is our own, so that "don't fragment" is set whatever the namespace's values say, and what the path is
//! thought to carry does not hide what it carries. Kernels answer echoes, not programs, so nobody's task is disturbed.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto, socket};

use crate::kernel::NetNs;

/// Bytes of an IPv4 header without options, and of an echo's.
const IP: usize = 20;
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

/// One echo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Echo {
    /// Who is asked.
    pub to: Ipv4Addr,
    /// Length of the whole packet in bytes; at least 28.
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
    let family = |kind| {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        socket(AddressFamily::Inet, SockType::Raw, flags, Some(kind))
    };
    // A raw socket of the protocol "raw" takes packets with their IP header, and gets none.
    let (out, back) = namespace.visit(|| Ok((family(SockProtocol::Raw)?, family(SockProtocol::Icmp)?)))?;
    let mut round = Round { token: token(), outcomes: vec![None; echoes.len()] };
    let begun = Instant::now();
    for number in 0..TRIES {
        for (place, echo) in echoes.iter().enumerate().take(MOST) {
            if round.outcomes[place].is_none() {
                round.outcomes[place] = send(&out, &packet(echo, place, round.token), echo.to);
            }
        }
        let until = begun + patience * (number + 1) / TRIES;
        while round.outcomes.iter().take(MOST).any(Option::is_none) && round.listen(&back, until)? {}
    }
    Ok(round.outcomes.into_iter().map(|outcome| outcome.unwrap_or(Reached::Silence)).collect())
}

struct Round {
    /// Tells our own echoes from those of others: every raw socket of a namespace gets every answer.
    token: u64,
    outcomes: Vec<Option<Reached>>,
}

impl Round {
    /// Takes what has come; false when it is time.
    fn listen(&mut self, back: &OwnedFd, until: Instant) -> io::Result<bool> {
        let left = until.saturating_duration_since(Instant::now());
        let millis = u16::try_from(left.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
        if millis == 0 {
            return Ok(false);
        }
        match poll(&mut [PollFd::new(back.as_fd(), PollFlags::POLLIN)], PollTimeout::from(millis)) {
            Ok(0) => return Ok(false),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut packet = [0; 512];
        // What is cut off is filling.
        while let Ok(length) = recv(back.as_raw_fd(), &mut packet, MsgFlags::empty()) {
            if let Some((place, outcome)) = read(&packet[..length], self.token)
                && let Some(known @ None) = self.outcomes.get_mut(place)
            {
                *known = Some(outcome);
            }
        }
        Ok(true)
    }
}

/// What kernels and other programs send has other tokens, but for a chance of one in 2^64.
fn token() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}

/// An outcome, if there is one already.
fn send(out: &OwnedFd, packet: &[u8], to: Ipv4Addr) -> Option<Reached> {
    match sendto(out.as_raw_fd(), packet, &SockaddrIn::from(std::net::SocketAddrV4::new(to, 0)), MsgFlags::empty()) {
        Ok(_) => None,
        Err(Errno::EMSGSIZE) => Some(Reached::TooLong(None)),
        // A queue that is full, or a rule of a firewall: as if it were lost.
        Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::EPERM | Errno::EINTR) => None,
        Err(_) => Some(Reached::NotSent),
    }
}

fn packet(echo: &Echo, place: usize, token: u64) -> Vec<u8> {
    let length = usize::from(echo.length).max(IP + ICMP);
    let mut packet = vec![0; length];
    // Version and length of the header; don't fragment; how far; ICMP. The kernel fills in the rest.
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
    (packet[6], packet[8], packet[9]) = (0x40, 64, 1);
    packet[16..20].copy_from_slice(&echo.to.octets());
    let message = &mut packet[IP..];
    message[0] = QUESTION;
    // Identifier: a piece of the token; number: which echo. Both come back in errors as well.
    message[4..6].copy_from_slice(&token.to_be_bytes()[..2]);
    message[6..8].copy_from_slice(&u16::try_from(place).unwrap_or(u16::MAX).to_be_bytes());
    if let Some(filling) = message.get_mut(ICMP..ICMP + 8) {
        filling.copy_from_slice(&token.to_be_bytes());
    }
    let sum = checksum(message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
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
        let own = message.get(ICMP..ICMP + 8).is_none_or(|filling| filling == token.to_be_bytes());
        return Some((place_of(message, token)?, Reached::Yes)).filter(|_| own);
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

fn behind_header(packet: &[u8]) -> Option<&[u8]> {
    packet.get(usize::from(packet.first()? & 0x0f) * 4..)
}

fn place_of(message: &[u8], token: u64) -> Option<usize> {
    let own = message.get(4..6)? == &token.to_be_bytes()[..2];
    own.then(|| Some(usize::from(u16::from_be_bytes(message.get(6..8)?.try_into().ok()?))))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Links, Peer};

    const PATIENCE: Duration = Duration::from_millis(400);

    fn two() -> Option<(NetNs, NetNs)> {
        let make = || -> io::Result<(NetNs, NetNs)> {
            let (near, far) = (NetNs::anonymous()?, NetNs::anonymous()?);
            let mut links = Links::open(&near)?;
            links.create_veth_into("a", None, 1500, &Peer { namespace: &far, name: "b", mac: None })?;
            for (namespace, name, address) in [(&near, "a", "10.7.0.1/24"), (&far, "b", "10.7.0.2/24")] {
                let mut links = Links::open(namespace)?;
                links.add_address(name, address.parse().unwrap())?;
                links.set_up(name)?;
                links.wait_running(name, Duration::from_secs(5)).ok();
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
        let to = |last: u8, length| Echo { to: Ipv4Addr::new(10, 7, 0, last), length };
        let sent =
            [to(2, 28), to(2, 1500), to(2, 1501), to(9, 84), Echo { to: Ipv4Addr::new(10, 8, 0, 1), length: 84 }];
        let expected = [Reached::Yes, Reached::Yes, Reached::TooLong(None), Reached::Silence, Reached::NotSent];
        assert_eq!(echo(&near, &sent, PATIENCE).unwrap(), expected);
        // The far side takes less than the near side thinks: what is too long vanishes.
        Links::open(&far).unwrap().set_mtu("b", 1400).unwrap();
        let seen = echo(&near, &[to(2, 84), to(2, 1500)], PATIENCE).unwrap();
        assert_eq!(seen, [Reached::Yes, Reached::Silence]);
    }

    #[test]
    fn a_router_says_what_fits() {
        let token = 0x0102_0304_0506_0708;
        let question = packet(&Echo { to: Ipv4Addr::LOCALHOST, length: 1500 }, 7, token);
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
}
