/*
 * hostile/frames: flags, selectors and addresses by which a guest would get more than ring 3, by iret (the hypercall and the
 * instruction), popf, far transfers, debug registers, and a stack segment load before an entry of the hypervisor. Classes of
 * XSA-7, 43, 156, 202, 204, 210, 212, 230, 260, 265 and 308, and of CVE-2018-8897.
 */
#include "guest.h"

enum { IOPL = 3 << 12, NT = 1 << 14, VM = 1 << 17, VIF = 1 << 19, VIP = 1 << 20 };
enum { XEN_CS = 0xe008, XEN_DS = 0xe010, XEN_TSS = 0xe040 };
#define HOLE 0xffff830000000000ul
static volatile u64 flags_seen, cs_seen, nr_debug;

static u64 flags_now(void)
{
    u64 flags;
    asm volatile("pushfq\n\t pop %0" : "=r"(flags));
    return flags;
}

/* Goes through the hypercall, and on behind it. */
static void through_iret(u64 cs, u64 flags, u64 ss)
{
    static u64 saved[8];
    asm volatile("mov %%rbx, (%[s])\n\t mov %%rbp, 8(%[s])\n\t mov %%rsp, %%rbp\n\t"
                 "push %[ss]\n\t push %%rbp\n\t push %[flags]\n\t push %[cs]\n\t lea 1f(%%rip), %%rax\n\t push %%rax\n\t"
                 "push $0\n\t push $0\n\t push $0\n\t push $0\n\t mov $23, %%eax\n\t syscall\n\t ud2\n"
                 "1:\t mov %%rbp, %%rsp\n\t mov (%[s]), %%rbx\n\t mov 8(%[s]), %%rbp\n\t"
                 "pushfq\n\t pop %%rax\n\t mov %%rax, flags_seen(%%rip)\n\t mov %%cs, %%eax\n\t mov %%rax, cs_seen(%%rip)\n\t cld"
                 : : [s] "b"(saved), [ss] "r"(ss), [flags] "r"(flags), [cs] "r"(cs)
                 : "rax", "rcx", "r11", "memory", "cc");
}

static void iret(void)
{
    static const u64 flags[] = {IOPL, VM, VIF | VIP, NT, IOPL | VM | VIF | VIP | NT, 0xffffffff00000000ul, 0};
    for (unsigned i = 0; i < sizeof(flags) / 8; i++) {
        through_iret(FLAT_KERNEL_CS & ~3, 0x202 | flags[i], FLAT_KERNEL_SS & ~3);
        check_equal(flags_seen & (IOPL | VM | VIF | VIP), 0, "no privilege by the flags of the hypercall");
        check_equal(flags_seen & 0x200, 0x200, "interrupts stay on");
        check_equal(cs_seen & 3, 3, "ring 3");
    }
    through_iret(FLAT_KERNEL_CS & ~3, 0x2, FLAT_KERNEL_SS & ~3);
    check_equal(flags_seen & 0x200, 0x200, "nor off");
    asm volatile("pushfq\n\t orq %[bad], (%%rsp)\n\t popfq" : : [bad] "i"(IOPL | VM | VIF | VIP) : "cc", "memory");
    check_equal(flags_now() & (IOPL | VM | VIF | VIP), 0, "nor by popf");
    if (start_info->flags & SIF_INITDOMAIN)
        return; /* QEMU TCG, under which the real Xen runs, reads the frame as the supervisor, whom SMAP forbids it */
    EXPECT_TRAP("mov %%rsp, %%rcx\n\t push %[ss]\n\t push %%rcx\n\t push %[flags]\n\t push %[cs]\n\t lea 1f(%%rip), %%rax\n\t"
                "push %%rax\n\t iretq",
                [ss] "r"((u64)FLAT_KERNEL_SS), [flags] "r"((u64)(0x202 | IOPL)), [cs] "r"((u64)FLAT_KERNEL_CS));
    check_equal(caught.vector, ~0ul, "iretq within ring 3");
    check_equal(caught.count ? caught.error_code : 0, 0, "its error code");
    check_equal(flags_now() & IOPL, 0, "gives none either");
}

/* Where no code is: the fault is ours, at the address. */
static void bad_targets(void)
{
    static const u64 targets[] = {HOLE, 0xffff800000000000ul, 0xffff82d040200000ul};
    for (unsigned i = 0; i < 3; i++) {
        EXPECT_TRAP("jmp *%[to]", [to] "r"(targets[i]));
        check_equal(caught.vector, 14, "a jump there");
        check_equal(caught.rip, targets[i], "and its address");
    }
}

static void selectors(void)
{
    static struct { u64 offset; u16 selector; } __attribute__((packed)) far;
    static const u16 bad[] = {XEN_CS, XEN_CS | 3, XEN_DS, XEN_DS | 3, XEN_TSS, XEN_TSS | 3, 0xe038, 0xe048, 0xe058, 0xfff8};
    for (unsigned i = 0; i < sizeof(bad) / 2; i++) {
        u64 is_seen = 0;
        EXPECT_TRAP("mov %[sel], %%ss", [sel] "r"((u32)bad[i]));
        check(caught.count == 1, "no stack of the hypervisor's");
        EXPECT_TRAP("mov %[sel], %%ds", [sel] "r"((u32)bad[i]));
        check(caught.count == 1 || bad[i] == XEN_TSS, "nor data");
        far.offset = PTR(selectors);
        far.selector = bad[i];
        EXPECT_TRAP("rex.w ljmp *%[far]", [far] "m"(far));
        check(caught.count == 1, "nor code");
        asm volatile("xor %0, %0\n\t lar %[sel], %%eax\n\t setz %b0" : "+q"(is_seen) : [sel] "r"((u32)bad[i]) : "rax", "cc");
        if ((bad[i] & ~7) != 0xe058)
            check_equal(is_seen, 0, "lar tells nothing of it");
        asm volatile("xor %0, %0\n\t verw %[sel]\n\t setz %b0" : "+q"(is_seen) : [sel] "r"(bad[i]) : "cc");
        check_equal(is_seen, 0, "nor verw");
    }
}

static void on_debug(struct frame *frame)
{
    (void)frame;
    nr_debug++;
    hypercall2(__HYPERVISOR_set_debugreg, 6, 0);
    if (nr_debug > 100)
        finish("FAILURE");
    frame->rflags &= ~(u64)(1 << 8);
}

static void debug(void)
{
    static const u64 bad[] = {HOLE, 0xffff800000000000ul, 0xffff87fffffffff8ul, 0x800000000000ul};
    for (unsigned index = 0; index < 4; index++)
        for (unsigned i = 0; i < sizeof(bad) / 8; i++)
            check(hypercall2(__HYPERVISOR_set_debugreg, index, bad[i]) < 0, "a breakpoint in the hypervisor");
    check(hypercall2(__HYPERVISOR_set_debugreg, 8, 0) < 0, "no such register");
    check(hypercall2(__HYPERVISOR_set_debugreg, 7, 1 << 13) < 0, "general detect");
    /* A trap that a load of SS holds back until the hypervisor has been entered. */
    static u16 stack_segment = FLAT_KERNEL_SS;
    long version = 0;
    set_handler(1, on_debug);
    check_equal(hypercall2(__HYPERVISOR_set_debugreg, 0, PTR(&stack_segment)), 0, "DR0");
    check_equal(hypercall2(__HYPERVISOR_set_debugreg, 7, 1 | 7 << 16), 0, "DR7: accesses of 2 bytes");
    asm volatile("mov $17, %%eax\n\t xor %%edi, %%edi\n\t xor %%esi, %%esi\n\t mov %[ss], %%ss\n\t syscall"
                 : "=a"(version) : [ss] "m"(stack_segment) : "rcx", "rdi", "rsi", "r11", "memory");
    check_equal(version >> 16, 4, "mov ss, then syscall");
    EXPECT_TRAP("mov %[ss], %%ss\n\t int $0x85", [ss] "m"(stack_segment));
    check_equal(caught.vector, 13, "mov ss, then int");
    check(nr_debug <= 2, "the trap comes once, if at all");
    hypercall2(__HYPERVISOR_set_debugreg, 7, 0);
    nr_debug = 0;
    asm volatile("pushfq\n\t orq $0x100, (%%rsp)\n\t popfq\n\t mov %[ss], %%ss\n\t nop\n\t nop" : : [ss] "m"(stack_segment) : "cc", "memory");
    check(nr_debug >= 1, "single step goes on behind a load of SS");
}

/* Upcalls come as soon as a frame enables them; that is not what this is about. */
static void on_event(struct frame *frame)
{
    frame->rflags &= ~0x200ul;
}

void test(void)
{
    load_traps();
    set_handler(TRAP_EVENT, on_event);
    for (unsigned vector = 0; vector < 32; vector++)
        if (vector != 1 && vector != 2)
            set_handler(vector, catch_trap);
    iret();
    selectors();
    debug();
    bad_targets();
}
