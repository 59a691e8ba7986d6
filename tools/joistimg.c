/* joistimg: disk images, with the verbs and flags of qemu-img. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "kernel/block/image.h"
#include "kernel/lib/port.h"
#include "tools/hostfile.h"

static const char usage[] =
    "usage: joistimg VERB ...\n"
    "  create [-q] [-f FMT] [-o OPTIONS] [-b BACKING -F FMT] FILE [SIZE]\n"
    "  convert [-cpq] [-f FMT] [-O FMT] [-o OPTIONS] SOURCE DESTINATION\n"
    "  info [-f FMT] [--output=human|json] FILE\n"
    "  check [-q] [-f FMT] [-r leaks|all] [--output=human|json] FILE\n"
    "  resize [-q] [-f FMT] [--shrink] FILE [+|-]SIZE\n"
    "  compare [-pqs] [-f FMT] [-F FMT] FILE1 FILE2\n"
    "formats: raw qcow2 vdi vmdk iso\n"
    "options: cluster_size= compat=0.10|1.1 refcount_bits= lazy_refcounts=on|off compression_type=zlib|zstd\n"
    "         preallocation=off|metadata|falloc|full subformat=monolithicSparse|monolithicFlat static=on|off\n";

static bool quiet, show_progress;
typedef unsigned long long ull;

__attribute__((noreturn)) static void fail(const char *what, const char *object, int err, const struct image_env *env)
{
    const char *why = env && env->error[0] ? env->error : err == -EILSEQ ? "the image is damaged" : strerror(-err);
    fprintf(stderr, "joistimg: %s '%s': %s\n", what, object, why);
    exit(1);
}

__attribute__((noreturn)) static void misused(const char *what, const char *value)
{
    fprintf(stderr, "joistimg: %s '%s'\n%s", what, value, usage);
    exit(2);
}

/* ---- Files of an image, relative to it ---- */

struct place { char dir[4096]; bool create; };

static int open_named(void *arg, const char *name, bool write, struct blk **out)
{
    struct place *p = arg;
    char path[8192];
    if (name[0] == '/')
        snprintf(path, sizeof path, "%s", name);
    else
        snprintf(path, sizeof path, "%s%s", p->dir, name);
    return host_blk_open(path, (write ? HOST_WRITE : 0) | (p->create ? HOST_CREATE : 0), out);
}

static void env_for(struct image_env *env, struct place *p, const char *path, bool create)
{
    const char *slash = strrchr(path, '/');
    *env = (struct image_env){ .open = open_named, .arg = p };
    snprintf(p->dir, sizeof p->dir, "%.*s", slash ? (int)(slash - path + 1) : 0, path);
    p->create = create;
}

static enum image_format format_arg(const char *name)
{
    enum image_format f = image_format_named(name);
    if (f == IMAGE_NONE)
        misused("unknown format", name);
    return f;
}

static struct blk *open_image(const char *path, enum image_format f, unsigned flags)
{
    struct image_env env;
    struct place place;
    struct blk *file, *img;
    env_for(&env, &place, path, false);
    int err = host_blk_open(path, flags & IMAGE_WRITE ? HOST_WRITE : 0, &file);
    if (err)
        fail("cannot open", path, err, NULL);
    if (f == IMAGE_NONE)
        f = image_probe(file);
    err = image_open(f, file, flags, &env, &img);
    if (err)
        fail("cannot open", path, err, &env);
    return img;
}

static void flush_or_fail(struct blk *img, const char *path)
{
    int err = img->limits.read_only ? 0 : blk_flush(img);
    if (err)
        fail("cannot write", path, err, NULL);
}

/* ---- Options ---- */

static bool on(const char *v) { return !strcmp(v, "on") || !strcmp(v, "true"); }

static void one_option(struct image_opts *o, char *opt)
{
    char *v = strchr(opt, '=');
    uint64_t n = 0;
    if (!v)
        misused("option without a value", opt);
    *v++ = 0;
    if (!strcmp(opt, "cluster_size") && parse_size(v, &n))
        o->cluster_size = n;
    else if (!strcmp(opt, "compat"))
        o->version = !strcmp(v, "0.10") || !strcmp(v, "v2") ? 2 : 3;
    else if (!strcmp(opt, "refcount_bits"))
        o->refcount_bits = atoi(v);
    else if (!strcmp(opt, "lazy_refcounts"))
        o->lazy_refcounts = on(v);
    else if (!strcmp(opt, "compression_type"))
        o->zstd = !strcmp(v, "zstd");
    else if (!strcmp(opt, "preallocation"))
        o->prealloc = !strcmp(v, "off") ? PREALLOC_OFF : !strcmp(v, "metadata") ? PREALLOC_METADATA : PREALLOC_FULL;
    else if (!strcmp(opt, "backing_file"))
        o->backing = v;
    else if (!strcmp(opt, "backing_fmt"))
        o->backing_format = format_arg(v);
    else if (!strcmp(opt, "static"))
        o->fixed = on(v);
    else if (!strcmp(opt, "subformat"))
        o->fixed = !strcmp(v, "monolithicFlat"), o->stream = !strcmp(v, "streamOptimized");
    else
        misused("unknown option", opt);
}

static void parse_options(struct image_opts *o, const char *list)
{
    char *copy = strdup(list);          /* kept: values point into it */
    for (char *opt = strtok(copy, ","); opt; opt = strtok(NULL, ","))
        one_option(o, opt);
}

/* ---- Create ---- */

static void create_image(const char *path, enum image_format f, struct image_opts *o)
{
    struct image_env env;
    struct place place;
    struct blk *file;
    char flat[4096];
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path, *dot = strrchr(base, '.');
    env_for(&env, &place, path, true);
    snprintf(flat, sizeof flat, "%.*s-flat.vmdk", dot ? (int)(dot - base) : (int)strlen(base), base);
    o->flat_name = flat;
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

static int cmd_create(int argc, char **argv)
{
    struct image_opts o = { .size = 0 };
    enum image_format f = IMAGE_RAW;
    for (int c; (c = getopt(argc, argv, "qf:o:b:F:u")) != -1; )
        switch (c) {
        case 'q': quiet = true; break;
        case 'f': f = format_arg(optarg); break;
        case 'o': parse_options(&o, optarg); break;
        case 'b': o.backing = optarg; break;
        case 'F': o.backing_format = format_arg(optarg); break;
        case 'u': break;
        default:  return 2;
        }
    if (argc - optind < 1 || argc - optind > 2 || (argc - optind == 1 && !o.backing))
        return 2;
    if (o.backing && !o.backing_format)
        misused("state the backing file's format with -F:", o.backing);
    if (argc - optind == 2 && !parse_size(argv[optind + 1], &o.size))
        misused("not a size:", argv[optind + 1]);
    if (argc - optind == 1)
        o.size = backing_size(argv[optind], &o);
    o.size = ALIGN_UP(o.size, 512ull);
    create_image(argv[optind], f, &o);
    if (!quiet)
        printf("Formatting '%s', fmt=%s size=%llu\n", argv[optind], image_format_name(f), (ull)o.size);
    return 0;
}

/* ---- Convert and compare ---- */

#define COPY_LEN (2u << 20)
#define SPARSE   4096u

static bool is_zero(const uint8_t *p, size_t n)
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

/* Bytes from off on that certainly read as zeroes (without reading them), or that have to be read. */
static bool known_zero(struct blk *b, uint64_t off, uint64_t *len, const char *path)
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

static void write_sparse(struct blk *dst, uint64_t off, const uint8_t *buf, size_t len, const char *path)
{
    for (size_t o = 0; o < len; ) {
        size_t n = 0;
        bool zero = is_zero(buf + o, MIN((size_t)SPARSE, len - o));
        while (o + n < len && (n == 0 || is_zero(buf + o + n, MIN((size_t)SPARSE, len - o - n)) == zero))
            n += MIN((size_t)SPARSE, len - o - n);
        int err = zero ? 0 : image_pwrite(dst, off + o, buf + o, n);
        if (err)
            fail("cannot write", path, err, NULL);
        o += n;
    }
}

static void write_compressed(struct blk *dst, uint64_t off, uint8_t *buf, size_t len, uint32_t cluster, const char *path)
{
    for (size_t o = 0; o < len; o += cluster) {
        size_t n = MIN((size_t)cluster, len - o);
        if (is_zero(buf + o, n))
            continue;
        memset(buf + o + n, 0, cluster - n);
        int err = image_write_compressed(dst, off + o, buf + o, cluster);
        if (err)
            fail("cannot write", path, err, NULL);
    }
}

static void copy_all(struct blk *src, struct blk *dst, const char *from, const char *to, bool compress, uint32_t cluster)
{
    struct progress pr = { .what = "convert", .quiet = !show_progress };
    uint8_t *buf = aligned_alloc(4096, COPY_LEN + (2u << 20));
    uint64_t file_end = src->size;
    for (uint64_t off = 0; off < file_end; ) {
        uint64_t len = file_end - off;
        if (!known_zero(src, off, &len, from) || (compress && len < cluster)) {
            uint64_t most = compress ? MAX(ALIGN_DOWN(COPY_LEN, cluster), cluster) : COPY_LEN;
            len = MIN(compress ? file_end - off : len, most);
            int err = image_pread(src, off, buf, len);
            if (err)
                fail("cannot read", from, err, NULL);
            if (compress)
                write_compressed(dst, off, buf, len, cluster, to);
            else
                write_sparse(dst, off, buf, len, to);
        } else if (compress) {
            len = ALIGN_DOWN(len, (uint64_t)cluster);
        }
        off += len;
        progress_show(&pr, off, file_end);
    }
    progress_end(&pr);
    free(buf);
}

static int cmd_convert(int argc, char **argv)
{
    struct image_opts o = { .size = 0 };
    enum image_format f = IMAGE_NONE, out = IMAGE_RAW;
    bool compress = false;
    for (int c; (c = getopt(argc, argv, "cpqf:O:o:S:t:T:W")) != -1; )
        switch (c) {
        case 'c': compress = true; break;
        case 'p': show_progress = true; break;
        case 'q': quiet = true; break;
        case 'f': f = format_arg(optarg); break;
        case 'O': out = format_arg(optarg); break;
        case 'o': parse_options(&o, optarg); break;
        case 'S': case 't': case 'T': case 'W': break;
        default:  return 2;
        }
    if (argc - optind != 2)
        return 2;
    const char *from = argv[optind], *to = argv[optind + 1];
    struct blk *src = open_image(from, f, 0), *dst;
    struct image_info info;
    o.size = src->size;
    create_image(to, out, &o);
    dst = open_image(to, out, IMAGE_WRITE);
    image_info(dst, &info);
    if (compress && out != IMAGE_QCOW2)
        fail("cannot compress", to, -ENOTSUP, NULL);
    copy_all(src, dst, from, to, compress, info.cluster_size);
    flush_or_fail(dst, to);
    blk_close(dst);
    blk_close(src);
    return 0;
}

static int cmd_compare(int argc, char **argv)
{
    enum image_format f[2] = { IMAGE_NONE, IMAGE_NONE };
    bool strict = false;
    for (int c; (c = getopt(argc, argv, "pqsf:F:")) != -1; )
        switch (c) {
        case 'p': show_progress = true; break;
        case 'q': quiet = true; break;
        case 's': strict = true; break;
        case 'f': f[0] = format_arg(optarg); break;
        case 'F': f[1] = format_arg(optarg); break;
        default:  return 2;
        }
    if (argc - optind != 2)
        return 2;
    struct blk *b[2] = { open_image(argv[optind], f[0], 0), open_image(argv[optind + 1], f[1], 0) };
    uint8_t *buf[2] = { aligned_alloc(4096, COPY_LEN), aligned_alloc(4096, COPY_LEN) };
    uint64_t size[2] = { b[0]->size, b[1]->size }, all = MAX(size[0], size[1]);
    struct progress pr = { .what = "compare", .quiet = !show_progress };
    bool differ = strict && size[0] != size[1];
    uint64_t off = 0;
    if (differ && !quiet)
        printf("Strict mode: Image size mismatch!\n");
    while (!differ && off < all) {
        uint64_t len[2] = { all - off, all - off };
        bool zero = true;
        for (int i = 0; i < 2; i++)
            if (off < size[i])
                len[i] = size[i] - off, zero &= known_zero(b[i], off, &len[i], argv[optind + i]);
        uint64_t n = MIN(len[0], len[1]);
        if (!zero) {
            n = MIN(n, (uint64_t)COPY_LEN);
            for (int i = 0; i < 2; i++) {
                int err = 0;
                if (off < size[i])
                    err = image_pread(b[i], off, buf[i], n);
                else
                    memset(buf[i], 0, n);
                if (err)
                    fail("cannot read", argv[optind + i], err, NULL);
            }
            differ = memcmp(buf[0], buf[1], n);
        }
        if (differ && !quiet) {
            uint64_t o = 0;
            while (buf[0][o] == buf[1][o])
                o++;
            printf("Content mismatch at offset %llu!\n", (ull)(off + o));
        }
        off += n;
        progress_show(&pr, off, all);
    }
    progress_end(&pr);
    if (!differ && size[0] != size[1] && !quiet)
        printf("Warning: Image size mismatch!\n");
    if (!differ && !quiet)
        printf("Images are identical.\n");
    blk_close(b[0]), blk_close(b[1]);
    free(buf[0]), free(buf[1]);
    return differ;
}

/* ---- Info, check, resize ---- */

static bool json_output(const char *v)
{
    if (strcmp(v, "json") && strcmp(v, "human"))
        misused("unknown output", v);
    return !strcmp(v, "json");
}

static const struct option output_opts[] = { { "output", 1, 0, 'O' }, { "shrink", 0, 0, 'S' }, { 0 } };

static void info_json(const char *path, const struct image_info *i, uint64_t actual)
{
    printf("{\n    \"virtual-size\": %llu,\n    \"filename\": \"%s\",\n", (ull)i->virtual_size, path);
    if (i->cluster_size && i->format != IMAGE_RAW)
        printf("    \"cluster-size\": %u,\n", i->cluster_size);
    if (i->backing[0])
        printf("    \"backing-filename\": \"%s\",\n", i->backing);
    if (i->backing_format)
        printf("    \"backing-filename-format\": \"%s\",\n", image_format_name(i->backing_format));
    if (i->format == IMAGE_QCOW2) {
        printf("    \"format-specific\": {\n        \"type\": \"qcow2\",\n        \"data\": {\n            \"compat\": \"%s\",\n"
               "            \"compression-type\": \"%s\",\n", i->version == 2 ? "0.10" : "1.1", i->zstd ? "zstd" : "zlib");
        if (i->version >= 3)
            printf("            \"lazy-refcounts\": %s,\n            \"corrupt\": %s,\n", i->lazy_refcounts ? "true" : "false", i->corrupt ? "true" : "false");
        printf("            \"refcount-bits\": %d\n        }\n    },\n", i->refcount_bits);
    }
    printf("    \"format\": \"%s\",\n    \"actual-size\": %llu,\n    \"dirty-flag\": %s\n}\n", image_format_name(i->format), (ull)actual,
           i->dirty ? "true" : "false");
}

static int cmd_info(int argc, char **argv)
{
    enum image_format f = IMAGE_NONE;
    bool json = false;
    struct image_info i;
    struct stat st;
    for (int c; (c = getopt_long(argc, argv, "f:", output_opts, NULL)) != -1; )
        switch (c) {
        case 'f': f = format_arg(optarg); break;
        case 'O': json = json_output(optarg); break;
        default:  return 2;
        }
    if (argc - optind != 1)
        return 2;
    const char *path = argv[optind];
    struct blk *b = open_image(path, f, IMAGE_NO_BACKING);
    image_info(b, &i);
    if (!strcmp(b->kind, "host") && f != IMAGE_RAW)
        i.format = image_probe(b) == IMAGE_ISO ? IMAGE_ISO : IMAGE_RAW;
    uint64_t actual = stat(path, &st) ? 0 : (uint64_t)st.st_blocks * 512;
    if (json) {
        info_json(path, &i, actual);
    } else {
        printf("image: %s\nfile format: %s\nvirtual size: %llu bytes\ndisk size: %llu bytes\n", path, image_format_name(i.format),
               (ull)i.virtual_size, (ull)actual);
        if (i.cluster_size)
            printf("cluster_size: %u\n", i.cluster_size);
        if (i.backing[0])
            printf("backing file: %s\nbacking file format: %s\n", i.backing, image_format_name(i.backing_format));
        if (i.format == IMAGE_QCOW2)
            printf("compat: %s\ncompression type: %s\nlazy refcounts: %s\nrefcount bits: %d\nsnapshots: %d\n", i.version == 2 ? "0.10" : "1.1",
                   i.zstd ? "zstd" : "zlib", i.lazy_refcounts ? "true" : "false", i.refcount_bits, i.snapshots);
        if (i.subformat[0])
            printf("create type: %s\n", i.subformat);
    }
    blk_close(b);
    return 0;
}

static void say(void *arg, const char *msg)
{
    if (!quiet)
        fprintf(stderr, "%s\n", msg);
}

static int cmd_check(int argc, char **argv)
{
    enum image_format f = IMAGE_NONE;
    struct image_check c = { .say = say };
    bool json = false;
    unsigned fix = 0;
    for (int o; (o = getopt_long(argc, argv, "qf:r:", output_opts, NULL)) != -1; )
        switch (o) {
        case 'q': quiet = true; break;
        case 'f': f = format_arg(optarg); break;
        case 'r': fix = !strcmp(optarg, "leaks") ? CHECK_FIX_LEAKS : CHECK_FIX_LEAKS | CHECK_FIX_ALL; break;
        case 'O': json = json_output(optarg); break;
        default:  return 2;
        }
    if (argc - optind != 1)
        return 2;
    struct blk *b = open_image(argv[optind], f, IMAGE_NO_BACKING | (fix ? IMAGE_WRITE : 0));
    int err = image_check(b, fix, &c);
    enum image_format real = f;
    struct image_info i;
    image_info(b, &i);
    real = i.format;
    if (err == -ENOTSUP) {
        fprintf(stderr, "joistimg: This image format does not support checks\n");
        return 63;
    }
    if (err)
        fail("cannot check", argv[optind], err, NULL);
    uint64_t bad = c.corruptions - c.errors_fixed, leaks = c.leaks - c.leaks_fixed;
    if (json)
        printf("{\n    \"image-end-offset\": %llu,\n    \"total-clusters\": %llu,\n    \"check-errors\": 0,\n    \"corruptions\": %llu,\n"
               "    \"leaks\": %llu,\n    \"allocated-clusters\": %llu,\n    \"compressed-clusters\": %llu,\n    \"fragmented-clusters\": %llu,\n"
               "    \"filename\": \"%s\",\n    \"format\": \"%s\"\n}\n", (ull)c.end, (ull)c.total, (ull)bad, (ull)leaks, (ull)c.allocated,
               (ull)c.compressed, (ull)c.fragmented, argv[optind], image_format_name(real));
    else if (!quiet)
        printf("%llu errors, %llu leaked clusters%s.\n%llu/%llu clusters allocated, %llu fragmented, %llu compressed\nImage end offset: %llu\n",
               (ull)bad, (ull)leaks, c.errors_fixed + c.leaks_fixed ? " left after repairs" : "", (ull)c.allocated, (ull)c.total,
               (ull)c.fragmented, (ull)c.compressed, (ull)c.end);
    blk_close(b);
    return bad ? 2 : leaks ? 3 : 0;
}

static int cmd_resize(int argc, char **argv)
{
    enum image_format f = IMAGE_NONE;
    bool shrink = false;
    uint64_t n;
    for (int c; (c = getopt_long(argc, argv, "+qf:", output_opts, NULL)) != -1; )
        switch (c) {
        case 'q': quiet = true; break;
        case 'f': f = format_arg(optarg); break;
        case 'S': shrink = true; break;
        default:  return 2;
        }
    if (argc - optind != 2)
        return 2;
    const char *path = argv[optind], *size = argv[optind + 1];
    if (!parse_size(size + (*size == '+' || *size == '-'), &n))
        misused("not a size:", size);
    struct blk *b = open_image(path, f, IMAGE_WRITE);
    uint64_t to = *size == '+' ? b->size + n : *size == '-' ? b->size - MIN(n, b->size) : n;
    to = ALIGN_UP(to, 512ull);
    if (to < b->size && !shrink) {
        fprintf(stderr, "joistimg: Use the --shrink option to perform a shrink operation; what lies behind the new end is lost.\n");
        return 1;
    }
    int err = image_resize(b, to, shrink);
    if (err)
        fail("cannot resize", path, err, NULL);
    flush_or_fail(b, path);
    blk_close(b);
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
    for (size_t i = 0; argc > 1 && i < ARRAY_SIZE(verbs); i++)
        if (!strcmp(argv[1], verbs[i].name)) {
            int status = verbs[i].fn(argc - 1, argv + 1);
            if (status == 2 && verbs[i].fn != cmd_check)
                fputs(usage, stderr);
            return status;
        }
    fputs(usage, stderr);
    return 2;
}
