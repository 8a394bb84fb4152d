/*
 * zeros: memory keeps what is written to it while the hypervisor gives frames of one byte back to the host, and packs others.
 * Each vCPU writes a word to pages of its own, of zeros or of 0xcc, and takes it out again, by the CPU and by the hypervisor, and
 * looks whether it finds what it left.
 *
 * run-by: test_idle_memory.py
 */
#include "guest.h"

enum { NR_VCPUS = 3, NR_PAGES = 64, WORDS = PAGE_SIZE / 8, ROUNDS_AT_ONCE = 4096 };
static PAGE volatile u64 pages[NR_VCPUS][NR_PAGES][WORDS];
static volatile u64 nr_lost, nr_rounds[NR_VCPUS], stop;

static u64 next_random(u64 *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* What is all over a page when nothing is written to it. */
static u64 plain(unsigned page)
{
    return page % 2 ? 0xccccccccccccccccul : 0;
}

static void write_and_look(unsigned id)
{
    u64 expected[NR_PAGES], place[NR_PAGES] = {0}, random = 88172645463325252ul + id;

    for (unsigned page = 0; page < NR_PAGES; page++) {
        expected[page] = plain(page);
        for (unsigned word = 0; word < WORDS; word++)
            pages[id][page][word] = plain(page);
    }

    while (!stop) {
        for (int round = 0; round < ROUNDS_AT_ONCE; round++) {
            u64 number = next_random(&random);
            unsigned page = number % NR_PAGES;
            volatile u64 *words = pages[id][page];
            u64 other = (number >> 48) % (WORDS - 2);
            if (words[place[page]] != expected[page] || (other != place[page] && words[other] != plain(page)))
                asm volatile("lock incq %0" : "+m"(nr_lost));
            words[place[page]] = words[WORDS - 1] = expected[page] = plain(page);
            /* Two of three times the page stays a plain one until its next turn. */
            if (number >> 32 & 1) {
                place[page] = (number >> 40) % WORDS;
                words[place[page]] = expected[page] = number | 1;
            } else if (number >> 33 & 1 && hypercall2(__HYPERVISOR_xen_version, XENVER_extraversion,
                                                      PTR(&words[WORDS - 2])) == 0) {
                place[page] = WORDS - 2;
                expected[page] = words[WORDS - 2];
                if (expected[page] == plain(page))
                    asm volatile("lock incq %0" : "+m"(nr_lost));
            }
        }
        nr_rounds[id]++;
    }
}

void test(void)
{
    load_traps();
    for (unsigned id = 1; id < NR_VCPUS; id++)
        start_vcpu(id, write_and_look);
    print("ready\n");
    /* Some four seconds. */
    u64 end = __builtin_ia32_rdtsc() + 12000000000ul;
    while (__builtin_ia32_rdtsc() < end)
        hypercall_sched(SCHEDOP_yield, NULL);
    stop = 1;
    check(nr_rounds[1] != 0 && nr_rounds[2] != 0, "the other vCPUs ran");
    check_equal(nr_lost, 0, "words that were lost");
    print("rounds: %u %u\n", (unsigned)nr_rounds[1], (unsigned)nr_rounds[2]);
}
