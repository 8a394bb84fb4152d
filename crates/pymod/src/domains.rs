//! Domains and their memory.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use ring3_abi::arch_x86::vcpu_guest_context;
use ring3_hypervisor::Error;
use ring3_hypervisor::domain::{CreateDomain, Domain};
use ring3_machine::Mfn;

use crate::errors;
use crate::hypervisor::Hypervisor;
use crate::records::{DomainInfo, VcpuInfo};

fn check<T>(result: Result<T, Error>) -> PyResult<T> {
    result.map_err(|error| errors::to_python(&error))
}

/// Words of an array of u64 in bytes.
fn words(bytes: &[u8]) -> PyResult<Vec<u64>> {
    if !bytes.len().is_multiple_of(8) {
        return Err(errors::invalid(format!("{} bytes are no array of u64", bytes.len())));
    }
    Ok(bytes.chunks_exact(8).map(|word| word.try_into().map_or(0, u64::from_le_bytes)).collect())
}

impl Hypervisor {
    /// A domain other than 0.
    fn guest(&self, domid: u16) -> PyResult<Arc<Domain>> {
        let found = if domid == 0 { None } else { self.core.domain(domid) };
        found.ok_or_else(|| errors::CoreError::new_err((ring3_abi::errno::ESRCH, format!("no domain {domid}"))))
    }
}

#[pymethods]
impl Hypervisor {
    #[pyo3(signature = (domid, *, flags, max_vcpus, max_event_channels, max_grant_frames, handle))]
    #[allow(clippy::too_many_arguments)]
    fn domain_create(
        &self,
        py: Python<'_>,
        domid: u16,
        flags: u32,
        max_vcpus: u32,
        max_event_channels: u32,
        max_grant_frames: u32,
        handle: &[u8],
    ) -> PyResult<u16> {
        let handle = handle.try_into().map_err(|_| errors::invalid("a handle of other than 16 bytes"))?;
        let create = CreateDomain { domid, flags, max_vcpus, max_event_channels, max_grant_frames, handle };
        check(py.detach(|| self.core.domain_create(&create)))
    }

    fn domain_list(&self) -> Vec<u16> {
        self.core.domain_list()
    }

    fn domain_info(&self, py: Python<'_>, domid: u16) -> PyResult<DomainInfo> {
        Ok(DomainInfo::new(py, &check(self.core.domain_info(domid))?))
    }

    fn domain_set_max_pages(&self, domid: u16, nr_pages: u64) -> PyResult<()> {
        self.guest(domid)?.mm.set_max_pages(nr_pages);
        Ok(())
    }

    fn domain_pause(&self, py: Python<'_>, domid: u16) -> PyResult<()> {
        check(py.detach(|| self.core.domain_pause(domid)))
    }

    fn domain_unpause(&self, py: Python<'_>, domid: u16) -> PyResult<()> {
        check(py.detach(|| self.core.domain_unpause(domid)))
    }

    fn domain_destroy(&self, py: Python<'_>, domid: u16) -> PyResult<()> {
        check(py.detach(|| self.core.domain_destroy(domid)))
    }

    fn domain_shutdown(&self, py: Python<'_>, domid: u16, reason: u32) -> PyResult<()> {
        check(py.detach(|| self.core.domain_shutdown(domid, reason)))
    }

    fn domain_crash_report(&self, domid: u16) -> PyResult<Option<String>> {
        check(self.core.domain_crash_report(domid))
    }

    fn vcpu_info(&self, domid: u16, vcpu: u32) -> PyResult<VcpuInfo> {
        Ok(check(self.core.vcpu_summary(domid, vcpu))?.into())
    }

    fn vcpu_set_context(&self, py: Python<'_>, domid: u16, vcpu: u32, context: &[u8]) -> PyResult<()> {
        let wanted = size_of::<vcpu_guest_context>();
        let context = bytemuck::try_pod_read_unaligned::<vcpu_guest_context>(context)
            .map_err(|_| errors::invalid(format!("a vCPU context of {} bytes; it has {wanted}", context.len())))?;
        let context = Box::new(context);
        check(py.detach(|| self.core.vcpu_set_context(domid, vcpu, &context)))
    }

    fn vcpu_get_context<'py>(&self, py: Python<'py>, domid: u16, vcpu: u32) -> PyResult<Bound<'py, PyBytes>> {
        let context = check(py.detach(|| self.core.vcpu_get_context(domid, vcpu).map(Box::new)))?;
        Ok(PyBytes::new(py, bytemuck::bytes_of(&*context)))
    }

    fn set_hypercall_page(&self, py: Python<'_>, domid: u16, mfn: u64) -> PyResult<()> {
        check(py.detach(|| self.core.set_hypercall_page(domid, Mfn(mfn))))
    }

    fn page_lists(&self, py: Python<'_>, domid: u16, nr_max: usize) -> PyResult<Vec<u64>> {
        let domain = self.guest(domid)?;
        let frames = py.detach(|| domain.mm.page_list(nr_max));
        Ok(frames.into_iter().map(|mfn| mfn.0).collect())
    }

    fn populate_physmap<'py>(&self, py: Python<'py>, domid: u16, pfns: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        let pfns = words(pfns)?;
        let domain = self.guest(domid)?;
        let mut mfns = Vec::with_capacity(pfns.len());
        py.detach(|| domain.mm.populate(&pfns, &mut mfns));
        let bytes: Vec<u8> = mfns.iter().flat_map(|mfn| mfn.0.to_le_bytes()).collect();
        Ok(PyBytes::new(py, &bytes))
    }

    fn decrease_reservation(&self, py: Python<'_>, domid: u16, mfns: &[u8]) -> PyResult<usize> {
        let mfns: Vec<Mfn> = words(mfns)?.into_iter().map(Mfn).collect();
        let domain = self.guest(domid)?;
        Ok(py.detach(|| domain.mm.decrease_reservation(&mfns)))
    }

    fn m2p(&self) -> (u64, u64) {
        let (first, nr) = self.core.m2p();
        (first.0, nr)
    }
}
