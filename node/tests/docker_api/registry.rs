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
    assert_eq!(bad.status, 401, "it is nobody's: {}", bad.text());
    let bad = crate::http::send_with(s, "POST", &format!("/images/{addr}/web/push?tag=1"), "%%%").await;
    assert_eq!(bad.status, 400, "{}", bad.text());
    // As clients write it that are not written in Go.
    let auth = json!({"Username": "ann", "Password": "secret", "Auth": null, "Email": null, "ServerAddress": addr});
    assert_eq!(post(s, "/auth", auth).await.json()["Status"], "Login Succeeded");
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

/// What the cluster keeps is used for whoever sends nothing, and shown to nobody.
#[tokio::test]
async fn the_cluster_keeps_credentials() {
    let inactive = Served::inactive().await;
    let nowhere = json!({"username": "ann", "password": "secret", "serveraddress": "127.0.0.1:1"});
    assert_eq!(post(&inactive.socket, "/shoal/v1/registries", nowhere.clone()).await.status, 503);
    let served = Served::cluster().await;
    let s = &served.socket;
    assert_eq!(post(s, "/shoal/v1/registries", json!({"serveraddress": "r.example"})).await.status, 400);
    let odd = json!({"username": "ann", "password": "secret", "serveraddress": "a b"});
    assert_eq!(post(s, "/shoal/v1/registries", odd).await.status, 400);

    let Some(registry) = Registry::start() else { return };
    served.engine.trust_registry(&registry.addr);
    let addr = &registry.addr;
    let auth = |password: &str| json!({"username": "ann", "password": password, "serveraddress": format!("http://{addr}/v2/")});
    assert_eq!(post(s, "/shoal/v1/registries", auth("guess")).await.status, 401);
    assert_eq!(get(s, "/shoal/v1/registries").await.json(), json!([]), "what its registry refuses is not kept");
    let kept = post(s, "/shoal/v1/registries", auth("secret")).await;
    assert_eq!((kept.status, &kept.json()["Registry"]), (200, &json!(addr)));
    let list = get(s, "/shoal/v1/registries").await.json();
    assert_eq!(list.as_array().unwrap().len(), 1);
    let shown = ["Registry", "Username", "Kind"].map(|key| list[0][key].as_str().unwrap().to_owned());
    assert_eq!(shown, [addr.as_str(), "ann", "password"]);
    assert!(!list.to_string().contains("secret"), "{list}");

    served.engine.import(&format!("{addr}/web:1"));
    let pushed = send(s, "POST", &format!("/images/{addr}/web/push?tag=1"), None, Vec::new()).await.text();
    assert!(lines(&pushed).last().unwrap()["aux"]["Digest"].is_string(), "{pushed}");
    assert_eq!(delete(s, &format!("/images/{addr}/web:1")).await.status, 200);
    let create = format!("/images/create?fromImage={addr}/web&tag=1");
    let wrong = crate::http::base64url(r#"{"username":"ann","password":"guess"}"#);
    assert_eq!(crate::http::send_with(s, "POST", &create, &wrong).await.status, 401, "what is sent comes first");
    // As Docker's command line sends for who has not logged in.
    let pulled = send_as(s, create.clone(), "e30=".to_owned()).await;
    assert!(pulled.contains("Downloaded newer image"), "{pulled}");
    assert_eq!(get(s, &format!("/distribution/{addr}/web:1/json")).await.status, 200);

    let gone = format!("/shoal/v1/registries/{addr}");
    assert_eq!(delete(s, &gone).await.status, 204);
    assert_eq!(delete(s, &gone).await.status, 404);
    assert_eq!(get(s, &format!("/distribution/{addr}/web:1/json")).await.status, 401);
}

/// Not even in what the API says of the whole store, or where a value is printed.
#[tokio::test]
async fn the_clusters_credentials_are_hidden() {
    let served = Served::cluster().await;
    let header = crate::http::base64url(r#"{"username":"ann","password":"secret"}"#);
    let auth = deploy::model::RegistryAuth { header: header.clone() };
    let set = deploy::control::SetRegistry { id: deploy::model::RegistryId::new("r.example"), auth };
    let op = deploy::control::Op::SetRegistry(set);
    assert!(!format!("{op:?}").contains(&header));
    node::engine::Engine::control(&served.engine, op.into()).await.unwrap();
    assert!(!format!("{:?}", served.engine.snapshot()).contains(&header));
    let store = get(&served.socket, "/shoal/v1/store?objects=1").await.json();
    use base64::Engine as _;
    let objects = store["Objects"].as_str().unwrap();
    let bytes = base64::engine::general_purpose::STANDARD.decode(objects).unwrap();
    let store = deploy::store::Store::decode_snapshot(&bytes).unwrap();
    assert_eq!(
        store.registries().map(|r| (r.id.to_string(), r.auth.header.clone())).collect::<Vec<_>>(),
        [("r.example".to_owned(), String::new())]
    );
}
