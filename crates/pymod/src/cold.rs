//! Cold hypercalls: Python handlers behind the hypervisor's trait.

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use ring3_abi::errno;
use ring3_hypervisor::hypercall::{ColdContext, ColdHandler};

use crate::errors::{self, GuestFault};

/// Longest copy that a handler may ask for: more than any structure or array of the ABI takes.
const MAX_COPY_BYTES: usize = 64 << 20;

/// See the stub.
#[pyclass(frozen)]
#[derive(Debug)]
pub struct HypercallContext {
    context: ColdContext,
}

#[pymethods]
impl HypercallContext {
    #[getter]
    fn domid(&self) -> u16 {
        self.context.domid
    }

    #[getter]
    fn vcpu(&self) -> u32 {
        self.context.vcpu
    }

    #[getter]
    fn is_privileged(&self) -> bool {
        self.context.is_privileged
    }

    fn read<'py>(&self, py: Python<'py>, handle: u64, nr_bytes: usize) -> PyResult<Bound<'py, PyBytes>> {
        if nr_bytes > MAX_COPY_BYTES {
            return Err(GuestFault::new_err(format!("a copy of {nr_bytes:#x} bytes")));
        }
        PyBytes::new_with(py, nr_bytes, |out| {
            if self.context.read(handle, out) { Ok(()) } else { Err(fault(handle, nr_bytes)) }
        })
    }

    fn write(&self, handle: u64, data: &[u8]) -> PyResult<()> {
        if self.context.write(handle, data) { Ok(()) } else { Err(fault(handle, data.len())) }
    }
}

fn fault(handle: u64, len: usize) -> PyErr {
    GuestFault::new_err(format!("guest range {handle:#x}+{len:#x}"))
}

/// A Python callable as a handler.
#[derive(Debug)]
pub struct PythonHandler {
    callable: Py<PyAny>,
}

impl PythonHandler {
    pub fn new(callable: Py<PyAny>) -> Self {
        Self { callable }
    }
}

impl ColdHandler for PythonHandler {
    fn call(&self, context: &ColdContext, args: &[u64; 5]) -> i64 {
        Python::attach(|py| {
            let result = Py::new(py, HypercallContext { context: context.clone() })
                .and_then(|context| {
                    let [a1, a2, a3, a4, a5] = *args;
                    self.callable.call1(py, (context, a1, a2, a3, a4, a5))
                })
                .and_then(|value| value.extract::<i64>(py));
            match result {
                Ok(value) => value,
                Err(error) if error.is_instance_of::<GuestFault>(py) => -errno::EFAULT,
                Err(error) if error.is_instance_of::<errors::CoreError>(py) => -core_errno(py, &error),
                Err(error) => {
                    // A bug of ours in a handler: to the log with its traceback; the caller is refused.
                    error.write_unraisable(py, Some(self.callable.bind(py)));
                    -errno::EINVAL
                }
            }
        })
    }
}

/// The number in a `CoreError`.
fn core_errno(py: Python<'_>, error: &PyErr) -> i64 {
    error.value(py).getattr("args").and_then(|args| args.get_item(0)).and_then(|n| n.extract()).unwrap_or(errno::EINVAL)
}
