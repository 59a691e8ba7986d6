hosted += $(addprefix kernel/fs/,super.c space.c node.c btree.c inode.c extent.c dir.c data.c fileblk.c check.c)
