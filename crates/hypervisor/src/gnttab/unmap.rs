//! GNTTABOP_unmap_grant_ref and GNTTABOP_unmap_and_replace, and what happens to the mappings of who goes away.
//!
//! Three steps, so that a batch shares one flush: page-table entries go, TLBs are flushed, and only then are the pins
//! dropped by which the granter sees its grant in use.

use ring3_abi::grant_table::*;
use ring3_engine::Requests;
use ring3_machine::Mfn;

use super::Status;
use super::map::{Mapper, is_written_behind};
use super::maptrack::Mapping;
use crate::domain::Domain;
use crate::hypervisor::Hypervisor;

/// What is to be unmapped.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct UnmapRequest {
    pub host_addr: u64,
    pub dev_bus_addr: u64,
    /// Linear address whose entry takes the place of the mapping; 0: none.
    pub new_addr: u64,
    pub handle: u32,
}

/// Entries that are gone; the pins wait for the flush.
#[derive(Debug)]
pub(crate) struct Unmapped {
    handle: u32,
    mapping: Mapping,
    /// GNTMAP_host_map, GNTMAP_device_map, with GNTMAP_readonly.
    done: u32,
    is_last: bool,
}

impl Mapper<'_> {
    /// First step. `Ok(None)`: there was nothing to do, which is no error.
    pub fn unmap(&self, op: &UnmapRequest) -> Status<Option<Unmapped>> {
        let mut maptrack = self.domain.maptrack.lock();
        let mapping =
            maptrack.get_mut(op.handle, self.holder).filter(|mapping| mapping.flags != 0).ok_or(GNTST_bad_handle)?;
        let mut done = 0;
        if op.dev_bus_addr != 0 && mapping.flags & GNTMAP_device_map != 0 {
            if op.dev_bus_addr != mapping.mfn.address() {
                return Err(GNTST_bad_dev_addr);
            }
            done |= GNTMAP_device_map;
        }
        if op.host_addr != 0 && mapping.flags & GNTMAP_host_map != 0 {
            self.replace_host_mapping(op, mapping.mfn, mapping.flags)?;
            done |= GNTMAP_host_map;
        }
        if done == 0 {
            return Ok(None);
        }
        let copy = mapping.clone();
        mapping.flags &= !done;
        let is_last = mapping.flags & (GNTMAP_host_map | GNTMAP_device_map) == 0;
        if is_last {
            // Nobody can use the handle; it is free for others after the flush.
            mapping.flags = 0;
        }
        Ok(Some(Unmapped { handle: op.handle, done: done | copy.flags & GNTMAP_readonly, mapping: copy, is_last }))
    }

    fn replace_host_mapping(&self, op: &UnmapRequest, mfn: Mfn, flags: u32) -> Status<()> {
        let mm = &self.domain.mm;
        let refused = |_| GNTST_general_error;
        // An entry named by its machine address can only be cleared.
        if op.new_addr != 0 && flags & GNTMAP_contains_pte != 0 {
            return Err(GNTST_general_error);
        }
        let slot = self.slot(op.host_addr, flags)?;
        let new = if op.new_addr == 0 { 0 } else { mm.steal_entry(self.slot(op.new_addr, 0)?).map_err(refused)? };
        let result = mm.replace_granted(slot, mfn, flags & GNTMAP_readonly == 0, new);
        if result.is_err() {
            mm.drop_entry(new);
        }
        result.map_err(refused)
    }

    /// Second and third step.
    pub fn complete_unmaps(&self, unmapped: Vec<Unmapped>) {
        if unmapped.iter().any(|one| one.done & GNTMAP_host_map != 0) {
            self.hv.flush_tlbs(self.domain);
        }
        for one in unmapped {
            self.hv.release_mapping(&one.mapping, one.done);
            if one.is_last {
                self.domain.maptrack.lock().remove(one.handle);
            }
        }
    }
}

impl Hypervisor {
    /// Returns when no vCPU of the domain can use a translation made before. The caller's own flushes before it enters
    /// the guest again.
    pub(crate) fn flush_tlbs(&self, domain: &Domain) {
        domain.vcpus.iter().for_each(|vcpu| vcpu.control.request(Requests::FLUSH_TLB));
        let in_guest = domain.vcpus.iter().filter(|vcpu| vcpu.control.is_in_guest());
        in_guest.for_each(|vcpu| vcpu.control.request_and_wait(Requests::FLUSH_TLB));
    }

    /// Drops the pins of a mapping, and the references that they hold.
    fn release_mapping(&self, mapping: &Mapping, flags: u32) {
        if is_written_behind(mapping.holder, flags) {
            self.memory.machine.code().remove_writer(mapping.mfn);
        }
        match mapping.granter.upgrade() {
            Some(granter) => {
                granter.gnttab.lock().unpin_mapping(&self.frames, mapping.gref, mapping.mfn, flags);
            }
            // The granter is gone, and its table with it; the frame is nobody's until we let go.
            None => (0..(flags & (GNTMAP_host_map | GNTMAP_device_map)).count_ones())
                .for_each(|_| self.frames.put_granted(mapping.mfn, flags)),
        }
    }

    /// Drops all mappings of a domain that is being destroyed (holder 0; its vCPUs no longer run), or of a dom0
    /// process that is gone.
    pub(crate) fn release_mappings(&self, domain: &Domain, holder: u32) {
        let mappings = domain.maptrack.lock().take_all(holder);
        mappings.iter().for_each(|mapping| self.release_mapping(mapping, mapping.flags));
    }
}
