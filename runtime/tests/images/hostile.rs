//! Archives that lie, climb or break off: a typed error each, and the store as it was.

use std::collections::BTreeMap;

use runtime::image::{Digest, ImageError, ImportChanges, Limits};
use serde_json::json;
use tar::EntryType;

use crate::archives::{Layout, PACKS, Pack, Tar, TestImage, TestStore, docker_save, oci_layout, pack};
use crate::tree::describe;

/// The store's tree without the times of directories, which `tmp/` changes by being used.
fn snapshot(store: &TestStore) -> BTreeMap<String, String> {
    describe(&store.root())
        .into_iter()
        .map(|(name, text)| (name, text.split(" at ").next().unwrap().to_owned()))
        .collect()
}

/// A store with one image in it already.
fn store_with(limits: Limits) -> Option<TestStore> {
    let store = TestStore::with_limits(limits)?;
    let layer = Tar::new().file("base", b"base").bytes();
    store.load(&docker_save(&[TestImage::new("base", vec![layer])], Pack::Plain));
    Some(store)
}

#[track_caller]
fn check_refused(store: &TestStore, archive: &[u8], expected: impl Fn(&ImageError) -> bool) {
    let before = snapshot(store);
    let names = names(store);
    let error = store.store.load(archive).unwrap_err();
    assert!(expected(&error), "{error:?}");
    assert_eq!(snapshot(store), before, "after {error}");
    assert_eq!(self::names(store), names, "after {error}");
}

fn names(store: &TestStore) -> Vec<String> {
    store.store.list().iter().flat_map(|image| &image.references).map(ToString::to_string).collect()
}

/// Refused as a layer of an image, as a root file system, and below a harmless layer.
#[track_caller]
fn check_layer(layer: &[u8], expected: impl Fn(&ImageError) -> bool) {
    let Some(store) = store_with(Limits::default()) else { return };
    for form in PACKS {
        let image = TestImage::new("bad", vec![layer.to_vec()]);
        check_refused(&store, &docker_save(&[image], form), &expected);
    }
    let harmless = Tar::new().file("ok", b"1").bytes();
    let image = TestImage::new("base", vec![harmless, layer.to_vec()]);
    check_refused(&store, &oci_layout(&image, Pack::Gzip), &expected);

    let before = snapshot(&store);
    let error = store.store.import(layer, None, ImportChanges::default(), "").unwrap_err();
    assert!(expected(&error), "{error:?}");
    assert_eq!(snapshot(&store), before, "after {error}");
}

fn traversal(name: &str) -> impl Fn(&ImageError) -> bool {
    let name = name.to_owned();
    move |error| matches!(error, ImageError::Traversal { entry, .. } if *entry == name)
}

#[test]
fn names_that_climb() {
    for name in ["../evil", "a/../../evil", "/../evil", "a/..", "..", ".wh...", "a/.wh..", ".wh."] {
        check_layer(&Tar::new().file(name, b"x").bytes(), traversal(name));
    }
    let layer = Tar::new().file("ok", b"1").hardlink("evil", "../../etc/passwd").bytes();
    check_layer(&layer, traversal("evil"));
    let layer = Tar::new().pax(&[("path", b"ok/../../evil")]).file("ok", b"1").bytes();
    check_layer(&layer, traversal("ok/../../evil"));
}

#[test]
fn links_that_climb() {
    let outside = tempfile::tempdir().unwrap();
    let escape = |error: &ImageError| matches!(error, ImageError::Escape { .. });
    let target = format!("../../../../../../../..{}", outside.path().display());
    for layer in [
        Tar::new().symlink("a", &target).file("a/evil", b"x"),
        Tar::new().dir("d/").symlink("d/a", "../..").file("d/a/evil", b"x"),
        Tar::new().symlink("a", "/../x").file("a/evil", b"x"),
        Tar::new().symlink("a", "b").symlink("b", "..").dir("a/evil/"),
        Tar::new().symlink("a", "..").hardlink("evil", "a/passwd"),
        Tar::new().symlink("a", "..").file("a/.wh.evil", b""),
        Tar::new().symlink("a", "..").file("a/.wh..wh..opq", b""),
    ] {
        check_layer(&layer.bytes(), escape);
    }
    // An absolute link stays inside, so that nothing is ever written where it points on the host.
    let Some(store) = store_with(Limits::default()) else { return };
    let inside = outside.path().display().to_string();
    let layer = Tar::new().symlink("a", &inside).file("a/file", b"x").bytes();
    store.load(&docker_save(&[TestImage::new("abs", vec![layer])], Pack::Plain));
    let layer = store.store.resolve("abs").unwrap().layers[0].clone();
    assert!(layer.join(inside.trim_start_matches('/')).join("file").is_file());
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn entries_that_cannot_be() {
    let bad = |error: &ImageError| matches!(error, ImageError::BadEntry { .. });
    let long = "n".repeat(300);
    let mut owner = Tar::header(EntryType::Regular, 0o644, 0);
    owner.set_uid(u64::from(u32::MAX));
    for layer in [
        Tar::new().hardlink("a", "missing"),
        Tar::new().dir("d/").hardlink("a", "d"),
        Tar::new().hardlink("a", "/"),
        Tar::new().symlink("a", ""),
        Tar::new().symlink("a", "a").file("a/x", b""),
        Tar::new().file("f", b"").file("f/x", b""),
        // The link would take the place of the directory that its target is in.
        Tar::new().file("d/x", b"").hardlink("d", "d/x"),
        Tar::new().file(".", b""),
        Tar::new().pax(&[("path", long.as_bytes())]).file("f", b""),
        Tar::new().pax(&[("path", b"a\0b")]).file("f", b""),
        Tar::new().raw("f", owner, b""),
        Tar::new().raw("d/", Tar::header(EntryType::Regular, 0o644, 4), b"file"),
    ] {
        check_layer(&layer.bytes(), bad);
    }
    for kind in [b'V', b'M', b'D', b'Z'] {
        let header = Tar::header(EntryType::new(kind), 0o644, 0);
        check_layer(&Tar::new().raw("odd", header, b"").bytes(), |error| {
            matches!(error, ImageError::UnknownEntryType { entry, kind: shown, .. }
                if entry == "odd" && *shown == char::from(kind))
        });
    }
    let bad_tar = |error: &ImageError| matches!(error, ImageError::BadTar { .. });
    for record in ["8 uid=x\n", "99 uid=1\n", "uid=1\n", "7 uid=1", "3 \n", "4 a\n", "1 uid=1\n"] {
        let header = Tar::header(EntryType::XHeader, 0o644, record.len());
        let layer = Tar::new().raw("pax", header, record.as_bytes()).file("f", b"");
        check_layer(&layer.bytes(), bad_tar);
    }
    let twice = Tar::new().pax(&[("uid", b"1")]).pax(&[("gid", b"1")]).file("f", b"");
    check_layer(&twice.bytes(), bad_tar);
    let mut broken = Tar::new().file("f", b"").bytes();
    broken[0] = b'g';
    check_layer(&broken, bad_tar);
}

#[test]
fn sparse_files_that_lie() {
    let bad_entry = |error: &ImageError| matches!(error, ImageError::BadEntry { .. });
    let bad_tar = |error: &ImageError| matches!(error, ImageError::BadTar { .. });
    let mapped = |size: &str, map: &str| {
        Tar::new().pax(&[("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", map.as_bytes())])
    };
    for layer in [
        mapped("10", "0,5").file("f", b"four"),
        mapped("10", "0,3").file("f", b"four"),
        mapped("10", "8,4").file("f", b"four"),
        mapped("10", "4,2,0,2").file("f", b"four"),
        mapped("10", "18446744073709551615,4").file("f", b"four"),
        mapped("10", "").dir("d/"),
        mapped("10", "").symlink("l", "x"),
    ] {
        check_layer(&layer.bytes(), bad_entry);
    }
    let in_content: &[(&str, &[u8])] =
        &[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"9")];
    for layer in [
        Tar::new().pax(&[("GNU.sparse.major", b"1")]).file("f", b""),
        Tar::new().pax(&[("GNU.sparse.major", b"7"), ("GNU.sparse.size", b"1")]).file("f", b""),
        mapped("10", "0,1,2").file("f", b""),
        Tar::new().pax(in_content).file("f", &[b'x'; 512]),
        mapped("10", "0,1").pax(&[("GNU.sparse.size", b"9")]).file("f", b"x"),
        // Its map goes on where its content has ended.
        Tar::new().pax(in_content).file("f", b"1\n0\n1\n"),
        // Star's layout, of which the archive's own magic tells.
        Tar::new().raw("f", Tar::header(EntryType::GNUSparse, 0o644, 0), b""),
    ] {
        check_layer(&layer.bytes(), bad_tar);
    }
    // Holes take no room, but whoever copies the file reads them.
    let vast = mapped("9223372036854775807", "0,4").file("f", b"four").bytes();
    check_layer(&vast, |error| matches!(error, ImageError::LimitExceeded { .. }));
    // What ends a map, and whether it goes on, must not be seen differently by others.
    let slots = |extended: u8, slots: &[(&[u8], &[u8])]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(EntryType::GNUSparse);
        header.set_size(512);
        header.set_uid(0);
        header.set_gid(0);
        let gnu = header.as_gnu_mut().unwrap();
        gnu.set_real_size(1024);
        gnu.isextended[0] = extended;
        for (slot, (offset, length)) in gnu.sparse.iter_mut().zip(slots) {
            slot.offset[..offset.len()].copy_from_slice(offset);
            slot.numbytes[..length.len()].copy_from_slice(length);
        }
        let block = [0; 512];
        Tar::new().raw("f", header, &block).file("hidden", b"").bytes()
    };
    let (zero, all): (&[u8], &[u8]) = (b"00000000000", b"00000001000");
    for layer in [
        slots(2, &[(zero, all)]),
        slots(0, &[(b"", b""), (zero, all)]),
        slots(0, &[(zero, all), (b"", all)]),
        slots(0, &[(zero, all), (b"00000001000", b"")]),
    ] {
        check_layer(&layer, bad_tar);
    }
    // Continued for ever.
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(EntryType::GNUSparse);
    header.set_size(0);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size(0);
    gnu.set_is_extended(true);
    for slot in &mut gnu.sparse {
        slot.offset[..11].fill(b'0');
        slot.numbytes[..11].fill(b'0');
    }
    let mut block = [0; 512];
    block[..21 * 24].copy_from_slice(&b"00000000000\0".repeat(42));
    block[504] = 1;
    let endless = Tar::new().raw("f", header, b"").bytes();
    let endless = [&endless[..512], &block.repeat(3000), &[0; 1024]].concat();
    check_layer(&endless, |error| matches!(error, ImageError::LimitExceeded { .. }));
}

#[test]
fn layers_that_lie_about_their_digest() {
    let Some(store) = store_with(Limits::default()) else { return };
    let told = Tar::new().file("told", b"1").bytes();
    let given = Tar::new().file("given", b"1").bytes();
    let base = Tar::new().file("base", b"base").bytes();
    let image = TestImage::new("liar", vec![told.clone()]);
    // The uncompressed digest in the configuration, in the older form and for a layer that the store
    // has: neither may be taken at its word.
    for (told, given) in [(&told, &given), (&base, &given)] {
        let image = TestImage::new("liar", vec![told.clone()]);
        let hex = image.id().trim_start_matches("sha256:").to_owned();
        let manifest = json!([{"Config": format!("{hex}.json"), "RepoTags": ["liar"], "Layers": ["l.tar"]}]);
        let archive = Tar::new()
            .file("l.tar", given)
            .file(&format!("{hex}.json"), &image.config())
            .file("manifest.json", manifest.to_string().as_bytes());
        check_refused(&store, &archive.bytes(), |error| {
            matches!(error, ImageError::DigestMismatch { what, actual, .. }
                if what == "layer l.tar" && *actual == Digest::of(given).to_string())
        });
    }
    // The configuration's own name.
    let manifest = json!([{"Config": format!("{}.json", "0".repeat(64)), "RepoTags": [], "Layers": ["l.tar"]}]);
    let archive = Tar::new()
        .file("l.tar", &told)
        .file(&format!("{}.json", "0".repeat(64)), &image.config())
        .file("manifest.json", manifest.to_string().as_bytes());
    check_refused(&store, &archive.bytes(), |error| matches!(error, ImageError::DigestMismatch { .. }));

    // A blob of a layout, under the name of another.
    for form in PACKS {
        let mut layout = Layout::new();
        let descriptor = layout.manifest(&image, form);
        layout.add(descriptor, json!({}));
        layout.blobs[1].1 = pack(&given, form);
        check_refused(&store, &layout.bytes(), |error| matches!(error, ImageError::DigestMismatch { .. }));
    }
    // A link in the archive from one blob's name to another file.
    let mut layout = Layout::new();
    let descriptor = layout.manifest(&image, Pack::Plain);
    layout.add(descriptor, json!({}));
    let name = layout.blobs.remove(1).0;
    let mut archive = Tar::new().file("other", &given).hardlink(&name, "other");
    for (name, bytes) in layout.files() {
        archive = archive.file(&name, &bytes);
    }
    check_refused(&store, &archive.bytes(), |error| matches!(error, ImageError::DigestMismatch { .. }));
    // The length in a descriptor.
    let mut layout = Layout::new();
    let mut descriptor = layout.manifest(&image, Pack::Plain);
    descriptor["size"] = json!(1);
    layout.add(descriptor, json!({}));
    check_refused(&store, &layout.bytes(), |error| matches!(error, ImageError::SizeMismatch { .. }));
}

#[test]
fn archives_that_make_no_sense() {
    let Some(store) = store_with(Limits::default()) else { return };
    let image = || TestImage::new("odd", vec![Tar::new().file("f", b"1").bytes()]);
    let hex = image().id().trim_start_matches("sha256:").to_owned();
    let config = format!("{hex}.json");
    let manifest =
        |text: &str| Tar::new().file(&config, &image().config()).file("manifest.json", text.as_bytes()).bytes();

    check_refused(&store, b"", |error| matches!(error, ImageError::Truncated { .. }));
    check_refused(&store, &[7; 2000], |error| matches!(error, ImageError::BadTar { .. }));
    check_refused(&store, &Tar::new().bytes(), |error| matches!(error, ImageError::NotAnImageArchive));
    check_refused(&store, &manifest("{"), |error| matches!(error, ImageError::BadJson { .. }));
    check_refused(&store, &manifest("[]"), |error| matches!(error, ImageError::Malformed { .. }));
    check_refused(&store, &manifest(&"[".repeat(1000)), |error| matches!(error, ImageError::LimitExceeded { .. }));
    let missing = json!([{"Config": config, "Layers": ["nosuch.tar"]}]).to_string();
    check_refused(
        &store,
        &manifest(&missing),
        |error| matches!(error, ImageError::Missing { what, .. } if what == "nosuch.tar"),
    );
    let fewer = json!([{"Config": config, "Layers": []}]).to_string();
    check_refused(&store, &manifest(&fewer), |error| matches!(error, ImageError::Malformed { .. }));
    let mut bad_name = image();
    bad_name.tags = vec!["Not A Name".to_owned()];
    check_refused(&store, &docker_save(&[bad_name], Pack::Plain), |error| matches!(error, ImageError::Reference(_)));
    // The first of two images is good; neither stays.
    let bad = TestImage::new("bad", vec![Tar::new().file("../x", b"").bytes()]);
    check_refused(&store, &docker_save(&[image(), bad], Pack::Plain), |error| {
        matches!(error, ImageError::Traversal { .. })
    });
    let outer = [Tar::new().file("../x", b""), Tar::new().symlink("x", "../../y")];
    for archive in outer {
        check_refused(&store, &archive.bytes(), |error| matches!(error, ImageError::Traversal { .. }));
    }
    let special = |kind| {
        let mut header = Tar::header(kind, 0o644, 0);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        Tar::new().raw("x", header, b"")
    };
    let outer = [
        Tar::new().file("x", b"").file("./x", b""),
        special(EntryType::Fifo),
        special(EntryType::Char),
        special(EntryType::Block),
        Tar::new().pax(&[("path", &[b'n'; 600])]).file("x", b""),
        Tar::new().pax(&[("path", b"\xff")]).file("x", b""),
    ];
    for archive in outer {
        check_refused(&store, &archive.bytes(), |error| matches!(error, ImageError::BadEntry { .. }));
    }
    check_refused(&store, b"\xfd7zXZ\0 and so on", |error| {
        matches!(error, ImageError::UnsupportedCompression { format: "xz", .. })
    });
}

#[test]
fn limits_hold() {
    let exceeded = |error: &ImageError| matches!(error, ImageError::LimitExceeded { .. });
    let layer = |files: usize, bytes: usize| {
        let content = vec![0; bytes];
        (0..files).fold(Tar::new(), |tar, nth| tar.file(&format!("f{nth}"), &content)).bytes()
    };
    let image = |layer: Vec<u8>| TestImage::new("big", vec![layer]);
    let roomy = Limits::default();
    let cases = [
        (Limits { max_entries: 10, ..roomy.clone() }, layer(11, 0)),
        // Ten files of one name are ten entries.
        (Limits { max_entries: 9, ..roomy.clone() }, (0..10).fold(Tar::new(), |tar, _| tar.file("same", b"")).bytes()),
        (Limits { max_unpacked_bytes: 10_000, ..roomy.clone() }, layer(11, 1000)),
        (Limits { max_archive_bytes: 20_000, ..roomy.clone() }, layer(1, 20_000)),
        (Limits { max_metadata_bytes: 100, ..roomy.clone() }, layer(1, 1)),
        (Limits { max_path_bytes: 9, ..roomy.clone() }, Tar::new().file("0123456789", b"").bytes()),
        (Limits { max_archive_files: 4, ..roomy.clone() }, layer(1, 1)),
        (Limits { max_layers: 0, ..roomy }, layer(1, 1)),
    ];
    for (limits, layer) in cases {
        // Zeros make a small archive of a large one: its content counts.
        for form in PACKS {
            let Some(store) = TestStore::with_limits(limits.clone()) else { return };
            let mut layout = Layout::new();
            let descriptor = layout.manifest(&image(layer.clone()), Pack::Plain);
            layout.add(descriptor, json!({}));
            println!("{form:?}, {limits:?}");
            check_refused(&store, &pack(&layout.bytes(), form), exceeded);
        }
    }

    // Headers add up over all that stand before one entry.
    let limits = Limits { max_header_bytes: 5000, ..Limits::default() };
    let Some(store) = TestStore::with_limits(limits) else { return };
    let value = [b'v'; 1000];
    let long_name = || Tar::header(EntryType::GNULongName, 0o644, value.len());
    let names = (0..10).fold(Tar::new(), |tar, _| tar.raw("long", long_name(), &value));
    check_refused(&store, &docker_save(&[image(names.file("f", b"").bytes())], Pack::Gzip), exceeded);
    let Some(store) = TestStore::with_limits(Limits { max_images: 1, ..Limits::default() }) else { return };
    let two = || [image(layer(1, 1)), image(layer(2, 1))];
    check_refused(&store, &docker_save(&two(), Pack::Plain), exceeded);
    let mut layout = Layout::new();
    for image in two() {
        let descriptor = layout.manifest(&image, Pack::Plain);
        layout.add(descriptor, json!({}));
    }
    check_refused(&store, &layout.bytes(), exceeded);

    // What follows a layer's end marker is not unpacked, and counts too.
    let limits = Limits { max_unpacked_bytes: 10_000, max_entries: 1, ..Limits::default() };
    let Some(store) = TestStore::with_limits(limits) else { return };
    let mut bomb = Tar::new().bytes();
    bomb.resize(1 << 20, 0);
    for form in PACKS {
        let archive = oci_layout(&image(bomb.clone()), form);
        check_refused(&store, &archive, exceeded);
    }
}

#[test]
fn truncated_anywhere() {
    let Some(store) = store_with(Limits::default()) else { return };
    let base = Tar::new().dir("a/").file("a/b", &[7; 700]).bytes();
    let image = || TestImage::new("cut", vec![base.clone(), Tar::new().file("c", b"1").bytes()]);
    let before = snapshot(&store);
    for whole in PACKS {
        for (archive, layout) in
            [(docker_save(&[image()], Pack::Gzip), false), (oci_layout(&image(), Pack::Zstd), true)]
        {
            // The end marker is two blocks of zeros; the first alone is enough.
            let end = if whole == Pack::Plain { archive.len() - 1024 } else { usize::MAX };
            let archive = pack(&archive, whole);
            let step = (archive.len() / 40).max(1) | 1;
            let cuts = (0..archive.len()).step_by(step).chain([archive.len() - 1]);
            for cut in cuts.filter(|cut| *cut < end) {
                let outcome = store.store.load(&archive[..cut]);
                let Err(error) = outcome else {
                    panic!("accepted, cut at {cut} of {} ({whole:?}, layout {layout})", archive.len());
                };
                let told =
                    matches!(error, ImageError::Truncated { .. } | ImageError::Read { .. } | ImageError::BadTar { .. });
                assert!(told, "cut at {cut}: {error:?}");
            }
            assert_eq!(snapshot(&store), before);
        }
        // A root file system has no digest: its end marker tells.
        let archive = pack(&base, whole);
        let end = if whole == Pack::Plain { archive.len() - 1024 + 512 } else { usize::MAX };
        for cut in (0..archive.len()).filter(|cut| *cut < end).step_by(29) {
            let outcome = store.store.import(&archive[..cut], None, ImportChanges::default(), "");
            assert!(outcome.is_err(), "import accepted, cut at {cut} ({whole:?})");
        }
        assert_eq!(snapshot(&store), before);
    }
}

/// Indexes that list each other many times over are looked at once; what is in none of them is found out soon.
#[test]
fn indexes_that_multiply() {
    let Some(store) = store_with(Limits::default()) else { return };
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    let mut layout = Layout::new();
    let elsewhere = json!({"mediaType": INDEX, "digest": format!("sha256:{}", "0".repeat(64)), "size": 1,
        "platform": {"os": "plan9", "architecture": "mips"}});
    let mut inner = vec![elsewhere; 200];
    for _ in 0..4 {
        let index = json!({"schemaVersion": 2, "manifests": inner}).to_string();
        inner = vec![layout.blob(INDEX, index.as_bytes()); 200];
    }
    layout.index = inner;
    let began = std::time::Instant::now();
    check_refused(
        &store,
        &layout.bytes(),
        |error| matches!(error, ImageError::NoPlatform { found, .. } if found == "plan9/mips"),
    );
    assert!(began.elapsed().as_secs() < 30, "it took {:?}", began.elapsed());
    // One that is large and leads to an image, many times over: it is read once.
    let mut layout = Layout::new();
    let image = TestImage::new("wide", vec![Tar::new().file("f", b"1").bytes()]);
    let mut inner = vec![json!({"digest": "", "size": 1, "platform": {"os": "plan9", "architecture": "mips"}}); 30_000];
    inner.push(layout.manifest(&image, Pack::Plain));
    let index = json!({"schemaVersion": 2, "manifests": inner}).to_string();
    layout.index = vec![layout.blob(INDEX, index.as_bytes()); 2000];
    let began = std::time::Instant::now();
    let wide = TestStore::new().unwrap();
    assert_eq!(wide.load(&layout.bytes())[0].id.to_string(), image.id());
    assert!(began.elapsed().as_secs() < 60, "it took {:?}", began.elapsed());
    // Too many that are all different.
    let mut layout = Layout::new();
    let other = |nth: usize| json!({"mediaType": INDEX, "digest": "", "size": nth, "platform": {"os": "x", "architecture": "y"}});
    layout.index = (0..10_001).map(other).collect();
    check_refused(
        &store,
        &layout.bytes(),
        |error| matches!(error, ImageError::LimitExceeded { what, .. } if what.contains("indexes")),
    );
    // Too deep.
    let mut layout = Layout::new();
    let image = TestImage::new("deep", vec![Tar::new().file("f", b"1").bytes()]);
    let mut inner = layout.manifest(&image, Pack::Plain);
    for _ in 0..5 {
        inner = layout.blob(INDEX, json!({"schemaVersion": 2, "manifests": [inner]}).to_string().as_bytes());
    }
    layout.index = vec![inner];
    check_refused(&store, &layout.bytes(), |error| matches!(error, ImageError::Malformed { .. }));
}

/// A few bytes of JSON can claim many bytes of memory, and names many bytes of the store's own list.
#[test]
fn documents_that_swell() {
    let exceeded = |error: &ImageError| matches!(error, ImageError::LimitExceeded { .. });
    let Some(store) = store_with(Limits::default()) else { return };
    let layer = Tar::new().file("f", b"1").bytes();
    let mut image = TestImage::new("many", vec![layer.clone()]);
    image.tags = (0..10_001).map(|nth| format!("many:{nth}")).collect();
    check_refused(&store, &docker_save(&[image], Pack::Plain), exceeded);
    let mut image = TestImage::new("env", vec![layer.clone()]);
    image.process = json!({"Env": vec!["A=1"; 10_001]});
    check_refused(&store, &docker_save(&[image], Pack::Plain), exceeded);
    let mut image = TestImage::new("swell", vec![layer]);
    image.process = json!({"Healthcheck": vec![0; 300_000]});
    check_refused(&store, &docker_save(&[image], Pack::Plain), exceeded);
}

/// What lies too deep for any path, and many directories that no entry names.
#[test]
fn directories_without_end() {
    let bad = |error: &ImageError| matches!(error, ImageError::BadEntry { reason, .. } if reason.contains("too deep"));
    let deep = "d/".repeat(1000);
    let down = |tar: Tar, link: &str, from: &str| {
        let tar = tar.pax(&[("linkpath", format!("{from}{deep}").as_bytes())]).symlink(link, "x");
        tar.pax(&[("path", format!("{link}/{deep}f").as_bytes())]).file("f", b"")
    };
    // Each link leads from the end of the one before it further down, where each entry makes a thousand more.
    let tar = Tar::new().pax(&[("path", format!("{deep}f").as_bytes())]).file("f", b"");
    let tar = down(down(down(tar, "l1", ""), "l2", "l1/"), "l3", "l2/");
    check_layer(&tar.bytes(), bad);
    // The same, one directory an entry: nothing is made that an entry does not name.
    let limits = Limits { max_entries: 100, ..Limits::default() };
    let Some(store) = store_with(limits) else { return };
    let image = TestImage::new("deep", vec![Tar::new().file(&"d/".repeat(49), b"").bytes()]);
    store.load(&docker_save(&[image], Pack::Plain));
    let deep = "d/".repeat(1000);
    let layer = Tar::new().pax(&[("path", format!("{deep}f").as_bytes())]).file("f", b"").bytes();
    check_refused(
        &store,
        &docker_save(&[TestImage::new("deep", vec![layer])], Pack::Plain),
        |error| matches!(error, ImageError::LimitExceeded { what, .. } if what.contains("entries")),
    );
}

#[test]
fn what_is_no_image() {
    let Some(store) = store_with(Limits::default()) else { return };
    let image = TestImage::new("odd", vec![Tar::new().file("f", b"1").bytes()]);
    let malformed = |word: &str| {
        let word = word.to_owned();
        move |error: &ImageError| matches!(error, ImageError::Malformed { .. }) && error.to_string().contains(&word)
    };
    let with = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut layout = Layout::new();
        layout.manifest(&image, Pack::Gzip);
        let (_, manifest) = layout.blobs.pop().unwrap();
        let mut manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        change(&mut manifest);
        let descriptor = layout.blob("application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes());
        layout.add(descriptor, json!({}));
        layout.bytes()
    };
    let config = |media_type: &str| with(&|manifest| manifest["config"]["mediaType"] = media_type.into());
    let layer = |media_type: &str| with(&|manifest| manifest["layers"][0]["mediaType"] = media_type.into());
    let both = with(&|manifest| manifest["manifests"] = json!([]));
    check_refused(
        &store,
        &config("application/vnd.cncf.helm.config.v1+json"),
        malformed("not an image that can be run"),
    );
    check_refused(&store, &layer("application/vnd.oci.image.layer.v1.tar+gzip+encrypted"), malformed("encrypted"));
    check_refused(&store, &layer("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"), malformed("foreign"));
    check_refused(&store, &layer("text/plain"), malformed("no layer"));
    check_refused(&store, &both, malformed("at the same time"));
    // Old tools say nothing of types; what is there tells.
    store.load(&layer(""));
    let mut layout = Layout::new();
    let mut descriptor = layout.manifest(&image, Pack::Plain);
    descriptor["mediaType"] = "application/vnd.oci.artifact.manifest.v1+json".into();
    layout.add(descriptor, json!({}));
    check_refused(&store, &layout.bytes(), malformed("which is no image"));
}
