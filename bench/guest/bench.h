/*
 * What the files of the benchmark program share. The same static binary runs natively and in every guest.
 *
 * A row's function does its operation `count` times and returns a value that depends on the work done in one operation,
 * not on `count`: the harness prints it, and every contestant must print what the native run printed.
 */
#ifndef BENCH_H
#define BENCH_H

#include <stddef.h>
#include <stdint.h>

struct row {
    const char *name;
    uint64_t (*run)(uint64_t count);
    unsigned per_count; /* operations in one count */
};

/* Each array ends with an empty row. */
extern const struct row compute_rows[], digest_rows[], memory_rows[], call_rows[], process_rows[], fault_rows[];
extern const struct row jit_rows[], debian_rows[];

/* Ends the program: a row that cannot do its work has no number. */
_Noreturn void die(const char *what);

/* An empty file on tmpfs, there while the program runs. */
extern const char *const scratch_path;

/* Numbers in no order, the same in each run: Marsaglia's xorshift. */
static inline uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

#endif
