//! The daemon's settings: flags first, then the TOML file named by `--config`, then defaults.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use runtime::IdMappings;
use runtime::image::Room;
use runtime::image::registry::RegistrySettings;
use serde::Deserialize;

use crate::timing::Timing;

/// Settings of `shoal daemon`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where everything that outlives the daemon is kept.
    pub data_dir: PathBuf,
    /// Where sockets and namespaces are pinned; emptied by a reboot.
    pub run_dir: PathBuf,
    /// Where the API is served: `unix:///path` or `tcp://ip:port`.
    pub hosts: Vec<String>,
    /// Labels of the engine, for placement.
    pub labels: BTreeMap<String, String>,
    /// Where metrics are served, if anywhere.
    pub metrics_addr: Option<SocketAddr>,
    /// How patient this node is with the others.
    pub timing: Timing,
    /// How registries are reached.
    pub registries: RegistrySettings,
    /// Bytes of image content per second that this host gives to the others, all together; 0 for as many as they take.
    pub image_serve_rate: u64,
    /// When images that only tasks needed are removed.
    pub image_room: Room,
    /// What the users of all containers are on this host; absent: the same.
    pub users: Option<IdMappings>,
}

/// 100 MiB/s leave a sixth of a gigabit to everything else.
pub const IMAGE_SERVE_RATE: u64 = 100 << 20;
/// As early as the disk is short, but nothing that a task used in the last hour: it may be back any moment.
pub const IMAGE_ROOM: Room = Room { grace: Duration::from_secs(3600), full_percent: 85 };

/// What the TOML file may say; the same keys as the flags.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ConfigFile {
    /// `--data-dir`
    pub data_dir: Option<PathBuf>,
    /// `--run-dir`
    pub run_dir: Option<PathBuf>,
    /// `--host`
    pub host: Option<Vec<String>>,
    /// `--label`
    pub label: Option<Vec<String>>,
    /// `--metrics-addr`
    pub metrics_addr: Option<String>,
    /// `--timing`
    pub timing: Option<String>,
    /// `--insecure-registry`
    pub insecure_registry: Option<Vec<String>>,
    /// `--registry-mirror`
    pub registry_mirror: Option<Vec<String>>,
    /// `--registry-certs-dir`
    pub registry_certs_dir: Option<Vec<PathBuf>>,
    /// `--image-serve-rate`
    pub image_serve_rate: Option<String>,
    /// `--image-gc-grace`
    pub image_gc_grace: Option<String>,
    /// `--image-gc-disk`
    pub image_gc_disk: Option<u64>,
    /// `--userns-remap`
    pub userns_remap: Option<String>,
    /// `--log-level`
    pub log_level: Option<String>,
    /// `--log-format`
    pub log_format: Option<String>,
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The file says something that is not understood.
    #[error("{}: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The cause, with line and column.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A label is not `key=value`.
    #[error("label {0:?} must look like key=value")]
    Label(String),
}

impl ConfigFile {
    /// Reads the file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_path_buf(), source })?;
        toml::from_str(&text)
            .map_err(|source| ConfigError::Parse { path: path.to_path_buf(), source: Box::new(source) })
    }
}

/// Labels from their `key=value` form.
pub fn parse_labels(labels: &[String]) -> Result<BTreeMap<String, String>, ConfigError> {
    labels
        .iter()
        .map(|label| match label.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(ConfigError::Label(label.clone())),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_key_is_named() {
        let error = toml::from_str::<ConfigFile>("data-dri = \"/x\"").unwrap_err();
        assert!(error.to_string().contains("data-dri"), "{error}");
    }

    #[test]
    fn labels_need_a_key() {
        assert_eq!(parse_labels(&["a=b=c".into()]).unwrap()["a"], "b=c");
        assert!(parse_labels(&["=b".into()]).is_err());
        assert!(parse_labels(&["a".into()]).is_err());
    }
}
