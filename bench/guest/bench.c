/*
 * The benchmark program: the same static binary runs natively, in a QEMU guest and in a Ring3 guest.
 *
 * Prints `row <name> <nanoseconds per operation>` for each row, then `BENCH-END`. Each row is repeated until it has run
 * for at least MIN_NS, so that a slow machine does fewer operations and no machine too few. Arguments choose rows.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MIN_NS 300000000ull

static volatile uint64_t sink;

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

static void null_syscall(uint64_t count)
{
    while (count--)
        syscall(SYS_getppid);
}

static void fork_exit(uint64_t count)
{
    while (count--) {
        pid_t child = fork();
        if (child == 0)
            _exit(0);
        waitpid(child, NULL, 0);
    }
}

static void fork_exec(uint64_t count)
{
    while (count--) {
        pid_t child = fork();
        if (child == 0) {
            execl("/proc/self/exe", "bench", "--exit", NULL);
            _exit(1);
        }
        waitpid(child, NULL, 0);
    }
}

#define FAULT_PAGES 256
static void page_fault(uint64_t count)
{
    while (count--) {
        char *area = mmap(NULL, FAULT_PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (area == MAP_FAILED)
            exit(1);
        madvise(area, FAULT_PAGES * 4096, MADV_NOHUGEPAGE);
        for (int i = 0; i < FAULT_PAGES; i++)
            area[i * 4096] = 1;
        munmap(area, FAULT_PAGES * 4096);
    }
}

static void pipe_ping_pong(uint64_t count)
{
    int to[2], from[2];
    char byte = 0;
    if (pipe(to) != 0 || pipe(from) != 0)
        exit(1);
    pid_t child = fork();
    if (child == 0) {
        close(to[1]);
        while (read(to[0], &byte, 1) == 1)
            if (write(from[1], &byte, 1) != 1)
                break;
        _exit(0);
    }
    while (count--)
        if (write(to[1], &byte, 1) != 1 || read(from[0], &byte, 1) != 1)
            exit(1);
    close(to[1]);
    waitpid(child, NULL, 0);
    close(to[0]);
    close(from[0]);
    close(from[1]);
}

#define SIEVE 65536
static void integer_loop(uint64_t count)
{
    static unsigned char composite[SIEVE];
    while (count--) {
        memset(composite, 0, sizeof(composite));
        uint64_t sum = 0;
        for (unsigned i = 2; i < SIEVE; i++) {
            if (composite[i])
                continue;
            sum = sum * 31 + i;
            for (unsigned k = i * 2; k < SIEVE; k += i)
                composite[k] = 1;
        }
        sink = sum;
    }
}

__attribute__((noinline)) static uint64_t fibonacci(unsigned n)
{
    return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
}

static void call_heavy(uint64_t count)
{
    while (count--)
        sink = fibonacci(20);
}

typedef uint64_t (*operation)(uint64_t);
__attribute__((noinline)) static uint64_t op_add(uint64_t x) { return x + 0x9e3779b97f4a7c15ull; }
__attribute__((noinline)) static uint64_t op_xor(uint64_t x) { return x ^ (x >> 17); }
__attribute__((noinline)) static uint64_t op_mul(uint64_t x) { return x * 5; }
__attribute__((noinline)) static uint64_t op_rot(uint64_t x) { return x << 13 | x >> 51; }

static void indirect_call_heavy(uint64_t count)
{
    static operation volatile table[4] = {op_add, op_xor, op_mul, op_rot};
    uint64_t x = sink | 1;
    while (count--)
        for (int i = 0; i < 1000; i++)
            x = table[x & 3](x);
    sink = x;
}

#define DIMENSION 96
static void matrix_product(uint64_t count)
{
    static double a[DIMENSION][DIMENSION], b[DIMENSION][DIMENSION], c[DIMENSION][DIMENSION];
    for (int i = 0; i < DIMENSION; i++)
        for (int j = 0; j < DIMENSION; j++) {
            a[i][j] = i + j * 0.5;
            b[i][j] = i * 0.25 - j;
        }
    while (count--) {
        memset(c, 0, sizeof(c));
        for (int i = 0; i < DIMENSION; i++)
            for (int k = 0; k < DIMENSION; k++)
                for (int j = 0; j < DIMENSION; j++)
                    c[i][j] += a[i][k] * b[k][j];
        sink = (uint64_t)c[3][5];
    }
}

#define COPY_BYTES (1 << 20)
static void copy_memory(uint64_t count)
{
    static char from[COPY_BYTES], to[COPY_BYTES];
    while (count--) {
        memcpy(to, from, COPY_BYTES);
        __asm__ volatile("" : : "r"(to) : "memory");
        from[count % COPY_BYTES]++;
    }
}

/* SHA-256 after FIPS 180-4, for blocks of 64 bytes. The constants are computed: roots of the first primes. */
static uint32_t round_constant[64];

static void prepare_sha256(void)
{
    unsigned found = 0;
    for (unsigned n = 2; found < 64; n++) {
        int is_prime = 1;
        for (unsigned d = 2; d * d <= n; d++)
            is_prime &= n % d != 0;
        if (is_prime) {
            long double root = 1;
            for (int i = 0; i < 60; i++)
                root -= (root * root * root - n) / (3 * root * root);
            round_constant[found++] = (uint32_t)((root - (unsigned)root) * 4294967296.0L);
        }
    }
}

static uint32_t rotate(uint32_t x, int n) { return x >> n | x << (32 - n); }

static void sha256_block(uint32_t state[8], const unsigned char *block)
{
    uint32_t w[64];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)block[i * 4] << 24 | block[i * 4 + 1] << 16 | block[i * 4 + 2] << 8 | block[i * 4 + 3];
    for (int i = 16; i < 64; i++) {
        uint32_t s0 = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3;
        uint32_t s1 = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10;
        w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
    for (int i = 0; i < 64; i++) {
        uint32_t t1 = h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & f) ^ (~e & g)) + round_constant[i] + w[i];
        uint32_t t2 = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d;
    state[4] += e, state[5] += f, state[6] += g, state[7] += h;
}

#define SHA_BYTES 65536
static void sha256(uint64_t count)
{
    static unsigned char data[SHA_BYTES];
    uint32_t state[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    while (count--)
        for (int at = 0; at < SHA_BYTES; at += 64)
            sha256_block(state, data + at);
    sink = state[0];
}

static void sh_loop(uint64_t count)
{
    char script[128];
    snprintf(script, sizeof(script), "i=0; while [ $i -lt %llu ]; do i=$((i+1)); x=${x%%?}y; done",
             (unsigned long long)count * 1000);
    pid_t child = fork();
    if (child == 0) {
        execl("/bin/busybox", "sh", "-c", script, NULL);
        _exit(1);
    }
    int status;
    waitpid(child, &status, 0);
    if (status != 0)
        exit(1);
}

static const struct row {
    const char *name;
    void (*run)(uint64_t count);
    unsigned per_count; /* operations in one count */
} rows[] = {
    {"null-syscall", null_syscall, 1},
    {"fork-exit", fork_exit, 1},
    {"fork-exec", fork_exec, 1},
    {"page-fault", page_fault, FAULT_PAGES},
    {"pipe-ping-pong", pipe_ping_pong, 1},
    {"integer-loop", integer_loop, 1},
    {"call-heavy", call_heavy, 1},
    {"indirect-call-heavy", indirect_call_heavy, 1000},
    {"matrix-product", matrix_product, 1},
    {"memcpy-1MiB", copy_memory, 1},
    {"sha256-64KiB", sha256, 1},
    {"sh-loop", sh_loop, 1000},
};

static void measure(const struct row *row)
{
    uint64_t count = 1, elapsed;
    for (;;) {
        uint64_t start = now_ns();
        row->run(count);
        elapsed = now_ns() - start;
        if (elapsed >= MIN_NS)
            break;
        /* Aim a little above the goal, at most ten times further each turn. */
        uint64_t next = elapsed < MIN_NS / 10 ? count * 10 : count * (MIN_NS + MIN_NS / 8) / elapsed;
        count = next > count ? next : count + 1;
    }
    printf("row %s %.2f\n", row->name, (double)elapsed / ((double)count * row->per_count));
    fflush(stdout);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--exit") == 0)
        return 0;
    prepare_sha256();
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        int is_chosen = argc < 2;
        for (int k = 1; k < argc; k++)
            is_chosen |= strcmp(argv[k], rows[i].name) == 0;
        if (is_chosen)
            measure(&rows[i]);
    }
    puts("BENCH-END");
    return 0;
}
