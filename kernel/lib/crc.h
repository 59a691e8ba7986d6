/* Checksums of disk formats. */
#pragma once
#include "kernel/lib/base.h"

/* CRC-32C (Castagnoli): ours, and the CPU's crc32 instruction where there is one.  Start with 0; chains: crc32c(crc32c(0, a), b) is that of ab. */
uint32_t crc32c(uint32_t crc, const void *buf, size_t len);
/* The same without the instruction, which CPUs before SSE4.2 lack; crc32c finds out. */
uint32_t crc32c_portable(uint32_t crc, const void *buf, size_t len);
/* CRC-32 (IEEE 802.3, as GPT and zlib have it), the same way. */
uint32_t crc32_ieee(uint32_t crc, const void *buf, size_t len);
