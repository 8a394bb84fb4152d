/*
 * Code, stack and data in segments with bases and limits, as modify_ldt gives them to a 32-bit program: what each does is printed, so
 * that it can be compared with a host. (Linux refuses 16-bit segments where it runs on Xen; tests/guests/segments has those.)
 */
#define _GNU_SOURCE
#include <asm/ldt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/ucontext.h>
#include <unistd.h>

enum { CODE, STACK, SMALL, ABSENT };
#define SELECTOR(index) ((index) << 3 | 7)

extern const char code[], sums[], stores[], beyond[], behind_beyond[], deep[], behind_deep[], missing[], behind_missing[], far[], behind_far[],
    code_end[];
asm(".pushsection .rodata\n code:\n"
    "sums: mov $100, %ecx\n xor %eax, %eax\n 1: add %ecx, %eax\n loop 1b\n lret\n"
    "stores: push %es\n mov $0x17, %ecx\n mov %ecx, %es\n movw $0x1234, %es:4\n movw %es:4, %ax\n inc %eax\n pop %es\n lret\n"
    "beyond: push %es\n mov $0x17, %ecx\n mov %ecx, %es\n xor %eax, %eax\n movw %es:0x0f, %ax\n behind_beyond: pop %es\n lret\n"
    /* Another stack, on which a breakpoint and a push at its end happen; then the old one again. */
    "deep: mov %ss, %edx\n mov %esp, %ebx\n mov $0xf, %ecx\n mov %ecx, %ss\n mov $0x800, %esp\n"
    " push $0x4321\n int3\n pop %eax\n mov $2, %esp\n push %eax\n behind_deep: mov %edx, %ss\n mov %ebx, %esp\n lret\n"
    "missing: mov $0x1f, %ecx\n mov %ecx, %es\n behind_missing: lret\n"
    "far: mov $0x1000, %eax\n jmp *%eax\n behind_far: lret\n"
    "code_end:\n .popsection");

static const char *behind;

static void on_signal(int number, siginfo_t *info, void *context)
{
    greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
    char line[160];
    (void)info;
    int len = snprintf(line, sizeof(line), "compat: signal %d trap %d error %#x cs %#x eip %#x ss %#x sp %#x ax %#x\n", number,
                       regs[REG_TRAPNO], regs[REG_ERR], regs[REG_CS] & 0xffff, regs[REG_EIP], (regs[REG_SS] & 0xffff) & 7,
                       number == SIGTRAP ? regs[REG_ESP] & 0xffff : 0, regs[REG_EAX] & 0xffff);
    if (write(1, line, (size_t)len) != len)
        _exit(3);
    if (number != SIGTRAP)
        regs[REG_EIP] = behind - code;
}

static void entry(unsigned index, void *base, unsigned limit, unsigned contents, unsigned is_absent)
{
    struct user_desc desc = {.entry_number = index, .base_addr = (unsigned)base, .limit = limit, .contents = contents,
                             .seg_32bit = 1, .seg_not_present = is_absent, .useable = 1};
    if (syscall(SYS_modify_ldt, 0x11, &desc, sizeof(desc)) != 0) {
        printf("no modify_ldt\n");
        exit(2);
    }
}

static unsigned call(const char *at, const char *where_to_go_on)
{
    struct { unsigned offset; unsigned short selector; } __attribute__((packed)) pointer = {(unsigned)(at - code), SELECTOR(CODE)};
    unsigned result;
    behind = where_to_go_on;
    fflush(stdout);
    asm volatile("lcall *%1" : "=a"(result) : "m"(pointer) : "ebx", "ecx", "edx", "memory", "cc");
    return result & 0xffff;
}

int main(void)
{
    static char alternate[65536], stack[4096], data[64];
    char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    stack_t on = {.ss_sp = alternate, .ss_size = sizeof(alternate)};
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    unsigned limit = 0;

    if (page == MAP_FAILED)
        return 2;
    memcpy(page, code, (size_t)(code_end - code));
    sigaltstack(&on, NULL);
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    sigaction(SIGTRAP, &action, NULL);
    entry(CODE, page, 0xfff, 2, 0);
    entry(STACK, stack, 0xfff, 0, 0);
    entry(SMALL, data, 0xf, 0, 0);
    entry(ABSENT, data, 0xf, 0, 1);
    printf("compat: sum %u\n", call(sums, NULL));
    printf("compat: stored %#x\n", call(stores, NULL));
    printf("compat: in memory %#x\n", *(unsigned short *)(data + 4));
    printf("compat: beyond %#x\n", call(beyond, behind_beyond));
    printf("compat: deep %#x\n", call(deep, behind_deep));
    call(missing, behind_missing);
    call(far, behind_far);
    asm("lsl %1, %0" : "+r"(limit) : "r"(SELECTOR(SMALL)));
    printf("compat: limit %#x\nSEGMENTS-OK\n", limit);
    return 0;
}
