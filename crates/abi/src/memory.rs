//! Source: xen/include/public/memory.h.

use crate::wire;

pub const XENMEM_increase_reservation: u32 = 0;
pub const XENMEM_decrease_reservation: u32 = 1;
pub const XENMEM_maximum_ram_page: u32 = 2;
pub const XENMEM_current_reservation: u32 = 3;
pub const XENMEM_maximum_reservation: u32 = 4;
pub const XENMEM_machphys_mfn_list: u32 = 5;
pub const XENMEM_populate_physmap: u32 = 6;
pub const XENMEM_add_to_physmap: u32 = 7;
pub const XENMEM_memory_map: u32 = 9;
pub const XENMEM_machine_memory_map: u32 = 10;
pub const XENMEM_exchange: u32 = 11;
pub const XENMEM_machphys_mapping: u32 = 12;
pub const XENMEM_set_memory_map: u32 = 13;
pub const XENMEM_maximum_gpfn: u32 = 14;
pub const XENMEM_remove_from_physmap: u32 = 15;
pub const XENMEM_set_pod_target: u32 = 16;
pub const XENMEM_get_pod_target: u32 = 17;
pub const XENMEM_get_sharing_freed_pages: u32 = 18;
pub const XENMEM_get_sharing_shared_pages: u32 = 19;
pub const XENMEM_access_op: u32 = 21;
pub const XENMEM_add_to_physmap_batch: u32 = 23;
pub const XENMEM_claim_pages: u32 = 24;
pub const XENMEM_machphys_compat_mfn_list: u32 = 25;
pub const XENMEM_get_vnumainfo: u32 = 26;
pub const XENMEM_reserved_device_memory_map: u32 = 27;
pub const XENMEM_acquire_resource: u32 = 28;

/// Bits 0 to 7 of `mem_flags`: how many bits machine addresses may have; 0: any.
pub const XENMEMF_ADDRESS_BITS_MASK: u32 = 0xff;

wire!(xen_memory_reservation, 32, {
    extent_start: u64 = 0, nr_extents: u64 = 8, extent_order: u32 = 16, mem_flags: u32 = 20, domid: u16 = 24,
    _pad: [u16; 3] = 26,
});
wire!(xen_memory_exchange, 72, {
    r#in: xen_memory_reservation = 0, out: xen_memory_reservation = 32, nr_exchanged: u64 = 64,
});
wire!(xen_machphys_mapping, 24, { v_start: u64 = 0, v_end: u64 = 8, max_mfn: u64 = 16 });
wire!(xen_machphys_mfn_list, 24, {
    max_extents: u32 = 0, _pad0: u32 = 4, extent_start: u64 = 8, nr_extents: u32 = 16, _pad1: u32 = 20,
});
wire!(xen_memory_map, 16, { nr_entries: u32 = 0, _pad: u32 = 4, buffer: u64 = 8 });
wire!(xen_foreign_memory_map, 24, { domid: u16 = 0, _pad: [u16; 3] = 2, map: xen_memory_map = 8 });
wire!(
    /// XENMEM_current_reservation, maximum_reservation, maximum_gpfn.
    xen_memory_domain, 2, { domid: u16 = 0 }
);
