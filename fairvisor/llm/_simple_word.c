/* The tokens of a text by the rules of `simple_word`, counted in one pass.
 *
 *   count_tokens(text: bytes) -> int
 *
 * The text is cut into runs of one kind, and each run of n has its tokens:
 *
 *   letters          1 for the run, 1 more for every 8, 2 more for every 16
 *   digits           1 for every 2, begun ones included
 *   signs            n, less 1 for every 2 and for every 4: ASCII punctuation and line feeds
 *   spaces           1 for every 4
 *   three bytes      1 for each character; four bytes: 2 for each
 *
 * A character in two bytes is a letter; for every 3 of them in the whole text, begun ones included, there is 1 more.
 * Everything else separates and counts nothing. Any bytes are taken: one that continues a character is passed over, a
 * run goes on behind it (one of spaces ends), and where none should stand nothing is promised but an answer.
 * tests/test_llm_estimate.py has the same in Python, and compares the two.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

enum { OTHER, LETTER, DIGIT, SIGN, SPACE, TWO, THREE, FOUR, CONTINUES };

static unsigned char kinds[256]; /* of each byte; TWO, THREE and FOUR begin characters of so many bytes */

static size_t tokens_of_run(unsigned char kind, size_t n)
{
    switch (kind) {
    case LETTER:
        return 1 + n / 8 + n / 16 * 2;
    case DIGIT:
        return n - n / 2;
    case SIGN:
        return n - n / 2 - n / 4;
    case SPACE:
        return n / 4;
    case THREE:
        return n;
    case FOUR:
        return 2 * n;
    default:
        return 0;
    }
}

/* `end` must point at a NUL, as the end of a bytes object does: it is OTHER and ends every run, so that none asks at each
 * byte whether it is the last. The spaces and words of prose, the most of nearly every prompt, are done with early: that
 * halves the time. */
static size_t tokens_of(const unsigned char *at, const unsigned char *end)
{
    size_t tokens = 0, letters_of_two = 0;
    while (at < end) {
        const unsigned char *start = at;
        size_t passed = 0; /* bytes that continue a character */
        unsigned char kind = kinds[*at++];
        if (kind == OTHER || (kind == SPACE && *at != ' '))
            continue;
        if (kind == TWO) {
            kind = LETTER;
            letters_of_two++;
        }
        for (;; at++) {
            while (kinds[*at] == kind)
                at++;
            if (*at < 0x80)
                break;
            if (kinds[*at] == TWO && kind == LETTER)
                letters_of_two++;
            else if (kinds[*at] == CONTINUES && kind != SPACE)
                passed++;
            else
                break;
        }
        size_t n = (size_t)(at - start) - passed;
        tokens += kind == LETTER && n < 8 ? 1 : tokens_of_run(kind, n);
    }
    return tokens + (letters_of_two + 2) / 3;
}

static PyObject *count_tokens(PyObject *module, PyObject *text)
{
    (void)module;
    if (!PyBytes_CheckExact(text)) {
        PyErr_SetString(PyExc_TypeError, "count_tokens() takes bytes");
        return NULL;
    }
    const unsigned char *bytes = (const unsigned char *)PyBytes_AS_STRING(text);
    return PyLong_FromSize_t(tokens_of(bytes, bytes + PyBytes_GET_SIZE(text)));
}

static int fill_kinds(PyObject *module)
{
    (void)module;
    for (int c = 0x21; c < 0x7f; c++)
        kinds[c] = SIGN;
    for (int c = '0'; c <= '9'; c++)
        kinds[c] = DIGIT;
    for (int c = 'a'; c <= 'z'; c++)
        kinds[c] = kinds[c - 'a' + 'A'] = LETTER;
    for (int c = 0x80; c < 0xf8; c++)
        kinds[c] = c < 0xc0 ? CONTINUES : c < 0xc2 ? OTHER : c < 0xe0 ? TWO : c < 0xf0 ? THREE : FOUR;
    kinds['\n'] = SIGN;
    kinds[' '] = SPACE;
    return 0;
}

static PyMethodDef methods[] = {
    {"count_tokens", count_tokens, METH_O, "count_tokens(text) -> tokens of UTF-8 text by the rules of simple_word"},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)fill_kinds},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "fairvisor.llm._simple_word",
    .m_doc = "The tokens of a text by the rules of simple_word, counted in one pass.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__simple_word(void)
{
    return PyModuleDef_Init(&definition);
}
