//! The code that every domain's cache starts with: entry from Rust, exits to Rust, and the slow path of an access.
//!
//! In translated code the host's registers hold the guest's, but for R10 and R11 (in memory) and the flags at the
//! points that `translate::flags` describes. RSP holds the guest's RSP: nothing here pushes before it is switched.

use std::mem::offset_of;

use super::asm::{Asm, Mem, RAX, RCX, RSI, RSP, Reg, S0, S1, cc};
use super::tlb;
use crate::jumps::{self, WAYS};
use crate::state::{JumpEntry, SECOND_HITS, State, TlbEntry, gpr_index};

/// Host addresses of the stubs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stubs {
    /// `extern "C" fn(target: u64)` in effect: enters translated code (target in RSI), returns at an exit.
    pub enter: u64,
    /// Leaves: reason in R10D, value in R11. Flags are saved or dead.
    pub exit: u64,
    /// Leaves: reason in R10D, value in R11; saves the flags first.
    pub exit_with_flags: u64,
    /// Slow access: linear address in R11, return address in R10, `access_info` set. Returns the host address in R11.
    pub slow_access: u64,
    /// The same after a miss of the TLB, by mode and whether it is a store: looks at the page's second place first.
    pub tlb_miss: [[u64; 2]; 2],
    /// Where the signal handler sends a thread that faulted in translated code.
    pub fault: u64,
    /// Jump cache miss, by mode: target in R11, offset of the entry that it selects in R10.
    pub jump_miss: [u64; 2],
    /// Leaves for a lookup of the target in R11: what empty jump cache entries lead to.
    pub jump: u64,
    /// A request is pending: where to go on in R11.
    pub pending: u64,
}

impl Stubs {
    /// All of them.
    pub fn addresses(&self) -> Vec<u64> {
        let Self { enter, exit, exit_with_flags, slow_access, tlb_miss, fault, jump_miss, jump, pending } = *self;
        let single = [enter, exit, exit_with_flags, slow_access, fault, jump, pending];
        single.into_iter().chain(tlb_miss.into_iter().flatten()).chain(jump_miss).collect()
    }
}

/// Why translated code came back, in `State::exit_reason`.
pub mod reason {
    /// Continue at guest RIP = exit value.
    pub const JUMP: u32 = 0;
    /// An unresolved near jump to page offset = value; `State::link` has its number.
    pub const LINK: u32 = 1;
    /// A request is pending; continue at guest RIP = exit value.
    pub const PENDING: u32 = 2;
    /// `syscall`; the value is the offset in the page of the next instruction.
    pub const SYSCALL: u32 = 3;
    /// The instruction at page offset = value needs interpretation.
    pub const INTERPRET: u32 = 4;
    /// #UD at page offset = value.
    pub const UNDEFINED: u32 = 5;
    /// A software interrupt: value = vector << 16 | page offset of the next instruction.
    pub const INTERRUPT: u32 = 6;
    /// A slow access could not be completed; `VcpuContext` says why.
    pub const ACCESS: u32 = 7;
    /// A host signal at `fault_pc`.
    pub const SIGNAL: u32 = 8;
    /// A step block has done its instruction; continue at guest RIP = exit value.
    pub const STEPPED: u32 = 9;
    /// A string instruction: value = page offset | length << 13 | form << 17 (see `StringForm`).
    pub const STRING: u32 = 10;
    /// `State::pauses` ran out; continue at guest RIP = exit value.
    pub const SPINNING: u32 = 11;
    /// #NM at page offset = value.
    pub const NO_FPU: u32 = 12;
    /// As `LINK`, to the block at page offset = value that checks each access by itself (see `translate::group`).
    pub const UNGROUPED: u32 = 13;
    /// #GP at page offset = value: the instruction has too many bytes.
    pub const TOO_LONG: u32 = 14;
    /// The instruction at page offset = value is to be stepped.
    pub const STEP: u32 = 15;
    /// As `PENDING`, at a jump back: a loop, most likely.
    pub const TURN: u32 = 16;
}

const CALLEE_SAVED: [u8; 6] = [3, 5, 12, 13, 14, 15];

/// Hardware numbers of the registers that hold guest state in translated code.
fn live_registers() -> impl Iterator<Item = usize> {
    (0..16).filter(|&r| r != 10 && r != 11)
}

/// Emits the stubs at the buffer's start. `slow_access` is the Rust helper's address; `avx` says whether the host
/// (and so the guest) has YMM registers.
pub fn emit(asm: &mut Asm, slow_access: u64, avx: bool) -> Stubs {
    let vectors = Vectors { avx };
    let mut stubs = Stubs { enter: asm.here(), ..Stubs::default() };
    for r in CALLEE_SAVED {
        push(asm, Reg(r));
    }
    asm.op_reg(true, &[0x83], Reg(5), RSP); // sub rsp, 8
    asm.raw(&[8]);
    asm.store(Mem::state(offset_of!(State, host_rsp)), RSP);
    asm.store(Mem::state(offset_of!(State, enter_target)), RSI);
    vectors.load(asm);
    asm.load(RAX, Mem::state(gpr_index(0)));
    asm.restore_flags(offset_of!(State, flags), S0);
    load_registers(asm);
    asm.load(S1, Mem::state(offset_of!(State, exit_value)));
    asm.jmp_mem(Mem::state(offset_of!(State, enter_target)));

    stubs.exit_with_flags = asm.here();
    asm.store(Mem::state(offset_of!(State, exit_reason)), S0);
    asm.save_flags(offset_of!(State, flags), S0);
    let leave_from_flags = asm.jmp_forward();

    stubs.fault = asm.here();
    asm.mov32_imm(S0, reason::SIGNAL);
    // Falls through to the plain exit: flags were saved by the block if they are live.
    stubs.exit = asm.here();
    asm.store(Mem::state(offset_of!(State, exit_reason)), S0);
    asm.bind(leave_from_flags);
    asm.store(Mem::state(offset_of!(State, exit_value)), S1);
    store_registers(asm);
    vectors.store(asm);
    let leave_saved = asm.here();
    asm.load(RSP, Mem::state(offset_of!(State, host_rsp)));
    vectors.clear_upper(asm);
    asm.op_reg(true, &[0x83], Reg(0), RSP); // add rsp, 8
    asm.raw(&[8]);
    for r in CALLEE_SAVED.iter().rev() {
        pop(asm, Reg(*r));
    }
    asm.raw(&[0xc3]);

    stubs.jump = asm.here();
    asm.mov32_imm(S0, reason::JUMP);
    asm.jmp(stubs.exit);
    stubs.jump_miss = [0, 1].map(|mode| jump_miss(asm, mode, stubs.jump));

    stubs.pending = asm.here();
    asm.mov32_imm(S0, reason::PENDING);
    asm.jmp(stubs.exit);

    stubs.slow_access = asm.here();
    asm.store(Mem::state(offset_of!(State, back)), S0);
    store_registers(asm);
    vectors.store(asm);
    asm.load(Reg(7), Mem::state(offset_of!(State, context))); // rdi
    asm.mov(RSI, S1);
    asm.load(RSP, Mem::state(offset_of!(State, host_rsp)));
    vectors.clear_upper(asm);
    asm.mov64_imm(RAX, slow_access);
    asm.raw(&[0xff, 0xd0]); // call rax
    asm.raw(&[0x48, 0x85, 0xc0]); // test rax, rax
    let failed = asm.jcc_forward(cc::E);
    asm.store(Mem::state(offset_of!(State, scratch)), RAX);
    vectors.load(asm);
    load_registers(asm);
    asm.load(S1, Mem::state(offset_of!(State, scratch)));
    asm.jmp_mem(Mem::state(offset_of!(State, back)));
    asm.bind(failed);
    asm.mov32_imm(S0, reason::ACCESS);
    asm.store(Mem::state(offset_of!(State, exit_reason)), S0);
    asm.jmp(leave_saved);
    stubs.tlb_miss = [0, 1].map(|mode| [false, true].map(|write| tlb_miss(asm, mode, write, stubs.slow_access)));
    stubs
}

/// More than any operand has bytes: one that starts so near the page's end may cross it.
const LONG_OPERAND: u32 = 256;

/// Looks at the second place of a page. It is where an entry stays that had to make room; so that one which is used all the time does
/// not stay there, one hit of some changes places with what is in the first.
fn tlb_miss(asm: &mut Asm, mode: usize, write: bool, slow_access: u64) -> u64 {
    let start = asm.here();
    asm.store(Mem::state(offset_of!(State, back)), S0);
    let tag = tlb::select(asm, mode, write);
    tlb::select_second(asm);
    asm.op_mem(true, &[0x33], S1, Mem::state_at(S0, tag));
    asm.raw(&[0x49, 0x81, 0xfb]); // cmp r11, 4096 - LONG_OPERAND
    asm.raw(&(4096 - LONG_OPERAND).to_le_bytes());
    let miss = asm.jcc_forward(cc::A);
    let hits = Mem::state(offset_of!(State, second_hits));
    asm.op_mem(false, &[0x83], Reg(5), hits); // sub dword gs:[second_hits], 1
    asm.raw(&[1]);
    let swap = asm.jcc_forward(cc::S);
    asm.add_mem(S1, Mem::state_at(S0, tlb::offset(mode) + offset_of!(TlbEntry, host_page)));
    asm.jmp_mem(Mem::state(offset_of!(State, back)));
    asm.bind(swap);
    asm.store32_imm(hits, SECOND_HITS);
    swap_places(asm, mode);
    asm.jmp_mem(Mem::state(offset_of!(State, back)));
    asm.bind(miss);
    asm.op_mem(true, &[0x33], S1, Mem::state_at(S0, tag));
    asm.load(S0, Mem::state(offset_of!(State, back)));
    asm.jmp(slow_access);
    start
}

/// Changes the entry of a page, at offset S0, with that in its other place; S1, an offset in the page, becomes a host address.
fn swap_places(asm: &mut Asm, mode: usize) {
    // What State has of registers is of no use in translated code.
    let saved = [(RAX, gpr_index(0)), (RCX, gpr_index(1)), (S1, offset_of!(State, exit_value))];
    for (register, at) in saved {
        asm.store(Mem::state(at), register);
    }
    asm.mov(RCX, S0);
    asm.raw(&[0x81, 0xf1]); // xor ecx, second
    asm.raw(&tlb::SECOND.to_le_bytes());
    let fields = [offset_of!(TlbEntry, read_tag), offset_of!(TlbEntry, write_tag), offset_of!(TlbEntry, host_page)];
    for field in fields {
        let at = tlb::offset(mode) + field;
        asm.load(RAX, Mem::state_at(S0, at));
        asm.load(S1, Mem::state_at(RCX, at));
        asm.store(Mem::state_at(RCX, at), RAX);
        asm.store(Mem::state_at(S0, at), S1);
    }
    asm.load(S1, Mem::state(offset_of!(State, exit_value)));
    asm.op_reg(true, &[0x03], S1, RAX); // add r11, rax: the host page
    asm.load(RAX, Mem::state(gpr_index(0)));
    asm.load(RCX, Mem::state(gpr_index(1)));
}

/// Looks at the other entries of the bucket.
fn jump_miss(asm: &mut Asm, mode: usize, jump: u64) -> u64 {
    let start = asm.here();
    let at = jumps::offset(mode);
    let size = size_of::<JumpEntry>();
    let mut found = Vec::new();
    for way in 1..WAYS {
        let change = (way ^ (way - 1)) * size;
        asm.raw(&[0x41, 0x83, 0xf2, change as u8]); // xor r10d, change
        asm.op_mem(true, &[0x3b], S1, Mem::state_at(S0, at + offset_of!(JumpEntry, rip)));
        found.push(asm.jcc_forward(cc::E));
    }
    asm.jmp(jump);
    for fixup in found {
        asm.bind(fixup);
    }
    asm.jmp_mem(Mem::state_at(S0, at + offset_of!(JumpEntry, host)));
    start
}

fn push(asm: &mut Asm, r: Reg) {
    if r.0 >= 8 {
        asm.raw(&[0x41]);
    }
    asm.raw(&[0x50 | r.0 & 7]);
}

fn pop(asm: &mut Asm, r: Reg) {
    if r.0 >= 8 {
        asm.raw(&[0x41]);
    }
    asm.raw(&[0x58 | r.0 & 7]);
}

fn load_registers(asm: &mut Asm) {
    for r in live_registers() {
        asm.load(Reg(r as u8), Mem::state(gpr_index(r)));
    }
}

fn store_registers(asm: &mut Asm) {
    for r in live_registers() {
        asm.store(Mem::state(gpr_index(r)), Reg(r as u8));
    }
}

/// Saving and loading of the vector registers, and MXCSR.
struct Vectors {
    avx: bool,
}

impl Vectors {
    fn each(&self, asm: &mut Asm, opcode: u8) {
        for r in 0..16u8 {
            let disp = (offset_of!(State, ymm) + 32 * usize::from(r)) as u32;
            asm.raw(&[0x65]);
            if self.avx {
                // VEX.256.0F.WIG: vmovups
                asm.raw(&[0xc5, if r < 8 { 0xfc } else { 0x7c }, opcode]);
            } else {
                if r >= 8 {
                    asm.raw(&[0x44]);
                }
                asm.raw(&[0x0f, opcode]);
            }
            asm.raw(&[(r & 7) << 3 | 4, 0x25]);
            asm.raw(&disp.to_le_bytes());
        }
    }

    fn load(&self, asm: &mut Asm) {
        self.each(asm, 0x10);
    }

    fn store(&self, asm: &mut Asm) {
        self.each(asm, 0x11);
    }

    fn clear_upper(&self, asm: &mut Asm) {
        if self.avx {
            asm.raw(&[0xc5, 0xf8, 0x77]);
        }
    }
}
