//! The lock-down of the process.

use pyo3::prelude::*;
use ring3_abi::errno;
use ring3_lockdown::{Error, Walls};

use crate::errors::refused;

fn to_python(error: &Error) -> PyErr {
    refused(errno::EPERM, &error.to_string())
}

/// Takes the file system from this thread and those it starts. Returns how much of that the host's kernel has.
#[pyfunction]
pub fn forbid_files() -> PyResult<&'static str> {
    // Whoever profiles wants a file that is opened later otherwise.
    ring3_engine_bt::open_perf_map();
    ring3_engine_bt::open_maps();
    match ring3_lockdown::forbid_files() {
        Ok(Walls::Whole) => Ok("whole"),
        Ok(Walls::Partial) => Ok("partial"),
        Ok(Walls::None) => Ok("none"),
        Err(error) => Err(to_python(&error)),
    }
}

/// Takes all but some system calls from every thread.
#[pyfunction]
pub fn forbid_syscalls() -> PyResult<()> {
    ring3_lockdown::forbid_syscalls().map_err(|error| to_python(&error))
}
