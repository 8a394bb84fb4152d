/*
 * grant_v2: version 2 of the grant table: status frames, reserved entries, parts of pages, and the way back.
 */
#include "guest.h"
#include <xen/grant_table.h>

enum { GREF = 20, XEN_ERANGE_ = 34 };
static PAGE volatile char granted[PAGE_SIZE], place[PAGE_SIZE], other[PAGE_SIZE];
static PAGE char table_place[PAGE_SIZE], status_place[PAGE_SIZE];
static volatile grant_entry_v1_t *const v1 = (void *)table_place;
static volatile grant_entry_v2_t *const v2 = (void *)table_place;
static volatile grant_status_t *const status = (void *)status_place;
static domid_t self;

static long grant_op(u64 op, void *arg, u64 count)
{
    return hypercall5(__HYPERVISOR_grant_table_op, op, PTR(arg), count, 0, 0);
}

static u32 version_now;
static long set_version(u32 version)
{
    struct gnttab_set_version op = {.version = version};
    long result = grant_op(GNTTABOP_set_version, &op, 1);
    version_now = op.version;
    return result;
}

static u32 handle;
static int map(u32 gref, u32 flags, u64 host_addr)
{
    struct gnttab_map_grant_ref op = {.host_addr = host_addr, .flags = flags, .ref = gref, .dom = self};
    check_equal(grant_op(GNTTABOP_map_grant_ref, &op, 1), 0, "map_grant_ref");
    handle = op.handle;
    return op.status;
}

static int unmap(u64 bus_addr)
{
    struct gnttab_unmap_grant_ref op = {.dev_bus_addr = bus_addr, .handle = handle};
    check_equal(grant_op(GNTTABOP_unmap_grant_ref, &op, 1), 0, "unmap_grant_ref");
    return op.status;
}

static int copy_from(u32 gref, u16 offset, u16 len)
{
    struct gnttab_copy op = {.source.domid = self, .source.offset = offset, .dest.domid = DOMID_SELF, .len = len,
                             .flags = GNTCOPY_source_gref};
    op.source.u.ref = gref;
    op.dest.u.gmfn = mfn_of(other);
    check_equal(grant_op(GNTTABOP_copy, &op, 1), 0, "copy");
    return op.status;
}

static int status_frames(u32 nr, xen_pfn_t *frames)
{
    struct gnttab_get_status_frames op = {.nr_frames = nr, .dom = DOMID_SELF};
    op.frame_list.p = (void *)frames;
    check_equal(grant_op(GNTTABOP_get_status_frames, &op, 1), 0, "get_status_frames");
    return op.status;
}

static void parts(void)
{
    u64 mfn = mfn_of(granted);
    v2[GREF].full_page.frame = mfn;
    v2[GREF].hdr.domid = self;
    v2[GREF].hdr.flags = GTF_permit_access;
    check_equal(map(GREF, GNTMAP_device_map, 0), GNTST_okay, "map a whole page");
    check_equal(v2[GREF].hdr.flags, GTF_permit_access, "the entry is left alone");
    check_equal(status[GREF], GTF_reading | GTF_writing, "its status shows the use");
    check_equal(set_version(1), -XEN_EBUSY_, "no change of version meanwhile");
    check_equal(version_now, 2, "it stays");
    check_equal(unmap(mfn << 12), GNTST_okay, "unmap");
    check_equal(status[GREF], 0, "idle");

    v2[GREF].sub_page.page_off = 100;
    v2[GREF].sub_page.length = 50;
    v2[GREF].hdr.flags = GTF_permit_access | GTF_sub_page;
    check_equal(map(GREF, GNTMAP_device_map, 0), GNTST_general_error, "a part cannot be mapped");
    granted[149] = 42;
    check_equal(copy_from(GREF, 100, 50), GNTST_okay, "copy the part");
    check_equal(other[49], 42, "what arrived");
    check_equal(copy_from(GREF, 99, 2), GNTST_general_error, "before it");
    check_equal(copy_from(GREF, 149, 2), GNTST_general_error, "past it");
    v2[GREF].sub_page.page_off = 0xffff;
    v2[GREF].sub_page.length = 0xffff;
    check_equal(copy_from(GREF, 4090, 20), GNTST_bad_copy_arg, "wild numbers");
    check(copy_from(GREF, 0, 20) != GNTST_okay, "wild numbers grant nothing");
    check_equal(status[GREF], 0, "idle");

    v2[GREF].hdr.flags = GTF_transitive;
    v2[GREF].transitive.trans_domid = self;
    v2[GREF].transitive.gref = GREF + 1;
    check_equal(map(GREF, GNTMAP_device_map, 0), GNTST_general_error, "a transitive grant cannot be mapped");
    check_equal(copy_from(GREF, 0, 1), GNTST_general_error, "nor one that leads to oneself be copied");
    check_equal(status[GREF], 0, "idle");
    v2[GREF].hdr.flags = 0;
}

void test(void)
{
    struct gnttab_setup_table setup = {.dom = DOMID_SELF, .nr_frames = 1};
    struct gnttab_get_version get = {.dom = DOMID_SELF};
    xen_pfn_t frames[2] = {0};

    load_traps();
    self = own_domid();
    setup.frame_list.p = frames;
    check_equal(grant_op(GNTTABOP_setup_table, &setup, 1), 0, "setup_table");
    check_equal(update_va_mapping(table_place, (frames[0] << 12) | PTE_DATA, UVMF_INVLPG), 0, "map the table");
    check_equal(grant_op(GNTTABOP_get_version, &get, 1), 0, "get_version");
    check_equal(get.version, 1, "the version at start");
    check_equal(status_frames(1, frames), GNTST_general_error, "there are no status frames");
    check_equal(set_version(3), -XEN_EINVAL_, "no such version");
    check_equal(version_now, 1, "it stays");

    v1[2].domid = self;
    v1[2].frame = (u32)mfn_of(granted);
    v1[2].flags = GTF_permit_access;
    v1[GREF] = v1[2];
    check_equal(map(2, GNTMAP_device_map | GNTMAP_readonly, 0), GNTST_okay, "a reserved entry in use");
    check_equal(set_version(2), 0, "set_version 2");
    check_equal(version_now, 2, "it is");
    check_equal(v2[2].hdr.flags, GTF_permit_access, "the reserved entry is kept");
    check_equal(v2[2].full_page.frame, mfn_of(granted), "with its frame");
    check_equal(v2[GREF].hdr.flags, 0, "others are cleared");
    check_equal(status_frames(1, frames), GNTST_okay, "get_status_frames");
    check_equal(update_va_mapping(status_place, (frames[0] << 12) | PTE_DATA, UVMF_INVLPG), 0, "map the status");
    check_equal(status[2], GTF_reading, "the reserved entry is in use still");
    check_equal(unmap(mfn_of(granted) << 12), GNTST_okay, "unmap it");
    check_equal(status[2], 0, "idle");
    parts();

    check_equal(set_version(1), -XEN_EBUSY_, "the status frame is mapped");
    check_equal(update_va_mapping(status_place, 0, UVMF_INVLPG), 0, "unmap the status");
    v2[3].hdr.domid = self;
    v2[3].full_page.frame = 1ul << 33;
    v2[3].hdr.flags = GTF_permit_access;
    check_equal(set_version(1), -XEN_ERANGE_, "a frame that version 1 cannot say");
    v2[3].hdr.flags = 0;
    check_equal(set_version(1), 0, "back to version 1");
    check_equal(v1[2].flags, GTF_permit_access, "the reserved entry is kept");
    check_equal(v1[2].frame, mfn_of(granted), "with its frame");
    check_equal(v1[3].frame, 0, "an idle one is cleared");
}
