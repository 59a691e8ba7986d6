/* JSON out (into a struct buf) and in (as the same events as TOML, see conf.h).  RFC 8259. */
#pragma once
#include "mgmt/buf.h"

/* The writer puts the commas.  key NULL inside arrays and at the top. */
struct json { struct buf *out; uint32_t more; unsigned depth; };       /* more: bit per depth, "a comma is due" */

void json_begin(struct json *, struct buf *);
void json_open(struct json *, const char *key, char bracket);           /* '{' or '[' */
void json_close(struct json *, char bracket);                           /* '}' or ']' */
void json_str(struct json *, const char *key, const char *val);         /* invalid UTF-8 becomes U+FFFD */
void json_num(struct json *, const char *key, uint64_t val);
void json_bool(struct json *, const char *key, bool val);
void json_null(struct json *, const char *key);
void json_raw(struct json *, const char *key, const char *text);        /* text is JSON already */
