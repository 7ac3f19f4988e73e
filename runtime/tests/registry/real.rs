//! Debian's `docker-registry`, where it is installed, with and without authentication.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use runtime::image::registry::{Credentials, RegistryErrorKind, RegistrySettings, Secret};
use runtime::image::{Limits, Reference};

use crate::archives::{PACKS, Pack, TestImage, docker_save};
use crate::pulling::{big_layer, layer};
use crate::server::TestHost;

/// `ann` with the password `secret`, as `htpasswd -B` writes it.
const HTPASSWD: &str = "ann:$2y$05$52AT..VU5CdOGWp/ZskRau9TUlH26usvbmZDx1UM0B0ytSTrpOrRu\n";

struct Real {
    process: Child,
    addr: String,
    _dir: tempfile::TempDir,
}

impl Real {
    /// `None`, with a message, where it is not installed.
    fn start(auth: bool) -> Option<Real> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let mut config = format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: \
             true\nhttp:\n  addr: 127.0.0.1:0\n",
            path.join("data").display()
        );
        if auth {
            std::fs::write(path.join("htpasswd"), HTPASSWD).unwrap();
            config += &format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", path.join("htpasswd").display());
        }
        std::fs::write(path.join("config.yml"), config).unwrap();
        let spawned = Command::new("docker-registry")
            .arg("serve")
            .arg(path.join("config.yml"))
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let mut process = match spawned {
            Ok(process) => process,
            Err(error) => {
                println!("skipped: docker-registry cannot be started: {error}");
                return None;
            }
        };
        let mut log = BufReader::new(process.stderr.take().unwrap());
        let mut seen = String::new();
        let addr = loop {
            let mut line = String::new();
            assert!(log.read_line(&mut line).unwrap() > 0, "docker-registry has ended: {seen}");
            seen += &line;
            if let Some((_, rest)) = line.split_once("listening on ") {
                break rest.split(['"', ' ']).next().unwrap().to_owned();
            }
        };
        // Somebody has to read what else it says.
        std::thread::spawn(move || for _ in log.lines() {});
        Some(Real { process, addr, _dir: dir })
    }

    fn host(&self) -> Option<TestHost> {
        let settings = RegistrySettings { insecure: vec![self.addr.clone()], ..RegistrySettings::default() };
        TestHost::with(settings, Limits::default())
    }

    fn reference(&self, rest: &str) -> Reference {
        Reference::parse(&format!("{}/{rest}", self.addr)).unwrap()
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn there_and_back() {
    let Some(real) = Real::start(false) else { return };
    for (nth, layer_pack) in PACKS.into_iter().enumerate() {
        let Some(host) = real.host() else { return };
        let image = TestImage::new("local:1", vec![layer("a"), big_layer("b", 3_000_000), layer("c")]);
        host.store.load(&docker_save(std::slice::from_ref(&image), layer_pack));
        let reference = real.reference(&format!("a/web:{nth}"));
        host.store.store.tag("local:1", &reference).unwrap();
        let (registries, name) = (host.registries.clone(), reference.clone());
        let pushed = host.run(async move { registries.push(&name, &Credentials::Anonymous, None).await }).unwrap();
        let other = real.host().unwrap();
        let pulled = other.pull(&reference).unwrap();
        assert_eq!((pulled.id.to_string(), pulled.digest), (image.id(), pushed.digest));
        let by_digest = real.reference(&format!("a/web@{}", pushed.digest));
        assert_eq!(other.store.store.resolve(&by_digest.to_string()).unwrap().id, pulled.id);
        // A sister repository takes the layers over without being sent them.
        let sister = real.reference(&format!("b/web:{nth}"));
        other.store.store.tag(&reference.to_string(), &sister).unwrap();
        let registries = other.registries.clone();
        other.run(async move { registries.push(&sister, &Credentials::Anonymous, None).await }).unwrap();
    }
    let host = real.host().unwrap();
    let error = host.pull(&real.reference("a/web:none")).unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::NotFound);
}

#[test]
fn with_authentication() {
    let Some(real) = Real::start(true) else { return };
    let Some(host) = real.host() else { return };
    let ann = Credentials::Basic { username: "ann".into(), password: Secret::new("secret") };
    let eve = Credentials::Basic { username: "ann".into(), password: Secret::new("guess") };
    // Several layers are asked for at once, before it is known that the registry wants a password.
    let layers = ["a", "b", "c", "d", "e"].map(layer).to_vec();
    host.store.load(&docker_save(&[TestImage::new("local:1", layers)], Pack::Gzip));
    let reference = real.reference("web:1");
    host.store.store.tag("local:1", &reference).unwrap();
    let (registries, name, user) = (host.registries.clone(), reference.clone(), ann.clone());
    host.run(async move { registries.push(&name, &user, None).await }).unwrap();
    let other = real.host().unwrap();
    for nobody in [Credentials::Anonymous, eve] {
        let error = other.pull_as(&reference, nobody.clone()).unwrap_err();
        assert_eq!(error.kind(), RegistryErrorKind::Unauthorized, "{error}");
        let (registries, addr) = (other.registries.clone(), real.addr.clone());
        other.run(async move { registries.login(&addr, &nobody).await }).unwrap_err();
    }
    other.assert_empty();
    other.pull_as(&reference, ann.clone()).unwrap();
    let (registries, addr) = (other.registries.clone(), real.addr.clone());
    other.run(async move { registries.login(&addr, &ann).await }).unwrap();
}
