//! Guest memory as interpreted instructions reach it: piece by piece, inside the guest for as long as a translation is
//! in use.

use std::sync::Arc;

use ring3_machine::{Machine, Mfn, PAGE_SIZE};

use super::Fault;
use crate::dispatch::BtVcpu;
use crate::tlb::{self, Piece, Stop};

impl BtVcpu {
    /// The frame behind a linear address, by the TLB or by a walk that fills it.
    fn frame_for(&mut self, machine: &Machine, va: u64, write: bool) -> Result<Mfn, Stop> {
        let mode = self.mode_index();
        if let Some(mfn) = tlb::cached(self.state(), machine, mode, va, write) {
            return Ok(mfn);
        }
        let translation = tlb::translate(machine, &self.space(), va, write, self.stack_operand)?;
        self.fill_tlb(machine, va, &translation);
        Ok(translation.mfn)
    }

    /// Translates a range for one access; the vCPU stays in the guest until `leave_guest`.
    fn pieces_in_guest(
        &mut self,
        machine: &Machine,
        va: u64,
        len: usize,
        write: bool,
    ) -> Result<[Option<Piece>; 2], Fault> {
        loop {
            self.enter_for_access();
            let probed =
                if write { tlb::probe_store(machine, &self.space(), va, len, self.stack_operand) } else { Ok(()) };
            let parts = match probed.and_then(|()| tlb::pieces(va, len, |at| self.frame_for(machine, at, write))) {
                Ok(parts) => parts,
                Err(stop) => {
                    self.leave_guest();
                    return Err(stop.into());
                }
            };
            let code = |p: &&Piece| write && machine.code().has_code(p.mfn);
            let Some(mfn) = parts.iter().flatten().find(code).map(|p| p.mfn) else { return Ok(parts) };
            self.leave_guest();
            self.invalidate_for_write(mfn);
        }
    }

    /// Faults now where a store to the range (at most two pages) would.
    pub(super) fn probe_for_writing(&mut self, va: u64, len: usize) -> Result<(), Fault> {
        let machine = Arc::clone(self.machine());
        self.pieces_in_guest(&machine, va, len, true)?;
        self.leave_guest();
        Ok(())
    }

    /// Reads guest memory (at most two pages).
    pub(super) fn read_guest(&mut self, va: u64, out: &mut [u8]) -> Result<(), Fault> {
        let machine = Arc::clone(self.machine());
        let parts = self.pieces_in_guest(&machine, va, out.len(), false)?;
        self.note_access(va, out.len(), false);
        let mut at = 0;
        for piece in parts.iter().flatten() {
            if let Some(target) = out.get_mut(at..at + piece.len) {
                let _ = machine.read(piece.mfn, piece.offset, target);
            }
            at += piece.len;
        }
        self.leave_guest();
        Ok(())
    }

    /// Writes guest memory (at most two pages): all or nothing.
    pub(super) fn write_guest(&mut self, va: u64, bytes: &[u8]) -> Result<(), Fault> {
        let machine = Arc::clone(self.machine());
        let parts = self.pieces_in_guest(&machine, va, bytes.len(), true)?;
        self.note_access(va, bytes.len(), true);
        let mut at = 0;
        for piece in parts.iter().flatten() {
            if let Some(source) = bytes.get(at..at + piece.len) {
                let _ = machine.write(piece.mfn, piece.offset, source);
            }
            at += piece.len;
        }
        self.leave_guest();
        Ok(())
    }

    /// Loads an operand of at most 8 bytes, zero-extended.
    pub(super) fn read_element(&mut self, va: u64, size: u64) -> Result<u64, Fault> {
        self.check_alignment(va, size as usize)?;
        self.read_unaligned(va, size)
    }

    /// As [`Self::read_element`], for what is never checked for alignment: elements of gathers and masked moves.
    pub(super) fn read_unaligned(&mut self, va: u64, size: u64) -> Result<u64, Fault> {
        let mut element = [0u8; 8];
        let bytes = element.get_mut(..size as usize).ok_or_else(Fault::undefined)?;
        self.read_guest(va, bytes)?;
        Ok(u64::from_le_bytes(element))
    }

    /// Stores the low `size` bytes of `value`, at most 8.
    pub(super) fn write_element(&mut self, va: u64, value: u64, size: u64) -> Result<(), Fault> {
        self.check_alignment(va, size as usize)?;
        self.write_guest(va, value.to_le_bytes().get(..size as usize).ok_or_else(Fault::undefined)?)
    }

    /// Copies `len` bytes of guest memory forward, element by element of `size` bytes as far as anybody can tell; both
    /// ranges lie within their pages. Returns how many bytes were done, at least one element.
    pub(super) fn copy_guest(&mut self, from: u64, to: u64, len: usize, size: usize) -> Result<usize, Fault> {
        let machine = Arc::clone(self.machine());
        let (from_offset, to_offset) = ((from % PAGE_SIZE) as usize, (to % PAGE_SIZE) as usize);
        loop {
            self.enter_for_access();
            let frames =
                self.frame_for(&machine, from, false).and_then(|f| Ok((f, self.frame_for(&machine, to, true)?)));
            let (source, target) = match frames {
                Ok(frames) => frames,
                Err(stop) => {
                    self.leave_guest();
                    return Err(stop.into());
                }
            };
            if machine.code().has_code(target) {
                self.leave_guest();
                self.invalidate_for_write(target);
                continue;
            }
            // Within one frame a later element may read what an earlier one wrote: no further than the distance.
            let ahead = to_offset.wrapping_sub(from_offset);
            let len = if source == target && ahead < len { (ahead / size * size).max(size) } else { len };
            let _ = machine.copy((source, from_offset), (target, to_offset), len);
            self.leave_guest();
            self.note_access(from, len, false);
            self.note_access(to, len, true);
            return Ok(len);
        }
    }

    /// Fills guest memory within a page.
    pub(super) fn fill_guest(&mut self, va: u64, len: usize, byte: u8) -> Result<(), Fault> {
        let machine = Arc::clone(self.machine());
        let [Some(piece), _] = self.pieces_in_guest(&machine, va, len, true)? else { return Ok(()) };
        self.note_access(va, len, true);
        let _ = machine.fill(piece.mfn, piece.offset, len, byte);
        self.leave_guest();
        Ok(())
    }
}
