//! GNTTABOP_copy: the hypervisor copies between frames of the caller and frames that were granted to it.
//!
//! Consecutive copies of one call that name the same source or target claim it once.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ring3_abi::grant_table::*;
use ring3_abi::xen::DOMID_SELF;
use ring3_machine::Mfn;

use super::{Active, GrantTable, Pins, Status};
use crate::domain::Domain;
use crate::hypervisor::Hypervisor;
use crate::mm::{FrameTable, PageType};

const PAGE: u32 = 4096;

/// A claimed frame, with references to it, and a pin if it was granted.
struct Claim {
    domain: Arc<Domain>,
    ptr: gnttab_copy_ptr,
    is_gref: bool,
    is_write: bool,
    mfn: Mfn,
    /// The part that may be copied.
    start: u32,
    length: u32,
}

/// What the last copy claimed.
#[derive(Default)]
pub(crate) struct CopyBuffers {
    source: Option<Claim>,
    dest: Option<Claim>,
}

impl GrantTable {
    /// Pins a grant for a copy; returns its frame, and the part of it. Takes no references.
    fn pin_for_copy(
        &mut self,
        frames: &FrameTable,
        granter: u16,
        grantee: u16,
        gref: u32,
        is_write: bool,
    ) -> Status<(Mfn, u32, u32)> {
        let machine = frames.machine();
        if gref >= self.nr_entries() {
            return Err(GNTST_bad_gntref);
        }
        let before = self.active.get(&gref).copied();
        if before.is_some_and(|active| active.grantee != grantee || active.pins.is_full(Claim::pin_flags(is_write))) {
            return Err(GNTST_general_error);
        }
        // As Xen started with gnttab=no-transitive.
        if self.is_transitive(machine, gref) {
            return Err(GNTST_general_error);
        }
        let is_new_use = before.is_none_or(|active| is_write && !active.pins.has_writes());
        if is_new_use {
            self.set_status(machine, gref, grantee, !is_write, false, before.is_some())?;
        }
        let active = match before {
            Some(active) => Ok(active),
            None => self.granted(machine, gref).and_then(|granted| {
                // The frame must be the granter's; the caller takes references that last.
                frames.get_page(granted.mfn, granter).map_err(|_| GNTST_bad_page)?;
                frames.put_page(granted.mfn);
                Ok(Active {
                    grantee,
                    mfn: granted.mfn,
                    start: granted.start,
                    length: granted.length,
                    is_sub_page: granted.is_sub_page,
                    pins: Pins::default(),
                })
            }),
        };
        match active {
            Ok(active) => {
                let entry = self.active.entry(gref).or_insert(active);
                entry.pins.counts(Claim::pin_flags(is_write)).for_each(|count| *count += 1);
                Ok((active.mfn, active.start, active.length))
            }
            Err(status) => {
                self.settle(machine, gref, !is_write);
                Err(status)
            }
        }
    }
}

impl Claim {
    /// A copy counts as a host mapping.
    const fn pin_flags(is_write: bool) -> u32 {
        GNTMAP_host_map | if is_write { 0 } else { GNTMAP_readonly }
    }

    fn new(hv: &Hypervisor, caller: u16, ptr: &gnttab_copy_ptr, is_gref: bool, is_write: bool) -> Status<Self> {
        // Only one's own frames can be named by number.
        if ptr.domid != DOMID_SELF && !is_gref {
            return Err(GNTST_permission_denied);
        }
        let domid = if ptr.domid == DOMID_SELF { caller } else { ptr.domid };
        let domain = hv.domain(domid).filter(|domain| !domain.is_dying.load(Ordering::SeqCst));
        let domain = domain.ok_or(GNTST_bad_domain)?;
        let frames = &hv.frames;
        let (mfn, start, length) = if is_gref {
            let gref = (ptr.u & 0xffff_ffff) as u32;
            domain.gnttab.lock().pin_for_copy(frames, domid, caller, gref, is_write)?
        } else {
            (Mfn(ptr.u), 0, PAGE)
        };
        let taken = if is_write {
            frames.get_page_and_type(mfn, domid, PageType::Writable)
        } else {
            frames.get_page(mfn, domid)
        };
        if taken.is_err() {
            if is_gref {
                let gref = (ptr.u & 0xffff_ffff) as u32;
                domain.gnttab.lock().unpin(frames.machine(), gref, Self::pin_flags(is_write));
            }
            // A frame that is there but cannot be written is another error than one that is not the domain's.
            let is_there = is_write && frames.get_page(mfn, domid).map(|()| frames.put_page(mfn)).is_ok();
            return Err(if is_there { GNTST_general_error } else { GNTST_bad_page });
        }
        Ok(Self { domain, ptr: *ptr, is_gref, is_write, mfn, start, length })
    }

    fn is_same(&self, ptr: &gnttab_copy_ptr, is_gref: bool) -> bool {
        let mask = if is_gref { 0xffff_ffff } else { u64::MAX };
        self.is_gref == is_gref && self.ptr.domid == ptr.domid && self.ptr.u & mask == ptr.u & mask
    }

    fn covers(&self, offset: u32, len: u32) -> bool {
        offset >= self.start && offset + len <= self.start + self.length
    }

    fn release(self, hv: &Hypervisor) {
        if self.is_write {
            hv.frames.put_page_and_type(self.mfn, PageType::Writable);
        } else {
            hv.frames.put_page(self.mfn);
        }
        if self.is_gref {
            let gref = (self.ptr.u & 0xffff_ffff) as u32;
            self.domain.gnttab.lock().unpin(hv.frames.machine(), gref, Self::pin_flags(self.is_write));
        }
    }
}

impl CopyBuffers {
    /// Lets go of what is claimed. To be called at the end of the batch, and after a failure.
    pub fn release(&mut self, hv: &Hypervisor) {
        for claim in [self.source.take(), self.dest.take()].into_iter().flatten() {
            claim.release(hv);
        }
    }
}

fn claim(
    hv: &Hypervisor,
    caller: u16,
    slot: &mut Option<Claim>,
    ptr: &gnttab_copy_ptr,
    is_gref: bool,
    is_write: bool,
) -> Status<()> {
    if slot.as_ref().is_some_and(|claim| claim.is_same(ptr, is_gref)) {
        return Ok(());
    }
    if let Some(old) = slot.take() {
        old.release(hv);
    }
    *slot = Some(Claim::new(hv, caller, ptr, is_gref, is_write)?);
    Ok(())
}

/// One copy for domain `caller`.
pub(crate) fn copy_one(hv: &Hypervisor, caller: u16, op: &gnttab_copy, buffers: &mut CopyBuffers) -> Status<()> {
    claim(hv, caller, &mut buffers.source, &op.source, op.flags & GNTCOPY_source_gref != 0, false)?;
    claim(hv, caller, &mut buffers.dest, &op.dest, op.flags & GNTCOPY_dest_gref != 0, true)?;
    let (Some(source), Some(dest)) = (&buffers.source, &buffers.dest) else { return Err(GNTST_general_error) };
    let (from, to, len) = (u32::from(op.source.offset), u32::from(op.dest.offset), u32::from(op.len));
    if from + len > PAGE || to + len > PAGE {
        return Err(GNTST_bad_copy_arg);
    }
    if !source.covers(from, len) || !dest.covers(to, len) {
        return Err(GNTST_general_error);
    }
    let machine = &hv.memory.machine;
    machine
        .copy((source.mfn, from as usize), (dest.mfn, to as usize), len as usize)
        .map_err(|_| GNTST_general_error)?;
    if machine.code().has_code_now(dest.mfn) {
        hv.memory.engine.invalidate_code(dest.mfn);
    }
    Ok(())
}
