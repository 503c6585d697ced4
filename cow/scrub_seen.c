/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Damage in words: which place of which disk it is, and which heads and snapshots see
 * it. What a batch's header says of a block tells the disk and the block number, or the
 * map node; whether a version sees it is whether its map still names that very address
 * there. Only versions and heads that descend from the disk can.
 *
 * This is the rare path: each piece of damage is looked up in every one of them. A map
 * that cannot be read, maybe for the same damage, is said to be unreadable.
 *
 * The cluster state may change at any suspension; what went away meanwhile sees nothing.
 */
#include "cow/scrub.h"

#include <stdarg.h>

#define NAMES_MAX 6U /* in one line; the others are counted */

/* Who may see blocks of one disk. */
struct family {
    uint64_t *versions; /* ids in order */
    uint64_t *heads;    /* ids of disks */
    size_t version_count, head_count;
};

struct line {
    char text[SCRUB_LINE_MAX];
    size_t len;
};

static void say(struct line *line, const char *fmt, ...) attr_printf(2, 3);
static void say(struct line *line, const char *fmt, ...)
{
    size_t room = sizeof line->text - line->len;
    va_list args;

    va_start(args, fmt);
    int n = vsnprintf(line->text + line->len, room, fmt, args);
    va_end(args);
    if (n > 0)
        line->len += min_u64((uint64_t)n, room - 1);
}

/* --- the family --- */

static bool has_version(const struct family *family, uint64_t id)
{
    size_t low = 0, high = family->version_count;

    while (low < high) {
        size_t middle = (low + high) / 2;
        if (family->versions[middle] < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low < family->version_count && family->versions[low] == id;
}

/* A parent is older than its child, so one pass in order of age finds all. */
static int family_find(const struct cluster_state *state, uint64_t disk,
                       struct family *ret)
{
    const struct cluster_version *version = NULL;
    const struct cluster_disk *head = NULL;
    struct family family = {
        .versions = malloc((cluster_version_count(state) + 1) * sizeof(uint64_t)),
        .heads = malloc((cluster_disk_count(state) + 1) * sizeof(uint64_t)),
    };

    if (!family.versions || !family.heads) {
        free(family.versions);
        free(family.heads);
        return -ENOMEM;
    }
    while ((version = cluster_version_next(state, version)))
        if (version->disk == disk || has_version(&family, version->parent))
            family.versions[family.version_count++] = version->id;
    while ((head = cluster_disk_next(state, head)))
        if (head->id == disk || has_version(&family, head->head_parent))
            family.heads[family.head_count++] = head->id;
    *ret = family;
    return 0;
}

static void family_done(struct family *family)
{
    free(family->versions);
    free(family->heads);
}

/* --- one map --- */

/* What the root's tree names there: the block's entry, or that of the node of this level
 * and index. Null if there is none. */
static async int entry_of(struct node_cache *nodes, const struct map_root *root,
                          unsigned level, uint64_t block, bool is_node,
                          struct map_entry *ret)
{
    struct map_entry at = {root->address, root->crc, root->generation};
    unsigned height = root->height; /* `at` is a node of level height - 1 */
    unsigned want = is_node ? level + 1 : 0;

    *ret = (struct map_entry){.address = ADDRESS_NULL};
    if (!map_root_sound(root))
        return -PLX_EFORMAT;
    if (height < want || block >= map_entry_blocks(height))
        return 0;
    while (height > want && !address_is_null(at.address)) {
        const struct node *node;
        int rc = node_get(nodes, at.address, at.crc, &node);
        if (rc < 0)
            return rc;
        height--;
        at = map_entry_at(node->format,
                          (unsigned)(block / map_entry_blocks(height) % MAP_FANOUT));
        node_put(nodes, node);
    }
    *ret = at;
    return 0;
}

/* 1: the tree under this root names the damaged block; 0: it does not. */
static async int root_sees(struct scrub *scrub, const struct map_root *root,
                           const struct scrub_damage *damage)
{
    struct node_cache *nodes = scrub->host->nodes;
    bool is_node = damage->entry.kind == ENTRY_NODE;
    uint64_t block = damage->entry.key;
    struct map_entry entry;

    if (is_node)
        block *= map_entry_blocks(damage->entry.aux + 1U);
    int rc = entry_of(nodes, root, damage->entry.aux, block, is_node, &entry);
    if (rc == -PLX_EDEAD || rc == -PLX_ENOTHERE || rc == -PLX_EMISSING)
        return 0; /* this tree went away meanwhile */
    if (rc < 0)
        return rc;
    return address_equal(entry.address, damage->at);
}

static async int version_sees(struct scrub *scrub, uint64_t id,
                              const struct scrub_damage *damage)
{
    const struct cluster_version *version =
        cluster_version_by_id(cluster_state(scrub->host->cluster), id);

    if (!version || version->pending)
        return 0;
    struct map_root root = version->root;
    return root_sees(scrub, &root, damage);
}

static async int head_sees(struct scrub *scrub, uint64_t id,
                           const struct scrub_damage *damage)
{
    const struct cluster_state *state = cluster_state(scrub->host->cluster);
    const struct cluster_disk *head = cluster_disk_by_id(state, id);
    const struct disk *open = disk_find(scrub->host, id, 0);
    struct map_root root;
    uint64_t pending;

    if (!head)
        return 0;
    if (open && open->state == DISK_OPEN && damage->entry.kind == ENTRY_DATA) {
        uint64_t block = damage->entry.key;
        struct layer_run run = layers_find(open, block, block + 1);
        if (run.in_layers)
            return address_equal(run.address, damage->at);
        root = open->root;
    } else if (disk_base_root(state, head, &root, &pending) < 0) {
        return 0;
    }
    return root_sees(scrub, &root, damage);
}

/* --- words --- */

static void name_disk(const struct cluster_state *state, uint64_t id, struct line *line)
{
    const struct cluster_disk *disk = cluster_disk_by_id(state, id);

    if (disk)
        say(line, "%.64s", disk->name);
    else
        say(line, "#%llu", (unsigned long long)id);
}

static void name_version(const struct cluster_state *state, uint64_t id,
                         struct line *line)
{
    const struct cluster_version *version = cluster_version_by_id(state, id);

    name_disk(state, version ? version->disk : 0, line);
    say(line, "@%.64s", version && version->name[0] ? version->name : "(unnamed)");
}

struct sightings {
    uint32_t seen, unreadable;
};

/* Notes the result for one head or version. True: it is to be named now. */
static bool is_to_be_named(struct sightings *sightings, int result, struct line *line)
{
    if (result < 0)
        sightings->unreadable++;
    if (result <= 0)
        return false;
    if (++sightings->seen > NAMES_MAX)
        return false;
    say(line, sightings->seen == 1 ? "; seen by " : ", ");
    return true;
}

static async void say_who(struct scrub *scrub, const struct family *family,
                          const struct scrub_damage *damage, struct line *line)
{
    const struct cluster_state *state = cluster_state(scrub->host->cluster);
    struct sightings sightings = {0};

    for (size_t i = 0; i < family->head_count && !scrub->closing; i++) {
        int result = head_sees(scrub, family->heads[i], damage);
        if (is_to_be_named(&sightings, result, line))
            name_disk(state, family->heads[i], line);
    }
    for (size_t i = 0; i < family->version_count && !scrub->closing; i++) {
        int result = version_sees(scrub, family->versions[i], damage);
        if (is_to_be_named(&sightings, result, line))
            name_version(state, family->versions[i], line);
        if (i % 64 == 63)
            task_yield();
    }
    if (sightings.seen > NAMES_MAX)
        say(line, " and %u more", sightings.seen - NAMES_MAX);
    if (sightings.seen == 0)
        say(line, sightings.unreadable ? "; nothing readable refers to it"
                                       : "; nothing refers to it any more");
    if (sightings.unreadable)
        say(line, "; %u maps cannot be read to here", sightings.unreadable);
    else if (sightings.seen && damage->entry.kind == ENTRY_DATA &&
             copies_only_here(scrub->host->copies, damage->at))
        say(line, "; there is no other copy: write it again, or restore it");
}

/* Foreign bytes were checked by the header's decoder, but not for what a map can hold. */
static bool is_in_a_map(const struct scrub_damage *damage)
{
    const struct entry *entry = &damage->entry;
    uint64_t blocks = DISK_BYTES_MAX / BLOCK_SIZE;

    if (!damage->has_entry)
        return false;
    if (entry->kind == ENTRY_NODE)
        return entry->aux < MAP_HEIGHT_MAX &&
               entry->key < blocks / map_entry_blocks(entry->aux + 1U);
    return entry->kind == ENTRY_DATA && entry->key < blocks;
}

static void say_place(const struct scrub_damage *damage, struct line *line)
{
    const struct entry *entry = &damage->entry;

    if (!damage->has_entry) {
        say(line, address_block(damage->at) ? "a header, or a block of which no header "
                                              "tells"
                                            : "what tells of the blocks of an extent");
        return;
    }
    switch (entry->kind) {
    case ENTRY_DATA:
        say(line, "offset %llu", (unsigned long long)(entry->key * BLOCK_SIZE));
        break;
    case ENTRY_NODE:
        say(line, "map node of level %u", entry->aux);
        if (is_in_a_map(damage))
            say(line, " for offset %llu",
                (unsigned long long)(entry->key * map_entry_blocks(entry->aux + 1U) *
                                     BLOCK_SIZE));
        break;
    case ENTRY_LIST:
        say(line, "a list of dead blocks");
        break;
    case ENTRY_ZERO:
    case ENTRY_MARKER:
        say(line, "a record without a block");
    }
}

static async void describe(struct scrub *scrub, uint64_t disk,
                           const struct family *family,
                           const struct scrub_damage *damage)
{
    struct line line = {.len = 0};

    say(&line, "disk ");
    name_disk(cluster_state(scrub->host->cluster), disk, &line);
    say(&line, ": ");
    say_place(damage, &line);
    say(&line, ": extent %llx block %u: %s",
        (unsigned long long)address_extent(damage->at).v, address_block(damage->at),
        err_text(damage->code));
    if (is_in_a_map(damage))
        say_who(scrub, family, damage, &line);
    if (!copies_only_here(scrub->host->copies, damage->at))
        say(&line, "; it is written again if another copy is sound");
    else if (damage->has_entry && damage->entry.kind == ENTRY_NODE)
        say(&line, "; check --repair makes it again from the headers of its log, while "
                   "these exist");
    scrub_add_line(scrub, line.text);
}

async void scrub_describe(struct scrub *scrub, uint64_t disk,
                          const struct scrub_damage *damage, uint32_t count)
{
    struct family family = {0};

    if (count > 0)
        (void)family_find(cluster_state(scrub->host->cluster), disk, &family);
    for (uint32_t i = 0; i < count; i++)
        describe(scrub, disk, &family, &damage[i]);
    family_done(&family);
}
