/*
 * access: memory operands of every shape keep their meaning: across page borders, in string instructions that fault
 * half way, in pushes and calls on a bad stack, with wide and locked operations.
 */
#include "guest.h"

static PAGE char place[3 * PAGE_SIZE];
static PAGE volatile char low[PAGE_SIZE], high[PAGE_SIZE];

static void across_pages(void)
{
    /* place and place + 4096 become two frames that are not neighbours. */
    check_equal(update_va_mapping(place, (mfn_of(low) << 12) | PTE_DATA, UVMF_INVLPG), 0, "map low");
    check_equal(update_va_mapping(place + PAGE_SIZE, (mfn_of(high) << 12) | PTE_DATA, UVMF_INVLPG), 0, "map high");
    for (int offset = 1; offset < 8; offset++) {
        volatile u64 *at = (u64 *)(place + PAGE_SIZE - offset);
        u64 value = 0x8877665544332211ul * (u64)offset;
        *at = value;
        check_equal(*at, value, "a quadword across pages");
        check_equal((unsigned char)low[PAGE_SIZE - 1], (value >> (8 * (offset - 1))) & 0xff, "its part in the first");
        check_equal((unsigned char)high[0], (value >> (8 * offset)) & 0xff, "its part in the second");
        asm volatile("lock addq $1, %0" : "+m"(*at));
        check_equal(*at, value + 1, "a locked one");
        u64 old = 5;
        asm volatile("xchgq %0, %1" : "+r"(old), "+m"(*at));
        check_equal(old, value + 1, "an exchange");
        check_equal(*at, 5, "its other side");
    }
    asm volatile("movdqu (%[from]), %%xmm1\n\t movdqu %%xmm1, (%[to])"
                 : : [from] "r"(place + PAGE_SIZE - 7), [to] "r"(place + PAGE_SIZE - 5) : "memory");
    check_equal((unsigned char)low[PAGE_SIZE - 5], 5, "a vector across pages");
}

static void half_way(void)
{
    char *end = place + 2 * PAGE_SIZE; /* the third page becomes unmapped */
    u64 rcx, rdi, rsi;

    check_equal(update_va_mapping(end, 0, UVMF_INVLPG), 0, "unmap the third page");
    memset(place, 1, 2 * PAGE_SIZE);
    caught.count = 0;
    rcx = 100;
    rdi = PTR(end - 30);
    asm volatile("movq $1f, %[resume]\n\t mov $0x55, %%eax\n\t rep stosb\n1:"
                 : [resume] "=m"(caught.resume), "+c"(rcx), "+D"(rdi) : : "rax", "memory");
    check_equal(caught.count, 1, "rep stosb faults");
    check_equal(rcx, 70, "rcx at the fault");
    check_equal(rdi, PTR(end), "rdi at the fault");
    check_equal(caught.cr2, PTR(end), "CR2");
    check_equal((unsigned char)end[-1], 0x55, "what it wrote before");

    caught.count = 0;
    rcx = 10;
    rsi = PTR(end - 24);
    rdi = PTR(place);
    asm volatile("movq $1f, %[resume]\n\t rep movsq\n1:"
                 : [resume] "=m"(caught.resume), "+c"(rcx), "+D"(rdi), "+S"(rsi) : : "memory");
    check_equal(rcx, 7, "rep movsq: rcx at the fault");
    check_equal(rsi, PTR(end), "rsi at the fault");
    check_equal(rdi, PTR(place) + 24, "rdi at the fault");

    EXPECT_TRAP("movq $0, (%[where])", [where] "r"(end - 4));
    check_equal(caught.vector, 14, "a store that is half mapped");
    check_equal(caught.cr2, PTR(end), "CR2 is the page that is not");
    check_equal((unsigned char)end[-1], 0x55, "its first half is not done");
    check_equal((unsigned char)end[-4], 0x55, "nor the byte at its address");

    u64 rsp_before, rsp_after;
    asm volatile("movq $1f, %[resume]\n\t pushq $7\n\t mov %%rsp, %[before]\n\t popq (%[where])\n1: mov %%rsp, %[after]\n\t"
                 "lea 8(%%rsp), %%rsp"
                 : [resume] "=m"(caught.resume), [before] "=&r"(rsp_before), [after] "=&r"(rsp_after)
                 : [where] "r"(end) : "memory");
    check_equal(rsp_after, rsp_before, "a pop that faults leaves rsp");
}

static void wide(void)
{
    static u64 pair[2] __attribute__((aligned(16))) = {1, 2};
    u64 low_word = 1, high_word = 2;
    unsigned char matched;

    asm volatile("lock cmpxchg16b %[pair]\n\t sete %[matched]"
                 : [pair] "+m"(pair), "+a"(low_word), "+d"(high_word), [matched] "=q"(matched)
                 : "b"(3ul), "c"(4ul) : "cc");
    check_equal(matched, 1, "cmpxchg16b");
    check_equal(pair[0], 3, "its low half");
    check_equal(pair[1], 4, "its high half");

    u64 bits[4] = {0};
    asm volatile("btsq %[bit], %[bits]" : [bits] "+m"(bits) : [bit] "r"(130ul) : "cc", "memory");
    check_equal(bits[2], 4, "bts with a register index reaches beyond its operand");
    u64 table[256];
    for (u64 i = 0; i < 256; i++)
        table[i] = i;
    u64 result;
    asm volatile("movq (%[base], %[index], 8), %[result]" : [result] "=r"(result)
                 : [base] "r"(table), [index] "r"(200ul), "m"(table));
    check_equal(result, 200, "scaled index");
    asm volatile("xlatb" : "=a"(result) : "b"("abcdef"), "0"(3ul));
    check_equal(result & 0xff, 'd', "xlatb");
    asm volatile("pushq $0x1234\n\t popq %0" : "=r"(result));
    check_equal(result, 0x1234, "push immediate");
    asm volatile("mov %%rsp, %%rcx\n\t push %%rsp\n\t pop %0\n\t sub %%rcx, %0" : "=r"(result) : : "rcx");
    check_equal(result, 0, "push rsp pushes the old value");
    asm volatile("enter $32, $0\n\t leave" : : : "memory");
    asm volatile("std\n\t lodsb\n\t cld" : "=a"(result) : "S"("xyz" + 1), "0"(0ul) : "memory");
    check_equal(result & 0xff, 'y', "a string instruction backwards");
}

void test(void)
{
    load_traps();
    set_handler(14, catch_trap);
    across_pages();
    half_way();
    wide();
}
