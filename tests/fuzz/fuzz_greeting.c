/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a node says of itself: greetings, and the heartbeats that a leader gets. The first
 * byte chooses (low bit: 0 a greeting, 1 a heartbeat). What decodes is fit to be kept:
 * text that ends, is printable, and encodes again.
 */
#include "replication/membership_greet.c"
#include "replication/warden.c"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

static void one_greeting(const uint8_t *bytes, size_t len)
{
    struct greeting greeting;
    uint8_t again[GREETING_MAX];
    if (!greeting_decode(bytes, len, &greeting))
        return;
    assert(memchr(greeting.address, '\0', sizeof greeting.address) != NULL);
    assert(greeting_encode(&greeting, again) == len && memcmp(again, bytes, len) == 0);
}

static void one_heartbeat(const uint8_t *bytes, size_t len)
{
    struct node_report report;
    struct rpc_request request = {.head = bytes, .head_len = len, .peer.node = 7};
    if (len > HEARTBEAT_MAX || !decode(&request, &report))
        return;
    assert(report.node == 7);
    assert(memchr(report.address, '\0', sizeof report.address) != NULL);
    assert(cluster_text_is_plain(report.address));
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    if (len == 0)
        return 0;
    if (bytes[0] & 1)
        one_heartbeat(bytes + 1, len - 1);
    else
        one_greeting(bytes + 1, len - 1);
    return 0;
}
