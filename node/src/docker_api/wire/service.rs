//! Services: Docker's `ServiceSpec`, `TaskSpec` and `Service`.

use serde_json::Value;

use super::{ContainerSpec, Driver, Empty, Map, ObjectVersion, wire};

wire! {
    /// What a user wants of a service.
    ServiceSpec {
        "Name" name: String,
        "Labels" labels: Map,
        "TaskTemplate" task_template: TaskSpec,
        "Mode" mode: ServiceMode,
        "UpdateConfig" update_config: UpdateConfig,
        "RollbackConfig" rollback_config: UpdateConfig,
        "Networks" networks: Vec<NetworkAttachmentConfig>,
        "EndpointSpec" endpoint_spec: EndpointSpec,
    }

    /// What each task of a service runs.
    TaskSpec {
        "ContainerSpec" container_spec: ContainerSpec,
        "PluginSpec" plugin_spec: Value,
        "NetworkAttachmentSpec" network_attachment_spec: Value,
        "Resources" resources: Resources,
        "RestartPolicy" restart_policy: RestartPolicy,
        "Placement" placement: Placement,
        "Networks" networks: Vec<NetworkAttachmentConfig>,
        "LogDriver" log_driver: Driver,
        "ForceUpdate" force_update: u64,
        "Runtime" runtime: String,
    }

    /// Limits and reservations.
    Resources {
        "Limits" limits: Limits,
        "Reservations" reservations: Reservations,
        "SwapBytes" swap_bytes: Value,
        "MemorySwappiness" memory_swappiness: Value,
    }

    /// What a task may not exceed.
    Limits { "NanoCPUs" nano_cpus: i64, "MemoryBytes" memory_bytes: i64, "Pids" pids: i64 }

    /// What a host must have free.
    Reservations {
        "NanoCPUs" nano_cpus: i64,
        "MemoryBytes" memory_bytes: i64,
        "GenericResources" generic_resources: Value,
    }

    /// When a task that ended is replaced; times are nanoseconds.
    RestartPolicy {
        "Condition" condition: String,
        "Delay" delay: i64,
        "MaxAttempts" max_attempts: u64,
        "Window" window: i64,
    }

    /// Where tasks may go.
    Placement {
        "Constraints" constraints: Vec<String>,
        "Preferences" preferences: Vec<Preference>,
        "MaxReplicas" max_replicas: u64,
        "Platforms" platforms: Vec<Platform>,
    }

    /// A placement preference.
    Preference { "Spread" spread: Spread }

    /// What to spread over.
    Spread { "SpreadDescriptor" descriptor: String }

    /// A CPU architecture and an operating system.
    Platform { "Architecture" architecture: String, "OS" os: String }

    /// A wish to be attached to a network.
    NetworkAttachmentConfig { "Target" target: String, "Aliases" aliases: Vec<String>, "DriverOpts" driver_opts: Map }

    /// How many tasks; one of the fields is there.
    ServiceMode {
        "Replicated" replicated: Replicated,
        "Global" global: Empty,
        "ReplicatedJob" replicated_job: ReplicatedJob,
        "GlobalJob" global_job: Empty,
    }

    /// A fixed number.
    Replicated { "Replicas" replicas: u64 }

    /// Tasks that run to completion.
    ReplicatedJob { "MaxConcurrent" max_concurrent: u64, "TotalCompletions" total_completions: u64 }

    /// How an update or a rollback goes; times are nanoseconds.
    UpdateConfig {
        "Parallelism" parallelism: u64,
        "Delay" delay: i64,
        "FailureAction" failure_action: String,
        "Monitor" monitor: i64,
        "MaxFailureRatio" max_failure_ratio: f64,
        "Order" order: String,
    }

    /// How a service is reached.
    EndpointSpec { "Mode" mode: String, "Ports" ports: Vec<PortConfig> }

    /// A published port.
    PortConfig {
        "Name" name: String,
        "Protocol" protocol: String,
        "TargetPort" target_port: u32,
        "PublishedPort" published_port: u32,
        "PublishMode" publish_mode: String,
    }

    /// A service.
    Service {
        "ID" id: String,
        "Version" version: ObjectVersion,
        "CreatedAt" created_at: String,
        "UpdatedAt" updated_at: String,
        "Spec" spec: ServiceSpec,
        "PreviousSpec" previous_spec: ServiceSpec,
        "Endpoint" endpoint: Endpoint,
        "UpdateStatus" update_status: UpdateStatus,
        "ServiceStatus" service_status: ServiceStatus,
        "JobStatus" job_status: JobStatus,
    }

    /// Ports and addresses that a service was given.
    Endpoint { "Spec" spec: EndpointSpec, "Ports" ports: Vec<PortConfig>, "VirtualIPs" virtual_ips: Vec<VirtualIp> }

    /// A service's address on a network.
    VirtualIp { "NetworkID" network_id: String, "Addr" addr: String }

    /// How far an update is.
    UpdateStatus {
        "State" state: String,
        "StartedAt" started_at: String,
        "CompletedAt" completed_at: String,
        "Message" message: String,
    }

    /// How many tasks there are; `service ls` prints it.
    ServiceStatus { "RunningTasks" running_tasks: u64, "DesiredTasks" desired_tasks: u64, "CompletedTasks" completed_tasks: u64 }

    /// Which run of a job this is.
    JobStatus { "JobIteration" job_iteration: ObjectVersion, "LastExecution" last_execution: String }
}
