/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Copies one extent.
 *
 * Happy path: the store is told that a copy comes, so that it remembers trims; a whole
 * member says what is live; the live blocks come in the order of the extent, checked by
 * the sender and again here, and when all are there the copy counts. Then what is live is
 * asked once more, for a trim may have been here before the store was told, and there
 * after it had answered.
 *
 * What can fail: a member stops answering, and the next one goes on where it was. A block
 * that a member has, but rotten, or without knowing its checksum, is asked of all others,
 * whole or not; only when none of them has it, and all have answered, it comes as it is,
 * marked as bad if it is, so that one block does not keep all others from having a
 * copy; recovery_mend.c comes back to it. Whatever else fails leaves nothing, and is
 * tried again with the next sweep.
 *
 * When recovery stops, calls fail and the copy is given up.
 */
#include "replication/recovery_internal.h"

#define TRIES_MAX 3U /* when the extent changes under the copy */

struct copying {
    struct recovery *r;
    const struct sweep *sweep;
    struct store_install *install;
    struct copy_description plan;
    struct copy_blocks blocks; /* of the last answer, */
    struct slice payload;      /* and its bytes */
    struct source_fetch ahead; /* the next one, */
    bool is_asked;             /* if it is on its way */
    uint32_t source;           /* that is asked now */
    uint32_t failures;         /* in a row */
    uint32_t pass;             /* over what is missing */
    bool is_imperfect;         /* some block is not as it should be */
    uint64_t copied_bytes;
    uint8_t *zeros; /* a block that nobody can read */
};

struct copy_extent recovery_local(const struct recovery *r, struct address extent)
{
    static const enum copy_rpc_state states[] = {[EXTENT_OPEN] = COPY_RPC_OPEN,
                                                 [EXTENT_STOPPED] = COPY_RPC_STOPPED,
                                                 [EXTENT_FINAL] = COPY_RPC_FINAL};
    struct extent_info info;
    uint8_t live[BITMAP_BYTES];
    struct copy_extent local = {.extent = extent, .state = COPY_RPC_ABSENT};
    if (store_extent_info(r->options.store, extent, &info) < 0)
        return local;
    local = (struct copy_extent){.extent = extent,
                                 .state = states[info.state],
                                 .disk = info.disk,
                                 .epoch = info.epoch,
                                 .nonce = info.nonce,
                                 .length = info.length};
    if (info.state != EXTENT_FINAL || store_live_map(r->options.store, extent, live) < 0)
        return local;
    local.live = info.live;
    local.live_crc = crc32c(live, BITMAP_BYTES);
    local.has_headers = info.has_headers;
    return local;
}

static const struct recovery_source *source_now(const struct copying *c)
{
    return &c->sweep->sources[c->source % c->sweep->source_count];
}

/* --- blocks --- */

static void answer_drop(struct copying *c)
{
    buffer_put(take(c->payload.buffer));
    c->blocks.count = 0;
}

static struct install_block block_of(const struct copy_block *from, bool is_bad)
{
    return (struct install_block){.block = from->block,
                                  .entry = from->entry,
                                  .is_known = from->is_known,
                                  .is_bad = is_bad};
}

/* Puts blocks of the answer whose bytes lie side by side. One that does not fit is left
 * out: it is asked for again. */
static async int put_row(struct copying *c, uint32_t first, uint32_t count,
                         const uint8_t *bytes)
{
    struct install_block row[COPY_RPC_FETCH_MAX] = {{0}};
    for (uint32_t i = 0; i < count; i++)
        row[i] = block_of(&c->blocks.at[first + i], false);
    int rc = store_install_put(c->install, row, count, bytes);
    if (rc != -PLX_ECHECKSUM)
        return rc;
    rc = 0;
    for (uint32_t i = 0; i < count && (rc == 0 || rc == -PLX_ECHECKSUM); i++)
        rc = store_install_put(c->install, &row[i], 1, bytes + (size_t)i * BLOCK_SIZE);
    return rc == -PLX_ECHECKSUM ? 0 : rc;
}

static bool is_needed(const struct copying *c, uint32_t block)
{
    return store_install_missing(c->install, block) == block;
}

/* Of a block behind a rotten header only another member may know what it should be. */
static bool is_sound(const struct copy_block *block)
{
    return block->has_bytes && !block->is_bad && (block->is_known || block->is_header);
}

/* What came, as far as it is needed. */
static async int put_answer(struct copying *c)
{
    const struct copy_blocks *blocks = &c->blocks;
    const uint8_t *bytes = c->payload.buffer != NULL ? slice_data(c->payload) : NULL;
    int rc = 0;
    for (uint32_t i = 0; i < blocks->count && rc == 0;) {
        uint32_t n = 0;
        while (i + n < blocks->count && is_sound(&blocks->at[i + n]) &&
               is_needed(c, blocks->at[i + n].block))
            n++;
        if (n > 0)
            rc = put_row(c, i, n, bytes);
        for (uint32_t end = i + (n > 0 ? n : 1); i < end; i++) {
            if (blocks->at[i].has_bytes)
                bytes += BLOCK_SIZE;
        }
    }
    return rc;
}

/* What the other side did not name between two blocks is dead there. */
static void bury_unnamed(struct copying *c, uint32_t from)
{
    uint32_t i = 0;
    for (uint32_t block = from; block < c->blocks.next; block++) {
        while (i < c->blocks.count && c->blocks.at[i].block < block)
            i++;
        if (i == c->blocks.count || c->blocks.at[i].block != block)
            store_install_bury(c->install, block);
    }
}

/* --- one answer after the other --- */

/* Goes on with the next member, for a while. */
static async int next_source(struct copying *c, int rc)
{
    c->source++;
    if (++c->failures <= c->sweep->source_count)
        return 0;
    return rc;
}

/* At first all is missing; later here and there something. */
static uint32_t how_many(const struct copying *c, uint32_t from)
{
    uint32_t n = 1;
    if (c->pass == 0)
        return COPY_RPC_FETCH_MAX;
    while (n < COPY_RPC_FETCH_MAX && from + n < EXTENT_BLOCKS && is_needed(c, from + n))
        n++;
    return n;
}

static void ask_ahead(struct copying *c, uint32_t from)
{
    source_fetch_begin(c->r, source_now(c), &c->plan.extent, from, how_many(c, from),
                       false, &c->ahead);
    c->is_asked = true;
}

static async int next_answer(struct copying *c, uint32_t from)
{
    if (!c->is_asked)
        ask_ahead(c, from);
    c->is_asked = false;
    return source_fetch_end(&c->ahead, &c->blocks, &c->payload);
}

/* *from: where the next answer begins. While one is written the next one comes. */
static async int copy_some(struct copying *c, uint32_t *from)
{
    int rc = next_answer(c, *from);
    if (rc != 0 && c->pass > 0 && source_has_answered(rc)) {
        *from = EXTENT_BLOCKS; /* it has nothing better */
        return 0;
    }
    if (rc == -PLX_EMISSING || rc == -PLX_EPRECONDITION || rc == -PLX_ECANCELLED)
        return rc;
    if (rc != 0)
        return next_source(c, rc);
    c->failures = 0;
    /* Its headers died there: they are not sent any more, and a copy without them lies
     * densely. */
    if (c->plan.extent.has_headers && !c->blocks.has_headers) {
        answer_drop(c);
        return -PLX_EPRECONDITION;
    }
    bury_unnamed(c, *from);
    uint64_t bytes = (uint64_t)c->blocks.bytes_count * BLOCK_SIZE;
    *from = c->blocks.next == EXTENT_BLOCKS
                ? EXTENT_BLOCKS
                : store_install_missing(c->install, c->blocks.next);
    if (*from < EXTENT_BLOCKS)
        ask_ahead(c, *from);
    rc = put_answer(c);
    answer_drop(c);
    c->copied_bytes += bytes;
    metric_add(c->r->bytes_copied, bytes);
    recovery_rest(c->r, bytes);
    return rc;
}

/* --- blocks that a member has, but not as they should be --- */

/* A member of the group other than this node; NULL: there are not so many. */
static bool member_at(const struct recovery *r, uint16_t group, uint32_t index,
                      struct recovery_source *ret)
{
    const struct cluster_state *state = recovery_state(r);
    const struct cluster_group *g = cluster_group_by_id(state, group);
    for (uint32_t i = 0; g != NULL && i < g->member_count; i++) {
        const struct cluster_node *node = cluster_node_by_id(state, g->members[i].node);
        if (g->members[i].node == r->options.node || node == NULL ||
            !cluster_node_is_usable(node))
            continue;
        if (index-- > 0)
            continue;
        *ret = (struct recovery_source){.node = node->id, .store = node->store};
        return true;
    }
    return false;
}

/* 0: the member has answered, whatever it has. */
static async int ask_for_one(struct copying *c, const struct recovery_source *source,
                             uint32_t block)
{
    int rc = source_fetch(c->r, source, &c->plan.extent, block, 1, false, &c->blocks,
                          &c->payload);
    if (rc != 0)
        return source_has_answered(rc) ? 0 : rc;
    if (c->blocks.count == 0 || c->blocks.at[0].block != block)
        bury_unnamed(c, block);
    else
        rc = put_answer(c);
    answer_drop(c);
    return rc;
}

/* As it is: whoever sent it may know by now that it is sound, or mended it. */
static async int put_as_it_is(struct copying *c, const uint8_t *bytes)
{
    const struct copy_block *from = &c->blocks.at[0];
    struct install_block block = block_of(from, from->is_bad || !from->has_bytes);
    int rc = block.is_bad ? -PLX_ECHECKSUM
                          : store_install_put(c->install, &block, 1, bytes);
    if (rc == 0)
        c->is_imperfect = c->is_imperfect || !is_sound(from);
    if (rc != -PLX_ECHECKSUM)
        return rc;
    block.is_bad = true;
    c->is_imperfect = true;
    c->r->status.lost_blocks++;
    log_error(c->r->options.loop,
              "recovery: extent %llx block %u is damaged on every member in reach",
              (unsigned long long)c->plan.extent.extent.v, from->block);
    return store_install_put(c->install, &block, 1, from->has_bytes ? bytes : c->zeros);
}

static async int put_bad_from(struct copying *c, uint32_t block)
{
    int rc = source_fetch(c->r, source_now(c), &c->plan.extent, block, 1, true,
                          &c->blocks, &c->payload);
    if (rc != 0)
        return source_has_answered(rc) ? 0 : rc;
    if (c->blocks.count == 1 && c->blocks.at[0].block == block)
        rc = put_as_it_is(c, c->blocks.at[0].has_bytes ? slice_data(c->payload) : NULL);
    answer_drop(c);
    return rc;
}

/* It is as rotten as everywhere, so that readers see the same. From some whole member
 * that has it: another one may have nothing of the extent any more. */
static async int put_bad(struct copying *c, uint32_t block)
{
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < c->sweep->source_count && is_needed(c, block);
         i++, c->source++)
        rc = put_bad_from(c, block);
    return rc;
}

static async int copy_rest(struct copying *c)
{
    uint16_t group = address_group(c->plan.extent.extent);
    uint32_t block = 0;
    struct recovery_source member;
    int rc = 0;
    while (rc == 0 &&
           (block = store_install_missing(c->install, block)) != EXTENT_BLOCKS) {
        for (uint32_t i = 0;
             rc == 0 && is_needed(c, block) && member_at(c->r, group, i, &member); i++)
            rc = ask_for_one(c, &member, block);
        if (rc == 0 && is_needed(c, block))
            rc = put_bad(c, block);
        if (rc == 0 && is_needed(c, block))
            rc = -EAGAIN;
    }
    return rc;
}

/* --- the copy --- */

/* Asks until some whole member has said what it has. */
static async int describe(struct copying *c)
{
    struct address extent = c->plan.extent.extent;
    int rc = 0;
    c->failures = 0;
    do {
        int asked = source_describe(c->r, source_now(c), extent, &c->plan);
        if (asked == 0 || asked == -PLX_ECANCELLED)
            return asked;
        c->plan.extent.extent = extent;
        rc = next_source(c, asked);
    } while (rc == 0);
    return rc;
}

static int plan(struct copying *c)
{
    const struct copy_extent *e = &c->plan.extent;
    struct install_plan install = {
        .disk = e->disk,
        .epoch = e->epoch,
        .nonce = e->nonce,
        .length = e->length,
        .live = c->plan.live,
        .headers = e->has_headers ? c->plan.headers : NULL,
    };
    return store_install_plan(c->install, &install);
}

/* All that is missing, from one member as long as it answers. */
static async int copy_missing(struct copying *c)
{
    uint32_t from = store_install_missing(c->install, 0);
    int rc = 0;
    c->failures = 0;
    while (rc == 0 && from < EXTENT_BLOCKS)
        rc = copy_some(c, &from);
    if (c->is_asked && next_answer(c, from) == 0)
        answer_drop(c);
    return rc;
}

/* What one whole member has not sound the next one may have. */
static async int copy_blocks(struct copying *c)
{
    int rc = 0;
    for (c->pass = 0; rc == 0 && c->pass < c->sweep->source_count; c->pass++) {
        c->source += c->pass > 0;
        rc = copy_missing(c);
    }
    return rc == 0 ? copy_rest(c) : rc;
}

/* An open copy takes no more appends; a shorter one is replaced when all is here. */
static async int stop_local(struct copying *c)
{
    struct store *store = c->r->options.store;
    struct extent_info info;
    uint32_t length;
    bool is_scanned;
    if (store_extent_info(store, c->plan.extent.extent, &info) < 0 ||
        info.state != EXTENT_OPEN)
        return 0;
    return store_stop_extent(store, c->plan.extent.extent, &length, &is_scanned);
}

/* What died there while it came here, and was not trimmed here. */
static async int merge_after(struct copying *c)
{
    int rc = describe(c);
    const struct copy_extent *e = &c->plan.extent;
    if (rc != 0 || e->state != COPY_RPC_FINAL)
        return rc;
    struct store_copy other = {.nonce = e->nonce,
                               .length = e->length,
                               .has_headers = e->has_headers,
                               .live = c->plan.live};
    rc = store_merge_live(c->r->options.store, e->extent, &other);
    return rc == -PLX_EMISSING ? 0 : rc;
}

/* 0; -PLX_EEXISTS: a final copy is here by now. */
static async int install(struct copying *c)
{
    struct address extent = c->plan.extent.extent;
    int rc = stop_local(c);
    if (rc == 0)
        rc = store_install_begin(c->r->options.store, extent, &c->install);
    if (rc != 0)
        return rc;
    rc = describe(c);
    if (rc == 0 && c->plan.extent.state != COPY_RPC_FINAL)
        rc = c->plan.extent.state == COPY_RPC_ABSENT ? -PLX_EMISSING : -EAGAIN;
    if (rc == 0)
        rc = plan(c);
    if (rc == 0)
        rc = copy_blocks(c);
    if (rc == 0 && c->is_imperfect)
        rc = recovery_mend_keep(c->r, extent);
    if (rc == 0)
        return store_install_finish(take(c->install));
    store_install_abandon(take(c->install));
    return rc;
}

static async int copy(struct copying *c)
{
    int rc = -PLX_EPRECONDITION;
    for (uint32_t i = 0; i < TRIES_MAX && rc == -PLX_EPRECONDITION; i++)
        rc = install(c);
    if (rc == 0)
        rc = address_list_add(&c->r->taken_over, c->plan.extent.extent);
    if (rc == 0 || rc == -PLX_EEXISTS)
        rc = planted(PLANT_MERGE_FORGOTTEN) ? 0 : merge_after(c);
    /* Dead by now, here or there: the next sweep sees to what is left of it. */
    return rc == -PLX_EMISSING ? 0 : rc;
}

async int recovery_copy(struct copier *copier)
{
    struct recovery *r = copier->r;
    struct copying *c = calloc(1, sizeof *c);
    if (c == NULL)
        return -ENOMEM;
    c->zeros = aligned_alloc(BLOCK_SIZE, BLOCK_SIZE);
    int rc = c->zeros != NULL ? 0 : -ENOMEM;
    c->r = r;
    c->sweep = copier->sweep;
    c->source = copier->source;
    c->plan.extent = copier->extent;
    if (rc == 0) {
        memset(c->zeros, 0, BLOCK_SIZE);
        rc = copy(c);
    }
    if (rc == 0 && c->is_imperfect)
        recovery_mend(r, copier->extent.extent, true);
    if (rc == 0) {
        r->status.extents_done++;
        metric_add(r->extents_copied, 1);
    }
    free(c->zeros);
    free(c);
    return rc;
}
