//! Whatever makes the vCPU look at each instruction: RFLAGS.TF, RFLAGS.AC, hardware breakpoints.
//!
//! With TF or AC set, and on pages with a breakpoint on execution, instructions are stepped one by one. Pages with a
//! breakpoint on data never enter a TLB, so that each access to them takes the slow path, which knows what it touches.
//! So nothing of this costs anything while it is not used.

use ring3_engine::{Breakpoint, BreakpointKind, Exit, Guards, NR_BREAKPOINTS, dr6, rflags, vector};
use ring3_machine::PAGE_SIZE;

use super::vcpu::BtVcpu;
use crate::interp::Fault;
use crate::tlb::{Stop, is_canonical};

/// Flags that have every instruction stepped.
const STEPPING: u64 = rflags::TF | rflags::AC;

/// The breakpoints of a vCPU, and what the instruction at hand has hit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Watch {
    points: [Option<Breakpoint>; NR_BREAKPOINTS],
    is_armed: bool,
    hits: u64,
}

impl Watch {
    /// Bits of DR6 for the breakpoints that `is_hit` picks.
    fn matching(&self, is_hit: impl Fn(&Breakpoint) -> bool) -> u64 {
        let numbered = self.points.iter().enumerate();
        numbered.filter(|(_, p)| p.as_ref().is_some_and(&is_hit)).fold(0, |all, (n, _)| all | dr6::B0 << n)
    }

    /// Whether a breakpoint on execution lies on the page of `va`.
    fn executes_on(&self, va: u64) -> bool {
        let is_there = |p: &Breakpoint| p.kind == BreakpointKind::Execute && p.va / PAGE_SIZE == va / PAGE_SIZE;
        self.is_armed && self.matching(is_there) != 0
    }

    /// Breakpoints on the execution of the instruction at `va`.
    fn at(&self, va: u64) -> u64 {
        self.matching(|p| p.kind == BreakpointKind::Execute && p.va == va)
    }

    /// Whether a breakpoint on data lies on the page of `va`.
    fn hides(&self, va: u64) -> bool {
        let is_there = |p: &Breakpoint| p.kind != BreakpointKind::Execute && p.va / PAGE_SIZE == va / PAGE_SIZE;
        self.is_armed && self.matching(is_there) != 0
    }

    /// Breakpoints that an access hits.
    fn touched(&self, va: u64, len: usize, write: bool) -> u64 {
        self.matching(|p| {
            let counts = p.kind == BreakpointKind::Access || p.kind == BreakpointKind::Write && write;
            counts && (va.wrapping_sub(p.va) < u64::from(p.len) || p.va.wrapping_sub(va) < len as u64)
        })
    }
}

impl BtVcpu {
    pub(super) fn arm_breakpoints(&mut self, breakpoints: &[Option<Breakpoint>; NR_BREAKPOINTS]) {
        if self.watch.points == *breakpoints {
            return;
        }
        self.watch.points = *breakpoints;
        self.watch.is_armed = breakpoints.iter().any(Option::is_some);
        // What is cached may pass by them.
        ring3_engine::Vcpu::flush(self, ring3_engine::Flush::All);
    }

    /// Whether no instruction of the page of `va` may be entered into a TLB.
    pub(super) fn is_hidden(&self, va: u64) -> bool {
        self.watch.hides(va)
    }

    /// Whether an access would hit a breakpoint.
    pub(super) fn is_watched(&self, va: u64, len: usize, write: bool) -> bool {
        self.watch.is_armed && self.watch.touched(va, len, write) != 0
    }

    /// Notes what an access hits; the trap comes when the instruction is done.
    pub(crate) fn note_access(&mut self, va: u64, len: usize, write: bool) {
        if self.watch.is_armed {
            self.watch.hits |= self.watch.touched(va, len, write);
        }
    }

    /// Whether the instruction at hand has hit a breakpoint.
    pub(crate) fn has_hits(&self) -> bool {
        self.watch.hits != 0
    }

    /// Whether string instructions must be done element by element.
    pub(crate) fn is_element_wise(&self) -> bool {
        self.watch.is_armed || self.checks_alignment() || self.is_intercepting()
    }

    /// Forgets what an instruction hit that did not complete.
    pub(crate) fn forget_hits(&mut self) {
        self.watch.hits = 0;
    }

    /// The trap for what the last instruction hit; `rip` is after it.
    pub(super) fn trap_of_hits(&mut self, rip: u64) -> Option<Exit> {
        let hits = std::mem::take(&mut self.watch.hits);
        (hits != 0).then(|| self.exit_at(rip, Exit::Debug { hits }))
    }

    /// Whether data accesses must be aligned (CR0.AM is always set for PV guests, and all they run is at CPL 3).
    pub(crate) fn checks_alignment(&self) -> bool {
        self.state().regs.rflags & rflags::AC != 0
    }

    /// #AC if an access of `size` bytes is misaligned and that counts. What is natural for the larger ones was measured on
    /// an AMD EPYC.
    pub(crate) fn check_alignment(&self, va: u64, size: usize) -> Result<(), Fault> {
        let natural: u64 = match size {
            2 | 14 | 94 => 2,
            4 | 28 | 108 | 512 => 4,
            8 | 10 => 8,
            16 | 32 => 16,
            _ => 1,
        };
        // An address that is not canonical is the worse fault.
        if self.checks_alignment() && !va.is_multiple_of(natural) && is_canonical(va) {
            return Err(Fault(Exit::Exception { vector: vector::AC, error_code: Some(0), cr2: 0 }));
        }
        Ok(())
    }

    /// The same in the slow path of a stepped instruction.
    pub(super) fn check_operand_alignment(&self, va: u64, size: usize) -> Result<(), Stop> {
        self.check_alignment(va, size).map_err(|Fault(exit)| Stop::Fault(exit))
    }

    /// Whether what is asked for can be had by translation only: the host's CPU would not stop, or would execute what the
    /// guest's CPU does not have.
    pub(crate) fn needs_translator(&self) -> bool {
        self.watch.is_armed
            || self.is_fpu_off()
            || self.is_avx_off()
            || self.guards != Guards::default()
            || !self.domain().hidden().is_empty()
            || self.state().regs.rflags & STEPPING != 0
    }

    /// Whether the instruction at `rip` must be stepped.
    pub(super) fn is_stepped_at(&self, rip: u64) -> bool {
        self.is_segmented || self.state().regs.rflags & STEPPING != 0 || self.watch.executes_on(self.code_address(rip))
    }

    /// Before the first instruction of a run: RF serves it alone.
    pub(super) fn prepare_resume(&mut self, rip: u64) {
        if !self.is_stepped_at(rip) {
            self.state_mut().regs.rflags &= !rflags::RF;
        }
    }

    /// Executes the instruction at `rip`; where to go on, or why not.
    pub(super) fn traced_step(&mut self, rip: u64) -> Result<u64, Exit> {
        let flags = self.state().regs.rflags;
        let here = self.watch.at(self.code_address(rip));
        if here != 0 && flags & rflags::RF == 0 {
            return Err(self.exit_at(rip, Exit::Debug { hits: here }));
        }
        // Single steps are what TF asks for; what is stepped for its segments may repeat as it likes.
        let stepped =
            if self.is_segmented && flags & rflags::TF == 0 { self.step_whole(rip) } else { self.step_at(rip, None) };
        match stepped {
            Exit::Stepped => {
                let regs = &mut self.state_mut().regs;
                regs.rflags &= !rflags::RF;
                let next = regs.rip;
                let step = if flags & rflags::TF != 0 { dr6::BS } else { 0 };
                let hits = std::mem::take(&mut self.watch.hits) | step;
                if hits == 0 { Ok(next) } else { Err(self.exit_at(next, Exit::Debug { hits })) }
            }
            other => Err(other),
        }
    }
}
