//! Which instructions there are: those that every policy may show, less those that the domain's hides or XCR0 disables.

use iced_x86::{Code, CodeSize, CpuidFeature, EncodingKind, Instruction, Mnemonic};
use ring3_engine::Features;

/// What an instruction needs of the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    Nothing,
    Feature(Features),
    /// What no policy shows.
    Impossible,
}

/// Whether a policy may show the instruction. What none does raises #UD, whatever the host has.
pub fn is_visible(instr: &Instruction) -> bool {
    matches!(instr.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        && instr.cpuid_features().iter().all(|&feature| need(feature) != Need::Impossible)
}

/// Whether the instruction belongs to a feature that the domain's policy hides.
pub fn is_hidden(instr: &Instruction, hidden: Features) -> bool {
    if hidden.is_empty() {
        return false;
    }
    match instr.mnemonic() {
        // Without the feature they are BSF, BSR and a no-op.
        Mnemonic::Tzcnt | Mnemonic::Lzcnt | Mnemonic::Pause => false,
        Mnemonic::Lahf | Mnemonic::Sahf => {
            instr.code_size() == CodeSize::Code64 && hidden.intersects(Features::LAHF_LM)
        }
        _ => instr
            .cpuid_features()
            .iter()
            .any(|&feature| matches!(need(feature), Need::Feature(needed) if hidden.intersects(needed))),
    }
}

/// Makes TZCNT and LZCNT what CPUs without them take them for: they ignore the prefix.
pub fn revert(instr: &mut Instruction, hidden: Features) {
    let is_hidden = match instr.mnemonic() {
        Mnemonic::Tzcnt => hidden.intersects(Features::BMI1),
        Mnemonic::Lzcnt => hidden.intersects(Features::LZCNT),
        _ => false,
    };
    let code = match instr.code() {
        Code::Tzcnt_r16_rm16 => Code::Bsf_r16_rm16,
        Code::Tzcnt_r32_rm32 => Code::Bsf_r32_rm32,
        Code::Tzcnt_r64_rm64 => Code::Bsf_r64_rm64,
        Code::Lzcnt_r16_rm16 => Code::Bsr_r16_rm16,
        Code::Lzcnt_r32_rm32 => Code::Bsr_r32_rm32,
        Code::Lzcnt_r64_rm64 => Code::Bsr_r64_rm64,
        _ => return,
    };
    if is_hidden {
        instr.set_code(code);
    }
}

/// Whether an instruction may come of [`revert`]: its bytes would not do.
pub fn may_be_reverted(instr: &Instruction) -> bool {
    matches!(instr.mnemonic(), Mnemonic::Bsf | Mnemonic::Bsr)
}

/// Whether the instruction needs the AVX state: without XCR0.AVX it raises #UD.
pub fn needs_avx_state(instr: &Instruction) -> bool {
    use CpuidFeature as F;
    instr.encoding() == EncodingKind::VEX
        && instr
            .cpuid_features()
            .iter()
            .any(|f| matches!(f, F::AVX | F::AVX2 | F::F16C | F::FMA | F::GFNI | F::VAES | F::VPCLMULQDQ))
}

fn need(feature: CpuidFeature) -> Need {
    use CpuidFeature as F;
    use Features as N;
    Need::Feature(match feature {
        F::INTEL8086
        | F::INTEL186
        | F::INTEL286
        | F::INTEL386
        | F::INTEL486
        | F::X64
        | F::CPUID
        | F::CMOV
        | F::FPU
        | F::FPU287
        | F::FPU387
        | F::CX8
        | F::CLDEMOTE
        | F::TSC
        | F::RDPMC
        | F::MSR
        | F::PAUSE
        | F::MULTIBYTENOP
        | F::PREFETCHW
        | F::PREFETCHWT1
        | F::PREFETCHITI
        | F::SYSCALL
        | F::SEP
        | F::LZCNT
        | F::WBNOINVD
        | F::CET_IBT
        | F::CET_SS => return Need::Nothing,
        F::MMX => N::MMX,
        F::FXSR => N::FXSR,
        F::SSE => N::SSE,
        F::SSE2 => N::SSE2,
        F::SSE3 => N::SSE3,
        F::SSSE3 => N::SSSE3,
        F::SSE4_1 => N::SSE4_1,
        F::SSE4_2 => N::SSE4_2,
        F::SSE4A => N::SSE4A,
        F::AES => N::AES,
        F::PCLMULQDQ => N::PCLMULQDQ,
        F::AVX => N::AVX,
        F::AVX2 => N::AVX2,
        F::F16C => N::F16C,
        F::FMA => N::FMA,
        F::BMI1 => N::BMI1,
        F::BMI2 => N::BMI2,
        F::POPCNT => N::POPCNT,
        F::MOVBE => N::MOVBE,
        F::ADX => N::ADX,
        F::SHA => N::SHA,
        F::GFNI => N::GFNI,
        F::VAES => N::VAES,
        F::VPCLMULQDQ => N::VPCLMULQDQ,
        F::RDRAND => N::RDRAND,
        F::RDSEED => N::RDSEED,
        F::XSAVE => N::XSAVE,
        F::XSAVEC => N::XSAVEC,
        F::XSAVEOPT => N::XSAVEOPT,
        F::CMPXCHG16B => N::CX16,
        F::CLFSH => N::CLFLUSH,
        F::CLFLUSHOPT => N::CLFLUSHOPT,
        F::CLWB => N::CLWB,
        F::RDTSCP => N::RDTSCP,
        F::RDPID => N::RDPID,
        F::FSGSBASE => N::FSGSBASE,
        _ => return Need::Impossible,
    })
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::*;

    fn decoded(bytes: &[u8]) -> Instruction {
        Decoder::new(64, bytes, DecoderOptions::NONE).decode()
    }

    #[test]
    fn test_hidden_features_take_their_instructions_and_no_others() {
        let cases: [(&[u8], Features); 9] = [
            (&[0x0f, 0xc7, 0xf0], Features::RDRAND),
            (&[0x0f, 0xc7, 0xf8], Features::RDSEED),
            (&[0x0f, 0x01, 0xf9], Features::RDTSCP),
            (&[0xc5, 0xf4, 0x58, 0xc0], Features::AVX),
            (&[0xc4, 0xe2, 0x78, 0xf2, 0xc0], Features::BMI1),
            (&[0x66, 0x0f, 0x38, 0xdc, 0xc1], Features::AES),
            (&[0x48, 0x0f, 0xc7, 0x0f], Features::CX16),
            (&[0x9f], Features::LAHF_LM),
            (&[0x0f, 0x01, 0xd0], Features::XSAVE),
        ];
        for (bytes, feature) in cases {
            assert!(is_visible(&decoded(bytes)), "{bytes:x?}");
            assert!(is_hidden(&decoded(bytes), feature), "{bytes:x?}");
            assert!(!is_hidden(&decoded(bytes), Features(u64::MAX).without(feature)), "{bytes:x?}");
        }
        // rep bsf, pause, add
        for bytes in [&[0xf3, 0x0f, 0xbc, 0xc0][..], &[0xf3, 0x90], &[0x01, 0xc0]] {
            assert!(!is_hidden(&decoded(bytes), Features(u64::MAX)), "{bytes:x?}");
        }
    }

    #[test]
    fn test_bit_manipulation_needs_no_avx_state() {
        assert!(needs_avx_state(&decoded(&[0xc5, 0xf4, 0x58, 0xc0])), "vaddps ymm");
        assert!(needs_avx_state(&decoded(&[0xc5, 0xf8, 0x77])), "vzeroupper");
        assert!(!needs_avx_state(&decoded(&[0xc4, 0xe2, 0x78, 0xf2, 0xc0])), "andn");
        assert!(!needs_avx_state(&decoded(&[0x0f, 0x58, 0xc0])), "addps");
    }
}
