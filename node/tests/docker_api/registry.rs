//! Registries behind the API: pull, push, login, and what a registry knows; with Debian's `docker-registry` and Docker's
//! own command line where they are installed.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::fake::Served;
use crate::http::{delete, get, post, send};

/// `ann` with the password `secret`, as `htpasswd -B` writes it.
const HTPASSWD: &str = "ann:$2y$05$52AT..VU5CdOGWp/ZskRau9TUlH26usvbmZDx1UM0B0ytSTrpOrRu\n";

/// A registry that wants a password.
struct Registry {
    process: Child,
    addr: String,
    _dir: tempfile::TempDir,
}

impl Registry {
    fn start() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        std::fs::write(path.join("htpasswd"), HTPASSWD).unwrap();
        let config = format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {0}/data\nhttp:\n  addr: \
             127.0.0.1:0\nauth:\n  htpasswd:\n    realm: test\n    path: {0}/htpasswd\n",
            path.display()
        );
        std::fs::write(path.join("config.yml"), config).unwrap();
        let spawned = Command::new("docker-registry")
            .arg("serve")
            .arg(path.join("config.yml"))
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let Ok(mut process) = spawned else {
            println!("skipped: docker-registry is not installed");
            return None;
        };
        let mut log = BufReader::new(process.stderr.take().unwrap());
        loop {
            let mut line = String::new();
            assert!(log.read_line(&mut line).unwrap() > 0, "docker-registry has ended");
            if let Some((_, rest)) = line.split_once("listening on ") {
                let addr = rest.split(['"', ' ']).next().unwrap().to_owned();
                // Somebody has to read what else it says.
                std::thread::spawn(move || for _ in log.lines() {});
                return Some(Self { process, addr, _dir: dir });
            }
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The lines of a progress stream.
fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn there_and_back() {
    let Some(registry) = Registry::start() else { return };
    let served = Served::inactive().await;
    served.engine.trust_registry(&registry.addr);
    let (s, addr) = (&served.socket, &registry.addr);
    let auth = json!({"username": "ann", "password": "secret", "serveraddress": addr});
    assert_eq!(post(s, "/auth", auth.clone()).await.json()["Status"], "Login Succeeded");
    let wrong = json!({"username": "ann", "password": "guess", "serveraddress": addr});
    assert_eq!(post(s, "/auth", wrong).await.status, 401);

    served.engine.import(&format!("{addr}/web:1"));
    let id = get(s, &format!("/images/{addr}/web:1/json")).await.json()["Id"].clone();
    let refused = send(s, "POST", &format!("/images/{addr}/web/push?tag=1"), None, Vec::new()).await;
    assert_eq!(refused.status, 200, "it has begun: {}", refused.text());
    assert!(lines(&refused.text()).last().unwrap()["error"].as_str().unwrap().contains("unauthorized"));
    let header = crate::http::base64url(&auth.to_string());
    let with = |path: String| send_as(s, path, header.clone());
    let pushed = with(format!("/images/{addr}/web/push?tag=1")).await;
    let said = lines(&pushed);
    assert_eq!(said[0]["status"], format!("The push refers to repository [{addr}/web]"));
    let digest = said.last().unwrap()["aux"]["Digest"].as_str().unwrap().to_owned();
    assert!(said.iter().any(|line| line["status"] == "Pushed"), "{pushed}");

    assert_eq!(delete(s, &format!("/images/{addr}/web:1")).await.status, 200);
    let missing = send(s, "POST", &format!("/images/create?fromImage={addr}/web&tag=1"), None, Vec::new()).await;
    assert_eq!(missing.status, 401, "{}", missing.text());
    let pulled = with(format!("/images/create?fromImage={addr}/web&tag=1")).await;
    let said = lines(&pulled);
    assert_eq!((&said[0]["status"], &said[0]["id"]), (&json!("Pulling from web"), &json!("1")));
    assert!(said.iter().any(|line| line["status"] == "Pull complete"), "{pulled}");
    assert!(said.iter().any(|line| line["status"] == format!("Digest: {digest}")), "{pulled}");
    assert_eq!(get(s, &format!("/images/{addr}/web:1/json")).await.json()["Id"], id);
    let again = with(format!("/images/create?fromImage={addr}/web&tag=1")).await;
    assert!(again.contains("Image is up to date"), "{again}");

    let known = crate::http::send_with(s, "GET", &format!("/distribution/{addr}/web:1/json"), &header).await;
    assert_eq!(known.json()["Descriptor"]["digest"], digest);
    assert_eq!(known.json()["Platforms"][0]["os"], "linux");
    assert_eq!(get(s, &format!("/distribution/{addr}/web:1/json")).await.status, 401);
    let unknown = crate::http::send_with(s, "GET", &format!("/distribution/{addr}/web:2/json"), &header).await;
    assert_eq!(unknown.status, 404, "{}", unknown.text());
    let bad = crate::http::send_with(s, "POST", &format!("/images/create?fromImage={addr}/web&tag=1"), "%%%").await;
    assert_eq!(bad.status, 400, "{}", bad.text());
}

async fn send_as(socket: &std::path::Path, path: String, header: String) -> String {
    let answer = crate::http::send_with(socket, "POST", &path, &header).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.text()
}

/// A service keeps what it was sent, does not show it, and goes on with it when nothing else is sent.
#[tokio::test]
async fn services_keep_credentials() {
    let served = Served::cluster().await;
    let s = &served.socket;
    let header = crate::http::base64url(r#"{"username":"ann","password":"secret"}"#);
    let spec = json!({"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "web:1"}}});
    let created = crate::http::post_with(s, "/services/create", &spec, Some(&header)).await;
    assert_eq!(created.status, 201, "{}", created.text());
    let id = created.json()["ID"].as_str().unwrap().to_owned();
    let kept = || {
        let store = served.engine.snapshot();
        let service = store.services().next().unwrap().clone();
        let auth = |spec: &deploy::model::ServiceSpec| {
            let header = spec.task.container.registry_auth.clone()?.header;
            match runtime::image::registry::Credentials::from_header(&header).unwrap() {
                runtime::image::registry::Credentials::Basic { username, .. } => Some(username),
                other => panic!("{other:?}"),
            }
        };
        (auth(&service.spec), service.previous_spec.as_ref().and_then(auth))
    };
    assert_eq!(kept().0.as_deref(), Some("ann"));
    let shown = get(s, &format!("/services/{id}")).await;
    assert!(!shown.text().contains("ann") && !shown.text().contains(&header), "{}", shown.text());
    let bare = served.engine.snapshot().without_secrets();
    assert!(bare.services().all(|service| service.spec.task.container.registry_auth.is_none()));
    assert!(!format!("{:?}", served.engine.snapshot().services().next().unwrap().spec).contains(&header));

    let version = |answer: Value| answer["Version"]["Index"].as_u64().unwrap();
    let other = crate::http::base64url(r#"{"username":"bob","password":"secret"}"#);
    for (sent, from, expected) in [
        (None, "", Some("ann")),
        (Some(&other), "", Some("bob")),
        (None, "&registryAuthFrom=previous-spec", Some("ann")),
    ] {
        let version = version(get(s, &format!("/services/{id}")).await.json());
        let path = format!("/services/{id}/update?version={version}{from}");
        let updated = crate::http::post_with(s, &path, &spec, sent.map(String::as_str)).await;
        assert_eq!(updated.status, 200, "{}", updated.text());
        assert_eq!(kept().0.as_deref(), expected, "{from}");
    }
    let version = version(get(s, &format!("/services/{id}")).await.json());
    let path = format!("/services/{id}/update?version={version}&registryAuthFrom=thin-air");
    assert_eq!(crate::http::post_with(s, &path, &spec, None).await.status, 400);
}
