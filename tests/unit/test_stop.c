/* SPDX-License-Identifier: Apache-2.0 */
/* A host that is to stop while its writes wait for members that do not come, or while
 * what another host read is on its way: it ends, and what was acknowledged is found by
 * the next one. */
#include "tests/unit/host_machine.h"

#define SIZE  (2 * MIB)
#define BYTES 4096U
#define SEEDS 8U

static async int write_byte(struct disk *disk, uint8_t with)
{
    uint8_t data[BYTES];
    memset(data, with, sizeof data);
    return write_bytes_at(disk, 0, BYTES, data, 0);
}

static async void check_byte(struct hosts *h, uint8_t expected)
{
    uint8_t data[BYTES];
    struct disk *disk = attach_to(h, 1, "web", DISK_READ_WRITE);
    CHECK_EQ(read_bytes_at(disk, 0, BYTES, data), 0);
    for (uint32_t i = 0; i < BYTES; i++)
        CHECK_EQ(data[i], expected);
    CHECK_EQ(write_byte(disk, 9), 0);
    disk_close(disk);
}

/* What stands open can be written to no more. */
static async void stop_extents(struct hosts *h)
{
    const struct cluster_disk *disk = disk_state(h, "web");
    for (uint32_t i = 0; i < disk->extent_count; i++) {
        uint32_t length;
        bool is_scanned;
        CHECK_EQ(h->member->ops->stop(h->member, disk->extents[i].extent, &length,
                                      &is_scanned),
                 0);
    }
}

static async void reopen(struct hosts *h)
{
    struct party *party = &h->parties[1];
    uint64_t begun_ns = loop_now_ns(h->loop);
    host_close(party->host);
    CHECK(loop_now_ns(h->loop) - begun_ns < 3 * HOST_STOP_WAIT_MS * NS_PER_MS);
    party->lacks_members = false;
    party_open_host(h, 1);
}

/* A front end goes when its write is answered. */
static async void run_write_waits(struct hosts *h)
{
    struct party *party = &h->parties[1];
    DO(disk_create(party->host, "web", SIZE, &err));
    struct disk *disk = attach_to(h, 1, "web", DISK_READ_WRITE);
    CHECK_EQ(write_byte(disk, 1), 0);
    stop_extents(h);
    party->lacks_members = true;
    host_stop_soon(party->host);
    uint64_t begun_ns = loop_now_ns(h->loop);
    CHECK_EQ(write_byte(disk, 2), -ESHUTDOWN);
    uint64_t took_ns = loop_now_ns(h->loop) - begun_ns;
    CHECK(took_ns >= (HOST_STOP_WAIT_MS - 2000) * NS_PER_MS);
    CHECK(took_ns < 2 * HOST_STOP_WAIT_MS * NS_PER_MS);
    disk_close(disk);
    reopen(h);
    check_byte(h, 1);
}

/* Nobody waits but the last checkpoint. */
static async void run_checkpoint_waits(struct hosts *h)
{
    struct party *party = &h->parties[1];
    DO(disk_create(party->host, "web", SIZE, &err));
    struct disk *disk = attach_to(h, 1, "web", DISK_READ_WRITE);
    CHECK_EQ(write_byte(disk, 1), 0);
    if (sim_world_random(h->world, 2) == 0)
        CHECK_EQ(flush(disk), 0);
    stop_extents(h);
    party->lacks_members = true;
    disk_close(disk);
    reopen(h);
    check_byte(h, 1);
}

/* The answer still lies in memory of the host's. */
static async void run_read_on_its_way(struct hosts *h)
{
    struct sim_faults *faults = sim_world_faults(h->world);
    uint64_t min_ns = faults->net_latency_min_ns, max_ns = faults->net_latency_max_ns;
    uint8_t data[BYTES];
    struct op ops[SIZE / MIB];
    DO(disk_create(h->parties[1].host, "web", SIZE, &err));
    struct disk *here = attach_to(h, 1, "web", DISK_READ_WRITE);
    CHECK_EQ(write_byte(here, 1), 0);
    struct disk *there = attach_to(h, 2, "web", DISK_INCOMING);
    CHECK_EQ(read_bytes_at(there, 0, BYTES, data), 0); /* there is a connection now */
    faults->net_latency_min_ns = faults->net_latency_max_ns = 400 * NS_PER_MS;
    for (uint32_t i = 0; i < ARRAY_LEN(ops); i++)
        op_start(&ops[i], there, DISK_READ, 0, i * MIB, MIB, NULL);
    task_sleep_ns(410 * NS_PER_MS);
    disk_close(here);
    reopen(h);
    for (uint32_t i = 0; i < ARRAY_LEN(ops); i++)
        CHECK_EQ(op_wait(&ops[i], NULL), 0);
    faults->net_latency_min_ns = min_ns;
    faults->net_latency_max_ns = max_ns;
    disk_close(there);
}

struct closing {
    struct task_call call;
    struct hosts *h;
    struct event over;
};

static void closing_main(struct task_call *call)
{
    struct closing *closing = container_of(call, struct closing, call);
    host_close(closing->h->parties[1].host);
    event_set(&closing->over);
}

/* --- a disk is being opened --- */

static async int stop_silent(struct replica *replica, struct address extent,
                             uint32_t *ret_length, bool *ret_restart_scanned)
{
    (void)replica, (void)extent, (void)ret_length, (void)ret_restart_scanned;
    task_sleep_ns(100 * NS_PER_MS);
    return -EHOSTUNREACH;
}

struct opening {
    struct task_call call;
    struct hosts *h;
    int rc;
    struct event over;
};

static void opening_main(struct task_call *call)
{
    struct opening *opening = container_of(call, struct opening, call);
    struct error err = {0};
    struct disk *disk;
    opening->rc = disk_open(opening->h->parties[2].host, "web", DISK_READ_WRITE, &disk,
                            &err);
    event_set(&opening->over);
}

/* Its owner is down, and the take-over waits for a member that has to say something. */
static async void run_take_over_waits(struct hosts *h)
{
    struct opening opening = {.call = {.main = opening_main, .name = "open"}, .h = h};
    const struct replica_ops *ops = h->member->ops;
    struct replica_ops silent = *ops;
    DO(disk_create(h->parties[1].host, "web", SIZE, &err));
    struct disk *disk = attach_to(h, 1, "web", DISK_READ_WRITE);
    CHECK_EQ(write_byte(disk, 1), 0);
    CHECK_EQ(flush(disk), 0);
    silent.stop = stop_silent;
    h->member->ops = &silent;
    party_flags(h, 1, NODE_DOWN);
    event_init(&opening.over);
    task_start(h->loop, &opening.call);
    task_sleep_ns(10 * NS_PER_S);
    CHECK(!opening.over.is_set);
    uint64_t begun_ns = loop_now_ns(h->loop);
    host_close(h->parties[2].host);
    CHECK(opening.over.is_set && opening.rc != 0);
    CHECK(loop_now_ns(h->loop) - begun_ns < 5 * NS_PER_S);
    h->member->ops = ops;
    party_open_host(h, 2);
    disk_close(disk);
    disk = attach_to(h, 2, "web", DISK_READ_WRITE);
    CHECK_EQ(write_byte(disk, 2), 0);
    disk_close(disk);
    party_flags(h, 1, 0);
}

/* --- a client is still here --- */

/* A client that a close of host 1 is going to wait for. */
static async struct disk *begin_closing(struct hosts *h, struct closing *closing)
{
    *closing = (struct closing){.call = {.main = closing_main, .name = "close"}, .h = h};
    DO(disk_create(h->parties[1].host, "web", SIZE, &err));
    struct disk *disk = attach_to(h, 1, "web", DISK_READ_WRITE);
    CHECK_EQ(write_byte(disk, 1), 0);
    event_init(&closing->over);
    return disk;
}

/* Nothing is begun for another host that nobody would wait for. */
static async void run_asked_while_closing(struct hosts *h)
{
    struct closing closing;
    struct party *party = &h->parties[1];
    struct disk *disk = begin_closing(h, &closing);
    struct disk_rpc_hand_over head = {.disk = le64_of(disk_state(h, "web")->id),
                                      .epoch = le64_of(disk_state(h, "web")->epoch),
                                      .kind = HAND_OVER_INCOMING};
    task_start(h->loop, &closing.call);
    task_sleep_ns(100 * NS_PER_MS);
    CHECK(party->host->closing); /* and waits for the client */
    CHECK_EQ(call_raw(h, DISK_RPC_HAND_OVER, &head, sizeof head), -ESHUTDOWN);
    CHECK_EQ(party->handed_over, 1);
    disk_close(disk);
    event_wait(&closing.over);
    party_open_host(h, 1);
    check_byte(h, 1);
}

static async void end_closing(struct hosts *h, struct closing *closing, struct disk *disk)
{
    struct party *party = &h->parties[1];
    party->mood = SILENT; /* soon there is no host that could be asked */
    disk_close(disk);
    event_wait(&closing->over);
    party_open_host(h, 1);
    party->mood = ANSWERS;
    party_release(party, -ECONNRESET);
}

/* What another host writes meanwhile waits until the disk is let go of. */
static async void run_written_while_closing(struct hosts *h)
{
    struct closing closing;
    uint8_t data[BYTES];
    struct op op;
    struct disk *disk = begin_closing(h, &closing);
    struct disk *there = attach_to(h, 2, "web", DISK_INCOMING);
    task_start(h->loop, &closing.call);
    task_sleep_ns(100 * NS_PER_MS);
    memset(data, 2, sizeof data);
    op_start(&op, there, DISK_WRITE, 0, 0, BYTES, data);
    task_sleep_ns(NS_PER_S);
    CHECK(!op.over.is_set);
    end_closing(h, &closing, disk);
    CHECK_EQ(op_wait(&op, NULL), 0);
    CHECK_EQ(owner_of(h, "web"), 2);
    disk_close(there);
    check_byte(h, 2);
}

struct attaching {
    struct task_call call;
    struct hosts *h;
    struct disk *disk;
    struct event over;
};

static void attaching_main(struct task_call *call)
{
    struct attaching *attaching = container_of(call, struct attaching, call);
    attaching->disk = attach_to(attaching->h, 2, "web", DISK_READ_WRITE);
    event_set(&attaching->over);
}

/* So does who attaches it there. */
static async void run_attached_while_closing(struct hosts *h)
{
    struct closing closing;
    struct attaching attaching = {.call = {.main = attaching_main, .name = "attach"},
                                  .h = h};
    struct disk *disk = begin_closing(h, &closing);
    event_init(&attaching.over);
    task_start(h->loop, &closing.call);
    task_sleep_ns(100 * NS_PER_MS);
    task_start(h->loop, &attaching.call);
    task_sleep_ns(NS_PER_S);
    CHECK(!attaching.over.is_set);
    end_closing(h, &closing, disk);
    event_wait(&attaching.over);
    CHECK_EQ(write_byte(attaching.disk, 2), 0);
    disk_close(attaching.disk);
    check_byte(h, 2);
}

int main(int argc, char **argv)
{
    static void (*const STORIES[])(struct hosts *h) = {
        run_write_waits,
        run_checkpoint_waits,
        run_read_on_its_way,
        run_take_over_waits,
        run_asked_while_closing,
        run_written_while_closing,
        run_attached_while_closing,
    };
    for (size_t i = 0; i < ARRAY_LEN(STORIES); i++) {
        uint64_t first = 1, last = seeds_of(SEEDS);
        if (argc > 1) /* one seed, all stories */
            first = last = strtoull(argv[1], NULL, 10);
        for (uint64_t seed = first; seed <= last; seed++)
            hosts_run(seed, STORIES[i]);
    }
    return 0;
}
