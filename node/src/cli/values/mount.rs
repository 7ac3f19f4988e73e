//! `--mount type=bind,source=/data,target=/data,readonly`.

use super::{KeyValue, fields, memory};
use crate::docker_api::wire::{BindOptions, Driver, Mount, TmpfsOptions, VolumeOptions};

const KEYS: &str = "type, source, target, readonly, bind-propagation, bind-nonrecursive, volume-nocopy, volume-label, \
                    volume-driver, volume-opt, volume-subpath, bind-create-src, tmpfs-size, tmpfs-mode";

/// Reads one `--mount`.
pub(in crate::cli) fn parse_mount(text: &str) -> Result<Mount, String> {
    let mut mount = Mount { kind: Some("volume".to_owned()), ..Mount::default() };
    for (key, value) in fields(text)? {
        set(&mut mount, &key, value)?;
    }
    check(mount)
}

fn set(mount: &mut Mount, key: &str, value: String) -> Result<(), String> {
    match key {
        "type" => match value.as_str() {
            "bind" | "volume" | "tmpfs" => mount.kind = Some(value),
            _ => return Err(format!("unknown type {value:?}: there are bind, volume and tmpfs")),
        },
        "source" | "src" => mount.source = Some(value),
        "target" | "dst" | "destination" => mount.target = Some(value),
        "readonly" | "ro" => mount.read_only = Some(flag(key, &value)?),
        "bind-propagation" => bind(mount).propagation = Some(value),
        "bind-nonrecursive" => bind(mount).non_recursive = Some(flag(key, &value)?),
        "bind-create-src" => bind(mount).create_mountpoint = Some(flag(key, &value)?),
        "volume-subpath" => volume(mount).subpath = Some(value),
        "volume-nocopy" => volume(mount).no_copy = Some(flag(key, &value)?),
        "volume-label" => {
            let label: KeyValue = value.parse()?;
            volume(mount).labels.get_or_insert_default().insert(label.key, label.value);
        }
        "volume-driver" => driver(mount).name = Some(value),
        "volume-opt" => {
            let option: KeyValue = value.parse()?;
            driver(mount).options.get_or_insert_default().insert(option.key, option.value);
        }
        "tmpfs-size" => tmpfs(mount).size_bytes = Some(memory(&value).map_err(|e| format!("tmpfs-size: {e}"))?),
        "tmpfs-mode" => {
            let mode = u32::from_str_radix(&value, 8).ok().filter(|m| *m <= 0o7777);
            tmpfs(mount).mode = Some(mode.ok_or_else(|| format!("tmpfs-mode {value:?} must be octal, like 1777"))?);
        }
        _ => return Err(format!("unknown key {key:?}: there are {KEYS}")),
    }
    Ok(())
}

fn bind(mount: &mut Mount) -> &mut BindOptions {
    mount.bind_options.get_or_insert_default()
}

fn volume(mount: &mut Mount) -> &mut VolumeOptions {
    mount.volume_options.get_or_insert_default()
}

fn driver(mount: &mut Mount) -> &mut Driver {
    volume(mount).driver_config.get_or_insert_default()
}

fn tmpfs(mount: &mut Mount) -> &mut TmpfsOptions {
    mount.tmpfs_options.get_or_insert_default()
}

/// A key alone is true.
fn flag(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "" | "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(format!("{key} {value:?} must be true or false")),
    }
}

fn check(mount: Mount) -> Result<Mount, String> {
    let kind = mount.kind.as_deref().unwrap_or_default();
    let source = mount.source.as_deref().unwrap_or_default();
    if !mount.target.as_deref().is_some_and(|t| t.starts_with('/')) {
        return Err("target= must be an absolute path".to_owned());
    }
    match kind {
        "bind" if !source.starts_with('/') => return Err("source= of a bind must be an absolute path".to_owned()),
        "tmpfs" if !source.is_empty() => return Err("a tmpfs has no source=".to_owned()),
        "volume" if source.starts_with('/') => {
            return Err(format!("a volume has a name, not the path {source:?}: did you mean type=bind?"));
        }
        _ => {}
    }
    for (options, of) in [
        (mount.bind_options.is_some(), "bind"),
        (mount.volume_options.is_some(), "volume"),
        (mount.tmpfs_options.is_some(), "tmpfs"),
    ] {
        if options && of != kind {
            return Err(format!("{of}-… options do not go with type={kind}"));
        }
    }
    Ok(mount)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Value) {
        let mount = parse_mount(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(serde_json::to_value(mount).unwrap(), expected, "{text}");
    }

    #[test]
    fn mounts_are_read() {
        check("type=bind,src=/a,dst=/b,ro", json!({"Type": "bind", "Source": "/a", "Target": "/b", "ReadOnly": true}));
        check("source=data,target=/d", json!({"Type": "volume", "Source": "data", "Target": "/d"}));
        check(
            "type=tmpfs,target=/t,tmpfs-size=64m,tmpfs-mode=1777",
            json!({"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 67_108_864, "Mode": 0o1777}}),
        );
        check(
            "type=volume,src=v,dst=/v,volume-nocopy,\"volume-opt=o=addr=1.2.3.4,rw\"",
            json!({"Type": "volume", "Source": "v", "Target": "/v", "VolumeOptions":
                   {"NoCopy": true, "DriverConfig": {"Options": {"o": "addr=1.2.3.4,rw"}}}}),
        );
        check(
            "src=v,dst=/v,volume-subpath=a/b",
            json!({"Type": "volume", "Source": "v", "Target": "/v", "VolumeOptions": {"Subpath": "a/b"}}),
        );
        check(
            "type=bind,src=/a,dst=/b,bind-create-src",
            json!({"Type": "bind", "Source": "/a", "Target": "/b", "BindOptions": {"CreateMountpoint": true}}),
        );
        check(
            "type=bind,src=/a,dst=/b,readonly=false,bind-propagation=rslave",
            json!({"Type": "bind", "Source": "/a", "Target": "/b", "ReadOnly": false,
                   "BindOptions": {"Propagation": "rslave"}}),
        );
    }

    #[test]
    fn mistakes_are_named() {
        for (bad, word) in [
            ("", "empty"),
            ("type=bind,src=/a", "target"),
            ("type=bind,src=a,dst=/b", "source"),
            ("type=nfs,dst=/b", "nfs"),
            ("type=tmpfs,src=/a,dst=/b", "source"),
            ("src=/a,dst=/b", "type=bind"),
            ("type=bind,src=/a,dst=/b,rw=maybe", "rw"),
            ("type=bind,src=/a,dst=/b,ro=maybe", "maybe"),
            ("type=bind,src=/a,dst=/b,tmpfs-size=1m", "tmpfs"),
            ("type=tmpfs,dst=/b,tmpfs-mode=9", "octal"),
            ("type=tmpfs,dst=/b,\"x", "quote"),
        ] {
            let error = parse_mount(bad).unwrap_err();
            assert!(error.contains(word), "{bad}: {error}");
        }
    }
}
