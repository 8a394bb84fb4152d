//! What was compared, instruction by instruction, as docs/engine-coverage.md shows it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use iced_x86::Code;

use crate::exclude::{self, Excluded};

/// Sequences of one code: completed, and ended by a fault.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    completed: u64,
    faulted: u64,
}

#[derive(Default)]
pub struct Coverage {
    counts: BTreeMap<usize, Count>,
}

const HEAD: &str = "<!-- Generated: RING3_COVERAGE=1 cargo test -p ring3-engine-bt --test differential single -->
# What of the engine is compared with the host CPU

`crates/engine-bt/tests/differential` runs random sequences twice: natively, in a child process that has the same pages at
the same addresses, and in a guest of the engine `bt`. Both start from the same registers and memory and must leave the
same: general-purpose registers, RIP, flags, FS and GS bases, MXCSR, YMM, x87, every byte of six data pages, and the
vector, error code and CR2 of a fault. Half of the sequences run in user mode, the rest in kernel mode; by blocks with warm
caches, by blocks with cold caches, by blocks for the second time (so that jumps between them are linked), by blocks while requests
come in, or by `Vcpu::step`.

- *Single instructions*: every opcode form that the CPUID policy shows (table below), with corner-case operands, all
  registers, all addressing forms, operands across pages, read-only and absent pages.
- *Blocks* of 2 to about 25 instructions: memory, flags, branches, loops, calls, indirect jumps, the stack, string instructions.
- *Blocks with faults*: the same, mostly of instructions that write flags or overwrite what flags came from, with many bad addresses; as
  everywhere, all defined flags of the frame are compared, wherever in the block the fault is.
- *Blocks with loops*: as blocks, every second piece a loop; the engine follows each, and the path that it took becomes a block.
- *Encodings that no assembler chooses*: needless and repeated prefixes; and byte strings that mean anything or nothing: random
  ones, instructions with a wrong bit, byte or prefix, and VEX prefixes with any fields. What the decoder does not know must
  raise #UD on the CPU too, and lengths must agree, up to the 15 bytes that an instruction may have.
- *32-bit code* (compatibility mode): single instructions and blocks.
- *16-bit code*, and 32-bit code in segments of odd bases and limits (`modify_ldt`): sequences of one to six instructions; offsets at
  limits, 16-bit stacks, segments that expand down, null selectors, execute-only and read-only segments.
- *Intercepted stores* (`Vcpu::step` with an interceptor, as writable page tables use it).
- *Self-modifying code*, and round trips of the XSAVE and FXSAVE families.

## What comparing found
Each was fixed, with a test that failed before (`tests/debug.rs`, `tests/found.rs`, the differential test itself).

| what | the engine had |
|---|---|
| RFLAGS.AC set | no alignment check at all; a masked move or gather is not checked, 32 bytes need 16, `fnsave` 4 |
| Misaligned SSE operand on an absent page | #PF where the CPU raises #GP |
| x87 exception pending, operand absent | #PF where the CPU raises #MF |
| Non-canonical stack operand of an interpreted instruction | #GP for #SS |
| `vzeroall`, `vzeroupper` in 32-bit code | cleared YMM8 to YMM15 too |
| `int1` | #GP; it is a trap |
| `lock inc` across pages on two vCPUs | lost increments |
| More than 15 bytes | #UD where the CPU raises #GP |
| Near branches with a 16-bit operand size (in 64-bit code: of AMD's CPUs) | the prefix ignored, or left to the hypervisor |
| `fxsave` and kin with a non-canonical address | misalignment first, so #GP where #SS was due |
| Store across two pages of which one faults | the other page became dirty (`tests/dirty.rs`) |
| Bit string at a 16-bit absolute address (32-bit code) | the index went past 64 KiB |
| 32-bit operand across 4 GiB; `arpl` by a read-only segment, cache line flushes by one that may only be executed | #PF for #GP or #SS; refused |
| `cmps` with two bad operands | the fault of RSI's first; the CPU's is RDI's |
| Single step over far branches, `iretq`, hypercalls, stores to page tables | no trap, or one instruction late; one too early after `mov ss` |
| Flags that nothing reads, in the frame of a fault or an event | stale where they came from an earlier block, `inc`, a shift, an operand in memory or a register that was overwritten, or where the host's CPU raised the fault |

## Where engine and CPU may differ
The comparison lets these pass; no program is known to rely on them.

| what | CPU | engine |
|---|---|---|
| Undefined flags | whatever the CPU leaves | may differ; compared only where the manuals define them |
| Dirty bit of a page to which a misaligned vector store, or an x87 store with an exception pending, is not done | clear | may be set |
| Near branch to a non-canonical address | #GP at the branch | #GP at the target; a `ret` has popped |
| Which of two faulting operands (`movs`, `cmps`), or which byte of a long or masked operand, gives CR2 | microcode's order | lowest address first |
| Locked operand that crosses pages, or is misaligned on a page with code | atomic | atomic towards vCPUs of the domain, not towards other domains that share the page |
| x87 instruction and data pointers, opcode | last instruction | zero |
| RFLAGS.TF at a gather | may trap between elements | traps after it |
| Natural alignment of operands of more than 8 bytes, with RFLAGS.AC set | depends on the CPU | an AMD EPYC's: `dispatch/debug.rs` |
| Operand by FS or GS of 4 GiB in flat 32-bit code whose computed offset wraps within it | #GP | what is there |
| A long operand at the limit of its segment and on an absent page, or misaligned | microcode's order | the limit first |
| How much of `pusha`, `popa` is done before a fault | microcode's order | see `interp/compat_stack.rs` |
| MXCSR.MM (AMD) | misaligned operands allowed | hidden: restoring an image with it raises #GP |
| Both too long and undefined | #GP or #UD, by opcode | #GP if the rest of the bytes could be an instruction |
| `loope`, `loopne` with F2 or F3 | AMD: the prefix says the condition | the opcode says it |
| 32-bit code: a store with CS for its segment; FS or GS with a null selector | #GP | as with DS; the base counts |
| VEX.W of `vpermq`, `vpermpd`; of `vpinsrd`, `vpextrd` in 32-bit code | AMD: ignored; #UD if set | #UD if clear; ignored |
| Register form of 0F 0D | #UD (AMD) or nothing (Intel) | nothing |

";

impl Coverage {
    pub fn add(&mut self, code: Code, completed: bool) {
        let count = self.counts.entry(code as usize).or_default();
        if completed { count.completed += 1 } else { count.faulted += 1 }
    }

    /// Codes that ought to have completed once and never did.
    pub fn never_completed(&self) -> Vec<Code> {
        let all = Code::values().filter(|&c| exclude::excluded(c).is_none());
        all.filter(|&c| self.counts.get(&(c as usize)).is_none_or(|n| n.completed == 0)).collect()
    }

    pub fn table(&self) -> String {
        let mut features: BTreeMap<String, Vec<Code>> = BTreeMap::new();
        let mut not_compared: BTreeMap<Excluded, BTreeSet<String>> = BTreeMap::new();
        let mut nr_hidden = 0;
        for code in Code::values() {
            match exclude::excluded(code) {
                None => {
                    let names: Vec<_> = code.cpuid_features().iter().map(|f| format!("{f:?}")).collect();
                    features.entry(names.join(" ")).or_default().push(code);
                }
                Some(Excluded::NotAnInstruction) => {}
                Some(Excluded::Hidden) => nr_hidden += 1,
                Some(why) => {
                    not_compared.entry(why).or_default().insert(format!("{:?}", code.mnemonic()).to_lowercase());
                }
            }
        }
        let mut text = HEAD.to_owned();
        let nr: usize = features.values().map(Vec::len).sum();
        let runs: u64 = self.counts.values().map(|c| c.completed + c.faulted).sum();
        let _ = writeln!(text, "## Opcode forms compared: {nr} ({runs} sequences in the run that wrote this)\n");
        let _ = writeln!(text, "Of each form: sequences that completed + those that ended in a fault.\n");
        for (feature, codes) in &features {
            let list: Vec<_> = codes.iter().map(|&code| self.form(code)).collect();
            let _ = writeln!(text, "**{feature}** ({} forms): {}\n", codes.len(), list.join(", "));
        }
        let _ = writeln!(text, "## Opcode forms not compared\n");
        for (why, names) in &not_compared {
            let reason = match why {
                Excluded::Privileged => "Handed to the hypervisor, which emulates them or raises #GP",
                _ => "Results differ from run to run or from maker to maker",
            };
            let list: Vec<_> = names.iter().map(String::as_str).collect();
            let _ = writeln!(text, "{reason}: {}.\n", list.join(", "));
        }
        let _ = writeln!(text, "Hidden by the CPUID policy, #UD: {nr_hidden} forms.");
        text
    }

    fn form(&self, code: Code) -> String {
        let count = self.counts.get(&(code as usize)).copied().unwrap_or_default();
        format!("{code:?} {}+{}", count.completed, count.faulted)
    }
}
