#include <string.h>
#include "boot/boot.h"
#include "boot/bootinfo.h"
#include "kernel/lib/log.h"
#include "kernel/lib/port.h"
#include "kernel/mm/page.h"
#include "kernel/x86/cpu.h"
#include "kernel/x86/smp.h"
#include "kernel/x86/vmap.h"

enum { MAX_MAPPINGS = 512 };
struct mapping { hpa_t pa; uint64_t len; uintptr_t va; enum pt_memtype type; unsigned prot; };

static struct {
    struct spinlock lock;
    struct ptab pt;
    const struct bootinfo *info;
    uintptr_t next_va, next_stack;
    void *free_stacks;                  /* linked through the lowest word of each */
    struct mapping map[MAX_MAPPINGS];   /* len 0: free */
} vm;

static hpa_t table_alloc(void *arg) { return page_alloc(ORDER_4K, PAGE_ZERO | PAGE_DMA32); }
static void table_free(void *arg, hpa_t pa) { page_free(pa, ORDER_4K); }

static void must_map(uintptr_t va, hpa_t pa, uint64_t len, unsigned prot)
{
    if (ptab_map(&vm.pt, va, pa, len, prot | PT_GLOBAL, PT_WB))
        panic("no memory for the kernel's page tables");
}

static void map_image(char *from, char *to, unsigned prot) { must_map((uintptr_t)from, image_pa(from), (uint64_t)(to - from), prot); }

static bool is_ram(const struct bootmem *m) { return m->type == BOOTMEM_RAM || m->type == BOOTMEM_LOADER; }

void vmap_init(const struct bootinfo *info)
{
    vm.info = info, vm.next_va = MMIO_BASE, vm.next_stack = STACK_BASE;
    if (ptab_init(&vm.pt, &pt_host, cpu_has(FEAT_PDPE1GB) ? ORDER_1G : ORDER_2M, table_alloc, table_free, NULL))
        panic("no memory for the kernel's page tables");
    for (int i = 0; i < info->nmem; i++)
        if (is_ram(&info->mem[i]))
            must_map(PHYSMAP_BASE + info->mem[i].base, info->mem[i].base, info->mem[i].len, PT_R | PT_W);
    map_image(__text_start, __text_end, PT_R | PT_X);
    map_image(__rodata_start, __rodata_end, PT_R);
    map_image(__data_start, __data_end, PT_R | PT_W);
    map_image(__bss_start, __bss_end, PT_R | PT_W);
    ptab_unmap(&vm.pt, (uintptr_t)boot_stack_guard, PAGE_SIZE);
    physmap_base = PHYSMAP_BASE;
    write_cr3(vm.pt.root);
    tlb_flush_local();
}

hpa_t vmap_root(void) { return vm.pt.root; }

static bool overlaps_ram(hpa_t pa, uint64_t len)
{
    for (int i = 0; i < vm.info->nmem; i++) {
        const struct bootmem *m = &vm.info->mem[i];
        if (is_ram(m) && pa < m->base + m->len && m->base < pa + len)
            return true;
    }
    return false;
}

static bool inside_ram(hpa_t pa, uint64_t len)
{
    for (int i = 0; i < vm.info->nmem; i++) {
        const struct bootmem *m = &vm.info->mem[i];
        if (is_ram(m) && pa >= m->base && pa + len <= m->base + m->len)
            return true;
    }
    return false;
}

/* Under the lock: an existing mapping that serves; *clash when one overlaps with another type. */
static struct mapping *find_mapping(hpa_t pa, uint64_t len, enum pt_memtype type, unsigned prot, bool *clash)
{
    for (unsigned i = 0; i < MAX_MAPPINGS; i++) {
        struct mapping *m = &vm.map[i];
        if (!m->len || pa >= m->pa + m->len || m->pa >= pa + len)
            continue;
        if (m->type != type)
            *clash = true;
        else if (m->prot == prot && pa >= m->pa && pa + len <= m->pa + m->len)
            return m;
    }
    return NULL;
}

static struct mapping *new_mapping(hpa_t pa, uint64_t len, enum pt_memtype type, unsigned prot)
{
    uint64_t align = len >= PAGE_2M ? PAGE_2M : PAGE_SIZE;
    uintptr_t va = ALIGN_UP(vm.next_va, align) + (pa & (align - 1));
    for (unsigned i = 0; i < MAX_MAPPINGS && va + len < MMIO_END; i++) {
        if (vm.map[i].len)
            continue;
        if (ptab_map(&vm.pt, va, pa, len, prot | PT_GLOBAL, type))
            return NULL;
        vm.next_va = va + len + PAGE_SIZE;
        vm.map[i] = (struct mapping){ pa, len, va, type, prot };
        return &vm.map[i];
    }
    return NULL;
}

static void *map_device(hpa_t pa, size_t len, enum pt_memtype type, unsigned prot)
{
    hpa_t first = ALIGN_DOWN(pa, PAGE_SIZE), end = ALIGN_UP(pa + len, PAGE_SIZE);
    if (!len || end <= first || end > BIT(cpu_info.phys_bits))
        return NULL;
    bool clash = false;
    spin_lock(&vm.lock);
    struct mapping *m = find_mapping(first, end - first, type, prot, &clash);
    if (!m && !clash)
        m = new_mapping(first, end - first, type, prot);
    void *va = m ? (void *)(m->va + (pa - m->pa)) : NULL;
    spin_unlock(&vm.lock);
    if (clash && !va)
        log_warn("mm", "%#llx is mapped already with another memory type", (unsigned long long)pa);
    return va;
}

void *mmio_map(hpa_t pa, size_t len, enum pt_memtype type)
{
    return overlaps_ram(pa, len) ? NULL : map_device(pa, len, type, PT_R | PT_W);
}

const void *firmware_map(hpa_t pa, size_t len)
{
    if (pa + len < pa)
        return NULL;
    return inside_ram(pa, len) ? pa_to_va(pa) : map_device(pa, len, PT_WB, PT_R);
}

void mmio_unmap(void *p, size_t len)
{
    uintptr_t va = (uintptr_t)p;
    spin_lock(&vm.lock);
    for (unsigned i = 0; i < MAX_MAPPINGS; i++) {
        struct mapping *m = &vm.map[i];
        if (!m->len || va < m->va || va >= m->va + m->len)
            continue;
        ptab_unmap(&vm.pt, m->va, m->len);
        va = m->va, len = m->len, m->len = 0;
        spin_unlock(&vm.lock);
        smp_flush_tlb((void *)va, len);
        return;
    }
    spin_unlock(&vm.lock);
}

int vmap_identity(hpa_t pa, uint64_t len, bool on)
{
    spin_lock(&vm.lock);
    int err = 0;
    if (on)
        err = ptab_map(&vm.pt, pa, pa, len, PT_R | PT_W | PT_X, PT_WB);
    else
        ptab_unmap(&vm.pt, pa, len);
    spin_unlock(&vm.lock);
    return err;
}

/* ---- Kernel stacks: one guard page below each, the next stack's guard above. ---- */
enum { STACK_STRIDE = KSTACK_SIZE + 4096, STACK_ORDER = 3 };
_Static_assert(KSTACK_SIZE == 4096 << STACK_ORDER, "one block per stack");

void *kstack_alloc(void)
{
    spin_lock(&vm.lock);
    void **s = vm.free_stacks;
    if (s) {
        vm.free_stacks = *s;
        spin_unlock(&vm.lock);
        return s;
    }
    hpa_t pa = page_alloc(STACK_ORDER, 0);
    uintptr_t va = vm.next_stack + PAGE_SIZE;
    if (pa && va + STACK_STRIDE <= STACK_END && !ptab_map(&vm.pt, va, pa, KSTACK_SIZE, PT_R | PT_W | PT_GLOBAL, PT_WB)) {
        vm.next_stack += STACK_STRIDE;
        s = (void **)va;
    } else if (pa) {
        page_free(pa, STACK_ORDER);
    }
    spin_unlock(&vm.lock);
    return s;
}

void kstack_free(void *p)
{
    spin_lock(&vm.lock);
    *(void **)p = vm.free_stacks;
    vm.free_stacks = p;
    spin_unlock(&vm.lock);
}

bool kstack_is_guard(uintptr_t va)
{
    if (va >= (uintptr_t)boot_stack_guard && va < (uintptr_t)boot_stack_guard + PAGE_SIZE)
        return true;
    return va >= STACK_BASE && va < vm.next_stack + PAGE_SIZE && (va - STACK_BASE) % STACK_STRIDE < PAGE_SIZE;
}
