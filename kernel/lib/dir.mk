hosted += kernel/lib/iov.c
hosted += kernel/lib/crc.c
core += kernel/lib/libc.c
