/* Rows of system calls, clocks, files and signals. */
#define _GNU_SOURCE
#include "bench.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static uint64_t null_call(uint64_t count)
{
    while (count--)
        syscall(SYS_getppid);
    return 0;
}

static uint64_t clock_vdso(uint64_t count)
{
    struct timespec now;
    while (count--)
        if (clock_gettime(CLOCK_MONOTONIC, &now) != 0)
            die("clock_gettime");
    return 0;
}

static uint64_t stat_file(uint64_t count)
{
    struct stat status;
    while (count--)
        if (stat(scratch_path, &status) != 0)
            die("stat");
    return (uint64_t)status.st_size;
}

static uint64_t open_close(uint64_t count)
{
    while (count--) {
        int file = open(scratch_path, O_RDONLY);
        if (file < 0)
            die("open");
        close(file);
    }
    return 0;
}

static uint64_t create_delete(uint64_t count)
{
    char path[80];
    snprintf(path, sizeof(path), "%s.new", scratch_path);
    while (count--) {
        int file = open(path, O_CREAT | O_EXCL | O_WRONLY, 0600);
        if (file < 0)
            die("create");
        close(file);
        if (unlink(path) != 0)
            die("unlink");
    }
    return 0;
}

static volatile uint64_t nr_delivered;

static void on_signal(int number)
{
    (void)number;
    nr_delivered = nr_delivered + 1;
}

static uint64_t signal_install(uint64_t count)
{
    struct sigaction action = {.sa_handler = on_signal};
    while (count--)
        if (sigaction(SIGUSR1, &action, NULL) != 0)
            die("sigaction");
    return 0;
}

static uint64_t signal_deliver(uint64_t count)
{
    uint64_t expected = count;
    pid_t self = getpid();
    signal_install(1);
    nr_delivered = 0;
    while (count--)
        kill(self, SIGUSR1);
    return nr_delivered == expected;
}

const struct row call_rows[] = {
    {"null-call", null_call, 1},           {"clock-vdso", clock_vdso, 1},         {"stat", stat_file, 1},
    {"open-close", open_close, 1},         {"create-delete", create_delete, 1},   {"signal-install", signal_install, 1},
    {"signal-deliver", signal_deliver, 1}, {0},
};
