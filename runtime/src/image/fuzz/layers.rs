//! Target: one layer's stream, compressed or not, into a directory.
//!
//! Asked of each: nothing outside of the directory changes; an error is the archive's fault and not this host's; the same
//! stream gives the same tree or the same error again; no mark of the unpacker's own stays; what came of it can be removed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::super::archive::drain;
use super::super::compression::Decoder;
use super::super::error::{ImageError, ImageErrorKind};
use super::super::limits::{Budget, Limits};
use super::super::tarball::{EndMarker, TarReader};
use super::super::unpack::LayerWriter;
use super::images::{PACKS, pack};
use super::tar::{Manner, stream};
use super::tree::describe;
use super::{not_root, scratch};
use crate::fuzz::{Source, fuzz};
use crate::remove::remove_tree;

/// As [`super::super::ingest`] does it, without digests.
pub(super) fn unpack(bytes: &[u8], into: &Path) -> Result<(), ImageError> {
    let limits = Limits { max_unpacked_bytes: 1 << 20, max_entries: 3000, ..Limits::default() };
    let budget = Budget::new(limits);
    let mut decoder = Decoder::new(bytes, "it")?;
    let mut tar = TarReader::new(&mut decoder, "it", &budget.limits, EndMarker::Required);
    let (_, unsettled) = LayerWriter::new(into, "it", &budget)?.unpack(&mut tar)?;
    drain(&mut decoder, "it")?;
    unsettled.settle(into, "it", &[])
}

struct Arena {
    dir: tempfile::TempDir,
    layer: PathBuf,
    before: BTreeMap<String, String>,
}

impl Arena {
    fn new() -> Arena {
        let dir = scratch();
        let outside = dir.path().join("outside");
        std::fs::create_dir_all(outside.join("dir")).unwrap();
        std::fs::write(outside.join("a"), "as it was").unwrap();
        std::fs::create_dir_all(dir.path().join("inside/deeper")).unwrap();
        let layer = dir.path().join("inside/deeper/layer");
        let before = describe(dir.path());
        Arena { dir, layer, before }
    }

    fn outside(&self) -> String {
        self.dir.path().join("outside").display().to_string()
    }

    /// The tree that a stream becomes, or the error.
    fn unpack(&self, bytes: &[u8]) -> Result<BTreeMap<String, String>, String> {
        std::fs::create_dir(&self.layer).unwrap();
        let outcome = unpack(bytes, &self.layer);
        let mut tree = describe(&self.layer);
        // An archive need not name its root, which has the time of its last entry then.
        tree.retain(|name, _| !name.is_empty());
        remove_tree(&self.layer).unwrap();
        let mut after = describe(self.dir.path());
        // Where the layer was, the time has changed.
        let place = "inside/deeper".to_owned();
        after.insert(place.clone(), self.before[&place].clone());
        assert_eq!(after, self.before, "outside of the layer");
        match outcome {
            Ok(()) => {
                assert!(!tree.values().any(|text| text.contains("trusted.shoal")), "{tree:#?}");
                Ok(tree)
            }
            Err(error) => {
                assert_eq!(error.kind(), ImageErrorKind::InvalidInput, "{error:?}");
                Err(format!("{error:?}"))
            }
        }
    }

    fn check(&self, bytes: &[u8]) -> bool {
        let first = self.unpack(bytes);
        assert_eq!(self.unpack(bytes), first, "the second time");
        first.is_ok()
    }
}

fn input(source: &mut Source, outside: &str) -> Vec<u8> {
    let mut bytes = stream(source, Manner::Hostile, outside);
    if source.one_in(4) {
        source.mangle(&mut bytes);
    }
    let mut bytes = pack(&bytes, PACKS[source.below(3)]);
    if source.one_in(6) {
        source.mangle(&mut bytes);
    }
    bytes
}

#[test]
fn layers() {
    if not_root() {
        return;
    }
    let arena = Arena::new();
    let (mut whole, mut count) = (0, 0);
    fuzz("layers", 1500, |source| {
        let bytes = input(source, &arena.outside());
        whole += u64::from(arena.check(&bytes));
        count += 1;
    });
    // Otherwise only the first checks would have been tried.
    assert!(count < 1000 || whole * 20 > count, "only {whole} of {count} were unpacked");
}
