//! Who calls, and how its guest handles are resolved: guest virtual addresses, or offsets into a connection's buffer.

use std::sync::Arc;

use bytemuck::Pod;
use ring3_abi::errno;
use ring3_abi::xen::DOMID_SELF;
use ring3_engine::AddressSpace;

use crate::domain::{Connection, Domain};
use crate::hypervisor::Hypervisor;
use crate::memory::{is_canonical, is_reserved};
use crate::vcpu::bounce::Running;

/// Whether a guest handle reaches into the hypervisor's hole: Xen refuses that, although the guest may read the M2P. A copy of
/// nothing reaches nowhere.
fn reaches_reserved(handle: u64, nr_bytes: usize) -> bool {
    nr_bytes != 0 && (is_reserved(handle) || is_reserved(handle.wrapping_add(nr_bytes as u64 - 1)))
}

/// Resolver of guest handles.
#[derive(Clone, Copy, Debug)]
pub enum Handles<'a> {
    /// Virtual addresses of the guest kernel.
    Guest(AddressSpace),
    /// Offsets into the hypercall buffer; 0 is NULL.
    Buffer(&'a Arc<Connection>),
}

/// The caller of a hypercall.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    pub hv: &'a Hypervisor,
    pub domain: &'a Domain,
    /// vCPU id, or the connection's.
    pub id: u32,
    pub handles: Handles<'a>,
}

impl<'a> Caller<'a> {
    /// A guest kernel.
    pub fn of_guest(running: &Running<'a>) -> Self {
        Self {
            hv: running.hv,
            domain: running.domain,
            id: running.vcpu.id,
            handles: Handles::Guest(running.state.kernel_space()),
        }
    }

    /// A dom0 process.
    pub fn of_connection(hv: &'a Hypervisor, connection: &'a Arc<Connection>) -> Self {
        Self { hv, domain: &hv.dom0, id: connection.id, handles: Handles::Buffer(connection) }
    }

    /// Checks, as Xen does first, whether a handle can be that of an array: its start is the guest's, and its size no
    /// wild number. Elements may still be absent.
    ///
    /// # Errors
    /// EFAULT.
    pub fn check_array(&self, handle: u64, count: u64, size: u64) -> Result<(), i64> {
        let is_possible = match &self.handles {
            Handles::Guest(_) => count < u64::MAX / size.max(1) && (is_canonical(handle) && !is_reserved(handle)),
            Handles::Buffer(_) => true,
        };
        if is_possible { Ok(()) } else { Err(errno::EFAULT) }
    }

    /// Copies bytes from a handle.
    ///
    /// # Errors
    /// EFAULT.
    pub fn read_bytes(&self, handle: u64, out: &mut [u8]) -> Result<(), i64> {
        let ok = match &self.handles {
            Handles::Guest(space) => {
                !reaches_reserved(handle, out.len()) && self.domain.memory.read(space, handle, out).is_ok()
            }
            Handles::Buffer(connection) => connection.read(handle, out),
        };
        if ok { Ok(()) } else { Err(errno::EFAULT) }
    }

    /// Copies bytes to a handle.
    ///
    /// # Errors
    /// EFAULT.
    pub fn write_bytes(&self, handle: u64, bytes: &[u8]) -> Result<(), i64> {
        let ok = match &self.handles {
            Handles::Guest(space) => {
                !reaches_reserved(handle, bytes.len()) && self.domain.memory.write(space, handle, bytes).is_ok()
            }
            Handles::Buffer(connection) => connection.write(handle, bytes),
        };
        if ok { Ok(()) } else { Err(errno::EFAULT) }
    }

    /// Copies as many elements of an array as can be read; returns how many.
    pub fn read_words(&self, handle: u64, out: &mut [u64]) -> usize {
        if self.read_bytes(handle, bytemuck::cast_slice_mut(out)).is_ok() {
            return out.len();
        }
        let mut elements = (0u64..).zip(out);
        elements
            .position(|(index, word)| self.read(Self::element::<u64>(handle, index)).map(|v| *word = v).is_err())
            .unwrap_or(0)
    }

    /// Copies as many elements to an array as can be written; returns how many.
    pub fn write_words(&self, handle: u64, words: &[u64]) -> usize {
        if self.write_bytes(handle, bytemuck::cast_slice(words)).is_ok() {
            return words.len();
        }
        let mut elements = (0u64..).zip(words);
        elements.position(|(index, word)| self.write(Self::element::<u64>(handle, index), word).is_err()).unwrap_or(0)
    }

    /// Copies a structure from a handle.
    ///
    /// # Errors
    /// EFAULT.
    pub fn read<T: Pod>(&self, handle: u64) -> Result<T, i64> {
        let mut value = T::zeroed();
        self.read_bytes(handle, bytemuck::bytes_of_mut(&mut value))?;
        Ok(value)
    }

    /// Copies a structure to a handle.
    ///
    /// # Errors
    /// EFAULT.
    pub fn write<T: Pod>(&self, handle: u64, value: &T) -> Result<(), i64> {
        self.write_bytes(handle, bytemuck::bytes_of(value))
    }

    /// Handle of element `index` of an array.
    pub fn element<T>(handle: u64, index: u64) -> u64 {
        handle.wrapping_add(index.wrapping_mul(size_of::<T>() as u64))
    }

    /// Resolves a domid argument: the caller itself, or, for the privileged, any.
    ///
    /// # Errors
    /// ESRCH; EPERM.
    pub fn target(&self, domid: u16) -> Result<Arc<Domain>, i64> {
        let domid = if domid == DOMID_SELF { self.domain.domid } else { domid };
        let found = self.hv.domain(domid);
        if domid != self.domain.domid && !self.domain.is_privileged {
            return Err(if found.is_some() { errno::EPERM } else { errno::ESRCH });
        }
        found.filter(|d| !d.is_dying.load(std::sync::atomic::Ordering::SeqCst)).ok_or(errno::ESRCH)
    }
}
