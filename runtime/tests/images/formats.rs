//! Each format and each compression gives the same image.

use std::fs;

use runtime::image::{ImageError, ImageErrorKind, ImportChanges, Reference};
use serde_json::json;

use crate::archives::{Layout, PACKS, Pack, Tar, TestImage, TestStore, docker_save, oci_layout, pack};

fn sample() -> TestImage {
    let base = Tar::new().dir("bin/").file("bin/app", b"one").bytes();
    let top = Tar::new().file("bin/more", b"two").bytes();
    TestImage::new("web:1", vec![base, top])
}

#[track_caller]
fn check_sample(store: &TestStore, what: &str) {
    let sample = sample();
    let image = store.store.resolve("web:1").unwrap();
    assert_eq!(image.id.to_string(), sample.id(), "{what}");
    assert_eq!(image.layers.len(), 2, "{what}");
    assert_eq!(fs::read(image.layers[0].join("bin/app")).unwrap(), b"one", "{what}");
    assert_eq!(fs::read(image.layers[1].join("bin/more")).unwrap(), b"two", "{what}");
    assert_eq!(image.config.entrypoint, ["/bin/app"]);
    assert!(image.config.cmd.is_empty());
    assert_eq!(image.config.env, ["PATH=/bin"]);
    assert_eq!(image.config.working_dir, "/srv");
    assert_eq!(image.config.labels["maker"], "test");
    assert_eq!(image.config.exposed_ports, ["80/tcp"]);
    assert_eq!(image.config.stop_signal.as_deref(), Some("SIGINT"));
    assert_eq!(image.config.created_unix(), 1_714_979_289);
    assert_eq!(image.size, 6);
    assert_eq!(image.history.len(), 1);
}

#[test]
fn docker_save_archives() {
    for layer in PACKS {
        for whole in PACKS {
            let Some(store) = TestStore::new() else { return };
            let loaded = store.load(&pack(&docker_save(&[sample()], layer), whole));
            assert_eq!(loaded.len(), 1);
            assert_eq!(loaded[0].references[0].to_string(), "web:1");
            check_sample(&store, &format!("layers {layer:?}, whole {whole:?}"));
        }
    }
}

#[test]
fn oci_layouts() {
    for layer in PACKS {
        for whole in PACKS {
            let Some(store) = TestStore::new() else { return };
            store.load(&pack(&oci_layout(&sample(), layer), whole));
            check_sample(&store, &format!("layers {layer:?}, whole {whole:?}"));
        }
    }
}

/// Docker 25 and later write both forms; the index names only the tag.
#[test]
fn docker_save_as_oci_layout() {
    let Some(store) = TestStore::new() else { return };
    let sample = sample();
    let mut layout = Layout::new();
    let manifest = layout.manifest(&sample, Pack::Plain);
    layout.add(manifest, json!({"org.opencontainers.image.ref.name": "1"}));
    let layers: Vec<String> = layout.blobs.iter().skip(1).take(2).map(|(name, _)| name.clone()).collect();
    let saved = json!([{
        "Config": layout.blobs[0].0,
        "RepoTags": ["web:1", "web:other"],
        "Layers": layers,
        "LayerSources": {},
    }]);
    layout.blobs.push(("manifest.json".to_owned(), saved.to_string().into_bytes()));
    let loaded = store.load(&layout.bytes());
    let names: Vec<String> = loaded[0].references.iter().map(Reference::to_string).collect();
    assert_eq!(names, ["web:1", "web:other"]);
    check_sample(&store, "both forms");

    // containerd's annotation is a full name.
    let Some(store) = TestStore::new() else { return };
    let mut layout = Layout::new();
    let manifest = layout.manifest(&sample, Pack::Gzip);
    layout.add(
        manifest,
        json!({
            "io.containerd.image.name": "docker.io/library/web:1",
            "org.opencontainers.image.ref.name": "1",
        }),
    );
    store.load(&layout.bytes());
    check_sample(&store, "containerd's name");
}

#[test]
fn the_image_for_this_platform_is_chosen() {
    let here = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let elsewhere = if here == "arm64" { "amd64" } else { "arm64" };
    for (architectures, found) in [(vec![elsewhere, here], true), (vec![elsewhere], false)] {
        let Some(store) = TestStore::new() else { return };
        let mut layout = Layout::new();
        let mut inner = Vec::new();
        for architecture in architectures {
            let mut image = sample();
            if architecture != here {
                image.process = json!({"Cmd": ["wrong"]});
            }
            let mut manifest = layout.manifest(&image, Pack::Gzip);
            manifest["platform"] = json!({"os": "linux", "architecture": architecture});
            inner.push(manifest);
        }
        // An attestation, whose blob need not be there.
        inner.push(json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": format!("sha256:{}", "0".repeat(64)),
            "size": 1,
            "platform": {"os": "unknown", "architecture": "unknown"},
        }));
        let index = json!({"schemaVersion": 2, "manifests": inner}).to_string();
        let index = layout.blob("application/vnd.oci.image.index.v1+json", index.as_bytes());
        layout.add(index, json!({"org.opencontainers.image.ref.name": "localhost/web:1"}));
        let outcome = store.store.load(&layout.bytes()[..]);
        if found {
            let id = outcome.unwrap()[0].id;
            assert_eq!(store.store.resolve("localhost/web:1").unwrap().id, id);
            assert_eq!(id.to_string(), sample().id());
        } else {
            let error = outcome.unwrap_err();
            assert!(
                matches!(&error, ImageError::NoPlatform { found, .. } if found == &format!("linux/{elsewhere}")),
                "{error}"
            );
        }
    }
}

/// What needs a newer processor than this one comes first, and is passed over.
#[test]
fn the_variant_for_this_processor_is_chosen() {
    let Some(store) = TestStore::new() else { return };
    let here = runtime::image::registry::ImagePlatform::host().architecture;
    let platform = |variant: &str| json!({"os": "linux", "architecture": here, "variant": variant});
    let mut layout = Layout::new();
    let mut newer = sample();
    newer.process = json!({"Cmd": ["wrong"]});
    let (mut newer, mut fits) = (layout.manifest(&newer, Pack::Gzip), layout.manifest(&sample(), Pack::Gzip));
    newer["platform"] = platform("v99");
    fits["platform"] = platform("");
    let index = json!({"schemaVersion": 2, "manifests": [newer, fits]}).to_string();
    let index = layout.blob("application/vnd.oci.image.index.v1+json", index.as_bytes());
    layout.add(index.clone(), json!({"org.opencontainers.image.ref.name": "localhost/web:1"}));
    assert_eq!(store.load(&layout.bytes())[0].id.to_string(), sample().id());

    // Another host that is given the index chooses the same.
    let lease = store.store.lease();
    let digest = index["digest"].as_str().unwrap().parse().unwrap();
    let name = format!("blobs/sha256/{}", index["digest"].as_str().unwrap().trim_start_matches("sha256:"));
    let (_, bytes) = layout.blobs.iter().find(|(known, _)| *known == name).unwrap();
    let mut writer = lease.writer(digest, bytes.len() as u64).unwrap();
    writer.write(bytes).unwrap();
    lease.keep(writer).unwrap();
    assert_eq!(lease.entry(&digest).unwrap().unwrap().0.to_string(), fits["digest"].as_str().unwrap());
}

#[test]
fn imports_of_root_file_systems() {
    let tar = Tar::new().dir("./").file("./bin/app", b"hello").bytes();
    for whole in PACKS {
        let Some(store) = TestStore::new() else { return };
        let changes = ImportChanges::parse(&["CMD [\"/bin/app\"]", "EXPOSE 80"]).unwrap();
        let name = Reference::parse("rootfs").unwrap();
        let id = store.store.import(&pack(&tar, whole)[..], Some(name), changes, "from a test").unwrap();
        let image = store.store.resolve("rootfs").unwrap();
        assert_eq!(image.id, id);
        assert_eq!(fs::read(image.layers[0].join("bin/app")).unwrap(), b"hello");
        assert_eq!(image.config.cmd, ["/bin/app"]);
        assert_eq!(image.config.exposed_ports, ["80/tcp"]);
        assert_eq!(image.config.os, "linux");
        // When its newest file was changed; and so it is the same image wherever and whenever it is imported.
        assert_eq!(image.config.created_unix(), 1_000_000_000);
        let Some(other) = TestStore::new() else { return };
        let changes = ImportChanges::parse(&["CMD [\"/bin/app\"]", "EXPOSE 80"]).unwrap();
        assert_eq!(other.store.import(&pack(&tar, whole)[..], None, changes, "from a test").unwrap(), id);
        assert_eq!(image.history[0].comment.as_deref(), Some("from a test"));
        assert_eq!(image.size, 5);
        // The blob is kept as it came.
        let blob = store.root().join("blobs/sha256");
        let blob = blob.join(runtime::image::Digest::of(&pack(&tar, whole)).hex());
        assert_eq!(fs::read(blob).unwrap(), pack(&tar, whole));
    }
}

#[test]
fn a_root_file_system_is_not_an_image() {
    let Some(store) = TestStore::new() else { return };
    let tar = Tar::new().file("bin/app", b"hello").bytes();
    let error = store.store.load(&tar[..]).unwrap_err();
    assert!(matches!(error, ImageError::NotAnImageArchive), "{error}");
    assert_eq!(error.kind(), ImageErrorKind::InvalidInput);
}

/// Old `docker save` wrote a shared layer once and linked to it.
#[test]
fn layers_may_be_links_in_the_archive() {
    let Some(store) = TestStore::new() else { return };
    let layer = Tar::new().file("a", b"x").bytes();
    let image = TestImage::new("linked", vec![layer.clone()]);
    let config = image.config();
    let manifest = json!([{
        "Config": format!("{}.json", image.id().trim_start_matches("sha256:")),
        "RepoTags": ["linked"],
        "Layers": ["two/layer.tar"],
    }]);
    let archive = Tar::new()
        .symlink("two/layer.tar", "../one/layer.tar")
        .file("one/layer.tar", &layer)
        .file(&format!("{}.json", image.id().trim_start_matches("sha256:")), &config)
        .file("manifest.json", manifest.to_string().as_bytes())
        .bytes();
    store.load(&archive);
    assert_eq!(store.store.resolve("linked").unwrap().layers.len(), 1);
}

/// A fixture that the zstd tool made, so that our decoder is not only tested with its own encoder:
/// a tar with one file, `greeting`, holding `hello` 4000 times.
#[test]
fn zstd_of_another_hand() {
    let Some(store) = TestStore::new() else { return };
    let archive = include_bytes!("../fixtures/greeting.tar.zst");
    let id = store.store.import(&archive[..], None, ImportChanges::default(), "").unwrap();
    let image = store.store.resolve(&id.short()).unwrap();
    assert_eq!(fs::read(image.layers[0].join("greeting")).unwrap(), b"hello".repeat(4000));
}
