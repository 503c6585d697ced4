/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Field types for everything on disk or on a wire: bytes, little endian, no alignment.
 * A format struct is built only of these, so its size has no padding; each one has a
 * static_assert on its size beside it.
 */
#ifndef PARALLAX_RUNTIME_FORMAT_H
#define PARALLAX_RUNTIME_FORMAT_H

#include <endian.h>

#include "runtime/base.h"

typedef struct {
    uint8_t b[2];
} le16;
typedef struct {
    uint8_t b[4];
} le32;
typedef struct {
    uint8_t b[8];
} le64;

static inline uint16_t le16_get(le16 v)
{
    uint16_t n;
    memcpy(&n, v.b, sizeof n);
    return le16toh(n);
}

static inline uint32_t le32_get(le32 v)
{
    uint32_t n;
    memcpy(&n, v.b, sizeof n);
    return le32toh(n);
}

static inline uint64_t le64_get(le64 v)
{
    uint64_t n;
    memcpy(&n, v.b, sizeof n);
    return le64toh(n);
}

static inline le16 le16_of(uint16_t n)
{
    le16 v;
    n = htole16(n);
    memcpy(v.b, &n, sizeof n);
    return v;
}

static inline le32 le32_of(uint32_t n)
{
    le32 v;
    n = htole32(n);
    memcpy(v.b, &n, sizeof n);
    return v;
}

static inline le64 le64_of(uint64_t n)
{
    le64 v;
    n = htole64(n);
    memcpy(v.b, &n, sizeof n);
    return v;
}

/* 128-bit identities (cluster, store incarnation): random, never interpreted. */
struct uid {
    uint8_t b[16];
};

static inline bool uid_equal(struct uid a, struct uid b)
{
    return memcmp(a.b, b.b, sizeof a.b) == 0;
}

/* 32 lower-case hexadecimal digits, and back: false if it is anything else. */
#define UID_TEXT_LEN 32U
void uid_print(struct uid uid, char ret[UID_TEXT_LEN + 1]);
bool uid_parse(const char *text, size_t len, struct uid *ret);

/*
 * A cursor over foreign bytes. A read past the end sets `bad` and yields zeros, so a
 * decoder checks once, at its end.
 */
struct reader {
    const uint8_t *at;
    size_t left;
    bool bad;
};

static inline struct reader reader_of(const void *bytes, size_t len)
{
    return (struct reader){.at = bytes, .left = len};
}

static inline const uint8_t *read_bytes(struct reader *r, size_t n)
{
    if (r->bad || n > r->left) {
        r->bad = true;
        return NULL;
    }
    const uint8_t *p = r->at;
    r->at += n;
    r->left -= n;
    return p;
}

uint8_t read_u8(struct reader *r);
uint16_t read_u16(struct reader *r);
uint32_t read_u32(struct reader *r);
uint64_t read_u64(struct reader *r);
struct uid read_uid(struct reader *r);
/* A string with a 16-bit length before it, at most cap - 1 bytes and without NUL;
 * ret is NUL-terminated. */
void read_string(struct reader *r, char *ret, size_t cap);

/* A growing byte string. An allocation failure sets `bad`; check once, at the end. */
struct writer {
    uint8_t *bytes; /* owned; release with writer_done or take it */
    size_t len, cap;
    bool bad;
};

void write_bytes(struct writer *w, const void *bytes, size_t len);
void write_u8(struct writer *w, uint8_t n);
void write_u16(struct writer *w, uint16_t n);
void write_u32(struct writer *w, uint32_t n);
void write_u64(struct writer *w, uint64_t n);
void write_uid(struct writer *w, struct uid u);
void write_string(struct writer *w, const char *s);
void writer_done(struct writer *w);

#endif
