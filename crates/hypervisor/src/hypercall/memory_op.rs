//! memory_op: reservations and the machine-to-phys table. What is not here goes to the cold handler, if there is one.

use ring3_abi::errno;
use ring3_abi::hypercall::__HYPERVISOR_memory_op;
use ring3_abi::memory::*;
use ring3_machine::Mfn;

use super::{Args, Caller, HypercallResult};
use crate::mm::DomainMm;

/// Bits of the command; above them the first extent of a continued call.
const MEMOP_EXTENT_SHIFT: u32 = 6;
const CHUNK: usize = 512;
/// Most bytes of an E820 table: 128 entries of 20 bytes.
const MAX_MEMORY_MAP_ENTRIES: u32 = 128;
const E820_ENTRY_BYTES: u32 = 20;
/// Most extents of one call of a guest, so that a call does not hold the pCPU for long; it makes more calls.
const MAX_GUEST_EXTENTS: u64 = 1 << 16;

impl Caller<'_> {
    /// memory_op.
    pub(super) fn memory_op(&self, command: u64, arg: u64, args: &Args) -> HypercallResult {
        let cmd = (command & ((1 << MEMOP_EXTENT_SHIFT) - 1)) as u32;
        let start = (command >> MEMOP_EXTENT_SHIFT) & 0x03ff_ffff_ffff_ffff;
        self.hv.table.count(__HYPERVISOR_memory_op, cmd);
        match cmd {
            XENMEM_populate_physmap | XENMEM_increase_reservation => self.populate(cmd, arg, start),
            XENMEM_decrease_reservation => self.decrease(arg, start),
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
            XENMEM_machphys_mfn_list if self.domain.is_privileged => self.machphys_mfn_list(arg),
            XENMEM_machphys_mfn_list => Err(errno::EPERM),
            XENMEM_memory_map => self.memory_map(arg),
            XENMEM_set_memory_map => self.set_memory_map(arg),
            _ => self.cold(__HYPERVISOR_memory_op, args),
        }
    }

    fn reservation(&self, arg: u64, start: u64) -> Result<(xen_memory_reservation, u64), i64> {
        let reservation: xen_memory_reservation = self.read(arg)?;
        if start > reservation.nr_extents {
            return Err(errno::EINVAL);
        }
        let limit = if self.domain.is_privileged { u64::MAX } else { start.saturating_add(MAX_GUEST_EXTENTS) };
        Ok((reservation, reservation.nr_extents.min(limit)))
    }

    /// Returns the number of extents done, `start` included, as Xen does.
    fn populate(&self, cmd: u32, arg: u64, start: u64) -> HypercallResult {
        let (reservation, end) = self.reservation(arg, start)?;
        let domain = self.target(reservation.domid)?;
        let done = |n: u64| i64::try_from(n).map_err(|_| errno::EINVAL);
        // Single frames only: machine memory is handed out frame by frame.
        if reservation.extent_order != 0 {
            return done(start);
        }
        let mut at = start;
        let mut pfns = [u64::MAX; CHUNK];
        let mut mfns: Vec<Mfn> = Vec::with_capacity(CHUNK);
        while at < end {
            let len = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            let chunk = pfns.get_mut(..len).ok_or(errno::EINVAL)?;
            let handle = Self::element::<u64>(reservation.extent_start, at);
            if cmd == XENMEM_populate_physmap && self.read_bytes(handle, bytemuck::cast_slice_mut(chunk)).is_err() {
                return done(at);
            }
            mfns.clear();
            let nr = domain.mm.populate(chunk, &mut mfns);
            for (slot, mfn) in chunk.iter_mut().zip(&mfns) {
                *slot = mfn.0;
            }
            let got = chunk.get(..nr).unwrap_or_default();
            if reservation.extent_start != 0 && self.write_bytes(handle, bytemuck::cast_slice(got)).is_err() {
                return done(at);
            }
            at += nr as u64;
            if nr < len {
                break;
            }
        }
        done(at)
    }

    fn decrease(&self, arg: u64, start: u64) -> HypercallResult {
        let (reservation, end) = self.reservation(arg, start)?;
        let domain = self.target(reservation.domid)?;
        let mut at = start;
        if reservation.extent_order != 0 {
            return i64::try_from(at).map_err(|_| errno::EINVAL);
        }
        let mut raw = [0u64; CHUNK];
        while at < end {
            let len = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            let chunk = raw.get_mut(..len).ok_or(errno::EINVAL)?;
            let handle = Self::element::<u64>(reservation.extent_start, at);
            if self.read_bytes(handle, bytemuck::cast_slice_mut(chunk)).is_err() {
                break;
            }
            let mfns: Vec<Mfn> = chunk.iter().map(|&mfn| Mfn(mfn)).collect();
            let nr = domain.mm.decrease_reservation(&mfns);
            at += nr as u64;
            if nr < len {
                break;
            }
        }
        i64::try_from(at).map_err(|_| errno::EINVAL)
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
        let domain = self.target(set.domid)?;
        if !self.domain.is_privileged {
            return Err(errno::EPERM);
        }
        if set.map.nr_entries > MAX_MEMORY_MAP_ENTRIES {
            return Err(errno::EINVAL);
        }
        let mut table = vec![0u8; (set.map.nr_entries * E820_ENTRY_BYTES) as usize];
        self.read_bytes(set.map.buffer, &mut table)?;
        *domain.memory_map.lock() = table;
        Ok(0)
    }
}
