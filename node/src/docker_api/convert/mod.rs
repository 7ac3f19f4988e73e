//! Between Docker's JSON objects (`wire`) and the cluster's own (`deploy::model`).
//!
//! What a user sent comes back as it was sent: an absent field stays absent. What the model cannot carry is refused
//! by the name of its field; what it carries is judged by `deploy::control`, not here. Pure: no store, no I/O.

mod cluster;
mod container;
mod network;
mod node;
mod run;
mod service;
mod task;

pub use cluster::{cluster_spec_from_wire, cluster_spec_to_wire, cluster_to_wire, node_tls_info, tls_info};
pub use container::{container_from_wire, container_to_wire};
pub(crate) use network::ipam_config;
pub use network::{attached_network, driver_of, is_of_one_host, network_spec_from_wire, network_to_wire};
pub use node::{node_spec_from_wire, node_to_wire};
pub use service::{insert_defaults, service_spec_from_wire, service_spec_to_wire, service_to_wire, task_spec_to_wire};
pub use task::{task_state_name, task_to_wire};

pub(crate) use node::role_name;
pub(crate) use run::{name_from_wire, plain_from_wire, update_from_wire};
pub(crate) use service::port_to_wire;
pub(crate) use task::desired_state_name;

use std::time::Duration;

use deploy::model::{Meta, Timestamp};
use serde_json::Value;
use time::OffsetDateTime;

use super::error::ApiError;
use super::wire::ObjectVersion;

/// A time that was never set, as Docker prints it.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// A point in time as Docker prints it: RFC 3339 in UTC with up to nine digits of a second.
pub fn time_to_wire(at: Timestamp) -> String {
    if at.is_never() {
        return NEVER.to_owned();
    }
    nanos_to_wire(at.nanos)
}

/// Nanoseconds after the Unix epoch as Docker prints them.
pub(crate) fn nanos_to_wire(nanos: u64) -> String {
    // Every u64 of nanoseconds lies before the year 2555, which both steps can represent.
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(nanos))
        .ok()
        .and_then(|at| at.format(&time::format_description::well_known::Rfc3339).ok())
        .unwrap_or_else(|| NEVER.to_owned())
}

/// The same with all nine digits, as lines of a log have it.
pub(crate) fn nanos_to_log(nanos: u64) -> String {
    // Without a fraction the text ends in `Z`, with one its digits come before that.
    let text = nanos_to_wire(nanos / 1_000_000_000 * 1_000_000_000);
    format!("{}.{:09}Z", text.trim_end_matches('Z'), nanos % 1_000_000_000)
}

/// The version of an object.
pub(crate) fn version(meta: &Meta) -> Option<ObjectVersion> {
    Some(ObjectVersion { index: Some(meta.version) })
}

/// The text, unless it is empty.
pub(crate) fn non_empty(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// The value, unless it is the default of its type.
pub(crate) fn non_default<T: Default + PartialEq + Clone>(value: &T) -> Option<T> {
    (*value != T::default()).then(|| value.clone())
}

/// A duration of an object as Docker counts it.
pub(crate) fn duration_to_wire(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// Nanoseconds as Docker counts them.
pub(crate) fn nanos_i64(nanos: u64) -> i64 {
    i64::try_from(nanos).unwrap_or(i64::MAX)
}

/// A number that may not be negative; `field` names it in the refusal.
pub(crate) fn unsigned(field: &str, value: i64) -> Result<u64, ApiError> {
    u64::try_from(value).map_err(|_| ApiError::invalid(format!("{field} cannot be negative: {value}")))
}

/// An optional number that may not be negative.
pub(crate) fn unsigned_opt(field: &str, value: Option<i64>) -> Result<Option<u64>, ApiError> {
    value.map(|v| unsigned(field, v)).transpose()
}

/// Refuses a field that the model does not carry when it says anything but "nothing".
pub(crate) fn refuse_set(field: &str, value: &Option<Value>) -> Result<(), ApiError> {
    match value {
        Some(v) if !says_nothing(v) => Err(ApiError::not_supported(format!("{field} is not supported yet"))),
        _ => Ok(()),
    }
}

/// Whether a JSON value is what Go's zero value encodes to, however nested.
fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.values().all(says_nothing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_lines_have_nine_digits() {
        assert_eq!(nanos_to_log(1_700_000_000_531_784_310), "2023-11-14T22:13:20.531784310Z");
        assert_eq!(nanos_to_log(1_700_000_000_000_000_000), "2023-11-14T22:13:20.000000000Z");
        assert_eq!(nanos_to_log(0), "1970-01-01T00:00:00.000000000Z");
    }

    #[test]
    fn times_are_printed_as_docker_prints_them() {
        assert_eq!(time_to_wire(Timestamp::from_nanos(0)), "0001-01-01T00:00:00Z");
        assert_eq!(time_to_wire(Timestamp::from_nanos(1_795_198_378_608_716_200)), "2026-11-20T18:12:58.6087162Z");
        assert_eq!(time_to_wire(Timestamp::from_nanos(1_000_000_000)), "1970-01-01T00:00:01Z");
        assert_eq!(time_to_wire(Timestamp::from_nanos(u64::MAX)), "2554-07-21T23:34:33.709551615Z");
    }

    #[test]
    fn a_value_without_content_is_not_refused() {
        let nothing = serde_json::json!({"a": null, "b": {"c": []}, "d": 0, "e": ""});
        assert!(refuse_set("X", &Some(nothing)).is_ok());
        let error = refuse_set("X.Y", &Some(serde_json::json!({"a": {"b": 1}}))).unwrap_err();
        assert_eq!(error.message, "X.Y is not supported yet");
    }
}
