/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pool of file operations, and answers that must not come from inside a call.
 *
 * At most IO_PARTS_MAX parts exist. They are made when first needed and kept, so that
 * neither an append nor a read allocates. Those who find none wait in order, appends
 * before reads, since a guest's reads can wait for a buffer but a log cannot overtake.
 */
#include "blockstore/store_internal.h"

static struct part *part_make(struct store *store)
{
    struct part *part = malloc(sizeof *part);
    if (part == NULL)
        return NULL;
    part->store = store;
    store->parts_made++;
    return part;
}

int parts_init(struct store *store)
{
    SLIST_INIT(&store->parts);
    STAILQ_INIT(&store->starved_appends);
    STAILQ_INIT(&store->starved_reads);
    STAILQ_INIT(&store->refused_appends);
    STAILQ_INIT(&store->refused_reads);
    STAILQ_INIT(&store->answered_syncs);
    while (store->parts_made < IO_PARTS_KEPT) {
        struct part *part = part_make(store);
        if (part == NULL)
            return -ENOMEM;
        part_put(store, part);
    }
    return 0;
}

void parts_done(struct store *store)
{
    assert(store->parts_free == store->parts_made);
    struct part *part;
    while ((part = SLIST_FIRST(&store->parts)) != NULL) {
        SLIST_REMOVE_HEAD(&store->parts, link);
        free(part);
    }
}

struct part *part_get(struct store *store)
{
    struct part *part = SLIST_FIRST(&store->parts);
    if (part != NULL) {
        SLIST_REMOVE_HEAD(&store->parts, link);
        store->parts_free--;
        return part;
    }
    return store->parts_made < IO_PARTS_MAX ? part_make(store) : NULL;
}

void part_put(struct store *store, struct part *part)
{
    SLIST_INSERT_HEAD(&store->parts, part, link);
    store->parts_free++;
}

void parts_resume(struct store *store)
{
    struct store_append *append;
    struct store_read *read;
    while (store->parts_free > 0 &&
           (append = STAILQ_FIRST(&store->starved_appends)) != NULL) {
        append_issue(store, append);
        if (!append->cursor.is_whole)
            return;
        STAILQ_REMOVE_HEAD(&store->starved_appends, waiting);
        if (append->pending == 0)
            append_finish(store, append->cursor.extent);
    }
    while (store->parts_free > 0 &&
           (read = STAILQ_FIRST(&store->starved_reads)) != NULL) {
        read_issue(store, read);
        if (!read->cursor.is_whole)
            return;
        STAILQ_REMOVE_HEAD(&store->starved_reads, waiting);
        if (read->pending == 0)
            read_finish(store, read);
    }
}

void answer_soon(struct store *store)
{
    loop_post(store->loop, &store->answer);
}
