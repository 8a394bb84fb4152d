/* Page tables and frames of the small PV guests, found as any PV kernel finds them: by P2M and M2P. */
#include "guest.h"
#include <xen/grant_table.h>

u64 *p2m(void)
{
    return (u64 *)start_info->mfn_list;
}

u64 pfn_of(const volatile void *va)
{
    return (PTR(va) - VIRT_BASE) >> 12;
}

u64 mfn_of(const volatile void *va)
{
    return p2m()[pfn_of(va)];
}

void *va_of_mfn(u64 mfn)
{
    for (u64 pfn = 0; pfn < start_info->nr_pages; pfn++)
        if (p2m()[pfn] == mfn)
            return (void *)(VIRT_BASE + (pfn << 12));
    return NULL;
}

u64 entry_maddr(const void *va, int level)
{
    u64 *table = (u64 *)start_info->pt_base;
    for (int at = 4;; at--) {
        u64 index = (PTR(va) >> (12 + 9 * (at - 1))) & 511;
        if (at == level)
            return (mfn_of(table) << 12) + index * 8;
        table = va_of_mfn(MFN_OF_PTE(table[index]));
        if (table == NULL) {
            print("no level %d table for 0x%lx\n", at - 1, PTR(va));
            finish("ERROR");
        }
    }
}

u64 foreign_mfn(void)
{
    /* The low megabyte is I/O memory, which domain 0 may map: this harness also runs as domain 0 of a real Xen. */
    u64 mfn = start_info->flags & SIF_INITDOMAIN ? 0x10000 : 1;
    while (va_of_mfn(mfn) != NULL)
        mfn++;
    return mfn;
}

shared_info_t *map_shared_info(void)
{
    static PAGE char place[PAGE_SIZE];
    check_equal(update_va_mapping(place, start_info->shared_info | PTE_DATA, UVMF_INVLPG), 0, "mapping shared_info");
    return (shared_info_t *)place;
}

u64 number_after(const char *key)
{
    const char *at = (const char *)start_info->cmd_line;
    size_t length = 0;
    while (key[length])
        length++;
    for (; *at; at++) {
        if (memcmp(at, key, length) != 0)
            continue;
        u64 number = 0;
        for (at += length; *at >= '0' && *at <= '9'; at++)
            number = number * 10 + (*at - '0');
        return number;
    }
    return 0;
}

void map_at(u64 va, void *page)
{
    enum { NR_TABLES = 12 };
    static PAGE u64 tables[NR_TABLES][512];
    static unsigned nr_tables;
    u64 *table = (u64 *)start_info->pt_base;

    for (int level = 4; level > 1; level--) {
        u64 index = va >> (12 + 9 * (level - 1)) & 511;
        if (!(table[index] & PTE_P)) {
            if (nr_tables == NR_TABLES)
                finish("ERROR");
            u64 *next = tables[nr_tables++];
            check_equal(update_va_mapping(next, (mfn_of(next) << 12) | PTE_READ_ONLY, UVMF_INVLPG), 0, "a table, read-only");
            check_equal(mmu_update((mfn_of(table) << 12) + index * 8, (mfn_of(next) << 12) | PTE_DATA), 0, "and linked");
        }
        table = va_of_mfn(MFN_OF_PTE(table[index]));
    }
    check_equal(update_va_mapping((void *)va, (mfn_of(page) << 12) | PTE_DATA, UVMF_INVLPG), 0, "a page of ours elsewhere");
}

void map_grant_table(void *page)
{
    xen_pfn_t frame;
    struct gnttab_setup_table setup = {.dom = DOMID_SELF, .nr_frames = 1};
    set_xen_guest_handle(setup.frame_list, &frame);
    check_equal(hypercall5(__HYPERVISOR_grant_table_op, GNTTABOP_setup_table, PTR(&setup), 1, 0, 0), 0, "setup_table");
    check_equal(update_va_mapping(page, (frame << 12) | PTE_DATA, UVMF_INVLPG), 0, "map the grant table");
}
