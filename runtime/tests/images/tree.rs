//! Writes a directory tree down, to compare two.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Everything that matters of each file below `root`, by path. Hard links are told by the first
/// path of the same inode.
pub(crate) fn describe(root: &Path) -> BTreeMap<String, String> {
    let mut seen = BTreeMap::new();
    let mut tree = BTreeMap::new();
    // Hostile layers are deeper than a stack.
    let mut todo = vec![root.to_owned()];
    while let Some(at) = todo.pop() {
        let mut below = visit(root, &at, &mut seen, &mut tree);
        below.sort();
        todo.extend(below.into_iter().rev());
    }
    tree
}

/// Writes one file down; what is in it, where it is a directory.
fn visit(
    root: &Path,
    at: &Path,
    seen: &mut BTreeMap<u64, String>,
    tree: &mut BTreeMap<String, String>,
) -> Vec<PathBuf> {
    let name = at.strip_prefix(root).unwrap().display().to_string();
    let stat = std::fs::symlink_metadata(at).unwrap();
    let kind = stat.file_type();
    let mut text = format!("{:o} {}:{}", stat.mode(), stat.uid(), stat.gid());
    if kind.is_file() {
        let content = std::fs::read(at).unwrap();
        text += &format!(" {} bytes {}", content.len(), runtime::image::Digest::of(&content));
    } else if kind.is_symlink() {
        text += &format!(" -> {}", std::fs::read_link(at).unwrap().display());
    } else if kind.is_char_device() || kind.is_block_device() {
        text += &format!(" device {:x}", stat.rdev());
    }
    text += &format!(" at {}.{:09}", stat.mtime(), stat.mtime_nsec());
    for key in xattrs(at) {
        let mut value = [0_u8; 4096];
        // A file system in memory lists some names that it does not read.
        let length = rustix::fs::lgetxattr(at, key.as_str(), &mut value[..]);
        text += &format!(" {key}={:?}", length.map(|length| String::from_utf8_lossy(&value[..length])));
    }
    if !kind.is_dir() {
        let first = seen.entry(stat.ino()).or_insert_with(|| name.clone());
        text += &format!(" = {first}");
    }
    tree.insert(name, text);
    if !kind.is_dir() {
        return Vec::new();
    }
    std::fs::read_dir(at).unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn xattrs(path: &Path) -> Vec<String> {
    let mut list = vec![0_u8; 4096];
    let length = rustix::fs::llistxattr(path, &mut list[..]).unwrap();
    let mut keys: Vec<String> = list[..length]
        .split(|byte| *byte == 0)
        .filter(|key| !key.is_empty())
        .map(|key| String::from_utf8_lossy(key).into_owned())
        .collect();
    keys.sort();
    keys
}
