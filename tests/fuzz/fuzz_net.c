/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What peers say: frames, in pieces of any size, and the names in certificates.
 *
 * The first byte of an input says what is fuzzed and under which limits, the second how
 * many bytes come at once (0: all).
 */
#include "runtime/net_frame.c"
#include "runtime/net_pki.c"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

enum { FUZZ_GREETING, FUZZ_NOBODY, FUZZ_NODE, FUZZ_NAME, FUZZ_KINDS };

static const struct frame_limits limits[] = {
    [FUZZ_GREETING] = {.takes_greeting = true},
    [FUZZ_NOBODY] = {NET_NOBODY_HEAD_MAX, NET_NOBODY_PAYLOAD_MAX, false},
    [FUZZ_NODE] = {NET_HEAD_MAX, NET_PAYLOAD_MAX, false},
};

/* The frame is what stood in the input, within the limits. */
static void check_frame(const struct frame_in *in, const uint8_t *bytes, size_t len)
{
    const struct frame_limits *limit = &in->limits;
    assert(len == sizeof in->header + in->head_len + in->payload_len);
    assert(in->payload_len <= limit->payload_max);
    if (limit->takes_greeting) {
        assert(in->head_len <= NET_GREETING_MAX);
        assert(in->kind == NET_FRAME_HELLO || in->kind == NET_FRAME_REFUSAL);
    } else {
        assert(in->head_len >= 1 && in->head_len <= limit->head_max);
        assert(in->kind == NET_FRAME_MESSAGE);
    }
    bytes += sizeof in->header;
    assert(in->head_len == 0 || memcmp(in->head, bytes, in->head_len) == 0);
    bytes += in->head_len;
    assert((in->payload != NULL) == (in->payload_len > 0));
    assert(in->payload == NULL || memcmp(in->payload->data, bytes, in->payload_len) == 0);
}

static void fuzz_frames(const uint8_t *bytes, size_t len, size_t chunk,
                        const struct frame_limits *limit)
{
    struct buffer_pool *pool = buffer_pool_create(2 * BUFFER_BYTES_MAX);
    struct frame_in in;
    struct error err = {0};
    size_t start = 0, at = 0;
    assert(pool);
    frame_in_init(&in, limit);
    while (at < len) {
        size_t room;
        if (frame_in_wants_buffer(&in)) {
            in.payload = buffer_create(pool, in.payload_len);
            assert(in.payload);
        }
        uint8_t *place = frame_in_place(&in, &room);
        size_t n = min_u64(min_u64(room, chunk), len - at);
        memcpy(place, bytes + at, n);
        at += n;
        int rc = frame_in_got(&in, n, &err);
        assert(in.head_cap <= max_u64(HEAD_CAP_MIN, limit->head_max));
        if (rc < 0) {
            assert(rc == -EPROTO && err.text[0] != '\0');
            break;
        }
        if (frame_in_is_whole(&in)) {
            check_frame(&in, bytes + start, at - start);
            frame_in_next(&in);
            start = at;
        }
    }
    frame_in_done(&in);
    assert(buffer_pool_used_bytes(pool) == 0);
    buffer_pool_destroy(pool);
}

/* A name that is accepted is written in one way only. */
static void fuzz_name(const uint8_t *bytes, size_t len)
{
    struct net_identity identity;
    char hex[33], text[IDENTITY_MAX];
    if (!parse_identity((const char *)bytes, len, &identity))
        return;
    assert(identity.node != 0);
    uid_print(identity.cluster, hex);
    snprintf(text, sizeof text, SCHEME "%s:%" PRIu64, hex, identity.node);
    assert(strlen(text) == len && memcmp(text, bytes, len) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    if (len < 2)
        return 0;
    int what = bytes[0] % FUZZ_KINDS;
    size_t chunk = bytes[1] > 0 ? bytes[1] : len;
    if (what == FUZZ_NAME)
        fuzz_name(bytes + 2, len - 2);
    else
        fuzz_frames(bytes + 2, len - 2, chunk, &limits[what]);
    return 0;
}
