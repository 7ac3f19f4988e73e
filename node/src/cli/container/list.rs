//! `shoal container ls`.

use clap::Args;
use serde_json::Value;

use crate::cli::client::{Client, route};
use crate::cli::error::CliError;
use crate::cli::output::{List, ListFormat};
use crate::cli::tasks::without_digest;
use crate::cli::{age, filters};

/// Characters of a command that a list shows, as with Docker.
const COMMAND: usize = 20;

/// Flags of `shoal container ls`.
#[derive(Args, Debug)]
pub(super) struct LsArgs {
    /// Also those that have ended
    #[arg(short, long)]
    all: bool,
    /// Only those that fit, e.g. name=web, status=paused or label=com.docker.swarm.service.name=web
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// Only the N that were made last, running or not
    #[arg(short = 'n', long, value_name = "N")]
    last: Option<u32>,
    #[command(flatten)]
    format: ListFormat,
}

pub(super) async fn run(client: &Client, args: LsArgs) -> Result<(), CliError> {
    let filters = filters(&args.filter)?;
    let last = args.last.map(|last| last.to_string());
    let mut query: Vec<(&str, &str)> = filters.iter().map(|f| ("filters", f.as_str())).collect();
    query.extend(last.iter().map(|last| ("limit", last.as_str())));
    if args.all {
        query.push(("all", "1"));
    }
    let containers: Vec<Value> = client.get(&route(&["containers", "json"], &query)).await?;
    table(&containers, &args.format).print(&args.format)
}

fn table(containers: &[Value], format: &ListFormat) -> List {
    let mut list = List::new(&[
        ("CONTAINER ID", "ID"),
        ("IMAGE", "Image"),
        ("COMMAND", "Command"),
        ("CREATED", "RunningFor"),
        ("STATUS", "Status"),
        ("NAMES", "Names"),
    ]);
    for container in containers {
        let text = |key: &str| container[key].as_str().unwrap_or_default();
        let names = container["Names"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let image = if format.no_trunc { text("Image") } else { without_digest(text("Image")) };
        list.row([
            format.id(text("Id")),
            image.to_owned(),
            command(text("Command"), format.no_trunc),
            age::ago_unix(container["Created"].as_i64().unwrap_or_default()),
            text("Status").to_owned(),
            names.map(|name| name.trim_start_matches('/')).collect::<Vec<_>>().join(","),
        ]);
    }
    list
}

fn command(command: &str, whole: bool) -> String {
    match command.chars().count() > COMMAND && !whole {
        true => format!("\"{}…\"", command.chars().take(COMMAND - 1).collect::<String>()),
        false => format!("\"{command}\""),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_container_a_row() {
        let containers = [json!({
            "Id": "0123456789abcdef", "Image": "web:1@sha256:ab", "Command": "/bin/sh -c 'exec sleep 1000'",
            "Created": 0, "Status": "Up 2 minutes", "Names": ["/web.1.x"],
        })];
        let format =
            ListFormat { format: Some("{{.ID}}|{{.Image}}|{{.Command}}|{{.Names}}".into()), ..ListFormat::default() };
        let shown = table(&containers, &format).render(&format).unwrap();
        assert_eq!(shown, "0123456789ab|web:1|\"/bin/sh -c 'exec sl…\"|web.1.x\n");
    }
}
