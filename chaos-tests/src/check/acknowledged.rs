//! A write that was acknowledged is never lost: the log holds its entry at its index, and the store took it.

use std::collections::BTreeMap;

use super::{Fact, Property};

/// See the file's first line.
#[derive(Default)]
pub struct Acknowledged {
    promised: BTreeMap<u64, u64>,
    applied: BTreeMap<u64, (u64, bool)>,
}

impl Property for Acknowledged {
    fn name(&self) -> &'static str {
        "an acknowledged write is never lost"
    }

    fn observe(&mut self, fact: &Fact<'_>) -> Result<(), String> {
        let index = match fact {
            Fact::Acknowledged { index, entry } => {
                if let Some(other) = self.promised.insert(*index, *entry).filter(|other| other != entry) {
                    return Err(format!("index {index} was acknowledged for the entries {other:x} and {entry:x}"));
                }
                *index
            }
            Fact::Applied(applied) => {
                self.applied.insert(applied.index, (applied.entry, applied.accepted));
                applied.index
            }
            _ => return Ok(()),
        };
        match (self.promised.get(&index), self.applied.get(&index)) {
            (Some(promised), Some((found, _))) if promised != found => {
                Err(format!("entry {promised:x} was acknowledged at index {index}, but {found:x} was applied there"))
            }
            (Some(promised), Some((_, false))) => {
                Err(format!("entry {promised:x} was acknowledged at index {index}, but was refused there"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Applied;
    use super::*;
    use deploy::store::Store;

    fn applied(property: &mut Acknowledged, index: u64, entry: u64, accepted: bool) -> Result<(), String> {
        let store = Store::default();
        let (before, after) = (&store, &store);
        let applied =
            Applied { manager: 0, index, entry, accepted, first: true, merged: false, before, after, keys: &[] };
        property.observe(&Fact::Applied(applied))
    }

    #[test]
    fn another_entry_in_its_place_is_a_loss() {
        let mut property = Acknowledged::default();
        property.observe(&Fact::Acknowledged { index: 4, entry: 7 }).unwrap();
        applied(&mut property, 3, 1, true).unwrap();
        assert!(applied(&mut property, 4, 8, true).is_err());
    }

    #[test]
    fn a_refused_entry_may_not_be_acknowledged() {
        let mut property = Acknowledged::default();
        applied(&mut property, 4, 7, false).unwrap();
        assert!(property.observe(&Fact::Acknowledged { index: 4, entry: 7 }).is_err());
    }
}
