//! What a running container costs in memory, and how long Shoal's own containers take from create to delete: the
//! runtime as the daemon uses it, with the release's binary as the shims, beside crun and runc on the same root.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use chaos_tests::bench::{self, Argument, Report, Samples};
use runtime::{ContainerConfig, Runtime, RuntimeConfig};
use tokio::sync::Semaphore;

const HELP: &str = "\
cargo bench -p chaos-tests --bench shim -- [--memory N] [--sequential N] [--parallel N] [--at-a-time N]

  --memory 200      containers that sleep while the memory of their shims is read
  --sequential 100  containers from create to delete, one after another
  --parallel 200    the same, several at a time
  --at-a-time 8     how many

Needs root and a static busybox (busybox-static). Beside it run crun and runc, if they are installed; what is said of
containerd-shim was measured once, with 200 tasks of Docker Swarm on the machine that README's figures are from.";

/// Mebibytes a shim, from the table of goals in docs/containers.md.
const PSS_MIB: f64 = 0.6;
const RSS_MIB: f64 = 3.0;
/// containerd 1.6.20's shims at 200 tasks: RSS, PSS, private.
const CONTAINERD_SHIM: [f64; 3] = [12.9, 2.5, 2.4];
/// A shim has settled by then.
const QUIET: Duration = Duration::from_secs(2);

struct Options {
    memory: usize,
    sequential: usize,
    parallel: usize,
    at_a_time: usize,
}

fn main() -> ExitCode {
    let defaults = Options { memory: 200, sequential: 100, parallel: 200, at_a_time: 8 };
    let take = |options: &mut Options, argument: &mut Argument<'_>| {
        match argument.name().as_str() {
            "--memory" => options.memory = argument.number()?,
            "--sequential" => options.sequential = argument.number()?,
            "--parallel" => options.parallel = argument.number()?,
            "--at-a-time" => options.at_a_time = argument.count()?,
            _ => return argument.unknown(),
        }
        Ok(())
    };
    bench::run_async(HELP, defaults, take, measure)
}

async fn measure(options: &Options) -> Result<Report> {
    let dir = tempfile::tempdir()?;
    let root = dir.path().join("image");
    make_root(&root)?;
    let runtime = Runtime::open(RuntimeConfig {
        data_dir: dir.path().join("data"),
        run_dir: dir.path().join("run"),
        engine_id: format!("bench-{}", std::process::id()),
        shim_exe: env!("CARGO_BIN_EXE_chaos-shoal").into(),
    })
    .await?;
    let mut report = Report::new("shims: memory, and containers from create to delete");
    let outcome = all(options, &runtime, &root, dir.path(), &mut report).await;
    runtime.destroy().await?;
    outcome.map(|()| report)
}

async fn all(options: &Options, runtime: &Runtime, root: &Path, dir: &Path, report: &mut Report) -> Result<()> {
    if options.memory > 0 {
        memory(options.memory, runtime, root, report).await?;
    }
    let peers = Peers::new(dir, root)?;
    if options.sequential > 0 {
        sequential(options.sequential, runtime, root, &peers, report).await?;
    }
    if options.parallel > 0 {
        parallel(options, runtime, root, &peers, report).await?;
    }
    Ok(())
}

/// A root with busybox and a few names for it.
fn make_root(root: &Path) -> Result<()> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    let Some(busybox) = busybox else { bail!("there is no busybox here (busybox-static)") };
    for name in ["bin", "proc", "dev", "sys", "tmp", "etc"] {
        fs::create_dir_all(root.join(name))?;
    }
    fs::copy(busybox, root.join("bin/busybox"))?;
    for name in ["true", "sleep", "sh"] {
        symlink("busybox", root.join("bin").join(name))?;
    }
    Ok(())
}

fn config(root: &Path, id: String, args: &[&str]) -> ContainerConfig {
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    ContainerConfig { id, layers: vec![root.to_owned()], args, ..ContainerConfig::default() }
}

async fn memory(count: usize, runtime: &Runtime, root: &Path, report: &mut Report) -> Result<()> {
    let mut shims = Vec::new();
    for number in 0..count {
        let id = format!("m{number}");
        let created = runtime.create(config(root, id.clone(), &["/bin/sleep", "100000"])).await?;
        runtime.start(&id).await?;
        shims.push(parent(created.pid).context("a container has ended")?);
    }
    tokio::time::sleep(QUIET).await;
    // As smaps_rollup has them; private is what the machine would get back.
    let fields: [(&str, &[&str], Option<f64>, f64); 3] = [
        ("RSS", &["Rss"], Some(RSS_MIB), CONTAINERD_SHIM[0]),
        ("PSS", &["Pss"], Some(PSS_MIB), CONTAINERD_SHIM[1]),
        ("private", &["Private_Clean", "Private_Dirty"], None, CONTAINERD_SHIM[2]),
    ];
    for (name, parts, target, peer) in fields {
        let mut each = Vec::new();
        for shim in &shims {
            each.push(mebibytes(*shim, parts)?);
        }
        each.sort_by(f64::total_cmp);
        let (middle, worst) = (each[each.len() / 2], each[each.len() - 1]);
        let what = format!("{name} of a shim at {count} containers, median and worst");
        let measured = format!("{middle:.2} and {worst:.2} MiB");
        let peer = format!("containerd-shim {peer} MiB (quoted)");
        match target {
            Some(target) => report.target(&what, &format!("≤ {target} MiB"), measured, peer, worst <= target),
            None => report.note(&what, measured, peer),
        }
    }
    for number in 0..count {
        runtime.delete(&format!("m{number}")).await?;
    }
    Ok(())
}

fn parent(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

fn mebibytes(pid: u32, parts: &[&str]) -> Result<f64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("a shim has ended")?;
    let part = |name: &&str| {
        let line = rollup.lines().find_map(|line| line.strip_prefix(*name)?.strip_prefix(':'));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok()).unwrap_or(0.0)
    };
    Ok(parts.iter().map(part).sum::<f64>() / 1024.0)
}

/// Create, start, wait for the end, delete; how long each of them took.
async fn life(runtime: &Runtime, root: &Path, id: String) -> Result<[Duration; 4]> {
    let mut times = [Duration::ZERO; 4];
    let mut begin = Instant::now();
    let mut lap = |number: usize| {
        times[number] = begin.elapsed();
        begin = Instant::now();
    };
    runtime.create(config(root, id.clone(), &["/bin/true"])).await?;
    lap(0);
    runtime.start(&id).await?;
    lap(1);
    let exit = runtime.wait(&id).await?;
    lap(2);
    runtime.delete(&id).await?;
    lap(3);
    if exit.code != 0 {
        bail!("/bin/true ended with {exit:?}")
    }
    Ok(times)
}

async fn sequential(count: usize, runtime: &Runtime, root: &Path, peers: &Peers, report: &mut Report) -> Result<()> {
    let mut whole = Samples::default();
    let mut steps = [Samples::default(), Samples::default(), Samples::default(), Samples::default()];
    // The first ones find nothing in any cache.
    for number in 0..5 {
        life(runtime, root, format!("w{number}")).await?;
    }
    for number in 0..count {
        let times = life(runtime, root, format!("s{number}")).await?;
        whole.push(times.iter().sum());
        for (samples, time) in steps.iter_mut().zip(times) {
            samples.push(time);
        }
    }
    let text = |samples: &Samples| format!("p50 {:.1} ms, p99 {:.1} ms", millis(samples, 50), millis(samples, 99));
    let beside = peers.one_by_one(count)?;
    report.note("create, start, exit, delete of /bin/true, one at a time", text(&whole), beside);
    for (name, samples) in ["create", "start", "until the exit is known", "delete"].iter().zip(&steps) {
        report.note(&format!("- {name}"), text(samples), "-");
    }
    Ok(())
}

fn millis(samples: &Samples, percent: u32) -> f64 {
    samples.percentile(percent).as_secs_f64() * 1e3
}

async fn parallel(options: &Options, runtime: &Runtime, root: &Path, peers: &Peers, report: &mut Report) -> Result<()> {
    let slots = Arc::new(Semaphore::new(options.at_a_time));
    let mut lives = tokio::task::JoinSet::new();
    let begin = Instant::now();
    for number in 0..options.parallel {
        let (slots, runtime, root) = (Arc::clone(&slots), runtime.clone(), root.to_owned());
        lives.spawn(async move {
            let _slot = slots.acquire().await?;
            life(&runtime, &root, format!("p{number}")).await
        });
    }
    while let Some(life) = lives.join_next().await {
        life??;
    }
    let rate = options.parallel as f64 / begin.elapsed().as_secs_f64();
    let what = format!("{} containers, {} at a time", options.parallel, options.at_a_time);
    report.note(&what, format!("{rate:.0}/s"), peers.at_once(options.parallel, options.at_a_time)?);
    Ok(())
}

/// The runtimes that are installed, with a bundle that asks for what Shoal's containers have.
struct Peers {
    installed: Vec<&'static str>,
    bundle: PathBuf,
    state: PathBuf,
}

impl Peers {
    fn new(dir: &Path, root: &Path) -> Result<Peers> {
        let bundle = dir.join("bundle");
        fs::create_dir_all(&bundle)?;
        let namespaces = ["pid", "mount", "uts", "ipc", "network"].map(|kind| serde_json::json!({ "type": kind }));
        let config = serde_json::json!({
            "ociVersion": "1.0.2",
            "root": { "path": root },
            "process": { "args": ["/bin/true"], "cwd": "/", "user": { "uid": 0, "gid": 0 }, "env": ["PATH=/bin"] },
            "hostname": "bench",
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs" },
                { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"] },
            ],
            "linux": { "namespaces": namespaces, "resources": { "devices": [{ "allow": true, "access": "rwm" }] } },
        });
        fs::write(bundle.join("config.json"), config.to_string())?;
        let found = |name: &&str| Command::new(name).arg("--version").stdout(Stdio::null()).status().is_ok();
        let installed = ["crun", "runc"].into_iter().filter(|name| found(name)).collect();
        Ok(Peers { installed, bundle, state: dir.join("peers") })
    }

    /// Milliseconds a container, in the mean.
    fn one_by_one(&self, count: usize) -> Result<String> {
        self.each(count, 1, |took| format!("{:.1} ms", took.as_secs_f64() * 1e3 / count as f64))
    }

    fn at_once(&self, count: usize, at_a_time: usize) -> Result<String> {
        self.each(count, at_a_time, |took| format!("{:.0}/s", count as f64 / took.as_secs_f64()))
    }

    fn each(&self, count: usize, at_a_time: usize, show: impl Fn(Duration) -> String) -> Result<String> {
        let mut shown = Vec::new();
        for name in &self.installed {
            shown.push(match self.run(name, count, at_a_time)? {
                Some(took) => format!("{name} {}", show(took)),
                None => format!("{name} fails here"),
            });
        }
        Ok(if shown.is_empty() { "neither crun nor runc is installed".to_owned() } else { shown.join(", ") })
    }

    /// In a mount namespace without the v2 half of a hybrid host, which crun refuses.
    fn run(&self, name: &str, count: usize, at_a_time: usize) -> Result<Option<Duration>> {
        let script = "umount -l /sys/fs/cgroup/unified 2>/dev/null; \
            seq \"$2\" | xargs -P \"$3\" -I{} \"$1\" --root \"$4\" run --bundle \"$5\" shoal-bench-$$-{}";
        let begin = Instant::now();
        let status = Command::new("unshare")
            .args(["--mount", "sh", "-c", script, "sh", name, &count.to_string(), &at_a_time.to_string()])
            .args([&self.state, &self.bundle])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .context("unshare")?;
        Ok(status.success().then(|| begin.elapsed()))
    }
}
