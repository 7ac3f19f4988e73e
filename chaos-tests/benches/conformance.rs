//! The validation programs of `opencontainers/runtime-tools` against `shoal runtime`, and the same ones against runc and
//! crun in the same run. `chaos_tests::conformance` says which of their complaints count.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use chaos_tests::bench::{self, Argument, Report};
use chaos_tests::conformance::{Host, Said, Verdict, judge};

const HELP: &str = "\
cargo bench -p chaos-tests --bench conformance -- --suite DIR [--only NAME] [--alone] [--shoal FILE]

  --suite DIR     opencontainers/runtime-tools, built: runtimetest, rootfs-<arch>.tar.gz, validation/*/*.t
                  (or the variable OCI_SUITE; docs/oci-runtime.md says how to build it)
  --only NAME     one program; may be given again
  --alone         without runc and crun, which else run beside it if they are installed
  --shoal FILE    the binary to measure instead of the one built for this

Needs root. It takes a minute for each runtime. Programs that complain are run a second time, because some of them race
with the start of their container; what they say then counts.";

struct Options {
    suite: Option<PathBuf>,
    only: Vec<String>,
    alone: bool,
    shoal: PathBuf,
}

/// Seconds that a program may take. The longest need twenty.
const PATIENCE: &str = "120";
/// Cgroups that the programs name, innermost first.
const CGROUPS: [&str; 4] = ["testdir/cgrouptest/container", "testdir/cgrouptest", "testdir", "cgrouptest"];

fn main() -> ExitCode {
    let suite = std::env::var_os("OCI_SUITE").map(PathBuf::from);
    let shoal = PathBuf::from(env!("CARGO_BIN_EXE_chaos-shoal"));
    let take = |options: &mut Options, argument: &mut Argument<'_>| {
        match argument.name().as_str() {
            "--suite" => options.suite = Some(argument.path()?),
            "--only" => options.only.push(argument.value()?),
            "--alone" => options.alone = true,
            "--shoal" => options.shoal = argument.path()?,
            _ => return argument.unknown(),
        }
        Ok(())
    };
    bench::run(HELP, Options { suite, only: Vec::new(), alone: false, shoal }, take, |options| {
        bench::one_cgroup_generation()?;
        measure(options)
    })
}

/// One of the runtimes, as the programs call it.
struct Runtime {
    name: &'static str,
    wrapper: PathBuf,
    root: PathBuf,
    verdicts: BTreeMap<String, Verdict>,
}

impl Runtime {
    fn new(name: &'static str, words: &[&str], dir: &Path) -> Result<Runtime> {
        let (wrapper, root) = (dir.join(name), dir.join(format!("state-{name}")));
        fs::create_dir(&root)?;
        let quoted = words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
        fs::write(&wrapper, format!("#!/bin/sh\nexec {quoted} --root '{}' \"$@\"\n", root.display()))?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
        Ok(Runtime { name, wrapper, root, verdicts: BTreeMap::new() })
    }

    /// Runs one program to its end, and removes what it has left.
    fn run(&self, suite: &Path, program: &Path, dir: &Path) -> Result<Said> {
        let output = Command::new("timeout")
            .args(["--kill-after=5", PATIENCE])
            .arg(program)
            .current_dir(suite)
            .env("RUNTIME", &self.wrapper)
            .env("TMPDIR", dir)
            .stdin(Stdio::null())
            .output()
            .context("cannot run timeout")?;
        for left in fs::read_dir(&self.root)?.flatten() {
            let mut delete = Command::new(&self.wrapper);
            delete.args(["delete", "--force"]).arg(left.file_name()).stdout(Stdio::null()).stderr(Stdio::null());
            delete.status()?;
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let code = output.status.code().filter(|code| *code != 124 && *code != 137);
        Ok(Said::read(&text(&output.stdout), &text(&output.stderr), code))
    }
}

/// The programs of a suite by their names.
fn programs(options: &Options, suite: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let dirs = fs::read_dir(suite.join("validation")).with_context(|| format!("{}: no suite", suite.display()))?;
    for dir in dirs.flatten() {
        for file in fs::read_dir(dir.path()).into_iter().flatten().flatten() {
            let path = file.path();
            if path.extension().is_some_and(|extension| extension == "t")
                && let Some(name) = path.file_stem().and_then(|name| name.to_str())
            {
                found.insert(name.to_owned(), path);
            }
        }
    }
    if let Some(missing) = options.only.iter().find(|name| !found.contains_key(*name)) {
        bail!("there is no program {missing}");
    }
    found.retain(|name, _| options.only.is_empty() || options.only.contains(name));
    ensure!(!found.is_empty(), "{}: no program is built (validation/*/*.t)", suite.display());
    Ok(found)
}

fn measure(options: &Options) -> Result<Report> {
    let Some(suite) = &options.suite else { bail!("--suite is missing\n\n{HELP}") };
    let suite = fs::canonicalize(suite).with_context(|| format!("{}", suite.display()))?;
    let programs = programs(options, &suite)?;
    let dir = tempfile::Builder::new().prefix("shoal-bench-conformance-").tempdir()?;
    // User namespaces of the containers look for their roots in it.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    let shoal = options.shoal.to_str().context("a path in UTF-8")?;
    let mut runtimes = vec![Runtime::new("shoal", &[shoal, "runtime"], dir.path())?];
    for name in ["crun", "runc"] {
        if let Some(program) = bench::installed(name).filter(|_| !options.alone) {
            runtimes.push(Runtime::new(name, &[program.to_str().context("a path in UTF-8")?], dir.path())?);
        }
    }
    let outcome = all(&suite, &programs, &mut runtimes, dir.path());
    remove_cgroups();
    let exempt = outcome?;
    Ok(report(&programs, &runtimes, &exempt))
}

/// Runs everything; the complaints of ours that do not count, by program, with the reason.
fn all(
    suite: &Path,
    programs: &BTreeMap<String, PathBuf>,
    runtimes: &mut [Runtime],
    dir: &Path,
) -> Result<Vec<(String, String, &'static str)>> {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let host = Host::read(
        &text("/proc/self/mounts"),
        &text("/proc/self/status"),
        text("/sys/module/apparmor/parameters/enabled").starts_with('Y'),
        Path::new("/sys/fs/selinux/enforce").exists(),
    );
    let mut all = Vec::new();
    for (name, program) in programs {
        let mut shown = Vec::new();
        for (index, runtime) in runtimes.iter_mut().enumerate() {
            let mut said = runtime.run(suite, program, dir)?;
            let mut judged = judge(name, &said, &host);
            if judged.0 == Verdict::Fails {
                said = runtime.run(suite, program, dir)?;
                judged = judge(name, &said, &host);
            }
            let (verdict, exempt, counted) = judged;
            let word = match verdict {
                Verdict::Passes => "ok",
                Verdict::NotApplicable => "not applicable",
                Verdict::Fails => "NOT OK",
            };
            shown.push(format!("{} {word} ({} of {})", runtime.name, said.good, said.good + said.complaints.len()));
            shown.extend(counted.iter().map(|complaint| format!("\n    {}: {complaint}", runtime.name)));
            runtime.verdicts.insert(name.clone(), verdict);
            if index == 0 {
                all.extend(exempt.into_iter().map(|(complaint, reason)| (name.clone(), complaint, reason)));
            }
        }
        bench::say(format_args!("{name}: {}", shown.join(", ")));
    }
    Ok(all)
}

/// The parents of the containers' cgroups, which belong to whoever named them.
fn remove_cgroups() {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    for mount in fields
        .filter(|f| f.get(2).is_some_and(|kind| kind.starts_with("cgroup")))
        .filter_map(|f| f.get(1).map(PathBuf::from))
    {
        for name in CGROUPS {
            // Usually it is not there; one that somebody uses stays.
            let _ = fs::remove_dir(mount.join(name));
        }
    }
}

fn report(
    programs: &BTreeMap<String, PathBuf>,
    runtimes: &[Runtime],
    exempt: &[(String, String, &'static str)],
) -> Report {
    let count = |runtime: &Runtime, wanted: &Verdict| runtime.verdicts.values().filter(|v| *v == wanted).count();
    let applicable = |runtime: &Runtime| programs.len() - count(runtime, &Verdict::NotApplicable);
    let line = |runtime: &Runtime| format!("{} of {}", count(runtime, &Verdict::Passes), applicable(runtime));
    let fails = |runtime: &Runtime| {
        let failed = runtime.verdicts.iter().filter(|(_, verdict)| **verdict == Verdict::Fails);
        let names = failed.map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        if names.is_empty() { String::new() } else { format!(" (fails {names})") }
    };
    let (own, peers) = (&runtimes[0], &runtimes[1..]);
    let beside: Vec<String> =
        peers.iter().map(|peer| format!("{}: {}{}", peer.name, line(peer), fails(peer))).collect();
    let beside = if beside.is_empty() { "neither crun nor runc ran".to_owned() } else { beside.join("; ") };
    let mut report = Report::new(format!("conformance: {} validation programs of runtime-tools", programs.len()));
    let met = count(own, &Verdict::Fails) == 0;
    let measured = format!("{}{}", line(own), fails(own));
    report.target("applicable programs that pass", "all", measured, beside, met);
    let mut reasons: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for (program, _, reason) in exempt {
        *reasons.entry((program, reason)).or_default() += 1;
    }
    for ((program, reason), points) in reasons {
        let whole = own.verdicts.get(program) == Some(&Verdict::NotApplicable);
        let part = if whole { "whole".to_owned() } else { format!("{points} points") };
        report.note(&format!("not applicable: {program} ({part})"), reason, "-");
    }
    report
}
