//! Grants between two domains, and between a domain and a dom0 process.

use ring3_abi::errno::*;
use ring3_abi::grant_table::*;
use ring3_abi::hypercall::__HYPERVISOR_grant_table_op;
use ring3_abi::xen::DOMID_SELF;
use ring3_engine::pte;
use ring3_machine::Mfn;

use super::support::{ARGS, BASE, Guest, NR_PAGES, build, machine};
use crate::gnttab::{Mapper, UnmapRequest};

/// Page of the granter that is granted, and of the mapper that is replaced.
pub(super) const PAGE: u64 = 20;
pub(super) const VA: u64 = BASE + PAGE * 4096;
const HOST: u32 = GNTMAP_host_map;
const READ_ONLY: u32 = GNTMAP_host_map | GNTMAP_readonly;

impl Guest {
    pub(super) fn grant_op<T: bytemuck::Pod>(&self, cmd: u32, op: &T) -> (i64, T) {
        self.write(ARGS, op);
        let result = self.call(__HYPERVISOR_grant_table_op, &[u64::from(cmd), ARGS, 1]);
        (result, self.read(ARGS))
    }

    pub(super) fn put_entry(&self, gref: u32, flags: u16, grantee: u16, mfn: Mfn) {
        let frame = u32::try_from(mfn.0).unwrap();
        let entry = grant_entry_v1 { flags, domid: grantee, frame };
        let at = gref as usize * 8;
        self.hv.memory.machine.write(self.table_frame(), at, bytemuck::bytes_of(&entry)).unwrap();
    }

    pub(super) fn flags(&self, gref: u32) -> u16 {
        let word = self.hv.memory.machine.word16(self.table_frame(), gref as usize * 8).unwrap();
        word.load(std::sync::atomic::Ordering::SeqCst)
    }

    fn map(&self, granter: &Guest, gref: u32, flags: u32, host_addr: u64) -> (i16, u32) {
        let op = gnttab_map_grant_ref { host_addr, flags, r#ref: gref, dom: granter.domid, ..Default::default() };
        let (result, op) = self.grant_op(GNTTABOP_map_grant_ref, &op);
        assert_eq!(result, 0);
        (op.status, op.handle)
    }

    fn unmap(&self, handle: u32, host_addr: u64) -> i16 {
        let op = gnttab_unmap_grant_ref { host_addr, handle, ..Default::default() };
        let (result, op) = self.grant_op(GNTTABOP_unmap_grant_ref, &op);
        assert_eq!(result, 0);
        op.status
    }

    fn counts(&self, page: u64) -> (u64, u64) {
        let info = self.hv.frames.info(self.mfns[page as usize]).unwrap();
        (info.type_count, info.count)
    }
}

/// Granter and mapper.
pub(super) fn pair() -> (Guest, Guest) {
    let (hv, _) = machine();
    let (granter, mapper) = (build(&hv, 1), build(&hv, 1));
    granter.put_entry(9, GTF_permit_access, mapper.domid, granter.mfns[PAGE as usize]);
    (granter, mapper)
}

#[test]
fn test_mapped_grant_is_shared_memory_and_is_given_back() {
    let (granter, mapper) = pair();
    let before = granter.counts(PAGE);
    granter.write(VA + 8, &0x1122_3344_5566_7788u64);
    let (status, handle) = mapper.map(&granter, 9, HOST, VA);
    assert_eq!(status, GNTST_okay);
    assert_eq!(mapper.read::<u64>(VA + 8), 0x1122_3344_5566_7788);
    mapper.write(VA + 16, &7u64);
    assert_eq!(granter.read::<u64>(VA + 16), 7);
    assert_eq!(granter.flags(9), GTF_permit_access | GTF_reading | GTF_writing);
    // The frame that the mapper had there is referenced less; the granter's once by the pin, once by the entry.
    assert_eq!(granter.counts(PAGE), (before.0 + 2, before.1 + 2));
    assert_eq!(mapper.counts(PAGE).0, 0);

    assert_eq!(mapper.unmap(handle, VA), GNTST_okay);
    assert_eq!(granter.flags(9), GTF_permit_access);
    assert_eq!(granter.counts(PAGE), before);
    assert_eq!(mapper.unmap(handle, VA), GNTST_bad_handle);
    assert!(mapper.with(|r| r.domain.memory.read(&r.state.kernel_space(), VA, &mut [0u8; 8])).is_err());
    assert!(mapper.with(|r| r.vcpu.control.requested()).intersects(ring3_engine::Requests::FLUSH_TLB));
}

#[test]
fn test_entry_can_be_named_by_machine_address() {
    let (granter, mapper) = pair();
    let l1 = mapper.mfns[(NR_PAGES - 1) as usize];
    let slot = l1.address() + (BASE / 4096 + PAGE) * 8;
    let flags = READ_ONLY | GNTMAP_contains_pte | 5 << GNTMAP_guest_avail0;
    let (status, handle) = mapper.map(&granter, 9, flags, slot);
    assert_eq!(status, GNTST_okay);
    assert_eq!(granter.flags(9), GTF_permit_access | GTF_reading);
    let entry = mapper.hv.memory.machine.entry(l1, (BASE / 4096 + PAGE) as usize).unwrap();
    assert_eq!(pte::mfn(entry), granter.mfns[PAGE as usize]);
    assert_eq!(entry & (pte::RW | 7 << 9), 5 << 9);
    assert_eq!(mapper.unmap(handle, slot + 8), GNTST_general_error, "another entry");
    assert_eq!(mapper.unmap(handle, slot), GNTST_okay);
    assert_eq!(mapper.map(&granter, 9, flags, slot + 4).0, GNTST_general_error);
    // Neither a frame that is no page table of the mapper's.
    assert_eq!(mapper.map(&granter, 9, flags, mapper.mfns[1].address()).0, GNTST_general_error);
    assert_eq!(mapper.map(&granter, 9, flags, granter.mfns[1].address()).0, GNTST_general_error);
    assert_eq!(granter.flags(9), GTF_permit_access);
    assert_eq!(granter.domain().gnttab.lock().nr_active(), 0);
    assert_eq!(mapper.domain().maptrack.lock().nr_mapped(), 0);
}

#[test]
fn test_refusals_have_xens_status_and_leave_no_trace() {
    let (granter, mapper) = pair();
    let table = granter.mfns[(NR_PAGES - 1) as usize];
    granter.put_entry(10, GTF_permit_access | GTF_readonly, mapper.domid, granter.mfns[PAGE as usize]);
    granter.put_entry(11, GTF_permit_access, mapper.domid + 1, granter.mfns[PAGE as usize]);
    granter.put_entry(12, GTF_permit_access, mapper.domid, mapper.mfns[PAGE as usize]);
    granter.put_entry(13, GTF_permit_access, mapper.domid, table);
    granter.put_entry(14, GTF_accept_transfer, mapper.domid, granter.mfns[PAGE as usize]);
    granter.put_entry(15, GTF_permit_access | GTF_sub_page, mapper.domid, granter.mfns[PAGE as usize]);
    granter.put_entry(16, GTF_permit_access, mapper.domid, Mfn(0xffff_ffff));
    let map = |gref, flags| mapper.map(&granter, gref, flags, VA).0;
    assert_eq!(map(8, HOST), GNTST_general_error, "not granted");
    assert_eq!(map(9, GNTMAP_readonly), GNTST_bad_gntref, "mapped as nothing");
    assert_eq!(map(10, HOST), GNTST_general_error, "granted for reading");
    assert_eq!(map(11, HOST), GNTST_general_error, "granted to another");
    assert_eq!(map(12, HOST), GNTST_bad_page, "not the granter's frame");
    assert_eq!(map(13, HOST), GNTST_general_error, "a page table is not writable");
    assert_eq!(map(14, HOST), GNTST_general_error);
    assert_eq!(map(15, HOST), GNTST_general_error);
    assert_eq!(map(16, HOST), GNTST_bad_page);
    assert_eq!(map(512, HOST), GNTST_bad_gntref);
    assert_eq!(map(9, HOST | GNTMAP_contains_pte), GNTST_general_error);
    assert_eq!(mapper.map(&granter, 9, HOST, 0x7fff_0000_0000).0, GNTST_general_error, "no table");
    assert_eq!(mapper.map(&granter, 9, HOST, 0xffff_8000_0000_0000).0, GNTST_general_error);
    for dom in [99, DOMID_SELF, 0x7ff4] {
        let op = gnttab_map_grant_ref { host_addr: VA, flags: HOST, r#ref: 9, dom, ..Default::default() };
        assert_eq!(mapper.grant_op(GNTTABOP_map_grant_ref, &op).1.status, GNTST_bad_domain);
    }
    for gref in 8..17 {
        assert_eq!(granter.flags(gref) & (GTF_reading | GTF_writing), 0, "{gref}");
    }
    assert_eq!(granter.domain().gnttab.lock().nr_active(), 0);
    // A page table may be read, and stays one.
    assert_eq!(map(13, READ_ONLY), GNTST_okay);
    assert_eq!(mapper.call(__HYPERVISOR_grant_table_op, &[0, 0xffff_8000_0000_0000, 1]), -EFAULT);
    assert_eq!(mapper.call(__HYPERVISOR_grant_table_op, &[0, 0x8000_0000_0000, 0]), -EFAULT);
    assert_eq!(mapper.call(__HYPERVISOR_grant_table_op, &[0, 0, 0]), 0);
    assert_eq!(mapper.call(__HYPERVISOR_grant_table_op, &[1 << 12, ARGS, 1]), -EINVAL);
    assert_eq!(mapper.call(__HYPERVISOR_grant_table_op, &[0, ARGS, 0x8000_0000]), -EINVAL);
    assert_eq!(mapper.call(__HYPERVISOR_grant_table_op, &[77, ARGS, 1]), -ENOSYS);
}

#[test]
fn test_an_entry_that_was_overwritten_keeps_the_grant_in_use() {
    let (granter, mapper) = pair();
    let (status, handle) = mapper.map(&granter, 9, HOST, VA);
    assert_eq!(status, GNTST_okay);
    let own = mapper.mfns[PAGE as usize].address() | pte::PRESENT | pte::RW;
    assert_eq!(mapper.call(14, &[VA, own, 0]), 0, "the mapping goes another way");
    assert_eq!(granter.counts(PAGE).0, 2, "by the granter itself and by the pin");
    assert_eq!(mapper.unmap(handle, VA), GNTST_general_error);
    assert_eq!(granter.flags(9), GTF_permit_access | GTF_reading | GTF_writing);
    mapper.hv.domain_destroy(mapper.domid).unwrap();
    assert_eq!(granter.flags(9), GTF_permit_access);
    assert_eq!(granter.counts(PAGE), (1, 2));
}

#[test]
fn test_unmap_and_replace_moves_an_entry() {
    let (granter, mapper) = pair();
    let (_, handle) = mapper.map(&granter, 9, HOST, VA);
    mapper.write(VA - 4096, &55u64);
    let op = gnttab_unmap_and_replace { host_addr: VA, new_addr: VA - 4096, handle, ..Default::default() };
    assert_eq!(mapper.grant_op(GNTTABOP_unmap_and_replace, &op).1.status, GNTST_okay);
    assert_eq!(mapper.read::<u64>(VA), 55);
    assert!(mapper.with(|r| r.domain.memory.read(&r.state.kernel_space(), VA - 4096, &mut [0u8; 8])).is_err());
    assert_eq!(mapper.counts(PAGE - 1), (1, 2), "one reference, moved");
    assert_eq!(granter.flags(9), GTF_permit_access);
    assert_eq!(granter.counts(PAGE), (1, 2));
    // Refused: what was to take the place is lost, as on Xen, but nothing is counted twice.
    let (_, handle) = mapper.map(&granter, 9, HOST, VA);
    let op = gnttab_unmap_and_replace { host_addr: VA + 4096, new_addr: VA + 8192, handle, ..Default::default() };
    assert_eq!(mapper.grant_op(GNTTABOP_unmap_and_replace, &op).1.status, GNTST_general_error);
    assert_eq!(mapper.counts(PAGE + 2), (0, 1));
}

#[test]
fn test_a_dying_side_takes_its_mappings_along() {
    let (granter, mapper) = pair();
    let hv = mapper.hv.clone();
    let free = hv.frames.nr_free_frames();
    mapper.map(&granter, 9, HOST, VA);
    // The granter first: its frame lives on until the mapper lets go.
    hv.domain_destroy(granter.domid).unwrap();
    assert_eq!(mapper.read::<u64>(VA + 64), 0);
    assert_eq!(hv.frames.info(granter.mfns[PAGE as usize]).unwrap().owner, None);
    assert_eq!(mapper.map(&granter, 9, HOST, VA + 4096).0, GNTST_bad_domain);
    hv.domain_destroy(mapper.domid).unwrap();
    hv.frames.drain_limbo();
    // Two domains with their shared_info and their first grant frame.
    assert_eq!(hv.frames.nr_free_frames(), free + 2 * (NR_PAGES + 2));
}

#[test]
fn test_a_dom0_process_maps_by_bus_address_until_it_is_gone() {
    let (hv, _) = machine();
    let granter = build(&hv, 1);
    granter.put_entry(9, GTF_permit_access, 0, granter.mfns[PAGE as usize]);
    let mapper = |holder| Mapper { hv: &hv, domain: &hv.dom0, holder, root: None };
    let op = |flags| gnttab_map_grant_ref { flags, r#ref: 9, dom: granter.domid, ..Default::default() };
    assert_eq!(mapper(3).map(&op(HOST)).unwrap_err(), GNTST_general_error, "it has no page tables that we know");
    let (handle, address) = mapper(3).map(&op(GNTMAP_device_map)).unwrap();
    assert_eq!(address, granter.mfns[PAGE as usize].address());
    assert_eq!(granter.counts(PAGE), (2, 3));
    let unmap = UnmapRequest { dev_bus_addr: address, handle, ..UnmapRequest::default() };
    assert_eq!(mapper(4).unmap(&unmap).unwrap_err(), GNTST_bad_handle, "another process's");
    assert!(mapper(3).unmap(&UnmapRequest { dev_bus_addr: 0, ..unmap }).unwrap().is_none());
    let wrong = UnmapRequest { dev_bus_addr: address + 4096, ..unmap };
    assert_eq!(mapper(3).unmap(&wrong).unwrap_err(), GNTST_bad_dev_addr);
    mapper(4).map(&op(GNTMAP_device_map | GNTMAP_readonly)).unwrap();
    hv.release_mappings(&hv.dom0, 3);
    assert_eq!(granter.flags(9), GTF_permit_access | GTF_reading);
    // The domain dies before the other process: the frame stays until that one is gone too.
    hv.domain_destroy(granter.domid).unwrap();
    assert_eq!(hv.frames.info(granter.mfns[PAGE as usize]).unwrap().count, 1);
    hv.release_mappings(&hv.dom0, 4);
    assert_eq!(hv.frames.info(granter.mfns[PAGE as usize]).unwrap().count, 0);
}

#[test]
fn test_map_track_and_pin_counts_are_bounded() {
    let (granter, mapper) = pair();
    granter.put_entry(10, GTF_permit_access, mapper.domid, granter.mfns[PAGE as usize]);
    let l1 = mapper.mfns[(NR_PAGES - 1) as usize];
    // The entries of the table past what is mapped.
    let slot = |n: u64| l1.address() + (300 + n) * 8;
    let flags = READ_ONLY | GNTMAP_contains_pte;
    let mut counts = [0u32; 2];
    let mut last = GNTST_okay;
    for n in 0..200 {
        last = mapper.map(&granter, 9, flags, slot(n)).0;
        counts[0] += u32::from(last == GNTST_okay);
    }
    assert_eq!((counts[0], last), (128, GNTST_general_error), "one grant");
    for n in 0..200 {
        last = mapper.map(&granter, 10, flags, slot(n)).0;
        counts[1] += u32::from(last == GNTST_okay);
    }
    assert_eq!(counts[1], 128);
    granter.put_entry(11, GTF_permit_access, mapper.domid, granter.mfns[PAGE as usize]);
    assert_eq!(mapper.map(&granter, 11, flags, slot(0)).0, GNTST_no_space, "256 handles");
    assert_eq!(mapper.domain().maptrack.lock().nr_mapped(), 256);
}

#[test]
fn test_version_2_has_status_frames_and_keeps_the_reserved_entries() {
    let (granter, mapper) = pair();
    granter.put_entry(1, GTF_permit_access, mapper.domid, granter.mfns[PAGE as usize]);
    let (_, handle) = mapper.map(&granter, 1, READ_ONLY, VA);
    let set = |version| granter.grant_op(GNTTABOP_set_version, &gnttab_set_version { version });
    let (_, other) = mapper.map(&granter, 9, HOST, VA + 4096);
    assert_eq!((set(2).0, set(3).0, set(2).1.version), (-EBUSY, -EINVAL, 1));
    assert_eq!(mapper.unmap(other, VA + 4096), GNTST_okay);
    assert_eq!((set(2).0, set(2).1.version), (0, 2));
    let status = |nr_frames| {
        let op = gnttab_get_status_frames { nr_frames, dom: DOMID_SELF, status: 0, frame_list: ARGS + 64 };
        granter.grant_op(GNTTABOP_get_status_frames, &op).1.status
    };
    assert_eq!((status(2), status(1)), (GNTST_general_error, GNTST_okay));
    let status_frame = Mfn(granter.read(ARGS + 64));
    let word = |gref: usize| {
        let machine = &granter.hv.memory.machine;
        machine.word16(status_frame, gref * 2).unwrap().load(std::sync::atomic::Ordering::SeqCst)
    };
    assert_eq!(word(1), GTF_reading, "the reserved entry is in use still");
    let put = |gref: usize, entry: grant_entry_v2| {
        let machine = &granter.hv.memory.machine;
        machine.write(granter.table_frame(), gref * 16, bytemuck::bytes_of(&entry)).unwrap();
    };
    let frame = granter.mfns[PAGE as usize].0;
    put(20, grant_entry_v2 { flags: GTF_permit_access, domid: mapper.domid, frame, ..Default::default() });
    let (result, handle_20) = mapper.map(&granter, 20, HOST, VA + 4096);
    assert_eq!((result, word(20)), (GNTST_okay, GTF_reading | GTF_writing));
    assert_eq!(mapper.unmap(handle_20, VA + 4096), GNTST_okay);
    assert_eq!(word(20), 0);
    put(21, grant_entry_v2 { flags: GTF_transitive, domid: mapper.domid, frame, ..Default::default() });
    put(
        22,
        grant_entry_v2 {
            flags: GTF_permit_access | GTF_sub_page,
            domid: mapper.domid,
            page_off: 100,
            length: 50,
            frame,
        },
    );
    assert_eq!(mapper.map(&granter, 21, HOST, VA + 4096).0, GNTST_general_error);
    assert_eq!(mapper.map(&granter, 22, HOST, VA + 4096).0, GNTST_general_error);
    let copy = |gref: u64, offset, len| {
        let op = gnttab_copy {
            source: gnttab_copy_ptr { u: gref, domid: granter.domid, offset, _pad: 0 },
            dest: gnttab_copy_ptr { u: mapper.mfns[12].0, domid: DOMID_SELF, offset: 0, _pad: 0 },
            len,
            flags: GNTCOPY_source_gref,
            ..Default::default()
        };
        mapper.grant_op(GNTTABOP_copy, &op).1.status
    };
    assert_eq!([copy(22, 100, 50), copy(22, 149, 1), copy(21, 0, 1)], [0, 0, GNTST_general_error]);
    assert_eq!([copy(22, 99, 2), copy(22, 100, 51)], [GNTST_general_error; 2]);
    assert_eq!((word(21), word(22)), (0, 0));

    // Back: not while the guest maps a status frame.
    let map = status_frame.address() | pte::PRESENT | pte::RW;
    assert_eq!(granter.call(14, &[VA + 8192, map, 0]), 0);
    assert_eq!(set(1).0, -EBUSY);
    assert_eq!(granter.call(14, &[VA + 8192, 0, 0]), 0);
    assert_eq!((set(1).0, set(1).1.version), (0, 1));
    assert_eq!(granter.flags(1), GTF_permit_access | GTF_reading);
    assert_eq!(mapper.unmap(handle, VA), GNTST_okay);
    assert_eq!(granter.flags(1), GTF_permit_access);
}

#[test]
fn test_copy_moves_bytes_within_what_was_granted() {
    let (granter, mapper) = pair();
    granter.put_entry(10, GTF_permit_access | GTF_readonly, mapper.domid, granter.mfns[PAGE as usize]);
    let local = mapper.mfns[12].0;
    mapper.write(BASE + 12 * 4096, b"to the granter");
    granter.write(VA + 4000, b"from the granter");
    let side = |u, domid, offset| gnttab_copy_ptr { u, domid, offset, _pad: 0 };
    let copy = |source, dest, len, flags| {
        mapper.grant_op(GNTTABOP_copy, &gnttab_copy { source, dest, len, flags, ..Default::default() }).1.status
    };
    let (ours, theirs) = (|offset| side(local, DOMID_SELF, offset), |gref, offset| side(gref, granter.domid, offset));
    assert_eq!(copy(ours(0), theirs(9, 100), 14, GNTCOPY_dest_gref), GNTST_okay);
    assert_eq!(&granter.read::<[u8; 14]>(VA + 100), b"to the granter");
    assert_eq!(copy(theirs(10, 4000), ours(50), 16, GNTCOPY_source_gref), GNTST_okay);
    assert_eq!(&mapper.read::<[u8; 16]>(BASE + 12 * 4096 + 50), b"from the granter");
    assert_eq!(copy(theirs(9, 0), theirs(9, 8), 8, GNTCOPY_source_gref | GNTCOPY_dest_gref), GNTST_okay);

    assert_eq!(copy(ours(0), theirs(10, 0), 1, GNTCOPY_dest_gref), GNTST_general_error);
    assert_eq!(copy(ours(4090), theirs(9, 0), 7, GNTCOPY_dest_gref), GNTST_bad_copy_arg);
    assert_eq!(copy(ours(0), theirs(9, 4096), 1, GNTCOPY_dest_gref), GNTST_bad_copy_arg);
    assert_eq!(copy(side(local, granter.domid, 0), theirs(9, 0), 1, GNTCOPY_dest_gref), GNTST_permission_denied);
    assert_eq!(copy(side(granter.mfns[1].0, DOMID_SELF, 0), theirs(9, 0), 1, GNTCOPY_dest_gref), GNTST_bad_page);
    assert_eq!(copy(side(9, 999, 0), ours(0), 1, GNTCOPY_source_gref), GNTST_bad_domain);
    assert_eq!(copy(theirs(9, 0), side(mapper.root().0, DOMID_SELF, 0), 1, GNTCOPY_source_gref), GNTST_general_error);
    assert_eq!(copy(theirs(600, 0), ours(0), 1, GNTCOPY_source_gref), GNTST_bad_gntref);
    assert_eq!(granter.flags(9), GTF_permit_access);
    assert_eq!(granter.flags(10), GTF_permit_access | GTF_readonly);
    assert_eq!(granter.domain().gnttab.lock().nr_active(), 0);
    assert_eq!(granter.counts(PAGE), (1, 2));
    assert_eq!(mapper.counts(12), (1, 2));
}

#[test]
fn test_swap_exchanges_idle_entries() {
    let (granter, mapper) = pair();
    let swap = |ref_a, ref_b| {
        let op = gnttab_swap_grant_ref { ref_a, ref_b, ..Default::default() };
        granter.grant_op(GNTTABOP_swap_grant_ref, &op).1.status
    };
    assert_eq!([swap(9, 10), swap(10, 10), swap(0, 512)], [GNTST_okay, GNTST_okay, GNTST_bad_gntref]);
    assert_eq!(granter.flags(10), GTF_permit_access);
    mapper.map(&granter, 10, HOST, VA);
    assert_eq!(swap(10, 9), GNTST_eagain);
}

#[test]
fn test_a_long_array_is_continued_when_the_pcpu_is_wanted() {
    let (granter, mapper) = pair();
    for n in 0..3u64 {
        let op = gnttab_map_grant_ref {
            host_addr: VA + n * 4096,
            flags: HOST,
            r#ref: 9,
            dom: granter.domid,
            ..Default::default()
        };
        mapper.write(ARGS + n * 32, &op);
    }
    mapper.with(|r| r.vcpu.control.request(ring3_engine::Requests::RESCHEDULE));
    let op = __HYPERVISOR_grant_table_op;
    assert_eq!(mapper.call(op, &[0, ARGS, 3]), i64::from(op));
    mapper.with(|r| {
        let regs = r.state.cpu.regs();
        assert_eq!(regs.get(ring3_engine::GprName::Rsi), ARGS + 32);
        assert_eq!(regs.get(ring3_engine::GprName::Rdx), 2);
    });
    assert_eq!(mapper.read::<gnttab_map_grant_ref>(ARGS).status, GNTST_okay);
    assert_eq!(mapper.domain().maptrack.lock().nr_mapped(), 1);
}

#[test]
fn test_mapping_races_with_revocation_and_never_wins_afterwards() {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    let (granter, mapper) = pair();
    let (hv, before) = (mapper.hv.clone(), granter.counts(PAGE));
    let l1 = mapper.mfns[(NR_PAGES - 1) as usize];
    let (domain, table) = (mapper.domain(), granter.table_frame());
    let (is_over, nr_mapped, nr_refused) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
    let granter_domain = granter.domain();
    std::thread::scope(|scope| {
        for n in 0..2u64 {
            let (hv, domain, is_over, nr_mapped, nr_refused) = (&hv, &domain, &is_over, &nr_mapped, &nr_refused);
            scope.spawn(move || {
                let mapper = Mapper { hv, domain, holder: 0, root: None };
                let host_addr = l1.address() + (300 + n) * 8;
                while !is_over.load(Ordering::SeqCst) {
                    let readonly = if nr_mapped.load(Ordering::SeqCst) & 1 == 0 { GNTMAP_readonly } else { 0 };
                    let flags = HOST | GNTMAP_contains_pte | readonly;
                    let op =
                        gnttab_map_grant_ref { host_addr, flags, r#ref: 9, dom: granter.domid, ..Default::default() };
                    match mapper.map(&op) {
                        Ok((handle, _)) => {
                            nr_mapped.fetch_add(1, Ordering::SeqCst);
                            let request = UnmapRequest { host_addr, handle, ..UnmapRequest::default() };
                            let unmapped = mapper.unmap(&request).unwrap().unwrap();
                            mapper.complete_unmaps(vec![unmapped]);
                        }
                        Err(status) => {
                            assert_eq!(status, GNTST_general_error);
                            nr_refused.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                }
            });
        }
        // As Linux ends foreign access: by compare and swap, which fails while the grant is in use.
        let machine = &hv.memory.machine;
        let flags = machine.word16(table, 9 * 8).unwrap();
        let (mut nr_revoked, start) = (0, std::time::Instant::now());
        while nr_revoked < 2000 && start.elapsed().as_secs() < 10 {
            let now = flags.load(Ordering::SeqCst);
            let is_idle = now & (GTF_reading | GTF_writing) == 0;
            if is_idle && flags.compare_exchange(now, 0, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                nr_revoked += 1;
                assert_eq!(granter_domain.gnttab.lock().nr_active(), 0);
                for slot in 300..302 {
                    let entry = machine.entry(l1, slot).unwrap();
                    assert_eq!(entry & pte::PRESENT, 0, "reached after it was revoked");
                }
                flags.store(GTF_permit_access, Ordering::SeqCst);
            }
            std::thread::yield_now();
        }
        is_over.store(true, Ordering::SeqCst);
        assert!(nr_revoked > 0);
    });
    assert!(nr_mapped.load(Ordering::SeqCst) > 0);
    assert_eq!(granter.flags(9) & (GTF_reading | GTF_writing), 0);
    assert_eq!(granter.counts(PAGE), before);
    assert_eq!(domain.maptrack.lock().nr_mapped(), 0);
}
