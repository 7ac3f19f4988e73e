//! The `config.json` of a bundle, as runtime-spec 1.2 has it: the fields that Linux containers have, and no judgement.
//!
//! Unknown fields are passed over, as the specification wants. A known one of the wrong type, or out of its type's
//! range, is an error. What the fields mean, and which of their values are good, is `plan`'s business.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use crate::plan::limits::oci::LinuxResources;
use crate::plan::seccomp::SeccompProfile;

/// A whole `config.json`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Spec {
    pub(crate) oci_version: String,
    pub(crate) process: Option<Process>,
    pub(crate) root: Option<Root>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) hostname: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) domainname: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) mounts: Vec<Mount>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) hooks: Hooks,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) linux: Linux,
    /// A container in a virtual machine: nothing that this runtime makes.
    pub(crate) vm: Option<serde::de::IgnoredAny>,
}

/// Go writes what is nil as `null`, where this means the same as nothing.
fn null_is_empty<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Root {
    pub(crate) path: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) readonly: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Mount {
    pub(crate) destination: String,
    #[serde(rename = "type", default, deserialize_with = "null_is_empty")]
    pub(crate) kind: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) source: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) options: Vec<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) uid_mappings: Vec<IdMapping>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) gid_mappings: Vec<IdMapping>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct IdMapping {
    #[serde(rename = "containerID")]
    pub(crate) container_id: u32,
    #[serde(rename = "hostID")]
    pub(crate) host_id: u32,
    pub(crate) size: u32,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Process {
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) terminal: bool,
    pub(crate) console_size: Option<ConsoleSize>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) user: User,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) args: Vec<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) env: Vec<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) cwd: String,
    pub(crate) capabilities: Option<Capabilities>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) rlimits: Vec<Rlimit>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) no_new_privileges: bool,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) apparmor_profile: String,
    pub(crate) oom_score_adj: Option<i32>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) selinux_label: String,
    pub(crate) scheduler: Option<serde::de::IgnoredAny>,
    #[serde(rename = "ioPriority")]
    pub(crate) io_priority: Option<serde::de::IgnoredAny>,
    #[serde(rename = "execCPUAffinity")]
    pub(crate) exec_cpu_affinity: Option<serde::de::IgnoredAny>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(crate) struct ConsoleSize {
    pub(crate) height: u64,
    pub(crate) width: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct User {
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) uid: u32,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) gid: u32,
    pub(crate) umask: Option<u32>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) additional_gids: Vec<u32>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Capabilities {
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) bounding: Vec<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) effective: Vec<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) permitted: Vec<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) inheritable: Vec<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) ambient: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Rlimit {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

/// By the moment at which they run.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Hooks {
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) prestart: Vec<Hook>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) create_runtime: Vec<Hook>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) create_container: Vec<Hook>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) start_container: Vec<Hook>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) poststart: Vec<Hook>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) poststop: Vec<Hook>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Hook {
    pub(crate) path: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) args: Vec<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) env: Vec<String>,
    /// Seconds.
    pub(crate) timeout: Option<i64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Linux {
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) namespaces: Vec<Namespace>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) uid_mappings: Vec<IdMapping>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) gid_mappings: Vec<IdMapping>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) time_offsets: BTreeMap<String, TimeOffset>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) devices: Vec<Device>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) cgroups_path: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) resources: LinuxResources,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) rootfs_propagation: String,
    pub(crate) seccomp: Option<SeccompProfile>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) sysctl: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) masked_paths: Vec<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) readonly_paths: Vec<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) mount_label: String,
    pub(crate) intel_rdt: Option<serde::de::IgnoredAny>,
    pub(crate) personality: Option<serde::de::IgnoredAny>,
    pub(crate) memory_policy: Option<serde::de::IgnoredAny>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) net_devices: BTreeMap<String, serde::de::IgnoredAny>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Namespace {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) path: String,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(crate) struct TimeOffset {
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) secs: i64,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) nanosecs: u32,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Device {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) path: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) major: i64,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) minor: i64,
    pub(crate) file_mode: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
}
