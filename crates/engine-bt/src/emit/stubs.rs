//! The code that every domain's cache starts with: entry from Rust, exits to Rust, and the slow path of an access.
//!
//! In translated code the host's registers hold the guest's, but for R10 and R11 (in memory) and the flags at the
//! points that `translate::flags` describes. RSP holds the guest's RSP: nothing here pushes before it is switched.

use std::mem::offset_of;

use super::asm::{Asm, Mem, RAX, RSI, RSP, Reg, S0, S1, cc};
use crate::state::{State, gpr_index};

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
    /// Where the signal handler sends a thread that faulted in translated code.
    pub fault: u64,
    /// Jump cache miss: target in R11.
    pub jump_miss: u64,
    /// A request is pending: where to go on in R11.
    pub pending: u64,
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

    stubs.jump_miss = asm.here();
    asm.mov32_imm(S0, reason::JUMP);
    asm.jmp(stubs.exit);

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
    stubs
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
