/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NBD requests in flight, taken up again in the order in which they were begun. Each has
 * a buffer of its own.
 *
 *     free --queue_push--> in flight --done--> waits at the head --queue_pop--> free
 */
#ifndef PARALLAX_TOOLS_NBD_QUEUE_H
#define PARALLAX_TOOLS_NBD_QUEUE_H

#include <libnbd.h>

#include "tools/increment.h"

#define NBD_QUEUE_SLOTS 32U

struct nbd_queue_slot {
    struct increment_record record;
    uint8_t *data; /* INCREMENT_DATA_BYTES_MAX; NULL before its first use */
    bool done;
    int error; /* an errno */
};

struct nbd_queue {
    struct nbd_handle *nbd; /* the caller's */
    bool (*interrupted)(void);
    uint32_t head, count;
    struct nbd_queue_slot slots[NBD_QUEUE_SLOTS];
};

void nbd_queue_init(struct nbd_queue *queue, struct nbd_handle *nbd,
                    bool (*interrupted)(void));
/* Nothing may be in flight, or the handle must be closed already. */
void nbd_queue_done(struct nbd_queue *queue);

bool nbd_queue_is_full(const struct nbd_queue *queue);
/* The next slot, with its data; the queue must not be full. NULL: out of memory. */
struct nbd_queue_slot *nbd_queue_next(struct nbd_queue *queue);
/* Begins what the slot's record says: reads or writes DATA, zeroes ZEROS. */
int nbd_queue_read(struct nbd_queue *queue, struct nbd_queue_slot *slot,
                   struct error *err);
int nbd_queue_write(struct nbd_queue *queue, struct nbd_queue_slot *slot,
                    struct error *err);
/* Waits for the oldest one and returns it; it must be given back with nbd_queue_pop. The
 * queue must not be empty. -EINTR: interrupted. */
int nbd_queue_wait(struct nbd_queue *queue, struct nbd_queue_slot **ret_slot,
                   struct error *err);
void nbd_queue_pop(struct nbd_queue *queue);

#endif
