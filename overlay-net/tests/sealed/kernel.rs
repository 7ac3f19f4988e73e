//! This binary as the first process of a machine of its own: `.ci/wireguard-kernel` boots a kernel with it that has
//! WireGuard.
//!
//! The machine has nothing but this program and `/modules`: kernel modules named `<number>-<name>.ko`, in the order in
//! which they need each other. What the tests said goes to the console, with `wireguard-kernel: exit <code>` as the last
//! line.

use std::ffi::CString;
use std::fs;
use std::path::Path;
use std::time::Instant;

use nix::mount::{MsFlags, mount};

/// Never returns: a first process that ends is a panic of the kernel.
pub fn first_process(tests: impl FnOnce() -> i32) -> ! {
    let begin = Instant::now();
    let code = prepare().map_or_else(
        |error| {
            println!("wireguard-kernel: {error}");
            2
        },
        |()| tests(),
    );
    println!("wireguard-kernel: the tests took {} s", begin.elapsed().as_secs());
    println!("wireguard-kernel: exit {code}");
    rustix::fs::sync();
    let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
    loop {
        std::thread::park();
    }
}

fn prepare() -> Result<(), String> {
    for (fs, place) in
        [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/tmp"), ("tmpfs", "/run")]
    {
        fs::create_dir_all(place).map_err(|error| format!("{place}: {error}"))?;
        mount(Some(fs), place, Some(fs), MsFlags::empty(), None::<&str>).map_err(|e| format!("mount {place}: {e}"))?;
    }
    let mut modules: Vec<_> = fs::read_dir("/modules").into_iter().flatten().flatten().map(|e| e.path()).collect();
    modules.sort();
    for path in modules {
        load(&path).map_err(|error| format!("load {}: {error}", path.display()))?;
    }
    let begin = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    println!("wireguard-kernel: {} after {} s", release.trim(), begin.trim());
    Ok(())
}

fn load(path: &Path) -> Result<(), String> {
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    match rustix::system::finit_module(&file, &CString::default(), 0) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}
