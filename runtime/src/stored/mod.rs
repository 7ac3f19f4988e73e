//! The files that make a container outlive its daemon: one protobuf message each, behind a header with a checksum.
//!
//! `SHRT` · format (u16) · kind (u16) · key id (u32, 0 = clear) · length (u64) · CRC-32 of all that and the payload
//! (u32) · payload. Integers are big endian. This frame is the same in every format, and a format number says only how
//! to read the payload: so a release tells a file of a later one, which it must not touch, from a damaged one.
//!
//! Files are written beside their place and renamed into it, so a reader sees all or nothing. They survive the deaths of
//! daemon and shim from then on, and a power cut from the sync on.

#[cfg(test)]
mod fuzz;
mod log;
mod messages;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use prost::Message;

pub(crate) use messages::{
    StoredBundle, StoredContainer, StoredExit, StoredHook, StoredNote, StoredProcess, StoredVolume, config_from,
    config_into, nanos, time_from,
};

use crate::RuntimeError;

/// What a file holds; a number is never used again for something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Kind {
    /// `container`
    Container = 1,
    /// `process`
    Process = 2,
    /// `exit`
    Exit = 3,
    /// `state`, of `shoal runtime`
    Bundle = 100,
    /// `volume`
    Volume = 200,
    /// `note-...`
    Note = 201,
}

/// The message of a kind of file.
pub(crate) trait Stored: Message + Default {
    /// Which kind.
    const KIND: Kind;
}

impl Stored for StoredContainer {
    const KIND: Kind = Kind::Container;
}

impl Stored for StoredProcess {
    const KIND: Kind = Kind::Process;
}

impl Stored for StoredExit {
    const KIND: Kind = Kind::Exit;
}

impl Stored for StoredBundle {
    const KIND: Kind = Kind::Bundle;
}

impl Stored for StoredVolume {
    const KIND: Kind = Kind::Volume;
}

impl Stored for StoredNote {
    const KIND: Kind = Kind::Note;
}

/// Names inside of a container's directory, and of a volume's.
pub(crate) mod names {
    pub(crate) const VOLUME: &str = "volume";
    pub(crate) const CONTAINER: &str = "container";
    pub(crate) const PROCESS: &str = "process";
    pub(crate) const EXIT: &str = "exit";
    pub(crate) const LOG: &str = "log";
    pub(crate) const UPPER: &str = "upper";
}

const MAGIC: [u8; 4] = *b"SHRT";
const FORMAT: u16 = 1;
const CLEAR: u32 = 0;
/// What the checksum covers of the header: all but itself.
const CHECKED: usize = 4 + 2 + 2 + 4 + 8;
const HEADER: usize = CHECKED + 4;
/// More than an exit record ever is, header included, and one block of any disk.
const RESERVED: usize = 512;
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
    frame(FORMAT, M::KIND, CLEAR, &message.encode_to_vec())
}

fn frame(format: u16, kind: Kind, key: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&format.to_be_bytes());
    bytes.extend_from_slice(&(kind as u16).to_be_bytes());
    bytes.extend_from_slice(&key.to_be_bytes());
    bytes.extend_from_slice(&(payload.len() as u64).to_be_bytes());
    let crc = checksum(&bytes, payload);
    bytes.extend_from_slice(&crc.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

fn checksum(head: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(payload);
    hasher.finalize()
}

/// Decodes what [`encode`] made, or says what is wrong with it.
pub(crate) fn decode<M: Stored>(bytes: &[u8]) -> Result<M, Unreadable> {
    let damaged = |reason: String| Unreadable { reason, foreign: false };
    let foreign = |reason: String| Unreadable { reason, foreign: true };
    let Some((header, payload)) = bytes.split_at_checked(HEADER) else {
        return Err(damaged(format!("{} bytes are shorter than a header", bytes.len())));
    };
    if header[..4] != MAGIC {
        return Err(damaged("does not begin with SHRT".to_owned()));
    }
    let h = header;
    let length = u64::from_be_bytes([h[12], h[13], h[14], h[15], h[16], h[17], h[18], h[19]]);
    if length != payload.len() as u64 {
        return Err(damaged(format!("{} bytes of payload where the header says {length}", payload.len())));
    }
    if u32::from_be_bytes([h[20], h[21], h[22], h[23]]) != checksum(&h[..CHECKED], payload) {
        return Err(damaged("checksum mismatch".to_owned()));
    }
    // Only from here on does the header say what somebody has written.
    let format = u16::from_be_bytes([h[4], h[5]]);
    if format != FORMAT {
        return Err(foreign(format!("format {format} is not known to this release")));
    }
    let key = u32::from_be_bytes([h[8], h[9], h[10], h[11]]);
    if key != CLEAR {
        return Err(foreign(format!("encrypted with unknown key {key}")));
    }
    let kind = u16::from_be_bytes([h[6], h[7]]);
    if kind != M::KIND as u16 {
        return Err(damaged(format!("holds kind {kind}, not {}", M::KIND as u16)));
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
    let (temporary, bytes) = (temporary(dir, name), encode(message));
    // Cut only after the write: what was reserved for it would be given up first.
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&temporary)
        .map_err(failed("create"))?;
    file.write_all(&bytes).and_then(|()| file.set_len(bytes.len() as u64)).map_err(failed("write"))?;
    if durability == Durability::Synced {
        file.sync_data().map_err(failed("sync"))?;
    }
    std::fs::rename(&temporary, &path).map_err(failed("rename"))?;
    if durability == Durability::Synced {
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("sync the directory of"))?;
    }
    Ok(())
}

/// Makes files that were written for this boot survive a power cut too; those that are not there are fine. Until then a
/// cut may leave them torn, which their checksums show.
pub(crate) fn sync(dir: &Path, names: &[&str]) -> Result<(), RuntimeError> {
    for path in names.iter().map(|name| dir.join(name)).chain([dir.to_owned()]) {
        match File::open(&path).and_then(|file| file.sync_all()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other.map_err(|source| RuntimeError::Storage { operation: "sync", path, source })?,
        }
    }
    Ok(())
}

/// Keeps room on the disk for `<dir>/<name>`, so that [`write`] finds it when the disk is full by then.
pub(crate) fn reserve(dir: &Path, name: &str) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(temporary(dir, name))?;
    match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, RESERVED as u64) {
        Err(rustix::io::Errno::OPNOTSUPP) => (&file).write_all(&[0; RESERVED]),
        other => Ok(other?),
    }
}

/// Where a file is written before it is renamed into its place.
fn temporary(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!(".{name}.tmp"))
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

    pub(super) fn full_config() -> ContainerConfig {
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
                    kind: MountKind::Bind {
                        source: "/s".into(),
                        recursive: true,
                        readonly_below: true,
                        propagation: Propagation::RSlave,
                    },
                    target: "/t".into(),
                    readonly: true,
                },
                Mount { kind: MountKind::Tmpfs { size: Some(1), mode: None }, target: "/u".into(), readonly: false },
                Mount {
                    kind: MountKind::Volume(crate::VolumeMount {
                        name: "data".into(),
                        subpath: "sub/dir".into(),
                        source: "/v/data/_data".into(),
                        copy: true,
                        ..crate::VolumeMount::default()
                    }),
                    target: "/v".into(),
                    readonly: true,
                },
                Mount {
                    kind: MountKind::Bind {
                        source: "/s".into(),
                        recursive: false,
                        readonly_below: true,
                        propagation: Propagation::RShared,
                    },
                    target: "/w".into(),
                    readonly: false,
                },
            ],
            files: EtcFiles { hosts: "hosts".into(), resolv_conf: "resolv".into() },
            resources: Resources {
                cpu_limit_nanos: Some(1),
                cpu_reservation_nanos: Some(2),
                memory_limit: Some(3),
                memory_reservation: Some(4),
                pids_limit: Some(5),
                oci: serde_json::from_str(r#"{"cpu": {"cpus": "0"}, "unified": {"memory.high": "7"}}"#).unwrap(),
            },
            capabilities: Capabilities { add: vec!["A".into()], drop: vec!["B".into()] },
            no_new_privileges: true,
            ulimits: vec![Ulimit { name: "nofile".into(), soft: -1, hard: 9 }],
            sysctls: [("net.a".to_owned(), "1".to_owned())].into(),
            oom_score_adj: -5,
            stop_signal: Some("INT".into()),
            log: LogConfig {
                files: false,
                max_size: 5000,
                max_files: 2,
                forward: Some(LogForward {
                    target: LogTarget::Syslog {
                        address: SyslogAddress::Tcp(([10, 0, 0, 1], 514).into()),
                        facility: 16,
                    },
                    tag: "web".into(),
                    container_name: "web.1.x".into(),
                    image_name: "web:1".into(),
                    fields: [("K".to_owned(), "v".to_owned())].into(),
                    buffer: 1 << 20,
                }),
            },
            init: true,
            tty: true,
            seccomp: Seccomp::Custom("{}".into()),
            apparmor: AppArmor::Named("mine".into()),
            selinux: Some(SelinuxLabel { level: "s0".into(), ..SelinuxLabel::default() }),
            id_mappings: Some(IdMappings {
                uids: vec![IdRange { inside: 0, outside: 100_000, count: 65_536 }],
                gids: vec![IdRange { inside: 0, outside: 200_000, count: 65_536 }],
            }),
            private_files: Vec::new(),
            open_stdin: true,
            stdin_once: true,
            host_network: true,
            lasting: true,
        }
    }

    #[test]
    fn a_configuration_comes_back_whole() {
        let unconfined = ContainerConfig {
            seccomp: Seccomp::Unconfined,
            apparmor: AppArmor::Unconfined,
            ..ContainerConfig::default()
        };
        for config in [full_config(), unconfined, ContainerConfig::default()] {
            let stored = StoredContainer { created_at_nanos: 5, config: Some(config_into(&config)) };
            let back: StoredContainer = decode(&encode(&stored)).unwrap();
            assert_eq!(config_from(back.config.unwrap_or_default()), Ok(config));
        }
    }

    /// Flips each bit, and cuts at each byte: all of it is damage, none of it looks like another release.
    #[track_caller]
    fn damage_is_damage<M: Stored>(whole: &[u8]) {
        for bit in 0..whole.len() * 8 {
            let mut bent = whole.to_vec();
            bent[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(decode::<M>(&bent), Err(Unreadable { foreign: false, .. })), "bit {bit}");
        }
        for cut in 0..whole.len() {
            assert!(matches!(decode::<M>(&whole[..cut]), Err(Unreadable { foreign: false, .. })), "cut at {cut}");
        }
    }

    #[test]
    fn damage_is_noticed_at_every_bit() {
        let exit = StoredExit { code: 3, finished_at_nanos: 77, ..StoredExit::default() };
        let bytes = encode(&exit);
        assert_eq!(decode::<StoredExit>(&bytes), Ok(exit));
        damage_is_damage::<StoredExit>(&bytes);
        damage_is_damage::<StoredExit>(&encode(&StoredExit::default()));
        let config = Some(config_into(&full_config()));
        damage_is_damage::<StoredContainer>(&encode(&StoredContainer { created_at_nanos: 5, config }));
        let kind = decode::<StoredProcess>(&bytes);
        assert_eq!(kind, Err(Unreadable { reason: "holds kind 3, not 2".into(), foreign: false }));
    }

    #[test]
    fn only_a_whole_file_is_foreign() {
        for (format, key, reason) in [
            (FORMAT + 1, CLEAR, "format 2 is not known to this release"),
            (u16::MAX, 9, "format 65535 is not known to this release"),
            (FORMAT, 9, "encrypted with unknown key 9"),
        ] {
            let bytes = frame(format, Kind::Exit, key, b"not for this release");
            let foreign = Unreadable { reason: reason.into(), foreign: true };
            assert_eq!(decode::<StoredExit>(&bytes), Err(foreign));
            damage_is_damage::<StoredExit>(&bytes);
        }
    }

    /// Files of this release's first day must be readable for ever. Their checksums were not made by this code.
    #[test]
    fn files_of_format_1_are_readable() {
        let container = b"SHRT\0\x01\0\x01\0\0\0\0\0\0\0\0\0\0\0\x09\xf0\xea\x9b\xed\x08\x05\x12\x05\x0a\x03abc";
        let stored: StoredContainer = decode(container).unwrap();
        assert_eq!(stored.created_at_nanos, 5);
        assert_eq!(config_from(stored.config.unwrap_or_default()).unwrap().id, "abc");
        // With more in it, as release 0.1 wrote it: a label, a bind mount, the rotation of the log.
        let container =
            b"SHRT\x00\x01\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x005\x85\xa8+\xf2\x08\x05\x121\x0a\
            \x03abc\x12\x06\x0a\x01k\x12\x01v*\x07/bin/shZ\x10\x0a\x02/t\x10\x01\x1a\x08\x0a\x02/s\x10\x01\
            \x18\x02\xd0\x01\x80\x80\x80\x05\xd8\x01\x03";
        let config = config_from(decode::<StoredContainer>(container).unwrap().config.unwrap_or_default()).unwrap();
        let bind = MountKind::Bind {
            source: "/s".into(),
            recursive: true,
            readonly_below: true,
            propagation: Propagation::RSlave,
        };
        let expected = ContainerConfig {
            id: "abc".into(),
            labels: [("k".to_owned(), "v".to_owned())].into(),
            args: vec!["/bin/sh".into()],
            mounts: vec![Mount { kind: bind, target: "/t".into(), readonly: true }],
            // Kept in files, sent nowhere: what there was then.
            log: LogConfig { files: true, max_size: 10 << 20, max_files: 3, forward: None },
            ..ContainerConfig::default()
        };
        assert_eq!(config, expected);
        let process = b"SHRT\0\x01\0\x02\0\0\0\0\0\0\0\0\0\0\0\x10\xe2\x9c\xfb\x11\
            \x0a\x04boot\x10\x07\x18\x80\x01\x20\x08\x28\x81\x01";
        let process: StoredProcess = decode(process).unwrap();
        let numbers = (process.shim_pid, process.shim_start_ticks, process.pid, process.start_ticks);
        assert_eq!((process.boot_id.as_str(), numbers), ("boot", (7, 128, 8, 129)));
        let exit = b"SHRT\0\x01\0\x03\0\0\0\0\0\0\0\0\0\0\0\x07\xa8\x87\x72\xb9\x08\x89\x01\x10\x09\x18\x01";
        let exit: StoredExit = decode(exit).unwrap();
        assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, Some(9), true));
        let exit: StoredExit = decode(
            b"SHRT\x00\x01\x00\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x08\xc6r\xea\x19\x08\x07 c0b8\x0c",
        )
        .unwrap();
        let told = (exit.code, exit.started_at_nanos, exit.finished_at_nanos, exit.dropped_log_records);
        assert_eq!(told, (7, Some(98), 99, 12));
    }
}
