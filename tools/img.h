/* What joistimg's verbs share. */
#pragma once
#include <getopt.h>
#include "kernel/block/image.h"
#include "tools/hostfile.h"

extern bool quiet, show_progress;
/* Exit status of a failure, as qemu-img has it: 1; compare: 2, and 4 once both images are open. */
extern int failure;

/* A sentence on stderr, then the end. */
__attribute__((noreturn)) void fail(const char *what, const char *object, int err, const struct image_env *env);
__attribute__((noreturn)) void misused(const char *what, const char *value);

enum image_format format_arg(const char *name);
struct place { char dir[4096]; bool create; };          /* where the files are that an image names */
void env_for(struct image_env *, struct place *, const char *path, bool create);
/* IMAGE_NONE: by its contents, with a warning if they say raw and it is to be written. */
struct blk *open_image(const char *path, enum image_format, unsigned flags);
void close_image(struct blk *, const char *path);       /* fails if what was written cannot be flushed */

/* Whether off reads as zeroes without looking, or has to be read; *len becomes the length of that. */
bool known_zero(struct blk *, uint64_t off, uint64_t *len, const char *path);
bool is_zero(const uint8_t *p, size_t n);

void img_progress(uint64_t done, uint64_t all);         /* with -p */
void img_progress_end(void);

/* The verbs: argv[0] is the verb.  Exit status; USAGE: print the usage and fail. */
enum { USAGE = -1 };
int cmd_convert(int argc, char **argv);
int cmd_compare(int argc, char **argv);
int cmd_info(int argc, char **argv);
int cmd_check(int argc, char **argv);
void create_image(const char *path, enum image_format, struct image_opts *);
void parse_options(struct image_opts *, const char *list);
