//! A domain's life: creation, pause, shutdown, crash, destruction. Facts about it are in `info`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use ring3_abi::arch_x86::{XEN_X86_EMU_PIT, XEN_X86_MSR_RELAXED, vcpu_guest_context};
use ring3_abi::errno;
use ring3_abi::sched::{SHUTDOWN_MAX, SHUTDOWN_crash};
use ring3_abi::xen::{DOMID_FIRST_RESERVED, VIRQ_DOM_EXC, XEN_LEGACY_MAX_VCPUS};
use ring3_engine::{Config, GuestMode};
use ring3_machine::Mfn;

use super::tsc::new_tsc;
use super::{Domain, Life, MAX_VCPUS, Platform};
use crate::cpuid::Cpus;
use crate::evtchn::EventTable;
use crate::gnttab::{GrantTable, Maptrack};
use crate::hypervisor::{Error, Hypervisor};
use crate::memory::Memory;
use crate::mm::DomainMm;
use crate::time::Clock;
use crate::vcpu::{InfoArea, Vcpu};

/// What a new domain is to be.
#[derive(Clone, Debug)]
pub struct CreateDomain {
    /// 0: the next free one.
    pub domid: u16,
    pub flags: u32,
    pub max_vcpus: u32,
    pub max_event_channels: u32,
    pub max_grant_frames: u32,
    pub max_maptrack_frames: u32,
    /// Greatest version of the grant table that the guest may choose, 1 or 2.
    pub max_grant_version: u32,
    pub handle: [u8; 16],
    /// XEN_X86_EMU_*.
    pub emulation_flags: u32,
    /// XEN_X86_MSR_RELAXED.
    pub misc_flags: u32,
}

/// Domain 0's back ends share a map track of this size: half a million mappings.
const DOM0_MAPTRACK_FRAMES: u32 = 2048;

fn mm_error(error: crate::mm::Error) -> Error {
    Error::refused(-error.errno(), error.to_string())
}

impl Hypervisor {
    pub(crate) fn make_dom0(memory: &Memory, clock: &Clock, cpus: &Cpus) -> Result<Arc<Domain>, Error> {
        Ok(Arc::new(Domain {
            domid: 0,
            is_privileged: true,
            flags: 0,
            handle: [0; 16],
            mm: DomainMm::new(&memory.frames, 0, 0).map_err(mm_error)?,
            memory: memory.clone(),
            shared_info: Mfn(0),
            spare_info: Vec::new(),
            vcpus: Vec::new(),
            engine: None,
            connections: RwLock::new(BTreeMap::new()),
            evtchn: EventTable::new(u32::MAX),
            gnttab: Mutex::new(GrantTable::new(0, 1)),
            maptrack: Mutex::new(Maptrack::new(DOM0_MAPTRACK_FRAMES)),
            vm_assist: AtomicU64::new(0),
            pause: Arc::new(AtomicU32::new(0)),
            life: Mutex::new(Life::default()),
            is_dying: AtomicBool::new(false),
            crash_report: Mutex::new(None),
            memory_map: Mutex::new(Vec::new()),
            is_msr_relaxed: false,
            tsc: Mutex::new(new_tsc(clock)),
            cpu_policy: RwLock::new(Arc::clone(&cpus.max)),
            platform: Mutex::new(Platform::default()),
            nr_polling: AtomicU32::new(0),
        }))
    }

    fn choose_domid(&self, wanted: u16) -> Result<u16, Error> {
        if wanted >= DOMID_FIRST_RESERVED {
            return Err(Error::refused(errno::EINVAL, format!("domid {wanted} is reserved")));
        }
        if wanted != 0 {
            return if self.domain(wanted).is_none() {
                Ok(wanted)
            } else {
                Err(Error::refused(errno::EEXIST, format!("domain {wanted} exists")))
            };
        }
        let nr = u32::from(DOMID_FIRST_RESERVED) - 1;
        let first = self.next_domid.load(Ordering::SeqCst);
        for step in 0..nr {
            let candidate = u16::try_from((first - 1 + step) % nr + 1).unwrap_or(1);
            if self.domain(candidate).is_none() {
                self.next_domid.store(u32::from(candidate) % nr + 1, Ordering::SeqCst);
                return Ok(candidate);
            }
        }
        Err(Error::refused(errno::ENOMEM, "no free domid"))
    }

    /// Creates a domain without memory; it is paused, and its vCPUs are offline until they get a context.
    ///
    /// # Errors
    /// EEXIST, EINVAL, ENOMEM as [`Error::Refused`]; the engine's.
    pub fn domain_create(&self, create: &CreateDomain) -> Result<u16, Error> {
        if create.max_vcpus == 0 || create.max_vcpus > MAX_VCPUS {
            return Err(Error::refused(
                errno::EINVAL,
                format!("{} vCPUs; 1 to {MAX_VCPUS} possible", create.max_vcpus),
            ));
        }
        let domid = self.choose_domid(create.domid)?;
        let mm = DomainMm::new(&self.frames, domid, 0).map_err(mm_error)?;
        let shared_info = self.frames.alloc_shared(domid).map_err(mm_error)?;
        #[allow(clippy::cast_possible_truncation, reason = "a small constant")]
        let legacy = XEN_LEGACY_MAX_VCPUS as u32;
        let nr_spare = create.max_vcpus.saturating_sub(legacy).div_ceil(64);
        let spare_info =
            (0..nr_spare).map(|_| self.frames.alloc_shared(domid)).collect::<Result<Vec<_>, _>>().map_err(mm_error)?;
        let machine = &self.memory.machine;
        crate::time::write_wall_clock(machine, &self.clock, shared_info);
        let engine = self.memory.engine.create_domain(machine)?;
        let config = Config { xcr0: crate::cpuid::XCR0 };
        let cpus = (0..create.max_vcpus).map(|id| engine.create_vcpu(id, &config)).collect::<Result<Vec<_>, _>>()?;
        let pause = Arc::new(AtomicU32::new(1));
        let now = self.clock.now_ns();
        let tsc = new_tsc(&self.clock);
        let domain = Arc::new_cyclic(|weak| {
            let vcpus = (0u32..).zip(cpus).map(|(id, cpu)| {
                let maddr = Domain::initial_info(shared_info, &spare_info, id);
                let info = InfoArea::new(Arc::clone(machine), maddr);
                info.set_upcall_mask(true);
                let (mfn, offset) = info.place();
                crate::time::write_time_info(machine, &self.clock, &tsc, mfn, offset + crate::vcpu::INFO_TIME);
                let uid = self.next_vcpu_uid.fetch_add(1, Ordering::Relaxed);
                Arc::new(Vcpu::new(id, uid, weak.clone(), cpu, info, Arc::clone(&pause), now))
            });
            Domain {
                domid,
                is_privileged: false,
                flags: create.flags,
                handle: create.handle,
                mm,
                memory: Memory { is_shared: create.max_vcpus > 1, ..self.memory.clone() },
                shared_info,
                vcpus: vcpus.collect(),
                engine: Some(Arc::clone(&engine)),
                spare_info: spare_info.clone(),
                connections: RwLock::new(BTreeMap::new()),
                evtchn: EventTable::new(create.max_event_channels),
                gnttab: Mutex::new(GrantTable::new(create.max_grant_frames, create.max_grant_version)),
                maptrack: Mutex::new(Maptrack::new(create.max_maptrack_frames)),
                vm_assist: AtomicU64::new(0),
                pause: Arc::clone(&pause),
                life: Mutex::new(Life { controller_pauses: 1, ..Life::default() }),
                is_dying: AtomicBool::new(false),
                crash_report: Mutex::new(None),
                memory_map: Mutex::new(Vec::new()),
                tsc: Mutex::new(tsc),
                cpu_policy: RwLock::new(Arc::clone(&self.cpuid.max)),
                is_msr_relaxed: create.misc_flags & XEN_X86_MSR_RELAXED != 0,
                platform: Mutex::new(Platform::new(create.emulation_flags & XEN_X86_EMU_PIT != 0)),
                nr_polling: AtomicU32::new(0),
            }
        });
        domain.vcpus.iter().for_each(|vcpu| vcpu.state.lock().set_policy(&self.cpuid.max));
        // As Xen: a table has its first frame from the start, for what the toolstack grants in the guest's name.
        let _ = domain.gnttab.lock().grow(&self.frames, domid, 0);
        self.domains.write().insert(domid, domain);
        Ok(domid)
    }

    pub(crate) fn guest(&self, domid: u16) -> Result<Arc<Domain>, Error> {
        let found = if domid == 0 { None } else { self.domain(domid) };
        found.ok_or_else(|| Error::refused(errno::ESRCH, format!("no domain {domid}")))
    }

    pub(crate) fn guest_vcpu(&self, domid: u16, vcpu: u32) -> Result<(Arc<Domain>, Arc<Vcpu>), Error> {
        let domain = self.guest(domid)?;
        let vcpu = domain.vcpu(vcpu).cloned();
        let vcpu = vcpu.ok_or_else(|| Error::refused(errno::ENOENT, "no such vCPU"))?;
        Ok((domain, vcpu))
    }

    /// Sets the limit of a domain's reservation; domain 0's is 0 until somebody raises it.
    ///
    /// # Errors
    /// ESRCH.
    pub fn domain_set_max_pages(&self, domid: u16, nr_pages: u64) -> Result<(), Error> {
        let domain = self.domain(domid);
        let domain = domain.ok_or_else(|| Error::refused(errno::ESRCH, format!("no domain {domid}")))?;
        domain.mm.set_max_pages(nr_pages);
        Ok(())
    }

    /// MFNs of a domain's reservation, at most `nr_max`.
    ///
    /// # Errors
    /// ESRCH.
    pub fn page_list(&self, domid: u16, nr_max: usize) -> Result<Vec<u64>, Error> {
        Ok(self.guest(domid)?.mm.page_list(nr_max).into_iter().map(|mfn| mfn.0).collect())
    }

    /// One zeroed frame for each of `pfns`; fewer when the reservation or the machine is exhausted.
    ///
    /// # Errors
    /// ESRCH.
    pub fn populate(&self, domid: u16, pfns: &[u64]) -> Result<Vec<Mfn>, Error> {
        let mut mfns = Vec::with_capacity(pfns.len());
        self.guest(domid)?.mm.populate(pfns, &mut mfns);
        Ok(mfns)
    }

    /// Gives up frames; returns how many.
    ///
    /// # Errors
    /// ESRCH.
    pub fn decrease_reservation(&self, domid: u16, mfns: &[Mfn]) -> Result<usize, Error> {
        Ok(self.guest(domid)?.mm.decrease_reservation(mfns))
    }

    /// Pauses a domain; returns once none of its vCPUs runs. Pauses count.
    ///
    /// # Errors
    /// ESRCH.
    pub fn domain_pause(&self, domid: u16) -> Result<(), Error> {
        let domain = self.guest(domid)?;
        domain.life.lock().controller_pauses += 1;
        domain.pause.fetch_add(1, Ordering::SeqCst);
        domain.vcpus.iter().for_each(|vcpu| self.sched.sync_deschedule(vcpu));
        self.unfold_all(&domain);
        Ok(())
    }

    /// Undoes one pause.
    ///
    /// # Errors
    /// ESRCH; EINVAL if it was not paused.
    pub fn domain_unpause(&self, domid: u16) -> Result<(), Error> {
        let domain = self.guest(domid)?;
        {
            let mut life = domain.life.lock();
            if life.controller_pauses == 0 {
                return Err(Error::refused(errno::EINVAL, format!("domain {domid} is not paused")));
            }
            life.controller_pauses -= 1;
            life.has_run |= life.controller_pauses == 0;
            if life.controller_pauses == 0
                && let Some(engine) = &domain.engine
            {
                // Whoever paused it may have written to its code, by a mapping that nobody knows of.
                engine.forget_code();
            }
        }
        self.unpause(&domain);
        Ok(())
    }

    pub(crate) fn unpause(&self, domain: &Domain) {
        if domain.pause.fetch_sub(1, Ordering::SeqCst) == 1 {
            domain.vcpus.iter().for_each(|vcpu| self.sched.enqueue(vcpu, self));
        }
    }

    /// Makes a vCPU's context with it off its pCPU.
    ///
    /// # Errors
    /// ESRCH, ENOENT, EINVAL.
    pub fn vcpu_set_context(&self, domid: u16, vcpu: u32, context: &vcpu_guest_context) -> Result<(), Error> {
        let (domain, vcpu) = self.guest_vcpu(domid, vcpu)?;
        self.with_paused(&domain, || {
            let mut state = vcpu.state.lock();
            super::apply_context(self.m2p(), &domain, &vcpu, &mut state, context)
                .map_err(|number| Error::refused(number, "invalid vCPU context"))?;
            let is_online = context.flags & ring3_abi::arch_x86::VGCF_online != 0 || vcpu.id == 0;
            vcpu.online.store(is_online, Ordering::SeqCst);
            Ok(())
        })
    }

    /// A vCPU's context.
    ///
    /// # Errors
    /// ESRCH, ENOENT; ENODATA if it has none yet.
    pub fn vcpu_get_context(&self, domid: u16, vcpu: u32) -> Result<vcpu_guest_context, Error> {
        let (domain, vcpu) = self.guest_vcpu(domid, vcpu)?;
        if !vcpu.is_initialised.load(Ordering::SeqCst) {
            return Err(Error::refused(errno::ENODATA, "the vCPU has no context"));
        }
        self.with_paused(&domain, || Ok(super::capture_context(&domain, &vcpu, &mut vcpu.state.lock())))
    }

    pub(crate) fn with_paused<T>(&self, domain: &Domain, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        domain.pause.fetch_add(1, Ordering::SeqCst);
        domain.vcpus.iter().for_each(|vcpu| self.sched.sync_deschedule(vcpu));
        let result = work();
        self.unpause(domain);
        result
    }

    /// Shuts a domain down: its vCPUs stop, and domain 0 is told. The first reason stays.
    pub fn shutdown_domain(&self, domain: &Domain, reason: u32) {
        {
            let mut life = domain.life.lock();
            if life.shutdown.is_some() {
                return;
            }
            life.shutdown = Some(life.shutdown_code.unwrap_or(reason) & 0xff);
            domain.pause.fetch_add(1, Ordering::SeqCst);
        }
        domain.vcpus.iter().for_each(|vcpu| self.sched.preempt(vcpu));
        self.send_global_virq(VIRQ_DOM_EXC);
    }

    /// Shuts a domain down from outside.
    ///
    /// # Errors
    /// ESRCH, EINVAL for a reason that there is not.
    pub fn domain_shutdown(&self, domid: u16, reason: u32) -> Result<(), Error> {
        let domain = self.guest(domid)?;
        if reason > SHUTDOWN_MAX {
            return Err(Error::refused(errno::EINVAL, format!("no shutdown reason {reason}")));
        }
        self.shutdown_domain(&domain, reason);
        Ok(())
    }

    /// Stops a domain that cannot go on, and keeps the report.
    pub(crate) fn crash_domain(&self, domain: &Domain, reason: &str, report: Option<String>) {
        let report = report.unwrap_or_else(|| format!("domain {} crashed: {reason}\n", domain.domid));
        self.dmesg.log(&report);
        domain.crash_report.lock().get_or_insert(report);
        self.shutdown_domain(domain, SHUTDOWN_crash);
    }

    /// The report of a crash, if the domain crashed by our doing.
    ///
    /// # Errors
    /// ESRCH.
    pub fn domain_crash_report(&self, domid: u16) -> Result<Option<String>, Error> {
        Ok(self.guest(domid)?.crash_report.lock().clone())
    }

    /// Destroys a domain and gives back frames, ports and timers; returns when all is free.
    ///
    /// # Errors
    /// ESRCH.
    pub fn domain_destroy(&self, domid: u16) -> Result<(), Error> {
        let domain = self.guest(domid)?;
        if domain.is_dying.swap(true, Ordering::SeqCst) {
            return Err(Error::refused(errno::ESRCH, format!("domain {domid} is being destroyed")));
        }
        let _destroy = self.destroy.lock();
        domain.pause.fetch_add(1, Ordering::SeqCst);
        for vcpu in &domain.vcpus {
            self.sched.sync_deschedule(vcpu);
            self.timers.disarm_all(vcpu);
        }
        self.evtchn_reset(&domain, &|| false);
        for vcpu in &domain.vcpus {
            self.release_vcpu(&domain, vcpu);
        }
        if let Some(mfn) = domain.life.lock().eoi_map.take() {
            domain.mm.put_writable(mfn);
        }
        self.release_mappings(&domain, 0);
        domain.gnttab.lock().clear();
        let nr_left = domain.mm.teardown();
        if nr_left > 0 {
            self.dmesg.log(&format!("domain {domid}: {nr_left} frames are still held by others"));
        }
        self.domains.write().remove(&domid);
        self.dmesg.forget(domid);
        self.send_global_virq(VIRQ_DOM_EXC);
        Ok(())
    }

    /// Drops the references that a stopped vCPU holds.
    fn release_vcpu(&self, domain: &Domain, vcpu: &Vcpu) {
        let mut state = vcpu.state.lock();
        self.frames.drain_all(&mut state.long);
        for mode in [GuestMode::User, GuestMode::Kernel] {
            domain.mm.put_root(state.root(mode));
            super::context::set_root(&mut state, domain, (Mfn(0), 0), mode, Mfn(0));
        }
        let nr_gdt = state.gdt_ents.div_ceil(512) as usize;
        domain.mm.put_gdt(state.gdt_frames.get(..nr_gdt).unwrap_or_default());
        state.gdt_ents = 0;
        state.set_ldt(&domain.mm, 0, 0);
        if vcpu.info.is_registered() {
            let (mfn, _) = vcpu.info.place();
            vcpu.info.reset(Domain::initial_info(domain.shared_info, &domain.spare_info, vcpu.id));
            domain.mm.put_writable(mfn);
        }
        vcpu.online.store(false, Ordering::SeqCst);
    }

    /// Fills a frame of a domain with its hypercall stubs: 128 slots of 32 bytes, slot n is hypercall n.
    ///
    /// # Errors
    /// ESRCH; EINVAL if the frame is not the domain's, or is in use as a table.
    pub fn set_hypercall_page(&self, domid: u16, mfn: Mfn) -> Result<(), Error> {
        let domain = self.guest(domid)?;
        domain.mm.get_writable(mfn).map_err(mm_error)?;
        self.memory.write_frame(mfn, 0, &crate::hypercall::page_image());
        domain.mm.put_writable(mfn);
        Ok(())
    }
}
