/*
 * upcall_race: an event that arrives while a vCPU unmasks upcalls is delivered, although that vCPU then makes no
 * hypercall. A kernel unmasks by a plain store, and looks at "pending" by a plain load: the CPU may do the load first.
 *
 * vcpus: 2
 * timeout: 60
 */
#include "guest.h"

enum { NR_ROUNDS = 200000 };
static volatile u64 ready, acks;
static volatile shared_info_t *shared;

static void on_event(struct frame *frame)
{
    (void)frame;
    forget_events(shared, 1);
    acks++;
}

static void delay(u64 turns)
{
    for (u64 i = 0; i < turns; i++)
        asm volatile("" ::: "memory");
}

static void second_vcpu(unsigned id)
{
    volatile vcpu_info_t *info = &shared->vcpu_info[id];

    set_handler(TRAP_EVENT, on_event);
    for (u64 round = 1; round <= NR_ROUNDS; round++) {
        info->evtchn_upcall_mask = 1;
        ready = round;
        delay(round * 7 % 1500);
        info->evtchn_upcall_mask = 0;
        asm volatile("" ::: "memory");
        if (info->evtchn_upcall_pending)
            hypercall2(__HYPERVISOR_xen_version, XENVER_version, 0);
        while (acks < round)
            asm volatile("" ::: "memory");
    }
}

void test(void)
{
    shared = map_shared_info();
    load_traps();
    if (nr_vcpus() < 2)
        finish("SKIP");
    evtchn_port_t port = bind_ipi(1);
    start_vcpu(1, second_vcpu);

    u64 begin = pvclock_ns(shared);
    for (u64 round = 1; round <= NR_ROUNDS; round++) {
        while (ready < round)
            asm volatile("pause");
        delay(round * 13 % 1000);
        send_event(port);
        u64 sent = pvclock_ns(shared);
        while (acks < round) {
            if (pvclock_ns(shared) - sent > 2000000000ul) {
                print("round %lu of %d\n", round, NR_ROUNDS);
                check(false, "the event came within two seconds");
                return;
            }
            asm volatile("pause");
        }
        /* On one CPU each round costs time slices. */
        if (pvclock_ns(shared) - begin > 5000000000ul)
            break;
    }
    check(acks > 0, "events came");
}
