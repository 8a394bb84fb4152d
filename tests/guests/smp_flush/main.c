/*
 * smp_flush: once a hypercall that flushes the TLBs of other vCPUs has returned, none of them uses the old mapping; in
 * every form of it. Bits of vCPUs that are not there, or are down, do no harm; a bitmap that cannot be read is refused.
 *
 * vcpus: 5
 * timeout: 60
 */
#include "guest.h"

enum { NR_READERS = 3, NR_ROUNDS = 60, NR_FORMS = 8 };
static PAGE char window[PAGE_SIZE];
static PAGE volatile u64 pages[2][PAGE_SIZE / 8];
static PAGE u64 masks[2 * PAGE_SIZE / 8];
/* What every reader must see from now on, and how often each looked. */
static volatile u64 current, looks[8], nr_stale, stop;

static void read_window(unsigned id)
{
    while (!stop) {
        u64 expected = current;
        asm volatile("" ::: "memory");
        u64 value = *(volatile u64 *)window;
        if (value < expected)
            asm volatile("lock incq %0" : "+m"(nr_stale));
        looks[id]++;
    }
}

/* Maps page `page` in the window and makes the readers see it, by form `form`. */
static long map_window(int page, int form, u64 *mask)
{
    u64 pte = mfn_of(&pages[page]) << 12 | PTE_DATA;
    struct mmuext_op op = {.arg1.linear_addr = PTR(window)};
    static const u32 commands[] = {
        MMUEXT_INVLPG_ALL, MMUEXT_TLB_FLUSH_ALL, MMUEXT_INVLPG_MULTI, MMUEXT_TLB_FLUSH_MULTI,
    };

    switch (form) {
    case 0: return update_va_mapping(window, pte, UVMF_INVLPG | UVMF_ALL);
    case 1: return update_va_mapping(window, pte, UVMF_TLB_FLUSH | UVMF_ALL);
    case 2: return update_va_mapping(window, pte, UVMF_INVLPG | UVMF_MULTI | PTR(mask));
    case 3: return update_va_mapping(window, pte, UVMF_TLB_FLUSH | UVMF_MULTI | PTR(mask));
    }
    long result = mmu_update(entry_maddr(window, 1) | MMU_NORMAL_PT_UPDATE, pte);
    if (result != 0)
        return result;
    op.cmd = commands[form - 4];
    op.arg2.vcpumask.p = mask;
    return hypercall4(__HYPERVISOR_mmuext_op, PTR(&op), 1, 0, DOMID_SELF);
}

void test(void)
{
    load_traps();
    if (nr_vcpus() < 2)
        finish("SKIP");
    check_equal(map_window(0, 0, NULL), 0, "map the first page");
    unsigned nr_readers = nr_vcpus() - 1 < NR_READERS ? nr_vcpus() - 1 : NR_READERS;
    for (unsigned id = 1; id <= nr_readers; id++)
        start_vcpu(id, read_window);
    for (unsigned id = 1; id <= nr_readers; id++)
        check(wait_until(&looks[id], 1), "a reader reads");

    u64 next = 0;
    for (int form = 0; form < NR_FORMS; form++) {
        for (int round = 0; round < NR_ROUNDS; round++) {
            next++;
            pages[next & 1][0] = next;
            /* All readers, one vCPU that is down, and many that there never are. */
            masks[round] = ~0ul;
            check_equal(map_window(next & 1, form, &masks[round]), 0, "map and flush");
            current = next;
        }
        for (unsigned id = 1; id <= nr_readers; id++)
            check(wait_until(&looks[id], looks[id] + 1), "a reader goes on");
        if (nr_stale != 0)
            print("form %d: %lu stale reads\n", form, nr_stale);
        check_equal(nr_stale, 0, "no reader uses the old mapping");
        nr_stale = 0;
    }

    /* A mask that ends where the memory does. */
    check_equal(update_va_mapping(&masks[512], 0, UVMF_INVLPG | UVMF_ALL), 0, "unmap what is behind the mask");
    masks[511] = ~0ul;
    check_equal(map_window(0, 2, &masks[511]), 0, "a mask at the end of a page");
    check_equal(map_window(0, 6, &masks[511]), 0, "and for mmuext_op");
    check_equal(map_window(0, 6, &masks[512]), (u64)-XEN_EINVAL_, "no mask: INVLPG_MULTI");
    check_equal(map_window(0, 7, (u64 *)0x10), (u64)-XEN_EINVAL_, "no mask: TLB_FLUSH_MULTI");
    check_equal(map_window(1, 2, &masks[512]), (u64)-XEN_EFAULT_, "no mask: UVMF_INVLPG | UVMF_MULTI");
    check_equal(map_window(1, 3, &masks[512]), (u64)-XEN_EFAULT_, "no mask: UVMF_TLB_FLUSH | UVMF_MULTI");
    stop = 1;
}
