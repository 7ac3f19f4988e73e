//! Rules on devices, brought to the kernel: lines for v1's controller, a program for v2.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::group::Group;
use super::host::Host;
use super::{CgroupError, failed};
use crate::plan::limits::devices::{Rule, v1_lines};
use crate::plan::limits::ebpf::program;
use crate::sys;

/// How long the kernel may take to forget a removed cgroup.
const CHILDREN: Duration = Duration::from_secs(1);

/// Sets these rules on a cgroup that is empty.
pub(super) fn guard(host: &Host, group: &Group, rules: &[Rule]) -> Result<(), CgroupError> {
    if host.v1("devices").is_some() {
        return write_lines(host, group, rules);
    }
    let program = load(rules).map_err(CgroupError::Devices)?;
    attach(host, group, program.as_fd())
}

/// The rules as a program in the kernel.
pub(super) fn load(rules: &[Rule]) -> io::Result<OwnedFd> {
    sys::load_device_program(&program(rules)).map_err(io::Error::from_raw_os_error)
}

/// Puts a loaded program on the v2 cgroup.
pub(super) fn attach(host: &Host, group: &Group, program: BorrowedFd<'_>) -> Result<(), CgroupError> {
    let Some(hierarchy) = host.v2() else {
        return Err(CgroupError::Controller {
            field: "devices",
            controller: "devices".to_owned(),
            reason: "this host does not have".to_owned(),
        });
    };
    let dir = open(&group.dir(hierarchy)).map_err(CgroupError::Devices)?;
    sys::attach_device_program(dir.as_fd(), program)
        .map_err(|errno| CgroupError::Devices(io::Error::from_raw_os_error(errno)))
}

/// Whether the devices of this cgroup are guarded, by either means.
pub(super) fn are_guarded(host: &Host, group: &Group) -> bool {
    if host.v1("devices").is_some() {
        return true;
    }
    let Some(dir) = host.v2().and_then(|hierarchy| open(&group.dir(hierarchy)).ok()) else { return false };
    sys::device_programs(dir.as_fd()).is_ok_and(|count| count > 0)
}

fn open(dir: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(dir)
}

fn write_lines(host: &Host, group: &Group, rules: &[Rule]) -> Result<(), CgroupError> {
    let Some(dir) = host.v1("devices").map(|hierarchy| group.dir(hierarchy)) else { return Ok(()) };
    let (allow, deny) = (dir.join("devices.allow"), dir.join("devices.deny"));
    let open = |path: &Path| OpenOptions::new().write(true).open(path).map_err(failed("open", path));
    let (allow_file, deny_file) = (open(&allow)?, open(&deny)?);
    for (allows, line) in v1_lines(rules)? {
        let (path, file) = if allows { (&allow, &allow_file) } else { (&deny, &deny_file) };
        let deadline = Instant::now() + CHILDREN;
        while let Err(errno) = rustix::io::write(file, line.as_bytes()) {
            // The word for everything is refused to who has children, and one that was removed counts for a moment.
            if errno != rustix::io::Errno::INVAL || line != "a" || Instant::now() >= deadline {
                return Err(CgroupError::Limit { field: "devices", path: path.clone(), source: errno.into() });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(())
}
