//! A small domain with page tables, and ways to make its hypercalls without threads.

use std::sync::Arc;

use ring3_abi::arch_x86::{FLAT_RING3_CS64, FLAT_RING3_SS64, VGCF_in_kernel, VGCF_online, vcpu_guest_context};
use ring3_engine::pte;
use ring3_machine::Mfn;

use super::double::{DoubleEngine, Scripts};
use crate::Hypervisor;
use crate::domain::{CreateDomain, Domain};
use crate::vcpu::bounce::Running;

/// Linear address of the first page; page n of the domain is mapped at `BASE + n * 4096`.
pub const BASE: u64 = 0x10_0000;
/// Pages of the domain; the last four are its tables.
pub const NR_PAGES: u64 = 32;
/// Top of the kernel stack, and of the stack in use.
pub const KERNEL_SP: u64 = BASE + 4 * 4096;
pub const SP: u64 = BASE + 8 * 4096;
/// A page for hypercall arguments.
pub const ARGS: u64 = BASE + 10 * 4096;

pub struct Guest {
    pub hv: Arc<Hypervisor>,
    pub domid: u16,
    pub mfns: Vec<Mfn>,
}

/// A machine without domains.
pub fn machine() -> (Arc<Hypervisor>, Scripts) {
    machine_of(4096)
}

/// As [`machine`], with as many frames.
pub fn machine_of(nr_frames: u64) -> (Arc<Hypervisor>, Scripts) {
    let engine = DoubleEngine::default();
    let scripts = engine.scripts.clone();
    (Hypervisor::new(nr_frames, 2, Arc::new(engine)).unwrap(), scripts)
}

pub fn create(max_vcpus: u32) -> CreateDomain {
    CreateDomain {
        domid: 0,
        flags: 0,
        max_vcpus,
        max_event_channels: 1023,
        max_grant_frames: 4,
        max_maptrack_frames: 1,
        max_grant_version: 2,
        handle: [7; 16],
        emulation_flags: 0,
        misc_flags: 0,
    }
}

/// Builds a domain of `NR_PAGES` pages in a machine: tables at the end, mapped read-only.
pub fn build(hv: &Arc<Hypervisor>, max_vcpus: u32) -> Guest {
    build_as(hv, &create(max_vcpus))
}

/// As [`build`], of a domain with settings of its own.
pub fn build_as(hv: &Arc<Hypervisor>, create: &CreateDomain) -> Guest {
    let domid = hv.domain_create(create).unwrap();
    hv.domain_set_max_pages(domid, NR_PAGES).unwrap();
    let pfns: Vec<u64> = (0..NR_PAGES).collect();
    let mfns = hv.populate(domid, &pfns).unwrap();
    assert_eq!(mfns.len() as u64, NR_PAGES);
    let table = |level: u64| mfns[(NR_PAGES - level) as usize];
    let put = |mfn: Mfn, index: usize, entry: u64| {
        hv.memory.machine.write(mfn, index * 8, &entry.to_le_bytes()).unwrap();
    };
    for level in 2..=4u64 {
        put(table(level), 0, table(level - 1).address() | pte::PRESENT | pte::RW | pte::USER);
    }
    for (page, mfn) in mfns.iter().enumerate() {
        let rw = if (page as u64) < NR_PAGES - 4 { pte::RW } else { 0 };
        put(table(1), (BASE / 4096) as usize + page, mfn.address() | pte::PRESENT | pte::USER | rw);
    }
    let guest = Guest { hv: hv.clone(), domid, mfns };
    hv.vcpu_set_context(domid, 0, &guest.context()).unwrap();
    guest
}

/// One machine, one domain, one vCPU.
pub fn guest() -> Guest {
    let (hv, _) = machine();
    build(&hv, 1)
}

impl Guest {
    pub fn root(&self) -> Mfn {
        self.mfns[(NR_PAGES - 4) as usize]
    }

    pub fn context(&self) -> vcpu_guest_context {
        let mut context: vcpu_guest_context = bytemuck::Zeroable::zeroed();
        context.flags = VGCF_in_kernel | VGCF_online;
        context.user_regs.rip = BASE;
        context.user_regs.rsp = SP;
        context.user_regs.cs = FLAT_RING3_CS64;
        context.user_regs.ss = FLAT_RING3_SS64;
        context.user_regs.rflags = 0x202;
        context.kernel_sp = KERNEL_SP;
        context.kernel_ss = u64::from(FLAT_RING3_SS64);
        context.ctrlreg[3] = self.root().address();
        context
    }

    pub fn domain(&self) -> Arc<Domain> {
        self.hv.domain(self.domid).unwrap()
    }

    /// Runs `work` as the worker of vCPU 0 would.
    pub fn with<T>(&self, work: impl FnOnce(&mut Running<'_>) -> T) -> T {
        let domain = self.domain();
        let vcpu = domain.vcpu(0).unwrap();
        let mut state = vcpu.state.lock();
        work(&mut Running { hv: &self.hv, domain: &domain, vcpu, state: &mut state })
    }

    /// Makes a hypercall of vCPU 0.
    pub fn call(&self, op: u32, args: &[u64]) -> i64 {
        let mut all = [0u64; 6];
        all[..args.len()].copy_from_slice(args);
        self.with(|running| crate::hypercall::dispatch_guest(running, u64::from(op), &all))
    }

    pub fn write<T: bytemuck::Pod>(&self, va: u64, value: &T) {
        self.with(|r| r.domain.memory.write(&r.state.kernel_space(), va, bytemuck::bytes_of(value)).unwrap());
    }

    pub fn read<T: bytemuck::Pod>(&self, va: u64) -> T {
        let mut value = T::zeroed();
        self.with(|r| r.domain.memory.read(&r.state.kernel_space(), va, bytemuck::bytes_of_mut(&mut value)).unwrap());
        value
    }

    /// First frame of the domain's grant table.
    pub fn table_frame(&self) -> Mfn {
        let domain = self.domain();
        let table = domain.gnttab.lock();
        table.frames()[0]
    }
}
