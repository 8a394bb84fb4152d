/*
 * written_outside: code that domain 0 changes through a granted page runs as changed, while the grant is mapped.
 * run-by: test_grants.py
 */
#include "guest.h"
#include <xen/grant_table.h>

#define GREF 8

static PAGE char table_page[PAGE_SIZE];
static PAGE unsigned char code[PAGE_SIZE];

static u64 run(void)
{
    return ((u64(*)(void))(void *)code)();
}

void test(void)
{
    map_grant_table((void *)table_page);

    /* mov $1, %eax; ret */
    code[0] = 0xb8;
    code[1] = 1;
    code[5] = 0xc3;
    for (u32 i = 0; i < 1000; i++)
        check_equal(run(), 1, "before");
    grant_entry_v1_t *table = (grant_entry_v1_t *)table_page;
    table[GREF].domid = 0;
    table[GREF].frame = (u32)mfn_of(code);
    asm volatile("" ::: "memory");
    table[GREF].flags = GTF_permit_access;

    /* The test counts up to 50, each time when the word at the page's end says that the number before was seen. */
    volatile u32 *seen = (volatile u32 *)(code + PAGE_SIZE - 4);
    for (u32 want = 2; want <= 50; want++) {
        while (run() != want)
            ;
        *seen = want;
    }
}
