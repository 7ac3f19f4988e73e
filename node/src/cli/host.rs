//! Which engine to talk to: `-H`, then `SHOAL_HOST`, then `DOCKER_HOST`, then the daemon's default socket.

use std::fmt;
use std::path::PathBuf;

use super::error::CliError;

/// Where a daemon serves its API unless told otherwise.
pub const DEFAULT_RUN_DIR: &str = "/run/shoal";
/// Docker's port for the API without TLS.
const DEFAULT_PORT: u16 = 2375;

/// Address of an engine's API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A socket in the file system.
    Unix(PathBuf),
    /// `host:port`.
    Tcp(String),
}

/// The address of the socket in a run directory.
pub fn socket_in(run_dir: &std::path::Path) -> String {
    format!("unix://{}/shoal.sock", run_dir.display())
}

impl Host {
    /// The engine that the user means; `env` looks an environment variable up.
    ///
    /// # Errors
    /// When the first of the places that names one names something that is not understood.
    pub fn resolve(flag: Option<&str>, env: impl Fn(&str) -> Option<String>) -> Result<Self, CliError> {
        let named = |place: &str, value: &str| {
            Self::parse(value).map_err(|why| CliError::usage(format!("{place} {value:?}: {why}")))
        };
        if let Some(value) = flag {
            return named("-H", value);
        }
        for variable in ["SHOAL_HOST", "DOCKER_HOST"] {
            if let Some(value) = env(variable).filter(|v| !v.is_empty()) {
                return named(variable, &value);
            }
        }
        Ok(Self::Unix(PathBuf::from(DEFAULT_RUN_DIR).join("shoal.sock")))
    }

    fn parse(text: &str) -> Result<Self, &'static str> {
        const SHAPE: &str = "it must look like unix:///path or tcp://host:port";
        if let Some(path) = text.strip_prefix("unix://") {
            return if path.starts_with('/') { Ok(Self::Unix(path.into())) } else { Err(SHAPE) };
        }
        let Some(addr) = text.strip_prefix("tcp://") else {
            return Err(if text.starts_with("ssh://") {
                "ssh is not supported: forward the socket (ssh -L /tmp/s:/run/shoal/shoal.sock HOST) and use unix:///tmp/s"
            } else {
                SHAPE
            });
        };
        let addr = addr.trim_end_matches('/');
        if addr.is_empty() || addr.contains(['/', '@', '?', ' ']) {
            return Err(SHAPE);
        }
        let bare = addr.ends_with(']') || !addr.contains(':');
        if bare {
            return Ok(Self::Tcp(format!("{addr}:{DEFAULT_PORT}")));
        }
        match addr.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p != 0) => {
                Ok(Self::Tcp(addr.to_owned()))
            }
            _ => Err(SHAPE),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(addr) => write!(f, "tcp://{addr}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<&str>) {
        assert_eq!(Host::parse(text).ok().map(|h| h.to_string()).as_deref(), expected, "{text}");
    }

    #[test]
    fn addresses_are_read() {
        check("unix:///run/x.sock", Some("unix:///run/x.sock"));
        check("tcp://10.0.0.1:9000", Some("tcp://10.0.0.1:9000"));
        check("tcp://10.0.0.1", Some("tcp://10.0.0.1:2375"));
        check("tcp://[::1]", Some("tcp://[::1]:2375"));
        check("tcp://[::1]:80", Some("tcp://[::1]:80"));
        for bad in ["", "unix://x", "tcp://", "tcp://a:0", "tcp://a:99999", "tcp://:80", "http://a", "ssh://a", "/x"] {
            check(bad, None);
        }
    }

    #[test]
    fn the_flag_comes_before_the_environment() {
        let env = |shoal: Option<&'static str>, docker: Option<&'static str>| {
            move |name: &str| if name == "SHOAL_HOST" { shoal } else { docker }.map(str::to_owned)
        };
        let host = |flag, env: &dyn Fn(&str) -> Option<String>| Host::resolve(flag, env).unwrap().to_string();
        assert_eq!(host(Some("tcp://f:1"), &env(Some("tcp://s:1"), Some("tcp://d:1"))), "tcp://f:1");
        assert_eq!(host(None, &env(Some("tcp://s:1"), Some("tcp://d:1"))), "tcp://s:1");
        assert_eq!(host(None, &env(Some(""), Some("tcp://d:1"))), "tcp://d:1");
        assert_eq!(host(None, &env(None, None)), "unix:///run/shoal/shoal.sock");
        let error = Host::resolve(None, env(None, Some("npipe://x"))).unwrap_err();
        assert!(error.to_string().starts_with("DOCKER_HOST"), "{error}");
    }
}
