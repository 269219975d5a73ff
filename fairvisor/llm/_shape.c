/* The shape of a JSON text, measured in one pass before a parser makes objects of it.
 *
 *   count_members(text: bytes) -> int
 *
 * Gives how many names the object that the text is has at its top, repeated ones included: a parser keeps one of each,
 * so more names than it kept are repetitions. -1 for a text of more parts than MOST_ARRAYS arrays and objects together,
 * or MOST_SIGNS commas and colons: to make objects of it would hold the event loop for tens of milliseconds. The text
 * need not be JSON; of what is none nothing is promised but an answer, and the parser says so. Strings, which are most
 * of a body, are passed over by memchr. tests/test_llm_request.py has the same in Python, and compares the two.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <string.h>

/* A parser takes some 0.3 us for an array or object, and 0.1 us for what a comma or colon stands for: 20 ms at most. */
enum { MOST_ARRAYS = 50000, MOST_SIGNS = 250000 };

/* Behind the string that begins before `at`; `end` when nothing closes it. */
static const char *skip_string(const char *at, const char *end)
{
    while ((at = memchr(at, '"', (size_t)(end - at))) != NULL) {
        size_t backslashes = 0;
        while (at[-1 - (Py_ssize_t)backslashes] == '\\') /* ends at the latest at the opening quote */
            backslashes++;
        at++;
        if (backslashes % 2 == 0)
            return at;
    }
    return end;
}

static PyObject *count_members(PyObject *module, PyObject *text)
{
    (void)module;
    if (!PyBytes_CheckExact(text)) {
        PyErr_SetString(PyExc_TypeError, "count_members() takes bytes");
        return NULL;
    }
    const char *at = PyBytes_AS_STRING(text), *end = at + PyBytes_GET_SIZE(text);
    long members = 0, depth = 0, arrays = 0, signs = 0;
    while (at < end) {
        switch (*at++) {
        case '"':
            at = skip_string(at, end);
            break;
        case '{':
        case '[':
            depth++;
            if (++arrays > MOST_ARRAYS)
                return PyLong_FromLong(-1);
            break;
        case '}':
        case ']':
            depth--;
            break;
        case ':':
            members += depth == 1;
            /* fall through */
        case ',':
            if (++signs > MOST_SIGNS)
                return PyLong_FromLong(-1);
            break;
        }
    }
    return PyLong_FromLong(members);
}

static PyMethodDef methods[] = {
    {"count_members", count_members, METH_O, "count_members(text) -> names at the top of a JSON object, -1: too many parts"},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "fairvisor.llm._shape",
    .m_doc = "The shape of a JSON text, measured in one pass before a parser makes objects of it.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__shape(void)
{
    return PyModuleDef_Init(&definition);
}
