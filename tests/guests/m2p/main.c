/*
 * m2p: the machine-to-phys table is mapped read-only at the ABI's address and agrees with the P2M.
 */
#include "guest.h"

void test(void)
{
    volatile u64 *m2p = (volatile u64 *)0xffff800000000000;
    u64 wrong = 0;

    load_traps();
    set_handler(14, catch_trap);
    set_handler(13, catch_trap);
    for (u64 pfn = 0; pfn < start_info->nr_pages; pfn++)
        wrong += m2p[p2m()[pfn]] != pfn;
    check_equal(wrong, 0, "M2P of every frame of ours is its PFN");

    u64 *entry = (u64 *)&m2p[p2m()[5]];
    EXPECT_TRAP("movq $7, (%[where])", [where] "r"(entry));
    check_equal(caught.vector, 14, "a write to the M2P faults");
    check_equal(*entry, 5, "and changes nothing");
    EXPECT_TRAP("movq (%[where]), %%rax", [where] "r"(0xffff807fffffff00ul));
    check_equal(caught.count, 1, "a read far outside the table faults");
    EXPECT_TRAP("movq (%[where]), %%rax", [where] "r"(0xffff820000000000ul));
    check_equal(caught.count, 1, "the rest of the hypervisor's range is not readable");

    check_equal(mmu_update((p2m()[5] << 12) | MMU_MACHPHYS_UPDATE, 0x4321), 0, "MMU_MACHPHYS_UPDATE");
    check_equal(*(volatile u64 *)entry, 0x4321, "is seen");
    check_equal(mmu_update((p2m()[5] << 12) | MMU_MACHPHYS_UPDATE, 5), 0, "put it back");
    check(mmu_update((foreign_mfn() << 12) | MMU_MACHPHYS_UPDATE, 1) < 0, "M2P of a foreign frame");
}
