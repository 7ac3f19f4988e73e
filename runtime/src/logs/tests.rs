//! Output and reader against each other.

use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::*;
use crate::config::LogConfig;

fn output(dir: &std::path::Path, max_size: u64, max_files: u32) -> Output {
    let config = LogConfig { max_size, max_files, ..LogConfig::default() };
    Output::new(dir.to_owned(), &config, "abc", 1)
}

fn reader(dir: &std::path::Path, options: LogOptions) -> Reader {
    Reader::new(dir.to_owned(), options).unwrap()
}

fn all(reader: &mut Reader) -> Vec<LogRecord> {
    let mut records = Vec::new();
    loop {
        let batch = reader.next_batch().unwrap();
        if batch.is_empty() {
            return records;
        }
        records.extend(batch);
    }
}

fn second(number: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000 + number)
}

#[test]
fn a_reader_keeps_its_place_across_rotations() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = output(dir.path(), 4096, 4);
    let mut reader = reader(dir.path(), LogOptions::default());
    let mut seen = 0;
    for round in 0..50 {
        for line in 0..20 {
            writer.write(LogStream::Stdout, format!("{:05}\n", round * 20 + line).as_bytes(), second(0));
        }
        for record in all(&mut reader) {
            assert_eq!(record.data, format!("{seen:05}\n"));
            seen += 1;
        }
    }
    assert_eq!(seen, 1000);
    assert_eq!(numbers(dir.path()).unwrap().len(), 4);
    // A writer of a later life goes on in a file of its own.
    let last = *numbers(dir.path()).unwrap().last().unwrap();
    let mut again = output(dir.path(), 4096, 4);
    again.write(LogStream::Stderr, b"again\n", second(1));
    assert_eq!(all(&mut reader).len(), 1);
    assert_eq!(*numbers(dir.path()).unwrap().last().unwrap(), last + 1);
}

#[test]
fn a_reader_who_is_behind_holds_what_the_rotation_removes() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = output(dir.path(), 4096, 1);
    let mut reader = reader(dir.path(), LogOptions { follow: true, ..LogOptions::default() });
    let mut seen = Vec::new();
    for number in 0..1000 {
        writer.write(LogStream::Stdout, format!("{number:05} {}\n", "x".repeat(100)).as_bytes(), second(0));
        // Files are removed as soon as there is a next one; each is noticed, and read only now and then.
        if number % 20 == 0 {
            reader.look_ahead().unwrap();
        }
        if number % 100 == 0 {
            seen.extend(all(&mut reader));
        }
    }
    seen.extend(all(&mut reader));
    let numbers: Vec<usize> =
        seen.iter().map(|record| String::from_utf8_lossy(&record.data[..5]).parse().unwrap()).collect();
    assert_eq!(numbers, (0..1000).collect::<Vec<_>>());
    assert_eq!(super::numbers(dir.path()).unwrap().len(), 1);
}

#[test]
fn damage_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = output(dir.path(), 1 << 20, 3);
    writer.write(LogStream::Stdout, b"one\ntwo\nthree\n", second(5));
    let path = dir.path().join(name_of(1));
    let mut bytes = std::fs::read(&path).unwrap();
    let second = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    bytes[second..second + 10].fill(0);
    bytes.extend_from_slice(b"1970-01-01T00:0");
    std::fs::write(&path, &bytes).unwrap();
    for tail in [None, Some(2), Some(100)] {
        let seen = all(&mut reader(dir.path(), LogOptions { tail, ..LogOptions::default() }));
        assert_eq!(seen.iter().map(|record| &record.data[..]).collect::<Vec<_>>(), [&b"one\n"[..], b"three\n"]);
    }
    // Much damage: zeros, as a power cut leaves them.
    bytes.extend(vec![0; 200_000]);
    bytes.extend_from_slice(b"\n1970-01-01T00:00:09.000000000Z stdout F after\n");
    std::fs::write(&path, bytes).unwrap();
    let seen = all(&mut reader(dir.path(), LogOptions::default()));
    assert_eq!(seen.last().unwrap().data, "after\n");
    let last = all(&mut reader(dir.path(), LogOptions { tail: Some(1), ..LogOptions::default() }));
    assert_eq!(last[0].data, "after\n");
}

#[test]
fn what_finds_no_room_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let gone = dir.path().join("gone");
    let mut writer = output(&gone, 1 << 20, 3);
    writer.write(LogStream::Stdout, b"1\n2\n3\npartial", SystemTime::now());
    writer.finish(LogStream::Stdout, SystemTime::now());
    assert_eq!(writer.dropped(), 4);
    // Room again: it goes on.
    std::fs::create_dir(&gone).unwrap();
    writer.write(LogStream::Stdout, b"5\n", SystemTime::now());
    assert_eq!(writer.dropped(), 4);
    assert_eq!(all(&mut reader(&gone, LogOptions::default())).len(), 1);
}

#[test]
fn an_output_without_files_writes_none() {
    let dir = tempfile::tempdir().unwrap();
    let config = LogConfig { files: false, ..LogConfig::default() };
    let mut writer = Output::new(dir.path().to_owned(), &config, "abc", 1);
    writer.write(LogStream::Stdout, b"gone\n", SystemTime::now());
    writer.close();
    assert_eq!(writer.dropped(), 0);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// The last lines of a log, and those since a time, are found without a walk over all of it.
#[test]
fn a_long_log_is_not_read_whole() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = output(dir.path(), 1 << 20, 1000);
    for number in 0..40_000u64 {
        writer.write(LogStream::Stdout, format!("{number:06} {}\n", "x".repeat(200)).as_bytes(), second(number));
    }
    let first = |records: &[LogRecord]| String::from_utf8_lossy(&records[0].data[..6]).into_owned();
    let read_before = bytes_read();
    let last = all(&mut reader(dir.path(), LogOptions { tail: Some(10), ..LogOptions::default() }));
    assert_eq!((last.len(), first(&last)), (10, "039990".to_owned()));
    let since = all(&mut reader(dir.path(), LogOptions { since: Some(second(39_500)), ..LogOptions::default() }));
    assert_eq!((since.len(), first(&since)), (500, "039500".to_owned()));
    let options = LogOptions { since: Some(second(20_000)), until: Some(second(20_009)), ..LogOptions::default() };
    let between = all(&mut reader(dir.path(), options));
    assert_eq!((between.len(), first(&between)), (10, "020000".to_owned()));
    let options = LogOptions { since: Some(second(39_995)), tail: Some(1000), ..LogOptions::default() };
    let both = all(&mut reader(dir.path(), options));
    assert_eq!((both.len(), first(&both)), (5, "039995".to_owned()));
    // Of 10 MB. The counter is the thread's, which runs no other test meanwhile.
    let read = bytes_read() - read_before;
    assert!(read < 4 << 20, "{read} bytes were read");
}

fn bytes_read() -> u64 {
    let io = std::fs::read_to_string("/proc/thread-self/io").unwrap();
    io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Bytes in any pieces come out as they went in, for each stream, however files rotate; and whatever part of them is
    /// asked for is that part.
    #[test]
    fn bytes_come_back(
        chunks in prop::collection::vec((any::<bool>(), prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..300)), 0..60),
        big in 0usize..60_000,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = output(dir.path(), 4096, 1000);
        let mut expected = [Vec::new(), Vec::new()];
        let mut feed = |writer: &mut Output, stream: LogStream, data: &[u8], at: SystemTime| {
            expected[stream.index()].extend_from_slice(data);
            writer.write(stream, data, at);
        };
        for (number, (err, data)) in chunks.iter().enumerate() {
            feed(&mut writer, if *err { LogStream::Stderr } else { LogStream::Stdout }, data, second(number as u64));
        }
        feed(&mut writer, LogStream::Stdout, &vec![b'z'; big], second(100));
        writer.finish(LogStream::Stdout, second(101));
        writer.finish(LogStream::Stderr, second(102));
        let records = all(&mut reader(dir.path(), LogOptions::default()));
        let mut seen = [Vec::new(), Vec::new()];
        for record in &records {
            seen[record.stream.index()].extend_from_slice(&record.data);
        }
        prop_assert_eq!(&seen, &expected);
        prop_assert!(records.windows(2).all(|pair| pair[0].at < pair[1].at));
        let only = |options: &LogOptions| {
            let mut some: Vec<_> = records.iter().filter(|record| options.wants(record)).cloned().collect();
            some.drain(..some.len() - options.tail.unwrap_or(usize::MAX).min(some.len()));
            some
        };
        for options in [
            LogOptions { tail: Some(records.len() / 2), ..LogOptions::default() },
            LogOptions { tail: Some(3), stdout: false, ..LogOptions::default() },
            LogOptions { tail: Some(5), until: Some(second(30)), ..LogOptions::default() },
            LogOptions { since: Some(second(20)), ..LogOptions::default() },
            LogOptions { since: Some(second(10)), until: Some(second(40)), tail: Some(9), ..LogOptions::default() },
        ] {
            prop_assert_eq!(all(&mut reader(dir.path(), options.clone())), only(&options));
        }
    }
}
