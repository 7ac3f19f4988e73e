//! The container half's only `unsafe`: a system call a function, behind a safe signature.
//!
//! Everything here may be called between clone and exec: nothing allocates, locks or logs. Descriptors are
//! close-on-exec.
#![allow(unsafe_code)]

mod bpf;
mod fork;

use std::ffi::{CStr, CString, c_char, c_int, c_long};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use crate::plan::{SeccompFilter, SockFilter};
pub(crate) use bpf::{attach_device_program, device_programs, load_device_program};
pub(crate) use fork::continue_in_cgroup;

/// A kernel error number, as plain data: it is sent over a pipe.
pub(crate) type Errno = i32;

fn last_errno() -> Errno {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

fn checked(result: c_long) -> Result<c_long, Errno> {
    if result < 0 { Err(last_errno()) } else { Ok(result) }
}

/// Which of the two processes returned from [`clone_process`].
pub(crate) enum Cloned {
    /// The new one.
    Child,
    /// The caller, with the new one's pid and pidfd.
    Parent { pid: u32, pidfd: OwnedFd },
}

/// Makes a command's process end with the thread that spawns it.
pub(crate) fn end_with_us(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    let parent = rustix::process::getpid();
    let bound = move || {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        // It may have died before.
        if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(rustix::io::Errno::PIPE.into()) }
    };
    // SAFETY: two system calls, and an error without memory of its own.
    unsafe { command.pre_exec(bound) };
}

/// Clones the calling process into new namespaces (`CLONE_NEW*` bits; a cgroup namespace is for
/// [`unshare_cgroups`]), and into the v2 cgroup when there is one. A sibling becomes a child of the caller's parent.
/// The caller must be single-threaded, as the shim is; the child then owns a copy of everything.
pub(crate) fn clone_process(namespaces: u64, cgroup: Option<BorrowedFd<'_>>, sibling: bool) -> Result<Cloned, Errno> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut pidfd: c_int = -1;
    // SAFETY: clone_args is plain integers, for which zero is valid.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    let cgroup_namespace = u64::from(libc::CLONE_NEWCGROUP.cast_unsigned());
    args.flags = (namespaces & !cgroup_namespace) | u64::from(libc::CLONE_PIDFD.cast_unsigned());
    args.pidfd = ptr::from_mut(&mut pidfd) as u64;
    if sibling {
        // The kernel takes the exit signal of the caller then, and wants none here.
        args.flags |= u64::from(libc::CLONE_PARENT.cast_unsigned());
    } else {
        args.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
    }
    if let Some(fd) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(fd.as_raw_fd().cast_unsigned());
    }
    // SAFETY: args lives through the call and its size is given. Without CLONE_VM and with no new stack this is a
    // fork: the child continues on its own copy of this stack. The shim has one thread, so no lock is held by anyone.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match checked(result)? {
        0 => Ok(Cloned::Child),
        pid => {
            // SAFETY: the kernel has stored a fresh descriptor there, which nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned::Parent { pid: u32::try_from(pid).unwrap_or(0), pidfd })
        }
    }
}

/// Changes attributes (and, when not 0, the propagation) of the mount that `fd` is the root of.
pub(crate) fn set_mount_attributes(
    fd: BorrowedFd<'_>,
    recursive: bool,
    set: u64,
    clear: u64,
    propagation: u64,
) -> Result<(), Errno> {
    let attr = libc::mount_attr { attr_set: set, attr_clr: clear, propagation, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a static empty string; attr lives through the call and its size is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    checked(result).map(drop)
}

/// Shows the files of a detached tree of mounts with their ids mapped into a user namespace.
pub(crate) fn map_mount(fd: BorrowedFd<'_>, users: BorrowedFd<'_>) -> Result<(), Errno> {
    const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
    let userns_fd = u64::from(users.as_raw_fd().cast_unsigned());
    let attr = libc::mount_attr { attr_set: MOUNT_ATTR_IDMAP, attr_clr: 0, propagation: 0, userns_fd };
    let (file, empty, size) = (fd.as_raw_fd(), c"".as_ptr(), size_of::<libc::mount_attr>());
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: the path is a static empty string; attr lives through the call and its size is given.
    let result = unsafe { libc::syscall(libc::SYS_mount_setattr, file, empty, flags, &raw const attr, size) };
    checked(result).map(drop)
}

/// Moves the calling process into a cgroup namespace whose root is where it is now.
pub(crate) fn unshare_cgroups() -> Result<(), Errno> {
    // SAFETY: a cgroup namespace changes what paths show; no memory, descriptor or thread is concerned.
    checked(c_long::from(unsafe { libc::unshare(libc::CLONE_NEWCGROUP) })).map(drop)
}

/// Enters the namespace behind a descriptor; fails when it is of another kind (a `CLONE_NEW*` bit).
pub(crate) fn join_namespace(fd: BorrowedFd<'_>, kind: u64) -> Result<(), Errno> {
    let kind = c_int::try_from(kind).map_err(|_| libc::EINVAL)?;
    // SAFETY: setns changes what the single thread sees of the kernel; no memory is concerned.
    checked(c_long::from(unsafe { libc::setns(fd.as_raw_fd(), kind) })).map(drop)
}

/// Moves what the calling process will fork (for pid and time namespaces), or itself, into new namespaces.
pub(crate) fn unshare(kinds: u64) -> Result<(), Errno> {
    let kinds = c_int::try_from(kinds).map_err(|_| libc::EINVAL)?;
    // SAFETY: as for setns.
    checked(c_long::from(unsafe { libc::unshare(kinds) })).map(drop)
}

/// Lets the calling thread, and no other, look at files and make them as somebody else, with all its capabilities. For a
/// thread that ends so.
pub(crate) fn make_files_as(uid: u32, gid: u32) -> Result<(), Errno> {
    use rustix::thread::{CapabilitiesSecureBits, set_capabilities_secure_bits};
    set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP).map_err(|errno| errno.raw_os_error())?;
    // SAFETY: both change an id of the calling thread's own; no memory is concerned.
    unsafe {
        libc::setfsgid(gid);
        libc::setfsuid(uid);
    }
    // They tell of no failure. An id that is none changes nothing, and answers what it is.
    // SAFETY: as above.
    let now = unsafe { (libc::setfsuid(u32::MAX), libc::setfsgid(u32::MAX)) };
    let wanted = (uid.cast_signed(), gid.cast_signed());
    if now == wanted { Ok(()) } else { Err(libc::EPERM) }
}

/// Every signal back to its default and none blocked, as a program expects to find them.
pub(crate) fn reset_signals() {
    /// The kernel's own structure (handler, flags, restorer, mask): the C library's call would spare two signals that
    /// it keeps for itself, and a program would inherit whatever they were set to.
    const DEFAULT: [u64; 4] = [0; 4];
    const SET_SIZE: usize = 8;
    for signal in 1..=64 {
        let no_old: *mut u64 = ptr::null_mut();
        // SAFETY: the structure has the kernel's size, zero means SIG_DFL without flags, and the old value is not
        // asked for. It fails for SIGKILL and SIGSTOP, which have no other action.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, DEFAULT.as_ptr(), no_old, SET_SIZE) };
    }
    // SAFETY: the set is a local, initialised before it is read.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
    }
}

/// Ignores what would end a daemon that was asked to stop: a shim ends when its container does.
pub(crate) fn ignore_stop_signals() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGPIPE] {
        // SAFETY: SIG_IGN runs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Blocks SIGCHLD and returns a descriptor that becomes readable when a child has ended.
pub(crate) fn child_events() -> Result<OwnedFd, Errno> {
    // SAFETY: the set is a local, initialised by sigemptyset before it is read.
    let fd = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) != 0 {
            return Err(last_errno());
        }
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    checked(c_long::from(fd))?;
    // SAFETY: signalfd returned a fresh descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Blocks all signals that can be passed on, and returns a descriptor that tells of them. SIGCHLD is among those that
/// are left alone, and so are the ones that a fault of this process itself makes.
pub(crate) fn all_signals() -> Result<OwnedFd, Errno> {
    const OWN: [c_int; 7] =
        [libc::SIGCHLD, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGPIPE];
    // SAFETY: the set is a local, initialised by sigfillset before it is read.
    let fd = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut set);
        for signal in OWN {
            libc::sigdelset(&raw mut set, signal);
        }
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) != 0 {
            return Err(last_errno());
        }
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    checked(c_long::from(fd))?;
    // SAFETY: signalfd returned a fresh descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The signals that [`all_signals`] has to tell of, by number.
pub(crate) fn pending_signals(fd: BorrowedFd<'_>) -> Vec<i32> {
    /// `struct signalfd_siginfo`, of which the first word is the number.
    const RECORD: usize = 128;
    let mut buffer = [0u8; RECORD * 8];
    let count = rustix::io::read(fd, &mut buffer).unwrap_or(0);
    let records = buffer.get(..count).unwrap_or_default().chunks_exact(RECORD);
    records.filter_map(|record| record.first_chunk::<4>().map(|word| i32::from_ne_bytes(*word))).collect()
}

/// Sends any signal number to the process behind a pidfd.
pub(crate) fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    let no_info: *const libc::siginfo_t = ptr::null();
    // SAFETY: a null siginfo is allowed and means that of kill(2).
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, no_info, 0) };
    checked(result).map(drop)
}

/// Sends any signal number to a group of processes.
pub(crate) fn send_signal_to_group(leader: u32, signal: i32) -> Result<(), Errno> {
    // 0 and 1 would mean the caller's own group, and everybody.
    let leader = c_int::try_from(leader).ok().filter(|leader| *leader > 1).ok_or(libc::ESRCH)?;
    // SAFETY: kill touches no memory.
    checked(c_long::from(unsafe { libc::kill(-leader, signal) })).map(drop)
}

/// Makes `target` a copy of `fd` that survives exec.
pub(crate) fn duplicate_onto(fd: BorrowedFd<'_>, target: RawFd) -> Result<(), Errno> {
    // SAFETY: dup2 touches no memory. The callers pass 0, 1 or 2, which no OwnedFd of theirs owns.
    checked(c_long::from(unsafe { libc::dup2(fd.as_raw_fd(), target) })).map(drop)
}

/// Takes over a descriptor that the parent process passed at a number agreed upon.
pub(crate) fn inherited(number: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: F_DUPFD_CLOEXEC touches no memory and fails when the number is not open.
    let fd = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    checked(c_long::from(fd))?;
    // SAFETY: fcntl returned a fresh descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether there is a descriptor with this number.
pub(crate) fn is_open(number: u32) -> bool {
    // SAFETY: F_GETFD touches no memory and fails when the number is not open.
    RawFd::try_from(number).is_ok_and(|number| unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0)
}

/// Closes all descriptors from 3 on. Only for a process that has opened none itself yet: what it closes was left to it
/// by a parent that forgot to mark it close-on-exec, and a shim would hold it (a listening port, say) for ever.
pub(crate) fn close_inherited() -> Result<(), Errno> {
    // SAFETY: close_range touches no memory. The caller, the shim's first function, owns no descriptor yet.
    checked(unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) }).map(drop)
}

/// Closes every descriptor from `first` on but these. Only for a child that will exec or exit and drops nothing any more.
///
/// Close-on-exec is not enough: exec looks its path up before it closes anything, and through `/proc/self/fd/<n>` a
/// path that a user or an image chose would lead out of the container.
pub(crate) fn close_all_but<const N: usize>(first: u32, mut keep: [RawFd; N]) -> Result<(), Errno> {
    keep.sort_unstable();
    let mut from = first;
    for kept in keep.into_iter().map(RawFd::cast_unsigned) {
        if from < kept {
            close_range(from, kept - 1)?;
        }
        from = from.max(kept + 1);
    }
    close_range(from, u32::MAX)
}

fn close_range(first: u32, last: u32) -> Result<(), Errno> {
    // SAFETY: close_range touches no memory; the callers use none of what it closes any more.
    checked(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0u32) }).map(drop)
}

/// Whether other processes may trace this one and look through its `/proc`; for those without CAP_SYS_PTRACE.
pub(crate) fn set_traceable(traceable: bool) {
    // SAFETY: this prctl takes a number and touches no memory. It cannot fail with 0 or 1.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, u64::from(traceable), 0, 0, 0) };
}

/// Sets the host name of the calling process's uts namespace.
pub(crate) fn set_hostname(name: &CStr) -> Result<(), Errno> {
    // SAFETY: pointer and length are those of one string.
    let result = unsafe { libc::sethostname(name.as_ptr(), name.count_bytes()) };
    checked(c_long::from(result)).map(drop)
}

/// Sets the domain name of the calling process's uts namespace.
pub(crate) fn set_domainname(name: &CStr) -> Result<(), Errno> {
    // SAFETY: pointer and length are those of one string.
    let result = unsafe { libc::setdomainname(name.as_ptr(), name.count_bytes()) };
    checked(c_long::from(result)).map(drop)
}

/// Sets one resource limit of another process that has not yet done anything, or (0) of the calling one.
pub(crate) fn set_limit_of(pid: i32, resource: u32, soft: u64, hard: u64) -> Result<(), Errno> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: limit lives through the call; the old value is not asked for.
    checked(c_long::from(unsafe { libc::prlimit64(pid, resource, &raw const limit, ptr::null_mut()) })).map(drop)
}

/// Sets one resource limit of the calling process.
pub(crate) fn set_limit(resource: u32, soft: u64, hard: u64) -> Result<(), Errno> {
    set_limit_of(0, resource, soft, hard)
}

/// Raises one hard resource limit of the calling process.
pub(crate) fn set_hard_limit(resource: u32, hard: u64) -> Result<(), Errno> {
    set_limit(resource, limits_of_own(resource)?.rlim_cur, hard)
}

/// One hard resource limit of the calling process.
pub(crate) fn hard_limit(resource: u32) -> Result<u64, Errno> {
    limits_of_own(resource).map(|limit| limit.rlim_max)
}

fn limits_of_own(resource: u32) -> Result<libc::rlimit64, Errno> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: limit lives through the call; pid 0 is the caller; nothing is set.
    checked(c_long::from(unsafe { libc::prlimit64(0, resource, ptr::null(), &raw mut limit) }))?;
    Ok(limit)
}

/// Removes from the bounding set all capabilities that are not in `keep`.
pub(crate) fn limit_bounding_set(keep: u64) -> Result<(), Errno> {
    for number in 0..64u32 {
        if keep & (1 << number) != 0 {
            continue;
        }
        // SAFETY: this prctl takes a number and touches no memory.
        match checked(c_long::from(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, u64::from(number), 0, 0, 0) })) {
            Ok(_) => {}
            // The kernel's last capability is behind us.
            Err(libc::EINVAL) => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

/// The kernel's structure for 32 capabilities; two make a set of 64.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Sets three of the calling thread's sets.
pub(crate) fn set_capabilities(effective: u64, permitted: u64, inheritable: u64) -> Result<(), Errno> {
    let header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let low = |bits: u64| u32::try_from(bits & 0xffff_ffff).unwrap_or(0);
    let half = |shift: u32| CapabilityData {
        effective: low(effective >> shift),
        permitted: low(permitted >> shift),
        inheritable: low(inheritable >> shift),
    };
    let data = [half(0), half(32)];
    // SAFETY: both structures have the kernel's layout for version 3 (two data elements) and live through the call.
    checked(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

/// The calling thread's permitted set.
pub(crate) fn permitted_capabilities() -> Result<u64, Errno> {
    let mut header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let mut data = [CapabilityData::default(); 2];
    // SAFETY: as for capset; the kernel fills the two elements.
    checked(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) })?;
    Ok(u64::from(data[0].permitted) | u64::from(data[1].permitted) << 32)
}

/// Lets the permitted capabilities survive the next change of the user id, until an exec.
pub(crate) fn keep_capabilities() -> Result<(), Errno> {
    // SAFETY: this prctl takes a number and touches no memory.
    checked(c_long::from(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 1u64, 0, 0, 0) })).map(drop)
}

/// Adds to the ambient set, which survives an exec. They must be permitted and inheritable.
pub(crate) fn raise_ambient(mask: u64) -> Result<(), Errno> {
    for number in (0..64u64).filter(|number| mask & (1 << number) != 0) {
        // SAFETY: this prctl takes numbers and touches no memory.
        let result = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, number, 0, 0) };
        checked(c_long::from(result))?;
    }
    Ok(())
}

/// Joins a new session keyring without a name, which nobody else can find.
pub(crate) fn new_session_keyring() -> Result<(), Errno> {
    const KEYCTL_JOIN_SESSION_KEYRING: c_int = 1;
    let no_name: *const c_char = ptr::null();
    // SAFETY: a null name is allowed and means a new, anonymous keyring.
    checked(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, no_name) }).map(drop)
}

/// Filters the system calls of the calling thread from now on.
pub(crate) fn load_filter(filter: &SeccompFilter) -> Result<(), Errno> {
    const SECCOMP_SET_MODE_FILTER: u32 = 1;
    #[repr(C)]
    struct Program {
        length: u16,
        instructions: *const SockFilter,
    }
    let length = u16::try_from(filter.program.len()).map_err(|_| libc::EINVAL)?;
    let program = Program { length, instructions: filter.program.as_ptr() };
    // SAFETY: `Program` has the layout of the kernel's sock_fprog and `SockFilter` that of its instructions; both live
    // through the call, which copies them.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, filter.flags, &raw const program) };
    checked(result).map(drop)
}

/// Brings up the loopback device of the calling process's network namespace.
pub(crate) fn loopback_up() -> Result<(), Errno> {
    // SAFETY: ifreq is plain data for which zero is valid; the name is shorter than its field; the descriptor is
    // closed on every path and the ioctls get a pointer to the live structure.
    unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        checked(c_long::from(fd))?;
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(c"lo".to_bytes()) {
            *to = from.cast_signed() as c_char;
        }
        let mut result = libc::ioctl(fd, libc::SIOCGIFFLAGS, &raw mut request);
        if result == 0 {
            request.ifr_ifru.ifru_flags |= (libc::IFF_UP | libc::IFF_RUNNING) as i16;
            result = libc::ioctl(fd, libc::SIOCSIFFLAGS, &raw const request);
        }
        let outcome = checked(c_long::from(result)).map(drop);
        libc::close(fd);
        outcome
    }
}

/// Ends the process at once: no destructor, no buffer, no exit handler.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit does not return and runs no code of ours.
    unsafe { libc::_exit(code) }
}

/// Gives freed memory back to the kernel, and the pages of the program's file that are mapped: most of them held what
/// only the work of its first milliseconds needed. What is still needed comes back from the page cache.
pub(crate) fn give_back_memory() {
    // SAFETY: malloc_trim only touches the allocator's own state, and the shim has one thread.
    unsafe { libc::malloc_trim(0) };
    // SAFETY: the callback has the signature that is asked for and uses no data.
    unsafe { libc::dl_iterate_phdr(Some(forget_file_pages), ptr::null_mut()) };
}

/// Unmaps the pages of the program's own read-only segments.
extern "C" fn forget_file_pages(info: *mut libc::dl_phdr_info, _: libc::size_t, _: *mut libc::c_void) -> c_int {
    // SAFETY: the C library passes a valid structure, and its headers are dlpi_phnum in number.
    let (base, headers) = unsafe {
        let info = &*info;
        (info.dlpi_addr, std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)))
    };
    // SAFETY: sysconf touches no memory.
    let page = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    for header in headers {
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        // Whole pages of the segment only, so that no neighbour is touched.
        let start = (base + header.p_vaddr).next_multiple_of(page);
        let end = (base + header.p_vaddr + header.p_memsz) / page * page;
        if let (Ok(address), Ok(length)) = (usize::try_from(start), usize::try_from(end.saturating_sub(start))) {
            // SAFETY: a private file mapping that nobody can have written to; its pages come back from the file, which
            // the kernel keeps and protects from writes while it is executed. Failure leaves everything as it is.
            unsafe { libc::madvise(ptr::without_provenance_mut(address), length, libc::MADV_DONTNEED) };
        }
    }
    // The first object is the program; there are no others in a static one.
    1
}

/// A descriptor that the async runtime watches. Must be called within it.
pub(crate) fn async_fd(fd: OwnedFd) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd names the same open description for as long as it lives, and the AsyncFd owns it.
    unsafe { tokio::io::unix::AsyncFd::register(fd) }.map_err(io::Error::from)
}

/// Arguments and environment in the form that exec wants, built before the clone.
pub(crate) struct ExecArgs {
    args: Vec<CString>,
    env: Vec<CString>,
    /// `HOME=...`, filled in by the child. Its capacity is never exceeded, so it never moves.
    home: Vec<u8>,
    arg_pointers: Vec<*const c_char>,
    env_pointers: Vec<*const c_char>,
}

/// The longest home directory that is believed.
const MAX_HOME: usize = 1024;

impl ExecArgs {
    /// Prepares the pointer arrays.
    pub(crate) fn new(args: Vec<CString>, env: Vec<CString>) -> ExecArgs {
        let mut arg_pointers: Vec<*const c_char> = args.iter().map(|arg| arg.as_ptr()).collect();
        arg_pointers.push(ptr::null());
        let mut env_pointers: Vec<*const c_char> = env.iter().map(|var| var.as_ptr()).collect();
        // The last two: HOME, when it is set, and the end.
        env_pointers.push(ptr::null());
        env_pointers.push(ptr::null());
        ExecArgs { args, env, home: Vec::with_capacity(MAX_HOME + 8), arg_pointers, env_pointers }
    }

    /// Adds `HOME=<home>`. Without allocating: a home that is too long (or has a NUL) becomes `/`.
    pub(crate) fn set_home(&mut self, home: &[u8]) {
        let home = if home.is_empty() || home.len() > MAX_HOME || home.contains(&0) { b"/" } else { home };
        self.home.clear();
        self.home.extend_from_slice(b"HOME=");
        self.home.extend_from_slice(home);
        self.home.push(0);
        if let Some(slot) = self.env_pointers.get_mut(self.env.len()) {
            *slot = self.home.as_ptr().cast();
        }
    }

    /// Replaces the process by the reaper, whose arguments these are, with the report's pipe at descriptor 3. Returns
    /// only when that failed.
    pub(crate) fn exec_reaper(&self, reaper: BorrowedFd<'_>, report: BorrowedFd<'_>) -> Errno {
        const REPORT: RawFd = 3;
        // Out of the way: what is at 3 now may be the program itself. It closes with the exec.
        // SAFETY: F_DUPFD_CLOEXEC touches no memory.
        let program = unsafe { libc::fcntl(reaper.as_raw_fd(), libc::F_DUPFD_CLOEXEC, REPORT + 1) };
        if program < 0 {
            return last_errno();
        }
        // SAFETY: fcntl returned a fresh descriptor.
        let program = unsafe { OwnedFd::from_raw_fd(program) };
        let moved = if report.as_raw_fd() == REPORT {
            // SAFETY: F_SETFD touches no memory.
            checked(c_long::from(unsafe { libc::fcntl(REPORT, libc::F_SETFD, 0) })).map(drop)
        } else {
            // What was there is closed behind its owner's back, who lets go of nothing before the exec or the exit.
            duplicate_onto(report, REPORT)
        };
        if let Err(errno) = moved {
            return errno;
        }
        self.exec_fd(program.as_fd())
    }

    /// The same for an open file.
    pub(crate) fn exec_fd(&self, file: BorrowedFd<'_>) -> Errno {
        debug_assert_eq!(self.arg_pointers.len(), self.args.len() + 1);
        let (args, env) = (self.arg_pointers.as_ptr(), self.env_pointers.as_ptr());
        // SAFETY: as for `exec`; the path is a static empty string.
        unsafe { libc::syscall(libc::SYS_execveat, file.as_raw_fd(), c"".as_ptr(), args, env, libc::AT_EMPTY_PATH) };
        last_errno()
    }

    /// Replaces the process. Returns only when that failed.
    pub(crate) fn exec(&self, path: &CStr) -> Errno {
        debug_assert_eq!(self.arg_pointers.len(), self.args.len() + 1);
        // SAFETY: both arrays end in a null pointer, and each pointer before it points into a NUL-terminated string
        // that `self` owns and does not change while borrowed.
        unsafe { libc::execve(path.as_ptr(), self.arg_pointers.as_ptr(), self.env_pointers.as_ptr()) };
        last_errno()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of this thread's session keyring.
    fn session_keyring() -> Result<c_long, Errno> {
        const KEYCTL_GET_KEYRING_ID: c_int = 0;
        const KEY_SPEC_SESSION_KEYRING: c_int = -3;
        // SAFETY: it takes numbers.
        checked(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0) })
    }

    #[test]
    fn a_new_session_keyring_is_nobody_elses() {
        let one = || {
            let before = session_keyring();
            let outcome = new_session_keyring();
            (before, outcome, session_keyring())
        };
        let ((before, outcome, after), (_, _, other)) =
            (std::thread::spawn(one).join().unwrap(), std::thread::spawn(one).join().unwrap());
        if outcome == Err(libc::ENOSYS) {
            return;
        }
        assert_eq!(outcome, Ok(()));
        assert!(after.is_ok() && after != before && after != other, "{before:?} {after:?} {other:?}");
    }
}
