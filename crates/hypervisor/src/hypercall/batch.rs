//! The lists of mmu_update and mmuext_op: how far a call came, what it holds meanwhile, and how it is continued.

use ring3_abi::xen::MMU_UPDATE_PREEMPTED;

use super::{Caller, HypercallResult, Served};
use crate::mm::{FrameTable, LongWork};
use crate::vcpu::bounce::Running;

/// A call under way.
#[derive(Debug)]
pub(super) struct Batch<'a> {
    frames: &'a FrameTable,
    /// What the vCPU holds in the middle of a request.
    pub work: LongWork,
    /// Requests of this call that were made.
    pub done: u32,
    /// Requests of the calls that it continues.
    before: u32,
    count: u32,
    result: i64,
    again: bool,
}

impl Caller<'_> {
    /// A whole call of `count` requests, for dom0 processes: `request` makes the one of a number, and nothing is stopped half way.
    pub(super) fn all_requests(
        &self,
        count: u32,
        pdone: u64,
        mut request: impl FnMut(u32, &mut LongWork) -> Result<(), i64>,
    ) -> HypercallResult {
        let (mut done, mut result) = (0, Ok(0));
        let mut work = LongWork::default();
        while done < count {
            let made = request(done, &mut work);
            self.hv.frames.drain_all(&mut work);
            if let Err(errno) = made {
                result = Err(errno);
                break;
            }
            done += 1;
        }
        if pdone != 0 {
            self.write(pdone, &done)?;
        }
        result
    }
}

impl Running<'_> {
    /// What comes before a call: it gives up what another one has left, unless it continues that one. A call with nothing
    /// but its result left ends here; this is Xen's form of it.
    pub(super) fn begin_batch(&mut self, handle: u64, count: u32, foreigndom: u32) -> Option<Served> {
        let is_result = handle == 0 && count == MMU_UPDATE_PREEMPTED;
        if count & MMU_UPDATE_PREEMPTED == 0 || is_result {
            self.state.long.finish();
        }
        if !is_result {
            return None;
        }
        let vcpu = self.vcpu;
        let is_all = self.hv.frames.drain(&mut self.state.long, &mut || vcpu.is_wanted_elsewhere());
        Some(match is_all {
            true => Served::Done(i64::from(foreigndom as i32)),
            false => Served::Again([0, MMU_UPDATE_PREEMPTED.into(), 0, foreigndom.into()]),
        })
    }
}

impl<'a> Batch<'a> {
    /// A call of `count` requests; what is done is `before`, and what is done now.
    pub fn new(running: &mut Running<'a>, count: u32, before: u32) -> Self {
        let work = std::mem::take(&mut running.state.long);
        Self { frames: &running.hv.frames, work, done: 0, before, count, result: 0, again: false }
    }

    /// What a continued call has done before, which is in *pdone.
    pub fn done_before(caller: &Caller<'_>, count: u32, pdone: u64) -> u32 {
        if count & MMU_UPDATE_PREEMPTED != 0 && pdone != 0 { caller.read(pdone).unwrap_or(0) } else { 0 }
    }

    /// Whether the next request is to be made: lets go what the last one left, and looks now and then, after each number of
    /// requests that has the bits of `mask`, whether the pCPU is wanted.
    pub fn goes_on(&mut self, mask: u32, stop: &mut dyn FnMut() -> bool) -> bool {
        let is_over = self.result != 0 || self.done >= self.count;
        let is_all = self.frames.drain(&mut self.work, stop);
        self.again |= !is_all || (!is_over && self.done & mask == mask && stop());
        !is_over && !self.again
    }

    /// How a request ended; `Ok(false)`: it is to be made again.
    pub fn note(&mut self, made: Result<bool, i64>) {
        match made {
            Ok(true) => self.done += 1,
            Ok(false) => self.again = true,
            Err(errno) => self.result = -errno,
        }
    }

    /// The end of the call, or of this part of it; `next` is the handle of the request after those that are done.
    pub fn end(self, running: &mut Running<'_>, next: u64, pdone: u64, foreigndom: u32) -> Served {
        running.state.long = self.work;
        if pdone != 0 {
            // Xen does not tell when that fails.
            let _ = Caller::of_guest(running).write(pdone, &self.before.wrapping_add(self.done));
        }
        let left = self.count - self.done;
        match (self.again, self.result) {
            (false, result) => Served::Done(result),
            (true, 0) if left > 0 => {
                Served::Again([next, u64::from(left | MMU_UPDATE_PREEMPTED), pdone, u64::from(foreigndom)])
            }
            (true, result) => Served::Again([0, MMU_UPDATE_PREEMPTED.into(), 0, result as u64 & 0xffff_ffff]),
        }
    }
}
