//! A sequence of instructions with the registers that it starts from.

use iced_x86::{
    Code, Decoder, Encoder, Formatter, Instruction, InstructionInfoFactory, IntelFormatter, OpKind, Register,
};

use ring3_engine_bt::decoder_options;

use crate::ldt::bits_of;
use crate::state::{ARITHMETIC, CpuState};

/// One instruction. Its own address is not known before the sequence is placed.
#[derive(Clone, Debug)]
pub struct Item {
    pub instr: Instruction,
    /// Index of the item that a branch goes to, or that `lea` takes the address of; the number of items is the end.
    pub target: Option<usize>,
    /// Bytes to take instead of an encoding.
    pub raw: Option<Vec<u8>>,
}

impl From<Instruction> for Item {
    fn from(instr: Instruction) -> Self {
        Self { instr, target: None, raw: None }
    }
}

impl Item {
    pub fn to(instr: Instruction, target: usize) -> Self {
        Self { instr, target: Some(target), raw: None }
    }
}

/// A sequence.
#[derive(Clone, Debug)]
pub struct Case {
    pub items: Vec<Item>,
    pub state: CpuState,
    /// Where a store of x87 state put the host's code addresses: (linear address, length).
    pub hidden: Vec<(u64, usize)>,
    /// The code that this is about, for coverage.
    pub code: Code,
    /// Base of its code segment.
    pub base: u32,
}

/// A sequence in its place.
#[derive(Clone, Debug, Default)]
pub struct Placed {
    pub bytes: Vec<u8>,
    /// Address of each item, and of the end.
    pub addresses: Vec<u64>,
}

impl Case {
    /// Size of its code.
    pub fn bits(&self) -> u32 {
        bits_of(self.state.cs)
    }

    /// What a failure is listed by: the code; of bytes that mean nothing, the first that are not prefixes.
    pub fn name(&self) -> String {
        let raw = self.items.first().and_then(|item| item.raw.as_ref());
        let Some(raw) = raw.filter(|_| self.code == Code::INVALID) else { return format!("{:?}", self.code) };
        let start = self.nr_prefixes(raw);
        format!("bytes {:02x?}", raw.get(start..start + 2).unwrap_or_default())
    }

    fn nr_prefixes(&self, raw: &[u8]) -> usize {
        let is_prefix =
            |b: &u8| matches!(b, 0x66 | 0x67 | 0xf0 | 0xf2 | 0xf3 | 0x2e | 0x36 | 0x3e | 0x26 | 0x64 | 0x65);
        let is_rex = |b: &u8| self.bits() == 64 && b & 0xf0 == 0x40;
        raw.iter().take_while(|b| is_prefix(b) || is_rex(b)).count()
    }

    /// Whether its bytes are undefined, and so many prefixes among them that they may be too long too.
    pub fn has_many_prefixes(&self) -> bool {
        let raw = self.items.first().and_then(|item| item.raw.as_ref());
        self.code == Code::INVALID && raw.is_some_and(|raw| self.nr_prefixes(raw) > 3)
    }

    /// RIP of what lies at a linear address.
    pub fn rip_of(&self, linear: u64) -> u64 {
        if self.bits() == 64 { linear } else { linear.wrapping_sub(u64::from(self.base)) & 0xffff_ffff }
    }

    /// Selectors of CS, SS, DS, ES, FS and GS.
    pub fn all_selectors(&self) -> [u16; 6] {
        let [ss, ds, es, fs, gs] = self.state.selectors;
        [self.state.cs as u16, ss, ds, es, fs, gs]
    }

    /// Linear address of what RIP names.
    pub fn linear_of(&self, rip: u64) -> u64 {
        if self.bits() == 64 { rip } else { rip.wrapping_add(u64::from(self.base)) & 0xffff_ffff }
    }

    /// Encodes the sequence at the linear address `ip`, with `int3` at its end. None if something cannot be encoded.
    pub fn place(&self, ip: u64) -> Option<Placed> {
        let mut addresses = vec![ip; self.items.len() + 1];
        let mut encoder = Encoder::new(self.bits());
        // The first pass finds the lengths, which do not depend on where a near target lies.
        let mut bytes = Vec::new();
        for pass in 0..2 {
            bytes.clear();
            for (n, item) in self.items.iter().enumerate() {
                let at = ip + bytes.len() as u64;
                addresses[n] = at;
                if let Some(raw) = &item.raw {
                    bytes.extend_from_slice(raw);
                    continue;
                }
                let mut instr = item.instr;
                if let Some(target) = item.target {
                    let to = self.rip_of(if pass == 0 { at } else { *addresses.get(target)? });
                    if instr.op0_kind() == OpKind::NearBranch64 {
                        instr.set_near_branch64(to);
                    } else if instr.op0_kind() == OpKind::NearBranch32 {
                        instr.set_near_branch32(to as u32);
                    } else if instr.op0_kind() == OpKind::NearBranch16 {
                        instr.set_near_branch16(to as u16);
                    } else if instr.op1_kind() == OpKind::Immediate16 {
                        instr.set_immediate16(to as u16);
                    } else if instr.op1_kind() == OpKind::Immediate32 {
                        instr.set_immediate32(to as u32);
                    } else {
                        instr.set_memory_displacement64(to);
                    }
                }
                encoder.encode(&instr, self.rip_of(at)).ok()?;
                bytes.extend_from_slice(&encoder.take_buffer());
            }
            addresses[self.items.len()] = ip + bytes.len() as u64;
        }
        bytes.push(0xcc);
        Some(Placed { bytes, addresses })
    }

    /// The sequence without item `n`.
    pub fn without(&self, n: usize) -> Self {
        let mut shorter = self.clone();
        shorter.items.remove(n);
        for item in &mut shorter.items {
            item.target = item.target.map(|t| if t > n { t - 1 } else { t });
        }
        shorter
    }

    /// For each item and the end: flags that may be undefined just before it.
    pub fn undefined_flags(&self) -> Vec<u64> {
        let n = self.items.len();
        let mut before = vec![0u64; n + 1];
        let returns: Vec<usize> = (0..=n).collect();
        loop {
            let mut changed = false;
            for (i, item) in self.items.iter().enumerate() {
                let instr = &item.instr;
                let defined = rflags(instr.rflags_written() | instr.rflags_cleared() | instr.rflags_set());
                let undefined = crate::flags::undefined(instr);
                let kills = if crate::flags::may_keep_flags(instr) { 0 } else { defined };
                let after = (before[i] & !kills) | undefined;
                let mut flow = |to: usize| {
                    if after & !before[to] != 0 {
                        before[to] |= after;
                        changed = true;
                    }
                };
                use iced_x86::FlowControl as F;
                match (instr.flow_control(), item.target) {
                    (F::Next, _) => flow(i + 1),
                    (F::ConditionalBranch, Some(t)) => {
                        flow(i + 1);
                        flow(t);
                    }
                    (F::Call, Some(t)) | (F::UnconditionalBranch, Some(t)) => flow(t),
                    // Anywhere.
                    _ => returns.iter().for_each(|&t| flow(t)),
                }
            }
            if !changed {
                return before;
            }
        }
    }

    /// Whether an instruction reads a flag that may be undefined.
    pub fn reads_undefined(&self) -> bool {
        let before = self.undefined_flags();
        self.items.iter().zip(&before).any(|(item, &undefined)| rflags(item.instr.rflags_read()) & undefined != 0)
    }

    pub fn disassemble(&self, placed: &Placed) -> String {
        let mut formatter = IntelFormatter::new();
        let mut text = String::new();
        let Some(&ip) = placed.addresses.first() else { return text };
        let mut decoder = Decoder::with_ip(self.bits(), &placed.bytes, ip, decoder_options());
        while decoder.can_decode() {
            let instr = decoder.decode();
            let start = (instr.ip() - ip) as usize;
            let hex: String = placed.bytes[start..start + instr.len()].iter().map(|b| format!("{b:02x}")).collect();
            let mut line = String::new();
            formatter.format(&instr, &mut line);
            text += &format!("  {:x}  {hex:<24} {line}   ; {:?}\n", instr.ip(), instr.code());
        }
        text
    }

    /// General-purpose and vector registers that the sequence uses.
    pub fn used_registers(&self) -> Vec<Register> {
        let mut factory = InstructionInfoFactory::new();
        let mut used = Vec::new();
        for item in &self.items {
            for register in factory.info(&item.instr).used_registers() {
                let full = register.register().full_register();
                if !used.contains(&full) {
                    used.push(full);
                }
            }
        }
        used
    }
}

/// Flags as RFLAGS bits, from iced's.
pub fn rflags(bits: u32) -> u64 {
    use iced_x86::RflagsBits as R;
    let map = [(R::CF, 0), (R::PF, 2), (R::AF, 4), (R::ZF, 6), (R::SF, 7), (R::OF, 11)];
    map.iter().filter(|(from, _)| bits & from != 0).fold(0, |all, (_, to)| all | 1 << to) & ARITHMETIC
}
