//! The nursery: a process of our own, forked when the engine is made, that forks runners on demand.
//!
//! It is forked early so that the hypervisor may give up `fork` and `exec` afterwards, and gives its copy of the
//! hypervisor's memory back at once. A runner becomes the stub's (`stub_unsafe.rs`) and gives the rest back too.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use parking_lot::Mutex;

use super::layout::{
    CODE, COMMANDS_BYTES, FD_CHANNEL, FD_MACHINE, FD_SHARED, SHARED, SHARED_BYTES, STACK_AT, STACK_BYTES,
};
use super::messages_unsafe::{pair, receive, send};
use super::shed_unsafe::{Kept, give_back, open_maps};
use super::{KICK, stub_unsafe};

/// Signals that bring a runner to the stub's handler.
pub const CAUGHT: [i32; 7] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGSYS, KICK];
/// `rseq(2)`: flag to unregister, and glibc's signature. Source: Linux include/uapi/linux/rseq.h, glibc sys/rseq.h.
const RSEQ_FLAG_UNREGISTER: i32 = 1;
const RSEQ_SIGNATURE: u32 = 0x5305_3053;
/// Source: Linux include/uapi/asm-generic/signal-defs.h.
const SA_RESTORER: u64 = 0x0400_0000;
/// Descriptors are moved here before they take their final places.
const FD_ASIDE: i32 = 64;

/// The hypervisor's end.
#[derive(Debug)]
pub struct Nursery {
    /// `None` only while being dropped.
    socket: Mutex<Option<OwnedFd>>,
    pid: i32,
}

impl Drop for Nursery {
    fn drop(&mut self) {
        // Without its socket it ends.
        *self.socket.lock() = None;
        // SAFETY: reaps our own child.
        unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), 0) };
    }
}

/// Where the C library registered its restartable sequences: they must go before their memory does.
#[derive(Clone, Copy, Debug)]
struct Rseq {
    address: u64,
    size: u32,
}

impl Rseq {
    /// That of this thread; zero if there is none.
    fn current() -> Self {
        // SAFETY: 1. The names are NUL-terminated. 2. The symbols, where there are any, are constants of glibc with these
        // types. 3. The thread pointer is the word at FS:0 (x86-64 ABI).
        unsafe {
            let offset = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()).cast::<isize>();
            let size = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_size".as_ptr()).cast::<u32>();
            if offset.is_null() || size.is_null() || *size == 0 {
                return Self { address: 0, size: 0 };
            }
            let thread: u64;
            std::arch::asm!("mov {}, fs:[0]", out(reg) thread, options(nostack, readonly, preserves_flags));
            Self { address: thread.wrapping_add_signed(*offset as i64), size: *size }
        }
    }

    fn unregister(self) -> bool {
        self.address == 0
            || [32, self.size].into_iter().any(|len| {
                // SAFETY: unregisters what the C library registered for this thread, or fails.
                unsafe { libc::syscall(libc::SYS_rseq, self.address, len, RSEQ_FLAG_UNREGISTER, RSEQ_SIGNATURE) == 0 }
            })
    }
}

impl Nursery {
    /// Forks the nursery.
    ///
    /// # Errors
    /// The host's.
    pub fn start() -> io::Result<Self> {
        let (ours, theirs) = pair(libc::SOCK_SEQPACKET)?;
        // A process that has not given up files needs no preparation.
        open_maps();
        let (rseq, kept) = (Rseq::current(), Kept::look());
        // SAFETY: the child calls only what is listed in `live`, which takes no lock and allocates nothing.
        match unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) } {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: this is the child, with one thread.
            0 => unsafe { live(theirs.as_raw_fd(), rseq, &kept) },
            pid => Ok(Self { socket: Mutex::new(Some(ours)), pid: pid as i32 }),
        }
    }

    /// Has a runner forked with these descriptors; returns its process id.
    ///
    /// # Errors
    /// The host's; `BrokenPipe` if the nursery is gone.
    pub fn spawn(&self, channel: BorrowedFd<'_>, machine: BorrowedFd<'_>, shared: BorrowedFd<'_>) -> io::Result<i32> {
        let guard = self.socket.lock();
        let Some(socket) = guard.as_ref() else { return Err(io::Error::from(io::ErrorKind::BrokenPipe)) };
        send(socket.as_raw_fd(), &[0], &[channel.as_raw_fd(), machine.as_raw_fd(), shared.as_raw_fd()])?;
        let mut pid = [0u8; 4];
        if receive(socket.as_raw_fd(), &mut pid, &mut [])? != (4, 0) {
            return Err(io::Error::from(io::ErrorKind::BrokenPipe));
        }
        let pid = i32::from_ne_bytes(pid);
        if pid > 0 { Ok(pid) } else { Err(io::Error::from_raw_os_error(-pid)) }
    }

    /// Ends a runner. Its process id stays taken until here, so nobody else's process is ever meant.
    pub fn end(&self, pid: i32) {
        if let Some(socket) = self.socket.lock().as_ref() {
            // A nursery that is gone has left its runners to the host, which reaps them.
            let _ = send(socket.as_raw_fd(), &pid.to_ne_bytes(), &[]);
        }
    }
}

/// The nursery's life: forks a runner for each message, until the hypervisor is gone.
///
/// # Safety
/// In a process of one thread that nobody else counts on. Everything called here is a thin wrapper of a system call.
unsafe fn live(socket: i32, rseq: Rseq, kept: &Kept) -> ! {
    // SAFETY: 1. System calls on our own descriptors and on this process alone. 2. `give_back` keeps what runs here, and `kept` is on the stack.
    unsafe {
        libc::setsid();
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
        libc::prctl(libc::PR_SET_NAME, c"ring3-nursery".as_ptr());
        give_back(kept);
        libc::dup2(socket, FD_ASIDE);
        libc::syscall(libc::SYS_close_range, FD_ASIDE + 1, u32::MAX, 0);
        libc::syscall(libc::SYS_close_range, 0, FD_ASIDE - 1, 0);
        loop {
            let (mut bytes, mut fds) = ([0u8; 4], [-1i32; 3]);
            match receive(FD_ASIDE, &mut bytes, &mut fds) {
                Ok((1, 3)) => {}
                Ok((4, 0)) => {
                    let pid = i32::from_ne_bytes(bytes);
                    libc::kill(pid, libc::SIGKILL);
                    libc::waitpid(pid, std::ptr::null_mut(), 0);
                    continue;
                }
                _ => libc::_exit(0),
            }
            let pid = libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) as i32;
            if pid == 0 {
                become_runner(fds, rseq);
            }
            let answer = if pid < 0 { -*libc::__errno_location() } else { pid };
            for fd in fds {
                libc::close(fd);
            }
            let _ = send(FD_ASIDE, &answer.to_ne_bytes(), &[]);
        }
    }
}

/// Turns this process into a runner: descriptors to their places, the stub and the shared pages into the hole, signals to the
/// handler; then the stub goes on.
///
/// # Safety
/// As for [`live`]; `fds` are the channel, machine memory and the shared pages.
unsafe fn become_runner(fds: [i32; 3], rseq: Rseq) -> ! {
    // SAFETY: 1. System calls on this process alone. 2. The hole's addresses are mapped with NOREPLACE first. 3. The jump
    // goes to the stub, which needs nothing but the hole.
    unsafe {
        let aside = fds.map(|fd| libc::fcntl(fd, libc::F_DUPFD, FD_ASIDE + 8));
        for (fd, place) in aside.into_iter().zip([FD_CHANNEL, FD_MACHINE, FD_SHARED]) {
            if libc::dup2(fd, place) < 0 {
                libc::_exit(1);
            }
        }
        libc::syscall(libc::SYS_close_range, FD_SHARED + 1, u32::MAX, 0);
        libc::syscall(libc::SYS_close_range, 0, FD_CHANNEL - 1, 0);
        libc::prctl(libc::PR_SET_NAME, c"ring3-runner".as_ptr());
        let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        libc::setrlimit(libc::RLIMIT_CORE, &raw const no_core);
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || !rseq.unregister() {
            libc::_exit(1);
        }
        let fixed = libc::MAP_FIXED_NOREPLACE;
        let read_write = libc::PROT_READ | libc::PROT_WRITE;
        let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | fixed;
        let shared = libc::MAP_SHARED | fixed;
        let place = |address: u64, len: u64, prot, flags, fd, offset: u64| {
            let at = libc::mmap(address as *mut c_void, len as usize, prot, flags, fd, offset as i64);
            if at as u64 != address {
                libc::_exit(1);
            }
        };
        place(CODE, 4096, read_write, private, -1, 0);
        std::ptr::copy_nonoverlapping(stub_unsafe::code().as_ptr(), CODE as *mut u8, 4096);
        libc::mprotect(CODE as *mut c_void, 4096, libc::PROT_READ | libc::PROT_EXEC);
        place(SHARED, COMMANDS_BYTES, libc::PROT_READ, shared, FD_SHARED, 0);
        let rest = SHARED + COMMANDS_BYTES;
        place(rest, SHARED_BYTES - COMMANDS_BYTES, read_write, shared, FD_SHARED, COMMANDS_BYTES);

        // All signals are blocked here; those that are not caught are ignored, for their handlers will be gone.
        for signal in 1..=64 {
            let is_caught = CAUGHT.contains(&signal);
            let handler = if is_caught { stub_unsafe::handler() } else { libc::SIG_IGN as u64 };
            let flags = (libc::SA_SIGINFO | libc::SA_ONSTACK) as u64 | SA_RESTORER;
            // `struct kernel_sigaction`: handler, flags, restorer, mask.
            let action = [handler, flags, stub_unsafe::returning(), u64::MAX];
            libc::syscall(libc::SYS_rt_sigaction, signal, action.as_ptr(), 0, 8);
        }
        let stack =
            libc::stack_t { ss_sp: (SHARED + STACK_AT) as *mut c_void, ss_flags: 0, ss_size: STACK_BYTES as usize };
        libc::sigaltstack(&raw const stack, std::ptr::null_mut());
        std::arch::asm!("jmp {}", in(reg) CODE, options(noreturn));
    }
}
