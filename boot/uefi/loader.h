/*
 * boot/uefi: our own UEFI loader (build/joist.efi).  It boots the same kernel as GRUB does, without GRUB:
 *
 *   \joist\joist.elf        the kernel
 *   \joist\cmdline          its command line, one line of ASCII (optional)
 *   \joist\manifest         "crc32c size name" per file of the image store (optional)
 *   \joist\images\NAME      the files; each becomes a module named image:NAME, the manifest one named manifest
 *
 * all on the volume that the loader was started from.  It hands over a multiboot2 information block, so the kernel has one parser for
 * GRUB and for us, and enters at the ELF note's 64-bit entry (_start64 in boot/head.S).  That entry leaves long mode and joins the
 * 32-bit path of the other loaders: what the firmware had switched on in CR4 and EFER ends there, and one path is tested by all.
 * Everything handed over therefore lies below 4 GiB.
 *
 * Every error is said in one sentence that names the file or the setting to change; the firmware then goes on with its boot order.
 * UEFI Specification 2.10; Multiboot2 Specification 2.0.
 */
#pragma once
#include <efi.h>
#include <efilib.h>
#include <stdbool.h>
#include <stdint.h>

#define BELOW_4G 0xffffefffull      /* highest address asked for; the end of a module must fit into 32 bits */

/* Prints "Joist: ..." and gives the status back, so that callers can return it. */
EFI_STATUS fail(EFI_STATUS, const CHAR16 *fmt, ...);

/* file.c: the volume the loader came from. */
EFI_STATUS volume_open(EFI_HANDLE image, EFI_FILE_HANDLE *root);
/* EFI_NOT_FOUND is returned silently, everything else is reported. */
EFI_STATUS file_open(EFI_FILE_HANDLE root, const CHAR16 *path, EFI_FILE_HANDLE *file, uint64_t *size);
EFI_STATUS file_read(EFI_FILE_HANDLE file, const CHAR16 *path, uint64_t pos, void *buf, uint64_t len);
/* A whole file into fresh pages below 4 GiB (at least one, zero filled at the end).  Never freed. */
EFI_STATUS file_load(EFI_FILE_HANDLE root, const CHAR16 *path, uint8_t **data, uint64_t *size);

/* elf.c */
struct kernel { uint64_t base /* physical */, entry64 /* physical */; };
EFI_STATUS kernel_load(EFI_FILE_HANDLE root, const CHAR16 *path, struct kernel *);

/* info.c: a multiboot2 information block under construction.  Capacity is checked; overflow shows in info_end(). */
struct info { uint8_t *at; uint32_t len, max; bool full; };
struct memory_map { UINT8 *buf; UINTN size, max, key, desc_size; UINT32 version; };
void info_begin(struct info *, void *buf, uint32_t max);
void info_string(struct info *, uint32_t type, const char *s, uint32_t len);
void info_module(struct info *, uint64_t base, uint64_t len, const char *prefix, const char *name, uint32_t name_len);
void info_firmware(struct info *, EFI_SYSTEM_TABLE *);     /* framebuffer, RSDP, system table */
void info_memory(struct info *, const struct memory_map *);  /* also after ExitBootServices: calls no firmware */
bool info_end(struct info *);
