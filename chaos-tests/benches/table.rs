//! The table of the container runtime and the images: runs the benchmarks that measure its lines, one after another, and
//! puts what they found into one table.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};
use chaos_tests::bench::{self, Argument, Report};

const HELP: &str = "\
cargo bench -p chaos-tests --bench table -- [--suite DIR] [--quick] [--only NAME] [--profile NAME]

  --suite DIR      the built validation programs of runtime-tools, for conformance (or the variable OCI_SUITE); without
                   them that line says so, and counts as missed
  --quick          few runs of each: to see that it works, not how fast
  --only NAME      one of the benchmarks: conformance, runtime, shim, pulls, images; may be given again
  --profile NAME   cargo's profile; that of benchmarks, which is a release, when none is named

Needs root, busybox-static and docker-registry; runc, crun, skopeo and umoci for the comparisons. Ten minutes.";

struct Options {
    suite: Option<PathBuf>,
    quick: bool,
    only: Vec<String>,
    profile: Option<String>,
}

/// The benchmarks, with their options for a quick run.
const BENCHMARKS: [(&str, &[&str]); 5] = [
    ("conformance", &["--only", "create", "--only", "state"]),
    ("runtime", &["--runs", "3", "--containers", "8"]),
    ("shim", &["--memory", "3", "--sequential", "3", "--parallel", "8"]),
    ("pulls", &["--runs", "1", "--mb", "30"]),
    ("images", &["--runs", "1", "--hosts", "3", "--size", "200"]),
];

fn main() -> ExitCode {
    let suite = std::env::var_os("OCI_SUITE").map(PathBuf::from);
    let take = |options: &mut Options, argument: &mut Argument<'_>| {
        match argument.name().as_str() {
            "--suite" => options.suite = Some(argument.path()?),
            "--quick" => options.quick = true,
            "--only" => {
                let name = argument.value()?;
                if !BENCHMARKS.iter().any(|(known, _)| *known == name) {
                    return Err(format!("--only {name}: no such benchmark"));
                }
                options.only.push(name);
            }
            "--profile" => options.profile = Some(argument.value()?),
            _ => return argument.unknown(),
        }
        Ok(())
    };
    bench::run(HELP, Options { suite, quick: false, only: Vec::new(), profile: None }, take, measure)
}

fn measure(options: &Options) -> Result<Report> {
    let title = if options.quick {
        "container runtime and images (a quick run: not the figures)"
    } else {
        "container runtime and images"
    };
    let mut report = Report::new(title);
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|only| only == name);
    for (name, quick) in BENCHMARKS.into_iter().filter(|(name, _)| wanted(name)) {
        if name == "conformance" && options.suite.is_none() {
            report.target("conformance", "all", "not measured: no --suite", "-", false);
            continue;
        }
        let rows = one(name, quick, options)?;
        if rows.is_empty() {
            report.target(name, "-", "failed: see above", "-", false);
        }
        rows.into_iter().for_each(|[what, target, measured, peer, met]| match met.as_str() {
            "-" => report.note(&what, measured, peer),
            met => report.target(&what, &target, measured, peer, met == "yes"),
        });
    }
    Ok(report)
}

/// Runs one benchmark, shows what it says, and returns the rows of its table.
fn one(name: &str, quick: &[&str], options: &Options) -> Result<Vec<[String; 5]>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["bench", "-p", "chaos-tests", "--bench", name]);
    if let Some(profile) = &options.profile {
        command.args(["--profile", profile]);
    }
    command.arg("--");
    if let Some(suite) = options.suite.as_ref().filter(|_| name == "conformance") {
        command.arg("--suite").arg(suite);
    }
    if options.quick {
        command.args(quick);
    }
    // What cargo tells this process of its package, the crates that look at it would take for a change, and be built anew.
    let told = |name: &str| name == "OUT_DIR" || name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(told)) {
        command.env_remove(name);
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot run cargo")?;
    let mut rows = Vec::new();
    for line in BufReader::new(child.stdout.take().context("no output")?).lines() {
        let line = line?;
        bench::say(&line);
        rows.extend(row(&line));
    }
    // A missed target is in its row; without rows it has failed.
    child.wait()?;
    Ok(rows)
}

/// A row of a report, without its head.
fn row(line: &str) -> Option<[String; 5]> {
    let cells: Vec<String> = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ").map(str::to_owned).collect();
    cells.try_into().ok().filter(|cells: &[String; 5]| cells[4] != "met")
}
