//! grant_table_op: the table itself, version 1. Mapping, copying and transfer answer -ENOSYS so far.

use ring3_abi::errno;
use ring3_abi::grant_table::*;
use ring3_abi::hypercall::__HYPERVISOR_grant_table_op;

use super::{Caller, HypercallResult};

impl Caller<'_> {
    /// grant_table_op: `count` structures of the command's kind at `uop`.
    pub(super) fn grant_table_op(&self, cmd: u32, uop: u64, count: u32) -> HypercallResult {
        self.hv.table.count(__HYPERVISOR_grant_table_op, cmd);
        if count > i32::MAX as u32 {
            return Err(errno::EINVAL);
        }
        match cmd {
            GNTTABOP_setup_table => {
                if count != 1 {
                    return Err(errno::EINVAL);
                }
                let mut op: gnttab_setup_table = self.read(uop)?;
                op.status = self.setup_table(&op)?;
                self.write(uop, &op)?;
            }
            GNTTABOP_query_size => {
                if count != 1 {
                    return Err(errno::EINVAL);
                }
                let mut op: gnttab_query_size = self.read(uop)?;
                op.status = match self.target(op.dom) {
                    Ok(domain) => {
                        let table = domain.gnttab.lock();
                        op.nr_frames = u32::try_from(table.frames().len()).unwrap_or(u32::MAX);
                        op.max_nr_frames = table.max_frames();
                        GNTST_okay
                    }
                    Err(errno::ESRCH) => GNTST_bad_domain,
                    Err(_) => GNTST_permission_denied,
                };
                self.write(uop, &op)?;
            }
            GNTTABOP_get_version => {
                let mut op: gnttab_get_version = self.read(uop)?;
                self.target(op.dom)?;
                op.version = 1;
                self.write(uop, &op)?;
            }
            GNTTABOP_set_version => {
                let op: gnttab_set_version = self.read(uop)?;
                let result = match op.version {
                    1 => Ok(0),
                    2 => Err(errno::ENOSYS),
                    _ => Err(errno::EINVAL),
                };
                self.write(uop, &gnttab_set_version { version: 1 })?;
                return result;
            }
            _ => return Err(errno::ENOSYS),
        }
        Ok(0)
    }

    fn setup_table(&self, op: &gnttab_setup_table) -> Result<i16, i64> {
        let domain = match self.target(op.dom) {
            Ok(domain) => domain,
            Err(errno::ESRCH) => return Ok(GNTST_bad_domain),
            Err(_) => return Ok(GNTST_permission_denied),
        };
        let mut table = domain.gnttab.lock();
        let current = u32::try_from(table.frames().len()).unwrap_or(u32::MAX);
        if table.grow(&self.hv.frames, domain.domid, op.nr_frames.max(current)).is_err() {
            return Ok(GNTST_general_error);
        }
        for (index, mfn) in (0u64..).zip(table.frames().iter().take(op.nr_frames as usize)) {
            self.write(Self::element::<u64>(op.frame_list, index), &mfn.0)?;
        }
        Ok(GNTST_okay)
    }
}
