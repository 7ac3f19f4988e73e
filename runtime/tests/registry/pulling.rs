//! What a pull brings, and what it does not fetch.

use std::sync::Arc;

use runtime::image::registry::{Credentials, ImagePlatform, LayerStep, Mirror, Progress, RegistryErrorKind};
use runtime::image::{Digest, Limits};
use serde_json::json;

use crate::archives::{PACKS, Pack, Tar, TestImage, pack};
use crate::server::{Answer, Body, INDEX, Server, TestHost, serve, settings};

pub(crate) fn layer(name: &str) -> Vec<u8> {
    Tar::new().dir("etc/").file(&format!("etc/{name}"), name.as_bytes()).bytes()
}

/// Content that does not compress and takes many pieces.
pub(crate) fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    })
    .take(bytes)
    .collect()
}

pub(crate) fn big_layer(name: &str, bytes: usize) -> Vec<u8> {
    Tar::new().file(name, &noise(bytes, name.len() as u64)).bytes()
}

#[test]
fn an_image_of_any_compression() {
    for layer_pack in PACKS {
        let server = Server::start();
        let Some(host) = TestHost::new(&server) else { return };
        let image = TestImage::new("x", vec![layer("base"), layer("top")]);
        server.serve_image("a/web", "1", &image, layer_pack);
        let reference = server.reference("a/web:1");
        let pulled = host.pull(&reference).unwrap();
        assert!(pulled.changed);
        assert_eq!(pulled.id.to_string(), image.id());
        let found = host.store.store.resolve(&reference.to_string()).unwrap();
        assert_eq!(found.manifest_digest, Some(pulled.digest.to_string()));
        assert_eq!(found.config.entrypoint, ["/bin/app"]);
        assert_eq!(std::fs::read(found.layers[1].join("etc/top")).unwrap(), b"top");
        assert!(host.entries("tmp").is_empty());

        // Again: the manifest is asked for, nothing else.
        let before = server.requests().len();
        let again = host.pull(&reference).unwrap();
        assert!(!again.changed);
        assert_eq!(server.requests().len(), before + 1);

        // And it is still there when the store is opened anew.
        let reopened = runtime::image::ImageStore::open(host.store.root(), Limits::default()).unwrap();
        assert_eq!(reopened.resolve(&reference.to_string()).unwrap().id, pulled.id);
    }
}

#[test]
fn only_what_is_missing_is_fetched() {
    let server = Server::start();
    let Some(host) = TestHost::new(&server) else { return };
    let shared: Vec<Vec<u8>> = (0..4).map(|n| big_layer(&format!("{n}"), 100_000)).collect();
    let with = |name: &str| [shared.clone(), vec![layer(name)]].concat();
    let (one, two) = (TestImage::new("x", with("one")), TestImage::new("x", with("two")));
    server.serve_image("one", "1", &one, Pack::Gzip);
    server.serve_image("two", "1", &two, Pack::Gzip);
    host.pull(&server.reference("one:1")).unwrap();
    assert!(server.take_sent() > 400_000);
    let (layers, blobs) = (host.entries("layers").len(), host.entries("blobs/sha256").len());
    host.pull(&server.reference("two:1")).unwrap();
    let fifth = pack(&layer("two"), Pack::Gzip).len() as u64;
    let documents = two.config().len() as u64 + 2000;
    assert!(server.take_sent() < fifth + documents, "only the fifth layer, the manifest and the configuration");
    assert_eq!(host.entries("layers").len(), layers + 1);
    assert_eq!(host.entries("blobs/sha256").len(), blobs + 3);
    let (one, two) = (host.store.store.resolve(&one.id()).unwrap(), host.store.store.resolve(&two.id()).unwrap());
    assert_eq!(one.layers[..4], two.layers[..4]);
}

/// The same blob on top of other layers is unpacked again, out of the store's own copy.
#[test]
fn a_blob_that_is_here_is_not_fetched_for_another_place() {
    let server = Server::start();
    let Some(host) = TestHost::new(&server) else { return };
    server.serve_image("one", "1", &TestImage::new("x", vec![layer("a"), layer("b")]), Pack::Gzip);
    server.serve_image("two", "1", &TestImage::new("x", vec![layer("b"), layer("a")]), Pack::Gzip);
    host.pull(&server.reference("one:1")).unwrap();
    host.pull(&server.reference("two:1")).unwrap();
    for name in ["a", "b"] {
        assert_eq!(server.fetches(&pack(&layer(name), Pack::Gzip)), 1);
    }
    assert_eq!(host.entries("layers").len(), 4);
}

/// Layers may come in any order; each is finished on top of those below it.
#[test]
fn layers_that_come_early_wait_for_those_below() {
    let server = Server::start();
    let Some(host) = TestHost::new(&server) else { return };
    let mut sticky = Tar::header(tar::EntryType::Directory, 0o1777, 0);
    sticky.set_uid(7);
    let slow = Tar::new().raw("tmp/", sticky, b"").file("gone", b"1").file("noise", &noise(300_000, 9)).bytes();
    let fast = Tar::new().file("tmp/x", b"1").file(".wh.gone", b"").file(".wh.never-there", b"").bytes();
    let image = TestImage::new("x", vec![slow.clone(), fast.clone()]);
    server.serve_image("web", "1", &image, Pack::Gzip);
    // The lower layer is cut again and again; by then, the upper one has long come.
    let blob = pack(&slow, Pack::Gzip);
    let path = format!("/v2/web/blobs/{}", Digest::of(&blob));
    server.rule(move |request, nth| {
        let cut = request.path == path && nth < 4;
        cut.then(|| serve(request, "", blob.clone()).body(|bytes| Body::Cut(bytes, 50_000)))
    });
    let pulled = host.pull(&server.reference("web:1")).unwrap();
    let found = host.store.store.resolve(&pulled.id.to_string()).unwrap();
    use std::os::unix::fs::MetadataExt;
    let stat = std::fs::metadata(found.layers[1].join("tmp")).unwrap();
    assert_eq!((stat.mode() & 0o7777, stat.uid(), stat.mtime()), (0o1777, 7, 1_000_000_000));
    assert!(std::fs::symlink_metadata(found.layers[1].join("gone")).is_ok(), "it hides what is below");
    assert!(std::fs::symlink_metadata(found.layers[1].join("never-there")).is_err(), "it has nothing to hide");
    // What was loaded from an archive looks the same.
    let other = TestHost::new(&server).unwrap();
    other.store.load(&crate::archives::docker_save(&[image], Pack::Plain));
    let loaded = other.store.store.resolve(&pulled.id.to_string()).unwrap();
    for (one, two) in found.layers.iter().zip(&loaded.layers) {
        assert_eq!(names_and_modes(one), names_and_modes(two));
    }
}

fn names_and_modes(dir: &std::path::Path) -> Vec<(String, u32, i64)> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let stat = std::fs::symlink_metadata(entry.path()).unwrap();
        // Nobody sees when a whiteout was made.
        let at = if stat.file_type().is_char_device() { 0 } else { stat.mtime() };
        all.push((entry.file_name().into_string().unwrap(), stat.mode(), at));
        if stat.is_dir() {
            all.extend(names_and_modes(&entry.path()));
        }
    }
    all.sort();
    all
}

#[test]
fn pulls_of_one_layer_at_the_same_time_fetch_it_once() {
    let server = Server::start();
    let Some(host) = TestHost::new(&server) else { return };
    let shared = vec![big_layer("base", 2_000_000), big_layer("middle!", 1_000_000)];
    for name in ["one", "two", "three"] {
        let layers = [shared.clone(), vec![layer(name)]].concat();
        server.serve_image(name, "1", &TestImage::new("x", layers), Pack::Gzip);
    }
    let pulls = ["one:1", "two:1", "three:1", "one:1"].map(|name| {
        let (registries, reference) = (host.registries.clone(), server.reference(name));
        async move { registries.pull(&reference, None, &Credentials::Anonymous, None).await }
    });
    let pulled = host.run(async move { futures_util::future::join_all(pulls.map(tokio::spawn)).await });
    for outcome in pulled {
        outcome.unwrap().unwrap();
    }
    for layer in &shared {
        assert_eq!(server.fetches(&pack(layer, Pack::Gzip)), 1);
    }
    assert_eq!(host.store.store.list().len(), 3);
    assert_eq!((host.entries("layers").len(), host.entries("tmp").len()), (5, 0));
}

#[test]
fn tasks_that_need_one_image_pull_it_once() {
    let server = Server::start();
    let Some(host) = TestHost::new(&server) else { return };
    server.serve_image("web", "1", &TestImage::new("x", vec![layer("a")]), Pack::Gzip);
    let waiting = (0..8).map(|_| {
        let (registries, reference) = (host.registries.clone(), server.reference("web:1"));
        async move { registries.ensure(&reference, &Credentials::Anonymous).await.map(|image| image.id) }
    });
    let waiting: Vec<_> = waiting.collect();
    let found = host.run(async move { futures_util::future::try_join_all(waiting).await }).unwrap();
    assert!(found.iter().all(|id| *id == found[0]));
    let manifests = server.requests().iter().filter(|request| request.contains("/manifests/")).count();
    assert_eq!(manifests, 1);
    // Who pulls it by hand wants to keep it.
    let origin = || host.store.store.list()[0].origin;
    assert_eq!(origin(), runtime::image::Origin::Task);
    assert!(!host.pull(&server.reference("web:1")).unwrap().changed);
    assert_eq!(origin(), runtime::image::Origin::User);
}

#[test]
fn the_image_of_an_index_that_runs_here() {
    let server = Server::start();
    let Some(host) = TestHost::new(&server) else { return };
    let ours = ImagePlatform::host();
    let (here, there) = (TestImage::new("x", vec![layer("here")]), TestImage::new("x", vec![layer("there")]));
    let entry = |image, architecture: &str| {
        let mut entry = server.serve_image("web", "unused", image, Pack::Gzip);
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        entry
    };
    let index = json!({
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [entry(&there, "s390x"), entry(&here, &ours.architecture)],
    });
    let described = server.serve_manifest("web", "1", &index);
    let index_digest = described["digest"].as_str().unwrap().to_owned();
    let pulled = host.pull(&server.reference("web:1")).unwrap();
    assert_eq!((pulled.id.to_string(), pulled.digest.to_string()), (here.id(), index_digest.clone()));
    // It is found by the index's digest too, which is what services are pinned to, also later.
    let by_digest = server.reference(&format!("web@{index_digest}"));
    assert_eq!(host.store.store.resolve(&by_digest.to_string()).unwrap().id, pulled.id);
    let reopened = runtime::image::ImageStore::open(host.store.root(), Limits::default()).unwrap();
    assert_eq!(reopened.resolve(&by_digest.to_string()).unwrap().id, pulled.id);
    assert!(!host.pull(&server.reference("web:1")).unwrap().changed);

    let (registries, reference) = (host.registries.clone(), server.reference("web:1"));
    let other = ImagePlatform { architecture: "s390x".into(), os: "linux".into(), variant: None };
    let foreign =
        host.run(async move { registries.pull(&reference, Some(other), &Credentials::Anonymous, None).await });
    assert_eq!(foreign.unwrap().id.to_string(), there.id());

    let (registries, reference) = (host.registries.clone(), server.reference("web:1"));
    let none = ImagePlatform { architecture: "riscv64".into(), os: "linux".into(), variant: None };
    let error = host
        .run(async move { registries.pull(&reference, Some(none), &Credentials::Anonymous, None).await })
        .unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::NotFound);
    assert!(error.to_string().contains("linux/riscv64"), "{error}");
}

#[test]
fn what_a_registry_knows_of_a_name() {
    let server = Server::start();
    let Some(host) = TestHost::new(&server) else { return };
    let described = server.serve_image("web", "1", &TestImage::new("x", vec![layer("a")]), Pack::Gzip);
    let (registries, reference) = (host.registries.clone(), server.reference("web:1"));
    let known = host.run(async move { registries.inspect(&reference, &Credentials::Anonymous).await }).unwrap();
    assert_eq!(known.digest.to_string(), described["digest"].as_str().unwrap());
    assert_eq!(known.size, described["size"].as_u64().unwrap());
    assert_eq!(known.platforms[0].architecture, "amd64");
    host.assert_empty();
    let (registries, reference) = (host.registries.clone(), server.reference("web:2"));
    let error = host.run(async move { registries.inspect(&reference, &Credentials::Anonymous).await }).unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::NotFound);
}

#[test]
fn progress_tells_of_each_layer() {
    let server = Server::start();
    let Some(host) = TestHost::new(&server) else { return };
    let layers = vec![layer("a"), layer("b")];
    server.serve_image("web", "1", &TestImage::new("x", layers.clone()), Pack::Gzip);
    let (registries, reference) = (host.registries.clone(), server.reference("web:1"));
    let (to, mut from) = tokio::sync::mpsc::channel(1000);
    host.run(async move { registries.pull(&reference, None, &Credentials::Anonymous, Some(to)).await }).unwrap();
    let mut told = Vec::new();
    while let Some(progress) = from.blocking_recv() {
        told.push(progress);
    }
    assert!(matches!(told[0], Progress::Resolved(_)));
    for layer in layers {
        let blob = pack(&layer, Pack::Gzip);
        let total = blob.len() as u64;
        let steps: Vec<&LayerStep> = told
            .iter()
            .filter_map(|progress| match progress {
                Progress::Layer { id, step } if *id == Digest::of(&blob).hex()[..12] => Some(step),
                _ => None,
            })
            .collect();
        assert_eq!(steps.first(), Some(&&LayerStep::Waiting));
        assert!(steps.contains(&&LayerStep::Moving { current: total, total }), "{steps:?}");
        assert_eq!(steps.last(), Some(&&LayerStep::Done));
    }
}

/// A slow listener holds nothing up.
#[test]
fn nobody_has_to_listen() {
    let server = Server::start();
    let Some(host) = TestHost::new(&server) else { return };
    server.serve_image("web", "1", &TestImage::new("x", vec![big_layer("a", 3_000_000)]), Pack::Gzip);
    let (registries, reference) = (host.registries.clone(), server.reference("web:1"));
    let (to, from) = tokio::sync::mpsc::channel(1);
    host.run(async move { registries.pull(&reference, None, &Credentials::Anonymous, Some(to)).await }).unwrap();
    drop(from);
}

#[test]
fn mirrors_are_asked_first_and_replaced() {
    let (server, mirror, broken) = (Server::start(), Server::start(), Server::start());
    broken.rule(|_, _| Some(Answer::error(500, "INTERNAL")));
    let mut settings = settings(&[&server, &mirror, &broken]);
    settings.mirrors = [&broken, &mirror]
        .map(|mirror| format!("{}=http://{}", server.host(), mirror.host()).parse::<Mirror>().unwrap())
        .into();
    let Some(host) = TestHost::with(settings, Limits::default()) else { return };
    let (known, unknown) = (TestImage::new("x", vec![layer("a")]), TestImage::new("x", vec![layer("b")]));
    mirror.serve_image("web", "1", &known, Pack::Gzip);
    server.serve_image("web", "2", &unknown, Pack::Gzip);
    host.pull(&server.reference("web:1")).unwrap();
    assert_eq!(broken.requests(), ["GET /v2/web/manifests/1"], "what does not help is asked once");
    assert!(server.requests().iter().all(|request| !request.contains("manifests")), "{:?}", server.requests());
    host.pull(&server.reference("web:2")).unwrap();
    assert!(mirror.requests().contains(&"GET /v2/web/manifests/2".to_owned()));

    // A mirror that knows the name and breaks off in the middle of a layer.
    let big = big_layer("big", 400_000);
    let blob = pack(&big, Pack::Gzip);
    let image = TestImage::new("x", vec![big]);
    mirror.serve_image("web", "3", &image, Pack::Gzip);
    server.serve_image("web", "3", &image, Pack::Gzip);
    let path = format!("/v2/web/blobs/{}", Digest::of(&blob));
    let cut = blob.clone();
    mirror.rule(move |request, _| {
        (request.path == path).then(|| serve(request, "", cut.clone()).body(|bytes| Body::Cut(bytes, 150_000)))
    });
    host.pull(&server.reference("web:3")).unwrap();
    let rest: Vec<_> =
        server.log().into_iter().filter(|request| request.path.ends_with(&Digest::of(&blob).hex())).collect();
    assert_eq!(rest.len(), 1);
    assert!(rest[0].header("range").starts_with("bytes="), "what the mirror sent is not fetched again");
}

/// Whoever gives up leaves nothing, and nobody waits for it.
#[test]
fn a_pull_that_is_given_up() {
    let server = Server::start();
    let Some(host) = TestHost::new(&server) else { return };
    let image = TestImage::new("x", vec![layer("a"), big_layer("b", 500_000)]);
    server.serve_image("web", "1", &image, Pack::Gzip);
    let blob = pack(&image.layers[1], Pack::Gzip);
    let path = Arc::new(format!("/v2/web/blobs/{}", Digest::of(&blob)));
    let hung = Arc::clone(&path);
    server.rule(move |request, _| {
        (request.path == *hung).then(|| serve(request, "", blob.clone()).body(|bytes| Body::Hang(bytes, 100_000)))
    });
    let (registries, reference) = (host.registries.clone(), server.reference("web:1"));
    let pull =
        host.spawn(async move { registries.pull(&reference, None, &Credentials::Anonymous, None).await.map(drop) });
    server.wait_for(|request| request.path == *path);
    pull.abort();
    host.assert_empty();
    server.rule(|_, _| None);
    host.pull(&server.reference("web:1")).unwrap();
}
