//! OCI's JSON documents, as far as images need them, and how they are read within bounds.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::compression::Compression;
use super::digest::Digest;
use super::error::ImageError;
use super::limits::Limits;

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// OCI's name of an image in an index: a full reference or only a tag.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// containerd's (and so Docker's) full reference.
pub(crate) const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// Docker's name of [`CONFIG`].
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// Refuses layers that cannot be had or unpacked, by what a manifest says that they are.
pub(crate) fn check_layer_type(media_type: &str) -> Result<(), &'static str> {
    match media_type {
        "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Ok(()),
        foreign if foreign.contains(".foreign.") || foreign.contains(".nondistributable.") => {
            Err("foreign layers are not in the registry and not supported")
        }
        encrypted if encrypted.ends_with("+encrypted") => Err("encrypted layers are not supported"),
        _ => Err("it is no layer of an image that can be run"),
    }
}

/// Refuses configurations of charts, signatures and the like.
pub(crate) fn check_config_type(media_type: &str) -> Result<(), &'static str> {
    if matches!(media_type, CONFIG | DOCKER_CONFIG) { Ok(()) } else { Err("it is not an image that can be run") }
}

/// The media type of a layer blob.
pub(crate) fn layer_type(compression: Compression) -> &'static str {
    match compression {
        Compression::None => "application/vnd.oci.image.layer.v1.tar",
        Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
        Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
}

impl Descriptor {
    pub(crate) fn new(media_type: &str, digest: &Digest, size: u64) -> Descriptor {
        Descriptor {
            media_type: media_type.to_owned(),
            digest: digest.to_string(),
            size,
            annotations: None,
            platform: None,
        }
    }

    pub(crate) fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(name).map(String::as_str)
    }

    /// `what` names the document that the descriptor stands in.
    pub(crate) fn parse_digest(&self, what: &str) -> Result<Digest, ImageError> {
        self.digest.parse().map_err(|error| ImageError::malformed(what, format!("{error}")))
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) variant: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    pub(crate) schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) media_type: Option<String>,
    #[serde(default)]
    pub(crate) manifests: Vec<Descriptor>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) media_type: Option<String>,
    pub(crate) config: Descriptor,
    #[serde(default)]
    pub(crate) layers: Vec<Descriptor>,
    /// A manifest has none: what has them could be read as an index as well.
    #[serde(default, skip_serializing)]
    pub(crate) manifests: Option<serde::de::IgnoredAny>,
}

/// One image in the `manifest.json` of a `docker save` archive.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct SavedImage {
    pub(crate) config: String,
    #[serde(default)]
    pub(crate) repo_tags: Option<Vec<String>>,
    #[serde(default)]
    pub(crate) layers: Option<Vec<String>>,
}

/// Reads a document whose length is already bounded.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8], what: &str, limits: &Limits) -> Result<T, ImageError> {
    check_shape(bytes, what, limits)?;
    serde_json::from_slice(bytes).map_err(|source| ImageError::BadJson { what: what.to_owned(), source })
}

/// Refuses a document that would take a parser too deep, or a multiple of its length in memory.
pub(crate) fn check_shape(bytes: &[u8], what: &str, limits: &Limits) -> Result<(), ImageError> {
    let exceeded = |what: String, limit: String| Err(ImageError::LimitExceeded { what, limit });
    let (depth, values) = shape(bytes);
    if depth > limits.max_json_depth {
        return exceeded(format!("the nesting of {what}"), format!("{} levels", limits.max_json_depth));
    }
    if values > limits.max_json_values {
        return exceeded(format!("the number of values in {what}"), format!("{} values", limits.max_json_values));
    }
    Ok(())
}

/// How deep objects and lists are nested, and how many values there are at the least.
fn shape(json: &[u8]) -> (usize, usize) {
    let (mut depth, mut deepest, mut values) = (0_usize, 0, 1_usize);
    let mut bytes = json.iter();
    let mut in_string = false;
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' if in_string => {
                bytes.next();
            }
            b'"' => in_string = !in_string,
            b',' if !in_string => values += 1,
            b'{' | b'[' if !in_string => {
                values += 1;
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    (deepest, values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nesting_and_values_are_counted_outside_of_strings() {
        for (json, depth, values) in
            [("1", 0, 1), ("[{}]", 2, 3), (r#"["[[[\"[,[", {"a":[1,2]}]"#, 3, 6), ("[[[", 3, 4), ("]]]][", 1, 2)]
        {
            assert_eq!(shape(json.as_bytes()), (depth, values), "{json}");
        }
    }
}
