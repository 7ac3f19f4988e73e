//! `docker run` and what belongs to it: a real runtime below, docker's command line as client. On networks that need no
//! overlay; the tests on hosts have the others.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use node::agent::{Plain, PlainConfig};
use node::engine::Engine;
use serde_json::{Value, json};

use crate::commands::run_command;
use crate::containers::{Host, PATIENCE};
use crate::http::{delete, filters, get, post};

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

    fn records(host: &Host) -> PathBuf {
        host.layer.parent().unwrap().join("agent/containers")
    }

    async fn open(host: &Host) -> Plain {
        let records = Self::records(host);
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

/// As clients say times.
fn now() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    format!("{}.{:09}", now / 1_000_000_000, now % 1_000_000_000)
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
async fn what_is_told_of_containers() {
    let Some(docker) = Docker::new().await else { return };
    let s = docker.host.socket();
    let run = async |args: &[&str]| docker.ok(&[&NONE[..], args].concat()).await;
    run(&["-d", "--name", "runs", "box:1", "sleep", "1000"]).await;
    run(&["-d", "--name", "paused", "box:1", "sleep", "1000"]).await;
    docker.ok(&["pause", "paused"]).await;
    run(&["--name", "ended", "box:1", "true"]).await;
    docker.ok(&["create", "--name", "never", "--network", "back", "box:1", "true"]).await;
    let info = get(s, "/info").await.json();
    let counts = ["Containers", "ContainersRunning", "ContainersPaused", "ContainersStopped"];
    assert_eq!(counts.map(|count| info[count].as_u64().unwrap()), [4, 1, 1, 2]);
    // The managers know which network that is.
    assert_eq!(docker.inspect("never").await["NetworkSettings"]["Networks"]["back"]["NetworkID"], json!(""));
    // The client sends all of it before it looks at the answer.
    let home = tempfile::tempdir().unwrap();
    let large = home.path().join("large");
    std::fs::write(&large, vec![7; 16 << 20]).unwrap();
    docker.fails(&["cp", large.to_str().unwrap(), "nobody:/tmp"], 1, "No such container: nobody").await;
    // What `docker system prune` asks for beside others.
    let pruned = post(s, "/build/prune", json!({})).await;
    assert_eq!((pruned.status, &pruned.json()["SpaceReclaimed"]), (200, &json!(0)));
    docker.ok(&["rm", "-f", "runs", "paused", "ended", "never"]).await;
}

/// A container that fails whenever it starts, while it waits for its next start for three seconds or longer.
async fn restarting(docker: &Docker, name: &str) -> String {
    let args = ["-d", "--name", name, "--restart", "always", "box:1", "sh", "-c", "echo again; exit 6"];
    let id = docker.ok(&[&NONE[..], &args].concat()).await;
    let waits =
        |object: &Value| object["RestartCount"].as_u64() >= Some(6) && object["State"]["Restarting"] == json!(true);
    docker.until(name, waits).await;
    id.trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_its_restart_counts_as_running() {
    let Some(mut docker) = Docker::new().await else { return };
    let s = docker.host.socket();
    let id = restarting(&docker, "loops").await;
    let state = &docker.inspect("loops").await["State"];
    assert_eq!((&state["Running"], &state["Status"]), (&json!(true), &json!("restarting")));
    let list = async |wanted: Value| get(s, &format!("/containers/json?{}", filters(wanted))).await.json();
    for wanted in [json!({}), json!({"status": ["restarting"]})] {
        let shown = &list(wanted).await[0];
        let status = shown["Status"].as_str().unwrap();
        assert_eq!((shown["Id"].as_str(), shown["State"].as_str()), (Some(id.as_str()), Some("restarting")));
        assert!(status.starts_with("Restarting (6) ") && status.ends_with(" ago"), "{status}");
    }
    assert_eq!(list(json!({"status": ["exited"]})).await, json!([]));
    let refused = delete(s, "/containers/loops").await;
    assert!(refused.status == 409 && refused.message().contains("container is restarting"), "{}", refused.text());
    assert_eq!(post(s, "/containers/prune", json!({})).await.json()["ContainersDeleted"], json!([]));
    assert_eq!(post(s, "/containers/loops/stop", json!({})).await.status, 204);
    let state = &docker.inspect("loops").await["State"];
    assert_eq!((&state["Running"], &state["Restarting"]), (&json!(false), &json!(false)));
    assert_eq!(post(s, "/containers/loops/stop", json!({})).await.status, 304);
    docker.ok(&["rm", "loops"]).await;
    restarting(&docker, "killed").await;
    assert_eq!(post(s, "/containers/killed/kill?signal=INT", json!({})).await.status, 204);
    assert_eq!(docker.inspect("killed").await["State"]["Restarting"], json!(false));
    // Started by its user again, it is restarted again.
    docker.ok(&["restart", "killed"]).await;
    docker.until("killed", |object| object["RestartCount"].as_u64() >= Some(1)).await;
    restarting(&docker, "updated").await;
    docker.ok(&["update", "--restart", "no", "updated"]).await;
    let object = docker.inspect("updated").await;
    assert_eq!(object["State"]["Status"], json!("exited"), "nothing is to start it any more");
    // The next daemon starts it as Docker's does: its user has not stopped it.
    docker.ok(&["update", "--restart", "unless-stopped", "updated"]).await;
    docker.restart().await;
    docker.until("updated", |now| now["RestartCount"].as_u64() > object["RestartCount"].as_u64()).await;
    docker.ok(&["rm", "-f", "killed", "updated"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_by_its_user_is_not_its_end() {
    let Some(docker) = Docker::new().await else { return };
    let s = docker.host.socket();
    let script = "trap 'exit 0' INT; echo up; while :; do sleep 0.05; done";
    let args = ["-d", "--name", "web", "--restart", "on-failure", "box:1", "sh", "-c", script];
    let id = docker.ok(&[&NONE[..], &args].concat()).await;
    let id = id.trim();
    docker.host.until_logged(id, "up").await;
    let restart = || post(s, "/containers/web/restart?t=0", json!({}));
    let (first, second) = tokio::join!(restart(), restart());
    assert_eq!((first.status, second.status), (204, 204));
    let query = filters(json!({"container": [id], "event": ["die", "start", "restart"]}));
    let told = get(s, &format!("/events?since=0&until={}&{query}", now())).await.text();
    let told: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let actions: Vec<&str> = told.iter().filter_map(|event| event["Action"].as_str()).collect();
    assert_eq!(actions[..4], ["start", "die", "start", "restart"], "{actions:?}");
    // Afterwards its policy is in force as before.
    docker.host.runtime.stop(id, None, std::time::Duration::ZERO).await.unwrap();
    let again = |object: &Value| object["RestartCount"] == json!(1) && object["State"]["Status"] == json!("running");
    docker.until("web", again).await;
    docker.ok(&["pause", "web"]).await;
    docker.fails(&["start", "web"], 1, "cannot start a paused container").await;
    docker.ok(&["unpause", "web"]).await;
    // Without room for what is remembered, a container can be stopped all the same.
    let records = Docker::records(&docker.host);
    let aside = records.with_extension("aside");
    std::fs::rename(&records, &aside).unwrap();
    docker.ok(&["stop", "-t", "0", "web"]).await;
    assert_eq!(docker.inspect("web").await["State"]["Status"], json!("exited"));
    std::fs::rename(&aside, &records).unwrap();
    docker.ok(&["rm", "web"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_name_and_another_policy() {
    let Some(mut docker) = Docker::new().await else { return };
    let run = async |docker: &Docker, args: &[&str]| docker.ok(&[&NONE[..], &["-d"], args].concat()).await;
    let id = run(&docker, &["--name", "one", "box:1", "sleep", "1000"]).await;
    let id = id.trim();
    run(&docker, &["--name", "other", "--rm", "box:1", "sleep", "1000"]).await;
    docker.ok(&["rename", "one", "two"]).await;
    docker.fails(&["exec", "one", "true"], 1, "No such container: one").await;
    docker.ok(&["exec", "two", "true"]).await;
    docker.fails(&["rename", "two", "two"], 1, "same name as its current name").await;
    docker.fails(&["rename", "two", "a b"], 1, "Invalid container name (a b)").await;
    docker.fails(&["rename", "two", "other"], 1, "The container name \"/other\" is already in use by").await;
    let query = filters(json!({"container": ["two"], "event": ["rename"]}));
    let told = get(docker.host.socket(), &format!("/events?since=0&until={}&{query}", now())).await.json();
    let attributes = &told["Actor"]["Attributes"];
    assert_eq!((&attributes["name"], &attributes["oldName"]), (&json!("two"), &json!("/one")));
    docker.restart().await;
    assert_eq!(docker.inspect(id).await["Name"], json!("/two"));
    // Its label is written first, and then the daemon is killed.
    docker.host.runtime.set_label(id, "io.shoal.container.name", "three").await.unwrap();
    docker.restart().await;
    docker.fails(&["rename", "other", "three"], 1, "The container name \"/three\" is already in use by").await;
    docker.ok(&["rename", "three", "two"]).await;
    docker.ok(&["restart", "-t", "0", "two"]).await;
    assert_eq!(docker.ok(&["ps", "--format", "{{.Names}}"]).await, "other\ntwo\n");
    run(&docker, &["--name", "one", "box:1", "true"]).await;

    assert_eq!(docker.ok(&["update", "--restart", "always", "two"]).await, "two\n");
    docker.restart().await;
    assert_eq!(docker.inspect("two").await["HostConfig"]["RestartPolicy"]["Name"], json!("always"));
    docker.host.runtime.stop(id, None, std::time::Duration::ZERO).await.unwrap();
    let again = |object: &Value| object["RestartCount"] == json!(1) && object["State"]["Status"] == json!("running");
    docker.until("two", again).await;
    docker.fails(&["update", "--memory", "64m", "two"], 1, "Memory is not supported").await;
    docker.fails(&["update", "--restart", "always", "other"], 1, "AutoRemove is enabled").await;
    docker.ok(&["rm", "-f", "one", "two", "other"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_stop_and_a_restart_the_last_word_counts() {
    let Some(docker) = Docker::new().await else { return };
    let s = docker.host.socket();
    let script = "trap 'echo asked; while test ! -e /go; do sleep 0.01; done; exit 0' TERM; echo up; \
                  while :; do sleep 0.01; done";
    for (first, second, codes, runs) in [("restart", "stop", (409, 204), false), ("stop", "restart", (204, 204), true)]
    {
        let args = ["-d", "--name", "web", "--restart", "always", "box:1", "sh", "-c", script];
        let id = docker.ok(&[&NONE[..], &args].concat()).await;
        let id = id.trim();
        docker.host.until_logged(id, "up").await;
        let kills = || async {
            let query = filters(json!({"container": [id], "event": ["kill"]}));
            get(s, &format!("/events?since=0&until={}&{query}", now())).await.text().lines().count()
        };
        let under_way = tokio::spawn({
            let (socket, path) = (s.to_owned(), format!("/containers/web/{first}?t=30"));
            async move { post(&socket, &path, json!({})).await }
        });
        docker.host.until_logged(id, "asked").await;
        assert_eq!(kills().await, 1);
        // It goes when both have asked it to.
        let asked_by_both = async {
            while kills().await < 2 {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        let go = async {
            tokio::time::timeout(PATIENCE, asked_by_both).await.expect("the second one asks it, too");
            docker.ok(&["exec", "web", "touch", "/go"]).await;
        };
        let path = format!("/containers/web/{second}?t=30");
        let (second, ()) = tokio::join!(post(s, &path, json!({})), go);
        let first = under_way.await.unwrap();
        assert_eq!((first.status, second.status), codes, "{} {}", first.text(), second.text());
        docker.until("web", |object| object["State"]["Running"] == json!(runs)).await;
        assert_eq!(docker.inspect("web").await["RestartCount"], json!(0));
        docker.ok(&["rm", "-f", "web"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_only_looks_changes_nothing() {
    let Some(mut docker) = Docker::new().await else { return };
    docker.ok(&["create", "--name", "never", "--restart", "always", "--network", "none", "box:1", "true"]).await;
    assert_eq!(post(docker.host.socket(), "/containers/never/stop", json!({})).await.status, 304);
    docker.restart().await;
    assert_eq!(docker.inspect("never").await["State"]["Status"], json!("created"));
    let (code, ..) =
        docker.run(&[&NONE[..], &["--name", "ended", "box:1", "sh", "-c", "echo one; exit 7"]].concat()).await;
    assert_eq!(code, Some(7));
    let s = docker.host.socket();
    // Somebody attaches, and goes on to start nothing.
    let attached = crate::containers::Hijacked::open(s, "/containers/ended/attach?stream=1&stdout=1", "").await;
    let state = &docker.inspect("ended").await["State"];
    assert_eq!((&state["Status"], &state["ExitCode"]), (&json!("exited"), &json!(7)));
    assert_eq!(docker.ok(&["logs", "ended"]).await, "one\n");
    let (code, out, err) = docker.run(&["start", "-a", "ended"]).await;
    assert_eq!((code, out.as_str()), (Some(7), "one\n"), "{err}");
    assert_eq!(attached.frames().await[0], "one\n", "the other one sees the same run");
    docker.ok(&["rm", "never", "ended"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_removal_takes_and_leaves() {
    let Some(mut docker) = Docker::new().await else { return };
    let volumes = |docker: &Docker| docker.host.runtime.volumes().list().len();
    let run = async |docker: &Docker, args: &[&str]| docker.ok(&[&NONE[..], args].concat()).await;
    let end = ["-v", "/data", "box:1", "true"];
    run(&docker, &[&["--rm"][..], &end].concat()).await;
    assert_eq!(volumes(&docker), 0, "its own go with --rm");
    run(&docker, &[&["--name", "one"][..], &end].concat()).await;
    docker.ok(&["rm", "-v", "one"]).await;
    assert_eq!(volumes(&docker), 0, "and with -v");
    run(&docker, &[&["--name", "one"][..], &end].concat()).await;
    docker.ok(&["rm", "one"]).await;
    assert_eq!(volumes(&docker), 1);
    for labels in [&["one=1"][..], &["one=1", "two=2"]] {
        let labels = labels.iter().flat_map(|label| ["--label", label]);
        run(&docker, &labels.chain(end).collect::<Vec<_>>()).await;
    }
    let s = docker.host.socket();
    let prune = async |wanted: Value| {
        let answer = post(s, &format!("/containers/prune?{}", filters(wanted)), json!({})).await.json();
        answer["ContainersDeleted"].as_array().unwrap().len()
    };
    assert_eq!(prune(json!({"until": ["1h"]})).await, 0);
    assert_eq!(prune(json!({"label": ["one=1", "two=2"]})).await, 1, "both labels are meant");
    assert_eq!(prune(json!({"label!": ["one"]})).await, 0);
    assert_eq!(prune(json!({"label": ["one"]})).await, 1);
    assert_eq!(volumes(&docker), 3, "nobody said that they should go");
    // A name is free when its container has gone.
    for _ in 0..5 {
        run(&docker, &["--rm", "--name", "same", "box:1", "true"]).await;
    }
    // What resists is tried again, and holds nobody up.
    let id = run(&docker, &["-d", "--rm", "--name", "sticks", "box:1", "sleep", "1000"]).await;
    let record = Docker::records(&docker.host).join(id.trim());
    std::fs::remove_file(&record).unwrap();
    std::fs::create_dir(&record).unwrap();
    docker.ok(&["kill", "sticks"]).await;
    docker.fails(&["run", "--name", "sticks", "box:1", "true"], 125, "is already in use").await;
    std::fs::remove_dir(&record).unwrap();
    let freed = async {
        while docker.run(&["create", "--name", "sticks", "--network", "none", "box:1", "true"]).await.0 != Some(0) {}
    };
    tokio::time::timeout(PATIENCE, freed).await.expect("it is removed at last");
    docker.ok(&["rm", "sticks"]).await;

    // Nothing happens to a container only because its record is damaged.
    let id = run(&docker, &["-d", "--name", "kept", "box:1", "sleep", "1000"]).await;
    let id = id.trim();
    std::fs::write(Docker::records(&docker.host).join(id), b"damaged").unwrap();
    docker.restart().await;
    assert_eq!(docker.inspect(id).await["State"]["Running"], json!(true));
    let refused = delete(docker.host.socket(), &format!("/containers/{id}")).await;
    assert!(refused.status == 409 && refused.message().contains("cannot be read"), "{}", refused.text());
    docker.ok(&["rm", "-f", id]).await;
    assert!(!Docker::records(&docker.host).join(id).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_of_one_host() {
    let Some(mut docker) = Docker::new().await else { return };
    let made = docker
        .ok(&[
            "network",
            "create",
            "--subnet",
            "172.20.0.0/24",
            "--gateway",
            "172.20.0.254",
            "--ip-range",
            "172.20.0.128/25",
            "--aux-address",
            "printer=172.20.0.130",
            "--internal",
            "--label",
            "k=v",
            "-o",
            "com.docker.network.driver.mtu=1400",
            "back",
        ])
        .await;
    let back = made.trim().to_owned();
    assert!(back.len() == 64 && back.bytes().all(|byte| byte.is_ascii_hexdigit()), "{back}");
    docker.ok(&["network", "create", "front"]).await;
    let list = ["network", "ls", "--filter", "type=custom", "--format", "{{.Name}} {{.Driver}} {{.Scope}}"];
    let mut shown: Vec<String> = docker.ok(&list).await.lines().map(str::to_owned).collect();
    shown.sort();
    assert_eq!(shown, ["back bridge local", "front bridge local"]);
    for (filter, expected) in
        [("label=k=v", "back\n"), ("name=ron", "front\n"), ("scope=swarm", ""), ("dangling=0", "")]
    {
        let filters = ["--filter", "type=custom", "--filter", filter, "--format", "{{.Name}}"];
        assert_eq!(docker.ok(&[&["network", "ls"][..], &filters].concat()).await, expected, "{filter}");
    }
    // A daemon that begins anew still has them.
    docker.restart().await;
    let network = get(docker.host.socket(), &format!("/networks/{}", &back[..12])).await.json();
    assert_eq!((&network["Id"], &network["Name"], &network["Scope"]), (&json!(back), &json!("back"), &json!("local")));
    assert_eq!((&network["Driver"], &network["Internal"]), (&json!("bridge"), &json!(true)));
    assert_eq!((&network["Labels"], &network["Containers"]), (&json!({"k": "v"}), &json!({})));
    assert_eq!(network["Options"], json!({"com.docker.network.driver.mtu": "1400"}));
    let config = json!([{"Subnet": "172.20.0.0/24", "IPRange": "172.20.0.128/25", "Gateway": "172.20.0.254",
        "AuxiliaryAddresses": {"printer": "172.20.0.130"}}]);
    assert_eq!(network["IPAM"]["Config"], config);
    let front = get(docker.host.socket(), "/networks/front?scope=local").await.json();
    assert_eq!(front["IPAM"]["Config"], json!([{"Subnet": "172.23.0.0/20", "Gateway": "172.23.0.1"}]));

    for (args, text) in [
        (&["back"][..], "network with name back already exists"),
        (&["bridge"], "predefined bridge network"),
        (&["default"], "predefined default network"),
        (&["--subnet", "172.20.0.0/16", "x"], "Pool overlaps with other one on this address space"),
        (&["--ipv6", "x"], "EnableIPv6"),
        (&["-o", "com.docker.network.bridge.name=br7", "x"], "com.docker.network.bridge.name"),
        (&["--ingress", "x"], "ingress network"),
    ] {
        docker.fails(&[&["network", "create"], args].concat(), 1, text).await;
    }
    let create = async |args: &[&str]| docker.run(&[&["create"], args, &["box:1", "true"]].concat()).await;
    let (code, _, err) =
        create(&["--name", "web", "--network", "back", "--ip", "172.20.0.7", "--network-alias", "w"]).await;
    assert_eq!(code, Some(0), "{err}");
    for (args, text) in [
        (&["--network", "back", "--ip", "172.20.1.7"][..], "not in subnet 172.20.0.0/24"),
        (&["--network", "back", "-p", "80:80"], "network back, which is internal"),
        (&["--network", "front", "--ip", "172.23.0.7"], "user configured subnets"),
        (&["--network", "nosuch", "--ip", "172.23.0.7"], "networks of one host alone"),
    ] {
        let (code, _, err) = create(args).await;
        assert!(code == Some(1) && err.contains(text), "{args:?}: {code:?} {err}");
    }
    let web = docker.inspect("web").await;
    assert_eq!(web["HostConfig"]["NetworkMode"], json!("back"));
    let on = &web["NetworkSettings"]["Networks"]["back"];
    assert_eq!((&on["NetworkID"], &on["Aliases"], &on["IPAddress"]), (&json!(back), &json!(["w"]), &json!("")));
    assert_eq!(on["IPAMConfig"], json!({"IPv4Address": "172.20.0.7"}));
    let listed = ["ps", "-a", "--filter", "network=back", "--format", "{{.Names}}"];
    assert_eq!(docker.ok(&listed).await, "web\n");
    docker.fails(&["start", "web"], 1, "this host has no networks").await;
    // By its id, and by how that begins, it is the same one.
    for wanted in [&back[..], &back[..12]] {
        let id = docker.ok(&["create", "--network", wanted, "box:1", "true"]).await;
        let made = docker.inspect(id.trim()).await;
        assert_eq!(made["NetworkSettings"]["Networks"]["back"]["NetworkID"], json!(back), "{made}");
        let listed = docker.ok(&["ps", "-aq", "--no-trunc", "--filter", "network=back"]).await;
        assert!(listed.contains(id.trim()), "{listed}");
        docker.ok(&["rm", id.trim()]).await;
    }
    let predefined = post(docker.host.socket(), "/networks/create", json!({"Name": "none"})).await;
    assert_eq!(predefined.status, 403, "{}", predefined.text());

    // Beside networks of a cluster.
    let engine = &docker.host.served.engine;
    engine.init(node::engine::InitRequest::default()).await.unwrap();
    docker.fails(&["network", "create", "ingress"], 1, "network with name ingress already exists").await;
    docker.fails(&["network", "create", "-d", "overlay", "front"], 1, "already exists").await;
    docker.ok(&["network", "create", "-d", "overlay", "wide"]).await;
    let swarm = get(docker.host.socket(), "/networks/front?scope=swarm").await;
    assert!(swarm.status == 404 && swarm.message().contains("is a network of this host alone"), "{}", swarm.text());
    docker.fails(&["service", "create", "--network", "front", "box:1"], 1, "network front not found").await;
    let spec =
        json!({"Name": "s", "TaskTemplate": {"ContainerSpec": {"Image": "box:1"}, "Networks": [{"Target": "front"}]}});
    let refused = post(docker.host.socket(), "/services/create", spec).await;
    assert!(refused.status == 403 && refused.message().contains("cannot be used with services"), "{}", refused.text());
    // Nobody needs to lead for what is of this host alone.
    engine.set_leaderless();
    docker.ok(&["network", "create", "alone"]).await;
    docker.ok(&["network", "inspect", "alone"]).await;
    for filter in ["scope=local", "name=alone"] {
        let listed = docker.ok(&["network", "ls", "--filter", filter, "--format", "{{.Name}}"]).await;
        assert!(listed.lines().any(|name| name == "alone"), "{filter}: {listed}");
    }
    let listed = docker.ok(&["network", "ls", "--filter", "name=wide", "--format", "{{.Name}}"]).await;
    assert_eq!(listed, "wide\n", "as it was heard of last");
    let fresh = get(docker.host.socket(), "/networks?consistency=linearizable").await;
    assert!(fresh.status == 500 && fresh.message().contains("leader"), "{}", fresh.text());
    docker.ok(&["network", "rm", "alone"]).await;

    // Who does not run is not on it.
    docker.ok(&["network", "rm", "back"]).await;
    docker.fails(&["network", "rm", "back"], 1, "leader").await;
    let s = docker.host.socket().to_owned();
    let records = Docker::records(&docker.host).with_file_name("networks");
    let front = front["Id"].as_str().unwrap();
    std::fs::write(records.join(front), b"damaged").unwrap();
    docker.restart().await;
    assert!(get(&s, "/networks/front?scope=local").await.status == 404 && records.join(front).exists());
    docker.ok(&["network", "create", "front"]).await;
    docker.ok(&["network", "create", "--label", "keep", "kept"]).await;
    let prune = format!("/networks/prune?{}", filters(json!({"label!": ["keep"]})));
    let pruned = post(&s, &prune, json!({})).await;
    assert!(pruned.status == 500 && pruned.message().contains("leader"), "{}", pruned.text());
    let left = std::fs::read_dir(&records).unwrap().count();
    assert_eq!(left, 3, "without a leader nothing is pruned");
    docker.ok(&["network", "rm", "front", "kept"]).await;
    assert_eq!(std::fs::read_dir(&records).unwrap().count(), 1, "what is damaged is left");
    docker.ok(&["rm", "web"]).await;
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
