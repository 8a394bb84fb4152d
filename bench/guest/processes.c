/* Rows of processes: switches between two, and new ones. */
#define _GNU_SOURCE
#include "bench.h"

#include <stdio.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* Sends a byte to a child and back. `to` and `from` are pairs (reading end, writing end). */
static void ping_pong(uint64_t count, const int to[2], const int from[2])
{
    char byte = 0;
    pid_t child = fork();
    if (child < 0)
        die("fork");
    if (child == 0) {
        close(to[1]);
        while (read(to[0], &byte, 1) == 1)
            if (write(from[1], &byte, 1) != 1)
                break;
        _exit(0);
    }
    while (count--)
        if (write(to[1], &byte, 1) != 1 || read(from[0], &byte, 1) != 1)
            die("ping-pong");
    close(to[1]);
    waitpid(child, NULL, 0);
}

static uint64_t pipe_ping_pong(uint64_t count)
{
    int to[2], from[2];
    if (pipe(to) != 0 || pipe(from) != 0)
        die("pipe");
    ping_pong(count, to, from);
    close(to[0]);
    close(from[0]);
    close(from[1]);
    return 0;
}

static uint64_t unix_ping_pong(uint64_t count)
{
    int ends[2];
    char byte = 0;
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0)
        die("socketpair");
    pid_t child = fork();
    if (child < 0)
        die("fork");
    if (child == 0) {
        close(ends[0]);
        while (read(ends[1], &byte, 1) == 1)
            if (write(ends[1], &byte, 1) != 1)
                break;
        _exit(0);
    }
    close(ends[1]);
    while (count--)
        if (write(ends[0], &byte, 1) != 1 || read(ends[0], &byte, 1) != 1)
            die("ping-pong");
    close(ends[0]);
    waitpid(child, NULL, 0);
    return 0;
}

/* Forks; the child runs the program, or ends at once where there is none. */
static void run_child(const char *program, const char *const *arguments)
{
    int status;
    pid_t child = fork();
    if (child < 0)
        die("fork");
    if (child == 0) {
        if (program)
            execv(program, (char *const *)arguments);
        _exit(program != NULL);
    }
    if (waitpid(child, &status, 0) != child || status != 0)
        die(program ? program : "child");
}

static uint64_t fork_exit(uint64_t count)
{
    while (count--)
        run_child(NULL, NULL);
    return 0;
}

static uint64_t fork_exec(uint64_t count)
{
    while (count--)
        run_child("/proc/self/exe", (const char *[]){"bench", "--exit", NULL});
    return 0;
}

/* A shell that starts a program, which ends at once. */
static uint64_t shell(uint64_t count)
{
    char own[256], script[300];
    ssize_t length = readlink("/proc/self/exe", own, sizeof(own) - 1);
    if (length < 0)
        die("readlink");
    own[length] = 0;
    snprintf(script, sizeof(script), "%s --exit", own);
    while (count--)
        run_child("/bin/busybox", (const char *[]){"sh", "-c", script, NULL});
    return 0;
}

const struct row process_rows[] = {
    {"pipe-ping-pong", pipe_ping_pong, 1}, {"unix-ping-pong", unix_ping_pong, 1}, {"fork-exit", fork_exit, 1},
    {"fork-exec", fork_exec, 1},           {"sh-c", shell, 1},                    {0},
};
