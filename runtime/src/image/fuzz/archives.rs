//! Target: whole image archives, of both formats, through [`ImageStore::load`]; and what the store holds when it is opened.
//!
//! Asked of each: after an error the store is as it was, and the error is the archive's fault; what was loaded is found,
//! loads again, survives the next opening, and can be removed without a trace.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Value, json};

use super::super::error::{ImageError, ImageErrorKind};
use super::super::limits::Limits;
use super::super::store::ImageStore;
use super::images::{Layout, PACKS, Pack, Tar, TestImage, oci_layout, pack};
use super::tar::{Manner, stream};
use super::tree::describe;
use super::{not_root, scratch};
use crate::fuzz::{Source, fuzz, json};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn limits() -> Limits {
    Limits {
        max_archive_bytes: 4 << 20,
        max_unpacked_bytes: 4 << 20,
        max_entries: 3000,
        max_metadata_bytes: 1 << 20,
        ..Limits::default()
    }
}

/// The store's tree but for times of directories, which `tmp/` changes by being used.
fn snapshot(root: &Path) -> BTreeMap<String, String> {
    let cut = |text: String| text.split(" at ").next().unwrap_or_default().to_owned();
    describe(root).into_iter().map(|(name, text)| (name, cut(text))).collect()
}

/// What an archive is made of, before it is one.
struct Pieces<'a> {
    source: &'a mut Source,
    layout: Layout,
}

impl Pieces<'_> {
    fn document(&mut self, media_type: &str, mut document: Value) -> Value {
        if self.source.one_in(8) {
            json::change(self.source, &mut document);
        }
        let mut text = document.to_string().into_bytes();
        if self.source.one_in(30) {
            self.source.mangle(&mut text);
        }
        self.layout.blob(media_type, &text)
    }

    /// The descriptor of one image's manifest, and its line of the older form.
    fn image(&mut self) -> (Value, Value) {
        let count = self.source.below(4);
        let layers: Vec<Vec<u8>> = (0..count)
            .map(|_| {
                let manner = if self.source.one_in(8) { Manner::Hostile } else { Manner::Good };
                stream(self.source, manner, "/nowhere")
            })
            .collect();
        let image = TestImage::new("web", layers);
        let config: Value = serde_json::from_slice(&image.config()).unwrap();
        let config = self.document("application/vnd.oci.image.config.v1+json", config);
        let mut layers = Vec::new();
        for layer in &image.layers {
            let form = PACKS[self.source.below(3)];
            layers.push(self.layout.blob("application/vnd.oci.image.layer.v1.tar", &pack(layer, form)));
        }
        let name =
            |descriptor: &Value| format!("blobs/sha256/{}", &descriptor["digest"].as_str().unwrap_or_default()[7..]);
        let names: Vec<String> = layers.iter().map(name).collect();
        let tag = self.source.pick(&["web", "web:1", "quay.io/a/b:c", "web", "a/b", "a.b/c", "web:2", "", "x@sha256:"]);
        let saved = json!({ "Config": name(&config), "RepoTags": [tag], "Layers": names });
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers });
        (self.document(MANIFEST, manifest), saved)
    }
}

fn archive(source: &mut Source) -> Vec<u8> {
    let mut pieces = Pieces { source, layout: Layout::new() };
    let (mut manifests, mut saved) = (Vec::new(), Vec::new());
    for _ in 0..1 + pieces.source.below(2) {
        let (manifest, line) = pieces.image();
        manifests.push(manifest);
        saved.push(line);
    }
    for _ in 0..pieces.source.below(4) {
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
        let index = pieces.document(INDEX, index);
        manifests = vec![index; 1 + pieces.source.below(3)];
    }
    for manifest in &mut manifests {
        manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "web:1" });
    }
    let Pieces { source, layout } = pieces;
    let mut index = json!({ "schemaVersion": 2, "manifests": manifests });
    let mut saved = Value::from(saved);
    for document in [&mut index, &mut saved] {
        if source.one_in(8) {
            json::change(source, document);
        }
    }
    let mut files = layout.blobs;
    let forms = source.below(3);
    if forms != 1 {
        files.push(("index.json".to_owned(), index.to_string().into_bytes()));
    }
    if forms != 0 {
        files.push(("manifest.json".to_owned(), saved.to_string().into_bytes()));
    }
    pack_files(source, files)
}

fn pack_files(source: &mut Source, mut files: Vec<(String, Vec<u8>)>) -> Vec<u8> {
    if source.one_in(15) {
        let at = source.below(files.len());
        match source.below(3) {
            0 => drop(files.remove(at)),
            1 => files.push(files[at].clone()),
            _ => source.mangle(&mut files[at].1),
        }
    }
    let mut tar = Tar::new();
    for (name, bytes) in &files {
        tar = match source.below(250) {
            0 => tar.symlink(name, "other").file("other", bytes),
            1 => tar.hardlink(name, source.pick(&["index.json", "../x", "/", name])),
            2 => tar.file(&format!("./{name}"), bytes),
            _ => tar.file(name, bytes),
        };
    }
    let mut bytes = pack(&tar.bytes(), PACKS[source.below(3)]);
    if source.one_in(12) {
        source.mangle(&mut bytes);
    }
    bytes
}

fn names(store: &ImageStore) -> Vec<String> {
    let images = store.list();
    images.iter().map(|image| format!("{} {:?}", image.id, image.references)).collect()
}

/// Loads it as often as it takes to see that all is well; whether it was taken.
fn check(bytes: &[u8]) -> bool {
    let dir = scratch();
    let root = dir.path().join("images");
    let store = ImageStore::open(&root, limits()).unwrap();
    let base = TestImage::new("base", vec![Tar::new().file("base", b"base").bytes()]);
    store.load(&oci_layout(&base, Pack::Gzip)[..]).unwrap();
    let (before, first) = (snapshot(&root), store.load(bytes));
    let loaded = match first {
        Ok(loaded) => loaded,
        Err(error) => {
            assert_eq!(error.kind(), ImageErrorKind::InvalidInput, "{error:?}");
            assert_eq!(snapshot(&root), before, "{error:?}");
            let again = store.load(bytes).unwrap_err();
            assert_eq!(again.kind(), ImageErrorKind::InvalidInput, "{again:?}");
            return false;
        }
    };
    assert_eq!(store.load(bytes).unwrap(), loaded);
    let all = names(&store);
    drop(store);
    let store = ImageStore::open(&root, limits()).unwrap();
    assert_eq!(names(&store), all, "opened again");
    // One that the archive holds twice is there once.
    let ids: BTreeSet<String> = loaded.iter().map(|image| image.id.to_string()).collect();
    for id in &ids {
        let found = store.resolve(id).unwrap();
        assert!(found.layers.iter().all(|layer| layer.is_dir()));
        store.remove(id, true, &|_| false).unwrap();
    }
    // The archive may have taken the name of what was there.
    let left = if store.resolve(&base.id()).is_ok() { 1 } else { 0 };
    assert_eq!(store.list().len(), left);
    if left == 0 {
        for sub in ["layers", "blobs/sha256", "tmp"] {
            assert_eq!(std::fs::read_dir(root.join(sub)).unwrap().count(), 0, "{sub}");
        }
    } else {
        assert_eq!(snapshot(&root).len(), before.len());
    }
    true
}

#[test]
fn archives() {
    if not_root() {
        return;
    }
    let (mut whole, mut count) = (0, 0);
    fuzz("archives", 400, |source| {
        let bytes = archive(source);
        whole += u64::from(check(&bytes));
        count += 1;
    });
    assert!(count < 300 || whole * 10 > count, "only {whole} of {count} were loaded");
}

/// A store whose files somebody has damaged opens, or says so.
#[test]
fn damaged_stores() {
    if not_root() {
        return;
    }
    fuzz("damaged_stores", 150, |source| {
        let dir = scratch();
        let root = dir.path().join("images");
        let store = ImageStore::open(&root, limits()).unwrap();
        let layers = vec![Tar::new().file("base", b"base").bytes(), Tar::new().file("more", b"2").bytes()];
        store.load(&oci_layout(&TestImage::new("base", layers), Pack::Plain)[..]).unwrap();
        drop(store);
        let blobs = std::fs::read_dir(root.join("blobs/sha256")).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = blobs.chain([root.join("index.json")]).collect();
        files.sort();
        let index = files.pop().unwrap();
        let path = if source.one_in(4) { &files[source.below(files.len())] } else { &index };
        let mut bytes = std::fs::read(path).unwrap();
        if path == &index && source.one_in(2) {
            let mut document: Value = serde_json::from_slice(&bytes).unwrap();
            json::change(source, &mut document);
            bytes = document.to_string().into_bytes();
        } else {
            source.mangle(&mut bytes);
        }
        std::fs::write(path, &bytes).unwrap();
        match ImageStore::open(&root, limits()) {
            Ok(store) => {
                for image in store.list() {
                    let found = store.resolve(&image.id.to_string()).unwrap();
                    assert!(found.layers.iter().all(|layer| layer.is_dir()));
                    store.remove(&image.id.to_string(), true, &|_| false).unwrap();
                }
                assert_eq!(std::fs::read_dir(root.join("tmp")).unwrap().count(), 0);
            }
            Err(ImageError::DamagedStore { .. } | ImageError::LimitExceeded { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
    });
}
