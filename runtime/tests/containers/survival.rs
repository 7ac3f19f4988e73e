//! The daemon dies, the shim dies, the machine seems to have rebooted: what is true is found again.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use runtime::{Runtime, Status};

use super::fixture::{Fixture, alive, until};

pub const TESTS: &[(&str, fn())] = &[
    ("survival::the_daemon_dies", the_daemon_dies),
    ("survival::the_shim_is_killed", the_shim_is_killed),
    ("survival::the_shim_is_killed_while_nobody_looks", the_shim_is_killed_while_nobody_looks),
    ("survival::parked_descriptors", parked_descriptors),
    ("survival::interrupted_creations_and_removals", interrupted),
    ("survival::another_boot", another_boot),
    ("survival::a_later_release", a_later_release),
];

/// The parent of a container's first process.
pub fn shim_of(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

fn state(fixture: &Fixture, id: &str) -> runtime::ContainerState {
    let all = fixture.tokio.block_on(fixture.runtime().list());
    all.into_iter().find(|state| state.id == id).unwrap()
}

fn the_daemon_dies() {
    let mut fixture = Fixture::new();
    let mut config = fixture.config("runs", "trap");
    config.labels.insert("task".into(), "t".into());
    let runs = fixture.start(config);
    fixture.until_output("runs", "trapping");
    let ends = fixture.start(fixture.config("ends", "trap"));
    fixture.until_output("ends", "trapping");
    let waits = fixture.tokio.block_on(fixture.runtime().create(fixture.config("waits", "out started"))).unwrap().pid;
    let before = state(&fixture, "runs");
    fixture.die();
    // One ends while nobody is there.
    let shim = shim_of(ends).unwrap();
    until("the shim is out of the daemon's cgroup", || {
        fs::read_to_string(format!("/proc/{shim}/cgroup")).unwrap().contains("/shims")
    });
    let inside = rustix::process::Pid::from_raw(i32::try_from(ends).unwrap()).unwrap();
    rustix::process::kill_process(inside, rustix::process::Signal::TERM).unwrap();
    until("the exit is on disk", || fixture.config.data_dir.join("containers/ends/exit").exists());
    fixture.open();
    assert_eq!(state(&fixture, "runs"), before);
    assert_eq!(before.pid, Some(runs));
    let ended = state(&fixture, "ends");
    assert!(matches!(&ended.status, Status::Exited(exit) if exit.code == 7 && !exit.shim_lost), "{ended:?}");
    assert_eq!(ended.pid, None);
    let waiting = state(&fixture, "waits");
    assert_eq!((waiting.status, waiting.pid), (Status::Created, Some(waits)));
    // All of them are as usable as before.
    let runtime = fixture.runtime();
    assert!(fixture.tokio.block_on(runtime.netns("runs")).is_ok());
    fixture.tokio.block_on(runtime.start("waits")).unwrap();
    assert_eq!(fixture.wait("waits").code, 0);
    assert_eq!(fixture.output("waits"), "started\n");
    let exit = fixture.tokio.block_on(runtime.stop("runs", None, Duration::from_secs(10))).unwrap();
    assert_eq!(exit.code, 7);
    for id in ["runs", "ends", "waits"] {
        fixture.tokio.block_on(runtime.delete(id)).unwrap();
    }
    assert_eq!(fixture.leftovers(), Default::default());
}

fn the_shim_is_killed() {
    let fixture = Fixture::new();
    let pid = fixture.start(fixture.config("orphan", "grandchild then out ready then sleep"));
    fixture.until_output("orphan", "ready");
    kill(shim_of(pid).unwrap());
    let exit = fixture.wait("orphan");
    assert!(exit.shim_lost && exit.code == 137 && !exit.oom_killed, "{exit:?}");
    until("the container is dead", || !alive(pid));
    assert_eq!(fixture.cgroup_file("orphan", "cgroup.procs").as_deref(), Some(""));
    fixture.tokio.block_on(fixture.runtime().delete("orphan")).unwrap();
    assert_eq!(fixture.leftovers(), Default::default());
}

fn the_shim_is_killed_while_nobody_looks() {
    let mut fixture = Fixture::new();
    let pid = fixture.start(fixture.config("orphan", "out ready then sleep"));
    fixture.until_output("orphan", "ready");
    fixture.die();
    let shim = shim_of(pid).unwrap();
    kill(shim);
    // Nobody would see its output or its end: it does not go on alone.
    until("both are dead", || !alive(shim) && !alive(pid));
    fixture.open();
    let lost = state(&fixture, "orphan");
    assert!(matches!(&lost.status, Status::Exited(exit) if exit.shim_lost), "{lost:?}");
    assert_eq!(fixture.output("orphan"), "ready\n", "its log is still there");
    // The verdict is on record: another daemon says the same.
    fixture.die();
    fixture.open();
    assert_eq!(state(&fixture, "orphan").status, lost.status);
}

fn parked_descriptors() {
    let mut fixture = Fixture::new();
    fixture.start(fixture.config("parker", "sleep"));
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let (_other, more) = UnixStream::pair().unwrap();
    let runtime = fixture.runtime();
    fixture.tokio.block_on(async {
        runtime.park_fds("parker", "dns", vec![theirs.into(), more.into()]).await.unwrap();
        assert_eq!(runtime.fetch_fds("parker", "other").await.unwrap().len(), 0);
        assert!(runtime.park_fds("parker", &"n".repeat(65), Vec::new()).await.is_err());
    });
    drop(runtime);
    fixture.die();
    fixture.open();
    let runtime = fixture.runtime();
    for _ in 0..2 {
        let fds = fixture.tokio.block_on(runtime.fetch_fds("parker", "dns")).unwrap();
        assert_eq!(fds.len(), 2);
        let mut returned = UnixStream::from(fds.into_iter().next().unwrap());
        returned.write_all(b"still here").unwrap();
        let mut text = [0; 10];
        ours.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"still here");
    }
    fixture.tokio.block_on(async {
        runtime.park_fds("parker", "dns", Vec::new()).await.unwrap();
        assert_eq!(runtime.fetch_fds("parker", "dns").await.unwrap().len(), 0);
    });
}

fn interrupted() {
    let mut fixture = Fixture::new();
    let pid = fixture.start(fixture.config("half", "sleep"));
    fixture.die();
    let containers = fixture.config.data_dir.join("containers");
    // A creation that was cut before its shim came up, one before anything, and a removal in the middle.
    fs::remove_file(containers.join("half/process")).unwrap();
    fs::create_dir_all(containers.join("empty/upper")).unwrap();
    fs::create_dir_all(containers.join(".removing-old/upper/deep")).unwrap();
    fs::write(fixture.config.run_dir.join("shims/stale.sock"), "").unwrap();
    for mount in super::fixture::cgroup_mounts() {
        let tasks = mount.join(format!("shoal-{}", fixture.config.engine_id)).join("task");
        if tasks.exists() {
            fs::create_dir(tasks.join("nobodys")).unwrap();
        }
    }
    fixture.open();
    assert!(fixture.tokio.block_on(fixture.runtime().list()).is_empty());
    assert!(!alive(pid));
    // The shim of the cut creation ends by itself once its container is gone; nobody waits for it.
    until("the end of the shim that was cut off", || fixture.leftovers().is_empty());
}

/// After a reboot the numbers in the files belong to strangers.
fn another_boot() {
    let mut fixture = Fixture::new();
    let pid = fixture.start(fixture.config("old", "sleep"));
    let mut stranger = Stranger::new();
    // Start times have ticks of 10 ms; with one of ours in the same tick it would not be a stranger.
    let ours = [start_of(pid), start_of(shim_of(pid).unwrap())];
    until("a stranger of another time", || {
        let strange = !ours.contains(&start_of(stranger.0.id()));
        if !strange {
            stranger = Stranger::new();
        }
        strange
    });
    fixture.die();
    kill(shim_of(pid).unwrap());
    kill(pid);
    until("both are dead", || !alive(pid));
    // The same pids, but another start time: here simply the stranger's pid in place of the dead one's.
    let path = fixture.config.data_dir.join("containers/old/process");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, swap_pid(&bytes, stranger.0.id())).unwrap();
    fixture.open();
    assert!(matches!(state(&fixture, "old").status, Status::Exited(exit) if exit.shim_lost));
    fixture.tokio.block_on(fixture.runtime().delete("old")).unwrap();
    assert!(alive(stranger.0.id()), "a stranger was not touched");
}

fn start_of(pid: u32) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().to_owned()
}

/// A process that has nothing to do with us, and ends with the test.
struct Stranger(std::process::Child);

impl Stranger {
    fn new() -> Stranger {
        let mut command = std::process::Command::new("/proc/self/exe");
        let quiet = std::process::Stdio::null;
        Stranger(command.args(["payload", "sleep"]).stdin(quiet()).stdout(quiet()).stderr(quiet()).spawn().unwrap())
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Rewrites the pids in a process record (fields 2 and 4), with its length and checksum.
fn swap_pid(bytes: &[u8], pid: u32) -> Vec<u8> {
    let mut payload = Vec::new();
    let mut rest = &bytes[HEADER..];
    while let Some((&key, tail)) = rest.split_first() {
        payload.push(key);
        rest = tail;
        if key & 7 == 2 {
            let length = usize::from(rest[0]);
            payload.extend_from_slice(&rest[..=length]);
            rest = &rest[length + 1..];
            continue;
        }
        let length = rest.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
        if key >> 3 == 2 || key >> 3 == 4 {
            let mut value = pid;
            while value >= 0x80 {
                payload.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
                value >>= 7;
            }
            payload.push(u8::try_from(value).unwrap());
        } else {
            payload.extend_from_slice(&rest[..length]);
        }
        rest = &rest[length..];
    }
    let mut out = bytes[..HEADER].to_vec();
    out.extend_from_slice(&payload);
    seal(out)
}

/// The header of a stored file: magic, format, kind, key id, length (at 12), checksum (at 20) of it and the payload.
const HEADER: usize = 24;

/// Makes length and checksum fit again after a change.
fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    let length = (bytes.len() - HEADER) as u64;
    bytes[12..20].copy_from_slice(&length.to_be_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..20]);
    hasher.update(&bytes[HEADER..]);
    bytes[20..HEADER].copy_from_slice(&hasher.finalize().to_be_bytes());
    bytes
}

/// The file as a release with format 2 would write it.
fn of_format_2(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[4..6].copy_from_slice(&2u16.to_be_bytes());
    seal(bytes)
}

/// What a later release has written is refused, not thrown away; what is damaged is removed.
fn a_later_release() {
    let mut fixture = Fixture::new();
    fixture.run(fixture.config("newer", "exit 0"));
    fixture.die();
    let path = fixture.config.data_dir.join("containers/newer/container");
    let good = fs::read(&path).unwrap();
    let newer = of_format_2(&good);
    fs::write(&path, &newer).unwrap();
    let refused = fixture.tokio.block_on(Runtime::open(fixture.config.clone()));
    let text = refused.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(text.contains("format 2 is not known to this release"), "{text}");
    assert_eq!(fs::read(&path).unwrap(), newer);
    fs::write(&path, &good).unwrap();
    let exit = fixture.config.data_dir.join("containers/newer/exit");
    let later = of_format_2(&fs::read(&exit).unwrap());
    fs::write(&exit, &later).unwrap();
    assert!(fixture.tokio.block_on(Runtime::open(fixture.config.clone())).is_err());
    assert_eq!(fs::read(&exit).unwrap(), later);
    // A bit of the format number, flipped: that is no later release, and must not keep the daemon from its start.
    let mut damaged = good;
    damaged[5] ^= 2;
    fs::write(&path, &damaged).unwrap();
    fixture.open();
    assert!(fixture.tokio.block_on(fixture.runtime().list()).is_empty());
    assert_eq!(fixture.leftovers(), Default::default());
}
