/*
 * cpuid: the forced-emulation prefix gives Xen's leaves and hides what a PV guest must not see.
 */
#include "guest.h"

struct leaf { u32 eax, ebx, ecx, edx; };

static struct leaf forced(u32 leaf, u32 subleaf)
{
    struct leaf r = {.eax = leaf, .ecx = subleaf};
    asm volatile(".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e\n\t cpuid" : "+a"(r.eax), "=b"(r.ebx), "+c"(r.ecx), "=d"(r.edx));
    return r;
}

void test(void)
{
    struct leaf base = forced(0x40000000, 0);
    check_equal(base.ebx, 0x566e6558, "XenV");
    check_equal(base.ecx, 0x65584d4d, "MMXe");
    check_equal(base.edx, 0x4d4d566e, "nVMM");
    check(base.eax >= 0x40000001 && base.eax < 0x40000100, "highest Xen leaf");
    struct leaf version = forced(0x40000001, 0);
    check_equal(version.eax, hypercall2(__HYPERVISOR_xen_version, XENVER_version, 0), "version, as the hypercall says");
    struct leaf info = forced(0x40000002, 0);
    check_equal(info.eax, 1, "one hypercall page");

    struct leaf one = forced(1, 0);
    check(one.edx & 1, "FPU shown");
    check(one.edx & (1 << 26), "SSE2 shown");
    check(!(one.edx & (1 << 3)), "PSE hidden");
    check(start_info->flags & SIF_INITDOMAIN || !(one.edx & (1 << 12)), "MTRR hidden, but for domain 0");
    check(!(one.edx & (1 << 13)), "PGE hidden");
    check(!(one.ecx & (1 << 17)), "PCID hidden");
    check(!(one.ecx & (1 << 5)), "VMX hidden");
    check(!(one.ecx & (1 << 3)), "MONITOR hidden");
    struct leaf seven = forced(7, 0);
    check(!(seven.ebx & (1 << 7)), "SMEP hidden");
    check(!(seven.ebx & (1 << 20)), "SMAP hidden");
    check(!(seven.ebx & (1 << 10)), "INVPCID hidden");
    struct leaf extended = forced(0x80000001, 0);
    check(extended.edx & (1 << 29), "long mode shown");
    check(extended.edx & (1 << 11), "SYSCALL shown");
    check(!(extended.ecx & (1 << 2)), "SVM hidden");
}
