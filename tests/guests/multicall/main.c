/*
 * multicall: each entry gets its own result, a failing one does not stop the rest, nesting is refused.
 */
#include "guest.h"

static PAGE char window[PAGE_SIZE];
static PAGE volatile char first[PAGE_SIZE];

void test(void)
{
    static multicall_entry_t calls[34];
    multicall_entry_t inner = {.op = __HYPERVISOR_xen_version};
    struct xen_feature_info features = {.submap_idx = 0};

    first[0] = 'a';
    calls[0] = (multicall_entry_t){.op = __HYPERVISOR_xen_version, .args = {XENVER_version}};
    calls[1] = (multicall_entry_t){.op = 63};
    calls[2] = (multicall_entry_t){.op = __HYPERVISOR_update_va_mapping,
                                   .args = {PTR(window), (mfn_of(first) << 12) | PTE_DATA, UVMF_INVLPG}};
    calls[3] = (multicall_entry_t){.op = __HYPERVISOR_multicall, .args = {PTR(&inner), 1}};
    calls[4] = (multicall_entry_t){.op = __HYPERVISOR_xen_version, .args = {XENVER_get_features, PTR(&features)}};
    check_equal(hypercall2(__HYPERVISOR_multicall, PTR(calls), 5), 0, "multicall");
    check(calls[0].result >= 0x40000 && calls[0].result < 0x50000, "first result");
    check_equal(calls[1].result, -XEN_ENOSYS_, "a call that does not exist");
    check_equal(calls[2].result, 0, "update_va_mapping");
    check_equal(*(volatile char *)window, 'a', "its effect");
    check_equal(calls[3].result, -XEN_EINVAL_, "a nested multicall");
    check_equal(calls[4].result, 0, "the last one ran");
    check(features.submap != 0, "its effect");

    check_equal(hypercall2(__HYPERVISOR_multicall, 0, 0), 0, "an empty multicall");
    check_equal(hypercall2(__HYPERVISOR_multicall, 0xffff800000000000, 2), -XEN_EFAULT_, "a bad handle");
    for (int i = 0; i < 34; i++)
        calls[i] = (multicall_entry_t){.op = __HYPERVISOR_xen_version, .result = 1};
    check_equal(hypercall2(__HYPERVISOR_multicall, PTR(calls), 34), 0, "34 entries");
    for (int i = 0; i < 34; i++)
        check(calls[i].result >= 0x40000, "each has its result");
}
