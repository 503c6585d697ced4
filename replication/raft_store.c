/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The log, votes and snapshots of one node in its key-value store:
 *
 *   "rv"                                       term and vote
 *   "re" + index (8 bytes, big endian)         an entry of the log
 *   "rs"                                       the snapshot in force
 *   "rp" + generation (8) + piece (4), both big endian   its bytes
 *
 * Each value is a byte of version, the CRC32C of key, version and what follows, and that.
 * doc/format-consensus.md describes it.
 *
 * Happy path: what is appended by one call is one synced batch. A snapshot's pieces are
 * written under a generation of their own, unsynced; then one synced batch makes it the
 * one in force and takes away the log that it replaces. Writes become durable in order,
 * so nobody finds a snapshot in force without its pieces. The old pieces go afterwards,
 * and if that is lost, at the next open.
 *
 * What can fail: a write (consensus is over then), and what is read at open: a gap, a bad
 * checksum, a version from the future, things that do not fit together. All of these
 * are errors that name the key.
 *
 * The store knows the terms of all entries in the log and every membership from the
 * snapshot on, since libraft does not tell them: what it says of membership after a
 * restart or a truncation cannot be relied on (doc/consensus.md).
 */
#include <stdio.h>

#include "replication/raft_internal.h"

#define RECORD_VERSION 1U
#define RECORD_HEAD    5U
#define KEY_MAX        14U
#define SCAN_PAIRS     512U

#define BOOTSTRAP_PIECE_BYTES ((uint32_t)MIB)

static_assert(CONSENSUS_COMMAND_MAX + 1024 <= KV_VALUE_MAX, "an entry is one value");

struct key {
    uint8_t bytes[KEY_MAX];
    size_t len;
};

static void key_add(struct key *key, uint64_t n, size_t bytes)
{
    for (size_t i = bytes; i-- > 0;)
        key->bytes[key->len++] = (uint8_t)(n >> (8 * i));
}

static struct key key_of(const char *name)
{
    struct key key = {.len = 2};
    memcpy(key.bytes, name, 2);
    return key;
}

static struct key entry_key(uint64_t index)
{
    struct key key = key_of("re");
    key_add(&key, index, 8);
    return key;
}

static struct key piece_key(uint64_t generation, uint32_t piece)
{
    struct key key = key_of("rp");
    key_add(&key, generation, 8);
    key_add(&key, piece, 4);
    return key;
}

/* --- records --- */

static uint32_t record_crc(const void *key, size_t key_len, uint8_t version,
                           const void *body, size_t len)
{
    uint32_t crc = crc32c(key, key_len);
    crc = crc32c_more(crc, &version, 1);
    return crc32c_more(crc, body, len);
}

static void record_put(struct kv_batch *batch, struct key key, const void *body,
                       size_t len)
{
    struct writer w = {0};
    write_u8(&w, RECORD_VERSION);
    write_u32(&w, record_crc(key.bytes, key.len, RECORD_VERSION, body, len));
    write_bytes(&w, body, len);
    if (w.bad)
        batch->bad = true;
    else
        kv_batch_put(batch, key.bytes, key.len, w.bytes, w.len);
    writer_done(&w);
}

static void record_put_writer(struct kv_batch *batch, struct key key, struct writer *w)
{
    if (w->bad)
        batch->bad = true;
    else
        record_put(batch, key, w->bytes, w->len);
    writer_done(w);
}

static void record_delete(struct kv_batch *batch, struct key key)
{
    kv_batch_delete(batch, key.bytes, key.len);
}

/* Checks a record; *ret reads its body. `what` names it in the error. */
static int record_open(const void *key, size_t key_len, const void *value, size_t len,
                       const char *what, struct reader *ret, struct error *err)
{
    struct reader r = reader_of(value, len);
    uint8_t version = read_u8(&r);
    uint32_t crc = read_u32(&r);
    if (r.bad)
        return err_set(err, -PLX_EDAMAGED, "consensus: %s: only %zu bytes", what, len);
    if (crc != record_crc(key, key_len, version, r.at, r.left))
        return err_set(err, -PLX_EDAMAGED, "consensus: %s: checksum mismatch", what);
    if (version == 0 || version > RECORD_VERSION)
        return err_set(err, -PLX_ENEWER,
                       "consensus: %s: version %u: a newer program wrote it; this one "
                       "knows %u",
                       what, version, RECORD_VERSION);
    *ret = r;
    return 0;
}

/* One record by its key. -ENOENT: there is none. The body is the caller's (free). */
static async int record_get(struct kv *kv, struct key key, const char *what,
                            uint8_t **ret_value, struct reader *ret, struct error *err)
{
    void *value = NULL;
    size_t len = 0;
    int rc = kv_get(kv, key.bytes, key.len, &value, &len);
    if (rc == -ENOENT)
        return rc;
    if (rc != 0)
        return err_set(err, rc, "consensus: %s: %s", what, err_text(rc));
    rc = record_open(key.bytes, key.len, value, len, what, ret, err);
    if (rc != 0)
        free(value);
    else
        *ret_value = value;
    return rc;
}

static int damaged(struct error *err, const char *what)
{
    return err_set(err, -PLX_EDAMAGED, "consensus: %s: malformed", what);
}

/* --- what is known of the log --- */

static void *grow(void *array, size_t size)
{
    void *p = realloc(array, size);
    if (p == NULL)
        abort(); /* as libraft would */
    return p;
}

static void slots_push(struct raft_store *store, uint64_t term, uint32_t bytes)
{
    size_t count = (size_t)(store->next - store->first);
    if (store->slots_front + count == store->slots_cap) {
        if (store->slots_front != 0)
            memmove(store->slots, store->slots + store->slots_front,
                    count * sizeof *store->slots);
        store->slots_front = 0;
        if (count >= store->slots_cap / 2) {
            store->slots_cap = 2 * store->slots_cap + 64;
            store->slots = grow(store->slots, store->slots_cap * sizeof *store->slots);
        }
    }
    store->slots[store->slots_front + count] = (struct log_slot){term, bytes};
    store->next++;
    store->log_bytes += bytes;
}

static struct log_slot *slot_of(const struct raft_store *store, uint64_t index)
{
    assert(index >= store->first && index < store->next);
    return &store->slots[store->slots_front + (size_t)(index - store->first)];
}

uint64_t raft_store_term_of(const struct raft_store *store, uint64_t index)
{
    if (index != 0 && index == store->snapshot.index)
        return store->snapshot.term;
    if (index < store->first || index >= store->next)
        return 0;
    return slot_of(store, index)->term;
}

static void configs_push(struct raft_store *store, uint64_t index,
                         const struct member_list *members)
{
    if (store->config_count == store->config_cap) {
        store->config_cap = 2 * store->config_cap + 4;
        store->configs =
            grow(store->configs, store->config_cap * sizeof *store->configs);
    }
    struct config_at *config = &store->configs[store->config_count++];
    config->index = index;
    members_copy(members, &config->members);
}

const struct config_at *raft_store_config(const struct raft_store *store)
{
    return store->config_count == 0 ? NULL : &store->configs[store->config_count - 1];
}

/* Forgets memberships from `index` on. */
static void configs_cut(struct raft_store *store, uint64_t index)
{
    while (store->config_count != 0 &&
           store->configs[store->config_count - 1].index >= index)
        members_done(&store->configs[--store->config_count].members);
}

/* Forgets those before the one in force at `index`. */
static void configs_drop(struct raft_store *store, uint64_t index)
{
    uint32_t drop = 0;
    while (drop + 1 < store->config_count && store->configs[drop + 1].index <= index)
        members_done(&store->configs[drop++].members);
    store->config_count -= drop;
    memmove(store->configs, store->configs + drop,
            store->config_count * sizeof *store->configs);
}

/* Takes note of an entry at the end of the log. */
static void note_entry(struct raft_store *store, const struct raft_entry *entry)
{
    if (entry->type == RAFT_CHANGE) {
        struct member_list members;
        bool ok = members_of_raft_bytes(&entry->buf, &members);
        assert(ok);
        configs_push(store, store->next, &members);
        members_done(&members);
    }
    slots_push(store, entry->term, (uint32_t)(entry->buf.len + 64));
}

void raft_store_done(struct raft_store *store)
{
    configs_cut(store, 0);
    members_done(&store->snapshot.members);
    free(store->configs);
    free(store->slots);
    *store = (struct raft_store){0};
}

/* --- writing --- */

static void put_vote(struct kv_batch *batch, uint64_t node, uint64_t term, uint64_t vote)
{
    struct writer w = {0};
    write_u64(&w, node);
    write_u64(&w, term);
    write_u64(&w, vote);
    record_put_writer(batch, key_of("rv"), &w);
}

async int raft_store_set_vote(struct raft_store *store, uint64_t term, uint64_t vote)
{
    struct kv_batch batch;
    kv_batch_init(&batch);
    put_vote(&batch, store->node, term, vote);
    int rc = kv_write_wait(store->kv, &batch, KV_SYNCED);
    if (rc == 0) {
        store->term = term;
        store->vote = vote;
    }
    return rc;
}

async int raft_store_append(struct raft_store *store, const struct raft_entry *entries,
                            unsigned count)
{
    struct kv_batch batch;
    kv_batch_init(&batch);
    for (unsigned i = 0; i < count; i++) {
        struct writer w = {0};
        entry_write(&w, &entries[i]);
        record_put_writer(&batch, entry_key(store->next + i), &w);
    }
    int rc = kv_write_wait(store->kv, &batch, KV_SYNCED);
    for (unsigned i = 0; rc == 0 && i < count; i++)
        note_entry(store, &entries[i]);
    return rc;
}

async int raft_store_truncate(struct raft_store *store, uint64_t index)
{
    struct kv_batch batch;
    assert(index > store->snapshot.index && index >= store->first);
    kv_batch_init(&batch);
    for (uint64_t i = index; i < store->next; i++)
        record_delete(&batch, entry_key(i));
    int rc = kv_write_wait(store->kv, &batch, KV_SYNCED);
    if (rc != 0)
        return rc;
    for (; store->next > index; store->next--)
        store->log_bytes -= slot_of(store, store->next - 1)->bytes;
    configs_cut(store, index);
    return 0;
}

async int raft_store_write_pieces(struct raft_store *store,
                                  const struct raft_buffer *bufs, unsigned count,
                                  uint32_t piece_bytes, struct snapshot_meta *meta)
{
    meta->generation = store->snapshot.generation + 1;
    meta->len = 0;
    meta->pieces = meta->crc = 0;
    int rc = 0;
    for (unsigned i = 0; i < count && rc == 0; i++) {
        const uint8_t *bytes = bufs[i].base;
        for (size_t at = 0; at < bufs[i].len && rc == 0; at += piece_bytes) {
            size_t len = (size_t)min_u64(bufs[i].len - at, piece_bytes);
            struct kv_batch batch;
            kv_batch_init(&batch);
            record_put(&batch, piece_key(meta->generation, meta->pieces++), bytes + at,
                       len);
            meta->crc = crc32c_more(meta->crc, bytes + at, len);
            meta->len += len;
            rc = kv_write_wait(store->kv, &batch, KV_UNSYNCED);
        }
    }
    return rc;
}

static void put_snapshot(struct kv_batch *batch, const struct snapshot_meta *meta)
{
    struct writer w = {0};
    write_u64(&w, meta->generation);
    write_u64(&w, meta->index);
    write_u64(&w, meta->term);
    write_u64(&w, meta->config_index);
    write_u64(&w, meta->len);
    write_u32(&w, meta->pieces);
    write_u32(&w, meta->crc);
    members_write(&w, &meta->members);
    record_put_writer(batch, key_of("rs"), &w);
}

static async int delete_pieces(struct raft_store *store, uint64_t generation,
                               uint32_t pieces)
{
    struct kv_batch batch;
    if (pieces == 0)
        return 0;
    kv_batch_init(&batch);
    for (uint32_t i = 0; i < pieces; i++)
        record_delete(&batch, piece_key(generation, i));
    return kv_write_wait(store->kv, &batch, KV_UNSYNCED);
}

/* Forgets the log before `first`; all of it if it ends there or the snapshot came from
 * elsewhere. */
static void cut_front(struct raft_store *store, uint64_t first)
{
    while (store->first < first && store->first < store->next) {
        store->log_bytes -= slot_of(store, store->first)->bytes;
        store->slots_front++;
        store->first++;
    }
    if (store->first < first)
        store->first = store->next = first;
}

async int raft_store_switch(struct raft_store *store, struct snapshot_meta *meta,
                            bool is_foreign, uint64_t keep_after)
{
    struct kv_batch batch;
    uint64_t end = is_foreign ? store->next : min_u64(keep_after + 1, store->next);
    kv_batch_init(&batch);
    put_snapshot(&batch, meta);
    for (uint64_t i = store->first; i < end; i++)
        record_delete(&batch, entry_key(i));
    int rc = kv_write_wait(store->kv, &batch, KV_SYNCED);
    if (rc != 0)
        return rc;
    uint64_t old_generation = store->snapshot.generation;
    uint32_t old_pieces = store->snapshot.pieces;
    members_done(&store->snapshot.members);
    store->snapshot = *meta;
    *meta = (struct snapshot_meta){0};
    if (is_foreign) {
        cut_front(store, store->next);
        store->first = store->next = store->snapshot.index + 1;
        store->log_bytes = 0;
        configs_cut(store, 0);
        configs_push(store, store->snapshot.config_index, &store->snapshot.members);
    } else {
        cut_front(store, end);
        configs_drop(store, store->snapshot.index);
    }
    return delete_pieces(store, old_generation, old_pieces);
}

/* --- reading --- */

static async int load_vote(struct raft_store *store, struct error *err)
{
    static const char WHAT[] = "term and vote (key 'rv')";
    uint8_t *value;
    struct reader r;
    int rc = record_get(store->kv, key_of("rv"), WHAT, &value, &r, err);
    if (rc != 0)
        return rc == -ENOENT ? 0 : rc;
    uint64_t node = read_u64(&r);
    store->term = read_u64(&r);
    store->vote = read_u64(&r);
    if (r.bad || r.left != 0 || store->term > RAFT_NUMBER_MAX)
        rc = damaged(err, WHAT);
    else if (node != store->node)
        rc = err_set(err, -PLX_EPRECONDITION,
                     "consensus: the store is node %llu's, this is node %llu",
                     (unsigned long long)node, (unsigned long long)store->node);
    free(value);
    return rc;
}

static async int load_snapshot(struct raft_store *store, struct error *err)
{
    static const char WHAT[] = "snapshot (key 'rs')";
    struct snapshot_meta *meta = &store->snapshot;
    uint8_t *value;
    struct reader r;
    int rc = record_get(store->kv, key_of("rs"), WHAT, &value, &r, err);
    if (rc != 0)
        return rc == -ENOENT ? 0 : rc;
    meta->generation = read_u64(&r);
    meta->index = read_u64(&r);
    meta->term = read_u64(&r);
    meta->config_index = read_u64(&r);
    meta->len = read_u64(&r);
    meta->pieces = read_u32(&r);
    meta->crc = read_u32(&r);
    members_read(&r, &meta->members);
    if (r.bad || r.left != 0 || meta->index == 0 || meta->index > RAFT_NUMBER_MAX ||
        meta->term == 0 || meta->term > store->term || meta->config_index == 0 ||
        meta->config_index > meta->index || meta->len > CONSENSUS_SNAPSHOT_MAX)
        rc = damaged(err, WHAT);
    free(value);
    return rc;
}

struct loading {
    struct raft_entry *entries;
    size_t count, cap;
};

static void loading_free(struct loading *loading)
{
    for (size_t i = 0; i < loading->count; i++)
        raft_free(loading->entries[i].buf.base);
    raft_free(loading->entries);
}

/* What libraft would assert of the log it is given. */
static int check_entry(const struct raft_store *store, uint64_t index,
                       const struct raft_entry *entry, struct error *err)
{
    const char *wrong = NULL;
    uint64_t before = store->next == store->first ? 0 : slot_of(store, index - 1)->term;
    if (entry->term > store->term)
        wrong = "a term after the current one";
    else if (entry->term < before)
        wrong = "a term before that of the entry before it";
    else if (index == 1 && entry->type != RAFT_CHANGE)
        wrong = "the first entry is not a membership";
    else if (index == store->snapshot.index && entry->term != store->snapshot.term)
        wrong = "another term than the snapshot's";
    if (wrong == NULL)
        return 0;
    return err_set(err, -PLX_EDAMAGED, "consensus: log entry %llu (key 're'): %s",
                   (unsigned long long)index, wrong);
}

static int load_entry(struct raft_store *store, const struct kv_pair *pair,
                      struct loading *loading, struct error *err)
{
    struct reader r = reader_of(pair->key + 2, pair->key_len - 2), body;
    const uint8_t *number = read_bytes(&r, 8);
    uint64_t index = 0;
    for (int i = 0; number != NULL && i < 8; i++)
        index = index << 8 | number[i];
    if (number == NULL || r.left != 0 || index == 0 || index > RAFT_NUMBER_MAX)
        return damaged(err, "a key of the log ('re')");
    if (store->first == 0)
        store->first = store->next = index;
    if (index != store->next)
        return err_set(err, -PLX_EDAMAGED,
                       "consensus: log entry %llu (key 're') is missing, %llu is there",
                       (unsigned long long)store->next, (unsigned long long)index);
    char what[64];
    snprintf(what, sizeof what, "log entry %llu (key 're')", (unsigned long long)index);
    int rc = record_open(pair->key, pair->key_len, pair->value, pair->value_len, what,
                         &body, err);
    struct raft_entry entry;
    if (rc == 0 && !entry_read(&body, &entry))
        return damaged(err, what);
    if (rc != 0)
        return rc;
    if (loading->count == loading->cap) {
        loading->cap = 2 * loading->cap + 64;
        loading->entries =
            raft_realloc(loading->entries, loading->cap * sizeof *loading->entries);
    }
    loading->entries[loading->count++] = entry;
    if (body.left != 0)
        return damaged(err, what);
    rc = check_entry(store, index, &entry, err);
    if (rc == 0)
        note_entry(store, &entry);
    return rc;
}

/* What to do with a pair. May suspend. */
typedef int scan_fn(struct raft_store *store, const struct kv_pair *pair,
                    struct loading *loading, struct error *err);

/* Calls fn for every pair whose key begins with `prefix`. */
static async int scan(struct raft_store *store, const char *prefix, scan_fn *fn,
                      struct loading *loading, struct error *err)
{
    uint8_t after[KV_KEY_MAX];
    size_t after_len = 0;
    bool more = true;
    while (more) {
        struct kv_page page;
        int rc = kv_scan(store->kv, prefix, 2, after, after_len, SCAN_PAIRS, &page);
        if (rc != 0)
            return err_set(err, rc, "consensus: reading keys '%s': %s", prefix,
                           err_text(rc));
        for (uint32_t i = 0; rc == 0 && i < page.count; i++)
            rc = fn(store, &page.pairs[i], loading, err);
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

/* How the log must fit the snapshot. */
static int check_log(struct raft_store *store, struct error *err)
{
    const struct snapshot_meta *snapshot = &store->snapshot;
    if (store->first == 0)
        store->first = store->next = snapshot->index + 1;
    if (store->first > snapshot->index + 1)
        return err_set(err, -PLX_EDAMAGED,
                       "consensus: log entry %llu (key 're') is missing, %llu is there",
                       (unsigned long long)snapshot->index + 1,
                       (unsigned long long)store->first);
    if (store->next <= snapshot->index)
        return err_set(err, -PLX_EDAMAGED,
                       "consensus: the log (keys 're') ends at %llu, before the "
                       "snapshot at %llu (key 'rs')",
                       (unsigned long long)store->next - 1,
                       (unsigned long long)snapshot->index);
    if (snapshot->index != 0)
        configs_drop(store, snapshot->index);
    return 0;
}

/* Pieces that no snapshot in force has: of one that was never finished, or of an old one
 * that was not taken away in time. */
static async int drop_stray(struct raft_store *store, const struct kv_pair *pair,
                            struct loading *loading, struct error *err)
{
    struct key own = piece_key(store->snapshot.generation, 0);
    (void)loading;
    if (store->snapshot.index != 0 && pair->key_len == own.len &&
        memcmp(pair->key, own.bytes, own.len - 4) == 0)
        return 0;
    struct kv_batch batch;
    kv_batch_init(&batch);
    kv_batch_delete(&batch, pair->key, pair->key_len);
    int rc = kv_write_wait(store->kv, &batch, KV_UNSYNCED);
    return rc == 0 ? 0
                   : err_set(err, rc, "consensus: removing old pieces: %s", err_text(rc));
}

async int raft_store_load(struct raft_store *store, struct kv *kv, uint64_t node,
                          struct raft_entry **ret_entries, size_t *ret_count,
                          struct error *err)
{
    struct loading loading = {0};
    *store = (struct raft_store){.kv = kv, .node = node};
    int rc = load_vote(store, err);
    if (rc == 0)
        rc = load_snapshot(store, err);
    if (rc == 0 && store->snapshot.index != 0)
        configs_push(store, store->snapshot.config_index, &store->snapshot.members);
    if (rc == 0)
        rc = scan(store, "re", load_entry, &loading, err);
    if (rc == 0)
        rc = check_log(store, err);
    if (rc == 0)
        rc = scan(store, "rp", drop_stray, NULL, err);
    if (rc != 0) {
        loading_free(&loading);
        raft_store_done(store);
        return rc;
    }
    *ret_entries = loading.entries;
    *ret_count = loading.count;
    return 0;
}

async int raft_store_read_snapshot(struct raft_store *store, struct raft_buffer *ret,
                                   struct error *err)
{
    const struct snapshot_meta *meta = &store->snapshot;
    uint8_t *bytes = raft_malloc(meta->len + 1);
    size_t at = 0;
    int rc = 0;
    for (uint32_t i = 0; i < meta->pieces && rc == 0; i++) {
        uint8_t *value = NULL;
        struct reader r;
        char what[64];
        snprintf(what, sizeof what, "piece %u of the snapshot (key 'rp')", i);
        rc = record_get(store->kv, piece_key(meta->generation, i), what, &value, &r, err);
        if (rc == -ENOENT)
            rc = err_set(err, -PLX_EDAMAGED, "consensus: %s is missing", what);
        else if (rc == 0 && r.left > meta->len - at)
            rc = damaged(err, what);
        if (rc == 0) {
            memcpy(bytes + at, r.at, r.left);
            at += r.left;
        }
        free(value);
    }
    if (rc == 0 && (at != meta->len || crc32c(bytes, at) != meta->crc))
        rc = err_set(err, -PLX_EDAMAGED,
                     "consensus: snapshot (key 'rs'): its pieces are not the whole");
    if (rc != 0) {
        raft_free(bytes);
        return rc;
    }
    *ret = (struct raft_buffer){.base = bytes, .len = at};
    return 0;
}

/* --- beginning --- */

/* One that has what else is to change. */
static struct kv_batch batch_with(struct kv_batch *also)
{
    struct kv_batch batch;
    kv_batch_init(&batch);
    if (also == NULL)
        return batch;
    batch = *also;
    kv_batch_init(also);
    return batch;
}

static async int refuse_if_begun(struct kv *kv, struct error *err)
{
    static const char *const NAMES[] = {"rv", "re", "rs"};
    for (size_t i = 0; i < ARRAY_LEN(NAMES); i++) {
        struct kv_page page;
        int rc = kv_scan(kv, NAMES[i], 2, NULL, 0, 1, &page);
        if (rc != 0)
            return err_set(err, rc, "consensus: reading keys '%s': %s", NAMES[i],
                           err_text(rc));
        bool is_empty = page.count == 0;
        kv_page_done(&page);
        if (!is_empty)
            return err_set(err, -PLX_EEXISTS, "consensus: the store has a log already");
    }
    return 0;
}

static async int bootstrap_write(struct kv *kv, struct kv_batch *batch, struct error *err)
{
    int rc = kv_write_wait(kv, batch, KV_SYNCED);
    return rc == 0 ? 0 : err_set(err, rc, "consensus: bootstrap: %s", err_text(rc));
}

async int raft_store_bootstrap(struct kv *kv, uint64_t node, struct kv_batch *also,
                               struct error *err)
{
    struct kv_batch batch = batch_with(also);
    int rc = refuse_if_begun(kv, err);
    if (rc != 0) {
        kv_batch_done(&batch);
        return rc;
    }
    struct consensus_member self = {node, CONSENSUS_VOTER};
    struct member_list members = {1, &self};
    struct raft_configuration conf;
    struct raft_entry entry = {.term = 1, .type = RAFT_CHANGE};
    struct writer w = {0};
    members_to_raft(&members, &conf);
    raft_configuration_encode(&conf, &entry.buf);
    raft_configuration_close(&conf);
    put_vote(&batch, node, 1, 0);
    entry_write(&w, &entry);
    record_put_writer(&batch, entry_key(1), &w);
    raft_free(entry.buf.base);
    return bootstrap_write(kv, &batch, err);
}

/* The pieces come first, as those of any snapshot; until the last write names them they
 * are rubbish. */
async int raft_store_bootstrap_from(struct kv *kv, uint64_t node, uint64_t index,
                                    const struct raft_buffer *state,
                                    struct kv_batch *also, struct error *err)
{
    struct kv_batch batch = batch_with(also);
    struct consensus_member self = {node, CONSENSUS_VOTER};
    struct snapshot_meta meta = {.index = index,
                                 .term = 1,
                                 .config_index = index,
                                 .members = {1, &self}};
    struct raft_store store = {.kv = kv, .node = node};
    int rc = refuse_if_begun(kv, err);
    if (rc == 0 && state->len > CONSENSUS_SNAPSHOT_MAX)
        rc = err_set(err, -PLX_ELIMIT, "consensus: a state of %zu bytes is too large",
                     state->len);
    if (rc == 0)
        rc = scan(&store, "rp", drop_stray, NULL, err);
    if (rc == 0) {
        rc = raft_store_write_pieces(&store, state, 1, BOOTSTRAP_PIECE_BYTES, &meta);
        if (rc != 0)
            err_set(err, rc, "consensus: bootstrap: %s", err_text(rc));
    }
    if (rc != 0) {
        kv_batch_done(&batch);
        return rc;
    }
    put_vote(&batch, node, 1, 0);
    put_snapshot(&batch, &meta);
    return bootstrap_write(kv, &batch, err);
}
