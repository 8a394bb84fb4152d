/*
 * compat: 32-bit code in guest user mode enters the kernel by `int $0x80`, and by `syscall` (on AMD's CPUs) or `sysenter` (on
 * Intel's) through callbacks of their own; the other one of the two faults. Far jumps lead to 64-bit code and back.
 *
 * The user root maps the kernel's frames at USER_BASE, below 4 GiB, through a level-3 table of its own.
 */
#include "guest.h"

#define USER_BASE 0x40000000ul
#define TO_USER(p) (PTR(p) - VIRT_BASE + USER_BASE)
#define CS32 0xe023
#define SS32 0xe02b

static PAGE u64 user_root[512], user_l3[512];
static PAGE char user_stack[PAGE_SIZE];
static bool is_amd;
static unsigned nr_interrupts, nr_fast, nr_undefined;

extern const char user_code[], user_after_int[], user_syscall[], user_sysenter[], user_end[];
asm(".pushsection .text\n"
    ".globl user_code, user_after_int, user_syscall, user_sysenter, user_end\n"
    ".code32\n"
    "user_code:\n"
    "  mov $1, %eax\n  mov $0x89abcdef, %ebx\n  mov %esp, %ebp\n"
    "  int $0x80\n"
    "user_after_int:\n"
    "  inc %eax\n  push %eax\n" /* REX in 64-bit code */
    "  mov $2, %eax\n"
    "user_syscall:\n  syscall\n"
    "  mov $3, %eax\n"
    "user_sysenter:\n  sysenter\n"
    "user_end:\n"
    "  call 1f\n"
    "1: pop %esi\n  add $(2f - 1b), %esi\n"
    "  push $0xe033\n  push %esi\n  ljmp *(%esp)\n"
    ".code64\n"
    "2: mov $-1, %rax\n  mov $-1, %rdx\n  lea 3f(%rip), %rsi\n"
    "  movl %esi, (%rsp)\n  movl $0xe023, 4(%rsp)\n  ljmp *(%rsp)\n"
    ".code32\n"
    "3: add $8, %esp\n  pop %ecx\n"
    "  mov $4, %eax\n"
    "  int $0x80\n"
    "  ud2\n"
    ".code64\n"
    ".popsection");

static void on_interrupt(struct frame *frame)
{
    nr_interrupts++;
    check_equal(frame->cs & 0xffff, CS32, "CS of 32-bit code");
    if (frame->rax == 1) {
        check_equal(frame->rip, TO_USER(user_after_int), "RIP after int");
        check_equal(frame->rbx, 0x89abcdef, "RBX has no sign");
        check_equal(frame->rsp, TO_USER(user_stack + sizeof(user_stack)), "RSP");
        check_equal(frame->rbp, frame->rsp, "RBP");
        frame->rax = 0xffffffff00000007; /* the upper half is nobody's */
        return;
    }
    check_equal(frame->rax, 4, "EAX at the end");
    check_equal(frame->rcx, 8, "what was pushed");
    check_equal(frame->rdx & 0xffffffff, 0xffffffff, "EDX from 64-bit code");
    check_equal(frame->rsp, TO_USER(user_stack + sizeof(user_stack)), "RSP at the end");
    check_equal(nr_interrupts, 2, "two interrupts");
    check_equal(nr_fast, 1, "one of syscall and sysenter has its callback called");
    check_equal(nr_undefined, 1, "the other one faults");
    finish("SUCCESS");
}

/* `syscall` of 32-bit code, or `sysenter`, which tells neither RIP nor RSP. */
static void on_fast(struct frame *frame)
{
    nr_fast++;
    check_equal(frame->rax, is_amd ? 2 : 3, "EAX of the fast system call");
    if (is_amd) {
        check_equal(frame->rip, TO_USER(user_syscall) + 2, "RIP after syscall");
        check_equal(frame->rcx, frame->rip, "RCX is the return address");
        check_equal(frame->cs & 0xffff, CS32, "CS of 32-bit code");
    } else {
        frame->rip = TO_USER(user_end);
        frame->rsp = TO_USER(user_stack + sizeof(user_stack)) - 4;
    }
    frame->cs = CS32;
    frame->ss = SS32;
}

static void on_undefined(struct frame *frame)
{
    nr_undefined++;
    check_equal(frame->rip, is_amd ? TO_USER(user_sysenter) : TO_USER(user_syscall), "RIP of the fault");
    check(nr_undefined == 1, "the fault comes once");
    if (nr_undefined > 1)
        finish("FAILURE");
    frame->rip += 2;
}

static bool find_vendor(void)
{
    u32 a = 0, b, c, d;
    asm volatile("cpuid" : "+a"(a), "=b"(b), "=c"(c), "=d"(d));
    return b == 0x68747541 || b == 0x6f677948; /* AuthenticAMD, HygonGenuine */
}

void test(void)
{
    static char kernel_stack[16384] __attribute__((aligned(16)));
    u64 *root = (u64 *)start_info->pt_base;
    u64 *kernel_l3 = va_of_mfn(MFN_OF_PTE(root[511]));
    struct callback_register fast = {.address = trap_entries[TRAP_SYSCALL]};

    is_amd = find_vendor();
    load_traps();
    set_handler(TRAP_INT80, on_interrupt);
    set_handler(TRAP_SYSCALL, on_fast);
    set_handler(6, on_undefined);
    set_handler(13, on_undefined); /* what QEMU raises for sysenter of an AMD CPU */
    fast.type = is_amd ? CALLBACKTYPE_syscall32 : CALLBACKTYPE_sysenter;
    check_equal(hypercall2(__HYPERVISOR_callback_op, CALLBACKOP_register, PTR(&fast)), 0, "register the callback");
    check_equal(hypercall2(__HYPERVISOR_stack_switch, FLAT_KERNEL_SS, PTR(kernel_stack + sizeof(kernel_stack))), 0,
                "stack_switch");

    user_l3[USER_BASE >> 30] = kernel_l3[510];
    user_root[0] = (mfn_of(user_l3) << 12) | PTE_DATA;
    check_equal(update_va_mapping(user_l3, (mfn_of(user_l3) << 12) | PTE_READ_ONLY, UVMF_INVLPG), 0, "level 3 RO");
    use_user_root(user_root);

    u64 frame[5] = {TO_USER(user_code), CS32, 0x2 /* upcalls masked */, TO_USER(user_stack + sizeof(user_stack)), SS32};
    asm volatile("mov %0, %%rsp\n\t xor %%ecx, %%ecx\n\t xor %%r11d, %%r11d\n\t jmp return_by_iret" : : "r"(frame) : "memory");
    __builtin_unreachable();
}
