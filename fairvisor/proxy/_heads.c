/* The heads of plain HTTP/1.1 messages that are passed on, read and cut in one pass.
 *
 *   request(data, fields, dropped, rare)
 *       -> (method: str, target: str, start: bytes, host: bytes, lines: bytes, headers: dict[str, bytes], flags: int,
 *           length: int, size_bytes: int) | None
 *   response(data, fields, dropped, rare)
 *       -> (status: int, start: bytes, lines: bytes, special: dict[str, bytes], flags: int, length: int,
 *           size_bytes: int) | None
 *
 * `data` begins with a head; what follows it is not looked at. `fields` maps the names of fields as they were sent to
 * (name in lower case, flags): heads.py's FIELDS, which says what each field means, so that this file need not. A field
 * with one of the flags `dropped` is left out of `lines`, the lines that are sent on; one with a flag of `rare`, a name
 * that is not in `fields`, a repeated field of a request, and everything that is not beyond doubt make the result None:
 * heads.py then reads the head, strictly, and has the last word. So this file refuses nothing and repairs nothing.
 * tests/test_proxy_heads.py compares the two.
 *
 * `length` is the size of the body in bytes, CHUNKED or UNTIL_CLOSE; of a response it says nothing about whether this
 * status or a HEAD has one. `special` holds the fields of a response that have flags.
 */
#include "../http/_plain.h"

/* as in heads.py */
enum { HOST = 1, LENGTH = 2, CODING = 4, CONNECTION = 8 };
enum { CHUNKED = -1, UNTIL_CLOSE = -2 };
#define MAX_DIGITS 15

/* A head while it is read. The lines that pass are collected in `lines`, which cannot overflow: they are a part of it. */
typedef struct {
    cursor c;
    PyObject *fields;    /* borrowed */
    PyObject *collected; /* owned: the values of fields, by name */
    long dropped, rare, flags;
    int all; /* collect every field, none twice; otherwise those with flags */
    PyObject *host;      /* owned */
    long long length;
    size_t size;
    char lines[MAX_HEAD_BYTES];
} head;

static int is_word(const unsigned char *start, const unsigned char *stop, const char *text)
{
    return (size_t)(stop - start) == strlen(text) && !PyOS_strnicmp((const char *)start, text, stop - start);
}

static int is_digit(unsigned char c)
{
    return c >= '0' && c <= '9';
}

static int is_letter(unsigned char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* Content-Length: digits alone (RFC 9112 6.3), -1 for anything else. */
static long long read_number(const unsigned char *start, const unsigned char *stop)
{
    long long number = 0;
    if (start == stop || stop - start > MAX_DIGITS)
        return -1;
    for (; start < stop; start++) {
        if (!is_digit(*start))
            return -1;
        number = number * 10 + (*start - '0');
    }
    return number;
}

/* Host: a name or an IPv4 address, perhaps with a port (RFC 9110 7.2); what has brackets is left to heads.py. */
static int is_host(const unsigned char *start, const unsigned char *stop)
{
    static const char MARKS[] = "._~%!$&'()*+;=-";
    while (start < stop && (is_letter(*start) || is_digit(*start) || memchr(MARKS, *start, sizeof MARKS - 1)))
        start++;
    if (start < stop && *start == ':') {
        const unsigned char *port = ++start;
        while (start < stop && is_digit(*start))
            start++;
        if (start - port > 5)
            return 0;
    }
    return start == stop;
}

/* What the fields that frame the message say: whether that is beyond doubt. */
static int read_framing(head *h, long flags, const unsigned char *start, const unsigned char *stop)
{
    if (flags & h->flags & (HOST | LENGTH | CODING | CONNECTION))
        return 0; /* said twice */
    if (flags & HOST)
        return is_host(start, stop) && (h->host = PyBytes_FromStringAndSize((const char *)start, stop - start));
    if (flags & LENGTH)
        return !(h->flags & CODING) && (h->length = read_number(start, stop)) >= 0;
    if (flags & CODING) {
        h->length = CHUNKED;
        return !(h->flags & LENGTH) && is_word(start, stop, "chunked");
    }
    return is_word(start, stop, "keep-alive"); /* CONNECTION */
}

/* Keep the value of a field: 1 done, 0 it was there before, -1 an exception is set. */
static int collect(head *h, PyObject *name, const unsigned char *start, const unsigned char *stop)
{
    PyObject *value = PyBytes_FromStringAndSize((const char *)start, stop - start);
    if (!value)
        return -1;
    Py_ssize_t before = PyDict_GET_SIZE(h->collected);
    int failed = PyDict_SetItem(h->collected, name, value) < 0;
    Py_DECREF(value);
    return failed ? -1 : PyDict_GET_SIZE(h->collected) > before;
}

/* One field line: 1 done, 0 not a plain one, -1 an exception is set. */
static int read_field(head *h)
{
    cursor *c = &h->c;
    const unsigned char *line = c->at, *start, *stop;
    const unsigned char *colon = memchr(line, ':', c->end - line);
    if (!colon || colon - line > 128)
        return 0;
    PyObject *key = PyBytes_FromStringAndSize((const char *)line, colon - line);
    if (!key)
        return -1;
    PyObject *entry = PyDict_GetItemWithError(h->fields, key); /* borrowed; only tokens are in there */
    Py_DECREF(key);
    if (!entry)
        return PyErr_Occurred() ? -1 : 0;
    PyObject *name = PyTuple_GET_ITEM(entry, 0);
    long flags = PyLong_AsLong(PyTuple_GET_ITEM(entry, 1));
    c->at = colon + 1;
    if (flags & h->rare || !read_value(c, &start, &stop))
        return 0;
    if (flags & (HOST | LENGTH | CODING | CONNECTION) && !read_framing(h, flags, start, stop))
        return PyErr_Occurred() ? -1 : 0;
    h->flags |= flags;
    if (!(flags & h->dropped)) {
        memcpy(h->lines + h->size, line, c->at - line);
        h->size += c->at - line;
    }
    return h->all || flags ? collect(h, name, start, stop) : 1;
}

/* All fields and the empty line after them: 1 done, 0 not plain, -1 an exception is set. */
static int read_fields(head *h)
{
    cursor *c = &h->c;
    while (c->end - c->at >= 2) {
        if (c->at[0] == '\r' && c->at[1] == '\n') {
            c->at += 2;
            return 1;
        }
        int done = read_field(h);
        if (done <= 0)
            return done;
    }
    return 0;
}

/* The arguments: (data, fields, dropped, rare). */
static int open_head(head *h, PyObject *const *args, Py_ssize_t count)
{
    if (count != 4 || !PyBytes_CheckExact(args[0]) || !PyDict_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "takes bytes, a dict and two numbers");
        return -1;
    }
    Py_ssize_t size = PyBytes_GET_SIZE(args[0]);
    h->c.at = (const unsigned char *)PyBytes_AS_STRING(args[0]);
    h->c.end = h->c.at + (size < MAX_HEAD_BYTES ? size : MAX_HEAD_BYTES);
    h->fields = args[1];
    h->dropped = PyLong_AsLong(args[2]);
    h->rare = PyLong_AsLong(args[3]);
    h->flags = 0;
    h->host = NULL;
    h->size = 0;
    h->collected = PyErr_Occurred() ? NULL : PyDict_New();
    return h->collected ? 0 : -1;
}

static void close_head(head *h)
{
    Py_CLEAR(h->collected);
    Py_CLEAR(h->host);
}

static PyObject *request(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    head h;
    PyObject *target = NULL, *made = NULL;
    if (open_head(&h, args, count) < 0)
        return NULL;
    const char *start = (const char *)h.c.at;
    h.all = 1;
    h.length = 0;
    PyObject *method = read_method(PyModule_GetState(module), &h.c);
    if (!method || !(target = read_target(&h.c)))
        goto end;
    Py_ssize_t line = (const char *)h.c.at - start;
    if (memchr(start, '#', line) || read_fields(&h) <= 0 || !h.host)
        goto end;
    made = Py_BuildValue("(OOy#Oy#OlLn)", method, target, start, line, h.host, h.lines, (Py_ssize_t)h.size, h.collected,
                         h.flags, h.length, (Py_ssize_t)((const char *)h.c.at - start));
end:
    Py_XDECREF(method);
    Py_XDECREF(target);
    close_head(&h);
    if (made || PyErr_Occurred())
        return made;
    Py_RETURN_NONE;
}

/* `HTTP/1.1 200 OK`: the status, 0 for what is not plain; one below 200 is not. */
static long read_status_line(cursor *c)
{
    static const char VERSION[] = "HTTP/1.1 ";
    const unsigned char *at = c->at, *start, *stop;
    size_t length = sizeof VERSION - 1;
    if ((size_t)(c->end - at) < length + 4 || memcmp(at, VERSION, length))
        return 0;
    at += length;
    if (at[0] < '2' || at[0] > '9' || !is_digit(at[1]) || !is_digit(at[2]) || at[3] != ' ')
        return 0;
    c->at = at + 4;
    return read_value(c, &start, &stop) ? (at[0] - '0') * 100 + (at[1] - '0') * 10 + (at[2] - '0') : 0;
}

static PyObject *response(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    head h;
    PyObject *made = NULL;
    if (open_head(&h, args, count) < 0)
        return NULL;
    const char *start = (const char *)h.c.at;
    h.all = 0;
    h.length = UNTIL_CLOSE;
    long status = read_status_line(&h.c);
    Py_ssize_t line = (const char *)h.c.at - start;
    if (status && read_fields(&h) > 0)
        made = Py_BuildValue("(ly#y#OlLn)", status, start, line, h.lines, (Py_ssize_t)h.size, h.collected, h.flags,
                             h.length, (Py_ssize_t)((const char *)h.c.at - start));
    close_head(&h);
    if (made || PyErr_Occurred())
        return made;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"request", (PyCFunction)(void (*)(void))request, METH_FASTCALL, "the head of a plain request, or None"},
    {"response", (PyCFunction)(void (*)(void))response, METH_FASTCALL, "the head of a plain response, or None"},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)fill_methods},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "fairvisor.proxy._heads",
    .m_doc = "The heads of plain HTTP/1.1 messages that are passed on, read and cut in one pass.",
    .m_size = sizeof(state),
    .m_methods = methods,
    .m_slots = slots,
    .m_traverse = traverse,
    .m_clear = clear,
};

PyMODINIT_FUNC PyInit__heads(void)
{
    return PyModuleDef_Init(&definition);
}
