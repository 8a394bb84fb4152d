//! The memory of a vCPU's state, and entry into translated code.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::arch::asm;
use std::cell::Cell;
use std::ptr::{NonNull, addr_of_mut};
use std::sync::atomic::AtomicU32;

use crate::host_unsafe::has_fsgsbase;
use crate::state::{State, X87Area};

/// Owns one [`State`], at a fixed address.
#[derive(Debug)]
pub struct StateMemory {
    state: NonNull<State>,
}

// SAFETY: `requests` and `in_guest` are atomics; every other field is touched only through `BtVcpu`, which one thread
// has at a time (`&mut`).
unsafe impl Send for StateMemory {}
// SAFETY: as above.
unsafe impl Sync for StateMemory {}

impl StateMemory {
    pub fn new() -> Self {
        let layout = Layout::new::<State>();
        // SAFETY: the layout has a size; zeros are a valid `State` (integers, atomics and arrays of them).
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(state) = NonNull::new(raw.cast::<State>()) else { handle_alloc_error(layout) };
        // SAFETY: just allocated, nobody else knows it.
        unsafe { (*state.as_ptr()).this = state.as_ptr() as u64 };
        Self { state }
    }

    pub fn requests(&self) -> &AtomicU32 {
        // SAFETY: an atomic in memory that lives as long as `self`.
        unsafe { &*addr_of_mut!((*self.state.as_ptr()).requests) }
    }

    pub fn in_guest(&self) -> &AtomicU32 {
        // SAFETY: as in `requests`.
        unsafe { &*addr_of_mut!((*self.state.as_ptr()).in_guest) }
    }

    pub fn as_ptr(&self) -> *mut State {
        self.state.as_ptr()
    }
}

impl super::BtVcpu {
    pub(crate) fn state(&self) -> &State {
        // SAFETY: the state lives as long as `self`; only this vCPU's thread touches it, but for its atomics.
        unsafe { &*self.state_ptr() }
    }

    pub(crate) fn state_mut(&mut self) -> &mut State {
        // SAFETY: as in `state`, and `&mut self` makes the reference unique.
        unsafe { &mut *self.state_ptr() }
    }
}

impl Drop for StateMemory {
    fn drop(&mut self) {
        CURRENT.with(|current| {
            if current.get() == self.state.as_ptr() as u64 {
                current.set(0);
            }
        });
        // SAFETY: allocated in `new` with this layout; the last owner is going.
        unsafe { dealloc(self.state.as_ptr().cast(), Layout::new::<State>()) };
    }
}

thread_local! {
    /// The state that this thread's GS base points to.
    static CURRENT: Cell<u64> = const { Cell::new(0) };
}

/// `arch_prctl` code. Source: Linux arch/x86/include/uapi/asm/prctl.h.
const ARCH_SET_GS: libc::c_int = 0x1001;

fn set_gs_base(base: u64) {
    CURRENT.with(|current| {
        if current.get() == base {
            return;
        }
        // SAFETY: 1. Nothing else in this process uses GS (the x86-64 ABI's thread pointer is FS). 2. `wrgsbase` is
        // executed only where the kernel enabled it.
        unsafe {
            if has_fsgsbase() {
                asm!("wrgsbase {}", in(reg) base, options(nostack, preserves_flags));
            } else {
                libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, base);
            }
        }
        current.set(base);
    });
}

/// MXCSR as the ABI wants it at function calls.
const MXCSR_DEFAULT: u32 = 0x1f80;
/// Sticky exception flags, which do not disturb Rust code.
const MXCSR_FLAGS: u32 = 0x3f;
/// FXSAVE image of the initial state: FCW 0x37f, everything empty and zero, MXCSR's default.
static X87_INITIAL: X87Area = X87Area({
    let mut image = [0; 512];
    image[0] = 0x7f;
    image[1] = 0x03;
    image[24] = 0x80;
    image[25] = 0x1f;
    image
});

/// See [`enter`]; the checks that make it sound are the callers' construction: `BtVcpu::execute` only.
pub(super) fn run_code(state: *mut State, stub: u64, target: u64) {
    // SAFETY: 1. `BtVcpu::execute` passes its own state and holds no reference into it. 2. Stub and target come from
    // the domain's cache. 3. It has just set `State::context` to itself, and is not touched until the return.
    unsafe { enter(state, stub, target) };
}

/// Enters translated code at `target` by the stub `enter`, and returns at its exit.
///
/// # Safety
/// 1. `state` is valid, and no reference into it is live. 2. `enter` is the stub of the code cache that `target` lies in.
/// 3. `State::context` is a pointer that the cache's slow path may use as it does.
unsafe fn enter(state: *mut State, enter: u64, target: u64) {
    set_gs_base(state as u64);
    // SAFETY: 1. `state` is valid by contract. 2. The stub keeps the callee-saved registers and the stack; the rest is
    // declared clobbered. 3. FXRSTOR reads an image that FXSAVE wrote, or that `set_xsave` sanitised.
    unsafe {
        if (*state).x87_used != 0 && (*state).x87_live == 0 {
            let x87 = addr_of_mut!((*state).x87).cast::<u8>();
            asm!("fxrstor64 [{}]", in(reg) x87, options(nostack, readonly), clobber_abi("sysv64"));
            (*state).x87_live = 1;
        }
        let mut mxcsr = 0u32;
        asm!("stmxcsr [{}]", in(reg) &raw mut mxcsr, options(nostack));
        if (*state).mxcsr != mxcsr {
            asm!("ldmxcsr [{}]", in(reg) addr_of_mut!((*state).mxcsr), options(nostack, readonly));
        }
        asm!(
            "call {enter}",
            enter = in(reg) enter,
            inout("rsi") target => _,
            clobber_abi("sysv64"),
        );
        asm!("stmxcsr [{}]", in(reg) addr_of_mut!((*state).mxcsr), options(nostack));
        if (*state).mxcsr & !MXCSR_FLAGS != MXCSR_DEFAULT {
            let default = MXCSR_DEFAULT;
            asm!("ldmxcsr [{}]", in(reg) &raw const default, options(nostack, readonly));
        }
        (*state).x87_live = u32::from((*state).x87_used != 0);
    }
}

/// The x87 status word.
pub(super) fn x87_status(state: *mut State) -> u16 {
    let mut status = 0u16;
    // SAFETY: 1. The caller passes its own state, no reference into it is live. 2. `fnstsw` changes nothing but AX.
    unsafe {
        if (*state).x87_live != 0 {
            asm!("fnstsw ax", out("ax") status, options(nomem, nostack, preserves_flags));
        } else if (*state).x87_used != 0 {
            let image = &(*state).x87.0;
            status = u16::from_le_bytes([image[2], image[3]]);
        }
    }
    status
}

/// Takes the guest's x87 state out of the CPU, which then has the ABI's, with nothing of the guest's in any register.
pub(super) fn save_x87(state: *mut State) {
    // SAFETY: 1. `BtVcpu::park` passes its own state, no reference into it is live. 2. The images have 512 bytes and are
    // aligned to 64. 3. FXRSTOR changes the vector registers, which are declared clobbered, and sets MXCSR to its default.
    unsafe {
        if (*state).x87_live == 0 {
            return;
        }
        let x87 = addr_of_mut!((*state).x87).cast::<u8>();
        asm!(
            "fxsave64 [{guest}]",
            "fxrstor64 [{initial}]",
            guest = in(reg) x87,
            initial = in(reg) &raw const X87_INITIAL,
            options(nostack),
            clobber_abi("sysv64"),
        );
        (*state).x87_live = 0;
        // Up to XMM0; MXCSR aside.
        let is_initial = |range: std::ops::Range<usize>| {
            std::slice::from_raw_parts(x87, 160).get(range.clone()) == X87_INITIAL.0.get(range)
        };
        if is_initial(0..24) && is_initial(32..160) {
            (*state).x87_used = 0;
        }
    }
}

/// Address of the helper that translated code calls for slow accesses.
pub(super) fn slow_access_address() -> u64 {
    slow_access as *const () as u64
}

extern "sysv64" fn slow_access(vcpu: *mut super::BtVcpu, va: u64) -> u64 {
    // SAFETY: 1. `BtVcpu::execute` stored its own `self` in `State::context` and does nothing with it until translated
    // code returns. 2. Translated code runs on that vCPU's thread.
    unsafe { &mut *vcpu }.slow_access(va)
}
