//! Profiles of AppArmor, on a kernel that has it and `shoal-test.apparmor` loaded, as `.ci/machine containers` does.

use std::fs;

use runtime::{AppArmor, ContainerConfig};

use super::exec::{playing, ran};
use super::fixture::{Fixture, chain};
use super::harness::in_machine;

pub const TESTS: &[(&str, fn())] = &[("apparmor::profiles_confine", profiles_confine)];

const PROFILE: &str = "shoal-test";
const WORDS: &str = "cat /proc/self/attr/apparmor/current then write /forbidden secret then cat /forbidden";

fn profiles_confine() {
    let loaded = fs::read_to_string("/sys/kernel/security/apparmor/profiles").unwrap_or_default();
    let line = format!("{PROFILE} (enforce)");
    if !loaded.lines().any(|loaded| loaded == line) {
        println!("skipped: no kernel with AppArmor and the profile {PROFILE}");
        assert!(!fs::exists("/policy").unwrap() || !in_machine(), "the machine has loaded it");
        return;
    }
    let fixture = Fixture::new();
    let with = |id: &str, apparmor: AppArmor, words: &str| ContainerConfig { apparmor, ..fixture.config(id, words) };
    let named = || AppArmor::Named(PROFILE.to_owned());
    let (_, output) = fixture.run(with("named", named(), WORDS));
    assert_eq!(output, format!("{line}\nwrote /forbidden\ncat /forbidden: Permission denied (os error 13)\n"));
    // Another user's, whose filter and capabilities are set before.
    let user = ContainerConfig { user: "web".into(), no_new_privileges: true, ..with("user", named(), WORDS) };
    assert!(fixture.run(user).1.starts_with(&line));
    for (id, apparmor) in [("unconfined", AppArmor::Unconfined), ("default", AppArmor::Default)] {
        let (_, output) = fixture.run(with(id, apparmor, WORDS));
        assert_eq!(output, "unconfined\nwrote /forbidden\nsecret", "{id}: no profile docker-default is loaded");
    }
    // What comes into the container later is confined as well.
    fixture.start(with("lives", named(), "sleep"));
    assert!(ran(&fixture, "lives", playing(WORDS)).starts_with(&line));
    let missing = with("missing", AppArmor::Named("not-there".to_owned()), "sleep");
    let error = chain(&fixture.tokio.block_on(fixture.runtime().create(missing)).unwrap_err());
    assert!(error.contains("not-there") && error.contains("not loaded"), "{error}");
}
