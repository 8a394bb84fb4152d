//! Memory that others write to meanwhile, and transfers between it and files.
#![allow(unsafe_code)]

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

/// Leaf 7 EBX.
const CLFLUSHOPT: u32 = 1 << 23;
const LINE_BYTES: usize = 64;

/// A range of shared memory. Access is by copy, by atomics, or the host kernel's.
#[derive(Debug)]
pub struct Shared {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: 1. Whoever made it keeps the memory mapped for its life. 2. All access is by copy or atomics; any bytes are valid.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// A piece of a transfer: offset in the memory, and bytes.
pub type Piece = (u64, usize);

impl Shared {
    /// A view of `len` bytes at `base`.
    ///
    /// # Safety
    /// 1. The range is mapped, readable and writable, until the view is dropped. 2. No Rust reference to it exists meanwhile.
    pub unsafe fn new(base: NonNull<u8>, len: usize) -> Self {
        Self { base, len }
    }

    /// Two views of memory that is never freed.
    #[cfg(test)]
    pub fn leaked(nr_words: usize) -> (Self, Self) {
        let base = NonNull::from(Box::leak(vec![0u64; nr_words].into_boxed_slice())).cast();
        // SAFETY: 1. Leaked: it is there for ever. 2. The reference was turned into the pointer.
        unsafe { (Self::new(base, nr_words * 8), Self::new(base, nr_words * 8)) }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn at(&self, offset: usize, len: usize) -> Option<*mut u8> {
        let end = offset.checked_add(len)?;
        // SAFETY: `offset <= end <= self.len`: inside the range or one past it.
        (end <= self.len).then(|| unsafe { self.base.as_ptr().add(offset) })
    }

    /// Copies out; false when out of range.
    pub fn read(&self, offset: usize, out: &mut [u8]) -> bool {
        let Some(from) = self.at(offset, out.len()) else { return false };
        // SAFETY: 1. `at` checked the range. 2. `out` is ours. 3. Who writes meanwhile changes bytes; any are valid.
        unsafe { std::ptr::copy_nonoverlapping(from.cast_const(), out.as_mut_ptr(), out.len()) };
        true
    }

    /// Copies in; false when out of range.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> bool {
        let Some(to) = self.at(offset, bytes.len()) else { return false };
        // SAFETY: as in `read`, with the direction turned.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        true
    }

    /// An aligned 32-bit word.
    pub fn word32(&self, offset: usize) -> Option<&AtomicU32> {
        let at = self.at(offset, 4).filter(|at| at.addr().is_multiple_of(4))?;
        // SAFETY: 1. In range and aligned. 2. The memory outlives `&self`. 3. Access is atomic.
        Some(unsafe { AtomicU32::from_ptr(at.cast()) })
    }

    /// An aligned 64-bit word.
    pub fn word64(&self, offset: usize) -> Option<&AtomicU64> {
        let at = self.at(offset, 8).filter(|at| at.addr().is_multiple_of(8))?;
        // SAFETY: as in `word32`.
        Some(unsafe { AtomicU64::from_ptr(at.cast()) })
    }

    /// A byte.
    pub fn byte(&self, offset: usize) -> Option<&AtomicU8> {
        let at = self.at(offset, 1)?;
        // SAFETY: as in `word32`.
        Some(unsafe { AtomicU8::from_ptr(at) })
    }

    /// The vectors of a transfer; None where a piece is out of range.
    fn vectors(&self, pieces: &[Piece]) -> Option<Vec<libc::iovec>> {
        let vector = |&(offset, len): &Piece| {
            let base = self.at(usize::try_from(offset).ok()?, len)?;
            Some(libc::iovec { iov_base: base.cast(), iov_len: len })
        };
        pieces.iter().map(vector).collect()
    }

    /// Takes pieces out of all CPUs' caches, where the CPU can do that without waiting for each line.
    pub fn flush(&self, pieces: &[Piece]) {
        if !has_clflushopt() {
            return;
        }
        for &(offset, len) in pieces {
            let Some(base) = usize::try_from(offset).ok().and_then(|offset| self.at(offset, len)) else { continue };
            for line in (0..len).step_by(LINE_BYTES) {
                // SAFETY: 1. `line < len`: within the range that `at` checked, which is mapped. 2. The CPU has the
                // instruction, which changes no memory.
                unsafe { asm!("clflushopt [{}]", in(reg) base.add(line), options(nostack, preserves_flags)) };
            }
        }
    }

    /// Reads from a file's page cache; the bytes that needed no waiting.
    ///
    /// # Errors
    /// What the host says; EFAULT for a piece out of range.
    pub fn read_cached(&self, file: BorrowedFd<'_>, offset: i64, pieces: &[Piece]) -> io::Result<usize> {
        let vectors = self.vectors(pieces).ok_or_else(|| io::Error::from_raw_os_error(libc::EFAULT))?;
        let count = libc::c_int::try_from(vectors.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: 1. `file` is open. 2. `count` vectors, each within the range. 3. The kernel's writes are others' writes to
        // shared memory, to which no reference exists.
        let done = unsafe { libc::preadv2(file.as_raw_fd(), vectors.as_ptr(), count, offset, libc::RWF_NOWAIT) };
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    /// Writes to a file; the bytes that were written.
    ///
    /// # Errors
    /// As [`Shared::read_cached`].
    pub fn write_file(&self, file: BorrowedFd<'_>, offset: i64, pieces: &[Piece]) -> io::Result<usize> {
        let vectors = self.vectors(pieces).ok_or_else(|| io::Error::from_raw_os_error(libc::EFAULT))?;
        let count = libc::c_int::try_from(vectors.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: as in `read_cached`; the kernel reads here.
        let done = unsafe { libc::pwritev(file.as_raw_fd(), vectors.as_ptr(), count, offset) };
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }
}

fn has_clflushopt() -> bool {
    static HAS: LazyLock<bool> = LazyLock::new(|| __cpuid(0).eax >= 7 && __cpuid_count(7, 0).ebx & CLFLUSHOPT != 0);
    *HAS
}

/// How often this thread has given up its CPU to wait for something.
pub fn nr_waits() -> i64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the structure is large enough.
    let done = unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) };
    // SAFETY: it was zeroed, which is a valid value, and filled if the call succeeded.
    if done == 0 { unsafe { usage.assume_init() }.ru_nvcsw } else { 0 }
}

/// Empties an eventfd that does not block.
pub fn drain(fd: BorrowedFd<'_>) {
    let mut count = [0u8; 8];
    // SAFETY: 1. `fd` is open. 2. The buffer is 8 bytes.
    let _ = unsafe { libc::read(fd.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
}

/// Waits for an epoll set; the names (`epoll_data.fd`, the lower half) of what is ready, at most four of them.
#[allow(clippy::cast_possible_truncation)]
pub fn ready(set: BorrowedFd<'_>, timeout_ms: i32) -> Vec<u32> {
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; 4];
    // SAFETY: 1. `set` is open. 2. The array has room for 4 events.
    let count = unsafe { libc::epoll_wait(set.as_raw_fd(), events.as_mut_ptr(), 4, timeout_ms) };
    events.iter().take(usize::try_from(count).unwrap_or(0)).map(|event| event.u64 as u32).collect()
}

/// Sends a packet if the socket takes it without waiting.
pub fn send_now(socket: BorrowedFd<'_>, packet: &[u8]) -> bool {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: 1. `socket` is open. 2. The buffer is `packet`, with its own length.
    let done = unsafe { libc::send(socket.as_raw_fd(), packet.as_ptr().cast(), packet.len(), flags) };
    usize::try_from(done) == Ok(packet.len())
}

/// Descriptors for tests.
#[cfg(test)]
pub mod test_fds {
    use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

    pub fn eventfd() -> OwnedFd {
        // SAFETY: a new descriptor, which is open if the call succeeded, and nobody else's.
        unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, libc::EFD_NONBLOCK)) }
    }

    pub fn epoll() -> OwnedFd {
        // SAFETY: as in `eventfd`.
        unsafe { OwnedFd::from_raw_fd(libc::epoll_create1(0)) }
    }

    pub fn watch(set: BorrowedFd<'_>, fd: BorrowedFd<'_>, name: u32) {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0xdead << 32 | u64::from(name) };
        // SAFETY: both are open, and the event is there for the call.
        let done = unsafe { libc::epoll_ctl(set.as_raw_fd(), libc::EPOLL_CTL_ADD, fd.as_raw_fd(), &raw mut event) };
        assert_eq!(done, 0);
    }

    pub fn signal(fd: BorrowedFd<'_>) {
        let one = 1u64.to_le_bytes();
        // SAFETY: `fd` is open, and the buffer is 8 bytes.
        assert_eq!(unsafe { libc::write(fd.as_raw_fd(), one.as_ptr().cast(), one.len()) }, 8);
    }
}
