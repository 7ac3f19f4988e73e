//! The text form of Prometheus, version 0.0.4: families with their help, samples with their labels.

use std::fmt::Write;

use super::instrument::Distribution;

/// What a server says that this is.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a family's numbers mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Only grows; the name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Durations in seconds.
    Histogram,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// A page that is being written.
#[derive(Default)]
pub(super) struct Page {
    text: String,
}

impl Page {
    /// Begins a family; its samples are written through what comes back. Each family is begun once.
    pub(super) fn family(&mut self, name: &'static str, kind: Kind, help: &'static str) -> Family<'_> {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}");
        let _ = writeln!(self.text, "# TYPE {name} {}", kind.word());
        Family { page: self, name }
    }

    /// The page.
    pub(super) fn finish(self) -> String {
        self.text
    }
}

/// Writes the samples of one family.
pub(super) struct Family<'a> {
    page: &'a mut Page,
    name: &'static str,
}

impl Family<'_> {
    /// A sample without labels.
    pub(super) fn value(self, value: u64) {
        self.with(&[], value);
    }

    /// A sample with labels; more may follow.
    pub(super) fn with(mut self, labels: &[(&str, &str)], value: u64) -> Self {
        self.line("", labels, value);
        self
    }

    /// Samples of a histogram in seconds.
    pub(super) fn distribution(mut self, labels: &[(&str, &str)], read: &Distribution) -> Self {
        let mut all = 0;
        for (bucket, count) in read.buckets.iter().enumerate() {
            all += count;
            let bound = read.bounds_us.get(bucket).map_or_else(|| "+Inf".to_owned(), |us| seconds(*us));
            let labels: Vec<(&str, &str)> = labels.iter().copied().chain([("le", bound.as_str())]).collect();
            self.line("_bucket", &labels, all);
        }
        self.line("_sum", labels, seconds(read.sum_us));
        self.line("_count", labels, all);
        self
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let text = &mut self.page.text;
        text.push_str(self.name);
        text.push_str(suffix);
        for (at, (label, value)) in labels.iter().enumerate() {
            let _ = write!(text, "{}{label}=\"{}\"", if at == 0 { '{' } else { ',' }, escaped(value));
        }
        let _ = writeln!(text, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Microseconds as seconds, without the rounding of a float.
fn seconds(us: u64) -> String {
    let text = format!("{}.{:06}", us / 1_000_000, us % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::instrument::Histogram;
    use super::*;

    #[test]
    fn a_page() {
        let mut page = Page::default();
        page.family("a_total", Kind::Counter, "Of a.").value(3);
        page.family("b", Kind::Gauge, "Of b.").with(&[("x", "1")], 1).with(&[("x", "a\"\\\nb"), ("y", "2")], 0);
        let text = page.finish();
        let expected = "# HELP a_total Of a.\n# TYPE a_total counter\na_total 3\n# HELP b Of b.\n# TYPE b gauge\n\
                        b{x=\"1\"} 1\nb{x=\"a\\\"\\\\\\nb\",y=\"2\"} 0\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn buckets_are_cumulative_and_in_seconds() {
        let histogram = Histogram::default();
        for ms in [1, 3, 60_000] {
            histogram.observe(Duration::from_millis(ms));
        }
        let mut page = Page::default();
        page.family("t_seconds", Kind::Histogram, "T.").distribution(&[], &histogram.read());
        let text = page.finish();
        for line in [
            "t_seconds_bucket{le=\"0.0005\"} 0\n",
            "t_seconds_bucket{le=\"0.001\"} 1\n",
            "t_seconds_bucket{le=\"0.005\"} 2\n",
            "t_seconds_bucket{le=\"10\"} 2\n",
            "t_seconds_bucket{le=\"+Inf\"} 3\n",
            "t_seconds_sum 60.004\n",
            "t_seconds_count 3\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
