//! Byte strings that mean anything or nothing: the CPU says what, and how long they are.
//!
//! Each is followed by traps, so that where the CPU comes to a halt tells the length. What the engine's decoder knows
//! nothing of must raise #UD on the CPU too, and the other way round.

use iced_x86::{Code, Decoder, Encoder, FlowControl, Instruction, Mnemonic as M};

use ring3_engine_bt::{decoder_options, is_word_branch};

use crate::case::{Case, Item};
use crate::exclude::{Excluded, excluded, excluded32};
use crate::mutate::is_word_env;
use crate::prng::Prng;
use crate::single;
use crate::state::{CODE, DATA, MEMORY_END};
use crate::values;

/// Longest instruction, and one more.
const MAX_BYTES: usize = 16;
const LEGACY: [u8; 11] = [0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65];

/// A byte string as a sequence of one instruction. None if it means what cannot be compared.
pub fn generate(rng: &mut Prng, codes: &[Code], memory: &[u8], in_32: bool) -> Option<Case> {
    let mut case = Case {
        items: Vec::new(),
        state: if in_32 { values::state32(rng) } else { values::state(rng) },
        hidden: Vec::new(),
        code: Code::INVALID,
        base: 0,
    };
    near_data(rng, &mut case, in_32);
    let mut bytes = match rng.below(4) {
        0 => soup(rng, in_32),
        1 | 2 => mutated(rng, &mut case, codes, memory, in_32)?,
        _ => shaped(rng, in_32),
    };
    let bits = case.bits();
    // What follows it is part of it if it has none of its own.
    bytes.resize(MAX_BYTES, 0xcc);
    let instr = Decoder::with_ip(bits, &bytes, CODE, decoder_options()).decode();
    if !is_comparable(&instr, &bytes, in_32) {
        return None;
    }
    if instr.code() != Code::INVALID {
        bytes.truncate(instr.len());
    }
    case.code = instr.code();
    // What it leaves undefined is told by the instruction; what it is not is told by nobody.
    case.items = vec![Item { instr, target: None, raw: Some(bytes) }];
    Some(case)
}

/// Has many operands lie in the data.
fn near_data(rng: &mut Prng, case: &mut Case, in_32: bool) {
    for (n, register) in case.state.gpr.iter_mut().enumerate() {
        if n != 4 && rng.one_in(2) {
            *register = if rng.one_in(2) { DATA + 0x1000 + 16 * rng.below(256) } else { rng.below(64) };
        }
    }
    if in_32 {
        case.state.gpr.iter_mut().for_each(|register| *register &= 0xffff_ffff);
    }
}

/// Any bytes at all, with more prefixes than chance would give.
fn soup(rng: &mut Prng, in_32: bool) -> Vec<u8> {
    let nr_prefixes = if rng.one_in(8) { rng.below(16) } else { rng.below(4) };
    let mut bytes: Vec<u8> = (0..nr_prefixes).map(|_| prefix(rng, in_32)).collect();
    while bytes.len() < MAX_BYTES {
        bytes.push(rng.next() as u8);
    }
    bytes
}

fn prefix(rng: &mut Prng, in_32: bool) -> u8 {
    if !in_32 && rng.one_in(4) { 0x40 | rng.below(16) as u8 } else { rng.pick(&LEGACY) }
}

/// Prefixes, an opcode of any map or a VEX, EVEX or XOP prefix with any fields, ModRM and what may follow.
fn shaped(rng: &mut Prng, in_32: bool) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..rng.below(3)).map(|_| prefix(rng, in_32)).collect();
    let any = |rng: &mut Prng| rng.next() as u8;
    match rng.below(8) {
        0 => {}
        1 | 2 => bytes.push(0x0f),
        3 => bytes.extend([0x0f, rng.pick(&[0x38, 0x3a, 0x0f, 0x01, 0xc7, 0xae, 0x0d, 0x18, 0x1e, 0x1f])]),
        4 => bytes.extend([0xc5, any(rng)]),
        5 | 6 => {
            let map = if rng.one_in(8) { rng.below(32) } else { 1 + rng.below(3) };
            // The inverted register bits are mostly set.
            let high = if rng.one_in(3) { rng.next() as u8 & 0xe0 } else { 0xe0 };
            let mut last = any(rng);
            if rng.one_in(2) {
                last |= 0x78;
            }
            bytes.extend([0xc4, high | map as u8, last]);
        }
        _ => bytes.extend([rng.pick(&[0x8f, 0x62, 0xd6, 0xf1]), any(rng)]),
    }
    bytes.push(any(rng));
    // A register form, or an operand off a register.
    bytes.push(if rng.one_in(2) { any(rng) | 0xc0 } else { any(rng) & 0x3f });
    while bytes.len() < MAX_BYTES {
        bytes.push(any(rng));
    }
    bytes
}

/// An instruction with a bit, a byte or a prefix that it should not have.
fn mutated(rng: &mut Prng, case: &mut Case, codes: &[Code], memory: &[u8], in_32: bool) -> Option<Vec<u8>> {
    let code = rng.pick(codes);
    let made = if in_32 { single::generate32(rng, code, memory)? } else { single::generate(rng, code, memory)? };
    let item = made.items.iter().find(|item| item.instr.code() == code && item.target.is_none())?;
    let mut encoder = Encoder::new(made.bits());
    encoder.encode(&item.instr, CODE).ok()?;
    let mut bytes = encoder.take_buffer();
    case.state = made.state;
    for _ in 0..1 + rng.below(3) {
        let at = rng.below(bytes.len() as u64) as usize;
        match rng.below(5) {
            // The opcode and what is before it more than the operands.
            0 | 1 => bytes[at.min(rng.below(4) as usize)] ^= 1 << rng.below(8),
            2 => bytes[at] = rng.next() as u8,
            3 => bytes.insert(0, prefix(rng, in_32)),
            _ => bytes.insert(at, prefix(rng, in_32)),
        }
    }
    bytes.truncate(MAX_BYTES);
    Some(bytes)
}

/// Whether both sides can tell what comes of it.
fn is_comparable(instr: &Instruction, bytes: &[u8], in_32: bool) -> bool {
    if is_word_env(instr.code()) {
        return false;
    }
    // Whatever lies where it goes to is not compared here: blocks do that.
    let lands = instr.near_branch_target();
    if instr.flow_control() != FlowControl::Next && (CODE - 0x1000..MEMORY_END + 0x1000).contains(&lands) {
        return false;
    }
    let why = if in_32 { excluded32(instr.code()) } else { excluded(instr.code()) };
    // AMD's CPUs take the condition from F2 or F3 there.
    let repeats =
        instr.has_rep_prefix() || instr.has_repne_prefix() || bytes.iter().take(14).any(|b| matches!(b, 0xf2 | 0xf3));
    if matches!(instr.mnemonic(), M::Loope | M::Loopne) && repeats {
        return false;
    }
    if is_word_branch(instr) {
        return true;
    }
    match why {
        None => !instr.is_string_instruction() || !(instr.has_rep_prefix() || instr.has_repne_prefix()),
        // #UD in the engine; so it must be on the CPU, unless the policy hides what the CPU has.
        Some(Excluded::NotAnInstruction) => instr.code() == Code::INVALID && !is_hidden(bytes, in_32),
        Some(_) => false,
    }
}

/// Whether it may be one of those that the policy hides, in an encoding of which the CPU ignores more than the decoder
/// does: AVX-512, its mask instructions among VEX's, and XOP. And `vpermq`, of which AMD's CPUs ignore VEX.W; and `verw` and
/// its kin, whose operand they look at before they refuse LOCK.
fn is_hidden(bytes: &[u8], in_32: bool) -> bool {
    let is_prefix = |byte: &u8| LEGACY.contains(byte) || !in_32 && byte & 0xf0 == 0x40;
    let rest = bytes.get(bytes.iter().take_while(|byte| is_prefix(byte)).count()..).unwrap_or_default();
    let is_mask = |opcode: u8| matches!(opcode, 0x41..=0x4b | 0x90..=0x93 | 0x98 | 0x99 | 0x30..=0x33);
    match *rest {
        // What these do with needless prefixes is the affair of the hypervisor below.
        [0x62, ..] | [0x0f, 0x01, 0xc0..=0xdf, ..] => true,
        [0x0f, 0x00, ..] => bytes.iter().take_while(|byte| is_prefix(byte)).any(|&byte| byte == 0xf0),
        [0x8f, second, ..] => second & 0x1f >= 8,
        [0xc5, _, opcode, ..] => is_mask(opcode),
        [0xc4, map, _, opcode, ..] => is_mask(opcode) || map & 0x1f == 3 && opcode < 2,
        _ => false,
    }
}
