//! A harness of its own, for test binaries that must look at their arguments before any thread exists.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

/// A test with its full name.
pub type Test = (&'static str, fn());

/// Runs the tests that `args` ask for (parts of names, `--exact`, `--list`; `name=value` is for the tests), one after
/// another. They are skipped when they are not `possible`; `clean_up` comes after the last one, whatever happened.
pub fn run(
    what: &str,
    args: &[String],
    tests: &[&[Test]],
    possible: fn() -> Result<(), String>,
    clean_up: fn(),
) -> ExitCode {
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-') && !arg.contains('=')).collect();
    let exact = args.iter().any(|arg| arg == "--exact");
    let wanted = |name: &str| {
        filters.is_empty() || filters.iter().any(|f| if exact { *f == name } else { name.contains(f.as_str()) })
    };
    let tests: Vec<Test> = tests.concat().into_iter().filter(|(name, _)| wanted(name)).collect();
    if args.iter().any(|arg| arg == "--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if let Err(reason) = possible() {
        println!("skipping all {} {what} tests: {reason}", tests.len());
        return if in_machine() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let mut failed = Vec::new();
    for (name, test) in &tests {
        let begin = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(test));
        let word = if outcome.is_ok() { "ok" } else { "FAILED" };
        println!("test {name} ... {word} ({} ms)", begin.elapsed().as_millis());
        if outcome.is_err() {
            failed.push(*name);
        }
    }
    clean_up();
    println!("{} passed, {} failed: {failed:?}", tests.len() - failed.len(), failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether this is the machine that `.ci/machine` boots for these tests, where nothing that they need is missing.
pub fn in_machine() -> bool {
    std::env::var_os("SHOAL_TEST_MACHINE").is_some()
}

/// Runs a payload's words, `verb [argument]...` several times divided by `then`, up to the first verb with an exit code.
pub fn play(args: &[String], act: fn(&str, &[String]) -> Option<u8>) -> ExitCode {
    for words in args.split(|word| word == "then") {
        let (verb, rest) = words.split_first().expect("a verb");
        if let Some(code) = act(verb, rest) {
            return ExitCode::from(code);
        }
    }
    ExitCode::SUCCESS
}
