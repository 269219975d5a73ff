/* A fixed table of counters in memory that several processes share, any of which may be killed at any instruction.
 *
 * This file owns the format of a slot and the atomic steps that change it. It knows nothing of rules, names or
 * clocks: it counts under 64-bit keys that others hash, at times that others pass in. `model.py` says the same in
 * plain Python, without the concurrency; the tests compare the two.
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
 *     TOTAL  b = total in millionths; exp = unit(now + ttl) + 1, after which it may be forgotten.
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
 *      |    or the LRU    | release, drop, sweep     | +--- reserve by another key, when expired, or TIME and
 *      +------------------+--------------------------+      the least recently used of a window without room
 *                            delete, sweep
 *
 *   An insertion reserves a slot, then scans its whole window once more. If the reservation stood throughout and the
 *   scan saw no other record of the key, it converts the reservation into the first record. So a key never has two
 *   live records: of two reservations i and j, each converted after a scan that did not see the other, i was placed
 *   after j's scan read its slot and j after i's, but each was placed before its own scan began: a contradiction.
 *   The nonce makes "stood throughout" checkable, the fence before a scan keeps it after the announcement. Of two
 *   reservations the later in probe order is dropped, by whoever sees it. Loads are of 8 bytes and may be torn; only
 *   a successful compare-and-swap makes a pair true. That is why a refusal too swaps the record for itself.
 *   Every step carries a label, `step: name`, by which the tests' model of the interleavings refers to it.
 *
 * A KILLED PROCESS leaves at most one HELD slot. Its key can use it at once; others after 69 to 137 s. There is no
 * lock, no busy mark and no order of publication to repair; a stall of any length is as harmless as a kill.
 *
 * A FULL WINDOW: first a free or expired slot, then the least recently used TIME record is evicted (WORD_EVICTIONS).
 * A TOTAL is never evicted, so that a flood of new keys cannot refresh a budget, nor is a HELD, lest two keys steal
 * one slot from each other for ever. No room at all: FULL, counted in WORD_FULL; the caller decides.
 *
 * MOVING records to a table of another size needs the whole key, of which the record has 43 bits. `key` is stored
 * after a reservation and before its conversion. A store that was delayed until another key had the slot leaves a
 * key that does not match the fingerprint: it is set right by the next update, and not moved if there was none.
 *
 * TIME is the caller's CLOCK_MONOTONIC, one clock for all. A `now` older than that of another process is harmless to
 * the table; a bucket may win back what it refilled in between.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <limits.h>
#include <stddef.h>
#include <stdint.h>

/* The 16-byte compare-and-swap. On x86-64 the pragma makes gcc inline `lock cmpxchg16b` (the import checks that the
 * processor has it); on arm64 gcc emits casp or ldaxp/stlxp. Never use _Atomic or __atomic_* on 16 bytes: gcc calls
 * libatomic for them, which may take a lock of this process only, silently wrong between processes. */
#if defined(__x86_64__)
#include <cpuid.h>
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
enum { GROUP = 8, GROUP_BYTES = GROUP * sizeof(slot), WINDOW = 2 * GROUP, ROOMY = 4 };
enum { WORD_NONCE = 0, WORD_EVICTIONS = 8, WORD_FULL = 9, OWN_WORDS = 16 };    /* the nonce has a cache line alone */
enum { REFUSED = 0, ALLOWED = 1, WINDOW_FULL = -1 };

#define EXP_MASK (((u64)1 << EXP_BITS) - 1)
#define COUNT_MASK (((u64)1 << COUNT_BITS) - 1)
#define TIME_MASK (((u128)1 << 83) - 1)
#define MAX_TICKS ((u128)1 << 82)                       /* longest distance of two times: 208 days */
#define MAX_LIFE_NS ((u64)100 * 86400 * 1000000000)     /* 100 days, far enough from the wrap at 208 */
#define MAX_AMOUNT ((u64)INT64_MAX)

/* No interleaving of live processes needs more than a few tries each; a corrupt segment must not hang a worker. */
#define MAX_TRIES (1u << 20)

static const record NOTHING = {0};

/* ---- memory ---------------------------------------------------------------------------------------------------- */

static inline int cas(record *at, record old, record put)
{
    return __sync_bool_compare_and_swap(&at->whole, old.whole, put.whole);
}

static inline u64 load(const u64 *at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
static inline u64 load_relaxed(const u64 *at) { return __atomic_load_n(at, __ATOMIC_RELAXED); }
static inline void store_relaxed(u64 *at, u64 value) { __atomic_store_n(at, value, __ATOMIC_RELAXED); }

static inline u64 fp_of(u64 a) { return a >> FP_SHIFT; }
static inline unsigned kind_of(u64 a) { return (unsigned)(a >> KIND_SHIFT) & 3; }
static inline u64 exp_of(u64 a) { return a & EXP_MASK; }
static inline u64 make_a(u64 fp, unsigned kind, u64 exp)
{
    return fp << FP_SHIFT | (u64)kind << KIND_SHIFT | (exp & EXP_MASK);
}

/* ---- times ----------------------------------------------------------------------------------------------------- */

static inline u64 unit_of(u64 ns) { return ns >> UNIT_BITS; }
static inline u128 ticks_of(u64 ns) { return (u128)ns << TICK_BITS & TIME_MASK; }
static inline i128 ticks_between(u128 later, u128 earlier) { return (i128)((later - earlier) << 45) >> 45; }
static inline int32_t units_between(u64 later, u64 earlier) { return (int32_t)((uint32_t)(later - earlier) << 13) >> 13; }

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

/* ---- operations: from the record of a key, or none, to its next record ------------------------------------------- */

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
    u64 ttl_ns;                                 /* the window of a count, the life of a total */
    record given;                               /* the record to merge */
    u64 used_ns;                                /* stamp for `used` */
    int outcome;
    u64 result;                                 /* remaining or total in millionths, or a count */
    u64 wait_ns;
};

static inline int is(const record *r, unsigned kind) { return kind_of(r->a) == kind; }

static inline i128 debt_of(const operation *o, const record *old, i128 burst)
{
    i128 debt = old ? ticks_between(time_of(*old), ticks_of(o->now_ns)) : 0;
    return debt < 0 ? 0 : debt > burst ? burst : debt;          /* above: the burst was lowered by a reload */
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
    o->result = (u64)((u128)(burst - debt) / o->per);
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
    if (old && !is(old, TOTAL)) {
        o->outcome = WINDOW_FULL, o->result = 0;
        return KEEP;
    }
    o->outcome = o->cost_u <= o->limit_u && total <= o->limit_u - o->cost_u;
    o->result = o->outcome == ALLOWED ? total + o->cost_u : total;
    if (o->outcome == REFUSED || (!old && o->cost_u == 0))
        return KEEP;
    put->a = old ? old->a : make_a(o->fp, TOTAL, unit_of(o->now_ns + o->ttl_ns) + 1);
    put->b = o->result;
    return WRITE;
}

static change next_sub(operation *o, const record *old, record *put)
{
    if (!old || !is(old, TOTAL))
        return KEEP;
    put->a = old->a;
    put->b = old->b > o->cost_u ? old->b - o->cost_u : 0;
    return WRITE;
}

static change next_charge(operation *o, const record *old, record *put)
{
    if (!old || !is(old, TOTAL))
        return KEEP;
    put->a = old->a;
    put->b = old->b > UINT64_MAX - o->cost_u ? UINT64_MAX : old->b + o->cost_u;
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

/* Of two records of one key the one that has been charged more stays. */
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

/* ---- the window of a key ----------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    Py_buffer view;                             /* keeps the memory mapped */
    slot *slots;
    u64 *words, *cells;
    u64 groups;
    u64 seed;
    Py_ssize_t slot_count, word_count, cell_count;
} Table;

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

static inline window window_of(const Table *t, u64 mixed_key)
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

/* ---- the protocol ------------------------------------------------------------------------------------------------ */

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
            r.a = load(&at->rec.a);
            if (fp_of(r.a) != o->fp || kind_of(r.a) == HELD)
                continue;
            r.b = load(&at->rec.b);
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

/* Reads a whole window, or until it meets the live record of the key. */
static sight scan(const window *w, const operation *o)
{
    sight see = {0};
    place spare[2] = {{0}};
    unsigned spares[2] = {0, 0};
    u64 oldest_ns = 0;
    for (unsigned g = 0; g < w->groups; g++)
        for (unsigned i = 0; i < GROUP; i++) {
            slot *at = slot_at(w, g, i);
            place p = {at, NOTHING};
            p.rec.a = load(&at->rec.a); /* step: scan */
            p.rec.b = load(&at->rec.b);
            unsigned kind = kind_of(p.rec.a);
            if (fp_of(p.rec.a) == o->fp) {
                if (kind != HELD) {
                    see.live = p;
                    return see;
                }
                *(see.first.at ? &see.second : &see.first) = p;
            } else if (kind == FREE || expired(p.rec, o->now_ns)) {
                if (!spares[g]++)
                    spare[g] = p;
            } else if (kind == TIME) {
                u64 used_ns = load_relaxed(&at->used);
                if (!see.oldest.at || used_ns < oldest_ns)
                    see.oldest = p, oldest_ns = used_ns;
            }
        }
    see.spare = spare[spares[0] < ROOMY && spares[1] > spares[0]];
    return see;
}

/* 1: reserved, now scan again. 0: lost the slot, scan again. -1: decided, the operation is over. */
static int reserve(Table *t, const sight *see, operation *o, place *mine)
{
    record put;
    if (o->next(o, NULL, &put) == KEEP)
        return -1;                              /* refused even by a fresh record: it needs no slot */
    place victim = see->spare.at ? see->spare : see->oldest;
    if (!victim.at) {
        o->outcome = WINDOW_FULL;
        return -1;
    }
    record held;
    held.a = make_a(o->fp, HELD, unit_of(o->now_ns) + 1);
    held.b = __atomic_fetch_add(&t->words[WORD_NONCE], 1, __ATOMIC_SEQ_CST);
    if (!cas(&victim.at->rec, victim.rec, held)) /* step: reserve */
        return 0;
    store_relaxed(&victim.at->used, o->used_ns);
    if (!see->spare.at)
        __atomic_fetch_add(&t->words[WORD_EVICTIONS], 1, __ATOMIC_RELAXED);
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
static void insert(Table *t, const window *w, operation *o)
{
    place seen = {0};
    int mine = 0;
    for (unsigned tries = 0; tries < MAX_TRIES; tries++) {
        if (tries)
            __atomic_thread_fence(__ATOMIC_SEQ_CST);
        sight see = scan(w, o);
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
        } else if (!see.first.at) {
            seen.at = NULL;
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

static inline void apply(Table *t, const window *w, operation *o)
{
    o->used_ns = o->now_ns;
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
            r.a = load(&at->rec.a);
            if (fp_of(r.a) != fp || kind_of(r.a) == HELD)
                continue;
            for (unsigned tries = 0; tries < MAX_TRIES; tries++) {
                r.b = load(&at->rec.b);
                u64 again = load(&at->rec.a);
                if (again == r.a)
                    return expired(r, now_ns) ? NOTHING : r;
                r.a = again;
                if (fp_of(r.a) != fp || kind_of(r.a) == HELD)
                    return NOTHING;
            }
        }
    return NOTHING;
}

/* ---- arguments --------------------------------------------------------------------------------------------------- */

static int bad_count(const char *name, Py_ssize_t given, Py_ssize_t wanted)
{
    PyErr_Format(PyExc_TypeError, "%s() takes %zd arguments (%zd given)", name, wanted, given);
    return -1;
}

/* A time, amount or limit: 0 .. 2^63-1. */
static inline int read_amount(PyObject *from, const char *name, u64 *to)
{
    int overflow;
    long long value = PyLong_AsLongLongAndOverflow(from, &overflow);
    if (value >= 0 && !overflow) {
        *to = (u64)value;
        return 0;
    }
    if (!PyErr_Occurred())
        PyErr_Format(PyExc_ValueError, "%s must be from 0 to 2**63-1, not %R", name, from);
    return -1;
}

/* A key or word: 0 .. 2^64-1. */
static inline int read_u64(PyObject *from, const char *name, u64 *to)
{
    u64 value = PyLong_AsUnsignedLongLong(from);
    *to = value;
    if (value != UINT64_MAX || !PyErr_Occurred())
        return 0;
    if (PyErr_ExceptionMatches(PyExc_OverflowError))
        PyErr_Format(PyExc_ValueError, "%s must be from 0 to 2**64-1, not %R", name, from);
    return -1;
}

static inline int read_life(PyObject *from, const char *name, u64 *to)
{
    if (read_amount(from, name, to) < 0)
        return -1;
    if (*to - 1 < MAX_LIFE_NS)
        return 0;
    PyErr_Format(PyExc_ValueError, "%s must be from 1 ns to 100 days, not %R", name, from);
    return -1;
}

static inline int read_per(PyObject *from, u64 *per)
{
    if (read_amount(from, "per", per) < 0)
        return -1;
    if (*per)
        return 0;
    PyErr_SetString(PyExc_ValueError, "per must be at least 1");
    return -1;
}

static inline int read_bucket(PyObject *burst_u, PyObject *per, u64 *limit_u, u64 *ticks)
{
    if (read_amount(burst_u, "burst_u", limit_u) < 0 || read_per(per, ticks) < 0)
        return -1;
    if ((u128)*limit_u * *ticks < MAX_TICKS)
        return 0;
    PyErr_SetString(PyExc_ValueError, "burst_u * per must be below 2**82 ticks: the bucket would take 208 days to fill");
    return -1;
}

/* key and now_ns, the first two arguments of every operation. */
static inline int read_start(Table *t, PyObject *const *args, operation *o, window *w)
{
    if (read_u64(args[0], "key", &o->key) < 0)
        return -1;
    u64 x = mixed(o->key);
    o->fp = fp_from(x);
    *w = window_of(t, x);
    prefetch(w);
    return read_amount(args[1], "now_ns", &o->now_ns);
}

static inline u64 *at_index(u64 *array, Py_ssize_t count, PyObject *index, const char *what)
{
    Py_ssize_t i = PyLong_AsSsize_t(index);
    if (i >= 0 && i < count)
        return array + i;
    if (!PyErr_Occurred() || PyErr_ExceptionMatches(PyExc_OverflowError))
        PyErr_Format(PyExc_IndexError, "no %s %R: there are %zd", what, index, count);
    return NULL;
}

/* Both values of a pair may be up to 2^64-1; steals nothing, returns NULL with an exception set on failure. */
static PyObject *answer(int outcome, PyObject *second, PyObject *third, int size)
{
    PyObject *tuple = PyTuple_New(size), *first = PyLong_FromLong(outcome);
    if (!tuple || !first || !second || (size == 3 && !third)) {
        Py_XDECREF(tuple), Py_XDECREF(first), Py_XDECREF(second), Py_XDECREF(third);
        return NULL;
    }
    PyTuple_SET_ITEM(tuple, 0, first);
    PyTuple_SET_ITEM(tuple, 1, second);
    if (size == 3)
        PyTuple_SET_ITEM(tuple, 2, third);
    return tuple;
}

#define NEED(wanted, name)                                                                                             \
    if (count != (wanted) && bad_count(name, count, wanted))                                                           \
        return NULL;
#define METHOD(name) static PyObject *Table_##name(Table *t, PyObject *const *args, Py_ssize_t count)

/* ---- methods: buckets ---------------------------------------------------------------------------------------------- */

METHOD(take)
{
    window w;
    operation o = {.next = next_take, .creates = 1};
    NEED(5, "take")
    if (read_start(t, args, &o, &w) < 0 || read_amount(args[2], "cost_u", &o.cost_u) < 0
        || read_bucket(args[3], args[4], &o.limit_u, &o.per) < 0)
        return NULL;
    apply(t, &w, &o);
    if (o.outcome == WINDOW_FULL)
        o.result = o.limit_u, o.wait_ns = 0;
    return answer(o.outcome, PyLong_FromUnsignedLongLong(o.result), PyLong_FromLongLong((long long)o.wait_ns), 3);
}

METHOD(give)
{
    window w;
    operation o = {.next = next_give};
    NEED(4, "give")
    if (read_start(t, args, &o, &w) < 0 || read_amount(args[2], "cost_u", &o.cost_u) < 0 || read_per(args[3], &o.per) < 0)
        return NULL;
    apply(t, &w, &o);
    Py_RETURN_NONE;
}

METHOD(overdraw)
{
    window w;
    operation o = {.next = next_overdraw, .creates = 1};
    NEED(5, "overdraw")
    if (read_start(t, args, &o, &w) < 0 || read_amount(args[2], "cost_u", &o.cost_u) < 0
        || read_bucket(args[3], args[4], &o.limit_u, &o.per) < 0)
        return NULL;
    apply(t, &w, &o);
    Py_RETURN_NONE;
}

METHOD(peek_bucket)
{
    window w;
    operation o = {0};
    NEED(4, "peek_bucket")
    if (read_start(t, args, &o, &w) < 0 || read_bucket(args[2], args[3], &o.limit_u, &o.per) < 0)
        return NULL;
    record r = peek(&w, o.fp, o.now_ns);
    i128 burst = (i128)o.limit_u * o.per, debt = debt_of(&o, is(&r, TIME) ? &r : NULL, burst);
    PyObject *reset_ns = PyLong_FromUnsignedLongLong(ns_up(debt));
    PyObject *pair = PyTuple_New(2), *left_u = PyLong_FromUnsignedLongLong((u64)((u128)(burst - debt) / o.per));
    if (!reset_ns || !pair || !left_u) {
        Py_XDECREF(reset_ns), Py_XDECREF(pair), Py_XDECREF(left_u);
        return NULL;
    }
    PyTuple_SET_ITEM(pair, 0, left_u);
    PyTuple_SET_ITEM(pair, 1, reset_ns);
    return pair;
}

/* ---- methods: totals, counts, any record --------------------------------------------------------------------------- */

METHOD(add)
{
    window w;
    operation o = {.next = next_add, .creates = 1};
    NEED(5, "add")
    if (read_start(t, args, &o, &w) < 0 || read_amount(args[2], "amount_u", &o.cost_u) < 0
        || read_amount(args[3], "limit_u", &o.limit_u) < 0 || read_life(args[4], "ttl_ns", &o.ttl_ns) < 0)
        return NULL;
    apply(t, &w, &o);
    return answer(o.outcome, PyLong_FromUnsignedLongLong(o.result), NULL, 2);
}

METHOD(sub)
{
    window w;
    operation o = {.next = next_sub};
    NEED(3, "sub")
    if (read_start(t, args, &o, &w) < 0 || read_amount(args[2], "amount_u", &o.cost_u) < 0)
        return NULL;
    apply(t, &w, &o);
    Py_RETURN_NONE;
}

METHOD(charge)
{
    window w;
    operation o = {.next = next_charge};
    NEED(3, "charge")
    if (read_start(t, args, &o, &w) < 0 || read_amount(args[2], "amount_u", &o.cost_u) < 0)
        return NULL;
    apply(t, &w, &o);
    Py_RETURN_NONE;
}

METHOD(peek_total)
{
    window w;
    operation o = {0};
    NEED(2, "peek_total")
    if (read_start(t, args, &o, &w) < 0)
        return NULL;
    record r = peek(&w, o.fp, o.now_ns);
    return PyLong_FromUnsignedLongLong(is(&r, TOTAL) ? r.b : 0);
}

METHOD(count)
{
    window w;
    operation o = {.next = next_count, .creates = 1};
    NEED(3, "count")
    if (read_start(t, args, &o, &w) < 0 || read_life(args[2], "window_ns", &o.ttl_ns) < 0)
        return NULL;
    apply(t, &w, &o);
    return PyLong_FromUnsignedLongLong(o.outcome == ALLOWED ? o.result : 0);
}

METHOD(peek_count)
{
    window w;
    operation o = {0};
    NEED(2, "peek_count")
    if (read_start(t, args, &o, &w) < 0)
        return NULL;
    record r = peek(&w, o.fp, o.now_ns);
    return PyLong_FromUnsignedLongLong(is(&r, TIME) ? count_of(r, o.now_ns) : 0);
}

METHOD(once)
{
    window w;
    operation o = {.next = next_add, .creates = 1, .cost_u = 1, .limit_u = 1};
    NEED(3, "once")
    if (read_start(t, args, &o, &w) < 0 || read_life(args[2], "ttl_ns", &o.ttl_ns) < 0)
        return NULL;
    apply(t, &w, &o);
    return PyLong_FromLong(o.outcome);
}

METHOD(delete)
{
    window w;
    operation o = {.next = next_delete};
    NEED(2, "delete")
    if (read_start(t, args, &o, &w) < 0)
        return NULL;
    apply(t, &w, &o);
    return PyBool_FromLong(o.outcome == ALLOWED);
}

/* ---- methods: the whole table -------------------------------------------------------------------------------------- */

/* start, slots: clipped to the table, so that a caller may go round in steps of any size. */
static int read_range(const Table *t, PyObject *const *args, slot **from, slot **to)
{
    u64 start, slots, all = (u64)t->slot_count;
    if (read_amount(args[0], "start", &start) < 0 || read_amount(args[1], "slots", &slots) < 0)
        return -1;
    if (start > all)
        start = all;
    if (slots > all - start)
        slots = all - start;
    *from = t->slots + start;
    *to = *from + slots;
    return 0;
}

static inline record load_record(const slot *at)
{
    record r;
    r.a = load(&at->rec.a);
    r.b = load(&at->rec.b);
    return r;
}

METHOD(sweep)
{
    slot *at, *end;
    u64 now_ns, freed = 0;
    NEED(3, "sweep")
    if (read_range(t, args, &at, &end) < 0 || read_amount(args[2], "now_ns", &now_ns) < 0)
        return NULL;
    for (; at < end; at++) {
        record r = load_record(at);
        if (kind_of(r.a) != FREE && expired(r, now_ns))
            freed += (u64)cas(&at->rec, r, NOTHING); /* step: sweep */
    }
    return PyLong_FromUnsignedLongLong(freed);
}

METHOD(census)
{
    slot *at, *end;
    u64 now_ns, kinds[4] = {0}, ended = 0;
    NEED(3, "census")
    if (read_range(t, args, &at, &end) < 0 || read_amount(args[2], "now_ns", &now_ns) < 0)
        return NULL;
    for (; at < end; at++) {
        record r = load_record(at);
        unsigned kind = kind_of(r.a);
        if (kind != FREE && expired(r, now_ns))
            ended++;
        else
            kinds[kind]++;
    }
    return Py_BuildValue("(KKKKK)", kinds[FREE], kinds[HELD], kinds[TIME], kinds[TOTAL], ended);
}

METHOD(dump)
{
    slot *at, *end;
    u64 now_ns;
    NEED(3, "dump")
    if (read_range(t, args, &at, &end) < 0 || read_amount(args[2], "now_ns", &now_ns) < 0)
        return NULL;
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (char *)end - (char *)at);
    if (!bytes)
        return NULL;
    char *to = PyBytes_AS_STRING(bytes);
    for (; at < end; at++) {
        slot copy = {load_record(at), load_relaxed(&at->used), load_relaxed(&at->key)};
        while (kind_of(copy.rec.a) >= TIME && !expired(copy.rec, now_ns)) {
            if (cas(&at->rec, copy.rec, copy.rec)) { /* step: read whole */
                memcpy(to, &copy, sizeof copy);
                to += sizeof copy;
                break;
            }
            copy.rec = load_record(at);
        }
    }
    if (_PyBytes_Resize(&bytes, to - PyBytes_AS_STRING(bytes)) < 0)
        return NULL;
    return bytes;
}

/* A record dated `shift_ns` later. */
static record shifted(record r, long long shift_ns)
{
    if (kind_of(r.a) == TIME)
        return time_record(fp_of(r.a), (time_of(r) + ((u128)(i128)shift_ns << TICK_BITS)) & TIME_MASK);
    long long units = (shift_ns >> UNIT_BITS) + ((shift_ns & (((long long)1 << UNIT_BITS) - 1)) != 0);
    r.a = make_a(fp_of(r.a), TOTAL, exp_of(r.a) + (u64)units);
    return r;
}

/* 1: its key has at least this charge now. 0: no room, or its key is not known. */
static int merge_slot(Table *t, slot from, long long shift_ns, u64 now_ns)
{
    operation o = {.next = next_merge, .creates = 1, .key = from.key, .now_ns = now_ns, .fp = fp_of(from.rec.a)};
    u64 x = mixed(from.key);
    window w = window_of(t, x);
    if (fp_from(x) != o.fp)
        return 0;
    o.given = shifted(from.rec, shift_ns);
    if (expired(o.given, now_ns))
        return 1;
    apply(t, &w, &o);
    return o.outcome == ALLOWED;
}

METHOD(merge)
{
    Py_buffer from;
    u64 now_ns, kept = 0, dropped = 0;
    NEED(3, "merge")
    long long shift_ns = PyLong_AsLongLong(args[1]);
    if ((shift_ns == -1 && PyErr_Occurred()) || read_amount(args[2], "now_ns", &now_ns) < 0)
        return NULL;
    if (PyObject_GetBuffer(args[0], &from, PyBUF_SIMPLE) < 0)
        return NULL;
    for (unsigned kind = TOTAL; kind >= TIME; kind--)          /* totals first: they are never evicted */
        for (Py_ssize_t at = 0; at + (Py_ssize_t)sizeof(slot) <= from.len; at += sizeof(slot)) {
            slot copy;
            memcpy(&copy, (const char *)from.buf + at, sizeof copy);
            if (kind_of(copy.rec.a) == kind)
                *(merge_slot(t, copy, shift_ns, now_ns) ? &kept : &dropped) += 1;
        }
    PyBuffer_Release(&from);
    return Py_BuildValue("(KK)", kept, dropped);
}

/* ---- methods: words and cells -------------------------------------------------------------------------------------- */

METHOD(word_get)
{
    NEED(1, "word_get")
    u64 *at = at_index(t->words, t->word_count, args[0], "word");
    return at ? PyLong_FromUnsignedLongLong(__atomic_load_n(at, __ATOMIC_SEQ_CST)) : NULL;
}

METHOD(word_set)
{
    u64 value;
    NEED(2, "word_set")
    u64 *at = at_index(t->words, t->word_count, args[0], "word");
    if (!at || read_u64(args[1], "value", &value) < 0)
        return NULL;
    __atomic_store_n(at, value, __ATOMIC_SEQ_CST);
    Py_RETURN_NONE;
}

/* Amounts are taken modulo 2^64, so that a negative one subtracts. */
static inline int read_wrapping(PyObject *from, u64 *amount)
{
    *amount = PyLong_AsUnsignedLongLongMask(from);
    return *amount == UINT64_MAX && PyErr_Occurred() ? -1 : 0;
}

METHOD(word_add)
{
    u64 amount;
    NEED(2, "word_add")
    u64 *at = at_index(t->words, t->word_count, args[0], "word");
    if (!at || read_wrapping(args[1], &amount) < 0)
        return NULL;
    return PyLong_FromUnsignedLongLong(__atomic_add_fetch(at, amount, __ATOMIC_SEQ_CST));
}

METHOD(word_cas)
{
    u64 old, value;
    NEED(3, "word_cas")
    u64 *at = at_index(t->words, t->word_count, args[0], "word");
    if (!at || read_u64(args[1], "old", &old) < 0 || read_u64(args[2], "value", &value) < 0)
        return NULL;
    return PyBool_FromLong(__atomic_compare_exchange_n(at, &old, value, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
}

METHOD(cell_add)
{
    u64 amount;
    NEED(2, "cell_add")
    u64 *at = at_index(t->cells, t->cell_count, args[0], "cell");
    if (!at || read_wrapping(args[1], &amount) < 0)
        return NULL;
    __atomic_fetch_add(at, amount, __ATOMIC_RELAXED);
    Py_RETURN_NONE;
}

METHOD(cell_get)
{
    NEED(1, "cell_get")
    u64 *at = at_index(t->cells, t->cell_count, args[0], "cell");
    return at ? PyLong_FromUnsignedLongLong(load_relaxed(at)) : NULL;
}

METHOD(cell_set)
{
    u64 value;
    NEED(2, "cell_set")
    u64 *at = at_index(t->cells, t->cell_count, args[0], "cell");
    if (!at || read_u64(args[1], "value", &value) < 0)
        return NULL;
    store_relaxed(at, value);
    Py_RETURN_NONE;
}

/* ---- the type and the module --------------------------------------------------------------------------------------- */

/* `count` items of `size` bytes at `offset` of the buffer, whose address must be a multiple of `alignment`. */
static void *region(const Table *t, const char *name, Py_ssize_t offset, Py_ssize_t count, size_t size, size_t alignment)
{
    size_t bytes = (size_t)t->view.len;
    if (offset < 0 || count < 0 || (size_t)offset > bytes || (size_t)count > (bytes - (size_t)offset) / size) {
        PyErr_Format(PyExc_ValueError, "%s: %zd at offset %zd do not fit %zd bytes", name, count, offset, t->view.len);
        return NULL;
    }
    char *at = (char *)t->view.buf + offset;
    if ((uintptr_t)at % alignment) {
        PyErr_Format(PyExc_ValueError, "%s: offset %zd is not aligned to %zu bytes in memory", name, offset, alignment);
        return NULL;
    }
    return at;
}

static int lay_out(Table *t, Py_ssize_t words_at, Py_ssize_t slots_at, Py_ssize_t cells_at)
{
    if (t->word_count < OWN_WORDS) {
        PyErr_Format(PyExc_ValueError, "words: %zd are too few, the table itself uses %d", t->word_count, OWN_WORDS);
        return -1;
    }
    if (t->slot_count < GROUP || t->slot_count % GROUP || t->slot_count / GROUP > UINT32_MAX) {
        PyErr_Format(PyExc_ValueError, "slots: %zd is not a positive multiple of %d", t->slot_count, GROUP);
        return -1;
    }
    t->groups = (u64)t->slot_count / GROUP;
    t->words = region(t, "words", words_at, t->word_count, sizeof(u64), 64);
    if (!t->words)
        return -1;
    t->slots = region(t, "slots", slots_at, t->slot_count, sizeof(slot), GROUP_BYTES);
    if (!t->slots)
        return -1;
    t->cells = region(t, "cells", cells_at, t->cell_count, sizeof(u64), 64);
    return t->cells ? 0 : -1;
}

static PyObject *Table_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"buffer", "seed", "words_at", "words", "slots_at", "slots", "cells_at", "cells", NULL};
    PyObject *buffer, *seed;
    Py_ssize_t words_at, words, slots_at, slots, cells_at, cells;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O$Onnnnnn:Table", names, &buffer, &seed, &words_at, &words, &slots_at,
                                     &slots, &cells_at, &cells))
        return NULL;
    Table *t = (Table *)type->tp_alloc(type, 0);
    if (!t)
        return NULL;
    t->word_count = words, t->slot_count = slots, t->cell_count = cells;
    if (read_u64(seed, "seed", &t->seed) < 0 || PyObject_GetBuffer(buffer, &t->view, PyBUF_WRITABLE) < 0
        || lay_out(t, words_at, slots_at, cells_at) < 0) {
        Py_DECREF(t);
        return NULL;
    }
    return (PyObject *)t;
}

static int Table_traverse(Table *t, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(t));
    Py_VISIT(t->view.obj);
    return 0;
}

static void Table_dealloc(Table *t)
{
    PyTypeObject *type = Py_TYPE(t);
    PyObject_GC_UnTrack(t);
    if (t->view.obj)
        PyBuffer_Release(&t->view);
    type->tp_free(t);
    Py_DECREF(type);
}

#define FAST(name) {#name, (PyCFunction)(void (*)(void))Table_##name, METH_FASTCALL, NULL}
static PyMethodDef Table_methods[] = {
    FAST(take), FAST(give), FAST(overdraw), FAST(peek_bucket), FAST(add), FAST(sub), FAST(charge), FAST(peek_total),
    FAST(count), FAST(peek_count), FAST(once), FAST(delete), FAST(sweep), FAST(census), FAST(dump), FAST(merge),
    FAST(word_get), FAST(word_set), FAST(word_add), FAST(word_cas), FAST(cell_add), FAST(cell_get), FAST(cell_set),
    {NULL, NULL, 0, NULL},
};

static PyMemberDef Table_members[] = {
    {"seed", T_ULONGLONG, offsetof(Table, seed), READONLY, NULL},
    {"slots", T_PYSSIZET, offsetof(Table, slot_count), READONLY, NULL},
    {"words", T_PYSSIZET, offsetof(Table, word_count), READONLY, NULL},
    {"cells", T_PYSSIZET, offsetof(Table, cell_count), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot Table_slots[] = {
    {Py_tp_new, Table_new},
    {Py_tp_traverse, Table_traverse},
    {Py_tp_dealloc, Table_dealloc},
    {Py_tp_methods, Table_methods},
    {Py_tp_members, Table_members},
    {0, NULL},
};

static PyType_Spec Table_spec = {
    .name = "fairvisor.counters._table.Table",
    .basicsize = sizeof(Table),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = Table_slots,
};

typedef struct {
    PyObject *table_type;
} module_state;

static int check_processor(void)
{
#if defined(__x86_64__)
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & bit_CMPXCHG16B)) {
        PyErr_SetString(PyExc_ImportError, "this processor has no 16-byte compare-and-swap (cx16)");
        return -1;
    }
#endif
    return 0;
}

static int module_exec(PyObject *module)
{
    static const struct { const char *name; long value; } constants[] = {
        {"REFUSED", REFUSED}, {"ALLOWED", ALLOWED}, {"FULL", WINDOW_FULL},
        {"GROUP", GROUP}, {"SLOT_BYTES", sizeof(slot)}, {"OWN_WORDS", OWN_WORDS},
        {"WORD_NONCE", WORD_NONCE}, {"WORD_EVICTIONS", WORD_EVICTIONS}, {"WORD_FULL", WORD_FULL},
    };
    module_state *state = PyModule_GetState(module);
    if (check_processor() < 0)
        return -1;
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++)
        if (PyModule_AddIntConstant(module, constants[i].name, constants[i].value) < 0)
            return -1;
    state->table_type = PyType_FromModuleAndSpec(module, &Table_spec, NULL);
    if (!state->table_type)
        return -1;
    return PyModule_AddType(module, (PyTypeObject *)state->table_type);
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    Py_VISIT(((module_state *)PyModule_GetState(module))->table_type);
    return 0;
}

static int module_clear(PyObject *module)
{
    Py_CLEAR(((module_state *)PyModule_GetState(module))->table_type);
    return 0;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "fairvisor.counters._table",
    .m_doc = "Counters in shared memory, changed only by 16-byte compare-and-swap. See _table.pyi.",
    .m_size = sizeof(module_state),
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
};

PyMODINIT_FUNC PyInit__table(void) { return PyModuleDef_Init(&module_def); }
