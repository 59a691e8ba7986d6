#include "tools/img.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool quiet, show_progress;
int failure = 1;

void fail(const char *what, const char *object, int err, const struct image_env *env)
{
    const char *why = env && env->error[0] ? env->error : err == -EILSEQ ? "the image is damaged" : strerror(-err);
    fflush(stdout);
    fprintf(stderr, "joistimg: %s '%s': %s\n", what, object, why);
    exit(failure);
}

void misused(const char *what, const char *value)
{
    fprintf(stderr, "joistimg: %s '%s'\nTry 'joistimg --help' for more information\n", what, value);
    exit(failure);
}

/* ---- Opening ---- */

static int open_named(void *arg, const char *name, bool write, struct blk **out)
{
    struct place *p = arg;
    char path[8192];
    snprintf(path, sizeof path, "%s%s", name[0] == '/' ? "" : p->dir, name);
    return host_blk_open(path, (write ? HOST_WRITE : 0) | (p->create ? HOST_CREATE : 0), out);
}

void env_for(struct image_env *env, struct place *p, const char *path, bool create)
{
    const char *slash = strrchr(path, '/');
    *env = (struct image_env){ .open = open_named, .arg = p };
    snprintf(p->dir, sizeof p->dir, "%.*s", slash ? (int)(slash - path + 1) : 0, path);
    p->create = create;
}

enum image_format format_arg(const char *name)
{
    enum image_format f = image_format_named(name);
    if (f == IMAGE_NONE)
        misused("unknown format", name);
    return f;
}

struct blk *open_image(const char *path, enum image_format f, unsigned flags)
{
    struct image_env env;
    struct place place;
    struct blk *file, *img;
    env_for(&env, &place, path, false);
    int err = host_blk_open(path, flags & IMAGE_WRITE ? HOST_WRITE : 0, &file);
    if (err)
        fail("cannot open", path, err, NULL);
    if (f == IMAGE_NONE) {
        f = image_probe(file);
        if (f == IMAGE_RAW && flags & IMAGE_WRITE)
            fprintf(stderr, "joistimg: warning: '%s' looks like a raw image; state -f raw if it is one\n", path);
    }
    err = image_open(f, file, flags, &env, &img);
    if (err)
        fail("cannot open", path, err, &env);
    return img;
}

void close_image(struct blk *img, const char *path)
{
    int err = img->limits.read_only ? 0 : blk_flush(img);
    if (err)
        fail("cannot write", path, err, NULL);
    blk_close(img);
}

/* ---- Zeroes ---- */

bool is_zero(const uint8_t *p, size_t n)
{
    uint64_t any = 0;
    for (; n >= 64; p += 64, n -= 64) {
        const uint64_t __attribute__((may_alias)) *w = (const void *)p;
        any = w[0] | w[1] | w[2] | w[3] | w[4] | w[5] | w[6] | w[7];
        if (any)
            return false;
    }
    while (n--)
        any |= *p++;
    return !any;
}

bool known_zero(struct blk *b, uint64_t off, uint64_t *len, const char *path)
{
    unsigned what;
    uint64_t at;
    if (!strcmp(b->kind, "host"))
        return host_blk_hole(b, off, len);
    int err = image_map(b, off, len, &what, &at);
    if (err)
        fail("cannot read", path, err, NULL);
    return what & EXTENT_ZERO;
}

/* ---- Progress, in qemu-img's form ---- */

void img_progress(uint64_t done, uint64_t all)
{
    static unsigned shown = ~0u;
    unsigned hundredths = all ? (unsigned)((double)done * 10000 / all) : 10000;
    if (!show_progress || hundredths / 100 == shown)
        return;
    printf("    (%u.%02u/100%%)\r", hundredths / 100, hundredths % 100);
    fflush(stdout);
    shown = hundredths / 100;
}

void img_progress_end(void)
{
    if (show_progress)
        printf("\n");
}
