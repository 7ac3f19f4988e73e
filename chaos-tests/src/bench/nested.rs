//! Benchmarks that another one runs, to have all of their rows in one table.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::{Report, say};

/// The cells of a row: what, target, measured, peer, met.
pub type Row = [String; 5];

/// Runs a benchmark of this crate with these options, shows what it says, and returns the rows of its table. There are none
/// when it failed; a missed target is in its row. Blocks.
///
/// # Errors
/// When cargo cannot be run.
pub fn run(name: &str, options: &[&str], profile: Option<&str>) -> Result<Vec<Row>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["bench", "-p", "chaos-tests", "--bench", name]);
    if let Some(profile) = profile {
        command.args(["--profile", profile]);
    }
    command.arg("--").args(options);
    // What cargo tells this process of its package, the crates that look at it would take for a change, and be built anew.
    let told = |name: &str| name == "OUT_DIR" || name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(told)) {
        command.env_remove(name);
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot run cargo")?;
    let mut rows = Vec::new();
    for line in BufReader::new(child.stdout.take().context("no output")?).lines() {
        let line = line?;
        say(&line);
        rows.extend(row(&line));
    }
    child.wait()?;
    Ok(rows)
}

/// Puts a row of another report into this one.
pub fn repeat(report: &mut Report, [what, target, measured, peer, met]: &Row) {
    match met.as_str() {
        "-" => report.note(what, measured, peer),
        met => report.target(what, target, measured, peer, met == "yes"),
    }
}

/// A row of a report, without its head.
fn row(line: &str) -> Option<Row> {
    let cells: Vec<String> = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ").map(str::to_owned).collect();
    cells.try_into().ok().filter(|cells: &Row| cells[4] != "met")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_reports_are_found_and_heads_are_not() {
        let mut report = Report::new("x");
        report.target("a", "≤ 1", "2", "3", false);
        report.note("b", "4", "-");
        let rows: Vec<Row> = report.to_string().lines().filter_map(row).collect();
        assert_eq!(rows, [["a", "≤ 1", "2", "3", "NO"], ["b", "-", "4", "-", "-"]]);
        let mut again = Report::new("x");
        rows.iter().for_each(|row| repeat(&mut again, row));
        assert_eq!(again.to_string(), report.to_string());
    }
}
