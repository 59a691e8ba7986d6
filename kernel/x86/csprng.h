/*
 * Random generator: ChaCha20 with fast key erasure (D. J. Bernstein, "Fast-key-erasure random-number generators"): each request's first block half becomes the
 * next key, so that a later leak of the state tells nothing about earlier output.  The caller serialises.  ChaCha20 block: RFC 8439 section 2.3.  H.
 */
#pragma once
#include "kernel/lib/base.h"

struct csprng { uint8_t key[32]; uint64_t added; bool seeded; };

void chacha20_block(const uint8_t key[32], uint32_t counter, const uint8_t nonce[12], uint8_t out[64]);
/* Mix in bytes of any quality; what was there before is never lost. */
void csprng_add(struct csprng *, const void *bytes, size_t len);
void csprng_bytes(struct csprng *, void *out, size_t len);
