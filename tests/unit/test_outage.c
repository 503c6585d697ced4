/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A host whose cluster has no majority for a while. Its guests write on; what needs a
 * command waits until it is known what has become of it, and no disk is lost for that.
 */
#include <sys/wait.h>

#include "cow/reclaim.h"
#include "tests/unit/cluster_peers.h"
#include "tests/unit/disk_machine.h"
#include "tests/unit/space_account.h"

#define SIZE  (2 * MIB)
#define SEEDS 12U
#define LITTLE_LOG (512 * KIB)
#define MUCH_LOG   (512 * MIB) /* changes never wait for a checkpoint */

/* The host of node 1, with one disk. */
struct guest {
    struct peers *all;
    struct peer *node;
    struct machine machine;
    struct store *store;
    struct disk *disk;
    struct model *now;
    uint64_t log_bytes; /* before a checkpoint is due */
};

static async void open_host(struct guest *g)
{
    struct peer *n = g->node;
    struct store_options store = {.path = "node1/store",
                                  .capacity_bytes = 256 * MIB,
                                  .kv = n->kv,
                                  .no_idle_work = true};
    struct host_parts parts = {.kv = n->kv, .cluster = n->cluster, .node = 1};
    struct host_options options = {
        .parts = &parts, .checkpoint_log_bytes = g->log_bytes, .no_idle_work = true};
    if (sim_file_size_bytes(g->all->world, store.path) == 0)
        DO(store_create(n->loop, &store, (struct uid){{1}}, &err));
    store.capacity_bytes = 0;
    DO(store_open(n->loop, &store, &g->store, &err));
    parts.store = g->store;
    DO(host_open(n->loop, &options, &g->machine.host, &err));
    g->machine.world = g->all->world;
}

static void run_open(struct errand *errand)
{
    struct guest *g = errand->arg;
    open_host(g);
    if (cluster_disk_by_name(cluster_state(g->node->cluster), "d") == NULL)
        DO(disk_create(g->machine.host, "d", SIZE, &err));
    g->disk = attach(&g->machine, "d");
    errand->rc = 0;
}

/* Everything in order, whatever the network does. */
static void run_stop(struct errand *errand)
{
    struct guest *g = errand->arg;
    disk_close(take(g->disk));
    host_close(take(g->machine.host));
    store_close(take(g->store));
    run_close(errand);
}

static void run_work(struct errand *errand)
{
    struct guest *g = errand->arg;
    random_rounds(&g->machine, g->disk, g->now, (uint32_t)errand->number);
    errand->rc = flush(g->disk);
}

static void run_checkpoint(struct errand *errand)
{
    struct guest *g = errand->arg;
    struct error err = {0};
    errand->rc = disk_checkpoint(g->disk, &err);
}

#define NAME_BYTES 16U

static void snapshot_name(uint64_t number, char ret[NAME_BYTES])
{
    snprintf(ret, NAME_BYTES, "s%u", (unsigned)number);
}

static void run_snapshot(struct errand *errand)
{
    struct guest *g = errand->arg;
    struct error err = {0};
    char name[NAME_BYTES];
    snapshot_name(errand->number, name);
    errand->rc = snapshot_create(g->machine.host, "d", name, &err);
}

static void run_remove(struct errand *errand)
{
    struct guest *g = errand->arg;
    struct error err = {0};
    char name[NAME_BYTES];
    const char *names[] = {name};
    snapshot_name(errand->number, name);
    errand->rc = snapshot_remove(g->machine.host, "d", names, 1, &err);
}

/* Writes go to an extent that is not open yet: what is open does not hold them. */
static void run_use_up(struct errand *errand)
{
    struct guest *g = errand->arg;
    static uint8_t bytes[128 * KIB];
    memset(bytes, 7, sizeof bytes);
    memcpy(g->now->bytes, bytes, sizeof bytes);
    (void)log_end_extent(g->disk->log);
    for (uint64_t at = 0; at <= (uint64_t)EXTENT_BLOCKS * BLOCK_SIZE; at += sizeof bytes)
        CHECK_EQ(write_bytes_at(g->disk, 0, sizeof bytes, bytes, 0), 0);
    errand->rc = flush(g->disk);
}

static void run_resize(struct errand *errand)
{
    struct guest *g = errand->arg;
    struct error err = {0};
    errand->rc = disk_resize(g->machine.host, "d", errand->number, &err);
}

static void run_verify(struct errand *errand)
{
    struct guest *g = errand->arg;
    CHECK_EQ(g->disk->down, 0);
    check_content(g->disk, g->now);
    errand->rc = 0;
}

/* Nothing is wrong with anything the store has, once all is quiet. */
static void run_account(struct errand *errand)
{
    struct guest *g = errand->arg;
    struct host *host = g->machine.host;
    disk_close(take(g->disk));
    for (uint32_t i = 0; reclaim_pending(host) > 0 && i < 600; i++)
        task_sleep_ns(100 * NS_PER_MS);
    CHECK_EQ(reclaim_pending(host), 0);
    await_closed(host);
    CHECK_EQ(cluster_disk_by_name(cluster_state(host->cluster), "d")->owner, 0);
    check_clean(&g->machine);
    check_space(host, true);
    g->disk = attach(&g->machine, "d");
    errand->rc = 0;
}

#define GUEST(g, ...) errand_do((g)->node, &(struct errand){.arg = (g), __VA_ARGS__})

static struct guest *guest_create(uint64_t seed, uint64_t log_bytes)
{
    struct guest *g = calloc(1, sizeof *g);
    CHECK(g != NULL);
    g->log_bytes = log_bytes;
    g->all = peers_create(seed, 3);
    peers_found(g->all);
    g->node = &g->all->peers[1];
    g->now = model_create(SIZE);
    CHECK(peers_leader(g->all) == g->node);
    GUEST(g, .run = run_open);
    GUEST(g, .run = run_work, .number = 20);
    return g;
}

static void guest_destroy(struct guest *g)
{
    peers_destroy(g->all);
    free(g->now);
    free(g);
}

static void guest_end(struct guest *g)
{
    GUEST(g, .run = run_verify);
    GUEST(g, .run = run_account);
    GUEST(g, .run = run_verify);
    CHECK_EQ(GUEST(g, .run = run_stop), 0);
    guest_destroy(g);
}

/* --- stories --- */

/* Node 1 leads no more: it reaches nobody, or, more doubtful, it hears of nothing while
 * the others take what it said last. */
static void cut_off(struct guest *g, uint64_t seed)
{
    peers_split(g->all, 1U << 1);
    for (uint32_t i = 2; i <= g->all->count && seed % 2 == 0; i++)
        g->all->is_blocked[1][i] = false;
}

/* A command of each kind that leaves its proposer in doubt. */
static void doubt(uint64_t seed, void (*run)(struct errand *errand), uint64_t number)
{
    struct guest *g = guest_create(seed, MUCH_LOG);
    struct errand errand = {.run = run, .arg = g, .number = number};
    cut_off(g, seed);
    errand_start(g->node, &errand);
    peers_run(g->all, 500);
    CHECK_EQ(GUEST(g, .run = run_work, .number = 10), 0);
    peers_run(g->all, 60000);
    CHECK(!errand.is_over && g->disk->down == 0);
    peers_heal(g->all);
    CHECK_EQ(errand_wait(&errand, 30000), 0);
    guest_end(g);
}

static void test_checkpoint(uint64_t seed)
{
    doubt(seed, run_checkpoint, 0);
}

static void test_snapshot(uint64_t seed)
{
    doubt(seed, run_snapshot, 1);
}

static void test_resize(uint64_t seed)
{
    struct guest *g = guest_create(seed, MUCH_LOG);
    struct errand errand = {.run = run_resize, .arg = g, .number = 2 * SIZE};
    cut_off(g, seed);
    errand_start(g->node, &errand);
    peers_run(g->all, 60000);
    CHECK(!errand.is_over && g->disk->down == 0);
    peers_heal(g->all);
    CHECK_EQ(errand_wait(&errand, 30000), 0);
    g->now->size_bytes = 2 * SIZE;
    guest_end(g);
}

/* A log that needs extents waits for them, and knows in the end which it has: otherwise
 * the disk could not be closed. */
static void test_extents(uint64_t seed)
{
    struct guest *g = guest_create(seed, MUCH_LOG);
    struct errand errand = {.run = run_use_up, .arg = g};
    cut_off(g, seed);
    errand_start(g->node, &errand);
    peers_run(g->all, 200000);
    CHECK(!errand.is_over && g->disk->down == 0);
    peers_heal(g->all);
    CHECK_EQ(errand_wait(&errand, 60000), 0);
    guest_end(g);
}

/* Without a leader from the start nothing is in doubt: it was not done, and the user is
 * told. */
static void test_no_leader(uint64_t seed)
{
    struct guest *g = guest_create(seed, MUCH_LOG);
    cut_off(g, seed);
    peers_run(g->all, 3000);
    CHECK_EQ(GUEST(g, .run = run_snapshot, .number = 1), -PLX_ENOLEADER);
    CHECK_EQ(GUEST(g, .run = run_checkpoint), -PLX_ENOLEADER);
    CHECK_EQ(GUEST(g, .run = run_work, .number = 5), 0);
    peers_heal(g->all);
    CHECK_EQ(GUEST(g, .run = run_snapshot, .number = 1), 0);
    CHECK_EQ(GUEST(g, .run = run_checkpoint), 0);
    guest_end(g);
}

/* A host that is told to stop does not wait for a majority; what was flushed is there
 * when it starts again, whatever has become of the commands. */
static void test_stop(uint64_t seed)
{
    struct guest *g = guest_create(seed, MUCH_LOG);
    struct errand checkpoint = {.run = run_checkpoint, .arg = g};
    struct errand snapshot = {.run = run_snapshot, .arg = g, .number = 1};
    cut_off(g, seed);
    errand_start(g->node, seed % 3 == 0 ? &checkpoint : &snapshot);
    peers_run(g->all, 1000);
    CHECK_EQ(GUEST(g, .run = run_stop), 0);
    CHECK(seed % 3 == 0 ? checkpoint.is_over : snapshot.is_over);
    peer_end(g->node, SIM_KILL);
    peers_heal(g->all);
    peers_run(g->all, chance_of(g->all, 10000));
    peer_open(g->node);
    CHECK_EQ(GUEST(g, .run = run_barrier), 0);
    GUEST(g, .run = run_open);
    guest_end(g);
}

/* --- random outages --- */

static void test_random(uint64_t seed)
{
    struct guest *g = guest_create(seed, LITTLE_LOG);
    struct errand work = {.run = run_work, .arg = g};
    struct errand snapshot = {.run = run_snapshot, .arg = g};
    struct errand removal = {.run = run_remove, .arg = g};
    struct errand checkpoint = {.run = run_checkpoint, .arg = g};
    struct errand *errands[] = {&work, &snapshot, &removal, &checkpoint};
    for (uint32_t i = 0; i < 8; i++) {
        work.number = 1 + chance_of(g->all, 30);
        snapshot.number = i;
        removal.number = i < 2 ? 0 : chance_of(g->all, i);
        for (uint32_t k = 0; k < ARRAY_LEN(errands); k++) {
            peers_run(g->all, chance_of(g->all, 20));
            errand_start(g->node, errands[k]);
            if (chance_of(g->all, 2) == 0)
                peers_split(g->all, (uint32_t)chance_of(g->all, 8) << 1);
        }
        peers_run(g->all, chance_of(g->all, 45000));
        peers_heal(g->all);
        for (uint32_t k = 0; k < ARRAY_LEN(errands); k++)
            (void)errand_wait(errands[k], 120000);
        CHECK_EQ(work.rc, 0);
        CHECK_EQ(g->disk->down, 0);
        CHECK(snapshot.rc == 0 || snapshot.rc == -PLX_ENOLEADER);
    }
    guest_end(g);
}

int main(int argc, char **argv)
{
    static void (*const STORIES[])(uint64_t seed) = {
        test_checkpoint, test_snapshot, test_resize, test_extents,
        test_no_leader,  test_stop,     test_random,
    };
    for (size_t i = 0; i < ARRAY_LEN(STORIES); i++) {
        uint64_t last = seeds_of(SEEDS), first = 1;
        if (argc > 1) /* one seed, all stories */
            first = last = strtoull(argv[1], NULL, 10);
        /* A process that is ended releases nothing, so it lives in a child. */
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            for (uint64_t seed = first; seed <= last; seed++)
                STORIES[i](seed);
            _exit(0);
        }
        int status = 0;
        CHECK_EQ(waitpid(child, &status, 0), child);
        if (status != 0)
            fprintf(stderr, "story %zu\n", i);
        CHECK_EQ(status, 0);
    }
    return 0;
}
