//! memory_op: growing, shrinking and exchanging a domain's reservation, extent by extent; and what only domains that are
//! not paravirtualized, or the toolstack, may ask.

use std::sync::Arc;

use ring3_abi::errno;
use ring3_abi::memory::*;
use ring3_abi::xen::DOMID_SELF;
use ring3_machine::{Mfn, PAGE_SHIFT};

use super::{Caller, Wanted};
use crate::domain::Domain;
use crate::mm::MAX_ORDER;

/// Frames served between looks at whether the pCPU is wanted.
const CHUNK: usize = 512;
/// Greatest order of extents for a domU. Source: Xen's CONFIG_DOMU_MAX_ORDER.
const DOMU_MAX_ORDER: u32 = 9;
/// More extents than this cannot be said in a continued command.
const MAX_EXTENTS: u64 = u64::MAX >> 6;

/// How far a call came.
pub(super) enum Extents {
    Done(u64),
    Until(u64),
}

impl Caller<'_> {
    fn max_order(&self) -> u32 {
        if self.domain.is_privileged { MAX_ORDER } else { DOMU_MAX_ORDER }
    }

    /// Whether frames with few enough address bits can be had: only if all of the machine's have.
    fn has_address_bits(&self, mem_flags: u32) -> bool {
        let bits = mem_flags & XENMEMF_ADDRESS_BITS_MASK;
        bits == 0 || bits >= 64 || self.hv.memory.machine.nr_frames() <= (1u64 << bits) >> PAGE_SHIFT
    }

    /// The domain that a reservation is of.
    ///
    /// # Errors
    /// `Ok(None)` if there is none: Xen then reports that nothing was done. EPERM.
    fn reservation_target(&self, domid: u16) -> Result<Option<Arc<Domain>>, i64> {
        match self.target(domid) {
            Ok(domain) => Ok(Some(domain)),
            Err(errno::ESRCH) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// increase_reservation, decrease_reservation, populate_physmap: how many extents are done, `start` included. Nothing
    /// else says what went wrong.
    pub(super) fn change_reservation(
        &self,
        cmd: u32,
        arg: u64,
        start: u64,
        is_wanted: Wanted<'_>,
    ) -> Result<Extents, i64> {
        let none = Ok(Extents::Done(start));
        let Ok(reservation) = self.read::<xen_memory_reservation>(arg) else { return none };
        if reservation.nr_extents > MAX_EXTENTS || start >= reservation.nr_extents {
            return none;
        }
        let Some(domain) = self.reservation_target(reservation.domid)? else { return none };
        let is_listed = cmd != XENMEM_increase_reservation || reservation.extent_start != 0;
        let is_possible = !is_listed || self.check_array(reservation.extent_start, reservation.nr_extents, 8).is_ok();
        if !is_possible
            || reservation.extent_order > self.max_order()
            || cmd != XENMEM_decrease_reservation && !self.has_address_bits(reservation.mem_flags)
        {
            return none;
        }
        let mut done = start;
        while done < reservation.nr_extents {
            if done != start && is_wanted() {
                return Ok(Extents::Until(done));
            }
            let chunk = (CHUNK >> reservation.extent_order.min(usize::BITS - 1)).max(1);
            let len = usize::try_from(reservation.nr_extents - done).unwrap_or(chunk).min(chunk);
            let handle = Self::element::<u64>(reservation.extent_start, done);
            let nr = match (cmd, reservation.extent_order) {
                (XENMEM_decrease_reservation, order) => self.decrease(&domain, handle, len, order),
                (_, 0) => self.populate_frames(&domain, cmd, handle, len, is_listed),
                (_, order) => self.populate_extents(&domain, cmd, handle, len, order, is_listed),
            };
            done += nr as u64;
            if nr < len {
                break;
            }
        }
        Ok(Extents::Done(done))
    }

    fn populate_frames(&self, domain: &Domain, cmd: u32, handle: u64, len: usize, is_listed: bool) -> usize {
        let mut pfns = [u64::MAX; CHUNK];
        let Some(chunk) = pfns.get_mut(..len) else { return 0 };
        let nr_listed = if cmd == XENMEM_populate_physmap { self.read_words(handle, chunk) } else { len };
        let chunk = chunk.get_mut(..nr_listed).unwrap_or_default();
        let mut mfns: Vec<Mfn> = Vec::with_capacity(len);
        let nr = domain.mm.populate(chunk, &mut mfns);
        for (slot, mfn) in chunk.iter_mut().zip(&mfns) {
            *slot = mfn.0;
        }
        let got = chunk.get(..nr).unwrap_or_default();
        // Frames whose numbers cannot be told are the domain's, but do not count.
        if is_listed { self.write_words(handle, got) } else { nr }
    }

    fn populate_extents(
        &self,
        domain: &Domain,
        cmd: u32,
        handle: u64,
        len: usize,
        order: u32,
        is_listed: bool,
    ) -> usize {
        let one = |index: usize| -> Result<(), i64> {
            let at = Self::element::<u64>(handle, index as u64);
            let pfn = if cmd == XENMEM_populate_physmap { Some(self.read::<u64>(at)?) } else { None };
            let mfn = domain.mm.populate_extent(order, pfn).map_err(|e| -e.errno())?;
            if is_listed { self.write(at, &mfn.0) } else { Ok(()) }
        };
        (0..len).take_while(|&index| one(index).is_ok()).count()
    }

    fn decrease(&self, domain: &Domain, handle: u64, len: usize, order: u32) -> usize {
        let mut raw = [0u64; CHUNK];
        let Some(chunk) = raw.get_mut(..len) else { return 0 };
        let nr_listed = self.read_words(handle, chunk);
        let chunk = chunk.get(..nr_listed).unwrap_or_default();
        if order == 0 {
            let mfns: Vec<Mfn> = chunk.iter().map(|&mfn| Mfn(mfn)).collect();
            return domain.mm.decrease_reservation(&mfns);
        }
        let nr_frames = 1usize << order;
        let is_gone = |first: u64| {
            let frames: Vec<Mfn> = (0..nr_frames as u64).map(|index| Mfn(first.wrapping_add(index))).collect();
            domain.mm.decrease_reservation(&frames) == nr_frames
        };
        chunk.iter().take_while(|&&first| is_gone(first)).count()
    }

    /// exchange: frames for others, in extents of another order perhaps. How far it came is in the argument.
    pub(super) fn exchange(&self, arg: u64, is_wanted: Wanted<'_>) -> Result<Extents, i64> {
        let mut exchange: xen_memory_exchange = self.read(arg)?;
        let (from, to) = (exchange.r#in, exchange.out);
        if from.extent_order.max(to.extent_order) > self.max_order() {
            return Err(errno::EPERM);
        }
        let frames = |list: &xen_memory_reservation| list.nr_extents.checked_mul(1 << list.extent_order);
        let nr_frames = frames(&from).filter(|_| from.domid == to.domid && frames(&from) == frames(&to));
        if exchange.nr_exchanged > from.nr_extents || nr_frames.is_none() {
            return Err(errno::EINVAL);
        }
        self.check_array(from.extent_start, from.nr_extents, 8)?;
        self.check_array(to.extent_start, to.nr_extents, 8)?;
        let domain = self.target(from.domid)?;
        // Domain 0's processes have no frames of their own, and others' are others' business.
        if domain.domid != self.domain.domid {
            return Err(errno::EPERM);
        }
        if !self.has_address_bits(to.mem_flags) {
            return Err(errno::ENOMEM);
        }
        // A chunk is one extent of the greater order, and as many of the smaller.
        let in_chunk = 1u64 << to.extent_order.saturating_sub(from.extent_order);
        let out_chunk = 1u64 << from.extent_order.saturating_sub(to.extent_order);
        let mut chunk = exchange.nr_exchanged / in_chunk;
        let nr_chunks = from.nr_extents / in_chunk;
        let first = chunk;
        let mut result = Ok(());
        while chunk < nr_chunks {
            if chunk != first && is_wanted() {
                break;
            }
            result = self.exchange_chunk(
                &domain,
                &exchange,
                chunk * in_chunk..(chunk + 1) * in_chunk,
                chunk * out_chunk,
                out_chunk,
            );
            if result.is_err() {
                break;
            }
            chunk += 1;
        }
        exchange.nr_exchanged = chunk * in_chunk;
        let at = arg.wrapping_add(std::mem::offset_of!(xen_memory_exchange, nr_exchanged) as u64);
        self.write(at, &exchange.nr_exchanged)?;
        result?;
        Ok(if chunk < nr_chunks { Extents::Until(chunk) } else { Extents::Done(chunk) })
    }

    fn exchange_chunk(
        &self,
        domain: &Domain,
        exchange: &xen_memory_exchange,
        extents: std::ops::Range<u64>,
        first_out: u64,
        nr_out: u64,
    ) -> Result<(), i64> {
        let mut gone = Vec::new();
        for index in extents {
            let first: u64 = self.read(Self::element::<u64>(exchange.r#in.extent_start, index))?;
            gone.extend((0..1u64 << exchange.r#in.extent_order).map(|frame| Mfn(first.wrapping_add(frame))));
        }
        let list = |index: u64| Self::element::<u64>(exchange.out.extent_start, first_out + index);
        let pfns = (0..nr_out).map(|index| self.read::<u64>(list(index))).collect::<Result<Vec<_>, _>>()?;
        let extents = domain.mm.exchange(&gone, exchange.out.extent_order, &pfns).map_err(|e| -e.errno())?;
        for (index, mfn) in (0u64..).zip(extents) {
            self.write(list(index), &mfn.0)?;
        }
        Ok(())
    }

    /// Commands that a paravirtualized domain is refused, and how.
    pub(super) fn refused_memory_op(&self, cmd: u32, arg: u64) -> Result<i64, i64> {
        // Most of these structures start with the domid; none is shorter than this.
        let head: [u16; 8] = self.read(arg)?;
        let domid = match cmd {
            // nr_pages and others come first.
            XENMEM_set_pod_target | XENMEM_get_pod_target => self.read::<u16>(arg.wrapping_add(POD_DOMID))?,
            XENMEM_claim_pages => {
                let claim: xen_memory_reservation = self.read(arg)?;
                if claim.extent_start != 0 || claim.extent_order != 0 || claim.mem_flags != 0 {
                    return Err(errno::EINVAL);
                }
                // DOMID_SELF is no domain here.
                self.hv.domain(claim.domid).ok_or(errno::EINVAL)?;
                claim.domid
            }
            XENMEM_access_op => self.read::<u16>(arg.wrapping_add(2))?,
            XENMEM_reserved_device_memory_map => return self.reserved_device_memory(arg),
            _ => *head.first().ok_or(errno::EFAULT)?,
        };
        let is_own = domid == DOMID_SELF || domid == self.domain.domid;
        match cmd {
            XENMEM_add_to_physmap | XENMEM_remove_from_physmap | XENMEM_add_to_physmap_batch => {
                self.target(domid)?;
                // For domains that have their numbers translated.
                Err(errno::EACCES)
            }
            XENMEM_get_vnumainfo if head[1] != 0 => Err(errno::EINVAL),
            XENMEM_acquire_resource if head[6..8] != [0, 0] => Err(errno::EINVAL),
            XENMEM_get_vnumainfo => {
                self.target(domid)?;
                Err(errno::EOPNOTSUPP)
            }
            // Of other domains only.
            XENMEM_access_op | XENMEM_acquire_resource if is_own => {
                Err(if domid == DOMID_SELF { errno::ESRCH } else { errno::EPERM })
            }
            _ if !is_own && self.hv.domain(domid).is_none() => Err(errno::ESRCH),
            _ if !self.domain.is_privileged => Err(errno::EPERM),
            _ => Err(errno::EINVAL),
        }
    }

    /// There is none.
    fn reserved_device_memory(&self, arg: u64) -> Result<i64, i64> {
        let [flags, nr_entries, low, high]: [u32; 4] = self.read(arg)?;
        self.check_array(u64::from(high) << 32 | u64::from(low), nr_entries.into(), 16)?;
        if flags & !1 != 0 {
            return Err(errno::EINVAL);
        }
        self.write(arg.wrapping_add(4), &0u32)?;
        Ok(0)
    }
}

/// Offset of the domid in `xen_pod_target`.
const POD_DOMID: u64 = 32;
