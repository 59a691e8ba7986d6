#include "kernel/block/codec.h"

#define ZSTD_STATIC_LINKING_ONLY        /* for an allocator of our own */
#include <errno.h>
#include <zlib.h>
#include <zstd.h>
#include "kernel/lib/port.h"

static void *z_alloc(void *unused, unsigned n, unsigned size) { return kmalloc((size_t)n * size); }
static void z_free(void *unused, void *p) { kfree(p); }

static int expand_zlib(const void *in, size_t in_len, void *out, size_t out_len, int window_bits)
{
    z_stream z = { .next_in = (void *)(uintptr_t)in, .avail_in = in_len, .next_out = out, .avail_out = out_len, .zalloc = z_alloc, .zfree = z_free };
    if (inflateInit2(&z, window_bits) != Z_OK)
        return -ENOMEM;
    int ret = inflate(&z, Z_FINISH);
    inflateEnd(&z);
    return ret == Z_MEM_ERROR ? -ENOMEM : z.total_out == out_len && (ret == Z_STREAM_END || ret == Z_BUF_ERROR) ? 0 : -EILSEQ;
}

static void *zstd_alloc(void *unused, size_t size) { return kmalloc(size); }

/* Frame by frame into the caller's memory, so that no frame's header has a say in how much memory is taken. */
static int expand_zstd(const uint8_t *in, size_t in_len, uint8_t *out, size_t out_len)
{
    ZSTD_DCtx *d = ZSTD_createDCtx_advanced((ZSTD_customMem){ zstd_alloc, z_free, NULL });
    size_t done = 0;
    if (!d)
        return -ENOMEM;
    while (done < out_len) {
        size_t frame = ZSTD_findFrameCompressedSize(in, in_len);
        size_t n = ZSTD_isError(frame) ? frame : ZSTD_decompressDCtx(d, out + done, out_len - done, in, frame);
        if (ZSTD_isError(n))
            break;
        in += frame, in_len -= frame, done += n;
    }
    ZSTD_freeDCtx(d);
    return done == out_len ? 0 : -EILSEQ;
}

int codec_expand(enum codec c, const void *in, size_t in_len, void *out, size_t out_len)
{
    return c == CODEC_ZSTD ? expand_zstd(in, in_len, out, out_len) : expand_zlib(in, in_len, out, out_len, c == CODEC_ZLIB ? 15 : -12);
}
