/*
 * refusals: bad arguments of every kind get Xen's own error: handles that are NULL, in the hypervisor's hole or not
 * canonical, domains that are not there, numbers out of range, calls that are not for a guest.
 */
#include "guest.h"
#include <xen/nmi.h>

enum { XEN_ENXIO = 6, XEN_EACCES = 13, XEN_ENODEV = 19 };
#define HOLE 0xffff800000000000ul
#define NOT_CANONICAL 0x800000000000ul
static PAGE char page[PAGE_SIZE];
static bool is_dom0;

struct call {
    const char *what;
    long expected;
    u64 op, args[4];
};

static void run(const struct call *calls, unsigned nr)
{
    for (const struct call *call = calls; call < calls + nr; call++)
        check_equal(hypercall4(call->op, call->args[0], call->args[1], call->args[2], call->args[3]), call->expected,
                    call->what);
}
#define RUN(calls) run(calls, sizeof(calls) / sizeof((calls)[0]))

static void handles(void)
{
    const struct call calls[] = {
        {"set_trap_table", -XEN_EFAULT_, 0, {HOLE}},
        {"mmu_update of nothing in the hole", -XEN_EFAULT_, 1, {HOLE, 0, 0, DOMID_SELF}},
        {"mmu_update of nothing at NULL", 0, 1, {0, 0, 0, DOMID_SELF}},
        {"mmu_update at NULL", -XEN_EFAULT_, 1, {0, 1, 0, DOMID_SELF}},
        {"set_gdt", -XEN_EFAULT_, 2, {0, 1}},
        {"set_gdt of nothing in the hole", 0, 2, {HOLE, 0}},
        {"a domctl's continuation at NULL", -XEN_EFAULT_, 49, {0}},
        {"memory_op decrease_reservation says that nothing is done", 0, 12, {1, HOLE}},
        {"memory_op populate_physmap", 0, 12, {6, 0}},
        {"memory_op current_reservation", -XEN_EFAULT_, 12, {3, HOLE}},
        {"memory_op exchange", -XEN_EFAULT_, 12, {11, 0}},
        {"multicall of nothing in the hole", -XEN_EFAULT_, 13, {HOLE, 0}},
        {"multicall of nothing at NULL", 0, 13, {0, 0}},
        {"multicall at NULL", -XEN_EFAULT_, 13, {0, 1}},
        {"xen_version extraversion", -XEN_EFAULT_, 17, {1, HOLE}},
        {"xen_version pagesize with an argument", -XEN_EINVAL_, 17, {7, HOLE}},
        {"xen_version pagesize", 4096, 17, {7, 0}},
        {"console_io", -XEN_EFAULT_, 18, {0, 5, HOLE}},
        {"grant_table_op query_size", -XEN_EFAULT_, 20, {6, HOLE, 1}},
        {"vcpu_op register_runstate_memory_area", -XEN_EFAULT_, 24, {5, 0, 0}},
        {"vcpu_op for a vCPU that is not there", -XEN_ENOENT_, 24, {5, 0xffffffff, 0}},
        {"mmuext_op of nothing in the hole", -XEN_EFAULT_, 26, {HOLE, 0, 0, DOMID_SELF}},
        {"mmuext_op at NULL", -XEN_EFAULT_, 26, {0, 1, 0, DOMID_SELF}},
        {"nmi_op", -XEN_EFAULT_, 28, {0, 0}},
        {"nmi_op unregister", 0, 28, {1, 0}},
        {"nmi_op unknown", -XEN_ENOSYS_, 28, {2, 0}},
        {"sched_op watchdog", -XEN_EFAULT_, 29, {6, 0}},
        {"sched_op unknown", -XEN_ENOSYS_, 29, {8, 0}},
        {"callback_op", -XEN_EFAULT_, 30, {0, HOLE}},
        {"callback_op unknown", -XEN_ENOSYS_, 30, {2, PTR(page)}},
        {"event_channel_op send", -XEN_EFAULT_, 32, {4, HOLE}},
        {"event_channel_op bind_pirq", -XEN_EFAULT_, 32, {2, 0}},
        {"event_channel_op unknown", -XEN_ENOSYS_, 32, {15, PTR(page)}},
        {"physdev_op set_iopl", -XEN_EFAULT_, 33, {6, 0}},
        {"physdev_op irq_status_query", -XEN_EFAULT_, 33, {5, 0}},
        {"event_channel_op_compat", -XEN_EFAULT_, 16, {HOLE}},
        {"physdev_op_compat", -XEN_EFAULT_, 19, {HOLE}},
        {"a number that is not there", -XEN_ENOSYS_, 63, {0}},
        {"a wild number", -XEN_ENOSYS_, 1ul << 32, {0}},
        {"xsm_op", -XEN_ENOSYS_, 27, {0}},
        {"tmem_op", -XEN_ENOSYS_, 38, {0}},
        {"argo_op", -XEN_ENOSYS_, 39, {0}},
        {"xenpmu_op", -XEN_EOPNOTSUPP_, 40, {0}},
        {"sched_op_compat poll", -XEN_ENOSYS_, 6, {3, 0}},
        {"sched_op_compat yield", 0, 6, {0, 0}},
    };
    RUN(calls);
}

static void numbers(void)
{
    static const u32 padded[16] = {0xffffffff, 0, 0, 1}, to_nowhere[8] = {2, 1, 0, 0x8000};
    static const struct callback_register former = {.type = CALLBACKTYPE_sysenter_deprecated, .address = VIRT_BASE};
    const struct call calls[] = {
        {"DOMID_INVALID", -3, 1, {0, 0, 0, DOMID_INVALID}},
        {"a domain that is not there", -3, 1, {0, 0, 0, 99}},
        {"tables of a domain that is not there", -3, 1, {0, 0, 0, DOMID_SELF | 100 << 16}},
        {"mmuext_op on a domain that is not there", -3, 26, {0, 0, 0, 99}},
        {"set_gdt of too many entries", -XEN_EINVAL_, 2, {PTR(page), 7169}},
        {"set_gdt of none", 0, 2, {0, 0}},
        {"set_callbacks takes no notice of a bad address", 0, 4, {NOT_CANONICAL, NOT_CANONICAL, NOT_CANONICAL}},
        {"get_debugreg 8", -XEN_ENODEV, 9, {8}},
        {"set_debugreg 8", -XEN_ENODEV, 8, {8, 0}},
        {"set_debugreg 0 in the hole", -XEN_EPERM_, 8, {0, HOLE}},
        {"set_debugreg 7, reserved bits", -XEN_EINVAL_, 8, {7, 1ul << 32}},
        {"set_debugreg 7, general detect", -XEN_EPERM_, 8, {7, 1 << 13}},
        {"update_descriptor misaligned", -XEN_EINVAL_, 10, {4, 0}},
        {"update_descriptor at a wild address", -XEN_EINVAL_, 10, {~7ul, 0}},
        {"vm_assist unknown", -XEN_EINVAL_, 21, {0, 6}},
        {"vm_assist unknown command", -XEN_ENOSYS_, 21, {2, 0}},
        {"vm_assist unknown both", -XEN_EINVAL_, 21, {2, 60}},
        {"hvm_op pagetable_dying", -XEN_EINVAL_, 34, {9, PTR(page)}},
        {"hvm_op xentrace", 0, 34, {11, PTR(page)}},
        {"hvm_op get_mem_type at NULL", -XEN_EFAULT_, 34, {15, 0}},
        {"hvm_op set_evtchn_upcall_vector", -XEN_EINVAL_, 34, {23, 0}},
        {"hvm_op guest_request_vm_event with an argument", -XEN_EINVAL_, 34, {24, PTR(page)}},
        {"physdev_op restore_msi", -XEN_ENODEV, 33, {19, PTR(page)}},
        {"physdev_op restore_msi_ext", -XEN_ENODEV, 33, {27, PTR(page)}},
        {"physdev_op get_free_pirq at NULL", -XEN_EFAULT_, 33, {23, 0}},
        {"physdev_op get_free_pirq", 0, 33, {23, PTR(page + 64)}},
        {"memory_op memory_map at NULL", -XEN_EFAULT_, 12, {9, 0}},
        {"set_segment_base not canonical", -XEN_EINVAL_, 25, {0, NOT_CANONICAL}},
        {"set_segment_base unknown", -XEN_EINVAL_, 25, {4, 0}},
        {"update_va_mapping in the hole", -XEN_EINVAL_, 14, {HOLE, 0, 0}},
        {"update_va_mapping not canonical", -XEN_EINVAL_, 14, {NOT_CANONICAL, 0, 0}},
        {"memory_op from an extent that is not there", 5, 12, {6 | 5 << 6, 0}},
        {"memory_op unknown", -XEN_ENOSYS_, 12, {30, PTR(page)}},
        {"memory_op sharing", 0, 12, {18, 0}},
        {"memory_op for 32-bit guests", -XEN_EOPNOTSUPP_, 12, {25, PTR(page)}},
        {"a domctl's continuation of another version", -XEN_EOPNOTSUPP_, 49, {PTR(page)}},
        {"vnumainfo with padding", -XEN_EINVAL_, 12, {26, PTR(padded)}},
        {"a resource with padding", -XEN_EINVAL_, 12, {28, PTR(padded)}},
        {"reserved memory to no address", -XEN_EFAULT_, 12, {27, PTR(to_nowhere)}},
        {"reserved memory with flags", -XEN_EINVAL_, 12, {27, PTR(padded)}},
        {"a callback of former times", -XEN_ENOSYS_, 30, {0, PTR(&former)}},
        {"fpu_taskswitch", 0, 5, {1}},
        {"fpu_taskswitch back", 0, 5, {0}},
    };
    static u32 control[5][36] = {{3, 0x15, 0}, {3, 0x15, 99}, {3, 0x15, DOMID_SELF}, {5, 0x15, 99}, {17, 0x03000001}};
    static struct xen_memory_reservation claim = {.nr_extents = 1, .domid = DOMID_SELF};
    static u16 nowhere[16] = {99};
    const struct call domu_calls[] = {
        {"mmuext_op on DOMID_IO", -XEN_EPERM_, 26, {0, 0, 0, DOMID_IO}},
        {"mmu_update of nothing on domain 0", 0, 1, {0, 0, 0, 0}},
        {"domctl at NULL", -XEN_EFAULT_, 36, {0}},
        {"domctl of another version", -XEN_EACCES, 36, {PTR(page)}},
        {"domctl", -XEN_EPERM_, 36, {PTR(control[0])}},
        {"domctl on a domain that is not there", -3, 36, {PTR(control[1])}},
        {"domctl on DOMID_SELF", -3, 36, {PTR(control[2])}},
        {"domctl getdomaininfo of a domain that is not there", -XEN_EPERM_, 36, {PTR(control[3])}},
        {"sysctl in the hole", -XEN_EFAULT_, 35, {HOLE}},
        {"sysctl of another version", -XEN_EACCES, 35, {PTR(page)}},
        {"sysctl", -XEN_EPERM_, 35, {PTR(control[0])}},
        {"platform_op at the end of what is mapped", -XEN_EFAULT_, 7, {-8ul}},
        {"platform_op of another version", -XEN_EACCES, 7, {PTR(page)}},
        {"platform_op", -XEN_EPERM_, 7, {PTR(control[4])}},
        {"xen_version build_id", -XEN_EPERM_, 17, {10, PTR(page)}},
        {"console_io read", -XEN_EPERM_, 18, {1, 1, PTR(page)}},
        {"console_io unknown", -XEN_EPERM_, 18, {2, 1, PTR(page)}},
        {"claim_pages for oneself", -XEN_EINVAL_, 12, {24, PTR(&claim)}},
        {"unmap_pirq", -XEN_EPERM_, 33, {14, PTR(page)}},
        {"unmap_pirq of a domain that is not there", -3, 33, {14, PTR(&nowhere)}},
        {"map_pirq for a domain that is not there", -3, 33, {13, PTR(&nowhere)}},
        {"manage_pci_add at NULL", -XEN_EFAULT_, 33, {15, 0}},
        {"dbgp_op at NULL", -XEN_EPERM_, 33, {29, 0}},
        {"hvm_op get_param of another domain", -XEN_EINVAL_, 34, {1, PTR(page)}},
        {"hvm_op get_param of a domain that is not there", -3, 34, {1, PTR(&nowhere)}},
        {"kexec_op", -XEN_EPERM_, 37, {0}},
        {"hypfs_op", -XEN_EPERM_, 42, {0}},
        {"mca", -XEN_EPERM_, 48, {0}},
        {"machine_memory_map", -XEN_EPERM_, 12, {10, PTR(page)}},
        {"set_pod_target of domain 0", -XEN_EPERM_, 12, {16, PTR(page)}},
        {"pin_override", -XEN_EPERM_, 29, {7, PTR(page)}},
        {"map_pirq", -XEN_EPERM_, 33, {13, PTR(page)}},
        {"manage_pci_add", -XEN_EPERM_, 33, {15, PTR(page)}},
    };
    RUN(calls);
    if (!is_dom0) {
        RUN(domu_calls);
        check_equal(hypercall2(__HYPERVISOR_xen_version, XENVER_commandline, PTR(page)), 0, "Xen's command line");
        check(page[0] == '<' && page[7] == '>' && page[8] == 0 && page[9] == 0, "says that it is denied");
        for (unsigned i = 0; i < 9; i++)
            page[i] = 0;
    }
    struct { u32 cmd, args[7]; } compat = {.cmd = EVTCHNOP_init_control};
    check_equal(hypercall2(__HYPERVISOR_event_channel_op_compat, PTR(&compat), 0), -XEN_ENOSYS_, "FIFO in compat form");
    compat.cmd = EVTCHNOP_send;
    check_equal(hypercall2(__HYPERVISOR_event_channel_op_compat, PTR(&compat), 0), -XEN_EINVAL_, "send in compat form");
}

static void vcpus(void)
{
    struct vcpu_register_vcpu_info info = {.mfn = mfn_of(page), .offset = 4096 - 63};
    struct vcpu_register_runstate_memory_area area = {.addr.p = 0x10};
    struct vcpu_set_periodic_timer periodic = {.period_ns = 1ul << 62};
    struct vcpu_set_singleshot_timer single = {.timeout_abs_ns = 1, .flags = VCPU_SSHOTTMR_future};
    struct sched_watchdog watchdog = {.id = 1, .timeout = 100};
    struct sched_poll poll = {.nr_ports = 129};
    evtchn_port_t port = 0;

    check_equal(hypercall_vcpu_op(VCPUOP_register_vcpu_info, 0, &info), -XEN_ENXIO, "vcpu_info across pages");
    info.offset = 4;
    check_equal(hypercall_vcpu_op(VCPUOP_register_vcpu_info, 0, &info), -XEN_ENXIO, "vcpu_info misaligned");
    info = (struct vcpu_register_vcpu_info){.mfn = foreign_mfn()};
    check_equal(hypercall_vcpu_op(VCPUOP_register_vcpu_info, 0, &info), -XEN_EINVAL_, "vcpu_info elsewhere");
    check_equal(hypercall_vcpu_op(VCPUOP_register_runstate_memory_area, 0, &area), 0, "an area that is not mapped");
    area.addr.p = NOT_CANONICAL;
    check_equal(hypercall_vcpu_op(VCPUOP_register_runstate_memory_area, 0, &area), -XEN_EFAULT_, "or cannot be");
    check_equal(hypercall_vcpu_op(VCPUOP_set_periodic_timer, 0, &periodic), -XEN_EINVAL_, "too long a period");
    periodic.period_ns = 999999;
    check_equal(hypercall_vcpu_op(VCPUOP_set_periodic_timer, 0, &periodic), -XEN_EINVAL_, "too short a period");
    check_equal(hypercall_vcpu_op(VCPUOP_set_singleshot_timer, 0, &single), 0, "a timer in the past");

    check_equal(hypercall_sched(SCHEDOP_watchdog, &watchdog), -XEN_EINVAL_, "a watchdog that was not started");
    watchdog.id = 3;
    check_equal(hypercall_sched(SCHEDOP_watchdog, &watchdog), -XEN_EINVAL_, "a third one");
    watchdog.id = 0;
    check_equal(hypercall_sched(SCHEDOP_watchdog, &watchdog), 1, "the first");
    check_equal(hypercall_sched(SCHEDOP_watchdog, &watchdog), 2, "the second");
    check_equal((int)hypercall_sched(SCHEDOP_watchdog, &watchdog), -XEN_ENOSPC_, "no more");
    watchdog = (struct sched_watchdog){.id = 1};
    check_equal(hypercall_sched(SCHEDOP_watchdog, &watchdog), 0, "stop it");
    check_equal(hypercall_sched(SCHEDOP_watchdog, &watchdog), -XEN_EINVAL_, "it is stopped");
    watchdog.id = 2;
    check_equal(hypercall_sched(SCHEDOP_watchdog, &watchdog), 0, "stop the other");

    check_equal(hypercall_sched(SCHEDOP_poll, &poll), -XEN_EINVAL_, "poll on too many ports");
    poll.nr_ports = 1;
    check_equal(hypercall_sched(SCHEDOP_poll, &poll), -XEN_EFAULT_, "poll at NULL");
    poll.ports.p = &port;
    check_equal(hypercall_sched(SCHEDOP_poll, &poll), -XEN_EINVAL_, "poll on port 0");
}

static void ports(void)
{
    struct evtchn_status status = {.dom = DOMID_SELF, .port = 0};
    struct evtchn_unmask unmask = {.port = 0};
    struct evtchn_bind_vcpu bind = {.vcpu = 77};
    struct evtchn_alloc_unbound unbound = {.dom = DOMID_SELF, .remote_dom = DOMID_SELF};
    struct evtchn_bind_interdomain inter = {.remote_dom = DOMID_SELF};

    check_equal(hypercall_evtchn(EVTCHNOP_status, &status), 0, "status of port 0");
    check_equal(status.status, EVTCHNSTAT_closed, "it is closed");
    check_equal(hypercall_evtchn(EVTCHNOP_unmask, &unmask), 0, "unmask port 0");
    status.port = 63;
    check_equal(hypercall_evtchn(EVTCHNOP_status, &status), 0, "status within the first 64");
    status.port = 64;
    check_equal(hypercall_evtchn(EVTCHNOP_status, &status), -XEN_EINVAL_, "status past all that were bound");
    check_equal(hypercall_evtchn(EVTCHNOP_bind_vcpu, &bind), -XEN_ENOENT_, "bind to a vCPU that is not there");

    check_equal(hypercall_evtchn(EVTCHNOP_alloc_unbound, &unbound), 0, "alloc_unbound for oneself");
    inter.remote_port = unbound.port;
    check_equal(hypercall_evtchn(EVTCHNOP_bind_interdomain, &inter), 0, "bind it oneself");
    check_equal(hypercall_evtchn(EVTCHNOP_bind_interdomain, &inter), -XEN_EINVAL_, "once only");
    status.port = unbound.port;
    check_equal(hypercall_evtchn(EVTCHNOP_status, &status), 0, "status");
    check_equal(status.status, EVTCHNSTAT_interdomain, "bound");
    check_equal(status.u.interdomain.port, inter.local_port, "to the other");
    inter.remote_dom = 99;
    check_equal(hypercall_evtchn(EVTCHNOP_bind_interdomain, &inter), -3, "a domain that is not there");
    if (is_dom0)
        return;
    struct evtchn_bind_pirq pirq = {.pirq = 1};
    check_equal(hypercall_evtchn(EVTCHNOP_bind_pirq, &pirq), -XEN_EPERM_, "an interrupt of somebody else");
    pirq.pirq = 5000;
    check_equal(hypercall_evtchn(EVTCHNOP_bind_pirq, &pirq), -XEN_EINVAL_, "an interrupt that is not there");
}

static void exchange(void)
{
    static u64 in[1], out[1];
    struct xen_memory_exchange op = {.in = {.nr_extents = 1, .domid = DOMID_SELF},
                                     .out = {.nr_extents = 1, .domid = DOMID_SELF}};
    struct xen_memory_reservation order = {.nr_extents = 1, .extent_order = 30, .domid = DOMID_SELF};

    op.in.extent_start.p = in;
    op.out.extent_start.p = out;
    order.extent_start.p = in;
    in[0] = mfn_of(page);
    out[0] = pfn_of(page);
    check_equal(hypercall2(__HYPERVISOR_memory_op, XENMEM_exchange, PTR(&op)), -XEN_EINVAL_, "a frame that is mapped");
    in[0] = foreign_mfn();
    check_equal(hypercall2(__HYPERVISOR_memory_op, XENMEM_exchange, PTR(&op)), -XEN_EINVAL_, "somebody else's frame");
    op.in.nr_extents = 2;
    check_equal(hypercall2(__HYPERVISOR_memory_op, XENMEM_exchange, PTR(&op)), -XEN_EINVAL_, "two for one");
    op.in.nr_extents = 1;
    in[0] = mfn_of(page);
    page[7] = 7;
    check_equal(update_va_mapping(page, 0, UVMF_INVLPG), 0, "unmap");
    check_equal(hypercall2(__HYPERVISOR_memory_op, XENMEM_exchange, PTR(&op)), 0, "exchange");
    check_equal(op.nr_exchanged, 1, "one");
    check(out[0] != in[0], "another frame");
    p2m()[pfn_of(page)] = out[0];
    check_equal(update_va_mapping(page, (out[0] << 12) | PTE_DATA, UVMF_INVLPG), 0, "map it");
    check_equal(page[7], 0, "fresh memory");
    check_equal(hypercall2(__HYPERVISOR_memory_op, XENMEM_populate_physmap, PTR(&order)), 0, "too great an order");
}

void test(void)
{
    is_dom0 = start_info->flags & SIF_INITDOMAIN;
    load_traps();
    handles();
    numbers();
    vcpus();
    ports();
    exchange();
}
