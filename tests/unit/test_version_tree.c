/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The life of versions and disks, from the cluster's state machine to the last dead
 * block, with everything around it as small as it can be: disks of nine blocks, maps of
 * two levels, a log that is an array. Random histories of all that people and crashes may
 * do, in every order, against a model that keeps whole copies.
 *
 *   - what a head or a snapshot reaches is live and what the model says;
 *   - when everything has settled, what is live is exactly what is reached.
 *
 * The toy host follows doc/disk.md and doc/reclaim.md: layers with bounds, dead lists
 * that count once their checkpoint is committed, walks that begin again from scratch.
 *
 *   test_version_tree [HISTORIES [FIRST_SEED]]
 */
#include "tests/unit/cluster_machine.h"

#define FANOUT        3U
#define BLOCKS        (FANOUT * FANOUT)
#define ADDRESSES_MAX 4000U
#define DISKS_MAX     12U
#define VERSIONS_MAX  64U
#define LAYERS_MAX    10U
#define LISTS_KEPT    64U
#define DEAD_MAX      400U

/* --- the log: what lies at an address --- */

struct ref {
    uint32_t at; /* 0: zeros */
    uint32_t generation;
};

static struct cell {
    bool is_live;
    uint64_t disk; /* in whose log it lies */
    struct ref refs[FANOUT]; /* of a node */
} log_cells[ADDRESSES_MAX];
static uint32_t log_end;

struct dead {
    struct ref ref;
    bool is_subtree; /* a leaf and what it names that is younger than the bound */
    uint32_t bound;
};
struct dead_entries {
    uint32_t count;
    struct dead at[DEAD_MAX];
};

/* --- the toy host --- */

#define UNCHANGED UINT32_MAX

struct layer {
    uint32_t generation, blocks[BLOCKS]; /* an address, 0 for zeros, or UNCHANGED */
    uint64_t marker, version;
    struct dead_entries dead;
};

struct list {
    uint64_t checkpoint;
    struct dead_entries dead;
};

struct toy_disk {
    uint64_t id; /* 0: free */
    bool is_owned;
    uint64_t epoch, number; /* of batches */
    uint32_t layer_count;
    struct layer layers[LAYERS_MAX]; /* oldest first; the last takes writes */
    uint64_t trimmed;                /* K of the newest list trimmed by this owner */
    uint32_t list_count;
    struct list lists[LISTS_KEPT];   /* in the log; those the state names count */
    uint32_t model[BLOCKS];
};

struct toy_version {
    uint64_t id;
    uint32_t model[BLOCKS];
};

static struct toy {
    struct machine m;
    uint64_t random;
    uint32_t names;
    struct toy_disk disks[DISKS_MAX];
    struct toy_version versions[VERSIONS_MAX];
} toy;

static uint64_t draw(uint64_t n)
{
    toy.random ^= toy.random << 13;
    toy.random ^= toy.random >> 7;
    toy.random ^= toy.random << 17;
    return (toy.random >> 11) % n;
}

static const struct cluster_disk *state_disk(uint64_t id)
{
    return cluster_disk_by_id(toy.m.state, id);
}

static const struct cluster_version *state_version(uint64_t id)
{
    return cluster_version_by_id(toy.m.state, id);
}

static struct toy_version *model_of(uint64_t version)
{
    for (uint32_t i = 0; i < VERSIONS_MAX; i++)
        if (toy.versions[i].id == version)
            return &toy.versions[i];
    CHECK(false);
    return NULL;
}

static struct toy_version *model_new(uint64_t id, const uint32_t *model)
{
    for (uint32_t i = 0; i < VERSIONS_MAX; i++) {
        struct toy_version *version = &toy.versions[i];
        if (version->id != 0 && state_version(version->id) != NULL)
            continue;
        version->id = id;
        memcpy(version->model, model, sizeof version->model);
        return version;
    }
    CHECK(false);
    return NULL;
}

/* --- roots --- */

static struct map_root root_of(struct ref ref)
{
    struct map_root root = {.generation = ref.generation, .crc = 1, .height = 2};
    if (ref.at == 0)
        return (struct map_root){0};
    root.address = address_of(1, 1, ref.at);
    return root;
}

static struct ref ref_of(const struct map_root *root)
{
    return address_is_null(root->address)
               ? (struct ref){0}
               : (struct ref){address_block(root->address), root->generation};
}

static uint32_t log_put(uint64_t disk, const struct ref *refs)
{
    CHECK(log_end < ADDRESSES_MAX);
    log_cells[log_end] = (struct cell){.is_live = true, .disk = disk};
    if (refs != NULL)
        memcpy(log_cells[log_end].refs, refs, sizeof log_cells[log_end].refs);
    return log_end++;
}

/* Addresses of blocks; every node on the way is live. */
static void read_tree(struct ref root, uint32_t *ret_blocks)
{
    memset(ret_blocks, 0, BLOCKS * sizeof *ret_blocks);
    if (root.at == 0)
        return;
    CHECK(log_cells[root.at].is_live);
    for (uint32_t i = 0; i < FANOUT; i++) {
        struct ref leaf = log_cells[root.at].refs[i];
        if (leaf.at == 0)
            continue;
        CHECK(log_cells[leaf.at].is_live);
        for (uint32_t j = 0; j < FANOUT; j++)
            ret_blocks[i * FANOUT + j] = log_cells[leaf.at].refs[j].at;
    }
}

static void check_tree(struct ref root, const struct toy_disk *layers,
                       const uint32_t *model)
{
    uint32_t blocks[BLOCKS];
    read_tree(root, blocks);
    for (uint32_t l = 0; layers != NULL && l < layers->layer_count; l++)
        for (uint32_t i = 0; i < BLOCKS; i++)
            if (layers->layers[l].blocks[i] != UNCHANGED)
                blocks[i] = layers->layers[l].blocks[i];
    for (uint32_t i = 0; i < BLOCKS; i++) {
        CHECK_EQ(blocks[i], model[i]);
        CHECK(blocks[i] == 0 || log_cells[blocks[i]].is_live);
    }
}

/* The root the head's layers lie on. False: a version of another disk is pending. */
static bool base_root(const struct cluster_disk *disk, struct ref *ret_root)
{
    const struct cluster_version *version = state_version(disk->head_parent);
    if (disk->has_root) {
        *ret_root = ref_of(&disk->root);
        return true;
    }
    while (version != NULL && version->pending && version->disk == disk->id)
        version = state_version(version->parent);
    if (version != NULL && version->pending)
        return false;
    *ret_root = version != NULL ? ref_of(&version->root) : (struct ref){0};
    return true;
}

static void check_all(void)
{
    char text[200];
    if (cluster_state_check(toy.m.state, text, sizeof text) != 0) {
        fprintf(stderr, "inconsistent: %s\n", text);
        exit(1);
    }
    for (uint32_t d = 0; d < DISKS_MAX; d++) {
        struct toy_disk *disk = &toy.disks[d];
        const struct cluster_disk *state = disk->id != 0 ? state_disk(disk->id) : NULL;
        struct ref root;
        if (state == NULL || (state->flags & DISK_REMOVED) || !base_root(state, &root))
            continue;
        check_tree(root, disk, disk->model);
    }
    const struct cluster_version *version = NULL;
    while ((version = cluster_version_next(toy.m.state, version)) != NULL) {
        /* Others have no reader: unnamed ones on their way out may be half gone. */
        if (version->pending || version->collapsing)
            continue;
        if (state_disk(version->disk)->flags & DISK_REMOVED)
            if (version->child_count == 0)
                continue;
        check_tree(ref_of(&version->root), NULL, model_of(version->id)->model);
    }
}

/* --- writing --- */

static void dead_add(struct dead_entries *dead, struct dead entry)
{
    CHECK(dead->count < DEAD_MAX);
    dead->at[dead->count++] = entry;
}

static void layer_push(struct toy_disk *disk, uint32_t generation)
{
    CHECK(disk->layer_count < LAYERS_MAX);
    struct layer *layer = &disk->layers[disk->layer_count++];
    layer->generation = generation;
    layer->marker = layer->version = 0;
    layer->dead.count = 0;
    for (uint32_t i = 0; i < BLOCKS; i++)
        layer->blocks[i] = UNCHANGED;
}

static struct layer *layer_top(struct toy_disk *disk)
{
    return &disk->layers[disk->layer_count - 1];
}

static void write_block(struct toy_disk *disk, uint32_t block, bool zero)
{
    struct layer *top = layer_top(disk);
    uint32_t old = top->blocks[block];
    if (old != UNCHANGED && old != 0) /* D1 */
        dead_add(&top->dead, (struct dead){.ref = {old, top->generation}});
    top->blocks[block] = zero ? 0 : log_put(disk->id, NULL);
    disk->model[block] = top->blocks[block];
    disk->number++;
}

/* --- checkpoints --- */

struct merge {
    struct toy_disk *disk;
    const struct layer *layer;
    uint32_t bound;
    struct dead_entries *dead;
};

/* D2 */
static void superseded(const struct merge *merge, struct ref ref, bool is_subtree)
{
    if (ref.at != 0 && ref.generation > merge->bound)
        dead_add(merge->dead, (struct dead){ref, is_subtree, merge->bound});
}

static struct ref merge_leaf(const struct merge *merge, uint32_t index, struct ref old)
{
    const uint32_t *blocks = merge->layer->blocks + index * FANOUT;
    struct ref refs[FANOUT] = {{0}};
    uint32_t zeros = 0, same = 0, used = 0;
    for (uint32_t i = 0; i < FANOUT; i++) {
        zeros += blocks[i] == 0;
        same += blocks[i] == UNCHANGED;
    }
    if (same == FANOUT)
        return old;
    if (zeros == FANOUT) { /* cut off without a look */
        superseded(merge, old, true);
        return (struct ref){0};
    }
    if (old.at != 0)
        memcpy(refs, log_cells[old.at].refs, sizeof refs);
    superseded(merge, old, false);
    for (uint32_t i = 0; i < FANOUT; i++) {
        if (blocks[i] != UNCHANGED) {
            superseded(merge, refs[i], false);
            refs[i] = (struct ref){blocks[i],
                                   blocks[i] != 0 ? merge->layer->generation : 0};
        }
        used += refs[i].at != 0;
    }
    if (used == 0)
        return (struct ref){0};
    return (struct ref){log_put(merge->disk->id, refs), merge->layer->generation};
}

static struct ref merge_layer(const struct merge *merge, struct ref old)
{
    struct ref refs[FANOUT] = {{0}}, before[FANOUT];
    uint32_t used = 0;
    if (old.at != 0)
        memcpy(refs, log_cells[old.at].refs, sizeof refs);
    memcpy(before, refs, sizeof before);
    for (uint32_t i = 0; i < FANOUT; i++) {
        refs[i] = merge_leaf(merge, i, refs[i]);
        used += refs[i].at != 0;
    }
    if (memcmp(refs, before, sizeof refs) == 0)
        return old;
    superseded(merge, old, false);
    if (used == 0)
        return (struct ref){0};
    return (struct ref){log_put(merge->disk->id, refs), merge->layer->generation};
}

static struct list *list_new(struct toy_disk *disk)
{
    const struct cluster_disk *state = state_disk(disk->id);
    /* Those that the state does not name any more are forgotten. */
    uint32_t kept = 0;
    for (uint32_t i = 0; i < disk->list_count; i++)
        for (uint32_t j = 0; j < state->list_count; j++)
            if (state->lists[j].checkpoint == disk->lists[i].checkpoint) {
                disk->lists[kept++] = disk->lists[i];
                break;
            }
    disk->list_count = kept;
    if (kept == LISTS_KEPT)
        return NULL;
    disk->lists[kept].dead.count = 0;
    return &disk->lists[kept];
}

/* Merges every layer; the newest gets an empty one over it. False: too many lists. */
static bool checkpoint(struct toy_disk *disk)
{
    const struct cluster_disk *state = state_disk(disk->id);
    struct list *list = list_new(disk);
    struct ref root;
    struct version_root roots[LAYERS_MAX];
    uint32_t root_count = 0, generation = layer_top(disk)->generation;
    uint32_t bound = cluster_disk_bound(toy.m.state, state); /* D3 */
    if (list == NULL || state->list_count >= LISTS_MAX)
        return false;
    CHECK(base_root(state, &root));
    for (uint32_t l = 0; l < disk->layer_count; l++) {
        const struct layer *layer = &disk->layers[l];
        struct merge merge = {disk, layer, bound, &list->dead};
        root = merge_layer(&merge, root);
        for (uint32_t i = 0; i < layer->dead.count; i++)
            dead_add(&list->dead, layer->dead.at[i]);
        if (layer->version != 0) {
            roots[root_count++] = (struct version_root){layer->version, root_of(root)};
            bound = state_version(layer->version)->generation;
        }
    }
    list->checkpoint = state->checkpoint.number + 1;
    struct cluster_command command = {
        .op = CLUSTER_CHECKPOINT, .disk = disk->id, .epoch = disk->epoch,
        .checkpoint = {list->checkpoint, disk->number, disk->number + 1},
        .root = root_of(root), .roots = roots, .root_count = root_count,
        .newest_marker = state->newest_marker, .trimmed = disk->trimmed,
        .list = {.head = address_of(1, 2, 1), .blocks = list->dead.count != 0},
    };
    disk->number++;
    CHECK_EQ(machine_run(&toy.m, &command), 0);
    disk->list_count += list->dead.count != 0;
    disk->layer_count = 0;
    layer_push(disk, generation);
    return true;
}

/* --- trimming --- */

static void kill(struct ref ref)
{
    CHECK(ref.at != 0 && ref.at < log_end);
    log_cells[ref.at].is_live = false;
}

/* Frees a leaf and what it names that is younger; what is dead was freed before. */
static void free_leaf(struct ref leaf, uint32_t bound, uint32_t *steps)
{
    if (leaf.at == 0 || leaf.generation <= bound || !log_cells[leaf.at].is_live)
        return;
    for (uint32_t i = 0; i < FANOUT; i++) {
        struct ref data = log_cells[leaf.at].refs[i];
        if (*steps == 0)
            return;
        if (data.at != 0 && data.generation > bound && log_cells[data.at].is_live) {
            kill(data);
            --*steps;
        }
    }
    if (*steps == 0)
        return;
    kill(leaf);
    --*steps;
}

/* Some lists, from the oldest: all of each, or until a crash in the middle. */
static void trim_lists(struct toy_disk *disk, uint32_t steps)
{
    const struct cluster_disk *state = state_disk(disk->id);
    if (state->collapsing_version != 0) /* D9 */
        return;
    for (uint32_t l = 0; l < disk->list_count && steps > 0; l++) {
        const struct list *list = &disk->lists[l];
        bool is_named = false;
        for (uint32_t j = 0; j < state->list_count; j++)
            is_named = is_named || state->lists[j].checkpoint == list->checkpoint;
        if (!is_named || list->checkpoint <= disk->trimmed)
            continue;
        for (uint32_t i = 0; i < list->dead.count && steps > 0; i++) {
            if (list->dead.at[i].is_subtree) {
                free_leaf(list->dead.at[i].ref, list->dead.at[i].bound, &steps);
            } else {
                kill(list->dead.at[i].ref);
                steps--;
            }
        }
        if (steps > 0)
            disk->trimmed = list->checkpoint;
    }
}

/* --- leases --- */

static struct toy_disk *toy_of(uint64_t id)
{
    for (uint32_t i = 0; i < DISKS_MAX; i++)
        if (toy.disks[i].id == id)
            return &toy.disks[i];
    CHECK(false);
    return NULL;
}

static bool own(struct toy_disk *disk)
{
    const struct cluster_disk *state = state_disk(disk->id);
    struct ref root;
    if (disk->is_owned)
        return true;
    while (!base_root(state, &root)) { /* another disk's log has it */
        const struct cluster_version *version = state_version(state->head_parent);
        struct toy_disk *other = toy_of(version->disk);
        if (!own(other) || !checkpoint(other))
            return false;
        state = state_disk(disk->id);
    }
    CHECK_EQ(RUN(&toy.m, .op = CLUSTER_LEASE_TAKE, .disk = disk->id,
                 .epoch = state->epoch, .node = 1), 0);
    disk->epoch = toy.m.result.epoch;
    disk->is_owned = true;
    disk->trimmed = 0;
    state = state_disk(disk->id);
    if (disk->layer_count == 0)
        layer_push(disk, state->head_generation);
    if (layer_top(disk)->generation < state->head_generation)
        layer_push(disk, state->head_generation);
    return true;
}

static bool layers_are_empty(const struct toy_disk *disk)
{
    for (uint32_t l = 0; l < disk->layer_count; l++) {
        if (disk->layers[l].version != 0)
            return false;
        for (uint32_t i = 0; i < BLOCKS; i++)
            if (disk->layers[l].blocks[i] != UNCHANGED)
                return false;
    }
    return true;
}

/* Everything in the committed root, nobody owns it. */
static bool close_disk(struct toy_disk *disk)
{
    const struct cluster_disk *state = state_disk(disk->id);
    if (!disk->is_owned && state->owner == 0 && layers_are_empty(disk) &&
        state->pending_count == 0)
        return true;
    if (!own(disk) || (!layers_are_empty(disk) && !checkpoint(disk)))
        return false;
    CHECK_EQ(RUN(&toy.m, .op = CLUSTER_LEASE_CLOSE, .disk = disk->id,
                 .epoch = disk->epoch, .flushed = disk->number), 0);
    disk->is_owned = false;
    disk->layer_count = 0;
    return true;
}

/* D7 */
static void tidy(struct toy_disk *disk)
{
    const struct cluster_disk *state = state_disk(disk->id);
    if (state->owner != 0 || disk->is_owned || state->list_count == 0 ||
        state->collapsing_version != 0)
        return;
    disk->trimmed = 0;
    trim_lists(disk, UINT32_MAX);
    CHECK_EQ(RUN(&toy.m, .op = CLUSTER_DISK_TIDY, .disk = disk->id,
                 .epoch = state->epoch, .number = state->checkpoint.number), 0);
}

/* --- what people do --- */

static const char *new_name(void)
{
    static char name[32];
    snprintf(name, sizeof name, "n%u", toy.names++);
    return name;
}

static struct toy_disk *free_slot(void)
{
    for (uint32_t i = 0; i < DISKS_MAX; i++)
        if (toy.disks[i].id == 0 || state_disk(toy.disks[i].id) == NULL)
            return &toy.disks[i];
    return NULL;
}

static struct toy_disk *disk_made(uint64_t id, const uint32_t *model)
{
    struct toy_disk *disk = free_slot();
    CHECK(disk != NULL);
    disk->id = id;
    disk->is_owned = false;
    disk->number = disk->trimmed = 0;
    disk->layer_count = disk->list_count = 0;
    if (model != NULL)
        memcpy(disk->model, model, sizeof disk->model);
    else
        memset(disk->model, 0, sizeof disk->model);
    return disk;
}

static void op_create(void)
{
    if (free_slot() == NULL)
        return;
    CHECK_EQ(RUN(&toy.m, .op = CLUSTER_DISK_CREATE, .name = new_name(),
                 .size_bytes = BLOCKS * BLOCK_SIZE), 0);
    (void)disk_made(toy.m.result.id, NULL);
}

static struct toy_disk *any_disk(void)
{
    struct toy_disk *disk = &toy.disks[draw(DISKS_MAX)];
    const struct cluster_disk *state = disk->id != 0 ? state_disk(disk->id) : NULL;
    return state != NULL && cluster_disk_is_visible(state) ? disk : NULL;
}

static void op_write(struct toy_disk *disk)
{
    if (!own(disk))
        return;
    for (uint64_t n = 1 + draw(4); n > 0; n--) {
        uint32_t first = (uint32_t)draw(BLOCKS);
        bool zero = draw(3) == 0;
        uint32_t count = zero ? 1 + (uint32_t)draw(BLOCKS) : 1 + (uint32_t)draw(2);
        for (uint32_t i = first; i < first + count && i < BLOCKS; i++)
            write_block(disk, i, zero);
    }
}

/* 0: it is not possible now. */
static uint64_t snapshot(struct toy_disk *disk, const char *name)
{
    if (cluster_version_count(toy.m.state) >= VERSIONS_MAX - 2 || !own(disk))
        return 0;
    if (disk->layer_count >= LAYERS_MAX - 2 && !checkpoint(disk))
        return 0;
    struct layer *top = layer_top(disk);
    uint64_t marker = ++disk->number;
    CHECK_EQ(RUN(&toy.m, .op = CLUSTER_SNAPSHOT, .disk = disk->id, .epoch = disk->epoch,
                 .name = name, .marker = marker, .generation = top->generation), 0);
    uint64_t id = toy.m.result.id;
    (void)model_new(id, disk->model);
    top->marker = marker;
    top->version = id;
    layer_push(disk, top->generation + 1);
    return id;
}

static uint64_t any_version(uint64_t disk, bool named)
{
    const struct cluster_version *version = NULL;
    uint64_t skip = draw(4), found = 0;
    while ((version = cluster_version_next(toy.m.state, version)) != NULL) {
        if ((named && version->name[0] == '\0') || (disk != 0 && version->disk != disk) ||
            !cluster_disk_is_visible(state_disk(version->disk)))
            continue;
        found = version->id;
        if (skip-- == 0)
            break;
    }
    return found;
}

static void op_clone(struct toy_disk *disk)
{
    bool live = draw(3) == 0;
    uint64_t version = live ? snapshot(disk, "") : any_version(0, true);
    if (version == 0 || free_slot() == NULL)
        return;
    if (live && draw(4) == 0)
        return; /* the clone failed: nothing holds the branch point */
    CHECK_EQ(RUN(&toy.m, .op = CLUSTER_CLONE, .version = version, .name = new_name(),
                 .count = 1), 0);
    (void)disk_made(toy.m.result.id, model_of(version)->model);
}

static void op_remove_snapshot(void)
{
    uint64_t version = any_version(0, true);
    if (version == 0)
        return;
    CHECK_EQ(RUN(&toy.m, .op = CLUSTER_SNAPSHOT_RM,
                 .disk = state_version(version)->disk, .versions = &version,
                 .version_count = 1), 0);
}

static void op_roll_back(struct toy_disk *disk)
{
    uint64_t version = any_version(disk->id, true);
    if (version == 0 || cluster_version_count(toy.m.state) >= VERSIONS_MAX - 2)
        return;
    const struct cluster_disk *state = state_disk(disk->id);
    if (state->collapsing_version != 0 || !close_disk(disk))
        return;
    state = state_disk(disk->id);
    bool keeps = state->has_root;
    uint64_t epoch = state->epoch;
    CHECK_EQ(RUN(&toy.m, .op = CLUSTER_ROLLBACK, .disk = disk->id, .epoch = epoch,
                 .version = version), 0);
    if (keeps) { /* the old head is a version now */
        const struct cluster_version *old = NULL, *newest = NULL;
        while ((old = cluster_version_next(toy.m.state, old)) != NULL)
            newest = old;
        CHECK(newest->name[0] == '\0' && newest->disk == disk->id);
        (void)model_new(newest->id, disk->model);
    }
    memcpy(disk->model, model_of(version)->model, sizeof disk->model);
    state = state_disk(disk->id);
    disk->number = max_u64(disk->number, state->checkpoint.covers);
    disk->trimmed = 0;
}

static void op_trash(struct toy_disk *disk)
{
    if (!close_disk(disk))
        return;
    CHECK_EQ(RUN(&toy.m, .op = CLUSTER_DISK_TRASH, .disk = disk->id,
                 .epoch = state_disk(disk->id)->epoch, .wall_ns = 5), 0);
}

static void op_from_trash(void)
{
    const struct cluster_disk *disk = NULL;
    while ((disk = cluster_trash_next(toy.m.state, disk)) != NULL)
        if (!(disk->flags & DISK_REMOVED) && draw(2) == 0)
            break;
    if (disk == NULL)
        return;
    if (draw(3) == 0)
        CHECK_EQ(RUN(&toy.m, .op = CLUSTER_DISK_RESTORE, .disk = disk->id,
                     .name = new_name()), 0);
    else
        CHECK_EQ(RUN(&toy.m, .op = CLUSTER_DISK_REMOVE, .disk = disk->id), 0);
}

/* --- reclaim --- */

static void walk_leaves(struct ref leaf, struct ref other, uint32_t bound,
                        uint32_t *steps)
{
    if (leaf.at == 0 || leaf.at == other.at || leaf.generation <= bound ||
        !log_cells[leaf.at].is_live)
        return;
    CHECK(other.at == 0 || log_cells[other.at].is_live);
    for (uint32_t i = 0; i < FANOUT && *steps > 0; i++) {
        struct ref data = log_cells[leaf.at].refs[i];
        uint32_t there = other.at != 0 ? log_cells[other.at].refs[i].at : 0;
        if (data.at == 0 || data.at == there || data.generation <= bound ||
            !log_cells[data.at].is_live)
            continue;
        kill(data);
        --*steps;
    }
    if (*steps == 0)
        return;
    kill(leaf);
    --*steps;
}

/* V4. True when it came to its end. */
static bool walk(struct ref root, struct ref other, uint32_t bound, uint32_t steps)
{
    if (root.at == 0 || root.at == other.at || root.generation <= bound ||
        !log_cells[root.at].is_live)
        return true;
    CHECK(other.at == 0 || log_cells[other.at].is_live);
    for (uint32_t i = 0; i < FANOUT && steps > 0; i++) {
        struct ref none = {0};
        walk_leaves(log_cells[root.at].refs[i],
                    other.at != 0 ? log_cells[other.at].refs[i] : none, bound, &steps);
    }
    if (steps == 0)
        return false;
    kill(root);
    return true;
}

/* A version that can go, or is going: one step. False: there is none. */
static bool reclaim_version(uint32_t steps)
{
    const struct cluster_version *version = NULL, *found = NULL;
    uint64_t skip = draw(3);
    while ((version = cluster_spare_next(toy.m.state, version)) != NULL) {
        if (!version->collapsing && !cluster_version_removable(toy.m.state, version))
            continue;
        found = version;
        if (skip-- == 0)
            break;
    }
    if (found == NULL)
        return false;
    uint64_t id = found->id;
    if (!found->collapsing) {
        const struct cluster_disk *head = cluster_head_next(found, NULL);
        CHECK_EQ(RUN(&toy.m, .op = CLUSTER_COLLAPSE_BEGIN, .version = id,
                     .disk = head != NULL ? head->id : 0,
                     .epoch = head != NULL ? head->epoch : 0,
                     .number = head != NULL ? head->checkpoint.number : 0), 0);
        return true;
    }
    const struct cluster_version *parent = state_version(found->parent);
    if (walk(ref_of(&found->root), ref_of(&found->against),
             parent != NULL ? parent->generation : 0, steps))
        CHECK_EQ(RUN(&toy.m, .op = CLUSTER_COLLAPSE_END, .version = id), 0);
    return true;
}

static bool holds_live(uint64_t disk)
{
    for (uint32_t i = 1; i < log_end; i++)
        if (log_cells[i].disk == disk && log_cells[i].is_live)
            return true;
    return false;
}

static bool purge(const struct cluster_disk *disk, uint32_t steps)
{
    struct toy_disk *own_disk = toy_of(disk->id);
    uint64_t id = disk->id;
    if (!(disk->flags & DISK_SHARED)) {
        CHECK_EQ(RUN(&toy.m, .op = CLUSTER_DISK_PURGED, .disk = id), 0);
        for (uint32_t i = 1; i < log_end; i++)
            if (log_cells[i].disk == id)
                log_cells[i].is_live = false;
        return true;
    }
    if (disk->list_count > 0) {
        tidy(own_disk);
        return true;
    }
    if (!disk->has_root || walk(ref_of(&disk->root), (struct ref){0},
                                cluster_disk_bound(toy.m.state, disk), steps))
        CHECK_EQ(RUN(&toy.m, .op = CLUSTER_DISK_PURGED, .disk = id), 0);
    return true;
}

static bool reclaim_disk(uint32_t steps)
{
    const struct cluster_disk *disk = NULL;
    while ((disk = cluster_trash_next(toy.m.state, disk)) != NULL) {
        if (cluster_disk_purgeable(toy.m.state, disk))
            return purge(disk, steps);
        if ((disk->flags & DISK_HEADLESS) && disk->version_count == 0 &&
            !holds_live(disk->id)) {
            CHECK_EQ(RUN(&toy.m, .op = CLUSTER_DISK_PURGED, .disk = disk->id), 0);
            return true;
        }
    }
    return false;
}

/* --- histories --- */

static void step(void)
{
    struct toy_disk *disk = any_disk();
    uint64_t what = draw(100);
    if (what < 6 || disk == NULL)
        op_create();
    if (disk == NULL || what < 6)
        return;
    if (what < 30)
        op_write(disk);
    else if (what < 40)
        (void)snapshot(disk, new_name());
    else if (what < 46)
        op_clone(disk);
    else if (what < 56)
        op_remove_snapshot();
    else if (what < 60)
        op_roll_back(disk);
    else if (what < 64)
        op_trash(disk);
    else if (what < 68)
        op_from_trash();
    else if (what < 76 && disk->is_owned)
        (void)checkpoint(disk);
    else if (what < 82 && disk->is_owned)
        trim_lists(disk, 1 + (uint32_t)draw(40));
    else if (what < 84)
        (void)close_disk(disk);
    else if (what < 86)
        tidy(disk);
    else if (what < 88)
        disk->is_owned = false; /* killed; its log is replayed */
    else if (what < 90)
        (void)reclaim_disk(1 + (uint32_t)draw(8));
    else
        (void)reclaim_version(1 + (uint32_t)draw(5));
}

static void mark(struct ref root, bool *marks)
{
    uint32_t blocks[BLOCKS];
    read_tree(root, blocks);
    marks[root.at] = true;
    for (uint32_t i = 0; i < FANOUT && root.at != 0; i++)
        marks[log_cells[root.at].refs[i].at] = true;
    for (uint32_t i = 0; i < BLOCKS; i++)
        marks[blocks[i]] = true;
}

static void settle_disks(void)
{
    for (uint32_t d = 0; d < DISKS_MAX; d++) {
        struct toy_disk *disk = &toy.disks[d];
        const struct cluster_disk *state = disk->id != 0 ? state_disk(disk->id) : NULL;
        if (state == NULL || (state->flags & DISK_HEADLESS))
            continue;
        if (cluster_disk_is_visible(state))
            CHECK(close_disk(disk));
        tidy(disk);
    }
}

/* Everything that can go goes; what is live then is what is reached. */
static void settle(void)
{
    bool more = true;
    while (more) {
        settle_disks();
        more = reclaim_disk(UINT32_MAX) || reclaim_version(UINT32_MAX);
    }
    settle_disks();
}

static void check_settled(void)
{
    static bool marks[ADDRESSES_MAX];
    const struct cluster_disk *disk = NULL;
    const struct cluster_version *version = NULL;
    memset(marks, 0, log_end * sizeof *marks);
    while ((disk = cluster_disk_next(toy.m.state, disk)) != NULL)
        if (disk->has_root)
            mark(ref_of(&disk->root), marks);
    while ((version = cluster_version_next(toy.m.state, version)) != NULL) {
        CHECK(!version->pending && !version->collapsing);
        CHECK(version->name[0] != '\0' || version->child_count > 1);
        mark(ref_of(&version->root), marks);
    }
    for (uint32_t i = 1; i < log_end; i++)
        CHECK_EQ(log_cells[i].is_live, marks[i]);
}

static void remove_all(void)
{
    for (uint32_t d = 0; d < DISKS_MAX; d++) {
        struct toy_disk *disk = &toy.disks[d];
        const struct cluster_disk *state = disk->id != 0 ? state_disk(disk->id) : NULL;
        if (state != NULL && cluster_disk_is_visible(state))
            op_trash(disk);
        state = disk->id != 0 ? state_disk(disk->id) : NULL;
        if (state != NULL && !(state->flags & DISK_REMOVED))
            CHECK_EQ(RUN(&toy.m, .op = CLUSTER_DISK_REMOVE, .disk = disk->id), 0);
    }
}

static void history(uint64_t seed)
{
    memset(&toy.versions, 0, sizeof toy.versions);
    for (uint32_t i = 0; i < DISKS_MAX; i++)
        toy.disks[i].id = 0;
    toy.random = seed * 0x9e3779b97f4a7c15U | 1;
    toy.names = 0;
    toy.m = machine_create();
    toy.m.quick = true;
    log_end = 1;
    uint64_t steps = 20 + draw(100), look = 1 + draw(10);
    for (uint64_t i = 0; i < steps && log_end < ADDRESSES_MAX / 2; i++) {
        step();
        if (i % look == 0)
            check_all();
    }
    check_all();
    settle();
    check_all();
    check_settled();
    if (seed % 4 == 0) {
        remove_all();
        settle();
        check_settled();
        CHECK_EQ(cluster_disk_count(toy.m.state), 0);
        CHECK_EQ(cluster_version_count(toy.m.state), 0);
    }
    machine_done(&toy.m);
}

static uint64_t current;

static void say_seed(void)
{
    if (current != 0)
        fprintf(stderr, "history %llu\n", (unsigned long long)current);
}

int main(int argc, char **argv)
{
    uint64_t count = argc > 1 ? strtoull(argv[1], NULL, 10) : seeds_of(20000);
    uint64_t first = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    atexit(say_seed);
    for (uint64_t i = 0; i < count; i++) {
        current = first + i;
        history(current);
    }
    current = 0;
    return 0;
}
