/* Scatter/gather lists.  `base` is a host virtual address; the memory belongs to whoever made the list. */
#pragma once
#include "kernel/lib/base.h"

struct iov { void *base; size_t len; };

size_t iov_len(const struct iov *, int n);
/* Copy at most `len` bytes between a buffer and the list, starting `off` bytes into the list; returns the bytes copied. */
size_t iov_from(const struct iov *, int n, size_t off, const void *buf, size_t len);
size_t iov_to(const struct iov *, int n, size_t off, void *buf, size_t len);
size_t iov_zero(const struct iov *, int n, size_t off, size_t len);
/* Describe bytes [off, off+len) of src in dst (at most max entries); returns the entries used, -E2BIG or -EINVAL (list too short). */
int iov_slice(struct iov *dst, int max, const struct iov *src, int n, size_t off, size_t len);
