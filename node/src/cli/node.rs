//! `shoal node`: the cluster and its hosts.

mod ca;
mod lock;
mod recover;
mod show;
#[cfg(test)]
mod tests;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;

use super::client::{Client, route};
use super::error::CliError;
use super::output::{self, ListFormat};
use super::values::{self, KeyValue};
use super::{filters, tasks};
use crate::docker_api::wire::{Node, NodeSpec, ObjectVersion, Swarm, SwarmInit, SwarmJoin};

/// The port between hosts.
const PORT: u16 = 2377;
/// How often an update is tried again when the cluster changed the object meanwhile.
const RETRIES: usize = 5;

/// `shoal node`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  shoal node init --advertise-addr 10.0.0.1     Make a cluster of this host
  shoal node token worker                       Print what other hosts must run to join
  shoal node join --token SWMTKN-1-... 10.0.0.1:2377
  shoal node ls
  shoal node promote host-2 host-3              Three managers survive the loss of one
  shoal node drain host-2                       Move its tasks elsewhere before maintenance
  shoal node update --availability active host-2")]
pub(super) struct NodeArgs {
    #[command(subcommand)]
    command: NodeCommand,
}

#[derive(Debug, Subcommand)]
enum NodeCommand {
    /// Make a cluster of which this host is the first manager
    Init(InitArgs),
    /// Make this host a member of a cluster
    Join(JoinArgs),
    /// Leave the cluster; stops this host's tasks
    Leave {
        /// Also as a manager, and also without asking the others
        #[arg(short, long)]
        force: bool,
    },
    /// Print, or replace, the token that lets hosts in
    Token {
        /// What the hosts will be
        role: Role,
        /// Print the token only
        #[arg(short, long)]
        quiet: bool,
        /// Make a new token; the old one opens nothing any more
        #[arg(long)]
        rotate: bool,
    },
    /// Have managers ask for the unlock key when they start (on), or not (off)
    Autolock {
        /// on or off
        state: Autolock,
    },
    /// Open the files of this manager with the unlock key, which is read from standard input
    Unlock,
    /// Print, or replace, the key that managers need when they start
    UnlockKey {
        /// Print the key only
        #[arg(short, long)]
        quiet: bool,
        /// Make a new key; keep the old one until every manager is up: one that is down now still needs it once
        #[arg(long)]
        rotate: bool,
    },
    /// Print the root that nodes' certificates are of, or have a new one take its place
    Ca(ca::CaArgs),
    /// List the hosts
    Ls {
        /// Only those that fit, e.g. role=manager, name=host-1, node.label=zone=a
        #[arg(short, long, value_name = "KEY=VALUE")]
        filter: Vec<String>,
        #[command(flatten)]
        format: ListFormat,
    },
    /// Show all about hosts; "self" is this one
    Inspect {
        #[arg(required = true, value_name = "NODE", value_parser = values::name)]
        nodes: Vec<String>,
        /// For people rather than programs
        #[arg(long)]
        pretty: bool,
    },
    /// Make hosts managers
    Promote {
        #[arg(required = true, value_name = "NODE", value_parser = values::name)]
        nodes: Vec<String>,
    },
    /// Make managers workers
    Demote {
        #[arg(required = true, value_name = "NODE", value_parser = values::name)]
        nodes: Vec<String>,
    },
    /// Move the tasks of hosts elsewhere; the same as update --availability drain
    Drain {
        #[arg(required = true, value_name = "NODE", value_parser = values::name)]
        nodes: Vec<String>,
    },
    /// Change a host's availability, role or labels
    Update(UpdateArgs),
    /// Remove hosts that are down or have left
    Rm {
        #[arg(required = true, value_name = "NODE", value_parser = values::name)]
        nodes: Vec<String>,
        /// Also hosts that are up; their tasks are replaced at once
        #[arg(short, long)]
        force: bool,
    },
    /// Make this host, a manager whose cluster has lost its majority, the only manager; tasks go on
    Recover(recover::RecoverArgs),
    /// List the tasks of hosts
    Ps {
        #[arg(value_name = "NODE", default_value = "self", value_parser = values::name)]
        nodes: Vec<String>,
        /// Only those that fit, e.g. desired-state=running
        #[arg(short, long, value_name = "KEY=VALUE")]
        filter: Vec<String>,
        #[command(flatten)]
        format: ListFormat,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Role {
    Worker,
    Manager,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Autolock {
    On,
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Availability {
    Active,
    Pause,
    Drain,
}

impl Availability {
    fn name(self) -> String {
        match self {
            Self::Active => "active",
            Self::Pause => "pause",
            Self::Drain => "drain",
        }
        .to_owned()
    }
}

/// Addresses, the same for `init` and `join`.
#[derive(Args, Debug)]
struct Addresses {
    /// Address or interface at which the other hosts reach this one [default: found out]
    #[arg(long, value_name = "ADDR|IFACE[:PORT]", default_value = "", hide_default_value = true)]
    advertise_addr: String,
    /// Address to listen at
    #[arg(long, value_name = "ADDR[:PORT]", default_value = "0.0.0.0:2377")]
    listen_addr: String,
    /// Address or interface for traffic between tasks [default: the advertised one]
    #[arg(long, value_name = "ADDR|IFACE", default_value = "", hide_default_value = true)]
    data_path_addr: String,
    /// Whether this host gets tasks
    #[arg(long, value_enum, default_value = "active")]
    availability: Availability,
}

#[derive(Args, Debug)]
struct InitArgs {
    #[command(flatten)]
    addresses: Addresses,
    /// Make a cluster of this manager alone, from what it has; "shoal node recover" says more
    #[arg(long)]
    force_new_cluster: bool,
    /// UDP port for traffic between tasks, on all hosts [default: 4789]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1024..=49151))]
    data_path_port: Option<u16>,
    /// Where networks get their subnets from, CIDR; may be repeated [default: 10.0.0.0/8]
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    default_addr_pool: Vec<ipnet::Ipv4Net>,
    /// Length of those subnets' prefixes [default: 24]
    #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u32).range(1..=29))]
    default_addr_pool_mask_length: Option<u32>,
    /// Managers need a key when they start, which is printed now
    #[arg(long)]
    autolock: bool,
}

#[derive(Args, Debug)]
struct JoinArgs {
    #[command(flatten)]
    addresses: Addresses,
    /// Token for a worker or a manager, as `shoal node token` prints it
    #[arg(long, value_parser = values::name)]
    token: String,
    /// A manager of the cluster; port 2377 unless given
    #[arg(value_name = "HOST[:PORT]", value_parser = values::name)]
    remote: String,
}

#[derive(Args, Debug)]
struct UpdateArgs {
    /// Whether the host gets tasks (active), keeps those it has (pause), or loses them (drain)
    #[arg(long, value_enum)]
    availability: Option<Availability>,
    /// worker or manager
    #[arg(long, value_enum)]
    role: Option<Role>,
    /// Add or replace a label; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    label_add: Vec<KeyValue>,
    /// Remove a label; may be repeated
    #[arg(long, value_name = "KEY")]
    label_rm: Vec<String>,
    #[arg(value_name = "NODE", value_parser = values::name)]
    node: String,
}

/// Runs the command here, or through the engine.
pub(super) fn run(engine: &super::Engine, args: NodeArgs) -> Result<(), CliError> {
    match args.command {
        NodeCommand::Recover(args) if args.is_offline() => recover::offline(args),
        _ => engine.drive(|client| drive(client, args)),
    }
}

async fn drive(client: Client, args: NodeArgs) -> Result<(), CliError> {
    let client = &client;
    match args.command {
        NodeCommand::Init(args) => init(client, args).await,
        NodeCommand::Join(args) => join(client, args).await,
        NodeCommand::Leave { force } => {
            let path = route(&["swarm", "leave"], if force { &[("force", "1")] } else { &[] });
            client.post_empty(&path).await.map_err(|e| match e {
                CliError::Refused { status, message } if !force && !message.contains("--force") => {
                    let message = format!("{message} Demote it first, or use --force if the cluster may lose it.");
                    CliError::Refused { status, message }
                }
                other => other,
            })?;
            output::line("Node left the cluster.")
        }
        NodeCommand::Token { role, quiet, rotate } => token(client, role, quiet, rotate).await,
        NodeCommand::Autolock { state } => lock::set(client, state == Autolock::On).await,
        NodeCommand::Unlock => lock::unlock(client).await,
        NodeCommand::UnlockKey { quiet, rotate } => lock::key(client, quiet, rotate).await,
        NodeCommand::Ca(args) => ca::run(client, args).await,
        NodeCommand::Ls { filter, format } => show::list(client, &filter, &format).await,
        NodeCommand::Inspect { nodes, pretty: false } => {
            super::inspect(client, "nodes", &resolve(client, nodes).await?, &[]).await
        }
        NodeCommand::Inspect { nodes, pretty: true } => {
            for node in resolve(client, nodes).await? {
                output::text(&show::describe(&client.get(&route(&["nodes", &node], &[])).await?))?;
            }
            Ok(())
        }
        NodeCommand::Recover(args) => recover::online(client, args).await,
        NodeCommand::Promote { nodes } => set_roles(client, nodes, Role::Manager).await,
        NodeCommand::Demote { nodes } => set_roles(client, nodes, Role::Worker).await,
        NodeCommand::Drain { nodes } => {
            for_each(client, nodes, |spec| spec.availability = Some(Availability::Drain.name()), str::to_owned).await
        }
        NodeCommand::Update(args) => update_command(client, args).await,
        NodeCommand::Rm { nodes, force } => {
            let nodes = resolve(client, nodes).await?;
            super::remove(client, "nodes", &nodes, if force { &[("force", "1")] } else { &[] }).await
        }
        NodeCommand::Ps { nodes, filter, format } => {
            let mut filter = filter;
            filter.extend(resolve(client, nodes).await?.iter().map(|node| format!("node={node}")));
            tasks::print(client, &filters(&filter)?.unwrap_or_default(), &format).await
        }
    }
}

/// "self" is resolved by the client, as Docker's does.
async fn resolve(client: &Client, nodes: Vec<String>) -> Result<Vec<String>, CliError> {
    if !nodes.iter().any(|node| node == "self") {
        return Ok(nodes);
    }
    let own = own_id(client).await?;
    Ok(nodes.into_iter().map(|node| if node == "self" { own.clone() } else { node }).collect())
}

async fn own_id(client: &Client) -> Result<String, CliError> {
    let info: Value = client.get("/info").await?;
    match info["Swarm"]["NodeID"].as_str() {
        Some(id) if !id.is_empty() => Ok(id.to_owned()),
        _ => Err(CliError::Unavailable(
            "this host is in no cluster: use `shoal node init` or `shoal node join` first".to_owned(),
        )),
    }
}

fn init_request(args: InitArgs) -> SwarmInit {
    SwarmInit {
        listen_addr: Some(args.addresses.listen_addr),
        advertise_addr: Some(args.addresses.advertise_addr),
        data_path_addr: Some(args.addresses.data_path_addr),
        data_path_port: args.data_path_port.map(u32::from),
        default_addr_pool: (!args.default_addr_pool.is_empty())
            .then(|| args.default_addr_pool.iter().map(ToString::to_string).collect()),
        subnet_size: args.default_addr_pool_mask_length,
        availability: Some(args.addresses.availability.name()),
        auto_lock_managers: args.autolock.then_some(true),
        force_new_cluster: args.force_new_cluster.then_some(true),
        ..SwarmInit::default()
    }
}

async fn init(client: &Client, args: InitArgs) -> Result<(), CliError> {
    let autolock = args.autolock;
    let id: String = client.create("/swarm/init", &init_request(args)).await?;
    output::line(format_args!("Cluster initialized: this node ({id}) is now a manager.\n"))?;
    print_token(client, Role::Worker).await?;
    if autolock {
        lock::key(client, false, false).await?;
    }
    output::line("To add a manager to this cluster, run 'shoal node token manager' and follow the instructions.")
}

async fn join(client: &Client, args: JoinArgs) -> Result<(), CliError> {
    let request = SwarmJoin {
        listen_addr: Some(args.addresses.listen_addr),
        advertise_addr: Some(args.addresses.advertise_addr),
        data_path_addr: Some(args.addresses.data_path_addr),
        remote_addrs: Some(vec![with_port(&args.remote)]),
        join_token: Some(args.token),
        availability: Some(args.addresses.availability.name()),
    };
    client.post_patiently("/swarm/join", &request).await?;
    let info: Value = client.get("/info").await?;
    let role = if info["Swarm"]["ControlAvailable"].as_bool() == Some(true) { "manager" } else { "worker" };
    output::line(format_args!("This node joined the cluster as a {role}."))
}

fn with_port(remote: &str) -> String {
    // An IPv6 address without brackets is all colons; the engine takes `[addr]:port`.
    if remote.parse::<std::net::Ipv6Addr>().is_ok() {
        return format!("[{remote}]:{PORT}");
    }
    if remote.contains(':') && !remote.ends_with(']') { remote.to_owned() } else { format!("{remote}:{PORT}") }
}

async fn token(client: &Client, role: Role, quiet: bool, rotate: bool) -> Result<(), CliError> {
    if rotate {
        rotate_token(client, role).await?;
        if !quiet {
            output::line(format_args!("Successfully rotated {} join token.\n", role_name(role)))?;
        }
    }
    if quiet { output::line(read_token(client, role).await?) } else { print_token(client, role).await }
}

async fn rotate_token(client: &Client, role: Role) -> Result<(), CliError> {
    let which = match role {
        Role::Worker => "rotateWorkerToken",
        Role::Manager => "rotateManagerToken",
    };
    retried(async || {
        let swarm: Swarm = client.get("/swarm").await?;
        let path = route(&["swarm", "update"], &[("version", &index(&swarm.version)), (which, "true")]);
        client.post(&path, &swarm.spec.unwrap_or_default()).await
    })
    .await
    .map(drop)
}

/// Carries out a read and the write that depends on it; again when the object changed in between.
pub(super) async fn retried<T>(mut attempt: impl AsyncFnMut() -> Result<T, CliError>) -> Result<T, CliError> {
    for _ in 0..RETRIES {
        match attempt().await {
            // Nothing was written: the version that was read is not the current one any more.
            Err(CliError::OutOfSequence(_)) => {}
            done => return done,
        }
    }
    Err(CliError::Failed("the cluster changes this object faster than it can be updated: try again".to_owned()))
}

/// The version that an update must name.
pub(super) fn index(version: &Option<ObjectVersion>) -> String {
    version.as_ref().and_then(|v| v.index).unwrap_or_default().to_string()
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Worker => "worker",
        Role::Manager => "manager",
    }
}

async fn read_token(client: &Client, role: Role) -> Result<String, CliError> {
    let swarm: Swarm = client.get("/swarm").await?;
    let tokens = swarm.join_tokens.unwrap_or_default();
    let token = match role {
        Role::Worker => tokens.worker,
        Role::Manager => tokens.manager,
    };
    token.ok_or_else(|| CliError::Failed("the engine does not tell its join tokens".to_owned()))
}

async fn print_token(client: &Client, role: Role) -> Result<(), CliError> {
    let token = read_token(client, role).await?;
    let info: Value = client.get("/info").await?;
    output::line(format_args!(
        "To add a {} to this cluster, run the following command on its host:\n\n    shoal node join --token {token} {}\n",
        role_name(role),
        own_address(&info)
    ))
}

/// Where this manager is reached, out of `/info`.
fn own_address(info: &Value) -> String {
    let swarm = &info["Swarm"];
    let own = swarm["RemoteManagers"].as_array().into_iter().flatten().find(|m| m["NodeID"] == swarm["NodeID"]);
    match own.and_then(|m| m["Addr"].as_str()) {
        Some(addr) => addr.to_owned(),
        None => with_port(swarm["NodeAddr"].as_str().unwrap_or_default()),
    }
}

async fn set_roles(client: &Client, nodes: Vec<String>, role: Role) -> Result<(), CliError> {
    let name = role_name(role);
    let said = |node: &str| match role {
        Role::Manager => format!("Node {node} promoted to a manager in the cluster."),
        Role::Worker => format!("Manager {node} demoted in the cluster."),
    };
    for_each(client, nodes, |spec| spec.role = Some(name.to_owned()), said).await
}

/// Changes several hosts alike. All of them are looked up first, so that a typing error changes nothing.
async fn for_each(
    client: &Client,
    nodes: Vec<String>,
    change: impl Fn(&mut NodeSpec),
    said: impl Fn(&str) -> String,
) -> Result<(), CliError> {
    let nodes = resolve(client, nodes).await?;
    let mut missing = Vec::new();
    for node in &nodes {
        missing.extend(client.get::<Node>(&route(&["nodes", node], &[])).await.err());
    }
    CliError::all(missing)?;
    let mut errors = Vec::new();
    for node in &nodes {
        match update(client, node, &change).await {
            Ok(()) => output::line(said(node))?,
            Err(e) => errors.push(e),
        }
    }
    CliError::all(errors)
}

async fn update(client: &Client, node: &str, change: &impl Fn(&mut NodeSpec)) -> Result<(), CliError> {
    retried(async || {
        let found: Node = client.get(&route(&["nodes", node], &[])).await?;
        let mut spec = found.spec.unwrap_or_default();
        change(&mut spec);
        let id = found.id.unwrap_or_default();
        client.post(&route(&["nodes", &id, "update"], &[("version", &index(&found.version))]), &spec).await
    })
    .await
    .map(drop)
}

async fn update_command(client: &Client, args: UpdateArgs) -> Result<(), CliError> {
    let nothing =
        args.availability.is_none() && args.role.is_none() && args.label_add.is_empty() && args.label_rm.is_empty();
    if nothing {
        return Err(CliError::usage(
            "nothing to change: give at least one of --availability, --role, --label-add, --label-rm",
        ));
    }
    // A label that is not there is a typing error rather than done.
    let nodes = resolve(client, vec![args.node.clone()]).await?;
    let found: Node = client.get(&route(&["nodes", &nodes[0]], &[])).await?;
    let labels = found.spec.unwrap_or_default().labels.unwrap_or_default();
    if let Some(missing) = args.label_rm.iter().find(|key| !labels.contains_key(*key)) {
        return Err(CliError::usage(format!("node {} has no label {missing:?}", args.node)));
    }
    update(client, &nodes[0], &|spec| apply(&args, spec)).await?;
    output::line(&args.node)
}

fn apply(args: &UpdateArgs, spec: &mut NodeSpec) {
    if let Some(availability) = args.availability {
        spec.availability = Some(availability.name());
    }
    if let Some(role) = args.role {
        spec.role = Some(role_name(role).to_owned());
    }
    let labels = spec.labels.get_or_insert_default();
    for key in &args.label_rm {
        labels.remove(key);
    }
    labels.extend(args.label_add.iter().map(|l| (l.key.clone(), l.value.clone())));
}
