/* Rows of plain computing: integers, calls, dispatch, and doubles. */
#include "bench.h"

#include <math.h>
#include <string.h>

#define SIEVE 65536
static uint64_t sieve_hash(uint64_t count)
{
    static unsigned char composite[SIEVE];
    uint64_t hash = 0;
    while (count--) {
        memset(composite, 0, sizeof(composite));
        for (unsigned i = 2; i < SIEVE; i++)
            if (!composite[i])
                for (unsigned k = i * 2; k < SIEVE; k += i)
                    composite[k] = 1;
        hash = 0xcbf29ce484222325ull; /* FNV-1a */
        for (unsigned i = 0; i < SIEVE; i++)
            hash = (hash ^ composite[i]) * 0x100000001b3ull;
    }
    return hash;
}

__attribute__((noinline)) static uint64_t fibonacci(unsigned n)
{
    return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
}

static uint64_t fib(uint64_t count)
{
    volatile unsigned n = 24;
    uint64_t value = 0;
    while (count--)
        value = fibonacci(n);
    return value;
}

/* A stack machine that counts the steps of 3n+1 sequences: one byte an instruction, operands after it. */
enum opcode { PUSH, LOAD, STORE, ADD, MUL, HALVE, ODD, SAME, BRANCH_IF, BRANCH, STOP };

static uint64_t interpret(const unsigned char *code)
{
    uint64_t stack[16], variables[4] = {0}, *top = stack;
    for (const unsigned char *at = code;;)
        switch ((enum opcode)*at++) {
        case PUSH: *top++ = *at++; break;
        case LOAD: *top++ = variables[*at++]; break;
        case STORE: variables[*at++] = *--top; break;
        case ADD: top--, top[-1] += *top; break;
        case MUL: top--, top[-1] *= *top; break;
        case HALVE: top[-1] >>= 1; break;
        case ODD: top[-1] &= 1; break;
        case SAME: top--, top[-1] = top[-1] == *top; break;
        case BRANCH_IF: at = *--top ? code + *at : at + 1; break;
        case BRANCH: at = code + *at; break;
        case STOP: return variables[2];
        }
}

static uint64_t interpreter(uint64_t count)
{
    static const unsigned char program[] = {
        PUSH, 1, STORE, 0,                                             /*  0: n = 1 */
        LOAD, 0, PUSH, 1, ADD, STORE, 0,                               /*  4: n += 1 */
        LOAD, 0, PUSH, 250, SAME, BRANCH_IF, 60,                       /* 11: n == 250: stop */
        LOAD, 0, STORE, 1,                                             /* 18: x = n */
        LOAD, 1, PUSH, 1, SAME, BRANCH_IF, 4,                          /* 22: x == 1: next n */
        LOAD, 2, PUSH, 1, ADD, STORE, 2,                               /* 29: steps += 1 */
        LOAD, 1, ODD, BRANCH_IF, 48,                                   /* 36: x is odd */
        LOAD, 1, HALVE, STORE, 1, BRANCH, 22,                          /* 41: x /= 2 */
        LOAD, 1, PUSH, 3, MUL, PUSH, 1, ADD, STORE, 1, BRANCH, 22,     /* 48: x = 3x + 1 */
        STOP,                                                          /* 60 */
    };
    uint64_t steps = 0;
    while (count--)
        steps = interpret(program);
    return steps;
}

/* Objects of four kinds in no order, called through the table of their kind. */
struct shape;
struct kind {
    uint64_t (*area)(const struct shape *);
    void (*grow)(struct shape *);
};
struct shape {
    const struct kind *kind;
    uint32_t a, b;
};

static uint64_t area_square(const struct shape *s) { return (uint64_t)s->a * s->a; }
static uint64_t area_oblong(const struct shape *s) { return (uint64_t)s->a * s->b; }
static uint64_t area_frame(const struct shape *s) { return 2 * ((uint64_t)s->a + s->b); }
static uint64_t area_ring(const struct shape *s) { return (uint64_t)s->a * s->a - s->b; }
static void grow_a(struct shape *s) { s->a++; }
static void grow_b(struct shape *s) { s->b += 3; }
static void grow_both(struct shape *s) { s->a++, s->b++; }
static void grow_over(struct shape *s) { s->a = s->b ^ s->a; }

#define SHAPES 1024
static uint64_t virtual_calls(uint64_t count)
{
    static const struct kind kinds[] = {
        {area_square, grow_a}, {area_oblong, grow_b}, {area_frame, grow_both}, {area_ring, grow_over}};
    static struct shape shapes[SHAPES];
    uint64_t sum = 0;
    while (count--) {
        uint64_t seed = 88172645463325252ull;
        for (int i = 0; i < SHAPES; i++)
            shapes[i] = (struct shape){&kinds[next_random(&seed) >> 62], (uint32_t)i, (uint32_t)i * 7};
        sum = 0;
        for (int turn = 0; turn < 16; turn++)
            for (int i = 0; i < SHAPES; i++) {
                sum = sum * 3 + shapes[i].kind->area(&shapes[i]);
                shapes[i].kind->grow(&shapes[i]);
            }
    }
    return sum;
}

static uint64_t bits_of(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

#define DIMENSION 128
static uint64_t matmul(uint64_t count)
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
    }
    double sum = 0;
    for (int i = 0; i < DIMENSION; i++)
        sum += c[i][DIMENSION - 1 - i];
    return bits_of(sum);
}

#define BODIES 5
struct body {
    double position[3], velocity[3], mass;
};

static void advance(struct body *bodies, double dt)
{
    for (int i = 0; i < BODIES; i++)
        for (int k = i + 1; k < BODIES; k++) {
            double d[3], squared = 0;
            for (int axis = 0; axis < 3; axis++) {
                d[axis] = bodies[i].position[axis] - bodies[k].position[axis];
                squared += d[axis] * d[axis];
            }
            double pull = dt / (squared * sqrt(squared));
            for (int axis = 0; axis < 3; axis++) {
                bodies[i].velocity[axis] -= d[axis] * bodies[k].mass * pull;
                bodies[k].velocity[axis] += d[axis] * bodies[i].mass * pull;
            }
        }
    for (int i = 0; i < BODIES; i++)
        for (int axis = 0; axis < 3; axis++)
            bodies[i].position[axis] += dt * bodies[i].velocity[axis];
}

static uint64_t nbody(uint64_t count)
{
    struct body bodies[BODIES];
    while (count--) {
        for (int i = 0; i < BODIES; i++)
            bodies[i] = (struct body){{i * 3.1, i * -1.7, i * 0.2}, {0.1 * i, 0.9 - 0.2 * i, 0.01}, i ? 0.01 : 9.0};
        for (int step = 0; step < 1000; step++)
            advance(bodies, 0.001);
    }
    return bits_of(bodies[0].position[0] + bodies[BODIES - 1].velocity[1]);
}

const struct row compute_rows[] = {
    {"sieve-hash", sieve_hash, 1}, {"fib", fib, 1},       {"interpreter", interpreter, 1},
    {"virtual-calls", virtual_calls, 16 * SHAPES * 2},
    {"matmul", matmul, 1},         {"nbody", nbody, 1000}, {0},
};
