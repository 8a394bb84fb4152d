/*
 * smp: a second vCPU starts, sees changes of shared memory and of page tables, sends and receives events, and goes down.
 *
 * vcpus: 2
 */
#include "guest.h"

static PAGE char window[PAGE_SIZE];
static PAGE volatile char first[PAGE_SIZE], second[PAGE_SIZE];
static struct vcpu_guest_context context;
static volatile u64 counter, started, seen, stop, nr_up;
static volatile shared_info_t *shared;
static evtchn_port_t port;

static void add_many(void)
{
    for (int i = 0; i < 200000; i++)
        asm volatile("lock incq %0" : "+m"(counter));
}

static void second_vcpu(unsigned id)
{
    nr_up++;
    started = 1;
    add_many();
    /* Reads through its own translation of the page until the first vCPU has changed the mapping, and flushed. */
    while (*(volatile char *)window != 'b')
        asm volatile("pause");
    seen = 1;
    send_event(port);
    while (!stop)
        hypercall_sched(SCHEDOP_yield, NULL);
    started = 2;
    hypercall_vcpu_op(VCPUOP_down, id, NULL);
    /* Up again: goes on here. */
    started = 3;
}

void test(void)
{
    shared = map_shared_info();
    load_traps();
    port = bind_ipi(0);
    first[0] = 'a';
    second[0] = 'b';
    check_equal(update_va_mapping(window, (mfn_of(first) << 12) | PTE_DATA, UVMF_INVLPG), 0, "map the first");

    if (nr_vcpus() < 2)
        finish("SKIP");
    check_equal(hypercall_vcpu_op(VCPUOP_is_up, 1, NULL), 0, "vCPU 1 is down");
    check(hypercall_vcpu_op(VCPUOP_up, 1, NULL) < 0, "up before initialise");
    start_vcpu(1, second_vcpu);
    initial_context(1, &context);
    check(hypercall_vcpu_op(VCPUOP_initialise, 1, &context) < 0, "initialise again");
    check_equal(hypercall_vcpu_op(VCPUOP_is_up, 1, NULL), 1, "vCPU 1 is up");

    check(wait_until(&started, 1), "vCPU 1 runs");
    add_many();
    check(wait_until(&counter, 400000), "locked increments of two vCPUs add up");
    check_equal(counter, 400000, "and no more");

    check_equal(update_va_mapping(window, (mfn_of(second) << 12) | PTE_DATA, UVMF_INVLPG | UVMF_ALL), 0, "map the second");
    check(wait_until(&seen, 1), "vCPU 1 sees the new mapping after a flush of all");
    evtchn_port_t ports[] = {port};
    struct sched_poll poll = {.nr_ports = 1};
    poll.ports.p = ports;
    check_equal(hypercall_sched(SCHEDOP_poll, &poll), 0, "its event arrives");
    check(shared->evtchn_pending[port / 64] >> (port % 64) & 1, "and is pending");

    stop = 1;
    check(wait_until(&started, 2), "vCPU 1 goes on");
    for (int i = 0; i < 1000000 && hypercall_vcpu_op(VCPUOP_is_up, 1, NULL) != 0; i++)
        hypercall_sched(SCHEDOP_yield, NULL);
    check_equal(hypercall_vcpu_op(VCPUOP_is_up, 1, NULL), 0, "vCPU 1 is down again");
    check_equal(hypercall_vcpu_op(VCPUOP_up, 1, NULL), 0, "up again");
    check(wait_until(&started, 3), "and goes on where it was");
    check_equal(nr_up, 1, "it started once");
}
