//! Cluster, nodes, services, tasks, networks, secrets, configs, logs: over raw HTTP.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use deploy::store::Store;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::fake::Served;
use crate::http::{delete, filters, get, open, post, send};

/// A spec with every field that has an effect, as Docker's command line sends it.
fn full_spec() -> Value {
    json!({
        "Name": "tweb",
        "Labels": {"l": "1"},
        "TaskTemplate": {
            "ContainerSpec": {
                "Image": format!("web:1@sha256:{}", "a".repeat(64)),
                "Labels": {"cl": "1"},
                "Command": ["sh"],
                "Args": ["-c", "date"],
                "Hostname": "h",
                "Env": ["A=b", "C=d"],
                "Dir": "/tmp",
                "User": "root",
                "Mounts": [
                    {"Type": "bind", "Source": "/srv", "Target": "/srv", "ReadOnly": true,
                     "BindOptions": {"Propagation": "rslave"}},
                    {"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 65536, "Mode": 448}}
                ],
                "StopSignal": "SIGINT",
                "StopGracePeriod": 1_000_000_000i64,
                "Hosts": ["1.2.3.4 foo"],
                "DNSConfig": {"Nameservers": ["9.9.9.9"], "Search": ["example.org"], "Options": ["ndots:2"]},
                "CapabilityAdd": ["CAP_NET_ADMIN"],
                "CapabilityDrop": ["CAP_CHOWN"],
                "Sysctls": {"net.core.somaxconn": "100"},
                "Ulimits": [{"Name": "nofile", "Hard": 200, "Soft": 100}],
                "OomScoreAdj": 5,
                "ReadOnly": true,
                "Isolation": "default"
            },
            "Resources": {
                "Limits": {"NanoCPUs": 500_000_000, "MemoryBytes": 67_108_864, "Pids": 10},
                "Reservations": {"NanoCPUs": 10_000_000, "MemoryBytes": 8_388_608}
            },
            "RestartPolicy": {"Condition": "on-failure", "Delay": 1_000_000_000i64, "MaxAttempts": 3, "Window": 5},
            "Placement": {
                "Constraints": ["node.platform.os==linux"],
                "Preferences": [{"Spread": {"SpreadDescriptor": "node.labels.zone"}}],
                "MaxReplicas": 4,
                "Platforms": [{"Architecture": "x86_64", "OS": "linux"}]
            },
            "LogDriver": {"Name": "json-file", "Options": {"max-size": "1m"}},
            "ForceUpdate": 0,
            "Runtime": "container"
        },
        "Mode": {"Replicated": {"Replicas": 2}},
        "UpdateConfig": {"Parallelism": 1, "Delay": 1_000_000_000i64, "FailureAction": "rollback",
                         "Monitor": 5_000_000_000i64, "MaxFailureRatio": 0.25, "Order": "start-first"},
        "RollbackConfig": {"Parallelism": 0, "Delay": 1, "FailureAction": "pause", "Monitor": 7, "MaxFailureRatio": 0.0,
                           "Order": "stop-first"},
        "EndpointSpec": {"Mode": "vip", "Ports": [
            {"Name": "http", "Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8088, "PublishMode": "ingress"},
            {"Protocol": "udp", "TargetPort": 81, "PublishedPort": 8181, "PublishMode": "host"}
        ]}
    })
}

fn small_spec(name: &str) -> Value {
    json!({"Name": name, "TaskTemplate": {"ContainerSpec": {"Image": "web:1"}}, "Mode": {"Replicated": {"Replicas": 3}}})
}

#[tokio::test]
async fn a_service_spec_comes_back_as_it_was_sent() {
    let served = Served::cluster().await;
    let created = post(&served.socket, "/v1.50/services/create", full_spec()).await;
    assert_eq!(created.status, 201, "{}", created.text());
    let id = created.json()["ID"].as_str().unwrap().to_owned();
    let service = get(&served.socket, &format!("/v1.50/services/{id}")).await.json();
    assert_eq!(service["Spec"], full_spec());
    assert_eq!(service["Endpoint"]["Ports"][0]["PublishedPort"], 8088);
    assert_eq!(service["Endpoint"]["VirtualIPs"].as_array().unwrap().len(), 1);
    assert!(service["CreatedAt"].as_str().unwrap().ends_with('Z'));
    // What was read can be sent back, and changes nothing.
    let version = service["Version"]["Index"].as_u64().unwrap();
    let path = format!("/v1.50/services/{id}/update?version={version}");
    let updated = post(&served.socket, &path, service["Spec"].clone()).await;
    assert_eq!((updated.status, updated.json()), (200, json!({"Warnings": null})));
    let again = get(&served.socket, &format!("/v1.50/services/{id}")).await.json();
    assert_eq!(again["Spec"], full_spec());
}

#[tokio::test]
async fn defaults_are_filled_in_when_asked_for() {
    let served = Served::cluster().await;
    post(&served.socket, "/services/create", small_spec("web")).await;
    let plain = get(&served.socket, "/services/web?insertDefaults=false").await.json();
    assert!(plain["Spec"].get("UpdateConfig").is_none());
    let filled = get(&served.socket, "/services/web?insertDefaults=true").await.json()["Spec"].clone();
    assert_eq!(filled["TaskTemplate"]["ContainerSpec"]["StopGracePeriod"], 10_000_000_000u64);
    let restart = json!({"Condition": "any", "Delay": 5_000_000_000u64, "MaxAttempts": 0});
    assert_eq!(filled["TaskTemplate"]["RestartPolicy"], restart);
    assert_eq!(filled["UpdateConfig"]["Parallelism"], 1);
    assert_eq!(filled["UpdateConfig"]["FailureAction"], "pause");
    assert_eq!(filled["RollbackConfig"]["Order"], "stop-first");
    assert_eq!(filled["EndpointSpec"]["Mode"], "vip");
}

#[tokio::test]
async fn fields_without_effect_are_refused_by_name() {
    let served = Served::cluster().await;
    let refused = [
        (
            "/TaskTemplate/Resources",
            json!({"Reservations": {"GenericResources": [{"DiscreteResourceSpec":
            {"Kind": "gpu", "Value": 1}}]}}),
            "GenericResources",
        ),
        ("/TaskTemplate/ContainerSpec/Privileges", json!({"CredentialSpec": {"Config": "x"}}), "CredentialSpec"),
        ("/TaskTemplate/Runtime", json!("plugin"), "Runtime"),
        ("/TaskTemplate/PluginSpec", json!({"Name": "x"}), "PluginSpec"),
        ("/TaskTemplate/NetworkAttachmentSpec", json!({"ContainerID": "x"}), "NetworkAttachmentSpec"),
        (
            "/TaskTemplate/ContainerSpec/Mounts",
            json!([{"Type": "tmpfs", "Target": "/t",
            "TmpfsOptions": {"Options": [["exec"]]}}]),
            "TmpfsOptions.Options",
        ),
        (
            "/TaskTemplate/ContainerSpec/Mounts",
            json!([{"Type": "volume", "Source": "v1", "Target": "/v", "VolumeOptions":
                    {"DriverConfig": {"Name": "rexray"}}}]),
            "rexray",
        ),
        ("/TaskTemplate/ContainerSpec/Mounts", json!([{"Type": "image", "Source": "v", "Target": "/v"}]), "image"),
    ];
    for (at, value, named) in refused {
        let mut spec = small_spec("web");
        set(&mut spec, at, value);
        let answer = post(&served.socket, "/services/create", spec).await;
        assert!(matches!(answer.status, 400 | 501), "{at}: {}", answer.text());
        assert!(answer.message().contains(named), "{at}: {}", answer.message());
    }
    assert_eq!(get(&served.socket, "/services").await.json(), json!([]));
    // The same fields with nothing in them are what stack deploy sends.
    let mut spec = small_spec("web");
    set(&mut spec, "/TaskTemplate/ContainerSpec/Privileges", json!({"CredentialSpec": null, "SELinuxContext": null}));
    set(&mut spec, "/TaskTemplate/ContainerSpec/Healthcheck", Value::Null);
    set(&mut spec, "/NoSuchKey", json!({"x": 1}));
    assert_eq!(post(&served.socket, "/services/create", spec).await.status, 201);
}

/// Puts a value at a path of keys, making objects on the way.
fn set(spec: &mut Value, path: &str, value: Value) {
    let mut at = spec;
    for key in path.split('/').skip(1) {
        at = &mut at[key];
    }
    *at = value;
}

#[tokio::test]
async fn services_are_listed_scaled_updated_rolled_back_and_removed() {
    let served = Served::cluster().await;
    let s = &served.socket;
    assert_eq!(post(s, "/services/create", small_spec("web")).await.status, 201);
    assert_eq!(post(s, "/services/create", small_spec("web2")).await.status, 201);
    let list = get(s, &format!("/services?status=true&{}", filters(json!({"name": {"web": true}})))).await.json();
    assert_eq!(list.as_array().unwrap().len(), 2);
    assert_eq!(list[0]["ServiceStatus"], json!({"RunningTasks": 3, "DesiredTasks": 3, "CompletedTasks": 0}));
    let only = get(s, &format!("/services?{}", filters(json!({"name": ["web2"], "mode": ["replicated"]})))).await;
    assert_eq!(only.json().as_array().unwrap().len(), 1);
    assert_eq!(get(s, &format!("/services?{}", filters(json!({"mode": ["global"]})))).await.json(), json!([]));

    // Scale, as the command line does it.
    let mut service = get(s, "/services/web?insertDefaults=false").await.json();
    let version = service["Version"]["Index"].as_u64().unwrap();
    service["Spec"]["Mode"]["Replicated"]["Replicas"] = 5.into();
    let path = format!("/services/web/update?version={version}");
    assert_eq!(post(s, &path, service["Spec"].clone()).await.status, 200);
    let stale = post(s, &path, service["Spec"].clone()).await;
    assert_eq!(stale.status, 500);
    assert!(stale.message().contains("update out of sequence"), "{}", stale.message());
    let of_web =
        filters(json!({"service": {"web": true}, "desired-state": {"running": true}, "_up-to-date": {"true": true}}));
    let tasks = get(s, &format!("/tasks?{of_web}")).await.json();
    assert_eq!(tasks.as_array().unwrap().len(), 5);
    assert!(tasks.as_array().unwrap().iter().all(|t| t["Status"]["State"] == "running"));
    assert_eq!(tasks[0]["Status"]["ContainerStatus"]["PID"], 4711);

    // Rollback.
    let version = get(s, "/services/web").await.json()["Version"]["Index"].as_u64().unwrap();
    let path = format!("/services/web/update?version={version}&rollback=previous");
    assert_eq!(post(s, &path, json!({})).await.status, 200);
    assert_eq!(get(s, "/services/web").await.json()["Spec"]["Mode"]["Replicated"]["Replicas"], 3);
    let none = get(s, "/services/web2").await.json()["Version"]["Index"].as_u64().unwrap();
    let none = post(s, &format!("/services/web2/update?version={none}&rollback=previous"), json!({})).await;
    assert_eq!(none.status, 400);
    assert!(none.message().contains("does not have a previous spec"), "{}", none.message());

    assert_eq!(delete(s, "/services/web").await.status, 200);
    let gone = get(s, "/services/web").await;
    // `web` begins no id and is no name any more; `web2` is another service.
    assert_eq!((gone.status, gone.message()), (404, "service web not found".to_owned()));
    assert_eq!(get(s, &format!("/tasks?{}", filters(json!({"service": ["web"]})))).await.status, 404);
}

#[tokio::test]
async fn bad_services_are_refused_in_dockers_words() {
    let served = Served::cluster().await;
    let s = &served.socket;
    assert_eq!(post(s, "/services/create", small_spec("web")).await.status, 201);
    let check = async |spec: Value, status: u16, text: &str| {
        let answer = post(s, "/services/create", spec.clone()).await;
        assert_eq!(answer.status, status, "{spec}: {}", answer.text());
        assert!(answer.message().contains(text), "{spec}: {}", answer.message());
    };
    check(small_spec("web"), 409, "name conflicts with an existing object").await;
    check(small_spec("-"), 400, "name must be valid as a DNS name component").await;
    check(json!({"Name": "x"}), 400, "ContainerSpec: image reference must be provided").await;
    check(json!({"Name": "x", "Mode": {"Replicated": {"Replicas": -1}}}), 400, "invalid JSON").await;
    let with = |at: &str, value: Value| {
        let mut spec = small_spec("x");
        set(&mut spec, at, value);
        spec
    };
    check(with("/TaskTemplate/ContainerSpec/Image", json!("nope:3")), 404, "No such image: nope:3").await;
    check(with("/TaskTemplate/ContainerSpec/Image", json!("NOPE")), 400, "invalid reference format").await;
    check(with("/TaskTemplate/Networks", json!([{"Target": "nonet"}])), 404, "network nonet not found").await;
    check(with("/TaskTemplate/Resources", json!({"Limits": {"MemoryBytes": 1000}})), 400, "Must be at least 4MiB")
        .await;
    check(with("/TaskTemplate/Resources", json!({"Limits": {"NanoCPUs": -1}})), 400, "NanoCPUs cannot be negative")
        .await;
    check(with("/TaskTemplate/RestartPolicy", json!({"Condition": "x"})), 400, "invalid RestartCondition: \"x\"").await;
    check(with("/UpdateConfig", json!({"FailureAction": "x"})), 400, "unrecognized update failure action").await;
    check(with("/UpdateConfig", json!({"MaxFailureRatio": 1.5})), 400, "MaxFailureRatio").await;
    check(with("/EndpointSpec", json!({"Mode": "x"})), 400, "EndpointSpec.Mode").await;
    check(with("/Mode", json!({"Replicated": {}, "Global": {}})), 400, "only one service mode").await;
    check(with("/TaskTemplate/ContainerSpec/Mounts", json!([{"Type": "x"}])), 400, "invalid MountType").await;
    let ports = json!({"Ports": [{"TargetPort": 80, "PublishedPort": 9000}]});
    assert_eq!(post(s, "/services/create", with("/EndpointSpec", ports.clone())).await.status, 201);
    let mut taken = small_spec("y");
    taken["EndpointSpec"] = ports;
    check(taken, 400, "port '9000' is already in use by service").await;
    for (path, status, text) in [
        ("/services/web/update", 400, "invalid service version ''"),
        ("/services/web/update?version=x", 400, "invalid service version 'x'"),
        ("/services/nope/update?version=1", 404, "service nope not found"),
        ("/services/web/update?version=1&rollback=x", 400, "unrecognized rollback option"),
    ] {
        let answer = post(s, path, small_spec("web")).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.text());
        assert!(answer.message().contains(text), "{path}: {}", answer.message());
    }
}

#[tokio::test]
async fn a_task_that_fits_nowhere_says_why() {
    let served = Served::cluster().await;
    let s = &served.socket;
    let mut spec = small_spec("web");
    spec["TaskTemplate"]["Placement"] = json!({"Constraints": ["node.labels.zone==mars"]});
    assert_eq!(post(s, "/services/create", spec).await.status, 201);
    let tasks = get(s, "/tasks").await.json();
    assert_eq!(tasks[0]["Status"]["State"], "pending");
    let err = tasks[0]["Status"]["Err"].as_str().unwrap();
    assert!(err.contains("scheduling constraints not satisfied on 3 nodes"), "{err}");
    assert!(tasks[0].get("NodeID").is_none());
    let why = get(s, "/shoal/v1/services/web/why").await;
    assert_eq!(why.status, 200, "{}", why.text());
    let why = why.json();
    assert_eq!(why["Hosts"].as_array().unwrap().len(), 3);
    assert_eq!(why["Hosts"][0]["Fits"], false);
    assert_eq!(why["Tasks"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn what_a_node_holds_is_told_without_secrets() {
    let served = Served::cluster().await;
    let s = &served.socket;
    post(s, "/services/create", small_spec("web")).await;
    post(s, "/secrets/create", json!({"Name": "s", "Data": "aHVzaCBodXNo"})).await;
    let answer = get(s, "/shoal/v1/store?objects=1").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let objects = STANDARD.decode(answer.json()["Objects"].as_str().unwrap()).unwrap();
    let store = Store::decode_snapshot(&objects).unwrap();
    assert_eq!(answer.json()["Revision"], store.revision());
    assert_eq!((store.services().count(), store.secrets().count()), (1, 1));
    let status = &store.cluster().unwrap().status;
    assert!(status.root_ca.key_pem.is_empty() && status.worker_token.is_empty() && status.gossip_keys.is_empty());
    assert!(!objects.windows(9).any(|bytes| bytes == b"hush hush"));
    // The digest is the whole store's, and a secret's bytes are part of that.
    let digest = answer.json()["Digest"].clone();
    assert_eq!(get(s, "/shoal/v1/store?consistency=local").await.json()["Digest"], digest);
    post(s, "/secrets/create", json!({"Name": "t", "Data": "aHVzaCBodXNo"})).await;
    let other = get(s, "/shoal/v1/store").await.json();
    assert!(other["Digest"] != digest && other.get("Objects").is_none(), "{other}");
    assert_eq!(get(s, "/shoal/v1/store?consistency=none").await.status, 400);

    let agent = get(s, "/shoal/v1/agent").await;
    assert_eq!(agent.status, 200, "{}", agent.text());
    assert_eq!(agent.json()["Revision"], other["Revision"]);
    assert_eq!(agent.json()["Digest"].as_str().unwrap().len(), 64);
    let alone = Served::inactive().await;
    assert_eq!(get(&alone.socket, "/shoal/v1/store").await.status, 503);
    assert_eq!(get(&alone.socket, "/shoal/v1/agent").await.status, 503);
}

#[tokio::test]
async fn nodes() {
    let served = Served::cluster().await;
    let s = &served.socket;
    let list = get(s, "/nodes").await.json();
    assert_eq!(list.as_array().unwrap().len(), 3);
    let a = get(s, "/nodes/node-a").await.json();
    assert_eq!(a["ManagerStatus"], json!({"Leader": true, "Reachability": "reachable", "Addr": "10.9.0.1:2377"}));
    assert_eq!(a["Status"], json!({"State": "ready", "Addr": "10.9.0.1"}));
    assert_eq!(a["Description"]["Resources"]["NanoCPUs"], 4_000_000_000u64);
    assert!(a["Description"]["TLSInfo"]["CertIssuerPublicKey"].as_str().unwrap().len() > 50);
    assert!(get(s, "/nodes/node-b").await.json().get("ManagerStatus").is_none());
    assert_eq!(get(s, "/nodes/self").await.message(), "node self not found");
    let managers = get(s, &format!("/nodes?{}", filters(json!({"role": ["manager"]})))).await.json();
    assert_eq!(managers.as_array().unwrap().len(), 1);

    let b = get(s, "/nodes/node-b").await.json();
    let path = format!("/nodes/node-b/update?version={}", b["Version"]["Index"]);
    let spec = json!({"Labels": {"zone": "a"}, "Role": "worker", "Availability": "drain"});
    assert_eq!(post(s, &path, spec.clone()).await.status, 200);
    assert_eq!(get(s, "/nodes/node-b").await.json()["Spec"], spec);
    assert_eq!(post(s, &path, json!({"Role": "king"})).await.status, 400);
    let live = delete(s, "/nodes/node-b").await;
    assert_eq!(live.status, 400);
    assert!(live.message().contains("is not down and can't be removed"), "{}", live.message());
    assert_eq!(delete(s, "/nodes/node-b?force=1").await.status, 200);
    assert_eq!(get(s, "/nodes/node-b").await.status, 404);
}

#[tokio::test]
async fn the_cluster_itself() {
    let served = Served::inactive().await;
    let s = &served.socket;
    assert_eq!(get(s, "/_ping").await.headers["swarm"], "inactive");
    for path in ["/swarm", "/nodes", "/services", "/tasks", "/secrets", "/configs"] {
        let answer = get(s, path).await;
        assert_eq!(answer.status, 503, "{path}");
        assert!(answer.message().starts_with("This node is not a swarm manager."), "{path}");
    }
    let own = get(s, "/networks").await.json();
    let own: Vec<&str> = own.as_array().unwrap().iter().map(|n| n["Name"].as_str().unwrap()).collect();
    assert_eq!(own, ["bridge", "host", "none"]);
    assert_eq!(get(s, "/networks/ingress").await.message(), "network ingress not found");

    let init = json!({"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": "", "DataPathAddr": "", "DataPathPort": 0,
        "ForceNewCluster": false, "AutoLockManagers": false, "Availability": "", "DefaultAddrPool": [], "SubnetSize": 24,
        "Spec": {"Labels": null, "Orchestration": {}, "Raft": {"ElectionTick": 0, "HeartbeatTick": 0}, "Dispatcher": {},
                 "CAConfig": {}, "TaskDefaults": {}, "EncryptionConfig": {"AutoLockManagers": false}}});
    for (at, value) in
        [("/Spec/Raft", json!({"SnapshotInterval": 7})), ("/Spec/CAConfig", json!({"ExternalCAs": [{}, {"URL": "x"}]}))]
    {
        let mut bad = init.clone();
        set(&mut bad, at, value);
        assert_eq!(post(s, "/swarm/init", bad).await.status, 501, "{at}");
    }
    let node = post(s, "/v1.50/swarm/init", init.clone()).await;
    assert_eq!(node.status, 200, "{}", node.text());
    assert_eq!(node.json().as_str().unwrap().len(), 25);
    assert_eq!(post(s, "/swarm/init", init.clone()).await.status, 503);
    // Forced, the node that is in a cluster begins it anew, and stays who it is.
    let mut forced = init;
    set(&mut forced, "/ForceNewCluster", json!(true));
    assert_eq!(post(s, "/swarm/init", forced).await.json(), node.json());

    let swarm = get(s, "/swarm").await.json();
    assert!(swarm["JoinTokens"]["Worker"].as_str().unwrap().starts_with("SWMTKN-1-"));
    assert_ne!(swarm["JoinTokens"]["Worker"], swarm["JoinTokens"]["Manager"]);
    let info = get(s, "/info").await.json();
    assert_eq!(info["SecurityOptions"], json!(["name=seccomp,profile=builtin", "name=cgroupns", "name=userns"]));
    assert_eq!(info["Timing"], "wan");
    assert_eq!(info["Swarm"]["LocalNodeState"], "active");
    assert_eq!(info["Swarm"]["ControlAvailable"], true);
    assert_eq!(info["Swarm"]["NodeID"], node.json());
    assert_eq!((info["Swarm"]["Nodes"].as_u64(), info["Swarm"]["Managers"].as_u64()), (Some(1), Some(1)));
    assert!(info["Swarm"]["Cluster"].get("JoinTokens").is_none());
    assert_eq!(get(s, "/_ping").await.headers["swarm"], "active/manager");

    // Rotation sends the whole spec back.
    let path = format!("/swarm/update?version={}&rotateWorkerToken=true", swarm["Version"]["Index"]);
    let mut spec = swarm["Spec"].clone();
    spec["Orchestration"]["TaskHistoryRetentionLimit"] = 2.into();
    assert_eq!(post(s, &path, spec.clone()).await.status, 200);
    let rotated = get(s, "/swarm").await.json();
    assert_ne!(rotated["JoinTokens"]["Worker"], swarm["JoinTokens"]["Worker"]);
    assert_eq!(rotated["JoinTokens"]["Manager"], swarm["JoinTokens"]["Manager"]);
    assert_eq!(rotated["Spec"]["Orchestration"]["TaskHistoryRetentionLimit"], 2);
    assert!(post(s, &path, spec).await.message().contains("update out of sequence"));

    assert_eq!(get(s, "/swarm/unlockkey").await.json(), json!({"UnlockKey": ""}));
    let unlock = post(s, "/swarm/unlock", json!({"UnlockKey": "x"})).await;
    assert_eq!((unlock.status, unlock.message()), (409, "swarm is not locked".to_owned()));
    let join = json!({"ListenAddr": "0.0.0.0:2377", "RemoteAddrs": ["1.2.3.4:2377"], "JoinToken": "SWMTKN-1-x-y"});
    assert_eq!(post(s, "/swarm/join", join).await.status, 400);
    assert_eq!(send(s, "POST", "/swarm/leave", None, Vec::new()).await.status, 503);
    assert_eq!(send(s, "POST", "/swarm/leave?force=1", None, Vec::new()).await.status, 200);
    assert_eq!(get(s, "/info").await.json()["Swarm"]["LocalNodeState"], "inactive");
}

#[tokio::test]
async fn without_a_leader_only_local_reads_work() {
    let served = Served::cluster().await;
    served.engine.set_leaderless();
    let answer = get(&served.socket, "/services").await;
    assert_eq!(answer.status, 500);
    assert!(answer.message().starts_with("The swarm does not have a leader."));
    assert_eq!(get(&served.socket, "/services?consistency=local").await.status, 200);
    assert_eq!(get(&served.socket, "/services?consistency=psychic").await.status, 400);
    assert_eq!(get(&served.socket, "/info").await.status, 200);
}

#[tokio::test]
async fn networks_with_ipv6() {
    let served = Served::cluster().await;
    let s = &served.socket;
    let create = json!({"Driver": "overlay", "EnableIPv6": true, "Name": "six", "IPAM": {"Config":
        [{"Subnet": "10.78.0.0/24"}, {"Subnet": "fd00:78::/64", "AuxiliaryAddresses": {"printer": "fd00:78::9"}}]}});
    let created = post(s, "/networks/create", create).await;
    assert_eq!(created.status, 201, "{}", created.text());
    let network = get(s, "/networks/six").await.json();
    assert_eq!((&network["EnableIPv4"], &network["EnableIPv6"]), (&json!(true), &json!(true)));
    let config = json!([{"Subnet": "10.78.0.0/24", "Gateway": "10.78.0.1"},
        {"Subnet": "fd00:78::/64", "Gateway": "fd00:78::1", "AuxiliaryAddresses": {"printer": "fd00:78::9"}}]);
    assert_eq!(network["IPAM"]["Config"], config);
    // Nothing asked for is something of the cluster's own; IPv4 alone is as before.
    assert_eq!(
        post(s, "/networks/create", json!({"Driver": "overlay", "EnableIPv6": true, "Name": "own"})).await.status,
        201
    );
    let own = get(s, "/networks/own").await.json();
    assert!(own["IPAM"]["Config"][1]["Subnet"].as_str().unwrap().starts_with("fd"), "{own}");
    assert_eq!(get(s, "/networks/ingress").await.json()["EnableIPv6"], false);
    for (config, word) in [
        (json!([{"Subnet": "fd00:78::/80"}]), "overlaps"),
        (json!([{"Subnet": "fe80::/64"}]), "another meaning"),
        (json!([{"Subnet": "fd01::/64", "IPRange": "fd01::/80"}]), "not supported"),
        (json!([{"Subnet": "10.79.0.0/16"}, {"Subnet": "fd01::/120"}]), "too small"),
    ] {
        let bad = json!({"Driver": "overlay", "EnableIPv6": true, "Name": "bad", "IPAM": {"Config": config}});
        let refused = post(s, "/networks/create", bad).await;
        assert!(refused.status >= 400 && refused.message().contains(word), "{word}: {}", refused.text());
    }
    let unasked = json!({"Driver": "overlay", "Name": "bad", "IPAM": {"Config": [{"Subnet": "fd01::/64"}]}});
    assert!(post(s, "/networks/create", unasked).await.message().contains("EnableIPv6"));

    let mut spec = small_spec("web");
    spec["TaskTemplate"]["Networks"] = json!([{"Target": "six"}]);
    assert_eq!(post(s, "/services/create", spec).await.status, 201);
    let vips: Vec<String> = get(s, "/services/web").await.json()["Endpoint"]["VirtualIPs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|vip| vip["Addr"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(vips, ["10.78.0.2/24", "fd00:78::2/64"]);
    let task = get(s, "/tasks").await.json()[0].clone();
    let addresses = task["NetworksAttachments"][0]["Addresses"].as_array().unwrap().clone();
    let [four, six] = [0, 1].map(|at| addresses[at].as_str().unwrap().to_owned());
    let number = four.strip_prefix("10.78.0.").and_then(|rest| rest.strip_suffix("/24")).unwrap();
    assert_eq!(six, format!("fd00:78::{:x}/64", number.parse::<u8>().unwrap()));
}

#[tokio::test]
async fn networks() {
    let served = Served::cluster().await;
    let s = &served.socket;
    let create = json!({"Driver": "overlay", "Scope": "", "IPAM": {"Driver": "default", "Options": {}, "Config":
        [{"Subnet": "10.77.0.0/24", "Gateway": "10.77.0.1"}]}, "Internal": true, "Attachable": false, "Ingress": false,
        "ConfigOnly": false, "ConfigFrom": null, "Options": {}, "Labels": {"k": "v"}, "Name": "ov1"});
    let created = post(s, "/networks/create", create.clone()).await;
    assert_eq!(created.status, 201, "{}", created.text());
    let id = created.json()["Id"].as_str().unwrap().to_owned();
    assert_eq!(id.len(), 25);
    let again = post(s, "/networks/create", create.clone()).await;
    assert_eq!((again.status, again.message()), (409, "network with name ov1 already exists".to_owned()));
    for (scope, status) in [("", 503), ("local", 503), ("global", 400)] {
        // This engine has no containers of its own that could be on it.
        let local = json!({"Name": "br1", "Driver": "bridge", "Scope": scope});
        assert_eq!(post(s, "/networks/create", local).await.status, status, "{scope}");
    }
    for (key, value) in [
        ("Driver", json!("macvlan")),
        ("ConfigOnly", json!(true)),
        ("EnableIPv4", json!(false)),
        ("IPAM", json!({"Driver": "dhcp"})),
        ("IPAM", json!({"Options": {"a": "b"}})),
    ] {
        let mut bad = create.clone();
        bad["Name"] = "ov9".into();
        bad[key] = value;
        assert_eq!(post(s, "/networks/create", bad).await.status, 501, "{key}");
    }

    let mut spec = small_spec("web");
    spec["TaskTemplate"]["Networks"] = json!([{"Target": "ov1", "Aliases": ["webby"]}]);
    assert_eq!(post(s, "/services/create", spec).await.status, 201);
    let service = get(s, "/services/web").await.json();
    assert_eq!(service["Spec"]["TaskTemplate"]["Networks"], json!([{"Target": id, "Aliases": ["webby"]}]));
    let task = get(s, "/tasks").await.json()[0].clone();
    assert_eq!(task["NetworksAttachments"][0]["Network"]["Spec"]["Name"], "ov1");
    assert!(task["NetworksAttachments"][0]["Addresses"][0].as_str().unwrap().starts_with("10.77.0."));

    let network = get(s, &format!("/networks/{}?verbose=true&scope=swarm", &id[..8])).await.json();
    assert_eq!(network["IPAM"]["Config"], json!([{"Subnet": "10.77.0.0/24", "Gateway": "10.77.0.1"}]));
    assert_eq!(network["Internal"], true);
    // Verbose is what this host has, and this one has no overlay.
    assert_eq!((&network["Services"], &network["Peers"]), (&json!({}), &json!([])));
    assert_eq!(network["Host"], json!({"Carried": false, "Message": "no overlay network runs on this host"}));
    let network = get(s, "/networks/ov1").await.json();
    assert_eq!((&network["Host"], network["Peers"].as_array().unwrap().len()), (&Value::Null, 3));
    let local = get(s, "/networks/ov1?scope=local").await;
    assert_eq!(local.status, 404);
    let list = get(s, &format!("/networks?{}", filters(json!({"scope": {"swarm": true}})))).await.json();
    let names: Vec<&str> = list.as_array().unwrap().iter().map(|n| n["Name"].as_str().unwrap()).collect();
    assert_eq!(names.len(), 2);
    assert!(names.contains(&"ingress"));
    let labelled = get(s, &format!("/networks?{}", filters(json!({"label": ["k=v"]})))).await.json();
    assert_eq!(labelled.as_array().unwrap().len(), 1);
    let bridges = get(s, &format!("/networks?{}", filters(json!({"driver": ["bridge"]})))).await.json();
    assert_eq!(bridges.as_array().unwrap().len(), 1);

    let used = delete(s, "/networks/ov1").await;
    assert_eq!(used.status, 400);
    assert!(used.message().contains("is in use by service"), "{}", used.message());
    delete(s, "/services/web").await;
    assert_eq!(delete(s, "/networks/ov1").await.status, 204);
}

#[tokio::test]
async fn a_prune_takes_networks_that_nothing_uses() {
    let served = Served::cluster().await;
    let s = &served.socket;
    let prune = async |filter: Value| {
        let answer = send(s, "POST", &format!("/networks/prune?{}", filters(filter)), None, Vec::new()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["NetworksDeleted"].clone()
    };
    assert_eq!(prune(json!({})).await, Value::Null, "not the ingress network");
    for name in ["a", "b", "c", "used"] {
        let made = json!({"Name": name, "Driver": "overlay", "Labels": {"of": name}});
        assert_eq!(post(s, "/networks/create", made).await.status, 201);
    }
    let mut spec = small_spec("user");
    spec["TaskTemplate"]["Networks"] = json!([{"Target": "used"}]);
    assert_eq!(post(s, "/services/create", spec).await.status, 201);
    assert_eq!(prune(json!({"until": ["1h"]})).await, Value::Null, "all of them are younger");
    assert_eq!(prune(json!({"label": ["of=a", "of=b"]})).await, Value::Null, "none has both");
    assert_eq!(prune(json!({"label": ["of=a"]})).await, json!(["a"]));
    assert_eq!(prune(json!({"label!": ["of=b"]})).await, json!(["c"]));
    assert_eq!(prune(json!({})).await, json!(["b"]));
    let bad = send(s, "POST", &format!("/networks/prune?{}", filters(json!({"name": ["b"]}))), None, vec![]).await;
    assert_eq!(bad.status, 400);
    let list = get(s, &format!("/networks?{}", filters(json!({"scope": ["swarm"]})))).await.json();
    let mut names: Vec<&str> = list.as_array().unwrap().iter().map(|n| n["Name"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["ingress", "used"]);
    // Who is no manager knows no network that could be removed.
    let alone = Served::inactive().await;
    let answer = send(&alone.socket, "POST", "/networks/prune", None, Vec::new()).await;
    assert_eq!((answer.status, answer.json()), (200, json!({"NetworksDeleted": null})));
}

#[tokio::test]
async fn predefined_networks() {
    let served = Served::cluster().await;
    let s = &served.socket;
    let list = get(s, &format!("/networks?{}", filters(json!({"scope": ["local"]})))).await.json();
    let shown: Vec<(&str, &str)> =
        list.as_array().unwrap().iter().map(|n| (n["Name"].as_str().unwrap(), n["Driver"].as_str().unwrap())).collect();
    assert_eq!(shown, [("bridge", "bridge"), ("host", "host"), ("none", "null")]);
    let unused = get(s, &format!("/networks?{}", filters(json!({"dangling": ["true"], "type": ["builtin"]})))).await;
    assert_eq!(unused.json(), json!([]));
    let host = get(s, "/networks/host").await.json();
    assert_eq!((&host["Scope"], &host["Containers"], &host["Options"]), (&json!("local"), &json!({}), &json!({})));
    let id = host["Id"].as_str().unwrap().to_owned();
    // As Docker's clients ask before they make a service.
    let swarm = get(s, "/networks/host?scope=swarm").await.json();
    assert_eq!((&swarm["Scope"], &swarm["Id"]), (&json!("swarm"), &json!(id)));
    assert_eq!(get(s, "/networks/host?scope=global").await.status, 404);
    let gone = delete(s, "/networks/host").await;
    assert_eq!((gone.status, gone.message().as_str()), (403, "host is a pre-defined network and cannot be removed"));

    let wanting = |name: &str, networks: Value| {
        let mut spec = small_spec(name);
        spec["TaskTemplate"]["Networks"] = networks;
        spec
    };
    for (name, network) in [("by-name", "host"), ("by-id", &*id), ("by-prefix", &id[..12])] {
        let made = post(s, "/services/create", wanting(name, json!([{"Target": network}]))).await;
        assert_eq!(made.status, 201, "{}", made.text());
        let service = get(s, &format!("/services/{name}")).await.json();
        assert_eq!(service["Spec"]["TaskTemplate"]["Networks"], json!([{"Target": id}]));
        assert!(service["Endpoint"]["VirtualIPs"].is_null());
    }
    let tasks = get(s, &format!("/tasks?{}", filters(json!({"service": ["by-name"]})))).await.json();
    assert!(tasks[0]["NetworksAttachments"].is_null(), "{tasks}");
    let none = post(s, "/services/create", wanting("none", json!([{"Target": "none"}]))).await;
    assert_eq!(none.status, 201, "{}", none.text());
    let mut bridged = wanting("bridged", json!([{"Target": "bridge"}]));
    bridged["EndpointSpec"] = json!({"Ports": [{"TargetPort": 80, "PublishMode": "host"}]});
    let bridged = post(s, "/services/create", bridged).await;
    assert_eq!(bridged.status, 201, "{}", bridged.text());
    let bridged = get(s, "/services/bridged").await.json();
    assert!(bridged["Spec"]["TaskTemplate"]["Networks"].is_null(), "as without networks: {bridged}");

    let mut published = wanting("web", json!([{"Target": "host"}]));
    published["EndpointSpec"] = json!({"Ports": [{"TargetPort": 80, "PublishMode": "host"}]});
    let mut forwarding = wanting("web", json!([{"Target": "host"}]));
    forwarding["TaskTemplate"]["ContainerSpec"]["Sysctls"] = json!({"net.ipv4.ip_forward": "1"});
    for (spec, status, word) in [
        (wanting("web", json!([{"Target": "bridge"}, {"Target": "ingress"}])), 400, "cannot be combined"),
        (wanting("web", json!([{"Target": "bridge", "Aliases": ["a"]}])), 400, "no aliases"),
        (wanting("web", json!([{"Target": "host"}, {"Target": "none"}])), 400, "cannot be combined"),
        (wanting("web", json!([{"Target": "host", "Aliases": ["a"]}])), 400, "no aliases"),
        (published, 400, "ports cannot be published with network host"),
        (forwarding, 400, "net.ipv4.ip_forward"),
    ] {
        let refused = post(s, "/services/create", spec).await;
        assert_eq!(refused.status, status, "{}", refused.text());
        assert!(refused.message().contains(word), "{} has no {word}", refused.message());
    }
}

#[tokio::test]
async fn the_ingress_network_is_replaced() {
    let served = Served::cluster().await;
    let s = &served.socket;
    let mut spec = small_spec("web");
    spec["EndpointSpec"] = json!({"Ports": [{"TargetPort": 80, "PublishedPort": 8080}]});
    let service = post(s, "/services/create", spec.clone()).await.json();
    let id = service["ID"].as_str().unwrap();
    let used = delete(s, "/networks/ingress").await;
    let text = format!("ingress network cannot be removed because service {id} depends on it");
    assert_eq!((used.status, used.message()), (400, text));
    delete(s, "/services/web").await;
    assert_eq!(delete(s, "/networks/ingress").await.status, 204);
    let refused = post(s, "/services/create", spec.clone()).await;
    let text = "service needs ingress network, but no ingress network is present";
    assert_eq!((refused.status, refused.message().as_str()), (400, text));
    let create = json!({"Name": "mesh", "Driver": "overlay", "Ingress": true,
        "IPAM": {"Driver": "default", "Config": [{"Subnet": "10.11.0.0/16", "Gateway": "10.11.0.2"}]}});
    let made = post(s, "/networks/create", create.clone()).await;
    assert_eq!(made.status, 201, "{}", made.text());
    let network = get(s, "/networks/mesh").await.json();
    assert_eq!((&network["Ingress"], &network["IPAM"]["Config"][0]["Subnet"]), (&json!(true), &json!("10.11.0.0/16")));
    let again = post(s, "/networks/create", json!({"Name": "mesh2", "Driver": "overlay", "Ingress": true})).await;
    assert_eq!((again.status, again.message().as_str()), (409, "ingress network (mesh) is already present"));
    // Both hosts have places on the new one, which show as troubles if they are missing.
    let nodes = get(s, "/nodes").await.json();
    assert!(nodes.as_array().unwrap().iter().all(|node| node["Status"]["Message"].is_null()), "{nodes}");
    assert_eq!(post(s, "/services/create", spec).await.status, 201);
    let service = get(s, "/services/web").await.json();
    assert!(service["Endpoint"]["VirtualIPs"][0]["Addr"].as_str().unwrap().starts_with("10.11.0."), "{service}");
}

#[tokio::test]
async fn secrets_and_configs() {
    let served = Served::cluster().await;
    let s = &served.socket;
    for kind in ["secret", "config"] {
        let body = json!({"Name": "one", "Labels": {"a": "b"}, "Data": "czEK", "Driver": null, "Templating": null});
        let created = post(s, &format!("/{kind}s/create"), body.clone()).await;
        assert_eq!(created.status, 201, "{}", created.text());
        let again = post(s, &format!("/{kind}s/create"), body.clone()).await;
        assert_eq!(again.status, 409);
        assert!(again.message().contains(&format!("{kind} one already exists")), "{}", again.message());
        let got = get(s, &format!("/{kind}s/one")).await.json();
        assert_eq!(got["ID"], created.json()["ID"]);
        let data = if kind == "secret" { None } else { Some("czEK") };
        assert_eq!(got["Spec"].get("Data").and_then(Value::as_str), data);
        let list = get(s, &format!("/{kind}s?{}", filters(json!({"name": {"on": true}, "label": ["a"]})))).await.json();
        assert_eq!(list.as_array().unwrap().len(), 1);

        let update = |version: &Value| format!("/{kind}s/one/update?version={version}");
        let relabelled = json!({"Name": "one", "Labels": {"c": "d"}, "Data": "czEK"});
        assert_eq!(post(s, &update(&got["Version"]["Index"]), relabelled).await.status, 200);
        let now = get(s, &format!("/{kind}s/one")).await.json();
        assert_eq!(now["Spec"]["Labels"], json!({"c": "d"}));
        let changed = json!({"Name": "one", "Labels": {}, "Data": "czIK"});
        let changed = post(s, &update(&now["Version"]["Index"]), changed).await;
        assert_eq!(changed.status, 400);
        assert!(changed.message().contains("only updates to Labels are allowed"), "{}", changed.message());

        for (bad, text) in [
            (json!({"Name": "two", "Data": ""}), "data must be larger than 0"),
            (json!({"Name": "two", "Data": "!!"}), "not base64"),
            (json!({"Name": "two", "Data": "czEK", "Templating": {"Name": "golang"}}), "Templating"),
        ] {
            let answer = post(s, &format!("/{kind}s/create"), bad).await;
            assert!(matches!(answer.status, 400 | 501));
            assert!(answer.message().contains(text), "{}", answer.message());
        }
        assert_eq!(delete(s, &format!("/{kind}s/one")).await.status, 204);
        let gone = delete(s, &format!("/{kind}s/one")).await;
        assert_eq!((gone.status, gone.message()), (404, format!("{kind} one not found")));
    }
}

#[tokio::test]
async fn logs_are_framed_with_details() {
    let served = Served::cluster().await;
    let s = &served.socket;
    let mut spec = small_spec("web");
    spec["Mode"]["Replicated"]["Replicas"] = 1.into();
    post(s, "/services/create", spec).await;
    let none = get(s, "/services/web/logs").await;
    assert!(none.message().contains("you must choose at least one stream"));
    let answer = get(s, "/v1.50/services/web/logs?stdout=1&stderr=1&details=1&timestamps=1&tail=all").await;
    assert_eq!(answer.headers["content-type"], "application/vnd.docker.multiplexed-stream");
    let frames = split(&answer.body);
    assert_eq!(frames.len(), 3, "{frames:?}");
    let task = served.engine.snapshot().tasks().next().unwrap().clone();
    let expected = format!(
        "2027-01-15T08:00:00.000000000Z com.docker.swarm.node.id={},com.docker.swarm.service.id={},com.docker.swarm.task.id={} \
         hello from 1\n",
        task.node_id, task.service_id, task.id
    );
    assert_eq!(frames[0], (1, expected));
    assert_eq!(frames[1].0, 2);
    // The stream goes on after an error, and the client is told.
    assert_eq!(frames[2], (3, "node-c cannot be reached".to_owned()));
    let by_task = get(s, &format!("/v1.41/tasks/{}/logs?stdout=1", task.id)).await;
    assert_eq!(by_task.headers["content-type"], "application/vnd.docker.raw-stream");
    assert_eq!(split(&by_task.body)[0], (1, "hello from 1\n".to_owned()));
    for bad in ["since=yesterday", "until=-5"] {
        assert_eq!(get(s, &format!("/services/web/logs?stdout=1&{bad}")).await.status, 400);
    }
}

/// Frames of a multiplexed stream.
fn split(mut body: &[u8]) -> Vec<(u8, String)> {
    let mut frames = Vec::new();
    while let Some((header, rest)) = body.split_at_checked(8) {
        let len = u32::from_be_bytes(header[4..].try_into().unwrap()) as usize;
        frames.push((header[0], String::from_utf8(rest[..len].to_vec()).unwrap()));
        body = &rest[len..];
    }
    assert!(body.is_empty());
    frames
}

#[tokio::test]
async fn followed_logs_take_in_new_tasks_and_end_with_the_client() {
    let served = Served::cluster().await;
    let s = &served.socket;
    let mut spec = small_spec("web");
    spec["Mode"]["Replicated"]["Replicas"] = 1.into();
    post(s, "/services/create", spec).await;
    let mut stream = open(s, "GET", "/services/web/logs?stdout=1&follow=1", None, Vec::new()).await.into_body();
    let mut read = async || {
        let frame = tokio::time::timeout(Duration::from_secs(20), stream.frame()).await.unwrap().unwrap().unwrap();
        split(&frame.into_data().unwrap())
    };
    assert_eq!(read().await, [(1, "hello from 1\n".to_owned())]);
    let service = get(s, "/services/web").await.json();
    let mut spec = service["Spec"].clone();
    spec["Mode"]["Replicated"]["Replicas"] = 2.into();
    post(s, &format!("/services/web/update?version={}", service["Version"]["Index"]), spec).await;
    assert_eq!(read().await, [(1, "hello from 2\n".to_owned())]);
    drop(stream);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    let task = served.engine.snapshot().tasks().next().unwrap().clone();
    while served.engine.followers() > 0 {
        assert!(tokio::time::Instant::now() < deadline, "the logs are still followed");
        let record = node::engine::LogRecord {
            task_id: task.id.clone(),
            node_id: task.node_id.clone(),
            at_ns: 1,
            stderr: false,
            data: "x\n".into(),
        };
        served.engine.log(record).await;
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_shutdown_ends_followed_streams() {
    let mut served = Served::cluster().await;
    post(&served.socket, "/services/create", small_spec("web")).await;
    let stream = open(&served.socket, "GET", "/services/web/logs?stdout=1&follow=1", None, Vec::new()).await;
    served.stop();
    let body = tokio::time::timeout(Duration::from_secs(20), stream.into_body().collect()).await.unwrap();
    assert!(body.is_ok());
    let server = served.server.take().unwrap();
    tokio::time::timeout(Duration::from_secs(20), server).await.unwrap().unwrap().unwrap();
}
