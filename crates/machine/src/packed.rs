//! The bytes of a frame, packed by LZ4: three quarters of an idle kernel's frames become a third of their size, or less.

use std::cell::RefCell;

use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into};

use crate::PAGE_SIZE_BYTES;

/// A frame that does not become smaller than this is not worth it. Kernels' code becomes a tenth smaller, and other domains may
/// hold the same.
const PACKED_MAX_BYTES: usize = PAGE_SIZE_BYTES * 15 / 16;

/// What is packed. Our own output: a guest chooses what is packed, never what is unpacked.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Packed(Box<[u8]>);

thread_local! {
    /// Where the packer notes what it has seen; who packs packs many.
    static TABLE: RefCell<CompressTable> = RefCell::new(CompressTable::small());
}

impl Packed {
    /// `None` if it is not worth it.
    pub fn pack(bytes: &[u8; PAGE_SIZE_BYTES]) -> Option<Self> {
        // Room for any output: the packer then need not fail in the midst of a frame.
        let mut out = [0; PAGE_SIZE_BYTES + PAGE_SIZE_BYTES / 8];
        let len = TABLE.with_borrow_mut(|table| compress_into_with_table(bytes, &mut out, table)).ok()?;
        (len <= PACKED_MAX_BYTES).then(|| Self(out[..len].into()))
    }

    pub fn unpack(&self) -> [u8; PAGE_SIZE_BYTES] {
        let mut bytes = [0; PAGE_SIZE_BYTES];
        let len = decompress_into(&self.0, &mut bytes);
        debug_assert_eq!(len.ok(), Some(PAGE_SIZE_BYTES));
        bytes
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation, reason = "a byte is cut out of a number")]

    use super::{PACKED_MAX_BYTES, Packed};
    use crate::PAGE_SIZE_BYTES;

    fn page(byte: impl FnMut(usize) -> u8) -> [u8; PAGE_SIZE_BYTES] {
        let mut numbers = 0..PAGE_SIZE_BYTES;
        let mut byte = byte;
        std::array::from_fn(|_| byte(numbers.next().unwrap_or(0)))
    }

    #[test]
    fn test_what_was_packed_comes_back() {
        let words = page(|at| if at % 8 < 5 { 0xff } else { (at / 64) as u8 });
        let one = page(|at| u8::from(at == PAGE_SIZE_BYTES - 1));
        for bytes in [words, one, [0; PAGE_SIZE_BYTES]] {
            let packed = Packed::pack(&bytes).unwrap();
            assert!(packed.0.len() < PAGE_SIZE_BYTES / 4);
            assert_eq!(packed.unpack(), bytes);
        }
    }

    #[test]
    fn test_what_hardly_becomes_smaller_stays() {
        let mut state = 1u64;
        let mut random = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        assert!(Packed::pack(&page(|_| random())).is_none());
        let half = Packed::pack(&page(|at| if at < PAGE_SIZE_BYTES / 2 { random() } else { 0 })).unwrap();
        assert!(half.0.len() <= PACKED_MAX_BYTES);
        let most = PACKED_MAX_BYTES + 1;
        assert!(Packed::pack(&page(|at| if at < most { random() } else { 0 })).is_none());
    }
}
