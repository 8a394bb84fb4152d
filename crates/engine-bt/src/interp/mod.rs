//! Instructions that are executed by Rust, one at a time: string operations, state save and restore, and whatever is
//! rare enough. What is not part of the unprivileged ISA is handed to the hypervisor.
//!
//! Runs outside translated code with the guest's registers in `State`. Guest memory is accessed piece by piece
//! *inside the guest* (`in_guest` set) as far as other vCPUs' flushes are concerned: a translation is used before
//! the next safe point or not at all.

mod address;
mod branch;
mod compat;
mod compat_stack;
mod element;
mod mask;
mod memory;
mod misc;
mod string;
mod xsave;

use iced_x86::{Code, Decoder, DecoderError, Instruction, Mnemonic, Register};
use ring3_engine::{Exit, GprName, SegmentName, vector};
use ring3_machine::{PAGE_SIZE, PAGE_SIZE_BYTES};

use crate::dispatch::BtVcpu;
use crate::host_unsafe::decoder_options;
use crate::tlb::Stop;
use crate::translate::StringForm;
use crate::translate::{is_compat, is_stack_operand};

/// How an interpretation ended.
#[derive(Clone, Copy, Debug)]
pub enum Outcome {
    /// Continue at this RIP.
    Done(u64),
    /// Leave `run` with RIP at the first value.
    Exit(u64, Exit),
}

/// A fault that an instruction raises; RIP stays at it.
#[derive(Clone, Copy, Debug)]
pub struct Fault(pub Exit);

/// What an instruction's interpretation says.
pub(crate) enum Next {
    /// Done; on to the next instruction.
    Advance,
    /// Not done (a long string operation): the same instruction again.
    Again,
    /// Done; on to this RIP.
    Jump(u64),
    /// Done; leaves for this reason with RIP at the next instruction.
    Leave(Exit),
    /// Not ours.
    Privileged,
}

pub(crate) type Step = Result<Next, Fault>;

impl Fault {
    pub(crate) fn protection() -> Self {
        Self(Exit::Exception { vector: vector::GP, error_code: Some(0), cr2: 0 })
    }

    /// A segment does not admit an access.
    pub(crate) fn segment(name: SegmentName) -> Self {
        Self(Exit::Exception { vector: name.vector(), error_code: Some(0), cr2: 0 })
    }

    pub(crate) fn undefined() -> Self {
        Self(Exit::Exception { vector: vector::UD, error_code: None, cr2: 0 })
    }
}

impl From<Stop> for Fault {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Fault(exit) => Self(exit),
            Stop::Step | Stop::Alone | Stop::Code(_) => {
                Self(Exit::Failed("an interpreted access stopped without a fault"))
            }
        }
    }
}

impl BtVcpu {
    /// Executes the instruction at `rip`. `single` asks for one iteration of a repeated string instruction.
    pub(crate) fn interpret(&mut self, rip: u64, single: bool) -> Outcome {
        let instr = match self.fetch(rip) {
            Ok(instr) => instr,
            Err(Fault(exit)) => return Outcome::Exit(rip, exit),
        };
        self.interpret_fetched(rip, &instr, single)
    }

    /// Executes an instruction that was fetched at `rip`.
    pub(crate) fn interpret_fetched(&mut self, rip: u64, instr: &Instruction, single: bool) -> Outcome {
        self.forget_hits();
        self.stack_operand = instr.is_stack_instruction() || is_stack_operand(instr);
        match self.interpret_decoded(instr, single) {
            Ok(Next::Advance) => Outcome::Done(self.cut_address(instr.next_ip())),
            Ok(Next::Jump(to)) => Outcome::Done(to),
            Ok(Next::Leave(exit)) => Outcome::Exit(self.cut_address(instr.next_ip()), exit),
            Ok(Next::Again) => Outcome::Done(rip),
            Ok(Next::Privileged) => Outcome::Exit(rip, Exit::Privileged),
            Err(Fault(exit)) => {
                self.forget_hits();
                Outcome::Exit(rip, exit)
            }
        }
    }

    /// Executes the string instruction at `rip`, by the length and form that its translation told.
    pub(crate) fn string_at(&mut self, rip: u64, told: u32) -> Outcome {
        let Some(form) = StringForm::unpack(told >> 4) else { return self.interpret(rip, false) };
        self.stack_operand = false;
        match self.string_form(form, false) {
            Ok(Next::Again) => Outcome::Done(rip),
            Ok(_) => Outcome::Done(self.cut_address(rip.wrapping_add(u64::from(told & 15)))),
            Err(Fault(exit)) => {
                self.forget_hits();
                Outcome::Exit(rip, exit)
            }
        }
    }

    fn interpret_decoded(&mut self, instr: &Instruction, single: bool) -> Step {
        use Mnemonic as M;
        let special = if is_compat(instr) { self.compat(instr) } else { self.word_branch(instr) };
        if let Some(step) = special {
            return step;
        }
        if instr.is_vsib() {
            return self.gather_elements(instr);
        }
        match instr.mnemonic() {
            M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd => Ok(Next::Privileged),
            _ if instr.is_string_instruction() => self.string(instr, single),
            M::Xsave | M::Xsave64 | M::Xsaveopt | M::Xsaveopt64 => self.xsave_standard(instr),
            M::Xsavec | M::Xsavec64 => self.xsave_compact(instr),
            M::Xrstor | M::Xrstor64 => self.xrstor(instr),
            M::Fxsave | M::Fxsave64 => self.fxsave(instr),
            M::Fxrstor | M::Fxrstor64 => self.fxrstor(instr),
            M::Int1 => Ok(Next::Leave(Exit::Debug { hits: 0 })),
            M::Xgetbv => self.xgetbv(),
            M::Popf | M::Popfq => self.popf(instr),
            M::Pushf => self.pushf_word(),
            M::Enter => self.enter(instr),
            M::Wrfsbase | M::Wrgsbase if !self.guards.bases => self.write_base(instr),
            M::Push | M::Mov => self.segment_read(instr),
            M::Maskmovdqu | M::Vmaskmovdqu | M::Maskmovq => self.mask_move_bytes(instr),
            M::Vmaskmovps | M::Vmaskmovpd | M::Vpmaskmovd | M::Vpmaskmovq => self.mask_move_elements(instr),
            _ => Ok(Next::Privileged),
        }
    }

    /// Decodes the instruction at `rip`.
    pub(crate) fn fetch(&mut self, rip: u64) -> Result<Instruction, Fault> {
        let mut bytes = [0u8; 15];
        let mut len = 0;
        while len < bytes.len() {
            let at = self.code_address(rip.wrapping_add(len as u64));
            let room = PAGE_SIZE_BYTES - (at % PAGE_SIZE) as usize;
            let take = self.within_code(rip, len, room.min(bytes.len() - len));
            if take == 0 {
                break;
            }
            let mfn = match self.fetch_for_interp(at) {
                Ok(mfn) => mfn,
                // The bytes so far may be enough.
                Err(_) if len > 0 => break,
                Err(exit) => return Err(Fault(exit)),
            };
            if let Some(part) = bytes.get_mut(len..len + take) {
                let _ = self.machine().read(mfn, (at % PAGE_SIZE) as usize, part);
            }
            len += take;
        }
        let size = self.code_size();
        let mut decoder = Decoder::with_ip(size.bits(), bytes.get(..len).unwrap_or_default(), rip, decoder_options());
        let instr = decoder.decode();
        let is_cut = instr.code() == Code::INVALID && decoder.last_error() == DecoderError::NoMoreBytes;
        // Cut by the limit of the code segment. What is cut by a page is left to who fetches the next one.
        if is_cut && len < bytes.len() && self.within_code(rip, len, 1) == 0 {
            return Err(Fault::protection());
        }
        Ok(instr)
    }

    /// How many of `wanted` bytes behind the first `len` of the code at `rip` the code segment holds.
    fn within_code(&self, rip: u64, len: usize, wanted: usize) -> usize {
        if !self.code_size().is_compat() {
            return wanted;
        }
        let limit = u64::from(self.segment(SegmentName::Cs).limit);
        let left = (limit + 1).saturating_sub((rip & 0xffff_ffff) + len as u64);
        wanted.min(usize::try_from(left).unwrap_or(usize::MAX))
    }

    pub(crate) fn gpr(&self, name: GprName) -> u64 {
        self.state().regs.get(name)
    }

    pub(crate) fn set_gpr(&mut self, name: GprName, value: u64) {
        self.state_mut().regs.set(name, value);
    }

    /// Value of a general-purpose register of any size, zero-extended.
    pub(crate) fn register(&self, register: Register) -> u64 {
        if matches!(register, Register::AH | Register::CH | Register::DH | Register::BH) {
            let index = register as usize - Register::AH as usize;
            return self.state().regs.gpr.get(index).map_or(0, |v| v >> 8 & 0xff);
        }
        let full = self.state().regs.gpr.get(register.full_register().number()).copied().unwrap_or(0);
        match register.size() {
            1 => full & 0xff,
            2 => full & 0xffff,
            4 => full & 0xffff_ffff,
            _ => full,
        }
    }

    /// Writes a general-purpose register of 2, 4 or 8 bytes as the CPU does.
    pub(crate) fn set_register(&mut self, register: Register, value: u64) {
        let Some(slot) = self.state_mut().regs.gpr.get_mut(register.full_register().number()) else { return };
        *slot = match register.size() {
            2 => *slot & !0xffff | value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        };
    }
}
