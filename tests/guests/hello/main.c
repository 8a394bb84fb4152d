/*
 * hello: hypercalls by a bare `syscall` answer, keep the registers they must keep, and a domain can power itself off.
 */
#include "guest.h"

void test(void)
{
    static const char line[] = "hello by console_io\n";
    struct xen_feature_info features = {.submap_idx = 0};
    char extraversion[16];

    print("hello by the console ring\n");
    check(hypercall4(__HYPERVISOR_console_io, CONSOLEIO_write, sizeof(line) - 1, PTR(line), 0) >= -XEN_ENOSYS_,
          "console_io answers");

    long version = hypercall2(__HYPERVISOR_xen_version, XENVER_version, 0);
    check(version >= 0x40000 && version < 0x50000, "XENVER_version is a Xen 4");
    check_equal(hypercall2(__HYPERVISOR_xen_version, XENVER_extraversion, PTR(extraversion)), 0, "extraversion");
    check_equal(hypercall2(__HYPERVISOR_xen_version, XENVER_get_features, PTR(&features)), 0, "get_features");
    check(features.submap & (1u << XENFEAT_mmu_pt_update_preserve_ad), "feature mmu_pt_update_preserve_ad");
    check(features.submap & (1u << XENFEAT_gnttab_map_avail_bits), "feature gnttab_map_avail_bits");

    check_equal(hypercall2(__HYPERVISOR_xen_version, XENVER_get_features, 0xffff800000000000), -XEN_EFAULT_,
                "a handle into the hypervisor's range is refused");
    check_equal(hypercall2(63, 1, 2), -XEN_ENOSYS_, "a hypercall that does not exist");
    check_equal(hypercall2(0xfffffffffffffff0, 1, 2), -XEN_ENOSYS_, "a wild hypercall number");

    u64 rbx = 0x1122334455667788, rdi = XENVER_version, rsi = 0, result = __HYPERVISOR_xen_version;
    register u64 r12 asm("r12") = 0x99aabbccddeeff00;
    asm volatile("syscall" : "+a"(result), "+b"(rbx), "+D"(rdi), "+S"(rsi), "+r"(r12) : : "rcx", "r11", "memory");
    check_equal(rbx, 0x1122334455667788, "rbx survives a hypercall");
    check_equal(r12, 0x99aabbccddeeff00, "r12 survives a hypercall");
    check_equal(rdi, XENVER_version, "the first argument survives a hypercall");

    check(start_info->nr_pages > 0, "start_info.nr_pages");
    check(memcmp(start_info->magic, "xen-3.0-x86_64", 14) == 0, "start_info.magic");
    check(start_info->nr_pt_frames > 0, "start_info.nr_pt_frames");
}
