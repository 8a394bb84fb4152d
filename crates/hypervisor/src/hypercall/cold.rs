//! Cold hypercalls: handlers that whoever embeds the hypervisor registers, by number.

use std::fmt::Debug;
use std::sync::Arc;

use parking_lot::RwLock;
use ring3_abi::errno;
use ring3_abi::hypercall::NR_HYPERCALLS;
use ring3_engine::AddressSpace;

use super::{Args, Caller, Handles, HypercallResult};
use crate::domain::Connection;
use crate::memory::Memory;

/// Resolver of guest handles that lives on its own.
#[derive(Clone, Debug)]
pub enum OwnedHandles {
    Guest(Memory, AddressSpace),
    Buffer(Arc<Connection>),
}

/// Who calls, for a handler that cannot borrow.
#[derive(Clone, Debug)]
pub struct ColdContext {
    pub domid: u16,
    pub vcpu: u32,
    pub is_privileged: bool,
    pub handles: OwnedHandles,
}

impl ColdContext {
    /// Copies from a guest handle; false on a fault.
    pub fn read(&self, handle: u64, out: &mut [u8]) -> bool {
        match &self.handles {
            OwnedHandles::Guest(memory, space) => memory.read(space, handle, out).is_ok(),
            OwnedHandles::Buffer(connection) => connection.read(handle, out),
        }
    }

    /// Copies to a guest handle; false on a fault.
    pub fn write(&self, handle: u64, bytes: &[u8]) -> bool {
        match &self.handles {
            OwnedHandles::Guest(memory, space) => memory.write(space, handle, bytes).is_ok(),
            OwnedHandles::Buffer(connection) => connection.write(handle, bytes),
        }
    }
}

/// A handler of one hypercall number.
pub trait ColdHandler: Send + Sync + Debug {
    /// Serves the call; the result is what the caller's register gets. Called without any lock.
    fn call(&self, context: &ColdContext, args: &[u64; 5]) -> i64;
}

/// The handler of one hypercall number, if there is one.
type Slot = RwLock<Option<Arc<dyn ColdHandler>>>;

/// Handlers by number.
#[derive(Debug)]
pub struct ColdHandlers {
    handlers: Box<[Slot]>,
}

impl Default for ColdHandlers {
    fn default() -> Self {
        Self { handlers: (0..NR_HYPERCALLS).map(|_| RwLock::new(None)).collect() }
    }
}

impl ColdHandlers {
    /// Registers the handler of a number, in place of an earlier one. False if there is no such number.
    pub fn register(&self, op: u32, handler: Arc<dyn ColdHandler>) -> bool {
        let Some(slot) = self.handlers.get(op as usize) else { return false };
        *slot.write() = Some(handler);
        true
    }

    /// Drops all handlers.
    pub fn clear(&self) {
        self.handlers.iter().for_each(|slot| *slot.write() = None);
    }

    fn get(&self, op: u32) -> Option<Arc<dyn ColdHandler>> {
        self.handlers.get(op as usize)?.read().clone()
    }
}

impl Caller<'_> {
    /// Hands a call to its cold handler.
    pub(super) fn cold(&self, number: u32, args: &Args) -> HypercallResult {
        let handler = self.hv.cold.get(number).ok_or(errno::ENOSYS)?;
        let context = ColdContext {
            domid: self.domain.domid,
            vcpu: self.id,
            is_privileged: self.domain.is_privileged,
            handles: match self.handles {
                Handles::Guest(space) => OwnedHandles::Guest(self.domain.memory.clone(), space),
                Handles::Buffer(connection) => OwnedHandles::Buffer(Arc::clone(connection)),
            },
        };
        let [a1, a2, a3, a4, a5, _] = *args;
        Ok(handler.call(&context, &[a1, a2, a3, a4, a5]))
    }
}
