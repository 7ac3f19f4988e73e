//! Who has which address of one network of this host, pure.
//!
//! An address is given once and returned once. Those that nobody asked for are given in turn, so that one is given again
//! as late as can be: others may still remember who had it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use deploy::model::Subnet;

/// Why somebody does not get the address that it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    /// It is none of the subnet, or its first or last one.
    Outside,
    /// It is the gateway's, or was set aside.
    Reserved,
    /// Somebody has it.
    Held,
}

/// The addresses of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Addresses {
    subnet: Subnet,
    /// The lowest and the highest that are given to those who ask for none.
    first: u32,
    last: u32,
    reserved: BTreeSet<u32>,
    /// By address.
    holders: BTreeMap<u32, String>,
    /// Where the search for the next one begins.
    next: u32,
}

impl Addresses {
    /// Those of a subnet, of which only those in `range` are given to who asks for none, and `reserved` to nobody.
    pub(super) fn new(subnet: Subnet, range: Option<Subnet>, reserved: BTreeSet<u32>) -> Self {
        let (mut first, mut last) = (subnet.first().saturating_add(1), subnet.last().saturating_sub(1));
        if let Some(range) = range {
            (first, last) = (first.max(range.first()), last.min(range.last()));
        }
        Self { subnet, first, last, reserved, holders: BTreeMap::new(), next: first }
    }

    /// An address that nobody has; nothing where all are somebody's. Whoever has one keeps it. Those that somebody else
    /// has `asked` for, who has none at this moment, are given when there is no other.
    pub(super) fn choose(&mut self, holder: &str, asked: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
        if let Some(own) = self.of(holder) {
            return Some(own);
        }
        // No more are passed over than are somebody's.
        let free = |address: &u32| !self.reserved.contains(address) && !self.holders.contains_key(address);
        let nobodys = |address: &u32| free(address) && !asked.contains(&Ipv4Addr::from(*address));
        let in_turn = || (self.next..=self.last).chain(self.first..self.next);
        let address = in_turn().find(nobodys).or_else(|| in_turn().find(free))?;
        self.give(holder, address);
        Some(address.into())
    }

    /// Gives this very address, which may be outside of the range.
    pub(super) fn take(&mut self, holder: &str, address: Ipv4Addr) -> Result<(), Unfit> {
        let address = u32::from(address);
        if address <= self.subnet.first() || address >= self.subnet.last() {
            return Err(Unfit::Outside);
        }
        if self.reserved.contains(&address) {
            return Err(Unfit::Reserved);
        }
        match self.holders.get(&address) {
            Some(other) if other != holder => return Err(Unfit::Held),
            _ => {}
        }
        self.give_back(holder);
        self.give(holder, address);
        Ok(())
    }

    /// Takes back what somebody has.
    pub(super) fn give_back(&mut self, holder: &str) {
        self.holders.retain(|_, other| other != holder);
    }

    fn of(&self, holder: &str) -> Option<Ipv4Addr> {
        self.holders.iter().find(|(_, other)| *other == holder).map(|(address, _)| (*address).into())
    }

    fn give(&mut self, holder: &str, address: u32) {
        self.holders.insert(address, holder.to_owned());
        if (self.first..=self.last).contains(&address) {
            self.next = address + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn addresses(subnet: &str, range: Option<&str>, reserved: &[&str]) -> Addresses {
        let number = |text: &&str| u32::from(text.parse::<Ipv4Addr>().unwrap());
        let range = range.map(|range| Subnet::parse(range).unwrap());
        Addresses::new(Subnet::parse(subnet).unwrap(), range, reserved.iter().map(number).collect())
    }

    #[test]
    fn addresses_are_given_in_turn_until_none_is_left() {
        let mut all = addresses("172.18.0.0/29", None, &["172.18.0.1", "172.18.0.3"]);
        let last = |given: Option<Ipv4Addr>| given.map(|address| address.octets()[3]);
        let mut next = |holder: &str| last(all.choose(holder, &BTreeSet::new()));
        assert_eq!([next("a"), next("b"), next("a"), next("c"), next("d")], [2, 4, 2, 5, 6].map(Some));
        assert_eq!(next("e"), None);
        all.give_back("b");
        all.give_back("nobody");
        let none = BTreeSet::new();
        assert_eq!(last(all.choose("e", &none)), Some(4));
        all.give_back("a");
        all.give_back("c");
        let chosen = ["f", "g", "h"].map(|holder| last(all.choose(holder, &none)));
        assert_eq!(chosen, [Some(5), Some(2), None]);
    }

    #[test]
    fn what_somebody_else_has_asked_for_is_given_last() {
        let mut all = addresses("172.18.0.0/29", None, &["172.18.0.1"]);
        let at = |last: u8| Ipv4Addr::new(172, 18, 0, last);
        let asked = BTreeSet::from([at(2), at(5), Ipv4Addr::LOCALHOST]);
        let mut next = |holder: &str| all.choose(holder, &asked);
        assert_eq!([next("a"), next("b"), next("c")], [3, 4, 6].map(|last| Some(at(last))));
        assert_eq!([next("d"), next("e"), next("f")], [Some(at(2)), Some(at(5)), None]);
    }

    #[test]
    fn an_address_that_is_asked_for_is_given_or_not() {
        let mut all = addresses("172.18.0.0/24", Some("172.18.0.128/30"), &["172.18.0.1", "172.18.0.129"]);
        let at = |last: u8| Ipv4Addr::new(172, 18, 0, last);
        assert_eq!(all.take("a", at(7)), Ok(()));
        assert_eq!(all.take("b", at(7)), Err(Unfit::Held));
        assert_eq!(all.take("a", at(8)), Ok(()), "it has that one instead");
        assert_eq!(all.take("b", at(7)), Ok(()));
        assert_eq!(all.take("c", at(1)), Err(Unfit::Reserved));
        for outside in [at(0), at(255), Ipv4Addr::new(172, 18, 1, 7)] {
            assert_eq!(all.take("c", outside), Err(Unfit::Outside), "{outside}");
        }
        // The first of the range is an address like others where the subnet goes on around it.
        let chosen =
            ["d", "e", "f", "g"].map(|holder| all.choose(holder, &BTreeSet::new()).map(|address| address.octets()[3]));
        assert_eq!(chosen, [Some(128), Some(130), Some(131), None]);
    }

    proptest! {
        #[test]
        fn nobody_has_what_another_has(steps in proptest::collection::vec((0u8..4, 0u8..12, 0u8..20), 0..200)) {
            let mut all = addresses("10.9.0.0/28", None, &["10.9.0.1"]);
            let mut known: BTreeMap<String, Ipv4Addr> = BTreeMap::new();
            for (kind, who, what) in steps {
                let who = format!("c{who}");
                match kind {
                    0 => {
                        all.give_back(&who);
                        known.remove(&who);
                    }
                    1 => if all.take(&who, Ipv4Addr::new(10, 9, 0, what)).is_ok() {
                        known.insert(who, Ipv4Addr::new(10, 9, 0, what));
                    },
                    _ => match all.choose(&who, &[Ipv4Addr::new(10, 9, 0, what)].into()) {
                        Some(address) => drop(known.insert(who, address)),
                        None => prop_assert!(known.len() == 13, "{known:?}"),
                    },
                }
                let distinct: BTreeSet<&Ipv4Addr> = known.values().collect();
                prop_assert_eq!(distinct.len(), known.len());
                prop_assert!(known.values().all(|address| (2..15).contains(&address.octets()[3])));
                prop_assert_eq!(all.holders.len(), known.len());
            }
        }
    }
}
