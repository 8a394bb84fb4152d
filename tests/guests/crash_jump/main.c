/*
 * crash_jump: a jump to nowhere without a handler crashes the domain; the report walks the page tables of the address.
 *
 * expect-exit: 3
 * expect-stderr: ffffffffc0000000
 */
#include "guest.h"

void test(void)
{
    print("jumping to nowhere\n");
    asm volatile("jmp *%0" : : "r"(0xffffffffc0000000ul));
    finish("FAILURE");
}
