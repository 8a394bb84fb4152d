//! A direct run, from the vCPU's side.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ring3_engine::{
    Access, CodeSize, Exit, GuestMode, PF_FETCH, PF_WRITE, Regs, Segment, SegmentName, Vcpu, dr6, rflags, vector, walk,
};
use ring3_machine::{Mfn, PAGE_SIZE, PAGE_SIZE_BYTES};

use super::frame::Frame;
use super::host_unsafe::Bound;
use super::runner_unsafe::{Note, Runner, Stopped};
use super::scan::{Verdict, examine};
use super::space::{Space, hole_is_free, is_mappable};
use super::{DirectPolicy, KICK, MAX_SPACES};
use crate::dispatch::BtVcpu;
use crate::dispatch::xstate::{IMAGE_BYTES, X87, XSTATE_BV_AT};
use crate::host_unsafe::ticks;

/// Selectors that a Linux host gives a 64-bit process; guests with others are translated. Source: Linux
/// arch/x86/include/asm/segment.h.
const USER_CS: u16 = 0x33;
const USER32_CS: u16 = 0x23;
const USER_SS: u16 = 0x2b;
/// Calls there are emulated by the host. Source: Linux arch/x86/include/uapi/asm/vsyscall.h.
const VSYSCALL_PAGE: u64 = 0xffff_ffff_ff60_0000;

/// Takes data selectors that user code may have loaded while it ran directly, and what the host's table has for them.
fn take_selectors(regs: &mut Regs, selectors: [u16; 4]) {
    use SegmentName::{Ds, Es, Fs, Gs};
    let old = [regs.ds, regs.es, regs.fs, regs.gs];
    for (name, (selector, _)) in
        [Ds, Es, Fs, Gs].into_iter().zip(selectors.into_iter().zip(old)).filter(|(_, (new, old))| new != old)
    {
        regs.segments[name as usize] = match selector {
            USER_SS => Segment::FLAT_DATA,
            USER_CS | USER32_CS => Segment::FLAT_CODE32,
            _ => Segment::NULL,
        };
    }
    [regs.ds, regs.es, regs.fs, regs.gs] = selectors;
}

/// How a direct run ended.
enum Ended {
    /// The translator goes on at RIP.
    Translate,
    Exit(Exit),
}

/// Why a runner stopped.
enum Cause {
    Kicked,
    Fault {
        va: u64,
        access: Access,
    },
    /// Something else that the translator will meet at RIP too.
    Other,
    /// EFLAGS.TF took effect.
    Traced,
    /// Code that the runner's host would take for another kind than the guest.
    Foreign,
}

impl BtVcpu {
    /// Runs user code directly if that is called for. `None`: the translator goes on, at RIP.
    pub(crate) fn try_direct(&mut self) -> Option<Exit> {
        let root = self.space().root;
        let is_called_for = match self.direct.policy {
            DirectPolicy::Never => false,
            DirectPolicy::Measured => self.direct.wanted == Some(root),
            DirectPolicy::Always => self.direct.nursery.is_some(),
        };
        if !is_called_for || !self.is_plain_user_code() {
            return None;
        }
        let mut space = self.take_space(root)?;
        let cpu = self.direct.bound.get_or_insert_with(Bound::here).cpu();
        space.runner.bind(cpu);
        let started = ticks();
        self.direct.running = 0;
        let ended = self.run_directly(&mut space);
        self.shared_control().leave_runner();
        let ended = match ended {
            Ok(ended) => {
                let total = ticks().wrapping_sub(started);
                if !space.balance.add(total, self.direct.running, &mut self.direct.pace) {
                    self.stop_direct();
                }
                self.direct.spaces.push(space);
                ended
            }
            Err(ended) => {
                self.stop_direct();
                ended
            }
        };
        match ended {
            Ended::Translate => None,
            Ended::Exit(exit) => Some(exit),
        }
    }

    fn stop_direct(&mut self) {
        self.direct.wanted = None;
        self.direct.unbind();
    }

    /// User code was interrupted: from now on it may run directly.
    pub(crate) fn note_interrupted_user(&mut self) {
        if self.direct.nursery.is_some()
            && self.direct.policy == DirectPolicy::Measured
            && self.direct.pace.is_computing(ticks())
        {
            self.direct.wanted = Some(self.space().root);
        }
    }

    /// 64-bit user code with the segments that the runner has, not single-stepping.
    fn is_plain_user_code(&self) -> bool {
        let regs = self.regs();
        self.current_mode() == GuestMode::User
            && self.code_size() == CodeSize::Bits64
            && (regs.cs, regs.ss) == (USER_CS, USER_SS)
            && (regs.ds | regs.es | regs.fs | regs.gs) & !3 == 0
            && !self.needs_translator()
            && is_mappable(regs.rip)
    }

    /// The space for a page table: one that is there, or another's runner, or a new one.
    fn take_space(&mut self, root: Mfn) -> Option<Space> {
        let known = self.direct.spaces.iter().position(|space| space.root == root);
        let space = if let Some(index) = known {
            Some(self.direct.spaces.remove(index))
        } else if self.direct.spaces.len() >= MAX_SPACES {
            let mut space = self.direct.spaces.remove(0);
            space.retarget(root).ok().map(|()| space)
        } else {
            let nursery = self.direct.nursery.as_ref()?;
            Runner::start(nursery, self.machine().memfd()).ok().map(|runner| Space::new(root, runner))
        };
        if space.is_none() {
            // A host that refuses once will refuse again: seccomp notifications or processes are not to be had.
            self.direct.nursery = None;
            self.stop_direct();
        }
        space
    }

    /// Lets the runner go until the translator is needed. `Err`: the runner is of no more use.
    fn run_directly(&mut self, space: &mut Space) -> Result<Ended, Ended> {
        let machine = Arc::clone(self.machine());
        self.build_image();
        let mut image = *self.image;
        let mut uses_x87 = self.state().x87_used != 0;
        if !uses_x87 {
            image[XSTATE_BV_AT] &= !(X87 as u8);
        }
        let ended = loop {
            self.enter_guest();
            if self.is_requested() {
                self.leave_guest();
                let rest = self.take_requests();
                if !rest.is_empty() {
                    break Ok(Ended::Exit(Exit::Interrupted(rest)));
                }
                continue;
            }
            if !hole_is_free(&machine, space.root) {
                self.stop_direct();
                break Ok(Ended::Translate);
            }
            if space.refresh(&machine, self.direct.epoch).is_err() {
                break Err(Ended::Translate);
            }
            let resumed = ticks();
            let stopped = self.let_go(space, &image);
            self.direct.running += ticks().wrapping_sub(resumed).saturating_sub(super::policy::SWITCHES);
            self.leave_guest();
            let Some((mut frame, note)) = stopped else {
                // What it did to memory stays, its registers are lost: a guest process that went for the runner's stub.
                let lost = Exit::Exception { vector: vector::GP, error_code: Some(0), cr2: 0 };
                break Err(Ended::Exit(lost));
            };
            frame.complete_xstate();
            image = frame.xsave;
            uses_x87 = frame.uses_x87();
            match self.absorb(&frame, &note) {
                Cause::Kicked => {}
                Cause::Fault { va, access } => match self.admit(space, va, access) {
                    Ok(true) => {}
                    Ok(false) => break Ok(Ended::Translate),
                    Err(_) => break Err(Ended::Translate),
                },
                Cause::Other => break Ok(Ended::Translate),
                Cause::Traced => break Ok(Ended::Exit(Exit::Debug { hits: dr6::BS })),
                Cause::Foreign => {
                    break Ok(Ended::Exit(Exit::Exception { vector: vector::GP, error_code: Some(0), cr2: 0 }));
                }
            }
        };
        self.leave_guest();
        self.load_image(&image);
        if !uses_x87 {
            self.reset_x87_state();
        }
        ended
    }

    /// Resumes the runner with the current registers and waits until it is parked again. `None`: it is lost.
    fn let_go(&mut self, space: &mut Space, image: &[u8; IMAGE_BYTES]) -> Option<(Frame, Note)> {
        let runner = &mut space.runner;
        let mut frame = runner.template();
        let regs = self.regs();
        frame.load(regs, image);
        let (fs_base, gs_base) = (regs.fs_base, regs.gs_base);
        let control = self.shared_control();
        // From here on a request kicks the runner; one that came before is seen now, and the kick comes from us.
        control.enter_runner(runner.pid());
        if self.is_requested() {
            super::kick(runner.pid());
        }
        let is_parked =
            runner.resume(&frame, fs_base, gs_base).is_ok() && runner.wait(|| self.is_requested()) == Stopped::Parked;
        control.leave_runner();
        is_parked.then(|| (runner.frame(), runner.note()))
    }

    /// Takes the registers of a parked runner, and says why it parked.
    fn absorb(&mut self, frame: &Frame, note: &Note) -> Cause {
        let regs = self.regs_mut();
        frame.store(regs);
        (regs.fs_base, regs.gs_base) = (note.fs_base, note.gs_base);
        take_selectors(regs, note.selectors);
        match frame.cs() {
            USER_CS => {}
            USER32_CS => {
                regs.cs = USER32_CS;
                regs.segments[SegmentName::Cs as usize] = Segment::FLAT_CODE32;
                self.set_code_size(CodeSize::Bits32);
                return Cause::Other;
            }
            _ => return Cause::Foreign,
        }
        let traced = regs.rflags & rflags::TF != 0;
        match (note.signal, frame.trap()) {
            (KICK, _) => {}
            (libc::SIGSYS, _) if note.call_address == regs.rip => {
                // RIP is after the instruction, which has two bytes: `syscall`, `sysenter`, `int 0x80`.
                regs.rip = regs.rip.wrapping_sub(2);
                return Cause::Other;
            }
            (libc::SIGSYS, _) if note.call_address & !(PAGE_SIZE - 1) == VSYSCALL_PAGE => {
                // The host emulated the call's return.
                regs.gpr[4] = regs.gpr[4].wrapping_sub(8);
                regs.rip = note.call_address;
                return Cause::Other;
            }
            (libc::SIGSEGV, 14) => {
                let access = match frame.error_code() {
                    code if code & u64::from(PF_FETCH) != 0 => Access::Execute,
                    code if code & u64::from(PF_WRITE) != 0 => Access::Write,
                    _ => Access::Read,
                };
                return Cause::Fault { va: frame.cr2(), access };
            }
            (libc::SIGTRAP, 3) => {
                let rip = regs.rip;
                self.step_back_over_int(rip);
                return Cause::Other;
            }
            (libc::SIGTRAP, 1) if traced => return Cause::Traced,
            (libc::SIGTRAP, 1) => {
                let rip = regs.rip;
                self.step_back_over_icebp(rip);
                return Cause::Other;
            }
            (libc::SIGSEGV, 4) => {
                // `int 4`.
                regs.rip = regs.rip.wrapping_sub(2);
                return Cause::Other;
            }
            _ => return Cause::Other,
        }
        if traced { Cause::Other } else { Cause::Kicked }
    }

    fn guest_byte(&self, va: u64) -> Option<u8> {
        let mfn = self.fetch_frame(va).ok()?;
        Some(self.machine().byte(mfn, (va % PAGE_SIZE) as usize).ok()?.load(Ordering::Relaxed))
    }

    /// RIP of the `int3` or `int 3` that ends at `rip`.
    fn step_back_over_int(&mut self, rip: u64) {
        const INT3: u8 = 0xcc;
        let len = if self.guest_byte(rip.wrapping_sub(1)) == Some(INT3) { 1 } else { 2 };
        self.regs_mut().rip = rip.wrapping_sub(len);
    }

    /// RIP of the `int1` that ends at `rip`; under some hypervisors, it is there that the host found it.
    fn step_back_over_icebp(&mut self, rip: u64) {
        const INT1: u8 = 0xf1;
        if self.guest_byte(rip) != Some(INT1) {
            self.regs_mut().rip = rip.wrapping_sub(1);
        }
    }

    /// A fault in the runner: maps what the guest's tables allow. `false`: the translator shall see to it.
    fn admit(&mut self, space: &mut Space, va: u64, access: Access) -> std::io::Result<bool> {
        if !is_mappable(va) {
            return Ok(false);
        }
        let domain = self.domain();
        let machine = Arc::clone(self.machine());
        // Of code, neighbours are looked for in tables that a walk has marked as used.
        if access == Access::Execute && !self.can_access(va, access) {
            return Ok(false);
        }
        let mut with_both = false;
        if let Some(mfn) = space.writable_code(&machine, va, access) {
            // Watching its stores would cost two faults for each time that it writes code and runs it.
            if machine.code().has_code(mfn) {
                domain.invalidate(mfn);
            }
            let mut page = [0u8; PAGE_SIZE_BYTES];
            with_both = machine.read(mfn, 0, &mut page).is_ok() && examine(&page).verdict == Verdict::Clean;
        }
        if access == Access::Execute && !with_both {
            for mfn in space.code_around(&machine, va) {
                if domain.prepare_direct(mfn, self.shared_control()) {
                    // Stores to it by this vCPU must be seen from now on.
                    self.protect(mfn);
                }
            }
        }
        self.enter_guest();
        let is_mapped = match walk(&machine, &self.space(), va, access) {
            Ok(_) => {
                space.refresh(&machine, self.direct.epoch)?;
                space.map_around(&machine, va, access, with_both, |mfn| domain.examined(mfn))
            }
            Err(_) => Ok(false),
        };
        self.leave_guest();
        is_mapped
    }

    /// Whether the guest's tables allow an access; marks them as used. Called out of the guest.
    fn can_access(&self, va: u64, access: Access) -> bool {
        self.enter_guest();
        let is_allowed = walk(self.machine(), &self.space(), va, access).is_ok();
        self.leave_guest();
        is_allowed
    }
}
