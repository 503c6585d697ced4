/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes of a connection into frames. It asks for bytes at a place and is told how many
 * came, so that a payload is put where it will stay.
 *
 *      header -> head -> [ payload ] -> whole -> header ...
 */
#ifndef PARALLAX_RUNTIME_NET_FRAME_INTERNAL_H
#define PARALLAX_RUNTIME_NET_FRAME_INTERNAL_H

#include "runtime/buffer.h"
#include "runtime/error.h"
#include "runtime/net_format.h"

/* What the receiver allows. Checked before memory is taken. */
struct frame_limits {
    uint32_t head_max, payload_max;
    bool takes_greeting; /* it is the next that must come; else only messages may */
};

enum frame_part { FRAME_HEADER, FRAME_HEAD, FRAME_PAYLOAD, FRAME_WHOLE };

struct frame_in {
    struct frame_limits limits;
    enum frame_part part;
    struct net_frame header;
    uint32_t got; /* bytes of the part */
    /* Of the frame, once the header is whole: */
    enum net_frame_kind kind;
    uint32_t head_len, payload_len;
    uint8_t *head;
    uint32_t head_cap;
    struct buffer *payload; /* NULL: must be given before its bytes are asked for */
};

void frame_in_init(struct frame_in *in, const struct frame_limits *limits);
void frame_in_done(struct frame_in *in);
/* True: in->payload must be set to a buffer of payload_len bytes before going on. */
bool frame_in_wants_buffer(const struct frame_in *in);
/* Where the next bytes go, and how many at most; at least one. Not when a frame is whole
 * or a buffer is wanted. */
uint8_t *frame_in_place(struct frame_in *in, size_t *ret_len);
/* So many bytes were put there. -EPROTO: it is no frame that is allowed here; -ENOMEM.
 * Nothing more may be asked after that. */
int frame_in_got(struct frame_in *in, size_t len, struct error *err);
bool frame_in_is_whole(const struct frame_in *in);
/* The frame was taken; the next begins. What is left in in->payload is put back. */
void frame_in_next(struct frame_in *in);

#endif
