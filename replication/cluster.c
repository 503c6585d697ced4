/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The command log of a cluster of one, in the node's key-value store:
 *
 *   'l' + index (8 bytes, big endian)   CRC32C of key and command, command
 *   'c' + piece (4 bytes, big endian)   the state in pieces of 1 MiB
 *
 * Happy path: a command is encoded, waits in `queued`, goes with all that wait there
 * into one synced write (`inflight`), and once that is durable the commands are applied
 * in the order of their indexes and their submitters woken. Every so many commands the
 * state itself goes along, and the log before it away, in the same atomic write.
 *
 * A failed write leaves the outcome of what was in it unknown: the cluster fails every
 * command of it, all that wait and all that come, until the process starts again and
 * reads what is there. A log with a gap or a bad checksum is not opened.
 *
 * Closing waits until everything submitted is durable. Nothing else is written then: a
 * log is as good as a state.
 */
#include <stdio.h>

#include "replication/cluster.h"
#include "replication/cluster_internal.h"

#define SNAPSHOT_EVERY_COMMANDS 4096U
#define SNAPSHOT_EVERY_BYTES    (4 * MIB)
#define SNAPSHOT_PIECE_BYTES    (1 * MIB)
#define SCAN_PAIRS              512U

#define LOG_KEY_BYTES   9U
#define PIECE_KEY_BYTES 5U

static_assert(SNAPSHOT_PIECE_BYTES <= KV_VALUE_MAX, "a piece is one value");

/* A command on its way; on the stack of the task that submitted it. */
struct submission {
    struct writer bytes;
    uint64_t index;
    struct cluster_result result;
    struct event settled;
    STAILQ_ENTRY(submission) link;
};
STAILQ_HEAD(submissions, submission);

struct cluster {
    struct loop *loop;
    struct kv *kv;
    struct cluster_state *state;
    uint64_t client, sequence; /* of the commands of this process */
    struct submissions queued, inflight;
    bool writing; /* `write` is under way */
    int failure;  /* 0, or why a write of it failed: it takes no more commands */
    struct kv_write write;
    uint64_t log_first;   /* lowest index the log still has */
    uint64_t log_bytes;   /* of commands in the log */
    uint32_t piece_count; /* of the snapshot */
    uint32_t users;       /* tasks inside cluster_submit */
    struct waitlist idle;
    struct metric *commands, *writes;
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

/* --- writing --- */

static bool snapshot_due(const struct cluster *cluster)
{
    uint64_t commands = cluster_state_applied(cluster->state) + 1 - cluster->log_first;
    return commands >= SNAPSHOT_EVERY_COMMANDS ||
           cluster->log_bytes >= SNAPSHOT_EVERY_BYTES;
}

/* Adds the state as it is now and takes the log up to here away. Memory may be out for
 * so large a thing: then the log just grows on, and the next write tries again. */
static void add_snapshot(struct cluster *cluster, struct kv_batch *batch)
{
    struct writer w = {0};
    cluster_state_encode(cluster->state, &w);
    if (w.bad) {
        writer_done(&w);
        return;
    }
    uint8_t key[LOG_KEY_BYTES];
    uint32_t piece = 0;
    for (size_t at = 0; at < w.len; at += SNAPSHOT_PIECE_BYTES, piece++) {
        piece_key(piece, key);
        kv_batch_put(batch, key, PIECE_KEY_BYTES, w.bytes + at,
                     min_u64(w.len - at, SNAPSHOT_PIECE_BYTES));
    }
    for (uint32_t old = piece; old < cluster->piece_count; old++) {
        piece_key(old, key);
        kv_batch_delete(batch, key, PIECE_KEY_BYTES);
    }
    uint64_t applied = cluster_state_applied(cluster->state);
    for (uint64_t index = cluster->log_first; index <= applied; index++) {
        log_key(index, key);
        kv_batch_delete(batch, key, LOG_KEY_BYTES);
    }
    cluster->piece_count = piece;
    cluster->log_first = applied + 1;
    cluster->log_bytes = 0;
    writer_done(&w);
}

static void add_command(struct kv_batch *batch, const struct submission *submission)
{
    uint8_t key[LOG_KEY_BYTES];
    struct writer value = {0};
    log_key(submission->index, key);
    write_u32(&value, record_crc(key, submission->bytes.bytes, submission->bytes.len));
    write_bytes(&value, submission->bytes.bytes, submission->bytes.len);
    if (value.bad)
        batch->bad = true;
    else
        kv_batch_put(batch, key, sizeof key, value.bytes, value.len);
    writer_done(&value);
}

static const char *why_failed(const struct cluster *cluster)
{
    return cluster->failure == -ENOSPC
               ? "no room in the file system for metadata: make some, and start again"
               : "the command log failed";
}

int cluster_failure(const struct cluster *cluster)
{
    return cluster->failure;
}

static void fail_all(struct submissions *submissions, const char *why)
{
    struct submission *submission;
    while ((submission = STAILQ_FIRST(submissions)) != NULL) {
        STAILQ_REMOVE_HEAD(submissions, link);
        submission->result = (struct cluster_result){.code = -PLX_EFAILED};
        snprintf(submission->result.text, sizeof submission->result.text, "cluster: %s",
                 why);
        event_set(&submission->settled);
    }
}

static void write_done(struct kv_write *write);

/* Starts the next write if there is none and there is something to write. */
static void pump(struct cluster *cluster)
{
    bool snapshot = snapshot_due(cluster);
    if (cluster->writing || cluster->failure != 0 ||
        (STAILQ_EMPTY(&cluster->queued) && !snapshot))
        return;
    assert(STAILQ_EMPTY(&cluster->inflight));
    struct kv_batch *batch = &cluster->write.batch;
    kv_batch_init(batch);
    if (snapshot)
        add_snapshot(cluster, batch);
    STAILQ_CONCAT(&cluster->inflight, &cluster->queued);
    uint64_t index = cluster_state_applied(cluster->state);
    struct submission *submission;
    STAILQ_FOREACH (submission, &cluster->inflight, link) {
        submission->index = ++index;
        add_command(batch, submission);
    }
    if (batch->count == 0 && !batch->bad) {
        kv_batch_done(batch);
        return;
    }
    cluster->write.durability = KV_SYNCED;
    cluster->write.done = write_done;
    cluster->writing = true;
    metric_add(cluster->writes, 1);
    kv_submit(cluster->kv, &cluster->write);
}

static void apply_inflight(struct cluster *cluster)
{
    struct submission *submission;
    while ((submission = STAILQ_FIRST(&cluster->inflight)) != NULL) {
        STAILQ_REMOVE_HEAD(&cluster->inflight, link);
        cluster_state_apply(cluster->state, submission->index, submission->bytes.bytes,
                            submission->bytes.len, &submission->result);
        submission->result.index = submission->index;
        cluster->log_bytes += submission->bytes.len;
        metric_add(cluster->commands, 1);
        trace(cluster->loop, "cluster_apply", submission->index,
              submission->bytes.bytes[1], (uint64_t)-submission->result.code);
        event_set(&submission->settled);
    }
}

static void write_done(struct kv_write *write)
{
    struct cluster *cluster = container_of(write, struct cluster, write);
    assert(cluster->writing);
    cluster->writing = false;
    if (write->result != 0) {
        log_error(cluster->loop,
                  "cluster: writing the command log: %s; no more commands are taken",
                  err_text(write->result));
        cluster->failure = write->result;
        fail_all(&cluster->inflight, why_failed(cluster));
        fail_all(&cluster->queued, why_failed(cluster));
    } else {
        apply_inflight(cluster);
        pump(cluster);
    }
    if (!cluster->writing)
        waitlist_wake_all(&cluster->idle);
}

static bool name_fits(const char *name)
{
    return name == NULL || strnlen(name, DISK_NAME_MAX + 1) <= DISK_NAME_MAX;
}

/* What can be refused before it is written. Nothing that does not decode may get into
 * the log: it would be taken for damage when it is read. */
static int prepare(struct cluster *cluster, const struct cluster_command *command,
                   struct submission *submission)
{
    if (cluster->failure != 0)
        return -PLX_EFAILED;
    if (!name_fits(command->name) || !name_fits(command->new_name))
        return -PLX_ENAME;
    struct cluster_command numbered = *command;
    numbered.client = cluster->client;
    numbered.sequence = ++cluster->sequence;
    cluster_command_encode(&numbered, &submission->bytes);
    return submission->bytes.bad ? -ENOMEM : 0;
}

async int cluster_submit(struct cluster *cluster, const struct cluster_command *command,
                         struct cluster_result *ret_result)
{
    struct submission submission = {.index = 0};
    int rc = prepare(cluster, command, &submission);
    if (rc != 0) {
        submission.result.code = rc;
        snprintf(submission.result.text, sizeof submission.result.text, "cluster: %s",
                 rc == -PLX_EFAILED ? why_failed(cluster) : err_text(rc));
    } else {
        cluster->users++;
        event_init(&submission.settled);
        STAILQ_INSERT_TAIL(&cluster->queued, &submission, link);
        pump(cluster);
        event_wait(&submission.settled);
        cluster->users--;
        if (cluster->users == 0)
            waitlist_wake_all(&cluster->idle);
    }
    writer_done(&submission.bytes);
    *ret_result = submission.result;
    return ret_result->code;
}

/* --- opening --- */

/* Reads all pieces into one; an empty `ret` means that there is no snapshot yet. */
static async int read_pieces(struct cluster *cluster, struct writer *ret,
                             struct error *err)
{
    for (;;) {
        uint8_t key[PIECE_KEY_BYTES];
        void *value;
        size_t len;
        piece_key(cluster->piece_count, key);
        int rc = kv_get(cluster->kv, key, sizeof key, &value, &len);
        if (rc == -ENOENT)
            return 0;
        if (rc != 0)
            return err_set(err, rc, "cluster: snapshot, piece %u: %s",
                           cluster->piece_count, err_text(rc));
        write_bytes(ret, value, len);
        free(value);
        if (ret->bad)
            return err_set(err, -ENOMEM, "cluster: snapshot: %s", err_text(-ENOMEM));
        cluster->piece_count++;
    }
}

static async int load_snapshot(struct cluster *cluster, struct error *err)
{
    struct writer bytes = {0};
    int rc = read_pieces(cluster, &bytes, err);
    if (rc == 0 && bytes.len == 0) {
        cluster->state = cluster_state_create();
    } else if (rc == 0) {
        rc = cluster_state_decode(bytes.bytes, bytes.len, &cluster->state, err);
        if (rc != 0)
            err_add(err, rc, "cluster: snapshot (keys 'c')");
    }
    writer_done(&bytes);
    return rc;
}

static int load_record(struct cluster *cluster, const struct kv_pair *pair,
                       struct error *err)
{
    uint64_t expected = cluster_state_applied(cluster->state) + 1;
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
    cluster_state_apply(cluster->state, index, r.at, r.left, &result);
    if (result.code == -PLX_EFORMAT || result.code == -PLX_ENEWER)
        return err_set(err, result.code, "cluster: log record %llu (key 'l'): %s",
                       (unsigned long long)index, err_text(result.code));
    cluster->log_bytes += r.left;
    return 0;
}

static async int load_log(struct cluster *cluster, struct error *err)
{
    uint8_t after[KV_KEY_MAX];
    size_t after_len = 0;
    bool more = true;
    cluster->log_first = cluster_state_applied(cluster->state) + 1;
    while (more) {
        struct kv_page page;
        int rc = kv_scan(cluster->kv, "l", 1, after, after_len, SCAN_PAIRS, &page);
        if (rc != 0)
            return err_set(err, rc, "cluster: reading the log: %s", err_text(rc));
        for (uint32_t i = 0; rc == 0 && i < page.count; i++)
            rc = load_record(cluster, &page.pairs[i], err);
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

static void cluster_free(struct cluster *cluster)
{
    cluster_state_destroy(cluster->state);
    free(cluster);
}

async int cluster_open(struct loop *loop, struct kv *kv, struct cluster **ret_cluster,
                       struct error *err)
{
    struct cluster *cluster = calloc(1, sizeof *cluster);
    if (cluster == NULL)
        return err_set(err, -ENOMEM, "cluster: %s", err_text(-ENOMEM));
    cluster->loop = loop;
    cluster->kv = kv;
    STAILQ_INIT(&cluster->queued);
    STAILQ_INIT(&cluster->inflight);
    waitlist_init(&cluster->idle);
    cluster->commands = metric_counter(loop, "parallax_cluster_commands_total",
                                       "Commands applied to the cluster state");
    cluster->writes = metric_counter(loop, "parallax_cluster_writes_total",
                                     "Synced writes of the command log");
    cluster->client = loop_random_u64(loop) | 1; /* never 0: that keeps no answer */
    int rc = load_snapshot(cluster, err);
    if (rc == 0)
        rc = load_log(cluster, err);
    if (rc != 0) {
        cluster_free(cluster);
        return rc;
    }
    *ret_cluster = cluster;
    return 0;
}

async void cluster_close(struct cluster *cluster)
{
    if (cluster == NULL)
        return;
    while (cluster->writing || cluster->users != 0)
        waitlist_wait(&cluster->idle);
    assert(STAILQ_EMPTY(&cluster->queued) && STAILQ_EMPTY(&cluster->inflight));
    cluster_free(cluster);
}

const struct cluster_state *cluster_state(const struct cluster *cluster)
{
    return cluster->state;
}
