//! Event channels, 2-level ABI: the port table of each domain, and delivery.
//!
//! Lock order: `Hypervisor::evtchn_bind` (held over every change that touches two tables) → one table's lock at a
//! time. Sending takes table locks only, one after the other. Delivery happens with none held.

mod audit;
mod bind;
mod deliver;

pub(crate) use audit::audit;
pub use deliver::POLL_ANY;

use std::sync::Weak;

use parking_lot::Mutex;
use ring3_abi::event_channel::EVTCHN_2L_NR_CHANNELS;

use crate::domain::Domain;

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

#[derive(Debug)]
struct Ports {
    channels: Vec<Channel>,
    /// No free port is below it.
    first_free: u32,
}

/// The ports of one domain.
#[derive(Debug)]
pub struct EventTable {
    ports: Mutex<Ports>,
    /// Ports are below it.
    limit: u32,
}

impl EventTable {
    /// A table whose ports are at most `max_port`; port 0 is never valid.
    pub fn new(max_port: u32) -> Self {
        let limit = max_port.saturating_add(1).clamp(2, EVTCHN_2L_NR_CHANNELS);
        Self { ports: Mutex::new(Ports { channels: Vec::new(), first_free: 1 }), limit }
    }

    /// A copy of a port's state; `None` when it is out of range.
    pub fn get(&self, port: u32) -> Option<Channel> {
        if port == 0 || port >= self.limit {
            return None;
        }
        Some(self.ports.lock().channels.get(port as usize).cloned().unwrap_or_default())
    }

    /// Binds the lowest free port.
    fn allocate(&self, channel: Channel) -> Option<u32> {
        let mut ports = self.ports.lock();
        let mut port = ports.first_free;
        while port < self.limit {
            let is_free = ports.channels.get(port as usize).is_none_or(|c| matches!(c.binding, Binding::Free));
            if is_free {
                break;
            }
            port += 1;
        }
        if port >= self.limit {
            return None;
        }
        if ports.channels.len() <= port as usize {
            ports.channels.resize_with(port as usize + 1, Channel::default);
        }
        if let Some(slot) = ports.channels.get_mut(port as usize) {
            *slot = channel;
        }
        ports.first_free = port + 1;
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
