//! What a runner may ask of the host's kernel.

use super::stub_unsafe;

/// The runner's seccomp filter: the park is for the hypervisor, the stub's return from a signal passes, every other call of
/// whatever ABI becomes SIGSYS. Each element is a `struct sock_filter`. Source: Linux include/uapi/linux/filter.h, audit.h.
pub fn filter() -> [u64; 12] {
    const LOAD: u16 = 0x20;
    const JUMP_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
    /// Offsets in `struct seccomp_data`.
    const NR: u32 = 0;
    const ARCH: u32 = 4;
    const IP_LOW: u32 = 8;
    const IP_HIGH: u32 = 12;
    let instruction = |code: u16, if_true: u8, if_false: u8, k: u32| {
        u64::from(code) | u64::from(if_true) << 16 | u64::from(if_false) << 24 | u64::from(k) << 32
    };
    let (parked, returning) = (stub_unsafe::parked(), stub_unsafe::returning());
    [
        instruction(LOAD, 0, 0, ARCH),
        instruction(JUMP_EQUAL, 0, 9, AUDIT_ARCH_X86_64),
        instruction(LOAD, 0, 0, IP_HIGH),
        instruction(JUMP_EQUAL, 0, 7, (parked >> 32) as u32),
        instruction(LOAD, 0, 0, IP_LOW),
        instruction(JUMP_EQUAL, 3, 0, parked as u32),
        instruction(JUMP_EQUAL, 0, 4, returning as u32),
        instruction(LOAD, 0, 0, NR),
        instruction(JUMP_EQUAL, 1, 2, libc::SYS_rt_sigreturn as u32),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_USER_NOTIF),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_TRAP),
    ]
}
