/*
 * smp_lock: a spinlock as PV kernels have it: who waits too long polls an event channel, who unlocks kicks the next. And
 * events between vCPUs that block: none is lost. There are more vCPUs than this machine has pCPUs.
 *
 * vcpus: 6
 * timeout: 90
 */
#include "guest.h"

enum { MAX = 8, NR_TURNS = 500, NR_PINGS = 3000, NR_SPINS = 5 };
static volatile shared_info_t *shared;
static evtchn_port_t kicks[MAX], pings[MAX];
static volatile u64 next_ticket, serving, waiting_for[MAX];
static volatile u64 counter, nr_ready, nr_done, nr_pinged, nr_handled[MAX];
static unsigned nr;

/* Whom `ticket` belongs to: waiting_for is the ticket and 1. */
static void unlock(u64 ticket)
{
    __atomic_store_n(&serving, ticket + 1, __ATOMIC_SEQ_CST);
    for (unsigned id = 0; id < nr; id++)
        if (__atomic_load_n(&waiting_for[id], __ATOMIC_SEQ_CST) == ticket + 2)
            send_event(kicks[id]);
}

static void clear_pending(evtchn_port_t port)
{
    __atomic_fetch_and((u64 *)&shared->evtchn_pending[port / 64], ~(1ul << port % 64), __ATOMIC_SEQ_CST);
}

static u64 lock(unsigned id)
{
    u64 ticket = __atomic_fetch_add(&next_ticket, 1, __ATOMIC_SEQ_CST);
    evtchn_port_t ports[] = {kicks[id]};
    struct sched_poll poll = {.nr_ports = 1};

    poll.ports.p = ports;
    while (serving != ticket) {
        for (int i = 0; i < NR_SPINS && serving != ticket; i++)
            asm volatile("pause");
        if (serving == ticket)
            break;
        clear_pending(kicks[id]);
        __atomic_store_n(&waiting_for[id], ticket + 1, __ATOMIC_SEQ_CST);
        if (serving != ticket)
            hypercall_sched(SCHEDOP_poll, &poll);
    }
    __atomic_store_n(&waiting_for[id], 0, __ATOMIC_SEQ_CST);
    return ticket;
}

static void take_turns(unsigned id)
{
    /* All at once. */
    __atomic_fetch_add(&nr_ready, 1, __ATOMIC_SEQ_CST);
    while (nr_ready < nr)
        asm volatile("pause");
    for (int i = 0; i < NR_TURNS; i++) {
        u64 ticket = lock(id);
        u64 was = counter;
        for (int spin = 0; spin < 5000; spin++)
            asm volatile("" ::: "memory");
        counter = was + 1;
        unlock(ticket);
    }
}

/* The upcall: passes each ping on to the next vCPU. */
static void on_event(struct frame *frame)
{
    unsigned id = vcpu_of_stack(frame->rsp);
    volatile vcpu_info_t *info = &shared->vcpu_info[id];

    info->evtchn_upcall_pending = 0;
    u64 words = __atomic_exchange_n((u64 *)&info->evtchn_pending_sel, 0, __ATOMIC_SEQ_CST);
    if (!(words >> pings[id] / 64 & 1) || !(shared->evtchn_pending[pings[id] / 64] >> pings[id] % 64 & 1))
        return;
    clear_pending(pings[id]);
    nr_handled[id]++;
    nr_pinged++;
    if (nr_pinged < NR_PINGS)
        send_event(pings[(id + 1) % nr]);
}

/* Sleeps until the last ping has passed. */
static void pass_on(unsigned id)
{
    while (nr_pinged < NR_PINGS)
        hypercall_sched(SCHEDOP_block, NULL);
    send_event(pings[(id + 1) % nr]); /* who sleeps wakes up once more */
    shared->vcpu_info[id].evtchn_upcall_mask = 1;
}

static void work(unsigned id)
{
    take_turns(id);
    __atomic_fetch_add(&nr_done, 1, __ATOMIC_SEQ_CST);
    if (id == 0)
        return;
    pass_on(id);
    __atomic_fetch_add(&nr_done, 1, __ATOMIC_SEQ_CST);
}

void test(void)
{
    shared = map_shared_info();
    load_traps();
    set_handler(TRAP_EVENT, on_event);
    nr = nr_vcpus() < MAX ? nr_vcpus() : MAX;
    if (nr < 2)
        finish("SKIP");
    for (unsigned id = 0; id < nr; id++) {
        kicks[id] = bind_ipi(id);
        pings[id] = bind_ipi(id);
        /* A kick ends a poll; it is not to be delivered. */
        __atomic_fetch_or((u64 *)&shared->evtchn_mask[kicks[id] / 64], 1ul << kicks[id] % 64, __ATOMIC_SEQ_CST);
    }
    for (unsigned id = 1; id < nr; id++)
        start_vcpu(id, work);
    work(0);
    check(wait_until(&nr_done, nr), "every vCPU had its turns");
    check_equal(counter, (u64)nr * NR_TURNS, "the lock was held by one at a time");
    /* Whether somebody had to poll for it is for the scheduler to say. */

    send_event(pings[0]);
    pass_on(0);
    check(wait_until(&nr_done, 2 * nr - 1), "every vCPU woke up");
    u64 handled = 0;
    for (unsigned id = 0; id < nr; id++)
        handled += nr_handled[id];
    check(handled >= NR_PINGS, "no ping was lost");
}
