/*
 * hostile/stale_tlb: one vCPU stores through a translation that it has cached, again and again, while the other takes the mapping
 * away without a flush and makes the frame a page table: from then on no store may reach it. Classes of XSA-286, 345 and 401.
 *
 * vcpus: 2
 * timeout: 60
 */
#include "guest.h"

enum { NR_ROUNDS = 300 };
static PAGE volatile u64 window[512];
static PAGE volatile u64 frame[512];
static volatile u64 nr_stores, is_over;

/* A store that the handler passes over when it faults. */
asm(".globl store_to_window, after_store\n"
    "store_to_window: mov %rsi, (%rdi)\n"
    "after_store: ret\n");
extern void store_to_window(volatile u64 *at, u64 value);
extern const char after_store[];

static void on_fault(struct frame *trap)
{
    if (trap->rip != PTR(store_to_window)) {
        print("fault at 0x%lx\n", trap->rip);
        finish("FAILURE");
    }
    trap->rip = PTR(after_store);
}

static void attacker(unsigned id)
{
    (void)id;
    load_traps();
    while (!is_over) {
        /* As an entry of a table this would map frame 1, which is the hypervisor's, writable. */
        store_to_window(&window[7], 0x1000 | PTE_DATA);
        nr_stores++;
        /* Now and then long enough for the other to clear the frame and make it a table between two stores. */
        for (volatile u64 gap = (nr_stores * 37) & 4095; gap != 0; gap--)
            ;
    }
    is_over = 2;
}

void test(void)
{
    if (nr_vcpus() < 2)
        finish("SKIP");
    load_traps();
    set_handler(14, on_fault);
    u64 mfn = mfn_of((void *)frame), refused = 0;
    check_equal(update_va_mapping((void *)frame, (mfn << 12) | PTE_READ_ONLY, UVMF_INVLPG | UVMF_ALL), 0, "read-only");
    start_vcpu(1, attacker);
    for (int round = 0; round < NR_ROUNDS; round++) {
        check_equal(update_va_mapping((void *)window, (mfn << 12) | PTE_DATA, UVMF_INVLPG | UVMF_ALL), 0, "writable");
        check(wait_until(&nr_stores, nr_stores + 20), "the attacker stores");
        check_equal(update_va_mapping((void *)window, 0, 0), 0, "unmapped, with no flush");
        /* Without what the attacker left there it is an empty table; but the attacker may store until the type changes. */
        struct mmuext_op clear = {.cmd = MMUEXT_CLEAR_PAGE, .arg1.mfn = mfn};
        hypercall4(__HYPERVISOR_mmuext_op, PTR(&clear), 1, 0, DOMID_SELF);
        if (mmuext(MMUEXT_PIN_L1_TABLE, mfn) != 0) {
            refused++;
            continue;
        }
        for (int i = 0; i < 2000; i++)
            if (frame[7] != 0) {
                check(false, "a store reached a page table");
                break;
            }
        check_equal(mmuext(MMUEXT_UNPIN_TABLE, mfn), 0, "unpin");
    }
    is_over = 1;
    check(wait_until(&is_over, 2), "the attacker ends");
    check(refused < NR_ROUNDS, "sometimes it became a table");
}
