/* joistimg: disk images, with the verbs, flags, texts and exit statuses of qemu-img. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "tools/img.h"

static const char usage[] =
    "usage: joistimg VERB ...\n"
    "  create [-q] [-f FMT] [-o OPTIONS] [-b BACKING -F FMT] FILE [SIZE]\n"
    "  convert [-cpq] [-f FMT] [-O FMT] [-o OPTIONS] SOURCE DESTINATION\n"
    "  info [-f FMT] [--output=human|json] FILE\n"
    "  check [-q] [-f FMT] [-r leaks|all] [--output=human|json] FILE\n"
    "  resize [-q] [-f FMT] [--shrink] FILE [+|-]SIZE\n"
    "  compare [-pqs] [-f FMT] [-F FMT] FILE1 FILE2\n"
    "formats: raw qcow2 vdi vmdk iso (iso is read only)\n"
    "options: cluster_size= compat=0.10|1.1 refcount_bits= lazy_refcounts=on|off compression_type=zlib|zstd extended_l2=off\n"
    "         preallocation=off|metadata|falloc|full subformat=monolithicSparse|monolithicFlat static=on|off\n";

typedef unsigned long long ull;

/* ---- Options ---- */

/* The place of v in a list of words; ends the program if it is not there. */
static int one_of(const char *key, const char *v, const char *const *words)
{
    char what[128];
    for (int i = 0; words[i]; i++)
        if (!strcmp(v, words[i]))
            return i;
    snprintf(what, sizeof what, "option %s cannot be", key);
    misused(what, v);
}

static bool on(const char *key, const char *v) { return one_of(key, v, (const char *const[]){ "off", "on", "false", "true", "no", "yes", NULL }) % 2; }

static uint64_t number(const char *key, const char *v)
{
    uint64_t n;
    char what[128];
    snprintf(what, sizeof what, "option %s needs a number, not", key);
    if (!parse_size(v, &n))
        misused(what, v);
    return n;
}

static void one_option(struct image_opts *o, char *opt)
{
    char *v = strchr(opt, '=');
    if (!v)
        misused("option without a value", opt);
    *v++ = 0;
    if (!strcmp(opt, "cluster_size")) {
        uint64_t n = number(opt, v);
        o->cluster_size = n && n <= UINT32_MAX ? n : 1;         /* 1: no size that a format allows */
    } else if (!strcmp(opt, "compat")) {
        o->version = one_of(opt, v, (const char *const[]){ "0.10", "1.1", "v2", "v3", NULL }) % 2 + 2;
    } else if (!strcmp(opt, "refcount_bits")) {
        o->refcount_bits = (int)MIN(number(opt, v), 1000ull);
        o->refcount_bits = o->refcount_bits ? o->refcount_bits : 1000;
    } else if (!strcmp(opt, "lazy_refcounts")) {
        o->lazy_refcounts = on(opt, v);
    } else if (!strcmp(opt, "compression_type")) {
        o->zstd = one_of(opt, v, (const char *const[]){ "zlib", "zstd", NULL });
    } else if (!strcmp(opt, "preallocation")) {
        o->prealloc = MIN(one_of(opt, v, (const char *const[]){ "off", "metadata", "falloc", "full", NULL }), (int)PREALLOC_FULL);
    } else if (!strcmp(opt, "extended_l2")) {
        if (on(opt, v))
            misused("images with subclusters are not supported:", "extended_l2=on");
    } else if (!strcmp(opt, "backing_file")) {
        o->backing = v;
    } else if (!strcmp(opt, "backing_fmt")) {
        o->backing_format = format_arg(v);
    } else if (!strcmp(opt, "static")) {
        o->fixed = on(opt, v);
    } else if (!strcmp(opt, "subformat")) {
        int which = one_of(opt, v, (const char *const[]){ "monolithicSparse", "monolithicFlat", "streamOptimized", NULL });
        o->fixed = which == 1, o->stream = which == 2;
    } else {
        misused("unknown option", opt);
    }
}

void parse_options(struct image_opts *o, const char *list)
{
    char *copy = strdup(list);          /* kept: values point into it */
    for (char *opt = strtok(copy, ","); opt; opt = strtok(NULL, ","))
        one_option(o, opt);
}

/* ---- Create ---- */

void create_image(const char *path, enum image_format f, struct image_opts *o)
{
    struct image_env env;
    struct place place;
    struct blk *file;
    char flat[4096];
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path, *dot = strrchr(base, '.');
    env_for(&env, &place, path, true);
    snprintf(flat, sizeof flat, "%.*s-flat.vmdk", dot ? (int)(dot - base) : (int)strlen(base), base);
    o->flat_name = flat;
    if (f == IMAGE_ISO)
        misused("images of this format cannot be made:", "iso");
    int err = host_blk_open(path, HOST_WRITE | HOST_CREATE, &file);
    if (err)
        fail("cannot make", path, err, NULL);
    err = image_create(f, file, o, &env);
    if (!err && f == IMAGE_RAW && o->prealloc == PREALLOC_FULL)
        err = blk_write_zeroes(file, 0, file->size, 0);
    if (err) {
        unlink(path);
        fail("cannot make", path, err, &env);
    }
    blk_close(file);
}

static uint64_t backing_size(const char *path, const struct image_opts *o)
{
    char full[8192];
    const char *slash = strrchr(path, '/');
    snprintf(full, sizeof full, "%.*s%s", o->backing[0] != '/' && slash ? (int)(slash - path + 1) : 0, path, o->backing);
    struct blk *b = open_image(full, o->backing_format, 0);
    uint64_t size = b->size;
    blk_close(b);
    return size;
}

static uint64_t size_arg(const char *s)
{
    uint64_t n;
    if (!parse_size(s, &n) || n > INT64_MAX - 511)
        misused("not a size:", s);
    return ALIGN_UP(n, 512ull);
}

static int cmd_create(int argc, char **argv)
{
    struct image_opts o = { .size = 0 };
    enum image_format f = IMAGE_RAW;
    bool unsafe = false;
    for (int c; (c = getopt(argc, argv, "qf:o:b:F:u")) != -1; )
        switch (c) {
        case 'q': quiet = true; break;
        case 'f': f = format_arg(optarg); break;
        case 'o': parse_options(&o, optarg); break;
        case 'b': o.backing = optarg; break;
        case 'F': o.backing_format = format_arg(optarg); break;
        case 'u': unsafe = true; break;
        default:  return USAGE;
        }
    if (argc - optind < 1 || argc - optind > 2 || (argc - optind == 1 && !o.backing))
        return USAGE;
    const char *path = argv[optind];
    if (o.backing && f != IMAGE_QCOW2)
        misused("only qcow2 images have a backing file, not", image_format_name(f));
    if (o.backing && !o.backing_format)
        misused("state the backing file's format with -F:", o.backing);
    if (o.backing && !unsafe)
        o.size = backing_size(path, &o);        /* it must be there */
    if (argc - optind == 2)
        o.size = size_arg(argv[optind + 1]);
    create_image(path, f, &o);
    if (!quiet)
        printf("Formatting '%s', fmt=%s size=%llu\n", path, image_format_name(f), (ull)o.size);
    return 0;
}

/* ---- Resize ---- */

static const struct option resize_opts[] = { { "shrink", 0, 0, 'S' }, { 0 } };

static int cmd_resize(int argc, char **argv)
{
    enum image_format f = IMAGE_NONE;
    struct image_env env = { .open = NULL };
    bool shrink = false;
    for (int c; (c = getopt_long(argc, argv, "+qf:", resize_opts, NULL)) != -1; )
        switch (c) {
        case 'q': quiet = true; break;
        case 'f': f = format_arg(optarg); break;
        case 'S': shrink = true; break;
        default:  return USAGE;
        }
    if (argc - optind != 2)
        return USAGE;
    const char *path = argv[optind], *size = argv[optind + 1];
    uint64_t n = size_arg(size + (*size == '+' || *size == '-'));
    struct blk *b = open_image(path, f, IMAGE_WRITE);
    uint64_t to = *size == '+' ? b->size + n : *size == '-' ? b->size - MIN(n, b->size) : n;
    if (to < b->size && !shrink) {
        fprintf(stderr, "joistimg: Use the --shrink option to perform a shrink operation; what lies behind the new end is lost.\n");
        return 1;
    }
    int err = image_resize(b, to, shrink, &env);
    if (err)
        fail("cannot resize", path, err, &env);
    close_image(b, path);
    if (!quiet)
        printf("Image resized.\n");
    return 0;
}

static const struct { const char *name; int (*fn)(int, char **); } verbs[] = {
    { "create", cmd_create }, { "convert", cmd_convert }, { "info", cmd_info }, { "check", cmd_check }, { "resize", cmd_resize },
    { "compare", cmd_compare },
};

int main(int argc, char **argv)
{
    if (argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))) {
        fputs(usage, stdout);
        return 0;
    }
    for (size_t i = 0; argc > 1 && i < ARRAY_SIZE(verbs); i++)
        if (!strcmp(argv[1], verbs[i].name)) {
            int status = verbs[i].fn(argc - 1, argv + 1);
            if (status == USAGE)
                fputs(usage, stderr);
            return status == USAGE ? failure : status;
        }
    fputs(usage, stderr);
    return 1;
}
