/* kernel/lib/port.h on Linux: memory, randomness, panic. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include "tests/host/port_host.h"

static int alloc_budget = -1;
static unsigned long alloc_live, alloc_refused;
static uint64_t seed;
static void (*panic_hook)(const char *msg);

void port_fail_alloc_after(int n)
{
    atomic_store(&alloc_refused, 0ul);
    atomic_store(&alloc_budget, n);
}
unsigned long host_alloc_refused(void) { return atomic_load(&alloc_refused); }
unsigned long port_alloc_count(void) { return atomic_load(&alloc_live); }

static __thread int forbidden;

void host_alloc_forbid(bool on) { forbidden += on ? 1 : -1; }

static bool alloc_allowed(void)
{
    if (forbidden)
        panic("memory allocated where none may be");
    int n = atomic_load(&alloc_budget);
    while (n > 0 && !atomic_cas(&alloc_budget, &n, n - 1))
        ;
    if (!n)
        atomic_add(&alloc_refused, 1ul);
    return n != 0;
}

static void *counted(void *p)
{
    if (p)
        atomic_add(&alloc_live, 1ul);
    return p;
}

void *kmalloc(size_t size) { return alloc_allowed() ? counted(malloc(size ? size : 1)) : NULL; }
void *kzalloc(size_t size) { return alloc_allowed() ? counted(calloc(1, size ? size : 1)) : NULL; }

void *kmalloc_aligned(size_t size, size_t align)
{
    void *p;
    ASSERT(align && align <= PAGE_SIZE && !(align & (align - 1)));
    if (!alloc_allowed() || posix_memalign(&p, MAX(align, sizeof(void *)), size ? size : 1))
        return NULL;
    return counted(p);
}

void kfree(void *p)
{
    if (p)
        atomic_sub(&alloc_live, 1ul);
    free(p);
}

void host_random_seed(uint64_t s) { atomic_store(&seed, s); }

static uint8_t seeded_byte(void)        /* splitmix64 */
{
    uint64_t z = atomic_add(&seed, 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z >> 56;
}

void random_bytes(void *buf, size_t len)
{
    uint8_t *p = buf;
    if (atomic_load(&seed)) {
        while (len--)
            *p++ = seeded_byte();
        return;
    }
    while (len) {
        ssize_t n = getrandom(p, MIN(len, (size_t)256), 0);
        if (n < 0)
            panic("getrandom");
        p += n, len -= n;
    }
}

void host_on_panic(void (*fn)(const char *msg)) { panic_hook = fn; }

void panic(const char *fmt, ...)
{
    char msg[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(msg, sizeof msg, fmt, ap);
    va_end(ap);
    if (panic_hook)
        panic_hook(msg);
    fprintf(stderr, "panic: %s\n", msg);
    abort();
}
