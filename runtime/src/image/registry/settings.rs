//! Which registries are spoken to how: what the daemon's operator decided.

use std::path::PathBuf;
use std::time::Duration;

use super::super::reference::Reference;
use super::error::RegistryError;
use super::url::{Origin, Scheme};

/// What `docker.io` in a name means.
const DEFAULT_DOMAIN: &str = "docker.io";
/// Where the images of `docker.io` are.
const DEFAULT_REGISTRY: &str = "registry-1.docker.io";
/// What Docker's command line calls `docker.io` when it logs in.
const DEFAULT_LOGIN: [&str; 3] = ["index.docker.io", "docker.io", "registry-1.docker.io"];

/// How registries are reached.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RegistrySettings {
    /// Registries, `host[:port]`, whose certificate is not verified, and which may be spoken to over
    /// plain HTTP where they do not speak TLS. No other is, loopback included.
    pub insecure: Vec<String>,
    /// Asked before the registry itself, in this order.
    pub mirrors: Vec<Mirror>,
    /// Directories with `<host[:port]>/*.crt` (authorities that are trusted for that host besides the
    /// system's) and `<host[:port]>/<name>.cert` and `.key` (the client's own), as Docker's `certs.d`.
    pub certs_dirs: Vec<PathBuf>,
    /// How long to wait for what.
    pub timeouts: Timeouts,
}

/// A registry that has the same images as another one. Credentials of the other are not sent to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// The registry whose images it has, as in names of images.
    pub registry: String,
    /// Its address, `http` or `https`, without a path. Plain HTTP must be asked for here.
    pub(super) origin: Origin,
}

/// How long a registry may keep one waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection, TLS included.
    pub connect: Duration,
    /// For the beginning of an answer, from the moment that the request was sent.
    pub headers: Duration,
    /// Between two pieces of an answer, or of a request that is being sent. As often as this has passed in waiting, an
    /// answer must have come on by 1024 bytes for each second of it.
    pub idle: Duration,
    /// The first pause before something is tried again; each further one is twice as long.
    pub backoff: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            connect: Duration::from_secs(10),
            headers: Duration::from_secs(30),
            idle: Duration::from_secs(30),
            backoff: Duration::from_millis(500),
        }
    }
}

/// A setting that makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum SettingError {
    /// Not `host[:port]`.
    #[error("insecure registry {0:?} must look like host:port")]
    Insecure(String),
    /// Not `[registry=]http[s]://host[:port]`.
    #[error("registry mirror {0:?} must look like https://host:port or registry=https://host:port")]
    Mirror(String),
}

impl std::str::FromStr for Mirror {
    type Err = SettingError;

    /// `https://host:port`, which has what `docker.io` has, or `registry=https://host:port`.
    fn from_str(text: &str) -> Result<Mirror, SettingError> {
        let refuse = || SettingError::Mirror(text.to_owned());
        let (registry, address) = match text.split_once('=') {
            Some((registry, address)) => (registry, address),
            None => (DEFAULT_DOMAIN, text),
        };
        let (scheme, authority) = match address.split_once("://") {
            Some(("https", rest)) => (Scheme::Https, rest),
            Some(("http", rest)) => (Scheme::Http, rest),
            _ => return Err(refuse()),
        };
        let origin = Origin::of(scheme, authority.strip_suffix('/').unwrap_or(authority)).ok_or_else(refuse)?;
        if Origin::of(Scheme::Https, registry).is_none() {
            return Err(refuse());
        }
        Ok(Mirror { registry: registry.to_owned(), origin })
    }
}

impl RegistrySettings {
    /// Whether every name is one.
    pub fn check(&self) -> Result<(), SettingError> {
        match self.insecure.iter().find(|name| Origin::of(Scheme::Https, name).is_none()) {
            Some(name) => Err(SettingError::Insecure(name.clone())),
            None => Ok(()),
        }
    }

    pub(super) fn is_insecure(&self, host: &str) -> bool {
        self.insecure.iter().any(|named| named.eq_ignore_ascii_case(host))
    }

    pub(super) fn mirrors_of(&self, reference: &Reference) -> impl Iterator<Item = &Mirror> {
        self.mirrors.iter().filter(|mirror| mirror.registry == reference.domain())
    }
}

/// The host that has the images of a name.
pub(super) fn registry_host(reference: &Reference) -> String {
    match reference.domain() {
        DEFAULT_DOMAIN => DEFAULT_REGISTRY.to_owned(),
        other => other.to_owned(),
    }
}

/// What names of images call the registry that is meant by whoever logs in: by a host, in any case, or an
/// address as Docker writes it.
pub fn registry_name(registry: &str) -> Result<String, RegistryError> {
    let bare = registry.strip_prefix("https://").or_else(|| registry.strip_prefix("http://")).unwrap_or(registry);
    let host = bare.split('/').next().unwrap_or_default().to_ascii_lowercase();
    if host.is_empty() || DEFAULT_LOGIN.contains(&host.as_str()) {
        return Ok(DEFAULT_DOMAIN.to_owned());
    }
    match Origin::of(Scheme::Https, &host) {
        Some(_) => Ok(host),
        None => Err(RegistryError::BadName { name: registry.chars().take(300).collect() }),
    }
}

/// The host that is meant by whoever logs in.
pub(super) fn login_host(registry: &str) -> Result<String, RegistryError> {
    let name = registry_name(registry)?;
    Ok(if name == DEFAULT_DOMAIN { DEFAULT_REGISTRY.to_owned() } else { name })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_addresses() {
        for (text, registry, address) in [
            ("https://m.example", "docker.io", "https://m.example"),
            ("http://m.example:5000/", "docker.io", "http://m.example:5000"),
            ("r.example:1=https://m.example", "r.example:1", "https://m.example"),
        ] {
            let mirror: Mirror = text.parse().unwrap();
            assert_eq!((mirror.registry.as_str(), mirror.origin.to_string().as_str()), (registry, address), "{text}");
        }
        for text in [
            "",
            "m.example",
            "ftp://m.example",
            "https://",
            "https://m.example/path",
            "https://u@m.example",
            "=https://m",
        ] {
            assert!(text.parse::<Mirror>().is_err(), "{text}");
        }
    }

    #[test]
    fn insecure_registries_are_named_one_by_one() {
        let settings = RegistrySettings { insecure: vec!["r.example:5000".to_owned()], ..RegistrySettings::default() };
        assert!(settings.check().is_ok());
        assert!(settings.is_insecure("R.example:5000"));
        assert!(!settings.is_insecure("r.example"));
        assert!(!settings.is_insecure("127.0.0.1:5000"));
        for bad in ["http://r.example", "10.0.0.0/8", "", "r.example:x"] {
            let settings = RegistrySettings { insecure: vec![bad.to_owned()], ..RegistrySettings::default() };
            assert!(settings.check().is_err(), "{bad}");
        }
    }

    #[test]
    fn whoever_logs_in_may_give_an_address() {
        for (given, host) in [
            ("", "registry-1.docker.io"),
            ("https://index.docker.io/v1/", "registry-1.docker.io"),
            ("r.example:5000", "r.example:5000"),
            ("https://R.example/v2/", "r.example"),
        ] {
            assert_eq!(login_host(given).unwrap(), host, "{given}");
        }
        assert_eq!(registry_name("https://index.docker.io/v1/").unwrap(), "docker.io");
        assert!(login_host("a b").is_err());
    }
}
