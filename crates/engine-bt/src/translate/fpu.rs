//! Which instructions CR0.TS makes raise #NM: those that use x87, MMX, XMM or YMM state.
//! Source: Intel SDM vol. 3, "Exception 7: Device Not Available".

use iced_x86::{CpuidFeature, Instruction, Mnemonic, OpKind};

/// Whether the instruction is one of them. `wait` counts: the guest sees CR0.MP set.
pub fn uses_fpu(instr: &Instruction) -> bool {
    use CpuidFeature as F;
    use Mnemonic as M;
    match instr.mnemonic() {
        M::Wait | M::Ldmxcsr | M::Stmxcsr | M::Vldmxcsr | M::Vstmxcsr | M::Vzeroupper | M::Vzeroall => return true,
        M::Xgetbv | M::Xsetbv => return false,
        _ => {}
    }
    let is_state = |f: &F| {
        matches!(f, F::FPU | F::FPU287 | F::FPU387 | F::MMX | F::FXSR | F::XSAVE | F::XSAVEC | F::XSAVEOPT | F::XSAVES)
    };
    let is_register = |op: u32| {
        let register = instr.op_register(op);
        instr.op_kind(op) == OpKind::Register && (register.is_vector_register() || register.is_mm() || register.is_st())
    };
    instr.cpuid_features().iter().any(is_state) || (0..instr.op_count()).any(is_register)
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::uses_fpu;

    #[test]
    fn test_which_instructions_use_the_fpu() {
        let uses = |bytes: &[u8]| uses_fpu(&Decoder::new(64, bytes, DecoderOptions::NONE).decode());
        let with: [&[u8]; 11] = [
            &[0x9b],                         // wait
            &[0xd9, 0xe8],                   // fld1
            &[0x0f, 0x77],                   // emms
            &[0x0f, 0x28, 0xc1],             // movaps xmm0, xmm1
            &[0xf3, 0x0f, 0x2a, 0xc0],       // cvtsi2ss xmm0, eax
            &[0x0f, 0xae, 0x10],             // ldmxcsr [rax]
            &[0x0f, 0xae, 0x00],             // fxsave [rax]
            &[0x0f, 0xae, 0x20],             // xsave [rax]
            &[0xc5, 0xf8, 0x77],             // vzeroupper
            &[0x66, 0x0f, 0x3a, 0x14, 0, 0], // pextrb [rax], xmm0, 0
            &[0x0f, 0xf7, 0xc1],             // maskmovq mm0, mm1
        ];
        let without: [&[u8]; 9] = [
            &[0x90],                         // nop
            &[0x0f, 0xc3, 0x00],             // movnti [rax], eax
            &[0x0f, 0x18, 0x00],             // prefetchnta [rax]
            &[0x0f, 0xae, 0xf8],             // sfence
            &[0x0f, 0xae, 0x38],             // clflush [rax]
            &[0x0f, 0x01, 0xd0],             // xgetbv
            &[0xf3, 0x0f, 0xb8, 0xc0],       // popcnt eax, eax
            &[0xf2, 0x0f, 0x38, 0xf0, 0xc0], // crc32 eax, al
            &[0xc4, 0xe2, 0x78, 0xf2, 0xc0], // andn eax, eax, eax
        ];
        assert_eq!(with.map(uses), [true; 11]);
        assert_eq!(without.map(uses), [false; 9]);
    }
}
