/* Rows of memory traffic. Buffers are mapped as programs map them: huge pages where the kernel gives them. */
#define _GNU_SOURCE
#include "bench.h"

#include <string.h>
#include <sys/mman.h>

#define MIB (1u << 20)

static unsigned char *allocate(size_t size)
{
    void *area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (area == MAP_FAILED)
        die("mmap");
    return area;
}

static uint64_t copy(uint64_t count, size_t size)
{
    static unsigned char *from, *to;
    if (!from) {
        from = allocate(size);
        to = allocate(size);
        memset(from, 5, size);
    }
    while (count--) {
        memcpy(to, from, size);
        __asm__ volatile("" : : "r"(to) : "memory");
    }
    return (uint64_t)to[0] << 8 | to[size - 1];
}

static uint64_t fill(uint64_t count, size_t size)
{
    static unsigned char *area;
    if (!area)
        area = allocate(size);
    while (count--) {
        memset(area, 7, size);
        __asm__ volatile("" : : "r"(area) : "memory");
    }
    return (uint64_t)area[0] << 8 | area[size - 1];
}

static uint64_t copy_1(uint64_t count) { return copy(count, MIB); }
static uint64_t copy_64(uint64_t count) { return copy(count, 64 * MIB); }
static uint64_t fill_1(uint64_t count) { return fill(count, MIB); }
static uint64_t fill_64(uint64_t count) { return fill(count, 64 * MIB); }

/* One cycle through all cache lines of 32 MiB in no order (Sattolo's shuffle), so that each load waits for the last. */
#define LINES (32 * MIB / 64)
#define STEPS 1000
static uint64_t chase(uint64_t count)
{
    static struct line {
        uint32_t next;
        char rest[60];
    } *lines;
    if (!lines) {
        uint64_t seed = 88172645463325252ull;
        lines = (struct line *)allocate(sizeof(*lines) * LINES);
        for (uint32_t i = 0; i < LINES; i++)
            lines[i].next = i;
        for (uint32_t i = LINES - 1; i > 0; i--) {
            uint32_t k = (uint32_t)(next_random(&seed) % i), kept = lines[i].next;
            lines[i].next = lines[k].next;
            lines[k].next = kept;
        }
    }
    /* Goes on where it stopped: a short round would find its lines in the cache. */
    static uint32_t at;
    while (count--)
        for (int step = 0; step < STEPS; step++)
            at = lines[at].next;
    return at < LINES;
}

const struct row memory_rows[] = {
    {"memcpy-1M", copy_1, 1},   {"memset-1M", fill_1, 1},          {"memcpy-64M", copy_64, 1},
    {"memset-64M", fill_64, 1}, {"pointer-chase", chase, STEPS}, {0},
};
