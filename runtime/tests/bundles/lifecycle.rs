//! From create to delete, and what each command says in the wrong moment.

use std::fs;

use crate::Test;
use crate::bundle::{Bundle, until};

pub const TESTS: &[Test] = &[
    ("lifecycle::step_by_step", step_by_step),
    ("lifecycle::run_is_all_of_it", run_is_all_of_it),
    ("lifecycle::wrong_moments", wrong_moments),
    ("lifecycle::signals", signals),
    ("lifecycle::without_a_process", without_a_process),
    ("lifecycle::pause_and_resume", pause_and_resume),
    ("lifecycle::lists", lists),
    ("lifecycle::changes_of_the_bundle_come_too_late", changes_of_the_bundle_come_too_late),
];

fn step_by_step() {
    let bundle = Bundle::new("out hello then write /here yes");
    let pid_file = bundle.path().join("pid");
    let output = bundle.create_with(&["--pid-file", pid_file.to_str().unwrap()]);
    let state = bundle.state();
    assert_eq!(state["status"], "created");
    assert_eq!(state["id"], bundle.id.as_str());
    assert_eq!(state["bundle"], bundle.path().to_str().unwrap());
    assert_eq!(state["annotations"]["org.example.key"], "value");
    assert_eq!(state["pid"].to_string(), fs::read_to_string(pid_file).unwrap());
    assert!(!bundle.rootfs().join("here").exists(), "it runs before its start");
    bundle.ok(&["start", &bundle.id]);
    assert_eq!(output.all(), "hello\nwrote /here\n");
    bundle.until("stopped");
    assert_eq!(bundle.state()["pid"], 0);
    bundle.ok(&["delete", &bundle.id]);
    bundle.fails(&["state", &bundle.id], "does not exist");
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}

fn run_is_all_of_it() {
    let mut bundle = Bundle::new("out hello then exit 7");
    let said = bundle.run();
    assert_eq!((said.code, said.out.as_str()), (7, "hello\n"), "{said:?}");
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
    bundle.config["process"]["args"] = serde_json::json!(["/not-there"]);
    let said = bundle.run();
    assert!(said.code != 0 && said.err.contains("exec \"/not-there\": no such file or directory"), "{said:?}");
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
    // Created for somebody else's start, it fails at once.
    bundle.refused("exec \"/not-there\": no such file or directory");
    bundle.config["process"]["args"] = serde_json::json!(["not-there"]);
    bundle.refused("exec \"not-there\": executable file not found in $PATH");
    bundle.config["process"]["args"] = serde_json::json!(["/etc"]);
    bundle.refused("exec \"/etc\": permission denied");
    bundle.config["process"]["args"] = serde_json::json!(["/etc/passwd"]);
    bundle.refused("exec \"/etc/passwd\": permission denied");
}

fn wrong_moments() {
    let bundle = Bundle::new("sleep");
    let id = bundle.id.as_str();
    for command in ["state", "start", "delete"] {
        bundle.fails(&[command], "id is missing");
        bundle.fails(&[command, id], "does not exist");
    }
    bundle.fails(&["kill", id, "KILL"], "does not exist");
    bundle.ok(&["delete", "--force", id]);
    let _output = bundle.create();
    bundle.fails(&["create", "--bundle", bundle.path().to_str().unwrap(), id], "already exists");
    bundle.fails(&["delete", id], "created, not stopped");
    bundle.ok(&["start", id]);
    bundle.fails(&["start", id], "running, not created");
    bundle.fails(&["delete", id], "running, not stopped");
    assert_eq!(bundle.state()["status"], "running");
    bundle.ok(&["kill", id, "KILL"]);
    bundle.until("stopped");
    bundle.fails(&["kill", id, "TERM"], "container not running");
    bundle.fails(&["start", id], "stopped, not created");
    bundle.ok(&["delete", id]);
    bundle.fails(&["delete", id], "does not exist");
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}

fn signals() {
    let mut bundle = Bundle::new("sleep");
    // Without a pid namespace of its own, it is no init, which is spared what it does not handle.
    bundle.config["linux"]["namespaces"] = serde_json::json!([{ "type": "mount" }]);
    bundle.config["hostname"] = "".into();
    for signal in ["USR1", "SIGTERM", "9"] {
        let _output = bundle.create();
        bundle.ok(&["start", &bundle.id]);
        bundle.fails(&["kill", &bundle.id, "NOPE"], "invalid signal");
        bundle.ok(&["kill", &bundle.id, signal]);
        bundle.until("stopped");
        bundle.ok(&["delete", &bundle.id]);
    }
    // The last one is of those that have no names.
    for signal in ["KILL", "RTMIN+3"] {
        let _output = bundle.create();
        bundle.ok(&["start", &bundle.id]);
        bundle.ok(&["kill", "--all", &bundle.id, signal]);
        bundle.until("stopped");
        bundle.ok(&["delete", &bundle.id]);
    }
}

fn without_a_process() {
    let mut bundle = Bundle::new("sleep");
    bundle.config.as_object_mut().unwrap().remove("process");
    let _output = bundle.create();
    bundle.fails(&["start", &bundle.id], "process: was not set");
    bundle.ok(&["delete", "--force", &bundle.id]);
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}

fn pause_and_resume() {
    let bundle = Bundle::new("sleep");
    let _output = bundle.create();
    bundle.ok(&["start", &bundle.id]);
    bundle.ok(&["pause", &bundle.id]);
    assert_eq!(bundle.state()["status"], "paused");
    bundle.ok(&["resume", &bundle.id]);
    assert_eq!(bundle.state()["status"], "running");
    bundle.ok(&["pause", &bundle.id]);
    bundle.ok(&["delete", "--force", &bundle.id]);
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}

fn lists() {
    let bundle = Bundle::new("out up then sleep");
    let mut output = bundle.create();
    assert_eq!(bundle.ok(&["list", "--quiet"]).trim(), bundle.id);
    assert!(bundle.ok(&["list"]).contains("created"));
    bundle.ok(&["start", &bundle.id]);
    assert_eq!(output.line(), "up");
    let list: serde_json::Value = serde_json::from_str(&bundle.ok(&["list", "--format", "json"])).unwrap();
    assert_eq!(list[0]["status"], "running");
    let pids: Vec<u64> = serde_json::from_str(&bundle.ok(&["ps", "--format", "json", &bundle.id])).unwrap();
    assert_eq!(pids, [bundle.state()["pid"].as_u64().unwrap()]);
    bundle.ok(&["delete", "--force", &bundle.id]);
    assert_eq!(bundle.ok(&["list", "--quiet"]), "");
    let features: serde_json::Value = serde_json::from_str(&bundle.ok(&["features"])).unwrap();
    assert!(features["ociVersionMax"].is_string());
}

fn changes_of_the_bundle_come_too_late() {
    let mut bundle = Bundle::new("out first");
    let output = bundle.create();
    bundle.plays("out second");
    bundle.config["root"]["path"] = "elsewhere".into();
    bundle.save();
    bundle.ok(&["start", &bundle.id]);
    assert_eq!(output.all(), "first\n");
    until("it ends", || bundle.state()["status"] == "stopped");
    bundle.ok(&["delete", &bundle.id]);
}
