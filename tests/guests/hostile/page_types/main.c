/*
 * hostile/page_types: every way to get a page table or descriptor page that one can also write: confusion of types, a
 * table that contains itself or its like, superpages, reserved bits, frames of others, counts that overflow.
 * Classes of XSA-45, 148, 182, 212, 213, 240, 280, 299, 302 and 402.
 */
#include "guest.h"

static PAGE u64 table[512], upper[512], third[512];
static PAGE char window[PAGE_SIZE], data[PAGE_SIZE];

static long map(void *va, u64 mfn, u64 flags) { return update_va_mapping(va, (mfn << 12) | flags, UVMF_INVLPG); }

void test(void)
{
    u64 mfn = mfn_of(table), slot = entry_maddr(window, 1);

    load_traps();
    check(mmuext(MMUEXT_PIN_L1_TABLE, mfn) < 0, "a frame that is mapped writable cannot become a table");
    check_equal(map(table, mfn, PTE_READ_ONLY), 0, "now it is read-only");
    check_equal(mmuext(MMUEXT_PIN_L1_TABLE, mfn), 0, "an empty L1");
    check(map(table, mfn, PTE_DATA) < 0, "cannot be mapped writable again");
    check(map(window, mfn, PTE_DATA) < 0, "nor elsewhere");
    check(mmu_update(slot, (mfn << 12) | PTE_DATA) < 0, "nor by mmu_update");
    check(mmu_update((mfn << 12), (mfn << 12) | PTE_DATA) < 0, "nor by itself");
    check(mmuext(MMUEXT_PIN_L2_TABLE, mfn) < 0, "nor used at another level");
    check(mmuext(MMUEXT_CLEAR_PAGE, mfn) < 0, "nor cleared");
    struct mmuext_op copy = {.cmd = MMUEXT_COPY_PAGE, .arg1.mfn = mfn, .arg2.src_mfn = mfn_of(data)};
    check(hypercall4(__HYPERVISOR_mmuext_op, PTR(&copy), 1, 0, DOMID_SELF) < 0, "nor copied to");
    u64 frames[1] = {mfn};
    check(hypercall2(__HYPERVISOR_set_gdt, PTR(frames), 512) < 0, "nor used as GDT");
    check(hypercall2(__HYPERVISOR_update_descriptor, mfn << 12, 0x00cff3000000ffff) < 0, "nor written as descriptor");

    /* Entries that must not get into a table. */
    static const u64 bad[] = {PTE_DATA | 1 << 7, PTE_DATA | 1 << 3, PTE_DATA | 1 << 4};
    for (unsigned i = 0; i < 3 && !(start_info->flags & SIF_INITDOMAIN); i++)
        check(mmu_update(slot, (mfn_of(data) << 12) | bad[i]) < 0, "PAT, PWT, PCD of a domain without devices");
    check(mmu_update(slot, (1ul << 45) | PTE_DATA) < 0, "an address that no machine has");
    if (!(start_info->flags & SIF_INITDOMAIN))
        check(mmu_update(slot, (foreign_mfn() << 12) | PTE_DATA) < 0, "another's frame");

    /* Upper levels: superpage, wrong level, itself. */
    u64 upper_mfn = mfn_of(upper);
    check_equal(map(upper, upper_mfn, PTE_READ_ONLY), 0, "upper read-only");
    check_equal(mmuext(MMUEXT_PIN_L2_TABLE, upper_mfn), 0, "an empty L2");
    check(mmu_update(upper_mfn << 12, (mfn_of(data) << 12 & ~0x1ffffful) | PTE_DATA | 1 << 7) < 0, "a superpage");
    check(mmu_update(upper_mfn << 12, (mfn_of(data) << 12) | PTE_DATA) < 0, "a page of data as L1");
    check(mmu_update(upper_mfn << 12, (upper_mfn << 12) | PTE_DATA) < 0, "a writable linear table");
    check_equal(mmu_update(upper_mfn << 12, (mfn << 12) | PTE_DATA), 0, "an L1");
    check(mmu_update((upper_mfn << 12) + 8, (upper_mfn << 12) | PTE_DATA) < 0, "itself beside it");

    /* An L4 cannot reach itself writably, nor the hypervisor's slots be changed. */
    u64 root = mfn_of((void *)start_info->pt_base) << 12;
    check(mmu_update(root + 5 * 8, root | PTE_DATA) < 0, "a writable linear root");
    check(mmu_update(root + 256 * 8, root | PTE_READ_ONLY) < 0, "the hypervisor's first slot");
    check(mmu_update(root + 271 * 8, 0) < 0, "and its last");

    /* One type at a time, whichever way out. */
    check(mmuext(MMUEXT_UNPIN_TABLE, mfn_of(data)) < 0, "unpin what is not pinned");
    check_equal(mmuext(MMUEXT_UNPIN_TABLE, mfn), 0, "unpin");
    check(mmuext(MMUEXT_UNPIN_TABLE, mfn) < 0, "only once");
    check(map(window, mfn, PTE_DATA) < 0, "it is still linked");
    check_equal(mmu_update(upper_mfn << 12, 0), 0, "unlink");
    check_equal(map(window, mfn, PTE_DATA), 0, "data again");
    window[0] = 1;
    check(mmu_update(upper_mfn << 12, (mfn << 12) | PTE_DATA) < 0, "no table while it is");
    *(u64 *)window = (upper_mfn << 12) | PTE_DATA;
    check_equal(update_va_mapping(window, 0, UVMF_INVLPG), 0, "unmap");
    check(mmuext(MMUEXT_PIN_L1_TABLE, mfn) < 0, "what was written into it is looked at");

    /* Many references go and come back without one too many or too few. */
    u64 third_mfn = mfn_of(third);
    for (int i = 0; i < 512; i++)
        third[i] = (mfn_of(data) << 12) | PTE_DATA;
    check_equal(map(third, third_mfn, PTE_READ_ONLY), 0, "third read-only");
    for (int round = 0; round < 50; round++) {
        check_equal(mmuext(MMUEXT_PIN_L1_TABLE, third_mfn), 0, "512 references at once");
        check(mmuext(MMUEXT_PIN_L1_TABLE, mfn_of(data)) < 0, "each counts");
        check_equal(mmuext(MMUEXT_UNPIN_TABLE, third_mfn), 0, "and goes");
    }
}
