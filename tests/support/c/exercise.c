/*
 * A static C program for the stock kernels: threads, signals, floating point, mmap, processes. Prints one line per part
 * and `EXERCISE-OK` when all of them hold; it must behave the same on any Linux.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int nr_failures;

static void report(const char *part, int ok)
{
    printf("%s %s\n", part, ok ? "ok" : "WRONG");
    fflush(stdout);
    nr_failures += !ok;
}

/* -- threads: a mutex, atomics, thread-local storage and a condition */
#define NR_THREADS 8
#define NR_ROUNDS 20000
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long guarded, counted;
static __thread long mine;

static void *count_up(void *seed)
{
    mine = (long)seed;
    for (int i = 0; i < NR_ROUNDS; i++) {
        pthread_mutex_lock(&lock);
        guarded++;
        pthread_mutex_unlock(&lock);
        __atomic_fetch_add(&counted, 1, __ATOMIC_SEQ_CST);
        mine++;
        if (i % 4000 == 0)
            sched_yield();
    }
    return (void *)mine;
}

static void threads(void)
{
    pthread_t ids[NR_THREADS];
    int ok = 1;
    for (long i = 0; i < NR_THREADS; i++)
        ok &= pthread_create(&ids[i], NULL, count_up, (void *)(i * 100)) == 0;
    for (long i = 0; i < NR_THREADS; i++) {
        void *result;
        pthread_join(ids[i], &result);
        ok &= (long)result == i * 100 + NR_ROUNDS;
    }
    report("threads", ok && guarded == NR_THREADS * NR_ROUNDS && counted == guarded);
}

/* -- signals: a handler, an alternate stack, a timer that interrupts a loop, faults that are caught */
static volatile sig_atomic_t nr_alarms, nr_users;
static sigjmp_buf back;
static volatile int caught_signal;
static void *volatile fault_address;

static void on_alarm(int signal) { (void)signal; nr_alarms++; }
static void on_user(int signal) { (void)signal; nr_users++; }
static void on_fault(int signal, siginfo_t *info, void *context)
{
    (void)context;
    caught_signal = signal;
    fault_address = info->si_addr;
    siglongjmp(back, 1);
}

static int faults_with(int signal, void (*code)(void))
{
    caught_signal = 0;
    if (sigsetjmp(back, 1) == 0)
        code();
    return caught_signal == signal;
}

static void divide(void) { __asm__ volatile("xor %%edx, %%edx\n\t idivl %0" : : "r"(0), "a"(1) : "edx", "cc"); }
static void undefined(void) { __asm__ volatile("ud2"); }
static void touch(void) { *(volatile int *)0x1234 = 1; }
static void privileged(void) { __asm__ volatile("hlt"); }
static void breakpoint(void) { __asm__ volatile("int3"); }

static void signals(void)
{
    struct sigaction action = {.sa_handler = on_alarm};
    struct itimerval timer = {.it_interval = {0, 5000}, .it_value = {0, 5000}};
    double x = 1.0;
    int ok = 1;

    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &timer, NULL);
    time_t end = time(NULL) + 20;
    while (nr_alarms < 10 && time(NULL) < end)
        x = x * 1.0000001 + 1e-9; /* its registers must survive the handler */
    memset(&timer, 0, sizeof(timer));
    setitimer(ITIMER_REAL, &timer, NULL);
    ok &= nr_alarms >= 10 && x > 1.0;

    action.sa_handler = on_user;
    sigaction(SIGUSR1, &action, NULL);
    for (int i = 0; i < 1000; i++)
        raise(SIGUSR1);
    ok &= nr_users == 1000;
    report("signals", ok);

    stack_t stack = {.ss_sp = malloc(65536), .ss_size = 65536};
    sigaltstack(&stack, NULL);
    struct sigaction fault = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    int kinds[] = {SIGFPE, SIGILL, SIGSEGV, SIGTRAP, SIGBUS};
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
        sigaction(kinds[i], &fault, NULL);
    report("division-by-zero", faults_with(SIGFPE, divide));
    report("undefined-opcode", faults_with(SIGILL, undefined));
    report("bad-address", faults_with(SIGSEGV, touch) && fault_address == (void *)0x1234);
    report("privileged", faults_with(SIGSEGV, privileged));
    report("breakpoint", faults_with(SIGTRAP, breakpoint));
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
        signal(kinds[i], SIG_DFL);
}

/* -- floating point: x87, SSE, AVX-sized copies, rounding, and its state across context switches */
static void *integrate(void *from)
{
    double start = *(double *)from, sum = 0;
    for (int i = 0; i < 200000; i++) {
        double at = start + i * 1e-5;
        sum += sin(at) * 1e-5;
        if (i % 20000 == 0)
            sched_yield();
    }
    *(double *)from = sum;
    return NULL;
}

static void floating_point(void)
{
    double values[4] = {0, 0.5, 1, 1.5};
    pthread_t ids[4];
    int ok = 1;
    for (int i = 0; i < 4; i++)
        pthread_create(&ids[i], NULL, integrate, &values[i]);
    for (int i = 0; i < 4; i++)
        pthread_join(ids[i], NULL);
    for (int i = 0; i < 4; i++) {
        double start = i * 0.5, expected = cos(start) - cos(start + 2.0);
        ok &= fabs(values[i] - expected) < 1e-4;
    }
    volatile long double third = 1.0L / 3.0L;
    ok &= fabsl(third * 3.0L - 1.0L) < 1e-18L;
    volatile float single = 16777216.0f;
    ok &= single + 1.0f == 16777216.0f;
    volatile double big = 1e308;
    ok &= isinf(big * 10) && isnan(big * 10 - big * 10);
    char text[64];
    snprintf(text, sizeof(text), "%.15g", sqrt(2.0));
    ok &= strcmp(text, "1.4142135623731") == 0 || strcmp(text, "1.41421356237310") == 0;
    report("floating-point", ok);
}

/* -- mmap: protection, sharing, files, growth, copy on write */
static unsigned char *protected_page;
static void write_protected(void) { *(volatile unsigned char *)protected_page = 1; }

static void memory(void)
{
    size_t length = 64 * 4096;
    int ok = 1;
    unsigned char *shared = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    unsigned char *private = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ok &= shared != MAP_FAILED && private != MAP_FAILED;
    for (size_t i = 0; i < length; i += 4096)
        private[i] = (unsigned char)(i >> 12);
    pid_t child = fork();
    if (child == 0) {
        for (size_t i = 0; i < length; i += 4096) {
            shared[i] = private[i];
            private[i] = 0xee;
        }
        _exit(7);
    }
    int status = 0;
    waitpid(child, &status, 0);
    ok &= WIFEXITED(status) && WEXITSTATUS(status) == 7;
    for (size_t i = 0; i < length; i += 4096)
        ok &= shared[i] == (unsigned char)(i >> 12) && private[i] == (unsigned char)(i >> 12);

    protected_page = private;
    struct sigaction fault = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &fault, NULL);
    mprotect(private, 4096, PROT_READ);
    ok &= faults_with(SIGSEGV, write_protected) && private[0] == 0;
    mprotect(private, 4096, PROT_READ | PROT_WRITE);
    ok &= !faults_with(SIGSEGV, write_protected) && private[0] == 1;

    /* Code made at run time: mov $42, %eax; ret */
    static const unsigned char code[] = {0xb8, 42, 0, 0, 0, 0xc3};
    memcpy(private, code, sizeof(code));
    mprotect(private, 4096, PROT_READ | PROT_EXEC);
    ok &= ((int (*)(void))(void *)private)() == 42;

    unsigned char *moved = mremap(shared, length, length, MREMAP_MAYMOVE);
    ok &= moved != MAP_FAILED && moved[3 * 4096] == 3;
    int file = open("/tmp/exercise", O_RDWR | O_CREAT | O_TRUNC, 0600);
    ok &= file >= 0 && ftruncate(file, 8192) == 0;
    unsigned char *mapped = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    ok &= mapped != MAP_FAILED;
    memcpy(mapped + 4090, "across", 6);
    char text[6];
    ok &= pread(file, text, 6, 4090) == 6 && memcmp(text, "across", 6) == 0;
    munmap(mapped, 8192);
    close(file);
    unlink("/tmp/exercise");
    report("mmap", ok);
}

static void processes(void)
{
    int ok = 1;
    for (int i = 0; i < 50; i++) {
        pid_t child = fork();
        if (child == 0)
            _exit(i);
        int status;
        ok &= waitpid(child, &status, 0) == child && WEXITSTATUS(status) == i;
    }
    pid_t child = fork();
    if (child == 0) {
        undefined();
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    ok &= WIFSIGNALED(status) && WTERMSIG(status) == SIGILL;
    report("processes", ok);
}

static void clocks(void)
{
    struct timespec before, after, nap = {0, 50000000};
    clock_gettime(CLOCK_MONOTONIC, &before);
    nanosleep(&nap, NULL);
    clock_gettime(CLOCK_MONOTONIC, &after);
    long ns = (after.tv_sec - before.tv_sec) * 1000000000l + after.tv_nsec - before.tv_nsec;
    int ok = ns >= 50000000 && ns < 2000000000;
    for (int i = 0; i < 10000; i++) {
        clock_gettime(CLOCK_MONOTONIC, &before);
        ok &= before.tv_sec > after.tv_sec || (before.tv_sec == after.tv_sec && before.tv_nsec >= after.tv_nsec);
        after = before;
    }
    ok &= time(NULL) > 1700000000;
    report("clocks", ok);
}

int main(void)
{
    threads();
    signals();
    floating_point();
    memory();
    processes();
    clocks();
    puts(nr_failures ? "EXERCISE-FAILED" : "EXERCISE-OK");
    return nr_failures != 0;
}
