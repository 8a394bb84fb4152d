//! Python's classes for what the core refuses, and the one conversion to them.

use pyo3::PyErr;
use pyo3::exceptions::PyException;
use ring3_hypervisor::Error;

pyo3::create_exception!(_core, GuestFault, PyException, "A guest handle or range that the caller cannot access.");
pyo3::create_exception!(_core, CoreError, PyException, "The core refused; args are (errno, message).");
pyo3::create_exception!(_core, EngineUnavailableError, PyException, "args are (engine, reason).");

/// Converts an error of the core.
pub fn to_python(error: &Error) -> PyErr {
    match error {
        Error::Engine(ring3_engine::Error::Unavailable { engine, reason }) => {
            EngineUnavailableError::new_err((*engine, reason.clone()))
        }
        _ => CoreError::new_err((error.errno(), error.to_string())),
    }
}

/// A refusal that is found here.
pub fn refused(errno: i64, message: &str) -> PyErr {
    CoreError::new_err((errno, message.to_owned()))
}
