/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Block status: a task asks the disk, which may have to read its map, and the answer is
 * one chunk of ranges for the one context there is, base:allocation. The answer may stop
 * short of what was asked; the client asks again from there.
 *
 * An error of the disk is the answer's error. Tasks are few: NBD_STATUS_MAX of a
 * connection at a time, the next one keeps the connection waiting.
 *
 * A session that ends waits for the task.
 */
#include "nbdserver/nbd_internal.h"

static async void status_main(struct task_call *call)
{
    struct request *request = container_of(call, struct request, call);
    struct session *s = request->session;
    uint32_t max = request->flags & NBD_CMD_FLAG_REQ_ONE ? 1 : NBD_STATUS_RANGES_MAX;
    uint32_t count = 0;
    struct disk_range *ranges = malloc(max * sizeof *ranges);
    int rc = -ENOMEM;
    if (ranges)
        rc = disk_block_status(s->disk, request->offset_bytes, request->len_bytes, ranges,
                               max, &count);
    if (rc < 0)
        request_fail(request, rc, NULL);
    else
        reply_status(request, ranges, count);
    free(ranges);
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
