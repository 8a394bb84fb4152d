/*
 * hypercall_page: a kernel that asks for a hypercall page by ELF note 2 gets one, and its stubs work, iret included.
 */
#include "guest.h"

asm(".pushsection .note.Xen, \"a\", @note\n"
    ".balign 4\n .long 4, 8, 2\n .asciz \"Xen\"\n .quad hypercall_page\n"
    ".popsection\n"
    ".pushsection .data\n .balign 4096\n .globl hypercall_page\nhypercall_page:\n .skip 4096\n .popsection\n");
extern unsigned char hypercall_page[4096];

static long call_page(u64 op, u64 a1, u64 a2)
{
    long result;
    asm volatile("call *%[target]" : "=a"(result), "+D"(a1), "+S"(a2)
                 : [target] "r"(hypercall_page + op * 32) : "rcx", "r11", "memory");
    return result;
}

void test(void)
{
    struct xen_feature_info features = {.submap_idx = 0};
    u64 reached = 0;

    check(hypercall_page[0] != 0, "the page is filled");
    check_equal(call_page(__HYPERVISOR_xen_version, XENVER_version, 0),
                hypercall2(__HYPERVISOR_xen_version, XENVER_version, 0), "page and syscall agree");
    check_equal(call_page(__HYPERVISOR_xen_version, XENVER_get_features, PTR(&features)), 0, "a call with a handle");
    check(features.submap != 0, "its result");
    check_equal(call_page(63, 0, 0), -XEN_ENOSYS_, "a hypercall that does not exist");

    /* Slot 23 is jumped to, and pushes rcx, r11 and rax itself: rsp points at flags, rip, cs, rflags, rsp, ss. */
    asm volatile("mov %%rsp, %%rdx\n\t"
                 "push %[ss]\n\t push %%rdx\n\t push $2 /* upcalls masked */\n\t push %[cs]\n\t push $1f\n\t"
                 "push $0\n\t"
                 "jmp *%[target]\n"
                 "1: mov $1, %[reached]"
                 : [reached] "=r"(reached)
                 : [ss] "r"((u64)FLAT_KERNEL_SS), [cs] "r"((u64)(FLAT_KERNEL_CS & ~3)),
                   [target] "r"(hypercall_page + __HYPERVISOR_iret * 32)
                 : "rdx", "memory", "cc");
    check_equal(reached, 1, "iret by the page");
}
