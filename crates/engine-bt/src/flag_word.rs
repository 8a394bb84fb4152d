//! What `State::flags` holds where it need not be what LAHF and SETO gave: how the arithmetic flags are to be had.
//!
//! Flags that nothing reads are not computed, but a fault shows them. So translated code leaves a word of 32 bits that names an
//! operation and where its operands are by now: in registers, or in `State::operands` if a register was needed for something
//! else. Whoever comes back from translated code has the flags worked out at once, so only translated code sees such words.
//!
//! Bits: 0 to 3 the operation, 4 and 5 the operands' size, 6 to 10 the first operand, 11 set (never in flags), 12 whether the
//! second operand is a place rather than a constant, 16 to 31 that place or that constant.

/// Set in a word that says how to have the flags, clear in flags: LAHF's bit 3.
pub const LAZY: u16 = 1 << 11;
/// Set in flags: LAHF's bit 1.
const FIXED: u16 = 1 << 9;

/// Places: registers by number, then AH, CH, DH and BH, then `State::operands`.
pub type Place = u8;
pub const HIGH_BYTES: Place = 16;
pub const SLOTS: Place = 20;
pub const NR_SLOTS: usize = 2;

/// What the flags are those of. `a` and `b` are the operands at the two places, `r` is a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `a - b`.
    Sub,
    /// `x - b` whose result was `a`.
    SubTo,
    /// `a - x` whose result was `b`.
    SubFrom,
    /// `x + b` whose result was `a`.
    AddTo,
    /// `a & b`.
    And,
    /// A logic operation whose result was `a`.
    Logic,
    /// `-x` whose result was `a`.
    Neg,
    /// Shifts of `a` by the constant `b`.
    Shl,
    Shr,
    Sar,
}

const OPERATIONS: [Operation; 10] = [
    Operation::Sub,
    Operation::SubTo,
    Operation::SubFrom,
    Operation::AddTo,
    Operation::And,
    Operation::Logic,
    Operation::Neg,
    Operation::Shl,
    Operation::Shr,
    Operation::Sar,
];

/// The second operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Second {
    Constant(i16),
    At(Place),
}

/// The word for an operation on operands of `size` bytes.
pub fn encode(operation: Operation, size: usize, first: Place, second: Second) -> u32 {
    let (is_place, value) = match second {
        Second::Constant(value) => (0, value as u16),
        Second::At(place) => (1, u16::from(place)),
    };
    operation as u32
        | (size.trailing_zeros() & 3) << 4
        | u32::from(first & 0x1f) << 6
        | u32::from(LAZY)
        | is_place << 12
        | u32::from(value) << 16
}

/// The flags that a lazy word stands for, in the form of `State::flags`. `value` says what is at a place.
pub fn evaluate(word: u32, value: impl Fn(Place) -> u64) -> u16 {
    let bits = 8u32 << (word >> 4 & 3);
    let mask = u64::MAX >> (64 - bits);
    let upper = (word >> 16) as u16;
    let second = if word >> 12 & 1 == 0 { i64::from(upper as i16) as u64 } else { value((upper & 0x1f) as Place) };
    let (a, b) = (value((word >> 6 & 0x1f) as Place) & mask, second & mask);
    let Some(operation) = OPERATIONS.get((word & 15) as usize) else { return FIXED };
    match operation {
        Operation::Sub => subtraction(a, b, bits),
        Operation::SubTo => subtraction(a.wrapping_add(b) & mask, b, bits),
        Operation::SubFrom => subtraction(a, a.wrapping_sub(b) & mask, bits),
        Operation::AddTo => addition(a.wrapping_sub(b) & mask, b, bits),
        Operation::And => result(a & b, bits),
        Operation::Logic => result(a, bits),
        Operation::Neg => subtraction(0, a.wrapping_neg() & mask, bits),
        Operation::Shl | Operation::Shr | Operation::Sar => shift(*operation, a, b as u32, bits),
    }
}

/// Flags in the form of `State::flags`.
pub const CF: u16 = 1 << 8;
pub const PF: u16 = 1 << 10;
pub const AF: u16 = 1 << 12;
pub const ZF: u16 = 1 << 14;
pub const SF: u16 = 1 << 15;
pub const OF: u16 = 1;

fn when(is_set: bool, flag: u16) -> u16 {
    if is_set { flag } else { 0 }
}

fn sign(value: u64, bits: u32) -> bool {
    value >> (bits - 1) & 1 != 0
}

/// The flags that a result says.
pub fn result(value: u64, bits: u32) -> u16 {
    FIXED | when((value as u8).count_ones().is_multiple_of(2), PF) | when(value == 0, ZF) | when(sign(value, bits), SF)
}

/// Flags of the subtraction of numbers of `bits` bits.
pub fn subtraction(left: u64, right: u64, bits: u32) -> u16 {
    let mask = u64::MAX >> (64 - bits);
    let (left, right) = (left & mask, right & mask);
    let difference = left.wrapping_sub(right) & mask;
    result(difference, bits)
        | when(left < right, CF)
        | when((left ^ right ^ difference) >> 4 & 1 != 0, AF)
        | when(sign((left ^ right) & (left ^ difference), bits), OF)
}

fn addition(left: u64, right: u64, bits: u32) -> u16 {
    let sum = left.wrapping_add(right) & u64::MAX >> (64 - bits);
    result(sum, bits)
        | when(sum < left, CF)
        | when((left ^ right ^ sum) >> 4 & 1 != 0, AF)
        | when(sign((left ^ sum) & (right ^ sum), bits), OF)
}

/// Flags of a shift by 1 to `bits`.
fn shift(operation: Operation, value: u64, count: u32, bits: u32) -> u16 {
    let mask = u64::MAX >> (64 - bits);
    let signed = (value << (64 - bits)) as i64 >> (64 - bits);
    let wide = |by: u32| signed >> by.min(63);
    let (shifted, carry) = match operation {
        Operation::Shl => (value.checked_shl(count).unwrap_or(0), value >> (bits.saturating_sub(count)).min(63) & 1),
        Operation::Shr => (value.checked_shr(count).unwrap_or(0), value >> count.saturating_sub(1).min(63) & 1),
        _ => (wide(count) as u64, wide(count.saturating_sub(1)) as u64 & 1),
    };
    let overflow = match operation {
        Operation::Shl => sign(shifted & mask, bits) != (carry != 0),
        Operation::Shr => sign(value, bits),
        _ => false,
    };
    result(shifted & mask, bits) | when(carry != 0, CF) | when(overflow, OF)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(operation: Operation, size: usize, a: u64, second: Second) -> u16 {
        let word = encode(operation, size, 3, second);
        assert_ne!(word as u16 & LAZY, 0);
        evaluate(word, |place| if place == 3 { a } else { 0x80 })
    }

    #[test]
    fn test_subtraction() {
        assert_eq!(subtraction(5, 5, 8), 0x4600, "ZF PF");
        assert_eq!(subtraction(0, 1, 32), 0x9700, "CF PF AF SF");
        assert_eq!(subtraction(0x80, 1, 8), 0x1201, "AF OF");
    }

    #[test]
    fn test_operands_come_back_from_results() {
        let size = 4;
        for (a, b) in [(1u64, 2u64), (0x8000_0000, 1), (0xffff_ffff, 1), (0, 0), (0x7fff_ffff, 0xffff)] {
            let difference = a.wrapping_sub(b) & 0xffff_ffff;
            let sum = (a + b) & 0xffff_ffff;
            let at = |place| [a, b, difference, sum][usize::from(place)];
            let of = |operation, first, second| evaluate(encode(operation, size, first, Second::At(second)), at);
            assert_eq!(of(Operation::SubTo, 2, 1), subtraction(a, b, 32));
            assert_eq!(of(Operation::SubFrom, 0, 2), subtraction(a, b, 32));
            assert_eq!(of(Operation::AddTo, 3, 1), addition(a, b, 32));
        }
    }

    #[test]
    fn test_sizes_and_constants() {
        assert_eq!(flags(Operation::Sub, 1, 0x1ff, Second::Constant(-1)), 0x4600);
        assert_eq!(flags(Operation::Sub, 8, u64::MAX, Second::Constant(-1)), 0x4600);
        assert_eq!(flags(Operation::And, 2, 0xff80, Second::At(9)), 0x0200);
        assert_eq!(flags(Operation::Logic, 4, 1 << 32, Second::Constant(0)), 0x4600);
        assert_eq!(flags(Operation::Neg, 1, 0xff, Second::Constant(0)), 0x9700);
        assert_eq!(flags(Operation::Shl, 4, 0x8000_0001, Second::Constant(1)), 0x0301);
        assert_eq!(flags(Operation::Shr, 8, 3, Second::Constant(1)), 0x0300);
        assert_eq!(flags(Operation::Sar, 2, 0x8000, Second::Constant(15)), 0x8600);
    }
}
