//! Mounts what a volume's options ask for at its `_data`, and takes it away again.

use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_change, mount_remount, unmount};

use super::VolumeError;
use super::plan::Device;
use crate::plan::c_string;

/// Mounts it. Blocking, for as long as the file system takes (a server that is away: minutes).
///
/// # Errors
/// [`VolumeError::Resolve`] and [`VolumeError::Mount`]; nothing is mounted then.
pub(super) fn attach(device: Device, path: &Path) -> Result<(), VolumeError> {
    let device = match device.unresolved() {
        Some(name) => {
            let address = resolve(name).map_err(|source| VolumeError::Resolve { name: name.to_owned(), source })?;
            device.resolved(address)
        }
        None => device,
    };
    let failed = |errno: Errno| VolumeError::Mount {
        path: path.to_owned(),
        device: device.source.clone(),
        flags: u64::from(device.flags.bits()),
        data: if device.data.is_empty() { String::new() } else { format!(", data: {}", device.data) },
        source: errno.into(),
    };
    // The options' check has seen to it that there is no NUL in them.
    let data = c_string("options", device.data.as_str()).map_err(|_| failed(Errno::INVAL))?;
    mount(device.source.as_str(), path, device.kind.as_str(), device.flags, data.as_c_str()).map_err(failed)?;
    let rest = || -> Result<(), Errno> {
        if !device.propagation.is_empty() {
            mount_change(path, device.propagation)?;
        }
        // A bind takes no other flag at first.
        if device.flags.contains(MountFlags::BIND) && device.flags != MountFlags::BIND {
            let flags = device.flags.difference(MountFlags::REC);
            mount_remount(path, flags, c"")?;
        }
        Ok(())
    };
    rest().map_err(|errno| {
        let _ = detach(path);
        failed(errno)
    })
}

/// Unmounts it; what still looks at it from this namespace keeps it alive until it looks away. Nothing mounted is fine.
pub(super) fn detach(path: &Path) -> io::Result<()> {
    loop {
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // Mounted twice, by somebody else's hand: all of it goes.
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The first address, version 4 before 6, as Docker's resolver prefers.
fn resolve(name: &str) -> io::Result<IpAddr> {
    let addresses: Vec<IpAddr> = (name, 0).to_socket_addrs()?.map(|address| address.ip()).collect();
    let first = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first());
    first.copied().ok_or_else(|| io::Error::other("it has no address"))
}
