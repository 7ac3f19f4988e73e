//! What this runtime can do, as `features` says it: the structure of the specification.

use super::{VERSION_MAX, VERSION_MIN, options};
use crate::plan::capabilities;

/// The whole structure.
pub(super) fn json() -> String {
    let mount_options: Vec<&str> = options::names().collect();
    let capabilities: Vec<String> = capabilities::names().collect();
    let features = serde_json::json!({
        "ociVersionMin": VERSION_MIN,
        "ociVersionMax": VERSION_MAX,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": mount_options,
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": capabilities,
            "cgroup": { "v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": true },
            "seccomp": {
                "enabled": true,
                "actions": ["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS",
                    "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP"],
                "operators": ["SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT",
                    "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE"],
                "archs": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"]
            },
            "apparmor": { "enabled": true },
            "selinux": { "enabled": true },
            "intelRdt": { "enabled": false },
            "mountExtensions": { "idmap": { "enabled": false } },
            "netDevices": { "enabled": false }
        },
        "annotations": {
            "org.shoal.runtime.version": env!("CARGO_PKG_VERSION"),
            "org.shoal.runtime.unsupported":
                "linux.personality, linux.intelRdt, linux.memoryPolicy, linux.mountLabel, linux.netDevices, \
                 process.scheduler, process.ioPriority, process.execCPUAffinity, mounts.uidMappings, \
                 mounts.gidMappings, mount options idmap, ridmap and tmpcopyup, checkpoint, restore, events, exec --cgroup, \
                 update --kernel-memory, --l3-cache-schema and --mem-bw-schema, --systemd-cgroup, --rootless, \
                 --no-pivot, --no-new-keyring"
        },
        "potentiallyUnsafeConfigAnnotations": []
    });
    format!("{features:#}")
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_is_of_the_specifications_shape() {
        let features: serde_json::Value = serde_json::from_str(&super::json()).unwrap();
        assert_eq!(features["ociVersionMin"], "1.0.0");
        let options = features["mountOptions"].as_array().unwrap();
        for option in ["bind", "rbind", "ro", "rw", "rslave", "nosuid", "relatime", "remount", "rro"] {
            assert!(options.iter().any(|known| known == option), "{option}");
        }
        assert!(!options.iter().any(|known| known == "tmpcopyup"));
        assert!(features["linux"]["capabilities"].as_array().unwrap().iter().any(|name| name == "CAP_SYS_ADMIN"));
    }
}
