/* Makes a tiny guest a PVH kernel: the note that loaders look for, and the way into the common entry. */
    .section .note.pvh, "a", @note
    .align 4
    .long 4, 4, 18                      /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .long pvh_start

    .text
    .code32
pvh_start:
    movl $0x336ec578, %eax              /* the structure's magic, where multiboot has its own */
    jmp _start
    .section .note.GNU-stack, "", @progbits
