/*
 * control: CR0, CR4 and XCR0 as a PV guest reads and writes them, and what CPUID shows of that.
 */
#include "guest.h"

enum { TSD = 1 << 2, DE = 1 << 3, FIXED = 0x660, FSGSBASE = 1 << 16, OSXSAVE = 1 << 18 };

struct leaf { u32 eax, ebx, ecx, edx; };

static struct leaf forced(u32 leaf, u32 subleaf)
{
    struct leaf r = {.eax = leaf, .ecx = subleaf};
    asm volatile(".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e\n\t cpuid" : "+a"(r.eax), "=b"(r.ebx), "+c"(r.ecx), "=d"(r.edx));
    return r;
}

static u64 cr4(void)
{
    u64 value;
    asm volatile("mov %%cr4, %0" : "=r"(value));
    return value;
}

static void set_cr4(u64 value, u64 expected, const char *what)
{
    EXPECT_TRAP("mov %[value], %%cr4", [value] "r"(value));
    check_equal(caught.count, 0, what);
    check_equal(cr4(), expected, what);
}

static bool set_cr0(u64 value)
{
    EXPECT_TRAP("mov %[value], %%cr0", [value] "r"(value));
    return caught.count == 0;
}

static bool set_xcr(u32 index, u64 value)
{
    EXPECT_TRAP("mov %[index], %%ecx\n\t mov %[value], %%rax\n\t mov %%rax, %%rdx\n\t shr $32, %%rdx\n\t xsetbv",
                [value] "r"(value), [index] "r"(index));
    return caught.count == 0;
}

static u32 xcr0(void)
{
    u32 low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static void extended_state(void)
{
    check(forced(1, 0).ecx >> 27 & 1, "a kernel that asks Xen sees OSXSAVE");
    check(!set_xcr(0, 3), "xsetbv without CR4.OSXSAVE");
    check_equal(caught.vector, 6, "is #UD");
    set_cr4(OSXSAVE, FIXED | OSXSAVE, "OSXSAVE");
    check_equal(xcr0(), 3, "x87 and SSE at first");
    check_equal(forced(0xd, 0).ebx, 576, "their size");
    if (!(forced(0xd, 0).eax & 4))
        return;
    check(set_xcr(0, 7), "AVX");
    check_equal(xcr0(), 7, "XCR0");
    check_equal(forced(0xd, 0).ebx, 832, "size with AVX");
    check_equal(forced(0xd, 0).ecx, 832, "greatest size");
    static const u64 bad[] = {0, 2, 5, 0xe7 | 1ul << 62, 0x203, 0x1b};
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        check(!set_xcr(0, bad[i]), "a set of components that cannot be");
        check_equal(caught.vector, 13, "is #GP");
    }
    check(!set_xcr(1, 3), "another XCR");
    check_equal(xcr0(), 7, "XCR0 is as it was");
    check(set_xcr(0, 1) && xcr0() == 1, "x87 only");
    check(set_xcr(0, 7), "back");
}

void test(void)
{
    u64 cr0;

    load_traps();
    catch_traps();
    check_equal(cr4(), FIXED, "CR4 at first");
    EXPECT_TRAP("rdfsbase %%rax", [none] "i"(0));
    check_equal(caught.vector, 6, "rdfsbase without CR4.FSGSBASE");
    EXPECT_TRAP("wrgsbase %%rax", [none] "i"(0));
    check_equal(caught.vector, 6, "wrgsbase without CR4.FSGSBASE");
    extended_state();
    set_cr4(0, FIXED, "CR4 keeps what Xen wants");
    set_cr4(~0ul, FIXED | TSD | DE | FSGSBASE | OSXSAVE, "and takes what a guest may set");
    EXPECT_TRAP("rdfsbase %%rax\n\t wrfsbase %%rax", [none] "i"(0));
    check_equal(caught.count, 0, "rdfsbase with CR4.FSGSBASE");
    set_cr4(FIXED | 1 << 8 | 1 << 7 | 1 << 20, FIXED, "PCE, PGE, SMEP");
    asm volatile("mov %%cr0, %0" : "=r"(cr0));
    check_equal(cr0, 0x80050033, "CR0 at first");
    check(set_cr0(0x8005003b), "TS");
    check(set_cr0(0x80050033), "TS off");
    check(!set_cr0(0x80050032) && !set_cr0(0), "nothing else of CR0");
    struct leaf xen = forced(0x40000000, 0);
    check(xen.eax >= 0x40000003, "Xen's leaves");
    struct leaf time = forced(0x40000003, 0);
    check_equal(time.eax >> 2 & 1, forced(0x80000001, 0).edx >> 27 & 1, "leaf 3 tells whether rdtscp is there");
    check(forced(0x40000003, 2).eax != 0, "the CPU's frequency");
    check_equal(forced(0x40000005, 1).ebx, 0, "leaf 5 has one subleaf");
    check(forced(0x40000005, 0).ebx != 0, "the width of machine addresses");
}
