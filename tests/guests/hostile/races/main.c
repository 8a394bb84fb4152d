/*
 * hostile/races: two or four vCPUs pin, unpin, validate, map, grant, change and store to the same few frames at once, as different kinds of
 * page, for as long as it takes. A frame that is a table is never writable; counts come back to what they were: at the end each frame
 * can be used as anything again, and be given back. Linear tables go in circles. Classes of XSA-45, 182, 224, 240, 255, 273, 280, 299,
 * 303, 310, 384, 401 and 402.
 *
 * `rounds=N` on the command line makes it longer (test_races.py).
 *
 * vcpus: 4
 * timeout: 120
 */
#include "guest.h"
#include <xen/grant_table.h>

enum { NR_FRAMES = 4, ROUNDS = 4000, MAX_VCPUS_ = 4, FIRST_GREF = 16 };
static PAGE u64 frames[NR_FRAMES][512];
static PAGE char windows[MAX_VCPUS_][PAGE_SIZE], grant_page[PAGE_SIZE];
static u64 mfns[NR_FRAMES], slots[MAX_VCPUS_];
static u64 nr_rounds;
static volatile u64 ends[MAX_VCPUS_], nr_done[8];
static volatile grant_entry_v1_t *grants;

struct random { u64 state; };
static u64 next(struct random *r)
{
    r->state ^= r->state >> 12, r->state ^= r->state << 25, r->state ^= r->state >> 27;
    return r->state * 0x2545f4914f6cdd1dul >> 32;
}

/* -- a store that may fault, and one that must not find a table */
asm(".globl try_store, stored, not_stored\n"
    "try_store: mov %rsi, (%rdi)\n stored: mov $1, %eax\n ret\n not_stored: xor %eax, %eax\n ret\n");
extern const char try_store[], not_stored[];
static bool stores(void *at, u64 value)
{
    u64 ok;
    asm volatile("call *%[code]" : "=a"(ok), "+D"(at) : [code] "r"(try_store), "S"(value) : "memory", "cc", "rcx", "r11");
    return ok;
}

static void on_fault(struct frame *frame)
{
    if (frame->rip != PTR(try_store)) {
        print("fault %lu at 0x%lx\n", frame->vector, frame->rip);
        finish("FAILURE");
    }
    frame->rip = PTR(not_stored);
}

/* One thing to do with a frame; each may be refused, because of what others do. */
static void disturb(struct random *r, unsigned id)
{
    u64 which = next(r) % NR_FRAMES, mfn = mfns[which], other = mfns[next(r) % NR_FRAMES];
    switch (next(r) % 10) {
    case 0: /* a table of any level */
        nr_done[0] += mmuext(MMUEXT_PIN_L1_TABLE + next(r) % 4, mfn) == 0;
        break;
    case 1:
    case 2:
        nr_done[1] += mmuext(MMUEXT_UNPIN_TABLE, mfn) == 0;
        break;
    case 3: /* writable, and what that is good for: an entry that leads to a table, writably, and to itself */
        if (update_va_mapping(windows[id], (mfn << 12) | PTE_DATA, UVMF_INVLPG) != 0)
            break;
        nr_done[2]++;
        stores(windows[id] + next(r) % 4 * 8, next(r) & 1 ? 0 : (other << 12) | (next(r) & 1 ? PTE_DATA : PTE_READ_ONLY));
        if (next(r) & 1)
            update_va_mapping(windows[id], 0, 0); /* with no flush: what is cached may be tried once more */
        stores(windows[id] + 8, (mfn << 12) | PTE_DATA);
        break;
    case 4: /* entries of one in another, itself included */
        nr_done[3] += mmu_update((mfn << 12) + next(r) % 4 * 8, (other << 12) | (next(r) & 1 ? PTE_DATA : PTE_READ_ONLY)) == 0;
        break;
    case 5:
        mmu_update((mfn << 12) + next(r) % 4 * 8, 0);
        break;
    case 6: { /* to ourselves by a grant, writable, and back */
        struct gnttab_map_grant_ref map = {.host_addr = PTR(windows[id]), .flags = GNTMAP_host_map, .ref = FIRST_GREF + which, .dom = DOMID_SELF};
        map.dom = grants[FIRST_GREF].domid;
        update_va_mapping(windows[id], 0, UVMF_INVLPG);
        hypercall5(__HYPERVISOR_grant_table_op, GNTTABOP_map_grant_ref, PTR(&map), 1, 0, 0);
        if (map.status != GNTST_okay)
            break;
        nr_done[4]++;
        stores(windows[id] + 16, 0);
        struct gnttab_unmap_grant_ref unmap = {.host_addr = map.host_addr, .handle = map.handle};
        hypercall5(__HYPERVISOR_grant_table_op, GNTTABOP_unmap_grant_ref, PTR(&unmap), 1, 0, 0);
        check_equal((u64)unmap.status, GNTST_okay, "unmap");
        break;
    }
    case 7: { /* a store to what may be a level-1 table just now, through its read-only mapping */
        static const u64 kinds[] = {0, PTE_READ_ONLY, PTE_DATA, PTE_P};
        u64 kind = kinds[next(r) % 4];
        nr_done[6] += stores((char *)frames[which] + next(r) % 4 * 8, kind ? (other << 12) | kind : 0);
        break;
    }
    case 8: /* what the CPU has set is kept, on whatever it may be */
        nr_done[7] += mmu_update((mfn << 12) + next(r) % 4 * 8 + MMU_PT_UPDATE_PRESERVE_AD, (other << 12) | PTE_P | PTE_US) == 0;
        break;
    default: {
        struct mmuext_op op = {.cmd = MMUEXT_CLEAR_PAGE, .arg1.mfn = mfn};
        nr_done[5] += hypercall4(__HYPERVISOR_mmuext_op, PTR(&op), 1, 0, DOMID_SELF) == 0;
    }
    }
}

static void run(unsigned id)
{
    struct random r = {.state = 0x9e3779b97f4a7c15ul * (id + 1)};
    for (u64 round = 0; round < nr_rounds; round++) {
        disturb(&r, id);
        /* A frame that is a table now, of whatever level, is not writable through what this vCPU has: else the mapping was refused. */
        u64 entry = *(volatile u64 *)((char *)va_of_mfn(slots[id] >> 12) + (slots[id] & 4095));
        if ((entry & (PTE_P | PTE_RW)) == (PTE_P | PTE_RW) && mmuext(MMUEXT_PIN_L1_TABLE, MFN_OF_PTE(entry)) == 0) {
            check(false, "a table that is mapped writable");
            finish("FAILURE");
        }
    }
    update_va_mapping(windows[id], 0, UVMF_INVLPG | UVMF_ALL);
    ends[id] = 1;
}

static void other(unsigned id)
{
    load_traps();
    run(id);
}

void test(void)
{
    unsigned nr = nr_vcpus();
    if (nr < 2)
        finish("SKIP");
    check_equal(hypercall2(__HYPERVISOR_vm_assist, VMASST_CMD_enable, VMASST_TYPE_writable_pagetables), 0, "vm_assist");
    load_traps();
    set_handler(14, on_fault);
    map_grant_table(grant_page);
    grants = (volatile grant_entry_v1_t *)grant_page;
    domid_t self = own_domid();
    nr_rounds = number_after("rounds=") ?: ROUNDS;
    for (unsigned i = 0; i < NR_FRAMES; i++) {
        mfns[i] = mfn_of(frames[i]);
        check_equal(update_va_mapping(frames[i], (mfns[i] << 12) | PTE_READ_ONLY, UVMF_INVLPG | UVMF_ALL), 0, "read-only");
        grants[FIRST_GREF + i] = (grant_entry_v1_t){.flags = GTF_permit_access, .domid = self, .frame = mfns[i]};
    }
    for (unsigned id = 0; id < nr; id++)
        slots[id] = entry_maddr(windows[id], 1);
    for (unsigned id = 1; id < nr; id++)
        start_vcpu(id, other);
    run(0);
    for (unsigned id = 1; id < nr; id++)
        check(wait_until(&ends[id], 1), "the others end");
    for (int i = 0; i < 8; i++)
        check(nr_done[i] > 0, "each kind of thing was done");
    /* What is left: pins, and entries in each other. Then each frame is as good as new. */
    for (int round = 0; round < 5; round++)
        for (unsigned i = 0; i < NR_FRAMES; i++) {
            for (unsigned at = 0; at < 4; at++)
                mmu_update((mfns[i] << 12) + at * 8, 0);
            mmuext(MMUEXT_UNPIN_TABLE, mfns[i]);
        }
    for (unsigned i = 0; i < NR_FRAMES; i++) {
        check_equal(update_va_mapping(windows[0], (mfns[i] << 12) | PTE_DATA, UVMF_INVLPG), 0, "a page of data again");
        memset(windows[0], 0, PAGE_SIZE);
        check(mmuext(MMUEXT_PIN_L2_TABLE, mfns[i]) < 0, "and no table meanwhile");
        check_equal(update_va_mapping(windows[0], 0, UVMF_INVLPG), 0, "unmapped");
        for (unsigned level = 0; level < 4; level++) {
            check_equal(mmuext(MMUEXT_PIN_L1_TABLE + level, mfns[i]), 0, "a table of each level");
            check_equal(mmuext(MMUEXT_UNPIN_TABLE, mfns[i]), 0, "and none");
        }
        check_equal(update_va_mapping(frames[i], 0, UVMF_INVLPG | UVMF_ALL), 0, "no mapping is left");
        struct xen_memory_reservation give = {.nr_extents = 1, .domid = DOMID_SELF};
        u64 mfn = mfns[i];
        set_xen_guest_handle(give.extent_start, &mfn);
        check_equal(hypercall2(__HYPERVISOR_memory_op, XENMEM_decrease_reservation, PTR(&give)), 1, "it can be given back");
        /* It is gone: nobody holds it. */
        check(update_va_mapping(windows[0], (mfns[i] << 12) | PTE_DATA, UVMF_INVLPG) < 0, "and is not ours any more");
    }
}
