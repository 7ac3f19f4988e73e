//! `shoal daemon`: settings from flags, then the file, then defaults; then the node process.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;
use runtime::image::Room;
use runtime::image::registry::RegistrySettings;
use tracing_subscriber::EnvFilter;

use super::error::CliError;
use super::host::{DEFAULT_RUN_DIR, socket_in};
use super::values;
use crate::daemon::{Config, ConfigFile, IMAGE_ROOM, IMAGE_SERVE_RATE, parse_labels, remap};
use crate::timing::Timing;

const DEFAULT_DATA_DIR: &str = "/var/lib/shoal";
/// Docker's own is read too, as its registries are most likely the same.
const DEFAULT_CERTS_DIRS: [&str; 2] = ["/etc/shoal/certs.d", "/etc/docker/certs.d"];
/// Raft's library tells every step of an election; the node itself says what an operator needs.
const DEFAULT_LEVEL: &str = "info,openraft=warn";

/// Flags of `shoal daemon`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  shoal daemon
  shoal daemon -H unix:///run/shoal/shoal.sock -H unix:///var/run/docker.sock
  shoal daemon --config /etc/shoal/daemon.toml --label zone=a

The file has the same keys as the flags; flags win:
  data-dir = \"/var/lib/shoal\"
  host = [\"unix:///run/shoal/shoal.sock\"]
  label = [\"zone=a\"]

Tasks go on when the daemon stops. Several nodes may run on one machine, each with its own directories and its own
network namespace.")]
pub(super) struct DaemonArgs {
    /// Where everything is kept that outlives the daemon [default: /var/lib/shoal]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where sockets and namespaces live; may be empty after a boot [default: /run/shoal]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Where to serve the API, unix:///path or tcp://ip:port; may be repeated [default: RUN_DIR/shoal.sock]
    #[arg(short = 'H', long = "host", id = "engine", value_name = "HOST")]
    hosts: Vec<String>,
    /// TOML file with settings
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Label of this engine, for placement (engine.labels.KEY); may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// Where to serve metrics for Prometheus, at /metrics; not served unless given
    #[arg(long, value_name = "ADDR:PORT")]
    metrics_addr: Option<String>,
    /// How patient to be with the other hosts: "lan", or "wan" for round trips up to 300 ms; give all hosts the same
    /// [default: lan]
    #[arg(long, value_name = "lan|wan")]
    timing: Option<String>,
    /// Registry that may be spoken to over plain HTTP or with any certificate; may be repeated
    #[arg(long, value_name = "HOST[:PORT]")]
    insecure_registry: Vec<String>,
    /// Registry that is asked before docker.io, or before the one that is named; may be repeated
    #[arg(long, value_name = "[REGISTRY=]URL")]
    registry_mirror: Vec<String>,
    /// Directory with HOST:PORT/*.crt, authorities that are trusted for that registry, and *.cert and *.key, this
    /// host's own certificate there; may be repeated [default: /etc/shoal/certs.d and /etc/docker/certs.d]
    #[arg(long, value_name = "DIR")]
    registry_certs_dir: Vec<PathBuf>,
    /// Bytes per second of image content that other hosts are given, all together, e.g. 50m; 0 for no limit
    /// [default: 100m]
    #[arg(long, value_name = "BYTES")]
    image_serve_rate: Option<String>,
    /// Images that came only for tasks stay this long after the last one used them [default: 1h]
    #[arg(long, value_name = "DURATION")]
    image_gc_grace: Option<String>,
    /// Share of the disk in use, in percent, from which on such images are removed [default: 85]
    #[arg(long, value_name = "PERCENT")]
    image_gc_disk: Option<u64>,
    /// Give all containers users of their own, which are on this host the subordinate ones of USER in /etc/subuid and of
    /// GROUP in /etc/subgid; "default" is dockremap. Names or numbers; "" for none
    #[arg(long, value_name = "USER[:GROUP]")]
    userns_remap: Option<String>,
    /// error, warn, info, debug, trace, or a filter such as "info,node::agent=debug" [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LogFormat {
    Text,
    Json,
}

/// All settings, checked.
#[derive(Debug)]
struct Settings {
    config: Config,
    filter: EnvFilter,
    format: LogFormat,
}

pub(super) fn run(args: DaemonArgs) -> Result<(), CliError> {
    let settings = settings(args).map_err(|e| CliError::usage(format!("{e:#}")))?;
    start_log(settings.filter, settings.format);
    serve(settings.config).map_err(|e| CliError::Failed(format!("{e:#}")))
}

fn serve(config: Config) -> anyhow::Result<()> {
    crate::daemon::raise_priority();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
    // The daemon's errors tell of their causes; anyhow would repeat those that already do.
    runtime.block_on(crate::daemon::run(config)).map_err(|e| anyhow::anyhow!(crate::chain(&e)))
}

fn settings(args: DaemonArgs) -> anyhow::Result<Settings> {
    let file = match &args.config {
        Some(path) => ConfigFile::read(path).map_err(|e| anyhow::anyhow!(crate::chain(&e)))?,
        None => ConfigFile::default(),
    };
    let data_dir = args.data_dir.or(file.data_dir).unwrap_or_else(|| DEFAULT_DATA_DIR.into());
    let run_dir = args.run_dir.or(file.run_dir).unwrap_or_else(|| DEFAULT_RUN_DIR.into());
    // The shims are started with these paths, from another working directory.
    let (data_dir, run_dir) = (absolute(data_dir)?, absolute(run_dir)?);
    let hosts = if args.hosts.is_empty() { file.host.unwrap_or_default() } else { args.hosts };
    let hosts = if hosts.is_empty() { vec![socket_in(&run_dir)] } else { hosts };
    for host in &hosts {
        anyhow::ensure!(
            host.strip_prefix("unix:///").or_else(|| host.strip_prefix("tcp://")).is_some_and(|rest| !rest.is_empty()),
            "host {host:?} must look like unix:///path or tcp://ip:port"
        );
    }
    // A label of the command line replaces the file's one of the same key.
    let mut labels: BTreeMap<String, String> = parse_labels(&file.label.unwrap_or_default())?;
    labels.extend(parse_labels(&args.labels)?);
    let metrics_addr = match args.metrics_addr.or(file.metrics_addr) {
        Some(addr) => Some(addr.parse().with_context(|| format!("metrics address {addr:?} must look like ip:port"))?),
        None => None,
    };
    let timing = args.timing.or(file.timing).map_or(Ok(Timing::default()), |given| given.parse())?;
    let registries = RegistrySettings {
        insecure: either(args.insecure_registry, file.insecure_registry),
        mirrors: either(args.registry_mirror, file.registry_mirror)
            .iter()
            .map(|mirror| mirror.parse())
            .collect::<Result<_, _>>()?,
        certs_dirs: match either(args.registry_certs_dir, file.registry_certs_dir) {
            none if none.is_empty() => DEFAULT_CERTS_DIRS.iter().map(PathBuf::from).collect(),
            some => some.into_iter().map(absolute).collect::<Result<_, _>>()?,
        },
        ..RegistrySettings::default()
    };
    registries.check()?;
    let image_serve_rate = match args.image_serve_rate.or(file.image_serve_rate) {
        Some(text) => values::memory(&text).map_err(|why| anyhow::anyhow!("image serve rate {text:?}: {why}"))?,
        None => i64::try_from(IMAGE_SERVE_RATE)?,
    };
    let image_room =
        image_room(args.image_gc_grace.or(file.image_gc_grace), args.image_gc_disk.or(file.image_gc_disk))?;
    let users = remap::read(args.userns_remap.or(file.userns_remap).as_deref().unwrap_or_default())?;
    let level = args.log_level.or(file.log_level).unwrap_or_else(|| DEFAULT_LEVEL.to_owned());
    let filter = EnvFilter::try_new(&level).with_context(|| format!("log level {level:?}"))?;
    let format = match args.log_format.or(file.log_format).as_deref() {
        None | Some("text") => LogFormat::Text,
        Some("json") => LogFormat::Json,
        Some(other) => anyhow::bail!("log format {other:?} must be text or json"),
    };
    let image_serve_rate = u64::try_from(image_serve_rate)?;
    let config = Config {
        data_dir,
        run_dir,
        hosts,
        labels,
        metrics_addr,
        timing,
        registries,
        image_serve_rate,
        image_room,
        users,
    };
    Ok(Settings { config, filter, format })
}

/// What the flags say, else the file.
fn either<T>(flags: Vec<T>, file: Option<Vec<T>>) -> Vec<T> {
    if flags.is_empty() { file.unwrap_or_default() } else { flags }
}

fn image_room(grace: Option<String>, full_percent: Option<u64>) -> anyhow::Result<Room> {
    let grace = match grace {
        Some(text) => humantime::parse_duration(&text).with_context(|| format!("image gc grace {text:?}"))?,
        None => IMAGE_ROOM.grace,
    };
    let full_percent = full_percent.unwrap_or(IMAGE_ROOM.full_percent);
    anyhow::ensure!((1..=100).contains(&full_percent), "image gc disk {full_percent} must be 1 to 100 percent");
    Ok(Room { grace, full_percent })
}

fn absolute(path: PathBuf) -> anyhow::Result<PathBuf> {
    std::path::absolute(&path).with_context(|| format!("directory {:?}", path.display()))
}

fn start_log(filter: EnvFilter, format: LogFormat) {
    // A line that cannot be written is lost. Told of it, the library would say so on standard error, and panic when that
    // fails too: a full disk or a dead log collector would end the daemon.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    match format {
        LogFormat::Text => log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => log.json().init(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        daemon: DaemonArgs,
    }

    fn of(args: &[&str]) -> anyhow::Result<Settings> {
        settings(Line::try_parse_from(["daemon"].iter().chain(args)).unwrap().daemon)
    }

    #[test]
    fn defaults() {
        let config = of(&[]).unwrap().config;
        assert_eq!(config.data_dir, Path::new("/var/lib/shoal"));
        assert_eq!(config.run_dir, Path::new("/run/shoal"));
        assert_eq!(config.hosts, ["unix:///run/shoal/shoal.sock"]);
        assert_eq!(config.metrics_addr, None);
        assert_eq!(config.timing, Timing::Lan);
        assert_eq!((config.image_serve_rate, config.image_room), (IMAGE_SERVE_RATE, IMAGE_ROOM));
        assert_eq!(of(&["--userns-remap", ""]).unwrap().config.users, None);
    }

    #[test]
    fn images_between_hosts() {
        let config =
            of(&["--image-serve-rate", "5m", "--image-gc-grace", "2h", "--image-gc-disk", "90"]).unwrap().config;
        assert_eq!(config.image_serve_rate, 5 << 20);
        assert_eq!((config.image_room.grace.as_secs(), config.image_room.full_percent), (7200, 90));
        assert_eq!(of(&["--image-serve-rate", "0"]).unwrap().config.image_serve_rate, 0);
        refused(&["--image-serve-rate", "much"], "much");
        refused(&["--image-gc-grace", "long"], "long");
        refused(&["--image-gc-disk", "101"], "101");
    }

    #[test]
    fn the_socket_is_in_the_run_directory() {
        assert_eq!(of(&["--run-dir", "/x"]).unwrap().config.hosts, ["unix:///x/shoal.sock"]);
    }

    #[test]
    fn flags_come_before_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("daemon.toml");
        std::fs::write(
            &path,
            "data-dir = \"/file\"\nrun-dir = \"/run/file\"\nhost = [\"tcp://127.0.0.1:1\"]\n\
             label = [\"a=1\", \"b=1\"]\nlog-format = \"json\"\ntiming = \"wan\"\n",
        )
        .unwrap();
        let path = path.to_str().unwrap();
        let found = of(&["--config", path, "--data-dir", "/flag", "--label", "b=2"]).unwrap();
        assert_eq!(found.config.data_dir, Path::new("/flag"));
        assert_eq!(found.config.run_dir, Path::new("/run/file"));
        assert_eq!(found.config.hosts, ["tcp://127.0.0.1:1"]);
        assert_eq!(found.config.labels, BTreeMap::from([("a".into(), "1".into()), ("b".into(), "2".into())]));
        assert_eq!(found.format, LogFormat::Json);
        assert_eq!(found.config.timing, Timing::Wan);
        assert_eq!(of(&["--config", path, "--timing", "lan"]).unwrap().config.timing, Timing::Lan);
    }

    #[test]
    fn registries_are_named_one_by_one() {
        let found =
            of(&["--insecure-registry", "r:5000", "--registry-mirror", "https://m", "--registry-certs-dir", "/c"]);
        let registries = found.unwrap().config.registries;
        assert_eq!(registries.insecure, ["r:5000"]);
        assert_eq!(registries.mirrors[0].registry, "docker.io");
        assert_eq!(registries.certs_dirs, [Path::new("/c")]);
        let defaults = of(&[]).unwrap().config.registries;
        assert!(defaults.insecure.is_empty() && defaults.mirrors.is_empty());
        assert_eq!(defaults.certs_dirs, [Path::new("/etc/shoal/certs.d"), Path::new("/etc/docker/certs.d")]);
    }

    #[track_caller]
    fn refused(args: &[&str], word: &str) {
        let error = format!("{:#}", of(args).unwrap_err());
        assert!(error.contains(word), "{error}");
    }

    #[test]
    fn bad_settings_are_named() {
        refused(&["--log-format", "xml"], "xml");
        refused(&["--log-level", "a=b=c"], "a=b=c");
        refused(&["--host", "npipe://x"], "npipe://x");
        refused(&["--label", "x"], "\"x\"");
        refused(&["--timing", "slow"], "\"slow\" must be lan or wan");
        refused(&["--metrics-addr", "9323"], "9323");
        refused(&["--insecure-registry", "http://r.example"], "http://r.example");
        refused(&["--registry-mirror", "r.example"], "r.example");
        refused(&["--userns-remap", "nobody-here"], "no range for the user nobody-here in /etc/subuid");
        refused(&["--config", "/nonexistent/daemon.toml"], "/nonexistent/daemon.toml");
    }
}
