/*
 * traps: each exception arrives by its bounce frame, with vector, error code, RIP and (page faults) CR2 as on hardware.
 */
#include "guest.h"

static void *const nowhere = (void *)0xffffffffc0000000;
static volatile shared_info_t *shared;

static void page_faults(void)
{
    static PAGE char read_only[PAGE_SIZE];

    EXPECT_TRAP("movb (%[where]), %%al", [where] "r"(nowhere + 0x123));
    check_equal(caught.vector, 14, "read of an unmapped page");
    check_equal(caught.cr2, PTR(nowhere) + 0x123, "CR2");
    check_equal(shared->vcpu_info[0].arch.cr2, PTR(nowhere) + 0x123, "CR2 in vcpu_info");
    check_equal(caught.error_code, 0, "error code of a kernel read");

    EXPECT_TRAP("movq %%rax, (%[where])", [where] "r"(nowhere + 0xff8));
    check_equal(caught.error_code, 2, "error code of a kernel write");

    EXPECT_TRAP("movq (%[where]), %%rax", [where] "r"(nowhere - 4));
    check_equal(caught.vector, 14, "an access across a page border");

    check_equal(update_va_mapping(read_only, (mfn_of(read_only) << 12) | PTE_READ_ONLY, UVMF_INVLPG), 0, "make it RO");
    EXPECT_TRAP("movb $1, (%[where])", [where] "r"(read_only + 7));
    check_equal(caught.vector, 14, "write to a read-only page");
    check_equal(caught.error_code, 3, "error code of a protection fault");
    check_equal(caught.cr2, PTR(read_only) + 7, "CR2 of a protection fault");
    check_equal(read_only[7], 0, "the byte did not change");

    EXPECT_TRAP("jmp *%[where]", [where] "r"(nowhere));
    check_equal(caught.vector, 14, "jump to an unmapped page");
    check_equal(caught.rip, PTR(nowhere), "RIP of a fetch fault");
    check_equal(caught.cr2, PTR(nowhere), "CR2 of a fetch fault");
}

static void registers_survive(void)
{
    u64 sum = 0;
    /* A faulting instruction in the middle of a block: what ran before it counts, what follows does not. */
    caught.count = 0;
    asm volatile("movq $2f, %[resume]\n\t mov $5, %%rax\n\t mov $6, %%rcx\n\t stc\n\t"
                 "1: adcq (%[where]), %%rax\n\t mov $100, %%rcx\n\t"
                 "2: lea (%%rax, %%rcx, 8), %[sum]\n\t setc %%cl\n\t movzbl %%cl, %%ecx\n\t shl $32, %%rcx\n\t or %%rcx, %[sum]"
                 : [resume] "=m"(caught.resume), [sum] "=&r"(sum) : [where] "r"(nowhere) : "rax", "rcx", "memory", "cc");
    check_equal(sum, (1ul << 32) | (5 + 6 * 8), "registers and flags at a fault in mid-block");
    check_equal(caught.count, 1, "one fault");
}

static void forwarded(struct frame *frame)
{
    caught.vector = frame->vector;
    caught.rip = frame->rip;
    caught.count++;
}

/* What a PV kernel executes at ring 3 is emulated where Xen does so, and is #GP elsewhere. */
static void privileged(void)
{
    struct physdev_set_iopl iopl = {.iopl = 1};
    u64 cr0;

    EXPECT_TRAP("mov %%cr0, %%rax\n\t mov %%rax, %[out]", [out] "m"(cr0));
    check_equal(caught.count, 0, "CR0 is readable");
    check(cr0 & 1, "CR0.PE");
    EXPECT_TRAP("cli", [none] "i"(0));
    check_equal(caught.vector, 13, "cli without IOPL");
    EXPECT_TRAP("in $0x60, %%al", [none] "i"(0));
    check_equal(caught.vector, 13, "in without IOPL");
    check_equal(hypercall2(__HYPERVISOR_physdev_op, PHYSDEVOP_set_iopl, PTR(&iopl)), 0, "set_iopl");
    EXPECT_TRAP("cli\n\t sti", [none] "i"(0));
    check_equal(caught.count, 0, "cli and sti with IOPL 1");
    EXPECT_TRAP("in $0x80, %%al\n\t out %%al, $0x80", [none] "i"(0));
    check_equal(caught.count, 0, "port input and output with IOPL 1");
    EXPECT_TRAP("mov $0xc0000080, %%ecx\n\t rdmsr", [none] "i"(0));
    check_equal(caught.count, 0, "EFER is readable");
    EXPECT_TRAP("mov $0x12345678, %%ecx\n\t rdmsr", [none] "i"(0));
    check_equal(caught.vector, 13, "an MSR that does not exist");
    EXPECT_TRAP("clts", [none] "i"(0));
    check_equal(caught.count, 0, "clts");
    EXPECT_TRAP("rdtsc", [none] "i"(0));
    check_equal(caught.count, 0, "rdtsc");
    EXPECT_TRAP("lgdt (%[where])", [where] "r"(&iopl));
    check_equal(caught.vector, 13, "lgdt");
    EXPECT_TRAP("invd", [none] "i"(0));
    check_equal(caught.vector, 13, "invd");
}

void test(void)
{
    shared = map_shared_info();
    load_traps();
    catch_traps();

    EXPECT_TRAP("ud2", [none] "i"(0));
    check_equal(caught.vector, 6, "ud2");
    EXPECT_TRAP("xor %%edx, %%edx\n\t mov $1, %%eax\n\t xor %%ecx, %%ecx\n\t div %%ecx", [none] "i"(0));
    check_equal(caught.vector, 0, "division by zero");
    EXPECT_TRAP("movq (%[where]), %%rax", [where] "r"(0x0123000000000000ul));
    check_equal(caught.vector, 13, "non-canonical access");
    check_equal(caught.error_code, 0, "error code of a non-canonical access");
    EXPECT_TRAP("hlt", [none] "i"(0));
    check_equal(caught.vector, 13, "hlt at ring 3");
    EXPECT_TRAP("int $0x99", [none] "i"(0));
    check_equal(caught.vector, 13, "int n without a gate");
    if (!(start_info->flags & SIF_INITDOMAIN)) /* QEMU TCG, under which the real Xen runs, gives n * 16 + 2 */
        check_equal(caught.error_code, 0x99 * 8 + 2, "its error code names the gate");
    EXPECT_TRAP("mov %[selector], %%ds", [selector] "r"(0x1230));
    check_equal(caught.vector, 13, "a selector beyond the GDT");

    set_handler(3, forwarded);
    set_handler(TRAP_INT80, forwarded);
    caught.count = 0;
    asm volatile("int3" ::: "memory");
    check_equal(caught.vector, 3, "int3");
    asm volatile("int $0x80" ::: "memory");
    check_equal(caught.vector, TRAP_INT80, "int 0x80");
    check_equal(caught.count, 2, "each trapped once");

    privileged();
    page_faults();
    registers_survive();
}
