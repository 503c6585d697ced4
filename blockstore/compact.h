/* SPDX-License-Identifier: Apache-2.0 */
/* Compaction: what compact.c, compact_run.c and their tests share. */
#ifndef PARALLAX_BLOCKSTORE_COMPACT_H
#define PARALLAX_BLOCKSTORE_COMPACT_H

#include "blockstore/compact_policy.h"
#include "blockstore/inspect.h"

/* A part of an extent that is to be written anew. */
struct section {
    struct address address;
    uint32_t from, to; /* pieces of its blocks */
    bool digest;       /* and its digest, also if that could stay */
    const struct digest_entry_format *known; /* as in struct inspect: then damage of
                                                headers and digest is no hindrance */
};

/* Whether it may be moved at all: */
static inline bool compact_may_be(const struct extent *e)
{
    return e->state == EXTENT_FINAL && e->headers == NULL && e->live > 0;
}
/* and without help. */
static inline bool compact_is_fit(const struct extent *e)
{
    return compact_may_be(e) && !e->is_unfit;
}

/* Moves the live blocks of a section to other pieces, densely, and frees the old ones;
 * the first time, a digest takes the place of the headers. pace, called between chunks,
 * may suspend, and returns an error to give up.
 *   -PLX_EMISSING, -PLX_EPRECONDITION: not fit, or it has changed meanwhile
 *   -PLX_EFULL, -ENOMEM: later, maybe
 *   -PLX_EDAMAGED: some of it cannot be read; it was marked as unfit
 *   -PLX_EFAILED: the store is out of service. */
async int compact_section(struct store *store, const struct section *section,
                          async int (*pace)(void *arg), void *arg);

#endif
