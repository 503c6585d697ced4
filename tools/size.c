/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/size.h"

#include <inttypes.h>
#include <stdio.h>

#include "runtime/limits.h"

/* More digits than this behind the point say nothing about bytes. */
#define FRACTION_DIGITS_MAX 9

static const char units[] = "KMGTP";

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* What stands behind the number: its unit in bytes, or 0. */
static uint64_t parse_unit(const char *text)
{
    if (*text == '\0')
        return 1;
    if (strcmp(text, "B") == 0)
        return 1;
    const char upper = (char)(*text & ~0x20);
    const char *unit = strchr(units, upper);
    if (upper == '\0' || unit == NULL)
        return 0;
    const char *rest = text + 1;
    if (*rest != '\0' && strcmp(rest, "i") != 0 && strcmp(rest, "iB") != 0)
        return 0;
    return (uint64_t)1 << (10 * (unit - units + 1));
}

/* Digits behind the point as billionths; NULL if there are none or too many. */
static const char *parse_fraction(const char *at, uint64_t *ret_billionths)
{
    uint64_t value = 0, scale = 1000000000;
    int digits = 0;
    for (; is_digit(*at); at++, digits++) {
        if (digits == FRACTION_DIGITS_MAX)
            return NULL;
        scale /= 10;
        value += (uint64_t)(*at - '0') * scale;
    }
    *ret_billionths = value;
    return digits > 0 ? at : NULL;
}

int size_parse(const char *text, uint64_t *ret_bytes, struct error *err)
{
    uint64_t whole = 0, billionths = 0;
    const char *at = text;
    bool fits = true;
    for (; is_digit(*at); at++)
        fits = fits && !__builtin_mul_overflow(whole, (uint64_t)10, &whole) &&
               add_u64(whole, (uint64_t)(*at - '0'), &whole);
    bool good = at != text;
    if (good && *at == '.') {
        at = parse_fraction(at + 1, &billionths);
        good = at != NULL;
    }
    uint64_t unit = good ? parse_unit(at) : 0;
    if (unit == 0)
        return err_set(err, -EINVAL, "'%s' is not a size; write 4096, 512M, 10G or 1.5T",
                       text);
    unsigned __int128 part = (unsigned __int128)unit * billionths / 1000000000;
    if (!fits || __builtin_mul_overflow(whole, unit, &whole) ||
        !add_u64(whole, (uint64_t)part, &whole))
        return err_set(err, -EINVAL, "size '%s' is too large", text);
    *ret_bytes = whole;
    return 0;
}

int size_parse_disk(const char *text, uint64_t *ret_bytes, struct error *err)
{
    uint64_t bytes;
    int r = size_parse(text, &bytes, err);
    if (r < 0)
        return r;
    if (bytes == 0)
        return err_set(err, -EINVAL, "size '%s': a disk of no bytes", text);
    if (bytes > DISK_BYTES_MAX)
        return err_set(err, -EINVAL, "size '%s': a disk has at most %s", text,
                       size_text(DISK_BYTES_MAX).text);
    if (bytes % BLOCK_SIZE != 0)
        return err_set(err, -EINVAL,
                       "size '%s' is %" PRIu64
                       " bytes, not a multiple of %u; the next one is %" PRIu64,
                       text, bytes, BLOCK_SIZE, round_up_u64(bytes, BLOCK_SIZE));
    *ret_bytes = bytes;
    return 0;
}

struct size_text size_text(uint64_t bytes)
{
    struct size_text ret;
    unsigned shift = 0;
    while (shift < 50 && (bytes >> shift) >= 1024)
        shift += 10;
    if (shift == 0) {
        snprintf(ret.text, sizeof ret.text, "%" PRIu64, bytes);
        return ret;
    }
    /* Tenths of the unit, rounded; 1023.97M becomes 1G, not 1024.0M. */
    unsigned __int128 scaled = (unsigned __int128)bytes * 10;
    uint64_t tenths = (uint64_t)((scaled + ((uint64_t)1 << (shift - 1))) >> shift);
    if (tenths >= 10240 && shift < 50) {
        shift += 10;
        tenths = 10;
    }
    char unit = units[shift / 10 - 1];
    if (tenths % 10 == 0)
        snprintf(ret.text, sizeof ret.text, "%" PRIu64 "%c", tenths / 10, unit);
    else
        snprintf(ret.text, sizeof ret.text, "%" PRIu64 ".%" PRIu64 "%c", tenths / 10,
                 tenths % 10, unit);
    return ret;
}
