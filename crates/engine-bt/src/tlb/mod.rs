//! The software TLB and the slow path of an access.

use ring3_engine::{Access, AddressSpace, Exit, Translation, vector, walk};
use ring3_machine::{Machine, Mfn, PAGE_SIZE, PAGE_SIZE_BYTES};

use crate::state::{State, TLB_ENTRIES, TLB_SECOND, TlbEntry, invalid_tag};
use crate::translate::access_info;

/// Why an access could not be completed in the slow path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The guest takes a fault.
    Fault(Exit),
    /// The instruction must be executed by `step` (a store across pages).
    Step,
    /// The instruction is atomic, and can be so only while no other vCPU is in the guest.
    Alone,
    /// A store to a frame that holds translated code.
    Code(Mfn),
}

/// Whether an address is canonical (48 bits).
pub fn is_canonical(va: u64) -> bool {
    (va as i64) << 16 >> 16 == va as i64
}

/// Whether an address belongs to the upper half, where kernels live.
pub fn is_upper(va: u64) -> bool {
    va >> 63 != 0
}

/// Indices of a table, as many as are worth listing.
#[derive(Debug, Default)]
struct Indices {
    list: Vec<u16>,
    overflowed: bool,
}

impl Indices {
    /// More than this many, and a walk over the whole table is as good.
    const LIMIT: usize = 2000;

    fn note(&mut self, index: usize) {
        if self.list.len() < Self::LIMIT {
            self.list.push(index as u16);
        } else {
            self.overflowed = true;
        }
    }

    fn each(&self, len: usize, mut visit: impl FnMut(usize)) {
        if self.overflowed {
            (0..len).for_each(visit);
        } else {
            self.list.iter().for_each(|&index| visit(usize::from(index)));
        }
    }

    fn clear(&mut self) {
        self.list.clear();
        self.overflowed = false;
    }
}

/// Which entries of a table may be filled, for addresses of the lower and of the upper half, so that a flush need not
/// touch all of it. An index may be listed although its entry was dropped or replaced since: visitors look at the entry.
#[derive(Debug, Default)]
pub struct FillLog {
    lower: Indices,
    upper: Indices,
    /// There may be an upper-half entry whose mapping the guest does not keep to its kernel.
    has_user_upper: bool,
}

impl FillLog {
    /// Notes that the entry at `index` was filled for `address`.
    pub fn note(&mut self, index: usize, address: u64) {
        if is_upper(address) { self.upper.note(index) } else { self.lower.note(index) }
    }

    /// Visits each index of a table of `len` entries that may be filled, and forgets all.
    pub fn drain(&mut self, len: usize, mut visit: impl FnMut(usize)) {
        self.lower.each(len, &mut visit);
        self.upper.each(len, &mut visit);
        self.lower.clear();
        self.upper.clear();
    }

    /// As [`FillLog::drain`] for the lower half; where the list overflowed, entries of the upper half are visited too.
    pub fn drain_lower(&mut self, len: usize, visit: impl FnMut(usize)) {
        self.lower.each(len, visit);
        self.lower.clear();
    }

    /// Visits those that may be filled for addresses of the half that `address` belongs to.
    pub fn each_like(&self, address: u64, len: usize, visit: impl FnMut(usize)) {
        if is_upper(address) { self.upper.each(len, visit) } else { self.lower.each(len, visit) }
    }

    /// Whether visiting what is listed is less than visiting the whole table.
    fn is_short(&self) -> bool {
        let lists = [&self.lower, &self.upper];
        lists.iter().all(|of| !of.overflowed) && lists.iter().map(|of| of.list.len()).sum::<usize>() < TLB_ENTRIES / 8
    }

    /// Visits each index that is listed.
    fn each(&self, visit: impl FnMut(usize)) {
        self.lower.list.iter().chain(&self.upper.list).map(|&index| usize::from(index)).for_each(visit);
    }

    /// Has the next drain visit the whole table.
    pub fn all(&mut self) {
        self.lower.overflowed = true;
    }
}

fn invalidate(table: &mut [TlbEntry; TLB_ENTRIES], index: usize) {
    if let Some(entry) = table.get_mut(index) {
        entry.read_tag = invalid_tag(index);
        entry.write_tag = invalid_tag(index);
        entry.host_page = 0;
    }
}

/// The two places of a page: the one that was filled may have been changed with the other since.
fn places(index: usize) -> [usize; 2] {
    [index, index ^ TLB_SECOND]
}

/// Invalidates the entries of one mode that `log` knows.
pub fn flush_mode(state: &mut State, mode: usize, log: &mut FillLog) {
    let Some(table) = state.tlb.get_mut(mode) else { return };
    log.has_user_upper = false;
    log.drain(TLB_ENTRIES, |index| places(index).into_iter().for_each(|index| invalidate(table, index)));
}

/// Invalidates the entries of one mode but for the kernel's of the upper half.
pub fn flush_lower(state: &mut State, mode: usize, log: &mut FillLog) {
    if log.has_user_upper {
        // Which ones is not noted: stock kernels have hardly any.
        return flush_mode(state, mode, log);
    }
    let Some(table) = state.tlb.get_mut(mode) else { return };
    log.drain_lower(TLB_ENTRIES, |index| {
        for index in places(index) {
            // An empty entry's tags are small addresses, so it counts as lower.
            if table.get(index).is_some_and(|entry| !is_upper(entry.read_tag)) {
                invalidate(table, index);
            }
        }
    });
}

/// Invalidates the entry of one page in both modes.
pub fn flush_page(state: &mut State, va: u64) {
    let (set, page) = (set_of(va), va & !(PAGE_SIZE - 1));
    for table in &mut state.tlb {
        for index in places(set) {
            if table.get(index).is_some_and(|entry| entry.read_tag == page) {
                invalidate(table, index);
            }
        }
    }
}

/// Entries of a page table.
pub const TABLE_ENTRIES: usize = 512;

/// Invalidates the entries of all pages that have slot `slot` of their level-1 tables, in both modes.
pub fn flush_slot(state: &mut State, slot: usize) {
    for table in &mut state.tlb {
        for index in (slot..TLB_ENTRIES).step_by(TABLE_ENTRIES) {
            if let Some(entry) = table.get_mut(index) {
                entry.read_tag = invalid_tag(index);
                entry.write_tag = invalid_tag(index);
            }
        }
    }
}

/// Takes write access away from every entry for these frames, given by sorted host addresses.
pub fn protect_frames(state: &mut State, host_pages: &[u64], logs: &[FillLog; 2]) {
    let is_one = |page: u64| match host_pages {
        [only] => *only == page,
        many => many.binary_search(&page).is_ok(),
    };
    let protect = |index: usize, entry: &mut TlbEntry| {
        if is_one(entry.host_page) {
            entry.write_tag = invalid_tag(index);
        }
    };
    for (table, log) in state.tlb.iter_mut().zip(logs) {
        if log.is_short() {
            let mut protect_place = |index: usize| table.get_mut(index).into_iter().for_each(|e| protect(index, e));
            log.each(|index| places(index).into_iter().for_each(&mut protect_place));
        } else {
            table.iter_mut().enumerate().for_each(|(index, entry)| protect(index, entry));
        }
    }
}

fn set_of(va: u64) -> usize {
    (va / PAGE_SIZE) as usize % TLB_ENTRIES
}

/// A checked translation of one byte range within a page.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    pub mfn: Mfn,
    pub offset: usize,
    pub len: usize,
}

/// Translates `va` for reading or writing, with the guest's fault if it must not.
///
/// # Errors
/// [`Stop::Fault`].
pub fn translate(
    machine: &Machine,
    space: &AddressSpace,
    va: u64,
    write: bool,
    stack: bool,
) -> Result<Translation, Stop> {
    if !is_canonical(va) {
        let vector = if stack { vector::SS } else { vector::GP };
        return Err(Stop::Fault(Exit::Exception { vector, error_code: Some(0), cr2: 0 }));
    }
    let access = if write { Access::Write } else { Access::Read };
    walk(machine, space, va, access).map_err(|fault| {
        Stop::Fault(Exit::Exception { vector: vector::PF, error_code: Some(fault.error_code), cr2: va })
    })
}

/// Faults as a store to `va..va + size` would, where that crosses pages: a page must not become dirty because the other one
/// faults only then.
///
/// # Errors
/// [`Stop::Fault`].
pub fn probe_store(machine: &Machine, space: &AddressSpace, va: u64, size: usize, stack: bool) -> Result<(), Stop> {
    let offset = (va % PAGE_SIZE) as usize;
    if offset + size <= PAGE_SIZE_BYTES {
        return Ok(());
    }
    for at in [va, va.wrapping_add((PAGE_SIZE_BYTES - offset) as u64)] {
        if !translate(machine, space, at, false, stack).is_ok_and(|t| t.may_write) {
            // Tells the fault of a store, and sets nothing unless the entry has just changed.
            translate(machine, space, at, true, stack)?;
        }
    }
    Ok(())
}

/// Enters a translation. Frames that hold code get no write access.
pub fn fill(state: &mut State, machine: &Machine, user: bool, va: u64, t: &Translation, log: &mut FillLog) {
    let index = set_of(va);
    let Ok(host_page) = machine.frame(t.mfn) else { return };
    let page = va & !(PAGE_SIZE - 1);
    let Some(table) = state.tlb.get_mut(usize::from(user)) else { return };
    let second = index ^ TLB_SECOND;
    if table.get(second).is_some_and(|entry| entry.read_tag == page) {
        invalidate(table, second);
    }
    if let Some(&old) = table.get(index)
        && old.read_tag != page
        && set_of(old.read_tag) == index
    {
        // It keeps its second place.
        if let Some(entry) = table.get_mut(second) {
            *entry = old;
            if old.write_tag != old.read_tag {
                entry.write_tag = invalid_tag(second);
            }
        }
    }
    log.note(index, va);
    log.has_user_upper |= is_upper(va) && !t.is_kernel;
    let Some(entry) = table.get_mut(index) else { return };
    entry.read_tag = page;
    entry.write_tag = if t.writable && !machine.code().has_code(t.mfn) { page } else { invalid_tag(index) };
    entry.host_page = host_page as u64;
}

/// The frame behind `va`, if the TLB knows it for reading or writing.
pub fn cached(state: &State, machine: &Machine, mode: usize, va: u64, write: bool) -> Option<Mfn> {
    let (table, set, page) = (state.tlb.get(mode)?, set_of(va), va & !(PAGE_SIZE - 1));
    let has_page = |entry: &&TlbEntry| page == if write { entry.write_tag } else { entry.read_tag };
    let entry = places(set).into_iter().filter_map(|index| table.get(index)).find(has_page)?;
    Some(Mfn(entry.host_page.wrapping_sub(machine.base() as u64) / PAGE_SIZE))
}

/// Splits `va..va + size` at the page boundary and translates each part.
///
/// # Errors
/// [`Stop`].
pub fn pieces(
    va: u64,
    size: usize,
    mut translate: impl FnMut(u64) -> Result<Mfn, Stop>,
) -> Result<[Option<Piece>; 2], Stop> {
    let offset = (va % PAGE_SIZE) as usize;
    let first = size.min(PAGE_SIZE_BYTES - offset);
    let mut parts = [Some(Piece { mfn: translate(va)?, offset, len: first }), None];
    if first < size {
        let mfn = translate(va.wrapping_add(first as u64))?;
        parts[1] = Some(Piece { mfn, offset: 0, len: size - first });
    }
    Ok(parts)
}

/// Decoded `State::access_info`.
#[derive(Clone, Copy, Debug)]
pub struct Info {
    pub size: usize,
    pub write: bool,
    pub single: bool,
    pub stack: bool,
    pub locked: bool,
    pub bounce: usize,
}

impl Info {
    pub fn decode(word: u32) -> Self {
        Self {
            size: (word & access_info::SIZE) as usize,
            write: word & access_info::WRITE != 0,
            single: word & access_info::SINGLE != 0,
            stack: word & access_info::STACK != 0,
            locked: word & access_info::LOCKED != 0,
            bounce: (word >> access_info::BOUNCE_SHIFT & 3) as usize,
        }
    }
}

/// Page offset of the instruction of an access.
pub fn instruction_offset(word: u32) -> u64 {
    u64::from(word >> access_info::OFFSET_SHIFT)
}
