//! The Docker API over a unix socket, on an engine that is real from the request to the store and fake below it.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "docker_api/cli.rs"]
mod cli;
#[path = "docker_api/commands.rs"]
mod commands;
#[path = "docker_api/containers.rs"]
mod containers;
#[path = "docker_api/events.rs"]
mod events;
#[path = "docker_api/fake.rs"]
mod fake;
#[path = "docker_api/hostile.rs"]
mod hostile;
#[path = "docker_api/http.rs"]
mod http;
#[path = "docker_api/images.rs"]
mod images;
#[path = "docker_api/objects.rs"]
mod objects;
#[path = "docker_api/pinning.rs"]
mod pinning;
#[path = "docker_api/registry.rs"]
mod registry;
#[path = "docker_api/run.rs"]
mod run;
#[path = "docker_api/volumes.rs"]
mod volumes;
