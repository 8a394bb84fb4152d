//! Python's buffers as shared memory.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use ring3_blkif::Shared;

/// A view of a writable buffer of bytes. Keep the buffer for as long as the view.
///
/// # Errors
/// ValueError for a buffer of another kind.
pub fn view(buffer: &PyBuffer<u8>) -> PyResult<Shared> {
    let base = NonNull::new(buffer.buf_ptr().cast::<u8>());
    match base {
        Some(base) if buffer.is_c_contiguous() && !buffer.readonly() => {
            // SAFETY: 1. While the buffer is exported Python neither frees nor moves it; the caller keeps it. 2. Python's
            // objects have no Rust reference to their bytes.
            Ok(unsafe { Shared::new(base, buffer.len_bytes()) })
        }
        _ => Err(PyValueError::new_err("not a writable buffer of bytes")),
    }
}
