//! The few file operations that the log and the snapshots need, as a trait so that tests can lose,
//! tear and refuse writes.

#[cfg(test)]
pub(crate) mod fault;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// One flat directory of files.
pub(crate) trait Disk: Send + Sync + 'static {
    /// The names of all files.
    fn list(&self) -> io::Result<Vec<String>>;
    /// The whole of a file.
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;
    /// Makes or replaces a file with `parts`, filled with zeros up to `len`. Its contents are durable on
    /// return, its name only after [`sync_dir`](Disk::sync_dir). A failure leaves no file.
    fn create(&self, name: &str, parts: &[&[u8]], len: u64) -> io::Result<()>;
    /// Opens an existing file for writing.
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    /// Renames a file over another; durable after [`sync_dir`](Disk::sync_dir).
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file; durable after [`sync_dir`](Disk::sync_dir).
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes names durable.
    fn sync_dir(&self) -> io::Result<()>;
}

/// A file open for writing inside its allocated length.
pub(crate) trait DiskFile: Send {
    /// Writes all of `bytes` at `offset`.
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes everything written so far durable.
    fn sync(&mut self) -> io::Result<()>;
}

/// Whether an error says that there is no room, which passes, unlike a broken disk.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// A directory of the host.
pub(crate) struct HostDisk {
    dir: PathBuf,
}

impl HostDisk {
    /// Makes the directory (mode 0700) and its parents when absent.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            File::open(parent)?.sync_all()?;
        }
        Ok(Self { dir: dir.to_owned() })
    }

    fn fill(mut file: File, parts: &[&[u8]], len: u64) -> io::Result<()> {
        static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
        let mut left = len;
        for part in parts {
            file.write_all(part)?;
            left = left.saturating_sub(part.len() as u64);
        }
        // Zeros are written rather than only reserved: a later write into blocks that hold data needs no
        // change of the file's metadata, which makes each fdatasync one disk write.
        while left > 0 {
            let chunk = left.min(ZEROS.len() as u64);
            file.write_all(&ZEROS[..chunk as usize])?;
            left -= chunk;
        }
        file.sync_all()
    }
}

impl Disk for HostDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            names.extend(entry?.file_name().into_string().ok());
        }
        names.sort();
        Ok(names)
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.dir.join(name))
    }

    fn create(&self, name: &str, parts: &[&[u8]], len: u64) -> io::Result<()> {
        use std::os::unix::fs::OpenOptionsExt;
        let path = self.dir.join(name);
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        Self::fill(file, parts, len).inspect_err(|_| {
            // The half-made file would keep the room that is short; that it is gone is all that matters.
            let _ = fs::remove_file(&path);
        })
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(HostFile(OpenOptions::new().write(true).open(self.dir.join(name))?)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.dir.join(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }
}

struct HostFile(File);

impl DiskFile for HostFile {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }
}
