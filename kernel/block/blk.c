/* The block core: the door, the trampoline, waiting helpers and claims. */
#include "kernel/block/blk.h"

#include <errno.h>
#include <string.h>
#include "kernel/block/split.h"
#include "kernel/lib/port.h"

/* ---- Completion ---- */

/*
 * One trampoline per CPU: while a done runs, requests that end are pushed on a stack, which whoever set `running` works off.  That it is
 * atomic makes it correct even where two threads share an index (hosted code without CPUs): the second leaves its request to the first.
 */
struct trampoline { struct list *ended; uint32_t running; } __aligned_to(64);
static struct trampoline trampolines[MAX_CPUS];

static void push(struct trampoline *t, struct blk_req *r)
{
    r->link.next = __atomic_load_n(&t->ended, __ATOMIC_RELAXED);
    while (!atomic_cas(&t->ended, &r->link.next, &r->link))
        ;
}

/* Runs all that is on the stack, in the order of its ending. */
static __attribute__((noinline)) void run_ended(struct trampoline *t)
{
    struct list *fifo = NULL, *next;
    for (struct list *l = atomic_xchg(&t->ended, NULL); l; l = next) {
        next = l->next;
        l->next = fifo, fifo = l;
    }
    for (; fifo; fifo = next) {
        struct blk_req *r = list_entry(fifo, struct blk_req, link);
        next = fifo->next;
        r->done(r);
    }
}

/* Whoever set `running` goes on until the stack is empty after it was cleared. */
static void work_off(struct trampoline *t)
{
    do {
        while (atomic_load(&t->ended))
            run_ended(t);
        atomic_xchg(&t->running, 0u);
    } while (unlikely(atomic_load(&t->ended)) && !atomic_xchg(&t->running, 1u));
}

void blk_complete(struct blk_req *r, int err)
{
    r->err = err;
    preempt_disable();
    struct trampoline *t = &trampolines[port_cpu()];
    if (likely(!atomic_xchg(&t->running, 1u))) {
        r->done(r);
        work_off(t);
    } else {
        push(t, r);
        if (unlikely(!atomic_xchg(&t->running, 1u)))    /* the one who ran may just have looked at the stack for the last time */
            work_off(t);
    }
    preempt_enable();
}

/* ---- The door ---- */

static int check_op(const struct blk *b, const struct blk_req *r)
{
    switch (r->op) {
    case BLK_READ:
    case BLK_FLUSH:
        return 0;
    case BLK_DISCARD:
        if (!b->limits.discard)
            return b->limits.read_only ? -EROFS : -ENOTSUP;
        /* fall through */
    case BLK_WRITE:
    case BLK_WRITE_ZEROES:
        return b->limits.read_only ? -EROFS : 0;
    }
    return -EINVAL;
}

static int check(const struct blk *b, const struct blk_req *r)
{
    int err = check_op(b, r);
    if (err)
        return err;
    if (r->op == BLK_FLUSH)
        return r->off || r->len ? -EINVAL : 0;
    uint64_t size = atomic_load_relaxed(&b->size);      /* may grow while requests are in flight */
    if ((r->off | r->len) & (b->limits.block - 1) || r->off > size || r->len > size - r->off)
        return -EINVAL;
    if ((r->op == BLK_READ || r->op == BLK_WRITE) && iov_len(r->iov, r->niov) < r->len)
        return -EINVAL;
    return b->limits.ctx_size && !r->ctx ? -EINVAL : 0;
}

/* The common case, answered in one go: a read or write of one piece of memory that the layer can take as it is. */
static inline bool is_plain(const struct blk *b, const struct blk_req *r)
{
    const struct blk_limits *l = &b->limits;
    uint64_t size = atomic_load_relaxed(&b->size);
    return r->op <= BLK_WRITE && !r->flags && r->niov == 1 && r->len - 1 < l->max_len && r->len <= r->iov->len && r->len <= size &&
        r->off <= size - r->len && !((r->off | r->len) & (l->block - 1)) && !((uintptr_t)r->iov->base & (l->mem_align - 1)) &&
        (r->op == BLK_READ || !l->read_only) && (r->ctx || !l->ctx_size);
}

static __attribute__((noinline)) void submit_any(struct blk *b, struct blk_req *r)
{
    int err = check(b, r);
    if (unlikely(err || (!r->len && r->op != BLK_FLUSH)))
        blk_complete(r, err);
    else if (blk_fits(b, r))
        b->ops->submit(b, r);
    else
        blk_split_submit(b, r);
}

void blk_submit(struct blk *b, struct blk_req *r)
{
    if (likely(is_plain(b, r)))
        b->ops->submit(b, r);
    else
        submit_any(b, r);
}

bool blk_limits_imply(const struct blk_limits *own, const struct blk_limits *below)
{
    return own->block >= below->block && own->mem_align >= below->mem_align && own->max_segs <= below->max_segs &&
        own->max_len <= below->max_len;
}

struct blk_limits blk_limits_any(void)
{
    return (struct blk_limits){ .block = 512, .phys_block = 512, .mem_align = 1, .max_segs = 1u << 20, .max_len = 1ull << 62 };
}

static bool power_of_two(uint64_t x) { return x && !(x & (x - 1)); }

int blk_ready(struct blk *b)
{
    const struct blk_limits *l = &b->limits;
    if ((l->block != 512 && l->block != 4096) || !power_of_two(l->phys_block) || l->phys_block < l->block ||
        !power_of_two(l->mem_align) || l->mem_align > PAGE_SIZE || !l->max_segs || l->max_len < l->block || b->size % l->block)
        return -EINVAL;
    return blk_split_open(b);
}

void blk_close(struct blk *b)
{
    if (!b)
        return;
    blk_split_close(b);
    b->ops->close(b);
}

int blk_resize(struct blk *b, uint64_t size)
{
    if (b->limits.read_only)
        return -EROFS;
    return b->ops->resize ? b->ops->resize(b, size) : -ENOTSUP;
}

/* ---- Waiting ---- */

static void wake(struct blk_req *r) { event_post(r->arg); }

static int wait_for(struct blk *b, enum blk_op op, uint64_t off, void *buf, size_t len, unsigned flags)
{
    char small[256] __aligned_to(16);
    void *ctx = b->limits.ctx_size > sizeof small ? kmalloc(b->limits.ctx_size) : small;
    if (!ctx)
        return -ENOMEM;
    struct event ended;
    event_init(&ended);
    struct iov v = { buf, len };
    struct blk_req r = { .op = op, .flags = flags, .off = off, .len = len, .iov = &v, .niov = 1, .done = wake, .arg = &ended, .ctx = ctx };
    blk_submit(b, &r);
    event_wait(&ended);
    if (ctx != small)
        kfree(ctx);
    return r.err;
}

int blk_read(struct blk *b, uint64_t off, void *buf, size_t len) { return wait_for(b, BLK_READ, off, buf, len, 0); }
int blk_flush(struct blk *b) { return wait_for(b, BLK_FLUSH, 0, NULL, 0, 0); }
int blk_discard(struct blk *b, uint64_t off, uint64_t len) { return wait_for(b, BLK_DISCARD, off, NULL, len, 0); }

int blk_write(struct blk *b, uint64_t off, const void *buf, size_t len, unsigned flags)
{
    return wait_for(b, BLK_WRITE, off, (void *)(uintptr_t)buf, len, flags);
}

int blk_write_zeroes(struct blk *b, uint64_t off, uint64_t len, unsigned flags)
{
    return wait_for(b, BLK_WRITE_ZEROES, off, NULL, len, flags);
}

/* One block that the caller wants only a part of. */
static int part(struct blk *b, uint64_t off, void *buf, size_t len, bool write)
{
    size_t unit = b->limits.block, in = off % unit;
    uint8_t *block = kmalloc_aligned(unit, unit);
    if (!block)
        return -ENOMEM;
    int err = blk_read(b, off - in, block, unit);
    if (!err && write) {
        memcpy(block + in, buf, len);
        err = blk_write(b, off - in, block, unit, 0);
    } else if (!err) {
        memcpy(buf, block + in, len);
    }
    kfree(block);
    return err;
}

static int unaligned(struct blk *b, uint64_t off, char *buf, size_t len, bool write)
{
    int err = 0;
    while (len && !err) {
        size_t unit = b->limits.block, in = off % unit;
        size_t k = in || len < unit ? MIN(unit - in, len) : ALIGN_DOWN(len, unit);
        if (k % unit)
            err = part(b, off, buf, k, write);
        else
            err = write ? blk_write(b, off, buf, k, 0) : blk_read(b, off, buf, k);
        off += k, buf += k, len -= k;
    }
    return err;
}

int blk_pread(struct blk *b, uint64_t off, void *buf, size_t len) { return unaligned(b, off, buf, len, false); }
int blk_pwrite(struct blk *b, uint64_t off, const void *buf, size_t len)
{
    return unaligned(b, off, (char *)(uintptr_t)buf, len, true);
}

/* ---- Claims: ranges of the bottom of each stack ---- */

struct claim { struct list link; struct blk *by, *root; uint64_t off, end; bool write; };

static struct spinlock claim_lock = SPINLOCK_INIT;
static struct list claims = LIST_INIT(claims);

static void resolve(struct claim *c)
{
    uint64_t off = 0, len = UINT64_MAX;
    for (c->root = c->by; c->root->below; c->root = c->root->below) {
        if (!c->root->below_len) {
            off = 0, len = UINT64_MAX;          /* it maps blocks as it likes (an image format): all that is below */
        } else {
            len = MIN(len, c->root->below_len);
            off += c->root->below_off;
        }
    }
    c->off = off;
    c->end = len == UINT64_MAX ? len : off + len;
}

static bool conflict(const struct claim *a, const struct claim *b)
{
    return a->root == b->root && (a->write || b->write) && a->off < b->end && b->off < a->end;
}

int blk_claim(struct blk *b, bool write)
{
    struct claim *c = kzalloc(sizeof *c), *other;
    if (!c)
        return -ENOMEM;
    c->by = b, c->write = write;
    resolve(c);
    spin_lock(&claim_lock);
    int err = write && b->limits.read_only ? -EROFS : 0;
    list_for_each(other, &claims, link)
        if (conflict(c, other))
            err = -EBUSY;
    if (!err) {
        list_append(&claims, &c->link);
        *(write ? &b->writers : &b->readers) += 1;
    }
    spin_unlock(&claim_lock);
    if (err)
        kfree(c);
    return err;
}

void blk_release(struct blk *b, bool write)
{
    struct claim *c, *found = NULL;
    spin_lock(&claim_lock);
    list_for_each(c, &claims, link)
        if (c->by == b && c->write == write)
            found = c;
    ASSERT(found);
    list_del(&found->link);
    *(write ? &b->writers : &b->readers) -= 1;
    spin_unlock(&claim_lock);
    kfree(found);
}
