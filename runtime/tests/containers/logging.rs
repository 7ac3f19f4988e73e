//! Output, from the pipes to the readers.

use std::time::{Duration, SystemTime};

use std::os::unix::net::UnixDatagram;

use runtime::{LogConfig, LogForward, LogOptions, LogStream, LogTarget, RuntimeError, SyslogAddress};

use super::fixture::Fixture;

pub const TESTS: &[(&str, fn())] = &[
    ("logging::streams_and_odd_bytes", streams_and_odd_bytes),
    ("logging::tail_and_times", tail_and_times),
    ("logging::rotation", rotation),
    ("logging::following", following),
    ("logging::a_broken_log_never_blocks", a_broken_log_never_blocks),
    ("logging::no_log_at_all", no_log_at_all),
    ("logging::log_daemons", log_daemons),
    ("logging::a_log_daemon_that_is_away", a_log_daemon_that_is_away),
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
    config.log = LogConfig { max_size: 64 << 10, max_files: 3, ..LogConfig::default() };
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
    config.log = LogConfig { max_size: 64 << 10, max_files: 20, ..LogConfig::default() };
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
    config.log = LogConfig { max_size: 4096, max_files: 2, ..LogConfig::default() };
    let runtime = fixture.runtime();
    fixture.tokio.block_on(runtime.create(config)).unwrap();
    std::fs::remove_dir_all(fixture.config.data_dir.join("containers/full/log")).unwrap();
    fixture.tokio.block_on(runtime.start("full")).unwrap();
    assert_eq!(fixture.wait("full").code, 5);
}

fn no_log_at_all() {
    let fixture = Fixture::new();
    let mut config = fixture.config("silent", "flood 1000 then exit 3");
    config.log.files = false;
    fixture.start(config);
    assert_eq!(fixture.wait("silent").code, 3);
    let refused = fixture.tokio.block_on(fixture.runtime().logs("silent", LogOptions::default()));
    assert!(matches!(refused, Err(RuntimeError::LogUnreadable)));
    assert_eq!(refused.unwrap_err().to_string(), "configured logging driver does not support reading");
    let dir = fixture.config.data_dir.join("containers/silent/log");
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), 0);
}

fn forwarded(target: LogTarget) -> LogConfig {
    let forward = LogForward {
        target,
        tag: "the-tag".into(),
        container_name: "web.1".into(),
        image_name: "web:1".into(),
        fields: [("com.example.label".to_owned(), "value".to_owned())].into(),
        buffer: LogForward::BUFFER,
    };
    LogConfig { forward: Some(forward), ..LogConfig::default() }
}

fn receive(socket: &UnixDatagram) -> String {
    let mut bytes = vec![0; 64 << 10];
    socket.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    let count = socket.recv(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes[..count]).into_owned()
}

fn log_daemons() {
    let fixture = Fixture::new();
    let (journal, syslog) = (fixture.path().join("journal"), fixture.path().join("syslog"));
    let (journal_socket, syslog_socket) = (UnixDatagram::bind(&journal).unwrap(), UnixDatagram::bind(&syslog).unwrap());
    let mut config = fixture.config("journalled", &format!("err problem then out {}", "y".repeat(20_000)));
    config.log = forwarded(LogTarget::Journal(journal));
    fixture.run(config);
    // Two streams are two pipes: which of them is read first is not said.
    let mut entries = [receive(&journal_socket), receive(&journal_socket), receive(&journal_socket)];
    entries.sort();
    let has = |entry: &str, fields: &[&str]| {
        for field in fields {
            assert!(format!("\n{entry}").contains(&format!("\n{field}\n")), "no {field} in {entry}");
        }
    };
    let of_all = [
        "CONTAINER_ID=journalled",
        "CONTAINER_ID_FULL=journalled",
        "CONTAINER_NAME=web.1",
        "CONTAINER_TAG=the-tag",
        "SYSLOG_IDENTIFIER=the-tag",
        "IMAGE_NAME=web:1",
        "COM_EXAMPLE_LABEL=value",
    ];
    entries.iter().for_each(|entry| has(entry, &of_all));
    has(&entries[0], &["MESSAGE=problem", "PRIORITY=3"]);
    assert!(!entries[0].contains("PARTIAL"), "{}", entries[0]);
    has(&entries[1], &["PRIORITY=6", "CONTAINER_PARTIAL_ORDINAL=2", "CONTAINER_PARTIAL_LAST=true"]);
    has(&entries[2], &["PRIORITY=6", "CONTAINER_PARTIAL_ORDINAL=1", "CONTAINER_PARTIAL_MESSAGE=true"]);
    // What is sent on can be read here as well, unless that is switched off.
    assert_eq!(fixture.logs("journalled", LogOptions::default()).len(), 3);

    let mut config = fixture.config("syslogged", "out hello");
    let address = SyslogAddress::Unix(syslog);
    config.log = LogConfig { files: false, ..forwarded(LogTarget::Syslog { address, facility: 16 }) };
    fixture.start(config);
    let line = receive(&syslog_socket);
    assert!(line.starts_with("<134>1 ") && line.contains(" the-tag ") && line.ends_with(" - - hello\n"), "{line}");
    assert_eq!(fixture.wait("syslogged").code, 0);
    let refused = fixture.tokio.block_on(fixture.runtime().logs("syslogged", LogOptions::default()));
    assert!(matches!(refused, Err(RuntimeError::LogUnreadable)));
}

/// Nobody listens: the container runs as if nothing were, what is lost is counted, and who comes later gets the rest.
fn a_log_daemon_that_is_away() {
    let fixture = Fixture::new();
    let path = fixture.path().join("later");
    let mut config = fixture.config("alone", "flood 1000 then hup then out after then exit 5");
    let forward = LogTarget::Syslog { address: SyslogAddress::Unix(path.clone()), facility: 3 };
    config.log = forwarded(forward);
    config.log.forward.as_mut().unwrap().buffer = 4096;
    fixture.start(config);
    fixture.until_output("alone", "waiting");
    let lost = fixture.dropped("alone");
    assert!((900..1000).contains(&lost), "{lost}");
    let socket = UnixDatagram::bind(&path).unwrap();
    // As soon as one has come there is room for another.
    let mut lines = vec![receive(&socket)];
    fixture.signal("alone", runtime::Signal::HUP);
    while !lines.last().is_some_and(|line| line.ends_with(" after\n")) {
        lines.push(receive(&socket));
    }
    assert_eq!(fixture.wait("alone").code, 5);
    let lost = fixture.dropped("alone");
    assert_eq!(lines.len() as u64 + lost, 1002, "all that was not lost came");
    assert_eq!(fixture.output("alone").lines().count(), 1002, "the files have everything");
}
