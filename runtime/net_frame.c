/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Happy path: 16 bytes of header, which say all; then the head into memory kept for the
 * next one, then the payload into the buffer that the caller gave.
 *
 * A header is judged as soon as it is whole. One that is wrong ends the connection: there
 * is no way to find the next frame.
 */
#include "runtime/net_frame_internal.h"

#define HEAD_KEPT_MAX (8 * KIB) /* a larger head's memory goes after use */
#define HEAD_CAP_MIN  512U

void frame_in_init(struct frame_in *in, const struct frame_limits *limits)
{
    *in = (struct frame_in){.limits = *limits};
}

static void drop_head(struct frame_in *in)
{
    free(in->head);
    in->head = NULL;
    in->head_cap = 0;
}

void frame_in_done(struct frame_in *in)
{
    drop_head(in);
    buffer_put(take(in->payload));
}

bool frame_in_is_whole(const struct frame_in *in)
{
    return in->part == FRAME_WHOLE;
}

bool frame_in_wants_buffer(const struct frame_in *in)
{
    return in->part == FRAME_PAYLOAD && in->payload == NULL;
}

static uint32_t part_len(const struct frame_in *in)
{
    switch (in->part) {
    case FRAME_HEADER:
        return sizeof in->header;
    case FRAME_HEAD:
        return in->head_len;
    case FRAME_PAYLOAD:
        return in->payload_len;
    case FRAME_WHOLE:
        break;
    }
    return 0;
}

uint8_t *frame_in_place(struct frame_in *in, size_t *ret_len)
{
    uint8_t *start = (uint8_t *)&in->header;
    assert(!frame_in_wants_buffer(in) && in->part != FRAME_WHOLE);
    if (in->part == FRAME_HEAD)
        start = in->head;
    else if (in->part == FRAME_PAYLOAD)
        start = in->payload->data;
    assert(in->got < part_len(in));
    *ret_len = part_len(in) - in->got;
    return start + in->got;
}

static int check_header(const struct frame_in *in, struct error *err)
{
    uint16_t kind = le16_get(in->header.kind);
    uint32_t head_len = le32_get(in->header.head_len);
    uint32_t payload_len = le32_get(in->header.payload_len);
    if (le32_get(in->header.magic) != NET_FRAME_MAGIC)
        return err_set(err, -EPROTO, "what came is not a frame");
    if (le16_get(in->header.version) != NET_FRAME_VERSION)
        return err_set(err, -EPROTO, "frames of version %u, not %u",
                       le16_get(in->header.version), NET_FRAME_VERSION);
    if (in->limits.takes_greeting) {
        if (kind != NET_FRAME_HELLO && kind != NET_FRAME_REFUSAL)
            return err_set(err, -EPROTO, "frame of kind %u before a hello", kind);
        if (head_len > NET_GREETING_MAX || payload_len > 0)
            return err_set(err, -EPROTO, "greeting of %u bytes", head_len);
        return 0;
    }
    if (kind != NET_FRAME_MESSAGE)
        return err_set(err, -EPROTO, "frame of unknown kind %u", kind);
    if (head_len == 0 || head_len > in->limits.head_max)
        return err_set(err, -EPROTO, "head of %u bytes; 1 to %u are allowed", head_len,
                       in->limits.head_max);
    if (payload_len > in->limits.payload_max)
        return err_set(err, -EPROTO, "payload of %u bytes; %u are allowed", payload_len,
                       in->limits.payload_max);
    return 0;
}

static int take_header(struct frame_in *in, struct error *err)
{
    int rc = check_header(in, err);
    if (rc < 0)
        return rc;
    in->kind = (enum net_frame_kind)le16_get(in->header.kind);
    in->head_len = le32_get(in->header.head_len);
    in->payload_len = le32_get(in->header.payload_len);
    if (in->head_len <= in->head_cap)
        return 0;
    drop_head(in);
    uint32_t cap = in->head_len < HEAD_CAP_MIN ? HEAD_CAP_MIN : in->head_len;
    in->head = malloc(cap);
    if (in->head == NULL)
        return err_set(err, -ENOMEM, "a head of %u bytes: %s", in->head_len,
                       err_text(ENOMEM));
    in->head_cap = cap;
    return 0;
}

int frame_in_got(struct frame_in *in, size_t len, struct error *err)
{
    assert(len > 0 && len <= part_len(in) - in->got);
    in->got += (uint32_t)len;
    while (in->part != FRAME_WHOLE && in->got == part_len(in)) {
        if (in->part == FRAME_HEADER) {
            int rc = take_header(in, err);
            if (rc < 0)
                return rc;
        }
        in->part++; /* over parts of no length too */
        in->got = 0;
    }
    return 0;
}

void frame_in_next(struct frame_in *in)
{
    assert(in->part == FRAME_WHOLE);
    buffer_put(take(in->payload));
    if (in->head_cap > HEAD_KEPT_MAX)
        drop_head(in);
    in->part = FRAME_HEADER;
    in->got = 0;
}
