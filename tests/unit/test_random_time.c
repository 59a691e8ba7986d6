/* The random generator against RFC 8439, and the CMOS clock's dates. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>
#include "kernel/lib/crc.h"
#include "kernel/hw/mc146818.h"
#include "kernel/x86/csprng.h"
#include "kernel/x86/rtc.h"

/* RFC 8439 section 2.3.2. */
static void test_chacha_known(void **state)
{
    static const uint8_t nonce[12] = { 0, 0, 0, 9, 0, 0, 0, 0x4a }, want[64] = {
        0x10, 0xf1, 0xe7, 0xe4, 0xd1, 0x3b, 0x59, 0x15, 0x50, 0x0f, 0xdd, 0x1f, 0xa3, 0x20, 0x71, 0xc4, 0xc7, 0xd1, 0xf4, 0xc7, 0x33, 0xc0,
        0x68, 0x03, 0x04, 0x22, 0xaa, 0x9a, 0xc3, 0xd4, 0x6c, 0x4e, 0xd2, 0x82, 0x64, 0x46, 0x07, 0x9f, 0xaa, 0x09, 0x14, 0xc2, 0xd7, 0x05,
        0xd9, 0x8b, 0x02, 0xa2, 0xb5, 0x12, 0x9c, 0xd1, 0xde, 0x16, 0x4e, 0xb9, 0xcb, 0xd0, 0x83, 0xe8, 0xa2, 0x50, 0x3c, 0x4e };
    uint8_t key[32], out[64];
    for (unsigned i = 0; i < 32; i++)
        key[i] = (uint8_t)i;
    chacha20_block(key, 1, nonce, out);
    assert_memory_equal(out, want, 64);
}

static void test_csprng(void **state)
{
    struct csprng a = { 0 }, b = { 0 };
    uint8_t x[200], y[200], before[32];
    csprng_add(&a, "seed", 4), csprng_add(&b, "seed", 4);
    memcpy(before, a.key, 32);
    csprng_bytes(&a, x, sizeof(x)), csprng_bytes(&b, y, sizeof(y));
    assert_memory_equal(x, y, sizeof(x));               /* deterministic in its seed */
    assert_memory_not_equal(before, a.key, 32);         /* and forgets the key it used */
    for (unsigned i = 0; i + 32 <= sizeof(x); i++) {
        assert_memory_not_equal(x + i, a.key, 32);      /* the next key is not part of the output */
        assert_memory_not_equal(x + i, before, 32);
    }
    csprng_bytes(&a, y, 100);
    assert_memory_not_equal(x, y, 100);
    csprng_add(&b, "", 1);                              /* even a zero byte changes the state */
    csprng_bytes(&b, x, 100);
    assert_memory_not_equal(x, y, 100);
    for (size_t n = 0; n < 140; n++) {                  /* every length, nothing written behind it */
        memset(x, 0xaa, sizeof(x));
        csprng_bytes(&a, x, n);
        assert_int_equal(x[n], 0xaa);
    }
}

static void test_dates(void **state)
{
    enum { BIN24 = RTC_B_24H | RTC_B_BINARY };
    static const struct { struct rtc_time t; uint64_t unix_s; } cases[] = {
        { { 0, 0, 0, 1, 1, 70, 19, BIN24 }, 0 },
        { { 1, 0, 0, 1, 1, 70, 19, BIN24 }, 1 },
        { { 0x59, 0x59, 0x23, 0x31, 0x12, 0x99, 0x19, RTC_B_24H }, 946684799 },
        { { 0, 0, 0, 0x29, 0x02, 0x00, 0x20, RTC_B_24H }, 951782400 },                 /* leap day of 2000 */
        { { 0x30, 0x15, 0x92, 0x20, 0x11, 0x26, 0x20, 0 }, 1795176930 },               /* 12 PM + 15:30 */
        { { 0x30, 0x15, 0x12, 0x20, 0x11, 0x26, 0, 0 }, 1795133730 },                  /* 12 AM; no century register */
        { { 0, 0, 0, 1, 3, 100, 20, BIN24 }, 0 },
        { { 60, 0, 0, 1, 3, 24, 20, BIN24 }, 0 }, { { 0, 0, 24, 1, 3, 24, 20, BIN24 }, 0 }, { { 0, 0, 0, 0, 3, 24, 20, BIN24 }, 0 },
        { { 0, 0, 0, 1, 13, 24, 20, BIN24 }, 0 }, { { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff }, 0 },
    };
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++)
        assert_int_equal(rtc_to_unix(&cases[i].t), cases[i].unix_s);
}

/* The check values of both polynomials; with and without the CPU's instruction, at every length and alignment. */
static void test_crc_known(void **state)
{
    uint8_t b[300];
    for (unsigned n = 0; n < sizeof b; n++)
        b[n] = (uint8_t)(n * 37 + (n >> 3));
    assert_int_equal(crc32c(0, "123456789", 9), 0xe3069283);
    assert_int_equal(crc32c_portable(0, "123456789", 9), 0xe3069283);
    assert_int_equal(crc32_ieee(0, "123456789", 9), 0xcbf43926);
    for (unsigned n = 0; n < 280; n++)
        assert_int_equal(crc32c(n, b + n % 16, n), crc32c_portable(n, b + n % 16, n));
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_chacha_known), cmocka_unit_test(test_csprng), cmocka_unit_test(test_crc_known), cmocka_unit_test(test_dates) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
