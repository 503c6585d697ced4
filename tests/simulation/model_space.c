/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the host must store, and what it may. The version tree is worked out anew from
 * lines and snapshots:
 *
 *   - A version's parent is the newest snapshot before it on its line that the tree
 *     holds, else the line's base, or what that grew from.
 *   - A snapshot without a name stays only where the tree branches.
 *   - A version has blocks of its own where something changed since its parent, and so
 *     has a map node over each of them, unless all under it are zeros.
 *
 * Data blocks are exact but for heads that may be at any of several batches: those come
 * last, and count for what is justified, not for what must be there. Nodes are a bound: a
 * tree that grows by several levels has a few more, those of MAP_HEIGHT_MAX for each
 * version are added for that.
 */
#include "cow/map_format.h"
#include "tests/simulation/model.h"
#include "tests/simulation/run.h"

/* A point of a line. */
struct point {
    const struct line *line; /* NULL: nothing */
    uint64_t number;
    struct model_snap *snap; /* NULL: a head, or nothing */
};

/* --- the tree --- */

/* What the line's state at `number` grew from; a snapshot at that number is itself. */
static struct point parent_of(const struct model *model, const struct line *line,
                              uint64_t number)
{
    for (;;) {
        struct model_snap *snap, *found = NULL;
        TAILQ_FOREACH (snap, &model->snaps, link) {
            if (snap->is_kept && snap->line == line && snap->number < number &&
                (found == NULL || snap->number > found->number))
                found = snap;
        }
        if (found == NULL && line->base != NULL && line->base->is_kept)
            found = line->base;
        if (found != NULL)
            return (struct point){found->line, found->number, found};
        if (line->base == NULL)
            return (struct point){NULL, 0, NULL};
        number = line->base->number;
        line = line->base->line;
    }
}

static void count_child(const struct model *model, const struct line *line,
                        uint64_t number)
{
    struct point parent = parent_of(model, line, number);
    if (parent.snap != NULL)
        parent.snap->children++;
}

/* Drops unnamed snapshots where nothing branches. True: there was one. */
static bool prune(struct model *model)
{
    struct model_disk *disk;
    struct model_snap *snap;
    TAILQ_FOREACH (snap, &model->snaps, link)
        snap->children = 0;
    TAILQ_FOREACH (snap, &model->snaps, link) {
        if (snap->is_kept)
            count_child(model, snap->line, snap->number);
    }
    TAILQ_FOREACH (disk, &model->disks, link)
        count_child(model, disk->line, UINT64_MAX);
    TAILQ_FOREACH (snap, &model->snaps, link) {
        if (snap->is_kept && snap->name[0] == '\0' && snap->children <= 1) {
            snap->is_kept = false;
            return true; /* one at a time: others count anew */
        }
    }
    return false;
}

/* --- lists of places --- */

struct range {
    uint64_t first, end;
};

struct places {
    struct range *all;
    size_t count, cap;
};

static void add(struct places *places, uint64_t first, uint64_t end)
{
    if (places->count == places->cap) {
        places->cap = places->cap ? places->cap * 2 : 256;
        places->all = realloc(places->all, places->cap * sizeof *places->all);
        assert(places->all != NULL);
    }
    places->all[places->count++] = (struct range){first, end};
}

static int compare_ranges(const void *a, const void *b)
{
    const struct range *x = a, *y = b;
    return x->first < y->first ? -1 : x->first > y->first;
}

/* Sorts, and joins what touches. */
static void tidy(struct places *places)
{
    size_t to = 0;
    if (places->count == 0)
        return;
    qsort(places->all, places->count, sizeof *places->all, compare_ranges);
    for (size_t i = 1; i < places->count; i++) {
        if (places->all[i].first <= places->all[to].end)
            places->all[to].end = max_u64(places->all[to].end, places->all[i].end);
        else
            places->all[++to] = places->all[i];
    }
    places->count = to + 1;
}

/* One level up in the map. */
static void lift(struct places *places)
{
    for (size_t i = 0; i < places->count; i++) {
        places->all[i].first /= MAP_FANOUT;
        places->all[i].end = div_up_u64(places->all[i].end, MAP_FANOUT);
    }
    tidy(places);
}

/* How many places are in both; both are tidy. */
static uint64_t common(const struct places *a, const struct places *b)
{
    uint64_t sum = 0;
    for (size_t i = 0, k = 0; i < a->count && k < b->count;) {
        uint64_t first = max_u64(a->all[i].first, b->all[k].first);
        uint64_t end = min_u64(a->all[i].end, b->all[k].end);
        sum += first < end ? end - first : 0;
        if (a->all[i].end < b->all[k].end)
            i++;
        else
            k++;
    }
    return sum;
}

/* --- one version --- */

static bool was_written(const struct version *version, uint64_t after, uint64_t until)
{
    for (; version != NULL; version = version->older) {
        uint64_t number = version_number(version);
        if (number > after && number <= until)
            return true;
    }
    return false;
}

static void add_changes(struct places *places, const struct line *line, uint64_t after,
                        uint64_t until)
{
    for (size_t i = 0; i < line->slot_count; i++) {
        const struct block_slot *slot = &line->slots[i];
        if (slot->block_plus_one != 0 && was_written(slot->newest, after, until))
            add(places, slot->block_plus_one - 1, slot->block_plus_one);
    }
    for (size_t i = 0; i < line->zeroed_count; i++) {
        const struct zeroed *zeroed = &line->zeroed[i];
        uint64_t number = version_number(&zeroed->version);
        if (number > after && number <= until)
            add(places, zeroed->first, zeroed->end);
    }
}

/* What changed between a version and its parent. */
static struct places changes_since(struct point parent, const struct line *line,
                                   uint64_t number)
{
    struct places places = {0};
    while (line != parent.line) {
        add_changes(&places, line, 0, number);
        if (line->base == NULL)
            break;
        number = line->base->number;
        line = line->base->line;
    }
    if (line == parent.line)
        add_changes(&places, line, parent.number, number);
    tidy(&places);
    return places;
}

/* Marks the data that can be reached; returns where it is. */
static struct places take_data(struct model *model, const struct line *line,
                               uint64_t number, struct model_space *space)
{
    struct places places = {0};
    for (const struct line *l = line; l != NULL; l = l->base ? l->base->line : NULL) {
        for (size_t i = 0; i < l->slot_count; i++) {
            if (l->slots[i].block_plus_one == 0)
                continue;
            uint64_t block = l->slots[i].block_plus_one - 1;
            /* Not const: it is marked. It is none of the constant zeros. */
            struct version *version =
                (struct version *)(uintptr_t)line_at(line, block, number);
            if (version->is_zero)
                continue;
            add(&places, block, block + 1);
            space->data_blocks += version->mark != model->marks;
            version->mark = model->marks;
        }
    }
    tidy(&places);
    return places;
}

static void take_version(struct model *model, struct point parent,
                         const struct line *line, uint64_t number,
                         struct model_space *space)
{
    struct places data = take_data(model, line, number, space);
    struct places changes = changes_since(parent, line, number);
    space->versions++;
    space->node_blocks += MAP_HEIGHT_MAX;
    for (unsigned level = 0; level < MAP_HEIGHT_MAX; level++) {
        lift(&data);
        lift(&changes);
        space->node_blocks += common(&data, &changes);
    }
    free(data.all);
    free(changes.all);
}

void model_space(struct model *model, struct model_space *ret)
{
    struct model_disk *disk;
    struct model_snap *snap;
    *ret = (struct model_space){0};
    model->marks++;
    TAILQ_FOREACH (snap, &model->snaps, link)
        snap->is_kept = true;
    while (prune(model))
        ;
    TAILQ_FOREACH (snap, &model->snaps, link) {
        if (snap->is_kept)
            take_version(model, parent_of(model, snap->line, snap->number), snap->line,
                         snap->number, ret);
    }
    for (int in_doubt = 0; in_doubt < 2; in_doubt++) {
        if (in_doubt)
            ret->least_blocks = ret->data_blocks;
        TAILQ_FOREACH (disk, &model->disks, link) {
            const struct line *line = disk->line;
            struct point parent = parent_of(model, line, UINT64_MAX);
            if (in_doubt != (line->acked < line->last))
                continue;
            take_version(model, parent, line, line->last, ret);
            if (in_doubt) /* it may be at any of these */
                take_version(model, parent, line, line->acked, ret);
        }
    }
}
