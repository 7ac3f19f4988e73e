//! The client against servers that this file makes: what they answer is what a broken or foreign engine would.

use std::sync::Arc;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::task::JoinSet;

use super::*;

/// An engine that answers each request by what `answer` says of its request line; `None` hangs up.
struct Engine {
    host: Host,
    _dir: tempfile::TempDir,
    _server: JoinSet<()>,
}

fn engine(answer: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Engine {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let answer = Arc::new(answer);
    let mut server = JoinSet::new();
    server.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            connections.spawn(async move {
                let mut head = Vec::new();
                while !head.windows(4).any(|w| w == b"\r\n\r\n") {
                    if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                let text = String::from_utf8_lossy(&head).into_owned();
                let line = text.lines().next().unwrap_or_default().trim_end_matches(" HTTP/1.1");
                if let Some(answer) = answer(line) {
                    let _ = stream.write_all(answer.as_bytes()).await;
                    let _ = stream.shutdown().await;
                    // What is not read would reset the connection under the answer.
                    let mut rest = Vec::new();
                    let _ = stream.read_to_end(&mut rest).await;
                }
            });
        }
    });
    Engine { host: Host::Unix(path), _dir: dir, _server: server }
}

fn http(status: &str, body: &str) -> Option<String> {
    Some(format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len()))
}

fn version() -> Option<String> {
    http("200 OK", &json!({"Platform": {"Name": "Shoal"}}).to_string())
}

#[tokio::test]
async fn answers_are_read() {
    let engine = engine(|line| match line {
        "GET /version" => version(),
        "GET /services/a%2Fb?x=1%202" => http("200 OK", "{\"ID\":\"abc\"}"),
        "POST /services/create" => http("201 Created", "{\"ID\":\"def\"}"),
        other => panic!("{other}"),
    });
    let client = Client::connect(engine.host.clone()).await.unwrap();
    let found: Value = client.get(&route(&["services", "a/b"], &[("x", "1 2")])).await.unwrap();
    assert_eq!(found["ID"], "abc");
    let created: Value = client.create("/services/create", &json!({})).await.unwrap();
    assert_eq!(created["ID"], "def");
}

#[tokio::test]
async fn nothing_but_shoal_is_driven() {
    for (body, word) in [
        (json!({"Platform": {"Name": "Docker Engine - Community"}}), "Docker Engine - Community"),
        (json!({"Platform": {"Name": ""}}), "something else"),
        (json!({}), "something else"),
    ] {
        let engine = engine(move |_| http("200 OK", &body.to_string()));
        let error = Client::connect(engine.host.clone()).await.unwrap_err();
        assert_eq!(error.code(), 2);
        assert!(error.to_string().contains(word) && error.to_string().contains("not Shoal"), "{error}");
    }
}

#[track_caller]
fn check(error: &CliError, code: u8, word: &str) {
    assert_eq!(error.code(), code, "{error}");
    assert!(error.to_string().contains(word), "{error}");
}

#[tokio::test]
async fn errors_keep_the_engines_words() {
    let engine = engine(|line| match line {
        "GET /version" => version(),
        "GET /404" => http("404 Not Found", "{\"message\":\"service web not found\"}"),
        "GET /text" => http("500 Internal Server Error", "plain trouble"),
        "GET /empty" => http("502 Bad Gateway", ""),
        "GET /503" => http("503 Service Unavailable", "{\"message\":\"This node is not a swarm manager.\"}"),
        "GET /json" => http("200 OK", "<html>"),
        _ => http("500 Internal Server Error", "{\"message\":\"the leader is gone\",\"kind\":\"outcome-unknown\"}"),
    });
    let client = Client::connect(engine.host.clone()).await.unwrap();
    let get = async |path: &str| client.get::<Value>(path).await.unwrap_err();
    check(&get("/404").await, 2, "service web not found");
    check(&get("/text").await, 1, "plain trouble");
    check(&get("/empty").await, 1, "502");
    check(&get("/503").await, 3, "not a swarm manager");
    check(&get("/json").await, 1, "bad JSON");
    check(&client.post_empty("/write").await.unwrap_err(), 4, "the leader is gone");
}

#[tokio::test]
async fn a_lost_connection_leaves_the_outcome_of_a_write_open() {
    let engine = engine(|line| if line == "GET /version" { version() } else { None });
    let client = Client::connect(engine.host.clone()).await.unwrap();
    check(&client.get::<Value>("/nodes").await.unwrap_err(), 3, "/nodes");
    check(&client.post("/services/create", &json!({})).await.unwrap_err(), 4, "/services/create");
    check(&client.delete("/services/web").await.unwrap_err(), 4, "DELETE");
}

#[tokio::test]
async fn a_cut_answer_is_no_answer() {
    let engine = engine(|line| match line {
        "GET /version" => version(),
        _ => Some("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"ID\"".to_owned()),
    });
    let client = Client::connect(engine.host.clone()).await.unwrap();
    check(&client.get::<Value>("/nodes").await.unwrap_err(), 3, "cut off");
    check(&client.post_empty("/swarm/leave").await.unwrap_err(), 4, "cut off");
}

#[tokio::test]
async fn nobody_there() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::Unix(dir.path().join("nobody"));
    check(&Client::connect(host.clone()).await.unwrap_err(), 3, &host.to_string());
}

#[tokio::test]
async fn archives_are_sent_as_they_are_read() {
    let engine = engine(|line| match line {
        "GET /version" => version(),
        "POST /images/load" => http("200 OK", "{\"stream\":\"Loaded image: web:1\\n\"}\r\n"),
        other => panic!("{other}"),
    });
    let client = Client::connect(engine.host.clone()).await.unwrap();
    let pieces = (0..64).map(|_| Ok(Bytes::from_static(&[7; 1024])));
    let mut answer = client.upload("/images/load", futures_util::stream::iter(pieces)).await.unwrap();
    let mut text = Vec::new();
    while let Some(piece) = answer.next().await.unwrap() {
        text.extend_from_slice(&piece);
    }
    assert_eq!(text, b"{\"stream\":\"Loaded image: web:1\\n\"}\r\n");
}

#[test]
fn paths_are_escaped() {
    assert_eq!(route(&["images", "a/b:1@x", "json"], &[]), "/images/a%2Fb%3A1%40x/json");
    assert_eq!(
        route(&["tasks"], &[("filters", "{\"a\":[\"b c\"]}")]),
        "/tasks?filters=%7B%22a%22%3A%5B%22b%20c%22%5D%7D"
    );
    assert_eq!(route(&["nodes", "..\r\n"], &[]), "/nodes/..%0D%0A");
}
