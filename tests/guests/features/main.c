/*
 * features: what CPUID shows is there, and what it hides raises #UD, in the kernel and in user mode; XCR0 and the sizes of
 * XSAVE areas are as the features say, and without XCR0.AVX there is no AVX.
 */
#include "guest.h"

enum { EAX, EBX, ECX, EDX };
enum { OSXSAVE = 1 << 18, FSGSBASE = 1 << 16, AVX = 4 };

struct feature {
    const char *name;
    u32 leaf, subleaf;
    int reg, bit;
    unsigned len;
    unsigned char code[12];
};

#define STACK_64 0x44, 0x24, 0xc0             /* [rsp-64] with register 0 */
#define AREA 0x24, 0x00, 0xfc, 0xff, 0xff     /* [rsp-1024] */

static const struct feature features[] = {
    {"sse3", 1, 0, ECX, 0, 4, {0xf2, 0x0f, 0xd0, 0xc0}},                    /* addsubps */
    {"pclmulqdq", 1, 0, ECX, 1, 6, {0x66, 0x0f, 0x3a, 0x44, 0xc0, 0}},
    {"ssse3", 1, 0, ECX, 9, 5, {0x66, 0x0f, 0x38, 0x00, 0xc0}},             /* pshufb */
    {"fma", 1, 0, ECX, 12, 5, {0xc4, 0xe2, 0x71, 0x98, 0xc0}},
    {"cmpxchg16", 1, 0, ECX, 13, 6, {0x48, 0x0f, 0xc7, 0x4c, 0x24, 0xc0}},
    {"sse4_1", 1, 0, ECX, 19, 5, {0x66, 0x0f, 0x38, 0x17, 0xc0}},           /* ptest */
    {"sse4_2", 1, 0, ECX, 20, 5, {0xf2, 0x0f, 0x38, 0xf1, 0xc0}},           /* crc32 */
    {"movbe", 1, 0, ECX, 22, 6, {0x0f, 0x38, 0xf0, STACK_64}},
    {"popcnt", 1, 0, ECX, 23, 4, {0xf3, 0x0f, 0xb8, 0xc0}},
    {"aes", 1, 0, ECX, 25, 5, {0x66, 0x0f, 0x38, 0xdc, 0xc0}},
    {"xsave", 1, 0, ECX, 26, 8, {0x0f, 0xae, 0xa4, AREA}},
    {"avx", 1, 0, ECX, 28, 4, {0xc5, 0xf4, 0x58, 0xc0}},                    /* vaddps ymm */
    {"f16c", 1, 0, ECX, 29, 5, {0xc4, 0xe2, 0x79, 0x13, 0xc0}},
    {"rdrand", 1, 0, ECX, 30, 3, {0x0f, 0xc7, 0xf0}},
    {"fsgsbase", 7, 0, EBX, 0, 5, {0xf3, 0x48, 0x0f, 0xae, 0xc0}},
    {"bmi1", 7, 0, EBX, 3, 5, {0xc4, 0xe2, 0x78, 0xf2, 0xc0}},              /* andn */
    {"avx2", 7, 0, EBX, 5, 4, {0xc5, 0xf5, 0xfe, 0xc0}},                    /* vpaddd ymm */
    {"bmi2", 7, 0, EBX, 8, 5, {0xc4, 0xe2, 0x7b, 0xf5, 0xc0}},              /* pdep */
    {"rdseed", 7, 0, EBX, 18, 3, {0x0f, 0xc7, 0xf8}},
    {"adx", 7, 0, EBX, 19, 5, {0x66, 0x0f, 0x38, 0xf6, 0xc0}},
    {"clflushopt", 7, 0, EBX, 23, 6, {0x66, 0x0f, 0xae, 0x7c, 0x24, 0xc0}},
    {"clwb", 7, 0, EBX, 24, 6, {0x66, 0x0f, 0xae, 0x74, 0x24, 0xc0}},
    {"sha", 7, 0, EBX, 29, 4, {0x0f, 0x38, 0xc8, 0xc0}},
    {"gfni", 7, 0, ECX, 8, 5, {0x66, 0x0f, 0x38, 0xcf, 0xc0}},
    {"vaes", 7, 0, ECX, 9, 5, {0xc4, 0xe2, 0x7d, 0xdc, 0xc0}},
    {"vpclmulqdq", 7, 0, ECX, 10, 6, {0xc4, 0xe3, 0x7d, 0x44, 0xc0, 0}},
    {"rdpid", 7, 0, ECX, 22, 4, {0xf3, 0x0f, 0xc7, 0xf8}},
    {"xsaveopt", 0xd, 1, EAX, 0, 8, {0x0f, 0xae, 0xb4, AREA}},
    {"xsavec", 0xd, 1, EAX, 1, 8, {0x0f, 0xc7, 0xa4, AREA}},
    {"lahfsahf", 0x80000001, 0, ECX, 0, 1, {0x9f}},
    {"sse4a", 0x80000001, 0, ECX, 6, 4, {0x66, 0x0f, 0x79, 0xc0}},          /* extrq */
    {"rdtscp", 0x80000001, 0, EDX, 27, 3, {0x0f, 0x01, 0xf9}},
};
#define NR_FEATURES (sizeof(features) / sizeof(features[0]))
enum { AVX_AT = 11 };

static PAGE char code[PAGE_SIZE];

static void cpuid(u32 leaf, u32 subleaf, u32 regs[4])
{
    asm volatile(".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e\n\t cpuid"
                 : "=a"(regs[EAX]), "=b"(regs[EBX]), "=c"(regs[ECX]), "=d"(regs[EDX]) : "0"(leaf), "2"(subleaf));
}

static bool is_shown(const struct feature *feature)
{
    u32 regs[4];
    cpuid(feature->leaf & 0x80000000, 0, regs);
    if (feature->leaf > regs[EAX])
        return false;
    cpuid(feature->leaf, feature->subleaf, regs);
    return regs[feature->reg] >> feature->bit & 1;
}

/* Executes the feature's instruction and `int $0x80`; returns the vector of what came. */
static u64 execute(const struct feature *feature, bool in_user)
{
    memcpy(code, feature->code, sizeof(feature->code));
    code[feature->len] = 0xcd;
    code[feature->len + 1] = 0x80;
    struct target target = in_user ? user_target(code) : kernel_target(code);
    return go_to(&target)->vector;
}

static void set_xcr0(u32 value)
{
    asm volatile("xsetbv" : : "a"(value), "d"(0), "c"(0));
}

static void check_both(const struct feature *feature, bool is_there)
{
    bool is_there_in_kernel = execute(feature, false) == TRAP_INT80;
    bool is_there_in_user = execute(feature, true) == TRAP_INT80;
    if (is_there_in_kernel == is_there && is_there_in_user == is_there)
        return;
    print("%s: %d in the kernel, %d in user mode, wanted %d\n", feature->name, is_there_in_kernel, is_there_in_user,
          is_there);
    check(false, "what CPUID says of it");
}

void test(void)
{
    u32 regs[4], max = 0;
    u64 cr4, seen;
    bool has_avx = is_shown(&features[AVX_AT]);

    load_traps();
    set_up_user();
    cpuid(1, 0, regs);
    bool has_xsave = regs[ECX] >> 26 & 1;
    asm volatile("mov %%cr4, %0" : "=r"(cr4));
    cr4 |= OSXSAVE | FSGSBASE;
    asm volatile("mov %1, %%cr4\n\t mov %%cr4, %0" : "=r"(seen) : "r"(cr4));
    check_equal(seen >> 18 & 1, has_xsave, "CR4.OSXSAVE as the feature");
    if (has_xsave) {
        cpuid(0xd, 0, regs);
        max = regs[EAX];
        check_equal(regs[ECX], has_avx ? 832 : 576, "greatest XSAVE area");
        check_equal(max, has_avx ? 7 : 3, "greatest XCR0");
        if (has_avx) {
            check_both(&features[AVX_AT], false);
            set_xcr0(7);
            check_both(&features[AVX_AT], true);
            set_xcr0(3);
            check_both(&features[AVX_AT], false);
        }
        set_xcr0(max);
        cpuid(0xd, 0, regs);
        check_equal(regs[EBX], regs[ECX], "XSAVE area for all of it");
    } else {
        cpuid(0xd, 0, regs);
        check_equal(regs[EAX] | regs[EBX] | regs[ECX], 0, "leaf 0xd without XSAVE");
    }
    print("shown:");
    for (unsigned i = 0; i < NR_FEATURES; i++)
        print("%s%s", is_shown(&features[i]) ? " " : " no-", features[i].name);
    print("\n");
    for (unsigned i = 0; i < NR_FEATURES; i++) {
        /* A real Xen lets PV guests use what it hides. */
        if (is_shown(&features[i]) || !(start_info->flags & SIF_INITDOMAIN))
            check_both(&features[i], is_shown(&features[i]));
    }
}
