/*
 * tsc: rdtsc in every mode of the domain's TSC agrees with the clock that Xen tells; CR4.TSD keeps it from users.
 */
#include "guest.h"

#define CODE(name, text) \
    extern const char name[]; \
    asm(".pushsection .text\n" #name ": " text "\n ud2\n.popsection")
CODE(read_tsc, "rdtsc");
CODE(read_tscp, "rdtscp");

static u64 rdtsc(void)
{
    u32 low, high;
    asm volatile("rdtsc" : "=a"(low), "=d"(high));
    return low | (u64)high << 32;
}

void test(void)
{
    u32 eax = 0x40000003, ebx, ecx = 0, edx;
    volatile shared_info_t *shared;
    u64 cr4, last = 0;

    load_traps();
    shared = map_shared_info();
    set_up_user();
    asm volatile(".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e\n\t cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    print("TSC mode %u, %s, %u kHz\n", ebx, eax & 1 ? "emulated" : "native", ecx);
    for (unsigned i = 0; i < 1000; i++) {
        u64 now = rdtsc();
        if (now <= last && (i > 0 || eax & 1)) {
            check(false, "the TSC goes on");
            break;
        }
        last = now;
    }
    if (!(start_info->flags & SIF_INITDOMAIN)) {
        u64 ns = pvclock_ns(shared), ticks = rdtsc();
        while (pvclock_ns(shared) - ns < 20000000)
            ;
        ticks = rdtsc() - ticks;
        check(ticks > ecx * 19ul && ticks < ecx * 2000ul, "the clock and the TSC agree");
    }
    struct target to = user_target(read_tsc);
    shared->vcpu_info[0].evtchn_upcall_pending = 0;
    check_equal(go_to(&to)->vector, 6, "a user reads it");
    asm volatile("mov %%cr4, %0" : "=r"(cr4));
    asm volatile("mov %0, %%cr4" : : "r"(cr4 | 4));
    check(rdtsc() > last, "the kernel reads it with CR4.TSD");
    check_equal(go_to(&to)->vector, 13, "the user does not");
    to = user_target(read_tscp);
    check_equal(go_to(&to)->vector, 13, "nor by rdtscp");
    asm volatile("mov %0, %%cr4" : : "r"(cr4));
    check_equal(go_to(&to)->vector, 6, "without it again");
}
