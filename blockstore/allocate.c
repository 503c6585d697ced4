/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Space of the file ahead of the slabs in use: a write into a hole has the file system
 * find blocks for it and, at the next sync, commit its journal, which costs ten times the
 * write.
 *
 * Happy path: when slabs are taken near the end of what was set aside, a task asks the
 * file system for the next stretch.
 *
 * What can fail: the file system is full, or cannot. Then nothing is set aside until the
 * next start, and writes find out for themselves.
 *
 * On close the task is waited for.
 */
#include "blockstore/store_internal.h"

#define ALLOCATE_SLABS 512U /* at a time */
#define AHEAD_SLABS    256U /* at least so many are kept ready */

static async void allocate_main(struct task_call *call)
{
    struct store *store = container_of(call, struct store, allocate_task);
    uint32_t from = store->allocated;
    uint32_t count = min_u32(ALLOCATE_SLABS, store->slabs.count - from);
    int rc = file_allocate(store->file, from * SLAB_BYTES, count * SLAB_BYTES);
    if (rc < 0) {
        log_warning(store->loop, "store %s: setting space aside: %s; no more",
                    store->path, err_text(rc));
        store->allocated = store->slabs.count;
    } else {
        store->allocated = from + count;
    }
    store->allocating = false;
    allocate_wanted(store);
    store_settled(store);
}

void allocate_wanted(struct store *store)
{
    uint32_t fresh = store->slabs.fresh;
    if (store->allocated < fresh)
        store->allocated = fresh;
    if (store->allocating || store->is_closing || store->failed ||
        store->allocated - fresh >= AHEAD_SLABS || store->allocated >= store->slabs.count)
        return;
    store->allocating = true;
    store->allocate_task = (struct task_call){
        .main = allocate_main,
        .name = "allocate",
        .system = true,
    };
    task_start(store->loop, &store->allocate_task);
}
