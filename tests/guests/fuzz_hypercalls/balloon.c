/* Frames that come and go: what is handed out is empty. */
#include "fuzz.h"

static long memory_op(u64 cmd, void *op) { return hypercall2(__HYPERVISOR_memory_op, cmd, PTR(op)); }

/* Gives a frame to the peer, if that waits for one. */
static bool transfer(struct random *r, u64 mfn)
{
    struct gnttab_transfer op = {.mfn = mfn, .domid = peer, .ref = 8 + below(r, 16)};
    return hypercall5(__HYPERVISOR_grant_table_op, GNTTABOP_transfer, PTR(&op), 1, 0, 0) == 0 && op.status == 0;
}

/* Another frame for `old`, which is unmapped; 0 if there is none, and then `old` is still ours. */
static u64 another(struct random *r, u64 old, u64 pfn)
{
    u64 *list = (u64 *)((char *)&args_of[r->vcpu] + 1024);
    struct xen_memory_reservation op = {.nr_extents = 1, .domid = DOMID_SELF};
    set_xen_guest_handle(op.extent_start, list);
    list[0] = old;
    if (old == mfn_of(&spare))
        goto populate;
    switch (below(r, 4)) {
    case 0: {
        struct xen_memory_exchange exchange = {.in = op, .out = op};
        list[1] = pfn;
        set_xen_guest_handle(exchange.out.extent_start, list + 1);
        return memory_op(XENMEM_exchange, &exchange) == 0 ? list[1] : 0;
    }
    case 1:
        if (transfer(r, old))
            break;
        return 0;
    default:
        if (memory_op(XENMEM_decrease_reservation, &op) != 1)
            return 0;
    }
populate:
    list[0] = pfn;
    return memory_op(XENMEM_populate_physmap, &op) == 1 ? list[0] : mfn_of(&spare);
}

void balloon(struct random *r)
{
    /* Each vCPU has its own half. */
    u64 i = below(r, NR_POOL / 2) * 2 + r->vcpu, old = pool_mfn[i];
    /* What must not come back. Entries are only ever stored to the first words of a page, so that a late one is not it. */
    u64 mark = next(r) << 1 | 1ul << 60;
    if (i & 2)
        update_va_mapping(&pool[i], old << 12 | PTE_DATA, UVMF_INVLPG | UVMF_ALL);
    for (u64 at = 2048; at < CANARY_AT; at += 512)
        store(PTR(pool[i].bytes + at), mark);
    if (update_va_mapping(&pool[i], 0, UVMF_INVLPG | UVMF_ALL) != 0)
        return;
    pool_mfn[i] = mfn_of(&spare);
    u64 new = another(r, old, pfn_of(&pool[i]));
    if (new == 0) {
        pool_mfn[i] = old;
        update_va_mapping(&pool[i], old << 12 | pool_flags(i), UVMF_INVLPG | UVMF_ALL);
        return;
    }
    /* First where only this vCPU looks. */
    static struct page own[2];
    volatile u64 *words = (volatile u64 *)own[r->vcpu].bytes;
    if (update_va_mapping(&own[r->vcpu], new << 12 | PTE_DATA, UVMF_INVLPG) != 0)
        return;
    for (u64 at = 2048 / 8; at < PAGE_SIZE / 8; at++)
        if (new != mfn_of(&spare) && (words[at] == mark || words[at] >> 32 == SECRET))
            leak("a fresh frame", PTR(words + at), words[at]);
    words[CANARY_AT / 8] = CANARY(PUBLIC);
    update_va_mapping(&own[r->vcpu], 0, UVMF_INVLPG);
    update_va_mapping(&pool[i], new << 12 | pool_flags(i), UVMF_INVLPG | UVMF_ALL);
    pool_mfn[i] = new;
}
