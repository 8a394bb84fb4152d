//! Descriptors that Python hands over for good, or shares.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Takes ownership of a descriptor number, after a look that it is open.
///
/// # Errors
/// EBADF.
pub fn take(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: a system call with no pointers.
    if fd < 0 || unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: 1. It is open. 2. The stub says that the caller gives it up.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes another descriptor of the same open file.
///
/// # Errors
/// What the host says.
pub fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: used for the one call, which answers EBADF if it is not open.
    unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()
}
