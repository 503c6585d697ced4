/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/nbd_queue.h"

#include <inttypes.h>

/* Interruption is seen at least this often. */
#define POLL_MS 200

static int fail_nbd(struct error *err)
{
    const char *text = nbd_get_error();
    int code = nbd_get_errno();
    /* ENOTCONN means to our callers that no daemon answers. */
    return err_set(err, code > 0 && code != ENOTCONN ? -code : -EIO, "%s",
                   text != NULL ? text : "NBD error");
}

void nbd_queue_init(struct nbd_queue *queue, struct nbd_handle *nbd,
                    bool (*interrupted)(void))
{
    *queue = (struct nbd_queue){.nbd = nbd, .interrupted = interrupted};
}

void nbd_queue_done(struct nbd_queue *queue)
{
    for (uint32_t i = 0; i < NBD_QUEUE_SLOTS; i++)
        free(queue->slots[i].data);
}

bool nbd_queue_is_full(const struct nbd_queue *queue)
{
    return queue->count == NBD_QUEUE_SLOTS;
}

struct nbd_queue_slot *nbd_queue_next(struct nbd_queue *queue)
{
    assert(!nbd_queue_is_full(queue));
    struct nbd_queue_slot *slot =
        &queue->slots[(queue->head + queue->count) % NBD_QUEUE_SLOTS];
    if (slot->data == NULL)
        slot->data = malloc(INCREMENT_DATA_BYTES_MAX);
    return slot->data != NULL ? slot : NULL;
}

static int on_done(void *arg, int *error)
{
    struct nbd_queue_slot *slot = arg;
    slot->error = *error;
    slot->done = true;
    return 1;
}

static void begin(struct nbd_queue *queue, struct nbd_queue_slot *slot)
{
    slot->done = false;
    slot->error = 0;
    queue->count++;
}

int nbd_queue_read(struct nbd_queue *queue, struct nbd_queue_slot *slot,
                   struct error *err)
{
    const struct increment_record *r = &slot->record;
    nbd_completion_callback callback = {.callback = on_done, .user_data = slot};
    begin(queue, slot);
    if (r->kind == INCREMENT_ZEROS) {
        slot->done = true; /* nothing to read */
        return 0;
    }
    if (nbd_aio_pread(queue->nbd, slot->data, r->len_bytes, r->offset_bytes, callback,
                      0) < 0)
        return fail_nbd(err);
    return 0;
}

int nbd_queue_write(struct nbd_queue *queue, struct nbd_queue_slot *slot,
                    struct error *err)
{
    const struct increment_record *r = &slot->record;
    nbd_completion_callback callback = {.callback = on_done, .user_data = slot};
    begin(queue, slot);
    int64_t cookie = r->kind == INCREMENT_ZEROS
                         ? nbd_aio_zero(queue->nbd, r->len_bytes, r->offset_bytes,
                                        callback, 0)
                         : nbd_aio_pwrite(queue->nbd, slot->data, r->len_bytes,
                                          r->offset_bytes, callback, 0);
    return cookie < 0 ? fail_nbd(err) : 0;
}

int nbd_queue_wait(struct nbd_queue *queue, struct nbd_queue_slot **ret_slot,
                   struct error *err)
{
    struct nbd_queue_slot *slot = &queue->slots[queue->head];
    assert(queue->count > 0);
    while (!slot->done) {
        int n = nbd_poll(queue->nbd, POLL_MS);
        if (queue->interrupted())
            return err_set(err, -EINTR, "interrupted");
        if (n < 0)
            return fail_nbd(err);
        if (nbd_aio_is_dead(queue->nbd) > 0 || nbd_aio_is_closed(queue->nbd) > 0)
            return err_set(err, -ECONNRESET, "the NBD server closed the connection");
    }
    if (slot->error != 0)
        return err_set(err, -slot->error, "%" PRIu64 " bytes at %" PRIu64 ": %s",
                       slot->record.len_bytes, slot->record.offset_bytes,
                       err_text(slot->error));
    *ret_slot = slot;
    return 0;
}

void nbd_queue_pop(struct nbd_queue *queue)
{
    assert(queue->count > 0);
    queue->head = (queue->head + 1) % NBD_QUEUE_SLOTS;
    queue->count--;
}
