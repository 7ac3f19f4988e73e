//! What stays, what goes, and how images leave the store: leases, blobs from other hosts, garbage, archives.

use std::fs;
use std::time::{Duration, SystemTime};

use runtime::image::{Digest, ImageError, ImageId, ImageStore, Lease, Limits, Origin, Reference, Removed, Room};

use crate::archives::{PACKS, Pack, Tar, TestImage, TestStore, docker_save, oci_layout};
use crate::tree::describe;

const UNUSED: &dyn Fn(&ImageId) -> bool = &|_| false;
/// Every disk is that full.
const SHORT: u64 = 1;

fn layer(name: &str) -> Vec<u8> {
    Tar::new().file(name, name.as_bytes()).bytes()
}

fn count(store: &TestStore, sub: &str) -> usize {
    fs::read_dir(store.root().join(sub)).unwrap().count()
}

fn image(tag: &str) -> TestImage {
    TestImage::new(tag, vec![layer("base"), layer(tag)])
}

/// Gives one store's blob to a lease of another.
fn give(from: &ImageStore, to: &Lease, digest: Digest) {
    use std::io::Read;
    let (mut file, size) = from.open_blob(&digest).unwrap().unwrap();
    let mut writer = to.writer(digest, size).unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    for piece in bytes.chunks(1000) {
        writer.write(piece).unwrap();
    }
    assert_eq!(writer.written(), size);
    to.keep(writer).unwrap();
}

/// As a fetch from another host does it, for a task.
fn fetch(from: &TestStore, to: &TestStore, name: &str) -> (Lease, runtime::image::Image) {
    let manifest = from.store.resolve(name).unwrap().manifest_digest.unwrap().parse().unwrap();
    let lease = to.store.lease();
    give(&from.store, &lease, manifest);
    for (blob, size) in lease.wanted_by(&manifest).unwrap() {
        assert_eq!(from.store.open_blob(&blob).unwrap().unwrap().1, size);
        if !lease.hold_blob(&blob) {
            give(&from.store, &lease, blob);
        }
    }
    let image = lease.assemble(&manifest, None, Origin::Task).unwrap();
    (lease, image)
}

#[test]
fn an_image_arrives_blob_by_blob() {
    for pack in PACKS {
        let (Some(from), Some(to)) = (TestStore::new(), TestStore::new()) else { return };
        from.load(&docker_save(&[image("web")], pack));
        let (lease, fetched) = fetch(&from, &to, "web");
        let original = from.store.resolve("web").unwrap();
        assert_eq!((fetched.id, &fetched.manifest_digest), (original.id, &original.manifest_digest));
        assert_eq!(fetched.diff_ids, original.diff_ids);
        // But for the times of the layers' roots, which the archives do not name.
        let files = |store: &TestStore| {
            describe(&store.root().join("layers"))
                .into_iter()
                .filter(|(name, _)| name.contains('/'))
                .collect::<Vec<_>>()
        };
        assert_eq!(files(&to), files(&from));
        assert_eq!(files(&to).len(), 2);
        assert_eq!(to.store.blobs(), from.store.blobs());
        assert!(to.store.named().is_empty());
        drop(lease);
        let again = ImageStore::open(to.root(), Limits::default()).unwrap();
        assert_eq!(again.resolve(&original.manifest_digest.unwrap()).unwrap().id, original.id);
        assert_eq!(again.list()[0].origin, Origin::Task);
        // A name makes it the user's.
        again.tag(&original.id.to_string(), &Reference::parse("mine").unwrap()).unwrap();
        let again = ImageStore::open(to.root(), Limits::default()).unwrap();
        assert_eq!(again.list()[0].origin, Origin::User);
    }
}

#[test]
fn what_is_fetched_for_nothing_goes_with_its_lease() {
    let (Some(from), Some(to)) = (TestStore::new(), TestStore::new()) else { return };
    from.load(&docker_save(&[image("web")], Pack::Gzip));
    let mut changes = to.store.changes();
    changes.mark_unchanged();
    let lease = to.store.lease();
    for blob in from.store.blobs() {
        give(&from.store, &lease, blob);
        // Other hosts may have it from here on.
        assert!(to.store.blobs().contains(&blob) && to.store.has_blob(&blob));
    }
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    let half = lease.writer(Digest::of(b"something else"), 10).unwrap();
    assert_eq!(count(&to, "tmp"), 1);
    drop(half);
    drop(lease);
    assert!(changes.has_changed().unwrap());
    assert!(to.store.blobs().is_empty());
    assert_eq!((count(&to, "blobs/sha256"), count(&to, "tmp"), count(&to, "layers")), (0, 0, 0));
}

#[test]
fn bytes_that_are_not_the_blob_are_refused() {
    let Some(store) = TestStore::new() else { return };
    let lease = store.store.lease();
    let digest = Digest::of(b"right");
    let mut wrong = lease.writer(digest, 5).unwrap();
    wrong.write(b"wrong").unwrap();
    assert!(matches!(lease.keep(wrong), Err(ImageError::DigestMismatch { .. })));
    let mut long = lease.writer(digest, 5).unwrap();
    long.write(b"righ").unwrap();
    assert!(matches!(long.write(b"t!"), Err(ImageError::LimitExceeded { .. })));
    drop(long);
    assert_eq!((count(&store, "blobs/sha256"), count(&store, "tmp")), (0, 0));
    let mut right = lease.writer(digest, 5).unwrap();
    right.write(b"right").unwrap();
    lease.keep(right).unwrap();
    assert!(lease.hold_blob(&digest) && store.store.lease().hold_blob(&digest));
    // It is no manifest.
    assert!(matches!(lease.wanted_by(&digest), Err(ImageError::BadJson { .. })));
    assert!(matches!(lease.wanted_by(&Digest::of(b"nothing")), Err(ImageError::Io { .. })));
}

#[test]
fn a_manifest_that_does_not_fit_its_blobs_makes_no_image() {
    let (Some(from), Some(to)) = (TestStore::new(), TestStore::new()) else { return };
    from.load(&docker_save(&[image("web")], Pack::Plain));
    let original = from.store.resolve("web").unwrap();
    let manifest: Digest = original.manifest_digest.unwrap().parse().unwrap();
    let whole = fs::read(from.root().join("blobs/sha256").join(manifest.hex())).unwrap();
    let whole: serde_json::Value = serde_json::from_slice(&whole).unwrap();
    let lease = to.store.lease();
    for (blob, _) in {
        give(&from.store, &lease, manifest);
        lease.wanted_by(&manifest).unwrap()
    } {
        give(&from.store, &lease, blob);
    }
    let check = |change: &dyn Fn(&mut serde_json::Value), expected: &str| {
        let mut changed = whole.clone();
        change(&mut changed);
        let bytes = changed.to_string().into_bytes();
        let digest = Digest::of(&bytes);
        let mut writer = lease.writer(digest, bytes.len() as u64).unwrap();
        writer.write(&bytes).unwrap();
        lease.keep(writer).unwrap();
        let error = lease.assemble(&digest, None, Origin::Task).unwrap_err();
        assert!(format!("{error:?}").starts_with(expected), "{error:?}");
    };
    check(&|m| m["layers"][0]["size"] = 1.into(), "SizeMismatch");
    check(&|m| m["layers"][0]["digest"] = Digest::of(b"nothing").to_string().into(), "Missing");
    check(&|m| m["layers"][0]["digest"] = "sha256:1".into(), "Malformed");
    check(&|m| m["layers"].as_array_mut().unwrap().truncate(1), "Malformed");
    check(&|m| m["layers"].as_array_mut().unwrap().reverse(), "DigestMismatch");
    check(&|m| m["config"] = m["layers"][0].clone(), "BadJson");
    // What cannot be an image is not even fetched.
    let refuse = |change: &dyn Fn(&mut serde_json::Value), expected: &str| {
        let mut changed = whole.clone();
        change(&mut changed);
        let bytes = changed.to_string().into_bytes();
        let mut writer = lease.writer(Digest::of(&bytes), bytes.len() as u64).unwrap();
        writer.write(&bytes).unwrap();
        lease.keep(writer).unwrap();
        let error = lease.wanted_by(&Digest::of(&bytes)).unwrap_err();
        assert!(format!("{error:?}").starts_with(expected), "{error:?}");
    };
    refuse(&|m| m["layers"][0]["size"] = (u64::MAX >> 1).into(), "LimitExceeded");
    refuse(&|m| m["config"]["size"] = (9 << 20).into(), "LimitExceeded");
    refuse(&|m| m["layers"][0]["mediaType"] = "application/x".into(), "Malformed");
    refuse(&|m| m["config"]["mediaType"] = "application/x".into(), "Malformed");
    assert!(to.store.list().is_empty());
    assert_eq!(count(&to, "layers"), 0);
    lease.assemble(&manifest, None, Origin::Task).unwrap();
}

#[test]
fn what_a_lease_holds_stays() {
    let Some(store) = TestStore::new() else { return };
    store.load(&docker_save(&[image("web")], Pack::Plain));
    let lease = store.store.lease();
    let held = lease.image("web").unwrap();
    let refused = store.store.remove(&held.id.to_string(), true, UNUSED).unwrap_err();
    assert!(matches!(refused, ImageError::InUse { .. }), "{refused}");
    assert_eq!(store.store.remove("web", true, UNUSED).unwrap(), [Removed::Untagged("web:latest".into())]);
    assert_eq!(store.store.prune(&|_| true, UNUSED).unwrap().removed, []);
    assert!(held.layers.iter().all(|layer| layer.is_dir()));
    drop(lease);
    let pruned = store.store.prune(&|_| true, UNUSED).unwrap();
    assert_eq!(pruned.removed, [Removed::Deleted(held.id.to_string())]);
    assert_eq!(pruned.freed, held.size);
    assert_eq!((count(&store, "blobs/sha256"), count(&store, "layers"), count(&store, "tmp")), (0, 0, 0));
    assert!(matches!(store.store.lease().image("web"), Err(ImageError::NotFound { .. })));
}

#[test]
fn prune_takes_only_what_is_wanted_and_unused() {
    let Some(store) = TestStore::new() else { return };
    store.load(&docker_save(&[image("one"), image("two"), image("three")], Pack::Plain));
    let id = |name: &str| store.store.resolve(name).unwrap().id;
    let (one, two) = (id("one"), id("two"));
    let wanted = |image: &runtime::image::ImageSummary| image.id == one || image.id == two;
    let pruned = store.store.prune(&wanted, &|id| *id == two).unwrap();
    assert_eq!(pruned.removed, [Removed::Untagged("one:latest".into()), Removed::Deleted(one.to_string())]);
    // The layer that they share stays, and only the other one counts.
    assert_eq!(pruned.freed, 3);
    assert_eq!(store.store.list().len(), 2);
    assert_eq!(count(&store, "layers"), 3);
}

#[test]
fn a_short_disk_costs_the_images_that_tasks_used_longest_ago() {
    let (Some(from), Some(to)) = (TestStore::new(), TestStore::new()) else { return };
    from.load(&docker_save(&[image("one"), image("two"), image("three"), image("four")], Pack::Plain));
    to.load(&docker_save(&[image("mine")], Pack::Plain));
    let used_at = |image: &runtime::image::Image, ago: u64| {
        let at = SystemTime::now() - Duration::from_secs(ago);
        let config = to.root().join("blobs/sha256").join(image.id.hex());
        fs::File::options().write(true).open(config).unwrap().set_modified(at).unwrap();
    };
    let mut images = Vec::new();
    for (name, ago) in [("one", 5000), ("two", 9000), ("three", 7000), ("four", 8000)] {
        let (lease, image) = fetch(&from, &to, name);
        drop(lease);
        used_at(&image, ago);
        images.push(image);
    }
    let there = || to.store.list().into_iter().map(|image| image.id).collect::<Vec<_>>();
    let short = |grace: u64| Room { grace: Duration::from_secs(grace), full_percent: SHORT };
    let room = Room { full_percent: 101, ..short(0) };
    assert_eq!(to.store.make_room(room, UNUSED).unwrap(), 0, "no disk is fuller than full");
    assert_eq!(to.store.make_room(short(10_000), UNUSED).unwrap(), 0, "all were used lately");
    // `four` is in use, and noted as such; the user's image is older than all.
    used_at(&to.store.resolve("mine").unwrap(), 99_999);
    let four = images[3].id;
    to.store.note_use(&|id| *id == four);
    assert_eq!(to.store.make_room(short(6000), &|id| *id == four).unwrap(), 2);
    let left = there();
    assert!(left.contains(&images[0].id) && left.contains(&four) && left.len() == 3, "{left:?}");
    // In use, or held: however old.
    used_at(&images[3], 9000);
    let lease = to.store.lease();
    lease.image(&images[0].id.to_string()).unwrap();
    used_at(&images[0], 9000);
    assert_eq!(to.store.make_room(short(6000), &|id| *id == four).unwrap(), 0);
    drop(lease);
    assert_eq!(to.store.make_room(short(6000), &|id| *id == four).unwrap(), 0, "its use ended just now");
    assert_eq!(to.store.make_room(short(0), UNUSED).unwrap(), 2);
    assert_eq!(to.store.resolve("mine").unwrap().references.len(), 1);
}

#[test]
fn what_is_saved_loads_as_the_same_images() {
    for pack in PACKS {
        let (Some(from), Some(to)) = (TestStore::new(), TestStore::new()) else { return };
        from.load(&docker_save(&[image("web"), image("quay.io/a/db:2")], pack));
        from.load(&oci_layout(&image("other:3"), Pack::Gzip));
        from.store.tag("web", &Reference::parse("web:old").unwrap()).unwrap();
        let save = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let mut bytes = Vec::new();
            from.store.save(&names).unwrap().write(&mut bytes).unwrap();
            bytes
        };
        let other = from.store.resolve("other:3").unwrap().id.to_string();
        // A name without a tag is all of its tags; an id is an image without a name.
        let archive = save(&["web", "quay.io/a/db:2", &other]);
        assert_eq!(archive, save(&["web", "quay.io/a/db:2", &other]));
        let loaded = to.load(&archive);
        let names: usize = loaded.iter().map(|image| image.references.len()).sum();
        assert_eq!((loaded.len(), names), (3, 3));
        for name in ["web", "web:old", "quay.io/a/db:2", &other] {
            let (here, there) = (from.store.resolve(name).unwrap(), to.store.resolve(name).unwrap());
            assert_eq!((here.id, here.manifest_digest), (there.id, there.manifest_digest), "{name}");
        }
        assert_eq!(to.store.blobs(), from.store.blobs());
        let refused = from.store.save(&["web".to_owned(), "nope".to_owned()]).unwrap_err();
        assert!(matches!(refused, ImageError::NotFound { .. }), "{refused}");
        assert!(from.store.save(&[]).is_err());
    }
}

#[test]
fn an_archive_is_finished_though_its_image_is_removed() {
    let Some(store) = TestStore::new() else { return };
    store.load(&docker_save(&[image("web")], Pack::Gzip));
    let id = store.store.resolve("web").unwrap().id;
    let saving = store.store.save(&["web".to_owned()]).unwrap();
    store.store.remove("web", true, UNUSED).unwrap();
    assert!(store.store.remove(&id.to_string(), true, UNUSED).is_err());
    let mut archive = Vec::new();
    saving.write(&mut archive).unwrap();
    drop(saving);
    store.store.remove(&id.to_string(), true, UNUSED).unwrap();
    assert_eq!(count(&store, "blobs/sha256"), 0);
    store.load(&archive);
    assert_eq!(store.store.resolve("web").unwrap().id, id);
}
