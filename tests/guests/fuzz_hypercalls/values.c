/* Random values that are half valid. */
#include "fuzz.h"

struct args args_of[2];

u64 number(struct random *r)
{
    u64 edge = PICK(r, 0, 1, 2, 8, 63, 64, 511, 512, 4095, 4096, 1ul << 31, 0xffffffff, 1ul << 47, ~0ul);
    switch (below(r, 4)) {
    case 0:
        return next(r);
    case 1:
        return below(r, 16);
    default:
        return edge + below(r, 5) - 2;
    }
}

u64 random_mfn(struct random *r)
{
    switch (below(r, 24)) {
    case 0:
        return number(r) & 0xfffffffff;
    case 1:
        return below(r, 0x8000); /* any frame of a small machine: mostly not ours */
    case 2:
        return mfn_of(&secret[below(r, NR_SECRET)]);
    case 3:
        return start_info->shared_info >> 12;
    case 4:
        return mfn_of((void *)(start_info->pt_base + below(r, start_info->nr_pt_frames) * PAGE_SIZE));
    case 5:
        return mfn_of(&clone[below(r, NR_CLONES)]);
    default:
        return pool_mfn[below(r, NR_POOL)];
    }
}

u64 random_entry(struct random *r)
{
    u64 flags;
    switch (below(r, 16)) {
    case 0:
        return next(r);
    case 1 ... 3:
        return 0;
    case 4 ... 11: /* what is mapped writable is no table */
        flags = PTE_READ_ONLY;
        break;
    case 12 ... 14:
        flags = PTE_DATA;
        break;
    default:
        flags = next(r) & 0xfff;
    }
    if (below(r, 10) == 0)
        flags ^= next(r) & (0xffful << 52 | 0xff8);
    return random_mfn(r) << 12 | flags;
}

u64 random_va(struct random *r)
{
    u64 offset = below(r, 2) ? 0 : number(r) & 4095;
    switch (below(r, 16)) {
    case 0:
        return next(r);
    case 1:
        return 0xffff800000000000ul + (number(r) & 0xffffffffffful);
    case 2 ... 5:
        return LOW_VA + below(r, 4) * 4096 + below(r, 3) * (2ul << 20) + below(r, 2) * (1ul << 30) + offset;
    case 6 ... 8:
        return PTR(&pool[below(r, NR_POOL)]) + offset;
    default:
        return PTR(&window[below(r, NR_WINDOW)]) + offset;
    }
}

u64 handle(struct random *r)
{
    u64 args = PTR(&args_of[r->vcpu]);
    if (below(r, 12) == 0)
        return PICK(r, 0, 4095, 0x800000000000ul, 0xffff800000000000ul, ~0ul, ~7ul);
    return below(r, 12) == 0 ? args + 4090 : args + 2048;
}

u64 random_slot(struct random *r)
{
    if (below(r, 3) == 0)
        return identity.window_slots[below(r, NR_WINDOW)];
    if (below(r, 12) == 0)
        return (mfn_of((void *)start_info->pt_base) << 12) + 5 * 8;
    /* Not our own tables, or the domain ends at once; the first entries of a clone are nobody's. */
    u64 mfn = below(r, 4) ? pool_mfn[below(r, NR_POOL)] : mfn_of(&clone[below(r, NR_CLONES)]);
    if (below(r, 100) == 0)
        mfn = below(r, 2) ? mfn_of(&secret[below(r, NR_SECRET)]) : below(r, 0x8000) | 0x1000;
    return (mfn << 12) + below(r, 8) * 8 + (below(r, 16) ? 0 : below(r, 8));
}

domid_t random_domid(struct random *r)
{
    switch (below(r, 8)) {
    case 0 ... 3:
        return DOMID_SELF;
    case 4:
        return self;
    case 5:
        return peer;
    default:
        return PICK(r, 0, DOMID_IO, DOMID_XEN, 0x7ff4, 0xffff, 3, 100);
    }
}

/* Xen's private mark of a continued call, which a guest may forge. */
#define MMU_UPDATE_PREEMPTED 0x80000000ul

u64 count(struct random *r, u64 real)
{
    return below(r, 16) ? real : PICK(r, 0, 200, MMU_UPDATE_PREEMPTED | 1, 1000);
}

u64 foreign(struct random *r)
{
    u64 pages = below(r, 4) ? DOMID_SELF : random_domid(r);
    return below(r, 12) ? pages : pages | ((u64)random_domid(r) + 1) << 16;
}
