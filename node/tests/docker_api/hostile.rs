//! Input that nobody should send.

use std::os::unix::fs::PermissionsExt;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::fake::Served;
use crate::http::{get, post, send};

#[tokio::test]
async fn versions_and_headers() {
    let served = Served::inactive().await;
    let s = &served.socket;
    let ping = send(s, "HEAD", "/_ping", None, Vec::new()).await;
    assert_eq!((ping.status, ping.body.len()), (200, 0));
    assert_eq!(ping.headers["api-version"], "1.50");
    assert_eq!(ping.headers["ostype"], "linux");
    assert_eq!(ping.headers["docker-experimental"], "false");
    assert_eq!(get(s, "/_ping").await.text(), "OK");
    for path in ["/version", "/v1.24/version", "/v1.50/version"] {
        let version = get(s, path).await.json();
        assert_eq!(version["Platform"]["Name"], "Shoal", "{path}");
        assert_eq!(version["ApiVersion"], "1.50");
        assert_eq!(version["MinAPIVersion"], "1.24");
    }
    let new = get(s, "/v9.99/version").await;
    assert_eq!(new.status, 400);
    assert_eq!(new.message(), "client version 9.99 is too new. Maximum supported API version is 1.50");
    let old = get(s, "/v1.12/version").await;
    assert_eq!(
        old.message(),
        "client version 1.12 is too old. Minimum supported API version is 1.24, please upgrade \
                               your client to a newer version"
    );
    for path in ["/v/version", "/v1/version", "/vx.y/version", "/v1.5.0/version", "/v1.50", "/v99999999999.1/info"] {
        let answer = get(s, path).await;
        assert_eq!((answer.status, answer.message()), (404, "page not found".to_owned()), "{path}");
    }
    assert_eq!(post(s, "/version", json!({})).await.status, 405);
    let mode = std::fs::metadata(s).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
}

#[tokio::test]
async fn bodies_that_are_no_json_objects() {
    let served = Served::cluster().await;
    let s = &served.socket;
    let json = Some("application/json");
    let check = async |content_type: Option<&str>, body: Vec<u8>, status: u16, text: &str| {
        let shown = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
        let answer = send(s, "POST", "/services/create", content_type, body).await;
        assert_eq!(answer.status, status, "{shown}: {}", answer.text());
        assert!(answer.message().contains(text), "{shown}: {}", answer.message());
    };
    check(json, Vec::new(), 400, "got EOF while reading request body").await;
    check(json, b"{".to_vec(), 400, "invalid JSON").await;
    check(json, b"null".to_vec(), 400, "a JSON object is needed").await;
    check(json, b" [\"web\"]".to_vec(), 400, "a JSON object is needed").await;
    check(json, b"{} {}".to_vec(), 400, "invalid JSON").await;
    check(json, b"\xff\xfe".to_vec(), 400, "invalid JSON").await;
    let deep = [br#"{"TaskTemplate": {"PluginSpec": "#.to_vec(), vec![b'['; 1 << 20]].concat();
    check(json, deep, 400, "recursion").await;
    check(json, br#"{"Name": 5}"#.to_vec(), 400, "invalid JSON").await;
    check(json, br#"{"Labels": {"a": 1e999}}"#.to_vec(), 400, "invalid JSON").await;
    check(json, vec![b' '; 5 << 20], 413, "larger than").await;
    check(Some("text/plain"), b"{}".to_vec(), 400, "unsupported Content-Type header").await;
    check(Some("application/json; charset=utf-8"), b"{}".to_vec(), 400, "image reference").await;
    check(None, b"{}".to_vec(), 400, "image reference").await;
    // A name of a megabyte is judged, not stored.
    let long = json!({"Name": "x".repeat(1 << 20), "TaskTemplate": {"ContainerSpec": {"Image": "web:1"}}});
    check(json, long.to_string().into_bytes(), 400, "").await;
    assert_eq!(get(s, "/services").await.json(), json!([]));
}

#[tokio::test]
async fn filters_and_paths_that_make_no_sense() {
    let served = Served::cluster().await;
    let s = &served.socket;
    for kind in ["services", "tasks", "nodes", "networks", "secrets", "configs", "images/json"] {
        for bad in
            ["zz", "%7B", "%7B%22zz%22%3A%5B%22a%22%5D%7D", "%5B%5D", "1", "%7B%22name%22%3A%7B%22a%22%3A3%7D%7D"]
        {
            let answer = get(s, &format!("/{kind}?filters={bad}")).await;
            assert_eq!(answer.status, 400, "{kind} {bad}: {}", answer.text());
        }
    }
    assert_eq!(get(s, "/tasks?filters=%7B%22zz%22%3A%5B%22a%22%5D%7D").await.message(), "invalid filter 'zz'");
    let state = "/tasks?filters=%7B%22desired-state%22%3A%5B%22happy%22%5D%7D";
    assert_eq!(get(s, state).await.message(), "invalid task state happy");
    for path in [
        "/services/%00",
        "/services/%FF",
        "/services/..%2F..%2Fetc",
        "/nodes/%20",
        "/images/%2F%2F/json",
        "/images//json",
        "/tasks/%E2%82%AC",
    ] {
        let status = get(s, path).await.status;
        assert!((400..500).contains(&status), "{path}: {status}");
    }
    let long = format!("/services/{}", "a".repeat(20_000));
    assert_eq!(get(s, &long).await.status, 404);
}

#[tokio::test]
async fn connections_that_are_no_http() {
    let served = Served::inactive().await;
    for garbage in [&b"\x16\x03\x01\x02\x00\x01"[..], b"GET / HTTP/9.9\r\n\r\n", b"\r\n\r\n\r\nhello\r\n\r\n", b"GET"] {
        let mut stream = UnixStream::connect(&served.socket).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
    }
    assert_eq!(get(&served.socket, "/_ping").await.status, 200);
}

#[tokio::test]
async fn a_socket_in_use_is_not_taken_and_a_dead_one_is_replaced() {
    let served = Served::inactive().await;
    let taken = node::docker_api::Listener::unix(&served.socket).await.unwrap_err();
    assert_eq!(taken.kind(), std::io::ErrorKind::AddrInUse);
    let dead = served.socket.with_file_name("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    assert!(node::docker_api::Listener::unix(&dead).await.is_ok());
}
