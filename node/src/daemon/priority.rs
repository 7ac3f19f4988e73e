//! The control plane keeps its promises while tasks eat the machine: the daemon runs before them.
//!
//! Three means, because each of them has no effect somewhere: the nice value counts among processes of one cgroup; the
//! kernel's automatic groups (one a session, where the processor is not split by cgroups) have a nice value of their
//! own; and between cgroups it is the unit's `CPUWeight=` that counts, which `contrib/shoal.service` sets. The tasks'
//! cgroup is below the usual weight (`runtime`). Containers do not inherit any of it: each shim begins by giving its
//! priority back.

/// Ten steps are a factor of nine: a daemon that has to work for 1 ms waits for a few ms among any number of others.
const STEPS: i32 = 10;
const HIGHEST: i32 = -20;

/// Raises this process' priority from what it was started with. Must be called while it has one thread: the others
/// inherit theirs. Without the privilege it stays as it is.
pub(crate) fn raise() {
    let Ok(given) = rustix::process::getpriority_process(None) else { return };
    let nice = (given - STEPS).max(HIGHEST);
    if rustix::process::setpriority_process(None, nice).is_err() {
        return;
    }
    // Only of a session that is the daemon's own: the value is the whole session's. `rustix` cannot ask: to a process whose
    // session began outside of its pid namespace the kernel says 0, which is no `Pid` there.
    if nix::unistd::getsid(None) == Ok(nix::unistd::Pid::this()) {
        // Without automatic groups there is no such file.
        let _ = std::fs::write("/proc/self/autogroup", nice.to_string());
    }
}
