/* The head of a plain HTTP/1.1 request, read in one pass.
 *
 *   parse(data: bytes) -> (method: str, target: str, headers: dict[str, bytes]) | None
 *
 * `data` must be exactly one request without a body, as gateways send it by the million: a request line of HTTP/1.1
 * with one of the methods below, field lines, an empty line, nothing after. Names come out in lower case, values
 * without the white space around them (RFC 9112 5.1). Everything else is None and goes to the complete parser
 * (httptools): a body or its framing, `Connection`, `Expect`, `Upgrade`, a repeated field, a line ending other than
 * CRLF, a control or non-ASCII character outside a value, two requests at once, half a request. So this file decides
 * nothing about malformed input: it only knows what is beyond doubt. tests/test_head.py compares the two.
 *
 * It knows nothing of what headers mean, except for the names above, which say how to read on.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <string.h>

#define MAX_HEAD_BYTES 16384 /* as connection.py: what is longer is its business */
#define MAX_NAME_BYTES 128

/* tchar, RFC 9110 5.6.2: the value is the character in lower case, 0 elsewhere */
static unsigned char lower[256];
/* what a request target may consist of, RFC 3986, without the rarely seen: visible ASCII */
#define IS_TARGET(c) ((c) > 0x20 && (c) < 0x7f)
/* field-value, RFC 9110 5.5: HTAB, SP, visible ASCII, obs-text */
#define IS_VALUE(c) (((c) >= 0x20 && (c) != 0x7f) || (c) == '\t')

typedef struct {
    size_t length;
    const char *text;
} word;
#define WORD(text) {sizeof(text) - 1, text}

static const word METHODS[] = {WORD("GET"), WORD("POST"), WORD("PUT"), WORD("PATCH"), WORD("DELETE"), WORD("OPTIONS")};
static const word FRAMING[] = {WORD("connection"), WORD("content-length"), WORD("expect"), WORD("transfer-encoding"),
                               WORD("upgrade"), WORD("proxy-connection"), WORD("keep-alive"), WORD("trailer"),
                               WORD("te"), WORD("http2-settings")};
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

typedef struct {
    const unsigned char *at, *end;
} cursor;

typedef struct {
    PyObject *methods[COUNT(METHODS)]; /* as str, made once */
} state;

/* The method: one of METHODS, followed by one space. */
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

/* The target, followed by one space and HTTP/1.1. */
static PyObject *read_target(cursor *c)
{
    static const char VERSION[] = " HTTP/1.1\r\n";
    const unsigned char *start = c->at;
    while (c->at < c->end && IS_TARGET(*c->at))
        c->at++;
    Py_ssize_t length = c->at - start;
    if (length == 0 || *start != '/' || (size_t)(c->end - c->at) < sizeof VERSION - 1 ||
        memcmp(c->at, VERSION, sizeof VERSION - 1))
        return NULL;
    c->at += sizeof VERSION - 1;
    return PyUnicode_DecodeASCII((const char *)start, length, NULL);
}

static int says_how_to_read(const char *name, size_t length)
{
    for (size_t i = 0; i < COUNT(FRAMING); i++)
        if (FRAMING[i].length == length && !memcmp(FRAMING[i].text, name, length))
            return 1;
    return 0;
}

/* One field line into `headers`: 1 done, 0 not a plain one, -1 an exception is set. */
static int read_field(cursor *c, PyObject *headers)
{
    char name[MAX_NAME_BYTES];
    size_t length = 0;
    while (c->at < c->end && lower[*c->at]) {
        if (length == sizeof name)
            return 0;
        name[length++] = (char)lower[*c->at++];
    }
    if (length == 0 || c->at == c->end || *c->at != ':' || says_how_to_read(name, length))
        return 0;
    c->at++;
    while (c->at < c->end && (*c->at == ' ' || *c->at == '\t'))
        c->at++;
    const unsigned char *start = c->at;
    while (c->at < c->end && IS_VALUE(*c->at))
        c->at++;
    if (c->end - c->at < 2 || c->at[0] != '\r' || c->at[1] != '\n')
        return 0;
    const unsigned char *stop = c->at;
    while (stop > start && (stop[-1] == ' ' || stop[-1] == '\t'))
        stop--;
    c->at += 2;

    PyObject *key = PyUnicode_DecodeASCII(name, (Py_ssize_t)length, NULL);
    PyObject *value = PyBytes_FromStringAndSize((const char *)start, stop - start);
    int done = -1;
    if (key && value) {
        Py_ssize_t before = PyDict_GET_SIZE(headers);
        done = PyDict_SetItem(headers, key, value) < 0 ? -1 : PyDict_GET_SIZE(headers) > before;
    }
    Py_XDECREF(key);
    Py_XDECREF(value);
    return done;
}

static PyObject *parse(PyObject *module, PyObject *data)
{
    if (!PyBytes_CheckExact(data)) {
        PyErr_SetString(PyExc_TypeError, "parse() takes bytes");
        return NULL;
    }
    Py_ssize_t size = PyBytes_GET_SIZE(data);
    if (size > MAX_HEAD_BYTES)
        Py_RETURN_NONE;
    const unsigned char *bytes = (const unsigned char *)PyBytes_AS_STRING(data);
    cursor c = {bytes, bytes + size};
    PyObject *method = NULL, *target = NULL, *headers = NULL, *head = NULL;
    if (!(method = read_method(PyModule_GetState(module), &c)) || !(target = read_target(&c)) || !(headers = PyDict_New()))
        goto end;
    while (c.end - c.at > 2) {
        if (read_field(&c, headers) <= 0)
            goto end;
    }
    if (c.end - c.at == 2 && c.at[0] == '\r' && c.at[1] == '\n')
        head = PyTuple_Pack(3, method, target, headers);
end:
    Py_XDECREF(method);
    Py_XDECREF(target);
    Py_XDECREF(headers);
    if (head || PyErr_Occurred())
        return head;
    Py_RETURN_NONE;
}

static int fill_tables(PyObject *module)
{
    state *known = PyModule_GetState(module);
    for (size_t i = 0; i < COUNT(METHODS); i++)
        if (!(known->methods[i] = PyUnicode_InternFromString(METHODS[i].text)))
            return -1;
    for (const char *c = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"; *c; c++)
        lower[(unsigned char)*c] = (unsigned char)*c;
    for (int c = 'A'; c <= 'Z'; c++)
        lower[c] = (unsigned char)(c - 'A' + 'a');
    return 0;
}

static int traverse(PyObject *module, visitproc visit, void *arg)
{
    state *known = PyModule_GetState(module);
    for (size_t i = 0; i < COUNT(METHODS); i++)
        Py_VISIT(known->methods[i]);
    return 0;
}

static int clear(PyObject *module)
{
    state *known = PyModule_GetState(module);
    for (size_t i = 0; i < COUNT(METHODS); i++)
        Py_CLEAR(known->methods[i]);
    return 0;
}

static PyMethodDef methods[] = {
    {"parse", parse, METH_O, "parse(data) -> (method, target, headers), or None for what is not a plain request"},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)fill_tables},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "fairvisor.http._head",
    .m_doc = "The head of a plain HTTP/1.1 request, read in one pass.",
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
