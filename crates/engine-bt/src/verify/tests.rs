//! Code that is right, and code that is wrong in one thing each.

use std::mem::offset_of;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use ring3_engine::GuestMode;

use super::{Surroundings, Violation, verify};
use crate::emit::asm::Asm;
use crate::emit::stubs::{self, Stubs};
use crate::emit::tlb;
use crate::jumps;
use crate::state::{JumpEntry, State, TlbEntry, gpr_index};
use crate::translate::{Entries, access_info};

const STUBS: u64 = 0x1000_0000;
const ORIGIN: u64 = 0x1001_0000;
const OTHER_ENTRY: u64 = 0x1002_0040;

fn stubs() -> Stubs {
    stubs::emit(&mut Asm::new(STUBS, Vec::new()), 0x1234, true)
}

/// Verifies what `f` assembles.
fn check(f: impl FnOnce(&mut CodeAssembler, &Stubs) -> Result<(), IcedError>) -> Result<(), Violation> {
    let stubs = stubs();
    let mut a = CodeAssembler::new(64).unwrap();
    f(&mut a, &stubs).unwrap();
    let code = a.assemble(ORIGIN).unwrap();
    let around =
        Surroundings { stubs: &stubs, mode: GuestMode::User as usize, is_entry: &|address| address == OTHER_ENTRY };
    verify(&code, ORIGIN, Entries { far: ORIGIN, near: ORIGIN, native: ORIGIN }, &around)
}

fn rejected(f: impl FnOnce(&mut CodeAssembler, &Stubs) -> Result<(), IcedError>) -> &'static str {
    check(f).expect_err("should be refused").what
}

/// A check of `[rbx + 8]`, with a number to be wrong in.
#[derive(Clone, Copy)]
struct Check {
    size: u32,
    write: bool,
    mask: u32,
    shift: u32,
    page: usize,
    info: u32,
}

impl Check {
    fn load(size: u32) -> Self {
        let page = tlb::offset(1) + offset_of!(TlbEntry, host_page);
        Self { size, write: false, mask: 0x1ffe0, shift: 7, page, info: size }
    }

    fn store(size: u32) -> Self {
        Self { write: true, info: size | access_info::WRITE, ..Self::load(size) }
    }

    fn tag(self) -> usize {
        let field = if self.write { offset_of!(TlbEntry, write_tag) } else { offset_of!(TlbEntry, read_tag) };
        tlb::offset(1) + field
    }

    /// Emits it, and `body` with R11 at the operand; then leaves.
    fn around(
        self,
        a: &mut CodeAssembler,
        stubs: &Stubs,
        body: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Result<(), IcedError> {
        let (mut cold, mut back) = (a.create_label(), a.create_label());
        a.lea(r11, qword_ptr(rbx + 8))?;
        a.mov(r10, r11)?;
        a.shr(r10, self.shift)?;
        a.and(r10d, self.mask as i32)?;
        a.xor(r11, qword_ptr(r10 + self.tag()).gs())?;
        a.cmp(r11, 4096 - self.size as i32)?;
        a.ja(cold)?;
        a.add(r11, qword_ptr(r10 + self.page).gs())?;
        a.set_label(&mut back)?;
        body(a)?;
        leave(a, stubs)?;
        a.set_label(&mut cold)?;
        a.xor(r11, qword_ptr(r10 + self.tag()).gs())?;
        a.mov(dword_ptr(offset_of!(State, access_info)).gs(), self.info)?;
        a.lea(r10, qword_ptr(back))?;
        a.jmp(stubs.tlb_miss[1][usize::from(self.info & access_info::WRITE != 0)])
    }
}

fn leave(a: &mut CodeAssembler, stubs: &Stubs) -> Result<(), IcedError> {
    a.mov(r10d, 4)?;
    a.mov(r11d, 5)?;
    a.jmp(stubs.exit)
}

fn state(field: usize) -> AsmMemoryOperand {
    qword_ptr(field).gs()
}

#[test]
fn test_checked_accesses_pass() {
    check(|a, s| Check::load(8).around(a, s, |a| a.mov(rax, qword_ptr(r11)))).unwrap();
    check(|a, s| Check::store(8).around(a, s, |a| a.add(dword_ptr(r11 + 4), eax))).unwrap();
    check(|a, s| Check::store(16).around(a, s, |a| a.movups(xmmword_ptr(r11), xmm3))).unwrap();
}

#[test]
fn test_accesses_beyond_the_check_are_refused() {
    let beyond = "an access to memory beyond what was checked";
    assert_eq!(rejected(|a, s| Check::load(4).around(a, s, |a| a.mov(rax, qword_ptr(r11)))), beyond);
    assert_eq!(rejected(|a, s| Check::load(8).around(a, s, |a| a.mov(eax, dword_ptr(r11 + 5)))), beyond);
    assert_eq!(rejected(|a, s| Check::load(8).around(a, s, |a| a.mov(al, byte_ptr(r11 - 1)))), beyond);
    assert_eq!(rejected(|a, s| Check::load(8).around(a, s, |a| a.mov(al, byte_ptr(r11 + rcx)))), beyond);
    let short_slow_path = Check { info: 4, ..Check::load(8) };
    assert_eq!(rejected(|a, s| short_slow_path.around(a, s, |a| a.mov(rax, qword_ptr(r11)))), beyond);
}

#[test]
fn test_stores_need_a_check_for_stores() {
    let what = "a store where a load was checked";
    assert_eq!(rejected(|a, s| Check::load(8).around(a, s, |a| a.mov(qword_ptr(r11), rax))), what);
    assert_eq!(rejected(|a, s| Check::load(8).around(a, s, |a| a.lock().inc(dword_ptr(r11)))), what);
    let slow_path_for_loads = Check { info: 8, ..Check::store(8) };
    assert_eq!(rejected(|a, s| slow_path_for_loads.around(a, s, |a| a.mov(qword_ptr(r11), rax))), what);
}

#[test]
fn test_wrong_checks_are_refused() {
    let unselected = "a tag of an entry that the address does not select";
    let body = |a: &mut CodeAssembler| a.mov(rax, qword_ptr(r11));
    assert_eq!(rejected(|a, s| Check { mask: 0x3ffe0, ..Check::load(8) }.around(a, s, body)), unselected);
    assert_eq!(rejected(|a, s| Check { shift: 8, ..Check::load(8) }.around(a, s, body)), unselected);
    let other_mode = Check { page: tlb::offset(0) + offset_of!(TlbEntry, host_page), ..Check::load(8) };
    assert_eq!(rejected(|a, s| other_mode.around(a, s, body)), "an access to the state at a variable offset");
    assert_eq!(
        rejected(|a, s| {
            a.mov(r10d, 0)?;
            a.mov(r11, rbx)?;
            a.add(r11, qword_ptr(r10 + Check::load(8).page).gs())?;
            leave(a, s)
        }),
        "a host page without a hit"
    );
}

/// `rep stosb` on a run that is looked up in the second place of its page, at what `entry` makes of the first.
fn run(entry: i32, tag: usize) -> super::Verdict<()> {
    let access = Check::store(1);
    check(|a, s| {
        let mut miss = a.create_label();
        a.cmp(rcx, 4096)?;
        a.ja(miss)?;
        a.mov(r11, rdi)?;
        a.mov(r10, r11)?;
        a.shr(r10, access.shift)?;
        a.and(r10d, access.mask as i32)?;
        a.xor(r10d, entry)?;
        a.xor(r11, qword_ptr(r10 + tag).gs())?;
        a.lea(r11, qword_ptr(r11 + rcx))?;
        a.cmp(r11, 4096)?;
        a.ja(miss)?;
        a.mov(r11d, edi)?;
        a.and(r11d, 4095)?;
        a.add(r11, qword_ptr(r10 + access.page).gs())?;
        a.mov(state(offset_of!(State, scratch) + 8), rdi)?;
        a.mov(rdi, r11)?;
        a.rep().stosb()?;
        a.mov(rdi, state(offset_of!(State, scratch) + 8))?;
        a.set_label(&mut miss)?;
        leave(a, s)
    })
}

#[test]
fn test_runs_may_lie_in_the_second_place_of_their_page() {
    let tag = Check::store(1).tag();
    run(tlb::SECOND as i32, tag).unwrap();
    let unselected = "a tag of an entry that the address does not select";
    assert_eq!(run(tlb::SECOND as i32 >> 1, tag).unwrap_err().what, unselected);
    assert_eq!(run(8, tag).unwrap_err().what, unselected);
    let for_loads = Check::load(1).tag();
    assert_eq!(
        run(tlb::SECOND as i32, for_loads).unwrap_err().what,
        "a string instruction on memory that was not checked"
    );
}

#[test]
fn test_unchecked_addresses_are_refused() {
    let what = "an access to memory at an address that was not checked";
    let with = |f: fn(&mut CodeAssembler) -> Result<(), IcedError>| {
        rejected(move |a, s| {
            f(a)?;
            leave(a, s)
        })
    };
    assert_eq!(with(|a| a.mov(rax, qword_ptr(rbx))), what);
    assert_eq!(with(|a| a.mov(rax, qword_ptr(r11))), what);
    assert_eq!(with(|a| a.mov(qword_ptr(0x1000), rax)), what);
    assert_eq!(with(|a| a.maskmovq(mm0, mm1)), what);
    assert_eq!(with(|a| a.cmpxchg16b(xmmword_ptr(rsi))), what);
    assert_eq!(with(|a| a.mov(rax, qword_ptr(rbx).fs())), "an access to the host's own data");
    assert_eq!(with(|a| a.xlatb()), "an instruction that blocks do not have");
    assert_eq!(with(|a| a.rep().stosb()), "a string instruction on memory that was not checked");
}

#[test]
fn test_state_fields_that_are_not_the_blocks() {
    let part = "an access to a part of the state that is not the block's";
    let store = |field: usize| {
        rejected(|a, s| {
            a.mov(state(field), rax)?;
            leave(a, s)
        })
    };
    assert_eq!(store(offset_of!(State, host_rsp)), part);
    assert_eq!(store(offset_of!(State, context)), part);
    assert_eq!(store(offset_of!(State, tlb)), part);
    assert_eq!(store(offset_of!(State, jumps)), part);
    assert_eq!(store(gpr_index(11) + 4), part);
    assert_eq!(
        rejected(|a, s| {
            a.mov(rax, state(offset_of!(State, this)))?;
            leave(a, s)
        }),
        part
    );
    check(|a, s| {
        a.mov(state(gpr_index(10)), rax)?;
        a.mov(rax, state(offset_of!(State, page_base)))?;
        leave(a, s)
    })
    .unwrap();
}

#[test]
fn test_host_addresses_stay_where_they_are() {
    let exit = "a host address in a register at an exit";
    assert_eq!(rejected(|a, s| Check::load(8).around(a, s, |a| a.mov(rax, r11))), exit);
    assert_eq!(rejected(|a, s| Check::load(8).around(a, s, |a| a.lea(rcx, qword_ptr(r11 + rax * 2)))), exit);
    let stored = "a host address stored to the guest's memory";
    assert_eq!(rejected(|a, s| Check::store(8).around(a, s, |a| a.mov(qword_ptr(r11), r11))), stored);
    // What an earlier block left in a scratch word may be one.
    assert_eq!(
        rejected(|a, s| {
            a.mov(rax, state(offset_of!(State, scratch)))?;
            leave(a, s)
        }),
        exit
    );
}

#[test]
fn test_instructions_that_blocks_do_not_have() {
    let what = "an instruction that blocks do not have";
    let with = |f: fn(&mut CodeAssembler) -> Result<(), IcedError>| {
        rejected(move |a, s| {
            f(a)?;
            leave(a, s)
        })
    };
    assert_eq!(with(|a| a.wrgsbase(rax)), what);
    assert_eq!(with(|a| a.wrfsbase(rax)), what);
    assert_eq!(with(|a| a.mov(gs, eax)), what);
    assert_eq!(with(|a| a.push(rax)), what);
    assert_eq!(with(|a| a.popfq()), what);
    assert_eq!(with(|a| a.std()), what);
    assert_eq!(with(|a| a.hlt()), what);
    assert_eq!(with(|a| a.xrstor(ptr(rax))), what);
    let transfer = "a transfer of control that blocks do not have";
    assert_eq!(with(|a| a.syscall()), transfer);
    assert_eq!(with(|a| a.int(0x80)), transfer);
    assert_eq!(with(|a| a.ret()), what.replace("an instruction", "a transfer of control"));
}

#[test]
fn test_control_stays_in_the_cache() {
    let out = "a jump out of the block to no stub and no entry";
    assert_eq!(rejected(|a, _| a.jmp(0x4000_0000u64)), out);
    assert_eq!(rejected(|a, s| a.jmp(s.exit + 1)), out);
    assert_eq!(
        rejected(|a, s| {
            a.jne(s.enter)?;
            leave(a, s)
        }),
        out
    );
    // Into the middle of its own first instruction.
    assert_eq!(
        rejected(|a, _| {
            a.mov(eax, 0)?;
            a.jmp(ORIGIN + 1)
        }),
        out
    );
    assert_eq!(rejected(|a, _| a.jmp(rax)), "an indirect jump by something else than the jump cache");
    assert_eq!(rejected(|a, _| a.nop()), "control flow that runs out of the block");
    check(|a, _| a.jmp(OTHER_ENTRY)).unwrap();
}

#[test]
fn test_jump_cache_offsets_are_cut() {
    let at = jumps::offset(1);
    let jump = |mask: u32| {
        check(|a, s| {
            a.lea(r11, qword_ptr(rax))?;
            a.imul_3(r10d, r11d, 12345)?;
            a.and(r10d, mask as i32)?;
            a.cmp(r11, qword_ptr(r10 + (at + offset_of!(JumpEntry, rip))).gs())?;
            a.jne(s.jump_miss[1])?;
            a.jmp(qword_ptr(r10 + (at + offset_of!(JumpEntry, host))).gs())
        })
    };
    jump(jumps::HASH_MASK).unwrap();
    for mask in [jumps::HASH_MASK | 8, jumps::HASH_MASK << 1, 0x7fff_fff0] {
        assert_eq!(jump(mask).unwrap_err().what, "an offset that reaches beyond the jump cache");
    }
}

#[test]
fn test_loops_within_a_block_are_refused() {
    let result = rejected(|a, s| {
        let mut again = a.create_label();
        a.nop()?;
        a.set_label(&mut again)?;
        a.dec(ecx)?;
        a.jne(again)?;
        leave(a, s)
    });
    assert_eq!(result, "a loop that is not the block's");
}

#[test]
fn test_noise_never_panics() {
    let stubs = stubs();
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    for _ in 0..3000 {
        let code: Vec<u8> = (0..40)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (seed >> 56) as u8
            })
            .collect();
        let around = Surroundings { stubs: &stubs, mode: 0, is_entry: &|_| false };
        let _ = verify(&code, ORIGIN, Entries { far: ORIGIN, near: ORIGIN, native: ORIGIN }, &around);
    }
}
