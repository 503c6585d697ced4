/* SPDX-License-Identifier: Apache-2.0 */
/* The scrub on a simulated machine: what it finds, how it is told, and that it can be
 * interrupted anywhere. */
#include "cow/scrub.h"
#include "tests/unit/rot.h"

#include <sys/wait.h>

#define DAY_NS (86400 * NS_PER_S)

struct lines {
    uint32_t count;
    char text[SCRUB_LINES_MAX][SCRUB_LINE_MAX];
};
static struct lines lines;

static void take_line(void *arg, const char *line)
{
    struct lines *to = arg;
    snprintf(to->text[to->count++], SCRUB_LINE_MAX, "%s", line);
}

static struct scrub_status status_of(struct machine *m)
{
    struct scrub_status status;
    scrub_status(m->host, &status);
    lines.count = 0;
    scrub_findings(m->host, take_line, &lines);
    return status;
}

static async void wait_for_end(struct machine *m)
{
    while (status_of(m).running)
        task_sleep_ns(NS_PER_MS);
}

static async void scrub_all(struct machine *m)
{
    DO(scrub_start(m->host, 0, &err));
    wait_for_end(m);
}

/* A line that has all of these in it. */
static const char *line_with(const char *a, const char *b)
{
    for (uint32_t i = 0; i < lines.count; i++)
        if (strstr(lines.text[i], a) && strstr(lines.text[i], b))
            return lines.text[i];
    for (uint32_t i = 0; i < lines.count; i++)
        fprintf(stderr, "line: %s\n", lines.text[i]);
    fprintf(stderr, "no line with %s and %s\n", a, b);
    exit(1);
}

/* --- damage --- */

static const struct cluster_disk *state_of(struct machine *m, const char *name)
{
    const struct cluster_disk *disk =
        cluster_disk_by_name(cluster_state(m->host->cluster), name);
    CHECK(disk != NULL);
    return disk;
}

/* Where the map of a disk that is not open has a block, and the leaf that says so. */
static async struct address block_of(struct machine *m, const char *name, uint64_t block,
                                     struct address *ret_leaf)
{
    struct map_root root = state_of(m, name)->root;
    struct map_span span;
    CHECK_EQ(map_get(m->host->nodes, &root, block, &span), 0);
    CHECK(span.leaf != NULL);
    struct address at = map_span_entry(&span, block).address;
    node_put(m->host->nodes, span.leaf);
    CHECK_EQ(root.height, 1);
    *ret_leaf = root.address;
    return at;
}

static async void write_all(struct machine *m, const char *name, uint64_t bytes,
                            uint8_t fill_with)
{
    struct disk *disk = attach(m, name);
    static uint8_t data[64 * KIB];
    memset(data, fill_with, sizeof data);
    for (uint64_t at = 0; at < bytes; at += sizeof data)
        CHECK_EQ(write_bytes_at(disk, at, sizeof data, data, 0), 0);
    CHECK_EQ(flush(disk), 0);
    disk_close(disk);
    DO(disk_shut(m->host, disk->id, &err));
}

static async void body_clean(struct machine *m)
{
    struct scrub_status status = status_of(m);
    CHECK(!status.running && !status.paused);
    CHECK_EQ(status.finished_wall_ns, 0);
    scrub_all(m); /* of nothing */
    DO(disk_create(m->host, "web", 1 * MIB, &err));
    write_all(m, "web", 1 * MIB, 1);
    scrub_all(m);
    status = status_of(m);
    CHECK_EQ(status.findings, 0);
    CHECK_EQ(lines.count, 0);
    CHECK(status.done_bytes == status.total_bytes && status.done_bytes > 1 * MIB);
    CHECK(status.finished_wall_ns >= status.started_wall_ns);
    CHECK(status.started_wall_ns > 0);
}

/* Who sees it is named: the head, a snapshot, a clone, or nobody. */
static async void body_seen(struct machine *m)
{
    struct address leaf, old, both, later;
    DO(disk_create(m->host, "web", 1 * MIB, &err));
    DO(disk_create(m->host, "other", 1 * MIB, &err));
    write_all(m, "other", 1 * MIB, 9);
    write_all(m, "web", 1 * MIB, 1);
    DO(snapshot_create(m->host, "web", "monday", &err));
    DO(disk_clone(m->host, "web", "monday", "copy", 1, &err));
    old = block_of(m, "web", 3, &leaf);
    both = block_of(m, "web", 200, &leaf);
    write_all(m, "web", 64 * KIB, 2); /* blocks 0 to 15 */
    later = block_of(m, "web", 5, &leaf);
    rot(m, old);
    rot(m, both);
    rot(m, later);
    scrub_all(m);
    CHECK_EQ(status_of(m).findings, 3);
    CHECK_EQ(lines.count, 3);
    const char *line = line_with("disk web: offset 12288:", "checksum mismatch");
    CHECK(strstr(line, "seen by copy, web@monday;") != NULL);
    CHECK(strstr(line, "no other copy") != NULL);
    line = line_with("disk web: offset 819200:", "checksum mismatch");
    CHECK(strstr(line, "seen by copy, web, web@monday;") != NULL);
    line = line_with("disk web: offset 20480:", "checksum mismatch");
    CHECK(strstr(line, "seen by web;") != NULL);
    scrub_all(m); /* the lines of the last pass only */
    CHECK_EQ(lines.count, 3);
}

static async void body_seen_again(struct machine *m)
{
    CHECK_EQ(status_of(m).findings, 3);
    CHECK_EQ(lines.count, 3);
    line_with("disk web: offset 12288:", "web@monday");
}

/* A map node, and a header. */
static async void body_nodes(struct machine *m)
{
    struct address leaf;
    DO(disk_create(m->host, "web", 1 * MIB, &err));
    write_all(m, "web", 1 * MIB, 1);
    struct address first = block_of(m, "web", 0, &leaf);
    rot(m, leaf);
    scrub_all(m);
    CHECK_EQ(status_of(m).findings, 1);
    const char *line = line_with("disk web: map node of level 0 for offset 0:", "");
    CHECK(strstr(line, "seen by web") != NULL);
    CHECK(strstr(line, "headers of its log") != NULL);
    rot(m, address_extent(first)); /* the roll record */
    scrub_all(m);
    CHECK(status_of(m).findings >= 2);
    line_with("disk web: what tells of the blocks of an extent", "block 0:");
}

/* More than is kept is counted. */
static async void body_many(struct machine *m)
{
    struct address leaf;
    DO(disk_create(m->host, "web", 2 * MIB, &err));
    write_all(m, "web", 2 * MIB, 1);
    struct map_root root = state_of(m, "web")->root;
    CHECK_EQ(root.height, 2);
    for (uint64_t i = 0; i < 300; i++) {
        struct map_span span;
        CHECK_EQ(map_get(m->host->nodes, &root, i, &span), 0);
        leaf = map_span_entry(&span, i).address;
        node_put(m->host->nodes, span.leaf);
        rot(m, leaf);
    }
    scrub_all(m);
    CHECK_EQ(status_of(m).findings, 300);
    CHECK_EQ(lines.count, SCRUB_LINES_MAX);
}

/* The key-value store cannot be read. */
static async void body_metadata(struct machine *m)
{
    DO(disk_create(m->host, "web", 1 * MIB, &err));
    write_all(m, "web", 1 * MIB, 1);
    DO(scrub_start(m->host, 0, &err));
    /* Forgetting lines writes nothing, the state is the first write, then the scan. */
    sim_fail_nth_io(m->world, 1);
    wait_for_end(m);
    CHECK(sim_failure_happened(m->world));
    CHECK_EQ(status_of(m).findings, 1);
    line_with("metadata: unreadable from its start", "");
}

/* --- interruptions --- */

static struct scrub_status before;

static async void body_pause(struct machine *m)
{
    DO(disk_create(m->host, "a", 1 * MIB, &err));
    DO(disk_create(m->host, "b", 1 * MIB, &err));
    DO(disk_create(m->host, "c", 1 * MIB, &err));
    write_all(m, "a", 1 * MIB, 1);
    write_all(m, "b", 1 * MIB, 2);
    write_all(m, "c", 1 * MIB, 3);
    DO(scrub_start(m->host, 1 * MIB, &err));
    task_sleep_ns(1500 * NS_PER_MS);
    before = status_of(m);
    CHECK(before.running && before.rate_bytes_s == 1 * MIB);
    CHECK(before.done_bytes > 1 * MIB && before.done_bytes < 2 * MIB);
    scrub_pause(m->host);
    task_sleep_ns(NS_PER_S);
    before = status_of(m);
    CHECK(!before.running && before.paused);
    uint64_t done_bytes = before.done_bytes;
    task_sleep_ns(NS_PER_S);
    CHECK_EQ(status_of(m).done_bytes, done_bytes);
    /* On within the extent where it was, not from its beginning. */
    DO(scrub_start(m->host, 1 * MIB, &err));
    CHECK_EQ(status_of(m).done_bytes, done_bytes);
    task_sleep_ns(400 * NS_PER_MS);
    before = status_of(m);
    CHECK(before.running && before.done_bytes > done_bytes);
    scrub_pause(m->host);
}

static async void body_resume(struct machine *m)
{
    struct scrub_status status = status_of(m);
    CHECK(status.paused && !status.running);
    CHECK(status.done_bytes <= before.done_bytes);
    CHECK_EQ(status.started_wall_ns, before.started_wall_ns);
    CHECK_EQ(status.finished_wall_ns, 0);
    task_sleep_ns(NS_PER_S);
    CHECK(!status_of(m).running);
    scrub_all(m);
    status = status_of(m);
    CHECK_EQ(status.started_wall_ns, before.started_wall_ns);
    CHECK_EQ(status.done_bytes, before.total_bytes);
    CHECK(status.finished_wall_ns > 0 && !status.paused);
}

/* Killed in the middle, it goes on by itself. */
static async void body_killed(struct machine *m)
{
    struct scrub_status status = status_of(m);
    uint64_t kept_bytes = status.done_bytes;
    CHECK(status.running && kept_bytes > 0);
    wait_for_end(m);
    status = status_of(m);
    CHECK_EQ(status.findings, 0);
    CHECK(status.done_bytes == status.total_bytes && status.done_bytes > kept_bytes);
}

static async void body_kill(struct machine *m)
{
    static const char *const names[] = {"a", "b", "c", "d"};
    for (uint32_t i = 0; i < ARRAY_LEN(names); i++) {
        DO(disk_create(m->host, names[i], 1 * MIB, &err));
        write_all(m, names[i], 1 * MIB, (uint8_t)(1 + i));
    }
    DO(scrub_start(m->host, 64 * KIB, &err));
    task_sleep_ns(45 * NS_PER_S);
    CHECK(status_of(m).done_bytes > 2 * MIB);
    m->body.is_over = true;
    task_sleep_ns(1000 * NS_PER_S);
}

/* --- beside others --- */

struct writer_task {
    struct task_call call;
    struct machine *m;
    struct model *model;
    bool over;
};

static async void write_on(struct task_call *call)
{
    struct writer_task *task = container_of(call, struct writer_task, call);
    for (uint32_t i = 0; i < 20; i++) {
        random_named(task->m, "d", task->model, 4);
        DO(disk_shut(task->m->host, state_of(task->m, "d")->id, &err));
    }
    task->over = true;
}

/* Extents come, become final and go while it reads; nothing is found. */
static async void body_beside(struct machine *m)
{
    struct writer_task task = {
        .call = {.main = write_on, .name = "writer", .system = true},
        .m = m,
        .model = model_create(2 * MIB),
    };
    uint32_t passes = 0;
    DO(disk_create(m->host, "d", 2 * MIB, &err));
    task_start(m->body.loop, &task.call);
    for (; !task.over; passes++) {
        scrub_all(m);
        CHECK_EQ(status_of(m).findings, 0);
    }
    CHECK(passes > 1);
    check_named(m, "d", task.model);
    free(task.model);
}

/* Guests that work all the time keep it slow; without them it is fast. */
static async void body_guests_first(struct machine *m)
{
    struct disk *disk;
    uint8_t block[BLOCK_SIZE];
    DO(disk_create(m->host, "a", 4 * MIB, &err));
    DO(disk_create(m->host, "b", 1 * MIB, &err));
    write_all(m, "a", 4 * MIB, 1);
    write_all(m, "b", 1 * MIB, 1);
    sim_world_faults(m->world)->latency_min_ns = 2 * NS_PER_MS;
    sim_world_faults(m->world)->latency_max_ns = 4 * NS_PER_MS;
    uint64_t idle_ns = loop_now_ns(m->body.loop);
    scrub_all(m);
    idle_ns = loop_now_ns(m->body.loop) - idle_ns;
    disk = attach(m, "b");
    uint64_t busy_ns = loop_now_ns(m->body.loop);
    DO(scrub_start(m->host, 0, &err));
    while (status_of(m).running)
        CHECK_EQ(read_bytes_at(disk, 0, BLOCK_SIZE, block), 0);
    busy_ns = loop_now_ns(m->body.loop) - busy_ns;
    disk_close(disk);
    CHECK(busy_ns > 4 * idle_ns);
}

/* --- by itself --- */

static async void body_monthly(struct machine *m)
{
    CHECK(!status_of(m).running);
    task_sleep_ns(29 * DAY_NS);
    CHECK_EQ(status_of(m).started_wall_ns, 0);
    task_sleep_ns(2 * DAY_NS);
    struct scrub_status status = status_of(m);
    CHECK(status.started_wall_ns > 0 && status.finished_wall_ns > 0);
    scrub_pause(m->host);
    task_sleep_ns(40 * DAY_NS);
    CHECK_EQ(status_of(m).started_wall_ns, status.started_wall_ns);
    CHECK(status_of(m).paused);
    scrub_all(m);
    uint64_t started_wall_ns = status_of(m).started_wall_ns;
    CHECK(started_wall_ns > status.started_wall_ns);
    task_sleep_ns(31 * DAY_NS);
    CHECK(status_of(m).started_wall_ns > started_wall_ns);
}

/* --- its record --- */

static void test_record(void)
{
    struct scrub_state state = {
        .under_way = true, .next = {0x123456789}, .done_bytes = 5, .total_bytes = 9,
        .findings = 3, .started_wall_ns = 11, .finished_wall_ns = 7, .counted_wall_ns = 8,
        .limit_bytes_s = 1000, .skipped_count = 2, .skipped = {{1 << 14}, {2 << 14}},
    };
    struct scrub_state back;
    struct writer w = {0};
    scrub_state_encode(&state, &w);
    CHECK(!w.bad);
    CHECK_EQ(scrub_state_decode(w.bytes, w.len, &back), 0);
    CHECK(memcmp(&state, &back, sizeof state) == 0);
    for (size_t i = 0; i < w.len; i++) {
        w.bytes[i] ^= 0x10;
        CHECK(scrub_state_decode(w.bytes, w.len, &back) < 0);
        w.bytes[i] ^= 0x10;
        CHECK(scrub_state_decode(w.bytes, i, &back) < 0);
    }
    writer_done(&w);
}

static void run_one(void (*run)(struct machine *m), uint64_t seed)
{
    struct machine *m = machine_create(seed);
    machine_run(m, run);
    machine_destroy(m);
}

/* What a killed process had allocated is not released: in a child of its own. */
static void in_child(void (*run)(uint64_t seed), uint64_t seed)
{
    int status = 0;
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        run(seed);
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child);
    CHECK_EQ(status, 0);
}

static void run_killed(uint64_t seed)
{
    struct machine *m = machine_create(seed);
    m->options.no_idle_work = false;
    machine_run(m, body_kill);
    machine_run(m, body_killed);
    machine_destroy(m);
}

int main(void)
{
    test_record();
    for (uint64_t seed = 1; seed <= seeds_of(5); seed++) {
        run_one(body_clean, seed);
        run_one(body_seen, seed);
        run_one(body_nodes, seed);
        run_one(body_beside, seed);
    }
    run_one(body_many, 1);
    run_one(body_metadata, 1);
    run_one(body_guests_first, 1);

    struct machine *m = machine_create(6);
    machine_run(m, body_seen);
    machine_run(m, body_seen_again);
    machine_destroy(m);

    m = machine_create(7);
    machine_run(m, body_pause);
    machine_run(m, body_resume);
    machine_destroy(m);

    in_child(run_killed, 8);

    m = machine_create(9);
    m->options.no_idle_work = false;
    machine_start(m, body_monthly);
    CHECK(sim_world_run_until(m->world, &m->body.is_over, 200 * DAY_NS));
    sim_process_end(m->body.loop, SIM_KILL);
    machine_destroy(m);
    return 0;
}
