//! Addresses that were given back a moment ago. They rest before anybody else gets them: for that long, hosts may still
//! lead to who had them, and another would answer in its place.
//!
//! Part of the state, so that the next leader knows as much as the last one.

use std::time::Duration;

use super::index::addresses_of;
use super::{Key, Store, Txn};
use crate::model::{NetworkId, Timestamp, parse_cidr};

/// How long an address rests. In 2 s every host has heard that its holder is gone, or is not waited for either.
pub const ADDRESS_REST: Duration = Duration::from_secs(2);

impl Store {
    /// Notes which addresses nobody has any more that `before` gave to these objects, and forgets those that have rested.
    pub(super) fn note_released<'a>(&mut self, before: &Store, keys: impl IntoIterator<Item = &'a Key>) {
        let now = self.now;
        let rested = self.released.iter().filter(|(_, at)| now.since(**at) >= ADDRESS_REST);
        for key in rested.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.released.remove(&key);
        }
        for object in keys.into_iter().filter_map(|key| before.held(key)) {
            let Some((_, addresses)) = addresses_of(&object) else { continue };
            for (network, text) in addresses {
                let Some((address, _)) = parse_cidr(text) else { continue };
                if self.address_holder(network, address).is_none() {
                    self.released.insert((network.clone(), address), now);
                }
            }
        }
    }
}

impl Txn {
    /// Until when an address that nobody has rests; nothing for one that can be given.
    pub(crate) fn rests_until(&self, network: &NetworkId, address: u32) -> Option<Timestamp> {
        let given_back = match self.base().address_holder(network, address) {
            Some(_) => self.now(),
            None => *self.released.get(&(network.clone(), address))?,
        };
        Some(given_back.plus(ADDRESS_REST)).filter(|end| *end > self.now())
    }
}
