/*
 * Definition of a VM: what the operator wrote.  One table of keys serves TOML, JSON, the flags of `vm create` and `vm set`,
 * help and completion.
 */
#pragma once
#include "mgmt/conf.h"
#include "mgmt/fail.h"
#include "mgmt/json.h"

enum { VMDEF_DISKS = 16, VMDEF_MAX_CPUS = 32, VMDEF_IMAGE = 128, VMDEF_MAX_FILE = 64 << 10 };

struct vmdef_disk { char image[VMDEF_IMAGE]; unsigned bus; bool read_only; char serial[21]; };

struct vmdef {
    char name[64];
    unsigned cpus;
    uint64_t mem;               /* bytes */
    unsigned firmware;          /* index in the key's words: kernel */
    char kernel[VMDEF_IMAGE], initrd[VMDEF_IMAGE];      /* names in the image store */
    char cmdline[2048];
    bool autostart;
    unsigned on_crash;          /* 0 reset, 1 stop */
    unsigned weight, cap;
    bool hpet, rng, debug_exit, com2, virtio_console;
    struct vmdef_disk disks[VMDEF_DISKS];
    unsigned ndisks;
};

enum vmkey_kind { VMKEY_NAME, VMKEY_TEXT, VMKEY_IMAGE, VMKEY_UINT, VMKEY_SIZE, VMKEY_BOOL, VMKEY_WORD };

struct vmkey {
    const char *name;
    enum vmkey_kind kind;
    size_t offset, size;        /* of the field; size: of char arrays */
    uint64_t min, max;
    const char *const *words;   /* VMKEY_WORD: NULL-terminated; the field is the index */
    const char *metavar, *help;
};

const struct vmkey *vmdef_keys(unsigned *n);
const struct vmkey *vmdef_disk_keys(unsigned *n);

/* [A-Za-z][A-Za-z0-9._-]{0,62} */
bool name_valid(const char *);

void vmdef_init(struct vmdef *);        /* defaults */
/* One key from a flag.  "disk" takes IMAGE or image=IMAGE,bus=virtio,read-only,serial=TEXT. */
int  vmdef_flag(struct vmdef *, const char *key, const char *text, struct fail *);
/* TOML or JSON, onto the defaults. */
int  vmdef_read(struct vmdef *, const char *text, size_t len, const char *file, struct fail *);
int  vmdef_check(const struct vmdef *, struct fail *);  /* what only the whole shows: a name, a kernel */
void vmdef_toml(const struct vmdef *, struct buf *);
void vmdef_json(const struct vmdef *, struct json *, const char *key);
