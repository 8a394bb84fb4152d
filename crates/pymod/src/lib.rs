//! `ring3._core`: the hypervisor as Python sees it. Types, conversion and error mapping, and nothing else.
//!
//! python/ring3/_core.pyi is its documentation. The Python lock is released over every call that may wait for a vCPU,
//! a thread or the host.

mod block;
mod block_unsafe;
mod cold;
mod cpu_policy;
mod engines;
mod errors;
mod fd_unsafe;
mod hypervisor;
mod info;
mod lockdown;

use pyo3::prelude::*;

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    // Whoever imports this boots soon: what is imported beside it takes as long as the clock's calibration.
    ring3_hypervisor::time::Clock::begin_calibration();
    let py = module.py();
    module.add("GuestFault", py.get_type::<errors::GuestFault>())?;
    module.add("CoreError", py.get_type::<errors::CoreError>())?;
    module.add("EngineUnavailableError", py.get_type::<errors::EngineUnavailableError>())?;
    module.add_function(wrap_pyfunction!(engines::direct_execution, module)?)?;
    module.add_function(wrap_pyfunction!(lockdown::forbid_files, module)?)?;
    module.add_function(wrap_pyfunction!(lockdown::forbid_syscalls, module)?)?;
    module.add_class::<block::BlockRing>()?;
    module.add_class::<cold::HypercallContext>()?;
    module.add_class::<info::DomainInfo>()?;
    module.add_class::<info::VcpuInfo>()?;
    module.add_class::<hypervisor::Hypervisor>()
}
