//! `GET /containers/{id}/stats`: Docker's counters, once or every second.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::header::CONTENT_TYPE;
use runtime::{BlockUsage, CgroupLayout, ContainerState, Stats};
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::super::App;
use super::super::error::ApiError;
use super::super::extract::Params;
use super::find::{self, failed, is_running};
use super::inspect::time;
use crate::containers::Containers;
use crate::engine::Engine;

/// Docker's pace.
const EVERY: Duration = Duration::from_secs(1);

pub(in super::super) async fn stats<E: Engine>(
    State(app): State<App<E>>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, ApiError> {
    let stream = params.get("stream").is_none() || params.flag("stream");
    let one_shot = params.flag("one-shot");
    if stream && one_shot {
        return Err(ApiError::invalid("cannot have stream=true and one-shot=true"));
    }
    let (containers, state) = find::find(&app, &id).await?;
    if !is_running(&state) {
        let nothing = line(&nothing(&state));
        return Ok(answer(Body::from(nothing)));
    }
    let mut source = Source { containers, state, before: None, shutdown: app.shutdown.clone() };
    if !stream {
        if !one_shot {
            // The rate of the processor needs two looks.
            source.next().await?;
            tokio::time::sleep(EVERY).await;
        }
        let last = source.next().await?;
        return Ok(answer(Body::from(line(&last))));
    }
    let first = source.next().await?;
    let later = futures_util::stream::unfold(source, |mut source| async {
        tokio::select! {
            biased;
            () = source.shutdown.cancelled() => return None,
            () = tokio::time::sleep(EVERY) => {}
        }
        // It has ended.
        let value = source.next().await.ok()?;
        Some((line(&value), source))
    });
    let lines = futures_util::StreamExt::chain(futures_util::stream::once(async move { line(&first) }), later);
    Ok(answer(Body::from_stream(futures_util::StreamExt::map(lines, Ok::<_, std::io::Error>))))
}

fn answer(body: Body) -> Response {
    ([(CONTENT_TYPE, "application/json")], body).into_response()
}

fn line(value: &Value) -> Bytes {
    Bytes::from(format!("{value}\n"))
}

struct Source {
    containers: Containers,
    state: ContainerState,
    before: Option<Stats>,
    shutdown: CancellationToken,
}

impl Source {
    async fn next(&mut self) -> Result<Value, ApiError> {
        let stats = self.containers.runtime.stats(&self.state.id).await.map_err(|error| failed(&error))?;
        let value = object(&self.state, &stats, self.before.as_ref(), self.containers.runtime.cgroup_layout());
        self.before = Some(stats);
        Ok(value)
    }
}

/// What Docker says of a container that does not run.
fn nothing(state: &ContainerState) -> Value {
    json!({
        "name": format!("/{}", find::name(state)),
        "id": state.id,
        "read": time(None),
        "preread": time(None),
        "num_procs": 0,
        "pids_stats": {},
        "cpu_stats": {"cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0}},
        "precpu_stats": {"cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0}},
        "memory_stats": {},
        "blkio_stats": {},
        "storage_stats": {},
    })
}

fn object(state: &ContainerState, stats: &Stats, before: Option<&Stats>, layout: CgroupLayout) -> Value {
    let memory = &stats.usage.memory;
    let mut memory_stats = json!({
        "usage": memory.usage,
        "limit": memory.limit.unwrap_or(stats.host_memory),
        "stats": memory.stat,
    });
    // What v2 does not have is left out, as with Docker.
    for (key, value) in [("max_usage", memory.max_usage), ("failcnt", memory.failures)] {
        if let Some(value) = value.filter(|_| layout != CgroupLayout::V2) {
            memory_stats[key] = value.into();
        }
    }
    let mut networks = Map::new();
    for (name, network) in &stats.networks {
        let counters = json!({
            "rx_bytes": network.rx_bytes,
            "rx_packets": network.rx_packets,
            "rx_errors": network.rx_errors,
            "rx_dropped": network.rx_dropped,
            "tx_bytes": network.tx_bytes,
            "tx_packets": network.tx_packets,
            "tx_errors": network.tx_errors,
            "tx_dropped": network.tx_dropped,
        });
        networks.insert(name.clone(), counters);
    }
    json!({
        "name": format!("/{}", find::name(state)),
        "id": state.id,
        "read": time(Some(stats.at)),
        "preread": time(before.map(|before| before.at)),
        "num_procs": 0,
        "pids_stats": {"current": stats.usage.pids.current, "limit": stats.usage.pids.limit.unwrap_or(u64::MAX)},
        "cpu_stats": cpu(stats),
        "precpu_stats": match before {
            Some(before) => cpu(before),
            None => json!({"cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0}}),
        },
        "memory_stats": memory_stats,
        "blkio_stats": {
            "io_service_bytes_recursive": stats.usage.block.iter().map(block).collect::<Vec<_>>(),
            "io_serviced_recursive": null,
            "io_queue_recursive": null,
            "io_service_time_recursive": null,
            "io_wait_time_recursive": null,
            "io_merged_recursive": null,
            "io_time_recursive": null,
            "sectors_recursive": null,
        },
        "storage_stats": {},
        "networks": networks,
    })
}

fn block(usage: &BlockUsage) -> Value {
    json!({"major": usage.major, "minor": usage.minor, "op": usage.operation, "value": usage.bytes})
}

fn cpu(stats: &Stats) -> Value {
    let cpu = &stats.usage.cpu;
    let mut usage = json!({
        "total_usage": cpu.total,
        "usage_in_kernelmode": cpu.system,
        "usage_in_usermode": cpu.user,
    });
    if !cpu.per_cpu.is_empty() {
        usage["percpu_usage"] = json!(cpu.per_cpu);
    }
    json!({
        "cpu_usage": usage,
        "system_cpu_usage": stats.host_cpu,
        "online_cpus": stats.online_cpus,
        "throttling_data": {
            "periods": cpu.periods,
            "throttled_periods": cpu.throttled_periods,
            "throttled_time": cpu.throttled,
        },
    })
}
