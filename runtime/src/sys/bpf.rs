//! bpf(2), as far as device programs of cgroups need it.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::{Errno, checked};
use crate::plan::limits::ebpf::Insn;

// Commands, and the numbers of what this file is about, from the kernel's `linux/bpf.h`.
const PROG_LOAD: u32 = 5;
const PROG_ATTACH: u32 = 8;
const PROG_QUERY: u32 = 16;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_TYPE_CGROUP_DEVICE: u32 = 6;
/// Other programs may be on the same cgroup and below it; a device is open to those whom all allow.
const ALLOW_MULTI: u32 = 2;

/// The head of `union bpf_attr` for PROG_LOAD, up to the program's name; what follows is zero.
#[repr(C)]
#[derive(Default)]
struct Load {
    program_type: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// The same for PROG_ATTACH.
#[repr(C)]
#[derive(Default)]
struct Attach {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
    replaced: u32,
}

/// The same for PROG_QUERY, with room behind it: kernels since 6.17 write a number that older ones do not know of.
#[repr(C)]
#[derive(Default)]
struct Query {
    target: u32,
    attach_type: u32,
    flags: u32,
    attached_flags: u32,
    ids: u64,
    count: u32,
    hole: u32,
    room: [u64; 12],
}

/// # Safety
/// `T` must be the head of `union bpf_attr` for this command, and every address in it valid for the call as the
/// command wants it.
unsafe fn bpf<T>(command: u32, attributes: &mut T) -> Result<i32, Errno> {
    // SAFETY: the caller's promise; the structure lives through the call and its size is given.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    checked(result).map(|value| i32::try_from(value).unwrap_or(-1))
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// Gives a device program to the kernel, which checks it. The descriptor is close-on-exec, as all of bpf(2) are.
pub(crate) fn load_device_program(code: &[Insn]) -> Result<OwnedFd, Errno> {
    let mut load = Load {
        program_type: PROG_TYPE_CGROUP_DEVICE,
        instructions: u32::try_from(code.len()).map_err(|_| libc::E2BIG)?,
        code: code.as_ptr() as u64,
        // Only what calls the kernel's own functions must be of its license; this calls none.
        license: c"Apache-2.0".as_ptr() as u64,
        name: *b"shoal_devices\0\0\0",
        ..Load::default()
    };
    // SAFETY: `code` holds as many instructions as are told, in the kernel's layout; the license is a static string.
    let fd = unsafe { bpf(PROG_LOAD, &mut load) }?;
    // SAFETY: bpf returned a fresh descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts a device program on a cgroup, beside those that are there. It stays as long as the cgroup does.
pub(crate) fn attach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut attach = Attach {
        target: number(cgroup),
        program: number(program),
        attach_type: ATTACH_TYPE_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
        replaced: 0,
    };
    // SAFETY: the structure holds no address.
    unsafe { bpf(PROG_ATTACH, &mut attach) }.map(drop)
}

/// How many device programs were put on this very cgroup.
pub(crate) fn device_programs(cgroup: BorrowedFd<'_>) -> Result<u32, Errno> {
    let mut query = Query { target: number(cgroup), attach_type: ATTACH_TYPE_CGROUP_DEVICE, ..Query::default() };
    // SAFETY: the address is null, with room for nothing: the kernel then tells the number alone.
    unsafe { bpf(PROG_QUERY, &mut query) }.map(|_| query.count)
}
