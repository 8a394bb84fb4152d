//! The quick path: from the first request to the last that it can serve.
//!
//! Requests are answered in their order, each before the next is taken; so between two calls the indices are those of a
//! ring without unanswered requests, and what the journal says is what `ring3.dom0.block.journal` wants it to say.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

#[cfg(test)]
use crate::bell::Bell;
use crate::bell::Notice;
use crate::events::{Events, Woken};
use crate::handover::Handover;
use crate::idle::{Burst, GAP, Patience, SOON};
use crate::request::{
    Layout, OP_READ, OP_WRITE, Request, SECTOR_BYTES, SLOT_BYTES_MAX, Segments, parse, segments, split_table,
};
use crate::shared_unsafe::{Piece, Shared, nr_waits};

/// The ring's, and the journal's.
const HEADER_BYTES: usize = 64;
const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 4;
const RSP_PROD: usize = 8;
const RSP_EVENT: usize = 12;
/// Where the journal holds the index after the last request that was taken.
const JOURNAL_REQ_CONS: usize = 32;
/// So many requests, and others have a turn.
const BUDGET: u32 = 64;
/// A write that waits longer is worth telling, as others waited with it.
const PATIENCE: Duration = Duration::from_millis(2);

/// What requests may ask of the disk now.
#[derive(Clone, Copy, Debug)]
pub struct Disk {
    pub nr_sectors: u64,
    /// Whether writes are for here; those of a read-only disk, or while the host's device is slow, are not.
    pub may_write: bool,
    pub nr_indirect_max: usize,
    /// Whether nothing else waits, so that it may look at an empty ring for a while.
    pub may_look: bool,
}

/// How it may wait for the next request, where nothing else is to be done.
#[derive(Clone, Copy, Debug)]
pub struct Wait<'a> {
    pub events: &'a Events,
    /// An epoll set, with all that ends the wait.
    pub set: BorrowedFd<'a>,
    /// For how long altogether.
    pub time: Duration,
}

/// Why it came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The ring is empty, and the next request raises an event.
    Empty,
    /// The next request, if there is one, is Python's.
    Other,
    /// There may be more, but it is the turn of others.
    More,
}

/// What a call has done.
#[derive(Clone, Debug)]
pub struct Served {
    /// Of the next request, and of its answer.
    pub index: u32,
    /// Whether the front end is still to be told of answers.
    pub wants_event: bool,
    pub end: End,
    /// How long its last write had to wait for the host, if that was long.
    pub waited: Duration,
    /// Events of others that it took while it waited.
    pub ports: Vec<u32>,
}

/// A queue of a disk.
#[derive(Debug)]
pub struct Ring {
    machine: Shared,
    page: Shared,
    journal: Shared,
    layout: Layout,
    nr_slots: u32,
    image: OwnedFd,
    notice: Option<Notice>,
    /// Grant to the machine address of its page, of those that are held to the end of the connection.
    held: HashMap<u32, u64>,
    patience: Patience,
    burst: Burst,
    handover: Handover,
    /// Until when an event waits for the front end's vCPU.
    waiting_until: Option<Instant>,
    pieces: Vec<Piece>,
    table: Vec<u8>,
}

impl Ring {
    /// A ring of `page` whose back end keeps `journal`; grants are of pages of `machine`. None where sizes do not fit.
    pub fn new(
        [machine, page, journal]: [Shared; 3],
        layout: Layout,
        image: OwnedFd,
        notice: Option<Notice>,
        look_max: Duration,
    ) -> Option<Self> {
        let room = page.len().checked_sub(HEADER_BYTES)? / layout.slot_bytes();
        let nr_slots = 1usize << room.checked_ilog2()?;
        if journal.len() < HEADER_BYTES + nr_slots * layout.slot_bytes() {
            return None;
        }
        [REQ_PROD, REQ_EVENT, RSP_PROD, RSP_EVENT].into_iter().try_for_each(|at| page.word32(at).map(|_| ()))?;
        journal.word32(JOURNAL_REQ_CONS)?;
        Some(Self {
            machine,
            page,
            journal,
            layout,
            nr_slots: u32::try_from(nr_slots).ok()?,
            image,
            notice,
            held: HashMap::new(),
            patience: Patience::new(look_max),
            burst: Burst::new(),
            handover: Handover::new(Instant::now()),
            waiting_until: None,
            pieces: Vec::new(),
            table: Vec::new(),
        })
    }

    /// Gives the notice a bell.
    #[cfg(test)]
    pub fn set_bell(&mut self, bell: Option<Bell>) {
        if let Some(notice) = &mut self.notice {
            notice.bell = bell;
        }
    }

    /// Says where the page of a grant is that is held to the end of the connection.
    pub fn hold(&mut self, gref: u32, address: u64) {
        self.held.insert(gref, address);
    }

    /// Serves from request `index` on, all before which are answered.
    pub fn serve(&mut self, index: u32, disk: Disk, wait: Option<Wait<'_>>) -> Served {
        let end = wait.map(|wait| Instant::now() + wait.time);
        let events = wait.map(|wait| wait.events);
        let mut now = self.serve_ready(index, disk, events);
        while let (Some(wait), Some(end)) = (wait, end) {
            let left = end.saturating_duration_since(Instant::now());
            let may_go_on = now.end != End::Other && !now.wants_event && now.waited.is_zero();
            if !may_go_on || left.is_zero() {
                break;
            }
            // Rounded up, so as not to spin through the last of it.
            let timeout_ms = i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX);
            let has_more = now.end == End::More;
            match wait.events.wait(wait.set, if has_more { 0 } else { timeout_ms }) {
                Woken::Nothing if !has_more => {}
                Woken::Ring | Woken::Nothing => now = self.serve_ready(now.index, disk, events),
                Woken::Others(ports) => {
                    if ports.contains(&wait.events.port) {
                        now.end = End::More; // its own event was taken, too
                    }
                    now.ports = ports;
                    break;
                }
            }
        }
        now
    }

    fn serve_ready(&mut self, index: u32, disk: Disk, events: Option<&Events>) -> Served {
        let mut now = Served { index, wants_event: false, end: End::Other, waited: Duration::ZERO, ports: Vec::new() };
        self.patience.wake(Instant::now());
        let waits_before = nr_waits();
        loop {
            while let Some(taken) = self.take(now.index, disk) {
                self.burst.take(now.index, self.has_seen_all(now.index));
                self.end_wait(Instant::now());
                let started = Instant::now();
                if !self.move_data(&taken, disk) {
                    now.end = End::Other;
                    return self.tell_all(now);
                }
                // Being preempted is not to wait.
                if taken.is_write && started.elapsed() > PATIENCE && nr_waits() > waits_before {
                    now.waited = started.elapsed();
                }
                if self.answer(&mut now.index, &taken) {
                    let wait = match disk.may_look {
                        true if self.burst.may_wait(self.word(REQ_PROD)) => GAP,
                        true => SOON,
                        false => Duration::ZERO,
                    };
                    now.wants_event |= !self.tell(wait);
                }
                if !now.waited.is_zero() || now.index.wrapping_sub(index) >= BUDGET {
                    now.end = End::More;
                    return self.tell_all(now);
                }
            }
            if self.peek(now.index) {
                now.end = End::Other;
                return self.tell_all(now);
            }
            let mut time = self.patience.get();
            if self.burst.is_going_on(now.index) {
                time = time.max(GAP);
            }
            if let Some(until) = self.waiting_until {
                time = time.max(until.saturating_duration_since(Instant::now()));
            }
            let may_look = !now.wants_event && disk.may_look;
            let is_found = may_look && self.look(now.index, time, events);
            if !is_found && self.is_empty(now.index) {
                now.end = End::Empty;
                self.patience.sleep(Instant::now());
                return self.tell_all(now);
            }
        }
    }

    /// Whether the front end has seen all answers before `index`: it asks to be told of the next.
    fn has_seen_all(&self, index: u32) -> bool {
        let ahead = self.word(RSP_EVENT).wrapping_sub(index);
        (1..=u32::MAX / 2).contains(&ahead)
    }

    fn word(&self, at: usize) -> u32 {
        self.page.word32(at).map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn set_word(&self, at: usize, value: u32) {
        if let Some(word) = self.page.word32(at) {
            word.store(value, Ordering::Release);
        }
    }

    fn slot(&self, index: u32) -> usize {
        HEADER_BYTES + (index & (self.nr_slots - 1)) as usize * self.layout.slot_bytes()
    }

    /// Whether there is a request; a wild index counts as one, which Python shall see.
    fn peek(&self, index: u32) -> bool {
        self.word(REQ_PROD) != index
    }

    /// Looks for requests for a while, unless there are events of others; whether one came.
    pub(crate) fn look(&mut self, index: u32, time: Duration, events: Option<&Events>) -> bool {
        let end = Instant::now() + time;
        while !self.peek(index) {
            let now = Instant::now();
            if now >= end || events.is_some_and(Events::is_any) {
                return false;
            }
            self.end_wait(now);
            (0..16).for_each(|_| std::hint::spin_loop());
        }
        true
    }

    /// Asks for an event with the next request; whether there is none yet.
    fn is_empty(&self, index: u32) -> bool {
        self.set_word(REQ_EVENT, index.wrapping_add(1));
        fence(Ordering::SeqCst);
        !self.peek(index)
    }

    /// Copies the next request, into the journal too, if it is for here.
    fn take(&mut self, index: u32, disk: Disk) -> Option<Request> {
        let nr_ready = self.word(REQ_PROD).wrapping_sub(index);
        if nr_ready == 0 || nr_ready > self.nr_slots {
            return None;
        }
        let mut raw = [0u8; SLOT_BYTES_MAX];
        let raw = raw.get_mut(..self.layout.slot_bytes())?;
        if !self.page.read(self.slot(index), raw) {
            return None;
        }
        let request = parse(raw, self.layout, disk.nr_indirect_max)?;
        if request.is_write && !disk.may_write || !self.find_pieces(&request, disk) {
            return None;
        }
        self.journal.write(self.slot(index), raw);
        self.journal.word32(JOURNAL_REQ_CONS)?.store(index.wrapping_add(1), Ordering::Release);
        Some(request)
    }

    /// Finds a request's memory; false if a grant is not held, or something is wrong with it.
    fn find_pieces(&mut self, request: &Request, disk: Disk) -> bool {
        self.table.clear();
        match &request.segments {
            Segments::Direct(table) => self.table.extend_from_slice(table),
            Segments::Indirect(grefs, count) => {
                let mut left = *count;
                for gref in grefs {
                    let Some(&address) = self.held.get(gref) else { return false };
                    let (nr_bytes, rest) = split_table(left);
                    left = rest;
                    let start = self.table.len();
                    self.table.resize(start + nr_bytes, 0);
                    let (Ok(address), Some(out)) = (usize::try_from(address), self.table.get_mut(start..)) else {
                        return false;
                    };
                    if !self.machine.read(address, out) {
                        return false;
                    }
                }
            }
        }
        self.pieces.clear();
        let mut total = 0;
        for segment in segments(&self.table) {
            let Some((gref, offset, nr_bytes)) = segment else { return false };
            let Some(&address) = self.held.get(&gref) else { return false };
            total += nr_bytes as u64;
            self.pieces.push((address + offset, nr_bytes));
        }
        request.sector.checked_add(total / SECTOR_BYTES).is_some_and(|end| end <= disk.nr_sectors)
    }

    /// Moves what `find_pieces` found; false if that takes waiting, or is not whole: Python does it again.
    fn move_data(&mut self, request: &Request, disk: Disk) -> bool {
        debug_assert!(request.sector <= disk.nr_sectors);
        let Some(offset) = request.sector.checked_mul(SECTOR_BYTES).and_then(|at| i64::try_from(at).ok()) else {
            return false;
        };
        let wanted: usize = self.pieces.iter().map(|&(_, nr_bytes)| nr_bytes).sum();
        let file = self.image.as_fd();
        let should_flush = self.handover.should_flush(wanted);
        let done = if request.is_write {
            let done = self.machine.write_file(file, offset, &self.pieces);
            if should_flush {
                self.machine.flush(&self.pieces); // the front end writes them next
            }
            done
        } else {
            if should_flush {
                self.machine.flush(&self.pieces); // it has read them
            }
            self.machine.read_cached(file, offset, &self.pieces)
        };
        self.handover.note(wanted, Instant::now());
        done.is_ok_and(|done| done == wanted)
    }

    /// Answers the request of an index, and goes on to the next. Returns whether the front end wants an event.
    fn answer(&self, index: &mut u32, request: &Request) -> bool {
        let operation = if request.is_write { OP_WRITE } else { OP_READ };
        let (response, len) = self.layout.okay(request.id, operation);
        self.page.write(self.slot(*index), response.get(..len).unwrap_or_default());
        *index = index.wrapping_add(1);
        self.set_word(RSP_PROD, *index);
        fence(Ordering::SeqCst);
        self.word(RSP_EVENT) == *index
    }

    /// Raises the front end's event, which may wait for so long while its vCPU is busy; whether that was possible.
    fn tell(&mut self, wait: Duration) -> bool {
        let told = self.notice.as_ref().and_then(|notice| notice.raise(!wait.is_zero()));
        self.waiting_until = told.filter(|&is_waiting| is_waiting).map(|_| Instant::now() + wait);
        told.is_some()
    }

    /// Raises the event that has waited for too long.
    fn end_wait(&mut self, now: Instant) {
        let Some(until) = self.waiting_until else { return };
        if self.notice.as_ref().is_none_or(Notice::is_sent) {
            self.waiting_until = None;
        } else if now >= until {
            self.tell(Duration::ZERO);
        }
    }

    /// Lets no event wait any more: nobody would look after it.
    fn tell_all(&mut self, mut now: Served) -> Served {
        let is_waiting = self.waiting_until.take().is_some() && !self.notice.as_ref().is_none_or(Notice::is_sent);
        now.wants_event |= is_waiting && !self.tell(Duration::ZERO);
        now
    }
}
