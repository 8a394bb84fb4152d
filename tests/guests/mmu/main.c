/*
 * mmu: page-table updates are validated: an entry that would give away a table or a foreign frame is refused with the
 * old entry unchanged; pinning, unpinning and linking of tables follow the page types.
 */
#include "guest.h"

static PAGE char window[PAGE_SIZE];
static PAGE volatile char first[PAGE_SIZE], second[PAGE_SIZE];
static PAGE volatile u64 table[512], bad_table[512];

static u64 entry_of(void *va)
{
    u64 maddr = entry_maddr(va, 1);
    return *(u64 *)((char *)va_of_mfn(maddr >> 12) + (maddr & 4095));
}

static void refused(u64 pte, const char *what)
{
    u64 before = entry_of(window);
    long result = update_va_mapping(window, pte, UVMF_INVLPG);
    check(result < 0 && result >= -133, what);
    check_equal(entry_of(window), before, "the old entry stays");
    result = mmu_update(entry_maddr(window, 1), pte);
    check(result < 0 && result >= -133, what);
    check_equal(entry_of(window), before, "the old entry stays (mmu_update)");
}

static void mappings(void)
{
    volatile char *at = window;

    first[0] = 'a';
    second[0] = 'b';
    check_equal(update_va_mapping(window, (mfn_of(first) << 12) | PTE_DATA, UVMF_INVLPG), 0, "map the first");
    check_equal(at[0], 'a', "read through the new mapping");
    check_equal(update_va_mapping(window, (mfn_of(second) << 12) | PTE_DATA, UVMF_INVLPG), 0, "map the second");
    check_equal(at[0], 'b', "read through the newer mapping");
    at[1] = 'c';
    check_equal(second[1], 'c', "write through it");
    check(mmu_update(entry_maddr(window, 1), (mfn_of(first) << 12) | PTE_DATA) == 0, "mmu_update");
    mmuext(MMUEXT_TLB_FLUSH_LOCAL, 0);
    check_equal(at[0], 'a', "after mmu_update and a flush");
    check_equal(mmu_update(entry_maddr(window, 1) | MMU_PT_UPDATE_PRESERVE_AD, (mfn_of(second) << 12) | PTE_DATA), 0,
                "mmu_update, preserving A and D");
    mmuext(MMUEXT_INVLPG_LOCAL, PTR(window));
    check_equal(at[0], 'b', "after it");
    check_equal(mmu_update(mfn_of(first) << 12, 0x1122334455667788), 0, "mmu_update of a data frame is a store");
    check_equal(*(volatile u64 *)first, 0x1122334455667788, "its value");
}

static void accessed_and_dirty(void)
{
    volatile char *at = window;
    u64 base = mfn_of(second) << 12;
    check_equal(update_va_mapping(window, base | PTE_P | PTE_RW | PTE_US, UVMF_INVLPG), 0, "map with A and D clear");
    check_equal(entry_of(window) & (PTE_A | PTE_D), 0, "A and D clear");
    (void)at[0];
    check_equal(entry_of(window) & (PTE_A | PTE_D), PTE_A, "a read sets A");
    at[0] = 'b';
    check_equal(entry_of(window) & (PTE_A | PTE_D), PTE_A | PTE_D, "a write sets D");
}

static void refusals(void)
{
    u64 root_mfn = mfn_of((void *)start_info->pt_base);
    refused((root_mfn << 12) | PTE_DATA, "a writable mapping of a page table");
    refused((foreign_mfn() << 12) | PTE_DATA, "a frame that is not ours");
    refused((foreign_mfn() << 12) | PTE_READ_ONLY, "a read-only one");
    if (!(start_info->flags & SIF_INITDOMAIN)) /* domain 0 may map I/O memory */
        refused((0x7fffffful << 12) | PTE_DATA, "a frame beyond the machine");
    refused(0x0000fffffffff000ul | PTE_DATA, "a wild frame number");
    refused((mfn_of(first) << 12) | PTE_DATA | 1ul << 51, "a reserved address bit");
    check(update_va_mapping((void *)0xffff800000001000, (mfn_of(first) << 12) | PTE_DATA, 0) < 0, "the hypervisor's slot");
    check(update_va_mapping((void *)0x10000000000, (mfn_of(first) << 12) | PTE_DATA, 0) < 0, "an address without tables");
    check_equal(update_va_mapping(window, (root_mfn << 12) | PTE_READ_ONLY, UVMF_INVLPG), 0, "a table, read-only");
    check(mmu_update((foreign_mfn() << 12), 0) < 0, "mmu_update of a foreign frame");
    check(mmuext(MMUEXT_NEW_BASEPTR, mfn_of(first)) < 0, "a data page as root");
    check(mmuext(MMUEXT_NEW_BASEPTR, foreign_mfn()) < 0, "a foreign root");
    check(mmuext(MMUEXT_PIN_L1_TABLE, mfn_of(bad_table)) < 0, "pinning a page that is mapped writable");
    check(mmuext(MMUEXT_UNPIN_TABLE, mfn_of(first)) < 0, "unpinning what is not pinned");
    check_equal(mmuext(9999, 0), -XEN_ENOSYS_, "an mmuext_op that does not exist");
    check(hypercall4(__HYPERVISOR_mmu_update, 0xffff800000000000, 1, 0, DOMID_SELF) == -XEN_EFAULT_, "a bad handle");
}

static void pinning(void)
{
    u64 mfn = mfn_of(table);
    u64 *new_va = (u64 *)(VIRT_BASE + 0x3fe00000); /* an L2 slot of ours that nothing uses */

    table[3] = (mfn_of(first) << 12) | PTE_DATA;
    check_equal(update_va_mapping((void *)table, (mfn << 12) | PTE_READ_ONLY, UVMF_INVLPG), 0, "table read-only");
    check_equal(mmuext(MMUEXT_PIN_L1_TABLE, mfn), 0, "pin it");
    check(update_va_mapping((void *)table, (mfn << 12) | PTE_DATA, UVMF_INVLPG) < 0, "a pinned table stays read-only");
    check_equal(mmu_update((mfn << 12) + 8 * 4, (mfn_of(second) << 12) | PTE_DATA), 0, "change an entry while pinned");
    check_equal(mmu_update(entry_maddr(new_va, 2), (mfn << 12) | PTE_DATA), 0, "link it");
    first[8] = 'x';
    check_equal(*((volatile char *)new_va + 3 * PAGE_SIZE + 8), 'x', "an address through it");
    check_equal(*((volatile char *)new_va + 4 * PAGE_SIZE), second[0], "another");
    check_equal(mmuext(MMUEXT_UNPIN_TABLE, mfn), 0, "unpin while linked");
    check(update_va_mapping((void *)table, (mfn << 12) | PTE_DATA, UVMF_INVLPG) < 0, "a linked table stays read-only");
    check_equal(mmu_update(entry_maddr(new_va, 2), 0), 0, "unlink it");
    mmuext(MMUEXT_TLB_FLUSH_LOCAL, 0);
    check_equal(update_va_mapping((void *)table, (mfn << 12) | PTE_DATA, UVMF_INVLPG), 0, "then it is data again");

    bad_table[0] = (foreign_mfn() << 12) | PTE_DATA;
    check_equal(update_va_mapping((void *)bad_table, (mfn_of(bad_table) << 12) | PTE_READ_ONLY, UVMF_INVLPG), 0, "bad one RO");
    check(mmuext(MMUEXT_PIN_L1_TABLE, mfn_of(bad_table)) < 0, "pinning a table with a foreign entry");
    check_equal(update_va_mapping((void *)bad_table, (mfn_of(bad_table) << 12) | PTE_DATA, UVMF_INVLPG), 0, "and no type stays");
}

void test(void)
{
    mappings();
    accessed_and_dirty();
    refusals();
    pinning();
}
