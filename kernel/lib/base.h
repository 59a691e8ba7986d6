/* Words that every source file uses.  Nothing here allocates, locks or prints. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BIT(n)          (1ull << (n))
#define BITS(hi, lo)    ((~0ull >> (63 - (hi))) & (~0ull << (lo)))      /* as the manuals write "bits 51:12" */
#define ARRAY_SIZE(a)   (sizeof(a) / sizeof((a)[0]))
#define ALIGN_UP(x, a)   (((x) + ((__typeof__(x))(a) - 1)) & ~((__typeof__(x))(a) - 1))
#define ALIGN_DOWN(x, a) ((x) & ~((__typeof__(x))(a) - 1))
#define IS_ALIGNED(x, a) (((x) & ((__typeof__(x))(a) - 1)) == 0)
#define container_of(p, type, field) ((type *)((char *)(p) - offsetof(type, field)))

#define MIN(a, b) ({ __typeof__(a) a_ = (a); __typeof__(b) b_ = (b); a_ < b_ ? a_ : b_; })
#define MAX(a, b) ({ __typeof__(a) a_ = (a); __typeof__(b) b_ = (b); a_ > b_ ? a_ : b_; })

#define likely(x)       __builtin_expect(!!(x), 1)
#define unlikely(x)     __builtin_expect(!!(x), 0)
#ifndef __packed        /* newlib has the same */
#define __packed        __attribute__((packed))
#endif
#define __aligned_to(n) __attribute__((aligned(n)))
#define __printf_like(f, a) __attribute__((format(printf, f, a)))
#define __must_check    __attribute__((warn_unused_result))

/* One untorn access of a word that another CPU may change. */
#define READ_ONCE(x)      (*(const volatile __typeof__(x) *)&(x))
#define WRITE_ONCE(x, v)  (*(volatile __typeof__(x) *)&(x) = (v))

/* Atomics under their C11 order names; the operand is a plain integer or pointer. */
#define atomic_load(p)            __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define atomic_load_relaxed(p)    __atomic_load_n((p), __ATOMIC_RELAXED)
#define atomic_store(p, v)        __atomic_store_n((p), (v), __ATOMIC_RELEASE)
#define atomic_store_relaxed(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define atomic_add(p, v)          __atomic_add_fetch((p), (v), __ATOMIC_SEQ_CST)      /* returns the new value */
#define atomic_sub(p, v)          __atomic_sub_fetch((p), (v), __ATOMIC_SEQ_CST)
#define atomic_or(p, v)           __atomic_fetch_or((p), (v), __ATOMIC_SEQ_CST)       /* returns the old value */
#define atomic_and(p, v)          __atomic_fetch_and((p), (v), __ATOMIC_SEQ_CST)
#define atomic_xchg(p, v)         __atomic_exchange_n((p), (v), __ATOMIC_SEQ_CST)
#define atomic_cas(p, old, new)   __atomic_compare_exchange_n((p), (old), (new), false, __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE)
#define atomic_fence()            __atomic_thread_fence(__ATOMIC_SEQ_CST)

typedef uint64_t gpa_t;         /* guest physical address */
typedef uint64_t gva_t;         /* guest linear address */
typedef uint64_t hpa_t;         /* host physical address */

#define PAGE_SHIFT 12
#define PAGE_SIZE  4096ull
#define PAGE_2M    (1ull << 21)
#define PAGE_1G    (1ull << 30)
