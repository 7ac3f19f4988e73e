//! A host that has another address than when its node joined: the node advertises the new one, and the cluster learns it
//! as its session begins. Node ids, not addresses, say who somebody is.

use std::net::SocketAddr;

use super::address::host_addresses;
use super::enter::address_towards;
use crate::datadir::MembershipRecord;

/// The record with the address that the host has now. As it was, when the host still has the old one, or when there is
/// no telling which of its addresses others reach (a network that is not up yet).
pub(super) async fn follow(record: MembershipRecord) -> MembershipRecord {
    let Ok(advertised) = record.advertise_addr.parse::<SocketAddr>() else { return record };
    let host = host_addresses();
    if advertised.ip().is_loopback() || host.iter().any(|(_, ip)| advertised.ip() == *ip) {
        return record;
    }
    // The way to another manager says which address counts; the only manager has nobody to ask.
    let mut others = record.managers.iter().filter(|manager| manager.node_id != record.node_id);
    let found = match (others.next(), &host[..]) {
        (Some(manager), _) => address_towards(&manager.addr, advertised.port()).await.ok(),
        (None, [(_, only)]) => Some(SocketAddr::from((*only, advertised.port()))),
        (None, _) => None,
    };
    match found.filter(|found| host.iter().any(|(_, ip)| found.ip() == *ip)) {
        Some(now) => {
            tracing::warn!(before = %advertised, %now, "this host has another address now");
            moved_to(record, advertised, now)
        }
        None => {
            tracing::warn!(advertised = %advertised, "this host does not have the address that it advertises");
            record
        }
    }
}

/// What had the old address has the new one; what had another (a data path of its own, any address) keeps it.
fn moved_to(mut record: MembershipRecord, before: SocketAddr, now: SocketAddr) -> MembershipRecord {
    record.advertise_addr = now.to_string();
    if record.data_path_addr == before.ip().to_string() {
        record.data_path_addr = now.ip().to_string();
    }
    if let Ok(listen) = record.listen_addr.parse::<SocketAddr>()
        && listen.ip() == before.ip()
    {
        record.listen_addr = SocketAddr::new(now.ip(), listen.port()).to_string();
    }
    for manager in record.managers.iter_mut().filter(|manager| manager.node_id == record.node_id) {
        manager.addr = now.to_string();
    }
    record
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_had_the_old_address_has_the_new_one() {
        let record = |listen: &str, data: &str| MembershipRecord {
            advertise_addr: "10.0.0.1:2377".into(),
            listen_addr: listen.into(),
            data_path_addr: data.into(),
            ..MembershipRecord::default()
        };
        let (before, now) = ("10.0.0.1:2377".parse().unwrap(), "10.0.0.9:2377".parse().unwrap());
        let all = moved_to(record("10.0.0.1:2377", "10.0.0.1"), before, now);
        assert_eq!((&*all.advertise_addr, &*all.listen_addr), ("10.0.0.9:2377", "10.0.0.9:2377"));
        assert_eq!(all.data_path_addr, "10.0.0.9");
        let own = moved_to(record("0.0.0.0:2377", "192.168.0.1"), before, now);
        assert_eq!((&*own.listen_addr, &*own.data_path_addr), ("0.0.0.0:2377", "192.168.0.1"));
    }
}
