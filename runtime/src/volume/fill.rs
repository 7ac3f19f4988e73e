//! Fills an empty volume with what the image has at the place where the volume will be mounted.
//!
//! The image's layers have to be seen as one, and the mount that shows them must not outlive anything: so it is made by
//! a process of its own, in a mount namespace of its own, which dies with the thread that waits for it. The daemon
//! calls [`fill`]; that process is `<exe> __fill <container directory> <layers> <target> <volume>`, and ends in
//! [`main`].

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{Signal, set_parent_process_death_signal};

use super::{VolumeError, tree};
use crate::plan::namespace;
use crate::{subprocess, sys};

/// First argument of the process.
pub(crate) const NAME: &str = "__fill";

/// Fills the volume whose data is at `data`. It must be empty; the image may have nothing there, which is fine. Blocking,
/// for as long as copying takes. The thread that calls must wait to the end: the kernel kills the process with it.
///
/// # Errors
/// [`VolumeError::Fill`]; some of it may have been copied then.
pub(super) fn fill(
    exe: &OwnedFd,
    container: &Path,
    layers: usize,
    target: &Path,
    name: &str,
    data: &Path,
) -> Result<(), VolumeError> {
    let failed = |reason: String| VolumeError::Fill { name: name.to_owned(), reason };
    let layers = layers.to_string();
    let args = [container.as_os_str(), layers.as_ref(), target.as_os_str(), data.as_os_str()];
    subprocess::run(exe, NAME, &args).map_err(failed)
}

struct Arguments {
    container: PathBuf,
    layers: usize,
    target: PathBuf,
    data: PathBuf,
}

fn arguments(mut args: impl Iterator<Item = OsString>) -> Option<Arguments> {
    let (container, layers, target, data) = (args.next()?, args.next()?, args.next()?, args.next()?);
    let layers = layers.to_str()?.parse().ok()?;
    let all = Arguments { container: container.into(), layers, target: target.into(), data: data.into() };
    args.next().is_none().then_some(all)
}

/// The process's whole life. Exit code 0: filled, or there was nothing to fill it with; 1: it failed, and said why.
pub(crate) fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(arguments) = arguments(args) else { return ExitCode::from(2) };
    subprocess::end(run(&arguments))
}

fn run(arguments: &Arguments) -> io::Result<()> {
    let os = io::Error::from_raw_os_error;
    sys::close_inherited().map_err(os)?;
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let dir = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let to = rustix::fs::open(&arguments.data, dir, Mode::empty())?;
    sys::unshare(namespace::MOUNT).map_err(os)?;
    mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    rustix::process::chdir(&arguments.container)?;
    // An overlay that cannot be written takes at least two layers; `work` is an empty directory.
    let lower: Vec<String> = (0..arguments.layers).rev().map(|n| format!("l/{n}")).chain(["work".to_owned()]).collect();
    let options = CString::new(format!("lowerdir={}", lower.join(":")))?;
    mount(c"overlay", c"rootfs", c"overlay", MountFlags::RDONLY | MountFlags::NODEV, options.as_c_str())?;
    let root = rustix::fs::open(c"rootfs", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let Some(from) = image_directory(&root, arguments.target.as_os_str())? else { return Ok(()) };
    Ok(tree::copy(from, to)?)
}

/// The image's directory at the target, whatever links lead there; none where there is none.
fn image_directory(root: &OwnedFd, target: &OsStr) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(root, target, flags, Mode::empty(), how) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(errno),
    }
}
