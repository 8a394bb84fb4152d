//! Messages with descriptors over Unix sockets, without allocation: the nursery uses them too.
#![allow(unsafe_code)]

use std::io;
use std::mem::size_of;
use std::os::fd::{FromRawFd, OwnedFd};

/// Most descriptors in one message.
const MAX_FDS: usize = 3;

/// Room for the control message: its header and the descriptors.
#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

const CONTROL_BYTES: usize = 16 + 4 * MAX_FDS + 4;

/// Two connected sockets of a type, close-on-exec.
///
/// # Errors
/// The host's.
pub fn pair(kind: i32) -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0i32; 2];
    // SAFETY: the array has two elements.
    if unsafe { libc::socketpair(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC, 0, ends.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both were just made for us.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

/// Sends `bytes` and descriptors.
///
/// # Errors
/// The host's.
pub fn send(socket: i32, bytes: &[u8], fds: &[i32]) -> io::Result<()> {
    let mut control = Control([0; CONTROL_BYTES]);
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: 1. Zeros are a valid `msghdr`. 2. Every pointer in it is to a local that outlives the call. 3. The control
    // buffer holds `MAX_FDS` descriptors.
    let sent = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut iov;
        message.msg_iovlen = 1;
        let fds = fds.get(..MAX_FDS.min(fds.len())).unwrap_or_default();
        if !fds.is_empty() {
            message.msg_control = (&raw mut control).cast();
            message.msg_controllen = libc::CMSG_SPACE(size_of_val(fds) as u32) as _;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(size_of_val(fds) as u32) as _;
            std::ptr::copy_nonoverlapping(fds.as_ptr().cast::<u8>(), libc::CMSG_DATA(header), size_of_val(fds));
        }
        libc::sendmsg(socket, &raw const message, libc::MSG_NOSIGNAL)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Receives bytes and descriptors (close-on-exec); returns how many of each.
///
/// # Errors
/// The host's.
pub fn receive(socket: i32, bytes: &mut [u8], fds: &mut [i32]) -> io::Result<(usize, usize)> {
    let mut control = Control([0; CONTROL_BYTES]);
    let mut iov = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: as in `send`; the kernel says how much of the control buffer it filled.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut iov;
        message.msg_iovlen = 1;
        message.msg_control = (&raw mut control).cast();
        message.msg_controllen = size_of::<Control>() as _;
        let got = loop {
            let got = libc::recvmsg(socket, &raw mut message, libc::MSG_CMSG_CLOEXEC);
            if got >= 0 {
                break got as usize;
            }
            let error = *libc::__errno_location();
            if error != libc::EINTR {
                return Err(io::Error::from_raw_os_error(error));
            }
        };
        let mut count = 0;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if !header.is_null() && (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
            let sent = ((*header).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize) / size_of::<i32>();
            for index in 0..sent {
                let fd = libc::CMSG_DATA(header).cast::<i32>().add(index).read_unaligned();
                match fds.get_mut(count) {
                    Some(slot) => {
                        *slot = fd;
                        count += 1;
                    }
                    None => {
                        libc::close(fd);
                    }
                }
            }
        }
        Ok((got, count))
    }
}
