//! A tiny guest: page tables that map code, data and stack, and one vCPU of the engine.
// Each test uses its part.
#![allow(clippy::unwrap_used, dead_code, clippy::cast_possible_truncation)]

use std::sync::Arc;

use iced_x86::code_asm::*;
use ring3_engine::{AddressSpace, CodeSize, Config, DomainEngine, Engine, Exit, GprName, GuestMode, Vcpu, pte};
use ring3_engine_bt::BtEngine;
use ring3_machine::{Machine, Mfn};

/// Linear address of the code page.
pub const CODE: u64 = 0x1000_0000;
/// Linear address of four data pages.
pub const DATA: u64 = 0x1000_4000;
/// End of the stack page.
pub const STACK_END: u64 = 0x1000_a000;

const ROOT: u64 = 1;
const L3: u64 = 2;
const L2: u64 = 3;
const L1: u64 = 4;
/// First of the frames that back `CODE..`.
pub const FIRST: u64 = 16;
/// Pages mapped from `CODE` on.
pub const NR_PAGES: u64 = 12;

pub struct Guest {
    pub machine: Arc<Machine>,
    pub engine: BtEngine,
    pub domain: Arc<dyn DomainEngine>,
    pub vcpu: Box<dyn Vcpu>,
}

fn put(machine: &Machine, table: u64, index: u64, entry: u64) {
    machine.write(Mfn(table), index as usize * 8, &entry.to_le_bytes()).unwrap();
}

impl Guest {
    pub fn new() -> Self {
        Self::with_engine(BtEngine::new().unwrap())
    }

    pub fn with_engine(engine: BtEngine) -> Self {
        let machine = Arc::new(Machine::new(64).unwrap());
        let table = pte::PRESENT | pte::RW | pte::USER;
        put(&machine, ROOT, 0, L3 << 12 | table);
        put(&machine, L3, 0, L2 << 12 | table);
        put(&machine, L2, CODE >> 21 & 511, L1 << 12 | table);
        for page in 0..NR_PAGES {
            put(&machine, L1, (CODE >> 12 & 511) + page, (FIRST + page) << 12 | table);
        }
        let domain = engine.create_domain(&machine).unwrap();
        let mut vcpu = domain.create_vcpu(0, &Config { xcr0: 7 }).unwrap();
        vcpu.set_address_space(GuestMode::Kernel, AddressSpace { root: Mfn(ROOT), ..AddressSpace::default() });
        vcpu.set_mode(GuestMode::Kernel, CodeSize::Bits64);
        let regs = vcpu.regs_mut();
        regs.rip = CODE;
        regs.rflags = 0x202;
        regs.set(GprName::Rsp, STACK_END - 64);
        Self { machine, engine, domain, vcpu }
    }

    /// Changes the L1 entry of a page (counted from `CODE`).
    pub fn map(&mut self, page: u64, entry: u64) {
        put(&self.machine, L1, (CODE >> 12 & 511) + page, entry);
        self.vcpu.flush(ring3_engine::Flush::All);
    }

    pub fn write(&self, va: u64, bytes: &[u8]) {
        let mfn = Mfn(FIRST + (va - CODE) / 4096);
        self.machine.write(mfn, (va % 4096) as usize, bytes).unwrap();
        self.engine.invalidate_code(mfn);
    }

    pub fn read(&self, va: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.machine.read(Mfn(FIRST + (va - CODE) / 4096), (va % 4096) as usize, &mut bytes).unwrap();
        bytes
    }

    /// Runs `code` at `CODE` until it leaves.
    pub fn run(&mut self, code: &[u8]) -> Exit {
        self.write(CODE, code);
        self.vcpu.regs_mut().rip = CODE;
        self.vcpu.run()
    }

    pub fn gpr(&self, name: GprName) -> u64 {
        self.vcpu.regs().get(name)
    }
}

/// 64-bit code to stand at `at`.
pub fn assemble(at: u64, f: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    f(&mut a).unwrap();
    a.assemble(at).unwrap()
}

/// A figure that the domain's engine counts.
pub fn counter(domain: &dyn DomainEngine, name: &str) -> u64 {
    domain.counters().iter().find(|(n, _)| *n == name).unwrap().1
}

/// `mov eax, imm32; ret`, as a number but for the operand.
pub const FUNCTION: u64 = 0xc3 << 40 | 0xb8;

/// Writes a function at DATA and calls it, ECX times: it returns ECX. EDX is the sum of what it returned.
pub fn written_and_called() -> Vec<u8> {
    assemble(CODE, |a| {
        let mut again = a.create_label();
        a.mov(rbx, DATA)?;
        a.xor(edx, edx)?;
        a.set_label(&mut again)?;
        a.mov(rax, FUNCTION)?;
        a.mov(esi, ecx)?;
        a.shl(rsi, 8)?;
        a.or(rax, rsi)?;
        a.mov(qword_ptr(rbx), rax)?;
        a.call(rbx)?;
        a.add(edx, eax)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.syscall()
    })
}
