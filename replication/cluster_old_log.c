/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The command log of before consensus, which a cluster of one had in its key-value store:
 *
 *   'l' + index (8 bytes, big endian)   CRC32C of key and command, command
 *   'c' + piece (4 bytes, big endian)   the state in pieces of 1 MiB
 *
 * It is read once, and becomes the state that consensus begins with.
 *
 * Happy path: the state and the commands after it are loaded as they always were; the
 * state that comes of it is written as a snapshot of consensus; and one synced write puts
 * that in force, takes the old keys away and leaves a bar: a piece 0 that says, in a way
 * that older programs understand, that a newer one has written it.
 *
 * What can fail: reading, and damage. Then nothing has changed. Before the last write
 * there are only pieces that nobody names, and the next attempt begins with removing
 * them; after it there is nothing to convert.
 */
#include "replication/cluster_internal.h"
#include "replication/consensus.h"

#define LOG_KEY_BYTES   9U
#define PIECE_KEY_BYTES 5U
#define SCAN_PAIRS      512U

struct old_log {
    struct kv *kv;
    struct cluster_state *state; /* NULL: there is nothing of it */
    uint32_t piece_count;
    uint64_t log_first, log_count;
    bool is_barred;
};

static void log_key(uint64_t index, uint8_t ret[LOG_KEY_BYTES])
{
    uint64_t be = htobe64(index);
    ret[0] = 'l';
    memcpy(ret + 1, &be, sizeof be);
}

static void piece_key(uint32_t piece, uint8_t ret[PIECE_KEY_BYTES])
{
    uint32_t be = htobe32(piece);
    ret[0] = 'c';
    memcpy(ret + 1, &be, sizeof be);
}

/* Covers the key too, so that a record under a wrong index is found. */
static uint32_t record_crc(const uint8_t key[LOG_KEY_BYTES], const void *bytes,
                           size_t len)
{
    return crc32c_more(crc32c(key, LOG_KEY_BYTES), bytes, len);
}

/* --- reading --- */

/* Reads all pieces into one; an empty `ret` means that there is no snapshot. */
static async int read_pieces(struct old_log *old, struct writer *ret, struct error *err)
{
    for (;;) {
        uint8_t key[PIECE_KEY_BYTES];
        void *value;
        size_t len;
        piece_key(old->piece_count, key);
        int rc = kv_get(old->kv, key, sizeof key, &value, &len);
        if (rc == -ENOENT)
            return 0;
        if (rc != 0)
            return err_set(err, rc, "cluster: snapshot, piece %u: %s", old->piece_count,
                           err_text(rc));
        if (old->piece_count == 0 && cluster_state_is_bar(value, len)) {
            free(value);
            old->is_barred = true;
            return 0;
        }
        write_bytes(ret, value, len);
        free(value);
        if (ret->bad)
            return err_set(err, -ENOMEM, "cluster: snapshot: %s", err_text(-ENOMEM));
        old->piece_count++;
    }
}

static async int load_snapshot(struct old_log *old, struct error *err)
{
    struct writer bytes = {0};
    int rc = read_pieces(old, &bytes, err);
    if (rc == 0 && bytes.len != 0) {
        rc = cluster_state_decode(bytes.bytes, bytes.len, &old->state, err);
        if (rc != 0)
            err_add(err, rc, "cluster: snapshot (keys 'c')");
    }
    writer_done(&bytes);
    return rc;
}

static int load_record(struct old_log *old, const struct kv_pair *pair, struct error *err)
{
    if (old->state == NULL)
        old->state = cluster_state_create();
    uint64_t expected = cluster_state_applied(old->state) + 1;
    uint64_t index;
    if (pair->key_len != LOG_KEY_BYTES)
        return err_set(err, -PLX_EDAMAGED, "cluster: log: a key of %zu bytes",
                       pair->key_len);
    memcpy(&index, pair->key + 1, sizeof index);
    index = be64toh(index);
    if (index != expected)
        return err_set(err, -PLX_EDAMAGED,
                       "cluster: log record %llu (key 'l') is missing, %llu is there",
                       (unsigned long long)expected, (unsigned long long)index);
    struct reader r = reader_of(pair->value, pair->value_len);
    uint32_t crc = read_u32(&r);
    if (r.bad || crc != record_crc(pair->key, r.at, r.left))
        return err_set(err, -PLX_EDAMAGED,
                       "cluster: log record %llu (key 'l'): checksum mismatch",
                       (unsigned long long)index);
    struct cluster_result result;
    cluster_state_apply(old->state, index, r.at, r.left, &result);
    if (result.code == -PLX_EFORMAT || result.code == -PLX_ENEWER)
        return err_set(err, result.code, "cluster: log record %llu (key 'l'): %s",
                       (unsigned long long)index, err_text(result.code));
    if (old->log_count == 0)
        old->log_first = index;
    old->log_count++;
    return 0;
}

static async int load_log(struct old_log *old, struct error *err)
{
    uint8_t after[KV_KEY_MAX];
    size_t after_len = 0;
    bool more = true;
    while (more) {
        struct kv_page page;
        int rc = kv_scan(old->kv, "l", 1, after, after_len, SCAN_PAIRS, &page);
        if (rc != 0)
            return err_set(err, rc, "cluster: reading the log: %s", err_text(rc));
        for (uint32_t i = 0; rc == 0 && i < page.count; i++)
            rc = load_record(old, &page.pairs[i], err);
        if (page.count != 0) {
            after_len = page.pairs[page.count - 1].key_len;
            memcpy(after, page.pairs[page.count - 1].key, after_len);
        }
        more = page.more && page.count != 0;
        kv_page_done(&page);
        if (rc != 0)
            return rc;
    }
    return 0;
}

/* --- what takes its place --- */

void cluster_old_log_bar(struct kv_batch *batch)
{
    uint8_t key[PIECE_KEY_BYTES];
    struct writer w = {0};
    piece_key(0, key);
    cluster_state_write_bar(&w);
    if (w.bad)
        batch->bad = true;
    else
        kv_batch_put(batch, key, sizeof key, w.bytes, w.len);
    writer_done(&w);
}

static async int write_new(struct old_log *old, uint64_t node, struct error *err)
{
    uint8_t key[LOG_KEY_BYTES];
    struct writer state = {0};
    struct kv_batch also;
    cluster_state_encode(old->state, &state);
    if (state.bad) {
        writer_done(&state);
        return err_set(err, -ENOMEM, "cluster: %s", err_text(-ENOMEM));
    }
    kv_batch_init(&also);
    for (uint64_t i = 0; i < old->log_count; i++) {
        log_key(old->log_first + i, key);
        kv_batch_delete(&also, key, LOG_KEY_BYTES);
    }
    for (uint32_t i = 1; i < old->piece_count; i++) {
        piece_key(i, key);
        kv_batch_delete(&also, key, PIECE_KEY_BYTES);
    }
    cluster_old_log_bar(&also);
    int rc = consensus_bootstrap_from(old->kv, node, cluster_state_applied(old->state),
                                      state.bytes, state.len, &also, err);
    writer_done(&state);
    return rc;
}

async int cluster_old_log_convert(struct loop *loop, struct kv *kv, uint64_t node,
                                  struct error *err)
{
    struct old_log old = {.kv = kv};
    int rc = load_snapshot(&old, err);
    if (rc == 0 && !old.is_barred)
        rc = load_log(&old, err);
    if (rc == 0 && old.state != NULL && cluster_state_applied(old.state) != 0) {
        rc = write_new(&old, node, err);
        if (rc == 0)
            log_info(loop, "cluster: the command log of before was taken over, up to "
                           "command %llu",
                     (unsigned long long)cluster_state_applied(old.state));
        else
            err_add(err, rc, "cluster: taking over the command log of before");
    }
    cluster_state_destroy(old.state);
    return rc;
}
