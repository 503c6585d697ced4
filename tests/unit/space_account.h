/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Accounts for every live block of a host's store: each must be reached by the map of a
 * head or version, or by what a layer in memory says; or be a header of an extent that
 * its disk's log lists; or belong to a dead list that the cluster state names, or be
 * named by it; or be in a disk's memory as dead. And whatever is reached must be live.
 *
 * Only extents with a final length are looked at: in others every block is live.
 */
#ifndef PARALLAX_TESTS_UNIT_SPACE_ACCOUNT_H
#define PARALLAX_TESTS_UNIT_SPACE_ACCOUNT_H

#include "blockstore/layout.h"
#include "cow/disk_internal.h"
#include "tests/unit/check.h"

struct space_extent {
    struct extent_info info;
    bool is_exempt;               /* of a log that was not replayed */
    uint8_t needed[BITMAP_BYTES]; /* must be live */
    uint8_t dying[BITMAP_BYTES];  /* may be live, known to be dead */
    uint8_t live[BITMAP_BYTES];
};

struct space_report {
    uint64_t live;   /* blocks of final extents */
    uint64_t dying;  /* of these: dead, and on a list or in memory */
    uint64_t leaked; /* live, and nobody knows why */
    uint64_t lost;   /* needed, and not live */
    char first[160]; /* the first of these two kinds */
};

struct space_account {
    struct host *host;
    struct space_extent *extents; /* by address */
    size_t count;
    struct space_report *report;
};

static inline struct space_extent *space_extent_of(struct space_account *account,
                                                   struct address address)
{
    size_t low = 0, high = account->count;
    uint64_t extent = address_extent(address).v;

    while (low < high) {
        size_t at = (low + high) / 2;
        uint64_t v = account->extents[at].info.extent.v;
        if (v == extent)
            return &account->extents[at];
        if (v < extent)
            low = at + 1;
        else
            high = at;
    }
    return NULL;
}

static inline void space_note(struct space_account *account, const char *what,
                              struct address address)
{
    struct space_report *report = account->report;

    if (report->first[0] == '\0')
        snprintf(report->first, sizeof report->first, "%s: extent %llx block %u", what,
                 (unsigned long long)address_extent(address).v, address_block(address));
}

static inline void space_lost(struct space_account *account, const char *what,
                              struct address address)
{
    account->report->lost++;
    space_note(account, what, address);
}

static inline void space_set(uint8_t *map, uint32_t block)
{
    map[block / 8] = (uint8_t)(map[block / 8] | 1U << (block % 8));
}

/* True if it was not marked before. */
static inline bool space_mark(struct space_account *account, struct address address,
                              const char *what)
{
    struct space_extent *extent = space_extent_of(account, address);
    uint32_t block = address_block(address);

    if (extent == NULL || block >= extent->info.length) {
        space_lost(account, what, address);
        return false;
    }
    if (bitmap_get(extent->needed, block))
        return false;
    space_set(extent->needed, block);
    return true;
}

static inline void space_mark_dying(struct space_account *account, struct address address,
                                    uint32_t count)
{
    struct space_extent *extent = space_extent_of(account, address);

    for (uint32_t i = 0; extent != NULL && i < count; i++)
        space_set(extent->dying, address_block(address) + i);
}

/* --- trees --- */

static inline async void space_walk(struct space_account *account, struct map_entry entry,
                                    unsigned level)
{
    struct node_cache *nodes = account->host->nodes;
    const struct node *node;

    if (address_is_null(entry.address) || !space_mark(account, entry.address, "a node"))
        return;
    if (node_get(nodes, entry.address, entry.crc, &node) < 0) {
        space_lost(account, "an unreadable node", entry.address);
        return;
    }
    for (unsigned i = 0; i < MAP_FANOUT; i++) {
        struct map_entry child = map_entry_at(node->format, i);
        if (level > 0)
            space_walk(account, child, level - 1);
        else if (!address_is_null(child.address))
            (void)space_mark(account, child.address, "data");
    }
    node_put(nodes, node);
}

static inline async void space_walk_root(struct space_account *account,
                                         const struct map_root *root)
{
    struct map_entry entry = {root->address, root->crc, root->generation};

    if (root->height > 0)
        space_walk(account, entry, root->height - 1U);
}

/* What is on its way out: a node that is dead already has nothing live below it. */
static inline async void space_walk_dying(struct space_account *account,
                                          struct map_entry entry, unsigned level,
                                          uint32_t bound)
{
    struct node_cache *nodes = account->host->nodes;
    struct space_extent *extent = space_extent_of(account, entry.address);
    const struct node *node;

    if (address_is_null(entry.address) || entry.generation <= bound || extent == NULL ||
        bitmap_get(extent->dying, address_block(entry.address)) ||
        !bitmap_get(extent->live, address_block(entry.address)) ||
        node_get(nodes, entry.address, entry.crc, &node) < 0)
        return;
    space_mark_dying(account, entry.address, 1);
    for (unsigned i = 0; i < MAP_FANOUT; i++) {
        struct map_entry child = map_entry_at(node->format, i);
        if (level > 0)
            space_walk_dying(account, child, level - 1, bound);
        else if (!address_is_null(child.address) && child.generation > bound)
            space_mark_dying(account, child.address, 1);
    }
    node_put(nodes, node);
}

/* --- lists --- */

struct space_read {
    struct log_read read;
    struct event over;
};

static inline void space_read_done(struct log_read *read)
{
    event_set(&container_of(read, struct space_read, read)->over);
}

static inline async int space_read(struct space_account *account, struct address address,
                                   uint32_t crc, uint8_t *ret_bytes)
{
    struct iovec iov = {ret_bytes, BLOCK_SIZE};
    struct space_read mine = {.read = {.address = address, .count = 1, .iov = &iov,
                                       .iov_count = 1, .crcs = &crc,
                                       .done = space_read_done}};

    event_init(&mine.over);
    copies_read(account->host->copies, &mine.read);
    event_wait(&mine.over);
    return mine.read.result;
}

static inline async void space_entries(struct space_account *account,
                                       const struct dead_entries *entries)
{
    for (uint32_t i = 0; i < entries->run_count; i++)
        space_mark_dying(account, entries->runs[i].address, entries->runs[i].count);
    for (uint32_t i = 0; i < entries->subtree_count; i++)
        space_walk_dying(account, entries->subtrees[i].entry, entries->subtrees[i].level,
                         entries->subtrees[i].bound);
}

static inline async void space_list(struct space_account *account,
                                    const struct dead_list *list)
{
    uint8_t *bytes = aligned_alloc(BLOCK_SIZE, BLOCK_SIZE);
    struct address at = list->head;
    uint32_t crc = list->crc;

    CHECK(bytes != NULL);
    for (uint32_t i = 0; i < list->blocks && !address_is_null(at); i++) {
        struct dead_block block;
        struct space_extent *extent = space_extent_of(account, at);
        /* Tidying a closed disk was interrupted: it was through with this list. */
        if (extent == NULL || (extent->info.state == EXTENT_FINAL &&
                               !bitmap_get(extent->live, address_block(at))))
            break;
        space_mark_dying(account, at, 1);
        CHECK_EQ(space_read(account, at, crc, bytes), 0);
        CHECK_EQ(dead_block_decode(bytes, &block), 0);
        CHECK_EQ(block.checkpoint, list->checkpoint);
        space_entries(account, &block.entries);
        dead_entries_done(&block.entries);
        at = block.previous;
        crc = block.previous_crc;
    }
    free(bytes);
}

/* --- headers --- */

struct space_headers {
    struct space_account *account;
    struct address extent;
};

static inline int space_header(void *arg, const struct header *head,
                               const struct entry *entries,
                               const struct roll_entry *rolls)
{
    struct space_headers *headers = arg;

    (void)entries, (void)rolls;
    (void)space_mark(headers->account, address_plus(headers->extent, head->block),
                     "a header");
    return 0;
}

static inline async void space_mark_headers(struct space_account *account,
                                            struct address extent)
{
    struct space_headers headers = {account, extent};
    struct space_extent *at = space_extent_of(account, extent);

    if (at != NULL && at->info.state == EXTENT_FINAL)
        CHECK_EQ(store_walk_headers(account->host->store, extent, space_header, &headers,
                                    NULL), 0);
}

/* --- disks --- */

static inline async void space_open_disk(struct space_account *account, struct disk *disk)
{
    struct dead_cursor cursor;
    struct dead_run run;
    struct layer *layer;

    TAILQ_FOREACH (layer, &disk->layers, link) {
        const struct interval *at = overlay_at_or_after(&layer->overlay, 0);
        for (; at != NULL; at = overlay_next(at))
            for (uint64_t i = 0; !address_is_null(at->address) && i < at->count; i++)
                (void)space_mark(account, address_plus(at->address, (uint32_t)i),
                                 "what a layer has");
        cursor = (struct dead_cursor){.begun = false};
        while (dead_set_next(&layer->overlay.dead, &cursor, &run))
            space_mark_dying(account, run.address, run.count);
    }
    cursor = (struct dead_cursor){.begun = false};
    while (dead_set_next(&disk->orphans, &cursor, &run))
        space_mark_dying(account, run.address, run.count);
}

static inline async void space_disk(struct space_account *account,
                                    const struct cluster_disk *disk)
{
    struct disk *open = disk_find(account->host, disk->id, 0);

    if (disk->has_root && !(disk->flags & DISK_HEADLESS))
        space_walk_root(account, &disk->root);
    for (uint32_t i = 0; i < disk->list_count; i++)
        space_list(account, &disk->lists[i]);
    for (uint32_t i = 0; i < disk->extent_count; i++) {
        const struct log_extent *extent = &disk->extents[i];
        space_mark_headers(account, extent->extent);
        struct space_extent *at = space_extent_of(account, extent->extent);
        if (at != NULL && open == NULL &&
            (!extent->final || extent->last_number > disk->checkpoint.covers))
            at->is_exempt = true;
    }
    if (open != NULL && open->state == DISK_OPEN && !open->down)
        space_open_disk(account, open);
}

static inline void space_compare(struct space_account *account, struct space_extent *at)
{
    struct space_report *report = account->report;

    for (uint32_t i = 0; i < at->info.length; i++) {
        struct address address = address_plus(at->info.extent, i);
        bool live = bitmap_get(at->live, i);
        report->live += live;
        if (bitmap_get(at->needed, i)) {
            if (!live)
                space_lost(account, "needed, but dead", address);
            continue;
        }
        if (!live || at->is_exempt)
            continue;
        if (bitmap_get(at->dying, i)) {
            report->dying++;
            continue;
        }
        report->leaked++;
        space_note(account, "live, but nothing names it", address);
    }
}

/* Nothing may be written, trimmed or removed meanwhile. */
static inline async void space_account(struct host *host, struct space_report *ret_report)
{
    struct space_account account = {.host = host, .report = ret_report};
    const struct cluster_state *state = cluster_state(host->cluster);
    const struct cluster_version *version = NULL;
    const struct cluster_disk *disk = NULL;
    struct extent_info *infos = NULL;

    *ret_report = (struct space_report){.live = 0};
    CHECK_EQ(store_list_extents(host->store, 0, &infos, &account.count), 0);
    account.extents = calloc(account.count + 1, sizeof *account.extents);
    CHECK(account.extents != NULL);
    for (size_t i = 0; i < account.count; i++) {
        account.extents[i].info = infos[i];
        CHECK_EQ(store_live_map(host->store, infos[i].extent, account.extents[i].live),
                 0);
    }
    while ((disk = cluster_disk_next(state, disk))) /* trash included */
        space_disk(&account, disk);
    while ((version = cluster_version_next(state, version)))
        if (!version->pending && !version->collapsing)
            space_walk_root(&account, &version->root);
    version = NULL;
    while ((version = cluster_version_next(state, version))) {
        struct map_entry entry = {version->root.address, version->root.crc,
                                  version->root.generation};
        if (version->collapsing && version->root.height > 0)
            space_walk_dying(&account, entry, version->root.height - 1U, 0);
    }
    for (size_t i = 0; i < account.count; i++)
        if (infos[i].state == EXTENT_FINAL)
            space_compare(&account, &account.extents[i]);
    free(account.extents);
    free(infos);
}

/* With nothing left that is on its way out, too, if is_settled. */
static inline async void check_space(struct host *host, bool is_settled)
{
    struct space_report report;

    space_account(host, &report);
    if (report.leaked > 0 || report.lost > 0 || (is_settled && report.dying > 0))
        fprintf(stderr, "space: %llu live, %llu dying, %llu leaked, %llu lost: %s\n",
                (unsigned long long)report.live, (unsigned long long)report.dying,
                (unsigned long long)report.leaked, (unsigned long long)report.lost,
                report.first);
    CHECK_EQ(report.lost, 0);
    CHECK_EQ(report.leaked, 0);
    if (is_settled)
        CHECK_EQ(report.dying, 0);
}

/* Waits until every disk is closed and tidy. They must have no clients. */
static inline async void await_closed(struct host *host)
{
    do
        task_sleep_ns(20 * NS_PER_MS);
    while (!RB_EMPTY(&host->disks) || host->tidy_running);
}

#endif
