//! From a guest linear address to translated code.

use ring3_engine::{Access, Exit, vector, walk};
use ring3_machine::{Mfn, PAGE_SIZE, PAGE_SIZE_BYTES};

use super::vcpu::BtVcpu;
use crate::cache::{Key, Miss, Source};
use crate::jumps;
use crate::tlb::{is_canonical, is_upper};

/// What a lookup found.
#[derive(Debug)]
pub(super) enum Found {
    Host(u64),
    /// The guest takes a fault on the fetch.
    Fault(Exit),
    /// Nothing is kept of the code there: it may change without anybody telling. It is executed step by step.
    Changing,
    /// Something was prepared outside the guest: look again.
    Again,
}

impl BtVcpu {
    /// The frame of an instruction fetch.
    pub(crate) fn fetch_frame(&self, va: u64) -> Result<Mfn, Exit> {
        if !is_canonical(va) {
            return Err(Exit::Exception { vector: vector::GP, error_code: Some(0), cr2: 0 });
        }
        let space = self.space();
        let t = walk(self.machine(), &space, va, Access::Execute).map_err(|fault| Exit::Exception {
            vector: vector::PF,
            error_code: Some(fault.error_code),
            cr2: va,
        })?;
        if !t.is_kernel && is_upper(va) && self.mode_index() == 0 {
            self.user_upper_code.set(true);
        }
        Ok(t.mfn)
    }

    pub(crate) fn fetch_for_interp(&self, va: u64) -> Result<Mfn, Exit> {
        self.fetch_frame(va)
    }

    /// Finds or makes the block at `rip`. Called inside the guest (`in_guest`); leaves it where others are waited for.
    pub(super) fn lookup(&mut self, rip: u64) -> Found {
        let mode = self.mode_index();
        match self.state().jumps.get(mode).and_then(|table| jumps::find(table, rip)) {
            Some(host) => Found::Host(host),
            None => self.lookup_anew(rip),
        }
    }

    /// The same where the jump cache does not know the address, or knows a block that was dropped.
    pub(super) fn lookup_anew(&mut self, rip: u64) -> Found {
        let mfn = match self.fetch_frame(rip) {
            Ok(mfn) => mfn,
            Err(exit) => return Found::Fault(exit),
        };
        let offset = (rip % PAGE_SIZE) as usize;
        let key = Key::new(mfn, offset, self.variant());
        let domain = self.domain();
        let found = {
            let cache = domain.cache();
            if cache.crosses(key) {
                // The second page's mapping counts too.
                drop(cache);
                return self.lookup_crossing(rip, mfn, key);
            }
            cache.lookup(key, || None)
        };
        match found {
            Some(host) => {
                self.remember(rip, host);
                Found::Host(host)
            }
            None => self.make(rip, mfn, None, true),
        }
    }

    fn lookup_crossing(&mut self, rip: u64, mfn: Mfn, key: Key) -> Found {
        let second = match self.second_frame(rip) {
            Ok(second) => second,
            Err(exit) => return Found::Fault(exit),
        };
        let found = self.domain().cache().lookup(key, || Some(second));
        match found {
            Some(host) => {
                self.remember(rip, host);
                Found::Host(host)
            }
            None => self.make(rip, mfn, Some(second), true),
        }
    }

    /// The frame of the page after that of the linear address `rip`.
    pub(super) fn second_frame(&self, rip: u64) -> Result<Mfn, Exit> {
        self.fetch_frame(self.cut_address((rip & !(PAGE_SIZE - 1)).wrapping_add(PAGE_SIZE)))
    }

    /// Finds or makes the block at `rip` that checks each access by itself. None if there is none at the moment: the usual
    /// one then comes back here.
    pub(super) fn lookup_ungrouped(&mut self, rip: u64) -> Option<u64> {
        let mfn = self.fetch_frame(rip).ok()?;
        let key = Key::new(mfn, (rip % PAGE_SIZE) as usize, self.variant()).ungrouped();
        let found = self.domain().cache().lookup(key, || None);
        match found {
            Some(host) => Some(host),
            None => match self.make(rip, mfn, None, false) {
                Found::Host(host) => Some(host),
                Found::Fault(_) | Found::Again | Found::Changing => None,
            },
        }
    }

    /// Translates the block at `rip`.
    fn make(&mut self, rip: u64, mfn: Mfn, second: Option<Mfn>, grouped: bool) -> Found {
        self.domain().put_archive_back(mfn);
        let code = self.machine().code();
        if code.has_writer(mfn) || second.is_some_and(|m| code.has_writer(m)) {
            return Found::Changing;
        }
        if !code.is_settled(mfn) || second.is_some_and(|m| !code.is_settled(m)) {
            self.leave_guest();
            let domain = self.domain();
            for frame in [Some(mfn), second].into_iter().flatten() {
                if !self.machine().code().is_settled(frame) {
                    domain.mark_code(frame, self.shared_control());
                    self.protect(frame);
                }
            }
            return Found::Again;
        }
        let domain = self.domain();
        let made = {
            let mut cache = domain.cache();
            let code = self.machine().code();
            let may_keep = |m: Mfn| code.is_settled(m) && !code.has_writer(m);
            if cache.is_draining() || !may_keep(mfn) || second.is_some_and(|m| !may_keep(m)) {
                None
            } else {
                let mut bytes = [0u8; 2 * PAGE_SIZE_BYTES];
                let len = self.copy_code(&mut bytes, mfn, second);
                let offset = (rip % PAGE_SIZE) as usize;
                let code = bytes.get(..len).unwrap_or_default();
                let source = Source { mfn, second, offset, rip, variant: self.variant(), grouped, path: &[], code };
                Some(cache.add(&source))
            }
        };
        match made {
            None => {
                self.leave_guest();
                std::thread::yield_now();
                Found::Again
            }
            Some(Ok(host)) => {
                if grouped {
                    self.remember(rip, host);
                }
                Found::Host(host)
            }
            Some(Err(Miss::NeedsSecondPage)) => match self.second_frame(rip) {
                Ok(second) => self.make(rip, mfn, Some(second), grouped),
                Err(exit) => Found::Fault(exit),
            },
            Some(Err(Miss::Full | Miss::NoTrace)) => {
                self.leave_guest();
                domain.make_room();
                Found::Again
            }
        }
    }

    /// Copies the code of one or two frames; returns the length.
    pub(super) fn copy_code(&self, bytes: &mut [u8; 2 * PAGE_SIZE_BYTES], mfn: Mfn, second: Option<Mfn>) -> usize {
        let (first_page, second_page) = bytes.split_at_mut(PAGE_SIZE_BYTES);
        // A frame past the end of memory cannot come out of a walk; zeros stand in for it.
        let _ = self.machine().read(mfn, 0, first_page);
        match second {
            Some(frame) => {
                let _ = self.machine().read(frame, 0, second_page);
                2 * PAGE_SIZE_BYTES
            }
            None => PAGE_SIZE_BYTES,
        }
    }

    /// Enters a translation into the jump cache.
    fn remember(&mut self, rip: u64, host: u64) {
        let mode = self.mode_index();
        self.jump_turn = self.jump_turn.wrapping_add(1);
        let turn = self.jump_turn;
        let mut logs = std::mem::take(&mut self.jump_log);
        if let (Some(log), Some(table)) = (logs.get_mut(mode), self.state_mut().jumps.get_mut(mode)) {
            jumps::enter(table, log, turn, rip, host);
        }
        self.jump_log = logs;
        self.note_executed(rip);
    }
}
