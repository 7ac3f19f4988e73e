//! Docker's default policy, as data: which calls any container may make, which only with a capability, and the few
//! that depend on their arguments. As Docker has it since version 29.
//!
//! It differs from Docker in one thing, on the safe side: the family of `socket` is an `int` to the kernel, so only its
//! lower half is compared. A full comparison lets a program ask for a forbidden family with a bit set above it.

use super::{Arch, Comparison, Condition, PlanError, Policy, Rule, SeccompHost, Verdict};
use crate::plan::capabilities;

/// Any container may make these.
const ALLOWED: &str = "\
    accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32 clock_adjtime \
    clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep \
    clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 \
    epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit \
    exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 \
    fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat \
    fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait \
    futex_waitv futex_wake futimesat getcpu getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid \
    getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom \
    getresgid getresgid32 getresuid getresuid32 getrlimit get_robust_list getrusage getsid getsockname getsockopt \
    get_thread_area gettid gettimeofday getuid getuid32 getxattr getxattrat inotify_add_watch inotify_init \
    inotify_init1 inotify_rm_watch io_cancel ioctl io_destroy io_getevents io_pgetevents io_pgetevents_time64 \
    ioprio_get ioprio_set io_setup io_submit ipc kill landlock_add_rule landlock_create_ruleset \
    landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount listxattr listxattrat llistxattr \
    _llseek lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack membarrier memfd_create memfd_secret \
    mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open \
    mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget \
    msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat _newselect open openat \
    openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 \
    prctl pread64 preadv preadv2 prlimit64 process_mrelease pselect6 pselect6_time64 pwrite64 pwritev pwritev2 read \
    readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr \
    removexattrat rename renameat renameat2 restart_syscall riscv_hwprobe rmdir rseq rt_sigaction rt_sigpending \
    rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 \
    rt_tgsigqueueinfo sched_getaffinity sched_getattr sched_getparam sched_get_priority_max sched_get_priority_min \
    sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr \
    sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64 \
    send sendfile sendfile64 sendmmsg sendmsg sendto setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 \
    setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid \
    setresuid32 setreuid setreuid32 setrlimit set_robust_list setsid setsockopt set_thread_area set_tid_address \
    setuid setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 \
    sigprocmask sigreturn socketcall socketpair splice stat stat64 statfs statfs64 statmount statx symlink symlinkat \
    sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime \
    timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime \
    timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime \
    utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev";

/// With this capability, these as well.
const WITH_CAPABILITY: [(&str, &str); 14] = [
    ("BPF", "bpf"),
    ("DAC_READ_SEARCH", "open_by_handle_at"),
    ("PERFMON", "perf_event_open"),
    (
        "SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr \
        lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl \
        quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    ),
    ("SYS_BOOT", "reboot"),
    ("SYS_CHROOT", "chroot"),
    ("SYS_MODULE", "delete_module init_module finit_module"),
    ("SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("SYS_PACCT", "acct"),
    ("SYS_PTRACE", "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace"),
    ("SYS_RAWIO", "iopl ioperm"),
    ("SYS_TIME", "settimeofday stime clock_settime clock_settime64"),
    ("SYS_TTY_CONFIG", "vhangup"),
    ("SYSLOG", "syslog"),
];

/// Where the architecture has them.
const OF_X86: &str = "arch_prctl modify_ldt";
const OF_ARM: &str = "sync_file_range2";

/// Older kernels let a traced process escape its filter.
const PTRACE: (&str, (u32, u32)) = ("process_vm_readv process_vm_writev ptrace", (4, 8));

/// `AF_ALG`: the kernel's crypto, a long row of holes. `AF_VSOCK`: the hypervisor is not the container's business.
const AF_ALG: u64 = 38;
const AF_VSOCK: u64 = 40;

/// What `personality` may become: Linux, with 32-bit `uname` or with UNAME26 or both, or nothing (a question).
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// All `CLONE_NEW*` that `clone` takes: mounts, cgroups, uts, ipc, users, pids, network.
const NAMESPACES: u64 = 0x7e02_0000;

/// The policy for a container with this bounding set.
pub(super) fn policy(host: &SeccompHost, held: u64) -> Result<Policy<'static>, PlanError> {
    let native = host.native()?;
    let arches = match native {
        Arch::Aarch64 => vec![native],
        _ => vec![Arch::X86_64, Arch::X86, Arch::X32],
    };
    let mut rules = vec![allow(ALLOWED, Vec::new())];
    for (capability, names) in WITH_CAPABILITY {
        if capabilities::holds(held, capability) {
            rules.push(allow(names, Vec::new()));
        }
    }
    if host.kernel >= PTRACE.1 {
        rules.push(allow(PTRACE.0, Vec::new()));
    }
    rules.push(allow(if native == Arch::Aarch64 { OF_ARM } else { OF_X86 }, Vec::new()));
    let first = |comparison, value, narrow| vec![Condition { argument: 0, comparison, value, narrow }];
    rules.push(allow("socket", first(Comparison::Less, AF_ALG, true)));
    rules.push(allow("socket", first(Comparison::Equal, AF_ALG + 1, true)));
    rules.push(allow("socket", first(Comparison::Greater, AF_VSOCK, true)));
    for personality in PERSONALITIES {
        rules.push(allow("personality", first(Comparison::Equal, personality, false)));
    }
    if !capabilities::holds(held, "SYS_ADMIN") {
        rules.push(allow("clone", first(Comparison::Masked(NAMESPACES), 0, false)));
        // Its flags are in memory, where a filter cannot look: C libraries are told to use clone instead.
        rules.push(Rule { verdict: Verdict::errno(libc::ENOSYS as u16), ..allow("clone3", Vec::new()) });
    }
    Ok(Policy { default: Verdict::errno(libc::EPERM as u16), arches, rules, flags: super::profile::DEFAULT_FLAGS })
}

fn allow(names: &'static str, conditions: Vec<Condition>) -> Rule<'static> {
    Rule { names: names.split_ascii_whitespace().collect(), verdict: Verdict::ALLOW, conditions }
}
