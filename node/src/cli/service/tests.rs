//! From command lines to the API's JSON.

use clap::Parser;
use serde_json::{Value, json};

use super::args::ServiceCommand;
use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    service: ServiceArgs,
}

fn parse(line: &str) -> Result<ServiceCommand, String> {
    let words = crate::cli::values::words(line).unwrap();
    let line = Line::try_parse_from(std::iter::once("service".to_owned()).chain(words));
    line.map(|l| l.service.command).map_err(|e| e.to_string())
}

fn create(line: &str) -> Result<Value, String> {
    match parse(&format!("create {line}"))? {
        ServiceCommand::Create(args) => {
            let spec = spec::create(*args, |name| (name == "HOME").then(|| "/root".to_owned()));
            spec.map(|spec| serde_json::to_value(spec).unwrap()).map_err(|e| e.to_string())
        }
        other => panic!("{other:?}"),
    }
}

fn updated(line: &str, before: Value) -> Result<Value, String> {
    match parse(&format!("update {line} web"))? {
        ServiceCommand::Update(args) => {
            spec::check_update(&args).map_err(|e| e.to_string())?;
            let mut spec: ServiceSpec = serde_json::from_value(before).unwrap();
            spec::update(&args, &mut spec, |_| None).map_err(|e| e.to_string())?;
            Ok(serde_json::to_value(spec).unwrap())
        }
        other => panic!("{other:?}"),
    }
}

/// What `updated` leaves of a container.
#[track_caller]
fn check_container(line: &str, before: Value, expected: Value) {
    let after = updated(line, json!({"TaskTemplate": {"ContainerSpec": before}})).unwrap();
    assert_eq!(after["TaskTemplate"]["ContainerSpec"], expected, "{line}");
}

#[track_caller]
fn refused(found: Result<Value, String>, word: &str) {
    let error = found.unwrap_err();
    assert!(error.contains(word), "{error}");
}

#[test]
fn health_checks_secrets_and_configs() {
    let container = |line: &str| create(line).map(|spec| spec["TaskTemplate"]["ContainerSpec"].clone());
    let line = "--name web --health-cmd 'wget -q x' --health-interval 10s --health-timeout 1s --health-retries 2 \
        --health-start-period 1m --health-start-interval 500ms --secret key \
        --config source=conf,target=/etc/app,mode=0440 web:1";
    assert_eq!(
        container(line).unwrap(),
        json!({
            "Image": "web:1",
            "Healthcheck": {"Test": ["CMD-SHELL", "wget -q x"], "Interval": 10_000_000_000u64,
                            "Timeout": 1_000_000_000u64, "Retries": 2, "StartPeriod": 60_000_000_000u64,
                            "StartInterval": 500_000_000u64},
            "Secrets": [{"File": {"Name": "key", "UID": "0", "GID": "0", "Mode": 0o444}, "SecretName": "key"}],
            "Configs": [{"File": {"Name": "/etc/app", "UID": "0", "GID": "0", "Mode": 0o440}, "ConfigName": "conf"}],
        })
    );
    let none = container("--name web --no-healthcheck web:1").unwrap();
    assert_eq!(none["Healthcheck"], json!({"Test": ["NONE"]}));
    refused(create("--name web --no-healthcheck --health-retries 2 web:1"), "--no-healthcheck conflicts");
    let secret = |name: &str, file: &str| json!({"SecretName": name, "File": {"Name": file}});
    check_container(
        "--secret-rm old --health-retries 5",
        json!({"Secrets": [secret("old", "a"), secret("kept", "b")], "Healthcheck": {"Test": ["NONE"]}}),
        json!({"Secrets": [secret("kept", "b")], "Healthcheck": {"Retries": 5}}),
    );
    refused(updated("--config-rm nope", json!({})), "no such entry");
}

#[test]
fn a_plain_service() {
    assert_eq!(
        create("--name web web:1").unwrap(),
        json!({
            "Name": "web",
            "TaskTemplate": {"ContainerSpec": {"Image": "web:1"}, "Placement": {}},
            "Mode": {"Replicated": {"Replicas": 1}},
            "EndpointSpec": {},
        })
    );
}

#[test]
fn dockers_flags_become_dockers_json() {
    let line = "--name web --replicas 3 -p 8080:80 --publish mode=host,target=81,published=8181 \
        --network name=back,alias=w -e A=b -e HOME -e UNSET --label l=1 --container-label cl=1 \
        --constraint node.role==manager --placement-pref spread=node.labels.zone --limit-cpu .5 --limit-memory 64M \
        --limit-pids 100 --reserve-cpu 0.25 --reserve-memory 8M --mount type=bind,src=/a,dst=/b \
        --restart-condition on-failure --restart-delay 1s --restart-max-attempts 3 --restart-window 1m \
        --update-parallelism 2 --update-delay 1s --update-order start-first --update-failure-action rollback \
        --update-monitor 10s --update-max-failure-ratio 0.1 --rollback-order stop-first --stop-grace-period 1s \
        --stop-signal SIGINT --user root --workdir /tmp --hostname h --host foo:1.2.3.4 --dns 9.9.9.9 \
        --cap-add NET_ADMIN --cap-drop chown --read-only --sysctl net.core.somaxconn=100 --ulimit nofile=100:200 \
        --endpoint-mode vip --replicas-max-per-node 2 --entrypoint '/bin/sh -c' --log-driver local \
        --log-opt max-size=1m -d busybox -c 'echo a' --name not-a-flag";
    assert_eq!(
        create(line).unwrap(),
        json!({
            "Name": "web",
            "Labels": {"l": "1"},
            "TaskTemplate": {
                "ContainerSpec": {
                    "Image": "busybox", "Command": ["/bin/sh", "-c"], "Args": ["-c", "echo a", "--name", "not-a-flag"],
                    "Labels": {"cl": "1"}, "Env": ["A=b", "HOME=/root"], "Dir": "/tmp", "User": "root",
                    "Hostname": "h", "ReadOnly": true, "Hosts": ["1.2.3.4 foo"],
                    "Mounts": [{"Type": "bind", "Source": "/a", "Target": "/b"}],
                    "StopGracePeriod": 1_000_000_000, "StopSignal": "SIGINT",
                    "DNSConfig": {"Nameservers": ["9.9.9.9"]},
                    "CapabilityAdd": ["CAP_NET_ADMIN"], "CapabilityDrop": ["CAP_CHOWN"],
                    "Sysctls": {"net.core.somaxconn": "100"},
                    "Ulimits": [{"Name": "nofile", "Soft": 100, "Hard": 200}],
                },
                "Networks": [{"Target": "back", "Aliases": ["w"]}],
                "Resources": {
                    "Limits": {"NanoCPUs": 500_000_000, "MemoryBytes": 64 << 20, "Pids": 100},
                    "Reservations": {"NanoCPUs": 250_000_000, "MemoryBytes": 8 << 20},
                },
                "RestartPolicy": {"Condition": "on-failure", "Delay": 1_000_000_000_u64, "MaxAttempts": 3,
                                  "Window": 60_000_000_000_u64},
                "Placement": {"Constraints": ["node.role==manager"], "MaxReplicas": 2,
                              "Preferences": [{"Spread": {"SpreadDescriptor": "node.labels.zone"}}]},
                "LogDriver": {"Name": "local", "Options": {"max-size": "1m"}},
            },
            "Mode": {"Replicated": {"Replicas": 3}},
            "UpdateConfig": {"Parallelism": 2, "Delay": 1_000_000_000, "FailureAction": "rollback",
                             "Monitor": 10_000_000_000_u64, "MaxFailureRatio": 0.1, "Order": "start-first"},
            "RollbackConfig": {"Parallelism": 1, "Order": "stop-first"},
            "EndpointSpec": {"Mode": "vip", "Ports": [
                {"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress"},
                {"Protocol": "tcp", "TargetPort": 81, "PublishedPort": 8181, "PublishMode": "host"}]},
        })
    );
}

#[test]
fn global_services_have_no_number() {
    assert_eq!(create("--name a --mode global a:1").unwrap()["Mode"], json!({"Global": {}}));
    refused(create("--mode global --replicas 2 a:1"), "--replicas");
}

#[test]
fn a_service_without_a_name_is_given_one() {
    let name = create("web:1").unwrap()["Name"].as_str().unwrap().to_owned();
    assert!(name.starts_with("service-"), "{name}");
}

#[test]
fn variables_come_from_files_too() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("env");
    std::fs::write(&file, "# comment\n\nA=file\n B=file\nHOME\n").unwrap();
    let spec = create(&format!("--env-file {} -e A=flag web:1", file.display())).unwrap();
    assert_eq!(spec["TaskTemplate"]["ContainerSpec"]["Env"], json!(["A=flag", "B=file", "HOME=/root"]));
    refused(create("--env-file /nonexistent/env web:1"), "/nonexistent/env");
}

#[test]
fn mistakes_are_named() {
    for (line, word) in [
        ("", "IMAGE"),
        ("''", "image"),
        ("--replicas -1 web", "--replicas"),
        ("--replicas x web", "whole number"),
        ("--nmae x web", "--nmae"),
        ("--limit-memory 64X web", "64X"),
        ("--update-order sideways web", "sideways"),
        ("--mount type=bind web", "target"),
        ("-p 99999:80 web", "99999"),
        ("-p 80:80 -p 80:81 web", "published twice"),
        ("--endpoint-mode dnsrr -p 80:80 web", "mode=host"),
        ("--entrypoint \"'x\" web", "quote"),
        ("--dns example.org web", "example.org"),
    ] {
        refused(create(line), word);
    }
}

#[test]
fn an_update_changes_what_it_names() {
    let before = json!({"Name": "web", "Labels": {"a": "1"}, "Mode": {"Replicated": {"Replicas": 2}},
        "TaskTemplate": {"ContainerSpec": {"Image": "web:1", "Env": ["A=1"]}, "ForceUpdate": 4},
        "UpdateConfig": {"Parallelism": 3, "Order": "start-first"}});
    let after = updated("--image web:2 --force --replicas 0 --update-delay 2s --label-add b=2", before).unwrap();
    assert_eq!(
        after,
        json!({"Name": "web", "Labels": {"a": "1", "b": "2"}, "Mode": {"Replicated": {"Replicas": 0}},
            "TaskTemplate": {"ContainerSpec": {"Image": "web:2", "Env": ["A=1"]}, "Placement": {}, "ForceUpdate": 5},
            "UpdateConfig": {"Parallelism": 3, "Order": "start-first", "Delay": 2_000_000_000_u64}})
    );
}

#[test]
fn who_answers_at_published_ports_is_a_label() {
    assert_eq!(
        create("--publish-to local --label a=1 web").unwrap()["Labels"],
        json!({"a": "1", "shoal.publish": "local"})
    );
    let before = json!({"Labels": {"a": "1", "shoal.publish": "local"}});
    let after = updated("--publish-to cluster", before.clone()).unwrap();
    assert_eq!(after["Labels"], json!({"a": "1", "shoal.publish": "cluster"}));
    assert_eq!(updated("--image web:2", before.clone()).unwrap()["Labels"], before["Labels"]);
    refused(create("--publish-to local --label shoal.publish=cluster web"), "leave one of them out");
    refused(updated("--publish-to local --label-rm shoal.publish", before.clone()), "leave one of them out");
    refused(updated("--publish-to local --rollback", before), "leave the other changes out");
    refused(create("--publish-to host web"), "possible values: cluster, local");
}

#[test]
fn lists_are_added_to_and_taken_from() {
    check_container(
        "--env-rm A --env-add B=2 --env-add C=3",
        json!({"Env": ["A=1", "B=1", "D=4"]}),
        json!({"Env": ["B=2", "D=4", "C=3"]}),
    );
    check_container(
        "--mount-rm /b --mount-add type=bind,src=/x,dst=/c",
        json!({"Mounts": [{"Type": "bind", "Source": "/a", "Target": "/b"},
                          {"Type": "bind", "Source": "/a", "Target": "/c"}]}),
        json!({"Mounts": [{"Type": "bind", "Source": "/x", "Target": "/c"}]}),
    );
    check_container(
        "--cap-add CHOWN --cap-drop kill",
        json!({"CapabilityAdd": ["CAP_KILL"], "CapabilityDrop": ["CAP_CHOWN"]}),
        json!({"CapabilityAdd": ["CAP_CHOWN"], "CapabilityDrop": ["CAP_KILL"]}),
    );
    check_container("--args 'a \"b c\"'", json!({"Args": ["x"]}), json!({"Args": ["a", "b c"]}));
    check_container(
        "--dns-rm 1.1.1.1 --dns-add 9.9.9.9",
        json!({"DNSConfig": {"Nameservers": ["1.1.1.1"]}}),
        json!({"DNSConfig": {"Nameservers": ["9.9.9.9"]}}),
    );
    check_container("--read-only=false", json!({"ReadOnly": true}), json!({"ReadOnly": false}));
}

#[test]
fn ports_and_constraints_are_added_to_and_taken_from() {
    let port = |published: u32, target: u32| json!({"Protocol": "tcp", "TargetPort": target, "PublishedPort": published, "PublishMode": "ingress"});
    let before = json!({"EndpointSpec": {"Ports": [port(8080, 80), port(8443, 443)]},
        "TaskTemplate": {"Placement": {"Constraints": ["node.role == manager"]}}});
    let after = updated(
        "--publish-rm 80 --publish-add 8443:444 --publish-add 9000:90 --constraint-rm node.role==manager \
         --constraint-add node.labels.a==b",
        before.clone(),
    )
    .unwrap();
    assert_eq!(after["EndpointSpec"]["Ports"], json!([port(8443, 444), port(9000, 90)]));
    assert_eq!(after["TaskTemplate"]["Placement"]["Constraints"], json!(["node.labels.a==b"]));
    refused(updated("--publish-rm 81", before.clone()), "81/tcp");
    refused(updated("--constraint-rm node.id==x", before), "--constraint-rm");
}

#[test]
fn what_is_not_there_cannot_be_taken_away() {
    for line in ["--env-rm X", "--label-rm X", "--mount-rm /x", "--network-rm x", "--sysctl-rm x", "--ulimit-rm x"] {
        refused(updated(line, json!({})), line.split(' ').next().unwrap());
    }
    refused(updated("--rollback --image web:2", json!({})), "--rollback");
    refused(updated("--rollback --env-rm A", json!({})), "--rollback");
    assert!(updated("--rollback -d", json!({})).is_ok());
    refused(updated("--replicas 2", json!({"Mode": {"Global": {}}})), "not replicated");
}

#[test]
fn options_of_another_log_driver_are_dropped() {
    let before = json!({"TaskTemplate": {"LogDriver": {"Name": "json-file", "Options": {"max-size": "1m"}}}});
    let driver = |line| updated(line, before.clone()).unwrap()["TaskTemplate"]["LogDriver"].clone();
    assert_eq!(driver("--log-driver none"), json!({"Name": "none", "Options": {}}));
    assert_eq!(
        driver("--log-opt max-file=2"),
        json!({"Name": "json-file", "Options": {"max-file": "2", "max-size": "1m"}})
    );
}

#[test]
fn a_service_is_described() {
    let service: Service = serde_json::from_value(json!({"ID": "abc", "Spec": {"Name": "web",
        "Mode": {"Replicated": {"Replicas": 2}}, "TaskTemplate": {"ContainerSpec": {"Image": "web:1"},
        "Resources": {"Limits": {"NanoCPUs": 500_000_000, "MemoryBytes": 67_108_864}}}},
        "Endpoint": {"VirtualIPs": [{"Addr": "10.0.1.2/24"}]}, "UpdateStatus": {"State": "paused"}}))
    .unwrap();
    let page = pretty::describe(&service);
    for line in [
        "ID:                 abc",
        "Replicas:           2",
        " State:             paused",
        " CPUs:              0.5",
        " Memory:            64.0MiB",
        " Virtual address:   10.0.1.2/24",
    ] {
        assert!(page.contains(line), "{page}");
    }
}
