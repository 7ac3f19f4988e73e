//! `shoal container`: the containers of one host.

mod copy;
mod list;
mod local;
mod process;
mod session;
mod stats;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::{Client, route};
use super::error::CliError;
use super::output;
use super::streams::{Frames, copy as copy_all, moment, print};
use super::values;

/// `shoal container`.
#[derive(Args, Debug)]
#[command(after_help = "\
Every host answers for the containers that run on it: name the host's engine with -H. A container is called by its ID,
the beginning of it, or its name, which is that of its task: web.1.<task>.

A task's container belongs to its task, and the cluster decides over it: to remove, replace or restart it, change its
service (`shoal service scale`, `shoal service update --force`). One that is stopped or killed ends as if it had failed,
and the service's restart policy decides what follows. One that `docker run` made belongs to its host, and to its user.

Examples:
  shoal container ls
  shoal container exec -it web.1.x7k2 sh
  shoal container exec web.1.x7k2 cat /etc/hosts
  shoal container logs --follow --since 10m web.1.x7k2
  shoal container stats
  shoal container cp web.1.x7k2:/var/log/app.log .
  shoal container cp ./site/. web.1.x7k2:/srv/www
  shoal container diff web.1.x7k2
  shoal container export -o root.tar web.1.x7k2")]
pub(super) struct ContainerArgs {
    #[command(subcommand)]
    command: ContainerCommand,
}

#[derive(Debug, Subcommand)]
enum ContainerCommand {
    /// List the containers of this host
    #[command(visible_alias = "ps")]
    Ls(list::LsArgs),
    /// Show all about containers
    Inspect {
        #[arg(required = true, value_name = "CONTAINER", value_parser = values::name)]
        containers: Vec<String>,
    },
    /// Show what a container has written
    Logs(LogsArgs),
    /// Run a command in a container
    Exec(process::ExecArgs),
    /// Join a container's own streams
    Attach(process::AttachArgs),
    /// Show the processes of a container
    Top {
        #[arg(value_name = "CONTAINER", value_parser = values::name)]
        container: String,
        /// Options of ps, e.g. -o pid,comm
        #[arg(value_name = "PS OPTIONS", trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Show what containers use, again and again
    Stats(stats::StatsArgs),
    /// Send a signal to containers
    Kill {
        #[arg(required = true, value_name = "CONTAINER", value_parser = values::name)]
        containers: Vec<String>,
        /// Name or number
        #[arg(short, long, default_value = "KILL")]
        signal: String,
    },
    /// Stop containers; their services decide what follows
    Stop {
        #[arg(required = true, value_name = "CONTAINER", value_parser = values::name)]
        containers: Vec<String>,
        /// The first signal [default: the container's own, or TERM]
        #[arg(short, long)]
        signal: Option<String>,
        /// Seconds until it is killed; -1 waits for ever [default: its service's, or 10]
        #[arg(short, long, value_name = "SECONDS", allow_negative_numbers = true)]
        timeout: Option<i64>,
    },
    /// Give containers no processor any more
    Pause {
        #[arg(required = true, value_name = "CONTAINER", value_parser = values::name)]
        containers: Vec<String>,
    },
    /// Let paused containers go on
    Unpause {
        #[arg(required = true, value_name = "CONTAINER", value_parser = values::name)]
        containers: Vec<String>,
    },
    /// Wait until containers end, and print their exit codes
    Wait {
        #[arg(required = true, value_name = "CONTAINER", value_parser = values::name)]
        containers: Vec<String>,
    },
    /// Copy files between a container and this machine
    Cp(copy::CpArgs),
    /// Show what a container changed of its image: A added, C changed, D deleted
    Diff {
        #[arg(value_name = "CONTAINER", value_parser = values::name)]
        container: String,
    },
    /// Write a container's root file system into an archive, without its volumes
    Export(copy::ExportArgs),
    /// Refused by the engine, with what to do instead
    #[command(hide = true)]
    Rm {
        #[arg(required = true, value_name = "CONTAINER", value_parser = values::name)]
        containers: Vec<String>,
    },
    /// Refused by the engine, with what to do instead
    #[command(hide = true)]
    Restart {
        #[arg(required = true, value_name = "CONTAINER", value_parser = values::name)]
        containers: Vec<String>,
    },
}

#[derive(Args, Debug)]
struct LogsArgs {
    /// Go on as lines come
    #[arg(short, long)]
    follow: bool,
    /// Only the last N lines
    #[arg(short = 'n', long, value_name = "N|all", default_value = "all")]
    tail: String,
    /// Only lines since a time (2026-01-31T12:00:00Z) or for so long (10m)
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only lines before a time, or older than so long
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Put the time in front of each line
    #[arg(short, long)]
    timestamps: bool,
    #[arg(value_name = "CONTAINER", value_parser = values::name)]
    container: String,
}

pub(super) async fn run(client: Client, args: ContainerArgs) -> Result<(), CliError> {
    let client = &client;
    match args.command {
        ContainerCommand::Ls(args) => list::run(client, args).await,
        ContainerCommand::Inspect { containers } => inspect(client, &containers).await,
        ContainerCommand::Logs(args) => logs(client, &args).await,
        ContainerCommand::Exec(args) => process::exec(client, args).await,
        ContainerCommand::Attach(args) => process::attach(client, args).await,
        ContainerCommand::Top { container, options } => top(client, &container, &options).await,
        ContainerCommand::Stats(args) => stats::run(client, args).await,
        ContainerCommand::Kill { containers, signal } => {
            each(client, &containers, "kill", &[("signal", &signal)]).await
        }
        ContainerCommand::Stop { containers, signal, timeout } => {
            let timeout = timeout.map(|seconds| seconds.to_string());
            let mut query: Vec<(&str, &str)> = Vec::new();
            query.extend(signal.iter().map(|signal| ("signal", signal.as_str())));
            query.extend(timeout.iter().map(|seconds| ("t", seconds.as_str())));
            each(client, &containers, "stop", &query).await
        }
        ContainerCommand::Pause { containers } => each(client, &containers, "pause", &[]).await,
        ContainerCommand::Unpause { containers } => each(client, &containers, "unpause", &[]).await,
        ContainerCommand::Wait { containers } => wait(client, &containers).await,
        ContainerCommand::Cp(args) => copy::run(client, args).await,
        ContainerCommand::Diff { container } => diff(client, &container).await,
        ContainerCommand::Export(args) => copy::export(client, args).await,
        ContainerCommand::Rm { containers } => super::remove(client, "containers", &containers, &[]).await,
        ContainerCommand::Restart { containers } => each(client, &containers, "restart", &[]).await,
    }
}

/// Does something to each; those that can be done are done also when others cannot.
async fn each(client: &Client, containers: &[String], verb: &str, query: &[(&str, &str)]) -> Result<(), CliError> {
    let mut errors = Vec::new();
    for container in containers {
        // A stop takes as long as its grace.
        match client.post_patiently(&route(&["containers", container, verb], query), &json!({})).await {
            Ok(_) => output::line(container)?,
            Err(error) => errors.push(error),
        }
    }
    CliError::all(errors)
}

async fn inspect(client: &Client, containers: &[String]) -> Result<(), CliError> {
    let (mut found, mut errors) = (Vec::<Value>::new(), Vec::new());
    for container in containers {
        match client.get(&route(&["containers", container, "json"], &[])).await {
            Ok(object) => found.push(object),
            Err(error) => errors.push(error),
        }
    }
    output::json(&found)?;
    CliError::all(errors)
}

/// Whether a container's output is a terminal's.
async fn is_terminal(client: &Client, container: &str) -> Result<bool, CliError> {
    let object: Value = client.get(&route(&["containers", container, "json"], &[])).await?;
    Ok(object["Config"]["Tty"] == true)
}

async fn logs(client: &Client, args: &LogsArgs) -> Result<(), CliError> {
    let since = args.since.as_deref().map(|text| moment("--since", text)).transpose()?;
    let until = args.until.as_deref().map(|text| moment("--until", text)).transpose()?;
    let tty = is_terminal(client, &args.container).await?;
    let mut query = vec![("stdout", "1"), ("stderr", "1"), ("tail", args.tail.as_str())];
    for (key, set) in [("follow", args.follow), ("timestamps", args.timestamps)] {
        if set {
            query.push((key, "1"));
        }
    }
    query.extend(since.iter().map(|time| ("since", time.as_str())));
    query.extend(until.iter().map(|time| ("until", time.as_str())));
    let stream = client.stream(&route(&["containers", &args.container, "logs"], &query)).await?;
    if tty {
        return copy_all(stream).await;
    }
    let mut frames = Frames::new(stream);
    while let Some((kind, payload)) = frames.next().await? {
        match kind {
            3 => output::note(format_args!("shoal: {}", output::printable(&String::from_utf8_lossy(&payload)))),
            kind => print(kind, &payload)?,
        }
    }
    Ok(())
}

async fn top(client: &Client, container: &str, options: &[String]) -> Result<(), CliError> {
    let options = options.join(" ");
    let query: &[(&str, &str)] = if options.is_empty() { &[] } else { &[("ps_args", &options)] };
    let found: Value = client.get(&route(&["containers", container, "top"], query)).await?;
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().map(|cell| cell.as_str().unwrap_or_default().to_owned()).collect()
    };
    let titles = texts(&found["Titles"]);
    let rows: Vec<Vec<String>> = found["Processes"].as_array().into_iter().flatten().map(texts).collect();
    output::text(&output::plain_table(&titles, &rows))
}

async fn wait(client: &Client, containers: &[String]) -> Result<(), CliError> {
    let mut errors = Vec::new();
    for container in containers {
        match client.post_patiently(&route(&["containers", container, "wait"], &[]), &json!({})).await {
            Ok(answer) => match code_of(&answer) {
                Ok(code) => output::line(code)?,
                Err(error) => errors.push(error),
            },
            Err(error) => errors.push(error),
        }
    }
    CliError::all(errors)
}

/// The exit code that an answer to a wait tells.
fn code_of(answer: &[u8]) -> Result<i64, CliError> {
    let answer: Value = serde_json::from_slice(answer).unwrap_or_default();
    match (answer["Error"]["Message"].as_str(), answer["StatusCode"].as_i64()) {
        (Some(message), _) if !message.is_empty() => Err(CliError::Failed(message.to_owned())),
        (_, Some(code)) => Ok(code),
        (_, None) => Err(CliError::Failed("the engine did not tell how it ended".to_owned())),
    }
}

async fn diff(client: &Client, container: &str) -> Result<(), CliError> {
    let changes: Option<Vec<Value>> = client.get(&route(&["containers", container, "changes"], &[])).await?;
    let mut lines: Vec<(String, char)> = changes.unwrap_or_default().iter().map(change).collect();
    lines.sort();
    lines.iter().try_for_each(|(path, kind)| output::line(format_args!("{kind} {}", output::printable(path))))
}

fn change(change: &Value) -> (String, char) {
    let kind = match change["Kind"].as_u64() {
        Some(0) => 'C',
        Some(1) => 'A',
        _ => 'D',
    };
    (change["Path"].as_str().unwrap_or_default().to_owned(), kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_waits() {
        assert_eq!(code_of(br#"{"StatusCode":7,"Error":null}"#).unwrap(), 7);
        assert!(code_of(br#"{"StatusCode":0,"Error":{"Message":"the daemon stops"}}"#).is_err());
        assert!(code_of(b"").is_err());
    }

    #[test]
    fn kinds_of_changes() {
        let kinds = [0, 1, 2].map(|kind| change(&json!({"Path": "/a", "Kind": kind})).1);
        assert_eq!(kinds, ['C', 'A', 'D']);
    }
}
