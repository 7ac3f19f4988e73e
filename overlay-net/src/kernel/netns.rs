//! Network namespaces: made, pinned as files, visited.
//!
//! No thread that lives on ever changes its namespace. `visit` starts a thread, moves it, runs a closure there and
//! lets it die, which costs some tens of microseconds and cannot leak a namespace into a runtime's worker.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::fstatfs;

/// `NSFS_MAGIC` of linux/magic.h: the file system of namespace files.
const NSFS: i64 = 0x6e73_6673;

/// An open network namespace. It lives at least as long as this value.
#[derive(Debug)]
pub struct NetNs {
    fd: OwnedFd,
}

impl NetNs {
    /// Makes a namespace and pins it as a file at `path`, which must not exist; its directory must.
    ///
    /// # Errors
    /// When the file exists, or the caller may not make or mount namespaces. Nothing is left behind then.
    pub fn create(path: &Path) -> io::Result<NetNs> {
        OpenOptions::new().write(true).create_new(true).open(path)?;
        let made = on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            mount(Some("/proc/thread-self/ns/net"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            File::open(path)
        });
        match made {
            Ok(file) => Ok(NetNs { fd: file.into() }),
            Err(error) => {
                std::fs::remove_file(path).ok();
                Err(error)
            }
        }
    }

    /// Makes a namespace that nothing pins: it is gone when the last holder is.
    ///
    /// # Errors
    /// When the caller may not make namespaces.
    pub fn anonymous() -> io::Result<NetNs> {
        on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Ok(NetNs { fd: File::open("/proc/thread-self/ns/net")?.into() })
        })
    }

    /// Opens the namespace that is pinned at `path`.
    ///
    /// # Errors
    /// `NotFound` when there is no file, `InvalidData` when the file is not a pinned namespace (a crash between
    /// making the file and mounting on it leaves such a one).
    pub fn open(path: &Path) -> io::Result<NetNs> {
        NetNs::from_fd(File::open(path)?.into())
    }

    /// Takes over a namespace's file descriptor.
    ///
    /// # Errors
    /// `InvalidData` when it is not one of a namespace.
    pub fn from_fd(fd: OwnedFd) -> io::Result<NetNs> {
        if fstatfs(&fd)?.filesystem_type().0 != NSFS {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a namespace file"));
        }
        Ok(NetNs { fd })
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn current() -> io::Result<NetNs> {
        Ok(NetNs { fd: File::open("/proc/thread-self/ns/net")?.into() })
    }

    /// Removes the pin at `path`. The namespace itself ends with its last user. A missing file is fine.
    ///
    /// # Errors
    /// When the file cannot be unmounted or removed.
    pub fn delete(path: &Path) -> io::Result<()> {
        match umount2(path, MntFlags::MNT_DETACH) {
            // EINVAL: a file that nothing is mounted on.
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The namespace's file descriptor.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// A second handle on the same namespace.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub fn try_clone(&self) -> io::Result<NetNs> {
        Ok(NetNs { fd: self.fd.try_clone()? })
    }

    /// Runs a closure on a thread of its own inside the namespace, and waits for it.
    ///
    /// # Errors
    /// When the namespace cannot be entered, and what the closure returns.
    ///
    /// # Panics
    /// When the closure does.
    pub fn visit<T: Send>(&self, body: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        let fd = self.fd.as_fd();
        on_thread(|| {
            setns(fd, CloneFlags::CLONE_NEWNET)?;
            body()
        })
    }

    /// Sets a value below `/proc/sys/net` of the namespace, for example `ipv4/ip_forward`. One that is right already
    /// is not written, so that this works where `/proc/sys` is read-only and was prepared.
    ///
    /// # Errors
    /// When the kernel has no such value, or refuses it.
    pub fn set_sysctl(&self, name: &str, value: &str) -> io::Result<()> {
        let set = || {
            let path = format!("/proc/sys/net/{name}");
            if std::fs::read_to_string(&path)?.trim() == value { Ok(()) } else { std::fs::write(&path, value) }
        };
        self.visit(set).map_err(|error| io::Error::new(error.kind(), format!("net/{name}={value}: {error}")))
    }
}

/// Moves the calling thread into the namespace that is pinned at `path`, for good.
///
/// For a process that has just started and has one thread: a thread that exists already stays where it is.
///
/// # Errors
/// As [`NetNs::open`], or when the caller may not enter it.
pub fn enter(path: &Path) -> io::Result<()> {
    Ok(setns(NetNs::open(path)?.fd(), CloneFlags::CLONE_NEWNET)?)
}

fn on_thread<T: Send>(body: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns-visit".into()).spawn_scoped(scope, body)?;
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
