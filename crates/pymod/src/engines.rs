//! The engines that are built in, by name.

use std::sync::Arc;

use pyo3::prelude::*;
use ring3_engine::Engine;

use crate::errors;

/// Name, and how to make one.
type Entry = (&'static str, fn() -> Result<Arc<dyn Engine>, ring3_engine::Error>);

const ENGINES: [Entry; 1] = [("bt", || Ok(Arc::new(ring3_engine_bt::BtEngine::new()?)))];

/// Makes the engine called `name`.
pub fn make(name: &str) -> PyResult<Arc<dyn Engine>> {
    let Some((_, make)) = ENGINES.iter().find(|(known, _)| *known == name) else {
        let known: Vec<_> = ENGINES.iter().map(|(known, _)| *known).collect();
        let reason = format!("no such engine; there is {}", known.join(", "));
        return Err(errors::EngineUnavailableError::new_err((name.to_owned(), reason)));
    };
    make().map_err(|error| errors::to_python(&error.into()))
}

/// Every engine, with the reason why it cannot run here.
pub fn list() -> Vec<(String, Option<String>)> {
    ENGINES
        .iter()
        .map(|(name, make)| {
            let reason = match make() {
                Ok(_) => None,
                Err(ring3_engine::Error::Unavailable { reason, .. }) => Some(reason),
                Err(error) => Some(error.to_string()),
            };
            ((*name).to_owned(), reason)
        })
        .collect()
}
