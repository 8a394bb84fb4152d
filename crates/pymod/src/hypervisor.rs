//! The class `Hypervisor`.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use ring3_abi::arch_x86::vcpu_guest_context;
use ring3_abi::errno;
use ring3_hypervisor::domain::{CreateDomain, ExtState};
use ring3_hypervisor::hypercall::{Coverage, Row, WHOLE};
use ring3_hypervisor::time::TscInfo;
use ring3_machine::Mfn;

use crate::cold::PyHandler;
use crate::cpu_policy::{self, Packed};
use crate::errors::{refused, to_python};
use crate::info::{DomainInfo, VcpuInfo};
use crate::{engines, fd_unsafe};

type Core = ring3_hypervisor::Hypervisor;

/// One machine.
#[pyclass(frozen)]
#[derive(Debug)]
pub struct Hypervisor {
    core: Arc<Core>,
}

fn subop_of(number: i64) -> u32 {
    u32::try_from(number).unwrap_or(WHOLE)
}

/// The little-endian u64 array in `raw`.
fn words(raw: &[u8]) -> PyResult<Vec<u64>> {
    let chunks = raw.chunks_exact(8);
    if !chunks.remainder().is_empty() {
        return Err(refused(errno::EINVAL, "length is no multiple of 8"));
    }
    Ok(chunks
        .map(|chunk| {
            let mut word = [0u8; 8];
            word.copy_from_slice(chunk);
            u64::from_le_bytes(word)
        })
        .collect())
}

impl Hypervisor {
    /// Runs `work` without the Python lock.
    fn run<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&Core) -> Result<T, ring3_hypervisor::Error> + Send,
    ) -> PyResult<T> {
        let core = &self.core;
        py.detach(|| work(core)).map_err(|error| to_python(&error))
    }
}

#[pymethods]
impl Hypervisor {
    #[new]
    #[pyo3(signature = (*, nr_frames, nr_pcpus, engine = "bt", archive_fds = Vec::new()))]
    fn new(py: Python<'_>, nr_frames: u64, nr_pcpus: usize, engine: &str, archive_fds: Vec<i32>) -> PyResult<Self> {
        let archives = archive_fds.into_iter().map(fd_unsafe::take);
        let archives = archives.map(|fd| fd.map(File::from)).collect::<Result<_, _>>()?;
        let engine = engines::make(engine, archives)?;
        let core = py.detach(|| Core::new(nr_frames, nr_pcpus, engine)).map_err(|error| to_python(&error))?;
        Ok(Self { core })
    }

    #[staticmethod]
    fn engines() -> Vec<(String, Option<String>)> {
        engines::list()
    }

    fn start(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.core.start()).map_err(|error| to_python(&error))
    }

    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.core.stop());
        // Handlers refer to Python objects that refer to this one.
        self.core.cold.clear();
    }

    #[getter]
    fn memfd(&self) -> i32 {
        self.core.memory.machine.memfd().as_raw_fd()
    }

    #[getter]
    fn nr_frames(&self) -> u64 {
        self.core.memory.machine.nr_frames()
    }

    #[getter]
    fn nr_free_frames(&self, py: Python<'_>) -> u64 {
        py.detach(|| self.core.frames.nr_free_frames())
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
        if self.core.cold.register(op, Arc::new(PyHandler { callable: handler })) {
            Ok(())
        } else {
            Err(refused(errno::EINVAL, "no such hypercall number"))
        }
    }

    fn hypercall_rows(&self) -> Vec<(u32, i64, String, String, String, u64)> {
        let rows = self.core.table.snapshot().into_iter();
        rows.map(|(row, calls)| {
            let subop = if row.subop == WHOLE { -1 } else { i64::from(row.subop) };
            (row.op, subop, row.name, row.coverage.name().to_owned(), row.note, calls)
        })
        .collect()
    }

    fn engine_counters(&self) -> Vec<(&'static str, u64)> {
        self.core.memory.engine.counters()
    }

    fn count_call(&self, op: u32, subop: i64) {
        self.core.table.count(op, subop_of(subop));
    }

    fn add_rows(&self, rows: Vec<(u32, i64, String, String, String)>) -> PyResult<()> {
        for (op, subop, name, coverage, note) in rows {
            let coverage = Coverage::parse(&coverage).ok_or_else(|| refused(errno::EINVAL, "no such coverage"))?;
            self.core.table.add(Row { op, subop: subop_of(subop), name, coverage, note });
        }
        Ok(())
    }

    fn audit(&self, py: Python<'_>) -> Vec<String> {
        py.detach(|| self.core.audit())
    }

    fn give_back(&self, py: Python<'_>) -> (u64, u64) {
        py.detach(|| self.core.give_back_all())
    }

    fn dmesg<'py>(&self, py: Python<'py>) -> (u64, Bound<'py, PyBytes>) {
        let (written, text) = self.core.dmesg.text();
        (written, PyBytes::new(py, &text))
    }

    fn dmesg_write(&self, text: &str) {
        self.core.dmesg.write(text.as_bytes());
    }

    fn serve_connection(&self, py: Python<'_>, sock_fd: i32, connection_fd: i32, upcall_fd: i32) -> PyResult<u32> {
        let take = |fd| fd_unsafe::take(fd).map_err(|error| refused(errno::EBADF, &error.to_string()));
        let (sock, memory, upcall) = (take(sock_fd)?, take(connection_fd)?, take(upcall_fd)?);
        py.detach(|| self.core.serve_connection(sock, memory, upcall)).map_err(|error| to_python(&error))
    }

    #[pyo3(signature = (
        domid, *, flags, max_vcpus, max_event_channels, max_grant_frames, max_maptrack_frames, max_grant_version, handle,
        emulation_flags = 0, misc_flags = 0
    ))]
    #[allow(clippy::too_many_arguments)]
    fn domain_create(
        &self,
        py: Python<'_>,
        domid: u16,
        flags: u32,
        max_vcpus: u32,
        max_event_channels: u32,
        max_grant_frames: u32,
        max_maptrack_frames: u32,
        max_grant_version: u32,
        handle: Vec<u8>,
        emulation_flags: u32,
        misc_flags: u32,
    ) -> PyResult<u16> {
        let handle = handle.try_into().map_err(|_| refused(errno::EINVAL, "a handle has 16 bytes"))?;
        let create = CreateDomain {
            domid,
            flags,
            max_vcpus,
            max_event_channels,
            max_grant_frames,
            max_maptrack_frames,
            max_grant_version,
            handle,
            emulation_flags,
            misc_flags,
        };
        self.run(py, |core| core.domain_create(&create))
    }

    fn domain_list(&self) -> Vec<u16> {
        self.core.domain_list()
    }

    fn domain_info(&self, py: Python<'_>, domid: u16) -> PyResult<DomainInfo> {
        self.run(py, |core| core.domain_info(domid)).map(DomainInfo::from)
    }

    fn domain_set_max_pages(&self, py: Python<'_>, domid: u16, nr_pages: u64) -> PyResult<()> {
        self.run(py, |core| core.domain_set_max_pages(domid, nr_pages))
    }

    fn domain_pause(&self, py: Python<'_>, domid: u16) -> PyResult<()> {
        self.run(py, |core| core.domain_pause(domid))
    }

    fn domain_unpause(&self, py: Python<'_>, domid: u16) -> PyResult<()> {
        self.run(py, |core| core.domain_unpause(domid))
    }

    fn domain_destroy(&self, py: Python<'_>, domid: u16) -> PyResult<()> {
        self.run(py, |core| core.domain_destroy(domid))
    }

    fn domain_shutdown(&self, py: Python<'_>, domid: u16, reason: u32) -> PyResult<()> {
        self.run(py, |core| core.domain_shutdown(domid, reason))
    }

    fn domain_crash_report(&self, py: Python<'_>, domid: u16) -> PyResult<Option<String>> {
        self.run(py, |core| core.domain_crash_report(domid))
    }

    fn vcpu_info(&self, py: Python<'_>, domid: u16, vcpu: u32) -> PyResult<VcpuInfo> {
        self.run(py, |core| core.vcpu_summary(domid, vcpu)).map(VcpuInfo::from)
    }

    fn vcpu_set_context(&self, py: Python<'_>, domid: u16, vcpu: u32, context: &[u8]) -> PyResult<()> {
        let context: vcpu_guest_context = bytemuck::try_pod_read_unaligned(context)
            .map_err(|_| refused(errno::EINVAL, "a vcpu_guest_context has 5168 bytes"))?;
        self.run(py, |core| core.vcpu_set_context(domid, vcpu, &context))
    }

    fn vcpu_get_context<'py>(&self, py: Python<'py>, domid: u16, vcpu: u32) -> PyResult<Bound<'py, PyBytes>> {
        let context = self.run(py, |core| core.vcpu_get_context(domid, vcpu))?;
        Ok(PyBytes::new(py, bytemuck::bytes_of(&context)))
    }

    fn set_tsc_info(
        &self,
        py: Python<'_>,
        domid: u16,
        mode: u32,
        khz: u32,
        incarnation: u32,
        elapsed_ns: u64,
    ) -> PyResult<()> {
        self.run(py, |core| core.set_tsc_info(domid, &TscInfo { mode, khz, incarnation, elapsed_ns }))
    }

    fn tsc_info(&self, py: Python<'_>, domid: u16) -> PyResult<(u32, u32, u32, u64)> {
        let info = self.run(py, |core| core.tsc_info(domid))?;
        Ok((info.mode, info.khz, info.incarnation, info.elapsed_ns))
    }

    fn cpu_policy<'py>(&self, py: Python<'py>, domid: u16) -> PyResult<Packed<'py>> {
        let policy = self.run(py, |core| core.cpu_policy(domid))?;
        Ok(cpu_policy::pack(py, &policy))
    }

    fn machine_cpu_policy<'py>(&self, py: Python<'py>, greatest: bool) -> Packed<'py> {
        let cpus = &self.core.cpuid;
        cpu_policy::pack(py, if greatest { &cpus.max } else { &cpus.host })
    }

    /// `None`, or (errno, leaf, subleaf, MSR) of what was refused.
    fn set_cpu_policy(
        &self,
        py: Python<'_>,
        domid: u16,
        leaves: &[u8],
        msrs: &[u8],
    ) -> PyResult<Option<(i64, u32, u32, u32)>> {
        let (leaves, msrs) = (cpu_policy::unpack_leaves(leaves)?, cpu_policy::unpack_msrs(msrs)?);
        let answer = self.run(py, |core| core.set_cpu_policy(domid, &leaves, &msrs))?;
        Ok(answer.err().map(|refusal| {
            let (leaf, subleaf) = refusal.leaf.unwrap_or((u32::MAX, u32::MAX));
            (refusal.errno, leaf, subleaf, refusal.msr.unwrap_or(u32::MAX))
        }))
    }

    /// XCR0, all bits that it was ever given, and the XSAVE area.
    fn vcpu_ext_state<'py>(&self, py: Python<'py>, domid: u16, vcpu: u32) -> PyResult<(u64, u64, Bound<'py, PyBytes>)> {
        let ext = self.run(py, |core| core.vcpu_ext_state(domid, vcpu))?;
        Ok((ext.xcr0, ext.xcr0_accum, PyBytes::new(py, &ext.area)))
    }

    fn set_vcpu_ext_state(
        &self,
        py: Python<'_>,
        domid: u16,
        vcpu: u32,
        xcr0: u64,
        xcr0_accum: u64,
        area: Vec<u8>,
    ) -> PyResult<()> {
        self.run(py, |core| core.set_vcpu_ext_state(domid, vcpu, &ExtState { xcr0, xcr0_accum, area }))
    }

    fn vcpu_msrs(&self, py: Python<'_>, domid: u16, vcpu: u32) -> PyResult<Vec<(u32, u64)>> {
        self.run(py, |core| core.vcpu_msrs(domid, vcpu))
    }

    fn set_vcpu_msr(&self, py: Python<'_>, domid: u16, vcpu: u32, msr: u32, value: u64) -> PyResult<()> {
        self.run(py, |core| core.set_vcpu_msr(domid, vcpu, msr, value))
    }

    fn set_hypercall_page(&self, py: Python<'_>, domid: u16, mfn: u64) -> PyResult<()> {
        self.run(py, |core| core.set_hypercall_page(domid, Mfn(mfn)))
    }

    fn page_lists(&self, py: Python<'_>, domid: u16, nr_max: usize) -> PyResult<Vec<u64>> {
        self.run(py, |core| core.page_list(domid, nr_max))
    }

    fn page_frame_info<'py>(&self, py: Python<'py>, domid: u16, mfns: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        let mfns: Vec<Mfn> = words(mfns)?.into_iter().map(Mfn).collect();
        let found = self.run(py, |core| core.page_frame_info(domid, &mfns))?;
        Ok(PyBytes::new(py, bytemuck::cast_slice(&found)))
    }

    fn populate_physmap<'py>(&self, py: Python<'py>, domid: u16, pfns: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        let pfns = words(pfns)?;
        let mfns = self.run(py, |core| core.populate(domid, &pfns))?;
        let raw: Vec<u8> = mfns.iter().flat_map(|mfn| mfn.0.to_le_bytes()).collect();
        Ok(PyBytes::new(py, &raw))
    }

    fn decrease_reservation(&self, py: Python<'_>, domid: u16, mfns: &[u8]) -> PyResult<usize> {
        let mfns: Vec<Mfn> = words(mfns)?.into_iter().map(Mfn).collect();
        self.run(py, |core| core.decrease_reservation(domid, &mfns))
    }

    fn m2p(&self) -> (u64, u64) {
        let (first, nr) = self.core.m2p();
        (first.0, nr)
    }
}

impl Drop for Hypervisor {
    fn drop(&mut self) {
        let core = &self.core;
        // Python drops it with its lock held; threads that end may want the lock.
        if Python::try_attach(|py| py.detach(|| core.stop())).is_none() {
            core.stop();
        }
        core.cold.clear();
    }
}
