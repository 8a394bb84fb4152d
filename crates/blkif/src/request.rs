//! What a slot of the ring asks for, as far as it is a read or write. Source: xen/include/public/io/blkif.h.

/// `BLKIF_OP_*`, of which the others are Python's.
pub const OP_READ: u8 = 0;
pub const OP_WRITE: u8 = 1;
const OP_INDIRECT: u8 = 6;
const SEGMENTS_MAX: usize = 11;
const INDIRECT_PAGES: usize = 8;
/// struct blkif_request_segment: gref, first and last sector; 8 bytes.
const SEGMENT_BYTES: usize = 8;
const PAGE_BYTES: usize = 4096;
pub const SECTOR_BYTES: u64 = 512;
const SECTORS_PER_PAGE: u8 = 8;
const SEGMENTS_PER_PAGE: usize = PAGE_BYTES / SEGMENT_BYTES;
/// The longest of the layouts' slots.
pub const SLOT_BYTES_MAX: usize = 112;

/// How a front end's compiler lays the structures out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `x86_64-abi`
    Bits64,
    /// `x86_32-abi`
    Bits32,
}

impl Layout {
    /// The layout with such a `sizeof(union blkif_sring_entry)`.
    pub fn of_slot_bytes(slot_bytes: usize) -> Option<Self> {
        [Self::Bits64, Self::Bits32].into_iter().find(|layout| layout.slot_bytes() == slot_bytes)
    }

    /// Size of a slot.
    pub fn slot_bytes(self) -> usize {
        match self {
            Self::Bits64 => SLOT_BYTES_MAX,
            Self::Bits32 => 108,
        }
    }

    /// Where the 64-bit id is; the sector number follows it.
    fn id(self) -> usize {
        match self {
            Self::Bits64 => 8,
            Self::Bits32 => 4,
        }
    }

    /// A response: id, operation, status 0.
    pub fn okay(self, id: u64, operation: u8) -> ([u8; 16], usize) {
        let mut raw = [0u8; 16];
        raw[..8].copy_from_slice(&id.to_le_bytes());
        raw[8] = operation;
        (raw, if self == Self::Bits64 { 16 } else { 12 })
    }
}

/// Where the segments of a request are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segments {
    /// In the slot.
    Direct(Vec<u8>),
    /// So many, in pages of these grants.
    Indirect(Vec<u32>, usize),
}

/// A read or write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub is_write: bool,
    pub id: u64,
    pub sector: u64,
    pub segments: Segments,
}

fn u16_at(raw: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(raw.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(raw: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(raw.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(raw: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(raw.get(at..at + 8)?.try_into().ok()?))
}

/// Reads a slot; None for all that Python should see.
pub fn parse(raw: &[u8], layout: Layout, nr_indirect_max: usize) -> Option<Request> {
    let at = layout.id();
    let (id, sector) = (u64_at(raw, at)?, u64_at(raw, at + 8)?);
    let after = at + 16;
    let (operation, segments) = match *raw.first()? {
        OP_INDIRECT => {
            let count = usize::from(u16_at(raw, 2)?);
            let nr_pages = count.div_ceil(SEGMENTS_PER_PAGE);
            if count == 0 || count > nr_indirect_max || nr_pages > INDIRECT_PAGES {
                return None;
            }
            // The handle, 16 bits, and as much of padding come first.
            let grefs = (0..nr_pages).map(|page| u32_at(raw, after + 4 + 4 * page)).collect::<Option<_>>()?;
            (*raw.get(1)?, Segments::Indirect(grefs, count))
        }
        operation => {
            let count = usize::from(*raw.get(1)?);
            if count == 0 || count > SEGMENTS_MAX {
                return None;
            }
            (operation, Segments::Direct(raw.get(after..after + count * SEGMENT_BYTES)?.to_vec()))
        }
    };
    let is_write = match operation {
        OP_READ => false,
        OP_WRITE => true,
        _ => return None,
    };
    Some(Request { is_write, id, sector, segments })
}

/// Reads segments: for each the grant, the offset in its page and the bytes. None if one makes no sense.
pub fn segments(table: &[u8]) -> impl Iterator<Item = Option<(u32, u64, usize)>> {
    table.chunks_exact(SEGMENT_BYTES).map(|raw| {
        let (gref, first, last) = (u32_at(raw, 0)?, *raw.get(4)?, *raw.get(5)?);
        if first > last || last >= SECTORS_PER_PAGE {
            return None;
        }
        let nr_bytes = (u64::from(last - first) + 1) * SECTOR_BYTES;
        Some((gref, u64::from(first) * SECTOR_BYTES, usize::try_from(nr_bytes).ok()?))
    })
}

/// Bytes of so many segments in their first page, and what is left of them for the next.
pub fn split_table(count: usize) -> (usize, usize) {
    let here = count.min(SEGMENTS_PER_PAGE);
    (here * SEGMENT_BYTES, count - here)
}
