//! From command lines to the API's JSON, and back to what people read.

use clap::Parser;
use serde_json::json;

use super::show::describe;
use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    node: NodeArgs,
}

fn parse(args: &[&str]) -> Result<NodeCommand, clap::Error> {
    Line::try_parse_from(["node"].iter().chain(args)).map(|l| l.node.command)
}

#[test]
fn init_takes_dockers_flags() {
    let line = "init --advertise-addr eth0 --data-path-port 7777 --default-addr-pool 10.9.0.0/16,10.8.0.0/16 \
                --default-addr-pool-mask-length 26 --availability drain";
    let args: Vec<&str> = line.split_whitespace().collect();
    let Ok(NodeCommand::Init(args)) = parse(&args) else { panic!("not init") };
    assert_eq!(
        serde_json::to_value(init_request(args)).unwrap(),
        json!({"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": "eth0", "DataPathAddr": "", "DataPathPort": 7777,
               "DefaultAddrPool": ["10.9.0.0/16", "10.8.0.0/16"], "SubnetSize": 26, "Availability": "drain"})
    );
}

#[test]
fn bad_arguments_are_refused() {
    for bad in [
        "init --availability maybe",
        "init --data-path-port 80",
        "join 1.2.3.4:2377",
        "join --token T",
        "token",
        "token boss",
        "update --label-add =x n",
        "promote",
        "ca --cert-expiry 2h",
        "ca --detach",
        "ca --rotate --ca-cert root.pem",
        "ca --rotate --ca-key key.pem",
    ] {
        assert!(parse(&bad.split_whitespace().collect::<Vec<_>>()).is_err(), "{bad}");
    }
}

#[test]
fn a_manager_has_port_2377() {
    for (given, expected) in [
        ("10.0.0.1", "10.0.0.1:2377"),
        ("10.0.0.1:99", "10.0.0.1:99"),
        ("host", "host:2377"),
        ("fe80::1", "[fe80::1]:2377"),
        ("[fe80::1]", "[fe80::1]:2377"),
        ("[fe80::1]:99", "[fe80::1]:99"),
    ] {
        assert_eq!(with_port(given), expected, "{given}");
    }
}

#[test]
fn the_join_line_names_this_manager() {
    let info = json!({"Swarm": {"NodeID": "b", "NodeAddr": "10.0.0.2", "RemoteManagers":
        [{"NodeID": "a", "Addr": "10.0.0.1:2377"}, {"NodeID": "b", "Addr": "10.0.0.2:2399"}]}});
    assert_eq!(own_address(&info), "10.0.0.2:2399");
    assert_eq!(own_address(&json!({"Swarm": {"NodeAddr": "10.0.0.2", "RemoteManagers": null}})), "10.0.0.2:2377");
}

#[test]
fn an_update_keeps_the_rest() {
    let Ok(NodeCommand::Update(args)) =
        parse(&["update", "--label-add", "zone=b", "--label-rm", "old", "--availability", "pause", "n"])
    else {
        panic!("not update")
    };
    let mut spec: NodeSpec = serde_json::from_value(
        json!({"Name": "n", "Role": "manager", "Availability": "active", "Labels": {"old": "1", "zone": "a"}}),
    )
    .unwrap();
    apply(&args, &mut spec);
    assert_eq!(
        serde_json::to_value(spec).unwrap(),
        json!({"Name": "n", "Role": "manager", "Availability": "pause", "Labels": {"zone": "b"}})
    );
}

#[test]
fn a_host_is_described() {
    let text = describe(&json!({"ID": "abc", "Spec": {"Labels": {"zone": "a"}, "Role": "worker"},
        "Description": {"Resources": {"NanoCPUs": 2_000_000_000_u64, "MemoryBytes": 1073741824}}}));
    for line in ["ID:                 abc", "Label:              zone=a", "CPUs:               2"] {
        assert!(text.contains(line), "{text}");
    }
}

#[test]
fn what_is_wrong_with_living_hosts_is_said_under_the_list() {
    let node = |name: &str, state: &str, message: &str| json!({"Description": {"Hostname": name}, "Status": {"State": state, "Message": message}});
    let nodes: Vec<Node> = serde_json::from_value(json!([
        node("a", "ready", "clock 7s behind the leader's"),
        node("b", "down", "host is not reachable"),
        {"Description": {"Hostname": "c"}, "Status": {"State": "ready"}},
        node("d", "ready", ""),
    ]))
    .unwrap();
    assert_eq!(show::remarks(&nodes), ["WARNING: host a: clock 7s behind the leader's"]);
}
