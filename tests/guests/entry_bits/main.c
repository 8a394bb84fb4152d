/*
 * entry_bits: every bit of an entry at every level: which are refused, with which error, and what becomes of the others in the table;
 * by mmu_update, update_va_mapping, validation of a table, and with accessed and dirty bits to be preserved.
 */
#include "guest.h"

static PAGE char data[PAGE_SIZE];
static PAGE u64 tables[4][512]; /* of level 1 to 4, each but the first empty, none linked */
static bool is_dom0;

#define BIT(n) (1ul << (n))
#define KERNEL BIT(52) /* what Xen notes of an entry without USER */
enum { PTE_PWT = 8, PTE_PCD = 16, PTE_PSE = 128, PTE_GLOBAL = 256 };

static u64 at_level(int level, unsigned index) { return (mfn_of(tables[level - 1]) << 12) + index * 8; }
static u64 *read_entry(u64 maddr) { return (u64 *)((char *)va_of_mfn(maddr >> 12) + (maddr & 4095)); }

/* Frames that the entries of each level lead to: data, and tables. */
static u64 target(int level) { return level == 1 ? mfn_of(data) << 12 : mfn_of(tables[level - 2]) << 12; }

/* What Xen makes of the bits of a present entry. */
static u64 adjusted(int level, u64 entry)
{
    if (!(entry & PTE_P))
        return entry;
    if (level > 1)
        return entry | PTE_US | (level == 4 ? PTE_A : 0);
    if (!(entry & PTE_US))
        entry |= KERNEL;
    if (!(entry & KERNEL))
        entry |= PTE_GLOBAL;
    return entry | PTE_US;
}

static bool is_forbidden(int level, unsigned bit)
{
    if (bit == 8)
        return level > 1;
    if (level == 1 && is_dom0) /* domain 0 has devices: it may set cache attributes */
        return false;
    return bit == 3 || bit == 4 || bit == 7;
}

static void each_bit(int level)
{
    u64 at = at_level(level, 9);
    for (unsigned bit = 1; bit < 64; bit++) {
        if (bit == 12)
            bit = 52; /* those of the frame are elsewhere */
        for (int user = 0; user <= 1; user++) {
            u64 entry = (target(level) | PTE_P | (user ? PTE_US : 0)) ^ BIT(bit);
            check_equal(mmu_update(at, 0), 0, "empty");
            long result = mmu_update(at, entry);
            if (is_forbidden(level, bit)) {
                check_equal(result, -XEN_EINVAL_, "a forbidden bit");
                check_equal(*read_entry(at), 0, "nothing changed");
                if (result != -XEN_EINVAL_)
                    print("level %d bit %u\n", level, bit);
                continue;
            }
            check_equal(result, 0, "a bit");
            check_equal(*read_entry(at), adjusted(level, entry), "as Xen completes it");
            if (result != 0 || *read_entry(at) != adjusted(level, entry))
                print("level %d bit %u user %d\n", level, bit, user);
            /* By the shorter way, from an entry that differs in little. */
            u64 plain = target(level) | PTE_P | PTE_US;
            check_equal(mmu_update(at, plain), 0, "plain");
            check_equal(mmu_update(at, entry), 0, "from another");
            check_equal(*read_entry(at), adjusted(level, entry), "the same");
        }
        u64 absent = (target(level) | PTE_US | PTE_RW) ^ BIT(bit);
        check_equal(mmu_update(at, absent), 0, "an entry that is not present may be anything");
        check_equal(*read_entry(at), absent, "and stays so");
        check_equal(mmu_update(at, ~(u64)PTE_P), 0, "even that");
    }
    check_equal(mmu_update(at, 0), 0, "empty");
}

static void frames(int level)
{
    u64 at = at_level(level, 9);
    long foreign = level == 1 ? -XEN_EBUSY_ : -XEN_EINVAL_;
    check_equal(mmu_update(at, (foreign_mfn() << 12) | PTE_P), foreign, "a foreign frame");
    check_equal(mmu_update(at, (foreign_mfn() << 12) | PTE_P | PTE_RW), foreign, "writable");
    check_equal(mmu_update(at, BIT(51) | PTE_P), level == 1 ? -XEN_EPERM_ : -XEN_EINVAL_, "no frame");
    check_equal(mmu_update(at, BIT(50) | PTE_P | PTE_RW), level == 1 ? -XEN_EPERM_ : -XEN_EINVAL_, "none, writable");
    check_equal(mmu_update(at, 0x000ffffffffff000 | PTE_P), -XEN_EINVAL_, "the frame that says that it is none");
    if (!is_dom0)
        check_equal(mmu_update(at, 0xfee00000 | PTE_P), level == 1 ? -XEN_EPERM_ : -XEN_EINVAL_, "the interrupt controller");
    for (int l = 1; l <= 4; l++) {
        u64 entry = (mfn_of(tables[l - 1]) << 12) | PTE_P;
        bool is_linear = level == l && level > 1;
        check_equal(mmu_update(at, entry), level == 1 || l == level - 1 || is_linear ? 0 : -XEN_EINVAL_, "a table, read-only");
        check_equal(mmu_update(at, 0), 0, "empty");
        check_equal(mmu_update(at, entry | PTE_RW), level == 1 ? -XEN_EBUSY_ : l == level - 1 ? 0 : -XEN_EINVAL_, "writable");
        check_equal(mmu_update(at, 0), 0, "empty");
    }
}

/* PRESERVE_AD keeps what is set, whatever comes; a plain update does not. */
static void preserved(int level)
{
    u64 at = at_level(level, 9), entry = adjusted(level, target(level) | PTE_P | PTE_US), always = entry & PTE_A;
    static const u64 bits[] = {0, PTE_A, PTE_D, PTE_A | PTE_D};
    for (int before = 0; before < 4; before++)
        for (int now = 0; now < 4; now++) {
            check_equal(mmu_update(at, entry | bits[before]), 0, "before");
            check_equal(mmu_update(at | MMU_PT_UPDATE_PRESERVE_AD, entry | bits[now] | BIT(9)), 0, "now");
            check_equal(*read_entry(at), entry | BIT(9) | bits[before] | bits[now], "both");
            check_equal(mmu_update(at, entry | bits[now]), 0, "plainly");
            check_equal(*read_entry(at), entry | bits[now], "the new ones alone");
            check_equal(mmu_update(at | MMU_PT_UPDATE_NO_TRANSLATE, entry | bits[before]), 0, "not to be translated");
            check_equal(*read_entry(at), entry | bits[before], "the new ones alone");
            check_equal(mmu_update(at | MMU_PT_UPDATE_PRESERVE_AD, bits[now]), 0, "not present");
            check_equal(*read_entry(at), always | bits[before] | bits[now], "is no different");
        }
    check_equal(mmu_update(at, 0), 0, "empty");
}

/* In a table that is to be one: the first entry that is wrong says why. */
static void validated(void)
{
    static PAGE u64 table[512], upper[512];
    static const struct { u64 entry; long expected; } wrong[] = {
        {PTE_P | 1ul << 51, -XEN_EPERM_}, {0x000ffffffffff000 | PTE_P, -XEN_EINVAL_},
    };
    u64 mfn = mfn_of(table);

    for (int i = 0; i < 3; i++) {
        memset(table, 0, PAGE_SIZE);
        table[0] = target(1) | PTE_P;
        table[1] = target(1) | PTE_P | PTE_RW | PTE_US;
        table[2] = target(1) | PTE_RW;
        table[3] = i < 2 ? wrong[i].entry : foreign_mfn() << 12 | PTE_P;
        table[4] = BIT(51) | PTE_P;
        check_equal(update_va_mapping(table, mfn << 12 | PTE_READ_ONLY, UVMF_INVLPG), 0, "read-only");
        check_equal(mmuext(MMUEXT_PIN_L1_TABLE, mfn), i < 2 ? wrong[i].expected : -XEN_EBUSY_, "why");
        check_equal(table[0], adjusted(1, target(1) | PTE_P), "those before were completed");
        check_equal(update_va_mapping(table, mfn << 12 | PTE_DATA, UVMF_INVLPG), 0, "and it is data still");
        /* One level up the reason is the same. */
        upper[5] = mfn << 12 | PTE_P;
        check_equal(update_va_mapping(table, 0, UVMF_INVLPG), 0, "not mapped");
        check_equal(update_va_mapping(upper, mfn_of(upper) << 12 | PTE_READ_ONLY, UVMF_INVLPG), 0, "read-only");
        check_equal(mmuext(MMUEXT_PIN_L2_TABLE, mfn_of(upper)), i < 2 ? wrong[i].expected : -XEN_EBUSY_, "why, from above");
        check_equal(update_va_mapping(upper, mfn_of(upper) << 12 | PTE_DATA, UVMF_INVLPG), 0, "data still");
        check_equal(update_va_mapping(table, mfn << 12 | PTE_DATA, UVMF_INVLPG), 0, "this, too");
    }
    memset(table, 0, PAGE_SIZE);
    table[0] = target(1) | PTE_P;
    table[1] = target(1) | PTE_P | PTE_RW | PTE_US | PTE_A;
    table[2] = ~(u64)PTE_P;
    table[3] = target(1) | PTE_P | KERNEL | PTE_GLOBAL;
    table[511] = target(1) | PTE_P | BIT(63) | BIT(62) | 7 << 9;
    u64 copy[512];
    memcpy(copy, table, PAGE_SIZE);
    check_equal(update_va_mapping(table, mfn << 12 | PTE_READ_ONLY, UVMF_INVLPG), 0, "read-only");
    check_equal(mmuext(MMUEXT_PIN_L1_TABLE, mfn), 0, "a good one");
    for (int i = 0; i < 512; i++)
        check_equal(table[i], adjusted(1, copy[i]), "each entry as if it had been written alone");
    check_equal(mmuext(MMUEXT_UNPIN_TABLE, mfn), 0, "unpin");
    for (int i = 0; i < 512; i++)
        check_equal(table[i], adjusted(1, copy[i]), "and stays so");
}

/* In the address space in use: what the bits do. */
static void effects(void)
{
    u64 entry = mfn_of(data) << 12;
    char *window = (char *)(VIRT_BASE + 0x20000000); /* below a level-2 entry of its own */
    volatile char *at = window;
    map_at(PTR(window), data);
    check_equal(update_va_mapping(window, entry | PTE_P, UVMF_INVLPG), 0, "read-only, the kernel's");
    at[0];
    EXPECT_TRAP("movb $1, (%[at])", [at] "r"(at));
    check_equal(caught.vector << 8 | caught.error_code, 14 << 8 | 3, "not to be written");
    check_equal(update_va_mapping(window, entry | PTE_P | BIT(63), UVMF_INVLPG), 0, "not to be executed");
    EXPECT_TRAP("push $1f\n\t jmp *%[at]", [at] "r"(at));
    check_equal(caught.vector << 8 | caught.error_code, 14 << 8 | 0x11, "nor is it");
    asm volatile("add $8, %%rsp" : : : "memory");
    *(volatile unsigned char *)data = 0xc3;
    check_equal(update_va_mapping(window, entry | PTE_P, UVMF_INVLPG), 0, "executable");
    asm volatile("call *%[at]" : : [at] "r"(at) : "memory");
    u64 l2 = entry_maddr(window, 2), old = *read_entry(l2);
    check_equal(mmu_update(l2, old & ~(u64)PTE_RW), 0, "read-only from above");
    check_equal(update_va_mapping(window, entry | PTE_P | PTE_RW, UVMF_INVLPG), 0, "writable below");
    mmuext(MMUEXT_TLB_FLUSH_LOCAL, 0);
    EXPECT_TRAP("movb $1, (%[at])", [at] "r"(at));
    check_equal(mmu_update(l2, old), 0, "as it was");
    mmuext(MMUEXT_TLB_FLUSH_LOCAL, 0);
    check_equal(caught.vector << 8 | caught.error_code, 14 << 8 | 3, "not to be written either");
    EXPECT_TRAP("movb $0xc3, (%[at])", [at] "r"(at));
    check_equal(caught.count, 0, "now it is");
}

void test(void)
{
    is_dom0 = start_info->flags & SIF_INITDOMAIN;
    load_traps();
    catch_traps();
    for (int level = 1; level <= 4; level++) {
        check_equal(update_va_mapping(tables[level - 1], target(level + 1) | PTE_READ_ONLY, UVMF_INVLPG), 0, "read-only");
        check_equal(mmuext(MMUEXT_PIN_L1_TABLE + level - 1, mfn_of(tables[level - 1])), 0, "pin");
    }
    for (int level = 1; level <= 4; level++) {
        each_bit(level);
        frames(level);
        preserved(level);
    }
    validated();
    effects();
}
