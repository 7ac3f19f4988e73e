//! One engine a test, in directories of its own; everything is removed again, also when the test fails.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use runtime::{ContainerConfig, EtcFiles, ExitStatus, LogOptions, LogStream, Runtime, RuntimeConfig, Signal};
use tempfile::TempDir;

static IMAGE: OnceLock<PathBuf> = OnceLock::new();
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Why these tests cannot run here.
pub fn possible() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("not root".to_owned());
    }
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !filesystems.contains("\toverlay") {
        return Err("the kernel has no overlayfs".to_owned());
    }
    if !fs::read_to_string("/proc/mounts").unwrap_or_default().contains(" cgroup") {
        return Err("no cgroup filesystem is mounted".to_owned());
    }
    Ok(())
}

/// A layer with this very binary as its only program.
pub fn image() -> &'static Path {
    IMAGE.get_or_init(|| {
        let dir = std::env::temp_dir().join(format!("shoal-runtime-image-{}", std::process::id()));
        fs::create_dir_all(dir.join("etc")).unwrap();
        fs::create_dir_all(dir.join("bin")).unwrap();
        fs::copy("/proc/self/exe", dir.join("payload")).unwrap();
        std::os::unix::fs::symlink("/payload", dir.join("bin/tool")).unwrap();
        fs::write(dir.join("bin/plain"), "no program").unwrap();
        fs::write(dir.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:100:101::/srv:/bin/sh\n").unwrap();
        fs::write(dir.join("etc/group"), "root:x:0:\nweb:x:101:\nlogs:x:200:web\n").unwrap();
        dir
    })
}

pub fn clean_up() {
    if let Some(dir) = IMAGE.get() {
        let _ = fs::remove_dir_all(dir);
    }
}

pub struct Fixture {
    pub config: RuntimeConfig,
    pub runtime: Option<Runtime>,
    pub tokio: tokio::runtime::Runtime,
    dir: TempDir,
}

impl Fixture {
    pub fn new() -> Fixture {
        Fixture::with_shim(std::env::current_exe().unwrap())
    }

    /// With a binary of the test's choice for the shims.
    pub fn with_shim(shim_exe: PathBuf) -> Fixture {
        Fixture::in_dir(tempfile::tempdir().unwrap(), shim_exe)
    }

    fn in_dir(dir: TempDir, shim_exe: PathBuf) -> Fixture {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let config = RuntimeConfig {
            data_dir: dir.path().join("data"),
            run_dir: dir.path().join("run"),
            engine_id: format!("test-{}-{number}", std::process::id()),
            shim_exe,
        };
        let mut fixture = Fixture { config, runtime: None, tokio: new_tokio(), dir };
        fixture.open();
        fixture
    }

    /// On a disk of its own, of so many bytes.
    pub fn on_small_disk(bytes: u64) -> (Fixture, SmallDisk) {
        let dir = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(format!("size={bytes}")).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", dir.path(), "tmpfs", flags, options.as_c_str()).unwrap();
        let disk = SmallDisk(dir.path().to_owned());
        (Fixture::in_dir(dir, std::env::current_exe().unwrap()), disk)
    }

    /// The daemon starts (again).
    pub fn open(&mut self) {
        self.runtime = Some(self.tokio.block_on(Runtime::open(self.config.clone())).unwrap());
    }

    /// The daemon dies: its tasks, its connections, everything that it had in memory.
    pub fn die(&mut self) {
        self.runtime = None;
        std::mem::replace(&mut self.tokio, new_tokio()).shutdown_background();
    }

    pub fn runtime(&self) -> Runtime {
        self.runtime.clone().unwrap()
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A container that plays these words.
    pub fn config(&self, id: &str, words: &str) -> ContainerConfig {
        let words = words.split(' ').filter(|word| !word.is_empty()).map(str::to_owned);
        ContainerConfig {
            id: id.to_owned(),
            layers: vec![image().to_owned()],
            args: ["/payload".to_owned(), "payload".to_owned()].into_iter().chain(words).collect(),
            files: EtcFiles { hosts: "127.0.0.1 localhost\n".into(), resolv_conf: "nameserver 127.0.0.11\n".into() },
            ..ContainerConfig::default()
        }
    }

    /// Creates and starts. Returns the pid.
    pub fn start(&self, config: ContainerConfig) -> u32 {
        let (runtime, id) = (self.runtime(), config.id.clone());
        self.tokio.block_on(async {
            let created = runtime.create(config).await.unwrap_or_else(|error| panic!("create: {}", chain(&error)));
            runtime.start(&id).await.unwrap_or_else(|error| panic!("start: {}", chain(&error)));
            created.pid
        })
    }

    pub fn wait(&self, id: &str) -> ExitStatus {
        let runtime = self.runtime();
        self.tokio.block_on(async {
            tokio::time::timeout(Duration::from_secs(20), runtime.wait(id)).await.expect("it ends").unwrap()
        })
    }

    /// Runs it to its end. Returns how it ended, and its standard output.
    pub fn run(&self, config: ContainerConfig) -> (ExitStatus, String) {
        let id = config.id.clone();
        self.start(config);
        let exit = self.wait(&id);
        (exit, self.output(&id))
    }

    /// Its standard output so far.
    pub fn output(&self, id: &str) -> String {
        let records = self.logs(id, LogOptions { stderr: false, ..LogOptions::default() });
        let bytes: Vec<u8> = records.into_iter().flat_map(|(_, data)| data).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub fn logs(&self, id: &str, options: LogOptions) -> Vec<(LogStream, Vec<u8>)> {
        let runtime = self.runtime();
        self.tokio.block_on(async {
            let mut receiver = runtime.logs(id, options).await.unwrap();
            let mut records = Vec::new();
            while let Some(record) = receiver.recv().await {
                records.push((record.stream, record.data.to_vec()));
            }
            records
        })
    }

    /// Log records of it that were lost.
    pub fn dropped(&self, id: &str) -> u64 {
        self.tokio.block_on(self.runtime().dropped_log_records(id)).unwrap()
    }

    pub fn signal(&self, id: &str, signal: Signal) {
        self.tokio.block_on(self.runtime().signal(id, signal)).unwrap();
    }

    /// Waits until its output has this.
    pub fn until_output(&self, id: &str, text: &str) {
        until(&format!("{text:?} in the output of {id}"), || self.output(id).contains(text));
    }

    /// A file of the container's cgroup, in whichever hierarchy has it.
    pub fn cgroup_file(&self, id: &str, file: &str) -> Option<String> {
        cgroup_mounts().into_iter().find_map(|mount| {
            let dir = mount.join(format!("shoal-{}", self.config.engine_id)).join("task").join(id);
            fs::read_to_string(dir.join(file)).ok().map(|text| text.trim().to_owned())
        })
    }

    /// Everything of this engine's that can be seen from outside.
    pub fn leftovers(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for mount in cgroup_mounts() {
            let engine = mount.join(format!("shoal-{}", self.config.engine_id));
            for entry in fs::read_dir(engine.join("task")).into_iter().flatten().flatten() {
                if !entry.path().is_dir() {
                    continue;
                }
                found.insert(format!("cgroup {}", entry.path().display()));
            }
            let shims = fs::read_to_string(engine.join("shims/cgroup.procs")).unwrap_or_default();
            found.extend(shims.lines().map(|pid| format!("shim {pid}")));
        }
        for dir in [self.config.data_dir.join("containers"), self.config.run_dir.join("shims")] {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                found.insert(format!("file {}", entry.path().display()));
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let ours = self.dir.path().display().to_string();
        found.extend(mounts.lines().filter(|line| line.contains(&ours)).map(|line| format!("mount {line}")));
        found
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if self.runtime.is_none() {
            self.runtime = self.tokio.block_on(Runtime::open(self.config.clone())).ok();
        }
        if let Some(runtime) = self.runtime.take()
            && let Err(error) = self.tokio.block_on(runtime.destroy())
        {
            println!("destroy: {}", chain(&error));
        }
    }
}

/// A tmpfs, unmounted when it is dropped: after the fixture on it, so it must be declared before.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    /// Takes all the room that is left.
    pub fn fill(&self) {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(self.filler()).unwrap();
        while std::io::Write::write(&mut file, &[7; 4096]).is_ok_and(|count| count > 0) {}
    }

    pub fn free(&self) {
        fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
        let _ = fs::remove_dir(&self.0);
    }
}

fn new_tokio() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

pub fn cgroup_mounts() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let of_cgroups = mounts.lines().filter(|line| line.split(' ').nth(2).is_some_and(|fs| fs.starts_with("cgroup")));
    of_cgroups.filter_map(|line| line.split(' ').nth(1).map(PathBuf::from)).collect()
}

/// Waits for a condition, not for a time.
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// An error with its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Processes that were given a path below this one on their command line: shims, and daemons as processes.
pub fn processes_of(path: &Path) -> Vec<u32> {
    let wanted = path.display().to_string();
    let processes = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let words = fs::read(entry.path().join("cmdline")).ok()?;
        words.split(|byte| *byte == 0).any(|word| word.starts_with(wanted.as_bytes())).then_some(pid)
    });
    processes.filter(|pid| *pid != std::process::id()).collect()
}

/// Whether the process exists and is not a zombie.
pub fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}
