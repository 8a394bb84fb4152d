//! One machine: everything that all domains share, and the threads.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use parking_lot::{Mutex, RwLock};
use ring3_engine::{Engine, Requests};
use ring3_machine::{Machine, Mfn};

use crate::cpuid::Cpus;
use crate::dmesg::Dmesg;
use crate::domain::{Connection, ConnectionError, Domain};
use crate::heap_unsafe::share_heap;
use crate::hypercall::{ColdHandlers, Table};
use crate::idle::{self, IdleThread};
use crate::memory::Memory;
use crate::mm::{FlushSink, FrameTable};
use crate::sched::{self, Scheduler};
use crate::time::{Clock, Timers};

/// What the embedder is told. `errno` gives Xen's number.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A request that Xen would refuse with this (positive) number.
    #[error("{what}")]
    Refused { errno: i64, what: String },
    /// Machine memory.
    #[error(transparent)]
    Machine(#[from] ring3_machine::Error),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] ring3_engine::Error),
    /// A dom0 connection.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

impl Error {
    pub(crate) fn refused(errno: i64, what: impl Into<String>) -> Self {
        Self::Refused { errno, what: what.into() }
    }

    /// Xen's (positive) number for it.
    pub fn errno(&self) -> i64 {
        match self {
            Self::Refused { errno, .. } => *errno,
            Self::Machine(_) | Self::Engine(_) | Self::Connection(_) | Self::Thread(_) => ring3_abi::errno::ENOMEM,
        }
    }
}

/// The hypervisor. Share it by `Arc`; [`Hypervisor::stop`] ends its threads.
#[derive(Debug)]
pub struct Hypervisor {
    pub memory: Memory,
    pub frames: Arc<FrameTable>,
    pub clock: Clock,
    pub cpuid: Cpus,
    pub dmesg: Dmesg,
    pub table: Table,
    pub cold: ColdHandlers,
    pub sched: Scheduler,
    pub timers: Timers,
    pub(crate) idle: IdleThread,
    /// Held while a domain is destroyed. Outermost: nobody takes it with another lock held, and no vCPU takes it.
    pub(crate) destroy: Mutex<()>,
    /// Held over every change of event channels that touches two domains.
    pub(crate) evtchn_bind: Mutex<()>,
    pub(crate) domains: RwLock<BTreeMap<u16, Arc<Domain>>>,
    pub dom0: Arc<Domain>,
    /// Connections of dom0 that send events by bells.
    pub ringers: RwLock<Vec<Arc<Connection>>>,
    pub(crate) next_domid: AtomicU32,
    pub(crate) next_vcpu_uid: AtomicU64,
    next_connection: AtomicU32,
    nr_pcpus: usize,
    threads: Mutex<Vec<JoinHandle<()>>>,
    connection_threads: Mutex<Vec<JoinHandle<()>>>,
    is_stopped: AtomicBool,
}

/// Flushes for the memory manager, through the domain list.
#[derive(Debug)]
struct Flusher(Weak<Hypervisor>);

impl FlushSink for Flusher {
    fn flush_domain_tlb(&self, domid: u16) {
        if let Some(hv) = self.0.upgrade()
            && let Some(domain) = hv.domain(domid)
        {
            flush(&domain);
        }
    }

    fn wait_for_walks(&self, domid: u16) {
        if let Some(hv) = self.0.upgrade()
            && let Some(domain) = hv.domain(domid)
        {
            let in_guest = domain.vcpus.iter().filter(|vcpu| vcpu.control.is_in_guest());
            in_guest.for_each(|vcpu| vcpu.control.request_and_wait(Requests::SYNC));
        }
    }

    fn protect_frame(&self, domid: u16, mfn: Mfn) {
        if let Some(hv) = self.0.upgrade()
            && let Some(domain) = hv.domain(domid)
        {
            domain.vcpus.iter().for_each(|vcpu| vcpu.control.request_protect(mfn));
            for vcpu in domain.vcpus.iter().filter(|vcpu| vcpu.control.is_in_guest()) {
                vcpu.control.request_and_wait(Requests::PROTECT_FRAMES);
            }
        }
    }

    fn flush_all_tlbs(&self) {
        if let Some(hv) = self.0.upgrade() {
            let domains: Vec<_> = hv.domains.read().values().cloned().collect();
            domains.iter().for_each(|domain| flush(domain));
        }
    }

    fn code_written(&self, mfn: Mfn) {
        if let Some(hv) = self.0.upgrade() {
            hv.memory.engine.invalidate_code(mfn);
        }
    }
}

/// Drops stale data translations, for the frame table's sake: translated code is invalidated by frame.
fn flush(domain: &Domain) {
    for vcpu in &domain.vcpus {
        vcpu.control.request(Requests::FLUSH_DATA);
    }
    for vcpu in &domain.vcpus {
        if vcpu.control.is_in_guest() {
            vcpu.control.request_and_wait(Requests::FLUSH_DATA);
        }
    }
}

impl Hypervisor {
    /// Builds a machine of `nr_frames` frames and `nr_pcpus` pCPUs, with domain 0; nothing runs yet.
    ///
    /// # Errors
    /// The host's refusals.
    pub fn new(nr_frames: u64, nr_pcpus: usize, engine: Arc<dyn Engine>) -> Result<Arc<Self>, Error> {
        let machine = Arc::new(Machine::new(nr_frames)?);
        let frames = FrameTable::new(Arc::clone(&machine)).map_err(|e| Error::refused(-e.errno(), e.to_string()))?;
        let memory = Memory { machine, engine, frames: Arc::clone(&frames), is_shared: false };
        let clock = Clock::calibrate();
        let cpuid = Cpus::of_host();
        let dom0 = Self::make_dom0(&memory, &clock, &cpuid)?;
        let nr_pcpus = nr_pcpus.clamp(1, 1024);
        let hv = Arc::new(Self {
            memory,
            frames,
            clock,
            cpuid,
            dmesg: Dmesg::default(),
            table: Table::new(),
            cold: ColdHandlers::default(),
            sched: Scheduler::new(nr_pcpus),
            timers: Timers::default(),
            idle: IdleThread::default(),
            destroy: Mutex::new(()),
            evtchn_bind: Mutex::new(()),
            domains: RwLock::new(BTreeMap::new()),
            dom0,
            ringers: RwLock::default(),
            next_domid: AtomicU32::new(1),
            next_vcpu_uid: AtomicU64::new(1),
            next_connection: AtomicU32::new(1),
            nr_pcpus,
            threads: Mutex::new(Vec::new()),
            connection_threads: Mutex::new(Vec::new()),
            is_stopped: AtomicBool::new(false),
        });
        hv.frames.set_flush_sink(Box::new(Flusher(Arc::downgrade(&hv))));
        Ok(hv)
    }

    /// Starts the pCPU workers and the timer thread. A second call does nothing.
    ///
    /// # Errors
    /// [`Error::Thread`].
    pub fn start(self: &Arc<Self>) -> Result<(), Error> {
        let mut threads = self.threads.lock();
        if !threads.is_empty() {
            return Ok(());
        }
        share_heap();
        for pcpu in 0..self.nr_pcpus {
            let hv = Arc::clone(self);
            let builder = std::thread::Builder::new().name(format!("pcpu{pcpu}"));
            threads.push(builder.spawn(move || sched::run_worker(&hv, pcpu)).map_err(Error::Thread)?);
        }
        let hv = Arc::clone(self);
        let builder = std::thread::Builder::new().name("timers".to_owned());
        threads.push(
            builder
                .spawn(move || {
                    crate::time::set_timer_slack();
                    sched::run_timers(&hv);
                })
                .map_err(Error::Thread)?,
        );
        let hv = Arc::clone(self);
        let builder = std::thread::Builder::new().name("idle".to_owned());
        threads.push(builder.spawn(move || idle::run(&hv)).map_err(Error::Thread)?);
        Ok(())
    }

    /// Destroys every domain, ends every connection, and joins every thread. Idempotent.
    pub fn stop(&self) {
        if self.is_stopped.swap(true, Ordering::SeqCst) {
            return;
        }
        for domid in self.domain_list() {
            let _ = self.domain_destroy(domid);
        }
        for connection in self.dom0.connections.read().values() {
            connection.disconnect();
        }
        self.sched.stop();
        self.timers.stop();
        self.idle.stop();
        let threads = std::mem::take(&mut *self.threads.lock());
        let connections = std::mem::take(&mut *self.connection_threads.lock());
        for thread in threads.into_iter().chain(connections) {
            let _ = thread.join();
        }
        self.memory.engine.finish();
    }

    /// Number of pCPUs.
    pub fn nr_pcpus(&self) -> usize {
        self.nr_pcpus
    }

    /// A domain by id, domain 0 included.
    pub fn domain(&self, domid: u16) -> Option<Arc<Domain>> {
        if domid == 0 {
            return Some(Arc::clone(&self.dom0));
        }
        self.domains.read().get(&domid).cloned()
    }

    /// Ids of all domains but domain 0, ascending.
    pub fn domain_list(&self) -> Vec<u16> {
        self.domains.read().keys().copied().collect()
    }

    /// First frame and length in frames of the machine-to-phys table.
    pub fn m2p(&self) -> (Mfn, u64) {
        self.frames.m2p()
    }

    /// Starts the thread that serves a dom0 process. Returns the connection's id.
    ///
    /// # Errors
    /// [`Error::Connection`].
    pub fn serve_connection(
        self: &Arc<Self>,
        sock: std::os::fd::OwnedFd,
        memory: std::os::fd::OwnedFd,
        upcall: std::os::fd::OwnedFd,
    ) -> Result<u32, Error> {
        if self.is_stopped.load(Ordering::SeqCst) {
            return Err(Error::refused(ring3_abi::errno::EBUSY, "the machine has stopped"));
        }
        let id = self.next_connection.fetch_add(1, Ordering::SeqCst);
        let connection = Arc::new(Connection::new(id, sock, memory, upcall)?);
        self.dom0.connections.write().insert(id, Arc::clone(&connection));
        let hv = Arc::clone(self);
        let builder = std::thread::Builder::new().name(format!("dom0-{id}"));
        let spawned = builder.spawn(move || {
            // A panic is a bug of ours; the connection ends, as with a peer that breaks the protocol.
            if catch_unwind(AssertUnwindSafe(|| connection.serve(&hv))).is_err() {
                hv.dmesg.log(&format!("dom0 connection {}: the hypervisor failed while it served it", connection.id));
            }
            connection.disconnect();
            hv.forget_ringer(&connection);
            hv.evtchn_close_connection(connection.id);
            hv.release_mappings(&hv.dom0, connection.id);
            hv.release_foreign(&connection);
            hv.dom0.connections.write().remove(&connection.id);
        });
        match spawned {
            Ok(thread) => {
                let mut threads = self.connection_threads.lock();
                threads.retain(|thread| !thread.is_finished());
                threads.push(thread);
                Ok(id)
            }
            Err(error) => {
                self.dom0.connections.write().remove(&id);
                Err(ConnectionError::Thread(error).into())
            }
        }
    }
}
