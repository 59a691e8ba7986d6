/*
 * What is on disks: volumes DISK...        partitions of each, and the volumes that they make up, one per line with a checksum
 *                   volumes -w gpt|mbr DISK START:LEN...     (MiB; from the fifth on MBR ones are logical)
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kernel/block/lvm.h"
#include "kernel/block/part.h"
#include "kernel/lib/crc.h"
#include "kernel/lib/port.h"
#include "tools/hostfile.h"

static uint32_t sum(struct blk *b)
{
    uint32_t crc = 0;
    static uint8_t buf[1 << 20];
    for (uint64_t o = 0; o < b->size; o += sizeof buf) {
        size_t n = MIN(sizeof buf, b->size - o);
        if (blk_read(b, o, buf, n))
            return 0;
        crc = crc32_ieee(crc, buf, n);
    }
    return crc;
}

static void show_parts(struct blk *d)
{
    static struct part_table t;
    int err = part_read(d, &t);
    if (err) {
        printf("none %d\n", -err);
        return;
    }
    printf("%s%s\n", t.scheme == PART_GPT ? "gpt" : "mbr", t.from_backup ? " backup" : "");
    for (unsigned i = 0; i < t.n; i++) {
        struct blk *b;
        if (part_open(d, &t.part[i], true, &b))
            continue;
        printf("%d %llu %llu %02x %s %08x\n", t.part[i].number, (unsigned long long)t.part[i].off / 512, (unsigned long long)t.part[i].len / 512,
               t.part[i].type, t.part[i].name, sum(b));
        blk_close(b);
    }
}

static int write_table(int argc, char **argv)
{
    static struct part_table t;
    struct blk *d;
    int err = host_blk_open(argv[3], HOST_WRITE, &d);
    t.scheme = !strcmp(argv[2], "gpt") ? PART_GPT : PART_MBR;
    for (int i = 4; i < argc; i++) {
        unsigned long start = 0, len = 0;
        sscanf(argv[i], "%lu:%lu", &start, &len);
        struct part *p = &t.part[t.n++];
        *p = (struct part){ .number = t.scheme == PART_MBR && i > 6 ? i - 2 : i - 3, .off = start << 20, .len = len << 20, .type = 0x83 };
        snprintf(p->name, sizeof p->name, "p%d", p->number);
    }
    if (!err)
        err = part_write(d, &t);
    if (err)
        fprintf(stderr, "volumes: %s\n", strerror(-err));
    return err != 0;
}

int main(int argc, char **argv)
{
    struct blk *disk[16];
    struct lvm_vg *vg;
    int n = 0;
    if (argc > 3 && !strcmp(argv[1], "-w"))
        return write_table(argc, argv);
    for (; n < argc - 1 && n < 16; n++) {
        if (host_blk_open(argv[n + 1], 0, &disk[n]))
            return 1;
        if (argc == 2)
            show_parts(disk[n]);
    }
    int err = lvm_scan(disk, n, &vg);
    if (!err) {
        printf("vg %s %llu\n", vg->name, (unsigned long long)vg->seqno);
        for (unsigned i = 0; i < vg->nlvs; i++) {
            struct blk *b;
            int bad = lvm_open(vg, &vg->lvs[i], true, &b);
            printf("%s %llu %08x %s\n", vg->lvs[i].name, (unsigned long long)vg->lvs[i].size, bad ? 0 : sum(b), vg->lvs[i].problem);
            if (!bad)
                blk_close(b);
        }
        lvm_free(vg);
    } else if (err != -ENOENT) {
        printf("lvm %d\n", -err);
    }
    while (n)
        blk_close(disk[--n]);
    return 0;
}
