/* Leaving the kernel by iret, to user mode or elsewhere, and catching whatever comes back. */
#include "guest.h"

static PAGE u64 user_root[512];
static PAGE char stacks[2][PAGE_SIZE];
static char kernel_stack[16384] __attribute__((aligned(16)));
struct frame seen;
u64 saved_rsp;
u64 failsafe_selectors[4];

extern const char failsafe_entry[], come_back[];
asm(".pushsection .text\n"
    "failsafe_entry:\n"
    "  pop %rcx\n  pop %r11\n"
    "  pop failsafe_selectors\n  pop failsafe_selectors+8\n  pop failsafe_selectors+16\n  pop failsafe_selectors+24\n"
    "  push $0\n  push $35\n  jmp entry_common\n"
    /* struct target at RDI becomes an iret_context */
    ".globl go_to\n"
    "go_to:\n"
    "  push %rbx\n  push %rbp\n  push %r12\n  push %r13\n  push %r14\n  push %r15\n  mov %rsp, saved_rsp\n"
    "  push 32(%rdi)\n  push 24(%rdi)\n  push 16(%rdi)\n  push 8(%rdi)\n  push 0(%rdi)\n"
    "  push 40(%rdi)\n  push $0\n  push $0\n  push 48(%rdi)\n"
    "  mov $23, %eax\n  syscall\n  ud2\n"
    "come_back:\n"
    "  mov saved_rsp, %rsp\n  pop %r15\n  pop %r14\n  pop %r13\n  pop %r12\n  pop %rbp\n  pop %rbx\n"
    "  lea seen, %rax\n  ret\n"
    ".popsection");

static void catch_frame(struct frame *frame)
{
    seen = *frame;
    asm volatile("jmp *%0" : : "r"(come_back) : "memory");
}

void use_user_root(u64 *user_root)
{
    check_equal(update_va_mapping(user_root, (mfn_of(user_root) << 12) | PTE_READ_ONLY, UVMF_INVLPG), 0, "root RO");
    check_equal(mmuext(MMUEXT_PIN_L4_TABLE, mfn_of(user_root)), 0, "pin the user root");
    check_equal(mmuext(MMUEXT_NEW_USER_BASEPTR, mfn_of(user_root)), 0, "NEW_USER_BASEPTR");
}

void set_up_user(void)
{
    struct callback_register callback = {.type = CALLBACKTYPE_failsafe, .address = PTR(failsafe_entry)};
    u64 *root = (u64 *)start_info->pt_base;

    for (unsigned vector = 0; vector < NR_TRAPS; vector++)
        set_handler(vector, catch_frame);
    check_equal(hypercall2(__HYPERVISOR_callback_op, CALLBACKOP_register, PTR(&callback)), 0, "failsafe callback");
    check_equal(hypercall2(__HYPERVISOR_stack_switch, FLAT_KERNEL_SS, PTR(kernel_stack + sizeof(kernel_stack))), 0,
                "stack_switch");
    user_root[0] = root[511];
    use_user_root(user_root);
}

struct target user_target(const void *code)
{
    return (struct target){.rip = USER_VA(code), .cs = FLAT_USER_CS, .rflags = 2,
                           .rsp = USER_VA(stacks[0] + PAGE_SIZE), .ss = FLAT_USER_SS};
}

struct target kernel_target(const void *code)
{
    return (struct target){.rip = PTR(code), .cs = FLAT_KERNEL_CS & ~3, .rflags = 2,
                           .rsp = PTR(stacks[1] + PAGE_SIZE), .ss = FLAT_KERNEL_SS & ~3};
}
