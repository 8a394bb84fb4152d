/* Direct reads and writes of a disk or file, one at a time: `disk PATH SECONDS [ROW...]`. A row each for sequential
 * transfers of 1 MiB and for random ones of 4 KiB: how many, and the seconds that they took. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static const struct row {
    const char *name;
    int is_write, is_random;
    size_t size;
} rows[] = {
    {"write-sequential", 1, 0, 1 << 20},
    {"read-sequential", 0, 0, 1 << 20},
    {"write-random-4k", 1, 1, 4096},
    {"read-random-4k", 0, 1, 4096},
};

static int is_wanted(const char *name, int nr_names, char **names)
{
    for (int i = 0; i < nr_names; i++)
        if (!strcmp(name, names[i]))
            return 1;
    return !nr_names;
}

int main(int argc, char **argv)
{
    double limit = argc > 2 ? atof(argv[2]) : 1;
    int disk = argc > 1 ? open(argv[1], O_RDWR | O_DIRECT) : -1;
    off_t size = lseek(disk, 0, SEEK_END);
    void *buffer;

    if (size < 1 << 20 || posix_memalign(&buffer, 4096, 1 << 20)) {
        perror(argc > 1 ? argv[1] : "disk PATH SECONDS");
        return 1;
    }
    memset(buffer, 0x5a, 1 << 20);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const struct row *row = &rows[i];
        unsigned seed = 1;
        long count = 0;
        double start, elapsed;

        if (!is_wanted(row->name, argc - 3, argv + 3))
            continue;
        printf("begin %s\n", row->name);
        fflush(stdout);
        start = now();
        do {
            off_t block = count % (size / (off_t)row->size);
            ssize_t done;

            if (row->is_random) {
                seed = seed * 1664525 + 1013904223;
                block = (seed >> 4) % (size / (off_t)row->size);
            }
            if (row->is_write)
                done = pwrite(disk, buffer, row->size, block * (off_t)row->size);
            else
                done = pread(disk, buffer, row->size, block * (off_t)row->size);
            if (done != (ssize_t)row->size) {
                perror(row->name);
                return 1;
            }
            count++;
            elapsed = now() - start;
        } while (elapsed < limit);
        printf("row %s %ld %.6f\n", row->name, count, elapsed);
        fflush(stdout);
    }
    printf("BENCH-END\n");
    return 0;
}
