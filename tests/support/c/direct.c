/* Computes for long enough to run directly, and between the phases changes all that the mappings of such a run rest on:
 * page tables, protections, code, signals, threads. Each check compares with what the same steps must give on any CPU. */
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            printf("direct: line %d: %s\n", __LINE__, #condition); \
            exit(1); \
        } \
    } while (0)

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* Integer, SSE and x87 work whose result depends on every step; touches `pages` pages. */
static uint64_t compute(uint64_t seed, uint64_t *memory, size_t pages, int rounds)
{
    double sse = (double)(seed & 0xff) + 0.5;
    long double x87 = 1.0L;
    uint64_t x = seed | 1;
    for (int i = 0; i < rounds; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        sse = sse * 0.999 + (double)(x & 15);
        if (!(i & 63))
            x87 = x87 * 0.5L + 1.0L / (long double)((x & 7) + 1);
        memory[(x % (pages * (PAGE / 8)))] += x;
    }
    uint64_t bits, sum = 0;
    double rest = (double)x87;
    memcpy(&bits, &sse, 8);
    sum += bits;
    memcpy(&bits, &rest, 8);
    sum += bits;
    for (size_t i = 0; i < pages * (PAGE / 8); i++)
        sum = sum * 31 + memory[i];
    return sum;
}

static uint64_t *new_pages(size_t pages)
{
    void *at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED);
    return at;
}

static uint64_t reference(uint64_t seed, size_t pages, int rounds)
{
    uint64_t *memory = new_pages(pages);
    uint64_t result = compute(seed, memory, pages, rounds);
    munmap(memory, pages * PAGE);
    return result;
}

static void spin_ms(uint64_t ms)
{
    /* Looks at the clock rarely: a direct run must not be interrupted by it, even where it is a system call. */
    volatile uint64_t x = 1;
    for (uint64_t end = now_ms() + ms; now_ms() < end;)
        for (int i = 0; i < 3000000; i++)
            x += x * 3 + 1;
}

static void test_results(void)
{
    uint64_t first = reference(42, 16, 30000000);
    for (int i = 0; i < 3; i++)
        CHECK(reference(42, 16, 30000000) == first);
}

/* After fork, parent and child write to the same pages, which are copied under them. */
static void test_fork(void)
{
    uint64_t *memory = new_pages(8);
    uint64_t expected = reference(7, 8, 8000000);
    for (int i = 0; i < 3; i++) {
        memset(memory, 0, 8 * PAGE);
        spin_ms(20);
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            memory[0] = 99;
            compute(8, memory, 8, 8000000);
            _exit(0);
        }
        CHECK(compute(7, memory, 8, 8000000) == expected);
        int status;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
    }
}

/* What is mapped at an address changes between phases. */
static void test_remapping(void)
{
    uint64_t *at = new_pages(4);
    for (uint64_t i = 1; i < 12; i++) {
        CHECK(mmap(at, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at);
        CHECK(at[0] == 0 && at[3 * PAGE / 8] == 0);
        at[0] = at[3 * PAGE / 8] = i;
        spin_ms(15);
        CHECK(at[0] == i && at[3 * PAGE / 8] == i);
        uint64_t *other = new_pages(4);
        CHECK(mremap(at, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, other) == other);
        spin_ms(5);
        CHECK(other[0] == i && other[3 * PAGE / 8] == i);
        munmap(other, 4 * PAGE);
    }
}

static sigjmp_buf escape;
static volatile int faults;

static void on_fault(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)info, (void)context;
    faults++;
    siglongjmp(escape, 1);
}

/* Rights taken away hold at once, in the middle of a computing phase as well. */
static void test_protection(void)
{
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSEGV, &action, NULL);
    volatile uint64_t *page = new_pages(1);
    for (int i = 0; i < 10; i++) {
        page[1] = (uint64_t)i;
        spin_ms(10);
        CHECK(mprotect((void *)page, PAGE, i & 1 ? PROT_NONE : PROT_READ) == 0);
        int before = faults;
        if (!sigsetjmp(escape, 1)) {
            page[1] = 77;
            CHECK(!"stored to a protected page");
        }
        CHECK(faults == before + 1);
        CHECK(mprotect((void *)page, PAGE, PROT_READ | PROT_WRITE) == 0);
        CHECK(page[1] == (uint64_t)i);
    }
    signal(SIGSEGV, SIG_DFL);
}

/* A function that is written again and again, run in long phases and between system calls. */
static void test_written_code(void)
{
    unsigned char *code = mmap(NULL, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(code != MAP_FAILED);
    for (uint32_t i = 0; i < 3000000; i++) {
        code[0] = 0xb8; /* mov $i, %eax */
        memcpy(code + 1, &i, 4);
        code[5] = 0xc3;
        CHECK(((uint32_t (*)(void))(uintptr_t)code)() == i);
        if (i > 2000000 && i % 4096 == 0)
            getppid();
        if (i % 1000000 == 0) {
            mprotect(code, PAGE, PROT_READ | PROT_EXEC);
            CHECK(((uint32_t (*)(void))(uintptr_t)code)() == i);
            mprotect(code, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
        }
    }
}

static volatile int alarms;

static void on_alarm(int signal)
{
    (void)signal;
    double x = alarms;
    alarms++;
    /* Uses vector and x87 registers, which the interrupted code must find as they were. */
    volatile long double y = (long double)x * 3.0L;
    volatile double z = x / 3.0;
    (void)y, (void)z;
}

static void test_signals(void)
{
    uint64_t expected = reference(3, 4, 40000000);
    signal(SIGALRM, on_alarm);
    struct itimerval every = {{0, 1000}, {0, 1000}};
    setitimer(ITIMER_REAL, &every, NULL);
    for (int i = 0; i < 3; i++)
        CHECK(reference(3, 4, 40000000) == expected);
    struct itimerval never = {{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &never, NULL);
    CHECK(alarms > 10);
}

static void cpuid(uint32_t leaf, uint32_t out[4])
{
    __asm__ volatile("cpuid" : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3]) : "a"(leaf), "c"(0));
}

static void test_cpuid(void)
{
    uint32_t first[4], later[4];
    for (uint32_t leaf = 1; leaf < 8; leaf += 6) {
        cpuid(leaf, first);
        for (int i = 0; i < 4; i++) {
            spin_ms(15);
            cpuid(leaf, later);
            CHECK(memcmp(first + 2, later + 2, 8) == 0);
        }
    }
}

static atomic_ulong counter, stop;
static uint64_t *shared_page;

static void *add_up(void *unused)
{
    (void)unused;
    for (int i = 0; i < 5000000; i++) {
        atomic_fetch_add(&counter, 1);
        if (!(i & 1023))
            __atomic_store_n(shared_page, (uint64_t)i, __ATOMIC_RELAXED);
    }
    return NULL;
}

static void *disturb(void *unused)
{
    (void)unused;
    while (!atomic_load(&stop)) {
        uint64_t *page = new_pages(2);
        page[0] = page[PAGE / 8] = 1;
        mprotect(page, PAGE, PROT_READ);
        munmap(page, 2 * PAGE);
        for (volatile int i = 0; i < 200000; i++)
            ;
    }
    return NULL;
}

static void test_threads(void)
{
    pthread_t adders[3], other;
    shared_page = new_pages(1);
    CHECK(pthread_create(&other, NULL, disturb, NULL) == 0);
    for (int i = 0; i < 3; i++)
        CHECK(pthread_create(&adders[i], NULL, add_up, NULL) == 0);
    for (int i = 0; i < 3; i++)
        pthread_join(adders[i], NULL);
    atomic_store(&stop, 1);
    pthread_join(other, NULL);
    CHECK(atomic_load(&counter) == 15000000);
}

int main(void)
{
    test_results();
    test_fork();
    test_remapping();
    test_protection();
    test_written_code();
    test_signals();
    test_cpuid();
    test_threads();
    puts("DIRECT-OK");
    return 0;
}
