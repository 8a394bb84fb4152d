/*
 * event_storm: a handler that sends its own vCPU the next event does not keep it from going on. Real Xen delivers at
 * the handler's iret, before any instruction of what was interrupted, for ever; PREEMPT_RT kernels do such a thing (an
 * event's rcu_read_unlock() asks for an irq_work) until the interrupted task has got as far as its next schedule().
 *
 * timeout: 30
 */
#include "guest.h"

enum { NR_STEPS = 20000, LIMIT_NS = 10 * 1000 * 1000 * 1000ul };
static volatile u64 nr_events, progress;
static volatile shared_info_t *shared;
static evtchn_port_t port;

static void on_event(struct frame *frame)
{
    (void)frame;
    forget_events(shared, 0);
    nr_events++;
    if (progress < NR_STEPS)
        send_event(port);
}

void test(void)
{
    shared = map_shared_info();
    load_traps();
    set_handler(TRAP_EVENT, on_event);
    port = bind_ipi(0);
    shared->vcpu_info[0].evtchn_upcall_mask = 0;
    u64 begin = pvclock_ns(shared);
    send_event(port);
    while (progress < NR_STEPS && pvclock_ns(shared) - begin < LIMIT_NS)
        progress++;
    u64 reached = progress;
    progress = NR_STEPS;
    check(nr_events > 1, "the handler was called by its own event");
    check_equal(reached, NR_STEPS, "what was interrupted went on");
}
