/*
 * vcpu_ops: vcpu_op and what goes with it in forms that Linux does not use: areas that cross pages, read-only or of other
 * vCPUs, the runstate update flag, vcpu_time_info copies, periodic and set_timer timers, polls that end before they look.
 *
 * vcpus: 2
 */
#include "guest.h"

enum { SECOND = 1000000000, MS = 1000000 };
static PAGE char pages[3][PAGE_SIZE];
static volatile shared_info_t *shared;
static volatile unsigned nr_upcalls;

static u64 now_ns(void) { return pvclock_ns(shared); }

static void on_upcall(struct frame *frame)
{
    (void)frame;
    nr_upcalls++;
    shared->vcpu_info[0].evtchn_upcall_pending = 0;
    u64 selector = __atomic_exchange_n(&shared->vcpu_info[0].evtchn_pending_sel, 0, __ATOMIC_SEQ_CST);
    for (unsigned word = 0; word < 64; word++)
        if (selector >> word & 1)
            __atomic_exchange_n(&shared->evtchn_pending[word], 0, __ATOMIC_SEQ_CST);
}

static long poll_ports(evtchn_port_t *ports, unsigned nr, u64 timeout)
{
    struct sched_poll poll = {.nr_ports = nr, .timeout = timeout};
    poll.ports.p = ports;
    return hypercall_sched(SCHEDOP_poll, &poll);
}

static void areas(void)
{
    struct vcpu_register_runstate_memory_area area = {.addr.p = (u64)(pages[1] - 16)};
    struct vcpu_register_time_memory_area time = {.addr.p = (u64)(pages[2] - 8)};
    volatile struct vcpu_runstate_info *runstate = (void *)(pages[1] - 16);
    volatile struct vcpu_time_info *copy = (void *)(pages[2] - 8);
    struct vcpu_runstate_info info;

    check_equal(hypercall_vcpu_op(VCPUOP_register_runstate_memory_area, 0, &area), 0, "a runstate area across pages");
    check_equal(runstate->state, RUNSTATE_running, "is written");
    u64 before = runstate->time[RUNSTATE_blocked];
    check_equal(poll_ports(NULL, 0, now_ns() + 60 * MS), 0, "sleep");
    check(runstate->time[RUNSTATE_blocked] - before >= MS, "and again after a sleep");
    check_equal(hypercall2(__HYPERVISOR_vm_assist, VMASST_CMD_enable, VMASST_TYPE_runstate_update_flag), 0, "vm_assist");
    check_equal(poll_ports(NULL, 0, now_ns() + 5 * MS), 0, "sleep");
    check_equal(runstate->state_entry_time >> 63, 0, "the update flag is off when the update is done");
    check(runstate->state_entry_time != 0, "and the time is there");
    check_equal(hypercall2(__HYPERVISOR_vm_assist, VMASST_CMD_disable, VMASST_TYPE_runstate_update_flag), 0, "off again");
    area.addr.p = PTR(pages[0]);
    check_equal(hypercall_vcpu_op(VCPUOP_register_runstate_memory_area, 1, &area), 0, "another vCPU's area");
    runstate = (void *)pages[0];
    check_equal(runstate->state, RUNSTATE_offline, "it is offline");
    check(runstate->time[RUNSTATE_offline] > 0, "and has been so for a while");
    area.addr.p = 0;
    check_equal(hypercall_vcpu_op(VCPUOP_register_runstate_memory_area, 1, &area), 0, "no area");
    check_equal(hypercall_vcpu_op(VCPUOP_get_runstate_info, 1, &info), 0, "its runstate");
    check_equal(info.state, RUNSTATE_offline, "offline");
    check_equal(hypercall_vcpu_op(VCPUOP_get_runstate_info, 2, &info), -XEN_ENOENT_, "a vCPU that is not there");
    check_equal(hypercall_vcpu_op(VCPUOP_get_runstate_info, 0, NULL), -XEN_EFAULT_, "runstate to NULL");

    check_equal(hypercall_vcpu_op(VCPUOP_register_vcpu_time_memory_area, 0, &time), 0, "a time area across pages");
    check_equal(copy->tsc_to_system_mul, shared->vcpu_info[0].time.tsc_to_system_mul, "has the scale");
    check_equal(copy->version & 1, 0, "and an even version");
    time.addr.p = 0xffff800000000000;
    check_equal(hypercall_vcpu_op(VCPUOP_register_vcpu_time_memory_area, 0, &time), -XEN_EFAULT_, "not in the hole");
    check_equal(hypercall_vcpu_op(VCPUOP_register_vcpu_time_memory_area, 0, NULL), -XEN_EFAULT_, "nor from NULL");
}

static void others(void)
{
    struct vcpu_set_singleshot_timer single = {.timeout_abs_ns = now_ns()};
    static struct vcpu_guest_context context;

    check_equal(hypercall_vcpu_op(VCPUOP_is_up, 1, NULL), 0, "vCPU 1 is down");
    check_equal(hypercall_vcpu_op(VCPUOP_up, 1, NULL), -XEN_EINVAL_, "and cannot come up without a context");
    check_equal(hypercall_vcpu_op(VCPUOP_initialise, 1, NULL), -XEN_EFAULT_, "a context at NULL");
    check_equal(hypercall_vcpu_op(VCPUOP_initialise, 0, &context), -17, "a context for oneself");
    context.user_regs.rip = 0x800000000000;
    check_equal(hypercall_vcpu_op(VCPUOP_initialise, 1, &context), -XEN_EINVAL_, "a context that cannot run");
    check_equal(hypercall_vcpu_op(VCPUOP_up, 1, NULL), -XEN_EINVAL_, "is none");
    check_equal(hypercall_vcpu_op(VCPUOP_set_singleshot_timer, 1, &single), -XEN_EINVAL_, "another's timer");
    check_equal(hypercall_vcpu_op(VCPUOP_stop_singleshot_timer, 1, NULL), -XEN_EINVAL_, "another's timer");
    check_equal(hypercall_vcpu_op(VCPUOP_set_singleshot_timer, 0, NULL), -XEN_EFAULT_, "a timer at NULL");
    check_equal(hypercall_vcpu_op(VCPUOP_send_nmi, 0, &single), -XEN_EINVAL_, "an NMI with an argument");
    check_equal(hypercall_vcpu_op(VCPUOP_get_physid, 0, &single), -XEN_EINVAL_, "who is not pinned has no pCPU");
    check_equal(hypercall_vcpu_op(14, 0, &single), -XEN_ENOSYS_, "an operation that is not there");
    check_equal(hypercall_vcpu_op(14, 2, &single), -XEN_ENOENT_, "on a vCPU that is not there");
}

static void wait_for_upcalls(unsigned nr, u64 limit_ns)
{
    u64 end = now_ns() + limit_ns;
    while (nr_upcalls < nr && now_ns() < end)
        hypercall_sched(SCHEDOP_yield, NULL);
    check(nr_upcalls >= nr, "the timer fires");
    nr_upcalls = 0;
}

static void timers(void)
{
    struct evtchn_bind_virq virq = {.virq = VIRQ_TIMER, .vcpu = 0};
    struct vcpu_set_periodic_timer periodic = {.period_ns = 2 * MS};

    check_equal(hypercall_evtchn(EVTCHNOP_bind_virq, &virq), 0, "VIRQ_TIMER");
    check_equal(hypercall_vcpu_op(VCPUOP_set_periodic_timer, 0, &periodic), 0, "a periodic timer");
    wait_for_upcalls(5, 2ul * SECOND);
    check_equal(hypercall_vcpu_op(VCPUOP_stop_periodic_timer, 0, NULL), 0, "stop it");
    check_equal(hypercall2(__HYPERVISOR_set_timer_op, now_ns() - 1, 0), 0, "set_timer in the past");
    wait_for_upcalls(1, SECOND);
    check_equal(hypercall2(__HYPERVISOR_set_timer_op, now_ns() + 3 * MS, 0), 0, "set_timer");
    wait_for_upcalls(1, SECOND);
    u64 start = now_ns();
    check_equal(hypercall2(__HYPERVISOR_set_timer_op, -1ul, 0), 0, "set_timer at the end of time");
    wait_for_upcalls(1, SECOND);
    check(now_ns() - start >= 90 * MS, "comes in 100 ms");
    start = now_ns();
    check_equal(hypercall2(__HYPERVISOR_set_timer_op, start + (1ul << 51), 0), 0, "set_timer in 26 days");
    wait_for_upcalls(1, SECOND);
    check(now_ns() - start >= 90 * MS, "comes in 100 ms");
    check_equal(hypercall2(__HYPERVISOR_set_timer_op, now_ns() + 10 * MS, 0), 0, "set_timer");
    check_equal(hypercall2(__HYPERVISOR_set_timer_op, 0, 0), 0, "and stop it");
    nr_upcalls = 0;
    poll_ports(NULL, 0, now_ns() + 30 * MS);
    check_equal(nr_upcalls, 0, "it does not fire");
}

static void polls(void)
{
    struct evtchn_bind_ipi ipi = {.vcpu = 0};
    struct evtchn_send send;
    evtchn_port_t ports[2];

    check_equal(hypercall_evtchn(EVTCHNOP_bind_ipi, &ipi), 0, "bind_ipi");
    shared->evtchn_mask[ipi.port / 64] |= 1ul << (ipi.port % 64);
    send.port = ipi.port;
    check_equal(hypercall_evtchn(EVTCHNOP_send, &send), 0, "send, masked");
    ports[0] = ipi.port;
    ports[1] = 4000;
    check_equal(poll_ports(ports, 2, 0), 0, "a poll ends at the first port that is pending");
    check_equal(poll_ports((void *)(pages[0] + PAGE_SIZE), 0, now_ns()), 0, "no ports, a time that is past");
    ports[0] = 4000;
    check_equal(poll_ports(ports, 1, 0), -XEN_EINVAL_, "a port that is not there");
    check_equal(poll_ports((void *)0x800000000000, 0, now_ns()), -XEN_EFAULT_, "ports that cannot be");
    shared->vcpu_info[0].evtchn_upcall_mask = 1;
    shared->evtchn_mask[ipi.port / 64] &= ~(1ul << (ipi.port % 64));
    struct evtchn_unmask unmask = {.port = ipi.port};
    shared->evtchn_mask[ipi.port / 64] |= 1ul << (ipi.port % 64);
    check_equal(hypercall_evtchn(EVTCHNOP_unmask, &unmask), 0, "unmask");
    check(shared->vcpu_info[0].evtchn_upcall_pending, "an upcall waits");
    shared->vcpu_info[0].evtchn_upcall_mask = 0;
    hypercall2(__HYPERVISOR_xen_version, 0, 0);
}

void test(void)
{
    shared = map_shared_info();
    load_traps();
    set_handler(TRAP_EVENT, on_upcall);
    areas();
    others();
    for (unsigned i = 0; i < 64; i++)
        shared->evtchn_mask[i] = 0;
    shared->vcpu_info[0].evtchn_upcall_mask = 0;
    timers();
    polls();
}
