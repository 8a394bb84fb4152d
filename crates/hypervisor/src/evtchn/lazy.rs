//! Events that domain 0 sends by bells ([`crate::domain`]'s doorbell), and such as may wait until their vCPU blocks.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use ring3_abi::errno;

use super::Binding;
use crate::domain::Connection;
use crate::hypervisor::Hypervisor;
use crate::vcpu::Vcpu;

/// Bells that a vCPU looks at before it blocks. More are not worth it: their events do not wait.
const NR_BELLS_MAX: usize = 32;

/// The bells of a vCPU: connection and port.
#[derive(Debug, Default)]
pub struct VcpuBells(Mutex<Vec<(Weak<Connection>, u32)>>);

impl VcpuBells {
    fn each(&self, mut action: impl FnMut(&Connection, u32)) {
        for (connection, port) in self.0.lock().iter() {
            if let Some(connection) = connection.upgrade() {
                action(&connection, *port);
            }
        }
    }

    /// Adds a bell; false if there are too many. `is_valid` says of the others whether they are still of use.
    fn add(&self, connection: &Arc<Connection>, port: u32, is_valid: impl Fn(&Connection, u32) -> bool) -> bool {
        let mut bells = self.0.lock();
        let is_same = |(other, at): &(Weak<Connection>, u32)| *at == port && other.as_ptr() == Arc::as_ptr(connection);
        if bells.iter().any(is_same) {
            return true;
        }
        bells.retain(|(other, port)| other.upgrade().is_some_and(|other| is_valid(&other, *port)));
        let has_room = bells.len() < NR_BELLS_MAX;
        if has_room {
            bells.push((Arc::downgrade(connection), port));
        }
        has_room
    }
}

impl Hypervisor {
    /// `EVTCHNOP_send` of a dom0 process that has rung the port's bell: if the vCPU is busy, it sees that before it blocks.
    /// Who sends so sends again, as any other event, when nobody has taken the bell for too long.
    ///
    /// # Errors
    /// As [`Self::evtchn_send`].
    pub fn evtchn_send_lazily(&self, connection: &Arc<Connection>, port: u32) -> Result<(), i64> {
        let channel = self.dom0.evtchn.get(port).ok_or(errno::EINVAL)?;
        let remote = match channel.binding {
            Binding::Interdomain { remote, remote_port, .. } if channel.notify == connection.id => {
                remote.upgrade().map(|remote| (remote, remote_port))
            }
            _ => None,
        };
        self.heed(connection);
        if let Some((remote, remote_port)) = remote
            && let Some(peer) = remote.evtchn.get(remote_port)
            && let Some(vcpu) = remote.vcpu(peer.notify)
            && vcpu.bells.add(connection, port, |other, port| self.is_bell_of(other, port))
        {
            connection.set_busy(port, true);
            // Either its thread takes the bell when it blocks, or it is seen to be blocked.
            if !vcpu.blocked.load(Ordering::SeqCst) {
                return Ok(());
            }
            connection.set_busy(port, false);
        }
        if connection.take_bell(port) { self.evtchn_send(&self.dom0, port) } else { Ok(()) }
    }

    fn is_bell_of(&self, connection: &Connection, port: u32) -> bool {
        self.dom0.evtchn.get(port).is_some_and(|channel| channel.notify == connection.id)
    }

    /// From now on workers without work look at a connection's bells.
    fn heed(&self, connection: &Arc<Connection>) {
        let is_known = |ringers: &[Arc<Connection>]| ringers.iter().any(|other| Arc::ptr_eq(other, connection));
        if !is_known(&self.ringers.read()) {
            let mut ringers = self.ringers.write();
            if !is_known(&ringers) {
                ringers.push(Arc::clone(connection));
            }
        }
    }

    /// A connection is gone.
    pub fn forget_ringer(&self, connection: &Arc<Connection>) {
        self.ringers.write().retain(|other| !Arc::ptr_eq(other, connection));
    }

    /// Says to all that ring bells whether these are looked at.
    pub fn attend(&self, is_looking: bool) {
        self.ringers.read().iter().for_each(|connection| connection.attend(is_looking));
    }

    /// Sends the events whose bells were rung.
    pub fn answer_bells(&self) {
        for connection in self.ringers.read().iter().filter(|connection| connection.has_rung()) {
            connection.take_bells(|port| {
                if self.is_bell_of(connection, port) {
                    // A port that was closed meanwhile has nothing to tell.
                    let _ = self.evtchn_send(&self.dom0, port);
                }
            });
        }
    }

    /// A vCPU is about to block, and is `blocked`: sends it the events that waited for this.
    pub fn answer_own_bells(&self, vcpu: &Vcpu) {
        vcpu.bells.each(|connection, port| {
            connection.set_busy(port, false);
            if connection.take_bell(port) && self.is_bell_of(connection, port) {
                let _ = self.evtchn_send(&self.dom0, port);
            }
        });
    }

    /// A vCPU runs again.
    pub fn note_busy(&self, vcpu: &Vcpu) {
        vcpu.bells.each(|connection, port| connection.set_busy(port, true));
    }
}
