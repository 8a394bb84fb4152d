/*
 * ldt: the frames of an LDT become descriptor pages when a selector first needs them, each by itself, and stay so until the LDT
 * changes (as Xen without CONFIG_PV_LDT_PAGING). Until then they are mapped read-only or not at all; what cannot
 * become one makes the load a page fault in the guest's own LDT. Descriptors are checked and marked as used as in a GDT, whose last
 * page counts whole; call gates are accepted, and never followed.
 */
#include "guest.h"

#define DATA 0x00cff3000000ffffull /* base 0, 4 GiB, DPL 3, read-write, accessed */
#define FRESH_DATA_DPL0 0x00cf92000000ffffull
#define CODE64 0x00affb000000ffffull
#define INTERRUPT_GATE 0x80108e0000001234ull
#define ACCESSED (1ull << 40)
enum { GATE = 0x8c00, NR_PAGES = 3 };

static PAGE volatile u64 gdt[512], ldt[NR_PAGES][512];
static PAGE char window[PAGE_SIZE];
static volatile shared_info_t *shared;

static long map_page(volatile void *at, volatile void *page, u64 flags)
{
    return update_va_mapping((void *)at, flags ? (mfn_of(page) << 12) | flags : 0, UVMF_INVLPG);
}

static long use_ldt(u64 at, u64 nr)
{
    struct mmuext_op op = {.cmd = MMUEXT_SET_LDT, .arg1.linear_addr = at, .arg2.nr_ents = nr};
    return hypercall4(__HYPERVISOR_mmuext_op, PTR(&op), 1, 0, DOMID_SELF);
}

static bool is_oracle(void) { return start_info->flags & SIF_INITDOMAIN; }
static u16 in_ldt(unsigned index) { return index << 3 | 7; }

static void load_es(u16 selector)
{
    EXPECT_TRAP("mov %[selector], %%es", [selector] "r"((u32)selector));
}

static void loads(u16 selector, const char *what)
{
    load_es(selector);
    check_equal(caught.count, 0, what);
    load_es(0);
}

static void faults(u16 selector, const char *what)
{
    load_es(selector);
    check_equal(caught.vector, 14, what);
    check_equal(caught.error_code, 0, "as a read of what is not there");
    check_equal(shared->vcpu_info[0].arch.cr2, PTR(ldt) + (selector & ~7), "in the guest's own LDT");
}

/* Whether the first page of the LDT may be mapped writable, elsewhere. */
static bool is_free(volatile void *page)
{
    bool is = map_page(window, page, PTE_DATA) == 0;
    map_page(window, window, PTE_DATA);
    return is;
}

static void types(void)
{
    ldt[0][1] = DATA;
    ldt[0][2] = FRESH_DATA_DPL0;
    ldt[1][1] = DATA;
    check_equal(use_ldt(PTR(ldt), 1024 + 8), 0, "an LDT of three pages, mapped writable");
    faults(in_ldt(1), "a page that is mapped writable is no LDT");
    check_equal(ldt[0][2], FRESH_DATA_DPL0, "and is left as it is");
    check_equal(map_page(ldt[0], ldt[0], PTE_READ_ONLY), 0, "read-only");
    check(is_free(ldt[0]), "before the first use it may be written");
    loads(in_ldt(1), "it loads");
    check(!is_free(ldt[0]), "from then on it may not");
    check(mmuext(MMUEXT_PIN_L1_TABLE, mfn_of(ldt[0])) < 0, "nor be a table");
    check_equal(ldt[0][2], FRESH_DATA_DPL0 | 3ull << 45, "DPL was raised");
    faults(in_ldt(512 + 1), "the second page is another one");
    loads(in_ldt(2), "the first one stays");
    check_equal(ldt[0][2], FRESH_DATA_DPL0 | 3ull << 45 | ACCESSED, "what is loaded is marked as used");
    load_es(in_ldt(1024 + 8));
    check_equal(caught.vector, 13, "behind the end");
    check_equal(caught.error_code, (1024 + 8) << 3 | 4, "names the selector");
    check_equal(hypercall2(__HYPERVISOR_update_descriptor, (mfn_of(ldt[0]) << 12) + 24, DATA), 0, "update_descriptor");
    loads(in_ldt(3), "then it loads");
    check(hypercall2(__HYPERVISOR_update_descriptor, (mfn_of(ldt[0]) << 12) + 24, INTERRUPT_GATE) < 0, "not every one");
    load_es(in_ldt(4));
    check_equal(caught.vector, 13, "an empty descriptor");
    check_equal(caught.error_code, 4 << 3 | 4, "names the selector");
}

static void until(void)
{
    check(!is_free(ldt[0]), "in use");
    check_equal(use_ldt(PTR(ldt), 1024 + 8), 0, "the same LDT again");
    check(!is_free(ldt[0]), "changes nothing");
    check_equal(use_ldt(PTR(ldt), 1024 + 7), 0, "an LDT of another length");
    check(is_free(ldt[0]), "begins anew");
    loads(in_ldt(1), "it loads");
    check_equal(mmuext(MMUEXT_NEW_BASEPTR, mfn_of((void *)start_info->pt_base)), 0, "NEW_BASEPTR");
    check(!is_free(ldt[0]), "a new root does not let go of it");
    check_equal(map_page(window, ldt[0], PTE_READ_ONLY), 0, "a second mapping");
    check(map_page(window, ldt[0], PTE_DATA) < 0, "cannot become writable");
    check_equal(map_page(window, window, PTE_DATA), 0, "and goes");
    check(!is_free(ldt[0]), "which does not, either");
    check_equal(map_page(ldt[1], ldt[1], PTE_READ_ONLY), 0, "the second page read-only");
    loads(in_ldt(512 + 1), "it loads, too");
    check(!is_free(ldt[0]) && !is_free(ldt[1]), "both are in use");
    check_equal(map_page(ldt[0], NULL, 0), 0, "the first page is unmapped");
    check(!is_free(ldt[0]), "and stays what it is");
    loads(in_ldt(1), "it loads without one");
    check_equal(use_ldt(PTR(ldt), 1024), 0, "the same LDT, shorter");
    check(is_free(ldt[0]) && is_free(ldt[1]), "all of it is let go");
    faults(in_ldt(1), "no page");
    check_equal(map_page(ldt[0], ldt[0], PTE_READ_ONLY), 0, "mapped again");
    loads(in_ldt(1), "it loads");
    check_equal(use_ldt(0, 0), 0, "no LDT");
    check(is_free(ldt[0]), "is none");
    load_es(in_ldt(1));
    check_equal(caught.vector, 13, "nothing loads");
}

/* What reads descriptors without loading them, and what takes them off the stack. */
static void readers(void)
{
    check_equal(map_page(ldt[0], ldt[0], PTE_DATA), 0, "writable");
    check_equal(use_ldt(PTR(ldt), 512), 0, "an LDT");
    EXPECT_TRAP("mov %[selector], %%ecx\n\tlar %%ecx, %%eax", [selector] "i"(1 << 3 | 7));
    check_equal(caught.vector, 14, "lar");
    EXPECT_TRAP("mov %[selector], %%ecx\n\tlsl %%ecx, %%eax", [selector] "i"(1 << 3 | 7));
    check_equal(caught.vector, 14, "lsl");
    EXPECT_TRAP("mov %[selector], %%ecx\n\tverr %%cx", [selector] "i"(1 << 3 | 7));
    check_equal(caught.vector, 14, "verr");
    caught.count = 0;
    asm volatile("movq $2f, %[resume]\n\tmov %%rsp, %%rbx\n\tpush %[selector]\n\tpush $1f\n\tlretq\n1:\tnop\n2:\tmov %%rbx, %%rsp"
                 : [resume] "=m"(caught.resume) : [selector] "i"(6 << 3 | 7) : "memory", "cc", "rbx");
    check_equal(caught.vector, 14, "a far return");
    /* QEMU TCG reads the stack as the hypervisor would, which SMAP forbids. */
    check(is_oracle() || shared->vcpu_info[0].arch.cr2 == PTR(ldt) + 6 * 8, "in the guest's own LDT");
}

extern const char in_other_segment[];
asm(".pushsection .text\n in_other_segment: ud2\n .popsection");

static void by_iret(void)
{
    struct target target = kernel_target(in_other_segment);
    target.cs = 6 << 3 | 4;
    struct frame *frame = go_to(&target);
    check_equal(frame->vector, 14, "iret to code of the LDT");
    check_equal(frame->rip, PTR(in_other_segment), "faults at its target");
    check_equal(frame->error_code, 0, "as a read of what is not there");
    check_equal(shared->vcpu_info[0].arch.cr2, PTR(ldt) + 6 * 8, "of that descriptor");
    ldt[0][6] = CODE64 & ~ACCESSED;
    ldt[0][7] = INTERRUPT_GATE;
    check_equal(map_page(ldt[0], ldt[0], PTE_READ_ONLY), 0, "read-only");
    frame = go_to(&target);
    check_equal(frame->vector, 14, "a page with a descriptor that may not be is no LDT");
    check_equal(map_page(ldt[0], ldt[0], PTE_DATA), 0, "writable");
    ldt[0][7] = DATA;
    check_equal(map_page(ldt[0], ldt[0], PTE_READ_ONLY), 0, "read-only");
    frame = go_to(&target);
    check_equal(frame->vector, 6, "it goes there");
    check_equal(frame->cs & ~3u, 6 << 3 | 4, "by its selector");
    /* QEMU TCG does not mark what `iret` loads. */
    check(is_oracle() || ldt[0][6] == CODE64, "which is marked as used");

    target = user_target(in_other_segment);
    target.ss = in_ldt(1);
    frame = go_to(&target);
    check_equal(frame->vector, 6, "SS from the LDT");
    check_equal(use_ldt(PTR(ldt[2]), 512), 0, "another LDT");
    frame = go_to(&target);
    check_equal(frame->vector, 14, "a page that is mapped writable");
    check_equal(frame->error_code, 4, "as a read of the user's");
    check_equal(shared->vcpu_info[0].arch.cr2, PTR(ldt[2]) + 8, "in the guest's own LDT");
}

static void edges(void)
{
    check_equal(use_ldt(0x7ffffffff000, 1024), 0, "an LDT that ends behind the low half");
    load_es(in_ldt(512));
    check_equal(caught.vector, 13, "has no address there");
    check_equal(caught.error_code, 512 << 3 | 4, "names the selector");
    load_es(in_ldt(1));
    check_equal(caught.vector, 14, "and no page before");
    check_equal(shared->vcpu_info[0].arch.cr2, 0x7ffffffff008, "where it would be");
    check_equal(use_ldt(PTR(ldt) + 8, 8), -XEN_EINVAL_, "not aligned");
    check_equal(use_ldt(PTR(ldt), 8193), -XEN_EINVAL_, "too many");
    check_equal(use_ldt(0xffff800000000000, 8), -XEN_EINVAL_, "the hypervisor's");
    check_equal(use_ldt(0x800000000000, 8), -XEN_EINVAL_, "no address");
    check_equal(use_ldt(0x800000000000, 0), 0, "none, wherever");
}

static void gdts(void)
{
    u64 frames[1] = {mfn_of(gdt)};
    gdt[1] = DATA;
    gdt[9] = FRESH_DATA_DPL0;
    gdt[10] = (u64)GATE << 32 | (u64)FLAT_KERNEL_CS << 16 | 0x1234;
    gdt[12] = (u64)GATE << 32 | 3ull << 45 | 6 << 3 << 16;
    check_equal(map_page(gdt, gdt, PTE_READ_ONLY), 0, "GDT read-only");
    check_equal(hypercall2(__HYPERVISOR_set_gdt, PTR(frames), 2), 0, "set_gdt with two entries");
    loads(1 << 3 | 3, "the second one");
    loads(9 << 3 | 3, "one behind them, in the same page");
    check_equal(gdt[9], FRESH_DATA_DPL0 | 3ull << 45 | ACCESSED, "is checked as all are, and marked as used");
    load_es(512 << 3 | 3);
    check_equal(caught.vector, 13, "not so in the next page");
    check_equal(gdt[10], ((u64)GATE << 32 | (u64)FLAT_KERNEL_CS << 16 | 0x1234), "a gate has DPL 0");
    check_equal(gdt[12], ((u64)GATE << 32 | (6 << 3 | 3) << 16), "and its target's RPL is its own DPL");
    for (unsigned i = 10; i <= 12; i += 2) {
        struct { u64 offset; u16 selector; } __attribute__((packed)) pointer = {~0ul, i << 3 | 3};
        EXPECT_TRAP("rex.W lcall *(%[pointer])", [pointer] "r"(&pointer));
        check_equal(caught.vector, 13, "a far call through it");
        check_equal(caught.error_code, i << 3, "names the gate");
        EXPECT_TRAP("rex.W ljmp *(%[pointer])", [pointer] "r"(&pointer));
        check_equal(caught.vector, 13, "a far jump");
        check_equal(caught.error_code, i << 3, "names the gate");
    }
    u64 is_shown;
    asm volatile("mov $83, %%ecx\n\tlar %%ecx, %%eax\n\tsetz %%al\n\tmovzbl %%al, %%eax" : "=a"(is_shown) : : "rcx", "cc");
    check_equal(is_shown, 0, "lar does not show it");
}

void test(void)
{
    load_traps();
    shared = map_shared_info();
    catch_traps();
    types();
    until();
    edges();
    gdts();
    readers();
    set_up_user();
    by_iret();
}
