/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Copies on several nodes with real stores and the simulated network: reads and trims
 * while members are up, down, cut off, restarted, in the middle of it.
 */
#include "tests/unit/copies_machine.h"

#define EXTENT(n)   address_of(1, n, 0)
/* Of its blocks: what begins an append is a header. */
#define FIRST(n)    address_of(1, n, 1)
#define PATIENCE_MS 3000U

/* --- trims --- */

static async int trim_runs(struct rig *rig, const struct block_run *runs, uint32_t count)
{
    uint64_t blocks = 0;
    int rc = copies_trim(rig->copies, runs, count, &blocks);
    if (rc == 0) {
        for (uint32_t i = 0; i < count; i++)
            blocks -= runs[i].count;
        CHECK_EQ(blocks, 0);
    }
    return rc;
}

/* As whoever trims does: again, while it may pass. */
static async void trim_until(struct rig *rig, const struct block_run *runs,
                             uint32_t count)
{
    int rc = -EAGAIN;
    for (uint32_t i = 0; i < 10 && copies_may_pass(rc); i++) {
        rc = trim_runs(rig, runs, count);
        if (rc != 0)
            task_sleep_ns(NS_PER_S);
    }
    CHECK_EQ(rc, 0);
}

static async int trim_one(struct rig *rig, struct address address)
{
    return trim_runs(rig, &(struct block_run){address, 1}, 1);
}

static void expect_live(struct rig *rig, struct address address, bool on1, bool on2,
                        bool on3)
{
    CHECK_EQ(is_live(rig, 1, address), on1);
    CHECK_EQ(is_live(rig, 2, address), on2);
    CHECK_EQ(is_live(rig, 3, address), on3);
}

/* All members have it durably when it is answered. */
static async void trims_all_up(struct rig *rig)
{
    const struct block_run runs[] = {{address_plus(EXTENT(1), 3), 4},
                                     {address_plus(EXTENT(1), 9), 1},
                                     {FIRST(2), 298},
                                     {address_plus(EXTENT(4), 7), 1}}; /* nobody has it */
    make_everywhere(rig, EXTENT(1), 20);
    make_everywhere(rig, EXTENT(2), 400);
    CHECK_EQ(trim_runs(rig, runs, ARRAY_LEN(runs)), 0);
    for (uint32_t i = 0; i < FARS; i++)
        far_restart(&rig->fars[i], SIM_POWER_CUT);
    for (uint32_t i = 0; i < 20; i++) {
        bool live = i != 0 && (i < 3 || (i > 6 && i != 9));
        expect_live(rig, address_plus(EXTENT(1), i), live, live, live);
    }
    expect_live(rig, address_plus(EXTENT(2), 298), false, false, false);
    expect_live(rig, address_plus(EXTENT(2), 299), true, true, true);
    /* The last live blocks take their extent with them. */
    trim_until(rig, &(struct block_run){EXTENT(2), 400}, 1);
    struct extent_info info;
    for (uint64_t node = 1; node <= 3; node++)
        CHECK_EQ(store_extent_info(store_on(rig, node), EXTENT(2), &info), -PLX_EMISSING);
    CHECK_EQ(trim_runs(rig, &(struct block_run){EXTENT(2), 400}, 1), 0);
}

/* One that is down is passed over; it is not whole. One that is up must have answered. */
static async void trims_down(struct rig *rig)
{
    struct address first = FIRST(1), second = address_plus(first, 1);
    make_everywhere(rig, EXTENT(1), 20);
    sim_net_block(rig->world, 1, 3, true);
    int rc = trim_one(rig, first);
    CHECK(copies_may_pass(rc));
    CHECK(is_live(rig, 3, first));
    set_flags(rig, 3, NODE_DOWN);
    uint64_t begun_ns = loop_now_ns(rig->loop);
    CHECK_EQ(trim_one(rig, first), 0);
    CHECK(loop_now_ns(rig->loop) - begun_ns < NS_PER_S); /* nobody waits for it */
    expect_live(rig, first, false, false, true);
    sim_net_block(rig->world, 1, 3, false);
    set_flags(rig, 3, 0);
    /* It is told again, though it may lack something. */
    CHECK_EQ(trim_one(rig, second), 0);
    expect_live(rig, second, false, false, false);
    expect_live(rig, first, false, false, true);
}

/* Nothing is trimmed without the last whole member. */
static async void trims_last_whole(struct rig *rig)
{
    make_everywhere(rig, EXTENT(1), 20);
    set_flags(rig, 1, NODE_DOWN); /* this node itself: it may not know better */
    set_flags(rig, 2, NODE_DOWN);
    set_flags(rig, 1, 0);
    set_flags(rig, 2, 0); /* now 3 alone is whole */
    set_flags(rig, 3, NODE_DOWN);
    CHECK_EQ(trim_one(rig, FIRST(1)), -EHOSTUNREACH);
    expect_live(rig, FIRST(1), true, true, true);
    CHECK_EQ(copies_trim_headers(rig->copies, EXTENT(1)), -EHOSTUNREACH);
    set_flags(rig, 3, 0);
    CHECK_EQ(trim_one(rig, FIRST(1)), 0);
    expect_live(rig, FIRST(1), false, false, false);
}

/* Whole ones first: what others take over from them later was trimmed before. */
static async void trims_in_order(struct rig *rig)
{
    make_everywhere(rig, EXTENT(1), 20);
    set_flags(rig, 1, NODE_DOWN);
    set_flags(rig, 1, 0); /* this one and 3 are not whole */
    set_flags(rig, 3, NODE_DOWN);
    set_flags(rig, 3, 0);
    sim_net_block(rig->world, 1, 2, true);
    CHECK(copies_may_pass(trim_one(rig, FIRST(1))));
    expect_live(rig, FIRST(1), true, true, true);
    sim_net_block(rig->world, 1, 2, false);
    CHECK_EQ(trim_one(rig, FIRST(1)), 0);
    expect_live(rig, FIRST(1), false, false, false);
}

struct trimming {
    struct task_call call;
    struct rig *rig;
    struct address address;
    struct event over;
    int rc;
};

static void trimming_main(struct task_call *call)
{
    struct trimming *trimming = container_of(call, struct trimming, call);
    trimming->rc = trim_one(trimming->rig, trimming->address);
    event_set(&trimming->over);
}

/* One that becomes whole meanwhile, after the whole ones were told, and before the others
 * are, is told, too. */
static async void trims_becomes_whole(struct rig *rig)
{
    struct sim_faults *faults = sim_world_faults(rig->world);
    struct trimming trimming = {
        .call = {.main = trimming_main, .name = "trim", .system = true},
        .rig = rig,
        .address = FIRST(1)};
    make_everywhere(rig, EXTENT(1), 20);
    set_flags(rig, 3, NODE_DOWN);
    set_flags(rig, 3, 0);
    faults->net_latency_min_ns = faults->net_latency_max_ns = 300 * NS_PER_MS;
    event_init(&trimming.over);
    task_start(rig->loop, &trimming.call);
    task_sleep_ns(100 * NS_PER_MS);
    expect_live(rig, FIRST(1), false, true, true); /* node 2 is being told */
    make_whole(rig, 3);
    event_wait(&trimming.over);
    CHECK_EQ(trimming.rc, 0);
    expect_live(rig, FIRST(1), false, false, false);
}

/* A copy that is not final cannot be trimmed: an error where it should be. */
static async void trims_not_final(struct rig *rig)
{
    make_final(rig, 1, EXTENT(1), 20);
    make_final(rig, 2, EXTENT(1), 20);
    make_extent(rig, 3, EXTENT(1), 15);
    make_everywhere(rig, EXTENT(2), 20);
    const struct block_run runs[] = {{FIRST(1), 1}, {FIRST(2), 1}};
    CHECK_EQ(trim_runs(rig, runs, 2), -PLX_EPRECONDITION);
    CHECK(copies_may_pass(-PLX_EPRECONDITION));
    expect_live(rig, FIRST(2), false, false, false); /* what could be done was */
    set_flags(rig, 3, NODE_DOWN);
    set_flags(rig, 3, 0);
    CHECK_EQ(trim_runs(rig, runs, 2), 0); /* whoever makes it whole sees to that */
    CHECK(!is_live(rig, 1, FIRST(1)) && !is_live(rig, 2, FIRST(1)));
}

/* More than one message takes, of extents that are not there. */
static async void trims_many(struct rig *rig)
{
    const uint32_t count = 130000;
    struct block_run *runs = malloc(count * sizeof *runs);
    CHECK(runs != NULL);
    for (uint32_t i = 0; i < count; i++)
        runs[i] = (struct block_run){address_plus(EXTENT(i / 2 + 1), i % 2 * 5), 2};
    make_everywhere(rig, EXTENT(count / 2), 20);
    CHECK_EQ(trim_runs(rig, runs, count), 0);
    for (uint32_t i = 0; i < 20; i++) {
        bool live = i > 1 && i != 5 && i != 6;
        expect_live(rig, address_plus(EXTENT(count / 2), i), live, live, live);
    }
    CHECK_EQ(rig->fars[0].requests, 4 + 2); /* of these two are trims */
    free(runs);
}

/* A member dies in the middle; the same again goes through when it is back. */
static async void trims_killed(struct rig *rig)
{
    struct block_run runs[10];
    for (uint32_t i = 0; i < ARRAY_LEN(runs); i++) {
        make_everywhere(rig, EXTENT(i + 1), 600);
        runs[i] = (struct block_run){address_plus(EXTENT(i + 1), 2), 499};
    }
    struct far *far = &rig->fars[sim_world_random(rig->world, FARS)];
    sim_process_stall(far->loop, sim_world_random(rig->world, NS_PER_MS));
    uint32_t before = far->requests;
    if (sim_world_random(rig->world, 2) == 0)
        far_end(far, SIM_POWER_CUT);
    int rc = trim_runs(rig, runs, ARRAY_LEN(runs));
    CHECK(rc == 0 || copies_may_pass(rc));
    far_restart(far, SIM_POWER_CUT);
    CHECK(rc != 0 || far->requests > before);
    trim_until(rig, runs, ARRAY_LEN(runs));
    for (uint32_t i = 0; i < ARRAY_LEN(runs); i++) {
            expect_live(rig, FIRST(i + 1), true, true, true);
        expect_live(rig, address_plus(EXTENT(i + 1), 500), false, false, false);
        expect_live(rig, address_plus(EXTENT(i + 1), 501), true, true, true);
    }
}

/* A store out of service elsewhere is not this one's. */
static async void trims_failed_store(struct rig *rig)
{
    make_everywhere(rig, EXTENT(1), 20);
    store_fail(rig->fars[0].store, "a test", -EIO);
    CHECK_EQ(trim_one(rig, FIRST(1)), -EHOSTUNREACH);
    set_flags(rig, 2, NODE_DOWN);
    CHECK_EQ(trim_one(rig, FIRST(1)), 0);
    store_fail(rig->store, "a test", -EIO);
    CHECK_EQ(trim_one(rig, FIRST(1)), -PLX_EFAILED);
}

/* --- headers, lengths, what can be trimmed --- */

static async struct log_extent open_extent(struct rig *rig, uint64_t disk,
                                           uint8_t member_count, const uint64_t *members)
{
    struct cluster_command open = {
        .op = CLUSTER_EXTENT_OPEN, .disk = disk, .epoch = 1, .count = 1, .group = 1,
        .group_epoch = cluster_group_by_id(rig_state(rig), 1)->epoch,
        .member_count = member_count};
    memcpy(open.members, members, member_count * sizeof *members);
    struct address extent = {submit(rig, &open)};
    return *cluster_listed_extent(rig_state(rig), extent, NULL);
}

static async void finals(struct rig *rig)
{
    uint64_t disk = submit(rig, &(struct cluster_command){.op = CLUSTER_DISK_CREATE,
                                                          .name = "d",
                                                          .size_bytes = GIB});
    submit(rig, &(struct cluster_command){
                    .op = CLUSTER_LEASE_TAKE, .disk = disk, .node = 1});
    struct log_extent log = open_extent(rig, disk, 3, (uint64_t[]){1, 2, 3});
    struct address extent = log.extent;
    for (uint64_t node = 1; node <= 3; node++)
        make_extent(rig, node, extent, 20);
    CHECK(!copies_can_trim(rig->copies, address_plus(extent, 3)));
    CHECK_EQ(copies_writer(rig->copies, address_plus(extent, 3)), disk);
    CHECK(copies_can_trim(rig->copies, EXTENT(99)));
    CHECK_EQ(copies_writer(rig->copies, EXTENT(99)), 0);
    struct final_length final = {.extent = extent, .length = 15, .last_number = 3};
    struct cluster_command cut = {.op = CLUSTER_EXTENT_OPEN, .disk = disk, .epoch = 1,
                                  .count = 1, .member_count = 1, .members = {1},
                                  .finals = &final, .final_count = 1};
    submit(rig, &cut);
    log = *cluster_listed_extent(rig_state(rig), extent, NULL);
    sim_net_block(rig->world, 1, 2, true);
    CHECK(copies_may_pass(copies_finalize(rig->copies, &log)));
    set_flags(rig, 2, NODE_DOWN);
    CHECK_EQ(copies_finalize(rig->copies, &log), 0);
    CHECK_EQ(copies_finalize(rig->copies, &log), 0);
    CHECK(!copies_can_trim(rig->copies, extent)); /* it is listed still */
    struct extent_info info;
    CHECK_EQ(store_extent_info(rig->store, extent, &info), 0);
    CHECK(info.state == EXTENT_FINAL && info.length == 15);
    CHECK_EQ(store_extent_info(rig->fars[1].store, extent, &info), 0);
    CHECK(info.state == EXTENT_FINAL && info.length == 15 && info.has_headers);
    CHECK_EQ(store_extent_info(rig->fars[0].store, extent, &info), 0);
    CHECK(info.state == EXTENT_OPEN);
    CHECK_EQ(copies_trim_headers(rig->copies, extent), 0);
    CHECK_EQ(store_extent_info(rig->fars[1].store, extent, &info), 0);
    CHECK(!info.has_headers);
    sim_net_block(rig->world, 1, 2, false);
    set_flags(rig, 2, 0);
    CHECK_EQ(copies_finalize(rig->copies, &log), 0);
    CHECK_EQ(copies_trim_headers(rig->copies, extent), 0);
    CHECK_EQ(store_extent_info(rig->fars[0].store, extent, &info), 0);
    CHECK(info.state == EXTENT_FINAL && info.length == 15 && !info.has_headers);
    /* One that is gone has no say. */
    far_end(&rig->fars[1], SIM_KILL);
    set_flags(rig, 3, NODE_DOWN);
    submit(rig, &(struct cluster_command){
                    .op = CLUSTER_NODE_GONE, .node = 3, .force = true});
    CHECK_EQ(copies_finalize(rig->copies, &log), 0);
    CHECK_EQ(copies_trim_headers(rig->copies, extent), 0);
    CHECK_EQ(trim_one(rig, address_plus(extent, 2)), 0);
}

/* --- lists --- */

static async size_t list_all(struct rig *rig, struct extent_info **ret_infos,
                             bool *ret_complete)
{
    size_t count;
    CHECK_EQ(copies_list(rig->copies, DISK, ret_infos, &count, ret_complete), 0);
    return count;
}

static async void lists(struct rig *rig)
{
    struct extent_info *infos;
    bool complete;
    CHECK_EQ(list_all(rig, &infos, &complete), 0);
    CHECK(complete);
    free(infos);
    make_everywhere(rig, EXTENT(2), 20);
    make_extent(rig, 2, EXTENT(1), 5);
    make_final(rig, 1, EXTENT(3), 9);
    make_extent(rig, 3, EXTENT(3), 12);
    CHECK_EQ(list_all(rig, &infos, &complete), 3);
    CHECK(complete);
    CHECK(address_equal(infos[0].extent, EXTENT(1)) && infos[0].state == EXTENT_OPEN);
    CHECK(infos[0].disk == DISK && infos[0].epoch == EPOCH && infos[0].length == 5);
    CHECK(address_equal(infos[1].extent, EXTENT(2)) && infos[1].live == 19);
    CHECK(address_equal(infos[2].extent, EXTENT(3)) && infos[2].state == EXTENT_FINAL);
    CHECK_EQ(infos[2].length, 9);
    free(infos);
    size_t count;
    CHECK_EQ(copies_list(rig->copies, DISK + 1, &infos, &count, &complete), 0);
    CHECK(count == 0 && complete);
    free(infos);
    far_end(&rig->fars[0], SIM_KILL); /* one that is up does not answer */
    CHECK_EQ(list_all(rig, &infos, &complete), 2);
    CHECK(!complete);
    free(infos);
    set_flags(rig, 2, NODE_DOWN);
    CHECK_EQ(list_all(rig, &infos, &complete), 2);
    CHECK(complete); /* others are whole */
    free(infos);
    set_flags(rig, 1, NODE_DOWN);
    set_flags(rig, 1, 0);
    far_end(&rig->fars[1], SIM_KILL);
    set_flags(rig, 3, NODE_DOWN);
    CHECK_EQ(list_all(rig, &infos, &complete), 2);
    CHECK(!complete); /* nobody who answers has all of it */
    free(infos);
}

/* Page by page, as one member tells it. */
static async void pages(struct rig *rig)
{
    struct extent_info infos[4];
    for (uint32_t i = 0; i < 10; i++)
        make_final(rig, 2, EXTENT(2 * i + 1), 3);
    for (uint64_t node = 1; node <= 2; node++) {
        struct replica *replica = member_of(rig, node);
        struct address from = ADDRESS_NULL;
        uint32_t seen = 0, count;
        bool more = true;
        while (more) {
            CHECK_EQ(replica->ops->list(replica, DISK, from, 4, infos, &count, &more), 0);
            CHECK(count <= 4 && (count == 4 || !more));
            for (uint32_t i = 0; i < count; i++)
                CHECK(address_equal(infos[i].extent, EXTENT(2 * seen++ + 1)));
            if (count > 0)
                from = address_plus(infos[count - 1].extent, 1);
            from.v = from.v | (EXTENT_BLOCKS - 1);
            from.v++;
        }
        CHECK_EQ(seen, node == 1 ? 0 : 10);
    }
}

/* What each disk uses, each block once, whoever has it. */
static async void usage(struct rig *rig)
{
    struct disk_blocks *disks;
    size_t count;
    bool complete;
    make_everywhere(rig, EXTENT(1), 20);
    make_everywhere(rig, EXTENT(2), 30);
    CHECK_EQ(copies_usage(rig->copies, &disks, &count, &complete), 0);
    CHECK(complete && count == 1 && disks[0].disk == DISK && disks[0].live == 19 + 29);
    free(disks);
    set_flags(rig, 1, NODE_DOWN);
    set_flags(rig, 1, 0); /* it does not count any more; it has too much */
    make_final(rig, 1, EXTENT(3), 10);
    CHECK_EQ(trim_one(rig, FIRST(1)), 0);
    CHECK_EQ(copies_usage(rig->copies, &disks, &count, &complete), 0);
    CHECK(complete && count == 1 && disks[0].live == 19 + 29 - 1);
    free(disks);
    uint16_t group = (uint16_t)submit(
        rig, &(struct cluster_command){.op = CLUSTER_GROUP_ADD, .pool = DEFAULT_POOL,
                                       .member_count = 2, .members = {1, 3}});
    make_final(rig, 1, address_of(group, 4, 0), 5);
    make_final(rig, 3, address_of(group, 4, 0), 5);
    CHECK_EQ(copies_usage(rig->copies, &disks, &count, &complete), 0);
    CHECK(complete && count == 1 && disks[0].live == 19 + 29 - 1 + 4);
    free(disks);
    far_end(&rig->fars[0], SIM_KILL); /* which counts the first group */
    CHECK_EQ(copies_usage(rig->copies, &disks, &count, &complete), 0);
    CHECK(!complete && count == 1 && disks[0].live == 4);
    free(disks);
    task_sleep_ns(10 * NS_PER_S);
    uint64_t begun_ns = loop_now_ns(rig->loop);
    CHECK_EQ(copies_usage(rig->copies, &disks, &count, &complete), 0);
    CHECK(loop_now_ns(rig->loop) - begun_ns < 2 * NS_PER_S); /* nobody waits for it */
    free(disks);
    set_flags(rig, 2, NODE_DOWN);
    CHECK_EQ(copies_usage(rig->copies, &disks, &count, &complete), 0);
    CHECK(complete && count == 1 && disks[0].live == 19 + 29 - 1 + 4);
    free(disks);
}

/* --- reads --- */

struct one_read {
    struct log_read read;
    struct iovec iov;
    struct event over;
    uint32_t crcs[64];
};

static void one_read_done(struct log_read *read)
{
    event_set(&container_of(read, struct one_read, read)->over);
}

static async int read_some(struct rig *rig, struct address address, uint32_t count)
{
    struct buffer *buffer = buffer_create(rig->pool, count * BLOCK_SIZE);
    struct one_read mine = {.iov = {buffer->data, count * BLOCK_SIZE}};
    for (uint32_t i = 0; i < count; i++)
        mine.crcs[i] = crc_of(address_plus(address, i));
    event_init(&mine.over);
    mine.read = (struct log_read){.address = address, .count = count, .iov = &mine.iov,
                                  .iov_count = 1, .crcs = mine.crcs,
                                  .done = one_read_done};
    copies_read(rig->copies, &mine.read);
    event_wait(&mine.over);
    for (uint32_t i = 0; i < count && mine.read.result == 0; i++)
        CHECK_EQ(crc32c(buffer->data + (size_t)i * BLOCK_SIZE, BLOCK_SIZE), mine.crcs[i]);
    buffer_put(buffer);
    return mine.read.result;
}

/* Anything happens to the others, but one of them is there again soon: no read fails. */
static async void trouble(struct rig *rig, uint32_t i)
{
    struct far *far = &rig->fars[sim_world_random(rig->world, FARS)];
    struct far *other = far == &rig->fars[0] ? &rig->fars[1] : &rig->fars[0];
    switch (sim_world_random(rig->world, 8)) {
    case 0:
        if (other->is_up)
            far_restart(far, i % 2 == 0 ? SIM_KILL : SIM_POWER_CUT);
        break;
    case 1:
        sim_process_stall(far->loop, sim_world_random(rig->world, NS_PER_S));
        break;
    case 2:
        sim_net_block(rig->world, 1, (uint32_t)far->node, true);
        break;
    case 3:
        sim_net_open_all(rig->world);
        break;
    default:
        break;
    }
}

static async void reads_in_trouble(struct rig *rig)
{
    struct sim_faults *faults = sim_world_faults(rig->world);
    for (uint64_t node = 2; node <= 3; node++) {
        make_final(rig, node, EXTENT(1), 300);
        make_final(rig, node, EXTENT(2), 300);
    }
    make_final(rig, 1, EXTENT(2), 300); /* this node has one of them */
    set_flags(rig, 1, NODE_DOWN);
    set_flags(rig, 1, 0); /* and is not whole */
    faults->net_reset_ppm = 5000;
    faults->net_stuck_ppm = 5000;
    for (uint32_t i = 0; i < 200; i++) {
        uint32_t count = 1 + (uint32_t)sim_world_random(rig->world, 60);
        uint32_t block = 1 + (uint32_t)sim_world_random(rig->world, 200 - count);
        trouble(rig, i);
        if (i % 20 == 19)
            sim_net_open_all(rig->world);
        int rc = read_some(rig, address_plus(EXTENT(1 + i % 2), block), count);
        if (rc != 0 && copies_may_pass(rc)) { /* both were out of reach for long */
            sim_net_open_all(rig->world);
            rc = read_some(rig, address_plus(EXTENT(1 + i % 2), block), count);
        }
        CHECK_EQ(rc, 0);
    }
    faults->net_reset_ppm = faults->net_stuck_ppm = 0;
    sim_net_open_all(rig->world);
    task_sleep_ns(30 * NS_PER_S); /* all that is late has come */
}

/* --- all of it --- */

static const struct story STORIES[] = {
    {trims_all_up, 0},     {trims_down, 0},   {trims_last_whole, 0}, {trims_in_order, 0},
    {trims_becomes_whole, 0},
    {trims_not_final, 0},  {trims_killed, 0}, {trims_failed_store, 0},
    {finals, PATIENCE_MS}, {lists, 0},        {pages, 0},
    {usage, 0},    {reads_in_trouble, 20000},
};

int main(void)
{
    static const struct story many = {trims_many, 0};
    far_table();
    for (size_t i = 0; i < ARRAY_LEN(STORIES); i++) {
        for (uint64_t seed = 1; seed <= seeds_of(5); seed++)
            run_story(&STORIES[i], seed);
    }
    run_story(&many, 1);
    _exit(0); /* without a search for what killed processes left */
}
