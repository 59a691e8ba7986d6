/* kernel/block/inflate.h with the system's libraries; they are looked up when first used, so that only who needs them links them. */
#include "kernel/block/inflate.h"

#include <errno.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

static int expand_zlib(const void *in, size_t in_len, void *out, size_t out_len, int bits)
{
    z_stream z = { .next_in = (void *)(uintptr_t)in, .avail_in = in_len, .next_out = out, .avail_out = out_len };
    if (inflateInit2(&z, bits) != Z_OK)
        return -ENOMEM;
    int ret = inflate(&z, Z_FINISH);
    inflateEnd(&z);
    return z.total_out == out_len && (ret == Z_STREAM_END || ret == Z_BUF_ERROR) ? 0 : -EILSEQ;
}

static int expand_zstd(const void *in, size_t in_len, void *out, size_t out_len)
{
    ZSTD_DStream *d = ZSTD_createDStream();
    ZSTD_inBuffer i = { in, in_len, 0 };
    ZSTD_outBuffer o = { out, out_len, 0 };
    if (!d)
        return -ENOMEM;
    while (o.pos < o.size) {
        size_t before = o.pos, from = i.pos, ret = ZSTD_decompressStream(d, &o, &i);
        if (ZSTD_isError(ret) || (o.pos == before && i.pos == from))
            break;
    }
    ZSTD_freeDStream(d);
    return o.pos == out_len ? 0 : -EILSEQ;
}

int codec_expand(enum codec c, const void *in, size_t in_len, void *out, size_t out_len)
{
    return c == CODEC_ZSTD ? expand_zstd(in, in_len, out, out_len) : expand_zlib(in, in_len, out, out_len, c == CODEC_ZLIB ? 15 : -12);
}

int64_t codec_compress(enum codec c, const void *in, size_t in_len, void *out, size_t out_len)
{
    if (c == CODEC_ZSTD) {
        size_t n = ZSTD_compress(out, out_len, in, in_len, 3);
        return ZSTD_isError(n) ? -ENOSPC : (int64_t)n;
    }
    z_stream z = { .next_in = (void *)(uintptr_t)in, .avail_in = in_len, .next_out = out, .avail_out = out_len };
    if (deflateInit2(&z, Z_DEFAULT_COMPRESSION, Z_DEFLATED, c == CODEC_ZLIB ? 15 : -12, 9, Z_DEFAULT_STRATEGY) != Z_OK)
        return -ENOMEM;
    int ret = deflate(&z, Z_FINISH);
    deflateEnd(&z);
    return ret == Z_STREAM_END ? (int64_t)z.total_out : -ENOSPC;
}
