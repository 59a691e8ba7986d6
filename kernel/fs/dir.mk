hosted += $(addprefix kernel/fs/,super.c space_table.c space_alloc.c space_count.c space_commit.c space_grow.c node.c btree.c inode.c extent.c dir.c data.c fileblk.c check.c)
