/*
 * start_of_day: what a kernel finds when it starts, by the style that it asks for (see head.S). The ramdisk, if there is one,
 * is RAMDISK_BYTES long, and its byte i is i * 7 + i / 256.
 *
 * run-by: tests/integration/test_start_of_day.py
 */
#include "guest.h"

#include <xen/features.h>

extern unsigned char stubs[4096], end[];
#ifndef RAMDISK_BYTES
#define RAMDISK_BYTES 0
#endif
#define REGION 0x400000ul /* the initial mapping ends at a multiple of it */
#define M2P ((volatile u64 *)MACH2PHYS_VIRT_START)
static const u64 ramdisk_bytes = RAMDISK_BYTES;
static PAGE char window[PAGE_SIZE];

static bool can_read(u64 address)
{
    EXPECT_TRAP("movb (%[address]), %%al", [address] "r"(address));
    return caught.count == 0;
}

static bool can_write(u64 address)
{
    EXPECT_TRAP("lock orb $0, (%[address])", [address] "r"(address));
    return caught.count == 0;
}

static void check_info(void)
{
    domid_t self = DOMID_SELF;

    check_equal(memcmp(start_info->magic, "xen-3.0-x86_64", 15), 0, "the magic");
    check_equal(memcmp(start_info->cmd_line, "one two", 8), 0, "the command line");
    check_equal(hypercall2(__HYPERVISOR_memory_op, XENMEM_current_reservation, PTR(&self)), start_info->nr_pages, "nr_pages");
    check(start_info->flags & SIF_VIRT_P2M_4TOOLS, "tools may find the P2M by its address");
    check(start_info->store_evtchn != 0 && start_info->console.domU.evtchn != 0, "the event channels");
    check(va_of_mfn(start_info->store_mfn) != NULL, "the xenstore page is ours");
    shared_info_t *shared = map_shared_info();
    for (int i = 0; i < XEN_LEGACY_MAX_VCPUS; i++)
        check_equal(shared->vcpu_info[i].evtchn_upcall_mask, 1, "events are masked");
}

static void check_p2m(void)
{
    u64 nr_wrong = 0;

    for (u64 pfn = 0; pfn < start_info->nr_pages; pfn++)
        nr_wrong += M2P[p2m()[pfn]] != pfn;
    check_equal(nr_wrong, 0, "P2M and M2P agree");
#ifdef WITH_INIT_P2M
    u64 nr_bytes = start_info->nr_pages * 8;
    check_equal(start_info->mfn_list, WITH_INIT_P2M, "the P2M is where the note says");
    check(start_info->nr_p2m_frames * PAGE_SIZE > nr_bytes, "it has frames, and tables");
    check(can_read(start_info->mfn_list + nr_bytes - 1) && can_write(start_info->mfn_list), "it is mapped to be written");
    u64 pfn = start_info->first_p2m_pfn;
    check(pfn != 0 && pfn + start_info->nr_p2m_frames <= start_info->nr_pages, "its frames are ours");
    check_equal(update_va_mapping(window, p2m()[pfn] << 12 | PTE_DATA, UVMF_INVLPG), 0, "and can be mapped");
    check_equal(memcmp(window, p2m(), PAGE_SIZE), 0, "the first is the first");
#else
    check(start_info->mfn_list >= PTR(end) && start_info->mfn_list < PTR(start_info), "the P2M follows the kernel");
    check_equal(start_info->first_p2m_pfn, 0, "no frames of its own");
#endif
}

static void check_mapping(void)
{
    u64 tables = start_info->pt_base, stack = tables + start_info->nr_pt_frames * PAGE_SIZE;
    u64 limit = (stack + PAGE_SIZE + 0x80000 + REGION - 1) & -REGION;

    check_equal(PTR(va_of_mfn(start_info->store_mfn)), PTR(start_info) + PAGE_SIZE, "xenstore page after start_info");
    check_equal(PTR(va_of_mfn(start_info->console.domU.mfn)), PTR(start_info) + 2 * PAGE_SIZE, "console page after that");
    check_equal(tables, PTR(start_info) + 3 * PAGE_SIZE, "page tables after that");
    for (u64 va = VIRT_BASE; va != limit; va += PAGE_SIZE) {
        bool is_table = va >= tables && va < stack;
        if (!can_read(va) || can_write(va) == is_table) {
            print("at 0x%lx\n", va);
            check(false, "all is mapped, and the tables are read-only");
            break;
        }
    }
    check(limit == 0 || !can_read(limit), "the mapping ends at 4 MiB");
}

static uint8_t byte_at(u64 i)
{
    return i * 7 + i / 256;
}

static void check_ramdisk(void)
{
    check_equal(start_info->mod_len, ramdisk_bytes, "the ramdisk's size");
    if (ramdisk_bytes == 0) {
        check_equal(start_info->mod_start, 0, "no ramdisk");
        check_equal(start_info->flags & SIF_MOD_START_PFN, 0, "and no page of it");
        return;
    }
#ifdef WITH_MOD_START_PFN
    check(start_info->flags & SIF_MOD_START_PFN, "mod_start is a page number");
#else
    check_equal(start_info->flags & SIF_MOD_START_PFN, 0, "mod_start is an address");
    check(start_info->mod_start >= PTR(end) && start_info->mod_start % PAGE_SIZE == 0, "after the kernel");
    check(start_info->mod_start + ramdisk_bytes <= PTR(start_info), "before start_info");
#endif
    u64 nr_wrong = 0;
    for (u64 page = 0; page * PAGE_SIZE < ramdisk_bytes; page++) {
        const uint8_t *bytes = (const uint8_t *)(start_info->mod_start + page * PAGE_SIZE);
        if (start_info->flags & SIF_MOD_START_PFN) {
            update_va_mapping(window, p2m()[start_info->mod_start + page] << 12 | PTE_DATA, UVMF_INVLPG);
            bytes = (const uint8_t *)window;
        }
        for (u64 i = 0; i < PAGE_SIZE; i++) {
            u64 at = page * PAGE_SIZE + i;
            nr_wrong += *(volatile const uint8_t *)(bytes + i) != (at < ramdisk_bytes ? byte_at(at) : 0);
        }
    }
    check_equal(nr_wrong, 0, "the ramdisk's bytes");
}

static void check_stubs(void)
{
#if defined(WITH_HYPERCALL_PAGE) || defined(AS_STRING)
    u64 sub = XENVER_version, none = 0;
    long version;

    asm volatile("call *%[target]" : "=a"(version), "+D"(sub), "+S"(none)
                 : [target] "r"(stubs + __HYPERVISOR_xen_version * 32) : "rcx", "r11", "memory");
    check_equal(version, hypercall2(__HYPERVISOR_xen_version, XENVER_version, 0), "a hypercall by the page");
#endif
}

#ifdef WITH_BSD_SYMTAB
static u64 symbol_value(const char *elf, const char *name, size_t nr_bytes)
{
    const char *section = elf + *(const u64 *)(elf + 40) + 64;
    const char *symbols = elf + *(const u64 *)(section + 24);
    const char *strings = elf + *(const u64 *)(section + 64 + 24);

    for (u64 at = 0; at < *(const u64 *)(section + 32); at += 24)
        if (memcmp(strings + *(const u32 *)(symbols + at), name, nr_bytes) == 0)
            return *(const u64 *)(symbols + at + 8);
    return 0;
}
#endif

static void check_symbols(void)
{
#ifdef WITH_BSD_SYMTAB
    u32 size = *(u32 *)end;
    u64 limit = start_info->mod_len && !(start_info->flags & SIF_MOD_START_PFN) ? start_info->mod_start : start_info->mfn_list;

    check(size > 264 && PTR(end) + 4 + size <= limit, "the symbols' size");
    check_equal(memcmp(end + 4, "\177ELF", 4), 0, "an ELF header behind the kernel");
    check_equal(symbol_value((const char *)end + 4, "check_symbols", 14), PTR(check_symbols), "a symbol of ours");
#endif
}

void test(void)
{
    load_traps();
    set_handler(14, catch_trap);
    check_info();
    check_p2m();
    check_mapping();
    check_ramdisk();
    check_stubs();
    check_symbols();
}
