/*
 * grant_map: a domain grants frames to itself, and maps, unmaps, replaces and copies them: entries, flags and refusals.
 */
#include "guest.h"
#include <xen/grant_table.h>

enum { GREF = 20 };
static PAGE volatile char granted[PAGE_SIZE], place[PAGE_SIZE], other[PAGE_SIZE], spare[PAGE_SIZE];
static volatile grant_entry_v1_t *table;
static domid_t self;

static long grant_op(u64 op, void *arg, u64 count)
{
    return hypercall5(__HYPERVISOR_grant_table_op, op, PTR(arg), count, 0, 0);
}

static u64 slot_of(volatile char *page)
{
    return entry_maddr((const void *)page, 1);
}

static u64 pte_of(volatile char *va)
{
    u64 *l1 = va_of_mfn(slot_of(va) >> 12);
    return l1[(PTR(va) >> 12) & 511];
}

static void put_entry(u32 gref, u16 flags, u64 mfn)
{
    table[gref].domid = self;
    table[gref].frame = (u32)mfn;
    table[gref].flags = flags;
}

static struct gnttab_map_grant_ref map_op;
static int map(u32 gref, u32 flags, u64 host_addr)
{
    map_op = (struct gnttab_map_grant_ref){.host_addr = host_addr, .flags = flags, .ref = gref, .dom = self};
    check_equal(grant_op(GNTTABOP_map_grant_ref, &map_op, 1), 0, "map_grant_ref");
    return map_op.status;
}

static int unmap(u32 handle, u64 host_addr, u64 bus_addr)
{
    struct gnttab_unmap_grant_ref op = {.host_addr = host_addr, .dev_bus_addr = bus_addr, .handle = handle};
    check_equal(grant_op(GNTTABOP_unmap_grant_ref, &op, 1), 0, "unmap_grant_ref");
    return op.status;
}

static int replace(u32 handle, u64 host, volatile char *new)
{
    struct gnttab_unmap_and_replace op = {.host_addr = host, .new_addr = PTR(new), .handle = handle};
    check_equal(grant_op(GNTTABOP_unmap_and_replace, &op, 1), 0, "unmap_and_replace");
    return op.status;
}

static void restore(volatile char *va, u64 mfn)
{
    check_equal(update_va_mapping((void *)va, (mfn << 12) | PTE_DATA, UVMF_INVLPG), 0, "map one's own again");
}

static void mapping(void)
{
    u64 mfn = mfn_of(granted), mfn_place = mfn_of(place);
    put_entry(GREF, GTF_permit_access, mfn);
    granted[5] = 77;
    check_equal(map(GREF, GNTMAP_host_map, PTR(place)), GNTST_okay, "map by address");
    check_equal(map_op.dev_bus_addr, mfn << 12, "its machine address");
    check_equal(place[5], 77, "the same memory");
    place[6] = 78;
    check_equal(granted[6], 78, "both ways");
    check_equal(table[GREF].flags, GTF_permit_access | GTF_reading | GTF_writing, "shown as in use");
    check_equal(MFN_OF_PTE(pte_of(place)), mfn, "its entry");
    check_equal(pte_of(place) & (PTE_P | PTE_RW | PTE_A | PTE_D), PTE_P | PTE_RW | PTE_A | PTE_D, "its flags");
    u32 handle = map_op.handle;
    check_equal(unmap(handle, PTR(other), 0), GNTST_general_error, "unmapped where it is not");
    check_equal(unmap(handle + 7, PTR(place), 0), GNTST_bad_handle, "another handle");
    check_equal(unmap(0xffffffff, PTR(place), 0), GNTST_bad_handle, "a wild handle");
    check_equal(unmap(handle, 0, 0), GNTST_okay, "nothing to unmap");
    check_equal(unmap(handle, 0, 1ul << 40), GNTST_okay, "nor by a bus address that was not asked for");
    check_equal(unmap(handle, PTR(place), 0), GNTST_okay, "unmap");
    check_equal(pte_of(place), 0, "its entry is gone");
    check_equal(table[GREF].flags, GTF_permit_access, "shown as idle");
    check_equal(unmap(handle, PTR(place), 0), GNTST_bad_handle, "unmapped twice");
    EXPECT_TRAP("movb (%[where]), %%al", [where] "r"(place));
    check_equal(caught.vector, 14, "no access afterwards");

    check_equal(map(GREF, GNTMAP_host_map | GNTMAP_readonly | GNTMAP_application_map | (5 << 16), PTR(place)), GNTST_okay,
                "map for reading, with bits of one's own");
    check_equal(pte_of(place) & (PTE_RW | PTE_US | (7 << 9)), PTE_US | (5 << 9), "its flags");
    check_equal(table[GREF].flags, GTF_permit_access | GTF_reading, "shown as read");
    handle = map_op.handle;
    EXPECT_TRAP("movb $1, (%[where])", [where] "r"(place));
    check_equal(caught.vector, 14, "a write is refused");
    check_equal(unmap(handle, PTR(place), 0), GNTST_okay, "unmap");

    u64 slot = slot_of(place);
    check_equal(map(GREF, GNTMAP_host_map | GNTMAP_contains_pte, slot + 4), GNTST_general_error, "a misaligned entry");
    check_equal(map(GREF, GNTMAP_host_map | GNTMAP_contains_pte, mfn_of(other) << 12), GNTST_general_error, "no table");
    check_equal(map(GREF, GNTMAP_host_map | GNTMAP_contains_pte, slot), GNTST_okay, "map by machine address");
    check_equal(place[6], 78, "the same memory");
    handle = map_op.handle;
    check_equal(unmap(handle, slot_of(other), 0), GNTST_general_error, "another entry");
    check_equal(replace(handle, slot, other), GNTST_general_error, "replaced by machine address");
    check_equal(MFN_OF_PTE(pte_of(other)), mfn_of(other), "nothing is moved");
    check_equal(unmap(handle, slot, 0), GNTST_okay, "unmap");
    check_equal(table[GREF].flags, GTF_permit_access, "shown as idle");

    check_equal(map(GREF, GNTMAP_host_map, PTR(place)), GNTST_okay, "map");
    spare[1] = 99;
    check_equal(replace(map_op.handle, PTR(other), spare), GNTST_general_error, "replaced where it is not");
    check_equal(pte_of(spare), 0, "what was to move in is lost");
    restore(spare, mfn_of(spare));
    check_equal(replace(map_op.handle, PTR(place), (volatile char *)0x7fff00000000), GNTST_general_error, "by nothing");
    check_equal(replace(map_op.handle, PTR(place), spare), GNTST_okay, "unmap_and_replace");
    check_equal(MFN_OF_PTE(pte_of(place)), mfn_of(spare), "the other frame moved in");
    check_equal(pte_of(spare), 0, "and out");
    check_equal(place[1], 99, "its memory");
    check_equal(table[GREF].flags, GTF_permit_access, "shown as idle");
    restore(spare, mfn_of(spare));

    check_equal(map(GREF, GNTMAP_device_map, 0), GNTST_okay, "map for devices");
    check_equal(map_op.dev_bus_addr, mfn << 12, "its bus address");
    check_equal(table[GREF].flags, GTF_permit_access | GTF_reading | GTF_writing, "shown as in use");
    check_equal(unmap(map_op.handle, 0, (mfn + 1) << 12), GNTST_bad_dev_addr, "another bus address");
    check_equal(unmap(map_op.handle, 0, mfn << 12), GNTST_okay, "unmap");
    restore(place, mfn_place);
}

static void many(void)
{
    static u32 handles[300];
    u32 n = 0;
    put_entry(GREF, GTF_permit_access, mfn_of(granted));
    for (; n < 300 && map(GREF, GNTMAP_device_map, 0) == GNTST_okay; n++)
        handles[n] = map_op.handle;
    check_equal(n, 128, "as often as a grant can be mapped");
    check_equal((u64)map_op.status, (u64)GNTST_general_error, "its status");
    while (n-- > 0)
        check_equal(unmap(handles[n], 0, mfn_of(granted) << 12), GNTST_okay, "and is unmapped as often");
    check_equal(table[GREF].flags, GTF_permit_access, "shown as idle");
}

static void refusals(void)
{
    u64 l1 = slot_of(place) >> 12;
    put_entry(GREF, GTF_permit_access, mfn_of(granted));
    put_entry(GREF + 1, GTF_permit_access | GTF_readonly, mfn_of(granted));
    put_entry(GREF + 2, 0, mfn_of(granted));
    put_entry(GREF + 3, GTF_permit_access, mfn_of(granted));
    table[GREF + 3].domid = self + 1;
    put_entry(GREF + 4, GTF_permit_access, 0xfffffff0);
    put_entry(GREF + 5, GTF_permit_access, l1);
    put_entry(GREF + 6, GTF_accept_transfer, mfn_of(granted));
    put_entry(GREF + 7, GTF_permit_access | GTF_sub_page, mfn_of(granted));
    check_equal(map(GREF, 0, PTR(place)), GNTST_bad_gntref, "mapped as nothing");
    check_equal(map(GREF + 1, GNTMAP_host_map, PTR(place)), GNTST_general_error, "granted for reading");
    check_equal(map(GREF + 2, GNTMAP_host_map, PTR(place)), GNTST_general_error, "not granted");
    check_equal(map(GREF + 3, GNTMAP_host_map, PTR(place)), GNTST_general_error, "granted to another");
    check_equal(map(GREF + 4, GNTMAP_host_map | GNTMAP_readonly, PTR(place)), GNTST_bad_page, "no such frame");
    check_equal(map(GREF + 5, GNTMAP_host_map, PTR(place)), GNTST_general_error, "a page table, to be written");
    check_equal(map(GREF + 6, GNTMAP_host_map, PTR(place)), GNTST_general_error, "for a transfer");
    check_equal(map(GREF + 7, GNTMAP_host_map, PTR(place)), GNTST_general_error, "a part of a page");
    check_equal(map(1u << 20, GNTMAP_host_map, PTR(place)), GNTST_bad_gntref, "past the table");
    check_equal(map(GREF, GNTMAP_host_map, 0x7fff00000000), GNTST_general_error, "where no table is");
    check_equal(map(GREF, GNTMAP_host_map, 0xffff800000000000), GNTST_general_error, "in the hypervisor's hole");
    check_equal(map(GREF, GNTMAP_host_map, 0x8000000000000000), GNTST_general_error, "at no canonical address");
    map_op.dom = 0x7ff5;
    check_equal(grant_op(GNTTABOP_map_grant_ref, &map_op, 1), 0, "a domain that is not there");
    check_equal((u64)map_op.status, GNTST_bad_domain, "its status");
    map_op.dom = DOMID_SELF;
    check_equal(grant_op(GNTTABOP_map_grant_ref, &map_op, 1), 0, "DOMID_SELF");
    check_equal((u64)map_op.status, GNTST_bad_domain, "its status");
    for (u32 gref = GREF; gref < GREF + 8; gref++)
        check_equal(table[gref].flags & (GTF_reading | GTF_writing), 0, "no trace of a refusal");
    check_equal(map(GREF + 5, GNTMAP_host_map | GNTMAP_readonly, PTR(place)), GNTST_okay, "a page table, to be read");
    check_equal(unmap(map_op.handle, PTR(place), 0), GNTST_okay, "unmap");
    restore(place, mfn_of(place));

    check_equal(grant_op(GNTTABOP_map_grant_ref, (void *)0xffff800000000000, 1), -XEN_EFAULT_, "a handle in the hole");
    check_equal(grant_op(GNTTABOP_map_grant_ref, (void *)0xffff800000000000, 0), -XEN_EFAULT_, "even for nothing");
    check_equal(grant_op(GNTTABOP_unmap_grant_ref, (void *)0x800000000000, 1), -XEN_EFAULT_, "no canonical handle");
    check_equal(grant_op(GNTTABOP_copy, NULL, 1), -XEN_EFAULT_, "NULL");
    check_equal(grant_op(GNTTABOP_copy, NULL, 0), 0, "NULL for nothing");
    check_equal(grant_op(GNTTABOP_map_grant_ref | 1 << 12, &map_op, 1), -XEN_EINVAL_, "bits past the command");
    check_equal(grant_op(GNTTABOP_map_grant_ref, &map_op, 0x80000000), -XEN_EINVAL_, "a negative count");
    check_equal(grant_op(GNTTABOP_dump_table, &map_op, 1), -XEN_ENOSYS_, "dump_table");
    check_equal(grant_op(GNTTABOP_setup_table, &map_op, 2), -XEN_EINVAL_, "setup_table of two");
    check_equal(grant_op(GNTTABOP_query_size, &map_op, 0), -XEN_EINVAL_, "query_size of none");
}

static int copy_one(u64 from, u16 from_offset, u64 to, u16 to_offset, u16 len, u16 flags, domid_t from_dom, domid_t to_dom)
{
    struct gnttab_copy op = {.source.domid = from_dom, .source.offset = from_offset, .dest.domid = to_dom,
                             .dest.offset = to_offset, .len = len, .flags = flags};
    op.source.u.gmfn = from;
    op.dest.u.gmfn = to;
    check_equal(grant_op(GNTTABOP_copy, &op, 1), 0, "copy");
    return op.status;
}

static void copying(void)
{
    u64 local = mfn_of(other);
    put_entry(GREF, GTF_permit_access, mfn_of(granted));
    put_entry(GREF + 1, GTF_permit_access | GTF_readonly, mfn_of(granted));
    memcpy((char *)other, "into the grant", 14);
    memcpy((char *)granted + 500, "out of it", 9);
    check_equal(copy_one(local, 0, GREF, 100, 14, GNTCOPY_dest_gref, DOMID_SELF, self), GNTST_okay, "copy to a grant");
    check(memcmp((char *)granted + 100, "into the grant", 14) == 0, "what arrived");
    check_equal(copy_one(GREF + 1, 500, local, 1000, 9, GNTCOPY_source_gref, self, DOMID_SELF), GNTST_okay, "and from one");
    check(memcmp((char *)other + 1000, "out of it", 9) == 0, "what arrived");
    check_equal(copy_one(local, 0, mfn_of(spare), 0, 14, 0, DOMID_SELF, DOMID_SELF), GNTST_okay, "between one's own");
    check(memcmp((char *)spare, "into the grant", 14) == 0, "what arrived");
    check_equal(copy_one(local, 0, GREF + 1, 0, 1, GNTCOPY_dest_gref, DOMID_SELF, self), GNTST_general_error, "read-only");
    check_equal(copy_one(local, 4090, GREF, 0, 7, GNTCOPY_dest_gref, DOMID_SELF, self), GNTST_bad_copy_arg, "past a page");
    check_equal(copy_one(local, 0, GREF, 4096, 0, GNTCOPY_dest_gref, DOMID_SELF, self), GNTST_okay, "nothing at its end");
    check_equal(copy_one(local, 0, GREF, 0xffff, 1, GNTCOPY_dest_gref, DOMID_SELF, self), GNTST_bad_copy_arg, "far past");
    check_equal(copy_one(local, 0, GREF, 0, 1, GNTCOPY_dest_gref, self, self), GNTST_permission_denied,
                "a frame by number under a domain's name");
    check_equal(copy_one(0xfffffff0, 0, GREF, 0, 1, GNTCOPY_dest_gref, DOMID_SELF, self), GNTST_bad_page, "no frame");
    check_equal(copy_one(local, 0, 1u << 20, 0, 1, GNTCOPY_dest_gref, DOMID_SELF, self), GNTST_bad_gntref, "no grant");
    check_equal(copy_one(local, 0, GREF, 0, 1, GNTCOPY_dest_gref, DOMID_SELF, 0x7ff5), GNTST_bad_domain, "no domain");
    check_equal(copy_one(local, 0, slot_of(place) >> 12, 0, 1, 0, DOMID_SELF, DOMID_SELF), GNTST_general_error,
                "into a page table");
    check_equal(copy_one(local, 0, GREF, 0, 1, GNTCOPY_dest_gref, DOMID_SELF, DOMID_SELF), GNTST_okay,
                "DOMID_SELF is good here");
    check_equal(table[GREF].flags, GTF_permit_access, "shown as idle");
}

static void swapping(void)
{
    struct gnttab_swap_grant_ref op = {.ref_a = GREF, .ref_b = GREF + 1};
    put_entry(GREF, GTF_permit_access, mfn_of(granted));
    put_entry(GREF + 1, 0, 5);
    check_equal(grant_op(GNTTABOP_swap_grant_ref, &op, 1), 0, "swap_grant_ref");
    check_equal((u64)op.status, GNTST_okay, "its status");
    check_equal(table[GREF + 1].frame, mfn_of(granted), "swapped");
    check_equal(table[GREF].frame, 5, "both");
    check_equal(map(GREF + 1, GNTMAP_device_map, 0), GNTST_okay, "map it");
    grant_op(GNTTABOP_swap_grant_ref, &op, 1);
    check_equal((u64)op.status, (u64)GNTST_eagain, "one in use");
    check_equal(unmap(map_op.handle, 0, mfn_of(granted) << 12), GNTST_okay, "unmap");
    op.ref_b = 1u << 20;
    grant_op(GNTTABOP_swap_grant_ref, &op, 1);
    check_equal((u64)op.status, (u64)GNTST_bad_gntref, "past the table");
}

static long flush(u64 maddr, u16 offset, u16 length, u32 what)
{
    struct gnttab_cache_flush op = {.a.dev_bus_addr = maddr, .offset = offset, .length = length, .op = what};
    return grant_op(GNTTABOP_cache_flush, &op, 1);
}

static void flushing(void)
{
    u64 own = mfn_of(granted) << 12;
    check_equal(flush(own, 0, 64, GNTTAB_CACHE_CLEAN), 0, "clean");
    check_equal(flush(own, 0, 4096, GNTTAB_CACHE_CLEAN | GNTTAB_CACHE_INVAL), 0, "clean and invalidate");
    check_equal(flush(own, 0, 64, GNTTAB_CACHE_INVAL), -XEN_EOPNOTSUPP_, "invalidate alone");
    check_equal(flush(own, 0, 64, 0), 0, "nothing");
    check_equal(flush(own, 0, 0, GNTTAB_CACHE_CLEAN), 0, "nowhere");
    check_equal(flush(own, 4000, 100, GNTTAB_CACHE_CLEAN), -XEN_EINVAL_, "past the page");
    check_equal(flush(own, 4096, 0, GNTTAB_CACHE_CLEAN), -XEN_EINVAL_, "at its end");
    check_equal(flush(own, 0, 64, GNTTAB_CACHE_CLEAN | GNTTAB_CACHE_SOURCE_GREF), -XEN_EINVAL_, "by reference");
    check_equal(flush(0xfffffffff000ul, 0, 64, GNTTAB_CACHE_CLEAN), -XEN_EINVAL_, "no memory");
}

void test(void)
{
    struct gnttab_setup_table setup = {.dom = DOMID_SELF, .nr_frames = 1};
    static PAGE char table_place[PAGE_SIZE];
    xen_pfn_t frames[1] = {0};

    load_traps();
    set_handler(14, catch_trap);
    self = own_domid();
    setup.frame_list.p = frames;
    check_equal(grant_op(GNTTABOP_setup_table, &setup, 1), 0, "setup_table");
    check_equal(update_va_mapping(table_place, (frames[0] << 12) | PTE_DATA, UVMF_INVLPG), 0, "map the table");
    table = (volatile grant_entry_v1_t *)table_place;
    mapping();
    many();
    refusals();
    copying();
    swapping();
    flushing();
}
