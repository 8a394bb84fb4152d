//! multicall: several calls in one; each has its result in its entry. They do not nest; an `iret` ends the list.

use std::sync::Arc;

use ring3_abi::errno;
use ring3_abi::hypercall::{__HYPERVISOR_iret, __HYPERVISOR_multicall};
use ring3_abi::xen::multicall_entry;

use super::{Caller, HypercallResult, Served, serve_guest, should_preempt};
use crate::domain::Connection;
use crate::vcpu::Action;
use crate::vcpu::bounce::Running;

const RESULT_OFFSET: u64 = 8;
const ARGS_OFFSET: u64 = 16;

fn may_nest(op: u64) -> bool {
    op != u64::from(__HYPERVISOR_multicall)
}

impl Running<'_> {
    /// multicall.
    pub(super) fn multicall(&mut self, list: u64, nr_calls: u32) -> Served {
        let caller = Caller::of_guest(self);
        if let Err(errno) = caller.check_array(list, u64::from(nr_calls), size_of::<multicall_entry>() as u64) {
            return Served::Done(-errno);
        }
        let mut done = 0u32;
        while done < nr_calls {
            let at = Caller::element::<multicall_entry>(list, u64::from(done));
            let again = Served::Again([at, u64::from(nr_calls - done), 0, 0]);
            if done > 0 && (should_preempt(self) || self.state.action != Action::None) {
                return again;
            }
            let caller = Caller::of_guest(self);
            let entry: multicall_entry = match caller.read(at) {
                Ok(entry) => entry,
                Err(errno) => return Served::Done(-errno),
            };
            let served = if entry.op == u64::from(__HYPERVISOR_iret) {
                // It leaves the multicall, with no result.
                if let Err(why) = self.iret() {
                    self.crash(why);
                    self.state.action = Action::Deschedule;
                }
                return Served::Left;
            } else if may_nest(entry.op) {
                serve_guest(self, entry.op, &entry.args)
            } else {
                Served::Done(-errno::EINVAL)
            };
            // The root may have changed: write through what is in force now.
            let caller = Caller::of_guest(self);
            match served {
                Served::Done(result) => {
                    if let Err(errno) = caller.write(at + RESULT_OFFSET, &result) {
                        return Served::Done(-errno);
                    }
                }
                Served::Left => return Served::Left,
                Served::Again(args) => {
                    if let Err(errno) = caller.write(at + ARGS_OFFSET, &args) {
                        return Served::Done(-errno);
                    }
                    return again;
                }
            }
            done += 1;
        }
        Served::Done(0)
    }
}

impl Caller<'_> {
    /// multicall of a dom0 process.
    pub(super) fn multicall_all(&self, connection: &Arc<Connection>, list: u64, nr_calls: u32) -> HypercallResult {
        for index in 0..nr_calls {
            let at = Self::element::<multicall_entry>(list, u64::from(index));
            let entry: multicall_entry = self.read(at)?;
            let result = if may_nest(entry.op) {
                super::dispatch_dom0(self.hv, connection, entry.op, &entry.args)
            } else {
                -errno::EINVAL
            };
            self.write(at + RESULT_OFFSET, &result)?;
        }
        Ok(0)
    }
}
