//! Nodes, tasks, networks, secrets and configs.

use serde_json::Value;

use super::{Map, ObjectVersion, Platform, PortConfig, TaskSpec, TlsInfo, wire};

wire! {
    /// A volume of a host.
    Volume {
        "CreatedAt" created_at: String,
        "Driver" driver: String,
        "Labels" labels: Map,
        "Mountpoint" mountpoint: String,
        "Name" name: String,
        "Options" options: Map,
        "Scope" scope: String,
    }

    /// What a user wants of a volume.
    VolumeCreate {
        "Name" name: String,
        "Driver" driver: String,
        "DriverOpts" driver_opts: Map,
        "Labels" labels: Map,
        "ClusterVolumeSpec" cluster_volume_spec: Value,
    }

    /// The volumes of a host.
    VolumeList { "Volumes" volumes: Vec<Volume>, "Warnings" warnings: Vec<String> }

    /// What a prune has removed.
    VolumesPruned { "VolumesDeleted" deleted: Vec<String>, "SpaceReclaimed" reclaimed: u64 }

    /// A host of the cluster.
    Node {
        "ID" id: String,
        "Version" version: ObjectVersion,
        "CreatedAt" created_at: String,
        "UpdatedAt" updated_at: String,
        "Spec" spec: NodeSpec,
        "Description" description: NodeDescription,
        "Status" status: NodeStatus,
        "ManagerStatus" manager_status: ManagerStatus,
    }

    /// What a user wants of a host.
    NodeSpec { "Name" name: String, "Labels" labels: Map, "Role" role: String, "Availability" availability: String }

    /// What a host says of itself.
    NodeDescription {
        "Hostname" hostname: String,
        "Platform" platform: Platform,
        "Resources" resources: NodeResources,
        "Engine" engine: EngineDescription,
        "TLSInfo" tls_info: TlsInfo,
    }

    /// What a host's tasks may use.
    NodeResources { "NanoCPUs" nano_cpus: u64, "MemoryBytes" memory_bytes: u64 }

    /// The engine of a host.
    EngineDescription { "EngineVersion" version: String, "Labels" labels: Map, "Plugins" plugins: Vec<EnginePlugin> }

    /// What an engine can do.
    EnginePlugin { "Type" kind: String, "Name" name: String }

    /// What the cluster observed of a host.
    NodeStatus { "State" state: String, "Message" message: String, "Addr" addr: String }

    /// A host's part in Raft.
    ManagerStatus { "Leader" leader: bool, "Reachability" reachability: String, "Addr" addr: String }

    /// A task.
    Task {
        "ID" id: String,
        "Version" version: ObjectVersion,
        "CreatedAt" created_at: String,
        "UpdatedAt" updated_at: String,
        "Labels" labels: Map,
        "Spec" spec: TaskSpec,
        "ServiceID" service_id: String,
        "Slot" slot: u64,
        "NodeID" node_id: String,
        "Status" status: TaskStatus,
        "DesiredState" desired_state: String,
        "NetworksAttachments" networks_attachments: Vec<TaskAttachment>,
        "JobIteration" job_iteration: ObjectVersion,
    }

    /// What was observed of a task.
    TaskStatus {
        "Timestamp" timestamp: String,
        "State" state: String,
        "Message" message: String,
        "Err" err: String,
        "ContainerStatus" container_status: ContainerStatus,
        "PortStatus" port_status: PortStatus,
    }

    /// The container of a task.
    ContainerStatus { "ContainerID" container_id: String, "PID" pid: u32, "ExitCode" exit_code: i32 }

    /// Ports that a task holds on its host.
    PortStatus { "Ports" ports: Vec<PortConfig> }

    /// A task's place on a network.
    TaskAttachment { "Network" network: AttachedNetwork, "Addresses" addresses: Vec<String> }

    /// A network as tasks carry it.
    AttachedNetwork {
        "ID" id: String,
        "Version" version: ObjectVersion,
        "CreatedAt" created_at: String,
        "UpdatedAt" updated_at: String,
        "Spec" spec: AttachedNetworkSpec,
        "DriverState" driver_state: super::Driver,
        "IPAMOptions" ipam_options: AttachedIpam,
    }

    /// The spec of a network as tasks carry it.
    AttachedNetworkSpec {
        "Name" name: String,
        "Labels" labels: Map,
        "DriverConfiguration" driver_configuration: super::Driver,
        "Internal" internal: bool,
        "Attachable" attachable: bool,
        "Ingress" ingress: bool,
        "Scope" scope: String,
    }

    /// Addresses of a network as tasks carry it.
    AttachedIpam { "Driver" driver: super::Driver, "Configs" configs: Vec<IpamConfig> }

    /// `POST /networks/create`.
    NetworkCreate {
        "Name" name: String,
        "Driver" driver: String,
        "Scope" scope: String,
        "Internal" internal: bool,
        "Attachable" attachable: bool,
        "Ingress" ingress: bool,
        "EnableIPv4" enable_ipv4: bool,
        "EnableIPv6" enable_ipv6: bool,
        "ConfigOnly" config_only: bool,
        "ConfigFrom" config_from: ConfigFrom,
        "IPAM" ipam: Ipam,
        "Options" options: Map,
        "Labels" labels: Map,
    }

    /// A network whose configuration another one takes.
    ConfigFrom { "Network" network: String }

    /// Address management of a network.
    Ipam { "Driver" driver: String, "Options" options: Map, "Config" config: Vec<IpamConfig> }

    /// One subnet.
    IpamConfig {
        "Subnet" subnet: String,
        "IPRange" ip_range: String,
        "Gateway" gateway: String,
        "AuxiliaryAddresses" auxiliary: Map,
    }

    /// A network.
    Network {
        "Name" name: String,
        "Id" id: String,
        "Created" created: String,
        "Scope" scope: String,
        "Driver" driver: String,
        "EnableIPv4" enable_ipv4: bool,
        "EnableIPv6" enable_ipv6: bool,
        "IPAM" ipam: Ipam,
        "Internal" internal: bool,
        "Attachable" attachable: bool,
        "Ingress" ingress: bool,
        "ConfigFrom" config_from: ConfigFrom,
        "ConfigOnly" config_only: bool,
        "Containers" containers: Value,
        "Options" options: Map,
        "Labels" labels: Map,
        "Peers" peers: Vec<Peer>,
        "Services" services: Value,
        /// What the asked host has of it; not Docker's.
        "Host" host: Value,
    }

    /// A host that a network reaches.
    Peer { "Name" name: String, "IP" ip: String }

    /// Credentials that the cluster keeps for a registry, without what is secret of them.
    RegistryLogin {
        "Registry" registry: String,
        "Username" username: String,
        "Kind" kind: String,
        "CreatedAt" created_at: String,
        "UpdatedAt" updated_at: String,
    }

    /// A secret or a config to create or update; `Data` is base64.
    PayloadSpec {
        "Name" name: String,
        "Labels" labels: Map,
        "Data" data: String,
        "Driver" driver: Value,
        "Templating" templating: Value,
    }

    /// A secret or a config.
    Payload {
        "ID" id: String,
        "Version" version: ObjectVersion,
        "CreatedAt" created_at: String,
        "UpdatedAt" updated_at: String,
        "Spec" spec: PayloadSpec,
    }
}
