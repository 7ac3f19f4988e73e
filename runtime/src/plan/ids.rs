//! The ids of a container that has a user namespace.

use super::PlanError;
use crate::config::{IdMappings, IdRange};

/// What the kernel takes in one map.
const MAX_RANGES: usize = 340;

/// The maps of a user namespace, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ids {
    /// As written to `uid_map`.
    pub(crate) uid_map: String,
    /// As written to `gid_map`.
    pub(crate) gid_map: String,
    /// What the container's root is on the host.
    pub(crate) root: (u32, u32),
    /// Users and groups that the container has.
    uids: Vec<IdRange>,
    gids: Vec<IdRange>,
}

impl Ids {
    pub(crate) fn new(maps: &IdMappings) -> Result<Ids, PlanError> {
        let (uid_map, uid) = map("id_mappings.uids", &maps.uids)?;
        let (gid_map, gid) = map("id_mappings.gids", &maps.gids)?;
        Ok(Ids { uid_map, gid_map, root: (uid, gid), uids: maps.uids.clone(), gids: maps.gids.clone() })
    }

    /// Whether the container has this group.
    pub(super) fn has_group(&self, gid: u32) -> bool {
        outside(&self.gids, gid).is_some()
    }

    /// What a user and a group of the container are on the host.
    pub(crate) fn outside(&self, uid: u32, gid: u32) -> Option<(u32, u32)> {
        Some((outside(&self.uids, uid)?, outside(&self.gids, gid)?))
    }
}

fn outside(ranges: &[IdRange], inside: u32) -> Option<u32> {
    let at = |range: &IdRange| inside.checked_sub(range.inside).filter(|at| *at < range.count);
    ranges.iter().find_map(|range| Some(range.outside + at(range)?))
}

/// The text of one map, and what 0 is on the host.
fn map(field: &'static str, ranges: &[IdRange]) -> Result<(String, u32), PlanError> {
    let root = check_ranges(field, ranges)?;
    let lines = ranges.iter().map(|range| format!("{} {} {}\n", range.inside, range.outside, range.count));
    Ok((lines.collect(), root))
}

/// Whether the kernel would take these ranges, and root is among them. Answers what root is on the host.
pub(crate) fn check_ranges(field: &'static str, ranges: &[IdRange]) -> Result<u32, PlanError> {
    if ranges.is_empty() || ranges.len() > MAX_RANGES {
        return Err(PlanError::invalid(field, format!("must have 1 to {MAX_RANGES} ranges")));
    }
    // The last id is nobody's: it means "leave as it is" to the kernel.
    let fits = |start: u32, count: u32| count > 0 && start.checked_add(count).is_some();
    if let Some(bad) = ranges.iter().find(|range| !fits(range.inside, range.count) || !fits(range.outside, range.count))
    {
        return Err(PlanError::invalid(field, format!("{} {} {} is no range", bad.inside, bad.outside, bad.count)));
    }
    let overlap = |start: fn(&IdRange) -> u32| {
        let mut sorted: Vec<(u32, u32)> = ranges.iter().map(|range| (start(range), range.count)).collect();
        sorted.sort_unstable();
        sorted.windows(2).any(|pair| matches!(pair, [(a, count), (b, _)] if a + count > *b))
    };
    if overlap(|range| range.inside) || overlap(|range| range.outside) {
        return Err(PlanError::invalid(field, "ranges overlap"));
    }
    let Some(root) = ranges.iter().find(|range| range.inside == 0) else {
        return Err(PlanError::invalid(field, "must map 0"));
    };
    Ok(root.outside)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(inside: u32, outside: u32, count: u32) -> IdRange {
        IdRange { inside, outside, count }
    }

    #[test]
    fn maps_are_checked() {
        let good = [range(0, 100_000, 1000), range(1000, 200_000, 1)];
        assert_eq!(map("ids", &good), Ok(("0 100000 1000\n1000 200000 1\n".to_owned(), 100_000)));
        for (bad, reason) in [
            (vec![], "1 to 340"),
            (vec![range(0, 1, 1); 341], "1 to 340"),
            (vec![range(0, 1, 0)], "is no range"),
            (vec![range(0, u32::MAX, 1)], "is no range"),
            (vec![range(1, 100_000, 5)], "must map 0"),
            (vec![range(0, 100_000, 5), range(4, 200_000, 5)], "overlap"),
            (vec![range(0, 100_000, 5), range(5, 100_004, 5)], "overlap"),
        ] {
            let error = map("ids", &bad).unwrap_err().to_string();
            assert!(error.contains(reason), "{error} has no {reason:?}");
        }
        let maps = IdMappings { uids: good.to_vec(), gids: vec![range(0, 300_000, 5)] };
        let ids = Ids::new(&maps).unwrap();
        assert_eq!((ids.root, ids.has_group(4), ids.has_group(5)), ((100_000, 300_000), true, false));
        assert_eq!(ids.outside(1000, 4), Some((200_000, 300_004)));
        assert_eq!((ids.outside(1001, 4), ids.outside(0, 5)), (None, None));
    }
}
