core += boot/head.S boot/ap.S boot/symtab.c
hosted += boot/bootinfo.c
