//! Target: what registries answer, as far as it can be read without a network: documents, challenges, tokens, places
//! that they send one to. `tests/registry/fuzz.rs` pulls from one that answers so.

use hyper::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use serde_json::{Value, json};

use super::super::digest::Digest;
use super::super::error::ImageErrorKind;
use super::super::limits::Limits;
use super::super::oci;
use super::super::platform::ImagePlatform;
use super::super::reference::Reference;
use super::auth::{Credentials, challenges, token};
use super::blobs::range_start;
use super::document::{self, Document};
use super::error::RegistryError;
use super::url::Url;
use crate::fuzz::{Source, fuzz, json as documents};

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": Digest::of(bytes).to_string(), "size": bytes.len(), "annotations": { "a": "b" },
        "platform": { "architecture": "amd64", "os": "linux", "variant": "v2", "os.version": "1", "os.features": [] } })
}

fn samples() -> Vec<Value> {
    let layer = descriptor("application/vnd.oci.image.layer.v1.tar+gzip", b"layer");
    let config = descriptor(oci::CONFIG, b"config");
    let (manifest, index) = (descriptor(oci::MANIFEST, b"manifest"), descriptor(oci::INDEX, b"index"));
    vec![
        json!({ "schemaVersion": 2, "mediaType": oci::MANIFEST, "config": config, "layers": [layer, layer],
            "subject": manifest, "artifactType": "x/y", "annotations": { "k": "v" } }),
        json!({ "schemaVersion": 2, "config": config, "layers": [layer] }),
        json!({ "schemaVersion": 2, "mediaType": oci::INDEX, "manifests": [manifest, index, manifest] }),
        json!({ "schemaVersion": 2, "mediaType": oci::DOCKER_LIST, "manifests": [manifest] }),
        json!({ "architecture": "amd64", "os": "linux", "created": "2024-05-06T07:08:09.5Z", "author": null,
            "config": { "Entrypoint": ["/x"], "Cmd": null, "Env": ["A=b"], "Labels": { "a": "b" }, "Volumes": { "/v": {} },
                "ExposedPorts": { "80/tcp": {} }, "User": "u:g", "WorkingDir": "/w", "StopSignal": "9",
                "Healthcheck": { "Test": ["CMD", "x"], "Interval": 1 } },
            "rootfs": { "type": "layers", "diff_ids": [Digest::of(b"1").to_string(), Digest::of(b"2").to_string()] },
            "history": [{ "created_by": "x", "empty_layer": true }, {}] }),
        json!({ "token": "t", "access_token": "a", "expires_in": 300, "issued_at": "now" }),
        json!({ "username": "u", "password": "p", "auth": "dTpw", "identitytoken": "", "registrytoken": "" }),
    ]
}

fn document(source: &mut Source, samples: &[Value]) -> Vec<u8> {
    let mut document = samples[source.below(samples.len())].clone();
    if !source.one_in(10) {
        documents::change(source, &mut document);
    }
    let mut bytes = document.to_string().into_bytes();
    if source.one_in(5) {
        source.mangle(&mut bytes);
    }
    bytes
}

#[track_caller]
fn bad_input<T>(outcome: Result<T, RegistryError>) -> Option<T> {
    match outcome {
        Ok(value) => Some(value),
        Err(RegistryError::Image(error)) => {
            assert_eq!(error.kind(), ImageErrorKind::InvalidInput, "{error:?}");
            None
        }
        Err(RegistryError::MediaType { .. } | RegistryError::NoPlatform { .. } | RegistryError::Protocol { .. }) => {
            None
        }
        Err(error) => panic!("{error:?}"),
    }
}

#[test]
fn registry_documents() {
    let (samples, limits, host) = (samples(), Limits::default(), ImagePlatform::host());
    let mut kinds = [0; 3];
    fuzz("registry_documents", 4000, |source| {
        let bytes = document(source, &samples);
        let types = ["", oci::MANIFEST, oci::INDEX, oci::DOCKER_MANIFEST, oci::DOCKER_LIST, "text/plain; x", "a/b"];
        let stated = source.pick(&types);
        match bad_input(Document::parse(&bytes, stated, "it", &limits)) {
            Some(Document::Manifest { manifest, .. }) => {
                kinds[0] += 1;
                assert!(manifest.layers.len() <= limits.max_layers);
                for layer in &manifest.layers {
                    bad_input(document::check_layer(layer, &limits));
                }
                bad_input(document::parse_config(&manifest, &samples[4].to_string().into_bytes(), &limits));
                let _ = document::platform_of_config(&bytes, &limits);
            }
            Some(Document::Index(index)) => {
                kinds[1] += 1;
                bad_input(document::choose(&index, &host));
                let _ = document::platforms(&index);
            }
            None => kinds[2] += 1,
        }
        let _ = token(&bytes);
        if let Ok(credentials) = Credentials::from_json(&bytes) {
            assert_eq!(Credentials::from_header(&credentials.to_header()), Ok(credentials));
        }
        if let Ok(stored) = oci::parse::<super::super::config::StoredConfig>(&bytes, "it", &limits) {
            let (config, _) = (stored.to_config(), stored.diff_ids("it"));
            let _ = config.created_unix();
            // What the store writes it reads again.
            let written = serde_json::to_vec(&stored).unwrap();
            let again: super::super::config::StoredConfig = oci::parse(&written, "it", &limits).unwrap();
            assert_eq!(again.to_config(), config);
        }
    });
    assert!(kinds.iter().sum::<i32>() < 1000 || kinds.iter().all(|count| *count > 50), "{kinds:?}");
}

fn text(source: &mut Source, pieces: &[&str]) -> String {
    let mut bytes: Vec<u8> = (0..source.below(9)).flat_map(|_| source.pick(pieces).bytes()).collect();
    if source.one_in(4) {
        source.mangle(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn registry_headers() {
    const CHALLENGE: [&str; 22] = [
        "Bearer ",
        "Basic ",
        "bearer\t",
        "Negotiate",
        "realm=",
        "service=",
        "scope=",
        "\"https://auth.example/token\"",
        "\"",
        "\\",
        "\\\"",
        ",",
        " ",
        "=",
        "https://r/",
        "repository:a/b:pull",
        "\"a,b\"",
        "error=",
        "x",
        "é",
        "\t",
        "==",
    ];
    const PLACE: [&str; 20] = [
        "http://",
        "https://",
        "//",
        "/",
        "r.example",
        ":5000",
        ":99999",
        ":0",
        "[::1]",
        "@",
        "u:p@",
        "?",
        "#",
        "..",
        "a",
        "%",
        "%2e%2e",
        "\\",
        "data:",
        "é",
    ];
    const RANGE: [&str; 10] =
        ["bytes ", "bytes", "5", "-", "9", "/", "*", "18446744073709551615", " ", "99999999999999999999"];
    let base = Url::parse("https://r.example:5000/v2/a/blobs/uploads/?x=1").unwrap();
    fuzz("registry_headers", 8000, |source| {
        let challenge = text(source, &CHALLENGE);
        let mut headers = HeaderMap::new();
        if let Ok(value) = HeaderValue::from_bytes(challenge.as_bytes()) {
            headers.insert(WWW_AUTHENTICATE, value);
            assert!(challenges(&headers).len() <= challenge.len());
        }
        let place = text(source, &PLACE);
        if let Some(url) = base.join(&place) {
            // It can be asked for, and it is where it seems to be.
            let whole = format!("{}{}", url.origin, url.path);
            assert_eq!(Url::parse(&whole), Some(url.clone()), "{place:?}");
            assert!(url.path.starts_with('/') && !url.path.contains(['\r', '\n', ' ']), "{place:?}");
            assert!(!url.origin.authority.contains('@') && url.origin.port > 0, "{place:?}");
            let _ = url.with_query("k", &place);
        }
        let _ = range_start(&text(source, &RANGE));
        let _ = Credentials::from_header(&text(source, &["eyJ1c2VybmFtZSI6InUifQ==", "e30", "=", "_", "/", "-"]));
    });
}

/// What is read as a name is the same name when it is written and read again, in either form.
#[test]
fn references() {
    const PIECES: [&str; 34] = [
        "a",
        "web",
        "library/",
        "docker.io/",
        "index.docker.io/",
        "localhost",
        "localhost/",
        "quay.io",
        "a.b",
        "/",
        ":",
        "@",
        ":5000",
        ":latest",
        "sha256:",
        "[::1]",
        "-",
        "_",
        "__",
        "___",
        ".",
        "..",
        "A",
        "é",
        " ",
        "\n",
        "0",
        "99999",
        "@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "Host.X/",
        "a/b",
        "--",
        ".wh.",
        "%2e",
    ];
    let mut good = 0;
    fuzz("references", 20_000, |source| {
        let text = text(source, &PIECES);
        let Ok(reference) = Reference::parse(&text) else { return };
        good += 1;
        for form in [reference.to_string(), reference.canonical()] {
            assert_eq!(Reference::parse(&form).as_ref(), Ok(&reference), "{form:?} of {text:?}");
        }
        assert!(reference.canonical().starts_with(&format!("{}/{}", reference.domain(), reference.path())));
        assert!(reference.tag().is_some() || reference.digest().is_some());
        // It becomes part of paths and requests.
        let bad = |c: char| c.is_control() || c.is_whitespace() || !c.is_ascii();
        assert!(!reference.canonical().contains(bad) && !reference.path().split('/').any(|part| part.starts_with('.')));
    });
    assert!(good > 0);
}
