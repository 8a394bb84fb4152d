//! One address space as a runner has it: which pages are mapped there, and from which page-table entries.
//!
//! To the guest this is a TLB: what was flushed is looked at again before the runner goes on. Each region (what one L1 table
//! maps) remembers the entries that its pages came from, so looking again is a comparison of tables, not a fault for each page.

use std::collections::BTreeMap;
use std::io;

use ring3_engine::{Access, pte, table_index};
use ring3_machine::{Machine, Mfn, PAGE_SIZE, PAGE_SIZE_BYTES};

use super::layout::NR_PATCHED;
use super::layout::{HOLE, HOLE_BYTES};
use super::plan::{Command, Kind, Plan};
use super::policy::Balance;
use super::runner_unsafe::Runner;
use super::scan::{Examined, UD2, Verdict, is_sensitive_across};

/// Entries of a table.
const ENTRIES: usize = 512;
/// Bytes that an L1 table maps.
const REGION_BYTES: u64 = ENTRIES as u64 * PAGE_SIZE;
/// Below is nothing that an ordinary process may map. Source: Linux, vm.mmap_min_addr's default.
const LOWEST: u64 = 0x10000;
/// The last page below is never mapped. Source: Linux arch/x86/include/asm/page_64_types.h, TASK_SIZE_MAX.
const END: u64 = 0x7fff_ffff_f000;
/// Pages looked at on each side of a fault, and mapping calls made for one.
const AROUND: usize = 256;
const MAX_CALLS: usize = 64;
/// Mapping calls after which a space starts anew: the host limits mappings (vm.max_map_count, 65,530).
const MAX_MAPPINGS: usize = 50_000;
/// Pages of a region that are unmapped one by one; if more are to go, all go.
const FEW: usize = 32;

#[derive(Debug)]
struct Region {
    l1: Mfn,
    rights: Rights,
    entries: Box<[u64; ENTRIES]>,
    kinds: Box<[Kind; ENTRIES]>,
}

/// What the upper levels allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rights {
    write: bool,
    execute: bool,
}

/// Counts of events that may have made mappings invalid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Epoch {
    /// TLB flushes.
    pub tables: u64,
    /// Frames marked as code, or code of frames dropped.
    pub code: u64,
}

/// An address space and its runner.
#[derive(Debug)]
pub struct Space {
    pub root: Mfn,
    pub runner: Runner,
    regions: BTreeMap<u64, Region>,
    nr_mappings: usize,
    /// Slots for patched copies in use.
    nr_patched: usize,
    seen: Epoch,
    pub balance: Balance,
}

/// A table's entries.
fn read_table(machine: &Machine, table: Mfn) -> Option<Box<[u64; ENTRIES]>> {
    let mut bytes = [0u8; PAGE_SIZE_BYTES];
    machine.read(table, 0, &mut bytes).ok()?;
    let mut entries = Box::new([0u64; ENTRIES]);
    for (entry, word) in entries.iter_mut().zip(bytes.chunks_exact(8)) {
        *entry = word.try_into().map_or(0, u64::from_le_bytes);
    }
    Some(entries)
}

/// The L1 table for `va`, if a walk would set no accessed bit on the way.
fn find_l1(machine: &Machine, root: Mfn, va: u64) -> Option<(Mfn, Rights)> {
    let mut table = root;
    let mut rights = Rights { write: true, execute: true };
    for level in [4u32, 3, 2] {
        let index = table_index(va, level);
        let entry = machine.entry(table, index).ok()?;
        if entry & (pte::PRESENT | pte::ACCESSED | pte::PSE) != pte::PRESENT | pte::ACCESSED {
            return None;
        }
        rights.write &= entry & pte::RW != 0;
        rights.execute &= entry & pte::NX == 0;
        table = pte::mfn(entry);
    }
    Some((table, rights))
}

/// Whether the guest maps nothing where the stub lies.
pub fn hole_is_free(machine: &Machine, root: Mfn) -> bool {
    let mut table = root;
    for level in [4u32, 3, 2] {
        let index = table_index(HOLE, level);
        match machine.entry(table, index) {
            Ok(entry) if entry & pte::PRESENT != 0 => table = pte::mfn(entry),
            _ => return true,
        }
    }
    false
}

/// Whether the runner can have something at `va`.
pub fn is_mappable(va: u64) -> bool {
    (LOWEST..END).contains(&va) && !(HOLE..HOLE + HOLE_BYTES).contains(&va)
}

impl Region {
    /// The most that the runner may have of a page, for accesses other than fetches.
    fn data_kind(&self, machine: &Machine, entry: u64) -> Kind {
        let needed = pte::PRESENT | pte::ACCESSED;
        let mfn = pte::mfn(entry);
        if entry & needed != needed || mfn.0 >= machine.nr_frames() {
            return Kind::Absent;
        }
        let writable = self.rights.write && entry & pte::RW != 0 && entry & pte::DIRTY != 0;
        if writable && !machine.code().has_code(mfn) { Kind::Write } else { Kind::Read }
    }

    fn may_execute(&self, entry: u64) -> bool {
        let needed = pte::PRESENT | pte::ACCESSED;
        entry & needed == needed && self.rights.execute && entry & pte::NX == 0
    }

    /// Whether a page that was mapped from `old` may stay as it is now that the entry is `new`.
    fn still_holds(&self, machine: &Machine, kind: Kind, old: u64, new: u64) -> bool {
        let mfn = pte::mfn(new);
        if mfn != pte::mfn(old) {
            return false;
        }
        match kind {
            Kind::Absent => true,
            Kind::Read => self.data_kind(machine, new) != Kind::Absent,
            Kind::Write => self.data_kind(machine, new) == Kind::Write,
            Kind::Execute => self.may_execute(new) && machine.code().has_code(mfn),
            Kind::WriteExecute => self.may_execute(new) && self.data_kind(machine, new) == Kind::Write,
        }
    }
}

impl Space {
    pub fn new(root: Mfn, runner: Runner) -> Self {
        let regions = BTreeMap::new();
        Self {
            root,
            runner,
            regions,
            nr_mappings: 0,
            nr_patched: 0,
            seen: Epoch::default(),
            balance: Balance::default(),
        }
    }

    /// Takes another address space instead.
    ///
    /// # Errors
    /// The host's; the space is of no use then.
    pub fn retarget(&mut self, root: Mfn) -> io::Result<()> {
        self.root = root;
        self.balance = Balance::default();
        self.forget()
    }

    /// Unmaps everything.
    fn forget(&mut self) -> io::Result<()> {
        self.regions.clear();
        self.nr_mappings = 0;
        self.nr_patched = 0;
        let above = HOLE + HOLE_BYTES;
        self.runner
            .map(&[Command::Unmap { address: 0, len: HOLE }, Command::Unmap { address: above, len: END - above }])
    }

    /// Drops what does not hold any more since the last time.
    ///
    /// # Errors
    /// The host's; the space is of no use then.
    pub fn refresh(&mut self, machine: &Machine, now: Epoch) -> io::Result<()> {
        if now == self.seen {
            return Ok(());
        }
        let tables_only = now.code == self.seen.code;
        self.seen = now;
        let mut commands = Vec::new();
        let root = self.root;
        self.regions.retain(|&number, region| {
            let start = number * REGION_BYTES;
            let entries = match find_l1(machine, root, start) {
                Some((l1, rights)) if (l1, rights) == (region.l1, region.rights) => read_table(machine, l1),
                _ => None,
            };
            let Some(entries) = entries else {
                commands.push(Command::Unmap { address: start, len: REGION_BYTES });
                return false;
            };
            if tables_only && entries == region.entries {
                return true;
            }
            let before = commands.len();
            for index in 0..ENTRIES {
                let (kind, old, new) = (region.kinds[index], region.entries[index], entries[index]);
                if kind != Kind::Absent && !region.still_holds(machine, kind, old, new) {
                    region.kinds[index] = Kind::Absent;
                    push_unmap(&mut commands, before, start + index as u64 * PAGE_SIZE);
                }
            }
            region.entries = entries;
            if commands.len() - before > FEW {
                commands.truncate(before);
                commands.push(Command::Unmap { address: start, len: REGION_BYTES });
                return false;
            }
            true
        });
        if commands.is_empty() { Ok(()) } else { self.runner.map(&commands) }
    }

    /// Executable frames around `va` that a fetch fault there would map, `va`'s own first.
    pub fn code_around(&self, machine: &Machine, va: u64) -> Vec<Mfn> {
        const REACH: usize = 16;
        let Some((l1, rights)) = find_l1(machine, self.root, va) else { return Vec::new() };
        let index = table_index(va, 1);
        if !rights.execute {
            return Vec::new();
        }
        let around = (index.saturating_sub(REACH)..(index + REACH).min(ENTRIES)).filter(|&other| other != index);
        std::iter::once(index)
            .chain(around)
            .filter_map(|at| machine.entry(l1, at).ok().map(|entry| (at, entry)))
            .filter(|&(at, entry)| {
                let neighbour = entry & (pte::PRESENT | pte::ACCESSED | pte::RW | pte::NX);
                at == index || neighbour == pte::PRESENT | pte::ACCESSED
            })
            .map(|(_, entry)| pte::mfn(entry))
            .collect()
    }

    /// The frame at `va` if the guest may write and execute it, has done the first, and a fault of this kind there is for
    /// want of the other.
    pub fn writable_code(&self, machine: &Machine, va: u64, access: Access) -> Option<Mfn> {
        let index = table_index(va, 1);
        let (l1, rights) = find_l1(machine, self.root, va)?;
        let entry = machine.entry(l1, index).ok()?;
        let needed = pte::PRESENT | pte::ACCESSED | pte::RW | pte::DIRTY;
        let is_executed = self.regions.get(&(va / REGION_BYTES)).is_some_and(|r| r.kinds[index] == Kind::Execute);
        let is_one = rights.write && rights.execute && entry & (needed | pte::NX) == needed;
        let is_wanted = access == Access::Execute || access == Access::Write && is_executed;
        (is_one && is_wanted).then(|| pte::mfn(entry))
    }

    /// Maps the page of a fault that the guest's tables allow, and what lies around it. `examined` says of a frame how its
    /// code may run, which is not at all unless it is watched for stores; `with_both` asks for the page of the fault to be
    /// writable and executable. Returns whether the access will now succeed.
    ///
    /// # Errors
    /// The host's; the space is of no use then.
    pub fn map_around(
        &mut self,
        machine: &Machine,
        va: u64,
        access: Access,
        with_both: bool,
        examined: impl Fn(Mfn) -> Examined,
    ) -> io::Result<bool> {
        if self.nr_mappings > MAX_MAPPINGS || self.nr_patched == NR_PATCHED {
            self.forget()?;
        }
        let Some((l1, rights)) = find_l1(machine, self.root, va) else { return Ok(false) };
        let Some(entries) = read_table(machine, l1) else { return Ok(false) };
        let number = va / REGION_BYTES;
        if self.regions.get(&number).is_some_and(|region| (region.l1, region.rights) != (l1, rights)) {
            // The tables changed without a flush so far: the old mappings go with the next one.
            return Ok(false);
        }
        let region = self.regions.entry(number).or_insert_with(|| Region {
            l1,
            rights,
            entries: Box::new([0; ENTRIES]),
            kinds: Box::new([Kind::Absent; ENTRIES]),
        });
        let index = table_index(va, 1);
        let kind_of = |at: usize| {
            let entry = entries[at];
            if with_both && at == index {
                return if region.data_kind(machine, entry) == Kind::Write { Kind::WriteExecute } else { Kind::Absent };
            }
            if access == Access::Execute && region.may_execute(entry) {
                match judge(machine, &examined(pte::mfn(entry)), entry, entries.get(at + 1).copied()) {
                    Verdict::Clean => return Kind::Execute,
                    // A copy is made for the page of the fault only.
                    Verdict::Patched(_) if at == index => return Kind::Execute,
                    _ => {}
                }
            }
            region.data_kind(machine, entry)
        };
        let wanted = kind_of(index);
        let is_enough = match access {
            Access::Read => wanted != Kind::Absent,
            Access::Write => matches!(wanted, Kind::Write | Kind::WriteExecute),
            Access::Execute => matches!(wanted, Kind::Execute | Kind::WriteExecute),
        };
        if !is_enough {
            return Ok(false);
        }
        let mut plan = Plan { start: number * REGION_BYTES, commands: Vec::new() };
        let mut chosen = vec![(index, wanted)];
        let mfn = pte::mfn(entries[index]);
        match examined(mfn).verdict {
            Verdict::Patched(places) if wanted == Kind::Execute => {
                let mut page = [0u8; PAGE_SIZE_BYTES];
                if machine.read(mfn, 0, &mut page).is_err() {
                    return Ok(false);
                }
                for &place in &*places {
                    page[usize::from(place)] = UD2;
                }
                self.runner.put_patched(self.nr_patched, &page);
                plan.commands.push(Command::MapPatched { address: va & !(PAGE_SIZE - 1), slot: self.nr_patched });
                self.nr_patched += 1;
            }
            _ => plan.add(index, entries[index], wanted),
        }
        // Outwards from the fault, until that is calls enough.
        let mut upwards = index + 1..(index + AROUND).min(ENTRIES);
        let mut downwards = (index.saturating_sub(AROUND)..index).rev();
        let sides: [(usize, &mut dyn Iterator<Item = usize>); 2] =
            [(MAX_CALLS / 2, &mut upwards), (MAX_CALLS, &mut downwards)];
        for (limit, side) in sides {
            for at in side {
                if region.kinds[at] != Kind::Absent {
                    continue;
                }
                let kind = kind_of(at);
                if kind == Kind::Absent {
                    continue;
                }
                if plan.commands.len() >= limit && !plan.continues(at, entries[at], kind) {
                    break;
                }
                plan.add(at, entries[at], kind);
                chosen.push((at, kind));
            }
        }
        for (at, kind) in chosen {
            // The runner maps it in the memfd. There is such a frame: `kind_of` looked.
            let _ = machine.expose(pte::mfn(entries[at]));
            region.kinds[at] = kind;
            region.entries[at] = entries[at];
        }
        self.nr_mappings += plan.commands.len();
        self.runner.map(&plan.commands)?;
        Ok(true)
    }
}

/// How the page of `entry` may run, given the entry of the page after it: that may hold the end of its last instruction.
/// Should the guest map another page there later, it is the guest that is misled, if anybody.
fn judge(machine: &Machine, examined: &Examined, entry: u64, next: Option<u64>) -> Verdict {
    let Some(at) = examined.cut_off else { return examined.verdict.clone() };
    let (mut page, mut tail) = ([0u8; PAGE_SIZE_BYTES], [0u8; 4]);
    let is_known = next.is_some_and(|next| {
        next & pte::PRESENT != 0
            && machine.read(pte::mfn(entry), 0, &mut page).is_ok()
            && machine.read(pte::mfn(next), 0, &mut tail).is_ok()
    });
    if is_known && !is_sensitive_across(&page, at, &tail) { examined.verdict.clone() } else { Verdict::Refused }
}

/// Adds a page to unmap, joined to the last call if that is of the same region and ends there.
fn push_unmap(commands: &mut Vec<Command>, first_of_region: usize, page: u64) {
    let joins = commands.len() > first_of_region;
    match commands.last_mut() {
        Some(Command::Unmap { address, len }) if joins && *address + *len == page => *len += PAGE_SIZE,
        _ => commands.push(Command::Unmap { address: page, len: PAGE_SIZE }),
    }
}
