//! Sequences that save extended state, change it, and bring it back.

use iced_x86::{Code, Instruction, MemoryOperand, OpKind, Register};

use crate::case::{Case, Item};
use crate::prng::Prng;
use crate::state::DATA;
use crate::values;

const SAVES: [Code; 8] = [
    Code::Xsave_mem,
    Code::Xsave64_mem,
    Code::Xsavec_mem,
    Code::Xsavec64_mem,
    Code::Xsaveopt_mem,
    Code::Xsaveopt64_mem,
    Code::Fxsave_m512byte,
    Code::Fxsave64_m512byte,
];

fn at(address: u64) -> MemoryOperand {
    MemoryOperand::with_displ(address, 8)
}

fn on_area(code: Code, area: u64) -> Instruction {
    let mut instr = Instruction::default();
    instr.set_code(code);
    instr.set_op0_kind(OpKind::Memory);
    instr.set_memory_displacement64(area);
    instr.set_memory_displ_size(8);
    instr
}

/// `save [area]`, some changes, `restore [area]`; with masks of components.
pub fn generate(rng: &mut Prng) -> Option<Case> {
    let mut state = values::state(rng);
    // Some of each component in its initial state.
    if rng.one_in(3) {
        state.ymm.iter_mut().for_each(|v| v[16..].fill(0));
        if rng.one_in(2) {
            state.ymm.iter_mut().for_each(|v| v.fill(0));
        }
    }
    let area = DATA + 64 * rng.below(0x80) + if rng.one_in(30) { 8 * rng.below(8) } else { 0 };
    let save = rng.pick(&SAVES);
    let is_fx = matches!(save, Code::Fxsave_m512byte | Code::Fxsave64_m512byte);
    let mut items: Vec<Item> = Vec::new();
    for offset in (512..576).step_by(8) {
        let garbage = i32::from(rng.one_in(100));
        let mut clear = Instruction::with2(Code::Mov_rm64_imm32, at(area + offset), garbage).ok()?;
        clear.set_op1_kind(OpKind::Immediate32to64);
        items.push(clear.into());
    }
    let mask = |items: &mut Vec<Item>, rng: &mut Prng| -> Option<()> {
        let wanted = if rng.one_in(2) { 7 } else { rng.below(8) as i32 };
        items.push(Instruction::with2(Code::Mov_r32_imm32, Register::EAX, wanted).ok()?.into());
        items.push(Instruction::with2(Code::Mov_r32_imm32, Register::EDX, 0i32).ok()?.into());
        Some(())
    };
    mask(&mut items, rng)?;
    items.push(on_area(save, area).into());
    for _ in 0..rng.below(5) {
        let register = Register::YMM0 + rng.below(16) as u32;
        let change = match rng.below(6) {
            0 => Instruction::with(Code::VEX_Vzeroall),
            1 => Instruction::with(Code::VEX_Vzeroupper),
            2 => Instruction::with(Code::Fninit),
            3 => Instruction::with(Code::Fld1),
            4 => on_area(Code::Ldmxcsr_m32, DATA + 0x3000),
            _ => Instruction::with3(Code::VEX_Vpxor_ymm_ymm_ymmm256, register, register, register).ok()?,
        };
        items.push(change.into());
    }
    mask(&mut items, rng)?;
    let restore = match (is_fx, rng.one_in(2)) {
        (true, true) => Code::Fxrstor_m512byte,
        (true, false) => Code::Fxrstor64_m512byte,
        (false, true) => Code::Xrstor_mem,
        (false, false) => Code::Xrstor64_mem,
    };
    items.push(on_area(restore, area).into());
    // Shown in the image but not in the guest: pointers, the mask of MXCSR, which components are in use.
    let hidden = match save {
        Code::Xsave_mem | Code::Xsave64_mem | Code::Fxsave_m512byte | Code::Fxsave64_m512byte => {
            vec![(area + 6, 18), (area + 28, 4), (area + 512, 8)]
        }
        // Components in their initial state are not written, and the CPU need not notice that they are.
        _ => vec![(area, 832)],
    };
    Some(Case { items, state, hidden, code: save, base: 0 })
}
