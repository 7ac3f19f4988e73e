//! Bundles that are broken or hostile: a clear error, and nothing left.

use std::fs;

use serde_json::{Value, json};

use crate::Test;
use crate::bundle::Bundle;

pub const TESTS: &[Test] = &[
    ("refusals::by_field", by_field),
    ("refusals::no_configuration", no_configuration),
    ("refusals::hostile_roots", hostile_roots),
];

fn by_field() {
    let check = |change: &dyn Fn(&mut Value), expected: &str| {
        let mut bundle = Bundle::new("out no");
        change(&mut bundle.config);
        bundle.refused(expected);
    };
    check(&|c| c["ociVersion"] = "invalid".into(), "invalid ociVersion: \"invalid\" is not a version");
    check(&|c| c["ociVersion"] = "2.0.0".into(), "is not 1.x.y");
    check(&|c| _ = c.as_object_mut().unwrap().remove("ociVersion"), "missing field `ociVersion`");
    check(&|c| _ = c.as_object_mut().unwrap().remove("root"), "invalid root: is missing");
    check(&|c| c["root"]["path"] = "nowhere".into(), "is no directory");
    check(&|c| c["root"] = "rootfs".into(), "invalid type");
    check(&|c| c["process"]["capabilities"]["bounding"] = json!(["CAP_TEST"]), "unknown capability \"CAP_TEST\"");
    check(&|c| c["process"]["cwd"] = "relative".into(), "invalid process.cwd");
    check(&|c| c["process"]["args"] = json!([]), "no command specified");
    check(&|c| c["process"]["user"]["uid"] = (-1).into(), "invalid value: integer `-1`");
    check(&|c| c["process"]["rlimits"] = json!([{ "type": "RLIMIT_X", "soft": 1, "hard": 1 }]), "unknown type");
    let twice = json!({ "type": "RLIMIT_CPU", "soft": 1, "hard": 1 });
    check(&|c| c["process"]["rlimits"] = json!([twice, twice]), "is there twice");
    check(&|c| c["process"]["oomScoreAdj"] = 2000.into(), "must be -1000 to 1000");
    check(&|c| c["process"]["scheduler"] = json!({}), "process.scheduler is not supported");
    check(&|c| c["linux"]["namespaces"][0]["type"] = "moon".into(), "unknown type \"moon\"");
    check(&|c| c["linux"]["namespaces"][0]["type"] = "network".into(), "is there twice");
    check(&|c| c["linux"]["namespaces"][0]["path"] = "rel".into(), "is not absolute");
    check(&|c| c["linux"]["namespaces"][1]["path"] = "/nowhere".into(), "open namespace /nowhere");
    check(&|c| c["linux"]["uidMappings"] = json!([{ "containerID": 0, "hostID": 0, "size": 1 }]), "needs a new user");
    check(&|c| c["linux"]["sysctl"] = json!({ "kernel.core_pattern": "|/x" }), "not a namespaced kernel setting");
    check(&|c| c["linux"]["cgroupsPath"] = "/a/../../b".into(), "\"..\"");
    check(&|c| c["linux"]["rootfsPropagation"] = "wild".into(), "unknown \"wild\"");
    check(&|c| c["linux"]["devices"] = json!([{ "type": "x", "path": "/dev/x" }]), "unknown type \"x\"");
    check(&|c| c["linux"]["intelRdt"] = json!({}), "linux.intelRdt is not supported");
    check(&|c| c["vm"] = json!({}), "vm is not supported");
    check(&|c| c["hooks"] = json!({ "poststop": [{ "path": "relative" }] }), "is not absolute");
    check(&|c| c["hooks"] = json!({ "poststop": [{ "path": "/x", "timeout": 0 }] }), "greater than zero");
    check(&|c| c["annotations"] = json!({ "": "x" }), "a key is empty");
    check(&|c| c["mounts"][0]["destination"] = "/".into(), "the root itself");
    check(&|c| c["mounts"][0]["options"] = json!(["tmpcopyup"]), "not supported");
    check(&|c| c["mounts"][0]["type"] = "nofs".into(), "mount /proc: no such device");
    check(&|c| c["mounts"][1]["options"] = json!(["frobnicate"]), "mount /dev: invalid argument");
    check(&|c| c["mounts"][0] = json!({ "destination": "/x", "source": "/nowhere", "options": ["bind"] }), "/x");
    let mut bundle = Bundle::new("out no");
    bundle.id = "../escape".to_owned();
    bundle.refused("invalid container id");
    bundle.id = "harmless".to_owned();
}

fn no_configuration() {
    let bundle = Bundle::new("out no");
    let create = ["create", "--bundle", bundle.path().to_str().unwrap(), "x"];
    bundle.fails(&create, "config.json: No such file");
    let path = bundle.path().join("config.json");
    for (text, expected) in [("", "EOF"), ("{", "EOF"), ("[]", "invalid"), ("{\"root\": 7}", "invalid type")] {
        fs::write(&path, text).unwrap();
        bundle.fails(&create, expected);
    }
    fs::write(&path, " ".repeat((4 << 20) + 1)).unwrap();
    bundle.fails(&create, "is larger than");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    bundle.fails(&create, "config.json");
    bundle.fails(&["create", "--bundle", "/nowhere", "x"], "find bundle /nowhere");
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}

/// Links in the root that lead out of it must lead back into it.
fn hostile_roots() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    let mut bundle = Bundle::new("cat /out/secret then cat /secret");
    // The same path is there on both sides, and only one of them has the secret.
    fs::create_dir_all(bundle.rootfs().join(outside.path().strip_prefix("/").unwrap())).unwrap();
    std::os::unix::fs::symlink(outside.path(), bundle.rootfs().join("out")).unwrap();
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.push(json!({ "destination": "/out/made", "type": "tmpfs", "source": "tmpfs" }));
    let out = bundle.runs();
    assert!(!out.contains("secret\n") && !outside.path().join("made").exists(), "{out}");
    // A working directory by way of a descriptor of the runtime's.
    bundle.config["process"]["cwd"] = "/proc/self/fd/3".into();
    bundle.refused("enter the working directory");
    bundle.config["process"]["cwd"] = "/".into();
    // A root that is a link, and one whose mount point cannot be made.
    fs::write(bundle.rootfs().join("file"), "").unwrap();
    bundle.config["mounts"].as_array_mut().unwrap().last_mut().unwrap()["destination"] = "/file/below".into();
    bundle.refused("not a directory");
}
