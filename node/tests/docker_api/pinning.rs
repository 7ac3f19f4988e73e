//! Services keep the image that its name stood for when they were made.

use serde_json::{Value, json};

use crate::fake::Served;
use crate::http::{get, post};

fn spec(name: &str, image: &str) -> Value {
    json!({"Name": name, "TaskTemplate": {"ContainerSpec": {"Image": image}}, "Mode": {"Replicated": {"Replicas": 1}}})
}

async fn image(served: &Served, service: &str) -> String {
    let service = get(&served.socket, &format!("/services/{service}")).await.json();
    service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"].as_str().unwrap().to_owned()
}

async fn update(served: &Served, service: &str, image: &str) -> u16 {
    let found = get(&served.socket, &format!("/services/{service}")).await.json();
    let path = format!("/services/{service}/update?version={}", found["Version"]["Index"]);
    post(&served.socket, &path, spec(service, image)).await.status
}

#[tokio::test]
async fn a_name_is_pinned_to_what_it_stands_for() {
    let served = Served::cluster().await;
    let s = &served.socket;
    let local = get(s, "/images/web:1/json").await.json()["RepoDigests"][0].as_str().unwrap().to_owned();
    let digest = local.strip_prefix("web").unwrap();
    assert_eq!(post(s, "/services/create", spec("web", "docker.io/library/web:1")).await.status, 201);
    assert_eq!(image(&served, "web").await, format!("web:1{digest}"));
    let tasks = get(s, "/tasks").await.json();
    assert_eq!(tasks[0]["Spec"]["ContainerSpec"]["Image"], format!("web:1{digest}"));

    // Another host has it, and later nobody: the service goes on with what it has.
    let (first, second) = (format!("sha256:{}", "b".repeat(64)), format!("sha256:{}", "c".repeat(64)));
    served.engine.set_elsewhere("x.example/far:latest", Some(&first));
    assert_eq!(post(s, "/services/create", spec("far", "x.example/far")).await.status, 201);
    assert_eq!(image(&served, "far").await, format!("x.example/far:latest@{first}"));
    served.engine.set_elsewhere("x.example/far:latest", None);
    assert_eq!(update(&served, "far", "x.example/far").await, 200);
    assert_eq!(image(&served, "far").await, format!("x.example/far:latest@{first}"));
    assert_eq!(update(&served, "far", &format!("x.example/far:latest@{first}")).await, 200);
    assert_eq!(update(&served, "far", "x.example/far:2").await, 404);
    // The name that is given again is looked up again.
    served.engine.set_elsewhere("x.example/far:latest", Some(&second));
    assert_eq!(update(&served, "far", "x.example/far").await, 200);
    assert_eq!(image(&served, "far").await, format!("x.example/far:latest@{second}"));
}

#[tokio::test]
async fn a_digest_is_taken_at_its_word_and_an_unknown_name_is_not() {
    let served = Served::cluster().await;
    let s = &served.socket;
    let pinned = format!("web:7@sha256:{}", "d".repeat(64));
    assert_eq!(post(s, "/services/create", spec("pinned", &pinned)).await.status, 201);
    assert_eq!(image(&served, "pinned").await, pinned);
    let unknown = post(s, "/services/create", spec("unknown", "nope:3")).await;
    assert_eq!(unknown.status, 404);
    assert!(
        unknown.message().contains("No such image: nope:3. No host of the cluster has it"),
        "{}",
        unknown.message()
    );
}
