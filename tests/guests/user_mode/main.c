/*
 * user_mode: iret enters guest user mode on the user root, `syscall` and faults there come back to the kernel, and the
 * kernel's own mapping is not reachable from user mode.
 *
 * The user root maps the same frames at USER_BASE, through the level-3 table that the kernel root has in slot 511.
 */
#include "guest.h"

#define USER_BASE 0x0000007f80000000ul
#define TO_USER(p) (PTR(p) - VIRT_BASE + USER_BASE)

static PAGE u64 user_root[512];
static PAGE char user_stack[PAGE_SIZE];
static volatile u64 nr_syscalls, syscall_cs, syscall_rip, nr_faults, fault_cr2, fault_error, passed, fs_seen;

extern const char user_code[], user_touch[], user_after_touch[];
asm(".pushsection .text\n"
    ".globl user_code, user_touch, user_after_touch\n"
    "user_code:\n"
    "  mov $0x1234, %eax\n  mov $0x77, %ebx\n  syscall\n"
    "  cmp $0x4321, %rax\n  jne 1f\n"
    "  cmp $0x77, %rbx\n  jne 1f\n"
    "  mov $0xffffffff80100000, %rdx\n"
    "user_touch:\n  movb (%rdx), %dl\n"
    "user_after_touch:\n"
    "  mov $1, %edi\n  jmp 2f\n"
    "1: xor %edi, %edi\n"
    "2: mov $0x5678, %eax\n  syscall\n  ud2\n"
    ".popsection");

static void on_syscall(struct frame *frame)
{
    nr_syscalls++;
    syscall_cs = frame->cs;
    syscall_rip = frame->rip;
    if (frame->rax == 0x1234) {
        check_equal(frame->rcx, frame->rip, "rcx is the return address");
        check_equal(frame->rsp, TO_USER(user_stack + sizeof(user_stack)), "rsp is the user's");
        frame->rax = 0x4321;
        /* Linux puts its own selectors here; Xen takes cs.RPL 3 as "to user". */
        frame->cs = FLAT_USER_CS;
        frame->ss = FLAT_USER_SS;
        return;
    }
    passed = frame->rdi;
    check_equal(nr_syscalls, 2, "two system calls");
    check_equal(nr_faults, 1, "one fault");
    check_equal(fault_cr2, 0xffffffff80100000, "CR2 of the user's fault");
    check_equal(fault_error & ~1ul, 4, "U bit of its error code");
    check_equal(passed, 1, "registers in user mode");
    finish(passed && nr_faults == 1 && nr_syscalls == 2 ? "SUCCESS" : "FAILURE");
}

static void on_page_fault(struct frame *frame)
{
    nr_faults++;
    asm volatile("mov %%cr2, %0" : "=r"(*(u64 *)&fault_cr2));
    fault_error = frame->error_code;
    check_equal(frame->rip, TO_USER(user_touch), "RIP of the user's fault");
    check(nr_faults == 1, "the fault comes once");
    if (nr_faults > 1)
        finish("FAILURE");
    frame->rip = TO_USER(user_after_touch);
}

void test(void)
{
    static char kernel_stack[16384] __attribute__((aligned(16)));
    u64 *root = (u64 *)start_info->pt_base;

    load_traps();
    set_handler(TRAP_SYSCALL, on_syscall);
    set_handler(14, on_page_fault);
    check_equal(hypercall2(__HYPERVISOR_stack_switch, FLAT_KERNEL_SS, PTR(kernel_stack + sizeof(kernel_stack))), 0,
                "stack_switch");

    user_root[0] = root[511];
    use_user_root(user_root);

    u64 frame[5] = {TO_USER(user_code), FLAT_USER_CS, 0x2 /* upcalls masked */, TO_USER(user_stack + sizeof(user_stack)), FLAT_USER_SS};
    asm volatile("mov %0, %%rsp\n\t xor %%ecx, %%ecx\n\t xor %%r11d, %%r11d\n\t jmp return_by_iret" : : "r"(frame) : "memory");
    __builtin_unreachable();
}
