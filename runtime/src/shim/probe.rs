//! Whether ids can be mapped for the files below a directory, as the containers of [`super::mapped`] need it.
//!
//! It takes a user namespace to find out, and the daemon has threads: so a process of its own makes one, `<exe> __maps
//! <directory>`, which ends in [`main`].

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions};

use super::mapped::is_refusal;
use crate::plan::namespace;
use crate::subprocess;
use crate::sys::{self, Cloned};

/// First argument of the process.
pub(crate) const NAME: &str = "__maps";

/// Asks; blocking. The error says in words why not.
pub(crate) fn maps_ids(exe: &OwnedFd, dir: &Path) -> Result<(), String> {
    subprocess::run(exe, NAME, &[dir.as_os_str()])
}

/// The process's whole life.
pub(crate) fn main(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(dir) = args.next() else { return ExitCode::from(2) };
    subprocess::end(run(Path::new(&dir)))
}

fn run(dir: &Path) -> io::Result<()> {
    let os = io::Error::from_raw_os_error;
    sys::close_inherited().map_err(os)?;
    let (wait, go) = pipe_with(PipeFlags::CLOEXEC)?;
    let pid = match sys::clone_process(namespace::USER, None, false) {
        Ok(Cloned::Child) => {
            drop(go);
            // Until the other one closes its end.
            let _ = rustix::io::read(&wait, &mut [0u8; 1]);
            sys::exit_now(0)
        }
        Ok(Cloned::Parent { pid, .. }) => pid,
        Err(errno) => return Err(io::Error::other(format!("no user namespace can be made: {}", os(errno)))),
    };
    let outcome = map(pid, dir);
    drop(go);
    let _ = rustix::process::waitpid(i32::try_from(pid).ok().and_then(Pid::from_raw), WaitOptions::empty());
    outcome
}

fn map(pid: u32, dir: &Path) -> io::Result<()> {
    // Any ids will do.
    for file in ["uid_map", "gid_map"] {
        std::fs::write(format!("/proc/{pid}/{file}"), "0 100000 1\n")?;
    }
    let users = File::open(format!("/proc/{pid}/ns/user"))?;
    let tree = open_tree(CWD, dir, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    match sys::map_mount(tree.as_fd(), users.as_fd()) {
        Ok(()) => Ok(()),
        Err(errno) if is_refusal(errno) => {
            Err(io::Error::other("this kernel, or the filesystem there, cannot map ids in a mount"))
        }
        Err(errno) => Err(io::Error::from_raw_os_error(errno)),
    }
}
