//! What runs inside of the containers: `payload <verb> [argument]...`, several verbs divided by `then`.

use std::io::Write;
use std::process::{Command, ExitCode};
use std::time::Duration;

use super::harness::play;

pub fn run(args: &[String]) -> ExitCode {
    play(args, act)
}

fn act(verb: &str, args: &[String]) -> Option<u8> {
    let first = || args.first().expect("an argument").as_str();
    let number = || first().parse::<usize>().expect("a number");
    match verb {
        "out" => println!("{}", args.join(" ")),
        "err" => eprintln!("{}", args.join(" ")),
        "exit" => return Some(u8::try_from(number()).expect("a code")),
        "sleep" => loop {
            std::thread::sleep(Duration::from_secs(3600));
        },
        "trap" => return Some(trap()),
        "hup" => hup(),
        "tick" => return Some(tick(number())),
        "cat" => match std::fs::read(first()) {
            Ok(bytes) => std::io::stdout().write_all(&bytes).expect("stdout"),
            Err(error) => println!("cat {}: {error}", first()),
        },
        "write" => match std::fs::write(first(), &args[1]) {
            Ok(()) => println!("wrote {}", first()),
            Err(error) => println!("write {}: {error}", first()),
        },
        "mkdir" => std::fs::create_dir_all(first()).expect("mkdir"),
        "rm" => std::fs::remove_file(first()).expect("rm"),
        "rmdir" => std::fs::remove_dir_all(first()).expect("rmdir"),
        "link" => std::os::unix::fs::symlink(first(), &args[1]).expect("link"),
        "swap" => loop {
            use rustix::fs::{CWD, RenameFlags, renameat_with};
            renameat_with(CWD, first(), CWD, args[1].as_str(), RenameFlags::EXCHANGE).expect("swap");
        },
        "ls" => {
            let mut names: Vec<String> = std::fs::read_dir(first())
                .map(|entries| {
                    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
                })
                .unwrap_or_else(|error| vec![error.to_string()]);
            names.sort();
            println!("ls {}: {}", first(), names.join(" "));
        }
        "env" => println!("{}={}", first(), std::env::var(first()).unwrap_or_else(|_| "<none>".to_owned())),
        "pwd" => println!("{}", std::env::current_dir().expect("cwd").display()),
        "raw" => std::io::stdout().write_all(&[0xff, 0xfe, 0, b'x', b'\n']).expect("stdout"),
        "bare" => {
            print!("{}", first());
            std::io::stdout().flush().expect("stdout");
        }
        "flood" => flood(number()),
        "dig" => {
            for _ in 0..number() {
                std::fs::create_dir("d").expect("a directory");
                std::env::set_current_dir("d").expect("to go into it");
            }
            println!("dug");
        }
        "forks" => forks(number()),
        "allocate" => allocate(number()),
        "grandchild" => grandchild(),
        "try" => println!("try {}: {}", first(), attempt(first())),
        "orphans" => orphans(number()),
        "with-zombies" => {
            while zombies() < number() {
                std::thread::sleep(Duration::from_millis(1));
            }
            println!("{} zombies", first());
        }
        "without-zombies" => {
            while zombies() > 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            println!("no zombies");
        }
        "child-of-orphan" => drop(std::hint::black_box(spawn(&["sleepless"]))),
        "sleepless" => {}
        "stat" => match std::fs::symlink_metadata(first()) {
            Ok(meta) => {
                use std::os::unix::fs::MetadataExt;
                println!("stat {}: {}:{} {:o}", first(), meta.uid(), meta.gid(), meta.mode() & 0o7777);
            }
            Err(error) => println!("stat {}: {error}", first()),
        },
        // What a device node is, or where a link leads.
        "what" => match std::fs::symlink_metadata(first()) {
            Ok(meta) if meta.is_symlink() => {
                println!("{} -> {}", first(), std::fs::read_link(first()).expect("a link").display());
            }
            Ok(meta) => {
                use std::os::unix::fs::MetadataExt;
                let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
                println!("{} {major}:{minor} {:o}", first(), meta.mode());
            }
            Err(error) => println!("stat {}: {error}", first()),
        },
        "mount" => {
            let flags = rustix::mount::MountFlags::empty();
            rustix::mount::mount(c"tmpfs", first(), c"tmpfs", flags, None).expect("mount");
        }
        "nap" => std::thread::sleep(Duration::from_millis(number() as u64)),
        "wait" => {
            while !std::path::Path::new(first()).exists() {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        "tty" => tty(),
        "echo" => echo(),
        "line" => {
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).expect("stdin");
            println!("line {line:?}");
        }
        "drip" => drip(),
        "fds" => fds(),
        "pid" => println!("pid {} parent {}", std::process::id(), rustix::process::getppid().is_some()),
        "mknod" => {
            let status = rustix::fs::mknodat(
                rustix::fs::CWD,
                first(),
                rustix::fs::FileType::BlockDevice,
                rustix::fs::Mode::from_raw_mode(0o600),
                rustix::fs::makedev(254, 0),
            );
            let opened = std::fs::File::open(first()).map(drop).map_err(|error| error.kind());
            println!("mknod {status:?} open {opened:?}");
        }
        "node" => println!("{}", node(args)),
        "spy" => spy(first(), &args[1]),
        other => panic!("unknown verb {other}"),
    }
    None
}

/// `spy <file of the host's> <end>`: looks at every process that comes, as closely as CAP_SYS_PTRACE allows, until the
/// file `end` is there. Then says of how many it saw the descriptors, and what it should not have seen.
fn spy(secret: &str, end: &str) {
    use std::collections::BTreeSet;
    let own = status_line("self", "CapPrm");
    let (mut seen, mut found) = (BTreeSet::new(), BTreeSet::new());
    while !std::path::Path::new(end).exists() {
        let names = std::fs::read_dir("/proc").expect("/proc").flatten().map(|entry| entry.file_name());
        let pids = names.filter_map(|name| name.to_str()?.parse::<u32>().ok());
        for pid in pids.filter(|pid| *pid != std::process::id()) {
            let dir = format!("/proc/{pid}");
            for place in ["root", "cwd"] {
                if std::fs::metadata(format!("{dir}/{place}{secret}")).is_ok() {
                    found.insert(format!("{place} is the host's"));
                }
            }
            if std::fs::OpenOptions::new().write(true).open(format!("{dir}/exe")).is_ok() {
                found.insert("a program to write to".to_owned());
            }
            if let Some(capabilities) = status_line(&pid.to_string(), "CapPrm")
                && Some(&capabilities) != own.as_ref()
            {
                found.insert(format!("capabilities {capabilities}"));
            }
            for fd in std::fs::read_dir(format!("{dir}/fd")).into_iter().flatten().flatten() {
                seen.insert(pid);
                if std::fs::metadata(fd.path()).is_ok_and(|meta| meta.is_dir()) {
                    found.insert(format!("directory {}", std::fs::read_link(fd.path()).unwrap_or_default().display()));
                }
            }
        }
    }
    println!("spied on {} and found {found:?}", seen.len());
}

/// A line of a process's status.
fn status_line(pid: &str, name: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(status.lines().find(|line| line.starts_with(name))?.to_owned())
}

/// `node <path> <major> <minor> <r|w>`: makes a character device and opens it.
fn node(args: &[String]) -> String {
    let [path, major, minor, how] = args else { panic!("node: four arguments") };
    let number = |text: &String| text.parse::<u32>().expect("a number");
    let (kind, mode) = (rustix::fs::FileType::CharacterDevice, rustix::fs::Mode::from_raw_mode(0o600));
    let device = rustix::fs::makedev(number(major), number(minor));
    let made = match rustix::fs::mknodat(rustix::fs::CWD, path.as_str(), kind, mode, device) {
        Err(rustix::io::Errno::EXIST) => Ok(()),
        other => other,
    };
    let opened = std::fs::OpenOptions::new().read(how == "r").write(how == "w").open(path).map(drop);
    format!(
        "node {major}:{minor} made {} {how} {}",
        made.is_ok(),
        opened.map_or_else(|e| e.kind().to_string(), |()| "open".into())
    )
}

/// What is known of the terminal.
fn tty() {
    let name = |fd: u32| std::fs::read_link(format!("/proc/self/fd/{fd}")).map(|path| path.display().to_string());
    let size = rustix::termios::tcgetwinsize(std::io::stdin()).map(|size| (size.ws_row, size.ws_col));
    let own = std::fs::OpenOptions::new().read(true).write(true).open("/dev/tty").is_ok();
    println!("{:?} {:?} {:?} size {size:?} controlling {own}", name(0).ok(), name(1).ok(), name(2).ok());
}

/// Repeats its standard input until that ends.
fn echo() {
    let mut line = String::new();
    while std::io::stdin().read_line(&mut line).expect("stdin") > 0 {
        print!("echo {line}");
        std::io::stdout().flush().expect("stdout");
        line.clear();
    }
    println!("end of input");
}

/// A number every few milliseconds, for ever.
fn drip() {
    for number in 0u64.. {
        println!("drop {number}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Each open descriptor but the one that this takes.
fn fds() {
    let mut links: Vec<String> = std::fs::read_dir("/proc/self/fd")
        .expect("fds")
        .flatten()
        .filter_map(|entry| {
            Some(format!("{}={}", entry.file_name().display(), std::fs::read_link(entry.path()).ok()?.display()))
        })
        .filter(|link| !link.contains("/fd"))
        .collect();
    links.sort();
    println!("fds {}", links.join(" "));
}

/// Waits for SIGTERM and says so.
fn trap() -> u8 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let kind = tokio::signal::unix::SignalKind::terminate();
        let mut signal = tokio::signal::unix::signal(kind).expect("signal");
        println!("trapping");
        signal.recv().await;
        println!("terminated");
        7
    })
}

/// Says that it waits for SIGHUP, and waits for it.
fn hup() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let mut signal = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()).expect("signal");
        println!("waiting");
        signal.recv().await;
    });
}

/// Numbers its lines, one every so many milliseconds, until SIGTERM; then says how many there were.
fn tick(millis: usize) -> u8 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let mut signal = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).expect("signal");
        let mut clock = tokio::time::interval(Duration::from_millis(millis as u64));
        let mut number = 0u64;
        loop {
            tokio::select! {
                _ = signal.recv() => break,
                _ = clock.tick() => {
                    println!("tick {number}");
                    number += 1;
                }
            }
        }
        println!("total {number}");
        0
    })
}

fn flood(lines: usize) {
    let mut out = std::io::stdout().lock();
    for number in 0..lines {
        writeln!(out, "line {number:08} {}", "x".repeat(80)).expect("stdout");
    }
}

/// Tries to have so many children at once.
fn forks(count: usize) {
    let mut children = Vec::new();
    for _ in 0..count.min(1000) {
        match Command::new("/payload").args(["payload", "sleep"]).spawn() {
            Ok(child) => children.push(child),
            Err(_) => break,
        }
    }
    println!("forked {}", children.len());
    for mut child in children {
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn allocate(megabytes: usize) {
    let mut blocks = Vec::new();
    for _ in 0..megabytes {
        blocks.push(vec![1u8; 1 << 20]);
    }
    println!("allocated {}", blocks.len());
}

/// Leaves a process of its own behind and ends: it must not outlive the container.
fn grandchild() {
    let spawned = Command::new("/payload").args(["payload", "sleep"]).spawn();
    #[allow(clippy::zombie_processes, reason = "that is what is tested")]
    let child = spawned.expect("spawn");
    println!("child {}", child.id());
}

/// Something that the default policy of system calls has an opinion on. Says how it went.
fn attempt(what: &str) -> String {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let socket = |family| socket(family, SockType::SeqPacket, SockFlag::empty(), None).map(drop);
    let outcome = match what {
        "unshare" => nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER),
        "personality" => nix::sys::personality::set(nix::sys::personality::Persona::ADDR_NO_RANDOMIZE).map(drop),
        "alg" => socket(AddressFamily::Alg),
        "vsock" => socket(AddressFamily::Vsock),
        "mkdir" => nix::unistd::mkdir("/made", nix::sys::stat::Mode::S_IRWXU),
        "mount" => {
            let flags = nix::mount::MsFlags::empty();
            nix::mount::mount(Some("tmpfs"), "/bin", Some("tmpfs"), flags, None::<&str>)
        }
        "new-proc" => {
            let flags = nix::mount::MsFlags::empty();
            nix::mount::mount(Some("proc"), "/bin", Some("proc"), flags, None::<&str>)
        }
        "open-proc" => {
            let flags = nix::mount::MsFlags::MS_REMOUNT | nix::mount::MsFlags::MS_BIND;
            nix::mount::mount(None::<&str>, "/proc/sys", None::<&str>, flags, None::<&str>)
        }
        "unmask" => nix::mount::umount2("/proc/timer_list", nix::mount::MntFlags::MNT_DETACH),
        "abort" => std::process::abort(),
        other => panic!("unknown attempt {other}"),
    };
    match outcome {
        Ok(()) => "done".to_owned(),
        Err(errno) => format!("{errno:?}"),
    }
}

fn spawn(args: &[&str]) -> std::process::Child {
    Command::new("/payload").arg("payload").args(args).spawn().expect("spawn")
}

/// Children whose own children outlive them, for process 1 to collect.
fn orphans(count: usize) {
    for _ in 0..count {
        spawn(&["child-of-orphan"]).wait().expect("wait");
    }
}

fn zombies() -> usize {
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    let statuses = entries.filter_map(|entry| std::fs::read_to_string(entry.path().join("status")).ok());
    statuses.filter(|status| status.contains("State:\tZ")).count()
}
