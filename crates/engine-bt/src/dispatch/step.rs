//! Execution of exactly one instruction, and the slow path of accesses.
//!
//! `step` translates one instruction so that each memory operand is first copied to a bounce buffer, runs it there, and
//! then puts stores where they belong: across pages, to frames that hold code, or to an interceptor. Everything is
//! checked before the instruction runs, so a fault leaves no trace.

use ring3_engine::{Access, Exit, WriteIntercept, walk};
use ring3_machine::{Machine, Mfn, PAGE_SIZE};

use super::vcpu::{BtVcpu, no_fpu, protection, undefined};
use crate::cache::{STEP_SLOTS, Source, StepPlace};
use crate::emit::stubs::reason;
use crate::interp::Outcome;
use crate::state::Bounce;
use crate::tlb::{self, Info, Piece, Stop};
use crate::translate::{Refusal, Variant};

/// Longest instruction. Source: Intel SDM vol. 2, "Instruction Format".
const MAX_INSTRUCTION_BYTES: usize = 15;

/// What a single-instruction block was made from: everything that its code depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct StepKey {
    offset: usize,
    variant: Variant,
    bytes: [u8; MAX_INSTRUCTION_BYTES],
}

/// A single-instruction block that is ready.
#[derive(Clone, Copy, Debug)]
pub struct KnownStep {
    key: StepKey,
    host: u64,
}

/// One memory operand of a stepped instruction.
#[derive(Clone, Copy, Debug)]
pub struct StepAccess {
    size: usize,
    write: bool,
    locked: bool,
    pieces: [Option<Piece>; 2],
    bounce: usize,
    start: usize,
    old: [u8; 64],
}

/// How the stores of a stepped instruction went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Commit {
    Done,
    /// The interceptor wants none of it.
    Refused,
    /// Another vCPU changed what an atomic instruction had read: once more.
    Changed,
}

/// Whether the host can do an atomic operation on the operand in one piece, where it lies.
fn is_atomic(va: u64, size: usize) -> bool {
    matches!(size, 1 | 2 | 4 | 8) && va.is_multiple_of(size as u64)
}

/// Stores `new` if `old` is still there, in one piece as far as the alignment allows.
fn replace(machine: &Machine, piece: &Piece, old: &[u8], new: &[u8]) -> bool {
    use std::sync::atomic::Ordering::SeqCst;
    macro_rules! exchange {
        ($word:ident, $int:ty) => {
            if let (Ok(word), Ok(old), Ok(new)) =
                (machine.$word(piece.mfn, piece.offset), old.try_into(), new.try_into())
            {
                let (old, new) = (<$int>::from_le_bytes(old), <$int>::from_le_bytes(new));
                return word.compare_exchange(old, new, SeqCst, SeqCst).is_ok();
            }
        };
    }
    match new.len() {
        1 => exchange!(byte, u8),
        2 => exchange!(word16, u16),
        4 => exchange!(word32, u32),
        8 => exchange!(word64, u64),
        _ => {}
    }
    // Misaligned, across pages or 16 bytes: nobody else is in the guest.
    let _ = machine.write(piece.mfn, piece.offset, new);
    true
}

/// Where in a bounce buffer an operand has the alignment that it has at `va`.
pub(super) fn bounce_start(va: u64) -> usize {
    64 + (va % 64) as usize
}

impl BtVcpu {
    /// The slow path of the access at linear address `va` that `State::access_info` describes: its host address, or 0
    /// with `stop` set.
    pub(super) fn slow_access(&mut self, va: u64) -> u64 {
        let info = Info::decode(self.state().access_info);
        let is_offset = info.single && self.code_size().is_compat();
        let placed = if is_offset { self.place_operand(va, info) } else { Ok(va) };
        let result = match placed {
            Ok(va) if info.single => self.prepare_operand(va, info),
            Ok(va) => self.refill(va, info),
            Err(stop) => Err(stop),
        };
        result.unwrap_or_else(|stop| {
            let base = if is_offset { self.state().regs.segment_base(self.operand_segment) } else { 0 };
            self.stop = Some(self.first_stop(placed.unwrap_or(base.wrapping_add(va)), info.size, stop));
            0
        })
    }

    /// TLB miss.
    fn refill(&mut self, va: u64, info: Info) -> Result<u64, Stop> {
        let machine = std::sync::Arc::clone(self.machine());
        let space = self.space();
        let offset = va % PAGE_SIZE;
        if self.is_watched(va, info.size, info.write) || self.ends_beyond(va, info.size) {
            return Err(Stop::Step);
        }
        if offset as usize + info.size > PAGE_SIZE as usize {
            if info.write {
                return Err(Stop::Step);
            }
            let parts = tlb::pieces(va, info.size, |at| {
                tlb::translate(&machine, &space, at, false, info.stack).map(|t| t.mfn)
            })?;
            return Ok(self.gather(&parts, 0, bounce_start(va)));
        }
        let translation = tlb::translate(&machine, &space, va, info.write, info.stack)?;
        if info.write && machine.code().has_code(translation.mfn) {
            return Err(Stop::Code(translation.mfn));
        }
        self.fill_tlb(&machine, va, &translation);
        let host = machine.frame(translation.mfn).map_err(|_| Stop::Fault(undefined()))?;
        Ok(host as u64 + offset)
    }

    /// Copies the pieces of an operand to a bounce buffer; returns their address.
    fn gather(&mut self, parts: &[Option<Piece>; 2], bounce: usize, start: usize) -> u64 {
        let machine = std::sync::Arc::clone(self.machine());
        let Some(buffer) = self.state_mut().bounce.get_mut(bounce) else { return 0 };
        let mut at = start;
        for piece in parts.iter().flatten() {
            if let Some(target) = buffer.0.get_mut(at..at + piece.len) {
                // The piece came out of a walk, so its frame exists.
                let _ = machine.read(piece.mfn, piece.offset, target);
            }
            at += piece.len;
        }
        std::ptr::from_ref::<Bounce>(buffer) as u64 + start as u64
    }

    /// An operand of a stepped instruction.
    pub(super) fn prepare_operand(&mut self, va: u64, info: Info) -> Result<u64, Stop> {
        let machine = std::sync::Arc::clone(self.machine());
        let space = self.space();
        let intercepted = self.intercepted;
        self.check_operand_alignment(va, info.size)?;
        if info.locked && info.write && !self.is_alone && !is_atomic(va, info.size) {
            return Err(Stop::Alone);
        }
        if info.write && intercepted.is_none() {
            tlb::probe_store(&machine, &space, va, info.size, info.stack)?;
        }
        let parts = tlb::pieces(va, info.size, |at| {
            let translated = tlb::translate(&machine, &space, at, info.write, info.stack);
            match (translated, intercepted) {
                (Err(stop), Some(frame)) if info.write => match walk(&machine, &space, at, Access::Read) {
                    Ok(t) if t.mfn == frame => Ok(frame),
                    _ => Err(stop),
                },
                (other, _) => other.map(|t| t.mfn),
            }
        })?;
        if info.write {
            for piece in parts.iter().flatten() {
                if machine.code().has_code(piece.mfn) {
                    return Err(Stop::Code(piece.mfn));
                }
            }
        }
        self.note_access(va, info.size, info.write);
        // A locked operand is aligned in the buffer: some hosts punish those that cross cache lines.
        let start = if info.locked && info.size <= 8 { bounce_start(0) } else { bounce_start(va) };
        let host = self.gather(&parts, info.bounce, start);
        let mut old = [0u8; 64];
        let size = info.size.min(64);
        if let Some(bytes) = self.state().bounce.get(info.bounce).and_then(|b| b.0.get(start..start + size))
            && let Some(target) = old.get_mut(..size)
        {
            target.copy_from_slice(bytes);
        }
        self.accesses.push(StepAccess {
            size: info.size,
            write: info.write,
            locked: info.locked,
            pieces: parts,
            bounce: info.bounce,
            start,
            old,
        });
        Ok(host)
    }

    /// Puts the stores of a stepped instruction where they belong. An intercepted one must be the only one; the vCPU is out of
    /// the guest after it.
    fn commit(&mut self, intercept: &mut Option<(Mfn, &mut dyn WriteIntercept)>) -> Commit {
        let machine = std::sync::Arc::clone(self.machine());
        let accesses = std::mem::take(&mut self.accesses);
        if let Some((frame, _)) = intercept {
            let mut pieces = accesses.iter().filter(|a| a.write).flat_map(|a| a.pieces.iter().flatten());
            if pieces.clone().count() > 1 && pieces.any(|piece| piece.mfn == *frame) {
                return Commit::Refused;
            }
        }
        for access in accesses.iter().filter(|a| a.write) {
            let Some(buffer) = self.state().bounce.get(access.bounce) else { continue };
            let mut at = access.start;
            for piece in access.pieces.iter().flatten() {
                let Some(new) = buffer.0.get(at..at + piece.len) else { continue };
                let done = at - access.start;
                at += piece.len;
                match intercept {
                    Some((frame, sink)) if *frame == piece.mfn => {
                        let is_only_store =
                            piece.len == access.size && accesses.iter().filter(|a| a.write).count() == 1;
                        let old = access.old.get(done..done + piece.len).filter(|_| is_only_store);
                        let Some(old) = old else { return Commit::Refused };
                        // The interceptor may wait for vCPUs that wait for this one. Nothing comes after it that would need
                        // the walks to be true still.
                        self.leave_guest();
                        if !sink.store(piece.mfn, piece.offset, old, new) {
                            return Commit::Refused;
                        }
                    }
                    _ if access.locked => {
                        let old = access.old.get(done..done + piece.len).unwrap_or_default();
                        if !replace(&machine, piece, old, new) {
                            return Commit::Changed;
                        }
                    }
                    _ => {
                        let _ = machine.write(piece.mfn, piece.offset, new);
                    }
                }
            }
        }
        debug_assert!(accesses.iter().all(|a| a.size <= 128));
        Commit::Done
    }

    /// See [`ring3_engine::Vcpu::step`]; flags are unpacked. Returns `Stepped` with RIP at the next instruction.
    pub(super) fn step_at(&mut self, rip: u64, intercept: Option<(Mfn, &mut dyn WriteIntercept)>) -> Exit {
        self.step_with(rip, intercept, true)
    }

    /// As [`Self::step_at`], but a repeated string instruction goes on until something wants attention.
    pub(super) fn step_whole(&mut self, rip: u64) -> Exit {
        self.step_with(rip, None, false)
    }

    fn step_with(&mut self, rip: u64, mut intercept: Option<(Mfn, &mut dyn WriteIntercept)>, single: bool) -> Exit {
        self.intercepted = intercept.as_ref().map(|(mfn, _)| *mfn);
        let exit = self.step_loop(rip, &mut intercept, single);
        self.intercepted = None;
        self.is_alone = false;
        self.accesses.clear();
        if exit != Exit::Stepped {
            self.forget_hits();
        }
        exit
    }

    fn step_loop(&mut self, rip: u64, intercept: &mut Option<(Mfn, &mut dyn WriteIntercept)>, single: bool) -> Exit {
        let domain = self.domain();
        let enter = domain.cache().stubs().enter;
        let mut alone = None;
        loop {
            self.leave_guest();
            if self.is_requested() {
                // Served here; the hypervisor's own stay posted.
                let rest = self.take_requests();
                if !rest.is_empty() {
                    use ring3_engine::VcpuControl;
                    self.shared_control().request(rest);
                }
            }
            self.enter_guest();
            self.accesses.clear();
            self.forget_hits();
            if self.code_size().is_compat()
                && let Some(exit) = self.step_flow(rip, single)
            {
                return exit;
            }
            let host = match self.step_code(self.code_address(rip)) {
                Ok(host) => host,
                Err(exit) => return self.exit_at(rip, exit),
            };
            let before = self.snapshot();
            let why = self.execute(self.code_address(rip), host, enter);
            let value = self.state().exit_value;
            match why {
                reason::STEPPED => {
                    match self.commit(intercept) {
                        Commit::Done => return self.exit_at(self.rip_of(value), Exit::Stepped),
                        Commit::Changed => {
                            self.restore(before);
                            continue;
                        }
                        Commit::Refused => self.restore(before),
                    }
                    return self.exit_at(rip, protection());
                }
                reason::ACCESS => match self.stop.take() {
                    Some(Stop::Code(mfn)) => {
                        self.leave_guest();
                        domain.invalidate(mfn);
                    }
                    Some(Stop::Alone) if alone.is_none() => {
                        self.leave_guest();
                        alone = Some(domain.make_alone(self.shared_control()));
                        self.is_alone = true;
                    }
                    Some(Stop::Fault(exit)) => return self.exit_at(rip, exit),
                    _ => return self.exit_at(rip, Exit::Failed("an operand that cannot be stepped")),
                },
                reason::SYSCALL => {
                    let next = self.rip_at(value);
                    return self.syscall(next);
                }
                reason::INTERPRET => {
                    self.leave_guest();
                    return match self.interpret(rip, single) {
                        Outcome::Done(next) => match self.commit(intercept) {
                            Commit::Done => self.exit_at(next, Exit::Stepped),
                            Commit::Changed | Commit::Refused => {
                                self.restore(before);
                                self.exit_at(rip, protection())
                            }
                        },
                        Outcome::Exit(at, exit) => self.exit_at(at, exit),
                    };
                }
                reason::UNDEFINED => return self.exit_at(rip, undefined()),
                reason::TOO_LONG => return self.exit_at(rip, protection()),
                // As Xen, which emulates stores by integer instructions alone.
                reason::NO_FPU if intercept.is_some() => return self.exit_at(rip, protection()),
                reason::NO_FPU => return self.exit_at(rip, no_fpu()),
                reason::INTERRUPT => {
                    let next = self.rip_at(value & 0xffff);
                    return self.exit_at(next, Exit::SoftwareInterrupt { vector: (value >> 16) as u8 });
                }
                reason::SIGNAL => return self.signalled(Some((self.code_address(rip) % PAGE_SIZE) as usize)),
                _ => return self.exit_at(rip, Exit::Failed("an unknown exit from a step")),
            }
        }
    }

    /// Host code that steps the instruction at the linear address `rip`. Its bytes are read anew each time, and what was made from the
    /// same bytes at the same offset before serves again: nothing need be invalidated.
    fn step_code(&mut self, rip: u64) -> Result<u64, Exit> {
        let mfn = self.fetch_frame(rip)?;
        let offset = (rip % PAGE_SIZE) as usize;
        let variant = Variant { fpu_off: self.is_fpu_off() || self.intercepted.is_some(), ..self.variant() };
        let mut key = StepKey { offset, variant, bytes: [0; MAX_INSTRUCTION_BYTES] };
        let fits = self.machine().read(mfn, offset, &mut key.bytes).is_ok();
        if fits && let Some(known) = self.steps.iter().flatten().find(|step| step.key == key) {
            return Ok(known.host);
        }
        let mut bytes = [0u8; 2 * PAGE_SIZE as usize];
        let len = self.copy_code(&mut bytes, mfn, None);
        let domain = self.domain();
        let code = bytes.get(..len).unwrap_or_default();
        let source = Source { mfn, second: None, offset, rip, variant, grouped: false, path: &[], code };
        if fits && let Some(now) = code.get(offset..offset + MAX_INSTRUCTION_BYTES) {
            // Another vCPU may have changed them since: the key is what the code is made from.
            key.bytes.copy_from_slice(now);
            let slot = self.next_step;
            let place = StepPlace { vcpu: self.slot(), slot: Some(slot) };
            let made = domain.cache().add_step(place, &source);
            if let Ok(Some(host)) = made {
                if let Some(known) = self.steps.get_mut(slot) {
                    *known = Some(KnownStep { key, host });
                }
                self.next_step = (slot + 1) % STEP_SLOTS;
                return Ok(host);
            }
        }
        let place = StepPlace { vcpu: self.slot(), slot: None };
        // Not in the `match`: its guard would live through the arms.
        let made = domain.cache().add_step(place, &source);
        let made = match made {
            Err(Refusal::NeedsSecondPage) => {
                let second = self.second_frame(rip)?;
                let len = self.copy_code(&mut bytes, mfn, Some(second));
                let code = bytes.get(..len).unwrap_or_default();
                let source =
                    Source { mfn, second: Some(second), offset, rip, variant, grouped: false, path: &[], code };
                domain.cache().add_step(place, &source)
            }
            other => other,
        };
        made.ok().flatten().ok_or(Exit::Failed("an instruction that cannot be stepped"))
    }
}
