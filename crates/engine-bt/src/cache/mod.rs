//! The code cache of one domain: translated blocks, found by (machine frame, offset, mode).
//!
//! Near jumps stay within a page and so within one frame's blocks: dropping all blocks of a frame needs no unlinking,
//! once no vCPU is inside one. Jump caches may go on knowing them: a dropped block's far entry becomes a jump to a stub
//! that has the address looked up anew. Space is reclaimed by region (`region.rs`): when the cache is full, the region that
//! was filled first is emptied, with all blocks of every frame that has one in it (`Cache::begin_eviction`).

mod counters;
mod evict;
mod memory_unsafe;
mod perf_map;
mod region;

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use ring3_engine::Error;
use ring3_machine::Mfn;

pub use counters::Counters;
pub use memory_unsafe::CodeMemory;
pub use perf_map::open as open_perf_map;

use region::{MAX_REGION_BYTES, Region, index_of, region_of};

use crate::emit::asm::Asm;
use crate::emit::stubs::{self, Stubs};
use crate::translate::{self, FaultPoint, Neighbours, Refusal, Request, Translated, Variant};

/// Room for translated code of one domain, in bytes, unless somebody says otherwise.
pub const DEFAULT_BYTES: usize = 128 << 20;
/// The least that is of use.
const MIN_BYTES: usize = 2 << 20;
/// Regions that it is divided into.
const NR_REGIONS: usize = 32;
/// vCPUs of a domain.
const MAX_VCPUS: usize = 128;
/// Single-instruction blocks that each vCPU keeps.
pub const STEP_SLOTS: usize = 8;
/// Room for one of them.
const STEP_SLOT_BYTES: usize = 512;
/// Room for all of a vCPU's, and for one that is larger.
const STEP_BYTES: usize = 8192;
/// Room for every vCPU's.
const STEP_AREA_BYTES: usize = STEP_BYTES * MAX_VCPUS;

/// Where the first region starts: behind the stubs.
const FIRST_REGION: usize = 8192;

/// Where a single-instruction block goes: a numbered slot, or the place for one of any size.
#[derive(Clone, Copy, Debug)]
pub struct StepPlace {
    pub vcpu: usize,
    pub slot: Option<usize>,
}

/// Identifies a block: ungrouped << 63 | frame << 15 | offset << 3 | variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(u64);

impl Key {
    pub fn new(mfn: Mfn, offset: usize, variant: Variant) -> Self {
        Self(mfn.0 << 15 | (offset as u64 & 0xfff) << 3 | variant.bits())
    }

    /// Of the block at the same place that checks each access by itself.
    pub fn ungrouped(self) -> Self {
        Self(self.0 | 1 << 63)
    }
}

/// Multiplicative hash; keys are not chosen by anybody who gains from collisions beyond his own domain.
#[derive(Debug, Default)]
pub struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        let mixed = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 29;
    }
}

type KeyMap<K, V> = HashMap<K, V, BuildHasherDefault<KeyHasher>>;

/// A translated block.
#[derive(Debug)]
pub struct Block {
    mfn: Mfn,
    key: Key,
    /// Second frame, for an instruction that crosses pages.
    second: Option<Mfn>,
    origin: u64,
    far_entry: u64,
    near_entry: u64,
    live_in: u32,
    faults: Box<[FaultPoint]>,
}

/// What to translate, and where it lies.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    pub mfn: Mfn,
    pub second: Option<Mfn>,
    pub offset: usize,
    /// Its linear address now; for profiles only.
    pub rip: u64,
    pub variant: Variant,
    /// Let accesses share a check.
    pub grouped: bool,
    /// 4096 bytes, or 8192 with the second page.
    pub code: &'a [u8],
}

/// Why a block was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    NeedsSecondPage,
    /// Room must be made first.
    Full,
}

/// See the module's text.
#[derive(Debug)]
pub struct Cache {
    memory: CodeMemory,
    stubs: Stubs,
    regions: Vec<Region>,
    /// The one that is being filled.
    current: usize,
    by_key: KeyMap<Key, u32>,
    /// The numbers of each frame's blocks.
    by_frame: KeyMap<u64, Vec<u32>>,
    /// Counts evictions; link numbers of another generation are void.
    generation: u64,
    draining: bool,
    buffer: Vec<u8>,
    counters: Counters,
}

struct PageBlocks<'a> {
    cache: &'a Cache,
    mfn: Mfn,
    variant: Variant,
}

impl Neighbours for PageBlocks<'_> {
    fn block_at(&self, offset: usize) -> Option<(u64, u32)> {
        let block = self.cache.find(Key::new(self.mfn, offset, self.variant))?;
        // A block that goes on to a second page depends on that page's mapping: only far exits may enter it.
        if block.second.is_some() { None } else { Some((block.near_entry, block.live_in)) }
    }
}

impl Cache {
    /// # Errors
    /// [`Error::Host`].
    pub fn new(bytes: usize, slow_access: u64, avx: bool) -> Result<Self, Error> {
        let region_bytes = (bytes.max(MIN_BYTES) / NR_REGIONS).min(MAX_REGION_BYTES) / 64 * 64;
        let memory =
            CodeMemory::new((FIRST_REGION + NR_REGIONS * region_bytes + STEP_AREA_BYTES).next_multiple_of(4096))?;
        let mut asm = Asm::new(memory.base(), Vec::new());
        let stubs = stubs::emit(&mut asm, slow_access, avx);
        debug_assert!(asm.len() <= FIRST_REGION);
        memory.put(0, asm.bytes());
        let bounds = |index| FIRST_REGION + index * region_bytes;
        let regions = (0..NR_REGIONS).map(|n| Region::new(n, bounds(n), bounds(n + 1))).collect();
        Ok(Self {
            memory,
            stubs,
            regions,
            current: 0,
            by_key: KeyMap::default(),
            by_frame: KeyMap::default(),
            generation: 0,
            draining: false,
            buffer: Vec::new(),
            counters: Counters::default(),
        })
    }

    pub fn stubs(&self) -> Stubs {
        self.stubs
    }

    pub fn generation(&self) -> u64 {
        self.generation
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Whether room is being made: nothing may be translated.
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// First and one-past-last host address of executable code.
    pub fn range(&self) -> (u64, u64) {
        (self.memory.base(), self.memory.base() + self.memory.len() as u64)
    }

    fn block(&self, number: u32) -> Option<&Block> {
        self.regions.get(region_of(number))?.blocks.get(index_of(number))
    }

    fn find(&self, key: Key) -> Option<&Block> {
        self.block(*self.by_key.get(&key)?)
    }

    /// Far entry of the block for `key`; `second` must agree for a block that crosses pages.
    pub fn lookup(&self, key: Key, second: impl FnOnce() -> Option<Mfn>) -> Option<u64> {
        let block = self.find(key)?;
        if block.second.is_some() && block.second != second() {
            return None;
        }
        Some(block.far_entry)
    }

    /// Whether the block for `key` crosses into a second page.
    pub fn crosses(&self, key: Key) -> bool {
        self.find(key).is_some_and(|b| b.second.is_some())
    }

    /// Translates and enters a block. Returns its far entry.
    ///
    /// # Errors
    /// [`Miss`].
    pub fn add(&mut self, source: &Source<'_>) -> Result<u64, Miss> {
        let Some(region) = self.regions.get(self.current).filter(|region| !region.is_full()) else {
            return Err(Miss::Full);
        };
        let (at, end) = (region.next, region.end);
        let (number, first_link) = (region.next_block(), region.next_link());
        let origin = self.memory.base() + at as u64;
        let buffer = std::mem::take(&mut self.buffer);
        let request = Request {
            code: source.code,
            offset: source.offset,
            variant: source.variant,
            single: false,
            grouped: source.grouped,
            origin,
            stubs: self.stubs,
            first_link,
        };
        let neighbours = PageBlocks { cache: self, mfn: source.mfn, variant: source.variant };
        let translated = match translate::translate(&request, &neighbours, buffer) {
            Ok(translated) => translated,
            Err(Refusal::NeedsSecondPage) => return Err(Miss::NeedsSecondPage),
        };
        self.check(&translated, origin, source);
        let len = translated.code.len();
        if len > end - at {
            return Err(Miss::Full);
        }
        self.memory.put(at, &translated.code);
        perf_map::add(origin, len, source.rip, source.variant.mode);
        let key = Key::new(source.mfn, source.offset, source.variant);
        let key = if source.grouped { key } else { key.ungrouped() };
        let block = Block {
            mfn: source.mfn,
            key,
            second: source.second,
            origin,
            far_entry: translated.far_entry,
            near_entry: translated.near_entry,
            live_in: translated.live_in,
            faults: translated.faults.into_boxed_slice(),
        };
        if let Some(region) = self.regions.get_mut(self.current) {
            region.next = (at + len.next_multiple_of(16)).min(end);
            region.links.extend(translated.links.iter().map(|link| link.site));
            region.blocks.push(block);
        }
        self.by_key.insert(key, number);
        self.by_frame.entry(source.mfn.0).or_default().push(number);
        if let Some(second) = source.second {
            self.by_frame.entry(second.0).or_default().push(number);
        }
        self.counters.translated += 1;
        self.buffer = translated.code;
        self.buffer.clear();
        Ok(translated.far_entry)
    }

    /// Translates one instruction for stepping. Returns its far entry, or nothing if the place is too small.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn add_step(&self, place: StepPlace, source: &Source<'_>) -> Result<Option<u64>, Refusal> {
        let area = self.memory.len() - STEP_AREA_BYTES + (place.vcpu % MAX_VCPUS) * STEP_BYTES;
        let (offset, room) = match place.slot {
            Some(slot) => (area + STEP_SLOT_BYTES * (slot % STEP_SLOTS), STEP_SLOT_BYTES),
            None => (area + STEP_SLOT_BYTES * STEP_SLOTS, STEP_BYTES - STEP_SLOT_BYTES * STEP_SLOTS),
        };
        let request = Request {
            code: source.code,
            offset: source.offset,
            variant: source.variant,
            single: true,
            grouped: false,
            origin: self.memory.base() + offset as u64,
            stubs: self.stubs,
            first_link: 0,
        };
        let neighbours = PageBlocks { cache: self, mfn: Mfn(u64::MAX >> 15), variant: source.variant };
        let translated = translate::translate(&request, &neighbours, Vec::new())?;
        self.check(&translated, self.memory.base() + offset as u64, source);
        if translated.code.len() > room || !self.memory.put(offset, &translated.code) {
            return Ok(None);
        }
        Ok(Some(translated.far_entry))
    }

    /// Has a block verified, in builds that do so.
    ///
    /// # Panics
    /// If the block does what no block may: that is a bug of the translator.
    #[cfg(any(debug_assertions, feature = "verify"))]
    fn check(&self, translated: &Translated, origin: u64, source: &Source<'_>) {
        use crate::verify::{Entries, Surroundings, verify};
        let of_frame = self.by_frame.get(&source.mfn.0).map(Vec::as_slice).unwrap_or_default();
        let is_entry = |address: u64| of_frame.iter().filter_map(|&n| self.block(n)).any(|b| b.near_entry == address);
        let mode = usize::from(source.variant.mode == ring3_engine::GuestMode::User);
        let around = Surroundings { stubs: &self.stubs, mode, is_entry: &is_entry };
        let entries = Entries { far: translated.far_entry, near: translated.near_entry };
        if let Err(violation) = verify(&translated.code, origin, entries, &around) {
            panic!("a block must not have {}", violation.describe(&translated.code, origin));
        }
    }

    #[cfg(not(any(debug_assertions, feature = "verify")))]
    fn check(&self, _translated: &Translated, _origin: u64, _source: &Source<'_>) {}

    /// Points link `number` at the block for `key`, if both exist.
    pub fn resolve(&self, number: u32, key: Key) {
        let link = self.regions.get(region_of(number)).and_then(|region| region.links.get(index_of(number)));
        let (Some(&site), Some(block)) = (link, self.find(key)) else { return };
        if block.second.is_none() {
            self.memory.patch32(site, block.near_entry.wrapping_sub(site + 4) as u32);
        }
    }

    /// The page offset of the guest instruction that the host code at `pc` belongs to, and whether the guest's flags were
    /// in the host's there.
    pub fn guest_offset(&self, pc: u64) -> Option<(usize, bool)> {
        let offset = usize::try_from(pc.checked_sub(self.memory.base())?).ok()?;
        let region = self.regions.iter().find(|region| (region.start..region.next).contains(&offset))?;
        let after = region.blocks.partition_point(|b| b.origin <= pc);
        let block = region.blocks.get(after.checked_sub(1)?)?;
        let at = u32::try_from(pc - block.origin).ok()?;
        let point = block.faults.get(block.faults.partition_point(|f| f.end <= at))?;
        Some((usize::from(point.offset), point.native_flags))
    }

    /// Forgets every block made from a frame, which was written. The caller then makes vCPUs leave them.
    pub fn drop_frame(&mut self, mfn: Mfn) -> bool {
        let nr_dropped = self.forget_frame(mfn.0);
        self.counters.dropped_frames += u64::from(nr_dropped != 0);
        self.counters.dropped_blocks += nr_dropped as u64;
        nr_dropped != 0
    }

    /// Forgets every block made from a frame: whoever comes to one of them by a jump cache is led to a lookup. Returns how
    /// many that were.
    fn forget_frame(&mut self, frame: u64) -> usize {
        let numbers = self.by_frame.remove(&frame).unwrap_or_default();
        for &number in &numbers {
            let Some(block) = self.regions.get(region_of(number)).and_then(|r| r.blocks.get(index_of(number))) else {
                continue;
            };
            // Of a block that crosses pages there may be another by now, made for another second page.
            if self.by_key.get(&block.key) == Some(&number) {
                self.by_key.remove(&block.key);
            }
            self.memory.patch_jump(block.far_entry, self.stubs.jump);
        }
        numbers.len()
    }
}
