/*
 * hostile/hole: loads, stores, jumps and guest handles into the hypervisor's range and to addresses that are none, by every
 * form of instruction: each is a fault or -EFAULT, none reads or writes. Classes of XSA-105, 111, 153, 212, 286 and 339.
 */
#include "guest.h"

#define M2P 0xffff800000000000ul
#define HOLE 0xffff830000000000ul
static PAGE char page[PAGE_SIZE];

static void expect(unsigned vector, const char *what)
{
    check(caught.count == 1 && caught.vector == vector, what);
}

static void attack(u64 va, unsigned vector)
{
    EXPECT_TRAP("mov (%[va]), %%rax", [va] "r"(va));
    expect(vector, "mov, load");
    EXPECT_TRAP("mov %%rax, (%[va])", [va] "r"(va));
    expect(vector, "mov, store");
    EXPECT_TRAP("lock incq (%[va])", [va] "r"(va));
    expect(vector, "lock inc");
    EXPECT_TRAP("xchg %%rax, (%[va])", [va] "r"(va));
    expect(vector, "xchg");
    EXPECT_TRAP("lock cmpxchg16b (%[va])", [va] "r"(va));
    expect(vector, "cmpxchg16b");
    EXPECT_TRAP("lock btsq $0, (%[va])", [va] "r"(va));
    expect(vector, "bts");
    EXPECT_TRAP("pushq (%[va])", [va] "r"(va));
    expect(vector, "push of memory");
    EXPECT_TRAP("call *(%[va])", [va] "r"(va));
    expect(vector, "call through memory");
    EXPECT_TRAP("mov $8, %%ecx\n\t rep stosb", "D"(va));
    expect(vector, "rep stos");
    EXPECT_TRAP("mov $8, %%ecx\n\t rep movsb", "S"(va), "D"(page));
    expect(vector, "rep movs, from");
    EXPECT_TRAP("fxsave (%[va])", [va] "r"(va));
    expect(vector, "fxsave");
    EXPECT_TRAP("sgdt (%[va])", [va] "r"(va));
    check(caught.count == 1, "sgdt");
}

/* Forms with operands of their own kind. */
static void attack_more(u64 va, unsigned vector)
{
    EXPECT_TRAP("movdqu (%[va]), %%xmm1", [va] "r"(va));
    expect(vector, "movdqu, load");
    EXPECT_TRAP("movdqu %%xmm1, (%[va])", [va] "r"(va));
    expect(vector, "movdqu, store");
    EXPECT_TRAP("vmovdqu (%[va]), %%ymm1", [va] "r"(va));
    expect(vector, "vmovdqu");
    EXPECT_TRAP("vpcmpeqd %%ymm2, %%ymm2, %%ymm2\n\t vpxor %%ymm1, %%ymm1, %%ymm1\n\t vpgatherdd %%ymm2, (%[va],%%ymm1,4), %%ymm3",
                [va] "r"(va));
    expect(vector, "a gather");
    EXPECT_TRAP("vpcmpeqd %%ymm2, %%ymm2, %%ymm2\n\t vpmaskmovd %%ymm1, %%ymm2, (%[va])", [va] "r"(va));
    expect(vector, "a masked store");
    EXPECT_TRAP("pcmpeqd %%xmm2, %%xmm2\n\t maskmovdqu %%xmm2, %%xmm1", "D"(va));
    expect(vector, "maskmovdqu");
    EXPECT_TRAP("xor %%edx, %%edx\n\t mov $7, %%eax\n\t xsave (%[va])", [va] "r"(va & ~63ul));
    expect(vector, "xsave");
    EXPECT_TRAP("xor %%edx, %%edx\n\t mov $7, %%eax\n\t xrstor (%[va])", [va] "r"(va & ~63ul));
    expect(vector, "xrstor");
    EXPECT_TRAP("fxrstor (%[va])", [va] "r"(va & ~15ul));
    expect(vector, "fxrstor");
    EXPECT_TRAP("fstpt (%[va])", [va] "r"(va));
    expect(vector, "fstp");
    EXPECT_TRAP("fnstenv (%[va])", [va] "r"(va));
    expect(vector, "fnstenv");
    EXPECT_TRAP("movnti %%rax, (%[va])", [va] "r"(va));
    expect(vector, "movnti");
    if (!(start_info->flags & SIF_INITDOMAIN)) { /* QEMU TCG, under which the real Xen runs, does not look at its address */
        EXPECT_TRAP("clflush (%[va])", [va] "r"(va));
        expect(vector, "clflush");
    }
    EXPECT_TRAP("verw (%[va])", [va] "r"(va));
    expect(vector, "verw");
    EXPECT_TRAP("mov (%[va]), %%ss", [va] "r"(va));
    expect(vector, "mov to a segment register");
    EXPECT_TRAP("rex.w ljmp *(%[va])", [va] "r"(va));
    expect(vector, "a far jump");
    EXPECT_TRAP("popq (%[va])", [va] "r"(va));
    expect(vector, "pop to memory");
    EXPECT_TRAP("lock cmpxchg8b (%[va])", [va] "r"(va));
    expect(vector, "cmpxchg8b");
    EXPECT_TRAP("lock xadd %%rax, (%[va])", [va] "r"(va));
    expect(vector, "xadd");
    EXPECT_TRAP("lodsq", "S"(va));
    expect(vector, "lods");
    EXPECT_TRAP("mov $8, %%ecx\n\t repe scasb", "D"(va));
    expect(vector, "scas");
    EXPECT_TRAP("mov $8, %%ecx\n\t repe cmpsq", "S"(va), "D"(page));
    expect(vector, "cmps");
    EXPECT_TRAP("xlatb", [va] "r"(va), "b"(va));
    expect(vector, "xlat");
    /* No fault, and no access. */
    caught.count = 0;
    asm volatile("prefetcht0 (%0)\n\t prefetchw (%0)" : : "r"(va));
    check_equal(caught.count, 0, "prefetch");
}

static void handles(u64 at)
{
    check_equal(hypercall2(__HYPERVISOR_xen_version, XENVER_extraversion, at), -XEN_EFAULT_, "a reply");
    check_equal(hypercall2(__HYPERVISOR_xen_version, XENVER_get_features, at), -XEN_EFAULT_, "an argument");
    check_equal(hypercall2(__HYPERVISOR_set_trap_table, at, 0), -XEN_EFAULT_, "set_trap_table");
    check_equal(hypercall2(__HYPERVISOR_set_gdt, at, 512), -XEN_EFAULT_, "set_gdt");
    check_equal(hypercall4(__HYPERVISOR_mmu_update, at, 1, 0, DOMID_SELF), -XEN_EFAULT_, "mmu_update");
    check_equal(hypercall4(__HYPERVISOR_mmuext_op, at, 1, 0, DOMID_SELF), -XEN_EFAULT_, "mmuext_op");
    check_equal(hypercall2(__HYPERVISOR_multicall, at, 1), -XEN_EFAULT_, "multicall");
    check_equal(hypercall_evtchn(EVTCHNOP_send, (void *)at), -XEN_EFAULT_, "event_channel_op");
    check_equal(hypercall_sched(SCHEDOP_poll, (void *)at), -XEN_EFAULT_, "sched_op");
    check_equal(hypercall_vcpu_op(VCPUOP_get_runstate_info, 0, (void *)at), -XEN_EFAULT_, "vcpu_op");
    check_equal(hypercall2(__HYPERVISOR_memory_op, XENMEM_machphys_mapping, at), -XEN_EFAULT_, "memory_op");
}

void test(void)
{
    load_traps();
    catch_traps();
    enable_avx();
    attack_more(HOLE, 14);
    attack_more(0x800000000000ul, 13);
    attack(HOLE, 14);
    attack(0x800000000000ul, 13);
    attack(0xffff7ffffffffff8ul, 13);
    EXPECT_TRAP("mov %%rax, (%[va])", [va] "r"(M2P));
    expect(14, "the machine-to-phys table is read-only");
    check(update_va_mapping((void *)HOLE, (mfn_of(page) << 12) | PTE_DATA, UVMF_INVLPG) < 0, "mapping into the hole");
    check(update_va_mapping((void *)M2P, (mfn_of(page) << 12) | PTE_DATA, UVMF_INVLPG) < 0, "mapping over the table");
    handles(HOLE);
    handles(M2P);
    handles(0x800000000000ul);
    handles(0xfffffffffffffff8ul);
}
