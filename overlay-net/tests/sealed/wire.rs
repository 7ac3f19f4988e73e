//! What is on the wire between the hosts: all frames of a namespace, and frames that nobody of ours has sent.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};
use overlay_net::kernel::{NetNs, mac_of};

/// The UDP ports that hosts speak at.
pub const VXLAN: u16 = 4789;
pub const SEALED: [u16; 2] = [4790, 4791];

/// What was seen.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Frames that have the text in them.
    pub readable: usize,
    /// VXLAN packets with the network identifier.
    pub tunnelled: usize,
    /// Packets to each of the ports for sealed ones.
    pub sealed: [usize; 2],
}

/// Listens to a namespace until it is asked.
pub struct Tap {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

impl Tap {
    pub fn start(namespace: &NetNs, text: &'static [u8], vni: u32) -> Tap {
        let open = || -> std::io::Result<OwnedFd> {
            let flags = SockFlag::SOCK_CLOEXEC;
            let fd = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
            nix::sys::socket::setsockopt(&fd, nix::sys::socket::sockopt::RcvBufForce, &(32 << 20))?;
            Ok(fd)
        };
        let fd = namespace.visit(open).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut seen = Seen::default();
            let mut buffer = vec![0; 65536];
            loop {
                // Asked before the last look, so that nothing that was there by then is missed.
                let last = stopped.load(Ordering::Acquire);
                let wait = if last { 0u16 } else { 20 };
                let mut polled = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
                if poll(&mut polled, wait).unwrap() == 0 {
                    if last {
                        return seen;
                    }
                    continue;
                }
                let length = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT).unwrap_or(0);
                look(&buffer[..length], text, vni, &mut seen);
            }
        });
        Tap { stop, thread }
    }

    pub fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Release);
        self.thread.join().unwrap()
    }
}

fn look(frame: &[u8], text: &[u8], vni: u32, seen: &mut Seen) {
    seen.readable += usize::from(frame.windows(text.len()).any(|window| window == text));
    let is_udp = frame.get(12..14) == Some(&[8, 0]) && frame.get(23) == Some(&17);
    let Some(port) = frame.get(36..38).filter(|_| is_udp) else { return };
    let port = u16::from_be_bytes([port[0], port[1]]);
    let [_, high, middle, low] = vni.to_be_bytes();
    seen.tunnelled += usize::from(port == VXLAN && frame.get(46..49) == Some(&[high, middle, low]));
    for (count, sealed) in seen.sealed.iter_mut().zip(SEALED) {
        *count += usize::from(port == sealed);
    }
}

/// A VXLAN packet with a datagram in it from nobody to an address of a network, and that network's identifier.
fn forged(vni: u32, to: Ipv4Addr, port: u16, text: &[u8]) -> Vec<u8> {
    let from = Ipv4Addr::from(u32::from(to) | 0x7f);
    let [_, high, middle, low] = vni.to_be_bytes();
    let mut packet = vec![8, 0, 0, 0, high, middle, low, 0];
    packet.extend(mac_of(to));
    packet.extend(mac_of(from));
    packet.extend([8, 0]);
    let datagram = u16::try_from(8 + text.len()).unwrap();
    let mut header = vec![0x45, 0];
    header.extend((20 + datagram).to_be_bytes());
    header.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    header.extend(from.octets());
    header.extend(to.octets());
    let sum: u32 = header.chunks(2).map(|two| u32::from(u16::from_be_bytes([two[0], two[1]]))).sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(header);
    packet.extend(port.to_be_bytes());
    packet.extend(port.to_be_bytes());
    packet.extend(datagram.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(text);
    packet
}

/// Sends such a packet to a host.
pub fn forge(outside: &NetNs, host: Ipv4Addr, vni: u32, to: Ipv4Addr, port: u16, text: &[u8]) {
    let socket = outside.visit(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).unwrap();
    socket.send_to(&forged(vni, to, port, text), (host, VXLAN)).unwrap();
}
