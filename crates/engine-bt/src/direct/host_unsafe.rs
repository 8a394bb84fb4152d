//! Small requests to the host: signals and CPU affinity.
#![allow(unsafe_code)]

use super::KICK;

/// Has a runner leave guest code.
pub fn kick(pid: i32) {
    // SAFETY: a signal to the first thread of a process of ours.
    unsafe { libc::syscall(libc::SYS_tgkill, pid, pid, KICK) };
}

/// Ends a runner. Its nursery reaps it, so nobody else has its process id yet.
pub fn end(pid: i32) {
    // SAFETY: a signal to a process of ours.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

/// CPU time that a process has used, in nanoseconds.
pub fn cpu_time_ns(pid: i32) -> Option<u64> {
    /// CPUCLOCK_SCHED. Source: Linux include/linux/posix-timers.h.
    const SCHEDULED: i32 = 2;
    // SAFETY: the structure is a local.
    let (done, time) = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        (libc::clock_gettime(!pid << 3 | SCHEDULED, &raw mut time), time)
    };
    (done == 0).then(|| time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// Binds a thread to one CPU; 0 is the caller. Failure costs time only.
pub fn bind_thread(tid: i32, cpu: i32) {
    // SAFETY: the set is a local.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu.max(0) as usize, &mut set);
        libc::sched_setaffinity(tid, size_of::<libc::cpu_set_t>(), &raw const set);
    }
}

/// The caller bound to the CPU that it is on, until `release`, which the same thread calls.
pub struct Bound {
    before: libc::cpu_set_t,
    cpu: i32,
}

impl std::fmt::Debug for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bound").field("cpu", &self.cpu).finish_non_exhaustive()
    }
}

impl Bound {
    pub fn here() -> Self {
        // SAFETY: the set is a local.
        unsafe {
            let mut before: libc::cpu_set_t = std::mem::zeroed();
            libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut before);
            let cpu = libc::sched_getcpu();
            bind_thread(0, cpu);
            Self { before, cpu }
        }
    }

    pub fn cpu(&self) -> i32 {
        self.cpu
    }

    /// Gives the thread its CPUs back.
    pub fn release(self) {
        // SAFETY: the set is a local.
        unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const self.before) };
    }
}
