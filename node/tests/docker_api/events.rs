//! `/events` over a real runtime.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http_body_util::BodyExt;
use hyper::body::Incoming;
use node::engine::Engine;
use runtime::{EventKind, VolumeSpec};
use serde_json::{Value, json};

use crate::containers::{Hijacked, Host, PATIENCE, ask_exec};
use crate::fake::Served;
use crate::http::{delete, filters, get, open, post};

/// The lines of an answer that goes on.
struct Lines {
    body: Incoming,
    read: Vec<u8>,
}

impl Lines {
    async fn open(host: &Host, query: &str) -> Lines {
        let answer = open(host.socket(), "GET", &format!("/events?{query}"), None, Vec::new()).await;
        assert_eq!(answer.status().as_u16(), 200);
        assert_eq!(answer.headers()["content-type"], "application/json");
        Lines { body: answer.into_body(), read: Vec::new() }
    }

    /// The next event; `Ok(None)` at the proper end, and an error where the connection was broken off.
    async fn next(&mut self) -> Result<Option<Value>, hyper::Error> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return Ok(Some(serde_json::from_slice(&line).unwrap()));
            }
            let frame = tokio::time::timeout(PATIENCE, self.body.frame()).await.expect("an event");
            let Some(frame) = frame.transpose()? else { return Ok(None) };
            self.read.extend_from_slice(&frame.into_data().unwrap());
        }
    }

    /// Actions up to this one, with what is of interest in them.
    async fn until(&mut self, last: &str) -> Vec<String> {
        let mut seen = Vec::new();
        loop {
            let event = self.next().await.unwrap().unwrap_or_else(|| panic!("{last} after {seen:?}"));
            let mut text = event["Action"].as_str().unwrap().to_owned();
            for key in ["signal", "exitCode"] {
                if let Some(value) = event["Actor"]["Attributes"][key].as_str() {
                    text = format!("{text} {key}={value}");
                }
            }
            let over = text.starts_with(last);
            seen.push(text);
            if over {
                return seen;
            }
        }
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_life_of_a_container_is_told() {
    let Some(host) = Host::new().await else { return };
    let s = host.socket();
    let mut all = Lines::open(&host, "").await;
    let mut deaths =
        Lines::open(&host, &filters(json!({"type": ["container"], "event": ["die"], "container": ["web.2"]}))).await;
    let first = host.start(1, "trap 'exit 3' TERM; while :; do sleep 0.05; done", |_| {}).await;
    let exec = ask_exec(&host, &first, json!({"Cmd": ["sh", "-c", "exit 5"], "AttachStdout": true})).await;
    Hijacked::open(s, &format!("/exec/{exec}/start"), "{}").await.frames().await;
    assert_eq!(
        all.until("exec_die").await,
        ["create", "start", "exec_create: sh -c exit 5", "exec_start: sh -c exit 5", "exec_die exitCode=5"]
    );
    for verb in ["pause", "unpause", "stop?t=20"] {
        assert_eq!(post(s, &format!("/containers/{first}/{verb}"), json!({})).await.status, 204);
    }
    assert_eq!(all.until("stop").await, ["pause", "unpause", "kill signal=15", "die exitCode=3", "stop"]);
    host.runtime.delete(&first).await.unwrap();
    assert_eq!(all.until("destroy").await, ["destroy"]);
    // Killed without a word, and the event as a whole.
    let second = host.start(2, "exec sleep 1000", |_| {}).await;
    assert_eq!(post(s, &format!("/containers/{second}/kill"), json!({})).await.status, 204);
    assert_eq!(all.until("die").await, ["create", "start", "kill signal=9", "die exitCode=137"]);
    let died = deaths.next().await.unwrap().unwrap();
    assert_eq!((&died["Type"], &died["Action"], &died["scope"]), (&json!("container"), &json!("die"), &json!("local")));
    assert_eq!((&died["id"], &died["Actor"]["ID"], &died["status"]), (&json!(second), &json!(second), &json!("die")));
    let attributes = &died["Actor"]["Attributes"];
    assert_eq!((&attributes["name"], &attributes["exitCode"]), (&json!("web.2.task2"), &json!("137")));
    assert_eq!(attributes["com.docker.swarm.service.name"], "web");
    let at = died["timeNano"].as_u64().unwrap();
    assert_eq!(died["time"], at / 1_000_000_000);
    // The past, up to now; and only from the death on.
    let past = get(s, &format!("/events?since=0&until={}", now() + 1)).await;
    assert_eq!(past.text().lines().count(), 15, "{}", past.text());
    let from = format!("since={}.{:09}&until={}", at / 1_000_000_000, at % 1_000_000_000, now() + 1);
    assert_eq!(get(s, &format!("/events?{from}")).await.text().lines().count(), 1);
    assert_eq!(get(s, "/events?since=0&until=1").await.text(), "");
    for bad in ["since=x", "since=5&until=4", "filters=%7B%22zz%22%3A%5B%22a%22%5D%7D"] {
        assert_eq!(get(s, &format!("/events?{bad}")).await.status, 400, "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_cannot_run_has_died() {
    let Some(host) = Host::new().await else { return };
    let mut all = Lines::open(&host, "").await;
    let config = runtime::ContainerConfig {
        id: "e".repeat(64),
        layers: vec![host.layer.clone()],
        args: vec!["/nothing".to_owned()],
        ..runtime::ContainerConfig::default()
    };
    host.runtime.create(config.clone()).await.unwrap();
    assert!(host.runtime.start(&config.id).await.is_err());
    assert_eq!(all.until("die").await, ["create", "die exitCode=127"]);
    host.runtime.delete(&config.id).await.unwrap();
    // What is taken away before it was started has not died.
    host.runtime.create(config.clone()).await.unwrap();
    host.runtime.delete(&config.id).await.unwrap();
    all.until("destroy").await;
    assert_eq!(all.until("destroy").await, ["create", "destroy"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn images_and_volumes_are_told() {
    let Some(host) = Host::new().await else { return };
    let s = host.socket();
    host.served.engine.images().tell_to(host.runtime.events());
    let mut all = Lines::open(&host, "").await;
    let id = host.served.engine.import("web:1");
    assert_eq!(post(s, "/images/web:1/tag?repo=again&tag=2", json!({})).await.status, 201);
    assert_eq!(delete(s, "/images/again:2").await.status, 200);
    assert_eq!(get(s, "/images/web:1/get").await.status, 200);
    assert_eq!(delete(s, "/images/web:1").await.status, 200);
    let mut seen = Vec::new();
    while seen.len() < 6 {
        let event = all.next().await.unwrap().unwrap();
        assert_eq!((&event["Type"], &event["Actor"]["ID"]), (&json!("image"), &json!(id)));
        let name = event["Actor"]["Attributes"]["name"].as_str().unwrap().to_owned();
        seen.push((event["Action"].as_str().unwrap().to_owned(), if name == id { "its id".to_owned() } else { name }));
    }
    let expected = [
        ("import", "web:1"),
        ("tag", "again:2"),
        ("untag", "its id"),
        ("save", "its id"),
        ("untag", "its id"),
        ("delete", "its id"),
    ];
    assert_eq!(seen, expected.map(|(action, name)| (action.to_owned(), name.to_owned())));
    let volumes = host.runtime.volumes();
    let spec = VolumeSpec { name: "data".to_owned(), ..VolumeSpec::default() };
    // The second time it is there.
    for _ in 0..2 {
        volumes.create(spec.clone()).unwrap();
    }
    let id = host
        .start(1, "true", |config| {
            config.mounts.push(runtime::Mount {
                target: "/data".into(),
                readonly: false,
                kind: runtime::MountKind::Volume(runtime::VolumeMount {
                    name: "data".to_owned(),
                    ..runtime::VolumeMount::default()
                }),
            });
        })
        .await;
    host.runtime.wait(&id).await.unwrap();
    host.runtime.delete(&id).await.unwrap();
    volumes.remove("data").unwrap();
    let mut of_volume = Lines::open(&host, &format!("since=0&{}", filters(json!({"volume": ["data"]})))).await;
    assert_eq!(of_volume.until("destroy").await, ["create", "mount", "unmount", "destroy"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_too_slowly_is_told_so_and_cut_off() {
    let Some(host) = Host::new().await else { return };
    let events = host.runtime.events();
    let mut slow = Lines::open(&host, "").await;
    let labels = Arc::new(BTreeMap::from([("long".to_owned(), "x".repeat(16 << 10))]));
    // More than sockets and servers hold, so that it is overtaken for certain.
    for number in 0..4000 {
        events.tell(EventKind::Volume, "create", number.to_string(), &labels, Vec::new());
    }
    let mut before = None::<u64>;
    let last = loop {
        let event = slow.next().await.expect("it is told first").expect("no proper end");
        if event["Type"] == "daemon" {
            break event;
        }
        let number: u64 = event["Actor"]["ID"].as_str().unwrap().parse().unwrap();
        assert_eq!(number, before.map_or(0, |before| before + 1), "without a gap until then");
        before = Some(number);
    };
    assert_eq!(last["Action"], "overrun");
    let lost: u64 = last["Actor"]["Attributes"]["lost"].as_str().unwrap().parse().unwrap();
    let seen = before.map_or(0, |before| before + 1);
    assert!(lost > 0 && seen + lost < 4000, "{last} after {before:?}");
    assert!(slow.next().await.is_err(), "a broken connection, not an end");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_containers_nothing_happens_and_the_answer_begins_all_the_same() {
    let served = Served::inactive().await;
    let answer =
        tokio::time::timeout(PATIENCE, open(&served.socket, "GET", "/events", None, Vec::new())).await.unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    let mut body = answer.into_body();
    assert!(tokio::time::timeout(Duration::from_millis(50), body.frame()).await.is_err());
}
