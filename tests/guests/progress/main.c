/*
 * progress: arrays that end where nothing is mapped: what comes before is done, and the call says how much that is: done
 * counts, numbers of extents, results and statuses of the elements; a bad place for the count changes nothing else.
 *
 * memory: 24
 */
#include "guest.h"
#include <xen/grant_table.h>

static PAGE char pages[2][PAGE_SIZE];
static PAGE char scratch[4][PAGE_SIZE];
#define END (pages[0] + PAGE_SIZE)

static void mmu_updates(void)
{
    struct mmu_update *list = (void *)(END - 2 * sizeof(*list));
    u64 pte = (mfn_of(scratch[0]) << 12) | PTE_DATA, at = entry_maddr(scratch[0], 1) | MMU_NORMAL_PT_UPDATE;
    u32 done = 77;

    list[0] = list[1] = (struct mmu_update){at, pte};
    check_equal(hypercall4(__HYPERVISOR_mmu_update, PTR(list), 3, PTR(&done), DOMID_SELF), -XEN_EFAULT_, "mmu_update");
    check_equal(done, 2, "two are done");
    list[1].ptr = 3;
    check_equal(hypercall4(__HYPERVISOR_mmu_update, PTR(list), 2, PTR(&done), DOMID_SELF), -XEN_EINVAL_, "one is wrong");
    check_equal(done, 1, "one is done");
    check_equal(hypercall4(__HYPERVISOR_mmu_update, PTR(list), 1, PTR(END), DOMID_SELF), 0, "no place for the count");
    check_equal(hypercall4(__HYPERVISOR_mmu_update, PTR(list), 0, PTR(&done), DOMID_SELF), 0, "nothing to do");
    check_equal(done, 0, "nothing is done");
    /* One that lies in both pages. */
    list = (void *)(END - 24);
    list[0] = (struct mmu_update){at, pte};
    check_equal(hypercall4(__HYPERVISOR_mmu_update, PTR(list), 2, PTR(&done), DOMID_SELF), -XEN_EFAULT_, "across");
    check_equal(done, 1, "the first is done");
}

static void mmuext_ops(void)
{
    struct mmuext_op *list = (void *)(END - 2 * sizeof(*list));
    u32 done = 77;

    list[0] = list[1] = (struct mmuext_op){.cmd = MMUEXT_TLB_FLUSH_LOCAL};
    check_equal(hypercall4(__HYPERVISOR_mmuext_op, PTR(list), 5, PTR(&done), DOMID_SELF), -XEN_EFAULT_, "mmuext_op");
    check_equal(done, 2, "two are done");
    list[0].cmd = 14;
    check_equal(hypercall4(__HYPERVISOR_mmuext_op, PTR(list), 2, PTR(&done), DOMID_SELF), -XEN_ENOSYS_, "an unknown one");
    check_equal(done, 0, "none is done");
}

static void reservations(void)
{
    u64 *list = (u64 *)END - 3;
    struct xen_memory_reservation op = {.nr_extents = 5, .domid = DOMID_SELF};

    set_xen_guest_handle(op.extent_start, list);
    for (unsigned i = 0; i < 3; i++) {
        list[i] = mfn_of(scratch[i]);
        check_equal(update_va_mapping(scratch[i], 0, UVMF_INVLPG), 0, "unmap");
    }
    check_equal(hypercall2(__HYPERVISOR_memory_op, XENMEM_decrease_reservation, PTR(&op)), 3, "three are given back");
    for (unsigned i = 0; i < 3; i++)
        list[i] = pfn_of(scratch[i]);
    check_equal(hypercall2(__HYPERVISOR_memory_op, XENMEM_populate_physmap, PTR(&op)), 3, "three come back");
    for (unsigned i = 0; i < 3; i++) {
        p2m()[pfn_of(scratch[i])] = list[i];
        check_equal(update_va_mapping(scratch[i], (list[i] << 12) | PTE_DATA, UVMF_INVLPG), 0, "map");
        check_equal(scratch[i][9], 0, "fresh memory");
    }
    op.nr_extents = 3;
    check_equal(hypercall2(__HYPERVISOR_memory_op, XENMEM_populate_physmap | 3 << 6, PTR(&op)), 3, "all were done");
}

static void multicalls(void)
{
    multicall_entry_t *list = (void *)(END - 2 * sizeof(*list));

    list[0] = list[1] = (multicall_entry_t){.op = __HYPERVISOR_xen_version, .args = {XENVER_pagesize}};
    check_equal(hypercall2(__HYPERVISOR_multicall, PTR(list), 3), -XEN_EFAULT_, "multicall");
    check_equal(list[0].result, 4096, "the first was made");
    check_equal(list[1].result, 4096, "the second too");
}

static void grants(void)
{
    struct gnttab_copy *list = (void *)(END - 2 * sizeof(*list));

    list[0] = list[1] = (struct gnttab_copy){
        .source = {.u.gmfn = mfn_of(scratch[0]), .domid = DOMID_SELF},
        .dest = {.u.gmfn = mfn_of(scratch[1]), .domid = DOMID_SELF},
        .len = 8,
        .status = 77,
    };
    list[1].dest.offset = 16;
    scratch[0][0] = 5;
    check_equal(hypercall4(__HYPERVISOR_grant_table_op, GNTTABOP_copy, PTR(list), 3, 0), -XEN_EFAULT_, "copies");
    check_equal(list[0].status, GNTST_okay, "the first is done");
    check_equal(list[1].status, GNTST_okay, "the second too");
    check(scratch[1][0] == 5 && scratch[1][16] == 5, "as the memory shows");
}

static void traps(void)
{
    struct trap_info *list = (void *)(END - 2 * sizeof(*list));

    list[0] = (struct trap_info){.vector = 77, .cs = FLAT_KERNEL_CS, .address = PTR(END)};
    list[1] = (struct trap_info){.vector = 78, .cs = FLAT_KERNEL_CS, .address = PTR(END)};
    check_equal(hypercall2(__HYPERVISOR_set_trap_table, PTR(list), 0), -XEN_EFAULT_, "a trap table without an end");
    list[0].address = 0x800000000000;
    check_equal(hypercall2(__HYPERVISOR_set_trap_table, PTR(list), 0), -XEN_EINVAL_, "an address that is none");
    u64 *frames = (u64 *)END - 1;
    *frames = mfn_of(scratch[3]);
    check_equal(hypercall2(__HYPERVISOR_set_gdt, PTR(frames), 513), -XEN_EFAULT_, "half a list of frames");
    frames = (u64 *)(END - 4);
    check_equal(hypercall2(__HYPERVISOR_set_gdt, PTR(frames), 1), -XEN_EFAULT_, "half a frame's number");
}

static void results(void)
{
    struct xen_feature_info *info = (void *)(END - 4);
    evtchn_port_t *port = (evtchn_port_t *)END - 1;
    struct evtchn_alloc_unbound *unbound = (void *)(END - 4);

    check_equal(hypercall2(__HYPERVISOR_xen_version, XENVER_get_features, PTR(info)), -XEN_EFAULT_, "half a structure");
    check_equal(hypercall2(__HYPERVISOR_xen_version, XENVER_extraversion, PTR(END - 8)), -XEN_EFAULT_, "half a result");
    check_equal(hypercall2(__HYPERVISOR_xen_version, XENVER_capabilities, PTR(END - 8)), -XEN_EFAULT_, "half a result");
    unbound->dom = unbound->remote_dom = DOMID_SELF;
    check_equal(hypercall_evtchn(EVTCHNOP_alloc_unbound, unbound), -XEN_EFAULT_, "half an argument");
    struct sched_poll poll = {.nr_ports = 2, .timeout = 1};
    set_xen_guest_handle(poll.ports, port);
    struct evtchn_bind_ipi ipi = {.vcpu = 0};
    check_equal(hypercall_evtchn(EVTCHNOP_bind_ipi, &ipi), 0, "bind_ipi");
    *port = ipi.port;
    check_equal(hypercall_sched(SCHEDOP_poll, &poll), -XEN_EFAULT_, "a second port that is nowhere");
    check_equal(hypercall4(__HYPERVISOR_console_io, CONSOLEIO_write, 8, PTR(END - 4), 0), -XEN_EFAULT_, "half a text");
}

void test(void)
{
    load_traps();
    check_equal(update_va_mapping(pages[1], 0, UVMF_INVLPG), 0, "unmap the second page");
    mmu_updates();
    mmuext_ops();
    reservations();
    multicalls();
    grants();
    traps();
    results();
}
