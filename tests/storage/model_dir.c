/*
 * model_dir OPERATIONS [SEED [DIRECTORY]]: the same random operations on a pool and on a plain Linux directory must give the same results, errors
 * included, and leave the same tree.  Names are few, so that they collide; some files stay open while they are renamed and deleted.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "kernel/fs/fs.h"
#include "tests/host/mem_blk.h"

enum { MAX_SIZE = 300 << 10, OPEN = 6, POOL = 400 << 20 };

struct both { struct fs_file *ours; int theirs; };

static struct fs *fs;
static struct mem_blk *disk;
static struct both open_files[OPEN];
static uint64_t seed;
static unsigned long op, failed_alike;
static uint8_t a[MAX_SIZE], b[MAX_SIZE];

static uint64_t pick(uint64_t n) { return mem_rand(&seed) % n; }

__attribute__((noreturn)) static void die(const char *what, const char *path, long long ours, long long theirs)
{
    printf("model_dir: operation %lu: %s %s: %lld here, %lld in the directory\n", op, what, path, ours, theirs);
    exit(1);
}

/* Both succeed, or both fail for the same reason. */
static bool agree(const char *what, const char *path, int ours, int theirs)
{
    if (ours != theirs)
        die(what, path, ours, theirs);
    failed_alike += ours != 0;
    return !ours;
}

static int sys(int r) { return r < 0 ? -errno : 0; }

/* Up to four levels of five names. */
static const char *random_path(char path[64])
{
    static const char *const name[] = { "a", "b", "image.qcow2", "d", "a-name-that-is-rather-long" };
    int depth = pick(10) < 4 ? 1 : 1 + pick(4), len = 0;
    for (int i = 0; i < depth; i++)
        len += snprintf(path + len, 64 - len, "%s%s", i ? "/" : "", name[i < 2 ? pick(5) : pick(4)]);
    return path;
}

/* ---- Contents ---- */

static uint64_t random_range(uint64_t *len)
{
    uint64_t off = pick(4) ? pick(MAX_SIZE) : pick(MAX_SIZE / 4096) * 4096;
    *len = 1 + (pick(3) ? pick(9000) : pick(3) ? pick(4) * 4096 + 4095 : pick(MAX_SIZE));
    *len = *len < MAX_SIZE - off ? *len : MAX_SIZE - off;
    return off;
}

static void write_both(struct both f)
{
    uint64_t len, off = random_range(&len), word = mem_rand(&seed);
    for (uint64_t i = 0; i < len; i++)
        a[i] = word >> (i & 7) * 8 ^ i >> 3;
    int theirs = pwrite(f.theirs, a, len, off) == (ssize_t)len ? 0 : -errno;
    agree("write", "", fs_write(f.ours, off, a, len), theirs);
}

static void zero_both(struct both f)
{
    struct stat st;
    uint64_t len, off = random_range(&len);
    bool keep = pick(2);
    fstat(f.theirs, &st);
    if (off >= (uint64_t)st.st_size)
        return;
    len = len < st.st_size - off ? len : st.st_size - off;
    agree("punch", "", keep ? fs_zero(f.ours, off, len) : fs_punch(f.ours, off, len),
          sys(fallocate(f.theirs, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off, len)));
}

static void read_both(struct both f)
{
    uint64_t len, off = random_range(&len);
    int64_t ours = fs_read(f.ours, off, a, len), theirs = pread(f.theirs, b, len, off);
    if (ours != theirs)
        die("read", "", ours, theirs);
    if (memcmp(a, b, ours))
        die("contents", "", off, len);
}

static void allocate_both(struct both f)
{
    uint64_t len, off = random_range(&len);
    agree("allocate", "", fs_allocate(f.ours, off, len), sys(fallocate(f.theirs, 0, off, len)));
}

static void in_file(struct both f)
{
    switch (pick(12)) {
    case 0: case 1: case 2: case 3: case 4: write_both(f); break;
    case 5: case 6: case 7: case 8:         read_both(f); break;
    case 9:                                 zero_both(f); break;
    case 10:                                allocate_both(f); break;
    case 11: {
        uint64_t size = pick(3) ? pick(MAX_SIZE) : pick(2) * 4096;
        agree("truncate", "", fs_truncate(f.ours, size), sys(ftruncate(f.theirs, size)));
    }
    }
}

/* ---- Names ---- */

static bool open_both(const char *path, struct both *f)
{
    unsigned flags = pick(3) ? FS_CREATE | (pick(4) ? 0 : FS_CSUM) : 0;
    bool excl = flags && !pick(4);
    f->theirs = open(path, O_RDWR | (flags ? O_CREAT : 0) | (excl ? O_EXCL : 0), 0600);
    int theirs = f->theirs < 0 ? -errno : 0, ours = fs_open(fs, path, flags | (excl ? FS_EXCL : 0), &f->ours);
    if (ours == 0 && theirs == -EISDIR)
        die("open", path, ours, theirs);
    return agree("open", path, ours, theirs);
}

static void close_both(struct both *f)
{
    if (!f->ours)
        return;
    fs_close(f->ours);
    close(f->theirs);
    f->ours = NULL;
}

static void stat_both(const char *path)
{
    struct fs_stat ours;
    struct stat theirs;
    if (!agree("stat", path, fs_stat(fs, path, &ours), sys(stat(path, &theirs))))
        return;
    if (ours.dir != S_ISDIR(theirs.st_mode))
        die("type of", path, ours.dir, theirs.st_mode);
    if (!ours.dir && ours.size != (uint64_t)theirs.st_size)
        die("size of", path, ours.size, theirs.st_size);
}

/* A copy that shares, and one by hand; holes stay holes, for the directory is in memory. */
static int copy_file(const char *from, const char *to)
{
    static const uint8_t zero[4096];
    int in = open(from, O_RDWR), out = in < 0 ? -1 : open(to, O_WRONLY | O_CREAT | O_EXCL, 0600), err = in < 0 || out < 0 ? -errno : 0;
    ssize_t n = err ? 0 : pread(in, b, sizeof b, 0);
    for (ssize_t at = 0; at < n; at += 4096) {
        size_t k = n - at < 4096 ? n - at : 4096;
        if (memcmp(b + at, zero, k) && pwrite(out, b + at, k, at) != (ssize_t)k)
            err = -errno;
    }
    if (!err && ftruncate(out, n))
        err = -errno;
    if (in >= 0)
        close(in);
    if (out >= 0)
        close(out);
    return err;
}

static int depth_of(const char *path)
{
    int n = 1;
    for (; *path; path++)
        n += *path == '/';
    return n;
}

static void step(void)
{
    char p[64], q[64];
    struct both f, *slot = &open_files[pick(OPEN)];
    random_path(p), random_path(q);
    switch (pick(20)) {
    case 0:
        agree("mkdir", p, fs_mkdir(fs, p), sys(mkdir(p, 0700)));
        break;
    case 1:
        agree("remove", p, fs_unlink(fs, p), sys(remove(p)));
        break;
    case 2:
        if (depth_of(q) <= depth_of(p) && agree("rename", p, fs_rename(fs, p, q), sys(rename(p, q))))   /* else trees grow deeper and deeper */
            stat_both(q);
        break;
    case 3:
        agree("copy", p, fs_reflink(fs, p, q), copy_file(p, q));
        break;
    case 4:
        stat_both(p);
        break;
    case 5:
        close_both(slot);
        if (!open_both(p, slot))
            slot->ours = NULL;
        break;
    case 6: case 7: case 8: case 9: case 10: case 11: case 12:
        if (slot->ours)
            in_file(*slot);
        break;
    default:
        if (open_both(p, &f)) {
            in_file(f);
            close_both(&f);
        }
    }
}

/* ---- The whole tree ---- */

static void compare_contents(const char *path)
{
    struct both f = { .theirs = open(path, O_RDONLY) };
    struct stat st;
    if (!agree("open", path, fs_open(fs, path, 0, &f.ours), f.theirs < 0 ? -errno : 0))
        return;
    fstat(f.theirs, &st);
    int64_t ours = fs_read(f.ours, 0, a, sizeof a), theirs = pread(f.theirs, b, sizeof b, 0);
    if (ours != theirs || ours != st.st_size || memcmp(a, b, ours))
        die("contents of", path, ours, theirs);
    close_both(&f);
}

static unsigned long compare_tree(const char *path)
{
    struct fs_dirent d = { .cookie = 0 };
    struct dirent *e;
    char sub[600];
    unsigned long ours = 0, theirs = 0, all = 1;
    DIR *dir = opendir(*path ? path : ".");
    while (dir && (e = readdir(dir)))
        theirs += strcmp(e->d_name, ".") && strcmp(e->d_name, "..");
    closedir(dir);
    for (int err; (err = fs_readdir(fs, path, d.cookie, &d)) != -ENOENT; ours++) {
        if (err)
            die("list", path, err, 0);
        snprintf(sub, sizeof sub, "%s%s%s", path, *path ? "/" : "", d.name);
        stat_both(sub);
        if (d.dir)
            all += compare_tree(sub);
        else
            compare_contents(sub), all++;
    }
    if (ours != theirs)
        die("names in", path, ours, theirs);
    return all;
}

static void say(void *arg, const char *msg) { printf("fsck: %s\n", msg); }

static unsigned long compare(bool mount_again)
{
    unsigned long all = compare_tree("");
    struct fs_report r = { .say = say };
    int err = fs_check(fs, 0, &r);
    if (err || r.errors)
        die("check", "", err, r.errors);
    if (!mount_again)
        return all;
    for (int i = 0; i < OPEN; i++)
        close_both(&open_files[i]);
    if ((err = fs_unmount(fs)) || (err = fs_mount(&disk->blk, 0, &fs)))
        die("mount", "", err, 0);
    return compare_tree("");
}

static char dir[256];

static void remove_dir(void)
{
    char cmd[300];
    snprintf(cmd, sizeof cmd, "rm -rf '%s'", dir);
    if (chdir("/") || system(cmd))
        printf("model_dir: %s is left behind\n", dir);
}

int main(int argc, char **argv)
{
    unsigned long want = argc > 1 ? strtoul(argv[1], NULL, 0) : 100000, all = 0;
    struct fs_mkfs_opts o = { .label = "model" };
    seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
    snprintf(dir, sizeof dir, "%s/joist-model-XXXXXX", argc > 3 ? argv[3] : access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    disk = mem_blk_create(POOL, 0, MEM_INLINE, 1);
    if (!mkdtemp(dir))
        die("make", dir, 0, -errno);
    atexit(remove_dir);
    if (chdir(dir) || fs_mkfs(&disk->blk, &o) || fs_mount(&disk->blk, FS_DISCARD, &fs))
        die("set-up", dir, 0, -errno);
    for (op = 1; op <= want; op++) {
        step();
        if (op % 10000 == 0)
            all = compare(op % 50000 == 0);
    }
    all = compare(true);
    fs_unmount(fs);
    blk_close(&disk->blk);
    printf("RESULT storage/model_dir ok %lu operations, %lu failed alike, %lu names at the end\n", want, failed_alike, all);
    return 0;
}
