//! Runs sequences on both sides, in batches, and compares.

use iced_x86::{Code, Instruction, Mnemonic};
use ring3_engine::GuestMode;
use ring3_engine_bt::{Kind, classify};

use crate::case::{Case, Placed};
use crate::flags::comparable;
use crate::guest::{Engine, Way};
use crate::ldt::Ldt;
use crate::native_unsafe::{MAX_BATCH, Native};
use crate::prng::Prng;
use crate::state::{CODE, CODE_BYTES, CpuState, DATA, End, MEMORY_BYTES, Outcome};
use crate::values;

/// A sequence, where it lies and how it is run.
pub struct Entry {
    pub case: Case,
    pub placed: Placed,
    pub way: Way,
}

/// Sequences that share one image of code and data.
pub struct Batch {
    pub entries: Vec<Entry>,
    pub code: Box<[u8; CODE_BYTES]>,
    pub memory: Box<[u8; MEMORY_BYTES]>,
    pub mode: GuestMode,
    /// Descriptors that selectors name.
    pub ldt: Ldt,
    next: usize,
}

impl Batch {
    pub fn new(rng: &mut Prng) -> Self {
        let mut memory = Box::new([0; MEMORY_BYTES]);
        values::memory(rng, &mut memory);
        let mode = if rng.one_in(2) { GuestMode::User } else { GuestMode::Kernel };
        let next = rng.below(3000) as usize;
        Self { entries: Vec::new(), code: Box::new([0xcc; CODE_BYTES]), memory, mode, ldt: Ldt::default(), next }
    }

    /// With a table of segments.
    pub fn segmented(rng: &mut Prng) -> Self {
        let mut batch = Self::new(rng);
        batch.ldt = Ldt::random(rng);
        batch
    }

    /// Adds a sequence. False if there is no room left.
    pub fn add(&mut self, case: Case, way: Way, gap: usize) -> bool {
        if self.entries.len() >= MAX_BATCH {
            return false;
        }
        let at = self.next + gap;
        let Some(placed) = case.place(CODE + at as u64) else { return true };
        // A stray decoder must not run off the pages.
        if at + placed.bytes.len() + 16 > CODE_BYTES {
            return false;
        }
        self.code[at..at + placed.bytes.len()].copy_from_slice(&placed.bytes);
        self.next = at + placed.bytes.len();
        self.entries.push(Entry { case, placed, way });
        true
    }

    /// A batch of one sequence, at the same address and with the same data as in `self`.
    pub fn alone(&self, case: &Case, ip: u64, way: Way) -> Option<Self> {
        let mut batch = Self {
            entries: Vec::new(),
            code: Box::new([0xcc; CODE_BYTES]),
            memory: self.memory.clone(),
            mode: self.mode,
            ldt: self.ldt,
            next: (ip - CODE) as usize,
        };
        batch.add(case.clone(), way, 0);
        (batch.entries.len() == 1).then_some(batch)
    }
}

/// A difference between the sides.
pub struct Mismatch {
    pub index: usize,
    pub differences: Vec<String>,
}

pub struct Runner {
    native: Native,
    engine: Engine,
    scratch: Box<[u8; MEMORY_BYTES]>,
    pub nr_run: u64,
    pub nr_faults: u64,
    /// Of the last batch: whether each sequence with a result completed.
    pub completed: Vec<bool>,
}

impl Runner {
    pub fn new(follows_all: bool) -> Self {
        // The oracle is forked before the engine has its own signal handlers.
        let native = Native::new();
        Self {
            native,
            engine: Engine::new(follows_all),
            scratch: Box::new([0; MEMORY_BYTES]),
            nr_run: 0,
            nr_faults: 0,
            completed: Vec::new(),
        }
    }

    pub fn nr_followed(&self) -> u64 {
        self.engine.nr_followed()
    }

    pub fn nr_lost(&self) -> u64 {
        self.native.nr_lost
    }

    /// Runs a batch on both sides; returns where they differ.
    pub fn run(&mut self, batch: &Batch) -> Vec<Mismatch> {
        let shared = self.native.shared();
        shared.count = batch.entries.len() as u64;
        shared.all_writable = u64::from(batch.entries.iter().any(|e| e.way == Way::Intercepted));
        shared.ldt = batch.ldt;
        self.engine.ldt = batch.ldt;
        shared.code.copy_from_slice(&batch.code[..]);
        shared.memory.copy_from_slice(&batch.memory[..]);
        for (slot, entry) in shared.slots.iter_mut().zip(&batch.entries) {
            slot.input = input(entry);
        }
        self.native.submit();
        self.engine.set_code(&batch.code, batch.mode);
        self.engine.set_memory(&batch.memory);
        let results: Vec<_> = batch
            .entries
            .iter()
            .map(|entry| {
                if entry.way == Way::Again {
                    let _ = self.engine.run(&input(entry), Way::Run);
                    self.engine.set_memory(&batch.memory);
                }
                let (end, state) = self.engine.run(&input(entry), entry.way);
                let mut memory = vec![0; MEMORY_BYTES].into_boxed_slice();
                self.engine.memory(&mut memory);
                if memory[..] != batch.memory[..] {
                    self.engine.set_memory(&batch.memory);
                }
                Outcome { end, state, memory }
            })
            .collect();
        let done = self.native.wait();
        if let Some(lost) = batch.entries.get(done) {
            eprintln!("the oracle lost:\n{}", lost.case.disassemble(&lost.placed));
        }
        let mut mismatches = Vec::new();
        self.completed.clear();
        for (index, (entry, engine)) in batch.entries.iter().zip(results).enumerate().take(done) {
            self.nr_run += 1;
            let slot = &self.native.shared().slots[index];
            let (end, output) = (slot.end(), slot.output);
            self.nr_faults += u64::from(end != End::Trap);
            self.completed.push(end == End::Trap);
            self.scratch.copy_from_slice(&slot.memory);
            let differences = compare(entry, (&end, &output, &self.scratch[..]), &engine);
            if !differences.is_empty() {
                mismatches.push(Mismatch { index, differences });
            }
        }
        mismatches
    }

    /// Whether a sequence alone differs.
    pub fn fails(&mut self, batch: &Batch, case: &Case, ip: u64, way: Way) -> Option<Mismatch> {
        let alone = batch.alone(case, ip, way)?;
        self.run(&alone).pop()
    }

    /// The shortest sequence that still differs, found by leaving out instructions; and how it differs.
    pub fn minimise(&mut self, batch: &Batch, case: &Case, ip: u64, way: Way) -> Option<(Case, Mismatch)> {
        let mut shortest = case.clone();
        let mut mismatch = self.fails(batch, &shortest, ip, way)?;
        let mut n = 0;
        while n < shortest.items.len() {
            let shorter = shortest.without(n);
            match self.fails(batch, &shorter, ip, way) {
                Some(found) if kind(&found) == kind(&mismatch) => {
                    (shortest, mismatch) = (shorter, found);
                    n = 0;
                }
                _ => n += 1,
            }
        }
        Some((shortest, mismatch))
    }
}

/// What differs first, without the values.
fn kind(mismatch: &Mismatch) -> Option<&str> {
    mismatch.differences.first()?.split(':').next()
}

fn input(entry: &Entry) -> CpuState {
    CpuState { rip: entry.case.rip_of(entry.placed.addresses[0]), ..entry.case.state }
}

/// The end as both sides can tell it.
fn comparable_end(end: End) -> End {
    match end {
        End::Exception { vector: 14, error, cr2 } => {
            // The kernel hides what it knows of its own half; U is the hypervisor's to add.
            let upper = cr2 >= 0x7fff_ffff_f000;
            End::Exception { vector: 14, error: error & if upper { !5 } else { !4 }, cr2 }
        }
        // CR2 is that of the last page fault.
        End::Exception { vector, error, .. } => End::Exception { vector, error, cr2: 0 },
        other => other,
    }
}

/// Differences between CPUs of different makers, and between order of checks that no program relies on. Each is in
/// docs/engine-coverage.md.
fn is_accepted(native: End, engine: End, instr: Option<&Instruction>, in_32: bool) -> bool {
    let (End::Exception { vector: n, cr2: na, .. }, End::Exception { vector: e, cr2: ea, .. }) = (native, engine)
    else {
        return false;
    };
    let Some(instr) = instr else { return false };
    match (n, e) {
        // Which byte of a long or masked operand faults first.
        (14, 14) => {
            let masked = matches!(instr.mnemonic(), Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu | Mnemonic::Maskmovq);
            let long = instr.memory_size().size() > 16 || instr.memory_size().size() == 14 || masked;
            // Or which of the two operands of a string instruction.
            long && na >> 12 == ea >> 12 || instr.is_string_instruction() || instr.memory_size().size() > 64
        }
        // Which of its parts: one at the limit, one on another page.
        (14 | 17, 12 | 13) | (12 | 13, 14) if instr.memory_size().size() > 8 && in_32 => true,
        (12 | 13, 12 | 13) if instr.memory_size().size() >= 512 && in_32 => true,
        // The same of the two operands, of which a repeated comparison of bytes takes the source first.
        (12 | 13 | 14 | 17, 12 | 13 | 14 | 17) if is_comparison(instr) && in_32 => true,
        // The same, misaligned too.
        (12 | 13, 17) if in_32 => true,
        (13, 14) | (14, 13) => instr.is_string_instruction(),
        _ => false,
    }
}

fn is_comparison(instr: &Instruction) -> bool {
    use Mnemonic as M;
    instr.is_string_instruction() && matches!(instr.mnemonic(), M::Cmpsb | M::Cmpsw | M::Cmpsd)
}

fn vector_of(end: &End) -> Option<u64> {
    if let End::Exception { vector, .. } = end { Some(*vector) } else { None }
}

/// A branch to an address that is not canonical: the CPU faults at the branch, the engine at the target.
fn is_wild_branch(native: (&End, &CpuState, &[u8]), engine: &Outcome) -> bool {
    let is_protection = |end: &End| matches!(end, End::Exception { vector: 13, .. });
    let target = engine.state.rip;
    let is_late = is_protection(&engine.end) || matches!(engine.end, End::Exception { vector: 1, .. });
    is_protection(native.0) && is_late && (target << 16) as i64 >> 16 != target as i64
}

fn compare(entry: &Entry, native: (&End, &CpuState, &[u8]), engine: &Outcome) -> Vec<String> {
    let mut differences = Vec::new();
    let (n, e) = (native.1, &engine.state);
    // A wild jump may find something privileged, which the CPU refuses, or ICEBP.
    let is_refused = matches!(native.0, End::Exception { vector: 1 | 6 | 13, .. }) && n.rip == e.rip;
    if engine.end == End::Privileged && is_refused {
        return differences;
    }
    // What stands where a return leads by chance is not compared.
    let returns = entry.case.items.iter().any(|item| item.instr.mnemonic() == Mnemonic::Ret);
    let is_own = |&address: &u64| address == entry.case.linear_of(n.rip) || address + 1 == entry.case.linear_of(n.rip);
    if entry.case.state.cs & 4 != 0 && returns && !entry.placed.addresses.iter().any(is_own) {
        return differences;
    }
    if engine.end == End::Privileged {
        return vec!["left to the hypervisor".to_owned()];
    }
    // `step` does one instruction, whatever TF says. A gather may trap between elements.
    let gathers = entry.case.items.iter().any(|item| item.instr.is_vsib());
    let is_db = matches!(native.0, End::Exception { vector: 1, .. });
    // Stepped code may take too long.
    let checked = (n.rflags | entry.case.state.rflags) >> 18 & 1 != 0;
    if gathers && is_db
        || engine.end == End::Lost && checked
        || matches!(entry.way, Way::Step | Way::Intercepted) && is_db
    {
        return differences;
    }
    // How much of `pusha` and `popa` is done before a fault is the CPU's affair.
    let is_fault = |end: &End| matches!(end, End::Exception { vector: 12 | 14 | 17, .. });
    let is_all = |code| matches!(code, Code::Pushaw | Code::Pushad | Code::Popaw | Code::Popad);
    let moves_all = entry.case.items.iter().any(|item| is_all(item.instr.code()));
    if moves_all && is_fault(native.0) && is_fault(&engine.end) {
        return differences;
    }
    // Only instructions that run translated can be intercepted.
    let is_denied = matches!(engine.end, End::Exception { vector: 14, error: 3, .. });
    let interpreted = entry.case.items.iter().any(|i| classify(&i.instr) == Kind::Interpret);
    // An interceptor is told at most 64 bytes.
    let long = entry.case.items.iter().any(|i| i.instr.memory_size().size() > 64);
    // Nor of a store that lies partly elsewhere: it is refused.
    let is_refused = matches!(engine.end, End::Exception { vector: 13, error: 0, .. });
    if entry.way == Way::Intercepted && (interpreted && is_denied || long || is_refused) {
        return differences;
    }
    // Of what is both too long and undefined, the CPU knows the length of some.
    let vectors = (vector_of(native.0), vector_of(&engine.end));
    if matches!(vectors, (Some(6), Some(13)) | (Some(13), Some(6))) && n.rip == e.rip && entry.case.has_many_prefixes()
    {
        return differences;
    }
    // MXCSR.MM is AMD's, and hidden.
    if is_wild_branch(native, engine) || n.mxcsr >> 16 != 0 {
        return differences;
    }
    let mut differ = |what: &str, native: String, engine: String| {
        differences.push(format!("{what}: native {native}, engine {engine}"));
    };
    let (native_end, engine_end) = (comparable_end(*native.0), comparable_end(engine.end));
    // `fsave` and kin are two instructions in one item.
    let at = entry.placed.addresses.iter().rposition(|&a| a <= entry.case.linear_of(n.rip));
    let faulting = at.and_then(|at| entry.case.items.get(at)).map(|item| item.instr);
    if native_end != engine_end && !is_accepted(native_end, engine_end, faulting.as_ref(), entry.case.bits() != 64) {
        differ("end", format!("{native_end:x?}"), format!("{engine_end:x?}"));
    }
    if n.rip != e.rip {
        differ("rip", format!("{:#x}", n.rip), format!("{:#x}", e.rip));
    }
    for (index, (a, b)) in n.gpr.iter().zip(&e.gpr).enumerate() {
        // A kernel that returns to a 16-bit stack leaves something of its own in the upper half of RSP.
        let is_kernels = index == 4 && entry.case.bits() != 64 && *a as u32 == *b as u32;
        if a != b && !is_kernels {
            differ(&format!("{:?}", crate::operand::gpr64(index as u64)), format!("{a:#x}"), format!("{b:#x}"));
        }
    }
    let mask = comparable(&entry.case, &entry.placed, native.0, entry.case.linear_of(n.rip));
    if (n.rflags ^ e.rflags) & mask != 0 {
        differ("rflags", format!("{:#x}", n.rflags & mask), format!("{:#x}", e.rflags & mask));
    }
    for (what, a, b) in [("fs", n.fs_base, e.fs_base), ("gs", n.gs_base, e.gs_base), ("mxcsr", n.mxcsr, e.mxcsr)] {
        if a != b {
            differ(what, format!("{a:#x}"), format!("{b:#x}"));
        }
    }
    for (index, (a, b)) in n.ymm.iter().zip(&e.ymm).enumerate() {
        if a != b {
            differ(&format!("ymm{index}"), hex(a), hex(b));
        }
    }
    // Not the opcode and the pointers.
    for (what, range) in [("fcw", 0..2), ("fsw", 2..4), ("ftw", 4..5)] {
        if n.x87[range.clone()] != e.x87[range.clone()] {
            differ(what, hex(&n.x87[range.clone()]), hex(&e.x87[range]));
        }
    }
    for index in 0..8 {
        let range = 32 + 16 * index..42 + 16 * index;
        if n.x87[range.clone()] != e.x87[range.clone()] {
            differ(&format!("st{index}"), hex(&n.x87[range.clone()]), hex(&e.x87[range]));
        }
    }
    compare_memory(entry, native.2, &engine.memory, &mut differ);
    differences
}

fn compare_memory(entry: &Entry, native: &[u8], engine: &[u8], differ: &mut impl FnMut(&str, String, String)) {
    if native == engine {
        return;
    }
    let hidden = |at: u64| entry.case.hidden.iter().any(|&(from, len)| at.wrapping_sub(from) < len as u64);
    let differing = (0..native.len()).filter(|&i| native[i] != engine[i] && !hidden(DATA + i as u64));
    for i in differing.take(8) {
        differ(&format!("[{:#x}]", DATA + i as u64), format!("{:02x}", native[i]), format!("{:02x}", engine[i]));
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().rev().map(|b| format!("{b:02x}")).collect()
}

/// A failure for a person to read.
pub fn describe(case: &Case, batch: &Batch, ip: u64, way: Way, mismatch: &Mismatch) -> String {
    let placed = case.place(ip).unwrap_or_default();
    let mut text = format!("{:?} {:?}\n{}", way, batch.mode, case.disassemble(&placed));
    for register in case.used_registers() {
        if register.is_gpr64() {
            let value = case.state.gpr[crate::operand::number(register)];
            text += &format!("  {register:?} = {value:#x}\n");
        } else if register.is_vector_register() {
            text += &format!("  {register:?} = {}\n", hex(&case.state.ymm[register.number()]));
        }
    }
    for (name, selector) in ["cs", "ss", "ds", "es", "fs", "gs"].iter().zip(case.all_selectors()) {
        if case.bits() != 64 && selector & 4 != 0 {
            text += &format!("  {name} = {:x?}\n", crate::ldt::segment(&batch.ldt, selector));
        }
    }
    text += &format!("  rflags = {:#x} mxcsr = {:#x}\n", case.state.rflags, case.state.mxcsr);
    for difference in &mismatch.differences {
        text += &format!("  {difference}\n");
    }
    text
}
