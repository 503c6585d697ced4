/* SPDX-License-Identifier: Apache-2.0 */
/* Block by block through an extent that is not open: see inspect.c. */
#ifndef PARALLAX_BLOCKSTORE_INSPECT_H
#define PARALLAX_BLOCKSTORE_INSPECT_H

#include "blockstore/digest.h"
#include "blockstore/store_internal.h"

struct inspect {
    struct store *store;
    struct address address;
    struct extent *extent; /* NULL: it is not held */
    uint64_t serial;       /* of what is known of it */
    uint8_t phase;
    uint32_t block;    /* the next one */
    uint32_t from, to; /* only of these blocks the bytes are read */
    uint64_t bytes_read;

    uint8_t *window;
    uint32_t window_places; /* room for */
    uint32_t window_place, window_count;

    struct chain chain; /* without a layout */
    bool is_lost;       /* a header was damaged: where the next one is nobody knows */
    struct entry entries[BATCH_BLOCKS];
    uint32_t entry_count, entry_at;

    uint32_t place; /* with a layout: of the next block */
    struct digest_entry_format *digest;
    uint32_t digest_count, digest_at;
    int digest_code; /* what is wrong with it */

    const struct digest_entry_format *known; /* by block, kind 0: nothing. What others say
                                              * of blocks of which nothing is known here;
                                              * NULL: they were not asked */
};

struct inspected {
    uint32_t block;
    bool is_header;
    bool is_known; /* entry says what it is */
    bool was_bad;  /* when it was moved */
    struct entry entry;
    const uint8_t *bytes; /* until the next call; NULL: dead, not wanted or unreadable.
                             Of a header always, if it can be read */
    int code;             /* -PLX_ECHECKSUM, -PLX_EDAMAGED (a header), or of the read */
};

/* NULL when memory is out. It holds nothing yet; fields from, to and block may be set.
 * window_bytes: read at once; whole blocks. */
struct inspect *inspect_create(struct store *store, struct address address,
                               uint32_t window_bytes);
/* Released before. */
void inspect_destroy(struct inspect *ins);
/* Lets go of the extent, and takes it up again: -PLX_EMISSING; -PLX_EPRECONDITION if it
 * is open; -ENOMEM. Then it is released. */
void inspect_release(struct inspect *ins);
async int inspect_resume(struct inspect *ins);
/* 1: the next stored block; 0: there is none; or as inspect_resume, but still held. */
async int inspect_next(struct inspect *ins, struct inspected *ret);

#endif
