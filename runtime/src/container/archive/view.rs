//! Roots of containers, to copy from and to.
//!
//! What is mounted here is mounted in a namespace of the calling thread's own, and goes away with the thread.

use std::ffi::CString;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_change, move_mount, open_tree,
};

use super::place::Root;
use crate::config::{Mount, MountKind};
use crate::plan::{mount_attr, namespace};
use crate::remove::remove_tree;
use crate::{procfs, sys};

/// `CLONE_FS`: a thread with a root and working directory of its own may enter mount namespaces.
const OWN_ROOT: u64 = 0x200;
/// The work directory of an overlay that is made to write into a container that has ended.
const WORK: &str = "copy-work";

/// As a process sees it, with all that is mounted there.
pub(super) fn living(pid: u32, start: u64) -> io::Result<Root> {
    let held = procfs::open_verified(pid, start)?.ok_or(io::ErrorKind::NotFound)?;
    // The namespace, or its mounts would come apart when the container ends in the middle.
    let mounts = File::open(format!("/proc/{pid}/ns/mnt"))?;
    let fd = open_path(Path::new(&format!("/proc/{pid}/root")))?;
    // Its number may have become another's meanwhile.
    if !procfs::still_there(&held) {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(Root::new(fd, Some(mounts.into())))
}

/// The same without what is mounted in it: the one mount that a root is on, once more.
pub(super) fn without_mounts(root: Root) -> io::Result<Root> {
    let copy = || -> io::Result<OwnedFd> {
        let mounts = root.mounts().ok_or(io::ErrorKind::Unsupported)?;
        let os = io::Error::from_raw_os_error;
        sys::unshare(OWN_ROOT).map_err(os)?;
        // Only there can its mounts be copied. No path is looked up from here on.
        sys::join_namespace(mounts.as_fd(), namespace::MOUNT).map_err(os)?;
        let tree = open_tree(root.fd(), c"", clone_flags() | OpenTreeFlags::AT_EMPTY_PATH)?;
        sys::set_mount_attributes(tree.as_fd(), false, mount_attr::RDONLY, 0, 0).map_err(os)?;
        Ok(tree)
    };
    // A thread of its own: whoever goes on has the host's /proc before them, not the container's.
    let tree = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("copy-root".to_owned()).spawn_scoped(scope, copy)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    Ok(Root::new(tree, None))
}

/// A mount whose content is still there when the container has ended.
pub(super) struct Lasting<'a> {
    source: &'a Path,
    beneath: &'a Path,
    recursive: bool,
    readonly: bool,
    target: &'a Path,
}

impl Lasting<'_> {
    /// `None`: there is nothing behind it any more, or nothing that may be seen.
    pub(super) fn of<'a>(mount: &'a Mount, private: &Path) -> Option<Lasting<'a>> {
        let (source, beneath, recursive) = match &mount.kind {
            MountKind::Bind { source, .. } if source.starts_with(private) => return None,
            MountKind::Bind { source, recursive, .. } => (source.as_path(), Path::new(""), *recursive),
            MountKind::Volume(volume) => (volume.source.as_path(), volume.subpath.as_path(), true),
            MountKind::Tmpfs { .. } => return None,
        };
        Some(Lasting { source, beneath, recursive, readonly: mount.readonly, target: &mount.target })
    }

    /// Mounts it in a root. What is not there any more is passed over.
    fn mount(&self, root: &Root, all_readonly: bool) -> io::Result<()> {
        let target = root.open(relative(self.target), OFlags::PATH);
        let source = rustix::fs::open(self.source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let (Ok(target), Ok(mut source)) = (target, source) else { return Ok(()) };
        if !self.beneath.as_os_str().is_empty() {
            let how = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let Ok(inner) = rustix::fs::openat2(&source, self.beneath, flags, Mode::empty(), how) else {
                return Ok(());
            };
            source = inner;
        }
        let whole = if self.recursive { OpenTreeFlags::AT_RECURSIVE } else { OpenTreeFlags::empty() };
        let tree = open_tree(&source, c"", clone_flags() | OpenTreeFlags::AT_EMPTY_PATH | whole)?;
        if self.readonly || all_readonly {
            sys::set_mount_attributes(tree.as_fd(), true, mount_attr::RDONLY, 0, 0)
                .map_err(io::Error::from_raw_os_error)?;
        }
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        match move_mount(&tree, c"", &target, c"", flags) {
            // A directory where a file was, or the other way round: the container changed it.
            Err(rustix::io::Errno::NOTDIR | rustix::io::Errno::ISDIR) => Ok(()),
            other => Ok(other?),
        }
    }
}

/// A container that has ended: its layers and what it wrote, read-only, with these mounts.
pub(super) fn ended(dir: &Path, layers: usize, mounts: &[Lasting<'_>]) -> io::Result<Root> {
    let lower = std::iter::once("upper".to_owned()).chain(layer_names(layers));
    let options = format!("lowerdir={}", lower.collect::<Vec<_>>().join(":"));
    overlay(dir, &options, MountFlags::RDONLY)?;
    with_mounts(mounts, true)
}

/// The same to write into.
pub(super) fn ended_writable(dir: &Path, layers: usize, mounts: &[Lasting<'_>]) -> io::Result<Root> {
    // Of its own: the container's was volatile, and such a one is used once. What a dead daemon left is removed.
    let work = dir.join(WORK);
    match remove_tree(&work) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => DirBuilder::new().mode(0o700).create(&work)?,
    }
    let lower = layer_names(layers).collect::<Vec<_>>().join(":");
    overlay(dir, &format!("lowerdir={lower},upperdir=upper,workdir={WORK}"), MountFlags::empty())?;
    with_mounts(mounts, false)
}

/// What a container began with, read-only.
pub(super) fn image(dir: &Path, layers: usize) -> io::Result<Root> {
    if layers == 1 {
        // An overlay that cannot be written takes at least two.
        return Ok(Root::new(open_path(&dir.join("l/0"))?, None));
    }
    let lower = layer_names(layers).collect::<Vec<_>>().join(":");
    overlay(dir, &format!("lowerdir={lower}"), MountFlags::RDONLY)?;
    with_mounts(&[], true)
}

fn layer_names(layers: usize) -> impl Iterator<Item = String> {
    (0..layers).rev().map(|number| format!("l/{number}"))
}

/// Mounts an overlay at `rootfs` in the container's directory, which becomes the thread's working directory.
fn overlay(dir: &Path, options: &str, flags: MountFlags) -> io::Result<()> {
    sys::unshare(namespace::MOUNT).map_err(io::Error::from_raw_os_error)?;
    mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    rustix::process::chdir(dir)?;
    let options = CString::new(options)?;
    let flags = flags | MountFlags::NODEV | MountFlags::NOSUID;
    Ok(mount(c"overlay", c"rootfs", c"overlay", flags, options.as_c_str())?)
}

fn with_mounts(mounts: &[Lasting<'_>], readonly: bool) -> io::Result<Root> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = Root::new(rustix::fs::openat(CWD, c"rootfs", flags, Mode::empty())?, None);
    for mount in mounts {
        mount.mount(&root, readonly)?;
    }
    Ok(root)
}

fn open_path(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

fn clone_flags() -> OpenTreeFlags {
    OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC
}

/// A path inside of a root.
fn relative(path: &Path) -> &[u8] {
    let bytes = path.as_os_str().as_bytes();
    bytes.iter().position(|byte| *byte != b'/').map_or(b"", |start| &bytes[start..])
}
