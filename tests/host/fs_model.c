#include "tests/host/fs_model.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tests/host/mem_blk.h"

void model_init(struct model *m, uint64_t seed)
{
    memset(m, 0, sizeof *m);
    m->seed = seed, m->max_size = MODEL_SIZE;
    for (int i = 0; i < MODEL_FILES; i++)
        m->file[i].data = calloc(1, MODEL_SIZE);
}

void model_fini(struct model *m)
{
    for (int i = 0; i < MODEL_FILES; i++)
        free(m->file[i].data);
}

void model_copy(struct model *to, const struct model *from)
{
    for (int i = 0; i < MODEL_FILES; i++) {
        uint8_t *data = to->file[i].data;
        to->file[i] = from->file[i];
        to->file[i].data = data;
        memcpy(data, from->file[i].data, MODEL_SIZE);
    }
    to->seed = from->seed, to->version = from->version, to->ids = from->ids, to->max_size = from->max_size;
}

/* Some files live in a directory. */
const char *model_name(int i, char buf[32])
{
    snprintf(buf, 32, i % 3 == 2 ? "dir/f%d" : "f%d", i);
    return buf;
}

static uint64_t pick(struct model *m, uint64_t n) { return mem_rand(&m->seed) % n; }

static void fill(struct model *m, int file, uint64_t off, uint8_t *buf, size_t len)
{
    m->version++;
    for (size_t i = 0; i < len; i++) {
        uint64_t word = (off + i) / 8 << 40 | (m->version & 0xffffff) << 16 | (m->file[file].id & 0xffff);
        buf[i] = word >> (off + i) % 8 * 8;
    }
}

/* A random range of the file's possible size. */
static void range(struct model *m, uint64_t max, uint64_t longest, unsigned flags, uint64_t *off, uint64_t *len)
{
    *off = pick(m, max), *len = 1 + pick(m, longest);
    if (flags & MODEL_ALIGNED)
        *off &= ~7ull, *len = (*len + 7) & ~7ull;
    if (pick(m, 2))
        *off = *off / 4096 * 4096, *len = (*len + 4095) / 4096 * 4096;
    *len = *len < max - *off ? *len : max - *off;
}

static int write_some(struct model *m, struct fs_file *f, int i, unsigned flags)
{
    static uint8_t buf[MODEL_SIZE];
    struct model_file *mf = &m->file[i];
    uint64_t off, len;
    range(m, pick(m, 2) && mf->size ? mf->size : m->max_size, pick(m, 4) ? 9000 : m->max_size / 3, flags, &off, &len);
    fill(m, i, off, buf, len);
    int err = fs_write(f, off, buf, len);
    if (!err) {
        memcpy(mf->data + off, buf, len);
        mf->size = mf->size > off + len ? mf->size : off + len;
    }
    return err;
}

static int resize_some(struct model *m, struct fs_file *f, int i, unsigned flags)
{
    struct model_file *mf = &m->file[i];
    uint64_t size = pick(m, 3) ? pick(m, m->max_size) : pick(m, 2) * 4096;
    if (flags & MODEL_ALIGNED)
        size &= ~7ull;
    mf->zeroed = ++m->version;
    int err = fs_truncate(f, size);
    if (!err) {
        if (size < mf->size)
            memset(mf->data + size, 0, mf->size - size);
        mf->size = size;
    }
    return err;
}

static int punch_some(struct model *m, struct fs_file *f, int i, bool keep, unsigned flags)
{
    struct model_file *mf = &m->file[i];
    uint64_t off, len;
    if (!mf->size)
        return 0;
    range(m, mf->size, m->max_size / 3, flags, &off, &len);
    mf->zeroed = ++m->version;
    int err = keep ? fs_zero(f, off, len) : fs_punch(f, off, len);
    if (!err)
        memset(mf->data + off, 0, len);
    return err;
}

static int allocate_some(struct model *m, struct fs_file *f, int i)
{
    uint64_t off, len;
    range(m, m->max_size, m->max_size / 3, MODEL_ALIGNED, &off, &len);
    int err = fs_allocate(f, off, len);
    if (!err && off + len > m->file[i].size)
        m->file[i].size = off + len;
    return err;
}

static int in_file(struct model *m, struct fs *fs, int i, unsigned flags)
{
    char name[32];
    struct fs_file *f;
    int err = fs_open(fs, model_name(i, name), 0, &f);
    if (err)
        return err;
    switch (pick(m, 10)) {
    default: err = write_some(m, f, i, flags); break;
    case 6:  err = resize_some(m, f, i, flags); break;
    case 7:  err = punch_some(m, f, i, false, flags); break;
    case 8:  err = punch_some(m, f, i, true, flags); break;
    case 9:  err = allocate_some(m, f, i); break;
    }
    if (err) {                          /* a part may have been done */
        struct model_file *mf = &m->file[i];
        struct fs_stat st;
        if (m->on_error)
            m->on_error();
        fs_fstat(f, &st);
        memset(mf->data, 0, MODEL_SIZE);
        mf->size = st.size;
        if (fs_read(f, 0, mf->data, st.size) != (int64_t)st.size)
            err = -EPROTO;
    }
    fs_close(f);
    return err;
}

static int create(struct model *m, struct fs *fs, int i)
{
    char name[32];
    struct fs_file *f;
    int err = fs_open(fs, model_name(i, name), FS_CREATE | FS_EXCL | (pick(m, 4) ? 0 : FS_CSUM), &f);
    if (!err) {
        fs_close(f);
        m->file[i].exists = true, m->file[i].size = 0, m->file[i].id = ++m->ids;
        memset(m->file[i].data, 0, MODEL_SIZE);
    }
    return err;
}

static int move(struct model *m, struct fs *fs, int i, int to)
{
    char a[32], b[32];
    int err = fs_rename(fs, model_name(i, a), model_name(to, b));
    if (!err && i != to) {
        struct model_file t = m->file[to];
        m->file[to] = m->file[i];
        m->file[i] = t;
        m->file[i].exists = false;
    }
    return err;
}

static int clone(struct model *m, struct fs *fs, int i, int to)
{
    char a[32], b[32];
    int err = fs_reflink(fs, model_name(i, a), model_name(to, b));
    if (m->file[to].exists)
        return err == -EEXIST ? 0 : err ? err : -EPROTO;
    if (!err) {
        m->file[to].exists = true, m->file[to].size = m->file[i].size, m->file[to].id = ++m->ids;
        memcpy(m->file[to].data, m->file[i].data, MODEL_SIZE);
    }
    return err;
}

int model_step(struct model *m, struct fs *fs, unsigned flags)
{
    char name[32];
    int i = pick(m, MODEL_FILES), to = pick(m, MODEL_FILES), op = pick(m, 20), err;
    if (!m->file[i].exists)
        return create(m, fs, i);
    if (op == 0) {
        err = fs_unlink(fs, model_name(i, name));
        m->file[i].exists = err != 0;
        return err;
    }
    if (op == 1)
        return move(m, fs, i, to);
    if (op <= 3 && !(flags & MODEL_NO_CLONE))
        return clone(m, fs, i, to);
    return in_file(m, fs, i, flags);
}

static const char *compare_file(struct model_file *mf, struct fs *fs, const char *name)
{
    static char why[128];
    static uint8_t buf[MODEL_SIZE];
    struct fs_file *f;
    int err = fs_open(fs, name, 0, &f);
    if (err != (mf->exists ? 0 : -ENOENT)) {
        snprintf(why, sizeof why, "%s: open: %d, expected %s", name, err, mf->exists ? "it" : "none");
        if (!err)
            fs_close(f);
        return why;
    }
    if (err)
        return NULL;
    struct fs_stat st;
    fs_fstat(f, &st);
    int64_t n = fs_read(f, 0, buf, sizeof buf);
    fs_close(f);
    if (st.size != mf->size || n != (int64_t)mf->size) {
        snprintf(why, sizeof why, "%s: size %llu, read %lld, expected %llu", name, (unsigned long long)st.size, (long long)n,
                 (unsigned long long)mf->size);
        return why;
    }
    for (uint64_t i = 0; i < mf->size; i++)
        if (buf[i] != mf->data[i]) {
            snprintf(why, sizeof why, "%s: byte %llu is %02x, expected %02x", name, (unsigned long long)i, buf[i], mf->data[i]);
            return why;
        }
    return NULL;
}

const char *model_compare(struct model *m, struct fs *fs)
{
    const char *why = NULL;
    char name[32];
    for (int i = 0; !why && i < MODEL_FILES; i++)
        why = compare_file(&m->file[i], fs, model_name(i, name));
    return why;
}
