//! `shoal __enter NETNS HOSTNAME -- COMMAND...`: becomes a process of another host.
//!
//! A process with threads cannot change its namespaces as a whole, so hosts are entered by a fresh process that has
//! one thread and then executes what is to run there.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use nix::sched::{CloneFlags, unshare};

/// Runs with the arguments behind `__enter`. Returns only on failure, with exit code 125 (as `env` and `docker run`
/// do), after the reason was written to standard error. Must be called before any thread exists.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let reason = match parse(args) {
        Some((netns, hostname, command)) => enter(&netns, &hostname, command),
        None => "usage: __enter NETNS HOSTNAME -- COMMAND...".to_owned(),
    };
    eprintln!("{reason}");
    ExitCode::from(125)
}

fn parse(mut args: impl Iterator<Item = OsString>) -> Option<(OsString, OsString, Vec<OsString>)> {
    let (netns, hostname) = (args.next()?, args.next()?);
    if args.next()? != "--" {
        return None;
    }
    let command: Vec<OsString> = args.collect();
    (!command.is_empty()).then_some((netns, hostname, command))
}

/// Goes there and executes the command; answers why it could not.
fn enter(netns: &OsString, hostname: &OsString, command: Vec<OsString>) -> String {
    if let Err(error) = overlay_net::kernel::enter(Path::new(netns)) {
        return format!("cannot enter the network namespace {}: {error}", Path::new(netns).display());
    }
    if let Err(error) = unshare(CloneFlags::CLONE_NEWUTS).and_then(|()| nix::unistd::sethostname(hostname)) {
        return format!("cannot set the host name: {error}");
    }
    let error = Command::new(&command[0]).args(&command[1..]).exec();
    format!("cannot execute {}: {error}", Path::new(&command[0]).display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_stands_behind_two_dashes() {
        let parsed = |words: &[&str]| parse(words.iter().map(OsString::from)).map(|(_, _, command)| command.len());
        assert_eq!(parsed(&["/ns", "host-1", "--", "true", "--", "x"]), Some(3));
        for wrong in [&[][..], &["/ns"], &["/ns", "host-1"], &["/ns", "host-1", "true"], &["/ns", "host-1", "--"]] {
            assert_eq!(parsed(wrong), None, "{wrong:?}");
        }
    }
}
