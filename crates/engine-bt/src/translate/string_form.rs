//! The form of a string instruction in a word, so that it need not be decoded at each execution.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use ring3_engine::SegmentName;

/// What it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StringOp {
    Movs,
    Stos,
    Lods,
    Scas,
    Cmps,
}

/// How often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    Once,
    /// REP, or REPE where ZF counts.
    WhileEqual,
    WhileNotEqual,
}

/// All there is to know of a string instruction but its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StringForm {
    pub op: StringOp,
    /// Element size in bytes.
    pub size: u8,
    pub address_bits: u8,
    pub repeat: Repeat,
    /// Of the source.
    pub segment: SegmentName,
}

const OPS: [StringOp; 5] = [StringOp::Movs, StringOp::Stos, StringOp::Lods, StringOp::Scas, StringOp::Cmps];
const REPEATS: [Repeat; 3] = [Repeat::Once, Repeat::WhileEqual, Repeat::WhileNotEqual];

/// The segment register that iced names so; DS if it is none.
pub fn segment_name(register: Register) -> SegmentName {
    let number = if register.is_segment_register() { register.number() } else { SegmentName::Ds as usize };
    SegmentName::ALL.get(number).copied().unwrap_or(SegmentName::Ds)
}

impl StringForm {
    /// The form of a decoded instruction; none for `ins`, `outs` and what is no string instruction.
    pub fn of(instr: &Instruction) -> Option<Self> {
        use Mnemonic as M;
        let op = match instr.mnemonic() {
            M::Movsb | M::Movsw | M::Movsd | M::Movsq => StringOp::Movs,
            M::Stosb | M::Stosw | M::Stosd | M::Stosq => StringOp::Stos,
            M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq => StringOp::Lods,
            M::Scasb | M::Scasw | M::Scasd | M::Scasq => StringOp::Scas,
            M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq => StringOp::Cmps,
            _ => return None,
        };
        if !instr.is_string_instruction() {
            return None;
        }
        let kinds = [instr.op0_kind(), instr.op1_kind()];
        let has = |wanted: [OpKind; 3]| kinds.iter().any(|kind| wanted.contains(kind));
        let address_bits = if has([OpKind::MemorySegESI, OpKind::MemoryESEDI, OpKind::MemorySegEDI]) {
            32
        } else if has([OpKind::MemorySegSI, OpKind::MemoryESDI, OpKind::MemorySegDI]) {
            16
        } else {
            64
        };
        let repeat = if instr.has_repne_prefix() {
            Repeat::WhileNotEqual
        } else if instr.has_rep_prefix() {
            Repeat::WhileEqual
        } else {
            Repeat::Once
        };
        let segment = segment_name(instr.memory_segment());
        Some(Self { op, size: instr.memory_size().size() as u8, address_bits, repeat, segment })
    }

    /// As 13 bits.
    pub fn pack(self) -> u32 {
        let size = self.size.trailing_zeros() & 3;
        let address = (u32::from(self.address_bits) / 16) & 7;
        self.op as u32 | size << 3 | address << 5 | (self.repeat as u32) << 8 | (self.segment as u32) << 10
    }

    /// The reverse of [`StringForm::pack`].
    pub fn unpack(word: u32) -> Option<Self> {
        Some(Self {
            op: *OPS.get((word & 7) as usize)?,
            size: 1 << (word >> 3 & 3),
            address_bits: (word >> 5 & 7) as u8 * 16,
            repeat: *REPEATS.get((word >> 8 & 3) as usize)?,
            segment: *SegmentName::ALL.get((word >> 10 & 7) as usize)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::*;

    #[test]
    fn test_forms_survive_packing() {
        let codes: [&[u8]; 6] = [
            &[0xf3, 0x48, 0xa5],
            &[0xaa],
            &[0x67, 0xf2, 0xae],
            &[0x64, 0x66, 0xa7],
            &[0xf3, 0x65, 0x48, 0xad],
            &[0xf3, 0xa4],
        ];
        for code in codes {
            let form = StringForm::of(&Decoder::new(64, code, DecoderOptions::NONE).decode()).unwrap();
            assert_eq!(StringForm::unpack(form.pack()), Some(form), "{code:x?}");
        }
        let movsd_sse = Decoder::new(64, &[0xf2, 0x0f, 0x10, 0xc1], DecoderOptions::NONE).decode();
        assert_eq!(StringForm::of(&movsd_sse), None);
    }
}
