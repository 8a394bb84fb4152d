//! What kind of treatment an instruction needs.

use ring3_engine::Guards;

use super::StringForm;
use super::compat::{self, is_compat};
use super::features::is_visible;
use iced_x86::{Code, CodeSize, FlowControl, Instruction, Mnemonic, OpKind, Register};

/// Treatment of one instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Copied, with its memory operand (if any) checked and rewritten.
    Plain,
    /// No effect but its length.
    Nop,
    /// A memory operand is checked for reading; nothing else happens.
    Touch,
    Lea,
    Push,
    Pop,
    Leave,
    Jcc,
    /// `jrcxz`, `loop` and kin.
    CountedJump,
    Jmp,
    Call,
    JmpIndirect,
    CallIndirect,
    Ret,
    /// Bit test with a register index and a memory operand: the index also addresses.
    BitString,
    Xlat,
    PushFlags,
    Direction(u16),
    Rdtscp,
    Rdpid,
    /// `rdfsbase`, `rdgsbase`.
    ReadBase,
    /// Executed and counted: now and then it leaves, in case the guest spins.
    Pause,
    /// `wrfsbase`, `wrgsbase`: interpreted if the address is not canonical.
    WriteBase,
    /// `mov` from a segment register to a general-purpose one.
    ReadSelector,
    /// `mov` from a general-purpose register to DS, ES, FS or GS in 64-bit code: interpreted if the selector is not null.
    LoadSelector,
    /// `rdmsr`: interpreted but for one MSR.
    ReadMsr,
    /// `iretq`, which in ring 3 returns to ring 3.
    Iret,
    /// `fnstenv`, `fnsave`: the host's code addresses in their image are cleared.
    StoreFpuEnvironment,
    Syscall,
    Interrupt(u8),
    /// A string instruction that stays in translated code where it can (never from [`classify`]).
    String(StringForm),
    /// Decoded again and executed, or handed to the hypervisor, by `interp`.
    Interpret,
    /// Executed by `dispatch::step` (never from [`classify`]).
    Step,
    /// #UD.
    Undefined,
    /// #GP: more than 15 bytes (never from [`classify`]).
    TooLong,
    /// #NM: uses the FPU while it is off.
    NoFpu,
}

impl Kind {
    /// Whether a block ends with it.
    pub fn ends_block(self) -> bool {
        use Kind::{
            Call, CallIndirect, Interpret, Interrupt, Iret, Jmp, JmpIndirect, NoFpu, Ret, Step, Syscall, TooLong,
            Undefined,
        };
        matches!(
            self,
            Jmp | Call
                | JmpIndirect
                | CallIndirect
                | Ret
                | Iret
                | Syscall
                | Interrupt(_)
                | Interpret
                | Step
                | Undefined
                | TooLong
                | NoFpu
        )
    }

    /// Whether translated code does it but for cases that it leaves to `interp`.
    pub fn has_rare_case(self) -> bool {
        matches!(self, Self::WriteBase | Self::LoadSelector | Self::ReadMsr)
    }

    /// Whether translated code may access the memory operand.
    pub fn may_access(self) -> bool {
        !matches!(self, Self::Nop | Self::Lea | Self::Interpret | Self::String(_))
    }

    /// Whether 16-bit and 32-bit code that is stepped has it executed by `interp`: what transfers control or uses the stack.
    pub fn is_flow(self) -> bool {
        use Kind::{Call, CallIndirect, CountedJump, Jcc, Jmp, JmpIndirect, Leave, Pop, Push, Ret};
        matches!(self, Push | Pop | Leave | Jcc | CountedJump | Jmp | Call | JmpIndirect | CallIndirect | Ret)
    }
}

/// Whether the guards make the instruction exit to the hypervisor.
pub fn is_guarded(instr: &Instruction, guards: Guards) -> bool {
    use Mnemonic as M;
    match instr.mnemonic() {
        M::Rdtsc | M::Rdtscp => guards.tsc,
        M::Rdfsbase | M::Rdgsbase | M::Wrfsbase | M::Wrgsbase => guards.bases,
        _ => false,
    }
}

/// Classifies a decoded instruction.
pub fn classify(instr: &Instruction) -> Kind {
    use Mnemonic as M;
    if instr.code() == Code::INVALID || !is_visible(instr) {
        return Kind::Undefined;
    }
    if is_word_branch(instr) {
        return Kind::Interpret;
    }
    if is_compat(instr)
        && let Some(kind) = compat::classify(instr)
    {
        return kind;
    }
    match instr.mnemonic() {
        M::Syscall => return Kind::Syscall,
        M::Int3 => return Kind::Interrupt(3),
        M::Int => return Kind::Interrupt(instr.immediate8()),
        M::Ud0 | M::Ud1 | M::Ud2 => return Kind::Undefined,
        M::Push => return if is_segment_push(instr) { Kind::Interpret } else { Kind::Push },
        M::Pop => return if is_segment_push(instr) { Kind::Interpret } else { Kind::Pop },
        M::Leave => return Kind::Leave,
        M::Lea => return Kind::Lea,
        M::Xlatb => return Kind::Xlat,
        M::Pushfq => return Kind::PushFlags,
        M::Cld => return Kind::Direction(0),
        M::Std => return Kind::Direction(1),
        M::Rdtscp => return Kind::Rdtscp,
        M::Rdpid => return Kind::Rdpid,
        M::Rdfsbase | M::Rdgsbase => return Kind::ReadBase,
        M::Wrfsbase | M::Wrgsbase => return Kind::WriteBase,
        M::Mov if reads_selector(instr) => return Kind::ReadSelector,
        M::Mov if loads_selector(instr) => return Kind::LoadSelector,
        M::Rdmsr => return Kind::ReadMsr,
        M::Iretq if instr.code_size() == CodeSize::Code64 => return Kind::Iret,
        M::Fnstenv | M::Fnsave | M::Fstenv | M::Fsave => return Kind::StoreFpuEnvironment,
        M::Nop
        | M::Prefetch
        | M::Prefetchnta
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Prefetchw
        | M::Prefetchwt1
        | M::Prefetchit0
        | M::Prefetchit1
        | M::Cldemote
        | M::Reservednop => return Kind::Nop,
        M::Rdsspd | M::Rdsspq => return Kind::Nop,
        // No shadow stacks: the rest of CET is not there.
        M::Incsspd
        | M::Incsspq
        | M::Saveprevssp
        | M::Rstorssp
        | M::Wrssd
        | M::Wrssq
        | M::Wrussd
        | M::Wrussq
        | M::Setssbsy
        | M::Clrssbsy => return Kind::Undefined,
        M::Clflush | M::Clflushopt | M::Clwb => return Kind::Touch,
        M::Bt | M::Bts | M::Btr | M::Btc
            if instr.op0_kind() == OpKind::Memory && instr.op1_kind() == OpKind::Register =>
        {
            return Kind::BitString;
        }
        M::Rdtsc | M::Lfence | M::Mfence | M::Sfence | M::Wait => return Kind::Plain,
        M::Pause => return Kind::Pause,
        M::Jrcxz | M::Jecxz | M::Loop | M::Loope | M::Loopne => return Kind::CountedJump,
        _ => {}
    }
    if is_interpreted(instr) {
        return Kind::Interpret;
    }
    match instr.flow_control() {
        // Whatever this file does not know to access memory behind its operands' back is not copied.
        FlowControl::Next if super::implicit::accesses_memory(instr) => Kind::Interpret,
        FlowControl::Next => Kind::Plain,
        FlowControl::ConditionalBranch => Kind::Jcc,
        FlowControl::UnconditionalBranch if instr.is_jmp_short_or_near() => Kind::Jmp,
        FlowControl::Call if instr.is_call_near() => Kind::Call,
        FlowControl::IndirectBranch if instr.is_jmp_near_indirect() => Kind::JmpIndirect,
        FlowControl::IndirectCall if instr.is_call_near_indirect() => Kind::CallIndirect,
        FlowControl::Return if instr.mnemonic() == M::Ret => Kind::Ret,
        _ => Kind::Interpret,
    }
}

/// Near branches with a 16-bit operand size: they cut RIP to 16 bits.
pub fn is_word_branch(instr: &Instruction) -> bool {
    instr.op0_kind() == OpKind::NearBranch16
        || matches!(instr.code(), Code::Jmp_rm16 | Code::Call_rm16 | Code::Retnw | Code::Retnw_imm16)
}

/// Whether a push or pop is of a segment register.
pub fn is_segment_push(instr: &Instruction) -> bool {
    instr.op0_kind() == OpKind::Register && instr.op0_register().is_segment_register()
}

fn is_register(instr: &Instruction, op: u32) -> bool {
    instr.op_kind(op) == OpKind::Register
}

fn reads_selector(instr: &Instruction) -> bool {
    is_register(instr, 0) && is_register(instr, 1) && instr.op1_register().is_segment_register()
}

fn loads_selector(instr: &Instruction) -> bool {
    use Register::{DS, ES, FS, GS};
    instr.code_size() == CodeSize::Code64
        && is_register(instr, 0)
        && is_register(instr, 1)
        && matches!(instr.op0_register(), DS | ES | FS | GS)
}

fn is_interpreted(instr: &Instruction) -> bool {
    use Mnemonic as M;
    if instr.is_privileged() || instr.is_string_instruction() || instr.is_vsib() {
        return true;
    }
    if (0..instr.op_count()).any(|op| is_special_register(instr, op)) {
        return true;
    }
    matches!(
        instr.mnemonic(),
        M::Cpuid
            | M::Xgetbv
            | M::Xsave
            | M::Xsave64
            | M::Xsavec
            | M::Xsavec64
            | M::Xsaveopt
            | M::Xsaveopt64
            | M::Xrstor
            | M::Xrstor64
            | M::Fxsave
            | M::Fxsave64
            | M::Fxrstor
            | M::Fxrstor64
            | M::Popf
            | M::Popfq
            | M::Pushf
            | M::Enter
            | M::Maskmovdqu
            | M::Maskmovq
            | M::Vmaskmovdqu
            | M::Vmaskmovps
            | M::Vmaskmovpd
            | M::Vpmaskmovd
            | M::Vpmaskmovq
            | M::Int1
            | M::Sgdt
            | M::Sidt
            | M::Sldt
            | M::Str
            | M::Smsw
            | M::Lar
            | M::Lsl
            | M::Verr
            | M::Verw
            | M::Lss
            | M::Lfs
            | M::Lgs
            | M::Sysenter
            | M::Sysexit
            | M::Sysret
            | M::Rdpmc
            | M::Iret
            | M::Iretd
            | M::In
            | M::Out
            | M::Cli
            | M::Sti
            | M::Vmcall
            | M::Vmmcall
    )
}

fn is_special_register(instr: &Instruction, op: u32) -> bool {
    if instr.op_kind(op) != OpKind::Register {
        return false;
    }
    let register = instr.op_register(op);
    register.is_segment_register() || register.is_cr() || register.is_dr() || register.is_tr()
}
