/* SPDX-License-Identifier: Apache-2.0 */
/* A cluster of one: what was answered is there after any end of the process. */
#include <sys/wait.h>

#include "replication/cluster.h"
#include "tests/unit/on_loops.h"

#define SUBMITTERS 8U
#define SEEDS      60U

static int try_open(struct body *body, struct kv *kv, struct cluster **ret_cluster)
{
    struct cluster_options options = {.loop = body->loop, .kv = kv, .node = 1};
    struct error err = {0};
    int rc = cluster_bootstrap(kv, 1, &err);
    if (rc == 0 || rc == -PLX_EEXISTS)
        rc = cluster_open(&options, ret_cluster, &err);
    CHECK((rc == 0) == (*ret_cluster != NULL) && (rc == 0 || err.text[0] != '\0'));
    return rc;
}

static struct cluster *open_all(struct body *body, struct kv **ret_kv)
{
    struct cluster *cluster = NULL;
    CHECK_EQ(kv_open(body->loop, body_path(body, "kv"), true, ret_kv, NULL), 0);
    CHECK_EQ(try_open(body, *ret_kv, &cluster), 0);
    return cluster;
}

static int init(struct cluster *cluster)
{
    struct cluster_result result;
    return cluster_submit(
        cluster,
        &(struct cluster_command){.op = CLUSTER_INIT, .node = 1, .cluster = {{1, 2, 3}}},
        &result);
}

static int create(struct cluster *cluster, const char *name,
                  struct cluster_result *ret_result)
{
    return cluster_submit(cluster,
                          &(struct cluster_command){
                              .op = CLUSTER_DISK_CREATE, .name = name, .size_bytes = MIB},
                          ret_result);
}

static void encode(const struct cluster *cluster, struct writer *ret)
{
    *ret = (struct writer){0};
    cluster_state_encode(cluster_state(cluster), ret);
    CHECK(!ret->bad);
}

static uint32_t count_keys(struct kv *kv, const char *prefix)
{
    struct kv_page page;
    uint8_t after[KV_KEY_MAX];
    size_t after_len = 0;
    uint32_t count = 0;
    bool more = true;
    while (more) {
        CHECK_EQ(kv_scan(kv, prefix, strlen(prefix), after, after_len, 1000, &page), 0);
        count += page.count;
        more = page.more;
        if (page.count != 0) {
            after_len = page.pairs[page.count - 1].key_len;
            memcpy(after, page.pairs[page.count - 1].key, after_len);
        }
        kv_page_done(&page);
    }
    return count;
}

static void test_reopen(struct body *body)
{
    struct kv *kv;
    struct cluster *cluster = open_all(body, &kv);
    struct cluster_result result;
    struct writer before, after;
    char name[DISK_NAME_MAX + 2];
    CHECK_EQ(cluster_state_applied(cluster_state(cluster)), 0);
    CHECK_EQ(create(cluster, "early", &result), -PLX_EPRECONDITION);
    CHECK_EQ(init(cluster), 0);
    CHECK_EQ(create(cluster, "a", &result), 0);
    CHECK_EQ(result.id, 1);
    CHECK_EQ(create(cluster, "a", &result), -PLX_EEXISTS);
    CHECK_STR(result.text, "disk a: exists already");
    memset(name, 'x', sizeof name);
    name[sizeof name - 1] = '\0';
    CHECK_EQ(create(cluster, name, &result), -PLX_ENAME); /* never gets into the log */
    encode(cluster, &before);
    cluster_close(cluster);
    kv_close(kv);

    cluster = open_all(body, &kv);
    encode(cluster, &after);
    CHECK_EQ(before.len, after.len);
    CHECK(memcmp(before.bytes, after.bytes, before.len) == 0);
    writer_done(&before);
    writer_done(&after);
    CHECK_EQ(create(cluster, "b", &result), 0);
    CHECK_EQ(result.id, 2);
    cluster_close(cluster);
    kv_close(kv);
}

/* --- many at once --- */

struct submitter {
    struct task_call call;
    struct cluster *cluster;
    uint32_t number, commands; /* how many it submits */
    uint32_t answered;         /* how many of these were answered with 0 */
    int code;                  /* the first that was not 0 */
    uint32_t *left;
    struct event *all_over;
};

static void submitter_name(uint32_t number, uint32_t i, char ret[32])
{
    snprintf(ret, 32, "d%u-%u", number, i);
}

static void submitter_main(struct task_call *call)
{
    struct submitter *s = container_of(call, struct submitter, call);
    for (uint32_t i = 0; i < s->commands && s->code == 0; i++) {
        struct cluster_result result;
        char name[32];
        submitter_name(s->number, i, name);
        s->code = create(s->cluster, name, &result);
        if (s->code == 0)
            s->answered++;
    }
    if (--*s->left == 0)
        event_set(s->all_over);
}

static void run_submitters(struct body *body, struct cluster *cluster,
                           struct submitter *submitters, uint32_t count,
                           uint32_t commands)
{
    struct event all_over;
    uint32_t left = count;
    event_init(&all_over);
    for (uint32_t i = 0; i < count; i++) {
        submitters[i] = (struct submitter){
            .call = {.main = submitter_main, .name = "submitter"},
            .cluster = cluster,
            .number = i,
            .commands = commands,
            .left = &left,
            .all_over = &all_over,
        };
        task_start(body->loop, &submitters[i].call);
    }
    event_wait(&all_over);
}

static void check_submitted(const struct cluster *cluster,
                            const struct submitter *submitters, uint32_t count)
{
    char name[200];
    CHECK_EQ(cluster_state_check(cluster_state(cluster), name, sizeof name), 0);
    for (uint32_t i = 0; i < count; i++) {
        for (uint32_t j = 0; j < submitters[i].answered; j++) {
            submitter_name(i, j, name);
            CHECK(cluster_disk_by_name(cluster_state(cluster), name) != NULL);
        }
    }
}

/* A hundred commands at once share a few writes; one has one, and a barrier none. */
static void test_group(struct body *body)
{
    struct cluster_result result;
    struct kv *kv;
    static struct submitter submitters[100];
    struct cluster *cluster = open_all(body, &kv);
    const struct metric *writes = metric_counter(body->loop,
                                                 "parallax_consensus_writes_total", "");
    CHECK_EQ(init(cluster), 0);
    uint64_t before = writes->value;
    run_submitters(body, cluster, submitters, 100, 1);
    CHECK(writes->value - before < 10); /* how many tasks start per round differs */
    check_submitted(cluster, submitters, 100);
    CHECK_EQ(cluster_disk_count(cluster_state(cluster)), 100);
    before = writes->value;
    CHECK_EQ(create(cluster, "alone", &result), 0);
    CHECK_EQ(writes->value, before + 1);
    CHECK_EQ(cluster_barrier(cluster), 0);
    CHECK_EQ(writes->value, before + 1);
    cluster_close(cluster);
    kv_close(kv);
}

/* --- snapshot and truncation --- */

static void test_snapshot(struct body *body)
{
    struct kv *kv;
    static struct submitter submitters[100];
    struct cluster *cluster = open_all(body, &kv);
    struct writer before, after;
    CHECK_EQ(init(cluster), 0);
    run_submitters(body, cluster, submitters, 100, 40);
    CHECK(count_keys(kv, "re") > 4001);
    CHECK_EQ(count_keys(kv, "rp"), 0);
    run_submitters(body, cluster, submitters, 100, 50); /* their names exist already */
    CHECK_EQ(cluster_disk_count(cluster_state(cluster)), 4000);
    CHECK_EQ(submitters[0].code, -PLX_EEXISTS);
    encode(cluster, &before);
    cluster_close(cluster);
    CHECK_EQ(count_keys(kv, "rp"), 1);
    CHECK(count_keys(kv, "re") < 500);
    kv_close(kv);

    cluster = open_all(body, &kv);
    encode(cluster, &after);
    CHECK_EQ(before.len, after.len);
    CHECK(memcmp(before.bytes, after.bytes, before.len) == 0);
    writer_done(&before);
    writer_done(&after);
    cluster_close(cluster);
    kv_close(kv);
}

/* A state of several pieces that later needs fewer. */
static void test_pieces(struct body *body)
{
    struct kv *kv;
    static struct submitter submitters[100];
    struct cluster *cluster = open_all(body, &kv);
    struct cluster_result result;
    struct cluster_command command = {.op = CLUSTER_LEASE_TAKE, .disk = 1, .node = 1};
    CHECK_EQ(init(cluster), 0);
    CHECK_EQ(create(cluster, "gold", &result), 0);
    CHECK_EQ(cluster_submit(cluster, &command, &result), 0);
    command = (struct cluster_command){.op = CLUSTER_SNAPSHOT,
                                       .disk = 1,
                                       .epoch = 1,
                                       .marker = 1,
                                       .generation = 1,
                                       .name = "s"};
    CHECK_EQ(cluster_submit(cluster, &command, &result), 0);
    command = (struct cluster_command){
        .op = CLUSTER_CLONE, .version = 1, .name = "vm", .count = 10000};
    CHECK_EQ(cluster_submit(cluster, &command, &result), 0);
    run_submitters(body, cluster, submitters, 100, 41);
    CHECK_EQ(create(cluster, "one-more", &result), 0);
    cluster_close(cluster);
    CHECK_EQ(count_keys(kv, "rp"), 2);
    kv_close(kv);
    cluster = open_all(body, &kv);
    CHECK_EQ(cluster_disk_count(cluster_state(cluster)), 10000 + 4100 + 2);
    check_submitted(cluster, submitters, 100);
    cluster_close(cluster);
    kv_close(kv);
}

/* --- the nth operation of the key-value store fails --- */

struct failing {
    int64_t nth;
    bool happened;
    struct submitter submitters[SUBMITTERS];
};

static void failing_body(struct body *body)
{
    struct failing *f = body->arg;
    struct kv *kv = NULL;
    struct cluster *cluster = NULL;
    struct cluster_result result;
    memset(f->submitters, 0, sizeof f->submitters);
    CHECK_EQ(kv_open(body->loop, "failing", true, &kv, NULL), 0);
    sim_fail_nth_io(body->world, f->nth);
    int rc = try_open(body, kv, &cluster);
    if (rc == 0) {
        rc = init(cluster);
        run_submitters(body, cluster, f->submitters, SUBMITTERS, 5);
        f->happened = sim_failure_happened(body->world);
        if (f->happened) { /* it takes no more commands */
            CHECK_EQ(create(cluster, "late", &result), -PLX_EFAILED);
            CHECK(result.text[0] != '\0');
            CHECK_EQ(cluster_failure(cluster), -EIO);
            CHECK_EQ(cluster_barrier(cluster), -PLX_EFAILED);
        }
        for (uint32_t i = 0; i < SUBMITTERS; i++)
            CHECK_EQ(f->submitters[i].code,
                     f->submitters[i].answered == 5 ? 0 : -PLX_EFAILED);
        CHECK(f->happened || (rc == 0 && f->submitters[0].answered == 5));
        cluster_close(cluster);
    } else {
        f->happened = sim_failure_happened(body->world);
        CHECK(f->happened);
    }
    sim_fail_nth_io(body->world, -1);
    kv_close(kv);
}

static void failed_before_body(struct body *body)
{
    struct failing *f = body->arg;
    struct kv *kv = NULL;
    struct cluster *cluster = NULL;
    CHECK_EQ(kv_open(body->loop, "failing", false, &kv, NULL), 0);
    CHECK_EQ(try_open(body, kv, &cluster), 0);
    check_submitted(cluster, f->submitters, SUBMITTERS);
    CHECK(cluster_disk_by_name(cluster_state(cluster), "late") == NULL);
    cluster_close(cluster);
    kv_close(kv);
}

static void test_failures(void)
{
    static struct failing failing;
    failing.happened = true;
    for (failing.nth = 0; failing.happened; failing.nth++) {
        struct sim_world *world = sim_world_create((uint64_t)failing.nth + 1);
        run_in_world(world, failing_body, &failing);
        run_in_world(world, failed_before_body, &failing);
        sim_world_destroy(world);
    }
    CHECK(failing.nth > 5);
}

/* --- ends of the process, where it stands --- */

struct life {
    struct submitter submitters[SUBMITTERS];
    bool is_checking;
};

static void life_body(struct body *body)
{
    struct life *life = body->arg;
    struct kv *kv;
    struct cluster *cluster = open_all(body, &kv);
    if (life->is_checking) {
        check_submitted(cluster, life->submitters, SUBMITTERS);
        return;
    }
    init(cluster); /* or there is one already */
    run_submitters(body, cluster, life->submitters, SUBMITTERS, 900);
}

/* The process ends at a random step, often before, while or after a snapshot is taken. */
static void run_lives(uint64_t seed)
{
    static struct life life;
    struct sim_world *world = sim_world_create(seed);
    struct body body = {.world = world,
                        .arg = &life,
                        .run = life_body,
                        .folder = "sim",
                        .call = {.main = body_main, .name = "life"}};
    uint64_t steps = 20 + sim_world_random(world, 12000);
    body.loop = sim_process_create(world);
    task_start(body.loop, &body.call);
    while (steps-- > 0 && !body.is_over)
        sim_world_step(world);
    sim_process_end(body.loop, sim_world_random(world, 2) ? SIM_KILL : SIM_POWER_CUT);
    /* Twice: opening must change nothing. */
    life.is_checking = true;
    for (unsigned i = 0; i < 2; i++) {
        body.is_over = false;
        body.loop = sim_process_create(world);
        task_start(body.loop, &body.call);
        CHECK(sim_world_run_until(world, &body.is_over, BODY_LIMIT_NS));
        sim_process_end(body.loop, SIM_POWER_CUT);
    }
}

/* A process that is ended releases nothing, so it lives in a child. */
static void test_lives(void)
{
    for (uint64_t seed = 1; seed <= seeds_of(SEEDS); seed++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            run_lives(seed);
            _exit(0);
        }
        int status = 0;
        CHECK_EQ(waitpid(child, &status, 0), child);
        if (status != 0)
            fprintf(stderr, "seed %llu\n", (unsigned long long)seed);
        CHECK_EQ(status, 0);
    }
}

int main(void)
{
    run_on_both(test_reopen);
    run_on_real(test_group);
    run_on_sim(test_group);
    run_on_real(test_snapshot);
    run_on_sim(test_snapshot);
    run_on_real(test_pieces);
    test_failures();
    test_lives();
    return 0;
}
