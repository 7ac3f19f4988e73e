//! Which health check a container has: the service's, over the image's, over Docker's defaults.

use std::time::Duration;

use deploy::model::Healthcheck;
use serde::Deserialize;

use super::machine::Check;

const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: u32 = 3;

/// Docker's object in an image's configuration. What is negative or too large reads as absent.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct OfImage {
    test: Option<Vec<String>>,
    interval: Option<i64>,
    timeout: Option<i64>,
    start_period: Option<i64>,
    start_interval: Option<i64>,
    retries: Option<i64>,
}

/// The check of a container; `None` when it has none. A check of an image that does not read as one is none.
pub(crate) fn check(service: Option<&Healthcheck>, image: Option<&serde_json::Value>) -> Option<Check> {
    let image = image.and_then(|value| OfImage::deserialize(value).ok()).unwrap_or_default();
    let default = Healthcheck::default();
    let service = service.unwrap_or(&default);
    let test = if service.test.is_empty() { image.test.unwrap_or_default() } else { service.test.clone() };
    let command = match test.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["CMD", _, ..] => test[1..].to_vec(),
        ["CMD-SHELL", script] => ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        _ => return None,
    };
    let nanos = |service: u64, image: Option<i64>, default: Duration| {
        let image = image.and_then(|nanos| u64::try_from(nanos).ok()).filter(|nanos| *nanos > 0);
        let chosen = Some(service).filter(|nanos| *nanos > 0).or(image);
        chosen.map_or(default, Duration::from_nanos)
    };
    let retries = image.retries.and_then(|retries| u32::try_from(retries).ok()).filter(|retries| *retries > 0);
    Some(Check {
        command,
        interval: nanos(service.interval_ns, image.interval, INTERVAL),
        timeout: nanos(service.timeout_ns, image.timeout, TIMEOUT),
        start_period: nanos(service.start_period_ns, image.start_period, Duration::ZERO),
        start_interval: nanos(service.start_interval_ns, image.start_interval, START_INTERVAL),
        retries: Some(service.retries).filter(|retries| *retries > 0).or(retries).unwrap_or(RETRIES),
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
        let of_image = check(None, Some(&image)).unwrap();
        assert_eq!(of_image.command, ["/bin/sh", "-c", "wget x"]);
        assert_eq!((of_image.interval, of_image.timeout), (Duration::from_secs(7), TIMEOUT));
        assert_eq!((of_image.start_period, of_image.start_interval), (Duration::ZERO, START_INTERVAL));
        let both = check(Some(&Healthcheck { retries: 2, ..service(&["CMD", "probe", "-x"]) }), Some(&image)).unwrap();
        assert_eq!((both.command, both.retries), (vec!["probe".to_owned(), "-x".to_owned()], 2));
        assert_eq!(both.interval, Duration::from_secs(7));
        // Only times: the image's command.
        let timed = Healthcheck { timeout_ns: 1_000_000, ..Healthcheck::default() };
        assert_eq!(check(Some(&timed), Some(&image)).unwrap().timeout, Duration::from_millis(1));
    }

    #[test]
    fn there_may_be_none() {
        let image = json!({"Test": ["CMD", "x"]});
        assert_eq!(check(None, None), None);
        assert_eq!(check(Some(&service(&["NONE"])), Some(&image)), None);
        assert_eq!(check(Some(&Healthcheck { retries: 2, ..Healthcheck::default() }), None), None);
        for odd in [json!({}), json!(null), json!(5), json!({"Test": "x"}), json!({"Test": ["x"]}), json!({"Test": []})]
        {
            assert_eq!(check(None, Some(&odd)), None, "{odd}");
        }
        let odd = json!({"Test": ["CMD", "x"], "Interval": -1, "Retries": i64::MAX});
        let odd = check(None, Some(&odd)).unwrap();
        assert_eq!((odd.interval, odd.retries), (INTERVAL, RETRIES));
    }
}
