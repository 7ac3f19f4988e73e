//! Which health check a container has: the service's, over the image's, over Docker's defaults.

use std::time::Duration;

use deploy::model::Healthcheck;
use serde::{Deserialize, Serialize};

use super::machine::Check;

const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: u32 = 3;
/// Of an image that names no other.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];

/// Docker's object in an image's configuration, and in what is shown of a container. What is negative reads as absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Wanted {
    #[serde(skip_serializing_if = "Option::is_none")]
    test: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interval: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_period: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_interval: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retries: Option<i64>,
}

/// Docker's rule: what the service does not say is the image's, each field for itself.
fn merge(service: Option<&Healthcheck>, image: Option<&serde_json::Value>) -> Wanted {
    let image = image.and_then(|value| Wanted::deserialize(value).ok()).unwrap_or_default();
    let default = Healthcheck::default();
    let service = service.unwrap_or(&default);
    let number = |service: u64, image: Option<i64>| {
        let service = i64::try_from(service).unwrap_or(i64::MAX);
        Some(service).filter(|value| *value > 0).or(image.filter(|value| *value > 0))
    };
    Wanted {
        test: Some(service.test.clone()).filter(|test| !test.is_empty()).or(image.test),
        interval: number(service.interval_ns, image.interval),
        timeout: number(service.timeout_ns, image.timeout),
        start_period: number(service.start_period_ns, image.start_period),
        start_interval: number(service.start_interval_ns, image.start_interval),
        retries: number(service.retries.into(), image.retries),
    }
}

/// What Docker shows as a container's check; `None` where neither the service nor the image says anything.
pub(crate) fn shown(service: Option<&Healthcheck>, image: Option<&serde_json::Value>) -> Option<serde_json::Value> {
    let wanted = merge(service, image);
    if wanted == Wanted::default() { None } else { serde_json::to_value(wanted).ok() }
}

/// The check of a container; `None` when it has none. A check of an image that does not read as one is none. `shell` is
/// the image's, empty where it names none.
pub(crate) fn check(
    service: Option<&Healthcheck>,
    image: Option<&serde_json::Value>,
    shell: &[String],
) -> Option<Check> {
    let wanted = merge(service, image);
    let test = wanted.test.unwrap_or_default();
    let command = match test.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["CMD", _, ..] => test[1..].to_vec(),
        ["CMD-SHELL", _, ..] if shell.is_empty() => [&SHELL.map(str::to_owned), &test[1..]].concat(),
        ["CMD-SHELL", _, ..] => [shell, &test[1..]].concat(),
        _ => return None,
    };
    let nanos = |chosen: Option<i64>, default: Duration| {
        chosen.and_then(|nanos| u64::try_from(nanos).ok()).map_or(default, Duration::from_nanos)
    };
    Some(Check {
        command,
        interval: nanos(wanted.interval, INTERVAL),
        timeout: nanos(wanted.timeout, TIMEOUT),
        start_period: nanos(wanted.start_period, Duration::ZERO),
        start_interval: nanos(wanted.start_interval, START_INTERVAL),
        retries: wanted.retries.and_then(|retries| u32::try_from(retries).ok()).unwrap_or(RETRIES),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(test: &[&str]) -> Healthcheck {
        Healthcheck { test: test.iter().map(|word| (*word).to_owned()).collect(), ..Healthcheck::default() }
    }

    #[test]
    fn the_service_wins_over_the_image_and_the_image_over_the_defaults() {
        let image = json!({"Test": ["CMD-SHELL", "wget x"], "Interval": 7_000_000_000i64, "Retries": 9});
        let of_image = check(None, Some(&image), &[]).unwrap();
        assert_eq!(of_image.command, ["/bin/sh", "-c", "wget x"]);
        assert_eq!((of_image.interval, of_image.timeout), (Duration::from_secs(7), TIMEOUT));
        assert_eq!((of_image.start_period, of_image.start_interval), (Duration::ZERO, START_INTERVAL));
        let both =
            check(Some(&Healthcheck { retries: 2, ..service(&["CMD", "probe", "-x"]) }), Some(&image), &[]).unwrap();
        assert_eq!((both.command, both.retries), (vec!["probe".to_owned(), "-x".to_owned()], 2));
        assert_eq!(both.interval, Duration::from_secs(7));
        // Only times: the image's command.
        let timed = Healthcheck { timeout_ns: 1_000_000, ..Healthcheck::default() };
        assert_eq!(check(Some(&timed), Some(&image), &[]).unwrap().timeout, Duration::from_millis(1));
    }

    #[test]
    fn a_line_is_run_by_the_shell_of_the_image() {
        let line = json!({"Test": ["CMD-SHELL", "exit 1"]});
        let shell = ["/bin/ash".to_owned(), "-ec".to_owned()];
        assert_eq!(check(None, Some(&line), &shell).unwrap().command, ["/bin/ash", "-ec", "exit 1"]);
        let line = json!({"Test": ["CMD-SHELL", "echo $0", "said"]});
        assert_eq!(check(None, Some(&line), &[]).unwrap().command, ["/bin/sh", "-c", "echo $0", "said"]);
    }

    #[test]
    fn what_is_shown_is_what_was_said() {
        let image = json!({"Test": ["CMD-SHELL", "wget x"], "Interval": 7, "Retries": -1, "Unknown": {}});
        assert_eq!(shown(None, Some(&image)), Some(json!({"Test": ["CMD-SHELL", "wget x"], "Interval": 7})));
        let none = service(&["NONE"]);
        assert_eq!(shown(Some(&none), Some(&image)), Some(json!({"Test": ["NONE"], "Interval": 7})));
        assert_eq!((shown(None, None), shown(Some(&Healthcheck::default()), None)), (None, None));
    }

    #[test]
    fn there_may_be_none() {
        let image = json!({"Test": ["CMD", "x"]});
        assert_eq!(check(None, None, &[]), None);
        assert_eq!(check(Some(&service(&["NONE"])), Some(&image), &[]), None);
        assert_eq!(check(Some(&Healthcheck { retries: 2, ..Healthcheck::default() }), None, &[]), None);
        for odd in [json!({}), json!(null), json!(5), json!({"Test": "x"}), json!({"Test": ["x"]}), json!({"Test": []})]
        {
            assert_eq!(check(None, Some(&odd), &[]), None, "{odd}");
        }
        let odd = json!({"Test": ["CMD", "x"], "Interval": -1, "Retries": i64::MAX});
        let odd = check(None, Some(&odd), &[]).unwrap();
        assert_eq!((odd.interval, odd.retries), (INTERVAL, RETRIES));
    }
}
