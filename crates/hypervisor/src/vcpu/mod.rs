//! vCPUs: the part that all threads share, the part that belongs to whoever runs it, and the run loop.
//!
//! Lock order, outermost first (in full in README.md): `Vcpu::state` (held by the worker while the vCPU runs; others take
//! it only while the vCPU is descheduled) → event channel tables → scheduler → timers. Nobody waits for a vCPU to leave
//! its pCPU with a lock held.

pub(crate) mod bounce;
mod debug;
pub(crate) mod descriptor;
mod fault;
mod info;
pub(crate) mod iret;
pub(crate) mod privileged;
mod progress;
mod run;
mod runstate;
mod softint;

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use ring3_abi::arch_x86::{FLAT_RING3_CS64, FLAT_RING3_SS64, trap_info};
use ring3_engine::{AddressSpace, Guards, GuestMode, Requests, Segment, SegmentName, VcpuControl};
use ring3_machine::Mfn;

use crate::cpuid::Policy;
use crate::domain::Domain;
use crate::mm::{DomainMm, LongWork};
pub use info::{InfoArea, TIME as INFO_TIME};
pub use progress::Progress;
pub(crate) use run::{Leave, run};
pub use runstate::Runstate;

/// A timer slot that is not armed.
const TIMER_OFF: u64 = u64::MAX;

/// What all threads may touch of a vCPU.
#[derive(Debug)]
pub struct Vcpu {
    pub id: u32,
    /// Unique over the hypervisor's life; names the vCPU's timers.
    pub uid: u64,
    pub domain: Weak<Domain>,
    pub control: Arc<dyn VcpuControl>,
    /// Where `vcpu_info` is.
    pub info: InfoArea,
    /// Held by the worker that runs it.
    pub state: Mutex<VcpuState>,
    pub runstate: Mutex<Runstate>,
    /// `VCPUOP_initialise` or setvcpucontext was done.
    pub is_initialised: AtomicBool,
    /// Scheduling, changed under the scheduler's lock except `blocked`.
    pub online: AtomicBool,
    pub blocked: AtomicBool,
    pub queued: AtomicBool,
    /// pCPU that runs it, or -1.
    pub running_on: AtomicI32,
    pub last_pcpu: AtomicU32,
    /// Time on pCPUs as the run queue counts it: the vCPU with the least runs first.
    pub vtime_ns: AtomicU64,
    /// It last left its pCPU because it waits for somebody.
    pub is_spinning: AtomicBool,
    /// It last left its pCPU in the guest's kernel, where it may hold a lock.
    pub left_in_kernel: AtomicBool,
    /// `SCHEDOP_poll`: 0 not polling, else 1 + port, or `u32::MAX` for any port.
    pub polling: AtomicU32,
    /// Of events that wait until it blocks.
    pub bells: crate::evtchn::VcpuBells,
    /// Period of the periodic timer in ns; 0 is off.
    pub period_ns: AtomicU64,
    /// Deadline of each kind of timer, changed under the lock of the set.
    pub timers: [AtomicU64; crate::time::NR_TIMER_KINDS],
    pub nmi_pending: AtomicBool,
    /// Guest address of the runstate area; 0 is none.
    pub runstate_area: AtomicU64,
    /// Shared with the domain: it runs only while 0.
    pub domain_pause: Arc<AtomicU32>,
    /// Port of each VIRQ bound to this vCPU; 0 is none.
    pub virq_ports: [AtomicU32; ring3_abi::xen::NR_VIRQS as usize],
}

/// What the run loop must do after a hypercall or an emulated instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    #[default]
    None,
    /// Give the pCPU to others, stay runnable.
    Yield,
    /// `Vcpu::blocked` was set, or the vCPU went offline, or the domain shut down: leave the pCPU.
    Deschedule,
}

/// A registered callback.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Callback {
    pub address: u64,
    pub mask_events: bool,
}

/// What belongs to the thread that runs the vCPU.
#[derive(Debug)]
pub struct VcpuState {
    pub cpu: Box<dyn ring3_engine::Vcpu>,
    pub traps: Box<[trap_info; 256]>,
    pub kernel_sp: u64,
    pub kernel_ss: u16,
    pub event_callback: u64,
    pub failsafe: Callback,
    pub syscall: Callback,
    pub syscall32: Callback,
    pub sysenter: Callback,
    pub gdt_frames: [Mfn; 16],
    pub gdt_ents: u32,
    pub ldt_base: u64,
    pub ldt_ents: u32,
    /// Frames of the LDT that were needed so far; each holds a reference as a descriptor page.
    pub ldt_frames: [Option<Mfn>; 16],
    /// CR0 as the guest reads it; TS is the guest's.
    pub cr0: u64,
    pub cr2: u64,
    pub cr4: u64,
    /// Bits of CR4 that the guest may change, and what XCR0 may have: the domain's policy.
    cr4_choice: u64,
    xcr0_max: u64,
    pub debugreg: [u64; 8],
    /// I/O breakpoints that the emulated instruction has hit, as in DR6.
    pub io_hits: u64,
    /// `DomainMm::upper_changes` when this vCPU last dropped all translations of the upper half.
    pub upper_seen: u64,
    /// What a hypercall that is to be made again holds.
    pub long: LongWork,
    pub iopl: u8,
    /// I/O permission bitmap of set_iobitmap: guest address and number of ports.
    pub iobmp: u64,
    pub iobmp_limit: u32,
    pub xcr0: u64,
    /// All bits that XCR0 was ever given; 0 if it was not.
    pub xcr0_accum: u64,
    pub msrs: privileged::Msrs,
    /// A new context has data selectors that are not loaded yet.
    pub must_load_segments: bool,
    /// Whether a storm of events lets it go on.
    pub progress: Progress,
    pub action: Action,
}

impl VcpuState {
    /// Initial state: everything off, as `VCPUOP_initialise` expects.
    pub fn new(cpu: Box<dyn ring3_engine::Vcpu>) -> Self {
        let mut state = Self {
            cpu,
            traps: Box::new([trap_info::default(); 256]),
            kernel_sp: 0,
            kernel_ss: 0,
            event_callback: 0,
            failsafe: Callback::default(),
            syscall: Callback::default(),
            syscall32: Callback::default(),
            sysenter: Callback::default(),
            gdt_frames: [Mfn(0); 16],
            gdt_ents: 0,
            ldt_base: 0,
            ldt_ents: 0,
            ldt_frames: [None; 16],
            cr0: privileged::CR0_FIXED,
            cr2: 0,
            cr4: privileged::CR4_FIXED,
            cr4_choice: privileged::CR4_GUEST,
            xcr0_max: crate::cpuid::XCR0,
            debugreg: [0, 0, 0, 0, 0, 0, debug::DR6_DEFAULT, debug::DR7_DEFAULT],
            io_hits: 0,
            upper_seen: 0,
            long: LongWork::default(),
            iopl: 0,
            iobmp: 0,
            iobmp_limit: 0,
            xcr0: crate::cpuid::XCR0_INITIAL,
            xcr0_accum: 0,
            msrs: privileged::Msrs::default(),
            must_load_segments: false,
            progress: Progress::default(),
            action: Action::None,
        };
        state.set_xcr0(crate::cpuid::XCR0_INITIAL);
        state.set_cr4(0, false);
        state
    }

    /// Whether the guest kernel runs (as against a guest user).
    pub fn is_kernel(&self) -> bool {
        self.cpu.mode() == GuestMode::Kernel
    }

    /// The page tables in use now.
    pub fn space(&self) -> AddressSpace {
        self.cpu.address_space(self.cpu.mode())
    }

    /// The guest kernel's page tables.
    pub fn kernel_space(&self) -> AddressSpace {
        self.cpu.address_space(GuestMode::Kernel)
    }

    /// The root of a mode; frame 0 is none.
    pub fn root(&self, mode: GuestMode) -> Mfn {
        self.cpu.address_space(mode).root
    }

    /// Drops the references that the LDT holds, and sets another one, or none.
    pub fn set_ldt(&mut self, mm: &DomainMm, base: u64, nr_ents: u32) {
        std::mem::take(&mut self.ldt_frames).into_iter().flatten().for_each(|mfn| mm.put_segdesc(mfn));
        (self.ldt_base, self.ldt_ents) = (base, nr_ents);
    }

    /// Sets CR4 as a guest asks, and what follows from it; `is_tsc_emulated` is the domain's.
    pub fn set_cr4(&mut self, value: u64, is_tsc_emulated: bool) {
        self.cr4 = privileged::guest_cr4(value, self.cr4_choice);
        self.cpu.set_guards(Guards {
            tsc: is_tsc_emulated || self.cr4 & privileged::CR4_TSD != 0,
            bases: self.cr4 & privileged::CR4_FSGSBASE == 0,
        });
    }

    /// Keeps to the domain's policy from now on.
    pub fn set_policy(&mut self, policy: &Policy) {
        self.cr4_choice = privileged::cr4_choice(policy);
        self.xcr0_max = policy.xcr0_max();
        self.set_xcr0(self.xcr0 & (self.xcr0_max | crate::cpuid::XCR0_INITIAL));
    }

    /// What XCR0 may have.
    pub fn xcr0_max(&self) -> u64 {
        self.xcr0_max
    }

    /// Sets XCR0, which has been checked.
    pub fn set_xcr0(&mut self, value: u64) {
        self.xcr0 = value;
        self.cpu.set_xcr0(value);
    }

    /// Gives CS and SS the flat selectors that `syscall` and bounce frames load.
    pub fn load_flat(&mut self) {
        let regs = self.cpu.regs_mut();
        (regs.cs, regs.ss) = (FLAT_RING3_CS64, FLAT_RING3_SS64);
        regs.segments[SegmentName::Cs as usize] = Segment::FLAT_CODE64;
        regs.segments[SegmentName::Ss as usize] = Segment::FLAT_DATA;
    }

    /// Switches kernel ↔ user: the GS bases trade places, as `swapgs` does on the way through a real kernel.
    pub fn set_mode(&mut self, mode: GuestMode, code: ring3_engine::CodeSize) {
        if self.cpu.mode() != mode {
            let regs = self.cpu.regs_mut();
            std::mem::swap(&mut regs.gs_base, &mut regs.kernel_gs_base);
        }
        self.cpu.set_mode(mode, code);
    }
}

impl Vcpu {
    /// Whether a long operation should make room: somebody wants the pCPU.
    pub fn is_wanted_elsewhere(&self) -> bool {
        self.control.requested().intersects(Requests::RESCHEDULE)
    }

    /// A vCPU that is offline and not initialised.
    pub(crate) fn new(
        id: u32,
        uid: u64,
        domain: Weak<Domain>,
        cpu: Box<dyn ring3_engine::Vcpu>,
        info: InfoArea,
        domain_pause: Arc<AtomicU32>,
        now_ns: u64,
    ) -> Self {
        Self {
            id,
            uid,
            domain,
            control: cpu.control(),
            info,
            state: Mutex::new(VcpuState::new(cpu)),
            runstate: Mutex::new(Runstate::new(now_ns)),
            is_initialised: AtomicBool::new(false),
            online: AtomicBool::new(false),
            blocked: AtomicBool::new(false),
            queued: AtomicBool::new(false),
            running_on: AtomicI32::new(-1),
            last_pcpu: AtomicU32::new(0),
            vtime_ns: AtomicU64::new(0),
            is_spinning: AtomicBool::new(false),
            left_in_kernel: AtomicBool::new(false),
            polling: AtomicU32::new(0),
            bells: crate::evtchn::VcpuBells::default(),
            period_ns: AtomicU64::new(0),
            timers: std::array::from_fn(|_| AtomicU64::new(TIMER_OFF)),
            nmi_pending: AtomicBool::new(false),
            runstate_area: AtomicU64::new(0),
            domain_pause,
            virq_ports: std::array::from_fn(|_| AtomicU32::new(0)),
        }
    }

    /// Whether nothing but the lack of a pCPU keeps it from running.
    pub fn is_runnable(&self) -> bool {
        self.online.load(Ordering::SeqCst)
            && !self.blocked.load(Ordering::SeqCst)
            && self.domain_pause.load(Ordering::SeqCst) == 0
    }
}
