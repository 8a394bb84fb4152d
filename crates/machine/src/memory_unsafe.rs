//! The mapping of machine memory and the only raw accesses to it.
#![allow(clippy::cast_possible_truncation, reason = "usize has 64 bits: Ring3 is for x86-64 hosts")]
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use crate::folded::Folded;
use crate::packed::Packed;
use crate::{CodeMap, Error, Mfn, PAGE_SHIFT, PAGE_SIZE_BYTES};

/// Machine memory of one Ring3: a sparse memfd mapped once, readable and writable, for the process's life.
#[derive(Debug)]
pub struct Machine {
    memfd: File,
    base: NonNull<u8>,
    nr_frames: u64,
    code: CodeMap,
    folded: Folded,
}

// SAFETY: 1. `base` points to a shared mapping that lives until drop. 2. All access to it is volatile or atomic,
// so concurrent use from several threads is a race of guests with themselves, never undefined behaviour of ours.
unsafe impl Send for Machine {}
// SAFETY: as above; no method hands out a Rust reference to guest-writable bytes, except atomics.
unsafe impl Sync for Machine {}

impl Machine {
    /// Reserves `nr_frames` frames of 4 KiB. Host memory is taken on first touch.
    ///
    /// # Errors
    /// [`Error::Host`] when the host refuses the memfd, its size or the mapping.
    pub fn new(nr_frames: u64) -> Result<Self, Error> {
        let host = |what| move |source| Error::Host { what, nr_frames, source };
        let refused = || io::Error::from(io::ErrorKind::OutOfMemory);
        let len = nr_frames
            .checked_mul(PAGE_SIZE_BYTES as u64)
            .and_then(|n| usize::try_from(n).ok())
            .filter(|&n| n > 0)
            .ok_or_else(refused)
            .map_err(host("size"))?;
        // SAFETY: 1. The name is NUL-terminated. 2. The result is checked before use.
        let fd = unsafe { libc::memfd_create(c"ring3-machine".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(host("memfd_create")(io::Error::last_os_error()));
        }
        // SAFETY: `fd` was just returned to us and nobody else owns it.
        let memfd = unsafe { File::from_raw_fd(fd) };
        memfd.set_len(len as u64).map_err(host("ftruncate"))?;
        // SAFETY: 1. No fixed address is asked for. 2. `len` and `fd` are valid. 3. The result is checked.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                memfd.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(host("mmap")(io::Error::last_os_error()));
        }
        let base = NonNull::new(base.cast()).ok_or_else(refused).map_err(host("mmap"))?;
        let (code, folded) = (CodeMap::new(len >> PAGE_SHIFT), Folded::new(len >> PAGE_SHIFT));
        Ok(Self { memfd, base, nr_frames, code, folded })
    }

    /// The memfd, to hand to domain 0.
    pub fn memfd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }

    /// Number of frames; valid MFNs are below it.
    #[inline]
    pub fn nr_frames(&self) -> u64 {
        self.nr_frames
    }

    /// Which frames hold translated code.
    #[inline]
    pub fn code(&self) -> &CodeMap {
        &self.code
    }

    /// Host address of MFN 0. For engines, which compute host addresses of frames that they have validated.
    #[inline]
    pub fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Host address of a frame.
    ///
    /// # Errors
    /// [`Error::NoSuchFrame`].
    #[inline]
    pub fn frame(&self, mfn: Mfn) -> Result<*mut u8, Error> {
        if mfn.0 >= self.nr_frames {
            return Err(Error::NoSuchFrame { mfn, nr_frames: self.nr_frames });
        }
        // SAFETY: `mfn < nr_frames`, so the offset stays inside the mapping and fits an isize.
        let at = unsafe { self.base.as_ptr().add((mfn.0 as usize) << PAGE_SHIFT) };
        if self.folded.contains(mfn) {
            // SAFETY: a frame is PAGE_SIZE_BYTES long. Nobody else has its address: it is folded.
            let fill = |bytes: &[u8; PAGE_SIZE_BYTES]| unsafe {
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), at, PAGE_SIZE_BYTES);
            };
            self.folded.unfold(mfn, fill);
        }
        Ok(at)
    }

    /// Has a frame where it is said to be in the memfd, for somebody who reaches it there, until it is discarded.
    ///
    /// # Errors
    /// [`Error::NoSuchFrame`].
    pub fn expose(&self, mfn: Mfn) -> Result<(), Error> {
        self.folded.expose(mfn);
        self.frame(mfn).map(|_| ())
    }

    /// Frames that were folded.
    pub fn folded(&self) -> Vec<Mfn> {
        self.folded.frames()
    }

    /// Gives frames that hold `byte` all over back to the host; they go on holding it. Nobody may store to them meanwhile,
    /// nor, unless it is zero, know their addresses. Returns whether that was done: not if the host cannot, or if one of
    /// them is exposed and `byte` is not zero.
    pub fn fold(&self, frames: Range<u64>, byte: u8) -> bool {
        if frames.end > self.nr_frames {
            return false;
        }
        let punch = || self.punch(&frames).is_ok();
        if byte == 0 { punch() } else { self.folded.fold(frames.clone(), byte, punch) }
    }

    /// Gives frames back to the host and keeps their bytes packed, where that takes clearly less memory. Conditions as for
    /// [`Machine::fold`]. Returns how many it did that with. Takes host memory for those that have none.
    pub fn pack(&self, frames: Range<u64>) -> u64 {
        let pack_one = |number| {
            let (mfn, mut bytes) = (Mfn(number), [0; PAGE_SIZE_BYTES]);
            let is_candidate = !self.folded.contains(mfn) && !self.folded.is_exposed(mfn);
            (is_candidate && self.read(mfn, 0, &mut bytes).is_ok()).then(|| Packed::pack(&bytes)).flatten()
        };
        let (mut nr, mut run) = (0, Vec::new());
        let mut fold = |run: &mut Vec<_>, end: u64| {
            let frames = end - run.len() as u64..end;
            let punch = || self.punch(&frames).is_ok();
            if !run.is_empty() && self.folded.fold_packed(frames.start, std::mem::take(run), punch) {
                nr += frames.end - frames.start;
            }
        };
        for number in frames.clone() {
            match pack_one(number) {
                Some(packed) => run.push(packed),
                None => fold(&mut run, number),
            }
        }
        fold(&mut run, frames.end);
        nr
    }

    #[inline]
    fn at(&self, mfn: Mfn, offset: usize, len: usize) -> Result<*mut u8, Error> {
        if offset > PAGE_SIZE_BYTES || len > PAGE_SIZE_BYTES - offset {
            return Err(Error::OutsideFrame { offset, len });
        }
        // SAFETY: `offset <= PAGE_SIZE_BYTES`: inside or one past the frame.
        Ok(unsafe { self.frame(mfn)?.add(offset) })
    }

    #[inline]
    fn aligned(&self, mfn: Mfn, offset: usize, len: usize) -> Result<*mut u8, Error> {
        if !offset.is_multiple_of(len) {
            return Err(Error::Misaligned { offset, alignment: len });
        }
        self.at(mfn, offset, len)
    }

    /// Copies bytes out of a frame: a snapshot, to be checked by the caller.
    ///
    /// # Errors
    /// [`Error::NoSuchFrame`], [`Error::OutsideFrame`].
    #[inline]
    pub fn read(&self, mfn: Mfn, offset: usize, out: &mut [u8]) -> Result<(), Error> {
        let from = self.at(mfn, offset, out.len())?;
        // SAFETY: 1. `at` checked the source range. 2. `out` is ours and cannot overlap the mapping.
        // 3. A guest may write meanwhile; bytes are plain data, and any value of them is valid.
        unsafe { std::ptr::copy_nonoverlapping(from.cast_const(), out.as_mut_ptr(), out.len()) };
        Ok(())
    }

    /// Copies bytes into a frame. Does not look at [`Machine::code`]: the caller invalidates.
    ///
    /// # Errors
    /// [`Error::NoSuchFrame`], [`Error::OutsideFrame`].
    #[inline]
    pub fn write(&self, mfn: Mfn, offset: usize, bytes: &[u8]) -> Result<(), Error> {
        let to = self.at(mfn, offset, bytes.len())?;
        // SAFETY: as in `read`, with the direction turned.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }

    /// Fills a range of a frame with one byte.
    ///
    /// # Errors
    /// [`Error::NoSuchFrame`], [`Error::OutsideFrame`].
    pub fn fill(&self, mfn: Mfn, offset: usize, len: usize, byte: u8) -> Result<(), Error> {
        let to = self.at(mfn, offset, len)?;
        // SAFETY: `at` checked the range.
        unsafe { std::ptr::write_bytes(to, byte, len) };
        Ok(())
    }

    /// Fills a whole frame with zeros.
    ///
    /// # Errors
    /// [`Error::NoSuchFrame`].
    pub fn zero(&self, mfn: Mfn) -> Result<(), Error> {
        let to = self.frame(mfn)?;
        // SAFETY: `frame` checked the number; a frame is PAGE_SIZE_BYTES long.
        unsafe { std::ptr::write_bytes(to, 0, PAGE_SIZE_BYTES) };
        Ok(())
    }

    /// Copies a whole frame.
    ///
    /// # Errors
    /// [`Error::NoSuchFrame`].
    pub fn copy_frame(&self, from: Mfn, to: Mfn) -> Result<(), Error> {
        let (source, target) = (self.frame(from)?, self.frame(to)?);
        // SAFETY: both frames were checked; `copy` allows them to be the same.
        unsafe { std::ptr::copy(source.cast_const(), target, PAGE_SIZE_BYTES) };
        Ok(())
    }

    /// Copies bytes from one frame to another (or within one, as `memmove` does).
    ///
    /// # Errors
    /// [`Error::NoSuchFrame`], [`Error::OutsideFrame`].
    pub fn copy(&self, from: (Mfn, usize), to: (Mfn, usize), len: usize) -> Result<(), Error> {
        let (source, target) = (self.at(from.0, from.1, len)?, self.at(to.0, to.1, len)?);
        // SAFETY: `at` checked both ranges; `copy` allows overlap.
        unsafe { std::ptr::copy(source.cast_const(), target, len) };
        Ok(())
    }

    /// Gives `nr` frames back to the host; they read as zeros afterwards.
    ///
    /// # Errors
    /// [`Error::NoSuchFrame`], [`Error::Host`].
    pub fn discard(&self, first: Mfn, nr: u64) -> Result<(), Error> {
        let end = first.0.checked_add(nr).filter(|&end| end <= self.nr_frames);
        if end.is_none() {
            return Err(Error::NoSuchFrame { mfn: first, nr_frames: self.nr_frames });
        }
        if nr == 0 {
            return Ok(());
        }
        let frames = first.0..first.0 + nr;
        self.folded.forget(frames.clone());
        self.punch(&frames)
    }

    /// Makes a hole in the memfd of frames that there are.
    fn punch(&self, frames: &Range<u64>) -> Result<(), Error> {
        let nr_frames = frames.end - frames.start;
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let (offset, len) = (Mfn(frames.start).address() as i64, (nr_frames << PAGE_SHIFT) as i64);
        // SAFETY: a system call on our own file, with a range inside it.
        if unsafe { libc::fallocate(self.memfd.as_raw_fd(), mode, offset, len) } != 0 {
            return Err(Error::Host { what: "hole", nr_frames, source: io::Error::last_os_error() });
        }
        Ok(())
    }

    /// The first run of frames from `from` on that have host memory; all others read as zeros. `None` when there are no more,
    /// or the host does not say.
    pub fn next_resident(&self, from: Mfn) -> Option<Range<u64>> {
        let seek = |from: u64, whence| {
            // SAFETY: a system call on our own file, whose position nobody uses.
            let at = unsafe { libc::lseek(self.memfd.as_raw_fd(), (from << PAGE_SHIFT) as i64, whence) };
            u64::try_from(at).ok()
        };
        let start = (from.0 < self.nr_frames).then(|| seek(from.0, libc::SEEK_DATA))?? >> PAGE_SHIFT;
        let end = seek(start, libc::SEEK_HOLE)?.div_ceil(PAGE_SIZE_BYTES as u64);
        (start < end).then_some(start..end)
    }

    /// The byte that a frame holds all over, if it does. Takes host memory for a frame that has none.
    ///
    /// # Errors
    /// [`Error::NoSuchFrame`].
    pub fn uniform_byte(&self, mfn: Mfn) -> Result<Option<u8>, Error> {
        let words = self.frame(mfn)?.cast::<u64>();
        // SAFETY: 1. `frame` checked the number; a frame is PAGE_SIZE_BYTES long and aligned. 2. Shared access is atomic.
        let word = |i| unsafe { AtomicU64::from_ptr(words.add(i)) }.load(Ordering::Relaxed);
        let first = word(0);
        let byte = first as u8;
        let is_uniform = first == u64::from_ne_bytes([byte; 8]) && (1..PAGE_SIZE_BYTES / 8).all(|i| word(i) == first);
        Ok(is_uniform.then_some(byte))
    }

    /// The aligned 64-bit word at `offset`, for atomic access; page-table entries are read and changed so.
    ///
    /// # Errors
    /// [`Error::NoSuchFrame`], [`Error::OutsideFrame`], [`Error::Misaligned`].
    #[inline]
    pub fn word64(&self, mfn: Mfn, offset: usize) -> Result<&AtomicU64, Error> {
        let at = self.aligned(mfn, offset, 8)?;
        // SAFETY: 1. In bounds and aligned. 2. The mapping outlives `&self`. 3. Shared access is atomic.
        Ok(unsafe { AtomicU64::from_ptr(at.cast()) })
    }

    /// As [`Machine::word64`], 32 bits.
    ///
    /// # Errors
    /// As [`Machine::word64`].
    #[inline]
    pub fn word32(&self, mfn: Mfn, offset: usize) -> Result<&AtomicU32, Error> {
        let at = self.aligned(mfn, offset, 4)?;
        // SAFETY: as in `word64`.
        Ok(unsafe { AtomicU32::from_ptr(at.cast()) })
    }

    /// As [`Machine::word64`], 16 bits.
    ///
    /// # Errors
    /// As [`Machine::word64`].
    pub fn word16(&self, mfn: Mfn, offset: usize) -> Result<&AtomicU16, Error> {
        let at = self.aligned(mfn, offset, 2)?;
        // SAFETY: as in `word64`.
        Ok(unsafe { AtomicU16::from_ptr(at.cast()) })
    }

    /// As [`Machine::word64`], 8 bits.
    ///
    /// # Errors
    /// As [`Machine::word64`].
    #[inline]
    pub fn byte(&self, mfn: Mfn, offset: usize) -> Result<&AtomicU8, Error> {
        let at = self.at(mfn, offset, 1)?;
        // SAFETY: as in `word64`.
        Ok(unsafe { AtomicU8::from_ptr(at) })
    }

    /// Reads the 64-bit entry `index` (0 to 511) of a frame of entries.
    ///
    /// # Errors
    /// As [`Machine::word64`].
    #[inline]
    pub fn entry(&self, mfn: Mfn, index: usize) -> Result<u64, Error> {
        Ok(self.word64(mfn, index.wrapping_mul(8))?.load(Ordering::Acquire))
    }

    /// All 64-bit words of a frame.
    ///
    /// # Errors
    /// [`Error::NoSuchFrame`].
    #[inline]
    pub fn words(&self, mfn: Mfn) -> Result<&[AtomicU64; PAGE_SIZE_BYTES / 8], Error> {
        let at = self.frame(mfn)?;
        // SAFETY: 1. A frame is PAGE_SIZE_BYTES long, aligned to that, and mapped as long as `self`. 2. Others access it by atomics
        // and copies, as `word64` says.
        Ok(unsafe { &*at.cast() })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // SAFETY: 1. `base` and the length are those of `new`. 2. Nobody holds a reference once `self` is dropped.
        unsafe { libc::munmap(self.base.as_ptr().cast(), (self.nr_frames as usize) << PAGE_SHIFT) };
    }
}
