//! Event channels: the port table of each domain, and delivery by the 2-level or the FIFO ABI.
//!
//! Lock order: `Hypervisor::evtchn_bind` (held over every change that touches two tables) → one table's lock at a
//! time. Sending takes table locks only, one after the other. Delivery happens with none held.

mod audit;
mod bind;
mod control;
mod deliver;
mod fifo;
mod lazy;

pub(crate) use audit::{audit, hold_frames};
pub use deliver::POLL_ANY;
pub use lazy::VcpuBells;

use std::sync::Weak;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use ring3_abi::event_channel::{EVTCHN_2L_NR_CHANNELS, EVTCHN_FIFO_NR_CHANNELS};
use ring3_machine::Machine;

use crate::domain::Domain;
use fifo::Fifo;

/// What a port is bound to.
#[derive(Clone, Debug, Default)]
pub enum Binding {
    #[default]
    Free,
    /// Waits for `remote` to bind.
    Unbound {
        remote: u16,
    },
    Interdomain {
        remote: Weak<Domain>,
        remote_domid: u16,
        remote_port: u32,
    },
    Virq(u32),
    Ipi,
}

/// One port.
#[derive(Clone, Debug, Default)]
pub struct Channel {
    pub binding: Binding,
    /// vCPU, or connection of domain 0, that is notified.
    pub notify: u32,
}

impl Channel {
    fn is_free(&self) -> bool {
        matches!(self.binding, Binding::Free)
    }
}

#[derive(Debug)]
struct Ports {
    channels: Vec<Channel>,
    /// No free port is below it.
    first_free: u32,
}

/// Ports that come into being together.
const PORTS_PER_BUCKET: usize = 64;

/// The ports of one domain.
#[derive(Debug)]
pub struct EventTable {
    ports: Mutex<Ports>,
    /// Ports are below it, and below what the ABI in use has.
    max_ports: u32,
    /// What `fifo` says, for those who only want to know which ABI is in use.
    is_fifo: AtomicBool,
    /// Lock order: after `ports`, before the scheduler's.
    fifo: Mutex<Option<Fifo>>,
}

impl EventTable {
    /// A table whose ports are below `max_ports`; port 0 is never valid.
    pub fn new(max_ports: u32) -> Self {
        Self {
            ports: Mutex::new(Ports { channels: Vec::new(), first_free: 1 }),
            max_ports: max_ports.max(2),
            is_fifo: AtomicBool::new(false),
            fifo: Mutex::new(None),
        }
    }

    /// Whether the guest has chosen the FIFO ABI.
    pub fn is_fifo(&self) -> bool {
        self.is_fifo.load(Ordering::SeqCst)
    }

    fn limit(&self) -> u32 {
        self.max_ports.min(if self.is_fifo() { EVTCHN_FIFO_NR_CHANNELS } else { EVTCHN_2L_NR_CHANNELS })
    }

    /// Runs `work` on the FIFO state, if that ABI is in use.
    fn with_fifo<T>(&self, work: impl FnOnce(&mut Fifo) -> T) -> Option<T> {
        if self.is_fifo() { self.fifo.lock().as_mut().map(work) } else { None }
    }

    /// A copy of a port's state; `None` when it is out of range. The range grows with what was ever bound, as on Xen;
    /// port 0 is in it, and never in use.
    pub fn get(&self, port: u32) -> Option<Channel> {
        let ports = self.ports.lock();
        let end = ports.channels.len().max(1).next_multiple_of(PORTS_PER_BUCKET);
        if port as usize >= end || port >= self.limit() {
            return None;
        }
        Some(ports.channels.get(port as usize).cloned().unwrap_or_default())
    }

    /// Binds the lowest free port.
    fn allocate(&self, machine: &Machine, channel: Channel) -> Option<u32> {
        let limit = self.limit();
        let mut ports = self.ports.lock();
        let mut port = ports.first_free;
        let mut skipped = None;
        while port < limit {
            let is_free = ports.channels.get(port as usize).is_none_or(|c| matches!(c.binding, Binding::Free));
            if is_free {
                if !self.with_fifo(|fifo| fifo.is_linked(machine, port)).unwrap_or(false) {
                    break;
                }
                // The guest has yet to take its last event out of the queue.
                skipped.get_or_insert(port);
            }
            port += 1;
        }
        if port >= limit {
            return None;
        }
        if ports.channels.len() <= port as usize {
            ports.channels.resize_with(port as usize + 1, Channel::default);
        }
        if let Some(slot) = ports.channels.get_mut(port as usize) {
            *slot = channel;
        }
        ports.first_free = skipped.unwrap_or(port + 1);
        self.with_fifo(|fifo| fifo.init_port(port));
        Some(port)
    }

    fn set(&self, port: u32, channel: Channel) {
        let mut ports = self.ports.lock();
        if matches!(channel.binding, Binding::Free) {
            ports.first_free = ports.first_free.min(port.max(1));
        }
        if let Some(slot) = ports.channels.get_mut(port as usize) {
            *slot = channel;
        }
    }

    fn set_notify(&self, port: u32, notify: u32) {
        if let Some(slot) = self.ports.lock().channels.get_mut(port as usize) {
            slot.notify = notify;
        }
    }

    /// Number of ports in use.
    pub fn nr_bound(&self) -> usize {
        self.ports.lock().channels.iter().filter(|c| !matches!(c.binding, Binding::Free)).count()
    }

    /// Ports in use for which `filter` holds.
    fn bound(&self, filter: impl Fn(&Channel) -> bool) -> Vec<u32> {
        let ports = self.ports.lock();
        let numbers = (0u32..).zip(&ports.channels);
        numbers.filter(|(_, c)| !matches!(c.binding, Binding::Free) && filter(c)).map(|(port, _)| port).collect()
    }
}
