hosted += kernel/block/blk.c kernel/block/split.c
