/*
 * What every small PV guest uses: hypercalls, console, verdicts, traps, page tables.
 *
 * A guest defines `void test(void)`, calls check() for each property, and returns; the verdict line and the power-off
 * follow. Verdicts: SUCCESS, SKIP (cannot be tested here), ERROR (the test itself is broken), FAILURE (Ring3 is).
 */
#ifndef RING3_GUEST_H
#define RING3_GUEST_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define __XEN_INTERFACE_VERSION__ 0x00040e00
#define memcpy __builtin_memcpy
#include <xen/xen.h>
#undef memcpy
#include <xen/callback.h>
#include <xen/event_channel.h>
#include <xen/features.h>
#include <xen/io/console.h>
#include <xen/memory.h>
#include <xen/physdev.h>
#include <xen/sched.h>
#include <xen/vcpu.h>
#include <xen/version.h>

typedef uint64_t u64;
typedef uint16_t u16;
typedef uint32_t u32;

/* Xen's errno values that the guests compare with. Source: xen/include/public/errno.h */
enum { XEN_EPERM_ = 1, XEN_ENOENT_ = 2, XEN_EFAULT_ = 14, XEN_EBUSY_ = 16, XEN_EINVAL_ = 22, XEN_ENOSPC_ = 28, XEN_ENOSYS_ = 38,
       XEN_EOPNOTSUPP_ = 95 };

#ifndef VIRT_BASE
#define VIRT_BASE 0xffffffff80000000
#endif
#define PAGE_SIZE 4096ul
#define PAGE __attribute__((aligned(4096)))
enum { PTE_P = 1, PTE_RW = 2, PTE_US = 4, PTE_A = 32, PTE_D = 64 };
#define PTE_DATA (PTE_P | PTE_RW | PTE_US | PTE_A | PTE_D)
#define PTE_READ_ONLY (PTE_P | PTE_US | PTE_A)
#define MFN_OF_PTE(pte) (((pte) & 0x000ffffffffff000ul) >> 12)

extern start_info_t *start_info;

/* -- hypercalls, by a bare `syscall` */
static inline long hypercall5(u64 op, u64 a1, u64 a2, u64 a3, u64 a4, u64 a5)
{
    register u64 r10 asm("r10") = a4;
    register u64 r8 asm("r8") = a5;
    long result;
    asm volatile("syscall" : "=a"(result), "+D"(a1), "+S"(a2), "+d"(a3), "+r"(r10), "+r"(r8)
                 : "0"(op) : "rcx", "r11", "memory");
    return result;
}
#define PTR(p) ((u64)(p))
static inline long hypercall2(u64 op, u64 a1, u64 a2) { return hypercall5(op, a1, a2, 0, 0, 0); }
static inline long hypercall4(u64 op, u64 a1, u64 a2, u64 a3, u64 a4) { return hypercall5(op, a1, a2, a3, a4, 0); }
static inline long hypercall_vcpu_op(u64 sub, u64 vcpu, void *arg)
{
    return hypercall5(__HYPERVISOR_vcpu_op, sub, vcpu, PTR(arg), 0, 0);
}
static inline long hypercall_evtchn(u64 sub, void *arg) { return hypercall2(__HYPERVISOR_event_channel_op, sub, PTR(arg)); }
static inline long hypercall_sched(u64 sub, void *arg) { return hypercall2(__HYPERVISOR_sched_op, sub, PTR(arg)); }
static inline long update_va_mapping(void *va, u64 pte, u64 flags)
{
    return hypercall4(__HYPERVISOR_update_va_mapping, PTR(va), pte, flags, 0);
}
static inline long mmuext(u32 cmd, u64 arg1)
{
    struct mmuext_op op = {.cmd = cmd};
    op.arg1.mfn = arg1;
    return hypercall4(__HYPERVISOR_mmuext_op, PTR(&op), 1, 0, DOMID_SELF);
}
static inline long mmu_update(u64 ptr, u64 val)
{
    struct mmu_update request = {.ptr = ptr, .val = val};
    return hypercall4(__HYPERVISOR_mmu_update, PTR(&request), 1, 0, DOMID_SELF);
}

/* -- console and verdicts */
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));
void write_console(const char *text, size_t nr_bytes);
/* From now on by console_io: it needs no page, no port and nobody who reads. */
void use_hypervisor_console(void);
void check_at(bool ok, const char *what, int line);
/* Reports the property when it does not hold; the verdict is then FAILURE. */
#define check(condition, what) check_at((condition), (what), __LINE__)
void check_equal_at(u64 got, u64 expected, const char *what, int line);
#define check_equal(got, expected, what) check_equal_at((u64)(got), (u64)(expected), (what), __LINE__)
void finish(const char *verdict) __attribute__((noreturn));
void shut_down(unsigned reason) __attribute__((noreturn));
void test(void);

/* -- traps */
enum { TRAP_EVENT = 32, TRAP_SYSCALL = 33, TRAP_INT80 = 34, TRAP_FAILSAFE = 35, NR_TRAPS = 36 };
struct frame {
    u64 r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax;
    u64 vector, error_code, rip, cs, rflags, rsp, ss;
};
extern const u64 trap_entries[TRAP_FAILSAFE];
/* Sets what handles `vector`; the trap table must be loaded. The handler may change the frame. */
void set_handler(unsigned vector, void (*handler)(struct frame *frame));
/* Loads a trap table for vectors 0 to 31 and 0x80, and registers the event, failsafe and syscall callbacks. */
void load_traps(void);

/* Takes every event that is pending on a vCPU, and forgets which. */
void forget_events(volatile shared_info_t *shared, unsigned vcpu);
/* What domain 0 and others call this domain. */
domid_t own_domid(void);
/* Has x87, SSE and AVX state enabled. */
void enable_avx(void);

/* Runs `code` (asm text) and expects a fault in it: the handler resumes after it. Sets `caught`. */
struct caught { volatile u64 vector, error_code, rip, cr2, count; volatile u64 resume; };
extern struct caught caught;
void catch_trap(struct frame *frame);
/* Has vectors 0 to 31 handled by it; the trap table must be loaded. */
void catch_traps(void);
#define EXPECT_TRAP(code, ...) EXPECT_TRAP_CHANGING(, code, ##__VA_ARGS__)
/* The same; the code may change `more`, a list of registers with a comma before each, beside RAX, RCX and RDX. */
#define EXPECT_TRAP_CHANGING(more, code, ...)                                                           \
    do {                                                                                                \
        caught.count = 0;                                                                               \
        caught.vector = ~0ul;                                                                           \
        asm volatile("movq $1f, %[resume]\n\t" code "\n1:" : [resume] "=m"(caught.resume) : __VA_ARGS__ \
                     : "memory", "cc", "rax", "rcx", "rdx" more);                                       \
    } while (0)
#define STRING_POINTERS , "rdi", "rsi"

/* -- memory */
shared_info_t *map_shared_info(void);
/* System time of vCPU 0 in ns, from its vcpu_time_info. */
u64 pvclock_ns(volatile shared_info_t *shared);
u64 *p2m(void);
u64 pfn_of(const volatile void *va);
u64 mfn_of(const volatile void *va);
/* Virtual address of a frame of ours in the initial mapping, by searching the P2M. */
void *va_of_mfn(u64 mfn);
/* Machine address of the entry at `level` (1 to 4) that maps `va`. */
u64 entry_maddr(const void *va, int level);
/* Maps a page of ours at any address of the guest's, too, and makes the tables that are missing. */
void map_at(u64 va, void *page);
/* Maps the first frame of the domain's grant table in place of `page`. */
void map_grant_table(void *page);
/* The decimal number behind a word of the command line, such as "seed="; 0 if it is not there. */
u64 number_after(const char *key);
/* A frame number that is not ours. */
u64 foreign_mfn(void);

/* -- leaving by iret, and what comes back */
#define USER_VIRT_BASE 0x0000007f80000000ul
#define USER_VA(p) (PTR(p) - VIRT_BASE + USER_VIRT_BASE)
/* Makes a page that is filled in as level 4 the user root. */
void use_user_root(u64 *user_root);
/* Gives the guest a user root, in which its memory is at USER_VIRT_BASE too, and a stack for what comes from user mode. */
void set_up_user(void);
/* The state that iret is to load. */
struct target { u64 rip, cs, rflags, rsp, ss, flags, rax; };
/* A target in user mode, and one in kernel mode: flat selectors, a stack of its own, events masked. */
struct target user_target(const void *code);
struct target kernel_target(const void *code);
/* Goes there by iret, and returns the frame of whatever comes first: trap, system call or failsafe callback. */
struct frame *go_to(const struct target *target);
/* DS, ES, FS, GS as the failsafe callback got them. */
extern u64 failsafe_selectors[4];

/* -- more vCPUs */
/* How many the domain has. */
unsigned nr_vcpus(void);
/* What a vCPU starts with: code of ours in our page tables, events masked, callbacks as load_traps() registers. */
void initial_context(unsigned id, struct vcpu_guest_context *context);
/* Starts a vCPU at entry(id); it goes down when that returns. */
void start_vcpu(unsigned id, void (*entry)(unsigned id));
/* Whose stack that is; vCPU 0's is elsewhere. */
unsigned vcpu_of_stack(u64 rsp);
evtchn_port_t bind_ipi(unsigned id);
void send_event(evtchn_port_t port);
/* Waits with a limit, so that a lost wake-up is a verdict and not a time-out. */
bool wait_until(const volatile u64 *value, u64 at_least);

void *memset(void *to, int byte, size_t nr_bytes);
void *memcpy(void *to, const void *from, size_t nr_bytes);
int memcmp(const void *a, const void *b, size_t nr_bytes);
#endif
