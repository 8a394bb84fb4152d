/*
 * endless: prints without end, and never reads its console. Started by test_bad_input.py, which destroys it.
 *
 * run-by: test_bad_input
 */
#include "guest.h"

void test(void)
{
    for (u64 i = 0;; i++)
        print("line %lu of a guest that does not stop printing\n", i);
}
