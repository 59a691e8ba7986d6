/*
 * Inside of the file system.
 *
 * Locks, outer to inner: inode.lock (or two, by number) > tree_lock > space.lock > cache_lock, mapped.spin (spinlocks).  A transaction
 * (txn) is joined after inode.lock and before tree_lock; commit() waits for all transactions to end, with none of these held.
 */
#pragma once
#include "kernel/block/mapped.h"
#include "kernel/fs/format.h"
#include "kernel/fs/fs.h"
#include "kernel/lib/list.h"
#include "kernel/lib/port.h"

/* ---- Node cache ---- */

struct node {
    struct list hash, link;             /* link: LRU, dirty or committing list */
    uint64_t blk, gen;
    int refs;                           /* users; a node in use stays */
    bool dirty;                         /* changed in this transaction group: only its tree uses it, its tree's lock guards it */
    bool committing;
    union { struct node_hdr hdr; uint8_t buf[FS_BLOCK]; };
};

static inline struct node_item *node_item(struct node *n, int i) { return (struct node_item *)(n->buf + sizeof n->hdr) + i; }
static inline struct node_child *node_child(struct node *n, int i) { return (struct node_child *)(n->buf + sizeof n->hdr) + i; }
static inline struct fs_key node_key(struct node *n, int i) { return n->hdr.level ? node_child(n, i)->key : node_item(n, i)->key; }

static inline int key_cmp(struct fs_key x, struct fs_key y)
{
    if (x.a != y.a)
        return x.a < y.a ? -1 : 1;
    return x.b == y.b ? 0 : x.b < y.b ? -1 : 1;
}

/*
 * The keys that a node may hold, as the nodes above it say; hi is outside.  A walk that goes by them comes to no node twice, however the
 * pointers of a damaged tree lead.
 */
struct key_range { struct fs_key lo, hi; };
#define ALL_KEYS ((struct key_range){ { 0, 0 }, { UINT64_MAX, UINT64_MAX } })
static inline struct key_range child_range(struct node *n, int i, struct key_range r)
{
    if (i)
        r.lo = node_child(n, i)->key;
    if (i + 1 < n->hdr.nitems)
        r.hi = node_child(n, i + 1)->key;
    return r;
}
static inline bool in_range(struct node *n, struct key_range r)
{
    return !n->hdr.nitems || (key_cmp(node_key(n, 0), r.lo) >= 0 && key_cmp(node_key(n, 0), r.hi) < 0);
}

/* ---- Space ---- */

enum { PIN_DATA, PIN_DYING, PIN_DEAD, PINS };
/*
 * Blocks that are not to be given out though their count is 0: in use by data on its way to the disk (PIN_DATA), released since the
 * last freeze (PIN_DYING), or released by the commit that is being written (PIN_DEAD): the committed state still uses these.  A block
 * that lost one of several references is marked the same way: until the commit is durable the disk still says that it is shared, so
 * the file that remains must not overwrite it in place.
 */
struct chunk {
    struct list lru;
    uint64_t index, touched;            /* touched: generation of the last use */
    bool dirty;
    bool doubtful;                      /* salvage: its table was damaged, these are not its counts */
    uint16_t npinned;                   /* marked and of count 0 */
    uint64_t pin[PINS][FS_CHUNK / 64];
    uint16_t ref[FS_CHUNK];
};

struct group {
    struct space_ent ent[FS_FAN];
    struct chunk *chunk[FS_FAN];
    uint64_t whole[PINS][FS_FAN / 64];  /* uniform chunks without a struct chunk that are pinned as a whole (dying or dead) */
    uint64_t free;
    bool dirty;
};

struct space {
    struct mutex lock;
    bool salvage;                       /* damaged tables are taken for ones never written: only for a recount */
    unsigned forgiven;                  /* so many were */
    uint64_t blocks, ngroups;
    struct group **group;               /* loaded ones */
    struct space_ent *l2[FS_FAN];       /* 256 entries each; NULL: default */
    bool l2_dirty[FS_FAN];
    struct space_ent l3[FS_FAN], top;
    uint64_t free, pinned, reserved;    /* blocks: count 0; of these not available; promised */
    uint64_t keep;                      /* reserve for operations that free */
    uint64_t cursor, meta_cursor;
    struct list chunks;                 /* LRU of loaded chunks */
    unsigned nchunks, ndirty;
};

/* ---- Trees ---- */

struct txn { int resv; };               /* blocks still promised to it */

struct btree { struct fs *fs; struct fs_ptr root; uint8_t kind; };

/* A deferred decrement of a shared tree node: its children lose a reference when it dies. */
struct drop { struct list link; struct fs_ptr ptr; };

/* ---- Inodes ---- */

struct fs_file {                        /* the one in-memory inode of an open file */
    struct list hash;
    struct fs *fs;
    uint64_t ino;
    int opens;                          /* under fs->inode_lock */
    bool dead;                          /* no name any more: freed by the last close */
    struct mutex lock;
    struct inode_rec rec;
    struct btree ext;                   /* root mirrors rec.ext */
    bool dirty;                         /* under fs->inode_lock */
    uint64_t dirty_gen;                 /* generation that holds its last change */
    struct list dirty_link;
    uint64_t goal;                      /* where its next block would best be */
    struct mapped m;                    /* the fast path of blks on it */
    struct blk itself;                  /* what all blks on it are `below`, so that their claims meet; takes no requests */
    struct list work_link;
};

#define FS_THREADS 2

struct fs {
    struct blk *dev;
    unsigned flags;
    uint32_t seed;                      /* of all checksums: the pool's uuid */
    struct fs_super super;              /* as last committed, then edited by commit */
    uint64_t gen;                       /* of the open transaction group */
    uint64_t committed;                 /* last durable generation */
    int failed;                         /* -errno; no more writes */
    /* Transactions */
    struct mutex txn_lock;
    struct cond txn_cond;
    int txn_active;
    bool freezing, changed;             /* changed: there is something to commit */
    struct mutex commit_lock;
    struct wave *wave;                  /* writes of a commit */
    int slot;                           /* of the last committed superblock */
    unsigned ndirty;                    /* dirty nodes */
    /* Cache */
    struct spinlock cache_lock;
    struct list *hash;
    unsigned hash_size, ncached, cache_max;
    struct list lru, dirty, committing, drops;
    uint64_t last_clone;                /* generation in which a file was copied last */
    struct space space;
    struct mutex tree_lock;
    struct btree tree;
    int tree_cost;                      /* blocks that one change of the name tree takes; set while no inode is dirty */
    uint64_t next_ino, ninodes;
    struct mutex inode_lock;
    struct list inodes[64];
    struct list dirty_inodes;
    unsigned ndirty_inodes;
    /* Threads */
    struct mutex work_lock;             /* starting them */
    struct spinlock queue_lock;
    struct list work;                   /* files with requests in their queue; under queue_lock */
    struct event work_event, commit_event;
    bool stopping;
    struct thread *thread[FS_THREADS + 1];
};

/* ---- commit.c ---- */
enum { TXN_FREES = 1 };                 /* may use the reserve: it frees in the end */
struct wave;
struct wave *wave_create(struct blk *);
/* With commit_lock held: no transaction is under way until the thaw. */
void txns_freeze(struct fs *);
void txns_thaw(struct fs *);
/* Join the open transaction group with a promise of `blocks` for metadata.  Commits to gain space.  Never inside another. */
int txn_begin(struct fs *, struct txn *, int blocks, unsigned flags);
void txn_end(struct fs *, struct txn *);
int fs_commit(struct fs *);
/* A change broke off half-way: from now on the pool is read-only, and the disk keeps the last commit. */
int fs_fail(struct fs *, int err);
int fs_writable(struct fs *);

/* ---- node.c ---- */
int node_get(struct fs *, struct fs_ptr, uint8_t kind, struct node **);
void node_put(struct fs *, struct node *);
int node_new(struct fs *, struct txn *, uint8_t kind, uint8_t level, struct node **);   /* dirty, one user */
void node_free(struct fs *, struct node *);             /* its block and itself; drops the caller's use */
int node_read(struct fs *, struct fs_ptr, uint8_t kind, uint8_t *buf);       /* past the cache, checked */
void node_seal(struct fs *, struct node *);
void nodes_trim(struct fs *);
void nodes_fini(struct fs *);

/* ---- btree.c ---- */
/* Copies the value of the item with this key; -ENOENT; len in: room, out: length (-ENOSPC does not occur: longer values are cut). */
int bt_get(struct btree *, struct fs_key, void *val, unsigned *len);
/* The first item with key >= *key (bt_ge) or the last with key <= *key (bt_le); *key becomes the item's. */
int bt_ge(struct btree *, struct fs_key *key, void *val, unsigned *len);
int bt_le(struct btree *, struct fs_key *key, void *val, unsigned *len);
/* Make everything that bt_set/bt_del of this key need dirty and roomy; after that they cannot fail, for up to 3 changes nearby. */
int bt_prepare(struct btree *, struct txn *, struct fs_key);
/* Blocks that so many changes near each other take at most; a tree that grows meanwhile asks for more itself. */
int bt_cost(struct btree *, int keys);
int bt_set(struct btree *, struct txn *, struct fs_key, const void *val, unsigned len);
int bt_del(struct btree *, struct txn *, struct fs_key);
/* Free a file's tree from its end, a bounded step: everything from key *first on, *blocks of data. */
int bt_drop_step(struct btree *, struct txn *, uint64_t *blocks, uint64_t *first);
/* Give up one reference to a subtree of extents: queued; drops_run does it before the commit. */
int bt_drop(struct fs *, struct fs_ptr);
int drops_run(struct fs *);
bool node_is_shared(struct btree *, struct node *, int *err);

/* ---- space_*.c ---- */
enum { ALLOC_PIN, ALLOC_REF };
int space_init(struct fs *);
void space_fini(struct fs *);
/* A run of 1..want free blocks near goal: pinned, or with count 1.  -ENOSPC: none.  Promises are the caller's business. */
int space_alloc(struct fs *, uint64_t goal, uint64_t want, int how, bool meta, uint64_t *start, uint64_t *got);
int space_promise(struct fs *, uint64_t blocks, bool frees);   /* -ENOSPC */
void space_overpromise(struct fs *, uint64_t blocks);          /* without asking; the reserve pays */
void space_unpromise(struct fs *, uint64_t blocks);
uint64_t space_available(struct fs *);
void space_unpin(struct fs *, uint64_t start, uint64_t len);
int space_publish(struct fs *, uint64_t start, uint64_t len);      /* pinned -> count 1 */
int space_add(struct fs *, uint64_t start, uint64_t len);          /* count + 1; all or nothing */
/* Count - 1; what reaches 0 stays pinned until the commit.  *died: blocks that did. */
int space_sub(struct fs *, uint64_t start, uint64_t len, uint64_t *died);
int space_touch(struct fs *, uint64_t start, uint64_t len);        /* load, so that the calls above cannot fail in this group */
int space_ref(struct fs *, uint64_t blk);                          /* count, or -errno */
/* Largest prefix of [start, +len) that may be overwritten in place (count 1, and durably so), or that may not. */
int space_sole(struct fs *, uint64_t start, uint64_t len, bool *sole, uint64_t *prefix);
struct pagelist;
unsigned space_dirty_pages(struct fs *);        /* upper bound of what space_freeze adds */
void space_freeze(struct fs *, struct pagelist *);
void space_committed(struct fs *, bool discard);
int space_set_end(struct fs *, uint64_t blocks);
int space_count(struct fs *, uint64_t index, uint16_t *ref, bool *damaged);     /* copy of one chunk's counts */
int space_force(struct fs *, uint64_t index, const uint16_t *ref); /* repair */

/* Copies of table pages that a commit writes; their memory is reserved before anything is changed. */
struct page { struct list link; uint64_t blk; uint8_t buf[FS_BLOCK]; };
struct pagelist { struct list spare, used; };
void page_add(struct pagelist *, uint64_t blk, const void *copy);

/* ---- inode.c ---- */
struct fs_key inode_key(uint64_t ino);
struct fs_key orphan_key(uint64_t ino);
int inode_load(struct fs *, uint64_t ino, struct inode_rec *);    /* the stored record; tree_lock held */
int inode_store(struct fs *, struct txn *, uint64_t ino, const struct inode_rec *);
int inode_open(struct fs *, uint64_t ino, struct fs_file **);     /* tree_lock held; counts */
/* The same with zeroed memory brought along, so that it cannot fail for want of it; *spare NULL afterwards: used. */
int inode_open_with(struct fs *, uint64_t ino, struct fs_file **spare, struct fs_file **);
void inode_put(struct fs_file *);       /* no lock held; the last one of a nameless file frees its blocks */
bool inode_unname(struct fs *, uint64_t ino);                     /* tree_lock held; true: open, dies with its last close */
/* Inside a transaction with f->lock held.  Called first, while the promise is whole: takes fs->tree_cost blocks of it over if the record
 * was clean; and again after the change. */
void inode_dirty(struct fs_file *, struct txn *);
int inodes_flush(struct fs *);                                    /* commit: store all changed records */
void inodes_unflush(struct fs *);                                 /* after inodes_flush, when the commit breaks off */
void inodes_stored(struct fs *);                                  /* commit: they are clean; forget closed ones */
int orphans_reap(struct fs *);

/* ---- dir.c ---- */
uint64_t dir_hash(const char *name, unsigned len);      /* 48 bits; an entry's number is 256 times that and up to 255 more */
int dir_adopt(struct fs *, const char *path, uint64_t ino, uint8_t type);       /* gives a nameless inode that name; -EEXIST */

/* ---- extent.c: f->lock held ---- */
struct extent { uint64_t lblk, pblk, len; unsigned flags; bool hole; uint32_t csum[EXT_MAX_CSUM]; };
/* What maps lblk: an extent cut to begin at lblk (csum[0] is lblk's), or a hole up to the next extent; never beyond limit. */
int ext_lookup(struct fs_file *, uint64_t lblk, uint64_t limit, struct extent *);
/* Whether the extent belongs to this file alone; cuts it to the part with one answer. */
int ext_sole(struct fs_file *, struct extent *, bool *sole);
enum { EDIT_NEW /* pinned blocks become the file's, old ones lose a reference */, EDIT_SAME /* same blocks, other flags */, EDIT_REMOVE };
/* Change what maps [lblk, +len), which one extent or one hole covers; the file grows to new_size if that is larger.  One transaction. */
int ext_edit(struct fs_file *, int how, uint64_t lblk, const struct extent *to, uint64_t len, uint64_t new_size);
int ext_unmap(struct fs_file *, uint64_t lblk, uint64_t end);
/* Lowers *end to the end of the last extent that begins before it. */
int ext_end(struct fs_file *, uint64_t *end);
void map_forget(struct fs_file *, uint64_t lblk, uint64_t len);
void map_learn(struct fs_file *, uint64_t lblk, uint64_t len, uint64_t pblk, unsigned state);

/* ---- data.c: f->lock held ---- */
int file_read_locked(struct fs_file *, uint64_t off, void *buf, size_t len);
int file_write_locked(struct fs_file *, uint64_t off, const void *buf, size_t len);
int file_punch_locked(struct fs_file *, uint64_t off, uint64_t len, bool keep);
int file_set_size(struct fs_file *, uint64_t size);               /* growing only */
int file_free(struct fs_file *);                                  /* all blocks, in steps */

/* ---- fileblk.c ---- */
int threads_start(struct fs *);
void threads_stop(struct fs *);
extern const struct mapped_ops file_mapped_ops;

/* Grows while others look. */
static inline uint64_t fs_blocks(const struct fs *fs) { return atomic_load_relaxed(&fs->space.blocks); }
static inline uint64_t blocks_of(uint64_t bytes) { return (bytes + FS_BLOCK - 1) >> FS_BLOCK_SHIFT; }
