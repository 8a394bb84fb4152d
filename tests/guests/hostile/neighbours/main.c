/*
 * hostile/neighbours: two domains with two vCPUs each share one pCPU. Each fills every register that it has with a mark of its
 * own and looks for others' marks, while it grants pages to its neighbour, takes them back, and maps, copies and unmaps the
 * neighbour's. Classes of XSA-52, 75, 154, 172, 216, 224, 225, 226, 228, 255, 267 and 384.
 *
 * run-by: integration/test_neighbours.py, with `self=N peer=N`
 */
#include "guest.h"
#include <xen/grant_table.h>

enum { NR_ROUNDS = 600, NR_GRANTS = 4, FIRST_GREF = 16 };
static PAGE volatile u64 mine[NR_GRANTS][512], window[2][512], copy[2][512];
static volatile grant_entry_v1_t *grants;
static PAGE char grant_page[PAGE_SIZE];
static domid_t self, peer;
static volatile u64 ends[2], nr_mapped, nr_copied;

/* Every vector and x87 register holds `mark` across a call that may run others; then they are read. */
static void registers(u64 mark)
{
    static const u64 masks[] = {0x1f80, 0x9fc0};
    u64 marks[4] __attribute__((aligned(32))) = {mark, ~mark, mark ^ 0x5555, mark + 1}, seen[16][4] __attribute__((aligned(32)));
    u64 x87[8];
    u32 mxcsr = (u32)masks[mark & 1], mxcsr_seen;
    asm volatile("ldmxcsr %[mx]\n\t"
#define LOAD(n) "vmovdqa (%[m]), %%ymm" #n "\n\t"
                 LOAD(0) LOAD(1) LOAD(2) LOAD(3) LOAD(4) LOAD(5) LOAD(6) LOAD(7)
                 LOAD(8) LOAD(9) LOAD(10) LOAD(11) LOAD(12) LOAD(13) LOAD(14) LOAD(15)
                 "movq (%[m]), %%mm0\n\t movq 8(%[m]), %%mm7\n\t"
                 "mov $29, %%eax\n\t xor %%edi, %%edi\n\t xor %%esi, %%esi\n\t syscall\n\t"
#define STORE(n, at) "vmovdqa %%ymm" #n ", " #at "(%[s])\n\t"
                 STORE(0, 0) STORE(1, 32) STORE(2, 64) STORE(3, 96) STORE(4, 128) STORE(5, 160) STORE(6, 192) STORE(7, 224)
                 STORE(8, 256) STORE(9, 288) STORE(10, 320) STORE(11, 352) STORE(12, 384) STORE(13, 416) STORE(14, 448)
                 STORE(15, 480) "movq %%mm0, (%[x])\n\t movq %%mm7, 56(%[x])\n\t emms\n\t stmxcsr %[mxs]"
                 : [mxs] "=m"(mxcsr_seen) : [mx] "m"(mxcsr), [m] "r"(marks), [s] "r"(seen), [x] "r"(x87)
                 : "rax", "rcx", "rdi", "rsi", "r11", "memory");
    for (int i = 0; i < 16; i++)
        check(memcmp(seen[i], marks, 32) == 0, "a vector register of another's");
    check_equal(x87[0], marks[0], "an x87 register of another's");
    check_equal(x87[7], marks[1], "an x87 register of another's");
    check_equal(mxcsr_seen, mxcsr, "MXCSR of another's");
    check_equal(hypercall2(__HYPERVISOR_get_debugreg, 1, 0), mark & 0x7ffffffffff8, "a debug register of another's");
}

/* The neighbour's words say so; what is granted may be seen, nothing else. */
static void look(volatile u64 *page, u64 at)
{
    u64 value = page[at];
    if (value != 0 && value >> 16 != 0x9a27ed)
        check(false, "a word that was not granted");
}

static void meet(unsigned id, u64 round)
{
    u32 gref = FIRST_GREF + round % NR_GRANTS;
    u64 slot = entry_maddr((void *)window[id], 1);
    /* Ours: given, taken back if it is in no use. */
    if (id == 0) {
        volatile grant_entry_v1_t *entry = &grants[gref];
        u16 flags = entry->flags;
        if (flags == 0) {
            entry->domid = peer;
            entry->frame = mfn_of(mine[gref - FIRST_GREF]);
            asm volatile("" ::: "memory");
            entry->flags = GTF_permit_access | (round % 3 == 0 ? GTF_readonly : 0);
        } else if (!(flags & (GTF_reading | GTF_writing))) {
            __sync_bool_compare_and_swap(&entry->flags, flags, 0);
        }
    }
    struct gnttab_map_grant_ref map = {
        .host_addr = round & 1 ? PTR(window[id]) : slot, .flags = GNTMAP_host_map | (round & 1 ? 0 : GNTMAP_contains_pte) |
        (round & 2 ? GNTMAP_readonly : 0), .ref = gref, .dom = peer};
    hypercall5(__HYPERVISOR_grant_table_op, GNTTABOP_map_grant_ref, PTR(&map), 1, 0, 0);
    if (map.status == GNTST_okay) {
        nr_mapped++;
        look(window[id], round % 512);
        struct gnttab_unmap_grant_ref unmap = {.host_addr = map.host_addr, .handle = map.handle};
        hypercall5(__HYPERVISOR_grant_table_op, GNTTABOP_unmap_grant_ref, PTR(&unmap), 1, 0, 0);
        check_equal((u64)unmap.status, GNTST_okay, "unmap");
        hypercall5(__HYPERVISOR_grant_table_op, GNTTABOP_unmap_grant_ref, PTR(&unmap), 1, 0, 0);
        check(unmap.status != GNTST_okay, "not twice");
    }
    struct gnttab_copy op = {.source.domid = peer, .dest.domid = DOMID_SELF, .len = 4096, .flags = GNTCOPY_source_gref};
    op.source.u.ref = gref;
    op.dest.u.gmfn = mfn_of(copy[id]);
    hypercall5(__HYPERVISOR_grant_table_op, GNTTABOP_copy, PTR(&op), 1, 0, 0);
    if (op.status == GNTST_okay) {
        nr_copied++;
        for (u64 at = 0; at < 512; at++)
            look(copy[id], at);
    }
}

static void run(unsigned id)
{
    u64 mark = 0x0123456789abul * (self * 2 + id + 1);
    u64 cr4;
    asm volatile("mov %%cr4, %0" : "=r"(cr4));
    asm volatile("mov %0, %%cr4" : : "r"(cr4 | 1ul << 18));
    asm volatile("xsetbv" : : "c"(0), "a"(7), "d"(0));
    check_equal(hypercall2(__HYPERVISOR_set_debugreg, 1, mark & 0x7ffffffffff8), 0, "DR1");
    for (u64 round = 0; round < NR_ROUNDS; round++) {
        registers(mark);
        meet(id, round * 7 + id);
    }
    ends[id] = 1;
}

static void second(unsigned id)
{
    load_traps();
    run(id);
}

void test(void)
{
    self = number_after("self=");
    peer = number_after("peer=");
    load_traps();
    map_grant_table(grant_page);
    grants = (volatile grant_entry_v1_t *)grant_page;
    for (int page = 0; page < NR_GRANTS; page++)
        for (int at = 0; at < 512; at++)
            mine[page][at] = 0x9a27ed0000ul | self;
    grants[FIRST_GREF].domid = peer;
    grants[FIRST_GREF].frame = mfn_of(mine[0]);
    asm volatile("" ::: "memory");
    grants[FIRST_GREF].flags = GTF_permit_access;
    /* Both go at once. */
    for (struct gnttab_copy op = {.status = -1}; op.status != GNTST_okay; hypercall_sched(SCHEDOP_yield, NULL)) {
        op = (struct gnttab_copy){.source.domid = peer, .dest.domid = DOMID_SELF, .len = 8, .flags = GNTCOPY_source_gref};
        op.source.u.ref = FIRST_GREF;
        op.dest.u.gmfn = mfn_of(copy[0]);
        hypercall5(__HYPERVISOR_grant_table_op, GNTTABOP_copy, PTR(&op), 1, 0, 0);
    }
    start_vcpu(1, second);
    run(0);
    check(wait_until(&ends[1], 1), "the other vCPU ends");
    check(nr_mapped > 0 && nr_copied > 0, "some grants were to be had");
}
