//! memory_op: what there is to know of memory; reservations are in `reservation`. What is not here goes to the cold
//! handler, if there is one.

use ring3_abi::errno;
use ring3_abi::hypercall::__HYPERVISOR_memory_op;
use ring3_abi::memory::*;

use super::reservation::Extents;
use super::{Args, Caller, HypercallResult, Served, Wanted, should_preempt};
use crate::mm::DomainMm;
use crate::vcpu::bounce::Running;

/// Bits of the command; above them the first extent of a continued call.
const MEMOP_EXTENT_SHIFT: u32 = 6;
const MEMOP_CMD_MASK: u64 = (1 << MEMOP_EXTENT_SHIFT) - 1;
/// Most entries of an E820 table, of 20 bytes each.
const MAX_MEMORY_MAP_ENTRIES: u32 = 1024;
const E820_ENTRY_BYTES: u32 = 20;

/// What a first extent means for a command that has none. Those of the architecture do not know themselves with one.
/// Source: a real Xen's answers.
fn refusal_of_start(cmd: u32) -> Option<i64> {
    match cmd {
        XENMEM_increase_reservation
        | XENMEM_decrease_reservation
        | XENMEM_populate_physmap
        | XENMEM_add_to_physmap
        | XENMEM_add_to_physmap_batch
        | XENMEM_access_op
        | XENMEM_acquire_resource => None,
        XENMEM_maximum_ram_page
        | XENMEM_current_reservation
        | XENMEM_maximum_reservation
        | XENMEM_exchange
        | XENMEM_maximum_gpfn
        | XENMEM_remove_from_physmap
        | XENMEM_claim_pages
        | XENMEM_get_vnumainfo
        | XENMEM_reserved_device_memory_map => Some(errno::EINVAL),
        _ => Some(errno::ENOSYS),
    }
}

impl Running<'_> {
    /// memory_op.
    pub(super) fn memory_op(&mut self, command: u64, arg: u64, args: &Args) -> Served {
        // Cold handlers are not ours.
        self.state.cpu.park();
        let caller = Caller::of_guest(self);
        caller.memory_op(command, arg, args, &|| should_preempt(self))
    }
}

impl Caller<'_> {
    /// memory_op.
    pub(super) fn memory_op(&self, command: u64, arg: u64, args: &Args, is_wanted: Wanted<'_>) -> Served {
        let cmd = (command & MEMOP_CMD_MASK) as u32;
        self.hv.table.count(__HYPERVISOR_memory_op, cmd);
        let start = command >> MEMOP_EXTENT_SHIFT;
        if start != 0
            && let Some(errno) = refusal_of_start(cmd)
        {
            return Served::Done(-errno);
        }
        match cmd {
            XENMEM_increase_reservation | XENMEM_decrease_reservation | XENMEM_populate_physmap => {
                match self.change_reservation(cmd, arg, start, is_wanted) {
                    Ok(Extents::Done(nr)) => Served::Done(nr as i64),
                    Ok(Extents::Until(nr)) => Served::Again([u64::from(cmd) | nr << MEMOP_EXTENT_SHIFT, arg, 0, 0]),
                    Err(errno) => Served::Done(-errno),
                }
            }
            XENMEM_exchange => match self.exchange(arg, is_wanted) {
                Ok(Extents::Done(_)) => Served::Done(0),
                Ok(Extents::Until(_)) => Served::Again([command, arg, 0, 0]),
                Err(errno) => Served::Done(-errno),
            },
            _ => self.memory_query(cmd, arg, args).into(),
        }
    }

    fn memory_query(&self, cmd: u32, arg: u64, args: &Args) -> HypercallResult {
        match cmd {
            XENMEM_current_reservation | XENMEM_maximum_reservation | XENMEM_maximum_gpfn => {
                let domain = self.target(self.read::<xen_memory_domain>(arg)?.domid)?;
                let value = match cmd {
                    XENMEM_current_reservation => domain.mm.nr_pages(),
                    XENMEM_maximum_reservation => domain.mm.max_pages(),
                    _ => {
                        // shared_info.arch.max_pfn, as the guest set it.
                        let max_pfn = self.hv.memory.machine.entry(domain.shared_info, 0xc10 / 8).unwrap_or(0);
                        max_pfn.saturating_sub(1)
                    }
                };
                i64::try_from(value).map_err(|_| errno::EINVAL)
            }
            XENMEM_maximum_ram_page => Ok(self.hv.memory.machine.nr_frames().saturating_sub(1) as i64),
            XENMEM_machphys_mapping => {
                self.write(arg, &DomainMm::machphys_mapping())?;
                Ok(0)
            }
            XENMEM_machphys_mfn_list => self.machphys_mfn_list(arg),
            XENMEM_memory_map => self.memory_map(arg),
            XENMEM_set_memory_map => self.set_memory_map(arg),
            XENMEM_get_sharing_freed_pages | XENMEM_get_sharing_shared_pages => Ok(0),
            // No domain of 32 bits.
            XENMEM_machphys_compat_mfn_list => Err(errno::EOPNOTSUPP),
            XENMEM_add_to_physmap
            | XENMEM_remove_from_physmap
            | XENMEM_add_to_physmap_batch
            | XENMEM_get_vnumainfo
            | XENMEM_claim_pages
            | XENMEM_set_pod_target
            | XENMEM_get_pod_target
            | XENMEM_access_op
            | XENMEM_acquire_resource
            | XENMEM_reserved_device_memory_map => self.refused_memory_op(cmd, arg),
            XENMEM_machine_memory_map if !self.domain.is_privileged => Err(errno::EPERM),
            _ => self.cold(__HYPERVISOR_memory_op, args),
        }
    }

    /// One MFN for each 2 MiB of the machine-to-phys table.
    fn machphys_mfn_list(&self, arg: u64) -> HypercallResult {
        let mut list: xen_machphys_mfn_list = self.read(arg)?;
        let (first, nr_frames) = self.hv.m2p();
        let nr = u32::try_from(nr_frames.div_ceil(512)).unwrap_or(u32::MAX).min(list.max_extents);
        for index in 0..u64::from(nr) {
            self.write(Self::element::<u64>(list.extent_start, index), &(first.0 + index * 512))?;
        }
        list.nr_extents = nr;
        self.write(arg, &list)?;
        Ok(0)
    }

    /// The map that the toolstack set; without one, -ENOSYS, on which guests take one region of their pages.
    fn memory_map(&self, arg: u64) -> HypercallResult {
        let mut map: xen_memory_map = self.read(arg)?;
        let table = self.domain.memory_map.lock();
        if table.is_empty() {
            return Err(errno::ENOSYS);
        }
        let nr = map.nr_entries.min(u32::try_from(table.len()).unwrap_or(0) / E820_ENTRY_BYTES);
        let len = (nr * E820_ENTRY_BYTES) as usize;
        self.write_bytes(map.buffer, table.get(..len).unwrap_or_default())?;
        map.nr_entries = nr;
        self.write(arg, &map)?;
        Ok(0)
    }

    fn set_memory_map(&self, arg: u64) -> HypercallResult {
        let set: xen_foreign_memory_map = self.read(arg)?;
        if set.map.nr_entries > MAX_MEMORY_MAP_ENTRIES {
            return Err(errno::EINVAL);
        }
        let domain = self.target(set.domid)?;
        let mut table = vec![0u8; (set.map.nr_entries * E820_ENTRY_BYTES) as usize];
        self.read_bytes(set.map.buffer, &mut table)?;
        *domain.memory_map.lock() = table;
        Ok(0)
    }
}
