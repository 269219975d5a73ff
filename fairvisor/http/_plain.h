/* What the readers of plain heads share (_head.c, and _heads.c of the proxy): methods, targets, what may stand in a value.
 *
 * A plain head is one that every reader reads the same way; whoever includes this leaves everything else to a complete
 * parser. So nothing here repairs or guesses.
 */
#ifndef FAIRVISOR_PLAIN_H
#define FAIRVISOR_PLAIN_H
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#define MAX_HEAD_BYTES 16384 /* as connection.py and front.py: what is longer is their business */

/* what a request target may consist of, RFC 3986, without the rarely seen: visible ASCII */
#define IS_TARGET(c) ((c) > 0x20 && (c) < 0x7f)
/* field-value, RFC 9110 5.5: HTAB, SP, visible ASCII, obs-text */
#define IS_VALUE(c) (((c) >= 0x20 && (c) != 0x7f) || (c) == '\t')
#define IS_BLANK(c) ((c) == ' ' || (c) == '\t')

/* Whether the next eight bytes all are IS_VALUE, none of them a tab: tokens are long, and this is six times as fast. No
 * sum of seven bits and what is added here carries into the next byte. */
static inline int are_value(const unsigned char *at)
{
    const uint64_t ones = UINT64_MAX / 0xff, tops = ones * 0x80;
    uint64_t eight;
    memcpy(&eight, at, sizeof eight);
    uint64_t low = eight & ~tops, not_control = low + ones * 0x60, is_del = low + ones;
    return !((~not_control | is_del) & ~eight & tops);
}

typedef struct {
    size_t length;
    const char *text;
} word;
#define WORD(text) {sizeof(text) - 1, text}
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static const word METHODS[] = {WORD("GET"), WORD("POST"), WORD("PUT"), WORD("PATCH"), WORD("DELETE"), WORD("OPTIONS")};

#define KNOWN_NAMES 64 /* a power of two */

/* The state of a module that reads heads. A gateway sends the same field names again and again: a name that is there
 * already needs no new str, and its hash is known. */
typedef struct {
    PyObject *methods[COUNT(METHODS)]; /* as str, made once */
    PyObject *names[KNOWN_NAMES];      /* field names as they came last, as str; NULL where none did */
} state;

typedef struct {
    const unsigned char *at, *end;
} cursor;

/* The method: one of METHODS, followed by one space; a new reference, or NULL. */
static PyObject *read_method(const state *known, cursor *c)
{
    for (size_t i = 0; i < COUNT(METHODS); i++) {
        size_t length = METHODS[i].length;
        if ((size_t)(c->end - c->at) > length && !memcmp(c->at, METHODS[i].text, length) && c->at[length] == ' ') {
            c->at += length + 1;
            return Py_NewRef(known->methods[i]);
        }
    }
    return NULL;
}

/* The target, followed by one space and HTTP/1.1; a new reference, or NULL. */
static PyObject *read_target(cursor *c)
{
    static const char VERSION[] = " HTTP/1.1\r\n";
    const unsigned char *start = c->at, *at = start;
    while (at < c->end && IS_TARGET(*at))
        at++;
    c->at = at;
    Py_ssize_t length = at - start;
    if (length == 0 || *start != '/' || (size_t)(c->end - c->at) < sizeof VERSION - 1 ||
        memcmp(c->at, VERSION, sizeof VERSION - 1))
        return NULL;
    c->at += sizeof VERSION - 1;
    return PyUnicode_DecodeASCII((const char *)start, length, NULL);
}

/* The value of a field and the CRLF after it: 1, with `start` and `stop` around it without white space; 0 for no value. */
static int read_value(cursor *c, const unsigned char **start, const unsigned char **stop)
{
    const unsigned char *at = c->at, *end = c->end;
    while (at < end && IS_BLANK(*at))
        at++;
    *start = at;
    while (end - at >= 8 && are_value(at))
        at += 8;
    while (at < end && IS_VALUE(*at))
        at++;
    if (end - at < 2 || at[0] != '\r' || at[1] != '\n')
        return 0;
    c->at = at + 2;
    while (at > *start && IS_BLANK(at[-1]))
        at--;
    *stop = at;
    return 1;
}

static int fill_methods(PyObject *module)
{
    state *known = PyModule_GetState(module);
    for (size_t i = 0; i < COUNT(METHODS); i++)
        if (!(known->methods[i] = PyUnicode_InternFromString(METHODS[i].text)))
            return -1;
    return 0;
}

static int traverse(PyObject *module, visitproc visit, void *arg)
{
    state *known = PyModule_GetState(module);
    for (size_t i = 0; i < COUNT(METHODS); i++)
        Py_VISIT(known->methods[i]);
    for (size_t i = 0; i < KNOWN_NAMES; i++)
        Py_VISIT(known->names[i]);
    return 0;
}

static int clear(PyObject *module)
{
    state *known = PyModule_GetState(module);
    for (size_t i = 0; i < COUNT(METHODS); i++)
        Py_CLEAR(known->methods[i]);
    for (size_t i = 0; i < KNOWN_NAMES; i++)
        Py_CLEAR(known->names[i]);
    return 0;
}
#endif
