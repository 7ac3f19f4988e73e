//! A daemon that is killed in the middle of a pull.

use std::process::{Command, Stdio};

use runtime::image::registry::{Credentials, Registries, RegistrySettings};
use runtime::image::{Digest, ImageStore, Limits, Reference};

use crate::archives::{Pack, TestImage, pack};
use crate::pulling::{big_layer, layer};
use crate::server::{Body, Server, TestHost, serve};

/// What the child is told: the name, and the store's directory.
const CHILD: &str = "SHOAL_TEST_KILLED_PULL";

/// Pulls until it is killed.
fn child(told: &str) {
    let (name, dir) = told.split_once(' ').unwrap();
    let reference = Reference::parse(name).unwrap();
    let store = ImageStore::open(dir, Limits::default()).unwrap();
    let settings = RegistrySettings { insecure: vec![reference.domain().to_owned()], ..RegistrySettings::default() };
    let registries = Registries::new(store, settings).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(registries.pull(&reference, None, &Credentials::Anonymous, None)).unwrap();
}

#[test]
fn a_pull_that_is_killed_leaves_nothing() {
    if let Ok(told) = std::env::var(CHILD) {
        return child(&told);
    }
    let server = Server::start();
    let Some(host) = TestHost::new(&server) else { return };
    // The first layer is in its place, the second in the middle, when the end comes.
    let image = TestImage::new("x", vec![layer("a"), big_layer("b", 2_000_000)]);
    server.serve_image("web", "1", &image, Pack::Gzip);
    let blob = pack(&image.layers[1], Pack::Gzip);
    let path = format!("/v2/web/blobs/{}", Digest::of(&blob));
    server.rule(move |request, _| {
        (request.path == path).then(|| serve(request, "", blob.clone()).body(|bytes| Body::Hang(bytes, 1_000_000)))
    });
    let reference = server.reference("web:1");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed::a_pull_that_is_killed_leaves_nothing", "--nocapture"])
        .env(CHILD, format!("{reference} {}", host.store.root().display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let under_way = || {
        let pulls = std::fs::read_dir(host.store.root().join("tmp")).into_iter().flatten().flatten();
        let mut files = pulls.flat_map(|pull| std::fs::read_dir(pull.path()).into_iter().flatten().flatten());
        let half = files.any(|file| file.metadata().is_ok_and(|file| file.is_file() && file.len() > 500_000));
        half && host.entries("layers").len() == 1
    };
    while !under_way() {
        assert!(std::time::Instant::now() < deadline, "the child does not come so far");
        assert!(child.try_wait().unwrap().is_none(), "the child has ended by itself");
        std::thread::park_timeout(std::time::Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();

    // The next daemon opens the store, and sees nothing of it.
    let store = ImageStore::open(host.store.root(), Limits::default()).unwrap();
    assert!(store.list().is_empty());
    host.assert_empty();
    server.rule(|_, _| None);
    host.pull(&reference).unwrap();
    assert_eq!(host.store.store.resolve(&reference.to_string()).unwrap().layers.len(), 2);
}
