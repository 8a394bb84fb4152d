/*
 * ptwr: a direct store to a read-only level-1 table is emulated, with the same checks as mmu_update; a store to any
 * other table is an ordinary page fault.
 */
#include "guest.h"

static PAGE char window[PAGE_SIZE];
static PAGE volatile char first[PAGE_SIZE], second[PAGE_SIZE], retired[PAGE_SIZE];

static volatile u64 *entry_va(void *va, int level)
{
    u64 maddr = entry_maddr(va, level);
    return (volatile u64 *)((char *)va_of_mfn(maddr >> 12) + (maddr & 4095));
}

void test(void)
{
    volatile u64 *l1e = entry_va(window, 1), *l2e = entry_va(window, 2);
    volatile char *at = window;
    u64 pte = (mfn_of(first) << 12) | PTE_DATA;

    check_equal(hypercall2(__HYPERVISOR_vm_assist, VMASST_CMD_enable, VMASST_TYPE_writable_pagetables), 0, "vm_assist");
    load_traps();
    set_handler(14, catch_trap);
    set_handler(13, catch_trap);
    first[0] = 'a';
    second[0] = 'b';

    *l1e = pte;
    mmuext(MMUEXT_INVLPG_LOCAL, PTR(window));
    check_equal(at[0], 'a', "a store to a level-1 entry");
    u64 old = *l1e;
    check(__sync_bool_compare_and_swap(l1e, old, (mfn_of(second) << 12) | PTE_DATA), "cmpxchg of a level-1 entry");
    mmuext(MMUEXT_INVLPG_LOCAL, PTR(window));
    check_equal(at[0], 'b', "and its effect");
    check(!__sync_bool_compare_and_swap(l1e, 0x1234, pte), "a cmpxchg that does not match");
    mmuext(MMUEXT_INVLPG_LOCAL, PTR(window));
    check_equal(at[0], 'b', "changes nothing");
    *l1e = 0;
    mmuext(MMUEXT_INVLPG_LOCAL, PTR(window));
    EXPECT_TRAP("movb (%[where]), %%al", [where] "r"(at));
    check_equal(caught.vector, 14, "a cleared entry");
    *l1e = pte;
    mmuext(MMUEXT_INVLPG_LOCAL, PTR(window));
    check_equal(at[0], 'a', "and set again");

    /* What was a table until now may still be in a page walk, for which the hypervisor waits. */
    check_equal(update_va_mapping((void *)retired, (mfn_of(retired) << 12) | PTE_READ_ONLY, UVMF_INVLPG), 0, "read-only");
    check_equal(mmuext(MMUEXT_PIN_L1_TABLE, mfn_of(retired)), 0, "a table");
    check_equal(mmuext(MMUEXT_UNPIN_TABLE, mfn_of(retired)), 0, "and none any more");
    *l1e = (mfn_of(retired) << 12) | PTE_DATA;
    mmuext(MMUEXT_INVLPG_LOCAL, PTR(window));
    at[0] = 'c';
    check_equal(retired[0], 'c', "a former table, mapped writable by a store");
    *l1e = pte;
    mmuext(MMUEXT_INVLPG_LOCAL, PTR(window));

    old = *l1e;
    EXPECT_TRAP("movq %[value], (%[where])", [where] "r"(l1e), [value] "r"((foreign_mfn() << 12) | PTE_DATA));
    check_equal(caught.vector, 14, "a store that the checks refuse is a page fault");
    check_equal(*l1e, old, "and changes nothing");
    u64 old_l2e = *l2e;
    EXPECT_TRAP("movq %[value], (%[where])", [where] "r"(l2e), [value] "r"(0ul));
    check_equal(caught.vector, 14, "a store to a level-2 entry is a page fault");
    check_equal(*l2e, old_l2e, "and changes nothing");
}
