/* One random hypercall of each kind. */
#include "fuzz.h"

static long mmu(struct random *r)
{
    u64 nr = 1 + below(r, 3);
    struct mmu_update *update = list_of(r->vcpu, nr * sizeof(*update));
    for (u64 i = 0; i < nr; i++) {
        u64 slot = random_slot(r) & ~7ul;
        update[i] = (struct mmu_update){.ptr = slot | PICK(r, 0, 0, 0, 2, 1, 3, 7), .val = random_entry(r)};
        /* The low slot leads to trees of the pool. */
        if (below(r, 4) == 0 && slot == (mfn_of((void *)start_info->pt_base) << 12) + 5 * 8)
            update[i].val = pool_mfn[below(r, NR_POOL)] << 12 | PTE_DATA;
    }
    if (nr == 1)
        r->sub = update->ptr & 3;
    return hypercall4(__HYPERVISOR_mmu_update, PTR(update), count(r, nr), below(r, 3) ? 0 : handle(r), foreign(r));
}

static long va_mapping(struct random *r)
{
    u64 flags = PICK(r, 0, UVMF_INVLPG, UVMF_TLB_FLUSH, UVMF_INVLPG | UVMF_ALL, UVMF_TLB_FLUSH | UVMF_ALL, 3);
    u64 va = below(r, 2) ? PTR(&window[below(r, NR_WINDOW)]) : LOW_VA + below(r, 4) * 4096;
    if (below(r, 4) == 0) {
        r->op = __HYPERVISOR_update_va_mapping_otherdomain;
        return hypercall4(__HYPERVISOR_update_va_mapping_otherdomain, va, random_entry(r), flags, random_domid(r));
    }
    return hypercall4(__HYPERVISOR_update_va_mapping, va, random_entry(r), flags, 0);
}

/* An empty page as a table: what it held before is mostly no list of entries. */
static long pin(struct random *r)
{
    struct mmuext_op *op = list_of(r->vcpu, 2 * sizeof(*op));
    r->sub = below(r, 4);
    op[0] = (struct mmuext_op){.cmd = MMUEXT_CLEAR_PAGE, .arg1.mfn = pool_mfn[below(r, NR_POOL)]};
    op[1] = (struct mmuext_op){.cmd = r->sub, .arg1.mfn = op[0].arg1.mfn};
    return hypercall4(__HYPERVISOR_mmuext_op, PTR(op), 2, 0, DOMID_SELF);
}

static long ext(struct random *r)
{
    if (below(r, 6) == 0)
        return pin(r);
    u64 nr = 1 + below(r, 3);
    struct mmuext_op *op = list_of(r->vcpu, nr * sizeof(*op));
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
    if (nr == 1)
        r->sub = op->cmd;
    return hypercall4(__HYPERVISOR_mmuext_op, PTR(op), count(r, nr), below(r, 3) ? 0 : handle(r), foreign(r));
}

static long events(struct random *r)
{
    u32 *op = (void *)&args_of[r->vcpu];
    u64 cmd = r->sub = below(r, 15);
    for (int i = 0; i < 8; i++)
        op[i] = below(r, 8) ? below(r, 24) : number(r);
    if (cmd == EVTCHNOP_alloc_unbound)
        op[0] = DOMID_SELF | (u32)(below(r, 4) ? peer : random_domid(r)) << 16;
    if (cmd == EVTCHNOP_bind_interdomain)
        op[0] = below(r, 4) ? peer : random_domid(r);
    if (cmd == EVTCHNOP_status)
        op[0] = DOMID_SELF;
    if (cmd == EVTCHNOP_bind_ipi)
        op[0] = below(r, 3);
    if (cmd == EVTCHNOP_bind_vcpu)
        op[1] = below(r, 3);
    if (cmd == EVTCHNOP_reset)
        op[0] = below(r, 64) ? peer : DOMID_SELF;
    if (cmd == EVTCHNOP_bind_virq)
        op[0] = below(r, 3), op[1] = below(r, 3);
    /* Only some domains have the FIFO ABI; the control blocks of both vCPUs are set, a third one is tried. */
    if (cmd == EVTCHNOP_init_control)
        *(u64 *)op = random_mfn(r), op[2] = below(r, 2) * 4088, op[3] = 2 + below(r, 2);
    if (cmd == EVTCHNOP_expand_array)
        *(u64 *)op = random_mfn(r);
    if (cmd == EVTCHNOP_set_priority)
        op[1] = below(r, 17);
    if (below(r, 16) == 0) { /* as kernels before 3.2.2 call */
        struct evtchn_op *old = (void *)(op + 16);
        old->cmd = cmd;
        memcpy(&old->u, op, sizeof(old->u));
        r->op = __HYPERVISOR_event_channel_op_compat;
        return hypercall2(__HYPERVISOR_event_channel_op_compat, PTR(old), 0);
    }
    return hypercall_evtchn(cmd, op);
}

/* What is asked of the hypervisor about memory. */
static long ask(struct random *r, u64 cmd)
{
    u64 *op = (void *)&args_of[r->vcpu];
    r->sub = cmd;
    for (int i = 0; i < 8; i++)
        op[i] = number(r);
    switch (cmd) {
    case XENMEM_machphys_mfn_list:
    case XENMEM_machphys_compat_mfn_list:
    case XENMEM_memory_map:
        op[0] = below(r, 8) ? below(r, 32) : number(r);
        op[1] = handle(r);
        break;
    case XENMEM_set_memory_map:
        op[0] = random_domid(r);
        op[1] = below(r, 8);
        op[2] = handle(r);
        break;
    default:
        op[0] = random_domid(r);
    }
    return hypercall2(__HYPERVISOR_memory_op, cmd, PTR(op));
}

static long memory(struct random *r)
{
    if (below(r, 2))
        return ask(r, PICK(r, 2, 3, 4, 5, 9, 10, 12, 13, 14, 16, 17, 18, 19, 21, 25, 26, 27, 28));
    struct xen_memory_reservation *op = (void *)&args_of[r->vcpu];
    u64 *list = (u64 *)((char *)op + 512);
    for (int i = 0; i < 4; i++)
        list[i] = below(r, 4) ? number(r) : 0x7fff;
    set_xen_guest_handle(op->extent_start, list);
    op->nr_extents = below(r, 8) ? below(r, 4) : number(r);
    op->extent_order = below(r, 8) ? 0 : number(r);
    op->mem_flags = 0;
    op->domid = random_domid(r);
    /* A raw decrease would take the pool away: balloon() does it. So does exchange. */
    u64 cmd = PICK(r, 0, 6, 7, 11, 15, 23, 24);
    r->sub = cmd;
    u64 done = below(r, 8) ? 0 : below(r, 4) << 6; /* as if it went on after so many */
    long result = hypercall2(__HYPERVISOR_memory_op, cmd | done, PTR(op));
    /* What came of it goes back: a domain that has all that it may have gets nothing more. */
    if (result > 0 && (cmd == XENMEM_increase_reservation || cmd == XENMEM_populate_physmap)) {
        op->nr_extents = result;
        hypercall2(__HYPERVISOR_memory_op, XENMEM_decrease_reservation | done, PTR(op));
    }
    return result;
}

static long vcpu(struct random *r)
{
    u64 *args = (void *)&args_of[r->vcpu];
    u64 cmd = below(r, 14), id = below(r, 8) ? below(r, 2) : number(r);
    /* Timers and areas are anybody's; only the second vCPU goes down, and not for good. */
    if (cmd == VCPUOP_down && (id == 0 || below(r, 16)))
        cmd = VCPUOP_is_up;
    args[0] = cmd == VCPUOP_register_vcpu_info ? random_mfn(r) : below(r, 4) ? random_va(r) : number(r);
    args[1] = below(r, 2) ? number(r) : below(r, 64) * 64;
    /* The third vCPU is given what to begin with, and never begins. */
    if (cmd == VCPUOP_initialise || cmd == VCPUOP_register_vcpu_info)
        id = below(r, 4) ? 2 : id;
    if (cmd == VCPUOP_up && id >= 2)
        cmd = VCPUOP_is_up;
    if (cmd == VCPUOP_initialise) {
        memcpy(args, &context, sizeof(context));
        for (u64 i = below(r, 4); i > 0; i--)
            args[below(r, sizeof(context) / 8)] = below(r, 2) ? number(r) : random_entry(r);
    }
    if (cmd == VCPUOP_send_nmi)
        cmd = VCPUOP_get_runstate_info;
    r->sub = cmd;
    return hypercall_vcpu_op(cmd, id, args);
}

static long descriptors(struct random *r)
{
    u64 *frames = (void *)&args_of[r->vcpu];
    if (below(r, 2)) {
        r->op = __HYPERVISOR_update_descriptor;
        return hypercall2(__HYPERVISOR_update_descriptor, random_slot(r),
                          next(r) ^ PICK(r, 0, 0x00cf93000000ffff, 0x80108e0000001234, 0x0000ec00e0331000));
    }
    for (int i = 0; i < 16; i++)
        frames[i] = random_mfn(r);
    return hypercall2(__HYPERVISOR_set_gdt, PTR(frames), PICK(r, 0, 1, 512, 513, 1024, 7168, 7169));
}

/* Traps, callbacks and NMIs that lead to our own code, or nearly. */
static long traps(struct random *r)
{
    void *args = (void *)&args_of[r->vcpu];
    long result;
    if (below(r, 2)) {
        struct trap_info *table = args;
        for (int i = 0; i < 4; i++)
            table[i] = (struct trap_info){.vector = 33 + below(r, 200), .flags = next(r), .cs = below(r, 2) ? FLAT_KERNEL_CS : next(r),
                                          .address = below(r, 16) ? trap_entries[below(r, 32)] : number(r)};
        table[4] = (struct trap_info){.vector = 0};
        r->op = __HYPERVISOR_set_trap_table;
        result = hypercall2(__HYPERVISOR_set_trap_table, below(r, 16) ? PTR(table) : handle(r), 0);
    } else {
        struct callback_register *callback = args;
        *callback = (struct callback_register){.type = below(r, 9), .flags = below(r, 3),
                                               .address = below(r, 8) ? trap_entries[below(r, 32)] : number(r)};
        r->op = __HYPERVISOR_callback_op;
        r->sub = below(r, 3);
        result = hypercall2(__HYPERVISOR_callback_op, r->sub, PTR(callback));
    }
    own_traps();
    return result;
}

static long scheduling(struct random *r)
{
    u64 *args = (void *)&args_of[r->vcpu];
    r->op = __HYPERVISOR_sched_op;
    r->sub = PICK(r, SCHEDOP_yield, SCHEDOP_poll, SCHEDOP_poll, SCHEDOP_remote_shutdown, SCHEDOP_shutdown_code, SCHEDOP_watchdog,
                  SCHEDOP_pin_override, 8);
    if (r->sub == SCHEDOP_poll) {
        u32 *ports = (void *)(args + 8);
        for (int i = 0; i < 4; i++)
            ports[i] = below(r, 16) ? below(r, 24) : number(r);
        args[0] = below(r, 8) ? PTR(ports) : handle(r);
        args[1] = below(r, 8) ? below(r, 5) : number(r);
        args[2] = 1; /* long ago */
    } else {
        args[0] = below(r, 2) ? below(r, 4) : number(r);
        args[1] = number(r);
        if (r->sub == SCHEDOP_watchdog)
            args[0] = below(r, 4), args[0] |= (args[0] == 0 || below(r, 2) ? 3600ul : 0) << 32;
    }
    return hypercall_sched(r->sub, args);
}

static long small(struct random *r)
{
    if (below(r, 4) == 0)
        return traps(r);
    if (below(r, 4) == 0)
        return scheduling(r);
    u64 op = r->op = PICK(r, 3, 5, 7, 8, 9, 15, 17, 18, 19, 21, 25, 27, 28, 31, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 48, 63, 64);
    u32 *args = (void *)&args_of[r->vcpu];
    for (int i = 0; i < 32; i++)
        args[i] = number(r);
    if (op == __HYPERVISOR_physdev_op_compat)
        args[0] = below(r, 16);
    u64 first = below(r, 4) ? below(r, 16) : handle(r), second = below(r, 2) ? below(r, 8) : handle(r);
    if (op == __HYPERVISOR_physdev_op_compat)
        first = PTR(args);
    if (op == __HYPERVISOR_set_segment_base || op == __HYPERVISOR_physdev_op || op == __HYPERVISOR_xen_version)
        second = handle(r);
    return hypercall5(op, first, second, below(r, 2) ? below(r, 64) : handle(r), handle(r), number(r));
}

static long multi(struct random *r)
{
    u64 nr = 1 + below(r, 4);
    struct multicall_entry *list = list_of(r->vcpu, nr * sizeof(*list));
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
    return result;
}

/* How often each call was made, and how often with success. */
static struct answers {
    u32 calls, done;
} answers[2][64][WHOLE + 1];

void random_call(struct random *r)
{
    static const struct {
        u32 weight, op;
        long (*call)(struct random *r);
    } kinds[] = {
        {22, __HYPERVISOR_mmu_update, mmu},       {12, __HYPERVISOR_update_va_mapping, va_mapping},
        {18, __HYPERVISOR_mmuext_op, ext},        {8, __HYPERVISOR_event_channel_op, events},
        {18, __HYPERVISOR_grant_table_op, grant}, {4, __HYPERVISOR_memory_op, memory},
        {4, __HYPERVISOR_vcpu_op, vcpu},          {4, __HYPERVISOR_set_gdt, descriptors},
        {4, __HYPERVISOR_multicall, multi},       {6, 0, small},
    };
    u64 what = below(r, 100), kind = 0;
    while (what >= kinds[kind].weight)
        what -= kinds[kind++].weight;
    r->op = kinds[kind].op;
    r->sub = WHOLE;
    long result = kinds[kind].call(r);
    struct answers *row = &answers[r->vcpu][r->op % 64][r->sub < WHOLE ? r->sub : WHOLE];
    row->calls++;
    row->done += result >= 0;
}

void print_answers(void)
{
    for (u32 op = 0; op < 64; op++)
        for (u32 sub = 0; sub <= WHOLE; sub++) {
            struct answers *a = &answers[0][op][sub], *b = &answers[1][op][sub];
            if (a->calls + b->calls != 0)
                print("ANSWERS %u %u %u %u\n", op, sub, a->calls + b->calls, a->done + b->done);
        }
}
