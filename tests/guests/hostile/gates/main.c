/*
 * hostile/gates: gates and tables that lead where the guest may not be, and that change while another vCPU uses them: call gates,
 * which nobody may use, trap tables and callbacks into the hypervisor, a GDT and an LDT that are exchanged, moved and
 * rewritten between the look at a descriptor and its use. A selector is that of one of the tables, or faults; code runs where one of
 * the gates leads, or nowhere. Classes of XSA-7, 110, 192, 195, 202, 204, 212 and 239.
 *
 * vcpus: 2
 * timeout: 90
 */
#include "guest.h"

#define HOLE 0xffff830000000000ul
#define M2P 0xffff800000000000ul
#define DATA_SEGMENT 0x00cff3000000ffffull
#define CODE64 0x00affb000000ffffull
enum { GATE = 0x8c00, OWN_CS = 6 << 3 | 3, NR_ROUNDS = 2000, FIRST_BASE = 0x11111000, SECOND_BASE = 0x22222000 };
static PAGE u64 gdts[2][512], ldts[2][512], frame_list[512];
static volatile u64 is_over, nr_changes;

static u64 with_base(u64 base) { return DATA_SEGMENT | (base & 0xffffff) << 16 | (base >> 24) << 56; }
static u64 gate_low(u64 target, u16 selector) { return (target & 0xffff) | (u64)selector << 16 | (u64)GATE << 32 | (target >> 16 & 0xffff) << 48; }
static u64 entry_at(u64 *table, unsigned index) { return (mfn_of(table) << 12) + index * 8; }

static long put(u64 *table, unsigned index, u64 descriptor)
{
    return hypercall2(__HYPERVISOR_update_descriptor, entry_at(table, index), descriptor);
}

static void use_gdt(int which)
{
    frame_list[0] = mfn_of(gdts[which]);
    /* While the other vCPU has a descriptor of a page updated that is no GDT at the moment, that page is a writable one. */
    long answer;
    do
        answer = hypercall2(__HYPERVISOR_set_gdt, PTR(frame_list), 512);
    while (answer == -XEN_EINVAL_ && nr_changes != 0 && is_over == 0);
    check_equal(answer, 0, "set_gdt");
}

static long use_ldt(u64 at, u64 nr)
{
    struct mmuext_op op = {.cmd = MMUEXT_SET_LDT, .arg1.linear_addr = at, .arg2.nr_ents = nr};
    return hypercall4(__HYPERVISOR_mmuext_op, PTR(&op), 1, 0, DOMID_SELF);
}

static void make_read_only(u64 *page)
{
    check_equal(update_va_mapping(page, (mfn_of(page) << 12) | PTE_READ_ONLY, UVMF_INVLPG | UVMF_ALL), 0, "read-only");
}

/* What runs behind a gate has the gate's code segment. */
static void on_trap(struct frame *frame)
{
    catch_trap(frame);
    frame->cs = FLAT_KERNEL_CS & ~3;
}

/* What faults behind the gate has pushed where it came from. */
static __attribute__((noinline)) void far_call(u16 selector)
{
    static u64 stack_pointer;
    struct { u64 offset; u16 selector; } __attribute__((packed)) pointer = {~0ul, selector};
    asm volatile("mov %%rsp, %0" : "=m"(stack_pointer));
    EXPECT_TRAP("rex.W lcall *(%[pointer])", [pointer] "r"(&pointer));
    asm volatile("mov %0, %%rsp" : : "m"(stack_pointer) : "memory");
}

static __attribute__((noinline)) void int_80(void)
{
    static u64 stack_pointer;
    asm volatile("mov %%rsp, %0" : "=m"(stack_pointer));
    EXPECT_TRAP("int $0x80", "i"(0));
    asm volatile("mov %0, %%rsp" : : "m"(stack_pointer) : "memory");
}

/* -- call gates */
static void bad_gates(void)
{
    static const u64 targets[] = {VIRT_BASE, HOLE, M2P, 0xffff82d040200000ul, 0x800000000000ul};
    put(gdts[0], 6, CODE64);
    for (unsigned i = 0; i < sizeof(targets) / 8; i++) {
        check_equal(put(gdts[0], 10, gate_low(targets[i], OWN_CS)), 0, "a gate, first half");
        check_equal(put(gdts[0], 11, targets[i] >> 32), 0, "second half");
        far_call(10 << 3);
        check_equal(caught.vector, 13, "is not followed");
        check_equal(caught.error_code, 10 << 3, "names the gate");
    }
    /* A gate whose second half is another descriptor, one that ends with the table, and one to a gate. */
    put(gdts[0], 11, DATA_SEGMENT);
    put(gdts[0], 511, gate_low(PTR(far_call), OWN_CS));
    put(gdts[0], 12, gate_low(PTR(far_call), 10 << 3));
    static const u16 others[] = {10 << 3, 511 << 3, 12 << 3};
    for (unsigned i = 0; i < 3; i++) {
        far_call(others[i]);
        check_equal(caught.vector, 13, "nor is any other");
        check_equal(caught.error_code, others[i], "names the gate");
    }
    /* Kinds that a PV guest cannot have. */
    static const u16 kinds[] = {0x8100, 0x8200, 0x8300, 0x8400, 0x8500, 0x8600, 0x8700, 0x8900, 0x8b00, 0x8e00, 0x8f00};
    for (unsigned i = 0; i < sizeof(kinds) / 2; i++)
        check(put(gdts[0], 14, (u64)kinds[i] << 32 | (u64)FLAT_KERNEL_CS << 16) < 0, "a task, interrupt or trap gate, an LDT");
    check(put(gdts[0], 14, gate_low(0, 0xe008)) < 0, "a gate with a selector of the hypervisor's");
    check_equal(gdts[0][14], 0, "and nothing is stored");
}

/* -- trap tables and callbacks */
static void bad_traps(void)
{
    static const u64 bad[] = {0x800000000000ul, 0xffff7ffffffffffful, 1ul << 63};
    struct trap_info table[2] = {{.vector = 0x80, .flags = 3, .cs = FLAT_KERNEL_CS}, {.vector = 0}};
    for (unsigned i = 0; i < 3; i++) {
        table[0].address = bad[i];
        check_equal(hypercall2(__HYPERVISOR_set_trap_table, PTR(table), 0), -XEN_EINVAL_, "a trap to what is no address");
        struct callback_register callback = {.type = CALLBACKTYPE_event, .address = bad[i]};
        check(hypercall2(__HYPERVISOR_callback_op, CALLBACKOP_register, PTR(&callback)) < 0, "a callback");
        check(hypercall2(__HYPERVISOR_set_gdt, bad[i], 512) < 0, "set_gdt from there");
    }
    /* In the hypervisor's range it is the guest that faults, in its own handler for page faults. */
    static const u64 xen[] = {HOLE, 0xffff82d040200000ul, 0xffff87fffffffff8ul};
    for (unsigned i = 0; i < 3; i++) {
        table[0].address = xen[i];
        check_equal(hypercall2(__HYPERVISOR_set_trap_table, PTR(table), 0), 0, "a trap into the hypervisor's range");
        int_80();
        check_equal(caught.vector, 14, "is a page fault");
        check_equal(caught.rip, xen[i], "there");
    }
    /* Selectors of the hypervisor's: what comes back is ring 3. */
    static const u16 selectors[] = {0xe008, 0xe030, 0xe038, 0xe040, 0, 0xfff8};
    for (unsigned i = 0; i < 6; i++) {
        table[0] = (struct trap_info){.vector = 0x80, .flags = 3, .cs = selectors[i], .address = PTR(far_call)};
        hypercall2(__HYPERVISOR_set_trap_table, PTR(table), 0);
    }
    load_traps();
}

/* -- LDTs where there is none */
static void bad_ldts(void)
{
    static const u64 bad[] = {HOLE, M2P, 0x800000000000ul, 0xffff87fffffff000ul};
    for (unsigned i = 0; i < 4; i++) {
        bool is_set = use_ldt(bad[i], 512) == 0;
        EXPECT_TRAP("mov %[selector], %%fs", [selector] "r"(5 << 3 | 7));
        check(!is_set || caught.count == 1, "nothing loads from the hypervisor's memory");
        u64 seen = 0;
        asm volatile("mov %[selector], %%ecx\n\t xor %%eax, %%eax\n\t lar %%ecx, %%eax\n\t mov %%rax, %[seen]"
                     : [seen] "=m"(seen) : [selector] "i"(5 << 3 | 7) : "rax", "rcx", "cc");
        check_equal(seen, 0, "lar tells nothing of it");
    }
    check(use_ldt(PTR(ldts[0]) + 8, 8) < 0, "an LDT that is not aligned");
    check(use_ldt(PTR(ldts[0]), 8193) < 0, "too many entries");
    check_equal(use_ldt(0, 0), 0, "none");
}

/* -- changed under use */
extern const char inside[];
asm(".pushsection .text\n inside: ud2\n .popsection");

static void changer(unsigned id)
{
    (void)id;
    load_traps();
    for (u64 n = 0; !is_over; n++, nr_changes++) {
        put(gdts[0], 20, with_base(n & 1 ? FIRST_BASE : SECOND_BASE));
        put(gdts[0], 21, n % 3 ? with_base(SECOND_BASE) : 0);
        put(gdts[0], 22, n & 1 ? CODE64 : gate_low(PTR(far_call), OWN_CS));
        put(ldts[0], 1, with_base(n & 1 ? FIRST_BASE : SECOND_BASE));
        /* The frame of the LDT goes and comes. */
        if (n % 7 == 0) {
            update_va_mapping(ldts[0], (mfn_of(ldts[n / 7 & 1]) << 12) | PTE_READ_ONLY, UVMF_INVLPG | UVMF_ALL);
        }
    }
    is_over = 2;
}

static void under_use(void)
{
    unsigned nr_loaded = 0, nr_called = 0;
    put(ldts[1], 1, with_base(SECOND_BASE));
    check_equal(use_ldt(PTR(ldts[0]), 512), 0, "an LDT");
    start_vcpu(1, changer);
    check(wait_until(&nr_changes, 5), "the other vCPU changes things");
    /* Longer where the two vCPUs had no luck. */
    for (int round = 0; round < NR_ROUNDS || (round < 50 * NR_ROUNDS && (nr_loaded == 0 || nr_called == 0)); round++) {
        static const u16 selectors[] = {20 << 3 | 3, 21 << 3 | 3, 1 << 3 | 7};
        u16 selector = selectors[round % 3];
        u64 base;
        asm volatile("wrfsbase %0" : : "r"(0ul));
        EXPECT_TRAP("mov %[selector], %%fs", [selector] "r"((u32)selector));
        asm volatile("rdfsbase %0" : "=r"(base));
        if (caught.count == 0) {
            nr_loaded++;
            if (base != FIRST_BASE && base != SECOND_BASE)
                check_equal(base, FIRST_BASE, "a base that was in no descriptor");
        } else if (caught.vector != 13 && caught.vector != 11) {
            check_equal(caught.vector, 13, "a load that fails");
        }
        struct { u64 offset; u16 selector; } __attribute__((packed)) pointer = {PTR(inside), 22 << 3};
        EXPECT_TRAP("rex.W ljmp *(%[pointer])", [pointer] "r"(&pointer));
        if (caught.rip == PTR(inside)) {
            nr_called++;
            check_equal(caught.vector, 6, "what is there was executed");
        } else {
            check_equal(caught.vector, 13, "a gate, which fails");
        }
        if (round % 16 == 0)
            use_gdt(round / 16 & 1);
        if (round % 16 == 8)
            use_gdt(0);
    }
    is_over = 1;
    check(wait_until(&is_over, 2), "the other vCPU ends");
    check(nr_loaded > 0 && nr_called > 0, "some were good");
}

void test(void)
{
    u64 cr4;
    if (nr_vcpus() < 2)
        finish("SKIP");
    load_traps();
    for (unsigned vector = 0; vector < 32; vector++)
        set_handler(vector, on_trap);
    asm volatile("mov %%cr4, %0" : "=r"(cr4));
    asm volatile("mov %0, %%cr4" : : "r"(cr4 | 1ul << 16)); /* FSGSBASE */
    for (int i = 0; i < 2; i++) {
        make_read_only(gdts[i]);
        make_read_only(ldts[i]);
    }
    use_gdt(0);
    bad_gates();
    bad_traps();
    bad_ldts();
    under_use();
    /* A descriptor page is one as long as a vCPU uses it. */
    check(update_va_mapping(gdts[0], (mfn_of(gdts[0]) << 12) | PTE_DATA, UVMF_INVLPG) < 0, "the GDT stays read-only");
    check(mmuext(MMUEXT_PIN_L1_TABLE, mfn_of(gdts[0])) < 0, "and no table");
    check_equal(hypercall2(__HYPERVISOR_set_gdt, PTR(frame_list), 0), 0, "no GDT");
    check_equal(update_va_mapping(gdts[0], (mfn_of(gdts[0]) << 12) | PTE_DATA, UVMF_INVLPG), 0, "then it is a page again");
}
