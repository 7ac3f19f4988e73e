//! Containers over the API: a real runtime below it, busybox inside, plain HTTP as client (`commands` has the command lines).
//! Needs root, overlayfs, cgroups and a static busybox; where one is missing the tests say so and pass.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use node::containers::Containers;
use runtime::{ContainerConfig, EtcFiles, Runtime, RuntimeConfig};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::fake::Served;
use crate::http::{get, open, post, send};

static NUMBER: AtomicU32 = AtomicU32::new(0);
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// An engine with containers; everything of it is removed with it.
pub(crate) struct Host {
    pub(crate) served: Served,
    pub(crate) runtime: Runtime,
    pub(crate) layer: PathBuf,
    _dir: tempfile::TempDir,
}

impl Host {
    pub(crate) async fn new() -> Option<Host> {
        let busybox = Path::new("/bin/busybox");
        if !rustix::process::geteuid().is_root() || !busybox.is_file() {
            println!("skipped: needs root and a static /bin/busybox");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let config = RuntimeConfig {
            data_dir: dir.path().join("data"),
            run_dir: dir.path().join("run"),
            engine_id: format!("api-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)),
            shim_exe: env!("CARGO_BIN_EXE_shoal").into(),
        };
        let runtime = match Runtime::open(config).await {
            Ok(runtime) => runtime,
            Err(error) => {
                println!("skipped: {error}");
                return None;
            }
        };
        let layer = dir.path().join("layer");
        for name in ["bin", "etc", "tmp"] {
            std::fs::create_dir_all(layer.join(name)).unwrap();
        }
        std::fs::copy(busybox, layer.join("bin/busybox")).unwrap();
        for tool in ["sh", "sleep", "cat", "echo", "id", "pwd", "tty", "stty", "env", "true", "touch", "ls", "head"] {
            std::os::unix::fs::symlink("busybox", layer.join("bin").join(tool)).unwrap();
        }
        std::fs::write(layer.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:100:101::/srv:/bin/sh\n").unwrap();
        std::fs::write(layer.join("etc/group"), "root:x:0:\nweb:x:101:\n").unwrap();
        let served = Served::inactive().await;
        served.engine.set_containers(Containers::new(runtime.clone()));
        Some(Host { served, runtime, layer, _dir: dir })
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.served.socket
    }

    /// A container of a task, called `web.<slot>.task<slot>`, that runs this script.
    pub(crate) async fn start(&self, slot: u8, script: &str, change: impl FnOnce(&mut ContainerConfig)) -> String {
        let mut config = ContainerConfig {
            id: format!("{slot:02x}").repeat(32),
            layers: vec![self.layer.clone()],
            args: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            files: EtcFiles { hosts: "127.0.0.1 localhost\n".into(), resolv_conf: String::new() },
            ..ContainerConfig::default()
        };
        for (key, value) in [
            ("com.docker.swarm.task.id", format!("task{slot}")),
            ("com.docker.swarm.task.name", format!("web.{slot}.task{slot}")),
            ("com.docker.swarm.service.name", "web".to_owned()),
        ] {
            config.labels.insert(key.to_owned(), value);
        }
        change(&mut config);
        let id = config.id.clone();
        self.runtime.create(config).await.unwrap();
        self.runtime.start(&id).await.unwrap();
        id
    }

    pub(crate) async fn until_logged(&self, id: &str, text: &str) {
        let path = format!("/containers/{id}/logs?stdout=1&stderr=1");
        let looking = async {
            while !get(self.socket(), &path).await.text().contains(text) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("{text:?} in the log"));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let runtime = self.runtime.clone();
        let removed = std::thread::spawn(move || {
            let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            tokio.block_on(runtime.destroy())
        });
        if let Ok(Err(error)) = removed.join() {
            println!("destroy: {error}");
        }
    }
}

/// A connection that HTTP has let go of.
pub(crate) struct Hijacked {
    stream: UnixStream,
    buffer: BytesMut,
    head: String,
}

impl Hijacked {
    pub(crate) async fn open(socket: &Path, path: &str, body: &str) -> Hijacked {
        let mut stream = UnixStream::connect(socket).await.unwrap();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut buffer = BytesMut::new();
        let end = loop {
            if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            let count = tokio::time::timeout(PATIENCE, stream.read_buf(&mut buffer)).await.unwrap().unwrap();
            assert!(count > 0, "{}", String::from_utf8_lossy(&buffer));
        };
        let head = String::from_utf8_lossy(&buffer.split_to(end)).into_owned();
        Hijacked { stream, buffer, head }
    }

    /// Reads until the bytes hold this.
    async fn until(&mut self, text: &str) -> String {
        loop {
            let seen = String::from_utf8_lossy(&self.buffer).into_owned();
            if seen.contains(text) {
                return seen;
            }
            let read = self.stream.read_buf(&mut self.buffer);
            let count =
                tokio::time::timeout(PATIENCE, read).await.unwrap_or_else(|_| panic!("{text:?} after {seen:?}"));
            assert!(count.unwrap() > 0, "it ended with {seen:?}, without {text:?}");
        }
    }

    /// Reads to the end, and takes the frames apart: standard output, standard error, remarks.
    pub(crate) async fn frames(mut self) -> [String; 3] {
        let read = self.stream.read_to_end_into(&mut self.buffer);
        tokio::time::timeout(PATIENCE, read).await.expect("it ends");
        let mut parts = [Vec::new(), Vec::new(), Vec::new()];
        let mut rest = &self.buffer[..];
        while let Some((header, tail)) = rest.split_first_chunk::<8>() {
            let length = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
            parts[usize::from(header[0]) - 1].extend_from_slice(&tail[..length]);
            rest = &tail[length..];
        }
        assert!(rest.is_empty());
        parts.map(|part| String::from_utf8(part).unwrap())
    }
}

trait ReadToEnd {
    async fn read_to_end_into(&mut self, buffer: &mut BytesMut);
}

impl ReadToEnd for UnixStream {
    async fn read_to_end_into(&mut self, buffer: &mut BytesMut) {
        while self.read_buf(buffer).await.unwrap() > 0 {}
    }
}

pub(crate) async fn ask_exec(host: &Host, id: &str, body: Value) -> String {
    let answer = post(host.socket(), &format!("/containers/{id}/exec"), body).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    answer.json()["Id"].as_str().unwrap().to_owned()
}

async fn exec_state(host: &Host, exec: &str) -> Value {
    get(host.socket(), &format!("/exec/{exec}/json")).await.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn listed_inspected_and_signalled() {
    let Some(host) = Host::new().await else { return };
    let s = host.socket();
    assert_eq!(get(s, "/containers/json?all=1").await.json(), json!([]));
    let first = host.start(1, "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done", |_| {}).await;
    let second = host.start(2, "exit 7", |_| {}).await;
    host.until_logged(&first, "ready").await;
    let wait = post(s, &format!("/containers/{second}/wait"), json!({})).await;
    assert_eq!(wait.json(), json!({"StatusCode": 7, "Error": null}));
    let list = get(s, "/containers/json").await.json();
    assert_eq!(list.as_array().unwrap().len(), 1);
    assert_eq!(list[0]["Names"], json!(["/web.1.task1"]));
    assert_eq!((&list[0]["State"], &list[0]["Id"]), (&json!("running"), &json!(first)));
    assert!(list[0]["Status"].as_str().unwrap().starts_with("Up "), "{list}");
    let all = get(s, "/containers/json?all=1").await.json();
    assert_eq!(all.as_array().unwrap().len(), 2);
    assert!(all[0]["Status"].as_str().unwrap().starts_with("Exited (7) "), "{all}");
    let filtered = |filter: Value| format!("/containers/json?all=1&{}", crate::http::filters(filter));
    for (filter, count) in [
        (json!({"name": ["web.2"]}), 1),
        (json!({"status": ["exited"]}), 1),
        (json!({"exited": ["7"]}), 1),
        (json!({"exited": ["0"]}), 0),
        (json!({"id": [&first[..6]]}), 1),
        (json!({"label": ["com.docker.swarm.service.name=web"]}), 2),
        (json!({"since": ["web.1.task1"]}), 1),
        (json!({"health": ["healthy"]}), 0),
    ] {
        let found = get(s, &filtered(filter.clone())).await.json();
        assert_eq!(found.as_array().unwrap().len(), count, "{filter}: {found}");
    }
    assert_eq!(get(s, &filtered(json!({"zz": ["a"]}))).await.status, 400);
    // By id, name with and without a slash, and the beginning of the id.
    for wanted in [first.as_str(), "web.1.task1", "%2Fweb.1.task1", &first[..12]] {
        let one = get(s, &format!("/containers/{wanted}/json")).await.json();
        assert_eq!(one["Id"], json!(first), "{wanted}");
        assert_eq!(one["State"]["Status"], "running");
        assert_eq!(one["Config"]["Tty"], json!(false));
        assert_eq!(one["Args"][0], "-c");
    }
    let ended = get(s, &format!("/containers/{second}/json")).await.json();
    assert_eq!((&ended["State"]["ExitCode"], &ended["State"]["Pid"]), (&json!(7), &json!(0)));
    // Paused: neither runs nor hears.
    let act = async |verb: &str| post(s, &format!("/containers/web.1.task1/{verb}"), json!({})).await;
    assert_eq!(act("pause").await.status, 204);
    assert_eq!(act("pause").await.status, 409);
    assert_eq!(get(s, &format!("/containers/{first}/json")).await.json()["State"]["Paused"], json!(true));
    let refused = post(s, &format!("/containers/{first}/exec"), json!({"Cmd": ["true"]})).await;
    assert_eq!(refused.status, 409);
    assert!(refused.message().contains("is paused"), "{}", refused.message());
    assert_eq!(act("unpause").await.status, 204);
    assert_eq!(act("unpause").await.status, 409);
    assert_eq!(act("kill?signal=NOPE").await.status, 400);
    assert_eq!(act("kill?signal=CONT").await.status, 204);
    // What the cluster decides over is refused, and says so.
    assert_eq!(act("start").await.status, 304);
    for verb in ["restart", "rename?name=other"] {
        let answer = act(verb).await;
        let refused = answer.status == 409 && answer.message().contains("belongs to task task1 of service \"web\"");
        assert!(refused, "{verb}: {}", answer.message());
    }
    let policy = json!({"RestartPolicy": {"Name": "always"}});
    assert_eq!(post(s, &format!("/containers/{first}/update"), policy).await.status, 409);
    assert_eq!(send(s, "DELETE", &format!("/containers/{first}"), None, Vec::new()).await.status, 409);
    assert_eq!(post(s, "/containers/create", json!({"Image": "x"})).await.status, 503);
    // The answer of a wait begins before the end does.
    let waiting = open(s, "POST", &format!("/containers/{first}/wait?condition=next-exit"), None, Vec::new()).await;
    assert_eq!(waiting.status().as_u16(), 200);
    assert_eq!(act("stop?t=10").await.status, 204);
    let body = http_body_util::BodyExt::collect(waiting.into_body()).await.unwrap().to_bytes();
    assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["StatusCode"], 3);
    assert_eq!(act("stop").await.status, 304);
    let late = act("kill").await;
    assert_eq!(late.status, 409);
    assert!(late.message().contains("is not running"), "{}", late.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_shown() {
    let Some(host) = Host::new().await else { return };
    let s = host.socket();
    let id = host.start(1, "exec sleep 1000", |_| {}).await;
    let shown = async || {
        let list = get(s, "/containers/json?all=1").await.json();
        let one = get(s, &format!("/containers/{id}/json")).await.json();
        (list[0]["Status"].as_str().unwrap().to_owned(), one["State"]["Health"].clone())
    };
    let filtered = async |word: &str| {
        let path = format!("/containers/json?all=1&{}", crate::http::filters(json!({"health": [word]})));
        get(s, &path).await.json().as_array().map(Vec::len)
    };
    // Without a check nothing is said.
    let (status, health) = shown().await;
    assert!(!status.contains('('), "{status}");
    assert_eq!((health, filtered("none").await), (Value::Null, Some(1)));
    // As the agent writes it down: the verdict, and failures in a row.
    for (record, status, word) in [
        (vec![], "(health: starting)", "starting"),
        (vec![8, 1], "(healthy)", "healthy"),
        (vec![8, 2, 16, 3], "(unhealthy)", "unhealthy"),
    ] {
        host.runtime.put_note(&id, "health", record).await.unwrap();
        let (text, health) = shown().await;
        assert!(text.starts_with("Up ") && text.ends_with(status), "{text}");
        assert_eq!(health["Status"], word);
        assert_eq!((filtered(word).await, filtered("none").await), (Some(1), Some(0)));
    }
    assert_eq!(shown().await.1, json!({"Status": "unhealthy", "FailingStreak": 3, "Log": []}));
    assert_eq!(filtered("well").await, None);
    // Who has ended is not well, whatever was known, and the list says how it ended instead.
    host.runtime.put_note(&id, "health", vec![8, 1]).await.unwrap();
    assert_eq!(post(s, &format!("/containers/{id}/kill"), json!({})).await.status, 204);
    host.runtime.wait(&id).await.unwrap();
    let (text, health) = shown().await;
    assert!(text.starts_with("Exited (137) ") && text.ends_with(" ago"), "{text}");
    assert_eq!(health["Status"], "unhealthy");
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_are_run_in_it() {
    let Some(host) = Host::new().await else { return };
    let id = host.start(3, "exec sleep 1000", |_| {}).await;
    let exec = |command: &[&str]| json!({"Cmd": command, "AttachStdout": true, "AttachStderr": true});
    let run = ask_exec(&host, &id, exec(&["sh", "-c", "echo out; echo err >&2; exit 5"])).await;
    assert_eq!(exec_state(&host, &run).await["ExitCode"], Value::Null);
    let client = Hijacked::open(host.socket(), &format!("/exec/{run}/start"), "{}").await;
    assert!(client.head.starts_with("HTTP/1.1 101"), "{}", client.head);
    assert!(client.head.contains("application/vnd.docker.multiplexed-stream"), "{}", client.head);
    assert_eq!(client.frames().await, ["out\n".to_owned(), "err\n".to_owned(), String::new()]);
    let state = exec_state(&host, &run).await;
    assert_eq!((&state["ExitCode"], &state["Running"], &state["ContainerID"]), (&json!(5), &json!(false), &json!(id)));
    let again = post(host.socket(), &format!("/exec/{run}/start"), json!({})).await;
    assert_eq!(again.status, 409, "{}", again.text());
    // Without an upgrade the same bytes come as an ordinary answer.
    let plain = ask_exec(&host, &id, exec(&["echo", "plain"])).await;
    let answer = post(host.socket(), &format!("/exec/{plain}/start"), json!({})).await;
    assert_eq!((answer.status, &answer.body[..]), (200, &b"\x01\0\0\0\0\0\0\x06plain\n"[..]));
    // Standard input, and its end.
    let mut body = exec(&["cat"]);
    body["AttachStdin"] = json!(true);
    let cat = ask_exec(&host, &id, body).await;
    let mut client = Hijacked::open(host.socket(), &format!("/exec/{cat}/start"), "{}").await;
    client.stream.write_all(b"to and fro").await.unwrap();
    client.until("to and fro").await;
    client.stream.shutdown().await.unwrap();
    assert_eq!(client.frames().await[0], "to and fro");
    assert_eq!(exec_state(&host, &cat).await["ExitCode"], 0);
    // As somebody, somewhere, with something.
    let body = json!({"Cmd": ["sh", "-c", "id -u; pwd; echo $A"], "AttachStdout": true, "User": "web",
        "WorkingDir": "/etc", "Env": ["A=b"]});
    let run = ask_exec(&host, &id, body).await;
    let client = Hijacked::open(host.socket(), &format!("/exec/{run}/start"), "{}").await;
    assert_eq!(client.frames().await[0], "100\n/etc\nb\n");
    // What cannot be started says so in the stream, and by its exit code.
    let none = ask_exec(&host, &id, exec(&["nosuch"])).await;
    let client = Hijacked::open(host.socket(), &format!("/exec/{none}/start"), "{}").await;
    let [out, ..] = client.frames().await;
    assert!(out.contains("OCI runtime exec failed") && out.contains("executable file not found in $PATH"), "{out}");
    assert_eq!(exec_state(&host, &none).await["ExitCode"], 127);
    let detached = ask_exec(&host, &id, json!({"Cmd": ["touch", "/tmp/was-here"]})).await;
    assert_eq!(post(host.socket(), &format!("/exec/{detached}/start"), json!({"Detach": true})).await.status, 200);
    let refused = |body: Value, status: u16| {
        let (socket, path) = (host.socket().to_owned(), format!("/containers/{id}/exec"));
        async move {
            let answer = post(&socket, &path, body).await;
            assert_eq!(answer.status, status, "{}", answer.text());
        }
    };
    refused(json!({"Cmd": []}), 400).await;
    refused(json!({"Cmd": ["true"], "Privileged": true}), 501).await;
    refused(json!({"Cmd": ["true"], "DetachKeys": "nonsense"}), 400).await;
    refused(json!({"Cmd": ["true"], "ConsoleSize": [1]}), 400).await;
    assert_eq!(get(host.socket(), "/exec/nosuch/json").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn terminals_and_attached_clients() {
    let Some(host) = Host::new().await else { return };
    let script = "echo ready; while read line; do echo \"got $line\"; done; echo over";
    let id = host
        .start(4, script, |config| {
            config.open_stdin = true;
            config.tty = true;
        })
        .await;
    host.until_logged(&id, "ready").await;
    let path = format!("/containers/{id}/attach?stream=1&stdin=1&stdout=1&stderr=1&logs=1");
    let mut client = Hijacked::open(host.socket(), &path, "").await;
    assert!(client.head.contains("application/vnd.docker.raw-stream"), "{}", client.head);
    client.until("ready\r\n").await;
    client.stream.write_all(b"hello\r").await.unwrap();
    client.until("got hello\r\n").await;
    let size = post(host.socket(), &format!("/containers/{id}/resize?h=33&w=111"), json!({})).await;
    assert_eq!(size.status, 200);
    assert_eq!(post(host.socket(), &format!("/containers/{id}/resize?h=x&w=1"), json!({})).await.status, 400);
    // Another client sees the same terminal; the keys that detach end only their own connection.
    let mut other = Hijacked::open(host.socket(), &path, "").await;
    other.stream.write_all(b"twice\r").await.unwrap();
    client.until("got twice\r\n").await;
    other.until("got twice\r\n").await;
    other.stream.write_all(b"\x10\x11").await.unwrap();
    let closed = other.stream.read_to_end_into(&mut other.buffer);
    tokio::time::timeout(PATIENCE, closed).await.expect("it is closed");
    let body = json!({"Cmd": ["sh", "-c", "tty; stty size"], "Tty": true, "AttachStdout": true, "AttachStdin": true});
    let exec = ask_exec(&host, &id, body).await;
    let start = json!({"Tty": true, "ConsoleSize": [24, 80]}).to_string();
    let mut terminal = Hijacked::open(host.socket(), &format!("/exec/{exec}/start"), &start).await;
    let seen = terminal.until("24 80").await;
    assert!(seen.starts_with("/dev/pts/"), "{seen}");
    // A shell whose client goes away is hung up on.
    let body = json!({"Cmd": ["sh"], "Tty": true, "AttachStdout": true, "AttachStdin": true});
    let shell = ask_exec(&host, &id, body).await;
    let mut terminal = Hijacked::open(host.socket(), &format!("/exec/{shell}/start"), "{}").await;
    terminal.stream.write_all(b"echo $((6*7))\r").await.unwrap();
    terminal.until("42").await;
    assert_eq!(post(host.socket(), &format!("/exec/{shell}/resize?h=10&w=20"), json!({})).await.status, 200);
    terminal.stream.write_all(b"stty size\r").await.unwrap();
    terminal.until("10 20").await;
    drop(terminal);
    let gone = async {
        while exec_state(&host, &shell).await["Running"] == json!(true) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("the shell ends");
    // The end of what is typed ends the container, and with it the connection.
    client.stream.write_all(b"\x04").await.unwrap();
    client.until("over\r\n").await;
    let closed = client.stream.read_to_end_into(&mut client.buffer);
    tokio::time::timeout(PATIENCE, closed).await.expect("it is closed");
    let refused = post(host.socket(), &format!("/containers/{id}/attach?stream=1&stdout=1"), json!({})).await;
    assert_eq!(refused.status, 409, "{}", refused.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_processes_and_counters() {
    let Some(host) = Host::new().await else { return };
    let script = "echo one; echo two >&2; echo three; exec sleep 1000";
    let id = host.start(5, script, |_| {}).await;
    host.until_logged(&id, "three").await;
    let s = host.socket();
    let logs = async |query: &str| get(s, &format!("/containers/{id}/logs?{query}")).await;
    assert_eq!(&logs("stdout=1").await.body[..], b"\x01\0\0\0\0\0\0\x04one\n\x01\0\0\0\0\0\0\x06three\n");
    assert_eq!(&logs("stderr=1").await.body[..], b"\x02\0\0\0\0\0\0\x04two\n");
    assert_eq!(&logs("stdout=1&tail=1").await.body[..], b"\x01\0\0\0\0\0\0\x06three\n");
    assert_eq!(logs("").await.status, 400);
    assert!(logs("stdout=1&timestamps=1").await.text().contains("Z one\n"));
    assert_eq!(logs("stdout=1&until=1").await.body.len(), 0);
    let top = get(s, &format!("/containers/{id}/top")).await.json();
    assert_eq!(top["Titles"], json!(["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]));
    // The shell becomes it a moment after it has written.
    let sleeps = async {
        loop {
            let top = get(s, &format!("/containers/{id}/top?ps_args=-o%20pid,args")).await.json();
            if top["Processes"][0][1] == "sleep 1000" {
                return top;
            }
        }
    };
    let top = tokio::time::timeout(PATIENCE, sleeps).await.expect("it sleeps");
    assert_eq!(top["Titles"], json!(["PID", "COMMAND"]));
    assert_eq!(get(s, &format!("/containers/{id}/top?ps_args=--forest")).await.status, 400);
    let stats = get(s, &format!("/containers/{id}/stats?stream=0&one-shot=1")).await.json();
    assert_eq!(stats["name"], "/web.5.task5");
    assert!(stats["cpu_stats"]["cpu_usage"]["total_usage"].as_u64().unwrap() > 0, "{stats}");
    assert!(stats["memory_stats"]["limit"].as_u64().unwrap() > 0 && stats["pids_stats"]["current"] == 1, "{stats}");
    // A stream goes on until its client does, or the container.
    let answer = open(s, "GET", &format!("/containers/{id}/stats"), None, Vec::new()).await;
    let mut body = answer.into_body();
    for _ in 0..2 {
        let frame = tokio::time::timeout(PATIENCE, http_body_util::BodyExt::frame(&mut body)).await.unwrap();
        let line = frame.unwrap().unwrap().into_data().unwrap();
        assert!(serde_json::from_slice::<Value>(&line).unwrap()["read"].is_string());
    }
    host.runtime.stop(&id, None, Duration::ZERO).await.unwrap();
    let rest = tokio::time::timeout(PATIENCE, http_body_util::BodyExt::collect(body)).await;
    assert!(rest.is_ok(), "the stream ends with the container");
    assert_eq!(get(s, &format!("/containers/{id}/top")).await.status, 409);
    assert_eq!(get(s, &format!("/containers/{id}/stats?stream=0")).await.json()["memory_stats"], json!({}));
}

/// An archive with one file.
pub(crate) fn tar(name: &str, content: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1);
    header.set_cksum();
    builder.append_data(&mut header, name, content).unwrap();
    builder.into_inner().unwrap()
}

pub(crate) fn tar_names(bytes: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(bytes);
    let names = archive.entries().unwrap().map(|e| String::from_utf8_lossy(&e.unwrap().path_bytes()).into_owned());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn files_in_and_out() {
    let Some(host) = Host::new().await else { return };
    let s = host.socket();
    let script = "echo text > /tmp/f; /bin/busybox ln -s /tmp/f /tmp/l; /bin/busybox rm /etc/group; echo ready; \
                  exec sleep 1000";
    let id = host.start(8, script, |_| {}).await;
    host.until_logged(&id, "ready").await;
    let archive = |query: &str| format!("/containers/web.8.task8/archive?{query}");
    let stat = |answer: &crate::http::Answer| -> Value {
        use base64::Engine as _;
        let text = answer.headers["x-docker-container-path-stat"].to_str().unwrap();
        serde_json::from_slice(&base64::engine::general_purpose::STANDARD.decode(text).unwrap()).unwrap()
    };
    let head = send(s, "HEAD", &archive("path=/tmp/l"), None, Vec::new()).await;
    let object = stat(&head);
    assert_eq!((head.status, &object["name"], &object["linkTarget"]), (200, &json!("l"), &json!("/tmp/f")));
    assert_eq!(object["mode"], json!(0x0800_0000 | 0o777));
    assert_eq!(send(s, "HEAD", &archive("path=/none"), None, Vec::new()).await.status, 404);
    let got = get(s, &archive("path=/tmp")).await;
    assert_eq!(got.headers["content-type"], "application/x-tar");
    assert_eq!(
        (tar_names(&got.body), &stat(&got)["name"]),
        (["tmp/", "tmp/f", "tmp/l"].map(str::to_owned).to_vec(), &json!("tmp"))
    );
    let missing = get(s, &archive("path=/none")).await;
    assert_eq!(missing.status, 404);
    assert_eq!(missing.message(), "Could not find the file /none in container web.8.task8");
    assert_eq!(get(s, &archive("")).await.message(), "bad parameter: path cannot be empty");
    assert_eq!(get(s, "/containers/nobody/archive?path=/").await.status, 404);
    let put = async |query: &str, body: Vec<u8>| send(s, "PUT", &archive(query), Some("application/x-tar"), body).await;
    assert_eq!(put("path=/tmp", tar("new", b"put")).await.status, 200);
    assert_eq!(tar_names(&get(s, &archive("path=/tmp/.")).await.body), ["./", "./f", "./l", "./new"]);
    let refusal = put("path=/tmp/f", tar("x", b"")).await;
    assert_eq!((refusal.status, refusal.message()), (400, "extraction point is not a directory".to_owned()));
    assert_eq!(put("path=/none", tar("x", b"")).await.status, 404);
    assert_eq!(put("path=/proc", tar("x", b"")).await.status, 400);
    let refusal = put("path=/&noOverwriteDirNonDir=1", tar("tmp", b"")).await;
    assert!(refusal.status == 400 && refusal.message().contains("cannot overwrite directory"), "{}", refusal.text());
    let half = put("path=/tmp", tar("half", &[b'x'; 5000])[..2000].to_vec()).await;
    assert_eq!((half.status, half.message()), (400, "the archive is truncated".to_owned()));
    // One who breaks off in the middle leaves nothing.
    let mut stream = UnixStream::connect(s).await.unwrap();
    let bytes = tar("broken", &[b'x'; 100_000]);
    let request =
        format!("PUT {} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", archive("path=/tmp"), bytes.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.write_all(&bytes[..50_000]).await.unwrap();
    let begun = async { while get(s, &archive("path=/tmp/broken")).await.status != 200 {} };
    tokio::time::timeout(PATIENCE, begun).await.expect("it begins");
    drop(stream);
    let gone = async { while get(s, &archive("path=/tmp/broken")).await.status != 404 {} };
    tokio::time::timeout(PATIENCE, gone).await.expect("half a file goes");
    let changes = get(s, &format!("/containers/{id}/changes")).await.json();
    let has = |path: &str, kind: u64| changes.as_array().unwrap().contains(&json!({"Path": path, "Kind": kind}));
    assert!(has("/tmp", 0) && has("/tmp/new", 1) && has("/etc/group", 2) && has("/etc", 0), "{changes}");
    assert_eq!(changes.as_array().unwrap().len(), 6, "{changes}");
    let export = get(s, &format!("/containers/{id}/export")).await;
    let names = tar_names(&export.body);
    assert!(
        ["tmp/new", "bin/busybox", "etc/passwd"].iter().all(|name| names.contains(&(*name).to_owned())),
        "{names:?}"
    );
    assert!(!names.contains(&"etc/group".to_owned()));
    // What is read-only, and what has ended.
    let sealed = host.start(9, "exec sleep 1000", |config| config.readonly_root = true).await;
    let refusal = send(s, "PUT", &format!("/containers/{sealed}/archive?path=/tmp"), None, tar("x", b"")).await;
    assert_eq!((refusal.status, refusal.message()), (403, "container rootfs is marked read-only".to_owned()));
    host.runtime.stop(&id, None, Duration::ZERO).await.unwrap();
    assert_eq!(put("path=/tmp", tar("after", b"end")).await.status, 200);
    assert_eq!(tar_names(&get(s, &archive("path=/tmp/after")).await.body), ["after"]);
}

#[tokio::test]
async fn what_it_takes_of_the_disk() {
    let Some(host) = Host::new().await else { return };
    let id = host.start(7, "head -c 5000 /dev/zero > /tmp/a; echo done; exec sleep 1000", |_| {}).await;
    host.until_logged(&id, "done").await;
    let s = host.socket();
    // Its image is none of this host's, so what it has written is all. The files in /etc are bound, not written.
    let listed = get(s, "/containers/json?size=1").await.json();
    assert_eq!((&listed[0]["SizeRw"], &listed[0]["SizeRootFs"]), (&json!(5000), &json!(5000)), "{listed}");
    assert_eq!(get(s, "/containers/json").await.json()[0].get("SizeRw"), None);
    assert_eq!(get(s, &format!("/containers/{id}/json?size=1")).await.json()["SizeRw"], 5000);
    let all = get(s, "/system/df").await.json();
    assert_eq!((&all["LayersSize"], &all["Images"], &all["BuildCache"]), (&json!(0), &json!([]), &json!([])), "{all}");
    assert_eq!(all["Containers"][0]["SizeRw"], 5000);
    assert_eq!(all["Volumes"], json!([]));
    let volume = post(s, "/volumes/create", json!({"Name": "data"})).await.json();
    std::fs::write(Path::new(volume["Mountpoint"].as_str().unwrap()).join("a"), [0; 700]).unwrap();
    let some = get(s, "/system/df?type=volume&type=image").await.json();
    assert_eq!(some.as_object().unwrap().keys().collect::<Vec<_>>(), ["Images", "LayersSize", "Volumes"]);
    assert_eq!(some["Volumes"][0]["UsageData"], json!({"Size": 700, "RefCount": 0}), "{some}");
    assert_eq!(get(s, "/system/df?type=nothing").await.status, 400);
}
