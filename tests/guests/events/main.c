/*
 * events: the 2-level event channel ABI with a singleshot timer and IPIs: pending, mask, upcall mask, block, poll.
 */
#include "guest.h"

static volatile shared_info_t *shared;
static volatile unsigned nr_upcalls;
static volatile u64 ports_seen;

static u64 now_ns(void)
{
    return pvclock_ns(shared);
}

static void on_upcall(struct frame *frame)
{
    (void)frame;
    nr_upcalls++;
    shared->vcpu_info[0].evtchn_upcall_pending = 0;
    u64 selector = __atomic_exchange_n(&shared->vcpu_info[0].evtchn_pending_sel, 0, __ATOMIC_SEQ_CST);
    if (selector & 1)
        ports_seen |= __atomic_exchange_n(&shared->evtchn_pending[0], 0, __ATOMIC_SEQ_CST);
}

static void set_mask(u32 port, bool masked)
{
    if (masked)
        __atomic_or_fetch(&shared->evtchn_mask[port / 64], 1ul << (port % 64), __ATOMIC_SEQ_CST);
    else
        __atomic_and_fetch(&shared->evtchn_mask[port / 64], ~(1ul << (port % 64)), __ATOMIC_SEQ_CST);
}

static long set_timer(u64 at_ns)
{
    struct vcpu_set_singleshot_timer timer = {.timeout_abs_ns = at_ns};
    return hypercall_vcpu_op(VCPUOP_set_singleshot_timer, 0, &timer);
}

static bool is_pending(u32 port)
{
    return shared->evtchn_pending[port / 64] >> (port % 64) & 1;
}

static void wait_ns(u64 ns)
{
    for (u64 end = now_ns() + ns; now_ns() < end;)
        asm volatile("pause");
}

static void block_until_upcall(unsigned before)
{
    while (nr_upcalls == before) {
        shared->vcpu_info[0].evtchn_upcall_mask = 1;
        if (nr_upcalls != before)
            break;
        check_equal(hypercall_sched(SCHEDOP_block, NULL), 0, "SCHEDOP_block");
    }
    shared->vcpu_info[0].evtchn_upcall_mask = 0;
}

static void timers(u32 port)
{
    unsigned before = nr_upcalls;
    u64 start = now_ns();
    check_equal(set_timer(start + 20000000), 0, "set_singleshot_timer");
    block_until_upcall(before);
    u64 elapsed = now_ns() - start;
    check(ports_seen & (1ul << port), "the timer's port was pending");
    check(elapsed >= 20000000, "the timer is not early");
    check(elapsed < 1000000000, "the timer is not a second late");

    before = nr_upcalls;
    check_equal(set_timer(now_ns() - 1000000), 0, "a timer in the past is accepted");
    block_until_upcall(before);
    check(nr_upcalls > before, "a timer in the past fires");

    set_mask(port, true);
    before = nr_upcalls;
    set_timer(now_ns() + 1000000);
    wait_ns(30000000);
    check_equal(nr_upcalls, before, "no upcall for a masked port");
    check(is_pending(port), "a masked port becomes pending");
    struct evtchn_unmask unmask = {.port = port};
    check_equal(hypercall_evtchn(EVTCHNOP_unmask, &unmask), 0, "EVTCHNOP_unmask");
    check_equal(nr_upcalls, before + 1, "unmasking a pending port makes an upcall at once");

    shared->vcpu_info[0].evtchn_upcall_mask = 1;
    before = nr_upcalls;
    set_timer(now_ns() + 1000000);
    wait_ns(30000000);
    check_equal(nr_upcalls, before, "no upcall while upcalls are masked");
    check(shared->vcpu_info[0].evtchn_upcall_pending, "evtchn_upcall_pending is set");
    shared->vcpu_info[0].evtchn_upcall_mask = 0;
    hypercall2(__HYPERVISOR_xen_version, XENVER_version, 0);
    check_equal(nr_upcalls, before + 1, "a hypercall's return delivers what waits");

    before = nr_upcalls;
    set_timer(now_ns() + 20000000);
    check_equal(hypercall_vcpu_op(VCPUOP_stop_singleshot_timer, 0, NULL), 0, "stop_singleshot_timer");
    wait_ns(40000000);
    check_equal(nr_upcalls, before, "a stopped timer stays silent");

    before = nr_upcalls;
    set_timer(now_ns() + 5000000);
    for (u64 end = now_ns() + 2000000000; nr_upcalls == before && now_ns() < end;)
        ; /* no hypercall here: a busy guest is interrupted */
    check_equal(nr_upcalls, before + 1, "an upcall interrupts a loop");
}

static void refusals(void)
{
    struct evtchn_send send = {.port = 3000};
    struct evtchn_close close = {.port = 0};
    struct evtchn_bind_virq virq = {.virq = 77, .vcpu = 0};
    struct evtchn_bind_ipi ipi = {.vcpu = 4000};
    check_equal(hypercall_evtchn(EVTCHNOP_send, &send), -XEN_EINVAL_, "send on an unbound port");
    send.port = 0xffffffff;
    check_equal(hypercall_evtchn(EVTCHNOP_send, &send), -XEN_EINVAL_, "send on a wild port");
    check(hypercall_evtchn(EVTCHNOP_close, &close) < 0, "close of port 0");
    check_equal(hypercall_evtchn(EVTCHNOP_bind_virq, &virq), -XEN_EINVAL_, "a VIRQ that does not exist");
    check_equal(hypercall_evtchn(EVTCHNOP_bind_ipi, &ipi), -XEN_ENOENT_, "an IPI for a vCPU that does not exist");
    check_equal(hypercall_vcpu_op(VCPUOP_is_up, 4000, NULL), -XEN_ENOENT_, "is_up past the last vCPU");
}

void test(void)
{
    struct evtchn_bind_virq virq = {.virq = VIRQ_TIMER, .vcpu = 0};
    struct evtchn_bind_ipi ipi = {.vcpu = 0};

    shared = map_shared_info();
    load_traps();
    set_handler(TRAP_EVENT, on_upcall);
    hypercall_vcpu_op(VCPUOP_stop_periodic_timer, 0, NULL);
    check_equal(hypercall_evtchn(EVTCHNOP_bind_virq, &virq), 0, "bind VIRQ_TIMER");
    check(virq.port > 0 && virq.port < 64, "a low port");
    check(hypercall_evtchn(EVTCHNOP_bind_virq, &virq) < 0, "a VIRQ binds once");
    for (u32 port = 0; port < 64; port++)
        set_mask(port, port != virq.port);
    /* The console's port was pending before it was masked. */
    shared->vcpu_info[0].evtchn_upcall_pending = 0;
    shared->vcpu_info[0].evtchn_pending_sel = 0;
    shared->vcpu_info[0].evtchn_upcall_mask = 0;

    timers(virq.port);

    check_equal(hypercall_evtchn(EVTCHNOP_bind_ipi, &ipi), 0, "bind_ipi");
    set_mask(ipi.port, false);
    ports_seen = 0;
    struct evtchn_send send = {.port = ipi.port};
    check_equal(hypercall_evtchn(EVTCHNOP_send, &send), 0, "send an IPI");
    check(ports_seen & (1ul << ipi.port), "an IPI to oneself arrives at once");

    shared->vcpu_info[0].evtchn_upcall_mask = 1;
    set_mask(ipi.port, true);
    u64 start = now_ns();
    evtchn_port_t ports[] = {ipi.port};
    struct sched_poll poll = {.nr_ports = 1, .timeout = start + 20000000};
    poll.ports.p = ports;
    check_equal(hypercall_sched(SCHEDOP_poll, &poll), 0, "SCHEDOP_poll");
    check(now_ns() - start >= 19000000, "poll waits for its timeout");
    hypercall_evtchn(EVTCHNOP_send, &send);
    start = now_ns();
    poll.timeout = start + 2000000000;
    check_equal(hypercall_sched(SCHEDOP_poll, &poll), 0, "SCHEDOP_poll on a pending port");
    check(now_ns() - start < 1000000000, "poll returns for a pending port");
    struct evtchn_close close = {.port = ipi.port};
    check_equal(hypercall_evtchn(EVTCHNOP_close, &close), 0, "close");
    check_equal(hypercall_evtchn(EVTCHNOP_send, &send), -XEN_EINVAL_, "send after close");
    refusals();
}
