//! The FIFO ABI: a word of the guest's memory for each port, linked into queues by priority, 16 for each vCPU.
//!
//! The guest takes events from the head of a queue, we append at its tail, and both link by compare-and-swap: the guest
//! may clear LINKED of a word, and thereby empty the queue, at any moment. All that we keep is behind one lock for each
//! domain; the guest's words are never trusted but for the links that the guest itself follows.
//! Source: xen/include/public/event_channel.h, "FIFO ABI".

use std::sync::atomic::{AtomicU32, Ordering};

use ring3_abi::errno;
use ring3_abi::event_channel::*;
use ring3_machine::{Machine, Mfn};

/// Words in one frame of the event array.
const WORDS_PER_FRAME: u32 = 1024;
const MAX_ARRAY_FRAMES: usize = (EVTCHN_FIFO_NR_CHANNELS / WORDS_PER_FRAME) as usize;
const CONTROL_BLOCK_BYTES: u32 = 72;
const HEAD: usize = std::mem::offset_of!(evtchn_fifo_control_block, head);

const PENDING: u32 = 1 << EVTCHN_FIFO_PENDING;
const MASKED: u32 = 1 << EVTCHN_FIFO_MASKED;
const LINKED: u32 = 1 << EVTCHN_FIFO_LINKED;
const BUSY: u32 = 1 << EVTCHN_FIFO_BUSY;

/// Changes that a guest may make to a linked word while we link to it.
const MAX_LINK_TRIES: u32 = 4;

/// Queues of one vCPU.
#[derive(Clone, Debug, Default)]
struct Queues {
    /// Control block, once there is one.
    block: Option<(Mfn, usize)>,
    /// Port at the end of each queue; 0: none, or no longer linked.
    tails: [u32; EVTCHN_FIFO_MAX_QUEUES],
}

#[derive(Clone, Copy, Debug)]
struct Port {
    priority: u8,
    /// Queue that it was last put into: vCPU and priority.
    last: (u32, u8),
    /// Sent before its word was there.
    is_saved: bool,
}

impl Default for Port {
    fn default() -> Self {
        Self { priority: DEFAULT, last: (0, 0), is_saved: false }
    }
}

const DEFAULT: u8 = 7;
const _: () = assert!(DEFAULT as u32 == EVTCHN_FIFO_PRIORITY_DEFAULT);

/// What a sender must do after an event was set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Effects {
    /// A queue has become ready: the vCPU must be told.
    pub is_ready: bool,
    /// It was not pending before: pollers may wait for it.
    pub is_new: bool,
}

/// The FIFO state of one domain.
#[derive(Debug)]
pub(super) struct Fifo {
    array: Vec<Mfn>,
    queues: Vec<Queues>,
    ports: Vec<Port>,
}

impl Fifo {
    pub fn new(nr_vcpus: usize) -> Self {
        Self { array: Vec::new(), queues: vec![Queues::default(); nr_vcpus], ports: Vec::new() }
    }

    /// Whether a control block may be at this place of a frame.
    pub fn is_place(offset: u32) -> bool {
        offset <= 4096 - CONTROL_BLOCK_BYTES && offset.is_multiple_of(8)
    }

    /// Whether a vCPU has its control block.
    pub fn has_block(&self, vcpu: u32) -> bool {
        self.queues.get(vcpu as usize).is_some_and(|queues| queues.block.is_some())
    }

    /// Sets the control block of a vCPU; the caller holds the frame.
    pub fn set_block(&mut self, vcpu: u32, mfn: Mfn, offset: u32) {
        if let Some(queues) = self.queues.get_mut(vcpu as usize) {
            queues.block = Some((mfn, offset as usize));
        }
    }

    /// Whether the event array can grow.
    ///
    /// # Errors
    /// ENOSPC.
    pub fn check_room(&self) -> Result<(), i64> {
        if self.array.len() < MAX_ARRAY_FRAMES { Ok(()) } else { Err(errno::ENOSPC) }
    }

    /// Adds a frame, which the caller holds, to the event array; returns the ports with saved events that have a word now.
    pub fn add_frame(&mut self, mfn: Mfn) -> Vec<u32> {
        self.array.push(mfn);
        let nr_words = u32::try_from(self.array.len()).unwrap_or(0) * WORDS_PER_FRAME;
        let ports = (0..nr_words).zip(&mut self.ports).filter(|(_, port)| port.is_saved);
        ports.map(|(number, port)| (number, port.is_saved = false).0).collect()
    }

    /// Frames that are held.
    pub fn frames(&self) -> impl Iterator<Item = Mfn> + '_ {
        self.array.iter().copied().chain(self.queues.iter().filter_map(|queues| queues.block.map(|(mfn, _)| mfn)))
    }

    fn port_mut(&mut self, port: u32) -> Option<&mut Port> {
        if port >= EVTCHN_FIFO_NR_CHANNELS {
            return None;
        }
        if self.ports.len() <= port as usize {
            self.ports.resize(port as usize + 1, Port::default());
        }
        self.ports.get_mut(port as usize)
    }

    /// Sets what a port has when it is bound.
    pub fn init_port(&mut self, port: u32) {
        if let Some(port) = self.port_mut(port) {
            (port.priority, port.is_saved) = (DEFAULT, false);
        }
    }

    /// Keeps an event for a word that is not there yet.
    pub fn save(&mut self, port: u32) {
        if let Some(port) = self.port_mut(port) {
            port.is_saved = true;
        }
    }

    /// Sets the priority of events to come.
    ///
    /// # Errors
    /// EINVAL for no priority.
    pub fn set_priority(&mut self, port: u32, priority: u32) -> Result<(), i64> {
        if priority > EVTCHN_FIFO_PRIORITY_MIN {
            return Err(errno::EINVAL);
        }
        let port = self.port_mut(port).ok_or(errno::EINVAL)?;
        port.priority = u8::try_from(priority).map_err(|_| errno::EINVAL)?;
        Ok(())
    }

    fn word<'a>(&self, machine: &'a Machine, port: u32) -> Option<&'a AtomicU32> {
        let mfn = *self.array.get((port / WORDS_PER_FRAME) as usize)?;
        machine.word32(mfn, (port % WORDS_PER_FRAME) as usize * 4).ok()
    }

    fn tail_mut(&mut self, (vcpu, priority): (u32, u8)) -> Option<&mut u32> {
        self.queues.get_mut(vcpu as usize)?.tails.get_mut(usize::from(priority))
    }

    /// Sets a port pending, and puts it at the end of its queue if it is neither masked nor in one.
    pub fn set_pending(&mut self, machine: &Machine, port: u32, vcpu: u32) -> Effects {
        let Some(word) = self.word(machine, port) else {
            self.save(port);
            return Effects::default();
        };
        let is_new = word.fetch_or(PENDING, Ordering::SeqCst) & PENDING == 0;
        let none = Effects { is_ready: false, is_new };
        // Without a control block there is nowhere to put it: the guest must not unmask before there is one.
        let Some((block, offset)) = self.queues.get(vcpu as usize).and_then(|queues| queues.block) else { return none };
        if word.load(Ordering::SeqCst) & MASKED != 0 || word.fetch_or(LINKED, Ordering::SeqCst) & LINKED != 0 {
            return none;
        }
        let Some(state) = self.port_mut(port) else { return none };
        let queue = (vcpu, state.priority);
        let old_queue = std::mem::replace(&mut state.last, queue);
        // It was the end of a queue and has left it: that queue is empty, or has another end.
        if let Some(tail) = self.tail_mut(old_queue)
            && *tail == port
        {
            *tail = 0;
        }
        let Some(tail) = self.tail_mut(queue) else { return none };
        let old_tail = std::mem::replace(tail, port);
        let is_linked = old_tail != 0 && self.word(machine, old_tail).is_some_and(|tail_word| link(tail_word, port));
        if is_linked {
            return none;
        }
        // The queue was empty.
        let priority = usize::from(queue.1);
        if let Ok(head) = machine.word32(block, offset + HEAD + priority * 4) {
            head.store(port, Ordering::SeqCst);
        }
        let bit = 1u32 << priority;
        let is_ready = machine.word32(block, offset).is_ok_and(|r| r.fetch_or(bit, Ordering::SeqCst) & bit == 0);
        Effects { is_ready, is_new }
    }

    /// Clears the mask of a port; whether it is pending and must be put into its queue.
    pub fn unmask(&self, machine: &Machine, port: u32) -> bool {
        self.word(machine, port).is_some_and(|word| {
            word.fetch_and(!MASKED, Ordering::SeqCst);
            word.load(Ordering::SeqCst) & PENDING != 0
        })
    }

    /// Clears the pending bit of a port that is closed. The guest unlinks it when it comes to it.
    pub fn clear_pending(&mut self, machine: &Machine, port: u32) {
        if let Some(word) = self.word(machine, port) {
            word.fetch_and(!PENDING, Ordering::SeqCst);
        }
        if let Some(port) = self.ports.get_mut(port as usize) {
            port.is_saved = false;
        }
    }

    /// (pending, masked).
    pub fn bits(&self, machine: &Machine, port: u32) -> (bool, bool) {
        let word = self.word(machine, port).map(|word| word.load(Ordering::SeqCst));
        word.map_or((false, true), |word| (word & PENDING != 0, word & MASKED != 0))
    }

    /// Whether a closed port is in a queue still, and so cannot be used again.
    pub fn is_linked(&self, machine: &Machine, port: u32) -> bool {
        self.word(machine, port).is_some_and(|word| word.load(Ordering::SeqCst) & LINKED != 0)
    }
}

/// Links `word` to `port` if it is linked itself. Whether it was.
fn link(word: &AtomicU32, port: u32) -> bool {
    // Once; then with BUSY set, which keeps the guest from unmasking; then it can interfere four times at most.
    for is_busy in [false, true] {
        if is_busy {
            word.fetch_or(BUSY, Ordering::SeqCst);
        }
        let mut now = word.load(Ordering::SeqCst);
        for _ in 0..if is_busy { MAX_LINK_TRIES } else { 1 } {
            if now & LINKED == 0 {
                if is_busy {
                    word.fetch_and(!BUSY, Ordering::SeqCst);
                }
                return false;
            }
            let next = (now & !(BUSY | EVTCHN_FIFO_LINK_MASK)) | port;
            match word.compare_exchange(now, next, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return true,
                Err(changed) => now = changed,
            }
        }
    }
    // A guest that does what it may not: it loses its own event.
    word.fetch_and(!BUSY, Ordering::SeqCst);
    true
}
