//! This binary as the first process of a machine of its own: `.ci/v2-kernel` boots a kernel with it, so that the tests
//! meet a host with cgroup v2 alone.
//!
//! The machine has nothing but this program, maybe `/policy`, a compiled one of AppArmor's, and `/modules`: kernel modules
//! named `<number>-<name>.ko`, in the order in which they need each other. What the tests said goes to the console, with
//! `v2-kernel: exit <code>` as the last line.

use std::ffi::CString;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use nix::mount::{MsFlags, mount};
use nix::sys::wait::{WaitStatus, wait};

/// Never returns: a first process that ends is a panic of the kernel.
pub fn first_process(filters: &[String]) -> ! {
    let code = prepare().map_or_else(
        |error| {
            println!("v2-kernel: {error}");
            2
        },
        |()| run(filters).max(with_version_1()),
    );
    println!("v2-kernel: exit {code}");
    rustix::fs::sync();
    let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
    loop {
        std::thread::park();
    }
}

fn prepare() -> Result<(), String> {
    leave_the_archive().map_err(|error| format!("change the root: {error}"))?;
    for (fs, place, options) in [
        ("proc", "/proc", ""),
        ("sysfs", "/sys", ""),
        ("securityfs", "/sys/kernel/security", ""),
        ("devtmpfs", "/dev", ""),
        ("devpts", "/dev/pts", "ptmxmode=0666"),
        ("tmpfs", "/dev/shm", "mode=1777"),
        ("tmpfs", "/tmp", "mode=1777"),
        ("tmpfs", "/run", "mode=755"),
        ("cgroup2", "/sys/fs/cgroup", "nsdelegate"),
    ] {
        fs::create_dir_all(place).map_err(|error| format!("{place}: {error}"))?;
        mount(Some(fs), place, Some(fs), MsFlags::empty(), Some(options)).map_err(|e| format!("mount {place}: {e}"))?;
    }
    let mut modules: Vec<_> = fs::read_dir("/modules").into_iter().flatten().flatten().map(|e| e.path()).collect();
    modules.sort();
    for path in modules {
        load(&path).map_err(|error| format!("load {}: {error}", path.display()))?;
    }
    if let Ok(policy) = fs::read("/policy") {
        fs::write("/sys/kernel/security/apparmor/.load", policy).map_err(|e| format!("load AppArmor's policy: {e}"))?;
    }
    let begin = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    println!("v2-kernel: {} after {} s, with {}", release.trim(), begin.trim(), controllers.trim());
    Ok(())
}

/// The kernel unpacks the archive into a filesystem that cannot be left by pivot_root, as containers leave theirs.
fn leave_the_archive() -> Result<(), Box<dyn std::error::Error>> {
    fs::create_dir_all("/new")?;
    mount(Some("tmpfs"), "/new", Some("tmpfs"), MsFlags::empty(), Some("mode=755"))?;
    fs::create_dir_all("/new/modules")?;
    fs::copy("/init", "/new/init")?;
    if Path::new("/policy").exists() {
        fs::copy("/policy", "/new/policy")?;
        fs::remove_file("/policy")?;
    }
    for entry in fs::read_dir("/modules")? {
        let path = entry?.path();
        fs::copy(&path, Path::new("/new").join(path.strip_prefix("/")?))?;
        fs::remove_file(&path)?;
    }
    fs::remove_file("/init")?;
    std::env::set_current_dir("/new")?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    std::os::unix::fs::chroot(".")?;
    std::env::set_current_dir("/")?;
    Ok(())
}

fn load(path: &Path) -> Result<(), String> {
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    match rustix::system::finit_module(&file, &CString::default(), 0) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// Once more beside a hierarchy of version 1, with what needs one that no container is in by itself.
fn with_version_1() -> i32 {
    let place = "/run/net_cls";
    let mounted = fs::create_dir_all(place).map_err(|error| error.to_string()).and_then(|()| {
        mount(Some("cgroup"), place, Some("cgroup"), MsFlags::empty(), Some("net_cls")).map_err(|e| e.to_string())
    });
    match mounted {
        Ok(()) => run(&["limits::network_marks".to_owned(), "lifecycle::a_container_lives".to_owned()]),
        Err(error) => {
            println!("v2-kernel: mount net_cls: {error}");
            2
        }
    }
}

/// The tests in a process of their own, and after it whatever became an orphan.
fn run(filters: &[String]) -> i32 {
    let begin = Instant::now();
    let child = match Command::new("/init").args(filters).spawn() {
        Ok(child) => child,
        Err(error) => {
            println!("v2-kernel: {error}");
            return 2;
        }
    };
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, code)) if pid.as_raw().unsigned_abs() == child.id() => {
                println!("v2-kernel: the tests took {} s", begin.elapsed().as_secs());
                return code;
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid.as_raw().unsigned_abs() == child.id() => {
                println!("v2-kernel: the tests were ended by {signal}");
                return 2;
            }
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => {
                println!("v2-kernel: {error}");
                return 2;
            }
        }
    }
}
