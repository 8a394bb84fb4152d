//! Mapping calls for one fault: pages that follow each other in both kinds of memory share one.

use ring3_engine::pte;
use ring3_machine::PAGE_SIZE;

use super::layout::{COMMAND_WORDS, FD_MACHINE, FD_SHARED, PATCHED_AT};

/// How a page is mapped in the runner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    #[default]
    Absent,
    Read,
    Write,
    /// Readable and executable; the frame is marked as code.
    Execute,
    /// All three, for a guest that maps it so: a JIT compiler's. The frame is not marked: no translation of it exists.
    WriteExecute,
}

impl Kind {
    /// Whether the runner may write, and execute.
    pub fn rights(self) -> (bool, bool) {
        (matches!(self, Self::Write | Self::WriteExecute), matches!(self, Self::Execute | Self::WriteExecute))
    }
}

/// One mapping call for the mapper.
#[derive(Clone, Copy, Debug)]
pub enum Command {
    /// Maps `len` bytes of machine memory from `offset` at `address`.
    Map {
        address: u64,
        len: u64,
        offset: u64,
        write: bool,
        execute: bool,
    },
    /// Maps a copy that [`super::runner_unsafe::Runner::put_patched`] made, executable.
    MapPatched {
        address: u64,
        slot: usize,
    },
    Unmap {
        address: u64,
        len: u64,
    },
}

impl Command {
    /// The system call and its arguments.
    pub fn words(self) -> [u64; COMMAND_WORDS] {
        match self {
            Self::Map { address, len, offset, write, execute } => {
                let protection = libc::PROT_READ
                    | if write { libc::PROT_WRITE } else { 0 }
                    | if execute { libc::PROT_EXEC } else { 0 };
                let flags = libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_POPULATE;
                let fd = FD_MACHINE as u64;
                [libc::SYS_mmap as u64, address, len, protection as u64, flags as u64, fd, offset]
            }
            Self::MapPatched { address, slot } => {
                let protection = (libc::PROT_READ | libc::PROT_EXEC) as u64;
                let flags = (libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_POPULATE) as u64;
                let offset = PATCHED_AT + slot as u64 * PAGE_SIZE;
                [libc::SYS_mmap as u64, address, PAGE_SIZE, protection, flags, FD_SHARED as u64, offset]
            }
            Self::Unmap { address, len } => [libc::SYS_munmap as u64, address, len, 0, 0, 0, 0],
        }
    }
}

/// Mapping calls being put together: pages that follow each other in both kinds of memory share one.
pub struct Plan {
    pub start: u64,
    pub commands: Vec<Command>,
}

impl Plan {
    /// Where the last call would have to be extended for this page: `Some(true)` at its end, `Some(false)` at its start.
    fn joint(&self, at: usize, entry: u64, kind: Kind) -> Option<bool> {
        let Some(&Command::Map { address, len, offset, write, execute }) = self.commands.last() else { return None };
        let (page, frame) = (self.start + at as u64 * PAGE_SIZE, entry & pte::FRAME);
        if (write, execute) != kind.rights() {
            return None;
        }
        if page == address + len && frame == offset + len {
            return Some(true);
        }
        (page + PAGE_SIZE == address && frame + PAGE_SIZE == offset).then_some(false)
    }

    pub fn continues(&self, at: usize, entry: u64, kind: Kind) -> bool {
        self.joint(at, entry, kind).is_some()
    }

    pub fn add(&mut self, at: usize, entry: u64, kind: Kind) {
        let joint = self.joint(at, entry, kind);
        match (joint, self.commands.last_mut()) {
            (Some(true), Some(Command::Map { len, .. })) => *len += PAGE_SIZE,
            (Some(false), Some(Command::Map { address, len, offset, .. })) => {
                *address -= PAGE_SIZE;
                *offset -= PAGE_SIZE;
                *len += PAGE_SIZE;
            }
            _ => {
                let (write, execute) = kind.rights();
                let address = self.start + at as u64 * PAGE_SIZE;
                let offset = entry & pte::FRAME;
                self.commands.push(Command::Map { address, len: PAGE_SIZE, offset, write, execute });
            }
        }
    }
}
