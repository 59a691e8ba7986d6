#include "tests/host/mem_blk.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "kernel/block/split.h"
#include "kernel/lib/port.h"
#include "tests/host/port_host.h"

/* The request being ended is alone with the data under this lock, so that overlapping requests never tear below a sector. */
struct locks { pthread_mutex_t m; pthread_cond_t c; pthread_t t; bool stop; };

static struct locks *lk(struct mem_blk *m) { return m->thread; }

uint64_t mem_rand(uint64_t *seed)
{
    uint64_t z = (*seed += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static void note(struct mem_blk *m, struct blk_req *r)
{
    if (!m->record || r->op == BLK_READ)
        return;
    if (m->nlog == m->log_cap) {
        m->log_cap = m->log_cap ? 2 * m->log_cap : 256;
        m->log = realloc(m->log, m->log_cap * sizeof *m->log);
    }
    struct mem_log *e = &m->log[m->nlog++];
    *e = (struct mem_log){ .op = r->op, .flags = r->flags, .off = r->off, .len = r->len, .at_submit = (size_t)(uintptr_t)r->link.prev };
    if (r->op == BLK_WRITE) {
        e->data = malloc(r->len);
        iov_to(r->iov, r->niov, 0, e->data, r->len);
    }
}

static int carry_out(struct mem_blk *m, struct blk_req *r)
{
    m->count[r->op]++;
    int err = m->fail ? m->fail(m, r, m->fail_arg) : 0;
    if (!err && m->fail_after >= 0 && m->fail_after-- == 0)
        m->fail_after = 0, err = -EIO;
    if (err)
        return err;
    note(m, r);
    switch (r->op) {
    case BLK_READ:         iov_from(r->iov, r->niov, 0, m->data + r->off, r->len); break;
    case BLK_WRITE:        iov_to(r->iov, r->niov, 0, m->data + r->off, r->len); break;
    case BLK_WRITE_ZEROES:
    case BLK_DISCARD:
        if (r->len >= 1 << 20)
            madvise(m->data + r->off, r->len, MADV_DONTNEED);
        memset(m->data + r->off, 0, r->len >= 1 << 20 ? 0 : r->len);
        break;
    case BLK_FLUSH:        break;
    }
    return 0;
}

static struct blk_req *take(struct mem_blk *m)
{
    struct list *n = m->pending.next;
    if (!m->npending)
        return NULL;
    for (unsigned k = mem_rand(&m->seed) % MIN(m->npending, 64u); k; k--)
        n = n->next;
    list_del(n);
    m->npending--;
    return list_entry(n, struct blk_req, link);
}

bool mem_blk_step(struct mem_blk *m)
{
    pthread_mutex_lock(&lk(m)->m);
    struct blk_req *r = take(m);
    int err = 0;
    if (r) {
        r->link.prev = (void *)(uintptr_t)r->err;       /* at_submit travels in err while pending */
        err = carry_out(m, r);
    }
    pthread_mutex_unlock(&lk(m)->m);
    if (r)
        blk_complete(r, err);
    return r != NULL;
}

void mem_blk_drain(struct mem_blk *m)
{
    while (mem_blk_step(m))
        ;
}

static void mem_submit(struct blk *b, struct blk_req *r)
{
    struct mem_blk *m = container_of(b, struct mem_blk, blk);
    pthread_mutex_lock(&lk(m)->m);
    if (m->mode == MEM_INLINE) {
        r->link.prev = (void *)(uintptr_t)m->nlog;
        int err = carry_out(m, r);
        pthread_mutex_unlock(&lk(m)->m);
        blk_complete(r, err);
        return;
    }
    r->err = (int)m->nlog;
    list_append(&m->pending, &r->link);
    m->npending++;
    if (m->mode == MEM_THREADED)
        pthread_cond_signal(&lk(m)->c);
    pthread_mutex_unlock(&lk(m)->m);
}

static void *mem_thread(void *arg)
{
    struct mem_blk *m = arg;
    struct locks *l = lk(m);
    host_alloc_forbid(true);    /* it only ends requests, like a driver's completion */
    for (;;) {
        pthread_mutex_lock(&l->m);
        while (!m->npending && !l->stop)
            pthread_cond_wait(&l->c, &l->m);
        bool end = l->stop && !m->npending;
        pthread_mutex_unlock(&l->m);
        if (end)
            return NULL;
        mem_blk_step(m);
    }
}

static int mem_resize(struct blk *b, uint64_t size)
{
    struct mem_blk *m = container_of(b, struct mem_blk, blk);
    if (size > m->capacity)
        return -ENOSPC;
    if (size < b->size)
        memset(m->data + size, 0, b->size - size);
    atomic_store_relaxed(&b->size, size);       /* requests may be in flight */
    return 0;
}

void mem_blk_log_reset(struct mem_blk *m)
{
    for (size_t i = 0; i < m->nlog; i++)
        free(m->log[i].data);
    m->nlog = 0;
}

static void mem_close(struct blk *b)
{
    struct mem_blk *m = container_of(b, struct mem_blk, blk);
    struct locks *l = lk(m);
    ASSERT(m->mode != MEM_QUEUED || !m->npending);
    if (m->mode == MEM_THREADED) {
        pthread_mutex_lock(&l->m);
        l->stop = true;
        pthread_cond_signal(&l->c);
        pthread_mutex_unlock(&l->m);
        pthread_join(l->t, NULL);
    }
    mem_blk_log_reset(m);
    free(m->log);
    munmap(m->data, m->capacity);
    free(l);
    free(m);
}

static const struct blk_ops mem_ops = { mem_submit, mem_resize, mem_close };

void mem_blk_relimit(struct mem_blk *m)
{
    blk_split_close(&m->blk);
    if (blk_ready(&m->blk))
        panic("mem_blk: limits");
}

void mem_blk_free(struct mem_blk *m)
{
    m->blk.ops = &mem_ops;
    blk_close(&m->blk);
}

struct mem_blk *mem_blk_create(uint64_t size, uint64_t capacity, enum mem_mode mode, uint64_t seed)
{
    struct mem_blk *m = calloc(1, sizeof *m);
    struct locks *l = calloc(1, sizeof *l);
    m->thread = l, m->mode = mode, m->seed = seed, m->fail_after = -1;
    m->capacity = MAX(size, capacity);
    m->data = mmap(NULL, m->capacity, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (m->data == MAP_FAILED)
        panic("mem_blk: no memory");
    pthread_mutex_init(&l->m, NULL);
    pthread_cond_init(&l->c, NULL);
    list_init(&m->pending);
    m->blk = (struct blk){ .ops = &mem_ops, .kind = "mem", .name = "mem0", .size = size, .limits = blk_limits_any() };
    m->blk.limits.discard = m->blk.limits.write_zeroes = m->blk.limits.volatile_cache = m->blk.limits.fua = true;
    if (blk_ready(&m->blk))
        panic("mem_blk: no memory");
    if (mode == MEM_THREADED)
        pthread_create(&l->t, NULL, mem_thread, m);
    return m;
}
