//! One random hypercall of each kind.

use ring3_abi::event_channel::*;
use ring3_abi::grant_table::*;
use ring3_abi::hypercall::*;
use ring3_abi::memory::*;
use ring3_abi::vcpu::*;
use ring3_abi::xen::*;

use super::Place;
use super::random::Random;

/// A hypercall, and what lies at its first handle.
#[derive(Clone, Debug, Default)]
pub struct Call {
    pub op: u32,
    pub args: [u64; 6],
    pub memory: Vec<u8>,
}

impl Call {
    fn new(op: u32, args: &[u64]) -> Self {
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        Self { op, args: all, memory: Vec::new() }
    }

    /// The sub-op, where there is one.
    pub fn kind(&self) -> u64 {
        match self.op {
            __HYPERVISOR_event_channel_op | __HYPERVISOR_grant_table_op | __HYPERVISOR_vcpu_op => self.args[0] & 63,
            __HYPERVISOR_memory_op => self.args[0] & 63,
            __HYPERVISOR_mmuext_op => self.memory.first().copied().unwrap_or(0).into(),
            _ => 0,
        }
    }

    fn with<T: bytemuck::Pod>(mut self, value: &T) -> Self {
        self.memory.extend_from_slice(bytemuck::bytes_of(value));
        self
    }
}

/// Bytes of a structure as 32-bit words.
fn words(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|&value| ((value & 0xffff_ffff) as u32).to_le_bytes()).collect()
}

pub fn random(r: &mut Random, place: &Place<'_>) -> Call {
    match r.below(100) {
        0..=19 => mmu_update(r, place),
        20..=29 => update_va_mapping(r, place),
        30..=47 => mmuext(r, place),
        48..=57 => event_channel(r, place),
        58..=75 => grant(r, place),
        76..=80 => memory(r, place),
        81..=85 => vcpu(r, place),
        86..=88 => descriptors(r, place),
        89..=92 => multicall(r, place),
        93..=96 => small(r, place),
        _ => anything(r, place),
    }
}

fn foreign(r: &mut Random, place: &Place<'_>) -> u64 {
    let pages = u64::from(if r.one_in(4) { r.domid(place) } else { DOMID_SELF });
    let tables = if r.one_in(12) { u64::from(r.domid(place)) + 1 } else { 0 };
    pages | tables << 16
}

/// An array of `count` requests: sometimes more are claimed than there are.
fn count(r: &mut Random, real: u64) -> u64 {
    match r.below(16) {
        0 => real + r.below(200),
        1 => real | u64::from(MMU_UPDATE_PREEMPTED),
        2 => r.number() & 0x3ff,
        _ => real,
    }
}

pub fn mmu_update(r: &mut Random, place: &Place<'_>) -> Call {
    let nr = 1 + r.below(3);
    let pdone = if r.one_in(3) { r.handle(place) } else { 0 };
    let mut call = Call::new(__HYPERVISOR_mmu_update, &[place.args, count(r, nr), pdone, foreign(r, place)]);
    for _ in 0..nr {
        let command = r.pick(&[0, 0, 0, 2, 1, 3, 4, 7]);
        call = call.with(&mmu_update { ptr: (r.maddr(place) & !7) | command, val: r.entry(place) });
    }
    call
}

fn update_va_mapping(r: &mut Random, place: &Place<'_>) -> Call {
    let flags = r.pick(&[0, UVMF_INVLPG, UVMF_TLB_FLUSH, UVMF_INVLPG | UVMF_ALL, place.args | UVMF_TLB_FLUSH, 3]);
    let (va, entry) = (r.va(place), r.entry(place));
    if r.one_in(4) {
        let domid = u64::from(r.domid(place));
        return Call::new(__HYPERVISOR_update_va_mapping_otherdomain, &[va, entry, flags, domid]);
    }
    Call::new(__HYPERVISOR_update_va_mapping, &[va, entry, flags])
}

pub fn mmuext(r: &mut Random, place: &Place<'_>) -> Call {
    let nr = 1 + r.below(3);
    let pdone = if r.one_in(3) { r.handle(place) } else { 0 };
    let mut call = Call::new(__HYPERVISOR_mmuext_op, &[place.args, count(r, nr), pdone, foreign(r, place)]);
    for _ in 0..nr {
        let cmd = if r.one_in(3) { r.small(5) } else { r.small(22) };
        let arg1 = match cmd {
            MMUEXT_INVLPG_LOCAL | MMUEXT_INVLPG_MULTI | MMUEXT_INVLPG_ALL | MMUEXT_SET_LDT => r.va(place),
            _ if r.one_in(16) => r.number(),
            _ => r.mfn(place).0,
        };
        let arg2 = match cmd {
            MMUEXT_COPY_PAGE => r.mfn(place).0,
            MMUEXT_SET_LDT => r.below(600),
            _ => r.handle(place),
        };
        call = call.with(&mmuext_op { cmd, arg1, arg2, ..Default::default() });
    }
    call
}

pub fn event_channel(r: &mut Random, place: &Place<'_>) -> Call {
    let cmd = r.small(16);
    let port = |r: &mut Random| if r.one_in(12) { r.number() } else { r.below(24) };
    let vcpu = |r: &mut Random| if r.one_in(8) { r.number() } else { r.below(2) };
    let pair = |r: &mut Random| u64::from(r.domid(place)) | u64::from(r.domid(place)) << 16;
    let values: Vec<u64> = match cmd {
        EVTCHNOP_bind_interdomain => vec![u64::from(r.domid(place)), port(r), 0],
        EVTCHNOP_bind_virq => vec![if r.one_in(2) { r.below(2) } else { r.below(26) }, vcpu(r), 0],
        EVTCHNOP_bind_vcpu => vec![port(r), vcpu(r)],
        EVTCHNOP_bind_ipi => vec![vcpu(r), 0],
        EVTCHNOP_alloc_unbound => vec![pair(r), 0],
        // dom, then the port.
        EVTCHNOP_status => vec![u64::from(r.domid(place)), port(r), 0, 0, 0, 0],
        EVTCHNOP_reset | EVTCHNOP_reset_cont if !r.one_in(8) => vec![u64::from(place.peer.domid)],
        EVTCHNOP_reset | EVTCHNOP_reset_cont => vec![u64::from(r.domid(place))],
        // control_gfn (64 bits), offset, vcpu.
        EVTCHNOP_init_control => vec![r.mfn(place).0, 0, r.pick(&[0, 8, 64, 4032, 4088, 4]), vcpu(r), 0, 0],
        EVTCHNOP_expand_array => vec![r.mfn(place).0, 0],
        EVTCHNOP_set_priority => vec![port(r), r.below(18)],
        _ => vec![port(r), 0, 0],
    };
    let mut call = Call::new(__HYPERVISOR_event_channel_op, &[u64::from(cmd), place.args]);
    call.memory = words(&values);
    call
}

pub fn grant(r: &mut Random, place: &Place<'_>) -> Call {
    let cmd = if r.one_in(4) { r.small(13) } else { r.pick(&[0, 0, 0, 1, 1, 4, 5, 7]) };
    let gref = |r: &mut Random| if r.one_in(16) { r.number() } else { r.below(12) };
    let handle =
        |r: &mut Random| u32::try_from(if r.one_in(16) { r.number() & 0xffff_ffff } else { r.below(8) }).unwrap();
    let nr = 1 + r.below(2);
    let mut call = Call::new(__HYPERVISOR_grant_table_op, &[u64::from(cmd), place.args, count(r, nr) & 0xff]);
    let domid = |r: &mut Random| if r.one_in(6) { r.domid(place) } else { place.peer.domid };
    for _ in 0..nr {
        call = match cmd {
            GNTTABOP_map_grant_ref => {
                let flags = r.pick(&[2, 2, 6, 3, 1, 7, 0x12, 0x16, 0x0a, 0, 0x003f_0002]);
                let is_pte = flags & GNTMAP_contains_pte != 0;
                let host_addr = if is_pte { r.maddr(place) } else { r.va(place) & !0xfff };
                let gref = (gref(r) & 0xffff_ffff) as u32;
                call.with(&gnttab_map_grant_ref { host_addr, flags, r#ref: gref, dom: domid(r), ..Default::default() })
            }
            GNTTABOP_unmap_grant_ref => {
                let host_addr = if r.one_in(3) { r.maddr(place) } else { r.va(place) & !0xfff };
                let dev_bus_addr = if r.one_in(2) { r.mfn(place).address() } else { 0 };
                call.with(&gnttab_unmap_grant_ref { host_addr, dev_bus_addr, handle: handle(r), ..Default::default() })
            }
            GNTTABOP_copy => {
                let ptr = |r: &mut Random, is_gref: bool| gnttab_copy_ptr {
                    u: if is_gref { gref(r) } else { r.mfn(place).0 },
                    domid: if is_gref { domid(r) } else { DOMID_SELF },
                    offset: r.pick(&[0, 8, 512, 4095, 4096, u16::MAX]),
                    ..Default::default()
                };
                let flags = r.pick(&[1, 2, 3, 0, 3, 7]);
                let (source, dest) = (ptr(r, flags & GNTCOPY_source_gref != 0), ptr(r, flags & GNTCOPY_dest_gref != 0));
                let len = r.pick(&[0, 8, 16, 4096, 4095, u16::MAX]);
                call.with(&gnttab_copy { source, dest, len, flags, ..Default::default() })
            }
            GNTTABOP_transfer => {
                let gref = (gref(r) & 0xffff_ffff) as u32;
                call.with(&gnttab_transfer { mfn: r.mfn(place).0, domid: domid(r), r#ref: gref, ..Default::default() })
            }
            GNTTABOP_unmap_and_replace => {
                let (host_addr, new_addr) = (r.va(place) & !0xfff, r.va(place) & !0xfff);
                let mut next = call.with(&host_addr).with(&new_addr);
                next.memory.extend(words(&[u64::from(handle(r)), 0]));
                next
            }
            GNTTABOP_setup_table => {
                let mut next = call;
                next.memory.extend(words(&[u64::from(r.domid(place)), r.below(7), 0, 0]));
                let list = r.handle(place);
                next.with(&list)
            }
            GNTTABOP_set_version => {
                let mut next = call;
                next.memory.extend(words(&[r.below(4)]));
                next
            }
            GNTTABOP_swap_grant_ref => {
                let mut next = call;
                next.memory.extend(words(&[gref(r), gref(r), 0]));
                next
            }
            _ => {
                let mut next = call;
                next.memory.extend(words(&[u64::from(r.domid(place)), r.number(), r.number(), r.number()]));
                next
            }
        };
    }
    call
}

fn memory(r: &mut Random, place: &Place<'_>) -> Call {
    let cmd = if r.one_in(2) {
        r.pick(&[XENMEM_decrease_reservation, XENMEM_populate_physmap, XENMEM_increase_reservation, XENMEM_exchange])
    } else {
        r.small(30)
    };
    let start = if r.one_in(8) { r.below(4) } else { 0 };
    let nr = r.below(4);
    let list = place.args + 256;
    // extent_start, nr_extents, order and flags, domid.
    let mut memory = Vec::new();
    for value in [list, if r.one_in(16) { r.number() } else { nr }] {
        memory.extend(value.to_le_bytes());
    }
    let order = if r.one_in(8) { r.number() } else { 0 };
    memory.extend(words(&[order, r.pick(&[0, 32, 0x10000]), u64::from(r.domid(place)), 0]));
    // XENMEM_exchange has a second reservation behind it.
    let copy = memory.clone();
    memory.extend(copy);
    memory.extend(r.number().to_le_bytes());
    memory.resize(256, 0);
    for _ in 0..nr {
        let value = if cmd == XENMEM_populate_physmap { r.below(64) } else { r.mfn(place).0 };
        memory.extend(value.to_le_bytes());
    }
    let mut call = Call::new(__HYPERVISOR_memory_op, &[u64::from(cmd) | start << 6, place.args]);
    call.memory = memory;
    call
}

fn vcpu(r: &mut Random, place: &Place<'_>) -> Call {
    let cmd = r.small(15);
    let id = if r.one_in(8) { r.number() } else { r.below(2) };
    let call = Call::new(__HYPERVISOR_vcpu_op, &[u64::from(cmd), id, place.args]);
    match cmd {
        VCPUOP_initialise => {
            let mut context = place.guest.context();
            if r.one_in(2) {
                context.ctrlreg[3] = r.mfn(place).address();
                context.ctrlreg[1] = if r.one_in(2) { r.mfn(place).address() } else { 0 };
                context.gdt_ents = r.below(1200);
                context.gdt_frames.iter_mut().for_each(|mfn| *mfn = r.mfn(place).0);
            }
            call.with(&context)
        }
        VCPUOP_register_vcpu_info => {
            call.with(&r.mfn(place).0).with(&[(r.number() & 0xfff) as u32 & !(r.small(2) * 7), 0])
        }
        VCPUOP_register_runstate_memory_area | VCPUOP_register_vcpu_time_memory_area => call.with(&r.va(place)),
        _ => call.with(&r.number()).with(&r.number()),
    }
}

pub fn descriptors(r: &mut Random, place: &Place<'_>) -> Call {
    let descriptor = |r: &mut Random| {
        r.pick(&[0, 0x00cf_9300_0000_ffff, 0x00af_9a00_0000_ffff, 0x8010_8e00_0000_1234, 0x0000_ec00_e033_1000])
            ^ r.number()
    };
    if r.one_in(2) {
        return Call::new(__HYPERVISOR_update_descriptor, &[r.maddr(place), descriptor(r)]);
    }
    let nr = r.pick(&[0, 1, 512, 513, 1024, 7168, 7169]);
    let mut call = Call::new(__HYPERVISOR_set_gdt, &[place.args, nr]);
    for _ in 0..16 {
        call = call.with(&r.mfn(place).0);
    }
    call
}

fn multicall(r: &mut Random, place: &Place<'_>) -> Call {
    let nr = 1 + r.below(5);
    let mut call = Call::new(__HYPERVISOR_multicall, &[place.args, count(r, nr)]);
    // What lies at the arguments' handles is the list itself; some of it is valid as anything.
    for _ in 0..nr {
        let inner = match r.below(4) {
            0 => update_va_mapping(r, place),
            1 => small(r, place),
            2 => mmuext(r, place),
            _ => anything(r, place),
        };
        call = call.with(&multicall_entry { op: u64::from(inner.op), result: 0, args: inner.args });
    }
    call
}

fn small(r: &mut Random, place: &Place<'_>) -> Call {
    let op = r.pick(&[
        __HYPERVISOR_set_trap_table,
        __HYPERVISOR_stack_switch,
        __HYPERVISOR_set_callbacks,
        __HYPERVISOR_fpu_taskswitch,
        __HYPERVISOR_set_debugreg,
        __HYPERVISOR_get_debugreg,
        __HYPERVISOR_xen_version,
        __HYPERVISOR_console_io,
        __HYPERVISOR_vm_assist,
        __HYPERVISOR_set_segment_base,
        __HYPERVISOR_nmi_op,
        __HYPERVISOR_callback_op,
        __HYPERVISOR_physdev_op,
        __HYPERVISOR_physdev_op_compat,
        __HYPERVISOR_event_channel_op_compat,
        __HYPERVISOR_set_timer_op,
        __HYPERVISOR_xenpmu_op,
        __HYPERVISOR_hvm_op,
    ]);
    let mut args = [0; 6];
    args.iter_mut().for_each(|arg| *arg = r.below(16));
    args[1] = r.handle(place);
    if r.one_in(4) {
        args[0] = r.handle(place);
    }
    if op == __HYPERVISOR_console_io {
        args = [r.below(3), r.below(600), r.handle(place), 0, 0, 0];
    }
    let memory = words(&(0..32).map(|_| r.number()).collect::<Vec<_>>());
    Call { op, args, memory }
}

fn anything(r: &mut Random, place: &Place<'_>) -> Call {
    let mut op = r.small(64);
    // Would end or stop the domain, which is no news.
    while op == __HYPERVISOR_sched_op || op == __HYPERVISOR_sched_op_compat || op == __HYPERVISOR_iret {
        op = r.small(64);
    }
    let mut args = [0; 6];
    for arg in &mut args {
        *arg = match r.below(6) {
            0 => r.number(),
            1 => r.va(place),
            2 => r.maddr(place),
            3 => r.entry(place),
            4 => r.below(8),
            _ => r.handle(place),
        };
    }
    let memory = (0..64).flat_map(|_| r.number().to_le_bytes()).collect();
    Call { op, args, memory }
}
