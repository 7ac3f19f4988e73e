//! A container's health as Docker shows it.

use runtime::{ContainerState, Runtime, Status};
use serde_json::{Value, json};

use super::super::convert::nanos_to_wire;
use crate::agent::health::{self, Health, HealthView};

/// What is known of a container's health; `None` where it has no check.
pub(super) async fn of(runtime: &Runtime, state: &ContainerState) -> Option<HealthView> {
    let mut view = health::known(runtime, &state.id).await?;
    // As with Docker: what is not asked any more is not well.
    if matches!(state.status, Status::Exited(_)) {
        view.health = Health::Unhealthy;
    }
    Some(view)
}

/// Docker's word, also for a container without a check.
pub(super) fn word(health: Option<&HealthView>) -> &'static str {
    health.map_or("none", |view| view.health.word())
}

/// Docker's `State.Health`.
pub(super) fn object(view: &HealthView) -> Value {
    let log = view.log.iter().map(|result| {
        json!({
            "Start": nanos_to_wire(result.start.nanos),
            "End": nanos_to_wire(result.end.nanos),
            "ExitCode": result.exit_code,
            "Output": result.output,
        })
    });
    json!({"Status": word(Some(view)), "FailingStreak": view.failing_streak, "Log": log.collect::<Vec<_>>()})
}
