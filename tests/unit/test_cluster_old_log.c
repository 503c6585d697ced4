/* SPDX-License-Identifier: Apache-2.0 */
/* A command log of before consensus is taken over, all of it or, if the process ends or
 * the store fails in the middle, at the next attempt. */
#include <sys/wait.h>

#include "replication/cluster.h"
#include "replication/cluster_internal.h"
#include "tests/unit/on_loops.h"

#define STATE_PIECE 700U

/* What the log has: commands up to snapshot_at are in the state, the rest follows. */
struct old_store {
    uint32_t snapshot_at, commands;
};

static const struct old_store BOTH = {30, 50}, ONLY_LOG = {0, 20}, ONLY_STATE = {25, 25};

/* --- the old format, written by hand --- */

static void write_head(struct writer *w, enum cluster_op op, uint32_t sequence)
{
    write_u8(w, 1);
    write_u8(w, (uint8_t)op);
    write_u16(w, 0);
    write_u64(w, 4711); /* client */
    write_u64(w, sequence);
}

static void write_command(struct writer *w, uint32_t index)
{
    char name[32];
    snprintf(name, sizeof name, "disk-%u", index);
    write_head(w, index == 1 ? CLUSTER_INIT : CLUSTER_DISK_CREATE, index);
    if (index == 1) {
        write_u64(w, 1); /* node */
        write_uid(w, (struct uid){{1, 2, 3}});
        write_uid(w, (struct uid){{4, 5}});
        write_u64(w, 1000); /* wall_ns */
        return;
    }
    write_string(w, name);
    write_u64(w, index % 5 == 0 ? 1 : MIB); /* every fifth is refused */
    write_u64(w, 1000);
    write_u32(w, 0); /* flags */
}

static struct kv_batch log_record(uint32_t index)
{
    uint8_t key[9] = {'l'};
    struct writer command = {0}, value = {0};
    struct kv_batch batch;
    key[8] = (uint8_t)index;
    write_command(&command, index);
    write_u32(&value, crc32c_more(crc32c(key, sizeof key), command.bytes, command.len));
    write_bytes(&value, command.bytes, command.len);
    kv_batch_init(&batch);
    kv_batch_put(&batch, key, sizeof key, value.bytes, value.len);
    writer_done(&command);
    writer_done(&value);
    return batch;
}

static struct cluster_state *state_at(uint32_t commands)
{
    struct cluster_state *state = cluster_state_create();
    for (uint32_t i = 1; i <= commands; i++) {
        struct cluster_result result;
        struct writer w = {0};
        write_command(&w, i);
        cluster_state_apply(state, i, w.bytes, w.len, &result);
        CHECK_EQ(result.code, i > 1 && i % 5 == 0 ? -EINVAL : 0);
        writer_done(&w);
    }
    return state;
}

static async void write_old(struct kv *kv, const struct old_store *old)
{
    struct cluster_state *state = state_at(old->snapshot_at);
    struct writer w = {0};
    cluster_state_encode(state, &w);
    for (size_t at = 0, piece = 0; old->snapshot_at != 0 && at < w.len; piece++) {
        uint8_t key[5] = {'c', 0, 0, 0, (uint8_t)piece};
        struct kv_batch batch;
        size_t len = (size_t)min_u64(w.len - at, STATE_PIECE);
        kv_batch_init(&batch);
        kv_batch_put(&batch, key, sizeof key, w.bytes + at, len);
        CHECK_EQ(kv_write_wait(kv, &batch, KV_SYNCED), 0);
        at += len;
    }
    for (uint32_t i = old->snapshot_at + 1; i <= old->commands; i++) {
        struct kv_batch batch = log_record(i);
        CHECK_EQ(kv_write_wait(kv, &batch, KV_SYNCED), 0);
    }
    writer_done(&w);
    cluster_state_destroy(state);
}

/* --- what must come of it --- */

static async int try_open(struct body *body, struct kv *kv, struct cluster **ret_cluster,
                          struct error *err)
{
    struct cluster_options options = {.loop = body->loop, .kv = kv, .node = 1};
    *ret_cluster = NULL;
    return cluster_open(&options, ret_cluster, err);
}

static bool state_is(const struct cluster_state *state, uint32_t commands)
{
    struct cluster_state *wanted = state_at(commands);
    struct writer a = {0}, b = {0};
    cluster_state_encode(state, &a);
    cluster_state_encode(wanted, &b);
    bool is_same = a.len == b.len && memcmp(a.bytes, b.bytes, a.len) == 0;
    writer_done(&a);
    writer_done(&b);
    cluster_state_destroy(wanted);
    return is_same;
}

static async uint32_t count_keys(struct kv *kv, const char *prefix)
{
    struct kv_page page;
    CHECK_EQ(kv_scan(kv, prefix, strlen(prefix), NULL, 0, 1000, &page), 0);
    uint32_t count = page.count;
    CHECK(!page.more);
    kv_page_done(&page);
    return count;
}

/* Nothing is left of the old log but what keeps older programs away. */
static async void check_barred(struct kv *kv)
{
    void *value;
    size_t len;
    struct cluster_state *state = NULL;
    struct error err = {0};
    CHECK_EQ(count_keys(kv, "l"), 0);
    CHECK_EQ(count_keys(kv, "c"), 1);
    CHECK_EQ(kv_get(kv, "c\0\0\0\0", 5, &value, &len), 0);
    CHECK_EQ(cluster_state_decode(value, len, &state, &err), -PLX_ENEWER);
    CHECK_STR(err.text,
              "cluster state: version 3, features 1: a newer program wrote it");
    free(value);
}

static async void open_and_check(struct body *body, struct kv *kv,
                                 const struct old_store *old)
{
    struct cluster *cluster;
    struct error err = {0};
    if (try_open(body, kv, &cluster, &err) != 0) {
        fprintf(stderr, "%s\n", err.text);
        exit(1);
    }
    CHECK(state_is(cluster_state(cluster), old->commands));
    cluster_close(cluster);
    check_barred(kv);
}

static async struct kv *open_kv(struct body *body)
{
    struct kv *kv = NULL;
    CHECK_EQ(kv_open(body->loop, body_path(body, "kv"), true, &kv, NULL), 0);
    return kv;
}

static async void take_over(struct body *body, const char *name,
                            const struct old_store *old)
{
    struct kv *kv;
    struct cluster *cluster;
    struct cluster_result result;
    struct cluster_command create = {
        .op = CLUSTER_DISK_CREATE, .name = "new", .size_bytes = MIB};
    CHECK_EQ(kv_open(body->loop, body_path(body, name), true, &kv, NULL), 0);
    write_old(kv, old);
    open_and_check(body, kv, old);
    open_and_check(body, kv, old); /* once is enough */
    CHECK_EQ(try_open(body, kv, &cluster, NULL), 0);
    CHECK_EQ(cluster_submit(cluster, &create, &result), 0);
    CHECK(result.index > old->commands);
    cluster_close(cluster);
    CHECK_EQ(try_open(body, kv, &cluster, NULL), 0);
    CHECK(cluster_disk_by_name(cluster_state(cluster), "disk-3") != NULL);
    CHECK(cluster_disk_by_name(cluster_state(cluster), "disk-5") == NULL);
    CHECK(cluster_disk_by_name(cluster_state(cluster), "new") != NULL);
    cluster_close(cluster);
    kv_close(kv);
}

static void test_taken_over(struct body *body)
{
    take_over(body, "both", &BOTH);
    take_over(body, "log", &ONLY_LOG);
    take_over(body, "state", &ONLY_STATE);
}

/* A new store keeps older programs away from the start. */
static void test_new(struct body *body)
{
    struct kv *kv = open_kv(body);
    struct cluster *cluster;
    CHECK_EQ(cluster_bootstrap(kv, 1, NULL), 0);
    CHECK_EQ(try_open(body, kv, &cluster, NULL), 0);
    check_barred(kv);
    cluster_close(cluster);
    kv_close(kv);
}

/* --- damage --- */

static async void put(struct kv *kv, const void *key, size_t key_len, const void *value,
                      size_t len)
{
    struct kv_batch batch;
    kv_batch_init(&batch);
    if (value == NULL)
        kv_batch_delete(&batch, key, key_len);
    else
        kv_batch_put(&batch, key, key_len, value, len);
    CHECK_EQ(kv_write_wait(kv, &batch, KV_SYNCED), 0);
}

/* And nothing was touched. */
static async void check_refuses(struct body *body, struct kv *kv, int code,
                                const char *text)
{
    struct cluster *cluster = NULL;
    struct error err = {0};
    CHECK_EQ(try_open(body, kv, &cluster, &err), code);
    CHECK(cluster == NULL);
    if (strstr(err.text, text) == NULL)
        CHECK_STR(err.text, text);
    CHECK_EQ(count_keys(kv, "r"), 0);
}

static void test_damage(struct body *body)
{
    static const uint8_t KEY[9] = {'l', 0, 0, 0, 0, 0, 0, 0, 2};
    struct kv *kv = open_kv(body);
    void *value;
    size_t len;
    write_old(kv, &ONLY_LOG);
    CHECK_EQ(kv_get(kv, KEY, sizeof KEY, &value, &len), 0);
    ((uint8_t *)value)[len - 1] ^= 1;
    put(kv, KEY, sizeof KEY, value, len);
    check_refuses(body, kv, -PLX_EDAMAGED, "log record 2 (key 'l'): checksum mismatch");
    put(kv, KEY, sizeof KEY, value, 3);
    check_refuses(body, kv, -PLX_EDAMAGED, "log record 2 (key 'l'): checksum mismatch");
    put(kv, KEY, sizeof KEY, NULL, 0);
    check_refuses(body, kv, -PLX_EDAMAGED, "log record 2 (key 'l') is missing, 3 is");
    ((uint8_t *)value)[len - 1] ^= 1;
    put(kv, KEY, 8, value, len);
    check_refuses(body, kv, -PLX_EDAMAGED, "a key of 8 bytes");
    put(kv, KEY, 8, NULL, 0);
    put(kv, KEY, sizeof KEY, value, len);
    put(kv, "c\0\0\0\0", 5, "nonsense", 8);
    check_refuses(body, kv, -PLX_EFORMAT, "cluster: snapshot (keys 'c')");
    put(kv, "c\0\0\0\0", 5, NULL, 0);
    free(value);
    open_and_check(body, kv, &ONLY_LOG);
    /* One of each: nobody can say which is right. */
    write_old(kv, &BOTH);
    struct cluster *cluster = NULL;
    struct error err = {0};
    CHECK_EQ(try_open(body, kv, &cluster, &err), -PLX_EEXISTS);
    CHECK(strstr(err.text, "the store has a log already") != NULL);
    kv_close(kv);
}

/* --- the nth operation of the key-value store fails --- */

struct failing {
    int64_t nth;
    bool happened, is_open;
};

static void failing_body(struct body *body)
{
    struct failing *f = body->arg;
    struct kv *kv = open_kv(body);
    struct cluster *cluster = NULL;
    struct error err = {0};
    write_old(kv, &BOTH);
    sim_fail_nth_io(body->world, f->nth);
    f->is_open = try_open(body, kv, &cluster, &err) == 0;
    f->happened = sim_failure_happened(body->world);
    CHECK(f->is_open == !f->happened && (f->is_open || err.text[0] != '\0'));
    sim_fail_nth_io(body->world, -1);
    if (f->is_open) {
        CHECK(state_is(cluster_state(cluster), BOTH.commands));
        cluster_close(cluster);
    }
    kv_close(kv);
}

static void reopen_body(struct body *body)
{
    struct kv *kv = open_kv(body);
    open_and_check(body, kv, &BOTH);
    open_and_check(body, kv, &BOTH);
    kv_close(kv);
}

static void test_failures(void)
{
    struct failing f = {.happened = true};
    for (f.nth = 0; f.happened; f.nth++) {
        struct sim_world *world = sim_world_create((uint64_t)f.nth + 1);
        run_in_world(world, failing_body, &f);
        run_in_world(world, reopen_body, &f);
        sim_world_destroy(world);
        CHECK(f.nth < 200);
    }
    CHECK(f.nth > 15);
}

/* --- the process ends after the nth step of the conversion --- */

static void write_body(struct body *body)
{
    struct kv *kv = open_kv(body);
    write_old(kv, &BOTH);
    kv_close(kv);
}

static void convert_body(struct body *body)
{
    struct cluster *cluster;
    struct kv *kv = open_kv(body);
    CHECK_EQ(try_open(body, kv, &cluster, NULL), 0);
}

/* True: it was over before. */
static bool end_after(uint64_t seed, uint32_t steps, enum sim_end how)
{
    struct sim_world *world = sim_world_create(seed);
    struct body body = {.world = world,
                        .run = convert_body,
                        .folder = "sim",
                        .call = {.main = body_main, .name = "convert"}};
    run_in_world(world, write_body, NULL);
    body.loop = sim_process_create(world);
    task_start(body.loop, &body.call);
    while (steps-- > 0 && !body.is_over)
        sim_world_step(world);
    sim_process_end(body.loop, how);
    run_in_world(world, reopen_body, NULL);
    sim_world_destroy(world);
    return body.is_over;
}

/* A process that is ended releases nothing, so it lives in a child. */
static void test_ends(void)
{
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        uint32_t steps = 0;
        for (bool is_over = false; !is_over; steps++)
            for (uint64_t seed = 1; seed <= 4; seed++)
                is_over = end_after(seed, steps, seed == 1 ? SIM_KILL : SIM_POWER_CUT);
        _exit(steps > 20 ? 0 : 1);
    }
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
}

int main(void)
{
    run_on_both(test_taken_over);
    run_on_both(test_new);
    run_on_both(test_damage);
    test_failures();
    test_ends();
    return 0;
}
