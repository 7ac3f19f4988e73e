//! The binary of this process, out of reach of the containers that it makes.
//!
//! A program in a container can execute `/proc/self/exe` in the moment in which that is still this binary (by an
//! interpreter line, say), and then write to it from another process once nothing executes it any more (CVE-2019-5736).
//! So whoever becomes part of a container runs from a mount that cannot be written through: a read-only clone of the
//! one that the binary lies on, which nobody but this process sees. The same is done for shims.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;

use rustix::fs::{CWD, StatVfsMountFlags, statvfs};
use rustix::mount::{OpenTreeFlags, open_tree};

use super::Failure;
use crate::plan::mount_attr;
use crate::sys::{self, ExecArgs};

const SELF: &str = "/proc/self/exe";

/// Executes this very command line again from such a mount, when it does not run from one yet.
pub(super) fn ensure() -> Result<(), Failure> {
    let mounted = statvfs(SELF).map_err(|errno| Failure::system("look at the own binary")(errno.into()))?;
    if mounted.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    let failed = Failure::system("protect the own binary");
    Err(failed(again()))
}

/// Returns only when it failed.
fn again() -> io::Error {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let exe = match open_tree(CWD, SELF, flags) {
        Ok(exe) => exe,
        Err(errno) => return errno.into(),
    };
    if let Err(errno) = sys::set_mount_attributes(exe.as_fd(), false, mount_attr::RDONLY, 0, 0) {
        return io::Error::from_raw_os_error(errno);
    }
    let c_strings = |list: Vec<OsString>| -> io::Result<Vec<CString>> {
        list.into_iter().map(|text| CString::new(text.into_vec()).map_err(io::Error::other)).collect()
    };
    let pair = |(name, value): (OsString, OsString)| {
        let mut pair = name;
        pair.push("=");
        pair.push(value);
        pair
    };
    let prepared = c_strings(std::env::args_os().collect())
        .and_then(|args| Ok(ExecArgs::new(args, c_strings(std::env::vars_os().map(pair).collect())?)));
    match prepared {
        Ok(prepared) => io::Error::from_raw_os_error(prepared.exec_fd(exe.as_fd())),
        Err(error) => error,
    }
}
