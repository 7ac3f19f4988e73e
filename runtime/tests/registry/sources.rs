//! Content that other hosts have: asked for first, trusted no more than a registry.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use runtime::image::Digest;
use runtime::image::registry::{BlobSource, BlobStream};

use crate::archives::{Pack, TestImage, pack};
use crate::pulling::{big_layer, layer};
use crate::server::{Answer, Server, TestHost};

/// Serves blobs in pieces; breaks off where it was told to.
#[derive(Debug, Default)]
struct Peer {
    blobs: BTreeMap<Digest, Vec<u8>>,
    breaks_at: Option<usize>,
    asked: Mutex<Vec<(Digest, u64)>>,
}

impl BlobSource for Peer {
    fn open<'a>(&'a self, digest: &'a Digest, _: Option<u64>, offset: u64) -> BoxFuture<'a, Option<BlobStream>> {
        self.asked.lock().unwrap().push((*digest, offset));
        let found = self.blobs.get(digest).map(|blob| {
            let end = self.breaks_at.unwrap_or(blob.len()).min(blob.len());
            let mut pieces: Vec<std::io::Result<bytes::Bytes>> =
                blob[offset as usize..end].chunks(10_000).map(|piece| Ok(piece.to_vec().into())).collect();
            if end < blob.len() {
                pieces.push(Err(std::io::ErrorKind::ConnectionReset.into()));
            }
            futures_util::stream::iter(pieces).boxed()
        });
        Box::pin(async move { found })
    }
}

struct Case {
    server: Server,
    host: TestHost,
    image: TestImage,
    blob: Vec<u8>,
    peer: Peer,
}

/// A registry with an image, and a peer that has all of it.
fn case() -> Option<Case> {
    let server = Server::start();
    let host = TestHost::new(&server)?;
    let image = TestImage::new("x", vec![layer("a"), big_layer("b", 200_000)]);
    server.serve_image("web", "1", &image, Pack::Gzip);
    let blobs = server.content().into_values().map(|(_, bytes)| (Digest::of(&bytes), bytes)).collect();
    let blob = pack(&image.layers[1], Pack::Gzip);
    Some(Case { server, host, image, blob, peer: Peer { blobs, ..Peer::default() } })
}

#[test]
fn a_digest_needs_no_registry() {
    let Some(case) = case() else { return };
    let manifest = Digest::of(&case.server.content()["web/manifests/1"].1);
    case.server.rule(|_, _| Some(Answer::error(500, "X")));
    case.host.registries.set_sources(vec![Arc::new(case.peer)]);
    let pulled = case.host.pull(&case.server.reference(&format!("web@{manifest}"))).unwrap();
    assert_eq!(pulled.id.to_string(), case.image.id());
    assert!(case.server.requests().is_empty());
}

#[test]
fn a_tag_is_asked_for_and_its_layers_are_not() {
    let Some(case) = case() else { return };
    case.host.registries.set_sources(vec![Arc::new(Peer::default()), Arc::new(case.peer)]);
    case.host.pull(&case.server.reference("web:1")).unwrap();
    assert_eq!(case.server.requests(), ["GET /v2/web/manifests/1"]);
}

#[test]
fn what_a_source_breaks_off_comes_from_the_next() {
    let Some(mut case) = case() else { return };
    case.peer.breaks_at = Some(120_000);
    case.host.registries.set_sources(vec![Arc::new(case.peer)]);
    case.host.pull(&case.server.reference("web:1")).unwrap();
    let asked: Vec<_> = case.server.log().into_iter().filter(|request| request.path.contains("/blobs/")).collect();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].header("range"), "bytes=120000-");
}

#[test]
fn a_source_that_lies_costs_only_time() {
    let Some(mut case) = case() else { return };
    for bytes in case.peer.blobs.values_mut() {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    }
    case.host.registries.set_sources(vec![Arc::new(case.peer)]);
    case.host.pull(&case.server.reference("web:1")).unwrap();
    assert_eq!(case.server.fetches(&case.blob), 1);
    assert_eq!(case.host.entries("tmp").len(), 0);
}

/// What this host can hand to others.
#[test]
fn everything_of_an_image_can_be_handed_on() {
    let Some(case) = case() else { return };
    case.host.pull(&case.server.reference("web:1")).unwrap();
    let store = &case.host.store.store;
    for (_, bytes) in case.server.content().into_values() {
        let digest = Digest::of(&bytes);
        assert!(store.has_blob(&digest));
        let (mut file, length) = store.open_blob(&digest).unwrap().unwrap();
        let mut found = Vec::new();
        std::io::Read::read_to_end(&mut file, &mut found).unwrap();
        assert_eq!((found.len() as u64, &found), (length, &bytes));
    }
    let unknown = Digest::of(b"unknown");
    assert!(!store.has_blob(&unknown));
    assert!(store.open_blob(&unknown).unwrap().is_none());
}
