/*
 * hostile/wrap: operands, strings and code that run over an edge: from the guest's addresses down into the hypervisor's,
 * up into those that are none, over 2^64 to zero, by segment bases and without. What lies beyond the edge faults, with the
 * registers as far as it came; what is legal works. Classes of XSA-105, 106, 110, 111, 123, 202 and 339.
 */
#include "guest.h"

#define ABOVE_XEN 0xffff880000000000ul
#define LOW_END 0x0000800000000000ul
#define HOLE 0xffff830000000000ul
enum { FS = SEGBASE_FS, GS = SEGBASE_GS_KERNEL };
static PAGE char above_xen[PAGE_SIZE], low_end[PAGE_SIZE], top[PAGE_SIZE], zero[PAGE_SIZE];

static void base(u64 which, u64 value) { check_equal(hypercall2(__HYPERVISOR_set_segment_base, which, value), 0, "a base"); }

static void expect(u64 vector, const char *what)
{
    if (caught.count != 1 || caught.vector != vector)
        print("%s: vector %ld, %lu times\n", what, caught.vector, caught.count);
    check(caught.count == 1 && caught.vector == vector, what);
}

/* Operands that begin where they may, and end where they may not. */
static void over_the_edge(u64 edge, unsigned vector)
{
    EXPECT_TRAP("movq $1, (%[va])", [va] "r"(edge - 4));
    expect(vector, "mov, store");
    EXPECT_TRAP("movq (%[va]), %%rax", [va] "r"(edge - 4));
    expect(vector, "mov, load");
    EXPECT_TRAP("movdqu %%xmm1, (%[va])", [va] "r"(edge - 8));
    expect(vector, "movdqu, store");
    EXPECT_TRAP("vmovdqu (%[va]), %%ymm1", [va] "r"(edge - 1));
    expect(vector, "vmovdqu, load");
    EXPECT_TRAP("lock incq (%[va])", [va] "r"(edge - 4));
    expect(vector, "lock inc");
    EXPECT_TRAP("xchg %%rax, (%[va])", [va] "r"(edge - 2));
    expect(vector, "xchg");
    EXPECT_TRAP("lock cmpxchg %%rcx, (%[va])", [va] "r"(edge - 7));
    expect(vector, "cmpxchg");
    EXPECT_TRAP("mov $64, %%ecx\n\t bts %%rcx, (%[va])", [va] "r"(edge - 8));
    expect(vector, "bts, by its bit's number");
    EXPECT_TRAP("fxsave (%[va])", [va] "r"(edge - 256));
    expect(vector, "fxsave");
    EXPECT_TRAP("xor %%edx, %%edx\n\t mov $7, %%eax\n\t xsave (%[va])", [va] "r"(edge - 576));
    expect(vector, "xsave");
    EXPECT_TRAP("xor %%edx, %%edx\n\t mov $7, %%eax\n\t xrstor (%[va])", [va] "r"(edge - 64));
    expect(vector, "xrstor");
    EXPECT_TRAP("fnsave (%[va])", [va] "r"(edge - 100));
    expect(vector, "fnsave");
    EXPECT_TRAP("fstpt (%[va])", [va] "r"(edge - 6));
    expect(vector, "fstp");
    EXPECT_TRAP("sgdt (%[va])", [va] "r"(edge - 5));
    check(caught.count == 1, "sgdt");
    EXPECT_TRAP("call *(%[va])", [va] "r"(edge - 4));
    expect(vector, "call through memory");
    EXPECT_TRAP("pushq (%[va])", [va] "r"(edge - 4));
    expect(vector, "push of memory");
    EXPECT_TRAP("popq (%[va])", [va] "r"(edge - 4));
    expect(vector, "pop to memory");
    EXPECT_TRAP("rex.w ljmp *(%[va])", [va] "r"(edge - 9));
    expect(vector, "a far jump");
}

/* Strings go as far as they may. `way` is the direction; `start` the first byte, of `nr` that are there. */
static void strings(u64 start, u64 nr, bool is_down, unsigned vector)
{
    u64 rdi, rcx;
    static char copy[PAGE_SIZE];

#define STRING(code, from, to)                                                                                     \
    do {                                                                                                           \
        caught.count = 0, caught.vector = ~0ul;                                                                    \
        u64 rsi_ = (from), rdi_ = (to), rcx_ = nr + 100;                                                           \
        if (is_down)                                                                                               \
            asm volatile("movq $1f, %[resume]\n\t std\n\t" code "\n1: cld" : [resume] "=m"(caught.resume), "+S"(rsi_), \
                         "+D"(rdi_), "+c"(rcx_) : : "memory", "cc", "rax", "rdx");                                  \
        else                                                                                                       \
            asm volatile("movq $1f, %[resume]\n\t" code "\n1: cld" : [resume] "=m"(caught.resume), "+S"(rsi_),       \
                         "+D"(rdi_), "+c"(rcx_) : : "memory", "cc", "rax", "rdx");                                  \
        rdi = is_at_source_ ? rsi_ : rdi_, rcx = rcx_;                                                             \
    } while (0)
    bool is_at_source_ = false;
    u64 middle = PTR(copy) + PAGE_SIZE / 2;
    STRING("rep stosb", 0, start);
    expect(vector, "rep stos");
    check_equal(rcx, 100, "its count");
    check_equal(rdi, is_down ? start - nr : start + nr, "its place");
    STRING("rep movsb", middle, start);
    expect(vector, "rep movs, to");
    check_equal(rcx, 100, "its count");
    is_at_source_ = true;
    STRING("rep movsb", start, middle);
    expect(vector, "rep movs, from");
    check_equal(rcx, 100, "its count");
    check_equal(rdi, is_down ? start - nr : start + nr, "its place");
    STRING("rep lodsb", start, 0);
    expect(vector, "rep lods");
    check_equal(rcx, 100, "its count");
    is_at_source_ = false;
    STRING("mov $1, %%al\n\t repne scasb", 0, start);
    expect(vector, "repne scas");
    STRING("shr $3, %%rcx\n\t rep stosq", 0, is_down ? start - 7 - 4 : start + 4);
    expect(vector, "rep stos of eight bytes, across");
}

static void segment_bases(void)
{
    u64 value, canary = 0x1122334455667788;
    *(u64 *)zero = canary;
    *(u64 *)(low_end + PAGE_SIZE - 8) = canary;
    /* Wraps over 2^64, which is legal. */
    base(FS, 0xfffffffffffff000ul);
    asm volatile("movq %%fs:0x1000, %0" : "=r"(value));
    check_equal(value, canary, "base and offset wrap to zero");
    asm volatile("movq %%fs:(%1), %0" : "=r"(value) : "r"(LOW_END - 8 + 0x1000));
    check_equal(value, canary, "and up to the low end");
    base(GS, 0x7ffffffff000ul);
    asm volatile("movq %%gs:0xff8, %0" : "=r"(value));
    check_equal(value, canary, "the last word");
    static const struct { u64 base, offset; unsigned vector; } bad[] = {
        {0x7ffffffff000, 0x1000, 13},           /* behind the low half */
        {0x7ffffffff000, 0xffc, 13},            /* half behind it */
        {ABOVE_XEN, -4ul, 14},                  /* half in the hypervisor */
        {ABOVE_XEN, -PAGE_SIZE, 14},
        {0, HOLE, 14},
        {HOLE, 0, 14},
        {0x7fff00000000, HOLE - 0x7fff00000000, 14},
        {0x00007fffffffffff, 0x00007fffffffffff, 13},
        {0xffff800000000000, -1ul, 13},
    };
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        base(FS, bad[i].base);
        base(GS, bad[i].base);
        EXPECT_TRAP("movq %%fs:(%[at]), %%rax", [at] "r"(bad[i].offset));
        expect(bad[i].vector, "mov, load by FS");
        EXPECT_TRAP("movq %%rax, %%gs:(%[at])", [at] "r"(bad[i].offset));
        expect(bad[i].vector, "mov, store by GS");
        EXPECT_TRAP("lock incq %%gs:(%[at])", [at] "r"(bad[i].offset));
        expect(bad[i].vector, "lock inc by GS");
        EXPECT_TRAP("movdqu %%xmm1, %%fs:-8(%[at])", [at] "r"(bad[i].offset));
        check(caught.count == 1, "movdqu by FS");
        EXPECT_TRAP("call *%%fs:(%[at])", [at] "r"(bad[i].offset));
        expect(bad[i].vector, "call through FS");
        EXPECT_TRAP("pushq %%gs:(%[at])", [at] "r"(bad[i].offset));
        expect(bad[i].vector, "push through GS");
        EXPECT_TRAP("fs lodsq", "S"(bad[i].offset));
        expect(bad[i].vector, "lods by FS");
        EXPECT_TRAP("mov $1, %%ecx\n\t gs rep movsq", "S"(bad[i].offset), "D"(top));
        expect(bad[i].vector, "movs by GS");
        EXPECT_TRAP("xor %%eax, %%eax\n\t fs xlatb", "b"(bad[i].offset));
        check_equal(caught.count, bad[i].offset + bad[i].base != LOW_END - 4, "xlat by FS, of one byte");
    }
    /* Through the other ways to set a base. */
    u64 cr4;
    asm volatile("mov %%cr4, %0" : "=r"(cr4));
    asm volatile("mov %0, %%cr4" : : "r"(cr4 | 1ul << 16));
    if (!(start_info->flags & SIF_INITDOMAIN)) { /* QEMU TCG, under which the real Xen runs, takes any */
        EXPECT_TRAP("wrfsbase %[va]", [va] "r"(LOW_END));
        expect(13, "wrfsbase of what is none");
        EXPECT_TRAP("wrgsbase %[va]", [va] "r"(0xffff7ffffffffffful));
        expect(13, "wrgsbase");
    }
    EXPECT_TRAP("mov $0xc0000100, %%ecx\n\t xor %%eax, %%eax\n\t mov $0x8000, %%edx\n\t wrmsr", "i"(0));
    expect(13, "wrmsr of FS.base");
    asm volatile("wrfsbase %0" : : "r"(HOLE));
    EXPECT_TRAP("movq %%fs:0, %%rax", "i"(0));
    expect(14, "a base in the hypervisor sees nothing");
    check(hypercall2(__HYPERVISOR_set_segment_base, FS, LOW_END) < 0, "set_segment_base");
    check(hypercall2(__HYPERVISOR_set_segment_base, SEGBASE_GS_USER, 1ul << 63) < 0, "of the user");
    base(FS, 0);
    base(GS, 0);
}

/* Code at the last addresses of each half, and operands relative to it. */
static void code(void)
{
    static const unsigned char relative[] = {0x48, 0x8b, 0x05, 0x00, 0x08, 0x00, 0x00, 0xc3}; /* mov 0x800(%rip), %rax; ret */
    u64 value, canary = 0x99aabbccddeeff00;
    memset(top, 0x90, PAGE_SIZE);
    memcpy(top + 0xff0 - 0x7f7, relative, sizeof(relative));
    /* RIP behind the load is at 0x...800, and so its operand at zero. */
    memcpy(top + 0x800 - 7, relative, sizeof(relative));
    *(u64 *)zero = canary;
    asm volatile("call *%1" : "=a"(value) : "r"(0xfffffffffffff800ul - 7) : "memory");
    check_equal(value, canary, "an operand relative to RIP, behind 2^64");
    /* A short jump from the last bytes to address 0x10 and on. */
    static const unsigned char over[] = {0xeb, 0x10};
    memcpy(top + PAGE_SIZE - 2, over, 2);
    zero[0x10] = (char)0xc3;
    caught.count = 0;
    asm volatile("movq $1f, %[resume]\n\t call *%[va]\n1:" : [resume] "=m"(caught.resume) : [va] "r"(~0ul - 1) : "memory", "cc", "rax");
    check_equal(caught.count, 0, "a jump over 2^64");
    /* Falling off the low half. */
    memset(low_end, 0x90, PAGE_SIZE);
    EXPECT_TRAP("mov %%rsp, %%rdx\n\t jmp *%[va]", [va] "r"(LOW_END - 4));
    expect(13, "behind the low half is no code");
    check_equal(caught.rip, LOW_END, "RIP is where it would be");
    memcpy(low_end + PAGE_SIZE - 3, relative, 3);
    EXPECT_TRAP("jmp *%[va]", [va] "r"(LOW_END - 3));
    expect(13, "an instruction that is half there");
    check_equal(caught.rip, LOW_END - 3, "at its start");
    /* An operand that is relative to it. */
    memcpy(low_end + PAGE_SIZE - 16, relative, sizeof(relative));
    EXPECT_TRAP("jmp *%[va]", [va] "r"(LOW_END - 16));
    expect(13, "an operand behind the low half");
    static const unsigned char back[] = {0x48, 0x89, 0x05, 0xf0, 0xff, 0xff, 0xff}; /* mov %rax, -16(%rip) */
    memcpy(above_xen, back, sizeof(back));
    EXPECT_TRAP("jmp *%[va]", [va] "r"(ABOVE_XEN));
    expect(14, "a store relative to RIP, into the hypervisor");
    check_equal(caught.rip, ABOVE_XEN, "at its start");
    static const unsigned char jump[] = {0xeb, 0x80};
    memcpy(above_xen, jump, sizeof(jump));
    EXPECT_TRAP("jmp *%[va]", [va] "r"(ABOVE_XEN));
    expect(14, "a jump relative to RIP, into it");
    check_equal(caught.rip, ABOVE_XEN + 2 - 128, "at its target");
}

void test(void)
{
    load_traps();
    catch_traps();
    enable_avx();
    map_at(ABOVE_XEN, above_xen);
    map_at(LOW_END - PAGE_SIZE, low_end);
    map_at(-PAGE_SIZE, top);
    map_at(0, zero);
    over_the_edge(LOW_END, 13);
    strings(LOW_END - 300, 300, false, 13);
    strings(ABOVE_XEN + 299, 300, true, 14);
    segment_bases();
    code();
}
