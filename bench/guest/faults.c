/* Rows of page faults. */
#define _GNU_SOURCE
#include "bench.h"

#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#define PAGE 4096

static unsigned char *map_pages(size_t nr_pages)
{
    unsigned char *area = mmap(NULL, nr_pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED)
        die("mmap");
    return area;
}

#define TOUCHED 16
static uint64_t mmap_touch(uint64_t count)
{
    while (count--) {
        unsigned char *area = map_pages(TOUCHED);
        for (int i = 0; i < TOUCHED; i++)
            area[i * PAGE] = 1;
        munmap(area, TOUCHED * PAGE);
    }
    return 0;
}

/* Pages are given back and touched again, so that nearly all of the time is in the fault itself. */
#define FAULTED 256
static uint64_t page_fault(uint64_t count)
{
    unsigned char *area = map_pages(FAULTED);
    madvise(area, FAULTED * PAGE, MADV_NOHUGEPAGE);
    while (count--) {
        for (int i = 0; i < FAULTED; i++)
            area[i * PAGE] = 1;
        madvise(area, FAULTED * PAGE, MADV_DONTNEED);
    }
    munmap(area, FAULTED * PAGE);
    return 0;
}

static volatile uint64_t nr_refused;

/* Goes on behind the store that faulted. */
static void on_refused(int number, siginfo_t *info, void *context)
{
    (void)number;
    (void)info;
    nr_refused = nr_refused + 1;
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] += 3;
}

static uint64_t protection_fault(uint64_t count)
{
    uint64_t expected = count;
    struct sigaction action = {.sa_sigaction = on_refused, .sa_flags = SA_SIGINFO}, before;
    unsigned char *area = map_pages(1);
    area[0] = 1;
    if (mprotect(area, PAGE, PROT_READ) != 0 || sigaction(SIGSEGV, &action, &before) != 0)
        die("mprotect");
    nr_refused = 0;
    while (count--)
        __asm__ volatile("movb $0, (%%rdi)" : : "D"(area) : "memory"); /* c6 07 00 */
    sigaction(SIGSEGV, &before, NULL);
    munmap(area, PAGE);
    return nr_refused == expected;
}

const struct row fault_rows[] = {
    {"mmap-touch", mmap_touch, 1}, {"page-fault", page_fault, FAULTED}, {"protection-fault", protection_fault, 1}, {0},
};
