/* SPDX-License-Identifier: Apache-2.0 */
/* What goes over a connection inside TLS: doc/format-rpc.md, "Frames". */
#ifndef PARALLAX_RUNTIME_NET_FORMAT_H
#define PARALLAX_RUNTIME_NET_FORMAT_H

#include "runtime/format.h"

#define NET_FRAME_MAGIC   0x314d4c50U /* "PLM1" */
#define NET_FRAME_VERSION 1U

enum net_frame_kind {
    NET_FRAME_HELLO = 1,   /* first, from the side that accepted: you are let in */
    NET_FRAME_REFUSAL = 2, /* instead: you are not */
    NET_FRAME_MESSAGE = 3,
};

/* Before each message; the head follows, then the payload. */
struct net_frame {
    le32 magic;
    le16 version;
    le16 kind;
    le32 head_len;
    le32 payload_len;
};
static_assert(sizeof(struct net_frame) == 16, "doc/format-rpc.md");

/* Of the head of a hello or a refusal: bytes of later versions, not looked at. */
#define NET_GREETING_MAX 256U

/* What is taken from peers without a certificate. */
#define NET_NOBODY_HEAD_MAX    (64 * 1024U)
#define NET_NOBODY_PAYLOAD_MAX 0U

#endif
