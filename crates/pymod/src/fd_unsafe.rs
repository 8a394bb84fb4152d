//! Descriptors that Python hands over for good.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

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
