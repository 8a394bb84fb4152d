/*
 * flood: a guest that prints a megabyte at once loses nothing, and ends.
 */
#include "guest.h"

void test(void)
{
    static char line[64];

    for (int i = 0; i < 62; i++)
        line[i] = (char)('0' + i % 64);
    line[62] = '\r';
    line[63] = '\n';
    for (int i = 0; i < 16384; i++)
        write_console(line, sizeof(line));
    print("end of flood\n");
}
