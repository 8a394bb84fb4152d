/*
 * smp_pins: more vCPUs than CPUs pin, use and let go of trees of tables, each its own. A call that makes room for another vCPU half
 * way ends as one that does not: with its result, the number of operations that it did, and nothing held that should not be.
 *
 * vcpus: 4
 * timeout: 60
 */
#include "guest.h"

enum { NR_L1 = 6, ROUNDS = 150, MAX_VCPUS_ = 4 };
struct tree { u64 l4[512], l3[512], l2[512], l1[NR_L1][512]; };
static PAGE struct tree trees[MAX_VCPUS_];
static PAGE char data[PAGE_SIZE];
static int nr_rounds;
static volatile u64 ends[MAX_VCPUS_], nr_wrong;

static void expect(long got, long expected, const char *what, unsigned id, int round)
{
    if (got == expected)
        return;
    print("vCPU %u round %d: %s: %ld, not %ld\n", id, round, what, (u64)got, (u64)expected);
    nr_wrong++;
}

static long protect(u64 *table, bool writable)
{
    return update_va_mapping(table, (mfn_of(table) << 12) | (writable ? PTE_DATA : PTE_READ_ONLY), UVMF_INVLPG | UVMF_ALL);
}

static void run(unsigned id)
{
    struct tree *tree = &trees[id];
    u64 *tables[3 + NR_L1] = {tree->l4, tree->l3, tree->l2};
    for (int i = 0; i < NR_L1; i++)
        tables[3 + i] = tree->l1[i];
    for (int round = 0; round < nr_rounds; round++) {
        bool is_bad = round % 3 == 2;
        tree->l4[5] = (mfn_of(tree->l3) << 12) | PTE_DATA;
        tree->l3[6] = (mfn_of(tree->l2) << 12) | PTE_DATA;
        for (int i = 0; i < NR_L1; i++) {
            tree->l2[i * 80] = (mfn_of(tree->l1[i]) << 12) | PTE_DATA;
            for (int entry = 0; entry < 512; entry++)
                tree->l1[i][entry] = (mfn_of(data) << 12) | PTE_DATA;
        }
        if (is_bad)
            tree->l1[NR_L1 - 1][511] = (mfn_of(tree->l2) << 12) | PTE_DATA; /* a table above it, writable */
        for (int i = 0; i < 3 + NR_L1; i++)
            expect(protect(tables[i], false), 0, "read-only", id, round);
        u32 done = 77;
        struct mmuext_op ops[] = {{.cmd = MMUEXT_PIN_L4_TABLE, .arg1.mfn = mfn_of(tree->l4)},
                                  {.cmd = MMUEXT_NEW_USER_BASEPTR, .arg1.mfn = mfn_of(tree->l4)},
                                  {.cmd = MMUEXT_UNPIN_TABLE, .arg1.mfn = mfn_of(tree->l4)},
                                  {.cmd = MMUEXT_NEW_USER_BASEPTR}};
        long result = hypercall4(__HYPERVISOR_mmuext_op, PTR(ops), 4, PTR(&done), DOMID_SELF);
        expect(result, is_bad ? -XEN_EBUSY_ : 0, "pin, use, unpin, leave", id, round);
        expect(done, is_bad ? 0 : 4, "what is done", id, round);
        /* Once more by an entry of a root, which is let go with it. */
        if (!is_bad) {
            struct mmu_update list[] = {{(mfn_of(tree->l4) << 12) + 8 * 9, (mfn_of(tree->l3) << 12) | PTE_DATA},
                                        {(mfn_of(tree->l4) << 12) + 8 * 9, 0}};
            expect(mmuext(MMUEXT_PIN_L4_TABLE, mfn_of(tree->l4)), 0, "pin again", id, round);
            expect(hypercall4(__HYPERVISOR_mmu_update, PTR(list), 2, PTR(&done), DOMID_SELF), 0, "twice in it", id, round);
            expect(done, 2, "what is done", id, round);
            list[0] = (struct mmu_update){(mfn_of(tree->l4) << 12) + 8 * 5, 0};
            expect(hypercall4(__HYPERVISOR_mmu_update, PTR(list), 1, PTR(&done), DOMID_SELF), 0, "not in it", id, round);
            expect(protect(tree->l1[0], true), 0, "what was in it is free at once", id, round);
            expect(mmuext(MMUEXT_UNPIN_TABLE, mfn_of(tree->l4)), 0, "unpin", id, round);
        }
        for (int i = 0; i < 3 + NR_L1; i++)
            expect(protect(tables[i], true), 0, "data again", id, round);
    }
    ends[id] = 1;
}

static void other(unsigned id)
{
    load_traps();
    run(id);
}

void test(void)
{
    unsigned nr = nr_vcpus() < MAX_VCPUS_ ? nr_vcpus() : MAX_VCPUS_;
    load_traps();
    nr_rounds = number_after("rounds=") ?: start_info->flags & SIF_INITDOMAIN ? 6 : ROUNDS; /* QEMU TCG is slow */
    for (unsigned id = 1; id < nr; id++)
        start_vcpu(id, other);
    run(0);
    for (unsigned id = 1; id < nr; id++)
        check(wait_until(&ends[id], 1), "the others end");
    check_equal(nr_wrong, 0, "what went wrong");
}
