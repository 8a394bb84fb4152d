/*
 * frames: what the `iret` hypercall makes of a frame, and what comes back in the next one: selectors and flags, faults
 * at the target, `syscall` and `sysret`, software interrupts by DPL, from kernel and user mode.
 */
#include "guest.h"

#define CODE(name, text) \
    extern const char name[]; \
    asm(".pushsection .text\n" #name ": " text "\n ud2\n.popsection")

CODE(undefined, "");
CODE(system_call, "mov $0x55, %eax\n syscall");
CODE(hypercall, "mov $17, %eax\n xor %edi, %edi\n xor %esi, %esi\n syscall\n mov %cs, %ecx\n mov %ss, %ebx");
CODE(set_flags, "push $0x247ed7\n popfq\n pushfq\n pop %rax");
CODE(clear_if, "cli");
CODE(input, "in $0x80, %al");
CODE(int80, "int $0x80");
CODE(int81, "int $0x81");
CODE(int82, "int $0x82");
CODE(int3, "int3");

static PAGE volatile u64 gdt[512];
static volatile shared_info_t *shared;
static struct target to;

enum { MASKED_BIT = 1, RF = 1 << 16 };

static struct frame *go(void)
{
    shared->vcpu_info[0].evtchn_upcall_pending = 0;
    return go_to(&to);
}

/* Goes to `to`, and expects a fault there with nothing of it changed. */
static void expect_fault(u64 vector, u64 error_code, const char *what)
{
    struct frame *frame = go();
    check_equal(frame->vector, vector, what);
    check_equal(frame->error_code, error_code, what);
    check_equal(frame->rip, to.rip, what);
    check_equal(frame->cs & 0xffff, to.cs & 0xffff, what);
    check_equal(frame->rsp, to.rsp, what);
    check_equal(frame->ss, to.ss | 3, what);
    check_equal(frame->rflags & ~RF, to.rflags, what);
}

static void make_gdt(void)
{
    u64 frames[1] = {mfn_of(gdt)};

    gdt[1] = 0x00af9b000000ffff; /* 64-bit code */
    gdt[2] = 0x00cf93000000ffff; /* data */
    gdt[3] = 0x00cf9b000000ffff; /* 32-bit code */
    gdt[4] = 0x00af9f000000ffff; /* 64-bit code, conforming */
    gdt[5] = 0x00af1b000000ffff; /* code that is not present, DPL 0 */
    gdt[6] = 0x00af7b000000ffff; /* the same, DPL 3 */
    gdt[7] = 0x00cf73000000ffff; /* data that is not present, DPL 3 */
    gdt[8] = 0x00cf91000000ffff; /* read-only data */
    check_equal(update_va_mapping((void *)gdt, (mfn_of(gdt) << 12) | PTE_READ_ONLY, UVMF_INVLPG), 0, "GDT read-only");
    check_equal(hypercall2(__HYPERVISOR_set_gdt, PTR(frames), 512), 0, "set_gdt");
}

static void selectors(void)
{
    to = kernel_target(undefined);
    expect_fault(6, 0, "flat selectors");
    to.cs = 1 << 3;
    to.ss = 2 << 3;
    expect_fault(6, 0, "our own");
    to.cs = 4 << 3;
    expect_fault(6, 0, "conforming code");
    to.cs = 2 << 3;
    expect_fault(13, 2 << 3, "data as CS");
    to.cs = 5 << 3;
    expect_fault(13, 5 << 3, "CS that is not present, DPL 0");
    to.cs = 6 << 3;
    expect_fault(11, 6 << 3, "CS that is not present");
    to.cs = 0;
    expect_fault(13, 0, "null CS");
    to.cs = 0x1000;
    expect_fault(13, 0x1000, "CS past the GDT");
    to.cs = 0xe008;
    expect_fault(13, 0xe008, "Xen's own CS");
    to = kernel_target(undefined);
    to.ss = 1 << 3;
    expect_fault(13, 1 << 3, "code as SS");
    to.ss = 8 << 3;
    expect_fault(13, 8 << 3, "read-only SS");
    to.ss = 7 << 3;
    if (!(start_info->flags & SIF_INITDOMAIN)) /* QEMU TCG, under which the real Xen runs, gives #NP */
        expect_fault(12, 7 << 3, "SS that is not present");
    to.ss = 0;
    expect_fault(13, 0, "null SS");
    to = user_target(undefined);
    to.cs = 0xff3;
    expect_fault(13, 0xff0, "a bad CS in user mode");
    to = user_target(undefined);
    to.ss = 3;
    expect_fault(13, 0, "null SS in user mode");
    to = kernel_target(undefined);
    to.rip = 1ul << 63;
    expect_fault(13, 0, "RIP not canonical");
    to = user_target(undefined);
    to.rip = 1ul << 62;
    expect_fault(13, 0, "RIP not canonical in user mode");
}

static void flags(void)
{
    struct frame *frame;

    to = kernel_target(undefined);
    check_equal(go()->cs >> 32 & 0xff, MASKED_BIT, "IF 0: events are masked");
    to.rflags = 0x202;
    check_equal(go()->cs >> 32 & 0xff, 0, "IF 1: they are not");
    to.rflags = 0x3cd7 & ~0x100;
    check_equal(go()->rflags & ~RF, 0xcd7 & ~0x100, "IOPL does not stay");
    to.rflags = 0x264002; /* AC, VM, NT and ID */
    check_equal(go()->rflags & ~RF, 0x244002, "VM does not stay, the others do");
    to.rflags = 0xffffffffffc08002;
    check_equal(go()->rflags & ~RF, 2, "bits that do not exist");
    to = kernel_target(set_flags);
    check_equal(go()->rax, 0x244ed7, "popf of the kernel");
    to = user_target(set_flags);
    frame = go();
    check_equal(frame->rax, 0x244ed7, "popf of the user");
    check_equal(frame->rflags & ~RF, 0x244cd7, "IF as the mask is");
}

static void levels(void)
{
    struct physdev_set_iopl iopl = {.iopl = 0};

    check_equal(hypercall2(__HYPERVISOR_vm_assist, VMASST_CMD_enable, VMASST_TYPE_architectural_iopl), 0, "vm_assist");
    to = kernel_target(undefined);
    to.rflags = 0x2002;
    expect_fault(6, 0, "IOPL is in frames");
    to = user_target(clear_if);
    to.rflags = 0x3202;
    check_equal(go()->vector, 6, "cli of the user, IOPL 3");
    to.rflags = 0x2202;
    expect_fault(13, 0, "cli of the user, IOPL 2");
    to = user_target(input);
    to.rflags = 0x3202;
    check_equal(go()->vector, 6, "in of the user, IOPL 3");
    to.rflags = 0x2202;
    expect_fault(13, 0, "in of the user, IOPL 2");
    to = kernel_target(input);
    check_equal(go()->vector, 6, "in of the kernel, IOPL 0");
    check_equal(hypercall2(__HYPERVISOR_vm_assist, VMASST_CMD_disable, VMASST_TYPE_architectural_iopl), 0, "no more");
    check_equal(hypercall2(__HYPERVISOR_physdev_op, PHYSDEVOP_set_iopl, PTR(&iopl)), 0, "set_iopl");
    expect_fault(13, 0, "in of the kernel, IOPL 0, the old way");
}

static void system_calls(void)
{
    struct frame *frame;

    to = user_target(system_call);
    to.rflags = 0x244ad7;
    to.cs = 1 << 3 | 3;
    to.ss = 2 << 3 | 3;
    frame = go();
    check_equal(frame->vector, TRAP_SYSCALL, "a system call");
    check_equal(frame->rax, 0x55, "its number");
    check_equal(frame->cs, FLAT_RING3_CS64, "it forgets CS");
    check_equal(frame->ss, FLAT_RING3_SS64, "and SS");
    check_equal(frame->rcx, frame->rip, "RCX");
    check_equal(frame->r11, 0x244ad7, "R11");
    check_equal(frame->rflags, 0x244ad7, "flags");
    to = user_target(undefined);
    to.flags = VGCF_in_syscall;
    to.cs = 1 << 3 | 3;
    to.ss = 2 << 3 | 3;
    to.rflags = 0x202;
    frame = go();
    check_equal(frame->cs, FLAT_RING3_CS64, "so does the way back");
    check_equal(frame->ss, FLAT_RING3_SS64, "SS too");
    check_equal(frame->rcx, to.rip, "RCX on the way back");
    check_equal(frame->r11, 0x202, "R11 on the way back");
    to.cs = FLAT_RING3_CS64;
    to.ss = FLAT_RING3_SS64;
    to.rip |= 1ul << 60;
    expect_fault(13, 0, "not canonical on the way back");
    to = kernel_target(hypercall);
    to.cs = 1 << 3;
    to.ss = 2 << 3;
    frame = go();
    check_equal(frame->rcx, FLAT_RING3_CS64, "a hypercall leaves the flat CS");
    check_equal(frame->rbx, FLAT_RING3_SS64, "and SS");
}

static void software_interrupts(void)
{
    struct trap_info table[] = {
        {.vector = 0x80, .flags = 0, .cs = FLAT_KERNEL_CS, .address = trap_entries[TRAP_INT80]},
        {.vector = 0x81, .flags = 1, .cs = FLAT_KERNEL_CS, .address = trap_entries[TRAP_EVENT]},
        {.vector = 0x82, .flags = 3 | 4, .cs = FLAT_KERNEL_CS, .address = trap_entries[TRAP_EVENT]},
        {.vector = 3, .flags = 0, .cs = FLAT_KERNEL_CS, .address = trap_entries[3]},
        {.address = 0},
    };
    check_equal(hypercall2(__HYPERVISOR_set_trap_table, PTR(table), 0), 0, "set_trap_table");
    to = user_target(int80);
    check_equal(go()->vector, TRAP_INT80, "vector 0x80 is open whatever its DPL");
    to = kernel_target(int80);
    check_equal(go()->vector, TRAP_INT80, "to the kernel too");
    to = user_target(int3);
    check_equal(go()->vector, 3, "int3 too");
    if (start_info->flags & SIF_INITDOMAIN) /* QEMU TCG, under which the real Xen runs, gives n * 16 + 2 as error code */
        return;
    to = kernel_target(int81);
    check_equal(go()->vector, TRAP_EVENT, "DPL 1 from the kernel");
    to = user_target(int81);
    expect_fault(13, 0x81 * 8 + 2, "DPL 1 from the user");
    to = user_target(int82);
    to.rflags = 0x202;
    struct frame *frame = go();
    check_equal(frame->vector, TRAP_EVENT, "DPL 3 from the user");
    check_equal(frame->cs >> 32, 0, "events were not masked");
    check_equal(shared->vcpu_info[0].evtchn_upcall_mask, 1, "in the handler they are");
}

void test(void)
{
    load_traps();
    shared = map_shared_info();
    set_up_user();
    make_gdt();
    selectors();
    flags();
    levels();
    system_calls();
    software_interrupts();
}
