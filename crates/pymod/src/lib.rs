//! The PyO3 seam: types, conversion, error mapping, and nothing else. Its documentation is `python/ring3/_core.pyi`.
//!
//! The Python lock is released while anything runs or may block; cold handlers take it for the time of their call.

mod cold;
mod domains;
mod engines;
mod errors;
mod hypervisor;
mod records;

use pyo3::prelude::*;

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("GuestFault", py.get_type::<errors::GuestFault>())?;
    module.add("CoreError", py.get_type::<errors::CoreError>())?;
    module.add("EngineUnavailableError", py.get_type::<errors::EngineUnavailableError>())?;
    module.add_class::<cold::HypercallContext>()?;
    module.add_class::<records::DomainInfo>()?;
    module.add_class::<records::VcpuInfo>()?;
    module.add_class::<hypervisor::Hypervisor>()
}
