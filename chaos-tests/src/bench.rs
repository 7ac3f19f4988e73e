//! What the benchmarks in `benches/` share: their command lines, samples with their percentiles, and the table that sets
//! target, measured and peer side by side. A benchmark is a command (`cargo bench -p chaos-tests --bench NAME -- --help`),
//! never a timed test; it ends with an exit code of 1 when a target is missed.

pub mod clients;
pub mod load;
pub mod nested;

use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// One option of a command line.
pub struct Argument<'a> {
    name: String,
    rest: &'a mut dyn Iterator<Item = String>,
}

impl Argument<'_> {
    /// As it was given: `--runs`.
    #[must_use]
    pub fn name(&self) -> String {
        self.name.clone()
    }

    /// The next word.
    ///
    /// # Errors
    /// There is none.
    pub fn value(&mut self) -> Result<String, String> {
        self.rest.next().ok_or_else(|| format!("{} needs a value", self.name))
    }

    /// The next word as a path.
    ///
    /// # Errors
    /// There is none.
    pub fn path(&mut self) -> Result<PathBuf, String> {
        self.value().map(PathBuf::from)
    }

    /// The next word as a number.
    ///
    /// # Errors
    /// There is none, or it is no number of this kind.
    pub fn number<T: FromStr>(&mut self) -> Result<T, String> {
        let value = self.value()?;
        value.parse().map_err(|_| format!("{} {value:?}: no number, or out of range", self.name))
    }

    /// The next word as a number from which to count, so not 0.
    ///
    /// # Errors
    /// There is none, or it is no such number.
    pub fn count(&mut self) -> Result<usize, String> {
        let count = self.number::<std::num::NonZeroUsize>()?;
        Ok(count.get())
    }

    /// What to answer to an option that nobody knows.
    ///
    /// # Errors
    /// Always.
    pub fn unknown(&self) -> Result<(), String> {
        Err(format!("unknown option {}", self.name))
    }
}

/// The options of this process's command line: `defaults`, changed by `take` once an option. `None`: help is wanted.
fn options<O>(
    words: impl Iterator<Item = String>,
    defaults: O,
    mut take: impl FnMut(&mut O, &mut Argument<'_>) -> Result<(), String>,
) -> Result<Option<O>, String> {
    let (mut words, mut options) = (words, defaults);
    while let Some(name) = words.next() {
        match name.as_str() {
            "--help" | "-h" => return Ok(None),
            // What cargo adds.
            "--bench" => {}
            _ => take(&mut options, &mut Argument { name, rest: &mut words })?,
        }
    }
    Ok(Some(options))
}

/// A whole benchmark: reads its options, measures, and prints the report.
pub fn run<O>(
    help: &str,
    defaults: O,
    take: impl FnMut(&mut O, &mut Argument<'_>) -> Result<(), String>,
    measure: impl FnOnce(&O) -> Result<Report>,
) -> ExitCode {
    let options = match options(std::env::args().skip(1), defaults, take) {
        Ok(Some(options)) => options,
        Ok(None) => {
            say(help);
            return ExitCode::SUCCESS;
        }
        Err(wrong) => {
            say(format_args!("{wrong}\n\n{help}"));
            return ExitCode::FAILURE;
        }
    };
    match measure(&options) {
        Ok(report) => report.finish(),
        Err(error) => {
            say(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// The same for one that measures within an async runtime of several threads. Whoever ends it (Ctrl-C, SIGTERM) ends what it
/// waits for, so that all that cleans up when it is dropped does so.
pub fn run_async<O>(
    help: &str,
    defaults: O,
    take: impl FnMut(&mut O, &mut Argument<'_>) -> Result<(), String>,
    measure: impl AsyncFnOnce(&O) -> Result<Report>,
) -> ExitCode {
    run(help, defaults, take, |options| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        runtime.context("cannot start threads")?.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let (mut interrupted, mut terminated) =
                (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
            tokio::select! {
                biased;
                _ = interrupted.recv() => bail!("interrupted"),
                _ = terminated.recv() => bail!("terminated"),
                report = measure(options) => report,
            }
        })
    })
}

/// Set in the process that [`one_cgroup_generation`] has made.
const INSIDE: &str = "SHOAL_BENCH_INSIDE";

/// crun before 1.9 refuses a host on which controllers are in cgroup v1 and v2 at once. This puts the benchmark, by
/// executing it again, into a mount namespace in which only v1 is mounted where there are both.
///
/// # Errors
/// What hindered it.
pub fn one_cgroup_generation() -> Result<()> {
    if std::env::var_os(INSIDE).is_some() {
        return Ok(());
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("cannot read the mounts")?;
    let of = |kind: &str| -> Vec<&str> {
        let lines = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        lines.filter(|fields| fields.get(2) == Some(&kind)).filter_map(|fields| fields.get(1).copied()).collect()
    };
    let (v1, v2) = (of("cgroup"), of("cgroup2"));
    let hidden = if v1.is_empty() { String::new() } else { v2.join(" ") };
    // As the shell's words: what is to be hidden, then this command line.
    let script = "for place in $0; do umount \"$place\" || exit 1; done; exec \"$@\"";
    let error = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script, &hidden])
        .args(std::env::args_os())
        .env(INSIDE, "1")
        .exec();
    Err(error).context("cannot run unshare")
}

/// Where a program is installed, if it is.
#[must_use]
pub fn installed(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = [PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")];
    let found = std::env::split_paths(&path).chain(sbin).map(|dir| dir.join(name));
    found.into_iter().find(|path| path.metadata().is_ok_and(|file| file.permissions().mode() & 0o111 != 0))
}

/// One line for whoever watches.
#[expect(clippy::print_stdout, reason = "a command talks to its user")]
pub fn say(text: impl fmt::Display) {
    println!("{text}");
}

/// Durations of the same thing, measured again and again.
#[derive(Debug, Clone, Default)]
pub struct Samples {
    sorted: Vec<Duration>,
}

impl Samples {
    /// Adds one.
    pub fn push(&mut self, sample: Duration) {
        let at = self.sorted.partition_point(|other| *other <= sample);
        self.sorted.insert(at, sample);
    }

    /// Adds all of others.
    pub fn extend(&mut self, others: Samples) {
        others.sorted.into_iter().for_each(|sample| self.push(sample));
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sorted.len()
    }

    /// Whether nothing was measured.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    /// The smallest sample that at least `percent` (0 to 100) of all do not exceed. With few samples the p99 is the
    /// largest. Zero when there is none.
    #[must_use]
    pub fn percentile(&self, percent: u32) -> Duration {
        let rank = (self.sorted.len() * percent as usize).div_ceil(100);
        self.sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }
}

/// A time as logs and Docker's API write it (`2026-11-21T03:12:01.123456Z`), since the epoch.
#[must_use]
pub fn since_epoch(text: &str) -> Option<Duration> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.split('-').map(str::parse::<i64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let mut time = time.split(':');
    let (hours, minutes): (u64, u64) = (time.next()?.parse().ok()?, time.next()?.parse().ok()?);
    let seconds: f64 = time.next()?.parse().ok()?;
    // Days since the epoch in the proleptic Gregorian calendar, with years that begin in March.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days =
        365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + (153 * month + 2) / 5 + day
            - 719_469;
    let whole = u64::try_from(days).ok()? * 86_400 + hours * 3600 + minutes * 60;
    Some(Duration::from_secs(whole) + Duration::try_from_secs_f64(seconds).ok()?)
}

/// The middle one of numbers, or the mean of the two in the middle; nothing of none.
#[must_use]
pub fn median(numbers: &[f64]) -> Option<f64> {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        1 => sorted.get(middle).copied(),
        _ => Some(f64::midpoint(*sorted.get(middle.checked_sub(1)?)?, *sorted.get(middle)?)),
    }
}

/// `p50 1.20 s, p99 1.90 s, max 1.90 s (20 runs)`
impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |percent| self.percentile(percent).as_secs_f64();
        let (p50, p99, max) = (seconds(50), seconds(99), seconds(100));
        write!(f, "p50 {p50:.2} s, p99 {p99:.2} s, max {max:.2} s ({} runs)", self.len())
    }
}

/// One line of a [`Report`].
#[derive(Debug, Clone)]
struct Line {
    what: String,
    target: String,
    measured: String,
    peer: String,
    met: Option<bool>,
}

/// The result of a benchmark: target, measured and peer side by side.
#[derive(Debug, Clone)]
pub struct Report {
    title: String,
    lines: Vec<Line>,
}

impl Report {
    /// An empty report.
    #[must_use]
    pub fn new(title: impl Into<String>) -> Report {
        Report { title: title.into(), lines: Vec::new() }
    }

    /// Adds a line that has a target. `peer` says what the peer did *in the same run*, or that it is not installed.
    pub fn target(
        &mut self,
        what: &str,
        target: &str,
        measured: impl fmt::Display,
        peer: impl fmt::Display,
        met: bool,
    ) {
        self.add(what, target, measured, peer, Some(met));
    }

    /// Adds a line that nobody promised anything for.
    pub fn note(&mut self, what: &str, measured: impl fmt::Display, peer: impl fmt::Display) {
        self.add(what, "-", measured, peer, None);
    }

    fn add(
        &mut self,
        what: &str,
        target: &str,
        measured: impl fmt::Display,
        peer: impl fmt::Display,
        met: Option<bool>,
    ) {
        self.lines.push(Line {
            what: what.to_owned(),
            target: target.to_owned(),
            measured: measured.to_string(),
            peer: peer.to_string(),
            met,
        });
    }

    /// Prints the table; the exit code is 1 when a target was missed.
    #[must_use]
    pub fn finish(&self) -> ExitCode {
        say(self);
        if self.lines.iter().any(|line| line.met == Some(false)) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}

/// A Markdown table.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n## {}\n", self.title)?;
        writeln!(f, "| what | target | measured | peer, same run | met |\n|---|---|---|---|---|")?;
        for line in &self.lines {
            let met = match line.met {
                Some(true) => "yes",
                Some(false) => "NO",
                None => "-",
            };
            writeln!(f, "| {} | {} | {} | {} | {met} |", line.what, line.target, line.measured, line.peer)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let mut samples = Samples::default();
        assert_eq!(samples.percentile(99), Duration::ZERO);
        for millis in [30, 10, 20, 40] {
            samples.push(Duration::from_millis(millis));
        }
        assert_eq!(samples.percentile(50), Duration::from_millis(20));
        assert_eq!(samples.percentile(51), Duration::from_millis(30));
        assert_eq!(samples.percentile(99), Duration::from_millis(40));
        assert_eq!(samples.percentile(0), Duration::from_millis(10));
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[9.0, 1.0, 2.0, 4.0]), Some(3.0));
    }

    #[test]
    fn times() {
        assert_eq!(since_epoch("1970-01-02T00:00:01.5Z"), Some(Duration::from_millis(86_401_500)));
        assert_eq!(since_epoch("2024-02-29T23:59:59Z"), Some(Duration::from_secs(1_709_251_199)));
        assert_eq!(since_epoch("soon"), None);
    }

    #[test]
    fn options_change_the_defaults() {
        let of = |line: &str| {
            let words = line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            options(words.into_iter(), (5, false), |options, argument| match argument.name().as_str() {
                "--runs" => argument.count().map(|runs| options.0 = runs),
                "--maps" => {
                    options.1 = true;
                    Ok(())
                }
                _ => argument.unknown(),
            })
        };
        assert_eq!(of("--bench --runs 7 --maps"), Ok(Some((7, true))));
        assert_eq!(of(""), Ok(Some((5, false))));
        assert_eq!(of("--runs 7 --help"), Ok(None));
        for bad in ["--runs", "--runs x", "--runs 0", "--frob"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_missed_target_shows() {
        let mut report = Report::new("loss of a host");
        report.target("replaced", "≤ 1 s", "1.2 s", "9 s", false);
        report.note("forming", "0.5 s", "-");
        let text = report.to_string();
        assert!(text.contains("| replaced | ≤ 1 s | 1.2 s | 9 s | NO |"), "{text}");
        assert!(text.contains("| forming | - | 0.5 s | - | - |"), "{text}");
    }
}
