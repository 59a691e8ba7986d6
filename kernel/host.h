/* Host facts and power for the management layer; implemented in kernel/host.c beside main.c.  Thread context. */
#pragma once
#include "kernel/lib/base.h"

/* One file of the boot stick's image store. */
enum host_image_state { IMAGE_UNCHECKED, IMAGE_OK, IMAGE_CORRUPT };
struct host_image { char name[128]; const void *data; uint64_t len; unsigned index; enum host_image_state state; };

unsigned host_images(void);
bool host_image(unsigned i, struct host_image *);
/* Before an image is used: its checksum, computed once, by a thread in the background or by the first who asks.  Waits; false: IMAGE_CORRUPT. */
bool host_image_sound(struct host_image *);
const char *host_cmdline(void);
struct host_facts {
    char vendor[16], brand[64], loader[64];
    unsigned cpus_online, cpus_listed;
    uint64_t ram, tsc_hz;
    bool tsc_invariant, x2apic, uefi;
    const char *clock_source, *hv_name;         /* "AMD-V"; NULL with hv_why in `hv_why` */
    const char *hv_why;
};
void host_facts(struct host_facts *);
/* Bytes.  total: RAM in the memory map; images: the store; promised: reserved for VMs (guest RAM and tables); free: neither used nor promised. */
struct host_mem { uint64_t total, free, promised, images, kernel, heap, zero_pool; };
void host_mem(struct host_mem *);
/* Lines for `host cpu` (features, mitigations and why), `host pci`. */
void host_cpu_lines(void (*fn)(void *arg, const char *key, const char *value), void *arg);
struct host_pci { uint16_t seg; uint8_t bus, dev, fn; uint16_t vendor, device; uint32_t class_code; const char *driver, *irq; };
void host_pci_each(void (*fn)(void *arg, const struct host_pci *), void *arg);
int  host_poweroff(void);               /* does not return on success; -errno: how it failed */
int  host_reboot(void);
/* Log ring: calls fn for each kept line, oldest first; previous: of the boot before the last warm reset. */
void host_log_each(bool previous, void (*fn)(void *arg, uint64_t ns, int level, const char *area, const char *text), void *arg);
