/* What the parts of the fuzzing guest share. */
#ifndef RING3_FUZZ_H
#define RING3_FUZZ_H

#include "guest.h"
#include <xen/grant_table.h>

enum { NR_POOL = 64, NR_SECRET = 8, NR_WINDOW = 32, NR_CLONES = 3 };
/* In every page of ours: who owns it, and whether others may see it. Half of a page holds no entries. */
enum { CANARY_AT = 4080, SECRET = 0x5ec2e75e, PUBLIC = 0x9b11c9b1 };

struct page {
    char bytes[PAGE_SIZE];
} PAGE;

/* Pages that are given away, typed and mapped; pages that never are, but whose frames are named; where to map. */
extern struct page pool[NR_POOL], secret[NR_SECRET], window[NR_WINDOW];
/* Roots like the first one. */
extern struct page clone[NR_CLONES];
extern u64 pool_mfn[NR_POOL];
/* What must not be lost when a random handle leads into our own data: read-only after the start. */
struct identity {
    domid_t self, peer;
    volatile grant_entry_v1_t *grants;
    struct trap_info trap_table[33];
    struct callback_register callbacks[3];
} PAGE;
extern struct identity identity;
#define self (identity.self)
#define peer (identity.peer)
#define grants (identity.grants)

struct random {
    u64 state;
    int vcpu;
};

u64 seed(int vcpu);
static inline u64 next(struct random *r)
{
    r->state ^= r->state >> 12;
    r->state ^= r->state << 25;
    r->state ^= r->state >> 27;
    return r->state * 0x2545f4914f6cdd1dul;
}
static inline u64 below(struct random *r, u64 n) { return (next(r) >> 11) % n; }

u64 random_va(struct random *r);
u64 random_entry(struct random *r);
void random_call(struct random *r);
/* Gives a page of the pool back, takes another, and expects zeros in it. */
void balloon(struct random *r);
void own_traps(void);
/* Stores if the page is there, and writable. */
void store(u64 va, u64 value);
void leak(const char *what, u64 va, u64 value);
#endif
