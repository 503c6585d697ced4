/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/simulation/lose.h"

#include "blockstore/store_internal.h"
#include "cow/disk_internal.h"

struct loss {
    struct store *store;
    uint32_t wanted, count;
};

static void lose_in(void *arg, struct extent *e)
{
    struct loss *loss = arg;
    if (e->state != EXTENT_FINAL || e->live_map == NULL || e->is_locked)
        return;
    for (uint32_t block = 0; block < e->length && loss->count < loss->wanted; block++) {
        bool is_stored = e->layout == NULL || bitmap_get(e->layout, block);
        if (!is_stored || bitmap_get(e->live_map, block))
            continue;
        bitmap_set(e->live_map, block);
        extent_count(&loss->store->extents, e, e->stored, e->live + 1);
        loss->count++;
    }
}

uint32_t lose_blocks(struct host *host, uint32_t wanted)
{
    struct loss loss = {.store = host->store, .wanted = wanted};
    extent_each(&host->store->extents, lose_in, &loss);
    return loss.count;
}
