//! The signal handler that turns faults in translated code into exits.
#![allow(unsafe_code)]

use std::arch::asm;
use std::cell::RefCell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use ring3_engine::Error;

use crate::state::State;

/// Most code caches (domains) at a time.
const MAX_RANGES: usize = 4096;
const SIGNALS: [libc::c_int; 4] = [libc::SIGFPE, libc::SIGILL, libc::SIGSEGV, libc::SIGBUS];
/// Index of the trap number and of the flags in `gregs`. Source: sys/ucontext.h.
const REG_TRAPNO: usize = libc::REG_TRAPNO as usize;
const REG_EFL: usize = libc::REG_EFL as usize;
const REG_RIP: usize = libc::REG_RIP as usize;
const ALT_STACK_BYTES: usize = 64 << 10;

static RANGES: [(AtomicU64, AtomicU64); MAX_RANGES] = [const { (AtomicU64::new(0), AtomicU64::new(0)) }; MAX_RANGES];

/// Handlers that were there before ours.
static PREVIOUS: OnceLock<Vec<libc::sigaction>> = OnceLock::new();

/// Registers a range of executable code. Returns false when there is no room.
pub fn register_range(start: u64, end: u64) -> bool {
    for (from, to) in &RANGES {
        if from.compare_exchange(0, start, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            to.store(end, Ordering::Release);
            return true;
        }
    }
    false
}

/// Takes back `register_range`.
pub fn unregister_range(start: u64) {
    for (from, to) in &RANGES {
        if from.load(Ordering::Acquire) == start {
            to.store(0, Ordering::Release);
            from.store(0, Ordering::Release);
            return;
        }
    }
}

fn is_translated(pc: u64) -> bool {
    RANGES.iter().any(|(from, to)| {
        let start = from.load(Ordering::Acquire);
        start != 0 && pc >= start && pc < to.load(Ordering::Acquire)
    })
}

extern "C" fn handler(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid ucontext for SA_SIGINFO handlers.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let pc = registers[REG_RIP] as u64;
    if is_translated(pc) {
        let state: *mut State;
        // SAFETY: 1. Translated code runs with GS on its `State`, and the kernel keeps GS across signal entry.
        // 2. The first field of `State` is its address. 3. The thread is in translated code, so no Rust reference to
        // the state is in use.
        unsafe {
            asm!("mov {}, gs:[0]", out(reg) state, options(nostack, readonly, preserves_flags));
            (*state).fault_pc = pc;
            (*state).fault_rflags = registers[REG_EFL] as u64;
            (*state).fault_signal = signal as u64 | (registers[REG_TRAPNO] as u64) << 8;
            registers[REG_RIP] = (*state).fault_stub as i64;
        }
        return;
    }
    chain(signal, info, context);
}

/// Hands a signal that is not ours to whoever had it before, or to its default action.
fn chain(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let index = SIGNALS.iter().position(|&s| s == signal);
    let previous = index.and_then(|i| PREVIOUS.get().and_then(|all| all.get(i)));
    // SAFETY: 1. A previous handler is called as it asked to be. 2. Otherwise the default action is restored, and the
    // faulting instruction, executed again, ends the process with a core as if we were not there.
    unsafe {
        match previous {
            Some(action) if action.sa_sigaction != libc::SIG_DFL && action.sa_sigaction != libc::SIG_IGN => {
                if action.sa_flags & libc::SA_SIGINFO != 0 {
                    let call: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                        std::mem::transmute(action.sa_sigaction);
                    call(signal, info, context);
                } else {
                    let call: extern "C" fn(libc::c_int) = std::mem::transmute(action.sa_sigaction);
                    call(signal);
                }
            }
            _ => {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
    }
}

/// Installs the handlers, once for the process.
///
/// # Errors
/// [`Error::Host`].
pub fn install() -> Result<(), Error> {
    static RESULT: OnceLock<bool> = OnceLock::new();
    let done = *RESULT.get_or_init(|| {
        let mut previous = Vec::new();
        for signal in SIGNALS {
            // SAFETY: zeros are a valid `sigaction`; the handler is async-signal-safe: it only reads atomics and
            // writes to its own context.
            let failed = unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = handler as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
                let mut old: libc::sigaction = std::mem::zeroed();
                let result = libc::sigaction(signal, &raw const action, &raw mut old);
                previous.push(old);
                result != 0
            };
            if failed {
                return false;
            }
        }
        PREVIOUS.set(previous).is_ok()
    });
    if done { Ok(()) } else { Err(Error::Host { what: "signal handlers", source: std::io::Error::last_os_error() }) }
}

/// The alternate stack of a thread that runs guests.
struct AltStack(Box<[u8]>);

impl Drop for AltStack {
    fn drop(&mut self) {
        // SAFETY: disables the stack before its memory goes.
        unsafe {
            let off = libc::stack_t { ss_sp: std::ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
            libc::sigaltstack(&raw const off, std::ptr::null_mut());
        }
    }
}

thread_local! {
    static ALT_STACK: RefCell<Option<AltStack>> = const { RefCell::new(None) };
}

/// Prepares a thread for running guests: RSP is the guest's then, so signals need a stack of their own, and
/// asynchronous ones are kept away.
pub fn prepare_thread() {
    ALT_STACK.with(|slot| {
        if slot.borrow().is_some() {
            return;
        }
        let mut stack = AltStack(vec![0; ALT_STACK_BYTES].into_boxed_slice());
        // SAFETY: 1. The memory lives until the thread-local is dropped, which disables it first. 2. The mask is ours.
        unsafe {
            let on = libc::stack_t { ss_sp: stack.0.as_mut_ptr().cast(), ss_flags: 0, ss_size: ALT_STACK_BYTES };
            libc::sigaltstack(&raw const on, std::ptr::null_mut());
            let mut mask: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut mask);
            for signal in SIGNALS {
                libc::sigdelset(&raw mut mask, signal);
            }
            libc::sigdelset(&raw mut mask, libc::SIGTRAP);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const mask, std::ptr::null_mut());
        }
        *slot.borrow_mut() = Some(stack);
    });
}
