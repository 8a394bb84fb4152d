//! The host's time stamp counter and CPUID, as the instructions give them.
#![allow(unsafe_code)]

use std::arch::x86_64::{__cpuid_count, _rdtsc};

/// Reads the time stamp counter.
pub fn rdtsc() -> u64 {
    // SAFETY: `rdtsc` has no preconditions; if the host forbids it (prctl PR_SET_TSC), nothing here would work.
    unsafe { _rdtsc() }
}

/// Registers EAX, EBX, ECX, EDX of one host CPUID leaf.
#[allow(unused_unsafe)]
pub fn host_cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    // SAFETY: every x86-64 CPU has `cpuid`.
    let r = unsafe { __cpuid_count(leaf, subleaf) };
    [r.eax, r.ebx, r.ecx, r.edx]
}

/// Asks the host not to batch this thread's timeouts: guests' timers are as exact as they can be.
pub fn set_timer_slack() {
    // SAFETY: a system call on the calling thread, with no pointers.
    unsafe {
        libc::prctl(
            libc::PR_SET_TIMERSLACK,
            1 as libc::c_ulong,
            0 as libc::c_ulong,
            0 as libc::c_ulong,
            0 as libc::c_ulong,
        )
    };
}
