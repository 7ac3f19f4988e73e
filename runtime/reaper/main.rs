//! Process 1 of a container that asks for an init process, as `docker run --init` has one: starts the command, forwards
//! every signal to it, reaps whatever the container leaves behind, and ends with the command's exit code.
//!
//! `runtime/build.rs` makes a static program of a few kilobytes out of it, without any library, which `runtime` carries
//! inside of itself and executes from a sealed memory file: it has no path, in the container or on the host. Everything
//! that confines the container (identity, capabilities, seccomp, limits) is on it already when it begins.
//!
//! `argv` is its own name and then the command; a command without a slash is looked for in the directories of `PATH`,
//! by the rules of `plan/process.rs`. Descriptor 3 is the pipe on which the runtime waits: closed by a successful exec,
//! else it gets the 8 bytes of `init/report.rs`.
//!
//! The only unsafe code outside of `sys`: there is no library here to be safe behind.
#![no_std]
#![no_main]

use core::arch::{asm, naked_asm};

/// `Step::Exec` in `init/report.rs`.
const STEP_EXEC: u8 = 30;
const REPORT: usize = 3;
/// Longer paths cannot be executed.
const PATH_MAX: usize = 4096;

const ENOENT: isize = 2;
const EINTR: isize = 4;
const EACCES: isize = 13;
const ENOTDIR: isize = 20;
const SIGCHLD: usize = 17;
const SIG_SETMASK: usize = 2;
const WNOHANG: usize = 1;
const F_SETFD: usize = 2;
const FD_CLOEXEC: usize = 1;
const TIOCSPGRP: usize = 0x5410;
const PR_SET_NAME: usize = 15;

#[cfg(target_arch = "x86_64")]
mod number {
    pub const WRITE: usize = 1;
    pub const CLOSE: usize = 3;
    pub const SIGPROCMASK: usize = 14;
    pub const IOCTL: usize = 16;
    pub const GETPID: usize = 39;
    pub const CLONE: usize = 56;
    pub const EXECVE: usize = 59;
    pub const WAIT4: usize = 61;
    pub const KILL: usize = 62;
    pub const FCNTL: usize = 72;
    pub const SETPGID: usize = 109;
    pub const SIGTIMEDWAIT: usize = 128;
    pub const PRCTL: usize = 157;
    pub const EXIT_GROUP: usize = 231;
}

#[cfg(target_arch = "aarch64")]
mod number {
    pub const WRITE: usize = 64;
    pub const CLOSE: usize = 57;
    pub const SIGPROCMASK: usize = 135;
    pub const IOCTL: usize = 29;
    pub const GETPID: usize = 172;
    pub const CLONE: usize = 220;
    pub const EXECVE: usize = 221;
    pub const WAIT4: usize = 260;
    pub const KILL: usize = 129;
    pub const FCNTL: usize = 25;
    pub const SETPGID: usize = 154;
    pub const SIGTIMEDWAIT: usize = 137;
    pub const PRCTL: usize = 167;
    pub const EXIT_GROUP: usize = 94;
}

/// The kernel leaves argc, argv and the environment on the stack.
///
/// # Safety
/// Called by nobody but the kernel.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn _start() -> ! {
    naked_asm!("mov rdi, rsp", "and rsp, -16", "call {main}", "ud2", main = sym main)
}

/// The kernel leaves argc, argv and the environment on the stack.
///
/// # Safety
/// Called by nobody but the kernel.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn _start() -> ! {
    naked_asm!("mov x0, sp", "bl {main}", "brk #0", main = sym main)
}

/// # Safety
/// The arguments must be what the kernel wants for this call.
#[cfg(target_arch = "x86_64")]
unsafe fn call(number: usize, a: [usize; 5]) -> isize {
    let result;
    // SAFETY: the convention of the kernel: these registers are read, rcx and r11 are lost.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a[0], in("rsi") a[1], in("rdx") a[2],
            in("r10") a[3], in("r8") a[4], lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// # Safety
/// The arguments must be what the kernel wants for this call.
#[cfg(target_arch = "aarch64")]
unsafe fn call(number: usize, a: [usize; 5]) -> isize {
    let result;
    // SAFETY: the convention of the kernel: these registers are read.
    unsafe {
        asm!("svc #0", in("x8") number, inlateout("x0") a[0] => result, in("x1") a[1], in("x2") a[2], in("x3") a[3],
            in("x4") a[4], options(nostack));
    }
    result
}

fn exit(code: usize) -> ! {
    loop {
        // SAFETY: it takes a number and does not come back.
        unsafe { call(number::EXIT_GROUP, [code, 0, 0, 0, 0]) };
    }
}

fn set_blocked(mask: u64) {
    // SAFETY: the mask lives through the call and has the size that is given; the old one is not asked for.
    unsafe { call(number::SIGPROCMASK, [SIG_SETMASK, &raw const mask as usize, 0, 8, 0]) };
}

/// # Safety
/// `stack` must be what the kernel left there.
unsafe extern "C" fn main(stack: *const usize) -> ! {
    // SAFETY: argc, its pointers and a null, then the environment's pointers and a null.
    let (argc, argv) = unsafe { (*stack, stack.add(1)) };
    if argc < 2 {
        exit(127);
    }
    // SAFETY: as above.
    let (command, environment) = unsafe { (argv.add(1), argv.add(argc + 1)) };
    // A blocked signal is not ignored, even by a process 1 without handlers: it waits until it is fetched.
    set_blocked(u64::MAX);
    // SAFETY: a fork: no new stack, no shared memory.
    match unsafe { call(number::CLONE, [SIGCHLD, 0, 0, 0, 0]) } {
        // SAFETY: the pointers are those that the kernel left.
        0 => unsafe { become_command(command, environment) },
        child if child > 0 => watch(child),
        error => fail(-error),
    }
}

/// Forwards and reaps until the command has ended.
fn watch(child: isize) -> ! {
    // SAFETY: the command's process has its own copy; here nobody reads or writes it any more.
    unsafe { call(number::CLOSE, [REPORT, 0, 0, 0, 0]) };
    // Executed without a path, it would be called after the number of a descriptor.
    // SAFETY: the name lives through the call and ends in a NUL.
    unsafe { call(number::PRCTL, [PR_SET_NAME, c"init".as_ptr() as usize, 0, 0, 0]) };
    let all = u64::MAX;
    loop {
        reap(child);
        // SAFETY: the set lives through the call; neither information nor a timeout is given.
        let signal = unsafe { call(number::SIGTIMEDWAIT, [&raw const all as usize, 0, 0, 8, 0]) };
        if signal > 0 && signal != SIGCHLD as isize {
            // SAFETY: it takes numbers.
            unsafe { call(number::KILL, [child as usize, signal as usize, 0, 0, 0]) };
        }
    }
}

/// Collects whoever has ended, and ends with the command.
fn reap(child: isize) {
    loop {
        let mut status = 0i32;
        // SAFETY: the status lives through the call.
        let pid = unsafe { call(number::WAIT4, [usize::MAX, &raw mut status as usize, WNOHANG, 0, 0]) };
        if pid == child {
            let signal = status & 0x7f;
            exit(if signal == 0 { (status >> 8) & 0xff } else { 128 + signal } as usize);
        }
        if pid <= 0 && pid != -EINTR {
            return;
        }
    }
}

/// Tells the runtime that the command could not be executed, and ends like a shell would.
fn fail(errno: isize) -> ! {
    let number = (errno as i32).to_le_bytes();
    let report = [1, STEP_EXEC, 0, 0, number[0], number[1], number[2], number[3]];
    // SAFETY: the report lives through the call and its size is given.
    unsafe { call(number::WRITE, [REPORT, report.as_ptr() as usize, report.len(), 0, 0]) };
    exit(if errno == ENOENT || errno == ENOTDIR { 127 } else { 126 })
}

/// # Safety
/// Both must point to pointers to NUL-terminated strings, ended by a null.
unsafe fn become_command(command: *const usize, environment: *const usize) -> ! {
    // SAFETY: numbers, and a local that lives through its call. Without a terminal there is none to take.
    unsafe {
        call(number::FCNTL, [REPORT, F_SETFD, FD_CLOEXEC, 0, 0]);
        call(number::SETPGID, [0, 0, 0, 0, 0]);
        let own = call(number::GETPID, [0; 5]) as i32;
        call(number::IOCTL, [0, TIOCSPGRP, &raw const own as usize, 0, 0]);
    }
    set_blocked(0);
    // SAFETY: as promised by the caller.
    unsafe {
        let name = *command as *const u8;
        if contains_slash(name) {
            fail(-execute(name, command, environment));
        }
        fail(search(name, command, environment))
    }
}

/// # Safety
/// As for [`become_command`]; `path` must be NUL-terminated.
unsafe fn execute(path: *const u8, command: *const usize, environment: *const usize) -> isize {
    // SAFETY: as promised by the caller.
    unsafe { call(number::EXECVE, [path as usize, command as usize, environment as usize, 0, 0]) }
}

/// Tries each absolute directory of `PATH`. Returns the error number that says most.
///
/// # Safety
/// As for [`become_command`]; `name` must be NUL-terminated.
unsafe fn search(name: *const u8, command: *const usize, environment: *const usize) -> isize {
    let mut worst = ENOENT;
    // SAFETY: all reads are of the strings that the kernel left, up to their NUL, and all writes within the buffer.
    unsafe {
        let Some(mut from) = path_variable(environment) else { return worst };
        loop {
            let mut buffer = [0u8; PATH_MAX];
            let mut length = 0;
            while *from != 0 && *from != b':' {
                if length + 1 < PATH_MAX {
                    buffer[length] = *from;
                    length += 1;
                }
                from = from.add(1);
            }
            while length > 0 && buffer[length - 1] == b'/' {
                length -= 1;
                buffer[length] = 0;
            }
            // An empty or relative entry would mean the working directory. What was `/` is empty by now, and right.
            let absolute = buffer[0] == b'/' || (length == 0 && *from.sub(1) == b'/');
            if absolute && append(&mut buffer, length, name) {
                match -execute(buffer.as_ptr(), command, environment) {
                    ENOENT | ENOTDIR => {}
                    EACCES => worst = EACCES,
                    other => return other,
                }
            }
            if *from == 0 {
                return worst;
            }
            from = from.add(1);
        }
    }
}

/// Writes `/name` behind what is there. `false`: it does not fit.
///
/// # Safety
/// `name` must be NUL-terminated.
unsafe fn append(buffer: &mut [u8; PATH_MAX], mut length: usize, mut name: *const u8) -> bool {
    let mut byte = b'/';
    loop {
        if length + 1 >= PATH_MAX {
            return false;
        }
        buffer[length] = byte;
        length += 1;
        // SAFETY: reads up to the NUL.
        byte = unsafe { *name };
        if byte == 0 {
            buffer[length] = 0;
            return true;
        }
        // SAFETY: it was not the NUL.
        name = unsafe { name.add(1) };
    }
}

/// # Safety
/// `text` must be NUL-terminated.
unsafe fn contains_slash(mut text: *const u8) -> bool {
    // SAFETY: reads up to the NUL.
    unsafe {
        while *text != 0 {
            if *text == b'/' {
                return true;
            }
            text = text.add(1);
        }
    }
    false
}

/// The last value of `PATH`.
///
/// # Safety
/// As for [`become_command`].
unsafe fn path_variable(mut environment: *const usize) -> Option<*const u8> {
    let mut found = None;
    // SAFETY: reads up to the null, and in each string not beyond the first byte that differs.
    unsafe {
        while *environment != 0 {
            let text = *environment as *const u8;
            if (0..5).all(|at| *text.add(at) == b"PATH="[at]) {
                found = Some(text.add(5));
            }
            environment = environment.add(1);
        }
    }
    found
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(125)
}

/// The compiler may ask for these two where it sees arrays being filled or copied.
///
/// # Safety
/// `to` must have room for `count` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, count: usize) -> *mut u8 {
    let mut at = 0;
    while at < count {
        // SAFETY: as promised by the caller; volatile, or this loop would become a call of itself.
        unsafe { to.add(at).write_volatile(value as u8) };
        at += 1;
    }
    to
}

/// # Safety
/// `from` must have `count` bytes and `to` room for them.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    let mut at = 0;
    while at < count {
        // SAFETY: as promised by the caller; volatile, or this loop would become a call of itself.
        unsafe { to.add(at).write_volatile(*from.add(at)) };
        at += 1;
    }
    to
}
