/*
 * Numbers as operators write and read them.  Sizes are binary (512M, 4G, 1.5T); durations carry a unit (300ms, 60, 5m, 2h; no
 * unit: seconds).
 */
#pragma once
#include "kernel/lib/base.h"

/* Whole string or nothing; false: not of that form, or out of range of uint64_t. */
bool parse_uint(const char *, uint64_t *);              /* decimal, 0x…, 0o…, 0b…; '_' between digits */
bool parse_size(const char *, uint64_t *bytes);
bool parse_duration(const char *, uint64_t *ns);
bool parse_bool(const char *, bool *);                  /* true false yes no on off 1 0 */

/* Into buf (at least 32 bytes), which is returned. */
char *format_size(char *buf, uint64_t bytes);           /* short: 1.5G */
char *format_size_exact(char *buf, uint64_t bytes);     /* the largest unit that loses nothing: 1536M */
char *format_duration(char *buf, uint64_t ns);          /* 3d 4h, 12m 5s, 1.24s, 350us */
char *format_utc(char *buf, uint64_t utc_ns);           /* 2026-01-31T12:00:05Z */

/* Edit distance, bounded: > limit gives limit + 1. */
unsigned name_distance(const char *a, const char *b, unsigned limit);
/* Bytes and columns of the UTF-8 character at s (len bytes there); 0 bytes: not valid UTF-8 or cut off. */
unsigned utf8_char(const char *s, size_t len, unsigned *columns);
size_t utf8_columns(const char *s, size_t len);
