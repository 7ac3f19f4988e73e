//! What runs inside of the containers, and as their hooks: `payload <verb> [argument]...`, several divided by `then`.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use super::harness::play;

pub fn run(args: &[String]) -> ExitCode {
    play(args, act)
}

fn act(verb: &str, args: &[String]) -> Option<u8> {
    let first = || args.first().expect("an argument").as_str();
    match verb {
        "out" => println!("{}", args.join(" ")),
        "exit" => return Some(first().parse().expect("a code")),
        "sleep" => loop {
            std::thread::sleep(Duration::from_secs(3600));
        },
        "cat" => match std::fs::read(first()) {
            Ok(bytes) => std::io::stdout().write_all(&bytes).expect("stdout"),
            Err(error) => println!("cat {}: {error}", first()),
        },
        "write" => match std::fs::write(first(), &args[1]) {
            Ok(()) => println!("wrote {}", first()),
            Err(error) => println!("write {}: {error}", first()),
        },
        "env" => println!("{}={}", first(), std::env::var(first()).unwrap_or_else(|_| "<none>".to_owned())),
        "pwd" => println!("{}", std::env::current_dir().expect("cwd").display()),
        "tty" => println!("tty {}", std::io::IsTerminal::is_terminal(&std::io::stdout())),
        "size" => {
            let size = rustix::termios::tcgetwinsize(std::io::stdout()).expect("a terminal");
            println!("size {} {}", size.ws_row, size.ws_col);
        }
        // One line that is typed.
        "read" => {
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).expect("stdin");
            println!("read {}", line.trim_end());
        }
        // The open descriptors, but for the one that this look needs.
        "fds" => {
            let list = std::fs::read_dir("/proc/self/fd").expect("a list").flatten();
            let mut open: Vec<u32> = list.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
            open.retain(|fd| std::fs::read_link(format!("/proc/self/fd/{fd}")).is_ok());
            open.sort_unstable();
            println!("fds {}", open.iter().map(u32::to_string).collect::<Vec<_>>().join(" "));
        }
        // As an interpreter: see `exec::the_binary_is_out_of_reach`.
        "/evil" => {
            let mount = rustix::fs::statvfs("/proc/self/exe").expect("a mount");
            println!("the binary is read-only: {}", mount.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
        }
        "umask" => {
            std::fs::write("/umask", "").expect("a file");
            let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata("/umask").expect("it").permissions());
            println!("umask {:o}", 0o666 & !mode);
        }
        // Appends its name, the variable HOOK, the status, and the pid that came on the standard input to a file.
        "hook" => {
            let mut state = String::new();
            std::io::stdin().read_to_string(&mut state).expect("stdin");
            let state: serde_json::Value = serde_json::from_str(&state).expect("a state");
            let mut file = OpenOptions::new().append(true).create(true).open(&args[1]).expect("a file");
            let variable = std::env::var("HOOK").unwrap_or_else(|_| "-".to_owned());
            let path = if std::env::var_os("PATH").is_some() { " leaked" } else { "" };
            let (status, pid) = (state["status"].as_str().expect("status"), state["pid"].as_u64().expect("pid"));
            writeln!(file, "{} {variable} {status} {pid} {}{path}", first(), state["annotations"]["org.example.key"])
                .expect("a line");
        }
        other => panic!("unknown verb {other}"),
    }
    None
}
