//! The vCPU and its run loop.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ring3_engine::{
    AddressSpace, Breakpoint, CodeSize, Config, Exit, Flush, Guards, GuestMode, NR_BREAKPOINTS, Regs, Requests,
    SegmentName, Vcpu, VcpuControl, WriteIntercept, rflags, vector,
};
use ring3_machine::{Machine, Mfn, PAGE_SIZE};

use super::caches::FILTER_WORDS;
use super::debug::Watch;
use super::domain::BtDomain;
use super::exclusive::Exclusive;
use super::state_unsafe::StateMemory;
use super::step::{KnownStep, StepAccess};
use super::xstate::AVX;
use crate::cache::STEP_SLOTS;
use crate::direct::Direct;
use crate::fault;
use crate::state::{Control, SPIN_PAUSES, State};
use crate::tlb::{self, FillLog, Stop};
use crate::translate::Variant;

/// One vCPU of the engine.
#[derive(Debug)]
pub struct BtVcpu {
    pub(super) domain: Arc<BtDomain>,
    pub(super) memory: Arc<StateMemory>,
    control: Arc<Control>,
    id: u32,
    spaces: [AddressSpace; 2],
    pub(super) mode: GuestMode,
    pub(super) code: CodeSize,
    /// Each instruction is stepped, for its segments (see `compat`).
    pub(super) is_segmented: bool,
    /// Segment of the stepped instruction's memory operand.
    pub(super) operand_segment: SegmentName,
    /// It names a cache line.
    pub(super) is_touch: bool,
    /// CR0.TS.
    fpu_off: bool,
    pub(crate) guards: Guards,
    pub(super) watch: Watch,
    /// All other vCPUs of the domain are kept out of the guest.
    pub(super) is_alone: bool,
    /// Of the interpreted instruction: a non-canonical address raises #SS.
    pub(crate) stack_operand: bool,
    pub(super) xcr0: u64,
    pub(super) stop: Option<Stop>,
    /// Accesses of the instruction that `step` executes, and the frame whose stores are intercepted.
    pub(super) accesses: Vec<StepAccess>,
    pub(super) intercepted: Option<Mfn>,
    /// Single-instruction blocks at hand, by slot, and the slot to be used next.
    pub(super) steps: [Option<KnownStep>; STEP_SLOTS],
    pub(super) next_step: usize,
    /// Entries in use of the TLBs and the jump caches, kernel and user.
    pub(super) tlb_log: [FillLog; 2],
    pub(super) jump_log: [FillLog; 2],
    /// Counts entries made, to choose which other one goes.
    pub(super) jump_turn: usize,
    /// What the code that each jump cache knows was made for.
    pub(super) jump_variant: [Variant; 2],
    /// The jump caches may know code of the upper half whose mapping the guest does not keep to its kernel.
    pub(super) user_upper_code: std::cell::Cell<bool>,
    /// Pages (hashed) that the jump caches know.
    pub(super) executed: [u64; FILTER_WORDS],
    /// The code cache's generation as far as the jump caches know it.
    pub(super) code_generation: u64,
    /// Where empty jump cache entries lead.
    pub(super) jump_stub: u64,
    pub(crate) image: Box<[u8; super::xstate::IMAGE_BYTES]>,
    /// User code that runs as it is, in a process of its own.
    pub(crate) direct: Direct,
}

impl BtVcpu {
    pub(super) fn new(domain: Arc<BtDomain>, id: u32, config: &Config) -> Self {
        let memory = Arc::new(StateMemory::new());
        let control = Arc::new(Control::new(Arc::clone(&memory)));
        let direct = domain.new_direct();
        let mut vcpu = Self {
            domain,
            memory,
            control,
            id,
            spaces: [AddressSpace::default(); 2],
            mode: GuestMode::Kernel,
            code: CodeSize::Bits64,
            is_segmented: false,
            operand_segment: SegmentName::Ds,
            is_touch: false,
            fpu_off: false,
            guards: Guards::default(),
            watch: Watch::default(),
            is_alone: false,
            stack_operand: false,
            xcr0: config.xcr0,
            stop: None,
            accesses: Vec::new(),
            intercepted: None,
            steps: [None; STEP_SLOTS],
            next_step: 0,
            tlb_log: Default::default(),
            jump_log: Default::default(),
            jump_turn: 0,
            jump_variant: [GuestMode::Kernel, GuestMode::User].map(Variant::of),
            user_upper_code: std::cell::Cell::new(false),
            executed: [0; FILTER_WORDS],
            code_generation: 0,
            jump_stub: 0,
            image: Box::new([0; super::xstate::IMAGE_BYTES]),
            direct,
        };
        let (fault_stub, jump_stub) = {
            let stubs = vcpu.domain.cache().stubs();
            (stubs.fault, stubs.jump)
        };
        vcpu.state_mut().fault_stub = fault_stub;
        vcpu.state_mut().pauses = SPIN_PAUSES;
        vcpu.reset_xstate();
        *vcpu.regs_mut() = Regs { rflags: rflags::FIXED, ..Regs::default() };
        vcpu.jump_stub = jump_stub;
        vcpu.tlb_log.iter_mut().chain(&mut vcpu.jump_log).for_each(FillLog::all);
        vcpu.flush(Flush::All);
        vcpu
    }

    pub(crate) fn domain(&self) -> Arc<BtDomain> {
        Arc::clone(&self.domain)
    }

    pub(crate) fn shared_control(&self) -> &Arc<Control> {
        &self.control
    }

    pub(crate) fn machine(&self) -> &Arc<Machine> {
        self.domain.machine()
    }

    pub(super) fn slot(&self) -> usize {
        self.id as usize
    }

    pub(crate) fn current_mode(&self) -> GuestMode {
        self.mode
    }

    pub(crate) fn code_size(&self) -> CodeSize {
        self.code
    }

    pub(crate) fn set_code_size(&mut self, code: CodeSize) {
        self.code = code;
    }

    /// Whether instructions that use the FPU raise #NM.
    pub(super) fn is_fpu_off(&self) -> bool {
        self.fpu_off
    }

    /// Whether XCR0.AVX is clear, so that instructions that need that state raise #UD.
    pub(super) fn is_avx_off(&self) -> bool {
        self.xcr0 & AVX == 0
    }

    pub(crate) fn mode_index(&self) -> usize {
        usize::from(self.mode == GuestMode::User)
    }

    /// Page tables of the current mode.
    pub(crate) fn space(&self) -> AddressSpace {
        self.spaces[self.mode_index()]
    }

    pub(super) fn state_ptr(&self) -> *mut State {
        self.memory.as_ptr()
    }

    /// Takes write access to a frame out of this vCPU's TLB.
    pub(crate) fn protect(&mut self, mfn: Mfn) {
        self.direct.note_code();
        if let Ok(host) = self.machine().frame(mfn) {
            self.protect_pages(&[host as u64]);
        }
    }

    fn protect_all_code(&mut self) {
        let machine = Arc::clone(self.machine());
        let base = machine.base() as u64;
        for table in &mut self.state_mut().tlb {
            for (index, entry) in table.iter_mut().enumerate() {
                let mfn = Mfn(entry.host_page.wrapping_sub(base) / PAGE_SIZE);
                if machine.code().has_code(mfn) {
                    entry.write_tag = crate::state::invalid_tag(index);
                }
            }
        }
    }

    pub(crate) fn enter_guest(&self) {
        self.memory.in_guest().store(1, Ordering::SeqCst);
    }

    pub(crate) fn leave_guest(&self) {
        self.memory.in_guest().store(0, Ordering::SeqCst);
    }

    /// Takes posted requests and serves the engine's own. Called outside the guest.
    pub(crate) fn take_requests(&mut self) -> Requests {
        let taken = Requests(self.memory.requests().swap(0, Ordering::SeqCst));
        if taken.intersects(Requests::FLUSH_TLB) {
            self.flush(Flush::All);
        }
        if taken.intersects(Requests::FLUSH_DATA) {
            self.direct.note_flush();
            self.flush_tlb_mode(0);
            self.flush_tlb_mode(1);
        }
        if taken.intersects(Requests::PROTECT_FRAMES) {
            self.direct.note_flush();
            self.protect_requested();
        }
        if taken.intersects(Requests::FLUSH_CODE) {
            self.direct.note_code();
            self.forget_code();
        }
        if taken.intersects(Requests::EVICT_CODE) {
            self.forget_evicted();
        }
        if taken.intersects(Requests::PROTECT_CODE) {
            self.direct.note_code();
            self.protect_all_code();
        }
        if taken.intersects(Requests::EXCLUSIVE) {
            self.let_others_be_alone();
        }
        Requests(taken.0 & !Requests::ENGINE.0)
    }

    pub(super) fn exclusive(&self) -> &Exclusive {
        self.domain.exclusive()
    }

    /// Whether a request is posted.
    pub(crate) fn is_requested(&self) -> bool {
        self.memory.requests().load(Ordering::SeqCst) != 0
    }

    pub(crate) fn requests_pending(&self) -> bool {
        self.is_requested()
    }

    /// Drops the code of a frame that is about to be written. Called outside the guest.
    pub(crate) fn invalidate_for_write(&self, mfn: Mfn) {
        self.domain.invalidate(mfn);
    }

    pub(crate) fn xcr0_of_policy(&self) -> u64 {
        self.xcr0
    }
}

/// #UD.
pub(super) fn undefined() -> Exit {
    Exit::Exception { vector: vector::UD, error_code: None, cr2: 0 }
}

/// #GP.
pub(super) fn protection() -> Exit {
    Exit::Exception { vector: vector::GP, error_code: Some(0), cr2: 0 }
}

/// #NM.
pub(super) fn no_fpu() -> Exit {
    Exit::Exception { vector: vector::NM, error_code: None, cr2: 0 }
}

impl Vcpu for BtVcpu {
    fn regs(&self) -> &Regs {
        &self.state().regs
    }

    fn regs_mut(&mut self) -> &mut Regs {
        &mut self.state_mut().regs
    }

    fn xsave(&mut self) -> &[u8] {
        self.build_image();
        &self.image[..]
    }

    fn set_xsave(&mut self, image: &[u8]) {
        self.load_image(image);
    }

    fn park(&mut self) {
        self.direct.unbind();
        self.save_x87();
    }

    fn set_address_space(&mut self, mode: GuestMode, space: AddressSpace) {
        self.spaces[usize::from(mode == GuestMode::User)] = space;
    }

    fn address_space(&self, mode: GuestMode) -> AddressSpace {
        self.spaces[usize::from(mode == GuestMode::User)]
    }

    fn set_mode(&mut self, mode: GuestMode, code: CodeSize) {
        self.mode = mode;
        self.code = code;
    }

    fn mode(&self) -> GuestMode {
        self.mode
    }

    fn code_size(&self) -> CodeSize {
        self.code
    }

    fn set_breakpoints(&mut self, breakpoints: &[Option<Breakpoint>; NR_BREAKPOINTS]) {
        self.arm_breakpoints(breakpoints);
    }

    fn set_task_switched(&mut self, is_set: bool) {
        self.fpu_off = is_set;
    }

    fn set_guards(&mut self, guards: Guards) {
        self.guards = guards;
    }

    fn set_xcr0(&mut self, xcr0: u64) {
        self.xcr0 = xcr0;
    }

    fn flush(&mut self, flush: Flush) {
        self.direct.note_flush();
        match flush {
            Flush::All => {
                self.flush_tlb_mode(0);
                self.flush_tlb_mode(1);
                self.forget_code();
            }
            Flush::User => {
                self.flush_tlb_mode(1);
                self.forget_user_code();
            }
            Flush::LowerHalf => {
                self.flush_tlb_lower();
                self.flush_tlb_mode(1);
                if self.user_upper_code.take() {
                    self.forget_code();
                } else {
                    self.forget_lower_code();
                }
            }
            Flush::Slot { index, code } => {
                tlb::flush_slot(self.state_mut(), usize::from(index));
                if code {
                    self.forget_slot(u64::from(index));
                }
            }
            Flush::Page(va) => {
                tlb::flush_page(self.state_mut(), va);
                // An instruction may start on the page before.
                let before = va.wrapping_sub(PAGE_SIZE);
                if self.may_have_executed(va) || self.may_have_executed(before) {
                    self.forget_pages(before & !(PAGE_SIZE - 1), va | (PAGE_SIZE - 1));
                }
            }
        }
    }

    fn control(&self) -> Arc<dyn VcpuControl> {
        Arc::clone(&self.control) as Arc<dyn VcpuControl>
    }

    fn run(&mut self) -> Exit {
        fault::prepare_thread();
        self.prepare_variant();
        if self.mode == GuestMode::User
            && let Some(exit) = self.try_direct()
        {
            return exit;
        }
        self.prepare_variant();
        self.state_mut().unpack_flags();
        self.prepare_resume(self.regs().rip);
        let exit = self.run_loop();
        if self.mode == GuestMode::User {
            match exit {
                Exit::Interrupted(_) => self.note_interrupted_user(),
                _ => self.direct.note_kernel_entry(),
            }
        }
        exit
    }

    fn step(&mut self, intercept: Option<(Mfn, &mut dyn WriteIntercept)>) -> Exit {
        fault::prepare_thread();
        self.prepare_variant();
        self.state_mut().unpack_flags();
        let rip = self.regs().rip;
        self.step_at(rip, intercept)
    }
}

const _: () = assert!(size_of::<State>() < 1 << 20);
