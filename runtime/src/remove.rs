//! Removes directory trees, however deep they are.
//!
//! Containers and images make trees that nobody else would: `mkdir a; cd a` can be repeated as long as the disk has
//! inodes. The standard library holds a descriptor and a stack frame for each level, so such a tree would stay for ever,
//! or end the daemon that tries to remove it.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;

/// Levels that are open at the same time, a descriptor and a buffer each. What is deeper is first moved up.
const MAX_OPEN: usize = 64;

/// A directory that is being emptied.
struct Level {
    dir: OwnedFd,
    entries: Dir,
    name: CString,
}

/// Removes a directory with all that is in it; links are removed and not followed. Nobody else may change the tree.
///
/// # Errors
/// `NotFound` where nothing is, `NotADirectory` where something else is, and what the file system says; then some of the
/// tree may be gone.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    let top = open(CWD, path)?;
    let mut moved = 0;
    loop {
        let before = moved;
        empty(&top, &mut moved)?;
        // What was moved up may have come behind the place that was being read.
        if moved == before {
            break;
        }
    }
    Ok(unlinkat(CWD, path, AtFlags::REMOVEDIR)?)
}

fn open(dir: impl AsFd, name: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    openat(dir, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn level(dir: OwnedFd, name: CString) -> Result<Level, Errno> {
    Ok(Level { entries: Dir::read_from(&dir)?, dir, name })
}

/// Empties a directory, but for what was too deep: that lies in `top` then, under names that are counted by `moved`.
fn empty(top: &OwnedFd, moved: &mut u64) -> Result<(), Errno> {
    let mut levels = vec![level(open(top, c".")?, c".".into())?];
    loop {
        let full = levels.len() >= MAX_OPEN;
        let Some(last) = levels.last_mut() else { return Ok(()) };
        let Some(entry) = last.entries.read().transpose()? else {
            let done = levels.pop();
            if let (Some(done), Some(parent)) = (done, levels.last()) {
                gone(unlinkat(&parent.dir, &done.name, AtFlags::REMOVEDIR))?;
            }
            continue;
        };
        let name = entry.file_name();
        if name == c"." || name == c".." || removed(&last.dir, name, entry.file_type())? {
            continue;
        }
        if full {
            move_up(&last.dir, name, top, moved)?;
            continue;
        }
        let (dir, name) = (open(&last.dir, name)?, name.to_owned());
        levels.push(level(dir, name)?);
    }
}

fn gone(outcome: Result<(), Errno>) -> Result<(), Errno> {
    match outcome {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Removes whatever is not a directory with something in it; false where it is one.
fn removed(dir: &OwnedFd, name: &std::ffi::CStr, kind: FileType) -> Result<bool, Errno> {
    if kind != FileType::Directory {
        match gone(unlinkat(dir, name, AtFlags::empty())) {
            // Not every file system tells what its entries are.
            Err(Errno::ISDIR) => {}
            Err(Errno::PERM) if kind == FileType::Unknown => {}
            other => return other.map(|()| true),
        }
    }
    match gone(unlinkat(dir, name, AtFlags::REMOVEDIR)) {
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        other => other.map(|()| true),
    }
}

/// Gives a directory a new name at the top.
fn move_up(from: &OwnedFd, name: &std::ffi::CStr, top: &OwnedFd, moved: &mut u64) -> Result<(), Errno> {
    loop {
        *moved += 1;
        match renameat(from, name, top, format!(".moved-{moved}")) {
            // Somebody has thought of such a name.
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
            other => return other,
        }
    }
}

/// A directory for a while, which goes with all that came into it, however deep that is.
#[derive(Debug)]
pub(crate) struct Scratch(tempfile::TempDir);

impl Scratch {
    /// A new directory in `parent`, called by this prefix and what makes it unique.
    pub(crate) fn new(parent: &Path, prefix: &str) -> io::Result<Scratch> {
        tempfile::Builder::new().prefix(prefix).tempdir_in(parent).map(Scratch)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Removes it now.
    pub(crate) fn close(self) -> io::Result<()> {
        remove_tree(self.path())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Whoever wants to know calls `close`; the rest is removed at the next start.
        let _ = remove_tree(self.path());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A chain of directories that no path leads through.
    fn chain(at: &Path, levels: usize) {
        let mut dir = open(CWD, at).unwrap();
        for _ in 0..levels {
            rustix::fs::mkdirat(&dir, c"d", Mode::RWXU).unwrap();
            dir = open(&dir, c"d").unwrap();
        }
        rustix::fs::symlinkat("/", &dir, c"link").unwrap();
    }

    /// In memory, where there is such a place: a disk that others use takes a minute for this.
    fn scratch() -> tempfile::TempDir {
        tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
    }

    #[test]
    fn trees_of_any_shape_go() {
        let dir = scratch();
        let (outside, top) = (dir.path().join("outside"), dir.path().join("top"));
        std::fs::create_dir_all(outside.join("kept")).unwrap();
        for depth in [0, 1, MAX_OPEN - 2, MAX_OPEN - 1, MAX_OPEN, 3 * MAX_OPEN + 5, 20_000] {
            std::fs::create_dir_all(top.join("a/b")).unwrap();
            // Names that moving up would give.
            for (nth, sub) in ["", "/full", "/full"].into_iter().enumerate() {
                std::fs::create_dir_all(top.join(format!(".moved-{}{sub}", nth + 1))).unwrap();
            }
            std::fs::write(top.join(".moved-4"), "a file").unwrap();
            std::os::unix::fs::symlink(&outside, top.join("link")).unwrap();
            std::fs::create_dir(top.join("deep")).unwrap();
            chain(&top.join("deep"), depth);
            chain(&top.join("a/b"), depth / 2);
            remove_tree(&top).unwrap();
            assert!(!top.exists(), "{depth} levels");
        }
        assert!(outside.join("kept").is_dir());
        assert_eq!(remove_tree(&top).unwrap_err().kind(), io::ErrorKind::NotFound);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&outside, &link).unwrap();
        assert!(remove_tree(&link).is_err());
        assert!(outside.join("kept").is_dir());
    }

    #[test]
    fn scratch_directories_go_too() {
        let dir = scratch();
        let scratch = Scratch::new(dir.path(), "x-").unwrap();
        chain(scratch.path(), 3000);
        drop(scratch);
        let scratch = Scratch::new(dir.path(), "x-").unwrap();
        chain(scratch.path(), 3000);
        scratch.close().unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
