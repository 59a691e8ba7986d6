/* A model of a small set of files, to hold the file system against: contents, sizes, existence. */
#pragma once
#include "kernel/fs/fs.h"

#define MODEL_FILES 12
#define MODEL_SIZE  (600u << 10)

/*
 * Every 8 bytes written say at which offset (bits 63:40, in words), when (39:16) and into which file (15:0, its id; names change, ids
 * do not) they were written.
 */
struct model_file { bool exists; uint64_t size, id, zeroed /* version of its last punch or truncation */; uint8_t *data; };
struct model {
    struct model_file file[MODEL_FILES];
    uint64_t seed, version, ids, max_size;
    void (*on_error)(void);     /* called when an operation failed, before the file is read to see what it has become */
};

void model_init(struct model *, uint64_t seed);
void model_fini(struct model *);
void model_copy(struct model *to, const struct model *from);
const char *model_name(int i, char buf[32]);

/* One random operation on both; returns the file system's error.  After an error in a file the model takes over what the file shows. */
int model_step(struct model *, struct fs *, unsigned flags);
enum { MODEL_NO_CLONE = 1, MODEL_ALIGNED = 2 /* all offsets are multiples of 8 */ };

/* NULL, or what differs. */
const char *model_compare(struct model *, struct fs *);
