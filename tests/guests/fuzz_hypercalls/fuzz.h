/* What the parts of the fuzzing guest share. */
#ifndef RING3_FUZZ_H
#define RING3_FUZZ_H

#include "guest.h"
#include <xen/grant_table.h>

enum { NR_POOL = 64, NR_SECRET = 8, NR_WINDOW = 32, NR_CLONES = 3, NR_ROOM = 1024 };
/* In every page of ours: who owns it, and whether others may see it. Half of a page holds no entries, and this is none: it is
 * even. */
enum { CANARY_AT = 4080, SECRET = 0x5ec2e75e, PUBLIC = 0x9b11c9b1 };
#define CANARY(kind) ((u64)(kind) << 32 | (u32)self << 1)

struct page {
    char bytes[PAGE_SIZE];
} PAGE;

/* Pages that are given away, typed and mapped; pages that never are, but whose frames are named; where to map. */
extern struct page pool[NR_POOL], secret[NR_SECRET], window[NR_WINDOW], spare;
/* Every other pair of the pool's pages is mapped read-only here: what is mapped writable is no table. */
static inline u64 pool_flags(u64 i) { return i & 2 ? PTE_READ_ONLY : PTE_DATA; }
/* Roots like the first one. */
extern struct page clone[NR_CLONES];
extern u64 pool_mfn[NR_POOL];
/* What must not be lost when a random handle leads into our own data: read-only after the start. */
struct identity {
    char gap[64]; /* where entries go when the frame is mapped elsewhere, by chance */
    domid_t self, peer;
    /* Entries of one of the two versions, by the seed, as is the ABI of events. */
    volatile void *grants;
    u64 grant_version, is_fifo;
    struct trap_info trap_table[33];
    struct callback_register callbacks[3];
    u64 window_slots[NR_WINDOW];
} PAGE;
extern struct identity identity;
/* The second vCPU's. */
extern struct vcpu_guest_context context;
#define self (identity.self)
#define peer (identity.peer)

struct random {
    u64 state;
    int vcpu;
    /* Of the last call; the sub-op is WHOLE if there is none. */
    u32 op, sub;
};
enum { WHOLE = 31 };

u64 seed(int vcpu);
static inline u64 next(struct random *r)
{
    r->state ^= r->state >> 12;
    r->state ^= r->state << 25;
    r->state ^= r->state >> 27;
    return r->state * 0x2545f4914f6cdd1dul;
}
static inline u64 below(struct random *r, u64 n) { return (next(r) >> 11) % n; }

#define PICK(r, ...)                                                \
    ({                                                              \
        static const u64 choices_[] = {__VA_ARGS__};                \
        choices_[below(r, sizeof(choices_) / sizeof(choices_[0]))]; \
    })

/* Low addresses that no mapping of ours uses: a slot of the root for trees of the pool. */
#define LOW_VA (5ul << 39)
/* Arguments of each vCPU, with a page behind them that results may spill over to, and then one that is not there. */
struct args {
    char bytes[2 * PAGE_SIZE], gap[PAGE_SIZE];
} PAGE;
extern struct args args_of[2];
/* Room for a list behind which nothing is: whoever reads on faults, and finds no other calls there. */
static inline void *list_of(int vcpu, size_t nr_bytes) { return args_of[vcpu].gap - nr_bytes; }

/* -- half-valid values */
u64 number(struct random *r);
u64 random_mfn(struct random *r);
u64 random_entry(struct random *r);
u64 random_va(struct random *r);
u64 handle(struct random *r);
/* Where an entry is: of the pool's tables to be, or the one of a page of the window. */
u64 random_slot(struct random *r);
domid_t random_domid(struct random *r);
u64 count(struct random *r, u64 real);
u64 foreign(struct random *r);

/* -- calls; each returns what it was answered, grants their status */
void random_call(struct random *r);
long grant(struct random *r);
/* Makes an entry of our grant table. */
void random_grant(struct random *r);
/* Tells how often each call was made and granted. */
void print_answers(void);
/* Gives a page of the pool back, takes another, and expects zeros in it. */
void balloon(struct random *r);
void own_traps(void);
/* Stores if the page is there, and writable. */
void store(u64 va, u64 value);
void leak(const char *what, u64 va, u64 value);
#endif
