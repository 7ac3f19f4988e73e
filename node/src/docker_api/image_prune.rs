//! `POST /images/prune`: removes images of this host that no container uses.

use std::collections::BTreeSet;

use axum::Json;
use deploy::model::Labels;
use runtime::image::ImageSummary;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::App;
use super::error::ApiError;
use super::extract::Params;
use super::filters::Filters;
use super::images::{ask_in_use, blocking, removed_line};
use crate::engine::Engine;
use crate::images::gc::used;

/// Docker's filters: `dangling` (yes unless it is told no), `label`, `label!`, `until`.
pub(super) async fn prune<E: Engine>(app: &App<E>, params: &Params) -> Result<Json<Value>, ApiError> {
    let filters = params.filters(&["dangling", "label", "label!", "until"])?;
    let only_dangling = filters.flag("dangling")?.unwrap_or(true);
    let until = until(&filters)?;
    let wanted = move |image: &ImageSummary| {
        (!only_dangling || image.references.is_empty())
            && all_labels(filters.values("label"), &image.labels, true)
            && all_labels(filters.values("label!"), &image.labels, false)
            && until.is_none_or(|until| image.created < until)
    };
    let ask = ask_in_use(app);
    let pruned = blocking(app.engine.images(), move |images| images.prune(&wanted, &used(ask))).await?;
    let removed: Vec<Value> = pruned.removed.iter().map(removed_line).collect();
    let removed = if removed.is_empty() { Value::Null } else { removed.into() };
    Ok(Json(json!({ "ImagesDeleted": removed, "SpaceReclaimed": pruned.freed })))
}

/// Whether something has each of these labels, or none of them. What removes must not take one for enough, as lists do.
pub(super) fn all_labels(wanted: Option<&BTreeSet<String>>, labels: &Labels, has: bool) -> bool {
    wanted.into_iter().flatten().all(|wanted| {
        let found = match wanted.split_once('=') {
            Some((name, value)) => labels.get(name).is_some_and(|v| v == value),
            None => labels.contains_key(wanted),
        };
        found == has
    })
}

/// The time before which what is removed must have been made: Unix seconds, RFC 3339, or how long ago.
pub(super) fn until(filters: &Filters) -> Result<Option<i64>, ApiError> {
    let Some(values) = filters.values("until") else { return Ok(None) };
    let mut values = values.iter();
    match (values.next(), values.next()) {
        (Some(text), None) => match time_of(text, OffsetDateTime::now_utc()) {
            Some(at) => Ok(Some(at)),
            None => Err(ApiError::invalid(format!("invalid filter 'until={text}'"))),
        },
        _ => Err(ApiError::invalid("more than one until filter specified")),
    }
}

fn time_of(text: &str, now: OffsetDateTime) -> Option<i64> {
    if let Ok(ago) = humantime::parse_duration(text).map(|ago| ago.as_secs()) {
        return now.unix_timestamp().checked_sub(i64::try_from(ago).ok()?);
    }
    let seconds = text.split('.').next().unwrap_or_default();
    if let Ok(seconds) = seconds.parse() {
        return Some(seconds);
    }
    OffsetDateTime::parse(text, &Rfc3339).ok().map(OffsetDateTime::unix_timestamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_docker_takes_them() {
        let now = OffsetDateTime::from_unix_timestamp(1_000_000).unwrap();
        for (text, expected) in [
            ("24h", Some(913_600)),
            ("1h30m", Some(994_600)),
            ("5000", Some(5000)),
            ("5000.123", Some(5000)),
            ("1970-01-01T01:00:00Z", Some(3600)),
            ("yesterday", None),
            ("", None),
        ] {
            assert_eq!(time_of(text, now), expected, "{text}");
        }
    }

    #[test]
    fn every_label_counts() {
        let labels = Labels::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())]);
        let wanted = |of: &[&str]| of.iter().map(|s| (*s).to_owned()).collect::<BTreeSet<_>>();
        assert!(all_labels(None, &labels, true) && all_labels(None, &labels, false));
        assert!(all_labels(Some(&wanted(&["a", "b=2"])), &labels, true));
        assert!(!all_labels(Some(&wanted(&["a", "b=3"])), &labels, true));
        assert!(all_labels(Some(&wanted(&["b=3", "c"])), &labels, false));
        assert!(!all_labels(Some(&wanted(&["a", "c"])), &labels, false));
    }
}
