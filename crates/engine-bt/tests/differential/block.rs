//! Sequences of 2 to 20 instructions: memory, flags, branches, loops, calls, the stack, string instructions.

use iced_x86::{
    Code, FlowControl, Instruction, InstructionInfoFactory, MemoryOperand, Mnemonic as M, OpAccess, Register,
};

use crate::case::{Case, Item};
use crate::exclude;
use crate::narrow::narrow;
use crate::operand::{Draft, number};
use crate::prng::Prng;
use crate::single;
use crate::state::CpuState;
use crate::values;

/// Codes that may stand anywhere in a block.
pub struct Codes {
    all: Vec<Code>,
    /// What compilers emit, or what else is favoured.
    common: Vec<Code>,
    /// How seldom others are taken.
    others_one_in: u64,
}

impl Codes {
    pub fn new() -> Self {
        Self::of(exclude::excluded)
    }

    /// Those of 32-bit code.
    pub fn new32() -> Self {
        Self::of(exclude::excluded32)
    }

    /// What sets flags, reads them, or comes between: for blocks that end in faults.
    pub fn of_flags(in_32: bool) -> Self {
        let mut codes = if in_32 { Self::new32() } else { Self::new() };
        codes.common = codes.all.iter().copied().filter(|&code| is_about_flags(code)).collect();
        codes.others_one_in = 8;
        codes
    }

    fn of(excluded: impl Fn(Code) -> Option<exclude::Excluded>) -> Self {
        let all: Vec<Code> = Code::values().filter(|&c| excluded(c).is_none() && is_straight(c)).collect();
        let common = all.iter().copied().filter(|c| is_common(c.mnemonic())).collect();
        Self { all, common, others_one_in: 3 }
    }

    fn pick(&self, rng: &mut Prng) -> Code {
        if rng.one_in(self.others_one_in) { rng.pick(&self.all) } else { rng.pick(&self.common) }
    }
}

fn is_straight(code: Code) -> bool {
    let mut instr = Instruction::default();
    instr.set_code(code);
    instr.flow_control() == FlowControl::Next
        && !instr.is_stack_instruction()
        && !instr.is_string_instruction()
        && code.op_code().op_kinds().iter().all(|k| *k != iced_x86::OpCodeOperandKind::seg_rBX_al)
        && !matches!(code.mnemonic(), M::Into | M::Bound)
        && !matches!(
            code.mnemonic(),
            M::Popf
                | M::Popfq
                | M::Wrfsbase
                | M::Wrgsbase
                | M::Maskmovdqu
                | M::Maskmovq
                | M::Vmaskmovdqu
                | M::Xlatb
                | M::Fnstenv
                | M::Fstenv
                | M::Fnsave
                | M::Fsave
                | M::Fxsave
                | M::Fxsave64
        )
}

/// Instructions of the integer ISA that write flags, and moves, which overwrite what flags came from.
fn is_about_flags(code: Code) -> bool {
    let mut instr = Instruction::default();
    instr.set_code(code);
    let basic = code.cpuid_features().iter().all(|f| {
        use iced_x86::CpuidFeature as F;
        matches!(f, F::INTEL8086 | F::INTEL186 | F::INTEL386 | F::INTEL486 | F::X64 | F::CMOV | F::BMI1 | F::POPCNT)
    });
    let moves = matches!(
        code.mnemonic(),
        M::Mov | M::Movzx | M::Movsx | M::Movsxd | M::Lea | M::Xchg | M::Bswap | M::Movaps | M::Movups | M::Addsd
    );
    moves || basic && instr.rflags_modified() != 0
}

fn is_common(mnemonic: M) -> bool {
    let name = format!("{mnemonic:?}");
    name.starts_with("Cmov")
        || name.starts_with("Set")
        || matches!(
            mnemonic,
            M::Mov | M::Add | M::Sub | M::And | M::Or | M::Xor | M::Cmp | M::Test | M::Lea | M::Inc | M::Dec | M::Neg
        )
        || matches!(
            mnemonic,
            M::Not | M::Adc | M::Sbb | M::Shl | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd
        )
        || matches!(
            mnemonic,
            M::Imul | M::Mul | M::Div | M::Movzx | M::Movsx | M::Movsxd | M::Bswap | M::Xchg | M::Xadd | M::Cmpxchg
        )
        || matches!(
            mnemonic,
            M::Bt | M::Bts | M::Btr | M::Btc | M::Bsf | M::Bsr | M::Cdq | M::Cdqe | M::Cqo | M::Stc | M::Clc | M::Cmc
        )
        || matches!(
            mnemonic,
            M::Lahf | M::Sahf | M::Movbe | M::Andn | M::Mulx | M::Rorx | M::Adcx | M::Adox | M::Popcnt | M::Movups
        )
        || matches!(mnemonic, M::Movaps | M::Pxor | M::Movq | M::Movd | M::Addsd | M::Cvtsi2sd | M::Ucomisd | M::Nop)
}

/// A target that is not known yet.
const LATER: usize = usize::MAX;

struct Builder<'a> {
    items: Vec<Item>,
    draft: Draft,
    factory: InstructionInfoFactory,
    codes: &'a Codes,
    memory: &'a [u8],
    /// Loops and indirect jumps: nothing jumps from before the first index to after it and up to the second.
    sealed: Vec<(usize, usize)>,
}

/// A block. None if the dice gave one that is not comparable.
pub fn generate(rng: &mut Prng, codes: &Codes, memory: &[u8]) -> Option<Case> {
    let state = values::state(rng);
    generate_from(rng, codes, memory, state)
}

/// As `generate`, in 32-bit code.
pub fn generate32(rng: &mut Prng, codes: &Codes, memory: &[u8]) -> Option<Case> {
    let state = values::state32(rng);
    generate_from(rng, codes, memory, state)
}

fn generate_from(rng: &mut Prng, codes: &Codes, memory: &[u8], state: CpuState) -> Option<Case> {
    let draft = Draft { state, fixed: 1 << 4, written: 0 };
    let mut b =
        Builder { items: Vec::new(), draft, factory: InstructionInfoFactory::new(), codes, memory, sealed: Vec::new() };
    let len = 2 + rng.below(19) as usize;
    while b.items.len() < len {
        let start = b.items.len();
        let dice = if rng.favours_loops && rng.one_in(2) { 10 } else { rng.below(24) };
        match dice {
            0..=2 => b.jump(rng)?,
            3..=5 => b.stack(rng)?,
            6 => b.string(rng)?,
            7 => b.indirect(rng)?,
            8 => b.flags(rng)?,
            9..=10 if len - start > 3 => b.repeated(rng)?,
            11 => b.call(rng)?,
            _ => b.straight(rng),
        }
    }
    let n = b.items.len();
    for (at, item) in b.items.iter_mut().enumerate() {
        if item.target == Some(LATER) {
            let target = at + 1 + rng.below((n - at) as u64) as usize;
            let into = b.sealed.iter().find(|(load, end)| at < *load && (*load + 1..=*end).contains(&target));
            item.target = Some(into.map_or(target, |&(load, _)| load));
        }
    }
    if b.draft.is_narrow() {
        for item in &mut b.items {
            item.instr = narrow(&item.instr)?;
        }
    }
    let code = b.items.first()?.instr.code();
    let case = Case { items: b.items, state: b.draft.state, hidden: Vec::new(), code, base: 0 };
    (!case.reads_undefined()).then_some(case)
}

impl Builder<'_> {
    /// Registers that an instruction writes.
    fn writes(&mut self, instr: &Instruction) -> u16 {
        let mut set = 0;
        for used in self.factory.info(instr).used_registers() {
            let full = used.register().full_register();
            let read =
                matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess | OpAccess::None);
            if full.is_gpr64() && !read {
                set |= 1 << number(full);
            }
        }
        set
    }

    /// Adds an instruction unless it changes a register that others rely on; RSP is left to the caller.
    fn push(&mut self, item: Item) -> bool {
        let writes = self.writes(&item.instr);
        if writes & self.draft.fixed & !(1 << 4) != 0 {
            return false;
        }
        self.draft.written |= writes & !(1 << 4);
        self.items.push(item);
        true
    }

    /// A free register, not RSP.
    fn free(&self, rng: &mut Prng) -> Option<Register> {
        (0..32).map(|_| self.draft.any_register(rng)).find(|&r| !self.draft.is_fixed(r))
    }

    fn straight(&mut self, rng: &mut Prng) {
        let code = self.codes.pick(rng);
        if matches!(code.mnemonic(), M::Div | M::Idiv) && !rng.one_in(4) {
            return;
        }
        let mut draft = self.draft.clone();
        let mut instr = Instruction::default();
        instr.set_code(code);
        if single::operands(rng, &mut instr, &mut draft, self.memory).is_none() {
            return;
        }
        if (draft.fixed & !self.draft.fixed) & self.draft.written != 0 || self.writes(&instr) & 1 << 4 != 0 {
            return;
        }
        let before = std::mem::replace(&mut self.draft, draft);
        if !self.push(instr.into()) {
            self.draft = before;
        }
    }

    fn jump(&mut self, rng: &mut Prng) -> Option<()> {
        let conditions = [
            Code::Jo_rel32_64,
            Code::Jno_rel32_64,
            Code::Jb_rel32_64,
            Code::Jae_rel32_64,
            Code::Je_rel32_64,
            Code::Jne_rel32_64,
            Code::Jbe_rel32_64,
            Code::Ja_rel32_64,
            Code::Js_rel32_64,
            Code::Jns_rel32_64,
            Code::Jp_rel32_64,
            Code::Jnp_rel32_64,
            Code::Jl_rel32_64,
            Code::Jge_rel32_64,
            Code::Jle_rel32_64,
            Code::Jg_rel32_64,
            Code::Jmp_rel32_64,
        ];
        let instr = Instruction::with_branch(rng.pick(&conditions), 0).ok()?;
        self.items.push(Item::to(instr, LATER));
        Some(())
    }

    /// Pushes, something between, and as many pops.
    fn stack(&mut self, rng: &mut Prng) -> Option<()> {
        let count = 1 + rng.below(5);
        for _ in 0..count {
            let push = match rng.below(6) {
                0 => Instruction::with1(Code::Pushq_imm32, values::integer(rng) as i32).ok()?,
                1 => {
                    let mut instr = Instruction::default();
                    instr.set_code(Code::Push_rm64);
                    instr.set_op0_kind(iced_x86::OpKind::Memory);
                    let target = values::address(rng, 8);
                    let mut draft = self.draft.clone();
                    if draft.memory(rng, &mut instr, target).is_none() || instr.memory_base() == Register::RSP {
                        continue;
                    }
                    self.draft = draft;
                    instr
                }
                _ => Instruction::with1(Code::Push_r64, self.draft.any_register(rng)).ok()?,
            };
            self.items.push(push.into());
        }
        for _ in 0..rng.below(3) {
            self.straight(rng);
        }
        for _ in 0..count {
            let register = self.free(rng)?;
            let pop = Instruction::with1(Code::Pop_r64, register).ok()?;
            self.push(pop.into());
        }
        Some(())
    }

    fn load(&mut self, register: Register, value: u64) -> Option<bool> {
        Some(self.push(Instruction::with2(Code::Mov_r64_imm64, register, value).ok()?.into()))
    }

    fn string(&mut self, rng: &mut Prng) -> Option<()> {
        let codes = [
            Code::Movsb_m8_m8,
            Code::Movsq_m64_m64,
            Code::Movsd_m32_m32,
            Code::Stosb_m8_AL,
            Code::Stosq_m64_RAX,
            Code::Lodsb_AL_m8,
            Code::Scasb_AL_m8,
            Code::Cmpsb_m8_m8,
            Code::Cmpsw_m16_m16,
            Code::Movsw_m16_m16,
        ];
        if self.draft.fixed & (1 << 1 | 1 << 6 | 1 << 7 | 1) != 0 {
            return Some(());
        }
        let mut instr = Instruction::default();
        instr.set_code(rng.pick(&codes));
        let mut draft = self.draft.clone();
        single::operands(rng, &mut instr, &mut draft, self.memory)?;
        for register in [Register::RSI, Register::RDI, Register::RCX] {
            self.load(register, draft.value(register))?;
        }
        self.push(instr.into());
        Some(())
    }

    /// `lea` of a label and a jump to it.
    fn indirect(&mut self, rng: &mut Prng) -> Option<()> {
        let register = self.free(rng)?;
        let lea = Instruction::with2(Code::Lea_r64_m, register, MemoryOperand::with_base(Register::RIP)).ok()?;
        let at = self.items.len();
        self.items.push(Item::to(lea, LATER));
        self.draft.written |= 1 << number(register);
        let jump = Instruction::with1(Code::Jmp_rm64, register).ok()?;
        self.items.push(jump.into());
        self.sealed.push((at, at + 1));
        self.items[at].target = Some(at + 2);
        for _ in 0..rng.below(2) {
            self.straight(rng);
            self.items[at].target = Some(self.items.len());
        }
        Some(())
    }

    fn flags(&mut self, rng: &mut Prng) -> Option<()> {
        if rng.one_in(2) {
            self.items.push(Instruction::with(Code::Pushfq).into());
        } else {
            let value = rng.next() as i32 & 0x8d5 | if rng.one_in(3) { 1 << 10 } else { 0 };
            self.items.push(Instruction::with1(Code::Pushq_imm32, value).ok()?.into());
        }
        if rng.one_in(2) {
            self.items.push(Instruction::with(Code::Popfq).into());
        } else {
            let register = self.free(rng)?;
            self.push(Instruction::with1(Code::Pop_r64, register).ok()?.into());
        }
        Some(())
    }

    /// A loop of a few turns.
    fn repeated(&mut self, rng: &mut Prng) -> Option<()> {
        let by_loop = rng.one_in(3);
        let counter = if by_loop { Register::RCX } else { self.free(rng)? };
        if self.draft.is_fixed(counter) {
            return Some(());
        }
        let load = self.items.len();
        self.load(counter, 1 + rng.below(6))?;
        let fixed = self.draft.fixed;
        self.draft.fixed |= 1 << number(counter);
        let start = self.items.len();
        let most = if rng.favours_loops { 9 } else { 5 };
        for _ in 0..1 + rng.below(most) {
            match rng.below(6) {
                0 => self.jump(rng)?,
                1 => self.stack(rng)?,
                _ => self.straight(rng),
            }
        }
        // Branches out of the body must not skip into it with the counter unset: they stay in it.
        let end = self.items.len();
        for item in &mut self.items[start..] {
            if item.target == Some(LATER) {
                item.target = Some(end);
            }
        }
        if by_loop {
            self.items.push(Item::to(Instruction::with_branch(Code::Loop_rel8_64_RCX, 0).ok()?, start));
        } else {
            self.items.push(Instruction::with1(Code::Dec_rm64, counter).ok()?.into());
            self.items.push(Item::to(Instruction::with_branch(Code::Jne_rel32_64, 0).ok()?, start));
        }
        self.draft.fixed = fixed | 1 << number(counter);
        self.sealed.push((load, self.items.len() - 1));
        Some(())
    }

    /// A call of a function that stands behind it, over a jump.
    fn call(&mut self, rng: &mut Prng) -> Option<()> {
        let at = self.items.len();
        self.items.push(Item::to(Instruction::with_branch(Code::Call_rel32_64, 0).ok()?, at + 2));
        self.items.push(Item::to(Instruction::with_branch(Code::Jmp_rel32_64, 0).ok()?, 0));
        for _ in 0..rng.below(4) {
            self.straight(rng);
        }
        self.items.push(Instruction::with(Code::Retnq).into());
        let end = self.items.len();
        self.items[at + 1].target = Some(end);
        Some(())
    }
}
