/* SPDX-License-Identifier: Apache-2.0 */
/* Is a cluster state consistent? Runs on every state that is read back, in tests after
 * every command, and for `parallax check`. doc/cluster.md lists what must hold. */
#include <stdarg.h>
#include <stdio.h>

#include "replication/cluster_internal.h"

/* Disks and versions are numbered one by one: more than this is nonsense. */
#define NUMBERS_MAX ((uint64_t)1 << 62)

/* What is counted again, to compare. */
struct tally {
    uint64_t id;
    uint32_t children;                     /* of a version */
    uint32_t snapshots, versions, pending; /* of a disk */
};

struct check {
    const struct cluster_state *state;
    struct tally *disks, *versions; /* by id */
    uint64_t disk_count, version_count;
    uint64_t spare; /* versions that say so */
    char *text;
    size_t cap;
};

static int attr_printf(2, 3) wrong(struct check *check, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(check->text, check->cap, fmt, args);
    va_end(args);
    return -PLX_EDAMAGED;
}

static struct tally *tally_find(struct tally *tallies, uint64_t count, uint64_t id)
{
    uint64_t low = 0, high = count;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (tallies[middle].id == id)
            return &tallies[middle];
        if (tallies[middle].id < id)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

/* A child of another disk's version: the extents of that disk hold blocks of this one. */
static int check_shared(struct check *check, const struct cluster_version *parent,
                        uint64_t disk)
{
    if (parent->disk == disk)
        return 0;
    const struct cluster_disk *source = cluster_disk_by_id(check->state, parent->disk);
    if (source != NULL && (source->flags & DISK_SHARED) == 0)
        return wrong(check, "version %llu: has a clone, but its disk is not shared",
                     (unsigned long long)parent->id);
    return 0;
}

/* A parent is older than what grows from it: ids of versions only rise, so a path of
 * parents always ends. */
static int check_parent(struct check *check, const char *what, uint64_t id, uint64_t disk,
                        uint64_t parent, uint32_t generation)
{
    if (parent == 0)
        return 0;
    const struct cluster_version *version = cluster_version_by_id(check->state, parent);
    if (version == NULL)
        return wrong(check, "%s %llu: parent %llu is missing", what,
                     (unsigned long long)id, (unsigned long long)parent);
    if (version->generation >= generation)
        return wrong(check, "%s %llu: generation %u, its parent's is %u", what,
                     (unsigned long long)id, generation, version->generation);
    tally_find(check->versions, check->version_count, parent)->children++;
    return check_shared(check, version, disk);
}

/* The lists of children are what the counts say, and lead back. */
static int check_children(struct check *check, const struct cluster_version *version)
{
    unsigned long long id = version->id;
    const struct cluster_version *child = NULL;
    const struct cluster_disk *head = NULL;
    uint32_t count = 0;
    while ((child = cluster_child_next(version, child)) != NULL) {
        count++;
        if (child->parent != version->id)
            return wrong(check, "version %llu: a child of another one is listed", id);
    }
    while ((head = cluster_head_next(version, head)) != NULL) {
        count++;
        if (head->head_parent != version->id)
            return wrong(check, "version %llu: a head of another one is listed", id);
    }
    if (count != version->child_count)
        return wrong(check, "version %llu: %u children, %u are listed", id,
                     version->child_count, count);
    return 0;
}

/* The head that a collapsing version with this child collapses against; NULL: none. */
static const struct cluster_disk *collapse_head(const struct check *check,
                                                const struct cluster_version *version)
{
    const struct cluster_version *child = cluster_child_next(version, NULL);
    const struct cluster_disk *disk = cluster_head_next(version, NULL);
    if (disk == NULL && child != NULL)
        disk = cluster_disk_by_id(check->state, child->disk);
    return disk != NULL && disk->collapsing_version == version->id ? disk : NULL;
}

static int check_collapsing(struct check *check, const struct cluster_version *version)
{
    unsigned long long id = version->id;
    const struct cluster_version *child = cluster_child_next(version, NULL);
    const struct cluster_version *parent = cluster_version_by_id(check->state,
                                                                 version->parent);
    const struct cluster_disk *head = collapse_head(check, version);
    const struct map_root *against = &version->against;
    if (version->name[0] != '\0' || version->pending || version->child_count > 1)
        return wrong(check, "version %llu: collapses, but something needs it", id);
    if ((parent != NULL && parent->collapsing) || (child != NULL && child->collapsing))
        return wrong(check, "version %llu: collapses, and so does its neighbour", id);
    if (head == NULL && cluster_head_next(version, NULL) != NULL)
        return wrong(check, "version %llu: collapses, but its child does not know", id);
    if (head != NULL)
        return against->generation <= head->head_generation
                   ? 0
                   : wrong(check, "version %llu: collapses against what is to come", id);
    if (child != NULL &&
        (child->pending || !address_equal(child->root.address, against->address)))
        return wrong(check, "version %llu: collapses against what is not its child", id);
    if (child == NULL && !address_is_null(against->address))
        return wrong(check, "version %llu: collapses against nothing", id);
    return 0;
}

static int check_version(struct check *check, const struct cluster_version *version)
{
    unsigned long long id = version->id;
    const struct cluster_disk *disk = cluster_disk_by_id(check->state, version->disk);
    if (version->id == 0 || version->id >= check->state->next_version)
        return wrong(check, "version %llu: a number not given out yet", id);
    if (disk == NULL)
        return wrong(check, "version %llu: its disk %llu is missing", id,
                     (unsigned long long)version->disk);
    if (version->name[0] != '\0' &&
        (!cluster_name_valid(version->name) ||
         cluster_version_by_name(check->state, version->disk, version->name) != version))
        return wrong(check, "version %llu: its name is invalid or not its own", id);
    if (version->parent >= version->id)
        return wrong(check, "version %llu: its parent %llu is younger", id,
                     (unsigned long long)version->parent);
    if (version->generation == 0 || version->generation >= GENERATION_MAX ||
        version->root.generation > version->generation)
        return wrong(check, "version %llu: generation %u", id, version->generation);
    if (version->size_bytes > DISK_BYTES_MAX || version->size_bytes % SECTOR_BYTES != 0)
        return wrong(check, "version %llu: an impossible size", id);
    if (version->marker == 0 && (version->name[0] != '\0' || version->pending))
        return wrong(check, "version %llu: a snapshot without a marker", id);
    if (version->marker > disk->newest_marker || version->marker_epoch > disk->epoch)
        return wrong(check, "version %llu: its marker is younger than its disk's", id);
    if (version->pending && version->marker <= disk->checkpoint.covers)
        return wrong(check, "version %llu: a checkpoint passed it, but it has no root",
                     id);
    struct tally *tally = tally_find(check->disks, check->disk_count, disk->id);
    tally->versions++;
    tally->snapshots += version->name[0] != '\0';
    tally->pending += version->pending;
    check->spare += version->spare;
    if (version->spare !=
        (version->name[0] == '\0' && !version->pending &&
         version->child_count <= 1U + planted(PLANT_BRANCH_POINT_LOST)))
        return wrong(check, "version %llu: is in the wrong list", id);
    int rc = check_parent(check, "version", version->id, version->disk, version->parent,
                          version->generation);
    if (rc == 0)
        rc = check_children(check, version);
    if (rc == 0 && version->collapsing)
        rc = check_collapsing(check, version);
    return rc;
}

static int check_extent(struct check *check, const struct cluster_disk *disk,
                        const struct log_extent *extent)
{
    uint64_t sequence = address_sequence(extent->extent);
    if (cluster_group_by_id(check->state, address_group(extent->extent)) == NULL ||
        address_block(extent->extent) != 0 ||
        sequence == 0 || sequence >= check->state->next_sequence)
        return wrong(check, "disk %s: extent %llx was never opened", disk->name,
                     (unsigned long long)extent->extent.v);
    if (extent->epoch == 0 || extent->epoch > disk->epoch)
        return wrong(check, "disk %s: extent %llx is of an epoch to come", disk->name,
                     (unsigned long long)extent->extent.v);
    if (extent->final && (extent->length > EXTENT_BLOCKS ||
                          (extent->length == 0 && extent->last_number != 0)))
        return wrong(check, "disk %s: extent %llx has an impossible length", disk->name,
                     (unsigned long long)extent->extent.v);
    bool known = extent->member_count >= 1 && extent->member_count <= REPLICAS_MAX;
    for (unsigned i = 0; known && i < extent->member_count; i++)
        known = cluster_node_known(check->state, extent->members[i]);
    if (!known)
        return wrong(check, "disk %s: extent %llx has an impossible write set",
                     disk->name, (unsigned long long)extent->extent.v);
    return 0;
}

static int check_log(struct check *check, const struct cluster_disk *disk)
{
    if (disk->checkpoint.covers > disk->checkpoint.last ||
        disk->checkpoint.last > disk->flushed || disk->newest_marker > disk->flushed)
        return wrong(check, "disk %s: its checkpoint is not flushed", disk->name);
    for (uint32_t i = 0; i < disk->extent_count; i++) {
        const struct log_extent *extent = &disk->extents[i];
        if (i > 0 &&
            (address_sequence(extent[-1].extent) >= address_sequence(extent->extent) ||
             extent[-1].epoch > extent->epoch))
            return wrong(check, "disk %s: its extents are out of order", disk->name);
        int rc = check_extent(check, disk, extent);
        if (rc != 0)
            return rc;
        uint64_t owner = 0;
        if (cluster_listed_extent(check->state, extent->extent, &owner) != extent ||
            owner != disk->id)
            return wrong(check, "disk %s: extent %llx is not in the index", disk->name,
                         (unsigned long long)extent->extent.v);
    }
    for (uint32_t i = 0; i < disk->cut_count; i++) {
        const struct cluster_cut *cut = &disk->cuts[i];
        if (cut->epoch >= disk->epoch ||
            (i > 0 && (cut[-1].epoch >= cut->epoch || cut[-1].number > cut->number)))
            return wrong(check, "disk %s: its cuts are out of order", disk->name);
    }
    return 0;
}

static int check_lists(struct check *check, const struct cluster_disk *disk)
{
    for (uint32_t i = 0; i < disk->list_count; i++) {
        const struct dead_list *list = &disk->lists[i];
        if (list->blocks == 0 || address_is_null(list->head) ||
            list->checkpoint > disk->checkpoint.number ||
            list->checkpoint <= (i > 0 ? list[-1].checkpoint : 0))
            return wrong(check, "disk %s: its dead lists are out of order", disk->name);
    }
    return 0;
}

static int check_schedule(struct check *check, const struct cluster_disk *disk)
{
    for (uint32_t i = 0; i < disk->rule_count; i++) {
        const struct schedule_rule *rule = &disk->rules[i];
        bool good = rule->every_s != 0 && rule->every_s <= SCHEDULE_EVERY_MAX_S &&
                    rule->keep != 0 && rule->keep <= SCHEDULE_KEEP_MAX;
        for (uint32_t j = 0; j < i; j++)
            good = good && disk->rules[j].every_s != rule->every_s;
        if (!good)
            return wrong(check, "disk %s: an impossible schedule", disk->name);
    }
    return 0;
}

static int check_name(struct check *check, const struct cluster_disk *disk)
{
    char trash_name[DISK_NAME_MAX + 1];
    bool good = cluster_name_valid(disk->name);
    if (disk->flags & DISK_TRASHED) {
        cluster_trash_name(disk->id, trash_name);
        good = strcmp(disk->name, trash_name) == 0 &&
               cluster_name_valid(disk->trash_name);
    }
    if (!good || cluster_disk_by_name(check->state, disk->name) != disk)
        return wrong(check, "disk %llu: its name is invalid or not its own",
                     (unsigned long long)disk->id);
    return 0;
}

/* What each state of its life demands; each comes after the ones before it. */
static int check_life(struct check *check, const struct cluster_disk *disk)
{
    unsigned flags = disk->flags;
    if ((flags & DISK_IMPORTING) && (flags & ~(unsigned)DISK_IMPORTING))
        return wrong(check, "disk %s: is imported and more", disk->name);
    if (((flags & DISK_REMOVED) && !(flags & DISK_TRASHED)) ||
        ((flags & DISK_HEADLESS) && !(flags & DISK_REMOVED)))
        return wrong(check, "disk %s: was removed out of order", disk->name);
    if ((flags & DISK_TRASHED) && (disk->owner != 0 || !cluster_disk_is_settled(disk)))
        return wrong(check, "disk %s: is in the trash, but not at rest", disk->name);
    if ((flags & DISK_REMOVED) && disk->snapshot_count != 0)
        return wrong(check, "disk %s: is removed, but has snapshots", disk->name);
    if ((flags & DISK_HEADLESS) &&
        (!(flags & DISK_SHARED) || disk->head_parent != 0 || disk->has_root ||
         disk->extent_count != 0 || disk->cut_count != 0 || disk->list_count != 0 ||
         disk->collapsing_version != 0))
        return wrong(check, "disk %s: has no head, but what belongs to one", disk->name);
    if (disk->collapsing_version == 0)
        return 0;
    const struct cluster_version *version = cluster_version_by_id(
        check->state, disk->collapsing_version);
    if (version == NULL || !version->collapsing || collapse_head(check, version) != disk)
        return wrong(check, "disk %s: no version %llu collapses against it", disk->name,
                     (unsigned long long)disk->collapsing_version);
    return 0;
}

static int check_disk(struct check *check, const struct cluster_disk *disk)
{
    if (disk->id == 0 || disk->id >= check->state->next_disk)
        return wrong(check, "disk %llu: a number not given out yet",
                     (unsigned long long)disk->id);
    int rc = check_name(check, disk);
    if (rc != 0)
        return rc;
    if ((disk->flags & ~(unsigned)DISK_FLAGS_ALL) != 0 ||
        disk->size_bytes > DISK_BYTES_MAX || disk->size_bytes % SECTOR_BYTES != 0)
        return wrong(check, "disk %s: impossible flags or size", disk->name);
    if (cluster_pool_by_id(check->state, disk->pool) == NULL)
        return wrong(check, "disk %s: there is no pool %u", disk->name, disk->pool);
    if (disk->owner != 0 &&
        (disk->epoch == 0 || !cluster_node_known(check->state, disk->owner)))
        return wrong(check, "disk %s: no node %llu can own it", disk->name,
                     (unsigned long long)disk->owner);
    if (disk->head_generation == 0 || disk->head_generation > GENERATION_MAX ||
        disk->root.generation > disk->head_generation)
        return wrong(check, "disk %s: generation %u of its head", disk->name,
                     disk->head_generation);
    rc = check_parent(check, "disk", disk->id, disk->id, disk->head_parent,
                      disk->head_generation);
    if (rc == 0)
        rc = check_life(check, disk);
    if (rc == 0)
        rc = check_log(check, disk);
    if (rc == 0)
        rc = check_lists(check, disk);
    return rc != 0 ? rc : check_schedule(check, disk);
}

/* The lists of a disk's versions are in order, and what the counts say. */
static int check_versions_of(struct check *check, const struct cluster_disk *disk)
{
    const struct tally *tally = tally_find(check->disks, check->disk_count, disk->id);
    uint64_t id = 0, marker = 0;
    uint32_t versions = 0, pendings = 0;
    const struct cluster_version *version = NULL, *pending;
    while ((version = cluster_disk_version_next(disk, version)) != NULL) {
        if (version->disk != disk->id || version->id <= id)
            return wrong(check, "disk %s: its versions are out of order", disk->name);
        id = version->id;
        versions++;
    }
    TAILQ_FOREACH (pending, &disk->pending, pending_link) {
        if (pending->marker <= marker)
            return wrong(check, "disk %s: its markers are out of order", disk->name);
        marker = pending->marker;
        pendings++;
    }
    if (disk->snapshot_count != tally->snapshots ||
        disk->version_count != tally->versions || versions != tally->versions ||
        disk->pending_count != tally->pending || pendings != tally->pending ||
        disk->pending_count > PENDING_VERSIONS_MAX)
        return wrong(check, "disk %s: its snapshots are miscounted", disk->name);
    return 0;
}

static int check_counts(struct check *check)
{
    const struct cluster_disk *disk = NULL;
    uint64_t extents = 0;
    while ((disk = cluster_disk_next_id(check->state, disk)) != NULL) {
        int rc = check_versions_of(check, disk);
        if (rc != 0)
            return rc;
        extents += disk->extent_count;
    }
    if (extents != check->state->listed_count)
        return wrong(check, "listed extents are miscounted");
    const struct cluster_version *version = NULL;
    while ((version = cluster_version_next(check->state, version)) != NULL) {
        const struct tally *tally = tally_find(check->versions, check->version_count,
                                               version->id);
        if (version->child_count != tally->children)
            return wrong(check, "version %llu: its children are miscounted",
                         (unsigned long long)version->id);
    }
    uint64_t listed = 0;
    while ((version = cluster_spare_next(check->state, version)) != NULL)
        listed += version->spare;
    if (listed != check->spare || listed != check->state->spare_count)
        return wrong(check, "versions to be removed are miscounted");
    return 0;
}

static int check_answers(struct check *check)
{
    const struct cluster_state *state = check->state;
    for (uint32_t i = 0; i < state->answer_count; i++) {
        const struct cluster_answer *answer = &state->answers[i];
        if (answer->client == 0 || answer->index > state->applied ||
            (i > 0 && answer[-1].index >= answer->index))
            return wrong(check, "the answers to clients are out of order");
        for (uint32_t j = 0; j < i; j++) {
            if (state->answers[j].client == answer->client)
                return wrong(check, "a client has two last answers");
        }
    }
    return 0;
}

static int check_all(struct check *check)
{
    const struct cluster_state *state = check->state;
    if (state->node_count == 0 && (state->disk_count != 0 || state->answer_count != 0))
        return wrong(check, "disks without a cluster");
    if (!cluster_check_nodes(state, check->text, check->cap))
        return -PLX_EDAMAGED;
    if (state->next_disk == 0 || state->next_disk > NUMBERS_MAX ||
        state->next_version == 0 || state->next_version > NUMBERS_MAX ||
        state->next_sequence == 0 || state->next_sequence > EXTENT_SEQUENCE_MAX)
        return wrong(check, "an impossible next number");
    if (state->trash_keep_s > TRASH_KEEP_MAX_S)
        return wrong(check, "an impossible setting");
    int rc = 0;
    const struct cluster_version *version = NULL;
    while (rc == 0 && (version = cluster_version_next(state, version)) != NULL)
        rc = check_version(check, version);
    const struct cluster_disk *disk = NULL;
    while (rc == 0 && (disk = cluster_disk_next_id(state, disk)) != NULL)
        rc = check_disk(check, disk);
    if (rc == 0)
        rc = check_counts(check);
    return rc != 0 ? rc : check_answers(check);
}

int cluster_state_check(const struct cluster_state *state, char *text, size_t cap)
{
    struct check check = {.state = state, .text = text, .cap = cap};
    check.disks = cluster_alloc((state->disk_count + 1) * sizeof(struct tally));
    check.versions = cluster_alloc((state->version_count + 1) * sizeof(struct tally));
    const struct cluster_disk *disk = NULL;
    while ((disk = cluster_disk_next_id(state, disk)) != NULL)
        check.disks[check.disk_count++].id = disk->id;
    const struct cluster_version *version = NULL;
    while ((version = cluster_version_next(state, version)) != NULL)
        check.versions[check.version_count++].id = version->id;
    int rc = check_all(&check);
    free(check.disks);
    free(check.versions);
    return rc;
}
