/* SPDX-License-Identifier: Apache-2.0 */
/* Snapshots by the clock, made and removed on a simulated machine. */
#include "tests/unit/disk_machine.h"

#include <sys/wait.h>

#include "cow/schedule.h"

#define HOUR  3600U
#define LIMIT (400 * 3600 * NS_PER_S)

struct names {
    uint32_t count;
    char text[64][DISK_NAME_MAX + 1];
};

static struct names names_of(struct machine *m, const char *disk)
{
    struct snapshot_info *infos;
    struct names names = {0};
    size_t count;
    DO(snapshot_list(m->host, disk, &infos, &count, &err));
    CHECK(count <= ARRAY_LEN(names.text));
    for (size_t i = 0; i < count; i++)
        memcpy(names.text[names.count++], infos[i].name, sizeof infos[i].name);
    free(infos);
    return names;
}

/* How many of them this rule made. */
static uint32_t made(const struct names *names, uint64_t every_s)
{
    uint32_t count = 0;
    uint64_t time_s;
    for (uint32_t i = 0; i < names->count; i++)
        count += schedule_parse(names->text[i], every_s, &time_s);
    return count;
}

/* One of each hour, one after the other. */
static void check_hours(const struct names *names)
{
    uint64_t time_s, last = 0;
    for (uint32_t i = 0; i < names->count; i++) {
        CHECK(schedule_parse(names->text[i], HOUR, &time_s));
        CHECK(last == 0 || time_s / HOUR == last + 1);
        last = time_s / HOUR;
    }
}

static async void write_block(struct machine *m, const char *name, uint8_t byte)
{
    struct disk *disk = attach(m, name);
    uint8_t block[BLOCK_SIZE];
    memset(block, byte, sizeof block);
    CHECK_EQ(write_bytes_at(disk, byte * BLOCK_SIZE, BLOCK_SIZE, block, 0), 0);
    disk_close(disk);
}

/* Writes now and then for so many hours. */
static async void live(struct machine *m, const char *name, uint32_t hours)
{
    for (uint32_t i = 0; i < hours * 2; i++) {
        write_block(m, name, (uint8_t)(1 + i % 100));
        task_sleep_ns(HOUR / 2 * NS_PER_S);
    }
}

static async void body_rules(struct machine *m)
{
    struct snapshot_rule rules[] = {{HOUR, 3}, {4 * HOUR, 2}};
    struct snapshot_rule got[SCHEDULE_RULES_MAX];
    uint32_t count = 9;
    DO(disk_create(m->host, "web", 1 * MIB, &err));
    DO(schedule_get(m->host, "web", got, &count, &err));
    CHECK_EQ(count, 0);
    DO(schedule_set(m->host, "web", rules, 2, &err));
    DO(schedule_get(m->host, "web", got, &count, &err));
    CHECK_EQ(count, 2);
    CHECK(got[1].every_s == 4 * HOUR && got[1].keep == 2);
    DO(snapshot_create(m->host, "web", "by-hand", &err));
    live(m, "web", 13);
    struct names names = names_of(m, "web");
    CHECK_EQ(made(&names, HOUR), 3);
    CHECK_EQ(made(&names, 4 * HOUR), 2);
    CHECK_EQ(names.count, 6);
    CHECK_STR(names.text[0], "by-hand");
    DO(schedule_set(m->host, "web", NULL, 0, &err));
    live(m, "web", 3);
    struct names later = names_of(m, "web");
    CHECK(memcmp(&names, &later, sizeof names) == 0);
}

/* Nothing is forgotten, nothing is made twice. */
static async void body_after_restart(struct machine *m)
{
    struct names names = names_of(m, "web");
    task_sleep_ns(NS_PER_S);
    struct names later = names_of(m, "web");
    CHECK(memcmp(&names, &later, sizeof names) == 0);
    live(m, "web", 2);
    later = names_of(m, "web");
    CHECK_EQ(made(&later, HOUR), 4);
    check_hours(&names);
    check_hours(&later);
}

static async void body_before_restart(struct machine *m)
{
    struct snapshot_rule rule = {HOUR, 4};
    DO(disk_create(m->host, "web", 1 * MIB, &err));
    write_block(m, "web", 1);
    DO(schedule_set(m->host, "web", &rule, 1, &err));
    live(m, "web", 3);
    task_sleep_ns(60 * NS_PER_S);
    struct names names = names_of(m, "web");
    check_hours(&names);
    live(m, "web", 2);
}

/* A disk that is not written gets no further snapshots, and one again when it is. */
static async void body_unchanged(struct machine *m)
{
    struct snapshot_rule rule = {HOUR, 9};
    DO(disk_create(m->host, "web", 1 * MIB, &err));
    write_block(m, "web", 1);
    DO(schedule_set(m->host, "web", &rule, 1, &err));
    task_sleep_ns(10 * (uint64_t)HOUR * NS_PER_S);
    struct names names = names_of(m, "web");
    CHECK_EQ(names.count, 1);
    CHECK(disk_find(m->host, 1, 0) == NULL); /* left in peace */
    write_block(m, "web", 2);
    task_sleep_ns(10 * (uint64_t)HOUR * NS_PER_S);
    names = names_of(m, "web");
    CHECK_EQ(names.count, 2);
}

static async void body_refused(struct machine *m)
{
    struct snapshot_rule rules[9];
    uint32_t count;
    DO(disk_create(m->host, "web", 1 * MIB, &err));
    for (uint32_t i = 0; i < 9; i++)
        rules[i] = (struct snapshot_rule){HOUR * (i + 1), 1};
    DO_FAILS(schedule_set(m->host, "web", rules, 9, &err), -EINVAL);
    DO_FAILS(schedule_set(m->host, "nope", rules, 1, &err), -PLX_EMISSING);
    DO_FAILS(schedule_get(m->host, "nope", rules, &count, &err), -PLX_EMISSING);
    rules[1] = rules[0];
    DO_FAILS(schedule_set(m->host, "web", rules, 2, &err), -EINVAL);
    rules[0].keep = 0;
    DO_FAILS(schedule_set(m->host, "web", rules, 1, &err), -EINVAL);
    rules[0] = (struct snapshot_rule){0, 1};
    DO_FAILS(schedule_set(m->host, "web", rules, 1, &err), -EINVAL);
    rules[0] = (struct snapshot_rule){UINT64_MAX, 1};
    DO_FAILS(schedule_set(m->host, "web", rules, 1, &err), -EINVAL);
}

static async void body_killed(struct machine *m)
{
    DO(disk_create(m->host, "bad", 1 * MIB, &err));
    DO(disk_create(m->host, "good", 1 * MIB, &err));
    write_block(m, "bad", 1);
    DO(snapshot_create(m->host, "bad", "s", &err)); /* says what is durable */
    m->body.is_over = true;                         /* while it is open */
    task_sleep_ns(NS_PER_S);
}

/* A disk that cannot be opened does not keep others from their snapshots. */
static async void body_failing(struct machine *m)
{
    struct snapshot_rule rule = {HOUR, 9};
    DO(host_drop_extents(m->host, 1)); /* what its log cannot do without */
    DO(schedule_set(m->host, "bad", &rule, 1, &err));
    DO(schedule_set(m->host, "good", &rule, 1, &err));
    live(m, "good", 4);
    struct names good = names_of(m, "good"), bad = names_of(m, "bad");
    CHECK(made(&good, HOUR) >= 4);
    CHECK_EQ(bad.count, 1);
}

static void run_one(struct machine *m, void (*run)(struct machine *m))
{
    machine_start(m, run);
    CHECK(sim_world_run_until(m->world, &m->body.is_over, LIMIT));
    sim_process_end(m->body.loop, SIM_KILL);
}

static void run_alone(void (*run)(struct machine *m))
{
    for (uint64_t seed = 1; seed <= 3; seed++) {
        struct machine *m = machine_create(seed);
        run_one(m, run);
        machine_destroy(m);
    }
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

static void run_failing(uint64_t seed)
{
    struct machine *m = machine_create(seed);
    run_one(m, body_killed);
    run_one(m, body_failing);
    machine_destroy(m);
}

int main(void)
{
    run_alone(body_rules);
    run_alone(body_unchanged);
    run_alone(body_refused);
    for (uint64_t seed = 1; seed <= 3; seed++) {
        struct machine *m = machine_create(seed);
        run_one(m, body_before_restart);
        run_one(m, body_after_restart);
        machine_destroy(m);
        in_child(run_failing, seed);
    }
    return 0;
}
