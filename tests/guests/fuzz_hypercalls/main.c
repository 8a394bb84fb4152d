/*
 * fuzz_hypercalls: random hypercalls with half-valid arguments, and accesses through the mappings that they make, on two
 * vCPUs, from a seed on the command line: `seed=N domids=A,B` (this domain's id and its peer's, in any order). The domain may
 * end by its own doing. The hypervisor may not, and nobody may see the peer's secret pages.
 *
 * run-by: support/fuzz_hypercalls.py
 */
#include "fuzz.h"

struct page pool[NR_POOL], secret[NR_SECRET], window[NR_WINDOW], clone[NR_CLONES], spare;
static struct page grant_page, info_page, fifo_page, stack1[4];
u64 pool_mfn[NR_POOL];
struct identity identity;
struct vcpu_guest_context context;
static volatile bool is_up;

/* -- accesses that may fault: the handler goes on behind them */
asm(".globl try_load, try_store, try_exchange, try_call, try_failed\n"
    "try_load: mov (%rdi), %rax\n xor %edx, %edx\n ret\n"
    "try_store: mov %rsi, (%rdi)\n xor %edx, %edx\n ret\n"
    "try_exchange: lock xchg %rsi, (%rdi)\n xor %edx, %edx\n ret\n"
    "try_failed: xor %eax, %eax\n mov $1, %edx\n ret\n");
extern const char try_load[], try_store[], try_exchange[], try_failed[];

static bool try_access(const char *how, u64 va, u64 value, u64 *result)
{
    u64 failed, loaded;
    asm volatile("call *%[how]" : "=a"(loaded), "=d"(failed), "+D"(va), "+S"(value) : [how] "r"(how) : "memory", "cc", "rcx", "r11");
    *result = loaded;
    return failed == 0;
}

static void on_trap(struct frame *frame)
{
    if (frame->rip == PTR(try_load) || frame->rip == PTR(try_store) || frame->rip == PTR(try_exchange)) {
        frame->rip = PTR(try_failed);
        return;
    }
    print("FUZZ: own trap %lu at 0x%lx error 0x%lx\n", frame->vector, frame->rip, frame->error_code);
    shut_down(SHUTDOWN_poweroff);
}

static void on_event(struct frame *frame)
{
    (void)frame;
    for (int id = 0; id < 2; id++) {
        struct vcpu_info *info = (struct vcpu_info *)info_page.bytes + id;
        info->evtchn_upcall_pending = 0;
        info->evtchn_pending_sel = 0;
    }
}

/* The FIFO ABI, which nobody looks at: upcalls are only acknowledged. */
static void use_fifo(void)
{
    for (unsigned id = 0; id < 2; id++) {
        struct evtchn_init_control control = {.control_gfn = mfn_of(&fifo_page), .offset = id * 128, .vcpu = id};
        check_equal(hypercall_evtchn(EVTCHNOP_init_control, &control), 0, "init_control");
    }
    struct evtchn_expand_array expand = {.array_gfn = mfn_of(&pool[NR_POOL - 1])};
    check_equal(hypercall_evtchn(EVTCHNOP_expand_array, &expand), 0, "expand_array");
}

/* As load_traps(), from tables that are never written again: both vCPUs read them. */
static void make_tables(void)
{
    static const u64 kinds[] = {CALLBACKTYPE_event, CALLBACKTYPE_failsafe, CALLBACKTYPE_syscall};
    for (unsigned vector = 0; vector < 32; vector++)
        identity.trap_table[vector] = (struct trap_info){.vector = vector, .cs = FLAT_KERNEL_CS, .address = trap_entries[vector]};
    for (int i = 0; i < 3; i++)
        identity.callbacks[i] = (struct callback_register){
            .type = kinds[i], .flags = CALLBACKF_mask_events, .address = trap_entries[TRAP_EVENT]};
}

void own_traps(void)
{
    hypercall2(__HYPERVISOR_set_trap_table, PTR(identity.trap_table), 0);
    for (int i = 0; i < 3; i++)
        hypercall2(__HYPERVISOR_callback_op, CALLBACKOP_register, PTR(&identity.callbacks[i]));
}

void store(u64 va, u64 value)
{
    u64 ignored;
    try_access(try_store, va, value, &ignored);
}

/* -- what nobody may see */
void leak(const char *what, u64 va, u64 value)
{
    print("FUZZ: LEAK: %s at 0x%lx: 0x%lx\n", what, va, value);
    shut_down(SHUTDOWN_poweroff);
}

static void look(u64 va)
{
    u64 value;
    if (!try_access(try_load, (va & ~4095ul) + CANARY_AT, 0, &value))
        return;
    /* A page of our own may have lost half of its mark, to a runstate area that it happened to be. */
    if (value >> 32 == SECRET && (u32)value == (u32)peer << 1)
        leak("the peer's secret", va, value);
}

static void touch(struct random *r)
{
    u64 va = random_va(r), value;
    switch (below(r, 6)) {
    case 0:
        /* Where tables have entries: through a writable mapping of a page to be, or as a writable page table. */
        try_access(try_store, (va & ~4095ul) | below(r, 8) * 8, random_entry(r), &value);
        break;
    case 1:
        try_access(try_exchange, (va & ~4095ul) | below(r, 8) * 8, random_entry(r), &value);
        break;
    case 2:
        try_access(try_load, va, 0, &value);
        break;
    default:
        look(va);
    }
}

static void run(int id)
{
    struct random r = {.state = seed(id), .vcpu = id};
    for (u64 n = 0;; n++) {
        random_call(&r);
        for (u64 i = below(&r, 4); i > 0; i--)
            touch(&r);
        if (n % 64 == 0) {
            balloon(&r);
            if (id == 0)
                hypercall_vcpu_op(VCPUOP_up, 1, NULL);
        }
        /* At rounds 8192, 16384, ...: the domain may end any moment. */
        if (id == 0 && n >= 8192 && (n & (n - 1)) == 0) {
            print_answers();
        }
    }
}

static void register_info(int id)
{
    struct vcpu_register_vcpu_info info = {.mfn = mfn_of(&info_page), .offset = id * sizeof(struct vcpu_info)};
    check_equal(hypercall_vcpu_op(VCPUOP_register_vcpu_info, id, &info), 0, "register_vcpu_info");
    ((struct vcpu_info *)info_page.bytes)[id].evtchn_upcall_mask = 1;
}

static void second_vcpu(void)
{
    own_traps();
    is_up = true;
    run(1);
}

static void set_up_grants(void)
{
    struct gnttab_set_version version = {.version = identity.grant_version};
    check_equal(hypercall5(__HYPERVISOR_grant_table_op, GNTTABOP_set_version, PTR(&version), 1, 0, 0), 0, "set_version");
    map_grant_table(&grant_page);
    identity.grants = grant_page.bytes;
}

u64 seed(int id)
{
    return (number_after("seed=") * 4 + self % 2 * 2 + id) * 0x9e3779b97f4a7c15ul | 1;
}

/* Room for other frames: one that is given back counts as ours as long as it is mapped somewhere. */
static void make_room(void)
{
    xen_pfn_t mfn;
    struct xen_memory_reservation op = {.nr_extents = 1, .domid = DOMID_SELF};
    set_xen_guest_handle(op.extent_start, &mfn);
    for (u64 pfn = start_info->nr_pages - NR_ROOM; pfn < start_info->nr_pages; pfn++) {
        mfn = p2m()[pfn];
        check_equal(hypercall2(__HYPERVISOR_memory_op, XENMEM_decrease_reservation, PTR(&op)), 1, "room");
    }
}

void test(void)
{
    self = number_after("self=");
    peer = number_after("peer=");
    identity.grant_version = number_after("seed=") % 3 == 2 ? 2 : 1;
    identity.is_fifo = number_after("seed=") % 4 == 1;
    /* Its own console may be unmapped, and its port closed, any moment. */
    use_hypervisor_console();
    for (int i = 0; i < NR_WINDOW; i++)
        identity.window_slots[i] = entry_maddr(&window[i], 1);
    for (int id = 0; id < 2; id++)
        check_equal(update_va_mapping(args_of[id].gap, 0, UVMF_INVLPG), 0, "the gap");
    make_room();
    make_tables();
    own_traps();
    for (unsigned vector = 0; vector < 32; vector++)
        set_handler(vector, on_trap);
    set_handler(TRAP_EVENT, on_event);
    register_info(0);
    register_info(1);
    set_up_grants();
    if (identity.is_fifo)
        use_fifo();
    check_equal(update_va_mapping(&identity, (mfn_of(&identity) << 12) | PTE_READ_ONLY, UVMF_INVLPG), 0, "identity");
    for (int i = 0; i < NR_POOL; i++) {
        pool_mfn[i] = mfn_of(&pool[i]);
        *(u64 *)(pool[i].bytes + CANARY_AT) = CANARY(PUBLIC);
        check_equal(update_va_mapping(&pool[i], pool_mfn[i] << 12 | pool_flags(i), UVMF_INVLPG), 0, "the pool");
    }
    for (int i = 0; i < NR_SECRET; i++)
        *(u64 *)(secret[i].bytes + CANARY_AT) = CANARY(SECRET);
    for (int i = 0; i < NR_CLONES; i++) {
        memcpy(clone[i].bytes, (void *)start_info->pt_base, PAGE_SIZE);
        check_equal(update_va_mapping(&clone[i], (mfn_of(&clone[i]) << 12) | PTE_READ_ONLY, UVMF_INVLPG), 0, "read-only");
        check_equal(mmuext(MMUEXT_PIN_L4_TABLE, mfn_of(&clone[i])), 0, "pin a clone of the root");
    }
    context.flags = VGCF_in_kernel;
    context.user_regs.rip = PTR(second_vcpu);
    context.user_regs.rsp = PTR(stack1 + 4) - 8;
    context.user_regs.cs = FLAT_KERNEL_CS;
    context.user_regs.ss = FLAT_KERNEL_SS;
    context.kernel_ss = FLAT_KERNEL_SS;
    context.kernel_sp = context.user_regs.rsp;
    context.ctrlreg[3] = xen_pfn_to_cr3(mfn_of((void *)start_info->pt_base));
    check_equal(hypercall_vcpu_op(VCPUOP_initialise, 1, &context), 0, "initialise");
    check_equal(hypercall_vcpu_op(VCPUOP_up, 1, NULL), 0, "up");
    while (!is_up)
        hypercall_sched(SCHEDOP_yield, NULL);
    print("FUZZ: begins\n");
    run(0);
}
