//! What a layer's directory looks like, alone and mounted.

use std::fs;
use std::io::{Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use proptest::prelude::*;
use runtime::image::{ImportChanges, Limits};

use crate::archives::{Pack, Tar, TestImage, TestStore, docker_save, pack};
use crate::tree::describe;

/// An overlay mount that goes away with the value.
struct Overlay {
    at: tempfile::TempDir,
}

impl Overlay {
    /// Mounts layers (lowest first) for reading; `None`, with a message, where that is not possible.
    fn mount(layers: &[PathBuf]) -> Option<Overlay> {
        let at = tempfile::tempdir().unwrap();
        // A read-only overlay needs two layers.
        let empty = at.path().join("empty");
        let target = at.path().join("merged");
        fs::create_dir(&empty).unwrap();
        fs::create_dir(&target).unwrap();
        let mut lower: Vec<String> = layers.iter().rev().map(|layer| layer.display().to_string()).collect();
        lower.insert(0, empty.display().to_string());
        let options = format!("lowerdir={}", lower.join(":"));
        match mount(Some("overlay"), &target, Some("overlay"), MsFlags::MS_RDONLY, Some(options.as_str())) {
            Ok(()) => Some(Overlay { at }),
            Err(error) => {
                println!("skipped: overlayfs cannot be mounted here: {error}");
                None
            }
        }
    }

    fn path(&self) -> PathBuf {
        self.at.path().join("merged")
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        umount2(&self.path(), MntFlags::MNT_DETACH).unwrap();
    }
}

/// Loads an image of these layers and returns their directories.
fn layers(store: &TestStore, layers: Vec<Vec<u8>>) -> Vec<PathBuf> {
    store.load(&docker_save(&[TestImage::new("it", layers)], Pack::Plain));
    store.store.resolve("it").unwrap().layers
}

fn files(root: &Path) -> Vec<String> {
    let mut names: Vec<String> = describe(root).into_keys().filter(|name| !name.is_empty()).collect();
    names.sort();
    names
}

#[test]
fn attributes_are_kept() {
    let Some(store) = TestStore::new() else { return };
    let mut setuid = Tar::header(tar::EntryType::Regular, 0o4755, 2);
    setuid.set_uid(1234);
    setuid.set_gid(70_000);
    setuid.set_mtime(1_234_567_890);
    let mut device = Tar::header(tar::EntryType::Char, 0o620, 0);
    device.set_device_major(5).unwrap();
    device.set_device_minor(1).unwrap();
    let mut disk = Tar::header(tar::EntryType::Block, 0o600, 0);
    disk.set_device_major(8).unwrap();
    disk.set_device_minor(300).unwrap();
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    let layer = Tar::new()
        .raw("tmp/", Tar::header(tar::EntryType::Directory, 0o1777, 0), b"")
        .raw("su", setuid, b"su")
        .raw("console", device, b"")
        .raw("disk", disk, b"")
        .raw("pipe", Tar::header(tar::EntryType::Fifo, 0o644, 0), b"")
        .symlink("up", "../../../etc/passwd")
        .hardlink("su2", "/su")
        .pax(&[
            ("mtime", b"1000000000.25"),
            ("SCHILY.xattr.user.note", b"with\nnewline\0and zero"),
            ("SCHILY.xattr.security.capability", &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("path", long.as_bytes()),
            ("uid", b"3000000"),
        ])
        .file("short", b"content")
        .bytes();
    let layer = &layers(&store, vec![layer])[0];
    let stat = |name: &str| fs::symlink_metadata(layer.join(name)).unwrap();

    assert_eq!(stat("tmp").permissions().mode() & 0o7777, 0o1777);
    let su = stat("su");
    assert_eq!((su.mode() & 0o7777, su.uid(), su.gid(), su.mtime()), (0o4755, 1234, 70_000, 1_234_567_890));
    assert_eq!(stat("su2").ino(), su.ino());
    assert!(stat("console").file_type().is_char_device());
    assert_eq!(stat("console").rdev(), nix::sys::stat::makedev(5, 1));
    assert_eq!(stat("console").mode() & 0o7777, 0o620);
    assert!(stat("disk").file_type().is_block_device());
    assert_eq!(stat("disk").rdev(), nix::sys::stat::makedev(8, 300));
    assert!(stat("pipe").file_type().is_fifo());
    assert_eq!(fs::read_link(layer.join("up")).unwrap(), Path::new("../../../etc/passwd"));
    let file = stat(&long);
    assert_eq!((file.uid(), file.mtime(), file.mtime_nsec()), (3_000_000, 1_000_000_000, 250_000_000));
    let tree = describe(layer);
    assert!(tree[&long].contains("user.note"), "{}", tree[&long]);
    assert!(tree[&long].contains("security.capability"), "{}", tree[&long]);
    assert!(!tree[&long].contains("trusted.overlay"), "{}", tree[&long]);
    assert_eq!(stat("").permissions().mode() & 0o7777, 0o755);
}

/// Bytes with holes in front, between and behind them: more pieces than one header of GNU's has room for.
fn with_holes() -> Vec<u8> {
    let mut bytes = vec![0; 4 << 20];
    for piece in 0..60 {
        let at = (piece + 1) * (64 << 10);
        bytes[at..at + 700].fill(u8::try_from(piece + 1).unwrap());
    }
    bytes
}

#[test]
fn sparse_files_keep_their_holes() {
    let Some(store) = TestStore::new() else { return };
    let from = tempfile::tempdir().unwrap();
    let long = "n".repeat(150);
    // Tar looks for holes only where a file takes less room than it has bytes.
    let mut file = fs::File::create(from.path().join(&long)).unwrap();
    for block in with_holes().chunks(4096) {
        match block.iter().all(|byte| *byte == 0) {
            true => file.seek_relative(4096).unwrap(),
            false => file.write_all(block).unwrap(),
        }
    }
    file.set_len(4 << 20).unwrap();
    fs::File::create(from.path().join("hole")).unwrap().set_len(8 << 20).unwrap();
    fs::write(from.path().join("after"), "after").unwrap();
    for format in [
        &["--format=gnu"][..],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ] {
        let mut tar = std::process::Command::new("tar");
        tar.args(["-c", "--sparse", "--hole-detection=raw", "-C"]).arg(from.path()).args(format);
        let Ok(archive) = tar.args([&long, "hole", "after"]).output() else {
            println!("skipped: there is no tar here");
            return;
        };
        assert!(archive.status.success(), "{}", String::from_utf8_lossy(&archive.stderr));
        assert!(archive.stdout.len() < 1 << 20, "{format:?}: not sparse");
        let layer = &layers(&store, vec![archive.stdout])[0];
        let there = fs::read(layer.join(&long)).unwrap();
        let differs = there.iter().zip(with_holes()).position(|(there, meant)| *there != meant);
        assert_eq!((there.len(), differs), (4 << 20, None), "{format:?}");
        let stat = |name: &str| fs::metadata(layer.join(name)).unwrap();
        assert!(stat(&long).blocks() * 512 < 1 << 20, "{format:?}: its holes were filled");
        assert_eq!((stat("hole").len(), stat("hole").blocks()), (8 << 20, 0), "{format:?}");
        assert_eq!(fs::read(layer.join("after")).unwrap(), b"after", "{format:?}");
    }
}

#[test]
fn whiteouts_hide_what_is_below() {
    let Some(store) = TestStore::new() else { return };
    let base = Tar::new()
        .file("gone", b"1")
        .dir("whole/")
        .file("whole/a", b"1")
        .dir("opaque/")
        .file("opaque/old", b"1")
        .dir("replaced/")
        .file("replaced/old", b"1")
        .dir("kept/")
        .file("kept/old", b"1")
        .file("remade", b"1")
        .bytes();
    let top = Tar::new()
        .file(".wh.gone", b"")
        .file(".wh.whole", b"")
        .dir("opaque/")
        .file("opaque/new", b"2")
        .file("opaque/.wh..wh..opq", b"")
        // Removed and made again in one layer, in both orders.
        .file(".wh.replaced", b"")
        .dir("replaced/")
        .file("replaced/new", b"2")
        .dir("remade/")
        .file("remade/new", b"2")
        .file(".wh.remade", b"")
        .file("kept/new", b"2")
        // Nothing to hide: no device must show up in a listing.
        .dir("own/")
        .file("own/.wh.never-there", b"")
        .file(".wh..wh.plnk/1.2", b"")
        .bytes();
    let layers = layers(&store, vec![base, top]);
    let Some(overlay) = Overlay::mount(&layers) else { return };
    assert_eq!(
        files(&overlay.path()),
        [
            "kept",
            "kept/new",
            "kept/old",
            "opaque",
            "opaque/new",
            "own",
            "remade",
            "remade/new",
            "replaced",
            "replaced/new",
        ]
    );
}

#[test]
fn an_opaque_root_hides_all_layers_below() {
    let Some(store) = TestStore::new() else { return };
    let base = Tar::new().file("old", b"1").bytes();
    let middle = Tar::new().file("new", b"2").file(".wh..wh..opq", b"").bytes();
    let top = Tar::new().file("newer", b"3").bytes();
    let layers = layers(&store, vec![base, middle, top]);
    assert_eq!(layers.len(), 2);
    let Some(overlay) = Overlay::mount(&layers) else { return };
    assert_eq!(files(&overlay.path()), ["new", "newer"]);
}

/// A layer that changes a file without naming its directory must not change the directory.
#[test]
fn directories_that_are_not_named_look_like_those_below() {
    let Some(store) = TestStore::new() else { return };
    let mut sticky = Tar::header(tar::EntryType::Directory, 0o1777, 0);
    sticky.set_uid(7);
    let base = Tar::new().raw("tmp/", sticky, b"").bytes();
    let top = Tar::new().file("tmp/x", b"1").file("fresh/x", b"1").bytes();
    let layers = layers(&store, vec![base, top]);
    let stat = fs::metadata(layers[1].join("tmp")).unwrap();
    assert_eq!((stat.mode() & 0o7777, stat.uid(), stat.mtime()), (0o1777, 7, 1_000_000_000));
    assert_eq!(fs::metadata(layers[1].join("fresh")).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn later_entries_replace_earlier_ones() {
    let Some(store) = TestStore::new() else { return };
    let layer = Tar::new()
        .dir("a/")
        .file("a/deep", b"1")
        .file("a", b"now a file")
        .file("b", b"1")
        .dir("b/")
        .file("b/x", b"1")
        .symlink("c", "b")
        .file("c", b"not through the link")
        .dir("d/")
        .dir("d/")
        .file("e", b"1")
        .hardlink("e", "e")
        .bytes();
    let layer = &layers(&store, vec![layer])[0];
    assert_eq!(files(layer), ["a", "b", "b/x", "c", "d", "e"]);
    assert_eq!(fs::read(layer.join("c")).unwrap(), b"not through the link");
    assert_eq!(fs::read(layer.join("e")).unwrap(), b"1");
}

/// Links are followed as inside of the container: an absolute one means the layer's root.
#[test]
fn links_to_directories_are_followed_inside() {
    let Some(store) = TestStore::new() else { return };
    let layer = Tar::new()
        .dir("usr/")
        .dir("usr/lib/")
        .symlink("lib", "usr/lib")
        .symlink("var", "/usr")
        .symlink("usr/back", "../usr/lib")
        .symlink("late", "/made/later")
        .file("lib/one", b"1")
        .file("var/lib/two", b"2")
        .file("usr/back/three", b"3")
        .file("late/four", b"4")
        .hardlink("five", "var/lib/two")
        .bytes();
    let layer = &layers(&store, vec![layer])[0];
    assert_eq!(
        files(layer),
        [
            "five",
            "late",
            "lib",
            "made",
            "made/later",
            "made/later/four",
            "usr",
            "usr/back",
            "usr/lib",
            "usr/lib/one",
            "usr/lib/three",
            "usr/lib/two",
            "var",
        ]
    );
}

/// One thing in a generated tree.
#[derive(Debug, Clone)]
enum Node {
    File { content: Vec<u8>, mode: u32, owner: u32 },
    Dir { mode: u32 },
    Link { target: String },
    Hard { nth: usize },
    Fifo,
}

fn node() -> impl Strategy<Value = Node> {
    prop_oneof![
        3 => (prop::collection::vec(any::<u8>(), 0..2000), 0_u32..0o10000, 0_u32..100_000)
            .prop_map(|(content, mode, owner)| Node::File { content, mode, owner }),
        3 => (0_u32..0o10000).prop_map(|mode| Node::Dir { mode }),
        1 => "[a-z/.]{1,20}".prop_map(|target| Node::Link { target }),
        1 => any::<usize>().prop_map(|nth| Node::Hard { nth }),
        1 => Just(Node::Fifo),
    ]
}

/// Makes a tree on disk: each node in one of the directories that are there already.
fn grow(root: &Path, nodes: &[(usize, String, Node)]) {
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
    let mut dirs = vec![root.to_owned()];
    let mut files: Vec<PathBuf> = Vec::new();
    for (at, name, node) in nodes {
        let path = dirs[at % dirs.len()].join(name);
        if path.symlink_metadata().is_ok() {
            continue;
        }
        match node {
            Node::File { content, mode, owner } => {
                fs::write(&path, content).unwrap();
                std::os::unix::fs::chown(&path, Some(*owner), Some(owner / 2)).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
                files.push(path);
            }
            Node::Dir { mode } => {
                fs::create_dir(&path).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
                dirs.push(path);
            }
            Node::Link { target } => std::os::unix::fs::symlink(target, &path).unwrap(),
            Node::Hard { nth } if files.is_empty() => {
                let _ = nth;
            }
            Node::Hard { nth } => fs::hard_link(&files[nth % files.len()], &path).unwrap(),
            Node::Fifo => {
                nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o640)).unwrap();
            }
        }
    }
}

/// Packs a tree with the `tar` crate's plain calls, hard links by hand, times in full.
fn pack_tree(root: &Path) -> Vec<u8> {
    fn walk(root: &Path, at: &Path, out: &mut Vec<PathBuf>) {
        out.push(at.strip_prefix(root).unwrap().to_owned());
        if at.symlink_metadata().unwrap().is_dir() {
            let mut children: Vec<_> = fs::read_dir(at).unwrap().map(|entry| entry.unwrap().path()).collect();
            children.sort();
            for child in children {
                walk(root, &child, out);
            }
        }
    }
    let mut paths = Vec::new();
    walk(root, root, &mut paths);
    let mut tar = tar::Builder::new(Vec::new());
    let mut seen = std::collections::BTreeMap::new();
    for path in paths {
        let full = root.join(&path);
        let stat = full.symlink_metadata().unwrap();
        let name = if path.as_os_str().is_empty() { PathBuf::from("./") } else { path };
        let time = format!("{}.{:09}", stat.mtime(), stat.mtime_nsec());
        tar.append_pax_extensions([("mtime", time.as_bytes())]).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_metadata(&stat);
        header.set_size(0);
        if !stat.is_dir()
            && let Some(first) = seen.get(&stat.ino())
        {
            header.set_entry_type(tar::EntryType::Link);
            tar.append_link(&mut header, &name, first).unwrap();
            continue;
        }
        seen.insert(stat.ino(), name.clone());
        if stat.is_symlink() {
            // The crate's own call tidies the target up.
            let target = fs::read_link(&full).unwrap();
            header.set_link_name_literal(target.as_os_str().as_bytes()).unwrap();
            tar.append_data(&mut header, &name, std::io::empty()).unwrap();
        } else if stat.is_file() {
            header.set_size(stat.len());
            tar.append_data(&mut header, &name, fs::File::open(&full).unwrap()).unwrap();
        } else {
            tar.append_data(&mut header, &name, std::io::empty()).unwrap();
        }
    }
    tar.into_inner().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever tree is packed is the tree that is unpacked.
    #[test]
    fn a_tree_survives(nodes in prop::collection::vec((any::<usize>(), "[a-zA-Z0-9 _-]{1,60}", node()), 0..40)) {
        let Some(store) = TestStore::new() else { return Ok(()) };
        let source = tempfile::tempdir().unwrap();
        grow(source.path(), &nodes);
        let archive = pack(&pack_tree(source.path()), Pack::Gzip);
        let id = store.store.import(&archive[..], None, ImportChanges::default(), "").unwrap();
        let image = store.store.resolve(&id.to_string()).unwrap();
        let (packed, unpacked) = (describe(source.path()), describe(&image.layers[0]));
        prop_assert_eq!(packed, unpacked);
    }

    /// Damage is an error or is harmless, never a panic and never anything left over.
    #[test]
    fn damage_is_no_panic(at in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), gzip in any::<bool>()) {
        let Some(store) = TestStore::with_limits(Limits { max_unpacked_bytes: 1 << 20, ..Limits::default() }) else { return Ok(()) };
        let layer = Tar::new().dir("a/").file("a/b", b"text").symlink("c", "a").hardlink("d", "a/b").file(".wh.e", b"").bytes();
        let form = if gzip { Pack::Gzip } else { Pack::Zstd };
        let mut archive = docker_save(&[TestImage::new("it", vec![layer])], form);
        for (index, byte) in at {
            let index = index.index(archive.len());
            archive[index] = byte;
        }
        let before = describe(&store.root());
        if store.store.load(&archive[..]).is_err() {
            prop_assert_eq!(strip_times(describe(&store.root())), strip_times(before));
        }
    }
}

/// Without the times, which `tmp/` changes by being used.
fn strip_times(tree: std::collections::BTreeMap<String, String>) -> std::collections::BTreeMap<String, String> {
    tree.into_iter()
        .map(|(name, text)| {
            let text = text.split(" at ").next().unwrap().to_owned();
            (name, text)
        })
        .collect()
}

/// A directory that was named through a link keeps its time, whatever takes the link's place; and what takes the place of
/// a directory does not get the directory's time.
#[test]
fn times_are_of_the_directory_that_was_named() {
    let Some(store) = TestStore::new() else { return };
    let layer = Tar::new()
        .dir("real/")
        .symlink("link", "real")
        .dir("link/below/")
        .file("link/.wh.gone", b"")
        .file("link", b"now a file")
        .dir("old/")
        .dir("other/")
        .symlink("old", "real")
        .bytes();
    store.load(&docker_save(&[TestImage::new("times", vec![layer])], Pack::Plain));
    let layer = store.store.resolve("times").unwrap().layers[0].clone();
    let seconds = |name: &str| std::os::unix::fs::MetadataExt::mtime(&fs::symlink_metadata(layer.join(name)).unwrap());
    for name in ["real", "real/below", "other"] {
        assert_eq!(seconds(name), 1_000_000_000, "{name}");
    }
    // There is nothing below that it could hide.
    assert!(fs::symlink_metadata(layer.join("real/gone")).is_err());
}
