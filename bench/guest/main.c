/*
 * The harness: prints `row <name> <nanoseconds per operation> <checksum>` for each row, then `BENCH-END`.
 *
 *     bench [--ms N] [ROW...]
 *
 * A row's count is raised until it runs for a quarter of N milliseconds, which also warms it up; then such quarters run
 * until N milliseconds are over, at least two, and the fastest counts. So a slow machine does fewer operations, and what
 * disturbs a quarter does not disturb the row. Each row is a process, and is pinned to the CPU it starts on:
 * guests have one.
 */
#define _GNU_SOURCE
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const struct row *const classes[] = {
    compute_rows, digest_rows, memory_rows, call_rows, process_rows, fault_rows, jit_rows,
    debian_rows,
};

static char path[64];
const char *const scratch_path = path;

void die(const char *what)
{
    fprintf(stderr, "bench: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

static uint64_t timed(const struct row *row, uint64_t count, uint64_t *checksum)
{
    uint64_t start = now_ns();
    *checksum = row->run(count);
    uint64_t elapsed = now_ns() - start;
    return elapsed ? elapsed : 1;
}

static void measure(const struct row *row, uint64_t goal_ns)
{
    uint64_t quarter_ns = goal_ns / 4, count = 1, checksum, elapsed;
    while ((elapsed = timed(row, count, &checksum)) < quarter_ns) {
        /* Aims a little above the goal, at most ten times further each turn. */
        uint64_t next = elapsed < quarter_ns / 10 ? count * 10 : count * (quarter_ns + quarter_ns / 8) / elapsed;
        count = next > count ? next : count + 1;
    }
    uint64_t best = UINT64_MAX, total = 0;
    for (int quarters = 0; quarters < 2 || total < goal_ns; quarters++) {
        uint64_t again;
        elapsed = timed(row, count, &again);
        if (again != checksum)
            die(row->name);
        total += elapsed;
        best = elapsed < best ? elapsed : best;
    }
    printf("row %s %.3f %016llx\n", row->name, (double)best / ((double)count * row->per_count),
           (unsigned long long)checksum);
    fflush(stdout);
}

/*
 * In a process of its own, so that no row pays for memory that another one has mapped, and none ends with another one.
 * Returns whether it failed.
 */
static int measure_apart(const struct row *row, uint64_t goal_ns)
{
    int status;
    pid_t child = fork();
    if (child < 0)
        die("fork");
    if (child == 0) {
        cpu_set_t one;
        int cpu = sched_getcpu();
        CPU_ZERO(&one);
        CPU_SET(cpu < 0 ? 0 : cpu, &one);
        if (sched_setaffinity(0, sizeof(one), &one) != 0)
            die("affinity");
        measure(row, goal_ns);
        exit(0);
    }
    if (waitpid(child, &status, 0) != child)
        die("waitpid");
    if (status != 0) {
        printf("failed %s with status %#x\n", row->name, status);
        fflush(stdout); /* the next row's process must not print it again */
    }
    return status != 0;
}

int main(int argc, char **argv)
{
    uint64_t goal_ns = 400000000ull;
    int first = 1, has_failed = 0;
    if (argc > 1 && strcmp(argv[1], "--exit") == 0)
        return 0;
    if (argc > 2 && strcmp(argv[1], "--ms") == 0) {
        goal_ns = strtoull(argv[2], NULL, 10) * 1000000ull;
        first = 3;
    }
    snprintf(path, sizeof(path), "/dev/shm/ring3-bench-%d", getpid());
    int file = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    if (file < 0)
        die(path);
    close(file);
    for (size_t i = 0; i < sizeof(classes) / sizeof(classes[0]); i++)
        for (const struct row *row = classes[i]; row->name; row++) {
            int is_chosen = first == argc && classes[i] != debian_rows;
            for (int k = first; k < argc; k++)
                is_chosen |= strcmp(argv[k], row->name) == 0;
            if (is_chosen)
                has_failed |= measure_apart(row, goal_ns);
        }
    unlink(path);
    puts("BENCH-END");
    return has_failed;
}
