/* Random values that are half valid, and one random hypercall of each kind. */
#include "fuzz.h"

/* Low addresses that no mapping of ours uses: a slot of the root for trees of the pool. */
#define LOW_VA (5ul << 39)
/* Arguments of each vCPU, with a page behind them that results may spill over to. */
static struct {
    char bytes[2 * PAGE_SIZE];
} PAGE args_of[2];
/* Xen's private mark of a continued call, which a guest may forge. */
#define MMU_UPDATE_PREEMPTED 0x80000000ul

#define PICK(r, ...)                                                \
    ({                                                              \
        static const u64 choices_[] = {__VA_ARGS__};                \
        choices_[below(r, sizeof(choices_) / sizeof(choices_[0]))]; \
    })

static u64 number(struct random *r)
{
    u64 edge = PICK(r, 0, 1, 2, 8, 63, 64, 511, 512, 4095, 4096, 1ul << 31, 0xffffffff, 1ul << 47, ~0ul);
    switch (below(r, 4)) {
    case 0:
        return next(r);
    case 1:
        return below(r, 16);
    default:
        return edge + below(r, 5) - 2;
    }
}

static u64 random_mfn(struct random *r)
{
    switch (below(r, 24)) {
    case 0:
        return number(r) & 0xfffffffff;
    case 1:
        return below(r, 0x8000); /* any frame of a small machine: mostly not ours */
    case 2:
        return mfn_of(&secret[below(r, NR_SECRET)]);
    case 3:
        return start_info->shared_info >> 12;
    case 4:
        return mfn_of((void *)(start_info->pt_base + below(r, start_info->nr_pt_frames) * PAGE_SIZE));
    case 5:
        return mfn_of(&clone[below(r, NR_CLONES)]);
    default:
        return pool_mfn[below(r, NR_POOL)];
    }
}

u64 random_entry(struct random *r)
{
    u64 flags;
    switch (below(r, 16)) {
    case 0:
        return next(r);
    case 1 ... 3:
        return 0;
    case 4 ... 8:
        flags = PTE_READ_ONLY;
        break;
    case 9 ... 14:
        flags = PTE_DATA;
        break;
    default:
        flags = next(r) & 0xfff;
    }
    if (below(r, 10) == 0)
        flags ^= next(r) & (0xffful << 52 | 0xff8);
    return random_mfn(r) << 12 | flags;
}

u64 random_va(struct random *r)
{
    u64 offset = below(r, 2) ? 0 : number(r) & 4095;
    switch (below(r, 16)) {
    case 0:
        return next(r);
    case 1:
        return 0xffff800000000000ul + (number(r) & 0xffffffffffful);
    case 2 ... 5:
        return LOW_VA + below(r, 4) * 4096 + below(r, 3) * (2ul << 20) + below(r, 2) * (1ul << 30) + offset;
    case 6 ... 8:
        return PTR(&pool[below(r, NR_POOL)]) + offset;
    default:
        return PTR(&window[below(r, NR_WINDOW)]) + offset;
    }
}

static u64 handle(struct random *r)
{
    u64 args = PTR(&args_of[r->vcpu]);
    if (below(r, 12) == 0)
        return PICK(r, 0, 4095, 0x800000000000ul, 0xffff800000000000ul, ~0ul, ~7ul);
    return below(r, 12) == 0 ? args + 4090 : args + 2048;
}

static u64 slot_of_window(u64 i)
{
    static u64 slots[NR_WINDOW];
    if (slots[i] == 0)
        slots[i] = entry_maddr(&window[i], 1);
    return slots[i];
}

/* Where an entry is: of the pool's tables to be, or the one of a page of the window. */
static u64 random_slot(struct random *r)
{
    if (below(r, 3) == 0)
        return slot_of_window(below(r, NR_WINDOW));
    if (below(r, 12) == 0)
        return (mfn_of((void *)start_info->pt_base) << 12) + 5 * 8;
    /* Not our own tables, or the domain ends at once; the first entries of a clone are nobody's. */
    u64 mfn = below(r, 4) ? pool_mfn[below(r, NR_POOL)] : mfn_of(&clone[below(r, NR_CLONES)]);
    if (below(r, 100) == 0)
        mfn = below(r, 2) ? mfn_of(&secret[below(r, NR_SECRET)]) : below(r, 0x8000) | 0x1000;
    return (mfn << 12) + below(r, 8) * 8 + (below(r, 16) ? 0 : below(r, 8));
}

static domid_t random_domid(struct random *r)
{
    switch (below(r, 8)) {
    case 0 ... 3:
        return DOMID_SELF;
    case 4:
        return self;
    case 5:
        return peer;
    default:
        return PICK(r, 0, DOMID_IO, DOMID_XEN, 0x7ff4, 0xffff, 3, 100);
    }
}

static u64 count(struct random *r, u64 real)
{
    return below(r, 16) ? real : PICK(r, 0, 200, MMU_UPDATE_PREEMPTED | 1, 1000);
}

static u64 foreign(struct random *r)
{
    u64 pages = below(r, 4) ? DOMID_SELF : random_domid(r);
    return below(r, 12) ? pages : pages | ((u64)random_domid(r) + 1) << 16;
}

static long mmu(struct random *r)
{
    struct mmu_update *update = (void *)&args_of[r->vcpu];
    u64 nr = 1 + below(r, 3);
    for (u64 i = 0; i < nr; i++) {
        u64 slot = random_slot(r) & ~7ul;
        update[i] = (struct mmu_update){.ptr = slot | PICK(r, 0, 0, 0, 2, 1, 3, 7), .val = random_entry(r)};
        /* The low slot leads to trees of the pool. */
        if (below(r, 4) == 0 && slot == (mfn_of((void *)start_info->pt_base) << 12) + 5 * 8)
            update[i].val = pool_mfn[below(r, NR_POOL)] << 12 | PTE_DATA;
    }
    return hypercall4(__HYPERVISOR_mmu_update, PTR(update), count(r, nr), below(r, 3) ? 0 : handle(r), foreign(r));
}

static long va_mapping(struct random *r)
{
    u64 flags = PICK(r, 0, UVMF_INVLPG, UVMF_TLB_FLUSH, UVMF_INVLPG | UVMF_ALL, UVMF_TLB_FLUSH | UVMF_ALL, 3);
    u64 va = below(r, 2) ? PTR(&window[below(r, NR_WINDOW)]) : LOW_VA + below(r, 4) * 4096;
    if (below(r, 4) == 0)
        return hypercall4(__HYPERVISOR_update_va_mapping_otherdomain, va, random_entry(r), flags, random_domid(r));
    return hypercall4(__HYPERVISOR_update_va_mapping, va, random_entry(r), flags, 0);
}

static long ext(struct random *r)
{
    struct mmuext_op *op = (void *)&args_of[r->vcpu];
    u64 nr = 1 + below(r, 3);
    for (u64 i = 0; i < nr; i++) {
        u64 cmd = below(r, 2) ? below(r, 5) : below(r, 22), mfn = random_mfn(r);
        op[i].cmd = cmd;
        switch (cmd) {
        case MMUEXT_NEW_BASEPTR: /* a root without our code would end the domain */
            mfn = below(r, 2) ? mfn_of(&clone[below(r, NR_CLONES)]) : mfn_of((void *)start_info->pt_base);
            break;
        case MMUEXT_CLEAR_PAGE:
        case MMUEXT_COPY_PAGE:
            mfn = pool_mfn[below(r, NR_POOL)];
            break;
        case MMUEXT_UNPIN_TABLE:
            mfn = below(r, 8) ? pool_mfn[below(r, NR_POOL)] : mfn;
            break;
        default:
            break;
        }
        op[i].arg1.mfn = cmd >= MMUEXT_TLB_FLUSH_LOCAL && cmd <= MMUEXT_SET_LDT ? random_va(r) : mfn;
        if (cmd == MMUEXT_COPY_PAGE)
            op[i].arg2.src_mfn = pool_mfn[below(r, NR_POOL)]; /* secrets stay where they are */
        else
            *(u64 *)&op[i].arg2 = cmd == MMUEXT_SET_LDT ? below(r, 600) : handle(r);
    }
    return hypercall4(__HYPERVISOR_mmuext_op, PTR(op), count(r, nr), below(r, 3) ? 0 : handle(r), foreign(r));
}

static long events(struct random *r)
{
    u32 *op = (void *)&args_of[r->vcpu];
    u64 cmd = below(r, 15);
    for (int i = 0; i < 8; i++)
        op[i] = below(r, 8) ? below(r, 24) : number(r);
    if (cmd == EVTCHNOP_alloc_unbound)
        op[0] = DOMID_SELF | (u32)(below(r, 4) ? peer : random_domid(r)) << 16;
    if (cmd == EVTCHNOP_bind_interdomain)
        op[0] = below(r, 4) ? peer : random_domid(r);
    if (cmd == EVTCHNOP_reset)
        op[0] = below(r, 64) ? peer : DOMID_SELF;
    if (cmd == EVTCHNOP_bind_virq)
        op[0] = below(r, 3), op[1] = below(r, 3);
    /* The control block stays where it is not: FIFO would move events from where we look. */
    if (cmd == EVTCHNOP_init_control)
        *(u64 *)op = random_mfn(r), op[2] = below(r, 2) * 4090, op[3] = 2 + below(r, 4);
    return hypercall_evtchn(cmd, op);
}

static void random_grant(struct random *r)
{
    volatile grant_entry_v1_t *entry = &grants[8 + below(r, 16)];
    entry->domid = below(r, 8) ? peer : self;
    entry->frame = (u32)pool_mfn[below(r, NR_POOL)];
    asm volatile("" ::: "memory");
    entry->flags = PICK(r, GTF_permit_access, GTF_permit_access, GTF_permit_access | GTF_readonly, 0, 3, 0x101);
}

static long grant(struct random *r)
{
    void *args = &args_of[r->vcpu];
    u64 cmd = below(r, 5) ? PICK(r, 0, 0, 0, 1, 1, 5, 7) : PICK(r, 2, 3, 4, 6, 9, 10, 11, 12);
    domid_t domid = below(r, 6) ? peer : random_domid(r);
    u64 place = PTR(&window[below(r, NR_WINDOW)]), other = PTR(&window[below(r, NR_WINDOW)]);
    u32 gref = below(r, 16) ? 8 + below(r, 16) : number(r), handle_nr = below(r, 16) ? below(r, 12) : number(r);

    if (below(r, 2) == 0)
        random_grant(r);
    switch (cmd) {
    case GNTTABOP_map_grant_ref: {
        u32 flags = PICK(r, 2, 2, 6, 3, 1, 7, 0x12, 0x16, 0x0a, 0);
        u64 at = flags & GNTMAP_contains_pte ? random_slot(r) : place;
        *(struct gnttab_map_grant_ref *)args =
            (struct gnttab_map_grant_ref){.host_addr = at, .flags = flags, .ref = gref, .dom = domid};
        break;
    }
    case GNTTABOP_unmap_grant_ref:
        *(struct gnttab_unmap_grant_ref *)args = (struct gnttab_unmap_grant_ref){
            .host_addr = below(r, 4) ? place : random_slot(r),
            .dev_bus_addr = below(r, 2) ? 0 : random_mfn(r) << 12,
            .handle = handle_nr};
        break;
    case GNTTABOP_unmap_and_replace:
        *(struct gnttab_unmap_and_replace *)args =
            (struct gnttab_unmap_and_replace){.host_addr = place, .new_addr = other, .handle = handle_nr};
        break;
    case GNTTABOP_copy: {
        struct gnttab_copy *copy = args;
        copy->flags = PICK(r, 1, 2, 3, 0, 3, 7);
        copy->source.domid = copy->flags & GNTCOPY_source_gref ? domid : DOMID_SELF;
        copy->dest.domid = copy->flags & GNTCOPY_dest_gref ? domid : DOMID_SELF;
        copy->source.u.gmfn = copy->flags & GNTCOPY_source_gref ? gref : pool_mfn[below(r, NR_POOL)];
        copy->dest.u.gmfn = copy->flags & GNTCOPY_dest_gref ? gref : pool_mfn[below(r, NR_POOL)];
        copy->source.offset = PICK(r, 0, 8, 2048, 4095, 65535);
        copy->dest.offset = PICK(r, 0, 8, 4096);
        copy->len = PICK(r, 0, 8, 64, 2048, 65535);
        break;
    }
    case GNTTABOP_setup_table:
        ((struct gnttab_setup_table *)args)->dom = DOMID_SELF;
        ((struct gnttab_setup_table *)args)->nr_frames = 1 + below(r, 3);
        *(u64 *)(args + 16) = handle(r);
        break;
    default:
        for (int i = 0; i < 8; i++)
            ((u32 *)args)[i] = below(r, 2) ? gref : number(r);
        ((domid_t *)args)[0] = cmd == GNTTABOP_swap_grant_ref ? gref : random_domid(r);
    }
    return hypercall5(__HYPERVISOR_grant_table_op, cmd, PTR(args), below(r, 16) ? 1 : below(r, 4), 0, 0);
}

static long memory(struct random *r)
{
    struct xen_memory_reservation *op = (void *)&args_of[r->vcpu];
    u64 *list = (u64 *)((char *)op + 512);
    for (int i = 0; i < 4; i++)
        list[i] = below(r, 4) ? number(r) : 0x7fff;
    set_xen_guest_handle(op->extent_start, list);
    op->nr_extents = below(r, 8) ? below(r, 4) : number(r);
    op->extent_order = below(r, 8) ? 0 : number(r);
    op->mem_flags = 0;
    op->domid = random_domid(r);
    /* A raw decrease would take the pool away. */
    u64 cmd = PICK(r, 0, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 23, 24, 28);
    return hypercall2(__HYPERVISOR_memory_op, cmd | (below(r, 8) ? 0 : below(r, 4) << 6), PTR(op));
}

static long vcpu(struct random *r)
{
    u64 *args = (void *)&args_of[r->vcpu];
    u64 cmd = below(r, 14), id = below(r, 8) ? below(r, 2) : number(r);
    /* Timers and areas are anybody's; only the second vCPU goes down, and not for good. */
    if (cmd == VCPUOP_down && (id == 0 || below(r, 16)))
        cmd = VCPUOP_is_up;
    args[0] = cmd == VCPUOP_register_vcpu_info ? random_mfn(r) : below(r, 4) ? random_va(r) : number(r);
    args[1] = number(r);
    if (cmd == VCPUOP_send_nmi)
        cmd = VCPUOP_get_runstate_info;
    return hypercall_vcpu_op(cmd, id, args);
}

static long descriptors(struct random *r)
{
    u64 *frames = (void *)&args_of[r->vcpu];
    if (below(r, 2))
        return hypercall2(__HYPERVISOR_update_descriptor, random_slot(r),
                          next(r) ^ PICK(r, 0, 0x00cf93000000ffff, 0x80108e0000001234, 0x0000ec00e0331000));
    for (int i = 0; i < 16; i++)
        frames[i] = random_mfn(r);
    return hypercall2(__HYPERVISOR_set_gdt, PTR(frames), PICK(r, 0, 1, 512, 513, 1024, 7168, 7169));
}

static long small(struct random *r)
{
    u64 op = PICK(r, 4, 5, 8, 9, 15, 17, 18, 19, 21, 25, 28, 30, 33, 34, 35, 36, 37, 39, 40, 41, 42, 48, 63, 64);
    u32 *args = (void *)&args_of[r->vcpu];
    for (int i = 0; i < 32; i++)
        args[i] = number(r);
    long result = hypercall5(op, below(r, 2) ? below(r, 16) : handle(r), handle(r), below(r, 64), handle(r), number(r));
    /* Callbacks lead home again. */
    if (op == __HYPERVISOR_set_callbacks || op == __HYPERVISOR_callback_op)
        own_traps();
    return result;
}

static long multi(struct random *r)
{
    struct multicall_entry *list = (void *)&args_of[r->vcpu];
    u64 nr = 1 + below(r, 4);
    for (u64 i = 0; i < nr; i++) {
        /* Not iret (23), which a list may hold: what is on our stack would be where we go on. */
        list[i].op = PICK(r, 1, 14, 14, 14, 22, 26, 17, 13, 12, 20, 24, 32, 64);
        list[i].args[0] = PTR(&window[below(r, NR_WINDOW)]);
        list[i].args[1] = list[i].op == __HYPERVISOR_mmuext_op ? 1 : random_entry(r);
        list[i].args[2] = below(r, 3);
        list[i].args[3] = DOMID_SELF;
        /* What is at the window is not ours to say; handles of other calls point to it. */
        if (list[i].op == __HYPERVISOR_mmuext_op || list[i].op == __HYPERVISOR_memory_op)
            list[i].args[0] = handle(r);
    }
    long result = hypercall2(__HYPERVISOR_multicall, PTR(list), count(r, nr));
    own_traps(); /* zeros behind the list are a call, too: it clears the trap table */
    return result;
}

void random_call(struct random *r)
{
    u64 what = below(r, 100);
    if (what < 22)
        mmu(r);
    else if (what < 34)
        va_mapping(r);
    else if (what < 52)
        ext(r);
    else if (what < 60)
        events(r);
    else if (what < 78)
        grant(r);
    else if (what < 82)
        memory(r);
    else if (what < 86)
        vcpu(r);
    else if (what < 90)
        descriptors(r);
    else if (what < 95)
        multi(r);
    else
        small(r);
}

void balloon(struct random *r)
{
    /* Each vCPU has its own half. */
    u64 i = below(r, NR_POOL / 2) * 2 + r->vcpu, old = pool_mfn[i], new = 0;
    struct xen_memory_reservation op = {.nr_extents = 1, .domid = DOMID_SELF};
    u64 *list = (u64 *)((char *)&args_of[r->vcpu] + 1024);
    set_xen_guest_handle(op.extent_start, list);
    /* What must not come back. Entries are only ever stored to the first words of a page, so that a late one is not it. */
    u64 mark = next(r) | 1;
    for (u64 at = 2048; at < CANARY_AT; at += 512)
        store(PTR(pool[i].bytes + at), mark);
    if (update_va_mapping(&pool[i], 0, UVMF_INVLPG | UVMF_ALL) != 0)
        return;
    list[0] = old;
    pool_mfn[i] = mfn_of(&clone[0]);
    if (hypercall2(__HYPERVISOR_memory_op, XENMEM_decrease_reservation, PTR(&op)) == 1) {
        list[0] = pfn_of(&pool[i]);
        if (hypercall2(__HYPERVISOR_memory_op, XENMEM_populate_physmap, PTR(&op)) == 1)
            new = list[0];
    }
    if (new == 0) {
        pool_mfn[i] = old;
        update_va_mapping(&pool[i], old << 12 | PTE_READ_ONLY, UVMF_INVLPG | UVMF_ALL);
        return;
    }
    /* First where only this vCPU looks. */
    static struct page own[2];
    volatile u64 *words = (volatile u64 *)own[r->vcpu].bytes;
    if (update_va_mapping(&own[r->vcpu], new << 12 | PTE_DATA, UVMF_INVLPG) != 0)
        return;
    for (u64 at = 2048 / 8; at < PAGE_SIZE / 8; at++)
        if (words[at] == mark || words[at] >> 32 == SECRET)
            leak("a fresh frame", PTR(words + at), words[at]);
    words[CANARY_AT / 8] = (u64)PUBLIC << 32 | self;
    update_va_mapping(&own[r->vcpu], 0, UVMF_INVLPG);
    update_va_mapping(&pool[i], new << 12 | PTE_DATA, UVMF_INVLPG | UVMF_ALL);
    pool_mfn[i] = new;
}
