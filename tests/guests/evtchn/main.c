/*
 * evtchn: every operation on event channels in every state of a port: what it answers, and what status says of it then.
 *
 * vcpus: 2
 */
#include "guest.h"

enum { XEN_EEXIST = 17, XEN_ESRCH = 3 };
static volatile shared_info_t *shared;
static bool is_dom0;

static struct evtchn_status status_of(evtchn_port_t port)
{
    struct evtchn_status status = {.dom = DOMID_SELF, .port = port};
    check_equal(hypercall_evtchn(EVTCHNOP_status, &status), 0, "status");
    return status;
}

static long send(evtchn_port_t port)
{
    struct evtchn_send send = {.port = port};
    return hypercall_evtchn(EVTCHNOP_send, &send);
}

static long rebind(evtchn_port_t port, u32 vcpu)
{
    struct evtchn_bind_vcpu bind = {.port = port, .vcpu = vcpu};
    return hypercall_evtchn(EVTCHNOP_bind_vcpu, &bind);
}

static long close(evtchn_port_t port)
{
    struct evtchn_close close = {.port = port};
    return hypercall_evtchn(EVTCHNOP_close, &close);
}

static bool take(evtchn_port_t port)
{
    u64 bit = 1ul << (port % 64);
    return __atomic_fetch_and(&shared->evtchn_pending[port / 64], ~bit, __ATOMIC_SEQ_CST) & bit;
}

static evtchn_port_t unbound_port(u16 remote)
{
    struct evtchn_alloc_unbound op = {.dom = DOMID_SELF, .remote_dom = remote};
    check_equal(hypercall_evtchn(EVTCHNOP_alloc_unbound, &op), 0, "alloc_unbound");
    return op.port;
}

static void unbound(void)
{
    evtchn_port_t port = unbound_port(7);
    struct evtchn_status status = status_of(port);

    check_equal(status.status, EVTCHNSTAT_unbound, "a port that waits");
    check_equal(status.u.unbound.dom, 7, "for a domain that need not exist");
    check_equal(status.vcpu, 0, "on vCPU 0");
    check_equal(send(port), 0, "a send goes nowhere");
    check(!take(port), "and is not pending here");
    check_equal(rebind(port, 1), 0, "it may go to another vCPU");
    check_equal(status_of(port).vcpu, 1, "where it is then");
    check_equal(rebind(port, 2), -XEN_ENOENT_, "but not to one that is not there");
    struct evtchn_bind_interdomain mine = {.remote_dom = DOMID_SELF, .remote_port = port};
    check_equal(hypercall_evtchn(EVTCHNOP_bind_interdomain, &mine), -XEN_EINVAL_, "it does not wait for oneself");
    check_equal(close(port), 0, "close");
    check_equal(status_of(port).status, EVTCHNSTAT_closed, "closed");
    check_equal(send(port), -XEN_EINVAL_, "send to a closed port");
    check_equal(rebind(port, 0), -XEN_EINVAL_, "bind_vcpu of a closed port");
    check_equal(close(port), -XEN_EINVAL_, "close of a closed port");
    check_equal(unbound_port(7), port, "the lowest free number is next");
    check_equal(close(port), 0, "close");
}

static void interdomain(void)
{
    evtchn_port_t here = unbound_port(DOMID_SELF);
    struct evtchn_bind_interdomain op = {.remote_dom = DOMID_SELF, .remote_port = here};

    check_equal(hypercall_evtchn(EVTCHNOP_bind_interdomain, &op), 0, "bind_interdomain");
    check(take(op.local_port), "the binder is told at once");
    check_equal(send(here), 0, "send");
    check(take(op.local_port) && !take(here), "arrives at the other end");
    check_equal(send(op.local_port), 0, "send back");
    check(take(here) && !take(op.local_port), "arrives here");
    check_equal(rebind(op.local_port, 1), 0, "one end on another vCPU");
    check_equal(status_of(op.local_port).vcpu, 1, "where it is then");
    check_equal(status_of(here).vcpu, 0, "the other is not");
    check_equal(close(op.local_port), 0, "close one end");
    check_equal(status_of(here).status, EVTCHNSTAT_unbound, "the other waits again");
    check_equal(send(here), 0, "and may send");
    check_equal(hypercall_evtchn(EVTCHNOP_bind_interdomain, &op), 0, "bind it again");
    check_equal(close(here), 0, "close");
    check_equal(close(op.local_port), 0, "both");
    op.remote_port = 5000;
    check_equal(hypercall_evtchn(EVTCHNOP_bind_interdomain, &op), -XEN_EINVAL_, "a port that is not there");
}

static void virqs(void)
{
    struct evtchn_bind_virq timer = {.virq = VIRQ_TIMER, .vcpu = 1}, debug = {.virq = VIRQ_DEBUG, .vcpu = 2};
    struct evtchn_bind_virq console = {.virq = VIRQ_CONSOLE, .vcpu = 1}, wild = {.virq = NR_VIRQS};

    check_equal(hypercall_evtchn(EVTCHNOP_bind_virq, &wild), -XEN_EINVAL_, "a VIRQ that is not there");
    check_equal(hypercall_evtchn(EVTCHNOP_bind_virq, &debug), -XEN_ENOENT_, "on a vCPU that is not there");
    check_equal(hypercall_evtchn(EVTCHNOP_bind_virq, &timer), 0, "VIRQ_TIMER of vCPU 1");
    struct evtchn_status status = status_of(timer.port);
    check_equal(status.status, EVTCHNSTAT_virq, "a VIRQ");
    check_equal(status.u.virq, VIRQ_TIMER, "the timer's");
    check_equal(status.vcpu, 1, "on vCPU 1");
    evtchn_port_t port = timer.port;
    check_equal(hypercall_evtchn(EVTCHNOP_bind_virq, &timer), -XEN_EEXIST, "once for each vCPU");
    timer.vcpu = 0;
    check_equal(hypercall_evtchn(EVTCHNOP_bind_virq, &timer), 0, "of vCPU 0 too");
    check_equal(rebind(port, 0), -XEN_EINVAL_, "it stays where it is");
    check_equal(send(port), -XEN_EINVAL_, "nobody sends a VIRQ");
    check_equal(hypercall_evtchn(EVTCHNOP_bind_virq, &console), -XEN_EINVAL_, "a global VIRQ is bound on vCPU 0");
    console.vcpu = 0;
    check_equal(hypercall_evtchn(EVTCHNOP_bind_virq, &console), 0, "there");
    check_equal(rebind(console.port, 1), 0, "and may go elsewhere then");
    check_equal(status_of(console.port).vcpu, 1, "vCPU 1");
    check_equal(close(port), 0, "close");
    check_equal(close(timer.port), 0, "close");
    check_equal(close(console.port), 0, "close");
    check_equal(hypercall_evtchn(EVTCHNOP_bind_virq, &timer), 0, "free again");
    check_equal(close(timer.port), 0, "close");
}

static void ipis(void)
{
    struct evtchn_bind_ipi ipi = {.vcpu = 1}, nowhere = {.vcpu = 2};

    check_equal(hypercall_evtchn(EVTCHNOP_bind_ipi, &nowhere), -XEN_ENOENT_, "an IPI to a vCPU that is not there");
    check_equal(hypercall_evtchn(EVTCHNOP_bind_ipi, &ipi), 0, "an IPI to vCPU 1");
    check_equal(status_of(ipi.port).status, EVTCHNSTAT_ipi, "is one");
    check_equal(status_of(ipi.port).vcpu, 1, "there");
    check_equal(rebind(ipi.port, 0), -XEN_EINVAL_, "it stays there");
    check_equal(send(ipi.port), 0, "send");
    check(take(ipi.port), "pending");
    check(shared->vcpu_info[1].evtchn_pending_sel & 1ul << (ipi.port / 64), "selected on vCPU 1");
    check_equal(send(ipi.port), 0, "send");
    check_equal(close(ipi.port), 0, "close a pending port");
    check(!take(ipi.port), "it is no longer pending");
}

static void others(void)
{
    struct evtchn_status status = {.dom = 99, .port = 1};
    struct evtchn_alloc_unbound alloc = {.dom = 99};
    struct evtchn_bind_interdomain bind = {.remote_dom = 99, .remote_port = 1};
    struct evtchn_reset reset = {.dom = 99};
    struct evtchn_unmask unmask = {.port = 100000};
    struct evtchn_set_priority priority = {.port = 1, .priority = 3};

    check_equal(hypercall_evtchn(EVTCHNOP_status, &status), -XEN_ESRCH, "status of nobody");
    check_equal(hypercall_evtchn(EVTCHNOP_alloc_unbound, &alloc), -XEN_ESRCH, "alloc_unbound of nobody");
    check_equal(hypercall_evtchn(EVTCHNOP_bind_interdomain, &bind), -XEN_ESRCH, "bind_interdomain to nobody");
    check_equal(hypercall_evtchn(EVTCHNOP_reset, &reset), -XEN_ESRCH, "reset of nobody");
    check_equal(hypercall_evtchn(EVTCHNOP_unmask, &unmask), -XEN_EINVAL_, "unmask a port that cannot be");
    check_equal(hypercall_evtchn(EVTCHNOP_set_priority, &priority), -XEN_ENOSYS_, "no priorities in the 2-level ABI");
    if (is_dom0)
        return;
    status.dom = 0;
    check_equal(hypercall_evtchn(EVTCHNOP_status, &status), -XEN_EPERM_, "status of another domain's port");
    status.port = 100000;
    check_equal(hypercall_evtchn(EVTCHNOP_status, &status), -XEN_EINVAL_, "which it cannot have");
    alloc.dom = 0;
    check_equal(hypercall_evtchn(EVTCHNOP_alloc_unbound, &alloc), -XEN_EPERM_, "alloc_unbound of another");
    reset.dom = 0;
    check_equal(hypercall_evtchn(EVTCHNOP_reset, &reset), -XEN_EPERM_, "reset of another");
}

static void resets(void)
{
    evtchn_port_t port = unbound_port(3);
    struct evtchn_bind_ipi ipi = {.vcpu = 0};
    struct evtchn_reset reset = {.dom = DOMID_SELF};

    check_equal(hypercall_evtchn(EVTCHNOP_bind_ipi, &ipi), 0, "bind_ipi");
    check_equal(send(ipi.port), 0, "send");
    check_equal(hypercall_evtchn(EVTCHNOP_reset, &reset), 0, "reset");
    check_equal(status_of(port).status, EVTCHNSTAT_closed, "everything is closed");
    check_equal(status_of(ipi.port).status, EVTCHNSTAT_closed, "everything");
    check(!take(ipi.port), "and nothing pending");
    check_equal(unbound_port(3), 1, "numbers start from 1");
}

void test(void)
{
    is_dom0 = start_info->flags & SIF_INITDOMAIN;
    shared = map_shared_info();
    load_traps();
    unbound();
    interdomain();
    virqs();
    ipis();
    others();
    if (is_dom0)
        resets();
}
