/*
 * segments: 16-bit code of a user with a 16-bit stack, and segments of its LDT with limits: far calls, returns and jumps, iret, segment
 * loads, `int` and faults by what a segment does not hold. Frames have the offset in the code segment, and the stack pointer whole.
 */
#include "guest.h"

/* The user's lower addresses are the kernel's in its last slot. */
#define ALIAS 0xffffff8000000000ul
enum { CODE_AT = 0x10000, STACK_AT = 0x20000, DATA_AT = 0x30000, SMALL_LIMIT = 0x2f, NR_LOOPS = 200000 };
enum { CODE16 = 4, STACK16, SMALL, CODE_SHORT, CODE_ABSENT, DOWN };
#define SELECTOR(index) ((index) << 3 | 7)
#define DESCRIPTOR(base, limit, rights) \
    ((u64)(limit) | (u64)((base) & 0xffffff) << 16 | (u64)(rights) << 40 | (u64)((base) >> 24) << 56)
enum { CODE_RIGHTS = 0xfb, DATA_RIGHTS = 0xf3, DOWN_RIGHTS = 0xf7, ABSENT = 0x7b };

static PAGE u64 user_root[512], ldt[512];
static PAGE char code[PAGE_SIZE], stack[PAGE_SIZE], data[PAGE_SIZE];

extern const char code16[], code16_end[], works[], after_int[], counts[], beyond[], overflows[], absent[], shorter[], null[], below[];
asm(".pushsection .text\n .code16\n code16:\n"
    "works: mov $0x1234, %ax\n push %ax\n pop %bx\n"
    " mov $0x37, %cx\n mov %cx, %ds\n movw $0x5678, (0x10)\n"          /* SMALL */
    " call 1f\n jmp 2f\n"
    "1: mov %sp, %si\n ret\n"
    "2: lcall $0x27, $(3f - code16)\n jmp 4f\n"                        /* CODE16 */
    "3: mov %sp, %bp\n mov 2(%bp), %di\n lret\n"
    "4: push %ds\n pop %es\n"
    " movw $0x9abc, (0x20)\n movw $0x37, (0x22)\n les (0x20), %dx\n"
    " stc\n pushf\n push %cs\n push $(5f - code16)\n clc\n iret\n"
    "5: sbb %ax, %ax\n"                                                /* -1: CF came back */
    " mov %sp, %bp\n"
    " int $0x80\n after_int:\n"
    "counts: xor %dx, %dx\n mov $200000, %ecx\n"
    "6: inc %edx\n dec %ecx\n jnz 6b\n int $0x80\n"
    "beyond: mov $0x37, %cx\n mov %cx, %ds\n mov (0x2e), %ax\n mov (0x2f), %ax\n"
    "overflows: mov $1, %sp\n push %ax\n"
    "absent: ljmp $0x47, $0\n"
    "shorter: ljmp $0x3f, $0x1000\n"
    "null: xor %cx, %cx\n mov %cx, %es\n mov %es:(0), %ax\n"
    "below: mov $0x4f, %cx\n mov %cx, %es\n mov %es:(0x1000), %al\n mov %es:(0xfff), %al\n"
    "code16_end:\n .code64\n .popsection");

static struct frame *run(const char *at)
{
    struct target target = user_target(NULL);
    target.rip = (u64)(at - code16);
    target.cs = SELECTOR(CODE16);
    target.ss = SELECTOR(STACK16);
    target.rsp = 0x1000;
    return go_to(&target);
}

/* A fault of the instruction `len` bytes before the next label. */
static void faults(const char *at, const char *next, unsigned len, u64 vector, u64 error_code, const char *what)
{
    struct frame *frame = run(at);
    check_equal(frame->vector, vector, what);
    check_equal(frame->error_code, error_code, what);
    check_equal(frame->rip, (u64)(next - code16) - len, what);
    check_equal(frame->cs & 0xffff, SELECTOR(CODE16), what);
}

void test(void)
{
    u64 *root = (u64 *)start_info->pt_base;
    struct mmuext_op op = {.cmd = MMUEXT_SET_LDT};

    load_traps();
    map_at(ALIAS + CODE_AT, code);
    map_at(ALIAS + STACK_AT, stack);
    map_at(ALIAS + DATA_AT, data);
    memcpy(code, code16, (size_t)(code16_end - code16));
    ldt[CODE16] = DESCRIPTOR(CODE_AT, 0xffff, CODE_RIGHTS);
    ldt[STACK16] = DESCRIPTOR(STACK_AT, 0xffff, DATA_RIGHTS);
    ldt[SMALL] = DESCRIPTOR(DATA_AT + 0x100, SMALL_LIMIT, DATA_RIGHTS);
    ldt[CODE_SHORT] = DESCRIPTOR(CODE_AT, 0xfff, CODE_RIGHTS);
    ldt[CODE_ABSENT] = DESCRIPTOR(CODE_AT, 0xffff, ABSENT);
    ldt[DOWN] = DESCRIPTOR(DATA_AT - 0x1000, 0xfff, DOWN_RIGHTS);
    check_equal(update_va_mapping(ldt, (mfn_of(ldt) << 12) | PTE_READ_ONLY, UVMF_INVLPG), 0, "LDT read-only");
    op.arg1.linear_addr = PTR(ldt);
    op.arg2.nr_ents = 16;
    check_equal(hypercall4(__HYPERVISOR_mmuext_op, PTR(&op), 1, 0, DOMID_SELF), 0, "SET_LDT");
    set_up_user();
    user_root[0] = root[511];
    use_user_root(user_root);

    struct frame *frame = run(works);
    check_equal(frame->vector, TRAP_INT80, "16-bit code runs to its end");
    check_equal(frame->rip, (u64)(after_int - code16), "RIP is an offset");
    check_equal(frame->cs & 0xffff, SELECTOR(CODE16), "CS");
    check_equal(frame->ss, SELECTOR(STACK16), "SS");
    check_equal(frame->rsp & 0xffff, 0x1000, "SP is where it was");
    check_equal(frame->rax & 0xffff, 0xffff, "flags through iret");
    check_equal(frame->rbx & 0xffff, 0x1234, "push and pop");
    check_equal(frame->rsi & 0xffff, 0xffe, "a near call pushes two bytes");
    check_equal(frame->rdi & 0xffff, SELECTOR(CODE16), "a far call pushes CS");
    check_equal(frame->rdx & 0xffff, 0x9abc, "les");
    check_equal(*(u16 *)(data + 0x110), 0x5678, "a store by the base of DS");

    u64 from, to;
    asm volatile("rdtsc\n shl $32, %%rdx\n or %%rdx, %%rax" : "=a"(from) : : "rdx");
    frame = run(counts);
    asm volatile("rdtsc\n shl $32, %%rdx\n or %%rdx, %%rax" : "=a"(to) : : "rdx");
    check_equal(frame->rdx & 0xffffffff, NR_LOOPS, "a loop counts");
    print("%lu TSC units for each instruction\n", (to - from) / (3 * NR_LOOPS));

    faults(beyond, overflows, 3, 13, 0, "a load across the limit");
    faults(overflows, absent, 1, 12, 0, "a push that wraps");
    faults(absent, shorter, 5, 11, SELECTOR(CODE_ABSENT) & ~3, "a code segment that is not there");
    faults(shorter, null, 5, 13, 0, "a jump to behind the limit");
    faults(null, below, 4, 13, 0, "a load by a null selector");
    faults(below, code16_end, 4, 13, 0, "a load below what expands down");
    struct target target = user_target(NULL);
    target = (struct target){.rip = 0x1000, .cs = SELECTOR(CODE_SHORT), .rflags = 2, .rsp = 0x1000, .ss = SELECTOR(STACK16)};
    frame = go_to(&target);
    check_equal(frame->vector, 13, "iret to behind the limit");
    check_equal(frame->error_code, 0, "iret to behind the limit");
}
