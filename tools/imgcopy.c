/* joistimg convert and compare. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tools/img.h"
#include "tools/pack.h"

#define COPY_LEN (2u << 20)             /* no cluster is longer */
#define SPARSE   4096u                  /* so many zeroes are not written */

typedef unsigned long long ull;

struct copy { struct blk *src, *dst; const char *from, *to; uint32_t cluster; struct packer *packer; };

static void write_sparse(struct copy *c, uint64_t off, const uint8_t *buf, size_t len)
{
    for (size_t o = 0; o < len; ) {
        size_t n = 0;
        bool zero = is_zero(buf + o, MIN((size_t)SPARSE, len - o));
        while (o + n < len && (n == 0 || is_zero(buf + o + n, MIN((size_t)SPARSE, len - o - n)) == zero))
            n += MIN((size_t)SPARSE, len - o - n);
        int err = zero ? 0 : image_pwrite(c->dst, off + o, buf + o, n);
        if (err)
            fail("cannot write", c->to, err, NULL);
        o += n;
    }
}

/* What did not become smaller is written as it is; the last cluster may reach beyond the end. */
static int put_packed(void *arg, uint64_t off, const uint8_t *buf, const uint8_t *packed, size_t n)
{
    struct copy *c = arg;
    return n ? image_write_packed(c->dst, off, packed, n) : image_pwrite(c->dst, off, buf, MIN((uint64_t)c->cluster, c->dst->size - off));
}

static void pack_clusters(struct copy *c, uint64_t off, uint8_t *buf, size_t len)
{
    for (size_t o = 0; o < len; o += c->cluster) {
        size_t n = MIN((size_t)c->cluster, len - o);
        if (is_zero(buf + o, n))
            continue;
        memset(buf + o + n, 0, c->cluster - n);
        int err = pack_add(c->packer, off + o, buf + o);
        if (err)
            fail("cannot write", c->to, err, NULL);
    }
}

/* ---- Reading runs ahead of writing, in a thread of its own ---- */

enum { AHEAD = 4 };

struct chunk { uint64_t off; size_t len; uint8_t *buf; };       /* len 0: the end */

struct ahead {
    struct copy *c;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned head, tail;                /* chunks read, chunks written */
    struct chunk chunk[AHEAD];
};

static struct chunk *next_to_fill(struct ahead *a)
{
    pthread_mutex_lock(&a->lock);
    while (a->head - a->tail == AHEAD)
        pthread_cond_wait(&a->changed, &a->lock);
    pthread_mutex_unlock(&a->lock);
    return &a->chunk[a->head % AHEAD];
}

static struct chunk *next_to_write(struct ahead *a)
{
    pthread_mutex_lock(&a->lock);
    while (a->head == a->tail)
        pthread_cond_wait(&a->changed, &a->lock);
    pthread_mutex_unlock(&a->lock);
    return &a->chunk[a->tail % AHEAD];
}

static void advance(struct ahead *a, unsigned *which)
{
    pthread_mutex_lock(&a->lock);
    *which += 1;
    pthread_cond_signal(&a->changed);
    pthread_mutex_unlock(&a->lock);
}

/* Whole clusters at a time where the result is compressed. */
static void *read_all(void *arg)
{
    struct ahead *a = arg;
    const struct copy *c = a->c;
    uint32_t unit = c->packer ? c->cluster : 1;
    uint64_t end = c->src->size;
    for (uint64_t off = 0; off < end; ) {
        uint64_t len = end - off;
        if (known_zero(c->src, off, &len, c->from) && len >= unit) {
            off += off + len < end ? ALIGN_DOWN(len, (uint64_t)unit) : len;
            continue;
        }
        struct chunk *k = next_to_fill(a);
        k->off = off, k->len = MIN(c->packer ? end - off : len, (uint64_t)ALIGN_DOWN(COPY_LEN, unit));
        int err = image_pread(c->src, off, k->buf, k->len);
        if (err)
            fail("cannot read", c->from, err, NULL);
        off += k->len;
        advance(a, &a->head);
    }
    next_to_fill(a)->len = 0;
    advance(a, &a->head);
    return NULL;
}

static void copy_all(struct copy *c)
{
    struct ahead a = { .c = c, .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };
    struct chunk *k;
    uint64_t end = c->src->size;
    for (int i = 0; i < AHEAD; i++)
        a.chunk[i].buf = aligned_alloc(4096, 2 * COPY_LEN);     /* the last cluster is filled up with zeroes */
    img_progress(0, end);
    if (pthread_create(&a.thread, NULL, read_all, &a))
        fail("cannot read", c->from, -EAGAIN, NULL);
    for (; (k = next_to_write(&a))->len; advance(&a, &a.tail)) {
        if (c->packer)
            pack_clusters(c, k->off, k->buf, k->len);
        else
            write_sparse(c, k->off, k->buf, k->len);
        img_progress(k->off + k->len, end);
    }
    pthread_join(a.thread, NULL);
    int err = c->packer ? pack_end(c->packer) : 0;
    if (err)
        fail("cannot write", c->to, err, NULL);
    img_progress(end, end);
    img_progress_end();
    for (int i = 0; i < AHEAD; i++)
        free(a.chunk[i].buf);
}

int cmd_convert(int argc, char **argv)
{
    struct image_opts o = { .size = 0 };
    enum image_format f = IMAGE_NONE, out = IMAGE_RAW;
    bool compress = false;
    for (int c; (c = getopt(argc, argv, "cpqf:O:o:S:t:T:m:WU")) != -1; )
        switch (c) {
        case 'c': compress = true; break;
        case 'p': show_progress = true; break;
        case 'q': quiet = true; break;
        case 'f': f = format_arg(optarg); break;
        case 'O': out = format_arg(optarg); break;
        case 'o': parse_options(&o, optarg); break;
        case 'S': case 't': case 'T': case 'm': case 'W': case 'U': break;      /* how qemu-img goes about it */
        default:  return USAGE;
        }
    if (argc - optind != 2)
        return USAGE;
    struct copy c = { .from = argv[optind], .to = argv[optind + 1] };
    struct image_info info;
    if (o.backing)
        misused("convert makes images that stand alone, without the backing file", o.backing);
    if (compress && out != IMAGE_QCOW2)
        misused("only qcow2 images are written compressed, not", image_format_name(out));
    show_progress &= !quiet;
    c.src = open_image(c.from, f, 0);
    o.size = c.src->size;
    create_image(c.to, out, &o);
    c.dst = open_image(c.to, out, IMAGE_WRITE);
    image_info(c.dst, &info);
    c.cluster = info.cluster_size;
    if (compress && !(c.packer = pack_start(c.cluster, info.zstd, put_packed, &c)))
        fail("cannot compress", c.to, -ENOMEM, NULL);
    copy_all(&c);
    close_image(c.dst, c.to);
    blk_close(c.src);
    return 0;
}

/* ---- Compare ---- */

struct side { struct blk *b; const char *path; uint8_t *buf; };

/* Whether both read as zeroes from off on; *len becomes the length for which that is known. */
static bool both_zero(struct side s[2], uint64_t off, uint64_t *len)
{
    bool zero = true;
    for (int i = 0; i < 2; i++) {
        uint64_t n = s[i].b->size - off;
        if (off >= s[i].b->size)
            continue;
        zero &= known_zero(s[i].b, off, &n, s[i].path);
        *len = MIN(*len, n);
    }
    return zero;
}

static void read_side(struct side *s, uint64_t off, size_t n)
{
    int err = off < s->b->size ? image_pread(s->b, off, s->buf, n) : 0;
    if (err)
        fail("cannot read", s->path, err, NULL);
    if (off >= s->b->size)
        memset(s->buf, 0, n);
}

/* Where they differ first; UINT64_MAX: nowhere.  The shorter one counts as zeroes behind its end. */
static uint64_t first_difference(struct side s[2])
{
    uint64_t end = MAX(s[0].b->size, s[1].b->size);
    for (uint64_t off = 0, len; off < end; off += len) {
        len = end - off;
        img_progress(off, end);
        if (both_zero(s, off, &len))
            continue;
        len = MIN(len, (uint64_t)COPY_LEN);
        read_side(&s[0], off, len);
        read_side(&s[1], off, len);
        if (memcmp(s[0].buf, s[1].buf, len)) {
            while (*s[0].buf == *s[1].buf)
                s[0].buf++, s[1].buf++, off++;
            return off;
        }
    }
    img_progress(end, end);
    return UINT64_MAX;
}

int cmd_compare(int argc, char **argv)
{
    enum image_format f[2] = { IMAGE_NONE, IMAGE_NONE };
    bool strict = false;
    failure = 2;
    for (int c; (c = getopt(argc, argv, "pqsf:F:T:U")) != -1; )
        switch (c) {
        case 'p': show_progress = true; break;
        case 'q': quiet = true; break;
        case 's': strict = true; break;
        case 'f': f[0] = format_arg(optarg); break;
        case 'F': f[1] = format_arg(optarg); break;
        case 'T': case 'U': break;
        default:  return USAGE;
        }
    if (argc - optind != 2)
        return USAGE;
    struct side s[2] = { { .path = argv[optind] }, { .path = argv[optind + 1] } };
    for (int i = 0; i < 2; i++)
        s[i].b = open_image(s[i].path, f[i], 0);
    failure = 4;
    if (strict && s[0].b->size != s[1].b->size) {
        if (!quiet)
            printf("Strict mode: Image size mismatch!\n");
        return 1;
    }
    uint8_t *buf[2] = { aligned_alloc(4096, COPY_LEN), aligned_alloc(4096, COPY_LEN) };
    s[0].buf = buf[0], s[1].buf = buf[1];
    show_progress &= !quiet;
    uint64_t at = first_difference(s);
    img_progress_end();
    if (at != UINT64_MAX && !quiet)
        printf("Content mismatch at offset %llu!\n", (ull)ALIGN_DOWN(at, 512ull));
    else if (!quiet)
        printf("%sImages are identical.\n", s[0].b->size != s[1].b->size ? "Warning: Image size mismatch!\n" : "");
    free(buf[0]), free(buf[1]);
    blk_close(s[0].b), blk_close(s[1].b);
    return at != UINT64_MAX;
}
