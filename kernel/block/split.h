/* Inside of the block core: what blk.c hands to split.c. */
#pragma once
#include "kernel/block/blk.h"

/* Whether the layer takes this request as it is. */
bool blk_fits(const struct blk *, const struct blk_req *);
/* Cut a checked request into pieces that fit; ends it when the last piece has ended, with the first error. */
void blk_split_submit(struct blk *, struct blk_req *);
int  blk_split_open(struct blk *);
void blk_split_close(struct blk *);
