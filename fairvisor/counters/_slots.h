/* A fixed table of counters in memory that several processes share, any of which may be killed at any instruction.
 *
 * This file owns the format of a slot and the atomic steps that change it. It knows nothing of Python, rules, names
 * or clocks: it counts under 64-bit keys that others hash, at times that others pass in. `_table.c` is the Python
 * type on top of it; `model.py` says the same in plain Python, without the concurrency; the tests compare the two.
 *
 * FORMAT (little endian)
 *
 *   slot, 32 bytes, aligned to 32:
 *     0  b     8   state                      \  the record: 16 bytes that change only together,
 *     8  a     8   [ fp 43 | kind 2 | exp 19 ] /  by one 16-byte compare-and-swap, a full barrier
 *    16  used  8   ns, time of the last use; relaxed stores, only a hint for eviction
 *    24  key   8   the whole key; relaxed store before the record counts; only for moving records (see MOVING)
 *
 *   fp is the upper 43 bits of the mixed key (0 counts as 1). Kinds of record:
 *     FREE   all zero.
 *     HELD   reserved for fp, holds no charge. b = a nonce that never repeats; exp = unit(now) + 1.
 *     TIME   (exp:b) is one 83-bit time in ticks of 2^-28 ns, modulo 2^55 ns (417 days); times are compared as
 *            signed differences, so two of them must lie within 208 days of each other.
 *              token bucket   the theoretical arrival time: the moment at which the bucket is full again (GCRA)
 *              counter        [ end of the window, low bits of ns | count 28 ]
 *     TOTAL  b = total in millionths, below 2^63; exp = unit(now + ttl) + 1, after which it may be forgotten.
 *            claim          b = [ 1 | stamp 63 ]: what may be done once was done; the stamp orders claims (see FULL)
 *   1 unit = 2^36 ns = 68.7 s; units are compared as signed 19-bit differences. TIME and TOTAL are called live.
 *   A live record that has expired counts as none, wherever it still stands.
 *
 *   A key has two groups of 8 slots (its window), found by multiply-shift, so that any number of groups will do.
 *   It is looked for in the first, then in the second, each from a slot of its own on. A new key goes to its first
 *   group unless that has fewer than ROOMY free slots and the second has more: at 50 % of live slots none of 2e7
 *   insertions found its window full, at 60 % 7e-6 of them, at 65 % 2e-4 (with 4 of 8; taking the emptier group
 *   always: 5e-6 at 60 %, with 38 % instead of 27 % of the keys in their second group at 50 %).
 *
 *   words: u64, atomic, each one sequentially consistent; WORD_* below are the table's own, the rest its owner's.
 *   cells: u64, atomic, relaxed: sums for metrics, no order between them.
 *
 * LIFE OF A SLOT
 *
 *            reserve                    convert               update, any number of times
 *     FREE ----------->  HELD(nonce) ----------->  TIME|TOTAL -----+
 *      ^    or expired,   |                          | |      <----+
 *      |    or evicted    | release, drop, sweep     | +--- reserve by another key, when expired, or when it is
 *      +------------------+--------------------------+      evicted from a window without room
 *                            delete, sweep
 *
 *   An insertion reserves a slot, then scans its whole window once more. If the reservation stood throughout and the
 *   scan saw no other record of the key, it converts the reservation into the first record. So a key never has two
 *   live records: of two reservations i and j, each converted after a scan that did not see the other, i was placed
 *   after j's scan read its slot and j after i's, but each was placed before its own scan began: a contradiction.
 *   The nonce makes "stood throughout" checkable, the fence before a scan keeps it after the announcement. Of two
 *   reservations the later in probe order is dropped, by whoever sees it. Loads are of 8 bytes and may be torn; only
 *   a successful compare-and-swap makes a pair true. That is why a refusal too swaps the record for itself.
 *   Every step that reads or changes a record carries a label, `step: name`: tests/model/protocol.py has the same steps
 *   under the same names, and explores every interleaving of them. `used` and `key` are hints, on which none relies.
 *
 * A KILLED PROCESS leaves at most one HELD slot. Its key can use it at once; others after 69 to 137 s. There is no
 * lock, no busy mark and no order of publication to repair; a stall of any length is as harmless as a kill.
 *
 * A FULL WINDOW: first a free or expired slot, then the least recently used TIME record is evicted (WORD_EVICTIONS),
 * last the claim with the least stamp (WORD_CLAIM_EVICTIONS). A total is never evicted, so that a flood of new keys
 * cannot refresh a budget, nor is a HELD, lest two keys steal one slot from each other for ever. No room at all: FULL,
 * counted in WORD_FULL; the caller decides.
 *
 * A CLAIM THAT WAS EVICTED can be made again. WORD_CLAIM_STAMP is raised to its stamp before the eviction, and read
 * after every claim: a claim whose stamp is not above it may be one that was made before.
 *
 * MOVING records to a table of another size needs the whole key, of which the record has 43 bits. `key` is stored
 * after a reservation and before its conversion. A store that was delayed until another key had the slot leaves a
 * key that does not match the fingerprint: it is set right by the next update, and not moved if there was none.
 *
 * TIME is the caller's CLOCK_MONOTONIC, one clock for all. A `now` older than that of another process is harmless to
 * the table; a bucket may win back what it refilled in between.
 */
#ifndef FAIRVISOR_SLOTS_H
#define FAIRVISOR_SLOTS_H

#include <stddef.h>
#include <stdint.h>

/* The 16-byte compare-and-swap. On x86-64 the pragma makes gcc inline `lock cmpxchg16b` (the import checks that the
 * processor has it); on arm64 gcc emits casp or ldaxp/stlxp. Never use _Atomic or __atomic_* on 16 bytes: gcc calls
 * libatomic for them, which may take a lock of this process only, silently wrong between processes. */
#if defined(__x86_64__)
#pragma GCC target("cx16")
#elif !defined(__aarch64__)
#error "fairvisor needs a 64-bit x86 or ARM processor"
#endif

typedef uint64_t u64;
typedef unsigned __int128 u128;
typedef __int128 i128;

typedef union {
    u128 whole;
    struct { u64 b, a; };
} record;

typedef struct {
    record rec;
    u64 used;
    u64 key;
} slot;

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the format is little endian");
_Static_assert(sizeof(record) == 16 && offsetof(record, b) == 0 && offsetof(record, a) == 8, "record layout");
_Static_assert(sizeof(slot) == 32 && offsetof(slot, used) == 16 && offsetof(slot, key) == 24, "slot layout");

enum { FREE = 0, HELD = 1, TIME = 2, TOTAL = 3 };
enum { FP_BITS = 43, EXP_BITS = 19, KIND_SHIFT = EXP_BITS, FP_SHIFT = 64 - FP_BITS };
enum { TICK_BITS = 28, UNIT_BITS = 36, COUNT_BITS = 28 };
enum { GROUP = 8, GROUP_BYTES = GROUP * sizeof(slot), ROOMY = 4 };
enum { WORD_NONCE = 0, WORD_EVICTIONS = 8, WORD_FULL = 9, OWN_WORDS = 16 };    /* the nonce has a cache line alone */
enum { WORD_CLAIM_EVICTIONS = 13, WORD_CLAIM_STAMP = 14 };                      /* `layout.py` has words in between */
enum { REFUSED = 0, ALLOWED = 1, WINDOW_FULL = -1 };

#define EXP_MASK (((u64)1 << EXP_BITS) - 1)
#define COUNT_MASK (((u64)1 << COUNT_BITS) - 1)
#define CLAIM ((u64)1 << 63)                            /* above every total and every time of use in ns */
#define TIME_MASK (((u128)1 << 83) - 1)
#define MAX_TICKS ((u128)1 << 82)                       /* longest distance of two times: 208 days */
#define MAX_LIFE_NS ((u64)100 * 86400 * 1000000000)     /* 100 days, far enough from the wrap at 208 */

/* No interleaving of live processes needs more than a few tries each; a corrupt segment must not hang a worker. */
#define MAX_TRIES (1u << 20)

static const record NOTHING = {0};

/* ---- memory ----------------------------------------------------------------------------------------------------- */

static inline int cas(record *at, record old, record put)
{
    return __sync_bool_compare_and_swap(&at->whole, old.whole, put.whole);
}

static inline u64 load(const u64 *at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
static inline u64 load_relaxed(const u64 *at) { return __atomic_load_n(at, __ATOMIC_RELAXED); }
static inline void store_relaxed(u64 *at, u64 value) { __atomic_store_n(at, value, __ATOMIC_RELAXED); }

/* The two halves may be of different moments. */
static inline record load_record(const slot *at)
{
    record r;
    r.a = load(&at->rec.a);
    r.b = load(&at->rec.b);
    return r;
}

static inline u64 fp_of(u64 a) { return a >> FP_SHIFT; }
static inline unsigned kind_of(u64 a) { return (unsigned)(a >> KIND_SHIFT) & 3; }
static inline u64 exp_of(u64 a) { return a & EXP_MASK; }
static inline u64 make_a(u64 fp, unsigned kind, u64 exp)
{
    return fp << FP_SHIFT | (u64)kind << KIND_SHIFT | (exp & EXP_MASK);
}

/* ---- times ------------------------------------------------------------------------------------------------------ */

static inline u64 unit_of(u64 ns) { return ns >> UNIT_BITS; }
static inline u128 ticks_of(u64 ns) { return (u128)ns << TICK_BITS & TIME_MASK; }
static inline i128 ticks_between(u128 later, u128 earlier) { return (i128)((later - earlier) << 45) >> 45; }
static inline int32_t units_between(u64 later, u64 earlier)
{
    return (int32_t)((uint32_t)(later - earlier) << (32 - EXP_BITS)) >> (32 - EXP_BITS);
}

static inline u128 time_of(record r) { return (u128)exp_of(r.a) << 64 | r.b; }
static inline record time_record(u64 fp, u128 ticks)
{
    record r;
    r.a = make_a(fp, TIME, (u64)(ticks >> 64));
    r.b = (u64)ticks;
    return r;
}

static inline u64 ns_up(i128 ticks) { return (u64)((ticks + (((i128)1 << TICK_BITS) - 1)) >> TICK_BITS); }

/* For any kind but FREE. A TOTAL or HELD stands one unit longer than its time. */
static inline int expired(record r, u64 now_ns)
{
    if (kind_of(r.a) == TIME)
        return ticks_between(time_of(r), ticks_of(now_ns)) <= 0;
    return units_between(exp_of(r.a), unit_of(now_ns)) < 0;
}

/* ---- operations: from the record of a key, or none, to its next record ------------------------------------------ */

/* One operation: its arguments and results. `next` reads `old` (NULL: the key has no record, or an expired one) and
 * either stores the next record in `put` and returns WRITE, or returns KEEP. It may be called several times: it is
 * pure but for the results. A live record of the other family under the same key, which only a collision of
 * fingerprints or a mistake of the caller can bring about, is never touched: FULL. */
typedef enum { KEEP, WRITE } change;
typedef struct operation operation;
struct operation {
    change (*next)(operation *, const record *old, record *put);
    int creates;                                /* may it make a record */
    u64 key, fp, now_ns;
    u64 cost_u, limit_u, per;                   /* millionths; ticks per millionth */
    u64 ttl_ns;                                 /* the window of a count, the life of a total or a claim */
    u64 stamp;                                  /* of a claim, below 2^63 */
    record given;                               /* the record to merge */
    u64 used_ns;                                /* stamp for `used` */
    int outcome;
    u64 result;                                 /* remaining or total in millionths, or a count */
    u64 wait_ns;
};

static inline int is(const record *r, unsigned kind) { return kind_of(r->a) == kind; }
static inline int is_claim(const record *r) { return is(r, TOTAL) && r->b & CLAIM; }
static inline int is_total(const record *r) { return is(r, TOTAL) && !(r->b & CLAIM); }

static inline i128 debt_of(const operation *o, const record *old, i128 burst)
{
    i128 debt = old ? ticks_between(time_of(*old), ticks_of(o->now_ns)) : 0;
    return debt < 0 ? 0 : debt > burst ? burst : debt;          /* above: the burst was lowered by a reload */
}

static inline u64 remaining(const operation *o, i128 burst, i128 debt)
{
    return (u64)((u128)(burst - debt) / o->per);
}

/* GCRA in ticks: ALLOWED when cost <= burst and debt + cost * per <= burst * per. */
static change next_take(operation *o, const record *old, record *put)
{
    i128 burst = (i128)o->limit_u * o->per, cost = (i128)o->cost_u * o->per;
    i128 debt = debt_of(o, old, burst);
    if (old && !is(old, TIME)) {
        o->outcome = WINDOW_FULL, o->result = o->wait_ns = 0;
        return KEEP;
    }
    o->outcome = o->cost_u <= o->limit_u && debt + cost <= burst;
    if (o->outcome == ALLOWED) {
        debt += cost;
        o->wait_ns = ns_up(debt);
    } else {
        o->wait_ns = o->cost_u > o->limit_u ? UINT64_MAX : ns_up(debt + cost - burst);
    }
    o->result = remaining(o, burst, debt);
    if (o->outcome == REFUSED && (!old || ticks_between(time_of(*old), ticks_of(o->now_ns)) <= burst))
        return KEEP;
    if (!old && debt == 0)
        return KEEP;                                            /* a cost of nothing needs no record */
    *put = time_record(o->fp, ticks_of(o->now_ns) + (u128)debt);
    return WRITE;
}

static change next_give(operation *o, const record *old, record *put)
{
    if (!old || !is(old, TIME))
        return KEEP;                                            /* full already */
    i128 debt = ticks_between(time_of(*old), ticks_of(o->now_ns)), cost = (i128)o->cost_u * o->per;
    *put = time_record(o->fp, ticks_of(o->now_ns) + (u128)(debt > cost ? debt - cost : 0));
    return WRITE;
}

static change next_overdraw(operation *o, const record *old, record *put)
{
    i128 burst = (i128)o->limit_u * o->per, cost = (i128)o->cost_u * o->per;
    i128 debt = debt_of(o, old, burst) + cost;
    if (o->cost_u == 0 || (old && !is(old, TIME)))
        return KEEP;
    *put = time_record(o->fp, ticks_of(o->now_ns) + (u128)(debt > burst ? burst : debt));
    return WRITE;
}

static change next_add(operation *o, const record *old, record *put)
{
    u64 total = old ? old->b : 0;
    if (old && !is_total(old)) {
        o->outcome = WINDOW_FULL, o->result = 0;
        return KEEP;
    }
    o->outcome = o->cost_u <= o->limit_u && total <= o->limit_u - o->cost_u;
    o->result = o->outcome == ALLOWED ? total + o->cost_u : total;
    u64 exp = unit_of(o->now_ns + o->ttl_ns) + 1;           /* only ever later: the wall clock may be set back */
    put->a = old && units_between(exp, exp_of(old->a)) <= 0 ? old->a : make_a(o->fp, TOTAL, exp);
    put->b = o->result;
    if (o->outcome == REFUSED)
        return old && put->a != old->a ? WRITE : KEEP;      /* a flood of refusals writes nothing */
    return old || o->cost_u ? WRITE : KEEP;
}

static change next_sub(operation *o, const record *old, record *put)
{
    if (!old || !is_total(old))
        return KEEP;
    put->a = old->a;
    put->b = old->b > o->cost_u ? old->b - o->cost_u : 0;
    return WRITE;
}

static change next_charge(operation *o, const record *old, record *put)
{
    if (!old || !is_total(old))
        return KEEP;
    put->a = old->a;
    put->b = old->b + o->cost_u < CLAIM ? old->b + o->cost_u : CLAIM - 1;
    return WRITE;
}

/* A total is taken for a claim too: earlier versions kept a claim as a total of one millionth. */
static change next_once(operation *o, const record *old, record *put)
{
    o->outcome = old == NULL ? ALLOWED : is(old, TOTAL) ? REFUSED : WINDOW_FULL;
    if (old)
        return KEEP;
    put->a = make_a(o->fp, TOTAL, unit_of(o->now_ns + o->ttl_ns) + 1);
    put->b = CLAIM | o->stamp;
    return WRITE;
}

static inline u64 count_of(record r, u64 now_ns)                /* 0 when its window has ended */
{
    return ticks_between(time_of(r) & ~(u128)COUNT_MASK, ticks_of(now_ns)) > 0 ? r.b & COUNT_MASK : 0;
}

static change next_count(operation *o, const record *old, record *put)
{
    u64 count = 0;
    if (old && !is(old, TIME)) {
        o->outcome = WINDOW_FULL, o->result = 0;
        return KEEP;
    }
    if (old)
        count = count_of(*old, o->now_ns);
    o->outcome = ALLOWED;
    o->result = count < COUNT_MASK ? count + 1 : COUNT_MASK;
    u128 end = count ? time_of(*old) & ~(u128)COUNT_MASK : ticks_of(o->now_ns + o->ttl_ns);
    *put = time_record(o->fp, end | o->result);
    return WRITE;
}

static change next_delete(operation *o, const record *old, record *put)
{
    o->outcome = old != NULL;
    *put = NOTHING;
    return WRITE;                                               /* an expired record goes too */
}

/* Of two records of one key the one that has been charged more stays; a claim counts for more than any total. */
static change next_merge(operation *o, const record *old, record *put)
{
    o->outcome = ALLOWED;
    if (old && kind_of(old->a) != kind_of(o->given.a)) {
        o->outcome = WINDOW_FULL;
        return KEEP;
    }
    if (old && (is(old, TIME) ? ticks_between(time_of(*old), time_of(o->given)) >= 0 : old->b >= o->given.b))
        return KEEP;
    *put = o->given;
    return WRITE;
}

/* ---- the window of a key ---------------------------------------------------------------------------------------- */

typedef struct {
    slot *slots;
    u64 *words;
    u64 groups;                                 /* of 8 slots */
} table;

/* Keys are hashes already; mixing makes small integers good keys too. Both constants are odd: each step is a
 * bijection, so that two keys differ in fp or in the 21 bits that only the groups depend on. */
static inline u64 mixed(u64 key)
{
    u64 x = (key ^ key >> 32) * 0x9E3779B97F4A7C15u;
    return x ^ x >> 29;
}

static inline u64 fp_from(u64 mixed_key)
{
    u64 fp = mixed_key >> FP_SHIFT;
    return fp ? fp : 1;                         /* 0 is the fingerprint of a free slot */
}

typedef struct {
    slot *group[2];
    unsigned start;                             /* probe order: start, start + 1 ... modulo 8 */
    unsigned groups;
} window;

static inline window window_of(const table *t, u64 mixed_key)
{
    window w;
    u64 spread = mixed_key * 0xD6E8FEB86659FD93u;
    u64 first = (spread >> 32) * t->groups >> 32, second = (spread & UINT32_MAX) * t->groups >> 32;
    if (second == first)
        second = first + 1 < t->groups ? first + 1 : 0;
    w.group[0] = t->slots + first * GROUP;
    w.group[1] = t->slots + second * GROUP;
    w.start = (unsigned)spread & (GROUP - 1);
    w.groups = t->groups > 1 ? 2 : 1;
    return w;
}

/* Starts fetching the window from memory while the arguments are still being read. */
static inline void prefetch(const window *w)
{
    for (unsigned line = 0; line < GROUP_BYTES; line += 64) {
        __builtin_prefetch((const char *)w->group[0] + line, 1);
        __builtin_prefetch((const char *)w->group[1] + line, 1);
    }
}

static inline slot *slot_at(const window *w, unsigned group, unsigned i)
{
    return w->group[group] + ((w->start + i) & (GROUP - 1));
}

/* Points an operation at a key. */
static inline window aim(operation *o, const table *t, u64 key)
{
    u64 x = mixed(key);
    o->key = key;
    o->fp = fp_from(x);
    return window_of(t, x);
}

/* ---- the protocol ----------------------------------------------------------------------------------------------- */

/* One compare-and-swap on the live record of the key. */
static inline int update(slot *at, record old, operation *o)
{
    record put = old;
    int key_differs = load_relaxed(&at->key) != o->key;
    if (o->next(o, expired(old, o->now_ns) ? NULL : &old, &put) == KEEP)
        put = old;
    if (!cas(&at->rec, old, put)) /* step: update */
        return 0;
    store_relaxed(&at->used, o->used_ns);
    if (key_differs && put.a)
        store_relaxed(&at->key, o->key);
    return 1;
}

/* The hot path: the key has a live record and nobody changes it at this moment. */
static inline int try_update(const window *w, operation *o)
{
    for (unsigned g = 0; g < w->groups; g++)
        for (unsigned i = 0; i < GROUP; i++) {
            slot *at = slot_at(w, g, i);
            record r;
            r.a = load(&at->rec.a); /* step: look */
            if (fp_of(r.a) != o->fp || kind_of(r.a) == HELD)
                continue;
            r.b = load(&at->rec.b); /* step: look */
            return update(at, r, o);
        }
    return 0;
}

typedef struct {
    slot *at;                                   /* NULL: there is none */
    record rec;
} place;

typedef struct {
    place live, first, second;                  /* the record of the key; its reservations in probe order */
    place spare, oldest;                        /* a slot to reserve; the one to evict when there is none */
} sight;

/* Reads a whole window, or until it meets the live record of the key. Looks for room only if that is needed. */
static sight scan(const window *w, const operation *o, int wants_room)
{
    sight see = {0};
    place spare[2] = {{0}};
    unsigned spares[2] = {0, 0};
    u64 oldest = 0;
    for (unsigned g = 0; g < w->groups; g++)
        for (unsigned i = 0; i < GROUP; i++) {
            slot *at = slot_at(w, g, i);
            place p = {at, load_record(at)}; /* step: scan */
            unsigned kind = kind_of(p.rec.a);
            if (fp_of(p.rec.a) == o->fp) {
                if (kind != HELD) {
                    see.live = p;
                    return see;
                }
                *(see.first.at ? &see.second : &see.first) = p;
            } else if (!wants_room) {
                continue;
            } else if (kind == FREE || expired(p.rec, o->now_ns)) {
                if (!spares[g]++)
                    spare[g] = p;
            } else if (kind == TIME || is_claim(&p.rec)) {
                u64 since = kind == TIME ? load_relaxed(&at->used) : p.rec.b;   /* a claim's is above every time */
                if (!see.oldest.at || since < oldest)
                    see.oldest = p, oldest = since;
            }
        }
    see.spare = spare[spares[0] < ROOMY && spares[1] > spares[0]];
    return see;
}

/* Remembers the stamp of a claim that is about to be forgotten before it has run out. */
static void note(table *t, record claim)
{
    u64 *word = &t->words[WORD_CLAIM_STAMP], stamp = claim.b & ~CLAIM;
    u64 last = load(word); /* step: note */
    while (last < stamp && !__atomic_compare_exchange_n(word, &last, stamp, 0, __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE))
        ;
}

/* 1: reserved, now scan again. 0: lost the slot, scan again. -1: decided, the operation is over. */
static int reserve(table *t, const sight *see, operation *o, place *mine)
{
    record put;
    if (o->next(o, NULL, &put) == KEEP)
        return -1;                              /* refused even by a fresh record: it needs no slot */
    place victim = see->spare.at ? see->spare : see->oldest;
    if (!victim.at) {
        o->outcome = WINDOW_FULL, o->result = 0;
        return -1;
    }
    record held;
    held.a = make_a(o->fp, HELD, unit_of(o->now_ns) + 1);
    held.b = __atomic_fetch_add(&t->words[WORD_NONCE], 1, __ATOMIC_SEQ_CST); /* step: nonce */
    int evicts = !see->spare.at, evicts_claim = evicts && is_claim(&victim.rec);
    if (evicts_claim)
        note(t, victim.rec);                    /* first: a process may be killed in between */
    if (!cas(&victim.at->rec, victim.rec, held)) /* step: reserve */
        return 0;
    store_relaxed(&victim.at->used, o->used_ns);
    if (evicts)
        __atomic_fetch_add(&t->words[evicts_claim ? WORD_CLAIM_EVICTIONS : WORD_EVICTIONS], 1, __ATOMIC_RELAXED);
    *mine = (place){victim.at, held};
    return 1;
}

/* The reservation stood through a whole scan that saw no other record of the key: it becomes the record. */
static int convert(place held, operation *o)
{
    record put;
    if (o->next(o, NULL, &put) == KEEP)
        return 1;                               /* somebody else's reservation, and nothing to write */
    store_relaxed(&held.at->key, o->key);
    if (!cas(&held.at->rec, held.rec, put)) /* step: convert */
        return 0;
    store_relaxed(&held.at->used, o->used_ns);
    return 1;
}

/* The whole protocol. `seen` is a reservation of the key that stood before the scan; `mine`: this call made it. */
static void insert(table *t, const window *w, operation *o)
{
    place seen = {0};
    int mine = 0;
    for (unsigned tries = 0; tries < MAX_TRIES; tries++) {
        if (tries)
            __atomic_thread_fence(__ATOMIC_SEQ_CST); /* step: fence */
        sight see = scan(w, o, o->creates && !seen.at);
        if (see.live.at) {
            if (mine)
                cas(&seen.at->rec, seen.rec, NOTHING); /* step: release */
            if (mine)
                seen.at = NULL, mine = 0;
            if (update(see.live.at, see.live.rec, o))
                return;
        } else if (!o->creates) {
            record ignored;
            o->next(o, NULL, &ignored);
            return;
        } else if (!see.first.at && seen.at) {
            seen.at = NULL, mine = 0;           /* it is gone: scan again, for room */
        } else if (!see.first.at) {
            mine = reserve(t, &see, o, &seen);
            if (mine < 0)
                return;
        } else if (see.second.at) {
            cas(&see.second.at->rec, see.second.rec, NOTHING); /* step: drop */
            if (see.second.at == seen.at)
                seen.at = NULL, mine = 0;
        } else if (see.first.at == seen.at && see.first.rec.whole == seen.rec.whole) {
            if (convert(seen, o))
                return;
            seen.at = NULL, mine = 0;
        } else {
            seen = see.first, mine = 0; /* step: adopt */
        }
    }
    if (mine)
        cas(&seen.at->rec, seen.rec, NOTHING); /* step: release */
    o->outcome = WINDOW_FULL, o->result = o->wait_ns = 0;
}

static inline void apply(table *t, const window *w, operation *o)
{
    if (!try_update(w, o))
        insert(t, w, o);
    if (o->outcome == WINDOW_FULL)
        __atomic_fetch_add(&t->words[WORD_FULL], 1, __ATOMIC_RELAXED);
}

/* The live record of a key as it stands, for reading only: a pair (a, b) that was not torn, else none. */
static record peek(const window *w, u64 fp, u64 now_ns)
{
    for (unsigned g = 0; g < w->groups; g++)
        for (unsigned i = 0; i < GROUP; i++) {
            const slot *at = slot_at(w, g, i);
            record r;
            r.a = load(&at->rec.a); /* step: peek */
            if (fp_of(r.a) != fp || kind_of(r.a) == HELD)
                continue;
            for (unsigned tries = 0; tries < MAX_TRIES; tries++) {
                r.b = load(&at->rec.b); /* step: peek */
                u64 again = load(&at->rec.a); /* step: peek */
                if (again == r.a)
                    return expired(r, now_ns) ? NOTHING : r;
                r.a = again;
                if (fp_of(r.a) != fp || kind_of(r.a) == HELD)
                    return NOTHING;
            }
        }
    return NOTHING;
}

static inline u64 sweep(slot *at, u64 now_ns)
{
    record r = load_record(at); /* step: sweep */
    return kind_of(r.a) != FREE && expired(r, now_ns) && cas(&at->rec, r, NOTHING); /* step: sweep */
}

/* ---- moving records --------------------------------------------------------------------------------------------- */

/* A copy of a slot that was whole at one moment; FREE unless its record was live. */
static slot read_whole(slot *at, u64 now_ns)
{
    for (unsigned tries = 0; tries < MAX_TRIES; tries++) {
        slot copy = {load_record(at), load_relaxed(&at->used), load_relaxed(&at->key)}; /* step: read whole */
        if (kind_of(copy.rec.a) < TIME || expired(copy.rec, now_ns))
            break;
        if (cas(&at->rec, copy.rec, copy.rec)) /* step: read whole */
            return copy;
    }
    return (slot){0};
}

/* A record dated `shift_ns` later. */
static record shifted(record r, int64_t shift_ns)
{
    if (kind_of(r.a) == TIME)
        return time_record(fp_of(r.a), (time_of(r) + ((u128)(i128)shift_ns << TICK_BITS)) & TIME_MASK);
    int64_t units = (shift_ns >> UNIT_BITS) + ((shift_ns & (((int64_t)1 << UNIT_BITS) - 1)) != 0);
    r.a = make_a(fp_of(r.a), TOTAL, exp_of(r.a) + (u64)units);
    return r;
}

/* Puts a slot of another table into this one. 1: its key has at least this charge now, or it has run out.
 * 0: no room, or its key is not known; a claim counts as evicted then. */
static int merge(table *t, slot from, int64_t shift_ns, u64 now_ns)
{
    operation o = {.next = next_merge, .creates = 1, .now_ns = now_ns};
    window w = aim(&o, t, from.key);
    o.given = shifted(from.rec, shift_ns);
    o.used_ns = shift_ns < 0 && from.used < -(u64)shift_ns ? 0 : from.used + (u64)shift_ns;
    if (expired(o.given, now_ns))
        return 1;
    if (o.fp == fp_of(from.rec.a))
        apply(t, &w, &o);
    if (o.outcome == ALLOWED)
        return 1;
    if (is_claim(&o.given)) {
        note(t, o.given);
        __atomic_fetch_add(&t->words[WORD_CLAIM_EVICTIONS], 1, __ATOMIC_RELAXED);
    }
    return 0;
}

#endif
