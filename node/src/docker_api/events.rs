//! `GET /events`: what happens to the containers, images and volumes of this host.
//!
//! Answers have no buffer of their own: the runtime keeps a journal of bounded size, and each answer is a place in it.
//! Who reads too slowly is overtaken by it, told so in a last line, and cut off; whoever does not even read that, too.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::header::CONTENT_TYPE;
use runtime::{Event, EventKind, Listener, Overtaken};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::App;
use super::containers::find;
use super::error::ApiError;
use super::extract::Params;
use super::filters::Filters;
use super::logs::unix_nanos;
use super::server::Hangup;
use crate::agent::{IMAGE_LABEL, IMAGE_NAME_LABEL};
use crate::engine::Engine;

/// How long somebody who was overtaken may take to read that it was.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// Filters that mean an object of their kind, by the beginning of its id or name.
const KINDS: [&str; 9] = ["config", "container", "daemon", "network", "node", "plugin", "secret", "service", "volume"];
const FILTERS: [&str; 14] = [
    "config",
    "container",
    "daemon",
    "event",
    "image",
    "label",
    "network",
    "node",
    "plugin",
    "scope",
    "secret",
    "service",
    "type",
    "volume",
];
/// Actions that have more behind them than their word, and are meant by it.
const LONG_ACTIONS: [&str; 3] = ["exec_create", "exec_start", "health_status"];

pub(super) async fn events<E: Engine>(
    State(app): State<App<E>>,
    hangup: Option<Extension<Hangup>>,
    params: Params,
) -> Result<Response, ApiError> {
    let filters = params.filters(&FILTERS)?;
    let given = |name: &str| params.get(name).filter(|given| !given.is_empty());
    let since = unix_nanos("since", given("since"))?;
    let until = given("until").map(|until| unix_nanos("until", Some(until))).transpose()?;
    if until.is_some_and(|until| since > until) {
        return Err(ApiError::invalid("`since` time cannot be after `until` time"));
    }
    let events = app.engine.containers().map(|containers| containers.runtime.events()).unwrap_or_default();
    // As with Docker, any bound asks for the past.
    let listener = match given("since").is_some() || until.is_some() {
        true => events.listen_from_the_oldest(),
        false => events.listen(),
    };
    if let Some(Extension(hangup)) = hangup {
        let overtaken = listener.overtaken();
        hangup.when(async move {
            overtaken.await;
            tokio::time::sleep(LAST_WORDS).await;
        });
    }
    let engine = app.engine.engine_id();
    let answer = Answer { engine, listener, filters, since, until, cut: None, shutdown: app.shutdown.clone() };
    let lines = futures_util::stream::unfold(answer, |mut answer| async {
        let line = answer.next().await?;
        Some((line, answer))
    });
    Ok(([(CONTENT_TYPE, "application/json")], Body::from_stream(lines)).into_response())
}

struct Answer {
    engine: String,
    listener: Listener,
    filters: Filters,
    since: u64,
    until: Option<u64>,
    /// It was overtaken, and has been told.
    cut: Option<Overtaken>,
    shutdown: CancellationToken,
}

impl Answer {
    /// The next line; an error breaks the connection off, so that nobody takes that for the end.
    async fn next(&mut self) -> Option<Result<Bytes, Overtaken>> {
        if let Some(overtaken) = self.cut {
            // An error at once would throw away what is on its way.
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => {}
                () = tokio::time::sleep(LAST_WORDS) => {}
            }
            return Some(Err(overtaken));
        }
        let left = self.until.map(|until| Duration::from_nanos(until.saturating_sub(nanos(SystemTime::now()))));
        let end = left.and_then(|left| Instant::now().checked_add(left));
        let over = async {
            match end {
                Some(end) => tokio::time::sleep_until(end).await,
                None => std::future::pending().await,
            }
        };
        let mut over = std::pin::pin!(over);
        loop {
            let event = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return None,
                event = self.listener.next() => event,
                () = &mut over => return None,
            };
            let event = match event {
                Ok(event) => event,
                Err(overtaken) => {
                    self.cut = Some(overtaken);
                    return Some(Ok(line(&last_words(&self.engine, overtaken))));
                }
            };
            let at = nanos(event.at);
            if self.until.is_some_and(|until| at > until) {
                return None;
            }
            if at < self.since {
                continue;
            }
            let shown = Shown::new(&event);
            if shown.passes(&self.filters) {
                return Some(Ok(line(&shown.object())));
            }
        }
    }
}

fn line(value: &Value) -> Bytes {
    Bytes::from(format!("{value}\n"))
}

fn nanos(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn last_words(engine: &str, overtaken: Overtaken) -> Value {
    let at = nanos(SystemTime::now());
    let attributes = json!({"lost": overtaken.lost.to_string(), "reason": "this client reads too slowly"});
    json!({
        "Type": "daemon",
        "Action": "overrun",
        "Actor": {"ID": engine, "Attributes": attributes},
        "scope": "local",
        "time": at / 1_000_000_000,
        "timeNano": at,
    })
}

/// An event as Docker shows it.
struct Shown<'a> {
    event: &'a Event,
    attributes: BTreeMap<&'a str, &'a str>,
}

impl<'a> Shown<'a> {
    fn new(event: &'a Arc<Event>) -> Self {
        let labels = &event.labels;
        let mut attributes: BTreeMap<&str, &str> =
            labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        if event.kind == EventKind::Container {
            let image = labels.get(IMAGE_NAME_LABEL).or_else(|| labels.get(IMAGE_LABEL));
            attributes.insert("image", image.map(String::as_str).unwrap_or_default());
            attributes.insert("name", find::name_of(&event.id, labels));
        }
        attributes.extend(event.attributes.iter().map(|(key, value)| (*key, value.as_str())));
        Self { event, attributes }
    }

    fn attribute(&self, key: &str) -> &str {
        self.attributes.get(key).copied().unwrap_or_default()
    }

    fn passes(&self, filters: &Filters) -> bool {
        let (action, id) = (self.event.action.as_str(), self.event.id.as_str());
        let long = filters.values("event").is_some_and(|values| LONG_ACTIONS.iter().any(|word| values.contains(*word)));
        let of_kind = |kind: &str| filters.prefix(kind, id) || filters.prefix(kind, self.attribute("name"));
        let labelled = |wanted: &str| match wanted.split_once('=') {
            Some((key, value)) => self.attributes.get(key) == Some(&value),
            None => self.attributes.contains_key(wanted),
        };
        (if long { filters.prefix("event", action) } else { filters.exact("event", action) })
            && filters.exact("type", self.event.kind.word())
            && filters.exact("scope", "local")
            && KINDS.iter().all(|kind| of_kind(kind))
            && self.is_of_image(filters)
            // All of them, unlike with other filters.
            && filters.values("label").into_iter().flatten().all(|wanted| labelled(wanted))
    }

    fn is_of_image(&self, filters: &Filters) -> bool {
        let name = match self.event.kind {
            EventKind::Image => self.attribute("name"),
            _ => self.attribute("image"),
        };
        let names = [&self.event.id, name];
        filters.any("image", |wanted| names.iter().any(|name| *name == wanted || untagged(name) == wanted))
    }

    fn object(&self) -> Value {
        let (action, id, at) = (&self.event.action, &self.event.id, nanos(self.event.at));
        let mut object = json!({
            "Type": self.event.kind.word(),
            "Action": action,
            "Actor": {"ID": id, "Attributes": self.attributes},
            "scope": "local",
            "time": at / 1_000_000_000,
            "timeNano": at,
        });
        // What clients of long ago read.
        if matches!(self.event.kind, EventKind::Container | EventKind::Image) {
            object["status"] = action.as_str().into();
            object["id"] = id.as_str().into();
        }
        if self.event.kind == EventKind::Container {
            object["from"] = self.attribute("image").into();
        }
        object
    }
}

/// The name of an image without tag and digest.
fn untagged(name: &str) -> &str {
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    match name.rsplit_once(':') {
        // Of a port of its registry.
        Some((_, tag)) if tag.contains('/') => name,
        Some((name, _)) => name,
        None => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Arc<Event> {
        let labels = [
            (IMAGE_NAME_LABEL, "reg.local:5000/web:1@sha256:aa"),
            ("com.docker.swarm.task.name", "web.1.t"),
            ("tier", "front"),
        ];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
        Arc::new(Event {
            at: SystemTime::UNIX_EPOCH + Duration::from_nanos(5_000_000_007),
            kind: EventKind::Container,
            action: "health_status: healthy".into(),
            id: "c0ffee".into(),
            labels: Arc::new(labels.into()),
            attributes: vec![("exitCode", "7".into())],
        })
    }

    #[track_caller]
    fn check(filters: Value, expected: bool) {
        let event = event();
        let parsed = Filters::parse(&filters.to_string(), &FILTERS).unwrap();
        assert_eq!(Shown::new(&event).passes(&parsed), expected, "{filters}");
    }

    #[test]
    fn filters_mean_what_they_mean_to_docker() {
        for passes in [
            json!({}),
            json!({"type": ["container"], "event": ["health_status"]}),
            json!({"event": ["health_status: healthy"]}),
            json!({"container": ["web.1"]}),
            json!({"container": ["c0f"]}),
            json!({"image": ["reg.local:5000/web"]}),
            json!({"image": ["reg.local:5000/web:1@sha256:aa"]}),
            json!({"label": ["tier", "tier=front"]}),
            json!({"scope": ["local"]}),
        ] {
            check(passes, true);
        }
        for stays in [
            json!({"type": ["image"]}),
            json!({"event": ["health"]}),
            json!({"container": ["eb.1"]}),
            json!({"volume": ["data"]}),
            json!({"image": ["web"]}),
            json!({"label": ["tier=front", "tier=back"]}),
            json!({"scope": ["swarm"]}),
        ] {
            check(stays, false);
        }
    }

    #[test]
    fn it_looks_as_with_docker() {
        let event = event();
        let image = "reg.local:5000/web:1@sha256:aa";
        assert_eq!(
            Shown::new(&event).object(),
            json!({
                "Type": "container", "Action": "health_status: healthy", "scope": "local", "time": 5,
                "timeNano": 5_000_000_007u64, "status": "health_status: healthy", "id": "c0ffee", "from": image,
                "Actor": {"ID": "c0ffee", "Attributes": {
                    "image": image, "name": "web.1.t", "tier": "front", "exitCode": "7",
                    "com.docker.swarm.task.name": "web.1.t", IMAGE_NAME_LABEL: image,
                }},
            })
        );
    }
}
