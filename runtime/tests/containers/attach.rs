//! A container's own streams: its terminal, its input, and those who listen.

use std::time::Duration;

use runtime::{ContainerConfig, LogStream, OutputPiece, RuntimeError};
use tokio::sync::mpsc;

use super::fixture::{Fixture, until};

pub const TESTS: &[(&str, fn())] = &[
    ("attach::nothing_is_lost_after_attaching", nothing_is_lost_after_attaching),
    ("attach::several_at_once", several_at_once),
    ("attach::a_terminal", a_terminal),
    ("attach::standard_input", standard_input),
    ("attach::a_slow_reader_is_left_behind", a_slow_reader_is_left_behind),
    ("attach::across_a_restart_of_the_daemon", across_a_restart_of_the_daemon),
];

/// Reads to the end: standard output, standard error, and the last remark.
fn all(fixture: &Fixture, mut pieces: mpsc::Receiver<OutputPiece>) -> (Vec<u8>, Vec<u8>, Option<String>) {
    let (mut out, mut err, mut remark) = (Vec::new(), Vec::new(), None);
    fixture.tokio.block_on(async {
        while let Some(piece) = tokio::time::timeout(Duration::from_secs(20), pieces.recv()).await.expect("it ends") {
            match piece {
                OutputPiece::Output(LogStream::Stdout, data) => out.extend_from_slice(&data),
                OutputPiece::Output(LogStream::Stderr, data) => err.extend_from_slice(&data),
                OutputPiece::Remark(text) => remark = Some(text),
            }
        }
    });
    (out, err, remark)
}

/// Reads until this has come.
fn until_read(fixture: &Fixture, pieces: &mut mpsc::Receiver<OutputPiece>, wanted: &str) -> String {
    let mut seen = String::new();
    let reading = async {
        while !seen.contains(wanted) {
            match pieces.recv().await {
                Some(OutputPiece::Output(_, data)) => seen.push_str(&String::from_utf8_lossy(&data)),
                other => panic!("{other:?} instead of {wanted:?}, after {seen:?}"),
            }
        }
    };
    fixture.tokio.block_on(async { tokio::time::timeout(Duration::from_secs(15), reading).await.expect(wanted) });
    seen
}

fn nothing_is_lost_after_attaching() {
    let fixture = Fixture::new();
    let runtime = fixture.runtime();
    let config = fixture.config("loud", "out first then err oops then bare partial then flood 2000");
    let pieces = fixture.tokio.block_on(async {
        runtime.create(config).await.unwrap();
        let pieces = runtime.attach("loud", true, true).await.unwrap();
        runtime.start("loud").await.unwrap();
        pieces
    });
    let (out, err, remark) = all(&fixture, pieces);
    assert!(out.starts_with(b"first\npartialline 00000000 "), "{}", String::from_utf8_lossy(&out[..40]));
    assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), 2001);
    assert_eq!((err.as_slice(), remark), (&b"oops\n"[..], None));
    // The log has the same.
    assert_eq!(fixture.output("loud").into_bytes(), out);
    let late = fixture.tokio.block_on(runtime.attach("loud", true, true));
    assert!(matches!(late, Err(RuntimeError::WrongState { status: "exited", .. })), "{late:?}");
}

fn several_at_once() {
    let fixture = Fixture::new();
    let runtime = fixture.runtime();
    fixture.tokio.block_on(runtime.create(fixture.config("stage", "out a then err b then out c"))).unwrap();
    let attach = |out, err| fixture.tokio.block_on(runtime.attach("stage", out, err)).unwrap();
    let listeners = [attach(true, true), attach(true, false), attach(false, true), attach(false, false)];
    // One that goes away disturbs nobody.
    drop(attach(true, true));
    fixture.tokio.block_on(runtime.start("stage")).unwrap();
    let heard: Vec<_> = listeners.into_iter().map(|pieces| all(&fixture, pieces)).collect();
    let expect = |out: &[u8], err: &[u8]| (out.to_vec(), err.to_vec(), None);
    assert_eq!(heard, [expect(b"a\nc\n", b"b\n"), expect(b"a\nc\n", b""), expect(b"", b"b\n"), expect(b"", b"")]);
}

fn a_terminal() {
    let fixture = Fixture::new();
    let runtime = fixture.runtime();
    let mut config = fixture.config("term", "tty then err to-both then env TERM then line then tty then exit 5");
    config.tty = true;
    let mut pieces = fixture.tokio.block_on(async {
        runtime.create(config).await.unwrap();
        let pieces = runtime.attach("term", true, true).await.unwrap();
        runtime.resize("term", 40, 132).await.unwrap();
        runtime.start("term").await.unwrap();
        pieces
    });
    let seen = until_read(&fixture, &mut pieces, "TERM=xterm\r\n");
    let pts = "Some(\"/dev/pts/0\")";
    assert!(
        seen.starts_with(&format!("{pts} {pts} {pts} size Ok((40, 132)) controlling true\r\nto-both\r\n")),
        "{seen}"
    );
    fixture.tokio.block_on(async {
        runtime.resize("term", 50, 80).await.unwrap();
        runtime.stdin("term").await.unwrap().write_all(b"hello\r").await.unwrap();
    });
    let (rest, err, remark) = all(&fixture, pieces);
    let rest = String::from_utf8_lossy(&rest).into_owned();
    assert!(rest.contains("line \"hello\\n\"\r\n") && rest.contains("size Ok((50, 80))"), "{rest}");
    assert_eq!((err.len(), remark), (0, None));
    assert_eq!(fixture.wait("term").code, 5);
    // The log is what the terminal showed, as one stream.
    let log = fixture.logs("term", runtime::LogOptions::default());
    assert!(log.iter().all(|(stream, _)| *stream == LogStream::Stdout));
    let log: Vec<u8> = log.into_iter().flat_map(|(_, data)| data).collect();
    assert_eq!(String::from_utf8_lossy(&log), format!("{seen}{rest}"));
    // It is the container's console too.
    let mut config = fixture.config("console", "write /dev/console by-another-name");
    config.tty = true;
    assert!(fixture.run(config).1.contains("by-another-name"));
}

fn standard_input() {
    let fixture = Fixture::new();
    let runtime = fixture.runtime();
    let open = |id: &str| ContainerConfig { open_stdin: true, ..fixture.config(id, "echo") };
    fixture.start(open("ears"));
    let mut pieces = fixture.tokio.block_on(runtime.attach("ears", true, false)).unwrap();
    for word in ["one", "two"] {
        // Each with a client of its own; between them it stays open.
        fixture.tokio.block_on(async {
            runtime.stdin("ears").await.unwrap().write_all(format!("{word}\n").as_bytes()).await.unwrap();
        });
        assert_eq!(until_read(&fixture, &mut pieces, "\n"), format!("echo {word}\n"));
    }
    fixture.tokio.block_on(runtime.close_stdin("ears")).unwrap();
    assert_eq!(until_read(&fixture, &mut pieces, "\n"), "end of input\n");
    assert_eq!(fixture.wait("ears").code, 0);
    // Without it there is nothing to write to, and nothing to read.
    assert_eq!(fixture.run(fixture.config("deaf", "echo")).1, "end of input\n");
    fixture.start(fixture.config("closed", "sleep"));
    let none = fixture.tokio.block_on(runtime.stdin("closed"));
    assert!(matches!(none, Err(RuntimeError::ShimRefused { .. })), "{none:?}");
    assert!(fixture.tokio.block_on(runtime.resize("closed", 1, 1)).is_err());
}

/// 18 MB of output and a client that reads none of it: the container ends, the log is whole, other clients have it all,
/// and the client finds what was kept for it and the reason why that is not everything.
fn a_slow_reader_is_left_behind() {
    let fixture = Fixture::new();
    let runtime = fixture.runtime();
    let mut config = fixture.config("torrent", "flood 190000 then exit 6");
    config.log.max_size = 100 << 20;
    let (slow, fast) = fixture.tokio.block_on(async {
        runtime.create(config).await.unwrap();
        let slow = runtime.attach("torrent", true, true).await.unwrap();
        let mut fast = runtime.attach("torrent", true, true).await.unwrap();
        let fast = tokio::spawn(async move {
            let mut bytes = 0;
            while let Some(piece) = fast.recv().await {
                match piece {
                    OutputPiece::Output(_, data) => bytes += data.len(),
                    OutputPiece::Remark(text) => return Err(text),
                }
            }
            Ok(bytes)
        });
        runtime.start("torrent").await.unwrap();
        (slow, fast)
    });
    assert_eq!(fixture.wait("torrent").code, 6);
    let logged: usize =
        fixture.logs("torrent", runtime::LogOptions::default()).iter().map(|(_, data)| data.len()).sum();
    assert_eq!(logged, 190_000 * 95);
    // On a machine that is busy elsewhere even this one may fall behind; then it was told so.
    match fixture.tokio.block_on(fast).unwrap() {
        Ok(bytes) => assert_eq!(bytes, logged),
        Err(remark) => assert!(remark.contains("too slowly"), "{remark}"),
    }
    let (out, _, remark) = all(&fixture, slow);
    assert!(out.starts_with(b"line 00000000 ") && out.len() < logged, "{}", out.len());
    assert!(remark.is_some_and(|text| text.contains("too slowly")));
}

fn across_a_restart_of_the_daemon() {
    let mut fixture = Fixture::new();
    let mut config = ContainerConfig { open_stdin: true, ..fixture.config("lasting", "out ready then echo") };
    config.tty = true;
    fixture.start(config);
    let pieces = fixture.tokio.block_on(fixture.runtime().attach("lasting", true, true)).unwrap();
    fixture.until_output("lasting", "ready");
    fixture.die();
    drop(pieces);
    fixture.open();
    let runtime = fixture.runtime();
    let mut pieces = fixture.tokio.block_on(runtime.attach("lasting", true, true)).unwrap();
    fixture.tokio.block_on(async {
        runtime.stdin("lasting").await.unwrap().write_all(b"again\r").await.unwrap();
    });
    until_read(&fixture, &mut pieces, "echo again\r\n");
    // The end of a terminal's input is a character.
    fixture.tokio.block_on(async {
        runtime.stdin("lasting").await.unwrap().write_all(b"\x04").await.unwrap();
    });
    until_read(&fixture, &mut pieces, "end of input");
    until("it has ended", || matches!(fixture.wait("lasting").code, 0));
}
