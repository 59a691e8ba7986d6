#include "kernel/x86/csprng.h"
#include <string.h>

static uint32_t load32(const uint8_t *p) { return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24; }
static void store32(uint8_t *p, uint32_t v) { p[0] = (uint8_t)v, p[1] = (uint8_t)(v >> 8), p[2] = (uint8_t)(v >> 16), p[3] = (uint8_t)(v >> 24); }
static uint32_t rotl(uint32_t v, unsigned n) { return v << n | v >> (32 - n); }

static void quarter(uint32_t x[16], unsigned a, unsigned b, unsigned c, unsigned d)
{
    x[a] += x[b], x[d] = rotl(x[d] ^ x[a], 16);
    x[c] += x[d], x[b] = rotl(x[b] ^ x[c], 12);
    x[a] += x[b], x[d] = rotl(x[d] ^ x[a], 8);
    x[c] += x[d], x[b] = rotl(x[b] ^ x[c], 7);
}

void chacha20_block(const uint8_t key[32], uint32_t counter, const uint8_t nonce[12], uint8_t out[64])
{
    uint32_t s[16] = { 0x61707865, 0x3320646e, 0x79622d32, 0x6b206574 }, x[16];
    for (unsigned i = 0; i < 8; i++)
        s[4 + i] = load32(key + 4 * i);
    s[12] = counter;
    for (unsigned i = 0; i < 3; i++)
        s[13 + i] = load32(nonce + 4 * i);
    memcpy(x, s, sizeof(x));
    for (unsigned i = 0; i < 10; i++) {
        quarter(x, 0, 4, 8, 12), quarter(x, 1, 5, 9, 13), quarter(x, 2, 6, 10, 14), quarter(x, 3, 7, 11, 15);
        quarter(x, 0, 5, 10, 15), quarter(x, 1, 6, 11, 12), quarter(x, 2, 7, 8, 13), quarter(x, 3, 4, 9, 14);
    }
    for (unsigned i = 0; i < 16; i++)
        store32(out + 4 * i, x[i] + s[i]);
}

static const uint8_t nonce_output[12] = "joist-out", nonce_absorb[12] = "joist-add";

/* 32 bytes at a time: key = ChaCha(key ^ input) ^ key, which cannot be run backwards. */
void csprng_add(struct csprng *r, const void *bytes, size_t len)
{
    uint8_t mixed[32], block[64];
    for (const uint8_t *p = bytes; len; ) {
        size_t n = MIN(len, sizeof(mixed));
        memcpy(mixed, r->key, sizeof(mixed));
        for (size_t i = 0; i < n; i++)
            mixed[i] ^= p[i];
        chacha20_block(mixed, (uint32_t)r->added, nonce_absorb, block);
        for (unsigned i = 0; i < 32; i++)
            r->key[i] ^= block[i];
        r->added++;
        p += n, len -= n;
    }
    explicit_bzero(block, sizeof(block)), explicit_bzero(mixed, sizeof(mixed));
}

void csprng_bytes(struct csprng *r, void *out, size_t len)
{
    uint8_t key[32], block[64];
    memcpy(key, r->key, sizeof(key));
    chacha20_block(key, 0, nonce_output, block);
    memcpy(r->key, block, 32);
    size_t n = MIN(len, (size_t)32);
    memcpy(out, block + 32, n);
    uint8_t *p = (uint8_t *)out + n;
    for (uint32_t counter = 1; (len -= n) != 0; counter++, p += n) {
        chacha20_block(key, counter, nonce_output, block);
        n = MIN(len, sizeof(block));
        memcpy(p, block, n);
    }
    explicit_bzero(block, sizeof(block)), explicit_bzero(key, sizeof(key));
}
