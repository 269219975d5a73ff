/* The Python type over `_slots.h`, where the format of the shared memory and the atomic steps are specified.
 *
 * This file checks arguments (anything a caller can pass ends in a result or an exception, never in undefined
 * behaviour), keeps the memory mapped while a Table lives, and turns results into Python objects. `_table.pyi`
 * documents each method. The words and cells beside the slots are plain atomic integers: words are sequentially
 * consistent and may carry messages between processes, cells are relaxed sums for metrics.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>
#if PY_VERSION_HEX < 0x030B0000
#include <longintrepr.h>
#endif

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "_slots.h"

typedef struct {
    PyObject_HEAD
    Py_buffer view;                             /* keeps the memory mapped */
    table shared;
    u64 *cells;
    u64 seed;
    Py_ssize_t slot_count, word_count, cell_count;
} Table;

/* ---- arguments -------------------------------------------------------------------------------------------------- */

static PyObject *bad_count(const char *name, Py_ssize_t wanted, Py_ssize_t given)
{
    return PyErr_Format(PyExc_TypeError, "%s() takes %zd arguments (%zd given)", name, wanted, given);
}

/* Any int from 0 to 2^64-1, off its digits: 1, or 0 for everything else, which the caller says what is wrong with. Nearly
 * every argument is above 2^30, where the functions of the C API take ten times as long. */
static inline int read_digits(PyObject *from, u64 *to)
{
    if (!PyLong_Check(from))
        return 0;
#if PY_VERSION_HEX < 0x030C0000
    const digit *digits = ((PyLongObject *)from)->ob_digit;
    Py_ssize_t count = Py_SIZE(from);                           /* below 0: a negative int */
#else
    const digit *digits = ((PyLongObject *)from)->long_value.ob_digit;
    uintptr_t tag = ((PyLongObject *)from)->long_value.lv_tag;
    Py_ssize_t count = (tag & 3) == 2 ? -1 : (Py_ssize_t)(tag >> 3);    /* 2: a negative int */
#endif
    if (count < 0 || count > 3 || (count == 3 && digits[2] >> (64 - 2 * PyLong_SHIFT)))
        return 0;
    *to = 0;
    while (count-- > 0)
        *to = *to << PyLong_SHIFT | digits[count];
    return 1;
}
_Static_assert(PyLong_SHIFT == 30, "three digits of an int hold 64 bits");

/* A time, amount or limit: 0 .. 2^63-1. All readers return 0, or -1 with an exception set. */
static inline int read_amount(PyObject *from, const char *name, u64 *to)
{
    if (read_digits(from, to) && *to <= INT64_MAX)
        return 0;
    int overflow;
    long long value = PyLong_AsLongLongAndOverflow(from, &overflow);
    *to = (u64)value;
    if (value >= 0)
        return 0;
    if (!PyErr_Occurred())
        PyErr_Format(PyExc_ValueError, "%s must be from 0 to 2**63-1, not %R", name, from);
    return -1;
}

/* A key or word: 0 .. 2^64-1. */
static inline int read_u64(PyObject *from, const char *name, u64 *to)
{
    if (read_digits(from, to))
        return 0;
    *to = PyLong_AsUnsignedLongLong(from);
    if (*to != UINT64_MAX || !PyErr_Occurred())
        return 0;
    if (PyErr_ExceptionMatches(PyExc_OverflowError))
        PyErr_Format(PyExc_ValueError, "%s must be from 0 to 2**64-1, not %R", name, from);
    return -1;
}

/* What is added to a word or cell, modulo 2^64, so that a negative amount subtracts. */
static inline int read_wrapping(PyObject *from, u64 *to)
{
    if (read_digits(from, to))
        return 0;
    *to = PyLong_AsUnsignedLongLongMask(from);
    return *to == UINT64_MAX && PyErr_Occurred() ? -1 : 0;
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

static inline int read_bucket(PyObject *burst_u, PyObject *per, operation *o)
{
    if (read_amount(burst_u, "burst_u", &o->limit_u) < 0 || read_per(per, &o->per) < 0)
        return -1;
    if ((u128)o->limit_u * o->per < MAX_TICKS)
        return 0;
    PyErr_SetString(PyExc_ValueError, "burst_u * per must be below 2**82: the bucket would take 208 days to fill");
    return -1;
}

/* key and now_ns, the first two arguments of every operation. The window is fetched from memory meanwhile. */
static inline int read_start(Table *t, PyObject *const *args, operation *o, window *w)
{
    u64 key;
    if (read_u64(args[0], "key", &key) < 0)
        return -1;
    *w = aim(o, &t->shared, key);
    prefetch(w);
    if (read_amount(args[1], "now_ns", &o->now_ns) < 0)
        return -1;
    o->used_ns = o->now_ns;
    return 0;
}

/* start and slots, clipped to the table, so that a caller may go round in steps of any size; then now_ns. */
static int read_range(Table *t, PyObject *const *args, slot **from, slot **to, u64 *now_ns)
{
    u64 start, slots, all = (u64)t->slot_count;
    if (read_amount(args[0], "start", &start) < 0 || read_amount(args[1], "slots", &slots) < 0
        || read_amount(args[2], "now_ns", now_ns) < 0)
        return -1;
    start = start < all ? start : all;
    *from = t->shared.slots + start;
    *to = *from + (slots < all - start ? slots : all - start);
    return 0;
}

static inline u64 *at_index(u64 *array, Py_ssize_t count, PyObject *index, const char *what)
{
    u64 at;
    if (read_digits(index, &at) && at < (u64)count)
        return array + at;
    PyLong_AsSsize_t(index);
    if (!PyErr_Occurred() || PyErr_ExceptionMatches(PyExc_OverflowError))
        PyErr_Format(PyExc_IndexError, "no %s %R: there are %zd", what, index, count);
    return NULL;
}

#define WORD(index) at_index(t->shared.words, t->word_count, index, "word")
#define CELL(index) at_index(t->cells, t->cell_count, index, "cell")

/* A tuple of new references; any of them NULL: an exception is set, the others are released. */
static PyObject *pack(Py_ssize_t size, PyObject *first, PyObject *second, PyObject *third)
{
    PyObject *tuple = first && second && (third || size < 3) ? PyTuple_New(size) : NULL;
    if (!tuple) {
        Py_XDECREF(first), Py_XDECREF(second), Py_XDECREF(third);
        return NULL;
    }
    PyTuple_SET_ITEM(tuple, 0, first);
    PyTuple_SET_ITEM(tuple, 1, second);
    if (size == 3)
        PyTuple_SET_ITEM(tuple, 2, third);
    return tuple;
}

static inline PyObject *integer(u64 value) { return PyLong_FromUnsignedLongLong(value); }

/* A method of `wanted` arguments; in its body they are `args`, and `t` is the table. */
#define METHOD(name, wanted)                                                                                           \
    static inline PyObject *do_##name(Table *t, PyObject *const *args);                                                \
    static PyObject *Table_##name(Table *t, PyObject *const *args, Py_ssize_t given)                                   \
    {                                                                                                                  \
        return given == (wanted) ? do_##name(t, args) : bad_count(#name, wanted, given);                               \
    }                                                                                                                  \
    static inline PyObject *do_##name(Table *t, PyObject *const *args)

/* ---- methods: buckets ------------------------------------------------------------------------------------------- */

METHOD(take, 5)
{
    window w;
    operation o = {.next = next_take, .creates = 1};
    if (read_start(t, args, &o, &w) < 0 || read_amount(args[2], "cost_u", &o.cost_u) < 0
        || read_bucket(args[3], args[4], &o) < 0)
        return NULL;
    apply(&t->shared, &w, &o);
    if (o.outcome == WINDOW_FULL)
        o.result = o.limit_u, o.wait_ns = 0;
    return pack(3, PyLong_FromLong(o.outcome), integer(o.result), PyLong_FromLongLong((long long)o.wait_ns));
}

METHOD(give, 4)
{
    window w;
    operation o = {.next = next_give};
    if (read_start(t, args, &o, &w) < 0 || read_amount(args[2], "cost_u", &o.cost_u) < 0
        || read_per(args[3], &o.per) < 0)
        return NULL;
    apply(&t->shared, &w, &o);
    Py_RETURN_NONE;
}

METHOD(overdraw, 5)
{
    window w;
    operation o = {.next = next_overdraw, .creates = 1};
    if (read_start(t, args, &o, &w) < 0 || read_amount(args[2], "cost_u", &o.cost_u) < 0
        || read_bucket(args[3], args[4], &o) < 0)
        return NULL;
    apply(&t->shared, &w, &o);
    Py_RETURN_NONE;
}

METHOD(peek_bucket, 4)
{
    window w;
    operation o = {0};
    if (read_start(t, args, &o, &w) < 0 || read_bucket(args[2], args[3], &o) < 0)
        return NULL;
    record r = peek(&w, o.fp, o.now_ns);
    i128 burst = (i128)o.limit_u * o.per, debt = debt_of(&o, is(&r, TIME) ? &r : NULL, burst);
    return pack(2, integer(remaining(&o, burst, debt)), integer(ns_up(debt)), NULL);
}

/* ---- methods: totals, counts, any record ------------------------------------------------------------------------ */

METHOD(add, 5)
{
    window w;
    operation o = {.next = next_add, .creates = 1};
    if (read_start(t, args, &o, &w) < 0 || read_amount(args[2], "amount_u", &o.cost_u) < 0
        || read_amount(args[3], "limit_u", &o.limit_u) < 0 || read_life(args[4], "ttl_ns", &o.ttl_ns) < 0)
        return NULL;
    apply(&t->shared, &w, &o);
    return pack(2, PyLong_FromLong(o.outcome), integer(o.result), NULL);
}

METHOD(sub, 3)
{
    window w;
    operation o = {.next = next_sub};
    if (read_start(t, args, &o, &w) < 0 || read_amount(args[2], "amount_u", &o.cost_u) < 0)
        return NULL;
    apply(&t->shared, &w, &o);
    Py_RETURN_NONE;
}

METHOD(charge, 3)
{
    window w;
    operation o = {.next = next_charge};
    if (read_start(t, args, &o, &w) < 0 || read_amount(args[2], "amount_u", &o.cost_u) < 0)
        return NULL;
    apply(&t->shared, &w, &o);
    Py_RETURN_NONE;
}

METHOD(peek_total, 2)
{
    window w;
    operation o = {0};
    if (read_start(t, args, &o, &w) < 0)
        return NULL;
    record r = peek(&w, o.fp, o.now_ns);
    return integer(is_total(&r) ? r.b : 0);
}

METHOD(count, 3)
{
    window w;
    operation o = {.next = next_count, .creates = 1};
    if (read_start(t, args, &o, &w) < 0 || read_life(args[2], "window_ns", &o.ttl_ns) < 0)
        return NULL;
    apply(&t->shared, &w, &o);
    return integer(o.outcome == ALLOWED ? o.result : 0);
}

METHOD(peek_count, 2)
{
    window w;
    operation o = {0};
    if (read_start(t, args, &o, &w) < 0)
        return NULL;
    record r = peek(&w, o.fp, o.now_ns);
    return integer(is(&r, TIME) ? count_of(r, o.now_ns) : 0);
}

METHOD(once, 4)
{
    window w;
    operation o = {.next = next_once, .creates = 1};
    if (read_start(t, args, &o, &w) < 0 || read_life(args[2], "ttl_ns", &o.ttl_ns) < 0
        || read_amount(args[3], "stamp", &o.stamp) < 0)
        return NULL;
    apply(&t->shared, &w, &o);
    u64 evicted = load(&t->shared.words[WORD_CLAIM_STAMP]); /* step: ask */
    return pack(2, PyLong_FromLong(o.outcome), integer(evicted), NULL);
}

METHOD(delete, 2)
{
    window w;
    operation o = {.next = next_delete};
    if (read_start(t, args, &o, &w) < 0)
        return NULL;
    apply(&t->shared, &w, &o);
    return PyBool_FromLong(o.outcome == ALLOWED);
}

/* ---- methods: the whole table ----------------------------------------------------------------------------------- */

METHOD(sweep, 3)
{
    slot *at, *end;
    u64 now_ns, freed = 0;
    if (read_range(t, args, &at, &end, &now_ns) < 0)
        return NULL;
    for (; at < end; at++)
        freed += sweep(at, now_ns);
    return integer(freed);
}

METHOD(census, 3)
{
    slot *at, *end;
    u64 now_ns, kinds[4] = {0}, ended = 0;
    if (read_range(t, args, &at, &end, &now_ns) < 0)
        return NULL;
    for (; at < end; at++) {
        record r = load_record(at); /* step: survey */
        unsigned kind = kind_of(r.a);
        *(kind != FREE && expired(r, now_ns) ? &ended : &kinds[kind]) += 1;
    }
    return Py_BuildValue("(KKKKK)", kinds[FREE], kinds[HELD], kinds[TIME], kinds[TOTAL], ended);
}

METHOD(dump, 3)
{
    slot *at, *end;
    u64 now_ns;
    if (read_range(t, args, &at, &end, &now_ns) < 0)
        return NULL;
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (char *)end - (char *)at);
    if (!bytes)
        return NULL;
    char *to = PyBytes_AS_STRING(bytes);
    for (; at < end; at++) {
        slot copy = read_whole(at, now_ns);
        if (kind_of(copy.rec.a) == FREE)
            continue;
        memcpy(to, &copy, sizeof copy);
        to += sizeof copy;
    }
    _PyBytes_Resize(&bytes, to - PyBytes_AS_STRING(bytes));     /* on failure bytes is NULL */
    return bytes;
}

METHOD(merge, 3)
{
    Py_buffer from;
    u64 now_ns, kept = 0, dropped = 0;
    long long shift_ns = PyLong_AsLongLong(args[1]);
    if ((shift_ns == -1 && PyErr_Occurred()) || read_amount(args[2], "now_ns", &now_ns) < 0)
        return NULL;
    if (PyObject_GetBuffer(args[0], &from, PyBUF_SIMPLE) < 0)
        return NULL;
    for (unsigned kind = TOTAL; kind >= TIME; kind--)           /* those first that are evicted last */
        for (Py_ssize_t at = 0; from.len - at >= (Py_ssize_t)sizeof(slot); at += sizeof(slot)) {
            slot copy;
            memcpy(&copy, (const char *)from.buf + at, sizeof copy);
            if (kind_of(copy.rec.a) == kind)
                *(merge(&t->shared, copy, shift_ns, now_ns) ? &kept : &dropped) += 1;
        }
    PyBuffer_Release(&from);
    return Py_BuildValue("(KK)", kept, dropped);
}

/* ---- methods: words and cells ----------------------------------------------------------------------------------- */

METHOD(word_get, 1)
{
    u64 *at = WORD(args[0]);
    return at ? integer(__atomic_load_n(at, __ATOMIC_SEQ_CST)) : NULL;
}

METHOD(word_set, 2)
{
    u64 value, *at = WORD(args[0]);
    if (!at || read_u64(args[1], "value", &value) < 0)
        return NULL;
    __atomic_store_n(at, value, __ATOMIC_SEQ_CST);
    Py_RETURN_NONE;
}

METHOD(word_add, 2)
{
    u64 amount, *at = WORD(args[0]);
    if (!at || read_wrapping(args[1], &amount) < 0)
        return NULL;
    return integer(__atomic_add_fetch(at, amount, __ATOMIC_SEQ_CST));
}

METHOD(word_cas, 3)
{
    u64 old, value, *at = WORD(args[0]);
    if (!at || read_u64(args[1], "old", &old) < 0 || read_u64(args[2], "value", &value) < 0)
        return NULL;
    return PyBool_FromLong(__atomic_compare_exchange_n(at, &old, value, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
}

METHOD(cell_add, 2)
{
    u64 amount, *at = CELL(args[0]);
    if (!at || read_wrapping(args[1], &amount) < 0)
        return NULL;
    __atomic_fetch_add(at, amount, __ATOMIC_RELAXED);
    Py_RETURN_NONE;
}

METHOD(cell_get, 1)
{
    u64 *at = CELL(args[0]);
    return at ? integer(load_relaxed(at)) : NULL;
}

METHOD(cell_set, 2)
{
    u64 value, *at = CELL(args[0]);
    if (!at || read_u64(args[1], "value", &value) < 0)
        return NULL;
    store_relaxed(at, value);
    Py_RETURN_NONE;
}

/* ---- the type and the module ------------------------------------------------------------------------------------ */

/* `count` items of `size` bytes at `offset` of the buffer, whose address must be a multiple of `alignment`. */
static void *region(const Table *t, const char *name, Py_ssize_t offset, Py_ssize_t count, size_t size,
                    size_t alignment)
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
    t->shared.groups = (u64)t->slot_count / GROUP;
    t->shared.words = region(t, "words", words_at, t->word_count, sizeof(u64), 64);
    if (!t->shared.words)
        return -1;
    t->shared.slots = region(t, "slots", slots_at, t->slot_count, sizeof(slot), GROUP_BYTES);
    if (!t->shared.slots)
        return -1;
    t->cells = region(t, "cells", cells_at, t->cell_count, sizeof(u64), 64);
    return t->cells ? 0 : -1;
}

static PyObject *Table_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"buffer", "seed", "words_at", "words", "slots_at", "slots", "cells_at", "cells", NULL};
    PyObject *buffer, *seed;
    Py_ssize_t words_at, words, slots_at, slots, cells_at, cells;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O$Onnnnnn:Table", names, &buffer, &seed, &words_at, &words,
                                     &slots_at, &slots, &cells_at, &cells))
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
        {"WORD_CLAIM_EVICTIONS", WORD_CLAIM_EVICTIONS}, {"WORD_CLAIM_STAMP", WORD_CLAIM_STAMP},
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
