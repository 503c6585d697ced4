/* SPDX-License-Identifier: Apache-2.0 */
/* A node alone, on the real loop and the simulated one: what it stores, and what of it
 * may be damaged without anybody taking it for good. */
#include "replication/consensus.h"
#include "tests/unit/on_loops.h"

/* Adds up the bytes of all commands. */
struct sum {
    uint64_t sum, count;
};

#define UNKNOWN_COMMAND 0xeeU /* by its last byte */

static int sum_apply(void *arg, uint64_t index, const void *bytes, size_t len,
                     struct writer *answer)
{
    struct sum *sum = arg;
    const uint8_t *at = bytes;
    CHECK(index != 0);
    if (at[len - 1] == UNKNOWN_COMMAND)
        return -PLX_ENEWER;
    for (size_t i = 0; i < len; i++)
        sum->sum += at[i];
    sum->count++;
    write_u64(answer, sum->sum);
    return 0;
}

static void sum_encode(void *arg, struct writer *ret)
{
    struct sum *sum = arg;
    write_u64(ret, sum->sum);
    write_u64(ret, sum->count);
    for (unsigned i = 0; i < 3000; i++)
        write_u8(ret, (uint8_t)i);
}

static int sum_decode(void *arg, const void *bytes, size_t len, struct error *err)
{
    struct reader r = reader_of(bytes, len);
    struct sum sum = {.sum = read_u64(&r)};
    sum.count = read_u64(&r);
    if (r.bad || r.left != 3000)
        return err_set(err, -PLX_EFORMAT, "sum: %zu bytes", len);
    *(struct sum *)arg = sum;
    return 0;
}

static void no_send(void *arg, uint64_t node, const void *bytes, size_t len)
{
    (void)arg, (void)bytes, (void)len;
    CHECK(node == 0); /* there is nobody to send to */
}

static async int open_sum(struct body *body, struct kv *kv, uint64_t node,
                          struct sum *sum, struct consensus **ret, struct error *err)
{
    struct consensus_options options = {
        .loop = body->loop,
        .kv = kv,
        .node = node,
        .machine = {sum, sum_apply, sum_encode, sum_decode, NULL},
        .link = {NULL, no_send},
        .tuning = {.snapshot_entries = 10, .trailing_entries = 3, .piece_bytes = 1000},
    };
    *sum = (struct sum){0};
    *ret = NULL;
    return consensus_open(&options, ret, err);
}

static async void submit_some(struct consensus *c, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        uint8_t command[3] = {1, (uint8_t)i, 2};
        struct writer answer = {0};
        CHECK_EQ(consensus_submit(c, command, sizeof command, &answer), 0);
        CHECK_EQ(answer.len, 8);
        writer_done(&answer);
    }
}

static async struct kv *open_kv(struct body *body)
{
    struct error err = {0};
    struct kv *kv = NULL;
    CHECK_EQ(kv_open(body->loop, body_path(body, "kv"), true, &kv, &err), 0);
    return kv;
}

static void test_life(struct body *body)
{
    struct error err = {0};
    struct kv *kv = open_kv(body);
    struct consensus *c;
    struct sum sum;
    CHECK_EQ(consensus_bootstrap(kv, 5, NULL, &err), 0);
    CHECK_EQ(consensus_bootstrap(kv, 5, NULL, &err), -PLX_EEXISTS);
    uint64_t term = 0;
    for (unsigned i = 1; i <= 4; i++) {
        CHECK_EQ(open_sum(body, kv, 5, &sum, &c, &err), 0);
        CHECK(consensus_term(c) > term);
        term = consensus_term(c);
        CHECK_EQ(consensus_barrier(c), 0);
        CHECK(consensus_is_leader(c) && consensus_leader(c) == 5);
        submit_some(c, 25);
        CHECK_EQ(sum.count, 25 * i);
        CHECK_EQ(sum.sum, (3 * 25 + 24 * 25 / 2) * i);
        consensus_close(c);
    }
    kv_close(kv);
}

/* A command that this program cannot carry out ends it here, and is not passed over
 * later. */
static void test_unknown_command(struct body *body)
{
    struct error err = {0};
    struct kv *kv = open_kv(body);
    struct writer answer = {0};
    struct consensus *c;
    struct sum sum;
    uint8_t command = UNKNOWN_COMMAND;
    CHECK_EQ(consensus_bootstrap(kv, 5, NULL, &err), 0);
    CHECK_EQ(open_sum(body, kv, 5, &sum, &c, &err), 0);
    submit_some(c, 2);
    CHECK_EQ(consensus_failure(c), 0);
    CHECK_EQ(consensus_submit(c, &command, 1, &answer), -PLX_EFAILED);
    CHECK_EQ(consensus_failure(c), -PLX_ENEWER);
    CHECK_EQ(consensus_submit(c, "x", 1, &answer), -PLX_EFAILED);
    consensus_close(c);
    for (unsigned i = 0; i < 2; i++) {
        CHECK_EQ(open_sum(body, kv, 5, &sum, &c, &err), -PLX_ENEWER);
        CHECK(strstr(err.text, "log entry 5 (key 're')") != NULL);
        CHECK_EQ(sum.count, 2);
    }
    kv_close(kv);
}

/* From a state that something else has made. */
static void test_bootstrap_from(struct body *body)
{
    struct error err = {0};
    struct kv *kv = open_kv(body);
    struct writer state = {0};
    struct kv_batch also;
    struct consensus *c;
    struct sum sum = {.sum = 70, .count = 7};
    void *value;
    size_t len;
    sum_encode(&sum, &state);
    kv_batch_init(&also);
    kv_batch_put(&also, "x", 1, "y", 1);
    CHECK_EQ(consensus_bootstrap_from(kv, 5, 700, state.bytes, state.len, &also, &err),
             0);
    CHECK_EQ(kv_get(kv, "x", 1, &value, &len), 0);
    free(value);
    CHECK_EQ(consensus_bootstrap_from(kv, 5, 700, state.bytes, state.len, NULL, &err),
             -PLX_EEXISTS);
    for (unsigned i = 0; i < 3; i++) {
        CHECK_EQ(open_sum(body, kv, 5, &sum, &c, &err), 0);
        CHECK_EQ(sum.count, 7 + 20 * i);
        CHECK(consensus_is_leader(c) && consensus_applied(c) > 700);
        submit_some(c, 20);
        CHECK_EQ(sum.count, 27 + 20 * i);
        consensus_close(c);
    }
    writer_done(&state);
    kv_close(kv);
}

/* --- damage --- */

static async struct kv_page all_of(struct kv *kv)
{
    struct kv_page page;
    CHECK_EQ(kv_scan(kv, "r", 1, NULL, 0, 1000, &page), 0);
    CHECK(!page.more);
    return page;
}

static async void put(struct kv *kv, const struct kv_pair *pair, const uint8_t *value,
                      size_t len)
{
    struct kv_batch batch;
    kv_batch_init(&batch);
    if (value == NULL)
        kv_batch_delete(&batch, pair->key, pair->key_len);
    else
        kv_batch_put(&batch, pair->key, pair->key_len, value, len);
    CHECK_EQ(kv_write_wait(kv, &batch, KV_SYNCED), 0);
}

/* It must not open, and say why in one line, with the kind of key. */
static async void refused(struct body *body, struct kv *kv, const struct kv_pair *pair,
                          int code)
{
    struct error err = {0};
    struct consensus *c;
    struct sum sum;
    char key[8];
    CHECK_EQ(open_sum(body, kv, 5, &sum, &c, &err), code);
    snprintf(key, sizeof key, "'%.2s'", (const char *)pair->key);
    CHECK(strchr(err.text, '\n') == NULL);
    if (strstr(err.text, key) == NULL)
        fprintf(stderr, "%s does not name %s\n", err.text, key);
    CHECK(strstr(err.text, key) != NULL);
}

static async void damage_pair(struct body *body, struct kv *kv,
                              const struct kv_pair *pair)
{
    uint8_t *copy = malloc(pair->value_len + 1);
    CHECK(copy != NULL);
    size_t step = pair->value_len / 7 + 1;
    for (size_t at = 1; at < pair->value_len; at += step) {
        memcpy(copy, pair->value, pair->value_len);
        copy[at] ^= 0x10;
        put(kv, pair, copy, pair->value_len);
        refused(body, kv, pair, -PLX_EDAMAGED);
    }
    for (size_t len = 0; len < pair->value_len; len += step) {
        put(kv, pair, pair->value, len);
        refused(body, kv, pair, -PLX_EDAMAGED);
    }
    put(kv, pair, pair->value, pair->value_len);
    free(copy);
}

/* A record under another one's key has a good checksum elsewhere. */
static async void swap_pairs(struct body *body, struct kv *kv, const struct kv_pair *a,
                             const struct kv_pair *b)
{
    put(kv, a, b->value, b->value_len);
    refused(body, kv, a, -PLX_EDAMAGED);
    put(kv, a, a->value, a->value_len);
}

static void test_damage(struct body *body)
{
    struct error err = {0};
    struct kv *kv = open_kv(body);
    struct consensus *c;
    struct sum sum;
    uint32_t kinds[256] = {0}, last_entry = 0;
    CHECK_EQ(consensus_bootstrap(kv, 5, NULL, &err), 0);
    CHECK_EQ(open_sum(body, kv, 5, &sum, &c, &err), 0);
    submit_some(c, 30);
    consensus_close(c);
    CHECK_EQ(open_sum(body, kv, 6, &sum, &c, &err), -PLX_EPRECONDITION);
    struct kv_page page = all_of(kv);
    for (uint32_t i = 0; i < page.count; i++)
        if (page.pairs[i].key[1] == 'e')
            last_entry = i;
    for (uint32_t i = 0; i < page.count; i++) {
        const struct kv_pair *pair = &page.pairs[i];
        uint8_t kind = pair->key[1];
        kinds[kind]++;
        damage_pair(body, kv, pair);
        if (i + 1 < page.count && page.pairs[i + 1].key[1] == kind)
            swap_pairs(body, kv, pair, &page.pairs[i + 1]);
        /* A log may be shorter than it was at its end, as far as anybody can tell. */
        if (kind == 'p' || (kind == 'e' && kinds['e'] != 1 && i != last_entry)) {
            put(kv, pair, NULL, 0);
            refused(body, kv, pair, -PLX_EDAMAGED);
            put(kv, pair, pair->value, pair->value_len);
        }
    }
    CHECK(kinds['v'] == 1 && kinds['s'] == 1 && kinds['p'] == 4 && kinds['e'] > 3);
    kv_page_done(&page);
    CHECK_EQ(open_sum(body, kv, 5, &sum, &c, &err), 0);
    CHECK_EQ(consensus_barrier(c), 0);
    CHECK_EQ(sum.count, 30);
    consensus_close(c);
    kv_close(kv);
}

/* A later version is not damage. */
static void test_newer(struct body *body)
{
    struct error err = {0};
    struct kv *kv = open_kv(body);
    CHECK_EQ(consensus_bootstrap(kv, 5, NULL, &err), 0);
    struct kv_page page = all_of(kv);
    for (uint32_t i = 0; i < page.count; i++) {
        const struct kv_pair *pair = &page.pairs[i];
        uint8_t *copy = malloc(pair->value_len);
        CHECK(copy != NULL);
        memcpy(copy, pair->value, pair->value_len);
        copy[0] = 2;
        uint32_t crc = crc32c(pair->key, pair->key_len);
        crc = crc32c_more(crc, copy, 1);
        crc = crc32c_more(crc, copy + 5, pair->value_len - 5);
        le32 field = le32_of(crc);
        memcpy(copy + 1, &field, sizeof field);
        put(kv, pair, copy, pair->value_len);
        refused(body, kv, pair, -PLX_ENEWER);
        put(kv, pair, pair->value, pair->value_len);
        free(copy);
    }
    kv_page_done(&page);
    kv_close(kv);
}

/* --- the nth operation of the key-value store fails --- */

struct failing {
    int64_t nth;
    bool happened;
    unsigned answered;
};

/* With everything closed properly; what is not released is seen by who looks for it. */
static void failing_body(struct body *body)
{
    struct failing *f = body->arg;
    struct error err = {0};
    struct consensus *c;
    struct sum sum;
    struct kv *kv = open_kv(body);
    sim_fail_nth_io(body->world, f->nth);
    int rc = consensus_bootstrap(kv, 5, NULL, &err);
    for (unsigned i = 0; i < 2 && rc == 0; i++) {
        rc = open_sum(body, kv, 5, &sum, &c, &err);
        for (unsigned k = 0; k < 20 && rc == 0; k++) {
            struct writer answer = {0};
            rc = consensus_submit(c, "x", 1, &answer);
            writer_done(&answer);
            f->answered += rc == 0;
            CHECK(rc == 0 || (rc == -PLX_EFAILED && consensus_failure(c) == -EIO));
        }
        if (c != NULL)
            consensus_close(c);
        c = NULL;
    }
    f->happened = sim_failure_happened(body->world);
    CHECK((rc == 0) == !f->happened || f->answered == 40); /* old pieces may stay */
    sim_fail_nth_io(body->world, -1);
    kv_close(kv);
}

static void failed_before_body(struct body *body)
{
    struct failing *f = body->arg;
    struct error err = {0};
    struct consensus *c;
    struct sum sum;
    struct kv *kv = open_kv(body);
    int rc = consensus_bootstrap(kv, 5, NULL, &err);
    CHECK(rc == 0 || rc == -PLX_EEXISTS);
    CHECK_EQ(open_sum(body, kv, 5, &sum, &c, &err), 0);
    CHECK(sum.count == f->answered || sum.count == f->answered + 1);
    consensus_close(c);
    kv_close(kv);
}

static void test_failures(void)
{
    struct failing f = {.happened = true};
    for (int64_t nth = 0; f.happened; nth++) {
        struct sim_world *world = sim_world_create((uint64_t)nth + 1);
        f = (struct failing){.nth = nth};
        run_in_world(world, failing_body, &f);
        run_in_world(world, failed_before_body, &f);
        sim_world_destroy(world);
        CHECK(nth < 1000 && (f.happened || nth > 60));
    }
}

int main(void)
{
    run_on_both(test_life);
    run_on_both(test_unknown_command);
    run_on_both(test_bootstrap_from);
    test_failures();
    run_on_real(test_damage);
    run_on_real(test_newer);
    return 0;
}
