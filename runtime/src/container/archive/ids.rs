//! Users as the container counts them, and as the host does.

use super::CopyError;
use crate::config::{ContainerConfig, IdMappings, IdRange};

/// Who a file belongs to when nobody of the container owns it; the kernel's own answer.
const NOBODY: u32 = 65_534;

/// The ids of a container; the host's own when it has no user namespace.
pub(super) struct Ids {
    maps: Option<IdMappings>,
    /// Its layers are seen without their ids mapped, as they are when it has ended.
    plain_layers: bool,
}

impl Ids {
    pub(super) fn of(config: &ContainerConfig, ended: bool) -> Ids {
        Ids { maps: config.id_mappings.clone(), plain_layers: ended }
    }

    /// Those of a container without a user namespace.
    #[cfg(test)]
    pub(super) fn hosts() -> Ids {
        Ids { maps: None, plain_layers: false }
    }

    /// Owner and group of a file as the container sees them.
    pub(super) fn inside(&self, uid: u32, gid: u32) -> (u32, u32) {
        let Some(maps) = &self.maps else { return (uid, gid) };
        let map = |ranges: &[IdRange], id: u32| {
            let found = ranges.iter().find_map(|range| {
                let at = id.checked_sub(range.outside).filter(|at| *at < range.count)?;
                range.inside.checked_add(at)
            });
            found.unwrap_or(if self.plain_layers { id } else { NOBODY })
        };
        (map(&maps.uids, uid), map(&maps.gids, gid))
    }

    /// The host's ids for those of the container; `entry` names what is to belong to them.
    pub(super) fn outside(&self, uid: u32, gid: u32, entry: &str) -> Result<(u32, u32), CopyError> {
        let Some(maps) = &self.maps else { return Ok((uid, gid)) };
        let map = |ranges: &[IdRange], id: u32| {
            let found = ranges.iter().find_map(|range| {
                let at = id.checked_sub(range.inside).filter(|at| *at < range.count)?;
                range.outside.checked_add(at)
            });
            found.ok_or_else(|| CopyError::Entry {
                entry: entry.to_owned(),
                reason: format!("its owner {id} is none that the container's user namespace has"),
            })
        };
        Ok((map(&maps.uids, uid)?, map(&maps.gids, gid)?))
    }

    /// The container's root on the host, when it is another than the host's.
    pub(super) fn root(&self) -> Option<u32> {
        let maps = self.maps.as_ref()?;
        maps.uids.iter().find(|range| range.inside == 0).map(|range| range.outside)
    }

    /// Who must make files for a container that lives: mounts with mapped ids take them from nobody else.
    pub(super) fn maker(&self) -> Option<(u32, u32)> {
        let maps = self.maps.as_ref().filter(|_| !self.plain_layers)?;
        let gid = maps.gids.iter().find(|range| range.inside == 0).map(|range| range.outside);
        Some((self.root()?, gid?))
    }

    /// Whether its volumes are seen without their ids mapped, though it has a user namespace.
    pub(super) fn has_lost_its_maps(&self) -> bool {
        self.maps.is_some() && self.plain_layers
    }
}

/// The attribute that holds a file's capabilities.
pub(super) const CAPABILITY: &[u8] = b"security.capability";
/// Its forms: without an owner of the capabilities (20 bytes), and with one (24); the first four bytes hold the form
/// and one flag.
const FORM: u32 = 0xff00_0000;
const PLAIN: (usize, u32) = (20, 0x0200_0000);
const OWNED: (usize, u32) = (24, 0x0300_0000);

fn capability_form(value: &[u8], (length, form): (usize, u32)) -> Option<u32> {
    let head = u32::from_le_bytes(*value.first_chunk()?);
    (value.len() == length && head & FORM == form).then_some(head & !FORM)
}

impl Ids {
    /// File capabilities as the container sees them: those of its own root look like any.
    pub(super) fn capability_inside(&self, mut value: Vec<u8>) -> Vec<u8> {
        if let (Some(root), Some(flag)) = (self.root(), capability_form(&value, OWNED))
            && value.ends_with(&root.to_le_bytes())
        {
            value.truncate(PLAIN.0);
            value[..4].copy_from_slice(&(PLAIN.1 | flag).to_le_bytes());
        }
        value
    }

    /// The other way: without an owner they would be the host's.
    pub(super) fn capability_outside(&self, value: &[u8]) -> Vec<u8> {
        match (self.root(), capability_form(value, PLAIN)) {
            (Some(root), Some(flag)) => {
                [&(OWNED.1 | flag).to_le_bytes()[..], &value[4..], &root.to_le_bytes()[..]].concat()
            }
            _ => value.to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_mapped_both_ways() {
        let range = |inside, outside, count| IdRange { inside, outside, count };
        let uids = vec![range(0, 100_000, 1000), range(5000, 7, 1)];
        let maps = IdMappings { uids, gids: vec![range(0, 200_000, 10)] };
        let mut ids = Ids { maps: Some(maps), plain_layers: false };
        assert_eq!(ids.inside(100_000, 200_009), (0, 9));
        assert_eq!(ids.inside(7, 3), (5000, NOBODY));
        assert_eq!(ids.outside(999, 0, "f").unwrap(), (100_999, 200_000));
        assert!(ids.outside(1000, 0, "f").is_err());
        assert!(ids.outside(0, 10, "f").is_err());
        assert_eq!(ids.root(), Some(100_000));
        let plain = [&[1, 0, 0, 2][..], &[9; 16]].concat();
        let owned = ids.capability_outside(&plain);
        assert_eq!((owned.len(), &owned[..4], &owned[20..]), (24, &[1, 0, 0, 3][..], &100_000u32.to_le_bytes()[..]));
        assert_eq!(ids.capability_inside(owned), plain);
        ids.plain_layers = true;
        assert_eq!(ids.inside(100_005, 3), (5, 3));
        let hosts = Ids::hosts();
        assert_eq!((hosts.inside(4, 5), hosts.outside(4, 5, "f").unwrap()), ((4, 5), (4, 5)));
    }
}
