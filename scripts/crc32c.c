/* crc32c FILE...: prints "crc32c(8 hex digits) size" of each file, one line each.  Castagnoli polynomial, as iSCSI and SSE4.2. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static uint32_t table[8][256];

static void make_table(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++)
            c = c & 1 ? 0x82f63b78 ^ (c >> 1) : c >> 1;
        table[0][i] = c;
    }
    for (int t = 1; t < 8; t++)
        for (int i = 0; i < 256; i++)
            table[t][i] = table[0][table[t - 1][i] & 255] ^ (table[t - 1][i] >> 8);
}

static uint32_t update(uint32_t c, const uint8_t *p, size_t n)
{
    for (; n >= 8; p += 8, n -= 8)
        c = table[7][p[0] ^ (c & 255)] ^ table[6][p[1] ^ (c >> 8 & 255)] ^ table[5][p[2] ^ (c >> 16 & 255)] ^ table[4][p[3] ^ c >> 24] ^
            table[3][p[4]] ^ table[2][p[5]] ^ table[1][p[6]] ^ table[0][p[7]];
    while (n--)
        c = table[0][(c ^ *p++) & 255] ^ c >> 8;
    return c;
}

int main(int argc, char **argv)
{
    static uint8_t buf[1 << 16];

    make_table();
    for (int i = 1; i < argc; i++) {
        FILE *f = fopen(argv[i], "rb");
        if (!f) {
            perror(argv[i]);
            return 1;
        }
        uint32_t c = ~0u;
        unsigned long long size = 0;
        size_t n;
        while ((n = fread(buf, 1, sizeof(buf), f)) > 0) {
            c = update(c, buf, n);
            size += n;
        }
        if (ferror(f)) {
            perror(argv[i]);
            return 1;
        }
        fclose(f);
        printf("%08x %llu\n", ~c, size);
    }
    return 0;
}
