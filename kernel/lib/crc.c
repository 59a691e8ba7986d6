#include "kernel/lib/crc.h"

#include <string.h>

/* Half a byte at a time: 16 words of table are enough for the headers that use it, and for CPUs without the instruction. */
static uint32_t by_nibbles(const uint32_t table[16], uint32_t crc, const uint8_t *p, size_t len)
{
    crc = ~crc;
    while (len--) {
        crc ^= *p++;
        crc = crc >> 4 ^ table[crc & 15];
        crc = crc >> 4 ^ table[crc & 15];
    }
    return ~crc;
}

uint32_t crc32c_portable(uint32_t crc, const void *buf, size_t len)
{
    static const uint32_t nibble[16] = {
        0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3, 0x61c69362, 0x7198540d,
        0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9, 0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75,
    };
    return by_nibbles(nibble, crc, buf, len);
}

/* SSE4.2; asked once, since under a hypervisor CPUID is dear. */
static bool has_instruction(void)
{
    static uint8_t known;               /* 1: no, 2: yes; every CPU finds the same */
    uint8_t k = atomic_load_relaxed(&known);
    if (unlikely(!k)) {
        uint32_t a = 1, b, c = 0, d;
        __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
        k = c & BIT(20) ? 2 : 1;
        atomic_store_relaxed(&known, k);
    }
    return k == 2;
}

uint32_t crc32c(uint32_t crc, const void *buf, size_t len)
{
    if (unlikely(!has_instruction()))
        return crc32c_portable(crc, buf, len);
    const uint8_t *p = buf;
    uint64_t c = ~crc;
    for (; len >= 8; p += 8, len -= 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        c = __builtin_ia32_crc32di(c, word);
    }
    while (len--)
        c = __builtin_ia32_crc32qi(c, *p++);
    return ~(uint32_t)c;
}

uint32_t crc32_ieee(uint32_t crc, const void *buf, size_t len)
{
    static const uint32_t nibble[16] = {
        0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4, 0x4db26158, 0x5005713c,
        0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c, 0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c,
    };
    return by_nibbles(nibble, crc, buf, len);
}
