/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Copies here that are not what they should be: a header rotted, or a digest, or a block
 * that could only be copied as bad.
 *
 * Happy path: what died on the other whole members is taken over, the copy here is read,
 * and one of them after the other is asked for what is not sound:
 * - a header, as long as headers are live: it is written again to its place;
 * - when they are dead, what they, or the digest, said of the blocks: with that the
 *   extent is compacted;
 * - a block whose checksum is known: it is written again to its place.
 * Then all of it is read once more.
 *
 * What is written over was read before, and did not verify; what is written is what must
 * be there, by its checksum, or by its names and the extent's nonce. What dies is dead on
 * a whole member. So another copy is never made worse by what is wrong here, nor this one
 * by what is wrong elsewhere; and whatever ends it half-way leaves a copy that is bad in
 * fewer places.
 *
 * What can fail: a member does not answer, or those that can be asked have nothing sound.
 * Then it is tried again (recovery_mends.c).
 *
 * An extent that all others have deleted stays: after a loss of data each member may have
 * what is nowhere else.
 *
 * When recovery stops, calls fail.
 */
#include "blockstore/digest.h"
#include "blockstore/layout.h"
#include "replication/recovery_internal.h"

#define ROUNDS_MAX 16U
#define BAD_MAX    256U /* of known checksum, in one round */

struct mending {
    struct recovery *r;
    struct address extent;
    struct recovery_source sources[REPLICAS_MAX];
    uint32_t source_count;
    bool has_asked; /* they have answered, all of them */

    /* what was found here */
    bool has_headers, is_misdescribed; /* a header or the digest is bad, or missing */
    uint32_t unknown_count, bad_count;
    uint8_t bad_headers[BITMAP_BYTES];
    uint8_t unknown[BITMAP_BYTES];
    struct bad_block {
        uint32_t block, crc;
        bool is_mended;
    } bad[BAD_MAX];

    uint32_t mended; /* of them all */
    struct digest_entry_format *known; /* of unknown ones, by block */
    struct copy_description d;
    struct copy_blocks blocks;
    uint8_t *bytes; /* a block */
};

/* --- what is here --- */

static int found(void *arg, struct address address, const struct entry *entry, int code)
{
    struct mending *m = arg;
    uint32_t block = address_block(address);
    (void)code;
    if (entry == NULL) {
        m->is_misdescribed = true;
        bitmap_set(m->bad_headers, block);
    } else if (m->bad_count < BAD_MAX) {
        m->bad[m->bad_count++] = (struct bad_block){.block = block, .crc = entry->crc};
    }
    return 0;
}

static void found_unknown(void *arg, uint32_t block)
{
    struct mending *m = arg;
    m->is_misdescribed = true;
    bitmap_set(m->unknown, block);
    m->unknown_count++;
}

/* Guests first. */
static async int rest(void *arg, uint64_t bytes)
{
    const struct recovery *r = ((struct mending *)arg)->r;
    if (r->options.rest != NULL)
        r->options.rest(r->options.rest_arg, bytes);
    else
        task_yield();
    return r->is_stopping ? -PLX_ECANCELLED : 0;
}

/* 1: it is sound. */
static async int look(struct mending *m)
{
    const struct verify_callbacks callbacks = {
        .finding = found, .progress = rest, .unknown = found_unknown, .arg = m};
    struct extent_info info;
    m->is_misdescribed = false;
    m->unknown_count = m->bad_count = 0;
    memset(m->bad_headers, 0, sizeof m->bad_headers);
    memset(m->unknown, 0, sizeof m->unknown);
    int rc = store_verify_extent(m->r->options.store, m->extent, &callbacks);
    if (rc == 0)
        rc = store_extent_info(m->r->options.store, m->extent, &info);
    if (rc != 0)
        return rc;
    m->has_headers = info.has_headers;
    return !m->is_misdescribed && m->bad_count == 0;
}

/* Into m->bytes. */
static async int read_here(struct mending *m, uint32_t block)
{
    return store_read_wait(m->r->options.store, address_plus(m->extent, block), 1,
                           m->bytes);
}

static async bool is_sound_here(struct mending *m, uint32_t block, uint32_t crc)
{
    return read_here(m, block) == 0 && crc32c(m->bytes, BLOCK_SIZE) == crc;
}

/* A sound header that was not known to be one needs nobody else. */
static async int recognize_headers(struct mending *m)
{
    int rc = 0;
    for (uint32_t block = 0; rc == 0 && block < EXTENT_BLOCKS; block++) {
        if (!bitmap_get(m->unknown, block) || read_here(m, block) != 0)
            continue;
        int known = store_mend_header(m->r->options.store,
                                      address_plus(m->extent, block), m->bytes);
        m->mended += known == 0;
        rc = known == -PLX_EFAILED || known == -PLX_EMISSING ? known : 0;
    }
    return rc;
}

/* --- from one member --- */

/* Blocks from one on; the payload is the caller's. */
static async int fetch(struct mending *m, const struct recovery_source *source,
                       uint32_t from, uint32_t max, struct slice *ret_payload)
{
    int rc = source_fetch(m->r, source, &m->d.extent, from, max, false, &m->blocks,
                          ret_payload);
    if (rc == 0)
        (void)rest(m, (uint64_t)m->blocks.bytes_count * BLOCK_SIZE);
    else if (!source_has_answered(rc))
        m->has_asked = false;
    return rc;
}

/* One block, if it is sound there: its bytes are in m->bytes. */
static async bool fetch_one(struct mending *m, const struct recovery_source *source,
                            uint32_t block, struct copy_block *ret)
{
    struct slice payload = {0};
    if (fetch(m, source, block, 1, &payload) != 0)
        return false;
    *ret = m->blocks.at[0];
    bool is_there = m->blocks.count == 1 && ret->block == block && ret->has_bytes &&
                    !ret->is_bad;
    if (is_there)
        memcpy(m->bytes, slice_data(payload), BLOCK_SIZE);
    buffer_put(payload.buffer);
    return is_there;
}

static async int mend_headers(struct mending *m, const struct recovery_source *source)
{
    struct store *store = m->r->options.store;
    uint8_t here[BITMAP_BYTES];
    struct copy_block from;
    int rc = store_headers_map(store, m->extent, here);
    if (rc != 0)
        return rc == -PLX_EDEAD ? 0 : rc;
    for (uint32_t block = 0; block < m->d.extent.length; block++) {
        bool is_wanted = bitmap_get(m->bad_headers, block) || !bitmap_get(here, block);
        if (!is_wanted || !bitmap_get(m->d.headers, block) ||
            !fetch_one(m, source, block, &from) || !from.is_header)
            continue;
        rc = store_mend_header(store, address_plus(m->extent, block), m->bytes);
        if (rc == -PLX_EFAILED || rc == -PLX_EMISSING)
            return rc;
        if (rc == 0)
            bitmap_clear(m->bad_headers, block);
        m->mended += rc == 0;
    }
    return 0;
}

static async int mend_block(struct mending *m, struct bad_block *bad)
{
    uint8_t *bytes = m->bytes;
    if (crc32c(bytes, BLOCK_SIZE) != bad->crc)
        return 0;
    int rc = store_mend_block(m->r->options.store, address_plus(m->extent, bad->block),
                              bytes, bad->crc);
    bad->is_mended = rc == 0;
    m->mended += rc == 0;
    return rc == -PLX_EDEAD || rc == -PLX_ENOTHERE ? 0 : rc;
}

static async int mend_blocks(struct mending *m, const struct recovery_source *source)
{
    struct copy_block from;
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < m->bad_count; i++) {
        struct bad_block *bad = &m->bad[i];
        if (bad->is_mended || is_sound_here(m, bad->block, bad->crc))
            continue;
        if (fetch_one(m, source, bad->block, &from))
            rc = mend_block(m, bad);
    }
    return rc;
}

/* What another member says of a block of which nothing is known here. Its bytes come as
 * well, so that it can be mended at once; NULL: they are bad there, too. */
static async int learn(struct mending *m, const struct copy_block *from,
                       const uint8_t *bytes)
{
    if (!from->is_known || !bitmap_get(m->unknown, from->block))
        return 0;
    digest_entry_encode(from->block, &from->entry, false, &m->known[from->block]);
    bitmap_clear(m->unknown, from->block);
    m->unknown_count--;
    struct bad_block bad = {.block = from->block, .crc = from->entry.crc};
    if (bytes == NULL || is_sound_here(m, bad.block, bad.crc))
        return 0;
    memcpy(m->bytes, bytes, BLOCK_SIZE);
    return mend_block(m, &bad);
}

static async int learn_all(struct mending *m, const struct slice *payload)
{
    const uint8_t *bytes = payload->buffer != NULL ? slice_data(*payload) : NULL;
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < m->blocks.count; i++) {
        const struct copy_block *from = &m->blocks.at[i];
        rc = learn(m, from, from->has_bytes && !from->is_bad ? bytes : NULL);
        if (from->has_bytes)
            bytes += BLOCK_SIZE;
    }
    return rc;
}

static uint32_t next_unknown(const struct mending *m, uint32_t from)
{
    while (from < EXTENT_BLOCKS && !bitmap_get(m->unknown, from))
        from++;
    return from;
}

static async int learn_from(struct mending *m, const struct recovery_source *source)
{
    uint32_t from = next_unknown(m, 0);
    int rc = 0;
    while (rc == 0 && from < m->d.extent.length && !m->r->is_stopping) {
        struct slice payload = {0};
        uint32_t max = 1;
        while (max < COPY_RPC_FETCH_MAX && next_unknown(m, from + max) == from + max)
            max++;
        if (fetch(m, source, from, max, &payload) != 0)
            return 0;
        rc = learn_all(m, &payload);
        buffer_put(payload.buffer);
        from = next_unknown(m, m->blocks.next);
    }
    return rc;
}

static async int mend_from(struct mending *m, const struct recovery_source *source)
{
    struct extent_info info;
    int rc = store_extent_info(m->r->options.store, m->extent, &info);
    if (rc != 0)
        return rc;
    int asked = source_describe(m->r, source, m->extent, &m->d);
    const struct copy_extent *there = &m->d.extent;
    bool is_final = asked == 0 && there->state == COPY_RPC_FINAL;
    if (!is_final)
        m->has_asked = m->has_asked && asked == 0 && there->state == COPY_RPC_ABSENT;
    if (!is_final || there->nonce != info.nonce || there->length != info.length)
        return 0;
    if (m->has_headers && there->has_headers)
        rc = mend_headers(m, source);
    if (rc == 0 && !m->has_headers)
        rc = learn_from(m, source);
    return rc == 0 ? mend_blocks(m, source) : rc;
}

/* --- all of it --- */

/* One look, and what follows from it. 1: it is sound; 0: something was mended; -EAGAIN:
 * nothing could be. */
static async int mend_round(struct mending *m)
{
    int rc = look(m);
    if (rc != 0)
        return rc;
    uint32_t before = m->mended;
    m->has_asked = true;
    if (m->has_headers)
        rc = recognize_headers(m);
    for (uint32_t i = 0; rc == 0 && i < m->source_count; i++)
        rc = mend_from(m, &m->sources[i]);
    if (rc == 0 && !m->has_headers && m->is_misdescribed && m->unknown_count == 0) {
        rc = store_describe_again(m->r->options.store, m->extent, m->known);
        m->mended += rc == 0;
    }
    if (rc == -PLX_EPRECONDITION || rc == -PLX_EDAMAGED)
        rc = 0; /* it has changed meanwhile */
    return rc == 0 && m->mended == before ? -EAGAIN : rc;
}

/* What died elsewhere dies here: a header that was taken for a block may have stayed. */
static async void merge_all(struct mending *m)
{
    for (uint32_t i = 0; i < m->source_count; i++)
        (void)recovery_merge(m->r, &m->sources[i], m->extent);
}

static async int mend_rounds(struct mending *m)
{
    m->bytes = aligned_alloc(BLOCK_SIZE, BLOCK_SIZE);
    m->known = calloc(EXTENT_BLOCKS, sizeof *m->known);
    if (m->bytes == NULL || m->known == NULL)
        return -ENOMEM;
    (void)recovery_sources(m->r, address_group(m->extent), m->sources, &m->source_count);
    merge_all(m);
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < ROUNDS_MAX && !m->r->is_stopping; i++)
        rc = mend_round(m);
    return rc == 1 ? 0 : rc == 0 ? -EAGAIN : rc;
}

static async int mend_with(struct recovery *r, struct mending *m)
{
    unsigned long long extent = m->extent.v;
    int rc = mend_rounds(m);
    if (rc == 0 && m->mended > 0) {
        metric_add(r->extents_mended, 1);
        log_info(r->options.loop, "recovery: extent %llx: mended from other copies",
                 extent);
    }
    if (rc == -EAGAIN && m->has_asked) {
        log_warning(r->options.loop,
                    "recovery: extent %llx: not mended: no copy in reach is sound",
                    extent);
        rc = -PLX_ENOTHERE;
    }
    return rc == -PLX_EMISSING ? 0 : rc;
}

async int recovery_mend_one(struct recovery *r, struct address extent)
{
    const struct cluster_group *group =
        cluster_group_by_id(recovery_state(r), address_group(extent));
    struct extent_info info;
    if (recovery_self(r, address_group(extent)) == NULL || group->member_count < 2 ||
        store_extent_info(r->options.store, extent, &info) != 0)
        return 0;
    if (info.state != EXTENT_FINAL)
        return -EAGAIN;
    int rc = r->options.view.barrier(r->options.view.arg);
    struct mending *m = rc == 0 ? calloc(1, sizeof *m) : NULL;
    if (m == NULL)
        return rc != 0 ? rc : -ENOMEM;
    m->r = r;
    m->extent = extent;
    rc = mend_with(r, m);
    free(m->bytes);
    free(m->known);
    free(m);
    return rc;
}
