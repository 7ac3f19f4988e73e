//! The child's mounts: the root, what lies in it, and the switch to it.
//!
//! The image is hostile: any path in it may be a link that points at the host. Every target is therefore resolved by
//! the kernel inside of the root (`openat2` with `RESOLVE_IN_ROOT`) to a descriptor, and mounts are attached to that
//! descriptor, never to a path that is walked a second time.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno as Error;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, mount_change,
    move_mount, open_tree, unmount,
};

use super::{AtStep, Failure, Outcome, Step};
use crate::config::Propagation;
use crate::plan::{Action, Plan, Target, mount_attr};
use crate::sys;

/// Mounts the overlay and everything in it. Returns the new root.
pub(super) fn build_root(dir: &CStr, plan: &Plan) -> Outcome<OwnedFd> {
    // The host's later mounts may come in (rslave binds need it), ours never go out.
    mount_change(c"/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC).at(Step::Propagation)?;
    rustix::process::chdir(dir).at(Step::Root)?;
    let flags = if plan.root_nodev { MountFlags::NODEV } else { MountFlags::empty() };
    mount(c"overlay", c"rootfs", c"overlay", flags, plan.overlay.as_c_str()).at(Step::Root)?;
    let root = rustix::fs::open(c"rootfs", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .at(Step::Root)?;
    for (index, action) in plan.setup.iter().enumerate() {
        act(root.as_fd(), action).map_err(|(step, errno)| Failure {
            step,
            index: u16::try_from(index).unwrap_or(u16::MAX),
            errno: errno.raw_os_error(),
        })?;
    }
    Ok(root)
}

/// Makes the root that was built the process's own, and lets go of the host's.
pub(super) fn switch_root(root: BorrowedFd<'_>) -> Outcome<()> {
    rustix::process::fchdir(root).at(Step::SwitchRoot)?;
    rustix::process::pivot_root(c".", c".").at(Step::SwitchRoot)?;
    // The old root now lies on top of the new one.
    unmount(c".", UnmountFlags::DETACH).at(Step::SwitchRoot)?;
    rustix::process::chdir(c"/").at(Step::SwitchRoot)
}

/// Makes the mount that `fd` is the root of read-only.
pub(super) fn seal(fd: BorrowedFd<'_>) -> Result<(), sys::Errno> {
    sys::set_mount_attributes(fd, false, mount_attr::RDONLY, 0)
}

fn act(root: BorrowedFd<'_>, action: &Action) -> Result<(), (Step, Error)> {
    match action {
        Action::Filesystem { fs, source, options, attributes, target, optional } => {
            let made = filesystem(fs, source, options, *attributes);
            match made {
                Err(Error::NODEV) if *optional => Ok(()),
                Err(errno) => Err((Step::Mount, errno)),
                Ok(tree) => directory(root, target).and_then(|at| attach(&tree, &at)).map_err(|e| (Step::Mount, e)),
            }
        }
        Action::Bind { source, target, recursive, readonly, propagation } => {
            let tree = clone_tree(CWD, source, *recursive).map_err(|e| (Step::BindSource, e))?;
            bind(root, &tree, target, *recursive, *readonly, *propagation).map_err(|e| (Step::Mount, e))
        }
        Action::Device { target, major, minor } => device(root, target, *major, *minor).map_err(|e| (Step::Device, e)),
        Action::Link { target, to } => link(root, target, to).map_err(|e| (Step::Link, e)),
        Action::Sysctl { target, value, optional } => match sysctl(root, target, value) {
            Err(Error::NOENT | Error::ACCESS | Error::ROFS) if *optional => Ok(()),
            other => other.map_err(|e| (Step::Sysctl, e)),
        },
        Action::Mask { target } => existing(mask(root, target)).map_err(|e| (Step::Mask, e)),
        Action::ReadOnly { target } => existing(read_only(root, target)).map_err(|e| (Step::ReadOnlyPath, e)),
        Action::Seal { target } => match resolve(root, target.path(), OFlags::empty()) {
            Ok(fd) => seal(fd.as_fd()).map_err(|errno| (Step::Mount, Error::from_raw_os_error(errno))),
            Err(errno) => Err((Step::Mount, errno)),
        },
    }
}

/// What is not there needs no hiding.
fn existing(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(Error::NOENT | Error::NOTDIR) => Ok(()),
        other => other,
    }
}

/// Opens a place inside of the root, whatever links lie on the way. No magic link of /proc is followed.
pub(super) fn resolve(root: BorrowedFd<'_>, path: &CStr, flags: OFlags) -> Result<OwnedFd, Error> {
    let flags = if flags.is_empty() { OFlags::PATH } else { flags };
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), how) {
            // A rename raced with the walk; only bind-mounted trees can move under us, and not for ever.
            Err(Error::AGAIN | Error::INTR) => {}
            other => return other,
        }
    }
}

/// Opens a directory inside of the root and makes what is missing on the way.
fn directory(root: BorrowedFd<'_>, target: &Target) -> Result<OwnedFd, Error> {
    let mut parent = resolve(root, c".", OFlags::empty())?;
    for (prefix, name) in target.steps() {
        let opened = match resolve(root, prefix, OFlags::PATH | OFlags::DIRECTORY) {
            Err(Error::NOENT) => {
                rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
                resolve(root, prefix, OFlags::PATH | OFlags::DIRECTORY)
            }
            other => other,
        };
        parent = opened?;
    }
    Ok(parent)
}

/// Makes a directory inside of the root, and those above it.
pub(super) fn make_directory(root: BorrowedFd<'_>, target: &Target) -> Result<(), Error> {
    directory(root, target).map(drop)
}

/// Opens the directory that holds the target, and makes it when it is missing.
fn parent_directory(root: BorrowedFd<'_>, target: &Target) -> Result<OwnedFd, Error> {
    match resolve(root, target.parent(), OFlags::PATH | OFlags::DIRECTORY) {
        Err(Error::NOENT) => {}
        other => return other,
    }
    let mut parent = resolve(root, c".", OFlags::empty())?;
    let last = target.steps().len().saturating_sub(1);
    for (prefix, name) in target.steps().take(last) {
        parent = match resolve(root, prefix, OFlags::PATH | OFlags::DIRECTORY) {
            Err(Error::NOENT) => {
                rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
                resolve(root, prefix, OFlags::PATH | OFlags::DIRECTORY)?
            }
            other => other?,
        };
    }
    Ok(parent)
}

/// Opens the file at the target, or makes an empty one.
fn file(root: BorrowedFd<'_>, target: &Target) -> Result<OwnedFd, Error> {
    match resolve(root, target.path(), OFlags::empty()) {
        Err(Error::NOENT) => {}
        other => return other,
    }
    let parent = parent_directory(root, target)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let _created = rustix::fs::openat(&parent, target.name(), flags, Mode::from_raw_mode(0o644))?;
    resolve(root, target.path(), OFlags::empty())
}

fn attach(tree: &OwnedFd, at: &OwnedFd) -> Result<(), Error> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, c"", at, c"", flags)
}

fn filesystem(
    fs: &CStr,
    source: &CStr,
    options: &[(std::ffi::CString, Option<std::ffi::CString>)],
    attributes: u64,
) -> Result<OwnedFd, Error> {
    let context = fsopen(fs, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, c"source", source)?;
    for (key, value) in options {
        match value {
            Some(value) => fsconfig_set_string(&context, key.as_c_str(), value.as_c_str())?,
            None => fsconfig_set_flag(&context, key.as_c_str())?,
        }
    }
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::from_bits_retain(u32::try_from(attributes).unwrap_or(0));
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

fn clone_tree(dir: BorrowedFd<'_>, path: &CStr, recursive: bool) -> Result<OwnedFd, Error> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(dir, path, flags)
}

fn bind(
    root: BorrowedFd<'_>,
    tree: &OwnedFd,
    target: &Target,
    recursive: bool,
    readonly: bool,
    propagation: Propagation,
) -> Result<(), Error> {
    const MS_PRIVATE: u64 = 1 << 18;
    const MS_SLAVE: u64 = 1 << 19;
    let (kind, whole_tree) = match propagation {
        Propagation::RPrivate => (MS_PRIVATE, true),
        Propagation::Private => (MS_PRIVATE, false),
        Propagation::RSlave => (MS_SLAVE, true),
        Propagation::Slave => (MS_SLAVE, false),
    };
    let from_errno = Error::from_raw_os_error;
    sys::set_mount_attributes(tree.as_fd(), whole_tree, 0, kind).map_err(from_errno)?;
    if readonly {
        sys::set_mount_attributes(tree.as_fd(), recursive, mount_attr::RDONLY, 0).map_err(from_errno)?;
    }
    let at = if is_directory(tree.as_fd())? { directory(root, target)? } else { file(root, target)? };
    attach(tree, &at)
}

fn is_directory(fd: BorrowedFd<'_>) -> Result<bool, Error> {
    let stat = rustix::fs::statat(fd, c"", AtFlags::EMPTY_PATH)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

fn device(root: BorrowedFd<'_>, target: &Target, major: u32, minor: u32) -> Result<(), Error> {
    let parent = parent_directory(root, target)?;
    let mode = Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(&parent, target.name(), FileType::CharacterDevice, mode, rustix::fs::makedev(major, minor))
}

fn link(root: BorrowedFd<'_>, target: &Target, to: &CStr) -> Result<(), Error> {
    let parent = parent_directory(root, target)?;
    rustix::fs::symlinkat(to, &parent, target.name())
}

fn sysctl(root: BorrowedFd<'_>, target: &Target, value: &CStr) -> Result<(), Error> {
    let file = resolve(root, target.path(), OFlags::WRONLY)?;
    rustix::io::write(&file, value.to_bytes()).map(drop)
}

fn mask(root: BorrowedFd<'_>, target: &Target) -> Result<(), Error> {
    let at = resolve(root, target.path(), OFlags::empty())?;
    if is_directory(at.as_fd())? {
        let empty = filesystem(c"tmpfs", c"tmpfs", &[], mount_attr::RDONLY)?;
        return attach(&empty, &at);
    }
    let null = resolve(root, c"dev/null", OFlags::empty())?;
    let null = open_tree(&null, c"", empty_path_clone())?;
    attach(&null, &at)
}

fn read_only(root: BorrowedFd<'_>, target: &Target) -> Result<(), Error> {
    let at = resolve(root, target.path(), OFlags::empty())?;
    let tree = open_tree(&at, c"", empty_path_clone() | OpenTreeFlags::AT_RECURSIVE)?;
    sys::set_mount_attributes(tree.as_fd(), true, mount_attr::RDONLY, 0).map_err(Error::from_raw_os_error)?;
    attach(&tree, &at)
}

fn empty_path_clone() -> OpenTreeFlags {
    OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH
}
