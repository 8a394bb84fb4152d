/*
 * descriptors: GDT and LDT of the guest: selectors load from them, their frames cannot be written, and a descriptor
 * that would give away privilege is refused or lowered.
 */
#include "guest.h"

#define FLAT_DATA 0x00cff3000000ffffull /* base 0, 4 GiB, DPL 3, read-write */
#define FLAT_DATA_DPL0 0x00cf93000000ffffull
#define TLS_BASE 0x12345000ull
#define TLS_DATA (FLAT_DATA | (TLS_BASE & 0xffffff) << 16 | (TLS_BASE >> 24) << 56)
#define INTERRUPT_GATE 0x80108e0000001234ull /* a system descriptor */

static PAGE volatile u64 gdt[512], ldt[512];

static u64 fs_base(void)
{
    u64 base;
    asm volatile("rdfsbase %0" : "=r"(base));
    return base;
}

static void load_fs(unsigned selector)
{
    EXPECT_TRAP("mov %[selector], %%fs", [selector] "r"(selector));
}

static u64 machine_address(volatile u64 *entry)
{
    volatile u64 *page = (volatile u64 *)(PTR(entry) & ~4095ul);
    return (mfn_of(page) << 12) | (PTR(entry) & 4095);
}

static long update_descriptor(volatile u64 *entry, u64 value)
{
    return hypercall2(__HYPERVISOR_update_descriptor, machine_address(entry), value);
}

static void call_gates(void)
{
    enum { GATE = 0x8c00 };
    struct { u64 offset; u16 selector; } __attribute__((packed)) pointer = {~0ul, 10 << 3};

    check_equal(update_descriptor(&gdt[6], 0x00af9b000000ffff), 0, "64-bit code");
    check_equal(update_descriptor(&gdt[10], 0x1234 | 6ul << 19 | (GATE | 3ul << 13) << 32), 0, "a call gate");
    check_equal(gdt[10], 0x1234 | (6ul << 3 | 3) << 16 | (u64)GATE << 32, "its DPL became the target's RPL");
    EXPECT_TRAP("rex.W lcall *(%[pointer])", [pointer] "r"(&pointer));
    check_equal(caught.vector, 13, "nobody may use it");
    check_equal(caught.error_code, 10 << 3, "the fault names the gate");
    check_equal(update_descriptor(&gdt[10], 6ul << 19 | (0x0c00 | 3ul << 13) << 32), 0, "a gate that is not present");
    EXPECT_TRAP("rex.W lcall *(%[pointer])", [pointer] "r"(&pointer));
    check(caught.vector == 11 || caught.vector == 13, "faults, too");
    check(update_descriptor(&gdt[14], (u64)GATE << 32 | 0xe008ul << 16) < 0, "a gate into Xen");
    check(update_descriptor(&gdt[14], (u64)GATE << 32 | 0xe030ul << 16) < 0, "a gate to the flat code, RPL 0");
    check_equal(update_descriptor(&gdt[14], (u64)GATE << 32 | 0xe033ul << 16), 0, "a gate to the flat code");
    check(update_descriptor(&gdt[14], (u64)GATE << 32 | 1ul << 32 | 6 << 19) < 0, "a gate with parameters");
}

void test(void)
{
    u64 frames[1];
    u64 cr4;

    load_traps();
    catch_traps();
    asm volatile("mov %%cr4, %0" : "=r"(cr4));
    asm volatile("mov %0, %%cr4" : : "r"(cr4 | 1ul << 16)); /* FSGSBASE */

    gdt[1] = FLAT_DATA;
    gdt[2] = TLS_DATA;
    gdt[3] = FLAT_DATA_DPL0;
    frames[0] = mfn_of(gdt);
    check_equal(update_va_mapping((void *)gdt, (mfn_of(gdt) << 12) | PTE_READ_ONLY, UVMF_INVLPG), 0, "GDT read-only");
    check_equal(hypercall2(__HYPERVISOR_set_gdt, PTR(frames), 512), 0, "set_gdt");
    check(update_va_mapping((void *)gdt, (mfn_of(gdt) << 12) | PTE_DATA, UVMF_INVLPG) < 0, "its frame stays read-only");

    load_fs(1 << 3 | 3);
    check_equal(caught.count, 0, "a data segment loads");
    load_fs(2 << 3 | 3);
    check_equal(caught.count, 0, "a TLS segment loads");
    check_equal(fs_base(), TLS_BASE, "its base");
    load_fs(3 << 3 | 3);
    check_equal(caught.count, 0, "a DPL 0 segment was raised to DPL 3");
    load_fs(4 << 3 | 3);
    check_equal(caught.vector, 13, "an empty descriptor");
    check_equal(caught.error_code, 4 << 3, "its error code");
    load_fs(0);
    check_equal(caught.count, 0, "the null selector");

    check_equal(update_descriptor(&gdt[4], TLS_DATA), 0, "update_descriptor");
    load_fs(4 << 3 | 3);
    check_equal(caught.count, 0, "then it loads");
    check_equal(fs_base(), TLS_BASE, "its base");
    check(update_descriptor(&gdt[5], INTERRUPT_GATE) < 0, "a system descriptor is refused");
    check_equal(gdt[5], 0, "and changes nothing");
    check_equal(hypercall2(__HYPERVISOR_update_descriptor, machine_address(&gdt[5]) + 4, 0), -XEN_EINVAL_,
                "a misaligned address");
    load_fs(0);
    call_gates();

    frames[0] = 0x0fffffffffff;
    check(hypercall2(__HYPERVISOR_set_gdt, PTR(frames), 512) < 0, "a wild GDT frame");
    frames[0] = mfn_of((void *)start_info->pt_base);
    check(hypercall2(__HYPERVISOR_set_gdt, PTR(frames), 512) < 0, "a page table as GDT");
    check(hypercall2(__HYPERVISOR_set_gdt, PTR(frames), 100000) < 0, "too many entries");

    ldt[1] = TLS_DATA;
    check_equal(update_va_mapping((void *)ldt, (mfn_of(ldt) << 12) | PTE_READ_ONLY, UVMF_INVLPG), 0, "LDT read-only");
    struct mmuext_op op = {.cmd = MMUEXT_SET_LDT};
    op.arg1.linear_addr = PTR(ldt);
    op.arg2.nr_ents = 512;
    check_equal(hypercall4(__HYPERVISOR_mmuext_op, PTR(&op), 1, 0, DOMID_SELF), 0, "SET_LDT");
    load_fs(1 << 3 | 7);
    check_equal(caught.count, 0, "a segment of the LDT loads");
    check_equal(fs_base(), TLS_BASE, "its base");
    load_fs(0);
    op.arg1.linear_addr = 0;
    op.arg2.nr_ents = 0;
    check_equal(hypercall4(__HYPERVISOR_mmuext_op, PTR(&op), 1, 0, DOMID_SELF), 0, "no LDT");
    load_fs(1 << 3 | 7);
    check_equal(caught.vector, 13, "then it does not load");

    check_equal(hypercall2(__HYPERVISOR_set_segment_base, SEGBASE_FS, 0x112233445000), 0, "set_segment_base FS");
    check_equal(fs_base(), 0x112233445000, "it is set");
    check(hypercall2(__HYPERVISOR_set_segment_base, SEGBASE_FS, 0x1122000000000000) < 0, "a non-canonical base");
    check(hypercall2(__HYPERVISOR_set_segment_base, 99, 0) < 0, "a base that does not exist");
}
