/*
 * linear: linear page tables, a table as one of the next lower level: of itself or of its like, read-only, at levels 2 to 4; what is
 * seen through them, what holds them, and which chains and circles are refused.
 */
#include "guest.h"

static PAGE u64 one[512], two[512], three[512], lower[512];
static PAGE char data[PAGE_SIZE];
static u64 mfns[3];
static u64 *const tables[3] = {one, two, three};

static long op(u32 cmd, u64 mfn) { return mmuext(cmd, mfn); }
static u64 slot(unsigned table, unsigned index) { return (mfns[table] << 12) + index * 8; }
static u64 read_only(unsigned table) { return (mfns[table] << 12) | PTE_READ_ONLY; }
static long map(void *va, u64 mfn, u64 flags) { return update_va_mapping(va, (mfn << 12) | flags, UVMF_INVLPG); }

/* Each of the three, empty, as a table of the level, by a pin. */
static void pin_all(u32 level)
{
    for (int i = 0; i < 3; i++) {
        memset(tables[i], 0, PAGE_SIZE);
        check_equal(map(tables[i], mfns[i], PTE_READ_ONLY), 0, "read-only");
        check_equal(op(MMUEXT_PIN_L1_TABLE + level - 1, mfns[i]), 0, "pin");
    }
}

static void unpin_all(void)
{
    for (int i = 0; i < 3; i++) {
        check_equal(op(MMUEXT_UNPIN_TABLE, mfns[i]), 0, "unpin");
        check_equal(map(tables[i], mfns[i], PTE_DATA), 0, "data again: nothing holds it");
    }
}

static void at_level(u32 level)
{
    pin_all(level);
    check_equal(mmu_update(slot(0, 5), read_only(0) | PTE_RW), -XEN_EINVAL_, "itself, writable");
    check_equal(mmu_update(slot(0, 5), read_only(0)), 0, "itself, read-only");
    check_equal(one[5] & ~PTE_A, read_only(0) & ~PTE_A, "as it is in the table");
    check_equal(mmu_update(slot(0, 6), read_only(0)), 0, "twice");
    check_equal(mmu_update(slot(0, 5), read_only(0) | PTE_RW), -XEN_EINVAL_, "which does not become writable");
    check_equal(mmu_update(slot(0, 5), 0), 0, "not any more");
    check_equal(mmu_update(slot(0, 6), 0), 0, "not at all");

    check_equal(mmu_update(slot(0, 5), read_only(1) | PTE_RW), -XEN_EINVAL_, "another, writable");
    check_equal(mmu_update(slot(0, 5), read_only(1)), 0, "another, read-only");
    check_equal(mmu_update(slot(0, 6), read_only(1)), 0, "twice");
    check_equal(mmu_update(slot(0, 7), read_only(2)), 0, "two others");
    check_equal(mmu_update(slot(1, 5), read_only(2)), -XEN_EINVAL_, "one that is used so may not use others so");
    check_equal(mmu_update(slot(1, 5), read_only(0)), -XEN_EINVAL_, "nor its user");
    check_equal(mmu_update(slot(1, 5), read_only(1)), 0, "but itself");
    check_equal(mmu_update(slot(1, 5), 0), 0, "not any more");
    check_equal(op(MMUEXT_UNPIN_TABLE, mfns[1]), 0, "unpin the other");
    check_equal(map(data, mfns[1], PTE_DATA), -XEN_EBUSY_, "it is held");
    check_equal(op(MMUEXT_PIN_L1_TABLE, mfns[1]), -XEN_EINVAL_, "as what it is");
    check_equal(mmu_update(slot(0, 5), 0), 0, "once less");
    check_equal(map(data, mfns[1], PTE_DATA), -XEN_EBUSY_, "still");
    check_equal(mmu_update(slot(0, 6), 0), 0, "not any more");
    check_equal(map(data, mfns[1], PTE_DATA), 0, "free");
    check_equal(map(data, mfn_of(data), PTE_DATA), 0, "as it was");
    check_equal(op(MMUEXT_PIN_L1_TABLE + level - 1, mfns[1]), 0, "pin it again");
    check_equal(mmu_update(slot(1, 5), read_only(2)), 0, "now it may use others");
    check_equal(mmu_update(slot(0, 5), read_only(1)), -XEN_EINVAL_, "and not be used");
    check_equal(mmu_update(slot(1, 5), 0), 0, "not any more");
    check_equal(mmu_update(slot(0, 5), read_only(1)), 0, "and may be");
    check_equal(mmu_update(slot(0, 5), 0), 0, "no more");
    check_equal(mmu_update(slot(0, 7), 0), 0, "no more of the third");
    unpin_all();

    /* Found when a table is validated. */
    for (int i = 0; i < 3; i++)
        memset(tables[i], 0, PAGE_SIZE);
    check_equal(map(two, mfns[1], PTE_READ_ONLY), 0, "two read-only");
    check_equal(op(MMUEXT_PIN_L1_TABLE + level - 1, mfns[1]), 0, "pin it");
    one[9] = read_only(0);
    one[10] = read_only(1);
    check_equal(map(one, mfns[0], PTE_READ_ONLY), 0, "one read-only");
    check_equal(op(MMUEXT_PIN_L1_TABLE + level - 1, mfns[0]), 0, "itself and another");
    check_equal(op(MMUEXT_UNPIN_TABLE, mfns[0]), 0, "unpin");
    check_equal(map(one, mfns[0], PTE_DATA), 0, "all is given back");
    one[11] = read_only(0) | PTE_RW;
    check_equal(map(one, mfns[0], PTE_READ_ONLY), 0, "one read-only");
    check_equal(op(MMUEXT_PIN_L1_TABLE + level - 1, mfns[0]), -XEN_EINVAL_, "itself, writable");
    check_equal(map(one, mfns[0], PTE_DATA), 0, "all is given back");
    check_equal(op(MMUEXT_UNPIN_TABLE, mfns[1]), 0, "unpin two");
    check_equal(map(two, mfns[1], PTE_DATA), 0, "free");
    memset(one, 0, PAGE_SIZE);
}

/* At a table whose linear entry is in the current address space, the entries below are pages. */
static void seen(int level, u64 index)
{
    u64 *root = (u64 *)start_info->pt_base;
    u64 at = entry_maddr((void *)(VIRT_BASE + 0x3fe00000), level) & ~4095ul;
    u64 *table = va_of_mfn(at >> 12), va = 0;

    check_equal(mmu_update(at + index * 8, at | PTE_READ_ONLY), 0, "a linear entry");
    for (int l = 4; l > 0; l--)
        va = va << 9 | (l > level ? (VIRT_BASE >> (12 + 9 * (l - 1))) & 511 : index);
    va = va << 12 | (va >> 35 & 1 ? 0xffff000000000000 : 0);
    u64 *linear = (u64 *)va;
    for (int i = 0; i < 512; i += 37)
        check_equal(linear[i] & ~(PTE_A | PTE_D), table[i] & ~(PTE_A | PTE_D), "the table, by its linear address");
    EXPECT_TRAP("movq $0, (%[at])", [at] "r"(linear));
    check_equal(caught.vector, 14, "which is not to be written");
    check_equal(caught.error_code & 3, 3, "as it is read-only");
    /* The table that maps the guest itself, one level down. */
    if (level > 2) {
        u64 next = VIRT_BASE >> (12 + 9 * (level - 1)) & 511;
        u64 *child = (u64 *)((va & ~0x1ff000ul) | next << 12);
        check_equal(child[3] & ~(PTE_A | PTE_D), ((u64 *)va_of_mfn(MFN_OF_PTE(table[next])))[3] & ~(PTE_A | PTE_D), "its child");
    }
    check_equal(update_va_mapping(linear, 0, UVMF_INVLPG), -XEN_EINVAL_, "an entry that is no level-1 entry");
    check_equal(mmu_update(at + index * 8, 0), 0, "no more");
    mmuext(MMUEXT_TLB_FLUSH_LOCAL, 0);
    EXPECT_TRAP("movq (%[at]), %%rax", [at] "r"(linear));
    check_equal(caught.vector, 14, "after a flush it is gone");
    check(root[511] & PTE_P, "the root is as it was");
}

/* What is seen by linear addresses follows the tables: after each change and flush. */
static void follows(void)
{
    u64 at = mfn_of((void *)start_info->pt_base) << 12, index = 300;
    u64 *linear = (u64 *)(0xffff000000000000 | index << 39 | index << 30 | index << 21 | 7ul << 12);

    check_equal(mmu_update(at + index * 8, at | PTE_READ_ONLY), 0, "a linear root");
    memset(lower, 0, PAGE_SIZE);
    memset(three, 0, PAGE_SIZE);
    lower[1] = 0x1110;
    three[1] = 0x2220;
    check_equal(map(lower, mfn_of(lower), PTE_READ_ONLY), 0, "read-only");
    check_equal(map(three, mfns[2], PTE_READ_ONLY), 0, "read-only");
    check_equal(mmu_update(at + 7 * 8, (mfn_of(lower) << 12) | PTE_DATA), 0, "a level-3 table in the lower half");
    check_equal(linear[1], 0x1110, "seen in the upper half");
    check_equal(mmu_update(at + 7 * 8, (mfns[2] << 12) | PTE_DATA), 0, "another");
    mmuext(MMUEXT_TLB_FLUSH_LOCAL, 0);
    check_equal(linear[1], 0x2220, "seen after a flush of all");
    check_equal(mmu_update(at + 7 * 8, (mfn_of(lower) << 12) | PTE_DATA), 0, "the first");
    mmuext(MMUEXT_INVLPG_LOCAL, PTR(linear));
    check_equal(linear[1], 0x1110, "seen after a flush of the page");
    check_equal(mmu_update(at + 7 * 8, 0), 0, "none");
    mmuext(MMUEXT_NEW_BASEPTR, at >> 12);
    EXPECT_TRAP("movq (%[at]), %%rax", [at] "r"(linear));
    check_equal(caught.vector, 14, "gone after a reload of the root");
    check_equal(mmu_update(at + index * 8, 0), 0, "no linear root");
    check_equal(map(lower, mfn_of(lower), PTE_DATA), 0, "data");
    check_equal(map(three, mfns[2], PTE_DATA), 0, "data");
}

void test(void)
{
    load_traps();
    catch_traps();
    for (int i = 0; i < 3; i++)
        mfns[i] = mfn_of(tables[i]);
    for (u32 level = 2; level <= 4; level++)
        at_level(level);
    seen(4, 300);
    seen(4, 100);
    seen(3, 100);
    seen(2, 100);
    follows();
}
