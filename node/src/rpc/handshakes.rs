//! How many handshakes one source may have under way, so that nobody who connects and says nothing keeps all others out.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// Handshakes that one source has under way at most; more are hung up on.
const PER_SOURCE: usize = 256;
/// Of an IPv6 address, what a provider gives to one customer.
const NET6: u128 = u128::MAX << 64;

/// Handshakes under way, by source. A clone is the same ones.
#[derive(Clone, Default)]
pub(super) struct Handshakes {
    by_source: Arc<Mutex<BTreeMap<IpAddr, usize>>>,
}

impl Handshakes {
    /// Counts a handshake for as long as the answer lives; `None` if that source has enough.
    pub(super) fn begin(&self, from: IpAddr) -> Option<Underway> {
        let source = match from.to_canonical() {
            IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & NET6)),
            ip => ip,
        };
        let mut by_source = self.by_source.lock().unwrap_or_else(PoisonError::into_inner);
        let count = by_source.entry(source).or_default();
        if *count >= PER_SOURCE {
            return None;
        }
        *count += 1;
        Some(Underway { source, handshakes: self.clone() })
    }
}

/// A handshake that is counted.
pub(super) struct Underway {
    source: IpAddr,
    handshakes: Handshakes,
}

impl Drop for Underway {
    fn drop(&mut self) {
        let mut by_source = self.handshakes.by_source.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = by_source.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                by_source.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_has_a_share_and_others_theirs() {
        let handshakes = Handshakes::default();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut open: Vec<_> = (0..PER_SOURCE).map(|_| handshakes.begin(ip("192.0.2.1")).unwrap()).collect();
        assert!(handshakes.begin(ip("192.0.2.1")).is_none() && handshakes.begin(ip("::ffff:192.0.2.1")).is_none());
        let other = handshakes.begin(ip("192.0.2.2")).unwrap();
        open.pop();
        open.push(handshakes.begin(ip("192.0.2.1")).unwrap());
        assert!(handshakes.begin(ip("192.0.2.1")).is_none());
        drop((open, other));
        assert!(handshakes.by_source.lock().unwrap().is_empty());
        let open: Vec<_> = (0..PER_SOURCE).map(|n| handshakes.begin(ip(&format!("2001:db8::{n:x}")))).collect();
        assert!(open.iter().all(Option::is_some));
        assert!(handshakes.begin(ip("2001:db8::ffff")).is_none() && handshakes.begin(ip("2001:db8:0:1::1")).is_some());
    }
}
