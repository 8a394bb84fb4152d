//! console_io: the hypervisor's own console. What guests write goes to the dmesg ring.

use ring3_abi::errno;
use ring3_abi::hypercall::__HYPERVISOR_console_io;
use ring3_abi::xen::{CONSOLEIO_read, CONSOLEIO_write};

use super::{Caller, HypercallResult, Served, should_preempt};
use crate::vcpu::bounce::Running;

const CHUNK_BYTES: usize = 256;

impl Caller<'_> {
    fn write_chunk(&self, count: u32, buffer: u64) -> Result<u32, i64> {
        let mut chunk = [0u8; CHUNK_BYTES];
        let len = (count as usize).min(CHUNK_BYTES);
        let part = chunk.get_mut(..len).ok_or(errno::EINVAL)?;
        self.read_bytes(buffer, part)?;
        self.hv.dmesg.guest_write(self.domain.domid, part);
        u32::try_from(len).map_err(|_| errno::EINVAL)
    }

    /// console_io of a dom0 process. There is no serial port to read from.
    pub(super) fn console_io(&self, cmd: u32, count: u32, buffer: u64) -> HypercallResult {
        self.hv.table.count(__HYPERVISOR_console_io, cmd);
        match cmd {
            CONSOLEIO_write => {
                let mut done = 0u32;
                while done < count {
                    done += self.write_chunk(count - done, buffer + u64::from(done))?;
                }
                Ok(0)
            }
            CONSOLEIO_read => Ok(0),
            _ => Err(errno::ENOSYS),
        }
    }
}

impl Running<'_> {
    /// console_io of a guest: it may write, and a long text does not hold the pCPU.
    pub(super) fn console_io(&mut self, cmd: u32, count: u32, buffer: u64) -> Served {
        self.hv.table.count(__HYPERVISOR_console_io, cmd);
        if cmd != CONSOLEIO_write {
            return Served::Done(-errno::EPERM);
        }
        let caller = Caller::of_guest(self);
        let mut done = 0u32;
        while done < count {
            match caller.write_chunk(count - done, buffer.wrapping_add(u64::from(done))) {
                Ok(len) => done += len,
                Err(errno) => return Served::Done(-errno),
            }
            if done < count && should_preempt(self) {
                let next = buffer.wrapping_add(u64::from(done));
                return Served::Again([u64::from(cmd), u64::from(count - done), next, 0]);
            }
        }
        Served::Done(0)
    }
}
