hosted += kernel/mm/page.c kernel/mm/ptab.c kernel/mm/heap.c
core += kernel/mm/kmalloc.c
