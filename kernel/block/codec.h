/* Compressed clusters: zlib and zstd, expanding only; who writes compressed clusters (a host tool) brings them compressed. */
#pragma once
#include "kernel/lib/base.h"

enum codec { CODEC_DEFLATE /* raw deflate */, CODEC_ZLIB /* with zlib's header */, CODEC_ZSTD };

/* Exactly out_len bytes from at most in_len, both hostile; what follows the end of the stream is ignored.  Takes less than 256 KiB of
 * memory for the time of the call.  Thread context.  0, -EILSEQ or -ENOMEM. */
int codec_expand(enum codec, const void *in, size_t in_len, void *out, size_t out_len);
