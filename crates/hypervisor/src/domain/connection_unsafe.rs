//! The memory that a dom0 process shares with the hypervisor: one memfd, mapped for the connection's life.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU64};

/// A shared mapping of a whole memfd.
#[derive(Debug)]
pub struct SharedMemory {
    base: NonNull<u8>,
    len: usize,
    _fd: OwnedFd,
}

// SAFETY: 1. `base` points to a mapping that lives until drop. 2. All access is by copy or atomics.
unsafe impl Send for SharedMemory {}
// SAFETY: as above.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    /// Maps `len` bytes of the memfd, which must be at least that long and sealed or trusted not to shrink.
    ///
    /// # Errors
    /// What the host says.
    pub fn map(fd: OwnedFd, len: usize) -> io::Result<Self> {
        let mut stat = std::mem::MaybeUninit::<libc::stat>::zeroed();
        // SAFETY: 1. `fd` is open. 2. `stat` is large enough.
        if unsafe { libc::fstat(fd.as_raw_fd(), stat.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: fstat succeeded and filled it; it was zeroed before.
        let size = unsafe { stat.assume_init() }.st_size;
        if usize::try_from(size).unwrap_or(0) < len || len == 0 {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        // SAFETY: 1. No fixed address. 2. The file is at least `len` long. 3. The result is checked.
        let base = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), len, access, libc::MAP_SHARED, fd.as_raw_fd(), 0)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(Self { base, len, _fd: fd })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    fn at(&self, offset: usize, len: usize) -> Option<*mut u8> {
        let end = offset.checked_add(len)?;
        // SAFETY: `offset <= end <= self.len`: inside the mapping or one past it.
        (end <= self.len).then(|| unsafe { self.base.as_ptr().add(offset) })
    }

    /// Copies out; false when out of range.
    pub fn read(&self, offset: usize, out: &mut [u8]) -> bool {
        let Some(from) = self.at(offset, out.len()) else { return false };
        // SAFETY: 1. `at` checked the range. 2. `out` is ours. 3. The peer may write meanwhile; any bytes are valid.
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

    /// An aligned 64-bit word.
    pub fn word64(&self, offset: usize) -> Option<&AtomicU64> {
        let at = self.at(offset, 8).filter(|_| offset.is_multiple_of(8))?;
        // SAFETY: 1. In range and aligned (the mapping is page-aligned). 2. It outlives `&self`. 3. Access is atomic.
        Some(unsafe { AtomicU64::from_ptr(at.cast()) })
    }

    /// A byte.
    pub fn byte(&self, offset: usize) -> Option<&AtomicU8> {
        let at = self.at(offset, 1)?;
        // SAFETY: as in `word64`.
        Some(unsafe { AtomicU8::from_ptr(at) })
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: 1. `base` and `len` are those of `map`. 2. Nobody holds a reference once `self` is dropped.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// Adds one to an eventfd. A full counter or a closed peer is no error of ours.
pub fn signal(fd: &OwnedFd) {
    let one = 1u64.to_le_bytes();
    // SAFETY: 1. `fd` is open. 2. The buffer is 8 bytes.
    let _ = unsafe { libc::write(fd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
}

/// Receives one packet; its length, 0 at end of file.
///
/// # Errors
/// What the host says.
pub fn receive(fd: &OwnedFd, out: &mut [u8]) -> io::Result<usize> {
    loop {
        // SAFETY: 1. `fd` is open. 2. The buffer is `out`, with its own length.
        let n = unsafe { libc::recv(fd.as_raw_fd(), out.as_mut_ptr().cast(), out.len(), 0) };
        if let Ok(n) = usize::try_from(n) {
            return Ok(n);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Sends one packet.
///
/// # Errors
/// What the host says.
pub fn send(fd: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    loop {
        // SAFETY: 1. `fd` is open. 2. The buffer is `bytes`, with its own length.
        let n = unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) };
        if n >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Ends both directions of a socket, so that a thread blocked on it returns.
pub fn shut_down(fd: &OwnedFd) {
    // SAFETY: `fd` is open; an error means the peer is gone already.
    let _ = unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_RDWR) };
}
