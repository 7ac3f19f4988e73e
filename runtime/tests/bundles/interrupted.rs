//! Commands that are killed half-way: whatever they leave, `delete` removes.

use std::fs;
use std::process::Stdio;

use serde_json::json;

use crate::Test;
use crate::bundle::{Bundle, Killed, until};

pub const TESTS: &[Test] = &[
    ("interrupted::create_is_killed", create_is_killed),
    ("interrupted::run_is_killed", run_is_killed),
    ("interrupted::remains_of_a_directory", remains_of_a_directory),
];

/// Killed while a hook of the runtime's runs: the first process is there, and its pid is not yet known to anyone.
fn create_is_killed() {
    let mut bundle = Bundle::new("out no");
    let program = bundle.rootfs().join("payload");
    let fifo = bundle.path().join("reached");
    let args = json!(["hook", "payload", "write", fifo, "yes", "then", "sleep"]);
    bundle.config["hooks"] = json!({ "createRuntime": [{ "path": program, "args": args, "timeout": 5 }] });
    bundle.save();
    let words = ["create", "--bundle", bundle.path().to_str().unwrap(), &bundle.id];
    let child = bundle.command(&words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut create = Killed(child);
    until("the hook runs", || fifo.exists());
    assert_eq!(bundle.state()["status"], "creating");
    create.0.kill().unwrap();
    create.0.wait().unwrap();
    until("nobody makes it any more", || bundle.state()["status"] == "stopped");
    bundle.fails(&["start", &bundle.id], "stopped, not created");
    bundle.ok(&["delete", &bundle.id]);
    // Also the hook has ended, which nobody waits for.
    until("nothing is left", || bundle.leftovers().is_empty());
}

fn run_is_killed() {
    let bundle = Bundle::new("write /up yes then sleep");
    bundle.save();
    let words = ["run", "--bundle", bundle.path().to_str().unwrap(), &bundle.id];
    let child = bundle.command(&words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut run = Killed(child);
    until("it runs", || bundle.rootfs().join("up").exists());
    run.0.kill().unwrap();
    run.0.wait().unwrap();
    assert_eq!(bundle.state()["status"], "running");
    bundle.ok(&["delete", "--force", &bundle.id]);
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}

fn remains_of_a_directory() {
    let bundle = Bundle::new("out no");
    let dir = bundle.path().join("state").join(&bundle.id);
    fs::create_dir_all(&dir).unwrap();
    bundle.fails(&["state", &bundle.id], "does not exist");
    bundle.save();
    bundle.fails(&["create", "--bundle", bundle.path().to_str().unwrap(), &bundle.id], "already exists");
    bundle.ok(&["delete", &bundle.id]);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("state"), "SHRT no").unwrap();
    fs::write(dir.join(".state.tmp"), "half").unwrap();
    bundle.ok(&["delete", "--force", &bundle.id]);
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}
