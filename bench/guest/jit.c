/* Rows of code that is written and run at once: a small function, each time with other content at the same place. */
#define _GNU_SOURCE
#include "bench.h"

#include <string.h>
#include <sys/mman.h>

#define AREA_BYTES 4096

typedef uint32_t (*function)(void);

static unsigned char *put(unsigned char *to, const char *opcode, size_t size, uint32_t operand)
{
    memcpy(to, opcode, size);
    memcpy(to + size, &operand, sizeof(operand));
    return to + size + sizeof(operand);
}

/* Writes a function of 53 bytes that computes with constants made from `seed`, and returns what it must return. */
static uint32_t write_function(unsigned char *to, uint32_t seed)
{
    uint32_t value = seed;
    to = put(to, "\xb8", 1, seed); /* mov $seed, %eax */
    for (uint32_t i = 1; i <= 3; i++) {
        to = put(to, "\x05", 1, seed + i); /* add */
        to = put(to, "\x35", 1, seed * i); /* xor */
        to = put(to, "\x69\xc0", 2, i | 1); /* imul */
        value = ((value + (seed + i)) ^ (seed * i)) * (i | 1);
    }
    *to = 0xc3; /* ret */
    return value;
}

static uint64_t run_jit(uint64_t count, int is_protected)
{
    int both = PROT_READ | PROT_WRITE | PROT_EXEC;
    unsigned char *area = mmap(NULL, AREA_BYTES, both, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED)
        die("mmap of code");
    for (uint64_t i = 1; i <= count; i++) {
        if (is_protected && mprotect(area, AREA_BYTES, PROT_READ | PROT_WRITE) != 0)
            die("mprotect");
        uint32_t expected = write_function(area, (uint32_t)i);
        if (is_protected && mprotect(area, AREA_BYTES, PROT_READ | PROT_EXEC) != 0)
            die("mprotect");
        if (((function)(uintptr_t)area)() != expected)
            die("stale code ran");
    }
    munmap(area, AREA_BYTES);
    return 0;
}

static uint64_t jit_rwx(uint64_t count) { return run_jit(count, 0); }
static uint64_t jit_mprotect(uint64_t count) { return run_jit(count, 1); }

const struct row jit_rows[] = {{"jit-rwx", jit_rwx, 1}, {"jit-mprotect", jit_mprotect, 1}, {0}};
