/* Partition tables and LVM2 metadata: the input is the start of a disk, and again its end. */
#include <string.h>
#include "kernel/block/lvm.h"
#include "kernel/block/part.h"
#include "tests/host/mem_blk.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static struct part_table t;
    struct lvm_vg *vg;
    if (len > 64 << 10)
        return 0;
    struct mem_blk *m = mem_blk_create(1 << 20, 0, MEM_INLINE, 1);
    struct blk *disk = &m->blk, *b;
    memcpy(m->data, data, len);
    memcpy(m->data + (1 << 20) - len, data, len);
    if (!part_read(disk, &t))
        for (unsigned i = 0; i < t.n; i++)
            if (!part_open(disk, &t.part[i], true, &b))
                blk_close(b);
    if (!lvm_scan(&disk, 1, &vg)) {
        for (unsigned i = 0; i < vg->nlvs; i++)
            if (!lvm_open(vg, &vg->lvs[i], true, &b))
                blk_close(b);
        lvm_free(vg);
    }
    blk_close(disk);
    return 0;
}
