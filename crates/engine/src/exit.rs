//! Why a vCPU came back from the guest.

use crate::Requests;

/// Exception vectors. Source: Intel SDM vol. 3, "Exception and Interrupt Reference".
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const XM: u8 = 19;
}

/// Why [`crate::Vcpu::run`] returned. Registers are architectural at every exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// `syscall` in kernel mode: a hypercall. RIP is after it; RCX holds that RIP and R11 the flags, as hardware does.
    Hypercall,
    /// `syscall` in user mode. Registers as for `Hypercall`.
    Syscall,
    /// A fault or trap that the guest must take. For faults RIP is the faulting instruction.
    /// Page-fault error codes carry P, W/R and I/D as hardware; the U bit is the hypervisor's.
    Exception { vector: u8, error_code: Option<u32>, cr2: u64 },
    /// A debug exception; `hits` is what DR6 shows of it: B0 to B3, BS, or nothing (`int1`). RIP is at the instruction
    /// for a breakpoint on its execution, after the instruction otherwise (at a repeated string instruction with
    /// elements left, at it).
    Debug { hits: u64 },
    /// `int n`, `int3` or `into` taken; RIP is after it.
    SoftwareInterrupt { vector: u8 },
    /// The instruction at RIP is not part of the unprivileged ISA, or depends on state that the hypervisor keeps
    /// (port I/O, control and debug registers, MSRs, `cpuid`, `hlt`, `cli`, descriptor tables, segment loads, far
    /// transfers, `iret`, `sysenter`). The hypervisor decodes and emulates it, or injects #GP.
    Privileged,
    /// The guest has executed many `pause` instructions: it may be waiting for another vCPU that has no pCPU. RIP is where
    /// it goes on. An engine need not tell.
    Spinning,
    /// A request was seen at a safe point; those that the engine does not serve itself are listed, and taken.
    Interrupted(Requests),
    /// [`crate::Vcpu::step`] completed its one instruction.
    Stepped,
    /// The engine cannot go on with this guest (host out of memory, an internal limit). The domain is crashed with
    /// this reason; the guest cannot cause it otherwise.
    Failed(&'static str),
}
