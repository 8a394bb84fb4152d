/*
 * smp_code: other vCPUs execute code that was changed, once they have been told and have executed a serializing
 * instruction: changed in place, changed through another mapping, and by another mapping of the same address.
 *
 * vcpus: 4
 * timeout: 60
 */
#include "guest.h"

enum { NR_READERS = 3, NR_ROUNDS = 100, NR_WAYS = 3 };
static PAGE char window[PAGE_SIZE];
static PAGE unsigned char code[2][PAGE_SIZE];
static volatile u64 current, runs[8], nr_stale, stop;

static void execute(unsigned id)
{
    while (!stop) {
        u64 expected = current;
        u32 a = 0, b, c = 0, d, value;
        asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d) : : "memory");
        asm volatile("call *%1" : "=a"(value) : "r"(window) : "memory");
        if (value < expected)
            asm volatile("lock incq %0" : "+m"(nr_stale));
        runs[id]++;
    }
}

/* mov eax, imm32 with the operand aligned, so that it changes at once; ret */
static void write_code(unsigned char *at, u32 value)
{
    at[3] = 0xb8;
    at[8] = 0xc3;
    at[0] = at[1] = at[2] = 0x90;
    *(volatile u32 *)(at + 4) = value;
}

static long map_window(int page)
{
    return update_va_mapping(window, mfn_of(code[page]) << 12 | PTE_DATA, UVMF_INVLPG | UVMF_ALL);
}

void test(void)
{
    load_traps();
    if (nr_vcpus() < 2)
        finish("SKIP");
    write_code(code[0], 0);
    check_equal(map_window(0), 0, "map the code");
    unsigned nr_readers = nr_vcpus() - 1 < NR_READERS ? nr_vcpus() - 1 : NR_READERS;
    for (unsigned id = 1; id <= nr_readers; id++)
        start_vcpu(id, execute);
    for (unsigned id = 1; id <= nr_readers; id++)
        check(wait_until(&runs[id], 1), "a vCPU executes it");

    u32 next = 0;
    for (int way = 0; way < NR_WAYS; way++) {
        if (way == 2)
            check_equal(map_window(0), 0, "map the first page");
        for (int round = 0; round < NR_ROUNDS; round++) {
            next++;
            switch (way) {
            case 0:
                *(volatile u32 *)(window + 4) = next;
                break;
            case 1:
                *(volatile u32 *)(code[0] + 4) = next;
                break;
            default:
                write_code(code[next & 1], next);
                check_equal(map_window(next & 1), 0, "map the other page");
            }
            current = next;
            if (round % 16 == 0)
                for (unsigned id = 1; id <= nr_readers; id++)
                    check(wait_until(&runs[id], runs[id] + 1), "a vCPU goes on");
        }
        if (nr_stale != 0)
            print("way %d: %lu stale runs\n", way, nr_stale);
        check_equal(nr_stale, 0, "no vCPU executes the old code");
        nr_stale = 0;
    }
    stop = 1;
}
