//! One bundle a test, with this very binary as its program, and the runtime as a command.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// Why these tests cannot run here.
pub fn possible() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("not root".to_owned());
    }
    if !fs::read_to_string("/proc/mounts").unwrap_or_default().contains(" cgroup") {
        return Err("no cgroup filesystem is mounted".to_owned());
    }
    Ok(())
}

pub struct Bundle {
    pub config: Value,
    pub id: String,
    dir: TempDir,
}

/// What a command said, and how it ended.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Said {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Said { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }
}

impl Bundle {
    /// A bundle whose program plays these words.
    pub fn new(words: &str) -> Bundle {
        let dir = tempfile::Builder::new().prefix("shoal-bundle-").tempdir().unwrap();
        // The mapped root of a user namespace must find its way in.
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let rootfs = dir.path().join("rootfs");
        for part in ["proc", "sys", "dev", "etc"] {
            fs::create_dir_all(rootfs.join(part)).unwrap();
        }
        fs::copy("/proc/self/exe", rootfs.join("payload")).unwrap();
        fs::write(rootfs.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:100:101::/srv:/bin/sh\n").unwrap();
        let name = dir.path().file_name().unwrap().to_str().unwrap().to_owned();
        let mut bundle = Bundle { config: config(), id: format!("test-{}", name.replace("shoal-", "")), dir };
        bundle.plays(words);
        bundle
    }

    /// Changes what its program plays.
    pub fn plays(&mut self, words: &str) {
        let words = words.split(' ').filter(|word| !word.is_empty());
        self.config["process"]["args"] = ["/payload", "payload"].into_iter().chain(words).collect();
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn rootfs(&self) -> PathBuf {
        self.dir.path().join("rootfs")
    }

    pub fn save(&self) {
        fs::write(self.dir.path().join("config.json"), self.config.to_string()).unwrap();
    }

    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command.args(["runtime", "--root"]).arg(self.dir.path().join("state")).args(words).stdin(Stdio::null());
        command
    }

    /// Runs a command on this container to its end.
    pub fn call(&self, words: &[&str]) -> Said {
        self.command(words).output().unwrap().into()
    }

    /// The same, and it must succeed. Returns what it said.
    #[track_caller]
    pub fn ok(&self, words: &[&str]) -> String {
        let said = self.call(words);
        assert_eq!(said.code, 0, "{words:?}: {said:?}");
        said.out
    }

    /// The same, and it must fail and say this.
    #[track_caller]
    pub fn fails(&self, words: &[&str], expected: &str) {
        let said = self.call(words);
        assert!(said.code != 0 && said.err.contains(expected), "{words:?} does not fail with {expected:?}: {said:?}");
    }

    /// Creates the container. Its output goes where the returned reader reads.
    #[track_caller]
    pub fn create(&self) -> Reader {
        self.create_with(&[])
    }

    #[track_caller]
    pub fn create_with(&self, options: &[&str]) -> Reader {
        self.save();
        let (reader, writer) = std::io::pipe().unwrap();
        let bundle = self.dir.path().to_str().unwrap();
        let words = [&["create", "--bundle", bundle], options, &[&self.id]].concat();
        let errors = self.dir.path().join("errors");
        let mut command = self.command(&words);
        let status = command.stdout(writer).stderr(fs::File::create(&errors).unwrap()).status().unwrap();
        drop(command);
        assert!(status.success(), "create: {}", fs::read_to_string(errors).unwrap());
        Reader(reader)
    }

    /// Runs it to its end: the exit code, what it said, and the runtime's complaints.
    pub fn run(&self) -> Said {
        self.save();
        self.call(&["run", "--bundle", self.dir.path().to_str().unwrap(), &self.id])
    }

    /// The same for one that must end well. Returns what it said.
    #[track_caller]
    pub fn runs(&self) -> String {
        let said = self.run();
        assert_eq!(said.code, 0, "{said:?}");
        said.out
    }

    /// Creating it must fail and say this, and leave nothing.
    #[track_caller]
    pub fn refused(&self, expected: &str) {
        self.save();
        self.fails(&["create", "--bundle", self.dir.path().to_str().unwrap(), &self.id], expected);
        assert_eq!(self.leftovers(), Vec::<String>::new());
    }

    pub fn state(&self) -> Value {
        serde_json::from_str(&self.ok(&["state", &self.id])).unwrap()
    }

    #[track_caller]
    pub fn until(&self, status: &str) {
        until(&format!("{} is {status}", self.id), || self.state()["status"] == status);
    }

    /// Everything of this container's that can be seen from outside.
    pub fn leftovers(&self) -> Vec<String> {
        let mut found = Vec::new();
        for mount in cgroup_mounts() {
            let dir = mount.join(format!("shoal.{}", self.id));
            if dir.exists() {
                found.push(format!("cgroup {}", dir.display()));
            }
        }
        for entry in fs::read_dir(self.dir.path().join("state")).into_iter().flatten().flatten() {
            found.push(format!("state {}", entry.path().display()));
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let ours = self.dir.path().display().to_string();
        found.extend(mounts.lines().filter(|line| line.contains(&ours)).map(|line| format!("mount {line}")));
        for process in fs::read_dir("/proc").unwrap().flatten().filter(|entry| entry.path().join("cmdline").exists()) {
            let words = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).replace('\0', " ");
            if words.contains(&ours) {
                found.push(format!("process {}: {words}", process.path().display()));
            }
        }
        found
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let said = self.call(&["delete", "--force", &self.id]);
        if said.code != 0 {
            println!("cannot remove {}: {said:?}", self.id);
        }
    }
}

/// The container's standard output.
pub struct Reader(pub std::io::PipeReader);

impl Reader {
    /// All of it, until everyone who writes to it has ended.
    pub fn all(mut self) -> String {
        let mut text = String::new();
        self.0.read_to_string(&mut text).unwrap();
        text
    }

    /// Waits for one line.
    pub fn line(&mut self) -> String {
        let mut line = Vec::new();
        let mut byte = [0u8; 1];
        while self.0.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }
}

pub fn cgroup_mounts() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields.filter(|f| f[2].starts_with("cgroup")).map(|f| PathBuf::from(f[1])).collect()
}

#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[track_caller]
pub fn has(text: &str, expected: &str) {
    assert!(text.contains(expected), "no {expected:?} in {text}");
}

/// The descriptor that comes over a console socket.
pub fn receive(stream: &std::os::unix::net::UnixStream) -> std::os::fd::OwnedFd {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0u8; 64];
    let mut parts = [std::io::IoSliceMut::new(&mut name)];
    recvmsg(stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let mut fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    fds.next().and_then(|mut fds| fds.next()).expect("a descriptor")
}

/// Ends a process, also when the test fails.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What engines usually ask for, without limits.
fn config() -> Value {
    let capabilities = ["CAP_KILL", "CAP_NET_BIND_SERVICE"];
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    let namespaces = ["pid", "network", "ipc", "uts", "mount", "cgroup"].map(|kind| json!({ "type": kind }));
    json!({
        "ociVersion": "1.2.0",
        "unknown": { "to": "the specification" },
        "process": {
            "user": { "uid": 0, "gid": 0 }, "cwd": "/", "env": ["PATH=/bin"],
            "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities }
        },
        "root": { "path": "rootfs" },
        "hostname": "bundle",
        "mounts": [
            mount("/proc", "proc", &[]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=64k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=64k"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "annotations": { "org.example.key": "value" },
        "linux": {
            "namespaces": namespaces,
            "maskedPaths": ["/proc/kcore", "/sys/firmware", "/proc/not-there"],
            "readonlyPaths": ["/proc/sys"]
        }
    })
}
