//! vm_assist and set_timer_op.

use std::sync::atomic::Ordering;

use ring3_abi::errno;
use ring3_abi::xen::*;

use super::HypercallResult;
use crate::time::TimerKind;
use crate::vcpu::bounce::Running;

/// Assists that a PV64 guest may enable.
pub const VALID_ASSISTS: u64 = (1 << VMASST_TYPE_4gb_segments)
    | (1 << VMASST_TYPE_4gb_segments_notify)
    | (1 << VMASST_TYPE_writable_pagetables)
    | (1 << VMASST_TYPE_pae_extended_cr3)
    | (1 << VMASST_TYPE_architectural_iopl)
    | (1 << VMASST_TYPE_runstate_update_flag)
    | (1 << VMASST_TYPE_m2p_strict);

/// A set_timer_op timeout this far ahead (2^50 ns) is Linux's way to say "never": it is shortened, as on Xen.
const FAR_FUTURE_SHIFT: u32 = 50;
const SHORTENED_NS: u64 = 100_000_000;

impl Running<'_> {
    /// vm_assist.
    pub(super) fn vm_assist(&mut self, cmd: u32, assist: u32) -> HypercallResult {
        if assist >= 64 || VALID_ASSISTS & (1 << assist) == 0 {
            return Err(errno::EINVAL);
        }
        match cmd {
            VMASST_CMD_enable => self.domain.vm_assist.fetch_or(1 << assist, Ordering::Relaxed),
            VMASST_CMD_disable => self.domain.vm_assist.fetch_and(!(1 << assist), Ordering::Relaxed),
            _ => return Err(errno::ENOSYS),
        };
        Ok(0)
    }

    /// set_timer_op: absolute system time, 0 stops.
    pub(super) fn set_timer_op(&mut self, timeout: u64) -> HypercallResult {
        if timeout == 0 {
            self.disarm(TimerKind::Singleshot);
            return Ok(0);
        }
        let now = self.hv.clock.now_ns();
        let is_far = timeout > i64::MAX as u64 || timeout.saturating_sub(now) >> FAR_FUTURE_SHIFT != 0;
        self.arm(TimerKind::Singleshot, if is_far { now + SHORTENED_NS } else { timeout });
        Ok(0)
    }

    /// Arms a timer of this vCPU; a deadline that is past fires at once.
    pub(super) fn arm(&mut self, kind: TimerKind, deadline: u64) {
        let Some(vcpu) = self.domain.vcpu(self.vcpu.id) else { return };
        if deadline <= self.hv.clock.now_ns() && kind == TimerKind::Singleshot {
            self.hv.timers.disarm(vcpu, kind);
            self.hv.send_vcpu_virq(self.domain, vcpu, VIRQ_TIMER);
            return;
        }
        self.hv.timers.arm(vcpu, kind, deadline);
    }

    /// Disarms a timer of this vCPU.
    pub(super) fn disarm(&mut self, kind: TimerKind) {
        self.hv.timers.disarm(self.vcpu, kind);
    }
}
