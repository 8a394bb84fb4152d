//! Stores of interpreted instructions that somebody else does: those of `step` to the frame whose stores are intercepted.

use ring3_engine::{Access, walk};

use super::step::bounce_start;
use super::vcpu::BtVcpu;
use crate::tlb::{Info, Stop};

impl BtVcpu {
    /// Whether somebody else does the stores to some frame.
    pub(crate) fn is_intercepting(&self) -> bool {
        self.intercepted.is_some()
    }

    /// Keeps a store of an interpreted instruction for `commit`, if it is one to the frame whose stores are intercepted.
    /// Called, and returns, outside the guest.
    pub(crate) fn defer_store(&mut self, va: u64, bytes: &[u8]) -> Result<bool, Stop> {
        let Some(frame) = self.intercepted else { return Ok(false) };
        let info = Info { size: bytes.len(), write: true, single: true, stack: false, locked: false, bounce: 0 };
        loop {
            self.enter_for_access();
            let found = walk(self.machine(), &self.space(), va, Access::Read);
            if !found.is_ok_and(|t| t.mfn == frame && !t.may_write) {
                self.leave_guest();
                return Ok(false);
            }
            let prepared = self.prepare_operand(va, info);
            self.leave_guest();
            match prepared {
                Err(Stop::Code(mfn)) => self.domain().invalidate(mfn),
                Err(stop) => return Err(stop),
                Ok(_) => break,
            }
        }
        let start = bounce_start(va);
        let buffer = self.state_mut().bounce.first_mut().and_then(|b| b.0.get_mut(start..start + bytes.len()));
        buffer.into_iter().for_each(|target| target.copy_from_slice(bytes));
        Ok(true)
    }
}
