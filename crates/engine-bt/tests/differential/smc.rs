//! Code that changes itself: immediates, and instructions as a kernel patches them (no-op against jump).

use iced_x86::{Code, Instruction, MemoryOperand, OpKind, Register};

use crate::case::{Case, Item, Placed};
use crate::prng::Prng;
use crate::state::{DATA, MEMORY_BYTES, WRITABLE_CODE};
use crate::values;

/// Room for one routine.
const STRIDE: usize = 512;
pub const NR_ROUTINES: usize = 7;

/// Five bytes that may stand for one another at any moment: a no-op, `mov esi, imm32`, `jmp` over nothing, `mov ebx, imm32`.
/// None concerns the flags: what a block found out about them before the store still counts after it.
fn five_bytes(rng: &mut Prng) -> [u8; 5] {
    let low = rng.next() as u8;
    match rng.below(4) {
        0 => [0x0f, 0x1f, 0x44, 0x00, 0x00],
        1 => [0xbe, low, 1, 2, 3],
        2 => [0xe9, 0, 0, 0, 0],
        _ => [0xbb, low, 5, 6, 7],
    }
}

/// The five bytes and a three-byte no-op: eight bytes that one store replaces.
fn patch_site(rng: &mut Prng) -> [u8; 8] {
    let mut bytes = [0, 0, 0, 0, 0, 0x0f, 0x1f, 0x00];
    bytes[..5].copy_from_slice(&five_bytes(rng));
    bytes
}

/// What is placed at one routine's address; the sites that a store may change, with their sizes.
struct Routine {
    placed: Placed,
    sites: Vec<(u64, usize)>,
}

fn store(to: u64, register: Register, size: usize) -> Option<Instruction> {
    let code = if size == 8 { Code::Mov_rm64_r64 } else { Code::Mov_rm32_r32 };
    let mut memory = MemoryOperand::with_base(Register::RIP);
    memory.displacement = to as i64;
    let mut instr = Instruction::with2(code, memory, register).ok()?;
    instr.set_memory_displ_size(8);
    Some(instr)
}

/// A loop that writes to its own instructions.
fn routine(rng: &mut Prng, ip: u64) -> Option<Routine> {
    let state = values::state(rng);
    let mut items: Vec<Item> =
        vec![Instruction::with2(Code::Mov_r32_imm32, Register::ECX, 1 + rng.below(4) as i32).ok()?.into()];
    let mut stores = Vec::new();
    let mut sites = Vec::new();
    for _ in 0..3 + rng.below(8) {
        match rng.below(6) {
            0 | 1 => {
                sites.push((items.len(), 4));
                let to = rng.pick(&[Register::EAX, Register::EBX, Register::EDX]);
                items.push(Instruction::with2(Code::Mov_r32_imm32, to, rng.next() as i32).ok()?.into());
            }
            2 => {
                sites.push((items.len(), 8));
                let mut item = Item::from(Instruction::with(Code::Nopd));
                item.raw = Some(patch_site(rng).to_vec());
                items.push(item);
            }
            3 => {
                items.push(Instruction::with2(Code::Add_r32_rm32, Register::EBX, Register::EAX).ok()?.into());
            }
            _ => {
                stores.push(items.len() + 1);
                let value = u64::from_le_bytes(patch_site(rng));
                items.push(Instruction::with2(Code::Mov_r64_imm64, Register::R10, value).ok()?.into());
                // Its place is filled in below.
                items.push(store(ip, Register::R10, 8)?.into());
            }
        }
    }
    items.push(Instruction::with1(Code::Dec_rm32, Register::ECX).ok()?.into());
    items.push(Item::to(Instruction::with_branch(Code::Jne_rel32_64, 0).ok()?, 1));
    let mut case = Case { items, state, hidden: Vec::new(), code: Code::Nopd, base: 0 };
    let placed = case.place(ip)?;
    // The immediate is what an instruction ends with.
    let sites: Vec<(u64, usize)> =
        sites.iter().map(|&(item, size)| (placed.addresses[item + 1] - size as u64, size)).collect();
    for at in stores {
        let (to, size) = if sites.is_empty() { (DATA, 8) } else { rng.pick(&sites) };
        let register = if size == 8 { Register::R10 } else { Register::R10D };
        // As long as the one it replaces: the encodings differ by no prefix that matters to R10.
        case.items[at].instr = store(to, register, size)?;
    }
    Some(Routine { placed: case.place(ip)?, sites })
}

/// Fills the writable code page of a batch's memory with routines.
pub struct Routines(Vec<Routine>);

impl Routines {
    pub fn new(rng: &mut Prng, memory: &mut [u8; MEMORY_BYTES]) -> Option<Self> {
        let mut routines = Vec::new();
        for n in 0..NR_ROUTINES {
            let offset = n * STRIDE + rng.below(64) as usize;
            let routine = routine(rng, WRITABLE_CODE + offset as u64)?;
            let start = (WRITABLE_CODE - DATA) as usize + offset;
            memory[start..start + routine.placed.bytes.len()].copy_from_slice(&routine.placed.bytes);
            routines.push(routine);
        }
        Some(Self(routines))
    }

    /// A sequence that patches some of the routines, calls one or two, and ends in another.
    pub fn case(&self, rng: &mut Prng) -> Option<Case> {
        let state = values::state(rng);
        let mut items: Vec<Item> = Vec::new();
        let routine = &self.0[rng.below(self.0.len() as u64) as usize];
        for _ in 0..rng.below(4) {
            let Some(&(to, size)) = routine.sites.get(rng.below(routine.sites.len().max(1) as u64) as usize) else {
                break;
            };
            let value = u64::from_le_bytes(patch_site(rng));
            items.push(Instruction::with2(Code::Mov_r64_imm64, Register::R10, value).ok()?.into());
            items.push(store(to, if size == 8 { Register::R10 } else { Register::R10D }, size)?.into());
        }
        items.push(Instruction::with2(Code::Mov_r64_imm64, Register::R11, routine.placed.addresses[0]).ok()?.into());
        let mut jump = Instruction::with1(Code::Jmp_rm64, Register::R11).ok()?;
        jump.set_op0_kind(OpKind::Register);
        items.push(jump.into());
        Some(Case { items, state, hidden: Vec::new(), code: Code::Jmp_rm64, base: 0 })
    }
}
