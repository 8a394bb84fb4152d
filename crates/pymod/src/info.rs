//! Plain facts for Python.

use pyo3::prelude::*;
use ring3_hypervisor::domain;

/// As much of xen_domctl_getdomaininfo as the core knows.
#[pyclass(frozen, get_all)]
#[derive(Debug)]
pub struct DomainInfo {
    domid: u16,
    flags: u32,
    nr_pages: u64,
    max_pages: u64,
    shared_info_mfn: u64,
    cpu_time_ns: u64,
    nr_online_vcpus: u32,
    max_vcpu_id: u32,
    handle: [u8; 16],
}

impl From<domain::DomainInfo> for DomainInfo {
    fn from(info: domain::DomainInfo) -> Self {
        Self {
            domid: info.domid,
            flags: info.flags,
            nr_pages: info.nr_pages,
            max_pages: info.max_pages,
            shared_info_mfn: info.shared_info_mfn,
            cpu_time_ns: info.cpu_time_ns,
            nr_online_vcpus: info.nr_online_vcpus,
            max_vcpu_id: info.max_vcpu_id,
            handle: info.handle,
        }
    }
}

/// As xen_domctl_getvcpuinfo.
#[pyclass(frozen, get_all)]
#[derive(Debug)]
pub struct VcpuInfo {
    online: bool,
    blocked: bool,
    running: bool,
    cpu_time_ns: u64,
    cpu: u32,
}

impl From<domain::VcpuSummary> for VcpuInfo {
    fn from(info: domain::VcpuSummary) -> Self {
        Self {
            online: info.online,
            blocked: info.blocked,
            running: info.running,
            cpu_time_ns: info.cpu_time_ns,
            cpu: info.cpu,
        }
    }
}
