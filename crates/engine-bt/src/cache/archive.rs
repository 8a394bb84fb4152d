//! A cache's kernel blocks as bytes, to be kept between runs.
//!
//! Blocks are put back where they were: jumps between blocks and to stubs are relative, and numbers of links stand in the
//! code. What comes back waits (`archived`); each block is compared with the guest's memory before it wakes, so an archive can be
//! of another kernel without harm. That it is of this build of the engine is for the caller to see to; the layout's
//! checksum only finds out accidents.
//!
//! Numbers are little-endian. Layout's checksum u64, number of regions u32; then for each region: bytes in use u32; number of
//! links u32, and each link; number of blocks u32, and each block; the code. Offsets are from the region's start. A block that
//! is not kept has a place in the list nonetheless, because blocks know each other by number.
//!
//! A cache that was put in an archive and emptied then goes on behind those regions, so that what is made later can be added.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::archived::{NO_FRAME, list_archived};
use super::block::Block;
use super::frame::BlockState;
use super::lists::{Incoming, Part};
use super::memory_unsafe::PART_BYTES;
use super::region::{Link, Region};
use super::trace::MAX_FOLLOWS;
use super::{Cache, CodeMemory, Key, KeyMap};
use crate::shelf::checksum;
use crate::state::{FlagSource, State};
use crate::translate::{Demand, FaultPoint, Given, sum_of};

/// Code in it at most.
const MAX_CODE: usize = 44 << 20;

/// Where an archive's bytes lie.
pub trait Bytes: AsRef<[u8]> + Debug + Send + Sync {}

impl<T: AsRef<[u8]> + Debug + Send + Sync> Bytes for T {}

/// Reads numbers off the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.bytes(1)?.first().copied()
    }

    fn u16(&mut self) -> Option<u16> {
        self.bytes(2)?.try_into().ok().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.bytes(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.bytes(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    /// `len` things, unless that is more than there can be.
    fn list<T>(&mut self, len: u32, mut one: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let len = len as usize;
        if len > self.0.len() {
            return None;
        }
        (0..len).map(|_| one(self)).collect()
    }
}

/// Puts numbers at the end.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
}

/// A word of `flag_word` is never so small.
fn put_source(source: FlagSource) -> u32 {
    match source {
        FlagSource::Cpu => 0,
        FlagSource::State => 1,
        FlagSource::Word(word) => word,
    }
}

fn take_source(number: u32) -> FlagSource {
    match number {
        0 => FlagSource::Cpu,
        1 => FlagSource::State,
        word => FlagSource::Word(word),
    }
}

fn take_given(number: u8) -> Option<Given> {
    [Given::Native, Given::State, Given::Nothing].into_iter().find(|given| *given as u8 == number)
}

/// What the list of blocks has of one: its place only; all; all, and that nobody need look for a loop there.
const GONE: u8 = 0;
const KEPT: u8 = 1;
const FOLLOWED: u8 = 2;

fn put_block(to: &mut Writer, region: &Region, block: &Block, start: u64) {
    let Some(recipe) = region.recipe(block) else {
        to.u8(GONE);
        to.u32((block.origin - start) as u32);
        return;
    };
    to.u8(if block.follows == MAX_FOLLOWS { FOLLOWED } else { KEPT });
    to.u32((block.origin - start) as u32);
    to.u32(block.len);
    to.u32((block.near_entry - start) as u32);
    to.u32((block.native_entry - start) as u32);
    to.u32(block.demand.pack());
    to.u64(block.key.on(NO_FRAME).number());
    to.u64(block.rip);
    to.u32(block.links.first);
    to.u32(block.links.nr);
    to.u32(block.faults.nr);
    for point in block.faults.of(&region.faults) {
        to.u32(point.end);
        to.u16(point.offset);
        to.u32(put_source(point.flags));
    }
    to.u64(block.lines);
    to.u64(block.entry_word);
    to.u32(recipe.len() as u32);
    to.0.extend_from_slice(recipe);
}

fn take_block(from: &mut Reader<'_>, region: &mut Region, start: u64) -> Option<Block> {
    let kind = from.u8()?;
    let origin = start + u64::from(from.u32()?);
    let mut block = Block {
        mfn: NO_FRAME,
        key: Key::from_number(0),
        second: None,
        rip: 0,
        len: 0,
        native_entry: origin,
        demand: Demand::ALL,
        origin,
        far_entry: origin,
        near_entry: origin,
        faults: Part::default(),
        links: Part::default(),
        recipe: None,
        next: None,
        lines: 0,
        sum: 0,
        entry_word: 0,
        state: BlockState::Dead,
        misses: 0,
        follows: 0,
        incoming: Incoming::NONE,
    };
    if matches!(kind, KEPT | FOLLOWED) {
        block.follows = if kind == FOLLOWED { MAX_FOLLOWS } else { 0 };
        block.len = from.u32()?;
        block.near_entry = start + u64::from(from.u32()?);
        block.native_entry = start + u64::from(from.u32()?);
        block.demand = Demand::unpack(from.u32()?);
        block.key = Key::from_number(from.u64()?);
        block.rip = from.u64()?;
        block.links = Part { first: from.u32()?, nr: from.u32()? };
        let nr_faults = from.u32()?;
        let faults = (0..nr_faults)
            .map_while(|_| Some(FaultPoint { end: from.u32()?, offset: from.u16()?, flags: take_source(from.u32()?) }));
        block.faults = Part::add(&mut region.faults, faults);
        block.lines = from.u64()?;
        block.entry_word = from.u64()?;
        let nr_bytes = from.u32()? as usize;
        let recipe = from.bytes(nr_bytes)?;
        block.sum = sum_of(recipe, block.lines);
        block.recipe = Some(Part::add(&mut region.recipes, recipe.iter().copied()));
        block.state = BlockState::Archived;
    }
    Some(block)
}

/// Whether everything about a region's blocks lies within it.
fn is_sound(region: &Region, base: u64) -> bool {
    let (start, end) = (base + region.start as u64, base + region.next as u64);
    let mut last = start;
    region.blocks.iter().all(|block| {
        let after = block.origin + u64::from(block.len);
        let within = |address: u64| (block.origin..after).contains(&address);
        let is_placed = block.origin >= last && block.origin.is_multiple_of(16) && after <= end;
        last = after;
        let links = block.links.of(&region.links);
        let is_linked = links.len() == block.links.nr as usize
            && links.iter().all(|l| within(l.site) && within(l.site + 3) && l.site.is_multiple_of(4) && within(l.exit));
        is_placed && (block.recipe.is_none() || within(block.near_entry) && within(block.native_entry) && is_linked)
    })
}

/// Regions for an archive.
#[derive(Debug)]
pub struct Addition {
    layout: u64,
    /// Regions that an archive must have already for these to fit behind them, and how many these are.
    nr_away: u32,
    nr_new: u32,
    regions: Vec<u8>,
}

impl Addition {
    /// Whether there must be an archive already.
    pub fn needs_former(&self) -> bool {
        self.nr_away != 0
    }

    /// A whole archive, with the regions of the former one; none if that is not what these were made to follow.
    pub fn follow(mut self, former: Option<&[u8]>) -> Option<Vec<u8>> {
        let mut to = Writer(Vec::with_capacity(12 + self.regions.len() + former.map_or(0, <[u8]>::len)));
        to.u64(self.layout);
        to.u32(self.nr_away + self.nr_new);
        if self.needs_former() {
            let mut former = Reader(former?);
            if former.u64()? != self.layout || former.u32()? != self.nr_away {
                return None;
            }
            to.0.extend_from_slice(former.0);
        }
        to.0.append(&mut self.regions);
        Some(to.0)
    }
}

impl Cache {
    /// What an archive's offsets depend on.
    fn layout(&self) -> u64 {
        let mut stubs = self.stubs.addresses();
        stubs.iter_mut().for_each(|address| *address -= self.memory.base());
        let bounds = self.regions.iter().flat_map(|region| [region.start as u64, region.end as u64]);
        let numbers: Vec<u8> =
            stubs.into_iter().chain(bounds).chain([size_of::<State>() as u64]).flat_map(u64::to_le_bytes).collect();
        checksum(&numbers)
    }

    /// Whether so much was translated since the archive was put back, if there is one, that a new one is worth its while:
    /// at least `min_blocks`.
    pub fn is_worth_keeping(&self, min_blocks: u64) -> bool {
        let has_turned_round = self.counters.evictions != 0 || self.current < self.nr_away;
        let code = self.regions.get(self.current).map_or(0, |region| region.next);
        self.counters.lasting >= min_blocks.max(self.nr_archived / 8) && !has_turned_round && code <= MAX_CODE
    }

    /// The kernel's blocks, where [`Cache::is_worth_keeping`].
    pub fn to_archive(&self) -> Addition {
        let mut to = Writer::default();
        to.0.reserve(self.used() * 3 / 2);
        let new = self.regions.get(self.nr_away..=self.current).unwrap_or_default();
        for region in new {
            self.put_region(&mut to, region);
        }
        Addition { layout: self.layout(), nr_away: self.nr_away as u32, nr_new: new.len() as u32, regions: to.0 }
    }

    /// Has what is made from now on stand behind what was archived. Called after `finish_reset`.
    pub fn go_on_behind(&mut self, addition: &Addition) {
        self.nr_filed = (addition.nr_away + addition.nr_new) as usize;
        self.nr_away = self.nr_filed.min(self.regions.len() - 1);
        self.current = self.nr_away;
    }

    /// The code of a block of a region that came out of the archive.
    pub(super) fn code_in_archive(&self, region: &Region, block: &Block) -> &[u8] {
        let at = region.archived + (block.origin - self.memory.base()) as usize - region.start;
        (*self.archive).as_ref().get(at..).and_then(|rest| rest.get(..block.len as usize)).unwrap_or_default()
    }

    fn put_region(&self, to: &mut Writer, region: &Region) {
        let start = self.memory.base() + region.start as u64;
        to.u32((region.next - region.start) as u32);
        to.u32(region.links.len() as u32);
        for link in &region.links {
            to.u32((link.site - start) as u32);
            to.u32((link.exit - start) as u32);
            to.u16(link.target);
            to.u8(link.is_ungrouped.into());
            to.u8(link.given as u8);
        }
        to.u32(region.blocks.len() as u32);
        for block in &region.blocks {
            put_block(to, region, block, start);
        }
        let at = to.0.len();
        to.0.resize(at + region.next - region.start, 0);
        for block in region.blocks.iter().filter(|block| block.recipe.is_some()) {
            let (first, len) = ((block.origin - start) as usize, block.len as usize);
            let place = to.0.get_mut(at + first..).and_then(|rest| rest.get_mut(..len));
            // A block that was never woken is still only in the archive that this cache began with.
            match (place, block.state) {
                (Some(place), BlockState::Archived) => place.copy_from_slice(self.code_in_archive(region, block)),
                (Some(place), _) => place.copy_from_slice(&self.memory.read(region.start + first, len)),
                (None, _) => {}
            }
        }
    }

    /// What it takes to unpack an archive for this cache.
    pub fn outline(&self) -> Outline {
        let places = self.regions.iter().map(Region::anew).collect();
        Outline { layout: self.layout(), memory: Arc::clone(&self.memory), places }
    }

    /// Puts an archive's blocks back, into an empty cache whose outline they were unpacked for. Returns whether it was empty.
    pub fn put_back(&mut self, unpacked: Unpacked) -> bool {
        let Some(places) = self.regions.get_mut(..unpacked.regions.len()) else { return false };
        if !places.iter().all(Region::is_empty) {
            return false;
        }
        self.current = unpacked.regions.len() - 1;
        self.nr_filed = unpacked.regions.len();
        for (place, region) in places.iter_mut().zip(unpacked.regions) {
            *place = region;
        }
        self.nr_archived = unpacked.nr_blocks;
        self.archive = unpacked.archive;
        self.archived = unpacked.places;
        self.by_key.reserve(self.archived.len());
        true
    }
}

/// Of a cache, what an archive's blocks depend on.
#[derive(Debug)]
pub struct Outline {
    layout: u64,
    memory: Arc<CodeMemory>,
    /// Its regions, empty.
    places: Vec<Region>,
}

/// An archive's blocks, ready to be put back. There is one region at least.
#[derive(Debug)]
pub struct Unpacked {
    regions: Vec<Region>,
    nr_blocks: u64,
    /// The first block for a place: see `archived`.
    places: KeyMap<Key, u32>,
    archive: Box<dyn Bytes>,
}

impl Outline {
    /// Makes blocks of an archive; None if it is not one for this cache.
    pub fn unpack(&self, archive: impl Bytes + 'static) -> Option<Unpacked> {
        let mut regions = self.take_regions(archive.as_ref())?;
        if regions.is_empty() || !regions.iter().all(|region| is_sound(region, self.memory.base())) {
            return None;
        }
        let (places, nr_blocks) = list_archived(&mut regions);
        Some(Unpacked { regions, nr_blocks, places, archive: Box::new(archive) })
    }

    /// Puts the code in its place, as far as it gets until that is wanted. Nobody else writes to the cache's memory meanwhile.
    pub fn fill(&self, unpacked: &mut Unpacked, is_wanted: &AtomicBool) {
        let archive = (*unpacked.archive).as_ref();
        for region in &mut unpacked.regions {
            let mut next = 0;
            while region.filled < region.next && !is_wanted.load(Ordering::Relaxed) {
                let to = region.next.min((region.filled / PART_BYTES + 1) * PART_BYTES);
                let at = region.archived + (region.filled - region.start);
                let code = archive.get(at..).and_then(|rest| rest.get(..to - region.filled)).unwrap_or_default();
                if !self.memory.put_part(region.filled, code) {
                    return;
                }
                region.filled = to;
                // Their links lead to where they led in the other run.
                let whole = region.blocks.get(next..).unwrap_or_default().iter();
                for block in whole.take_while(|block| region.is_filled(block, self.memory.base())) {
                    block.links.of(&region.links).iter().for_each(|link| link.reset(&self.memory));
                    next += 1;
                }
            }
        }
    }

    fn take_regions(&self, archive: &[u8]) -> Option<Vec<Region>> {
        let mut from = Reader(archive);
        if from.u64()? != self.layout {
            return None;
        }
        let nr_regions = from.u32()? as usize;
        let places = self.places.get(..nr_regions)?;
        places.iter().map(|place| self.take_region(&mut from, archive.len(), place)).collect()
    }

    fn take_region(&self, from: &mut Reader<'_>, len: usize, place: &Region) -> Option<Region> {
        let start = self.memory.base() + place.start as u64;
        let used = from.u32()? as usize;
        let mut region = place.anew();
        region.next = place.start + used;
        if region.next > region.end {
            return None;
        }
        let nr_links = from.u32()?;
        region.links = from.list(nr_links, |from| {
            let (site, exit) = (start + u64::from(from.u32()?), start + u64::from(from.u32()?));
            Some(Link {
                site,
                exit,
                target: from.u16()?,
                is_ungrouped: from.u8()? != 0,
                given: take_given(from.u8()?)?,
            })
        })?;
        let nr_blocks = from.u32()?;
        region.blocks = from.list(nr_blocks, |from| take_block(from, &mut region, start))?;
        region.archived = len - from.0.len();
        from.bytes(used)?;
        Some(region)
    }
}

#[cfg(test)]
mod tests {
    use ring3_engine::GuestMode;
    use ring3_machine::Mfn;

    use super::super::Source;
    use super::*;
    use crate::translate::Variant;

    const RIP: u64 = 0xffff_ffff_8100_0000;
    const VARIANT: Variant = Variant::of(GuestMode::Kernel);

    /// Two blocks: `cmp eax, ecx; je +2; inc eax; ret` and what comes after the jump if that is asked for.
    fn page(last: u8) -> Vec<u8> {
        let mut page = vec![0x90; 4096];
        page[..8].copy_from_slice(&[0x39, 0xc8, 0x74, 0x02, 0xff, 0xc0, 0xc3, last]);
        page
    }

    fn source(page: &[u8], mfn: u64, offset: usize) -> Source<'_> {
        let rip = RIP + offset as u64;
        Source { mfn: Mfn(mfn), second: None, offset, rip, variant: VARIANT, grouped: true, path: &[], code: page }
    }

    fn cache() -> Cache {
        let mut cache = Cache::new(2 << 20, 0x1000, false).unwrap();
        cache.has_archive = true;
        cache
    }

    fn put_back(cache: &mut Cache, archive: Vec<u8>) -> bool {
        cache.outline().unpack(archive).is_some_and(|unpacked| cache.put_back(unpacked))
    }

    fn archive() -> Vec<u8> {
        let mut first = cache();
        for offset in [6, 0, 4] {
            first.add(&source(&page(0xc3), 5, offset)).unwrap();
        }
        assert!(first.is_worth_keeping(3) && !first.is_worth_keeping(4));
        first.to_archive().follow(None).unwrap()
    }

    #[test]
    fn test_blocks_come_back_where_the_bytes_are_the_same() {
        let mut second = cache();
        assert!(put_back(&mut second, archive()));
        assert!(!put_back(&mut second, archive()), "it is not empty any more");
        second.add(&source(&page(0xc3), 9, 0)).unwrap();
        // The block at 0 leads into that at 6.
        assert_eq!((second.counters().translated, second.counters().woken), (0, 2));
        second.add(&source(&page(0xc3), 9, 4)).unwrap();
        assert_eq!((second.counters().translated, second.counters().woken), (0, 3));
    }

    #[test]
    fn test_code_that_is_in_its_place_already_is_what_waking_puts_there() {
        let woken = |is_wanted: bool| {
            let mut cache = cache();
            let outline = cache.outline();
            let mut unpacked = outline.unpack(archive()).unwrap();
            outline.fill(&mut unpacked, &AtomicBool::new(is_wanted));
            let filled = unpacked.regions[0].filled;
            assert!(cache.put_back(unpacked));
            for offset in [6, 0, 4] {
                cache.add(&source(&page(0xc3), 9, offset)).unwrap();
            }
            assert_eq!((cache.counters().translated, cache.counters().woken), (0, 3));
            let region = &cache.regions[0];
            assert_eq!(filled, if is_wanted { region.start } else { region.next });
            let codes = region.blocks.iter().map(|b| (b.origin - cache.memory.base(), b.len as usize));
            codes.map(|(at, len)| cache.memory.read(at as usize, len)).collect::<Vec<_>>()
        };
        assert_eq!(woken(false), woken(true));
    }

    #[test]
    fn test_blocks_of_other_bytes_are_translated() {
        let mut second = cache();
        assert!(put_back(&mut second, archive()));
        let mut changed = page(0xc3);
        changed[5] = 0xc8; // dec eax
        second.add(&source(&changed, 9, 0)).unwrap();
        assert_eq!((second.counters().translated, second.counters().woken), (1, 0));
        let mut elsewhere = page(0xc3);
        elsewhere[100] = 0xcc;
        second.add(&source(&elsewhere, 10, 6)).unwrap();
        assert_eq!(
            (second.counters().translated, second.counters().woken),
            (1, 1),
            "what it is not made of may differ"
        );
    }

    #[test]
    fn test_a_block_wakes_on_one_frame_only() {
        let mut second = cache();
        assert!(put_back(&mut second, archive()));
        second.add(&source(&page(0xc3), 9, 6)).unwrap();
        second.add(&source(&page(0xc3), 10, 6)).unwrap();
        assert_eq!((second.counters().translated, second.counters().woken), (1, 1), "it is awake on another");
        assert!(second.drop_frame(Mfn(9)));
        second.add(&source(&page(0xc3), 9, 6)).unwrap();
        let counters = second.counters();
        assert_eq!((counters.translated, counters.woken, counters.revived), (1, 1, 1));
    }

    #[test]
    fn test_an_archive_can_be_added_to() {
        let mut first = cache();
        first.add(&source(&page(0xc3), 5, 6)).unwrap();
        let addition = first.to_archive();
        first.begin_reset();
        first.finish_reset();
        first.go_on_behind(&addition);
        let former = addition.follow(None).unwrap();
        first.add(&source(&page(0xc3), 5, 4)).unwrap();
        assert!(first.to_archive().needs_former());
        assert!(first.to_archive().follow(None).is_none());
        let both = first.to_archive().follow(Some(&former)).unwrap();
        assert!(first.to_archive().follow(Some(&both)).is_none(), "these regions follow one, not two");
        let mut second = cache();
        assert!(put_back(&mut second, both));
        second.add(&source(&page(0xc3), 9, 4)).unwrap();
        second.add(&source(&page(0xc3), 9, 6)).unwrap();
        assert_eq!((second.counters().translated, second.counters().woken), (0, 2));
    }

    #[test]
    fn test_a_damaged_archive_does_no_harm() {
        let archive = archive();
        assert!(!put_back(&mut cache(), Vec::new()));
        let mut second = cache();
        for cut in (0..archive.len()).step_by(7) {
            assert!(!put_back(&mut second, archive[..cut].to_vec()), "cut to {cut} bytes");
        }
        // Each number of the lists made another is refused, or taken for what it is now; only the shelf's checksum tells.
        for at in 0..archive.len().min(600) {
            let mut damaged = archive.clone();
            damaged[at] ^= 0xa5;
            let _ = put_back(&mut cache(), damaged);
        }
    }
}
