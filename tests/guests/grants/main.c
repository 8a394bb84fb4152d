/*
 * grants: the grant table's frames are given to the guest, can be mapped and written, and bad requests are refused.
 */
#include "guest.h"
#include <xen/grant_table.h>

static PAGE char place[PAGE_SIZE];

static long grant_op(u64 op, void *arg, u64 count)
{
    return hypercall5(__HYPERVISOR_grant_table_op, op, PTR(arg), count, 0, 0);
}

void test(void)
{
    struct gnttab_query_size size = {.dom = DOMID_SELF};
    struct gnttab_setup_table setup = {.dom = DOMID_SELF, .nr_frames = 1};
    xen_pfn_t frames[1] = {0};

    setup.frame_list.p = frames;
    long result = grant_op(GNTTABOP_setup_table, &setup, 1);
    if (result == -XEN_ENOSYS_) {
        print("no grant tables\n");
        finish("SKIP");
    }
    check_equal(result, 0, "setup_table");
    check_equal((u64)setup.status, GNTST_okay, "its status");
    check(frames[0] != 0, "its frame");
    check_equal(update_va_mapping(place, (frames[0] << 12) | PTE_DATA, UVMF_INVLPG), 0, "map it");
    grant_entry_v1_t *table = (grant_entry_v1_t *)place;
    table[8].domid = 0;
    table[8].frame = (u32)pfn_of(place);
    table[8].flags = GTF_permit_access;
    check_equal(table[8].flags, GTF_permit_access, "an entry can be written");

    check_equal(grant_op(GNTTABOP_query_size, &size, 1), 0, "query_size");
    check_equal((u64)size.status, GNTST_okay, "its status");
    check(size.nr_frames >= 1 && size.max_nr_frames >= size.nr_frames, "its numbers");
    setup.nr_frames = 1u << 30;
    check_equal(grant_op(GNTTABOP_setup_table, &setup, 1), 0, "too many frames: refused in the status");
    check((short)setup.status < 0, "that status");
    check_equal(grant_op(GNTTABOP_setup_table, (void *)0xffff800000000000, 1), -XEN_EFAULT_, "a bad handle");
    check(grant_op(9999, &setup, 1) < 0, "an operation that does not exist");
}
