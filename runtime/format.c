/* SPDX-License-Identifier: Apache-2.0 */
/* Cursors over encoded bytes, and identities as text. */
#include "runtime/format.h"

#define WRITER_CAP_FIRST 256U

static_assert(UID_TEXT_LEN == 2 * sizeof(struct uid), "two digits a byte");

void uid_print(struct uid uid, char ret[UID_TEXT_LEN + 1])
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < sizeof uid.b; i++) {
        ret[2 * i] = digits[uid.b[i] >> 4];
        ret[2 * i + 1] = digits[uid.b[i] & 15];
    }
    ret[UID_TEXT_LEN] = '\0';
}

static bool hex_digit(char c, uint8_t *ret)
{
    if (c >= '0' && c <= '9')
        *ret = (uint8_t)(c - '0');
    else if (c >= 'a' && c <= 'f')
        *ret = (uint8_t)(c - 'a' + 10);
    else
        return false;
    return true;
}

bool uid_parse(const char *text, size_t len, struct uid *ret)
{
    struct uid uid;
    if (len != UID_TEXT_LEN)
        return false;
    for (size_t i = 0; i < sizeof uid.b; i++) {
        uint8_t high, low;
        if (!hex_digit(text[2 * i], &high) || !hex_digit(text[2 * i + 1], &low))
            return false;
        uid.b[i] = (uint8_t)(high << 4 | low);
    }
    *ret = uid;
    return true;
}

uint8_t read_u8(struct reader *r)
{
    const uint8_t *p = read_bytes(r, 1);
    return p == NULL ? 0 : *p;
}

uint16_t read_u16(struct reader *r)
{
    le16 v = {{0}};
    const uint8_t *p = read_bytes(r, sizeof v);
    if (p != NULL)
        memcpy(&v, p, sizeof v);
    return le16_get(v);
}

uint32_t read_u32(struct reader *r)
{
    le32 v = {{0}};
    const uint8_t *p = read_bytes(r, sizeof v);
    if (p != NULL)
        memcpy(&v, p, sizeof v);
    return le32_get(v);
}

uint64_t read_u64(struct reader *r)
{
    le64 v = {{0}};
    const uint8_t *p = read_bytes(r, sizeof v);
    if (p != NULL)
        memcpy(&v, p, sizeof v);
    return le64_get(v);
}

struct uid read_uid(struct reader *r)
{
    struct uid u = {{0}};
    const uint8_t *p = read_bytes(r, sizeof u);
    if (p != NULL)
        memcpy(&u, p, sizeof u);
    return u;
}

void read_string(struct reader *r, char *ret, size_t cap)
{
    assert(cap > 0);
    ret[0] = '\0';
    size_t len = read_u16(r);
    const uint8_t *p = read_bytes(r, len);
    if (p == NULL)
        return;
    if (len > cap - 1 || memchr(p, '\0', len) != NULL) {
        r->bad = true;
        return;
    }
    memcpy(ret, p, len);
    ret[len] = '\0';
}

static bool writer_reserve(struct writer *w, size_t more)
{
    if (w->bad)
        return false;
    if (more <= w->cap - w->len)
        return true;
    uint64_t need;
    if (!add_u64(w->len, more, &need) || need > SIZE_MAX / 2) {
        w->bad = true;
        return false;
    }
    size_t cap = w->cap == 0 ? WRITER_CAP_FIRST : w->cap;
    while (cap < need)
        cap *= 2;
    uint8_t *bytes = realloc(w->bytes, cap);
    if (bytes == NULL) {
        w->bad = true;
        return false;
    }
    w->bytes = bytes;
    w->cap = cap;
    return true;
}

void write_bytes(struct writer *w, const void *bytes, size_t len)
{
    if (len == 0 || !writer_reserve(w, len))
        return;
    memcpy(w->bytes + w->len, bytes, len);
    w->len += len;
}

void write_u8(struct writer *w, uint8_t n)
{
    write_bytes(w, &n, sizeof n);
}

void write_u16(struct writer *w, uint16_t n)
{
    le16 v = le16_of(n);
    write_bytes(w, &v, sizeof v);
}

void write_u32(struct writer *w, uint32_t n)
{
    le32 v = le32_of(n);
    write_bytes(w, &v, sizeof v);
}

void write_u64(struct writer *w, uint64_t n)
{
    le64 v = le64_of(n);
    write_bytes(w, &v, sizeof v);
}

void write_uid(struct writer *w, struct uid u)
{
    write_bytes(w, &u, sizeof u);
}

void write_string(struct writer *w, const char *s)
{
    size_t len = strlen(s);
    if (len > UINT16_MAX) {
        w->bad = true;
        return;
    }
    write_u16(w, (uint16_t)len);
    write_bytes(w, s, len);
}

void writer_done(struct writer *w)
{
    free(w->bytes);
    *w = (struct writer){0};
}
