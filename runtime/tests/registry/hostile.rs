//! Registries that hang, cut and lie. Each is a clear error in bounded time, and nothing of it stays.

use std::time::{Duration, Instant};

use runtime::image::registry::{RegistryError, RegistryErrorKind};
use runtime::image::{Digest, ImageError, Limits};
use serde_json::{Value, json};

use crate::archives::{Pack, Tar, TestImage, pack};
use crate::pulling::{big_layer, layer, noise};
use crate::server::{Answer, Body, INDEX, MANIFEST, Request, Server, TestHost, descriptor, serve, settings};

/// A registry with one good image, `web:1`, of two layers; the second is large.
struct Case {
    server: Server,
    host: TestHost,
    image: TestImage,
    blob: Vec<u8>,
}

impl Case {
    fn new() -> Option<Case> {
        Case::with(Limits::default(), Pack::Gzip)
    }

    fn with(limits: Limits, layer_pack: Pack) -> Option<Case> {
        let server = Server::start();
        let host = TestHost::with(settings(&[&server]), limits)?;
        let image = TestImage::new("x", vec![layer("small"), big_layer("large", 3_000_000)]);
        server.serve_image("web", "1", &image, layer_pack);
        let blob = pack(&image.layers[1], layer_pack);
        Some(Case { server, host, image, blob })
    }

    /// Answers something else for the large layer.
    fn large(&self, answer: impl Fn(&Request, usize, Vec<u8>) -> Option<Answer> + Send + Sync + 'static) {
        let (path, blob) = (format!("/v2/web/blobs/{}", Digest::of(&self.blob)), self.blob.clone());
        self.server
            .rule(move |request, nth| if request.path == path { answer(request, nth, blob.clone()) } else { None });
    }

    fn manifest(&self) -> Value {
        serde_json::from_slice(&self.server.content()["web/manifests/1"].1).unwrap()
    }

    #[track_caller]
    fn fails(&self) -> RegistryError {
        let began = Instant::now();
        let error = self.host.pull(&self.server.reference("web:1")).unwrap_err();
        assert!(began.elapsed() < Duration::from_secs(30), "it took {:?}", began.elapsed());
        self.host.assert_empty();
        error
    }

    #[track_caller]
    fn succeeds(&self) {
        let pulled = self.host.pull(&self.server.reference("web:1")).unwrap();
        assert_eq!(pulled.id.to_string(), self.image.id());
        let found = self.host.store.store.resolve(&self.image.id()).unwrap();
        assert_eq!(std::fs::read(found.layers[1].join("large")).unwrap(), noise(3_000_000, 5));
    }
}

#[track_caller]
fn mismatch(error: &RegistryError) {
    assert!(matches!(error, RegistryError::Image(ImageError::DigestMismatch { .. })), "{error:?}");
}

#[test]
fn another_layer_under_the_same_digest() {
    let Some(case) = Case::new() else { return };
    // As long as the right one, and a good archive by itself.
    let other = Tar::new().file("evil", &noise(3_000_000, 77)).bytes();
    let mut other = pack(&other, Pack::Gzip);
    other.resize(case.blob.len(), 0);
    case.large(move |request, _, _| Some(serve(request, "", other.clone())));
    mismatch(&case.fails());
}

#[test]
fn a_layer_with_one_wrong_bit() {
    for layer_pack in [Pack::Gzip, Pack::Plain, Pack::Zstd] {
        let Some(case) = Case::with(Limits::default(), layer_pack) else { return };
        case.large(|request, _, mut blob| {
            let middle = blob.len() / 2;
            blob[middle] ^= 4;
            Some(serve(request, "", blob))
        });
        mismatch(&case.fails());
    }
}

/// The compressed bytes are the right ones; what they unpack to is not what the configuration says.
#[test]
fn a_layer_that_unpacks_to_something_else() {
    let Some(case) = Case::new() else { return };
    let mut config: Value = serde_json::from_slice(&case.image.config()).unwrap();
    config["rootfs"]["diff_ids"][1] = Digest::of(b"something else").to_string().into();
    let config = config.to_string().into_bytes();
    let mut manifest = case.manifest();
    manifest["config"] = descriptor("application/vnd.oci.image.config.v1+json", &config);
    case.server.put(&format!("web/blobs/{}", Digest::of(&config)), "", config);
    case.server.serve_manifest("web", "1", &manifest);
    let error = case.fails();
    mismatch(&error);
    assert!(error.to_string().contains("unpacked"), "{error}");
    // Nor does it help to name a layer that is here already under a configuration that lies.
    case.server.serve_image("good", "1", &case.image, Pack::Gzip);
    case.host.pull(&case.server.reference("good:1")).unwrap();
    let error = case.host.pull(&case.server.reference("web:1")).unwrap_err();
    mismatch(&error);
}

#[test]
fn layers_of_another_length() {
    let Some(case) = Case::new() else { return };
    case.large(|request, _, mut blob| {
        blob.push(0);
        Some(serve(request, "", blob))
    });
    let error = case.fails();
    assert!(matches!(error, RegistryError::Image(ImageError::SizeMismatch { .. })), "{error:?}");
    // A length that is not stated, and no end.
    case.large(|_, _, mut blob| {
        blob.extend(vec![0; 1_000_000]);
        let chunked = [format!("{:x}\r\n", blob.len()).as_bytes(), &blob, b"\r\n0\r\n\r\n"].concat();
        Some(Answer::new(200, chunked).header("transfer-encoding", "chunked"))
    });
    let error = case.fails();
    assert!(matches!(error, RegistryError::Image(ImageError::SizeMismatch { .. })), "{error:?}");
    case.large(|request, _, mut blob| {
        blob.truncate(1000);
        Some(serve(request, "", blob))
    });
    let error = case.fails();
    assert!(matches!(error, RegistryError::Image(ImageError::SizeMismatch { .. })), "{error:?}");
}

/// With what is there already, they would be more than a number holds.
#[test]
fn lengths_beyond_all_bounds() {
    let Some(case) = Case::new() else { return };
    case.large(|request, nth, blob| {
        if nth == 1 {
            return Some(serve(request, "", blob).body(|bytes| Body::Cut(bytes, 1_000_000)));
        }
        let begins = request.header("range").strip_prefix("bytes=").unwrap_or_default().to_owned();
        let answer = Answer::new(206, blob).header("content-range", format!("bytes {begins}9/10"));
        Some(answer.header("content-length", (u64::MAX - 2).to_string()))
    });
    let error = case.fails();
    assert!(matches!(error, RegistryError::Image(ImageError::SizeMismatch { .. })), "{error:?}");
}

#[test]
fn a_layer_that_is_cut_goes_on_where_it_was() {
    let Some(case) = Case::new() else { return };
    case.large(|request, nth, blob| {
        (nth < 6).then(|| {
            serve(request, "", blob).body(|bytes| {
                let at = bytes.len().min(700_000);
                Body::Cut(bytes, at)
            })
        })
    });
    case.succeeds();
    let sent = case.server.take_sent() as usize;
    assert!(sent < case.blob.len() + 100_000, "{sent} bytes were sent for {}", case.blob.len());
}

#[test]
fn a_registry_without_ranges_begins_anew() {
    let Some(case) = Case::new() else { return };
    case.large(|_, nth, blob| {
        let answer = Answer::new(200, blob);
        Some(if nth == 1 { answer.body(|bytes| Body::Cut(bytes, 1_000_000)) } else { answer })
    });
    case.succeeds();
}

#[test]
fn a_registry_that_sends_another_range() {
    let Some(case) = Case::new() else { return };
    case.large(|request, nth, blob| {
        if nth == 1 {
            return Some(serve(request, "", blob).body(|bytes| Body::Cut(bytes, 1_000_000)));
        }
        let total = blob.len();
        Some(Answer::new(206, blob).header("content-range", format!("bytes 0-{}/{total}", total - 1)))
    });
    let error = case.fails();
    assert!(matches!(error, RegistryError::Protocol { .. }), "{error:?}");
}

#[test]
fn a_registry_that_cuts_for_ever() {
    let Some(case) = Case::new() else { return };
    case.large(|request, _, blob| Some(serve(request, "", blob).body(|bytes| Body::Cut(bytes, 10))));
    let error = case.fails();
    assert!(matches!(error, RegistryError::Broken { .. }), "{error:?}");
}

#[test]
fn registries_that_keep_silent() {
    let Some(case) = Case::new() else { return };
    case.large(|request, _, blob| Some(serve(request, "", blob).body(|bytes| Body::Hang(bytes, 100_000))));
    let error = case.fails();
    assert!(matches!(error, RegistryError::Timeout { what: "go on with its answer", .. }), "{error:?}");
    // Neither silent nor of any use.
    case.large(|request, _, blob| Some(serve(request, "", blob).body(|bytes| Body::Trickle(bytes, 100))));
    let error = case.fails();
    assert!(matches!(error, RegistryError::Timeout { what: "go on with its answer at 1 KiB/s", .. }), "{error:?}");
    case.server.rule(|_, _| Some(Answer::new(200, "").body(|_| Body::Silence)));
    let error = case.fails();
    assert!(matches!(error, RegistryError::Timeout { what: "answer", .. }), "{error:?}");
}

#[test]
fn nobody_is_there() {
    let Some(case) = Case::new() else { return };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    let reference = runtime::image::Reference::parse(&format!("{addr}/web:1")).unwrap();
    let error = case.host.pull(&reference).unwrap_err();
    assert!(matches!(error, RegistryError::Connect { .. }), "{error:?}");
}

#[test]
fn failures_that_pass() {
    let Some(case) = Case::new() else { return };
    case.server.rule(|_, nth| match nth {
        1 => Some(Answer::error(503, "UNAVAILABLE")),
        2 => Some(Answer::error(429, "TOOMANYREQUESTS").header("retry-after", "0")),
        _ => None,
    });
    case.succeeds();
}

#[test]
fn failures_that_do_not_pass() {
    let Some(case) = Case::new() else { return };
    for (status, kind, tries) in [
        (500, RegistryErrorKind::Internal, 5),
        (429, RegistryErrorKind::Internal, 5),
        (400, RegistryErrorKind::Internal, 1),
        (401, RegistryErrorKind::Unauthorized, 1),
        (403, RegistryErrorKind::Denied, 1),
        (404, RegistryErrorKind::NotFound, 1),
    ] {
        let before = case.server.requests().len();
        case.server.rule(move |_, _| Some(Answer::error(status, "SORRY")));
        let error = case.fails();
        assert_eq!((error.kind(), case.server.requests().len() - before), (kind, tries), "{status}: {error:?}");
        assert!(error.to_string().contains("sorry"), "{error}");
    }
    // Patience has an end.
    case.server.rule(|_, _| Some(Answer::error(429, "TOOMANYREQUESTS").header("retry-after", "100000")));
    let before = case.server.requests().len();
    case.fails();
    assert_eq!(case.server.requests().len() - before, 1);
}

#[test]
fn a_layer_that_is_missing() {
    let Some(case) = Case::new() else { return };
    case.large(|_, _, _| Some(Answer::error(404, "BLOB_UNKNOWN")));
    let error = case.fails();
    assert!(matches!(&error, RegistryError::NotFound { what, .. } if what.starts_with("layer sha256:")), "{error:?}");
}

#[test]
fn redirects_end() {
    let Some(case) = Case::new() else { return };
    let host = case.server.host();
    case.server.rule(move |request, _| {
        Some(Answer::new(307, "").header("location", format!("http://{host}{}x", request.path)))
    });
    let error = case.fails();
    assert!(matches!(error, RegistryError::Redirect { .. }), "{error:?}");
    assert_eq!(case.server.requests().len(), 6);
}

#[test]
fn redirects_to_where_one_does_not_go() {
    let Some(case) = Case::new() else { return };
    let elsewhere = Server::start();
    for location in
        [format!("http://{}/x", elsewhere.host()), "file:///etc/shadow".into(), "gopher://x/".into(), String::new()]
    {
        case.server.rule(move |_, _| Some(Answer::new(302, "").header("location", location.clone())));
        let error = case.fails();
        assert!(matches!(error, RegistryError::Redirect { .. }), "{error:?}");
    }
    assert!(elsewhere.requests().is_empty(), "plain HTTP is for registries that are named");
}

#[test]
fn documents_without_end() {
    let small = Limits { max_metadata_bytes: 100_000, ..Limits::default() };
    let Some(case) = Case::with(small, Pack::Gzip) else { return };
    let limit = |error: RegistryError| {
        assert!(matches!(error, RegistryError::Image(ImageError::LimitExceeded { .. })), "{error:?}");
    };
    case.server.rule(|request, _| {
        let manifest = request.path.contains("/manifests/");
        manifest.then(|| Answer::new(200, vec![b' '; 2_000_000]).header("content-type", MANIFEST))
    });
    limit(case.fails());
    assert!(case.server.take_sent() < 2_100_000);
    // A configuration that says so itself, and one that does not.
    case.server.rule(|_, _| None);
    let mut manifest = case.manifest();
    manifest["config"]["size"] = 1_000_000.into();
    case.server.serve_manifest("web", "1", &manifest);
    limit(case.fails());
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    case.server.rule(move |request, _| {
        let manifest = request.path.contains("/manifests/");
        manifest.then(|| Answer::new(200, deep.clone()).header("content-type", MANIFEST))
    });
    limit(case.fails());
}

#[test]
fn too_many_layers_or_too_large() {
    let Some(case) = Case::new() else { return };
    let mut manifest = case.manifest();
    manifest["layers"] = vec![manifest["layers"][0].clone(); 200].into();
    case.server.serve_manifest("web", "1", &manifest);
    assert!(case.fails().to_string().contains("127 layers"));
    let mut manifest = case.manifest();
    manifest["layers"] = json!([manifest["layers"][0]]);
    manifest["layers"][0]["size"] = (1_u64 << 60).into();
    case.server.serve_manifest("web", "1", &manifest);
    assert!(case.fails().to_string().contains("exceeds the limit"));
}

#[test]
fn what_is_no_image() {
    let Some(case) = Case::new() else { return };
    let good = case.manifest();
    let with = |change: &dyn Fn(&mut Value)| {
        let mut manifest = good.clone();
        change(&mut manifest);
        manifest
    };
    for (manifest, word) in [
        (with(&|m| m["mediaType"] = "application/vnd.docker.distribution.manifest.v1+prettyjws".into()), "first form"),
        (with(&|m| m["mediaType"] = "application/vnd.cncf.x".into()), "no image's manifest"),
        (with(&|m| m["manifests"] = json!([])), "at the same time"),
        (with(&|m| m["config"]["mediaType"] = "application/vnd.cncf.helm.config.v1+json".into()), "not an image"),
        (with(&|m| m["config"]["digest"] = "sha512:00".into()), "not a sha256 digest"),
        (with(&|m| m["config"]["digest"] = "../../etc/passwd".into()), "not a sha256 digest"),
        (
            with(&|m| m["layers"][0]["mediaType"] = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip".into()),
            "foreign",
        ),
        (with(&|m| m["layers"][0]["mediaType"] = "text/plain".into()), "no layer"),
        (with(&|m| m["layers"] = json!([])), "it states 2 layers"),
        (with(&|m| m["schemaVersion"] = 1.into()), "only version 2"),
        (json!({"schemaVersion": 2}), "not valid JSON"),
        (json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}), "no matching manifest"),
        (
            json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
                {"mediaType": MANIFEST, "digest": "sha256:no", "size": 1, "platform": {"os": "linux", "architecture": "amd64"}},
                {"mediaType": MANIFEST, "digest": "sha256:no", "size": 1, "platform": {"os": "linux", "architecture": "arm64"}},
            ]}),
            "not a sha256 digest",
        ),
    ] {
        case.server.serve_manifest("web", "1", &manifest);
        let error = case.fails();
        let said = chain(&error);
        assert!(said.contains(word), "{manifest}: {said}");
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(&format!(": {next}"));
        cause = next.source();
    }
    text
}

#[test]
fn a_manifest_that_is_not_what_its_digest_says() {
    let Some(case) = Case::new() else { return };
    let digest = Digest::of(b"another manifest");
    let manifest = case.server.content()["web/manifests/1"].1.clone();
    case.server.put(&format!("web/manifests/{digest}"), MANIFEST, manifest);
    let error = case.host.pull(&case.server.reference(&format!("web@{digest}"))).unwrap_err();
    mismatch(&error);
    // A tag whose header promises another digest than the body has.
    case.server.rule(move |request, _| {
        let manifest = request.path.contains("/manifests/");
        manifest.then(|| {
            Answer::new(200, "{}").header("docker-content-digest", digest.to_string()).header("content-type", MANIFEST)
        })
    });
    mismatch(&case.fails());
}

#[test]
fn a_configuration_that_is_not_what_its_digest_says() {
    let Some(case) = Case::new() else { return };
    let config = case.image.config();
    let path = format!("/v2/web/blobs/{}", Digest::of(&config));
    let changed = String::from_utf8(config).unwrap().replace("/bin/app", "/bin/bad").into_bytes();
    case.server.rule(move |request, _| (request.path == path).then(|| Answer::new(200, changed.clone())));
    mismatch(&case.fails());
}

/// Few bytes that unpack to many.
#[test]
fn bombs() {
    let limits = Limits { max_unpacked_bytes: 10_000_000, max_entries: 1000, ..Limits::default() };
    let server = Server::start();
    let Some(host) = TestHost::with(settings(&[&server]), limits) else { return };
    let large = Tar::new().file("zeros", &vec![0; 20_000_000]).bytes();
    let many = (0..2000).fold(Tar::new(), |tar, n| tar.file(&format!("f{n}"), b"")).bytes();
    // Two layers that are good each by itself and too much together.
    let half = |name: &str| Tar::new().file(name, &vec![0; 6_000_000]).bytes();
    for layers in [vec![large], vec![many], vec![half("a"), half("b")]] {
        server.serve_image("web", "1", &TestImage::new("x", layers), Pack::Gzip);
        let error = host.pull(&server.reference("web:1")).unwrap_err();
        assert!(matches!(error, RegistryError::Image(ImageError::LimitExceeded { .. })), "{error:?}");
        host.assert_empty();
    }
}

#[test]
fn layers_that_climb_out() {
    let server = Server::start();
    let Some(host) = TestHost::new(&server) else { return };
    let climbing = Tar::new().file("../evil", b"x").bytes();
    let through = Tar::new().symlink("up", "../../..").file("up/evil", b"x").bytes();
    for layers in [vec![layer("a"), climbing], vec![through]] {
        server.serve_image("web", "1", &TestImage::new("x", layers), Pack::Gzip);
        let error = host.pull(&server.reference("web:1")).unwrap_err();
        assert!(
            matches!(error, RegistryError::Image(ImageError::Traversal { .. } | ImageError::Escape { .. })),
            "{error:?}"
        );
        host.assert_empty();
    }
}

/// Whatever one byte of the manifest becomes, there is an answer and nothing stays.
#[test]
fn mangled_manifests() {
    let Some(case) = Case::new() else { return };
    let manifest = case.server.content()["web/manifests/1"].1.clone();
    for at in (0..manifest.len()).step_by(23) {
        let mut mangled = manifest.clone();
        mangled[at] ^= 0x15;
        case.server.put("web/manifests/1", MANIFEST, mangled);
        case.fails();
    }
}
