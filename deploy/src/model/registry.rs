//! Credentials that the cluster keeps for a registry: whoever pulls an image from there may have them.

use super::{Meta, RegistryAuth, RegistryId};

/// What the registry of a name without one is called.
const DEFAULT_REGISTRY: &str = "docker.io";
/// What it was called once.
const LEGACY_DEFAULT_REGISTRY: &str = "index.docker.io";

/// Who the cluster is to one registry. Its id is the registry's name, so that there is one for each.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Registry {
    /// The registry.
    #[prost(message, required, tag = "1")]
    pub id: RegistryId,
    /// Version and times.
    #[prost(message, required, tag = "2")]
    pub meta: Meta,
    /// The credentials.
    #[prost(message, required, tag = "3")]
    pub auth: RegistryAuth,
}

impl RegistryId {
    /// The registry that an image's name leads to: what comes before its first slash, if that has a dot or a colon, is
    /// `localhost` or is not in lower case; Docker's own otherwise. Names of hosts are compared in lower case.
    pub fn of_image(image: &str) -> Self {
        let first = image.split_once('/').map(|(first, _)| first);
        let host = |first: &&str| {
            *first == "localhost" || first.contains(['.', ':']) || first.bytes().any(|b| b.is_ascii_uppercase())
        };
        match first.filter(host).map(str::to_ascii_lowercase) {
            Some(name) if name != LEGACY_DEFAULT_REGISTRY => Self::new(name),
            _ => Self::new(DEFAULT_REGISTRY),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_leads_to_its_registry() {
        for (image, registry) in [
            ("web", "docker.io"),
            ("library/web:1", "docker.io"),
            ("index.docker.io/library/web", "docker.io"),
            ("r.example/web@sha256:aa", "r.example"),
            ("R.example:5000/a/b:1", "r.example:5000"),
            ("localhost/web", "localhost"),
            ("[::1]:5000/web", "[::1]:5000"),
            ("Upper/web", "upper"),
            ("", "docker.io"),
            ("/", "docker.io"),
        ] {
            assert_eq!(RegistryId::of_image(image), RegistryId::new(registry), "{image:?}");
        }
    }

    #[test]
    fn credentials_are_not_shown() {
        let auth = RegistryAuth { header: "c2VjcmV0".into() };
        let registry = Registry { id: RegistryId::new("r.example"), auth, ..Registry::default() };
        assert!(!format!("{registry:?}").contains("c2Vj"), "{registry:?}");
    }
}
