/*
 * Hardware task switches, for CPUs that do not carry them out in a guest (VT-x).  SDM vol 3 "Task Switching".
 *
 * The CPU has checked gate, selector and descriptor of the new TSS before its exit (SDM "Treatment of Task Switches").  Both TSSs are read first; a fault until then
 * belongs to the old task.  From the moment the new registers are in place, faults belong to the new one.
 */
#include "kernel/vmm/vcpu.h"

#include <errno.h>
#include <stddef.h>

enum { FROM_CALL, FROM_IRET, FROM_JMP, FROM_GATE };
enum { TYPE_TSS32 = 8, TYPE_BUSY = 2, TYPE_LDT = 2, TYPE_CODE = 8, TYPE_CONFORMING = 4, TYPE_WRITABLE = 2, TYPE_READABLE = 2, TYPE_ACCESSED = 1 };
enum { ATTR_S = BIT(4), ATTR_P = BIT(7), ATTR_DB = BIT(10), ATTR_G = BIT(11), SEL_TI = 4 };

struct tss32 {
    uint32_t link, esp0, ss0, esp1, ss1, esp2, ss2, cr3, eip, eflags, gpr[8], seg[6], ldt;
    uint16_t trap, iomap;
} __attribute__((packed));
_Static_assert(sizeof(struct tss32) == 104, "SDM figure \"32-Bit Task-State Segment\"");
struct tss16 { uint16_t link, sp0, ss0, sp1, ss1, sp2, ss2, ip, flags, gpr[8], seg[4], ldt; };
_Static_assert(sizeof(struct tss16) == 44, "SDM figure \"16-Bit TSS Format\"");

/* What a switch loads, from either form. */
struct task {
    bool wide;
    uint32_t cr3, eip, eflags, gpr[8];
    uint16_t seg[6], ldt;
    bool trap;
};

/* Linear memory, as the CPU itself accesses it.  false: an exception was raised. */
static bool linear(struct vcpu *v, gva_t va, void *buf, unsigned len, bool write)
{
    for (unsigned n; len; va += n, buf = (char *)buf + n, len -= n) {
        gpa_t gpa;
        uint32_t error;
        va = (uint32_t)va;
        n = MIN(len, (unsigned)(PAGE_SIZE - (va & (PAGE_SIZE - 1))));
        int err = gwalk(v, va, write ? PF_W : 0, &gpa, &error);
        if (err == -EFAULT) {
            vcpu_raise_pf(v, error, va);
            return false;
        }
        err = err ? err : write ? gmem_write(&v->vm->gmem, gpa, buf, n) : gmem_read(&v->vm->gmem, gpa, buf, n);
        if (err) {
            vcpu_crash(v, "a task switch touches guest-physical %llx, where there is no memory", (unsigned long long)gpa);
            return false;
        }
    }
    return true;
}

static bool fault(struct vcpu *v, uint8_t vector, uint16_t sel)
{
    vcpu_raise(v, vector, true, sel & ~3u);
    return false;
}

/* ---- Descriptors ---- */

static bool descriptor_at(struct vcpu *v, uint16_t sel, gva_t *at)
{
    const struct cpu_state *st = &v->st;
    uint64_t base = sel & SEL_TI ? st->seg[SEG_LDTR].base : st->gdt.base, limit = sel & SEL_TI ? st->seg[SEG_LDTR].limit : st->gdt.limit;
    bool table = !(sel & SEL_TI) || (st->seg[SEG_LDTR].attr & ATTR_P);
    *at = base + (sel & ~7u);
    return table && (sel | 7u) <= limit;
}

static struct cpu_seg unpack(uint16_t sel, uint64_t d)
{
    struct cpu_seg s = {
        .sel = sel, .base = (d >> 16 & 0xffffff) | (d >> 56) << 24, .limit = (uint32_t)((d & 0xffff) | (d >> 48 & 0xf) << 16),
        .attr = (uint16_t)((d >> 40 & 0xff) | (d >> 44 & 0xf00)),
    };
    if (s.attr & ATTR_G)
        s.limit = s.limit << 12 | 0xfff;
    return s;
}

/* The busy bit of a TSS descriptor, or the accessed bit of a segment's. */
static bool mark(struct vcpu *v, uint16_t sel, unsigned bit, bool on)
{
    gva_t at;
    uint8_t type;
    if (!descriptor_at(v, sel, &at) || !linear(v, at + 5, &type, 1, false))
        return false;
    type = (uint8_t)(on ? type | bit : type & ~bit);
    return linear(v, at + 5, &type, 1, true);
}

/* ---- TSSs ---- */

static bool read_task(struct vcpu *v, gva_t base, bool wide, struct task *t)
{
    struct tss32 w;
    struct tss16 n;
    *t = (struct task){ .wide = wide };
    if (!wide) {
        if (!linear(v, base, &n, sizeof n, false))
            return false;
        t->eip = n.ip, t->eflags = n.flags, t->ldt = n.ldt;
        for (unsigned i = 0; i < 8; i++)
            t->gpr[i] = n.gpr[i] | 0xffff0000;
        for (unsigned i = 0; i < ARRAY_SIZE(n.seg); i++)
            t->seg[i] = n.seg[i];
        return true;
    }
    if (!linear(v, base, &w, sizeof w, false))
        return false;
    t->cr3 = w.cr3, t->eip = w.eip, t->eflags = w.eflags, t->ldt = (uint16_t)w.ldt, t->trap = w.trap & 1;
    for (unsigned i = 0; i < 8; i++)
        t->gpr[i] = w.gpr[i];
    for (unsigned i = 0; i < ARRAY_SIZE(w.seg); i++)
        t->seg[i] = (uint16_t)w.seg[i];
    return true;
}

/* The dynamic fields of the task that is left. */
static bool save_task(struct vcpu *v, uint32_t eip, uint32_t eflags)
{
    const struct cpu_seg *tr = &v->st.seg[SEG_TR];
    struct tss32 w = { .eip = eip, .eflags = eflags };
    struct tss16 n = { .ip = (uint16_t)eip, .flags = (uint16_t)eflags };
    for (unsigned i = 0; i < 8; i++)
        w.gpr[i] = (uint32_t)v->gpr[i], n.gpr[i] = (uint16_t)v->gpr[i];
    for (unsigned i = 0; i < 6; i++)
        w.seg[i] = v->st.seg[i].sel;
    for (unsigned i = 0; i < ARRAY_SIZE(n.seg); i++)
        n.seg[i] = v->st.seg[i].sel;
    if (tr->attr & TYPE_TSS32)
        return linear(v, tr->base + offsetof(struct tss32, eip), &w.eip, offsetof(struct tss32, ldt) - offsetof(struct tss32, eip), true);
    return linear(v, tr->base + offsetof(struct tss16, ip), &n.ip, offsetof(struct tss16, ldt) - offsetof(struct tss16, ip), true);
}

/* ---- Segments of the new task: SDM table "Exception Conditions Checked During a Task Switch" ---- */

static bool load_ldt(struct vcpu *v, uint16_t sel)
{
    struct cpu_seg *ldt = &v->st.seg[SEG_LDTR];
    gva_t at;
    uint64_t d;
    *ldt = (struct cpu_seg){ .sel = sel };
    if (!(sel & ~3u))
        return true;
    if ((sel & SEL_TI) || !descriptor_at(v, sel, &at))
        return fault(v, EXC_TS, sel);
    if (!linear(v, at, &d, sizeof d, false))
        return false;
    struct cpu_seg s = unpack(sel, d);
    if ((s.attr & (ATTR_S | 0xf)) != TYPE_LDT || !(s.attr & ATTR_P))
        return fault(v, EXC_TS, sel);
    *ldt = s;
    return true;
}

static bool allowed(enum seg i, const struct cpu_seg *s, unsigned cpl)
{
    unsigned type = s->attr & 0xf, dpl = s->attr >> 5 & 3, rpl = s->sel & 3;
    bool code = type & TYPE_CODE;
    if (!(s->attr & ATTR_S))
        return false;
    if (i == SEG_CS)
        return code && (type & TYPE_CONFORMING ? dpl <= rpl : dpl == rpl);
    if (i == SEG_SS)
        return !code && (type & TYPE_WRITABLE) && dpl == cpl && rpl == cpl;
    if (code && !(type & TYPE_READABLE))
        return false;
    return (code && (type & TYPE_CONFORMING)) || (dpl >= cpl && dpl >= rpl);
}

static bool load_segment(struct vcpu *v, enum seg i, uint16_t sel)
{
    gva_t at;
    uint64_t d;
    if (!(sel & ~3u)) {
        v->st.seg[i] = (struct cpu_seg){ .sel = sel };
        return i == SEG_CS || i == SEG_SS ? fault(v, EXC_TS, sel) : true;
    }
    if (!descriptor_at(v, sel, &at))
        return fault(v, EXC_TS, sel);
    if (!linear(v, at, &d, sizeof d, false))
        return false;
    struct cpu_seg s = unpack(sel, d);
    if (!allowed(i, &s, v->st.cpl))
        return fault(v, EXC_TS, sel);
    if (!(s.attr & ATTR_P))
        return fault(v, i == SEG_SS ? EXC_SS : EXC_NP, sel);
    if (!(s.attr & TYPE_ACCESSED) && !mark(v, sel, TYPE_ACCESSED, true))
        return false;
    s.attr |= TYPE_ACCESSED;
    v->st.seg[i] = s;
    return true;
}

static bool load_segments(struct vcpu *v, const struct task *t)
{
    static const enum seg order[] = { SEG_CS, SEG_SS, SEG_DS, SEG_ES, SEG_FS, SEG_GS };
    bool v86 = t->eflags & RFLAGS_VM;
    v->st.cpl = v86 ? 3 : t->seg[SEG_CS] & 3;
    for (unsigned i = 0; i < ARRAY_SIZE(order); i++) {
        enum seg s = order[i];
        if (v86)
            v->st.seg[s] = (struct cpu_seg){ .sel = t->seg[s], .base = (uint64_t)t->seg[s] << 4, .limit = 0xffff, .attr = 0xf3 };
        else if (!load_segment(v, s, t->seg[s]))
            return false;
    }
    return t->eip <= v->st.seg[SEG_CS].limit || fault(v, EXC_GP, 0);
}

/* ---- The switch ---- */

/* General registers, flags, CR3: the new task's; segments are not usable yet. */
static void load_registers(struct vcpu *v, const struct task *t, unsigned source)
{
    bool nested = source == FROM_CALL || source == FROM_GATE;
    struct cpu_state *st = &v->st;
    for (unsigned i = 0; i < 8; i++)
        v->gpr[i] = t->gpr[i];
    v->rip = t->eip;
    v->rflags = (t->eflags & (BITS(21, 16) | BITS(14, 0)) & ~(BIT(5) | BIT(3))) | RFLAGS_FIXED | (nested ? RFLAGS_NT : 0);
    if (t->wide && (st->cr0 & CR0_PG))
        st->cr3 = t->cr3;
    st->cr0 |= CR0_TS;
    st->dr7 &= ~0x155ull;               /* L0-L3 and LE */
    if (t->trap)
        st->dr6 |= BIT(15);
    st->shadow = 0;
    v->shadow = false;
    st->nmi_blocked &= source != FROM_IRET;
}

static bool push_error(struct vcpu *v, const struct task *t, uint32_t error)
{
    unsigned size = t->wide ? 4 : 2;
    uint64_t mask = v->st.seg[SEG_SS].attr & ATTR_DB ? 0xffffffff : 0xffff, sp = (v->gpr[RSP] - size) & mask;
    if (!linear(v, v->st.seg[SEG_SS].base + sp, &error, size, true))
        return false;
    v->gpr[RSP] = (v->gpr[RSP] & ~mask) | sp;
    return true;
}

/* Everything that can fail in the old task; the new TSS's descriptor in *tr. */
static bool leave(struct vcpu *v, struct exit *e, struct task *t, struct cpu_seg *tr)
{
    uint16_t sel = e->u.task.selector, old = v->st.seg[SEG_TR].sel;
    unsigned source = e->u.task.source;
    uint32_t eflags = (uint32_t)v->rflags & ~(source == FROM_IRET ? (uint32_t)RFLAGS_NT : 0);
    gva_t at;
    uint64_t d;
    if (!descriptor_at(v, sel, &at))
        return fault(v, EXC_TS, sel);
    if (!linear(v, at, &d, sizeof d, false))
        return false;
    *tr = unpack(sel, d);
    bool wide = tr->attr & TYPE_TSS32;
    if (tr->limit < (wide ? sizeof(struct tss32) : sizeof(struct tss16)) - 1)
        return fault(v, EXC_TS, sel);
    if (!read_task(v, tr->base, wide, t) || !save_task(v, (uint32_t)v->rip + e->insn_len, eflags))
        return false;
    if ((source == FROM_IRET || source == FROM_JMP) && !mark(v, old, TYPE_BUSY, false))
        return false;
    if ((source == FROM_CALL || source == FROM_GATE) && !linear(v, tr->base, &old, sizeof old, true))
        return false;
    return source == FROM_IRET || mark(v, sel, TYPE_BUSY, true);
}

void vcpu_task_switch(struct vcpu *v, struct exit *e)
{
    unsigned source = e->u.task.source;
    struct task t;
    struct cpu_seg tr;
    vcpu_state(v, ST_ALL);
    if (!leave(v, e, &t, &tr))
        return;
    load_registers(v, &t, source);
    tr.attr |= TYPE_BUSY;
    v->st.seg[SEG_TR] = tr;
    bool ok = load_ldt(v, t.ldt) && load_segments(v, &t) && (!e->u.task.has_error || push_error(v, &t, e->u.task.error));
    vcpu_put_state(v, ST_SEGS | ST_CRS | ST_DRS | ST_INTR);
    hv->flush(v, FLUSH_LINEAR);
    if (ok && t.trap)
        vcpu_raise(v, EXC_DB, false, 0);
}
