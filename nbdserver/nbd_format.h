/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The NBD protocol as it is on the wire, as far as this server speaks it. All numbers
 * are big endian. doc/nbd.md says what is supported.
 */
#ifndef PARALLAX_NBDSERVER_NBD_FORMAT_H
#define PARALLAX_NBDSERVER_NBD_FORMAT_H

#include "runtime/format.h"

typedef struct {
    uint8_t b[2];
} be16;
typedef struct {
    uint8_t b[4];
} be32;
typedef struct {
    uint8_t b[8];
} be64;

static inline uint16_t be16_get(be16 v)
{
    uint16_t n;
    memcpy(&n, v.b, sizeof n);
    return be16toh(n);
}

static inline uint32_t be32_get(be32 v)
{
    uint32_t n;
    memcpy(&n, v.b, sizeof n);
    return be32toh(n);
}

static inline uint64_t be64_get(be64 v)
{
    uint64_t n;
    memcpy(&n, v.b, sizeof n);
    return be64toh(n);
}

static inline be16 be16_of(uint16_t n)
{
    be16 v;
    n = htobe16(n);
    memcpy(v.b, &n, sizeof n);
    return v;
}

static inline be32 be32_of(uint32_t n)
{
    be32 v;
    n = htobe32(n);
    memcpy(v.b, &n, sizeof n);
    return v;
}

static inline be64 be64_of(uint64_t n)
{
    be64 v;
    n = htobe64(n);
    memcpy(v.b, &n, sizeof n);
    return v;
}

/* --- handshake --- */

#define NBD_MAGIC              0x4e42444d41474943ULL /* "NBDMAGIC" */
#define NBD_OPTION_MAGIC       0x49484156454f5054ULL /* "IHAVEOPT" */
#define NBD_OPTION_REPLY_MAGIC 0x0003e889045565a9ULL

/* Handshake flags of the server; the client answers with the same bits. */
enum { NBD_FLAG_FIXED_NEWSTYLE = 1 << 0, NBD_FLAG_NO_ZEROES = 1 << 1 };

enum nbd_option_code {
    NBD_OPT_EXPORT_NAME = 1,
    NBD_OPT_ABORT = 2,
    NBD_OPT_LIST = 3,
    NBD_OPT_STARTTLS = 5,
    NBD_OPT_INFO = 6,
    NBD_OPT_GO = 7,
    NBD_OPT_STRUCTURED_REPLY = 8,
    NBD_OPT_LIST_META_CONTEXT = 9,
    NBD_OPT_SET_META_CONTEXT = 10,
};

enum {
    NBD_REP_ACK = 1,
    NBD_REP_SERVER = 2,
    NBD_REP_INFO = 3,
    NBD_REP_META_CONTEXT = 4,
};
#define NBD_REP_ERR_UNSUP   0x80000001U
#define NBD_REP_ERR_POLICY  0x80000002U
#define NBD_REP_ERR_INVALID 0x80000003U
#define NBD_REP_ERR_UNKNOWN 0x80000006U
#define NBD_REP_ERR_TOO_BIG 0x80000009U

enum {
    NBD_INFO_EXPORT = 0,
    NBD_INFO_NAME = 1,
    NBD_INFO_DESCRIPTION = 2,
    NBD_INFO_BLOCK_SIZE = 3,
};

/* Transmission flags: what an export can do. */
enum {
    NBD_FLAG_HAS_FLAGS = 1 << 0,
    NBD_FLAG_READ_ONLY = 1 << 1,
    NBD_FLAG_SEND_FLUSH = 1 << 2,
    NBD_FLAG_SEND_FUA = 1 << 3,
    NBD_FLAG_SEND_TRIM = 1 << 5,
    NBD_FLAG_SEND_WRITE_ZEROES = 1 << 6,
    NBD_FLAG_SEND_DF = 1 << 7,
    NBD_FLAG_CAN_MULTI_CONN = 1 << 8,
    NBD_FLAG_SEND_CACHE = 1 << 10,
    NBD_FLAG_SEND_FAST_ZERO = 1 << 11,
};

struct nbd_hello {
    be64 magic;
    be64 option_magic;
    be16 flags;
};
static_assert(sizeof(struct nbd_hello) == 18, "as the protocol has it");

struct nbd_option {
    be64 magic;
    be32 option;
    be32 len; /* of the data that follows */
};
static_assert(sizeof(struct nbd_option) == 16, "as the protocol has it");

struct nbd_option_reply {
    be64 magic;
    be32 option;
    be32 type;
    be32 len;
};
static_assert(sizeof(struct nbd_option_reply) == 20, "as the protocol has it");

struct nbd_info_export {
    be16 type;
    be64 size_bytes;
    be16 flags;
};
static_assert(sizeof(struct nbd_info_export) == 12, "as the protocol has it");

struct nbd_info_block_size {
    be16 type;
    be32 minimum;
    be32 preferred;
    be32 maximum;
};
static_assert(sizeof(struct nbd_info_block_size) == 14, "as the protocol has it");

/* Answers EXPORT_NAME, which knows no other answer. */
struct nbd_export_reply {
    be64 size_bytes;
    be16 flags;
    uint8_t zeroes[124]; /* left out if both sides said NO_ZEROES */
};
static_assert(sizeof(struct nbd_export_reply) == 134, "as the protocol has it");

/* --- transmission --- */

#define NBD_REQUEST_MAGIC      0x25609513U
#define NBD_SIMPLE_REPLY_MAGIC 0x67446698U
#define NBD_CHUNK_MAGIC        0x668e33efU

enum nbd_command_code {
    NBD_CMD_READ = 0,
    NBD_CMD_WRITE = 1,
    NBD_CMD_DISC = 2,
    NBD_CMD_FLUSH = 3,
    NBD_CMD_TRIM = 4,
    NBD_CMD_CACHE = 5,
    NBD_CMD_WRITE_ZEROES = 6,
    NBD_CMD_BLOCK_STATUS = 7,
};

enum {
    NBD_CMD_FLAG_FUA = 1 << 0,
    NBD_CMD_FLAG_NO_HOLE = 1 << 1,
    NBD_CMD_FLAG_DF = 1 << 2,
    NBD_CMD_FLAG_REQ_ONE = 1 << 3,
    NBD_CMD_FLAG_FAST_ZERO = 1 << 4,
};

struct nbd_request {
    be32 magic;
    be16 flags;
    be16 type;
    uint8_t cookie[8]; /* sent back as it came */
    be64 offset_bytes;
    be32 len_bytes;
};
static_assert(sizeof(struct nbd_request) == 28, "as the protocol has it");

struct nbd_simple_reply {
    be32 magic;
    be32 error;
    uint8_t cookie[8];
};
static_assert(sizeof(struct nbd_simple_reply) == 16, "as the protocol has it");

enum { NBD_CHUNK_FLAG_DONE = 1 << 0 };

enum {
    NBD_CHUNK_NONE = 0,
    NBD_CHUNK_OFFSET_DATA = 1,
    NBD_CHUNK_BLOCK_STATUS = 5,
    NBD_CHUNK_ERROR = (1 << 15) + 1,
};

struct nbd_chunk {
    be32 magic;
    be16 flags;
    be16 type;
    uint8_t cookie[8];
    be32 len; /* of all that follows */
};
static_assert(sizeof(struct nbd_chunk) == 20, "as the protocol has it");

struct nbd_chunk_data {
    struct nbd_chunk chunk;
    be64 offset_bytes;
};
static_assert(sizeof(struct nbd_chunk_data) == 28, "as the protocol has it");

struct nbd_chunk_error {
    struct nbd_chunk chunk;
    be32 error;
    be16 text_len;
};
static_assert(sizeof(struct nbd_chunk_error) == 26, "as the protocol has it");

struct nbd_chunk_status {
    struct nbd_chunk chunk;
    be32 context;
};
static_assert(sizeof(struct nbd_chunk_status) == 24, "as the protocol has it");

/* Of base:allocation. */
enum { NBD_STATE_HOLE = 1 << 0, NBD_STATE_ZERO = 1 << 1 };
/* Of parallax:changed-since:SNAP. */
enum { NBD_STATE_CHANGED = 1 << 0 };

struct nbd_status_range {
    be32 len_bytes;
    be32 state;
};
static_assert(sizeof(struct nbd_status_range) == 8, "as the protocol has it");

enum nbd_error {
    NBD_SUCCESS = 0,
    NBD_EPERM = 1,
    NBD_EIO = 5,
    NBD_ENOMEM = 12,
    NBD_EINVAL = 22,
    NBD_ENOSPC = 28,
    NBD_EOVERFLOW = 75,
    NBD_ENOTSUP = 95,
    NBD_ESHUTDOWN = 108,
};

/* --- cursor over option data, beside those of runtime/format.h --- */

static inline uint16_t read_be16(struct reader *r)
{
    const uint8_t *p = read_bytes(r, sizeof(be16));
    be16 v = {{0}};
    if (p)
        memcpy(&v, p, sizeof v);
    return be16_get(v);
}

static inline uint32_t read_be32(struct reader *r)
{
    const uint8_t *p = read_bytes(r, sizeof(be32));
    be32 v = {{0}};
    if (p)
        memcpy(&v, p, sizeof v);
    return be32_get(v);
}

#endif
