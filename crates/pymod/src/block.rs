//! The quick path of a disk, for its back end.

use std::os::fd::OwnedFd;
use std::time::Duration;

use parking_lot::Mutex;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use ring3_blkif::{Disk, End, Layout, Notice, Ring};

use crate::block_unsafe::view;
use crate::fd_unsafe::duplicate;

/// The ring, and what keeps its memory there.
struct Open {
    ring: Ring,
    _buffers: [PyBuffer<u8>; 3],
}

#[pyclass(frozen, module = "ring3._core")]
pub struct BlockRing {
    open: Mutex<Option<Open>>,
}

fn dup(fd: i32) -> PyResult<OwnedFd> {
    duplicate(fd).map_err(|error| PyOSError::new_err((error.raw_os_error(), error.to_string())))
}

#[pymethods]
impl BlockRing {
    #[new]
    fn new(
        machine: PyBuffer<u8>,
        page: PyBuffer<u8>,
        journal: PyBuffer<u8>,
        slot_bytes: usize,
        image_fd: i32,
        notice: Option<(i32, Vec<u8>)>,
        look_max_ns: u64,
    ) -> PyResult<Self> {
        let layout = Layout::of_slot_bytes(slot_bytes).ok_or_else(|| PyValueError::new_err("slot_bytes"))?;
        let notice = match notice {
            Some((fd, packet)) => Some(Notice { socket: dup(fd)?, packet }),
            None => None,
        };
        let views = [view(&machine)?, view(&page)?, view(&journal)?];
        let ring = Ring::new(views, layout, dup(image_fd)?, notice, Duration::from_nanos(look_max_ns))
            .ok_or_else(|| PyValueError::new_err("sizes that do not fit"))?;
        Ok(Self { open: Mutex::new(Some(Open { ring, _buffers: [machine, page, journal] })) })
    }

    fn hold(&self, gref: u32, address: u64) {
        if let Some(open) = self.open.lock().as_mut() {
            open.ring.hold(gref, address);
        }
    }

    fn serve(
        &self,
        py: Python<'_>,
        index: u32,
        nr_sectors: u64,
        may_write: bool,
        nr_indirect_max: usize,
        may_look: bool,
    ) -> PyResult<(u32, bool, &'static str, u64)> {
        let disk = Disk { nr_sectors, may_write, nr_indirect_max, may_look };
        let served = py.detach(|| self.open.lock().as_mut().map(|open| open.ring.serve(index, disk)));
        let served = served.ok_or_else(|| PyValueError::new_err("closed"))?;
        let end = match served.end {
            End::Empty => "empty",
            End::Other => "other",
            End::More => "more",
        };
        let waited_ns = u64::try_from(served.waited.as_nanos()).unwrap_or(u64::MAX);
        Ok((served.index, served.wants_event, end, waited_ns))
    }

    fn close(&self) {
        *self.open.lock() = None;
    }
}
