//! Target: the files that make a container outlive its daemon, and what daemons and shims say to each other.
//!
//! Damage is found by the checksum; here the checksum is right, as if a strange release or a stranger had written the
//! file. Asked of each: an error, or something that is the same when it is written and read again.

use super::tests::full_config;
use super::*;
use crate::fuzz::{Source, fuzz};
use crate::protocol;

fn samples<M: Stored + Clone>(whole: M) -> Vec<Vec<u8>> {
    vec![whole.encode_to_vec(), M::default().encode_to_vec()]
}

/// A payload that is nearly one of the samples: damaged, or parts of two.
fn payload(source: &mut Source, samples: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = samples[source.below(samples.len())].clone();
    if source.one_in(3) {
        let other = &samples[source.below(samples.len())];
        let (at, from) = (source.below(bytes.len()), source.below(other.len()));
        bytes.splice(at.., other[from..].iter().copied());
    }
    if !source.one_in(10) {
        source.mangle(&mut bytes);
    }
    bytes
}

fn read_again<M: Stored + PartialEq + std::fmt::Debug>(bytes: &[u8]) -> Option<M> {
    let message = decode::<M>(&frame(FORMAT, M::KIND, CLEAR, bytes)).ok()?;
    assert_eq!(decode::<M>(&encode(&message)).as_ref(), Ok(&message));
    Some(message)
}

#[test]
fn stored_files() {
    let map = || [("a".to_owned(), "b".to_owned())].into();
    let hook = StoredHook { path: "/h".into(), args: vec!["x".into()], env: vec!["A=b".into()], timeout_secs: Some(3) };
    let bundle = StoredBundle {
        id: "c1".into(),
        bundle: "/b".into(),
        rootfs: "/b/rootfs".into(),
        annotations: map(),
        pid: 7,
        poststop: vec![hook],
        config: b"{}".to_vec(),
        ..StoredBundle::default()
    };
    let exit = StoredExit { code: 3, signal: Some(9), finished_at_nanos: 77, ..StoredExit::default() };
    let process = StoredProcess { boot_id: "boot".into(), shim_pid: 7, shim_start_ticks: 8, pid: 9, start_ticks: 10 };
    let volume = StoredVolume { options: map(), labels: map(), owner: "c".into(), ..StoredVolume::default() };
    let all: Vec<Vec<u8>> = [
        samples(StoredContainer { created_at_nanos: 5, config: Some(config_into(&full_config())) }),
        samples(process),
        samples(exit),
        samples(bundle),
        samples(volume),
        samples(StoredNote { bytes: b"note".to_vec() }),
    ]
    .concat();
    let mut whole = 0;
    fuzz("stored_files", 6000, |source| {
        let bytes = payload(source, &all);
        if let Some(stored) = read_again::<StoredContainer>(&bytes)
            && let Ok(config) = config_from(stored.config.unwrap_or_default())
        {
            whole += 1;
            let again: StoredContainer =
                decode(&encode(&StoredContainer { created_at_nanos: 0, config: Some(config_into(&config)) })).unwrap();
            assert_eq!(config_from(again.config.unwrap()), Ok(config));
        }
        if let Some(exit) = read_again::<StoredExit>(&bytes) {
            let _ = (time_from(exit.finished_at_nanos), exit.started_at_nanos.map(time_from));
        }
        read_again::<StoredProcess>(&bytes);
        read_again::<StoredBundle>(&bytes);
        read_again::<StoredVolume>(&bytes);
        read_again::<StoredNote>(&bytes);
        // And with a header that is damaged as well.
        let mut file = frame(FORMAT, Kind::Container, CLEAR, &bytes);
        source.mangle(&mut file);
        let _ = decode::<StoredContainer>(&file);
    });
    assert!(whole > 0);
}

#[test]
fn conversation() {
    let exec = protocol::Ask::State(protocol::Empty {});
    let asks: Vec<Vec<u8>> = vec![
        protocol::frame(&protocol::Request { ask: Some(exec) }),
        protocol::frame(&protocol::Reply { answer: Some(protocol::refused("no")) }),
        b"\x1a\x04\x0a\x02no".to_vec(),
        b"\x00\x00\x00\x0c\x22\x0a\x08\x1e\x12\x01x\x18\x02\x22\x01r".to_vec(),
        protocol::output_header(1, 5).iter().copied().chain(*b"hello").collect(),
    ];
    fuzz("conversation", 6000, |source| {
        let bytes = payload(source, &asks);
        // As it comes over a socket: in pieces.
        let (mut requests, mut replies, mut output) = (Vec::new(), Vec::new(), Vec::new());
        for piece in bytes.chunks(1 + source.below(40)) {
            for buffer in [&mut requests, &mut replies, &mut output] {
                buffer.extend_from_slice(piece);
            }
            while let Ok(Some(_)) = protocol::take::<protocol::Request>(&mut requests) {}
            while let Ok(Some(_)) = protocol::take::<protocol::Reply>(&mut replies) {}
            while let Ok(Some(_)) = protocol::take_output(&mut output) {}
        }
        assert!(requests.len() <= bytes.len() && replies.len() <= bytes.len() && output.len() <= bytes.len());
    });
}
