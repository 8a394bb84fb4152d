/*
 * smp_many: 32 vCPUs. Each starts, meets all others at a barrier again and again (spinning, as Linux's stop_machine does),
 * sleeps until its timer, and goes down.
 *
 * vcpus: 32
 * timeout: 90
 */
#include "guest.h"

enum { MAX = 32, NR_BARRIERS = 100 };
static volatile shared_info_t *shared;
static volatile u64 arrived, phase, nr_slept, nr_early;
static evtchn_port_t timers[MAX];
static unsigned nr;

static void barrier(void)
{
    u64 mine = phase;

    if (__atomic_add_fetch(&arrived, 1, __ATOMIC_SEQ_CST) == nr) {
        arrived = 0;
        phase = mine + 1;
        return;
    }
    while (phase == mine)
        asm volatile("pause");
}

static void sleep_ms(unsigned id, u64 ms)
{
    struct vcpu_set_singleshot_timer shot = {.timeout_abs_ns = pvclock_ns(shared) + ms * 1000000};
    evtchn_port_t ports[] = {timers[id]};
    struct sched_poll poll = {.nr_ports = 1};

    poll.ports.p = ports;
    check_equal(hypercall_vcpu_op(VCPUOP_set_singleshot_timer, id, &shot), 0, "set_singleshot_timer");
    check_equal(hypercall_sched(SCHEDOP_poll, &poll), 0, "poll");
    if (pvclock_ns(shared) < shot.timeout_abs_ns)
        __atomic_fetch_add(&nr_early, 1, __ATOMIC_SEQ_CST);
    __atomic_fetch_add(&nr_slept, 1, __ATOMIC_SEQ_CST);
}

static void work(unsigned id)
{
    for (int i = 0; i < NR_BARRIERS; i++)
        barrier();
    sleep_ms(id, 20);
}

void test(void)
{
    shared = map_shared_info();
    load_traps();
    nr = nr_vcpus();
    if (nr < 2)
        finish("SKIP");
    for (unsigned id = 0; id < nr; id++) {
        struct evtchn_bind_virq virq = {.virq = VIRQ_TIMER, .vcpu = id};
        check_equal(hypercall_evtchn(EVTCHNOP_bind_virq, &virq), 0, "bind_virq");
        timers[id] = virq.port;
        check(hypercall_evtchn(EVTCHNOP_bind_virq, &virq) < 0, "and again");
    }
    for (unsigned id = 1; id < nr; id++)
        start_vcpu(id, work);
    u64 begin = pvclock_ns(shared);
    work(0);
    check(wait_until(&nr_slept, nr), "every timer came");
    print("%u vCPUs: %lu ms\n", nr, (pvclock_ns(shared) - begin) / 1000000);
    check_equal(phase, NR_BARRIERS, "all met at every barrier");
    check_equal(nr_early, 0, "no timer came early");
    for (unsigned id = 1; id < nr; id++)
        for (int i = 0; i < 1000000 && hypercall_vcpu_op(VCPUOP_is_up, id, NULL) != 0; i++)
            hypercall_sched(SCHEDOP_yield, NULL);
    for (unsigned id = 1; id < nr; id++)
        check_equal(hypercall_vcpu_op(VCPUOP_is_up, id, NULL), 0, "it is down");
}
