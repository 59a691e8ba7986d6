/* kernel/host.h: facts, image store, power. */
#include "kernel/host.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "boot/boot.h"
#include "kernel/console/console.h"
#include "kernel/host_boot.h"
#include "kernel/lib/crc.h"
#include "kernel/lib/log.h"
#include "kernel/lib/port.h"
#include "kernel/mm/heap.h"
#include "kernel/mm/page.h"
#include "kernel/sched/sched.h"
#include "kernel/vmm/hv_ops.h"
#include "kernel/x86/acpi.h"
#include "kernel/x86/cpu.h"
#include "kernel/x86/lapic.h"
#include "kernel/x86/mitigations.h"
#include "kernel/x86/power.h"
#include "kernel/x86/random.h"
#include "kernel/x86/time.h"

static const struct bootinfo *boot;
/* lock: held while the sum is computed; later readers wait there.  Everything else but im.state is constant once the store is found. */
struct stored { struct host_image im; uint32_t crc; struct mutex lock; };
static struct { struct stored image[BOOT_MAX_MODS]; unsigned n; uint64_t bytes; } store;

void host_init(const struct bootinfo *b) { boot = b; }

/* ---- Image store ---- */
struct manifest { const char *text; size_t len; };

/* "crc32c size name" of one image; false: not listed. */
static bool manifest_find(const struct manifest *m, const char *name, uint32_t *crc, uint64_t *size)
{
    const char *at = m->text, *end = m->text + m->len;
    while (at < end) {
        char line[192], *rest;
        const char *nl = memchr(at, '\n', (size_t)(end - at));
        size_t n = (size_t)((nl ? nl : end) - at);
        if (n < sizeof(line)) {
            memcpy(line, at, n);
            line[n] = 0;
            *crc = (uint32_t)strtoul(line, &rest, 16);
            *size = strtoull(rest, &rest, 10);
            if (*rest == ' ' && !strcmp(rest + 1, name))
                return true;
        }
        at += n + 1;
    }
    return false;
}

static void mark_corrupt(struct host_image *im, const char *what)
{
    atomic_store(&im->state, IMAGE_CORRUPT);
    log_err("image", "image \"%s\" %s: write the boot medium again; VMs that need it will not start", im->name, what);
}

static void add_image(const struct bootmod *mod, const struct manifest *m)
{
    /* A loader that gives modules no names (PVH) carries one: the initrd. */
    const char *name = !strncmp(mod->name, "image:", 6) ? mod->name + 6 : mod->name[0] ? mod->name : "initrd";
    struct stored *s = &store.image[store.n];
    struct host_image *im = &s->im;
    uint64_t size;
    *im = (struct host_image){ .data = pa_to_va(mod->base), .len = mod->len, .index = store.n++, .state = m->text ? IMAGE_UNCHECKED : IMAGE_OK };
    snprintf(im->name, sizeof(im->name), "%s", name);
    mutex_init(&s->lock);
    store.bytes += mod->len;
    if (m->text && !manifest_find(m, im->name, &s->crc, &size))
        mark_corrupt(im, "is not in the boot medium's manifest");
    else if (m->text && size != im->len)
        mark_corrupt(im, "has the wrong length");
}

bool host_image_sound(struct host_image *out)
{
    struct stored *s = &store.image[out->index];
    if (atomic_load(&s->im.state) == IMAGE_UNCHECKED) {
        mutex_lock(&s->lock);
        if (s->im.state == IMAGE_UNCHECKED && crc32c(0, s->im.data, s->im.len) != s->crc)
            mark_corrupt(&s->im, "has a wrong checksum");
        else if (s->im.state == IMAGE_UNCHECKED)
            atomic_store(&s->im.state, IMAGE_OK);
        mutex_unlock(&s->lock);
    }
    out->state = atomic_load(&s->im.state);
    return out->state == IMAGE_OK;
}

static void check_thread(void *arg)
{
    uint64_t start = clock_ns();
    unsigned bad = 0;
    for (unsigned i = 0; i < store.n; i++) {
        struct host_image im = { .index = i };
        bad += !host_image_sound(&im);
    }
    if (!bad)
        log_info("image", "all images checked in %llu ms", (unsigned long long)((clock_ns() - start) / 1000000));
}

void host_find_images(void)
{
    struct manifest m = { 0 };
    for (int i = 0; i < boot->nmods; i++)
        if (!strcmp(boot->mods[i].name, "manifest"))
            m = (struct manifest){ pa_to_va(boot->mods[i].base), boot->mods[i].len };
    for (int i = 0; i < boot->nmods; i++)
        if (strcmp(boot->mods[i].name, "manifest"))
            add_image(&boot->mods[i], &m);
    if (!store.n)
        return;
    log_info("image", "%u images, %llu MiB%s", store.n, (unsigned long long)(store.bytes >> 20), m.text ? "" : ", no manifest to check them");
    if (m.text && !thread_start("image-check", check_thread, NULL))
        log_warn("image", "no memory to check images ahead: each is checked when a VM needs it");
}

unsigned host_images(void) { return store.n; }

bool host_image(unsigned i, struct host_image *out)
{
    if (i >= store.n)
        return false;
    *out = store.image[i].im;
    return true;
}

/* ---- Facts ---- */
const char *host_cmdline(void) { return boot->cmdline; }

static uint64_t map_ram(void)
{
    uint64_t sum = 0;
    for (int i = 0; i < boot->nmem; i++)
        if (boot->mem[i].type == BOOTMEM_RAM || boot->mem[i].type == BOOTMEM_LOADER)
            sum += boot->mem[i].len;
    return sum;
}

void host_facts(struct host_facts *f)
{
    memset(f, 0, sizeof(*f));
    snprintf(f->vendor, sizeof(f->vendor), "%s", cpu_info.vendor_id);
    snprintf(f->brand, sizeof(f->brand), "%s", cpu_info.brand);
    snprintf(f->loader, sizeof(f->loader), "%s", boot->loader);
    f->cpus_online = port_ncpus(), f->cpus_listed = MAX(acpi.cpus_listed, 1u);
    f->ram = map_ram(), f->tsc_hz = tsc_hz();
    f->tsc_invariant = cpu_has(FEAT_INVTSC), f->x2apic = lapic_x2apic(), f->uefi = boot->efi_systab;
    f->clock_source = clock_source_name();
    f->hv_name = hv ? hv->name : NULL, f->hv_why = hv_why;
}

void host_mem(struct host_mem *m)
{
    struct mem_stats s;
    mem_stats(&s);
    m->total = map_ram(), m->promised = s.reserved, m->images = store.bytes, m->heap = heap_bytes(), m->zero_pool = s.zero_pool;
    m->free = s.free > s.reserved ? s.free - s.reserved : 0;
    m->kernel = m->total - MIN(m->total, s.free + store.bytes + m->heap);
}

struct lines { void (*fn)(void *arg, const char *key, const char *value); void *arg; };

static void mitigation_line(void *arg, const char *name, const char *state)
{
    const struct lines *l = arg;
    l->fn(l->arg, name, state);
}

void host_cpu_lines(void (*fn)(void *arg, const char *key, const char *value), void *arg)
{
    char text[600];
    snprintf(text, sizeof(text), "%s (family %u, model %u, stepping %u, microcode %#x)", cpu_info.brand, cpu_info.family, cpu_info.model,
             cpu_info.stepping, (unsigned)cpu_info.microcode);
    fn(arg, "CPU", text);
    snprintf(text, sizeof(text), "%u physical, %u linear", cpu_info.phys_bits, cpu_info.lin_bits);
    fn(arg, "Address bits", text);
    text[0] = 0;
    for (unsigned f = 0; f < CPU_FEATURE_COUNT; f++)
        if (cpu_has((enum cpu_feature)f) && strlen(text) + strlen(cpu_feature_text((enum cpu_feature)f)) + 2 < sizeof(text))
            strcat(strcat(text, text[0] ? " " : ""), cpu_feature_text((enum cpu_feature)f));
    fn(arg, "Features", text);
    fn(arg, "Random numbers", random_sources());
    mitigations_each(mitigation_line, &(struct lines){ fn, arg });
}

/* ---- Power, log ---- */

/* ACPI wants sleep states entered by the boot CPU, and some firmware does not come up again when another one pulls the reset line. */
static void go_to_boot_cpu(void)
{
    static const struct cpuset first = { { 1 } };
    thread_set_cpus(thread_self(), &first);
    while (port_cpu() != 0)
        thread_yield();
}

int host_poweroff(void)
{
    log_info("power", "switching off");
    go_to_boot_cpu();
    return power_off();
}

int host_reboot(void)
{
    log_info("power", "reset");
    go_to_boot_cpu();
    power_reset();
}

void host_log_each(bool previous, void (*fn)(void *arg, uint64_t ns, int level, const char *area, const char *text), void *arg)
{
    struct log_line l;
    for (uint64_t seq = 0; previous ? log_read_previous(&seq, &l) : log_read(&seq, &l);)
        fn(arg, l.ns, l.level, l.area, l.text);
}
