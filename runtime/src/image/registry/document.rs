//! Manifests and indexes: what a name leads to, and which of an index's images runs here.
//!
//! A document is what its media type says, and nothing else: one that could be read as another kind
//! is refused, so that nobody is shown another image than the one that was looked at.

use hyper::Method;
use hyper::header::{ACCEPT, CONTENT_TYPE};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::super::config::StoredConfig;
use super::super::digest::Digest;
use super::super::error::ImageError;
use super::super::limits::Limits;
use super::super::oci::{self, Descriptor, Index, Manifest};
use super::super::platform::{self, ImagePlatform};
use super::super::reference::Reference;
use super::error::RegistryError;
use super::session::{Ask, Session, pull_scope};

/// Manifests of an index that are looked at.
const MAX_INDEX_ENTRIES: usize = 10_000;
const DOCKER_SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1";

/// A manifest or an index.
#[derive(Debug, Clone)]
pub(super) enum Document {
    Manifest { manifest: Manifest, media_type: String },
    Index(Index),
}

/// A document as it came, with what it is.
#[derive(Debug, Clone)]
pub(super) struct Resolved {
    pub(super) document: Document,
    pub(super) bytes: bytes::Bytes,
    pub(super) digest: Digest,
}

impl Document {
    pub(super) fn media_type(&self) -> String {
        match self {
            Document::Manifest { media_type, .. } => media_type.clone(),
            Document::Index(index) => index.media_type.clone().unwrap_or_else(|| oci::INDEX.to_owned()),
        }
    }

    /// Reads a document that is said to be of `stated` type; empty where nothing is said.
    pub(super) fn parse(bytes: &[u8], stated: &str, what: &str, limits: &Limits) -> Result<Document, RegistryError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Kind {
            schema_version: u32,
            #[serde(default)]
            media_type: Option<String>,
            #[serde(default)]
            config: Option<IgnoredAny>,
            #[serde(default)]
            layers: Option<IgnoredAny>,
            #[serde(default)]
            manifests: Option<IgnoredAny>,
        }
        let stated = stated.split(';').next().unwrap_or_default().trim();
        let bad = |media_type: &str, reason| RegistryError::MediaType {
            what: what.to_owned(),
            media_type: media_type.chars().take(200).collect(),
            reason,
        };
        if stated.starts_with(DOCKER_SCHEMA_1) {
            return Err(bad(stated, "Docker's first form of manifests is not supported: push the image anew"));
        }
        let known = [oci::MANIFEST, oci::DOCKER_MANIFEST, oci::INDEX, oci::DOCKER_LIST];
        // Some registries state a general type and leave it to the document.
        let stated = Some(stated).filter(|stated| known.contains(stated) || !is_general(stated));
        oci::check_shape(bytes, what, limits)?;
        let kind: Kind =
            serde_json::from_slice(bytes).map_err(|source| ImageError::BadJson { what: what.to_owned(), source })?;
        if kind.schema_version != 2 {
            return Err(bad(&format!("schema version {}", kind.schema_version), "only version 2 is supported"));
        }
        let own = kind.media_type.filter(|own| !own.is_empty());
        if let (Some(stated), Some(own)) = (stated, &own)
            && stated != own
        {
            return Err(bad(own, "the registry states another one"));
        }
        let media_type = match (stated, own) {
            (Some(stated), _) => stated.to_owned(),
            (None, Some(own)) => own,
            (None, None) if kind.manifests.is_some() => oci::INDEX.to_owned(),
            (None, None) => oci::MANIFEST.to_owned(),
        };
        match media_type.as_str() {
            oci::MANIFEST | oci::DOCKER_MANIFEST => {
                if kind.manifests.is_some() {
                    return Err(bad(&media_type, "it is a manifest and an index at the same time"));
                }
                let manifest: Manifest = oci::parse(bytes, what, limits)?;
                if manifest.layers.len() > limits.max_layers {
                    return Err(RegistryError::Image(ImageError::LimitExceeded {
                        what: format!("the number of layers of {what}"),
                        limit: format!("{} layers", limits.max_layers),
                    }));
                }
                Ok(Document::Manifest { manifest, media_type })
            }
            oci::INDEX | oci::DOCKER_LIST => {
                if kind.config.is_some() || kind.layers.is_some() {
                    return Err(bad(&media_type, "it is a manifest and an index at the same time"));
                }
                let index: Index = oci::parse(bytes, what, limits)?;
                if index.manifests.len() > MAX_INDEX_ENTRIES {
                    return Err(RegistryError::Image(ImageError::LimitExceeded {
                        what: format!("the number of manifests of {what}"),
                        limit: format!("{MAX_INDEX_ENTRIES} manifests"),
                    }));
                }
                Ok(Document::Index(Index { media_type: Some(media_type), ..index }))
            }
            other => Err(bad(other, "it is no image's manifest")),
        }
    }
}

fn is_general(media_type: &str) -> bool {
    matches!(media_type, "" | "application/json" | "application/octet-stream" | "text/plain")
}

/// Fetches what a name leads to. Asked once.
pub(super) async fn fetch(
    session: &Session<'_>,
    reference: &Reference,
    limits: &Limits,
) -> Result<Resolved, RegistryError> {
    let wanted = match reference.digest() {
        Some(digest) => Some(digest.parse::<Digest>().map_err(|_| RegistryError::Protocol {
            registry: session.host().to_owned(),
            reason: format!("{digest} cannot be verified: only sha256 is supported"),
        })?),
        None => None,
    };
    let name = match &wanted {
        Some(digest) => digest.to_string(),
        None => reference.tag().unwrap_or_default().to_owned(),
    };
    fetch_named(session, reference.path(), &name, wanted, &format!("manifest for {reference}"), limits).await
}

/// Fetches a manifest of an index.
pub(super) async fn fetch_entry(
    session: &Session<'_>,
    repository: &str,
    entry: &Descriptor,
    limits: &Limits,
) -> Result<Resolved, RegistryError> {
    let what = format!("manifest {}", entry.digest);
    let digest = entry.parse_digest("the index")?;
    let resolved = fetch_named(session, repository, &digest.to_string(), Some(digest), &what, limits).await?;
    check_size(&what, entry.size, resolved.bytes.len() as u64)?;
    Ok(resolved)
}

async fn fetch_named(
    session: &Session<'_>,
    repository: &str,
    name: &str,
    wanted: Option<Digest>,
    what: &str,
    limits: &Limits,
) -> Result<Resolved, RegistryError> {
    let accept = [oci::MANIFEST, oci::DOCKER_MANIFEST, oci::INDEX, oci::DOCKER_LIST].join(", ");
    let scope = pull_scope(repository);
    let ask = Ask::new(Method::GET, what, &scope).header(ACCEPT, &accept);
    let mut answer = session.once(&format!("/v2/{repository}/manifests/{name}"), &ask).await?;
    let stated = answer.header(CONTENT_TYPE).unwrap_or_default().to_owned();
    let promised = answer.header("docker-content-digest").and_then(|text| text.trim().parse::<Digest>().ok());
    let bytes = answer.bytes(limits.max_metadata_bytes).await?.ok_or_else(|| too_large(what, limits))?;
    let digest = Digest::of(&bytes);
    for expected in wanted.into_iter().chain(promised) {
        check_digest(what, &expected, &digest)?;
    }
    let document = Document::parse(&bytes, &stated, what, limits)?;
    Ok(Resolved { document, bytes, digest })
}

/// Fetches a blob that is read as a whole: a configuration. Asked once.
pub(super) async fn small_blob(
    session: &Session<'_>,
    repository: &str,
    descriptor: &Descriptor,
    limits: &Limits,
) -> Result<bytes::Bytes, RegistryError> {
    let digest = descriptor.parse_digest("the manifest")?;
    let what = format!("configuration {digest}");
    let scope = pull_scope(repository);
    let ask = Ask::new(Method::GET, &what, &scope);
    let mut answer = session.once(&format!("/v2/{repository}/blobs/{digest}"), &ask).await?;
    let bytes = answer.bytes(limits.max_metadata_bytes).await?.ok_or_else(|| too_large(&what, limits))?;
    check_size(&what, descriptor.size, bytes.len() as u64)?;
    check_digest(&what, &digest, &Digest::of(&bytes))?;
    Ok(bytes)
}

/// Reads the configuration that a manifest names.
pub(super) fn parse_config(manifest: &Manifest, bytes: &[u8], limits: &Limits) -> Result<StoredConfig, RegistryError> {
    let what = format!("configuration {}", manifest.config.digest);
    if let Err(reason) = oci::check_config_type(&manifest.config.media_type) {
        return Err(RegistryError::MediaType {
            what,
            media_type: manifest.config.media_type.chars().take(200).collect(),
            reason,
        });
    }
    let stored: StoredConfig = oci::parse(bytes, &what, limits)?;
    stored.check(&what)?;
    let stated = stored.rootfs.diff_ids.len();
    if stated != manifest.layers.len() {
        let reason = format!("it states {stated} layers, the manifest {}", manifest.layers.len());
        return Err(RegistryError::Image(ImageError::malformed(what, reason)));
    }
    Ok(stored)
}

/// Refuses layers that cannot be fetched or unpacked.
pub(super) fn check_layer(layer: &Descriptor, limits: &Limits) -> Result<(), RegistryError> {
    let bad = |reason| RegistryError::MediaType {
        what: format!("layer {}", layer.digest.chars().take(100).collect::<String>()),
        media_type: layer.media_type.chars().take(200).collect(),
        reason,
    };
    oci::check_layer_type(&layer.media_type).map_err(bad)?;
    if layer.size > limits.max_archive_bytes {
        return Err(RegistryError::Image(ImageError::LimitExceeded {
            what: format!("layer {} of {} bytes", layer.digest, layer.size),
            limit: format!("{} bytes", limits.max_archive_bytes),
        }));
    }
    Ok(())
}

/// The entry of an index that fits this host best.
pub(super) fn choose<'i>(index: &'i Index, wanted: &ImagePlatform) -> Result<&'i Descriptor, RegistryError> {
    platform::choose(index, wanted).ok_or_else(|| {
        let mut found: Vec<String> = platforms(index).iter().map(ImagePlatform::to_string).take(50).collect();
        found.dedup();
        RegistryError::NoPlatform { wanted: wanted.to_string(), found: found.join(", ") }
    })
}

/// The platforms of an index. Build attestations call themselves unknown/unknown and are none.
pub(super) fn platforms(index: &Index) -> Vec<ImagePlatform> {
    let platforms = index.manifests.iter().filter_map(|entry| entry.platform.as_ref());
    platforms
        .filter(|platform| platform.os != "unknown")
        .map(|platform| ImagePlatform {
            architecture: platform.architecture.chars().take(50).collect(),
            os: platform.os.chars().take(50).collect(),
            variant: platform.variant.as_ref().map(|variant| variant.chars().take(50).collect()),
        })
        .collect()
}

/// The platform of an image without an index.
pub(super) fn platform_of_config(config: &[u8], limits: &Limits) -> Vec<ImagePlatform> {
    match oci::parse::<StoredConfig>(config, "the configuration", limits) {
        Ok(config) => vec![ImagePlatform { architecture: config.architecture, os: config.os, variant: None }],
        // It is not an image that is run; whoever asks need not know its platform.
        Err(_) => Vec::new(),
    }
}

fn too_large(what: &str, limits: &Limits) -> RegistryError {
    RegistryError::Image(ImageError::LimitExceeded {
        what: what.to_owned(),
        limit: format!("{} bytes", limits.max_metadata_bytes),
    })
}

pub(super) fn check_digest(what: &str, expected: &Digest, actual: &Digest) -> Result<(), ImageError> {
    if expected == actual {
        return Ok(());
    }
    Err(ImageError::DigestMismatch {
        what: what.to_owned(),
        expected: expected.to_string(),
        actual: actual.to_string(),
    })
}

pub(super) fn check_size(what: &str, expected: u64, actual: u64) -> Result<(), ImageError> {
    if expected == actual {
        return Ok(());
    }
    Err(ImageError::SizeMismatch { what: what.to_owned(), expected, actual })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn manifest() -> Value {
        let descriptor = json!({"mediaType": oci::CONFIG, "digest": DIGEST, "size": 1});
        json!({"schemaVersion": 2, "mediaType": oci::MANIFEST, "config": descriptor, "layers": []})
    }

    fn index(platforms: &[(&str, &str, Option<&str>)]) -> Index {
        let entries = platforms.iter().enumerate().map(|(nth, (os, architecture, variant))| {
            json!({
                "mediaType": oci::MANIFEST, "digest": DIGEST, "size": nth,
                "platform": {"os": os, "architecture": architecture, "variant": variant},
            })
        });
        serde_json::from_value(json!({"schemaVersion": 2, "manifests": entries.collect::<Vec<_>>()})).unwrap()
    }

    fn parse(document: &Value, stated: &str) -> Result<Document, RegistryError> {
        Document::parse(document.to_string().as_bytes(), stated, "it", &Limits::default())
    }

    #[test]
    fn a_document_is_what_its_type_says() {
        assert!(matches!(parse(&manifest(), oci::MANIFEST), Ok(Document::Manifest { .. })));
        assert!(matches!(parse(&manifest(), "application/json; charset=utf-8"), Ok(Document::Manifest { .. })));
        let mut docker = manifest();
        docker["mediaType"] = oci::DOCKER_MANIFEST.into();
        assert!(matches!(parse(&docker, oci::DOCKER_MANIFEST), Ok(Document::Manifest { .. })));
        let list = json!({"schemaVersion": 2, "manifests": []});
        assert!(matches!(parse(&list, oci::INDEX), Ok(Document::Index(_))));
        assert!(matches!(parse(&list, ""), Ok(Document::Index(_))));
    }

    #[test]
    fn a_document_of_two_kinds_is_refused() {
        let mut both = manifest();
        both["manifests"] = json!([]);
        let mut both_untyped = both.clone();
        both_untyped.as_object_mut().unwrap().remove("mediaType");
        for (document, stated) in [
            (&both, oci::MANIFEST),
            (&both_untyped, oci::INDEX),
            (&both_untyped, ""),
            (&manifest(), oci::INDEX),
            (&manifest(), oci::DOCKER_MANIFEST),
            (&manifest(), "application/vnd.docker.distribution.manifest.v1+prettyjws"),
            (&manifest(), "text/html"),
            (&json!({"schemaVersion": 1}), ""),
            (&json!({"schemaVersion": 2, "mediaType": "application/x"}), ""),
            (&json!({"schemaVersion": 2}), ""),
            (&json!([]), ""),
        ] {
            assert!(parse(document, stated).is_err(), "{stated}: {document}");
        }
    }

    #[track_caller]
    fn check(
        platforms: &[(&str, &str, Option<&str>)],
        architecture: &str,
        variant: Option<&str>,
        expected: Option<u64>,
    ) {
        let wanted = ImagePlatform {
            architecture: architecture.into(),
            os: "linux".into(),
            variant: variant.map(str::to_owned),
        };
        let index = index(platforms);
        let chosen = choose(&index, &wanted).ok().map(|entry| entry.size);
        assert_eq!(chosen, expected, "{platforms:?} {wanted}");
    }

    #[test]
    fn the_best_variant_is_chosen() {
        let arms = [
            ("linux", "amd64", None),
            ("linux", "arm", Some("v6")),
            ("linux", "arm", Some("v7")),
            ("linux", "arm64", Some("v8")),
            ("windows", "amd64", None),
        ];
        check(&arms, "amd64", Some("v3"), Some(0));
        check(&arms, "arm64", None, Some(3));
        check(&arms, "arm", Some("v7"), Some(2));
        check(&arms, "arm", Some("v6"), Some(1));
        check(&arms, "s390x", None, None);
        let amds = [("linux", "amd64", None), ("linux", "amd64", Some("v2")), ("linux", "amd64", Some("v4"))];
        check(&amds, "amd64", Some("v3"), Some(1));
        check(&amds, "amd64", None, Some(0));
        check(&amds, "amd64", Some("v4"), Some(2));
        check(&[("linux", "arm64", None)], "arm64", None, Some(0));
        check(&[("unknown", "unknown", None)], "amd64", None, None);
        check(&[], "amd64", None, None);
    }

    #[test]
    fn layers_that_cannot_be_had_are_refused() {
        let layer = |media_type: &str, size| {
            let mut layer = Descriptor::new(media_type, &Digest::of(b""), size);
            layer.annotations = None;
            check_layer(&layer, &Limits::default()).map_err(|error| error.to_string())
        };
        assert_eq!(layer("application/vnd.docker.image.rootfs.diff.tar.gzip", 1), Ok(()));
        assert_eq!(layer("application/vnd.oci.image.layer.v1.tar+zstd", 1), Ok(()));
        for (media_type, word) in [
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "foreign"),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "foreign"),
            ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "encrypted"),
            ("application/vnd.cncf.helm.chart.content.v1.tar+gzip", "no layer"),
            ("", "no layer"),
        ] {
            assert!(layer(media_type, 1).unwrap_err().contains(word), "{media_type}");
        }
        assert!(layer("application/vnd.oci.image.layer.v1.tar", u64::MAX).unwrap_err().contains("limit"));
    }

    proptest! {
        #[test]
        fn no_document_is_too_odd(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Document::parse(&bytes, "", "it", &Limits::default());
        }

        #[test]
        fn no_mangled_manifest_is_too_odd(at in 0_usize..400, byte in any::<u8>(), cut in 0_usize..400) {
            let mut bytes = manifest().to_string().into_bytes();
            let at = at % bytes.len();
            bytes[at] = byte;
            bytes.truncate(bytes.len().max(cut) - cut.min(bytes.len()) / 2);
            if let Ok(Document::Manifest { manifest, .. }) = Document::parse(&bytes, "", "it", &Limits::default()) {
                let _ = parse_config(&manifest, &bytes, &Limits::default());
                let _ = manifest.config.parse_digest("it");
            }
        }
    }
}
