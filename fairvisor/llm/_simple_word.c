/* The tokens of a text by the rules of `simple_word`, counted in one pass.
 *
 *   count_tokens(text: str | bytes) -> int
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
 * Everything else separates and counts nothing. A str is read as UTF-8, lone surrogates as three bytes. Any bytes are
 * taken: one that continues a character is passed over, a run goes on behind it (one of spaces ends), and where none
 * should stand nothing is promised but an answer.
 * tests/test_llm_estimate.py has the same in Python, and compares the two.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

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

struct count {
    size_t tokens, letters_of_two;
};

/* The runs that begin in [at, until); gives where the last of them ends. A NUL must stand at or behind `until`, as at the
 * end of a bytes object: it is OTHER and ends every run, so that none asks at each byte whether it is the last. Single
 * spaces and short words, the most of nearly every prompt, are done with early. */
static const unsigned char *count_runs(const unsigned char *at, const unsigned char *until, struct count *count)
{
    size_t tokens = 0, letters_of_two = 0;
    while (at < until) {
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
    count->tokens += tokens;
    count->letters_of_two += letters_of_two;
    return at;
}

#ifdef __SSE2__ /* on every x86-64: a block of ASCII at once, in a quarter of the time */

#define BLOCK 64

static inline uint64_t bits_of(__m128i bytes)
{
    return (uint64_t)(unsigned)_mm_movemask_epi8(bytes);
}

/* Which of 16 bytes of ASCII are from `low` to `high`: moved up until `high` is the largest signed byte. */
static inline __m128i between(__m128i bytes, char low, char high)
{
    __m128i moved = _mm_add_epi8(bytes, _mm_set1_epi8((char)(0x7f - high)));
    return _mm_cmpgt_epi8(moved, _mm_set1_epi8((char)(0x7f - high + low - 1)));
}

/* What a run of n in `members` has more than one of fewer than `least` (2, 4 or 8); no run reaches the last bit. */
static inline size_t more_in_long_runs(uint64_t members, unsigned char kind, size_t least)
{
    uint64_t begins = members & members >> 1; /* `least` members and more stand from here on */
    if (least > 2)
        begins &= begins >> 2;
    if (least > 4)
        begins &= begins >> 4;
    size_t more = 0;
    while (begins) {
        int start = __builtin_ctzll(begins);
        int n = __builtin_ctzll(~(members >> start));
        more += tokens_of_run(kind, (size_t)n) - (kind != SPACE);
        begins &= ~UINT64_C(0) << (start + n);
    }
    return more;
}

/* The runs of a block up to where its last one begins, and that place; where the block holds more than ASCII or a single
 * run, its runs one by one. */
static const unsigned char *count_block(const unsigned char *at, struct count *count)
{
    __m128i parts[BLOCK / 16], all = _mm_setzero_si128();
    for (int i = 0; i < BLOCK / 16; i++)
        all = _mm_or_si128(all, parts[i] = _mm_loadu_si128((const __m128i *)at + i));
    if (bits_of(all))
        return count_runs(at, at + BLOCK, count);
    uint64_t letters = 0, digits = 0, signs = 0, spaces = 0;
#pragma GCC unroll 4
    for (int i = 0; i < BLOCK / 16; i++) {
        __m128i bytes = parts[i];
        int shift = 16 * i;
        __m128i letter = between(_mm_or_si128(bytes, _mm_set1_epi8(0x20)), 'a', 'z');
        __m128i digit = between(bytes, '0', '9');
        __m128i sign = _mm_andnot_si128(_mm_or_si128(letter, digit), between(bytes, 0x21, 0x7e));
        letters |= bits_of(letter) << shift;
        digits |= bits_of(digit) << shift;
        signs |= bits_of(_mm_or_si128(sign, _mm_cmpeq_epi8(bytes, _mm_set1_epi8('\n')))) << shift;
        spaces |= bits_of(_mm_cmpeq_epi8(bytes, _mm_set1_epi8(' '))) << shift;
    }
    uint64_t changes = (letters ^ letters << 1) | (digits ^ digits << 1) | (signs ^ signs << 1) | (spaces ^ spaces << 1);
    changes &= ~UINT64_C(1);
    if (!changes)
        return count_runs(at, at + BLOCK, count);
    int last = 63 - __builtin_clzll(changes);
    uint64_t before = (UINT64_C(1) << last) - 1;
    letters &= before, digits &= before, signs &= before, spaces &= before;
    uint64_t begins = (letters & ~(letters << 1)) | (digits & ~(digits << 1)) | (signs & ~(signs << 1));
    count->tokens += (size_t)__builtin_popcountll(begins);
    count->tokens += more_in_long_runs(letters, LETTER, 8) + more_in_long_runs(digits, DIGIT, 2);
    count->tokens += more_in_long_runs(signs, SIGN, 2) + more_in_long_runs(spaces, SPACE, 4);
    return at + last;
}

#endif

static size_t tokens_of(const unsigned char *at, size_t size)
{
    const unsigned char *end = at + size;
    struct count count = {0, 0};
#ifdef __SSE2__
    while (end - at >= BLOCK)
        at = count_block(at, &count);
#endif
    count_runs(at, end, &count);
    return count.tokens + (count.letters_of_two + 2) / 3;
}

static PyObject *count_tokens(PyObject *module, PyObject *text)
{
    (void)module;
    if (PyBytes_CheckExact(text))
        return PyLong_FromSize_t(tokens_of((const unsigned char *)PyBytes_AS_STRING(text), (size_t)PyBytes_GET_SIZE(text)));
    if (!PyUnicode_CheckExact(text)) {
        PyErr_SetString(PyExc_TypeError, "count_tokens() takes text or bytes");
        return NULL;
    }
    if (PyUnicode_IS_COMPACT_ASCII(text)) /* which ends in a NUL as well */
        return PyLong_FromSize_t(tokens_of(PyUnicode_1BYTE_DATA(text), (size_t)PyUnicode_GET_LENGTH(text)));
    PyObject *bytes = PyUnicode_AsEncodedString(text, "utf-8", "surrogatepass");
    PyObject *tokens = bytes != NULL ? count_tokens(module, bytes) : NULL;
    Py_XDECREF(bytes);
    return tokens;
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
