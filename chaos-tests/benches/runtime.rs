//! What one container costs: `shoal runtime` beside `crun` and `runc`, on the same bundle, by turns, in the same run.
//!
//! The bundle has busybox as its only program and the namespaces, mounts and masks of `runc spec`. crun 1.8 refuses a
//! host on which controllers are in cgroup v1 and v2 at once, so all three run in a mount namespace in which only
//! one generation is mounted, where the host has both.

use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use chaos_tests::bench::{self, Argument, Report, Samples};

const HELP: &str = "\
cargo bench -p chaos-tests --bench runtime -- [--runs N] [--containers N] [--at-once N] [--shoal FILE]

  --runs 100          containers made one at a time, of each runtime
  --containers 200    containers started in parallel, of each runtime
  --at-once 8         how many of them at a time
  --shoal FILE        the binary to measure instead of the one built for this

Needs root and busybox (static). Beside it stand crun and runc, if they are installed.";

struct Options {
    runs: usize,
    containers: usize,
    at_once: usize,
    shoal: PathBuf,
}

/// How often the parallel starts are measured.
const ROUNDS: usize = 3;

fn main() -> ExitCode {
    let shoal = PathBuf::from(env!("CARGO_BIN_EXE_chaos-shoal"));
    let defaults = Options { runs: 100, containers: 200, at_once: 8, shoal };
    let take = |options: &mut Options, argument: &mut Argument<'_>| {
        match argument.name().as_str() {
            "--runs" => options.runs = argument.count()?,
            "--containers" => options.containers = argument.count()?,
            "--at-once" => options.at_once = argument.count()?,
            "--shoal" => options.shoal = argument.path()?,
            _ => return argument.unknown(),
        }
        Ok(())
    };
    bench::run(HELP, defaults, take, |options| {
        bench::one_cgroup_generation()?;
        measure(options)
    })
}

/// One of the runtimes.
struct Runtime {
    name: &'static str,
    program: PathBuf,
    /// What stands before the command.
    first: Vec<String>,
    root: PathBuf,
    whole: Samples,
    steps: Samples,
    started: Samples,
    parallel: Vec<f64>,
}

impl Runtime {
    fn new(name: &'static str, program: PathBuf, first: &[&str], dir: &Path) -> Runtime {
        let first = first.iter().map(|word| (*word).to_owned()).collect();
        let root = dir.join(format!("state-{name}"));
        let (whole, steps, started) = Default::default();
        Runtime { name, program, first, root, whole, steps, started, parallel: Vec::new() }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.first).arg("--root").arg(&self.root).args(words);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    fn run(&self, words: &[&str]) -> Result<()> {
        let output = self.command(words).output().with_context(|| format!("cannot run {}", self.name))?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{} {}: {said}", self.name, words.join(" "));
        Ok(())
    }

    /// `run`: one command for a whole life.
    fn whole_life(&mut self, bundle: &str, id: &str) -> Result<()> {
        let begin = Instant::now();
        self.run(&["run", "--bundle", bundle, id])?;
        self.whole.push(begin.elapsed());
        Ok(())
    }

    /// `create`, `start`, the end, `delete`; and the time from the call of `start` until the program's first output.
    fn by_steps(&mut self, bundle: &str, id: &str) -> Result<()> {
        let begin = Instant::now();
        let (mut output, theirs) = std::io::pipe()?;
        let pid_file = self.root.join(format!("{id}.pid"));
        let pid_path = pid_file.to_str().context("a path in UTF-8")?;
        let mut create = self.command(&["create", "--bundle", bundle, "--pid-file", pid_path, id]);
        // crun and runc pass their standard error on as well, and nobody closes it before the container's end.
        let created = create.stdout(theirs).stderr(Stdio::null()).status()?;
        drop(create);
        ensure!(created.success(), "{} create failed", self.name);
        let start = Instant::now();
        self.run(&["start", id])?;
        let mut byte = [0u8; 1];
        output.read_exact(&mut byte).with_context(|| format!("{}: the program said nothing", self.name))?;
        self.started.push(start.elapsed());
        // All ends of the pipe are closed when the program has ended.
        std::io::copy(&mut output, &mut std::io::sink())?;
        self.delete(id)?;
        self.steps.push(begin.elapsed());
        fs::remove_file(pid_file)?;
        Ok(())
    }

    /// The pipe's end comes a little before the process's.
    fn delete(&self, id: &str) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match self.run(&["delete", id]) {
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => {}
                Ok(()) => return Ok(()),
            }
        }
    }

    /// Whole lives, several at a time. Returns how many were started in a second.
    fn in_parallel(&self, bundle: &str, containers: usize, at_once: usize) -> Result<f64> {
        let next = AtomicUsize::new(0);
        let begin = Instant::now();
        std::thread::scope(|scope| {
            let work = || -> Result<()> {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= containers {
                        return Ok(());
                    }
                    self.run(&["run", "--bundle", bundle, &format!("par{number}")])?;
                }
            };
            let threads: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
            threads.into_iter().try_for_each(|thread| match thread.join() {
                Ok(done) => done,
                Err(_) => bail!("a thread has panicked"),
            })
        })?;
        Ok(containers as f64 / begin.elapsed().as_secs_f64())
    }
}

/// A bundle whose program says one word and ends.
fn make_bundle(dir: &Path, name: &str, args: &[&str]) -> Result<String> {
    let bundle = dir.join(name);
    let rootfs = bundle.join("rootfs");
    for part in ["bin", "proc", "sys", "dev"] {
        fs::create_dir_all(rootfs.join(part))?;
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find(|path| Path::new(path).is_file());
    fs::copy(busybox.context("there is no busybox")?, rootfs.join("bin/busybox"))?;
    for tool in ["true", "echo"] {
        symlink("busybox", rootfs.join("bin").join(tool))?;
    }
    // The bundle of `runc spec`, in the version that all three know.
    let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    let mount = |destination: &str, kind: &str, options: &[&str]| serde_json::json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    let namespaces = ["pid", "network", "ipc", "uts", "mount"].map(|kind| serde_json::json!({ "type": kind }));
    let config = serde_json::json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false, "user": { "uid": 0, "gid": 0 }, "args": args, "cwd": "/",
            "env": ["PATH=/bin", "TERM=xterm"],
            "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "bench",
        "mounts": [
            mount("/proc", "proc", &[]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"])
        ],
        "linux": {
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": namespaces,
            "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    });
    fs::write(bundle.join("config.json"), config.to_string())?;
    Ok(bundle.to_str().context("a path in UTF-8")?.to_owned())
}

fn measure(options: &Options) -> Result<Report> {
    let dir = tempfile::Builder::new().prefix("shoal-bench-runtime-").tempdir()?;
    let silent = make_bundle(dir.path(), "true", &["/bin/true"])?;
    let speaking = make_bundle(dir.path(), "echo", &["/bin/echo", "x"])?;
    let mut runtimes = vec![Runtime::new("shoal", options.shoal.clone(), &["runtime"], dir.path())];
    for name in ["crun", "runc"] {
        if let Some(program) = bench::installed(name) {
            let peer = Runtime::new(name, program, &[], dir.path());
            fs::create_dir_all(&peer.root)?;
            match peer.run(&["run", "--bundle", &silent, "probe"]) {
                Ok(()) => runtimes.push(peer),
                Err(error) => bench::say(format_args!("{name} does not run here: {error:#}")),
            }
        }
    }
    fs::create_dir_all(&runtimes[0].root)?;
    for number in 0..options.runs + 3 {
        for runtime in &mut runtimes {
            runtime.whole_life(&silent, &format!("run{number}"))?;
            runtime.by_steps(&speaking, &format!("step{number}"))?;
            if number == 2 {
                // The first ones have warmed up what all use.
                (runtime.whole, runtime.steps, runtime.started) = Default::default();
            }
        }
    }
    for _ in 0..ROUNDS {
        for runtime in &mut runtimes {
            let rate = runtime.in_parallel(&silent, options.containers, options.at_once)?;
            runtime.parallel.push(rate);
        }
    }
    Ok(report(options, &runtimes))
}

fn report(options: &Options, runtimes: &[Runtime]) -> Report {
    let millis = |samples: &Samples| {
        let at = |percent| samples.percentile(percent).as_secs_f64() * 1000.0;
        format!("p50 {:.2} ms, p99 {:.2} ms, min {:.2} ms", at(50), at(99), at(0))
    };
    let starts = |rates: &[f64]| {
        let mut sorted = rates.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
    };
    let (own, peers) = (&runtimes[0], &runtimes[1..]);
    let crun = peers.iter().find(|peer| peer.name == "crun");
    let beside = |show: &dyn Fn(&Runtime) -> String| {
        let shown: Vec<String> = peers.iter().map(|peer| format!("{}: {}", peer.name, show(peer))).collect();
        if shown.is_empty() { "neither crun nor runc runs here".to_owned() } else { shown.join("; ") }
    };
    let mut report = Report::new(format!(
        "containers one at a time ({} each), and {} at {} at a time",
        options.runs, options.containers, options.at_once
    ));
    type Row = (&'static str, fn(&Runtime) -> &Samples);
    let rows: [Row; 3] = [
        ("run: create, start, exit, delete in one command", |runtime| &runtime.whole),
        ("create, start, exit, delete, a command each", |runtime| &runtime.steps),
        ("start to the program's first output", |runtime| &runtime.started),
    ];
    for (what, samples) in rows {
        let peer = beside(&|peer: &Runtime| millis(samples(peer)));
        let measured = millis(samples(own));
        match crun {
            Some(crun) => {
                let met = samples(own).percentile(50) < samples(crun).percentile(50);
                report.target(what, "below crun's p50", measured, peer, met);
            }
            None => report.note(what, measured, peer),
        }
    }
    let show = |runtime: &Runtime| format!("{:.0}/s", starts(&runtime.parallel));
    let peer = beside(&show);
    match crun {
        Some(crun) => {
            let met = starts(&own.parallel) >= starts(&crun.parallel);
            report.target("parallel run, median of 3 rounds", "at least crun's", show(own), peer, met);
        }
        None => report.note("parallel run, median of 3 rounds", show(own), peer),
    }
    report
}
