//! Further processes: what they are, what they may do, and how they end.

use std::time::{Duration, Instant};

use runtime::{Exec, ExecConfig, ExecExit, ExecOutput, RuntimeError, Signal, StdStream};

use super::fixture::{Fixture, alive, chain, until};

pub const TESTS: &[(&str, fn())] = &[
    ("exec::joins_everything", joins_everything),
    ("exec::is_as_limited_as_the_container", is_as_limited_as_the_container),
    ("exec::users_directories_and_variables", users_directories_and_variables),
    ("exec::exit_codes_and_streams", exit_codes_and_streams),
    ("exec::standard_input", standard_input),
    ("exec::a_terminal_of_its_own", a_terminal_of_its_own),
    ("exec::failures_leave_nothing", failures_leave_nothing),
    ("exec::no_way_out_through_descriptors", no_way_out_through_descriptors),
    ("exec::nothing_of_the_hosts_to_see", nothing_of_the_hosts_to_see),
    ("exec::few_files", few_files),
    ("exec::the_hosts_binary_cannot_be_overwritten", the_hosts_binary_cannot_be_overwritten),
    ("exec::signals_and_timeouts", signals_and_timeouts),
    ("exec::a_flood_takes_no_longer", a_flood_takes_no_longer),
    ("exec::ends_with_its_container", ends_with_its_container),
    ("exec::the_daemon_dies", the_daemon_dies),
    ("exec::many_at_once", many_at_once),
];

/// A process that plays these words.
pub fn playing(words: &str) -> ExecConfig {
    let words = words.split(' ').map(str::to_owned);
    ExecConfig {
        args: ["/payload".to_owned(), "payload".to_owned()].into_iter().chain(words).collect(),
        stdout: true,
        stderr: true,
        ..ExecConfig::default()
    }
}

fn output(fixture: &Fixture, id: &str, config: ExecConfig) -> Result<ExecOutput, RuntimeError> {
    let runtime = fixture.runtime();
    fixture.tokio.block_on(runtime.exec_output(id, config, Duration::from_secs(15), 64 << 10))
}

/// Runs it to its end; what it wrote.
#[track_caller]
pub fn ran(fixture: &Fixture, id: &str, config: ExecConfig) -> String {
    let done = output(fixture, id, config).unwrap_or_else(|error| panic!("exec: {}", chain(&error)));
    assert_eq!((done.exit.code, done.timed_out), (0, false), "{done:?}");
    String::from_utf8_lossy(&done.output).into_owned()
}

fn begin(fixture: &Fixture, id: &str, config: ExecConfig) -> Exec {
    let runtime = fixture.runtime();
    fixture.tokio.block_on(runtime.exec(id, config)).unwrap_or_else(|error| panic!("exec: {}", chain(&error)))
}

/// Reads until this has come.
fn read_until(fixture: &Fixture, stream: &StdStream, wanted: &str) -> String {
    let mut seen = String::new();
    let reading = async {
        let mut chunk = [0u8; 4096];
        while !seen.contains(wanted) {
            let count = stream.read(&mut chunk).await.unwrap();
            assert!(count > 0, "it ended with {seen:?}, without {wanted:?}");
            seen.push_str(&String::from_utf8_lossy(&chunk[..count]));
        }
    };
    fixture.tokio.block_on(async { tokio::time::timeout(Duration::from_secs(15), reading).await.expect(wanted) });
    seen
}

fn end_of(fixture: &Fixture, exec: &Exec) -> ExecExit {
    let handle = exec.handle();
    fixture
        .tokio
        .block_on(async { tokio::time::timeout(Duration::from_secs(15), handle.wait()).await.expect("it ends") })
}

fn joins_everything() {
    let fixture = Fixture::new();
    let mut config = fixture.config("host", "sleep");
    config.hostname = "inside".into();
    let first = fixture.start(config);
    let mut exec = begin(&fixture, "host", ExecConfig { stdin: true, ..playing("out here then line") });
    for kind in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
        let of = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        assert_eq!(of(exec.pid), of(first), "{kind}");
        assert!(kind == "user" || of(first) != of(std::process::id()), "{kind}");
    }
    let cgroups = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert_eq!(cgroups(exec.pid), cgroups(first));
    let pids = fixture.tokio.block_on(fixture.runtime().processes("host")).unwrap();
    assert_eq!(pids.iter().map(|process| process.pid).collect::<Vec<_>>(), [first, exec.pid]);
    // Nobody but us holds its standard input open.
    drop(exec.io.stdin.take());
    assert_eq!(end_of(&fixture, &exec), ExecExit { code: 0, signal: None, shim_lost: false });
    let seen =
        ran(&fixture, "host", playing("pid then cat /proc/sys/kernel/hostname then cat /proc/self/cgroup then fds"));
    assert!(seen.starts_with("pid ") && seen.contains("parent false\ninside\n"), "{seen}");
    assert!(!seen.contains("shoal-test"), "the host's cgroups are not seen: {seen}");
    let fds = seen.lines().find_map(|line| line.strip_prefix("fds ")).unwrap();
    assert_eq!(fds.split(' ').count(), 3, "only its standard streams are open: {fds}");
}

fn status_field<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or("none").trim()
}

fn is_as_limited_as_the_container() {
    let fixture = Fixture::new();
    let mut config = fixture.config("limited", "cat /proc/self/status then out ready then sleep");
    config.capabilities.drop = vec!["ALL".into()];
    config.capabilities.add = vec!["NET_ADMIN".into()];
    config.no_new_privileges = true;
    config.oom_score_adj = 321;
    config.ulimits = vec![runtime::Ulimit { name: "nofile".into(), soft: 100, hard: 200 }];
    fixture.start(config);
    fixture.until_output("limited", "ready");
    let first = fixture.output("limited");
    let words = "cat /proc/self/status then cat /proc/self/limits then cat /proc/self/oom_score_adj";
    let second = ran(&fixture, "limited", playing(words));
    for field in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Uid", "Gid", "SigBlk"] {
        assert_eq!(status_field(&second, field), status_field(&first, field), "{field}");
    }
    assert_eq!(status_field(&second, "CapEff"), "0000000000001000");
    let files = second.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().collect::<Vec<_>>()[3..5], ["100", "200"]);
    assert!(second.ends_with("\n321\n"), "{second}");
    // What is read-only and hidden is so for it too.
    let seen = ran(&fixture, "limited", playing("write /proc/sys/kernel/hostname x then write /sys/fs/cgroup/x y"));
    assert!(!seen.contains("wrote"), "{seen}");
}

fn users_directories_and_variables() {
    let fixture = Fixture::new();
    let mut config = fixture.config("home", "sleep");
    config.env = vec!["A=1".into(), "B=2".into()];
    config.user = "web".into();
    config.cwd = "/etc".into();
    fixture.start(config);
    let words = "cat /proc/self/status then env HOME then env A then env B then env C then env TERM then pwd";
    let own = ran(&fixture, "home", ExecConfig { env: vec!["B=3".into(), "C=4".into()], ..playing(words) });
    assert!(own.contains("HOME=/srv\nA=1\nB=3\nC=4\nTERM=<none>\n/etc\n"), "{own}");
    assert_eq!((status_field(&own, "Uid"), status_field(&own, "Groups")), ("100\t100\t100\t100", "200"));
    let root = ExecConfig { user: Some("root".into()), cwd: Some("/bin".into()), ..playing(words) };
    let root = ran(&fixture, "home", root);
    assert!(root.contains("HOME=/root\n") && root.ends_with("/bin\n"), "{root}");
    assert_eq!(status_field(&root, "Uid"), "0\t0\t0\t0");
    let number = ran(&fixture, "home", ExecConfig { user: Some("7:8".into()), ..playing(words) });
    assert_eq!((status_field(&number, "Uid"), status_field(&number, "Gid")), ("7\t7\t7\t7", "8\t8\t8\t8"));
    // By PATH, as the container's own command.
    let found =
        ExecConfig { args: vec!["tool".into(), "payload".into(), "out".into(), "found".into()], ..playing("x") };
    assert_eq!(ran(&fixture, "home", found), "found\n");
}

fn exit_codes_and_streams() {
    let fixture = Fixture::new();
    fixture.start(fixture.config("codes", "sleep"));
    for code in [0, 1, 42, 255] {
        let done = output(&fixture, "codes", playing(&format!("exit {code}"))).unwrap();
        assert_eq!(done.exit, ExecExit { code, signal: None, shim_lost: false });
    }
    let exec = begin(&fixture, "codes", playing("out to-out then err to-err then exit 3"));
    let (out, err) = (exec.io.stdout.clone().unwrap(), exec.io.stderr.clone().unwrap());
    assert_eq!(read_until(&fixture, &out, "\n"), "to-out\n");
    assert_eq!(read_until(&fixture, &err, "\n"), "to-err\n");
    assert_eq!(end_of(&fixture, &exec).code, 3);
    // Nobody wants to hear it.
    let deaf = ExecConfig { stdout: false, stderr: false, ..playing("flood 5000 then exit 4") };
    assert_eq!(end_of(&fixture, &begin(&fixture, "codes", deaf)).code, 4);
    // Kept up to a bound, and not waited for where a child of it goes on.
    let runtime = fixture.runtime();
    let done =
        fixture.tokio.block_on(runtime.exec_output("codes", playing("flood 5000"), Duration::from_secs(15), 4096));
    let done = done.unwrap();
    assert_eq!((done.exit.code, done.output.len()), (0, 4096));
    assert!(done.output.starts_with(b"line 00000000 x"));
    let done = output(&fixture, "codes", playing("err first then out second then grandchild")).unwrap();
    assert!(done.output.starts_with(b"first\nsecond\nchild "), "{done:?}");
    // None of it is in the container's log.
    assert_eq!(fixture.output("codes"), "");
}

fn standard_input() {
    let fixture = Fixture::new();
    fixture.start(fixture.config("input", "sleep"));
    let mut exec = begin(&fixture, "input", ExecConfig { stdin: true, ..playing("echo") });
    let (stdin, out) = (exec.io.stdin.take().unwrap(), exec.io.stdout.clone().unwrap());
    fixture.tokio.block_on(stdin.write_all(b"one\ntwo\n")).unwrap();
    assert_eq!(read_until(&fixture, &out, "two\n"), "echo one\necho two\n");
    drop(stdin);
    assert_eq!(read_until(&fixture, &out, "input\n"), "end of input\n");
    assert_eq!(end_of(&fixture, &exec).code, 0);
    // Without one it is at its end from the beginning.
    assert_eq!(ran(&fixture, "input", playing("echo")), "end of input\n");
}

fn a_terminal_of_its_own() {
    let fixture = Fixture::new();
    fixture.start(fixture.config("tty", "sleep"));
    for user in [None, Some("web".to_owned())] {
        let config =
            ExecConfig { tty: true, window: Some((24, 100)), user, ..playing("tty then env TERM then line then tty") };
        let exec = begin(&fixture, "tty", config);
        let terminal = exec.io.stdout.clone().unwrap();
        let seen = read_until(&fixture, &terminal, "TERM=");
        assert!(seen.contains("Some(\"/dev/pts/0\") Some(\"/dev/pts/0\") Some(\"/dev/pts/0\")"), "{seen}");
        assert!(seen.contains("size Ok((24, 100)) controlling true\r\n"), "{seen}");
        terminal.resize(30, 120).unwrap();
        fixture.tokio.block_on(terminal.write_all(b"typed\r")).unwrap();
        let seen = read_until(&fixture, &terminal, "controlling");
        assert!(seen.contains("line \"typed\\n\"\r\n") && seen.contains("(30, 120)"), "{seen}");
        assert_eq!(end_of(&fixture, &exec).code, 0);
    }
    // Control-C is a signal there.
    let exec = begin(&fixture, "tty", ExecConfig { tty: true, ..playing("out ready then sleep") });
    let terminal = exec.io.stdout.clone().unwrap();
    read_until(&fixture, &terminal, "ready");
    fixture.tokio.block_on(terminal.write_all(b"\x03")).unwrap();
    assert_eq!(end_of(&fixture, &exec).signal, Some(2));
    // Who hangs up ends it.
    let mut exec = begin(&fixture, "tty", ExecConfig { tty: true, ..playing("out ready then sleep") });
    read_until(&fixture, &exec.io.stdout.clone().unwrap(), "ready");
    drop(std::mem::take(&mut exec.io));
    drop(terminal);
    assert_eq!(end_of(&fixture, &exec).signal, Some(1));
}

fn failures_leave_nothing() {
    let fixture = Fixture::new();
    let runtime = fixture.runtime();
    let first = fixture.start(fixture.config("firm", "trap"));
    fixture.until_output("firm", "trapping");
    let fails = |config: ExecConfig, text: &str, code: i32| {
        let error = output(&fixture, "firm", config).unwrap_err();
        assert_eq!(error.to_string(), format!("exec failed: {text}"));
        assert!(matches!(error, RuntimeError::Exec { exit_code, .. } if exit_code == code), "{error:?}");
    };
    let command = |command: &str| ExecConfig { args: vec![command.to_owned()], ..ExecConfig::default() };
    fails(command("nosuch"), "exec: \"nosuch\": executable file not found in $PATH", 127);
    fails(command("/nosuch"), "exec: \"/nosuch\": no such file or directory", 127);
    fails(command("/bin/plain"), "exec: \"/bin/plain\": permission denied", 126);
    let user = ExecConfig { user: Some("nobody-here".into()), ..playing("out x") };
    fails(user, "unable to find user nobody-here: no matching entries in passwd file", 126);
    let cwd = ExecConfig { cwd: Some("/no/where".into()), ..playing("out x") };
    fails(cwd, "chdir to cwd (\"/no/where\") failed: no such file or directory", 126);
    fails(ExecConfig { env: vec!["=x".into()], ..playing("out x") }, "invalid env: \"=x\" is not NAME=value", 126);
    let refused = |config: ExecConfig, text: &str| {
        let error = output(&fixture, "firm", config).unwrap_err();
        assert!(matches!(error, RuntimeError::InvalidConfig(_)) && error.to_string().contains(text), "{error}");
    };
    refused(command(""), "no command specified");
    refused(ExecConfig::default(), "no command specified");
    refused(command(&"x".repeat(100_000)), "longer than");
    refused(ExecConfig { cwd: Some("relative".into()), ..playing("out x") }, "is not absolute");
    assert!(matches!(output(&fixture, "nosuch", playing("out x")), Err(RuntimeError::NotFound(_))));
    // The container is as before: one process, and it does what it did.
    until("only the first process is left", || {
        fixture.tokio.block_on(runtime.processes("firm")).unwrap().iter().all(|process| process.pid == first)
    });
    fixture.tokio.block_on(runtime.create(fixture.config("unborn", "sleep"))).unwrap();
    assert!(matches!(
        output(&fixture, "unborn", playing("out x")),
        Err(RuntimeError::WrongState { status: "created", .. })
    ));
    fixture.tokio.block_on(runtime.stop("firm", None, Duration::from_secs(10))).unwrap();
    assert_eq!(fixture.wait("firm").code, 7);
    assert!(matches!(
        output(&fixture, "firm", playing("out x")),
        Err(RuntimeError::WrongState { status: "exited", .. })
    ));
}

/// The shim has directories of the host open while it makes a process. No path may lead to them.
fn no_way_out_through_descriptors() {
    let fixture = Fixture::new();
    fixture.start(fixture.config("closed", "sleep"));
    for number in 3..24 {
        let up = format!("/proc/self/fd/{number}/../../../../../../..");
        let cwd = ExecConfig { cwd: Some(format!("/proc/self/fd/{number}")), ..playing("pwd") };
        assert!(matches!(output(&fixture, "closed", cwd), Err(RuntimeError::Exec { .. })), "{number}");
        let command = ExecConfig { args: vec![format!("{up}/bin/true")], ..ExecConfig::default() };
        assert!(
            matches!(output(&fixture, "closed", command), Err(RuntimeError::Exec { exit_code: 127, .. })),
            "{number}"
        );
        let mut config = fixture.config(&format!("out{number}"), "");
        config.args = vec![format!("{up}/bin/true")];
        let id = config.id.clone();
        let runtime = fixture.runtime();
        fixture.tokio.block_on(runtime.create(config)).unwrap();
        let started = fixture.tokio.block_on(runtime.start(&id));
        assert!(matches!(started, Err(RuntimeError::Start { exit_code: 127, .. })), "{number}: {started:?}");
        fixture.tokio.block_on(runtime.delete(&id)).unwrap();
    }
}

/// A container that may trace its processes looks for one that is not yet all its own.
fn nothing_of_the_hosts_to_see() {
    let fixture = Fixture::new();
    let secret = fixture.path().join("secret");
    std::fs::write(&secret, "the host's").unwrap();
    let mut config = fixture.config("spy", &format!("spy {} /end then sleep", secret.display()));
    config.capabilities.add = vec!["SYS_PTRACE".into()];
    config.no_new_privileges = true;
    fixture.start(config);
    for number in 0..60 {
        assert_eq!(ran(&fixture, "spy", playing(&format!("out {number}"))), format!("{number}\n"));
    }
    // One that is there long enough to be seen in any case.
    ran(&fixture, "spy", playing("nap 50 then write /end x"));
    fixture.until_output("spy", "spied on");
    let said = fixture.output("spy");
    assert!(said.ends_with(" and found {}\n") && !said.starts_with("spied on 0 "), "{said}");
}

/// Fewer than the shim has open.
fn few_files() {
    let fixture = Fixture::new();
    let mut config = fixture.config("few", "sleep");
    config.ulimits = vec![runtime::Ulimit { name: "nofile".into(), soft: 5, hard: 6 }];
    fixture.start(config);
    let limits = ran(&fixture, "few", ExecConfig { user: Some("web".into()), ..playing("cat /proc/self/limits") });
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().collect::<Vec<_>>()[3..5], ["5", "6"]);
}

/// CVE-2019-5736, which was found in exactly this.
fn the_hosts_binary_cannot_be_overwritten() {
    let fixture = Fixture::new();
    let mut config = fixture.config("victim", "sleep");
    config.capabilities.add = vec!["SYS_ADMIN".into()];
    fixture.start(config);
    let mut overwriter = playing("write /proc/self/exe broken");
    overwriter.args[0] = "/proc/self/exe".into();
    assert_eq!(ran(&fixture, "victim", overwriter), "write /proc/self/exe: Read-only file system (os error 30)\n");
}

fn signals_and_timeouts() {
    let fixture = Fixture::new();
    let runtime = fixture.runtime();
    fixture.start(fixture.config("sig", "sleep"));
    let exec = begin(&fixture, "sig", playing("trap"));
    read_until(&fixture, &exec.io.stdout.clone().unwrap(), "trapping");
    fixture.tokio.block_on(exec.handle().signal(Signal::TERM)).unwrap();
    assert_eq!(end_of(&fixture, &exec).code, 7);
    let late = fixture.tokio.block_on(exec.handle().signal(Signal::TERM));
    assert!(matches!(late, Err(RuntimeError::ShimRefused { .. })), "{late:?}");
    // What takes too long goes, and what it has started with it.
    let slow = runtime.exec_output("sig", playing("grandchild then sleep"), Duration::from_millis(500), 4096);
    let slow = fixture.tokio.block_on(slow).unwrap();
    assert!(slow.timed_out && slow.exit.signal == Some(9), "{slow:?}");
    assert!(slow.output.starts_with(b"child "), "{slow:?}");
    until("its child is gone too", || fixture.tokio.block_on(runtime.processes("sig")).unwrap().len() == 1);
}

/// What is always ready to be read must not keep its reader from looking at the clock.
fn a_flood_takes_no_longer() {
    let fixture = Fixture::new();
    fixture.start(fixture.config("flood", "sleep"));
    let begun = Instant::now();
    let runtime = fixture.runtime();
    let done = runtime.exec_output("flood", playing("flood 1000000000"), Duration::from_millis(500), 4096);
    let done = fixture.tokio.block_on(done).unwrap();
    assert!(done.timed_out && done.output.len() == 4096, "{} bytes, {:?}", done.output.len(), done.exit);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

fn ends_with_its_container() {
    let fixture = Fixture::new();
    let runtime = fixture.runtime();
    fixture.start(fixture.config("brief", "trap"));
    fixture.until_output("brief", "trapping");
    let exec = begin(&fixture, "brief", playing("out ready then sleep"));
    read_until(&fixture, &exec.io.stdout.clone().unwrap(), "ready");
    fixture.tokio.block_on(runtime.signal("brief", Signal::TERM)).unwrap();
    assert_eq!(end_of(&fixture, &exec), ExecExit { code: 137, signal: Some(9), shim_lost: false });
    assert_eq!(fixture.wait("brief").code, 7);
    assert!(!alive(exec.pid));
    fixture.tokio.block_on(runtime.delete("brief")).unwrap();
    assert_eq!(fixture.leftovers(), Default::default());
}

fn the_daemon_dies() {
    let mut fixture = Fixture::new();
    fixture.start(fixture.config("kept", "sleep"));
    let talks = begin(&fixture, "kept", playing("out ready then drip"));
    read_until(&fixture, &talks.io.stdout.clone().unwrap(), "ready");
    let reads = begin(&fixture, "kept", ExecConfig { stdin: true, ..playing("echo") });
    let shell = begin(&fixture, "kept", ExecConfig { tty: true, ..playing("out ready then sleep") });
    read_until(&fixture, &shell.io.stdout.clone().unwrap(), "ready");
    let silent = begin(&fixture, "kept", ExecConfig { stdout: false, stderr: false, ..playing("trap") });
    let pids = [talks.pid, reads.pid, shell.pid, silent.pid];
    drop((talks, reads, shell, silent));
    fixture.die();
    // Those that talk to somebody have lost them; the shim, not the dead daemon, sees to them. Others go on.
    until("the three ended", || pids[..3].iter().all(|pid| !alive(*pid)));
    assert!(alive(pids[3]));
    fixture.open();
    let runtime = fixture.runtime();
    assert_eq!(fixture.tokio.block_on(runtime.processes("kept")).unwrap().len(), 2);
    assert_eq!(ran(&fixture, "kept", playing("out again")), "again\n");
    fixture.tokio.block_on(runtime.delete("kept")).unwrap();
    assert!(!alive(pids[3]));
    assert_eq!(fixture.leftovers(), Default::default());
}

fn many_at_once() {
    let fixture = Fixture::new();
    let runtime = fixture.runtime();
    fixture.start(fixture.config("busy", "sleep"));
    let begin = std::time::Instant::now();
    fixture.tokio.block_on(async {
        let runs = (0..40).map(|number| {
            let runtime = runtime.clone();
            let config = playing(&format!("out {number} then exit {number}"));
            tokio::spawn(async move { runtime.exec_output("busy", config, Duration::from_secs(30), 4096).await })
        });
        for (number, run) in runs.collect::<Vec<_>>().into_iter().enumerate() {
            let done = run.await.unwrap().unwrap();
            assert_eq!((done.exit.code, done.output), (i32::try_from(number).unwrap(), format!("{number}\n").into()));
        }
    });
    println!("40 processes, all at once: {:?}", begin.elapsed());
    assert_eq!(fixture.tokio.block_on(runtime.processes("busy")).unwrap().len(), 1);
}
