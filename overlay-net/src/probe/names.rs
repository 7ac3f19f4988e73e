//! Asks the resolver of a namespace for names, as a program there does: at 127.0.0.11, port 53.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use crate::dns::ADDRESS;
use crate::kernel::NetNs;

/// One question waits so long, and is then asked once more.
const ONE: Duration = Duration::from_millis(400);
const TRIES: u16 = 2;
/// What we can take by UDP.
const UDP_MAX: u16 = 4096;
const HEADER: usize = 12;
const A: u16 = 1;
const AAAA: u16 = 28;
const NO_SUCH_NAME: u8 = 3;

/// What a resolver says of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// These addresses; possibly none.
    Addresses(BTreeSet<IpAddr>),
    /// There is no such name.
    NoSuchName,
    /// Another code than success and "no such name".
    Failure(u8),
    /// Nothing that could be read came in time.
    Silence,
    /// It was too late to ask.
    NotAsked,
}

/// Which addresses a name is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Families {
    /// IPv4 alone.
    Four,
    /// IPv4, then IPv6; the answer has both, or what is wrong with either.
    Both,
}

/// Asks for the addresses of names, one after the other; after `patience` no more are asked. The answers are in the order
/// of the names.
///
/// # Errors
/// When the namespace cannot be entered, or no socket opened there.
pub fn resolve(namespace: &NetNs, names: &[String], families: Families, patience: Duration) -> io::Result<Vec<Answer>> {
    let end = Instant::now() + patience;
    namespace.visit(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((ADDRESS, 53))?;
        let ask = |(number, name): (usize, &String)| {
            if Instant::now() > end {
                return Answer::NotAsked;
            }
            let id = u16::try_from(number % 0x4000).unwrap_or_default() * 2 * TRIES;
            let asked = |id: u16, kind| {
                (0..TRIES).find_map(|again| ask(&socket, id + again, name, kind)).unwrap_or(Answer::Silence)
            };
            match families {
                Families::Four => asked(id, A),
                Families::Both => asked(id, A).and(asked(id + TRIES, AAAA)),
            }
        };
        Ok(names.iter().enumerate().map(ask).collect())
    })
}

impl Answer {
    /// What is said of a name as a whole.
    fn and(self, other: Answer) -> Answer {
        match (self, other) {
            (Answer::Addresses(four), Answer::Addresses(six)) => {
                Answer::Addresses(four.into_iter().chain(six).collect())
            }
            (Answer::Addresses(_), wrong) | (wrong, _) => wrong,
        }
    }
}

fn ask(socket: &UdpSocket, id: u16, name: &str, kind: u16) -> Option<Answer> {
    let question = question(id, name, kind)?;
    socket.send(&question).ok()?;
    let until = Instant::now() + ONE;
    let mut packet = vec![0; usize::from(UDP_MAX)];
    loop {
        let left = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
        socket.set_read_timeout(Some(left)).ok()?;
        let length = socket.recv(&mut packet).ok()?;
        match read(&packet[..length], id, kind) {
            Some(Some(answer)) => return Some(answer),
            // It was cut short.
            Some(None) => return by_stream(&question, id, kind).ok().flatten(),
            // A late answer to an earlier question.
            None => {}
        }
    }
}

fn by_stream(question: &[u8], id: u16, kind: u16) -> io::Result<Option<Answer>> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((ADDRESS, 53)), ONE)?;
    stream.set_read_timeout(Some(ONE))?;
    stream.write_all(&[&u16::try_from(question.len()).unwrap_or_default().to_be_bytes(), question].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut packet = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut packet)?;
    Ok(read(&packet, id, kind).flatten())
}

/// Nothing for a name that cannot be one.
fn question(id: u16, name: &str, kind: u16) -> Option<Vec<u8>> {
    let mut packet = Vec::from(id.to_be_bytes());
    // Recursion desired; one question, and one record that says how much we can take.
    packet.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..64).contains(length))?;
        packet.push(length);
        packet.extend(label.bytes());
    }
    packet.push(0);
    packet.extend(kind.to_be_bytes());
    packet.extend([0, 1, 0, 0, 41]);
    packet.extend(UDP_MAX.to_be_bytes());
    packet.extend([0; 6]);
    (packet.len() < 512).then_some(packet)
}

/// Nothing if it is no answer to that question; an empty something if it was cut short.
fn read(packet: &[u8], id: u16, kind: u16) -> Option<Option<Answer>> {
    let word = |at: usize| Some(u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?));
    if word(0)? != id || packet.get(2)? & 0x80 == 0 {
        return None;
    }
    if packet[2] & 0x02 != 0 {
        return Some(None);
    }
    match packet.get(3)? & 0x0f {
        0 => {}
        NO_SUCH_NAME => return Some(Some(Answer::NoSuchName)),
        code => return Some(Some(Answer::Failure(code))),
    }
    let mut at = HEADER;
    for _ in 0..word(4)? {
        at = behind_name(packet, at)? + 4;
    }
    let mut addresses = BTreeSet::new();
    for _ in 0..word(6)? {
        at = behind_name(packet, at)?;
        let (found, length) = (word(at)?, usize::from(word(at + 8)?));
        let data = packet.get(at + 10..at + 10 + length)?;
        match (found, data.len()) {
            (A, 4) if kind == A => drop(addresses.insert(IpAddr::from(<[u8; 4]>::try_from(data).ok()?))),
            (AAAA, 16) if kind == AAAA => drop(addresses.insert(IpAddr::from(<[u8; 16]>::try_from(data).ok()?))),
            _ => {}
        }
        at += 10 + length;
    }
    Some(Some(Answer::Addresses(addresses)))
}

fn behind_name(packet: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *packet.get(at)? {
            0 => return Some(at + 1),
            // A pointer ends a name.
            length if length >= 0xc0 => return Some(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::{Desired, Endpoint, Network, Service};
    use crate::dns::{Decision, Transport, View, Zone, resolve};

    fn zone(tasks: u8) -> (Zone, View) {
        let endpoint = |last: u8| Endpoint {
            task: format!("t{last}"),
            name: format!("web.{last}"),
            address: Ipv4Addr::new(10, 1, 0, last),
            names: Vec::new(),
            serving: true,
        };
        let network = Network {
            id: "n".into(),
            name: "net".into(),
            vni: 7,
            subnet: "10.1.0.0/16".parse().unwrap(),
            subnet6: None,
            encrypted: false,
            gateway: Ipv4Addr::new(10, 1, 0, 1),
            internal: true,
            ingress: false,
            local: false,
            mtu: None,
            host_address: None,
            stations: Vec::new(),
            services: vec![Arc::new(Service {
                name: "web".into(),
                aliases: Vec::new(),
                vip: Some(Ipv4Addr::new(10, 1, 9, 9)),
                endpoints: (10..10 + tasks).map(endpoint).collect(),
                ports: Vec::new(),
            })],
        };
        let desired = Desired {
            revision: 1,
            networks: vec![Arc::new(network)],
            ports: Vec::new(),
            sealing: None,
            taken: Vec::new(),
        };
        (Zone::new(&desired, &BTreeSet::new()), View { networks: vec!["n".into()], ..View::default() })
    }

    #[test]
    fn two_answers_are_one() {
        let found = |text: &[&str]| Answer::Addresses(text.iter().map(|address| address.parse().unwrap()).collect());
        assert_eq!(found(&["10.0.0.1"]).and(found(&["fd00::1"])), found(&["10.0.0.1", "fd00::1"]));
        assert_eq!(found(&["10.0.0.1"]).and(Answer::Silence), Answer::Silence);
        assert_eq!(Answer::NoSuchName.and(found(&[])), Answer::NoSuchName);
        assert_eq!(Answer::NoSuchName.and(Answer::Silence), Answer::NoSuchName);
    }

    #[track_caller]
    fn check(name: &str, tasks: u8, transport: Transport, expected: Option<Answer>) {
        let (zone, view) = zone(tasks);
        let Decision::Reply(reply) = resolve(&zone, &view, &question(9, name, A).unwrap(), transport, 0) else {
            panic!("{name} is not answered")
        };
        assert_eq!(read(&reply, 9, A), Some(expected), "{name}");
        assert_eq!(read(&reply, 8, A), None);
        for length in 0..reply.len() {
            read(&reply[..length], 9, A);
        }
    }

    #[test]
    fn answers_of_our_resolver_are_read() {
        let all = |range: std::ops::Range<u8>| {
            Some(Answer::Addresses(range.map(|last| IpAddr::from([10, 1, 0, last])).collect()))
        };
        check("web", 3, Transport::Udp, Some(Answer::Addresses([IpAddr::from([10, 1, 9, 9])].into())));
        check("tasks.web.net", 3, Transport::Udp, all(10..13));
        check("web.11", 3, Transport::Udp, all(11..12));
        check("nosuch", 3, Transport::Udp, Some(Answer::NoSuchName));
        check("tasks.web", 200, Transport::Tcp, all(10..210));
        check("tasks.web", 200, Transport::Udp, None);
    }

    #[test]
    fn names_that_cannot_be_are_not_asked_for() {
        for bad in ["", "a..b", &"x".repeat(64), &"x.".repeat(300)] {
            assert_eq!(question(1, bad, A), None, "{bad:?}");
        }
    }
}
