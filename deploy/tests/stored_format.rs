//! The stored form must not change under a data directory: a snapshot that an earlier build wrote is read, and written
//! again byte for byte. A field that lost its tag, or changed its type, shows here.
//!
//! `UPDATE_EXPECT=1` writes the fixture anew; that is right only before a release has written it.

use deploy::allocator;
use deploy::control::{
    CreateConfig, CreateNetwork, CreateSecret, CreateService, InitCluster, Op, Request, SetRegistry, execute,
};
use deploy::cx::{Cx, Limits};
use deploy::model::*;
use deploy::store::{Entry, Store, Txn};

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stored_format/snapshot-1.bin");

/// A service spec with something in every field that prost would otherwise leave out.
fn full_spec() -> ServiceSpec {
    let mut spec = ServiceSpec { name: "web".into(), ..ServiceSpec::default() };
    spec.labels.insert("tier".into(), "front".into());
    spec.mode = Some(ServiceMode::Replicated(Replicated { replicas: Some(3) }));
    let update = UpdateConfig {
        parallelism: Some(2),
        delay_ns: Some(1),
        failure_action: FailureAction::Continue as i32,
        monitor_ns: Some(2),
        max_failure_ppm: 3,
        order: UpdateOrder::StartFirst as i32,
    };
    spec.update = Some(update.clone());
    spec.rollback = Some(update);
    let port = PortConfig {
        name: "http".into(),
        protocol: PortProtocol::Udp as i32,
        target: 80,
        published: 8080,
        mode: PublishMode::Ingress as i32,
    };
    spec.endpoint = Some(EndpointSpec { mode: EndpointMode::Vip as i32, ports: vec![port] });
    spec.task = TaskSpec {
        container: ContainerSpec {
            image: "nginx:1".into(),
            labels: [("a".to_owned(), "b".to_owned())].into(),
            command: vec!["/bin/sh".into()],
            args: vec!["-c".into(), "true".into()],
            hostname: "web".into(),
            env: vec!["A=b".into()],
            dir: "/srv".into(),
            user: "1:1".into(),
            groups: vec!["2".into()],
            privileges: Some(Privileges { no_new_privileges: true, ..Privileges::default() }),
            read_only: true,
            init: Some(false),
            mounts: vec![
                Mount {
                    source: "/srv".into(),
                    target: "/data".into(),
                    read_only: true,
                    propagation: "rslave".into(),
                    ..Mount::default()
                },
                Mount {
                    kind: MountKind::Tmpfs as i32,
                    target: "/tmp".into(),
                    tmpfs_size: 4096,
                    tmpfs_mode: 0o1777,
                    ..Mount::default()
                },
            ],
            stop_signal: "SIGINT".into(),
            stop_grace_ns: Some(5),
            hosts: vec!["192.0.2.1 db".into()],
            dns: Some(DnsConfig {
                nameservers: vec!["192.0.2.53".into()],
                search: vec!["example.org".into()],
                options: vec!["ndots:1".into()],
            }),
            isolation: "default".into(),
            sysctls: [("net.core.somaxconn".to_owned(), "512".to_owned())].into(),
            cap_add: vec!["CAP_NET_ADMIN".into()],
            cap_drop: vec!["CAP_CHOWN".into()],
            ulimits: vec![Ulimit { name: "nofile".into(), soft: 10, hard: 20 }],
            oom_score_adj: -5,
            registry_auth: Some(RegistryAuth { header: "e30=".into() }),
            ..ContainerSpec::default()
        },
        resources: ResourceRequirements {
            limits: Resources { nano_cpus: 1_000_000_000, memory_bytes: 64 << 20, pids: 100 },
            reservations: Resources { nano_cpus: 1_000_000, memory_bytes: 8 << 20, pids: 0 },
        },
        restart: Some(RestartPolicy {
            condition: Some(RestartCondition::OnFailure as i32),
            delay_ns: Some(0),
            max_attempts: Some(3),
            window_ns: Some(4),
        }),
        placement: Placement {
            constraints: vec!["node.role==worker".into()],
            spread_over: vec!["node.labels.zone".into()],
            max_replicas: 2,
            platforms: vec![Platform { architecture: "amd64".into(), os: "linux".into() }],
        },
        networks: vec![NetworkAttachmentConfig {
            target: "back".into(),
            aliases: vec!["www".into()],
            ..NetworkAttachmentConfig::default()
        }],
        log_driver: Some(LogDriver {
            name: "json-file".into(),
            options: [("max-file".to_owned(), "3".to_owned())].into(),
        }),
        force_update: 1,
    };
    spec
}

/// A task with something in every field.
fn full_task(service: &Service) -> Task {
    let mut task = Task {
        id: TaskId::from(5),
        spec: service.spec.task.clone(),
        spec_version: 1,
        service_id: service.id.clone(),
        chosen_ports: vec![30_001],
        service_name: "web".into(),
        slot: 1,
        node_id: NodeId::from(2),
        ports: service.spec.endpoint_spec().ports,
        not_before: Timestamp::from_millis(1),
        restarts: vec![Timestamp::from_millis(2)],
        draining_since: Timestamp::from_millis(3),
        job_iteration: 4,
        ordinal: 5,
        ..Task::default()
    };
    task.set_desired(DesiredState::Running);
    task.status = TaskStatus {
        state: TaskState::Running as i32,
        at: Timestamp::from_millis(6),
        message: "started".into(),
        err: "none".into(),
        container: Some(ContainerStatus {
            id: "ab".repeat(32),
            pid: 77,
            exit_code: Some(0),
            oom_killed: true,
            local_restarts: 2,
        }),
        unhealthy: true,
    };
    task
}

fn full_store() -> Store {
    let mut next = 100_u128;
    let mut ids = || {
        next += 1;
        next
    };
    let now = Timestamp::from_millis(1_700_000_000_000);
    let mut cx = Cx { now, ids: &mut ids, limits: Limits::default() };
    let mut txn = Txn::new(&Store::default(), now);
    let mut cluster = Cluster { id: ClusterId::from(1), ..Cluster::default() };
    cluster.spec.labels.insert("a".into(), "b".into());
    cluster.spec.task_history_limit = Some(4);
    cluster.spec.node_cert_expiry_ns = Some(3_600_000_000_000);
    cluster.spec.heartbeat_period_ns = Some(5_000_000_000);
    cluster.status.root_ca = RootCa { cert_pem: "cert".into(), key_pem: "key".into() };
    cluster.status.worker_token = "worker".into();
    cluster.status.manager_token = "manager".into();
    cluster.status.gossip_keys = vec![GossipKey { id: 1, bytes: vec![9; 32] }];
    cluster.status.incarnation = 11;
    cluster.status.feature_level = 4;
    cluster.status.sealing_epoch = 1;
    cluster.status.sealing_epoch_at = Timestamp::from_millis(8);
    let mut node = Node { id: NodeId::from(2), ..Node::default() };
    node.spec.set_role(NodeRole::Manager);
    node.spec.labels.insert("zone".into(), "a".into());
    node.manager = Some(ManagerStatus { raft_id: 1, addr: "192.0.2.1:2377".into() });
    node.status.addr = "192.0.2.1".into();
    node.status.generation = 3;
    node.description = NodeDescription {
        hostname: "alpha".into(),
        architecture: "x86_64".into(),
        os: "linux".into(),
        resources: NodeResources { nano_cpus: 2_000_000_000, memory_bytes: 1 << 30 },
        engine_version: "0.1.0".into(),
        engine_labels: [("disk".to_owned(), "ssd".to_owned())].into(),
        data_path_addr: "192.0.2.1".into(),
        control_addr: "192.0.2.1:2377".into(),
        engine_id: "engine".into(),
        feature_level: 4,
        own_ports: vec![OwnPort { protocol: PortProtocol::Udp as i32, port: 2377, purpose: "control port".into() }],
        own_subnets: vec!["192.0.2.0/24".into()],
        own_subnets6: vec!["2001:db8::/64".into()],
        routes6: vec!["2001:db8:1::/48".into()],
        routes: vec!["198.51.100.0/24".into()],
        way_out: "172.30.0.0/16".into(),
    };
    node.sealing =
        Some(NodeSealing { obstacle: "why not".into(), keys: vec![SealingKey { epoch: 1, key: vec![7; 32] }] });
    let payload =
        PayloadSpec { name: "pay".into(), labels: [("a".to_owned(), "b".to_owned())].into(), data: b"bytes".to_vec() };
    let ipam = IpamConfig {
        subnet: "10.9.0.0/24".into(),
        ip_range: "10.9.0.0/25".into(),
        gateway: "10.9.0.1".into(),
        auxiliary: [("printer".to_owned(), "10.9.0.9".to_owned())].into(),
    };
    let network =
        NetworkSpec { name: "back".into(), internal: true, ipv6: true, ipam: vec![ipam], ..NetworkSpec::default() };
    for op in [
        Op::InitCluster(Box::new(InitCluster { cluster, node })),
        Op::CreateNetwork(Box::new(CreateNetwork { spec: network })),
        Op::CreateSecret(CreateSecret { spec: payload.clone() }),
        Op::CreateConfig(CreateConfig { spec: payload }),
        Op::SetRegistry(SetRegistry {
            id: RegistryId::new("r.example:5000"),
            auth: RegistryAuth { header: "e30=".into() },
        }),
        Op::CreateService(Box::new(CreateService { spec: full_spec() })),
    ] {
        execute(&mut cx, &mut txn, &Request::from(op)).expect("carried out");
    }
    let mut service = (**txn.service_by_name("web").expect("the service")).clone();
    service.previous_spec = Some(ServiceSpec { name: "web".into(), ..ServiceSpec::default() });
    service.previous_spec_version = 2;
    service.update_status = Some(UpdateStatus {
        state: UpdateState::Paused as i32,
        started_at: now,
        completed_at: now,
        message: "paused".into(),
        not_before: now,
        failed_slots: vec![1],
        watched: vec![WatchedTask { task: TaskId::from(5), running_since: now }],
        total_slots: 3,
    });
    txn.put_task(full_task(&service));
    txn.put_service(service);
    allocator::reconcile(&mut cx, &mut txn);
    let entry = Entry::from_bytes(&txn.finish(1).expect("a change").to_bytes()).expect("an entry");
    let mut store = Store::default();
    store.apply(1, &entry).expect("no conflict");
    store
}

#[test]
fn a_snapshot_of_the_first_format_is_read() {
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stored_format")).expect("a directory");
        std::fs::write(FIXTURE, full_store().encode_snapshot()).expect("written");
    }
    let bytes = std::fs::read(FIXTURE).expect("the fixture");
    let store = Store::decode_snapshot(&bytes).expect("a snapshot");
    assert_eq!(store.invariants(), Vec::<String>::new());
    assert_eq!(store.encode_snapshot(), bytes, "a stored field is not known any more");
    let service = store.service_by_name("web").expect("the service");
    assert_eq!(service.spec.task.container, full_spec().task.container, "a stored field has another meaning");
    let task = store.tasks_of_service(&service.id).next().expect("the task");
    assert_eq!(task.status, full_task(service).status, "a stored field has another meaning");
    assert_eq!(task.attachments.len(), 2);
}
