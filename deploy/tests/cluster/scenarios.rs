//! The text scenarios in `scenarios/`. `UPDATE_EXPECT=1` writes the answers that were given into the files.

use std::path::Path;

#[track_caller]
fn check(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster/scenarios").join(format!("{name}.txt"));
    let expected = std::fs::read_to_string(&path).expect("the scenario");
    let found = crate::sim::run_script(&expected);
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(&path, &found).expect("write the scenario");
        return;
    }
    let differs = expected.lines().zip(found.lines()).position(|(expected, found)| expected != found);
    let line = differs.map_or(expected.lines().count(), |line| line) + 1;
    assert!(expected == found, "{name}.txt differs from line {line} on; found:\n{found}");
}

macro_rules! scenarios {
    ($($name:ident),+ $(,)?) => {$(
        #[test]
        fn $name() {
            check(stringify!($name));
        }
    )+};
}

scenarios!(
    daemon_restart,
    scale,
    node_down,
    restart,
    update,
    update_failure,
    placement,
    drain,
    let_go,
    global,
    network,
    history
);
