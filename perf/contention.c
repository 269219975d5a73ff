/* What it costs two cores to count in the same cache line, with the code that the workers count with.
 *
 *     contention CORE CORE
 *
 * Two threads, one on each core, do one operation after the other, with pauses between that stand for the rest of a
 * request. Written, tab-separated, for each operation (take: a token bucket; cell: a metric's sum) and pause in ns: ns
 * for an operation on a line of one's own, on one that the other core uses too, and failed compare-and-swaps for each
 * operation on that one. What the pauses take themselves is measured and subtracted; of each number the median of REPEAT
 * runs is taken, each short, because one in which a thread was stopped says nothing. First line: the time that a line
 * takes from core to core, when two write it in turns.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../fairvisor/counters/_slots.h"

enum { GROUPS = 4096, APART = 64, KEY_MINE = 1, KEY_SHARED = 3, REPEAT = 401, TURNS = 2000 };
#define BURST_U ((u64)1000000000000)

typedef enum { NOTHING_ELSE, TAKE, CELL } what;
typedef struct {
    int core, number, shared;
    what does;
    unsigned pause;                     /* steps, on average */
    double ns;                          /* for each operation, pauses included */
    u64 tries, operations;
} worker;

static slot slots[GROUPS * GROUP] __attribute__((aligned(4096)));
static u64 words[OWN_WORDS] __attribute__((aligned(64)));
static u64 cells[3][APART] __attribute__((aligned(64)));
static table counters = {slots, words, GROUPS};
static unsigned arrived;
static _Thread_local u64 tries;

static u64 now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (u64)t.tv_sec * 1000000000u + (u64)t.tv_nsec;
}

static void stay_on(int core)
{
    cpu_set_t only;
    CPU_ZERO(&only);
    CPU_SET(core, &only);
    if (sched_setaffinity(0, sizeof only, &only))
        perror("core"), exit(1);
}

/* Both are running when this returns. */
static void meet(void)
{
    __atomic_fetch_add(&arrived, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&arrived, __ATOMIC_SEQ_CST) < 2)
        ;
}

static change counted_take(operation *o, const record *old, record *put)
{
    tries++;
    return next_take(o, old, put);
}

static void take(u64 key, u64 at_ns)
{
    operation o = {.next = counted_take, .creates = 1, .now_ns = at_ns, .used_ns = at_ns,
                   .cost_u = 1, .limit_u = BURST_U, .per = 1};
    window w = aim(&o, &counters, key);
    prefetch(&w);
    apply(&counters, &w, &o);
}

/* An eighth more or less than the mean, so that the cores do not stay in step. */
static void pause_for(unsigned mean, u64 *seed)
{
    u64 x = *seed;
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    *seed = x;
    for (u64 left = mean - mean / 8 + x % (mean / 4 + 1); left; left--)
        __asm__ volatile("" : "+r"(x));
}

static void *work(void *given)
{
    worker *w = given;
    u64 seed = 88172645463325252u + (u64)w->number, key = w->shared ? KEY_SHARED : KEY_MINE + (u64)w->number;
    u64 *cell = cells[w->shared ? 2 : w->number];
    stay_on(w->core);
    tries = 0;
    meet();
    u64 begin_ns = now_ns();
    for (u64 i = 0; i < w->operations; i++) {
        if (w->does == TAKE)
            take(key, begin_ns);
        else if (w->does == CELL)
            __atomic_fetch_add(cell, 1, __ATOMIC_RELAXED);
        pause_for(w->pause, &seed);
    }
    w->ns = (double)(now_ns() - begin_ns) / (double)w->operations;
    w->tries = tries;
    return NULL;
}

static void both(void *(*does)(void *), worker *two)
{
    pthread_t threads[2];
    arrived = 0;
    for (int i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, does, &two[i]);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
}

static int ascending(const void *one, const void *other)
{
    double a = *(const double *)one, b = *(const double *)other;
    return (a > b) - (a < b);
}

/* Both cores at it; the median time of an operation, and failed tries for each. */
static double run(const int *cores, what does, int shared, unsigned pause, double *failed)
{
    double ns[REPEAT];
    u64 operations = 1000000 / (pause + 300), tried = 0;            /* less than a millisecond */
    for (int n = 0; n < REPEAT; n++) {
        worker two[2];
        for (int i = 0; i < 2; i++)
            two[i] = (worker){.core = cores[i], .number = i, .shared = shared, .does = does, .pause = pause,
                              .operations = operations};
        both(work, two);
        ns[n] = (two[0].ns + two[1].ns) / 2;
        tried += two[0].tries + two[1].tries;
    }
    qsort(ns, REPEAT, sizeof *ns, ascending);
    *failed = does == TAKE ? (double)tried / (double)(2 * REPEAT * operations) - 1 : 0;
    return ns[REPEAT / 2];
}

/* ---- a line that two cores write in turns ------------------------------------------------------------------------ */

static u64 ball __attribute__((aligned(64)));

static void *play(void *given)
{
    worker *w = given;
    stay_on(w->core);
    meet();
    u64 begin_ns = now_ns();
    for (u64 turn = (u64)w->number; turn < TURNS; turn += 2) {
        while (__atomic_load_n(&ball, __ATOMIC_ACQUIRE) != turn)
            ;
        __atomic_store_n(&ball, turn + 1, __ATOMIC_RELEASE);
    }
    w->ns = (double)(now_ns() - begin_ns) / TURNS;
    return NULL;
}

static double transfer_ns(const int *cores)
{
    double ns[REPEAT];
    for (int n = 0; n < REPEAT; n++) {
        worker two[2] = {{.core = cores[0], .number = 0}, {.core = cores[1], .number = 1}};
        ball = 0;
        both(play, two);
        ns[n] = two[0].ns;
    }
    qsort(ns, REPEAT, sizeof *ns, ascending);
    return ns[REPEAT / 2];
}

int main(int count, char **given)
{
    static const unsigned pauses[] = {0, 100, 300};     /* steps of about a third of a ns */
    if (count != 3)
        return fputs("contention CORE CORE\n", stderr), 2;
    int cores[2] = {atoi(given[1]), atoi(given[2])};
    double failed;
    printf("transfer\t%.1f\n", transfer_ns(cores));
    for (size_t i = 0; i < sizeof pauses / sizeof *pauses; i++) {
        double alone = run(cores, NOTHING_ELSE, 0, pauses[i], &failed);
        for (what does = TAKE; does <= CELL; does++) {
            double own = run(cores, does, 0, pauses[i], &failed);
            double shared = run(cores, does, 1, pauses[i], &failed);
            printf("%s\t%.0f\t%.1f\t%.1f\t%.4f\n", does == TAKE ? "take" : "cell", alone, own - alone,
                   shared - alone, failed);
        }
        fflush(stdout);
    }
    return 0;
}
