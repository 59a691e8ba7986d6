hosted += kernel/lib/iov.c
