/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Blocks that rot, in the store of one machine of a history, and only if there is a sound
 * copy elsewhere: data, map nodes, lists, headers, in whatever state their extent
 * is. What rots counts as lost there (model_cut): what is not flushed may have had no
 * other copy.
 *
 * Nobody may ever read what rotted. At the end a scrub must have mended it, and what
 * recovery copied of it must be sound, too; and so must be digests, and dead headers,
 * which rot at the end. But for what is open while the scrub runs: of such an extent
 * only what guests read must be sound. And headers in a row that rotted before a restart,
 * which then could not know them, may be left of an extent that has died elsewhere.
 */
#include "blockstore/block_format.h"
#include "blockstore/store_internal.h"
#include "cow/host.h"
#include "tests/simulation/fleet.h"

#define LAST_ROTS   4U /* when nobody is going to read */
#define LAST_HIDDEN 4U
#define SCRUB_LIMIT (300 * NS_PER_S)
#define MEND_LIMIT  (300 * NS_PER_S)
#define LOOK_NS     (100 * NS_PER_MS)

/* Or a roll record. */
static bool is_header(const uint8_t *bytes)
{
    le32 magic;
    memcpy(&magic, bytes, sizeof magic);
    return le32_get(magic) == HEADER_MAGIC;
}

static bool locate(const struct place *place, struct address address,
                   uint64_t *ret_offset_bytes)
{
    const struct extent *e = extent_find(&place->store->extents, address_extent(address));
    uint32_t block = address_block(address);
    return e != NULL && block < e->length && extent_is_live(e, block, 1) &&
           extent_place(e, block, 1, ret_offset_bytes) == 1;
}

static void peek(const struct place *place, uint64_t offset_bytes, uint8_t *ret)
{
    if (sim_file_peek(place->fleet->world, place->store_path, offset_bytes, ret,
                      BLOCK_SIZE) != 0)
        abort();
}

/* Some other machine that is up has the same bytes there. */
static bool is_elsewhere(const struct place *place, struct address address,
                         const uint8_t *bytes)
{
    struct fleet *fleet = place->fleet;
    uint8_t theirs[BLOCK_SIZE];
    uint64_t offset_bytes = 0;
    for (uint32_t i = 1; i <= fleet->place_count; i++) {
        const struct place *other = &fleet->places[i];
        if (other == place || other->state != PLACE_UP ||
            !locate(other, address, &offset_bytes))
            continue;
        peek(other, offset_bytes, theirs);
        if (memcmp(theirs, bytes, BLOCK_SIZE) == 0)
            return true;
    }
    return false;
}

/* Of an extent that has not ended the other copies may not be durable yet: one must be
 * there, and no machine may lose power from then on. */
static bool may_rot(struct place *place, struct address address, uint64_t offset_bytes)
{
    struct extent_info info;
    uint8_t bytes[BLOCK_SIZE];
    if (store_extent_info(place->store, address_extent(address), &info) != 0)
        return false;
    if (info.state == EXTENT_FINAL)
        return true;
    peek(place, offset_bytes, bytes);
    if (!is_elsewhere(place, address, bytes))
        return false;
    place->fleet->has_power = true;
    return true;
}

/* A place on its medium that some block of an extent has. */
static bool pick(struct place *place, struct address *ret, uint64_t *ret_offset_bytes)
{
    struct fleet *fleet = place->fleet;
    struct extent_info *infos;
    size_t count;
    if (store_list_extents(place->store, 0, &infos, &count) != 0)
        abort();
    struct address extent = ADDRESS_NULL;
    uint32_t length = 0;
    if (count > 0) {
        size_t at = (size_t)fleet_random(fleet, count);
        extent = infos[at].extent;
        length = infos[at].length;
    }
    free(infos);
    if (length == 0)
        return false;
    *ret = address_plus(extent, (uint32_t)fleet_random(fleet, length));
    return locate(place, *ret, ret_offset_bytes) &&
           may_rot(place, *ret, *ret_offset_bytes);
}

static void rot(struct place *place, struct address address, uint64_t offset_bytes)
{
    struct fleet *fleet = place->fleet;
    uint8_t bytes[BLOCK_SIZE];
    uint64_t at = fleet_random(fleet, BLOCK_SIZE);
    peek(place, offset_bytes, bytes);
    const char *what = is_header(bytes) ? ", a header" : "";
    fleet->rots[fleet->rot_count++] = (struct fleet_rot){
        .address = address, .is_header = is_header(bytes)};
    bytes[at] = (uint8_t)(bytes[at] ^ (1U << fleet_random(fleet, 8)));
    (void)sim_file_poke(fleet->world, place->store_path, offset_bytes + at, bytes + at,
                        1);
    fleet_note(fleet, "machine %u: block %u of extent %llx rots%s", place->number,
               address_block(address), (unsigned long long)address_extent(address).v,
               what);
    model_cut(&fleet->model, place->number);
}

bool fleet_rot(struct fleet *fleet, struct place *place)
{
    struct address address;
    uint64_t offset_bytes = 0;
    if (fleet->rotten != 0)
        place = &fleet->places[fleet->rotten];
    if (place->state != PLACE_UP || fleet->rot_count == FLEET_ROTS_MAX ||
        !pick(place, &address, &offset_bytes))
        return false;
    fleet->rotten = place->number;
    rot(place, address, offset_bytes);
    return true;
}

bool fleet_rot_may_stay(const struct fleet *fleet, const struct place *place,
                        struct address address)
{
    bool is_young = false;
    for (uint32_t i = 0; i < fleet->rot_count; i++) {
        const struct fleet_rot *it = &fleet->rots[i];
        is_young |= it->is_young && address_equal(it->address, address);
    }
    return is_young && place->number == fleet->rotten;
}

bool fleet_rot_is_left(const struct fleet *fleet, const struct place *place,
                       struct address address)
{
    bool is_header = false;
    for (uint32_t i = 0; i < fleet->rot_count; i++) {
        const struct fleet_rot *it = &fleet->rots[i];
        is_header |= it->is_header && address_equal(it->address, address);
    }
    return is_header && place->number == fleet->rotten;
}

/* --- at the end --- */

/* A place of the digest, or of a header that is dead. */
static bool pick_hidden(const struct place *place, const struct extent *e,
                        uint64_t *ret_offset_bytes)
{
    uint8_t bytes[BLOCK_SIZE];
    if (e->state != EXTENT_FINAL || e->headers != NULL)
        return false;
    if (e->layout != NULL)
        return runs_find(&e->runs, pieces_of(e->stored) * PIECE_BLOCKS, 1,
                         ret_offset_bytes) == 1;
    uint32_t block = (uint32_t)fleet_random(place->fleet, e->length);
    for (uint32_t i = 0; i < e->length; i++) {
        uint32_t at = (block + i) % e->length;
        if (extent_place(e, at, 1, ret_offset_bytes) != 1)
            continue;
        peek(place, *ret_offset_bytes, bytes);
        if (is_header(bytes) && !extent_is_live(e, at, 1))
            return true;
    }
    return false;
}

/* What describes blocks rots, in some extents: nobody reads it but a scrub. */
static void rot_hidden(const struct place *place)
{
    struct fleet *fleet = place->fleet;
    struct extent_info *infos;
    uint64_t offset_bytes;
    size_t count;
    if (store_list_extents(place->store, 0, &infos, &count) != 0)
        abort();
    for (uint32_t i = 0; i < LAST_HIDDEN && count > 0; i++) {
        struct address extent = infos[fleet_random(fleet, count)].extent;
        const struct extent *e = extent_find(&place->store->extents, extent);
        uint8_t byte;
        if (!pick_hidden(place, e, &offset_bytes))
            continue;
        offset_bytes += 8 + fleet_random(fleet, 32);
        (void)sim_file_peek(fleet->world, place->store_path, offset_bytes, &byte, 1);
        byte ^= 16;
        (void)sim_file_poke(fleet->world, place->store_path, offset_bytes, &byte, 1);
        fleet_note(fleet, "machine %u: %s of extent %llx rots", place->number,
                   e->layout != NULL ? "the digest" : "a dead header",
                   (unsigned long long)extent.v);
    }
    free(infos);
}

/* A scrub passes over extents that are open: the next one reads them. */
static void note_young(struct fleet *fleet, const struct place *place)
{
    struct extent_info info;
    for (uint32_t i = 0; i < fleet->rot_count; i++) {
        struct address extent = address_extent(fleet->rots[i].address);
        fleet->rots[i].is_young = store_extent_info(place->store, extent, &info) == 0 &&
                                  info.state == EXTENT_OPEN;
    }
}

static async void scrub(struct place *place)
{
    struct error err = {0};
    struct scrub_status status;
    uint64_t until_ns = loop_now_ns(place->loop) + SCRUB_LIMIT;
    if (scrub_start(place->host, 0, &err) < 0)
        fleet_fail(place->fleet, "machine %u: %s", place->number, err.text);
    do {
        task_sleep_ns(LOOK_NS);
        if (loop_now_ns(place->loop) > until_ns)
            fleet_fail(place->fleet, "machine %u: a scrub does not end", place->number);
        scrub_status(place->host, &status);
    } while (status.running);
    fleet_note(place->fleet, "machine %u: a scrub, %llu findings", place->number,
               (unsigned long long)status.findings);
}

/* What was found is mended. */
static void wait_mended(struct fleet *fleet)
{
    uint64_t until_ns = sim_world_now_ns(fleet->world) + MEND_LIMIT;
    for (uint32_t i = 1; i <= fleet->place_count; i++) {
        const struct place *place = &fleet->places[i];
        while (place->state == PLACE_UP &&
               recovery_mends_left(membership_recovery(place->membership)) > 0) {
            if (sim_world_now_ns(fleet->world) > until_ns)
                fleet_fail(fleet, "machine %u: what rotted is not mended", i);
            fleet_run_for(fleet, LOOK_NS);
        }
    }
}

void fleet_rot_end(struct fleet *fleet)
{
    if (fleet->rotten == 0)
        return;
    struct place *place = &fleet->places[fleet->rotten];
    for (uint32_t i = 0; i < LAST_ROTS; i++)
        (void)fleet_rot(fleet, place);
    rot_hidden(place);
    note_young(fleet, place);
    place_run(place, scrub);
    fleet_run_for(fleet, NS_PER_S);
    wait_mended(fleet);
}
