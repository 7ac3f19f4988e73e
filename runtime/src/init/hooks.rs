//! The hooks that run inside of the container's namespaces, between the clone and the exec: programs that an OCI bundle
//! names, each given the container's state on its standard input.
//!
//! As everything here, nothing allocates: the state's text is ready but for the pid, which only the child knows as the
//! container sees it.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SeekFrom};
use rustix::process::{Pid, WaitOptions, WaitStatus, waitpid};

use super::{AtStep, Failure, Outcome, Step};
use crate::sys::{self, Cloned, ExecArgs};

/// One program.
pub(crate) struct Hook {
    pub(crate) path: CString,
    pub(crate) exec: ExecArgs,
    /// Seconds until it is killed; 0 is never.
    pub(crate) timeout_secs: u32,
}

/// The state as JSON, but for the pid in its middle.
#[derive(Default)]
pub(crate) struct HookState {
    pub(crate) head: Vec<u8>,
    pub(crate) tail: Vec<u8>,
}

/// What the child has to do with hooks. Shoal's own containers have none.
#[derive(Default)]
pub(crate) struct Hooks {
    /// The parent runs hooks of its own before the root is switched, so the child stops there.
    pub(crate) before_switch: bool,
    pub(crate) create_container: Vec<Hook>,
    pub(crate) start_container: Vec<Hook>,
    /// What both are told: that the container is created.
    pub(crate) state: HookState,
}

/// The `errno` of a failure that is not the kernel's: the hook was killed at its deadline.
pub(crate) const TIMED_OUT: i32 = libc::ETIMEDOUT;

/// Runs the hooks in their order, up to the first that fails. Its exit code is reported as a negative error number.
pub(super) fn run(hooks: &[Hook], state: &HookState, step: Step) -> Outcome<()> {
    for (index, hook) in hooks.iter().enumerate() {
        let index = u16::try_from(index).unwrap_or(u16::MAX);
        let failed = |errno| Failure { step, index, errno };
        let input = input(state).map_err(|errno| failed(errno.raw_os_error()))?;
        match sys::clone_process(0, None, false).map_err(failed)? {
            Cloned::Child => become_hook(hook, &input),
            Cloned::Parent { pid, pidfd } => {
                let code = wait(pid, &pidfd, hook.timeout_secs).at(step).map_err(|f| Failure { index, ..f })?;
                match code {
                    0 => {}
                    libc::ETIMEDOUT => return Err(failed(TIMED_OUT)),
                    code => return Err(failed(code)),
                }
            }
        }
    }
    Ok(())
}

fn become_hook(hook: &Hook, input: &OwnedFd) -> ! {
    if sys::duplicate_onto(input.as_fd(), 0).is_ok() && sys::close_all_but(3, [2; 4]).is_ok() {
        hook.exec.exec(&hook.path);
    }
    sys::exit_now(127)
}

/// The state in a file of memory, which takes a state of any size without anyone reading it.
fn input(state: &HookState) -> Result<OwnedFd, rustix::io::Errno> {
    let file = rustix::fs::memfd_create(c"state", MemfdFlags::CLOEXEC)?;
    let mut digits = [0u8; 10];
    let pid = decimal(rustix::process::getpid().as_raw_nonzero().get().unsigned_abs(), &mut digits);
    for part in [state.head.as_slice(), pid, state.tail.as_slice()] {
        let mut rest = part;
        while !rest.is_empty() {
            let count = rustix::io::write(&file, rest)?;
            rest = rest.get(count..).unwrap_or_default();
        }
    }
    rustix::fs::seek(&file, SeekFrom::Start(0))?;
    Ok(file)
}

/// A number as text, at the end of the buffer.
fn decimal(mut number: u32, digits: &mut [u8; 10]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
        if number == 0 || at == 0 {
            return &digits[at..];
        }
    }
}

/// 0 for success, a negative number for a bad end, `ETIMEDOUT` for one at the deadline.
fn wait(pid: u32, pidfd: &OwnedFd, timeout_secs: u32) -> Result<i32, rustix::io::Errno> {
    let mut timed_out = false;
    if timeout_secs > 0 {
        let limit = Timespec { tv_sec: i64::from(timeout_secs), tv_nsec: 0 };
        if let Ok(0) = poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&limit)) {
            timed_out = true;
            let _ = sys::send_signal(pidfd.as_fd(), libc::SIGKILL);
        }
    }
    let status: WaitStatus = loop {
        match waitpid(i32::try_from(pid).ok().and_then(Pid::from_raw), WaitOptions::empty()) {
            Ok(Some((_, status))) => break status,
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    };
    Ok(match (timed_out, status.exit_status()) {
        (true, _) => TIMED_OUT,
        (false, Some(code)) => -code,
        (false, None) => -128 - status.terminating_signal().unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers_become_text() {
        for number in [0, 7, 10, 4_194_304, u32::MAX] {
            assert_eq!(super::decimal(number, &mut [0; 10]), number.to_string().as_bytes());
        }
    }
}
