/* joistfs: pools of the Joist file system as files or disks of a Linux host. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "kernel/fs/fs.h"
#include "kernel/lib/port.h"
#include "tools/hostfile.h"

static const char usage[] =
    "usage: joistfs VERB ...\n"
    "  mkfs [-L LABEL] [-s SIZE] [--csum] POOL   make a pool (-s also makes or extends the file POOL)\n"
    "  fsck [-y] [--data] POOL                   check everything; -y repairs, --data reads checksummed data\n"
    "  ls [-l] POOL [PATH]                       names, with -l sizes, allocated sizes and times\n"
    "  cp [-q] [--csum] SOURCE... DESTINATION    in and out of pools; what is in a pool is POOL:PATH\n"
    "  df [--json] POOL                          space\n"
    "  scrub POOL                                read all metadata and checksummed data\n"
    "  mkdir POOL PATH | rm POOL PATH | mv POOL FROM TO | clone POOL FROM TO | grow POOL [SIZE] | trim POOL\n";

static bool quiet;

/* Says it; returns the exit status. */
static int complain(const char *what, const char *object, int err)
{
    const char *why = err == -EILSEQ ? "damaged, or not a pool" : err == -EBUSY ? "in use" : err == -ENOSPC ? "no space left" :
        err == -EISDIR ? "is a directory" : err == -ENOTDIR ? "is not a directory" : strerror(-err);
    fprintf(stderr, "joistfs: %s %s: %s\n", what, *object ? object : "/", why);
    return err == -ENOENT ? 3 : err == -EEXIST || err == -EBUSY ? 4 : err == -ENOSPC || err == -ENOMEM ? 6 :
        err == -EIO || err == -EILSEQ ? 8 : 1;
}

__attribute__((noreturn)) static void fail(const char *what, const char *object, int err) { exit(complain(what, object, err)); }

/* ---- A mounted pool ---- */

struct pool { struct blk *dev; struct fs *fs; };

static struct pool pool_open(const char *path, unsigned flags)
{
    struct pool p;
    int err = host_blk_open(path, HOST_LOCK | (flags & FS_RDONLY ? 0 : HOST_WRITE | HOST_SYNC), &p.dev);
    if (err)
        fail("cannot open", path, err);
    err = fs_mount(p.dev, flags, &p.fs);
    if (err)
        fail("cannot mount", path, err);
    return p;
}

static void pool_close(struct pool *p, const char *path)
{
    int err = fs_unmount(p->fs);
    if (err)
        fail("cannot write", path, err);
    blk_close(p->dev);
}

/* ---- Verbs ---- */

static int cmd_mkfs(int argc, char **argv)
{
    struct fs_mkfs_opts o = { .flags = 0 };
    static const struct option opts[] = { { "label", 1, 0, 'L' }, { "size", 1, 0, 's' }, { "csum", 0, 0, 'c' }, { 0 } };
    struct blk *dev;
    uint64_t size = 0;
    for (int c; (c = getopt_long(argc, argv, "L:s:c", opts, NULL)) != -1; ) {
        if (c == 'L')
            strncpy(o.label, optarg, sizeof o.label - 1);
        else if (c == 'c')
            o.flags |= FS_CSUM_DATA;
        else if (c != 's' || !parse_size(optarg, &size))
            return 2;
    }
    if (argc - optind != 1)
        return 2;
    const char *path = argv[optind];
    if (size && access(path, F_OK))
        close(open(path, O_CREAT | O_WRONLY, 0644));
    int err = host_blk_open(path, HOST_LOCK | HOST_WRITE | HOST_SYNC, &dev);
    if (!err && size > dev->size)
        err = blk_resize(dev, size);
    o.size = size;
    if (!err)
        err = fs_mkfs(dev, &o);
    if (err == -ENOSPC) {
        fprintf(stderr, "joistfs: cannot make a pool in %s: it needs at least 4 MiB (-s SIZE makes or extends a file)\n", path);
        return 6;
    }
    if (err)
        fail("cannot make a pool in", path, err);
    blk_close(dev);
    return 0;
}

static void say(void *arg, const char *msg) { printf("%s\n", msg); }
static void show(void *arg, uint64_t done, uint64_t all) { progress_show(arg, done, all); }

static int report(const struct fs_report *r, bool checked)
{
    printf("%llu files, %llu directories, %llu tree nodes", (unsigned long long)r->files, (unsigned long long)r->dirs, (unsigned long long)r->nodes);
    if (r->data_blocks)
        printf(", %llu data blocks", (unsigned long long)r->data_blocks);
    if (checked && r->orphans)
        printf(", %llu waiting to be freed", (unsigned long long)r->orphans);
    printf(": %llu errors", (unsigned long long)r->errors);
    if (r->fixed)
        printf(", repaired%s", r->left ? " in part: run fsck again" : "");
    if (r->lost_found)
        printf(", %llu without a name are now in lost+found", (unsigned long long)r->lost_found);
    if (r->bad_data)
        printf(", %llu data blocks are damaged and stay so", (unsigned long long)r->bad_data);
    printf("\n");
    return (r->errors && !r->fixed) || r->left || r->bad_data ? 8 : 0;
}

static int cmd_fsck(int argc, char **argv)
{
    static const struct option opts[] = { { "yes", 0, 0, 'y' }, { "data", 0, 0, 'd' }, { 0 } };
    unsigned flags = 0;
    for (int c; (c = getopt_long(argc, argv, "yd", opts, NULL)) != -1; ) {
        if (c == '?')
            return 2;
        flags |= c == 'y' ? FS_CHECK_REPAIR : FS_CHECK_DATA;
    }
    if (argc - optind != 1)
        return 2;
    struct progress pr = { .what = "fsck", .quiet = !isatty(2) };
    struct fs_report r = { .say = say, .progress = show, .arg = &pr };
    struct pool p = pool_open(argv[optind], flags & FS_CHECK_REPAIR ? FS_SALVAGE : FS_RDONLY);
    int err = fs_check(p.fs, flags, &r);
    progress_end(&pr);
    if (err)
        fail("cannot check", argv[optind], err);
    int status = report(&r, true);
    pool_close(&p, argv[optind]);
    return status;
}

static int cmd_scrub(int argc, char **argv)
{
    if (argc != 2)
        return 2;
    struct progress pr = { .what = "scrub", .quiet = !isatty(2) };
    struct fs_report r = { .say = say, .progress = show, .arg = &pr };
    struct pool p = pool_open(argv[1], FS_RDONLY);
    int err = fs_scrub(p.fs, &r);
    progress_end(&pr);
    if (err)
        fail("cannot scrub", argv[1], err);
    int status = report(&r, false);
    pool_close(&p, argv[1]);
    return status;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct fs_dirent *)a)->name, ((const struct fs_dirent *)b)->name);
}

/* What a terminal would obey shows as '?'; programs get the name as it is. */
static void print_name(const struct fs_dirent *d)
{
    bool raw = !isatty(1);
    for (const char *p = d->name; *p; p++)
        putchar(raw || ((*p < 0 || *p >= ' ') && *p != 127) ? *p : '?');
    printf("%s\n", d->dir ? "/" : "");
}

static void list_one(struct fs *fs, const char *dir, const struct fs_dirent *d, bool lng)
{
    char path[4096], when[32];
    struct fs_stat st;
    if (!lng) {
        print_name(d);
        return;
    }
    snprintf(path, sizeof path, "%s/%s", dir, d->name);
    int err = fs_stat(fs, path, &st);
    if (err)
        fail("cannot look at", path, err);
    time_t t = st.mtime / 1000000000;
    strftime(when, sizeof when, "%Y-%m-%d %H:%M", localtime(&t));
    printf("%c%c %15llu %15llu %s ", st.dir ? 'd' : '-', st.csum ? 'c' : '-', (unsigned long long)st.size, (unsigned long long)st.allocated, when);
    print_name(d);
}

static int cmd_ls(int argc, char **argv)
{
    bool lng = argc > 1 && !strcmp(argv[1], "-l");
    argv += lng, argc -= lng;
    if (argc < 2 || argc > 3)
        return 2;
    const char *path = argc > 2 ? argv[2] : "";
    struct pool p = pool_open(argv[1], FS_RDONLY);
    struct fs_dirent *all = NULL, d = { .cookie = 0 };
    size_t n = 0;
    int err;
    while (!(err = fs_readdir(p.fs, path, d.cookie, &d))) {
        all = realloc(all, (n + 1) * sizeof *all);
        all[n++] = d;
    }
    if (err != -ENOENT || (!n && *path && fs_stat(p.fs, path, &(struct fs_stat){ 0 })))
        fail("cannot list", path, err);
    if (n)
        qsort(all, n, sizeof *all, by_name);
    for (size_t i = 0; i < n; i++)
        list_one(p.fs, path, &all[i], lng);
    free(all);
    pool_close(&p, argv[1]);
    return 0;
}

static int cmd_df(int argc, char **argv)
{
    bool json = argc > 1 && !strcmp(argv[1], "--json");
    struct fs_usage u;
    argv += json, argc -= json;
    if (argc != 2)
        return 2;
    struct pool p = pool_open(argv[1], FS_RDONLY);
    fs_usage(p.fs, &u);
    if (json)
        printf("{\"schema\":1,\"label\":\"%.32s\",\"size\":%llu,\"used\":%llu,\"free\":%llu,\"overhead\":%llu,\"files\":%llu}\n", u.label,
               (unsigned long long)u.size, (unsigned long long)u.used, (unsigned long long)u.free, (unsigned long long)u.overhead,
               (unsigned long long)u.files);
    else
        printf("%-16s %15s %15s %15s %15s %10s\n%-16.32s %15llu %15llu %15llu %15llu %10llu\n", "LABEL", "SIZE", "USED", "FREE", "OVERHEAD", "FILES",
               *u.label ? u.label : "-", (unsigned long long)u.size, (unsigned long long)u.used, (unsigned long long)u.free,
               (unsigned long long)u.overhead, (unsigned long long)u.files);
    pool_close(&p, argv[1]);
    return 0;
}

/* ---- Copying ---- */

#define COPY_LEN (1u << 20)

static int copy_in(struct fs_file *f, int fd, uint64_t size, const char *name)
{
    struct progress pr = { .what = name, .quiet = quiet };
    char *buf = malloc(COPY_LEN);
    int err = fs_truncate(f, size);
    for (uint64_t off = 0; !err && off < size; ) {
        off_t data = lseek(fd, off, SEEK_DATA), hole;
        if (data < 0 && errno == ENXIO)
            break;
        if (data < 0)
            data = off;
        hole = lseek(fd, data, SEEK_HOLE);
        uint64_t end = hole < 0 ? size : (uint64_t)hole;
        for (off = data; !err && off < end; ) {
            ssize_t k = pread(fd, buf, MIN(end - off, (uint64_t)COPY_LEN), off);
            if (k <= 0)
                err = k ? -errno : -EIO;
            else
                err = fs_write(f, off, buf, k), off += k;
            progress_show(&pr, off, size);
        }
    }
    if (!err)
        progress_show(&pr, size, size);
    progress_end(&pr);
    free(buf);
    return err;
}

static int copy_out(struct fs_file *f, int fd, const char *name)
{
    struct progress pr = { .what = name, .quiet = quiet };
    struct fs_stat st;
    char *buf = malloc(COPY_LEN);
    fs_fstat(f, &st);
    int err = ftruncate(fd, st.size) ? -errno : 0;
    for (uint64_t off = 0; !err && off < st.size; ) {
        int64_t data = fs_seek_data(f, off), hole = data < 0 ? data : fs_seek_hole(f, data);
        if (data == -ENXIO)
            break;
        if (data < 0 || hole < 0)
            err = data < 0 ? data : hole;
        for (off = data; !err && off < (uint64_t)hole; ) {
            int64_t k = fs_read(f, off, buf, MIN((uint64_t)hole - off, (uint64_t)COPY_LEN));
            if (k < 0)
                err = k;
            else if (pwrite(fd, buf, k, off) != k)
                err = errno ? -errno : -EIO;
            off += k > 0 ? k : 0;
            progress_show(&pr, off, st.size);
        }
    }
    if (!err)
        progress_show(&pr, st.size, st.size);
    progress_end(&pr);
    free(buf);
    return err;
}

/* POOL:PATH; the host's own paths win if they exist with the colon. */
static char *split_place(char *s)
{
    char *colon = strrchr(s, ':');
    if (!colon || !access(s, F_OK))
        return NULL;
    *colon = 0;
    return colon + 1;
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* DST, or DST/NAME for what goes into a directory. */
static void join_path(char path[4096], const char *dst, bool into, const char *src)
{
    bool slash = into && *dst && dst[strlen(dst) - 1] != '/';
    snprintf(path, 4096, "%s%s%s", dst, slash ? "/" : "", into ? base_name(src) : "");
}

static int host_open(const char *src, uint64_t *size)
{
    struct stat st;
    int fd = open(src, O_RDONLY | O_CLOEXEC);
    off_t end = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);       /* of disks, too */
    int err = fd < 0 || end < 0 || fstat(fd, &st) ? -errno : S_ISDIR(st.st_mode) ? -EISDIR : 0;
    *size = end;
    if (err && fd >= 0)
        close(fd);
    return err ? err : fd;
}

/* The file appears under its name when all of it is there: what had that name is untouched until then, and for good after an error. */
static int cp_in(struct pool *p, const char *src, const char *dst, unsigned flags)
{
    struct fs_stat st;
    struct fs_file *f;
    char path[4096], part[4120];
    uint64_t size;
    int err = -EEXIST;
    bool into = !*dst || dst[strlen(dst) - 1] == '/' || (!fs_stat(p->fs, dst, &st) && st.dir);
    join_path(path, dst, into, src);
    int fd = host_open(src, &size);
    if (fd < 0)
        return complain("cannot open", src, fd);
    for (int i = 0; err == -EEXIST && i < 100; i++) {
        snprintf(part, sizeof part, i ? "%s.part%d" : "%s.part", path, i);
        err = fs_open(p->fs, part, FS_CREATE | FS_EXCL | flags, &f);
    }
    if (!err) {
        err = copy_in(f, fd, size, path);
        fs_close(f);
        if (!err)
            err = fs_rename(p->fs, part, path);
        if (err)
            fs_unlink(p->fs, part);
    }
    close(fd);
    return err ? complain("cannot copy to", path, err) : 0;
}

static int cp_out(struct pool *p, const char *src, const char *dst)
{
    struct fs_file *f;
    struct stat hs;
    char path[4096];
    bool into = !stat(dst, &hs) && S_ISDIR(hs.st_mode);
    join_path(path, dst, into, src);
    int err = fs_open(p->fs, src, 0, &f);
    if (err)
        return complain("cannot open", src, err);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    err = fd < 0 ? -errno : copy_out(f, fd, path);
    fs_close(f);
    if (fd >= 0 && close(fd) && !err)
        err = -errno;
    return err ? complain("cannot copy to", path, err) : 0;
}

static int cmd_cp(int argc, char **argv)
{
    static const struct option opts[] = { { "quiet", 0, 0, 'q' }, { "csum", 0, 0, 'c' }, { 0 } };
    unsigned flags = 0;
    for (int c; (c = getopt_long(argc, argv, "qc", opts, NULL)) != -1; ) {
        if (c == '?')
            return 2;
        quiet |= c == 'q';
        flags |= c == 'c' ? FS_CSUM : 0;
    }
    int n = argc - optind - 1, status = 0;
    if (n < 1)
        return 2;
    char **src = argv + optind, *dst = argv[argc - 1], *dst_path = split_place(dst);
    if (dst_path) {
        struct pool p = pool_open(dst, 0);
        for (int i = 0; i < n; i++) {
            int err = cp_in(&p, src[i], dst_path, flags);
            status = status ? status : err;
        }
        pool_close(&p, dst);
        return status;
    }
    for (int i = 0; i < n; i++) {
        char *src_path = split_place(src[i]);
        if (!src_path)
            return 2;
        struct pool p = pool_open(src[i], FS_RDONLY);
        int err = cp_out(&p, src_path, dst);
        status = status ? status : err;
        pool_close(&p, src[i]);
    }
    return status;
}

/* ---- One call each ---- */

static int cmd_change(int argc, char **argv)
{
    static const char *const what[][2] = { { "mkdir", "cannot make" }, { "rm", "cannot remove" }, { "mv", "cannot move" }, { "clone", "cannot copy" } };
    const char *verb = argv[0], *cannot = "";
    bool two = !strcmp(verb, "mv") || !strcmp(verb, "clone");
    if (argc != 3 + two)
        return 2;
    struct pool p = pool_open(argv[1], 0);
    int err = !strcmp(verb, "mkdir") ? fs_mkdir(p.fs, argv[2]) : !strcmp(verb, "rm") ? fs_unlink(p.fs, argv[2]) :
        !strcmp(verb, "mv") ? fs_rename(p.fs, argv[2], argv[3]) : fs_reflink(p.fs, argv[2], argv[3]);
    pool_close(&p, argv[1]);
    for (size_t i = 0; i < ARRAY_SIZE(what); i++)
        if (!strcmp(verb, what[i][0]))
            cannot = what[i][1];
    return err ? complain(cannot, argv[two && err == -EEXIST ? 3 : 2], err) : 0;
}

static int cmd_grow(int argc, char **argv)
{
    uint64_t size = 0;
    struct blk *dev;
    struct fs *fs;
    if (argc < 2 || argc > 3 || (argc == 3 && !parse_size(argv[2], &size)))
        return 2;
    int err = host_blk_open(argv[1], HOST_LOCK | HOST_WRITE | HOST_SYNC, &dev);
    if (!err && size > dev->size)
        err = blk_resize(dev, size);
    if (!err)
        err = fs_mount(dev, 0, &fs);
    if (!err) {
        err = fs_grow(fs, size);
        int end = fs_unmount(fs);
        err = err ? err : end;
    }
    if (err)
        fail("cannot grow", argv[1], err);
    blk_close(dev);
    return 0;
}

static int cmd_trim(int argc, char **argv)
{
    uint64_t trimmed;
    if (argc != 2)
        return 2;
    struct pool p = pool_open(argv[1], 0);
    int err = fs_trim(p.fs, &trimmed);
    pool_close(&p, argv[1]);
    if (err)
        fail("cannot trim", argv[1], err);
    printf("%llu bytes trimmed\n", (unsigned long long)trimmed);
    return 0;
}

static const struct { const char *name; int (*fn)(int, char **); } verbs[] = {
    { "mkfs", cmd_mkfs }, { "fsck", cmd_fsck }, { "ls", cmd_ls }, { "cp", cmd_cp }, { "df", cmd_df }, { "scrub", cmd_scrub },
    { "mkdir", cmd_change }, { "rm", cmd_change }, { "mv", cmd_change }, { "clone", cmd_change }, { "grow", cmd_grow }, { "trim", cmd_trim },
};

int main(int argc, char **argv)
{
    int status = 2;
    for (size_t i = 0; argc > 1 && i < ARRAY_SIZE(verbs); i++)
        if (!strcmp(argv[1], verbs[i].name))
            status = verbs[i].fn(argc - 1, argv + 1);
    if (status == 2)
        fputs(usage, stderr);
    return status;
}
