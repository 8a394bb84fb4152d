/*
 * hostile/carried: two domains with two vCPUs each share one pCPU. What of a CPU is not in its vector registers differs among the four:
 * bases and selectors of segments, the LDT, debug registers and what they arm, XCR0, CR0.TS, CR4, TSC_AUX. Whatever is not a vCPU's
 * own after others have run was carried over. Classes of XSA-204, 254, 260, 263, 265 and 308.
 *
 * run-by: integration/test_neighbours.py, with `self=N peer=N`
 */
#include "guest.h"

enum { NR_ROUNDS = 400, NR_VCPUS = 2 };
enum { MSR_KERNEL_GS_BASE = 0xc0000102u };
/* Data of 4 GiB, but for the limit. */
#define LDT_ENTRY(limit) (0x0040f30000000000ull | (limit))
#define LDT_SELECTOR (1 << 3 | 7)
#define CR0_TS 8ul
#define CR4_TSD 4ul
#define CR4_FSGSBASE (1ul << 16)
#define CR4_OSXSAVE (1ul << 18)

static PAGE volatile u64 ldt[NR_VCPUS][512];
static volatile u64 watched[NR_VCPUS], nr_traps[NR_VCPUS], ends[NR_VCPUS];
static domid_t self;

struct mine { u64 mark, fs, gs, other_gs, dr[4], dr7, xcr0, cr4; u32 limit, tsc_aux; bool has_ldt, is_armed, has_ts; };

static u64 rdmsr(u32 msr)
{
    u32 low, high;
    asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
    return low | (u64)high << 32;
}

static u32 tsc_aux(void)
{
    u32 aux;
    asm volatile("rdtscp" : "=c"(aux) : : "rax", "rdx");
    return aux;
}

static u64 xcr0(void)
{
    u32 low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low | (u64)high << 32;
}

static void on_debug(struct frame *frame)
{
    nr_traps[vcpu_of_stack(frame->rsp) % NR_VCPUS]++;
    hypercall2(__HYPERVISOR_set_debugreg, 6, 0);
}

static void set_up(unsigned id, struct mine *mine)
{
    u64 number = self * 2 + id, cr4;
    struct mmuext_op op = {.cmd = MMUEXT_SET_LDT};
    *mine = (struct mine){.mark = 0x0123456789abul * (number + 1) & 0x7ffffffffff8, .has_ldt = number % 4 != 3,
                          .is_armed = number % 3 == 0, .has_ts = number % 2 == 0, .limit = 0x1000 + (u32)number * 16,
                          .xcr0 = number & 2 ? 7 : 3};
    asm volatile("mov %%cr4, %0" : "=r"(cr4));
    mine->cr4 = cr4 | CR4_OSXSAVE | CR4_FSGSBASE | (number & 1 ? CR4_TSD : 0);
    asm volatile("mov %0, %%cr4" : : "r"(mine->cr4));
    asm volatile("xsetbv" : : "c"(0), "a"(mine->xcr0), "d"(0));
    mine->fs = mine->mark;
    mine->gs = mine->mark ^ 0x1000;
    mine->other_gs = mine->mark ^ 0x2000;
    if (mine->has_ldt) {
        ldt[id][1] = LDT_ENTRY(mine->limit);
        check_equal(update_va_mapping((void *)ldt[id], (mfn_of(ldt[id]) << 12) | PTE_READ_ONLY, UVMF_INVLPG), 0, "LDT read-only");
        op.arg1.linear_addr = PTR(ldt[id]);
        op.arg2.nr_ents = 512;
        check_equal(hypercall4(__HYPERVISOR_mmuext_op, PTR(&op), 1, 0, DOMID_SELF), 0, "SET_LDT");
        asm volatile("mov %0, %%ds\n mov %0, %%fs" : : "r"(LDT_SELECTOR));
    }
    check_equal(hypercall2(__HYPERVISOR_set_segment_base, SEGBASE_FS, mine->fs), 0, "FS.base");
    check_equal(hypercall2(__HYPERVISOR_set_segment_base, SEGBASE_GS_KERNEL, mine->gs), 0, "GS.base");
    check_equal(hypercall2(__HYPERVISOR_set_segment_base, SEGBASE_GS_USER, mine->other_gs), 0, "the user's GS.base");
    for (unsigned n = 0; n < 4; n++)
        mine->dr[n] = n == 0 && mine->is_armed ? PTR(&watched[id]) : mine->mark + n * 8;
    /* Writes to eight bytes by DR0; the others are not armed. */
    mine->dr7 = 0x400 | (mine->is_armed ? 1ul | 1ul << 16 | 2ul << 18 : 0);
    for (unsigned n = 0; n < 4; n++)
        check_equal(hypercall2(__HYPERVISOR_set_debugreg, n, mine->dr[n]), 0, "a debug register");
    check_equal(hypercall2(__HYPERVISOR_set_debugreg, 7, mine->dr7), 0, "DR7");
    hypercall2(__HYPERVISOR_fpu_taskswitch, mine->has_ts, 0);
    mine->tsc_aux = tsc_aux();
}

static void look(const struct mine *mine)
{
    u64 fs, gs, cr0, cr4;
    u32 limit = 0, table;
    u16 ds, fs_selector;
    bool is_found;
    asm volatile("rdfsbase %0\n rdgsbase %1\n mov %%cr0, %2\n mov %%cr4, %3" : "=r"(fs), "=r"(gs), "=r"(cr0), "=r"(cr4));
    check_equal(fs, mine->fs, "FS.base is another's");
    check_equal(gs, mine->gs, "GS.base is another's");
    check_equal(rdmsr(MSR_KERNEL_GS_BASE), mine->other_gs, "the user's GS.base is another's");
    check_equal((cr0 & CR0_TS) != 0, mine->has_ts, "CR0.TS is another's");
    check_equal(cr4, mine->cr4, "CR4 is another's");
    check_equal(xcr0(), mine->xcr0, "XCR0 is another's");
    check_equal(tsc_aux(), mine->tsc_aux, "TSC_AUX is another's");
    asm volatile("lsl %3, %0\n setz %1\n sldt %2" : "+r"(limit), "=r"(is_found), "=r"(table) : "r"(LDT_SELECTOR) : "cc");
    check_equal(is_found, mine->has_ldt, "an LDT of another's");
    check_equal(limit, mine->has_ldt ? mine->limit : 0, "a descriptor of another's");
    check_equal((table & 0xffff) != 0, mine->has_ldt, "LDTR is another's");
    asm volatile("mov %%ds, %0\n mov %%fs, %1" : "=r"(ds), "=r"(fs_selector));
    check_equal(ds, mine->has_ldt ? LDT_SELECTOR : 0, "DS is another's");
    check_equal(fs_selector, mine->has_ldt ? LDT_SELECTOR : 0, "FS is another's");
    for (u64 n = 0; n < 4; n++)
        check_equal((u64)hypercall2(__HYPERVISOR_get_debugreg, n, 0), mine->dr[n], "a debug register is another's");
    check_equal((u64)hypercall2(__HYPERVISOR_get_debugreg, 7, 0), mine->dr7, "DR7 is another's");
}

static void run(unsigned id)
{
    struct mine mine;
    set_up(id, &mine);
    for (u64 round = 1; round <= NR_ROUNDS; round++) {
        watched[id] = round;
        /* What is armed is the vCPU's own, and is armed still. */
        check_equal(nr_traps[id], mine.is_armed ? round : 0, "a breakpoint of another's");
        hypercall_sched(SCHEDOP_yield, NULL);
        look(&mine);
    }
    hypercall2(__HYPERVISOR_set_debugreg, 7, 0x400);
    hypercall2(__HYPERVISOR_fpu_taskswitch, 0, 0);
    ends[id] = 1;
}

static void second(unsigned id)
{
    load_traps();
    set_handler(1, on_debug);
    run(id);
}

void test(void)
{
    self = number_after("self=");
    load_traps();
    set_handler(1, on_debug);
    start_vcpu(1, second);
    run(0);
    check(wait_until(&ends[1], 1), "the other vCPU ends");
}
