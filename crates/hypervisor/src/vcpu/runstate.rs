//! Runstate accounting: how long a vCPU ran, waited, slept and was off, to the nanosecond.
//! Source: xen/include/public/vcpu.h, struct vcpu_runstate_info.

use ring3_abi::vcpu::{RUNSTATE_offline, RUNSTATE_running, XEN_RUNSTATE_UPDATE, vcpu_runstate_info};
use ring3_engine::AddressSpace;

use crate::memory::Memory;

/// Times of one vCPU.
#[derive(Clone, Copy, Debug)]
pub struct Runstate {
    state: u32,
    entered_ns: u64,
    time: [u64; 4],
}

impl Runstate {
    /// Offline since `now_ns`.
    pub fn new(now_ns: u64) -> Self {
        Self { state: RUNSTATE_offline, entered_ns: now_ns, time: [0; 4] }
    }

    /// Enters a state; the time since the last change goes to the old one.
    pub fn change(&mut self, state: u32, now_ns: u64) {
        let spent = now_ns.saturating_sub(self.entered_ns);
        if let Some(time) = self.time.get_mut(self.state as usize) {
            *time = time.wrapping_add(spent);
        }
        self.state = state;
        self.entered_ns = now_ns.max(self.entered_ns);
    }

    /// The present state.
    pub fn state(&self) -> u32 {
        self.state
    }

    /// Nanoseconds on a pCPU, up to now.
    pub fn cpu_time_ns(&self, now_ns: u64) -> u64 {
        self.at(now_ns).time[RUNSTATE_running as usize]
    }

    /// As the guest sees it: times up to the last change.
    pub fn info(&self) -> vcpu_runstate_info {
        vcpu_runstate_info { state: self.state, _pad: 0, state_entry_time: self.entered_ns, time: self.time }
    }

    /// With the present state's time counted up to now.
    pub fn at(&self, now_ns: u64) -> vcpu_runstate_info {
        let mut copy = *self;
        copy.change(self.state, now_ns);
        let mut info = copy.info();
        info.state_entry_time = self.entered_ns;
        info
    }

    /// Copies to the guest's area. With `flagged` (VMASST_TYPE_runstate_update_flag), the top bit of
    /// `state_entry_time` is set while the rest changes.
    pub fn publish(&self, memory: &Memory, space: &AddressSpace, area: u64, flagged: bool) {
        if area == 0 {
            return;
        }
        let mut info = self.info();
        // A guest that unmapped its area loses the update, as on Xen.
        if flagged {
            info.state_entry_time |= XEN_RUNSTATE_UPDATE;
            let _ = memory.write(space, area + 8, &info.state_entry_time.to_le_bytes());
        }
        if memory.write(space, area, bytemuck::bytes_of(&info)).is_ok() && flagged {
            info.state_entry_time &= !XEN_RUNSTATE_UPDATE;
            let _ = memory.write(space, area + 8, &info.state_entry_time.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_times_add_up_and_never_run_backwards() {
        let mut runstate = Runstate::new(100);
        runstate.change(RUNSTATE_running, 150);
        runstate.change(2, 180);
        runstate.change(RUNSTATE_running, 170);
        assert_eq!(runstate.info().time, [30, 0, 0, 50]);
        assert_eq!(runstate.cpu_time_ns(280), 130);
    }
}
