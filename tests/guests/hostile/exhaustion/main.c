/*
 * hostile/exhaustion: a domain that takes all it can get meets its own limits, keeps what it had, and can go on; frames that it
 * gets are empty, and replies hold no bytes that are not its own. Classes of XSA-34, 72, 107, 226, 307, 317 and 344.
 */
#include "guest.h"

static PAGE char page[PAGE_SIZE];

static void all_ports(void)
{
    struct evtchn_alloc_unbound alloc = {.dom = DOMID_SELF, .remote_dom = DOMID_SELF};
    u32 first = 0, last = 0, nr = 0;
    while (hypercall_evtchn(EVTCHNOP_alloc_unbound, &alloc) == 0) {
        if (first == 0)
            first = alloc.port;
        check(alloc.port > last, "ports ascend");
        last = alloc.port;
        if (++nr > 200000) {
            check(false, "there is a limit");
            break;
        }
    }
    check(nr > 100, "many ports");
    struct evtchn_close close = {.port = first};
    check_equal(hypercall_evtchn(EVTCHNOP_close, &close), 0, "one is closed");
    check_equal(hypercall_evtchn(EVTCHNOP_alloc_unbound, &alloc), 0, "and another made");
    check_equal(alloc.port, first, "in its place");
    for (u32 port = first; port <= last; port++) {
        close.port = port;
        hypercall_evtchn(EVTCHNOP_close, &close);
    }
    struct evtchn_status status = {.dom = DOMID_SELF, .port = 0xffffffff};
    check_equal(hypercall_evtchn(EVTCHNOP_status, &status), -XEN_EINVAL_, "a port beyond all");
    struct evtchn_send send = {.port = 1u << 31};
    check_equal(hypercall_evtchn(EVTCHNOP_send, &send), -XEN_EINVAL_, "sending there");
}

static void all_memory(void)
{
    xen_pfn_t frame;
    struct xen_memory_reservation op = {.nr_extents = 1, .domid = DOMID_SELF};
    set_xen_guest_handle(op.extent_start, &frame);
    u64 nr = 0;
    for (;; nr++) {
        frame = 0x7fff;
        if (hypercall2(__HYPERVISOR_memory_op, XENMEM_populate_physmap, PTR(&op)) != 1)
            break;
        check_equal(update_va_mapping(page, (frame << 12) | PTE_DATA, UVMF_INVLPG), 0, "it can be mapped");
        for (u64 at = 0; at < PAGE_SIZE; at++)
            if (page[at] != 0) {
                check(false, "a fresh frame is empty");
                return;
            }
        if (nr > 100000) {
            check(false, "there is a limit");
            return;
        }
    }
    op.nr_extents = ~0ul;
    check(hypercall2(__HYPERVISOR_memory_op, XENMEM_populate_physmap, PTR(&op)) <= 0, "a count without end");
    op.extent_order = 63;
    check(hypercall2(__HYPERVISOR_memory_op, XENMEM_populate_physmap, PTR(&op)) <= 0, "an order beyond all");
}

static void replies(void)
{
    /* What is not written stays as it was; what is, is text and zeros. */
    static unsigned char reply[1024];
    memset(reply, 0xa5, sizeof(reply));
    check_equal(hypercall2(__HYPERVISOR_xen_version, XENVER_extraversion, PTR(reply)), 0, "extraversion");
    for (int i = 0; i < 16; i++)
        check(reply[i] < 128, "text and zeros");
    check_equal(reply[16], 0xa5, "and no more");
    memset(reply, 0xa5, sizeof(reply));
    check_equal(hypercall2(__HYPERVISOR_xen_version, XENVER_capabilities, PTR(reply)), 0, "capabilities");
    bool has_ended = false;
    for (int i = 0; i < 1024 && has_ended; i++) {
        has_ended |= reply[i] == 0;
        check(!has_ended || reply[i] == 0, "zeros behind the text");
    }
    struct vcpu_runstate_info runstate;
    memset(&runstate, 0xa5, sizeof(runstate));
    check_equal(hypercall_vcpu_op(VCPUOP_get_runstate_info, 0, &runstate), 0, "runstate");
    check(((u32 *)&runstate)[1] == 0, "its padding is clear");
}

void test(void)
{
    load_traps();
    replies();
    if (start_info->flags & SIF_INITDOMAIN)
        return; /* domain 0 has other limits */
    all_ports();
    all_memory();
}
