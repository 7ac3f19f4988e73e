//! Records that nobody has written like that, with checksums that are right: the daemon starts, and gets rid of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::fixture::Fixture;
use super::fuzz_engine::{Source, fuzz};

pub const TESTS: &[(&str, fn())] = &[("records::strange_ones_stop_no_daemon", strange_ones_stop_no_daemon)];

/// Magic, format, kind, key; then the payload's length and the checksum.
const LENGTH_AT: usize = 12;
const CHECKSUM_AT: usize = 20;
const HEADER: usize = 24;

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    entries.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap())).collect()
}

/// The same file with another payload.
fn damaged(source: &mut Source, name: &str, file: &[u8]) -> Vec<u8> {
    let mut payload = file[HEADER..].to_vec();
    if name == "process" {
        // Of another boot: nobody shall look for processes by what comes out of this.
        payload[5] = if payload[5] == b'x' { b'y' } else { b'x' };
        let mut rest = payload.split_off(30);
        source.mangle(&mut rest);
        payload.extend(rest);
    } else {
        source.mangle(&mut payload);
    }
    let mut bytes = file[..LENGTH_AT].to_vec();
    bytes.extend((payload.len() as u64).to_be_bytes());
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&bytes);
    checksum.update(&payload);
    bytes.extend(checksum.finalize().to_be_bytes());
    assert_eq!(bytes.len(), CHECKSUM_AT + 4);
    bytes.extend(payload);
    bytes
}

fn strange_ones_stop_no_daemon() {
    let mut fixture = Fixture::new();
    let (exit, _) = fixture.run(fixture.config("odd", "exit 3"));
    assert_eq!(exit.code, 3);
    let note = fixture.runtime();
    fixture.tokio.block_on(note.put_note("odd", "node", b"what somebody needs again".to_vec())).unwrap();
    drop(note);
    fixture.die();
    let dir = fixture.config.data_dir.join("containers/odd");
    let whole = files(&dir);
    for name in ["container", "exit", "process", "note-node"] {
        assert!(whole.contains_key(name), "{name}");
    }
    fuzz("strange_ones_stop_no_daemon", 60, |source| {
        fs::create_dir_all(&dir).unwrap();
        let names: Vec<&String> = whole.keys().collect();
        let chosen = source.pick(&names).clone();
        for (name, bytes) in &whole {
            let bytes = match name {
                name if *name != chosen => bytes.clone(),
                // The log has no such header.
                name if name.starts_with("log") => source.bytes(40),
                name => damaged(source, name, bytes),
            };
            fs::write(dir.join(name), bytes).unwrap();
        }
        fixture.open();
        let runtime = fixture.runtime();
        fixture.tokio.block_on(async {
            for container in runtime.list().await {
                assert_eq!(container.id, "odd");
                let _ = runtime.inspect("odd").await;
                let _ = runtime.note("odd", "node").await;
                let _ = runtime.wait("odd").await;
                runtime.delete("odd").await.unwrap();
            }
        });
        drop(runtime);
        assert!(!dir.exists());
        assert!(fixture.leftovers().is_empty(), "{:?}", fixture.leftovers());
        fixture.die();
    });
}
