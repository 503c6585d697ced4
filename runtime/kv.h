/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The key-value store of metadata: LevelDB on a worker thread of its own, so that the
 * loop never waits for it; simulated in memory by runtime/sim.h.
 *
 * Contract: writes become durable in the order they were submitted. A completed write
 * survives the death of the process; a completed synced write makes itself and all
 * earlier ones survive the loss of power. A failed write leaves the store failed: every
 * later call returns the same error.
 */
#ifndef PARALLAX_RUNTIME_KV_H
#define PARALLAX_RUNTIME_KV_H

#include "runtime/base.h"
#include "runtime/error.h"

struct loop;
struct kv;

#define KV_KEY_MAX   64U
#define KV_VALUE_MAX (64 * MIB)

/* A list of changes applied as one. */
struct kv_batch {
    uint8_t *bytes; /* private encoding */
    size_t len, cap;
    uint32_t count;
    bool bad; /* memory ran out; kv_submit reports it */
};
void kv_batch_init(struct kv_batch *batch);
void kv_batch_done(struct kv_batch *batch);
void kv_batch_put(struct kv_batch *batch, const void *key, size_t key_len,
                  const void *value, size_t value_len);
void kv_batch_delete(struct kv_batch *batch, const void *key, size_t key_len);

enum kv_durability { KV_UNSYNCED, KV_SYNCED };

/* Opens or creates the store in folder `path`, with paranoid checks. Damage found at
 * open is an error that names the file. */
async int kv_open(struct loop *loop, const char *path, bool create, struct kv **ret_kv,
                  struct error *err);
/* Waits for what was submitted. */
async void kv_close(struct kv *kv);

/* One write; embedded in the caller's request. The batch's bytes are taken over and
 * freed; done is called on the loop, never from inside kv_submit. */
struct kv_write {
    struct kv_batch batch;
    enum kv_durability durability;
    void (*done)(struct kv_write *write);
    int result;
    STAILQ_ENTRY(kv_write) link;
    void *priv[8];
};
void kv_submit(struct kv *kv, struct kv_write *write);

/* The same for a task. Takes over the batch. */
async int kv_write_wait(struct kv *kv, struct kv_batch *batch,
                        enum kv_durability durability);

/* ret_value is malloc'd and the caller's. -ENOENT if there is no such key. Like kv_scan
 * it sees every completed write and may or may not see those in flight. */
async int kv_get(struct kv *kv, const void *key, size_t key_len, void **ret_value,
                 size_t *ret_len);

/* A page of pairs in key order. */
struct kv_pair {
    uint8_t key[KV_KEY_MAX];
    size_t key_len;
    uint8_t *value; /* owned by the page */
    size_t value_len;
};
struct kv_page {
    struct kv_pair *pairs;
    uint32_t count;
    size_t value_bytes; /* of all pairs together */
    bool more;          /* there are further pairs: go on after the last key */
};
/* Pairs whose key has `prefix` and is greater than `after` (after_len 0: from the
 * start), at most max_pairs and about 1 MiB of values. */
async int kv_scan(struct kv *kv, const void *prefix, size_t prefix_len, const void *after,
                  size_t after_len, uint32_t max_pairs, struct kv_page *ret_page);
void kv_page_done(struct kv_page *page);

#endif
