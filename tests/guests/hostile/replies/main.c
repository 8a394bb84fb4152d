/*
 * hostile/replies: what hypercalls write is theirs to tell: each byte of a reply is either left as it was or the same twice.
 * Bytes that differ would be left-overs of the hypervisor's stack or heap. Classes of XSA-72, 121, 132, 372 and of padding.
 */
#include "guest.h"
#include <xen/grant_table.h>

enum { NR_BYTES = 2048 };
static PAGE unsigned char reply[2][NR_BYTES];

struct call {
    const char *name;
    u64 op, sub;
    unsigned nr_in, from;      /* bytes of `in`; argument that is the handle: 1 or 2 */
    u32 in[8];
    unsigned varies_at, varies; /* bytes that tell the time */
};

static const struct call calls[] = {
    {"extraversion", __HYPERVISOR_xen_version, XENVER_extraversion, 0, 1, {0}, 0, 0},
    {"compile_info", __HYPERVISOR_xen_version, XENVER_compile_info, 0, 1, {0}, 0, 0},
    {"capabilities", __HYPERVISOR_xen_version, XENVER_capabilities, 0, 1, {0}, 0, 0},
    {"changeset", __HYPERVISOR_xen_version, XENVER_changeset, 0, 1, {0}, 0, 0},
    {"platform_parameters", __HYPERVISOR_xen_version, XENVER_platform_parameters, 0, 1, {0}, 0, 0},
    {"get_features", __HYPERVISOR_xen_version, XENVER_get_features, 4, 1, {0}, 0, 0},
    {"guest_handle", __HYPERVISOR_xen_version, XENVER_guest_handle, 0, 1, {0}, 0, 0},
    {"commandline", __HYPERVISOR_xen_version, XENVER_commandline, 0, 1, {0}, 0, 0},
    {"runstate", __HYPERVISOR_vcpu_op, VCPUOP_get_runstate_info, 0, 2, {0}, 8, 40},
    {"evtchn status", __HYPERVISOR_event_channel_op, EVTCHNOP_status, 8, 1, {DOMID_SELF, 1}, 0, 0},
    {"evtchn status, none", __HYPERVISOR_event_channel_op, EVTCHNOP_status, 8, 1, {DOMID_SELF, 900}, 0, 0},
    {"query_size", __HYPERVISOR_grant_table_op, GNTTABOP_query_size, 4, 1, {DOMID_SELF}, 0, 0},
    {"get_version", __HYPERVISOR_grant_table_op, GNTTABOP_get_version, 4, 1, {DOMID_SELF}, 0, 0},
    {"machphys_mapping", __HYPERVISOR_memory_op, XENMEM_machphys_mapping, 0, 1, {0}, 0, 0},
    {"irq_status_query", __HYPERVISOR_physdev_op, PHYSDEVOP_irq_status_query, 4, 1, {1}, 0, 0},
};

static long make(const struct call *call, unsigned char *at, int fill)
{
    memset(at, fill, NR_BYTES);
    memcpy(at, call->in, call->nr_in);
    if (call->from == 2)
        return hypercall5(call->op, call->sub, 0, PTR(at), 0, 0);
    return hypercall5(call->op, call->sub, PTR(at), 1, 0, 0);
}

void test(void)
{
    load_traps();
    for (unsigned i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        const struct call *call = &calls[i];
        long first = make(call, reply[0], 0xa5);
        /* Something else on the hypervisor's stack in between. */
        u64 noise[8];
        for (int n = 0; n < 8; n++)
            noise[n] = 0x1111111111111111ul * (unsigned)(n + i);
        hypercall4(__HYPERVISOR_mmu_update, PTR(noise), 4, 0, DOMID_SELF);
        long second = make(call, reply[1], 0x5a);
        check_equal(first, second, call->name);
        for (unsigned at = 0; at < NR_BYTES; at++) {
            bool is_left = reply[0][at] == 0xa5 && reply[1][at] == 0x5a;
            bool is_exempt = at >= call->varies_at && at < call->varies_at + call->varies;
            if (!is_left && !is_exempt && reply[0][at] != reply[1][at]) {
                print("%s byte %u: 0x%x and 0x%x\n", call->name, at, reply[0][at], reply[1][at]);
                check(false, "a byte that is nobody's");
            }
        }
    }
}
