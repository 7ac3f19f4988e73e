//! A service: how many tasks of what kind should run, and how they are reached.

use std::time::Duration;

use super::{
    ContainerSpec, HOST_NETWORK, Labels, Meta, NONE_NETWORK, NetworkAttachmentConfig, NetworkId, NetworkMode,
    ServiceId, TaskId, Timestamp,
};

/// A service.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Service {
    /// Its id.
    #[prost(message, required, tag = "1")]
    pub id: ServiceId,
    /// Version and times.
    #[prost(message, required, tag = "2")]
    pub meta: Meta,
    /// What the user wants.
    #[prost(message, required, tag = "3")]
    pub spec: ServiceSpec,
    /// A new one each time that the task template or the endpoint changes (a rollback brings the old one back); tasks
    /// carry the one that they were made of.
    #[prost(uint64, tag = "4")]
    pub spec_version: u64,
    /// The spec before the last update; what a rollback returns to.
    #[prost(message, optional, tag = "5")]
    pub previous_spec: Option<ServiceSpec>,
    /// Ports and virtual addresses that were given.
    #[prost(message, required, tag = "6")]
    pub endpoint: Endpoint,
    /// The update or rollback that runs, or that ran last.
    #[prost(message, optional, tag = "7")]
    pub update_status: Option<UpdateStatus>,
    /// Why the service cannot be carried out, for people; empty otherwise.
    #[prost(string, tag = "8")]
    pub message: String,
    /// Iteration of a job service; grows with each forced run.
    #[prost(uint64, tag = "9")]
    pub job_iteration: u64,
    /// `spec_version` that belongs to `previous_spec`.
    #[prost(uint64, tag = "10")]
    pub previous_spec_version: u64,
}

impl Service {
    /// Returns to the previous spec and starts the rollback. The tasks that were made of that spec count as up to date
    /// again, because its version returns with it; the spec that is left becomes the previous one, as in Docker.
    /// False, and nothing changes, when there is no previous spec.
    pub fn roll_back(&mut self, now: Timestamp, message: &str) -> bool {
        let Some(previous) = self.previous_spec.take() else { return false };
        self.previous_spec = Some(std::mem::replace(&mut self.spec, previous));
        std::mem::swap(&mut self.spec_version, &mut self.previous_spec_version);
        self.update_status = Some(UpdateStatus {
            state: UpdateState::RollbackStarted as i32,
            started_at: now,
            message: message.to_owned(),
            ..UpdateStatus::default()
        });
        true
    }

    /// Whether a port of the service is open on every host.
    pub fn publishes_ingress(&self) -> bool {
        self.spec.endpoint.as_ref().is_some_and(|endpoint| endpoint.ports.iter().any(PortConfig::is_ingress))
    }
}

impl PortConfig {
    /// Whether the port is open on every host.
    pub fn is_ingress(&self) -> bool {
        self.mode() == PublishMode::Ingress
    }
}

/// What a user wants of a service; Docker's whole service spec.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ServiceSpec {
    /// Unique name, a DNS label.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Labels of the service (not of its containers).
    #[prost(btree_map = "string, string", tag = "2")]
    pub labels: Labels,
    /// What each task runs.
    #[prost(message, required, tag = "3")]
    pub task: TaskSpec,
    /// How many tasks.
    #[prost(oneof = "ServiceMode", tags = "4, 5, 6, 7")]
    pub mode: Option<ServiceMode>,
    /// How an update goes; absent means Docker's defaults.
    #[prost(message, optional, tag = "8")]
    pub update: Option<UpdateConfig>,
    /// How a rollback goes; absent means Docker's defaults.
    #[prost(message, optional, tag = "9")]
    pub rollback: Option<UpdateConfig>,
    /// How the service is reached; absent means by virtual IP, without ports.
    #[prost(message, optional, tag = "10")]
    pub endpoint: Option<EndpointSpec>,
}

/// How many tasks a service has.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum ServiceMode {
    /// A fixed number.
    #[prost(message, tag = "4")]
    Replicated(Replicated),
    /// One on each eligible host.
    #[prost(message, tag = "5")]
    Global(Global),
    /// A number of tasks that run to completion.
    #[prost(message, tag = "6")]
    ReplicatedJob(ReplicatedJob),
    /// One on each eligible host, run to completion.
    #[prost(message, tag = "7")]
    GlobalJob(Global),
}

/// A fixed number of tasks.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Replicated {
    /// How many; absent means 1.
    #[prost(uint64, optional, tag = "1")]
    pub replicas: Option<u64>,
}

/// One task a host; nothing to set.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Global {}

/// Tasks that run to completion.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct ReplicatedJob {
    /// How many at once.
    #[prost(uint64, optional, tag = "1")]
    pub max_concurrent: Option<u64>,
    /// How many in all.
    #[prost(uint64, optional, tag = "2")]
    pub total_completions: Option<u64>,
}

/// The label by which a service says how its published ports are served: `local` or `cluster`, which is the default.
/// Docker's spec has no field for that, and its clients keep labels through updates.
pub const PUBLISH_LABEL: &str = "shoal.publish";

impl ServiceSpec {
    /// Whether each host leads to its own tasks alone at the ports that every host opens.
    pub fn publishes_locally(&self) -> bool {
        self.labels.get(PUBLISH_LABEL).is_some_and(|how| how == "local")
    }

    /// Number of replicas wanted, if the service is replicated.
    pub fn replicas(&self) -> Option<u64> {
        match &self.mode {
            None => Some(1),
            Some(ServiceMode::Replicated(r)) => Some(r.replicas.unwrap_or(1)),
            Some(_) => None,
        }
    }

    /// How an update goes, with defaults.
    pub fn update_config(&self) -> UpdateConfig {
        self.update.clone().unwrap_or_default()
    }

    /// How the service is reached, with defaults.
    pub fn endpoint_spec(&self) -> EndpointSpec {
        self.endpoint.clone().unwrap_or_default()
    }
}

/// What each task of a service runs.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskSpec {
    /// The container.
    #[prost(message, required, tag = "1")]
    pub container: ContainerSpec,
    /// Limits and reservations.
    #[prost(message, required, tag = "2")]
    pub resources: ResourceRequirements,
    /// What happens when a task ends; absent means Docker's defaults.
    #[prost(message, optional, tag = "3")]
    pub restart: Option<RestartPolicy>,
    /// Where tasks may go.
    #[prost(message, required, tag = "4")]
    pub placement: Placement,
    /// Networks, beside ingress.
    #[prost(message, repeated, tag = "5")]
    pub networks: Vec<NetworkAttachmentConfig>,
    /// Log driver; absent means the host's default.
    #[prost(message, optional, tag = "6")]
    pub log_driver: Option<LogDriver>,
    /// Changes to make an update restart tasks.
    #[prost(uint64, tag = "7")]
    pub force_update: u64,
}

impl TaskSpec {
    /// The cluster's networks that it names: all but those that every host has of its own.
    pub fn cluster_networks(&self) -> impl Iterator<Item = &NetworkAttachmentConfig> {
        self.networks.iter().filter(|network| ![HOST_NETWORK, NONE_NETWORK].contains(&network.target.as_str()))
    }

    /// What a task's namespace is connected to.
    pub fn network_mode(&self) -> NetworkMode {
        match self.networks.first().map(|network| network.target.as_str()) {
            Some(HOST_NETWORK) => NetworkMode::Host,
            Some(NONE_NETWORK) => NetworkMode::None,
            _ => NetworkMode::Cluster,
        }
    }

    /// What happens when a task ends, with defaults.
    pub fn restart_policy(&self) -> RestartPolicy {
        self.restart.clone().unwrap_or_default()
    }
}

/// Where a task's output goes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LogDriver {
    /// Driver name; empty means the host's default.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Driver options; [`crate::logging`] knows them.
    #[prost(btree_map = "string, string", tag = "2")]
    pub options: Labels,
}

/// Limits and reservations.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct ResourceRequirements {
    /// What a task may not exceed.
    #[prost(message, required, tag = "1")]
    pub limits: Resources,
    /// What a host must have free.
    #[prost(message, required, tag = "2")]
    pub reservations: Resources,
}

/// Amounts; zero means none.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Resources {
    /// Billionths of a CPU.
    #[prost(uint64, tag = "1")]
    pub nano_cpus: u64,
    /// Bytes.
    #[prost(uint64, tag = "2")]
    pub memory_bytes: u64,
    /// Processes (limits only).
    #[prost(uint64, tag = "3")]
    pub pids: u64,
}

/// When a task that ended is replaced.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RestartPolicy {
    /// Absent means any.
    #[prost(enumeration = "RestartCondition", optional, tag = "1")]
    pub condition: Option<i32>,
    /// Nanoseconds between the end and the new start; absent means 5 s.
    #[prost(uint64, optional, tag = "2")]
    pub delay_ns: Option<u64>,
    /// How often within the window; 0 or absent means without limit.
    #[prost(uint64, optional, tag = "3")]
    pub max_attempts: Option<u64>,
    /// Nanoseconds over which attempts are counted; 0 or absent means for ever.
    #[prost(uint64, optional, tag = "4")]
    pub window_ns: Option<u64>,
}

impl RestartPolicy {
    /// When to restart. (An unknown value of a newer release counts as `Any`.)
    pub fn when(&self) -> RestartCondition {
        self.condition.and_then(|c| RestartCondition::try_from(c).ok()).unwrap_or(RestartCondition::Any)
    }

    /// Time between the end of a task and the start of its replacement.
    pub fn delay(&self) -> Duration {
        Duration::from_nanos(self.delay_ns.unwrap_or(5_000_000_000))
    }
}

/// Which ends of a task lead to a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum RestartCondition {
    /// None.
    None = 0,
    /// A non-zero exit or an error.
    OnFailure = 1,
    /// Any.
    Any = 2,
}

/// Where tasks may go.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Placement {
    /// Expressions like `node.labels.zone==a`.
    #[prost(string, repeated, tag = "1")]
    pub constraints: Vec<String>,
    /// Labels to spread over (`node.labels.zone`), most important first.
    #[prost(string, repeated, tag = "2")]
    pub spread_over: Vec<String>,
    /// Tasks of the service on one host at most; 0 means no limit.
    #[prost(uint64, tag = "3")]
    pub max_replicas: u64,
    /// Platforms that the image runs on; empty means any.
    #[prost(message, repeated, tag = "4")]
    pub platforms: Vec<Platform>,
}

/// A CPU architecture and an operating system; empty means any.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Platform {
    /// "amd64" or "x86_64", "arm64" or "aarch64".
    #[prost(string, tag = "1")]
    pub architecture: String,
    /// "linux".
    #[prost(string, tag = "2")]
    pub os: String,
}

/// How an update or a rollback goes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateConfig {
    /// Slots at a time; 0 means all; absent means 1.
    #[prost(uint64, optional, tag = "1")]
    pub parallelism: Option<u64>,
    /// Nanoseconds between batches; absent means 0.
    #[prost(uint64, optional, tag = "2")]
    pub delay_ns: Option<u64>,
    /// What happens when too many tasks fail.
    #[prost(enumeration = "FailureAction", tag = "3")]
    pub failure_action: i32,
    /// Nanoseconds that a new task is watched for failure; absent means 5 s.
    #[prost(uint64, optional, tag = "4")]
    pub monitor_ns: Option<u64>,
    /// Share of slots that may fail, in millionths.
    #[prost(uint32, tag = "5")]
    pub max_failure_ppm: u32,
    /// Whether the old task stops before the new one starts.
    #[prost(enumeration = "UpdateOrder", tag = "6")]
    pub order: i32,
}

impl UpdateConfig {
    /// Slots at a time; 0 means all.
    pub fn slots_at_a_time(&self) -> u64 {
        self.parallelism.unwrap_or(1)
    }

    /// Time between batches.
    pub fn delay(&self) -> Duration {
        Duration::from_nanos(self.delay_ns.unwrap_or(0))
    }

    /// How long a new task is watched for failure.
    pub fn monitor(&self) -> Duration {
        Duration::from_nanos(self.monitor_ns.unwrap_or(5_000_000_000))
    }
}

/// What happens when an update fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum FailureAction {
    /// Stop and wait for the user.
    Pause = 0,
    /// Go on.
    Continue = 1,
    /// Return to the previous spec.
    Rollback = 2,
}

/// Which of two tasks of a slot goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum UpdateOrder {
    /// The old one stops, then the new one starts.
    StopFirst = 0,
    /// The new one runs, then the old one stops.
    StartFirst = 1,
}

/// The update or rollback that runs, or that ran last.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateStatus {
    /// How far it is.
    #[prost(enumeration = "UpdateState", tag = "1")]
    pub state: i32,
    /// When it began.
    #[prost(message, required, tag = "2")]
    pub started_at: Timestamp,
    /// When it ended; never while it runs.
    #[prost(message, required, tag = "3")]
    pub completed_at: Timestamp,
    /// For people.
    #[prost(string, tag = "4")]
    pub message: String,
    /// When the next batch may begin (the delay between batches).
    #[prost(message, required, tag = "5")]
    pub not_before: Timestamp,
    /// Slots whose new task failed while it was watched.
    #[prost(uint64, repeated, tag = "6")]
    pub failed_slots: Vec<u64>,
    /// Tasks that the update made and that did not run yet, or are watched for failure.
    #[prost(message, repeated, tag = "7")]
    pub watched: Vec<WatchedTask>,
    /// Slots that had to change when the update began; what the failure ratio is of. 0 until the first step.
    #[prost(uint64, tag = "8")]
    pub total_slots: u64,
}

/// A task that an update made.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct WatchedTask {
    /// The task.
    #[prost(message, required, tag = "1")]
    pub task: TaskId,
    /// Since when it is known to run, on the cluster's clock; never before that.
    #[prost(message, required, tag = "2")]
    pub running_since: Timestamp,
}

/// How far an update is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum UpdateState {
    /// Goes on.
    Updating = 0,
    /// Waits for the user after failures.
    Paused = 1,
    /// Done.
    Completed = 2,
    /// Going back.
    RollbackStarted = 3,
    /// Going back failed too.
    RollbackPaused = 4,
    /// Back at the previous spec.
    RollbackCompleted = 5,
}

/// How a service is reached.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EndpointSpec {
    /// By virtual IP or by the tasks' own addresses.
    #[prost(enumeration = "EndpointMode", tag = "1")]
    pub mode: i32,
    /// Ports open to the outside.
    #[prost(message, repeated, tag = "2")]
    pub ports: Vec<PortConfig>,
}

/// What a service's name resolves to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum EndpointMode {
    /// One virtual IP.
    Vip = 0,
    /// All tasks' addresses.
    Dnsrr = 1,
}

/// A published port.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PortConfig {
    /// Name, as sent.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Protocol.
    #[prost(enumeration = "PortProtocol", tag = "2")]
    pub protocol: i32,
    /// Port inside of the task.
    #[prost(uint32, tag = "3")]
    pub target: u32,
    /// Port on the hosts; 0 in a spec means "choose one" (30000 to 32767).
    #[prost(uint32, tag = "4")]
    pub published: u32,
    /// On every host, or only where a task runs.
    #[prost(enumeration = "PublishMode", tag = "5")]
    pub mode: i32,
}

/// Protocol of a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum PortProtocol {
    /// TCP.
    Tcp = 0,
    /// UDP.
    Udp = 1,
    /// SCTP.
    Sctp = 2,
}

/// Where a port is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum PublishMode {
    /// On every host.
    Ingress = 0,
    /// On the hosts where a task runs.
    Host = 1,
}

/// Ports and virtual addresses that a service was given.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Endpoint {
    /// Published ports, with chosen numbers.
    #[prost(message, repeated, tag = "1")]
    pub ports: Vec<PortConfig>,
    /// One a network.
    #[prost(message, repeated, tag = "2")]
    pub virtual_ips: Vec<VirtualIp>,
}

/// A service's address on a network.
#[derive(Clone, PartialEq, prost::Message)]
pub struct VirtualIp {
    /// The network.
    #[prost(message, required, tag = "1")]
    pub network: NetworkId,
    /// Address with prefix length ("10.0.3.2/24").
    #[prost(string, tag = "2")]
    pub address: String,
    /// The IPv6 address that goes with it ("fd00:3::2/64"); empty on a network without IPv6.
    #[prost(string, tag = "3")]
    pub address6: String,
}
