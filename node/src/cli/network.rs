//! `shoal network`: networks between tasks.

use std::net::IpAddr;

use clap::{Args, Subcommand};
use deploy::model::LOCAL_DRIVER;
use ipnet::IpNet;
use serde_json::Value;

use super::client::{Client, route};
use super::error::CliError;
use super::filters;
use super::image::confirmed;
use super::output::{self, List, ListFormat};
use super::values::{self, KeyValue};
use crate::docker_api::wire::{Ipam, IpamConfig, Network, NetworkCreate};
use crate::network_check::{Report, Verdict};

/// `shoal network`.
#[derive(Args, Debug)]
#[command(after_help = "\
Tasks of services on the same network reach each other by the services' names, whichever host they are on.

Examples:
  shoal network create back
  shoal network create --subnet 10.20.0.0/24 --gateway 10.20.0.1 back
  shoal service create --name db --network back db:1
  shoal network create --ipv6 --subnet 10.22.0.0/24 --subnet fd00:22::/64 six
  shoal network create --subnet 10.21.0.0/24 --aux-address printer=10.21.0.9 front
  shoal network create --driver bridge near
  shoal network create --opt com.docker.network.driver.mtu=1400 narrow
  shoal network create --opt encrypted quiet
  shoal network rm ingress && shoal network create --ingress --subnet 10.11.0.0/16 ingress
  shoal network ls
  shoal network inspect --verbose back
  shoal network check
  shoal network rm back
  shoal network prune --filter until=24h")]
pub(super) struct NetworkArgs {
    #[command(subcommand)]
    command: NetworkCommand,
}

#[derive(Debug, Subcommand)]
enum NetworkCommand {
    /// Create a network
    Create(CreateArgs),
    /// List the networks
    Ls {
        /// Only those that fit, e.g. name=back
        #[arg(short, long, value_name = "KEY=VALUE")]
        filter: Vec<String>,
        #[command(flatten)]
        format: ListFormat,
    },
    /// Show all about networks
    Inspect {
        #[arg(required = true, value_name = "NETWORK", value_parser = values::name)]
        networks: Vec<String>,
        /// Also services, tasks and hosts on it, as the asked host has them in force
        #[arg(short, long)]
        verbose: bool,
    },
    /// Check whether the networks of this host work
    #[command(after_help = CHECK_HELP)]
    Check {
        /// One network, by name or ID [default: all that this host carries]
        #[arg(value_name = "NETWORK", value_parser = values::name)]
        network: Option<String>,
        /// "table", "json" (one object a line), or a template such as '{{.Check}} {{.Result}}'
        #[arg(long, value_name = "FORMAT")]
        format: Option<String>,
    },
    /// Remove networks that no service uses
    Rm {
        #[arg(required = true, value_name = "NETWORK", value_parser = values::name)]
        networks: Vec<String>,
    },
    /// Remove all networks that no service or task uses, but for the one that carries published ports
    Prune {
        /// Only those that fit, e.g. until=24h or label=app=web or label!=keep
        #[arg(long, value_name = "KEY=VALUE")]
        filter: Vec<String>,
        /// Do not ask
        #[arg(short, long)]
        force: bool,
    },
}

#[derive(Args, Debug)]
struct CreateArgs {
    #[arg(value_parser = values::name)]
    name: String,
    /// "overlay" spans all hosts; "bridge" ends at each of them: tasks reach those of the same host alone
    #[arg(short, long, default_value = "overlay", value_parser = ["overlay", LOCAL_DRIVER])]
    driver: String,
    /// Of a bridge: "swarm" for one that all hosts know, for services; "local" for one of the asked host alone, for its
    /// containers
    #[arg(long, default_value = "swarm", value_parser = ["swarm", "local"])]
    scope: String,
    /// IPv6 as well: each address of the network has an IPv6 address beside it
    #[arg(long)]
    ipv6: bool,
    /// Its subnet, CIDR, and with --ipv6 one of each family [default: chosen from the cluster's pools]
    #[arg(long, value_name = "CIDR")]
    subnet: Vec<IpNet>,
    /// Its gateway; needs --subnet
    #[arg(long, value_name = "IP", requires = "subnet")]
    gateway: Vec<IpAddr>,
    /// Part of the subnet that tasks get addresses from, CIDR; needs --subnet
    #[arg(long, value_name = "CIDR", requires = "subnet")]
    ip_range: Option<ipnet::Ipv4Net>,
    /// An address of the subnet that tasks do not get, and whose it is; needs --subnet; may be repeated
    #[arg(long, value_name = "NAME=IP", requires = "subnet")]
    aux_address: Vec<KeyValue>,
    /// The network that carries published ports; there is one at a time
    #[arg(long)]
    ingress: bool,
    /// No way out to other networks
    #[arg(long)]
    internal: bool,
    /// Containers outside of services may be on it as well
    #[arg(long)]
    attachable: bool,
    /// A label; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<KeyValue>,
    /// An option of the driver. com.docker.network.driver.mtu: the MTU between the hosts that it is made for, 50
    /// more than its tasks get [default: what each host's interface has]. encrypted: what hosts exchange of it is
    /// sealed by WireGuard, which takes 60 more
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    opt: Vec<KeyValue>,
}

pub(super) async fn run(client: Client, args: NetworkArgs) -> Result<(), CliError> {
    match args.command {
        NetworkCommand::Create(args) => {
            let created: Value = client.create("/networks/create", &request(args)?).await?;
            if let Some(warning) = created["Warning"].as_str().filter(|w| !w.is_empty()) {
                output::note(format_args!("warning: {}", output::printable(warning)));
            }
            output::line(created["Id"].as_str().unwrap_or_default())
        }
        NetworkCommand::Ls { filter, format } => {
            let filters = filters(&filter)?;
            let query: Vec<(&str, &str)> = filters.iter().map(|f| ("filters", f.as_str())).collect();
            let mut networks: Vec<Network> = client.get(&route(&["networks"], &query)).await?;
            networks.sort_by_key(|n| n.name.clone());
            table(networks, &format).print(&format)
        }
        NetworkCommand::Inspect { networks, verbose } => {
            let query: &[_] = if verbose { &[("verbose", "true")] } else { &[] };
            super::inspect_with(&client, "networks", &networks, query, |network| {
                let message = network["Host"]["Message"].as_str().unwrap_or_default();
                if !message.is_empty() {
                    output::note(output::printable(message));
                }
            })
            .await
        }
        NetworkCommand::Check { network, format } => {
            let query: Vec<(&str, &str)> = network.iter().map(|name| ("network", name.as_str())).collect();
            report(client.get(&route(&["shoal", "v1", "network", "check"], &query)).await?, format)
        }
        NetworkCommand::Rm { networks } => super::remove(&client, "networks", &networks, &[]).await,
        NetworkCommand::Prune { filter, force } => prune(&client, &filter, force).await,
    }
}

async fn prune(client: &Client, filter: &[String], force: bool) -> Result<(), CliError> {
    if !force
        && !confirmed(
            "This removes all networks of the cluster, and of this host alone, that nothing uses. Go on? [y/N]",
        )?
    {
        return Ok(());
    }
    let filters = filters(filter)?;
    let query: Vec<(&str, &str)> = filters.iter().map(|f| ("filters", f.as_str())).collect();
    let pruned: Value = client.create(&route(&["networks", "prune"], &query), &serde_json::json!({})).await?;
    let removed = pruned["NetworksDeleted"].as_array().map(Vec::as_slice).unwrap_or_default();
    removed.iter().filter_map(Value::as_str).try_for_each(output::line)
}

const CHECK_HELP: &str = "\
Asks the daemon of this host (or of the host that -H names) and changes nothing. It takes 10 seconds at the most, and
works on workers and while no manager is there. What it sends harms nobody: echoes (ICMP), questions for names,
connections to other hosts' control ports that are hung up at once.

  revision   has this host carried out what its managers told it, no more than 2 s ago?
  kernel     are links, forwarding entries and rules as they should be? all of them are read back
  firewall   does a firewall of others drop what the overlay forwards?
  way out    does a task of this host reach another host's own address through this host?
  peer       does each other host's control port open (TCP 2377), and do packets of the full MTU get there unbroken?
  addresses  is an address of the network held twice?
  names      does the resolver answer NAME and tasks.NAME of every service with what this host believes?
  vip        do virtual addresses answer, asked from a task of this host?
  mtu        (only where it is wrong) does the underlay carry what a network was made for?
  path       do addresses on each other host answer through VXLAN, with packets of the network's full MTU?

A line is \"ok\", \"WRONG\" with what to do, or \"-\" where something could not be tried, such as names of a network that
no task of this host is connected to. The exit code is 1 if anything is wrong.

Run it on both hosts that do not reach each other: the path of a packet has two ends.

Examples:
  shoal network check
  shoal network check back
  shoal network check --format json
  shoal network check --format '{{.Result}} {{.Check}} {{.Subject}}: {{.Detail}}'";

/// Prints a report; what is wrong decides the exit code.
fn report(report: Value, format: Option<String>) -> Result<(), CliError> {
    let report: Report = serde_json::from_value(report)
        .map_err(|e| CliError::Failed(format!("the daemon's answer is not a report: {e}")))?;
    let format = ListFormat { format, ..ListFormat::default() };
    let for_people = matches!(format.format.as_deref(), None | Some("table"));
    let mut list = List::new(&[
        ("", "Result"),
        ("CHECK", "Check"),
        ("OF", "Subject"),
        ("FOUND", "Detail"),
        ("WHAT TO DO", "Advice"),
    ]);
    let mut wrong = 0;
    for line in &report.checks {
        wrong += usize::from(line.result == Verdict::Wrong);
        let mark = match (line.result, for_people) {
            (Verdict::Ok, _) => "ok",
            (Verdict::Wrong, true) => "WRONG",
            (Verdict::Wrong, false) => "wrong",
            (Verdict::Skipped, true) => "-",
            (Verdict::Skipped, false) => "skipped",
        };
        list.row([mark.to_owned(), line.check.clone(), line.subject.clone(), line.detail.clone(), line.advice.clone()]);
    }
    list.print(&format)?;
    match wrong {
        0 => Ok(()),
        wrong => Err(CliError::Failed(format!("{wrong} of {} checks found something wrong", report.checks.len()))),
    }
}

fn map(pairs: Vec<KeyValue>) -> Option<crate::docker_api::wire::Map> {
    (!pairs.is_empty()).then(|| pairs.into_iter().map(|p| (p.key, p.value)).collect())
}

/// The subnets, each with what was said of its addresses.
fn configs(args: &CreateArgs) -> Result<Vec<IpamConfig>, CliError> {
    let mut configs = Vec::new();
    for (at, subnet) in args.subnet.iter().enumerate() {
        if subnet.addr() != subnet.network() {
            return Err(CliError::usage(format!("--subnet {subnet}: did you mean {}?", subnet.trunc())));
        }
        let is_six = |subnet: &IpNet| subnet.addr().is_ipv6();
        if args.subnet[..at].iter().any(|other| is_six(other) == is_six(subnet)) {
            return Err(CliError::usage(format!("--subnet {subnet}: another subnet of the same family")));
        }
        if is_six(subnet) && !args.ipv6 {
            return Err(CliError::usage(format!("--subnet {subnet} needs --ipv6")));
        }
        configs.push(IpamConfig { subnet: Some(subnet.to_string()), ..IpamConfig::default() });
    }
    let all = || args.subnet.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
    let place = |address: IpAddr| args.subnet.iter().position(|subnet| subnet.contains(&address));
    for gateway in &args.gateway {
        let Some(at) = place(*gateway).filter(|at| configs[*at].gateway.is_none()) else {
            return Err(CliError::usage(format!("--gateway {gateway} is not in {}, or not alone there", all())));
        };
        configs[at].gateway = Some(gateway.to_string());
    }
    if let Some(range) = args.ip_range {
        let Some(at) = args.subnet.iter().position(|subnet| subnet.contains(&IpNet::V4(range))) else {
            return Err(CliError::usage(format!("--ip-range {range} is not in {}", all())));
        };
        configs[at].ip_range = Some(range.to_string());
    }
    for aux in &args.aux_address {
        let Some(at) = aux.value.parse().ok().and_then(place) else {
            let text = format!("--aux-address {}={}: not an address in {}", aux.key, aux.value, all());
            return Err(CliError::usage(text));
        };
        configs[at].auxiliary.get_or_insert_default().insert(aux.key.clone(), aux.value.clone());
    }
    Ok(configs)
}

fn request(args: CreateArgs) -> Result<NetworkCreate, CliError> {
    let configs = configs(&args)?;
    if args.driver != LOCAL_DRIVER && args.scope != "swarm" {
        return Err(CliError::usage(format!("--scope {} needs --driver {LOCAL_DRIVER}", args.scope)));
    }
    Ok(NetworkCreate {
        name: Some(args.name),
        scope: (args.driver == LOCAL_DRIVER).then_some(args.scope),
        driver: Some(args.driver),
        internal: Some(args.internal),
        attachable: args.attachable.then_some(true),
        ingress: args.ingress.then_some(true),
        enable_ipv6: args.ipv6.then_some(true),
        ipam: (!configs.is_empty()).then(|| Ipam { config: Some(configs), ..Ipam::default() }),
        options: map(args.opt),
        labels: map(args.label),
        ..NetworkCreate::default()
    })
}

fn table(networks: Vec<Network>, format: &ListFormat) -> List {
    let mut list = List::new(&[
        ("NETWORK ID", "ID"),
        ("NAME", "Name"),
        ("DRIVER", "Driver"),
        ("SCOPE", "Scope"),
        ("SUBNET", "Subnet"),
    ]);
    for network in networks {
        let subnets = network.ipam.unwrap_or_default().config.unwrap_or_default();
        let subnets: Vec<String> = subnets.into_iter().filter_map(|c| c.subnet).collect();
        list.row([
            format.id(&network.id.unwrap_or_default()),
            network.name.unwrap_or_default(),
            network.driver.unwrap_or_default(),
            network.scope.unwrap_or_default(),
            subnets.join(", "),
        ]);
    }
    list
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: CreateArgs,
    }

    fn create(args: &str) -> Result<Value, String> {
        let line = Line::try_parse_from(["create"].into_iter().chain(args.split_whitespace()));
        let request = request(line.map_err(|e| e.to_string())?.args).map_err(|e| e.to_string())?;
        Ok(serde_json::to_value(request).unwrap())
    }

    #[test]
    fn requests() {
        assert_eq!(create("back").unwrap(), json!({"Name": "back", "Driver": "overlay", "Internal": false}));
        assert_eq!(
            create("--subnet 10.20.0.0/24 --gateway 10.20.0.1 --label a=b --internal back").unwrap(),
            json!({"Name": "back", "Driver": "overlay", "Internal": true, "Labels": {"a": "b"},
                   "IPAM": {"Config": [{"Subnet": "10.20.0.0/24", "Gateway": "10.20.0.1"}]}})
        );
        assert_eq!(
            create("--subnet 10.20.0.0/24 --aux-address a=10.20.0.9 --aux-address b=10.20.0.8 --ingress mesh").unwrap(),
            json!({"Name": "mesh", "Driver": "overlay", "Internal": false, "Ingress": true, "IPAM": {"Config": [
                   {"Subnet": "10.20.0.0/24", "AuxiliaryAddresses": {"a": "10.20.0.9", "b": "10.20.0.8"}}]}})
        );
        assert_eq!(
            create("--driver bridge back").unwrap(),
            json!({"Name": "back", "Driver": "bridge", "Scope": "swarm", "Internal": false})
        );
        assert_eq!(
            create("--driver bridge --scope local back").unwrap(),
            json!({"Name": "back", "Driver": "bridge", "Scope": "local", "Internal": false})
        );
        assert_eq!(
            create("--ipv6 --attachable back").unwrap(),
            json!({"Name": "back", "Driver": "overlay", "Internal": false, "Attachable": true, "EnableIPv6": true})
        );
        assert_eq!(
            create("--ipv6 --subnet 10.20.0.0/24 --subnet fd00::/64 --gateway fd00::9 --aux-address a=fd00::8 back")
                .unwrap(),
            json!({"Name": "back", "Driver": "overlay", "Internal": false, "EnableIPv6": true, "IPAM": {"Config": [
                   {"Subnet": "10.20.0.0/24"},
                   {"Subnet": "fd00::/64", "Gateway": "fd00::9", "AuxiliaryAddresses": {"a": "fd00::8"}}]}})
        );
    }

    #[test]
    fn mistakes_are_named() {
        for (bad, word) in [
            ("--subnet 10.20.0.1/24 back", "10.20.0.0/24"),
            ("--subnet 10.20.0.0/24 --gateway 10.21.0.1 back", "10.21.0.1"),
            ("--gateway 10.21.0.1 back", "--subnet"),
            ("--aux-address a=10.20.0.9 back", "--subnet"),
            ("--subnet 10.20.0.0/24 --aux-address a=10.21.0.9 back", "a=10.21.0.9"),
            ("--subnet 10.20.0.0/24 --aux-address 10.20.0.9 back", "10.20.0.9"),
            ("--driver macvlan back", "overlay, bridge"),
            ("--scope local back", "--scope local needs --driver bridge"),
            ("--subnet fd00::/64 back", "--ipv6"),
            ("--ipv6 --subnet fd00::1/64 back", "fd00::/64"),
            ("--subnet 10.20.0.0/24 --subnet 10.21.0.0/24 back", "same family"),
            ("--ipv6 --subnet fd00::/64 --gateway fd01::1 back", "fd01::1"),
            ("--subnet 10.20.0.0/24 --gateway 10.20.0.1 --gateway 10.20.0.2 back", "not alone"),
            ("", "NAME"),
        ] {
            let error = create(bad).unwrap_err();
            assert!(error.contains(word), "{bad}: {error}");
        }
    }
}
