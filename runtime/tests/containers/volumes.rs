//! Volumes, binds and private files in containers, and what is left of them afterwards: nothing that was not asked for.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use runtime::{
    Capabilities, ContainerConfig, Mount, MountKind, PrivateFile, Propagation, RuntimeError, VolumeMount, VolumeSpec,
};
use rustix::fs::{CWD, FileType, Mode, RenameFlags, makedev, mknodat, renameat_with};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};

use super::fixture::{Fixture, chain, until};

pub const TESTS: &[(&str, fn())] = &[
    ("volumes::a_named_volume_outlives_its_containers", a_named_volume_outlives_its_containers),
    ("volumes::an_anonymous_volume_goes_with_its_container", an_anonymous_volume_goes_with_its_container),
    ("volumes::an_empty_volume_is_filled_from_the_image", an_empty_volume_is_filled_from_the_image),
    ("volumes::a_subpath_never_leads_out", a_subpath_never_leads_out),
    ("volumes::what_options_mount_is_mounted_while_it_is_needed", what_options_mount_is_mounted_while_it_is_needed),
    ("volumes::a_disk_is_mounted_for_its_volume", a_disk_is_mounted_for_its_volume),
    ("volumes::an_overlay_and_a_server_are_asked_for", an_overlay_and_a_server_are_asked_for),
    ("volumes::a_subpath_that_changes_under_us_never_leads_out", a_subpath_that_changes_under_us_never_leads_out),
    ("volumes::what_a_starting_container_takes_is_not_pruned", what_a_starting_container_takes_is_not_pruned),
    ("volumes::mounts_fit_the_containers_after_a_crash", mounts_fit_the_containers_after_a_crash),
    ("volumes::binds_pass_mounts_on_as_asked", binds_pass_mounts_on_as_asked),
    ("volumes::what_cannot_be_mounted_is_said_in_dockers_words", what_cannot_be_mounted_is_said_in_dockers_words),
    ("volumes::private_files_are_never_on_a_disk", private_files_are_never_on_a_disk),
    ("volumes::notes_go_with_their_container", notes_go_with_their_container),
];

fn volume(name: &str, target: &str) -> Mount {
    let kind = MountKind::Volume(VolumeMount { name: name.to_owned(), copy: true, ..VolumeMount::default() });
    Mount { kind, target: target.into(), readonly: false }
}

fn with_subpath(name: &str, subpath: &str) -> Mount {
    let kind = VolumeMount { name: name.to_owned(), subpath: subpath.into(), ..VolumeMount::default() };
    Mount { kind: MountKind::Volume(kind), target: "/sub".into(), readonly: false }
}

fn options(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn delete(fixture: &Fixture, id: &str) {
    fixture.tokio.block_on(fixture.runtime().delete(id)).unwrap_or_else(|error| panic!("{}", chain(&error)));
}

fn refused(fixture: &Fixture, config: ContainerConfig) -> String {
    let outcome = fixture.tokio.block_on(fixture.runtime().create(config));
    chain(&outcome.expect_err("it is refused"))
}

fn names(fixture: &Fixture) -> Vec<String> {
    fixture.runtime().volumes().list().into_iter().map(|volume| volume.name).collect()
}

/// Whether something is mounted there on the host.
fn mounted(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(4) == path.to_str())
}

fn a_named_volume_outlives_its_containers() {
    let mut fixture = Fixture::new();
    let mut config = fixture.config("first", "write /data/file kept then ls /data");
    config.mounts = vec![volume("data", "/data")];
    assert_eq!(fixture.run(config).1, "wrote /data/file\nls /data: file\n");
    let refused = fixture.runtime().volumes().remove("data").unwrap_err().to_string();
    assert_eq!(refused, "remove data: volume is in use - [first]");
    delete(&fixture, "first");
    fixture.die();
    fixture.open();
    let mut config = fixture.config("second", "cat /data/file then write /data/file x");
    config.mounts = vec![Mount { readonly: true, ..volume("data", "/data") }];
    config.hostname = "h".into();
    assert_eq!(fixture.run(config).1, "keptwrite /data/file: Read-only file system (os error 30)\n");
    let points = fixture.tokio.block_on(fixture.runtime().mounts("second")).unwrap();
    let data = fixture.runtime().volumes().get("data").unwrap().mountpoint;
    assert_eq!(points.len(), 1);
    assert_eq!((points[0].kind, points[0].name.as_str(), &points[0].source), ("volume", "data", &data));
    assert!(!points[0].writable && points[0].target == Path::new("/data"));
    // Who has it is known after a restart too.
    fixture.die();
    fixture.open();
    assert_eq!(fixture.runtime().volumes().get("data").unwrap().containers, ["second"]);
    delete(&fixture, "second");
    fixture.runtime().volumes().remove("data").unwrap();
    assert!(!data.exists());
    assert_eq!(fixture.leftovers(), Default::default());
}

fn an_anonymous_volume_goes_with_its_container() {
    let mut fixture = Fixture::new();
    let mut config = fixture.config("own", "write /a/x 1 then write /b/x 2 then sleep");
    config.mounts = vec![volume("", "/a"), volume("", "/b"), volume("named", "/c")];
    fixture.start(config.clone());
    fixture.until_output("own", "wrote /b/x");
    let all = fixture.runtime().volumes().list();
    assert_eq!(all.iter().filter(|volume| volume.is_anonymous()).count(), 2, "{all:?}");
    assert!(all.iter().all(|volume| volume.containers == ["own"]), "{all:?}");
    delete(&fixture, "own");
    assert_eq!(names(&fixture), ["named"]);
    // One whose container could not be made is gone at once, one whose container is lost at the next start.
    config.args[0] = "/payload".into();
    config.user = "nobody-here".into();
    refused(&fixture, config.clone());
    assert_eq!(names(&fixture), ["named"]);
    config.user = String::new();
    fixture.start(config);
    fixture.until_output("own", "wrote /b/x");
    delete_behind_its_back(&mut fixture, "own");
    fixture.open();
    assert_eq!(names(&fixture), ["named"]);
    assert_eq!(fixture.leftovers(), Default::default());
}

/// The daemon dies, and the container with its directory too: a disk that was restored, say.
fn delete_behind_its_back(fixture: &mut Fixture, id: &str) {
    fixture.tokio.block_on(fixture.runtime().stop(id, None, Duration::ZERO)).unwrap();
    fixture.die();
    fs::remove_dir_all(fixture.config.data_dir.join("containers").join(id)).unwrap();
}

fn an_empty_volume_is_filled_from_the_image() {
    let fixture = Fixture::new();
    let (lower, upper) = (fixture.path().join("lower"), fixture.path().join("upper"));
    fs::create_dir_all(lower.join("srv/data/sub")).unwrap();
    fs::create_dir_all(upper.join("srv/data")).unwrap();
    fs::write(lower.join("srv/data/a"), "a").unwrap();
    fs::write(lower.join("srv/data/gone"), "gone").unwrap();
    fs::hard_link(lower.join("srv/data/a"), lower.join("srv/data/sub/b")).unwrap();
    fs::set_permissions(lower.join("srv/data/a"), fs::Permissions::from_mode(0o2640)).unwrap();
    std::os::unix::fs::chown(lower.join("srv/data/sub"), Some(7), Some(8)).unwrap();
    fs::write(upper.join("srv/data/c"), "c").unwrap();
    std::os::unix::fs::chown(upper.join("srv/data"), Some(70), Some(80)).unwrap();
    fs::set_permissions(upper.join("srv/data"), fs::Permissions::from_mode(0o750)).unwrap();
    // A whiteout, and a link on the way to the target.
    let none = Mode::empty();
    mknodat(CWD, upper.join("srv/data/gone").as_path(), FileType::CharacterDevice, none, makedev(0, 0)).unwrap();
    symlink("/srv", upper.join("link")).unwrap();
    let run = |id: &str, mount: Mount| {
        let mut config = fixture.config(id, "ls /srv/data");
        config.layers.extend([lower.clone(), upper.clone()]);
        config.mounts = vec![mount];
        fixture.run(config).1
    };
    assert_eq!(run("first", volume("data", "/link/data")), "ls /srv/data: a c sub\n");
    let data = fixture.runtime().volumes().get("data").unwrap().mountpoint;
    let meta = |path: &str| fs::symlink_metadata(data.join(path)).unwrap();
    assert_eq!((meta("").uid(), meta("").gid(), meta("").mode() & 0o7777), (70, 80, 0o750));
    assert_eq!((meta("sub").uid(), meta("sub").gid()), (7, 8));
    assert_eq!((meta("a").mode() & 0o7777, meta("a").ino(), meta("a").nlink()), (0o2640, meta("sub/b").ino(), 2));
    // Once there is something in it, it is the user's.
    fs::remove_file(data.join("c")).unwrap();
    assert_eq!(run("second", volume("data", "/srv/data")), "ls /srv/data: a sub\n");
    let mut uncopied = volume("other", "/srv/data");
    if let MountKind::Volume(volume) = &mut uncopied.kind {
        volume.copy = false;
    }
    assert_eq!(run("third", uncopied), "ls /srv/data: \n");
    // Nothing there, and a file there, is nothing to copy.
    assert_eq!(run("fourth", volume("more", "/no/such")), "ls /srv/data: a c sub\n");
    for name in ["more", "other"] {
        assert_eq!(fs::read_dir(fixture.runtime().volumes().get(name).unwrap().mountpoint).unwrap().count(), 0);
    }
}

fn a_subpath_never_leads_out() {
    let fixture = Fixture::new();
    let data = fixture.runtime().volumes().create(VolumeSpec { name: "data".into(), ..Default::default() }).unwrap();
    let root = data.mountpoint;
    fs::create_dir_all(root.join("in/side")).unwrap();
    fs::write(root.join("in/side/file"), "found").unwrap();
    symlink("in/side", root.join("fine")).unwrap();
    let secret = fixture.path().join("secret");
    fs::create_dir(&secret).unwrap();
    symlink(&secret, root.join("absolute")).unwrap();
    symlink("../../../../../../../../etc", root.join("up")).unwrap();
    symlink("/proc/self/root", root.join("magic")).unwrap();
    for (id, subpath) in [("s1", "in/side"), ("s2", "fine"), ("s3", "./in/side")] {
        let mut config = fixture.config(id, "cat /sub/file");
        config.mounts = vec![with_subpath("data", subpath)];
        assert_eq!(fixture.run(config).1, "found", "{subpath}");
    }
    let mut config = fixture.config("file", "cat /sub");
    config.mounts = vec![with_subpath("data", "in/side/file")];
    assert_eq!(fixture.run(config).1, "found");
    for subpath in ["absolute", "up", "magic", "up/passwd", "missing", "in/side/file/x"] {
        let mut config = fixture.config("bad", "sleep");
        config.mounts = vec![with_subpath("data", subpath)];
        let error = refused(&fixture, config);
        assert!(error.contains("/sub: "), "{subpath}: {error}");
    }
    for subpath in ["/etc", "../x", "in/../../x"] {
        let mut config = fixture.config("bad", "sleep");
        config.mounts = vec![with_subpath("data", subpath)];
        let error = refused(&fixture, config);
        assert_eq!(error, "invalid mounts.subpath: must be a relative path within the volume", "{subpath}");
    }
}

fn what_options_mount_is_mounted_while_it_is_needed() {
    let fixture = Fixture::new();
    let volumes = fixture.runtime().volumes();
    let memory = options(&[("type", "tmpfs"), ("device", "tmpfs"), ("o", "size=1m,mode=0711,nosuid")]);
    let spec = VolumeSpec { name: "memory".into(), options: memory, ..Default::default() };
    let point = volumes.create(spec).unwrap().mountpoint;
    assert!(!mounted(&point), "nobody needs it");
    for id in ["one", "two"] {
        let mut config = fixture.config(id, "cat /proc/self/mountinfo then ls /m then write /m/seen 1 then trap");
        config.mounts = vec![volume("memory", "/m")];
        fixture.start(config);
        fixture.until_output(id, "trapping");
        assert!(mounted(&point));
    }
    assert!(fixture.output("two").contains("ls /m: seen\n"), "both have the same one: {}", fixture.output("two"));
    let line = fixture.output("one").lines().find(|line| line.contains(" /m ")).unwrap().to_owned();
    assert!(line.contains("nosuid") && line.contains("size=1024k,mode=711"), "{line}");
    let stop = |id: &str| {
        fixture.tokio.block_on(fixture.runtime().stop(id, None, Duration::from_secs(10))).unwrap();
    };
    stop("one");
    delete(&fixture, "one");
    assert!(mounted(&point), "the other one needs it");
    stop("two");
    until("it is unmounted with the last that ends", || !mounted(&point));
    delete(&fixture, "two");
    // A bind of the host: the data is not the volume's, and survives it.
    let host = fixture.path().join("host");
    fs::create_dir(&host).unwrap();
    fs::write(host.join("x"), "host's").unwrap();
    let bind = options(&[("type", "none"), ("device", host.to_str().unwrap()), ("o", "bind,ro")]);
    volumes.create(VolumeSpec { name: "bound".into(), options: bind, ..Default::default() }).unwrap();
    let mut config = fixture.config("three", "cat /h/x then write /h/x y");
    config.mounts = vec![volume("bound", "/h")];
    assert_eq!(fixture.run(config).1, "host'swrite /h/x: Read-only file system (os error 30)\n");
    delete(&fixture, "three");
    for name in ["bound", "memory"] {
        volumes.remove(name).unwrap();
    }
    assert_eq!(fs::read_to_string(host.join("x")).unwrap(), "host's");
    assert_eq!(fixture.leftovers(), Default::default());
}

/// A loop device, given back with this.
struct Loop(PathBuf);

impl Loop {
    /// With an ext4 file system; `None` where that cannot be had.
    fn with_ext4(dir: &Path) -> Option<Loop> {
        let image = dir.join("disk");
        fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
        let run = |program: &str, args: &[&str]| {
            let output = Command::new(program).args(args).output().ok()?;
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        run("mkfs.ext4", &["-q", image.to_str()?])?;
        run("losetup", &["--find", "--show", image.to_str()?]).map(|device| Loop(device.into()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

fn a_disk_is_mounted_for_its_volume() {
    let fixture = Fixture::new();
    let Some(disk) = Loop::with_ext4(fixture.path()) else {
        println!("skipped: needs mkfs.ext4, losetup and a free loop device");
        return;
    };
    let volumes = fixture.runtime().volumes();
    let make = |name: &str, o: &str| {
        let options = options(&[("type", "ext4"), ("device", disk.0.to_str().unwrap()), ("o", o)]);
        volumes.create(VolumeSpec { name: name.into(), options, ..Default::default() }).unwrap().mountpoint
    };
    let point = make("disk", "noatime");
    let mut config = fixture.config("writes", "write /d/x kept then cat /proc/self/mountinfo");
    config.mounts = vec![volume("disk", "/d")];
    let said = fixture.run(config).1;
    let of_disk = |line: &str| line.contains(" /d ") && line.contains("noatime") && line.contains("ext4");
    assert!(said.lines().any(of_disk), "{said}");
    delete(&fixture, "writes");
    until("it is unmounted", || !mounted(&point));
    assert_eq!(fs::read_dir(&point).unwrap().count(), 0, "it was on the disk only");
    // The volume goes, the disk's files do not: another one finds them.
    volumes.remove("disk").unwrap();
    make("again", "ro");
    let mut config = fixture.config("reads", "cat /d/x then write /d/x y");
    config.mounts = vec![volume("again", "/d")];
    assert_eq!(fixture.run(config).1, "keptwrite /d/x: Read-only file system (os error 30)\n");
    delete(&fixture, "reads");
    volumes.remove("again").unwrap();
    assert_eq!(fixture.leftovers(), Default::default());
}

fn an_overlay_and_a_server_are_asked_for() {
    let fixture = Fixture::new();
    let volumes = fixture.runtime().volumes();
    let dirs = ["lower", "upper", "work"].map(|name| fixture.path().join("over").join(name));
    for dir in &dirs {
        fs::create_dir_all(dir).unwrap();
    }
    let [lower, upper, work] = &dirs;
    fs::write(lower.join("below"), "from below").unwrap();
    let o = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    let over = options(&[("type", "overlay"), ("device", "overlay"), ("o", &o)]);
    volumes.create(VolumeSpec { name: "over".into(), options: over, ..Default::default() }).unwrap();
    let mut config = fixture.config("over", "cat /o/below then write /o/above 1");
    config.mounts = vec![volume("over", "/o")];
    assert_eq!(fixture.run(config).1, "from belowwrote /o/above\n");
    delete(&fixture, "over");
    volumes.remove("over").unwrap();
    assert_eq!(fs::read_to_string(upper.join("above")).unwrap(), "1", "it is where the options say");
    // The name of a server is looked up here, for the kernel takes addresses only.
    let nfs = options(&[
        ("type", "nfs"),
        ("device", ":/export"),
        ("o", "addr=localhost,nfsvers=4,proto=tcp,soft,timeo=1,retrans=0"),
    ]);
    volumes.create(VolumeSpec { name: "files".into(), options: nfs, ..Default::default() }).unwrap();
    let mut config = fixture.config("nfs", "sleep");
    config.mounts = vec![volume("files", "/f")];
    let error = refused(&fixture, config);
    assert!(error.contains("failed to mount local volume: mount :/export:"), "{error}");
    assert!(error.contains("data: addr=127.0.0.1,nfsvers=4,"), "{error}");
    assert_eq!(fixture.leftovers(), Default::default());
}

fn a_subpath_that_changes_under_us_never_leads_out() {
    let fixture = Fixture::new();
    let spec = VolumeSpec { name: "data".into(), ..Default::default() };
    let root = fixture.runtime().volumes().create(spec).unwrap().mountpoint;
    let outside = fixture.path().join("outside");
    for (dir, text) in [(root.join("sub"), "inside"), (outside.clone(), "outside")] {
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("file"), text).unwrap();
    }
    symlink(&outside, root.join("other")).unwrap();
    let over = AtomicBool::new(false);
    let (mut found, mut failed) = (0, 0);
    std::thread::scope(|scope| {
        // Set whatever happens, so that the other thread ends with a test that fails.
        let _over = Over(&over);
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                renameat_with(CWD, root.join("sub"), CWD, root.join("other"), RenameFlags::EXCHANGE).unwrap();
            }
        });
        for round in 0..40 {
            let id = format!("c{round}");
            let mut config = fixture.config(&id, "cat /sub/file");
            config.mounts = vec![with_subpath("data", "sub")];
            match fixture.tokio.block_on(fixture.runtime().create(config)) {
                Ok(_) => {
                    fixture.tokio.block_on(fixture.runtime().start(&id)).unwrap();
                    fixture.wait(&id);
                    assert_eq!(fixture.output(&id), "inside");
                    delete(&fixture, &id);
                    found += 1;
                }
                Err(error) => {
                    assert!(chain(&error).contains("/sub: "), "{}", chain(&error));
                    failed += 1;
                }
            }
        }
    });
    println!("{found} found the directory, {failed} the link");
    assert_eq!(fixture.leftovers(), Default::default());
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn what_a_starting_container_takes_is_not_pruned() {
    let fixture = Fixture::new();
    let volumes = fixture.runtime().volumes();
    let (over, pruned) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let _over = Over(&over);
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                pruned.fetch_add(volumes.prune(|_| true).names.len(), Ordering::Relaxed);
            }
        });
        for round in 0..25 {
            let id = format!("c{round}");
            let mut config = fixture.config(&id, "write /v/x 1 then write /own/y 2 then trap");
            config.mounts = vec![volume("shared", "/v"), volume("", "/own")];
            fixture.start(config);
            fixture.until_output(&id, "trapping");
            let data = volumes.get("shared").unwrap();
            assert_eq!(data.containers, [id.as_str()]);
            assert!(data.mountpoint.join("x").exists(), "the container's volume is the one that is there");
            delete(&fixture, &id);
            let before = pruned.load(Ordering::Relaxed);
            if round == 0 {
                until("it takes what nobody has", || {
                    pruned.load(Ordering::Relaxed) > before || names(&fixture).is_empty()
                });
            }
        }
    });
    volumes.prune(|_| true);
    assert_eq!(names(&fixture), [""; 0]);
    assert_eq!(fixture.leftovers(), Default::default());
}

fn mounts_fit_the_containers_after_a_crash() {
    let mut fixture = Fixture::new();
    let memory = options(&[("type", "tmpfs"), ("device", "tmpfs")]);
    let mut points = BTreeMap::new();
    for name in ["stays", "ends", "lost"] {
        let spec = VolumeSpec { name: name.into(), options: memory.clone(), ..Default::default() };
        points.insert(name, fixture.runtime().volumes().create(spec).unwrap().mountpoint);
        let mut config = fixture.config(name, "trap");
        config.mounts = vec![volume(name, "/m")];
        fixture.start(config);
        fixture.until_output(name, "trapping");
    }
    let pid = fixture.tokio.block_on(fixture.runtime().list()).iter().find(|c| c.id == "ends").unwrap().pid.unwrap();
    fixture.die();
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    until("the exit is on disk", || fixture.config.data_dir.join("containers/ends/exit").exists());
    // Somebody has unmounted what a living container needs.
    unmount(&points["lost"], UnmountFlags::DETACH).unwrap();
    assert!(mounted(&points["ends"]));
    fixture.open();
    assert!(mounted(&points["stays"]) && mounted(&points["lost"]), "what is needed is there");
    assert!(!mounted(&points["ends"]), "what is not needed is gone");
    for id in ["stays", "ends", "lost"] {
        delete(&fixture, id);
    }
    assert_eq!(fixture.leftovers(), Default::default());
}

/// Unmounts what a test has mounted, also when it fails.
struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        while unmount(&self.0, UnmountFlags::DETACH).is_ok() {}
    }
}

fn tmpfs_at(path: &Path) -> Unmount {
    fs::create_dir_all(path).unwrap();
    mount(c"tmpfs", path, c"tmpfs", MountFlags::empty(), None).unwrap();
    Unmount(path.to_owned())
}

fn binds_pass_mounts_on_as_asked() {
    let fixture = Fixture::new();
    let host = fixture.path().canonicalize().unwrap().join("host");
    let _host = tmpfs_at(&host);
    mount_change(&host, MountPropagationFlags::PRIVATE).unwrap();
    fs::create_dir(host.join("dir")).unwrap();
    fs::create_dir(host.join("late")).unwrap();
    let bind = |propagation| Mount {
        kind: MountKind::Bind { source: host.clone(), recursive: true, readonly_below: true, propagation },
        target: "/h".into(),
        readonly: false,
    };
    for (propagation, wanted) in [(Propagation::RShared, "shared"), (Propagation::RSlave, "shared or slave")] {
        let mut config = fixture.config("refused", "sleep");
        config.mounts = vec![bind(propagation)];
        let (at, error) = (host.display(), refused(&fixture, config));
        assert_eq!(error, format!("path {at} is mounted on {at} but it is not a {wanted} mount"));
    }
    mount_change(&host, MountPropagationFlags::SHARED).unwrap();
    for (id, propagation) in [("shares", Propagation::RShared), ("gets", Propagation::RSlave)] {
        let mut config = fixture.config(id, "mount /h/dir then write /h/dir/x 1 then wait /h/late/x then ls /h/late");
        config.mounts = vec![bind(propagation)];
        config.capabilities = Capabilities { add: vec!["SYS_ADMIN".into()], drop: Vec::new() };
        fixture.start(config);
        fixture.until_output(id, "wrote /h/dir/x");
        assert_eq!(host.join("dir/x").exists(), id == "shares", "{id}");
        assert_eq!(mounted(&host.join("dir")), id == "shares", "{id}");
        // And the other way: both are told of what the host mounts.
        let late = tmpfs_at(&host.join("late"));
        fs::write(host.join("late/x"), "").unwrap();
        fixture.until_output(id, "ls /h/late: x");
        delete(&fixture, id);
        drop(late);
        drop(Unmount(host.join("dir")));
    }
}

fn what_cannot_be_mounted_is_said_in_dockers_words() {
    let fixture = Fixture::new();
    let missing = fixture.path().join("missing");
    let mut config = fixture.config("bad", "sleep");
    config.mounts = vec![Mount {
        kind: MountKind::Bind {
            source: missing.clone(),
            recursive: true,
            readonly_below: true,
            propagation: Propagation::RPrivate,
        },
        target: "/x".into(),
        readonly: false,
    }];
    let words = "invalid mount config for type \"bind\": bind source path does not exist:";
    assert_eq!(refused(&fixture, config.clone()), format!("{words} {}", missing.display()));
    config.mounts = vec![Mount {
        kind: MountKind::Volume(VolumeMount {
            name: "odd".into(),
            options: options(&[("type", "nosuchfs"), ("device", "none"), ("o", "a=1,ro")]),
            ..VolumeMount::default()
        }),
        target: "/x".into(),
        readonly: false,
    }];
    let error = refused(&fixture, config.clone());
    assert!(error.contains("failed to mount local volume: mount none:"), "{error}");
    assert!(error.contains("flags: 0x1, data: a=1: No such device"), "{error}");
    // What cannot be mounted now may be later; as with Docker, it stays.
    assert_eq!(names(&fixture), ["odd"]);
    assert_eq!(fixture.runtime().volumes().get("odd").unwrap().containers, [""; 0]);
    config.mounts = vec![Mount {
        kind: MountKind::Volume(VolumeMount { name: "x".into(), driver: "rexray".into(), ..Default::default() }),
        target: "/x".into(),
        readonly: false,
    }];
    assert!(refused(&fixture, config.clone()).starts_with("volume name is too short"));
    if let MountKind::Volume(volume) = &mut config.mounts[0].kind {
        volume.name = "xy".into();
    }
    assert_eq!(refused(&fixture, config), "error looking up volume plugin rexray: plugin \"rexray\" not found");
    assert_eq!(fixture.leftovers(), Default::default());
}

fn private_files_are_never_on_a_disk() {
    let mut fixture = Fixture::new();
    let text = "a very secret text";
    let file = |target: &str, uid, mode| PrivateFile {
        target: target.into(),
        uid,
        gid: 101,
        mode,
        data: text.as_bytes().to_vec(),
    };
    let words = "cat /run/secrets/key then stat /run/secrets/key then stat /etc/my/key then write /etc/my/key x \
                 then cat /proc/self/mountinfo then trap";
    let mut config = fixture.config("keeper", words);
    config.private_files = vec![file("/run/secrets/key", 100, 0o400), file("/etc/my/key", 0, 0o444)];
    assert!(!format!("{config:?}").contains(text));
    config.user = "web".into();
    fixture.start(config.clone());
    fixture.until_output("keeper", "trapping");
    let output = fixture.output("keeper");
    let expected = "a very secret textstat /run/secrets/key: 100:101 400\nstat /etc/my/key: 0:101 444\n\
                    write /etc/my/key: ";
    assert!(output.starts_with(expected), "{output}");
    let line = output.lines().find(|line| line.contains(" /etc/my/key ")).unwrap();
    assert!(line.contains("tmpfs") && line.contains(" ro,nosuid,nodev,noexec"), "{line}");
    assert!(fixture.tokio.block_on(fixture.runtime().mounts("keeper")).unwrap().is_empty());
    let private = fixture.config.run_dir.canonicalize().unwrap().join("private");
    assert!(mounted(&private));
    assert_eq!(on_disk(&fixture.config.data_dir, text), Vec::<PathBuf>::new());
    // It outlives the daemon, and goes with the last container that has one.
    fixture.die();
    fixture.open();
    assert!(mounted(&private) && private.join("keeper/0").exists());
    delete(&fixture, "keeper");
    assert!(!mounted(&private));
    config.private_files[0].target = "/".into();
    assert!(refused(&fixture, config).contains("private_files"));
    assert_eq!(fixture.leftovers(), Default::default());
}

/// Files below that hold the text.
fn on_disk(dir: &Path, text: &str) -> Vec<PathBuf> {
    let (mut found, mut open) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let meta = fs::symlink_metadata(&path).unwrap();
            // The log has what the container said of its own accord.
            if meta.is_dir() && !path.ends_with("log") {
                open.push(path);
            } else if meta.is_file() {
                let bytes = fs::read(&path).unwrap();
                if bytes.windows(text.len()).any(|window| window == text.as_bytes()) {
                    found.push(path);
                }
            }
        }
    }
    found
}

fn notes_go_with_their_container() {
    let mut fixture = Fixture::new();
    fixture.start(fixture.config("noted", "trap"));
    let runtime = fixture.runtime();
    let put = |bytes: &[u8]| fixture.tokio.block_on(runtime.put_note("noted", "health", bytes.to_vec()));
    assert_eq!(fixture.tokio.block_on(runtime.note("noted", "health")).unwrap(), None);
    put(b"first").unwrap();
    put(b"second").unwrap();
    assert!(put(&vec![0; (1 << 20) + 1]).is_err());
    for name in ["", "../x", "UPPER"] {
        assert!(fixture.tokio.block_on(runtime.put_note("noted", name, Vec::new())).is_err(), "{name}");
    }
    drop(runtime);
    fixture.die();
    fixture.open();
    let runtime = fixture.runtime();
    assert_eq!(fixture.tokio.block_on(runtime.note("noted", "health")).unwrap(), Some(b"second".to_vec()));
    delete(&fixture, "noted");
    let late = fixture.tokio.block_on(runtime.put_note("noted", "health", Vec::new()));
    assert!(matches!(late, Err(RuntimeError::NotFound(_))));
    assert_eq!(fixture.leftovers(), Default::default());
}
