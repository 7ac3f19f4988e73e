//! How much room a directory takes. A container may be at work in it, so no link is followed and nothing is trusted.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, openat2, statat};
use rustix::io::Errno;

/// Directories deeper than this are not counted: the kernel takes no longer path.
const PATH_MAX: usize = 4096;

/// The sizes of all files below `dir` together, in bytes, each counted once however many names it has. What cannot be
/// read, or goes away meanwhile, counts nothing.
pub(crate) fn size(dir: &Path) -> u64 {
    let Ok(root) = File::open(dir) else { return 0 };
    let (mut bytes, mut seen, mut open) = (0_u64, BTreeSet::new(), vec![b".".to_vec()]);
    while let Some(path) = open.pop() {
        let Ok(dir) = beneath(root.as_fd(), &path) else { continue };
        let Ok(entries) = Dir::read_from(&dir) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let inner = [&path, b"/".as_slice(), name.to_bytes()].concat();
            if inner.len() >= PATH_MAX {
                continue;
            }
            let Ok(stat) = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                open.push(inner);
            } else if stat.st_nlink < 2 || seen.insert((stat.st_dev, stat.st_ino)) {
                bytes = bytes.saturating_add(u64::try_from(stat.st_size).unwrap_or_default());
            }
        }
    }
    bytes
}

fn beneath(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(root, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn each_file_counts_once_and_no_link_leads_out() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(other.path().join("large"), [0; 100_000]).unwrap();
        let deep = dir.path().join("a/b");
        fs::create_dir_all(&deep).unwrap();
        fs::write(dir.path().join("one"), [0; 1000]).unwrap();
        fs::write(deep.join("two"), [0; 200]).unwrap();
        fs::hard_link(deep.join("two"), dir.path().join("again")).unwrap();
        symlink(other.path(), dir.path().join("out")).unwrap();
        let link = u64::try_from(other.path().as_os_str().len()).unwrap();
        assert_eq!(size(dir.path()), 1200 + link);
        assert_eq!(size(&dir.path().join("nowhere")), 0);
    }
}
