//! The stub: what a runner executes besides the guest's user code. Position-dependent only through RIP.
//!
//! Two threads run it. The *runner* runs guest code; every signal brings it to `handler`, which leaves the registers in the
//! signal frame and parks in a system call that the seccomp filter turns into a notification for the hypervisor: while
//! that is unanswered the kernel itself holds the thread, whatever the guest wrote to the shared words. The *mapper* waits for the
//! channel and executes the mapping calls that the hypervisor wrote to the command table, which is read-only here. It uses
//! no memory that the guest can write but to hand over the result, while the runner is parked.
#![allow(unsafe_code)]

use super::layout::{CODE, COMMANDS_BYTES, FD_CHANNEL, HOLE, HOLE_BYTES, SHARED, WORDS_AT, word};

/// End of what a process may map. Source: Linux arch/x86/include/asm/page_64_types.h, TASK_SIZE_MAX.
const TASK_END: u64 = 0x7fff_ffff_f000;
/// CLONE_VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, PARENT_SETTID.
const CLONE_FLAGS: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_PARENT_SETTID;
/// A number that is no system call: the filter knows the park by its address.
pub const PARK: i32 = 0x5052;
/// What `LISTENER` holds before the filter is installed.
pub const NO_LISTENER: i32 = i32::MIN;

std::arch::global_asm!(
    ".pushsection .text.ring3_direct, \"ax\", @progbits",
    ".balign 4096",
    ".global ring3_direct_stub",
    ".hidden ring3_direct_stub",
    "ring3_direct_stub:",
    // The runner's start: makes the mapper, unblocks signals, installs the filter, and makes the first frame.
    "mov edi, {clone_flags}",
    "xor esi, esi",
    "lea rdx, [rip + ring3_direct_stub + {tid}]",
    "xor r10d, r10d",
    "xor r8d, r8d",
    "mov eax, {sys_clone}",
    "syscall",
    "test eax, eax",
    "jz 20f",
    "js 29f",
    "mov edi, {sig_setmask}",
    "lea rsi, [rip + ring3_direct_stub + {signal_mask}]",
    "xor edx, edx",
    "mov r10d, 8",
    "mov eax, {sys_sigprocmask}",
    "syscall",
    "mov edi, {set_filter}",
    "mov esi, {new_listener}",
    "lea rdx, [rip + ring3_direct_stub + {filter}]",
    "mov eax, {sys_seccomp}",
    "syscall",
    "mov [rip + ring3_direct_stub + {listener}], eax",
    "ud2",
    // The handler: (signal, siginfo, ucontext).
    ".global ring3_direct_handler",
    ".hidden ring3_direct_handler",
    "ring3_direct_handler:",
    "mov [rip + ring3_direct_stub + {signal}], rdi",
    "mov [rip + ring3_direct_stub + {siginfo}], rsi",
    "mov [rip + ring3_direct_stub + {ucontext}], rdx",
    "rdfsbase rax",
    "mov [rip + ring3_direct_stub + {fs_base}], rax",
    "rdgsbase rax",
    "mov [rip + ring3_direct_stub + {gs_base}], rax",
    "mov eax, ds",
    "mov [rip + ring3_direct_stub + {selectors}], ax",
    "mov eax, es",
    "mov [rip + ring3_direct_stub + {selectors} + 2], ax",
    "mov eax, fs",
    "mov [rip + ring3_direct_stub + {selectors} + 4], ax",
    "mov eax, gs",
    "mov [rip + ring3_direct_stub + {selectors} + 6], ax",
    "mov eax, {park}",
    "syscall",
    ".global ring3_direct_parked",
    ".hidden ring3_direct_parked",
    "ring3_direct_parked:",
    "xor eax, eax",
    "mov ds, eax",
    "mov es, eax",
    "mov fs, eax",
    "mov gs, eax",
    "mov rax, [rip + ring3_direct_stub + {fs_base}]",
    "wrfsbase rax",
    "mov rax, [rip + ring3_direct_stub + {gs_base}]",
    "wrgsbase rax",
    "mov rsp, [rip + ring3_direct_stub + {ucontext}]",
    "mov eax, {sys_sigreturn}",
    "syscall",
    ".global ring3_direct_returning",
    ".hidden ring3_direct_returning",
    "ring3_direct_returning:",
    "ud2",
    // The mapper: sends the listener, takes everything but the hole away, then serves commands.
    "20:",
    "mov eax, [rip + ring3_direct_stub + {listener}]",
    "cmp eax, {no_listener}",
    "pause",
    "je 20b",
    "mov [rip + ring3_direct_stub + {control_fd}], eax",
    "mov edi, {channel}",
    "lea rsi, [rip + ring3_direct_stub + {message}]",
    "xor edx, edx",
    "mov eax, {sys_sendmsg}",
    "syscall",
    "test rax, rax",
    "js 29f",
    "xor edi, edi",
    "mov rsi, {hole}",
    "mov eax, {sys_munmap}",
    "syscall",
    "mov rdi, {hole_end}",
    "mov rsi, {above}",
    "mov eax, {sys_munmap}",
    "syscall",
    "21:",
    "mov edi, {channel}",
    "lea rsi, [rip + ring3_direct_stub + {result}]",
    "mov edx, 1",
    "xor eax, eax",
    "syscall",
    "cmp rax, 1",
    "jne 29f",
    "lea rbx, [rip + ring3_direct_stub + {commands}]",
    "xor r13d, r13d",
    "22:",
    "mov rax, [rbx]",
    "test rax, rax",
    "jz 24f",
    "mov rdi, [rbx + 8]",
    "mov rsi, [rbx + 16]",
    "mov rdx, [rbx + 24]",
    "mov r10, [rbx + 32]",
    "mov r8, [rbx + 40]",
    "mov r9, [rbx + 48]",
    "syscall",
    "cmp rax, -4095",
    "jb 23f",
    "mov r13, rax",
    "23:",
    "add rbx, 56",
    "jmp 22b",
    "24:",
    "mov [rip + ring3_direct_stub + {result}], r13",
    "mov edi, {channel}",
    "lea rsi, [rip + ring3_direct_stub + {result}]",
    "mov edx, 8",
    "mov eax, 1",
    "syscall",
    "cmp rax, 8",
    "je 21b",
    "29:",
    "xor edi, edi",
    "mov eax, {sys_exit_group}",
    "syscall",
    "ud2",
    ".balign 4096",
    ".popsection",
    clone_flags = const CLONE_FLAGS,
    sys_clone = const libc::SYS_clone as i32,
    sys_sigprocmask = const libc::SYS_rt_sigprocmask as i32,
    sys_seccomp = const libc::SYS_seccomp as i32,
    sys_sigreturn = const libc::SYS_rt_sigreturn as i32,
    sys_sendmsg = const libc::SYS_sendmsg as i32,
    sys_munmap = const libc::SYS_munmap as i32,
    sys_exit_group = const libc::SYS_exit_group as i32,
    sig_setmask = const libc::SIG_SETMASK,
    set_filter = const libc::SECCOMP_SET_MODE_FILTER as i32,
    new_listener = const libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as i32,
    park = const PARK,
    no_listener = const NO_LISTENER,
    channel = const FD_CHANNEL,
    hole = const HOLE as i64,
    hole_end = const (HOLE + HOLE_BYTES) as i64,
    above = const (TASK_END - HOLE - HOLE_BYTES) as i64,
    commands = const (SHARED - CODE) as i32,
    tid = const at(word::MAPPER_TID),
    signal_mask = const at(word::SIGNAL_MASK),
    filter = const at(word::FILTER),
    listener = const at(word::LISTENER),
    signal = const at(word::SIGNAL),
    siginfo = const at(word::SIGINFO),
    ucontext = const at(word::UCONTEXT),
    fs_base = const at(word::FS_BASE),
    gs_base = const at(word::GS_BASE),
    selectors = const at(word::SELECTORS),
    control_fd = const at(word::CONTROL_FD),
    message = const at(word::MESSAGE),
    result = const at(word::RESULT),
);

/// Distance of a word from the stub's first byte.
const fn at(offset: usize) -> i32 {
    (SHARED - CODE + WORDS_AT) as i32 + offset as i32
}

const _: () = assert!(COMMANDS_BYTES == WORDS_AT);

unsafe extern "C" {
    static ring3_direct_stub: [u8; 4096];
    static ring3_direct_handler: u8;
    static ring3_direct_parked: u8;
    static ring3_direct_returning: u8;
}

/// The stub's code, to be copied to [`CODE`].
pub fn code() -> &'static [u8; 4096] {
    // SAFETY: the section above is padded to one page, and is never written.
    unsafe { &*std::ptr::addr_of!(ring3_direct_stub) }
}

fn offset_of(label: *const u8) -> u64 {
    label as u64 - code().as_ptr() as u64
}

/// Addresses within [`CODE`] of: the handler, and what follows the system calls that the filter lets through.
pub fn handler() -> u64 {
    CODE + offset_of(&raw const ring3_direct_handler)
}

pub fn parked() -> u64 {
    CODE + offset_of(&raw const ring3_direct_parked)
}

pub fn returning() -> u64 {
    CODE + offset_of(&raw const ring3_direct_returning)
}
