/*
 * img_io FORMAT FILE: the commands of qemu-io that the differential tests use, one per line on stdin, through the request engine:
 * write -P PATTERN OFF LEN | write -z [-u] OFF LEN | discard OFF LEN | read -P PATTERN OFF LEN | flush
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kernel/block/image.h"
#include "kernel/lib/port.h"
#include "tools/hostfile.h"

static int open_named(void *arg, const char *name, bool write, struct blk **out)
{
    char path[4096];
    const char *slash = strrchr(arg, '/');
    snprintf(path, sizeof path, "%.*s%s", name[0] != '/' && slash ? (int)(slash - (char *)arg + 1) : 0, (char *)arg, name);
    return host_blk_open(path, write ? HOST_WRITE : 0, out);
}

static int run(struct blk *b, char *line)
{
    char *word[8] = { NULL };
    int n = 0, pattern = 0xcd;
    bool zero = false, unmap = false;
    uint64_t off, len;
    for (char *w = strtok(line, " \n"); w && n < 8; w = strtok(NULL, " \n"))
        word[n++] = w;
    if (!n)
        return 0;
    if (!strcmp(word[0], "flush"))
        return blk_flush(b);
    int i = 1;
    for (; i < n && word[i][0] == '-'; i++) {
        zero |= word[i][1] == 'z', unmap |= word[i][1] == 'u';
        if (word[i][1] == 'P')
            pattern = strtol(word[++i], NULL, 0);
    }
    if (i + 1 >= n || !parse_size(word[i], &off) || !parse_size(word[i + 1], &len))
        return -EINVAL;
    if (!strcmp(word[0], "discard"))
        return blk_discard(b, off, len);
    if (zero)
        return blk_write_zeroes(b, off, len, unmap ? BLK_UNMAP_OK : 0);
    uint8_t *buf = malloc(len);
    memset(buf, pattern, len);
    int err = !strcmp(word[0], "write") ? blk_write(b, off, buf, len, 0) : blk_read(b, off, buf, len);
    for (uint64_t k = 0; !err && !strcmp(word[0], "read") && k < len; k++)
        err = buf[k] == pattern ? 0 : -EDOM;
    free(buf);
    return err;
}

int main(int argc, char **argv)
{
    struct image_env env = { .open = open_named, .arg = argc > 2 ? argv[2] : NULL };
    struct blk *file, *img;
    char line[256];
    if (argc != 3)
        return 2;
    int err = host_blk_open(argv[2], HOST_WRITE, &file);
    if (!err)
        err = image_open(image_format_named(argv[1]), file, IMAGE_WRITE, &env, &img);
    for (int n = 1; !err && fgets(line, sizeof line, stdin); n++) {
        err = run(img, line);
        if (err)
            fprintf(stderr, "line %d: ", n);
    }
    if (!err)
        blk_close(img);
    if (err)
        fprintf(stderr, "img_io: %s %s\n", strerror(-err), env.error);
    return err != 0;
}
