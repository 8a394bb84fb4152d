//! A dom0 process: to the hypervisor a vCPU of domain 0, with a `shared_info` of its own and an eventfd for upcalls.
//!
//! Requests are served in order by one thread for each connection; see docs/design/0001-seams.md for the packets.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use ring3_abi::xen::NR_VIRQS;

use super::connection_unsafe::{SharedMemory, receive, send, shut_down, signal};
use super::doorbell::BELLS_BYTES;
use super::foreign::ForeignEntries;
use crate::hypercall;
use crate::hypervisor::Hypervisor;

/// Page 0 is `shared_info`.
const BUFFER_OFFSET: usize = 4096;
/// Bytes of the hypercall buffer.
pub const BUFFER_BYTES: usize = 1 << 20;
/// The last page is that of the bells.
pub(super) const BELLS_OFFSET: usize = BUFFER_OFFSET + BUFFER_BYTES;
const REQUEST_BYTES: usize = 64;
/// In the last word of a request: nobody waits for an answer, and none is sent.
const NO_REPLY: u64 = 1;
/// There, too: the port's bell was rung, and the event may wait while its vCPU has something else to do.
const MAY_WAIT: u64 = 2;
/// 64-bit words of an array of bits for all ports.
const NR_PORT_WORDS: usize = 64;
const EVTCHN_PENDING: usize = 0x800;
const EVTCHN_MASK: usize = 0xa00;

/// What is wrong with the descriptors of a connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The memfd cannot be mapped.
    #[error("connection memory: {0}")]
    Memory(std::io::Error),
    /// No thread could be started.
    #[error("connection thread: {0}")]
    Thread(std::io::Error),
}

/// One connected dom0 process.
#[derive(Debug)]
pub struct Connection {
    pub id: u32,
    sock: OwnedFd,
    upcall: OwnedFd,
    pub(super) memory: SharedMemory,
    pub virq_ports: [AtomicU32; NR_VIRQS as usize],
    pub(crate) foreign: ForeignEntries,
}

impl Connection {
    pub(crate) fn new(id: u32, sock: OwnedFd, memory: OwnedFd, upcall: OwnedFd) -> Result<Self, ConnectionError> {
        let memory = SharedMemory::map(memory, BELLS_OFFSET + BELLS_BYTES).map_err(ConnectionError::Memory)?;
        debug_assert!(memory.len() > BUFFER_OFFSET);
        let virq_ports = std::array::from_fn(|_| AtomicU32::new(0));
        Ok(Self { id, sock, upcall, memory, virq_ports, foreign: ForeignEntries::default() })
    }

    /// Copies from the hypercall buffer.
    pub fn read(&self, handle: u64, out: &mut [u8]) -> bool {
        Self::place(handle, out.len()).is_some_and(|offset| self.memory.read(offset, out))
    }

    /// Copies to the hypercall buffer.
    pub fn write(&self, handle: u64, bytes: &[u8]) -> bool {
        Self::place(handle, bytes.len()).is_some_and(|offset| self.memory.write(offset, bytes))
    }

    fn place(handle: u64, len: usize) -> Option<usize> {
        if handle == 0 {
            return None;
        }
        let offset = usize::try_from(handle).ok()?.checked_add(BUFFER_OFFSET)?;
        (offset.checked_add(len)? <= BELLS_OFFSET).then_some(offset)
    }

    /// A port's word and bit of an array of bits for all ports.
    pub(super) fn bit(&self, array: usize, port: u32) -> Option<(&AtomicU64, u64)> {
        let index = (port / 64) as usize;
        let word = self.memory.word64(array + index * 8).filter(|_| index < NR_PORT_WORDS)?;
        Some((word, 1u64 << (port % 64)))
    }

    /// Sets a port pending, and signals the process if it is not masked and no upcall is pending yet.
    pub fn set_pending(&self, port: u32) {
        let Some((word, bit)) = self.bit(EVTCHN_PENDING, port) else { return };
        if word.fetch_or(bit, Ordering::SeqCst) & bit != 0 {
            return;
        }
        let is_masked = self.bit(EVTCHN_MASK, port).is_some_and(|(word, bit)| word.load(Ordering::SeqCst) & bit != 0);
        if !is_masked {
            self.raise(port);
        }
    }

    fn raise(&self, port: u32) {
        if let Some(selector) = self.memory.word64(8) {
            selector.fetch_or(1 << (port / 64), Ordering::SeqCst);
        }
        if self.memory.byte(0).is_some_and(|pending| pending.swap(1, Ordering::SeqCst) == 0) {
            signal(&self.upcall);
        }
    }

    /// Clears the mask of a port, and raises it if it was masked and is pending.
    pub fn unmask(&self, port: u32) {
        let was_masked =
            self.bit(EVTCHN_MASK, port).is_some_and(|(word, bit)| word.fetch_and(!bit, Ordering::SeqCst) & bit != 0);
        let is_pending =
            self.bit(EVTCHN_PENDING, port).is_some_and(|(word, bit)| word.load(Ordering::SeqCst) & bit != 0);
        if was_masked && is_pending {
            self.raise(port);
        }
    }

    /// Clears the pending bit of a closed port; returns (pending, masked) as they were.
    pub fn clear_pending(&self, port: u32) {
        if let Some((word, bit)) = self.bit(EVTCHN_PENDING, port) {
            word.fetch_and(!bit, Ordering::SeqCst);
        }
        self.set_busy(port, false);
        self.take_bell(port);
    }

    /// Makes the serving thread end.
    pub fn disconnect(&self) {
        shut_down(&self.sock);
    }

    /// Serves requests until the peer is gone or breaks the protocol.
    pub(crate) fn serve(self: &Arc<Self>, hv: &Hypervisor) {
        let mut request = [0u8; REQUEST_BYTES + 1];
        while let Ok(n) = receive(&self.sock, &mut request) {
            if n != REQUEST_BYTES {
                if n != 0 {
                    hv.dmesg.log(&format!("dom0 connection {}: packet of {n} bytes; closed", self.id));
                }
                break;
            }
            let word = |index: usize| {
                let mut raw = [0u8; 8];
                raw.copy_from_slice(&request[index * 8..index * 8 + 8]);
                u64::from_le_bytes(raw)
            };
            let args = [word(1), word(2), word(3), word(4), word(5), 0];
            let result = if word(7) & MAY_WAIT == 0 {
                hypercall::dispatch_dom0(hv, self, word(0), &args)
            } else {
                hypercall::send_lazily(hv, self, word(0), &args)
            };
            if word(7) & NO_REPLY != 0 {
                continue;
            }
            let mut reply = [0u8; 16];
            reply[..8].copy_from_slice(&word(6).to_le_bytes());
            reply[8..].copy_from_slice(&result.to_le_bytes());
            if send(&self.sock, &reply).is_err() {
                break;
            }
        }
    }
}
