//! Where things lie in the address space of a runner, and in the pages that it shares with the hypervisor.
//!
//! A runner's address space is the guest's, but for the *hole*: the stub's code, the commands for the mapper (read-only
//! there) and the stub's writable words with the signal frame. An address space in which the guest itself maps something
//! in the hole is never run directly.

/// Start of the hole: far from where programs, heaps, libraries, stacks and sanitizer shadows lie.
pub const HOLE: u64 = 0x2a2a_4000_0000;
/// The hole is one L2 entry's worth of addresses.
pub const HOLE_BYTES: u64 = 2 << 20;
/// The stub's code, one page, readable and executable.
pub const CODE: u64 = HOLE;
/// The shared pages: commands, then words, then the frame.
pub const SHARED: u64 = HOLE + 0x1000;
/// Commands: a table of seven-word records that ends with a zero word. Read-only to the runner.
pub const COMMANDS_BYTES: u64 = 0x4000;
/// Records in the table.
pub const NR_COMMANDS: usize = COMMANDS_BYTES as usize / (8 * COMMAND_WORDS) - 1;
/// System call number and six arguments.
pub const COMMAND_WORDS: usize = 7;
/// The words that stub and hypervisor exchange, one page. Writable to the runner from here on.
pub const WORDS_AT: u64 = COMMANDS_BYTES;
pub const WORDS_BYTES: u64 = 0x1000;
/// The signal stack, with the frame.
pub const STACK_AT: u64 = WORDS_AT + WORDS_BYTES;
pub const STACK_BYTES: u64 = 0x8000;
/// All shared pages.
pub const SHARED_BYTES: u64 = STACK_AT + STACK_BYTES;

/// Copies of code pages with some instructions replaced, behind the shared pages in the same file; not mapped at first.
pub const PATCHED_AT: u64 = SHARED_BYTES;
pub const NR_PATCHED: usize = 64;

/// Offsets in the page of words.
pub mod word {
    pub const SIGNAL: usize = 0;
    pub const SIGINFO: usize = 8;
    pub const UCONTEXT: usize = 16;
    pub const FS_BASE: usize = 24;
    pub const GS_BASE: usize = 32;
    /// Four 16-bit selectors: DS, ES, FS, GS.
    pub const SELECTORS: usize = 40;
    pub const LISTENER: usize = 48;
    pub const MAPPER_TID: usize = 56;
    pub const RESULT: usize = 64;
    pub const SIGNAL_MASK: usize = 72;
    /// `struct sock_fprog`, then the filter.
    pub const FILTER: usize = 128;
    pub const FILTER_CODE: usize = 144;
    /// `struct msghdr`, its iovec, and the control message with the listener.
    pub const MESSAGE: usize = 512;
    pub const IOVEC: usize = 576;
    pub const CONTROL: usize = 592;
    pub const CONTROL_FD: usize = CONTROL + 16;
}

/// Descriptors of a runner process: the channel to the hypervisor, machine memory, the shared pages.
pub const FD_CHANNEL: i32 = 3;
pub const FD_MACHINE: i32 = 4;
pub const FD_SHARED: i32 = 5;
