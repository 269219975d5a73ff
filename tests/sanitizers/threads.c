/* The table of counters under threads, for the sanitizers: every operation of _slots.h, on few keys in a table so small
 * that windows fill, records run out and are evicted, moved and swept all the time.
 *
 *     threads OPERATIONS SEED
 *
 * Each of 4 threads does OPERATIONS of them. At the end the totals that have room must be exact: those of a budget that
 * all threads charged together, which nothing may evict. Exits with 0 when they are, and says what was done. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "_slots.h"

enum { THREADS = 4, GROUPS = 3, SLOTS = GROUPS * GROUP, KEYS = 40, BUDGETS = 4 };

static slot slots[SLOTS] __attribute__((aligned(64)));
static slot others[SLOTS] __attribute__((aligned(64)));
static u64 words[OWN_WORDS], other_words[OWN_WORDS];
static u64 admitted[BUDGETS];
static unsigned long operations;
static u64 now_ns = (u64)1 << 50;

static u64 drawn(u64 *state)                                    /* xorshift64 */
{
    *state ^= *state << 13, *state ^= *state >> 7, *state ^= *state << 17;
    return *state;
}

static operation some_operation(u64 dice, u64 at_ns)
{
    static change (*const nexts[])(operation *, const record *, record *) = {
        next_take, next_take, next_once, next_once, next_overdraw, next_count, next_give, next_delete,
    };
    unsigned which = dice % 8;
    operation o = {.next = nexts[which], .creates = which < 6, .stamp = dice >> 8 & 0xFFF};
    o.now_ns = o.used_ns = at_ns;
    o.cost_u = dice >> 8 & 3, o.limit_u = 20, o.per = (u64)1 << 62, o.ttl_ns = (u64)1 << 37;
    return o;
}

/* A budget of a million, which the keys below BUDGETS are: the sum of what was admitted is its total. */
static void charge_budget(table *t, u64 key, u64 at_ns)
{
    operation o = {.next = next_add, .creates = 1, .now_ns = at_ns, .used_ns = at_ns};
    o.cost_u = 1, o.limit_u = 1000000, o.ttl_ns = MAX_LIFE_NS;
    window w = aim(&o, t, key);
    apply(t, &w, &o);
    if (o.outcome == ALLOWED)
        __atomic_fetch_add(&admitted[key], 1, __ATOMIC_RELAXED);
}

static void move_one(table *t, u64 dice, u64 at_ns)
{
    table other = {others, other_words, GROUPS};
    slot copy = read_whole(&t->slots[dice % SLOTS], at_ns);
    if (copy.rec.a && copy.key >= BUDGETS)
        merge(&other, copy, dice & 1 ? (int64_t)1 << 30 : -((int64_t)1 << 30), at_ns);
    sweep(&others[dice % SLOTS], at_ns + ((u64)3 << UNIT_BITS));
}

static void *work(void *argument)
{
    u64 state = (u64)(uintptr_t)argument;
    table t = {slots, words, GROUPS};
    for (unsigned long i = 0; i < operations; i++) {
        u64 dice = drawn(&state), key = BUDGETS + (dice >> 16) % KEYS;
        u64 at_ns = __atomic_fetch_add(&now_ns, (dice >> 32 & 0xFFF) << 20, __ATOMIC_RELAXED);
        if (dice >> 44 & 1)
            at_ns -= (u64)1 << 36;                              /* a process whose clock stood still for a while */
        if ((dice >> 48) % 8 == 0) {
            charge_budget(&t, (dice >> 16) % BUDGETS, at_ns);
        } else if ((dice >> 48) % 8 == 1) {
            move_one(&t, dice, at_ns);
        } else if ((dice >> 48) % 8 == 2) {
            sweep(&slots[dice % SLOTS], at_ns);
            operation o = {0};
            window w = aim(&o, &t, key);
            (void)peek(&w, o.fp, at_ns);
        } else {
            operation o = some_operation(dice, at_ns);
            window w = aim(&o, &t, key);
            prefetch(&w);
            apply(&t, &w, &o);
        }
    }
    return NULL;
}

int main(int count, char **arguments)
{
    pthread_t threads[THREADS];
    if (count != 3)
        return 2;
    operations = strtoul(arguments[1], NULL, 10);
    u64 seed = strtoul(arguments[2], NULL, 10), checked = 0;
    table t = {slots, words, GROUPS};
    for (u64 key = 0; key < BUDGETS; key++)
        charge_budget(&t, key, now_ns);                         /* before the crowd: a budget without room is refused */
    for (u64 i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], NULL, work, (void *)(uintptr_t)(seed * THREADS + i + 1)))
            return 2;
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    for (u64 key = 0; key < BUDGETS; key++) {
        operation o = {0};
        window w = aim(&o, &t, key);
        record r = peek(&w, o.fp, now_ns);
        if (kind_of(r.a) != TOTAL || r.b != admitted[key]) {
            printf("budget %d: %llu were admitted, the record says %llu\n", (int)key,
                   (unsigned long long)admitted[key], (unsigned long long)r.b);
            return 1;
        }
        checked += r.b;
    }
    printf("%lu operations, %llu in the budgets, %llu evictions and %llu of claims\n", operations * THREADS,
           (unsigned long long)checked, (unsigned long long)words[WORD_EVICTIONS],
           (unsigned long long)words[WORD_CLAIM_EVICTIONS]);
    return 0;
}
