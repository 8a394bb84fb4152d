/*
 * Rows of programs of a Debian root file system, measured only where they are asked for by name: each starts a program
 * and returns a hash of what it printed or wrote. The files in /bench are made by bench/workloads.py.
 */
#define _GNU_SOURCE
#include "bench.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#define OBJECT "/tmp/ring3-bench.o"

/* Returns the FNV-1a hash of all that can be read. */
static uint64_t hash_of(int file)
{
    unsigned char data[4096];
    uint64_t hash = 0xcbf29ce484222325ull;
    ssize_t length;
    while ((length = read(file, data, sizeof(data))) > 0)
        for (ssize_t i = 0; i < length; i++)
            hash = (hash ^ data[i]) * 0x100000001b3ull;
    return hash;
}

static uint64_t run_program(const char *const *arguments)
{
    int ends[2], status;
    if (pipe(ends) != 0)
        die("pipe");
    pid_t child = fork();
    if (child < 0)
        die("fork");
    if (child == 0) {
        dup2(ends[1], STDOUT_FILENO);
        close(ends[0]);
        close(ends[1]);
        execv(arguments[0], (char *const *)arguments);
        _exit(127);
    }
    close(ends[1]);
    uint64_t hash = hash_of(ends[0]);
    close(ends[0]);
    if (waitpid(child, &status, 0) != child)
        die("waitpid");
    if (status != 0) {
        fprintf(stderr, "bench: %s ended with status %#x\n", arguments[0], status);
        exit(1);
    }
    return hash;
}

static uint64_t repeat(uint64_t count, const char *const *arguments)
{
    uint64_t hash = 0;
    while (count--)
        hash = run_program(arguments);
    return hash;
}

static uint64_t python_start(uint64_t count)
{
    return repeat(count, (const char *[]){"/usr/bin/python3", "-c", "pass", NULL});
}

static uint64_t node_start(uint64_t count)
{
    return repeat(count, (const char *[]){"/usr/bin/node", "-e", "0", NULL});
}

static uint64_t node_loop(uint64_t count)
{
    return repeat(count, (const char *[]){"/usr/bin/node", "/bench/loop.js", NULL});
}

static uint64_t luajit_loop(uint64_t count)
{
    return repeat(count, (const char *[]){"/usr/bin/luajit", "/bench/loop.lua", NULL});
}

static uint64_t gcc_1000(uint64_t count)
{
    repeat(count, (const char *[]){"/usr/bin/gcc", "-O2", "-c", "-o", OBJECT, "/bench/source.c", NULL});
    int object = open(OBJECT, O_RDONLY);
    if (object < 0)
        die(OBJECT);
    uint64_t hash = hash_of(object);
    close(object);
    unlink(OBJECT);
    return hash;
}

const struct row debian_rows[] = {
    {"python-start", python_start, 1}, {"node-start", node_start, 1},   {"gcc-1000", gcc_1000, 1},
    {"node-loop", node_loop, 1},       {"luajit-loop", luajit_loop, 1}, {0},
};
