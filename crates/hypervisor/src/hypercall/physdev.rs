//! physdev_op: what a domain without devices may ask.

use ring3_abi::errno;
use ring3_abi::hypercall::__HYPERVISOR_physdev_op;
use ring3_abi::physdev::*;

use super::{Caller, HypercallResult};
use crate::vcpu::bounce::Running;

impl Running<'_> {
    /// physdev_op.
    pub(super) fn physdev_op(&mut self, cmd: u32, arg: u64) -> HypercallResult {
        self.hv.table.count(__HYPERVISOR_physdev_op, cmd);
        let caller = Caller::of_guest(self);
        match cmd {
            PHYSDEVOP_set_iopl => {
                let set: physdev_set_iopl = caller.read(arg)?;
                if set.iopl > 3 {
                    return Err(errno::EINVAL);
                }
                self.state.iopl = (set.iopl & 3) as u8;
                Ok(0)
            }
            PHYSDEVOP_set_iobitmap => {
                let set: physdev_set_iobitmap = caller.read(arg)?;
                if set.nr_ports > 65536 {
                    return Err(errno::EINVAL);
                }
                (self.state.iobmp, self.state.iobmp_limit) = (set.bitmap, set.nr_ports);
                Ok(0)
            }
            _ => Err(errno::ENOSYS),
        }
    }

    /// physdev_op_compat: command and union in one structure.
    pub(super) fn physdev_op_compat(&mut self, arg: u64) -> HypercallResult {
        let cmd: u32 = Caller::of_guest(self).read(arg)?;
        self.physdev_op(cmd, arg.wrapping_add(PHYSDEV_OP_ARG_OFFSET))
    }
}
