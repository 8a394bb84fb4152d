//! The threads: a worker for each pCPU, and the one that fires timers.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;
use ring3_abi::sched::SHUTDOWN_watchdog;
use ring3_abi::vcpu::{RUNSTATE_blocked, RUNSTATE_offline, RUNSTATE_runnable, RUNSTATE_running};
use ring3_abi::xen::{VIRQ_TIMER, VMASST_TYPE_runstate_update_flag};

use super::{Scheduler, Shared, next_tick};
use crate::hypervisor::Hypervisor;
use crate::time::{Due, TimerKind};
use crate::vcpu::{self, Leave, Vcpu};

impl Scheduler {
    fn take(&self, pcpu: usize, hv: &Hypervisor) -> Option<Arc<Vcpu>> {
        let mut shared = self.shared.lock();
        loop {
            if shared.stopping {
                return None;
            }
            if let Some(vcpu) = shared.queue.pop() {
                if !vcpu.is_runnable() {
                    Self::settle(&vcpu, hv);
                    continue;
                }
                vcpu.running_on.store(i32::try_from(pcpu).unwrap_or(0), Ordering::SeqCst);
                vcpu.last_pcpu.store(u32::try_from(pcpu).unwrap_or(0), Ordering::SeqCst);
                let now_ns = hv.clock.now_ns();
                shared.queue.start(pcpu, &vcpu, now_ns);
                let next = next_tick(shared.queue.next_end(), now_ns);
                self.count_ready(&shared.queue);
                drop(shared);
                hv.timers.arm_tick(next);
                return Some(vcpu);
            }
            self.count_ready(&shared.queue);
            shared.nr_idle += 1;
            self.wait_for_work(&mut shared, hv);
            shared.nr_idle -= 1;
        }
    }

    /// Looks for work, if one is likely to come soon, and else sleeps.
    fn wait_for_work(&self, shared: &mut MutexGuard<'_, Shared>, hv: &Hypervisor) {
        let start_ns = hv.clock.now_ns();
        let end_ns = start_ns + shared.patience.look_ns();
        if end_ns > start_ns && !shared.is_looking {
            shared.is_looking = true;
            MutexGuard::unlocked(shared, || {
                hv.attend(true);
                while !self.is_wanted() && hv.clock.now_ns() < end_ns {
                    hv.answer_bells();
                    (0..16).for_each(|_| std::hint::spin_loop());
                }
                hv.attend(false);
                // Who was told meanwhile that somebody looks shall be right.
                hv.answer_bells();
            });
            shared.is_looking = false;
            if self.is_wanted() || shared.stopping {
                return;
            }
        }
        self.work.wait(shared);
        let wanted_ns = shared.wanted_at_ns.saturating_sub(start_ns);
        shared.patience.slept(wanted_ns);
    }

    /// Runstate of a vCPU that has no pCPU.
    fn settle(vcpu: &Vcpu, hv: &Hypervisor) {
        let state = if !vcpu.online.load(Ordering::SeqCst) {
            RUNSTATE_offline
        } else if vcpu.blocked.load(Ordering::SeqCst) {
            RUNSTATE_blocked
        } else if vcpu.domain_pause.load(Ordering::SeqCst) != 0 {
            RUNSTATE_offline
        } else {
            RUNSTATE_runnable
        };
        vcpu.runstate.lock().change(state, hv.clock.now_ns());
    }

    fn give_back(&self, vcpu: &Arc<Vcpu>, pcpu: usize, why: Leave, hv: &Hypervisor) {
        let mut shared = self.shared.lock();
        vcpu.running_on.store(-1, Ordering::SeqCst);
        Self::settle(vcpu, hv);
        shared.queue.end(pcpu, vcpu, why, hv.clock.now_ns());
        self.count_ready(&shared.queue);
        // This worker takes one itself.
        let is_help_needed = shared.nr_idle > 0 && shared.queue.nr_ready() > 1;
        drop(shared);
        if is_help_needed {
            self.work.notify_one();
        }
        self.descheduled.notify_all();
    }
}

/// Body of a worker thread.
pub fn run_worker(hv: &Hypervisor, pcpu: usize) {
    while let Some(vcpu) = hv.sched.take(pcpu, hv) {
        let mut why = Leave::Stopped;
        if let Some(domain) = vcpu.domain.upgrade() {
            let mut state = vcpu.state.lock();
            let flagged = domain.has_assist(VMASST_TYPE_runstate_update_flag);
            let publish = |state: &vcpu::VcpuState, runstate: vcpu::Runstate| {
                runstate.publish(
                    &domain.memory,
                    &state.kernel_space(),
                    vcpu.runstate_area.load(Ordering::Relaxed),
                    flagged,
                );
            };
            let running = {
                let mut runstate = vcpu.runstate.lock();
                runstate.change(RUNSTATE_running, hv.clock.now_ns());
                *runstate
            };
            publish(&state, running);
            hv.note_busy(&vcpu);
            // A panic is a bug of ours; it costs the domain, not the pCPU with everybody on it.
            let ran = catch_unwind(AssertUnwindSafe(|| vcpu::run(hv, &domain, &vcpu, &mut state)));
            // What it left in this thread's CPU is neither the next vCPU's nor here when it runs elsewhere.
            state.cpu.park();
            match ran {
                Ok(leave) => why = leave,
                Err(_) => hv.crash_domain(&domain, "the hypervisor failed while it served this domain", None),
            }
            vcpu.left_in_kernel.store(state.is_kernel(), Ordering::Relaxed);
            let next = if vcpu.blocked.load(Ordering::SeqCst) { RUNSTATE_blocked } else { RUNSTATE_runnable };
            let leaving = {
                let mut runstate = vcpu.runstate.lock();
                runstate.change(next, hv.clock.now_ns());
                *runstate
            };
            publish(&state, leaving);
        }
        hv.sched.give_back(&vcpu, pcpu, why, hv);
    }
}

/// Body of the timer thread.
pub fn run_timers(hv: &Hypervisor) {
    loop {
        match hv.timers.wait(&hv.clock) {
            Due::Stop => return,
            Due::Fire(fired, tick) => {
                for (vcpu, kind) in fired {
                    if let Some(vcpu) = vcpu.upgrade() {
                        fire(hv, &vcpu, kind);
                    }
                }
                if tick && let Some(next) = hv.sched.tick(hv.clock.now_ns()) {
                    hv.timers.arm_tick(next);
                }
            }
        }
    }
}

fn fire(hv: &Hypervisor, vcpu: &Arc<Vcpu>, kind: TimerKind) {
    let Some(domain) = vcpu.domain.upgrade() else { return };
    match kind {
        TimerKind::Singleshot => hv.send_vcpu_virq(&domain, vcpu, VIRQ_TIMER),
        TimerKind::Periodic => {
            let period = vcpu.period_ns.load(Ordering::Relaxed);
            if period != 0 {
                hv.timers.arm(vcpu, TimerKind::Periodic, hv.clock.now_ns() + period);
            }
            hv.send_vcpu_virq(&domain, vcpu, VIRQ_TIMER);
        }
        TimerKind::Watchdog1 | TimerKind::Watchdog2 => {
            if !domain.is_dying.load(Ordering::SeqCst) {
                hv.dmesg.log(&format!("domain {}: a watchdog timer fired", domain.domid));
                hv.shutdown_domain(&domain, SHUTDOWN_watchdog);
            }
        }
        TimerKind::Poll => {
            if vcpu.polling.swap(0, Ordering::SeqCst) != 0 {
                domain.nr_polling.fetch_sub(1, Ordering::SeqCst);
                hv.sched.wake(vcpu, hv);
            }
        }
    }
}
