/*
 * What a command answers: tables and records of typed cells, printed as aligned text or as one JSON object from the same data.
 *
 *     rep_table(r, "images", columns, n);   then n cells per row by rep_str, rep_num, rep_none in column order
 *     rep_record(r, "host", columns, n);    the same with one row, printed one cell per line
 */
#pragma once
#include "mgmt/buf.h"
#include "mgmt/fail.h"
#include "mgmt/json.h"

enum cell_kind {
    CELL_TEXT, CELL_NUM, CELL_SIZE /* bytes */, CELL_TIME /* ns */, CELL_STAMP /* ns since boot */, CELL_UTC /* ns since 1970 */,
    CELL_BOOL, CELL_HEX,
};

/*
 * extra: in JSON, in records and with -o only.  The JSON key is the name with '_' for '-'; text headers are the name in
 * capitals.
 */
struct column { const char *name; enum cell_kind kind; bool extra; };
#define COL(name, kind)       { name, CELL_##kind, false }
#define COL_EXTRA(name, kind) { name, CELL_##kind, true }

enum { REP_SECTIONS = 8, REP_MAX_BYTES = 4 << 20 };

struct section {
    const char *name;           /* JSON key */
    const char *title;          /* line above the text form, or NULL */
    const struct column *cols;
    unsigned ncols;
    bool record, text;          /* text: lines only, no columns */
    bool raw;                   /* one cell of JSON, not in text */
    size_t first, count;        /* cells */
};

struct report {
    struct buf cells, text;
    struct section sections[REP_SECTIONS];
    unsigned n;
};

void rep_init(struct report *);
void rep_free(struct report *);
void rep_table(struct report *, const char *name, const struct column *, unsigned ncols);
void rep_record(struct report *, const char *name, const struct column *, unsigned ncols);
void rep_title(struct report *, const char *title);             /* of the section just begun */
void rep_lines(struct report *, const char *name);              /* free text: rep_str per line */
void rep_raw(struct report *, const char *name, const char *json);      /* a member for --json only */
void rep_str(struct report *, const char *);                    /* NULL: none */
void rep_fmt(struct report *, const char *fmt, ...) __printf_like(2, 3);
void rep_num(struct report *, uint64_t);
void rep_none(struct report *);

struct rep_style { const char *columns; /* -o, or NULL */ bool quiet; };
/* 0 or an exit code with the sentence in fail: unknown column, no memory. */
int rep_text(struct report *, const struct rep_style *, struct buf *out, struct fail *);
/* Members of the open object j. */
void rep_json(struct report *, struct json *j);
