//! Pulls from a registry that answers anything: wrong states, headers that lie, bodies that are damaged, cut or another's.
//! Each is an image or an error in bounded time; what failed leaves nothing, and no thread has panicked.

use std::time::Duration;

use runtime::image::Limits;
use runtime::image::registry::{RegistryError, RegistrySettings, Timeouts};
use serde_json::Value;

use self::engine::{Source, fuzz};
use self::json::change;
use crate::archives::{Pack, TestImage};
use crate::pulling::{big_layer, layer};
use crate::server::{Answer, Body, Content, Request, Server, TestHost, impatient, serve, settings};

#[allow(dead_code)]
#[path = "../../src/fuzz/engine.rs"]
mod engine;
#[path = "../../src/fuzz/json.rs"]
mod json;

const STATES: [&u16; 14] = [&200, &201, &204, &206, &301, &307, &401, &403, &404, &416, &429, &500, &503, &599];
const HEADERS: [&str; 10] = [
    "content-range",
    "content-length",
    "content-type",
    "docker-content-digest",
    "location",
    "retry-after",
    "transfer-encoding",
    "www-authenticate",
    "content-encoding",
    "connection",
];
const VALUES: [&str; 24] = [
    "",
    "0",
    "1",
    "-1",
    "18446744073709551613",
    "99999999999999999999",
    "bytes 0-1/2",
    "bytes 5-",
    "bytes */9",
    "gzip",
    "chunked",
    "close",
    "/v2/web/blobs/x",
    "http://127.0.0.1:1/x",
    "//",
    "https://",
    "Basic realm=\"x\"",
    "Bearer realm=",
    "Bearer realm=\"http://127.0.0.1:1/token\"",
    "application/vnd.oci.image.index.v1+json",
    "text/html",
    "sha256:0",
    "\t",
    "Bearer realm=\"x\",scope=\"repository:web:pull\", Basic",
];

/// What comes instead of what the registry has.
fn odd(source: &mut Source, request: &Request, content: &Content) -> Answer {
    let path = request.path.strip_prefix("/v2/").unwrap_or_default();
    let (media_type, mut bytes) = content.get(path).cloned().unwrap_or_default();
    let document = serde_json::from_slice::<Value>(&bytes);
    if source.one_in(3) {
        match document {
            Ok(mut document) if source.one_in(2) => {
                change(source, &mut document);
                bytes = document.to_string().into_bytes();
            }
            _ => source.mangle(&mut bytes),
        }
    }
    let mut answer = serve(request, &media_type, bytes);
    if source.one_in(4) {
        answer.status = *source.pick(&STATES);
    }
    for _ in 0..source.below(3) {
        let name = source.pick(&HEADERS);
        answer.headers.retain(|(known, _)| known != name);
        answer = answer.header(name, source.pick(&VALUES));
    }
    let cut = source.next() as usize;
    match source.below(24) {
        0 => answer.body(|bytes| {
            let at = cut % (bytes.len() + 1);
            Body::Hang(bytes, at)
        }),
        1 | 2 => answer.body(|bytes| {
            let at = cut % (bytes.len() + 1);
            Body::Cut(bytes, at)
        }),
        3 => answer.body(|_| Body::Silence),
        _ => answer,
    }
}

#[test]
fn registries_that_answer_anything() {
    let server = Server::start();
    let patience = Duration::from_millis(100);
    let timeouts = Timeouts { headers: patience, idle: patience, ..impatient() };
    let settings = RegistrySettings { timeouts, ..settings(&[&server]) };
    let Some(host) = TestHost::with(settings, Limits::default()) else { return };
    let image = TestImage::new("x", vec![layer("small"), big_layer("large", 300_000)]);
    server.serve_image("web", "1", &image, Pack::Gzip);
    let content = server.content();
    fuzz("registries_that_answer_anything", 40, |source| {
        let (seed, one_in) = (source.next(), 2 + source.below(4));
        let content = content.clone();
        server.rule(move |request, nth| {
            let path = request.path.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
            let mut source = Source::new(seed ^ path ^ (nth as u64) << 32);
            source.one_in(one_in).then(|| odd(&mut source, request, &content))
        });
        match host.pull(&server.reference("web:1")) {
            // It may be another image than the one that is there: a tag is worth what its registry says.
            Ok(pulled) => {
                let id = pulled.id.to_string();
                assert!(host.store.store.resolve(&id).unwrap().layers.iter().all(|layer| layer.is_dir()));
                host.store.store.remove(&id, true, &|_| false).unwrap();
            }
            Err(error @ RegistryError::Thread(_)) => panic!("{error:?}"),
            Err(_) => {}
        }
        host.assert_empty();
    });
}
