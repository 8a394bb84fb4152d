//! The C library's heap, which holds what Rust code allocates.
#![allow(unsafe_code)]

/// Has all threads allocate from one heap, which grows by more than a page at a time: the C library's heaps for further threads
/// have the host change a protection for each page, while others wait for the address space. Called before there are threads.
pub(crate) fn share_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives memory that was freed back to the host.
pub(crate) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: may be called at any time, by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
