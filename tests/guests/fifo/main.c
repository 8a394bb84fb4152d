/*
 * fifo: the FIFO event channel ABI: the change to it, priorities, masks, links, closed ports, and the way back.
 */
#include "guest.h"

enum { XEN_EOPNOTSUPP = 95, PENDING = 31, MASKED = 30, LINKED = 29 };
static PAGE volatile char block_page[PAGE_SIZE];
static PAGE volatile u32 array[PAGE_SIZE / 4];
static volatile struct evtchn_fifo_control_block *const block = (void *)(block_page + 64);
static volatile shared_info_t *shared;
static volatile unsigned nr_upcalls;
static volatile u32 taken[64], nr_taken, heads[EVTCHN_FIFO_MAX_QUEUES];

static bool test_bit(u32 port, u32 bit)
{
    return array[port] >> bit & 1;
}

static void set_masked(u32 port, bool masked)
{
    if (masked)
        __atomic_or_fetch(&array[port], 1u << MASKED, __ATOMIC_SEQ_CST);
    else
        __atomic_and_fetch(&array[port], ~(1u << MASKED), __ATOMIC_SEQ_CST);
}

/* Takes the event at the head of a queue, as a guest should: returns false when the queue was empty. */
static void consume(u32 priority)
{
    u32 port = heads[priority] ? heads[priority] : block->head[priority];
    u32 link;
    u32 old = array[port];
    do
        link = old & EVTCHN_FIFO_LINK_MASK;
    while (!__atomic_compare_exchange_n(&array[port], &old, old & ~((1u << LINKED) | EVTCHN_FIFO_LINK_MASK), false,
                                        __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    heads[priority] = link;
    if (!link)
        __atomic_and_fetch(&block->ready, ~(1u << priority), __ATOMIC_SEQ_CST);
    if (test_bit(port, PENDING) && !test_bit(port, MASKED)) {
        __atomic_and_fetch(&array[port], ~(1u << PENDING), __ATOMIC_SEQ_CST);
        if (nr_taken < 64)
            taken[nr_taken++] = port;
    }
}

static void on_upcall(struct frame *frame)
{
    (void)frame;
    nr_upcalls++;
    shared->vcpu_info[0].evtchn_upcall_pending = 0;
    u32 ready = __atomic_exchange_n(&block->ready, 0, __ATOMIC_SEQ_CST);
    while (ready) {
        u32 priority = (u32)__builtin_ctz(ready);
        heads[priority] = heads[priority] ? heads[priority] : block->head[priority];
        do
            consume(priority);
        while (heads[priority]);
        ready &= ~(1u << priority);
        ready |= __atomic_exchange_n(&block->ready, 0, __ATOMIC_SEQ_CST);
    }
}

static long send(u32 port)
{
    struct evtchn_send op = {.port = port};
    return hypercall_evtchn(EVTCHNOP_send, &op);
}

static long set_priority(u32 port, u32 priority)
{
    struct evtchn_set_priority op = {.port = port, .priority = priority};
    return hypercall_evtchn(EVTCHNOP_set_priority, &op);
}

static long init_control(u64 gfn, u32 offset, u32 vcpu)
{
    struct evtchn_init_control op = {.control_gfn = gfn, .offset = offset, .vcpu = vcpu};
    long result = hypercall_evtchn(EVTCHNOP_init_control, &op);
    if (result == 0)
        check_equal(op.link_bits, EVTCHN_FIFO_LINK_BITS, "link bits");
    return result;
}

static long expand_array(u64 gfn)
{
    struct evtchn_expand_array op = {.array_gfn = gfn};
    return hypercall_evtchn(EVTCHNOP_expand_array, &op);
}

static void mask_upcalls(bool masked)
{
    shared->vcpu_info[0].evtchn_upcall_mask = masked;
    if (!masked)
        hypercall2(__HYPERVISOR_xen_version, XENVER_version, 0);
}

static void queues(u32 low, u32 high, u32 other)
{
    nr_taken = 0;
    check_equal(send(low), 0, "send");
    check_equal(nr_taken, 1, "taken at once");
    check_equal(taken[0], low, "the port");

    check_equal(set_priority(low, EVTCHN_FIFO_PRIORITY_MIN), 0, "lowest priority");
    check_equal(set_priority(high, EVTCHN_FIFO_PRIORITY_MAX), 0, "highest priority");
    check_equal(set_priority(low, 16), -XEN_EINVAL_, "no priority");
    check_equal(set_priority(0xffffff, 1), -XEN_EINVAL_, "no port");
    mask_upcalls(true);
    nr_taken = 0;
    send(low);
    send(other);
    send(high);
    check_equal(block->ready, (1u << 15) | (1u << 7) | 1, "three queues are ready");
    check_equal(block->head[0], high, "the head of the first");
    check_equal(block->head[15], low, "the head of the last");
    check(test_bit(low, LINKED) && test_bit(low, PENDING), "its word");
    mask_upcalls(false);
    check_equal(nr_taken, 3, "three events");
    check_equal(taken[0], high, "by priority");
    check_equal(taken[1], other, "by priority");
    check_equal(taken[2], low, "by priority");

    check_equal(set_priority(low, 7), 0, "default priority");
    check_equal(set_priority(high, 7), 0, "default priority");
    mask_upcalls(true);
    nr_taken = 0;
    send(high);
    send(low);
    send(other);
    send(high);
    check_equal(array[high] & EVTCHN_FIFO_LINK_MASK, low, "linked to the next");
    check_equal(array[low] & EVTCHN_FIFO_LINK_MASK, other, "linked to the next");
    check_equal(array[other] & EVTCHN_FIFO_LINK_MASK, 0, "the end");
    mask_upcalls(false);
    check_equal(nr_taken, 3, "one each");
    check_equal(taken[0], high, "in order");
    check_equal(taken[1], low, "in order");
    check_equal(taken[2], other, "in order");

    /* A port that changes its priority while it is queued stays where it is. */
    mask_upcalls(true);
    nr_taken = 0;
    send(low);
    set_priority(low, 3);
    send(low);
    check_equal(block->ready, 1u << 7, "still in its old queue");
    mask_upcalls(false);
    check_equal(nr_taken, 1, "one event");
    send(low);
    check_equal(nr_taken, 2, "by its new queue");
    check_equal(block->head[3], low, "the head of that one");
    set_priority(low, 7);
}

static void masks(u32 port)
{
    struct evtchn_unmask unmask = {.port = port};
    set_masked(port, true);
    nr_taken = 0;
    check_equal(send(port), 0, "send to a masked port");
    check_equal(nr_taken, 0, "not taken");
    check(test_bit(port, PENDING) && !test_bit(port, LINKED), "pending, in no queue");
    check_equal(hypercall_evtchn(EVTCHNOP_unmask, &unmask), 0, "unmask");
    check_equal(nr_taken, 1, "taken then");
    check_equal(hypercall_evtchn(EVTCHNOP_unmask, &unmask), 0, "unmask an idle port");
    check_equal(nr_taken, 1, "nothing happens");

    /* Masked while queued: the guest drops it, and gets it by unmasking. */
    mask_upcalls(true);
    send(port);
    set_masked(port, true);
    mask_upcalls(false);
    check_equal(nr_taken, 1, "not taken while masked");
    hypercall_evtchn(EVTCHNOP_unmask, &unmask);
    check_equal(nr_taken, 2, "taken after");

    evtchn_port_t ports[] = {port};
    struct sched_poll poll = {.nr_ports = 1, .timeout = pvclock_ns(shared) + 2000000000};
    poll.ports.p = ports;
    mask_upcalls(true);
    send(port);
    u64 start = pvclock_ns(shared);
    check_equal(hypercall_sched(SCHEDOP_poll, &poll), 0, "poll on a pending port");
    check(pvclock_ns(shared) - start < 1000000000, "returns at once");
    mask_upcalls(false);
}

static void closing(void)
{
    u32 port = bind_ipi(0), next;
    struct evtchn_close close = {.port = port};
    set_masked(port, false);
    mask_upcalls(true);
    send(port);
    check_equal(hypercall_evtchn(EVTCHNOP_close, &close), 0, "close a queued port");
    check(!test_bit(port, PENDING) && test_bit(port, LINKED), "no event, still queued");
    next = bind_ipi(0);
    check(next != port, "its number is not used again");
    nr_taken = 0;
    mask_upcalls(false);
    check_equal(nr_taken, 0, "nothing to take");
    check(!test_bit(port, LINKED), "it has left the queue");
    close.port = next;
    check_equal(hypercall_evtchn(EVTCHNOP_close, &close), 0, "close");
    check_equal(bind_ipi(0), port, "now it is used again");
}

/* A console whose port is closed before domain 0 has bound it is no console. */
static void await_console(void)
{
    struct evtchn_status status = {.dom = DOMID_SELF, .port = start_info->console.domU.evtchn};
    if (start_info->flags & SIF_INITDOMAIN)
        return;
    do
        hypercall_sched(SCHEDOP_yield, NULL);
    while (hypercall_evtchn(EVTCHNOP_status, &status) == 0 && status.status == EVTCHNSTAT_unbound);
}

void test(void)
{
    shared = map_shared_info();
    load_traps();
    set_handler(TRAP_EVENT, on_upcall);
    hypercall_vcpu_op(VCPUOP_stop_periodic_timer, 0, NULL);
    for (int i = 0; i < 64; i++)
        shared->evtchn_mask[i] = ~0ul;
    check_equal(expand_array(mfn_of(array)), -XEN_EOPNOTSUPP, "no array before the control block");
    u32 early = bind_ipi(0);
    check_equal(set_priority(early, 3), -XEN_ENOSYS_, "no priorities either");
    check_equal(send(early), 0, "send an event before the change");
    for (unsigned i = 0; i < PAGE_SIZE / 4; i++)
        array[i] = 1u << MASKED;

    check_equal(init_control(mfn_of(block_page), 64, 99), -XEN_ENOENT_, "no such vCPU");
    check_equal(init_control(mfn_of(block_page), 4096 - 64, 0), -XEN_EINVAL_, "past the page");
    check_equal(init_control(mfn_of(block_page), 4, 0), -XEN_EINVAL_, "misaligned");
    check_equal(init_control(foreign_mfn(), 64, 0), -XEN_EINVAL_, "not the guest's frame");
    check_equal(init_control(entry_maddr(test, 1) >> 12, 64, 0), -XEN_EINVAL_, "a page table");
    check_equal(init_control(mfn_of(block_page), 64, 0), 0, "init_control");
    check_equal(init_control(mfn_of(block_page), 64, 0), -XEN_EINVAL_, "once only");
    check_equal(expand_array(foreign_mfn()), -XEN_EINVAL_, "not the guest's frame");
    check_equal(expand_array(mfn_of(array)), 0, "expand_array");
    check(test_bit(early, PENDING), "an event from before the change");
    check(update_va_mapping((void *)array, (mfn_of(array) << 12) | PTE_DATA, 0) == 0, "the array stays writable");

    shared->vcpu_info[0].evtchn_upcall_pending = 0;
    shared->vcpu_info[0].evtchn_upcall_mask = 0;
    u32 low = bind_ipi(0), high = bind_ipi(0), other = bind_ipi(0);
    set_masked(low, false);
    set_masked(high, false);
    set_masked(other, false);
    queues(low, high, other);
    masks(low);
    closing();

    if (!(start_info->flags & SIF_INITDOMAIN)) {
        struct evtchn_bind_ipi ipi = {.vcpu = 0};
        long result;
        while ((result = hypercall_evtchn(EVTCHNOP_bind_ipi, &ipi)) == 0)
            ;
        check_equal(result, -XEN_ENOSPC_, "all ports in use");
        check_equal(ipi.port, 1023, "the last is max_event_channels");
    }

    await_console();
    struct evtchn_reset reset = {.dom = DOMID_SELF};
    check_equal(hypercall_evtchn(EVTCHNOP_reset, &reset), 0, "reset");
    check_equal(send(low), -XEN_EINVAL_, "all ports are closed");
    check_equal(expand_array(mfn_of(array)), -XEN_EOPNOTSUPP, "and the 2-level ABI is back");
    shared->vcpu_info[0].evtchn_pending_sel = 0;
    shared->vcpu_info[0].evtchn_upcall_mask = 1;
    u32 port = bind_ipi(0);
    shared->evtchn_mask[port / 64] &= ~(1ul << (port % 64));
    check_equal(send(port), 0, "send");
    check(shared->evtchn_pending[port / 64] >> (port % 64) & 1, "its bit");
    check_equal(init_control(mfn_of(block_page), 64, 0), 0, "and FIFO again");
}
