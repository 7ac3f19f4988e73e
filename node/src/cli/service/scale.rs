//! `shoal service scale web=5 api=2`: all or nothing as far as that can be known beforehand.

use super::progress::{self, After};
use super::{change, find, spec};
use crate::cli::client::Client;
use crate::cli::error::CliError;
use crate::cli::output;

/// More can be no more than a typing error.
const MAX_REPLICAS: u64 = 1_000_000;

/// A service and its new number of tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Pair {
    service: String,
    replicas: u64,
}

/// Reads `SERVICE=REPLICAS`, all of them, before anything is done.
pub(super) fn pairs(given: &[String]) -> Result<Vec<Pair>, CliError> {
    let mut pairs: Vec<Pair> = Vec::new();
    let mut errors = Vec::new();
    for text in given {
        match pair(text) {
            Ok(pair) if pairs.iter().any(|p| p.service == pair.service) => {
                errors.push(CliError::usage(format!("{text}: service {} is named twice", pair.service)));
            }
            Ok(pair) => pairs.push(pair),
            Err(why) => errors.push(CliError::usage(format!("{text}: {why}"))),
        }
    }
    CliError::all(errors)?;
    Ok(pairs)
}

fn pair(text: &str) -> Result<Pair, String> {
    let (service, replicas) =
        text.split_once('=').filter(|(service, _)| !service.is_empty()).ok_or("it must look like SERVICE=REPLICAS")?;
    let digits = !replicas.is_empty() && replicas.bytes().all(|b| b.is_ascii_digit());
    let replicas = digits
        .then(|| replicas.parse().ok())
        .flatten()
        .filter(|n| *n <= MAX_REPLICAS)
        .ok_or_else(|| format!("{replicas:?} is no number of tasks (0 to {MAX_REPLICAS})"))?;
    Ok(Pair { service: service.to_owned(), replicas })
}

pub(super) async fn run(client: &Client, pairs: &[Pair], detach: bool) -> Result<(), CliError> {
    // All services must be there and scalable before the first one is changed.
    let mut errors = Vec::new();
    for pair in pairs {
        let checked = find(client, &pair.service).await.and_then(|found| {
            let mut spec = found.spec.unwrap_or_default();
            spec::set_replicas(&mut spec, pair.replicas, &pair.service)
        });
        errors.extend(checked.err());
    }
    CliError::all(errors)?;
    let mut errors = Vec::new();
    let mut changed = Vec::new();
    for pair in pairs {
        match change(client, &pair.service, false, |spec| spec::set_replicas(spec, pair.replicas, &pair.service)).await
        {
            Ok(before) => {
                output::line(format_args!("{} scaled to {}", pair.service, pair.replicas))?;
                changed.push((pair, before));
            }
            Err(e) => errors.push(e),
        }
    }
    if !detach {
        for (pair, before) in changed {
            errors.extend(progress::wait(client, &pair.service, After::Update, before, false).await.err());
        }
    }
    CliError::all(errors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(given: &[&str], expected: Result<&[(&str, u64)], &str>) {
        let given: Vec<String> = given.iter().map(|s| (*s).to_owned()).collect();
        match (pairs(&given), expected) {
            (Ok(pairs), Ok(expected)) => {
                let found: Vec<(&str, u64)> = pairs.iter().map(|p| (p.service.as_str(), p.replicas)).collect();
                assert_eq!(found, expected);
            }
            (Err(error), Err(word)) => {
                assert_eq!(error.code(), 2);
                assert!(error.to_string().contains(word), "{error}");
            }
            (found, _) => panic!("{given:?}: {found:?}"),
        }
    }

    #[test]
    fn pairs_are_read_as_a_whole() {
        check(&["web=5", "api=0"], Ok(&[("web", 5), ("api", 0)]));
        check(&["web=-1"], Err("\"-1\""));
        check(&["web=+1"], Err("\"+1\""));
        check(&["web"], Err("SERVICE=REPLICAS"));
        check(&["=3"], Err("SERVICE=REPLICAS"));
        check(&["web="], Err("no number"));
        check(&["web=99999999999999999999"], Err("no number"));
        check(&["web=1", "web=2"], Err("twice"));
        // Every mistake is told, not only the first.
        check(&["a=x", "b=y"], Err("a=x: \"x\" is no number of tasks (0 to 1000000)\nb=y"));
    }
}
