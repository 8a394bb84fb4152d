//! The report of a crashed domain: registers, the instruction, the page-table walk of the faulting address, the reason.

use std::fmt::Write;

use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};
use ring3_engine::{GprName, SegmentName, pte, table_index};

use crate::memory::is_canonical;
use crate::vcpu::bounce::Running;

/// Text for people; `va` is the address whose translation is to be shown.
pub fn crash_report(running: &Running<'_>, reason: &str, va: Option<u64>) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = report(&mut out, running, reason, va);
    out
}

fn report(out: &mut String, running: &Running<'_>, reason: &str, va: Option<u64>) -> std::fmt::Result {
    let regs = running.state.cpu.regs();
    let mode = if running.state.is_kernel() { "kernel" } else { "user" };
    writeln!(out, "domain {} crashed: {reason}", running.domain.domid)?;
    writeln!(out, "vcpu {} in guest {mode} mode", running.vcpu.id)?;
    writeln!(out, "rip {:016x}  rflags {:016x}  cs {:04x}  ss {:04x}", regs.rip, regs.rflags, regs.cs, regs.ss)?;
    const ROWS: [[(&str, GprName); 4]; 4] = [
        [("rax", GprName::Rax), ("rbx", GprName::Rbx), ("rcx", GprName::Rcx), ("rdx", GprName::Rdx)],
        [("rsi", GprName::Rsi), ("rdi", GprName::Rdi), ("rbp", GprName::Rbp), ("rsp", GprName::Rsp)],
        [("r8 ", GprName::R8), ("r9 ", GprName::R9), ("r10", GprName::R10), ("r11", GprName::R11)],
        [("r12", GprName::R12), ("r13", GprName::R13), ("r14", GprName::R14), ("r15", GprName::R15)],
    ];
    for row in ROWS {
        for (name, gpr) in row {
            write!(out, "{name} {:016x}  ", regs.get(gpr))?;
        }
        writeln!(out)?;
    }
    writeln!(
        out,
        "ds {:04x}  es {:04x}  fs {:04x}  gs {:04x}  fs_base {:016x}  gs_base {:016x}  gs_other {:016x}",
        regs.ds, regs.es, regs.fs, regs.gs, regs.fs_base, regs.gs_base, regs.kernel_gs_base
    )?;
    writeln!(
        out,
        "cr0 {:016x}  cr2 {:016x}  cr3 {:016x}  cr4 {:016x}  kernel_sp {:016x}",
        running.state.cr0,
        running.state.cr2,
        running.state.space().root.address(),
        running.state.cr4,
        running.state.kernel_sp
    )?;
    instruction(out, running)?;
    stack(out, running)?;
    if let Some(va) = va {
        walk(out, running, va)?;
    }
    Ok(())
}

fn instruction(out: &mut String, running: &Running<'_>) -> std::fmt::Result {
    let (cpu, size) = (&running.state.cpu, running.code_size());
    let rip = cpu.regs().code_address(size, cpu.regs().rip);
    let mut bytes = [0u8; 15];
    let Ok(fetched) = running.domain.memory.fetch(&running.state.space(), rip, &mut bytes) else {
        writeln!(out, "instruction at rip cannot be fetched:")?;
        return walk(out, running, rip);
    };
    let window = bytes.get(..fetched).unwrap_or_default();
    let insn = Decoder::with_ip(size.bits(), window, rip, DecoderOptions::NONE).decode();
    write!(out, "instruction")?;
    for byte in window.iter().take(insn.len().max(1)) {
        write!(out, " {byte:02x}")?;
    }
    let mut text = String::new();
    IntelFormatter::new().format(&insn, &mut text);
    writeln!(out, "  {text}")
}

fn stack(out: &mut String, running: &Running<'_>) -> std::fmt::Result {
    let (regs, size) = (running.state.cpu.regs(), running.code_size());
    let base = if size.is_compat() { regs.segment_base(SegmentName::Ss) } else { 0 };
    let rsp = base.wrapping_add(regs.sp(size));
    let mut bytes = [0u8; 128];
    if running.domain.memory.read(&running.state.space(), rsp, &mut bytes).is_err() {
        return writeln!(out, "stack cannot be read");
    }
    writeln!(out, "stack from rsp:")?;
    for row in bytes.chunks_exact(32) {
        for word in row.chunks_exact(8) {
            let mut raw = [0u8; 8];
            raw.copy_from_slice(word);
            write!(out, "  {:016x}", u64::from_le_bytes(raw))?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// One line for each level, down to the first entry that is not present.
fn walk(out: &mut String, running: &Running<'_>, va: u64) -> std::fmt::Result {
    writeln!(out, "page-table walk of {va:016x}:")?;
    if !is_canonical(va) {
        return writeln!(out, "  not canonical");
    }
    let mut table = running.state.space().root;
    for level in (1..=4u32).rev() {
        let index = table_index(va, level);
        let Ok(entry) = running.hv.memory.machine.entry(table, index) else {
            return writeln!(out, "  L{level}: no table at mfn {:#x}", table.0);
        };
        let pfn = running.hv.frames.m2p_entry(pte::mfn(entry)).unwrap_or(u64::MAX);
        let absent = if entry & pte::PRESENT == 0 { "  not present" } else { "" };
        writeln!(out, "  L{level}[{index:03x}] = {entry:016x} in mfn {:#x}, to pfn {pfn:#x}{absent}", table.0)?;
        if entry & pte::PRESENT == 0 || entry & pte::PSE != 0 && level > 1 {
            break;
        }
        table = pte::mfn(entry);
    }
    Ok(())
}
