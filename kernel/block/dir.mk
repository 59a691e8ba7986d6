hosted += kernel/block/blk.c kernel/block/split.c
hosted += kernel/block/ram.c kernel/block/overlay.c
