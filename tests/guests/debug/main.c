/*
 * debug: hardware breakpoints, single step, int1, #AC and #NM arrive as on hardware.
 */
#include "guest.h"

enum { TF = 1 << 8, RF = 1 << 16, AC = 1 << 18, TS = 1 << 3, MAX = 16 };

static volatile unsigned nr;
static volatile u64 rips[MAX], flags[MAX], hits[MAX];
static volatile union { u64 whole; u32 low; } variable;
static volatile u64 other;

static long set_debugreg(u64 index, u64 value) { return hypercall2(__HYPERVISOR_set_debugreg, index, value); }
static long get_debugreg(u64 index) { return hypercall2(__HYPERVISOR_get_debugreg, index, 0); }

static void on_debug(struct frame *frame)
{
    if (nr < MAX) {
        rips[nr] = frame->rip;
        flags[nr] = frame->rflags;
        hits[nr] = get_debugreg(6) & 0x400f;
    }
    nr++;
    set_debugreg(6, 0);
    frame->rflags |= RF; /* past a breakpoint on execution */
    if (nr >= MAX)
        frame->rflags &= ~(u64)TF;
}

static void breakpoints(void)
{
    u64 at, turns = 3;

    check_equal(set_debugreg(7, 1 << 13), -XEN_EPERM_, "general detect is refused");
    asm volatile("lea 1f(%%rip), %0" : "=r"(at));
    check_equal(set_debugreg(0, at), 0, "DR0");
    check_equal(set_debugreg(7, 1), 0, "DR7");
    check_equal(get_debugreg(7), 0x401, "DR7 reads back");
    nr = 0;
    asm volatile("lea 1f(%%rip), %%rax\n\t mov %%rax, %[at]\n\t mov %%rax, %%rsi\n\t xor %%edi, %%edi\n\t mov $8, %%eax\n\t syscall\n\t"
                 "mov %[turns], %%rcx\n\t nop\n1:\t dec %%rcx\n\t jnz 1b"
                 : [at] "=m"(rips[MAX - 1]) : [turns] "m"(turns) : "rax", "rcx", "rsi", "rdi", "r11", "memory", "cc");
    check_equal(nr, 3, "a breakpoint on execution, each time");
    check_equal(rips[0], rips[MAX - 1], "RIP is at the instruction");
    check_equal(hits[0], 1, "DR6 says which");
    check_equal(flags[0] & RF, 0, "RF is clear in its frame");

    set_debugreg(7, 0);
    check_equal(set_debugreg(1, PTR(&variable) + 4), 0, "DR1");
    check_equal(set_debugreg(2, PTR(&other)), 0, "DR2");
    check_equal(set_debugreg(7, 0x1d << 20 | 0x0f << 24 | 0x10 | 0x4), 0, "write of 4 bytes; access of 4 bytes");
    nr = 0;
    variable.whole = 1;
    check_equal(nr, 1, "a write of 8 bytes to a watched one");
    check_equal(hits[0], 2, "DR6 says breakpoint 1");
    (void)variable.whole;
    check_equal(nr, 1, "a read is not watched for");
    variable.low = 5;
    check_equal(nr, 1, "nor the bytes before");
    (void)other;
    check_equal(nr, 2, "a read that is watched for");
    check_equal(hits[1], 4, "DR6 says breakpoint 2");
    set_debugreg(7, 0);
    variable.whole = 2;
    check_equal(nr, 2, "disabled");
}

static void single_step(void)
{
    u64 start;
    nr = 0;
    asm volatile("lea 1f(%%rip), %[start]\n\t pushfq\n\t orq %[tf], (%%rsp)\n\t popfq\n"
                 "1:\t nop\n\t"                                         /* + 0 */
                 "cpuid\n\t"                                            /* + 1 */
                 "mov $17, %%eax\n\t xor %%edi, %%edi\n\t syscall\n\t"   /* + 3, + 8, + 10 */
                 "mov %%ss, %%ecx\n\t"                                  /* + 12 */
                 "mov %%ecx, %%ss\n\t"                                  /* + 14 */
                 "nop\n\t"                                              /* + 16 */
                 "pushfq\n\t andq %[not], (%%rsp)\n\t popfq\n\t nop\n\t" /* + 17, + 18, + 26 */
                 : [start] "=&r"(start) : [tf] "i"(TF), [not] "i"(~TF)
                 : "rax", "rbx", "rcx", "rdx", "rdi", "rsi", "r11", "memory", "cc");
    static const u64 expected[] = {1, 3, 8, 10, 12, 14, 17, 18, 26, 27};
    check_equal(nr, sizeof(expected) / 8, "steps");
    for (unsigned i = 0; i < sizeof(expected) / 8; i++) {
        check_equal(rips[i] - start, expected[i], "RIP after a step");
        check_equal(hits[i], 1 << 14, "DR6.BS");
    }
}

static void others(void)
{
    u64 at;
    static char area[64] __attribute__((aligned(16)));
    check_equal(hypercall2(__HYPERVISOR_fpu_taskswitch, 1, 0), 0, "fpu_taskswitch");
    u64 cr0;
    asm volatile("mov %%cr0, %0" : "=r"(cr0));
    check(cr0 & TS, "TS is set");
    EXPECT_TRAP("movaps %%xmm0, %%xmm1", [none] "i"(0));
    check_equal(caught.vector, 7, "an SSE instruction while TS is set");
    asm volatile("mov %%cr0, %0" : "=r"(cr0));
    check(!(cr0 & TS), "#NM clears TS");
    caught.count = 0;
    asm volatile("movaps %%xmm0, %%xmm1" ::: "memory");
    check_equal(caught.count, 0, "an SSE instruction while it is clear");

    if (start_info->flags & SIF_INITDOMAIN) /* QEMU TCG, under which the real Xen runs, knows neither int1 nor #AC */
        return;
    nr = 0;
    asm volatile("lea 1f(%%rip), %0\n\t .byte 0xf1\n1:" : "=&r"(at) : : "memory");
    check_equal(nr, 1, "int1");
    check_equal(rips[0], at, "is a trap");
    check_equal(hits[0], 0, "without a bit in DR6");

    EXPECT_TRAP("pushfq\n\t orq %[ac], (%%rsp)\n\t popfq\n\t movl 1(%[area]), %%eax",
                [area] "r"(area), [ac] "i"(AC));
    check_equal(caught.vector, 17, "a misaligned operand while AC is set");
    check_equal(caught.error_code, 0, "its error code");
    asm volatile("pushfq\n\t andq %[not], (%%rsp)\n\t popfq" : : [not] "i"(~AC) : "memory", "cc");
}

void test(void)
{
    load_traps();
    set_handler(1, on_debug);
    for (unsigned vector = 0; vector < 20; vector++)
        if (vector != 1 && vector != 2)
            set_handler(vector, catch_trap);
    breakpoints();
    single_step();
    others();
}
