//! What happens inside of a container's first process, from the clone to the exec.
//!
//! The shim prepares everything ([`Prepared`]) and clones; the child calls [`run`] and never returns. In between
//! nothing allocates, locks or logs: the strings are ready, the buffers are there, and a failure goes back to the shim
//! as twelve bytes, a [`Report`]. The child stops before the exec until the shim lets it go on.

mod identity;
mod mounts;
mod report;

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::process::umask;

pub use report::Step;
pub(crate) use report::{REPORT_SIZE, Report, exit_code_of};

use crate::plan::Plan;
use crate::sys::{self, Errno, ExecArgs};

/// Everything that the child needs, made before it exists.
pub(crate) struct Prepared {
    pub(crate) plan: Plan,
    /// The container's directory on the host.
    pub(crate) dir: CString,
    /// `cgroup.procs` of the hierarchies that clone cannot enter.
    pub(crate) cgroup_files: Vec<CString>,
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    /// Where reports go; closed by a successful exec.
    pub(crate) report: OwnedFd,
    /// One byte here lets the child exec; its end means that the shim is gone.
    pub(crate) go: OwnedFd,
    pub(crate) exec: ExecArgs,
    /// Room for the container's passwd and group files.
    pub(crate) passwd: Vec<u8>,
    pub(crate) group: Vec<u8>,
}

/// A failed step: which, at which index of its list, and why.
struct Failure {
    step: Step,
    index: u16,
    errno: Errno,
}

type Outcome<T> = Result<T, Failure>;

/// Attaches a step to an error number.
trait AtStep<T> {
    fn at(self, step: Step) -> Outcome<T>;
}

impl<T> AtStep<T> for Result<T, Errno> {
    fn at(self, step: Step) -> Outcome<T> {
        self.map_err(|errno| Failure { step, index: 0, errno })
    }
}

impl<T> AtStep<T> for Result<T, rustix::io::Errno> {
    fn at(self, step: Step) -> Outcome<T> {
        self.map_err(|errno| Failure { step, index: 0, errno: errno.raw_os_error() })
    }
}

/// The child's life until the exec. Never returns.
pub(crate) fn run(mut prepared: Prepared) -> ! {
    let code = match set_up(&mut prepared) {
        Ok(()) => {
            send(&prepared, Report::Ready);
            await_go_and_exec(&mut prepared)
        }
        Err(failure) => {
            send(&prepared, Report::Failed { step: failure.step, index: failure.index, errno: failure.errno });
            1
        }
    };
    sys::exit_now(code)
}

fn send(prepared: &Prepared, report: Report) {
    // Shorter than PIPE_BUF, so it is written whole or not at all; without a reader there is nobody to tell.
    let _ = rustix::io::write(&prepared.report, &report.encode());
}

fn set_up(prepared: &mut Prepared) -> Outcome<()> {
    sys::reset_signals();
    umask(Mode::empty());
    rustix::process::setsid().at(Step::Session)?;
    for file in &prepared.cgroup_files {
        write_file(file, b"0").at(Step::EnterCgroup)?;
    }
    // Only now, in the right cgroups: the namespace's root is where the process is.
    sys::unshare_cgroups().at(Step::CgroupNamespace)?;
    write_file(c"/proc/self/oom_score_adj", prepared.plan.process.oom_score_adj.to_bytes()).at(Step::OomScore)?;
    sys::set_hostname(&prepared.plan.process.hostname).at(Step::Hostname)?;
    sys::loopback_up().at(Step::Loopback)?;
    let root = mounts::build_root(&prepared.dir, &prepared.plan)?;
    identity::look_up(prepared, root.as_fd())?;
    mounts::make_directory(root.as_fd(), &prepared.plan.process.cwd).at(Step::WorkingDirectory)?;
    if prepared.plan.readonly_root {
        mounts::seal(root.as_fd()).at(Step::ReadOnlyRoot)?;
    }
    mounts::switch_root(root.as_fd())?;
    rustix::process::chdir(prepared.plan.process.cwd_path.as_c_str()).at(Step::WorkingDirectory)?;
    limits(prepared)?;
    stdio(prepared).at(Step::Stdio)?;
    identity::assume(prepared)?;
    umask(Mode::from_raw_mode(0o022));
    sys::close_all_on_exec().at(Step::Stdio)
}

/// Writes a small file of the kernel's in one go.
fn write_file(path: &std::ffi::CStr, bytes: &[u8]) -> Result<(), rustix::io::Errno> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, bytes).map(drop)
}

fn limits(prepared: &Prepared) -> Outcome<()> {
    for limit in &prepared.plan.process.rlimits {
        let (mut soft, mut hard) = (limit.soft, limit.hard);
        if limit.clamp {
            hard = hard.min(sys::hard_limit(limit.resource).at(Step::ResourceLimit)?);
            soft = soft.min(hard);
        }
        sys::set_limit(limit.resource, soft, hard).at(Step::ResourceLimit)?;
    }
    Ok(())
}

fn stdio(prepared: &Prepared) -> Result<(), Errno> {
    for (number, fd) in [&prepared.stdin, &prepared.stdout, &prepared.stderr].into_iter().enumerate() {
        sys::duplicate_onto(fd.as_fd(), i32::try_from(number).unwrap_or(0))?;
    }
    Ok(())
}

fn await_go_and_exec(prepared: &mut Prepared) -> i32 {
    let mut byte = [0u8; 1];
    loop {
        match rustix::io::read(&prepared.go, &mut byte) {
            Ok(1) => break,
            Err(rustix::io::Errno::INTR) => {}
            // The shim is gone, or gave up before the start.
            _ => return 137,
        }
    }
    let mut worst = libc::ENOENT;
    for candidate in &prepared.plan.process.candidates {
        match prepared.exec.exec(candidate) {
            // Not there: the next directory of PATH may have it.
            libc::ENOENT => {}
            libc::ENOTDIR if prepared.plan.process.candidates.len() > 1 => {}
            libc::EACCES => worst = libc::EACCES,
            errno => {
                worst = errno;
                break;
            }
        }
    }
    send(prepared, Report::Failed { step: Step::Exec, index: 0, errno: worst });
    exit_code_of(worst)
}
