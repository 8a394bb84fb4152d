//! The engines that are built in, by name.

use std::fs::File;
use std::sync::Arc;

use pyo3::prelude::*;
use ring3_engine::Engine;
use ring3_engine_bt::{BtEngine, Options};
use ring3_machine::Machine;

use crate::errors::{EngineUnavailableError, to_python};

/// (name, reason why it is unavailable or None) of every engine.
pub fn list() -> Vec<(String, Option<String>)> {
    let reason = match BtEngine::new() {
        Ok(_) => None,
        Err(ring3_engine::Error::Unavailable { reason, .. }) => Some(reason),
        Err(error) => Some(error.to_string()),
    };
    vec![("bt".to_owned(), reason)]
}

/// Why user code does not run directly on this host, or None.
#[pyfunction]
pub fn direct_execution(py: Python<'_>) -> Option<String> {
    let check = || match Machine::new(1) {
        Ok(machine) => ring3_engine_bt::check_direct(&machine).err(),
        Err(error) => Some(error.to_string()),
    };
    py.detach(check)
}

/// Makes an engine, which may keep translations in `archives`.
pub fn make(name: &str, archives: Vec<File>) -> Result<Arc<dyn Engine>, PyErr> {
    let options = Options { archives, ..Options::from_environment() };
    match name {
        "bt" => Ok(Arc::new(BtEngine::with_options(options).map_err(|error| to_python(&error.into()))?)),
        _ => Err(EngineUnavailableError::new_err((name.to_owned(), "no such engine"))),
    }
}
