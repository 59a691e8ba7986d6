#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kernel/lib/port.h"
#include "kernel/sched/sched.h"
#include "kernel/vmm/exit.h"
#include "tests/mgmt/fake_machine.h"

struct fake_host fake_host;

/* ---- The machine ---- */
struct machine {
    struct machine_config cfg;
    struct mutex lock;
    struct cond changed;
    enum vm_state state;
    enum vm_stop cause;
    unsigned code;
    char reason[120];
    struct event kick;
    struct thread *thread;
    struct work stop_work;
    bool button, deaf, reset, greeted, quit;
    char line[80];
    size_t len;
};

static struct machine *of(struct vm *vm) { return (struct machine *)vm; }
struct vm *machine_vm(struct machine *m) { return (struct vm *)m; }

static void say(struct machine *m, const char *text, size_t len)
{
    while (m->cfg.com1 && len && !atomic_load(&m->quit)) {
        size_t n = chan_write(m->cfg.com1, CHAN_DEV, text, len);
        text += n, len -= n;
        if (len)
            event_wait_until(&m->kick, clock_ns() + 5000000);
    }
}

static void says(struct machine *m, const char *text) { say(m, text, strlen(text)); }

static void end(struct machine *m, enum vm_stop cause, unsigned code, const char *reason)
{
    mutex_lock(&m->lock);
    bool first = m->state != VM_STOPPED;
    if (first) {
        m->state = VM_STOPPED, m->cause = cause, m->code = code;
        snprintf(m->reason, sizeof m->reason, "%s", reason);
        cond_broadcast(&m->changed);
    }
    mutex_unlock(&m->lock);
    atomic_store(&m->quit, true);
    if (first)
        work_queue(&m->stop_work);
}

static void flood(struct machine *m, unsigned long lines)
{
    char text[64];
    for (unsigned long i = 0; i < lines && !atomic_load(&m->quit); i++) {
        snprintf(text, sizeof text, "line %06lu of the flood\r\n", i);
        says(m, text);
    }
}

static void obey(struct machine *m)
{
    char *arg = strchr(m->line, ' ');
    arg = arg ? arg + 1 : m->line + strlen(m->line);
    if (!strncmp(m->line, "exit", 4))
        end(m, STOP_DEBUG_EXIT, (unsigned)strtoul(arg, NULL, 10), "debug exit");
    else if (!strcmp(m->line, "crash"))
        end(m, STOP_CRASH, 0, "third triple fault within 10 s, RIP ffffffff81000000, CR2 0");
    else if (!strcmp(m->line, "poweroff"))
        end(m, STOP_POWEROFF, 0, "");
    else if (!strcmp(m->line, "reboot"))
        atomic_store(&m->reset, true);
    else if (!strcmp(m->line, "deaf"))
        m->deaf = true;
    else if (!strncmp(m->line, "flood", 5))
        flood(m, strtoul(arg, NULL, 10));
    else if (m->line[0])
        says(m, m->line), says(m, ": not found\r\n");
}

static void listen(struct machine *m)
{
    char c;
    while (!m->deaf && !atomic_load(&m->quit) && m->cfg.com1 && chan_read(m->cfg.com1, CHAN_DEV, &c, 1)) {
        if (c == '\r') {
            says(m, "\r\n");
            m->line[m->len] = 0;
            m->len = 0;
            obey(m);
            says(m, "# ");
        } else if (m->len < sizeof m->line - 1) {
            m->line[m->len++] = c;
            say(m, &c, 1);
        }
    }
}

static void run(void *arg)
{
    struct machine *m = arg;
    while (!atomic_load(&m->quit)) {
        mutex_lock(&m->lock);
        bool runs = m->state == VM_RUNNING;
        mutex_unlock(&m->lock);
        if (runs && (!m->greeted || atomic_load(&m->reset))) {
            m->greeted = true;
            mutex_lock(&m->lock);       /* as the real one holds its lock here and in the statistics */
            if (atomic_xchg(&m->reset, false) && m->cfg.was_reset)
                m->cfg.was_reset(m->cfg.arg);
            mutex_unlock(&m->lock);
            says(m, "fake guest of ");
            says(m, m->cfg.vm.name);
            says(m, "\r\n# ");
        }
        if (runs)
            listen(m);
        if (runs && atomic_load(&m->button) && !m->deaf) {
            says(m, "\r\npower button\r\n");
            end(m, STOP_POWEROFF, 0, "");
        }
        if (!atomic_load(&m->quit))
            event_wait(&m->kick);
    }
}

static void tell_stopped(struct work *w)
{
    struct machine *m = container_of(w, struct machine, stop_work);
    m->cfg.stopped(m->cfg.arg, m->cause, m->reason);
}

static void kick(void *arg)
{
    struct machine *m = arg;
    event_post(&m->kick);
}

int machine_create(const struct machine_config *cfg, struct machine **out, char *err, size_t errlen)
{
    if (fake_host.create_err) {
        snprintf(err, errlen, "the fake was told to fail");
        return fake_host.create_err;
    }
    if (cfg->vm.ram > atomic_load(&fake_host.ram_left)) {
        snprintf(err, errlen, "it needs %lu MiB and %lu MiB are free", (unsigned long)(cfg->vm.ram >> 20),
                 (unsigned long)(fake_host.ram_left >> 20));
        return -ENOMEM;
    }
    struct machine *m = kzalloc(sizeof *m);
    if (!m) {
        snprintf(err, errlen, "no memory");
        return -ENOMEM;
    }
    m->cfg = *cfg;
    mutex_init(&m->lock);
    cond_init(&m->changed);
    event_init(&m->kick);
    work_init(&m->stop_work, tell_stopped);
    if (cfg->com1)
        chan_set_notify(cfg->com1, CHAN_DEV, kick, m);
    atomic_add(&fake_host.machines, 1u);
    atomic_sub(&fake_host.ram_left, cfg->vm.ram);
    *out = m;
    return 0;
}

int machine_start(struct machine *m, char *err, size_t errlen)
{
    m->state = VM_RUNNING;
    m->thread = thread_start("fake-guest", run, m);
    if (m->thread)
        return 0;
    m->state = VM_STOPPED;
    snprintf(err, errlen, "no memory for a thread");
    return -ENOMEM;
}

void machine_destroy(struct machine *m)
{
    ASSERT(m->state == VM_STOPPED);
    atomic_store(&m->quit, true);
    event_post(&m->kick);
    if (m->thread)
        thread_join(m->thread);
    work_flush(&m->stop_work);
    if (m->cfg.com1)
        chan_set_notify(m->cfg.com1, CHAN_DEV, NULL, NULL);
    atomic_sub(&fake_host.machines, 1u);
    atomic_add(&fake_host.ram_left, m->cfg.vm.ram);
    kfree(m);
}

void machine_power_button(struct machine *m)
{
    atomic_store(&m->button, true);
    event_post(&m->kick);
}

void machine_each_device(struct machine *m, void (*fn)(void *arg, const char *bus, uint64_t base, uint64_t len, const char *name),
                         void *arg)
{
    fn(arg, "port", 0x20, 2, "pic");
    fn(arg, "port", 0x3f8, 8, "uart");
    fn(arg, "mmio", 0xfed00000, 0x400, "hpet");
}

/* ---- struct vm ---- */
static int step(struct vm *vm, enum vm_state want, enum vm_state next)
{
    struct machine *m = of(vm);
    mutex_lock(&m->lock);
    bool ok = m->state == want;
    if (ok)
        m->state = next;
    mutex_unlock(&m->lock);
    event_post(&m->kick);
    return ok ? 0 : -EBUSY;
}

int vm_pause(struct vm *vm) { return step(vm, VM_RUNNING, VM_PAUSED); }
int vm_resume(struct vm *vm) { return step(vm, VM_PAUSED, VM_RUNNING); }

int vm_set_share(struct vm *vm, unsigned weight, unsigned cap)
{
    struct machine *m = of(vm);
    mutex_lock(&m->lock);
    m->cfg.vm.weight = weight, m->cfg.vm.cap = cap;
    fake_host.shares_set++;
    mutex_unlock(&m->lock);
    return 0;
}

int vm_kill(struct vm *vm)
{
    end(of(vm), STOP_KILLED, 0, "");
    event_post(&of(vm)->kick);
    return 0;
}

int vm_reset(struct vm *vm)
{
    atomic_store(&of(vm)->reset, true);
    event_post(&of(vm)->kick);
    return vm_state(vm) == VM_RUNNING ? 0 : -EBUSY;
}

enum vm_state vm_state(struct vm *vm)
{
    struct machine *m = of(vm);
    mutex_lock(&m->lock);
    enum vm_state s = m->state;
    mutex_unlock(&m->lock);
    return s;
}

enum vm_stop vm_stop_cause(struct vm *vm, char *reason, size_t len, unsigned *code)
{
    snprintf(reason, len, "%s", of(vm)->reason);
    *code = of(vm)->code;
    return of(vm)->cause;
}

void vm_vcpu_stats(struct vm *vm, unsigned index, struct vcpu_stats *s)
{
    *s = (struct vcpu_stats){ .guest_ns = 1500000000, .host_ns = 20000000, .halt_ns = 7000000000, .steal_ns = 300000,
        .irqs = 42, .cpu = index, .started = true };
    mutex_lock(&of(vm)->lock);
    s->exits[EXIT_PIO] = 1000 + index, s->exits[EXIT_HLT] = 7;
    mutex_unlock(&of(vm)->lock);
}

unsigned vm_ncpus(const struct vm *vm) { return ((const struct machine *)vm)->cfg.vm.ncpus; }
const char *vm_name(const struct vm *vm) { return ((const struct machine *)vm)->cfg.vm.name; }
uint64_t vm_overhead(struct vm *vm) { return 700 << 10; }

void vm_dump(struct vm *vm, void (*print)(void *arg, const char *line), void *arg)
{
    print(arg, "vcpu 0: RIP ffffffff81000000 RSP ffffc90000000000 CR2 0");
    print(arg, "last exits: pio 3f8 out, hlt");
}

__attribute__((weak)) const char *exit_kind_name(enum exit_kind k)
{
    static const char *const names[] = { "host-intr", "pio", "mmio", "cpuid", "hlt" };
    return (unsigned)k < ARRAY_SIZE(names) ? names[k] : "other";
}

__attribute__((weak)) void thread_each(void (*fn)(void *arg, const struct thread_info *), void *arg)
{
    uint64_t now = clock_ns();
    fn(arg, &(struct thread_info){ .name = "idle/0", .state = 'R', .run_ns = now / 2 });
    fn(arg, &(struct thread_info){
                .name = "web1/vcpu0", .cls = THREAD_VCPU, .cpu = 1, .state = 'R', .run_ns = now / 4, .steal_ns = now / 100 });
}

/* ---- The host ---- */
bool host_image_sound(struct host_image *img) { return img->state == IMAGE_OK; }
unsigned host_images(void) { return fake_host.nimages; }

bool host_image(unsigned i, struct host_image *img)
{
    if (i >= fake_host.nimages)
        return false;
    *img = fake_host.images[i];
    return true;
}

const char *host_cmdline(void) { return "console=com1"; }

void host_facts(struct host_facts *f)
{
    *f = (struct host_facts){ .vendor = "AuthenticAMD", .brand = "Fake CPU", .loader = "GRUB", .cpus_online = 2,
        .cpus_listed = 2, .ram = 8ull << 30, .tsc_hz = 2000000000, .tsc_invariant = true, .clock_source = "tsc",
        .hv_name = fake_host.no_hv ? NULL : "AMD-V",
        .hv_why = fake_host.no_hv ? "the firmware has switched AMD-V off; enable SVM in its setup" : NULL };
}

void host_mem(struct host_mem *m)
{
    *m = (struct host_mem){ .total = 8ull << 30, .free = fake_host.ram_left, .promised = 512 << 20,
        .images = 3 << 20, .kernel = 9 << 20, .heap = 4 << 20, .zero_pool = 64 << 20 };
}

void host_cpu_lines(void (*fn)(void *arg, const char *key, const char *value), void *arg)
{
    fn(arg, "features", "svm npt nrip-save");
    fn(arg, "ibpb", "on: Zen 2");
}

void host_pci_each(void (*fn)(void *arg, const struct host_pci *), void *arg)
{
    fn(arg, &(struct host_pci){ .bus = 0, .dev = 3, .vendor = 0x1af4, .device = 0x1042, .class_code = 0x010000,
        .driver = "virtio-blk", .irq = "msi-x 34" });
    fn(arg, &(struct host_pci){ .bus = 0, .dev = 4, .fn = 1, .vendor = 0x8086, .device = 0x100e, .class_code = 0x020000 });
}

int host_poweroff(void)
{
    fake_host.poweroffs++;
    return -EIO;
}

int host_reboot(void)
{
    fake_host.reboots++;
    return -EIO;
}

/* ---- Log ---- */
static struct { struct spinlock lock; struct log_line line[64]; uint64_t n; } ring;

void fake_log(int level, const char *area, const char *text)
{
    spin_lock(&ring.lock);
    struct log_line *l = &ring.line[ring.n % ARRAY_SIZE(ring.line)];
    l->seq = ring.n++, l->ns = clock_ns(), l->level = level;
    snprintf(l->area, sizeof l->area, "%s", area);
    snprintf(l->text, sizeof l->text, "%s", text);
    spin_unlock(&ring.lock);
}

uint64_t log_end(void) { return ring.n; }

bool log_read(uint64_t *seq, struct log_line *out)
{
    spin_lock(&ring.lock);
    if (ring.n > ARRAY_SIZE(ring.line) && *seq < ring.n - ARRAY_SIZE(ring.line))
        *seq = ring.n - ARRAY_SIZE(ring.line);
    bool there = *seq < ring.n;
    if (there)
        *out = ring.line[(*seq)++ % ARRAY_SIZE(ring.line)];
    spin_unlock(&ring.lock);
    return there;
}

void host_log_each(bool previous, void (*fn)(void *arg, uint64_t ns, int level, const char *area, const char *text), void *arg)
{
    uint64_t seq = 0;
    struct log_line l;
    while (!previous && log_read(&seq, &l))
        fn(arg, l.ns, l.level, l.area, l.text);
}

/* ---- Set-up ---- */
void fake_image(const char *name, const void *data, size_t len, bool corrupt)
{
    struct host_image *i = &fake_host.images[fake_host.nimages++];
    *i = (struct host_image){ .data = data, .len = len, .index = fake_host.nimages - 1 };
    i->state = corrupt ? IMAGE_CORRUPT : IMAGE_OK;
    snprintf(i->name, sizeof i->name, "%s", name);
}

void fake_default_images(void)
{
    static const char zero[1 << 16];
    static const char web[] =
        "name = \"web2\"\ncpus = 2\nmem = \"1G\"\nkernel = \"debian/vmlinuz\"\n[[disk]]\nimage = \"debian/root.img\"\n";
    static const char bad[] = "name = \"bad\"\n# comment\nmemory = \"1G\"\n";
    fake_image("vmlinuz", zero, 30000, false);
    fake_image("initrd", zero, 20000, false);
    fake_image("debian/vmlinuz", zero, 31000, false);
    fake_image("debian/initrd", zero, 21000, false);
    fake_image("debian/root.img", zero, sizeof zero, false);
    fake_image("odd.img", zero, 1000, false);
    fake_image("broken.img", zero, 4096, true);
    fake_image("web2.toml", web, sizeof web - 1, false);
    fake_image("bad.toml", bad, sizeof bad - 1, false);
}

void fake_reset(void)
{
    memset(&fake_host, 0, sizeof fake_host);
    memset(&ring, 0, sizeof ring);
    fake_host.ram_left = 6ull << 30;
}
