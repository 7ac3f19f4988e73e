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

use super::places::{self, Wanted};
use super::{AtStep, Failure, Outcome, Prepared, Step};
use crate::plan::{Action, Attributes, MS_PRIVATE, MS_REC, NodeKind, Plan, Root, Target, mount_attr, namespace};
use crate::sys;

/// Mounts the root and everything in it. Returns the new root.
pub(super) fn build_root(prepared: &mut Prepared) -> Outcome<OwnedFd> {
    let (dir, plan) = (prepared.dir.as_c_str(), &prepared.plan);
    take_shared(plan, &mut prepared.trees)?;
    if plan.propagation != 0 {
        let flags = MountPropagationFlags::from_bits_retain(u32::try_from(plan.propagation).unwrap_or(0));
        mount_change(c"/", flags).at(Step::Propagation)?;
    }
    let root = match &plan.root {
        Root::Overlay { .. } if plan.ids.is_some() => prepared.root.take().ok_or(Error::BADF).at(Step::Root)?,
        Root::Overlay { options, nodev } => {
            rustix::process::chdir(dir).at(Step::Root)?;
            let flags = if *nodev { MountFlags::NODEV } else { MountFlags::empty() };
            mount(c"overlay", c"rootfs", c"overlay", flags, options.as_c_str()).at(Step::Root)?;
            open_path(c"rootfs").at(Step::Root)?
        }
        Root::Directory(path) => bind_root(path, plan).at(Step::Root)?,
    };
    for (index, action) in plan.setup.iter().enumerate() {
        let tree = prepared.trees.get_mut(index).and_then(Option::take);
        act(root.as_fd(), action, tree).map_err(|failed| failure(index, failed))?;
    }
    Ok(root)
}

/// Opens the overlay that the shim has mounted: in a directory that is the host's root's alone, which this process still
/// is to the files there.
pub(super) fn open_mapped(prepared: &mut Prepared) -> Outcome<()> {
    rustix::process::chdir(prepared.dir.as_c_str()).at(Step::Root)?;
    prepared.root = Some(open_path(c"rootfs").at(Step::Root)?);
    Ok(())
}

fn open_path(path: &CStr) -> Result<OwnedFd, Error> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Makes a directory a mount of its own, over itself.
fn bind_root(path: &CStr, plan: &Plan) -> Result<OwnedFd, Error> {
    let place = open_path(path)?;
    if plan.propagation == 0 && plan.confinement() == Confinement::Pivot {
        // The host's mounts stay shared with it: the one below the root must not be, or ours would show there.
        make_holder_private(&place)?;
    }
    let tree = open_tree(&place, c"", empty_path_clone() | OpenTreeFlags::AT_RECURSIVE)?;
    // A root that is shared cannot be switched to; what was asked for is set when it has been.
    sys::set_mount_attributes(tree.as_fd(), false, 0, 0, MS_PRIVATE).map_err(Error::from_raw_os_error)?;
    attach(&tree, &place)?;
    // The descriptor of a detached tree is one into the mount once it is attached.
    Ok(tree)
}

/// Makes the mount that holds a directory private, whichever that is.
fn make_holder_private(place: &OwnedFd) -> Result<(), Error> {
    let mut at = rustix::fs::openat(place, c".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // Paths have at most 4096 bytes.
    for _ in 0..2048 {
        match sys::set_mount_attributes(at.as_fd(), false, 0, 0, MS_PRIVATE) {
            Ok(()) => return Ok(()),
            // Not the root of a mount.
            Err(libc::EINVAL) => {}
            Err(errno) => return Err(Error::from_raw_os_error(errno)),
        }
        at = rustix::fs::openat(&at, c"..", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    }
    Err(Error::LOOP)
}

/// How a process is kept in its root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Confinement {
    /// The root becomes that of its mount namespace.
    Pivot,
    /// It has no mount namespace of its own, and must not change the root of others.
    Chroot,
}

impl Plan {
    fn confinement(&self) -> Confinement {
        if self.namespaces & namespace::MOUNT != 0 || self.joins_mounts {
            Confinement::Pivot
        } else {
            Confinement::Chroot
        }
    }
}

/// Sources of mounts that stay peers of the host's: only before the namespace becomes the host's slave are its mounts
/// still that.
fn take_shared(plan: &Plan, trees: &mut [Option<OwnedFd>]) -> Outcome<()> {
    for (index, (action, place)) in plan.setup.iter().zip(trees).enumerate() {
        if action.is_shared() && place.is_none() {
            *place = take_source(action).map_err(|errno| failure(index, (Step::BindSource, errno)))?;
        }
    }
    Ok(())
}

/// A copy of the tree of mounts that an action shows, not mounted anywhere yet; none for actions that show none.
pub(crate) fn take_source(action: &Action) -> Result<Option<OwnedFd>, Error> {
    match action {
        Action::Bind { source, recursive, .. } | Action::Shared { source, recursive, .. } => {
            clone_tree(CWD, source, *recursive).map(Some)
        }
        Action::Beneath { source, path, .. } => clone_beneath(source, path).map(Some),
        _ => Ok(None),
    }
}

fn failure(index: usize, (step, errno): (Step, Error)) -> Failure {
    Failure { step, index: u16::try_from(index).unwrap_or(u16::MAX), errno: errno.raw_os_error() }
}

/// Makes the root that was built the process's own, and lets go of the host's.
pub(super) fn switch_root(root: BorrowedFd<'_>, plan: &Plan) -> Outcome<()> {
    rustix::process::fchdir(root).at(Step::SwitchRoot)?;
    match plan.confinement() {
        Confinement::Chroot => rustix::process::chroot(c".").at(Step::SwitchRoot)?,
        Confinement::Pivot => {
            let old = if plan.propagation == 0 { Some(open_path(c"/").at(Step::SwitchRoot)?) } else { None };
            rustix::process::pivot_root(c".", c".").at(Step::SwitchRoot)?;
            if let Some(old) = old {
                // Or the host's own mounts would go away with our view of them.
                let downstream = crate::plan::MS_SLAVE;
                sys::set_mount_attributes(old.as_fd(), true, 0, 0, downstream).at(Step::SwitchRoot)?;
            }
            // The old root now lies on top of the new one.
            unmount(c".", UnmountFlags::DETACH).at(Step::SwitchRoot)?;
        }
    }
    rustix::process::chdir(c"/").at(Step::SwitchRoot)?;
    if plan.root_propagation != 0 {
        let whole = plan.root_propagation & MS_REC != 0;
        sys::set_mount_attributes(root, whole, 0, 0, plan.root_propagation & !MS_REC).at(Step::Propagation)?;
    }
    Ok(())
}

/// Makes the mount that `fd` is the root of read-only.
pub(super) fn seal(fd: BorrowedFd<'_>) -> Result<(), sys::Errno> {
    sys::set_mount_attributes(fd, false, mount_attr::RDONLY, 0, 0)
}

/// `tree` is what the action shows, when that had to be taken before.
fn act(root: BorrowedFd<'_>, action: &Action, tree: Option<OwnedFd>) -> Result<(), (Step, Error)> {
    match action {
        Action::Filesystem { fs, source, options, attributes, propagation, target, optional } => {
            let made = filesystem(fs, source, options, *attributes);
            match made {
                Err(Error::NODEV) if *optional => Ok(()),
                Err(errno) => Err((Step::Mount, errno)),
                Ok(tree) => filesystem_place(root, fs, target)
                    .and_then(|at| {
                        outside_of_proc(&at, target)
                            .and_then(|()| propagate(&tree, *propagation))
                            .and_then(|()| attach(&tree, &at))
                    })
                    .map_err(|e| (Step::Mount, e)),
            }
        }
        Action::Bind { target, attributes, propagation, .. }
        | Action::Shared { target, attributes, propagation, .. } => {
            let tree = tree.map_or_else(|| source_of(action), Ok)?;
            bind(root, &tree, target, *attributes, *propagation).map_err(|e| (Step::Mount, e))
        }
        Action::Beneath { target, attributes, .. } => {
            let tree = tree.map_or_else(|| source_of(action), Ok)?;
            bind(root, &tree, target, *attributes, MS_PRIVATE | MS_REC).map_err(|e| (Step::Mount, e))
        }
        Action::Remount { target, attributes } => resolve(root, target.path(), OFlags::empty())
            .and_then(|at| change(at.as_fd(), *attributes))
            .map_err(|e| (Step::Remount, e)),
        Action::Device { .. } => device(root, action).map_err(|e| (Step::Device, e)),
        Action::Link { target, to } => link(root, target, to).map_err(|e| (Step::Link, e)),
        Action::Sysctl { target, value, optional } => match sysctl(root, target, value) {
            Err(Error::NOENT | Error::ACCESS | Error::ROFS) if *optional => Ok(()),
            other => other.map_err(|e| (Step::Sysctl, e)),
        },
        Action::Mask { target } => existing(root, target, mask).map_err(|e| (Step::Mask, e)),
        Action::ReadOnly { target } => existing(root, target, read_only).map_err(|e| (Step::ReadOnlyPath, e)),
        Action::Seal { target } => match resolve(root, target.path(), OFlags::empty()) {
            Ok(fd) => seal(fd.as_fd()).map_err(|errno| (Step::Mount, Error::from_raw_os_error(errno))),
            Err(errno) => Err((Step::Mount, errno)),
        },
    }
}

fn source_of(action: &Action) -> Result<OwnedFd, (Step, Error)> {
    take_source(action).and_then(|tree| tree.ok_or(Error::INVAL)).map_err(|errno| (Step::BindSource, errno))
}

/// What is not there needs no hiding.
fn existing(root: BorrowedFd<'_>, target: &Target, hide: impl Fn(&OwnedFd) -> Result<(), Error>) -> Result<(), Error> {
    match resolve(root, target.path(), OFlags::empty()) {
        Err(Error::NOENT | Error::NOTDIR) => Ok(()),
        Err(errno) => Err(errno),
        Ok(at) => hide(&at),
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
    directory_at(root, target.path())
}

fn directory_at(root: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd, Error> {
    match resolve(root, path, OFlags::PATH | OFlags::DIRECTORY) {
        Err(Error::NOENT) => places::make(root, path, Wanted::Directory),
        other => other,
    }
}

/// What the kernel tells of itself is masked and written to by its usual path, so it must be there and nowhere else.
fn filesystem_place(root: BorrowedFd<'_>, fs: &CStr, target: &Target) -> Result<OwnedFd, Error> {
    if fs != c"proc" && fs != c"sysfs" {
        return directory(root, target);
    }
    drop(directory(root, target)?);
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat2(root, target.path(), flags, Mode::empty(), how)
}

/// Makes a directory inside of the root, and those above it.
pub(super) fn make_directory(root: BorrowedFd<'_>, target: &Target) -> Result<(), Error> {
    directory(root, target).map(drop)
}

/// Opens the directory that holds the target, and makes it when it is missing.
fn parent_directory(root: BorrowedFd<'_>, target: &Target) -> Result<OwnedFd, Error> {
    directory_at(root, target.parent())
}

/// Opens the file at the target, or makes an empty one.
fn file(root: BorrowedFd<'_>, target: &Target) -> Result<OwnedFd, Error> {
    match resolve(root, target.path(), OFlags::empty()) {
        Err(Error::NOENT) => places::make(root, target.path(), Wanted::File),
        other => other,
    }
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

/// What is at `path` inside of `source`. Whoever can write there may put links on the way, and swap directories while
/// we look: the kernel's own look-up ends inside, or fails.
fn clone_beneath(source: &CStr, path: &CStr) -> Result<OwnedFd, Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(source, flags, Mode::empty())?;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let at = loop {
        match rustix::fs::openat2(&dir, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), how) {
            Err(Error::AGAIN | Error::INTR) => {}
            other => break other?,
        }
    };
    open_tree(&at, c"", empty_path_clone() | OpenTreeFlags::AT_RECURSIVE)
}

fn bind(
    root: BorrowedFd<'_>,
    tree: &OwnedFd,
    target: &Target,
    attributes: Attributes,
    propagation: u64,
) -> Result<(), Error> {
    propagate(tree, propagation)?;
    change(tree.as_fd(), attributes)?;
    let at = if is_directory(tree.as_fd())? { directory(root, target)? } else { file(root, target)? };
    outside_of_proc(&at, target)?;
    attach(tree, &at)
}

/// A link of the image's must not lead a mount into `/proc`, which the plan lets nobody cover.
fn outside_of_proc(at: &OwnedFd, target: &Target) -> Result<(), Error> {
    let meant = target.path().to_bytes().starts_with(b"proc/");
    if !meant && rustix::fs::fstatfs(at)?.f_type as u64 == super::confine::PROCFS {
        return Err(Error::LOOP);
    }
    Ok(())
}

/// Sets how later mounts travel.
fn propagate(tree: &OwnedFd, propagation: u64) -> Result<(), Error> {
    if propagation == 0 {
        return Ok(());
    }
    let whole = propagation & MS_REC != 0;
    sys::set_mount_attributes(tree.as_fd(), whole, 0, 0, propagation & !MS_REC).map_err(Error::from_raw_os_error)
}

/// Changes a mount's attributes, those of the whole tree first.
fn change(mount: BorrowedFd<'_>, attributes: Attributes) -> Result<(), Error> {
    // Ids were mapped where the tree was taken, by somebody who may.
    let Attributes { set, clear, deep_set, deep_clear, maps_ids: _ } = attributes;
    for (whole, set, clear) in [(true, deep_set, deep_clear), (false, set, clear)] {
        if set | clear != 0 {
            sys::set_mount_attributes(mount, whole, set, clear, 0).map_err(Error::from_raw_os_error)?;
        }
    }
    Ok(())
}

fn is_directory(fd: BorrowedFd<'_>) -> Result<bool, Error> {
    let stat = rustix::fs::statat(fd, c"", AtFlags::EMPTY_PATH)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// Shows an open file at a fixed place in `/dev`. That may be the host's, or the image's, and have something there: then
/// it is covered, if it is what can be there.
pub(super) fn show_at(root: BorrowedFd<'_>, fd: BorrowedFd<'_>, path: &CStr) -> Result<(), Error> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW;
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let place = match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::from_raw_mode(0o600), how) {
        Err(Error::EXIST) => {
            let there = resolve(root, path, OFlags::PATH | OFlags::NOFOLLOW)?;
            let stat = rustix::fs::statat(&there, c"", AtFlags::EMPTY_PATH)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile | FileType::CharacterDevice => there,
                _ => return Err(Error::EXIST),
            }
        }
        other => other?,
    };
    let tree = open_tree(fd, c"", empty_path_clone())?;
    attach(&tree, &place)
}

fn device(root: BorrowedFd<'_>, action: &Action) -> Result<(), Error> {
    let Action::Device { target, kind, major, minor, mode, uid, gid } = action else { return Ok(()) };
    let parent = parent_directory(root, target)?;
    let kind = match kind {
        NodeKind::Character => FileType::CharacterDevice,
        NodeKind::Block => FileType::BlockDevice,
        NodeKind::Fifo => FileType::Fifo,
    };
    let device = if kind == FileType::Fifo { 0 } else { rustix::fs::makedev(*major, *minor) };
    match rustix::fs::mknodat(&parent, target.name(), kind, Mode::from_raw_mode(*mode), device) {
        Ok(()) => {}
        Err(Error::EXIST) => return Ok(()),
        // Nobody makes devices in a user namespace. The targets of devices are relative to the root, as the host's is.
        Err(Error::PERM) if kind != FileType::Fifo => {
            let host = rustix::fs::open(c"/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            let tree = clone_tree(host.as_fd(), target.path(), false)?;
            let stat = rustix::fs::fstat(&tree)?;
            if FileType::from_raw_mode(stat.st_mode) != kind || stat.st_rdev != device {
                return Err(Error::NODEV);
            }
            return attach(&tree, &file(root, target)?);
        }
        Err(errno) => return Err(errno),
    }
    if (*uid, *gid) == (0, 0) {
        return Ok(());
    }
    // Another container that shares the directory may have put something else in its place.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = rustix::fs::openat(&parent, target.name(), flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&made)?;
    if FileType::from_raw_mode(stat.st_mode) != kind || (kind != FileType::Fifo && stat.st_rdev != device) {
        return Err(Error::STALE);
    }
    let owner = (Some(rustix::process::Uid::from_raw(*uid)), Some(rustix::process::Gid::from_raw(*gid)));
    rustix::fs::chownat(&made, c"", owner.0, owner.1, AtFlags::EMPTY_PATH)
}

fn link(root: BorrowedFd<'_>, target: &Target, to: &CStr) -> Result<(), Error> {
    let parent = parent_directory(root, target)?;
    match rustix::fs::symlinkat(to, &parent, target.name()) {
        Err(Error::EXIST) => Ok(()),
        other => other,
    }
}

fn sysctl(root: BorrowedFd<'_>, target: &Target, value: &CStr) -> Result<(), Error> {
    let file = resolve(root, target.path(), OFlags::WRONLY)?;
    // Whatever the image or another container has put in this place.
    if rustix::fs::fstatfs(&file)?.f_type as u64 != super::confine::PROCFS {
        return Err(Error::XDEV);
    }
    rustix::io::write(&file, value.to_bytes()).map(drop)
}

fn mask(at: &OwnedFd) -> Result<(), Error> {
    if is_directory(at.as_fd())? {
        let empty = filesystem(c"tmpfs", c"tmpfs", &[], mount_attr::RDONLY)?;
        return attach(&empty, at);
    }
    // The host's: the container may have none, and what its image has by that name may be anything.
    attach(&clone_tree(CWD, c"/dev/null", false)?, at)
}

fn read_only(at: &OwnedFd) -> Result<(), Error> {
    let tree = open_tree(at, c"", empty_path_clone() | OpenTreeFlags::AT_RECURSIVE)?;
    sys::set_mount_attributes(tree.as_fd(), true, mount_attr::RDONLY, 0, 0).map_err(Error::from_raw_os_error)?;
    attach(&tree, at)
}

fn empty_path_clone() -> OpenTreeFlags {
    OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH
}
