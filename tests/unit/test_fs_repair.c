/* Damaged pools: what the check finds, what the repair saves. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "kernel/fs/format.h"
#include "kernel/fs/fs.h"
#include "kernel/lib/crc.h"
#include "tests/host/mem_blk.h"
#include "tests/host/port_host.h"

enum { SIZE = 24 << 20, FILES = 300, MAX_META = 2000 };

/* ---- A good pool, and its metadata ---- */

static uint8_t *good;
static uint32_t seed;
static struct { uint64_t blk; uint8_t kind, level; } meta[MAX_META];
static int nmeta;

/* Files in three directories; what is in them can be told from the number. */
static const char *path_of(int i, char name[40])
{
    if (i % 3)
        snprintf(name, 40, "%s/file-%d", i % 3 == 1 ? "a" : "a/b", i);
    else
        snprintf(name, 40, "file-%d", i);
    return name;
}

static uint8_t byte_of(int file, uint64_t off) { return file * 7 + (off >> 12) * 3 + 1; }
static uint64_t size_of(int i) { return i % 10 ? (uint64_t)i * 37 % 9000 : i % 100 ? 120000 : 1200000; }

static void fill(struct fs *fs, int i)
{
    char name[40];
    struct fs_file *f;
    static uint8_t block[4096];
    assert_int_equal(fs_open(fs, path_of(i, name), FS_CREATE | (i % 4 ? 0 : FS_CSUM), &f), 0);
    for (uint64_t off = 0; off < size_of(i); off += i % 10 ? 4096 : 8192) {     /* large files: every second block */
        memset(block, byte_of(i, off), sizeof block);
        assert_int_equal(fs_write(f, off, block, MIN(4096ull, size_of(i) - off)), 0);
    }
    fs_truncate(f, size_of(i));
    fs_close(f);
}

static void note_meta(void)
{
    seed = crc32c(0, ((struct fs_super *)(good + FS_SUPER * FS_BLOCK))->uuid, 16);
    uint64_t newest = 0;
    for (int i = 0; i < 2; i++)
        newest = MAX(newest, ((struct fs_super *)(good + (FS_SUPER + i) * FS_BLOCK))->gen);
    for (uint64_t b = FS_HEADER; b < SIZE / FS_BLOCK && nmeta < MAX_META; b++) {
        struct node_hdr *h = (struct node_hdr *)(good + b * FS_BLOCK);
        if (h->blk == b && h->gen <= newest && h->crc == crc32c(seed, (uint8_t *)h + 4, FS_BLOCK - 4))
            meta[nmeta].blk = b, meta[nmeta].kind = h->kind, meta[nmeta++].level = h->level;
    }
}

static int set_up(void **state)
{
    struct fs_mkfs_opts o = { .label = "repair" };
    struct mem_blk *m = mem_blk_create(SIZE, 0, MEM_INLINE, 1);
    struct fs *fs;
    assert_int_equal(fs_mkfs(&m->blk, &o), 0);
    assert_int_equal(fs_mount(&m->blk, 0, &fs), 0);
    assert_int_equal(fs_mkdir(fs, "a"), 0);
    assert_int_equal(fs_mkdir(fs, "a/b"), 0);
    for (int i = 0; i < FILES; i++)
        fill(fs, i);
    assert_int_equal(fs_reflink(fs, "file-0", "copy-of-0"), 0);
    assert_int_equal(fs_unmount(fs), 0);
    good = malloc(SIZE);
    memcpy(good, m->data, SIZE);
    note_meta();
    blk_close(&m->blk);
    return 0;
}

static int tear_down(void **state)
{
    free(good);
    return 0;
}

static struct mem_blk *disk_again(void)
{
    struct mem_blk *m = mem_blk_create(SIZE, 0, MEM_INLINE, 1);
    memcpy(m->data, good, SIZE);
    return m;
}

/* ---- Looking at what is there ---- */

struct found { int whole, holed, gone, wrong; uint64_t files; /* whatever their names */ };

/* Holed: parts read as zeroes.  Wrong: anything that was never in the file. */
static void look(struct fs *fs, int i, struct found *n)
{
    char name[40];
    struct fs_file *f;
    struct fs_stat st;
    static uint8_t block[4096];
    bool holed = false, wrong = false;
    if (fs_open(fs, path_of(i, name), 0, &f)) {
        n->gone++;
        return;
    }
    fs_fstat(f, &st);
    wrong = st.size != size_of(i);
    for (uint64_t off = 0; off < size_of(i) && !wrong; off += 4096) {
        uint64_t len = MIN(4096ull, size_of(i) - off);
        uint8_t want = i % 10 || off % 8192 == 0 ? byte_of(i, off) : 0;
        wrong = fs_read(f, off, block, len) != (int64_t)len;
        for (uint64_t k = 0; k < len && !wrong; k++)
            if (block[k] != want)
                holed = true, wrong = block[k] != 0;
    }
    fs_close(f);
    n->whole += !holed && !wrong, n->holed += holed && !wrong, n->wrong += wrong;
}

static struct found look_all(struct fs *fs)
{
    struct found n = { 0 };
    for (int i = 0; i < FILES; i++)
        look(fs, i, &n);
    return n;
}

static void say(void *arg, const char *msg)
{
    if (arg)
        print_message("fsck: %s\n", msg);
}

/* Repairs, then asserts that a plain mount and check find nothing, and that the pool can be used. */
static struct found repaired(struct mem_blk *m, struct fs_report *rep)
{
    struct fs *fs;
    struct fs_report after = { .say = say, .arg = m };
    *rep = (struct fs_report){ .say = say };
    assert_int_equal(fs_mount(&m->blk, FS_SALVAGE, &fs), 0);
    assert_int_equal(fs_check(fs, FS_CHECK_REPAIR, rep), 0);
    assert_int_equal(rep->left, 0);
    assert_int_equal(fs_unmount(fs), 0);
    assert_int_equal(fs_mount(&m->blk, 0, &fs), 0);
    assert_int_equal(fs_check(fs, 0, &after), 0);
    assert_int_equal(after.errors, 0);
    struct found n = look_all(fs);
    n.files = after.files;
    struct fs_file *f;
    assert_int_equal(fs_open(fs, "new", FS_CREATE, &f), 0);
    assert_int_equal(fs_write(f, 100000, good, 300000), 0);
    fs_close(f);
    assert_int_equal(fs_check(fs, 0, &after), 0);
    assert_int_equal(after.errors, 0);
    assert_int_equal(fs_unmount(fs), 0);
    blk_close(&m->blk);
    return n;
}

static void spoil(struct mem_blk *m, uint64_t blk, uint64_t *random)
{
    for (int i = 0; i < 64; i++)
        m->data[blk * FS_BLOCK + mem_rand(random) % FS_BLOCK] ^= 1 + mem_rand(random) % 255;
}

/* ---- Space tables ---- */

static void damaged_tables_cost_nothing(void **state)
{
    uint64_t random = 1;
    static const uint64_t tables[] = { FS_L3, FS_L3 + 1, FS_L2, FS_L2 + 1, FS_L1, FS_L1 + 1, FS_L0, FS_L0 + 1, FS_L0 + 2, FS_L0 + 5 };
    for (unsigned mask = 1; mask < 1u << ARRAY_SIZE(tables); mask = mask * 2 - mask / 3) {
        struct mem_blk *m = disk_again();
        struct fs_report rep;
        for (unsigned i = 0; i < ARRAY_SIZE(tables); i++)
            if (mask >> i & 1)
                spoil(m, tables[i], &random);
        struct found n = repaired(m, &rep);
        assert_int_equal(n.whole, FILES);
        assert_int_equal(rep.lost_found, 0);
    }
    struct mem_blk *m = disk_again();
    struct fs_report rep;
    memset(m->data + FS_L0 * FS_BLOCK, 0xff, (FS_HEADER - FS_L0) * FS_BLOCK);
    assert_int_equal(repaired(m, &rep).whole, FILES);
    assert_true(rep.fixed > 0);
}

/* ---- Trees ---- */

static void a_damaged_node_costs_what_is_in_it(void **state)
{
    uint64_t random = 2;
    int names = 0, extents = 0, adopted = 0;
    for (int i = 0; i < nmeta; i++) {
        if (meta[i].kind == NODE_EXT && (extents > 40 || mem_rand(&random) % 3))
            continue;
        struct mem_blk *m = disk_again();
        struct fs_report rep;
        spoil(m, meta[i].blk, &random);
        struct found n = repaired(m, &rep);
        assert_int_equal(n.wrong, 0);
        if (meta[i].kind == NODE_EXT) {         /* at most the file, and its copy */
            assert_int_equal(n.gone, 0);
            assert_true(n.holed <= 1);
            extents++;
        } else if (!meta[i].level) {            /* a leaf of names and records: a few dozen of either */
            assert_true(n.files >= FILES - 60);
            names++;
        }
        adopted += rep.lost_found;
    }
    print_message("%d leaves of names, %d nodes of extents damaged; %d found without a name\n", names, extents, adopted);
    assert_true(names > 5 && extents > 5 && adopted > 5);
}

/* Whole blocks gone wrong behind good checksums: any number, any place. */
static void any_damage_is_repaired(void **state)
{
    uint64_t random = 3;
    int saved = 0;
    for (int round = 0; round < 120; round++) {
        struct mem_blk *m = disk_again();
        struct fs_report rep;
        for (int k = 1 + mem_rand(&random) % 4; k; k--) {
            uint64_t blk = meta[mem_rand(&random) % nmeta].blk;
            struct node_hdr *h = (struct node_hdr *)(m->data + blk * FS_BLOCK);
            if (mem_rand(&random) % 4 == 0) {
                spoil(m, blk, &random);
            } else {
                for (int w = 1 + mem_rand(&random) % 6; w; w--) {
                    uint64_t at = mem_rand(&random) % 3 ? mem_rand(&random) % 300 : mem_rand(&random) % FS_BLOCK;
                    m->data[blk * FS_BLOCK + MIN(at + 4, FS_BLOCK - 1ull)] = mem_rand(&random) % 3 ? mem_rand(&random) % 8 : mem_rand(&random);
                }
                h->crc = crc32c(seed, (uint8_t *)h + 4, FS_BLOCK - 4);
            }
        }
        saved += repaired(m, &rep).whole;
    }
    print_message("%d files of %d came through whole\n", saved, 120 * FILES);
    assert_true(saved > 120 * FILES / 2);
}

/* ---- Trees whose nodes lead back to the same node again and again: 100 ways at each of eight levels ---- */

static void seal(struct node_hdr *h) { h->crc = crc32c(seed, (uint8_t *)h + 4, FS_BLOCK - 4); }

/* Nodes up to the highest level, each with `under` or the one before as all its children.  Returns the top one. */
static struct fs_ptr maze(struct mem_blk *m, uint8_t kind, struct fs_ptr under, uint8_t level)
{
    for (uint64_t b = SIZE / FS_BLOCK - 1; level < NODE_MAX_LEVEL; b--) {
        struct node_hdr *h = (struct node_hdr *)(m->data + b * FS_BLOCK);
        struct node_child *c = (struct node_child *)(h + 1);
        memset(h, 0, FS_BLOCK);
        h->blk = b, h->gen = under.gen, h->kind = kind, h->level = ++level, h->nitems = 100;
        for (uint64_t i = 0; i < 100; i++)
            c[i] = (struct node_child){ { i ? BIT(60) + i : 0, 0 }, under };        /* the first is right */
        seal(h);
        under.blk = b;
    }
    return under;
}

static struct fs_ptr ptr_of(const struct node_hdr *h) { return (struct fs_ptr){ h->blk, h->gen }; }

static void maze_of_names(struct mem_blk *m)
{
    struct fs_super *s = (struct fs_super *)(m->data + FS_SUPER * FS_BLOCK);
    s += s[1].gen > s[0].gen;
    struct node_hdr *root = (struct node_hdr *)(m->data + s->root.blk * FS_BLOCK);
    s->root = maze(m, NODE_FS, s->root, root->level);
    s->crc = 0;
    s->crc = crc32c(0, s, sizeof *s);
}

/* Every file's extents, by way of a leaf with one extent or with none. */
static void maze_of_extents(struct mem_blk *m, bool empty)
{
    struct node_hdr *leaf = (struct node_hdr *)(m->data + (SIZE / FS_BLOCK - 20) * FS_BLOCK);
    struct node_item *it = (struct node_item *)(leaf + 1);
    struct ext_rec *e = (struct ext_rec *)((uint8_t *)leaf + FS_BLOCK - sizeof *e);
    memset(leaf, 0, FS_BLOCK);
    leaf->blk = SIZE / FS_BLOCK - 20, leaf->gen = 1, leaf->kind = NODE_EXT, leaf->nitems = !empty;
    *it = (struct node_item){ .off = FS_BLOCK - sizeof *e, .len = sizeof *e };
    *e = (struct ext_rec){ .pblk = SIZE / FS_BLOCK - 30, .len = 1 };
    seal(leaf);
    struct fs_ptr top = maze(m, NODE_EXT, ptr_of(leaf), 0);
    for (int i = 0; i < nmeta; i++) {
        struct node_hdr *h = (struct node_hdr *)(m->data + meta[i].blk * FS_BLOCK);
        if (h->kind != NODE_FS || h->level)
            continue;
        it = (struct node_item *)(h + 1);
        for (int k = 0; k < h->nitems; k++) {
            uint8_t *r = (uint8_t *)h + it[k].off;
            if (it[k].key.b >> 56 == ITEM_INODE && r[offsetof(struct inode_rec, type)] == FS_TYPE_FILE)
                memcpy(r + offsetof(struct inode_rec, ext), &top, sizeof top);
        }
        seal(h);
    }
}

static void use_maze(struct mem_blk *m)
{
    struct fs_report rep = { .say = NULL };
    struct fs_dirent d = { .cookie = 0 };
    struct fs *fs;
    struct fs_file *f;
    uint8_t block[4096];
    assert_int_equal(fs_mount(&m->blk, 0, &fs), 0);
    assert_int_equal(fs_scrub(fs, &rep), 0);
    assert_int_equal(fs_check(fs, 0, &rep), 0);
    assert_true(rep.errors > 0);
    for (int n = 0; !fs_readdir(fs, "", d.cookie, &d); n++)
        assert_true(n < 10 * FILES);
    if (!fs_open(fs, "file-3", 0, &f)) {
        fs_read(f, 0, block, sizeof block);
        fs_seek_data(f, 0);
        fs_write(f, 0, block, sizeof block);
        fs_truncate(f, 100);
        fs_close(f);
    }
    fs_unlink(fs, "file-0");
    fs_unmount(fs);
    blk_close(&m->blk);
}

static void no_walk_goes_in_circles(void **state)
{
    alarm(120);
    for (int kind = 0; kind < 3; kind++) {
        struct fs_report rep;
        struct mem_blk *m[2] = { disk_again(), disk_again() };
        for (int i = 0; i < 2; i++)
            kind ? maze_of_extents(m[i], kind == 1) : maze_of_names(m[i]);
        use_maze(m[0]);
        struct found n = repaired(m[1], &rep);
        assert_int_equal(n.gone, 0);
        if (!kind)
            assert_int_equal(n.whole, FILES);
    }
    alarm(0);
}

/* ---- The repair itself may be cut off ---- */

static void a_repair_that_breaks_off_can_be_repeated(void **state)
{
    uint64_t random = 4;
    int broken = 0;
    for (int n = 0; n < 400; n += 7) {
        struct mem_blk *m = disk_again();
        struct fs_report rep = { .say = NULL };
        struct fs *fs;
        for (int k = 0; k < 6; k++)
            spoil(m, meta[mem_rand(&random) % nmeta].blk, &random);
        if (n % 2)
            port_fail_alloc_after(200 + 9 * n);
        else
            m->fail_after = 60 + n;
        int err = fs_mount(&m->blk, FS_SALVAGE, &fs);
        if (!err) {
            err = fs_check(fs, FS_CHECK_REPAIR, &rep);
            int end = fs_unmount(fs);
            err = err ? err : end;
        }
        broken += err != 0;
        port_fail_alloc_after(-1);
        m->fail_after = -1;
        assert_int_equal(repaired(m, &rep).wrong, 0);
    }
    print_message("%d broke off\n", broken);
    assert_true(broken > 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(damaged_tables_cost_nothing),
        cmocka_unit_test(a_damaged_node_costs_what_is_in_it),
        cmocka_unit_test(any_damage_is_repaired),
        cmocka_unit_test(no_walk_goes_in_circles),
        cmocka_unit_test(a_repair_that_breaks_off_can_be_repeated),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
