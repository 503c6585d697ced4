/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Dead blocks on their way to the stores. They are collected, sorted, and cleared extent
 * by extent: data before nodes, nodes of lower levels first. They become durable in this
 * order, so after a crash a node that is dead has nothing live below it.
 */
#ifndef PARALLAX_COW_TRIM_H
#define PARALLAX_COW_TRIM_H

#include "replication/copies.h"

struct trim_item {
    struct address address;
    uint32_t count;
    uint32_t level; /* 0: data; a map node's level + 1 */
};

struct trim_set {
    struct trim_item *items;
    uint32_t count, cap;
    uint64_t freed_blocks; /* so far, by trim_apply */
};

/* A set that should be applied before more is added. */
#define TRIM_ITEMS_SOON 4096U

void trim_set_init(struct trim_set *set);
void trim_set_done(struct trim_set *set);
/* count blocks of one extent. -ENOMEM changes nothing. */
int trim_add(struct trim_set *set, struct address address, uint32_t count,
             unsigned level);

uint64_t trim_blocks(const struct trim_set *set);

/* Clears all of it on all copies and empties the set, also after an error: then some of
 * it may be cleared, no node before what is below. Errors as of copies_trim. May
 * suspend. */
async int trim_apply(struct trim_set *set, struct copies *copies);

#endif
