/*
 * mmu_forms: whom mmu_update, update_va_mapping and mmuext_op are about, in every form in which a domain can be named; what each
 * answers, how much it says that it has done, and what continued calls look like.
 */
#include "guest.h"

enum { XEN_ESRCH_ = 3 };
#define PREEMPTED 0x80000000u
static PAGE char window[PAGE_SIZE], data[PAGE_SIZE];
static PAGE u64 table[512];
static bool is_dom0;
static u32 done;

static long updates(struct mmu_update *list, u32 count, u32 foreigndom)
{
    done = 77;
    return hypercall4(__HYPERVISOR_mmu_update, PTR(list), count, PTR(&done), foreigndom);
}

static long operations(struct mmuext_op *list, u32 count, u32 foreigndom)
{
    done = 77;
    return hypercall4(__HYPERVISOR_mmuext_op, PTR(list), count, PTR(&done), foreigndom);
}

/* FD: whose frames; PFD: whose tables. */
static void domains(void)
{
    u64 entry = (mfn_of(data) << 12) | PTE_DATA, at = entry_maddr(window, 1);
    domid_t self = own_domid();
    struct mmu_update one = {at, entry};
    static const struct { const char *what; u32 foreigndom; } nobody[] = {
        {"FD is nobody", 99},
        {"FD is DOMID_INVALID", DOMID_INVALID},
        {"FD is DOMID_COW", DOMID_COW},
        {"FD is DOMID_IDLE", DOMID_IDLE},
    };

    for (unsigned i = 0; i < sizeof(nobody) / sizeof(*nobody); i++) {
        check_equal(updates(&one, 1, nobody[i].foreigndom), -XEN_ESRCH_, nobody[i].what);
        check_equal(done, 0, "nothing is done, and it is said");
        check_equal(operations(NULL, 0, nobody[i].foreigndom), -XEN_ESRCH_, nobody[i].what);
        check_equal(done, 77, "mmuext_op does not say so");
        check_equal(hypercall4(__HYPERVISOR_update_va_mapping_otherdomain, PTR(window), entry, 0, nobody[i].foreigndom),
                    -XEN_ESRCH_, nobody[i].what);
    }
    check_equal(updates(&one, 1, self), -XEN_ESRCH_, "oneself by number is no other domain");
    check_equal(done, 0, "nothing is done");
    check_equal(operations(NULL, 0, self), -XEN_ESRCH_, "in mmuext_op neither");
    check_equal(hypercall4(__HYPERVISOR_update_va_mapping_otherdomain, PTR(window), entry, 0, self), -XEN_ESRCH_, "nor there");
    check_equal(hypercall4(__HYPERVISOR_update_va_mapping_otherdomain, PTR(window), entry, 0, DOMID_SELF), 0, "DOMID_SELF");
    check_equal(updates(&one, 1, (self + 1) << 16 | DOMID_SELF), 0, "but as owner of the tables it is");
    check_equal(done, 1, "done");
    check_equal(updates(&one, 1, (DOMID_SELF + 1) << 16 | DOMID_SELF), -XEN_ESRCH_, "where DOMID_SELF is nobody");
    check_equal(done, 77, "what is done is not said");
    check_equal(updates(&one, 1, 100 << 16 | DOMID_SELF), -XEN_ESRCH_, "tables of nobody");
    check_equal(done, 77, "what is done is not said");
    check_equal(updates(&one, 1, (self + 1) << 16 | 99), -XEN_ESRCH_, "frames of nobody");
    check_equal(done, 0, "what is done is said");

    /* A level-1 entry may map what another domain owns; any other entry may not. */
    check_equal(updates(&one, 1, DOMID_IO), 0, "what is mapped already may be so, whoever is named");
    check_equal(update_va_mapping(window, 0, UVMF_INVLPG), 0, "not mapped");
    check_equal(updates(NULL, 0, DOMID_XEN), 0, "nothing of Xen's");
    check_equal(updates(&one, 1, DOMID_IO), -XEN_EBUSY_, "our frame is none of DOMID_IO's");
    check_equal(done, 0, "nothing is done");
    one.val = 0;
    check_equal(updates(&one, 1, DOMID_IO), 0, "but nothing may be mapped in its name");
    one = (struct mmu_update){mfn_of(data) << 12, 5};
    check_equal(updates(&one, 1, DOMID_IO), 0, "and data be stored");
    one = (struct mmu_update){entry_maddr(window, 2), *(u64 *)((char *)va_of_mfn(entry_maddr(window, 2) >> 12) +
                                                             (entry_maddr(window, 2) & 4095))};
    check_equal(updates(&one, 1, DOMID_IO), -XEN_EINVAL_, "a level-2 entry with foreign frames");
    check_equal(updates(&one, 1, DOMID_SELF), 0, "the same with our own");
    one = (struct mmu_update){(mfn_of(data) << 12) | MMU_MACHPHYS_UPDATE, pfn_of(data)};
    check_equal(updates(&one, 1, DOMID_IO), -XEN_EINVAL_, "our frame is none of DOMID_IO's in machine-to-phys either");
    if (is_dom0)
        return;
    check_equal(updates(NULL, 0, 0), 0, "nothing to do with domain 0's frames");
    one = (struct mmu_update){at, entry};
    check_equal(updates(&one, 1, 0), -XEN_EPERM_, "something");
    check_equal(done, 0, "nothing is done");
    check_equal(updates(&one, 1, 1 << 16 | DOMID_SELF), -XEN_EPERM_, "or with domain 0's tables");
    one.ptr |= MMU_MACHPHYS_UPDATE;
    check_equal(updates(&one, 1, 0), -XEN_EPERM_, "or with its numbers");
    check_equal(updates(&one, 1, 1 << 16 | DOMID_SELF), -XEN_EPERM_, "numbers of other tables' owner");
    one.ptr |= 4;
    check_equal(updates(&one, 1, 0), -XEN_ENOSYS_, "no such command, whoever it is for");
    check_equal(updates(NULL, 1, 0), -XEN_EFAULT_, "no such request");
    check_equal(updates(&one, 1, DOMID_XEN), -XEN_ENOSYS_, "nor for Xen's frames");
    one = (struct mmu_update){at, entry};
    check_equal(updates(&one, 1, DOMID_XEN), -XEN_EPERM_, "Xen's own frames");
    check_equal(operations(NULL, 0, 0), -XEN_EPERM_, "mmuext_op on domain 0");
    check_equal(operations(NULL, 0, DOMID_IO), -XEN_EPERM_, "on DOMID_IO");
    check_equal(operations(NULL, 0, DOMID_XEN), -XEN_EPERM_, "on DOMID_XEN");
    static const u16 others[] = {0, DOMID_IO, DOMID_XEN};
    for (int i = 0; i < 3; i++)
        check_equal(hypercall4(__HYPERVISOR_update_va_mapping_otherdomain, PTR(window), 0, 0, others[i]), -XEN_EPERM_,
                    "mapping for others");
}

/* The marks of continued calls are the guest's to forge. */
static void continued(void)
{
    struct mmu_update one = {entry_maddr(window, 1), (mfn_of(data) << 12) | PTE_DATA};
    struct mmuext_op flush = {.cmd = MMUEXT_TLB_FLUSH_LOCAL};

    done = 5;
    check_equal(hypercall4(__HYPERVISOR_mmu_update, PTR(&one), 1 | PREEMPTED, PTR(&done), DOMID_SELF), 0, "continued");
    check_equal(done, 6, "one more is done");
    check_equal(hypercall4(__HYPERVISOR_mmu_update, PTR(&one), PREEMPTED, PTR(&done), DOMID_SELF), 0, "of nothing");
    check_equal(done, 6, "no more is done");
    check_equal(hypercall4(__HYPERVISOR_mmu_update, 0, PREEMPTED, PTR(&done), 1234), 1234, "with a result");
    check_equal(hypercall4(__HYPERVISOR_mmu_update, 0, PREEMPTED, 0, -7ul), -7l, "with another");
    check_equal(hypercall4(__HYPERVISOR_mmu_update, 0, 1 | PREEMPTED, PTR(&done), DOMID_SELF), -XEN_EFAULT_, "at NULL");
    check_equal(done, 6, "no more is done");
    check_equal(hypercall4(__HYPERVISOR_mmuext_op, PTR(&flush), 1 | PREEMPTED, PTR(&done), DOMID_SELF), 0, "continued");
    check_equal(done, 7, "one more is done");
    check_equal(hypercall4(__HYPERVISOR_mmuext_op, 0, PREEMPTED, PTR(&done), 99), 99, "with a result");
    check_equal(hypercall4(__HYPERVISOR_mmuext_op, 0, PREEMPTED, PTR(&done), -22ul), -22l, "with another");
    check_equal(done, 7, "no more is done");
    check_equal(hypercall4(__HYPERVISOR_mmuext_op, PTR(&flush), PREEMPTED, 0, DOMID_SELF), 0, "of nothing");
}

/* A list ends at the first that is refused. */
static void lists(void)
{
    u64 at = entry_maddr(window, 1), entry = (mfn_of(data) << 12) | PTE_DATA;
    struct mmu_update list[] = {{at, entry}, {at | MMU_PT_UPDATE_PRESERVE_AD, entry}, {at | 3, entry},
                                {at | 4, entry}, {at, entry}};
    struct mmuext_op ops[] = {{.cmd = MMUEXT_TLB_FLUSH_LOCAL}, {.cmd = MMUEXT_INVLPG_LOCAL, .arg1.linear_addr = 0x800000000000},
                              {.cmd = MMUEXT_INVLPG_ALL, .arg1.linear_addr = 0xffff800000000000}, {.cmd = MMUEXT_TLB_FLUSH_ALL},
                              {.cmd = MMUEXT_MARK_SUPER, .arg1.mfn = mfn_of(data)}};

    check_equal(updates(list, 5, DOMID_SELF), -XEN_ENOSYS_, "the fourth");
    check_equal(done, 3, "three are done");
    check_equal(operations(ops, 5, DOMID_SELF), -XEN_EOPNOTSUPP_, "the fifth");
    check_equal(done, 4, "four are done");
    ops[0].cmd = MMUEXT_UNMARK_SUPER;
    check_equal(operations(ops, 1, DOMID_SELF), -XEN_EOPNOTSUPP_, "unmark");
    ops[0].cmd = 14;
    check_equal(operations(ops, 1, DOMID_SELF), -XEN_ENOSYS_, "what there was once");
    ops[0].cmd = 21;
    check_equal(operations(ops, 1, DOMID_SELF), -XEN_ENOSYS_, "what there is not yet");
    check_equal(mmu_update((foreign_mfn() << 12) | MMU_MACHPHYS_UPDATE, 7), -XEN_EINVAL_, "machine-to-phys of another's frame");
    check_equal(mmu_update((1ul << 45) | MMU_MACHPHYS_UPDATE, 7), -XEN_EINVAL_, "of none");
    check_equal(mmu_update(1ul << 45, 7), -XEN_EINVAL_, "a table that is none");
    /* The number is the guest's affair; the low bits of the address are not looked at. */
    u64 *m2p = (u64 *)0xffff800000000000;
    check_equal(mmu_update((mfn_of(data) << 12) + 0x7f8 + MMU_MACHPHYS_UPDATE, ~0ul), 0, "any number");
    check_equal(m2p[mfn_of(data)], ~0ul, "as written");
    check_equal(mmu_update((mfn_of(data) << 12) + MMU_MACHPHYS_UPDATE, pfn_of(data)), 0, "back");
    check_equal(m2p[mfn_of(data)], pfn_of(data), "as it was");
}

/* Pages as a whole, pins, roots and the LDT. */
static long op2(u32 cmd, u64 arg1, u64 arg2)
{
    struct mmuext_op op = {.cmd = cmd, .arg1.mfn = arg1, .arg2.src_mfn = arg2};
    return operations(&op, 1, DOMID_SELF);
}

static void pages(void)
{
    u64 mfn = mfn_of(table), root = mfn_of((void *)start_info->pt_base);

    data[5] = 55;
    check_equal(op2(MMUEXT_COPY_PAGE, mfn, mfn_of(data)), 0, "copy");
    check_equal(((char *)table)[5], 55, "copied");
    check_equal(op2(MMUEXT_COPY_PAGE, mfn, mfn), 0, "to itself");
    check_equal(op2(MMUEXT_COPY_PAGE, mfn, root), 0, "from a table");
    check_equal(table[511], ((u64 *)start_info->pt_base)[511], "its entries are readable anyway");
    check_equal(op2(MMUEXT_COPY_PAGE, root, mfn), -XEN_EINVAL_, "to a table");
    check_equal(op2(MMUEXT_COPY_PAGE, mfn, foreign_mfn()), -XEN_EINVAL_, "from another's frame");
    check_equal(op2(MMUEXT_COPY_PAGE, foreign_mfn(), mfn), -XEN_EINVAL_, "to another's frame");
    check_equal(op2(MMUEXT_COPY_PAGE, mfn, 1ul << 45), -XEN_EINVAL_, "from none");
    check_equal(op2(MMUEXT_CLEAR_PAGE, mfn, 0), 0, "clear");
    check_equal(table[511] | table[0], 0, "cleared");
    check_equal(op2(MMUEXT_CLEAR_PAGE, root, 0), -XEN_EINVAL_, "a table");
    check_equal(op2(MMUEXT_CLEAR_PAGE, foreign_mfn(), 0), -XEN_EINVAL_, "another's");
    check_equal(op2(MMUEXT_CLEAR_PAGE, start_info->shared_info >> 12, 0) != -XEN_EINVAL_ || is_dom0, true, "shared_info");

    for (u32 level = 0; level < 4; level++) {
        check_equal(op2(MMUEXT_PIN_L1_TABLE + level, mfn, 0), -XEN_EINVAL_, "pin what is mapped writable");
        check_equal(op2(MMUEXT_PIN_L1_TABLE + level, foreign_mfn(), 0), -XEN_EINVAL_, "another's");
        check_equal(op2(MMUEXT_PIN_L1_TABLE + level, 1ul << 45, 0), -XEN_EINVAL_, "none");
    }
    check_equal(op2(MMUEXT_UNPIN_TABLE, mfn, 0), -XEN_EINVAL_, "unpin data");
    check_equal(op2(MMUEXT_UNPIN_TABLE, foreign_mfn(), 0), -XEN_EINVAL_, "unpin another's");
    check_equal(update_va_mapping(table, (mfn << 12) | PTE_READ_ONLY, UVMF_INVLPG), 0, "read-only");
    for (u32 level = 0; level < 4; level++) {
        check_equal(op2(MMUEXT_PIN_L1_TABLE + level, mfn, 0), 0, "pin");
        check_equal(op2(MMUEXT_PIN_L1_TABLE + level, mfn, 0), -XEN_EINVAL_, "pin again");
        check_equal(op2(MMUEXT_PIN_L1_TABLE + (level + 1) % 4, mfn, 0), -XEN_EINVAL_, "as another");
        check_equal(op2(MMUEXT_UNPIN_TABLE, mfn, 0), 0, "unpin");
        check_equal(op2(MMUEXT_UNPIN_TABLE, mfn, 0), -XEN_EINVAL_, "unpin again");
    }
    u64 held_root = (mfn_of((void *)start_info->pt_base));
    check_equal(op2(MMUEXT_PIN_L4_TABLE, held_root, 0), -XEN_EINVAL_, "the builder has pinned the root");
    check_equal(op2(MMUEXT_UNPIN_TABLE, held_root, 0), 0, "but it is ours to unpin, while it is in use");
    check_equal(op2(MMUEXT_UNPIN_TABLE, held_root, 0), -XEN_EINVAL_, "once");
    check_equal(op2(MMUEXT_PIN_L4_TABLE, held_root, 0), 0, "and to pin");

    check_equal(op2(MMUEXT_NEW_BASEPTR, held_root, 0), 0, "the same root");
    check_equal(op2(MMUEXT_NEW_BASEPTR, 0, 0), -XEN_EINVAL_, "no root");
    check_equal(op2(MMUEXT_NEW_BASEPTR, foreign_mfn(), 0), -XEN_EINVAL_, "another's");
    check_equal(op2(MMUEXT_NEW_BASEPTR, mfn_of(data), 0), -XEN_EINVAL_, "data");
    check_equal(op2(MMUEXT_NEW_USER_BASEPTR, mfn_of(data), 0), -XEN_EINVAL_, "data for user mode");
    check_equal(op2(MMUEXT_NEW_USER_BASEPTR, foreign_mfn(), 0), -XEN_EINVAL_, "another's for user mode");
    check_equal(op2(MMUEXT_NEW_USER_BASEPTR, mfn, 0), 0, "an empty frame, not pinned");
    check_equal(op2(MMUEXT_NEW_USER_BASEPTR, mfn, 0), 0, "again");
    check_equal(op2(MMUEXT_PIN_L1_TABLE, mfn, 0), -XEN_EINVAL_, "it is in use");
    check_equal(update_va_mapping(table, (mfn << 12) | PTE_DATA, UVMF_INVLPG), -XEN_EBUSY_, "and not to be written");
    check_equal(op2(MMUEXT_NEW_USER_BASEPTR, held_root, 0), 0, "the kernel's root may be it, too");
    check_equal(op2(MMUEXT_NEW_USER_BASEPTR, 0, 0), 0, "none");
    check_equal(update_va_mapping(table, (mfn << 12) | PTE_DATA, UVMF_INVLPG), 0, "data again");

    check_equal(op2(MMUEXT_SET_LDT, PTR(data) + 8, 1), -XEN_EINVAL_, "an LDT within a page");
    check_equal(op2(MMUEXT_SET_LDT, PTR(data), 8193), -XEN_EINVAL_, "too long");
    check_equal(op2(MMUEXT_SET_LDT, 0x800000000000, 1), -XEN_EINVAL_, "nowhere");
    check_equal(op2(MMUEXT_SET_LDT, 0xffff800000000000, 1), -XEN_EINVAL_, "in the hole");
    check_equal(op2(MMUEXT_SET_LDT, 0xffff800000000123, 0), 0, "none, wherever");
    check_equal(op2(MMUEXT_SET_LDT, 0x7ffffffff000, 8192), 0, "at the end of the low half");
    check_equal(op2(MMUEXT_SET_LDT, PTR(data), 8192), 0, "the longest");
    check_equal(op2(MMUEXT_SET_LDT, 0, 0), 0, "none");
    if (!is_dom0) {
        check_equal(op2(MMUEXT_FLUSH_CACHE, 0, 0), -13, "caches");
        check_equal(op2(MMUEXT_FLUSH_CACHE_GLOBAL, 0, 0), -13, "of all");
    }
}

/* Which vCPUs: by a bitmap of as many words as the domain has vCPUs for. */
static void bitmaps(void)
{
    static u64 mask;
    struct mmuext_op op = {.cmd = MMUEXT_TLB_FLUSH_MULTI};
    u64 entry = (mfn_of(data) << 12) | PTE_DATA;

    for (int round = 0; round < 2; round++, op.cmd = MMUEXT_INVLPG_MULTI) {
        for (mask = 1; mask != 0; mask <<= 9) {
            op.arg2.vcpumask.p = &mask;
            check_equal(operations(&op, 1, DOMID_SELF), 0, "a bit");
        }
        op.arg2.vcpumask.p = NULL;
        check_equal(operations(&op, 1, DOMID_SELF), -XEN_EINVAL_, "no bitmap");
        op.arg2.vcpumask.p = (void *)0xffff800000000000;
        check_equal(operations(&op, 1, DOMID_SELF), -XEN_EINVAL_, "in the hole");
    }
    static const u64 types[] = {UVMF_TLB_FLUSH, UVMF_INVLPG};
    for (int i = 0; i < 2; i++) {
        mask = 0xfedc;
        check_equal(update_va_mapping(window, entry, types[i] | PTR(&mask)), 0, "a bitmap");
        check_equal(update_va_mapping(window, entry, types[i] | UVMF_ALL), 0, "all");
        check_equal(update_va_mapping(window, entry, types[i] | UVMF_LOCAL), 0, "local");
        check_equal(update_va_mapping(window, 0, types[i] | 0xffff800000000000), -XEN_EFAULT_, "a bitmap in the hole");
        check_equal(update_va_mapping(window, entry, types[i] | 8), -XEN_EFAULT_, "nowhere");
        window[0] = 3; /* it was mapped nevertheless */
        check_equal(update_va_mapping(data, PTE_DATA | 8, types[i] | 8), is_dom0 ? -XEN_EFAULT_ : -XEN_EINVAL_, "refused");
        check_equal(update_va_mapping(data, entry, UVMF_INVLPG), 0, "as it was");
    }
    check_equal(update_va_mapping(window, entry, 3 | 0xffff800000000000), 0, "no flush: no bitmap is looked at");
    check_equal(update_va_mapping(window, entry, 0xffff800000000000), 0, "nor here");
}

void test(void)
{
    is_dom0 = start_info->flags & SIF_INITDOMAIN;
    load_traps();
    domains();
    continued();
    lists();
    pages();
    bitmaps();
}
