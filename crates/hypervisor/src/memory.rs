//! Guest memory by virtual address, as the current page tables of a vCPU show it.
//!
//! Every copy walks the guest's own tables page by page, so it sees what the guest would see, and fails where the
//! guest would fault. Bytes are copied once; callers check the copy. While one vCPU's hypercall copies, another vCPU
//! may take the page away: on domains with several, the frame is held as a mapping would hold it.

use std::sync::Arc;

use ring3_engine::{Access, AddressSpace, Engine, HYPERVISOR_VIRT_END, HYPERVISOR_VIRT_START, PageFault, walk};
use ring3_machine::{Machine, Mfn, PAGE_SIZE, PAGE_SIZE_BYTES};

use crate::mm::FrameTable;

/// A guest address that cannot be accessed, with what hardware would say about it (U/S aside).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub va: u64,
    pub error_code: u32,
}

/// Whether bits 47 to 63 of `va` are equal.
pub const fn is_canonical(va: u64) -> bool {
    ((va << 16) as i64 >> 16) as u64 == va
}

/// Whether `va` lies in the hypervisor's hole.
pub const fn is_reserved(va: u64) -> bool {
    va >= HYPERVISOR_VIRT_START && va < HYPERVISOR_VIRT_END
}

/// Machine memory with the engine that must hear of writes to translated code.
#[derive(Clone, Debug)]
pub struct Memory {
    pub machine: Arc<Machine>,
    pub engine: Arc<dyn Engine>,
    pub frames: Arc<FrameTable>,
    /// Whether page tables may change while a copy is under way.
    pub is_shared: bool,
}

impl Memory {
    /// Writes to a frame, and drops code made from it. Returns whether the frame and range exist.
    pub fn write_frame(&self, mfn: Mfn, offset: usize, bytes: &[u8]) -> bool {
        if self.machine.write(mfn, offset, bytes).is_err() {
            return false;
        }
        if self.machine.code().has_code_now(mfn) {
            self.engine.invalidate_code(mfn);
        }
        true
    }

    fn translate(&self, space: &AddressSpace, va: u64, access: Access) -> Result<Mfn, Fault> {
        if !is_canonical(va) {
            return Err(Fault { va, error_code: 0 });
        }
        match walk(&self.machine, space, va, access) {
            Ok(translation) => Ok(translation.mfn),
            Err(PageFault { error_code }) => Err(Fault { va, error_code }),
        }
    }

    /// Runs `copy` on the frame that `va` maps to, which stays what it is meanwhile.
    fn with_frame<T>(
        &self,
        space: &AddressSpace,
        va: u64,
        access: Access,
        copy: impl FnOnce(Mfn) -> T,
    ) -> Result<T, Fault> {
        let mut mfn = self.translate(space, va, access)?;
        if !self.is_shared {
            return Ok(copy(mfn));
        }
        let is_write = access == Access::Write;
        loop {
            let is_held = self.frames.hold_mapped(mfn, is_write);
            let now = self.translate(space, va, access);
            if is_held {
                if now == Ok(mfn) {
                    let result = copy(mfn);
                    self.frames.put_mapped(mfn, is_write);
                    return Ok(result);
                }
                self.frames.put_mapped(mfn, is_write);
            } else if now == Ok(mfn) {
                // Mapped, but not to be held so: no guest mapping of such a kind is valid.
                return Err(Fault { va, error_code: 0 });
            }
            mfn = now?;
        }
    }

    fn each_page(
        &self,
        space: &AddressSpace,
        va: u64,
        len: usize,
        access: Access,
        mut copy: impl FnMut(Mfn, usize, usize, usize) -> bool,
    ) -> Result<(), Fault> {
        let mut done = 0usize;
        while done < len {
            let at = va.wrapping_add(done as u64);
            let offset = (at & (PAGE_SIZE - 1)) as usize;
            let chunk = (PAGE_SIZE_BYTES - offset).min(len - done);
            if !self.with_frame(space, at, access, |mfn| copy(mfn, offset, done, chunk))? {
                return Err(Fault { va: at, error_code: 0 });
            }
            done += chunk;
        }
        Ok(())
    }

    /// Copies guest memory.
    ///
    /// # Errors
    /// [`Fault`] at the first byte that cannot be read.
    pub fn read(&self, space: &AddressSpace, va: u64, out: &mut [u8]) -> Result<(), Fault> {
        let len = out.len();
        self.each_page(space, va, len, Access::Read, |mfn, offset, done, chunk| {
            out.get_mut(done..done + chunk).is_some_and(|part| self.machine.read(mfn, offset, part).is_ok())
        })
    }

    /// Copies instruction bytes, as many as can be fetched; at least one, else the fault.
    ///
    /// # Errors
    /// [`Fault`] when not even the first byte can be fetched.
    pub fn fetch(&self, space: &AddressSpace, va: u64, out: &mut [u8]) -> Result<usize, Fault> {
        let mut fetched = 0usize;
        let len = out.len();
        let result = self.each_page(space, va, len, Access::Execute, |mfn, offset, done, chunk| {
            let ok = out.get_mut(done..done + chunk).is_some_and(|part| self.machine.read(mfn, offset, part).is_ok());
            fetched += if ok { chunk } else { 0 };
            ok
        });
        match result {
            Err(fault) if fetched == 0 => Err(fault),
            _ => Ok(fetched),
        }
    }

    /// Copies to guest memory; bytes before a fault are written.
    ///
    /// # Errors
    /// [`Fault`] at the first byte that cannot be written.
    pub fn write(&self, space: &AddressSpace, va: u64, bytes: &[u8]) -> Result<(), Fault> {
        self.each_page(space, va, bytes.len(), Access::Write, |mfn, offset, done, chunk| {
            bytes.get(done..done + chunk).is_some_and(|part| self.write_frame(mfn, offset, part))
        })
    }
}
