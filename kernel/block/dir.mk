hosted += kernel/block/blk.c kernel/block/split.c kernel/block/mapped.c \
  $(addprefix kernel/block/,image.c codec.c qcow2.c qcow2_open.c qcow2_create.c qcow2_alloc.c qcow2_check.c qcow2_snapshot.c vdi.c vmdk.c vmdk_open.c vmdk_create.c linear.c part.c lvm.c)
hosted += kernel/block/ram.c kernel/block/overlay.c
