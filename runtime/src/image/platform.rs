//! Which of several images runs here. Whoever comes by an index chooses by this alone: a registry, an archive and
//! another host must not lead to different images.

use super::config::{HOST_OS, host_architecture};
use super::oci::{Descriptor, Index, Platform};

/// A platform that there is an image for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImagePlatform {
    /// `amd64`, `arm64`, ...
    pub architecture: String,
    /// `linux`, ...
    pub os: String,
    /// `v8`, `v7`, ...
    pub variant: Option<String>,
}

/// The entry of an index that fits best.
pub(crate) fn choose<'i>(index: &'i Index, wanted: &ImagePlatform) -> Option<&'i Descriptor> {
    let fitting =
        index.manifests.iter().filter_map(|entry| rank(entry.platform.as_ref()?, wanted).map(|rank| (rank, entry)));
    // The first of those that fit equally well, as everyone does.
    let best = fitting.min_by_key(|(rank, _)| *rank).map(|(_, entry)| entry);
    best.or(match &index.manifests[..] {
        // An index without platforms is one image in a wrapper.
        [only] if only.platform.is_none() => Some(only),
        _ => None,
    })
}

/// How well a platform fits: 0 is best, `None` not at all. A processor runs what is made for its
/// architecture's earlier variants too.
pub(crate) fn rank(offered: &Platform, wanted: &ImagePlatform) -> Option<u32> {
    if offered.os != wanted.os || offered.architecture != wanted.architecture {
        return None;
    }
    let number = |variant: Option<&str>| match variant.filter(|variant| !variant.is_empty()) {
        Some(variant) => variant.strip_prefix('v').unwrap_or(variant).parse::<u32>().ok(),
        None => Some(base_variant(&wanted.architecture)),
    };
    number(wanted.variant.as_deref())?.checked_sub(number(offered.variant.as_deref())?)
}

/// What an architecture without a variant means.
fn base_variant(architecture: &str) -> u32 {
    match architecture {
        "arm64" => 8,
        "arm" => 7,
        _ => 1,
    }
}

impl std::fmt::Display for ImagePlatform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl ImagePlatform {
    /// This host's.
    #[must_use]
    pub fn host() -> ImagePlatform {
        ImagePlatform { architecture: host_architecture().to_owned(), os: HOST_OS.to_owned(), variant: host_variant() }
    }
}

/// The newest variant of its architecture that this processor is.
fn host_variant() -> Option<String> {
    #[cfg(target_arch = "x86_64")]
    {
        let v2 = is_x86_feature_detected!("sse4.2") && is_x86_feature_detected!("popcnt");
        let v3 = v2
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("movbe");
        let v4 = v3
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512cd")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        let version = 1 + u32::from(v2) + u32::from(v3) + u32::from(v4);
        Some(format!("v{version}")).filter(|_| version > 1)
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        None
    }
}
