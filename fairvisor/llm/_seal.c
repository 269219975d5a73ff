/* A reservation as a token: packed, signed, and spelled for headers and URLs.
 *
 *   keyed(key: bytes) -> bytes
 *       what `seal` needs of a key of 1 to 64 bytes: the state of keyed BLAKE2b (RFC 7693) after its first block, which
 *       is the key and nothing else
 *   seal(keyed: bytes, nonce: int, expires_wall_ns: int, takes: list[tuple[bytes, int, int, int]]) -> str
 *       a take is its bytes, with any key, amount and end, and what to put there: key, amount_u, until_mono_ns
 *
 * `reservation.py` has the format, and reads it with the standard library. That could write it as well, in a dozen calls
 * that took four times as long; tests/test_llm_reservation.py compares the two.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#define VERSION 1
#define HEAD 18 /* version u8, nonce u64, expires_wall_ns u64, number of takes u8 */
#define MAX_TAKES 255
#define BLOCK 128
#define MAC 16
#define ROUNDS 12

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "words are copied as they are, and so are counters");

_Static_assert(sizeof(unsigned long) == 8, "numbers of 64 bits are read as such");

enum { KEY = 1, AMOUNT = 9, UNTIL = 33, TAKE = 41 }; /* where they stand in a take, and its least size */

struct state {
    uint64_t h[8];
};

/* RFC 7693 2.6 */
static const uint64_t iv[8] = {
    UINT64_C(0x6a09e667f3bcc908), UINT64_C(0xbb67ae8584caa73b), UINT64_C(0x3c6ef372fe94f82b), UINT64_C(0xa54ff53a5f1d36f1),
    UINT64_C(0x510e527fade682d1), UINT64_C(0x9b05688c2b3e6c1f), UINT64_C(0x1f83d9abfb41bd6b), UINT64_C(0x5be0cd19137e2179),
};

/* RFC 7693 2.7: which words of the block a round mixes in; the last two are the first two again. */
static const unsigned char sigma[ROUNDS][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
    {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4},
    {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13},
    {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11},
    {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5},
    {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0},
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
    {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
};

static const char spelling[64] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

static inline uint64_t rotated(uint64_t word, int bits)
{
    return word >> bits | word << (64 - bits);
}

/* G of RFC 7693 3.1 */
static inline void mix(uint64_t v[16], int a, int b, int c, int d, uint64_t x, uint64_t y)
{
    v[a] += v[b] + x;
    v[d] = rotated(v[d] ^ v[a], 32);
    v[c] += v[d];
    v[b] = rotated(v[b] ^ v[c], 24);
    v[a] += v[b] + y;
    v[d] = rotated(v[d] ^ v[a], 16);
    v[c] += v[d];
    v[b] = rotated(v[b] ^ v[c], 63);
}

/* F of RFC 7693 3.2: `hashed` counts the bytes up to the end of this block, of which there may be none beyond 2^64. */
static void compress(struct state *state, const unsigned char block[BLOCK], uint64_t hashed, int is_last)
{
    uint64_t m[16], v[16];
    memcpy(m, block, BLOCK);
    memcpy(v, state->h, sizeof state->h);
    memcpy(v + 8, iv, sizeof iv);
    v[12] ^= hashed;
    if (is_last)
        v[14] = ~v[14];
#pragma GCC unroll 12
    for (int round = 0; round < ROUNDS; round++) {
        const unsigned char *s = sigma[round];
        mix(v, 0, 4, 8, 12, m[s[0]], m[s[1]]);
        mix(v, 1, 5, 9, 13, m[s[2]], m[s[3]]);
        mix(v, 2, 6, 10, 14, m[s[4]], m[s[5]]);
        mix(v, 3, 7, 11, 15, m[s[6]], m[s[7]]);
        mix(v, 0, 5, 10, 15, m[s[8]], m[s[9]]);
        mix(v, 1, 6, 11, 12, m[s[10]], m[s[11]]);
        mix(v, 2, 7, 8, 13, m[s[12]], m[s[13]]);
        mix(v, 3, 4, 9, 14, m[s[14]], m[s[15]]);
    }
    for (int i = 0; i < 8; i++)
        state->h[i] ^= v[i] ^ v[i + 8];
}

static PyObject *keyed(PyObject *module, PyObject *key)
{
    (void)module;
    if (!PyBytes_CheckExact(key) || PyBytes_GET_SIZE(key) < 1 || PyBytes_GET_SIZE(key) > 64) {
        PyErr_SetString(PyExc_ValueError, "a key is 1 to 64 bytes");
        return NULL;
    }
    size_t size = (size_t)PyBytes_GET_SIZE(key);
    struct state state;
    memcpy(state.h, iv, sizeof iv);
    state.h[0] ^= 0x01010000 ^ size << 8 ^ MAC; /* RFC 7693 2.5: depth and fanout 1, sizes of key and digest */
    unsigned char block[BLOCK] = {0};
    memcpy(block, PyBytes_AS_STRING(key), size);
    compress(&state, block, BLOCK, 0);
    return PyBytes_FromStringAndSize((const char *)&state, sizeof state);
}

static void sign(struct state *state, const unsigned char *payload, size_t size, unsigned char mac[MAC])
{
    uint64_t hashed = BLOCK; /* the key's block */
    for (; size > BLOCK; payload += BLOCK, size -= BLOCK)
        compress(state, payload, hashed += BLOCK, 0);
    unsigned char block[BLOCK] = {0};
    memcpy(block, payload, size);
    compress(state, block, hashed + size, 1);
    memcpy(mac, state->h, MAC);
}

/* Four characters for every three bytes, and two or three for what is left. */
static void spell(char *to, const unsigned char *bytes, size_t size)
{
    for (; size >= 3; bytes += 3, size -= 3) {
        unsigned group = (unsigned)bytes[0] << 16 | (unsigned)bytes[1] << 8 | bytes[2];
        *to++ = spelling[group >> 18];
        *to++ = spelling[group >> 12 & 63];
        *to++ = spelling[group >> 6 & 63];
        *to++ = spelling[group & 63];
    }
    if (size) {
        unsigned group = (unsigned)bytes[0] << 16 | (size == 2 ? (unsigned)bytes[1] << 8 : 0);
        *to++ = spelling[group >> 18];
        *to++ = spelling[group >> 12 & 63];
        if (size == 2)
            *to++ = spelling[group >> 6 & 63];
    }
}

/* Writes an int of 64 bits, big-endian; false with an exception set when it is none. */
static int put(unsigned char *to, PyObject *number)
{
    unsigned long word = PyLong_AsUnsignedLong(number);
    if (word == (unsigned long)-1 && PyErr_Occurred())
        return 0;
    word = __builtin_bswap64(word);
    memcpy(to, &word, sizeof word);
    return 1;
}

/* The size of the payload, 0 with an exception set when `takes` is not what it should be. */
static size_t measured(PyObject *takes)
{
    size_t size = HEAD;
    if (!PyList_CheckExact(takes) || PyList_GET_SIZE(takes) > MAX_TAKES)
        goto wrong;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(takes); i++) {
        PyObject *take = PyList_GET_ITEM(takes, i);
        if (!PyTuple_CheckExact(take) || PyTuple_GET_SIZE(take) != 4)
            goto wrong;
        PyObject *bytes = PyTuple_GET_ITEM(take, 0);
        if (!PyBytes_CheckExact(bytes) || PyBytes_GET_SIZE(bytes) < TAKE)
            goto wrong;
        size += (size_t)PyBytes_GET_SIZE(bytes);
    }
    return size;
wrong:
    PyErr_SetString(PyExc_ValueError, "takes are a list of at most 255 (bytes, key, amount, end)");
    return 0;
}

/* Writes the payload; false with an exception set. */
static int pack(unsigned char *to, PyObject *nonce, PyObject *expires, PyObject *takes)
{
    Py_ssize_t number = PyList_GET_SIZE(takes);
    to[0] = VERSION;
    to[HEAD - 1] = (unsigned char)number;
    if (!put(to + 1, nonce) || !put(to + 9, expires))
        return 0;
    to += HEAD;
    for (Py_ssize_t i = 0; i < number; i++) {
        PyObject *const *take = &PyTuple_GET_ITEM(PyList_GET_ITEM(takes, i), 0);
        size_t size = (size_t)PyBytes_GET_SIZE(take[0]);
        memcpy(to, PyBytes_AS_STRING(take[0]), size);
        if (!put(to + KEY, take[1]) || !put(to + AMOUNT, take[2]) || !put(to + UNTIL, take[3]))
            return 0;
        to += size;
    }
    return 1;
}

static PyObject *seal(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    struct state state;
    if (nargs != 4 || !PyBytes_CheckExact(args[0]) || PyBytes_GET_SIZE(args[0]) != sizeof state) {
        PyErr_SetString(PyExc_ValueError, "seal() takes what keyed() gave, a nonce, a time and takes");
        return NULL;
    }
    size_t size = measured(args[3]);
    if (size == 0)
        return NULL;
    unsigned char *payload = PyMem_Malloc(size + MAC);
    if (payload == NULL)
        return PyErr_NoMemory();
    PyObject *token = NULL;
    if (pack(payload, args[1], args[2], args[3])) {
        memcpy(&state, PyBytes_AS_STRING(args[0]), sizeof state);
        sign(&state, payload, size, payload + size);
        token = PyUnicode_New((Py_ssize_t)(((size + MAC) * 4 + 2) / 3), 127);
        if (token != NULL)
            spell((char *)PyUnicode_1BYTE_DATA(token), payload, size + MAC);
    }
    PyMem_Free(payload);
    return token;
}

static PyMethodDef methods[] = {
    {"keyed", keyed, METH_O, "keyed(key) -> what seal() needs of it"},
    {"seal", (PyCFunction)(void (*)(void))seal, METH_FASTCALL, "seal(keyed, nonce, expires_wall_ns, takes) -> token"},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "fairvisor.llm._seal",
    .m_doc = "A reservation as a token: packed, signed, and spelled for headers and URLs.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__seal(void)
{
    return PyModuleDef_Init(&definition);
}
