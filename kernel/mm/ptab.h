/*
 * The one page-table walker.  A format is data: bit layout of an entry for host (long mode), EPT and NPT tables.  H.
 * The caller serialises changes to one table (its lock); walks by hardware go on meanwhile: every store is one aligned 64-bit store.
 */
#pragma once
#include "kernel/lib/base.h"

enum { PT_R = 1, PT_W = 2, PT_X = 4, PT_U = 8, PT_GLOBAL = 16 };
enum pt_memtype { PT_WB, PT_UC, PT_WC };

struct pt_format {
    const char *name;
    unsigned levels;                            /* 4 */
    uint64_t table;                             /* bits of an entry that points to a table */
    uint64_t leaf_large;                        /* extra bit of a large leaf (PS) */
    uint64_t addr_mask;                         /* bits 51:12, less encryption bits */
    uint64_t accessed, dirty;                   /* 0: none */
    uint64_t present;                           /* entry is present if any of these is set */
    uint64_t (*leaf)(unsigned prot, enum pt_memtype, bool large);
    unsigned (*prot)(uint64_t entry);
};
extern const struct pt_format pt_host, pt_npt, pt_ept;

/* IA32_PAT of every host CPU; pt_host and pt_npt rely on it: 0 WB, 1 WC, 2 UC-, 3 UC, 4 WB, 5 WT, 6 UC-, 7 UC. */
#define PT_HOST_PAT 0x0007040600070106ull

struct ptab {
    const struct pt_format *fmt;
    hpa_t root;
    unsigned max_leaf;                          /* ORDER_4K, ORDER_2M or ORDER_1G: largest leaf the CPU offers */
    /* Table pages: zeroed 4 KiB, from the owner's reserve. */
    hpa_t (*alloc)(void *arg);
    void (*free)(void *arg, hpa_t);
    void *arg;
    uint64_t tables;                            /* table pages in use */
};

int  ptab_init(struct ptab *, const struct pt_format *, unsigned max_leaf, hpa_t (*alloc)(void *), void (*free)(void *, hpa_t), void *arg);
void ptab_destroy(struct ptab *);               /* frees tables, not leaves */
/* Map with the largest leaves that alignment allows; replaces what was there (a large leaf is split when partly covered).  0 or -ENOMEM. */
int  ptab_map(struct ptab *, uint64_t va, hpa_t pa, uint64_t len, unsigned prot, enum pt_memtype);
/* Unmaps; empty tables are freed only by ptab_destroy or ptab_prune (hardware may still walk them until the flush). */
void ptab_unmap(struct ptab *, uint64_t va, uint64_t len);
int  ptab_protect(struct ptab *, uint64_t va, uint64_t len, unsigned prot);
/* Leaf for va: returns its entry, size order in *order; 0 if none. */
uint64_t ptab_lookup(const struct ptab *, uint64_t va, unsigned *order);
/* Takes out the table that stands where a leaf of `order` (2M or 1G) could, with all that hangs on it; 0: there is none.  One store; when no CPU walks the table
 * any more, ptab_drop() frees it. */
hpa_t ptab_cut(struct ptab *, uint64_t va, unsigned order);
void ptab_drop(struct ptab *, hpa_t table, unsigned order);
/* Leaves by size, in a walk through everything. */
struct pt_leaves { uint64_t n4k, n2m, n1g; };
void ptab_count(const struct ptab *, struct pt_leaves *);
/* Fast single-leaf install for the nested-fault path: order ORDER_4K/2M/1G; 0, -ENOMEM, or -EEXIST when a table or leaf is in the way. */
int  ptab_set_leaf(struct ptab *, uint64_t va, hpa_t pa, unsigned order, unsigned prot, enum pt_memtype);
