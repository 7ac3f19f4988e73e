//! `docker run` and what belongs to it: a real runtime below, docker's command line as client. On networks that need no
//! overlay; the tests on hosts have the others.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use node::agent::{Plain, PlainConfig};
use node::engine::Engine;
use serde_json::{Value, json};

use crate::commands::run_command;
use crate::containers::{Host, PATIENCE};
use crate::http::{get, post};

struct Docker {
    docker: PathBuf,
    host: Host,
    plain: Plain,
}

impl Docker {
    async fn new() -> Option<Docker> {
        let path = std::env::var_os("PATH")?;
        let Some(docker) = std::env::split_paths(&path).map(|dir| dir.join("docker")).find(|path| path.is_file())
        else {
            println!("skipped: there is no docker client in PATH");
            return None;
        };
        let host = Host::new().await?;
        let plain = Self::open(&host).await;
        let this = Docker { docker, host, plain };
        let tar = tokio::process::Command::new("tar").arg("-C").arg(&this.host.layer).args(["-c", "."]).output().await;
        let (code, _, err) =
            run_command(&this.docker, &this.host, &["import", "-", "box:1"], &tar.unwrap().stdout).await;
        assert_eq!(code, Some(0), "{err}");
        Some(this)
    }

    async fn open(host: &Host) -> Plain {
        let records = host.layer.parent().unwrap().join("agent/containers");
        let images = host.served.engine.images();
        let plain = Plain::open(PlainConfig::unconnected(host.runtime.clone(), images, records)).await.unwrap();
        host.served.engine.set_plain(plain.clone());
        plain.begin();
        plain
    }

    /// The daemon's part of it begins anew.
    async fn restart(&mut self) {
        self.plain.shutdown().await;
        self.plain = Self::open(&self.host).await;
    }

    async fn run(&self, args: &[&str]) -> (Option<i32>, String, String) {
        run_command(&self.docker, &self.host, args, b"").await
    }

    async fn ok(&self, args: &[&str]) -> String {
        let (code, out, err) = self.run(args).await;
        assert_eq!(code, Some(0), "{args:?}: {out}{err}");
        out
    }

    async fn fails(&self, args: &[&str], code: i32, text: &str) {
        let (got, out, err) = self.run(args).await;
        assert!(got == Some(code) && err.contains(text), "{args:?}: {got:?} {out}{err}");
    }

    async fn inspect(&self, name: &str) -> Value {
        get(self.host.socket(), &format!("/containers/{name}/json")).await.json()
    }

    /// Until the inspected container is so.
    async fn until(&self, name: &str, what: impl Fn(&Value) -> bool) {
        let looking = async {
            while !what(&self.inspect(name).await) {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, looking).await.is_err() {
            panic!("{name}: {}", self.inspect(name).await);
        }
    }
}

const NONE: [&str; 3] = ["run", "--network", "none"];

#[tokio::test(flavor = "multi_thread")]
async fn run_to_the_end() {
    let Some(docker) = Docker::new().await else { return };
    let run = async |args: &[&str]| docker.run(&[&NONE[..], args].concat()).await;
    let (code, out, err) = run(&["--rm", "box:1", "sh", "-c", "echo out; echo err >&2; exit 7"]).await;
    assert_eq!((code, out.as_str(), err.as_str()), (Some(7), "out\n", "err\n"));
    assert_eq!(docker.ok(&["ps", "-aq"]).await, "", "it was removed");
    let args = ["run", "-i", "--rm", "--network", "none", "box:1", "cat"];
    let through = run_command(&docker.docker, &docker.host, &args, b"through\n").await;
    assert_eq!(through, (Some(0), "through\n".into(), String::new()));
    assert!(run(&["--rm", "-t", "box:1", "tty"]).await.1.starts_with("/dev/pts/"));
    let (code, _, err) = run(&["--rm", "box:1", "nosuch"]).await;
    assert!(code == Some(127) && err.contains("executable file not found"), "{code:?} {err}");
    assert_eq!(docker.ok(&["ps", "-aq"]).await, "", "one that could not start is removed as well");
    let set = ["--rm", "-e", "A=b", "-w", "/etc", "-u", "web", "-h", "me", "--read-only", "-v", "/data", "--init"];
    let (code, out, err) = run(&[&set[..], &["box:1", "sh", "-c", "echo $A $(pwd) $(id -u) $HOSTNAME"]].concat()).await;
    assert_eq!((code, out.as_str()), (Some(0), "b /etc 100 me\n"), "{err}");
    let (_, out, _) = run(&["--rm", "--entrypoint", "echo", "box:1", "a", "b"]).await;
    assert_eq!(out, "a b\n");
    docker.fails(&["run", "--rm", "--privileged", "box:1", "true"], 125, "HostConfig.Privileged").await;
    docker.fails(&["run", "--rm", "--network", "container:x", "box:1", "true"], 125, "is not supported").await;
    docker.fails(&["run", "--rm", "box:1", "true"], 125, "this host has no networks").await;
    assert_eq!(docker.ok(&["ps", "-aq"]).await, "");
    docker
        .fails(&["run", "--rm", "-p", "80:80", "--network", "host", "box:1", "true"], 125, "cannot be published")
        .await;
    let own = tokio::fs::read_link("/proc/self/ns/net").await.unwrap().display().to_string();
    let ls = ["run", "--rm", "--network", "host", "box:1", "ls", "-l", "/proc/self/ns/net"];
    assert!(docker.ok(&ls).await.contains(&own));
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_start_and_remove() {
    let Some(mut docker) = Docker::new().await else { return };
    let script = "echo begin; cat /kept; echo once > /kept; trap 'exit 3' TERM; while :; do sleep 0.05; done";
    let id =
        docker.ok(&[&NONE[..], &["-d", "--name", "web", "--label", "k=v", "box:1", "sh", "-c", script]].concat()).await;
    let id = id.trim();
    assert_eq!(id.len(), 64);
    docker.host.until_logged(id, "begin").await;
    let list = docker.ok(&["ps", "--filter", "label=k=v", "--format", "{{.Names}} {{.Image}} {{.State}}"]).await;
    assert_eq!(list, "web box:1 running\n");
    docker
        .fails(
            &["run", "-d", "--name", "web", "box:1", "true"],
            125,
            "The container name \"/web\" is already in use by",
        )
        .await;
    docker.fails(&["rm", "web"], 1, "container is running").await;
    // A daemon that begins anew takes it over.
    docker.restart().await;
    assert_eq!(docker.inspect("web").await["State"]["Running"], json!(true));
    docker.ok(&["stop", "web"]).await;
    let ended = docker.inspect("web").await;
    assert_eq!((&ended["State"]["Status"], &ended["State"]["ExitCode"]), (&json!("exited"), &json!(3)));
    docker.restart().await;
    assert_eq!(docker.ok(&["start", "web"]).await, "web\n");
    docker.host.until_logged(id, "once").await;
    docker.ok(&["restart", "-t", "0", "web"]).await;
    assert_eq!(docker.inspect("web").await["State"]["Running"], json!(true));
    docker.ok(&["kill", "web"]).await;
    docker.until("web", |object| object["State"]["ExitCode"] == json!(137)).await;
    docker.ok(&["rm", "web"]).await;
    docker.fails(&["start", "web"], 1, "No such container: web").await;

    docker.ok(&["create", "--name", "later", "--network", "none", "box:1", "sh", "-c", "echo now; exit 4"]).await;
    assert_eq!(docker.inspect("later").await["State"]["Status"], json!("created"));
    docker.restart().await;
    for _ in 0..2 {
        let (code, out, err) = docker.run(&["start", "-a", "later"]).await;
        assert_eq!((code, out.as_str()), (Some(4), "now\n"), "{err}");
    }
    assert_eq!(docker.ok(&["wait", "later"]).await, "4\n");
    let chosen = docker.ok(&[&NONE[..], &["-d", "box:1", "sleep", "1000"]].concat()).await;
    let name = docker.inspect(chosen.trim()).await["Name"].as_str().unwrap().to_owned();
    assert!(name.contains('_'), "{name}");
    let pruned = post(docker.host.socket(), "/containers/prune", json!({})).await.json();
    assert_eq!(pruned["ContainersDeleted"].as_array().unwrap().len(), 1);
    docker.ok(&["rm", "-f", &name[1..]]).await;
    assert_eq!(docker.ok(&["ps", "-aq"]).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_policies() {
    let Some(mut docker) = Docker::new().await else { return };
    let run = async |docker: &Docker, args: &[&str]| docker.ok(&[&NONE[..], &["-d"], args].concat()).await;
    run(&docker, &["--name", "fails", "--restart", "on-failure:2", "box:1", "sh", "-c", "exit 1"]).await;
    let settled = |object: &Value| object["RestartCount"] == json!(2) && object["State"]["Status"] == json!("exited");
    docker.until("fails", settled).await;
    let script = "test -f /second && exec sleep 1000; touch /second; exit 0";
    run(&docker, &["--name", "always", "--restart", "unless-stopped", "box:1", "sh", "-c", script]).await;
    let again = |object: &Value| object["RestartCount"] == json!(1) && object["State"]["Running"] == json!(true);
    docker.until("always", again).await;
    assert_eq!(docker.inspect("always").await["HostConfig"]["RestartPolicy"]["Name"], json!("unless-stopped"));
    // It ends while no daemon is there.
    docker.plain.shutdown().await;
    let id = docker.inspect("always").await["Id"].as_str().unwrap().to_owned();
    docker.host.runtime.stop(&id, None, std::time::Duration::ZERO).await.unwrap();
    docker.restart().await;
    docker.until("always", |object| object["State"]["Running"] == json!(true)).await;
    docker.ok(&["stop", "-t", "0", "always"]).await;
    docker.restart().await;
    assert_eq!(docker.inspect("always").await["State"]["Running"], json!(false));
    // One that its user has stopped while it waited for its restart.
    run(&docker, &["--name", "loops", "--restart", "always", "box:1", "sh", "-c", "exit 1"]).await;
    docker.until("loops", |object| object["RestartCount"].as_u64() >= Some(3)).await;
    docker.ok(&["stop", "loops"]).await;
    docker
        .until("loops", |object| {
            object["State"]["Restarting"] == json!(false) && object["State"]["Running"] == json!(false)
        })
        .await;
    docker.ok(&["rm", "-f", "fails", "always", "loops"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_terminal_in_both_directions() {
    let Some(docker) = Docker::new().await else { return };
    let Some(script) = Some(Path::new("/usr/bin/script")).filter(|path| path.is_file()) else {
        println!("skipped: there is no script(1)");
        return;
    };
    let home = tempfile::tempdir().unwrap();
    let command = format!("{} run --rm -it --network none box:1 sh", docker.docker.display());
    let mut child = tokio::process::Command::new(script)
        .args(["-qec", &command, "/dev/null"])
        .env("DOCKER_HOST", format!("unix://{}", docker.host.socket().display()))
        .env("HOME", home.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stdin, b"echo $((40+2)); tty; exit 9\n").await.unwrap();
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("it ends").unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.code() == Some(9) && text.contains("42") && text.contains("/dev/pts/"), "{text}");
    drop(stdin);
    assert_eq!(docker.ok(&["ps", "-aq"]).await, "");
}
