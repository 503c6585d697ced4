/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A node names, for each of its places, what was written there last before the
 * checkpoint that wrote the node, by its own disk or by one of those that it was cloned
 * from, as long as they were one. So for each place candidates are collected: what
 * headers and digests say was written there, is live, and comes before the node in the
 * log. The newest of each place make the first guess.
 *
 * What was written while the checkpoint ran also comes before the node, and is not in it.
 * Therefore the newest thing that is left is taken out of the guess, and the next one, a
 * few times. A discard counts as long as its header is there; from a compacted extent it
 * is forgotten, but then what it discarded is dead, unless a snapshot keeps it. A digest
 * does not say in which generation a block was born; the node of the version before may,
 * if it names the same block, else it is the node's own.
 *
 * All of these are guesses. None is used unless all 4096 bytes have the checksum that the
 * node had. So many guesses as are made, one in 2^26 nodes that cannot be rebuilt would
 * pass for one that can.
 *
 * What can fail: headers and digests that cannot be read, tell nothing; then no guess is
 * right. There is nothing to close.
 */
#include "cow/rebuild.h"

#include "blockstore/layout.h"

#define GUESSES        64U
#define SOURCES_MAX    64U     /* clones of clones */
#define CANDIDATES_MAX 262144U /* 10 MiB */

/* Whose log may hold what the node names: the disk it was written by, first, then those
 * it was cloned from. */
struct source {
    uint64_t disk;
    uint32_t generation; /* no later one */
};

struct candidate {
    struct map_entry entry; /* null: a discard */
    struct address at;      /* its place in the log; of a discard that before it */
    uint16_t source;
    uint16_t place;         /* in the node */
};

struct collection {
    const struct rebuild *rebuild;
    struct source sources[SOURCES_MAX];
    uint32_t source_count;
    const struct node *before; /* the same node of an older version; NULL: none */
    struct candidate *candidates;
    uint32_t count, cap;
    /* The extent that is being read. */
    struct address extent;
    uint16_t source;
    uint8_t live[BITMAP_BYTES];
};

/* --- where to look --- */

static void add_source(struct collection *all, uint64_t owner, uint64_t disk,
                       uint32_t generation)
{
    uint32_t count = all->source_count;

    if ((count == 0 && disk != owner) || count == SOURCES_MAX ||
        (count > 0 && all->sources[count - 1].disk == disk))
        return;
    generation = min_u32(generation, all->rebuild->entry.generation);
    all->sources[all->source_count++] = (struct source){disk, generation};
}

/* The owner wrote the node. *ret_before: the version that what is older than the node was
 * inherited from, if its map can be looked into; height 0 if not. */
static void find_sources(struct collection *all, uint64_t owner,
                         struct map_root *ret_before)
{
    const struct rebuild *rebuild = all->rebuild;
    const struct cluster_state *state = cluster_state(rebuild->host->cluster);
    const struct cluster_version *version;

    *ret_before = (struct map_root){.height = 0};
    if (rebuild->disk)
        add_source(all, owner, rebuild->disk, UINT32_MAX);
    for (version = cluster_version_by_id(state, rebuild->version); version;
         version = cluster_version_by_id(state, version->parent)) {
        add_source(all, owner, version->disk, version->generation);
        if (ret_before->height == 0 && !version->pending && !version->collapsing &&
            version->generation < rebuild->entry.generation)
            *ret_before = version->root;
    }
}

/* The node of another map at the same place, pinned; NULL if there is none to be read. */
static async const struct node *same_node(const struct rebuild *rebuild,
                                          const struct map_root *root)
{
    struct node_cache *cache = rebuild->host->nodes;
    struct map_entry entry = {root->address, root->crc, root->generation};
    const struct node *node;

    if (!map_root_sound(root) || root->height <= rebuild->level ||
        rebuild->index >= map_entry_blocks(root->height - rebuild->level - 1U))
        return NULL;
    for (unsigned level = root->height - 1U;; level--) {
        if (address_is_null(entry.address) ||
            node_get(cache, entry.address, entry.crc, &node) < 0)
            return NULL;
        if (level == rebuild->level)
            return node;
        uint64_t child = rebuild->index / map_entry_blocks(level - rebuild->level - 1U);
        entry = map_entry_at(node->format, (unsigned)(child % MAP_FANOUT));
        node_put(cache, node);
    }
}

/* --- candidates --- */

static int add_candidate(struct collection *all, const struct candidate *candidate)
{
    if (all->count == all->cap) {
        uint32_t cap = all->cap ? all->cap * 2 : 1024;
        if (cap > CANDIDATES_MAX)
            return -PLX_ELIMIT;
        struct candidate *more = realloc(all->candidates, cap * sizeof *more);
        if (!more)
            return -ENOMEM;
        all->candidates = more;
        all->cap = cap;
    }
    all->candidates[all->count++] = *candidate;
    return 0;
}

static uint32_t generation_of(const struct collection *all, uint64_t place,
                              struct address address)
{
    if (all->before) {
        struct map_entry entry = map_entry_at(all->before->format, (unsigned)place);
        if (address_equal(entry.address, address))
            return entry.generation;
    }
    return all->sources[all->source].generation;
}

static int on_block(struct collection *all, const struct stored_entry *stored)
{
    const struct rebuild *rebuild = all->rebuild;
    uint64_t first = rebuild->index * MAP_FANOUT, place = stored->entry.key - first;
    struct address at = address_plus(all->extent, stored->block);

    if (stored->entry.key < first || place >= MAP_FANOUT ||
        !bitmap_get(all->live, stored->block))
        return 0;
    const struct candidate candidate = {
        .entry = {at, stored->entry.crc, stored->generation},
        .at = at,
        .source = all->source,
        .place = (uint16_t)place,
    };
    int rc = add_candidate(all, &candidate);
    if (rc == 0 && stored->generation == 0)
        all->candidates[all->count - 1].entry.generation = generation_of(all, place, at);
    return rc;
}

/* An interval that reads as zeros, where it covers whole entries of the node. */
static int on_zeros(struct collection *all, const struct stored_entry *stored)
{
    uint64_t under = map_entry_blocks(all->rebuild->level);
    uint64_t first = all->rebuild->index * MAP_FANOUT;
    uint64_t from = div_up_u64(stored->entry.key, under);
    uint64_t end = (stored->entry.key + stored->entry.count) / under;
    int rc = 0;

    from = max_u64(from, first);
    end = min_u64(end, first + MAP_FANOUT);
    for (uint64_t at = from; at < end && rc == 0; at++) {
        const struct candidate candidate = {
            .entry = {.address = ADDRESS_NULL},
            .at = address_plus(all->extent, stored->block),
            .source = all->source,
            .place = (uint16_t)(at - first),
        };
        rc = add_candidate(all, &candidate);
    }
    return rc;
}

static int on_entry(void *arg, const struct stored_entry *stored)
{
    struct collection *all = arg;
    const struct rebuild *rebuild = all->rebuild;
    const struct entry *entry = &stored->entry;
    struct address at = address_plus(all->extent, stored->block);

    if (stored->generation > all->sources[all->source].generation)
        return 0;
    if (all->source == 0 && at.v >= rebuild->entry.address.v)
        return 0;
    if (entry->kind == ENTRY_ZERO)
        return on_zeros(all, stored);
    if (rebuild->level == 0 ? entry->kind == ENTRY_DATA
                            : entry->kind == ENTRY_NODE &&
                                  entry->aux == rebuild->level - 1U)
        return on_block(all, stored);
    return 0;
}

static async int collect_extent(struct collection *all, const struct extent_info *info)
{
    struct store *store = all->rebuild->host->store;
    int rc;

    for (uint32_t i = 0; i < all->source_count; i++) {
        if (all->sources[i].disk != info->disk)
            continue;
        all->source = (uint16_t)i;
        all->extent = info->extent;
        if (store_live_map(store, info->extent, all->live) < 0)
            return 0;
        rc = store_list_entries(store, info->extent, on_entry, all);
        return rc == -ENOMEM || rc == -PLX_ELIMIT ? rc : 0;
    }
    return 0;
}

static async int collect(struct collection *all)
{
    const struct rebuild *rebuild = all->rebuild;
    cleanup(free_ptr) struct extent_info *infos = NULL;
    size_t count = 0;
    int rc = store_list_extents(rebuild->host->store, 0, &infos, &count);

    for (size_t i = 0; rc == 0 && i < count; i++) {
        rc = collect_extent(all, &infos[i]);
        if (rc == 0 && rebuild->cancelled && rebuild->cancelled(rebuild->arg))
            rc = -PLX_ECANCELLED;
    }
    return rc;
}

/* --- guesses --- */

/* Whether b was written after a: what the nearer disk wrote is later than what it has
 * inherited, and a discard is later than the block before it. */
static int compare_times(const struct candidate *a, const struct candidate *b)
{
    if (a->source != b->source)
        return a->source < b->source ? -1 : 1;
    if (a->at.v != b->at.v)
        return a->at.v > b->at.v ? -1 : 1;
    return (int)address_is_null(b->entry.address) - address_is_null(a->entry.address);
}

/* By place, the newest first. */
static int compare(const void *a, const void *b)
{
    const struct candidate *left = a, *right = b;

    if (left->place != right->place)
        return left->place < right->place ? -1 : 1;
    return compare_times(left, right);
}

static void fill_in(struct map_node_format *node, unsigned place,
                    const struct candidate *candidate)
{
    struct map_entry entry = {.address = ADDRESS_NULL};

    if (candidate)
        entry = candidate->entry;
    node->entries[place] = (struct map_entry_format){
        .address = le64_of(entry.address.v),
        .crc = le32_of(entry.crc),
        .generation = le32_of(entry.generation),
    };
}

/* Guesses with less and less of what is newest. */
static int guess(const struct collection *all, struct map_node_format *node)
{
    uint32_t next[MAP_FANOUT + 1], count = 0;

    for (unsigned place = 0; place < MAP_FANOUT; place++) {
        while (count < all->count && all->candidates[count].place < place)
            count++;
        next[place] = count;
        bool has = count < all->count && all->candidates[count].place == place;
        fill_in(node, place, has ? &all->candidates[count] : NULL);
    }
    for (uint32_t i = 0; i < GUESSES; i++) {
        const struct candidate *newest = NULL;
        if (crc32c(node, sizeof *node) == all->rebuild->entry.crc)
            return 0;
        for (unsigned place = 0; place < MAP_FANOUT; place++) {
            const struct candidate *at = &all->candidates[next[place]];
            if (next[place] < all->count && at->place == place &&
                (!newest || compare_times(at, newest) < 0))
                newest = at;
        }
        if (!newest)
            break;
        unsigned place = newest->place;
        uint32_t older = ++next[place];
        bool has = older < all->count && all->candidates[older].place == place;
        fill_in(node, place, has ? &all->candidates[older] : NULL);
    }
    return -PLX_ECHECKSUM;
}

async int node_rebuild(const struct rebuild *rebuild, struct map_node_format *ret_node)
{
    struct collection *all = calloc(1, sizeof *all);
    struct extent_info owner;
    struct map_root before;
    int rc;

    if (!all)
        return -ENOMEM;
    all->rebuild = rebuild;
    rc = store_extent_info(rebuild->host->store, address_extent(rebuild->entry.address),
                           &owner);
    if (rc == 0) {
        find_sources(all, owner.disk, &before);
        all->before = same_node(rebuild, &before);
        rc = collect(all);
    }
    if (all->before)
        node_put(rebuild->host->nodes, all->before);
    if (rc == 0 && all->count > 0) {
        qsort(all->candidates, all->count, sizeof *all->candidates, compare);
        rc = guess(all, ret_node);
    } else if (rc == 0 || rc == -PLX_ELIMIT || rc == -PLX_EMISSING) {
        rc = -PLX_ECHECKSUM;
    }
    free(all->candidates);
    free(all);
    return rc;
}
