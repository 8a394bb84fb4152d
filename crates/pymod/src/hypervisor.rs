//! The machine: life, hypercall table, console ring, connections.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use ring3_hypervisor as core;
use ring3_hypervisor::hypercall::{Coverage, Row, WHOLE};

use crate::cold::PythonHandler;
use crate::{engines, errors};

/// A row for Python: number, sub-op or -1, name, coverage, note, calls.
type RowTuple = (u32, i64, String, String, String, u64);

/// See the stub.
#[pyclass(frozen)]
#[derive(Debug)]
pub struct Hypervisor {
    pub(crate) core: Arc<core::Hypervisor>,
}

#[pymethods]
impl Hypervisor {
    #[new]
    #[pyo3(signature = (*, nr_frames, nr_pcpus, engine = "bt"))]
    fn new(py: Python<'_>, nr_frames: u64, nr_pcpus: usize, engine: &str) -> PyResult<Self> {
        let engine = engines::make(engine)?;
        let made = py.detach(|| core::Hypervisor::new(nr_frames, nr_pcpus, engine));
        Ok(Self { core: made.map_err(|error| errors::to_python(&error))? })
    }

    #[staticmethod]
    fn engines() -> Vec<(String, Option<String>)> {
        engines::list()
    }

    fn start(&self) -> PyResult<()> {
        self.core.start().map_err(|error| errors::to_python(&error))
    }

    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.core.stop());
        // Handlers may hold references to this object.
        self.core.cold.clear();
    }

    #[getter]
    fn memfd(&self) -> RawFd {
        self.core.memory.machine.memfd().as_raw_fd()
    }

    #[getter]
    fn nr_frames(&self) -> u64 {
        self.core.memory.machine.nr_frames()
    }

    #[getter]
    fn nr_free_frames(&self) -> u64 {
        self.core.frames.nr_free_frames()
    }

    #[getter]
    fn nr_pcpus(&self) -> usize {
        self.core.nr_pcpus()
    }

    #[getter]
    fn uptime_ns(&self) -> u64 {
        self.core.clock.now_ns()
    }

    fn register_cold(&self, op: u32, handler: Py<PyAny>) -> PyResult<()> {
        if self.core.cold.register(op, Arc::new(PythonHandler::new(handler))) {
            Ok(())
        } else {
            Err(errors::invalid(format!("no hypercall number {op}")))
        }
    }

    fn hypercall_rows(&self) -> Vec<RowTuple> {
        let rows = self.core.table.snapshot();
        rows.into_iter()
            .map(|(row, calls)| {
                let subop = if row.subop == WHOLE { -1 } else { i64::from(row.subop) };
                (row.op, subop, row.name, row.coverage.name().to_owned(), row.note, calls)
            })
            .collect()
    }

    fn count_call(&self, op: u32, subop: i64) {
        self.core.table.count(op, subop_number(subop));
    }

    #[allow(clippy::needless_pass_by_value)]
    fn add_rows(&self, rows: Vec<(u32, i64, String, String, String)>) -> PyResult<()> {
        for (op, subop, name, coverage, note) in rows {
            let coverage = Coverage::parse(&coverage)
                .ok_or_else(|| errors::invalid(format!("{name}: no coverage called {coverage:?}")))?;
            self.core.table.add(Row { op, subop: subop_number(subop), name, coverage, note });
        }
        Ok(())
    }

    fn dmesg<'py>(&self, py: Python<'py>) -> (u64, Bound<'py, PyBytes>) {
        let (total, text) = self.core.dmesg.text();
        (total, PyBytes::new(py, &text))
    }

    fn dmesg_write(&self, text: &str) {
        self.core.dmesg.write(text.as_bytes());
    }

    fn serve_connection(&self, py: Python<'_>, sock_fd: RawFd, connection_fd: RawFd, upcall_fd: RawFd) -> PyResult<u32> {
        let [sock, memory, upcall] = take_descriptors([sock_fd, connection_fd, upcall_fd])?;
        let served = py.detach(|| self.core.serve_connection(sock, memory, upcall));
        served.map_err(|error| errors::to_python(&error))
    }
}

fn subop_number(subop: i64) -> u32 {
    u32::try_from(subop).unwrap_or(WHOLE)
}

/// Takes over descriptors from Python, which detached them.
#[allow(unsafe_code)]
fn take_descriptors(numbers: [RawFd; 3]) -> PyResult<[OwnedFd; 3]> {
    // SAFETY: F_GETFD only asks about the number.
    if numbers.iter().any(|&fd| unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0) {
        return Err(errors::invalid("a descriptor that is not open"));
    }
    // SAFETY: 1. All are open. 2. By the stub's contract the caller gives them up with this call.
    Ok(numbers.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }))
}
