//! The filter of system calls: what threads, memory, clocks, and descriptors that are open already need. Everything else
//! answers -EPERM: the call fails, and the machine lives on.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use crate::Error;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Allowed with any arguments: none of them names a file, a program or a peer.
const PLAIN: &[c_long] = &[
    // Memory. mmap and mprotect have conditions, below.
    libc::SYS_brk,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_madvise,
    libc::SYS_memfd_create,
    libc::SYS_mremap,
    libc::SYS_msync,
    libc::SYS_munmap,
    // Threads.
    libc::SYS_clone3, // the other filter says that there is none
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_get_robust_list,
    libc::SYS_getcpu,
    libc::SYS_gettid,
    libc::SYS_membarrier,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    // Signals. To whom: Landlock.
    libc::SYS_kill,
    libc::SYS_pidfd_send_signal,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_wait4,
    libc::SYS_waitid,
    // Time.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
    // Descriptors that are open, and kinds that lead nowhere.
    libc::SYS_accept4,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd2,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fsync,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_lseek,
    libc::SYS_pipe2,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_pselect6,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_select,
    libc::SYS_sendmsg,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_write,
    libc::SYS_writev,
    // Facts about ourselves.
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_getuid,
    libc::SYS_sysinfo,
    libc::SYS_times,
    libc::SYS_uname,
];

/// Flags without which `clone` makes a process.
#[allow(clippy::cast_sign_loss)]
const THREAD: u64 = (libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD) as u64;
#[allow(clippy::cast_sign_loss)]
const PROT_WRITE: u64 = libc::PROT_WRITE as u64;
#[allow(clippy::cast_sign_loss)]
const PROT_EXEC: u64 = libc::PROT_EXEC as u64;

#[allow(clippy::cast_sign_loss)]
const AF_UNIX: u64 = libc::AF_UNIX as u64;

#[allow(clippy::cast_sign_loss)]
const AT_EMPTY_PATH: u64 = libc::AT_EMPTY_PATH as u64;

/// Requests of `ioctl`: of Linux's asm-generic/ioctls.h, then of linux/seccomp.h (who watches the system calls of another
/// process).
const IOCTLS: &[u64] = &[
    0x5421,      // FIONBIO
    0x5450,      // FIONCLEX
    0x5451,      // FIOCLEX
    0xc050_2100, // SECCOMP_IOCTL_NOTIF_RECV
    0xc018_2101, // SECCOMP_IOCTL_NOTIF_SEND
    0x4008_2102, // SECCOMP_IOCTL_NOTIF_ID_VALID
    0x4018_2103, // SECCOMP_IOCTL_NOTIF_ADDFD
    0x4008_2104, // SECCOMP_IOCTL_NOTIF_SET_FLAGS
];

/// Options of `prctl`: names of threads and of mappings, timer slack.
#[allow(clippy::cast_sign_loss)]
const PRCTLS: &[u64] =
    &[libc::PR_GET_NAME as u64, libc::PR_SET_NAME as u64, libc::PR_SET_TIMERSLACK as u64, libc::PR_SET_VMA as u64];

/// Functions of `arch_prctl`: the GS base, on a host whose kernel does not let us set it ourselves. Source: Linux,
/// asm/prctl.h.
const ARCH_PRCTLS: &[u64] = &[
    0x1001, // ARCH_SET_GS
    0x1004, // ARCH_GET_GS
];

/// A rule for one argument, 32 bits or 64.
fn argument(index: u8, len: SeccompCmpArgLen, op: SeccompCmpOp, value: u64) -> Result<SeccompRule, Error> {
    Ok(SeccompRule::new(vec![SeccompCondition::new(index, len, op, value)?])?)
}

fn one_of(index: u8, values: &[u64]) -> Result<Vec<SeccompRule>, Error> {
    values.iter().map(|&value| argument(index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)).collect()
}

fn without(index: u8, bit: u64) -> Result<SeccompRule, Error> {
    argument(index, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(bit), 0)
}

fn allowed() -> Result<Rules, Error> {
    let mut rules: Rules = PLAIN.iter().map(|&number| (number, Vec::new())).collect();
    rules.extend([
        // No page that is written and executed at one address.
        (libc::SYS_mmap, vec![without(2, PROT_WRITE)?, without(2, PROT_EXEC)?]),
        (libc::SYS_mprotect, vec![without(2, PROT_EXEC)?]),
        (libc::SYS_clone, vec![argument(0, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(THREAD), THREAD)?]),
        (libc::SYS_ioctl, one_of(1, IOCTLS)?),
        (libc::SYS_prctl, one_of(0, PRCTLS)?),
        (libc::SYS_arch_prctl, one_of(0, ARCH_PRCTLS)?),
        // Of Unix sockets: those of the Internet would do no harm, but nobody needs them.
        (libc::SYS_socketpair, one_of(0, &[AF_UNIX])?),
        // To a peer that is connected, not to an address.
        (libc::SYS_sendto, vec![argument(4, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?]),
        // fstat, as the C library makes it. It can look at a path, too, but does not open it.
        (libc::SYS_newfstatat, one_of(3, &[AT_EMPTY_PATH])?),
        // Our own limits, to read.
        (libc::SYS_prlimit64, vec![argument(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?]),
    ]);
    Ok(rules)
}

fn program(rules: Rules, otherwise: SeccompAction, matched: SeccompAction) -> Result<BpfProgram, Error> {
    Ok(SeccompFilter::new(rules, otherwise, matched, TargetArch::x86_64)?.try_into()?)
}

/// Leaves to every thread of the process, for good, only the system calls of the list, and no privilege by exec.
///
/// # Errors
/// [`Error::Seccomp`]; part of it may be in force then.
pub fn forbid_syscalls() -> Result<(), Error> {
    let errno = |number: i32| SeccompAction::Errno(number.unsigned_abs());
    // A filter cannot see the arguments of clone3. The C library takes clone where there is no clone3.
    let no_clone3 = Rules::from([(libc::SYS_clone3, Vec::new())]);
    let no_clone3 = program(no_clone3, SeccompAction::Allow, errno(libc::ENOSYS))?;
    let list = program(allowed()?, errno(libc::EPERM), SeccompAction::Allow)?;
    seccompiler::apply_filter_all_threads(&no_clone3)?;
    // The first filter lets `seccomp` through; the second one does not.
    seccompiler::apply_filter_all_threads(&list)?;
    Ok(())
}
