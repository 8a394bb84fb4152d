/*
 * hostile/double_fetch: one vCPU changes what the other's hypercalls and emulated stores are about while they are served: the
 * requests of mmu_update, the list of a multicall, the instruction that stores to a page table, marks of continued calls. What
 * is checked is what is done. Classes of XSA-155, 156, 183, 273, 303, 310 and 402.
 *
 * vcpus: 2
 * timeout: 90
 */
#include "guest.h"

enum { NR_ROUNDS = 3000, NR_REQUESTS = 64 };
#define MMU_UPDATE_PREEMPTED 0x80000000ul
static PAGE u64 table[512];
static PAGE volatile char data[PAGE_SIZE], window[PAGE_SIZE];
static struct mmu_update requests[NR_REQUESTS];
static struct multicall_entry list[2];
static volatile u64 *values[1 + NR_REQUESTS];
static u64 good, bad;
static volatile u64 is_over, nr_flips;
static volatile unsigned nr_refused;

/* Stores RAX; the attacker makes it RCX, whose bits are another entry's. */
asm(".section .attacked, \"awx\", @progbits\n.globl store_entry, after_store\n"
    "store_entry: mov %rax, (%rdi)\n"
    "after_store: ret\n.previous\n");
extern volatile unsigned char store_entry[];
extern const char after_store[];

static void on_fault(struct frame *frame)
{
    if (frame->rip != PTR(store_entry)) {
        print("fault at 0x%lx\n", frame->rip);
        finish("FAILURE");
    }
    nr_refused++;
    frame->rip = PTR(after_store);
}

static void attacker(unsigned id)
{
    (void)id;
    load_traps();
    while (!is_over) {
        for (unsigned i = 0; i <= NR_REQUESTS; i++)
            *values[i] = *values[i] == good ? bad : good;
        if (nr_flips % 64 == 0)
            store_entry[2] = store_entry[2] == 0x07 ? 0x0f : 0x07; /* mov from RAX, from RCX */
        nr_flips++;
    }
    is_over = 2;
}

static void look(volatile u64 *entry, const char *what)
{
    u64 now = *entry;
    if (MFN_OF_PTE(now) == mfn_of(table) && (now & PTE_P) && (now & PTE_RW)) {
        check(false, what);
        finish("FAILURE");
    }
}

void test(void)
{
    if (nr_vcpus() < 2)
        finish("SKIP");
    load_traps();
    set_handler(14, on_fault);
    u64 mfn = mfn_of(table), slot = entry_maddr((void *)window, 1);
    volatile u64 *entry = (u64 *)va_of_mfn(slot >> 12) + (slot & 4095) / 8;
    check_equal(update_va_mapping(table, (mfn << 12) | PTE_READ_ONLY, UVMF_INVLPG | UVMF_ALL), 0, "read-only");
    check_equal(mmuext(MMUEXT_PIN_L1_TABLE, mfn), 0, "a table");
    check_equal(hypercall2(__HYPERVISOR_vm_assist, VMASST_CMD_enable, VMASST_TYPE_writable_pagetables), 0, "vm_assist");
    good = (mfn_of(data) << 12) | PTE_DATA;
    bad = (mfn << 12) | PTE_DATA;
    for (int i = 0; i < NR_REQUESTS; i++) {
        requests[i] = (struct mmu_update){.ptr = slot, .val = good};
        values[i] = &requests[i].val;
    }
    list[0] = (struct multicall_entry){.op = __HYPERVISOR_update_va_mapping, .args = {PTR(window), good, 0}};
    list[1] = list[0];
    values[NR_REQUESTS] = &list[1].args[1];
    start_vcpu(1, attacker);
    check(wait_until(&nr_flips, 10), "the attacker runs");
    for (int round = 0; round < NR_ROUNDS; round++) {
        u32 done = 0;
        u64 count = round % 3 == 0 ? NR_REQUESTS | MMU_UPDATE_PREEMPTED : NR_REQUESTS;
        hypercall4(__HYPERVISOR_mmu_update, PTR(requests), count, PTR(&done), DOMID_SELF);
        look(entry, "mmu_update stored what it had not checked");
        hypercall2(__HYPERVISOR_multicall, PTR(list), 2);
        look(entry, "multicall did");
        asm volatile("call store_entry" : : "D"(entry), "a"(good), "c"(bad) : "memory");
        look(entry, "an emulated store did");
        mmuext(MMUEXT_INVLPG_LOCAL, PTR(window));
    }
    is_over = 1;
    check(wait_until(&is_over, 2), "the attacker ends");
    /* Left alone, each does what it says. */
    store_entry[2] = 0x07;
    asm volatile("call store_entry" : : "D"(entry), "a"(0ul), "c"(bad) : "memory");
    check_equal(*entry, 0, "a store that is good");
    check_equal(mmu_update(slot, good), 0, "a request that is good");
    unsigned before = nr_refused;
    store_entry[2] = 0x0f;
    asm volatile("call store_entry" : : "D"(entry), "a"(0ul), "c"(bad) : "memory");
    check_equal(nr_refused, before + 1, "a store that is bad");
    check(update_va_mapping((void *)window, bad, UVMF_INVLPG) < 0, "the table is a table");
    check_equal(mmuext(MMUEXT_UNPIN_TABLE, mfn), 0, "unpin");
}
