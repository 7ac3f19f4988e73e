//! Output, from the pipes to the readers.

use std::time::{Duration, SystemTime};

use runtime::{LogConfig, LogOptions, LogStream};

use super::fixture::Fixture;

pub const TESTS: &[(&str, fn())] = &[
    ("logging::streams_and_odd_bytes", streams_and_odd_bytes),
    ("logging::tail_and_times", tail_and_times),
    ("logging::rotation", rotation),
    ("logging::following", following),
    ("logging::a_broken_log_never_blocks", a_broken_log_never_blocks),
];

fn streams_and_odd_bytes() {
    let fixture = Fixture::new();
    fixture.run(fixture.config("odd", "raw then err problem then bare no-newline"));
    let all = fixture.logs("odd", LogOptions::default());
    let of = |stream| all.iter().filter(|(s, _)| *s == stream).map(|(_, data)| data.as_slice()).collect::<Vec<_>>();
    assert_eq!(of(LogStream::Stdout), [&b"\xff\xfe\0x\n"[..], b"no-newline"]);
    assert_eq!(of(LogStream::Stderr), [b"problem\n"]);
    let only = fixture.logs("odd", LogOptions { stdout: false, ..LogOptions::default() });
    assert_eq!(only, [(LogStream::Stderr, b"problem\n".to_vec())]);
    // A line that is too long comes in pieces, and is whole again when they are put together.
    let long = "y".repeat(40_000);
    fixture.run(fixture.config("long", &format!("out {long}")));
    let pieces = fixture.logs("long", LogOptions::default());
    assert_eq!(pieces.len(), 3);
    assert_eq!(pieces.into_iter().flat_map(|(_, data)| data).collect::<Vec<_>>(), format!("{long}\n").into_bytes());
}

fn tail_and_times() {
    let fixture = Fixture::new();
    let before = SystemTime::now();
    fixture.run(fixture.config("lines", "flood 1000"));
    let count = |options: LogOptions| fixture.logs("lines", options).len();
    assert_eq!(count(LogOptions::default()), 1000);
    assert_eq!(count(LogOptions { tail: Some(0), ..LogOptions::default() }), 0);
    assert_eq!(count(LogOptions { tail: Some(5000), ..LogOptions::default() }), 1000);
    let last = fixture.logs("lines", LogOptions { tail: Some(3), ..LogOptions::default() });
    assert!(last[0].1.starts_with(b"line 00000997 "), "{last:?}");
    assert_eq!(last.len(), 3);
    assert_eq!(count(LogOptions { since: Some(before), ..LogOptions::default() }), 1000);
    assert_eq!(count(LogOptions { since: Some(SystemTime::now()), ..LogOptions::default() }), 0);
    assert_eq!(count(LogOptions { until: Some(before), ..LogOptions::default() }), 0);
}

fn rotation() {
    let fixture = Fixture::new();
    let mut config = fixture.config("rotated", "flood 5000");
    config.log = LogConfig { max_size: 64 << 10, max_files: 3 };
    fixture.run(config);
    let dir = fixture.config.data_dir.join("containers/rotated/log");
    let sizes: Vec<u64> =
        std::fs::read_dir(&dir).unwrap().flatten().map(|entry| entry.metadata().unwrap().len()).collect();
    assert_eq!(sizes.len(), 3, "{sizes:?}");
    assert!(sizes.iter().all(|size| *size <= 64 << 10), "{sizes:?}");
    let kept = fixture.logs("rotated", LogOptions::default());
    let numbers: Vec<usize> =
        kept.iter().map(|(_, line)| String::from_utf8_lossy(&line[5..13]).parse().unwrap()).collect();
    assert_eq!(numbers.last(), Some(&4999));
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "a gap");
    let tail = fixture.logs("rotated", LogOptions { tail: Some(900), ..LogOptions::default() });
    assert_eq!(tail.len(), 900.min(kept.len()));
    assert_eq!(tail.last(), kept.last());
}

fn following() {
    let fixture = Fixture::new();
    let runtime = fixture.runtime();
    let mut config = fixture.config("followed", "flood 3000 then trap");
    config.log = LogConfig { max_size: 1 << 20, max_files: 10 };
    fixture.tokio.block_on(async {
        runtime.create(config).await.unwrap();
        // From before the start to after the end.
        let options = LogOptions { follow: true, ..LogOptions::default() };
        let mut follower = runtime.logs("followed", options.clone()).await.unwrap();
        runtime.start("followed").await.unwrap();
        let mut lines = 0;
        while let Some(record) = tokio::time::timeout(Duration::from_secs(15), follower.recv()).await.unwrap() {
            lines += 1;
            if record.data.starts_with(b"trapping") {
                runtime.signal("followed", runtime::Signal::TERM).await.unwrap();
            }
        }
        assert_eq!(lines, 3002);
        // A follower of what has ended is a reader.
        let mut late = runtime.logs("followed", LogOptions { tail: Some(1), ..options }).await.unwrap();
        assert_eq!(late.recv().await.unwrap().data, "terminated\n");
        assert!(late.recv().await.is_none());
    });
}

/// The log's directory is taken away, as a full or broken disk would: the container must run on.
fn a_broken_log_never_blocks() {
    let fixture = Fixture::new();
    let mut config = fixture.config("full", "flood 20000 then exit 5");
    config.log = LogConfig { max_size: 4096, max_files: 2 };
    let runtime = fixture.runtime();
    fixture.tokio.block_on(runtime.create(config)).unwrap();
    std::fs::remove_dir_all(fixture.config.data_dir.join("containers/full/log")).unwrap();
    fixture.tokio.block_on(runtime.start("full")).unwrap();
    assert_eq!(fixture.wait("full").code, 5);
}
