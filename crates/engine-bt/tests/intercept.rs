//! Stores that an interceptor does in place of the engine, as for writable page tables.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use iced_x86::code_asm::*;
use ring3_engine::{Exit, GprName, Requests, VcpuControl, WriteIntercept, pte, vector};
use ring3_machine::Mfn;
use support::{CODE, DATA, FIRST, Guest, assemble};

/// Waits for the vCPU whose store it does, as a memory manager that flushes TLBs waits for all.
#[derive(Debug)]
struct Waiting {
    control: Arc<dyn VcpuControl>,
    stored: Vec<u8>,
}

impl WriteIntercept for Waiting {
    fn store(&mut self, _mfn: Mfn, _offset: usize, _old: &[u8], new: &[u8]) -> bool {
        assert!(!self.control.is_in_guest(), "who waits for all vCPUs would wait for this one");
        self.control.request_and_wait(Requests::FLUSH_DATA);
        self.stored.extend_from_slice(new);
        true
    }
}

/// Steps an instruction with RDI at an offset in data, of which the second page is intercepted, RSI at data, where a word lies,
/// RCX 2 and RAX 0x1122334455667788.
fn step_at(
    offset: u64,
    build: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
) -> (Exit, Vec<u8>, Guest) {
    let mut guest = Guest::new();
    let page = (DATA - CODE) / 4096 + 1;
    guest.map(page, (FIRST + page) << 12 | pte::PRESENT | pte::USER);
    guest.write(CODE, &assemble(CODE, build));
    guest.write(DATA, &0x1020_3040_5060_7080u64.to_le_bytes());
    for (name, value) in
        [(GprName::Rax, 0x1122_3344_5566_7788), (GprName::Rcx, 2), (GprName::Rsi, DATA), (GprName::Rdi, DATA + offset)]
    {
        guest.vcpu.regs_mut().set(name, value);
    }
    let mut waiting = Waiting { control: guest.vcpu.control(), stored: Vec::new() };
    let exit = guest.vcpu.step(Some((Mfn(FIRST + page), &mut waiting)));
    (exit, waiting.stored, guest)
}

/// Steps a store of RAX to RDI.
fn step_store(offset: u64) -> (Exit, Vec<u8>, Guest) {
    step_at(offset, |a| a.mov(qword_ptr(rdi), rax))
}

#[test]
fn test_an_interceptor_may_wait_for_the_vcpu_that_stores() {
    let (exit, stored, guest) = step_store(0x1000);
    assert_eq!((exit, stored), (Exit::Stepped, 0x1122_3344_5566_7788u64.to_le_bytes().to_vec()));
    assert_eq!(guest.vcpu.regs().rip, CODE + 3);
}

#[test]
fn test_a_store_that_is_intercepted_in_part_is_refused_and_does_nothing() {
    let (exit, stored, guest) = step_store(0xffc);
    assert_eq!(exit, Exit::Exception { vector: vector::GP, error_code: Some(0), cr2: 0 });
    assert_eq!(stored, []);
    assert_eq!(guest.read(DATA + 0xffc, 4), [0; 4]);
    assert_eq!(guest.vcpu.regs().rip, CODE);
}

#[test]
fn test_a_string_instruction_is_intercepted_element_by_element() {
    let (exit, stored, guest) = step_at(0x1000, |a| a.rep().stosq());
    assert_eq!((exit, stored), (Exit::Stepped, 0x1122_3344_5566_7788u64.to_le_bytes().to_vec()));
    assert_eq!((guest.vcpu.regs().rip, guest.gpr(GprName::Rcx), guest.gpr(GprName::Rdi)), (CODE, 1, DATA + 0x1008));
    let (exit, stored, guest) = step_at(0x1000, |a| a.movsd());
    assert_eq!((exit, stored), (Exit::Stepped, 0x5060_7080u32.to_le_bytes().to_vec()));
    assert_eq!((guest.vcpu.regs().rip, guest.gpr(GprName::Rsi)), (CODE + 1, DATA + 4));
}

#[test]
fn test_stores_of_vector_and_x87_instructions_are_refused() {
    let refused = Exit::Exception { vector: vector::GP, error_code: Some(0), cr2: 0 };
    for build in [
        |a: &mut CodeAssembler| a.movq(qword_ptr(rdi), xmm0),
        |a: &mut CodeAssembler| a.movq(qword_ptr(rdi), mm0),
        |a: &mut CodeAssembler| a.fnstcw(word_ptr(rdi)),
        |a: &mut CodeAssembler| a.stmxcsr(dword_ptr(rdi)),
        |a: &mut CodeAssembler| a.fxsave(ptr(rdi)),
    ] {
        let (exit, stored, guest) = step_at(0x1000, build);
        assert_eq!((exit, stored), (refused, vec![]));
        assert_eq!(guest.vcpu.regs().rip, CODE);
    }
}
