//! An image's configuration: how its containers start.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::digest::Digest;
use super::error::ImageError;

/// Entries of each list of a configuration. All of them stay in memory for as long as the image is here; real ones have
/// some hundreds.
const MAX_LIST: usize = 10_000;

/// How containers of an image start, and what its maker said about it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ImageConfig {
    /// Program and leading arguments; empty when not set.
    pub entrypoint: Vec<String>,
    /// Arguments, or the command itself where there is no entrypoint; empty when not set.
    pub cmd: Vec<String>,
    /// `NAME=value` pairs.
    pub env: Vec<String>,
    /// Directory to start in; empty means `/`.
    pub working_dir: String,
    /// `user[:group]`, by name or number; empty means root.
    pub user: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Ports that the image says it serves, as `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// Paths that the image wants volumes at.
    pub volumes: Vec<String>,
    /// Signal that asks a container to stop, by name or number; `None` means SIGTERM.
    pub stop_signal: Option<String>,
    /// Docker's health check object as it came.
    pub healthcheck: Option<serde_json::Value>,
    /// What runs commands that are given as one line, `/bin/sh -c` when empty; for health checks.
    pub shell: Vec<String>,
    /// `amd64`, `arm64`, ... as Go names them.
    pub architecture: String,
    /// `linux`.
    pub os: String,
    /// When the image was made, RFC 3339.
    pub created: Option<String>,
    /// Who made it.
    pub author: Option<String>,
}

impl ImageConfig {
    /// When the image was made, in Unix seconds; 0 where it does not say.
    #[must_use]
    pub fn created_unix(&self) -> i64 {
        self.created
            .as_deref()
            .and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok())
            .map_or(0, OffsetDateTime::unix_timestamp)
    }
}

/// One step of an image's making.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// When, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// Who.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// A remark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Whether the step made no layer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

/// The configuration as it is stored: OCI's JSON, which is Docker's plus nothing that we need.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct StoredConfig {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) created: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) author: Option<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) architecture: String,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) os: String,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) config: StoredProcess,
    pub(crate) rootfs: StoredRootfs,
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub(crate) history: Vec<History>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct StoredProcess {
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    entrypoint: Vec<String>,
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    cmd: Vec<String>,
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    env: Vec<String>,
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    working_dir: String,
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    user: String,
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    exposed_ports: BTreeMap<String, Empty>,
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    volumes: BTreeMap<String, Empty>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stop_signal: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    healthcheck: Option<serde_json::Value>,
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    shell: Vec<String>,
}

/// Go's `struct{}` as a map's value. What it holds is ignored.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Empty {}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct StoredRootfs {
    #[serde(rename = "type", default)]
    pub(crate) kind: String,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) diff_ids: Vec<String>,
}

/// Go writes `null` for what is empty.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl StoredConfig {
    /// The stored form of `config` over the given layers.
    pub(crate) fn new(config: &ImageConfig, diff_ids: &[Digest], history: Vec<History>) -> StoredConfig {
        let keys = |keys: &[String]| keys.iter().map(|key| (key.clone(), Empty {})).collect();
        StoredConfig {
            created: config.created.clone(),
            author: config.author.clone(),
            architecture: config.architecture.clone(),
            os: config.os.clone(),
            config: StoredProcess {
                entrypoint: config.entrypoint.clone(),
                cmd: config.cmd.clone(),
                env: config.env.clone(),
                working_dir: config.working_dir.clone(),
                user: config.user.clone(),
                labels: config.labels.clone(),
                exposed_ports: keys(&config.exposed_ports),
                volumes: keys(&config.volumes),
                stop_signal: config.stop_signal.clone(),
                healthcheck: config.healthcheck.clone(),
                shell: config.shell.clone(),
            },
            rootfs: StoredRootfs {
                kind: "layers".to_owned(),
                diff_ids: diff_ids.iter().map(Digest::to_string).collect(),
            },
            history,
        }
    }

    /// Refuses a configuration that would take too much memory for too long. Only of images on their way in: those that
    /// are here stay.
    pub(crate) fn check(&self, what: &str) -> Result<(), ImageError> {
        let process = &self.config;
        for (list, entries) in [
            ("history", self.history.len()),
            ("Entrypoint", process.entrypoint.len()),
            ("Cmd", process.cmd.len()),
            ("Env", process.env.len()),
            ("Labels", process.labels.len()),
            ("ExposedPorts", process.exposed_ports.len()),
            ("Volumes", process.volumes.len()),
            ("Shell", process.shell.len()),
        ] {
            if entries > MAX_LIST {
                return Err(ImageError::LimitExceeded {
                    what: format!("the number of entries of {list} in {what}"),
                    limit: format!("{MAX_LIST} entries"),
                });
            }
        }
        Ok(())
    }

    /// The layers' uncompressed digests, lowest first.
    pub(crate) fn diff_ids(&self, what: &str) -> Result<Vec<Digest>, ImageError> {
        self.rootfs
            .diff_ids
            .iter()
            .map(|text| text.parse().map_err(|error| ImageError::malformed(what, format!("rootfs.diff_ids: {error}"))))
            .collect()
    }

    pub(crate) fn to_config(&self) -> ImageConfig {
        let process = self.config.clone();
        ImageConfig {
            entrypoint: process.entrypoint,
            cmd: process.cmd,
            env: process.env,
            working_dir: process.working_dir,
            user: process.user,
            labels: process.labels,
            exposed_ports: process.exposed_ports.into_keys().collect(),
            volumes: process.volumes.into_keys().collect(),
            stop_signal: process.stop_signal.filter(|signal| !signal.is_empty()),
            healthcheck: process.healthcheck,
            shell: process.shell,
            architecture: self.architecture.clone(),
            os: self.os.clone(),
            created: self.created.clone(),
            author: self.author.clone().filter(|author| !author.is_empty()),
        }
    }
}

/// This host's operating system as images name it.
pub(crate) const HOST_OS: &str = "linux";

/// This host's architecture as images (that is, Go) name it.
pub(crate) fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_have_bounds() {
        let of = |history: usize, layers: usize| {
            let json = serde_json::json!({
                "history": vec![serde_json::json!({}); history],
                "rootfs": {"diff_ids": vec![""; layers]},
            });
            serde_json::from_value::<StoredConfig>(json).unwrap().check("it")
        };
        of(MAX_LIST, 1).unwrap();
        assert!(matches!(of(MAX_LIST + 1, 1), Err(ImageError::LimitExceeded { .. })));
    }
}
