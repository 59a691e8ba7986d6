#include "tools/hostfile.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>
#include "kernel/lib/port.h"

struct host_blk { struct blk blk; int fd; bool sync; };

_Static_assert(sizeof(struct iov) == sizeof(struct iovec) && offsetof(struct iov, len) == offsetof(struct iovec, iov_len), "same layout");

static int move(struct host_blk *h, struct blk_req *r, bool write)
{
    size_t done = 0;
    while (done < r->len) {
        struct iov v[64];
        size_t want = MIN(r->len - done, (size_t)16 << 20);
        int n = iov_slice(v, 64, r->iov, r->niov, done, want);
        if (n == -E2BIG)                /* as many entries as there are */
            n = 64, want = iov_len(v, 64);
        ssize_t k = write ? pwritev(h->fd, (struct iovec *)v, n, r->off + done) : preadv(h->fd, (struct iovec *)v, n, r->off + done);
        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0)
            return -errno;
        if (!k && write)
            return -EIO;
        if (!k) {
            iov_zero(r->iov, r->niov, done, r->len - done);
            return 0;
        }
        done += k;
    }
    return 0;
}

static int clear(struct host_blk *h, struct blk_req *r)
{
    if (!fallocate(h->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, r->off, r->len) || r->op == BLK_DISCARD)
        return 0;
    static const char zero[65536];
    ssize_t k;
    for (uint64_t o = 0; o < r->len; o += k) {
        k = pwrite(h->fd, zero, MIN(r->len - o, (uint64_t)sizeof zero), r->off + o);
        if (k <= 0)
            return k ? -errno : -EIO;
    }
    return 0;
}

static void host_submit(struct blk *b, struct blk_req *r)
{
    struct host_blk *h = container_of(b, struct host_blk, blk);
    int err = 0;
    switch (r->op) {
    case BLK_READ:         err = move(h, r, false); break;
    case BLK_WRITE:        err = move(h, r, true); break;
    case BLK_FLUSH:        err = h->sync && fdatasync(h->fd) ? -errno : 0; break;
    case BLK_DISCARD:
    case BLK_WRITE_ZEROES: err = clear(h, r); break;
    }
    blk_complete(r, err);
}

static int host_resize(struct blk *b, uint64_t size)
{
    struct host_blk *h = container_of(b, struct host_blk, blk);
    if (ftruncate(h->fd, size))
        return -errno;
    b->size = ALIGN_UP(size, 512ull);
    return 0;
}

static void host_close(struct blk *b)
{
    struct host_blk *h = container_of(b, struct host_blk, blk);
    close(h->fd);
    kfree(h);
}

static const struct blk_ops host_ops = { host_submit, host_resize, host_close };

static int host_size(int fd, uint64_t *size)
{
    struct stat st;
    if (fstat(fd, &st))
        return -errno;
    if (S_ISDIR(st.st_mode))
        return -EISDIR;
    *size = st.st_size;
    return S_ISBLK(st.st_mode) && ioctl(fd, BLKGETSIZE64, size) ? -errno : 0;
}

int host_blk_open(const char *path, unsigned flags, struct blk **out)
{
    int mode = (flags & HOST_WRITE ? O_RDWR : O_RDONLY) | (flags & HOST_CREATE ? O_CREAT | O_TRUNC : 0);
    uint64_t size;
    int fd = open(path, mode | O_CLOEXEC, 0644);
    if (fd < 0)
        return -errno;
    int err = flags & HOST_LOCK && flock(fd, (flags & HOST_WRITE ? LOCK_EX : LOCK_SH) | LOCK_NB) ? (errno == EWOULDBLOCK ? -EBUSY : -errno) : 0;
    if (!err)
        err = host_size(fd, &size);
    struct host_blk *h = err ? NULL : kzalloc(sizeof *h);
    if (!h) {
        close(fd);
        return err ? err : -ENOMEM;
    }
    h->fd = fd, h->sync = flags & HOST_SYNC;
    h->blk = (struct blk){ .ops = &host_ops, .kind = "host", .size = ALIGN_UP(size, 512ull), .limits = blk_limits_any() };
    strncpy(h->blk.name, path, sizeof h->blk.name - 1);
    h->blk.limits.read_only = !(flags & HOST_WRITE);
    h->blk.limits.discard = h->blk.limits.write_zeroes = true;
    h->blk.limits.volatile_cache = h->sync;
    err = blk_ready(&h->blk);
    if (err)
        blk_close(&h->blk);
    else
        *out = &h->blk;
    return err;
}

bool host_blk_hole(struct blk *b, uint64_t off, uint64_t *len)
{
    struct host_blk *h = container_of(b, struct host_blk, blk);
    if (b->ops != &host_ops)
        return false;
    off_t data = lseek(h->fd, off, SEEK_DATA);
    if (data < 0)
        return errno == ENXIO && b->size > off;         /* nothing but hole up to the end */
    if ((uint64_t)data > off) {
        *len = MIN(*len, ALIGN_DOWN(data - off, 512ull));
        return *len > 0;
    }
    off_t hole = lseek(h->fd, off, SEEK_HOLE);
    if (hole > 0)
        *len = MIN(*len, ALIGN_UP(hole - off, 512ull));
    return false;
}

void progress_show(struct progress *p, uint64_t done, uint64_t all)
{
    int percent = all ? (int)((double)done * 100 / all) : 100;
    if (p->quiet || percent == p->last)
        return;
    if (isatty(2))
        fprintf(stderr, "\r%s %3d %%", p->what, percent);
    else if (percent % 10 == 0)
        fprintf(stderr, "%s %d %%\n", p->what, percent);
    p->last = percent;
}

void progress_end(struct progress *p)
{
    if (!p->quiet && isatty(2))
        fputc('\n', stderr);
}

bool parse_size(const char *s, uint64_t *out)
{
    static const char unit[] = "bkmgtpe";
    char *end;
    double v = strtod(s, &end);
    if (end == s)
        return false;
    if (*end) {
        const char *u = strchr(unit, *end | 32);
        if (!u || !*u || (end[1] && strcasecmp(end + 1, "B") && strcasecmp(end + 1, "iB")))
            return false;
        for (long i = u - unit; i > 0; i--)
            v *= 1024;
    }
    if (!(v >= 0 && v < 0x1p63))
        return false;
    *out = v;
    return true;
}
