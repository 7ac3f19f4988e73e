//! A container with a user namespace, from outside: what its first process may not do for itself.
//!
//! That process has every capability, but only over its own namespaces. So the shim takes what its mounts show, writes
//! the maps of its ids, its OOM score and its limits, and sends a helper into its mount namespace, with the host's
//! privileges, for the root: each layer is mounted once more with its ids mapped into the namespace, and the overlay is
//! made of these mounts. So layers stay as they are on the disk, and are shared with containers of any mapping; what the
//! container writes belongs to the host's ids of its users. Volumes are mapped like layers, so what a container writes
//! there is what any other container finds. A kernel or filesystem that cannot map ids in a mount is refused by name.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, Uid};
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, mount, move_mount, open_tree};
use rustix::process::{Pid, WaitOptions};

use super::failed;
use crate::init::{self, Step};
use crate::plan::{Action, Ids, Plan, Rlimit, Root, namespace};
use crate::protocol::Failed;
use crate::sys::{self, Cloned, Errno};

/// The helper's exit code when ids cannot be mapped; error numbers are smaller.
const CANNOT_MAP: i32 = 255;

/// What is done to the child while it waits.
pub(super) struct Mapped {
    ids: Ids,
    layers: usize,
    options: CString,
    limits: Vec<Rlimit>,
    oom_score: CString,
    /// What the child will mount with mapped ids, and where.
    volumes: Vec<(String, OwnedFd)>,
}

/// What the child's mounts show, by their place in the plan; see [`init::Prepared`].
type Trees = Vec<Option<OwnedFd>>;

impl Mapped {
    /// No `Mapped`: the container has no user namespace, and takes what it mounts itself.
    pub(super) fn of(plan: &Plan, layers: usize) -> Result<(Option<Mapped>, Trees), Box<Failed>> {
        let (Some(ids), Root::Overlay { options, .. }) = (&plan.ids, &plan.root) else {
            return Ok((None, plan.setup.iter().map(|_| None).collect()));
        };
        let mut trees = Vec::with_capacity(plan.setup.len());
        let mut volumes = Vec::new();
        for action in &plan.setup {
            let place = || format!("/{}", action.subject().to_string_lossy());
            let told = |error: io::Error| failed(Step::BindSource, place(), &error);
            // The child's view of the host is a copy of which nothing may be taken apart, and parts of it are closed to it.
            let tree = init::take_source(action).map_err(|errno| told(errno.into()))?;
            if let Some(tree) = &tree
                && let Action::Bind { attributes, .. } | Action::Beneath { attributes, .. } = action
                && attributes.maps_ids
            {
                volumes.push((place(), tree.try_clone().map_err(told)?));
            }
            trees.push(tree);
        }
        let mapped = Mapped {
            ids: ids.clone(),
            layers,
            options: options.clone(),
            limits: plan.process.rlimits.clone(),
            oom_score: plan.process.oom_score_adj.clone(),
            volumes,
        };
        Ok((Some(mapped), trees))
    }

    /// Prepares the child, and lets it go on.
    pub(super) fn prepare(&self, pid: u32, dir: &Path, go: &OwnedFd) -> Result<(), Box<Failed>> {
        let told = |step| move |error: io::Error| failed(step, "", &error);
        let write = |name: &str, text: &[u8]| std::fs::write(format!("/proc/{pid}/{name}"), text);
        write("uid_map", self.ids.uid_map.as_bytes()).map_err(told(Step::IdMappings))?;
        write("gid_map", self.ids.gid_map.as_bytes()).map_err(told(Step::IdMappings))?;
        write("oom_score_adj", self.oom_score.to_bytes()).map_err(told(Step::OomScore))?;
        self.limit(pid).map_err(|errno| told(Step::ResourceLimit)(io::Error::from_raw_os_error(errno)))?;
        let users = File::open(format!("/proc/{pid}/ns/user")).map_err(told(Step::IdMappings))?;
        for (place, tree) in &self.volumes {
            let cannot = "this kernel, or the filesystem of what is mounted there, cannot map ids in a mount";
            sys::map_mount(tree.as_fd(), users.as_fd()).map_err(|errno| {
                let error = if is_refusal(errno) { unsupported(cannot) } else { io::Error::from_raw_os_error(errno) };
                failed(Step::MappedMount, place.as_str(), &error)
            })?;
        }
        self.mount_root(pid, &users, dir)?;
        // The byte that it waits for.
        rustix::io::write(go, b"m").map(drop).map_err(|errno| told(Step::IdMappings)(errno.into()))
    }

    fn limit(&self, pid: u32) -> Result<(), Errno> {
        let pid = i32::try_from(pid).map_err(|_| libc::ESRCH)?;
        for limit in &self.limits {
            let (mut soft, mut hard) = (limit.soft, limit.hard);
            if limit.clamp {
                hard = hard.min(sys::hard_limit(limit.resource)?);
                soft = soft.min(hard);
            }
            sys::set_limit_of(pid, limit.resource, soft, hard)?;
        }
        Ok(())
    }

    fn mount_root(&self, pid: u32, users: &File, dir: &Path) -> Result<(), Box<Failed>> {
        let told = |error: io::Error| failed(Step::MappedRoot, "", &error);
        let mounts = File::open(format!("/proc/{pid}/ns/mnt")).map_err(told)?;
        let helper = match sys::clone_process(0, None, false) {
            Ok(Cloned::Child) => sys::exit_now(match self.help(users, &mounts, dir) {
                Ok(()) => 0,
                Err(code) => code,
            }),
            Ok(Cloned::Parent { pid, .. }) => i32::try_from(pid).ok().and_then(Pid::from_raw),
            Err(errno) => return Err(told(io::Error::from_raw_os_error(errno))),
        };
        let ended = loop {
            match rustix::process::waitpid(helper, WaitOptions::empty()) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other.map_err(|errno| told(errno.into()))?,
            }
        };
        match ended.and_then(|(_, status)| status.exit_status()) {
            Some(0) => Ok(()),
            Some(CANNOT_MAP) => Err(told(unsupported(
                "this kernel, or the filesystem of the image's layers, cannot map ids in a mount",
            ))),
            Some(errno) => Err(told(io::Error::from_raw_os_error(errno))),
            None => Err(told(io::Error::other("its helper was killed"))),
        }
    }

    /// The helper's life. Returns its exit code when it fails.
    fn help(&self, users: &File, mounts: &File, dir: &Path) -> Result<(), i32> {
        let code = |errno: rustix::io::Errno| errno.raw_os_error();
        sys::join_namespace(mounts.as_fd(), namespace::MOUNT)?;
        rustix::process::chdir(dir).map_err(code)?;
        // All are opened before any is mounted: an image may have the same layer twice.
        let layers: Vec<String> = (0..self.layers).map(|number| format!("l/{number}")).collect();
        let trees: Vec<OwnedFd> = layers.iter().map(|layer| map_layer(users, layer)).collect::<Result<_, _>>()?;
        for (layer, tree) in layers.iter().zip(&trees) {
            mount_over(layer, tree).map_err(code)?;
        }
        mount(c"overlay", c"rootfs", c"overlay", MountFlags::NODEV, self.options.as_c_str()).map_err(code)
    }
}

/// What filesystems that cannot map ids say.
pub(super) fn is_refusal(errno: Errno) -> bool {
    matches!(errno, libc::EINVAL | libc::EOPNOTSUPP)
}

fn unsupported(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, text)
}

/// A copy of the mount of a directory, with its ids mapped into the user namespace.
fn map_layer(users: &File, layer: &str) -> Result<OwnedFd, i32> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, layer, flags).map_err(rustix::io::Errno::raw_os_error)?;
    match sys::map_mount(tree.as_fd(), users.as_fd()) {
        Ok(()) => Ok(tree),
        Err(errno) if is_refusal(errno) => Err(CANNOT_MAP),
        Err(errno) => Err(errno),
    }
}

fn mount_over(layer: &str, tree: &OwnedFd) -> Result<(), rustix::io::Errno> {
    let place = rustix::fs::open(layer, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, c"", &place, c"", flags)
}

/// Gives pipes to the container's root, who else could not open them again (`/dev/stdout`) nor give them to other users
/// of the container: to a user namespace the host's root is nobody.
pub(super) fn give_pipes(streams: [&OwnedFd; 3], ids: &Ids) -> io::Result<()> {
    let (uid, gid) = ids.root;
    for fd in streams {
        if FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) == FileType::Fifo {
            rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
    }
    Ok(())
}
