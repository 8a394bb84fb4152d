//! The vCPU state that translated code addresses as `gs:[offset]`.

use std::mem::offset_of;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use ring3_engine::{Regs, Requests, VcpuControl};
use ring3_machine::Mfn;

use crate::flag_word::{self, HIGH_BYTES, LAZY, Place, SLOTS};

/// Entries of each software TLB (one for kernel mode, one for user mode).
pub const TLB_ENTRIES: usize = 4096;
/// `pause` instructions that count as spinning: some microseconds.
pub const SPIN_PAUSES: u32 = 128;
/// Host addresses that a block may keep.
pub const NR_HELD: usize = 8;
/// Entries of each jump cache.
pub const JUMP_ENTRIES: usize = 16384;

/// What an entry's index differs in from that of its page's second place.
pub const TLB_SECOND: usize = TLB_ENTRIES / 2;

/// Hits in second places of which one changes the places.
pub const SECOND_HITS: u32 = 7;

/// One software TLB entry.
///
/// A page has two places: the set that its address selects, and, when another page has taken that, the one that differs
/// in its highest bit. Tags tell the two kinds apart. Translated code may change an entry with what is in its other place.
///
/// A tag is the linear address of the page, or an address that belongs to another set when invalid: an XOR with any
/// address that selects this set is then at least 4096, so no address, canonical or not, hits an invalid entry.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct TlbEntry {
    pub read_tag: u64,
    pub write_tag: u64,
    /// Host address of the frame.
    pub host_page: u64,
    pub unused: u64,
}

/// One jump cache entry: guest linear address to the far entry of a block.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct JumpEntry {
    pub rip: u64,
    pub host: u64,
}

/// State of one vCPU. Fields without an atomic are touched only by the thread that runs the vCPU.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct State {
    /// Address of this structure; what the signal handler reads at `gs:[0]`.
    pub this: u64,
    /// Requests posted; non-zero makes translated code leave at the next safe point.
    pub requests: AtomicU32,
    pub in_guest: AtomicU32,
    pub host_rsp: u64,
    /// Linear address of the page that the current block lies in.
    pub page_base: u64,
    /// Arithmetic flags in AX form (LAHF in the high byte, OF in the low one); or, in translated code, how to have them:
    /// the low half of a word of `flag_word`.
    pub flags: u16,
    /// The high half of that word.
    pub flags_more: u16,
    /// Direction flag: 0 or 1. The host's own stays clear.
    pub direction: u16,
    /// Of a slow access: see `AccessInfo`.
    pub access_info: u32,
    pub exit_reason: u64,
    pub exit_value: u64,
    pub enter_target: u64,
    pub back: u64,
    pub scratch: [u64; 4],
    /// Operands of what set the flags, where registers do not have them any more (see `flag_word`).
    pub operands: [u64; flag_word::NR_SLOTS],
    /// Host addresses that translated code keeps through a block (see `translate::group`).
    pub held: [u64; NR_HELD],
    /// Host address of the fault exit stub, for the signal handler.
    pub fault_stub: u64,
    pub fault_pc: u64,
    pub fault_signal: u64,
    /// RFLAGS at the signal.
    pub fault_rflags: u64,
    /// The opaque `VcpuContext` pointer for slow paths.
    pub context: u64,
    /// Number of the link whose exit was taken.
    pub link: u32,
    /// `pause` instructions until the vCPU leaves, in case it spins.
    pub pauses: u32,
    pub mxcsr: u32,
    /// Set by the first x87 or MMX instruction of a block: the x87 state may differ from its initial one.
    pub x87_used: u32,
    /// The x87 state is in this thread's CPU, not in `x87`; see `BtVcpu::park`.
    pub x87_live: u32,
    /// Hits in second places of the TLB until one of them brings its entry to the first.
    pub second_hits: u32,
    pub regs: Regs,
    pub ymm: [[u8; 32]; 16],
    /// FXSAVE image; the x87 part is in use.
    pub x87: X87Area,
    /// Where accesses that cross pages find their bytes (reads), and where `step` keeps operands.
    pub bounce: [Bounce; 4],
    pub tlb: [[TlbEntry; TLB_ENTRIES]; 2],
    pub jumps: [[JumpEntry; JUMP_ENTRIES]; 2],
}

/// FXSAVE image.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct X87Area(pub [u8; 512]);

/// A buffer for one operand, large enough for that of `fnsave` (108 bytes) at any offset of a cache line.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Bounce(pub [u8; 256]);

/// Offset of the slot of the register with hardware number `index`.
pub const fn gpr_index(index: usize) -> usize {
    offset_of!(State, regs) + offset_of!(Regs, gpr) + 8 * index
}

/// Offset of a field of [`Regs`].
macro_rules! regs_offset {
    ($field:ident) => {
        std::mem::offset_of!($crate::state::State, regs) + std::mem::offset_of!(ring3_engine::Regs, $field)
    };
}
pub(crate) use regs_offset;

/// The tag that marks set `index` invalid.
pub const fn invalid_tag(index: usize) -> u64 {
    ((index ^ 1) as u64) << 12
}

/// Where the guest's flags are at a host instruction that may raise a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlagSource {
    /// In the CPU.
    Cpu,
    /// In `State::flags`.
    State,
    /// As a word of `flag_word` says.
    Word(u32),
}

impl State {
    /// Arithmetic flags and DF from `regs.rflags` into the form that translated code uses.
    pub fn unpack_flags(&mut self) {
        let rflags = self.regs.rflags;
        self.flags = ((rflags & 0xd5) as u16) << 8 | 0x0200 | (rflags >> 11 & 1) as u16;
        self.direction = (rflags >> 10 & 1) as u16;
    }

    /// Works the arithmetic flags out, if translated code left only how to have them. Registers are as at that time.
    pub fn settle_flags(&mut self) {
        if self.flags & LAZY != 0 {
            let word = u32::from(self.flags) | u32::from(self.flags_more) << 16;
            self.flags = flag_word::evaluate(word, |place| self.at_place(place));
        }
    }

    fn at_place(&self, place: Place) -> u64 {
        let register = |number: Place| self.regs.gpr.get(usize::from(number)).copied().unwrap_or(0);
        match place {
            SLOTS.. => self.operands.get(usize::from(place - SLOTS)).copied().unwrap_or(0),
            HIGH_BYTES.. => register(place - HIGH_BYTES) >> 8,
            number => register(number),
        }
    }

    /// Takes the flags of a host fault from where the table of faults says that they were.
    pub fn take_flags(&mut self, from: FlagSource) {
        match from {
            FlagSource::Cpu => {
                let rflags = self.fault_rflags;
                self.flags = ((rflags & 0xd5) as u16) << 8 | 0x0200 | (rflags >> 11 & 1) as u16;
            }
            FlagSource::State => {}
            FlagSource::Word(word) => {
                (self.flags, self.flags_more) = (word as u16, (word >> 16) as u16);
                self.settle_flags();
            }
        }
    }

    /// The reverse: completes `regs.rflags`.
    pub fn pack_flags(&mut self) {
        let arithmetic = u64::from(self.flags >> 8) & 0xd5 | u64::from(self.flags & 1) << 11;
        let kept = self.regs.rflags & !(0xd5 | 1 << 10 | 1 << 11);
        self.regs.rflags = kept | arithmetic | u64::from(self.direction & 1) << 10 | 2;
    }
}

/// The part of a vCPU that other threads reach; keeps the state's memory alive.
#[derive(Debug)]
pub struct Control {
    pub(crate) memory: std::sync::Arc<crate::dispatch::StateMemory>,
    /// Frames to give up write access to; they count once `PROTECT_FRAMES` is posted.
    pub(crate) to_protect: parking_lot::Mutex<Vec<Mfn>>,
    /// Process that executes guest code for this vCPU at present; 0 if none.
    runner: AtomicI32,
}

impl Control {
    pub(crate) fn new(memory: std::sync::Arc<crate::dispatch::StateMemory>) -> Self {
        Self { memory, to_protect: parking_lot::Mutex::default(), runner: AtomicI32::new(0) }
    }

    /// Has requests kick this process. The caller looks for requests afterwards.
    pub(crate) fn enter_runner(&self, pid: i32) {
        self.runner.store(pid, Ordering::SeqCst);
    }

    pub(crate) fn leave_runner(&self) {
        self.runner.store(0, Ordering::SeqCst);
    }
}

impl VcpuControl for Control {
    fn request(&self, requests: Requests) {
        self.memory.requests().fetch_or(requests.0, Ordering::SeqCst);
        let runner = self.runner.load(Ordering::SeqCst);
        if runner != 0 {
            crate::direct::kick(runner);
        }
    }

    fn request_protect(&self, mfn: Mfn) {
        self.to_protect.lock().push(mfn);
        self.request(Requests::PROTECT_FRAMES);
    }

    fn sample(&self) {
        // A direct run would end with it.
        if self.runner.load(Ordering::SeqCst) == 0 && self.is_in_guest() {
            self.request(Requests::SYNC);
        }
    }

    fn requested(&self) -> Requests {
        Requests(self.memory.requests().load(Ordering::SeqCst))
    }

    fn is_in_guest(&self) -> bool {
        self.memory.in_guest().load(Ordering::SeqCst) != 0
    }
}
