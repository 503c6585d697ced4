/* SPDX-License-Identifier: Apache-2.0 */
#include "cow/dead.h"

/* Room for one more; realloc keeps what is there when memory is out. */
static int grow(void **array, uint32_t *cap, uint32_t count, size_t size)
{
    uint32_t wanted = *cap ? *cap * 2 : 16;
    void *bigger;

    if (count < *cap)
        return 0;
    bigger = realloc(*array, wanted * size);
    if (!bigger)
        return -ENOMEM;
    *array = bigger;
    *cap = wanted;
    return 0;
}

static int grow_runs(struct dead_entries *entries)
{
    void *runs = entries->runs;
    int rc = grow(&runs, &entries->run_cap, entries->run_count, sizeof *entries->runs);

    entries->runs = runs;
    return rc;
}

/* Blocks of different extents are never one run. */
static bool follows(const struct dead_run *run, struct address address)
{
    return address.v == run->address.v + run->count && address_block(address) != 0;
}

int dead_entries_add(struct dead_entries *entries, struct address address, uint32_t count)
{
    struct dead_run *last =
        entries->run_count ? &entries->runs[entries->run_count - 1] : NULL;

    assert(count > 0 && address_block(address) + count <= EXTENT_BLOCKS);
    if (last && follows(last, address)) {
        last->count += count;
        return 0;
    }
    int rc = grow_runs(entries);
    if (rc == 0)
        entries->runs[entries->run_count++] = (struct dead_run){address, count};
    return rc;
}

int dead_entries_add_subtree(struct dead_entries *entries,
                             const struct dead_subtree *subtree)
{
    void *subtrees = entries->subtrees;
    int rc = grow(&subtrees, &entries->subtree_cap, entries->subtree_count,
                  sizeof *entries->subtrees);

    entries->subtrees = subtrees;
    if (rc == 0)
        entries->subtrees[entries->subtree_count++] = *subtree;
    return rc;
}

static int compare(const void *a, const void *b)
{
    const struct dead_run *left = a, *right = b;

    return left->address.v < right->address.v ? -1 : left->address.v > right->address.v;
}

void dead_entries_sort(struct dead_entries *entries)
{
    uint32_t kept = 0;

    if (entries->run_count < 2)
        return;
    qsort(entries->runs, entries->run_count, sizeof *entries->runs, compare);
    for (uint32_t i = 1; i < entries->run_count; i++) {
        struct dead_run *last = &entries->runs[kept], run = entries->runs[i];
        uint64_t end = last->address.v + last->count;
        if (run.address.v > end ||
            !address_equal(address_extent(run.address), address_extent(last->address))) {
            entries->runs[++kept] = run;
            continue;
        }
        end = max_u64(end, run.address.v + run.count);
        last->count = (uint32_t)(end - last->address.v);
    }
    entries->run_count = kept + 1;
}

void dead_entries_drop(struct dead_entries *entries, uint32_t runs, uint32_t subtrees)
{
    assert(runs <= entries->run_count && subtrees <= entries->subtree_count);
    entries->run_count -= runs;
    entries->subtree_count -= subtrees;
    if (entries->run_count > 0)
        memmove(entries->runs, entries->runs + runs,
                entries->run_count * sizeof *entries->runs);
    if (entries->subtree_count > 0)
        memmove(entries->subtrees, entries->subtrees + subtrees,
                entries->subtree_count * sizeof *entries->subtrees);
}

int dead_entries_append(struct dead_entries *entries, const struct dead_entries *from)
{
    uint32_t runs = entries->run_count, subtrees = entries->subtree_count;
    int rc = 0;

    /* One by one, without joining: what was there keeps its place and size. */
    for (uint32_t i = 0; rc == 0 && i < from->run_count; i++) {
        rc = grow_runs(entries);
        if (rc == 0)
            entries->runs[entries->run_count++] = from->runs[i];
    }
    for (uint32_t i = 0; rc == 0 && i < from->subtree_count; i++)
        rc = dead_entries_add_subtree(entries, &from->subtrees[i]);
    if (rc < 0) {
        entries->run_count = runs;
        entries->subtree_count = subtrees;
    }
    return rc;
}

void dead_entries_done(struct dead_entries *entries)
{
    free(entries->runs);
    free(entries->subtrees);
    *entries = (struct dead_entries){.runs = NULL};
}

/* --- blocks --- */

static void put_subtree(struct dead_entry_format *at, const struct dead_subtree *subtree)
{
    at[0] = (struct dead_entry_format){
        .address = le64_of(subtree->entry.address.v),
        .kind = DEAD_SUBTREE,
        .level = subtree->level,
        .value = le32_of(subtree->bound),
    };
    at[1] = (struct dead_entry_format){
        .address = le64_of(subtree->entry.generation),
        .kind = DEAD_NODE,
        .value = le32_of(subtree->entry.crc),
    };
}

void dead_block_encode(uint64_t checkpoint, struct address previous,
                       uint32_t previous_crc, struct dead_entries *from, void *ret_bytes)
{
    struct dead_block_format *format = ret_bytes;
    uint32_t count = 0;

    memset(format, 0, sizeof *format);
    while (from->subtree_count > 0 && count + 2 <= DEAD_ENTRIES_MAX) {
        put_subtree(&format->entries[count], &from->subtrees[--from->subtree_count]);
        count += 2;
    }
    while (from->run_count > 0 && count < DEAD_ENTRIES_MAX) {
        const struct dead_run *run = &from->runs[--from->run_count];
        format->entries[count++] = (struct dead_entry_format){
            .address = le64_of(run->address.v),
            .kind = DEAD_BLOCKS,
            .value = le32_of(run->count),
        };
    }
    assert(count > 0);
    format->magic = le32_of(DEAD_MAGIC);
    format->version = le16_of(DEAD_VERSION);
    format->count = le16_of((uint16_t)count);
    format->checkpoint = le64_of(checkpoint);
    format->previous = le64_of(previous.v);
    format->previous_crc = le32_of(previous_crc);
}

static bool names_blocks(struct address address, uint32_t count)
{
    return address_group(address) > 0 && count > 0 &&
           count <= EXTENT_BLOCKS - address_block(address);
}

static int decode_subtree(const struct dead_entry_format *at, uint32_t left,
                          struct dead_entries *entries)
{
    struct dead_subtree subtree = {
        .entry.address = {le64_get(at[0].address)},
        .bound = le32_get(at[0].value),
        .level = at[0].level,
    };

    if (left < 2 || at[1].kind != DEAD_NODE || subtree.level >= MAP_HEIGHT_MAX ||
        !names_blocks(subtree.entry.address, 1) || le64_get(at[1].address) > UINT32_MAX)
        return -PLX_EFORMAT;
    subtree.entry.crc = le32_get(at[1].value);
    subtree.entry.generation = (uint32_t)le64_get(at[1].address);
    return dead_entries_add_subtree(entries, &subtree);
}

static int decode_entries(const struct dead_block_format *format, uint32_t count,
                          struct dead_entries *entries)
{
    int rc = 0;

    for (uint32_t i = 0; rc == 0 && i < count; i++) {
        const struct dead_entry_format *at = &format->entries[i];
        struct address address = {le64_get(at->address)};
        if (at->kind == DEAD_SUBTREE)
            rc = decode_subtree(at, count - i++, entries);
        else if (at->kind == DEAD_BLOCKS && names_blocks(address, le32_get(at->value)))
            rc = dead_entries_add(entries, address, le32_get(at->value));
        else
            rc = -PLX_EFORMAT;
    }
    return rc;
}

int dead_block_decode(const void *bytes, struct dead_block *ret_block)
{
    const struct dead_block_format *format = bytes;
    struct dead_block block = {
        .checkpoint = le64_get(format->checkpoint),
        .previous = {le64_get(format->previous)},
        .previous_crc = le32_get(format->previous_crc),
    };
    uint32_t count = le16_get(format->count);

    if (le32_get(format->magic) != DEAD_MAGIC)
        return -PLX_EFORMAT;
    if (le16_get(format->version) > DEAD_VERSION)
        return -PLX_ENEWER;
    if (le16_get(format->version) != DEAD_VERSION || count == 0 ||
        count > DEAD_ENTRIES_MAX ||
        (!address_is_null(block.previous) && !names_blocks(block.previous, 1)))
        return -PLX_EFORMAT;
    int rc = decode_entries(format, count, &block.entries);
    if (rc < 0) {
        dead_entries_done(&block.entries);
        return rc;
    }
    *ret_block = block;
    return 0;
}
