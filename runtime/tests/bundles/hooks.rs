//! Hooks: when each runs, what it is given, and what becomes of a container when one fails.

use std::fs;

use serde_json::json;

use crate::Test;
use crate::bundle::Bundle;

pub const TESTS: &[Test] = &[
    ("hooks::order_and_state", order_and_state),
    ("hooks::before_the_start_a_failure_ends_it", before_the_start_a_failure_ends_it),
    ("hooks::after_the_start_a_failure_is_a_warning", after_the_start_a_failure_is_a_warning),
    ("hooks::timeouts", timeouts),
    ("hooks::are_the_hosts_beside_a_joined_namespace", are_the_hosts_beside_a_joined_namespace),
];

const KINDS: [&str; 6] = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// A bundle whose hooks of all kinds write a line each.
fn telling(words: &str) -> Bundle {
    let mut bundle = Bundle::new(words);
    for kind in KINDS {
        let inside = kind == "startContainer";
        let program = if inside { "/payload".into() } else { bundle.rootfs().join("payload") };
        let file = if inside { "/told".into() } else { bundle.rootfs().join("told") };
        let args = json!(["hook", "payload", "hook", kind, file]);
        bundle.config["hooks"][kind] = json!([{ "path": program, "args": args, "env": [format!("HOOK={kind}!")] }]);
    }
    bundle
}

fn told(bundle: &Bundle) -> Vec<String> {
    let text = fs::read_to_string(bundle.rootfs().join("told")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn order_and_state() {
    let bundle = telling("sleep");
    let _output = bundle.create();
    let pid = bundle.state()["pid"].to_string();
    let line = |kind: &str, status: &str, pid: &str| format!("{kind} {kind}! {status} {pid} \"value\"");
    let mut expected = vec![
        line("prestart", "created", &pid),
        line("createRuntime", "created", &pid),
        line("createContainer", "created", "1"),
    ];
    assert_eq!(told(&bundle), expected);
    bundle.ok(&["start", &bundle.id]);
    expected.extend([line("startContainer", "created", "1"), line("poststart", "running", &pid)]);
    assert_eq!(told(&bundle), expected);
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    bundle.until("stopped");
    bundle.ok(&["delete", &bundle.id]);
    expected.push(line("poststop", "stopped", "0"));
    assert_eq!(told(&bundle), expected);
}

fn before_the_start_a_failure_ends_it() {
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let mut bundle = telling("sleep");
        bundle.config["hooks"][kind][0]["args"] = json!(["hook", "payload", "exit", "3"]);
        bundle.refused("exited with code 3");
        assert!(told(&bundle).last().is_some_and(|line| line.starts_with("poststop")), "{kind}: {:?}", told(&bundle));
    }
    let mut bundle = telling("write /ran yes");
    bundle.config["hooks"]["startContainer"][0]["args"] = json!(["hook", "payload", "exit", "3"]);
    let _output = bundle.create();
    bundle.fails(&["start", &bundle.id], "startContainer hook number 1: exited with code 3");
    assert!(!bundle.rootfs().join("ran").exists());
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
    assert!(told(&bundle).last().is_some_and(|line| line.starts_with("poststop")), "{:?}", told(&bundle));
}

fn after_the_start_a_failure_is_a_warning() {
    let mut bundle = telling("out fine");
    for kind in ["poststart", "poststop"] {
        let good = bundle.config["hooks"][kind][0].clone();
        let bad = json!({ "path": bundle.rootfs().join("payload"), "args": ["hook", "payload", "exit", "3"] });
        bundle.config["hooks"][kind] = json!([bad, good]);
    }
    let said = bundle.run();
    assert_eq!((said.code, said.out.as_str()), (0, "fine\n"), "{said:?}");
    assert!(said.err.contains("poststart hook") && said.err.contains("poststop hook"), "{said:?}");
    let kinds: Vec<String> =
        told(&bundle).iter().filter_map(|line| line.split(' ').next().map(str::to_owned)).collect();
    assert_eq!(kinds, KINDS);
}

fn timeouts() {
    for kind in ["createRuntime", "createContainer"] {
        let mut bundle = Bundle::new("sleep");
        let program = bundle.rootfs().join("payload");
        bundle.config["hooks"][kind] = json!([{ "path": program, "args": ["hook", "payload", "sleep"], "timeout": 1 }]);
        bundle.refused("killed");
    }
}

/// The container is born in another's namespace of pids, and the runtime's hooks are not.
fn are_the_hosts_beside_a_joined_namespace() {
    let first = Bundle::new("sleep");
    let _first_output = first.create();
    first.ok(&["start", &first.id]);
    let mut bundle = telling("sleep");
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    let own = namespaces.iter_mut().find(|namespace| namespace["type"] == "pid").unwrap();
    own["path"] = json!(format!("/proc/{}/ns/pid", first.state()["pid"]));
    let _output = bundle.create();
    let pid = bundle.state()["pid"].to_string();
    let kinds =
        |lines: &[String]| lines.iter().map(|line| line.split(' ').next().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(kinds(&told(&bundle)), ["prestart", "createRuntime", "createContainer"]);
    assert!(told(&bundle)[..2].iter().all(|line| line.contains(&format!("created {pid} "))), "{:?}", told(&bundle));
    bundle.ok(&["start", &bundle.id]);
    bundle.ok(&["delete", "--force", &bundle.id]);
    assert_eq!(kinds(&told(&bundle))[3..], ["startContainer", "poststart", "poststop"]);
    // Whatever is told here, it is not the host's: this number is another process's there.
    assert!(!told(&bundle)[2].contains(&format!("created {pid} ")), "{:?}", told(&bundle));
}
