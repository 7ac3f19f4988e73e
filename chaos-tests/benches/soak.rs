//! Breaks a cluster of 3 managers and 2 workers at random, and says whether everything that must hold did.
//!
//! `cargo bench -p chaos-tests --bench soak -- --minutes 30 --seed 1`; ends with an exit code of 1 when something did
//! not hold.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command's output")]

use std::process::ExitCode;
use std::time::Duration;

use chaos_tests::hosts::{Binaries, rules_unusable, unusable};
use chaos_tests::soak::{Soak, schedule};

const HELP: &str = "\
Breaks a cluster of 3 managers and 2 workers at random. Needs root and nft.

  --minutes N    how long faults go on (30); the end takes some minutes more
  --seed N       which faults come when (random)
  --keep-going   do not end at the first violation
  --show         print the faults and do nothing
";

fn main() -> ExitCode {
    match options() {
        Ok(Some((minutes, seed, keep_going, show))) => run(minutes, seed, keep_going, show),
        Ok(None) => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        Err(wrong) => {
            eprintln!("{wrong}\n{HELP}");
            ExitCode::from(2)
        }
    }
}

fn options() -> Result<Option<(f64, u64, bool, bool)>, String> {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let (mut minutes, mut seed, mut keep_going, mut show) = (30.0, u64::from(clock.subsec_nanos()), false, false);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a number"));
        match word.as_str() {
            "--minutes" => minutes = value()?.parse().map_err(|e| format!("--minutes: {e}"))?,
            "--seed" => seed = value()?.parse().map_err(|e| format!("--seed: {e}"))?,
            "--keep-going" => keep_going = true,
            "--show" => show = true,
            "--help" | "-h" => return Ok(None),
            // Cargo says this to every benchmark.
            "--bench" => {}
            other => return Err(format!("unknown option {other}")),
        }
    }
    if !(0.1..=1_440.0).contains(&minutes) {
        return Err("--minutes: from 0.1 to 1440".into());
    }
    Ok(Some((minutes, seed, keep_going, show)))
}

fn run(minutes: f64, seed: u64, keep_going: bool, show: bool) -> ExitCode {
    let binaries =
        Binaries { shoal: env!("CARGO_BIN_EXE_chaos-shoal").into(), whoami: env!("CARGO_BIN_EXE_chaos-whoami").into() };
    let mut soak = Soak::new(binaries, seed, Duration::from_secs_f64(minutes * 60.0));
    soak.keep_going = keep_going;
    if show {
        schedule(seed, soak.length, soak.shape).iter().for_each(|fault| println!("{fault}"));
        return ExitCode::SUCCESS;
    }
    if let Some(reason) = unusable().or_else(rules_unusable) {
        eprintln!("{reason}");
        return ExitCode::from(2);
    }
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    match runtime.block_on(soak.run()) {
        Ok(outcome) => {
            println!("{outcome}");
            if outcome.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("seed {seed}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
