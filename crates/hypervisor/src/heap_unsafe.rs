//! The C library's heap, which holds what Rust code allocates.
#![allow(unsafe_code)]

/// Gives memory that was freed back to the host.
pub(crate) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: may be called at any time, by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
