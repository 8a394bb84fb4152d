//! Encodings that no assembler chooses: needless prefixes, ignored ones, several of a kind.

use iced_x86::{Code, Decoder, Encoder, FlowControl, Register};

use ring3_engine_bt::decoder_options;

use crate::case::Case;
use crate::exclude::{Excluded, excluded};
use crate::prng::Prng;
use crate::state::CODE;

const PREFIXES: [u8; 12] = [0x66, 0xf2, 0xf3, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65, 0x66, 0xf3, 0xf0];

/// The sequence with other bytes for the instruction that it is about. None if they mean what cannot be compared.
pub fn mutate(rng: &mut Prng, case: &Case) -> Option<Case> {
    let at = case.items.iter().position(|i| i.instr.code() == case.code && i.target.is_none() && i.raw.is_none())?;
    let instr = &case.items[at].instr;
    if matches!(instr.memory_base(), Register::RIP | Register::EIP) {
        return None;
    }
    let mut encoder = Encoder::new(64);
    encoder.encode(instr, CODE).ok()?;
    let plain = encoder.take_buffer();
    let mut bytes: Vec<u8> = (0..1 + rng.below(3)).map(|_| rng.pick(&PREFIXES)).collect();
    if rng.one_in(4) {
        // REX counts only right before the opcode.
        bytes.push(0x40 | rng.below(16) as u8);
    }
    bytes.extend_from_slice(&plain);
    if bytes.len() > 15 {
        return None;
    }
    let decoded = Decoder::with_ip(64, &bytes, CODE, decoder_options()).decode();
    let is_word_branch = decoded.flow_control() != FlowControl::Next && bytes.contains(&0x66);
    let is_comparable = match excluded(decoded.code()) {
        None if decoded.len() != bytes.len() => false,
        None => !decoded.is_string_instruction() && !is_word_branch && !is_word_env(decoded.code()),
        // #UD on both sides, if the decoder is right.
        Some(Excluded::NotAnInstruction) => decoded.code() == Code::INVALID,
        Some(_) => false,
    };
    if !is_comparable || decoded.is_jcc_short_or_near() {
        return None;
    }
    let mut other = case.clone();
    other.items[at].instr = decoded;
    other.items[at].raw = Some(bytes);
    other.code = decoded.code();
    Some(other)
}

/// Those whose pointers would have to be hidden elsewhere.
pub fn is_word_env(code: Code) -> bool {
    let name = format!("{code:?}");
    ["Fnstenv", "Fnsave", "Fstenv", "Fsave", "Fxsave"].iter().any(|n| name.starts_with(n))
}
