//! Domains: what a domain owns, beside its vCPUs' own state.

mod connection;
mod connection_unsafe;
mod context;
mod cpu_policy;
mod crash;
mod doorbell;
mod ext_state;
mod foreign;
mod info;
mod lifecycle;
mod platform;
mod tsc;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use ring3_engine::DomainEngine;
use ring3_machine::Mfn;

pub use connection::{Connection, ConnectionError};
pub(crate) use context::{apply as apply_context, capture as capture_context, set_root};
pub(crate) use crash::crash_report;
pub use ext_state::{ExtState, MOVED_MSRS};
pub use info::{DomainInfo, VcpuSummary};
pub use lifecycle::CreateDomain;
pub use platform::Platform;

use crate::cpuid::Policy;
use crate::evtchn::EventTable;
use crate::gnttab::{GrantTable, Maptrack};
use crate::memory::Memory;
use crate::mm::DomainMm;
use crate::time::GuestTsc;
use crate::vcpu::Vcpu;

/// Largest number of vCPUs of a domain.
pub const MAX_VCPUS: u32 = 128;

/// One domain. Domain 0 has connections in place of vCPUs.
#[derive(Debug)]
pub struct Domain {
    pub domid: u16,
    pub is_privileged: bool,
    /// XEN_DOMCTL_CDF_*.
    pub flags: u32,
    pub handle: [u8; 16],
    pub mm: DomainMm,
    /// Guest memory by virtual address.
    pub memory: Memory,
    /// Frame of `shared_info`; frame 0 for domain 0, whose connections have one each.
    pub shared_info: Mfn,
    /// Stand-in frames for the `vcpu_info` of vCPUs past the 32 in `shared_info`.
    pub spare_info: Vec<Mfn>,
    pub vcpus: Vec<Arc<Vcpu>>,
    /// What the vCPUs share in the engine; none of domain 0, which has no vCPU.
    pub engine: Option<Arc<dyn DomainEngine>>,
    pub connections: RwLock<BTreeMap<u32, Arc<Connection>>>,
    pub evtchn: EventTable,
    /// What this domain grants.
    pub gnttab: Mutex<GrantTable>,
    /// What it maps of other domains' grants.
    pub maptrack: Mutex<Maptrack>,
    /// Bits by VMASST_TYPE_*.
    pub vm_assist: AtomicU64,
    /// Shared with the vCPUs: sum of the toolstack's pauses, shutdown and dying.
    pub pause: Arc<AtomicU32>,
    pub life: Mutex<Life>,
    pub is_dying: AtomicBool,
    pub crash_report: Mutex<Option<String>>,
    /// E820 entries of 20 bytes that the toolstack set (XENMEM_set_memory_map).
    pub memory_map: Mutex<Vec<u8>>,
    /// XEN_X86_MSR_RELAXED.
    pub is_msr_relaxed: bool,
    /// What it reads as TSC.
    pub tsc: Mutex<GuestTsc>,
    /// What its vCPUs show of themselves; see [`Domain::policy`].
    cpu_policy: RwLock<Arc<Policy>>,
    /// Ports.
    pub platform: Mutex<Platform>,
    /// Number of vCPUs in `SCHEDOP_poll`.
    pub nr_polling: AtomicU32,
}

/// The slow-changing part of a domain's life.
#[derive(Clone, Copy, Debug, Default)]
pub struct Life {
    /// Pauses by the toolstack that were not undone yet.
    pub controller_pauses: u32,
    /// It was unpaused once: what it is made of is settled.
    pub has_run: bool,
    /// SHUTDOWN_* once it shut down.
    pub shutdown: Option<u32>,
    /// SCHEDOP_shutdown_code, for a later remote shutdown.
    pub shutdown_code: Option<u32>,
    /// SCHEDOP_watchdog: bit 0 for timer 1, bit 1 for timer 2.
    pub watchdogs: u8,
    /// PHYSDEVOP_pirq_eoi_gmfn_v2: a frame of the guest's that is held.
    pub eoi_map: Option<Mfn>,
    /// PHYSDEVOP_get_free_pirq: numbers that were handed out, a bit each.
    pub taken_pirqs: u64,
}

impl Domain {
    /// Whether a VMASST_TYPE_* is enabled.
    pub fn has_assist(&self, assist: u32) -> bool {
        self.vm_assist.load(Ordering::Relaxed) & (1u64 << (assist & 63)) != 0
    }

    /// What its vCPUs show of themselves.
    pub fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.cpu_policy.read())
    }

    /// The vCPU with this id.
    pub fn vcpu(&self, id: u32) -> Option<&Arc<Vcpu>> {
        self.vcpus.get(id as usize)
    }

    /// Machine address of the `vcpu_info` that vCPU `id` starts with.
    pub(crate) fn initial_info(shared_info: Mfn, spare: &[Mfn], id: u32) -> u64 {
        #[allow(clippy::cast_possible_truncation, reason = "a small constant")]
        let legacy = ring3_abi::xen::XEN_LEGACY_MAX_VCPUS as u32;
        if id < legacy {
            return shared_info.address() + u64::from(id) * 64;
        }
        let index = id - legacy;
        spare.get((index / 64) as usize).map_or(0, |mfn| mfn.address() + u64::from(index % 64) * 64)
    }
}
