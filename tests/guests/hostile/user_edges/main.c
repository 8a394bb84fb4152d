/*
 * hostile/user_edges: user mode at the edges of its addresses: stacks, strings and saved states that end behind the low half or
 * at 4 GiB in 32-bit code, bases that wrap, system calls from the last bytes. Each once at once, and once after computing for so
 * long that the code may have come to run otherwise (direct execution). Classes of XSA-111, 123, 202, 204, 265 and 339.
 */
#include "guest.h"

#define LOW_END 0x0000800000000000ul
/* The user's lower addresses are the kernel's in its last slot. */
#define ALIAS 0xffffff8000000000ul
#define CS32 0xe023
#define DS32 0xe02b
/* Rounds that take some 20 ms. */
#define COMPUTING 20000000ul
#define CANARY 0x1122334455667788ul
static PAGE u64 user_root[512];
static PAGE char low_end[PAGE_SIZE], last_32[PAGE_SIZE], first_32[PAGE_SIZE], timer_page[PAGE_SIZE];

/* Each begins by computing, RAX rounds; R8 is the edge; what does not fault comes to `int $0x80`. */
#define CASE(name, code)                                                                             \
    asm(".pushsection .text\n .globl " #name "\n" #name ": 1: dec %rax\n jnz 1b\n"                   \
        " mov $0x800000000000, %r8\n" code "\n int $0x80\n .popsection");                           \
    extern const char name[]
CASE(c_push, "lea 4(%r8), %rsp\n push %rax");
CASE(c_push_far, "lea 12(%r8), %rsp\n push %rax");
CASE(c_call, "lea 4(%r8), %rsp\n call 2f\n 2:");
CASE(c_pop, "lea -4(%r8), %rsp\n pop %rax");
CASE(c_ret, "lea -4(%r8), %rsp\n ret");
CASE(c_leave, "lea -4(%r8), %rbp\n leave");
CASE(c_enter, "lea 8(%r8), %rsp\n lea -64(%r8), %rbp\n enter $64, $1");
CASE(c_pushf, "lea 2(%r8), %rsp\n pushf");
CASE(c_mov, "mov %rax, -4(%r8)");
CASE(c_load, "mov -7(%r8), %rax");
CASE(c_avx, "vmovdqu %ymm0, -31(%r8)");
CASE(c_xsave, "mov $7, %eax\n xor %edx, %edx\n xsave -128(%r8)");
CASE(c_xrstor, "mov $7, %eax\n xor %edx, %edx\n xrstor -64(%r8)");
CASE(c_fxsave, "fxsave -256(%r8)");
CASE(c_stos, "lea -16(%r8), %rdi\n mov $64, %ecx\n rep stosb");
CASE(c_movs, "lea -16(%r8), %rsi\n lea -256(%r8), %rdi\n mov $64, %ecx\n rep movsb");
CASE(c_cmpxchg, "lock cmpxchg %rax, -1(%r8)");
CASE(c_fs, "wrfsbase %r8\n mov %fs:-4, %rax");
CASE(c_gs, "lea -64(%r8), %rax\n wrgsbase %rax\n lock incq %gs:60");
CASE(c_jump, "lea -2(%r8), %rax\n jmp *%rax");
CASE(c_iret, "lea -20(%r8), %rsp\n iretq");

static const struct { const char *name, *code; unsigned vector; } cases[] = {
    {"push", c_push, 12}, {"push behind", c_push_far, 12}, {"call", c_call, 12}, {"pop", c_pop, 12}, {"ret", c_ret, 12},
    {"leave", c_leave, 12}, {"enter", c_enter, 12}, {"pushf", c_pushf, 12}, {"mov", c_mov, 13}, {"load", c_load, 13},
    {"vmovdqu", c_avx, 13}, {"xsave", c_xsave, 13}, {"xrstor", c_xrstor, 13}, {"fxsave", c_fxsave, 13}, {"stos", c_stos, 13},
    {"movs", c_movs, 13}, {"cmpxchg", c_cmpxchg, 13}, {"fs", c_fs, 13}, {"gs", c_gs, 13}, {"jump", c_jump, 13},
    {"iret", c_iret, 12},
};

/* 32-bit code: EDI is 0xfffffff0, FS.base 16. The last bytes of 4 GiB, and what wraps. */
#define CASE32(name, code)                                                                                            \
    asm(".pushsection .text\n .globl " #name "\n .code32\n" #name ": 1: dec %eax\n jnz 1b\n" \
        " mov $0xe02b, %edi\n mov %edi, %ds\n mov %edi, %es\n mov $0xfffffff0, %edi\n"                            \
        code "\n int $0x80\n .code64\n .popsection");                                                                \
    extern const char name[]
CASE32(w_mov, "mov %eax, 14(%edi)");
CASE32(w_load, "mov 13(%edi), %eax");
CASE32(w_last, "mov 12(%edi), %eax");
CASE32(w_fs, "mov %fs:(%edi), %eax");
CASE32(w_index, "lea 8(%edi), %eax\n mov 8(%eax, %edi, 1), %eax"); /* 0xfffffff8 + 0xfffffff0 + 8: 0xfffffff0 */
CASE32(w_stos, "mov $32, %ecx\n rep stosb");
CASE32(w_push, "mov $2, %esp\n push %eax");
CASE32(w_push_0, "xor %esp, %esp\n push $0x1234");
CASE32(w_fxsave, "fxsave -256(%edi)");
static const struct { const char *name, *code; unsigned vector; } cases32[] = {
    {"mov", w_mov, 13}, {"load", w_load, 13}, {"the last word", w_last, TRAP_INT80}, {"by FS, to zero", w_fs, TRAP_INT80},
    {"a sum that wraps", w_index, TRAP_INT80}, {"stos", w_stos, TRAP_INT80}, {"push from 2", w_push, 12}, {"push from 0", w_push_0, TRAP_INT80},
    {"fxsave", w_fxsave, 13},
};

static void on_event(struct frame *frame)
{
    (void)frame;
    volatile shared_info_t *shared = (void *)timer_page;
    shared->vcpu_info[0].evtchn_upcall_pending = 0;
    shared->vcpu_info[0].evtchn_pending_sel = 0;
    for (int i = 0; i < 8; i++)
        shared->evtchn_pending[i] = 0;
}

/* Events, which interrupt what computes. */
static void start_timer(void)
{
    struct evtchn_bind_virq bind = {.virq = VIRQ_TIMER, .vcpu = 0};
    struct vcpu_set_periodic_timer period = {.period_ns = 1000000};
    check_equal(update_va_mapping(timer_page, start_info->shared_info | PTE_DATA, UVMF_INVLPG), 0, "shared_info");
    set_handler(TRAP_EVENT, on_event);
    check_equal(hypercall_evtchn(EVTCHNOP_bind_virq, &bind), 0, "VIRQ_TIMER");
    ((shared_info_t *)timer_page)->evtchn_mask[0] = 0;
    check_equal(hypercall_vcpu_op(VCPUOP_set_periodic_timer, 0, &period), 0, "a periodic timer");
}

static struct frame *go(const struct target *target, u64 rounds)
{
    struct target with_rounds = *target;
    with_rounds.rax = rounds;
    with_rounds.rflags |= 0x200;
    return go_to(&with_rounds);
}

static void expect(const struct frame *frame, u64 vector, const char *name)
{
    if (frame->vector != vector)
        print("%s: vector %lu at 0x%lx, expected %lu\n", name, frame->vector, frame->rip, vector);
    check(frame->vector == vector, name);
}

static void in_64_bits(u64 rounds)
{
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        if (cases[i].code == c_iret && start_info->flags & SIF_INITDOMAIN)
            continue; /* QEMU TCG, under which the real Xen runs, reads the frame as the supervisor, whom SMAP forbids it */
        struct target target = user_target(cases[i].code);
        *(u64 *)(low_end + PAGE_SIZE - 8) = CANARY;
        struct frame *frame = go(&target, rounds);
        expect(frame, cases[i].vector, cases[i].name);
        if (cases[i].code == c_stos)
            check_equal(frame->rdi, LOW_END, "stos went up to the edge");
        else if (cases[i].code != c_movs)
            check_equal(*(u64 *)(low_end + PAGE_SIZE - 8), CANARY, "nothing was stored");
    }
}

static void in_32_bits(u64 rounds)
{
    enum { CODE32 = 0x10000 };
    static PAGE char code[PAGE_SIZE];
    static bool is_mapped;
    for (unsigned i = 0; i < sizeof(cases32) / sizeof(cases32[0]); i++)
        memcpy(code + i * 64, cases32[i].code, 64);
    if (!is_mapped)
        map_at(ALIAS + CODE32, code);
    is_mapped = true;
    asm volatile("mov %0, %%fs" : : "r"(DS32));
    check_equal(hypercall2(__HYPERVISOR_set_segment_base, SEGBASE_FS, 16), 0, "FS.base");
    for (unsigned i = 0; i < sizeof(cases32) / sizeof(cases32[0]); i++) {
        struct target target = user_target(NULL);
        target.rip = CODE32 + i * 64;
        target.rsp = CODE32 + 0xff0;
        target.cs = CS32;
        *(u64 *)(last_32 + PAGE_SIZE - 8) = CANARY;
        *(u64 *)first_32 = ~CANARY;
        struct frame *frame = go(&target, rounds);
        expect(frame, cases32[i].vector, cases32[i].name);
        if (cases32[i].code == w_fs)
            check_equal(frame->rax, (u32)~CANARY, "what is at zero");
        if (cases32[i].code == w_stos)
            check(frame->rdi == 16 && first_32[15] == last_32[PAGE_SIZE - 1], "stos goes on at zero");
        if (cases32[i].code == w_push_0)
            check_equal(*(u32 *)(last_32 + PAGE_SIZE - 4), 0x1234, "push goes to the end");
        if (frame->vector != TRAP_INT80)
            check(*(u64 *)(last_32 + PAGE_SIZE - 8) == CANARY && *(u64 *)first_32 == ~CANARY, "nothing was stored");
    }
}

void test(void)
{
    u64 *root = (u64 *)start_info->pt_base, cr4;
    load_traps();
    asm volatile("mov %%cr4, %0" : "=r"(cr4));
    asm volatile("mov %0, %%cr4" : : "r"(cr4 | 1ul << 18 | 1ul << 16)); /* OSXSAVE, FSGSBASE */
    asm volatile("xsetbv" : : "c"(0), "a"(7), "d"(0));
    map_at(LOW_END - PAGE_SIZE, low_end);
    map_at(ALIAS + 0xfffff000, last_32);
    map_at(ALIAS, first_32);
    set_up_user();
    user_root[0] = root[511];
    user_root[255] = root[255];
    use_user_root(user_root);
    start_timer();
    for (u64 rounds = 1; rounds <= COMPUTING; rounds *= COMPUTING) {
        in_64_bits(rounds);
        in_32_bits(rounds);
    }
}
