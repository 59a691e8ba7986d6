#include <string.h>
#include "mgmt/conmux.h"

static void ring_put(struct conmux *m, const uint8_t *data, size_t len)
{
    spin_lock(&m->lock);
    for (size_t n; len; data += n, len -= n, m->head += n) {
        size_t at = m->head % CONMUX_KEEP;
        n = MIN(len, CONMUX_KEEP - at);
        memcpy(m->ring + at, data, n);
    }
    spin_unlock(&m->lock);
}

/* One turn of at most 8 KiB, so that one loud guest does not hold the worker. */
static bool take_in(struct conmux *m, struct chan *c)
{
    uint8_t some[512];
    for (unsigned i = 0; i < 16; i++) {
        size_t n = chan_read(c, CHAN_USER, some, sizeof some);
        if (!n)
            return false;
        ring_put(m, some, n);
    }
    return true;
}

static void drain(struct work *w)
{
    struct conmux *m = container_of(w, struct conmux, drain);
    mutex_lock(&m->plug_lock);
    if (m->chan && take_in(m, m->chan))
        work_queue(&m->drain);
    mutex_unlock(&m->plug_lock);
    watch_post(&m->watchers);
}

static void notify(void *arg)
{
    struct conmux *m = arg;
    work_queue(&m->drain);
}

void conmux_init(struct conmux *m)
{
    memset(m, 0, sizeof *m);
    watch_init(&m->watchers);
    mutex_init(&m->plug_lock);
    work_init(&m->drain, drain);
}

void conmux_fini(struct conmux *m)
{
    work_flush(&m->drain);
    kfree(m->ring);
}

struct chan *conmux_plug(struct conmux *m)
{
    if (!m->ring && !(m->ring = kmalloc(CONMUX_KEEP)))
        return NULL;
    struct chan *c = chan_create(CONMUX_CHAN);
    if (!c)
        return NULL;
    mutex_lock(&m->plug_lock);
    m->chan = c;
    mutex_unlock(&m->plug_lock);
    chan_set_notify(c, CHAN_USER, notify, m);
    watch_post(&m->watchers);
    return c;
}

void conmux_unplug(struct conmux *m)
{
    mutex_lock(&m->plug_lock);
    struct chan *c = m->chan;
    m->chan = NULL;
    mutex_unlock(&m->plug_lock);
    if (!c)
        return;
    chan_set_notify(c, CHAN_USER, NULL, NULL);     /* a drain that is still queued finds no channel */
    while (take_in(m, c))
        ;
    chan_destroy(c);
    watch_post(&m->watchers);
}

uint64_t conmux_oldest(struct conmux *m)
{
    spin_lock(&m->lock);
    uint64_t pos = m->head > CONMUX_KEEP ? m->head - CONMUX_KEEP : 0;
    spin_unlock(&m->lock);
    return pos;
}

size_t conmux_read(struct conmux *m, uint64_t *pos, void *buf, size_t len, uint64_t *lost)
{
    spin_lock(&m->lock);
    uint64_t oldest = m->head > CONMUX_KEEP ? m->head - CONMUX_KEEP : 0;
    if (*pos < oldest) {
        *lost += oldest - *pos;
        *pos = oldest;
    }
    size_t at = *pos % CONMUX_KEEP, n = (size_t)MIN((uint64_t)len, m->head - *pos);
    n = MIN(n, CONMUX_KEEP - at);
    if (n)
        memcpy(buf, m->ring + at, n);
    *pos += n;
    spin_unlock(&m->lock);
    return n;
}

size_t conmux_write(struct conmux *m, const void *data, size_t len)
{
    mutex_lock(&m->plug_lock);
    size_t n = m->chan ? chan_write(m->chan, CHAN_USER, data, len) : len;
    mutex_unlock(&m->plug_lock);
    return n;
}
