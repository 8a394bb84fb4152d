//! The state of emission: buffer, place of the flags, cold code.

use std::mem::offset_of;

use iced_x86::{Encoder, Instruction, InstructionInfoFactory};
use ring3_engine::GuestMode;

use super::flags::{ALL, Demand, FlagSet, NONE};
use super::recipe::Recipe;
use super::{
    Entries, Insn, Kind, Lines, Neighbours, Request, StringForm, Translated, control::ColdExit, flags, group::Group,
    leave::ColdLeave, memory::ColdAccess, string,
};
use crate::emit::asm::{Asm, S0};
use crate::emit::stubs::Stubs;
use crate::state::{FlagSource, State};

/// Where the guest's arithmetic flags are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlagLoc {
    /// In the host's flags.
    Native,
    /// In `State::flags`.
    Saved,
    /// There too, or how to have them, as whoever came here left them; nothing reads them.
    Given,
    /// Nowhere; nothing reads them, and the emitter knows how to have them.
    Recipe,
    /// Nowhere; nobody will see them.
    Dead,
}

/// What a near jump has for the block that it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Given {
    /// The flags are in the CPU.
    Native,
    /// `State::flags` has them, or says how to have them.
    State,
    /// Nobody will see them.
    Nothing,
}

/// A patchable near jump out of a block.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// Host address of its aligned `rel32`, which has it leave for Rust at first.
    pub site: u64,
    /// Page offset of the block that it is to lead to.
    pub target: usize,
    /// Whether that is the usual block.
    pub grouped: bool,
    pub given: Given,
}

/// A host instruction that may raise a host signal for the guest.
#[derive(Clone, Copy, Debug)]
pub struct FaultPoint {
    /// Host address, relative to the block's origin, just past the end of what belongs to the instruction.
    pub end: u32,
    /// The guest instruction's offset in its page.
    pub offset: u16,
    /// Where the guest's arithmetic flags are.
    pub flags: FlagSource,
}

/// Code that is placed after the block's hot part.
#[derive(Debug)]
pub(super) enum Cold {
    Access(ColdAccess),
    Leave(ColdLeave),
    Exit(ColdExit),
}

pub(super) struct Emitter<'a> {
    pub asm: Asm,
    encoder: Encoder,
    pub info: InstructionInfoFactory,
    pub request: &'a Request<'a>,
    pub neighbours: &'a dyn Neighbours,
    /// Offset, near entry and demand of the block itself.
    pub own: (usize, u64, Demand),
    /// The code at the near entry finds the flags in `State::flags`, though they are live.
    pub enters_saved: bool,
    /// What the block depends on.
    pub lines: Lines,
    pub stubs: Stubs,
    pub loc: FlagLoc,
    /// How to have the flags, if they are in the CPU or nowhere.
    pub recipe: Option<Recipe>,
    /// The recipe for the flags that the present instruction is about to leave.
    pub next_recipe: Option<Recipe>,
    /// `State::flags` has what is in the CPU.
    pub is_saved: bool,
    pub cold: Vec<Cold>,
    pub links: Vec<Link>,
    pub faults: Vec<FaultPoint>,
    /// Memory accesses of the instruction so far (numbers the bounce buffers when `single`).
    pub nr_accesses: u32,
    /// Whether `x87_used` was set already.
    pub marked_x87: bool,
    pub groups: Vec<Group>,
    /// Number of the group whose host address is in S1.
    pub pointer: Option<usize>,
}

impl<'a> Emitter<'a> {
    pub fn new(asm: Asm, request: &'a Request<'a>, neighbours: &'a dyn Neighbours, own: (usize, u64, Demand)) -> Self {
        Self {
            asm,
            encoder: Encoder::new(64),
            info: InstructionInfoFactory::new(),
            request,
            neighbours,
            own,
            enters_saved: false,
            lines: 0,
            stubs: request.stubs,
            loc: FlagLoc::Native,
            recipe: None,
            next_recipe: None,
            is_saved: false,
            cold: Vec::new(),
            links: Vec::new(),
            faults: Vec::new(),
            nr_accesses: 0,
            marked_x87: false,
            groups: Vec::new(),
            pointer: None,
        }
    }

    /// Index of the mode's TLB and jump cache.
    pub fn mode_index(&self) -> usize {
        usize::from(self.request.variant.mode == GuestMode::User)
    }

    /// Host code for one instruction.
    pub fn instruction(&mut self, insn: &Insn) {
        self.nr_accesses = 0;
        self.keep_operands(insn);
        match insn.kind {
            Kind::Plain | Kind::StoreFpuEnvironment => self.plain(insn),
            Kind::Nop => {}
            Kind::Touch => self.touch(insn),
            Kind::Lea => self.lea(insn),
            Kind::Push => self.push(insn),
            Kind::Pop => self.pop(insn),
            Kind::Leave => self.leave(insn),
            Kind::Jcc => self.jcc(insn),
            Kind::CountedJump => self.counted_jump(insn),
            Kind::Jmp => self.jmp(insn),
            Kind::Call => self.call(insn),
            Kind::JmpIndirect => self.jmp_indirect(insn),
            Kind::CallIndirect => self.call_indirect(insn),
            Kind::Ret => self.ret(insn),
            Kind::BitString => self.bit_string(insn),
            Kind::Xlat => self.xlat(insn),
            Kind::PushFlags => self.push_flags(insn),
            Kind::Direction(value) => self.direction(value),
            Kind::Rdtscp => self.rdtscp(insn),
            Kind::Rdpid => self.rdpid(insn),
            Kind::ReadBase => self.read_base(insn),
            Kind::Pause => self.pause(insn),
            Kind::ReadSelector => self.read_selector(insn),
            Kind::LoadSelector => self.load_selector(insn),
            Kind::WriteBase => self.write_base(insn),
            Kind::ReadMsr => self.read_msr(insn),
            Kind::Iret => self.iret(insn),
            Kind::Syscall => self.leave_at(insn, crate::emit::stubs::reason::SYSCALL, insn.next_offset()),
            Kind::Interrupt(vector) => {
                let value = usize::from(vector) << 16 | insn.next_offset();
                self.leave_at(insn, crate::emit::stubs::reason::INTERRUPT, value);
            }
            Kind::String(form) => self.string(insn, form),
            Kind::Interpret => self.interpret(insn),
            Kind::Step => self.leave_at(insn, crate::emit::stubs::reason::STEP, insn.offset),
            Kind::Undefined => self.leave_at(insn, crate::emit::stubs::reason::UNDEFINED, insn.offset),
            Kind::TooLong => self.leave_at(insn, crate::emit::stubs::reason::TOO_LONG, insn.offset),
            Kind::NoFpu => self.leave_at(insn, crate::emit::stubs::reason::NO_FPU, insn.offset),
        }
        self.forget_operands(insn);
        self.forget_pointer(insn);
    }

    /// Leaves for `interp`; string instructions tell their form and length.
    pub fn interpret(&mut self, insn: &Insn) {
        match StringForm::of(&insn.instr) {
            Some(form) if !self.request.single => {
                self.leave_at(insn, crate::emit::stubs::reason::STRING, string::exit_value(insn, form));
            }
            _ => self.leave_at(insn, crate::emit::stubs::reason::INTERPRET, insn.offset),
        }
    }

    /// Flags live just before an instruction.
    pub fn live_before(&self, insn: &Insn) -> FlagSet {
        insn.after.before(flags::effect(&insn.instr), || 0, false).live
    }

    /// Makes the host's flags free to clobber; `live` are those that somebody still reads. Clobbers S0.
    pub fn spill_flags(&mut self, live: FlagSet) {
        if live != NONE {
            self.redo_flags();
        }
        if self.loc != FlagLoc::Native {
            return;
        }
        if live == NONE && self.recipe.is_some() && !self.is_saved {
            self.loc = FlagLoc::Recipe;
            return;
        }
        if !self.is_saved {
            self.asm.save_flags(offset_of!(State, flags), S0);
            self.is_saved = true;
        }
        self.recipe = None;
        self.loc = FlagLoc::Saved;
    }

    /// Brings saved flags back into the host's. Clobbers S0.
    pub fn fill_flags(&mut self) {
        self.redo_flags();
        if self.loc == FlagLoc::Saved {
            self.asm.restore_flags(offset_of!(State, flags), S0);
            self.is_saved = true;
            self.loc = FlagLoc::Native;
        }
    }

    /// Prepares the host's flags for an instruction; call it right before that. Clobbers S0 unless the flags are native.
    pub fn flags_for(&mut self, insn: &Insn) {
        if self.needs_flags(insn) {
            self.fill_flags();
        }
    }

    /// Whether an instruction needs the flags in the CPU, to read them or to leave some as they are: `flags_for` will then
    /// clobber S0.
    pub fn needs_flags(&self, insn: &Insn) -> bool {
        let effect = flags::effect(&insn.instr);
        effect.read != NONE || effect.touched != NONE && (insn.after.live | insn.after.shown) & !effect.kill != NONE
    }

    /// Notes that an instruction set the host's flags.
    pub fn flags_written(&mut self, insn: &Insn) {
        if flags::effect(&insn.instr).touched != NONE {
            self.loc = FlagLoc::Native;
            self.is_saved = false;
            self.recipe = self.next_recipe.filter(|_| flags::effect(&insn.instr).kill == ALL);
        }
    }

    /// Encodes an instruction at the current place.
    pub fn encode(&mut self, instr: &Instruction) {
        let here = self.asm.here();
        // Every operand combination that reaches here was decoded from a valid instruction; if the encoder still
        // refuses, #UD in its place stops the guest and nobody else.
        if self.encoder.encode(instr, here).is_err() {
            let _ = self.encoder.take_buffer();
            self.asm.raw(&[0x0f, 0x0b]);
            return;
        }
        let bytes = self.encoder.take_buffer();
        self.asm.raw(&bytes);
    }

    /// Records that host code since the last point may raise a signal on behalf of `insn`.
    /// `before` is where the flags were before it.
    pub fn may_fault(&mut self, insn: &Insn, before: FlagSource) {
        let point = FaultPoint { end: self.asm.len() as u32, offset: insn.offset as u16, flags: before };
        self.faults.push(point);
    }

    /// Where a fault that happens now finds the flags.
    pub fn flag_source(&self) -> FlagSource {
        match self.loc {
            FlagLoc::Native => FlagSource::Cpu,
            FlagLoc::Recipe => self.recipe.and_then(|recipe| recipe.word()).map_or(FlagSource::State, FlagSource::Word),
            FlagLoc::Saved | FlagLoc::Given | FlagLoc::Dead => FlagSource::State,
        }
    }

    pub fn finish(mut self, far_entry: u64) -> Translated {
        let (_, near_entry, demand) = self.own;
        let native_entry = if self.enters_saved || demand.live == NONE && demand.shown != NONE {
            let entry = self.asm.here();
            self.asm.save_flags(offset_of!(State, flags), S0);
            self.asm.jmp(near_entry);
            entry
        } else {
            near_entry
        };
        let near_entry = if self.enters_saved { native_entry } else { near_entry };
        // Cold code may need cold code of its own (a link behind a pending check).
        while !self.cold.is_empty() {
            for cold in std::mem::take(&mut self.cold) {
                match cold {
                    Cold::Access(access) => self.cold_access(&access),
                    Cold::Leave(leave) => self.cold_leave(&leave),
                    Cold::Exit(exit) => self.cold_exit(&exit),
                }
            }
        }
        Translated {
            code: self.asm.into_bytes(),
            entries: Entries { far: far_entry, near: near_entry, native: native_entry },
            demand,
            lines: self.lines,
            links: self.links,
            faults: self.faults,
        }
    }
}
