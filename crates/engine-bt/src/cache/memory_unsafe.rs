//! Memory of the code cache: one memfd mapped twice, writable at one address and executable at another, so that no
//! page is ever both.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use ring3_engine::Error;

/// A dual mapping.
#[derive(Debug)]
pub struct CodeMemory {
    writable: NonNull<u8>,
    executable: NonNull<u8>,
    len: usize,
    memfd: File,
    /// Bytes of code that were put into each part of `HUGE_PAGE` bytes since it was empty.
    filled: Vec<AtomicUsize>,
}

/// What one entry of the CPU's second-level page tables maps.
const HUGE_PAGE: usize = 2 << 20;
/// What `put_part` wants its code within.
pub const PART_BYTES: usize = HUGE_PAGE;
/// With so much code in it a part is made one huge page. A program's code is some twenty times as long when it is translated:
/// finding the pages that it is on costs the CPU as much as fetching it.
const WORTH_A_HUGE_PAGE: usize = HUGE_PAGE / 2;
/// `madvise` of Linux 6.1: makes huge pages of small ones now, whatever the host's policy for shared memory is.
const MADV_COLLAPSE: libc::c_int = 25;

// SAFETY: the mappings live until drop; writes go through `&self` methods whose callers hold the cache lock, and a
// patch of live code is a single aligned atomic store.
unsafe impl Send for CodeMemory {}
// SAFETY: as above.
unsafe impl Sync for CodeMemory {}

fn host(what: &'static str) -> Error {
    Error::Host { what, source: io::Error::last_os_error() }
}

/// `memfd_create` flag of Linux 6.3: the file may be mapped executable.
const MFD_EXEC: libc::c_uint = 0x10;

/// Maps a file at a multiple of `HUGE_PAGE`.
fn map_aligned(file: &File, len: usize, protection: libc::c_int) -> Option<NonNull<u8>> {
    let place = len + HUGE_PAGE;
    let none = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: no fixed address; the result is checked.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), place, libc::PROT_NONE, none, -1, 0) };
    if start == libc::MAP_FAILED {
        return None;
    }
    let before = (start as usize).next_multiple_of(HUGE_PAGE) - start as usize;
    // SAFETY: 1. `before + len` bytes lie within the place, which is ours and holds nothing. 2. What is unmapped is the rest of
    // it; `len` is a multiple of the page size.
    unsafe {
        let at =
            libc::mmap(start.add(before), len, protection, libc::MAP_SHARED | libc::MAP_FIXED, file.as_raw_fd(), 0);
        if at == libc::MAP_FAILED {
            libc::munmap(start, place);
            return None;
        }
        if before != 0 {
            libc::munmap(start, before);
        }
        if before != HUGE_PAGE {
            libc::munmap(at.add(len), HUGE_PAGE - before);
        }
        NonNull::new(at.cast())
    }
}

impl CodeMemory {
    /// Reserves `len` bytes (a multiple of the page size). Host memory is taken on first touch.
    pub fn new(len: usize) -> Result<Self, Error> {
        let name = c"ring3-code";
        // SAFETY: the name is NUL-terminated; results are checked. Kernels before 6.3 refuse MFD_EXEC.
        let fd = unsafe {
            match libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | MFD_EXEC) {
                -1 => libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC),
                fd => fd,
            }
        };
        if fd < 0 {
            return Err(host("a memfd for translated code"));
        }
        // SAFETY: `fd` is new and ours.
        let memfd = unsafe { File::from_raw_fd(fd) };
        memfd.set_len(len as u64).map_err(|source| Error::Host { what: "code cache memory", source })?;
        let map = |protection| map_aligned(&memfd, len, protection);
        let writable = map(libc::PROT_READ | libc::PROT_WRITE).ok_or_else(|| host("a writable code mapping"))?;
        let Some(executable) = map(libc::PROT_READ | libc::PROT_EXEC) else {
            let error = host("an executable code mapping");
            // SAFETY: just mapped with this length, and nobody knows the address yet.
            unsafe { libc::munmap(writable.as_ptr().cast(), len) };
            return Err(error);
        };
        let filled = (0..len / HUGE_PAGE).map(|_| AtomicUsize::new(0)).collect();
        Ok(Self { writable, executable, len, memfd, filled })
    }

    /// Address of the first executable byte.
    pub fn base(&self) -> u64 {
        self.executable.as_ptr() as u64
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// Copies code to `offset`. Returns false if it does not fit.
    pub fn put(&self, offset: usize, code: &[u8]) -> bool {
        if !self.copy(offset, code) {
            return false;
        }
        self.note_filled(offset / HUGE_PAGE, code.len());
        true
    }

    /// As `put`, for much code that is within one part of `PART_BYTES`: a part that is to be a huge page is one before it holds
    /// more than a byte. Nobody will take a page fault for it.
    pub fn put_part(&self, offset: usize, code: &[u8]) -> bool {
        if !self.copy(offset, code.get(..1).unwrap_or_default()) {
            return false;
        }
        self.note_filled(offset / PART_BYTES, code.len());
        let is_done = self.copy(offset, code);
        if is_done {
            let page = ring3_machine::PAGE_SIZE_BYTES;
            let (first, end) = (offset / page * page, (offset + code.len()).next_multiple_of(page).min(self.len));
            // SAFETY: within the executable mapping. A host that cannot do it lets the pages be found one by one.
            unsafe { libc::madvise(self.executable.as_ptr().add(first).cast(), end - first, libc::MADV_POPULATE_READ) };
        }
        is_done
    }

    fn copy(&self, offset: usize, code: &[u8]) -> bool {
        if offset > self.len || code.len() > self.len - offset {
            return false;
        }
        // SAFETY: 1. In bounds. 2. `code` is not in the mapping. 3. Nobody executes these bytes yet, or writes others there
        // (cache lock, or no vCPU has run yet).
        unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), self.writable.as_ptr().add(offset), code.len());
        }
        true
    }

    /// Counts code that was put into a part, and makes it a huge page when that is enough.
    fn note_filled(&self, part: usize, len: usize) {
        let Some(filled) = self.filled.get(part) else { return };
        let before = filled.fetch_add(len, Ordering::Relaxed);
        if before < WORTH_A_HUGE_PAGE && before + len >= WORTH_A_HUGE_PAGE {
            // SAFETY: 1. `filled` has the parts that lie within the mapping whole. 2. What is in the pages stays, and threads
            // may execute it meanwhile. A host that cannot do it, or has no such page free, leaves all as it is.
            unsafe { libc::madvise(self.writable.as_ptr().add(part * HUGE_PAGE).cast(), HUGE_PAGE, MADV_COLLAPSE) };
        }
    }

    /// Gives the host back the memory of `from..to`, but for pages in part outside. Nobody executes it or will, until it is
    /// written anew.
    pub fn discard(&self, from: usize, to: usize) {
        let page = ring3_machine::PAGE_SIZE_BYTES;
        let (first, end) = (from.next_multiple_of(page), to.min(self.len) / page * page);
        if first < end {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            // SAFETY: a range of our own file. A host that cannot do it keeps the memory, which is no harm.
            unsafe { libc::fallocate(self.memfd.as_raw_fd(), mode, first as i64, (end - first) as i64) };
            let parts = first / HUGE_PAGE..end.div_ceil(HUGE_PAGE).min(self.filled.len());
            self.filled.get(parts).into_iter().flatten().for_each(|filled| filled.store(0, Ordering::Relaxed));
        }
    }

    /// The writable place of `SIZE` bytes at host address `site`, if it is in range and aligned.
    fn place<const SIZE: usize>(&self, site: u64) -> Option<*mut u8> {
        let offset = usize::try_from(site.wrapping_sub(self.base())).ok()?;
        // SAFETY: in bounds.
        (offset <= self.len - SIZE && offset.is_multiple_of(SIZE))
            .then(|| unsafe { self.writable.as_ptr().add(offset) })
    }

    /// Replaces the aligned 32-bit field at host address `site` in live code by one store. Out of range: no effect.
    pub fn patch32(&self, site: u64, value: u32) {
        if let Some(place) = self.place::<4>(site) {
            // SAFETY: `place` checked; other threads only execute it, and x86 fetches an aligned word whole.
            unsafe { AtomicU32::from_ptr(place.cast()).store(value, Ordering::Release) };
        }
    }

    /// A copy of code. Bytes out of range are left out.
    pub fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        let len = len.min(self.len.saturating_sub(offset));
        let mut bytes = vec![0u8; len];
        if len != 0 {
            // SAFETY: 1. In bounds. 2. Code is only written under the cache's lock, which the caller holds.
            unsafe { std::ptr::copy_nonoverlapping(self.writable.as_ptr().add(offset), bytes.as_mut_ptr(), len) };
        }
        bytes
    }

    /// Replaces the aligned 64 bits at host address `site` in live code by one store: an instruction's first bytes, which
    /// `patch_jump` has replaced. Out of range: no effect.
    pub fn patch64(&self, site: u64, value: u64) {
        self.patch_start(site, |_| value);
    }

    /// Makes the instruction at host address `site` a jump to `target`, by one store. The instruction has at least five
    /// bytes, and `site` is a multiple of eight. Out of range: no effect.
    pub fn patch_jump(&self, site: u64, target: u64) {
        let relative = target.wrapping_sub(site + 5) & 0xffff_ffff;
        self.patch_start(site, |word| word & 0xffff_ff00_0000_0000 | relative << 8 | 0xe9);
    }

    /// Changes the first eight bytes of the code at `site`.
    fn patch_start(&self, site: u64, change: impl FnOnce(u64) -> u64) {
        if let Some(place) = self.place::<8>(site) {
            // SAFETY: 1. `place` checked. 2. Other threads only execute it; none can be between the patched bytes, because
            // they are of one instruction, and x86 fetches an aligned word whole. 3. Others patch it under the cache's lock,
            // as we do.
            unsafe {
                let word = AtomicU64::from_ptr(place.cast());
                word.store(change(word.load(Ordering::Relaxed)), Ordering::Release);
            }
        }
    }
}

impl Drop for CodeMemory {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; no vCPU of the domain is left.
        unsafe {
            libc::munmap(self.writable.as_ptr().cast(), self.len);
            libc::munmap(self.executable.as_ptr().cast(), self.len);
        }
    }
}
