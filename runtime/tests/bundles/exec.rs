//! Further processes in containers that live.

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use serde_json::json;

use crate::Test;
use crate::bundle::{Bundle, Killed, Reader, Said, has, receive, until};

pub const TESTS: &[Test] = &[
    ("exec::in_the_container", in_the_container),
    ("exec::options", options),
    ("exec::a_process_file", a_process_file),
    ("exec::user_namespaces", user_namespaces),
    ("exec::kept_in_by_its_root_alone", kept_in_by_its_root_alone),
    ("exec::wrong_moments", wrong_moments),
    ("exec::failures", failures),
    ("exec::detached", detached),
    ("exec::signals", signals),
    ("exec::descriptors", descriptors),
    ("exec::terminal_over_a_socket", terminal_over_a_socket),
    ("exec::own_terminal", own_terminal),
    ("exec::run_with_the_own_terminal", run_with_the_own_terminal),
    ("exec::the_binary_is_out_of_reach", the_binary_is_out_of_reach),
];

/// A container that sleeps, and has said so.
fn sleeping(change: impl FnOnce(&mut Bundle)) -> (Bundle, Reader) {
    let mut bundle = Bundle::new("out up then sleep");
    change(&mut bundle);
    let mut output = bundle.create();
    bundle.ok(&["start", &bundle.id]);
    assert_eq!(output.line(), "up");
    (bundle, output)
}

fn words<'a>(bundle: &'a Bundle, options: &[&'a str], plays: &'a str) -> Vec<&'a str> {
    let mut words = vec!["exec"];
    words.extend(options);
    words.extend([bundle.id.as_str(), "/payload", "payload"]);
    words.extend(plays.split(' '));
    words
}

fn exec(bundle: &Bundle, options: &[&str], plays: &str) -> Said {
    bundle.call(&words(bundle, options, plays))
}

#[track_caller]
fn says(bundle: &Bundle, options: &[&str], plays: &str) -> String {
    let said = exec(bundle, options, plays);
    assert_eq!((said.code, said.err.as_str()), (0, ""), "{said:?}");
    said.out
}

fn squeezed(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What `/proc/<pid>/<name>` is a link to, for each name.
fn links(pid: u64) -> Vec<String> {
    let kinds = ["pid", "net", "ipc", "uts", "mnt", "cgroup", "user"];
    kinds.map(|kind| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap().display().to_string()).to_vec()
}

fn in_the_container() {
    let (bundle, _output) = sleeping(|bundle| {
        bundle.config["process"]["user"] = json!({ "uid": 100, "gid": 101, "additionalGids": [5], "umask": 0o27 });
        bundle.config["process"]["cwd"] = "/etc".into();
        bundle.config["process"]["oomScoreAdj"] = 77.into();
        bundle.config["process"]["noNewPrivileges"] = true.into();
        bundle.config["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 321, "hard": 654 }]);
        let refused = json!([{ "names": ["chroot"], "action": "SCMP_ACT_ERRNO" }]);
        bundle.config["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": refused });
    });
    let said =
        exec(&bundle, &[], "cat /proc/self/status then cat /proc/self/limits then pwd then env HOME then exit 7");
    let text = squeezed(&said.out);
    assert_eq!((said.code, said.err.as_str()), (7, ""), "{said:?}");
    for expected in ["Uid: 100 100", "Gid: 101 101", "Groups: 5", "Umask: 0027", "NoNewPrivs: 1", "Seccomp: 2"] {
        has(&text, expected);
    }
    has(&text, "CapBnd: 0000000000000420");
    has(&text, "Max open files 321 654");
    has(&text, "/etc HOME=/srv");
    assert_eq!(says(&bundle, &[], "cat /proc/self/oom_score_adj then cat /proc/sys/kernel/hostname"), "77\nbundle\n");
    // Its namespaces and cgroups are those of the first process, and it is no child of anybody inside.
    let pid_file = bundle.path().join("pid");
    let options = ["--detach", "--pid-file", pid_file.to_str().unwrap()];
    let mut command = bundle.command(&words(&bundle, &options, "sleep"));
    assert!(command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
    let (first, second) = (bundle.state()["pid"].as_u64().unwrap(), fs::read_to_string(pid_file).unwrap());
    let second: u64 = second.parse().unwrap();
    assert_eq!(links(first), links(second));
    let cgroups = |pid: u64| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert_eq!(cgroups(first), cgroups(second));
    has(&cgroups(second), &bundle.id);
    let pids: Vec<u64> = serde_json::from_str(&bundle.ok(&["ps", "--format", "json", &bundle.id])).unwrap();
    assert!(pids.contains(&first) && pids.contains(&second), "{pids:?}");
    bundle.ok(&["delete", "--force", &bundle.id]);
    until("it ends with its container", || !Path::new(&format!("/proc/{second}")).exists());
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}

fn options() {
    let (bundle, _output) = sleeping(|bundle| bundle.config["process"]["env"] = json!(["PATH=/bin", "A=1", "B=1"]));
    let options = ["--env", "A=2", "-e", "C=3", "--cwd", "/proc/sys", "--user", "100:7", "--additional-gids", "9"];
    let more = ["--cap", "CAP_CHOWN", "--no-new-privs"];
    let options = [options.as_slice(), &more].concat();
    let plays = "env A then env B then env C then pwd then cat /proc/self/status";
    let text = squeezed(&says(&bundle, &options, plays));
    has(&text, "A=2 B=1 C=3 /proc/sys");
    has(&text, "Uid: 100 100 100 100 Gid: 7 7 7 7");
    has(&text, "Groups: 9");
    has(&text, "NoNewPrivs: 1");
    // The container's two, and that one.
    has(&text, "CapBnd: 0000000000000421");
    let root = squeezed(&says(&bundle, &["--cap", "CAP_CHOWN"], "cat /proc/self/status"));
    has(&root, "CapInh: 0000000000000000 CapPrm: 0000000000000421 CapEff: 0000000000000421");
    has(&root, "NoNewPrivs: 0");
}

fn a_process_file() {
    let (bundle, _output) = sleeping(|_| {});
    let path = bundle.path().join("process.json");
    let file = path.to_str().unwrap();
    let process = json!({
        "args": ["payload", "payload", "cat", "/proc/self/status", "then", "cat", "/proc/self/limits", "then", "pwd"],
        "cwd": "/proc", "user": { "uid": 3, "gid": 4 }, "env": ["PATH=/"],
        "capabilities": { "bounding": ["CAP_FOWNER"] },
        "rlimits": [{ "type": "RLIMIT_CORE", "soft": 1, "hard": 2 }]
    });
    fs::write(&path, process.to_string()).unwrap();
    let text = squeezed(&bundle.ok(&["exec", "--process", file, &bundle.id]));
    has(&text, "Uid: 3 3 3 3 Gid: 4 4 4 4");
    has(&text, "CapPrm: 0000000000000000 CapEff: 0000000000000000 CapBnd: 0000000000000008");
    has(&text, "Max core file size 1 2");
    assert!(text.ends_with(" /proc"), "{text}");
    let check = |text: &str, expected: &str| {
        fs::write(&path, text).unwrap();
        bundle.fails(&["exec", "--process", file, &bundle.id], expected);
    };
    check("{", "EOF");
    check("{}", "invalid process.cwd");
    check(r#"{"cwd":"/","args":["/payload"],"capabilities":{"bounding":["CAP_FLY"]}}"#, "unknown capability");
    check(r#"{"cwd":"/","args":["/payload"],"rlimits":[{"type":"RLIMIT_X","soft":1,"hard":1}]}"#, "unknown type");
    check(r#"{"cwd":"/","args":["/payload"],"user":{"uid":-1}}"#, "invalid value");
    check(r#"{"cwd":"/","args":["/payload"],"apparmorProfile":"nosuch"}"#, "apparmor");
    check(&" ".repeat((4 << 20) + 1), "is larger than");
    bundle.fails(&["exec", "--process", "/nowhere", &bundle.id], "open /nowhere");
}

fn user_namespaces() {
    let (bundle, _output) = sleeping(|bundle| {
        bundle.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
        let map = json!([{ "containerID": 0, "hostID": 1000, "size": 2000 }]);
        (bundle.config["linux"]["uidMappings"], bundle.config["linux"]["gidMappings"]) = (map.clone(), map);
    });
    let text = squeezed(&says(&bundle, &[], "cat /proc/self/uid_map then cat /proc/self/status"));
    has(&text, "0 1000 2000");
    has(&text, "Uid: 0 0 0 0 Gid: 0 0 0 0");
}

/// Without a mount namespace of its own.
fn kept_in_by_its_root_alone() {
    let (bundle, _output) = sleeping(|bundle| {
        bundle.config["linux"]["namespaces"] = json!([{ "type": "pid" }]);
        bundle.config["linux"]["maskedPaths"] = json!([]);
        bundle.config["linux"]["readonlyPaths"] = json!([]);
        bundle.config["hostname"] = "".into();
        bundle.config["mounts"] = json!([]);
        fs::write(bundle.rootfs().join("mine"), "the container's").unwrap();
    });
    assert_eq!(says(&bundle, &[], "cat /mine then pwd"), "the container's/\n");
    assert_eq!(says(&bundle, &["--cwd", "/etc"], "pwd then cat ../../mine"), "/etc\nthe container's");
}

fn wrong_moments() {
    let bundle = Bundle::new("out up then sleep");
    bundle.fails(&["exec", &bundle.id, "/payload"], "does not exist");
    let mut output = bundle.create();
    // As with runc, it need not be started.
    assert_eq!(says(&bundle, &[], "out early"), "early\n");
    bundle.ok(&["start", &bundle.id]);
    assert_eq!(output.line(), "up");
    bundle.ok(&["pause", &bundle.id]);
    let said = exec(&bundle, &[], "out no");
    assert_eq!((said.code, said.out.as_str()), (255, ""));
    has(&said.err, "is paused, not running");
    let mut waiting = bundle.command(&words(&bundle, &["--ignore-paused"], "out later"));
    let mut waiting = Killed(waiting.stdout(Stdio::piped()).spawn().unwrap());
    let inside = || bundle.ok(&["ps", "--format", "json", &bundle.id]).matches(',').count() == 1;
    until("it waits among the frozen", inside);
    bundle.ok(&["resume", &bundle.id]);
    assert!(waiting.0.wait().unwrap().success());
    let mut text = String::new();
    waiting.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "later\n");
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    bundle.until("stopped");
    let said = exec(&bundle, &[], "out no");
    assert_eq!((said.code, said.out.as_str()), (255, ""));
    has(&said.err, "is stopped, not created or running");
    bundle.ok(&["delete", &bundle.id]);
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}

fn failures() {
    let (bundle, _output) = sleeping(|_| {});
    let check = |words: &[&str], expected: &str| {
        let said = bundle.call(&[&["exec"], words].concat());
        assert_eq!((said.code, said.out.as_str()), (255, ""), "{said:?}");
        has(&said.err, expected);
    };
    let id = bundle.id.as_str();
    check(&[id, "nosuch"], "exec \"nosuch\": executable file not found in $PATH");
    check(&[id, "/nosuch"], "exec \"/nosuch\": no such file or directory");
    check(&[id, "/etc"], "exec \"/etc\": permission denied");
    check(&["--cwd", "/nowhere", id, "/payload"], "enter the working directory /nowhere: no such file");
    check(&["--cwd", "relative", id, "/payload"], "invalid process.cwd");
    // A working directory by way of a descriptor of the runtime's.
    check(&["--cwd", "/proc/self/fd/3", id, "/payload"], "enter the working directory");
    check(&["--user", "web", id, "/payload"], "must be UID[:GID]");
    check(&["--cap", "CAP_FLY", id, "/payload"], "unknown capability");
    check(&["--apparmor", "nosuch", id, "/payload"], "apparmor");
    check(&["--tty", "--detach", id, "/payload"], "needs --console-socket");
    check(&["--console-socket", "/nowhere", id, "/payload"], "which this is not");
    check(&["--preserve-fds", "40", id, "/payload"], "is not open");
    check(&["--pid-file", "/nowhere/pid", id, "/payload", "payload", "sleep"], "write /nowhere/pid");
    // Nothing of all that is left.
    let alone = || bundle.ok(&["ps", "--format", "json", id]).matches(',').count() == 0;
    until("only the first process is left", alone);
    let words = ["exec", "--process", "/p", id, "sh"];
    bundle.fails(&words, "exclude each other");
}

fn detached() {
    let (bundle, _output) = sleeping(|_| {});
    let pid_file = bundle.path().join("pid");
    let (mut reader, writer) = std::io::pipe().unwrap();
    let options = ["-d", "--pid-file", pid_file.to_str().unwrap()];
    let mut command = bundle.command(&words(&bundle, &options, "out hello then cat /proc/self/stat"));
    assert!(command.stdout(writer).status().unwrap().success());
    drop(command);
    // Written before the command ends.
    assert!(fs::read_to_string(&pid_file).unwrap().parse::<u32>().is_ok());
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    has(&text, "hello\n");
}

fn signals() {
    let (bundle, _output) = sleeping(|_| {});
    let mut command = bundle.command(&words(&bundle, &[], "out up then sleep"));
    let (reader, writer) = std::io::pipe().unwrap();
    let mut child = Killed(command.stdout(writer).spawn().unwrap());
    drop(command);
    let mut reader = Reader(reader);
    assert_eq!(reader.line(), "up");
    let pid = Pid::from_child(&child.0);
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(child.0.wait().unwrap().code(), Some(128 + 15));
    assert_eq!(reader.all(), "");
}

fn descriptors() {
    let (bundle, _output) = sleeping(|_| {});
    fs::write(bundle.path().join("passed"), "passed").unwrap();
    let exec = |more: &str, plays: &str| {
        let exe = std::env::current_exe().unwrap();
        let (dir, root) = (bundle.path().display(), bundle.path().join("state"));
        let (exe, root, id) = (exe.display(), root.display(), &bundle.id);
        let line = format!("exec {exe} runtime --root {root} exec {more} {id} /payload payload {plays} 3<{dir}/passed");
        Said::from(Command::new("sh").args(["-c", &line]).output().unwrap())
    };
    let said = exec("--preserve-fds 1", "fds then cat /proc/self/fd/3");
    assert_eq!((said.code, said.out.as_str()), (0, "fds 0 1 2 3\npassed"), "{said:?}");
    // Not passed on by chance.
    assert_eq!(exec("", "fds").out, "fds 0 1 2\n");
}

fn terminal_over_a_socket() {
    let (bundle, _output) = sleeping(|_| {});
    let path = bundle.path().join("console");
    let socket = UnixListener::bind(&path).unwrap();
    let process = bundle.path().join("process.json");
    let wanted = json!({ "terminal": true, "consoleSize": { "height": 33, "width": 77 }, "cwd": "/",
        "args": ["/payload", "payload", "tty", "then", "fds", "then", "read"] });
    fs::write(&process, wanted.to_string()).unwrap();
    let (console, process) = (path.to_str().unwrap(), process.to_str().unwrap());
    bundle.ok(&["exec", "--detach", "--console-socket", console, "--process", process, &bundle.id]);
    let master = receive(&socket.accept().unwrap().0);
    let size = rustix::termios::tcgetwinsize(&master).unwrap();
    assert_eq!((size.ws_row, size.ws_col), (33, 77));
    has(&up_to(&master, "fds 0 1 2\r\n"), "tty true\r\n");
    rustix::io::write(&master, b"typed\n").unwrap();
    has(&whole(&master), "read typed\r\n");
}

/// What comes from a terminal until it has said this.
fn up_to(master: &impl AsFd, prompt: &str) -> String {
    let mut shown = String::new();
    let mut buffer = [0u8; 256];
    while !shown.contains(prompt) {
        let count = rustix::io::read(master, &mut buffer).unwrap();
        shown.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    shown
}

/// All that comes from a terminal: its last writer's end is an error.
fn whole(master: &impl AsFd) -> String {
    let mut text = String::new();
    let mut buffer = [0u8; 256];
    while let Ok(count @ 1..) = rustix::io::read(master, &mut buffer) {
        text.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    text
}

/// A terminal as a user has it: its master, and its slave.
fn terminal() -> (OwnedFd, OwnedFd) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let slave = ioctl_tiocgptpeer(&master, flags).unwrap();
    tcsetwinsize(&slave, Winsize { ws_row: 21, ws_col: 42, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    (master, slave)
}

/// Runs a command of the runtime's on a terminal as a user does, types `typed` when it has said `prompt`, and returns its
/// exit code and what it has shown.
fn at_a_terminal(mut command: Command, prompt: &str, typed: &[u8]) -> (Option<i32>, String) {
    let (master, slave) = terminal();
    let stream = || Stdio::from(slave.try_clone().unwrap());
    command.stdin(stream()).stdout(stream()).stderr(stream()).process_group(0);
    let mut child = Killed(command.spawn().unwrap());
    drop(command);
    let mut shown = up_to(&master, prompt);
    assert!(!tcgetattr(&slave).unwrap().local_modes.contains(LocalModes::ICANON), "it is not raw");
    rustix::io::write(&master, typed).unwrap();
    let code = child.0.wait().unwrap().code();
    assert!(tcgetattr(&slave).unwrap().local_modes.contains(LocalModes::ICANON), "it was not put back");
    drop(slave);
    shown.push_str(&whole(&master));
    (code, shown)
}

fn own_terminal() {
    let (bundle, _output) = sleeping(|_| {});
    let command = bundle.command(&words(&bundle, &["--tty"], "tty then size then out ready then read then exit 5"));
    let (code, shown) = at_a_terminal(command, "ready", b"typed\r");
    assert_eq!(code, Some(5), "{shown}");
    has(&shown, "tty true\r\nsize 21 42\r\nready\r\n");
    has(&shown, "read typed\r\n");
    // ^C is for the process there.
    let command = bundle.command(&words(&bundle, &["-t"], "out ready then sleep"));
    let (code, shown) = at_a_terminal(command, "ready", b"\x03");
    assert_eq!(code, Some(128 + 2), "{shown}");
    // Without a terminal here there is one there all the same; whoever has nothing to type is not heard.
    let said = exec(&bundle, &["-t"], "tty then out done");
    assert_eq!((said.code, said.out.as_str()), (0, "tty true\r\ndone\r\n"), "{said:?}");
}

fn run_with_the_own_terminal() {
    let mut bundle = Bundle::new("tty then size then out ready then read then exit 6");
    bundle.config["process"]["terminal"] = true.into();
    bundle.save();
    let command = bundle.command(&["run", "--bundle", bundle.path().to_str().unwrap(), &bundle.id]);
    let (code, shown) = at_a_terminal(command, "ready", b"typed\r");
    assert_eq!(code, Some(6), "{shown}");
    has(&shown, "tty true\r\nsize 21 42\r\nready\r\n");
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}

/// A program whose interpreter is whatever executes it: from here on it is the runtime's binary that the container has.
fn the_binary_is_out_of_reach() {
    let (bundle, _output) = sleeping(|bundle| {
        fs::write(bundle.rootfs().join("evil"), "#!/proc/self/exe payload\n").unwrap();
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(bundle.rootfs().join("evil"), executable).unwrap();
    });
    assert_eq!(bundle.ok(&["exec", &bundle.id, "/evil"]), "the binary is read-only: true\n");
}
