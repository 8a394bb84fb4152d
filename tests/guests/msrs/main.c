/*
 * msrs: what the kernel of a PV guest reads and writes of the MSRs: some have values of Xen's, some are there to be
 * ignored, all others are #GP(0).
 */
#include "guest.h"

static u64 low, high;

static bool read(u32 msr)
{
    EXPECT_TRAP("xor %%edx, %%edx\n\t xor %%eax, %%eax\n\t mov %[msr], %%ecx\n\t rdmsr\n\t"
                "mov %%rax, %[low]\n\t mov %%rdx, %[high]",
                [msr] "r"(msr), [low] "m"(low), [high] "m"(high));
    asm volatile("" : : : "memory");
    if (caught.count && (caught.vector != 13 || caught.error_code != 0))
        check(false, "a fault other than #GP(0)");
    return caught.count == 0;
}

static bool write(u32 msr, u64 value)
{
    EXPECT_TRAP("mov %[msr], %%ecx\n\t mov %[value], %%rax\n\t mov %%rax, %%rdx\n\t shr $32, %%rdx\n\t wrmsr",
                [msr] "r"(msr), [value] "r"(value));
    return caught.count == 0;
}

enum { FAULT = 1, IGNORED = 2, ZERO = 4, SAME = 8, AMD = 16, UNREADABLE = 32 };

struct rule {
    const char *what;
    u32 msr;
    int writes; /* what writes do; SAME: the value that was read, and nothing else */
    u64 value;
};

static const struct rule rules[] = {
    {"P5_MC_ADDR", 0, FAULT, 0},
    {"APIC_BASE", 0x1b, FAULT, 0xfee00900},
    {"SMBASE", 0x9e, FAULT | UNREADABLE, 0},
    {"UCODE_WRITE", 0x79, FAULT | UNREADABLE, 0},
    {"PRED_CMD", 0x49, FAULT | UNREADABLE, 0},
    {"MPERF", 0xe7, IGNORED | UNREADABLE, 0},
    {"APERF", 0xe8, IGNORED | UNREADABLE, 0},
    {"ARCH_CAPABILITIES", 0x10a, FAULT | UNREADABLE | AMD, 0},
    {"SYSENTER_CS", 0x174, FAULT | UNREADABLE, 0},
    {"MCG_CTL", 0x17b, IGNORED, 0},
    {"PERF_STATUS", 0x198, FAULT | UNREADABLE | AMD, 0},
    {"DEBUGCTL", 0x1d9, FAULT | UNREADABLE, 0},
    {"CR_PAT", 0x277, FAULT, 0x50100070406},
    {"MC0_CTL2", 0x280, IGNORED, 0},
    {"PERF_CAPABILITIES", 0x345, FAULT, 0},
    {"MC0_CTL", 0x400, IGNORED, ~0ul},
    {"MC0_STATUS", 0x401, ZERO, 0},
    {"MC1_CTL", 0x404, IGNORED, ~0ul},
    {"MC1_MISC", 0x407, ZERO, 0},
    {"MC2_CTL", 0x408, IGNORED, 0},
    {"MC2_STATUS", 0x409, IGNORED, 0},
    {"MCG_EXT_CTL", 0x4d0, FAULT | UNREADABLE, 0},
    {"RTIT_CTL", 0x570, FAULT | UNREADABLE, 0},
    {"x2APIC TPR", 0x808, FAULT | UNREADABLE, 0},
    {"XSS", 0xda0, FAULT | UNREADABLE, 0},
    {"behind Xen's first", 0x40000001, FAULT | UNREADABLE, 0},
    {"EFER", 0xc0000080, SAME, 0xd01},
    {"STAR", 0xc0000081, FAULT | UNREADABLE, 0},
    {"LSTAR", 0xc0000082, FAULT | UNREADABLE, 0},
    {"K7_EVNTSEL0", 0xc0010000, IGNORED | AMD, 0},
    {"K7_PERFCTR3", 0xc0010007, IGNORED | AMD, 0},
    {"NB_CFG", 0xc001001f, IGNORED, 0},
    {"PSTATE_LIMIT", 0xc0010061, IGNORED | AMD, 0},
    {"PSTATE7", 0xc001006b, IGNORED | AMD, 0},
    {"VM_HSAVE_PA", 0xc0010117, FAULT | UNREADABLE, 0},
    {"VIRT_SPEC_CTRL", 0xc001011f, FAULT | UNREADABLE, 0},
    {"F15H_PERFCTR5", 0xc001020b, IGNORED | AMD, 0},
    {"DR0_ADDRESS_MASK", 0xc0011027, FAULT | UNREADABLE, 0},
    {"DE_CFG", 0xc0011029, IGNORED | AMD, 2},
    {"nothing", 0x12345678, FAULT | UNREADABLE, 0},
    {"nothing either", ~0u, FAULT | UNREADABLE, 0},
};

static void table(bool is_amd)
{
    for (unsigned i = 0; i < sizeof(rules) / sizeof(rules[0]); i++) {
        const struct rule *rule = &rules[i];
        if (rule->writes & AMD && !is_amd)
            continue;
        bool is_readable = read(rule->msr);
        check_equal(is_readable, !(rule->writes & UNREADABLE), rule->what);
        if (is_readable)
            check_equal(low | high << 32, rule->value, rule->what);
        check_equal(write(rule->msr, 0), !!(rule->writes & (IGNORED | ZERO)), rule->what);
        check_equal(write(rule->msr, 1), !!(rule->writes & IGNORED), rule->what);
        check_equal(write(rule->msr, ~0ul), !!(rule->writes & IGNORED), rule->what);
        if (is_readable)
            check_equal(write(rule->msr, rule->value), !(rule->writes & FAULT), rule->what);
    }
}

static void kept(void)
{
    check(write(0xc0000103, 0x12345678) && read(0xc0000103), "TSC_AUX");
    check_equal(low, 0x12345678, "TSC_AUX is kept");
    u32 aux;
    asm volatile("rdtscp" : "=c"(aux) : : "rax", "rdx");
    check_equal(aux, 0x12345678, "rdtscp shows it");
    check(!write(0xc0000103, 1ul << 32), "it has 32 bits");
    check(write(0xc0000103, 0), "back to 0");
    check(write(0xc0000100, 0x123456789000) && read(0xc0000100), "FS_BASE");
    check_equal(low | high << 32, 0x123456789000, "FS_BASE is kept");
    check(!write(0xc0000100, 1ul << 62), "not canonical");
    check(!write(0xc0000102, 1ul << 62), "KERNEL_GS_BASE, not canonical");
    check(write(0x17a, 5) && read(0x17a) && low == 5 && write(0x17a, 0), "MCG_STATUS is kept");
    check(read(0x179) && (low & 0xff) == 2, "two banks");
    check(read(0x10) && (low | high << 32) != 0, "the TSC");
    check(!write(0x10, 0), "it cannot be set");
    check(read(0x8b), "the revision of the microcode");
    check(!write(0x8b, 1), "none can be loaded");
}

/* The first MSR of Xen's fills a page of ours with hypercalls. */
static void hypercall_page(void)
{
    static PAGE char page[PAGE_SIZE];

    check(read(0x40000000) && low == 0, "it reads as zero");
    check(!write(0x40000000, 0), "a frame that is not ours");
    check(!write(0x40000000, mfn_of(page) << 12 | 1), "there is one page only");
    check(write(0x40000000, mfn_of(page) << 12), "a frame of ours");
    long result;
    asm volatile("call *%[stub]" : "=a"(result) : [stub] "r"(page + 32 * __HYPERVISOR_xen_version), "D"(XENVER_version),
                 "S"(0) : "rcx", "r11", "memory");
    check_equal(result, hypercall2(__HYPERVISOR_xen_version, XENVER_version, 0), "its stubs work");
}

void test(void)
{
    u32 eax = 0, ebx, ecx = 0, edx;

    asm volatile(".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e\n\t cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    load_traps();
    bool is_amd = ebx == 0x68747541;
    catch_traps();
    table(is_amd);
    kept();
    hypercall_page();
    /* CPUID faulting, where it is there. */
    if (read(0xce) && low >> 31)
        check(write(0x140, 1) && read(0x140) && low == 1 && write(0x140, 0), "CPUID faulting");
    check(!write(0x140, 2), "nothing beside CPUID faulting");
}
