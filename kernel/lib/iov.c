#include "kernel/lib/iov.h"

#include <errno.h>
#include <string.h>

size_t iov_len(const struct iov *v, int n)
{
    size_t sum = 0;
    for (int i = 0; i < n; i++)
        sum += v[i].len;
    return sum;
}

enum iov_op { IOV_FROM, IOV_TO, IOV_ZERO };

static size_t iov_walk(enum iov_op op, const struct iov *v, int n, size_t off, void *buf, size_t len)
{
    size_t done = 0;
    for (int i = 0; i < n && done < len; i++) {
        if (off >= v[i].len) {
            off -= v[i].len;
            continue;
        }
        size_t k = MIN(v[i].len - off, len - done);
        char *at = (char *)v[i].base + off;
        switch (op) {
        case IOV_FROM: memcpy(at, (char *)buf + done, k); break;
        case IOV_TO:   memcpy((char *)buf + done, at, k); break;
        case IOV_ZERO: memset(at, 0, k); break;
        }
        done += k;
        off = 0;
    }
    return done;
}

size_t iov_from(const struct iov *v, int n, size_t off, const void *buf, size_t len)
{
    return iov_walk(IOV_FROM, v, n, off, (void *)(uintptr_t)buf, len);
}

size_t iov_to(const struct iov *v, int n, size_t off, void *buf, size_t len)
{
    return iov_walk(IOV_TO, v, n, off, buf, len);
}

size_t iov_zero(const struct iov *v, int n, size_t off, size_t len)
{
    return iov_walk(IOV_ZERO, v, n, off, NULL, len);
}

int iov_slice(struct iov *dst, int max, const struct iov *src, int n, size_t off, size_t len)
{
    int used = 0;
    for (int i = 0; i < n && len; i++) {
        if (off >= src[i].len) {
            off -= src[i].len;
            continue;
        }
        size_t k = MIN(src[i].len - off, len);
        if (used == max)
            return -E2BIG;
        dst[used++] = (struct iov){ (char *)src[i].base + off, k };
        len -= k;
        off = 0;
    }
    return len ? -EINVAL : used;
}
