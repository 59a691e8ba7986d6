/* Compressed clusters: the seam to zlib and zstd.  Thread context. */
#pragma once
#include "kernel/lib/base.h"

enum codec { CODEC_DEFLATE /* raw deflate */, CODEC_ZLIB /* with zlib's header */, CODEC_ZSTD };

/* Exactly out_len bytes from at most in_len; what follows the end of the stream is ignored.  -EILSEQ, -ENOMEM, -ENOTSUP. */
int codec_expand(enum codec, const void *in, size_t in_len, void *out, size_t out_len);
/* Bytes of the result, or -ENOSPC when it does not fit in out_len; -ENOTSUP. */
int64_t codec_compress(enum codec, const void *in, size_t in_len, void *out, size_t out_len);
