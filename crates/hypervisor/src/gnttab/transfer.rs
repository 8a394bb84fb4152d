//! GNTTABOP_transfer: a frame changes its owner, contents and all. The receiver has said by an entry of its grant table
//! whom it takes one from, and as which number.
//!
//! As on Xen the giver's frame is lost once it was taken, whether the receiver gets it or not.

use std::sync::atomic::{Ordering, fence};

use ring3_abi::grant_table::*;
use ring3_machine::{Machine, Mfn};

use super::entry::Header;
use super::{GrantTable, Status};
use crate::domain::Domain;
use crate::hypervisor::Hypervisor;

/// Times that the receiver may change its entry under our hands before it counts as hostile.
const MAX_TRIES: u32 = 5;

impl GrantTable {
    /// Marks the entry as committed to a transfer from `giver`.
    fn commit_transfer(&self, machine: &Machine, gref: u32, giver: u16) -> Status<()> {
        if gref >= self.nr_entries() {
            return Err(GNTST_general_error);
        }
        let word = self.header_word(machine, gref)?;
        let mut header = Header::of(word.load(Ordering::SeqCst));
        for _ in 0..MAX_TRIES {
            if header.flags != GTF_accept_transfer || header.domid != giver {
                return Err(GNTST_general_error);
            }
            let next = Header { flags: header.flags | GTF_transfer_committed, ..header };
            match word.compare_exchange(header.raw(), next.raw(), Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return Ok(()),
                Err(now) => header = Header::of(now),
            }
        }
        Err(GNTST_general_error)
    }

    /// The number that the receiver wants the frame to have.
    fn wanted_pfn(&self, machine: &Machine, gref: u32) -> Status<u64> {
        let (frame, offset) = self.place(gref).ok_or(GNTST_bad_gntref)?;
        let read = |size: usize, at: usize| {
            let mut raw = [0u8; 8];
            let part = raw.get_mut(..size).ok_or(GNTST_bad_gntref)?;
            machine.read(frame, offset + at, part).map_err(|_| GNTST_bad_gntref)?;
            Ok(u64::from_le_bytes(raw))
        };
        if self.version == 1 { read(4, 4) } else { read(8, 8) }
    }

    /// Tells the receiver which frame it is, and that it is there.
    fn complete_transfer(&self, machine: &Machine, gref: u32, mfn: Mfn) {
        let Some((frame, offset)) = self.place(gref) else { return };
        let raw = mfn.0.to_le_bytes();
        let (at, raw) = if self.version == 1 { (4, raw.get(..4)) } else { (8, raw.get(..)) };
        let _ = machine.write(frame, offset + at, raw.unwrap_or_default());
        // The frame before the mark.
        fence(Ordering::SeqCst);
        if let Ok(word) = self.header_word(machine, gref) {
            word.fetch_or(u32::from(GTF_transfer_completed), Ordering::SeqCst);
        }
    }
}

/// One transfer by domain `giver`.
pub(crate) fn transfer_one(hv: &Hypervisor, giver: &Domain, op: &gnttab_transfer) -> Status<()> {
    let mfn = Mfn(op.mfn);
    giver.mm.steal(mfn).map_err(|_| GNTST_bad_page)?;
    let result = give(hv, giver, mfn, op);
    if result.is_err() {
        giver.mm.drop_stolen(mfn);
    }
    result
}

fn give(hv: &Hypervisor, giver: &Domain, mfn: Mfn, op: &gnttab_transfer) -> Status<()> {
    let machine = &hv.memory.machine;
    let receiver = hv.domain(op.domid).ok_or(GNTST_bad_domain)?;
    // Domain 0's processes have no frames of their own.
    if receiver.is_dying.load(Ordering::SeqCst) || receiver.domid == 0 {
        return Err(GNTST_general_error);
    }
    // Before the entry is committed: a guest may spin until what was committed is complete.
    if receiver.mm.nr_pages() >= receiver.mm.max_pages() && receiver.domid != giver.domid {
        return Err(GNTST_general_error);
    }
    let table = receiver.gnttab.lock();
    // A frame that version 1 cannot say is copied by Xen to one that it can; here all of them can be said.
    table.commit_transfer(machine, op.r#ref, giver.domid)?;
    let pfn = table.wanted_pfn(machine, op.r#ref)?;
    giver.mm.transfer(mfn, receiver.domid, pfn).map_err(|_| GNTST_general_error)?;
    table.complete_transfer(machine, op.r#ref, mfn);
    Ok(())
}
