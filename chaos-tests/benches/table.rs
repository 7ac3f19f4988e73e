//! The table of the container runtime and the images: runs the benchmarks that measure its lines, one after another, and
//! puts what they found into one table.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use chaos_tests::bench::nested::{self, Row};
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
        rows.iter().for_each(|row| nested::repeat(&mut report, row));
    }
    Ok(report)
}

/// Runs one benchmark, and returns the rows of its table.
fn one(name: &str, quick: &[&str], options: &Options) -> Result<Vec<Row>> {
    let suite = options.suite.as_ref().filter(|_| name == "conformance").map(|suite| suite.display().to_string());
    let mut given: Vec<&str> = suite.iter().flat_map(|suite| ["--suite", suite]).collect();
    if options.quick {
        given.extend(quick);
    }
    nested::run(name, &given, options.profile.as_deref())
}
