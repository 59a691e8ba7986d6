#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "kernel/lib/port.h"
#include "mgmt/units.h"
#include "mgmt/vmdef.h"

static const char *const firmwares[] = { "kernel", NULL };
static const char *const crashes[] = { "reset", "stop", NULL };
static const char *const buses[] = { "virtio", NULL };

#define FIELD(f) offsetof(struct vmdef, f), sizeof(((struct vmdef *)0)->f)
static const struct vmkey keys[] = {
    { "name", VMKEY_NAME, FIELD(name), 0, 0, NULL, "NAME", "name: a letter, then letters, digits, '.', '_', '-'; at most 63" },
    { "cpus", VMKEY_UINT, FIELD(cpus), 1, VMDEF_MAX_CPUS, NULL, "N", "virtual CPUs, 1 to 32" },
    { "mem", VMKEY_SIZE, FIELD(mem), 1 << 20, 16ull << 40, NULL, "SIZE", "memory, whole MiB: 512M, 4G" },
    { "firmware", VMKEY_WORD, FIELD(firmware), 0, 0, firmwares, "KIND", "kernel: boots the image named by --kernel" },
    { "kernel", VMKEY_IMAGE, FIELD(kernel), 0, 0, NULL, "IMAGE", "Linux bzImage, PVH or multiboot ELF from the image store" },
    { "initrd", VMKEY_IMAGE, FIELD(initrd), 0, 0, NULL, "IMAGE", "initial RAM disk (multiboot: the first module)" },
    { "cmdline", VMKEY_TEXT, FIELD(cmdline), 0, 0, NULL, "TEXT", "kernel command line" },
    { "autostart", VMKEY_BOOL, FIELD(autostart), 0, 0, NULL, NULL, "start the VM when Joist starts" },
    { "on-crash", VMKEY_WORD, FIELD(on_crash), 0, 0, crashes, "ACTION", "after a triple fault: reset the VM, or stop it" },
    { "cpu-weight", VMKEY_UINT, FIELD(weight), 1, 10000, NULL, "N", "share of CPU time against other VMs, 1 to 10000" },
    { "cpu-cap", VMKEY_UINT, FIELD(cap), 0, 100 * VMDEF_MAX_CPUS, NULL, "PERCENT",
      "most CPU time, in percent of one CPU; 0: no limit" },
    { "hpet", VMKEY_BOOL, FIELD(hpet), 0, 0, NULL, NULL, "high precision event timer" },
    { "rng", VMKEY_BOOL, FIELD(rng), 0, 0, NULL, NULL, "virtio entropy device" },
    { "com2", VMKEY_BOOL, FIELD(com2), 0, 0, NULL, NULL, "second serial port, see vm console --port" },
    { "virtio-console", VMKEY_BOOL, FIELD(virtio_console), 0, 0, NULL, NULL, "virtio console (hvc0), see vm console --port" },
    { "debug-exit", VMKEY_BOOL, FIELD(debug_exit), 0, 0, NULL, NULL, "port F4h stops the VM with the code written to it" },
};
#undef FIELD
#define FIELD(f) offsetof(struct vmdef_disk, f), sizeof(((struct vmdef_disk *)0)->f)
static const struct vmkey disk_keys[] = {
    { "image", VMKEY_IMAGE, FIELD(image), 0, 0, NULL, "IMAGE", "image in the store; writes go to RAM" },
    { "bus", VMKEY_WORD, FIELD(bus), 0, 0, buses, "BUS", "how the guest sees it" },
    { "read-only", VMKEY_BOOL, FIELD(read_only), 0, 0, NULL, NULL, "the guest cannot write" },
    { "serial", VMKEY_TEXT, FIELD(serial), 0, 0, NULL, "TEXT", "serial number, at most 20 characters" },
};
#undef FIELD

const struct vmkey *vmdef_keys(unsigned *n) { *n = ARRAY_SIZE(keys); return keys; }
const struct vmkey *vmdef_disk_keys(unsigned *n) { *n = ARRAY_SIZE(disk_keys); return disk_keys; }

bool name_valid(const char *s)
{
    size_t len = strlen(s);
    if (!len || len > 63 || !((*s | 0x20) >= 'a' && (*s | 0x20) <= 'z'))
        return false;
    for (; *s; s++)
        if (!((*s >= '0' && *s <= '9') || ((*s | 0x20) >= 'a' && (*s | 0x20) <= 'z') || *s == '.' || *s == '_' || *s == '-'))
            return false;
    return true;
}

void vmdef_init(struct vmdef *d)
{
    memset(d, 0, sizeof *d);
    d->cpus = 1, d->mem = 512ull << 20, d->weight = 100, d->hpet = d->rng = true;
}

/* ---- One value into one field ---- */
static int put_text(const struct vmkey *k, char *field, const struct conf_value *v, struct fail *f)
{
    if (v->kind != CONF_STRING && v->kind != CONF_WORD)
        return fail_set(f, EX_USAGE, "%s takes text in quotes", k->name);
    if (strlen(v->text) >= k->size)
        return fail_set(f, EX_USAGE, "%s is too long: at most %u bytes", k->name, (unsigned)k->size - 1);
    for (const char *s = v->text; *s; s++)
        if ((uint8_t)*s < 0x20 || *s == 0x7f)
            return fail_set(f, EX_USAGE, "%s must not hold control characters", k->name);
    if (k->kind == VMKEY_NAME && !name_valid(v->text)) {
        fail_set(f, EX_USAGE, "\"%s\" is no name for a VM", v->text);
        fail_hint(f, "a letter, then letters, digits, '.', '_' and '-'; at most 63 characters");
        return f->code;
    }
    strcpy(field, v->text);
    return EX_DONE;
}

static int put_number(const struct vmkey *k, void *field, const struct conf_value *v, struct fail *f)
{
    uint64_t n = v->num;
    char lo[32], hi[32];
    bool size = k->kind == VMKEY_SIZE;
    bool text = v->kind == CONF_WORD || (size && v->kind == CONF_STRING);
    if ((v->kind != CONF_INT && !text) || (text && !(size ? parse_size(v->text, &n) : parse_uint(v->text, &n)))) {
        fail_set(f, EX_USAGE, size ? "%s takes a size such as 512M or 4G" : "%s takes a whole number", k->name);
        return f->code;
    }
    if (n < k->min || n > k->max)
        return size ? fail_set(f, EX_USAGE, "%s must be from %s to %s", k->name, format_size(lo, k->min), format_size(hi, k->max))
                    : fail_set(f, EX_USAGE, "%s must be from %lu to %lu", k->name, (unsigned long)k->min, (unsigned long)k->max);
    if (size && n % (1 << 20))
        return fail_set(f, EX_USAGE, "%s must be whole MiB", k->name);
    if (size)
        *(uint64_t *)field = n;
    else
        *(unsigned *)field = (unsigned)n;
    return EX_DONE;
}

static int put_word(const struct vmkey *k, unsigned *field, const struct conf_value *v, struct fail *f)
{
    char all[120] = "";
    if (v->kind != CONF_STRING && v->kind != CONF_WORD)
        return fail_set(f, EX_USAGE, "%s takes a word in quotes", k->name);
    for (unsigned i = 0; k->words[i]; i++) {
        if (!strcmp(k->words[i], v->text)) {
            *field = i;
            return EX_DONE;
        }
        snprintf(all + strlen(all), sizeof all - strlen(all), "%s%s", i ? ", " : "", k->words[i]);
    }
    bool later = (k->words == firmwares && (!strcmp(v->text, "bios") || !strcmp(v->text, "uefi"))) ||
                 (k->words == buses && (!strcmp(v->text, "sata") || !strcmp(v->text, "ide") || !strcmp(v->text, "nvme")));
    fail_set(f, later ? EX_UNSUPPORTED : EX_USAGE, later ? "%s \"%s\" is not there yet" : "%s cannot be \"%s\"", k->name,
             v->text);
    fail_hint(f, "possible: %s", all);
    return f->code;
}

static int put_bool(const struct vmkey *k, bool *field, const struct conf_value *v, struct fail *f)
{
    if (v->kind == CONF_BOOL)
        *field = v->flag;
    else if (v->kind != CONF_WORD || !parse_bool(v->text, field))
        return fail_set(f, EX_USAGE, "%s takes true or false", k->name);
    return EX_DONE;
}

static int put_key(void *base, const struct vmkey *k, const struct conf_value *v, struct fail *f)
{
    void *field = (char *)base + k->offset;
    switch (k->kind) {
    case VMKEY_NAME: case VMKEY_TEXT: case VMKEY_IMAGE: return put_text(k, field, v, f);
    case VMKEY_UINT: case VMKEY_SIZE: return put_number(k, field, v, f);
    case VMKEY_WORD: return put_word(k, field, v, f);
    case VMKEY_BOOL: return put_bool(k, field, v, f);
    }
    return EX_FAILED;
}

static const struct vmkey *find(const struct vmkey *k, unsigned n, const char *name, struct fail *f)
{
    const struct vmkey *near = NULL;
    unsigned best = 3;
    for (unsigned i = 0; i < n; i++) {
        unsigned d = name_distance(k[i].name, name, best);
        if (!d)
            return &k[i];
        if (d >= best && (!strncmp(k[i].name, name, strlen(k[i].name)) || !strncmp(k[i].name, name, strlen(name))))
            d = best - 1;
        if (d < best)
            best = d, near = &k[i];
    }
    fail_set(f, EX_USAGE, "there is no key \"%.60s\"", name);
    if (near)
        fail_hint(f, "did you mean %s?", near->name);
    return NULL;
}

/* ---- Files ---- */
struct file { struct vmdef *def; struct fail *fail; uint32_t seen, disk_seen; };
_Static_assert(ARRAY_SIZE(keys) <= 32 && ARRAY_SIZE(disk_keys) <= 32, "seen is one word");

static int new_section(struct file *x, const char *section)
{
    if (!strcmp(section, "cd") || !strcmp(section, "net"))
        return fail_set(x->fail, EX_UNSUPPORTED, "[[%s]] is not there yet", section);
    if (strcmp(section, "disk"))
        return fail_set(x->fail, EX_USAGE, "there is no section [[%.60s]]; known: [[disk]]", section);
    if (x->def->ndisks && !x->def->disks[x->def->ndisks - 1].image[0])
        return fail_set(x->fail, EX_USAGE, "the disk above has no image");
    if (x->def->ndisks == VMDEF_DISKS)
        return fail_set(x->fail, EX_USAGE, "a VM has at most %d disks", VMDEF_DISKS);
    x->def->disks[x->def->ndisks++] = (struct vmdef_disk){ 0 };
    x->disk_seen = 0;
    return EX_DONE;
}

static int put_file_key(struct file *x, const char *section, const char *name, const struct conf_value *v)
{
    const struct vmkey *table = section ? disk_keys : keys;
    uint32_t *seen = section ? &x->disk_seen : &x->seen;
    const struct vmkey *k = find(table, section ? ARRAY_SIZE(disk_keys) : ARRAY_SIZE(keys), name, x->fail);
    if (!k)
        return x->fail->code;
    if (*seen & 1u << (k - table))
        return fail_set(x->fail, EX_USAGE, "%s is given twice", k->name);
    *seen |= 1u << (k - table);
    return put_key(section ? (void *)&x->def->disks[x->def->ndisks - 1] : x->def, k, v, x->fail);
}

static int file_put(void *arg, const char *section, const char *name, const struct conf_value *v, char *err, size_t errlen)
{
    struct file *x = arg;
    int code = v->kind == CONF_SECTION ? new_section(x, section) : put_file_key(x, section, name, v);
    if (code)
        snprintf(err, errlen, "%s%s%s", x->fail->message, x->fail->hint[0] ? "; " : "", x->fail->hint);
    return code ? -EINVAL : 0;
}

int vmdef_read(struct vmdef *d, const char *text, size_t len, const char *name, struct fail *f)
{
    struct conf_error e = { 0 };
    struct file x = { .def = d, .fail = f };
    struct conf_sink sink = { file_put, &x };
    if (len > VMDEF_MAX_FILE)
        return fail_set(f, EX_USAGE, "%s is too long for a definition (at most 64K)", name);
    f->code = EX_DONE;
    if (!conf_parse(text, len, &sink, &e)) {
        if (!d->ndisks || d->disks[d->ndisks - 1].image[0])
            return EX_DONE;
        return fail_set(f, EX_USAGE, "%s: the last disk has no image", name);
    }
    return fail_set(f, f->code ? f->code : EX_USAGE, "%s line %u: %s", name, e.line, e.text);
}

int vmdef_check(const struct vmdef *d, struct fail *f)
{
    if (!d->name[0]) {
        fail_set(f, EX_USAGE, "the VM has no name");
        fail_hint(f, "vm create NAME ..., or name = \"...\" in the file");
        return f->code;
    }
    if (!d->kernel[0]) {
        fail_set(f, EX_USAGE, "VM \"%s\" has no kernel to boot", d->name);
        fail_hint(f, "give one from the image store: --kernel IMAGE (image list shows them)");
        return f->code;
    }
    return EX_DONE;
}

/* ---- Flags ---- */
static int disk_flag(struct vmdef *d, const char *text, struct fail *f)
{
    char part[VMDEF_IMAGE + 16];
    struct vmdef_disk disk = { 0 };
    if (d->ndisks == VMDEF_DISKS)
        return fail_set(f, EX_USAGE, "a VM has at most %d disks", VMDEF_DISKS);
    for (bool first = true; *text; first = false) {
        size_t len = strcspn(text, ",");
        if (len >= sizeof part)
            return fail_set(f, EX_USAGE, "--disk: \"%.40s...\" is too long", text);
        memcpy(part, text, len);
        part[len] = 0;
        text += len + (text[len] == ',');
        char *val = strchr(part, '=');
        if (val)
            *val++ = 0;
        struct conf_value v = { .kind = CONF_WORD, .text = val ? val : first ? part : "true" };
        const struct vmkey *k = find(disk_keys, ARRAY_SIZE(disk_keys), !val && first ? "image" : part, f);
        int err = k ? put_key(&disk, k, &v, f) : f->code;
        if (err)
            return err;
    }
    if (!disk.image[0])
        return fail_set(f, EX_USAGE, "--disk needs an image: --disk IMAGE or --disk image=IMAGE,read-only");
    d->disks[d->ndisks++] = disk;
    return EX_DONE;
}

int vmdef_flag(struct vmdef *d, const char *name, const char *text, struct fail *f)
{
    struct conf_value v = { .kind = CONF_WORD, .text = text };
    if (!strcmp(name, "disk"))
        return disk_flag(d, text, f);
    const struct vmkey *k = find(keys, ARRAY_SIZE(keys), name, f);
    return k ? put_key(d, k, &v, f) : f->code;
}

/* ---- Output ---- */
static void toml_quote(struct buf *b, const char *s)
{
    buf_byte(b, '"');
    for (; *s; s++) {
        if (*s == '"' || *s == '\\')
            buf_byte(b, '\\');
        buf_byte(b, *s);
    }
    buf_byte(b, '"');
}

static void toml_keys(const void *base, const struct vmkey *k, unsigned n, struct buf *b)
{
    char num[32];
    for (; n--; k++) {
        const void *field = (const char *)base + k->offset;
        bool text = k->kind <= VMKEY_IMAGE;
        if (text && !*(const char *)field)
            continue;
        buf_fmt(b, "%s = ", k->name);
        if (text)
            toml_quote(b, field);
        else if (k->kind == VMKEY_UINT)
            buf_fmt(b, "%u", *(const unsigned *)field);
        else if (k->kind == VMKEY_SIZE)
            toml_quote(b, format_size_exact(num, *(const uint64_t *)field));
        else if (k->kind == VMKEY_BOOL)
            buf_str(b, *(const bool *)field ? "true" : "false");
        else
            toml_quote(b, k->words[*(const unsigned *)field]);
        buf_byte(b, '\n');
    }
}

void vmdef_toml(const struct vmdef *d, struct buf *b)
{
    toml_keys(d, keys, ARRAY_SIZE(keys), b);
    for (unsigned i = 0; i < d->ndisks; i++) {
        buf_str(b, "[[disk]]\n");
        toml_keys(&d->disks[i], disk_keys, ARRAY_SIZE(disk_keys), b);
    }
}

static void json_keys(const void *base, const struct vmkey *k, unsigned n, struct json *j)
{
    for (; n--; k++) {
        const void *field = (const char *)base + k->offset;
        switch (k->kind) {
        case VMKEY_NAME: case VMKEY_TEXT: case VMKEY_IMAGE:
            if (*(const char *)field)
                json_str(j, k->name, field);
            break;
        case VMKEY_UINT: json_num(j, k->name, *(const unsigned *)field); break;
        case VMKEY_SIZE: json_num(j, k->name, *(const uint64_t *)field); break;
        case VMKEY_BOOL: json_bool(j, k->name, *(const bool *)field); break;
        case VMKEY_WORD: json_str(j, k->name, k->words[*(const unsigned *)field]); break;
        }
    }
}

void vmdef_json(const struct vmdef *d, struct json *j, const char *key)
{
    json_open(j, key, '{');
    json_keys(d, keys, ARRAY_SIZE(keys), j);
    json_open(j, "disk", '[');
    for (unsigned i = 0; i < d->ndisks; i++) {
        json_open(j, NULL, '{');
        json_keys(&d->disks[i], disk_keys, ARRAY_SIZE(disk_keys), j);
        json_close(j, '}');
    }
    json_close(j, ']');
    json_close(j, '}');
}
