//! One daemon a network namespace: two would fight over its links and tables.
//!
//! The claim is a listening socket in the abstract namespace, which belongs to the network namespace and vanishes with
//! its holder, however that ends. Who asks is told who holds it.

use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use super::{DaemonError, io_error};

const NAME: &[u8] = b"shoal-daemon";

/// Claims the network namespace for as long as the answer lives.
pub(super) fn claim(data_dir: &Path) -> Result<UnixListener, DaemonError> {
    let addr = SocketAddr::from_abstract_name(NAME).map_err(io_error("cannot claim the network namespace"))?;
    let listener = match UnixListener::bind_addr(&addr) {
        Ok(listener) => listener,
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => return Err(held_by(&addr)),
        Err(error) => return Err(io_error("cannot claim the network namespace")(error)),
    };
    let answering = listener.try_clone().map_err(io_error("cannot claim the network namespace"))?;
    let answer = format!("{} {}\n", std::process::id(), data_dir.display());
    // The thread has nothing to clean up: it ends with the process.
    std::thread::spawn(move || {
        for mut stream in answering.incoming().flatten() {
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    Ok(listener)
}

fn held_by(addr: &SocketAddr) -> DaemonError {
    let mut answer = String::new();
    if let Ok(stream) = UnixStream::connect_addr(addr) {
        let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
        let _ = stream.take(4096).read_to_string(&mut answer);
    }
    let (pid, data_dir) = answer.trim().split_once(' ').unwrap_or(("unknown", "unknown"));
    DaemonError::NotSole { pid: pid.to_owned(), data_dir: data_dir.to_owned() }
}
