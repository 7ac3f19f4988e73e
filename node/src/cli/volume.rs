//! `shoal volume`: the volumes of one host.

use clap::{Args, Subcommand};

use super::client::{Client, route};
use super::error::CliError;
use super::filters;
use super::output::{self, List, ListFormat};
use super::values::{self, KeyValue};
use crate::docker_api::wire::{Map, Volume, VolumeCreate, VolumeList, VolumesPruned};

/// `shoal volume`.
#[derive(Args, Debug)]
#[command(after_help = "\
A volume belongs to the host that it was made on, and outlives the containers that use it. Tasks make the volumes
that they name; those without a name are removed with their container.

Examples:
  shoal service create --name db --mount source=dbdata,target=/data db:1
  shoal volume create --opt type=nfs --opt o=addr=10.0.0.5,rw --opt device=:/export files
  shoal volume ls
  shoal volume inspect dbdata
  shoal volume rm dbdata
  shoal volume prune --all")]
pub(super) struct VolumeArgs {
    #[command(subcommand)]
    command: VolumeCommand,
}

#[derive(Debug, Subcommand)]
enum VolumeCommand {
    /// Create a volume
    Create(CreateArgs),
    /// List the volumes of this host
    Ls {
        /// Only those that fit, e.g. name=db, label=app=web or dangling=true
        #[arg(short, long, value_name = "KEY=VALUE")]
        filter: Vec<String>,
        #[command(flatten)]
        format: ListFormat,
    },
    /// Show all about volumes
    Inspect {
        #[arg(required = true, value_name = "VOLUME", value_parser = values::name)]
        volumes: Vec<String>,
    },
    /// Remove volumes that no container uses, with all that is in them
    Rm {
        #[arg(required = true, value_name = "VOLUME", value_parser = values::name)]
        volumes: Vec<String>,
        /// It is fine if one is not there
        #[arg(short, long)]
        force: bool,
    },
    /// Remove volumes that no container uses and that nobody gave a name
    Prune {
        /// Also those that somebody gave a name
        #[arg(short, long)]
        all: bool,
        /// Only those that fit, e.g. label=app=web or label!=keep
        #[arg(long, value_name = "KEY=VALUE")]
        filter: Vec<String>,
    },
}

#[derive(Args, Debug)]
struct CreateArgs {
    /// Its name [default: a long random one]
    #[arg(value_parser = values::name)]
    name: Option<String>,
    /// The driver; local is the one there is
    #[arg(short, long, default_value = "local", value_parser = ["local"])]
    driver: String,
    /// type, o or device, as for mount(8); may be repeated
    #[arg(short, long, value_name = "KEY=VALUE")]
    opt: Vec<KeyValue>,
    /// A label; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<KeyValue>,
}

pub(super) async fn run(client: Client, args: VolumeArgs) -> Result<(), CliError> {
    match args.command {
        VolumeCommand::Create(args) => {
            let created: Volume = client.create("/volumes/create", &request(args)).await?;
            output::line(created.name.unwrap_or_default())
        }
        VolumeCommand::Ls { filter, format } => {
            let filters = filters(&filter)?;
            let query: Vec<(&str, &str)> = filters.iter().map(|f| ("filters", f.as_str())).collect();
            let list: VolumeList = client.get(&route(&["volumes"], &query)).await?;
            table(list.volumes.unwrap_or_default()).print(&format)
        }
        VolumeCommand::Inspect { volumes } => super::inspect(&client, "volumes", &volumes, &[]).await,
        VolumeCommand::Rm { volumes, force } => {
            let query: &[_] = if force { &[("force", "true")] } else { &[] };
            super::remove(&client, "volumes", &volumes, query).await
        }
        VolumeCommand::Prune { all, mut filter } => {
            if all {
                filter.push("all=true".to_owned());
            }
            let filters = filters(&filter)?;
            let query: Vec<(&str, &str)> = filters.iter().map(|f| ("filters", f.as_str())).collect();
            let pruned: VolumesPruned =
                client.create(&route(&["volumes", "prune"], &query), &serde_json::json!({})).await?;
            pruned.deleted.unwrap_or_default().iter().try_for_each(output::line)?;
            output::note(format_args!("{} bytes are free again", pruned.reclaimed.unwrap_or_default()));
            Ok(())
        }
    }
}

fn map(pairs: Vec<KeyValue>) -> Option<Map> {
    (!pairs.is_empty()).then(|| pairs.into_iter().map(|p| (p.key, p.value)).collect())
}

fn request(args: CreateArgs) -> VolumeCreate {
    VolumeCreate {
        name: args.name,
        driver: Some(args.driver),
        driver_opts: map(args.opt),
        labels: map(args.label),
        cluster_volume_spec: None,
    }
}

fn table(volumes: Vec<Volume>) -> List {
    let mut list = List::new(&[("VOLUME NAME", "Name"), ("DRIVER", "Driver"), ("MOUNTPOINT", "Mountpoint")]);
    for volume in volumes {
        let cells = [volume.name, volume.driver, volume.mountpoint];
        list.row(cells.map(Option::unwrap_or_default));
    }
    list
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::{Value, json};

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: CreateArgs,
    }

    fn create(args: &str) -> Result<Value, String> {
        let line = Line::try_parse_from(["create"].into_iter().chain(args.split_whitespace()));
        Ok(serde_json::to_value(request(line.map_err(|e| e.to_string())?.args)).unwrap())
    }

    #[test]
    fn requests() {
        assert_eq!(create("").unwrap(), json!({"Driver": "local"}));
        assert_eq!(
            create("--opt type=nfs --opt o=addr=1.2.3.4,rw --label a=b files").unwrap(),
            json!({"Name": "files", "Driver": "local", "DriverOpts": {"type": "nfs", "o": "addr=1.2.3.4,rw"},
                   "Labels": {"a": "b"}})
        );
        assert!(create("--driver rexray x").unwrap_err().contains("rexray"));
    }
}
