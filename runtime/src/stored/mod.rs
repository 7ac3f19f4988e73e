//! The files that make a container outlive its daemon: one protobuf message each, behind a header with a checksum.
//!
//! Layout: 8 bytes magic · format u16 · key id u32 (0: clear) · length u32 · crc32 of the payload u32 · payload; all
//! little endian. Files are written beside their place, synced and renamed into it, so a reader sees all or nothing.

mod messages;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use prost::Message;

pub(crate) use messages::{StoredContainer, StoredExit, StoredProcess, config_from, config_into, nanos, time_from};

use crate::RuntimeError;

/// A kind of file.
pub(crate) trait Stored: Message + Default {
    /// The first eight bytes.
    const MAGIC: [u8; 8];
}

impl Stored for StoredContainer {
    const MAGIC: [u8; 8] = *b"SHOALCTR";
}

impl Stored for StoredProcess {
    const MAGIC: [u8; 8] = *b"SHOALPRC";
}

impl Stored for StoredExit {
    const MAGIC: [u8; 8] = *b"SHOALEXT";
}

/// Names inside of a container's directory.
pub(crate) mod names {
    pub(crate) const CONTAINER: &str = "container";
    pub(crate) const PROCESS: &str = "process";
    pub(crate) const EXIT: &str = "exit";
    pub(crate) const LOG: &str = "log";
}

const FORMAT: u16 = 1;
const CLEAR: u32 = 0;
const HEADER: usize = 8 + 2 + 4 + 4 + 4;
/// A configuration with everything at its bounds is below 6 MiB.
const MAX_PAYLOAD: usize = 8 << 20;

/// Whether a write must survive a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// Synced before the rename, and the directory after it.
    Synced,
    /// For what is worth nothing after a reboot: the rename alone is atomic for all who live in this boot.
    ThisBoot,
}

/// Why a file cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unreadable {
    reason: String,
    /// It is whole, but of a release or under a key that we do not know: not ours to throw away.
    foreign: bool,
}

/// Encodes a message with its header.
pub(crate) fn encode<M: Stored>(message: &M) -> Vec<u8> {
    let payload = message.encode_to_vec();
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend_from_slice(&M::MAGIC);
    bytes.extend_from_slice(&FORMAT.to_le_bytes());
    bytes.extend_from_slice(&CLEAR.to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&payload).to_le_bytes());
    bytes.extend_from_slice(&payload);
    bytes
}

/// Decodes what [`encode`] made, or says what is wrong with it.
pub(crate) fn decode<M: Stored>(bytes: &[u8]) -> Result<M, Unreadable> {
    let damaged = |reason: String| Unreadable { reason, foreign: false };
    let foreign = |reason: String| Unreadable { reason, foreign: true };
    let Some((header, payload)) = bytes.split_at_checked(HEADER) else {
        return Err(damaged(format!("{} bytes are shorter than a header", bytes.len())));
    };
    let number = |at: usize| {
        let mut four = [0; 4];
        four.copy_from_slice(&header[at..at + 4]);
        u32::from_le_bytes(four)
    };
    if header[..8] != M::MAGIC {
        return Err(damaged("not a file of this kind".to_owned()));
    }
    let format = u16::from_le_bytes([header[8], header[9]]);
    if format != FORMAT {
        return Err(foreign(format!("format {format} is not known to this release")));
    }
    if number(10) != CLEAR {
        return Err(foreign(format!("encrypted with unknown key {}", number(10))));
    }
    if number(14) as usize != payload.len() {
        return Err(damaged(format!("{} bytes of payload where the header says {}", payload.len(), number(14))));
    }
    if number(18) != crc32fast::hash(payload) {
        return Err(damaged("checksum mismatch".to_owned()));
    }
    M::decode(payload).map_err(|error| damaged(error.to_string()))
}

/// Writes `<dir>/<name>`, replacing it atomically.
pub(crate) fn write<M: Stored>(
    dir: &Path,
    name: &str,
    message: &M,
    durability: Durability,
) -> Result<(), RuntimeError> {
    let path = dir.join(name);
    let failed = |operation| {
        let path = path.clone();
        move |source: io::Error| RuntimeError::Storage { operation, path, source }
    };
    let temporary = dir.join(format!(".{name}.tmp"));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(failed("create"))?;
    file.write_all(&encode(message)).map_err(failed("write"))?;
    if durability == Durability::Synced {
        file.sync_data().map_err(failed("sync"))?;
    }
    std::fs::rename(&temporary, &path).map_err(failed("rename"))?;
    if durability == Durability::Synced {
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("sync the directory of"))?;
    }
    Ok(())
}

/// Makes a file that was written for this boot survive a power cut too. Until then a cut may leave it torn, which its
/// checksum shows.
pub(crate) fn sync(dir: &Path, name: &str) -> Result<(), RuntimeError> {
    let path = dir.join(name);
    let synced = File::open(&path).and_then(|file| file.sync_data());
    synced.and_then(|()| File::open(dir)?.sync_all()).map_err(|source| RuntimeError::Storage {
        operation: "sync",
        path,
        source,
    })
}

/// Reads `<dir>/<name>`; `None` when it is not there.
pub(crate) fn read<M: Stored>(dir: &Path, name: &str) -> Result<Option<M>, RuntimeError> {
    let path = dir.join(name);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(RuntimeError::Storage { operation: "open", path, source }),
    };
    let mut bytes = Vec::new();
    let limit = (HEADER + MAX_PAYLOAD) as u64 + 1;
    if let Err(source) = file.take(limit).read_to_end(&mut bytes) {
        return Err(RuntimeError::Storage { operation: "read", path, source });
    }
    decode(&bytes).map(Some).map_err(|Unreadable { reason, foreign }| RuntimeError::Stored { path, reason, foreign })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::*;
    use std::path::PathBuf;

    fn full_config() -> ContainerConfig {
        ContainerConfig {
            id: "abc".into(),
            labels: [("a".to_owned(), "b".to_owned())].into(),
            hostname: "h".into(),
            layers: vec![PathBuf::from("/l/0")],
            args: vec!["x".into(), "".into()],
            env: vec!["A=1".into()],
            cwd: "/w".into(),
            user: "u:g".into(),
            groups: vec!["7".into()],
            readonly_root: true,
            mounts: vec![
                Mount {
                    kind: MountKind::Bind { source: "/s".into(), recursive: true, propagation: Propagation::RSlave },
                    target: "/t".into(),
                    readonly: true,
                },
                Mount { kind: MountKind::Tmpfs { size: Some(1), mode: None }, target: "/u".into(), readonly: false },
            ],
            files: EtcFiles { hosts: "hosts".into(), resolv_conf: "resolv".into() },
            resources: Resources {
                cpu_limit_nanos: Some(1),
                cpu_reservation_nanos: Some(2),
                memory_limit: Some(3),
                memory_reservation: Some(4),
                pids_limit: Some(5),
            },
            capabilities: Capabilities { add: vec!["A".into()], drop: vec!["B".into()] },
            no_new_privileges: true,
            ulimits: vec![Ulimit { name: "nofile".into(), soft: -1, hard: 9 }],
            sysctls: [("net.a".to_owned(), "1".to_owned())].into(),
            oom_score_adj: -5,
            stop_signal: Some("INT".into()),
            log: LogConfig { max_size: 5000, max_files: 2 },
            init: true,
            tty: true,
        }
    }

    #[test]
    fn a_configuration_comes_back_whole() {
        for config in [full_config(), ContainerConfig::default()] {
            let stored = StoredContainer { created_at_nanos: 5, config: Some(config_into(&config)) };
            let back: StoredContainer = decode(&encode(&stored)).unwrap();
            assert_eq!(config_from(back.config.unwrap_or_default()), Ok(config));
        }
    }

    #[test]
    fn damage_is_noticed_at_every_byte() {
        let bytes = encode(&StoredExit { code: 3, finished_at_nanos: 77, ..StoredExit::default() });
        assert_eq!(decode::<StoredExit>(&bytes).unwrap().code, 3);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x41;
            assert!(decode::<StoredExit>(&damaged).is_err(), "byte {at}");
            assert!(decode::<StoredExit>(&bytes[..at]).is_err(), "cut at {at}");
        }
        assert!(decode::<StoredProcess>(&bytes).is_err(), "another kind");
    }

    const FIXTURE_CRC: u32 = 0x00883966;

    /// Files of this release's first day must be readable for ever.
    #[test]
    fn a_file_of_format_1_is_readable() {
        let mut bytes = b"SHOALEXT\x01\x00\x00\x00\x00\x00\x07\x00\x00\x00".to_vec();
        bytes.extend_from_slice(&FIXTURE_CRC.to_le_bytes());
        bytes.extend_from_slice(b"\x08\x89\x01\x10\x09\x18\x01");
        let exit: StoredExit = decode(&bytes).unwrap();
        assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, Some(9), true));
    }
}
