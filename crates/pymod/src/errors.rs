//! One conversion from the core's errors to Python's classes.

use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use ring3_hypervisor::Error;

create_exception!(ring3._core, GuestFault, PyException, "A guest handle or range that the caller cannot access.");
create_exception!(ring3._core, CoreError, PyException, "The core refused; args are (errno, message).");
create_exception!(
    ring3._core,
    EngineUnavailableError,
    PyException,
    "The engine cannot run here; args are (engine, reason)."
);

/// The Python exception for an error of the core.
pub fn to_python(error: &Error) -> PyErr {
    if let Error::Engine(ring3_engine::Error::Unavailable { engine, reason }) = error {
        return EngineUnavailableError::new_err(((*engine).to_owned(), reason.clone()));
    }
    CoreError::new_err((error.errno(), error.to_string()))
}

/// A refusal of the seam itself.
pub fn invalid(message: impl Into<String>) -> PyErr {
    CoreError::new_err((ring3_abi::errno::EINVAL, message.into()))
}
