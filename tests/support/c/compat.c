/*
 * A static 32-bit C program: what 32-bit code has and 64-bit code lacks, on pseudo-random operands, and the way between the
 * two. Prints a checksum of each part's results; it must print the same on the host as in a guest.
 */
#define _GNU_SOURCE
#include <asm/ldt.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NR_CASES 2000
enum { CF = 1, PF = 4, AF = 16, ZF = 64, SF = 128, OF = 2048, ALL = CF | PF | AF | ZF | SF | OF };

static uint32_t state = 12345, sum;

static uint32_t next(void)
{
    state ^= state << 13;
    state ^= state >> 17;
    return state ^= state << 5;
}

static void mix(uint32_t value) { sum = (sum << 5 | sum >> 27) * 0x9e3779b1u ^ value; }

static void report(const char *part)
{
    printf("compat: %s %08x\n", part, sum);
    fflush(stdout);
    sum = 0;
}

/* Runs one instruction on EAX, ECX and flags; mixes EAX, ECX and the flags that it defines. */
#define ONE(part, code, defined)                                                                                     \
    do {                                                                                                             \
        for (int i = 0; i < NR_CASES; i++) {                                                                         \
            uint32_t a = next(), c = next(), flags = (next() & ALL) | 0x202;                                         \
            __asm__ volatile("pushl %2\n\t popfl\n\t" code "\n\t pushfl\n\t popl %2"                                 \
                             : "+a"(a), "+c"(c), "+S"(flags) : "d"(next()), "b"(next()) : "cc", "memory");             \
            mix(a);                                                                                                  \
            mix(c);                                                                                                  \
            mix(flags & (defined));                                                                                  \
        }                                                                                                            \
        report(part);                                                                                                \
    } while (0)

static void arithmetic(void)
{
    ONE("daa", "daa", CF | PF | AF | ZF | SF);
    ONE("das", "das", CF | PF | AF | ZF | SF);
    /* Real digits and results of adding them: other values depend on the vendor. */
    ONE("aaa", "and $0x0f0f, %%ax\n\t add %%ah, %%al\n\t aaa", CF | AF);
    ONE("aas", "and $0x0f0f, %%ax\n\t sub %%ah, %%al\n\t aas", CF | AF);
    ONE("aam", "aam", PF | ZF | SF);
    ONE("aam-7", "aam $7", PF | ZF | SF);
    ONE("aad", "aad", PF | ZF | SF);
    ONE("aad-13", "aad $13", PF | ZF | SF);
    ONE("salc", ".byte 0xd6", ALL);
    ONE("inc", "inc %%eax\n\t inc %%cx", ALL);
    ONE("dec", "dec %%ax\n\t dec %%ecx", ALL);
    ONE("opcode-82", ".byte 0x82, 0xd4, 0x7f", ALL); /* adc $0x7f, %ah */
    ONE("high-bytes", "add %%ch, %%al\n\t xchg %%ah, %%cl\n\t sbb %%bh, %%ch\n\t mov %%dh, %%ah", ALL);
    ONE("shifts", "shld $7, %%edx, %%eax\n\t rcl $3, %%ecx\n\t sar %%cl, %%eax\n\t bswap %%ecx", 0);
    ONE("multiply", "mul %%ecx\n\t imul $-77, %%edx, %%ecx", 0);
    ONE("arpl", "arpl %%cx, %%ax", ZF);
    ONE("lahf", "lahf\n\t xor $0x55, %%ah\n\t sahf", ALL);
}

static uint32_t words[64] __attribute__((used));
static uint8_t table[256] __attribute__((used));

static void memory(void)
{
    for (int i = 0; i < 256; i++)
        table[i] = (uint8_t)(i * 7 + 3);
    for (int i = 0; i < 64; i++)
        words[i] = next();
    ONE("xlat", "push %%ebx\n\t lea table, %%ebx\n\t xlat\n\t pop %%ebx", ALL);
    ONE("moffs", "mov %%eax, words\n\t movb words+1, %%al\n\t movw %%ax, words+2\n\t mov words, %%eax", ALL);
    ONE("bit-string", "and $2047, %%ecx\n\t btc %%ecx, words\n\t mov words+12, %%eax", CF);
    ONE("compare-8", "mov words, %%eax\n\t mov words+4, %%edx\n\t lock cmpxchg8b words\n\t", ZF);
    ONE("negative-index", "or $-64, %%ecx\n\t add words+256(,%%ecx,4), %%eax", ALL);
    ONE("stack",
        "push %%eax\n\t pushl $-5\n\t pushw %%cx\n\t pushw $0x1234\n\t popl %%ecx\n\t pop %%eax\n\t"
        "xchg %%eax, (%%esp)\n\t pop %%edx\n\t add %%edx, %%eax", 0);
    ONE("pusha",
        "pusha\n\t addl $3, 28(%%esp)\n\t rorl $9, 24(%%esp)\n\t popa\n\t pushaw\n\t popaw", 0);
    ONE("enter",
        "push %%ebp\n\t mov %%esp, %%ebp\n\t pushl $77\n\t enter $24, $2\n\t mov -4(%%ebp), %%eax\n\t"
        "mov -8(%%ebp), %%ecx\n\t sub %%ebp, %%ecx\n\t leave\n\t add $4, %%esp\n\t pop %%ebp", 0);
    ONE("loopw", "and $0xf00ff, %%ecx\n\t or $1, %%ecx\n\t 1: inc %%eax\n\t .byte 0x67, 0xe2, 0xfc", 0);
    ONE("jcxz", "and $0x70003, %%ecx\n\t .byte 0x67, 0xe3, 0x01\n\t inc %%eax", 0);
    ONE("strings",
        "push %%esi\n\t push %%edi\n\t lea words, %%esi\n\t lea words+37, %%edi\n\t and $15, %%ecx\n\t rep movsb\n\t"
        "mov %%edi, %%eax\n\t lea words, %%ecx\n\t sub %%ecx, %%eax\n\t lea words, %%edi\n\t mov $0, %%ecx\n\t"
        "pop %%edi\n\t pop %%esi", 0);
    for (int i = 0; i < 64; i++)
        mix(words[i]);
    report("memory");
}

/* -- faults that 64-bit code cannot raise */
static sigjmp_buf back;
static void on_fault(int signal) { siglongjmp(back, signal); }

static void faults(void)
{
    static int32_t limits[2] = {-3, 9};
    signal(SIGSEGV, on_fault);
    for (volatile int32_t index = -5; index < 12; index++) {
        int raised = sigsetjmp(back, 1);
        if (raised == 0)
            __asm__ volatile("bound %0, %1" : : "r"((int32_t)index), "m"(limits));
        mix((uint32_t)raised);
    }
    report("bound");
    for (volatile int i = 0; i < 4; i++) {
        int raised = sigsetjmp(back, 1);
        if (raised == 0)
            __asm__ volatile("addb %0, %0\n\t into" : : "q"((char)(i * 0x30)) : "cc");
        mix((uint32_t)raised);
    }
    report("into");
}

/* -- segments: a data segment of the LDT, one of the GDT, far pointers */
static uint32_t in_segment[4] = {0x11111111, 0x22222222, 0x33333333, 0x44444444};

static void segments(void)
{
    struct user_desc entry = {
        .entry_number = 5, .base_addr = (unsigned)(uintptr_t)in_segment, .limit = 0xfffff, .seg_32bit = 1,
        .limit_in_pages = 1, .useable = 1,
    };
    uint32_t value;
    uint16_t saved, now;
    mix((uint32_t)syscall(SYS_modify_ldt, 1, &entry, sizeof(entry)));
    __asm__ volatile("mov %%fs, %0\n\t mov %2, %%fs\n\t mov %%fs:4, %1\n\t mov %%fs, %2"
                     : "=&r"(saved), "=&r"(value), "+r"((uint32_t){5 << 3 | 7}));
    mix(value);
    /* 16-bit addresses, which no process has memory at, reach it through the segment. */
    __asm__ volatile("mov $4, %%ebx\n\t mov $0xffff0004, %%esi\n\t .byte 0x64, 0x67, 0x8b, 0x00" /* mov fs:(bx,si), eax */
                     : "=a"(value) : : "ebx", "esi");
    mix(value);
    __asm__ volatile(".byte 0x64, 0x67, 0xa1, 0x0c, 0x00" : "=a"(value)); /* mov fs:12, eax */
    mix(value);
    syscall(SYS_getppid); /* the segment survives a system call */
    __asm__ volatile("mov %%fs:8, %0" : "=r"(value));
    mix(value);
    __asm__ volatile("mov %0, %%fs" : : "r"(saved));
    report("ldt");

    entry.entry_number = (unsigned)-1;
    mix((uint32_t)syscall(SYS_set_thread_area, &entry));
    __asm__ volatile("mov %1, %%fs\n\t mov %%fs:12, %0" : "=&r"(value) : "r"(entry.entry_number << 3 | 3));
    mix(value);
    usleep(1000); /* ... and a context switch */
    __asm__ volatile("mov %%fs:0, %0\n\t mov %1, %%fs" : "=&r"(value) : "r"(saved));
    mix(value);
    report("tls");

    struct { uint32_t offset; uint16_t selector; } __attribute__((packed)) pointer = {0x1234, 0};
    __asm__ volatile("mov %%ds, %0" : "=r"(now));
    pointer.selector = now;
    __asm__ volatile("push %%es\n\t les %1, %0\n\t pop %%es" : "=r"(value) : "m"(pointer));
    mix(value);
    __asm__ volatile("push %%ds\n\t lds %1, %0\n\t pop %%ds" : "=r"(value) : "m"(pointer));
    mix(value);
    report("far-pointers");
}

/* -- into 64-bit code and back. 0x33 and 0x23 are Linux's user code segments. */
static uint32_t through_64_bits(uint32_t a, uint32_t b)
{
    uint32_t result;
    __asm__ volatile(
        "ljmp $0x33, $1f\n"
        ".code64\n"
        "1: mov %%ecx, %%r8d\n"
        "shl $32, %%r8\n"
        "or %%rax, %%r8\n"
        "imul %%r8, %%r8\n"
        "shr $20, %%r8\n"
        "mov %%r8d, %%eax\n"
        "mov $-1, %%rcx\n" /* the upper half must not show */
        "subq $8, %%rsp\n"
        "movl $2f, (%%rsp)\n"
        "movl $0x23, 4(%%rsp)\n"
        "lretl\n"
        ".code32\n"
        "2: inc %%ecx\n"
        "add %%ecx, %%eax\n"
        : "=a"(result), "+c"(b) : "a"(a) : "cc", "memory");
    return result;
}

/* -- each way into the kernel */
static uint32_t by_interrupt(uint32_t number)
{
    uint32_t result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number) : "memory");
    return result;
}

static uint32_t by_vdso(uint32_t number)
{
    uint32_t result;
    __asm__ volatile("call *%%gs:0x10" : "=a"(result) : "a"(number) : "memory"); /* __kernel_vsyscall */
    return result;
}

int main(void)
{
    arithmetic();
    memory();
    faults();
    segments();
    for (int i = 0; i < NR_CASES; i++)
        mix(through_64_bits(next(), next()));
    report("64-bit");
    for (int i = 0; i < NR_CASES; i++) {
        mix(by_interrupt(SYS_getpid) == (uint32_t)getpid());
        mix(by_vdso(SYS_getpid) == (uint32_t)getpid());
    }
    report("system-calls");
    puts("COMPAT-OK");
    return 0;
}
