//! New limits for containers that live.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use serde_json::json;

use crate::Test;
use crate::bundle::{Bundle, Said, cgroup_mounts};

pub const TESTS: &[Test] = &[("update::limits", limits), ("update::refusals", refusals)];

/// The first of these files that this host's cgroups have for the container.
fn limit(bundle: &Bundle, names: [&str; 2]) -> String {
    let name = format!("shoal.{}", bundle.id);
    let files = cgroup_mounts().into_iter().flat_map(|mount| names.map(|file| mount.join(&name).join(file)));
    let mut found = files.filter_map(|file| fs::read_to_string(file).ok());
    found.next().unwrap_or_else(|| panic!("no {names:?}")).trim().to_owned()
}

fn with_input(bundle: &Bundle, words: &[&str], input: &str) -> Said {
    let mut command = bundle.command(words);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap().into()
}

fn limits() {
    let mut bundle = Bundle::new("sleep");
    bundle.config["linux"]["resources"] = json!({ "pids": { "limit": 50 }, "memory": { "limit": 40 << 20 } });
    let _output = bundle.create();
    bundle.ok(&["start", &bundle.id]);
    let (pids, memory) = (["pids.max", "pids.max"], ["memory.limit_in_bytes", "memory.max"]);
    assert_eq!((limit(&bundle, pids).as_str(), limit(&bundle, memory)), ("50", (40 << 20).to_string()));
    bundle.ok(&["update", "--pids-limit", "60", &bundle.id]);
    // What is not named stays.
    assert_eq!((limit(&bundle, pids).as_str(), limit(&bundle, memory)), ("60", (40 << 20).to_string()));
    bundle.ok(&["update", "--memory=50m", &bundle.id]);
    assert_eq!(limit(&bundle, memory), (50 << 20).to_string());
    let resources = json!({ "pids": { "limit": 70 }, "memory": { "limit": 60 << 20 } }).to_string();
    let said = with_input(&bundle, &["update", "--resources", "-", &bundle.id], &resources);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!((limit(&bundle, pids).as_str(), limit(&bundle, memory)), ("70", (60 << 20).to_string()));
    let file = bundle.path().join("resources.json");
    fs::write(&file, r#"{"pids":{"limit":80}}"#).unwrap();
    bundle.ok(&["update", "--resources", file.to_str().unwrap(), &bundle.id]);
    assert_eq!(limit(&bundle, pids), "80");
}

fn refusals() {
    let bundle = Bundle::new("sleep");
    let id = bundle.id.as_str();
    bundle.fails(&["update", "--pids-limit", "60", id], "does not exist");
    let _output = bundle.create();
    bundle.fails(&["update", "--pids-limit", "many", id], "no number");
    bundle.fails(&["update", "--memory", "1", "--frob", "2", id], "unknown option --frob");
    bundle.fails(&["update", "--kernel-memory", "1", id], "--kernel-memory is not supported");
    bundle.fails(&["update", "--cpu-share", "1", "--cpuset-cpus", "9999", id], "cpu");
    for (input, expected) in
        [("{", "EOF"), ("7", "invalid type"), ("", "EOF"), ("{\"pids\":{\"limit\":\"x\"}}", "invalid type")]
    {
        let said = with_input(&bundle, &["update", "--resources", "-", id], input);
        assert!(said.code != 0 && said.err.contains(expected), "{input:?}: {said:?}");
    }
    bundle.ok(&["kill", id, "KILL"]);
    bundle.until("stopped");
    bundle.fails(&["update", "--pids-limit", "60", id], "container not running");
    bundle.fails(&["events", id], "events is not supported");
}
