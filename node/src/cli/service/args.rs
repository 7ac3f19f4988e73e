//! The flags of `shoal service`, with the names that `docker service` has.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use crate::cli::output::ListFormat;
use crate::cli::values::{self, KeyValue, PayloadFlag};
use crate::docker_api::wire::{Mount, NetworkAttachmentConfig, PortConfig, Ulimit};

/// `shoal service`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  shoal service create --name web --replicas 3 --publish 8080:80 web:1
  shoal service ls
  shoal service ps web                          Where its tasks run, and how they fared
  shoal service scale web=5 api=2
  shoal service update --image web:2 --update-order start-first web
  shoal service rollback web
  shoal service logs --follow --tail 20 web
  shoal service why web                         Which hosts could take a task, and what speaks against the others
  shoal service rm web")]
pub(in crate::cli) struct ServiceArgs {
    #[command(subcommand)]
    pub(super) command: ServiceCommand,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum ServiceCommand {
    /// Create a service
    #[command(
        override_usage = "shoal service create [OPTIONS] IMAGE [COMMAND] [ARG...]",
        after_help = "\
Examples:
  shoal service create --name web --replicas 3 -p 8080:80 web:1
  shoal service create --name db --network back --mount type=bind,source=/srv/db,target=/data db:1
  shoal service create --name edge --mode global -p 443:443 --publish-to local proxy:1
  shoal service create --name agent --mode global --constraint node.labels.zone==a agent:1 --verbose

All flags stand in front of IMAGE; what comes behind it is the command and its arguments."
    )]
    Create(Box<CreateArgs>),
    /// Change a service
    #[command(after_help = "\
Examples:
  shoal service update --image web:2 web
  shoal service update --env-add LEVEL=debug --publish-rm 80 web
  shoal service update --force web              Replace all tasks, though nothing changed")]
    Update(Box<UpdateArgs>),
    /// Set how many tasks services have
    Scale {
        #[arg(required = true, value_name = "SERVICE=REPLICAS")]
        services: Vec<String>,
        /// Do not wait until the tasks run
        #[arg(short, long)]
        detach: bool,
    },
    /// List the services
    Ls {
        /// Only those that fit, e.g. name=web, label=app=x or mode=global
        #[arg(short, long, value_name = "KEY=VALUE")]
        filter: Vec<String>,
        #[command(flatten)]
        format: ListFormat,
    },
    /// List the tasks of services
    Ps {
        #[arg(required = true, value_name = "SERVICE", value_parser = values::name)]
        services: Vec<String>,
        /// Only those that fit, e.g. desired-state=running or node=host-1
        #[arg(short, long, value_name = "KEY=VALUE")]
        filter: Vec<String>,
        #[command(flatten)]
        format: ListFormat,
    },
    /// Show all about services
    Inspect {
        #[arg(required = true, value_name = "SERVICE", value_parser = values::name)]
        services: Vec<String>,
        /// For people rather than programs
        #[arg(long)]
        pretty: bool,
    },
    /// Print what a service's tasks, or one task, wrote
    Logs(LogsArgs),
    /// Remove services and their tasks
    Rm {
        #[arg(required = true, value_name = "SERVICE", value_parser = values::name)]
        services: Vec<String>,
    },
    /// Go back to what a service was before its last update
    Rollback {
        #[arg(value_parser = values::name)]
        service: String,
        /// Do not wait until it is done
        #[arg(short, long)]
        detach: bool,
        /// Do not show progress
        #[arg(short, long)]
        quiet: bool,
    },
    /// Explain where a service's tasks are, and why not elsewhere
    Why {
        #[arg(value_parser = values::name)]
        service: String,
        /// For programs
        #[arg(long)]
        json: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Mode {
    Replicated,
    Global,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Condition {
    None,
    OnFailure,
    Any,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Order {
    StartFirst,
    StopFirst,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum UpdateFailure {
    Pause,
    Continue,
    Rollback,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum RollbackFailure {
    Pause,
    Continue,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum EndpointMode {
    Vip,
    Dnsrr,
}

/// Whose tasks a host leads to at the ports that every host opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum PublishTo {
    Cluster,
    Local,
}

/// The word of a value, as the API has it.
pub(super) fn word<T: ValueEnum>(value: T) -> String {
    value.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default()
}

/// What `--publish` gives; a range is several ports.
#[derive(Clone, Debug)]
pub(super) struct Ports(pub(super) Vec<PortConfig>);

fn ports(text: &str) -> Result<Ports, String> {
    values::parse_ports(text).map(Ports)
}

/// Flags that `create` and `update` share: each sets one thing.
#[derive(Args, Debug, Default)]
pub(super) struct Settings {
    /// Number of tasks
    #[arg(long, value_name = "N", value_parser = values::count)]
    pub(super) replicas: Option<u64>,
    /// Most tasks on one host; 0 for any number
    #[arg(long, value_name = "N", value_parser = values::count)]
    pub(super) replicas_max_per_node: Option<u64>,
    /// How the service's name resolves: one virtual address, or all tasks' addresses in turn
    #[arg(long, value_enum, value_name = "MODE")]
    pub(super) endpoint_mode: Option<EndpointMode>,
    /// Whose tasks answer at a host's published ports: the whole cluster's, or that host's own alone, where a host without
    /// any refuses; kept as the label shoal.publish [default: cluster]
    #[arg(long, value_enum, value_name = "WHERE")]
    pub(super) publish_to: Option<PublishTo>,

    /// Most CPUs that a task may use, e.g. 0.5
    #[arg(long, value_name = "N", value_parser = values::cpus, help_heading = "Resources")]
    pub(super) limit_cpu: Option<i64>,
    /// Most memory that a task may use, e.g. 64M
    #[arg(long, value_name = "BYTES", value_parser = values::memory, help_heading = "Resources")]
    pub(super) limit_memory: Option<i64>,
    /// Most processes that a task may have; 0 for any number
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(0..), help_heading = "Resources")]
    pub(super) limit_pids: Option<i64>,
    /// CPUs that a host must have to spare
    #[arg(long, value_name = "N", value_parser = values::cpus, help_heading = "Resources")]
    pub(super) reserve_cpu: Option<i64>,
    /// Memory that a host must have to spare
    #[arg(long, value_name = "BYTES", value_parser = values::memory, help_heading = "Resources")]
    pub(super) reserve_memory: Option<i64>,

    /// When a task that ended is replaced [default: any]
    #[arg(long, value_enum, value_name = "WHEN", help_heading = "Restarts")]
    pub(super) restart_condition: Option<Condition>,
    /// Pause before that, e.g. 5s
    #[arg(long, value_name = "TIME", value_parser = values::duration, help_heading = "Restarts")]
    pub(super) restart_delay: Option<i64>,
    /// Give up after so many; 0 for never
    #[arg(long, value_name = "N", value_parser = values::count, help_heading = "Restarts")]
    pub(super) restart_max_attempts: Option<u64>,
    /// Count those of this time only
    #[arg(long, value_name = "TIME", value_parser = values::duration, help_heading = "Restarts")]
    pub(super) restart_window: Option<i64>,

    /// Tasks that an update replaces at a time; 0 for all [default: 1]
    #[arg(long, value_name = "N", value_parser = values::count, help_heading = "Updates")]
    pub(super) update_parallelism: Option<u64>,
    /// Pause between them
    #[arg(long, value_name = "TIME", value_parser = values::duration, help_heading = "Updates")]
    pub(super) update_delay: Option<i64>,
    /// Whether the new task starts before the old one stops [default: stop-first]
    #[arg(long, value_enum, value_name = "ORDER", help_heading = "Updates")]
    pub(super) update_order: Option<Order>,
    /// What to do when new tasks fail [default: pause]
    #[arg(long, value_enum, value_name = "ACTION", help_heading = "Updates")]
    pub(super) update_failure_action: Option<UpdateFailure>,
    /// How long a new task is watched for failure [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = values::duration, help_heading = "Updates")]
    pub(super) update_monitor: Option<i64>,
    /// Share of tasks that may fail, 0 to 1
    #[arg(long, value_name = "SHARE", value_parser = values::ratio, help_heading = "Updates")]
    pub(super) update_max_failure_ratio: Option<f64>,
    /// As --update-parallelism, for rollbacks
    #[arg(long, value_name = "N", value_parser = values::count, help_heading = "Updates")]
    pub(super) rollback_parallelism: Option<u64>,
    /// As --update-delay, for rollbacks
    #[arg(long, value_name = "TIME", value_parser = values::duration, help_heading = "Updates")]
    pub(super) rollback_delay: Option<i64>,
    /// As --update-order, for rollbacks
    #[arg(long, value_enum, value_name = "ORDER", help_heading = "Updates")]
    pub(super) rollback_order: Option<Order>,
    /// What to do when tasks of a rollback fail
    #[arg(long, value_enum, value_name = "ACTION", help_heading = "Updates")]
    pub(super) rollback_failure_action: Option<RollbackFailure>,
    /// As --update-monitor, for rollbacks
    #[arg(long, value_name = "TIME", value_parser = values::duration, help_heading = "Updates")]
    pub(super) rollback_monitor: Option<i64>,
    /// As --update-max-failure-ratio, for rollbacks
    #[arg(long, value_name = "SHARE", value_parser = values::ratio, help_heading = "Updates")]
    pub(super) rollback_max_failure_ratio: Option<f64>,

    /// How long a task may take to stop [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = values::duration, help_heading = "Container")]
    pub(super) stop_grace_period: Option<i64>,
    /// The signal that stops it
    #[arg(long, value_name = "SIGNAL", help_heading = "Container")]
    pub(super) stop_signal: Option<String>,
    /// User, and group if wanted, NAME|UID[:GROUP|GID]
    #[arg(short, long, help_heading = "Container")]
    pub(super) user: Option<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR", help_heading = "Container")]
    pub(super) workdir: Option<String>,
    /// Host name of the tasks
    #[arg(long, value_name = "NAME", help_heading = "Container")]
    pub(super) hostname: Option<String>,
    /// Make the root file system read-only
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL",
          help_heading = "Container")]
    pub(super) read_only: Option<bool>,
    /// Shell command that says by its exit code whether a task is healthy
    #[arg(long, value_name = "COMMAND", help_heading = "Health")]
    pub(super) health_cmd: Option<String>,
    /// Time from one check to the next [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = values::duration, help_heading = "Health")]
    pub(super) health_interval: Option<i64>,
    /// A check that takes longer has failed [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = values::duration, help_heading = "Health")]
    pub(super) health_timeout: Option<i64>,
    /// Failures in a row that make a task unhealthy [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(0..), help_heading = "Health")]
    pub(super) health_retries: Option<i64>,
    /// Failures do not count for so long after the start [default: 0s]
    #[arg(long, value_name = "TIME", value_parser = values::duration, help_heading = "Health")]
    pub(super) health_start_period: Option<i64>,
    /// As --health-interval, in that time and until the first success [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = values::duration, help_heading = "Health")]
    pub(super) health_start_interval: Option<i64>,
    /// Do not check, whatever the image says
    #[arg(long, help_heading = "Health")]
    pub(super) no_healthcheck: bool,
    /// Command in place of the image's entry point, in shell words
    #[arg(long, value_name = "COMMAND", help_heading = "Container")]
    pub(super) entrypoint: Option<String>,
    /// Log driver: json-file, local, syslog, journald or none
    #[arg(long, value_name = "NAME", help_heading = "Container")]
    pub(super) log_driver: Option<String>,
    /// Option of the log driver, e.g. max-size=10m; may be repeated
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Container")]
    pub(super) log_opt: Vec<KeyValue>,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct CreateArgs {
    /// Name of the service [default: made up]
    #[arg(long)]
    pub(super) name: Option<String>,
    /// So many tasks, or one on each host [default: replicated]
    #[arg(long, value_enum)]
    pub(super) mode: Option<Mode>,
    /// Port to publish on all hosts: 8080:80[/udp], or published=8080,target=80,mode=host; may be repeated
    #[arg(short, long, value_name = "PORT", value_parser = ports)]
    pub(super) publish: Vec<Ports>,
    /// Network to attach to, NAME or name=NAME,alias=ALIAS; may be repeated
    #[arg(long, value_name = "NETWORK", value_parser = values::network)]
    pub(super) network: Vec<NetworkAttachmentConfig>,
    /// Label of the service; may be repeated
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub(super) label: Vec<KeyValue>,
    /// Label of its containers; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub(super) container_label: Vec<KeyValue>,
    /// Where tasks may run, e.g. node.role==worker or node.labels.zone!=a; may be repeated
    #[arg(long, value_name = "EXPRESSION")]
    pub(super) constraint: Vec<String>,
    /// Spread tasks over values of a label, spread=node.labels.zone; may be repeated
    #[arg(long, value_name = "spread=LABEL", value_parser = preference)]
    pub(super) placement_pref: Vec<String>,
    #[command(flatten)]
    pub(super) settings: Settings,
    /// Environment variable; KEY alone takes the value it has here; may be repeated
    #[arg(short, long, value_name = "KEY[=VALUE]", value_parser = values::env, help_heading = "Container")]
    pub(super) env: Vec<String>,
    /// File with a variable a line; may be repeated
    #[arg(long, value_name = "FILE", help_heading = "Container")]
    pub(super) env_file: Vec<PathBuf>,
    /// type=volume|bind|tmpfs,source=NAME|PATH,target=PATH[,readonly]; may be repeated
    #[arg(long, value_name = "MOUNT", value_parser = values::parse_mount, help_heading = "Container")]
    pub(super) mount: Vec<Mount>,
    /// Secret to show in /run/secrets, NAME or source=NAME,target=FILE,uid=N,gid=N,mode=0400; may be repeated
    #[arg(long, value_name = "SECRET", value_parser = values::parse_payload, help_heading = "Container")]
    pub(super) secret: Vec<PayloadFlag>,
    /// Config to show as a file, NAME or source=NAME,target=FILE,uid=N,gid=N,mode=0444; may be repeated
    #[arg(long, value_name = "CONFIG", value_parser = values::parse_payload, help_heading = "Container")]
    pub(super) config: Vec<PayloadFlag>,
    /// Line of the hosts file; may be repeated
    #[arg(long = "host", value_name = "NAME:IP", value_parser = values::hosts_entry, help_heading = "Container")]
    pub(super) hosts: Vec<String>,
    /// Name server; may be repeated
    #[arg(long, value_name = "IP", help_heading = "Container")]
    pub(super) dns: Vec<std::net::IpAddr>,
    /// Search domain; may be repeated
    #[arg(long, value_name = "DOMAIN", help_heading = "Container")]
    pub(super) dns_search: Vec<String>,
    /// Option of the resolver; may be repeated
    #[arg(long, value_name = "OPTION", help_heading = "Container")]
    pub(super) dns_option: Vec<String>,
    /// Capability to add; may be repeated
    #[arg(long, value_name = "CAP", value_parser = values::capability, help_heading = "Container")]
    pub(super) cap_add: Vec<String>,
    /// Capability to take away; may be repeated
    #[arg(long, value_name = "CAP", value_parser = values::capability, help_heading = "Container")]
    pub(super) cap_drop: Vec<String>,
    /// Kernel setting of the task's namespaces; may be repeated
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Container")]
    pub(super) sysctl: Vec<KeyValue>,
    /// Limit, NAME=SOFT[:HARD]; may be repeated
    #[arg(long, value_name = "LIMIT", value_parser = values::ulimit, help_heading = "Container")]
    pub(super) ulimit: Vec<Ulimit>,
    /// Do not wait until the tasks run
    #[arg(short, long)]
    pub(super) detach: bool,
    /// Let the hosts pull the image with the credentials of `shoal registry login`
    #[arg(long)]
    pub(super) with_registry_auth: bool,
    /// Do not show progress
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// The image, then the command and its arguments
    #[arg(value_name = "IMAGE", required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(super) image_and_args: Vec<String>,
}

#[derive(Args, Debug, Default)]
pub(in crate::cli) struct UpdateArgs {
    /// Another image
    #[arg(long)]
    pub(super) image: Option<String>,
    /// Other arguments for the command, in shell words
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true)]
    pub(super) args: Option<String>,
    /// Replace all tasks, though nothing changed
    #[arg(long)]
    pub(super) force: bool,
    /// Go back to what the service was before its last update
    #[arg(long)]
    pub(super) rollback: bool,
    /// Port to publish, in place of what was published there; may be repeated
    #[arg(long, value_name = "PORT", value_parser = ports)]
    pub(super) publish_add: Vec<Ports>,
    /// Target port not to publish any more, e.g. 80 or 53/udp; may be repeated
    #[arg(long, value_name = "PORT", value_parser = ports)]
    pub(super) publish_rm: Vec<Ports>,
    /// Network to attach to; may be repeated
    #[arg(long, value_name = "NETWORK", value_parser = values::network)]
    pub(super) network_add: Vec<NetworkAttachmentConfig>,
    /// Network to detach from; may be repeated
    #[arg(long, value_name = "NETWORK")]
    pub(super) network_rm: Vec<String>,
    /// Label of the service; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub(super) label_add: Vec<KeyValue>,
    /// Label to remove; may be repeated
    #[arg(long, value_name = "KEY")]
    pub(super) label_rm: Vec<String>,
    /// Label of its containers; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub(super) container_label_add: Vec<KeyValue>,
    /// Label of its containers to remove; may be repeated
    #[arg(long, value_name = "KEY")]
    pub(super) container_label_rm: Vec<String>,
    /// Where tasks may run; may be repeated
    #[arg(long, value_name = "EXPRESSION")]
    pub(super) constraint_add: Vec<String>,
    /// Constraint to remove; may be repeated
    #[arg(long, value_name = "EXPRESSION")]
    pub(super) constraint_rm: Vec<String>,
    /// Spread tasks over values of a label; may be repeated
    #[arg(long, value_name = "spread=LABEL", value_parser = preference)]
    pub(super) placement_pref_add: Vec<String>,
    /// Preference to remove; may be repeated
    #[arg(long, value_name = "spread=LABEL", value_parser = preference)]
    pub(super) placement_pref_rm: Vec<String>,
    #[command(flatten)]
    pub(super) settings: Settings,
    /// Environment variable; may be repeated
    #[arg(long, value_name = "KEY[=VALUE]", value_parser = values::env, help_heading = "Container")]
    pub(super) env_add: Vec<String>,
    /// Environment variable to remove; may be repeated
    #[arg(long, value_name = "KEY", help_heading = "Container")]
    pub(super) env_rm: Vec<String>,
    /// Mount to add, in place of one with the same target; may be repeated
    #[arg(long, value_name = "MOUNT", value_parser = values::parse_mount, help_heading = "Container")]
    pub(super) mount_add: Vec<Mount>,
    /// Target of a mount to remove; may be repeated
    #[arg(long, value_name = "PATH", help_heading = "Container")]
    pub(super) mount_rm: Vec<String>,
    /// Secret to show, in place of one with the same target; may be repeated
    #[arg(long, value_name = "SECRET", value_parser = values::parse_payload, help_heading = "Container")]
    pub(super) secret_add: Vec<PayloadFlag>,
    /// Name of a secret to take away; may be repeated
    #[arg(long, value_name = "NAME", help_heading = "Container")]
    pub(super) secret_rm: Vec<String>,
    /// Config to show, in place of one with the same target; may be repeated
    #[arg(long, value_name = "CONFIG", value_parser = values::parse_payload, help_heading = "Container")]
    pub(super) config_add: Vec<PayloadFlag>,
    /// Name of a config to take away; may be repeated
    #[arg(long, value_name = "NAME", help_heading = "Container")]
    pub(super) config_rm: Vec<String>,
    /// Line of the hosts file; may be repeated
    #[arg(long, value_name = "NAME:IP", value_parser = values::hosts_entry, help_heading = "Container")]
    pub(super) host_add: Vec<String>,
    /// Line of the hosts file to remove; may be repeated
    #[arg(long, value_name = "NAME:IP", value_parser = values::hosts_entry, help_heading = "Container")]
    pub(super) host_rm: Vec<String>,
    /// Name server; may be repeated
    #[arg(long, value_name = "IP", help_heading = "Container")]
    pub(super) dns_add: Vec<std::net::IpAddr>,
    /// Name server to remove; may be repeated
    #[arg(long, value_name = "IP", help_heading = "Container")]
    pub(super) dns_rm: Vec<std::net::IpAddr>,
    /// Search domain; may be repeated
    #[arg(long, value_name = "DOMAIN", help_heading = "Container")]
    pub(super) dns_search_add: Vec<String>,
    /// Search domain to remove; may be repeated
    #[arg(long, value_name = "DOMAIN", help_heading = "Container")]
    pub(super) dns_search_rm: Vec<String>,
    /// Option of the resolver; may be repeated
    #[arg(long, value_name = "OPTION", help_heading = "Container")]
    pub(super) dns_option_add: Vec<String>,
    /// Option of the resolver to remove; may be repeated
    #[arg(long, value_name = "OPTION", help_heading = "Container")]
    pub(super) dns_option_rm: Vec<String>,
    /// Capability to add; no longer taken away; may be repeated
    #[arg(long, value_name = "CAP", value_parser = values::capability, help_heading = "Container")]
    pub(super) cap_add: Vec<String>,
    /// Capability to take away; no longer added; may be repeated
    #[arg(long, value_name = "CAP", value_parser = values::capability, help_heading = "Container")]
    pub(super) cap_drop: Vec<String>,
    /// Kernel setting; may be repeated
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Container")]
    pub(super) sysctl_add: Vec<KeyValue>,
    /// Kernel setting to remove; may be repeated
    #[arg(long, value_name = "KEY", help_heading = "Container")]
    pub(super) sysctl_rm: Vec<String>,
    /// Limit, NAME=SOFT[:HARD]; may be repeated
    #[arg(long, value_name = "LIMIT", value_parser = values::ulimit, help_heading = "Container")]
    pub(super) ulimit_add: Vec<Ulimit>,
    /// Limit to remove; may be repeated
    #[arg(long, value_name = "NAME", help_heading = "Container")]
    pub(super) ulimit_rm: Vec<String>,
    /// Do not wait until the update is done
    #[arg(short, long)]
    pub(super) detach: bool,
    /// Let the hosts pull the image with the credentials of `shoal registry login`
    #[arg(long)]
    pub(super) with_registry_auth: bool,
    /// Do not show progress
    #[arg(short, long)]
    pub(super) quiet: bool,
    #[arg(value_parser = values::name)]
    pub(super) service: String,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct LogsArgs {
    /// Go on as lines come
    #[arg(short, long)]
    pub(super) follow: bool,
    /// Only the last N lines of each task
    #[arg(short = 'n', long, value_name = "N|all", default_value = "all", value_parser = tail)]
    pub(super) tail: String,
    /// Only lines since a time (2026-01-31T12:00:00Z) or for so long (10m)
    #[arg(long, value_name = "TIME")]
    pub(super) since: Option<String>,
    /// Put the time in front of each line
    #[arg(short, long)]
    pub(super) timestamps: bool,
    /// Print the lines as they are, without the task's name
    #[arg(long)]
    pub(super) raw: bool,
    /// Do not shorten the tasks' IDs
    #[arg(long)]
    pub(super) no_trunc: bool,
    #[arg(value_name = "SERVICE|TASK", value_parser = values::name)]
    pub(super) name: String,
}

fn tail(text: &str) -> Result<String, String> {
    match text.parse::<u64>() {
        Ok(_) => Ok(text.to_owned()),
        Err(_) if text == "all" => Ok(text.to_owned()),
        Err(_) => Err("it must be a number or \"all\"".to_owned()),
    }
}

fn preference(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some(("spread", label)) if !label.is_empty() => Ok(label.to_owned()),
        _ => Err("it must look like spread=node.labels.zone".to_owned()),
    }
}
