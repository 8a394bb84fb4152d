/*
 * crash_stack: an exception whose bounce frame cannot be pushed crashes the domain, as a triple fault resets a machine.
 *
 * expect-exit: 3
 * expect-stderr: rip
 */
#include "guest.h"

void test(void)
{
    load_traps();
    set_handler(6, catch_trap);
    print("no stack to push on\n");
    asm volatile("mov %0, %%rsp\n\t ud2" : : "r"(0xffffffffc0000000ul));
    finish("FAILURE");
}
