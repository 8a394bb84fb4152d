/*
 * clock: pvclock never goes back and runs at the speed of the timer, the wall clock is sane, and the runstate area adds
 * up to the time that has passed.
 */
#include "guest.h"

static volatile shared_info_t *shared;

static u64 now_ns(void)
{
    return pvclock_ns(shared);
}

void test(void)
{
    static volatile struct vcpu_runstate_info runstate;
    struct vcpu_register_runstate_memory_area area;

    shared = map_shared_info();
    load_traps();
    memset(&area, 0, sizeof(area));
    area.addr.v = (void *)&runstate;
    check_equal(hypercall_vcpu_op(VCPUOP_register_runstate_memory_area, 0, &area), 0, "register the runstate area");
    check_equal(runstate.state, RUNSTATE_running, "this vCPU runs");

    u64 before = now_ns();
    for (int i = 0; i < 100000; i++) {
        u64 now = now_ns();
        if (now < before) {
            check(false, "pvclock goes back");
            break;
        }
        before = now;
    }

    /* A poll on no port ends by its timeout: 50 ms of the hypervisor's clock. */
    u64 blocked_before = runstate.time[RUNSTATE_blocked];
    u64 start = now_ns();
    evtchn_port_t ports[] = {1};
    struct sched_poll poll = {.nr_ports = 0, .timeout = start + 50000000};
    poll.ports.p = ports;
    hypercall_sched(SCHEDOP_poll, &poll);
    u64 elapsed = now_ns() - start;
    check(elapsed >= 49000000 && elapsed < 1000000000, "a poll of 50 ms");
    u64 blocked = runstate.time[RUNSTATE_blocked] - blocked_before;
    check(blocked >= 40000000 && blocked <= elapsed + 1000000, "is time in the blocked state");

    struct vcpu_runstate_info now;
    check_equal(hypercall_vcpu_op(VCPUOP_get_runstate_info, 0, &now), 0, "get_runstate_info");
    u64 sum = now.time[0] + now.time[1] + now.time[2] + now.time[3];
    check(sum > 50000000, "the runstates have time");
    check_equal(now.state, RUNSTATE_running, "running");

    u64 seconds = shared->wc_sec + ((u64)shared->wc_sec_hi << 32) + now_ns() / 1000000000;
    check(!(shared->wc_version & 1) && seconds > 1700000000 && seconds < 5000000000, "the wall clock");
}
