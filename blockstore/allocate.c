/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Space of the file in its file system. A write into a hole has the file system find
 * blocks for it and, at the next sync, commit its journal, which costs ten times the
 * write. It may also find none: the store may be larger than what is free there.
 *
 * Happy path: when slabs are taken near the end of what was set aside, a task looks how
 * much is free and asks the file system for the next stretch.
 *
 * What can fail: the file system is full, or nearly. The metadata lies in it, too, and a
 * write of that which fails is the store's end; so the data leaves some of it alone. What
 * else has no room is withheld: the store is full without it, before anything fails.
 * While little room is left only slabs that have their space are given out, so that a
 * write cannot find the file system full, whoever fills it. Then each who waits for
 * space has it looked at again, and is refused only after a look.
 * A file system that cannot set space aside is looked at more often; others may still be
 * faster there.
 *
 * On close the task is waited for.
 */
#include "blockstore/store_internal.h"

#define ALLOCATE_SLABS 512U  /* at a time */
#define AHEAD_SLABS    256U  /* at least so many are kept ready, and the reserve */
#define SHORT_SLABS    2048U /* with less room than that none is given out on trust */
#define LOOK_SLABS     64U   /* taken on trust before the next look */
/* While there is no room. Longer than those who wait for space let pass between two
 * questions whether any may come, or it always might. */
#define LOOK_EVERY_NS (200 * NS_PER_MS)
#define SAY_EVERY_NS  (60 * NS_PER_S)

/* Left to metadata: 64 MiB for LevelDB's logs and what it merges, and twice what records
 * are at most, 12 KiB for each extent of 64 MiB. A small store has fewer of them. */
#define HOST_RESERVE_BYTES     (64 * MIB)
#define HOST_RESERVE_MIN_BYTES (16 * MIB)
#define HOST_RESERVE_SHARE     1024U
#define HOST_RESERVE_SMALL     8U

uint64_t allocate_reserve_bytes(uint64_t capacity_bytes)
{
    uint64_t much = HOST_RESERVE_BYTES + capacity_bytes / HOST_RESERVE_SHARE;
    uint64_t little = max_u64(capacity_bytes / HOST_RESERVE_SMALL,
                              HOST_RESERVE_MIN_BYTES);
    return min_u64(much, little);
}

static uint32_t backed_end(const struct store *store)
{
    uint32_t fresh = store->slabs.fresh;
    bool is_known = store->can_allocate && store->allocated > fresh;
    return is_known ? store->allocated : fresh;
}

static uint32_t ahead_wanted(const struct store *store)
{
    uint64_t end = store->slabs.fresh + AHEAD_SLABS +
                   div_up_u64(store->reserve_bytes, SLAB_BYTES);
    return (uint32_t)min_u64(end, store->slabs.count);
}

uint32_t allocate_withheld(const struct store *store)
{
    const struct slabs *slabs = &store->slabs;
    return slabs->count -
           (store->room_end > slabs->limit ? store->room_end : slabs->limit);
}

static void say(struct store *store)
{
    uint64_t now_ns = loop_now_ns(store->loop);
    uint32_t withheld = allocate_withheld(store);
    if ((withheld > 0) == store->room_is_short ||
        (store->room_said_ns != 0 && now_ns - store->room_said_ns < SAY_EVERY_NS))
        return;
    store->room_said_ns = now_ns;
    store->room_is_short = withheld > 0;
    if (withheld > 0)
        log_warning(store->loop,
                    "store %s: the file system has %llu MiB left: no room for %llu MiB "
                    "of the capacity",
                    store->path, (unsigned long long)(store->host_free_bytes / MIB),
                    (unsigned long long)(withheld * SLAB_BYTES / MIB));
    else
        log_info(store->loop, "store %s: the file system has room for all of it again",
                 store->path);
}

/* The file system has room for so many slabs beyond those that have their space. */
static void set_limit(struct store *store, uint64_t room)
{
    struct slabs *slabs = &store->slabs;
    uint32_t backed = backed_end(store), before = slabs_available(slabs);
    store->room_end = (uint32_t)min_u64(backed + room, slabs->count);
    if (store->can_allocate && room < SHORT_SLABS)
        room = 0;
    slabs_set_limit(slabs, (uint32_t)min_u64(backed + room, slabs->count));
    if (slabs_available(slabs) > before) {
        zero_fill_wanted(store);
        if (store->on_space != NULL)
            loop_post(store->loop, store->on_space);
    }
    say(store);
}

/* How many slabs more the file system has room for. Of a device there is all. */
static async uint64_t look(struct store *store)
{
    struct file_space space;
    uint64_t reserve_bytes = allocate_reserve_bytes(store->super.capacity_bytes);
    int rc = file_space(store->file, &space);
    store->looked_ns = loop_now_ns(store->loop);
    store->looked_fresh = store->slabs.fresh;
    store->host_is_known = rc == 0;
    if (rc < 0)
        return UINT32_MAX;
    store->host_free_bytes = space.free_bytes;
    store->host_stored_bytes = space.stored_bytes;
    if (space.free_bytes <= reserve_bytes)
        return 0;
    return min_u64((space.free_bytes - reserve_bytes) / SLAB_BYTES, UINT32_MAX);
}

/* Sets aside up to `room` slabs; returns for how many there is room then. */
static async uint64_t set_aside(struct store *store, uint64_t room)
{
    uint32_t from = store->allocated;
    uint32_t count = (uint32_t)min_u64(min_u32(ALLOCATE_SLABS, store->slabs.count - from),
                                       room);
    if (!store->can_allocate || count == 0 || from >= ahead_wanted(store))
        return room;
    int rc = file_allocate(store->file, from * SLAB_BYTES, count * SLAB_BYTES);
    if (rc == 0) {
        store->allocated = from + count;
        return room - count;
    }
    if (rc == -ENOSPC || rc == -EDQUOT) /* somebody was faster */
        return 0;
    if (rc != -ENOTSUP)
        log_warning(store->loop, "store %s: setting space aside: %s; no more",
                    store->path, err_text(rc));
    store->can_allocate = false;
    return room;
}

static bool is_due(const struct store *store)
{
    const struct slabs *slabs = &store->slabs;
    bool is_enough = store->can_allocate
                         ? store->allocated >= ahead_wanted(store)
                         : slabs->fresh - store->looked_fresh < LOOK_SLABS;
    if (slabs_withheld(slabs) == 0)
        return !is_enough && slabs->fresh < slabs->count;
    if (!is_enough && slabs->limit > backed_end(store))
        return true;
    /* There was no room, and maybe still is none. */
    return loop_now_ns(store->loop) - store->looked_ns >= LOOK_EVERY_NS;
}

static async void look_and_set_aside(struct store *store)
{
    assert(store->allocating);
    uint64_t room = look(store);
    if (!store->failed)
        set_limit(store, set_aside(store, room));
    store->allocating = false;
    allocate_wanted(store);
    store_settled(store);
}

static async void allocate_main(struct task_call *call)
{
    look_and_set_aside(container_of(call, struct store, allocate_task));
}

void allocate_wanted(struct store *store)
{
    if (store->allocating || store->is_closing || store->failed ||
        file_is_device(store->file) || !is_due(store))
        return;
    store->allocating = true;
    store->allocate_task = (struct task_call){
        .main = allocate_main,
        .name = "allocate",
        .system = true,
    };
    task_start(store->loop, &store->allocate_task);
}

async void allocate_init(struct store *store)
{
    uint32_t count = store->slabs.count, fresh = store->slabs.fresh;
    store->can_allocate = !file_is_device(store->file);
    uint64_t room = look(store);
    /* Space is set aside in order, so what is beyond `fresh` slabs is that of the next
     * ones; but for a little that the file system needs to find them. */
    uint64_t stored = store->host_stored_bytes / SLAB_BYTES;
    store->allocated = (uint32_t)min_u64(stored > fresh ? stored - 1 : fresh, count);
    if (room < SHORT_SLABS)
        room = set_aside(store, room);
    set_limit(store, room);
}

void allocate_failed(struct store *store)
{
    slabs_set_limit(&store->slabs, 0);
    store->room_end = 0;
    store->looked_ns = loop_now_ns(store->loop);
}

uint64_t store_looked_ns(const struct store *store)
{
    return slabs_withheld(&store->slabs) > 0 && !store->failed ? store->looked_ns
                                                               : UINT64_MAX;
}

void store_look_soon(struct store *store)
{
    if (slabs_withheld(&store->slabs) > 0)
        allocate_wanted(store);
}

async void store_look(struct store *store)
{
    if (store->allocating || store->is_closing || file_is_device(store->file))
        return;
    store->allocating = true;
    look_and_set_aside(store);
}
