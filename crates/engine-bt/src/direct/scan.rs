//! Instructions that must not run directly: they show the host where the guest has its own, without a fault.
//!
//! CPUID, XGETBV, RDTSCP, RDPID, LAR, LSL and SYSENTER are such at ring 3, and XSAVEC, which notes the components that the host
//! has on: an XRSTOR by the translator would refuse those that the guest has not. A page that has some is executed from a
//! copy in which they are UD2, so that the translator gets them. Code has no marks, so bytes that look like one of them may be part of another
//! instruction, or data: decoding from many places before finds out which, as x86 code falls into step within a few
//! instructions; and what does not look like compilers' code around it is no code for sure, and stays with the translator.
//! This is for fidelity only. Isolation does not rest on it: code that hides such an instruction fools nobody but itself.

use std::sync::Arc;

use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, Instruction, Mnemonic};

/// How far before a suspicious byte decoding starts, at every offset.
const RUN_UP: std::ops::RangeInclusive<usize> = 24..=48;
/// Instructions before and after that must be ordinary.
const BEFORE: usize = 4;
const AFTER: usize = 10;
/// One decoding in so many may be out of step.
const FEW: usize = 4;
/// Second byte of UD2.
pub const UD2: u8 = 0x0b;

/// How a page of code may run directly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it is.
    Clean,
    /// With the bytes at these offsets replaced by [`UD2`].
    Patched(Arc<[u16]>),
    /// Not at all.
    Refused,
}

/// What is known of a page of code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Examined {
    pub verdict: Verdict,
    /// Where the page's last instruction begins with `0f`, if what it is depends on the next page.
    pub cut_off: Option<u16>,
}

impl Examined {
    pub const REFUSED: Self = Self { verdict: Verdict::Refused, cut_off: None };
}

/// Looks a page of code through.
pub fn examine(page: &[u8]) -> Examined {
    let (mut patches, mut cut_off) = (Vec::new(), None);
    for (at, _) in page.iter().enumerate().filter(|&(at, &byte)| byte == 0x0f && is_suspect(page.get(at + 1..))) {
        match judge(page, at) {
            Finding::Nothing => {}
            Finding::Sensitive { .. } => patches.push(at as u16 + 1),
            Finding::CutOff => cut_off = Some(at as u16),
            Finding::Unclear => return Examined::REFUSED,
        }
    }
    let verdict = if patches.is_empty() { Verdict::Clean } else { Verdict::Patched(patches.into()) };
    Examined { verdict, cut_off }
}

/// Whether the instruction that a page cuts off at `at` is one of them, given the page after it.
pub fn is_sensitive_across(page: &[u8], at: u16, next: &[u8]) -> bool {
    let rest: Vec<u8> = page.iter().skip(usize::from(at) + 1).chain(next).copied().take(4).collect();
    is_suspect(Some(&rest))
}

/// Whether `0f` and these bytes may be one of them, as far as the page goes.
fn is_suspect(rest: Option<&[u8]>) -> bool {
    match rest.unwrap_or_default() {
        [] | [0x02 | 0x03 | 0x34 | 0xa2, ..] | [0x01 | 0xc7] | [0x01, 0xd0 | 0xf9, ..] => true,
        // RDPID, and XSAVEC of a place in memory.
        [0xc7, modrm, ..] => modrm & 0xf8 == 0xf8 || modrm & 0x38 == 0x20 && modrm & 0xc0 != 0xc0,
        _ => false,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finding {
    Nothing,
    /// One of them, after so many ordinary instructions.
    Sensitive {
        ordinary: usize,
    },
    /// The page ends within an instruction that begins here.
    CutOff,
    /// One of them, if it is code at all.
    Unclear,
}

/// What the bytes at `at` are. They are one of them only if all decodings say so: a byte replaced in anything else is a wrong
/// program. They are nothing if nearly all say that; one instruction that shows the host something is the lesser harm.
fn judge(page: &[u8], at: usize) -> Finding {
    let starts = at.saturating_sub(*RUN_UP.end())..=at.saturating_sub(*RUN_UP.start());
    let has_run_up = at >= *RUN_UP.end();
    let (mut nothing, mut suspicious, mut unclear, mut most_ordinary) = (0, 0, 0, 0);
    for start in starts {
        match decode_across(page, start, at) {
            Finding::CutOff => return Finding::CutOff,
            Finding::Nothing => nothing += 1,
            Finding::Unclear => unclear += 1,
            Finding::Sensitive { ordinary } => {
                suspicious += 1;
                most_ordinary = most_ordinary.max(ordinary);
            }
        }
    }
    if (suspicious + unclear) * FEW <= nothing {
        Finding::Nothing
    } else if nothing + unclear > 0 || has_run_up && most_ordinary < BEFORE {
        Finding::Unclear
    } else {
        Finding::Sensitive { ordinary: most_ordinary }
    }
}

/// What decoding from `start` finds at `at`.
fn decode_across(page: &[u8], start: usize, at: usize) -> Finding {
    let Some(bytes) = page.get(start..) else { return Finding::Nothing };
    let mut decoder = Decoder::new(64, bytes, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    let mut ordinary = 0;
    while decoder.can_decode() && start + decoder.position() <= at {
        decoder.decode_out(&mut instruction);
        if start + decoder.position() <= at {
            ordinary = if is_ordinary(&instruction) { ordinary + 1 } else { 0 };
            continue;
        }
        if decoder.last_error() == DecoderError::NoMoreBytes {
            return Finding::CutOff;
        }
        if !is_sensitive(instruction.code()) {
            return Finding::Nothing;
        }
        return if are_ordinary_after(&mut decoder) { Finding::Sensitive { ordinary } } else { Finding::Unclear };
    }
    Finding::Nothing
}

/// Whether what follows looks like code too, as far as the page goes.
fn are_ordinary_after(decoder: &mut Decoder<'_>) -> bool {
    let mut instruction = Instruction::default();
    for _ in 0..AFTER {
        if !decoder.can_decode() {
            return true;
        }
        decoder.decode_out(&mut instruction);
        match decoder.last_error() {
            DecoderError::NoMoreBytes => return true,
            DecoderError::None if is_ordinary(&instruction) || is_sensitive(instruction.code()) => {}
            _ => return false,
        }
        if matches!(instruction.mnemonic(), Mnemonic::Ret | Mnemonic::Jmp) {
            return true;
        }
    }
    true
}

/// What compilers and careful people write around such instructions.
fn is_ordinary(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    let mnemonic = instruction.mnemonic();
    // Padding has whatever prefixes make it long.
    let is_plain =
        matches!(instruction.segment_prefix(), iced_x86::Register::None | iced_x86::Register::FS) || mnemonic == M::Nop;
    is_plain
        && !instruction.has_lock_prefix()
        && (instruction.is_jcc_short_or_near()
            || instruction.condition_code() != iced_x86::ConditionCode::None
            || matches!(
                mnemonic,
                M::Mov
                    | M::Movzx
                    | M::Movsx
                    | M::Movsxd
                    | M::Lea
                    | M::Push
                    | M::Pop
                    | M::Xchg
                    | M::Nop
                    | M::Endbr64
                    | M::Add
                    | M::Adc
                    | M::Sub
                    | M::Sbb
                    | M::And
                    | M::Or
                    | M::Xor
                    | M::Not
                    | M::Neg
                    | M::Inc
                    | M::Dec
                    | M::Cmp
                    | M::Test
                    | M::Shl
                    | M::Shr
                    | M::Sar
                    | M::Rol
                    | M::Ror
                    | M::Shld
                    | M::Shrd
                    | M::Bt
                    | M::Bts
                    | M::Btr
                    | M::Bsf
                    | M::Bsr
                    | M::Bswap
                    | M::Imul
                    | M::Mul
                    | M::Idiv
                    | M::Div
                    | M::Cdqe
                    | M::Cdq
                    | M::Cqo
                    | M::Cwde
                    | M::Call
                    | M::Jmp
                    | M::Ret
                    | M::Leave
                    | M::Lfence
                    | M::Mfence
                    | M::Rdtsc
                    | M::Xrstor
                    | M::Xrstor64
                    | M::Movaps
                    | M::Movups
                    | M::Movdqa
                    | M::Movdqu
                    | M::Movd
                    | M::Movq
                    | M::Movhps
                    | M::Pxor
                    | M::Xorps
            ))
}

fn is_sensitive(code: Code) -> bool {
    matches!(
        code,
        Code::Cpuid
            | Code::Xgetbv
            | Code::Rdtscp
            | Code::Rdpid_r32
            | Code::Rdpid_r64
            | Code::Sysenter
            | Code::Xsavec_mem
            | Code::Xsavec64_mem
            | Code::Lar_r16_rm16
            | Code::Lar_r32_r32m16
            | Code::Lar_r64_r64m16
            | Code::Lsl_r16_rm16
            | Code::Lsl_r32_r32m16
            | Code::Lsl_r64_r64m16
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(at: usize, code: &[u8]) -> Vec<u8> {
        let mut page = vec![0x90; 4096];
        page[at..at + code.len()].copy_from_slice(code);
        page
    }

    #[test]
    fn test_sensitive_instructions_are_found_anywhere() {
        for code in [
            &[0x0f, 0xa2][..],
            &[0x0f, 0x01, 0xd0],
            &[0xf3, 0x0f, 0xc7, 0xf8],
            &[0x66, 0x0f, 0x03, 0xc0],
            &[0x0f, 0xc7, 0x27],
        ] {
            for at in [0, 1, 77, 4096 - code.len()] {
                let opcode = at + code.iter().position(|&b| b == 0x0f).unwrap() + 1;
                let expected = Verdict::Patched(Arc::new([opcode as u16]));
                assert_eq!(examine(&page(at, code)).verdict, expected, "{code:x?} at {at}");
            }
        }
    }

    #[test]
    fn test_the_same_bytes_within_other_instructions_are_no_matter() {
        // mov eax, 0x0f ; and eax, 0x0f followed by add eax, [rbx] ; rdrand eax
        for code in [&[0xb8, 0xa2, 0x0f, 0xa2, 0x00][..], &[0x83, 0xe0, 0x0f, 0x03, 0x03], &[0x0f, 0xc7, 0xf0]] {
            assert_eq!(examine(&page(100, code)).verdict, Verdict::Clean, "{code:x?}");
        }
    }

    /// From the middle of an instruction, the last bytes of `je` are LSL after ordinary ones; a byte changed there sends the
    /// jump elsewhere. Node.js crashed so.
    #[test]
    fn test_a_displacement_is_not_patched_for_what_some_decodings_see_in_it() {
        let code = [
            &[0x4c, 0x89, 0xff][..],                           // mov rdi, r15
            &[0xe8, 0x11, 0x6e, 0x8a, 0xff],                   // call
            &[0x48, 0x8b, 0x43, 0x50],                         // mov rax, [rbx + 0x50]
            &[0x4c, 0x8b, 0xa0, 0x98, 0xd5, 0x00, 0x00],       // mov r12, [rax + 0xd598]
            &[0x49, 0x8b, 0x84, 0x24, 0x50, 0x2b, 0x00, 0x00], // mov rax, [r12 + 0x2b50]
            &[0x4d, 0x8d, 0xbc, 0x24, 0x38, 0x2b, 0x00, 0x00], // lea r15, [r12 + 0x2b38]
            &[0x48, 0x85, 0xc0],                               // test rax, rax
            &[0x0f, 0x84, 0x0f, 0x03, 0x00, 0x00],             // je
            &[0x48, 0x8b, 0xb3, 0x18, 0x01, 0x00, 0x00],       // mov rsi, [rbx + 0x118]
            &[0x4c, 0x89, 0xff, 0x48, 0xc1, 0xee, 0x0a, 0xc3], // mov rdi, r15; shr rsi, 10; ret
        ]
        .concat();
        assert_eq!(examine(&page(100, &code)).verdict, Verdict::Clean);
    }

    #[test]
    fn test_an_instruction_that_the_page_ends_in_depends_on_the_next() {
        let cut = page(4095, &[0x0f]);
        assert_eq!(examine(&cut), Examined { verdict: Verdict::Clean, cut_off: Some(4095) });
        assert!(is_sensitive_across(&cut, 4095, &[0xa2, 0x90]));
        assert!(!is_sensitive_across(&cut, 4095, &[0xb6, 0xc0]));
        assert_eq!(examine(&page(4094, &[0x0f, 0x01])).cut_off, Some(4094));
        assert_eq!(examine(&page(4094, &[0xeb, 0x0f])).cut_off, None);
    }

    /// A table that a program reads must not be patched, whatever is in it.
    #[test]
    fn test_data_between_code_is_never_patched() {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        for _ in 0..2000 {
            let mut page = vec![0x90u8; 4096];
            for byte in &mut page[1024..3072] {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                *byte = state as u8;
            }
            let verdict = examine(&page).verdict;
            assert!(!matches!(verdict, Verdict::Patched(_)), "{verdict:?}");
        }
    }
}
