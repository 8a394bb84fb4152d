//! GNTTABOP_map_grant_ref.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ring3_abi::grant_table::*;
use ring3_engine::pte;
use ring3_machine::Mfn;

use super::maptrack::Mapping;
use super::{Active, GrantTable, Pins, Status};
use crate::domain::Domain;
use crate::hypervisor::Hypervisor;
use crate::mm::{FrameTable, PageType, Slot};

/// Both ways to reach a frame.
const KINDS: u32 = GNTMAP_host_map | GNTMAP_device_map;

/// Who maps.
#[derive(Clone, Copy)]
pub(crate) struct Mapper<'a> {
    pub hv: &'a Hypervisor,
    pub domain: &'a Domain,
    /// Connection of domain 0, or 0 for a guest.
    pub holder: u32,
    /// Page tables in which linear addresses are looked up. A dom0 process has none that we know: it reaches frames
    /// by bus address, that is in the machine's memfd.
    pub root: Option<Mfn>,
}

impl FrameTable {
    /// Takes the references of the mappings of `kinds` (GNTMAP_host_map, GNTMAP_device_map).
    fn get_granted(&self, mfn: Mfn, owner: u16, flags: u32) -> Status<()> {
        for done in 0..(flags & KINDS).count_ones() {
            let result = if flags & GNTMAP_readonly != 0 {
                self.get_page(mfn, owner)
            } else {
                self.get_page_and_type(mfn, owner, PageType::Writable)
            };
            if result.is_err() {
                (0..done).for_each(|_| self.put_granted(mfn, flags & GNTMAP_readonly));
                return Err(GNTST_general_error);
            }
        }
        Ok(())
    }

    /// Drops the references of one mapping.
    pub(super) fn put_granted(&self, mfn: Mfn, flags: u32) {
        if flags & GNTMAP_readonly != 0 {
            self.put_page(mfn);
        } else {
            self.put_page_and_type(mfn, PageType::Writable);
        }
    }
}

impl GrantTable {
    /// Pins a grant for mappings by `grantee`, and takes references to its frame, which it returns.
    fn pin(&mut self, frames: &FrameTable, granter: u16, grantee: u16, gref: u32, flags: u32) -> Status<Mfn> {
        let machine = frames.machine();
        if gref >= self.nr_entries() {
            return Err(GNTST_bad_gntref);
        }
        let is_readonly = flags & GNTMAP_readonly != 0;
        let before = self.active.get(&gref).copied();
        if before.is_some_and(|a| a.grantee != grantee || a.pins.is_full(flags) || a.is_sub_page) {
            return Err(GNTST_general_error);
        }
        if before.is_none_or(|active| !is_readonly && !active.pins.has_writes()) {
            self.set_status(machine, gref, grantee, is_readonly, true, before.is_some())?;
        }
        let result = (|| {
            let mfn = match before {
                Some(active) => active.mfn,
                None => {
                    let mfn = self.granted(machine, gref)?.mfn;
                    // Only to tell the errors apart: a frame that is not the granter's, or one that cannot be written.
                    frames.get_page(mfn, granter).map_err(|_| GNTST_bad_page)?;
                    frames.put_page(mfn);
                    mfn
                }
            };
            frames.get_granted(mfn, granter, flags)?;
            Ok(mfn)
        })();
        match result {
            Ok(mfn) => {
                let new = Active { grantee, mfn, start: 0, length: 4096, is_sub_page: false, pins: Pins::default() };
                self.active.entry(gref).or_insert(new).pins.counts(flags).for_each(|count| *count += 1);
            }
            Err(_) => self.settle(machine, gref, is_readonly),
        }
        result
    }

    /// Undoes [`GrantTable::pin`].
    pub(super) fn unpin_mapping(&mut self, frames: &FrameTable, gref: u32, mfn: Mfn, flags: u32) {
        (0..(flags & KINDS).count_ones()).for_each(|_| frames.put_granted(mfn, flags));
        self.unpin(frames.machine(), gref, flags);
    }
}

impl Mapper<'_> {
    /// Maps a grant; the handle and the machine address of the frame.
    pub fn map(&self, op: &gnttab_map_grant_ref) -> Status<(u32, u64)> {
        if op.flags & KINDS == 0 {
            return Err(GNTST_bad_gntref);
        }
        let granter =
            self.hv.domain(op.dom).filter(|domain| !domain.is_dying.load(Ordering::SeqCst)).ok_or(GNTST_bad_domain)?;
        let mut maptrack = self.domain.maptrack.lock();
        if !maptrack.has_room() {
            return Err(GNTST_no_space);
        }
        let frames = &self.hv.frames;
        let mfn = granter.gnttab.lock().pin(frames, granter.domid, self.domain.domid, op.r#ref, op.flags)?;
        if op.flags & GNTMAP_host_map != 0
            && let Err(status) = self.create_host_mapping(granter.domid, mfn, op)
        {
            granter.gnttab.lock().unpin_mapping(frames, op.r#ref, mfn, op.flags);
            return Err(status);
        }
        let handle = maptrack.insert(Mapping {
            granter: Arc::downgrade(&granter),
            gref: op.r#ref,
            mfn,
            flags: op.flags,
            holder: self.holder,
        });
        drop(maptrack);
        if self.holder != 0 {
            let _ = self.hv.memory.machine.expose(mfn); // there is such a frame
        }
        if is_written_behind(self.holder, op.flags) {
            // A process of domain 0 writes without telling: no code is kept of the frame until it unmaps it.
            self.hv.add_writer(mfn);
        }
        Ok((handle, mfn.address()))
    }

    /// Where the page-table entry for a host mapping is: at a machine address, or where it maps a linear address.
    pub(super) fn slot(&self, host_addr: u64, flags: u32) -> Status<Slot> {
        if flags & GNTMAP_contains_pte != 0 {
            return if host_addr.is_multiple_of(8) { Ok(Slot::at(host_addr)) } else { Err(GNTST_general_error) };
        }
        let root = self.root.ok_or(GNTST_general_error)?;
        self.domain.mm.l1_slot(root, host_addr).ok_or(GNTST_general_error)
    }

    fn create_host_mapping(&self, granter: u16, mfn: Mfn, op: &gnttab_map_grant_ref) -> Status<()> {
        if self.holder != 0 {
            return Err(GNTST_general_error);
        }
        let slot = self.slot(op.host_addr, op.flags)?;
        let mut entry = mfn.address() | pte::PRESENT | pte::ACCESSED | pte::DIRTY | available_bits(op.flags);
        if op.flags & GNTMAP_readonly == 0 {
            entry |= pte::RW;
        }
        if op.flags & GNTMAP_application_map != 0 {
            entry |= pte::USER;
        }
        self.domain.mm.update_l1(slot, entry, granter).map_err(|_| GNTST_general_error)
    }
}

/// Whether who maps so writes to the frame past the engine: processes of domain 0 do, by bus address.
pub(super) fn is_written_behind(holder: u32, flags: u32) -> bool {
    holder != 0 && flags & GNTMAP_device_map != 0 && flags & GNTMAP_readonly == 0
}

/// Bits 16 to 29 of the flags go to the 14 available bits of an entry: 9 to 11, then 52 to 62.
fn available_bits(flags: u32) -> u64 {
    let bits = u64::from(flags >> GNTMAP_guest_avail0);
    (bits & 7) << 9 | (bits >> 3 & 0x7ff) << 52
}
