/* joistimg info and check, with qemu-img's texts and JSON keys. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include "tools/img.h"

typedef unsigned long long ull;

static const struct option output_opts[] = { { "output", 1, 0, 'O' }, { "repair", 1, 0, 'r' }, { "force-share", 0, 0, 'U' }, { 0 } };

static bool json_output(const char *v)
{
    if (strcmp(v, "json") && strcmp(v, "human"))
        misused("--output must be used with human or json as argument, not", v);
    return !strcmp(v, "json");
}

/* ---- JSON: an object or array per call of json_open, members between ---- */

static int depth;
static bool first;

static void json_key(const char *key)
{
    printf("%s\n%*s", first ? "" : ",", 4 * depth, "");
    if (key)
        printf("\"%s\": ", key);
    first = false;
}

static void json_open(const char *key, char bracket)
{
    if (depth)
        json_key(key);
    putchar(bracket);
    depth++, first = true;
}

static void json_close(char bracket)
{
    depth--, first = false;
    printf("\n%*s%c", 4 * depth, "", bracket);
}

static void json_string(const char *key, const char *s)
{
    json_key(key);
    putchar('"');
    for (; *s; s++)
        if (*s == '"' || *s == '\\')
            printf("\\%c", *s);
        else if ((unsigned char)*s < 32)
            printf("\\u%04x", *s);
        else
            putchar(*s);
    putchar('"');
}

static void json_number(const char *key, uint64_t n)
{
    json_key(key);
    printf("%llu", (ull)n);
}

static void json_bool(const char *key, bool v)
{
    json_key(key);
    fputs(v ? "true" : "false", stdout);
}

/* ---- Info ---- */

struct subject { struct blk *b; const char *path; struct image_info i; uint64_t actual; char full_backing[8192]; };

static uint64_t disk_usage(const char *path)
{
    struct stat st;
    return stat(path, &st) ? 0 : (uint64_t)st.st_blocks * 512;
}

/* Beside the image, unless the name is absolute. */
static void beside(char *out, size_t room, const char *image, const char *name)
{
    const char *slash = strrchr(image, '/');
    snprintf(out, room, "%.*s%s", name[0] != '/' && slash ? (int)(slash - image + 1) : 0, image, name);
}

static void look(struct subject *s, enum image_format f)
{
    char extent[8192];
    image_info(s->b, &s->i);
    if (!strcmp(s->b->kind, "host"))
        s->i.format = f == IMAGE_ISO || (f == IMAGE_NONE && image_probe(s->b) == IMAGE_ISO) ? IMAGE_ISO : IMAGE_RAW;
    s->actual = disk_usage(s->path);
    if (s->i.extent[0]) {
        beside(extent, sizeof extent, s->path, s->i.extent);
        s->actual += disk_usage(extent);
    }
    beside(s->full_backing, sizeof s->full_backing, s->path, s->i.backing);
}

static void json_snapshots(const struct subject *s)
{
    struct image_snapshot n;
    json_open("snapshots", '[');
    for (int k = 0; !image_snapshot(s->b, k, &n); k++) {
        json_open(NULL, '{');
        if (n.icount != UINT64_MAX)
            json_number("icount", n.icount);
        json_number("vm-clock-nsec", n.clock_ns % 1000000000);
        json_string("name", n.name);
        json_number("date-sec", n.date_sec);
        json_number("date-nsec", n.date_nsec);
        json_number("vm-clock-sec", n.clock_ns / 1000000000);
        json_string("id", n.id);
        json_number("vm-state-size", n.state_size);
        json_close('}');
    }
    json_close(']');
}

static void json_qcow2(const struct image_info *i)
{
    json_string("compat", i->version == 2 ? "0.10" : "1.1");
    json_string("compression-type", i->zstd ? "zstd" : "zlib");
    if (i->version >= 3)
        json_bool("lazy-refcounts", i->lazy_refcounts);
    json_number("refcount-bits", i->refcount_bits);
    if (i->version >= 3) {
        json_bool("corrupt", i->corrupt);
        json_bool("extended-l2", false);
    }
}

static void json_vmdk(const struct subject *s)
{
    char extent[8192];
    beside(extent, sizeof extent, s->path, s->i.extent);
    json_number("cid", s->i.cid);
    json_number("parent-cid", s->i.parent_cid);
    json_string("create-type", s->i.subformat);
    json_open("extents", '[');
    json_open(NULL, '{');
    if (s->i.compressed)
        json_bool("compressed", true);
    json_number("virtual-size", s->i.virtual_size);
    json_string("filename", s->i.fixed ? extent : s->path);
    if (!s->i.fixed)
        json_number("cluster-size", s->i.cluster_size);
    json_string("format", s->i.fixed ? "FLAT" : "");
    json_close('}');
    json_close(']');
}

static void info_json(const struct subject *s)
{
    const struct image_info *i = &s->i;
    json_open(NULL, '{');
    if (i->backing_format)
        json_string("backing-filename-format", image_format_name(i->backing_format));
    if (i->snapshots)
        json_snapshots(s);
    json_number("virtual-size", i->virtual_size);
    json_string("filename", s->path);
    if (i->cluster_size && !i->extent[0])
        json_number("cluster-size", i->cluster_size);
    json_string("format", image_format_name(i->format));
    json_number("actual-size", s->actual);
    if (i->format == IMAGE_QCOW2 || i->format == IMAGE_VMDK) {
        json_open("format-specific", '{');
        json_string("type", image_format_name(i->format));
        json_open("data", '{');
        if (i->format == IMAGE_QCOW2)
            json_qcow2(i);
        else
            json_vmdk(s);
        json_close('}');
        json_close('}');
    }
    if (i->backing[0]) {
        json_string("full-backing-filename", s->full_backing);
        json_string("backing-filename", i->backing);
    }
    json_bool("dirty-flag", i->dirty);
    json_close('}');
    putchar('\n');
}

/* As short as three digits allow: 1.5 GiB. */
static void size_text(char *out, size_t room, uint64_t n)
{
    static const char unit[][4] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
    double v = n;
    int u = 0;
    for (; v >= 1000 && u < 6; u++)
        v /= 1024;
    snprintf(out, room, "%0.3g %s", v, unit[u]);
}

static void human_snapshots(const struct subject *s)
{
    struct image_snapshot n;
    printf("Snapshot list:\n%-10s%-17s%8s%20s%13s%11s\n", "ID", "TAG", "VM SIZE", "DATE", "VM CLOCK", "ICOUNT");
    for (int k = 0; !image_snapshot(s->b, k, &n); k++) {
        char date[32], size[64], clock[64], icount[24] = "";
        uint64_t s_clock = n.clock_ns / 1000000000;
        time_t t = n.date_sec;
        size_text(size, sizeof size, n.state_size);
        snprintf(clock, sizeof clock, "%02u:%02u:%02u.%03u", (unsigned)(s_clock / 3600), (unsigned)(s_clock / 60 % 60), (unsigned)(s_clock % 60),
                 (unsigned)(n.clock_ns / 1000000 % 1000));
        if (n.icount != UINT64_MAX)
            snprintf(icount, sizeof icount, "%llu", (ull)n.icount);
        strftime(date, sizeof date, "%Y-%m-%d %H:%M:%S", localtime(&t));
        printf("%-9s %-16s %8s%20s%13s%11s\n", n.id, n.name, size, date, clock, icount);
    }
}

static void human_vmdk(const struct subject *s)
{
    const struct image_info *i = &s->i;
    char extent[8192];
    beside(extent, sizeof extent, s->path, i->extent);
    printf("Format specific information:\n    cid: %u\n    parent cid: %u\n    create type: %s\n    extents:\n        [0]:\n", i->cid, i->parent_cid, i->subformat);
    if (i->compressed)
        printf("            compressed: true\n");
    printf("            virtual size: %llu\n            filename: %s\n", (ull)i->virtual_size, i->fixed ? extent : s->path);
    if (!i->fixed)
        printf("            cluster size: %u\n", i->cluster_size);
    printf("            format: %s\n", i->fixed ? "FLAT" : "");
}

static void info_human(const struct subject *s)
{
    const struct image_info *i = &s->i;
    char size[64];
    printf("image: %s\nfile format: %s\n", s->path, image_format_name(i->format));
    size_text(size, sizeof size, i->virtual_size);
    printf("virtual size: %s (%llu bytes)\n", size, (ull)i->virtual_size);
    size_text(size, sizeof size, s->actual);
    printf("disk size: %s\n", size);
    if (i->cluster_size && !i->extent[0])
        printf("cluster_size: %u\n", i->cluster_size);
    if (i->backing[0]) {
        printf("backing file: %s", i->backing);
        if (strcmp(i->backing, s->full_backing))
            printf(" (actual path: %s)", s->full_backing);
        putchar('\n');
    }
    if (i->backing_format)
        printf("backing file format: %s\n", image_format_name(i->backing_format));
    if (i->snapshots)
        human_snapshots(s);
    if (i->format == IMAGE_QCOW2) {
        printf("Format specific information:\n    compat: %s\n    compression type: %s\n", i->version == 2 ? "0.10" : "1.1", i->zstd ? "zstd" : "zlib");
        if (i->version >= 3)
            printf("    lazy refcounts: %s\n", i->lazy_refcounts ? "true" : "false");
        printf("    refcount bits: %d\n", i->refcount_bits);
        if (i->version >= 3)
            printf("    corrupt: %s\n    extended l2: false\n", i->corrupt ? "true" : "false");
    } else if (i->format == IMAGE_VMDK) {
        human_vmdk(s);
    }
    if (i->dirty)
        printf("cleanly shut down: no\n");
}

int cmd_info(int argc, char **argv)
{
    enum image_format f = IMAGE_NONE;
    bool json = false;
    for (int c; (c = getopt_long(argc, argv, "f:U", output_opts, NULL)) != -1; )
        switch (c) {
        case 'f': f = format_arg(optarg); break;
        case 'O': json = json_output(optarg); break;
        case 'U': break;
        default:  return USAGE;
        }
    if (argc - optind != 1)
        return USAGE;
    struct subject s = { .path = argv[optind] };
    s.b = open_image(s.path, f, IMAGE_NO_BACKING);
    look(&s, f);
    if (json)
        info_json(&s);
    else
        info_human(&s);
    blk_close(s.b);
    return 0;
}

/* ---- Check ---- */

static void say(void *arg, const char *msg)
{
    if (!quiet)
        fprintf(stderr, "%s\n", msg);
}

static void json_unless_zero(const char *key, uint64_t n)
{
    if (n)
        json_number(key, n);
}

static void check_json(const struct image_check *c, const struct image_info *i, const char *path)
{
    bool counts = i->format == IMAGE_QCOW2;
    json_open(NULL, '{');
    json_unless_zero("corruptions-fixed", c->errors_fixed);
    json_unless_zero("leaks-fixed", c->leaks_fixed);
    json_unless_zero("image-end-offset", counts ? c->end : 0);
    json_unless_zero("total-clusters", counts ? c->total : 0);
    json_unless_zero("allocated-clusters", counts ? c->allocated : 0);
    json_unless_zero("fragmented-clusters", counts ? c->fragmented : 0);
    json_unless_zero("compressed-clusters", counts ? c->compressed : 0);
    json_unless_zero("corruptions", c->corruptions - c->errors_fixed);
    json_unless_zero("leaks", c->leaks - c->leaks_fixed);
    json_number("check-errors", 0);
    json_string("filename", path);
    json_string("format", image_format_name(i->format));
    json_close('}');
    putchar('\n');
}

static void check_human(const struct image_check *c, const struct image_info *i)
{
    uint64_t bad = c->corruptions - c->errors_fixed, leaks = c->leaks - c->leaks_fixed;
    if (c->errors_fixed + c->leaks_fixed)
        printf("The following inconsistencies were found and repaired:\n\n    %llu leaked clusters\n    %llu corruptions\n\n", (ull)c->leaks_fixed,
               (ull)c->errors_fixed);
    if (!bad && !leaks)
        printf("No errors were found on the image.\n");
    if (bad)
        printf("\n%llu errors were found on the image.\nData may be corrupted, or further writes to the image may corrupt it.\n", (ull)bad);
    if (leaks)
        printf("\n%llu leaked clusters were found on the image.\nThis means waste of disk space, but no harm to data.\n", (ull)leaks);
    if (i->format == IMAGE_QCOW2 && c->total && c->allocated)
        printf("%llu/%llu = %.2f%% allocated, %.2f%% fragmented, %.2f%% compressed clusters\n", (ull)c->allocated, (ull)c->total,
               c->allocated * 100.0 / c->total, c->fragmented * 100.0 / c->allocated, c->compressed * 100.0 / c->allocated);
    if (i->format == IMAGE_QCOW2)
        printf("Image end offset: %llu\n", (ull)c->end);
}

static unsigned repair_arg(const char *v)
{
    if (strcmp(v, "leaks") && strcmp(v, "all"))
        misused("unknown option value for -r (expecting 'leaks' or 'all'):", v);
    return !strcmp(v, "leaks") ? CHECK_FIX_LEAKS : CHECK_FIX_LEAKS | CHECK_FIX_ALL;
}

int cmd_check(int argc, char **argv)
{
    enum image_format f = IMAGE_NONE;
    struct image_check c = { .say = say };
    struct image_info i;
    bool json = false;
    unsigned fix = 0;
    for (int o; (o = getopt_long(argc, argv, "qf:r:T:U", output_opts, NULL)) != -1; )
        switch (o) {
        case 'q': quiet = true; break;
        case 'f': f = format_arg(optarg); break;
        case 'r': fix = repair_arg(optarg); break;
        case 'O': json = json_output(optarg); break;
        case 'T': case 'U': break;
        default:  return USAGE;
        }
    if (argc - optind != 1)
        return USAGE;
    const char *path = argv[optind];
    struct blk *b = open_image(path, f, IMAGE_NO_BACKING | (fix ? IMAGE_WRITE | IMAGE_REPAIR : 0));
    int err = image_check(b, fix, &c);
    image_info(b, &i);
    if (err == -ENOTSUP) {
        fprintf(stderr, "joistimg: This image format does not support checks\n");
        return 63;
    }
    if (err)
        fail("cannot check", path, err, NULL);
    if (json)
        check_json(&c, &i, path);
    else if (!quiet)
        check_human(&c, &i);
    blk_close(b);
    return c.corruptions > c.errors_fixed ? 2 : c.leaks > c.leaks_fixed ? 3 : 0;
}
