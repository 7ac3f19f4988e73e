//! The cluster itself: `/swarm` and its settings.

use serde_json::Value;

use super::{Driver, Map, ObjectVersion, wire};

wire! {
    /// Settings of the cluster.
    SwarmSpec {
        "Name" name: String,
        "Labels" labels: Map,
        "Orchestration" orchestration: Orchestration,
        "Raft" raft: RaftConfig,
        "Dispatcher" dispatcher: Dispatcher,
        "CAConfig" ca_config: CaConfig,
        "TaskDefaults" task_defaults: TaskDefaults,
        "EncryptionConfig" encryption_config: EncryptionConfig,
    }

    /// How tasks are kept.
    Orchestration { "TaskHistoryRetentionLimit" task_history_retention_limit: i64 }

    /// Docker's Raft settings.
    RaftConfig {
        "SnapshotInterval" snapshot_interval: u64,
        "KeepOldSnapshots" keep_old_snapshots: u64,
        "LogEntriesForSlowFollowers" log_entries_for_slow_followers: u64,
        "ElectionTick" election_tick: i64,
        "HeartbeatTick" heartbeat_tick: i64,
    }

    /// How agents report; nanoseconds.
    Dispatcher { "HeartbeatPeriod" heartbeat_period: i64 }

    /// The certificate authority.
    CaConfig {
        "NodeCertExpiry" node_cert_expiry: i64,
        "ExternalCAs" external_cas: Value,
        "SigningCACert" signing_ca_cert: String,
        "SigningCAKey" signing_ca_key: String,
        "ForceRotate" force_rotate: u64,
    }

    /// Defaults for tasks.
    TaskDefaults { "LogDriver" log_driver: Driver }

    /// Encryption at rest.
    EncryptionConfig { "AutoLockManagers" auto_lock_managers: bool }

    /// `POST /swarm/init`.
    SwarmInit {
        "ListenAddr" listen_addr: String,
        "AdvertiseAddr" advertise_addr: String,
        "DataPathAddr" data_path_addr: String,
        "DataPathPort" data_path_port: u32,
        "DefaultAddrPool" default_addr_pool: Vec<String>,
        "SubnetSize" subnet_size: u32,
        "ForceNewCluster" force_new_cluster: bool,
        "AutoLockManagers" auto_lock_managers: bool,
        "Availability" availability: String,
        "Spec" spec: SwarmSpec,
    }

    /// `POST /swarm/join`.
    SwarmJoin {
        "ListenAddr" listen_addr: String,
        "AdvertiseAddr" advertise_addr: String,
        "DataPathAddr" data_path_addr: String,
        "RemoteAddrs" remote_addrs: Vec<String>,
        "JoinToken" join_token: String,
        "Availability" availability: String,
    }

    /// `POST /shoal/v1/recover`.
    Recover {
        "ListenAddr" listen_addr: String,
        "AdvertiseAddr" advertise_addr: String,
        "DataPathAddr" data_path_addr: String,
        "Force" force: bool,
    }

    /// The cluster.
    Swarm {
        "ID" id: String,
        "Version" version: ObjectVersion,
        "CreatedAt" created_at: String,
        "UpdatedAt" updated_at: String,
        "Spec" spec: SwarmSpec,
        "TLSInfo" tls_info: TlsInfo,
        "RootRotationInProgress" root_rotation_in_progress: bool,
        "DefaultAddrPool" default_addr_pool: Vec<String>,
        "SubnetSize" subnet_size: u32,
        "DataPathPort" data_path_port: u32,
        "JoinTokens" join_tokens: JoinTokens,
    }

    /// The root of trust; the two `CertIssuer` fields are base64 of DER.
    TlsInfo {
        "TrustRoot" trust_root: String,
        "CertIssuerSubject" cert_issuer_subject: String,
        "CertIssuerPublicKey" cert_issuer_public_key: String,
    }

    /// What lets a host in.
    JoinTokens { "Worker" worker: String, "Manager" manager: String }

    /// `POST /swarm/unlock`, and the answer of `GET /swarm/unlockkey`.
    UnlockKey { "UnlockKey" unlock_key: String }
}
