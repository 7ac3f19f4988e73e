//! Files in and out of containers, also of those that try to mislead; and what they changed of their image.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use runtime::{
    ChangeKind, ContainerConfig, CopyError, ExecConfig, IdMappings, IdRange, Mount, MountKind, PathStat, PutOptions,
    VolumeMount,
};
use tar::{EntryType, Header};

use super::fixture::{Fixture, chain, image, until};

pub const TESTS: &[(&str, fn())] = &[
    ("copies::out_of_all_that_it_sees", out_of_all_that_it_sees),
    ("copies::names_are_dockers", names_are_dockers),
    ("copies::into_a_container_that_runs", into_a_container_that_runs),
    ("copies::when_it_has_ended", when_it_has_ended),
    ("copies::what_is_read_only_stays", what_is_read_only_stays),
    ("copies::hostile_archives", hostile_archives),
    ("copies::directories_swapped_under_the_hand", directories_swapped_under_the_hand),
    ("copies::files_keep_all_that_they_are", files_keep_all_that_they_are),
    ("copies::owners_are_the_containers", owners_are_the_containers),
    ("copies::exports_and_changes", exports_and_changes),
    ("copies::large_ones_need_no_memory", large_ones_need_no_memory),
    ("copies::readers_and_writers_that_go_away", readers_and_writers_that_go_away),
];

/// An entry of an archive that came out: kind, mode, owner, link, content.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    kind: EntryType,
    mode: u32,
    owner: (u64, u64),
    link: String,
    content: Vec<u8>,
}

fn entries(bytes: &[u8]) -> BTreeMap<String, Entry> {
    let mut archive = tar::Archive::new(bytes);
    let read = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let link = entry.link_name_bytes().map(|link| String::from_utf8_lossy(&link).into_owned());
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        let header = entry.header();
        let owner = (header.uid().unwrap(), header.gid().unwrap());
        let (kind, mode) = (header.entry_type(), header.mode().unwrap());
        (name, Entry { kind, mode, owner, link: link.unwrap_or_default(), content })
    });
    read.collect()
}

fn get(fixture: &Fixture, id: &str, path: &str) -> Result<(PathStat, BTreeMap<String, Entry>), CopyError> {
    let runtime = fixture.runtime();
    fixture.tokio.block_on(async {
        let (stat, mut pieces) = runtime.get_archive(id, path).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.recv().await {
            bytes.extend_from_slice(&piece.unwrap());
        }
        Ok((stat, entries(&bytes)))
    })
}

/// The content of one file that is got by its path.
#[track_caller]
fn content(fixture: &Fixture, id: &str, path: &str) -> String {
    let (_, entries) = get(fixture, id, path).unwrap_or_else(|error| panic!("{path}: {}", chain(&error)));
    assert_eq!(entries.len(), 1, "{entries:?}");
    String::from_utf8_lossy(&entries.into_values().next().unwrap().content).into_owned()
}

fn stat(fixture: &Fixture, id: &str, path: &str) -> Result<PathStat, CopyError> {
    fixture.tokio.block_on(fixture.runtime().stat_path(id, path))
}

fn put(fixture: &Fixture, id: &str, path: &str, mut archive: &[u8], options: PutOptions) -> Result<(), CopyError> {
    fixture.runtime().put_archive(id, path, &mut archive, options)
}

/// An archive of these entries, whose names are not looked at.
#[derive(Default)]
struct Maker(Vec<u8>);

impl Maker {
    fn add(mut self, kind: EntryType, name: &str, link: &str, content: &[u8], owner: (u64, u64), mode: u32) -> Maker {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_size(content.len() as u64);
        header.set_mode(mode);
        header.set_uid(owner.0);
        header.set_gid(owner.1);
        header.set_mtime(1_000_000_007);
        if matches!(kind, EntryType::Char | EntryType::Block) {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, content: &str) -> Maker {
        self.add(EntryType::Regular, name, "", content.as_bytes(), (0, 0), 0o644)
    }

    fn dir(self, name: &str) -> Maker {
        self.add(EntryType::Directory, name, "", b"", (0, 0), 0o755)
    }

    fn link(self, name: &str, target: &str) -> Maker {
        self.add(EntryType::Symlink, name, target, b"", (0, 0), 0o777)
    }

    fn hard(self, name: &str, target: &str) -> Maker {
        self.add(EntryType::Link, name, target, b"", (0, 0), 0o644)
    }

    fn done(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// What a process in the container says.
fn ask(fixture: &Fixture, id: &str, words: &str) -> String {
    let words = words.split(' ').map(str::to_owned);
    let config = ExecConfig {
        args: ["/payload".to_owned(), "payload".to_owned()].into_iter().chain(words).collect(),
        stdout: true,
        stderr: true,
        ..ExecConfig::default()
    };
    let runtime = fixture.runtime();
    let asked = fixture.tokio.block_on(runtime.exec_output(id, config, Duration::from_secs(15), 64 << 10));
    String::from_utf8_lossy(&asked.unwrap_or_else(|error| panic!("{}", chain(&error))).output).into_owned()
}

fn volume(name: &str, target: &str, readonly: bool) -> Mount {
    let kind = VolumeMount { name: name.to_owned(), ..VolumeMount::default() };
    Mount { kind: MountKind::Volume(kind), target: target.into(), readonly }
}

fn tmpfs(target: &str) -> Mount {
    Mount { kind: MountKind::Tmpfs { size: None, mode: None }, target: target.into(), readonly: false }
}

fn sleeping(fixture: &Fixture, id: &str, before: &str, change: impl FnOnce(&mut ContainerConfig)) {
    let mut config = fixture.config(id, &format!("{before} then out ready then sleep"));
    change(&mut config);
    fixture.start(config);
    fixture.until_output(id, "ready");
}

/// A further layer with these files.
fn layer(fixture: &Fixture, name: &str, fill: impl FnOnce(&Path)) -> PathBuf {
    let dir = fixture.path().join(name);
    fs::create_dir_all(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    fill(&dir);
    dir
}

#[track_caller]
fn refused(outcome: Result<impl Sized, CopyError>, text: &str) {
    let said = chain(&outcome.err().unwrap_or_else(|| panic!("{text:?} was expected, and it worked")));
    assert!(said.contains(text), "{text:?} is not in {said:?}");
}

fn out_of_all_that_it_sees() {
    let fixture = Fixture::new();
    let words = "mkdir /dir/sub then write /dir/sub/f upper then write /vol/f volume then write /mem/f memory";
    sleeping(&fixture, "out", words, |config| {
        config.mounts = vec![volume("copies-out", "/vol", false), tmpfs("/mem")];
    });
    for (path, expected) in [("/dir/sub/f", "upper"), ("/vol/f", "volume"), ("/mem/f", "memory")] {
        assert_eq!(content(&fixture, "out", path), expected, "{path}");
    }
    assert!(content(&fixture, "out", "/etc/hosts").contains("localhost"));
    let stat = stat(&fixture, "out", "/dir/sub/f").unwrap();
    assert_eq!((stat.name.as_str(), stat.size, stat.mode), ("f", 5, 0o100_644));
    assert!(stat.modified.elapsed().unwrap() < Duration::from_secs(600));
    // All of it, but nothing of what the kernel only shows.
    let (_, all) = get(&fixture, "out", "/").unwrap();
    for name in ["/", "/payload", "/dir/sub/f", "/vol/f", "/mem/f", "/proc/", "/sys/"] {
        assert!(all.contains_key(name), "{name} is not in {:?}", all.keys());
    }
    assert!(!all.keys().any(|name| name.starts_with("/proc/") && name != "/proc/"));
    assert_eq!(all["/dev/null"].kind, EntryType::Char);
    for path in ["/proc/meminfo", "/proc", "/sys/kernel"] {
        refused(get(&fixture, "out", path), "of the kernel's");
    }
    for path in ["/proc/1/root/etc/passwd", "/proc/1/cwd/"] {
        refused(get(&fixture, "out", path), "link");
    }
    refused(get(&fixture, "out", "/missing"), "no such file");
    refused(get(&fixture, "out", "/etc/passwd/"), "not a directory");
    refused(get(&fixture, "out", ""), "a path is needed");
    refused(get(&fixture, "nobody", "/"), "no such container");
    // It stands still, and is read all the same.
    fixture.tokio.block_on(fixture.runtime().pause("out")).unwrap();
    assert_eq!(content(&fixture, "out", "/vol/f"), "volume");
    fixture.tokio.block_on(fixture.runtime().resume("out")).unwrap();
}

fn names_are_dockers() {
    let fixture = Fixture::new();
    let words = "mkdir /a/b then write /a/b/f x then link b /a/l then link /a/b/f /to-f then link /nowhere/x /dangling";
    sleeping(&fixture, "names", words, |_| {});
    let names = |path: &str| get(&fixture, "names", path).unwrap().1.into_keys().collect::<Vec<_>>();
    assert_eq!(names("/a/b"), ["b/", "b/f"]);
    assert_eq!(names("a/b/"), ["b/", "b/f"]);
    assert_eq!(names("/a/b/."), ["./", "./f"]);
    assert_eq!(names("/a/b/../b/f"), ["f"]);
    assert_eq!(names("/a/l"), ["l"]);
    assert_eq!(names("/a/l/"), ["l/", "l/f"]);
    assert_eq!(names("/a/l/."), ["./", "./f"]);
    let (stat, entries) = get(&fixture, "names", "/to-f").unwrap();
    assert_eq!((entries["to-f"].kind, entries["to-f"].link.as_str()), (EntryType::Symlink, "/a/b/f"));
    assert_eq!((stat.link_target.as_str(), stat.mode), ("/a/b/f", 0o120_777));
    let leads = |path: &str| self::stat(&fixture, "names", path).unwrap().link_target;
    assert_eq!(leads("/a/l"), "/a/b");
    assert_eq!(leads("/dangling"), "/nowhere/x");
    assert_eq!(leads("/a/b"), "");
    assert_eq!(self::stat(&fixture, "names", "/").unwrap().name, "/");
}

fn into_a_container_that_runs() {
    let fixture = Fixture::new();
    sleeping(&fixture, "into", "write /old first then mkdir /dir/keep", |config| {
        config.mounts = vec![volume("copies-into", "/vol", false), tmpfs("/mem")];
        config.user = "web".into();
        config.user.clear();
    });
    let archive = Maker::default()
        .dir("dir")
        .file("dir/new", "from outside")
        .file("implied/deep/f", "deep")
        .file("old", "second")
        .link("dir/link", "/old")
        .hard("dir/hard", "dir/new")
        .add(EntryType::Fifo, "dir/pipe", "", b"", (3, 4), 0o640)
        .add(EntryType::Regular, "run", "", b"owned", (100, 101), 0o4755);
    let archive = archive.done();
    put(&fixture, "into", "/", &archive, PutOptions::default()).unwrap();
    assert_eq!(ask(&fixture, "into", "cat /dir/new then cat /implied/deep/f"), "from outsidedeep");
    assert_eq!(ask(&fixture, "into", "cat /dir/link"), "second");
    assert_eq!(ask(&fixture, "into", "ls /dir"), "ls /dir: hard keep link new pipe\n");
    assert_eq!(ask(&fixture, "into", "stat /run"), "stat /run: 100:101 4755\n");
    assert_eq!(ask(&fixture, "into", "stat /implied/deep"), "stat /implied/deep: 0:0 755\n");
    let (_, got) = get(&fixture, "into", "/dir").unwrap();
    assert_eq!((got["dir/pipe"].kind, got["dir/pipe"].owner, got["dir/pipe"].mode), (EntryType::Fifo, (3, 4), 0o640));
    for mount in ["/vol", "/mem"] {
        put(&fixture, "into", mount, &Maker::default().file("f", mount).done(), PutOptions::default()).unwrap();
        assert_eq!(ask(&fixture, "into", &format!("cat {mount}/f")), mount);
    }
    // Through the container's own links, to where it means.
    put(&fixture, "into", "/dir/..", &Maker::default().file("dots", "x").done(), PutOptions::default()).unwrap();
    assert_eq!(ask(&fixture, "into", "cat /dots"), "x");
    let keep = PutOptions { keep_kinds: true, ..PutOptions::default() };
    refused(put(&fixture, "into", "/", &Maker::default().file("dir", "").done(), keep), "overwrite directory");
    refused(put(&fixture, "into", "/", &Maker::default().dir("old").done(), keep), "overwrite non-directory");
    put(&fixture, "into", "/", &Maker::default().dir("old").file("dir", "a file now").done(), PutOptions::default())
        .unwrap();
    assert_eq!(ask(&fixture, "into", "cat /dir then ls /old"), "a file nowls /old: \n");
    refused(put(&fixture, "into", "/dir", &archive, PutOptions::default()), "not a directory");
    refused(put(&fixture, "into", "/missing", &archive, PutOptions::default()), "no such file");
    refused(put(&fixture, "into", "/proc", &archive, PutOptions::default()), "of the kernel's");
    // Compressed, as Docker takes it too.
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &Maker::default().file("zipped", "z").done()).unwrap();
    put(&fixture, "into", "/", &gzip.finish().unwrap(), PutOptions::default()).unwrap();
    assert_eq!(ask(&fixture, "into", "cat /zipped"), "z");
    // All for the container's own user, when it has one.
    sleeping(&fixture, "own", "out begun", |config| config.user = "web".into());
    let own = PutOptions { own: true, ..PutOptions::default() };
    let archive = Maker::default().add(EntryType::Regular, "a/f", "", b"", (7, 8), 0o644).done();
    put(&fixture, "own", "/", &archive, own).unwrap();
    assert_eq!(ask(&fixture, "own", "stat /a/f then stat /a"), "stat /a/f: 100:101 644\nstat /a: 100:101 755\n");
}

/// Says when it is read, and waits then until it may go on.
struct Slow {
    begun: Option<std::sync::mpsc::Sender<()>>,
    goes: std::sync::mpsc::Receiver<()>,
    rest: Vec<u8>,
}

impl Read for Slow {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if let Some(begun) = self.begun.take() {
            begun.send(()).unwrap();
            self.goes.recv().unwrap();
        }
        let count = buffer.len().min(self.rest.len());
        buffer[..count].copy_from_slice(&self.rest[..count]);
        self.rest.drain(..count);
        Ok(count)
    }
}

fn when_it_has_ended() {
    let fixture = Fixture::new();
    let words = "write /f written then write /vol/f volume then rm /etc/group then exit 3";
    let mut config = fixture.config("ended", words);
    config.mounts = vec![volume("copies-ended", "/vol", false), tmpfs("/mem")];
    assert_eq!(fixture.run(config).0.code, 3);
    assert_eq!(content(&fixture, "ended", "/f"), "written");
    assert_eq!(content(&fixture, "ended", "/vol/f"), "volume");
    assert!(content(&fixture, "ended", "/etc/passwd").contains("web:x:100"));
    refused(get(&fixture, "ended", "/etc/group"), "no such file");
    let archive = Maker::default().file("f", "again").file("new", "new").file("etc/group", "back").done();
    put(&fixture, "ended", "/", &archive, PutOptions::default()).unwrap();
    put(&fixture, "ended", "/vol", &Maker::default().file("g", "g").done(), PutOptions::default()).unwrap();
    for (path, expected) in [("/f", "again"), ("/new", "new"), ("/etc/group", "back"), ("/vol/g", "g")] {
        assert_eq!(content(&fixture, "ended", path), expected, "{path}");
    }
    assert!(fs::read_to_string(image().join("etc/group")).unwrap().contains("web"), "the image stays as it is");
    let volume = fixture.config.data_dir.join("volumes/copies-ended/_data/g");
    assert_eq!(fs::read_to_string(volume).unwrap(), "g");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let dir = fixture.config.data_dir.join("containers/ended").display().to_string();
    assert!(!mounts.contains(&dir), "nothing stays mounted");
    // One writer at a time, and many readers.
    let archive = Maker::default().file("slow", "s").done();
    let (begun, begins) = std::sync::mpsc::channel();
    let (go, goes) = std::sync::mpsc::channel();
    let mut slow = Slow { begun: Some(begun), goes, rest: archive.clone() };
    let runtime = fixture.runtime();
    let first = std::thread::spawn(move || {
        runtime.put_archive("ended", "/", &mut slow, PutOptions::default()).map_err(|error| chain(&error))
    });
    begins.recv().unwrap();
    refused(put(&fixture, "ended", "/", &archive, PutOptions::default()), "another copy into container");
    assert_eq!(content(&fixture, "ended", "/f"), "again");
    go.send(()).unwrap();
    first.join().unwrap().unwrap();
    assert_eq!(content(&fixture, "ended", "/slow"), "s");
    // A copy does not keep it.
    fixture.tokio.block_on(fixture.runtime().delete("ended")).unwrap();
    assert_eq!(fixture.leftovers().into_iter().filter(|left| !left.contains("volumes")).collect::<Vec<_>>(), [""; 0]);
}

fn what_is_read_only_stays() {
    let fixture = Fixture::new();
    sleeping(&fixture, "sealed", "out begun", |config| {
        config.readonly_root = true;
        config.mounts = vec![volume("copies-sealed", "/vol", false), volume("copies-fixed", "/fixed", true)];
    });
    let archive = Maker::default().file("f", "x").done();
    refused(put(&fixture, "sealed", "/", &archive, PutOptions::default()), "container rootfs is marked read-only");
    refused(put(&fixture, "sealed", "/etc", &archive, PutOptions::default()), "container rootfs is marked read-only");
    refused(put(&fixture, "sealed", "/fixed", &archive, PutOptions::default()), "container volume is marked read-only");
    put(&fixture, "sealed", "/vol", &archive, PutOptions::default()).unwrap();
    assert_eq!(ask(&fixture, "sealed", "cat /vol/f"), "x");
    // A root that can be written, with a volume that cannot, and an archive that goes there on its way.
    sleeping(&fixture, "mixed", "out begun", |config| {
        config.mounts = vec![volume("copies-fixed", "/fixed", true)];
    });
    let archive = Maker::default().file("f", "x").file("fixed/f", "x").done();
    refused(put(&fixture, "mixed", "/", &archive, PutOptions::default()), "container volume is marked read-only");
    fixture.tokio.block_on(fixture.runtime().stop("sealed", None, Duration::ZERO)).unwrap();
    refused(put(&fixture, "sealed", "/", &archive, PutOptions::default()), "container rootfs is marked read-only");
}

fn hostile_archives() {
    let fixture = Fixture::new();
    let outside = fixture.path().join("outside");
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("secret"), "the host's").unwrap();
    let host = outside.display().to_string();
    sleeping(&fixture, "prey", "mkdir /in", |_| {});
    let put = |archive: Maker| put(&fixture, "prey", "/in", &archive.done(), PutOptions::default());
    refused(put(Maker::default().file("../up", "x")), "leaves the directory");
    refused(put(Maker::default().file("a/../../up", "x")), "leaves the directory");
    refused(put(Maker::default().hard("h", "../../etc/passwd")), "leaves the directory");
    refused(put(Maker::default().hard("h", "missing")), "not there");
    refused(put(Maker::default().add(EntryType::Char, "null", "", b"", (0, 0), 0o666)), "devices are not copied");
    refused(put(Maker::default().add(EntryType::Block, "disk", "", b"", (0, 0), 0o666)), "devices are not copied");
    refused(put(Maker::default().file(".", "x")), "would replace the directory");
    // An absolute name is below the directory, as with any tar.
    put(Maker::default().file("/etc/passwd", "below")).unwrap();
    assert_eq!(content(&fixture, "prey", "/in/etc/passwd"), "below");
    // A link is written through inside of the container only: there is no such directory there.
    refused(put(Maker::default().link("out", &host).file("out/secret", "overwritten")), "out/secret");
    put(Maker::default().link("up", "../../../../../..").file(&format!("up{host}/secret"), "in here")).unwrap();
    assert_eq!(ask(&fixture, "prey", &format!("cat {host}/secret")), "in here");
    // What the link names is never a hard link's source.
    let linked = put(Maker::default().link("out2", &format!("{host}/secret")).hard("hard", "out2"));
    assert!(linked.is_ok());
    assert_eq!(get(&fixture, "prey", "/in/hard").unwrap().1["hard"].kind, EntryType::Symlink);
    // Into the kernel's filesystems neither.
    refused(put(Maker::default().link("p", "/proc").file("p/sysrq-trigger", "c")), "of the kernel's");
    refused(put(Maker::default().link("p1", "/proc/1/root").file("p1/x", "c")), "p1/x");
    // The link itself is replaced, not what it points to.
    put(Maker::default().link("l", "/in/target").file("target", "kept").file("l", "a file")).unwrap();
    assert_eq!(ask(&fixture, "prey", "cat /in/target then cat /in/l"), "kepta file");
    assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "the host's");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    // Damaged ones.
    for (bytes, text) in [
        (&b"no archive at all, but longer than what a header of one has, "[..], "archive"),
        (&[0u8; 100][..], "archive"),
        (&Maker::default().file("half", &"x".repeat(5000)).done()[..3000], "archive"),
    ] {
        refused(self::put(&fixture, "prey", "/in", bytes, PutOptions::default()), text);
    }
    refused(get(&fixture, "prey", "/in/half"), "no such file");
}

fn directories_swapped_under_the_hand() {
    let fixture = Fixture::new();
    let outside = fixture.path().join("outside");
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("f"), "the host's").unwrap();
    // The same path inside, with another content: so both ways of the swap lead somewhere.
    let inside = outside.display().to_string();
    let words = format!(
        "mkdir {inside} then write {inside}/f inside then mkdir /d then write /d/f plain then link /../../..{inside} /l \
         then out swapping then swap /d /l"
    );
    fixture.start(fixture.config("swap", &words));
    fixture.until_output("swap", "swapping");
    let (mut seen, archive) = (BTreeMap::<String, u32>::new(), Maker::default().file("f", "put").done());
    for round in 0..300 {
        if round % 3 == 0 {
            // Losing a race may be a failure, never a step outside.
            let _ = put(&fixture, "swap", "/d", &archive, PutOptions::default());
        }
        match get(&fixture, "swap", "/d/f") {
            Ok((_, entries)) => {
                let text = String::from_utf8_lossy(&entries["f"].content).into_owned();
                assert!(["plain", "inside", "put", ""].contains(&text.as_str()), "{text}");
                *seen.entry(text).or_default() += 1;
            }
            Err(error) => *seen.entry(chain(&error)).or_default() += 1,
        }
    }
    assert_eq!(fs::read_to_string(outside.join("f")).unwrap(), "the host's");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    assert!(seen.contains_key("put"), "{seen:?}");
}

fn files_keep_all_that_they_are() {
    let fixture = Fixture::new();
    let upper = layer(&fixture, "kept", |dir| {
        let all = dir.join("all");
        fs::create_dir(&all).unwrap();
        fs::write(all.join("first"), "shared").unwrap();
        fs::hard_link(all.join("first"), all.join("second")).unwrap();
        fs::write(all.join("suid"), "x").unwrap();
        fs::set_permissions(all.join("suid"), fs::Permissions::from_mode(0o6751)).unwrap();
        std::os::unix::fs::chown(all.join("suid"), Some(3_000_000), Some(7)).unwrap();
        fs::set_permissions(all.join("suid"), fs::Permissions::from_mode(0o6751)).unwrap();
        fs::File::create(all.join("sparse")).unwrap().set_len(8 << 20).unwrap();
        symlink("x".repeat(200), all.join("long-link")).unwrap();
        let deep = all.join("d".repeat(120)).join("e".repeat(120));
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("f"), "deep").unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(all.join("first"), "user.note", b"a\0b\n", flags).unwrap();
        let capability = [&[1, 0, 0, 2][..], &[0, 4, 0, 0], &[0; 12]].concat();
        rustix::fs::setxattr(all.join("second"), "security.capability", &capability, flags).unwrap();
        let time = fs::FileTimes::new().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_234_567));
        fs::File::open(&all).unwrap().set_times(time).unwrap();
    });
    sleeping(&fixture, "kept", "mkdir /back", |config| config.layers.push(upper));
    let (_, entries) = get(&fixture, "kept", "/all").unwrap();
    assert_eq!((entries["all/suid"].mode, entries["all/suid"].owner), (0o6751, (3_000_000, 7)));
    assert_eq!(entries["all/long-link"].link, "x".repeat(200));
    let hard = ["all/first", "all/second"].map(|name| entries[name].kind);
    assert!(hard.contains(&EntryType::Link) && hard.contains(&EntryType::Regular), "{hard:?}");
    // The same archive back into it, and it is the same once more.
    let runtime = fixture.runtime();
    let bytes = fixture.tokio.block_on(async {
        let (_, mut pieces) = runtime.get_archive("kept", "/all").await.unwrap();
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.recv().await {
            bytes.extend_from_slice(&piece.unwrap());
        }
        bytes
    });
    put(&fixture, "kept", "/back", &bytes, PutOptions::default()).unwrap();
    let root = fixture.config.data_dir.join("containers/kept/upper/back/all");
    let meta = |name: &str| fs::symlink_metadata(root.join(name)).unwrap();
    assert_eq!((meta("first").ino(), meta("first").nlink()), (meta("second").ino(), 2));
    assert_eq!((meta("suid").mode() & 0o7777, meta("suid").uid(), meta("suid").gid()), (0o6751, 3_000_000, 7));
    assert_eq!((meta("sparse").len(), meta("sparse").blocks()), (8 << 20, 0), "holes stay holes");
    assert_eq!(meta("").mtime(), 1_234_567);
    assert_eq!(fs::read_link(root.join("long-link")).unwrap(), Path::new(&"x".repeat(200)));
    let mut value = [0u8; 64];
    let length = rustix::fs::getxattr(root.join("first"), "user.note", &mut value[..]).unwrap();
    assert_eq!(&value[..length], b"a\0b\n");
    assert_eq!(rustix::fs::getxattr(root.join("first"), "security.capability", &mut value[..]).unwrap(), 20);
    let deep = root.join("d".repeat(120)).join("e".repeat(120)).join("f");
    assert_eq!(fs::read_to_string(deep).unwrap(), "deep");

    // What `tar --sparse` makes of such a file.
    let records = [("GNU.sparse.size", "8388608"), ("GNU.sparse.map", "4194304,4,8388608,0")];
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_pax_extensions(records.map(|(key, value)| (key, value.as_bytes()))).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(4);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    tar.append_data(&mut header, "holes", &b"data"[..]).unwrap();
    put(&fixture, "kept", "/back/all", &tar.into_inner().unwrap(), PutOptions::default()).unwrap();
    let holes = fs::read(root.join("holes")).unwrap();
    assert_eq!((holes.len(), &holes[4 << 20..][..4]), (8 << 20, &b"data"[..]));
    assert_eq!(holes.iter().filter(|byte| **byte != 0).count(), 4);
    assert!(meta("holes").blocks() * 512 < 1 << 20, "holes stay holes");
}

/// In a container with a user namespace.
fn owners_are_the_containers() {
    let fixture = Fixture::new();
    if let Err(error) = fixture.tokio.block_on(fixture.runtime().check_id_mappings()) {
        return println!("skipping: {}", chain(&error));
    }
    let range = |outside| vec![IdRange { inside: 0, outside, count: 1000 }];
    let words = "mkdir /d then write /d/own x then write /vol/own x then write /mem/own x";
    sleeping(&fixture, "mapped", words, |config| {
        config.mounts = vec![volume("copies-mapped", "/vol", false), tmpfs("/mem")];
        config.id_mappings = Some(IdMappings { uids: range(700_000), gids: range(800_000) });
    });
    let capability = [&[1, 0, 0, 2][..], &[0, 4, 0, 0], &[0; 12]].concat();
    let mut pax = b"48 SCHILY.xattr.security.capability=".to_vec();
    pax.extend_from_slice(&capability);
    pax.push(b'\n');
    let length = pax.len();
    pax[..2].copy_from_slice(length.to_string().as_bytes());
    let archive = Maker::default()
        .add(EntryType::XHeader, "pax", "", &pax, (0, 0), 0o644)
        .add(EntryType::Regular, "deep/f", "", b"x", (5, 6), 0o644)
        .add(EntryType::Directory, "dir", "", b"", (7, 8), 0o755)
        .done();
    for place in ["/d", "/vol", "/mem"] {
        put(&fixture, "mapped", place, &archive, PutOptions::default())
            .unwrap_or_else(|e| panic!("{place}: {}", chain(&e)));
        let seen =
            ask(&fixture, "mapped", &format!("stat {place}/deep/f then stat {place}/deep then stat {place}/dir"));
        let expected = format!("stat {place}/deep/f: 5:6 644\nstat {place}/deep: 0:0 755\nstat {place}/dir: 7:8 755\n");
        assert_eq!(seen, expected);
        let (_, got) = get(&fixture, "mapped", &format!("{place}/.")).unwrap();
        for (name, owner) in [("./own", (0, 0)), ("./deep/f", (5, 6)), ("./deep/", (0, 0)), ("./dir/", (7, 8))] {
            assert_eq!(got[name].owner, owner, "{place} {name}");
        }
    }
    let stranger = Maker::default().add(EntryType::Regular, "f", "", b"", (1000, 0), 0o644).done();
    refused(
        put(&fixture, "mapped", "/d", &stranger, PutOptions::default()),
        "none that the container's user namespace has",
    );
    // The capabilities are those of the container's root, not of the host's.
    let upper = fixture.config.data_dir.join("containers/mapped/upper/d/deep/f");
    let mut value = [0u8; 64];
    let length = rustix::fs::getxattr(upper, "security.capability", &mut value[..]).unwrap();
    assert_eq!((length, &value[20..24]), (24, &700_000u32.to_le_bytes()[..]));
    fixture.tokio.block_on(fixture.runtime().stop("mapped", None, Duration::ZERO)).unwrap();
    for (path, owner) in [("/d/deep/f", (5, 6)), ("/vol/deep/f", (5, 6)), ("/etc/passwd", (0, 0))] {
        assert_eq!(get(&fixture, "mapped", path).unwrap().1.into_values().next().unwrap().owner, owner, "{path}");
    }
    refused(put(&fixture, "mapped", "/vol", &archive, PutOptions::default()), "users of its own and has ended");
}

fn exports_and_changes() {
    let fixture = Fixture::new();
    let base = layer(&fixture, "base", |dir| {
        for path in ["gone", "keep", "change", "data"] {
            fs::create_dir(dir.join(path)).unwrap();
            fs::write(dir.join(path).join("f"), "of the image").unwrap();
        }
        fs::write(dir.join("removed"), "").unwrap();
    });
    let words = "rmdir /gone then rm /removed then write /change/f changed then write /keep/new new then mkdir /added/x \
                 then rmdir /keep then mkdir /keep then write /keep/other o then write /data/v volume then write /mem/m m";
    let make = |config: &mut ContainerConfig| {
        config.layers.push(base);
        config.mounts = vec![volume("copies-export", "/data", false), tmpfs("/mem")];
    };
    sleeping(&fixture, "diff", words, make);
    let look = || {
        let runtime = fixture.runtime();
        fixture.tokio.block_on(async {
            let mut changes = BTreeMap::new();
            let mut found = runtime.changes("diff").await.unwrap();
            while let Some(change) = found.recv().await {
                let change = change.unwrap();
                changes.insert(change.path, change.kind);
            }
            let mut bytes = Vec::new();
            let mut pieces = runtime.export("diff").await.unwrap();
            while let Some(piece) = pieces.recv().await {
                bytes.extend_from_slice(&piece.unwrap());
            }
            (changes, entries(&bytes))
        })
    };
    let check = || {
        let (changes, all) = look();
        let expected = [
            ("/added", ChangeKind::Added),
            ("/added/x", ChangeKind::Added),
            ("/change", ChangeKind::Modified),
            ("/change/f", ChangeKind::Modified),
            ("/gone", ChangeKind::Deleted),
            ("/keep", ChangeKind::Modified),
            ("/keep/f", ChangeKind::Deleted),
            ("/keep/other", ChangeKind::Added),
            ("/mem", ChangeKind::Added),
            ("/removed", ChangeKind::Deleted),
        ];
        assert_eq!(changes, expected.map(|(path, kind)| (path.to_owned(), kind)).into_iter().collect());
        assert_eq!(all["change/f"].content, b"changed");
        assert_eq!(all["data/f"].content, b"of the image", "what lies below a volume, not what is in it");
        for name in ["payload", "added/x/", "keep/other", "mem/", "proc/", "etc/passwd"] {
            assert!(all.contains_key(name), "{name}: {:?}", all.keys());
        }
        for name in ["gone/", "removed", "keep/f", "data/v", "mem/m"] {
            assert!(!all.contains_key(name), "{name}");
        }
    };
    check();
    // The same when it has ended.
    fixture.tokio.block_on(fixture.runtime().stop("diff", None, Duration::ZERO)).unwrap();
    check();
}

/// The most memory that this process has had, in KiB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn large_ones_need_no_memory() {
    const SIZE: u64 = 512 << 20;
    let fixture = Fixture::new();
    let large = layer(&fixture, "large", |dir| fs::File::create(dir.join("f")).unwrap().set_len(SIZE).unwrap());
    sleeping(&fixture, "large", "mkdir /to", |config| config.layers.push(large));
    let runtime = fixture.runtime();
    let before = peak();
    // Out of it, and back into it at the same time.
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    let into = {
        let runtime = runtime.clone();
        std::thread::spawn(move || runtime.put_archive("large", "/to", &mut reader, PutOptions::default()).unwrap())
    };
    let sum: u64 = fixture.tokio.block_on(async {
        let (_, mut pieces) = runtime.get_archive("large", "/f").await.unwrap();
        let mut sum = 0;
        while let Some(piece) = pieces.recv().await {
            let piece = piece.unwrap();
            sum += piece.len() as u64;
            std::io::Write::write_all(&mut writer, &piece).unwrap();
        }
        sum
    });
    drop(writer);
    into.join().unwrap();
    assert_eq!(sum, SIZE + 3 * 512);
    assert_eq!(stat(&fixture, "large", "/to/f").unwrap().size, SIZE);
    let more = peak() - before;
    assert!(more < 32 << 10, "{more} KiB more for {SIZE} bytes");
}

fn readers_and_writers_that_go_away() {
    let fixture = Fixture::new();
    let large = layer(&fixture, "away", |dir| fs::File::create(dir.join("f")).unwrap().set_len(64 << 20).unwrap());
    sleeping(&fixture, "away", "write /there old", |config| config.layers.push(large));
    let runtime = fixture.runtime();
    // More than there may be at once: those that are let go of make room.
    for _ in 0..200 {
        let got = || fixture.tokio.block_on(runtime.get_archive("away", "/f"));
        let mut kept = None;
        until("room for a copy", || match got() {
            Ok(got) => {
                kept = Some(got);
                true
            }
            Err(CopyError::Busy) => false,
            Err(error) => panic!("{}", chain(&error)),
        });
        let (_, mut pieces) = kept.unwrap();
        assert!(fixture.tokio.block_on(pieces.recv()).unwrap().is_ok());
    }
    // Who holds on to all of them is told that there are no more.
    let mut held = Vec::new();
    let refusal = loop {
        match fixture.tokio.block_on(runtime.get_archive("away", "/f")) {
            Ok(got) => held.push(got),
            Err(error) => break error,
        }
        assert!(held.len() <= 64);
    };
    assert!(matches!(refusal, CopyError::Busy), "{}", chain(&refusal));
    drop(held);
    until("room for a copy", || stat(&fixture, "away", "/f").is_ok());
    // A writer that breaks off in the middle of a file leaves nothing of it.
    let archive = Maker::default().file("whole", "w").file("half", &"x".repeat(100_000)).done();
    refused(put(&fixture, "away", "/", &archive[..50_000], PutOptions::default()), "truncated");
    assert_eq!(content(&fixture, "away", "/whole"), "w");
    refused(get(&fixture, "away", "/half"), "no such file");
    let upper = fixture.config.data_dir.join("containers/away/upper");
    let mut left: Vec<_> = fs::read_dir(upper).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    let expected = ["dev", "etc", "proc", "sys", "there", "whole"];
    assert!(left.iter().all(|name| expected.contains(&name.to_str().unwrap())), "{left:?}");
    // One that ends while it is read does not hurt.
    let (_, mut pieces) = fixture.tokio.block_on(runtime.get_archive("away", "/")).unwrap();
    fixture.tokio.block_on(runtime.delete("away")).unwrap();
    fixture.tokio.block_on(async { while pieces.recv().await.is_some() {} });
}
