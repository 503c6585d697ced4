/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Block status: a task asks the disk, which may have to read its map, and the answer is
 * one chunk of ranges for each context the client has chosen. A chunk may stop short of
 * what was asked; the client asks again from there.
 *
 * An error of the disk is the answer's error, whichever context it was of. Tasks are few:
 * NBD_STATUS_MAX of a connection at a time, the next one keeps the connection waiting.
 *
 * A session that ends waits for the task.
 */
#include "nbdserver/nbd_internal.h"

/* Room for what the disk answers, and for what becomes of it. */
struct ranges {
    uint32_t max, count;
    union {
        struct disk_range *allocation;
        struct disk_change_range *changes;
    };
    struct nbd_status_range *status;
};

static async int ask_allocation(struct request *request, struct ranges *ranges)
{
    int rc = disk_block_status(request->session->disk, request->offset_bytes,
                               request->len_bytes, ranges->allocation, ranges->max,
                               &ranges->count);
    for (uint32_t i = 0; rc == 0 && i < ranges->count; i++) {
        bool is_hole = ranges->allocation[i].kind == DISK_HOLE;
        ranges->status[i] = (struct nbd_status_range){
            .len_bytes = be32_of((uint32_t)ranges->allocation[i].len_bytes),
            .state = be32_of(is_hole ? NBD_STATE_HOLE | NBD_STATE_ZERO : 0),
        };
    }
    return rc;
}

static async int ask_changes(struct request *request, const struct context *context,
                             struct ranges *ranges)
{
    int rc = -PLX_EMISSING;
    if (context->version != 0)
        rc = disk_changed_since(request->session->disk, context->version,
                                request->offset_bytes, request->len_bytes,
                                ranges->changes, ranges->max, &ranges->count);
    if (rc == -PLX_EMISSING) {
        request_fail(request, -EINVAL, "the snapshot to compare with is gone");
        return -EINVAL;
    }
    for (uint32_t i = 0; rc == 0 && i < ranges->count; i++)
        ranges->status[i] = (struct nbd_status_range){
            .len_bytes = be32_of((uint32_t)ranges->changes[i].len_bytes),
            .state = be32_of(ranges->changes[i].changed ? NBD_STATE_CHANGED : 0),
        };
    return rc;
}

static async void ask(struct request *request, struct ranges *ranges)
{
    const struct session *s = request->session;
    struct writer out = {0};
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < s->context_count; i++) {
        const struct context *context = &s->contexts[i];
        rc = context->is_changes ? ask_changes(request, context, ranges)
                                 : ask_allocation(request, ranges);
        if (rc == 0)
            reply_status_add(request, &out, i + 1, ranges->status, ranges->count,
                             i + 1 == s->context_count);
    }
    if (rc == 0) {
        reply_status(request, &out);
        return;
    }
    writer_done(&out);
    request_fail(request, rc, NULL);
}

static async void status_main(struct task_call *call)
{
    struct request *request = container_of(call, struct request, call);
    struct session *s = request->session;
    bool one = request->flags & NBD_CMD_FLAG_REQ_ONE;
    struct ranges ranges = {.max = one ? 1 : NBD_STATUS_RANGES_MAX / s->context_count};
    static_assert(sizeof *ranges.allocation >= sizeof *ranges.changes, "either fits");
    ranges.allocation = malloc(ranges.max * sizeof *ranges.allocation);
    ranges.status = malloc(ranges.max * sizeof *ranges.status);
    if (ranges.allocation && ranges.status)
        ask(request, &ranges);
    else
        request_fail(request, -ENOMEM, NULL);
    free(ranges.allocation);
    free(ranges.status);
    assert(s->status_count > 0);
    s->status_count--;
    session_work_end(s);
    request->pending--;
    request_work_done(request);
    session_unblock(s, BLOCKED_ROOM);
}

bool status_issue(struct request *request)
{
    struct session *s = request->session;
    if (s->status_count >= NBD_STATUS_MAX) {
        session_block(s, BLOCKED_ROOM);
        return false;
    }
    s->status_count++;
    session_work_begin(s);
    request->pending++;
    request->call = (struct task_call){.main = status_main, .name = "nbd block status"};
    task_start(s->shared->loop, &request->call);
    return true;
}
