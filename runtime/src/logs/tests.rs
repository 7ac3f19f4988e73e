//! Writer and reader against each other.

use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::*;
use crate::config::LogConfig;

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

#[test]
fn a_reader_keeps_its_place_across_rotations() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(dir.path().to_owned(), LogConfig { max_size: 4096, max_files: 4 });
    let mut reader = Reader::new(dir.path().to_owned(), LogOptions::default()).unwrap();
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let mut seen = 0;
    for round in 0..50 {
        for line in 0..20 {
            writer.write(LogStream::Stdout, format!("{:05}\n", round * 20 + line).as_bytes(), at);
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
    let mut again = Writer::new(dir.path().to_owned(), LogConfig::default());
    again.write(LogStream::Stderr, b"again\n", at);
    assert_eq!(all(&mut reader).len(), 1);
    assert_eq!(*numbers(dir.path()).unwrap().last().unwrap(), last + 1);
}

#[test]
fn damage_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(dir.path().to_owned(), LogConfig::default());
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(5);
    writer.write(LogStream::Stdout, b"one\ntwo\nthree\n", at);
    let path = dir.path().join(name_of(1));
    let mut bytes = std::fs::read(&path).unwrap();
    let second = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    bytes[second..second + 10].fill(0);
    bytes.extend_from_slice(b"1970-01-01T00:0");
    std::fs::write(&path, bytes).unwrap();
    let seen = all(&mut Reader::new(dir.path().to_owned(), LogOptions::default()).unwrap());
    assert_eq!(seen.iter().map(|record| &record.data[..]).collect::<Vec<_>>(), [&b"one\n"[..], b"three\n"]);
}

#[test]
fn what_finds_no_room_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let gone = dir.path().join("gone");
    let mut writer = Writer::new(gone.clone(), LogConfig::default());
    writer.write(LogStream::Stdout, b"1\n2\n3\npartial", SystemTime::now());
    writer.finish(LogStream::Stdout, SystemTime::now());
    assert_eq!(writer.dropped(), 4);
    // Room again: it goes on.
    std::fs::create_dir(&gone).unwrap();
    writer.write(LogStream::Stdout, b"5\n", SystemTime::now());
    assert_eq!(writer.dropped(), 4);
    assert_eq!(all(&mut Reader::new(gone, LogOptions::default()).unwrap()).len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Bytes in any pieces come out as they went in, for each stream, however files rotate.
    #[test]
    fn bytes_come_back(
        chunks in prop::collection::vec((any::<bool>(), prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..300)), 0..60),
        big in 0usize..60_000,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(dir.path().to_owned(), LogConfig { max_size: 4096, max_files: 1000 });
        let mut expected = [Vec::new(), Vec::new()];
        let mut feed = |writer: &mut Writer, stream: LogStream, data: &[u8]| {
            expected[usize::from(stream == LogStream::Stderr)].extend_from_slice(data);
            writer.write(stream, data, SystemTime::now());
        };
        for (err, data) in &chunks {
            feed(&mut writer, if *err { LogStream::Stderr } else { LogStream::Stdout }, data);
        }
        feed(&mut writer, LogStream::Stdout, &vec![b'z'; big]);
        writer.finish(LogStream::Stdout, SystemTime::now());
        writer.finish(LogStream::Stderr, SystemTime::now());
        let records = all(&mut Reader::new(dir.path().to_owned(), LogOptions::default()).unwrap());
        let mut seen = [Vec::new(), Vec::new()];
        for record in &records {
            seen[usize::from(record.stream == LogStream::Stderr)].extend_from_slice(&record.data);
        }
        prop_assert_eq!(&seen, &expected);
        let tail = records.len() / 2;
        let last = all(&mut Reader::new(dir.path().to_owned(), LogOptions { tail: Some(tail), ..LogOptions::default() }).unwrap());
        prop_assert_eq!(&last[..], &records[records.len() - tail..]);
    }
}
