//! The store over time: names, sharing, removal, crashes, concurrency.

use std::fs;
use std::path::{Path, PathBuf};

use runtime::image::{ImageConfig, ImageError, ImageErrorKind, ImageStore, ImportChanges, Limits, Reference, Removed};

use crate::archives::{Pack, Tar, TestImage, TestStore, docker_save, oci_layout};
use crate::tree::describe;

fn layer(name: &str) -> Vec<u8> {
    Tar::new().file(name, name.as_bytes()).bytes()
}

fn reference(name: &str) -> Reference {
    Reference::parse(name).unwrap()
}

fn count(store: &TestStore, sub: &str) -> usize {
    fs::read_dir(store.root().join(sub)).unwrap().count()
}

fn untagged(name: &str) -> Removed {
    Removed::Untagged(name.to_owned())
}

const UNUSED: &dyn Fn(&runtime::image::ImageId) -> bool = &|_| false;

#[test]
fn shared_layers_are_there_once() {
    let Some(store) = TestStore::new() else { return };
    let one = TestImage::new("one", vec![layer("base"), layer("first")]);
    let two = TestImage::new("two", vec![layer("base"), layer("second")]);
    store.load(&docker_save(&[one, two], Pack::Gzip));
    assert_eq!(count(&store, "layers"), 3);
    let (one, two) = (store.store.resolve("one").unwrap(), store.store.resolve("two").unwrap());
    assert_eq!(one.layers[0], two.layers[0]);
    assert_ne!(one.layers[1], two.layers[1]);
    assert_eq!(store.store.layers_size(), 4 + 5 + 6);
    assert_eq!(one.size + two.size, 4 + 5 + 4 + 6);

    let removed = store.store.remove("one", false, UNUSED).unwrap();
    assert_eq!(removed, [untagged("one:latest"), Removed::Deleted(one.id.to_string())]);
    assert_eq!(count(&store, "layers"), 2);
    assert!(two.layers.iter().all(|layer| layer.is_dir()));
    store.store.remove("two", false, UNUSED).unwrap();
    assert_eq!((count(&store, "layers"), count(&store, "blobs/sha256"), count(&store, "tmp")), (0, 0, 0));
}

#[test]
fn images_are_found_by_all_their_names() {
    let Some(store) = TestStore::new() else { return };
    store.load(&docker_save(&[TestImage::new("quay.io/a/web:1", vec![layer("x")])], Pack::Plain));
    let image = store.store.resolve("quay.io/a/web:1").unwrap();
    let id = image.id.to_string();
    let manifest = image.manifest_digest.unwrap();
    for name in [
        id.clone(),
        image.id.hex(),
        image.id.short(),
        format!("sha256:{}", image.id.short()),
        manifest.clone(),
        format!("quay.io/a/web@{manifest}"),
        format!("quay.io/a/web:1@{manifest}"),
        format!("quay.io/a/web@{id}"),
    ] {
        assert_eq!(store.store.resolve(&name).unwrap().id, image.id, "{name}");
    }
    for name in ["web", "quay.io/a/web", "quay.io/a/web:2", "nosuch", "", "Bad Name", "zz", &"0".repeat(64)] {
        let error = store.store.resolve(name).unwrap_err();
        assert!(matches!(&error, ImageError::NotFound { name: told } if told == name), "{error}");
        assert_eq!(error.kind(), ImageErrorKind::NotFound);
    }
}

#[test]
fn both_forms_of_an_archive_give_one_image() {
    let Some(store) = TestStore::new() else { return };
    let image = || TestImage::new("web", vec![layer("x")]);
    store.load(&docker_save(&[image()], Pack::Plain));
    let first = store.store.resolve("web").unwrap();
    store.load(&oci_layout(&image(), Pack::Gzip));
    let second = store.store.resolve("web").unwrap();
    assert_eq!((first.id, &first.manifest_digest), (second.id, &second.manifest_digest));
    assert_eq!(store.store.list().len(), 1);
    // Both layer blobs are there, both manifests, one configuration.
    assert_eq!(count(&store, "blobs/sha256"), 5);
    let again = ImageStore::open(store.root(), Limits::default()).unwrap();
    assert_eq!(again.resolve("web").unwrap().manifest_digest, first.manifest_digest);
    assert_eq!(count(&store, "blobs/sha256"), 5);
    again.remove("web", false, UNUSED).unwrap();
    assert_eq!(count(&store, "blobs/sha256"), 0);
}

#[test]
fn names_with_digests_are_not_given() {
    let Some(store) = TestStore::new() else { return };
    let digest = format!("web@sha256:{}", "a".repeat(64));
    let mut image = TestImage::new("web:1", vec![layer("x")]);
    image.tags.push(digest.clone());
    let loaded = store.load(&docker_save(&[image], Pack::Plain));
    assert_eq!(loaded[0].references, [reference("web:1")]);
    let target = reference(&digest);
    assert!(matches!(store.store.tag("web:1", &target), Err(ImageError::Reference(_))));
    let outcome = store.store.import(&layer("y")[..], Some(target.clone()), ImportChanges::default(), "");
    assert!(matches!(outcome, Err(ImageError::Reference(_))));
    let outcome = store.store.install_root(&target, Vec::new(), ImageConfig::default());
    assert!(matches!(outcome, Err(ImageError::Reference(_))));
}

#[test]
fn an_image_may_have_no_layers() {
    let Some(store) = TestStore::new() else { return };
    store.load(&docker_save(&[TestImage::new("scratch", Vec::new())], Pack::Plain));
    let again = ImageStore::open(store.root(), Limits::default()).unwrap();
    let image = again.resolve("scratch").unwrap();
    assert_eq!((image.layers.len(), image.size, image.diff_ids.len()), (1, 0, 0));
    assert_eq!(fs::read_dir(&image.layers[0]).unwrap().count(), 0);
}

#[test]
fn a_name_moves_to_the_newer_image() {
    let Some(store) = TestStore::new() else { return };
    store.load(&docker_save(&[TestImage::new("web", vec![layer("old")])], Pack::Plain));
    let old = store.store.resolve("web").unwrap().id;
    store.load(&docker_save(&[TestImage::new("web", vec![layer("new")])], Pack::Plain));
    let new = store.store.resolve("web").unwrap().id;
    assert_ne!(old, new);
    let list = store.store.list();
    assert_eq!(list.len(), 2);
    assert!(list.iter().any(|image| image.id == old && image.references.is_empty()));
    assert_eq!(store.store.resolve(&old.to_string()).unwrap().references, []);
    // Ambiguous only where it truly is.
    let shared = old.hex().chars().zip(new.hex().chars()).take_while(|(a, b)| a == b).count();
    if shared > 0 {
        let error = store.store.resolve(&old.hex()[..shared]).unwrap_err();
        assert!(matches!(error, ImageError::Ambiguous { count: 2, .. }), "{error}");
    }
    assert_eq!(store.store.resolve(&old.hex()[..=shared]).unwrap().id, old);
}

#[test]
fn removal_follows_docker() {
    let Some(store) = TestStore::new() else { return };
    let used: &dyn Fn(&runtime::image::ImageId) -> bool = &|_| true;
    store.load(&docker_save(&[TestImage::new("web", vec![layer("x")])], Pack::Plain));
    let id = store.store.resolve("web").unwrap().id;
    store.store.tag("web", &reference("other:2")).unwrap();
    store.store.tag(&id.short(), &reference("web:3")).unwrap();
    let error = store.store.tag("nosuch", &reference("x")).unwrap_err();
    assert!(matches!(error, ImageError::NotFound { .. }), "{error}");

    // One name of several goes whether or not the image is used.
    assert_eq!(store.store.remove("web:3", false, used).unwrap(), [untagged("web:3")]);
    let error = store.store.remove(&id.short(), false, UNUSED).unwrap_err();
    assert!(matches!(error, ImageError::ManyReferences { .. }), "{error}");
    let error = store.store.remove(&id.to_string(), true, used).unwrap_err();
    assert!(matches!(error, ImageError::InUse { forceable: false, .. }), "{error}");
    assert_eq!(store.store.remove("other:2", false, used).unwrap(), [untagged("other:2")]);
    let error = store.store.remove("web", false, used).unwrap_err();
    assert!(matches!(error, ImageError::InUse { forceable: true, .. }), "{error}");
    assert_eq!(error.kind(), ImageErrorKind::Conflict);
    // By force the name goes; the image stays as long as it is used.
    assert_eq!(store.store.remove("web", true, used).unwrap(), [untagged("web:latest")]);
    assert!(store.store.resolve(&id.short()).unwrap().layers[0].is_dir());
    let error = store.store.remove(&id.short(), true, used).unwrap_err();
    assert!(matches!(error, ImageError::InUse { .. }), "{error}");
    assert_eq!(store.store.remove(&id.short(), false, UNUSED).unwrap(), [Removed::Deleted(id.to_string())]);
    let error = store.store.remove(&id.short(), false, UNUSED).unwrap_err();
    assert!(matches!(error, ImageError::NotFound { .. }), "{error}");
}

#[test]
fn everything_is_there_after_opening_again() {
    let Some(store) = TestStore::new() else { return };
    store.load(&docker_save(&[TestImage::new("web", vec![layer("base"), layer("x")])], Pack::Gzip));
    store.store.tag("web", &reference("localhost:5000/web:2")).unwrap();
    store.store.import(&layer("y")[..], None, ImportChanges::default(), "").unwrap();
    let image = store.store.resolve("web").unwrap();
    assert_eq!((image.layer_bytes.len(), image.layer_bytes.iter().sum()), (image.layers.len(), image.size));
    let before = format!("{:?} {image:?}", store.store.list());
    let tree = describe(&store.root().join("layers"));
    let again = ImageStore::open(store.root(), Limits::default()).unwrap();
    assert_eq!(format!("{:?} {:?}", again.list(), again.resolve("web").unwrap()), before);
    assert_eq!(describe(&store.root().join("layers")), tree);
}

#[test]
fn what_a_crash_left_is_removed() {
    let Some(store) = TestStore::new() else { return };
    store.load(&docker_save(&[TestImage::new("web", vec![layer("x")])], Pack::Plain));
    let before = describe(&store.root());
    let root = store.root();
    // An ingest that was cut, content whose index was never written, and a half-written index.
    fs::create_dir_all(root.join("tmp/ingest-abc/layer-1/deep")).unwrap();
    fs::write(root.join("tmp/ingest-abc/file-1"), b"half").unwrap();
    fs::write(root.join("tmp/index.json"), b"{").unwrap();
    fs::create_dir(root.join("layers").join("a".repeat(64))).unwrap();
    fs::write(root.join("layers").join("a".repeat(64)).join("f"), b"").unwrap();
    fs::write(root.join("blobs/sha256").join("b".repeat(64)), b"").unwrap();
    fs::write(root.join("blobs/sha256/not-a-digest"), b"").unwrap();
    let again = ImageStore::open(&root, Limits::default()).unwrap();
    let names = |tree: std::collections::BTreeMap<String, String>| tree.into_keys().collect::<Vec<_>>();
    assert_eq!(names(describe(&root)), names(before));
    assert_eq!(again.list().len(), 1);
}

/// Gives its bytes piece by piece, and copies the store's directory before each: the disk as a crash
/// at that moment would leave it.
struct Crashing<'a> {
    bytes: &'a [u8],
    root: PathBuf,
    copies: &'a tempfile::TempDir,
    taken: usize,
}

impl std::io::Read for Crashing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        copy_tree(&self.root, &self.copies.path().join(self.taken.to_string()));
        self.taken += 1;
        let most = buffer.len().min(3000);
        let read = self.bytes.read(&mut buffer[..most])?;
        Ok(read)
    }
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[test]
fn a_crash_in_the_middle_changes_nothing() {
    let Some(store) = TestStore::new() else { return };
    store.load(&docker_save(&[TestImage::new("web", vec![layer("x")])], Pack::Plain));
    let names = |root: &Path| describe(root).into_keys().collect::<Vec<_>>();
    let before = names(&store.root());
    let archive = docker_save(&[TestImage::new("web", vec![layer("x"), layer("y")])], Pack::Plain);
    let root_file_system = Tar::new().file("a", &[1; 9000]).file("b", &[2; 9000]).bytes();
    for import in [false, true] {
        let copies = tempfile::tempdir().unwrap();
        let bytes = if import { &root_file_system } else { &archive };
        let mut reader = Crashing { bytes, root: store.root(), copies: &copies, taken: 0 };
        // An error after the last byte, so that the store itself stays as it was.
        let outcome = {
            let mut reader = std::io::Read::chain(&mut reader, Failing);
            if import {
                store.store.import(&mut reader, None, ImportChanges::default(), "").map(|_| ())
            } else {
                store.store.load(&mut reader).map(|_| ())
            }
        };
        assert!(matches!(outcome, Err(ImageError::Read { .. })), "{outcome:?}");
        assert_eq!(names(&store.root()), before);
        assert!(reader.taken > 3, "only {} moments", reader.taken);
        for nth in 0..reader.taken {
            let copy = copies.path().join(nth.to_string());
            let opened = ImageStore::open(&copy, Limits::default()).unwrap();
            assert_eq!(names(&copy), before, "after a crash at moment {nth}");
            assert_eq!(opened.resolve("web").unwrap().id, store.store.resolve("web").unwrap().id);
        }
    }
}

/// A connection that breaks.
struct Failing;

impl std::io::Read for Failing {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::ConnectionReset.into())
    }
}

#[test]
fn damage_is_told() {
    let Some(store) = TestStore::new() else { return };
    store.load(&docker_save(&[TestImage::new("good", vec![layer("x")])], Pack::Plain));
    store.load(&docker_save(&[TestImage::new("bad", vec![layer("y")])], Pack::Plain));
    let bad = store.store.resolve("bad").unwrap();
    // One damaged image does not take the others away.
    fs::write(store.root().join("blobs/sha256").join(bad.id.hex()), b"{}").unwrap();
    let again = ImageStore::open(store.root(), Limits::default()).unwrap();
    assert!(again.resolve("good").is_ok());
    assert!(matches!(again.resolve("bad"), Err(ImageError::NotFound { .. })));
    fs::write(store.root().join("index.json"), b"{").unwrap();
    let error = ImageStore::open(store.root(), Limits::default()).unwrap_err();
    assert!(matches!(error, ImageError::DamagedStore { .. }), "{error}");
}

/// Containers may run on the layers of an image that cannot be read, and the trouble may pass.
#[test]
fn what_cannot_be_read_is_kept() {
    let Some(store) = TestStore::new() else { return };
    let bad = docker_save(&[TestImage::new("bad", vec![layer("y")])], Pack::Plain);
    store.load(&docker_save(&[TestImage::new("good", vec![layer("x")])], Pack::Plain));
    store.load(&bad);
    let (root, id) = (store.root(), store.store.resolve("bad").unwrap().id);
    let path = store.store.resolve("bad").unwrap().layers[0].clone();
    let content = |store: &TestStore| (count(store, "layers"), count(store, "blobs/sha256"));
    let before = content(&store);
    // A host that for once can read nothing.
    let blind = ImageStore::open(&root, Limits { max_metadata_bytes: 1, ..Limits::default() }).unwrap();
    assert!(blind.list().is_empty());
    assert_eq!(content(&store), before);
    drop(blind);
    let again = ImageStore::open(&root, Limits::default()).unwrap();
    assert_eq!((again.list().len(), content(&store)), (2, before));

    // Damage stays, and with it everything that may belong to the image, whatever else goes.
    let damage = || fs::write(root.join("blobs/sha256").join(id.hex()), b"{}").unwrap();
    damage();
    let again = ImageStore::open(&root, Limits::default()).unwrap();
    again.remove("good", false, &|_| false).unwrap();
    assert!(path.is_dir());
    assert_eq!(count(&store, "layers"), 1);
    let again = ImageStore::open(&root, Limits::default()).unwrap();
    assert!(path.is_dir() && again.list().is_empty());
    // Until it comes again,
    again.load(&bad[..]).unwrap();
    assert_eq!(again.resolve("bad").unwrap().id, id);
    assert_eq!(ImageStore::open(&root, Limits::default()).unwrap().resolve("bad").unwrap().id, id);
    // or is removed by its name.
    damage();
    let again = ImageStore::open(&root, Limits::default()).unwrap();
    assert!(matches!(again.remove("bad", false, &|used| *used == id), Err(ImageError::InUse { forceable: true, .. })));
    assert_eq!(again.remove("bad", false, &|_| false).unwrap(), [Removed::Deleted("bad".to_owned())]);
    assert_eq!(content(&store), (0, 0));
    assert!(matches!(again.remove("bad", true, &|_| false), Err(ImageError::NotFound { .. })));
}

#[test]
fn files_of_the_host_become_an_image() {
    let Some(store) = TestStore::new() else { return };
    let Some(other) = TestStore::new() else { return };
    let source = store.dir.path().join("program");
    fs::write(&source, b"#!program").unwrap();
    let files = || {
        vec![
            (PathBuf::from("/opt/bin/program"), 0o755, source.clone()),
            (PathBuf::from("/readme"), 0o644, source.clone()),
        ]
    };
    let config = ImageConfig { entrypoint: vec!["/opt/bin/program".to_owned()], ..ImageConfig::default() };
    let name = reference("shoal/demo");
    let id = store.store.install_root(&name, files(), config.clone()).unwrap();
    let image = store.store.resolve("shoal/demo").unwrap();
    assert_eq!(image.id, id);
    assert_eq!(image.config.entrypoint, ["/opt/bin/program"]);
    let tree = describe(&image.layers[0]);
    assert_eq!(tree.keys().collect::<Vec<_>>(), ["", "opt", "opt/bin", "opt/bin/program", "readme"]);
    assert!(tree["opt/bin/program"].starts_with("100755 0:0 9 bytes"), "{tree:?}");

    // The same content is the same image, here and elsewhere, and is not copied again.
    let written = fs::metadata(store.root().join("index.json")).unwrap().modified().unwrap();
    assert_eq!(store.store.install_root(&name, files(), config.clone()).unwrap(), id);
    assert_eq!(fs::metadata(store.root().join("index.json")).unwrap().modified().unwrap(), written);
    assert_eq!(other.store.install_root(&name, files(), config.clone()).unwrap(), id);
    let again = ImageStore::open(store.root(), Limits::default()).unwrap();
    assert_eq!(again.install_root(&name, files(), config.clone()).unwrap(), id);

    // Other content is another image under the same name.
    fs::write(&source, b"#!newer program").unwrap();
    let newer = store.store.install_root(&name, files(), config.clone()).unwrap();
    assert_ne!(newer, id);
    assert_eq!(store.store.resolve("shoal/demo").unwrap().id, newer);
    let climbing = vec![(PathBuf::from("/../x"), 0o755, source.clone())];
    let error = store.store.install_root(&name, climbing, config).unwrap_err();
    assert!(matches!(error, ImageError::BadEntry { .. }), "{error}");
}

/// Loads and removals at once: in the end each image is whole or gone.
#[test]
fn concurrent_use() {
    let Some(store) = TestStore::new() else { return };
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let store = &store;
            scope.spawn(move || {
                for round in 0..6 {
                    let name = format!("w{worker}");
                    let layers = vec![layer("base"), layer(&format!("{worker}-{}", round % 2))];
                    store.load(&docker_save(&[TestImage::new(&name, layers)], Pack::Gzip));
                    let image = store.store.resolve(&name).unwrap();
                    assert!(image.layers.iter().all(|layer| layer.is_dir()));
                    assert_eq!(fs::read(image.layers[0].join("base")).unwrap(), b"base");
                    if round % 3 == 0 {
                        store.store.remove(&image.id.to_string(), true, UNUSED).unwrap();
                    }
                }
            });
        }
    });
    for image in store.store.list() {
        store.store.remove(&image.id.to_string(), true, UNUSED).unwrap();
    }
    assert_eq!((count(&store, "layers"), count(&store, "blobs/sha256"), count(&store, "tmp")), (0, 0, 0));
}
