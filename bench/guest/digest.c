/* Rows that work through a buffer: a digest and a compressor. */
#include "bench.h"

#include <string.h>

/* SHA-256 after FIPS 180-4, for blocks of 64 bytes. The constants are computed: roots of the first primes. */
static uint32_t round_constant[64];

static void prepare_sha256(void)
{
    unsigned found = 0;
    for (unsigned n = 2; found < 64; n++) {
        int is_prime = 1;
        for (unsigned d = 2; d * d <= n; d++)
            is_prime &= n % d != 0;
        if (is_prime) {
            long double root = 1;
            for (int i = 0; i < 60; i++)
                root -= (root * root * root - n) / (3 * root * root);
            round_constant[found++] = (uint32_t)((root - (unsigned)root) * 4294967296.0L);
        }
    }
}

static uint32_t rotate(uint32_t x, int n) { return x >> n | x << (32 - n); }

static void sha256_block(uint32_t state[8], const unsigned char *block)
{
    uint32_t w[64];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)block[i * 4] << 24 | block[i * 4 + 1] << 16 | block[i * 4 + 2] << 8 | block[i * 4 + 3];
    for (int i = 16; i < 64; i++) {
        uint32_t s0 = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3;
        uint32_t s1 = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10;
        w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
    for (int i = 0; i < 64; i++) {
        uint32_t t1 = h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & f) ^ (~e & g)) + round_constant[i] + w[i];
        uint32_t t2 = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d;
    state[4] += e, state[5] += f, state[6] += g, state[7] += h;
}

#define SHA_BYTES 65536
static uint64_t sha256(uint64_t count)
{
    static unsigned char data[SHA_BYTES];
    uint32_t state[8] = {0};
    if (round_constant[0] == 0)
        prepare_sha256();
    for (int i = 0; i < SHA_BYTES; i++)
        data[i] = (unsigned char)(i * 7 >> 3);
    while (count--) {
        for (uint32_t i = 0; i < 8; i++)
            state[i] = i + 1;
        for (int at = 0; at < SHA_BYTES; at += 64)
            sha256_block(state, data + at);
    }
    return (uint64_t)state[0] << 32 | state[7];
}

/*
 * An LZ77 compressor: a table of where four bytes were seen last, matches of at least four bytes. A token is a byte with
 * the number of literals (high half) and of matched bytes less 4 (low half), 15 meaning that more bytes follow; then the
 * literals, then the distance in two bytes.
 */
#define TEXT_BYTES 65536
#define TABLE_BITS 12

static uint32_t load4(const unsigned char *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof(value));
    return value;
}

static unsigned char *put_length(unsigned char *out, size_t length)
{
    for (; length >= 255; length -= 255)
        *out++ = 255;
    *out++ = (unsigned char)length;
    return out;
}

static unsigned char *put_sequence(unsigned char *out, const unsigned char *literals, size_t nr_literals, size_t matched)
{
    unsigned char *token = out++;
    *token = (unsigned char)((nr_literals < 15 ? nr_literals : 15) << 4 | (matched < 15 ? matched : 15));
    if (nr_literals >= 15)
        out = put_length(out, nr_literals - 15);
    memcpy(out, literals, nr_literals);
    out += nr_literals;
    if (matched >= 15)
        out = put_length(out, matched - 15);
    return out;
}

static size_t compress(const unsigned char *text, size_t size, unsigned char *to)
{
    static uint32_t seen[1 << TABLE_BITS];
    unsigned char *out = to;
    size_t start = 0, at = 1;
    memset(seen, 0, sizeof(seen));
    while (at + 4 <= size) {
        uint32_t *slot = &seen[load4(text + at) * 2654435761u >> (32 - TABLE_BITS)];
        size_t from = *slot;
        *slot = (uint32_t)at;
        if (at - from > 65535 || load4(text + from) != load4(text + at)) {
            at++;
            continue;
        }
        size_t length = 4;
        while (at + length < size && text[from + length] == text[at + length])
            length++;
        out = put_sequence(out, text + start, at - start, length - 4);
        *out++ = (unsigned char)((at - from) & 255);
        *out++ = (unsigned char)((at - from) >> 8);
        start = at += length;
    }
    out = put_sequence(out, text + start, size - start, 0);
    return (size_t)(out - to);
}

static void make_text(unsigned char *text)
{
    static const char *const words[] = {"the ", "frame ", "of ", "a ", "domain ", "is ", "mapped ", "by ",
                                        "grant", ", ",     "and ", "event ", "channel ", "ring\n", "page ", "table "};
    uint64_t seed = 2463534242ull;
    size_t at = 0;
    while (at < TEXT_BYTES) {
        const char *word = words[next_random(&seed) >> 60];
        for (; *word && at < TEXT_BYTES; word++)
            text[at++] = (unsigned char)*word;
    }
}

static uint64_t lz(uint64_t count)
{
    static unsigned char text[TEXT_BYTES], packed[TEXT_BYTES * 2];
    size_t size = 0;
    make_text(text);
    while (count--)
        size = compress(text, TEXT_BYTES, packed);
    uint64_t hash = size;
    for (size_t i = 0; i < size; i++)
        hash = hash * 31 + packed[i];
    return hash;
}

const struct row digest_rows[] = {{"sha256", sha256, 1}, {"lz", lz, 1}, {0}};
