hosted += kernel/block/blk.c kernel/block/split.c kernel/block/mapped.c
hosted += kernel/block/ram.c kernel/block/overlay.c
