//! A disk that is full: containers run on, what is lost is counted, ends are recorded, and deleting makes room.

use std::fs;
use std::time::{Duration, Instant};

use runtime::{LogConfig, Signal};

use super::fixture::{Fixture, until};

pub const TESTS: &[(&str, fn())] = &[
    ("disk::a_full_disk_costs_log_records_only", a_full_disk_costs_log_records_only),
    ("disk::an_end_is_recorded_on_a_full_disk", an_end_is_recorded_on_a_full_disk),
    ("disk::deeper_than_any_path", deeper_than_any_path),
    ("disk::what_cannot_be_recorded_can_be_deleted", what_cannot_be_recorded_can_be_deleted),
];

/// So many levels are more than a stack has room for, and than a process may have files open.
fn deeper_than_any_path() {
    let (fixture, _disk) = Fixture::on_small_disk(64 << 20);
    // The disk itself is a mount.
    let before = fixture.leftovers();
    let (exit, output) = fixture.run(fixture.config("deep", "dig 30000"));
    assert_eq!((exit.code, output.as_str()), (0, "dug\n"));
    fixture.tokio.block_on(fixture.runtime().delete("deep")).unwrap();
    assert_eq!(fixture.leftovers(), before);
}

fn a_full_disk_costs_log_records_only() {
    let (fixture, disk) = Fixture::on_small_disk(8 << 20);
    let mut config = fixture.config("full", "out before then hup then flood 20000 then hup then out after then exit 4");
    config.log = LogConfig { max_size: 1 << 20, max_files: 2, ..LogConfig::default() };
    fixture.start(config);
    fixture.until_output("full", "waiting");
    disk.fill();
    fixture.signal("full", Signal::HUP);
    // The container goes on to its next wait, which it says as well: all that it wrote was kept or is counted.
    let kept = || fixture.output("full").lines().count() as u64;
    until("the flood is over", || fixture.dropped("full") + kept() == 2 + 20_000 + 1);
    assert!(fixture.dropped("full") > 10_000, "{} records lost", fixture.dropped("full"));
    disk.free();
    fixture.signal("full", Signal::HUP);
    assert_eq!(fixture.wait("full").code, 4);
    let output = fixture.output("full");
    assert!(output.starts_with("before\nwaiting\n") && output.ends_with("after\n"), "{output}");
    assert_eq!(fixture.dropped("full") + kept(), 2 + 20_000 + 1 + 1, "counted to the end, and kept with it");
    drop(fixture);
    drop(disk);
}

fn an_end_is_recorded_on_a_full_disk() {
    let (mut fixture, disk) = Fixture::on_small_disk(4 << 20);
    fixture.start(fixture.config("ends", "hup then exit 6"));
    fixture.until_output("ends", "waiting");
    let reserved = fixture.config.data_dir.join("containers/ends/.exit.tmp");
    until("room for the record is kept", || reserved.exists());
    disk.fill();
    fixture.signal("ends", Signal::HUP);
    assert_eq!(fixture.wait("ends").code, 6);
    // It is the record, not a guess: another daemon reads the same.
    fixture.die();
    fixture.open();
    let exit = fixture.wait("ends");
    assert_eq!((exit.code, exit.shim_lost), (6, false));
    fixture.tokio.block_on(fixture.runtime().delete("ends")).unwrap();
    drop(fixture);
    drop(disk);
}

fn what_cannot_be_recorded_can_be_deleted() {
    let (fixture, disk) = Fixture::on_small_disk(4 << 20);
    fixture.start(fixture.config("stuck", "hup then exit 6"));
    fixture.until_output("stuck", "waiting");
    let dir = fixture.config.data_dir.join("containers/stuck");
    until("room for the record is kept", || dir.join(".exit.tmp").exists());
    // Something is in the way of the record for ever.
    fs::remove_file(dir.join(".exit.tmp")).unwrap();
    fs::create_dir(dir.join(".exit.tmp")).unwrap();
    disk.fill();
    fixture.signal("stuck", Signal::HUP);
    let begin = Instant::now();
    fixture.tokio.block_on(fixture.runtime().delete("stuck")).unwrap();
    assert!(begin.elapsed() < Duration::from_secs(9), "{:?}", begin.elapsed());
    assert!(!dir.exists());
    drop(fixture);
    drop(disk);
}
