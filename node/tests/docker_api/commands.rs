//! Containers with a command line as client: our own, also on a terminal, and docker's where it is installed.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;

use crate::containers::{Host, PATIENCE, tar, tar_names};

/// Runs a command line against this engine: its exit code, and what it printed.
pub(crate) async fn run_command(
    program: &Path,
    host: &Host,
    args: &[&str],
    input: &[u8],
) -> (Option<i32>, String, String) {
    let home = tempfile::tempdir().unwrap();
    let mut child = tokio::process::Command::new(program)
        .args(args)
        .env_clear()
        .env("DOCKER_HOST", format!("unix://{}", host.socket().display()))
        .env("HOME", home.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // One that does not read may have ended.
    let _ = stdin.write_all(input).await;
    drop(stdin);
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("it ends").unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn with_our_own_command_line() {
    let Some(host) = Host::new().await else { return };
    let id = host.start(10, "echo ready; exec sleep 1000", |_| {}).await;
    host.until_logged(&id, "ready").await;
    let shoal = Path::new(env!("CARGO_BIN_EXE_shoal"));
    let run = async |args: &[&str]| run_command(shoal, &host, &[&["container"], args].concat(), b"").await;
    let ok = async |args: &[&str]| {
        let (code, out, err) = run(args).await;
        assert_eq!(code, Some(0), "{args:?}: {out}{err}");
        out
    };
    let refused = async |args: &[&str], code: i32, text: &str| {
        let (got, out, err) = run(args).await;
        assert!(got == Some(code) && err.contains(text), "{args:?}: {got:?} {out}{err}");
    };
    let name = "web.10.task10";
    let list = ok(&["ls"]).await;
    assert!(list.starts_with("CONTAINER ID") && list.contains(name) && list.contains("Up "), "{list}");
    assert_eq!(ok(&["ps", "-q", "--no-trunc"]).await, format!("{id}\n"));
    assert_eq!(ok(&["ls", "--filter", "name=other", "--format", "{{.Names}}"]).await, "");
    assert_eq!(ok(&["exec", name, "echo", "hi"]).await, "hi\n");
    let exec = &["container", "exec", "-i", name, "cat"];
    assert_eq!(run_command(shoal, &host, exec, b"through\n").await, (Some(0), "through\n".into(), String::new()));
    let script = "id -u; pwd; echo $A; echo err >&2; exit 9";
    let (code, out, err) = run(&["exec", "-u", "web", "-w", "/etc", "-e", "A=1", name, "sh", "-c", script]).await;
    assert_eq!((code, out.as_str(), err.as_str()), (Some(9), "100\n/etc\n1\n", "err\n"));
    let (code, out, err) = run(&["exec", name, "nosuch"]).await;
    assert!(code == Some(127) && (out + &err).contains("executable file not found"));
    assert!(ok(&["exec", "-t", name, "tty"]).await.starts_with("/dev/pts/"));
    refused(&["exec", "-it", name, "sh"], 2, "standard input is no terminal").await;
    assert_eq!(ok(&["exec", "-d", name, "touch", "/tmp/detached"]).await, "");
    refused(&["exec", "nobody", "true"], 2, "No such container: nobody").await;
    assert_eq!(ok(&["logs", name]).await, "ready\n");
    assert_eq!(ok(&["logs", "-n", "0", "--until", "2020-01-01", name]).await, "");
    assert!(ok(&["top", name]).await.contains("sleep 1000"));
    let top = ok(&["top", name, "-o", "pid,comm"]).await;
    assert!(top.starts_with("PID") && top.contains("sleep"), "{top}");
    assert_eq!(ok(&["stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}"]).await, format!("{name} 1\n"));
    assert!(ok(&["inspect", name]).await.contains("\"Running\": true"));
    for (verb, state) in [("pause", "paused"), ("unpause", "running")] {
        assert_eq!(ok(&[verb, name]).await, format!("{name}\n"));
        assert!(ok(&["inspect", &id[..8]]).await.contains(&format!("\"Status\": \"{state}\"")));
    }
    let home = tempfile::tempdir().unwrap();
    let path = |name: &str| home.path().join(name).display().to_string();
    std::fs::create_dir_all(home.path().join("local/sub")).unwrap();
    std::fs::write(home.path().join("local/sub/f"), "from here").unwrap();
    let there = |path: &str| format!("{name}:{path}");
    let cat = async |path: &str| ok(&["exec", name, "cat", path]).await;
    for (from, to, file) in [
        (path("local"), "/tmp", "/tmp/local/sub/f"),
        (path("local"), "/tmp/renamed", "/tmp/renamed/sub/f"),
        (path("local/."), "/tmp/", "/tmp/sub/f"),
        (path("local/sub/f"), "/tmp/as", "/tmp/as"),
    ] {
        ok(&["cp", &from, &there(to)]).await;
        assert_eq!(cat(file).await, "from here", "{from} {to}");
    }
    ok(&["exec", name, "sh", "-c", "cd /tmp/sub; /bin/busybox ln -s f l; /bin/busybox chown 7:8 f"]).await;
    std::fs::create_dir(home.path().join("back")).unwrap();
    for (from, to, file) in [
        ("/tmp/sub", path("back"), "back/sub/f"),
        ("/tmp/sub/.", path("back"), "back/f"),
        ("/tmp/sub/f", path("back/other"), "back/other"),
        ("/tmp/sub", path("back/dir"), "back/dir/l"),
    ] {
        ok(&["cp", &there(from), &to]).await;
        assert_eq!(std::fs::read_to_string(home.path().join(file)).unwrap(), "from here", "{from} {to}");
    }
    use std::os::unix::fs::MetadataExt;
    let owner =
        |file: &str| std::fs::symlink_metadata(home.path().join(file)).map(|meta| (meta.uid(), meta.gid())).unwrap();
    assert_eq!(owner("back/f"), (0, 0));
    ok(&["cp", "-a", &there("/tmp/sub/f"), &path("back/kept")]).await;
    assert_eq!(owner("back/kept"), (7, 8));
    ok(&["cp", "-L", &there("/tmp/sub/l"), &path("back/followed")]).await;
    assert!(std::fs::symlink_metadata(home.path().join("back/followed")).unwrap().is_file());
    let archive = tar("piped", b"piped");
    let (code, _, err) = run_command(shoal, &host, &["container", "cp", "-", &there("/tmp")], &archive).await;
    assert_eq!((code, cat("/tmp/piped").await.as_str()), (Some(0), "piped"), "{err}");
    assert!(ok(&["cp", &there("/tmp/piped"), "-"]).await.starts_with("piped"));
    refused(&["cp", &there("/none"), &path("back")], 2, "Could not find the file /none in container").await;
    refused(&["cp", &path("local"), &there("/none/deep")], 2, "Could not find the file").await;
    refused(&["cp", &path("local"), &there("/tmp/as")], 2, "is a file: a directory cannot be copied over it").await;
    refused(&["cp", &path("local/sub/f"), "nobody:/tmp"], 2, "No such container: nobody").await;
    refused(&["cp", &path("nothing"), &there("/tmp")], 2, "cannot copy").await;
    refused(&["cp", "a:/x", "b:/y"], 2, "both sides are containers").await;
    assert!(ok(&["diff", name]).await.contains("A /tmp/renamed/sub/f\n"));
    ok(&["export", "-o", &path("export.tar"), name]).await;
    assert!(tar_names(&std::fs::read(home.path().join("export.tar")).unwrap()).contains(&"tmp/piped".to_owned()));
    refused(&["rm", name], 2, "belongs to task").await;
    refused(&["restart", name], 2, "belongs to task").await;
    refused(&["kill", "-s", "NONE", name], 2, "Invalid signal").await;
    refused(&["attach", "nobody"], 2, "No such container").await;
    let attached = tokio::spawn({
        let socket = host.socket().to_owned();
        async move {
            let mut command = tokio::process::Command::new(shoal);
            command.args(["container", "attach", "web.10.task10"]).env_clear().kill_on_drop(true);
            command.env("DOCKER_HOST", format!("unix://{}", socket.display())).stdin(Stdio::null());
            tokio::time::timeout(PATIENCE, command.status()).await.expect("it ends").unwrap().code()
        }
    });
    assert_eq!(ok(&["kill", name]).await, format!("{name}\n"));
    assert_eq!(ok(&["wait", name]).await, "137\n");
    let code = attached.await.unwrap();
    assert!(code == Some(137) || code == Some(2), "it was attached to the end, or came too late: {code:?}");
    assert!(ok(&["ls", "--all"]).await.contains("Exited (137)"));
    refused(&["exec", name, "true"], 2, "is not running").await;
    refused(&["attach", name], 2, "does not run").await;
}

/// A terminal with our command line on it.
struct OnTerminal {
    master: std::fs::File,
    slave: std::fs::File,
    shown: std::sync::Arc<std::sync::Mutex<String>>,
    child: tokio::process::Child,
}

impl OnTerminal {
    fn new(host: &Host, args: &[&str]) -> OnTerminal {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
        let slave = std::fs::File::from(rustix::fs::open(name, flags, rustix::fs::Mode::empty()).unwrap());
        let size = rustix::termios::Winsize { ws_row: 21, ws_col: 84, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&slave, size).unwrap();
        let end = || Stdio::from(slave.try_clone().unwrap());
        let child = tokio::process::Command::new(env!("CARGO_BIN_EXE_shoal"))
            .args(args)
            .env_clear()
            .env("SHOAL_HOST", format!("unix://{}", host.socket().display()))
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (master, shown) = (std::fs::File::from(master), std::sync::Arc::<std::sync::Mutex<String>>::default());
        let (mut reader, sink) = (master.try_clone().unwrap(), shown.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = std::io::Read::read(&mut reader, &mut buffer) {
                sink.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        });
        OnTerminal { master, slave, shown, child }
    }

    fn types(&mut self, keys: &str) {
        std::io::Write::write_all(&mut self.master, keys.as_bytes()).unwrap();
    }

    async fn until(&self, text: &str) {
        let looking = async {
            while !self.shown.lock().unwrap().contains(text) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, looking).await.is_err() {
            panic!("{text:?} in {:?}", self.shown.lock().unwrap());
        }
    }

    /// Whether the terminal waits for whole lines, as it does for everybody but those who asked for more.
    fn is_cooked(&self) -> bool {
        rustix::termios::tcgetattr(&self.slave).unwrap().local_modes.contains(rustix::termios::LocalModes::ICANON)
    }

    async fn code(&mut self) -> Option<i32> {
        let code = tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("it ends").unwrap().code();
        assert!(self.is_cooked(), "the terminal is itself again");
        code
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_at_both_ends() {
    let Some(host) = Host::new().await else { return };
    let id = host.start(11, "echo ready; exec sleep 1000", |_| {}).await;
    host.until_logged(&id, "ready").await;
    let name = "web.11.task11";
    let mut terminal = OnTerminal::new(&host, &["container", "exec", "-it", name, "sh"]);
    terminal.until("#").await;
    assert!(!terminal.is_cooked());
    terminal.types("stty size; echo $((40+2))\r");
    terminal.until("21 84").await;
    terminal.until("\n42").await;
    let size = rustix::termios::Winsize { ws_row: 33, ws_col: 99, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&terminal.slave, size).unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(terminal.child.id().unwrap()).unwrap()).unwrap();
    // It is not this terminal's foreground, so the kernel tells it nothing.
    rustix::process::kill_process(pid, rustix::process::Signal::WINCH).unwrap();
    terminal.types("until stty size | /bin/busybox grep 99; do :; done; echo re\"sized\"\r");
    terminal.until("resized").await;
    // Keys that would end a command here go to the one there.
    // It says so itself, and so is the terminal's foreground by then.
    terminal.types("sh -c 'echo sle\"eping\"; exec sleep 1000'\r");
    terminal.until("sleeping").await;
    terminal.types("\x03");
    terminal.until("^C").await;
    terminal.types("exit 5\r");
    assert_eq!(terminal.code().await, Some(5));
    // The keys that leave it.
    let mut terminal = OnTerminal::new(&host, &["container", "exec", "-it", "--detach-keys", "ctrl-a,x", name, "sh"]);
    terminal.until("#").await;
    terminal.types("\x01x");
    assert_eq!(terminal.code().await, Some(0));
    terminal.until("it goes on").await;
    // A container with a terminal of its own.
    let id = host.start(12, "echo ready; read line; echo \"got $line\"; exit 6", |config| config.tty = true).await;
    host.until_logged(&id, "ready").await;
    let mut terminal = OnTerminal::new(&host, &["container", "attach", "web.12.task12"]);
    let raw = async {
        while terminal.is_cooked() {
            tokio::time::sleep(Duration::from_millis(5)).await
        }
    };
    tokio::time::timeout(PATIENCE, raw).await.expect("raw mode");
    terminal.types("hello\r");
    terminal.until("got hello").await;
    assert_eq!(terminal.code().await, Some(6));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_docker_command_line() {
    let docker = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .map(|dir| dir.join("docker"))
        .find(|path| path.is_file());
    let Some(docker) = docker else {
        println!("skipped: there is no docker client in PATH");
        return;
    };
    let Some(host) = Host::new().await else { return };
    let id = host.start(6, "echo ready; exec sleep 1000", |_| {}).await;
    host.until_logged(&id, "ready").await;
    let home = tempfile::tempdir().unwrap();
    let run = async |args: &[&str], input: &str| run_command(&docker, &host, args, input.as_bytes()).await;
    let name = "web.6.task6";
    let (_, out, _) = run(&["ps", "--format", "{{.Names}} {{.State}}"], "").await;
    assert_eq!(out, "web.6.task6 running\n");
    assert_eq!(run(&["exec", name, "echo", "hi"], "").await, (Some(0), "hi\n".into(), String::new()));
    assert_eq!(run(&["exec", "-i", name, "cat"], "through\n").await.1, "through\n");
    assert_eq!(run(&["exec", name, "sh", "-c", "exit 9"], "").await.0, Some(9));
    assert_eq!(
        run(&["exec", "-u", "web", "-w", "/etc", "-e", "A=1", name, "sh", "-c", "id -u; pwd; echo $A"], "").await.1,
        "100\n/etc\n1\n"
    );
    let (code, out, err) = run(&["exec", name, "nosuch"], "").await;
    assert!(code == Some(127) && (out.clone() + &err).contains("executable file not found"), "{code:?} {out} {err}");
    assert!(run(&["exec", "-t", name, "tty"], "").await.1.starts_with("/dev/pts/"));
    assert_eq!(run(&["exec", "-d", name, "true"], "").await.0, Some(0));
    let (code, _, err) = run(&["exec", "--privileged", name, "true"], "").await;
    assert!(code != Some(0) && err.contains("does not run privileged"), "{err}");
    assert_eq!(run(&["logs", name], "").await.1, "ready\n");
    assert_eq!(run(&["logs", "--tail", "0", name], "").await.1, "");
    assert!(run(&["top", name], "").await.1.contains("sleep 1000"));
    assert!(run(&["top", name, "-o", "pid,comm"], "").await.1.contains("COMMAND"));
    let (_, out, err) = run(&["stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}", name], "").await;
    assert_eq!(out, "web.6.task6 1\n", "{err}");
    assert!(run(&["inspect", name], "").await.1.contains("\"Running\": true"));
    let local = home.path().join("local");
    std::fs::create_dir_all(local.join("sub")).unwrap();
    std::fs::write(local.join("sub/f"), "from here").unwrap();
    std::os::unix::fs::symlink("f", local.join("sub/l")).unwrap();
    let (local, back) = (local.display().to_string(), home.path().join("back"));
    let there = |path: &str| format!("{name}:{path}");
    let copied = async |from: &str, to: &str| {
        let (code, out, err) = run(&["cp", from, to], "").await;
        assert_eq!(code, Some(0), "cp {from} {to}: {out}{err}");
    };
    let cat = async |path: &str| run(&["exec", name, "cat", path], "").await.1;
    copied(&local, &there("/tmp")).await;
    assert_eq!(cat("/tmp/local/sub/l").await, "from here");
    copied(&local, &there("/tmp/renamed")).await;
    assert_eq!(cat("/tmp/renamed/sub/f").await, "from here");
    copied(&format!("{local}/."), &there("/tmp")).await;
    assert_eq!(cat("/tmp/sub/f").await, "from here");
    copied(&format!("{local}/sub/f"), &there("/tmp/as")).await;
    assert_eq!(cat("/tmp/as").await, "from here");
    std::fs::create_dir(&back).unwrap();
    let back = back.display().to_string();
    for (from, to, file) in [
        ("/tmp/sub", back.clone(), "sub/f"),
        ("/tmp/sub/.", back.clone(), "f"),
        ("/tmp/sub/f", format!("{back}/other"), "other"),
        ("/tmp/sub", format!("{back}/dir"), "dir/l"),
    ] {
        copied(&there(from), &to).await;
        assert_eq!(std::fs::read_to_string(Path::new(&back).join(file)).unwrap(), "from here", "{from}");
    }
    let (code, _, err) = run(&["cp", "-L", &there("/tmp/sub/l"), &format!("{back}/followed")], "").await;
    assert_eq!((code, std::fs::read_link(Path::new(&back).join("followed")).is_err()), (Some(0), true), "{err}");
    let (code, _, err) = run(&["cp", &there("/none"), &back], "").await;
    assert!(code == Some(1) && err.contains("Could not find the file /none in container"), "{err}");
    let (code, _, err) = run(&["cp", &local, &there("/none/deep")], "").await;
    assert!(code == Some(1) && err.contains("/none"), "{err}");
    assert!(run(&["diff", name], "").await.1.contains("A /tmp/sub/f"));
    let exported = format!("{back}/export.tar");
    assert_eq!(run(&["export", "-o", &exported, name], "").await.0, Some(0));
    assert!(tar_names(&std::fs::read(&exported).unwrap()).contains(&"tmp/sub/f".to_owned()));
    for (verb, state) in [("pause", "paused"), ("unpause", "running")] {
        assert_eq!(run(&[verb, name], "").await.0, Some(0));
        assert_eq!(run(&["inspect", "--format", "{{.State.Status}}", name], "").await.1, format!("{state}\n"));
    }
    let (_, size, err) = run(&["ps", "-s", "--format", "{{.Size}}"], "").await;
    assert!(size.contains("B (virtual "), "{size}{err}");
    assert!(run(&["system", "df", "-v"], "").await.1.contains(name));
    let (code, _, err) = run(&["restart", name], "").await;
    assert!(code != Some(0) && err.contains("belongs to task"), "{err}");
    assert_eq!(run(&["kill", name], "").await.0, Some(0));
    assert_eq!(run(&["wait", name], "").await.1, "137\n");
    // Until the next second: the client counts in whole ones.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let (until, format) = ((now + 1).to_string(), "{{.Actor.Attributes.name}} {{.Action}}");
    let told = run(&["events", "--since", "1h", "--until", &until, "--format", format], "").await.1;
    for action in ["create", "start", "exec_create: ", "pause", "kill", "die"] {
        assert!(told.contains(&format!("{name} {action}")), "{action} in {told}");
    }
    assert!(run(&["ps", "-a"], "").await.1.contains("Exited (137)"));
    let (code, _, err) = run(&["run", "web:1"], "").await;
    assert!(code != Some(0) && err.contains("no plain containers here"), "{err}");
}
