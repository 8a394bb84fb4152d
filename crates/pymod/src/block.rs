//! The quick path of a disk, for its back end.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use parking_lot::Mutex;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use ring3_blkif::{Bell, Disk, End, Events, Layout, Notice, Ring, Wait};

use crate::block_unsafe::view;
use crate::fd_unsafe::duplicate;

/// The ring, and what keeps its memory there.
struct Open {
    ring: Ring,
    nr_indirect_max: usize,
    events: Option<(Events, OwnedFd)>,
    _buffers: Vec<PyBuffer<u8>>,
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
        memory: (PyBuffer<u8>, PyBuffer<u8>, PyBuffer<u8>),
        slot_bytes: usize,
        nr_indirect_max: usize,
        image_fd: i32,
        notice: Option<(i32, Vec<u8>, Vec<u8>)>,
        events: Option<(PyBuffer<u8>, i32, i32, u32, usize)>,
        look_max_ns: u64,
    ) -> PyResult<Self> {
        let layout = Layout::of_slot_bytes(slot_bytes).ok_or_else(|| PyValueError::new_err("slot_bytes"))?;
        let notice = match notice {
            Some((fd, packet, lazy_packet)) => {
                let bell = match &events {
                    Some((memory, _, _, port, bells_at)) => Bell::new(view(memory)?, *bells_at, *port),
                    None => None,
                };
                Some(Notice { socket: dup(fd)?, packet, lazy_packet, bell })
            }
            None => None,
        };
        let (machine, page, journal) = memory;
        let views = [view(&machine)?, view(&page)?, view(&journal)?];
        let ring = Ring::new(views, layout, dup(image_fd)?, notice, Duration::from_nanos(look_max_ns))
            .ok_or_else(|| PyValueError::new_err("sizes that do not fit"))?;
        let mut buffers = vec![machine, page, journal];
        let events = match events {
            Some((memory, upcall_fd, set_fd, port, _)) => {
                let upcall_name = u32::try_from(upcall_fd).map_err(|_| PyValueError::new_err("upcall_fd"))?;
                let shared_info = view(&memory)?;
                buffers.push(memory);
                Some((Events { shared_info, upcall: dup(upcall_fd)?, upcall_name, port }, dup(set_fd)?))
            }
            None => None,
        };
        Ok(Self { open: Mutex::new(Some(Open { ring, nr_indirect_max, events, _buffers: buffers })) })
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
        idle_ms: u64,
    ) -> PyResult<(u32, bool, &'static str, u64, Vec<u32>)> {
        let served = py.detach(|| {
            self.open.lock().as_mut().map(|Open { ring, nr_indirect_max, events, .. }| {
                let disk = Disk { nr_sectors, may_write, nr_indirect_max: *nr_indirect_max, may_look: idle_ms != 0 };
                let time = Duration::from_millis(idle_ms);
                let wait = events.as_ref().map(|(events, set)| Wait { events, set: set.as_fd(), time });
                ring.serve(index, disk, wait.filter(|_| idle_ms != 0))
            })
        });
        let served = served.ok_or_else(|| PyValueError::new_err("closed"))?;
        let end = match served.end {
            End::Empty => "empty",
            End::Other => "other",
            End::More => "more",
        };
        let waited_ns = u64::try_from(served.waited.as_nanos()).unwrap_or(u64::MAX);
        Ok((served.index, served.wants_event, end, waited_ns, served.ports))
    }

    fn close(&self) {
        *self.open.lock() = None;
    }
}
