/*
 * The seam between boot/head.S + linker.ld and the C kernel.
 *
 * Machine state when kernel_main is called, whichever way the machine was booted: 64-bit mode, interrupts off, CR0.WP set, EFER.NXE set,
 * CR4 = PAE, no IDT, a flat GDT of our own, GS base at boot_percpu, a BOOT_STACK_SIZE stack with an unmapped page below it.
 * Page tables: the first 4 GiB identity mapped with 2 MiB pages, and the image at its link address; everything writable and executable.
 */
#pragma once
#define KERNEL_BASE 0xffffffff80000000          /* last 2 GiB of the address space, as -mcmodel=kernel wants */
#define KERNEL_LOAD 0x200000                    /* physical address the image is linked for; the loader may move it by 2 MiB steps */
#define KERNEL_VIRT (KERNEL_BASE + KERNEL_LOAD) /* link address of __image_start */

#define BOOT_STACK_SIZE     16384
#define BOOT_PERCPU_SIZE    256
#define BOOT_PERCPU_CANARY  40                  /* %gs:40, see -mstack-protector-guard-offset in the Makefile */

#define BOOT_KIND_MULTIBOOT2 0x36d76289         /* information block: Multiboot2 Specification 2.0 */
#define BOOT_KIND_PVH        0x336ec578         /* information block: struct hvm_start_info of the x86/HVM direct boot ABI */

/* Tag of a multiboot2 information block, from boot/uefi only: BOOT_SEED_BYTES of the firmware's random numbers. */
#define BOOT_TAG_SEED       0x4a6f6973
#define BOOT_SEED_BYTES     64

/* ELF note "Joist" in the image: the 64-bit entry that boot/uefi uses, as a link address. */
#define BOOT_NOTE_ENTRY64   1

#ifndef __ASSEMBLY__
#include "kernel/lib/base.h"

/* Written by the kernel proper.  info_pa lies below 4 GiB. */
__attribute__((noreturn)) void kernel_main(uint32_t kind, uint64_t info_pa);

extern uint64_t kernel_phys;        /* host physical address of __image_start */
extern uint64_t boot_cr3;           /* host physical address of the early page tables, below 4 GiB */
extern uint8_t boot_percpu[BOOT_PERCPU_SIZE];       /* first word: its own address; stack canary at BOOT_PERCPU_CANARY */
extern uint8_t boot_stack[], boot_stack_top[];      /* the page below boot_stack is boot_stack_guard */
extern uint8_t boot_stack_guard[];

/* linker.ld; all page aligned.  text: R-X, rodata: R--, data and bss: RW-. */
extern char __image_start[], __image_end[];
extern char __text_start[], __text_end[], __rodata_start[], __rodata_end[];
extern char __data_start[], __data_end[], __bss_start[], __bss_end[];

static inline uint64_t image_pa(const void *p)
{
    return (uint64_t)p - KERNEL_VIRT + kernel_phys;
}
#endif
