//! What a fork of the hypervisor keeps of its memory: what code in it still uses. The rest it unmaps, or else the hypervisor would
//! have to copy each of these pages when it writes to it.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_int, c_void};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::OnceLock;

/// This process's list of mappings, opened while files may still be opened.
static MAPS: OnceLock<OwnedFd> = OnceLock::new();

/// To be called before the file system is given up: a nursery that cannot read the list keeps its copy of our memory.
pub fn open_maps() {
    if let Ok(maps) = File::open("/proc/self/maps") {
        let _ = MAPS.set(maps.into());
    }
}

/// What a thread's pointer points into: its storage is before it, the C library's own part behind it.
const THREAD_BEFORE: u64 = 64 << 10;
const THREAD_BEHIND: u64 = 16 << 10;
const PAGE: u64 = 4096;
/// Pieces of memory that stay: of three objects and the thread.
const NR_KEPT: usize = 4;

/// Addresses that stay mapped, beside the stack and the kernel's own mappings.
#[derive(Debug, Default)]
pub struct Kept {
    /// In no order; empty ones are nothing.
    ranges: [(u64, u64); NR_KEPT],
}

/// What is looked for among the loaded objects.
struct Search {
    wanted: [u64; NR_KEPT - 1],
    kept: Kept,
}

impl Kept {
    /// Looks where this library, the C library and the dynamic linker are, and this thread's block. Before a fork.
    pub fn look() -> Self {
        let thread: u64;
        // SAFETY: the thread pointer is the word at FS:0 (x86-64 ABI).
        unsafe { std::arch::asm!("mov {}, fs:[0]", out(reg) thread, options(nostack, readonly, preserves_flags)) };
        let wanted = [give_back as *const () as u64, c_library(), symbol(c"__tls_get_addr")];
        let mut search = Search { wanted, kept: Self::default() };
        search.kept.ranges[NR_KEPT - 1] = (thread.saturating_sub(THREAD_BEFORE), thread.saturating_add(THREAD_BEHIND));
        // SAFETY: `note_object` gets this search, which lives on, and nobody else uses meanwhile.
        unsafe { libc::dl_iterate_phdr(Some(note_object), (&raw mut search).cast()) };
        search.kept
    }

    /// The first address from `at` on that is kept, and the end of the piece.
    fn next(&self, at: u64) -> Option<(u64, u64)> {
        let ahead = self.ranges.iter().filter(|range| range.1 > at).map(|range| (range.0.max(at), range.1));
        ahead.min()
    }

    /// Calls `unmap` with each piece of a range that is not kept.
    fn each_spare(&self, start: u64, end: u64, mut unmap: impl FnMut(u64, u64)) {
        let mut at = start;
        while at < end {
            let (first, behind) = self.next(at).unwrap_or((end, end));
            // Whole pages: one that is kept in part stays.
            let first = first.min(end) & !(PAGE - 1);
            if first > at {
                unmap(at, first);
            }
            at = behind.next_multiple_of(PAGE).max(at + PAGE);
        }
    }
}

fn symbol(name: &CStr) -> u64 {
    // SAFETY: the name is NUL-terminated.
    unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) as u64 }
}

/// An address in the C library: that of a string, for a function may have another one in the program.
fn c_library() -> u64 {
    #[cfg(target_env = "gnu")]
    // SAFETY: returns a constant.
    return unsafe { libc::gnu_get_libc_version() as u64 };
    #[cfg(not(target_env = "gnu"))]
    symbol(c"close")
}

/// Notes the extent of an object that a wanted address lies in.
///
/// # Safety
/// `data` points to a [`Search`] that nobody else uses.
unsafe extern "C" fn note_object(info: *mut libc::dl_phdr_info, _size: usize, data: *mut c_void) -> c_int {
    // SAFETY: 1. The C library passes a valid description, with as many headers as it says. 2. `data` by contract.
    let (search, base, headers) = unsafe {
        let info = &*info;
        let headers = std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum));
        (&mut *data.cast::<Search>(), info.dlpi_addr, headers)
    };
    let loaded = headers.iter().filter(|header| header.p_type == libc::PT_LOAD);
    let ends = loaded.map(|header| {
        let start = base.wrapping_add(header.p_vaddr);
        (start, start.saturating_add(header.p_memsz))
    });
    let extent = ends.fold((u64::MAX, 0), |all: (u64, u64), one| (all.0.min(one.0), all.1.max(one.1)));
    for (wanted, range) in search.wanted.iter().zip(&mut search.kept.ranges) {
        if (extent.0..extent.1).contains(wanted) {
            *range = extent;
        }
    }
    0
}

/// Unmaps all that this process got by the fork and is not kept.
///
/// # Safety
/// In a fork of one thread, that of [`Kept::look`], which from now on uses nothing but its stack and thin wrappers of system calls.
pub unsafe fn give_back(kept: &Kept) {
    let mut buffer = [0u8; 64 << 10];
    let mut ranges = [(0u64, 0u64); 512];
    // SAFETY: 1. The file is read into a local buffer. 2. The stack stays, and what `kept` says: this code, the C library, the
    // linker and the thread's own block, which FS points into; nothing else is used from now on.
    unsafe {
        let Some(maps) = MAPS.get().filter(|_| kept.ranges.iter().all(|range| range.0 < range.1)) else { return };
        let fd = maps.as_raw_fd();
        let mut len = 0;
        while len < buffer.len() {
            let rest = buffer.as_mut_ptr().add(len).cast();
            let got = libc::pread(fd, rest, buffer.len() - len, len as i64);
            if got <= 0 {
                break;
            }
            len += got as usize;
        }
        let stack = (&raw const len) as u64;
        let mut count = 0;
        for line in buffer.get(..len).unwrap_or_default().split(|&b| b == b'\n') {
            let Some(mapping) = Mapping::parse(line) else { continue };
            if mapping.is_kernels() || (mapping.start..mapping.end).contains(&stack) {
                continue;
            }
            kept.each_spare(mapping.start, mapping.end, |start, end| {
                if let Some(slot) = ranges.get_mut(count) {
                    *slot = (start, end);
                    count += 1;
                }
            });
        }
        for &(start, end) in ranges.get(..count).unwrap_or_default() {
            libc::munmap(start as *mut c_void, (end - start) as usize);
        }
    }
}

/// A line of `/proc/self/maps` (proc(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mapping<'a> {
    start: u64,
    end: u64,
    name: &'a [u8],
}

impl<'a> Mapping<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let number = |digits: &[u8]| u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
        let mut fields = line.split(|&b| b == b' ').filter(|field| !field.is_empty());
        let mut range = fields.next()?.split(|&b| b == b'-');
        let (start, end) = (number(range.next()?)?, number(range.next()?)?);
        Some(Self { start, end, name: fields.nth(4).unwrap_or_default() })
    }

    /// Whether the kernel put it there: `[vdso]` and the like.
    fn is_kernels(&self) -> bool {
        self.name.starts_with(b"[v") || self.name == b"[stack]"
    }
}

#[cfg(test)]
mod tests {
    use super::{Kept, Mapping, NR_KEPT};

    #[test]
    fn test_mappings_are_read_from_their_lines() {
        let mapping = |line: &'static str| Mapping::parse(line.as_bytes()).map(|m| (m.start, m.end, m.is_kernels()));
        assert_eq!(mapping("7f000-80000 rw-p 00000000 00:00 0"), Some((0x7f000, 0x80000, false)));
        assert_eq!(mapping("7f000-80000 rw-p 00000000 00:00 0 [heap]"), Some((0x7f000, 0x80000, false)));
        assert_eq!(mapping("7f000-80000 r-xp 00000000 00:00 0 [vdso]"), Some((0x7f000, 0x80000, true)));
        assert_eq!(mapping(""), None);
    }

    #[test]
    fn test_what_lies_between_kept_pieces_is_spare() {
        let kept = Kept { ranges: [(0x5000, 0x6800), (0x2800, 0x3000), (0x5800, 0x7000), (0, 0)] };
        let spare = |start, end| {
            let mut pieces = Vec::new();
            kept.each_spare(start, end, |from, to| pieces.push((from, to)));
            pieces
        };
        assert_eq!(spare(0x1000, 0x9000), [(0x1000, 0x2000), (0x3000, 0x5000), (0x7000, 0x9000)]);
        assert_eq!(spare(0x3000, 0x4000), [(0x3000, 0x4000)]);
        assert_eq!(spare(0x5000, 0x7000), []);
        assert_eq!(spare(0x6000, 0x8000), [(0x7000, 0x8000)]);
    }

    #[test]
    fn test_our_code_the_c_library_and_the_linker_are_kept() {
        let kept = Kept::look();
        assert_eq!(kept.ranges.len(), NR_KEPT);
        assert!(kept.ranges.iter().all(|range| range.0 < range.1), "{kept:x?}");
    }
}
