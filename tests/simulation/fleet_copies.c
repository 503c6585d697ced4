/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The copies of each extent, compared in the stores themselves: when everything is whole
 * and nobody writes, every member of a group has every extent of it, final, with the same
 * length, the same live blocks and the same bytes; and nobody else has one.
 *
 * Records come first, since trims and what is tidied up may be under way: they are looked
 * at until they agree. Then each machine reads all that is live on it, and if nothing of
 * it changed meanwhile, the checksums of what was read must be the same for all members,
 * block by block. What was read must also fit what the store itself knows of it.
 */
#include <stdio.h>

#include "blockstore/store_internal.h"
#include "cow/disk_internal.h"
#include "tests/simulation/fleet.h"

#define SAME_LIMIT_NS                                                                    \
    (300 * NS_PER_S) /* trims that recovery missed come a minute later */
#define LOOK_NS     (250 * NS_PER_MS)
#define READ_BLOCKS 64U
#define TEXT        300U

/* What one machine has of one extent. */
struct copy {
    struct extent_info info;
    uint8_t live[BITMAP_BYTES];
    uint32_t *crcs; /* of its blocks; only of live ones */
    bool is_left;   /* nothing of it is known to be of any use */
};

/* All of one machine, by address. */
struct inventory {
    struct place *place; /* NULL: there is none */
    struct copy *copies;
    size_t count;
    bool has_changed; /* while it was read */
};

struct comparison {
    struct fleet *fleet;
    struct inventory inventories[FLEET_PLACES_MAX + 1];
    char text[TEXT];       /* what differs, */
    struct address extent; /* and in which */
};

static struct comparison comparison; /* one at a time; tasks find it here */

static bool is_live(const struct copy *copy, uint32_t block)
{
    return (copy->live[block / 8] >> (block % 8) & 1) != 0;
}

/* --- inventories --- */

static void forget(struct comparison *c)
{
    for (size_t p = 0; p < ARRAY_LEN(c->inventories); p++) {
        struct inventory *inventory = &c->inventories[p];
        for (size_t i = 0; i < inventory->count; i++)
            free(inventory->copies[i].crcs);
        free(inventory->copies);
        *inventory = (struct inventory){.place = NULL};
    }
}

static void take_stock(struct inventory *inventory, struct place *place)
{
    struct extent_info *infos;
    inventory->place = place;
    if (store_list_extents(place->store, 0, &infos, &inventory->count) != 0)
        abort();
    inventory->copies = calloc(inventory->count + 1, sizeof *inventory->copies);
    if (inventory->copies == NULL)
        abort();
    for (size_t i = 0; i < inventory->count; i++) {
        struct copy *copy = &inventory->copies[i];
        copy->info = infos[i];
        if (infos[i].state == EXTENT_FINAL)
            (void)store_live_map(place->store, infos[i].extent, copy->live);
    }
    free(infos);
}

static struct copy *find(const struct inventory *inventory, struct address extent)
{
    for (size_t i = 0; i < inventory->count; i++) {
        if (address_equal(inventory->copies[i].info.extent, extent))
            return &inventory->copies[i];
    }
    return NULL;
}

/* --- records --- */

static void print_live(const struct inventory *inventory, const struct copy *copy)
{
    struct fleet *fleet = inventory->place->fleet;
    fleet_note(fleet, "machine %u has it, state %d, %u of %u blocks live, headers %s:",
               inventory->place->number, (int)copy->info.state, copy->info.live,
               copy->info.length, copy->info.has_headers ? "live" : "dead");
    for (uint32_t at = 0; fleet->verbosity > 0 && at < copy->info.length; at++) {
        if (is_live(copy, at))
            printf(" %u", at);
    }
    if (fleet->verbosity > 0)
        printf("\n");
}

/* Of the extent that was named last. */
static void print_difference(struct comparison *c)
{
    for (uint32_t p = 1; p <= c->fleet->place_count; p++) {
        const struct inventory *inventory = &c->inventories[p];
        const struct copy *copy = find(inventory, c->extent);
        if (copy != NULL)
            print_live(inventory, copy);
    }
}

/* What makes two copies not the same; NULL: nothing. */
static const char *difference(const struct copy *a, const struct copy *b)
{
    if (b == NULL)
        return "is not there";
    if (b->info.state != EXTENT_FINAL || a->info.state != EXTENT_FINAL)
        return "is not final";
    if (a->info.length != b->info.length)
        return "has another length";
    if (a->info.nonce != b->info.nonce || a->info.disk != b->info.disk ||
        a->info.epoch != b->info.epoch)
        return "is of another opening";
    if (a->info.has_headers != b->info.has_headers)
        return "differs in its headers being live";
    if (memcmp(a->live, b->live, sizeof a->live) != 0)
        return "has other live blocks";
    return NULL;
}

/* All that is live of it are headers that nobody knew for what they were. */
static bool is_left(const struct place *place, const struct copy *copy)
{
    for (uint32_t at = 0; at < copy->info.length; at++) {
        if (is_live(copy, at) && !fleet_rot_is_left(place->fleet, place,
                                                    address_plus(copy->info.extent, at)))
            return false;
    }
    return copy->info.state == EXTENT_FINAL;
}

/* The other members have nothing of it. */
static bool is_nowhere_else(const struct comparison *c, const struct inventory *from,
                            const struct cluster_group *group, struct address extent)
{
    for (uint32_t i = 0; i < group->member_count; i++) {
        uint64_t number = group->members[i].node;
        if (number != from->place->number &&
            find(&c->inventories[number], extent) != NULL)
            return false;
    }
    return true;
}

static bool compare_extent(struct comparison *c, const struct inventory *from,
                           struct copy *copy)
{
    const struct cluster_group *group = cluster_group_by_id(
        place_state(from->place), address_group(copy->info.extent));
    if (group == NULL || cluster_group_member(group, from->place->number) == NULL) {
        snprintf(c->text, TEXT, "extent %llx is on machine %u, which is no member",
                 (unsigned long long)copy->info.extent.v, from->place->number);
        return false;
    }
    copy->is_left = is_nowhere_else(c, from, group, copy->info.extent) &&
                    is_left(from->place, copy);
    for (uint32_t i = 0; i < group->member_count && !copy->is_left; i++) {
        uint64_t number = group->members[i].node;
        const struct inventory *other = &c->inventories[number];
        const char *what = difference(copy, find(other, copy->info.extent));
        if (what == NULL)
            continue;
        c->extent = copy->info.extent;
        snprintf(c->text, TEXT,
                 "extent %llx of disk %llu, on machine %u: on machine "
                 "%llu it %s",
                 (unsigned long long)copy->info.extent.v,
                 (unsigned long long)copy->info.disk, from->place->number,
                 (unsigned long long)number, what);
        return false;
    }
    return true;
}

/* Whoever had a disk has given it back. */
static bool disks_are_free(struct comparison *c, const struct cluster_state *state)
{
    const struct cluster_disk *disk = NULL;
    while ((disk = cluster_disk_next(state, disk)) != NULL) {
        if (disk->owner == 0)
            continue;
        snprintf(c->text, TEXT, "%s is owned by node %llu", disk->name,
                 (unsigned long long)disk->owner);
        return false;
    }
    return true;
}

static bool compare_records(struct comparison *c)
{
    struct fleet *fleet = c->fleet;
    forget(c);
    for (uint32_t p = 1; p <= fleet->place_count; p++) {
        if (fleet->places[p].state == PLACE_UP)
            take_stock(&c->inventories[p], &fleet->places[p]);
    }
    for (uint32_t p = 1; p <= fleet->place_count; p++) {
        const struct inventory *inventory = &c->inventories[p];
        if (inventory->place != NULL && !disks_are_free(c, place_state(inventory->place)))
            return false;
        for (size_t i = 0; i < inventory->count; i++) {
            if (!compare_extent(c, inventory, &inventory->copies[i]))
                return false;
        }
    }
    return true;
}

/* --- bytes --- */

struct reading {
    struct store_read read;
    struct event over;
};

static void reading_done(struct store_read *read)
{
    event_set(&container_of(read, struct reading, read)->over);
}

static async int read_run(struct place *place, struct address address, uint32_t count,
                          uint8_t *bytes)
{
    struct iovec iov = {bytes, (size_t)count * BLOCK_SIZE};
    struct reading mine;
    event_init(&mine.over);
    mine.read = (struct store_read){.address = address,
                                    .count = count,
                                    .iov = &iov,
                                    .iov_count = 1,
                                    .done = reading_done};
    store_read(place->store, &mine.read);
    event_wait(&mine.over);
    return mine.read.result;
}

/* Of the blocks from `at` on, live or not like the first: how many? */
static uint32_t run_length(const struct copy *copy, uint32_t at)
{
    uint32_t count = 1;
    while (count < READ_BLOCKS && at + count < copy->info.length &&
           is_live(copy, at + count) == is_live(copy, at))
        count++;
    return count;
}

/* False: it has changed meanwhile. */
static async bool read_copy(struct place *place, struct copy *copy)
{
    static uint8_t bytes[FLEET_PLACES_MAX + 1][READ_BLOCKS * BLOCK_SIZE]
        __attribute__((aligned(BLOCK_SIZE)));
    uint8_t *mine = bytes[place->number];
    copy->crcs = calloc(copy->info.length + 1, sizeof *copy->crcs);
    if (copy->crcs == NULL)
        abort();
    for (uint32_t at = 0, count; at < copy->info.length; at += count) {
        count = run_length(copy, at);
        if (!is_live(copy, at))
            continue;
        struct address address = address_plus(copy->info.extent, at);
        int rc = read_run(place, address, count, mine);
        if (rc == -PLX_EDEAD || rc == -PLX_EMISSING || rc == -PLX_ENOTHERE)
            return false;
        if (rc < 0)
            fleet_fail(place->fleet, "machine %u: %u blocks at %llx of its store: %s",
                       place->number, count, (unsigned long long)address.v, err_text(rc));
        for (uint32_t i = 0; i < count; i++)
            copy->crcs[at + i] = crc32c(mine + (size_t)i * BLOCK_SIZE, BLOCK_SIZE);
    }
    return true;
}

static int finding(void *arg, struct address address, const struct entry *entry, int code)
{
    struct place *place = arg;
    if (fleet_rot_may_stay(place->fleet, place, address))
        return 0;
    fleet_fail(place->fleet, "machine %u: %s at %llx of its store: %s", place->number,
               entry != NULL ? "the block" : "what describes blocks",
               (unsigned long long)address.v, err_text(code));
}

static async void read_all(struct place *place)
{
    struct inventory *mine = &comparison.inventories[place->number];
    const struct verify_callbacks callbacks = {.finding = finding, .arg = place};
    for (size_t i = 0; i < mine->count && !mine->has_changed; i++) {
        struct copy *copy = &mine->copies[i];
        if (copy->is_left)
            continue;
        int rc = read_copy(place, copy)
                     ? store_verify_extent(place->store, copy->info.extent, &callbacks)
                     : -PLX_EMISSING;
        mine->has_changed = rc < 0;
    }
}

static void compare_bytes(struct comparison *c, const struct inventory *from,
                          const struct copy *copy)
{
    for (uint32_t p = from->place->number + 1; p <= c->fleet->place_count; p++) {
        const struct copy *other = find(&c->inventories[p], copy->info.extent);
        if (other == NULL)
            continue;
        for (uint32_t b = 0; b < copy->info.length; b++) {
            struct address address = address_plus(copy->info.extent, b);
            if (is_live(copy, b) && copy->crcs[b] != other->crcs[b] &&
                !fleet_rot_may_stay(c->fleet, from->place, address) &&
                !fleet_rot_may_stay(c->fleet, &c->fleet->places[p], address))
                fleet_fail(c->fleet,
                           "extent %llx block %u: machines %u and %u have "
                           "different bytes",
                           (unsigned long long)copy->info.extent.v, b,
                           from->place->number, p);
        }
    }
}

/* What a member missed of the headers of an extent that ended is found by the tidying of
 * its own store, once an hour: as if that hour had passed. */
static void tidy(struct place *place)
{
    struct many *many = &place->host->many;
    if (!many->is_running)
        timer_start(place->loop, &many->timer, 0);
}

/* False: something has changed while it was read. */
static bool compare_contents(struct comparison *c)
{
    struct fleet *fleet = c->fleet;
    for (uint32_t p = 1; p <= fleet->place_count; p++) {
        if (c->inventories[p].place != NULL)
            place_run(&fleet->places[p], read_all);
        if (c->inventories[p].has_changed)
            return false;
    }
    for (uint32_t p = 1; p <= fleet->place_count; p++) {
        for (size_t i = 0; i < c->inventories[p].count; i++) {
            if (!c->inventories[p].copies[i].is_left)
                compare_bytes(c, &c->inventories[p], &c->inventories[p].copies[i]);
        }
    }
    return true;
}

void fleet_compare_copies(struct fleet *fleet)
{
    struct comparison *c = &comparison;
    uint64_t until_ns = sim_world_now_ns(fleet->world) + SAME_LIMIT_NS;
    c->fleet = fleet;
    snprintf(c->text, TEXT, "copies change all the time");
    for (uint32_t i = 1; i <= fleet->place_count; i++) {
        if (fleet->places[i].state == PLACE_UP)
            tidy(&fleet->places[i]);
    }
    while (!compare_records(c) || !compare_contents(c)) {
        if (sim_world_now_ns(fleet->world) > until_ns) {
            print_difference(c);
            fleet_fail(fleet, "copies are not the same: %s", c->text);
        }
        fleet_run_for(fleet, LOOK_NS);
    }
    size_t extents = 0;
    for (size_t p = 0; p < ARRAY_LEN(c->inventories); p++)
        extents += c->inventories[p].count;
    fleet_note(fleet, "all copies are the same: %zu extents in all stores", extents);
    forget(c);
}
