//! What is mounted where, as `/proc/self/mountinfo` tells it.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mounted {
    /// Where.
    pub(super) point: PathBuf,
    /// It passes mounts on, and gets them.
    pub(super) shared: bool,
    /// It gets mounts from another one.
    pub(super) slave: bool,
}

/// All mounts of this process's namespace, in the order in which they were made.
pub(super) fn all() -> io::Result<Vec<Mounted>> {
    // Not as text: a mount point may be any bytes.
    Ok(parse(&fs::read("/proc/self/mountinfo")?))
}

/// Whether something is mounted at that very place (an absolute path without links).
pub(super) fn at(point: &Path) -> io::Result<bool> {
    Ok(all()?.iter().any(|mount| mount.point == point))
}

/// The mount that a path is on: of those that contain it, the deepest, and of those at one place the newest.
pub(super) fn holding<'a>(mounts: &'a [Mounted], path: &Path) -> Option<&'a Mounted> {
    mounts.iter().filter(|mount| path.starts_with(&mount.point)).max_by_key(|mount| mount.point.components().count())
}

/// See `proc_pid_mountinfo(5)`: id, parent, device, root, mount point, options, optional fields, ` - `, ...
fn parse(text: &[u8]) -> Vec<Mounted> {
    let one = |line: &[u8]| {
        let mut words = line.split(|byte| *byte == b' ');
        let point = PathBuf::from(std::ffi::OsString::from_vec(unescape(words.nth(4)?)));
        let optional: Vec<&[u8]> = words.skip(1).take_while(|word| *word != b"-").collect();
        let has = |tag: &[u8]| optional.iter().any(|word| word.starts_with(tag));
        Some(Mounted { point, shared: has(b"shared:"), slave: has(b"master:") })
    };
    text.split(|byte| *byte == b'\n').filter_map(one).collect()
}

/// The kernel writes blanks and backslashes as three octal digits.
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.filter(|_| *first == b'\\').and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw\n\
        30 22 0:5 / /srv rw - tmpfs tmpfs rw\n\
        31 22 0:6 /x /srv/a\\040b\\134c rw master:1 - tmpfs tmpfs rw\n\
        33 30 0:7 / /srv rw shared:3 master:1 - tmpfs tmpfs rw\nbad\n";

    #[track_caller]
    fn check(path: &str, expected: (&str, bool, bool)) {
        let mounts = parse(TEXT);
        let found = holding(&mounts, Path::new(path)).unwrap();
        assert_eq!((found.point.to_str().unwrap(), found.shared, found.slave), expected, "{path}");
    }

    #[test]
    fn the_deepest_and_newest_mount_holds_a_path() {
        check("/etc", ("/", true, false));
        check("/srvx", ("/", true, false));
        check("/srv/other", ("/srv", true, true));
        check("/srv/a b\\c/d", ("/srv/a b\\c", false, true));
        assert_eq!(parse(TEXT).len(), 4);
    }
}
