//! Source: xen/include/public/grant_table.h.

use crate::wire;

pub const GNTTABOP_map_grant_ref: u32 = 0;
pub const GNTTABOP_unmap_grant_ref: u32 = 1;
pub const GNTTABOP_setup_table: u32 = 2;
pub const GNTTABOP_dump_table: u32 = 3;
pub const GNTTABOP_transfer: u32 = 4;
pub const GNTTABOP_copy: u32 = 5;
pub const GNTTABOP_query_size: u32 = 6;
pub const GNTTABOP_unmap_and_replace: u32 = 7;
pub const GNTTABOP_set_version: u32 = 8;
pub const GNTTABOP_get_status_frames: u32 = 9;
pub const GNTTABOP_get_version: u32 = 10;
pub const GNTTABOP_swap_grant_ref: u32 = 11;
pub const GNTTABOP_cache_flush: u32 = 12;

pub const GTF_invalid: u16 = 0;
pub const GTF_permit_access: u16 = 1;
pub const GTF_accept_transfer: u16 = 2;
pub const GTF_transitive: u16 = 3;
pub const GTF_type_mask: u16 = 3;
pub const GTF_transfer_committed: u16 = 1 << 2;
pub const GTF_transfer_completed: u16 = 1 << 3;
pub const GTF_readonly: u16 = 1 << 2;
pub const GTF_reading: u16 = 1 << 3;
pub const GTF_writing: u16 = 1 << 4;
pub const GTF_PWT: u16 = 1 << 5;
pub const GTF_PCD: u16 = 1 << 6;
pub const GTF_PAT: u16 = 1 << 7;
pub const GTF_sub_page: u16 = 1 << 8;

pub const GNTMAP_device_map: u32 = 1 << 0;
pub const GNTMAP_host_map: u32 = 1 << 1;
pub const GNTMAP_readonly: u32 = 1 << 2;
pub const GNTMAP_application_map: u32 = 1 << 3;
pub const GNTMAP_contains_pte: u32 = 1 << 4;
/// First of the bits that go into the available bits of the page-table entry.
pub const GNTMAP_guest_avail0: u32 = 16;

pub const GNTCOPY_source_gref: u16 = 1;
pub const GNTCOPY_dest_gref: u16 = 2;

pub const GNTTAB_CACHE_CLEAN: u32 = 1 << 0;
pub const GNTTAB_CACHE_INVAL: u32 = 1 << 1;

pub const GNTST_okay: i16 = 0;
pub const GNTST_general_error: i16 = -1;
pub const GNTST_bad_domain: i16 = -2;
pub const GNTST_bad_gntref: i16 = -3;
pub const GNTST_bad_handle: i16 = -4;
pub const GNTST_bad_virt_addr: i16 = -5;
pub const GNTST_bad_dev_addr: i16 = -6;
pub const GNTST_no_device_space: i16 = -7;
pub const GNTST_permission_denied: i16 = -8;
pub const GNTST_bad_page: i16 = -9;
pub const GNTST_bad_copy_arg: i16 = -10;
pub const GNTST_address_too_big: i16 = -11;
pub const GNTST_eagain: i16 = -12;
pub const GNTST_no_space: i16 = -13;

/// Entries of version 1 in one frame.
pub const GRANT_ENTRIES_V1_PER_FRAME: u32 = 512;
/// Entries of version 2 in one frame.
pub const GRANT_ENTRIES_V2_PER_FRAME: u32 = 256;
/// 16-bit status words of version 2 in one frame.
pub const GRANT_STATUS_PER_FRAME: u32 = 2048;
/// Entries that a change of version keeps.
pub const GNTTAB_NR_RESERVED_ENTRIES: u32 = 8;

wire!(grant_entry_v1, 8, { flags: u16 = 0, domid: u16 = 2, frame: u32 = 4 });
wire!(
    /// `full_page` and `sub_page` in one: the former ignores offset and length.
    grant_entry_v2, 16, { flags: u16 = 0, domid: u16 = 2, page_off: u16 = 4, length: u16 = 6, frame: u64 = 8 }
);
wire!(gnttab_map_grant_ref, 32, {
    host_addr: u64 = 0, flags: u32 = 8, r#ref: u32 = 12, dom: u16 = 16, status: i16 = 18, handle: u32 = 20,
    dev_bus_addr: u64 = 24,
});
wire!(gnttab_unmap_grant_ref, 24, {
    host_addr: u64 = 0, dev_bus_addr: u64 = 8, handle: u32 = 16, status: i16 = 20, _pad: u16 = 22,
});
wire!(gnttab_unmap_and_replace, 24, {
    host_addr: u64 = 0, new_addr: u64 = 8, handle: u32 = 16, status: i16 = 20, _pad: u16 = 22,
});
wire!(gnttab_setup_table, 24, {
    dom: u16 = 0, _pad0: u16 = 2, nr_frames: u32 = 4, status: i16 = 8, _pad1: [u16; 3] = 10, frame_list: u64 = 16,
});
wire!(gnttab_query_size, 16, {
    dom: u16 = 0, _pad0: u16 = 2, nr_frames: u32 = 4, max_nr_frames: u32 = 8, status: i16 = 12, _pad1: u16 = 14,
});
wire!(gnttab_transfer, 24, {
    mfn: u64 = 0, domid: u16 = 8, _pad0: u16 = 10, r#ref: u32 = 12, status: i16 = 16, _pad1: [u16; 3] = 18,
});
wire!(gnttab_set_version, 4, { version: u32 = 0 });
wire!(gnttab_get_version, 8, { dom: u16 = 0, pad: u16 = 2, version: u32 = 4 });
wire!(gnttab_get_status_frames, 16, { nr_frames: u32 = 0, dom: u16 = 4, status: i16 = 6, frame_list: u64 = 8 });
wire!(gnttab_swap_grant_ref, 12, { ref_a: u32 = 0, ref_b: u32 = 4, status: i16 = 8, _pad: u16 = 10 });
wire!(gnttab_cache_flush, 16, { a: u64 = 0, offset: u16 = 8, length: u16 = 10, op: u32 = 12 });
wire!(
    /// A side of `gnttab_copy`: `u` is a grant reference in its low half, or a frame.
    gnttab_copy_ptr, 16, { u: u64 = 0, domid: u16 = 8, offset: u16 = 10, _pad: u32 = 12 }
);
wire!(gnttab_copy, 40, {
    source: gnttab_copy_ptr = 0, dest: gnttab_copy_ptr = 16, len: u16 = 32, flags: u16 = 34, status: i16 = 36,
    _pad: u16 = 38,
});
