//! The change from the 2-level to the FIFO ABI and back, and the guest's frames that the FIFO ABI uses.

use std::sync::atomic::Ordering;

use ring3_abi::errno;
use ring3_abi::event_channel::EVTCHN_2L_NR_CHANNELS;
use ring3_machine::Mfn;

use super::fifo::Fifo;
use crate::domain::Domain;
use crate::hypervisor::Hypervisor;

const EVTCHN_PENDING: usize = 0x800;

impl Hypervisor {
    /// `EVTCHNOP_init_control`: sets the control block of a vCPU. The first one changes the domain to the FIFO ABI.
    ///
    /// # Errors
    /// -ENOENT for a vCPU that is not there, -EINVAL for a place that cannot be, a frame that the domain may not write,
    /// or a vCPU that has a block.
    pub fn evtchn_init_control(&self, domain: &Domain, vcpu: u32, mfn: Mfn, offset: u32) -> Result<(), i64> {
        if domain.vcpu(vcpu).is_none() {
            return Err(errno::ENOENT);
        }
        if !Fifo::is_place(offset) {
            return Err(errno::EINVAL);
        }
        // Taken first: references to frames are taken with no lock of ours held.
        domain.mm.get_writable(mfn).map_err(|_| errno::EINVAL)?;
        let mut fifo = domain.evtchn.fifo.lock();
        let is_first = fifo.is_none();
        let state = fifo.get_or_insert_with(|| Fifo::new(domain.vcpus.len()));
        if state.has_block(vcpu) {
            drop(fifo);
            domain.mm.put_writable(mfn);
            return Err(errno::EINVAL);
        }
        state.set_block(vcpu, mfn, offset);
        if is_first {
            // Before the look at pending bits: whoever sets one now looks at this flag afterwards.
            domain.evtchn.is_fifo.store(true, Ordering::SeqCst);
            for index in 0..EVTCHN_2L_NR_CHANNELS / 64 {
                let word = self.memory.machine.word64(domain.shared_info, EVTCHN_PENDING + index as usize * 8);
                let bits = word.map_or(0, |word| word.load(Ordering::SeqCst));
                (0..64).filter(|bit| bits & (1 << bit) != 0).for_each(|bit| state.save(index * 64 + bit));
            }
        }
        Ok(())
    }

    /// `EVTCHNOP_expand_array`: adds a frame to the event array.
    ///
    /// # Errors
    /// -EOPNOTSUPP before `EVTCHNOP_init_control`, -ENOSPC for more frames than there are ports, -EINVAL for a frame that the
    /// domain may not write.
    pub fn evtchn_expand_array(&self, domain: &Domain, mfn: Mfn) -> Result<(), i64> {
        domain.evtchn.with_fifo(|fifo| fifo.check_room()).ok_or(errno::EOPNOTSUPP)??;
        domain.mm.get_writable(mfn).map_err(|_| errno::EINVAL)?;
        let added = domain.evtchn.with_fifo(|fifo| fifo.check_room().map(|()| fifo.add_frame(mfn)));
        let Some(Ok(saved)) = added else {
            domain.mm.put_writable(mfn);
            return Err(if added.is_none() { errno::EOPNOTSUPP } else { errno::ENOSPC });
        };
        for port in saved {
            if let Some(channel) = domain.evtchn.get(port).filter(|channel| !channel.is_free()) {
                self.set_pending(domain, port, channel.notify);
            }
        }
        Ok(())
    }

    /// `EVTCHNOP_set_priority`.
    ///
    /// # Errors
    /// -EINVAL for a port or priority that is not there, -ENOSYS for the 2-level ABI.
    pub fn evtchn_set_priority(&self, domain: &Domain, port: u32, priority: u32) -> Result<(), i64> {
        domain.evtchn.get(port).ok_or(errno::EINVAL)?;
        domain.evtchn.with_fifo(|fifo| fifo.set_priority(port, priority)).ok_or(errno::ENOSYS)?
    }

    /// Back to the 2-level ABI, with all ports closed.
    pub(super) fn evtchn_drop_fifo(&self, domain: &Domain) {
        let dropped = {
            let mut fifo = domain.evtchn.fifo.lock();
            domain.evtchn.is_fifo.store(false, Ordering::SeqCst);
            fifo.take()
        };
        dropped.iter().flat_map(Fifo::frames).for_each(|mfn| domain.mm.put_writable(mfn));
    }
}
