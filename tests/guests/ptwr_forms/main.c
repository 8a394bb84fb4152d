/*
 * ptwr_forms: a store to a read-only level-1 table, by every instruction that stores: which are emulated, what they leave in the
 * entry and in registers, and which are page faults as on any read-only page.
 */
#include "guest.h"

enum { PTE_GLOBAL = 256 };
static __attribute__((aligned(8192))) char window[2 * PAGE_SIZE];
static PAGE char data[PAGE_SIZE], other[PAGE_SIZE];
static volatile u64 *entry;
static u64 frame, frame2;

/* Each form starts from this entry, and ends with what it made of it. */
#define START ((frame << 12) | PTE_P | PTE_US | PTE_GLOBAL)
static void begin(void)
{
    check_equal(update_va_mapping(window, START, UVMF_INVLPG), 0, "begin");
    entry[1] = 0;
}

#define TRY(code, ...) EXPECT_TRAP_CHANGING(STRING_POINTERS, code, ##__VA_ARGS__)

/* Emulated: no fault; the entry is then `expected`, but for A and D. */
#define STORES(what, expected, code, ...)                                                   \
    do {                                                                                    \
        begin();                                                                            \
        TRY(code, [at] "r"(entry), ##__VA_ARGS__);                                   \
        if (caught.count != 0)                                                              \
            print("%s: trap %lu error 0x%lx cr2 at %ld\n", what, caught.vector, caught.error_code, caught.cr2 - PTR(entry)); \
        check_equal(caught.count, 0, what);                                                 \
        check_equal(*entry & ~(u64)(PTE_A | PTE_D), (expected) & ~(u64)(PTE_A | PTE_D), what);  \
    } while (0)

/* A page fault, with nothing changed. */
#define FAULTS(what, offset, code, ...)                                                     \
    do {                                                                                    \
        begin();                                                                            \
        TRY(code, [at] "r"(entry), ##__VA_ARGS__);                                   \
        check_equal(caught.vector, 14, what);                                               \
        check_equal(caught.error_code & ~4ul, 3, what);                                     \
        check_equal(caught.cr2 - PTR(entry), offset, what);                                 \
        check_equal(*entry & ~(u64)(PTE_A | PTE_D), START & ~(u64)(PTE_A | PTE_D), what);    \
        check_equal(entry[1], 0, what);                                                     \
    } while (0)

static void moves(void)
{
    u64 other_entry = (frame2 << 12) | PTE_P | PTE_US | PTE_GLOBAL;

    STORES("mov 8", other_entry, "movq %[new], (%[at])", [new] "r"(other_entry));
    STORES("mov 8 immediate", 0x10, "movq $0x10, (%[at])");
    STORES("mov 4, low", (START & ~0xfffffffful) | 0x70, "movl $0x70, (%[at])");
    STORES("mov 4, high", START | 1ul << 52 | 1ul << 63, "movl $0x80100000, 4(%[at])");
    STORES("mov 2", (START & ~0xfffful) | 0x120, "movw $0x120, (%[at])");
    STORES("mov 2, last", START | 0x0010ul << 48, "movw $0x0010, 6(%[at])");
    STORES("mov 1", START & ~0xfful, "movb $0, (%[at])");
    STORES("mov 1, last", START | 1ul << 63, "movb $0x80, 7(%[at])");
    STORES("movnti 8", other_entry, "movnti %[new], (%[at])", [new] "r"(other_entry));
    STORES("movnti 4", (START & ~0xfffffffful), "movnti %k[new], (%[at])", [new] "r"(0ul));
    STORES("movbe", other_entry, "movbe %[new], (%[at])", [new] "r"(__builtin_bswap64(other_entry)));
    STORES("xchg 8", other_entry, "movq %[new], %%rax\n\t xchgq %%rax, (%[at])\n\t movq %%rax, %[old]",
           [new] "r"(other_entry), [old] "m"(data));
    check_equal(*(u64 *)data & ~(u64)(PTE_A | PTE_D), START, "what xchg found");
    STORES("xchg 1", START & ~0xfful, "xor %%eax, %%eax\n\t xchgb %%al, (%[at])");
    STORES("pop", other_entry, "pushq %[new]\n\t popq (%[at])", [new] "r"(other_entry));
    FAULTS("mov from a segment register", 0, "xor %%eax, %%eax\n\t movw %%fs, (%[at])");
    STORES("set", START & ~0xfful, "cmp %[at], %[at]\n\t setne (%[at])");
    STORES("with rip", START & ~0xfful, "movb $0, (%[at])");
}

static void arithmetic(void)
{
    STORES("or", START | 0xe00, "orq $0xe00, (%[at])");
    STORES("lock or", START | 0xe00, "lock orl $0xe00, (%[at])");
    STORES("and", START & ~4ul & ~1ul, "andq $-6, (%[at])");
    STORES("lock and", START & ~1ul, "lock andb $0xfe, (%[at])");
    STORES("xor", START ^ 0xe01, "xorw $0xe01, (%[at])");
    STORES("lock xor", START ^ 1ul << 63, "lock xorb $0x80, 7(%[at])");
    STORES("add", START + 0x200, "addq $0x200, (%[at])");
    STORES("lock add", START - 1, "lock addl $-1, (%[at])");
    STORES("sub", START - 1, "subq $1, (%[at])");
    STORES("adc", START + 0x200, "clc\n\t adcq $0x200, (%[at])");
    STORES("sbb", START - 1, "stc\n\t sbbq $0, (%[at])");
    STORES("inc", START + 0x400, "incb 1(%[at])\n\t incb 1(%[at])");
    STORES("lock dec", START - 1, "lock decb (%[at])");
    STORES("not", START ^ 0xfful << 56, "notb 7(%[at])");
    STORES("neg of nothing", START, "negb 7(%[at])");
    STORES("shl", START & ~0xfful, "shlb $7, (%[at])\n\t shlb $1, (%[at])");
    STORES("rol", START, "rolb $8, (%[at])");
    STORES("shld", START & ~0xfffful, "xor %%eax, %%eax\n\t shldw $15, %%ax, (%[at])\n\t shldw $15, %%ax, (%[at])");
    STORES("xadd", START - 1, "mov $-1, %%eax\n\t xadd %%al, (%[at])");
    STORES("lock xadd", START + 0x200, "mov $0x200, %%eax\n\t lock xaddq %%rax, (%[at])");
    STORES("a change of nothing", START, "lock orq $0, (%[at])");
}

static void bits(void)
{
    STORES("bts", START | 1ul << 9, "btsq $9, (%[at])");
    STORES("lock bts", START | 1ul << 63, "lock btsq $63, (%[at])");
    STORES("btr", START & ~1ul, "btrl $0, (%[at])");
    STORES("lock btr", START & ~1ul, "lock btrq $0, (%[at])");
    STORES("btc", START ^ 1ul << 10, "btcw $10, (%[at])");
    STORES("lock btc", START ^ 1ul << 10, "lock btcq %[bit], (%[at])", [bit] "r"(10ul));
    STORES("bts from elsewhere", START | 1ul << 11, "lock btsq %[bit], -8(%[at])", [bit] "r"(64ul + 11));
}

static void exchanges(void)
{
    u64 other_entry = (frame2 << 12) | PTE_P | PTE_US | PTE_GLOBAL;

    STORES("cmpxchg", other_entry, "movq (%[at]), %%rax\n\t cmpxchgq %[new], (%[at])", [new] "r"(other_entry));
    STORES("lock cmpxchg", other_entry, "movq (%[at]), %%rax\n\t lock cmpxchgq %[new], (%[at])\n\t jz 2f\n\t ud2\n2:",
           [new] "r"(other_entry));
    STORES("cmpxchg of 1 byte", START & ~0xfful, "movb (%[at]), %%al\n\t lock cmpxchgb %b[new], (%[at])", [new] "r"(0ul));
    STORES("cmpxchg of another", START, "xor %%eax, %%eax\n\t lock cmpxchgq %[new], (%[at])\n\t movq %%rax, %[old]",
           [new] "r"(other_entry), [old] "m"(data));
    check_equal(*(u64 *)data & ~(u64)(PTE_A | PTE_D), START, "what cmpxchg found");
    u64 ebx = other_entry & 0xffffffff, ecx = other_entry >> 32;
    STORES("cmpxchg8b", other_entry, "movl (%[at]), %%eax\n\t movl 4(%[at]), %%edx\n\t mov %k[high], %%ecx\n\t cmpxchg8b (%[at])",
           "b"(ebx), [high] "r"(ecx));
    STORES("lock cmpxchg8b", other_entry,
           "movl (%[at]), %%eax\n\t movl 4(%[at]), %%edx\n\t mov %k[high], %%ecx\n\t lock cmpxchg8b (%[at])\n\t jz 2f\n\t ud2\n2:",
           "b"(ebx), [high] "r"(ecx));
    STORES("cmpxchg8b of another", START,
           "xor %%eax, %%eax\n\t xor %%edx, %%edx\n\t mov %k[high], %%ecx\n\t lock cmpxchg8b (%[at])\n\t jnz 2f\n\t ud2\n2:",
           "b"(ebx), [high] "r"(ecx));
    FAULTS("cmpxchg16b", 0, "movq (%[at]), %%rax\n\t movq 8(%[at]), %%rdx\n\t xor %%ecx, %%ecx\n\t lock cmpxchg16b (%[at])",
           "b"(other_entry));
}

static void strings(void)
{
    u64 list[4] = {(frame2 << 12) | PTE_P | PTE_US | PTE_GLOBAL, START, START | 0xe00, START | 0x200};

    STORES("stosq", 0, "mov %[at], %%rdi\n\t xor %%eax, %%eax\n\t stosq\n\t sub %[at], %%rdi\n\t mov %%rdi, %[moved]",
           [moved] "m"(data));
    check_equal(*(u64 *)data, 8, "stosq moves on");
    STORES("rep stosq", START | 0x200,
           "mov %[at], %%rdi\n\t mov %[new], %%rax\n\t mov $2, %%ecx\n\t rep stosq\n\t sub %[at], %%rdi\n\t"
           "mov %%rdi, %[moved]\n\t mov %%rcx, 8+%[moved]",
           [new] "r"(START | 0x200), [moved] "m"(data));
    check_equal(*(u64 *)data, 16, "rep stosq moves on");
    check_equal(((u64 *)data)[1], 0, "rep stosq counts down");
    check_equal(entry[1] & ~(u64)(PTE_A | PTE_D), START | 0x200, "and does the second");
    STORES("rep stosb", START & ~0xfffffful, "mov %[at], %%rdi\n\t xor %%eax, %%eax\n\t mov $3, %%ecx\n\t rep stosb");
    STORES("movsq", list[0], "mov %[at], %%rdi\n\t mov %[from], %%rsi\n\t movsq", [from] "r"(list));
    STORES("rep movsq", list[2],
           "mov %[at], %%rdi\n\t mov %[from], %%rsi\n\t mov $2, %%ecx\n\t rep movsq\n\t sub %[at], %%rdi\n\t mov %%rdi, %[moved]",
           [from] "r"(list + 2), [moved] "m"(data));
    check_equal(entry[1] & ~(u64)(PTE_A | PTE_D), list[3], "and the second");
    check_equal(*(u64 *)data, 16, "rep movsq moves on");
    STORES("rep stosq of none", START, "mov %[at], %%rdi\n\t xor %%ecx, %%ecx\n\t rep stosq");
    STORES("stosq backwards", 0x10, "std\n\t mov %[at], %%rdi\n\t mov $0x10, %%eax\n\t stosq\n\t cld");
}

static void refused(void)
{
    u64 forbidden = START | 1 << 7, table = mfn_of((void *)start_info->pt_base) << 12 | PTE_DATA;

    FAULTS("across two entries", 4, "movq $0, 4(%[at])");
    FAULTS("not aligned", 2, "movl $0, 2(%[at])");
    FAULTS("2 bytes, not aligned", 1, "movw $0, 1(%[at])");
    FAULTS("a writable mapping of a table", 0, "movq %[new], (%[at])", [new] "r"(table));
    FAULTS("another's frame", 0, "movq %[new], (%[at])", [new] "r"(foreign_mfn() << 12 | PTE_DATA));
    FAULTS("the same by cmpxchg", 0, "movq (%[at]), %%rax\n\t lock cmpxchgq %[new], (%[at])",
           [new] "r"(foreign_mfn() << 12 | PTE_DATA));
    if (!(start_info->flags & SIF_INITDOMAIN))
        FAULTS("PAT", 0, "movq %[new], (%[at])", [new] "r"(forbidden));
    FAULTS("SSE, 16 bytes", 0, "movups %%xmm0, (%[at])");
    FAULTS("SSE, 8 bytes", 0, "movq %%xmm0, (%[at])");
    FAULTS("SSE, 4 bytes", 0, "movd %%xmm0, (%[at])");
    FAULTS("SSE, streaming", 0, "pxor %%xmm0, %%xmm0\n\t movntps %%xmm0, (%[at])");
    FAULTS("MMX", 0, "emms\n\t movq %%mm0, (%[at])");
    if (!(start_info->flags & SIF_INITDOMAIN)) { /* a real Xen 4.17 calls a null function there, and is gone */
        FAULTS("x87", 0, "fldz\n\t fstpl (%[at])");
        FAULTS("x87 control word", 0, "fnstcw (%[at])");
        FAULTS("x87, integer", 0, "fldz\n\t fistpll (%[at])");
    }
    FAULTS("MXCSR", 0, "stmxcsr (%[at])");
}

/* Where the stack is the table. What faults there ends the domain: its page fault could not be delivered. */
static void stacks(void)
{
#define ON_TABLE(code) "mov %%rsp, %%rcx\n\t lea 8(%[at]), %%rsp\n\t " code "\n\t mov %%rcx, %%rsp"
    u64 other_entry = (frame2 << 12) | PTE_P | PTE_US | PTE_GLOBAL;

    STORES("push", other_entry, "mov %[new], %%rdx\n\t" ON_TABLE("pushq %%rdx"), [new] "r"(other_entry));
    STORES("push of a constant", 0x10, ON_TABLE("pushq $0x10"));
    *(u64 *)data = other_entry;
    STORES("push from memory", other_entry, "mov %[new], %%rdx\n\t" ON_TABLE("pushq (%%rdx)"), [new] "r"(data));
    STORES("push of 2 bytes", (START & ~(0xfffful << 48)) | 0x10ul << 48, ON_TABLE("pushw $0x10"));
    STORES("pushf", 0x202, ON_TABLE("pushfq\n\t andq $0x202, (%[at])"));
    /* Return addresses that are no present entries. */
    STORES("call", 0x10, ON_TABLE("jmp 6f\n\t .balign 16\n6:\t nop\n\t call 5f\n5:\t movq $0x10, (%[at])"));
    STORES("call of a register", 0x10,
           "lea 5f(%%rip), %%rdx\n\t" ON_TABLE("jmp 6f\n\t .balign 16\n6:\t call *%%rdx\n5:\t movq $0x10, (%[at])"));
    STORES("call by memory", 0x10,
           "lea 5f(%%rip), %%rdx\n\t lea %[place], %%rax\n\t mov %%rdx, (%%rax)\n\t"
           ON_TABLE("jmp 6f\n\t .balign 16\n6:\t call *(%%rax)\n5:\t movq $0x10, (%[at])"), [place] "m"(*(u64 *)data));
    STORES("enter", 0x10, "mov %%rbp, %%rax\n\t mov $0x10, %%ebp\n\t" ON_TABLE("enter $0, $0") "\n\t mov %%rax, %%rbp");
    *(u64 *)data = other_entry;
    STORES("pop", other_entry, "mov %%rsp, %%rcx\n\t mov %[new], %%rsp\n\t popq (%[at])\n\t mov %%rcx, %%rsp", [new] "r"(data));
}

/* The last entry of a page, with data behind it. */
static void edges(void)
{
    char *end = (char *)(PTR(entry) | 4095) + 1;
    EXPECT_TRAP("movq $0, (%[at])", [at] "r"(end - 4));
    check_equal(caught.vector, 14, "a store across pages");
    EXPECT_TRAP("lock orq $0x200, (%[at])", [at] "r"(end - 4));
    check_equal(caught.vector, 14, "a locked one");
}

void test(void)
{
    check_equal(hypercall2(__HYPERVISOR_vm_assist, VMASST_CMD_enable, VMASST_TYPE_writable_pagetables), 0, "vm_assist");
    load_traps();
    catch_traps();
    enable_avx();
    u64 maddr = entry_maddr(window, 1);
    entry = (volatile u64 *)((char *)va_of_mfn(maddr >> 12) + (maddr & 4095));
    frame = mfn_of(data);
    frame2 = mfn_of(other);
    moves();
    arithmetic();
    bits();
    exchanges();
    strings();
    refused();
    edges();
    stacks();
}
