/*
 * hostile/root_slots: the sixteen slots of a level-4 table that are the hypervisor's. A guest fills them before the table becomes one, and
 * would have them followed: by a linear entry, through which a level-4 table is read as one of level 1 to 3 (class of XSA-240), or as
 * user mode's. What they hold is the hypervisor's from then on. The machine-to-phys table, behind the first, is the kernel's:
 * user mode sees it only where its root was once a kernel's, as Xen has it (VMASST_TYPE_m2p_strict).
 */
#include "guest.h"

enum { FIRST = 256, LAST = 271, SELF = 5 };
#define M2P_VA 0xffff800000000000ul
static PAGE u64 root[512];
static PAGE volatile u64 secret[512], table[512];

static u64 address(u64 l4, u64 l3, u64 l2, u64 l1)
{
    u64 va = l4 << 39 | l3 << 30 | l2 << 21 | l1 << 12;
    return va >> 47 & 1 ? va | 0xffff000000000000ul : va;
}

/* What is read there; 0 if it faults. */
static u64 read_at(u64 va)
{
    u64 value = 0;
    EXPECT_TRAP("movq (%[at]), %%rax\n\tmovq %%rax, %[value]", [at] "r"(va), [value] "m"(value));
    asm volatile("" : "+m"(value));
    return caught.count ? 0 : value;
}

static void map(volatile void *page, u64 flags)
{
    check_equal(update_va_mapping((void *)page, (mfn_of(page) << 12) | flags, UVMF_INVLPG), 0, "map");
}

static void followed(void)
{
    u64 *old = (u64 *)start_info->pt_base;
    /* As a page, and as a table whose first entry is that page. */
    table[0] = (mfn_of(secret) << 12) | PTE_DATA;
    for (unsigned round = 0; round < 2; round++) {
        memcpy(root, old, PAGE_SIZE);
        for (unsigned i = FIRST; i <= LAST; i++)
            root[i] = (mfn_of(round ? table : secret) << 12) | PTE_DATA;
        root[SELF] = (mfn_of(root) << 12) | PTE_READ_ONLY;
        map(root, PTE_READ_ONLY);
        check_equal(mmuext(MMUEXT_PIN_L4_TABLE, mfn_of(root)), 0, "pin");
        check_equal(mmuext(MMUEXT_NEW_BASEPTR, mfn_of(root)), 0, "the new root");
        for (unsigned i = FIRST; i <= LAST; i++) {
            check(root[i] != ((mfn_of(round ? table : secret) << 12) | PTE_DATA), "a slot is not as the guest filled it");
            check(read_at(address(SELF, SELF, SELF, i)) != secret[0], "as an entry of level 1");
            check(read_at(address(SELF, SELF, i, 0)) != secret[0], "as one of level 2");
            check(read_at(address(SELF, i, 0, 0)) != secret[0], "as one of level 3");
            check(read_at(address(i, 0, 0, 0)) != secret[0], "as what it is");
            check(mmu_update((mfn_of(root) << 12) + i * 8, (mfn_of(secret) << 12) | PTE_DATA) < 0, "nor may it be set");
        }
        check_equal(read_at(address(SELF, SELF, SELF, SELF) + SELF * 8) & ~PTE_A, root[SELF] & ~PTE_A, "other entries are followed");
        check_equal(mmuext(MMUEXT_NEW_BASEPTR, mfn_of(old)), 0, "the old root");
        check_equal(mmuext(MMUEXT_UNPIN_TABLE, mfn_of(root)), 0, "unpin");
        map(root, PTE_DATA);
    }
}

extern const char read_m2p[];
asm(".pushsection .text\n read_m2p: movabs $0xffff800000000000, %rcx\n mov (%rcx), %rdx\n ud2\n .popsection");

static bool is_shown(void)
{
    struct target target = user_target(read_m2p);
    struct frame *frame = go_to(&target);
    check(frame->vector == 6 || (frame->vector == 14 && (frame->error_code & ~1ul) == 4), "a user's access");
    return frame->vector == 6;
}

static void user_roots(void)
{
    u64 *kernel = (u64 *)start_info->pt_base;
    set_up_user();
    check(!is_shown(), "a user's root does not show the machine-to-phys table");
    memcpy(root, kernel, PAGE_SIZE);
    root[0] = root[511];
    use_user_root(root);
    check(!is_shown(), "nor does another one");
    check_equal(mmuext(MMUEXT_NEW_BASEPTR, mfn_of(root)), 0, "it becomes the kernel's");
    check(is_shown(), "then it does");
    check_equal(mmuext(MMUEXT_NEW_BASEPTR, mfn_of(kernel)), 0, "and the kernel's no more");
    check(is_shown(), "it still does");
    check_equal(hypercall2(__HYPERVISOR_vm_assist, VMASST_CMD_enable, VMASST_TYPE_m2p_strict), 0, "strict");
    check_equal(mmuext(MMUEXT_NEW_USER_BASEPTR, 0), 0, "no user root");
    check_equal(mmuext(MMUEXT_NEW_USER_BASEPTR, mfn_of(root)), 0, "it becomes the user's anew");
    check(!is_shown(), "a strict domain's does not show it");
    check(*(volatile u64 *)M2P_VA || true, "the kernel's does");
}

void test(void)
{
    load_traps();
    catch_traps();
    secret[0] = 0x5ec4e75ec4e7;
    followed();
    user_roots();
}
