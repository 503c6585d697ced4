/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Leases and the list of extents that form a disk's log: what a take-over must look at,
 * and nothing else. The rules are those of doc/protocol.md; doc/cluster.md has them
 * command by command.
 */
#include "replication/cluster_internal.h"

static struct log_extent *extent_find(const struct cluster_disk *disk,
                                      struct address extent)
{
    for (uint32_t i = 0; i < disk->extent_count; i++) {
        if (address_equal(disk->extents[i].extent, extent))
            return &disk->extents[i];
    }
    return NULL;
}

/* An extent that some disk once had on its list. */
static bool extent_known(const struct cluster_state *state, struct address extent)
{
    uint64_t sequence = address_sequence(extent);
    return cluster_group_by_id(state, address_group(extent)) != NULL &&
           address_block(extent) == 0 && sequence >= 1 && sequence < state->next_sequence;
}

/* What is wrong with one length in itself and against the state; NULL: nothing. */
static const char *final_wrong(struct apply *apply, const struct final_length *final,
                               uint64_t covers, int *ret_code)
{
    *ret_code = -EINVAL;
    if (final->length > EXTENT_BLOCKS)
        return "a length beyond the end of an extent";
    if (final->length == 0 && final->last_number != 0)
        return "a batch in an empty extent";
    if (!extent_known(apply->state, final->extent))
        return "a length of an extent that never was";
    *ret_code = -PLX_EPRECONDITION;
    const struct log_extent *extent = extent_find(apply->disk, final->extent);
    if (extent == NULL)
        return NULL; /* it left before */
    if (extent->final && extent->length != final->length)
        return "a second length of an extent";
    if (final->leaves && final->last_number > covers)
        return "an extent leaves that replay needs";
    return NULL;
}

int finals_check(struct apply *apply, uint64_t covers, uint32_t *ret_left,
                 uint32_t *ret_open)
{
    const struct cluster_command *command = apply->command;
    const struct cluster_disk *disk = apply->disk;
    uint32_t left = disk->extent_count, open = 0;
    for (uint32_t i = 0; i < disk->extent_count; i++)
        open += !disk->extents[i].final;
    for (uint32_t i = 0; i < command->final_count; i++) {
        const struct final_length *final = &command->finals[i];
        int code;
        const char *wrong = final_wrong(apply, final, covers, &code);
        for (uint32_t j = 0; wrong == NULL && j < i; j++) {
            code = -EINVAL;
            if (address_equal(command->finals[j].extent, final->extent))
                wrong = "an extent is named twice";
        }
        if (wrong != NULL)
            return apply_refuse(apply, code, "disk %s: extent %llx: %s", disk->name,
                                (unsigned long long) final->extent.v, wrong);
        const struct log_extent *extent = extent_find(disk, final->extent);
        if (extent == NULL)
            continue;
        left -= final->leaves;
        open -= !extent->final;
    }
    *ret_left = left;
    *ret_open = open;
    return 0;
}

/* Keeps a cut only if a listed extent is older than its epoch and not older than an
 * earlier cut: numbers of cuts never fall, so otherwise an earlier one says it already,
 * or no extent is left in which the batches it voids could lie. */
static void cuts_tidy(struct cluster_disk *disk)
{
    uint32_t kept = 0;
    uint64_t below = 0; /* extents of lower epochs are seen to */
    for (uint32_t i = 0; i < disk->cut_count; i++) {
        const struct cluster_cut cut = disk->cuts[i];
        bool needed = false;
        for (uint32_t j = 0; !needed && j < disk->extent_count; j++) {
            uint64_t epoch = disk->extents[j].epoch;
            needed = epoch >= below && epoch <= cut.epoch;
        }
        if (!needed)
            continue;
        disk->cuts[kept++] = cut;
        below = cut.epoch + 1;
    }
    disk->cut_count = kept;
    assert(disk->cut_count <= CUTS_MAX);
}

void finals_apply(struct apply *apply)
{
    const struct cluster_command *command = apply->command;
    struct cluster_disk *disk = apply->disk;
    disk->flushed = max_u64(disk->flushed, command->flushed);
    for (uint32_t i = 0; i < command->final_count; i++) {
        const struct final_length *final = &command->finals[i];
        struct log_extent *extent = extent_find(disk, final->extent);
        if (extent == NULL)
            continue;
        if (!extent->final) {
            extent->final = true;
            extent->length = final->length;
            extent->last_number = final->last_number;
        }
        if (!final->leaves)
            continue;
        struct log_extent *end = disk->extents + disk->extent_count;
        cluster_listed_remove(apply->state, extent->extent);
        memmove(extent, extent + 1, (size_t)(end - extent - 1) * sizeof *extent);
        disk->extent_count--;
    }
    cuts_tidy(disk);
}

uint64_t disk_known_number(const struct cluster_disk *disk)
{
    uint64_t known = max_u64(disk->flushed, disk->checkpoint.last);
    known = max_u64(known, max_u64(disk->checkpoint.covers, disk->newest_marker));
    if (disk->cut_count != 0)
        known = max_u64(known, disk->cuts[disk->cut_count - 1].number);
    return known;
}

static bool node_is_there(const struct apply *apply, uint64_t id)
{
    const struct cluster_node *node = cluster_node_by_id(apply->state, id);
    return node != NULL && (node->flags & NODE_GONE) == 0;
}

int apply_lease_take(struct apply *apply)
{
    struct cluster_disk *disk = apply->disk;
    uint64_t node = apply->command->node;
    if (!node_is_there(apply, node))
        return apply_refuse(apply, -PLX_EPRECONDITION, "disk %s: there is no node %llu",
                            disk->name, (unsigned long long)node);
    disk->owner = node;
    if (disk->epoch == 0 || !planted(PLANT_EPOCH_REUSED))
        disk->epoch++;
    apply->result->id = disk->id;
    apply->result->epoch = disk->epoch;
    return 0;
}

int apply_lease_close(struct apply *apply)
{
    struct cluster_disk *disk = apply->disk;
    uint32_t left, open;
    int rc = finals_check(apply, disk->checkpoint.covers, &left, &open);
    if (rc != 0)
        return rc;
    /* An import that failed is closed only to be discarded, log and all. */
    if (open != 0 && (disk->flags & DISK_IMPORTING) == 0)
        return apply_refuse(apply, -PLX_EPRECONDITION,
                            "disk %s: %u extents have no final length", disk->name, open);
    finals_apply(apply);
    disk->owner = 0;
    apply->result->id = disk->id;
    return 0;
}

static int check_members(struct apply *apply)
{
    const struct cluster_command *command = apply->command;
    const char *name = apply->disk->name;
    if (command->member_count == 0)
        return apply_refuse(apply, -EINVAL, "disk %s: an empty write set", name);
    for (unsigned i = 0; i < command->member_count; i++) {
        uint64_t node = command->members[i];
        if (!node_is_there(apply, node))
            return apply_refuse(apply, -PLX_EPRECONDITION,
                                "disk %s: there is no node %llu", name,
                                (unsigned long long)node);
        for (unsigned j = 0; j < i; j++) {
            if (command->members[j] == node)
                return apply_refuse(apply, -EINVAL,
                                    "disk %s: node %llu is in a write set twice", name,
                                    (unsigned long long)node);
        }
    }
    return 0;
}

static uint16_t open_group(const struct cluster_command *command)
{
    return command->group == 0 ? 1 : command->group;
}

static void extent_append(struct cluster_state *state, struct cluster_disk *disk,
                          const struct cluster_command *command)
{
    disk->extents = cluster_grow(disk->extents, &disk->extent_cap, disk->extent_count + 1,
                                 sizeof *disk->extents);
    struct log_extent *extent = &disk->extents[disk->extent_count++];
    *extent = (struct log_extent){
        .extent = address_of(open_group(command), state->next_sequence++, 0),
        .epoch = disk->epoch,
        .member_count = command->member_count};
    for (unsigned i = 0; i < command->member_count; i++)
        extent->members[i] = command->members[i];
    bool is_new = cluster_listed_add(state, disk->id, extent->extent);
    assert(is_new);
}

/* Somebody waits for a length: an extent without one keeps a member from being whole. */
static int apply_finals_alone(struct apply *apply)
{
    struct cluster_disk *disk = apply->disk;
    uint32_t left, open;
    if (apply->command->final_count == 0)
        return apply_refuse(apply, -EINVAL, "disk %s: no extents to open", disk->name);
    int rc = finals_check(apply, disk->checkpoint.covers, &left, &open);
    if (rc != 0)
        return rc;
    finals_apply(apply);
    apply->result->id = disk->id;
    return 0;
}

int apply_extent_open(struct apply *apply)
{
    struct cluster_state *state = apply->state;
    struct cluster_disk *disk = apply->disk;
    uint32_t count = apply->command->count;
    uint32_t left, open;
    if (count == 0)
        return apply_finals_alone(apply);
    int rc = check_members(apply);
    if (rc == 0 && apply->command->group != 0)
        rc = apply_check_open_group(apply);
    if (rc == 0)
        rc = finals_check(apply, disk->checkpoint.covers, &left, &open);
    if (rc != 0)
        return rc;
    if (count > LOG_EXTENTS_MAX || left > LOG_EXTENTS_MAX - count)
        return apply_refuse(apply, -PLX_ELIMIT,
                            "disk %s: its log has %u extents; %u is the most", disk->name,
                            left, LOG_EXTENTS_MAX);
    if (state->next_sequence > EXTENT_SEQUENCE_MAX - count)
        return apply_refuse(apply, -PLX_ELIMIT, "disk %s: extent numbers are used up",
                            disk->name);
    finals_apply(apply);
    apply->result->id = address_of(open_group(apply->command), state->next_sequence, 0).v;
    for (uint32_t i = 0; i < count; i++)
        extent_append(state, disk, apply->command);
    if (apply->command->group != 0)
        apply_mark_left_out(apply);
    return 0;
}

int apply_cut(struct apply *apply)
{
    struct cluster_disk *disk = apply->disk;
    uint64_t number = apply->command->number;
    uint64_t known = max_u64(disk_known_number(disk), apply->command->flushed);
    uint32_t left, open;
    if (number < known)
        return apply_refuse(apply, -PLX_EPRECONDITION,
                            "disk %s: a cut at %llu, but %llu is committed", disk->name,
                            (unsigned long long)number, (unsigned long long)known);
    int rc = finals_check(apply, disk->checkpoint.covers, &left, &open);
    if (rc != 0)
        return rc;
    struct cluster_cut *newest = disk->cut_count == 0 ? NULL
                                                      : &disk->cuts[disk->cut_count - 1];
    if (newest != NULL && newest->number == number) {
        newest->epoch = disk->epoch - 1;
    } else {
        disk->cuts = cluster_grow(disk->cuts, &disk->cut_cap, disk->cut_count + 1,
                                  sizeof *disk->cuts);
        disk->cuts[disk->cut_count++] = (struct cluster_cut){.epoch = disk->epoch - 1,
                                                             .number = number};
    }
    finals_apply(apply);
    apply->result->id = disk->id;
    return 0;
}

int apply_check_settled(struct apply *apply)
{
    const struct cluster_disk *disk = apply->disk;
    if (disk->pending_count != 0)
        return apply_refuse(apply, -PLX_EPRECONDITION,
                            "disk %s: %u snapshots wait for a checkpoint", disk->name,
                            disk->pending_count);
    for (uint32_t i = 0; i < disk->extent_count; i++) {
        const struct log_extent *extent = &disk->extents[i];
        if (!extent->final)
            return apply_refuse(apply, -PLX_EPRECONDITION,
                                "disk %s: extent %llx has no final length", disk->name,
                                (unsigned long long)extent->extent.v);
        if (extent->last_number > disk->checkpoint.covers)
            return apply_refuse(apply, -PLX_EPRECONDITION,
                                "disk %s: extent %llx has what no checkpoint covers",
                                disk->name, (unsigned long long)extent->extent.v);
    }
    assert(cluster_disk_is_settled(disk));
    return 0;
}

/* How many of the disk's lists are of checkpoints up to `trimmed`. */
static uint32_t lists_trimmed(const struct cluster_disk *disk, uint64_t trimmed)
{
    uint32_t count = 0;
    while (count < disk->list_count && disk->lists[count].checkpoint <= trimmed)
        count++;
    return count;
}

static void lists_forget(struct cluster_disk *disk, uint64_t trimmed)
{
    uint32_t gone = lists_trimmed(disk, trimmed);
    if (gone == 0)
        return;
    disk->list_count -= gone;
    memmove(disk->lists, disk->lists + gone, disk->list_count * sizeof *disk->lists);
}

/* A list counts only once a committed checkpoint names it, so nobody can have trimmed
 * more than these. */
static int check_trimmed(struct apply *apply, uint64_t trimmed)
{
    const struct cluster_disk *disk = apply->disk;
    if (trimmed > disk->checkpoint.number)
        return apply_refuse(apply, -PLX_EPRECONDITION,
                            "disk %s: list %llu cannot be trimmed, it is checkpoint %llu",
                            disk->name, (unsigned long long)trimmed,
                            (unsigned long long)disk->checkpoint.number);
    return 0;
}

static int check_list(struct apply *apply)
{
    const struct cluster_command *command = apply->command;
    const struct cluster_disk *disk = apply->disk;
    int rc = check_trimmed(apply, command->trimmed);
    if (rc != 0 || command->list.blocks == 0)
        return rc;
    if (address_is_null(command->list.head))
        return apply_refuse(apply, -EINVAL, "disk %s: a dead list that is nowhere",
                            disk->name);
    if (disk->list_count - lists_trimmed(disk, command->trimmed) >= LISTS_MAX)
        return apply_refuse(apply, -PLX_ELIMIT,
                            "disk %s: %u dead lists wait to be trimmed", disk->name,
                            LISTS_MAX);
    return 0;
}

static void list_append(struct cluster_disk *disk, const struct dead_list *list,
                        uint64_t number)
{
    if (list->blocks == 0)
        return;
    disk->lists = cluster_grow(disk->lists, &disk->list_cap, disk->list_count + 1,
                               sizeof *disk->lists);
    disk->lists[disk->list_count] = *list;
    disk->lists[disk->list_count++].checkpoint = number;
}

int apply_disk_tidy(struct apply *apply)
{
    struct cluster_disk *disk = apply->disk;
    uint32_t left, open;
    int rc = check_trimmed(apply, apply->command->number);
    if (rc == 0)
        rc = finals_check(apply, disk->checkpoint.covers, &left, &open);
    if (rc != 0)
        return rc;
    lists_forget(disk, apply->command->number);
    finals_apply(apply);
    apply->result->id = disk->id;
    return 0;
}

/* Each root must be of a pending version that the checkpoint passes, and all of these
 * must be there: a version it passed without a root would never get one. */
static int check_roots(struct apply *apply)
{
    const struct cluster_command *command = apply->command;
    const struct cluster_disk *disk = apply->disk;
    uint64_t covers = command->checkpoint.covers;
    for (uint32_t i = 0; i < command->root_count; i++) {
        uint64_t id = command->roots[i].version;
        const struct cluster_version *version = cluster_version_by_id(apply->state, id);
        bool good = version != NULL && version->disk == disk->id && version->pending &&
                    version->marker <= covers &&
                    command->roots[i].root.generation <= version->generation;
        for (uint32_t j = 0; good && j < i; j++)
            good = command->roots[j].version != id;
        if (!good)
            return apply_refuse(apply, -PLX_EPRECONDITION,
                                "disk %s: version %llu does not wait for this root",
                                disk->name, (unsigned long long)id);
    }
    uint32_t passed = 0;
    const struct cluster_version *pending;
    TAILQ_FOREACH (pending, &disk->pending, pending_link)
        passed += pending->marker <= covers;
    if (passed != command->root_count)
        return apply_refuse(apply, -PLX_EPRECONDITION,
                            "disk %s: a checkpoint passes %u snapshots, but has %u roots",
                            disk->name, passed, command->root_count);
    return 0;
}

int apply_checkpoint(struct apply *apply)
{
    const struct cluster_command *command = apply->command;
    const struct cluster_checkpoint *checkpoint = &command->checkpoint;
    struct cluster_disk *disk = apply->disk;
    uint32_t left, open;
    if (checkpoint->number <= disk->checkpoint.number ||
        checkpoint->covers < disk->checkpoint.covers ||
        checkpoint->last < checkpoint->covers)
        return apply_refuse(apply, -PLX_EPRECONDITION,
                            "disk %s: checkpoint %llu comes after checkpoint %llu",
                            disk->name, (unsigned long long)checkpoint->number,
                            (unsigned long long)disk->checkpoint.number);
    if (command->newest_marker != disk->newest_marker)
        return apply_refuse(apply, -PLX_EPRECONDITION, "disk %s: a newer snapshot exists",
                            disk->name);
    if (command->root.generation > GENERATION_MAX)
        return apply_refuse(apply, -PLX_ELIMIT, "disk %s: generations are used up",
                            disk->name);
    int rc = check_roots(apply);
    if (rc == 0)
        rc = check_list(apply);
    if (rc == 0)
        rc = finals_check(apply, checkpoint->covers, &left, &open);
    if (rc != 0)
        return rc;
    for (uint32_t i = 0; i < command->root_count; i++) {
        struct cluster_version *version = cluster_version_find(apply->state,
                                                               command->roots[i].version);
        cluster_version_set_root(apply->state, version, &command->roots[i].root);
    }
    disk->checkpoint = *checkpoint;
    disk->root = command->root;
    disk->has_root = true;
    /* Owners stamp what follows a marker with the next generation, also when its snapshot
     * was refused; what is born in the head must never be stamped lower again. */
    disk->head_generation = (uint32_t)max_u64(disk->head_generation,
                                              command->root.generation);
    disk->flushed = max_u64(disk->flushed, checkpoint->last);
    lists_forget(disk, command->trimmed);
    list_append(disk, &command->list, checkpoint->number);
    finals_apply(apply);
    apply->result->id = disk->id;
    return 0;
}
