//! What the benchmarks in `benches/` share: samples with their percentiles, and the table that sets target, measured
//! and peer side by side. A benchmark is a command (`cargo bench -p chaos-tests --bench NAME -- --help`), never a
//! timed test; it ends with an exit code of 1 when a target is missed.

use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

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
    #[expect(clippy::print_stdout, reason = "a benchmark's result is its output")]
    pub fn finish(&self) -> ExitCode {
        println!("{self}");
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
    fn a_missed_target_shows() {
        let mut report = Report::new("loss of a host");
        report.target("replaced", "≤ 1 s", "1.2 s", "9 s", false);
        report.note("forming", "0.5 s", "-");
        let text = report.to_string();
        assert!(text.contains("| replaced | ≤ 1 s | 1.2 s | 9 s | NO |"), "{text}");
        assert!(text.contains("| forming | - | 0.5 s | - | - |"), "{text}");
    }
}
