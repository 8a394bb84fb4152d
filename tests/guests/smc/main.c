/*
 * smc: code that a guest changes runs as changed: in place, across a page border, through another mapping, and in the
 * block that is running.
 */
#include "guest.h"

static PAGE unsigned char code[2 * PAGE_SIZE];
static PAGE char window[PAGE_SIZE];

static u64 run(unsigned char *at)
{
    return ((u64(*)(void))(void *)at)();
}

/* mov $value, %eax; ret */
static void write_function(unsigned char *at, u32 value)
{
    at[0] = 0xb8;
    memcpy(at + 1, &value, 4);
    at[5] = 0xc3;
}

void test(void)
{
    for (u32 i = 0; i < 1000; i++) {
        write_function(code, i);
        if (run(code) != i) {
            check(false, "a function rewritten in place");
            break;
        }
    }
    for (u32 i = 0; i < 100; i++) {
        write_function(code + PAGE_SIZE - 3, 0x01010101 * i);
        check_equal(run(code + PAGE_SIZE - 3), 0x01010101 * i, "a function across a page border");
    }

    write_function(code, 1);
    check_equal(run(code), 1, "before");
    check_equal(update_va_mapping(window, (mfn_of(code) << 12) | PTE_DATA, UVMF_INVLPG), 0, "a second mapping");
    write_function((unsigned char *)window, 2);
    check_equal(run(code), 2, "changed through another mapping");
    check_equal(run((unsigned char *)window), 2, "run through another mapping");

    /* The store changes the immediate of an instruction further on in the same straight line. */
    u32 got;
    asm volatile("movl $0x22222222, 1f+1(%%rip)\n\t nop\n\t nop\n1: mov $0x11111111, %%eax\n\t mov %%eax, %0\n\t"
                 "movl $0x11111111, 1b+1(%%rip)" : "=r"(got) : : "rax", "memory");
    check_equal(got, 0x22222222, "a block that changes itself");

    u64 sum = 0;
    for (u32 i = 0; i < 20000; i++) {
        if (i % 100 == 0)
            write_function(code + 64, i);
        sum += run(code + 64);
    }
    u64 expected = 0;
    for (u32 i = 0; i < 20000; i++)
        expected += i - i % 100;
    check_equal(sum, expected, "changed now and then in a hot loop");
}
