//! What an idle daemon keeps for itself: 3 managers and 2 workers in network namespaces, some time after they have
//! become a cluster, and again after a service was scaled to 50 tasks and back to none.
//!
//! Private memory is what `smaps_rollup` calls Private_Clean and Private_Dirty: what the machine would get back if the
//! process ended. Pages of the executable that several daemons on this machine share are not in it.

use std::fs;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use chaos_tests::bench::{self, Argument, Report};
use chaos_tests::hosts::{Binaries, Cluster, Freshness, IMAGE, SOON, ServiceDraft};

const HELP: &str = "\
cargo bench -p chaos-tests --bench memory -- [--idle SECONDS] [--tasks N] [--maps]

  --idle 30     how long nothing happens before memory is read
  --tasks 50    how far the service is scaled
  --maps        print the largest private mappings of the first manager and the first worker as well

Needs root. Beside it stands what dockerd and containerd use, if they run on this machine.";

const MANAGERS: usize = 3;
const WORKERS: usize = 2;
const MANAGER_MIB: f64 = 25.0;
const WORKER_MIB: f64 = 15.0;

struct Options {
    idle: Duration,
    tasks: u64,
    maps: bool,
}

fn main() -> ExitCode {
    let defaults = Options { idle: Duration::from_secs(30), tasks: 50, maps: false };
    let take = |options: &mut Options, argument: &mut Argument<'_>| {
        match argument.name().as_str() {
            "--idle" => options.idle = Duration::from_secs(argument.number()?),
            "--tasks" => options.tasks = argument.number()?,
            "--maps" => options.maps = true,
            _ => return argument.unknown(),
        }
        Ok(())
    };
    bench::run_async(HELP, defaults, take, measure)
}

async fn measure(options: &Options) -> Result<Report> {
    let binaries =
        Binaries { shoal: env!("CARGO_BIN_EXE_chaos-shoal").into(), whoami: env!("CARGO_BIN_EXE_chaos-whoami").into() };
    let mut report = Report::new(format!(
        "private memory of an idle daemon, {MANAGERS} managers and {WORKERS} workers, idle for {} s",
        options.idle.as_secs()
    ));
    let cluster = Cluster::start(&binaries, MANAGERS, WORKERS).await?;
    let docker = docker();
    tokio::time::sleep(options.idle).await;
    read(&cluster, "formed", &docker, &mut report, options.maps)?;

    cluster.api(0).create_service(&ServiceDraft::new("load", IMAGE, options.tasks).build()).await?;
    let tasks = usize::try_from(options.tasks)?;
    cluster.api(0).wait_running("load", tasks, &[], SOON).await?;
    cluster.api(0).scale("load", 0).await?;
    cluster
        .api(0)
        .wait_for("no task", SOON, || async {
            let tasks = cluster.api(0).tasks("load", Freshness::Local).await.map_err(|e| e.to_string())?;
            if tasks.is_empty() { Ok(()) } else { Err(format!("{} tasks", tasks.len())) }
        })
        .await?;
    tokio::time::sleep(options.idle).await;
    read(&cluster, &format!("after {} tasks", options.tasks), &docker, &mut report, options.maps)?;
    cluster.clean_up()?;
    Ok(report)
}

fn read(cluster: &Cluster, when: &str, docker: &str, report: &mut Report, maps: bool) -> Result<()> {
    for (role, hosts, limit) in
        [("manager", 0..MANAGERS, MANAGER_MIB), ("worker", MANAGERS..MANAGERS + WORKERS, WORKER_MIB)]
    {
        let mut each = Vec::new();
        for index in hosts {
            let pid = cluster.host(index).daemon_pid().context("a daemon has ended")?;
            if maps && each.is_empty() {
                bench::say(format_args!("{role}, {when}:\n{}", largest(pid)?));
            }
            each.push(private_mib(pid)?);
        }
        let worst = each.iter().copied().fold(0.0, f64::max);
        let all = each.iter().map(|mib| format!("{mib:.1}")).collect::<Vec<_>>().join(", ");
        let measured = format!("{worst:.1} MiB (each: {all})");
        report.target(&format!("{role}, {when}"), &format!("≤ {limit} MiB"), measured, docker, worst <= limit);
    }
    Ok(())
}

/// Private memory of a process, in MiB.
fn private_mib(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let private = ["Private_Clean:", "Private_Dirty:"].map(|field| kib(&text, field));
    match private {
        [Some(clean), Some(dirty)] => Ok((clean + dirty) / 1024.0),
        _ => bail!("{path} has no private memory in it"),
    }
}

fn kib(text: &str, field: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(field)?.split_whitespace().next()?.parse().ok())
}

/// The largest private mappings, as lines.
fn largest(pid: u32) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let mut mappings: Vec<(f64, String)> = Vec::new();
    for line in text.lines() {
        // Headers begin with an address range, fields with a name and a colon.
        if line.split_whitespace().next().is_some_and(|word| word.contains('-')) {
            mappings.push((0.0, line.to_owned()));
        } else if let (Some((private, _)), Some(more)) =
            (mappings.last_mut(), kib(line, "Private_Clean:").or_else(|| kib(line, "Private_Dirty:")))
        {
            *private += more;
        }
    }
    mappings.sort_by(|a, b| b.0.total_cmp(&a.0));
    let lines = mappings.iter().take(24).map(|(kib, mapping)| format!("  {:7.2} MiB  {mapping}", kib / 1024.0));
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

/// What Docker's daemons use, if they run here.
fn docker() -> String {
    let mut sum = 0.0;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if matches!(name.trim(), "dockerd" | "containerd")
            && let Ok(mib) = private_mib(pid)
        {
            sum += mib;
            found.push(format!("{} {mib:.1}", name.trim()));
        }
    }
    if found.is_empty() { "dockerd does not run here".into() } else { format!("{sum:.1} MiB ({})", found.join(", ")) }
}
