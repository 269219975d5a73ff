/* A plain HTTP/1.1 request, read in one pass.
 *
 *   parse(data: bytes) -> (method: str, target: str, headers: dict[str, bytes], body: bytes | None) | None
 *
 * `data` must be exactly one request, as gateways send it by the million: a request line of HTTP/1.1 with one of the
 * methods of _plain.h, field lines, an empty line, then nothing, or as many bytes as the one Content-Length says. Names
 * come out in lower case, values without the white space around them (RFC 9112 5.1). Everything else is None and goes to
 * the complete parser (httptools): any other framing, `Connection`, `Expect`, `Upgrade`, a repeated field, a line ending
 * other than CRLF, a control or non-ASCII character outside a value, two requests at once, half a request. So this file
 * decides nothing about malformed input: it only knows what is beyond doubt. tests/test_head.py compares the two.
 *
 * It knows nothing of what headers mean, except for the names above, which say how to read on.
 */
#include "_plain.h"

#define MAX_NAME_BYTES 128
#define MAX_LENGTH_DIGITS 9 /* of a Content-Length; what is read at once is never larger */

/* tchar, RFC 9110 5.6.2: the value is the character in lower case, 0 elsewhere */
static unsigned char lower[256];

static const word FRAMING[] = {WORD("connection"), WORD("expect"), WORD("transfer-encoding"), WORD("upgrade"),
                               WORD("proxy-connection"), WORD("keep-alive"), WORD("trailer"), WORD("te"),
                               WORD("http2-settings")};
static const word LENGTH = WORD("content-length");

static int says_how_to_read(const char *name, size_t length)
{
    for (size_t i = 0; i < COUNT(FRAMING); i++)
        if (FRAMING[i].length == length && !memcmp(FRAMING[i].text, name, length))
            return 1;
    return 0;
}

/* The name as str: the one that was made before, or a new one in its place; a new reference. NULL without an exception
 * for one that says how to read on. */
static PyObject *name_of(state *known, const char *name, size_t length)
{
    size_t spot = (length * 7 + (size_t)name[0] + (size_t)name[length / 2] * 3 + (size_t)name[length - 1] * 5) % KNOWN_NAMES;
    PyObject *made = known->names[spot];
    if (made && (size_t)PyUnicode_GET_LENGTH(made) == length && !memcmp(PyUnicode_DATA(made), name, length))
        return Py_NewRef(made);
    if (says_how_to_read(name, length) || !(made = PyUnicode_DecodeASCII(name, (Py_ssize_t)length, NULL)))
        return NULL;
    Py_XSETREF(known->names[spot], Py_NewRef(made));
    return made;
}

/* The number in the value of Content-Length, -1 for one that is not plain: anything but digits, 0, too long. */
static Py_ssize_t read_length(const unsigned char *at, const unsigned char *stop)
{
    Py_ssize_t length = 0;
    if (at == stop || stop - at > MAX_LENGTH_DIGITS || *at == '0')
        return -1;
    for (; at < stop; at++) {
        if (*at < '0' || *at > '9')
            return -1;
        length = length * 10 + (*at - '0');
    }
    return length;
}

/* One field line into `headers`, a Content-Length also into `body_bytes`: 1 done, 0 not a plain one, -1 an exception is
 * set. */
static int read_field(state *known, cursor *c, PyObject *headers, Py_ssize_t *body_bytes)
{
    char name[MAX_NAME_BYTES];
    size_t length = 0;
    const unsigned char *at = c->at;
    while (at < c->end && lower[*at]) {
        if (length == sizeof name)
            return 0;
        name[length++] = (char)lower[*at++];
    }
    if (length == 0 || at == c->end || *at != ':')
        return 0;
    c->at = at + 1;
    const unsigned char *start, *stop;
    if (!read_value(c, &start, &stop))
        return 0;
    if (length == LENGTH.length && !memcmp(name, LENGTH.text, length) && (*body_bytes = read_length(start, stop)) < 0)
        return 0;

    PyObject *key = name_of(known, name, length);
    if (!key)
        return PyErr_Occurred() ? -1 : 0;
    PyObject *value = PyBytes_FromStringAndSize((const char *)start, stop - start);
    int done = -1;
    if (value) {
        Py_ssize_t before = PyDict_GET_SIZE(headers);
        done = PyDict_SetItem(headers, key, value) < 0 ? -1 : PyDict_GET_SIZE(headers) > before;
    }
    Py_DECREF(key);
    Py_XDECREF(value);
    return done;
}

static PyObject *parse(PyObject *module, PyObject *data)
{
    if (!PyBytes_CheckExact(data)) {
        PyErr_SetString(PyExc_TypeError, "parse() takes bytes");
        return NULL;
    }
    const unsigned char *bytes = (const unsigned char *)PyBytes_AS_STRING(data), *stop = bytes + PyBytes_GET_SIZE(data);
    cursor c = {bytes, stop - bytes > MAX_HEAD_BYTES ? bytes + MAX_HEAD_BYTES : stop};
    state *known = PyModule_GetState(module);
    PyObject *method = NULL, *target = NULL, *headers = NULL, *body = NULL, *head = NULL;
    Py_ssize_t body_bytes = 0;
    if (!(method = read_method(known, &c)) || !(target = read_target(&c)) || !(headers = PyDict_New()))
        goto end;
    while (c.end - c.at >= 2 && c.at[0] != '\r') {
        if (read_field(known, &c, headers, &body_bytes) <= 0)
            goto end;
    }
    if (c.end - c.at < 2 || c.at[1] != '\n' || stop - (c.at + 2) != body_bytes)
        goto end;
    body = body_bytes ? PyBytes_FromStringAndSize((const char *)c.at + 2, body_bytes) : Py_NewRef(Py_None);
    if (body)
        head = PyTuple_Pack(4, method, target, headers, body);
end:
    Py_XDECREF(method);
    Py_XDECREF(target);
    Py_XDECREF(headers);
    Py_XDECREF(body);
    if (head || PyErr_Occurred())
        return head;
    Py_RETURN_NONE;
}

static int fill_tables(PyObject *module)
{
    for (const char *c = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"; *c; c++)
        lower[(unsigned char)*c] = (unsigned char)*c;
    for (int c = 'A'; c <= 'Z'; c++)
        lower[c] = (unsigned char)(c - 'A' + 'a');
    return fill_methods(module);
}

static PyMethodDef methods[] = {
    {"parse", parse, METH_O, "parse(data) -> (method, target, headers, body), or None for what is not a plain request"},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)fill_tables},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "fairvisor.http._head",
    .m_doc = "A plain HTTP/1.1 request, read in one pass.",
    .m_size = sizeof(state),
    .m_methods = methods,
    .m_slots = slots,
    .m_traverse = traverse,
    .m_clear = clear,
};

PyMODINIT_FUNC PyInit__head(void)
{
    return PyModuleDef_Init(&definition);
}
