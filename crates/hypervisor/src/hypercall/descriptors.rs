//! set_gdt and update_descriptor.

use ring3_abi::arch_x86::FIRST_RESERVED_GDT_ENTRY;
use ring3_abi::errno;
use ring3_machine::Mfn;

use super::{Caller, HypercallResult};
use crate::vcpu::bounce::Running;

impl Running<'_> {
    /// set_gdt: `frame_list` is an array of MFNs.
    pub(super) fn set_gdt(&mut self, frame_list: u64, entries: u32) -> HypercallResult {
        if entries > FIRST_RESERVED_GDT_ENTRY {
            return Err(errno::EINVAL);
        }
        let nr_frames = entries.div_ceil(512) as usize;
        let mut raw = [0u64; 16];
        let wanted = raw.get_mut(..nr_frames).ok_or(errno::EINVAL)?;
        Caller::of_guest(self).read_bytes(frame_list, bytemuck::cast_slice_mut(wanted))?;
        let frames = raw.map(Mfn);
        let nr_old = self.state.gdt_ents.div_ceil(512) as usize;
        let old = self.state.gdt_frames.get(..nr_old).unwrap_or_default();
        self.domain.mm.set_gdt(old, &frames, entries).map_err(|e| -e.errno())?;
        self.state.gdt_frames = frames;
        self.state.gdt_ents = entries;
        Ok(0)
    }

    /// update_descriptor.
    pub(super) fn update_descriptor(&mut self, maddr: u64, descriptor: u64) -> HypercallResult {
        self.domain.mm.update_descriptor(maddr, descriptor).map_err(|e| -e.errno())?;
        Ok(0)
    }
}
