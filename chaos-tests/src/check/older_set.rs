//! An agent never acts on an older assignment set than one that it has seen, also across restarts of its daemon.

use std::collections::BTreeMap;

use deploy::dispatcher::Stamp;
use deploy::model::NodeId;

use super::{Fact, Property};

/// See the file's first line.
#[derive(Default)]
pub struct OlderSet {
    seen: BTreeMap<NodeId, Stamp>,
}

impl Property for OlderSet {
    fn name(&self) -> &'static str {
        "an agent never acts on an older set"
    }

    fn observe(&mut self, fact: &Fact<'_>) -> Result<(), String> {
        let Fact::TookSet { host, stamp } = fact else { return Ok(()) };
        if let Some(seen) = self.seen.insert((*host).clone(), *stamp)
            && seen.incarnation == stamp.incarnation
            && seen.revision > stamp.revision
        {
            return Err(format!("{host} took over {stamp:?} after {seen:?}"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_back_is_found() {
        let host = NodeId::new("h");
        let took = |revision| Fact::TookSet { host: &host, stamp: Stamp { incarnation: 1, term: 1, revision } };
        let mut property = OlderSet::default();
        property.observe(&took(5)).unwrap();
        property.observe(&took(6)).unwrap();
        assert!(property.observe(&took(5)).is_err());
    }
}
