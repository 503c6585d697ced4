/* SPDX-License-Identifier: Apache-2.0 */
/* The nth input or output of a whole life of a disk fails, for n = 0, 1, 2 ... until none
 * does. Nothing may hang or crash, and the next process finds what was acknowledged. */
#include "tests/unit/disk_machine.h"
#include "tests/unit/space_account.h"

#include <sys/wait.h>

#define SIZE       (1 * MIB)
#define LIMIT_NS   (300 * NS_PER_S)
#define CHILD_STEP 100U

/* What is known of each block: a bit for each write whose bytes it may hold. */
struct known {
    bool has_disk, may_have_disk, has_snapshot, may_have_snapshot;
    uint64_t now[SIZE / BLOCK_SIZE], then[SIZE / BLOCK_SIZE];
    uint8_t mark;
};

static async int put_block(struct disk *disk, struct known *known, uint32_t block)
{
    static uint8_t data[BLOCK_SIZE];
    memset(data, ++known->mark, sizeof data);
    known->now[block] |= (uint64_t)1 << known->mark;
    int rc =
        write_bytes_at(disk, (uint64_t)block * BLOCK_SIZE, BLOCK_SIZE, data, 0);
    if (rc == 0)
        known->now[block] = (uint64_t)1 << known->mark;
    return rc;
}

static async int put_some(struct disk *disk, struct known *known, uint32_t first)
{
    int rc = 0;
    for (uint32_t i = 0; i < 12 && rc == 0; i++)
        rc = put_block(disk, known, (first + i * 5) % (SIZE / BLOCK_SIZE));
    if (rc == 0)
        rc = change(disk, DISK_FLUSH, 0, 0);
    return rc;
}

static async int snapshot(struct machine *m, struct known *known)
{
    struct error err = {0};
    known->may_have_snapshot = true;
    memcpy(known->then, known->now, sizeof known->then);
    int rc = snapshot_create(m->host, "d", "s", &err);
    CHECK((rc < 0) == (err.text[0] != '\0'));
    known->has_snapshot = rc == 0;
    return rc;
}

static async void use_disk(struct machine *m, struct known *known)
{
    struct error err = {0};
    struct disk *disk;
    if (disk_open(m->host, "d", DISK_READ_WRITE, &disk, &err) < 0) {
        CHECK(err.text[0] != '\0');
        return;
    }
    (void)put_some(disk, known, 0);
    (void)snapshot(m, known);
    (void)put_some(disk, known, 30);
    (void)disk_checkpoint(disk, &err);
    (void)put_some(disk, known, 60);
    uint64_t id = disk->id;
    disk_close(disk);
    (void)disk_shut(m->host, id, &err);
}

static void body_life(struct body *body)
{
    struct machine *m = container_of(body, struct machine, body);
    struct known *known = m->arg;
    struct error err = {0};
    int rc = 0;
    if (!known->has_disk)
        rc = host_create(body->loop, &m->options, &err);
    if (rc == 0)
        rc = host_open(body->loop, &m->options, &m->host, &err);
    if (rc < 0) {
        CHECK(err.text[0] != '\0');
        return;
    }
    known->may_have_disk = true;
    known->has_disk = disk_create(m->host, "d", SIZE, &err) == 0;
    if (known->has_disk)
        use_disk(m, known);
    host_close(m->host);
}

static async void check_blocks(struct machine *m, const char *name,
                               const uint64_t *allowed)
{
    static uint8_t data[SIZE];
    struct disk *disk = attach(m, name);
    CHECK_EQ(read_bytes_at(disk, 0, SIZE, data), 0);
    for (uint32_t i = 0; i < SIZE / BLOCK_SIZE; i++) {
        uint8_t byte = data[i * BLOCK_SIZE];
        CHECK(byte < 64 && (allowed[i] >> byte & 1) != 0);
        CHECK(data[i * BLOCK_SIZE + BLOCK_SIZE - 1] == byte);
    }
    disk_close(disk);
}

static void body_look(struct body *body)
{
    struct machine *m = container_of(body, struct machine, body);
    struct known *known = m->arg;
    struct error err = {0};
    int rc = host_open(body->loop, &m->options, &m->host, &err);
    if (rc < 0) { /* creating it failed */
        CHECK(!known->may_have_disk);
        return;
    }
    const struct cluster_state *state = cluster_state(m->host->cluster);
    const struct cluster_disk *disk = cluster_disk_by_name(state, "d");
    CHECK(disk != NULL ? known->may_have_disk : !known->has_disk);
    if (disk != NULL) {
        check_blocks(m, "d", known->now);
        bool there = cluster_version_by_name(state, disk->id, "s") != NULL;
        CHECK(there ? known->may_have_snapshot : !known->has_snapshot);
        if (there)
            check_blocks(m, "d@s", known->then);
        check_clean(m);
        await_closed(m->host);
        check_space(m->host, true);
    }
    host_close(m->host);
}

static void live(struct machine *m, void (*run)(struct body *body), enum sim_end end)
{
    m->host = NULL;
    m->body = (struct body){.run = run, .world = m->world};
    m->body.call = (struct task_call){.main = body_main, .name = "test", .system = true};
    m->body.loop = sim_process_create(m->world);
    if (getenv("TEST_LOG") != NULL)
        log_set_fd(loop_log(m->body.loop), 2);
    task_start(m->body.loop, &m->body.call);
    CHECK(sim_world_run_until(m->world, &m->body.is_over, LIMIT_NS));
    sim_process_end(m->body.loop, end);
}

/* False if nothing failed: the nth operation is beyond the end. */
static bool fail_nth(int64_t n)
{
    struct machine *m = machine_create(1);
    struct known known = {0};
    for (uint32_t i = 0; i < SIZE / BLOCK_SIZE; i++)
        known.now[i] = 1; /* zeros */
    m->arg = &known;
    m->options.checkpoint_log_bytes = 64 * KIB;
    sim_fail_nth_io(m->world, n);
    live(m, body_life, SIM_KILL);
    bool failed = sim_failure_happened(m->world);
    sim_fail_nth_io(m->world, -1);
    live(m, body_look, SIM_KILL);
    live(m, body_look, SIM_KILL);
    machine_destroy(m);
    return failed;
}

/* Processes that end in the middle leave memory behind, so each child does a few. */
int main(int argc, char **argv)
{
    if (argc > 1) {
        fail_nth(atoll(argv[1]));
        return 0;
    }
    for (int64_t first = 0;; first += CHILD_STEP) {
        pid_t child = fork();
        int status;
        CHECK(child >= 0);
        if (child == 0) {
            for (int64_t n = first; n < first + CHILD_STEP; n++) {
                if (getenv("TEST_LOG") != NULL)
                    fprintf(stderr, "operation %lld fails\n", (long long)n);
                if (!fail_nth(n))
                    _exit(2);
            }
            _exit(0);
        }
        CHECK(waitpid(child, &status, 0) == child);
        CHECK(WIFEXITED(status));
        if (WEXITSTATUS(status) == 2)
            return 0;
        CHECK_EQ(WEXITSTATUS(status), 0);
    }
}
