//! Cold hypercalls: Python functions behind the core's handler trait.

use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use ring3_abi::errno;
use ring3_hypervisor::hypercall::{ColdContext, ColdHandler};

use crate::errors::GuestFault;

/// Most bytes that one copy moves: no hypercall of the ABI needs more.
const MAX_COPY_BYTES: usize = 16 << 20;

/// Who calls, and access to its memory. Valid only during the handler.
#[pyclass(frozen)]
#[derive(Debug)]
pub struct HypercallContext {
    context: ColdContext,
    is_over: AtomicBool,
}

impl HypercallContext {
    fn check(&self, handle: u64, len: usize) -> PyResult<()> {
        if self.is_over.load(Ordering::SeqCst) {
            return Err(GuestFault::new_err("the hypercall is over"));
        }
        if len > MAX_COPY_BYTES {
            return Err(GuestFault::new_err(format!("{len} bytes at {handle:#x} are too many for one copy")));
        }
        Ok(())
    }
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
        self.check(handle, nr_bytes)?;
        PyBytes::new_with(py, nr_bytes, |out| {
            if self.context.read(handle, out) {
                Ok(())
            } else {
                Err(GuestFault::new_err(format!("cannot read {nr_bytes} bytes at {handle:#x}")))
            }
        })
    }

    fn write(&self, py: Python<'_>, handle: u64, data: Vec<u8>) -> PyResult<()> {
        self.check(handle, data.len())?;
        // A write to translated code waits for vCPUs, and one of them may wait for the Python lock.
        if py.detach(|| self.context.write(handle, &data)) {
            Ok(())
        } else {
            Err(GuestFault::new_err(format!("cannot write {} bytes at {handle:#x}", data.len())))
        }
    }
}

/// A Python function that answers one hypercall number.
#[derive(Debug)]
pub struct PyHandler {
    pub callable: Py<PyAny>,
}

impl ColdHandler for PyHandler {
    fn call(&self, context: &ColdContext, args: &[u64; 5]) -> i64 {
        let [a1, a2, a3, a4, a5] = *args;
        // None: the interpreter is going down.
        Python::try_attach(|py| {
            let context = HypercallContext { context: context.clone(), is_over: AtomicBool::new(false) };
            let result = Bound::new(py, context).and_then(|context| {
                let result = self.callable.bind(py).call1((&context, a1, a2, a3, a4, a5));
                context.get().is_over.store(true, Ordering::SeqCst);
                result?.extract::<i64>()
            });
            result.unwrap_or_else(|error| failure(py, &error, self.callable.bind(py)))
        })
        .unwrap_or(-errno::EAGAIN)
    }
}

/// Error number of an exception that a handler let through.
fn failure(py: Python<'_>, error: &PyErr, callable: &Bound<'_, PyAny>) -> i64 {
    if error.is_instance_of::<GuestFault>(py) {
        return -errno::EFAULT;
    }
    let value = error.value(py);
    let is_hypercall_error = value.get_type().name().is_ok_and(|name| name == "HypercallError");
    if is_hypercall_error
        && let Ok(number) = value.getattr("errno").and_then(|number| number.extract::<i64>())
        && number > 0
    {
        return -number;
    }
    error.clone_ref(py).write_unraisable(py, Some(callable));
    -errno::EINVAL
}
