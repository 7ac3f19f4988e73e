//! The program that becomes process 1 of a container that asks for one; its source is `runtime/reaper/main.rs`.
//!
//! It is executed from a sealed memory file, so there is no file, on the host or in the container, that a container
//! could overwrite through `/proc/1/exe` and that anybody else would execute afterwards.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;

/// Empty where `build.rs` cannot make it.
static PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/reaper"));

/// A memory file with the program, which nobody can change any more.
pub(crate) fn reaper() -> io::Result<OwnedFd> {
    if PROGRAM.is_empty() {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "init is not supported on this architecture"));
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = match memfd_create(c"init", flags | MemfdFlags::EXEC) {
        // Before Linux 6.3 all memory files could be executed.
        Err(Errno::INVAL) => memfd_create(c"init", flags)?,
        other => other?,
    };
    let mut rest = PROGRAM;
    while !rest.is_empty() {
        let count = rustix::io::write(&file, rest)?;
        rest = rest.get(count..).unwrap_or_default();
    }
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_small_and_cannot_be_changed() {
        assert!((1000..16_000).contains(&PROGRAM.len()), "{} bytes", PROGRAM.len());
        let file = reaper().unwrap();
        assert_eq!(rustix::io::pwrite(&file, b"x", 0), Err(Errno::PERM));
        assert_eq!(rustix::fs::ftruncate(&file, 0), Err(Errno::PERM));
        assert_eq!(fcntl_add_seals(&file, SealFlags::FUTURE_WRITE), Err(Errno::PERM));
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let again = std::fs::OpenOptions::new().write(true).open(path);
        assert!(again.is_err() || again.is_ok_and(|file| rustix::io::write(file, b"x") == Err(Errno::PERM)));
    }
}
