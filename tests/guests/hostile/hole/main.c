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
    for (unsigned vector = 0; vector < 32; vector++)
        set_handler(vector, catch_trap);
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
