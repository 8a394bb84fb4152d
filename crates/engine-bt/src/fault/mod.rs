//! Host signals raised by guest instructions: #DE, #MF, #XM (SIGFPE), #UD (SIGILL), #GP of aligned SSE operands
//! (SIGSEGV without an address). Page faults never come this way: the software TLB answers them.

mod signal_unsafe;

use ring3_engine::{Exit, vector};

pub use signal_unsafe::{install, prepare_thread, register_range, unregister_range};

/// The exception that a host signal stands for. `code` is `si_code` and `trap` the CPU's vector, from the host's frame.
pub fn exception(signal: i32, trap: u64) -> Exit {
    let fault = |vector, error_code| Exit::Exception { vector, error_code, cr2: 0 };
    match (signal, trap) {
        (libc::SIGFPE, 16) => fault(vector::MF, None),
        (libc::SIGFPE, 19) => fault(vector::XM, None),
        (libc::SIGFPE, _) => fault(vector::DE, None),
        (libc::SIGILL, _) => fault(vector::UD, None),
        (libc::SIGSEGV, 13) => fault(vector::GP, Some(0)),
        (libc::SIGBUS, 17) => fault(vector::AC, Some(0)),
        (libc::SIGBUS, _) => Exit::Failed("the host has no memory left for a guest page"),
        _ => Exit::Failed("translated code touched an address outside machine memory"),
    }
}
