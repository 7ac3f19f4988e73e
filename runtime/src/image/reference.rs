//! Names of images, in Docker's grammar.
//!
//! `web` is `docker.io/library/web:latest`. The familiar form is what people write and what Docker
//! prints, the canonical form is what is compared and stored.

use std::fmt;
use std::str::FromStr;

const DEFAULT_DOMAIN: &str = "docker.io";
const LEGACY_DEFAULT_DOMAIN: &str = "index.docker.io";
const OFFICIAL_PREFIX: &str = "library/";
const DEFAULT_TAG: &str = "latest";
/// Docker's bound on domain and path together.
const MAX_NAME_BYTES: usize = 255;
/// Docker's bound on a tag.
const MAX_TAG_BYTES: usize = 128;

/// A name that is not in Docker's grammar. Nothing was changed; a retry does not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid reference format: {text:?}: {reason}")]
pub struct ReferenceError {
    /// What was given.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// The name of an image: domain, path, and a tag, a digest or both.
///
/// `Display` is the familiar form (`web:latest`), [`Reference::canonical`] the full one. A
/// reference has at least a tag or a digest: [`Reference::parse`] adds `latest`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl Reference {
    /// Reads a name as people write it: at most a domain, a path, `:tag` and `@algorithm:digest`.
    pub fn parse(text: &str) -> Result<Reference, ReferenceError> {
        let refuse = |reason| Err(ReferenceError { text: text.chars().take(300).collect(), reason });
        if text.is_empty() {
            return refuse("it is empty");
        }
        // A name alone that looks like an id would be ambiguous with ids.
        if is_hex(text, 64) {
            return refuse("a name cannot be 64 hexadecimal digits");
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        if let Some(digest) = digest
            && !is_digest(digest)
        {
            return refuse("the digest is not algorithm:hex");
        }
        // A colon after the last slash begins a tag; before it, a port.
        let name_end = match rest.rfind(':') {
            Some(colon) if !rest[colon..].contains('/') => colon,
            _ => rest.len(),
        };
        let (name, tag) = rest.split_at(name_end);
        let tag = tag.strip_prefix(':');
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return refuse("the tag is not [A-Za-z0-9_][A-Za-z0-9_.-]{0,127}");
        }
        let (domain, path) = match name.split_once('/') {
            Some((first, path)) if looks_like_domain(first) => (first, path),
            _ => (DEFAULT_DOMAIN, name),
        };
        if !is_domain(domain) {
            return refuse("the registry's name is not a host name with an optional port");
        }
        let domain = if domain == LEGACY_DEFAULT_DOMAIN { DEFAULT_DOMAIN } else { domain };
        if path.is_empty() {
            return refuse("the repository's name is empty");
        }
        if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return refuse("the repository's name must be lowercase");
        }
        if !path.split('/').all(is_path_component) {
            return refuse(
                "the repository's name may hold lowercase letters, digits and the separators . _ __ - between them",
            );
        }
        let path = if domain == DEFAULT_DOMAIN && !path.contains('/') {
            format!("{OFFICIAL_PREFIX}{path}")
        } else {
            path.to_owned()
        };
        if domain.len() + 1 + path.len() > MAX_NAME_BYTES {
            return refuse("the repository's name is longer than 255 characters");
        }
        let tag = match (tag, digest) {
            (None, None) => Some(DEFAULT_TAG.to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Reference { domain: domain.to_owned(), path, tag, digest: digest.map(str::to_owned) })
    }

    /// The registry's host name and port: `docker.io` when none was written.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository's path below the registry, `library/web` for `web`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag; `None` only where there is a digest.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, `sha256:<hex>`.
    #[must_use]
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// The repository without tag and digest, as Docker prints it: `web`, `quay.io/a/b`.
    #[must_use]
    pub fn familiar_name(&self) -> String {
        if self.domain != DEFAULT_DOMAIN {
            return format!("{}/{}", self.domain, self.path);
        }
        match self.path.strip_prefix(OFFICIAL_PREFIX) {
            // `library/a/b` must keep its prefix: `a/b` would read as another repository.
            Some(short) if !short.contains('/') => short.to_owned(),
            // And `a.b/c` as one of the registry `a.b`.
            _ if self.path.split_once('/').is_some_and(|(first, _)| looks_like_domain(first)) => {
                format!("{DEFAULT_DOMAIN}/{}", self.path)
            }
            _ => self.path.clone(),
        }
    }

    /// The full form: `docker.io/library/web:latest`.
    #[must_use]
    pub fn canonical(&self) -> String {
        self.with_suffixes(format!("{}/{}", self.domain, self.path))
    }

    /// Whether both name the same repository, whatever the tag and the digest.
    #[must_use]
    pub fn same_repository(&self, other: &Reference) -> bool {
        self.domain == other.domain && self.path == other.path
    }

    /// The same repository and tag, pinned to a digest. The digest must be `sha256:` and 64
    /// lowercase hexadecimal digits, or another `algorithm:hex`.
    pub fn with_digest(&self, digest: &str) -> Result<Reference, ReferenceError> {
        if !is_digest(digest) {
            return Err(ReferenceError {
                text: digest.chars().take(300).collect(),
                reason: "the digest is not algorithm:hex",
            });
        }
        Ok(Reference { digest: Some(digest.to_owned()), ..self.clone() })
    }

    /// Refuses a name with a digest: content has its digest by itself, and cannot be given one.
    pub(crate) fn require_no_digest(&self) -> Result<(), ReferenceError> {
        match &self.digest {
            None => Ok(()),
            Some(_) => Err(ReferenceError { text: self.to_string(), reason: "an image cannot be named with a digest" }),
        }
    }

    fn with_suffixes(&self, mut name: String) -> String {
        if let Some(tag) = &self.tag {
            name.push(':');
            name.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            name.push('@');
            name.push_str(digest);
        }
        name
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_suffixes(self.familiar_name()))
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Reference, ReferenceError> {
        Reference::parse(text)
    }
}

/// Docker's rule for telling `host/repository` from `user/repository`.
fn looks_like_domain(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = if let Some(rest) = domain.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else {
            return false;
        };
        if address.is_empty() || !address.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':') {
            return false;
        }
        match port.strip_prefix(':') {
            Some(port) => return is_port(port),
            None => return port.is_empty(),
        }
    } else {
        match domain.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (domain, None),
        }
    };
    port.is_none_or(is_port)
        && host.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        })
}

fn is_port(port: &str) -> bool {
    !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())
}

/// Runs of `[a-z0-9]` with one separator between two of them: `.`, `_`, `__` or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    if !bytes.first().copied().is_some_and(alphanumeric) || !bytes.last().copied().is_some_and(alphanumeric) {
        return false;
    }
    bytes
        .split(|byte| alphanumeric(*byte))
        .all(|separator| matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|byte| *byte == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= MAX_TAG_BYTES
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

fn is_digest(digest: &str) -> bool {
    let Some((algorithm, hex)) = digest.split_once(':') else {
        return false;
    };
    match algorithm {
        "sha256" => is_hex(hex, 64),
        "sha384" => is_hex(hex, 96),
        "sha512" => is_hex(hex, 128),
        _ => false,
    }
}

/// Exactly `len` lowercase hexadecimal digits.
pub(crate) fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, familiar: &str, canonical: &str) {
        let reference = Reference::parse(text).expect(text);
        assert_eq!(reference.to_string(), familiar, "familiar form of {text}");
        assert_eq!(reference.canonical(), canonical, "canonical form of {text}");
        assert_eq!(Reference::parse(familiar).as_ref(), Ok(&reference), "the familiar form of {text} reads back");
        assert_eq!(Reference::parse(canonical).as_ref(), Ok(&reference), "the canonical form of {text} reads back");
    }

    #[test]
    fn names_are_normalized_as_docker_does() {
        let hex = "a".repeat(64);
        check("web", "web:latest", "docker.io/library/web:latest");
        check("web:1.2", "web:1.2", "docker.io/library/web:1.2");
        check("a/b", "a/b:latest", "docker.io/a/b:latest");
        check("library/web", "web:latest", "docker.io/library/web:latest");
        check("index.docker.io/web", "web:latest", "docker.io/library/web:latest");
        check("docker.io/a/b:c", "a/b:c", "docker.io/a/b:c");
        check("quay.io/a/b/c", "quay.io/a/b/c:latest", "quay.io/a/b/c:latest");
        check("localhost/web", "localhost/web:latest", "localhost/web:latest");
        check("localhost:5000/web:2", "localhost:5000/web:2", "localhost:5000/web:2");
        check("HOST/web", "HOST/web:latest", "HOST/web:latest");
        check("[::1]:5000/web", "[::1]:5000/web:latest", "[::1]:5000/web:latest");
        check("a__b/c---d.e_f", "a__b/c---d.e_f:latest", "docker.io/a__b/c---d.e_f:latest");
        check(
            &format!("web@sha256:{hex}"),
            &format!("web@sha256:{hex}"),
            &format!("docker.io/library/web@sha256:{hex}"),
        );
        check(
            &format!("web:1@sha256:{hex}"),
            &format!("web:1@sha256:{hex}"),
            &format!("docker.io/library/web:1@sha256:{hex}"),
        );
        check("library/a/b", "library/a/b:latest", "docker.io/library/a/b:latest");
        check("docker.io/a.b/c", "docker.io/a.b/c:latest", "docker.io/a.b/c:latest");
        check("docker.io/localhost/c", "docker.io/localhost/c:latest", "docker.io/localhost/c:latest");
    }

    #[test]
    fn what_docker_refuses_is_refused() {
        let long = "a/".repeat(130) + "a";
        let hex = "a".repeat(64);
        let long_tag = format!("web:{}", "t".repeat(129));
        let short_digest = format!("web@sha256:{}", &hex[1..]);
        let upper_digest = format!("web@sha256:{}", hex.to_uppercase());
        for bad in [
            "",
            "Web",
            "a/Web",
            ":tag",
            "web:",
            "web:-x",
            "web@",
            "web@sha256:",
            "web@md5:00",
            "-web",
            "web-",
            "a..b",
            "a___b",
            "a._b",
            "/web",
            "web/",
            "a//b",
            "we b",
            "web\n",
            "-host.x/web",
            "host.:1/web",
            "host:x/web",
            "[::1/web",
            "wéb",
            "web:tä",
            &hex,
            &long,
            &long_tag,
            &short_digest,
            &upper_digest,
            "web@sha256:x@sha256:y",
            "..",
            "../x",
            "a/../b",
        ] {
            let outcome = Reference::parse(bad);
            assert!(outcome.is_err(), "{bad:?} was read as {outcome:?}");
        }
    }
}
