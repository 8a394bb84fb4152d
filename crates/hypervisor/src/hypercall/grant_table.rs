//! grant_table_op: arrays of operations, each with a status of its own; the work is in `gnttab`.
//!
//! The first error is EFAULT for a handle that cannot be one; what goes wrong with one operation is in its status.

use std::sync::Arc;

use bytemuck::Pod;
use ring3_abi::errno;
use ring3_abi::grant_table::*;
use ring3_abi::hypercall::__HYPERVISOR_grant_table_op;
use ring3_machine::Mfn;

use super::{Caller, Handles, Served, Wanted, should_preempt};
use crate::domain::Domain;
use crate::gnttab::{CopyBuffers, Mapper, UnmapRequest, Unmapped, copy_one, transfer_one};
use crate::vcpu::bounce::Running;

/// Bits of the command; above them an argument that only the continuation of a cache flush may have.
const CMD_MASK: u32 = (1 << 12) - 1;
/// Unmaps that share a TLB flush.
const UNMAP_BATCH: u32 = 32;

/// How far an array was served.
enum Progress {
    Done,
    /// Operations done before the pCPU was wanted.
    Until(u32),
}

type Outcome = Result<Progress, i64>;

fn status_of<T>(result: Result<T, i16>) -> i16 {
    result.err().unwrap_or(GNTST_okay)
}

impl Running<'_> {
    /// grant_table_op.
    pub(super) fn grant_table_op(&mut self, cmd: u32, uop: u64, count: u32) -> Served {
        let caller = Caller::of_guest(self);
        caller.grant_table_op(cmd, uop, count, &|| should_preempt(self))
    }
}

impl Caller<'_> {
    fn mapper(&self) -> Mapper<'_> {
        let (holder, root) = match &self.handles {
            Handles::Guest(space) => (0, Some(space.root)),
            Handles::Buffer(connection) => (connection.id, None),
        };
        Mapper { hv: self.hv, domain: self.domain, holder, root }
    }

    /// grant_table_op: `count` structures of the command's kind at `uop`.
    pub(super) fn grant_table_op(&self, op: u32, uop: u64, count: u32, is_wanted: Wanted<'_>) -> Served {
        let cmd = op & CMD_MASK;
        self.hv.table.count(__HYPERVISOR_grant_table_op, cmd);
        if count > i32::MAX as u32 || (cmd != GNTTABOP_cache_flush && op & !CMD_MASK != 0) {
            return Served::Done(-errno::EINVAL);
        }
        match self.serve_array(cmd, uop, count, is_wanted) {
            Ok((Progress::Done, _)) => Served::Done(0),
            Ok((Progress::Until(done), size)) => {
                let next = uop.wrapping_add(u64::from(done) * size);
                Served::Again([u64::from(op), next, u64::from(count - done), 0])
            }
            Err(errno) => Served::Done(-errno),
        }
    }

    /// Serves an array; how far, and the size of its elements.
    fn serve_array(&self, cmd: u32, uop: u64, count: u32, is_wanted: Wanted<'_>) -> Result<(Progress, u64), i64> {
        match cmd {
            GNTTABOP_map_grant_ref => self.map_all(uop, count, is_wanted).map(sized::<gnttab_map_grant_ref>),
            GNTTABOP_unmap_grant_ref => {
                let request = |op: &gnttab_unmap_grant_ref| UnmapRequest {
                    host_addr: op.host_addr,
                    dev_bus_addr: op.dev_bus_addr,
                    new_addr: 0,
                    handle: op.handle,
                };
                self.unmap_all(uop, count, is_wanted, request).map(sized::<gnttab_unmap_grant_ref>)
            }
            GNTTABOP_unmap_and_replace => {
                let request = |op: &gnttab_unmap_and_replace| UnmapRequest {
                    host_addr: op.host_addr,
                    dev_bus_addr: 0,
                    new_addr: op.new_addr,
                    handle: op.handle,
                };
                self.unmap_all(uop, count, is_wanted, request).map(sized::<gnttab_unmap_and_replace>)
            }
            GNTTABOP_transfer => self.transfer_all(uop, count, is_wanted).map(sized::<gnttab_transfer>),
            GNTTABOP_copy => self.copy_all(uop, count, is_wanted).map(sized::<gnttab_copy>),
            GNTTABOP_swap_grant_ref => self.swap_all(uop, count, is_wanted).map(sized::<gnttab_swap_grant_ref>),
            GNTTABOP_cache_flush => self
                .each::<gnttab_cache_flush>(uop, count, is_wanted, |at| self.cache_flush(&self.read(at)?))
                .map(sized::<gnttab_cache_flush>),
            _ => self.single(cmd, uop, count).map(|()| (Progress::Done, 0)),
        }
    }

    /// Runs `serve` on the handle of each element.
    fn each<T>(
        &self,
        uop: u64,
        count: u32,
        is_wanted: Wanted<'_>,
        mut serve: impl FnMut(u64) -> Result<(), i64>,
    ) -> Outcome {
        self.check_array(uop, u64::from(count), size_of::<T>() as u64)?;
        for index in 0..count {
            if index != 0 && is_wanted() {
                return Ok(Progress::Until(index));
            }
            serve(Self::element::<T>(uop, u64::from(index)))?;
        }
        Ok(Progress::Done)
    }

    /// Reads an element, and stores what `serve` returns as its 16-bit status.
    fn with_status<T: Pod>(&self, at: u64, status_offset: usize, serve: impl FnOnce(&T) -> i16) -> Result<(), i64> {
        let status = serve(&self.read(at)?);
        self.write(at.wrapping_add(status_offset as u64), &status)
    }

    fn map_all(&self, uop: u64, count: u32, is_wanted: Wanted<'_>) -> Outcome {
        let mapper = self.mapper();
        self.each::<gnttab_map_grant_ref>(uop, count, is_wanted, |at| {
            let mut op: gnttab_map_grant_ref = self.read(at)?;
            match mapper.map(&op) {
                Ok((handle, address)) => (op.handle, op.dev_bus_addr, op.status) = (handle, address, GNTST_okay),
                Err(status) => op.status = status,
            }
            self.write(at, &op)
        })
    }

    fn unmap_all<T: Pod>(
        &self,
        uop: u64,
        count: u32,
        is_wanted: Wanted<'_>,
        request: impl Fn(&T) -> UnmapRequest,
    ) -> Outcome {
        const STATUS: usize = std::mem::offset_of!(gnttab_unmap_grant_ref, status);
        const _: () = assert!(STATUS == std::mem::offset_of!(gnttab_unmap_and_replace, status));
        self.check_array(uop, u64::from(count), size_of::<T>() as u64)?;
        let mapper = self.mapper();
        let mut done = 0u32;
        while done < count {
            if done != 0 && is_wanted() {
                return Ok(Progress::Until(done));
            }
            let batch = (count - done).min(UNMAP_BATCH);
            let mut unmapped: Vec<Unmapped> = Vec::with_capacity(batch as usize);
            let at = Self::element::<T>(uop, u64::from(done));
            let result = self.each::<T>(at, batch, &|| false, |at| {
                self.with_status(at, STATUS, |op| {
                    let result = mapper.unmap(&request(op));
                    let status = status_of(result.as_ref().map_err(|&status| status));
                    unmapped.extend(result.ok().flatten());
                    status
                })
            });
            mapper.complete_unmaps(unmapped);
            result?;
            done += batch;
        }
        Ok(Progress::Done)
    }

    fn copy_all(&self, uop: u64, count: u32, is_wanted: Wanted<'_>) -> Outcome {
        let mut buffers = CopyBuffers::default();
        let status = std::mem::offset_of!(gnttab_copy, status);
        let result = self.each::<gnttab_copy>(uop, count, is_wanted, |at| {
            self.with_status(at, status, |op| {
                let result = copy_one(self.hv, self.domain.domid, op, &mut buffers);
                if result.is_err() {
                    buffers.release(self.hv);
                }
                status_of(result)
            })
        });
        buffers.release(self.hv);
        result
    }

    fn transfer_all(&self, uop: u64, count: u32, is_wanted: Wanted<'_>) -> Outcome {
        let status = std::mem::offset_of!(gnttab_transfer, status);
        self.each::<gnttab_transfer>(uop, count, is_wanted, |at| {
            self.with_status(at, status, |op| status_of(transfer_one(self.hv, self.domain, op)))
        })
    }

    fn swap_all(&self, uop: u64, count: u32, is_wanted: Wanted<'_>) -> Outcome {
        let status = std::mem::offset_of!(gnttab_swap_grant_ref, status);
        self.each::<gnttab_swap_grant_ref>(uop, count, is_wanted, |at| {
            self.with_status::<gnttab_swap_grant_ref>(at, status, |op| {
                status_of(self.domain.gnttab.lock().swap(&self.hv.memory.machine, op.ref_a, op.ref_b))
            })
        })
    }

    /// The operations that are one structure.
    fn single(&self, cmd: u32, uop: u64, count: u32) -> Result<(), i64> {
        let is_array = matches!(cmd, GNTTABOP_setup_table | GNTTABOP_query_size | GNTTABOP_get_status_frames);
        if is_array && count != 1 {
            return Err(errno::EINVAL);
        }
        match cmd {
            GNTTABOP_setup_table => {
                let mut op: gnttab_setup_table = self.read(uop)?;
                op.status = status_of(self.grant_target(op.dom).and_then(|domain| self.setup_table(&domain, &op)));
                self.write(uop, &op)
            }
            GNTTABOP_query_size => {
                let mut op: gnttab_query_size = self.read(uop)?;
                let size = self.grant_target(op.dom).map(|domain| {
                    let table = domain.gnttab.lock();
                    op.nr_frames = u32::try_from(table.frames().len()).unwrap_or(u32::MAX);
                    op.max_nr_frames = table.max_frames();
                });
                op.status = status_of(size);
                self.write(uop, &op)
            }
            GNTTABOP_get_status_frames => {
                let mut op: gnttab_get_status_frames = self.read(uop)?;
                op.status = status_of(self.grant_target(op.dom).and_then(|domain| {
                    let table = domain.gnttab.lock();
                    let frames = table.status_frames().get(..op.nr_frames as usize).ok_or(GNTST_general_error)?;
                    self.write_frames(op.frame_list, frames)
                }));
                self.write(uop, &op)
            }
            GNTTABOP_get_version => {
                let mut op: gnttab_get_version = self.read(uop)?;
                op.version = self.target(op.dom)?.gnttab.lock().version();
                self.write(uop, &op)
            }
            GNTTABOP_set_version => {
                let op: gnttab_set_version = self.read(uop)?;
                let (result, version) = {
                    let mut table = self.domain.gnttab.lock();
                    let result = table.set_version(&self.hv.frames, self.domain.domid, op.version);
                    (result, table.version())
                };
                self.write(uop, &gnttab_set_version { version })?;
                result
            }
            _ => Err(errno::ENOSYS),
        }
    }

    /// Checks a cache flush; caches are coherent here. Invalidating alone is not for x86.
    fn cache_flush(&self, op: &gnttab_cache_flush) -> Result<(), i64> {
        const PAGE: u32 = 4096;
        let is_within = u32::from(op.offset) < PAGE && u32::from(op.offset) + u32::from(op.length) <= PAGE;
        if !is_within || op.op & !(GNTTAB_CACHE_CLEAN | GNTTAB_CACHE_INVAL) != 0 {
            return Err(errno::EINVAL);
        }
        if op.length == 0 || op.op == 0 {
            return Ok(());
        }
        let mfn = Mfn::containing(op.a);
        let owner = self.hv.frames.info(mfn).ok_or(errno::EINVAL)?.owner.ok_or(errno::EPERM)?;
        if owner != self.domain.domid {
            let granter = self.hv.domain(owner).ok_or(errno::EPERM)?;
            if !granter.gnttab.lock().is_pinned_by(self.domain.domid, mfn) {
                return Err(errno::EINVAL);
            }
        }
        if op.op == GNTTAB_CACHE_INVAL { Err(errno::EOPNOTSUPP) } else { Ok(()) }
    }

    fn grant_target(&self, domid: u16) -> Result<Arc<Domain>, i16> {
        self.target(domid).map_err(
            |errno| {
                if errno == errno::ESRCH { GNTST_bad_domain } else { GNTST_permission_denied }
            },
        )
    }

    fn setup_table(&self, domain: &Domain, op: &gnttab_setup_table) -> Result<(), i16> {
        let mut table = domain.gnttab.lock();
        table.grow(&self.hv.frames, domain.domid, op.nr_frames)?;
        let frames = table.frames().get(..op.nr_frames as usize).ok_or(GNTST_general_error)?;
        self.write_frames(op.frame_list, frames)
    }

    fn write_frames(&self, list: u64, frames: &[Mfn]) -> Result<(), i16> {
        for (index, mfn) in (0u64..).zip(frames) {
            self.write(Self::element::<u64>(list, index), &mfn.0).map_err(|_| GNTST_bad_virt_addr)?;
        }
        Ok(())
    }
}

fn sized<T>(progress: Progress) -> (Progress, u64) {
    (progress, size_of::<T>() as u64)
}
