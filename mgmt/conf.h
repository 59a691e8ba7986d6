/*
 * Definition files: a TOML subset and JSON as its twin, read into one stream of (section, key, value) events.  Hostile input:
 * bounded, no allocation, no recursion on the input's depth.
 *
 * TOML v1.0.0, of it: comments, bare and quoted keys, strings (basic and literal, one line), integers, booleans, [[array of
 * tables]]. JSON: one object of scalars, and arrays of such objects under a section's name.
 */
#pragma once
#include "kernel/lib/base.h"

enum conf_kind {
    CONF_STRING, CONF_INT, CONF_BOOL,
    CONF_WORD,          /* from a command-line flag: text that may stand for any of the others */
    CONF_SECTION,       /* a new [[section]] begins; key and value are unused */
};

enum { CONF_TEXT_MAX = 2304 };

struct conf_value { enum conf_kind kind; const char *text; uint64_t num; bool flag; };  /* text lives during the call only */

struct conf_error { unsigned line; char text[240]; };

struct conf_sink {
    /* section NULL: top level.  0, or -errno with a sentence (no line number) in err. */
    int (*put)(void *arg, const char *section, const char *key, const struct conf_value *, char *err, size_t errlen);
    void *arg;
};

int conf_parse_toml(const char *text, size_t len, const struct conf_sink *, struct conf_error *);
int conf_parse_json(const char *text, size_t len, const struct conf_sink *, struct conf_error *);
/* By content: the first character that is no space is '{' for JSON. */
int conf_parse(const char *text, size_t len, const struct conf_sink *, struct conf_error *);
