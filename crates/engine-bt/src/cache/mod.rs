//! The code cache of one domain: translated blocks, found by (machine frame, offset, mode).
//!
//! Near jumps stay within a page and so within one frame's blocks. Jump caches may go on knowing a block that was dropped:
//! its far entry becomes a jump to a stub that has the address looked up anew. `frame.rs` drops and revives blocks; space is
//! reclaimed by region (`region.rs`): when the cache is full, the one that was filled first is emptied (`evict.rs`).

mod archive;
mod archived;
mod block;
mod counters;
mod evict;
mod frame;
mod lists;
mod memory_unsafe;
mod perf_map;
mod region;
mod trace;

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use ring3_engine::{Error, Features, GuestMode};
use ring3_machine::{Mfn, PAGE_SIZE_BYTES};

pub use archive::{Addition, Outline, Unpacked};
pub use block::Block;
pub use counters::Counters;
pub use memory_unsafe::CodeMemory;
pub use perf_map::open as open_perf_map;

use frame::{BlockState, Frame};
use lists::{Incoming, Part};
use region::{Link, MAX_REGION_BYTES, Region, index_of, region_of};

use crate::emit::asm::Asm;
use crate::emit::stubs::{self, Stubs};
use crate::state::FlagSource;
use crate::translate::{self, Demand, Entries, LineHashes, Lines, Neighbours, Refusal, Request, Variant, chosen_lines};

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

/// Bits below the offset in a key: the variant's.
const OFFSET_SHIFT: u32 = 12;
/// Set in a key where each access is checked by itself.
const UNGROUPED: u64 = 1 << 63;
/// Bits below the frame.
const FRAME_SHIFT: u32 = OFFSET_SHIFT + 12;

/// Identifies a block: ungrouped << 63 | frame << 24 | offset << 12 | variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(u64);

impl Key {
    pub fn new(mfn: Mfn, offset: usize, variant: Variant) -> Self {
        Self(mfn.0 << FRAME_SHIFT | (offset as u64 & 0xfff) << OFFSET_SHIFT | variant.bits())
    }

    /// Of the block at the same place that checks each access by itself.
    pub fn ungrouped(self) -> Self {
        Self(self.0 | UNGROUPED)
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
    /// See [`Request::path`].
    pub path: &'a [u16],
    /// 4096 bytes, or 8192 with the second page.
    pub code: &'a [u8],
}

impl Source<'_> {
    fn key(&self) -> Key {
        let key = Key::new(self.mfn, self.offset, self.variant);
        if self.grouped { key } else { key.ungrouped() }
    }
}

/// Why a block was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    NeedsSecondPage,
    /// Room must be made first.
    Full,
    /// See [`Refusal::NoTrace`].
    NoTrace,
}

/// See the module's text.
#[derive(Debug)]
pub struct Cache {
    memory: Arc<CodeMemory>,
    stubs: Stubs,
    regions: Vec<Region>,
    /// The one that is being filled.
    current: usize,
    by_key: KeyMap<Key, u32>,
    by_frame: KeyMap<u64, Frame>,
    /// The first archived block for a place: see `archived`.
    archived: KeyMap<Key, u32>,
    /// Counts evictions; link numbers of another generation are void.
    generation: u64,
    draining: bool,
    buffer: Vec<u8>,
    counters: Counters,
    /// What the domain's policy hides of the host's instructions.
    pub hidden: Features,
    /// Whether blocks are kept for an archive.
    pub has_archive: bool,
    /// What was put back, as long as the cache is not emptied, and how many blocks that was.
    archive: Box<dyn archive::Bytes>,
    nr_archived: u64,
    /// Regions that are in the archive's file, and those of them that are only there: see `archive`.
    nr_filed: usize,
    nr_away: usize,
}

struct PageBlocks<'a> {
    cache: &'a Cache,
    mfn: Mfn,
    variant: Variant,
}

impl Neighbours for PageBlocks<'_> {
    fn block_at(&self, offset: usize) -> Option<(Demand, Lines)> {
        let block = self.cache.find(Key::new(self.mfn, offset, self.variant))?;
        // A block that goes on to a second page depends on that page's mapping: only far exits may enter it.
        if block.second.is_some() { None } else { Some((block.demand, block.lines)) }
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
            memory: Arc::new(memory),
            stubs,
            regions,
            current: 0,
            by_key: KeyMap::default(),
            by_frame: KeyMap::default(),
            generation: 0,
            draining: false,
            buffer: Vec::new(),
            counters: Counters::default(),
            archived: KeyMap::default(),
            hidden: Features::NONE,
            has_archive: false,
            archive: Box::new([]),
            nr_archived: 0,
            nr_filed: 0,
            nr_away: 0,
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

    /// Revives or translates a block, and enters it. Returns its far entry. Its frames are marked as code.
    ///
    /// # Errors
    /// [`Miss`].
    pub fn add(&mut self, source: &Source<'_>) -> Result<u64, Miss> {
        let key = source.key();
        let mut is_revived = false;
        for (mfn, page) in
            [Some(source.mfn), source.second].into_iter().flatten().zip(source.code.chunks(PAGE_SIZE_BYTES))
        {
            if self.is_stale(mfn) {
                self.revive(mfn, page);
                is_revived = true;
            }
        }
        if is_revived && let Some(host) = self.lookup(key, || None) {
            return Ok(host);
        }
        if let Some(host) = self.wake_archived(source) {
            return Ok(host);
        }
        self.translate(source).map(|(_, far_entry)| far_entry)
    }

    /// Translates a block, and enters it in the place of what there was. Returns its number and its far entry.
    ///
    /// # Errors
    /// [`Miss`].
    fn translate(&mut self, source: &Source<'_>) -> Result<(u32, u64), Miss> {
        let key = source.key();
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
            hidden: self.hidden,
            single: false,
            grouped: source.grouped,
            path: source.path,
            origin,
            stubs: self.stubs,
            first_link,
        };
        let neighbours = PageBlocks { cache: self, mfn: source.mfn, variant: source.variant };
        let translated = match translate::translate(&request, &neighbours, buffer) {
            Ok(translated) => translated,
            Err(Refusal::NeedsSecondPage) => return Err(Miss::NeedsSecondPage),
            Err(Refusal::NoTrace) => return Err(Miss::NoTrace),
        };
        self.check(&translated.code, origin, translated.entries, source);
        let len = translated.code.len();
        if len > end - at {
            return Err(Miss::Full);
        }
        self.memory.put(at, &translated.code);
        perf_map::add(origin, len, source.rip, source.variant.mode);
        let sum = LineHashes::new(source.code, translated.lines).sum(translated.lines);
        let entry_word = translated.code.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        // A kernel's blocks are kept between runs. Programs come and go, and run directly if they take long.
        let lasts = self.has_archive && source.second.is_none() && source.variant.mode == GuestMode::Kernel;
        let Some(region) = self.regions.get_mut(self.current) else { return Err(Miss::Full) };
        let recipe = chosen_lines(source.code, translated.lines).flatten().copied();
        let links = translated.links.iter().map(|link| Link::new(link, origin, &translated.code));
        region.next = (at + len.next_multiple_of(16)).min(end);
        region.blocks.push(Block {
            mfn: source.mfn,
            key,
            second: source.second,
            rip: source.rip,
            len: len as u32,
            origin,
            far_entry: translated.entries.far,
            near_entry: translated.entries.near,
            native_entry: translated.entries.native,
            demand: translated.demand,
            lines: translated.lines,
            sum,
            entry_word,
            state: BlockState::Live,
            misses: 0,
            follows: if source.path.is_empty() { 0 } else { trace::MAX_FOLLOWS },
            incoming: Incoming::NONE,
            faults: Part::add(&mut region.faults, translated.faults),
            links: Part::add(&mut region.links, links),
            recipe: lasts.then(|| Part::add(&mut region.recipes, recipe)),
            next: None,
        });
        self.by_key.insert(key, number);
        self.by_frame.entry(source.mfn.0).or_default().blocks.push(number);
        if let Some(second) = source.second {
            self.by_frame.entry(second.0).or_default().blocks.push(number);
        }
        for (link, number) in translated.links.iter().zip(first_link..).filter(|(link, _)| link.grouped) {
            self.resolve(number, Key::new(source.mfn, link.target, source.variant));
        }
        self.counters.translated += 1;
        self.counters.lasting += u64::from(lasts);
        self.buffer = translated.code;
        self.buffer.clear();
        Ok((number, translated.entries.far))
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
            hidden: self.hidden,
            single: true,
            grouped: false,
            path: &[],
            origin: self.memory.base() + offset as u64,
            stubs: self.stubs,
            first_link: 0,
        };
        let neighbours = PageBlocks { cache: self, mfn: archived::NO_FRAME, variant: source.variant };
        let translated = translate::translate(&request, &neighbours, Vec::new())?;
        self.check(&translated.code, self.memory.base() + offset as u64, translated.entries, source);
        if translated.code.len() > room || !self.memory.put(offset, &translated.code) {
            return Ok(None);
        }
        Ok(Some(translated.entries.far))
    }

    /// Has a block verified, in builds that do so.
    ///
    /// # Panics
    /// If the block does what no block may: that is a bug of the translator.
    #[cfg(any(debug_assertions, feature = "verify"))]
    fn check(&self, code: &[u8], origin: u64, entries: Entries, source: &Source<'_>) {
        use crate::verify::{Surroundings, verify};
        let of_frame = self.by_frame.get(&source.mfn.0).map(|frame| frame.blocks.as_slice()).unwrap_or_default();
        let is_entry = |address: u64| {
            of_frame.iter().filter_map(|&n| self.block(n)).any(|b| b.near_entry == address || b.native_entry == address)
        };
        let mode = usize::from(source.variant.mode == ring3_engine::GuestMode::User);
        let around = Surroundings { stubs: &self.stubs, mode, is_entry: &is_entry };
        if let Err(violation) = verify(code, origin, entries, &around) {
            panic!("a block must not have {}", violation.describe(code, origin));
        }
    }

    #[cfg(not(any(debug_assertions, feature = "verify")))]
    fn check(&self, _code: &[u8], _origin: u64, _entries: Entries, _source: &Source<'_>) {}

    /// Points link `number` at the block for `key`, if both exist.
    pub fn resolve(&mut self, number: u32, key: Key) {
        let link = self.regions.get(region_of(number)).and_then(|region| region.links.get(index_of(number)));
        let (Some(link), Some(&target)) = (link, self.by_key.get(&key)) else { return };
        let site = link.site;
        let Some(entry) = self.block(target).filter(|b| b.second.is_none()).and_then(|b| b.entry_for(link.given))
        else {
            return;
        };
        self.memory.patch32(site, entry.wrapping_sub(site + 4) as u32);
        if let Some(region) = self.regions.get_mut(region_of(target))
            && let Some(block) = region.blocks.get_mut(index_of(target))
        {
            region.jumps.push(&mut block.incoming, number);
        }
    }

    /// The page offset of the guest instruction that the host code at `pc` belongs to, and where the guest's flags are there.
    pub fn guest_offset(&self, pc: u64) -> Option<(usize, FlagSource)> {
        let offset = usize::try_from(pc.checked_sub(self.memory.base())?).ok()?;
        let region = self.regions.iter().find(|region| (region.start..region.next).contains(&offset))?;
        let after = region.blocks.partition_point(|b| b.origin <= pc);
        let block = region.blocks.get(after.checked_sub(1)?)?;
        let at = u32::try_from(pc - block.origin).ok()?;
        let faults = block.faults.of(&region.faults);
        let point = faults.get(faults.partition_point(|f| f.end <= at))?;
        Some((usize::from(point.offset), point.flags))
    }
}
