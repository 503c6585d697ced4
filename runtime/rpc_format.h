/* SPDX-License-Identifier: Apache-2.0 */
/* The start of each message's head; doc/format-rpc.md, "Calls". */
#ifndef PARALLAX_RUNTIME_RPC_FORMAT_H
#define PARALLAX_RUNTIME_RPC_FORMAT_H

#include "runtime/format.h"

enum rpc_kind {
    RPC_KIND_REQUEST = 1,
    RPC_KIND_ANSWER = 2,
    RPC_KIND_ONE_WAY = 3,
};

#define RPC_OP_PING    0U
#define RPC_CODE_MIN   (-65535) /* of an answer */

struct rpc_head_format {
    uint8_t kind;
    uint8_t reserved;
    le16 op;
    le32 code; /* of an answer: 0, or a negative code in two's complement */
    le64 call; /* chosen by who calls, returned with the answer; 0: one-way, ping */
};
static_assert(sizeof(struct rpc_head_format) == 16, "as documented");

#endif
