/* qcow2: the table of internal snapshots, which we list and leave alone.  Entries have a variable length. */
#include "kernel/block/qcow2.h"

#include <errno.h>
#include <string.h>

enum { S_L1_OFF = 0, S_L1_SIZE = 8, S_ID_LEN = 12, S_NAME_LEN = 14, S_SEC = 16, S_NSEC = 20, S_CLOCK = 24, S_STATE = 32, S_EXTRA_LEN = 36, S_LEN = 40 };
enum { X_STATE = 0, X_ICOUNT = 16, X_LEN = 24 };        /* extra data, as far as it is there */

static int read_name(struct qcow2 *q, uint64_t off, char *out, size_t room, size_t len)
{
    len = MIN(len, room - 1);
    out[len] = 0;
    return file_read(q->img.file, off, out, len);
}

int snapshot_read(struct qcow2 *q, uint64_t *off, struct snapshot *s)
{
    uint8_t h[S_LEN], x[X_LEN] = { 0 };
    int err = file_read(q->img.file, *off, h, sizeof h);
    uint32_t extra = be32(h + S_EXTRA_LEN), id_len = be16(h + S_ID_LEN), name_len = be16(h + S_NAME_LEN);
    uint64_t at = *off + S_LEN;
    s->l1_off = be64(h + S_L1_OFF), s->l1_size = be32(h + S_L1_SIZE);
    *off = ALIGN_UP(at + extra + id_len + name_len, 8ull);
    if (!err && (s->l1_size > MAX_L1_BYTES / 8 || *off > ALIGN_UP(q->img.file->size, 8ull)))
        err = -EILSEQ;
    if (!err)
        err = file_read(q->img.file, at, x, MIN(extra, (uint32_t)X_LEN));
    if (!err)
        err = read_name(q, at + extra, s->info.id, sizeof s->info.id, id_len);
    if (!err)
        err = read_name(q, at + extra + id_len, s->info.name, sizeof s->info.name, name_len);
    s->info.date_sec = be32(h + S_SEC), s->info.date_nsec = be32(h + S_NSEC), s->info.clock_ns = be64(h + S_CLOCK);
    s->info.state_size = extra >= 8 ? be64(x + X_STATE) : be32(h + S_STATE);
    s->info.icount = extra >= X_LEN ? be64(x + X_ICOUNT) : UINT64_MAX;
    return err;
}

int qcow2_snapshot(struct image *img, int i, struct image_snapshot *out)
{
    struct qcow2 *q = qcow2_of(img);
    uint64_t off = q->snapshots_off;
    struct snapshot s;
    int err = i < 0 || (uint32_t)i >= q->nsnapshots ? -ENOENT : 0;
    for (int k = 0; !err && k <= i; k++)
        err = snapshot_read(q, &off, &s);
    if (!err)
        *out = s.info;
    return err;
}
