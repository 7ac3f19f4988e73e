//! Whether what a bundle sets in namespaces that it joins would be set for the host.

use std::os::fd::OwnedFd;

use super::Failure;
use super::mounts::{dotted, sysctl_kind};
use super::spec::Spec;
use crate::PlanError;
use crate::plan::namespace;

/// A namespace that is joined may be the runtime's own: what is set in it would be set for the host.
pub(super) fn check_sysctls(spec: &Spec, joined: &[(OwnedFd, u64)]) -> Result<(), Failure> {
    for (name, kind) in spec.linux.sysctl.keys().map(|name| (name, sysctl_kind(&dotted(name)))) {
        let Some((fd, _)) = joined.iter().find(|(_, joined)| *joined == kind.0) else { continue };
        let file = match kind.0 {
            namespace::NETWORK => "/proc/self/ns/net",
            namespace::UTS => "/proc/self/ns/uts",
            _ => "/proc/self/ns/ipc",
        };
        let look = |errno: rustix::io::Errno| Failure::system("look at a namespace")(errno.into());
        let (own, other) = (rustix::fs::stat(file).map_err(look)?, rustix::fs::fstat(fd).map_err(look)?);
        if (own.st_dev, own.st_ino) == (other.st_dev, other.st_ino) {
            let reason = format!("{name} needs a namespace of type {} that is not the runtime's own", kind.1);
            return Err(PlanError::invalid("linux.sysctl", reason).into());
        }
    }
    Ok(())
}
