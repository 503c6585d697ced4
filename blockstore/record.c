/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The store's records, to bytes and back, and their way into the key-value store.
 *
 * Happy path: a change of an extent is one put of its whole record, synced where the
 * caller answers for it.
 *
 * What can fail: memory, before anything is submitted; that is the caller's to report
 * and leaves all as it was. A write that fails takes the store out of service. Bytes
 * read back are foreign: every field is checked, a bad one refuses the store at open.
 *
 * On close nothing is pending: store_close waits for the writes that nobody waits for.
 */
#include "blockstore/store_internal.h"

void extent_key(struct address address, uint8_t ret_key[EXTENT_KEY_BYTES])
{
    uint64_t v = htobe64(address.v);
    ret_key[0] = EXTENT_KEY_PREFIX;
    memcpy(ret_key + 1, &v, sizeof v);
}

static uint8_t record_state_of(const struct extent *e)
{
    static const uint8_t states[] = {
        [EXTENT_OPEN] = RECORD_OPEN,
        [EXTENT_STOPPED] = RECORD_STOPPED,
        [EXTENT_FINAL] = RECORD_FINAL,
    };
    return states[e->state];
}

/* Runs up to `pieces` pieces; returns how many runs. */
static uint32_t put_runs(const struct runs *runs, uint32_t pieces, struct writer *w)
{
    uint32_t count = 0;
    for (; count < runs->count && pieces > 0; count++) {
        uint32_t n = min_u32(pieces, runs->at[count].count);
        if (w != NULL) {
            write_u32(w, runs->at[count].start);
            write_u32(w, n);
        }
        pieces -= n;
    }
    return count;
}

/* Those of an open extent are found again by the restart scan. */
static bool keeps_headers(const struct extent *e)
{
    return e->headers != NULL && e->state != EXTENT_OPEN && e->length > 0;
}

void record_encode(const struct extent *e, uint32_t pieces, struct writer *w)
{
    bool is_open = e->state == EXTENT_OPEN;
    unsigned flags = (e->restart_scanned ? (unsigned)RECORD_RESTART_SCANNED : 0) |
                     (e->live_map != NULL ? (unsigned)RECORD_HAS_LIVE : 0) |
                     (e->layout != NULL ? (unsigned)RECORD_HAS_LAYOUT : 0) |
                     (keeps_headers(e) ? (unsigned)RECORD_HAS_HEADERS : 0);
    struct extent_record_format f = {
        .magic = le32_of(RECORD_MAGIC),
        .version = le16_of(RECORD_VERSION),
        .flags = le16_of((uint16_t)flags),
        .extent = le64_of(e->address.v),
        .disk = le64_of(e->disk),
        .epoch = le64_of(e->epoch),
        .nonce = le64_of(e->nonce),
        .state = record_state_of(e),
        .length = le32_of(is_open ? 0 : e->length),
        .known_synced = le32_of(e->durable),
        .create_flags = le32_of(e->create_flags),
        .run_count = le32_of(put_runs(&e->runs, pieces, NULL)),
    };
    size_t start = w->len;
    write_bytes(w, &f, sizeof f);
    put_runs(&e->runs, pieces, w);
    if (e->live_map != NULL)
        write_bytes(w, e->live_map, BITMAP_BYTES);
    if (e->layout != NULL)
        write_bytes(w, e->layout, BITMAP_BYTES);
    if (keeps_headers(e)) {
        uint8_t headers[BITMAP_BYTES];
        memcpy(headers, e->headers, sizeof headers);
        bitmap_cut(headers, e->length); /* a final length may be shorter */
        write_bytes(w, headers, sizeof headers);
    }
    if (!w->bad)
        write_u32(w, crc32c(w->bytes + start, w->len - start));
    assert(w->bad || w->len - start <= RECORD_BYTES_MAX);
}

static bool state_decode(uint8_t state, struct extent *ret)
{
    switch (state) {
    case RECORD_OPEN:
        ret->state = EXTENT_OPEN;
        return ret->length == 0;
    case RECORD_STOPPED:
        ret->state = EXTENT_STOPPED;
        return ret->durable == ret->length;
    case RECORD_FINAL:
        ret->state = EXTENT_FINAL;
        return ret->durable == ret->length;
    default:
        return false;
    }
}

static int runs_decode(struct reader *r, uint32_t count, struct extent *ret)
{
    if (count > RECORD_PIECES_MAX || r->left < count * sizeof(struct run_format))
        return -PLX_EDAMAGED;
    if (count == 0)
        return 0;
    ret->runs.at = malloc(count * sizeof *ret->runs.at);
    if (ret->runs.at == NULL)
        return -ENOMEM;
    ret->runs.count = count;
    uint64_t pieces = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct run run = {.start = read_u32(r), .count = 0};
        run.count = read_u32(r);
        ret->runs.at[i] = run;
        pieces += run.count;
        if (run.count == 0 || pieces > RECORD_PIECES_MAX)
            return -PLX_EDAMAGED;
    }
    return 0;
}

static int bitmap_decode(struct reader *r, bool is_there, uint8_t **ret)
{
    if (!is_there)
        return 0;
    const uint8_t *bytes = read_bytes(r, BITMAP_BYTES);
    if (bytes == NULL)
        return -PLX_EDAMAGED;
    *ret = malloc(BITMAP_BYTES);
    if (*ret == NULL)
        return -ENOMEM;
    memcpy(*ret, bytes, BITMAP_BYTES);
    return 0;
}

/* As long as an extent has headers they are live, and it was not compacted. */
static bool headers_are_sound(const struct extent *e)
{
    if (e->headers == NULL)
        return true;
    return e->layout == NULL && e->length > 0 && bitmap_get(e->headers, 0) &&
           bitmap_rank(e->headers, EXTENT_BLOCKS) == bitmap_rank(e->headers, e->length) &&
           (e->live_map == NULL || bitmap_within(e->headers, e->live_map));
}

/* Whether bitmaps, length and space fit each other. Counts what is live. */
static bool decoded_is_sound(struct extent *e)
{
    if (e->state == EXTENT_OPEN)
        return e->live_map == NULL && e->layout == NULL && e->headers == NULL &&
               e->durable <= runs_blocks(&e->runs) &&
               runs_pieces(&e->runs) % SLAB_PIECES == 0;
    uint32_t stored = e->length, pieces = runs_pieces(&e->runs);
    if (e->layout != NULL) {
        stored = bitmap_rank(e->layout, EXTENT_BLOCKS);
        uint32_t digest = pieces - pieces_of(stored);
        if (e->state != EXTENT_FINAL || stored != bitmap_rank(e->layout, e->length) ||
            pieces <= pieces_of(stored) || digest > DIGEST_PIECES_MAX)
            return false;
    } else if (pieces > EXTENT_PIECES || pieces < pieces_of(stored)) {
        return false;
    }
    e->stored = e->live = stored;
    if (!headers_are_sound(e))
        return false;
    if (e->live_map == NULL)
        return true;
    e->live = bitmap_rank(e->live_map, EXTENT_BLOCKS);
    return e->live == bitmap_rank(e->live_map, e->length) &&
           (e->layout == NULL || bitmap_within(e->live_map, e->layout));
}

int record_decode(const uint8_t *key, size_t key_len, const void *value, size_t value_len,
                  struct extent *ret)
{
    struct extent_record_format f;
    if (value_len < sizeof f + sizeof(le32))
        return -PLX_EDAMAGED;
    memcpy(&f, value, sizeof f);
    if (le32_get(f.magic) != RECORD_MAGIC)
        return -PLX_EDAMAGED;
    struct reader crc_at = reader_of(value, value_len);
    const uint8_t *bytes = read_bytes(&crc_at, value_len - sizeof(le32));
    if (crc32c(bytes, value_len - sizeof(le32)) != read_u32(&crc_at))
        return -PLX_EDAMAGED;
    uint16_t flags = le16_get(f.flags);
    if (le16_get(f.version) > RECORD_VERSION || (flags & ~RECORD_FLAGS_KNOWN) != 0)
        return -PLX_ENEWER;
    *ret = (struct extent){
        .address = {le64_get(f.extent)},
        .disk = le64_get(f.disk),
        .epoch = le64_get(f.epoch),
        .nonce = le64_get(f.nonce),
        .length = le32_get(f.length),
        .durable = le32_get(f.known_synced),
        .create_flags = le32_get(f.create_flags),
        .restart_scanned = (flags & RECORD_RESTART_SCANNED) != 0 &&
                           !planted(PLANT_SCAN_FORGOTTEN),
    };
    uint8_t own_key[EXTENT_KEY_BYTES];
    extent_key(ret->address, own_key);
    if (key_len != sizeof own_key || memcmp(key, own_key, sizeof own_key) != 0)
        return -PLX_EDAMAGED;
    if (address_group(ret->address) == 0 || address_block(ret->address) != 0 ||
        ret->length > EXTENT_BLOCKS || ret->durable > EXTENT_BLOCKS ||
        !state_decode(f.state, ret))
        return -PLX_EDAMAGED;
    struct reader r = reader_of(value, value_len - sizeof(le32));
    read_bytes(&r, sizeof f);
    int result = runs_decode(&r, le32_get(f.run_count), ret);
    if (result == 0)
        result = bitmap_decode(&r, (flags & RECORD_HAS_LIVE) != 0, &ret->live_map);
    if (planted(PLANT_DEAD_RESURRECTED))
        free(take(ret->live_map));
    if (result == 0)
        result = bitmap_decode(&r, (flags & RECORD_HAS_LAYOUT) != 0, &ret->layout);
    if (result == 0)
        result = bitmap_decode(&r, (flags & RECORD_HAS_HEADERS) != 0, &ret->headers);
    if (result == 0 && (r.bad || r.left != 0 || !decoded_is_sound(ret)))
        result = -PLX_EDAMAGED;
    return result;
}

/* --- of the store as a whole --- */

void identity_encode(const struct superblock *sb, struct identity_format *ret)
{
    *ret = (struct identity_format){
        .magic = le32_of(RECORD_MAGIC),
        .version = le32_of(RECORD_VERSION),
        .cluster = sb->cluster,
        .store = sb->store,
        .generation = le64_of(sb->generation),
    };
    ret->crc = le32_of(crc32c(ret, offsetof(struct identity_format, crc)));
}

int identity_decode(const void *value, size_t len, struct superblock *ret)
{
    struct identity_format f;
    if (len != sizeof f)
        return -PLX_EDAMAGED;
    memcpy(&f, value, sizeof f);
    if (le32_get(f.magic) != RECORD_MAGIC ||
        crc32c(&f, offsetof(struct identity_format, crc)) != le32_get(f.crc))
        return -PLX_EDAMAGED;
    if (le32_get(f.version) > RECORD_VERSION)
        return -PLX_ENEWER;
    *ret = (struct superblock){
        .cluster = f.cluster, .store = f.store, .generation = le64_get(f.generation)};
    return 0;
}

void fresh_put(struct store *store, struct kv_batch *batch)
{
    struct fresh_format f = {.slab = le32_of(store->slabs.fresh)};
    f.crc = le32_of(crc32c(&f, offsetof(struct fresh_format, crc)));
    kv_batch_put(batch, FRESH_KEY, STORE_KEY_BYTES, &f, sizeof f);
    store->fresh_recorded = store->slabs.fresh;
}

uint32_t fresh_decode(const void *value, size_t len)
{
    struct fresh_format f;
    if (len != sizeof f)
        return 0;
    memcpy(&f, value, sizeof f);
    bool is_good = crc32c(&f, offsetof(struct fresh_format, crc)) == le32_get(f.crc);
    return is_good ? le32_get(f.slab) : 0;
}

/* --- writing them --- */

void record_put(struct store *store, struct kv_batch *batch, const struct extent *e,
                uint32_t pieces)
{
    uint8_t key[EXTENT_KEY_BYTES];
    struct writer w = {0};
    extent_key(e->address, key);
    record_encode(e, pieces, &w);
    if (w.bad)
        batch->bad = true;
    else
        kv_batch_put(batch, key, sizeof key, w.bytes, w.len);
    writer_done(&w);
    if (store->fresh_recorded != store->slabs.fresh)
        fresh_put(store, batch);
}

/* Waits for a batch; any failure but of memory is the store's end. */
static async int batch_write(struct store *store, struct kv_batch *batch,
                             enum kv_durability durability)
{
    if (store->failed || batch->bad) {
        int result = store->failed ? -PLX_EFAILED : -ENOMEM;
        kv_batch_done(batch);
        return result;
    }
    int result = kv_write_wait(store->kv, batch, durability);
    if (result < 0) {
        store_fail(store, "metadata write", result);
        return -PLX_EFAILED;
    }
    return store->failed ? -PLX_EFAILED : 0;
}

async int record_write(struct store *store, const struct extent *e, uint32_t pieces,
                       enum kv_durability durability)
{
    struct kv_batch batch;
    kv_batch_init(&batch);
    record_put(store, &batch, e, pieces);
    return batch_write(store, &batch, durability);
}

/* The key-value store keeps the order of its writes: this one makes those before it
 * durable, and says nothing itself. */
async int store_settle(struct store *store)
{
    struct kv_batch batch;
    kv_batch_init(&batch);
    return batch_write(store, &batch, KV_SYNCED);
}

async int record_delete(struct store *store, const struct extent *e)
{
    struct kv_batch batch;
    uint8_t key[EXTENT_KEY_BYTES];
    kv_batch_init(&batch);
    extent_key(e->address, key);
    kv_batch_delete(&batch, key, sizeof key);
    return batch_write(store, &batch, KV_SYNCED);
}
