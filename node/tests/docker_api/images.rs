//! Images: load, import, list, inspect, history, tag, remove.

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::fake::Served;
use crate::http::{delete, filters, get, post, send};

/// A tar archive with these files.
pub(crate) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, data) in files {
        let mut header = [0u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..107].copy_from_slice(b"0000755");
        header[108..115].copy_from_slice(b"0000000");
        header[116..123].copy_from_slice(b"0000000");
        header[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
        header[136..147].copy_from_slice(b"00000000000");
        header[148..156].copy_from_slice(b"        ");
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(data);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// What `docker save` writes for an image of one layer.
pub(crate) fn saved(name: &str) -> Vec<u8> {
    let layer = tar(&[("bin/app", b"#!/bin/sh\n")]);
    let config = json!({
        "architecture": "amd64", "os": "linux", "created": "2026-01-02T03:04:05Z",
        "config": {"Cmd": ["/bin/app"], "Env": ["X=y"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex(&layer))]},
        "history": [{"created": "2026-01-02T03:04:05Z", "created_by": "COPY app"},
                    {"created": "2026-01-02T03:04:05Z", "created_by": "CMD", "empty_layer": true}],
    })
    .to_string();
    let config_name = format!("{}.json", hex(config.as_bytes()));
    let manifest = json!([{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]).to_string();
    tar(&[("layer.tar", &layer), (&config_name, config.as_bytes()), ("manifest.json", manifest.as_bytes())])
}

#[tokio::test]
async fn load_list_inspect_tag_remove() {
    let served = Served::inactive().await;
    let s = &served.socket;
    let loaded = send(s, "POST", "/v1.50/images/load?quiet=1", Some("application/x-tar"), saved("app:1")).await;
    assert_eq!((loaded.status, loaded.json()), (200, json!({"stream": "Loaded image: app:1\n"})));
    assert_eq!(loaded.headers["content-type"], "application/json");
    let list = get(s, "/v1.50/images/json").await.json();
    assert_eq!(list[0]["RepoTags"], json!(["app:1"]));
    assert!(list[0].get("VirtualSize").is_none());
    assert!(get(s, "/v1.41/images/json").await.json()[0].get("VirtualSize").is_some());
    let inspected = get(s, "/images/docker.io/library/app:1/json").await.json();
    assert_eq!(inspected["Id"], list[0]["Id"]);
    assert_eq!(inspected["Config"]["Cmd"], json!(["/bin/app"]));
    assert_eq!(inspected["RootFS"]["Layers"].as_array().unwrap().len(), 1);
    let history = get(s, "/images/app:1/history").await.json();
    assert_eq!(history.as_array().unwrap().len(), 2);
    assert_eq!(history[0]["CreatedBy"], "CMD");
    assert_eq!((history[0]["Size"].as_u64(), history[1]["Size"].as_u64()), (Some(0), Some(10)));

    let tag = send(s, "POST", "/images/app:1/tag?repo=quay.io%2Fa%2Fapp&tag=2", None, Vec::new()).await;
    assert_eq!(tag.status, 201, "{}", tag.text());
    for (pattern, found) in [("app", 1), ("quay.io/*/app", 1), ("nope", 0), ("app:*", 1)] {
        let list = get(s, &format!("/images/json?{}", filters(json!({"reference": {pattern: true}})))).await.json();
        assert_eq!(list.as_array().unwrap().len(), found, "{pattern}");
    }
    served.engine.set_in_use(vec![list[0]["Id"].as_str().unwrap().to_owned()]);
    assert_eq!(delete(s, "/images/quay.io/a/app:2").await.json(), json!([{"Untagged": "quay.io/a/app:2"}]));
    assert_eq!(delete(s, "/images/app:1").await.status, 409);
    served.engine.set_in_use(Vec::new());
    let removed = delete(s, "/images/app:1").await.json();
    assert_eq!(removed, json!([{"Untagged": "app:1"}, {"Deleted": list[0]["Id"]}]));
    let gone = get(s, "/images/app:1/json").await;
    assert_eq!(gone.status, 404);
    assert!(gone.message().contains("No such image: app:1"), "{}", gone.message());
}

#[tokio::test]
async fn saved_images_are_the_same_when_they_are_loaded() {
    let served = Served::inactive().await;
    let s = &served.socket;
    send(s, "POST", "/images/load", Some("application/x-tar"), saved("app:1")).await;
    send(s, "POST", "/images/app:1/tag?repo=app&tag=2", None, Vec::new()).await;
    served.engine.import("web:1");
    let archive = get(s, "/images/get?names=app&names=web:1").await;
    assert_eq!((archive.status, &archive.headers["content-type"]), (200, &"application/x-tar".parse().unwrap()));
    let one = get(s, "/v1.50/images/docker.io/library/web:1/get").await;
    assert_eq!(one.status, 200);

    let other = Served::inactive().await;
    let loaded = send(&other.socket, "POST", "/images/load", Some("application/x-tar"), archive.body.to_vec()).await;
    assert_eq!(loaded.status, 200, "{}", loaded.text());
    for name in ["app:1", "app:2", "web:1"] {
        let path = format!("/images/{name}/json");
        let (here, there) = (get(s, &path).await.json(), get(&other.socket, &path).await.json());
        assert_eq!((&here["Id"], &here["RepoDigests"]), (&there["Id"], &there["RepoDigests"]), "{name}");
    }
    let again = get(&other.socket, "/images/get?names=app&names=web:1").await;
    assert_eq!(again.body, archive.body, "the same images are the same archive");
    for (path, status) in [("/images/get", 400), ("/images/get?names=nope", 404), ("/images/nope:1/get", 404)] {
        assert_eq!(get(s, path).await.status, status, "{path}");
    }
}

#[tokio::test]
async fn prune_takes_what_nothing_uses() {
    let served = Served::inactive().await;
    let s = &served.socket;
    let used = served.engine.import("used:1");
    send(s, "POST", "/images/load", Some("application/x-tar"), saved("app:1")).await;
    let dangling = get(s, "/images/app:1/json").await.json()["Id"].as_str().unwrap().to_owned();
    send(s, "POST", &format!("/images/{used}/tag?repo=app&tag=1"), None, Vec::new()).await;
    served.engine.set_in_use(vec![used.clone()]);
    let prune = async |filter: serde_json::Value| {
        let answer = post(s, &format!("/images/prune?{}", filters(filter)), json!(null)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    };
    let list = async |filter: serde_json::Value| {
        let list = get(s, &format!("/images/json?{}", filters(filter))).await;
        assert_eq!(list.status, 200, "{}", list.text());
        list.json().as_array().unwrap().len()
    };
    assert_eq!(list(json!({"dangling": ["true"]})).await, 1);
    assert_eq!(list(json!({"before": ["used:1"]})).await + list(json!({"since": ["used:1"]})).await, 1);
    assert_eq!(list(json!({"until": ["2000-01-01T00:00:00Z"], "dangling": ["true"]})).await, 0);
    assert_eq!(prune(json!({"label": ["nope"]})).await, json!({"ImagesDeleted": null, "SpaceReclaimed": 0}));
    assert_eq!(prune(json!({"until": ["2000-01-01T00:00:00Z"]})).await["ImagesDeleted"], json!(null));
    assert_eq!(prune(json!({})).await, json!({"ImagesDeleted": [{"Deleted": dangling}], "SpaceReclaimed": 10}));
    assert_eq!(prune(json!({"dangling": ["false"]})).await["ImagesDeleted"], json!(null));
    served.engine.set_in_use(Vec::new());
    let all = prune(json!({"dangling": ["false"], "label": ["k=v"], "label!": ["z"]})).await;
    assert_eq!(all["ImagesDeleted"], json!([{"Untagged": "app:1"}, {"Untagged": "used:1"}, {"Deleted": used}]));
    assert_eq!(get(s, "/images/json").await.json(), json!([]));
    for bad in [json!({"until": ["x"]}), json!({"zz": ["x"]}), json!({"until": ["1h", "2h"]})] {
        assert_eq!(post(s, &format!("/images/prune?{}", filters(bad)), json!(null)).await.status, 400);
    }
}

#[tokio::test]
async fn import_a_root_file_system() {
    let served = Served::inactive().await;
    let s = &served.socket;
    let path = "/images/create?fromSrc=-&repo=docker.io%2Flibrary%2Froot&tag=7&message=hey&changes=CMD%20%5B%22x%22%5D&\
                changes=ENV%20A%3Db";
    let root = tar(&[("etc/x", b"1")]);
    let imported = send(s, "POST", path, Some("application/x-tar"), root.clone()).await;
    assert_eq!(imported.status, 200, "{}", imported.text());
    assert!(imported.json()["status"].as_str().unwrap().starts_with("sha256:"));
    let image = get(s, "/images/root:7/json").await.json();
    assert_eq!((image["Comment"].as_str(), image["Config"]["Cmd"][0].as_str()), (Some("hey"), Some("x")));
    assert_eq!(image["Config"]["Env"], json!(["A=b"]));
    for (query, status) in [
        ("fromImage=busybox", 501),
        ("fromSrc=http%3A%2F%2Fx", 501),
        ("fromSrc=-&platform=linux%2Farm64", 501),
        ("", 400),
        ("fromSrc=-&repo=UPPER", 400),
        ("fromSrc=-&changes=RUN%20x", 400),
    ] {
        let answer = send(s, "POST", &format!("/images/create?{query}"), None, root.clone()).await;
        assert_eq!(answer.status, status, "{query}: {}", answer.text());
        assert!(!answer.message().is_empty(), "{query}");
    }
}

#[tokio::test]
async fn bad_archives_leave_nothing_behind() {
    let served = Served::inactive().await;
    let s = &served.socket;
    let good = saved("app:1");
    let escape = tar(&[("../../etc/passwd", b"x")]);
    // The name of the configuration says another digest than its content has, then the layer's does.
    let lies = |from: &[u8], to: &[u8]| {
        let mut bytes = good.clone();
        let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
        bytes[at..at + to.len()].copy_from_slice(to);
        bytes
    };
    let cases = [
        ("truncated", good[..good.len() / 2].to_vec()),
        ("empty", Vec::new()),
        ("noise", vec![0x5A; 100_000]),
        ("path traversal", escape.clone()),
        ("another layer", lies(b"#!/bin/sh", b"#!/bin/no")),
    ];
    for (what, archive) in cases {
        let answer = send(s, "POST", "/images/load", Some("application/x-tar"), archive).await;
        assert_eq!(answer.status, 400, "{what}: {}", answer.text());
        assert!(!answer.message().is_empty(), "{what}");
    }
    let answer = send(s, "POST", "/images/create?fromSrc=-&repo=x", None, escape).await;
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert_eq!(get(s, "/images/json").await.json(), json!([]));
}

#[tokio::test]
async fn what_is_not_built_says_so() {
    let served = Served::inactive().await;
    let s = &served.socket;
    for path in ["/images/search?term=x", "/containers/x/attach/ws"] {
        let answer = get(s, path).await;
        assert_eq!(answer.status, 501, "{path}: {}", answer.text());
        assert!(answer.message().contains("Shoal"), "{path}");
    }
    for path in ["/images/x/push", "/build"] {
        assert_eq!(post(s, path, json!({})).await.status, 501, "{path}");
    }
    for (path, text) in [
        ("/containers/x/json", "No such container: x"),
        ("/containers/x/changes", "No such container: x"),
        ("/containers/x/logs?stdout=1", "No such container: x"),
        ("/exec/x/json", "No such exec instance: x"),
        ("/volumes/x", "get x: no such volume"),
        ("/plugins/x/json", "plugin \"x\" not found"),
        ("/images/x/json", "No such image: x:latest"),
        ("/nope", "page not found"),
    ] {
        let answer = get(s, path).await;
        assert_eq!(answer.status, 404, "{path}");
        assert!(answer.message().contains(text), "{path}: {}", answer.message());
    }
}
