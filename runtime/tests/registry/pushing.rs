//! What a push leaves at a registry.

use runtime::image::registry::{Credentials, LayerStep, Progress, Pushed, RegistryError, RegistryErrorKind};
use runtime::image::{Digest, Reference};

use crate::archives::{PACKS, Pack, TestImage, docker_save, pack};
use crate::pulling::{big_layer, layer};
use crate::server::{Answer, Body, Server, TestHost};

fn push(host: &TestHost, reference: &Reference) -> Result<Pushed, RegistryError> {
    let (registries, reference) = (host.registries.clone(), reference.clone());
    host.run(async move { registries.push(&reference, &Credentials::Anonymous, None).await })
}

fn tag(host: &TestHost, source: &str, target: &Reference) {
    host.store.store.tag(source, target).unwrap();
}

#[test]
fn what_was_pulled_is_pushed_with_the_same_digests() {
    for layer_pack in PACKS {
        let (from, to) = (Server::start(), Server::start());
        let Some(host) = TestHost::with(crate::server::settings(&[&from, &to]), Default::default()) else { return };
        let image = TestImage::new("x", vec![layer("a"), big_layer("b", 600_000), layer("a")]);
        from.serve_image("a/web", "1", &image, layer_pack);
        let pulled = host.pull(&from.reference("a/web:1")).unwrap();
        let target = to.reference("b/site:2");
        tag(&host, &from.reference("a/web:1").to_string(), &target);
        let pushed = push(&host, &target).unwrap();
        assert_eq!(pushed.digest, pulled.digest);
        let (from, to_content) = (from.content(), to.content());
        for (path, (_, bytes)) in from.iter().filter(|(path, _)| path.contains("/blobs/")) {
            let path = path.replace("a/web", "b/site");
            assert_eq!(to_content.get(&path).map(|(_, found)| found), Some(bytes), "{path}");
        }
        assert_eq!(from["a/web/manifests/1"], to_content["b/site/manifests/2"], "media type and bytes");

        // Again: nothing is sent but the manifest.
        let before = to.requests().len();
        push(&host, &target).unwrap();
        let sent: Vec<String> =
            to.requests().split_off(before).into_iter().filter(|r| !r.starts_with("HEAD")).collect();
        assert_eq!(sent, ["PUT /v2/b/site/manifests/2"]);
    }
}

#[test]
fn what_was_loaded_can_be_pushed_and_pulled() {
    let server = Server::start();
    let Some(host) = TestHost::new(&server) else { return };
    let image = TestImage::new("local:1", vec![layer("a"), layer("b")]);
    host.store.load(&docker_save(std::slice::from_ref(&image), Pack::Gzip));
    let target = server.reference("web:1");
    tag(&host, "local:1", &target);
    push(&host, &target).unwrap();
    let other = TestHost::new(&server).unwrap();
    assert_eq!(other.pull(&target).unwrap().id.to_string(), image.id());
}

#[test]
fn layers_of_a_sister_repository_are_mounted() {
    let server = Server::start();
    let Some(host) = TestHost::new(&server) else { return };
    let image = TestImage::new("x", vec![layer("a")]);
    server.serve_image("one", "1", &image, Pack::Gzip);
    host.pull(&server.reference("one:1")).unwrap();
    tag(&host, &server.reference("one:1").to_string(), &server.reference("two:1"));
    let (registries, reference) = (host.registries.clone(), server.reference("two:1"));
    let (to, mut from) = tokio::sync::mpsc::channel(100);
    host.run(async move { registries.push(&reference, &Credentials::Anonymous, Some(to)).await }).unwrap();
    let mut mounted = false;
    while let Some(progress) = from.blocking_recv() {
        mounted |= matches!(progress, Progress::Layer { step: LayerStep::Mounted(from), .. } if from == "one");
    }
    assert!(mounted);
    let uploads = server.requests().into_iter().filter(|request| request.contains("/uploads/session")).count();
    assert_eq!(uploads, 0);
    // A registry that does not mount begins an upload instead.
    tag(&host, &server.reference("one:1").to_string(), &server.reference("three:1"));
    server.rule(|request, _| {
        (request.method == "POST" && request.query.contains("mount"))
            .then(|| Answer::new(202, "").header("location", "/v2/three/blobs/uploads/other"))
    });
    push(&host, &server.reference("three:1")).unwrap();
    let blob = Digest::of(&pack(&layer("a"), Pack::Gzip));
    assert!(server.content().contains_key(&format!("three/blobs/{blob}")));
    assert!(server.requests().contains(&"DELETE /v2/three/blobs/uploads/other".to_owned()));
    // Another one breaks off, or answers nonsense.
    for (nth, answer) in [Answer::new(201, "x").body(|_| Body::Silence), Answer::new(307, "")].into_iter().enumerate() {
        let target = server.reference(&format!("more{nth}:1"));
        tag(&host, &server.reference("one:1").to_string(), &target);
        server.rule(move |request, _| request.query.contains("mount").then(|| answer.clone()));
        push(&host, &target).unwrap();
        assert!(server.content().contains_key(&format!("more{nth}/blobs/{blob}")));
    }
}

#[test]
fn uploads_that_fail_are_begun_anew() {
    let server = Server::start();
    let Some(host) = TestHost::new(&server) else { return };
    host.store.load(&docker_save(&[TestImage::new("local:1", vec![big_layer("a", 900_000)])], Pack::Gzip));
    let target = server.reference("web:1");
    tag(&host, "local:1", &target);
    server.rule(|request, nth| {
        (request.path.ends_with("/uploads/session") && nth < 3).then(|| Answer::error(502, "BAD_GATEWAY"))
    });
    push(&host, &target).unwrap();
}

/// Where to upload to is the registry's to say, but not that it be in the clear.
#[test]
fn nothing_is_uploaded_over_plain_http_that_nobody_named() {
    let (server, elsewhere) = (Server::start(), Server::start());
    let Some(host) = TestHost::new(&server) else { return };
    host.store.load(&docker_save(&[TestImage::new("local:1", vec![layer("a")])], Pack::Gzip));
    let target = server.reference("web:1");
    tag(&host, "local:1", &target);
    let location = format!("http://{}/v2/web/blobs/uploads/session", elsewhere.host());
    server.rule(move |request, _| {
        (request.method == "POST").then(|| Answer::new(202, "").header("location", location.clone()))
    });
    let error = push(&host, &target).unwrap_err();
    assert!(matches!(error, RegistryError::Redirect { .. }), "{error:?}");
    assert!(elsewhere.requests().is_empty());
}

#[test]
fn pushes_that_are_refused() {
    let server = Server::start();
    let Some(host) = TestHost::new(&server) else { return };
    host.store.load(&docker_save(&[TestImage::new("local:1", vec![layer("a")])], Pack::Gzip));
    let target = server.reference("web:1");
    assert_eq!(push(&host, &target).unwrap_err().kind(), RegistryErrorKind::NotFound);
    tag(&host, "local:1", &target);
    server.rule(|request, _| (request.method == "POST").then(|| Answer::error(403, "DENIED")));
    assert_eq!(push(&host, &target).unwrap_err().kind(), RegistryErrorKind::Denied);
    server.rule(|request, _| (request.method == "PUT").then(|| Answer::error(400, "BLOB_UPLOAD_INVALID")));
    assert!(push(&host, &target).unwrap_err().to_string().contains("blob_upload_invalid"));
    // A registry that says to have taken something else.
    server.rule(|request, _| {
        (request.method == "PUT" && request.path.contains("/manifests/"))
            .then(|| Answer::new(201, "").header("docker-content-digest", Digest::of(b"x").to_string()))
    });
    assert!(push(&host, &target).unwrap_err().to_string().contains("does not have the digest"));
    // Where to upload to is not said, or is nowhere.
    let target = server.reference("other:1");
    tag(&host, "local:1", &target);
    for location in ["", "gopher://x/"] {
        server.rule(move |request, _| {
            (request.method == "POST").then(|| Answer::new(202, "").header("location", location))
        });
        assert!(matches!(push(&host, &target).unwrap_err(), RegistryError::Protocol { .. }), "{location}");
    }
    let digest = Reference::parse(&format!("{}/web@{}", server.host(), Digest::of(b"x"))).unwrap();
    assert!(matches!(push(&host, &digest).unwrap_err(), RegistryError::BadName { .. }));
}
