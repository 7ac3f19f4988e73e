//! How fast a host gets an image: an image of 300 MB in five layers, half of it compressible, from a registry on
//! loopback into the store, unpacked and on disk; beside it `skopeo copy` and `umoci unpack` of the same image, which
//! end with the same files and do not wait for the disk. Then an image that shares four of its five layers.
//!
//! Each pull is a process of its own with an empty store, so that its largest resident size is its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use chaos_tests::bench::{self, Argument, Report, Samples};
use runtime::image::registry::{Credentials, Registries, RegistrySettings};
use runtime::image::{Digest, ImageStore, Limits, Reference};
use serde_json::json;

const HELP: &str = "\
cargo bench -p chaos-tests --bench pulls -- [--runs N] [--mb N]

  --runs 3      pulls of each, one after the other, Shoal's and the peer's in turns
  --mb 300      size of the image, unpacked

Needs root and docker-registry; skopeo and umoci for the comparison.";

const LAYERS: usize = 5;
const MB: usize = 1_000_000;
/// What a process is told that pulls: the name, and the store's directory.
const CHILD: &str = "SHOAL_BENCH_PULL";

struct Options {
    runs: usize,
    mb: usize,
}

fn main() -> ExitCode {
    if let Ok(told) = std::env::var(CHILD) {
        let (said, code) = match pull(&told) {
            Ok(said) => (said, ExitCode::SUCCESS),
            Err(error) => (format!("{error:#}"), ExitCode::FAILURE),
        };
        bench::say(said);
        return code;
    }
    let take = |options: &mut Options, argument: &mut Argument<'_>| {
        match argument.name().as_str() {
            "--runs" => options.runs = argument.count()?,
            "--mb" => options.mb = argument.count()?,
            _ => return argument.unknown(),
        }
        Ok(())
    };
    bench::run(HELP, Options { runs: 3, mb: 300 }, take, measure)
}

fn measure(options: &Options) -> Result<Report> {
    let dir = tempfile::Builder::new().prefix("shoal-bench-images-").tempdir()?;
    let registry = Registry::start(dir.path())?;
    let third = options.mb / 3;
    let large = layers(options.mb, 1);
    let mut sister = large[..LAYERS - 1].to_vec();
    sister.extend(layers(options.mb, 2).pop());
    let maker = dir.path().join("maker");
    let fifth = push(&maker, &registry.addr, "bench/image", &large)?;
    push(&maker, &registry.addr, "bench/sister", &sister)?;
    push(&maker, &registry.addr, "bench/small", &layers(third, 3))?;
    std::fs::remove_dir_all(&maker)?;

    let tools = ["skopeo", "umoci"].iter().all(|tool| Command::new(tool).arg("--version").output().is_ok());
    let (mut ours, mut theirs, mut parts) =
        (Samples::default(), Samples::default(), (Samples::default(), Samples::default()));
    let mut resident = 0;
    for run in 0..options.runs {
        let store = dir.path().join(format!("store-{run}"));
        let pulled = child(&registry.addr, "bench/image", &store)?;
        ours.push(pulled.time);
        resident = resident.max(pulled.resident_kib);
        std::fs::remove_dir_all(&store)?;
        if tools {
            let (copied, unpacked) = peer(dir.path(), &registry.addr)?;
            theirs.push(copied + unpacked);
            parts.0.push(copied);
            parts.1.push(unpacked);
        }
    }
    let mut small = 0;
    for run in 0..options.runs {
        let store = dir.path().join(format!("small-{run}"));
        small = small.max(child(&registry.addr, "bench/small", &store)?.resident_kib);
        std::fs::remove_dir_all(&store)?;
    }
    let shared = shared(dir.path(), &registry.addr)?;

    let mut report =
        Report::new(format!("an image of {} MB in {LAYERS} layers, from a registry on loopback", options.mb));
    let median = |samples: &Samples| samples.percentile(50).as_secs_f64();
    if tools {
        let factor = median(&theirs) / median(&ours);
        let peer = format!("{theirs} (copy {:.2} s, unpack {:.2} s)", median(&parts.0), median(&parts.1));
        report.target(
            "pull and unpack, to disk",
            "≥ 2 × faster",
            format!("{ours}: {factor:.1} ×"),
            peer,
            factor >= 2.0,
        );
    } else {
        report.note("pull and unpack, to disk", &ours, "skopeo or umoci is not installed");
    }
    let rate = options.mb as f64 / median(&ours);
    report.note("unpacked per second", format!("{rate:.0} MB"), "-");
    let grows = resident as f64 / small as f64;
    report.target(
        &format!("largest resident size, {} and {third} MB", options.mb),
        "constant (≤ 1.2 ×)",
        format!("{:.1} and {:.1} MiB", resident as f64 / 1024.0, small as f64 / 1024.0),
        "-",
        grows <= 1.2,
    );
    // The manifest, the configuration and what HTTP adds.
    let most = fifth + 64_000;
    let mb = |bytes: u64| format!("{:.2} MB", bytes as f64 / 1e6);
    report.target(
        "an image that shares 4 of 5 layers: fetched",
        &format!("only the fifth ({})", mb(fifth)),
        mb(shared.fetched),
        "-",
        shared.fetched <= most,
    );
    let unpacked = (options.mb / LAYERS * MB) as u64;
    report.target(
        "the same: written (as it came, and unpacked)",
        &format!("only the fifth ({})", mb(fifth + unpacked)),
        format!("{}, {} new layer", mb(shared.written), shared.layers),
        "-",
        shared.layers == 1 && shared.written <= most + unpacked + unpacked / 20,
    );
    Ok(report)
}

/// A layer as a tar: files of a megabyte and of some kilobytes, of which every other one is noise.
fn layers(mb: usize, seed: u64) -> Vec<Vec<u8>> {
    (0..LAYERS)
        .map(|nth| {
            let mut state = seed * 1000 + nth as u64 + 1;
            let mut tar = tar::Builder::new(Vec::new());
            let (mut left, mut files) = (mb * MB / LAYERS, 0);
            while left > 0 {
                let size = if files % 40 == 0 { MB } else { 25_000 }.min(left);
                let content = if files % 2 == 0 { noise(size, &mut state) } else { words(size, &mut state) };
                let mut header = tar::Header::new_gnu();
                header.set_size(size as u64);
                header.set_mode(0o644);
                header.set_uid(0);
                header.set_gid(0);
                header.set_mtime(1_700_000_000);
                // Writing into memory cannot fail, and the name is short.
                let _ =
                    tar.append_data(&mut header, format!("layer{nth}/dir{}/file{files}", files / 100), &content[..]);
                left -= size;
                files += 1;
            }
            tar.into_inner().unwrap_or_default()
        })
        .collect()
}

fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

fn noise(size: usize, state: &mut u64) -> Vec<u8> {
    std::iter::repeat_with(|| next(state) as u8).take(size).collect()
}

/// Text of few words, which gzip makes some five times smaller.
fn words(size: usize, state: &mut u64) -> Vec<u8> {
    let mut text = Vec::with_capacity(size + 16);
    while text.len() < size {
        let word = next(state) % 4096;
        text.extend_from_slice(format!("word{word:x} ").as_bytes());
    }
    text.truncate(size);
    text
}

/// Puts an image into the registry; answers the length of its last layer as it is fetched.
fn push(maker: &Path, addr: &str, repository: &str, layers: &[Vec<u8>]) -> Result<u64> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        archive.append_data(&mut header, name, content)
    };
    let mut names = Vec::new();
    let mut last = 0;
    for (nth, layer) in layers.iter().enumerate() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(layer)?;
        let gzip = gzip.finish()?;
        last = gzip.len() as u64;
        names.push(format!("layer{nth}.tar.gz"));
        add(&names[nth], &gzip)?;
    }
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {"Cmd": ["/x"]},
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|l| Digest::of(l).to_string()).collect::<Vec<_>>()},
    })
    .to_string();
    add("config.json", config.as_bytes())?;
    let name = format!("{addr}/{repository}:1");
    add(
        "manifest.json",
        json!([{"Config": "config.json", "RepoTags": [name], "Layers": names}]).to_string().as_bytes(),
    )?;
    let archive = archive.into_inner()?;
    let registries = registries(maker, addr)?;
    registries.store().load(&archive[..])?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(registries.push(&Reference::parse(&name)?, &Credentials::Anonymous, None))?;
    Ok(last)
}

fn registries(dir: &Path, addr: &str) -> Result<Registries> {
    let store = ImageStore::open(dir, Limits::default())?;
    let settings = RegistrySettings { insecure: vec![addr.to_owned()], ..RegistrySettings::default() };
    Ok(Registries::new(store, settings)?)
}

/// What a process that pulled says of itself.
struct Pulled {
    time: Duration,
    resident_kib: u64,
}

/// Pulls in a process of its own.
fn child(addr: &str, repository: &str, store: &Path) -> Result<Pulled> {
    let output = Command::new(std::env::current_exe()?)
        .env(CHILD, format!("{addr} {repository} {}", store.display()))
        .stderr(Stdio::inherit())
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "the pull failed: {said}");
    let mut numbers = said.split_whitespace().map(str::parse::<u64>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(micros)), Some(Ok(resident_kib))) => Ok(Pulled { time: Duration::from_micros(micros), resident_kib }),
        _ => bail!("the pull said {said:?}"),
    }
}

/// What the process does: microseconds and KiB.
fn pull(told: &str) -> Result<String> {
    let mut words = told.splitn(3, ' ');
    let (Some(addr), Some(repository), Some(store)) = (words.next(), words.next(), words.next()) else {
        bail!("told {told:?}");
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let registries = registries(Path::new(store), addr)?;
    let reference = Reference::parse(&format!("{addr}/{repository}:1"))?;
    let began = Instant::now();
    runtime.block_on(registries.pull(&reference, None, &Credentials::Anonymous, None))?;
    let time = began.elapsed();
    let status = std::fs::read_to_string("/proc/self/status")?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let resident = resident.trim().trim_end_matches(" kB");
    Ok(format!("{} {resident}", time.as_micros()))
}

/// `skopeo copy` and `umoci unpack`.
fn peer(dir: &Path, addr: &str) -> Result<(Duration, Duration)> {
    let (layout, bundle) = (dir.join("layout"), dir.join("bundle"));
    let run = |command: &mut Command| -> Result<Duration> {
        let began = Instant::now();
        let output = command.stdin(Stdio::null()).output()?;
        ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(began.elapsed())
    };
    let from = format!("docker://{addr}/bench/image:1");
    let to = format!("oci:{}:1", layout.display());
    let policy = ["copy", "--insecure-policy", "--src-tls-verify=false", &from, &to];
    let copied = run(Command::new("skopeo").args(policy))?;
    let image = format!("{}:1", layout.display());
    let unpacked = run(Command::new("umoci").args(["unpack", "--image", &image]).arg(&bundle))?;
    std::fs::remove_dir_all(layout)?;
    std::fs::remove_dir_all(bundle)?;
    Ok((copied, unpacked))
}

struct Shared {
    fetched: u64,
    written: u64,
    layers: usize,
}

/// Pulls the sister of an image that is there, and counts.
fn shared(dir: &Path, addr: &str) -> Result<Shared> {
    let store = dir.join("shared");
    let counted = Counted::start(addr)?;
    child(&counted.addr, "bench/image", &store)?;
    let (bytes, layers) = (size(&store)?, std::fs::read_dir(store.join("layers"))?.count());
    counted.bytes.store(0, Ordering::Relaxed);
    child(&counted.addr, "bench/sister", &store)?;
    Ok(Shared {
        fetched: counted.bytes.load(Ordering::Relaxed),
        written: size(&store)? - bytes,
        layers: std::fs::read_dir(store.join("layers"))?.count() - layers,
    })
}

/// Bytes of all files.
fn size(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { size(&entry.path())? } else { metadata.len() };
    }
    Ok(bytes)
}

/// A way to the registry that counts what comes from there.
struct Counted {
    addr: String,
    bytes: Arc<AtomicU64>,
}

impl Counted {
    fn start(registry: &str) -> Result<Counted> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let addr = listener.local_addr()?.to_string();
        let bytes = Arc::new(AtomicU64::new(0));
        let (registry, counter) = (registry.to_owned(), Arc::clone(&bytes));
        // Ends with the benchmark.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(&registry) else { continue };
                let (Ok(client2), Ok(server2)) = (client.try_clone(), server.try_clone()) else { continue };
                let counter = Arc::clone(&counter);
                std::thread::spawn(move || forward(client, server, None));
                std::thread::spawn(move || forward(server2, client2, Some(&counter)));
            }
        });
        Ok(Counted { addr, bytes })
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, counter: Option<&AtomicU64>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if let Some(counter) = counter {
            counter.fetch_add(read as u64, Ordering::Relaxed);
        }
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    // The other end may have gone first.
    let _ = to.shutdown(Shutdown::Write);
}

/// Debian's registry, on a port of its own choice.
struct Registry {
    process: Child,
    addr: String,
}

impl Registry {
    fn start(dir: &Path) -> Result<Registry> {
        let config: PathBuf = dir.join("registry.yml");
        let data = dir.join("registry");
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: \
                 127.0.0.1:0\n",
                data.display()
            ),
        )?;
        let mut process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("docker-registry cannot be started")?;
        let mut log = BufReader::new(process.stderr.take().context("no log")?);
        loop {
            let mut line = String::new();
            ensure!(log.read_line(&mut line)? > 0, "docker-registry has ended");
            if let Some((_, rest)) = line.split_once("listening on ") {
                let addr = rest.split(['"', ' ']).next().unwrap_or_default().to_owned();
                // Somebody has to read what else it says.
                std::thread::spawn(move || for _ in log.lines() {});
                return Ok(Registry { process, addr });
            }
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
