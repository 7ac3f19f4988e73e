//! The first process of a machine of its own, which runs a test binary there and powers the machine off. `.ci/machine`
//! boots Debian's kernel with it.
//!
//! The archive that the kernel starts from has this program as `/init`, and `/machine`, which becomes the root. In that
//! are `tests`, the test binary; `modules`, kernel modules named `<number>-<name>.ko` in the order in which they need each
//! other; maybe `policy`, a compiled one of AppArmor's; and whatever else the tests look for.
//!
//! Arguments are the test binary's. In the environment, `SHOAL_TEST_MACHINE` says what `.ci/machine` was called with.
//! What was said goes to the console, with `machine: exit <code>` as the last line.

#![expect(clippy::print_stdout, reason = "the console is all that it has")]

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::wait::{WaitStatus, wait};

/// A controller of cgroup version 1 in which no container is by itself, and the tests that concerns.
const VERSION_1: (&str, [&str; 2]) = ("net_cls", ["limits::network_marks", "lifecycle::a_container_lives"]);
/// What the root gets besides what it comes with.
const MOUNTS: [(&str, &str, &str); 8] = [
    ("proc", "/proc", ""),
    ("sysfs", "/sys", ""),
    ("securityfs", "/sys/kernel/security", ""),
    ("devtmpfs", "/dev", ""),
    ("devpts", "/dev/pts", "ptmxmode=0666"),
    ("tmpfs", "/dev/shm", "mode=1777"),
    ("tmpfs", "/run", "mode=755"),
    ("cgroup2", "/sys/fs/cgroup", "nsdelegate"),
];

fn main() -> Result<()> {
    ensure!(std::process::id() == 1, "this is the first process of a machine, and powers it off at the end");
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let code = prepare().and_then(|()| run_all(&arguments)).unwrap_or_else(|error| {
        println!("machine: {error:#}");
        2
    });
    println!("machine: exit {code}");
    rustix::fs::sync();
    rustix::system::reboot(rustix::system::RebootCommand::PowerOff).context("power off")?;
    bail!("the machine is still on");
}

fn prepare() -> Result<()> {
    leave_the_archive().context("change the root")?;
    for (fs, place, options) in MOUNTS {
        fs::create_dir_all(place).context(place)?;
        mount(Some(fs), place, Some(fs), MsFlags::empty(), Some(options)).with_context(|| format!("mount {place}"))?;
    }
    for place in ["/tmp", "/var/tmp"] {
        fs::create_dir_all(place)?;
        fs::set_permissions(place, fs::Permissions::from_mode(0o1777))?;
    }
    let mut modules: Vec<_> = fs::read_dir("/modules")?.flatten().map(|entry| entry.path()).collect();
    modules.sort();
    for path in modules {
        load(&path).with_context(|| format!("load {}", path.display()))?;
    }
    if let Ok(policy) = fs::read("/policy") {
        fs::write("/sys/kernel/security/apparmor/.load", policy).context("load AppArmor's policy")?;
    }
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let (release, uptime) = (read("/proc/sys/kernel/osrelease"), read("/proc/uptime"));
    println!("machine: {release} after {uptime} s, with {}", read("/sys/fs/cgroup/cgroup.controllers"));
    Ok(())
}

/// The kernel unpacks the archive into a filesystem that cannot be left by pivot_root, as containers leave theirs.
fn leave_the_archive() -> Result<()> {
    fs::create_dir_all("/new")?;
    mount(Some("tmpfs"), "/new", Some("tmpfs"), MsFlags::empty(), Some("mode=755"))?;
    move_all(Path::new("/machine"), Path::new("/new"))?;
    std::env::set_current_dir("/new")?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    std::os::unix::fs::chroot(".")?;
    std::env::set_current_dir("/")?;
    Ok(())
}

/// Moves files one by one: all of them twice is more than the machine has memory for.
fn move_all(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            move_all(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn load(path: &Path) -> Result<()> {
    match rustix::system::finit_module(fs::File::open(path)?, &CString::default(), 0) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn run_all(arguments: &[String]) -> Result<i32> {
    let code = run(arguments)?;
    if std::env::var_os("SHOAL_TEST_MACHINE").is_none_or(|what| what != "containers") {
        return Ok(code);
    }
    let ((controller, tests), place) = (VERSION_1, "/run/version-1");
    fs::create_dir_all(place)?;
    mount(Some("cgroup"), place, Some("cgroup"), MsFlags::empty(), Some(controller)).context("mount version 1")?;
    Ok(code.max(run(&tests.map(str::to_owned))?))
}

/// Runs the tests in a process of their own; whatever becomes an orphan meanwhile ends here.
fn run(arguments: &[String]) -> Result<i32> {
    let begin = Instant::now();
    let tests = Command::new("/tests").args(arguments).spawn().context("start the tests")?;
    loop {
        let status = match wait() {
            Ok(status) => status,
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(error).context("wait for the tests"),
        };
        if status.pid().is_none_or(|pid| pid.as_raw().unsigned_abs() != tests.id()) {
            continue;
        }
        println!("machine: the tests took {} s", begin.elapsed().as_secs());
        match status {
            WaitStatus::Exited(_, code) => return Ok(code),
            other => bail!("the tests ended by {other:?}"),
        }
    }
}
