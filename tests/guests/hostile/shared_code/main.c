/*
 * hostile/shared_code: two domains map one page of code, and run what either has just written: by a store through the granted
 * mapping, by a store of the owner's, by a grant copy. First one writes and the other runs it, then the other way round, then both
 * do both, with a second vCPU each that runs the code all the while. What was overwritten before a call began is never run
 * again. No advisory: what a translator of code could do wrong.
 *
 * run-by: integration/test_neighbours.py, with `self=N peer=N`
 */
#include "guest.h"
#include <xen/grant_table.h>

enum { NR_ROUNDS = 600, CODE_GREF = 9, BOX_GREF = 10 };
/* Domain 1 owns both pages, and domain 2 maps them. */
static PAGE u64 code_page[512], own_box[512], source[512];
static PAGE char grant_page[PAGE_SIZE], code_window[PAGE_SIZE], box_window[PAGE_SIZE];
static domid_t self, peer;
/* The code as this domain maps it, and what both write: whose turn it is, and the last value that the code returns. */
static volatile u64 *code;
static struct box {
    u64 turn, written, is_over;
} volatile *box;
static volatile u64 ends, nr_calls;

/* `mov eax, value; ret`, by one store. */
static u64 function(u64 value) { return 0xc3ul << 40 | value << 8 | 0xb8; }

static u64 call(void)
{
    u64 value;
    hypercall_sched(SCHEDOP_yield, NULL); /* a CPU wants to be told of code that others write: by any return from the hypervisor */
    asm volatile("call *%1" : "=a"(value) : "r"(code) : "memory");
    return value;
}

static void look(void)
{
    u64 before = box->written, found = call();
    nr_calls++;
    if (found < before) {
        check_equal(found, before, "code that is gone was run");
        finish("FAILURE");
    }
}

static void second(unsigned id)
{
    (void)id;
    load_traps();
    while (!box->is_over)
        look();
    ends = 1;
}

static void write_code(u64 value)
{
    if (value % 3 == 0) { /* the hypervisor writes */
        struct gnttab_copy op = {.source.domid = DOMID_SELF, .len = 8};
        source[0] = function(value);
        op.source.u.gmfn = mfn_of(source);
        op.flags = self == 1 ? 0 : GNTCOPY_dest_gref;
        op.dest.domid = self == 1 ? DOMID_SELF : peer;
        op.dest.u.gmfn = self == 1 ? mfn_of(code_page) : CODE_GREF;
        check_equal(hypercall5(__HYPERVISOR_grant_table_op, GNTTABOP_copy, PTR(&op), 1, 0, 0), 0, "copy");
        check_equal((u64)op.status, GNTST_okay, "copy's status");
    } else {
        *code = function(value);
    }
    asm volatile("" ::: "memory");
    box->written = value;
}

static void grant_both(void)
{
    map_grant_table(grant_page);
    volatile grant_entry_v1_t *grants = (volatile grant_entry_v1_t *)grant_page;
    const void *pages[] = {code_page, own_box};
    code = code_page;
    box = (volatile struct box *)own_box;
    *code = function(0);
    for (int i = 0; i < 2; i++) {
        grants[CODE_GREF + i].domid = peer;
        grants[CODE_GREF + i].frame = mfn_of(pages[i]);
        asm volatile("" ::: "memory");
        grants[CODE_GREF + i].flags = GTF_permit_access;
    }
}

static void map_both(void)
{
    void *windows[] = {code_window, box_window};
    for (int i = 0; i < 2; i++) {
        struct gnttab_map_grant_ref op = {.host_addr = PTR(windows[i]), .flags = GNTMAP_host_map, .ref = CODE_GREF + i, .dom = peer};
        do {
            hypercall_sched(SCHEDOP_yield, NULL);
            hypercall5(__HYPERVISOR_grant_table_op, GNTTABOP_map_grant_ref, PTR(&op), 1, 0, 0);
        } while (op.status != GNTST_okay); /* it may not have been granted yet */
    }
    code = (volatile u64 *)code_window;
    box = (volatile struct box *)box_window;
}

static void wait_for(u64 turn)
{
    if (!wait_until(&box->turn, turn)) {
        check(false, "the peer's turn ends");
        finish("FAILURE");
    }
}

/* One domain writes and never runs what it writes; the other runs it, and then it is the first one's turn again. */
static void one_sided(u64 value, domid_t writer)
{
    if (self == writer) {
        write_code(value);
        box->turn = 2 * value - 1;
    } else {
        wait_for(2 * value - 1);
        look();
        box->turn = 2 * value;
    }
    wait_for(2 * value);
}

void test(void)
{
    self = number_after("self=");
    peer = number_after("peer=");
    load_traps();
    if (self == 1)
        grant_both();
    else
        map_both();
    u64 value = 1;
    for (unsigned writer = 1; writer <= 2; writer++)
        for (u64 end = value + NR_ROUNDS; value < end; value++)
            one_sided(value, writer);
    start_vcpu(1, second);
    check(wait_until(&nr_calls, 1), "the other vCPU runs the code");
    for (u64 end = value + NR_ROUNDS / 4; value < end; value++) {
        if (value % 2 + 1 == self) {
            look();
            write_code(value);
            look();
            box->turn = 2 * value;
        }
        wait_for(2 * value);
    }
    check(call() >= value - 1, "the last one");
    box->is_over = 1;
    check(wait_until(&ends, 1), "the other vCPU ends");
}
