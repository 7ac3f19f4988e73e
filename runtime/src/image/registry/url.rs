//! Addresses of registries, and of where they send one.

use std::fmt;

use hyper::Uri;

/// Longest address that is looked at, in bytes.
const MAX_URL_BYTES: usize = 8 << 10;

/// How a host is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Scheme {
    Http,
    Https,
}

/// Scheme, host and port. Credentials are for one of these.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Origin {
    pub(super) scheme: Scheme,
    /// A name, or an address, without brackets and in lower case.
    pub(super) host: String,
    pub(super) port: u16,
    /// `host[:port]` as it was written: the `Host` header, and what settings name.
    pub(super) authority: String,
}

impl Origin {
    /// Reads `host[:port]`; `None` where it is something else.
    pub(super) fn of(scheme: Scheme, authority: &str) -> Option<Origin> {
        let parsed: hyper::http::uri::Authority = authority.parse().ok()?;
        let host = parsed.host();
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if bare.is_empty() || authority.contains('@') || parsed.as_str() != authority {
            return None;
        }
        let port = match authority.strip_prefix(host)? {
            "" => match scheme {
                Scheme::Http => 80,
                Scheme::Https => 443,
            },
            port => port.strip_prefix(':')?.parse().ok().filter(|port| *port > 0)?,
        };
        Some(Origin { scheme, host: bare.to_ascii_lowercase(), port, authority: authority.to_ascii_lowercase() })
    }

    /// Whether it is the same scheme, host and port, however they were written.
    pub(super) fn is_same(&self, other: &Origin) -> bool {
        (self.scheme, &self.host, self.port) == (other.scheme, &other.host, other.port)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        write!(f, "{scheme}://{}", self.authority)
    }
}

/// Where one request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) origin: Origin,
    /// Path and query; begins with a slash.
    pub(super) path: String,
}

impl Url {
    /// An absolute address.
    pub(super) fn parse(text: &str) -> Option<Url> {
        if text.len() > MAX_URL_BYTES {
            return None;
        }
        // What is behind `#` is never sent.
        let uri: Uri = text.split('#').next()?.parse().ok()?;
        let scheme = match uri.scheme_str()? {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return None,
        };
        let origin = Origin::of(scheme, uri.authority()?.as_str())?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Some(Url { origin, path })
    }

    /// A `Location` that this address answered with.
    pub(super) fn join(&self, location: &str) -> Option<Url> {
        if location.is_empty() || location.len() > MAX_URL_BYTES {
            return None;
        }
        if let Some(rest) = location.strip_prefix("//") {
            let scheme = match self.origin.scheme {
                Scheme::Http => "http",
                Scheme::Https => "https",
            };
            return Url::parse(&format!("{scheme}://{rest}"));
        }
        if location.starts_with('/') {
            return Url::parse(&format!("{}{location}", self.origin));
        }
        let first = location.split(['/', '?', '#']).next()?;
        if first.contains(':') {
            return Url::parse(location);
        }
        let path = self.path.split('?').next()?;
        let directory = &path[..=path.rfind('/')?];
        Url::parse(&format!("{}{directory}{location}", self.origin))
    }

    /// With one more parameter in the query.
    pub(super) fn with_query(mut self, key: &str, value: &str) -> Url {
        self.path.push(if self.path.contains('?') { '&' } else { '?' });
        self.path.push_str(key);
        self.path.push('=');
        escape(&mut self.path, value);
        self
    }
}

impl fmt::Display for Url {
    /// Without the query, which may hold a signature that opens something.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.split('?').next().unwrap_or_default();
        write!(f, "{}{path}", self.origin)
    }
}

/// Percent-encodes a value of a query or a form.
pub(super) fn escape(out: &mut String, value: &str) {
    use std::fmt::Write as _;
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing into a string cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_joined() {
        let base = Url::parse("https://r.example:5000/v2/a/blobs/uploads/?x=1").unwrap();
        for (location, expected) in [
            ("/v2/b?y=2", "https://r.example:5000/v2/b?y=2"),
            ("https://cdn.example/z", "https://cdn.example/z"),
            ("http://CDN.example", "http://cdn.example/"),
            ("//cdn.example/z", "https://cdn.example/z"),
            ("7f?s=1", "https://r.example:5000/v2/a/blobs/uploads/7f?s=1"),
            ("/a#part", "https://r.example:5000/a"),
        ] {
            let joined = base.join(location).unwrap();
            assert_eq!(format!("{}{}", joined.origin, joined.path), expected, "{location}");
        }
        for bad in
            ["ftp://x/", "file:///etc/passwd", "https://u:p@h/", "https://", "/a b", "https://h:99999/", "data:x"]
        {
            assert_eq!(base.join(bad), None, "{bad}");
        }
        assert_eq!(base.join(&format!("/{}", "a".repeat(9000))), None);
    }

    #[test]
    fn hosts_and_ports() {
        let origin = Origin::of(Scheme::Http, "[::1]:5000").unwrap();
        assert_eq!((origin.host.as_str(), origin.port), ("::1", 5000));
        let https = Origin::of(Scheme::Https, "r.example").unwrap();
        assert_eq!(https.port, 443);
        assert!(https.is_same(&Origin::of(Scheme::Https, "R.example:443").unwrap()));
        for (scheme, authority) in
            [(Scheme::Http, "r.example:443"), (Scheme::Https, "r.example:444"), (Scheme::Https, "s.example")]
        {
            assert!(!https.is_same(&Origin::of(scheme, authority).unwrap()), "{authority}");
        }
        for bad in ["", ":5000", "h:0", "h:", "h/p", "u@h", "h:x", "a b"] {
            assert_eq!(Origin::of(Scheme::Https, bad), None, "{bad}");
        }
    }

    #[test]
    fn queries_are_escaped() {
        let url = Url::parse("https://h/t?a=1").unwrap().with_query("scope", "repository:a/b:pull,push");
        assert_eq!(url.path, "/t?a=1&scope=repository%3Aa%2Fb%3Apull%2Cpush");
        assert_eq!(url.to_string(), "https://h/t");
    }
}
