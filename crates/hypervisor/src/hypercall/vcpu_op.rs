//! vcpu_op: bring-up of vCPUs, their shared areas and timers.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ring3_abi::arch_x86::vcpu_guest_context;
use ring3_abi::errno;
use ring3_abi::hypercall::__HYPERVISOR_vcpu_op;
use ring3_abi::sched::SHUTDOWN_poweroff;
use ring3_abi::vcpu::*;
use ring3_abi::xen::{VMASST_TYPE_runstate_update_flag, XEN_LEGACY_MAX_VCPUS};
use ring3_machine::{Mfn, PAGE_SIZE};

use super::{Caller, HypercallResult, Served};
use crate::time::TimerKind;
use crate::vcpu::bounce::Running;
use crate::vcpu::{Action, INFO_TIME, Vcpu};

/// Shortest and longest period of a periodic timer, as Xen's.
const MIN_PERIOD_NS: u64 = 1_000_000;
const MAX_PERIOD_NS: u64 = u64::MAX >> 2;

impl Running<'_> {
    /// vcpu_op.
    pub(super) fn vcpu_op(&mut self, cmd: u32, id: u32, arg: u64) -> Served {
        Served::or_again(self.serve_vcpu_op(cmd, id, arg), [u64::from(cmd), u64::from(id), arg, 0])
    }

    /// Linux asks `is_up` for thousands of ids at boot: past the last vCPU that is one comparison.
    fn serve_vcpu_op(&mut self, cmd: u32, id: u32, arg: u64) -> HypercallResult {
        self.hv.table.count(__HYPERVISOR_vcpu_op, cmd);
        let domain = self.domain;
        let vcpu = domain.vcpu(id).ok_or(errno::ENOENT)?;
        let is_self = id == self.vcpu.id;
        let caller = Caller::of_guest(self);
        match cmd {
            VCPUOP_is_up => Ok(i64::from(vcpu.online.load(Ordering::SeqCst))),
            // Past those in shared_info, a vCPU has no vcpu_info until one is registered.
            VCPUOP_initialise if id as usize >= XEN_LEGACY_MAX_VCPUS && !vcpu.info.is_registered() => {
                Err(errno::EINVAL)
            }
            VCPUOP_initialise => self.initialise(vcpu, caller.read(arg)?),
            VCPUOP_up => {
                if !vcpu.is_initialised.load(Ordering::SeqCst) {
                    return Err(errno::EINVAL);
                }
                if !vcpu.online.swap(true, Ordering::SeqCst) {
                    self.hv.sched.enqueue(vcpu, self.hv);
                }
                Ok(0)
            }
            VCPUOP_down => {
                let others = domain.vcpus.iter().any(|v| v.id != id && v.online.load(Ordering::SeqCst));
                if others {
                    vcpu.online.store(false, Ordering::SeqCst);
                    self.hv.sched.preempt(vcpu);
                } else {
                    // The last one: the domain has halted.
                    self.hv.shutdown_domain(domain, SHUTDOWN_poweroff);
                }
                if is_self {
                    self.state.action = Action::Deschedule;
                }
                Ok(0)
            }
            VCPUOP_get_runstate_info => {
                let info = vcpu.runstate.lock().at(self.hv.clock.now_ns());
                caller.write(arg, &info)?;
                Ok(0)
            }
            VCPUOP_register_runstate_memory_area => {
                let area: vcpu_register_runstate_memory_area = caller.read(arg)?;
                // Only the place is checked: an area that is not mapped is not written to, now or later.
                caller.check_array(area.addr, 1, size_of::<vcpu_runstate_info>() as u64)?;
                vcpu.runstate_area.store(area.addr, Ordering::SeqCst);
                let mut runstate = *vcpu.runstate.lock();
                if !is_self {
                    // Another one's times are counted up to now.
                    runstate.change(runstate.state(), self.hv.clock.now_ns());
                }
                let flagged = domain.has_assist(VMASST_TYPE_runstate_update_flag);
                runstate.publish(&self.domain.memory, &self.state.kernel_space(), area.addr, flagged);
                Ok(0)
            }
            VCPUOP_register_vcpu_time_memory_area => {
                let area: vcpu_register_time_memory_area = caller.read(arg)?;
                // Base and scale of the clock are fixed, so the area is written once.
                caller.check_array(area.addr, 1, size_of::<ring3_abi::xen::vcpu_time_info>() as u64)?;
                let _ = caller.write(area.addr, &crate::time::time_info(&self.hv.clock, &self.domain.tsc.lock()));
                Ok(0)
            }
            VCPUOP_set_periodic_timer => {
                let periodic: vcpu_set_periodic_timer = caller.read(arg)?;
                if periodic.period_ns < MIN_PERIOD_NS || periodic.period_ns > MAX_PERIOD_NS {
                    return Err(errno::EINVAL);
                }
                vcpu.period_ns.store(periodic.period_ns, Ordering::Relaxed);
                self.hv.timers.arm(vcpu, TimerKind::Periodic, self.hv.clock.now_ns() + periodic.period_ns);
                Ok(0)
            }
            VCPUOP_stop_periodic_timer => {
                vcpu.period_ns.store(0, Ordering::Relaxed);
                self.hv.timers.disarm(vcpu, TimerKind::Periodic);
                Ok(0)
            }
            VCPUOP_set_singleshot_timer => {
                if !is_self {
                    return Err(errno::EINVAL);
                }
                let shot: vcpu_set_singleshot_timer = caller.read(arg)?;
                // VCPU_SSHOTTMR_future asks for -ETIME where the time is past; Xen 4.17 no longer looks at it.
                self.arm(TimerKind::Singleshot, shot.timeout_abs_ns);
                Ok(0)
            }
            VCPUOP_stop_singleshot_timer => {
                if !is_self {
                    return Err(errno::EINVAL);
                }
                self.disarm(TimerKind::Singleshot);
                Ok(0)
            }
            VCPUOP_register_vcpu_info => {
                let info: vcpu_register_vcpu_info = caller.read(arg)?;
                self.register_vcpu_info(vcpu, &info)
            }
            VCPUOP_send_nmi if arg != 0 => Err(errno::EINVAL),
            VCPUOP_send_nmi => {
                vcpu.nmi_pending.store(true, Ordering::SeqCst);
                self.hv.kick(vcpu);
                vcpu.control.request(ring3_engine::Requests::EVENT);
                Ok(0)
            }
            // For domains whose vCPUs are pinned to pCPUs.
            VCPUOP_get_physid => Err(errno::EINVAL),
            _ => Err(errno::ENOSYS),
        }
    }

    fn initialise(&mut self, vcpu: &Arc<Vcpu>, context: vcpu_guest_context) -> HypercallResult {
        if vcpu.id == self.vcpu.id || vcpu.is_initialised.load(Ordering::SeqCst) {
            return Err(errno::EEXIST);
        }
        // It never ran, so only another vCPU's like call can hold its state; whoever comes second is late.
        let mut state = vcpu.state.try_lock().ok_or(errno::EEXIST)?;
        if vcpu.is_initialised.load(Ordering::SeqCst) {
            return Err(errno::EEXIST);
        }
        let roots = [context.ctrlreg[3], context.ctrlreg[1]].map(Mfn::containing);
        let (by, work) = (self.vcpu, &mut self.state.long);
        if !self.domain.mm.prepare_roots(roots, work, &mut || by.is_wanted_elsewhere()) {
            return Err(errno::ERESTART);
        }
        let applied = crate::domain::apply_context(self.hv.m2p(), self.domain, vcpu, &mut state, &context);
        // Let go before the guest goes on.
        work.finish();
        applied.map(|()| 0)
    }

    fn register_vcpu_info(&mut self, vcpu: &Arc<Vcpu>, info: &vcpu_register_vcpu_info) -> HypercallResult {
        let offset = u64::from(info.offset);
        if offset > PAGE_SIZE - 64 || !offset.is_multiple_of(8) {
            return Err(errno::ENXIO);
        }
        if vcpu.info.is_registered() {
            return Err(errno::EINVAL);
        }
        if vcpu.id != self.vcpu.id && vcpu.online.load(Ordering::SeqCst) {
            return Err(errno::EINVAL);
        }
        let mfn = Mfn(info.mfn);
        self.domain.mm.get_writable(mfn).map_err(|e| -e.errno())?;
        if !vcpu.info.register(mfn.address() + offset) {
            self.domain.mm.put_writable(mfn);
            return Err(errno::EINVAL);
        }
        let (mfn, offset) = vcpu.info.place();
        crate::time::write_time_info(
            &self.hv.memory.machine,
            &self.hv.clock,
            &self.domain.tsc.lock(),
            mfn,
            offset + INFO_TIME,
        );
        Ok(0)
    }
}
