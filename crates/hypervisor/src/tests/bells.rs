//! Events that a dom0 process sends by bells, and such as wait until their vCPU blocks.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ring3_abi::errno;
use ring3_abi::event_channel::*;
use ring3_abi::hypercall::*;
use ring3_abi::sched::SCHEDOP_block;

use super::support::{ARGS, Guest, build, machine};
use crate::domain::Connection;
use crate::hypercall::{dispatch_dom0, send_lazily};

const BELLS_PAGE: u64 = 4096 + (1 << 20);
const ATTENTION: u64 = BELLS_PAGE;
const SELECTOR: u64 = BELLS_PAGE + 0x40;
const BELLS: u64 = BELLS_PAGE + 0x200;
const BUSY: u64 = BELLS_PAGE + 0x400;
/// In the hypercall buffer.
const ARG: u64 = 64;

/// A dom0 process, with an event channel to a guest.
struct Process {
    guest: Guest,
    connection: Arc<Connection>,
    memory: File,
    _sock: UnixDatagram,
    port: u32,
    guest_port: u32,
}

fn file() -> File {
    let path = std::env::temp_dir().join(format!("bells-{}-{:?}", std::process::id(), std::thread::current().id()));
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file.set_len(BELLS_PAGE + 4096).unwrap();
    file
}

impl Process {
    fn new() -> Self {
        let (hv, _) = machine();
        let guest = build(&hv, 1);
        guest.write(ARGS, &evtchn_alloc_unbound { dom: ring3_abi::xen::DOMID_SELF, remote_dom: 0, port: 0 });
        assert_eq!(guest.call(__HYPERVISOR_event_channel_op, &[EVTCHNOP_alloc_unbound.into(), ARGS]), 0);
        let guest_port = guest.read::<evtchn_alloc_unbound>(ARGS).port;
        let (memory, (sock, theirs)) = (file(), UnixDatagram::pair().unwrap());
        let shared = memory.try_clone().unwrap();
        let id = hv.serve_connection(theirs.into(), shared.into(), file().into()).unwrap();
        let connection = Arc::clone(&hv.dom0.connections.read()[&id]);
        let bind = evtchn_bind_interdomain { remote_dom: guest.domid, remote_port: guest_port, ..Default::default() };
        assert!(connection.write(ARG, bytemuck::bytes_of(&bind)));
        let args = [EVTCHNOP_bind_interdomain.into(), ARG, 0, 0, 0, 0];
        assert_eq!(dispatch_dom0(&hv, &connection, __HYPERVISOR_event_channel_op.into(), &args), 0);
        let mut bound = evtchn_bind_interdomain::default();
        assert!(connection.read(ARG, bytemuck::bytes_of_mut(&mut bound)));
        let process = Self { guest, connection, memory, _sock: sock, port: bound.local_port, guest_port };
        process.clear();
        process
    }

    fn word(&self, at: u64) -> u64 {
        let mut raw = [0; 8];
        self.memory.read_exact_at(&mut raw, at).unwrap();
        u64::from_le_bytes(raw)
    }

    fn ring(&self, port: u32) {
        self.memory.write_all_at(&(1u64 << port).to_le_bytes(), BELLS).unwrap();
        self.memory.write_all_at(&1u64.to_le_bytes(), SELECTOR).unwrap();
    }

    fn send_lazily(&self, port: u32) -> i64 {
        assert!(self.connection.write(ARG, bytemuck::bytes_of(&evtchn_send { port })));
        let args = [EVTCHNOP_send.into(), ARG, 0, 0, 0, 0];
        send_lazily(&self.guest.hv, &self.connection, __HYPERVISOR_event_channel_op.into(), &args)
    }

    fn is_pending(&self) -> bool {
        self.guest.hv.evtchn_bits(&self.guest.domain(), self.guest_port).0
    }

    /// The guest has handled its events.
    fn clear(&self) {
        let domain = self.guest.domain();
        self.guest.hv.memory.machine.write(domain.shared_info, 0, &[0; 0xa00]).unwrap();
    }

    /// The guest blocks; whether it sleeps.
    fn block(&self) -> bool {
        assert_eq!(self.guest.call(__HYPERVISOR_sched_op, &[SCHEDOP_block.into()]), 0);
        self.guest.domain().vcpu(0).unwrap().blocked.load(Ordering::SeqCst)
    }
}

#[test]
fn test_event_waits_until_its_vcpu_blocks() {
    let process = Process::new();
    let bit = 1 << process.port;
    process.ring(process.port);
    assert_eq!(process.send_lazily(process.port), 0);
    assert!(!process.is_pending());
    assert_eq!((process.word(BELLS), process.word(BUSY)), (bit, bit));
    assert!(!process.block(), "there is an event now");
    assert!(process.is_pending());
    assert_eq!((process.word(BELLS), process.word(BUSY)), (0, 0));
    process.clear();
    // From now on the bell is enough, while the vCPU is busy.
    process.guest.with(|running| running.hv.note_busy(running.vcpu));
    assert_eq!(process.word(BUSY), bit);
    process.ring(process.port);
    assert!(!process.block());
    assert!(process.is_pending());
}

#[test]
fn test_event_for_a_blocked_vcpu_does_not_wait() {
    let process = Process::new();
    assert!(process.block());
    process.ring(process.port);
    assert_eq!(process.send_lazily(process.port), 0);
    assert!(process.is_pending());
    assert_eq!((process.word(BELLS), process.word(BUSY)), (0, 0));
    process.clear();
    assert_eq!(process.send_lazily(process.port), 0, "somebody has answered the bell");
    assert!(!process.is_pending());
    assert_eq!(process.send_lazily(1000), -errno::EINVAL);
    let not_a_send = send_lazily(&process.guest.hv, &process.connection, __HYPERVISOR_sched_op.into(), &[0; 6]);
    assert_eq!(not_a_send, -errno::EINVAL);
}

#[test]
fn test_idle_worker_answers_the_bells_of_who_rings() {
    let process = Process::new();
    let hv = &process.guest.hv;
    process.ring(process.port);
    hv.answer_bells();
    assert!(!process.is_pending(), "nobody said that it rings");
    assert!(process.block());
    assert_eq!(process.send_lazily(process.port), 0);
    process.clear();
    hv.attend(true);
    assert_eq!(process.word(ATTENTION), 1);
    process.ring(process.port + 1);
    hv.answer_bells();
    assert!(!process.is_pending(), "the port is not in use");
    process.ring(process.port);
    hv.answer_bells();
    assert!(process.is_pending());
    hv.attend(false);
    assert_eq!((process.word(ATTENTION), process.word(BELLS), process.word(SELECTOR)), (0, 0, 0));
}

#[test]
fn test_closed_port_has_no_bell() {
    let process = Process::new();
    process.ring(process.port);
    assert_eq!(process.send_lazily(process.port), 0);
    process.guest.hv.evtchn_close(&process.guest.hv.dom0, process.port).unwrap();
    assert_eq!((process.word(BELLS), process.word(BUSY)), (0, 0));
    process.ring(process.port);
    process.clear();
    assert!(process.block());
    assert!(!process.is_pending());
}
