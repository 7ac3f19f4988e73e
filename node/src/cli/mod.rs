//! The `shoal` command line: a client of the public API, and the way to start the daemon.
//!
//! One file a noun. Each has the clap structs, pure functions that turn them into API objects, and a thin `run` that
//! sends those. `client` talks HTTP, `output` is the only place that prints, `values` reads what users type.
//! `main.rs` calls [`run`]; nothing else in the crate knows of this module.

mod age;
pub mod client;
mod config;
mod container;
mod daemon;
mod demo;
pub mod error;
pub mod host;
mod image;
mod network;
mod node;
mod output;
mod payload;
mod registry;
mod secret;
mod service;
mod streams;
mod system;
mod tasks;
mod values;
mod version;
mod volume;

use std::ffi::OsString;
use std::future::Future;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use client::Client;
use error::CliError;
use host::Host;

/// Turns a handful of Linux hosts into one self-healing container cluster.
#[derive(Debug, Parser)]
#[command(
    name = "shoal",
    version,
    propagate_version = false,
    disable_help_subcommand = true,
    after_help = "\
Getting started:
  shoal demo                                   See a cluster of three hosts on this machine, then clean up
  shoal daemon                                 Run the node process (as root, usually by systemd)
  shoal node init                              Make this host the first manager of a cluster
  shoal node join --token TOKEN HOST:2377      Run on each other host
  shoal image load -i web.tar                  Give this host an image
  shoal service create --name web --replicas 3 -p 8080:80 web:1

The engine is found by -H, then SHOAL_HOST, then DOCKER_HOST, then unix:///run/shoal/shoal.sock.
Exit codes: 0 done, 1 failed, 2 bad request, 3 cluster unavailable, 4 outcome unknown; `container exec` and
`container attach` end with the code of what ran."
)]
struct Cli {
    /// Engine to talk to: unix:///path or tcp://host:port
    #[arg(short = 'H', global = true, value_name = "HOST")]
    engine: Option<String>,
    /// The same as -H
    #[arg(long = "host", value_name = "HOST", hide = true, conflicts_with = "engine")]
    host_long: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show a cluster at work on this machine, and clean up
    Demo(demo::DemoArgs),
    /// Run the node process in the foreground
    Daemon(Box<daemon::DaemonArgs>),
    /// The cluster and its hosts
    Node(node::NodeArgs),
    /// Services: what should run
    Service(service::ServiceArgs),
    /// Networks between tasks
    Network(network::NetworkArgs),
    /// Secrets: data that only the tasks that need it should see
    Secret(secret::SecretArgs),
    /// Configs: files for services
    Config(config::ConfigArgs),
    /// Volumes of this host
    Volume(volume::VolumeArgs),
    /// Containers of this host: look into them, run commands in them, copy files
    Container(container::ContainerArgs),
    /// Images of this host
    Image(image::ImageArgs),
    /// Logging in to registries
    Registry(registry::RegistryArgs),
    /// This host and its engine
    System(system::SystemArgs),
    /// The version of the client and of the engine
    Version(version::VersionArgs),
}

/// Reads the command line, does what it says, and answers the exit code. Call it with one thread and no async
/// runtime; it makes the one that the command needs.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version are no failures. When not even that can be printed, nobody is there to be told.
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { 2 } else { 0 });
        }
    };
    let engine = Engine(cli.engine.or(cli.host_long));
    let done = match cli.command {
        // It tells of its failures itself.
        Command::Demo(args) => return demo::run(&args),
        command => dispatch(&engine, command),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // `shoal service ls | head` is no failure either.
        Err(CliError::Output(e)) if e.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(e) => {
            for line in e.to_string().lines() {
                output::note(format_args!("shoal: {}", output::printable(line)));
            }
            e.exit_code()
        }
    }
}

fn dispatch(engine: &Engine, command: Command) -> Result<(), CliError> {
    match command {
        Command::Demo(args) => {
            demo::run(&args);
            Ok(())
        }
        Command::Daemon(args) => daemon::run(*args),
        Command::Node(args) => node::run(engine, args),
        Command::Service(args) => {
            let command = args.check()?;
            engine.drive(|client| service::run(client, command))
        }
        Command::Network(args) => engine.drive(|client| network::run(client, args)),
        Command::Secret(args) => engine.drive(|client| payload::run(client, payload::Kind::Secret, args.command)),
        Command::Config(args) => engine.drive(|client| payload::run(client, payload::Kind::Config, args.command)),
        Command::Volume(args) => engine.drive(|client| volume::run(client, args)),
        Command::Container(args) => engine.drive(|client| container::run(client, args)),
        Command::Image(args) => engine.drive(|client| image::run(client, args)),
        Command::Registry(args) => registry::run(engine, args),
        Command::System(args) => system::run(engine, args),
        Command::Version(args) => version::run(engine, &args),
    }
}

/// The engine that the user named, or not.
struct Engine(Option<String>);

impl Engine {
    fn host(&self) -> Result<Host, CliError> {
        Host::resolve(self.0.as_deref(), |name| std::env::var(name).ok())
    }

    /// Connects and runs what needs a client, on a runtime of one thread.
    fn drive<F: Future<Output = Result<(), CliError>>>(&self, work: impl FnOnce(Client) -> F) -> Result<(), CliError> {
        let host = self.host()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| CliError::Failed(format!("cannot start: {e}")))?;
        runtime.block_on(async { work(Client::connect(host).await?).await })
    }
}

/// The `filters` of a query out of `--filter key=value`; `None` when there are none.
fn filters(given: &[String]) -> Result<Option<String>, CliError> {
    let mut filters: std::collections::BTreeMap<&str, Vec<&str>> = std::collections::BTreeMap::new();
    for filter in given {
        let (key, value) = filter
            .split_once('=')
            .filter(|(key, _)| !key.is_empty())
            .ok_or_else(|| CliError::usage(format!("--filter {filter:?} must look like key=value")))?;
        filters.entry(key).or_default().push(value);
    }
    Ok((!filters.is_empty()).then(|| serde_json::json!(filters).to_string()))
}

/// Shows objects as the API has them; those that are there are shown also when others are missing.
async fn inspect(client: &Client, noun: &str, names: &[String], query: &[(&str, &str)]) -> Result<(), CliError> {
    inspect_with(client, noun, names, query, |_| {}).await
}

/// The same, with a remark about each object.
async fn inspect_with(
    client: &Client,
    noun: &str,
    names: &[String],
    query: &[(&str, &str)],
    remark: impl Fn(&serde_json::Value),
) -> Result<(), CliError> {
    let (mut found, mut errors) = (Vec::<serde_json::Value>::new(), Vec::new());
    for name in names {
        match client.get(&client::route(&[noun, name], query)).await {
            Ok(object) => found.push(object),
            Err(e) => errors.push(e),
        }
    }
    output::json(&found)?;
    found.iter().for_each(remark);
    CliError::all(errors)
}

/// Removes objects; those that can go do so also when others cannot.
async fn remove(client: &Client, noun: &str, names: &[String], query: &[(&str, &str)]) -> Result<(), CliError> {
    let mut errors = Vec::new();
    for name in names {
        match client.delete(&client::route(&[noun, name], query)).await {
            Ok(_) => output::line(name)?,
            Err(e) => errors.push(e),
        }
    }
    CliError::all(errors)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_noun_has_examples() {
        let cli = Cli::command();
        for command in cli.get_subcommands().filter(|c| c.has_subcommands()) {
            assert!(command.get_after_help().is_some(), "{}", command.get_name());
            for verb in command.get_subcommands() {
                assert!(verb.get_about().is_some(), "{} {}", command.get_name(), verb.get_name());
            }
        }
    }

    #[track_caller]
    fn check_engine(args: &[&str], expected: Option<&str>) {
        let cli = Cli::try_parse_from(args).unwrap();
        assert_eq!(cli.engine.or(cli.host_long).as_deref(), expected, "{args:?}");
    }

    #[test]
    fn the_engine_may_be_named_anywhere() {
        check_engine(&["shoal", "-H", "unix:///a", "node", "ls"], Some("unix:///a"));
        check_engine(&["shoal", "node", "ls", "-H", "unix:///a"], Some("unix:///a"));
        check_engine(&["shoal", "--host", "unix:///a", "node", "ls"], Some("unix:///a"));
        // As in Docker, `--host` behind `create` is a line of the task's hosts file.
        check_engine(&["shoal", "service", "create", "--host", "db:10.0.0.1", "web"], None);
    }

    #[test]
    fn filters_become_json() {
        let given = ["name=a".to_owned(), "label=k=v".to_owned(), "name=b".to_owned()];
        assert_eq!(filters(&given).unwrap().unwrap(), r#"{"label":["k=v"],"name":["a","b"]}"#);
        assert_eq!(filters(&[]).unwrap(), None);
        assert!(filters(&["name".to_owned()]).is_err());
    }
}
