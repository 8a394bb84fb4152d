//! Page tables built by hand in a small machine, as a guest would build them.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, clippy::cast_precision_loss)]

mod audit;
mod extent;
mod hostile;
mod lifecycle;
mod long;
mod segdesc;
mod spare;
mod speed;
mod tables;
mod update;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use ring3_engine::pte;
use ring3_machine::{Machine, Mfn};

use super::{DomainMm, Domid, FlushSink, FrameTable, Result};

pub const P: u64 = pte::PRESENT;
pub const RO: u64 = pte::PRESENT | pte::USER;
pub const RW: u64 = RO | pte::RW;

/// Counts what it is asked.
#[derive(Debug, Default)]
pub struct Counters {
    pub domain_flushes: AtomicUsize,
    pub all_flushes: AtomicUsize,
    pub code_written: Mutex<Vec<Mfn>>,
    pub protected: Mutex<Vec<Mfn>>,
}

impl Counters {
    pub fn protected(&self) -> Vec<Mfn> {
        self.protected.lock().unwrap().clone()
    }

    pub fn flushes(&self) -> (usize, usize) {
        (self.domain_flushes.load(Ordering::SeqCst), self.all_flushes.load(Ordering::SeqCst))
    }
}

#[derive(Debug)]
struct Sink(Arc<Counters>);

impl FlushSink for Sink {
    fn flush_domain_tlb(&self, _domid: Domid) {
        self.0.domain_flushes.fetch_add(1, Ordering::SeqCst);
    }

    fn protect_frame(&self, _domid: Domid, mfn: Mfn) {
        self.0.protected.lock().unwrap().push(mfn);
    }

    fn flush_all_tlbs(&self) {
        self.0.all_flushes.fetch_add(1, Ordering::SeqCst);
    }

    fn code_written(&self, mfn: Mfn) {
        self.0.code_written.lock().unwrap().push(mfn);
    }
}

pub struct World {
    pub table: Arc<FrameTable>,
    pub mm: DomainMm,
    pub counters: Arc<Counters>,
    pub nr_free: u64,
}

pub const DOMID: Domid = 1;

impl World {
    pub fn new() -> Self {
        let table = FrameTable::new(Arc::new(Machine::new(1024).unwrap())).unwrap();
        let counters = Arc::new(Counters::default());
        table.set_flush_sink(Box::new(Sink(Arc::clone(&counters))));
        let nr_free = table.nr_free_frames();
        let mm = DomainMm::new(&table, DOMID, 256).unwrap();
        Self { table, mm, counters, nr_free }
    }

    pub fn page(&self) -> Mfn {
        let mut mfns = Vec::new();
        assert_eq!(self.mm.populate(&[7], &mut mfns), 1);
        mfns[0]
    }

    pub fn pages<const N: usize>(&self) -> [Mfn; N] {
        std::array::from_fn(|_| self.page())
    }

    /// Stores as the guest does to its own ordinary memory.
    pub fn poke(&self, table: Mfn, index: usize, entry: u64) {
        self.table.machine().word64(table, index * 8).unwrap().store(entry, Ordering::SeqCst);
    }

    pub fn peek(&self, table: Mfn, index: usize) -> u64 {
        self.table.machine().entry(table, index).unwrap()
    }

    /// (type count, general count).
    pub fn counts(&self, mfn: Mfn) -> (u64, u64) {
        let info = self.table.info(mfn).unwrap();
        (info.type_count, info.count)
    }

    /// L4, L3, L2 and L1, linked through entry 0, in ordinary memory still.
    pub fn tree(&self) -> [Mfn; 4] {
        let [l4, l3, l2, l1] = self.pages();
        self.poke(l4, 0, entry(l3, RW));
        self.poke(l3, 0, entry(l2, RW));
        self.poke(l2, 0, entry(l1, RW));
        [l4, l3, l2, l1]
    }

    pub fn update(&self, table: Mfn, index: usize, val: u64) -> Result<()> {
        self.mm.mmu_update(DOMID, DOMID, table.address() + index as u64 * 8, val)
    }

    /// Every frame but the hypervisor's is free again.
    pub fn assert_all_free(&self) {
        assert_eq!(self.table.nr_free_frames(), self.nr_free);
        for mfn in self.table.m2p().1 + 1..self.table.machine().nr_frames() {
            let info = self.table.info(Mfn(mfn)).unwrap();
            assert_eq!((info.owner, info.count, info.type_count), (None, 0, 0), "{mfn:#x}");
        }
    }
}

pub fn entry(mfn: Mfn, flags: u64) -> u64 {
    mfn.address() | flags
}
