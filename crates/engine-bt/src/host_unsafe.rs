//! What the host's CPU and kernel say.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::sync::OnceLock;

use iced_x86::DecoderOptions;
use memmap2::{Mmap, MmapOptions};

/// How the host's CPU reads what its maker and others read differently: a prefix 66h at a near branch. The guest sees that
/// maker's name.
pub fn decoder_options() -> u32 {
    static OPTIONS: OnceLock<u32> = OnceLock::new();
    *OPTIONS.get_or_init(|| {
        let leaf = std::arch::x86_64::__cpuid(0);
        // "Auth" of AuthenticAMD, "Hygo" of HygonGenuine.
        let is_amd = [*b"Auth", *b"Hygo"].contains(&leaf.ebx.to_le_bytes());
        if is_amd { DecoderOptions::AMD } else { DecoderOptions::NONE }
    })
}

/// The time stamp counter.
pub fn ticks() -> u64 {
    // SAFETY: every x86-64 CPU has it, and hosts do not forbid it to programs.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// A value that the kernel gave this process (`getauxval(3)`); 0 if it did not.
pub fn auxiliary_value(key: u64) -> u64 {
    // SAFETY: reads the process's auxiliary vector.
    unsafe { libc::getauxval(key) }
}

/// Whether the kernel lets user code read and write the FS and GS bases. Source: Linux arch/x86/include/uapi/asm/hwcap2.h.
pub fn has_fsgsbase() -> bool {
    const HWCAP2_FSGSBASE: u64 = 1 << 1;
    auxiliary_value(libc::AT_HWCAP2) & HWCAP2_FSGSBASE != 0
}

/// Maps the first `len` bytes of a file for reading.
///
/// # Errors
/// The file is shorter, or the host's.
pub fn map_file(mut file: &File, len: usize) -> io::Result<Mmap> {
    // Not by its metadata: std asks for that by a system call that the process has given up.
    if file.seek(SeekFrom::End(0))? < len as u64 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // SAFETY: nobody writes to the file or cuts it while it is mapped: all who do hold its lock exclusively, and callers hold
    // it shared. Its directory is this user's alone.
    unsafe { MmapOptions::new().len(len).populate().map(file) }
}
