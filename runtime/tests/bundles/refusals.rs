//! Bundles that are broken or hostile: a clear error, and nothing left.

use std::fs;

use serde_json::{Value, json};

use crate::Test;
use crate::bundle::Bundle;

pub const TESTS: &[Test] = &[
    ("refusals::by_field", by_field),
    ("refusals::no_configuration", no_configuration),
    ("refusals::hostile_roots", hostile_roots),
    ("refusals::zero_bytes", zero_bytes),
    ("refusals::too_many", too_many),
    ("refusals::bad_users", bad_users),
    ("refusals::bad_rules", bad_rules),
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
    for path in ["system.slice:shoal:name", ":shoal:name", "a.slice::name"] {
        let expected = "linux.cgroupsPath in systemd's form (slice:prefix:name) is not supported";
        check(&|c| c["linux"]["cgroupsPath"] = path.into(), expected);
    }
    check(&|c| c["linux"]["cgroupsPath"] = "/".into(), "is the root, which is nobody's own");
    check(&|c| c["linux"]["rootfsPropagation"] = "wild".into(), "unknown \"wild\"");
    check(&|c| c["linux"]["devices"] = json!([{ "type": "x", "path": "/dev/x" }]), "unknown type \"x\"");
    check(&|c| c["linux"]["intelRdt"] = json!({}), "linux.intelRdt is not supported");
    check(&|c| c["vm"] = json!({}), "vm is not supported");
    check(&|c| c["hooks"] = json!({ "poststop": [{ "path": "relative" }] }), "is not absolute");
    check(&|c| c["hooks"] = json!({ "poststop": [{ "path": "/x", "timeout": 0 }] }), "greater than zero");
    check(&|c| c["annotations"] = json!({ "": "x" }), "a key is empty");
    check(&|c| c["mounts"][0]["destination"] = "/".into(), "the root itself");
    check(&|c| c["mounts"][0]["options"] = json!(["tmpcopyup"]), "not supported");
    check(&|c| c["mounts"][4]["type"] = "nofs".into(), "mount /sys: no such device");
    check(&|c| c["mounts"][1]["options"] = json!(["frobnicate"]), "mount /dev: invalid argument");
    check(&|c| c["mounts"][0] = json!({ "destination": "/x", "source": "/nowhere", "options": ["bind"] }), "/x");
    for id in ["../escape", "", ".", "..", "a/b", "a b", "ä", "x\n", &"x".repeat(256)] {
        let mut bundle = Bundle::new("out no");
        let good = std::mem::replace(&mut bundle.id, id.to_owned());
        bundle.refused("invalid container id");
        bundle.id = good;
    }
}

/// Texts that C strings cannot hold would end early, and mean something else to the kernel.
fn zero_bytes() {
    let check = |change: &dyn Fn(&mut Value, Value)| {
        let mut bundle = Bundle::new("out no");
        change(&mut bundle.config, "/a\0b".into());
        bundle.refused("NUL");
    };
    check(&|c, text| c["process"]["args"][0] = text);
    check(&|c, text| c["process"]["args"][1] = text);
    check(&|c, text| c["process"]["cwd"] = text);
    check(&|c, text| c["process"]["env"] = json!([text]));
    check(&|c, text| c["hostname"] = text);
    check(&|c, text| c["domainname"] = text);
    check(&|c, text| c["root"]["path"] = text);
    check(&|c, text| c["mounts"][1]["destination"] = text);
    check(&|c, text| c["mounts"][1]["source"] = text);
    check(&|c, text| c["mounts"][1]["type"] = text);
    check(&|c, text| c["mounts"][1]["options"] = json!([text]));
    check(&|c, text| c["mounts"][1] = json!({ "destination": "/x", "source": text, "options": ["bind"] }));
    check(&|c, text| c["linux"]["devices"] = json!([{ "path": text, "type": "c" }]));
    check(&|c, text| c["linux"]["maskedPaths"] = json!([text]));
    check(&|c, text| c["linux"]["readonlyPaths"] = json!([text]));
    check(&|c, text| c["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": text }));
    check(&|c, text| c["linux"]["cgroupsPath"] = text);
    check(&|c, text| c["hooks"] = json!({ "poststop": [{ "path": text }] }));
    check(&|c, text| c["hooks"] = json!({ "createContainer": [{ "path": "/x", "args": [text] }] }));
    check(&|c, text| c["hooks"] = json!({ "startContainer": [{ "path": "/x", "env": [text] }] }));
    check(&|c, text| c["linux"]["namespaces"][1]["path"] = text);
}

/// More than anybody needs, of everything that there can be many of.
fn too_many() {
    let check = |change: &dyn Fn(&mut Value), expected: &str| {
        let mut bundle = Bundle::new("out no");
        change(&mut bundle.config);
        bundle.refused(expected);
    };
    let many = |one: Value, count: usize| Value::from(vec![one; count]);
    check(&|c| c["process"]["args"] = many("x".into(), 4097), "invalid process.args: more than 4096");
    check(&|c| c["process"]["env"] = many("A=1".into(), 4097), "invalid process.env: more than 4096");
    check(
        &|c| c["process"]["env"] = json!(["A=".to_owned() + &"x".repeat(128 << 10)]),
        "invalid process.env: too long",
    );
    check(&|c| c["process"]["env"] = many("x".repeat(2000).into(), 600), "invalid process.env: too long");
    check(&|c| c["process"]["user"]["additionalGids"] = many(1.into(), 65), "more than 64");
    check(&|c| c["process"]["cwd"] = ("/".to_owned() + &"x".repeat(5000)).into(), "path is too long");
    check(&|c| c["hostname"] = "x".repeat(65).into(), "is longer than 64 bytes");
    let mount = json!({ "destination": "/x", "type": "tmpfs" });
    check(&|c| c["mounts"] = many(mount.clone(), 1025), "invalid mounts: more than 1024");
    check(&|c| c["mounts"][1]["options"] = many("ro".into(), 257), "too many or too long");
    check(&|c| c["mounts"][1]["options"] = json!(["x".repeat(4097)]), "too many or too long");
    let device = json!({ "path": "/dev/x", "type": "c" });
    check(&|c| c["linux"]["devices"] = many(device.clone(), 1025), "invalid linux.devices: more than 1024");
    check(&|c| c["linux"]["maskedPaths"] = many("/x".into(), 1025), "more than 1024");
    let settings: serde_json::Map<String, Value> = (0..257).map(|n| (format!("net.x{n}"), "1".into())).collect();
    check(&|c| c["linux"]["sysctl"] = settings.clone().into(), "more than 256");
    check(&|c| c["hooks"] = json!({ "poststop": many(json!({ "path": "/x" }), 257) }), "more than 256");
    let deep = (0..40).map(|n| format!("/d{n}")).collect::<String>();
    check(&|c| c["linux"]["cgroupsPath"] = deep.clone().into(), "is too deep");
    check(&|c| c["linux"]["cgroupsPath"] = "x".repeat(256).into(), "a name that is none");
}

/// Users and groups that no namespace can have, or not this one.
fn bad_users() {
    let check = |uids: Value, gids: Value, expected: &str| {
        let mut bundle = Bundle::new("out no");
        bundle.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
        bundle.config["linux"]["uidMappings"] = uids;
        bundle.config["linux"]["gidMappings"] = gids;
        bundle.refused(expected);
    };
    let range =
        |inside: u32, outside: u32, size: u32| json!({ "containerID": inside, "hostID": outside, "size": size });
    let good = || json!([range(0, 1000, 2000)]);
    check(json!([]), good(), "a user namespace needs uidMappings and gidMappings");
    check(good(), json!([]), "a user namespace needs uidMappings and gidMappings");
    check(json!([range(0, 1000, 0)]), good(), "invalid linux.uidMappings: 0 1000 0 is no range");
    check(good(), json!([range(1, 1000, 5)]), "invalid linux.gidMappings: must map 0");
    check(json!([range(0, 1000, 5), range(4, 2000, 5)]), good(), "invalid linux.uidMappings: ranges overlap");
    check(json!([range(0, u32::MAX - 1, 5)]), good(), "is no range");
    check(json!(vec![range(0, 1000, 5); 341]), good(), "must have 1 to 340 ranges");
    check(json!([{ "containerID": -1, "hostID": 0, "size": 1 }]), good(), "invalid value: integer `-1`");
    check(json!([{ "containerID": 0, "hostID": 4294967296u64, "size": 1 }]), good(), "invalid value");
    // A user that the namespace does not have.
    let mut bundle = Bundle::new("out no");
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
    bundle.config["linux"]["uidMappings"] = good();
    bundle.config["linux"]["gidMappings"] = good();
    std::os::unix::fs::chown(bundle.rootfs(), Some(1000), Some(1000)).unwrap();
    bundle.config["process"]["user"]["uid"] = 2000.into();
    bundle.refused("assume the user: invalid argument");
    bundle.config["process"]["user"] = json!({ "uid": 0, "gid": 0 });
    // Into a namespace of others with mappings of one's own, and a mount that would be mapped on its own.
    let last = bundle.config["linux"]["namespaces"].as_array().unwrap().len() - 1;
    bundle.config["linux"]["namespaces"][last]["path"] = "/proc/self/ns/user".into();
    bundle.refused("linux.uidMappings: needs a new user namespace");
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().pop();
    bundle.config["linux"]["uidMappings"] = json!([]);
    bundle.config["linux"]["gidMappings"] = json!([]);
    bundle.config["mounts"][1]["uidMappings"] = good();
    bundle.refused("mounts.uidMappings is not supported");
}

/// Filters and limits that are none.
fn bad_rules() {
    let check = |change: &dyn Fn(&mut Value), expected: &str| {
        let mut bundle = Bundle::new("out no");
        change(&mut bundle.config);
        bundle.refused(expected);
    };
    let seccomp = |rule: Value| json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] });
    check(&|c| c["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_DANCE" }), "SCMP_ACT_DANCE");
    check(
        &|c| c["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_NOTIFY" }),
        "SCMP_ACT_NOTIFY is not supported",
    );
    let rule = json!({ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "args": [{ "index": 9, "value": 0, "op": "SCMP_CMP_EQ" }] });
    check(&|c| c["linux"]["seccomp"] = seccomp(rule.clone()), "seccomp");
    let rule = json!({ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "args": [{ "index": 0, "value": 0, "op": "SCMP_CMP_LIKE" }] });
    check(&|c| c["linux"]["seccomp"] = seccomp(rule.clone()), "SCMP_CMP_LIKE");
    check(
        &|c| c["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_MOON"] }),
        "SCMP_ARCH_MOON",
    );
    check(&|c| c["linux"]["resources"] = json!({ "memory": { "limit": "much" } }), "invalid type");
    check(&|c| c["linux"]["resources"] = json!({ "memory": { "limit": 1 } }), "memory");
    check(&|c| c["linux"]["resources"] = json!({ "pids": { "limit": 1.5 } }), "invalid type");
    check(&|c| c["linux"]["resources"] = json!({ "cpu": { "cpus": "7-3" } }), "cpu.cpus");
    check(&|c| c["linux"]["resources"] = json!({ "devices": [{ "allow": true, "access": "fly" }] }), "devices");
    check(&|c| c["linux"]["resources"] = json!({ "devices": [{ "allow": true, "type": "x" }] }), "devices");
    check(&|c| c["linux"]["resources"] = json!({ "hugepageLimits": [{ "pageSize": "3MB", "limit": 0 }] }), "3MB");
    check(&|c| c["linux"]["resources"] = json!({ "unified": { "../memory.max": "1" } }), "unified");
    check(&|c| c["linux"]["timeOffsets"] = json!({ "monotonic": { "secs": 1 } }), "needs a new time namespace");
    check(&|c| c["process"]["rlimits"] = json!([{ "type": "RLIMIT_CPU", "soft": 2, "hard": 1 }]), "soft is above hard");
    check(&|c| c["process"]["user"]["umask"] = 0o1000.into(), "is above 0777");
    check(&|c| c["process"]["apparmorProfile"] = "shoal-not-loaded".into(), "apparmor");
    check(&|c| c["process"]["capabilities"]["ambient"] = json!(["CAP_"]), "unknown capability");
    check(&|c| c["process"]["capabilities"]["effective"] = json!([7]), "invalid type");
    check(&|c| c["linux"]["devices"] = json!([{ "path": "dev/x", "type": "c" }]), "is not absolute");
    check(&|c| c["linux"]["devices"] = json!([{ "path": "/dev/..", "type": "c" }]), "the root is no device");
    check(
        &|c| c["linux"]["devices"] = json!([{ "path": "/dev/x", "type": "c", "major": 4096 }]),
        "no such number 4096:0",
    );
    check(&|c| c["linux"]["devices"] = json!([{ "path": "/dev/x", "type": "c", "minor": -1 }]), "no such number 0:-1");
    check(
        &|c| c["linux"]["devices"] = json!([{ "path": "/proc/x", "type": "c", "major": 1, "minor": 3 }]),
        "make the device /proc/x",
    );
    check(&|c| c["linux"]["maskedPaths"] = json!(["relative"]), "is not absolute");
    check(
        &|c| c["linux"]["namespaces"] = json!([{ "type": "pid" }, { "type": "pid", "path": "/proc/1/ns/pid" }]),
        "is there twice",
    );
    check(&|c| c["linux"]["sysctl"] = json!({ "net..ipv4": "1" }), "not a namespaced kernel setting");
    check(&|c| c["linux"]["sysctl"] = json!({ "net.ipv4/../../kernel/panic": "1" }), "not a namespaced kernel setting");
}

fn no_configuration() {
    let bundle = Bundle::new("out no");
    let create = ["create", "--bundle", bundle.path().to_str().unwrap(), "x"];
    bundle.fails(&create, "config.json: No such file");
    let path = bundle.path().join("config.json");
    let deep = format!("{{\"ociVersion\": \"1.2.0\", \"unknown\": {}", "[".repeat(1 << 20));
    let twice = "{\"ociVersion\": \"1.0.0\", \"ociVersion\": \"1.2.0\"}";
    let number = format!("{{\"ociVersion\": \"1.2.0\", \"process\": {{\"oomScoreAdj\": {}}}}}", "9".repeat(400));
    for (text, expected) in [
        ("", "EOF"),
        ("{", "EOF"),
        ("[]", "invalid"),
        ("{\"root\": 7}", "invalid type"),
        (deep.as_str(), "EOF while parsing a list"),
        (twice, "duplicate field `ociVersion`"),
        (number.as_str(), "number out of range"),
        ("{\"ociVersion\": \"\\ud800\"}", "hex escape"),
        ("{\"ociVersion\": \"1.2.0\"} {}", "trailing characters"),
    ] {
        fs::write(&path, text).unwrap();
        bundle.fails(&create, expected);
    }
    fs::write(&path, [b'{', b'"', 0xff, b'"', b':', b'1', b'}']).unwrap();
    bundle.fails(&create, "config.json");
    // Files that never end, or never begin.
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
    bundle.fails(&create, "is larger than");
    fs::remove_file(&path).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    bundle.fails(&create, "EOF");
    fs::remove_file(&path).unwrap();
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
