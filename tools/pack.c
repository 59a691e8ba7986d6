#include "tools/pack.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

enum { RING_BYTES = 8 << 20, MIN_WORKERS = 4 /* as many as qemu-img has: on a busy machine who has fewer gets less of it */, MAX_WORKERS = 16 };

/* A ring of slots: filled at `head` by the caller, taken at `next` by the workers, given out from `tail` on in order. */
struct slot { uint64_t off; uint8_t *buf, *packed; size_t n; bool done; };

struct packer {
    size_t cluster;
    bool zstd, stop;
    pack_out *out;
    void *arg;
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    uint64_t head, next, tail;
    unsigned nslots, nworkers;
    pthread_t worker[MAX_WORKERS];
    struct slot *slot;
};

/* A worker's own state, set up once: starting deflate afresh for each cluster costs a tenth of the time. */
struct engine { z_stream z; ZSTD_CCtx *c; };

/*
 * Noise (what is compressed or encrypted already) is told by its bytes being as evenly spread as chance has it: the chi-squared sum over 256
 * values is 255 with a deviation of 22.6; a pattern is far above, and one that is too even far below.  Deflate would take its time to
 * find out.  What it could still find within its window of 4 KiB is little, or it would show in the sum.
 */
static bool is_noise(const uint8_t *buf, size_t n)
{
    uint32_t count[4][256] = { 0 };
    uint64_t squares = 0;
    for (size_t i = 0; i < n; i += 4)
        for (int k = 0; k < 4; k++)             /* four tables: equal neighbours would wait for each other */
            count[k][buf[i + k]]++;
    for (int v = 0; v < 256; v++) {
        uint64_t c = (uint64_t)count[0][v] + count[1][v] + count[2][v] + count[3][v];
        squares += c * c;
    }
    uint64_t chi = squares * 256 / n - n;
    return chi > 120 && chi < 390;
}

static size_t pack(const struct packer *p, struct engine *e, const uint8_t *buf, uint8_t *packed)
{
    if (p->zstd) {
        size_t n = ZSTD_compressCCtx(e->c, packed, p->cluster - 1, buf, p->cluster, 3);
        return ZSTD_isError(n) ? 0 : n;
    }
    if (is_noise(buf, p->cluster))
        return 0;
    deflateReset(&e->z);
    e->z.next_in = (uint8_t *)(uintptr_t)buf, e->z.avail_in = p->cluster, e->z.next_out = packed, e->z.avail_out = p->cluster - 1;
    return deflate(&e->z, Z_FINISH) == Z_STREAM_END ? e->z.total_out : 0;
}

static bool engine_init(struct engine *e, bool zstd)
{
    if (zstd)
        return (e->c = ZSTD_createCCtx()) != NULL;
    return deflateInit2(&e->z, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -12, 9, Z_DEFAULT_STRATEGY) == Z_OK;
}

/* Without memory for an engine clusters go as they are. */
static void *worker(void *arg)
{
    struct packer *p = arg;
    struct engine e = { .c = NULL };
    bool able = engine_init(&e, p->zstd);
    pthread_mutex_lock(&p->lock);
    for (;;) {
        while (p->next == p->head && !p->stop)
            pthread_cond_wait(&p->work, &p->lock);
        if (p->next == p->head)
            break;
        struct slot *s = &p->slot[p->next++ % p->nslots];
        pthread_mutex_unlock(&p->lock);
        s->n = able ? pack(p, &e, s->buf, s->packed) : 0;
        pthread_mutex_lock(&p->lock);
        s->done = true;
        pthread_cond_signal(&p->done);
    }
    pthread_mutex_unlock(&p->lock);
    if (able && p->zstd)
        ZSTD_freeCCtx(e.c);
    else if (able)
        deflateEnd(&e.z);
    return NULL;
}

/* Gives out what is finished; waits until at most `left` slots are in use. */
static int drain(struct packer *p, uint64_t left)
{
    int err = 0;
    pthread_mutex_lock(&p->lock);
    while (p->tail < p->head) {
        struct slot *s = &p->slot[p->tail % p->nslots];
        if (!s->done && p->head - p->tail <= left)
            break;
        while (!s->done)
            pthread_cond_wait(&p->done, &p->lock);
        pthread_mutex_unlock(&p->lock);
        if (!err)
            err = p->out(p->arg, s->off, s->buf, s->packed, s->n);
        pthread_mutex_lock(&p->lock);
        s->done = false;
        p->tail++;
    }
    pthread_mutex_unlock(&p->lock);
    return err;
}

int pack_add(struct packer *p, uint64_t off, const uint8_t *buf)
{
    int err = drain(p, p->nslots - 1);
    if (err)
        return err;
    struct slot *s = &p->slot[p->head % p->nslots];
    s->off = off;
    memcpy(s->buf, buf, p->cluster);
    pthread_mutex_lock(&p->lock);
    p->head++;
    pthread_cond_signal(&p->work);
    pthread_mutex_unlock(&p->lock);
    return 0;
}

static void stop(struct packer *p)
{
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
    for (unsigned i = 0; i < p->nworkers; i++)
        pthread_join(p->worker[i], NULL);
    for (unsigned i = 0; p->slot && i < p->nslots; i++)
        free(p->slot[i].buf), free(p->slot[i].packed);
    free(p->slot);
    free(p);
}

int pack_end(struct packer *p)
{
    int err = drain(p, 0);
    stop(p);
    return err;
}

struct packer *pack_start(size_t cluster, bool zstd, pack_out *out, void *arg)
{
    struct packer *p = calloc(1, sizeof *p);
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned want = cpus < MIN_WORKERS ? MIN_WORKERS : cpus > MAX_WORKERS ? MAX_WORKERS : cpus;
    if (!p)
        return NULL;
    p->cluster = cluster, p->zstd = zstd, p->out = out, p->arg = arg;
    p->nslots = RING_BYTES / cluster > 2 * want ? RING_BYTES / cluster : 2 * want;
    p->slot = calloc(p->nslots, sizeof *p->slot);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work, NULL), pthread_cond_init(&p->done, NULL);
    bool ok = p->slot != NULL;
    for (unsigned i = 0; ok && i < p->nslots; i++)
        ok = (p->slot[i].buf = malloc(cluster)) && (p->slot[i].packed = malloc(cluster));
    while (ok && p->nworkers < want && !pthread_create(&p->worker[p->nworkers], NULL, worker, p))
        p->nworkers++;
    if (ok && p->nworkers)
        return p;
    stop(p);
    return NULL;
}
