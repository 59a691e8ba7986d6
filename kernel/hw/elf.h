/* ELF files: System V Application Binary Interface, edition 4.1, chapters 4 and 5; ELF-64 Object File Format 1.5. */
#pragma once
#include "kernel/lib/base.h"

#define ELF_CLASS_32    1
#define ELF_CLASS_64    2
#define ELF_DATA_LSB    1
#define ELF_PT_LOAD     1
#define ELF_PT_NOTE     4

struct elf32_ehdr {
    uint8_t e_ident[16];                /* 7F "ELF", class, data, … */
    uint16_t e_type, e_machine;
    uint32_t e_version, e_entry, e_phoff, e_shoff, e_flags;
    uint16_t e_ehsize, e_phentsize, e_phnum, e_shentsize, e_shnum, e_shstrndx;
};
_Static_assert(sizeof(struct elf32_ehdr) == 52, "ELF32 header");

struct elf64_ehdr {
    uint8_t e_ident[16];
    uint16_t e_type, e_machine;
    uint32_t e_version;
    uint64_t e_entry, e_phoff, e_shoff;
    uint32_t e_flags;
    uint16_t e_ehsize, e_phentsize, e_phnum, e_shentsize, e_shnum, e_shstrndx;
};
_Static_assert(sizeof(struct elf64_ehdr) == 64, "ELF64 header");

struct elf32_phdr { uint32_t p_type, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_flags, p_align; };
_Static_assert(sizeof(struct elf32_phdr) == 32, "ELF32 program header");
struct elf64_phdr { uint32_t p_type, p_flags; uint64_t p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align; };
_Static_assert(sizeof(struct elf64_phdr) == 56, "ELF64 program header");

struct elf_note { uint32_t n_namesz, n_descsz, n_type; };       /* name and descriptor follow, each padded */
_Static_assert(sizeof(struct elf_note) == 12, "ELF note");
