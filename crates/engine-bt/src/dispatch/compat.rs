//! Code of 16 and 32 bits (compatibility mode), and the other variants of code, as the run loop sees them.
//!
//! Where the segments of code and stack are flat, RIP is a linear address and 32-bit code runs translated, but for accesses by
//! other segments that are not. Everything else is stepped, so that each access is checked by its segment.

use ring3_engine::{CodeSize, Exit, Segment, SegmentName};

use super::vcpu::BtVcpu;
use crate::interp::{Fault, Outcome};
use crate::tlb::{Info, Stop};
use crate::translate::{Kind, Variant, classify, segment_name};

impl BtVcpu {
    /// Cuts an address to what the size of the code can reach.
    pub(crate) fn cut_address(&self, address: u64) -> u64 {
        if self.code_size().is_compat() { address & 0xffff_ffff } else { address }
    }

    /// Linear address of the code at `rip`.
    pub(crate) fn code_address(&self, rip: u64) -> u64 {
        self.state().regs.code_address(self.code_size(), rip)
    }

    /// RIP of the code at a linear address.
    pub(super) fn rip_of(&self, linear: u64) -> u64 {
        if self.code_size().is_compat() {
            linear.wrapping_sub(self.state().regs.segment_base(SegmentName::Cs)) & 0xffff_ffff
        } else {
            linear
        }
    }

    /// What the code that runs now depends on.
    pub(super) fn variant(&self) -> Variant {
        Variant {
            mode: self.current_mode(),
            size: self.code_size(),
            fpu_off: self.is_fpu_off(),
            avx_off: self.is_avx_off(),
            guards: self.guards,
            limited: if self.code_size() == CodeSize::Bits32 { self.limited_segments() } else { 0 },
        }
    }

    /// Segments by which translated 32-bit code must not access: those with a limit, and all with a base but FS and GS. Nor CS:
    /// it cannot be written by.
    fn limited_segments(&self) -> u8 {
        use SegmentName::{Cs, Ds, Es, Fs, Gs};
        let by = |name: SegmentName, is_plain: bool| if is_plain { 0 } else { 1 << name as u32 };
        let flat = |name: SegmentName| by(name, self.segment(name).is_flat());
        let unlimited = |name: SegmentName| by(name, self.segment(name).is_unlimited());
        by(Cs, false) | flat(Ds) | flat(Es) | unlimited(Fs) | unlimited(Gs)
    }

    pub(crate) fn segment(&self, name: SegmentName) -> &Segment {
        self.state().regs.segment(name)
    }

    /// Whether translated code would not do what the segments of code and stack ask for.
    fn needs_segments(&self) -> bool {
        let (code, stack) = (self.segment(SegmentName::Cs), self.segment(SegmentName::Ss));
        match self.code_size() {
            CodeSize::Bits64 => false,
            CodeSize::Bits16 => true,
            CodeSize::Bits32 => !(code.is_flat_code() && stack.is_flat() && stack.is_big()),
        }
    }

    /// Before the guest is entered: a jump cache holds code of one variant only, and code of 16 and 32 bits finds the upper
    /// halves of its registers clear. It then keeps them so: translated code may use all 64 bits of a register.
    pub(super) fn prepare_variant(&mut self) {
        let (mode, variant) = (self.mode_index(), self.variant());
        if self.jump_variant[mode] != variant {
            self.jump_variant[mode] = variant;
            if mode == 0 { self.forget_code() } else { self.forget_user_code() }
        }
        self.is_segmented = self.needs_segments();
        if variant.size.is_compat() {
            let regs = &mut self.state_mut().regs;
            regs.rip &= 0xffff_ffff;
            regs.gpr.iter_mut().take(8).for_each(|register| *register &= 0xffff_ffff);
        }
    }

    /// Whether an access of 32-bit code wraps at 4 GiB: its segment says what happens.
    pub(super) fn ends_beyond(&self, va: u64, size: usize) -> bool {
        self.code_size().is_compat() && va + size as u64 > 1 << 32
    }

    /// Linear address of the operand of stepped code of 16 or 32 bits, from its offset.
    pub(super) fn place_operand(&self, offset: u64, info: Info) -> Result<u64, Stop> {
        let (name, size) = (self.operand_segment, info.size);
        let placed =
            if self.is_touch { self.place_line(name, offset) } else { self.place(name, offset, size, info.write) };
        placed.map_err(|Fault(exit)| Stop::Fault(exit))
    }

    /// Executes an instruction of stepped 16-bit or 32-bit code that has no single-instruction block, and prepares for the
    /// block of others.
    pub(super) fn step_flow(&mut self, rip: u64, single: bool) -> Option<Exit> {
        let instr = match self.fetch(rip) {
            Ok(instr) => instr,
            Err(Fault(exit)) => return Some(self.exit_at(rip, exit)),
        };
        self.operand_segment = segment_name(instr.memory_segment());
        let kind = classify(&instr);
        self.is_touch = kind == Kind::Touch;
        if !kind.is_flow() {
            return None;
        }
        self.leave_guest();
        Some(match self.interpret_fetched(rip, &instr, single) {
            Outcome::Done(next) => self.exit_at(next, Exit::Stepped),
            Outcome::Exit(at, exit) => self.exit_at(at, exit),
        })
    }
}
