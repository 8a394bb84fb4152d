//! Targets for fuzzers that look at coverage (`fuzz/`, `make fuzz-parsers`): one for each kind of guest bytes that the
//! hypervisor takes apart. Each panics if an invariant does not hold.

use std::sync::Arc;

use ring3_abi::event_channel::{
    EVTCHNOP_expand_array, EVTCHNOP_init_control, evtchn_expand_array, evtchn_init_control,
};
use ring3_abi::hypercall::*;
use ring3_abi::xen::{DOMID_SELF, MMUEXT_NEW_USER_BASEPTR, mmuext_op};
use ring3_engine::{GprName, GuestMode, pte, rflags};

use super::super::support::{ARGS, BASE, Guest, KERNEL_SP, NR_PAGES, SP, machine_of};
use super::calls::{self, Call};
use super::random::Random;
use super::{Place, args_of, pair};
use crate::Hypervisor;
use crate::mm::Error;
use crate::vcpu::Action;
use crate::vcpu::bounce::Running;

/// Calls of one input.
const MAX_CALLS: u32 = 100;
/// Pages that hold what a target writes as the guest.
const PAGE: u64 = 16;

thread_local! {
    /// A small one: each audit looks at all of it.
    static MACHINE: Arc<Hypervisor> = machine_of(256).0;
}

/// Runs `work` with two domains; then both end, and everything must be explained and given back.
fn with_pair(work: impl FnOnce(&[Guest; 2])) {
    MACHINE.with(|hv| {
        let nr_free = hv.frames.nr_free_frames();
        let guests = pair(hv);
        work(&guests);
        let wrong = hv.audit_stopped();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        for guest in &guests {
            hv.domain_destroy(guest.domid).unwrap();
            let wrong = hv.audit_stopped();
            assert!(wrong.is_empty(), "destroyed: {}", wrong.join("\n"));
        }
        assert_eq!(hv.frames.nr_free_frames(), nr_free, "frames were lost");
    });
}

/// As [`with_pair`], with the first of them running, as the worker of its vCPU 0 would have it.
///
/// The root serves kernel and users.
fn with_running(work: impl FnOnce(&mut Running<'_>)) {
    with_pair(|guests| {
        let op = mmuext_op { cmd: MMUEXT_NEW_USER_BASEPTR, arg1: guests[0].root().0, ..Default::default() };
        guests[0].write(ARGS, &op);
        assert_eq!(guests[0].call(__HYPERVISOR_mmuext_op, &[ARGS, 1, 0, u64::from(DOMID_SELF)]), 0);
        guests[0].with(|running| {
            work(running);
            running.state.action = Action::None;
        });
    });
}

fn make(guests: &[Guest; 2], r: &mut Random, call: impl Fn(&mut Random, &Place<'_>) -> Call) {
    let who = usize::from(r.one_in(2));
    let (guest, peer) = (&guests[who], &guests[1 - who]);
    let vcpu = r.small(2);
    let args = args_of(vcpu);
    let call = call(r, &Place { guest, peer, args });
    guest.fuzz(vcpu, args, &call);
}

fn each_call(r: &mut Random, mut one: impl FnMut(&mut Random)) {
    let mut nr = 0;
    while !r.is_over() && nr < MAX_CALLS {
        one(r);
        nr += 1;
    }
}

/// Hypercalls with their argument structures, by two domains of two vCPUs.
pub fn hypercalls(data: &[u8]) {
    with_pair(|guests| each_call(&mut Random::of_bytes(data), |r| make(guests, r, calls::random)));
}

/// Pages of any content that become page tables, are changed as such, and are given up.
pub fn page_tables(data: &[u8]) {
    with_pair(|guests| {
        let mut r = Random::of_bytes(data);
        let place = Place { guest: &guests[0], peer: &guests[1], args: ARGS };
        for page in PAGE..PAGE + 8 {
            for _ in 0..r.below(6) {
                let (index, entry) = (r.pick(&[0, 1, 2, 3, 255, 256, 272, 511]), r.entry(&place));
                let mfn = place.guest.mfns[page as usize];
                place.guest.hv.memory.machine.write(mfn, index * 8, &entry.to_le_bytes()).unwrap();
            }
            if !r.one_in(8) {
                let entry = place.guest.mfns[page as usize].address() | pte::PRESENT | pte::USER;
                place.guest.call(__HYPERVISOR_update_va_mapping, &[BASE + page * 4096, entry, 0]);
            }
        }
        each_call(&mut r, |r| match r.below(4) {
            0 => make(guests, r, calls::mmu_update),
            1 | 2 => make(guests, r, calls::mmuext),
            _ => store_to_table(place.guest, r, &place),
        });
    });
}

/// A store of the guest to a read-only mapped table.
fn store_to_table(guest: &Guest, r: &mut Random, place: &Place<'_>) {
    let domain = guest.domain();
    let (root, va) = (guest.with(|running| running.state.kernel_space().root), r.va(place));
    let Some(mfn) = domain.mm.ptwr_target(root, va) else { return };
    let len = r.pick(&[1usize, 2, 4, 8, 16]);
    let offset = (va & 0xfff) as usize;
    let mut old = vec![0; len];
    if offset + len > 4096 || guest.hv.memory.machine.read(mfn, offset, &mut old).is_err() {
        return;
    }
    let new: Vec<u8> = r.entry(place).to_le_bytes().into_iter().cycle().take(len).collect();
    let result = domain.mm.ptwr_update(mfn, offset, &old, &new);
    assert!(result != Err(Error::Raced), "nobody else changes it");
}

/// Descriptor tables of any content, and selectors into them.
pub fn descriptors(data: &[u8]) {
    with_pair(|guests| {
        let mut r = Random::of_bytes(data);
        let guest = &guests[0];
        let gdt = guest.mfns[PAGE as usize];
        for index in 0..r.below(24) {
            let mut raw = r.bytes::<8>();
            if r.one_in(2) {
                // A segment that is present, at least.
                raw[5] |= 0x90;
            }
            guest.hv.memory.machine.write(gdt, index as usize * 8, &raw).unwrap();
        }
        let va = BASE + PAGE * 4096;
        guest.call(__HYPERVISOR_update_va_mapping, &[va, gdt.address() | pte::PRESENT | pte::USER, 0]);
        guest.write(ARGS, &gdt.0);
        let is_set = guest.call(__HYPERVISOR_set_gdt, &[ARGS, 512]) == 0;
        if r.one_in(2) {
            guest.with(|running| running.state.set_ldt(&running.domain.mm, va, 64));
        }
        each_call(&mut r, |r| {
            if r.one_in(4) {
                make(guests, r, calls::descriptors);
                return;
            }
            let selector = r.pick(&[0u16, 4]) | (r.below(if is_set { 32 } else { 3 }) as u16) << 3 | r.small(4) as u16;
            // mov to a segment register; lar, lsl, verr, verw of cx; jmp far and retf through the stack.
            let code: &[u8] = r.pick(&[
                &[0x8e, 0xd9][..],
                &[0x8e, 0xd1],
                &[0x8e, 0xe1],
                &[0x0f, 0x02, 0xc1],
                &[0x0f, 0x03, 0xc1],
                &[0x0f, 0x00, 0xe1],
                &[0x0f, 0x00, 0xe9],
                &[0x48, 0xff, 0x2c, 0x24],
                &[0x48, 0xff, 0x1c, 0x24],
                &[0xcb],
                &[0x48, 0xcf],
            ]);
            guest.with(|running| {
                let frame = [BASE, u64::from(selector), 0x202, SP, u64::from(selector)];
                let _ = running.domain.memory.write(&running.state.kernel_space(), SP, bytemuck::bytes_of(&frame));
                running.state.cpu.regs_mut().set(GprName::Rcx, u64::from(selector));
                execute(running, code);
            });
        });
    });
}

/// Emulates an instruction at `BASE`.
fn execute(running: &mut Running<'_>, code: &[u8]) {
    let mut bytes = [0x90u8; 16];
    let len = code.len().min(15);
    bytes[..len].copy_from_slice(&code[..len]);
    let _ = running.domain.memory.write(&running.state.kernel_space(), BASE, &bytes);
    let regs = running.state.cpu.regs_mut();
    regs.rip = BASE;
    if !regs.get(GprName::Rsp).is_multiple_of(8) {
        regs.set(GprName::Rsp, SP);
    }
    let _ = running.privileged();
    assert_unprivileged(running);
}

/// What no guest may have, whatever it asked for.
fn assert_unprivileged(running: &Running<'_>) {
    let regs = running.state.cpu.regs();
    assert_eq!(regs.cs & 3, 3, "CS of another ring");
    assert!(regs.ss & 3 == 3 || regs.ss & !3 == 0, "SS of another ring: {:#x}", regs.ss);
    assert_ne!(regs.rflags & rflags::IF, 0, "interrupts off");
    assert_eq!(regs.rflags & (3 << 12 | 1 << 17 | 1 << 19 | 1 << 20), 0, "IOPL, VM, VIF or VIP");
}

/// Privileged instructions, with registers, modes and memory of any content.
pub fn instructions(data: &[u8]) {
    with_running(|running| {
        let mut r = Random::of_bytes(data);
        let r = &mut r;
        each_call(r, |r| {
            let mode = if r.one_in(4) { GuestMode::User } else { GuestMode::Kernel };
            running.state.cpu.set_mode(mode, ring3_engine::CodeSize::Bits64);
            running.state.iopl = r.small(4) as u8;
            for index in 0..16 {
                running.state.cpu.regs_mut().gpr[index] = match r.below(4) {
                    0 => r.next(),
                    1 => r.number(),
                    2 => SP - r.below(64) * 8,
                    _ => BASE + r.below(NR_PAGES * 4096),
                };
            }
            let stack = r.bytes::<40>();
            let _ = running.domain.memory.write(&running.state.kernel_space(), SP, &stack);
            let code = r.bytes::<15>();
            execute(running, &code);
        });
    });
}

/// Frames for the iret hypercall.
pub fn iret(data: &[u8]) {
    with_running(|running| {
        let mut r = Random::of_bytes(data);
        each_call(&mut r, |r| {
            let mut frame = [0u64; 9];
            for word in &mut frame {
                *word = match r.below(4) {
                    0 => r.next(),
                    1 => r.number(),
                    2 => r.pick(&[0xe033, 0xe02b, 0xe023, 0x33, 0x2b, 0x23, 0xe030, 0, 3, 7]),
                    _ => BASE + r.below(4096),
                };
            }
            let space = running.state.kernel_space();
            let at = if r.one_in(8) { r.number() } else { KERNEL_SP - 128 };
            let _ = running.domain.memory.write(&space, at, bytemuck::bytes_of(&frame));
            running.state.cpu.regs_mut().set(GprName::Rsp, at);
            let _ = running.iret();
            assert_unprivileged(running);
            running.state.cpu.set_mode(GuestMode::Kernel, ring3_engine::CodeSize::Bits64);
        });
    });
}

/// Words of the FIFO ABI that the guest changes while events come.
pub fn fifo(data: &[u8]) {
    with_pair(|guests| {
        let mut r = Random::of_bytes(data);
        let guest = &guests[0];
        let mfn = |page: u64| guest.mfns[(PAGE + page) as usize];
        for vcpu in 0..2 {
            guest.write(
                ARGS,
                &evtchn_init_control { control_gfn: mfn(1).0, offset: vcpu * 512, vcpu, ..Default::default() },
            );
            guest.call(__HYPERVISOR_event_channel_op, &[u64::from(EVTCHNOP_init_control), ARGS]);
        }
        guest.write(ARGS, &evtchn_expand_array { array_gfn: mfn(0).0 });
        guest.call(__HYPERVISOR_event_channel_op, &[u64::from(EVTCHNOP_expand_array), ARGS]);
        each_call(&mut r, |r| {
            if r.one_in(2) {
                let (page, word) = (r.below(2), r.below(160) as usize);
                let value = if r.one_in(3) {
                    r.next() as u32
                } else {
                    r.pick(&[0u32, 1 << 31, 7 << 29, 1 << 29]) | r.small(24)
                };
                guest.hv.memory.machine.write(mfn(page), word * 4, &value.to_le_bytes()).unwrap();
            } else {
                make(guests, r, calls::event_channel);
            }
        });
    });
}

/// Grant entries of both versions and their status words, while they are used.
pub fn grants(data: &[u8]) {
    with_pair(|guests| {
        let mut r = Random::of_bytes(data);
        each_call(&mut r, |r| {
            let who = usize::from(r.one_in(2));
            let (guest, peer) = (&guests[who], &guests[1 - who]);
            match r.below(4) {
                0 => guest.fuzz_grant_entry(r, peer),
                1 => {
                    let frame = {
                        let domain = guest.domain();
                        let table = domain.gnttab.lock();
                        r.pick(&[table.frames(), table.status_frames()]).first().copied()
                    };
                    let (at, raw) = (r.below(16) as usize * 4, r.bytes::<4>());
                    frame.into_iter().for_each(|mfn| guest.hv.memory.machine.write(mfn, at, &raw).unwrap());
                }
                _ => make(guests, r, calls::grant),
            }
        });
    });
}
