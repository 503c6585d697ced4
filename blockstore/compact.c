/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Moves the live blocks of an extent, or of a part of it, to pieces of shared slabs.
 *
 * Happy path: the layout that will be is fixed first: all that is live now. The blocks
 * are read, checked and written side by side into new pieces, with a digest in place of
 * the headers; a sync; one synced record with the new runs and bitmaps; then, when the
 * reads that began before have drained, the old pieces are free. Blocks that die
 * meanwhile keep their place in the new layout. Nothing else changes a layout or the
 * runs of a final extent, and the extent's lock is held for the change alone.
 *
 * A part of an extent is a stretch of whole pieces. What replaces it is whole pieces,
 * too, unless it is the end, so that all behind it stays where it is: up to 15 dead
 * blocks keep a place for that.
 *
 * What can fail: a block that fails its check is moved as it is, so that readers see
 * the same error as before. If a block, a header or the digest cannot be read, the
 * extent stays where it is. Whatever fails before the record leaves nothing but free
 * pieces; a failed sync or record is the store's end, and both copies stay.
 *
 * On close it ends at the next chunk.
 */
#include "blockstore/compact.h"

#define CHUNK_BLOCKS ((uint32_t)(COMPACT_CHUNK_BYTES / BLOCK_SIZE))
#define CHUNKS       2U /* one is filled while the other is written */

struct chunk {
    struct compaction *compaction;
    struct file_io io;
    struct iovec iov;
    uint32_t len, cap; /* blocks */
    bool is_busy;
};

struct compaction {
    struct store *store;
    struct section section;
    async int (*pace)(void *arg);
    void *arg;
    struct inspect *ins;
    uint64_t serial;
    bool new_digest, is_last; /* the section goes to the end of the blocks */
    uint32_t stored;          /* in the new layout */
    uint32_t section_blocks;  /* of these, in the section */
    uint32_t digest_count;    /* blocks of the digest */
    struct runs to;           /* new pieces: of the section, then of the digest */
    struct runs all, old;     /* as they will be; what will be free */
    struct digest_entry_format *entries;
    uint32_t entry_count;
    struct chunk chunks[CHUNKS];
    uint32_t filling;
    uint32_t placed; /* blocks put into `to` */
    int write_result;
    uint64_t bytes_written;
    struct waitlist written;
    uint8_t layout[BITMAP_BYTES];
    uint8_t digest_block[BLOCK_SIZE];
};

/* --- writing --- */

static void chunk_written(struct file_io *io)
{
    struct chunk *chunk = container_of(io, struct chunk, io);
    struct compaction *c = chunk->compaction;
    if (io->result < 0 && c->write_result == 0)
        c->write_result = io->result;
    chunk->is_busy = false;
    chunk->len = 0;
    waitlist_wake_all(&c->written);
}

static void chunk_submit(struct compaction *c)
{
    struct chunk *chunk = &c->chunks[c->filling];
    if (chunk->len == 0)
        return;
    chunk->iov.iov_len = (size_t)chunk->len * BLOCK_SIZE;
    chunk->io.op = FILE_WRITE;
    chunk->io.iov = &chunk->iov;
    chunk->io.iov_count = 1;
    chunk->io.done = chunk_written;
    chunk->is_busy = true;
    c->bytes_written += chunk->iov.iov_len;
    c->filling = (c->filling + 1) % CHUNKS;
    file_submit(c->store->file, &chunk->io);
}

/* A copy of the block goes to the next place; NULL: zeros, nobody will read it. */
static async int put(struct compaction *c, const uint8_t *bytes)
{
    struct chunk *chunk = &c->chunks[c->filling];
    assert(!chunk->is_busy);
    if (chunk->len == 0) {
        chunk->cap = runs_find(&c->to, c->placed, CHUNK_BLOCKS, &chunk->io.offset_bytes);
        assert(chunk->cap > 0);
    }
    uint8_t *at = (uint8_t *)chunk->iov.iov_base + (size_t)chunk->len * BLOCK_SIZE;
    if (bytes != NULL)
        memcpy(at, bytes, BLOCK_SIZE);
    else
        memset(at, 0, BLOCK_SIZE);
    c->placed++;
    if (++chunk->len < chunk->cap)
        return 0;
    chunk_submit(c);
    while (c->chunks[c->filling].is_busy)
        waitlist_wait(&c->written);
    return c->write_result;
}

/* Waits for all that was put. */
static async int put_end(struct compaction *c)
{
    chunk_submit(c);
    for (uint32_t i = 0; i < CHUNKS; i++)
        while (c->chunks[i].is_busy)
            waitlist_wait(&c->written);
    return c->write_result;
}

/* --- the plan --- */

/* The layout that will be; what of the section is in it. */
static void plan_layout(struct compaction *c, const struct extent *e)
{
    const uint8_t *live = e->live_map != NULL ? e->live_map : e->layout;
    uint32_t pieces = pieces_of(e->stored);
    struct section *s = &c->section;
    if (e->layout != NULL)
        memcpy(c->layout, e->layout, BITMAP_BYTES);
    else
        bitmap_fill(c->layout, e->length);
    s->to = min_u32(s->to, pieces);
    s->from = min_u32(s->from, s->to);
    c->is_last = s->to == pieces;
    c->ins->from = bitmap_select(c->layout, s->from * PIECE_BLOCKS);
    c->ins->to = c->is_last ? EXTENT_BLOCKS
                            : bitmap_select(c->layout, s->to * PIECE_BLOCKS);
    uint32_t stay = 0;
    for (uint32_t b = c->ins->from; b < c->ins->to; b++)
        stay += bitmap_get(c->layout, b) && (live == NULL || bitmap_get(live, b));
    uint32_t fill = c->is_last ? 0 : (PIECE_BLOCKS - stay % PIECE_BLOCKS) % PIECE_BLOCKS;
    c->section_blocks = stay + fill;
    for (uint32_t b = c->ins->from; b < c->ins->to && live != NULL; b++) {
        if (!bitmap_get(c->layout, b) || bitmap_get(live, b))
            continue;
        if (fill > 0)
            fill--;
        else
            bitmap_clear(c->layout, b);
    }
    assert(fill == 0);
    c->stored = bitmap_rank(c->layout, EXTENT_BLOCKS);
}

/* The runs that will be, and those that will be free. */
static int plan_runs(struct compaction *c, const struct extent *e)
{
    const struct section *s = &c->section;
    uint32_t pieces = pieces_of(e->stored), end = runs_pieces(&e->runs);
    uint32_t moved = pieces_of(c->section_blocks), added = runs_pieces(&c->to);
    int result = runs_add_part(&c->all, &e->runs, 0, s->from);
    if (result == 0)
        result = runs_add_part(&c->all, &c->to, 0, moved);
    if (result == 0)
        result = runs_add_part(&c->all, &e->runs, s->to, pieces);
    if (result == 0 && c->new_digest)
        result = runs_add_part(&c->all, &c->to, moved, added);
    else if (result == 0)
        result = runs_add_part(&c->all, &e->runs, pieces, end);
    if (result == 0)
        result = runs_add_part(&c->old, &e->runs, s->from, s->to);
    if (result == 0 && c->new_digest)
        result = runs_add_part(&c->old, &e->runs, pieces, end);
    return result;
}

/* With the extent held. */
static int plan(struct compaction *c)
{
    struct extent *e = c->ins->extent;
    struct section *s = &c->section;
    if (s->known != NULL ? !compact_may_be(e) : !compact_is_fit(e))
        return -PLX_EPRECONDITION;
    c->serial = e->serial;
    plan_layout(c, e);
    bool is_whole = s->from == 0 && c->is_last;
    c->new_digest = s->digest || is_whole || e->layout == NULL;
    if (c->new_digest)
        c->digest_count = digest_blocks(e->live);
    int result = space_take_pieces(
        c->store, &c->to, pieces_of(c->section_blocks) + pieces_of(c->digest_count));
    return result == 0 ? plan_runs(c, e) : result;
}

/* --- copying --- */

static void unfit(struct compaction *c, const char *what, uint32_t block, int code)
{
    c->ins->extent->is_unfit = true;
    log_warning(c->store->loop,
                "store %s: extent %llx is not compacted: %s at block %u: %s",
                c->store->path, (unsigned long long)c->section.address.v, what, block,
                err_text(code));
}

/* One block on its way; an error ends it. */
static async int copy_one(struct compaction *c, const struct inspected *in)
{
    const struct extent *e = c->ins->extent;
    bool is_bad = in->was_bad;
    if (in->is_header && in->code != 0 && c->section.known == NULL) {
        unfit(c, "header", in->block, in->code);
        return -PLX_EDAMAGED;
    }
    if (!bitmap_get(c->layout, in->block))
        return 0;
    bool is_live = extent_is_live(e, in->block, 1);
    if (is_live && !in->is_known && c->section.known != NULL)
        return -PLX_EDAMAGED;
    if (in->code == -PLX_ECHECKSUM && is_live && !is_bad) {
        is_bad = true;
        log_warning(c->store->loop, "store %s: extent %llx block %u: %s, moved as it is",
                    c->store->path, (unsigned long long)e->address.v, in->block,
                    err_text(in->code));
    } else if (in->code != 0 && in->code != -PLX_ECHECKSUM && is_live) {
        unfit(c, "block", in->block, in->code);
        return -PLX_EDAMAGED;
    }
    if (c->new_digest && is_live && in->is_known)
        digest_entry_encode(in->block, &in->entry, is_bad, &c->entries[c->entry_count++]);
    if (in->block < c->ins->from || in->block >= c->ins->to)
        return 0;
    return put(c, in->bytes);
}

/* Lets others go first, without standing in their way. */
static async int pause_copy(struct compaction *c)
{
    inspect_release(c->ins);
    int result = c->pace(c->arg);
    int resumed = inspect_resume(c->ins);
    if (result == 0)
        result = resumed;
    if (result == 0 && c->ins->extent->serial != c->serial)
        result = -PLX_EPRECONDITION;
    return result;
}

static async int copy(struct compaction *c)
{
    uint64_t paced = 0;
    int more;
    struct inspected in;
    if (c->ins->digest_code != 0 && c->ins->extent->layout != NULL &&
        c->section.known == NULL) {
        unfit(c, "digest", 0, c->ins->digest_code);
        return -PLX_EDAMAGED;
    }
    while ((more = inspect_next(c->ins, &in)) > 0) {
        int result = c->ins->extent->serial == c->serial ? copy_one(c, &in)
                                                         : -PLX_EPRECONDITION;
        uint64_t done = c->ins->bytes_read + c->bytes_written;
        if (result == 0 && done - paced >= COMPACT_CHUNK_BYTES) {
            paced = done;
            result = pause_copy(c);
        }
        if (result < 0)
            return result;
    }
    if (more < 0)
        return more;
    assert(c->placed == c->section_blocks);
    return 0;
}

static async int write_digest(struct compaction *c)
{
    const struct extent *e = c->ins->extent;
    struct digest_head head = {
        .cluster = c->store->super.cluster,
        .disk = e->disk,
        .extent = e->address,
        .nonce = e->nonce,
        .blocks = digest_blocks(c->entry_count), /* some may have died meanwhile */
    };
    assert(head.blocks <= c->digest_count);
    int result = put_end(c);
    c->placed = pieces_of(c->section_blocks) * PIECE_BLOCKS;
    for (; head.index < head.blocks && result == 0; head.index++) {
        digest_encode(&head, c->entries, c->entry_count, c->digest_block);
        result = put(c, c->digest_block);
    }
    return result;
}

/* --- the change --- */

/* What of the new layout is live; NULL: all. */
static int live_of(const struct compaction *c, const struct extent *e, uint8_t **ret)
{
    if (e->live == c->stored)
        return 0;
    assert(e->live < c->stored);
    *ret = malloc(BITMAP_BYTES);
    if (*ret == NULL)
        return -ENOMEM;
    memcpy(*ret, e->live_map != NULL ? e->live_map : e->layout, BITMAP_BYTES);
    return 0;
}

/* With the extent locked: the record, then the same here. */
static async int change_locked(struct compaction *c, struct extent *e)
{
    uint8_t *live_map = NULL;
    uint8_t *layout = malloc(BITMAP_BYTES);
    int result = layout != NULL ? live_of(c, e, &live_map) : -ENOMEM;
    if (result == 0) {
        memcpy(layout, c->layout, BITMAP_BYTES);
        struct extent after = *e; /* for the record alone */
        after.runs = c->all;
        after.layout = layout;
        after.live_map = live_map;
        result = record_write(c->store, &after, RECORD_PIECES_MAX, KV_SYNCED);
    }
    if (result < 0) {
        free(layout);
        free(live_map);
        return result;
    }
    runs_done(&e->runs);
    free(e->layout);
    free(e->live_map);
    e->runs = c->all;
    c->all = (struct runs){0};
    e->layout = layout;
    e->live_map = live_map;
    e->serial = ++c->store->extents.serials;
    e->is_unfit = false;
    extent_count(&c->store->extents, e, c->stored, e->live);
    runs_done(&c->to); /* they are the extent's now */
    readers_drain(c->store, e);
    space_give_back(c->store, &c->old); /* E8 */
    return 0;
}

static async int change(struct compaction *c)
{
    struct store *store = c->store;
    struct extent *e = extent_lock(store, c->section.address);
    if (e == NULL)
        return -PLX_EMISSING;
    int result = e->serial == c->serial ? change_locked(c, e) : -PLX_EPRECONDITION;
    if (result == 0)
        trace(store->loop, "extent.compact", e->address.v, c->stored, c->section_blocks);
    extent_unlock(store, e);
    return result;
}

/* --- */

static async int run(struct compaction *c)
{
    int result = inspect_resume(c->ins);
    if (result < 0)
        return result;
    result = plan(c);
    if (result == 0)
        result = copy(c);
    if (result == 0 && c->new_digest)
        result = write_digest(c);
    int ended = put_end(c);
    if (result == 0)
        result = ended;
    if (c->ins->extent != NULL)
        inspect_release(c->ins);
    if (result == 0)
        result = sync_always_wait(c->store);
    return result == 0 ? change(c) : result;
}

static void compaction_destroy(struct compaction *c)
{
    for (uint32_t i = 0; i < CHUNKS; i++)
        free(c->chunks[i].iov.iov_base);
    inspect_destroy(c->ins);
    runs_done(&c->to);
    runs_done(&c->all);
    runs_done(&c->old);
    free(c->entries);
    free(c);
}

static struct compaction *compaction_create(struct store *store,
                                            const struct section *section)
{
    struct compaction *c = calloc(1, sizeof *c);
    if (c == NULL)
        return NULL;
    c->store = store;
    c->section = *section;
    waitlist_init(&c->written);
    c->ins = inspect_create(store, section->address, COMPACT_CHUNK_BYTES);
    if (c->ins != NULL)
        c->ins->known = section->known;
    c->entries = malloc(EXTENT_BLOCKS * sizeof *c->entries);
    bool has_all = c->ins != NULL && c->entries != NULL;
    for (uint32_t i = 0; i < CHUNKS; i++) {
        c->chunks[i].compaction = c;
        c->chunks[i].iov.iov_base = aligned_alloc(BLOCK_SIZE, COMPACT_CHUNK_BYTES);
        has_all = has_all && c->chunks[i].iov.iov_base != NULL;
    }
    if (has_all)
        return c;
    compaction_destroy(c);
    return NULL;
}

async int compact_section(struct store *store, const struct section *section,
                          async int (*pace)(void *arg), void *arg)
{
    if (store->failed)
        return -PLX_EFAILED;
    struct compaction *c = compaction_create(store, section);
    if (c == NULL)
        return -ENOMEM;
    c->pace = pace;
    c->arg = arg;
    int result = run(c);
    metric_add(store->compact_read_bytes, c->ins->bytes_read);
    metric_add(store->compact_written_bytes, c->bytes_written);
    if (result == 0)
        metric_add(store->compact_count, 1);
    /* A record that failed may be there all the same: then nothing of it is free. */
    if (result != -PLX_EFAILED)
        space_give_back(store, &c->to);
    compaction_destroy(c);
    return result;
}
